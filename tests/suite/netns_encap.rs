//! FE_I and FE_E by LISP-GPE of the kernel, with real packets between namespaces that know nothing
//! of killick.
//!
//! ```text
//!  [s] s0 --- i0 [i: FE_I] u0 --- u1 [e: FE_E] e0 --- m0 [m]
//!  10.8.0.7       192.0.2.1  192.0.2.2, .3            10.9.0.7, .8
//!  fd08::7        fd00::1    fd00::2, ::3             fd09::7, ::8
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::mem::size_of;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use killick::dataplane::encap::gpe::{Gpe, Options};
use killick::dataplane::encap::{DropReason, EncapError, Encapsulator, Reconciler};
use killick::dataplane::filter;
use killick::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, InstanceId};
use killick::types::{Instant, Prefix};

const IID: InstanceId = InstanceId(0x4d_0102);
const MTU: u32 = 1500 - 56;

/// Namespaces of one test, deleted when dropped.
struct Lab {
    suffix: String,
}

impl Lab {
    /// `None`, said aloud, without the privileges.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments, no memory.
        if unsafe { libc::geteuid() } != 0 {
            return skip("network namespaces need root");
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lab = Self { suffix: format!("{}-{number}", std::process::id()) };
        for side in SIDES {
            if !run("ip", &["netns", "add", &lab.name(side)]) {
                return skip("this machine refuses network namespaces");
            }
            lab.ip(side, "link set lo up");
            // No wait for other holders of an address; there are none.
            lab.say(side, "sysctl -w net.ipv6.conf.default.accept_dad=0");
        }
        for (left, l, right, r) in
            [("s", "s0", "i", "i0"), ("i", "u0", "e", "u1"), ("e", "e0", "m", "m0")]
        {
            let peer = lab.name(right);
            lab.ip(left, &format!("link add {l} type veth peer name {r} netns {peer}"));
            lab.ip(left, &format!("link set {l} up"));
            lab.ip(right, &format!("link set {r} up"));
        }
        for (side, address) in [
            ("s", "10.8.0.7/24 dev s0"),
            ("s", "fd08::7/64 dev s0 nodad"),
            ("i", "10.8.0.1/24 dev i0"),
            ("i", "fd08::1/64 dev i0 nodad"),
            ("i", "192.0.2.1/24 dev u0"),
            ("i", "fd00::1/64 dev u0 nodad"),
            ("e", "192.0.2.2/24 dev u1"),
            ("e", "192.0.2.3/24 dev u1"),
            ("e", "fd00::2/64 dev u1 nodad"),
            ("e", "fd00::3/64 dev u1 nodad"),
            ("e", "10.9.0.1/24 dev e0"),
            ("e", "fd09::1/64 dev e0 nodad"),
            ("m", "10.9.0.7/24 dev m0"),
            ("m", "10.9.0.8/24 dev m0"),
            ("m", "fd09::7/64 dev m0 nodad"),
            ("m", "fd09::8/64 dev m0 nodad"),
        ] {
            lab.ip(side, &format!("addr add {address}"));
        }
        for (side, gateways) in [("s", ["10.8.0.1", "fd08::1"]), ("m", ["10.9.0.1", "fd09::1"])] {
            for gateway in gateways {
                lab.ip(side, &format!("route add default via {gateway}"));
            }
        }
        Some(lab)
    }

    fn name(&self, side: &str) -> String {
        format!("kl-{side}-{}", self.suffix)
    }

