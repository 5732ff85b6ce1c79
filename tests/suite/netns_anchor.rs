//! The anchor for plain hosts against a real kernel: a host behind a veth pair, in a network
//! namespace of its own, that knows nothing of killick.
//!
//! ```text
//!  [host] h0 ---- acc0 [anchor]        both are namespaces of this test, removed at its end
//! ```

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::anchor::{self, Anchor, Pool};
use killick::dataplane::netlink::{AccessLink, Kernel, Options};
use killick::dataplane::{DataPlane, Hop, Kind, Op};
use killick::driver::packet::PacketSocket;
use killick::proto::nd::{LinkConfig, Output, Router};
use killick::types::seam::{IfIndex, MobilityEvent};
use killick::types::{Instant, MacAddr};
use killick::wire::nd::{Frame, link_local};

const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x00, 0x5e, 0x00, 0x01, 0x01]);
const HOST_MAC: &str = "02:00:00:00:00:07";

/// A pair of namespaces, named after the process and a number, deleted when dropped.
struct Lab {
    anchor: String,
    host: String,
}

impl Lab {
    /// `None`, said aloud, without the privileges.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments, no memory.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: network namespaces need root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("kl-{side}-{}-{number}", std::process::id());
        let lab = Self { anchor: name("a"), host: name("h") };
        for name in [&lab.anchor, &lab.host] {
            if !run("ip", &["netns", "add", name]) {
                eprintln!("SKIPPED: this machine refuses network namespaces");
                return None;
            }
            ip(name, "link set lo up");
        }
        ip(
            &lab.anchor,
            &format!("link add acc0 type veth peer name h0 address {HOST_MAC} netns {}", lab.host),
        );
        ip(&lab.host, "addr add 10.1.0.7/24 dev h0");
        ip(&lab.host, "addr add 2001:db8:1::7/64 dev h0 nodad");
        ip(&lab.host, "link set h0 up");
        ip(&lab.anchor, "link set acc0 up");
        ip(&lab.host, "route add default via 10.1.0.1");
        ip(&lab.host, "route add default via 2001:db8:1::1");
        Some(lab)
    }

    /// Runs the test in a thread that lives in the anchor's namespace.
    fn run(test: impl FnOnce(&Lab) + Send) {
        let Some(lab) = Lab::new() else { return };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&lab.anchor);
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let _context = runtime.enter();
                test(&lab);
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn host(&self, command: &str) -> bool {
        let mut arguments = vec!["netns", "exec", &self.host];
        arguments.extend(command.split(' '));
        run("ip", &arguments)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.anchor, &self.host] {
            run("ip", &["netns", "del", name]);
        }
    }
}

