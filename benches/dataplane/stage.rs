//! The namespaces of one mechanism, ready to forward.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use killick::dataplane::ebpf::{Attached, Ebpf, Hook, Options, Role, Sizes};
use killick::dataplane::encap::Encapsulator as _;
use killick::dataplane::encap::gpe::{self, Gpe};
use killick::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, InstanceId};
use killick::types::{Locator, Prefix};

use super::Result;
use super::inject::{Bench, Config, FRAME_LEN, Meter, find_deferred};

const MANY: u32 = 100_000;
/// 10.9.0.0; what is injected goes to addresses from here on.
const BASE: u32 = 0x0a09_0000;
const IID: InstanceId = InstanceId(77);
/// What is injected, and LISP.
const PORTS: [u16; 2] = [9, 4341];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Plain,
    Tc,
    Gpe,
    GpeBare,
    GpeRule,
    GpeHook,
    PlainWire,
    Xdp,
    PlainWire100k,
    Xdp100k,
    Plain100k,
    Tc100k,
    PlainBoth,
    TcBoth,
    Plain6,
    Tc6,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Plain,
        Self::Tc,
        Self::Gpe,
        Self::GpeBare,
        Self::GpeRule,
        Self::GpeHook,
        Self::Xdp,
        Self::PlainWire,
        Self::Plain100k,
        Self::Xdp100k,
        Self::PlainWire100k,
        Self::Tc100k,
        Self::PlainBoth,
        Self::TcBoth,
        Self::Plain6,
        Self::Tc6,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tc => "tc_encap",
            Self::Gpe => "gpe_encap",
            Self::GpeBare => "gpe_bare",
            Self::GpeRule => "gpe_rule",
            Self::GpeHook => "gpe_hook",
            Self::PlainWire => "plain_wire",
            Self::Xdp => "xdp_encap",
            Self::PlainWire100k => "plain_wire_100k",
            Self::Xdp100k => "xdp_encap_100k",
            Self::Plain100k => "plain_100k",
            Self::Tc100k => "tc_encap_100k",
            Self::PlainBoth => "plain_both",
            Self::TcBoth => "tc_both",
            Self::Plain6 => "plain_v6",
            Self::Tc6 => "tc_encap_v6",
        }
    }

    pub const fn what(self) -> &'static str {
        match self {
            Self::Plain => "kernel forwarding, one IPv4 destination",
            Self::Tc => "eBPF in tc encapsulates, one destination",
            Self::Gpe => "LISP-GPE as killick sets it up, one destination",
            Self::GpeBare => "vxlan-gpe device and a route, made by hand",
            Self::GpeRule => "the same in a table of its own, by a routing rule",
            Self::GpeHook => "the same with a chain of one rule in nftables' forward hook",
            Self::PlainWire => "kernel forwarding of frames through a veth pair",
            Self::Xdp => "eBPF in XDP encapsulates, one destination, frames through a veth pair",
            Self::PlainWire100k => "the same with 100,000 host routes",
            Self::Xdp100k => "the same with 100,000 destinations",
            Self::Plain100k => "kernel forwarding, 100,000 host routes",
            Self::Tc100k => "eBPF in tc encapsulates, 100,000 destinations",
            Self::PlainBoth => "kernel forwarding by both gateways",
            Self::TcBoth => "eBPF in tc encapsulates at one gateway and takes out at the other",
            Self::Plain6 => "kernel forwarding, one IPv6 destination",
            Self::Tc6 => "eBPF in tc encapsulates IPv6 in IPv6, one destination",
        }
    }

    /// What it is compared with. XDP with forwarding of frames that did not have to cross the veth
    /// pair which its own do: a harder comparison than with those that had to.
    pub const fn peer(self) -> Option<Self> {
        match self {
            Self::Tc
            | Self::Gpe
            | Self::GpeBare
            | Self::GpeRule
            | Self::GpeHook
            | Self::Xdp
            | Self::PlainWire => Some(Self::Plain),
            Self::Tc100k | Self::Xdp100k | Self::PlainWire100k => Some(Self::Plain100k),
            Self::TcBoth => Some(Self::PlainBoth),
            Self::Tc6 => Some(Self::Plain6),
            Self::Plain | Self::Plain100k | Self::PlainBoth | Self::Plain6 => None,
        }
    }

    /// Another one, for whoever wants to know.
    pub const fn other_peer(self) -> Option<Self> {
        match self {
            Self::Xdp => Some(Self::PlainWire),
            Self::Xdp100k => Some(Self::PlainWire100k),
            _ => None,
        }
    }

    /// At most this times the peer.
    pub const fn bar(self) -> Option<f64> {
        match self {
            Self::Tc => Some(1.3),
            Self::TcBoth => Some(1.4),
            Self::Xdp => Some(0.5),
            Self::Xdp100k => Some(0.7),
            Self::Gpe => Some(2.0),
            _ => None,
        }
    }

    const fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp | Self::Xdp100k)
    }

    const fn is_ebpf(self) -> bool {
        matches!(self, Self::Tc | Self::Tc100k | Self::TcBoth | Self::Tc6) || self.is_xdp()
    }

    const fn is_gpe(self) -> bool {
        matches!(self, Self::Gpe | Self::GpeBare | Self::GpeRule | Self::GpeHook)
    }

    const fn is_wire(self) -> bool {
        matches!(self, Self::PlainWire | Self::PlainWire100k) || self.is_xdp()
    }

    const fn is_v6(self) -> bool {
        matches!(self, Self::Plain6 | Self::Tc6)
    }

    const fn is_both(self) -> bool {
        matches!(self, Self::PlainBoth | Self::TcBoth)
    }

    const fn destinations(self) -> u32 {
        match self {
            Self::PlainWire100k | Self::Xdp100k | Self::Plain100k | Self::Tc100k => MANY,
            _ => 1,
        }
    }
}

