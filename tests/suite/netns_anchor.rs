//! The anchor for plain hosts against a real kernel: a host behind a veth pair, in a network
//! namespace of its own, that knows nothing of killick.
//!
//! ```text
//!  [host] h0 ---- acc0 [anchor]        both are namespaces of this test, removed at its end
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant as Clock};

use killick::anchor::{self, Anchor, Pool};
use killick::dataplane::netlink::{AccessLink, Options};
use killick::dataplane::{Event, Forwarding, filter};
use killick::driver::packet::PacketSocket;
use killick::gateway::Egress;
use killick::proto::nd::{AdvertisedPrefix, Advertisement, LinkConfig, Output, Router};
use killick::types::seam::{
    Applied, Attachment, ForwardingChange, IfIndex, LeaveReason, MobilityEvent, PolicyChange,
    Sighting,
};
use killick::types::{Instant, MacAddr, Prefix, Revision};
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
            return skip("network namespaces need root");
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("kl-{side}-{}-{number}", std::process::id());
        let lab = Self { anchor: name("a"), host: name("h") };
        for name in [&lab.anchor, &lab.host] {
            if !run("ip", &["netns", "add", name]) {
                return skip("this machine refuses network namespaces");
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

    /// One UDP packet of the host. Its gateway is known to it already, as after a move.
    fn host_sends(&self, from: &str, to: &str) {
        let (from, to) = (format!("{from}:0"), format!("{to}:9"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                enter(&self.host);
                let socket = UdpSocket::bind(from).unwrap();
                socket.send_to(b"hello", to).unwrap();
            });
        });
    }

    fn host_knows_the_gateway(&self) {
        ip(&self.host, &format!("neigh replace 10.1.0.1 lladdr {GATEWAY_MAC} dev h0"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.anchor, &self.host] {
            run("ip", &["netns", "del", name]);
        }
    }
}

/// Aloud: the test harness keeps what `eprintln!` says to itself when a test passes.
fn skip(why: &str) -> Option<Lab> {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED netns_anchor: {why}");
    None
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
    forwarding: Forwarding,
    socket: Option<PacketSocket>,
    router: Option<Router>,
    anchor: Anchor,
    egress: Egress,
    advertise: Option<Advertisement>,
    revision: u64,
    events: Vec<MobilityEvent>,
    applied: Vec<Applied>,
    /// How nodes were sighted.
    heard: Vec<Sighting>,
    /// Sources of the data packets that the sensor has let through.
    packets: Vec<IpAddr>,
}

