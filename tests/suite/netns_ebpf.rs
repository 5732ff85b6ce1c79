//! The eBPF data plane with real packets: a source, FE_I, two FE_E and a node between namespaces.
//!
//! ```text
//!  [s] s0 -- i0 [i] u1 -- u1 [e] m0 -- x [m]     FE_I at i, FE_E at e and f, the node at m;
//!                |  u2 -- u1 [f] m0 -- y [m]     locators are on lo
//!                            e u3 -- u3 f
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::dataplane::ebpf::{Attached, Ebpf, Hook, OpenError, Options, Role, Sizes, overhead};
use killick::dataplane::encap::{DropReason, EncapError, Encapsulator};
use killick::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use killick::types::{Family, Locator, Prefix};

const IID: InstanceId = InstanceId(77);
const NODES: [&str; 5] = ["s", "i", "e", "f", "m"];
const NODE4: &str = "10.9.0.7";
const NODE6: &str = "2001:db8:9::7";
const SOURCE4: &str = "10.8.0.2";
const SOURCE6: &str = "2001:db8:8::2";
const LIMIT: Duration = Duration::from_secs(10);

struct Lab {
    number: u32,
    folder: PathBuf,
    punt: OwnedFd,
}

fn name_of(number: u32, node: &str) -> String {
    format!("ke-{node}-{}-{number}", std::process::id())
}

/// Past the capture of the test harness.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_ebpf: {why}");
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
}

