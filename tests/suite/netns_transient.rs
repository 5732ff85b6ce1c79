//! The data plane of relocations with real kernels: a source, a core router, two anchors and a host
//! that has a link to each. No daemon: the test drives both anchors' data planes itself.
//!
//! ```text
//!                              /--- 10.0.1.1 [old] --- a0 ---\
//! [source] 10.0.9.1 --- [core]                                [host] 10.9.0.7, fd09::7
//!                              \--- 10.0.2.1 [new] --- a0 ---/
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use killick::dataplane::filter::{Filter, State, UplinkHold};
use killick::dataplane::netlink::MARK;
use killick::dataplane::transient::{Config, TransientDrop, TransientLimits, TransientTotals};
use killick::driver::transient::{Settings, Transient};
use killick::types::transient::{PathEnd, PathEnding, PathKey, TransientChange, TransientEvent};
use killick::types::{Locator, Prefix};
use killick::wire::transient::{Body, Datagram};

const PORT: u16 = 4790;
const HOST4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 7);

struct Lab {
    number: String,
}

/// An anchor: its place in addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Anchor {
    Old = 1,
    New = 2,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
        }
    }

    fn end(self) -> PathEnd {
        let ipv4 = Some(Ipv4Addr::new(10, 0, self as u8, 1));
        let ipv6 = Some(Ipv6Addr::new(0xfd00, 0, 0, self as u16, 0, 0, 0, 1));
        PathEnd { locator: Locator { ipv4, ipv6 }, port: PORT }
    }
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
        let lab = Self { number: format!("{}-{number}", std::process::id()) };
        for node in NODES {
            if !run("ip", &["netns", "add", &lab.namespace(node)]) {
                return skip("this machine refuses network namespaces");
            }
            lab.inside(node, || {
                for path in [
                    "ipv4/ip_forward=1",
                    "ipv4/conf/all/rp_filter=0",
                    "ipv4/conf/default/rp_filter=0",
                    "ipv4/icmp_ratelimit=0",
                    "ipv6/conf/all/forwarding=1",
                    "ipv6/conf/default/forwarding=1",
                    "ipv6/conf/default/accept_dad=0",
                ] {
                    let (path, value) = path.split_once('=').unwrap();
                    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
                }
            });
            lab.ip(node, "link set lo up");
        }
        // From, its device, to, its device, number of the network.
        for (left, left_device, right, right_device, n) in [
            ("core", "s0", "source", "s0", 9),
            ("core", "o0", "old", "u0", 1),
            ("core", "n0", "new", "u0", 2),
            ("old", "a0", "host", "o0", 11),
            ("new", "a0", "host", "n0", 12),
        ] {
            let peer = lab.namespace(right);
            let link =
                format!("link add {left_device} type veth peer name {right_device} netns {peer}");
            lab.ip(left, &link);
            for (node, device, n, last) in
                [(left, left_device, n, 254), (right, right_device, n, 1)]
            {
                let text = format!(
                    "link set {device} up\naddr add 10.0.{n}.{last}/24 dev {device}\n\
                     addr add fd00:0:0:{n}::{last}/64 dev {device} nodad\n"
                );
                lab.batch(node, &text);
            }
        }
        lab.batch(
            "source",
            "route add default via 10.0.9.254\nroute add default via fd00:0:0:9::254\n",
        );
        for anchor in [Anchor::Old, Anchor::New] {
            let n = anchor as u8;
            let text = format!(
                "route add default via 10.0.{n}.254\nroute add default via fd00:0:0:{n}::254\n"
            );
            lab.batch(anchor.name(), &text);
        }
        lab.batch(
            "host",
            &format!("addr add {HOST4}/32 dev lo\naddr add {HOST6}/128 dev lo nodad\n"),
        );
        lab.deliver(Anchor::Old);
        lab.lead(Anchor::Old);
        Some(lab)
    }

    fn namespace(&self, node: &str) -> String {
        format!("kl-hold-{node}-{}", self.number)
    }

    /// Runs in a thread that lives in the namespace.
    fn inside<T: Send>(&self, node: &str, what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.namespace(node));
                what()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, node: &str, command: &str) {
        self.batch(node, &format!("{command}\n"));
    }

    fn batch(&self, node: &str, commands: &str) {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["-n", &self.namespace(node), "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip is there");
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{node}: {commands}");
    }

    fn show(&self, node: &str, what: &str) -> String {
        let mut arguments = vec!["-n".to_owned(), self.namespace(node)];
        arguments.extend(what.split(' ').map(str::to_owned));
        let output = Command::new("ip").args(&arguments).output().expect("ip is there");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Our rules, of both families.
    fn rules(&self, node: &str) -> usize {
        let of = |family: &str| {
            let rules = self.show(node, &format!("{family} rule"));
            rules.lines().filter(|line| line.starts_with("430")).count()
        };
        of("-4") + of("-6")
    }

    /// The host's routes at the anchor lead to its link.
    fn deliver(&self, anchor: Anchor) {
        let n = anchor as u8 + 10;
        let text = format!(
            "route replace {HOST4} via 10.0.{n}.1 dev a0\n\
             route replace {HOST6} via fd00:0:0:{n}::1 dev a0\n"
        );
        self.batch(anchor.name(), &text);
    }

    /// They lead back to the core, as a route of BGP would.
    fn let_go(&self, anchor: Anchor) {
        let n = anchor as u8;
        let text = format!(
            "route replace {HOST4} via 10.0.{n}.254 dev u0\n\
             route replace {HOST6} via fd00:0:0:{n}::254 dev u0\n"
        );
        self.batch(anchor.name(), &text);
    }

    /// The core sends the host's packets to this anchor.
    fn lead(&self, anchor: Anchor) {
        let n = anchor as u8;
        let text = format!(
            "route replace {HOST4} via 10.0.{n}.1\nroute replace {HOST6} via fd00:0:0:{n}::1\n"
        );
        self.batch("core", &text);
    }

    /// The host's link to the anchor carries nothing (any more).
    fn cut(&self, anchor: Anchor, cut: bool) {
        // Not down: that would take the anchor's routes with it.
        let device = if anchor == Anchor::Old { "o0" } else { "n0" };
        let text = if cut {
            format!("link set {device} arp off address 02:00:00:00:00:99\n")
        } else {
            format!("link set {device} arp on address 02:00:00:00:00:0{}\n", anchor as u8)
        };
        self.batch("host", &text);
    }

    fn settings(anchor: Anchor, limits: TransientLimits) -> Settings {
        let config = Config { limits, ..Config::new(anchor.end()) };
        Settings { uplink: None, ..Settings::new(config) }
    }

    fn open(&self, anchor: Anchor, limits: TransientLimits) -> Transient {
        let settings = Self::settings(anchor, limits);
        self.inside(anchor.name(), || Transient::open(&settings)).expect("device and sockets")
    }
}

