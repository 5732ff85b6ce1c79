//! The user-space data plane with real packets: two gateways, each a namespace with an EID of each
//! family on its loopback interface, and an underlay of both families between them.
//!
//! ```text
//!  [west] 10.1.0.1, fd01::1 -- u0 192.0.2.1, fd00::1 ==== 192.0.2.2, fd00::2 u0 -- 10.2.0.1, fd02::1 [east]
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::dataplane::encap::gpe::{self, Gpe};
use killick::dataplane::encap::{DropReason, Encapsulator};
use killick::dataplane::tun::{Config, HoldLimits, Use};
use killick::driver::lisp::Beside;
use killick::driver::lisp::tun::{Settings, Tun};
use killick::types::Prefix;
use killick::types::lisp::{EncapChange, EncapEvent, EntryAction, GroupId, GroupPath, InstanceId};
use killick::wire::encap::ip::put_datagram;

const IID: InstanceId = InstanceId(77);

/// One of the two.
struct Gateway {
    namespace: String,
    rloc4: Ipv4Addr,
    rloc6: Ipv6Addr,
    eid4: Ipv4Addr,
    eid6: Ipv6Addr,
}

struct Lab {
    west: Gateway,
    east: Gateway,
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
        let gateway = |side: &str, n: u8| Gateway {
            namespace: format!("kl-tun-{side}-{}-{number}", std::process::id()),
            rloc4: Ipv4Addr::new(192, 0, 2, n),
            rloc6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()),
            eid4: Ipv4Addr::new(10, n, 0, 1),
            eid6: Ipv6Addr::new(0xfd00 + u16::from(n), 0, 0, 0, 0, 0, 0, 1),
        };
        let lab = Self { west: gateway("w", 1), east: gateway("e", 2) };
        for Gateway { namespace, .. } in [&lab.west, &lab.east] {
            if !run("ip", &["netns", "add", namespace]) {
                return skip("this machine refuses network namespaces");
            }
            ip(namespace, "link set lo up");
        }
        let peer = format!("link add u0 type veth peer name u0 netns {}", lab.east.namespace);
        ip(&lab.west.namespace, &peer);
        for gateway in [&lab.west, &lab.east] {
            let Gateway { namespace, rloc4, rloc6, eid4, eid6 } = gateway;
            ip(namespace, "link set u0 up");
            // What a network card would compute, nobody does on a veth pair; the kernel's own
            // receiver knows, one in user space does not see it.
            gateway.inside(checksums_are_computed);
            ip(namespace, &format!("addr add {rloc4}/24 dev u0"));
            ip(namespace, &format!("addr add {rloc6}/64 dev u0 nodad"));
            ip(namespace, &format!("addr add {eid4}/32 dev lo"));
            ip(namespace, &format!("addr add {eid6}/128 dev lo nodad"));
        }
        Some(lab)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for gateway in [&self.west, &self.east] {
            run("ip", &["netns", "del", &gateway.namespace]);
        }
    }
}

impl Gateway {
    /// Runs in a thread that lives in the namespace.
    fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                use std::os::fd::AsRawFd;
                let file = std::fs::File::open(format!("/run/netns/{}", self.namespace)).unwrap();
                // SAFETY: a descriptor of a namespace; affects only the calling thread.
                let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn config(&self, used_for: Use) -> Config {
        Config {
            used_for,
            iid: Some(IID),
            source4: Some(self.rloc4),
            source6: Some(self.rloc6),
            underlay_mtu: 1500,
            hold: HoldLimits::default(),
            first_packets: Vec::new(),
        }
    }

    fn open(&self) -> Tun {
        let settings = Settings::new(self.config(Use::Encapsulate));
        self.inside(|| Tun::open(&settings)).expect("the device and its sockets")
    }

    fn socket(&self, addr: impl Into<IpAddr>, port: u16) -> UdpSocket {
        let addr = SocketAddr::new(addr.into(), port);
        let socket = self.inside(|| UdpSocket::bind(addr)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let octets: libc::c_int = 8 << 20;
        // SAFETY: the pointer and the length describe `octets`, which outlives the call.
        let rc = unsafe {
            use std::os::fd::AsRawFd;
            let value = (&raw const octets).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, 4)
        };
        assert_eq!(rc, 0, "room for a burst: {}", std::io::Error::last_os_error());
        socket
    }