impl Lab {
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments, no memory.
        if unsafe { libc::geteuid() } != 0 {
            skip("namespaces and BPF need root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("killick-ebpf-{}-{number}", std::process::id()));
        let mut script = String::new();
        for node in NODES {
            let name = name_of(number, node);
            script += &format!(
                "ip netns add {name}; ip -n {name} link set lo up
                 ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                     net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                     net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
                 "
            );
        }
        let end = |node: &str| name_of(number, node);
        // (node, device) on both sides, and the third number of the link's addresses.
        for ((a, da), (b, db), net) in [
            (("s", "s0"), ("i", "i0"), 8),
            (("i", "u1"), ("e", "u1"), 101),
            (("i", "u2"), ("f", "u1"), 102),
            (("e", "u3"), ("f", "u3"), 103),
            (("e", "m0"), ("m", "x"), 104),
            (("f", "m0"), ("m", "y"), 105),
        ] {
            // The source has the address 2 on its link, as the far ends have on the others.
            let (first, second) = if net == 8 { (2, 1) } else { (1, 2) };
            let (na, nb) = (end(a), end(b));
            script += &format!(
                "ip link add {da} netns {na} type veth peer name {db} netns {nb}
                 ip -n {na} addr add 10.{net8}.0.{first}/24 dev {da}
                 ip -n {nb} addr add 10.{net8}.0.{second}/24 dev {db}
                 ip -n {na} addr add 2001:db8:{net}::{first}/64 dev {da} nodad
                 ip -n {nb} addr add 2001:db8:{net}::{second}/64 dev {db} nodad
                 ip -n {na} link set {da} up; ip -n {nb} link set {db} up
                 ",
                net8 = net
            );
        }
        for (node, at) in [("i", 1), ("e", 2), ("f", 3)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} addr add 10.255.0.{at}/32 dev lo
                 ip -n {name} addr add 2001:db8:ff::{at}/128 dev lo nodad
                 "
            );
        }
        // To the locators, and back to the source by plain routes.
        for (node, to, via) in [
            ("i", "ff::2", "101::2"),
            ("i", "ff::3", "102::2"),
            ("e", "ff::1", "101::1"),
            ("e", "ff::3", "103::2"),
            ("f", "ff::1", "102::1"),
            ("f", "ff::2", "103::1"),
        ] {
            let name = end(node);
            let four = |text: &str| {
                let (net, host) = text.split_once("::").unwrap();
                format!("10.{}.0.{host}", if net == "ff" { "255" } else { net })
            };
            script += &format!(
                "ip -n {name} route add {}/32 via {}
                 ip -n {name} route add 2001:db8:{to}/128 via 2001:db8:{via}
                 ",
                four(to),
                four(via)
            );
        }
        for (node, net) in [("e", 101), ("f", 102)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} route add 10.8.0.0/24 via 10.{net}.0.1
                 ip -n {name} route add 2001:db8:8::/64 via 2001:db8:{net}::1
                 "
            );
        }
        for (node, net) in [("e", 104), ("f", 105)] {
            let name = end(node);
            script += &format!(
                "ip -n {name} route add 10.9.0.0/24 via 10.{net}.0.2
                 ip -n {name} route add 2001:db8:9::/64 via 2001:db8:{net}::2
                 "
            );
        }
        let (s, i, m) = (end("s"), end("i"), end("m"));
        script += &format!(
            "ip -n {m} addr add {NODE4}/32 dev lo; ip -n {m} addr add {NODE6}/128 dev lo nodad
             ip -n {m} addr add 10.9.0.8/32 dev lo; ip -n {m} addr add 2001:db8:9::8/128 dev lo nodad
             ip -n {m} route add default via 10.104.0.1
             ip -n {m} route add default via 2001:db8:104::1
             ip -n {s} route add default via 10.8.0.1
             ip -n {s} route add default via 2001:db8:8::1
             ip -n {i} tuntap add punt mode tun
             ip -n {i} link set punt mtu {} up
             ip -n {i} route add 10.9.0.0/16 dev punt
             ip -n {i} route add 2001:db8:9::/48 dev punt
             ",
            1500 - overhead(Family::Ipv6),
        );
        std::fs::create_dir_all(&folder).unwrap();
        let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
        if !output.status.success() {
            remove(number);
            skip(&format!(
                "this machine refuses the namespaces: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
            return None;
        }
        let punt = inside(&end("i"), || open_tun("punt"));
        Some(Self { number, folder, punt })
    }

    fn name(&self, node: &str) -> String {
        name_of(self.number, node)
    }

    fn options(&self, node: &str) -> Options {
        let at = NODES.iter().position(|&n| n == node).unwrap();
        Options {
            pin: self.folder.join(format!("bpf-{node}")),
            local: Locator {
                ipv4: Some(format!("10.255.0.{at}").parse().unwrap()),
                ipv6: Some(format!("2001:db8:ff::{at}").parse().unwrap()),
            },
            iid: Some(IID),
            mtu_bytes: 1500,
            sizes: Sizes { hosts: 1024, networks: 64, groups: 16 },
            clsact: false,
        }
    }

    /// `None`, said aloud, where the kernel or rights are missing.
    fn open(&self, node: &str) -> Option<Ebpf> {
        match Ebpf::open(self.options(node)) {
            Ok(ebpf) => Some(ebpf),
            Err(error @ (OpenError::NotPermitted | OpenError::Pin { .. })) => {
                skip(&error.to_string());
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn attach(&self, node: &str, ebpf: &mut Ebpf, link: &str, role: Role, hook: Hook) -> Attached {
        inside(&self.name(node), || ebpf.attach(link, role, hook).unwrap())
    }

    fn ip(&self, node: &str, command: &str) -> String {
        sh(&format!("ip -n {} {command}", self.name(node)))
    }

    fn pings(&self, to: &str, more: &str) -> bool {
        ping(&self.name("s"), to, more).0
    }

    /// Until it does; the first packets may wait for neighbours.
    fn pings_soon(&self, to: &str) {
        let begin = Clock::now();
        while !self.pings(to, "-c 1 -W 1") {
            assert!(begin.elapsed() < LIMIT, "{to} does not answer");
        }
    }

    /// The three gateways with tc, everything to the node led to e.
    fn gateways(&self, hook: Hook) -> Option<Gateways> {
        let (mut i, mut e, mut f) = (self.open("i")?, self.open("e")?, self.open("f")?);
        self.attach("i", &mut i, "i0", Role::Inside, hook);
        self.attach("i", &mut i, "punt", Role::Punt, Hook::Tc);
        for (node, ebpf, links) in [("e", &mut e, ["u1", "u3"]), ("f", &mut f, ["u1", "u3"])] {
            for link in links {
                self.attach(node, ebpf, link, Role::Underlay, hook);
            }
        }
        Some(Gateways { i, e, f })
    }
}

struct Gateways {
    i: Ebpf,
    e: Ebpf,
    f: Ebpf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(self.number);
        for node in NODES {
            let _ = Command::new("umount")
                .args(["-l".as_ref(), self.folder.join(format!("bpf-{node}")).as_os_str()])
                .stderr(Stdio::null())
                .status();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn remove(number: u32) {
    for node in NODES {
        let _ = Command::new("ip")
            .args(["netns", "del", &name_of(number, node)])
            .stderr(Stdio::null())
            .status();
    }
}

fn inside<T: Send>(namespace: &str, make: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            make()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open_tun(name: &str) -> OwnedFd {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the pointer is to a live value of the kind that this request takes.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut ifreq) };
    assert_eq!(rc, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file.into()
}

/// Whether all were answered, and what it said.
fn ping(namespace: &str, to: &str, more: &str) -> (bool, String) {
    let output = Command::new("sh")
        .args(["-c", &format!("ip netns exec {namespace} ping -n -i 0.05 {more} {to} 2>&1")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && text.contains(" 0% packet loss"), text)
}

fn apply(ebpf: &mut Ebpf, changes: &[EncapChange]) {
    let mut results = Vec::new();
    ebpf.apply(changes, &mut results);
    for (change, result) in changes.iter().zip(results) {
        assert_eq!(result, Ok(()), "{change:?}");
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn group(number: u32, members: &[(&str, u8)]) -> EncapChange {
    let members = members.iter().map(|&(addr, weight)| (addr.parse().unwrap(), weight)).collect();
    EncapChange::SetGroup { group: GroupId(number), path: GroupPath::Encap { members, iid: IID } }
}

fn entry(text: &str, action: EntryAction) -> EncapChange {
    EncapChange::SetEntry { prefix: prefix(text), action }
}

fn to_group(text: &str, number: u32) -> EncapChange {
    entry(text, EntryAction::Group(GroupId(number)))
}

fn allow(text: &str) -> EncapChange {
    EncapChange::AllowDecap { prefix: prefix(text) }
}

fn dropped(ebpf: &mut Ebpf, why: DropReason) -> u64 {
    let at = DropReason::ALL.iter().position(|&r| r == why).unwrap();
    ebpf.totals().unwrap().dropped[at]
}

fn count_of(ebpf: &mut Ebpf, text: &str) -> EntryCount {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        after = ebpf.counters(after, 3, &mut found).unwrap();
        if after.is_none() {
            break;
        }
    }
    found.into_iter().find(|(p, _)| *p == prefix(text)).unwrap().1
}

/// All that a program has told so far.
fn events(ebpf: &mut Ebpf) -> Vec<EncapEvent> {
    let mut events = Vec::new();
    while ebpf.handle_readable(&mut events).unwrap() {}
    events
}

/// Writes what an interface sees to a file.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    fn start(lab: &Lab, node: &str, link: &str, filter: &str) -> Option<Self> {
        let file = lab.folder.join(format!("{node}-{link}.pcap"));
        let mut child = match Command::new("ip")
            .args(["netns", "exec", &lab.name(node), "tcpdump", "-Z", "root", "--immediate-mode"])
            .args(["-U", "-i", link])
            .args(["-w".as_ref(), file.as_os_str()])
            .arg(filter)
            .stderr(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                skip(&format!("the format on the wire is not looked at: {error}"));
                return None;
            }
        };
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("listening on") {
            said.clear();
            if lines.read_line(&mut said).unwrap() == 0 {
                skip("tcpdump is missing: the format on the wire is not looked at");
                return None;
            }
        }
        // It must be able to say how much it saw.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Some(Self { child, file })
    }

    /// The fields of each packet, of all layers with a comma between; waits for so many.
    fn fields(self, count: usize, fields: &[&str]) -> Vec<Vec<String>> {
        let begin = Clock::now();
        loop {
            let mut command = Command::new("tshark");
            command.arg("-r").arg(&self.file).args(["-o", "ip.check_checksum:TRUE"]);
            command.args(["-T", "fields", "-E", "separator=|"]);
            for field in fields {
                command.args(["-e", field]);
            }
            // An error is a packet that is being written.
            let output = command.output().unwrap();
            let packets: Vec<Vec<String>> = String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(|line| line.split('|').map(str::to_owned).collect())
                .collect();
            if output.status.success() && packets.len() >= count {
                return packets;
            }
            assert!(begin.elapsed() < LIMIT, "{} of {count} packets seen", packets.len());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 9300 §5: all four combinations of families, read by tshark.
#[test]
fn both_families_in_both_families() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(&mut g.e, &[allow("10.9.0.0/24"), allow("2001:db8:9::/64")]);
    for (rloc, own, overhead) in [
        ("10.255.0.2", "10.255.0.1", overhead(Family::Ipv4)),
        ("2001:db8:ff::2", "2001:db8:ff::1", overhead(Family::Ipv6)),
    ] {
        for (node, source) in [(NODE4, SOURCE4), (NODE6, SOURCE6)] {
            let what = format!("{node} through {rloc}");
            apply(&mut g.i, &[group(0, &[(rloc, 1)]), to_group(node, 0)]);
            lab.pings_soon(node);
            let before = (g.i.totals().unwrap(), g.e.totals().unwrap());
            let capture = Capture::start(&lab, "e", "u1", "udp port 4341");
            assert!(lab.pings(node, "-c 4 -W 2 -Q 0xba"), "{what}");

            let after = (g.i.totals().unwrap(), g.e.totals().unwrap());
            assert_eq!(after.0.encapsulated.packets - before.0.encapsulated.packets, 4, "{what}");
            assert_eq!(after.1.decapsulated.packets - before.1.decapsulated.packets, 4, "{what}");
            assert_eq!(after.0.dropped, before.0.dropped, "{what}");
            assert_eq!(after.1.dropped, before.1.dropped, "{what}");

            let Some(capture) = capture else { continue };
            let packets = capture.fields(
                4,
                &[
                    "ip.src",
                    "ip.dst",
                    "ipv6.src",
                    "ipv6.dst",
                    "udp.dstport",
                    "udp.srcport",
                    "udp.checksum",
                    "lisp-data.flags",
                    "lisp-data.iid",
                    "ip.ttl",
                    "ipv6.hlim",
                    "ip.dsfield",
                    "ipv6.tclass",
                    "ip.flags.df",
                    "ip.checksum.status",
                    "udp.length",
                    "icmp.type",
                    "icmpv6.type",
                    "_ws.malformed",
                ],
            );
            assert_eq!(packets.len(), 4, "{what}");
            for packet in packets {
                let [
                    s4,
                    d4,
                    s6,
                    d6,
                    port,
                    from_port,
                    udp_sum,
                    flags,
                    iid,
                    ttl,
                    hops,
                    ds,
                    class,
                    df,
                    sum_status,
                    len,
                    icmp,
                    icmp6,
                    malformed,
                ]: [String; 19] = packet.try_into().unwrap();
                // Outer first, then inner, each in its own family.
                let joined = |own: &str, inner: &str, v6: bool| {
                    [own, inner]
                        .into_iter()
                        .filter(|a| a.contains(':') == v6)
                        .collect::<Vec<_>>()
                        .join(",")
                };
                assert_eq!((s4, s6), (joined(own, source, false), joined(own, source, true)));
                assert_eq!((d4, d6), (joined(rloc, node, false), joined(rloc, node, true)));
                assert_eq!(port, "4341", "{what}");
                assert!(from_port.parse::<u16>().unwrap() >= 0xc000, "{what}");
                assert_eq!(udp_sum, "0x0000", "{what}");
                assert_eq!((flags.as_str(), iid.as_str()), ("0x08", "77"), "{what}");
                assert!(icmp == "8" || icmp6 == "128", "{what}");
                assert_eq!(malformed, "", "{what}");
                let mut lives = ttl.split(',').chain(hops.split(',')).filter(|t| !t.is_empty());
                assert!(lives.all(|t| t == "63"), "{what}: aged, then copied: {ttl} {hops}");
                let mut classes = ds.split(',').chain(class.split(',')).filter(|t| !t.is_empty());
                assert!(classes.all(|t| t.ends_with("ba")), "{what}: {ds} {class}");
                if rloc == "10.255.0.2" {
                    assert!(df.starts_with('1') || df.starts_with("True"), "{what}: {df}");
                }
                assert!(sum_status.split(',').all(|s| s.is_empty() || s == "1"), "{sum_status}");
                let ip = if node == NODE4 { 20 } else { 40 };
                assert_eq!(len.parse::<u32>().unwrap(), 16 + ip + 64, "{what}: {overhead}");
            }
        }
    }
}

/// The fast path does what the other one does, and leaves it what it cannot do.
#[test]
fn xdp_forwards_what_tc_forwards() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Xdp) else { return };
    // The tests' own attachment says how it came out.
    assert_eq!(lab.attach("i", &mut g.i, "i0", Role::Inside, Hook::Xdp), Attached::XdpNative);
    apply(&mut g.e, &[allow("10.9.0.7/32"), allow("2001:db8:9::7/128")]);
    for rloc in ["10.255.0.2", "2001:db8:ff::2"] {
        for node in [NODE4, NODE6] {
            apply(&mut g.i, &[group(0, &[(rloc, 1)]), to_group(node, 0)]);
            lab.pings_soon(node);
            let before = (
                count_of(&mut g.i, &Prefix::host(node.parse().unwrap()).to_string()),
                g.e.totals().unwrap(),
            );
            assert!(lab.pings(node, "-c 20 -W 2"), "{node} through {rloc}");
            let after = count_of(&mut g.i, &Prefix::host(node.parse().unwrap()).to_string());
            assert_eq!(after.packets - before.0.packets, 20);
            let totals = g.e.totals().unwrap();
            assert_eq!(totals.decapsulated.packets - before.1.decapsulated.packets, 20);
            assert_eq!(totals.dropped, before.1.dropped);
        }
    }
    // Not allowed: dropped there as well. The neighbours are known, so it is XDP that drops.
    apply(&mut g.i, &[to_group("10.9.0.8/32", 0)]);
    assert!(!lab.pings("10.9.0.8", "-c 5 -W 1"));
    assert_eq!(dropped(&mut g.e, DropReason::NotAllowed), 5);
    // A packet that is too big is answered, whoever sees it first.
    too_big(&lab);
}

/// By the driver where it can, else by the kernel before everything else, else refused with words.
#[test]
fn xdp_takes_what_an_interface_has() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut i) = lab.open("i") else { return };
    lab.ip("i", "link add mv0 link u2 type macvlan");
    assert_eq!(lab.attach("i", &mut i, "i0", Role::Inside, Hook::Xdp), Attached::XdpNative);
    for _ in 0..2 {
        assert_eq!(lab.attach("i", &mut i, "mv0", Role::Inside, Hook::Xdp), Attached::XdpGeneric);
    }
    assert!(lab.ip("i", "link show mv0").contains("xdpgeneric"));
    for (link, role, says) in
        [("none0", Role::Inside, "no interface"), ("punt", Role::Punt, "Ethernet")]
    {
        let refused = inside(&lab.name("i"), || i.attach(link, role, Hook::Xdp)).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // The operator's word changes: tc takes the place.
    for link in ["i0", "mv0"] {
        assert_eq!(lab.attach("i", &mut i, link, Role::Inside, Hook::Tc), Attached::Tc);
        assert!(!lab.ip("i", &format!("link show {link}")).contains("xdp"));
    }
}

/// Destinations that FE_E was not told about are not let out of a tunnel (R_EC).
#[test]
fn what_is_not_allowed_is_dropped_counted_and_told() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    let rlocs = group(0, &[("10.255.0.2", 1)]);
    apply(&mut g.i, &[rlocs, to_group("10.9.0.0/24", 0), to_group("2001:db8:9::/64", 0)]);
    apply(&mut g.e, &[allow("10.9.0.7/32")]);
    lab.pings_soon(NODE4);
    assert_eq!(dropped(&mut g.e, DropReason::NotAllowed), 0);
    assert!(!lab.pings("10.9.0.8", "-c 3 -W 1"));
    assert!(!lab.pings(NODE6, "-c 2 -W 1"));
    assert_eq!(dropped(&mut g.e, DropReason::NotAllowed), 5);
    let late = |to: &str, from: &str| EncapEvent::Late {
        rloc: "10.255.0.1".parse().unwrap(),
        iid: IID,
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
    };
    let told = events(&mut g.e);
    assert!(told.contains(&late("10.9.0.8", SOURCE4)), "{told:?}");
    assert!(told.contains(&late(NODE6, SOURCE6)), "{told:?}");
    // At most one of a pair of addresses in a second, and this took no longer than four.
    assert!(told.len() <= 6, "{told:?}");

    apply(&mut g.e, &[allow("10.9.0.8/32")]);
    lab.pings_soon("10.9.0.8");
    apply(&mut g.e, &[EncapChange::ForbidDecap { prefix: prefix("10.9.0.8/32") }]);
    assert!(!lab.pings("10.9.0.8", "-c 1 -W 1"));
}

/// A UDP datagram to port 7 of the node, in IPv4.
fn inner(tos: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(28 + payload.len()).unwrap();
    let mut packet = vec![0x45, tos, 0, 0, 0, 0, 0, 0, ttl, 17, 0, 0, 10, 8, 0, 2, 10, 9, 0, 7];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let sum: u32 = packet.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12]
        .copy_from_slice(&(!u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()).to_be_bytes());
    packet.extend([0x13, 0x88, 0, 7]);
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]); // no checksum
    packet.extend(payload);
    packet
}

