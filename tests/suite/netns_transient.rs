//! The data plane of relocations with real kernels: a source, a core router, two anchors and a host
//! that has a link to each. No daemon: the test drives both anchors' data planes itself.
//!
//! ```text
//!                              /--- 10.0.1.1 [old] --- a0 ---\
//! [source] 10.0.9.1 --- [core]                                [host] 10.9.0.7, fd09::7
//!                              \--- 10.0.2.1 [new] --- a0 ---/
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};

use killick::dataplane::transient::{Config, TransientLimits, TransientTotals};
use killick::driver::transient::{Settings, Transient};
use killick::types::transient::{PathEnd, PathEnding, PathKey, TransientChange, TransientEvent};
use killick::types::{Locator, Prefix};

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
            let unique: std::collections::BTreeSet<u64> = got.iter().copied().collect();
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
    fn is_perfect(&self) -> bool {
        (self.lost, self.duplicated, self.reordered) == (0, 0, 0)
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
    assert!(reports.iter().all(Report::is_perfect), "{reports:?} {totals:?}");
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