    /// What the other one needs to reach an EID here.
    fn reached_by(&self, eid: IpAddr, rloc: IpAddr) -> [EncapChange; 2] {
        let group = GroupId(u32::from(rloc.is_ipv6()));
        let path = GroupPath::Encap { members: vec![(rloc, 1)], iid: IID };
        let prefix = Prefix::host(eid);
        [
            EncapChange::SetGroup { group, path },
            EncapChange::SetEntry { prefix, action: EntryAction::Group(group) },
        ]
    }

    fn allow(&self) -> [EncapChange; 2] {
        [self.eid4.into(), self.eid6.into()]
            .map(|eid| EncapChange::AllowDecap { prefix: Prefix::host(eid) })
    }
}

fn apply(tun: &mut Tun, changes: &[EncapChange]) {
    let mut results = Vec::new();
    tun.apply(changes, &mut results);
    assert_eq!(results, vec![Ok(()); changes.len()], "{changes:?}");
}

/// `ethtool -K u0 tx off`.
fn checksums_are_computed() {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"u0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` points to `value`, and both outlive the call.
    let rc = unsafe {
        use std::os::fd::AsRawFd;
        libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw const request)
    };
    assert_eq!(rc, 0, "ethtool: {}", std::io::Error::last_os_error());
}

fn skip(why: &str) -> Option<Lab> {
    use std::io::Write;
    // Aloud: the test harness keeps what `eprintln!` says to itself when a test passes.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_tun: {why}");
    None
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    output.status.success()
}