fn lisp(header: [u8; 8], inner: &[u8]) -> Vec<u8> {
    [&header[..], inner].concat()
}

/// RFC 9300 §5.1, RFC 9305 §3 and RFC 6040 §4.2, by packets made by hand: what is taken and how it
/// arrives, what is dropped and why.
#[test]
fn headers_of_other_routers_are_understood_or_refused() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(&mut g.e, &[allow("10.9.0.7/32")]);
    let bind = |node: &str, at: &str| {
        inside(&lab.name(node), || UdpSocket::bind(at.parse::<SocketAddr>().unwrap()).unwrap())
    };
    let receiver = bind("m", "10.9.0.7:7");
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let sender = bind("i", "10.255.0.1:50000");
    let set = |option: libc::c_int, value: u32| {
        let value = libc::c_int::try_from(value).unwrap();
        // SAFETY: the option takes an int, which is live.
        let rc = unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::IPPROTO_IP,
                option,
                (&raw const value).cast(),
                4,
            )
        };
        assert_eq!(rc, 0);
    };
    let to = "10.255.0.2:4341";
    let iid = [0, 0, 77, 0];
    let [i0, i1, i2, i3] = iid;
    let plain = [0x08, 0, 0, 0, i0, i1, i2, i3];

    // Taken; each says its own name, so that none is mistaken for another.
    let taken: [(&str, [u8; 8]); 7] = [
        ("plain", plain),
        ("nonce", [0x88, 1, 2, 3, i0, i1, i2, i3]),
        ("status bits", [0x48, 0, 0, 0, i0, i1, i2, 3]),
        ("nonce and status bits", [0xc8, 1, 2, 3, i0, i1, i2, 3]),
        ("map version", [0x18, 0, 0x10, 1, i0, i1, i2, i3]),
        ("generic", [0x0c, 0, 0, 1, i0, i1, i2, i3]),
        ("generic with nonce", [0x8c, 1, 2, 1, i0, i1, i2, i3]),
    ];
    let mut buffer = [0; 200];
    for (name, header) in taken {
        sender.send_to(&lisp(header, &inner(0, 64, name.as_bytes())), to).unwrap();
        let len = receiver.recv(&mut buffer).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(&buffer[..len], name.as_bytes());
    }
    assert_eq!(g.e.totals().unwrap().decapsulated.packets, 7);

    let mut long = inner(0, 64, b"x");
    long[3] += 1;
    let mut version = inner(0, 64, b"x");
    version[0] = 0x55;
    for (name, why, packet) in [
        ("no instance", DropReason::Instance, lisp([0; 8], &inner(0, 64, b"x"))),
        ("another", DropReason::Instance, lisp([8, 0, 0, 0, 0, 0, 78, 0], &inner(0, 64, b"x"))),
        (
            "encrypted",
            DropReason::Malformed,
            lisp([9, 0, 0, 0, i0, i1, i2, i3], &inner(0, 64, b"x")),
        ),
        (
            "N and V",
            DropReason::Malformed,
            lisp([0x98, 0, 0, 0, i0, i1, i2, i3], &inner(0, 64, b"x")),
        ),
        (
            "Ethernet",
            DropReason::Malformed,
            lisp([0xc, 0, 0, 3, i0, i1, i2, i3], &inner(0, 64, b"x")),
        ),
        (
            "not IPv6",
            DropReason::Malformed,
            lisp([0xc, 0, 0, 2, i0, i1, i2, i3], &inner(0, 64, b"x")),
        ),
        ("version 5", DropReason::Malformed, lisp(plain, &version)),
        ("too long", DropReason::Malformed, lisp(plain, &long)),
        ("cut", DropReason::Malformed, lisp(plain, &inner(0, 64, b"x")[..19])),
        ("empty", DropReason::Malformed, plain.to_vec()),
        ("no life", DropReason::TimeToLive, lisp(plain, &inner(0, 0, b"x"))),
    ] {
        let before = g.e.totals().unwrap();
        sender.send_to(&packet, to).unwrap();
        let begin = Clock::now();
        let at = DropReason::ALL.iter().position(|&r| r == why).unwrap();
        loop {
            let after = g.e.totals().unwrap();
            if after.dropped[at] == before.dropped[at] + 1 {
                assert_eq!(after.decapsulated, before.decapsulated, "{name}");
                break;
            }
            assert!(begin.elapsed() < LIMIT, "{name} is not counted as {why:?}: {after:?}");
            std::thread::yield_now();
        }
    }

    // Outer class, inner class, what arrives; then the same of the time to live.
    let ttl = 64;
    for (outer, class, arrives) in [
        (0xb8, 0x00, Some(0xb8)), // DSCP is that of the tunnel
        (0x03, 0x02, Some(0x03)),
        (0x03, 0x01, Some(0x03)),
        (0x03, 0x00, None),
        (0x01, 0x02, Some(0x01)),
        (0x02, 0x01, Some(0x01)),
        (0x00, 0x03, Some(0x03)),
    ] {
        let Some(capture) = Capture::start(&lab, "m", "x", "udp port 7") else { return };
        set(libc::IP_TOS, outer);
        sender.send_to(&lisp(plain, &inner(class, ttl, b"class")), to).unwrap();
        // What comes after it, so that there is something to wait for.
        set(libc::IP_TOS, 0);
        set(libc::IP_TTL, 9);
        sender.send_to(&lisp(plain, &inner(0, ttl, b"end")), to).unwrap();
        set(libc::IP_TTL, 64);
        loop {
            let len = receiver.recv(&mut buffer).unwrap();
            if &buffer[..len] == b"end" {
                break;
            }
        }
        let mut expected: Vec<[String; 4]> = Vec::new();
        if let Some(class) = arrives {
            expected.push([format!("0x{class:02x}"), "63".into(), "1".into(), "13".into()]);
        }
        // RFC 9300 §5.3: not more life than the outer header has left (9, and one router).
        expected.push(["0x00".into(), "8".into(), "1".into(), "11".into()]);
        let fields = ["ip.dsfield", "ip.ttl", "ip.checksum.status", "udp.length"];
        let arrived = capture.fields(expected.len(), &fields);
        assert_eq!(arrived, expected, "outer {outer:#x}, inner {class:#x}");
    }
}

