//! Rewriting with real packets: a source, FE_I, a router that knows no mobile prefix, two FE_E and a
//! node between namespaces.
//!
//! ```text
//!  [s] s0 -- i0 [i] u0 -- c0 [c] c1 -- u1 [e] m0 -- x [m]     FE_I at i, FE_E at e and f
//!                              c  c2 -- u1 [f] m0 -- y [m]     the locators of e are 10.77.2.0/24
//!                                                              and 2001:db8:77:2::/64, of f .3
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::dataplane::ebpf::OpenError;
use killick::dataplane::encap::{DropReason, EncapError, Encapsulator, Totals};
use killick::dataplane::rewrite::{Options, Rewrite, Role, Sizes};
use killick::gateway::Locators;
use killick::types::lisp::{EncapChange, EncapEvent, EntryAction, GroupId, GroupPath};
use killick::types::{Instant, Prefix};

const NODES: [&str; 6] = ["s", "i", "c", "e", "f", "m"];
const EIDS: [&str; 2] = ["10.9.0.7", "2001:db8:9::7"];
const SOURCES: [&str; 2] = ["10.8.0.2", "2001:db8:8::2"];
const LIMIT: Duration = Duration::from_secs(10);

struct Lab {
    number: u32,
    folder: PathBuf,
    /// Held, so that the device stays.
    _punt: File,
}

/// Past the capture of the test harness.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_rewrite: {why}");
}

fn sh(script: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{script}\n{}{}", text(&output.stdout), text(&output.stderr))),
    }
}