/// A network namespace and mounts of this process alone: what it makes ends with it.
pub fn become_alone() -> Result<()> {
    // SAFETY: no threads yet, no memory involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        return Err(format!("needs root: {}", io::Error::last_os_error()).into());
    }
    sh("mount --make-rprivate /
        mkdir -p /run/netns
        mount -t tmpfs -o size=1m,mode=755 none /run/netns")
}

fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}\n{}", script.trim(), String::from_utf8_lossy(&output.stderr)).into())
}

fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(Path::new("/run/netns").join(namespace))?;
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn ifindex(link: &str) -> Result<u32> {
    let name = std::ffi::CString::new(link)?;
    // SAFETY: the string ends with a NUL.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(format!("there is no {link}").into()),
        index => Ok(index),
    }
}

pub struct Measured {
    /// Per packet.
    pub wall_ns: f64,
    pub cpu_ns: f64,
    pub sunk: u64,
    pub sent: u64,
}

pub struct Stage {
    pub kind: Kind,
    number: u8,
    bench: Bench,
    ifindex: u32,
    deferred: Option<u32>,
    _gateways: Vec<Ebpf>,
}

impl Stage {
    pub fn set(kind: Kind, number: u8, cpu: usize) -> Result<Self> {
        let at = |node: &str| format!("{node}{number}");
        links(number)?;
        if kind == Kind::Gpe {
            gpe(&at("i"))?;
        } else if kind.is_gpe() {
            gpe_by_hand(kind, &at("i"))?;
        }
        if kind.destinations() > 1 && !kind.is_ebpf() {
            routes(&at("i"), kind.destinations())?;
        }

        let mut bench = Bench::load(config(kind, number))?;
        let mut gateways = Vec::new();
        if kind.is_ebpf() {
            gateways.push(ingress(kind, number)?);
        }
        if kind == Kind::TcBoth {
            gateways.push(egress(number)?);
        }
        // The kernel takes frames only from an interface that has queues for XDP.
        enter(&at("s"))?;
        bench.attach_xdp("nothing", "s0")?;
        enter(&at("i"))?;
        if !kind.is_xdp() {
            bench.attach_xdp("nothing", "i0")?;
        }
        let (node, link) = if kind.is_both() { ("m", "m0") } else { ("e", "e1") };
        enter(&at(node))?;
        if kind.is_xdp() {
            // Without it a veth takes no frames. What the tc program sends meanwhile comes here too.
            bench.attach_xdp("sink_xdp", link)?;
        } else {
            bench.attach_sink(link)?;
        }
        let (node, link) = if kind.is_wire() { ("s", "s0") } else { ("i", "i0") };
        enter(&at(node))?;
        let ifindex = ifindex(link)?;
        let deferred = find_deferred(cpu);
        Ok(Self { kind, number, bench, ifindex, deferred, _gateways: gateways })
    }