const NODES: [&str; 5] = ["source", "core", "old", "new", "host"];

impl Drop for Lab {
    fn drop(&mut self) {
        for node in NODES {
            run("ip", &["netns", "del", &self.namespace(node)]);
        }
    }
}

fn enter(namespace: &str) {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
}

fn skip(why: &str) -> Option<Lab> {
    use std::io::Write;
    // Aloud: the test harness keeps what `eprintln!` says to itself when a test passes.
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_transient: {why}");
    None
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    output.status.success()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Clock::now() + Duration::from_secs(10);
    while !done() {
        assert!(Clock::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn set(socket: &UdpSocket, level: i32, name: i32, value: libc::c_int) {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let rc =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    assert_eq!(rc, 0, "setsockopt: {}", std::io::Error::last_os_error());
}

/// Numbers that a source sends to the host all the time, one flow of each family.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: [Arc<AtomicU64>; 2],
    got: [Arc<Mutex<Vec<u64>>>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(lab: &Lab, spacing: Duration, payload: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let got = [(); 2].map(|()| Arc::new(Mutex::new(Vec::new())));
        let addresses = [IpAddr::from(HOST4), IpAddr::from(HOST6)];
        let mut threads = Vec::new();
        for (ip, got) in addresses.into_iter().zip(&got) {
            let socket = lab.inside("host", || UdpSocket::bind((ip, 9000)).unwrap());
            set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20);
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let (stop, got) = (Arc::clone(&stop), Arc::clone(got));
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 9000];
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(len) => {
                            assert_eq!(len, payload, "no packet was cut");
                            let number = *buffer.first_chunk().unwrap();
                            got.lock().unwrap().push(u64::from_be_bytes(number));
                        }
                        Err(_) if stop.load(Ordering::Relaxed) => return,
                        Err(_) => {}
                    }
                }
            }));
        }
        let sockets = lab.inside("source", || {
            [
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(),
                UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap(),
            ]
        });
        let dont_fragment = libc::IP_PMTUDISC_DO;
        set(&sockets[0], libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, dont_fragment);
        set(&sockets[1], libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, dont_fragment);
        set(&sockets[1], libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1);
        let (stop_sending, counters) = (Arc::clone(&stop), sent.clone());
        threads.push(std::thread::spawn(move || {
            let mut packet = vec![0; payload];
            let mut next = Clock::now();
            let mut number = 0_u64;
            // SAFETY: plain integers.
            unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
            while !stop_sending.load(Ordering::Relaxed) {
                packet[..8].copy_from_slice(&number.to_be_bytes());
                for ((socket, ip), counter) in sockets.iter().zip(addresses).zip(&counters) {
                    socket.send_to(&packet, SocketAddr::new(ip, 9000)).expect("no smaller MTU");
                    counter.store(number + 1, Ordering::Relaxed);
                }
                number += 1;
                next += spacing;
                match next.checked_duration_since(Clock::now()) {
                    Some(wait) => std::thread::sleep(wait),
                    None => next = Clock::now(), // no burst to catch up
                }
            }
        }));
        Self { stop, sent, got, threads }
    }

    fn received(&self) -> [u64; 2] {
        [0, 1].map(|family: usize| self.got[family].lock().unwrap().len() as u64)
    }

    /// Stops; by family: sent, lost, duplicated, out of order.
    fn finish(mut self) -> [Report; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.threads.pop().expect("the last one sends");
        sender.join().unwrap();
        for thread in self.threads {
            thread.join().unwrap();
        }
        [0, 1].map(|family: usize| {
            let sent = self.sent[family].load(Ordering::Relaxed);
            let got = self.got[family].lock().unwrap();
            let unique: BTreeSet<u64> = got.iter().copied().collect();
            let mut highest = None;
            let mut reordered = 0;
            for &number in got.iter() {
                reordered += u64::from(highest > Some(number));
                highest = highest.max(Some(number));
            }
            let lost = sent - unique.len() as u64;
            Report { sent, lost, duplicated: (got.len() - unique.len()) as u64, reordered }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    sent: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
}

impl Report {
    /// Nothing lost, nothing twice. And nothing overtaken, but for a packet that was in our device
    /// at the very moment at which its route was taken away, which a busy machine makes long.
    fn is_good(&self) -> bool {
        (self.lost, self.duplicated) == (0, 0) && self.reordered * 5_000 <= self.sent
    }
}

fn prefixes() -> [Prefix; 2] {
    [Prefix::host(HOST4.into()), Prefix::host(HOST6.into())]
}

fn apply(plane: &mut Transient, change: impl Fn(Prefix) -> TransientChange) {
    for prefix in prefixes() {
        plane.apply(&change(prefix)).unwrap();
    }
}

fn ended(plane: &mut Transient, how: PathEnding) {
    let mut events = Vec::new();
    let mut endings = Vec::new();
    until(&format!("ended: {how:?}"), || {
        while plane.events(&mut events).unwrap() {}
        for event in events.drain(..) {
            if let TransientEvent::Ended { how, .. } = event {
                endings.push(how);
            }
        }
        endings.len() == 2
    });
    assert_eq!(endings, [how; 2]);
}

/// Fast, so that many moves fit into a test.
fn limits() -> TransientLimits {
    TransientLimits {
        quiet: Duration::from_millis(60),
        // The machine of a test may be busy with something else for that long.
        order: Duration::from_secs(2),
        ..TransientLimits::default()
    }
}

fn move_host(
    lab: &Lab,
    key: PathKey,
    [from, to]: [Anchor; 2],
    [plane_from, plane_to]: [&mut Transient; 2],
) {
    apply(plane_from, |prefix| TransientChange::Hold { prefix, key });
    // Away from the old link, and after a while at the new one.
    lab.cut(from, true);
    std::thread::sleep(Duration::from_millis(5));
    lab.cut(to, false);
    apply(plane_to, |prefix| TransientChange::Gate { prefix, key, from: from.end() });
    lab.deliver(to);
    apply(plane_from, |prefix| TransientChange::Forward { prefix, key, to: to.end() });
    lab.lead(to);
    lab.let_go(from);
    ended(plane_from, PathEnding::Drained);
    ended(plane_to, PathEnding::Drained);
}

fn relocate(moves: u32, spacing: Duration, payload: usize) {
    let Some(lab) = Lab::new() else { return };
    let mut old = lab.open(Anchor::Old, limits());
    let mut new = lab.open(Anchor::New, limits());
    lab.cut(Anchor::Old, false);
    let traffic = Traffic::start(&lab, spacing, payload);
    until("packets arrive", || traffic.received().iter().all(|&count| count > 100));
    for at in 0..moves {
        let key = PathKey(1000 + u128::from(at));
        if at % 2 == 0 {
            move_host(&lab, key, [Anchor::Old, Anchor::New], [&mut old, &mut new]);
        } else {
            move_host(&lab, key, [Anchor::New, Anchor::Old], [&mut new, &mut old]);
        }
    }
    let reports = traffic.finish();
    let totals = [old.totals(), new.totals()];
    println!("{moves} moves, {spacing:?}, {payload} octets: {reports:?}\n{totals:#?}");
    assert!(reports.iter().all(Report::is_good), "{reports:?} {totals:?}");
    let all = |of: fn(&TransientTotals) -> u64| totals.iter().map(of).sum::<u64>();
    assert!(all(|t| t.held) > 0 && all(|t| t.forwarded) > 0 && all(|t| t.markers_answered) > 0);
    assert_eq!(all(|t| t.forwarded), all(|t| t.received));
    assert_eq!(all(TransientTotals::all_dropped), 0);
    assert_eq!(all(|t| t.waiting + t.holds + t.forwards + t.gates), 0, "nothing is left");
}

#[test]
fn nothing_is_lost_doubled_or_reordered_over_thirty_moves() {
    relocate(30, Duration::from_micros(100), 100);
}

#[test]
fn packets_as_long_as_the_mtu_get_through_uncut() {
    // 1500 octets over IPv4, 1480 with IPv6's longer header left aside.
    relocate(6, Duration::from_millis(1), 1452);
}

/// Sends numbers from a node, and returns those that arrive elsewhere within a while.
struct Numbers {
    to: UdpSocket,
    from: UdpSocket,
    address: SocketAddr,
}

impl Numbers {
    fn new(lab: &Lab, [from, to]: [(&str, IpAddr); 2]) -> Self {
        let receiver = lab.inside(to.0, || UdpSocket::bind((to.1, 9100)).unwrap());
        set(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
        receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let sender = lab.inside(from.0, || UdpSocket::bind((from.1, 9101)).unwrap());
        Self { to: receiver, from: sender, address: SocketAddr::new(to.1, 9100) }
    }

    fn send(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.from.send_to(&number.to_be_bytes(), self.address).unwrap();
        }
    }

    /// Until nothing comes for a while.
    fn arrived(&self) -> Vec<u32> {
        let mut buffer = [0; 100];
        let mut numbers = Vec::new();
        while let Ok(len) = self.to.recv(&mut buffer) {
            numbers.push(u32::from_be_bytes(buffer[..len].try_into().expect("four octets")));
        }
        numbers
    }
}

const SOURCE4: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);

/// To the host, at the old anchor.
fn downlink(lab: &Lab) -> Numbers {
    lab.cut(Anchor::Old, false);
    Numbers::new(lab, [("source", SOURCE4.into()), ("host", HOST4.into())])
}

#[test]
fn what_is_full_is_counted_and_the_rest_arrives_in_order() {
    let Some(lab) = Lab::new() else { return };
    let numbers = downlink(&lab);
    let limits = TransientLimits { packets_per_prefix: 50, ..limits() };
    let mut plane = lab.open(Anchor::Old, limits);
    assert_eq!(lab.rules("old"), 0, "nothing is held");
    let (prefix, key) = (Prefix::host(HOST4.into()), PathKey(1));
    plane.apply(&TransientChange::Hold { prefix, key }).unwrap();
    assert_eq!(lab.rules("old"), 6);
    numbers.send(0..200);
    until("all are here", || plane.totals().waiting + plane.totals().all_dropped() == 200);
    assert_eq!(plane.totals().dropped(TransientDrop::PrefixFull), 150);
    assert!(numbers.arrived().is_empty());
    plane.apply(&TransientChange::Release { prefix }).unwrap();
    assert_eq!(numbers.arrived(), (0..50).collect::<Vec<u32>>());
    numbers.send(300..310);
    assert_eq!(numbers.arrived(), (300..310).collect::<Vec<u32>>());
    assert_eq!(lab.show("old", "route show table 110"), "");
    // The rules stay a while, since nodes come and go in groups.
    until("the rules are gone", || lab.rules("old") == 0);
}

#[test]
fn a_hold_that_nobody_ends_ends_itself() {
    let Some(lab) = Lab::new() else { return };
    let numbers = downlink(&lab);
    let limits = TransientLimits { hold: Duration::from_millis(300), ..limits() };
    let mut plane = lab.open(Anchor::Old, limits);
    apply(&mut plane, |prefix| TransientChange::Hold { prefix, key: PathKey(1) });
    numbers.send(0..20);
    ended(&mut plane, PathEnding::Silent);
    assert_eq!(numbers.arrived(), (0..20).collect::<Vec<u32>>());
}

#[test]
fn a_gate_takes_only_what_is_from_its_path() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = lab.open(Anchor::Old, limits());
    let numbers = downlink(&lab);
    let (prefix, key) = (Prefix::host(HOST4.into()), PathKey(0x1234_5678));
    plane.apply(&TransientChange::Gate { prefix, key, from: Anchor::New.end() }).unwrap();
    let inner = |number: u32, to: Ipv4Addr| {
        let mut octets = Vec::new();
        let from = SocketAddr::from((SOURCE4, 9101));
        let to = SocketAddr::from((to, 9100));
        killick::wire::encap::ip::put_datagram(from, to, &number.to_be_bytes(), &mut octets);
        octets
    };
    let send = |node: &str, key, number, to, sequence| {
        let mut octets = Vec::new();
        let packet = inner(number, to);
        Datagram { key, sequence, hops: 0, body: Body::Data(&packet) }.encode(&mut octets);
        let socket = lab.inside(node, || UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.send_to(&octets, (Ipv4Addr::new(10, 0, 1, 1), PORT)).unwrap();
    };
    send("new", PathKey(1), 1, HOST4, 0);
    send("source", key, 2, HOST4, 0);
    send("new", key, 3, SOURCE4, 0);
    send("new", key, 4, HOST4, 0);
    send("new", key, 5, HOST4, 0);
    until("all are here", || plane.totals().all_dropped() == 4);
    let totals = plane.totals();
    for why in [
        TransientDrop::UnknownKey,
        TransientDrop::WrongSource,
        TransientDrop::WrongPrefix,
        TransientDrop::Duplicate,
    ] {
        assert_eq!(totals.dropped(why), 1, "{why:?}");
    }
    assert_eq!(numbers.arrived(), [4]);
}

/// Not a test by itself: the process that the next one kills.
#[test]
fn a_process_that_holds() {
    let Ok(namespace) = std::env::var("KILLICK_HOLD_IN") else { return };
    enter(&namespace);
    let settings = Settings::new(Config::new(Anchor::Old.end()));
    let mut plane = Transient::open(&settings).unwrap();
    apply(&mut plane, |prefix| TransientChange::Hold { prefix, key: PathKey(1) });
    println!("holding");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_process_leaves_no_black_hole() {
    use std::io::BufRead;
    let Some(lab) = Lab::new() else { return };
    let numbers = downlink(&lab);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "netns_transient::a_process_that_holds", "--nocapture"])
        .env("KILLICK_HOLD_IN", lab.namespace("old"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("holding")), "it is ready");
    numbers.send(0..10);
    assert!(numbers.arrived().is_empty(), "they wait there");
    child.kill().unwrap();
    child.wait().unwrap();
    numbers.send(10..20);
    assert_eq!(numbers.arrived(), (10..20).collect::<Vec<u32>>());
    assert_eq!(lab.rules("old"), 10, "rules without routes, and those of marks");
    // Who comes after clears up, and goes on.
    let mut plane = lab.open(Anchor::Old, limits());
    assert_eq!(lab.rules("old"), 0);
    let (prefix, key) = (Prefix::host(HOST4.into()), PathKey(1));
    plane.apply(&TransientChange::Hold { prefix, key }).unwrap();
    numbers.send(20..30);
    assert!(numbers.arrived().is_empty());
    plane.apply(&TransientChange::Release { prefix }).unwrap();
    assert_eq!(numbers.arrived(), (20..30).collect::<Vec<u32>>());
}