fn name_of(number: u32, node: &str) -> String {
    format!("kr-{node}-{}-{number}", std::process::id())
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
            let file = File::open(format!("/run/netns/{namespace}")).unwrap();
            // SAFETY: a descriptor of a namespace; affects only this thread.
            let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
            make()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn open_tun(name: &str) -> File {
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
    file
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
            std::env::temp_dir().join(format!("killick-rewrite-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let end = |node: &str| name_of(number, node);
        let mut script = String::new();
        for node in NODES {
            let name = end(node);
            script += &format!(
                "ip netns add {name}; ip -n {name} link set lo up
                 ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                     net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                     net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 \
                     net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0
                 "
            );
        }
        // The second end of a link has the address 2; the source has it on its own.
        for ((a, da), (b, db), net) in [
            (("i", "i0"), ("s", "s0"), 8),
            (("i", "u0"), ("c", "c0"), 101),
            (("c", "c1"), ("e", "u1"), 102),
            (("c", "c2"), ("f", "u1"), 103),
            (("e", "m0"), ("m", "x"), 104),
            (("f", "m0"), ("m", "y"), 105),
        ] {
            let (na, nb) = (end(a), end(b));
            script += &format!("ip link add {da} netns {na} type veth peer name {db} netns {nb}\n");
            for (name, device, at) in [(na, da, 1), (nb, db, 2)] {
                script += &format!(
                    "ip -n {name} addr add 10.{net}.0.{at}/24 dev {device}
                     ip -n {name} addr add 2001:db8:{net}::{at}/64 dev {device} nodad
                     ip -n {name} link set {device} up
                     "
                );
            }
        }
        for (node, to4, to6, net, at) in [
            ("s", "default", "default", 8, 1),
            ("i", "default", "default", 101, 2),
            ("c", "10.8.0.0/24", "2001:db8:8::/64", 101, 1),
            ("c", "10.77.2.0/24", "2001:db8:77:2::/64", 102, 2),
            ("c", "10.77.3.0/24", "2001:db8:77:3::/64", 103, 2),
            ("e", "default", "default", 102, 1),
            ("f", "default", "default", 103, 1),
            ("e", "10.9.0.0/24", "2001:db8:9::/64", 104, 2),
            ("f", "10.9.0.0/24", "2001:db8:9::/64", 105, 2),
            ("m", "default", "default", 104, 1),
        ] {
            script += &format!(
                "ip -n {0} route add {to4} via 10.{net}.0.{at}
                 ip -n {0} route add {to6} via 2001:db8:{net}::{at}
                 ",
                end(node)
            );
        }
        let (i, m) = (end("i"), end("m"));
        script += &format!(
            "for a in 7 8; do
                 ip -n {m} addr add 10.9.0.$a/32 dev lo; ip -n {m} addr add 2001:db8:9::$a/128 dev lo nodad
             done
             ip -n {i} tuntap add punt mode tun; ip -n {i} link set punt up
             ip -n {i} route add 10.9.0.0/16 dev punt; ip -n {i} route add 2001:db8:9::/48 dev punt
             "
        );
        if let Err(why) = sh(&script) {
            remove(number);
            skip(&format!("this machine refuses the namespaces: {why}"));
            return None;
        }
        let punt = inside(&end("i"), || open_tun("punt"));
        Some(Self { number, folder, _punt: punt })
    }

    fn name(&self, node: &str) -> String {
        name_of(self.number, node)
    }

    fn options(&self, node: &str) -> Options {
        let pools: &[&str] = match node {
            "e" => &["10.77.2.0/24", "2001:db8:77:2::/64"],
            "f" => &["10.77.3.0/24", "2001:db8:77:3::/64"],
            _ => &[],
        };
        Options {
            pin: self.folder.join(format!("bpf-{node}")),
            pools: pools.iter().map(|pool| prefix(pool)).collect(),
            sizes: Sizes { hosts: 1024, networks: 64 },
            clsact: false,
        }
    }

    /// Opens it, or takes over what is there, and attaches it.
    fn start(&self, node: &str, options: Options) -> Option<Rewrite> {
        let mut plane = match Rewrite::open(options) {
            Ok(plane) => plane,
            Err(error @ (OpenError::NotPermitted | OpenError::Pin { .. })) => {
                skip(&error.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let links: &[(&str, Role)] = match node {
            "i" => &[("i0", Role::Outside), ("u0", Role::Outside), ("punt", Role::Punt)],
            _ => &[("u1", Role::Outside), ("m0", Role::Outside)],
        };
        inside(&self.name(node), || {
            links.iter().for_each(|&(link, role)| plane.attach(link, role).unwrap());
        });
        Some(plane)
    }

    fn gateways(&self) -> Option<Gateways> {
        let start = |node| self.start(node, self.options(node));
        Some(Gateways { i: start("i")?, e: start("e")?, f: start("f")? })
    }

    fn ip(&self, node: &str, command: &str) -> String {
        sh(&format!("ip -n {} {command}", self.name(node))).unwrap()
    }

    /// Checksums are calculated by the ends, and not only promised between devices.
    fn without_offload(&self) {
        for (node, link) in [("s", "s0"), ("m", "x"), ("m", "y")] {
            let name = self.name(node);
            sh(&format!(
                "ip netns exec {name} ethtool -K {link} tx off tso off gso off >/dev/null"
            ))
            .unwrap();
        }
    }

    /// Whether all were answered, and what it said.
    fn ping(&self, from: &str, to: &str, more: &str) -> (bool, String) {
        let command =
            format!("ip netns exec {} ping -n -i 0.05 {more} {to} 2>&1 || true", self.name(from));
        let text = sh(&command).unwrap();
        (text.contains(" 0% packet loss"), text)
    }

    /// Until it does; the first packets may wait for neighbours.
    fn pings_soon(&self, to: &str) {
        let begin = Clock::now();
        loop {
            let (answered, said) = self.ping("s", to, "-c 1 -W 1");
            if answered {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "{said}");
        }
    }
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

struct Gateways {
    i: Rewrite,
    e: Rewrite,
    f: Rewrite,
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The locator of a host at an anchor, as that chooses it.
fn locator(options: &Options, eid: &str) -> IpAddr {
    let mut locators = Locators::new(options.pools.clone(), &[], Instant::ZERO);
    locators.take(Prefix::host(addr(eid)), &mut Vec::new()).unwrap()
}

fn entry(key: IpAddr, to: IpAddr) -> EncapChange {
    EncapChange::SetEntry { prefix: Prefix::host(key), action: EntryAction::Rewrite(to) }
}

fn apply(plane: &mut Rewrite, changes: &[EncapChange]) {
    let mut results = Vec::new();
    plane.apply(changes, &mut results);
    for (change, result) in changes.iter().zip(results) {
        assert_eq!(result, Ok(()), "{change:?}");
    }
}

fn dropped(plane: &mut Rewrite, why: DropReason) -> u64 {
    plane.totals().unwrap().dropped[why as usize]
}

fn detail(plane: &Rewrite, name: &str) -> u64 {
    plane.details().unwrap().into_iter().find(|(n, _)| *n == name).unwrap().1
}

/// The host is at this anchor: FE_E first, then FE_I. What it is reached by.
fn host_at(lab: &Lab, node: &str, at: &mut Rewrite, i: &mut Rewrite, eid: &str) -> IpAddr {
    let locator = locator(&lab.options(node), eid);
    apply(at, &[entry(locator, addr(eid))]);
    apply(i, &[entry(addr(eid), locator)]);
    locator
}

/// Octets that are all different from their neighbours and from those a segment further.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

/// A connection from the source to the node that carries this both ways.
fn transfer(lab: &Lab, eid: &str, sent: &[u8]) {
    let at = SocketAddr::new(addr(eid), 5001);
    let listener = inside(&lab.name("m"), || TcpListener::bind(at).unwrap());
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut got = vec![0; sent.len()];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
            got
        });
        let mut stream = inside(&lab.name("s"), || TcpStream::connect_timeout(&at, LIMIT).unwrap());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.write_all(sent).unwrap();
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(server.join().unwrap() == sent && back == sent, "{eid}: other octets");
    });
}

fn datagrams(lab: &Lab, eid: &str, checksum: bool) {
    let at = SocketAddr::new(addr(eid), 5002);
    let from = SocketAddr::new(addr(SOURCES[usize::from(at.is_ipv6())]), 0);
    let receiver = inside(&lab.name("m"), || UdpSocket::bind(at).unwrap());
    let sender = inside(&lab.name("s"), || UdpSocket::bind(from).unwrap());
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    if !checksum {
        let on: libc::c_int = 1;
        // SAFETY: the option takes an int, which is live.
        let rc = unsafe {
            let at = (&raw const on).cast();
            libc::setsockopt(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, at, 4)
        };
        assert_eq!(rc, 0);
    }
    let mut buffer = vec![0; 10_000];
    // The larger ones are fragments.
    for len in [0, 1, 7, 100, 1400, 3000, 9000] {
        let sent = pattern(len);
        sender.send_to(&sent, at).unwrap();
        let got = receiver.recv(&mut buffer).unwrap_or_else(|e| panic!("{len} octets: {e}"));
        assert!(buffer[..got] == sent, "{eid}: {len} octets");
    }
}

/// TCP, UDP with and without a checksum, fragments, echoes: all arrive as they were sent, with
/// checksums that the ends have made and check, and with those that devices leave to each other.
#[test]
fn all_transports_arrive_as_they_were_sent() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways() else { return };
    for eid in EIDS {
        host_at(&lab, "e", &mut g.e, &mut g.i, eid);
        lab.pings_soon(eid);
    }
    let sent = pattern(4_000_000);
    for offload in [true, false] {
        if !offload {
            lab.without_offload();
        }
        for eid in EIDS {
            transfer(&lab, eid, &sent);
            datagrams(&lab, eid, true);
            let (answered, said) = lab.ping("s", eid, "-c 5 -W 2 -s 4000");
            assert!(answered, "{said}");
        }
        datagrams(&lab, EIDS[0], false);
    }
    assert_eq!(g.f.totals().unwrap(), Totals::default());
    let (i, e) = (g.i.totals().unwrap(), g.e.totals().unwrap());
    assert!(i.encapsulated.packets > 3_000 && i.encapsulated == e.decapsulated, "{i:?} {e:?}");
    assert_eq!((i.dropped.iter().sum::<u64>(), e.dropped.iter().sum::<u64>()), (0, 0));
}

/// RFC 1071, over all of it.
fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A raw socket of the source for what is said of its packets.
struct Errors {
    socket: socket2::Socket,
    v6: bool,
}

/// One ICMP error: who said it, its type and code, its MTU, and the destination it is about.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    by: IpAddr,
    kind: (u8, u8),
    mtu: u16,
    about: IpAddr,
}

impl Errors {
    fn open(lab: &Lab, v6: bool) -> Self {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = inside(&lab.name("s"), || {
            let (domain, protocol) = match v6 {
                false => (Domain::IPV4, Protocol::ICMPV4),
                true => (Domain::IPV6, Protocol::ICMPV6),
            };
            Socket::new(domain, Type::RAW, Some(protocol)).unwrap()
        });
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { socket, v6 }
    }

    /// The next one, with all of its checksums right. Of IPv6 the kernel has looked at that already.
    fn next(&mut self) -> Said {
        loop {
            let mut buffer = [0; 2000];
            let len = (&self.socket).read(&mut buffer).unwrap();
            let packet = &buffer[..len];
            // Only IPv4 comes with its header. There is no destination of IPv6 in errors but quoted.
            if self.v6 {
                if packet[0] >= 128 {
                    continue;
                }
                let quoted: [u8; 40] = packet[8..48].try_into().unwrap();
                let about: [u8; 16] = quoted[24..].try_into().unwrap();
                let mtu = u16::from_be_bytes([packet[6], packet[7]]);
                return Said {
                    by: IpAddr::from([0_u16; 8]),
                    kind: (packet[0], packet[1]),
                    mtu,
                    about: about.into(),
                };
            }
            let icmp = &packet[20..];
            if matches!(icmp[0], 0 | 8) {
                continue;
            }
            assert_eq!(sum(&packet[..20]), 0xffff, "outer header");
            assert_eq!(sum(icmp), 0xffff, "ICMP: {icmp:02x?}");
            assert_eq!(sum(&icmp[8..28]), 0xffff, "quoted header");
            let about: [u8; 4] = icmp[24..28].try_into().unwrap();
            let by: [u8; 4] = packet[12..16].try_into().unwrap();
            let mtu = u16::from_be_bytes([icmp[6], icmp[7]]);
            let kind = (icmp[0], icmp[1]);
            return Said { by: by.into(), kind, mtu, about: about.into() };
        }
    }
}

/// What routers say about a packet that was rewritten is about the EID when its source hears it,
/// whoever says it: FE_I, the router behind it, FE_E, the node.
#[test]
fn errors_are_about_the_eid() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways() else { return };
    for (v6, eid) in [(false, EIDS[0]), (true, EIDS[1])] {
        let locator = host_at(&lab, "e", &mut g.e, &mut g.i, eid);
        lab.pings_soon(eid);
        let mut errors = Errors::open(&lab, v6);
        let from = SocketAddr::new(addr(SOURCES[usize::from(v6)]), 0);
        let sender = inside(&lab.name("s"), || UdpSocket::bind(from).unwrap());
        let sender = socket2::Socket::from(sender);
        let before = detail(&g.i, "errors_translated");
        // Nobody listens at the node.
        let (expired, closed) = if v6 { ((3, 0), (1, 4)) } else { ((11, 0), (3, 3)) };
        for (hops, by, kind) in [
            (1, "10.8.0.1", expired),
            (2, "10.101.0.2", expired),
            (3, "10.102.0.2", expired),
            (64, "10.9.0.7", closed),
        ] {
            if v6 {
                sender.set_unicast_hops_v6(hops).unwrap();
            } else {
                sender.set_ttl_v4(hops).unwrap();
            }
            let to = SocketAddr::new(addr(eid), 33_434);
            sender.send_to(&pattern(700), &to.into()).unwrap();
            let said = errors.next();
            assert_eq!((said.about, said.kind), (addr(eid), kind), "{hops} hops");
            if !v6 {
                assert_eq!(said.by, addr(by));
            }
        }
        let translated = detail(&g.i, "errors_translated") - before;
        assert_eq!(
            translated, 2,
            "those of FE_I itself and of the router, not of who knows the EID"
        );
        assert_ne!(locator, addr(eid));
    }
}