/// A node moves from e to f: one write at FE_I, and what is late at e goes on to f.
#[test]
fn a_node_moves_and_late_packets_follow() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    let node = "10.9.0.7/32";
    apply(
        &mut g.i,
        &[
            group(0, &[("10.255.0.2", 1)]),
            group(1, &[("10.255.0.3", 1)]),
            to_group(node, 0),
            to_group("2001:db8:9::7/128", 0),
        ],
    );
    let pools = [allow("10.9.0.0/24"), allow("2001:db8:9::/64")];
    apply(&mut g.e, &pools);
    apply(&mut g.f, &pools);
    lab.pings_soon(NODE4);
    lab.pings_soon(NODE6);
    let count = count_of(&mut g.i, node);
    assert!(events(&mut g.i).contains(&EncapEvent::FirstPacket { prefix: prefix(node) }));

    // It has left e, FE_I does not know yet; both families, and the other family outside.
    for (rloc, nodes) in [("10.255.0.3", [NODE4, NODE6]), ("2001:db8:ff::3", [NODE4, NODE6])] {
        apply(
            &mut g.e,
            &[group(5, &[(rloc, 1)]), to_group(node, 5), to_group("2001:db8:9::7/128", 5)],
        );
        for node in nodes {
            lab.pings_soon(node);
            let before = (g.e.totals().unwrap(), g.f.totals().unwrap());
            assert!(lab.pings(node, "-c 5 -W 2"), "{node} by e to {rloc}");
            let after = (g.e.totals().unwrap(), g.f.totals().unwrap());
            assert_eq!(after.0.late.packets - before.0.late.packets, 5);
            assert_eq!(after.0.decapsulated, before.0.decapsulated);
            assert_eq!(after.1.decapsulated.packets - before.1.decapsulated.packets, 5);
        }
    }
    let late = EncapEvent::Late {
        rloc: "10.255.0.1".parse().unwrap(),
        iid: IID,
        source: SOURCE4.parse().unwrap(),
        destination: NODE4.parse().unwrap(),
    };
    assert!(events(&mut g.e).contains(&late));

    // FE_I learns it.
    events(&mut g.i);
    apply(&mut g.i, &[to_group(node, 1)]);
    let (e, f) = (g.e.totals().unwrap(), g.f.totals().unwrap());
    lab.pings_soon(NODE4);
    assert!(lab.pings(NODE4, "-c 5 -W 2"));
    assert_eq!(g.e.totals().unwrap().late, e.late);
    assert!(g.f.totals().unwrap().decapsulated.packets >= f.decapsulated.packets + 6);
    assert!(count_of(&mut g.i, node).packets >= count.packets + 16, "the count goes on");
    let told = events(&mut g.i);
    assert_eq!(
        told.iter().filter(|e| **e == EncapEvent::FirstPacket { prefix: prefix(node) }).count(),
        1
    );
}