#[test]
fn a_source_is_held_until_it_is_delivered_here() {
    let Some(lab) = Lab::new() else { return };
    lab.cut(Anchor::Old, false);
    lab.let_go(Anchor::Old);
    // The host sends by its link to the old anchor.
    lab.batch(
        "host",
        "route add default via 10.0.11.254\nroute add default via fd00:0:0:11::254\n",
    );
    let settings = Settings::new(Config { limits: limits(), ..Config::new(Anchor::Old.end()) });
    let mut plane = lab.inside("old", || Transient::open(&settings)).unwrap();
    let pools = ["10.9.0.0/24", "fd09::/64"].map(|pool| pool.parse().unwrap());
    let mut filter = Filter::default();
    filter.hold(Some(UplinkHold {
        mark: MARK,
        probe_mark: MARK + 1,
        pools: BTreeSet::from(pools),
    }));
    let access = BTreeSet::from(["a0".to_owned()]);
    assert_eq!(lab.inside("old", || filter.load(access).clone()), State::Loaded);

    let source6 = Ipv6Addr::new(0xfd00, 0, 0, 9, 0, 0, 0, 1);
    let ways: [[IpAddr; 2]; 2] = [[HOST4.into(), SOURCE4.into()], [HOST6.into(), source6.into()]];
    let ways = ways.map(|[from, to]| Numbers::new(&lab, [("host", from), ("source", to)]));
    for numbers in &ways {
        numbers.send(0..20);
    }
    // A source of no pool, and the anchor itself: as before.
    lab.ip("host", "addr add 10.8.0.1/32 dev lo");
    let stranger = lab.inside("host", || UdpSocket::bind("10.8.0.1:0").unwrap());
    stranger.send_to(b"stranger", (SOURCE4, 9100)).unwrap();
    let local = lab.inside("old", || UdpSocket::bind("10.0.1.1:9100").unwrap());
    local.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    ways[0].from.send_to(b"anchor", "10.0.1.1:9100").unwrap();
    until("all wait", || plane.totals().sources == 2 && plane.totals().held == 40);
    assert!(local.recv(&mut [0; 10]).is_err(), "nothing is delivered to the anchor itself");
    assert!(ways.iter().all(|numbers| numbers.arrived().is_empty()));

    apply(&mut plane, |prefix| TransientChange::Pass { prefix });
    lab.deliver(Anchor::Old);
    for numbers in &ways {
        numbers.send(20..30);
        assert_eq!(numbers.arrived(), (0..30).collect::<Vec<u32>>());
    }
    // The next one is refused, and one more is nobody's for a second.
    lab.let_go(Anchor::Old);
    std::thread::sleep(Duration::from_millis(600));
    for numbers in &ways {
        numbers.send(0..5);
    }
    until("all wait", || plane.totals().sources == 2);
    plane.apply(&TransientChange::Refuse { prefix: Prefix::host(HOST4.into()) }).unwrap();
    until("one is too old", || plane.totals().sources == 0);
    let totals = plane.totals();
    assert_eq!(totals.dropped(TransientDrop::SourceRefused), 5);
    assert_eq!(totals.dropped(TransientDrop::SourceAge), 5);
    // Without whoever holds them, they are dropped, and do not pass.
    drop(plane);
    for numbers in &ways {
        numbers.send(5..10);
        assert!(numbers.arrived().is_empty());
    }
}