/// RFC 1191, RFC 8201: behind FE_I is a smaller link, then one of FE_I's own is. The source learns it
/// for the EID, and a transfer gets through.
#[test]
fn sources_learn_the_mtu_of_the_path() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways() else { return };
    lab.without_offload();
    for eid in EIDS {
        host_at(&lab, "e", &mut g.e, &mut g.i, eid);
        lab.pings_soon(eid);
    }
    for (node, link, peer, other, mtu) in
        [("c", "c1", "e", "u1", 1400_u16), ("i", "u0", "c", "c0", 1300)]
    {
        lab.ip(node, &format!("link set {link} mtu {mtu}"));
        lab.ip(peer, &format!("link set {other} mtu {mtu}"));
        for (v6, eid) in [(false, EIDS[0]), (true, EIDS[1])] {
            let mut errors = Errors::open(&lab, v6);
            // Ten octets more than what fits; the source knows the MTU of before already.
            let len = mtu + 10 - if v6 { 48 } else { 28 };
            let (_, said) = lab.ping("s", eid, &format!("-c 1 -W 1 -M do -s {len}"));
            let told = [format!("mtu = {mtu}"), format!("mtu={mtu}")];
            assert!(told.iter().any(|told| said.contains(told)), "{said}");
            let error = errors.next();
            assert_eq!((error.about, error.mtu), (addr(eid), mtu), "{error:?}");
            let route = lab.ip("s", &format!("route get {eid}"));
            assert!(route.contains(&format!("mtu {mtu}")), "{route}");
            transfer(&lab, eid, &pattern(500_000));
        }
    }
}