/// One write for a group, whoever is in it; weights share the flows; no locator, no packet.
#[test]
fn a_group_fails_over_and_shares() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(
        &mut g.i,
        &[group(3, &[("10.255.0.2", 1)]), to_group("10.9.0.7/32", 3), to_group("10.9.0.0/24", 3)],
    );
    for ebpf in [&mut g.e, &mut g.f] {
        apply(ebpf, &[allow("10.9.0.0/24")]);
    }
    let nodes = [NODE4, "10.9.0.8"];
    nodes.iter().for_each(|node| lab.pings_soon(node));
    assert_eq!(g.f.totals().unwrap().decapsulated.packets, 0);

    apply(&mut g.i, &[group(3, &[("2001:db8:ff::3", 1)])]);
    nodes.iter().for_each(|node| lab.pings_soon(node));
    let (e, f) = (g.e.totals().unwrap().decapsulated, g.f.totals().unwrap().decapsulated);
    nodes.iter().for_each(|node| assert!(lab.pings(node, "-c 3 -W 2")));
    assert_eq!(g.e.totals().unwrap().decapsulated, e);
    assert_eq!(g.f.totals().unwrap().decapsulated.packets, f.packets + 6);

    // Three to one over many flows.
    apply(&mut g.i, &[group(3, &[("10.255.0.2", 30), ("10.255.0.3", 10)])]);
    let (e, f) = (g.e.totals().unwrap().decapsulated, g.f.totals().unwrap().decapsulated);
    inside(&lab.name("s"), || {
        for _ in 0..400 {
            let flow = UdpSocket::bind("10.8.0.2:0").unwrap();
            flow.send_to(b"x", "10.9.0.7:9").unwrap();
        }
    });
    let share = |ebpf: &mut Ebpf, before: EntryCount| {
        ebpf.totals().unwrap().decapsulated.packets - before.packets
    };
    let begin = Clock::now();
    loop {
        let (at_e, at_f) = (share(&mut g.e, e), share(&mut g.f, f));
        if at_e + at_f == 400 {
            assert!((50..=150).contains(&at_f), "{at_e} : {at_f}");
            break;
        }
        assert!(begin.elapsed() < LIMIT, "{at_e} + {at_f} of 400");
        std::thread::yield_now();
    }

    let path = GroupPath::Unreachable;
    apply(&mut g.i, &[EncapChange::SetGroup { group: GroupId(3), path }]);
    assert!(!lab.pings(NODE4, "-c 3 -W 1"));
    assert_eq!(dropped(&mut g.i, DropReason::Unreachable), 3);
    apply(&mut g.i, &[entry("10.9.0.7/32", EntryAction::Drop)]);
    assert!(!lab.pings(NODE4, "-c 3 -W 1"));
    assert_eq!(dropped(&mut g.i, DropReason::Policy), 3);
}