    pub fn run(&mut self, packets: u32) -> Result<Measured> {
        enter(&format!("{}{}", if self.kind.is_wire() { "s" } else { "i" }, self.number))?;
        let before = self.bench.sunk()?;
        let meter = Meter::start(self.deferred);
        self.bench.inject(self.ifindex, packets)?;
        let (wall, cpu) = meter.stop();
        let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(packets);
        Ok(Measured {
            wall_ns: each(wall),
            cpu_ns: each(cpu),
            sunk: self.bench.sunk()? - before,
            sent: packets.into(),
        })
    }
}

/// Link-layer address of a device of this stage.
fn mac(number: u8, device: &str) -> [u8; 6] {
    let mut octets = device.bytes();
    [2, 0, 0, number, octets.next().unwrap_or(0), octets.next().unwrap_or(0)]
}

fn mac_text(number: u8, device: &str) -> String {
    mac(number, device).map(|octet| format!("{octet:02x}")).join(":")
}

fn links(number: u8) -> Result<()> {
    let mut script = String::new();
    for node in ["s", "i", "e", "m"] {
        script += &format!(
            "ip netns add {node}{number}
             ip -n {node}{number} link set lo up
             ip netns exec {node}{number} sysctl -qw net.ipv4.ip_forward=1 \
                 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
            "
        );
    }
    for ((a, da), (b, db), net) in [
        (("s", "s0"), ("i", "i0"), 8),
        (("i", "i1"), ("e", "e1"), 1),
        (("e", "e0"), ("m", "m0"), 2),
    ] {
        let (ma, mb) = (mac_text(number, da), mac_text(number, db));
        script += &format!(
            "ip link add {da} address {ma} netns {a}{number} type veth \
                 peer name {db} address {mb} netns {b}{number}
             ip -n {a}{number} addr add 10.{net}.0.1/24 dev {da}
             ip -n {b}{number} addr add 10.{net}.0.2/24 dev {db}
             ip -n {a}{number} addr add 2001:db8:{net}::1/64 dev {da} nodad
             ip -n {b}{number} addr add 2001:db8:{net}::2/64 dev {db} nodad
             ip -n {a}{number} link set {da} up
             ip -n {b}{number} link set {db} up
             ip -n {a}{number} neigh replace 10.{net}.0.2 lladdr {mb} dev {da} nud permanent
             ip -n {b}{number} neigh replace 10.{net}.0.1 lladdr {ma} dev {db} nud permanent
             ip -n {a}{number} neigh replace 2001:db8:{net}::2 lladdr {mb} dev {da} nud permanent
             ip -n {b}{number} neigh replace 2001:db8:{net}::1 lladdr {ma} dev {db} nud permanent
            "
        );
    }
    script += &format!(
        "ip -n i{number} route add 10.8.0.0/13 via 10.1.0.2
         ip -n i{number} route add 2001:db8:9::/48 via 2001:db8:1::2
         ip -n e{number} route add 10.8.0.0/13 via 10.2.0.2
         ip -n e{number} route add 2001:db8:9::/48 via 2001:db8:2::2
        "
    );
    sh(&script)
}

/// What the same takes without killick, and what two usual additions to it cost.
fn gpe_by_hand(kind: Kind, namespace: &str) -> Result<()> {
    let table = if kind == Kind::GpeRule { "107" } else { "main" };
    let mut script = format!(
        "ip link add gpe0 type vxlan dstport 4341 gpe external nolearning udp6zerocsumtx udp6zerocsumrx
         ip link set gpe0 mtu 1464 up
         ip route add 10.9.0.0/32 encap ip id 77 dst 10.1.0.2 src 10.1.0.1 dev gpe0 table {table}
        "
    );
    if kind == Kind::GpeRule {
        script += "ip rule add pref 4341 lookup 107\n";
    }
    if kind == Kind::GpeHook {
        script += "nft add table inet bench
                   nft 'add chain inet bench forward { type filter hook forward priority 0; }'
                   nft 'add rule inet bench forward oifname nothing drop'\n";
    }
    enter(namespace)?;
    sh(&script)
}