fn enter(namespace: &str) {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    // SAFETY: a descriptor of a namespace; affects only the calling thread.
    let rc = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(rc, 0, "setns: {}", std::io::Error::last_os_error());
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    output.status.success()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is there");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `ip` in a namespace; must succeed.
fn ip(namespace: &str, command: &str) {
    let mut arguments = vec!["-n", namespace];
    arguments.extend(command.split(' '));
    let output = Command::new("ip").args(&arguments).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
}

/// What `ip` shows in the anchor's namespace (in which the calling thread is).
fn show(command: &str) -> String {
    output("ip", &command.split(' ').collect::<Vec<_>>())
}

/// What the hall does with these rooms, reduced to one link.
struct Rig {
    started: Clock,
    kernel: Kernel,
    socket: PacketSocket,
    router: Router,
    anchor: Anchor,
    events: Vec<MobilityEvent>,
}

fn pool(text: &str) -> Pool {
    Pool::of_hosts(text.parse().unwrap())
}

impl Rig {
    fn new() -> Self {
        let mut kernel = Kernel::open(Options::default()).unwrap();
        let gateways: Vec<IpAddr> =
            ["10.1.0.1", "2001:db8:1::1"].iter().map(|a| a.parse().unwrap()).collect();
        let access = AccessLink {
            name: "acc0".to_owned(),
            mac: Some(GATEWAY_MAC),
            link_local: link_local(GATEWAY_MAC),
            gateways: gateways.clone(),
        };
        let link = kernel.set_up_access(&access).unwrap_or_else(|errors| panic!("{errors:?}"));
        let pools = vec![pool("10.1.0.0/24"), pool("2001:db8:1::/64")];
        let config = anchor::Config { pools: pools.clone(), ..anchor::Config::default() };
        let router = Router::new(
            LinkConfig {
                link,
                mac: GATEWAY_MAC,
                link_local: link_local(GATEWAY_MAC),
                gateways,
                kernel_answers: true,
                pools: pools.iter().map(|pool| pool.prefix).collect(),
                advertise: None,
            },
            1,
            Instant::ZERO,
        );
        let socket = PacketSocket::open(link).unwrap();
        Self {
            started: Clock::now(),
            kernel,
            socket,
            router,
            anchor: Anchor::new(config),
            events: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros() as u64)
    }

    fn link(&self) -> IfIndex {
        self.socket.link()
    }

    /// Works until `done`, or fails after five seconds.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Clock::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Clock::now() < deadline, "not within 5 s: {what}; events {:?}", self.events);
            self.work();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn work(&mut self) {
        let now = self.now();
        let mut buffer = [0; 2048];
        let mut heard = Vec::new();
        while let Some(received) = self.socket.try_receive(&mut buffer).unwrap() {
            if let Ok(frame) = Frame::decode(&buffer[..received.len], received.checksum) {
                let (link, anchor) = (self.link(), &self.anchor);
                let holder = |asker, ip| anchor.holder(link, asker, ip, None);
                self.router.handle_frame(&frame, holder, now, &mut heard);
            }
        }
        let mut out = Vec::new();
        for output in heard {
            match output {
                Output::Send { frame, .. } => self.socket.send(&frame).unwrap(),
                Output::Sighted(sighted) => self.anchor.handle_sighting(sighted, now, &mut out),
            }
        }
        for output in out {
            self.carry(output);
        }
    }

    fn carry(&mut self, output: anchor::Output) {
        match output {
            anchor::Output::Event(event) => {
                if let MobilityEvent::Attached { prefix, attachment: Some(at), .. } = &event {
                    let (ip, hop) = (prefix.addr(), Hop { link: at.link, gateway: None });
                    let ops = [
                        Op::SetNeighbor { link: at.link, ip, mac: at.mac },
                        Op::AddRoute { prefix: *prefix, kind: Kind::Delivery, hop },
                    ];
                    let mut results = Vec::new();
                    self.kernel.apply(&ops, &mut results);
                    assert_eq!(results, [Ok(()), Ok(())]);
                }
                self.events.push(event);
            }
            anchor::Output::HostsChanged(link) => {
                assert!(self.socket.set_attached(self.anchor.prefixes_on(link)).unwrap());
            }
            anchor::Output::Probe { mac, ip, .. } => {
                let mut out = Vec::new();
                self.router.probe(mac, ip, &mut out);
                for output in out {
                    if let Output::Send { frame, .. } = output {
                        self.socket.send(&frame).unwrap();
                    }
                }
            }
            anchor::Output::Noticed { .. } => {}
        }
    }
}

/// A host that asks for its gateway gets a host route and a neighbour entry, in both families.
#[test]
fn a_plain_host_attaches_by_arp_and_by_neighbor_discovery() {
    Lab::run(|lab| {
        let mut rig = Rig::new();
        lab.host("ping -c1 -W1 10.1.0.1");
        rig.until("attached by IPv4", |rig| !rig.events.is_empty());
        let routes = show("route show proto 75");
        assert!(routes.contains("10.1.0.7 dev acc0 scope link metric 10"), "{routes}");
        let neighbor = show("neigh show 10.1.0.7 dev acc0");
        assert!(neighbor.contains(HOST_MAC), "{neighbor}");
        assert!(lab.host("ping -c1 -W2 10.1.0.1"), "the gateway answers the attached host");

        lab.host("ping -c1 -W1 2001:db8:1::1");
        rig.until("attached by IPv6", |rig| rig.events.len() == 2);
        let routes = show("-6 route show proto 75");
        assert!(routes.contains("2001:db8:1::7 dev acc0 metric 10"), "{routes}");
        let neighbor = show("-6 neigh show 2001:db8:1::7 dev acc0");
        assert!(neighbor.contains(HOST_MAC), "{neighbor}");
        assert!(lab.host("ping -c1 -W2 2001:db8:1::1"));
    });
}