#[test]
fn counters_know_each_prefix_and_whether_it_is_used() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    let nodes = ["10.9.0.7/32", "2001:db8:9::7/128"];
    apply(&mut g.e, &[allow("10.9.0.0/24"), allow("2001:db8:9::/64")]);
    apply(&mut g.i, &[group(0, &[("10.255.0.2", 1)])]);
    for text in ["10.9.0.0/16", "2001:db8:9::/48", "10.9.1.1/32", "10.9.1.2/32", nodes[0], nodes[1]]
    {
        apply(&mut g.i, &[to_group(text, 0)]);
    }
    let sweep = |ebpf: &mut Ebpf| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            after = ebpf.used(after, 2, &mut found).unwrap();
            if after.is_none() {
                break;
            }
        }
        found.sort();
        found
    };
    assert_eq!(sweep(&mut g.i), []);
    lab.pings_soon(NODE4);
    lab.pings_soon(NODE6);
    let used: Vec<Prefix> = nodes.iter().map(|text| prefix(text)).collect();
    assert_eq!(sweep(&mut g.i), used);
    assert_eq!(sweep(&mut g.i), []);
    let before = count_of(&mut g.i, nodes[0]);
    assert!(lab.pings(NODE4, "-c 5 -W 2 -s 100"));
    let after = count_of(&mut g.i, nodes[0]);
    assert_eq!(after.packets - before.packets, 5);
    assert_eq!(after.octets - before.octets, 5 * 128);
    assert_eq!(sweep(&mut g.i), [prefix(nodes[0])]);
    assert_eq!(count_of(&mut g.i, "10.9.1.1/32"), EntryCount::default());
    assert_eq!(count_of(&mut g.i, "10.9.0.0/16"), EntryCount::default());
}

fn too_big(lab: &Lab) {
    let s = lab.name("s");
    lab.pings_soon(NODE4);
    let (_, said) = ping(&s, NODE4, "-c 1 -W 1 -M do -s 1450");
    assert!(said.contains("From 10.8.0.1") && said.contains("mtu = 1444"), "{said}");
    lab.pings_soon(NODE6);
    let (_, said) = ping(&s, NODE6, "-c 1 -W 1 -M do -s 1430");
    assert!(said.contains("Packet too big: mtu=1444"), "{said}");
}