#[test]
fn a_device_that_is_deleted_ends_the_data_plane_and_holds_nothing_up() {
    let Some(lab) = Lab::new() else { return };
    let numbers = downlink(&lab);
    let mut plane = lab.open(Anchor::Old, limits());
    apply(&mut plane, |prefix| TransientChange::Hold { prefix, key: PathKey(1) });
    lab.ip("old", "link del killick-hold");
    until("it is told", || plane.events(&mut Vec::new()).is_err());
    numbers.send(0..10);
    assert_eq!(numbers.arrived(), (0..10).collect::<Vec<u32>>());
}

/// The device's queue is smaller than a burst while the thread has no time: counted as well.
#[test]
fn what_the_device_has_no_room_for_is_counted() {
    let Some(lab) = Lab::new() else { return };
    let numbers = downlink(&lab);
    let mut plane = lab.open(Anchor::Old, limits());
    lab.ip("old", "link set killick-hold txqueuelen 10");
    let (prefix, key) = (Prefix::host(HOST4.into()), PathKey(1));
    plane.apply(&TransientChange::Hold { prefix, key }).unwrap();
    // Until it has happened: the thread may be quick.
    until("some were dropped", || {
        numbers.send(0..2000);
        lab.inside("old", || plane.totals()).device_dropped > 0
    });
}