/// What is for a locator of ours that is nobody's is dropped and counted, whoever sends it; so is
/// what an entry forbids. Entries that are no rewriting are refused with words.
#[test]
fn locators_of_nobody_are_dropped_and_counted() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways() else { return };
    for eid in EIDS {
        let locator = host_at(&lab, "e", &mut g.e, &mut g.i, eid);
        lab.pings_soon(eid);
        // The node is not to be reached by its locator's neighbour, nor with an entry that is gone.
        let before = dropped(&mut g.e, DropReason::NotAllowed);
        let next = match locator {
            IpAddr::V4(v4) => IpAddr::from((u32::from(v4) ^ 1).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((u128::from(v6) ^ 1).to_be_bytes()),
        };
        assert!(!lab.ping("s", &next.to_string(), "-c 3 -W 1").0);
        assert_eq!(dropped(&mut g.e, DropReason::NotAllowed) - before, 3);
        apply(&mut g.e, &[EncapChange::RemoveEntry { prefix: Prefix::host(locator) }]);
        assert!(!lab.ping("s", eid, "-c 4 -W 1").0);
        assert_eq!(dropped(&mut g.e, DropReason::NotAllowed) - before, 7);
        let prefix = Prefix::host(addr(eid));
        apply(&mut g.i, &[EncapChange::SetEntry { prefix, action: EntryAction::Drop }]);
        let before = dropped(&mut g.i, DropReason::Policy);
        assert!(!lab.ping("s", eid, "-c 2 -W 1").0);
        assert_eq!(dropped(&mut g.i, DropReason::Policy) - before, 2);
    }
    let group = GroupId(0);
    let path = GroupPath::Unreachable;
    let rewrite = |key: &str, to: &str| EncapChange::SetEntry {
        prefix: prefix(key),
        action: EntryAction::Rewrite(addr(to)),
    };
    let mut results = Vec::new();
    g.e.apply(
        &[
            EncapChange::SetGroup { group, path },
            EncapChange::AllowDecap { prefix: prefix("10.9.0.0/24") },
            rewrite("10.9.0.0/24", "10.77.2.1"),
            rewrite("10.9.0.9/32", "2001:db8::1"),
            rewrite("2001:db8:9::9/128", "2001:db8:77:3::1"), // another checksum
            EncapChange::SetEntry { prefix: prefix("10.77.2.0/24"), action: EntryAction::Native },
            EncapChange::SetEntry {
                prefix: prefix("10.9.0.0/24"),
                action: EntryAction::Group(group),
            },
        ],
        &mut results,
    );
    for result in &results {
        assert!(matches!(result, Err(EncapError::Unsupported(_))), "{results:?}");
    }
}