/// killick's kernel back end, with all that it puts on the way of a packet: its route in the main
/// table, a group of one locator, and the guard in nftables.
fn gpe(namespace: &str) -> Result<()> {
    enter(namespace)?;
    let local = "10.1.0.1".parse()?;
    let mut gpe = Gpe::open(gpe::Options { ipv4: Some(local), iid: IID, ..Default::default() })?;
    let (group, remote) = (GroupId(0), "10.1.0.2".parse()?);
    let path = GroupPath::Encap { members: vec![(remote, 1)], iid: IID };
    let prefix = Prefix::host("10.9.0.0".parse()?);
    let entry = EncapChange::SetEntry { prefix, action: EntryAction::Group(group) };
    let mut results = Vec::new();
    gpe.apply(&[EncapChange::SetGroup { group, path }, entry], &mut results);
    // It stays in the kernel.
    results.into_iter().collect::<std::result::Result<(), _>>().map_err(Into::into)
}

fn address(at: u32) -> std::net::Ipv4Addr {
    (BASE + at).into()
}

fn routes(namespace: &str, count: u32) -> Result<()> {
    let mut batch = String::from("nexthop add id 1 via 10.1.0.2 dev i1\n");
    for at in 0..count {
        batch += &format!("route add {}/32 nhid 1\n", address(at));
    }
    let file = std::env::temp_dir().join(format!("killick-routes-{}", std::process::id()));
    fs::write(&file, batch)?;
    let done = sh(&format!("ip -n {namespace} -batch {}", file.display()));
    fs::remove_file(&file)?;
    done
}

fn open(number: u8, node: &str, local: Locator) -> Result<Ebpf> {
    // On the private /run/netns, so that it ends with the process.
    let pin = PathBuf::from(format!("/run/netns/bpf-{node}{number}"));
    Ok(Ebpf::open(Options {
        pin,
        local,
        iid: Some(IID),
        mtu_bytes: 1500,
        sizes: Sizes { hosts: 1 << 18, ..Sizes::default() },
        clsact: false,
    })?)
}

fn locator(at: u8) -> Locator {
    Locator {
        ipv4: Some([10, 1, 0, at].into()),
        ipv6: Some([0x2001, 0xdb8, 1, 0, 0, 0, 0, at.into()].into()),
    }
}

fn apply(ebpf: &mut Ebpf, changes: &[EncapChange]) -> Result<()> {
    let mut results = Vec::new();
    ebpf.apply(changes, &mut results);
    for result in results {
        result?;
    }
    Ok(())
}

fn ingress(kind: Kind, number: u8) -> Result<Ebpf> {
    let mut ebpf = open(number, "i", locator(1))?;
    let group = GroupId(0);
    let to = if kind.is_v6() { "2001:db8:1::2".parse()? } else { [10, 1, 0, 2].into() };
    let path = GroupPath::Encap { members: vec![(to, 1)], iid: IID };
    let action = EntryAction::Group(group);
    let mut changes = vec![EncapChange::SetGroup { group, path }];
    if kind.is_v6() {
        let prefix = "2001:db8:9::a09:0/128".parse()?;
        changes.push(EncapChange::SetEntry { prefix, action });
    }
    for at in 0..kind.destinations() {
        let prefix = Prefix::host(address(at).into());
        changes.push(EncapChange::SetEntry { prefix, action });
    }
    apply(&mut ebpf, &changes)?;
    enter(&format!("i{number}"))?;
    let hook = if kind.is_xdp() { Hook::Xdp } else { Hook::Tc };
    let attached = ebpf.attach("i0", Role::Inside, hook)?;
    if kind.is_xdp() && attached != Attached::XdpNative {
        return Err("XDP is not native here".into());
    }
    Ok(ebpf)
}

/// What it takes to tell the programs.
pub struct Telling {
    /// Entries per second, all new.
    pub installs_per_s: f64,
    /// Of each call, sorted.
    pub moves: Vec<Duration>,
    pub group_moves: Vec<Duration>,
}