    /// `ip` in a namespace; must succeed.
    fn ip(&self, side: &str, command: &str) {
        let name = self.name(side);
        let mut arguments = vec!["-n", &name];
        arguments.extend(command.split(' '));
        let output = Command::new("ip").args(&arguments).output().expect("iproute2 is installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
    }

    /// What a program says in a namespace.
    fn say(&self, side: &str, command: &str) -> String {
        let name = self.name(side);
        let mut arguments = vec!["netns", "exec", &name];
        arguments.extend(command.split(' '));
        let output = Command::new("ip").args(&arguments).output().expect("iproute2 is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// Whether an answer comes back through both tunnels; waits for one that should.
    fn pings(&self, to: &str) -> bool {
        let said = self.say("s", &format!("ping -c1 -W5 {to}"));
        said.contains(" 1 received")
            || !said.is_empty() && {
                println!("{said}");
                false
            }
    }

    /// One packet that should get no answer.
    fn sends(&self, to: &str) {
        let said = self.say("s", &format!("ping -c1 -W1 {to}"));
        assert!(said.contains(" 0 received"), "{said}");
    }

    /// In a thread that lives in the namespace.
    fn inside<T: Send>(&self, side: &str, work: impl FnOnce() -> T + Send) -> T {
        let name = self.name(side);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&name);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn open(&self, side: &str, options: Options) -> Gpe {
        let gpe = self.inside(side, || Gpe::open(options)).unwrap();
        assert_eq!(*gpe.guard(), filter::State::Loaded);
        gpe
    }

    fn ingress(&self) -> Gpe {
        self.open("i", options("192.0.2.1", "fd00::1"))
    }

    fn egress(&self) -> Gpe {
        self.open("e", options("192.0.2.2", "fd00::2"))
    }
}

const SIDES: [&str; 4] = ["s", "i", "e", "m"];

impl Drop for Lab {
    fn drop(&mut self) {
        for side in SIDES {
            run("ip", &["netns", "del", &self.name(side)]);
        }
    }
}

/// Aloud: the test harness keeps what `eprintln!` says to itself when a test passes.
fn skip(why: &str) -> Option<Lab> {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_encap: {why}");
    None
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().expect("the program is there").status.success()
}

fn options(ipv4: &str, ipv6: &str) -> Options {
    Options {
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: Some(ipv6.parse().unwrap()),
        iid: IID,
        ..Options::default()
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn path(members: &[&str]) -> GroupPath {
    let members = members.iter().map(|ip| (ip.parse().unwrap(), 1)).collect();
    GroupPath::Encap { members, iid: IID }
}

fn group(number: u32, members: &[&str]) -> EncapChange {
    EncapChange::SetGroup { group: GroupId(number), path: path(members) }
}

fn entry(text: &str, action: EntryAction) -> EncapChange {
    EncapChange::SetEntry { prefix: prefix(text), action }
}

fn allow(text: &str) -> EncapChange {
    EncapChange::AllowDecap { prefix: prefix(text) }
}

fn apply(gpe: &mut Gpe, changes: &[EncapChange]) {
    let mut results = Vec::new();
    gpe.apply(changes, &mut results);
    assert_eq!(results, vec![Ok(()); changes.len()]);
}

fn to_group(number: u32) -> EntryAction {
    EntryAction::Group(GroupId(number))
}

/// Both directions between the source and the node, over these locators of FE_E and FE_I.
fn connect(ingress: &mut Gpe, egress: &mut Gpe, fe_e: &str, fe_i: &str) {
    let (nodes, sources) = (["10.9.0.7", "fd09::7"], ["10.8.0.7", "fd08::7"]);
    for (gpe, remote, there, here) in
        [(&mut *ingress, fe_e, nodes, sources), (&mut *egress, fe_i, sources, nodes)]
    {
        apply(gpe, &[group(0, &[remote])]);
        for (there, here) in there.iter().zip(here) {
            apply(gpe, &[entry(there, to_group(0)), allow(here)]);
        }
    }
}

fn dropped(gpe: &mut Gpe, reason: DropReason) -> u64 {
    let at = DropReason::ALL.iter().position(|&r| r == reason).unwrap();
    gpe.totals().unwrap().dropped[at]
}

/// Everything that comes in or goes out of an interface, from its making on.
struct Capture {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Capture {
    fn open(lab: &Lab, side: &str, name: &str) -> Self {
        let socket = lab.inside(side, || {
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            // SAFETY: plain numbers.
            let fd =
                unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, all) };
            assert!(fd >= 0);
            // SAFETY: a descriptor that nobody else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let name = std::ffi::CString::new(name).unwrap();
            // SAFETY: all zero is a valid sockaddr_ll.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            // SAFETY: a NUL-terminated string.
            address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            // SAFETY: pointer and length describe the address.
            let rc = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
            assert_eq!(rc, 0);
            socket
        });
        Self { socket, frames: Vec::new() }
    }

    /// Frames to or from UDP port 4341 since the last call.
    fn take(&mut self) -> Vec<Frame> {
        let mut file = File::from(self.socket.try_clone().unwrap());
        let mut buffer = vec![0; 65_536];
        let mut found = Vec::new();
        loop {
            match file.read(&mut buffer) {
                Ok(len) => {
                    if let Some(frame) = Frame::new(&buffer[..len]) {
                        self.frames.push(buffer[..len].to_vec());
                        found.push(frame);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What tshark, which we have not written, reads in the captured frames.
    fn decoded(&self, fields: &[&str]) -> Option<Vec<String>> {
        if !run("which", &["tshark"]) {
            skip("tshark is not installed, frames were only looked at by the test itself");
            return None;
        }
        let mut pcap = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_536, 1] {
            pcap.extend_from_slice(&word.to_ne_bytes());
        }
        for frame in &self.frames {
            let len = frame.len() as u32;
            for word in [0, 0, len, len] {
                pcap.extend_from_slice(&word.to_ne_bytes());
            }
            pcap.extend_from_slice(frame);
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("kl-{}-{number}.pcap", std::process::id()));
        std::fs::write(&file, pcap).unwrap();
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&file).args(["-T", "fields", "-E", "separator=;"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let output = command.output().unwrap();
        std::fs::remove_file(file).unwrap();
        Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

/// A LISP data packet, taken apart by hand (RFC 9300 §5.1, RFC 9305 §3).
#[derive(Debug)]
struct Frame {
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    checksum: u16,
    header: [u8; 8],
    inner: Vec<u8>,
}

fn ip_at(octets: &[u8], at: usize, len: usize) -> IpAddr {
    match len {
        4 => <[u8; 4]>::try_from(&octets[at..at + 4]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&octets[at..at + 16]).unwrap().into(),
    }
}

impl Frame {
    fn new(ethernet: &[u8]) -> Option<Self> {
        let (header, ip) = ethernet.split_at_checked(14)?;
        let (source, destination, udp) = match header[12..] {
            [0x08, 0x00] if ip[9] == 17 => (ip_at(ip, 12, 4), ip_at(ip, 16, 4), &ip[20..]),
            [0x86, 0xdd] if ip[6] == 17 => (ip_at(ip, 8, 16), ip_at(ip, 24, 16), &ip[40..]),
            _ => return None,
        };
        let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        (word(2) == 4341).then(|| Self {
            source,
            destination,
            source_port: word(0),
            checksum: word(6),
            header: udp[8..16].try_into().unwrap(),
            inner: udp[16..].to_vec(),
        })
    }

    fn source_is_fe_i(&self) -> bool {
        ["192.0.2.1", "fd00::1"].iter().any(|ip| self.source == ip.parse::<IpAddr>().unwrap())
    }

    fn inner_destination(&self) -> IpAddr {
        match self.inner[0] >> 4 {
            4 => ip_at(&self.inner, 16, 4),
            _ => ip_at(&self.inner, 24, 16),
        }
    }
}

/// All four combinations of families: the packets go both ways, and look on the wire as RFC 9305
/// says, with the instance and without a checksum.
#[test]
fn packets_go_both_ways_in_all_families() {
    let Some(lab) = Lab::new() else { return };
    let (mut ingress, mut egress) = (lab.ingress(), lab.egress());
    lab.sends("10.9.0.7"); // there is no other way
    for (fe_e, fe_i) in [("192.0.2.2", "192.0.2.1"), ("fd00::2", "fd00::1")] {
        connect(&mut ingress, &mut egress, fe_e, fe_i);
        for node in ["10.9.0.7", "fd09::7"] {
            let mut capture = Capture::open(&lab, "i", "u0");
            assert!(lab.pings(node), "{node} over {fe_e}");
            let frames = capture.take();
            assert_eq!(frames.len(), 2, "{frames:?}");
            let [there, back] = [&frames[0], &frames[1]];
            for (frame, from, to) in [(there, fe_i, fe_e), (back, fe_e, fe_i)] {
                assert_eq!(frame.source, from.parse::<IpAddr>().unwrap());
                assert_eq!(frame.destination, to.parse::<IpAddr>().unwrap());
                let next = if node.contains(':') { 2 } else { 1 };
                assert_eq!(frame.header, [0x0c, 0, 0, next, 0x4d, 0x01, 0x02, 0]);
                assert_eq!(frame.checksum, 0);
                assert!(frame.source_port > 1024);
            }
            assert_eq!(there.inner_destination(), node.parse::<IpAddr>().unwrap());
            let fields = ["frame.protocols", "lisp-data.iid", "_ws.malformed"];
            if let Some(lines) = capture.decoded(&fields) {
                for line in lines {
                    assert!(line.contains(":lisp-data:"), "{line}");
                    assert!(line.ends_with(&format!(";{};", IID.0)), "{line}");
                }
            }
        }
    }
    let totals = (ingress.totals().unwrap(), egress.totals().unwrap());
    assert_eq!(totals.0.encapsulated.packets, 4);
    assert_eq!(totals.1.decapsulated.packets, 4);
    assert_eq!(totals.1.dropped, [0; DropReason::ALL.len()]);
}

/// R_EC: FE_E takes out what it was told about and nothing else, and says why not.
#[test]
fn what_is_not_allowed_is_dropped_and_counted() {
    let Some(lab) = Lab::new() else { return };
    let (mut ingress, mut egress) = (lab.ingress(), lab.egress());
    connect(&mut ingress, &mut egress, "192.0.2.2", "192.0.2.1");
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));
    // Nodes that are there, and an address of FE_E itself.
    let others = ["10.9.0.8", "fd09::8", "10.9.0.1", "fd09::1"];
    for (count, other) in (1..).zip(others) {
        apply(&mut ingress, &[entry(other, to_group(0))]);
        lab.sends(other);
        assert_eq!(dropped(&mut egress, DropReason::NotAllowed), count, "{other}");
    }
    apply(&mut egress, &[allow("10.9.0.8"), allow("fd09::/64")]);
    assert!(lab.pings("10.9.0.8") && lab.pings("fd09::8"));
    apply(&mut egress, &[EncapChange::ForbidDecap { prefix: prefix("10.9.0.8") }]);
    lab.sends("10.9.0.8");
    assert_eq!(dropped(&mut egress, DropReason::NotAllowed), 5);
    // Removing what is not there is what was asked.
    apply(&mut egress, &[EncapChange::ForbidDecap { prefix: prefix("10.9.0.8") }]);

    // Of nested prefixes the kernel takes the widest.
    apply(&mut egress, &[allow("10.9.0.8/29"), allow("10.9.0.0/24")]);
    assert!(lab.pings("10.9.0.8"));
    apply(&mut egress, &[EncapChange::ForbidDecap { prefix: prefix("10.9.0.0/24") }]);
    assert!(lab.pings("10.9.0.8"));
    apply(&mut egress, &[EncapChange::ForbidDecap { prefix: prefix("10.9.0.8/29") }]);
    lab.sends("10.9.0.8");
    assert_eq!(dropped(&mut egress, DropReason::NotAllowed), 6);
    // Somebody takes all filters of the machine away.
    lab.say("e", "nft flush ruleset");
    lab.inside("e", || egress.handle_readable(&mut Vec::new())).unwrap();
    lab.sends("10.9.0.8");
    assert_eq!(dropped(&mut egress, DropReason::NotAllowed), 1, "counted from anew");
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7") && lab.pings("fd09::8"));

    // At FE_I: by policy, without a locator (or one of no use), and with nobody to hold it.
    let nowhere = EncapChange::SetGroup { group: GroupId(1), path: GroupPath::Unreachable };
    let changes = [
        nowhere,
        entry("10.9.0.8", to_group(1)),
        entry("fd09::8", to_group(1)),
        entry("10.9.0.9", EntryAction::Drop),
        entry("fd09::9", EntryAction::Drop),
        entry("10.9.0.0/24", EntryAction::Punt),
        entry("fd09::/64", EntryAction::Punt),
    ];
    apply(&mut ingress, &changes);
    for (destinations, reason) in [
        (["10.9.0.8", "fd09::8"], DropReason::Unreachable),
        (["10.9.0.9", "fd09::9"], DropReason::Policy),
        (["10.9.0.10", "fd09::10"], DropReason::NotHeld),
    ] {
        for (count, destination) in (1..).zip(destinations) {
            lab.sends(destination);
            assert_eq!(dropped(&mut ingress, reason), count, "{destination}");
        }
    }
    let mut results = Vec::new();
    ingress.apply(&[entry("10.9.0.7", to_group(77))], &mut results);
    assert_eq!(results, [Err(EncapError::NoGroup)]);
    assert!(lab.pings("10.9.0.7"), "as it was");
}

/// LISP headers of others, by hand: an IPv4 packet with a UDP datagram of the node's.
fn lisp(header: [u8; 8], destination: [u8; 4]) -> Vec<u8> {
    let mut inner = vec![0x45, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 8, 0, 7];
    inner.extend(destination);
    let sum: u32 = inner.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    inner[10..12].copy_from_slice(&sum.to_be_bytes());
    inner.extend([0, 9, 0, 9, 0, 13, 0, 0]);
    inner.extend(b"hello");
    [header.to_vec(), inner].concat()
}

/// RFC 9305 §3: nonce and locator status bits may be there. Another instance is not ours.
#[test]
fn headers_of_others_are_taken_if_the_instance_is_ours() {
    let Some(lab) = Lab::new() else { return };
    let mut egress = lab.egress();
    apply(&mut egress, &[allow("10.9.0.7")]);
    let node = lab.inside("m", || UdpSocket::bind("10.9.0.7:9").unwrap());
    let router = lab.inside("i", || UdpSocket::bind("192.0.2.1:0").unwrap());
    let mut buffer = [0; 64];
    let mut send = |header, wait| {
        node.set_read_timeout(Some(Duration::from_millis(wait))).unwrap();
        router.send_to(&lisp(header, [10, 9, 0, 7]), "192.0.2.2:4341").unwrap();
        node.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"hello")
    };
    assert!(send([0x0c, 0, 0, 1, 0x4d, 1, 2, 0], 5_000), "I and P");
    assert!(send([0x4c, 0, 0, 1, 0x4d, 1, 2, 3], 5_000), "locator status bits");
    assert!(send([0x8c, 0x12, 0x34, 1, 0x4d, 1, 2, 0], 5_000), "a nonce");
    assert!(!send([0x0c, 0, 0, 1, 0x4d, 1, 3, 0], 200), "another instance");
    assert_eq!(dropped(&mut egress, DropReason::Instance), 1);
    for (count, (header, what)) in (1..).zip([
        ([0x04, 0, 0, 1, 0, 0, 0, 0], "no instance"),
        ([0x08, 0, 0, 0, 0x4d, 1, 2, 0], "RFC 9300, without P"),
        ([0x0c, 0, 0, 3, 0x4d, 1, 2, 0], "Ethernet within"),
        ([0xac, 0, 0, 1, 0x4d, 1, 2, 0], "an echo of the nonce asked for"),
        ([0x1c, 0, 0, 1, 0x4d, 1, 2, 0], "a map version"),
    ]) {
        assert!(!send(header, 200), "{what}");
        assert_eq!(dropped(&mut egress, DropReason::Malformed), count, "{what}");
    }
    assert_eq!(dropped(&mut egress, DropReason::Instance), 1);
}

/// Several locators share the traffic; one that fails is left out by one write, whatever the number
/// of entries. A move is a write of one entry.
#[test]
fn a_group_fails_over_by_one_write() {
    let Some(lab) = Lab::new() else { return };
    let (mut ingress, mut egress) = (lab.ingress(), lab.egress());
    connect(&mut ingress, &mut egress, "192.0.2.2", "192.0.2.1");
    apply(&mut ingress, &[group(1, &["fd00::3"])]);
    let there = |capture: &mut Capture| {
        let to_nodes = |frame: &Frame| frame.source_is_fe_i().then_some(frame.destination);
        let mut found: Vec<_> = capture.take().iter().filter_map(to_nodes).collect();
        found.dedup();
        found.iter().map(IpAddr::to_string).collect::<Vec<_>>()
    };
    let mut capture = Capture::open(&lab, "i", "u0");
    for (change, expected) in [
        (group(0, &["192.0.2.3"]), "192.0.2.3"),
        (group(0, &["fd00::2"]), "fd00::2"),
        (group(0, &["192.0.2.2"]), "192.0.2.2"),
    ] {
        apply(&mut ingress, &[change]);
        for node in ["10.9.0.7", "fd09::7"] {
            assert!(lab.pings(node));
            assert_eq!(there(&mut capture), [expected]);
        }
    }
    // Both at once: the kernel takes one for each pair of addresses.
    apply(&mut ingress, &[group(0, &["192.0.2.2", "192.0.2.3", "fd00::3"]), allow("10.8.0.0/24")]);
    apply(&mut egress, &[entry("10.8.0.0/24", to_group(0))]);
    let mut used = std::collections::BTreeSet::new();
    for last in 20..40 {
        lab.ip("s", &format!("addr add 10.8.0.{last}/24 dev s0"));
        lab.say("s", &format!("ping -c1 -W5 -I 10.8.0.{last} 10.9.0.7"));
        used.extend(there(&mut capture));
    }
    assert!(used.len() > 1, "{used:?}");
    apply(&mut ingress, &[group(0, &["192.0.2.3"])]);
    assert!(lab.pings("10.9.0.7"));
    assert_eq!(there(&mut capture), ["192.0.2.3"]);
    // One host moves.
    apply(&mut ingress, &[entry("10.9.0.7", to_group(1))]);
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));
    assert_eq!(there(&mut capture), ["fd00::3", "192.0.2.3"]);
    // Groups and locators that nobody uses are gone.
    let changes = [entry("10.9.0.7", to_group(0)), EncapChange::RemoveGroup { group: GroupId(1) }];
    apply(&mut ingress, &changes);
    assert!(lab.pings("10.9.0.7"));
    let objects = lab.say("i", "ip nexthop show proto 108");
    assert_eq!(objects.matches(" encap ").count(), 2, "{objects}");
    assert!(objects.contains("dst 192.0.2.3"), "{objects}");
}

/// What does not fit into the tunnel is told to its source, by FE_I.
#[test]
fn too_big_is_told_to_the_source() {
    let Some(lab) = Lab::new() else { return };
    let (mut ingress, mut egress) = (lab.ingress(), lab.egress());
    for (fe_e, fe_i) in [("192.0.2.2", "192.0.2.1"), ("fd00::2", "fd00::1")] {
        connect(&mut ingress, &mut egress, fe_e, fe_i);
        // ICMP header and IP header beside the size that is given.
        for (node, headers, refusal) in [
            ("10.9.0.7", 28, format!("Frag needed and DF set (mtu = {MTU})")),
            ("fd09::7", 48, format!("Packet too big: mtu={MTU}")),
        ] {
            lab.say("s", "ip route flush cache");
            lab.say("s", "ip -6 route flush cache");
            let ping = |size: u32| {
                lab.say("s", &format!("ping -c1 -W2 -M do -s {} {node}", size - headers))
            };
            let said = ping(MTU);
            assert!(said.contains(" 1 received"), "{said}");
            let said = ping(MTU + 1);
            assert!(said.contains(&refusal), "{said}");
        }
    }
}

/// A node that has left: its packets go on to the new FE_E (here: back to FE_I, which does not take
/// them), and are counted.
#[test]
fn late_packets_are_forwarded() {
    let Some(lab) = Lab::new() else { return };
    let (mut ingress, mut egress) = (lab.ingress(), lab.egress());
    connect(&mut ingress, &mut egress, "192.0.2.2", "192.0.2.1");
    assert!(lab.pings("10.9.0.7"));
    let mut capture = Capture::open(&lab, "i", "u0");
    apply(&mut egress, &[entry("10.9.0.7", to_group(0))]);
    lab.sends("10.9.0.7");
    let frames = capture.take();
    assert_eq!(frames.len(), 2, "{frames:?}");
    assert_eq!(frames[1].destination, "192.0.2.1".parse::<IpAddr>().unwrap());
    assert_eq!(frames[1].inner_destination(), "10.9.0.7".parse::<IpAddr>().unwrap());
    let totals = egress.totals().unwrap();
    assert_eq!((totals.late.packets, totals.decapsulated.packets), (1, 2));
    assert_eq!(dropped(&mut ingress, DropReason::NotAllowed), 1);
    // It is back: a native entry within whatever else there is.
    let changes = [entry("10.9.0.0/28", to_group(0)), entry("10.9.0.7", EntryAction::Native)];
    apply(&mut egress, &changes);
    assert!(lab.pings("10.9.0.7"));
    let routes = lab.say("e", "ip route show proto 108");
    assert_eq!(routes.lines().count(), 5, "what is around it: {routes}");
    apply(&mut ingress, &[entry("10.9.0.8", to_group(0))]);
    lab.sends("10.9.0.8"); // not allowed
    apply(&mut egress, &[allow("10.9.0.8")]);
    lab.sends("10.9.0.8"); // and then led back
    assert_eq!(egress.totals().unwrap().late.packets, 2);
    // Somebody knows it by itself: it need not be cut out.
    lab.ip("e", "route add 10.9.0.8/32 dev e0 metric 10");
    apply(&mut egress, &[entry("10.9.0.8", EntryAction::Native)]);
    assert!(lab.pings("10.9.0.8"));
    assert_eq!(lab.say("e", "ip route show proto 108"), routes);
}

/// With a rule, entries are in a table of their own, and what is native finds the routes of others
/// as if there were none of ours. Without it again, nothing of that is left.
#[test]
fn entries_go_before_all_others_by_a_rule() {
    let Some(lab) = Lab::new() else { return };
    let by_rule = Options { rule: Some(4341), ..options("192.0.2.1", "fd00::1") };
    let (mut ingress, mut egress) = (lab.open("i", by_rule), lab.egress());
    connect(&mut ingress, &mut egress, "192.0.2.2", "192.0.2.1");
    lab.ip("i", "route add 10.9.0.0/24 via 192.0.2.2");
    for (prefix, action) in [
        ("10.9.0.0/25", EntryAction::Punt),
        ("10.9.0.8", EntryAction::Native),
        ("10.9.0.9", EntryAction::Native),
    ] {
        apply(&mut ingress, &[entry(prefix, action)]);
    }
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));
    let routes = lab.say("i", "ip route show table 107");
    assert!(routes.contains("throw 10.9.0.8 "), "{routes}");
    assert_eq!(routes.lines().count(), 4, "{routes}");
    let mut capture = Capture::open(&lab, "i", "u0");
    lab.say("s", "ping -c1 -W5 10.9.0.8");
    let there = capture.take().iter().filter(|frame| frame.source_is_fe_i()).count();
    assert_eq!(there, 0, "by the routes of others");
    drop(ingress);
    let mut ingress = lab.ingress();
    assert_eq!(lab.say("i", "ip rule").lines().count(), 3);
    assert_eq!(lab.say("i", "ip route show table 107"), "");
    connect(&mut ingress, &mut egress, "192.0.2.2", "192.0.2.1");
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));
}

/// A TUN device as the way to the control plane.
#[test]
fn punted_packets_come_to_the_control_plane() {
    let Some(lab) = Lab::new() else { return };
    let mut tun = lab.inside("i", || {
        let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"punt0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF takes an ifreq.
        let rc = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        tun
    });
    lab.ip("i", "link set punt0 up");
    let options = Options { punt: Some("punt0".to_owned()), ..options("192.0.2.1", "fd00::1") };
    let mut ingress = lab.open("i", options);
    for (pool, node) in [("10.9.0.0/24", "10.9.0.99"), ("fd09::/64", "fd09::99")] {
        apply(&mut ingress, &[entry(pool, EntryAction::Punt)]);
        lab.sends(node);
        let mut buffer = [0; 2048];
        // The device has a few packets of the kernel's own to tell as well.
        let found = (0..100).any(|_| {
            let len = tun.read(&mut buffer).unwrap();
            let wanted = node.parse::<IpAddr>().unwrap();
            let len_of = if node.contains(':') { 16 } else { 4 };
            let at = if node.contains(':') { 24 } else { 16 };
            len > 40
                && buffer[0] >> 4 == if len_of == 4 { 4 } else { 6 }
                && ip_at(&buffer, at, len_of) == wanted
        });
        assert!(found, "{node}");
    }
}

/// The kernel forwards on while killick is away; what comes back adopts, and repairs what somebody
/// has taken away.
#[test]
fn forwarding_survives_a_restart_and_a_lost_device() {
    let Some(lab) = Lab::new() else { return };
    let mut egress = lab.egress();
    let changes = [
        group(0, &["192.0.2.1"]),
        entry("10.8.0.7", to_group(0)),
        entry("fd08::7", to_group(0)),
        allow("10.9.0.0/24"),
        allow("fd09::/64"),
    ];
    apply(&mut egress, &changes);
    let wanted = |number| {
        [
            group(number, &["192.0.2.2", "fd00::2"]),
            entry("10.9.0.7", to_group(number)),
            entry("fd09::7", to_group(number)),
            entry("10.9.0.128/25", EntryAction::Native),
            allow("10.8.0.7"),
            allow("fd08::7"),
        ]
    };
    let at = |s| Instant::ZERO + Duration::from_secs(s);
    let settle = |reconciler: &mut Reconciler<Gpe>, now| {
        lab.inside("i", || {
            for _ in 0..1_000 {
                if reconciler.poll_timeout() > now {
                    return;
                }
                reconciler.handle_timeout(now, &mut Vec::new());
            }
            panic!("never at rest");
        });
    };
    // The device and the rules are looked after in the namespace of the calling thread.
    let open = || lab.inside("i", || Reconciler::new(lab.ingress(), at(0)));
    let mut reconciler = open();
    reconciler.apply(&wanted(5), at(0));
    reconciler.apply(&[group(6, &["192.0.2.66"]), entry("10.9.0.9", to_group(6))], at(0));
    settle(&mut reconciler, at(0));
    assert_eq!(reconciler.summary().failed, 0);
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));
    drop(reconciler);
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"), "without killick");

    let mut reconciler = open();
    settle(&mut reconciler, at(0));
    assert_eq!(reconciler.counters().adopted, 7, "native is what has no route of ours");
    reconciler.apply(&wanted(0), at(0));
    assert_eq!(reconciler.counters().written, 1, "adopted, but for the native one");
    reconciler.prune();
    settle(&mut reconciler, at(0));
    let routes = lab.say("i", "ip route show proto 108");
    assert_eq!(routes.lines().count(), 1, "{routes}");
    assert_eq!(lab.say("i", "ip rule").lines().count(), 3, "no rules of ours");
    assert!(!lab.say("i", "ip nexthop").contains("192.0.2.66"));
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"));

    lab.ip("i", "link del killick-gpe");
    lab.sends("10.9.0.7");
    reconciler.handle_doubt(at(1));
    settle(&mut reconciler, at(1));
    settle(&mut reconciler, at(2));
    assert_eq!(reconciler.summary().failed, 0);
    assert!(lab.pings("10.9.0.7") && lab.pings("fd09::7"), "it is there again");
}