/// A packet without a mapping is told and led to the device that holds it; FE_I's own packets are
/// rewritten behind that.
#[test]
fn first_packets_are_told_and_own_packets_rewritten() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut g) = lab.gateways() else { return };
    for (source, eid) in SOURCES.into_iter().zip(EIDS) {
        let all = Prefix::new(addr(eid), if addr(eid).is_ipv4() { 16 } else { 48 }).unwrap();
        apply(&mut g.i, &[EncapChange::SetEntry { prefix: all, action: EntryAction::Punt }]);
        let mut events = Vec::new();
        while g.i.handle_readable(&mut events).unwrap() {}
        events.clear();
        assert!(!lab.ping("s", eid, "-c 1 -W 1").0);
        while g.i.handle_readable(&mut events).unwrap() {}
        let miss = EncapEvent::Miss { source: addr(source), destination: addr(eid) };
        assert_eq!(events, [miss, EncapEvent::FirstPacket { prefix: all }]);
        host_at(&lab, "e", &mut g.e, &mut g.i, eid);
        lab.pings_soon(eid);
        let own = if addr(eid).is_ipv4() { "10.8.0.1" } else { "2001:db8:8::1" };
        let before = g.i.totals().unwrap().encapsulated.packets;
        let (answered, said) = lab.ping("i", eid, &format!("-c 3 -W 2 -I {own}"));
        assert!(answered, "{said}");
        assert_eq!(g.i.totals().unwrap().encapsulated.packets - before, 3);
    }
    assert_eq!(detail(&g.i, "punted"), 2);
}