/// `ip` in a namespace; must succeed.
fn ip(namespace: &str, command: &str) {
    let mut arguments = vec!["-n", namespace];
    arguments.extend(command.split(' '));
    assert!(run("ip", &arguments), "ip {command}");
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Clock::now() + Duration::from_secs(5);
    while !done() {
        assert!(Clock::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn dropped(tun: &mut Tun, reason: DropReason) -> u64 {
    tun.totals().unwrap().dropped[reason as usize]
}

fn events(tun: &mut Tun) -> Vec<EncapEvent> {
    let mut events = Vec::new();
    while tun.handle_readable(&mut events).unwrap() {}
    events
}

/// `dumpcap` (of tshark) on the underlay; its file is gone when this is dropped.
struct Capture {
    child: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(gateway: &Gateway) -> Self {
        let file = std::env::temp_dir().join(format!("{}.pcap", gateway.namespace));
        let child = Command::new("ip")
            .args(["netns", "exec", &gateway.namespace, "dumpcap", "-q", "-P", "-i", "u0"])
            .args(["-f", "udp port 4341", "-w"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("ip is there");
        let capture = Self { child, file };
        // The header of the file is written when the capture has begun.
        until("the capture began", || {
            std::fs::metadata(&capture.file).is_ok_and(|m| m.len() >= 24)
        });
        capture
    }

    /// Fields of each packet, as tshark decodes them. Waits for `count` packets.
    fn decode(&self, count: usize, fields: &[&str]) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        until("all packets were captured", || {
            let mut command = Command::new("tshark");
            command.arg("-r").arg(&self.file).args(["-T", "fields", "-E", "occurrence=a"]);
            for field in fields {
                command.args(["-e", field]);
            }
            let output = command.output().expect("tshark is there");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            rows = text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
            rows.len() >= count
        });
        rows
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn all_family_combinations_both_ways_and_tshark_reads_them() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let (mut tun_west, mut tun_east) = (west.open(), east.open());
    apply(&mut tun_west, &west.allow());
    apply(&mut tun_east, &east.allow());
    let capture = Capture::start(east);
    let eids: [[IpAddr; 2]; 2] =
        [[west.eid4.into(), east.eid4.into()], [west.eid6.into(), east.eid6.into()]];
    let rlocs: [[IpAddr; 2]; 2] =
        [[west.rloc4.into(), east.rloc4.into()], [west.rloc6.into(), east.rloc6.into()]];
    let mut expected = Vec::new();
    for [eid_west, eid_east] in eids {
        for [rloc_west, rloc_east] in rlocs {
            apply(&mut tun_west, &east.reached_by(eid_east, rloc_east));
            apply(&mut tun_east, &west.reached_by(eid_west, rloc_west));
            let (here, there) = (west.socket(eid_west, 40001), east.socket(eid_east, 40002));
            here.set_ttl(33).unwrap();
            let mut buffer = [0; 1500];
            for size in [1, 1300] {
                let question = vec![7; size];
                here.send_to(&question, (eid_east, 40002)).unwrap();
                let (len, from) = there.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], from), (&*question, (eid_west, 40001).into()));
                there.send_to(b"answer", from).unwrap();
                let (len, from) = here.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], from), (&b"answer"[..], (eid_east, 40002).into()));
                expected.push((rloc_west, rloc_east, eid_west, eid_east));
                expected.push((rloc_east, rloc_west, eid_east, eid_west));
            }
        }
    }
    let totals = tun_west.totals().unwrap();
    assert_eq!((totals.encapsulated.packets, totals.decapsulated.packets), (8, 8));
    assert_eq!(totals.dropped, [0; DropReason::ALL.len()]);
    assert_eq!(
        events(&mut tun_west).len(),
        4,
        "the first packet of each entry, each time it leads elsewhere"
    );

    let fields = [
        "frame.protocols",
        "ip.src",
        "ipv6.src",
        "ip.dst",
        "ipv6.dst",
        "udp.dstport",
        "udp.checksum",
        "lisp-data.flags",
        "lisp-data.iid",
        "udp.srcport",
        "ip.ttl",
        "ipv6.hlim",
        "_ws.malformed",
    ];
    let rows = capture.decode(expected.len(), &fields);
    assert_eq!(rows.len(), expected.len());
    let mut ports = std::collections::BTreeSet::new();
    for (row, (outer_source, outer_destination, inner_source, inner_destination)) in
        rows.iter().zip(expected)
    {
        let [protocols, source4, source6, destination4, destination6, port, checksum, ..] =
            &row[..]
        else {
            panic!("{row:?}");
        };
        assert!(protocols.contains("udp:lisp-data:ip"), "{row:?}");
        let addrs = |outer: IpAddr, inner: IpAddr| {
            let family = |ipv4: bool| {
                let of = [outer, inner].into_iter().filter(|ip| ip.is_ipv4() == ipv4);
                of.map(|ip| ip.to_string()).collect::<Vec<_>>().join(",")
            };
            (family(true), family(false))
        };
        let sources = (source4.clone(), source6.clone());
        assert_eq!(sources, addrs(outer_source, inner_source), "{row:?}");
        let destinations = (destination4.clone(), destination6.clone());
        assert_eq!(destinations, addrs(outer_destination, inner_destination), "{row:?}");
        assert!(port.starts_with("4341,"), "{row:?}");
        assert!(checksum.starts_with("0x0000,"), "RFC 9300 §5.3: {row:?}");
        assert_eq!((row[7].as_str(), row[8].as_str()), ("0x08", "77"), "{row:?}");
        let source_port: u16 = row[9].split(',').next().unwrap().parse().unwrap();
        assert!(source_port >= 0xc000, "{row:?}");
        ports.insert(source_port);
        // Both headers say the same; a local packet crosses no router before the tunnel.
        let ttls: Vec<&str> =
            row[10].split(',').chain(row[11].split(',')).filter(|t| !t.is_empty()).collect();
        assert_eq!(ttls.len(), 2, "{row:?}");
        assert_eq!(ttls[0], ttls[1], "{row:?}");
        assert_eq!(row[12], "", "{row:?}");
    }
    assert!(ports.len() >= 3, "4 flows have different ports: {ports:?}");
}

