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
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::dataplane::encap::gpe::{Gpe, Options};
use killick::dataplane::encap::{DropReason, EncapError, Encapsulator};
use killick::dataplane::filter;
use killick::types::Prefix;
use killick::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, InstanceId};

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

    /// Whether an answer comes back through both tunnels.
    fn pings(&self, to: &str) -> bool {
        self.say("s", &format!("ping -c1 -W1 {to}")).contains(" 1 received")
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
    assert!(!lab.pings("10.9.0.7"), "there is no other way");
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