/// Connections go on while the processes of both ends come and go, while the node moves to another
/// FE_E, and while FE_I knows only the old one, whose FE_E sends on.
#[test]
fn connections_survive_restarts_and_moves() {
    for clsact in [false, true] {
        let Some(lab) = Lab::new() else { return };
        let options = |node: &str| Options { clsact, ..lab.options(node) };
        let Some(mut i) = lab.start("i", options("i")) else { return };
        let mut e = lab.start("e", options("e")).unwrap();
        let mut f = lab.start("f", options("f")).unwrap();
        let locators = EIDS.map(|eid| host_at(&lab, "e", &mut e, &mut i, eid));
        EIDS.iter().for_each(|eid| lab.pings_soon(eid));
        let at = EIDS.map(|eid| SocketAddr::new(addr(eid), 5003));
        let listeners = at.map(|at| inside(&lab.name("m"), || TcpListener::bind(at).unwrap()));
        let streams =
            at.map(|at| inside(&lab.name("s"), || TcpStream::connect_timeout(&at, LIMIT).unwrap()));
        let stop = AtomicBool::new(false);
        let carried = [AtomicU32::new(0), AtomicU32::new(0)];
        let go_on = |what: &str| {
            let before = carried.each_ref().map(|c| c.load(Ordering::Relaxed));
            let begin = Clock::now();
            while carried.iter().zip(before).any(|(c, b)| c.load(Ordering::Relaxed) < b + 20) {
                assert!(begin.elapsed() < LIMIT, "{what}: {carried:?}, {before:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let i = std::thread::scope(|scope| {
            for listener in &listeners {
                scope.spawn(move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut piece = [0; 3000];
                    while stream.read_exact(&mut piece).is_ok() && stream.write_all(&piece).is_ok()
                    {
                    }
                });
            }
            for (stream, carried) in streams.iter().zip(&carried) {
                let (mut stream, stop) = (stream.try_clone().unwrap(), &stop);
                scope.spawn(move || {
                    stream.set_read_timeout(Some(LIMIT)).unwrap();
                    let mut back = [0; 3000];
                    let sent = pattern(3000);
                    while !stop.load(Ordering::Relaxed) {
                        stream.write_all(&sent).unwrap();
                        stream.read_exact(&mut back).unwrap();
                        assert!(back[..] == sent[..]);
                        carried.fetch_add(1, Ordering::Relaxed);
                    }
                    stream.shutdown(std::net::Shutdown::Both).unwrap();
                });
            }
            // Should an assertion fail, the threads end all the same.
            struct Stop<'a>(&'a AtomicBool);
            impl Drop for Stop<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _stop = Stop(&stop);
            go_on("at first");
            drop(i);
            drop(e);
            go_on("without processes");
            i = lab.start("i", options("i")).unwrap();
            e = lab.start("e", options("e")).unwrap();
            go_on("with the next ones");
            for (plane, wanted) in [
                (
                    &mut i,
                    EIDS.iter().zip(locators).map(|(e, l)| entry(addr(e), l)).collect::<Vec<_>>(),
                ),
                (&mut e, EIDS.iter().zip(locators).map(|(e, l)| entry(l, addr(e))).collect()),
            ] {
                let mut there = Vec::new();
                plane.begin_dump().unwrap();
                while plane.continue_dump(&mut there).unwrap() {}
                assert_eq!(there, wanted, "and no closed pools");
            }
            // To f; FE_E there first. e sends on what FE_I still sends to it.
            let next = EIDS.map(|eid| locator(&options("f"), eid));
            for (eid, next) in EIDS.iter().zip(next) {
                apply(&mut f, &[entry(next, addr(eid))]);
                apply(&mut e, &[entry(addr(eid), next)]);
            }
            lab.ip("e", "link set m0 down");
            lab.ip("m", "route replace default via 10.105.0.1");
            lab.ip("m", "-6 route replace default via 2001:db8:105::1");
            go_on("sent on");
            assert!(e.totals().unwrap().late.packets > 20);
            for (eid, next) in EIDS.iter().zip(next) {
                apply(&mut i, &[entry(addr(eid), next)]);
            }
            let late = e.totals().unwrap().late;
            go_on("at the next anchor");
            assert!(e.totals().unwrap().late.packets <= late.packets + 20, "no longer by e");
            i
        });
        inside(&lab.name("i"), || i.remove()).unwrap();
        // The kernel lets go of links a moment later.
        let begin = Clock::now();
        while lab.ping("s", EIDS[0], "-c 1 -W 1").0 {
            assert!(begin.elapsed() < LIMIT, "clsact {clsact}: it is still rewritten");
        }
    }
}