#[test]
fn first_packets_are_held_and_released_in_order() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let (mut tun_west, mut tun_east) = (west.open(), east.open());
    apply(&mut tun_east, &east.allow());
    let pool = "10.2.0.0/16".parse().unwrap();
    apply(&mut tun_west, &[EncapChange::SetEntry { prefix: pool, action: EntryAction::Punt }]);
    let (here, there) = (west.socket(west.eid4, 40001), east.socket(east.eid4, 40002));
    let to = (east.eid4, 40002);
    let limit = HoldLimits::default().packets_per_destination as u32;
    for n in 0..limit {
        here.send_to(&n.to_be_bytes(), to).unwrap();
    }
    until("all are held", || tun_west.totals().unwrap().held == u64::from(limit));
    let miss = EncapEvent::Miss { source: west.eid4.into(), destination: east.eid4.into() };
    assert_eq!(events(&mut tun_west), [miss], "told once");
    here.send_to(b"one too many", to).unwrap();
    until("it is dropped", || dropped(&mut tun_west, DropReason::NotHeld) == 1);

    // Others come while the mapping does.
    let sender = std::thread::spawn(move || {
        for n in limit..limit + 2_000 {
            here.send_to(&n.to_be_bytes(), to).unwrap();
            if n % 50 == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    until("some of them were too many", || dropped(&mut tun_west, DropReason::NotHeld) > 20);
    apply(&mut tun_west, &east.reached_by(east.eid4.into(), east.rloc4.into()));
    let mut buffer = [0; 64];
    let mut received = Vec::new();
    let mut last = 0;
    while last + 1 < limit + 2_000 {
        let len = there.recv(&mut buffer).unwrap();
        last = u32::from_be_bytes(buffer[..len].try_into().unwrap());
        received.push(last);
    }
    sender.join().unwrap();
    assert!(received.is_sorted(), "in order");
    assert_eq!(received[..limit as usize], (0..limit).collect::<Vec<_>>(), "all that were held");
    let lost = dropped(&mut tun_west, DropReason::NotHeld) - 1;
    assert_eq!(received.len() as u64, u64::from(limit) + 2_000 - lost, "no other is lost");
    let prefix = Prefix::host(east.eid4.into());
    assert!(events(&mut tun_west).contains(&EncapEvent::FirstPacket { prefix }));
    let counters = tun_west.all_counters();
    assert_eq!((counters.released, counters.totals.held), (u64::from(limit), 0));
}

#[test]
fn what_is_not_allowed_is_dropped_and_counted() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let (mut tun_west, mut tun_east) = (west.open(), east.open());
    apply(&mut tun_west, &east.reached_by(east.eid4.into(), east.rloc6.into()));
    let (here, there) = (west.socket(west.eid4, 40001), east.socket(east.eid4, 40002));
    let to = (east.eid4, 40002);
    for _ in 0..10 {
        here.send_to(b"forbidden", to).unwrap();
    }
    until("all are dropped", || dropped(&mut tun_east, DropReason::NotAllowed) == 10);
    // Nor what is of another instance, encrypted, or no packet.
    apply(&mut tun_east, &east.allow());
    let raw = west.socket(west.rloc4, 0);
    let lisp = |header: [u8; 8], packet: &[u8]| {
        let payload = [&header[..], packet].concat();
        raw.send_to(&payload, (east.rloc4, 4341)).unwrap();
    };
    let mut packet = Vec::new();
    put_datagram((west.eid4, 9).into(), (east.eid4, 9).into(), b"inner", &mut packet);
    lisp([8, 0, 0, 0, 0, 0, 78, 0], &packet);
    lisp([0, 0, 0, 0, 0, 0, 0, 0], &packet);
    until("instance", || dropped(&mut tun_east, DropReason::Instance) == 2);
    lisp([9, 0, 0, 0, 0, 0, 77, 0], &packet);
    lisp([8, 0, 0, 0, 0, 0, 77, 0], &packet[..30]);
    raw.send_to(&[8, 0, 0], (east.rloc4, 4341)).unwrap();
    until("malformed", || dropped(&mut tun_east, DropReason::Malformed) == 3);
    here.send_to(b"allowed", to).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(there.recv(&mut buffer).unwrap(), 7, "the first that is delivered");
    assert_eq!(&buffer[..7], b"allowed");
    assert_eq!(tun_east.totals().unwrap().decapsulated.packets, 1);
}

#[test]
fn late_packets_go_on_to_where_the_node_is_and_are_told() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let (mut tun_west, mut tun_east) = (west.open(), east.open());
    // The node was at east; it is at west now. Its address is there, and its socket.
    apply(&mut tun_west, &west.allow());
    let pool = "10.1.0.0/16".parse().unwrap();
    apply(&mut tun_east, &[EncapChange::AllowDecap { prefix: pool }]);
    apply(&mut tun_east, &west.reached_by(west.eid4.into(), west.rloc6.into()));
    let there = west.socket(west.eid4, 40002);
    // A sender with an old mapping: an ITR of its own in the namespace of west.
    let sender = west.socket(west.rloc4, 0);
    sender.set_ttl(20).unwrap();
    let mut inner = Vec::new();
    let source = SocketAddr::from(([10, 9, 0, 1], 40001));
    let destination = SocketAddr::from((west.eid4, 40002));
    put_datagram(source, destination, b"late", &mut inner);
    let mut payload = vec![8, 0, 0, 0, 0, 0, 77, 0];
    payload.extend_from_slice(&inner);
    let capture = Capture::start(east);
    for _ in 0..3 {
        sender.send_to(&payload, (east.rloc4, 4341)).unwrap();
    }
    let mut buffer = [0; 64];
    for _ in 0..3 {
        let (len, from) = there.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"late"[..], source));
    }
    let rows = capture.decode(6, &["ip.ttl", "ipv6.hlim", "ip.dst"]);
    let on = |row: &&Vec<String>| !row[1].is_empty();
    assert_eq!(rows.iter().filter(on).count(), 3);
    for row in rows.iter().filter(on) {
        // RFC 9300 §5.3: the TTL of the old outer header minus 1, in both.
        assert_eq!(row[..2], ["19", "19"]);
    }
    let late = EncapEvent::Late {
        rloc: west.rloc4.into(),
        iid: IID,
        source: source.ip(),
        destination: destination.ip(),
    };
    let told = events(&mut tun_east).into_iter().filter(|event| *event == late).count();
    assert_eq!(told, 1, "once a second");
    assert_eq!(tun_east.totals().unwrap().late.packets, 3);
}