fn pool(text: &str) -> Pool {
    Pool::of_hosts(text.parse().unwrap())
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn gateways() -> Vec<IpAddr> {
    ["10.1.0.1", "2001:db8:1::1"].iter().map(|a| a.parse().unwrap()).collect()
}

fn access_link() -> AccessLink {
    AccessLink {
        name: "acc0".to_owned(),
        mac: Some(GATEWAY_MAC),
        link_local: link_local(GATEWAY_MAC),
        gateways: gateways(),
    }
}

impl Rig {
    /// Without access links yet.
    fn bare() -> Self {
        let config = anchor::Config {
            pools: vec![pool("10.1.0.0/24"), pool("2001:db8:1::/64")],
            detach_grace: Duration::from_millis(300),
            probe_interval: Duration::from_millis(100),
            ..anchor::Config::default()
        };
        Self {
            started: Clock::now(),
            forwarding: Forwarding::open(Options::default(), Instant::ZERO).unwrap(),
            socket: None,
            router: None,
            anchor: Anchor::new(config),
            egress: Egress::default(),
            advertise: None,
            revision: 0,
            events: Vec::new(),
            applied: Vec::new(),
            heard: Vec::new(),
            packets: Vec::new(),
        }
    }

    fn new(use_filter: bool) -> Self {
        let mut rig = Self::bare();
        rig.set_access(use_filter);
        rig
    }

    fn set_access(&mut self, use_filter: bool) {
        let mut events = Vec::new();
        self.forwarding.set_access(vec![access_link()], use_filter, self.now(), &mut events);
        self.take(events);
        let errors: Vec<_> = self.forwarding.access().flat_map(|a| a.errors.to_vec()).collect();
        assert_eq!(errors, Vec::<String>::new());
        if use_filter {
            assert_eq!(*self.forwarding.filter(), filter::State::Loaded);
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.started.elapsed().as_micros() as u64)
    }

    fn link(&self) -> IfIndex {
        self.socket.as_ref().expect("the access link is ready").link()
    }

    fn until(&mut self, what: &str, done: impl FnMut(&Self) -> bool) {
        self.until_within(what, Duration::from_secs(5), done);
    }

    /// Works until `done`, or fails.
    fn until_within(&mut self, what: &str, time: Duration, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Clock::now() + time;
        while !done(self) {
            assert!(
                Clock::now() < deadline,
                "not in time: {what}; events {:?}; applied {:?}",
                self.events,
                self.applied
            );
            self.work();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Works for a while: what should not happen has its chance.
    fn work_for(&mut self, time: Duration) {
        let deadline = Clock::now() + time;
        self.until_within("time passes", time * 2, |_| Clock::now() >= deadline);
    }

    fn work(&mut self) {
        let now = self.now();
        let mut heard = Vec::new();
        if let (Some(socket), Some(router)) = (&self.socket, &mut self.router) {
            let mut buffer = [0; 2048];
            // A link that is down or gone gives an error; the notification follows.
            while let Ok(Some(received)) = socket.try_receive(&mut buffer) {
                if let Ok(frame) = Frame::decode(&buffer[..received.len], received.checksum) {
                    let (link, anchor) = (socket.link(), &self.anchor);
                    let holder = |asker, ip| anchor.holder(link, asker, ip, None);
                    router.handle_frame(&frame, holder, now, &mut heard);
                }
            }
            router.handle_timeout(now, &mut heard);
        }
        let mut out = Vec::new();
        for output in heard {
            match output {
                Output::Send { frame, .. } => self.send(&frame),
                Output::Sighted(sighted) => {
                    self.heard.push(sighted.by);
                    if sighted.by == Sighting::Packet {
                        self.packets.push(sighted.ip);
                    }
                    self.anchor.handle_sighting(sighted, now, &mut out);
                }
            }
        }
        self.anchor.handle_timeout(now, &mut out);
        self.carry(out);
        let mut events = Vec::new();
        self.forwarding.handle_readable(now, &mut events).unwrap();
        self.forwarding.handle_timeout(now, &mut events);
        self.take(events);
    }

    fn send(&self, frame: &[u8]) {
        self.socket.as_ref().unwrap().send(frame).unwrap();
    }

    fn take(&mut self, events: Vec<Event>) {
        let now = self.now();
        let mut out = Vec::new();
        for event in events {
            match event {
                Event::Applied(applied) => self.applied.push(applied),
                Event::AccessReady { link, .. } => {
                    self.socket = Some(PacketSocket::open(link).unwrap());
                    let config = LinkConfig {
                        link,
                        mac: GATEWAY_MAC,
                        link_local: link_local(GATEWAY_MAC),
                        gateways: gateways(),
                        kernel_answers: true,
                        pools: vec![prefix("10.1.0.0/24"), prefix("2001:db8:1::/64")],
                        advertise: self.advertise.clone(),
                    };
                    self.router = Some(Router::new(config, 1, now));
                }
                Event::AccessLink { link, up } => {
                    self.anchor.handle_link(link, up, now, &mut out);
                }
                Event::AccessGone { .. } => (self.socket, self.router) = (None, None),
                Event::NeighborFailed { link, ip } => {
                    self.anchor.handle_neighbor_failed(link, ip, now, &mut out);
                }
            }
        }
        self.carry(out);
    }

    fn carry(&mut self, out: Vec<anchor::Output>) {
        for output in out {
            match output {
                anchor::Output::Event(event) => self.follow(event),
                anchor::Output::HostsChanged(link) => {
                    if let Some(socket) = &self.socket {
                        assert!(socket.set_attached(self.anchor.prefixes_on(link)).unwrap());
                    }
                }
                anchor::Output::Probe { mac, ip, .. } => {
                    let mut out = Vec::new();
                    if let Some(router) = &mut self.router {
                        router.probe(mac, ip, &mut out);
                    }
                    for output in out {
                        if let Output::Send { frame, .. } = output {
                            self.send(&frame);
                        }
                    }
                }
                anchor::Output::Noticed { .. } => {} // nobody here knows other anchors
            }
        }
    }

    /// Location and FE_IEC, as short as can be: attached here is delivered here.
    fn follow(&mut self, event: MobilityEvent) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let mut policies = Vec::new();
        match &event {
            MobilityEvent::Attached { prefix, attachment: Some(attachment), .. } => {
                let (prefix, attachment) = (*prefix, *attachment);
                policies.push(PolicyChange::Deliver { prefix, attachment, revision });
            }
            MobilityEvent::Left { .. } => {
                let all = self.egress.deliveries(None);
                policies.extend(all.map(|(prefix, _)| PolicyChange::Release { prefix, revision }));
            }
            MobilityEvent::Attached { .. }
            | MobilityEvent::Moving { .. }
            | MobilityEvent::Claimed { .. } => {}
        }
        self.events.push(event);
        let mut changes = Vec::new();
        for policy in &policies {
            self.egress.handle_policy(policy, &mut changes);
        }
        self.apply(&changes);
    }

    fn apply(&mut self, changes: &[ForwardingChange]) {
        let mut events = Vec::new();
        self.forwarding.apply(changes, self.now(), &mut events);
        self.take(events);
    }

    fn deliver(&mut self, text: &str, mac: u8) {
        self.revision += 1;
        let attachment = Attachment { link: self.link(), mac: MacAddr([2, 0, 0, 0, 0, mac]) };
        self.apply(&[ForwardingChange::SetDelivery {
            prefix: prefix(text),
            attachment,
            revision: Revision(self.revision),
        }]);
    }

    fn release(&mut self, text: &str) {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.apply(&[ForwardingChange::RemoveDelivery { prefix: prefix(text), revision }]);
    }

    fn delivers(&self, text: &str) -> bool {
        let prefix = prefix(text);
        self.applied.iter().any(|applied| applied.prefix == prefix && applied.result.is_ok())
    }

    fn attached_by(&self) -> BTreeMap<String, Sighting> {
        let attached = self.events.iter().filter_map(|event| match event {
            MobilityEvent::Attached { prefix, by, .. } => Some((prefix.to_string(), *by)),
            _ => None,
        });
        attached.collect()
    }

    fn left(&self) -> Vec<LeaveReason> {
        let left = self.events.iter().filter_map(|event| match event {
            MobilityEvent::Left { reason, .. } => Some(*reason),
            _ => None,
        });
        left.collect()
    }
}

/// A host that asks for its gateway gets a host route and a neighbour entry, in both families.
#[test]
fn a_plain_host_attaches_by_arp_and_by_neighbor_discovery() {
    Lab::run(|lab| {
        let mut rig = Rig::new(true);
        lab.host("ping -c1 -W1 10.1.0.1");
        rig.until("attached by IPv4", |rig| rig.delivers("10.1.0.7"));
        let routes = show("route show proto 107");
        assert!(routes.contains("10.1.0.7 dev acc0 scope link metric 10"), "{routes}");
        let neighbor = show("neigh show 10.1.0.7 dev acc0");
        assert!(neighbor.contains(HOST_MAC), "{neighbor}");
        assert!(lab.host("ping -c1 -W2 10.1.0.1"), "the gateway answers the attached host");

        lab.host("ping -c1 -W1 2001:db8:1::1");
        rig.until("attached by IPv6", |rig| rig.delivers("2001:db8:1::7"));
        let routes = show("-6 route show proto 107");
        assert!(routes.contains("2001:db8:1::7 dev acc0 metric 10"), "{routes}");
        let neighbor = show("-6 neigh show 2001:db8:1::7 dev acc0");
        assert!(neighbor.contains(HOST_MAC), "{neighbor}");
        assert!(lab.host("ping -c1 -W2 2001:db8:1::1"));

        let attached = rig.attached_by();
        assert_eq!(attached["10.1.0.7/32"], Sighting::Arp);
        assert_eq!(attached["2001:db8:1::7/128"], Sighting::NeighborSolicitation);
        assert_eq!(rig.anchor.len(), 1, "one node with two prefixes");
    });
}

/// A host that moves knows its gateway and asks nothing. Its first packet is dropped by the
/// filter and attaches it; the second passes. A source of no pool never does.
#[test]
fn the_first_packet_attaches_and_opens_the_filter_for_nothing_else() {
    Lab::run(|lab| {
        ip(&lab.anchor, "addr add 192.0.2.1/32 dev lo");
        ip(&lab.host, "addr add 203.0.113.5/32 dev h0");
        lab.host_knows_the_gateway();
        let mut rig = Rig::new(true);
        let service = UdpSocket::bind("192.0.2.1:9").unwrap();
        service.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut buffer = [0; 64];

        lab.host_sends("10.1.0.7", "192.0.2.1");
        assert!(service.recv(&mut buffer).is_err(), "closed before it is attached");
        // The host's own multicast memberships are reported from the same source.
        let dropped = filter::dropped_packets().unwrap();
        assert!(dropped >= 1);
        rig.until("attached", |rig| rig.delivers("10.1.0.7"));
        assert_eq!(rig.attached_by()["10.1.0.7/32"], Sighting::Packet);
        lab.host_sends("10.1.0.7", "192.0.2.1");
        assert!(service.recv(&mut buffer).is_ok(), "open now");

        lab.host_sends("203.0.113.5", "192.0.2.1");
        rig.work_for(Duration::from_millis(50));
        assert!(service.recv(&mut buffer).is_err(), "forged");
        assert!(filter::dropped_packets().unwrap() > dropped);
        assert!(!rig.delivers("203.0.113.5"));
        assert!(rig.anchor.counters().outside_pools >= 1);

        rig.release("10.1.0.7");
        lab.host_sends("10.1.0.7", "192.0.2.1");
        assert!(service.recv(&mut buffer).is_err(), "closed again");
        rig.forwarding.remove_filter().unwrap();
        assert!(!output("nft", &["list", "tables"]).contains("killick"));
    });
}

/// Packets of an attached host stay in the kernel; those of a newcomer come through.
#[test]
fn the_sensor_leaves_out_attached_hosts() {
    Lab::run(|lab| {
        ip(&lab.host, "addr add 10.1.0.8/24 dev h0");
        lab.host_knows_the_gateway();
        let mut rig = Rig::new(false);
        lab.host_sends("10.1.0.7", "192.0.2.1");
        rig.until("attached", |rig| rig.delivers("10.1.0.7"));
        // One may be in the socket since before the filter was changed.
        rig.work_for(Duration::from_millis(20));
        rig.packets.clear();
        for _ in 0..20 {
            lab.host_sends("10.1.0.7", "192.0.2.1");
        }
        rig.work_for(Duration::from_millis(100));
        assert!(!rig.packets.contains(&"10.1.0.7".parse().unwrap()), "{:?}", rig.packets);
        lab.host_sends("10.1.0.8", "192.0.2.1");
        rig.until("its second address", |rig| rig.delivers("10.1.0.8"));
    });
}

/// A router solicitation is answered at once, and notices a host that has no mobile address yet.
#[test]
fn a_router_solicitation_is_answered_and_the_host_configures_itself() {
    Lab::run(|lab| {
        let mut rig = Rig::bare();
        rig.advertise = Some(Advertisement {
            solicited_delay_max: Duration::ZERO,
            prefixes: vec![AdvertisedPrefix {
                prefix: prefix("2001:db8:1::/64"),
                on_link: false,
                autonomous: true,
                valid: Duration::from_secs(3600),
                preferred: Duration::from_secs(1800),
            }],
            ..Advertisement::default()
        });
        rig.set_access(false);
        rig.work_for(Duration::from_millis(100)); // the first advertisement goes unheard
        ip(&lab.host, "link set h0 down");
        ip(&lab.host, "link set h0 up");
        let slaac = "2001:db8:1::ff:fe00:7/128"; // from the prefix and HOST_MAC
        rig.until_within("SLAAC address attached", Duration::from_secs(12), |rig| {
            rig.attached_by().contains_key(slaac)
        });
        // An advertisement that happens to come first makes the solicitation needless.
        for _ in 0..3 {
            if rig.heard.contains(&Sighting::RouterSolicitation) {
                break;
            }
            ip(&lab.host, "link set h0 down");
            ip(&lab.host, "link set h0 up");
            rig.work_for(Duration::from_secs(4));
        }
        assert!(rig.heard.contains(&Sighting::RouterSolicitation), "{:?}", rig.heard);
        let routes = output("ip", &["-n", &lab.host, "-6", "route", "show", "default"]);
        let router = format!("via {}", link_local(GATEWAY_MAC));
        assert!(routes.contains(&router) && routes.contains("proto ra"), "{routes}");
        let on_link = output("ip", &["-n", &lab.host, "-6", "route", "show", "proto", "ra"]);
        assert!(!on_link.contains("2001:db8:1::/64"), "L=0 in the advertisement: {on_link}");
    });
}

/// Addresses of the pools that are elsewhere are answered for; the own one and the neighbours'
/// are not.
#[test]
fn the_proxy_answers_for_those_who_are_elsewhere() {
    Lab::run(|lab| {
        let mut rig = Rig::new(false);
        let mac = GATEWAY_MAC.to_string();
        for target in ["10.1.0.99", "2001:db8:1::99"] {
            std::thread::scope(|scope| {
                scope.spawn(|| lab.host(&format!("ping -c2 -W1 {target}")));
                rig.until("answered by the proxy", |_| {
                    let known = output("ip", &["-n", &lab.host, "neigh", "show", "dev", "h0"]);
                    known.lines().any(|line| line.starts_with(target) && line.contains(&mac))
                });
            });
        }
        // Duplicate address detection of its own address succeeds.
        ip(&lab.host, "addr add 2001:db8:1::8/64 dev h0");
        rig.until("attached in DAD", |rig| rig.attached_by().contains_key("2001:db8:1::8/128"));
        rig.work_for(Duration::from_millis(1500));
        let tentative = output("ip", &["-n", &lab.host, "-6", "addr", "show", "dev", "h0"]);
        assert!(!tentative.contains("dadfailed"), "{tentative}");
    });
}

#[test]
fn a_restart_adopts_what_is_there_and_prunes_the_rest_when_told() {
    Lab::run(|_| {
        let mut rig = Rig::new(false);
        for (text, mac) in [("10.1.0.7", 7), ("10.1.0.8", 8), ("2001:db8:1::7", 7)] {
            rig.deliver(text, mac);
        }
        assert_eq!(show("route show proto 107").lines().count(), 2);
        drop(rig);
        assert_eq!(show("route show proto 107").lines().count(), 2, "routes stay on exit");

        let mut rig = Rig::new(false);
        assert_eq!(rig.forwarding.reconciler().counters().adopted, 3);
        rig.deliver("10.1.0.7", 7);
        rig.deliver("2001:db8:1::7", 7);
        assert_eq!(rig.forwarding.reconciler().counters().added, 0, "adopted, not made anew");
        rig.work_for(Duration::from_millis(100));
        assert_eq!(show("route show proto 107").lines().count(), 2);
        rig.forwarding.prune();
        rig.until("pruned", |_| show("route show proto 107").lines().count() == 1);
        assert!(show("route show proto 107").contains("10.1.0.7 "));
        assert!(show("-6 route show proto 107").contains("2001:db8:1::7 "));
        assert_eq!(show("neigh show 10.1.0.8 dev acc0"), "", "its neighbour entry is gone, too");
    });
}

#[test]
fn routes_of_others_are_left_alone() {
    Lab::run(|lab| {
        let mut rig = Rig::new(false);
        ip(&lab.anchor, "route add 10.1.0.7/32 dev acc0 metric 100 proto static");
        ip(&lab.anchor, "route add 10.1.0.8/32 dev acc0 metric 10 proto static");
        ip(&lab.anchor, "route add 2001:db8:1::8/128 dev acc0 metric 10 proto static");
        for (text, mac) in [("10.1.0.7", 7), ("10.1.0.8", 8), ("2001:db8:1::8", 8)] {
            rig.deliver(text, mac);
        }
        let results: Vec<bool> = rig.applied.iter().map(|a| a.result.is_ok()).collect();
        assert_eq!(results, [true, false, false], "{:?}", rig.applied);
        let theirs = (show("route show proto static"), show("-6 route show proto static"));
        for text in ["10.1.0.7", "10.1.0.8", "2001:db8:1::8"] {
            rig.release(text);
        }
        rig.forwarding.prune();
        rig.work_for(Duration::from_millis(200));
        let after = (show("route show proto static"), show("-6 route show proto static"));
        assert_eq!(theirs, after);
        assert_eq!(after.0.lines().count(), 2);
        assert_eq!(show("route show proto 107"), "");
    });
}

/// Deleted by hand, or lost with the link: it comes back, and the entry says what it was.
#[test]
fn what_is_taken_away_comes_back() {
    Lab::run(|lab| {
        let mut rig = Rig::new(false);
        rig.deliver("10.1.0.7", 7);
        rig.deliver("2001:db8:1::7", 7);
        ip(&lab.anchor, "route del 10.1.0.7/32 proto 107");
        rig.until("repaired", |_| show("route show proto 107").contains("10.1.0.7 "));
        // What an ARP reply of an impostor would do.
        let stolen = "neigh replace 10.1.0.7 lladdr 02:00:00:00:00:66 dev acc0 nud reachable";
        ip(&lab.anchor, stolen);
        rig.until("its neighbour entry, too", |_| {
            show("neigh show 10.1.0.7 dev acc0").contains(HOST_MAC)
        });
        ip(&lab.anchor, "link set acc0 down");
        rig.work_for(Duration::from_millis(100));
        assert_eq!(show("route show proto 107"), "", "the kernel has dropped it without a word");
        ip(&lab.anchor, "link set acc0 up");
        rig.until("back after the link", |_| {
            show("route show proto 107").contains("10.1.0.7 ")
                && show("-6 route show proto 107").contains("2001:db8:1::7 ")
                && show("addr show dev acc0").contains("2001:db8:1::1/128")
        });
        // The sensor hears again, too.
        lab.host("ping -c1 -W1 2001:db8:1::1");
        rig.until("sighted", |rig| rig.attached_by().contains_key("2001:db8:1::7/128"));
    });
}

#[test]
fn a_node_whose_link_goes_down_has_left_after_the_grace() {
    Lab::run(|lab| {
        let mut rig = Rig::new(false);
        lab.host("ping -c1 -W1 10.1.0.1");
        rig.until("attached", |rig| rig.delivers("10.1.0.7"));
        let since = Clock::now();
        ip(&lab.host, "link set h0 down");
        rig.until("left", |rig| rig.left() == [LeaveReason::LinkDown]);
        assert!(since.elapsed() >= Duration::from_millis(250), "there is a grace");
        assert_eq!(show("route show proto 107"), "");
        assert!(rig.anchor.is_empty());

        ip(&lab.host, "link set h0 up");
        ip(&lab.host, "route add default via 10.1.0.1");
        lab.host("ping -c1 -W1 10.1.0.1");
        rig.until("attached again", |_| show("route show proto 107").contains("10.1.0.7 "));
    });
}

/// The kernel's neighbour discovery notices first; the anchor asks once more, then lets go.
#[test]
fn a_node_that_no_longer_answers_has_left() {
    Lab::run(|lab| {
        let mut rig = Rig::new(false);
        for (key, value) in [
            ("base_reachable_time_ms", "400"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "100"),
        ] {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/acc0/{key}"), value).unwrap();
        }
        lab.host("ping -c1 -W1 10.1.0.1");
        rig.until("attached", |rig| rig.delivers("10.1.0.7"));
        ip(&lab.host, "addr flush dev h0");
        // Somebody sends to it: otherwise neither we nor the kernel need to know.
        let sender = UdpSocket::bind("10.1.0.1:0").unwrap();
        let mut last = Clock::now();
        rig.until_within("left", Duration::from_secs(20), |rig| {
            if last.elapsed() > Duration::from_millis(50) {
                last = Clock::now();
                let _ = sender.send_to(b"anybody?", "10.1.0.7:9");
            }
            rig.left() == [LeaveReason::NeighborFailed]
        });
        assert_eq!(show("route show proto 107"), "");
    });
}

/// BGP routes follow the routes to their next hops, in both families, and IPv4 over IPv6.
#[test]
fn bgp_routes_are_resolved_through_the_kernels_other_routes() {
    Lab::run(|lab| {
        let a = &lab.anchor;
        ip(a, "link add core0 type veth peer name core1");
        ip(a, "link set core0 up");
        ip(a, "link set core1 up");
        ip(a, "addr add 198.51.100.0/31 dev core0");
        ip(a, "addr add 2001:db8:ffff::/127 dev core0 nodad");
        ip(a, "route add 192.0.2.2/32 via 198.51.100.1 proto static");
        ip(a, "route add 2001:db8:2::2/128 via 2001:db8:ffff::1 proto static");
        let mut rig = Rig::new(false);
        let set = |text, next_hop: &str| ForwardingChange::SetRoute {
            prefix: prefix(text),
            next_hop: next_hop.parse().unwrap(),
        };
        rig.apply(&[
            set("10.2.0.1", "192.0.2.2"),
            set("10.2.0.2", "2001:db8:2::2"),
            set("10.2.0.3", "192.0.2.77"),
            set("2001:db8:1::9", "2001:db8:2::2"),
        ]);
        let routes = show("route show proto 107");
        assert!(routes.contains("10.2.0.1 via 198.51.100.1 dev core0 metric 200"), "{routes}");
        assert!(routes.contains("10.2.0.2 via inet6 2001:db8:ffff::1 dev core0"), "{routes}");
        assert_eq!(routes.lines().count(), 2);
        let routes = show("-6 route show proto 107");
        assert!(routes.contains("2001:db8:1::9 via 2001:db8:ffff::1 dev core0"), "{routes}");
        let error = |rig: &Rig| {
            let view = rig.forwarding.reconciler().views(None).find(|v| v.error.is_some());
            view.map(|view| (view.prefix.to_string(), view.error.unwrap()))
        };
        let expected = ("10.2.0.3/32".to_owned(), "no route to next hop 192.0.2.77".to_owned());
        assert_eq!(error(&rig), Some(expected));

        ip(a, "route add 192.0.2.77/32 via 198.51.100.1 proto static");
        rig.until("resolved", |_| show("route show proto 107").contains("10.2.0.3 via"));
        assert_eq!(error(&rig), None);
        ip(a, "route del 192.0.2.2/32");
        rig.until("withdrawn", |_| !show("route show proto 107").contains("10.2.0.1 via"));
    });
}

/// An access interface that is not there at the start, or is made anew.
#[test]
fn an_interface_that_appears_later_is_set_up() {
    Lab::run(|lab| {
        ip(&lab.anchor, "link del acc0");
        let mut rig = Rig::bare();
        let mut events = Vec::new();
        rig.forwarding.set_access(vec![access_link()], false, rig.now(), &mut events);
        assert_eq!(events, []);
        let errors: Vec<_> = rig.forwarding.access().flat_map(|a| a.errors.to_vec()).collect();
        assert_eq!(errors, ["there is no interface acc0"]);
        for _ in 0..2 {
            ip(&lab.anchor, "link add acc0 type veth peer name h1");
            rig.until("ready and up", |rig| {
                rig.socket.is_some() && rig.forwarding.access().all(|a| a.errors.is_empty())
            });
            let addresses = show("addr show dev acc0");
            for part in ["10.1.0.1/32", "2001:db8:1::1/128", "fe80::5eff:fe00:101/64"] {
                assert!(addresses.contains(part), "{addresses}");
            }
            assert!(
                addresses.contains(&GATEWAY_MAC.to_string()) && !addresses.contains("tentative")
            );
            ip(&lab.anchor, "link del acc0");
            rig.until("gone", |rig| rig.socket.is_none());
        }
    });
}
