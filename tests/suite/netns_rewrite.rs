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
use killick::dataplane::encap::{DropReason, EncapError, Encapsulator};
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
    let (i, e) = (g.i.totals().unwrap(), g.e.totals().unwrap());
    assert!(i.encapsulated.packets > 3_000 && i.encapsulated == e.decapsulated, "{i:?} {e:?}");
    assert_eq!((i.dropped, e.dropped), ([0; 9], [0; 9]));
}