#[test]
fn a_native_entry_goes_by_the_routes_of_others() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let mut tun_west = west.open();
    let punt = |text: &str| EncapChange::SetEntry {
        prefix: text.parse().unwrap(),
        action: EntryAction::Punt,
    };
    apply(&mut tun_west, &[punt("10.0.0.0/8"), punt("fd00::/8")]);
    let route = |to: IpAddr| {
        let to = to.to_string();
        let output = Command::new("ip")
            .args(["-n", &west.namespace, "route", "get", &to])
            .output()
            .expect("ip is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split("dev ").nth(1).unwrap_or("none").split(' ').next().unwrap_or("").to_owned()
    };
    // A route of somebody else to the same place, which ours hides.
    ip(&west.namespace, &format!("route add 10.2.0.0/16 via {}", east.rloc4));
    ip(&west.namespace, &format!("route add fd02::/16 via {}", east.rloc6));
    for eid in [IpAddr::from(east.eid4), east.eid6.into()] {
        let prefix = Prefix::host(eid);
        assert_eq!(route(eid), "killick0");
        let native = EncapChange::SetEntry { prefix, action: EntryAction::Native };
        apply(&mut tun_west, &[native.clone(), native.clone()]);
        assert_eq!(route(eid), "u0");
        apply(&mut tun_west, &[EncapChange::RemoveEntry { prefix }]);
        assert_eq!(route(eid), "killick0");
        apply(&mut tun_west, &[native]);
        // Without the pool, what is inside keeps or loses its routes as it is itself.
        let away = Prefix::host(eid);
        let pool = if eid.is_ipv4() { "10.0.0.0/8" } else { "fd00::/8" };
        apply(&mut tun_west, &[EncapChange::RemoveEntry { prefix: pool.parse().unwrap() }]);
        assert_eq!(route(eid), "u0");
        apply(&mut tun_west, &[EncapChange::SetEntry { prefix: away, action: EntryAction::Drop }]);
        assert_eq!(route(eid), "killick0");
    }
    drop(tun_west);
    assert_eq!(route(east.eid4.into()), "u0", "nothing is left in the way");
    // What an earlier process has left is taken away.
    let mut tun_west = west.open();
    apply(&mut tun_west, &[punt("10.0.0.0/8")]);
    assert_eq!(route(east.eid4.into()), "killick0");
}

fn open_gpe(gateway: &Gateway) -> Beside<Gpe> {
    gateway.inside(|| {
        let settings = Settings { routes: None, ..Settings::new(gateway.config(Use::Punt)) };
        let tun = Tun::open(&settings).unwrap();
        let gpe = Gpe::open(gpe::Options {
            ipv4: Some(gateway.rloc4),
            ipv6: Some(gateway.rloc6),
            iid: IID,
            punt: Some(settings.device.clone()),
            ..gpe::Options::default()
        });
        Beside::new(gpe.unwrap(), tun).unwrap()
    })
}

/// In the namespace, where `apply` opens the sensor.
fn apply_gpe(gateway: &Gateway, plane: &mut Beside<Gpe>, changes: &[EncapChange]) {
    let mut results = Vec::new();
    gateway.inside(|| plane.apply(changes, &mut results));
    assert_eq!(results, vec![Ok(()); changes.len()], "{changes:?}");
}