/// RFC 9300 §7.1: the source is told what fits; IPv4 packets that allow it are made smaller; the
/// limit itself fits. And when its life ends here, the source is told too.
#[test]
fn sources_are_told_what_is_too_big_or_too_old() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(&mut g.e, &[allow("10.9.0.0/24"), allow("2001:db8:9::/64")]);
    apply(
        &mut g.i,
        &[
            group(0, &[("2001:db8:ff::2", 1)]),
            to_group("10.9.0.7/32", 0),
            to_group("2001:db8:9::7/128", 0),
        ],
    );
    too_big(&lab);
    assert_eq!(dropped(&mut g.i, DropReason::TooBig), 2);
    let s = lab.name("s");
    assert!(ping(&s, NODE4, "-c 2 -W 2 -M do -s 1416").0, "1444 octets fit");
    lab.ip("s", "route flush cache");

    let (all, said) = ping(&s, NODE4, "-c 3 -W 2 -M dont -s 1472");
    assert!(all, "fragments: {said}");
    assert_eq!(dropped(&mut g.i, DropReason::Underlay), 0);

    let (_, said) = ping(&s, NODE4, "-c 1 -W 1 -t 1");
    assert!(said.contains("From 10.8.0.1") && said.contains("Time to live exceeded"), "{said}");
    let (_, said) = ping(&s, NODE6, "-c 1 -W 1 -t 1");
    assert!(said.contains("Hop limit"), "{said}");
}

/// What a sender leaves to its interface (segments, checksums) is done behind the tunnel.
#[test]
fn a_stream_arrives_whole() {
    const LEN: usize = 4 << 20;
    let Some(lab) = Lab::new() else { return };
    for hook in [Hook::Tc, Hook::Xdp] {
        if hook == Hook::Xdp {
            // XDP forwards the frame as it is: a checksum that was left to the interface stays so.
            let off = format!("ip netns exec {} ethtool -K s0 tx off 2>&1", lab.name("s"));
            let done = Command::new("sh").args(["-c", &off]).output().unwrap();
            if !done.status.success() {
                return skip("ethtool is missing: no stream through XDP");
            }
        }
        let Some(mut g) = lab.gateways(hook) else { return };
        apply(&mut g.e, &[allow("10.9.0.0/24"), allow("2001:db8:9::/64")]);
        for rloc in ["10.255.0.2", "2001:db8:ff::2"] {
            for node in [NODE4, NODE6] {
                apply(
                    &mut g.i,
                    &[group(0, &[(rloc, 1)]), to_group(&Prefix::host(ip(node)).to_string(), 0)],
                );
                lab.pings_soon(node);
                let listener = inside(&lab.name("m"), || TcpListener::bind((ip(node), 0)).unwrap());
                let to = listener.local_addr().unwrap();
                let sender = lab.name("s");
                let sent: Vec<u8> = (0..LEN).map(|at| ((at * 31) >> 7) as u8).collect();
                let whole = sent.clone();
                let thread = std::thread::spawn(move || {
                    let mut stream = inside(&sender, || TcpStream::connect(to).unwrap());
                    stream.write_all(&whole).unwrap();
                });
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                thread.join().unwrap();
                assert!(received == sent, "{hook:?}, {node} through {rloc}");
            }
        }
        assert!(g.i.totals().unwrap().encapsulated.octets > 4 * LEN as u64);
        inside(&lab.name("i"), || g.i.remove()).unwrap();
        inside(&lab.name("e"), || g.e.remove()).unwrap();
        inside(&lab.name("f"), || g.f.remove()).unwrap();
    }
}

/// A neighbour of the underlay that has to be asked for first: the packet waits in the kernel.
#[test]
fn an_unresolved_neighbour_costs_no_packet() {
    let Some(lab) = Lab::new() else { return };
    for hook in [Hook::Tc, Hook::Xdp] {
        let Some(mut g) = lab.gateways(hook) else { return };
        apply(&mut g.e, &[allow("10.9.0.0/24")]);
        for rloc in ["10.255.0.2", "2001:db8:ff::2"] {
            apply(&mut g.i, &[group(0, &[(rloc, 1)]), to_group("10.9.0.7/32", 0)]);
            lab.pings_soon(NODE4);
            lab.ip("i", "neigh flush dev u1");
            g.i.underlay_changed().unwrap();
            let known = lab.ip("i", "neigh show dev u1");
            assert!(!known.contains("lladdr"), "{known}");
            assert!(lab.pings(NODE4, "-c 1 -W 3"), "{hook:?}, {rloc}: the first packet was lost");
        }
        for (node, ebpf) in [("i", g.i), ("e", g.e), ("f", g.f)] {
            inside(&lab.name(node), || ebpf.remove()).unwrap();
        }
    }
}

/// No entry yet: the packet goes to the punt device, and the control plane hears of it. What this
/// node sends itself goes that way too, and into the tunnel.
#[test]
fn punted_packets_and_own_ones_take_the_punt_device() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways(Hook::Tc) else { return };
    apply(&mut g.e, &[allow("10.9.0.0/24")]);
    apply(&mut g.i, &[entry("10.9.0.0/16", EntryAction::Punt)]);
    assert!(!lab.pings(NODE4, "-c 1 -W 1"));
    assert_eq!(
        events(&mut g.i),
        [
            EncapEvent::FirstPacket { prefix: prefix("10.9.0.0/16") },
            EncapEvent::Miss { source: ip(SOURCE4), destination: ip(NODE4) },
        ]
        .into_iter()
        .rev()
        .collect::<Vec<_>>()
    );
    let mut punt = File::from(lab.punt.try_clone().unwrap());
    let mut packet = [0; 2000];
    loop {
        // The device also says what it is to its neighbours, in IPv6.
        let len = punt.read(&mut packet).unwrap();
        if packet[0] == 0x45 {
            assert_eq!((len, &packet[16..20]), (84, &[10, 9, 0, 7][..]));
            break;
        }
    }
    apply(&mut g.i, &[group(0, &[("10.255.0.2", 1)]), to_group("10.9.0.7/32", 0)]);
    lab.pings_soon(NODE4);
    let i = lab.name("i");
    let own = ping(&i, NODE4, "-c 3 -W 2 -I 10.8.0.1");
    assert!(own.0, "{}", own.1);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The process ends, packets are forwarded; the next one takes over without a gap.