/// Changes of entries and of a group that all of them are in.
pub fn tell(number: u8, entries: u32) -> Result<Telling> {
    let mut ebpf = open(number, "t", locator(1))?;
    let path = |at: u8| GroupPath::Encap { members: vec![([10, 1, 0, at].into(), 1)], iid: IID };
    let groups = [GroupId(0), GroupId(1)];
    for group in groups {
        apply(&mut ebpf, &[EncapChange::SetGroup { group, path: path(2) }])?;
    }
    let set = |at: u32, group: GroupId| EncapChange::SetEntry {
        prefix: Prefix::host(address(at).into()),
        action: EntryAction::Group(group),
    };
    let changes: Vec<_> = (0..entries).map(|at| set(at, groups[0])).collect();
    let begin = Instant::now();
    apply(&mut ebpf, &changes)?;
    let installs_per_s = f64::from(entries) / begin.elapsed().as_secs_f64();

    let mut results = Vec::with_capacity(1);
    let mut time = |change: EncapChange| -> Result<Duration> {
        results.clear();
        let begin = Instant::now();
        ebpf.apply(std::slice::from_ref(&change), &mut results);
        let taken = begin.elapsed();
        results.drain(..).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(taken)
    };
    // In an order that no cache likes.
    let scattered = |n: u32| n.wrapping_mul(0x9e37_79b1) % entries;
    let mut moves =
        (0..20_000).map(|n| time(set(scattered(n), groups[1]))).collect::<Result<Vec<_>>>()?;
    let mut group_moves = (0..2_000_u32)
        .map(|n| {
            let path = path(if n % 2 == 0 { 3 } else { 4 });
            time(EncapChange::SetGroup { group: groups[1], path })
        })
        .collect::<Result<Vec<_>>>()?;
    moves.sort();
    group_moves.sort();
    Ok(Telling { installs_per_s, moves, group_moves })
}

fn egress(number: u8) -> Result<Ebpf> {
    let mut ebpf = open(number, "e", locator(2))?;
    apply(&mut ebpf, &[EncapChange::AllowDecap { prefix: "10.9.0.0/16".parse()? }])?;
    enter(&format!("e{number}"))?;
    ebpf.attach("e1", Role::Underlay, Hook::Tc)?;
    Ok(ebpf)
}

fn config(kind: Kind, number: u8) -> Config {
    let mut header = [0_u8; FRAME_LEN];
    header[..6].copy_from_slice(&mac(number, "i0"));
    header[6..12].copy_from_slice(&mac(number, "s0"));
    let [port, lisp] = PORTS;
    let udp = if kind.is_v6() {
        header[12..14].copy_from_slice(&[0x86, 0xdd]);
        let len = u8::try_from(FRAME_LEN - 14 - 40).expect("10");
        header[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, len, 17, 64]);
        let from: std::net::Ipv6Addr = [0x2001, 0xdb8, 8, 0, 0, 0, 0, 1].into();
        let to: std::net::Ipv6Addr = [0x2001, 0xdb8, 9, 0, 0, 0, 0, 0].into();
        header[22..38].copy_from_slice(&from.octets());
        header[38..54].copy_from_slice(&to.octets());
        &mut header[54..]
    } else {
        header[12..14].copy_from_slice(&[8, 0]);
        let len = u8::try_from(FRAME_LEN - 14).expect("50");
        header[14..24].copy_from_slice(&[0x45, 0, 0, len, 0, 0, 0, 0, 64, 17]);
        header[26..30].copy_from_slice(&[10, 8, 0, 1]);
        &mut header[34..]
    };
    let len = u16::try_from(udp.len()).expect("short");
    udp[..2].copy_from_slice(&5000_u16.to_be_bytes());
    udp[2..4].copy_from_slice(&port.to_be_bytes());
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    if kind.is_v6() {
        udp[6..8].copy_from_slice(&[0xff, 0xff]); // not checked by a router
    }
    let words = header[14..30].chunks_exact(2).map(|w| u32::from(u16::from_ne_bytes([w[0], w[1]])));
    let tunnelled = (kind.is_ebpf() || kind.is_gpe()) && !kind.is_both();
    Config {
        count: kind.destinations(),
        base: BASE,
        tx: kind.is_wire().into(),
        sum: words.sum(),
        v6: kind.is_v6().into(),
        port: u32::from((if tunnelled { lisp } else { port }).to_be()),
        header,
    }
}