/// LISP-GPE of the kernel: its first packets are held in user space, and leave by its tunnel. The
/// other end takes them as well as those of plain LISP.
#[test]
fn beside_the_kernel_first_packets_are_held_and_leave_by_its_tunnel() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let mut plane = open_gpe(west);
    let mut tun_east = east.open();
    apply(&mut tun_east, &east.allow());
    for pool in ["10.2.0.0/16", "fd02::/16"] {
        let (prefix, action) = (pool.parse().unwrap(), EntryAction::Punt);
        apply_gpe(west, &mut plane, &[EncapChange::SetEntry { prefix, action }]);
    }
    let mut number = 0_u32;
    for (from, to, rloc) in [
        (IpAddr::from(west.eid4), IpAddr::from(east.eid4), IpAddr::from(east.rloc6)),
        (west.eid6.into(), east.eid6.into(), east.rloc4.into()),
    ] {
        let (here, there) = (west.socket(from, 40001), east.socket(to, 40002));
        let mut send = |count: u32| {
            for _ in 0..count {
                here.send_to(&number.to_be_bytes(), (to, 40002)).unwrap();
                number += 1;
            }
        };
        send(100);
        until("all are held", || plane.totals().unwrap().held == 100);
        let mut told = Vec::new();
        while plane.handle_readable(&mut told).unwrap() {}
        assert_eq!(told, [EncapEvent::Miss { source: from, destination: to }]);
        apply_gpe(west, &mut plane, &east.reached_by(to, rloc));
        let mut buffer = [0; 64];
        let mut received = Vec::new();
        for round in 0..2 {
            for _ in 0..100 {
                let len = there.recv(&mut buffer).unwrap();
                received.push(u32::from_be_bytes(buffer[..len].try_into().unwrap()));
            }
            if round == 0 {
                send(100);
            }
        }
        assert_eq!(received, (received[0]..received[0] + 200).collect::<Vec<_>>());
    }
    assert_eq!(plane.tun().all_counters().released, 200);
    assert_eq!(tun_east.totals().unwrap().decapsulated.packets, 400);
}

#[test]
fn beside_the_kernel_late_packets_are_told() {
    let Some(lab) = Lab::new() else { return };
    let (west, east) = (&lab.west, &lab.east);
    let mut plane = open_gpe(east);
    let pool: Prefix = "10.2.0.0/16".parse().unwrap();
    apply_gpe(east, &mut plane, &[EncapChange::AllowDecap { prefix: pool }]);
    let mut packet = vec![8, 0, 0, 0, 0, 0, 77, 0];
    put_datagram((west.eid4, 9).into(), (east.eid4, 9).into(), b"late", &mut packet);
    let mut other = vec![8, 0, 0, 0, 0, 0, 77, 0];
    put_datagram((west.eid4, 9).into(), ([10, 2, 0, 9], 9).into(), b"here", &mut other);
    let sender = west.socket(west.rloc6, 0);
    let send = |packet: &[u8]| sender.send_to(packet, (east.rloc6, 4341)).unwrap();
    send(&packet);
    // It leaves.
    apply_gpe(east, &mut plane, &west.reached_by(east.eid4.into(), west.rloc4.into()));
    send(&other);
    send(&packet);
    let late = EncapEvent::Late {
        rloc: west.rloc6.into(),
        iid: IID,
        source: west.eid4.into(),
        destination: east.eid4.into(),
    };
    let mut told = Vec::new();
    until("it is told", || {
        plane.handle_readable(&mut told).unwrap();
        !told.is_empty()
    });
    assert_eq!(told, [late]);

    // A flood is sampled, and nothing of it is told once the node is back.
    for _ in 0..5_000 {
        send(&packet);
    }
    let begun = Clock::now();
    while begun.elapsed() < Duration::from_millis(300) {
        plane.handle_readable(&mut told).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let counters = plane.late_counters().unwrap();
    assert_eq!(told.len() as u64, counters.told);
    assert!((100..=600).contains(&told.len()), "{counters:?}");
    assert!(counters.left_out > 3_000, "{counters:?}");
    assert_eq!(counters.seen + counters.left_out, 5_001, "{counters:?}");
    let prefix = Prefix::host(east.eid4.into());
    apply_gpe(east, &mut plane, &[EncapChange::RemoveEntry { prefix }]);
    told.clear();
    send(&packet);
    std::thread::sleep(Duration::from_millis(50));
    plane.handle_readable(&mut told).unwrap();
    assert_eq!(told, []);
}