#[test]
fn forwarding_survives_the_process() {
    for clsact in [false, true] {
        let Some(lab) = Lab::new() else { return };
        let open = |node: &str| Ebpf::open(Options { clsact, ..lab.options(node) });
        let Ok(mut i) = open("i") else { return skip("BPF is not possible here") };
        let mut e = open("e").unwrap();
        lab.attach("i", &mut i, "i0", Role::Inside, Hook::Tc);
        lab.attach("e", &mut e, "u1", Role::Underlay, Hook::Tc);
        apply(&mut e, &[allow("10.9.0.0/24"), allow("2001:db8:9::7/128")]);
        let wanted = [
            group(0, &[("10.255.0.2", 7)]),
            group(4, &[("10.255.0.2", 1), ("2001:db8:ff::3", 2)]),
            to_group("10.9.0.7/32", 0),
            entry("10.9.0.0/16", EntryAction::Punt),
            entry("2001:db8:9::/48", EntryAction::Native),
        ];
        apply(&mut i, &wanted);
        lab.pings_soon(NODE4);
        drop(i);
        drop(e);
        assert!(lab.pings(NODE4, "-c 10 -W 2"), "without a process");

        // While packets flow, the next processes come and go.
        let s = lab.name("s");
        let pinger = std::thread::spawn(move || ping(&s, NODE4, "-c 1000 -i 0.002 -W 2"));
        for round in 0..5 {
            let mut i = open("i").unwrap();
            let mut e = open("e").unwrap();
            lab.attach("i", &mut i, "i0", Role::Inside, Hook::Tc);
            lab.attach("e", &mut e, "u1", Role::Underlay, Hook::Tc);
            assert_eq!(i.attached().unwrap(), [("i0".to_owned(), Role::Inside)]);
            let mut there = Vec::new();
            i.begin_dump().unwrap();
            while i.continue_dump(&mut there).unwrap() {}
            assert_eq!(there, wanted, "round {round}");
            let mut there = Vec::new();
            e.begin_dump().unwrap();
            while e.continue_dump(&mut there).unwrap() {}
            assert_eq!(there, [allow("10.9.0.0/24"), allow("2001:db8:9::7/128")]);
            // A path may be written over and over without disturbing those that read it.
            for _ in 0..100 {
                apply(&mut i, &wanted[..1]);
            }
        }
        let (all, said) = pinger.join().unwrap();
        assert!(all, "{said}");

        let mut i = open("i").unwrap();
        lab.attach("i", &mut i, "i0", Role::Inside, Hook::Tc);
        assert!(count_of(&mut i, "10.9.0.7/32").packets > 1000);
        inside(&lab.name("i"), || i.detach("i0", Role::Inside)).unwrap();
        assert_eq!(i.attached().unwrap(), []);
        let before = i.totals().unwrap().encapsulated;
        assert!(!lab.pings(NODE4, "-c 1 -W 1"));
        assert_eq!(i.totals().unwrap().encapsulated, before);
        lab.attach("i", &mut i, "i0", Role::Inside, Hook::Tc);
        assert!(lab.pings(NODE4, "-c 3 -W 2"));
        // Of other sizes: the maps are made anew, the interfaces are taken over.
        drop(i);
        let mut options = Options { clsact, ..lab.options("i") };
        options.sizes.hosts = 2;
        let mut i = Ebpf::open(options).unwrap();
        lab.attach("i", &mut i, "i0", Role::Inside, Hook::Tc);
        apply(&mut i, &wanted);
        lab.pings_soon(NODE4);
        let mut results = Vec::new();
        i.apply(&[to_group("10.9.0.8/32", 0), to_group("10.9.0.9/32", 0)], &mut results);
        assert_eq!(results, [Ok(()), Err(EncapError::Full)], "a table of two");
        assert_eq!(results.len(), 2);
        results.clear();
        i.apply(&[to_group("10.9.0.7/32", 9), group(16, &[("10.255.0.2", 1)])], &mut results);
        assert_eq!(results, [Err(EncapError::NoGroup), Err(EncapError::Full)]);
        inside(&lab.name("i"), || i.remove()).unwrap();
        assert!(!lab.pings(NODE4, "-c 1 -W 1"));
    }
}

/// The object that is embedded is what clang makes of the source that is beside it.
#[test]
fn the_committed_objects_are_those_of_the_sources() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = std::env::temp_dir().join(format!("killick-bpf-{}", std::process::id()));
    for tool in ["clang-14", "llvm-strip-14", "make"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(&format!("{tool} is missing, the eBPF objects are not compared"));
        }
    }
    let made = Command::new("make")
        .current_dir(root)
        .args(["-s", "bpf", &format!("BPF_OUT={}", out.display())])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for object in [
        "src/dataplane/ebpf/killick.bpf.o",
        "src/dataplane/rewrite/rewrite.bpf.o",
        "benches/dataplane/inject.bpf.o",
    ] {
        let committed = sections(&std::fs::read(root.join(object)).unwrap());
        let built = sections(&std::fs::read(out.join(object)).unwrap());
        assert!(committed.iter().any(|(name, _)| name == ".maps"), "{object}");
        assert!(
            committed == built,
            "{object} is not what its source gives: run `make bpf` and commit it"
        );
    }
    std::fs::remove_dir_all(&out).unwrap();
}

/// Programs, maps and licence. Not the types: those of the kernel's headers differ with their version.
fn sections(elf: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize, len: usize| {
        let mut octets = [0; 8];
        octets[..len].copy_from_slice(&elf[at..at + len]);
        usize::try_from(u64::from_le_bytes(octets)).unwrap()
    };
    let (table, count, names) = (number(40, 8), number(60, 2), number(62, 2));
    let header = |index: usize| table + 64 * index;
    let names = number(header(names) + 24, 8);
    let mut found = Vec::new();
    for index in 0..count {
        let name = names + number(header(index), 4);
        let name = elf[name..].split(|&octet| octet == 0).next().unwrap();
        let name = String::from_utf8(name.to_vec()).unwrap();
        let (kind, at, len) = (
            number(header(index) + 4, 4),
            number(header(index) + 24, 8),
            number(header(index) + 32, 8),
        );
        let wanted = ["classifier/", "xdp", ".text", ".maps", "license"];
        if kind == 1 && wanted.iter().any(|w| name.starts_with(w)) {
            found.push((name, elf[at..at + len].to_vec()));
        }
    }
    found
}
