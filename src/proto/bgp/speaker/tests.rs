//! Speakers against each other over a simulated TCP that cuts octets where it likes, and one
//! speaker against octets made by hand.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::*;
use crate::proto::bgp::policy::{ExportPolicy, ImportPolicy, PrefixFilter, PrefixRule};
use crate::proto::bgp::rib::PeerKind;
use crate::proto::bgp::session::{GracefulRestart, SessionConfig, SessionState};
use crate::types::Prefix;
use crate::wire::bgp::{
    Attributes, MessageType, NextHop, Notification, begin, encode_keepalive, finish,
};

const ASN: u32 = 65001;

fn addr(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(n + 1).unwrap()))
}

fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn router_id(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(n + 1).unwrap())
}

fn session_config(n: usize) -> SessionConfig {
    SessionConfig::new(ASN, ASN, router_id(n))
}

fn open_to(me: usize, other: usize) -> NeighborConfig {
    let transport = Transport::new(SocketAddr::new(addr(other), 179));
    NeighborConfig {
        import: ImportPolicy::accept_all(),
        export: ExportPolicy::send_all(),
        ..NeighborConfig::new(session_config(me), transport)
    }
}

fn speaker(n: usize) -> Speaker {
    let config = SpeakerConfig {
        rib: RibConfig::new(ASN, router_id(n), n as u64),
        seed: n as u64,
        selection_deferral: None,
    };
    Speaker::new(config, Instant::ZERO)
}

enum Packet {
    Syn { from: SocketAddr, conn: ConnId },
    Accepted { conn: ConnId },
    Data { conn: ConnId, bytes: Vec<u8> },
    Fin { conn: ConnId },
}

/// A TCP connection: (speaker, its name for it) at both ends.
type Tcp = [(usize, ConnId); 2];

struct Net {
    speakers: Vec<Speaker>,
    now: Instant,
    wire: VecDeque<(Instant, usize, Packet)>,
    tcp: Vec<Tcp>,
    /// Octets are delivered in pieces of changing size up to this.
    piece: usize,
    random: u64,
    ups: usize,
    downs: Vec<String>,
    sent: usize,
}

impl Net {
    fn new(count: usize) -> Self {
        Self {
            speakers: (0..count).map(speaker).collect(),
            now: Instant::ZERO,
            wire: VecDeque::new(),
            tcp: Vec::new(),
            piece: 50,
            random: 1,
            ups: 0,
            downs: Vec::new(),
            sent: 0,
        }
    }

    /// 0 and 1 as each other's neighbour, up and in sync.
    fn pair() -> Self {
        let mut net = Self::new(2);
        net.peer(0, open_to(0, 1));
        net.peer(1, open_to(1, 0));
        net.run_s(30);
        assert!(net.is_up(0, 1) && net.is_up(1, 0));
        net
    }

    fn peer(&mut self, me: usize, config: NeighborConfig) -> PeerId {
        self.call(me, |s, now, out| s.add_neighbor(config, now, out)).unwrap()
    }

    fn id(&self, me: usize, other: usize) -> PeerId {
        self.speakers[me].find_neighbor(addr(other)).unwrap()
    }

    fn view(&self, me: usize, other: usize) -> NeighborView {
        self.speakers[me].neighbor_view(self.id(me, other), self.now).unwrap()
    }

    fn is_up(&self, me: usize, other: usize) -> bool {
        self.view(me, other).state == SessionState::Established
    }

    fn call<T>(
        &mut self,
        at: usize,
        f: impl FnOnce(&mut Speaker, Instant, &mut Vec<Output>) -> T,
    ) -> T {
        let mut out = Vec::new();
        let result = f(&mut self.speakers[at], self.now, &mut out);
        while self.speakers[at].has_pending() {
            self.speakers[at].flush(&mut out);
        }
        self.carry_out(at, out);
        result
    }

    fn other_end(&self, at: usize, conn: ConnId) -> Option<(usize, ConnId)> {
        self.tcp.iter().find_map(|[a, b]| match (*a == (at, conn), *b == (at, conn)) {
            (true, _) => Some(*b),
            (_, true) => Some(*a),
            (false, false) => None,
        })
    }

    fn put(&mut self, to: usize, packet: Packet) {
        self.wire.push_back((self.now + Duration::from_micros(100), to, packet));
    }

    fn carry_out(&mut self, at: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Connect { conn, transport } => {
                    let to = (0..self.speakers.len())
                        .find(|n| addr(*n) == transport.remote.ip())
                        .unwrap();
                    self.put(to, Packet::Syn { from: SocketAddr::new(addr(at), 40000), conn });
                }
                Output::Send { conn, bytes } => {
                    self.sent += bytes.len();
                    let Some((to, conn)) = self.other_end(at, conn) else { continue };
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1);
                        let len = (self.random >> 33) as usize % self.piece + 1;
                        let (head, tail) = rest.split_at(len.min(rest.len()));
                        self.put(to, Packet::Data { conn, bytes: head.to_vec() });
                        rest = tail;
                    }
                }
                Output::Close { conn } => {
                    if let Some((to, conn)) = self.other_end(at, conn) {
                        self.put(to, Packet::Fin { conn });
                    }
                }
                Output::ListenerKey { .. } => {}
                Output::SessionUp { .. } => self.ups += 1,
                Output::SessionDown { reason, .. } => self.downs.push(reason),
            }
        }
    }

    fn deliver(&mut self, at: usize, packet: Packet) {
        let local = SocketAddr::new(addr(at), 179);
        match packet {
            Packet::Syn { from, conn: theirs } => {
                let from_n = (0..self.speakers.len()).find(|n| addr(*n) == from.ip()).unwrap();
                // The connection must have both names before octets go over it.
                let mut out = Vec::new();
                let now = self.now;
                let accepted = self.speakers[at].handle_accepted(local, from, now, &mut out);
                match accepted {
                    Some((ours, _)) => {
                        self.tcp.push([(at, ours), (from_n, theirs)]);
                        self.put(from_n, Packet::Accepted { conn: theirs });
                    }
                    None => self.put(from_n, Packet::Fin { conn: theirs }),
                }
                self.carry_out(at, out);
            }
            Packet::Accepted { conn } => {
                let remote = self.other_end(at, conn).unwrap().0;
                let remote = SocketAddr::new(addr(remote), 179);
                self.call(at, |s, now, out| s.handle_connected(conn, local, remote, now, out));
            }
            Packet::Data { conn, bytes } => {
                self.call(at, |s, now, out| s.handle_bytes(conn, &bytes, now, out));
            }
            Packet::Fin { conn } => {
                self.call(at, |s, now, out| s.handle_closed(conn, now, out));
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timer = self.speakers.iter().map(Speaker::poll_timeout).min().unwrap();
            let packet = self.wire.front().map_or(Instant::FAR_FUTURE, |p| p.0);
            if timer.min(packet) > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(timer.min(packet));
            if packet <= timer {
                let (_, at, packet) = self.wire.pop_front().unwrap();
                self.deliver(at, packet);
            } else {
                for at in 0..self.speakers.len() {
                    self.call(at, |s, now, out| s.handle_timeout(now, out));
                }
            }
        }
    }

    fn run_s(&mut self, s: u64) {
        self.run(Duration::from_secs(s));
    }

    fn originate(&mut self, at: usize, prefix: Prefix) {
        let next_hop = NextHop::from(addr(at));
        let next_hop = match prefix.family() {
            Family::Ipv4 => next_hop,
            Family::Ipv6 => NextHop::from("2001:db8::1".parse::<IpAddr>().unwrap()),
        };
        self.call(at, |s, _, _| {
            assert!(s.rib_mut().originate(prefix, Attributes::local(next_hop)))
        });
    }

    fn has(&self, at: usize, prefix: Prefix) -> bool {
        self.speakers[at].rib().find_best(prefix).is_some()
    }

    /// TCP ends at both sides, without a word.
    fn cut(&mut self) {
        for [a, b] in std::mem::take(&mut self.tcp) {
            for (at, conn) in [a, b] {
                self.call(at, |s, now, out| s.handle_closed(conn, now, out));
            }
        }
        self.wire.clear();
    }

    /// The process at `at` dies and another takes its place.
    fn restart(&mut self, at: usize, fresh: Speaker) {
        let ends: Vec<_> = self
            .tcp
            .iter()
            .filter_map(|[a, b]| match (a.0 == at, b.0 == at) {
                (true, _) => Some(*b),
                (_, true) => Some(*a),
                (false, false) => None,
            })
            .collect();
        self.tcp.retain(|[a, b]| a.0 != at && b.0 != at);
        self.speakers[at] = fresh;
        for (other, conn) in ends {
            self.call(other, |s, now, out| s.handle_closed(conn, now, out));
        }
    }
}

/// Whatever pieces the octets come in, routes of both families arrive, End-of-RIB too.
#[test]
fn routes_go_from_one_to_the_other() {
    for piece in [1, 2, 18, 19, 20, 23, 4096, 100_000] {
        let mut net = Net::new(2);
        net.piece = piece;
        net.peer(0, open_to(0, 1));
        for n in 0..200_u32 {
            net.originate(0, Prefix::v4(0x0a01_0000 + n, 32).unwrap());
            net.originate(0, Prefix::v6((0x2001_0db8_u128 << 96) + u128::from(n), 128).unwrap());
        }
        net.peer(1, open_to(1, 0));
        net.run_s(30);
        let view = net.view(1, 0);
        assert_eq!(view.state, SessionState::Established, "piece {piece}");
        for f in &view.prefixes {
            assert_eq!(f.accepted, 200, "piece {piece} {}", f.family);
            assert!(f.end_of_rib_received && f.in_sync && !f.stale);
        }
        let sent = net.view(0, 1).counters.messages_out.update;
        assert_eq!(view.counters.messages_in.update, sent);
        // All fit into a message per family; the other two are End-of-RIB.
        assert_eq!(sent, 4, "packed");
        let session = view.session.unwrap();
        assert!(session.extended_messages && session.enhanced_route_refresh);
        assert_eq!(session.router_id, router_id(0));
        net.originate(0, p("10.9.9.9/32"));
        net.run(Duration::from_millis(100));
        assert!(net.has(1, p("10.9.9.9/32")), "news go at once");
        net.call(0, |s, _, _| s.rib_mut().withdraw_local(p("10.9.9.9/32")));
        net.run(Duration::from_millis(100));
        assert!(!net.has(1, p("10.9.9.9/32")));
        net.run_s(3600);
        assert!(net.downs.is_empty(), "{:?}", net.downs);
    }
}

/// Import is refused unless policy allows it. RFC 8212 §3.
#[test]
fn nothing_is_accepted_unless_configured() {
    let mut net = Net::new(2);
    net.peer(0, open_to(0, 1));
    let import = ImportPolicy::default();
    net.peer(1, NeighborConfig { import, ..open_to(1, 0) });
    net.originate(0, p("10.1.0.1/32"));
    net.originate(0, p("10.2.0.1/32"));
    net.run_s(30);
    assert!(net.is_up(1, 0));
    assert!(!net.has(1, p("10.1.0.1/32")));
    assert_eq!(net.view(1, 0).counters.prefixes_rejected, 2);

    // A new policy is applied by a route refresh: the session stays.
    let allow = |text| ImportPolicy {
        filter: PrefixFilter::Permit(vec![PrefixRule::or_longer(p(text))]),
        local_pref: None,
    };
    let config = NeighborConfig { import: allow("10.1.0.0/16"), ..open_to(1, 0) };
    let peer = net.id(1, 0);
    net.call(1, |s, now, out| s.update_neighbor(peer, config, now, out)).unwrap();
    net.run_s(1);
    assert!(net.has(1, p("10.1.0.1/32")) && !net.has(1, p("10.2.0.1/32")));
    let config = NeighborConfig { import: allow("10.2.0.0/16"), ..open_to(1, 0) };
    net.call(1, |s, now, out| s.update_neighbor(peer, config, now, out)).unwrap();
    net.run_s(1);
    assert!(!net.has(1, p("10.1.0.1/32")) && net.has(1, p("10.2.0.1/32")));
    assert_eq!(net.view(1, 0).counters.messages_out.route_refresh & 1, 0, "both families, twice");
    assert!(net.downs.is_empty());

    // What the neighbour withdraws while it repeats everything is gone, too.
    net.call(0, |s, _, _| s.rib_mut().withdraw_local(p("10.2.0.1/32")));
    net.call(1, |s, _, out| s.request_refresh(peer, out)).unwrap();
    net.run_s(1);
    assert_eq!(net.speakers[1].rib().peer_paths(peer, Family::Ipv4), 0);
}

/// A change that needs another OPEN makes another session; none at all disturbs nothing.
#[test]
fn a_new_configuration_disturbs_as_little_as_it_can() {
    let mut net = Net::pair();
    let peer = net.id(1, 0);
    net.call(1, |s, now, out| s.update_neighbor(peer, open_to(1, 0), now, out)).unwrap();
    let config = NeighborConfig { description: "reflector".into(), ..open_to(1, 0) };
    let sent = net.sent;
    net.call(1, |s, now, out| s.update_neighbor(peer, config.clone(), now, out)).unwrap();
    assert_eq!(net.sent, sent, "a description is nobody else's business");
    let session = SessionConfig { hold_time_s: 30, ..session_config(1) };
    let config = NeighborConfig { session, ..config };
    net.call(1, |s, now, out| s.update_neighbor(peer, config, now, out)).unwrap();
    assert!(!net.is_up(1, 0));
    net.run_s(60);
    assert_eq!(net.view(0, 1).session.unwrap().hold_time_s, 30);
    let mut taken = open_to(1, 1);
    taken.transport.remote = SocketAddr::new(addr(0), 1179);
    let again = net.call(1, |s, now, out| s.add_neighbor(taken, now, out));
    assert_eq!(again, Err(NeighborError::AddressTaken));
}

/// RFC 4271 §6.7, RFC 4486 §4.
#[test]
fn too_many_prefixes_end_the_session() {
    let mut net = Net::new(2);
    net.peer(0, open_to(0, 1));
    net.peer(1, NeighborConfig { max_prefixes_v4: Some(3), ..open_to(1, 0) });
    for n in 1..=3 {
        net.originate(0, Prefix::v4(n, 32).unwrap());
    }
    net.run_s(30);
    assert!(net.is_up(1, 0), "the limit itself is fine");
    net.originate(0, Prefix::v4(4, 32).unwrap());
    net.run_s(30);
    let view = net.view(1, 0);
    assert!(view.stopped);
    assert_eq!(view.last_error.as_deref(), Some("more than 3 ipv4 prefixes"));
    assert_eq!(view.counters.max_prefix_teardowns, 1);
    assert_eq!(view.prefixes[0].accepted, 0, "its routes are gone");
    assert!(view.counters.refused_connections > 0, "it tries in vain");
    net.call(0, |s, _, _| s.rib_mut().withdraw_local(Prefix::v4(4, 32).unwrap()));
    let peer = net.id(1, 0);
    net.call(1, |s, now, out| s.start(peer, now, out)).unwrap();
    net.run_s(200);
    assert!(net.is_up(1, 0));
}

/// The NOTIFICATION that ends what a call sends, decoded.
fn notification(out: &[Output]) -> Notification {
    let sent = out.iter().filter_map(|o| match o {
        Output::Send { bytes, .. } => Some(bytes.clone()),
        _ => None,
    });
    let octets: Vec<u8> = sent.flatten().collect();
    assert_eq!(octets[18], MessageType::Notification as u8);
    Notification::decode(&octets[19..]).unwrap()
}

/// RFC 5882 §4.2, RFC 9384: at once, with its own subcode, and no route is kept; then it is tried
/// again.
#[test]
fn a_failed_path_ends_the_session_and_takes_its_routes() {
    let mut net = Net::new(2);
    for (me, other) in [(0, 1), (1, 0)] {
        let mut config = open_to(me, other);
        config.session.graceful_restart = Some(GracefulRestart::default());
        net.peer(me, config);
    }
    net.originate(0, p("10.1.0.1/32"));
    net.run_s(30);
    assert_eq!(net.view(1, 0).prefixes[0].accepted, 1);
    let (peer, now) = (net.id(1, 0), net.now);
    let mut out = Vec::new();
    net.speakers[1].handle_path(peer, false, now, &mut out);
    // Both offer RFC 8538, by which any other NOTIFICATION would keep the routes.
    let hard = notification(&out);
    assert!(hard.is_hard_reset());
    assert_eq!(hard.data, [6, 10]);
    net.carry_out(1, out);
    let view = net.view(1, 0);
    assert_eq!(view.last_error.as_deref(), Some("the path is down (BFD)"));
    assert_eq!((view.counters.path_downs, view.counters.flaps), (1, 1));
    assert_eq!(view.prefixes[0].accepted, 0);
    // Once more says nothing: nothing is established.
    let mut out = Vec::new();
    net.speakers[1].handle_path(peer, false, now, &mut out);
    assert!(out.is_empty());
    assert_eq!(net.view(1, 0).counters.path_downs, 1);
    net.run_s(30);
    assert!(net.is_up(1, 0), "without BFD, as RFC 5882 §4.1 allows");
}

#[test]
fn without_the_n_bit_the_notification_is_bfd_down_itself() {
    let mut net = Net::new(2);
    let mut config = open_to(0, 1);
    config.session.graceful_restart = None;
    net.peer(0, config);
    net.peer(1, open_to(1, 0));
    net.run_s(30);
    let (peer, now) = (net.id(1, 0), net.now);
    let mut out = Vec::new();
    net.speakers[1].handle_path(peer, false, now, &mut out);
    assert_eq!(notification(&out), Notification::new(6, 10));
}

#[test]
fn a_strict_neighbour_is_up_only_while_its_path_is() {
    let mut net = Net::new(2);
    net.peer(0, open_to(0, 1));
    net.peer(1, NeighborConfig { strict_path: true, ..open_to(1, 0) });
    net.run_s(60);
    let view = net.view(1, 0);
    assert!(view.state == SessionState::Idle && !view.stopped);
    assert_eq!(view.last_error.as_deref(), Some("waits for the path to be up (BFD)"));
    let peer = net.id(1, 0);
    net.call(1, |s, now, out| s.handle_path(peer, true, now, out));
    net.run_s(30);
    assert!(net.is_up(1, 0));
    net.call(1, |s, now, out| s.handle_path(peer, false, now, out));
    net.run_s(60);
    assert_eq!(net.view(1, 0).state, SessionState::Idle);
    net.call(1, |s, now, out| s.handle_path(peer, true, now, out));
    net.run_s(60);
    assert!(net.is_up(1, 0));
    // What an operator has shut down stays so, whatever the path does.
    net.call(1, |s, now, out| s.shutdown(peer, "", now, out)).unwrap();
    net.call(1, |s, now, out| s.handle_path(peer, false, now, out));
    net.call(1, |s, now, out| s.handle_path(peer, true, now, out));
    net.run_s(60);
    assert!(net.view(1, 0).stopped);
}

/// RFC 4724 §4.2: routes stay while the neighbour is away, and those that it does not repeat go
/// when it has said everything.
#[test]
fn routes_survive_a_restart_of_the_neighbour() {
    let mut net = Net::pair();
    net.originate(0, p("10.1.0.1/32"));
    net.originate(0, p("10.1.0.2/32"));
    net.run_s(1);
    let mut fresh = speaker(0);
    fresh.rib_mut().originate(p("10.1.0.2/32"), Attributes::local(NextHop::from(addr(0))));
    net.restart(0, fresh);
    assert!(!net.is_up(1, 0));
    assert!(net.view(1, 0).prefixes[0].stale);
    net.run_s(5);
    assert!(net.has(1, p("10.1.0.1/32")) && net.has(1, p("10.1.0.2/32")), "kept meanwhile");
    let mut config = open_to(0, 1);
    config.session.graceful_restart = Some(GracefulRestart {
        restarting: true,
        forwarding_preserved: true,
        ..GracefulRestart::default()
    });
    net.peer(0, config);
    net.run_s(30);
    assert!(net.is_up(1, 0));
    assert!(!net.has(1, p("10.1.0.1/32")), "not repeated");
    assert!(net.has(1, p("10.1.0.2/32")));
    assert!(!net.view(1, 0).prefixes[0].stale);

    // And when it does not return, they go after its restart time.
    net.restart(0, speaker(0));
    net.run_s(119);
    assert!(net.has(1, p("10.1.0.2/32")));
    net.run_s(2);
    assert!(!net.has(1, p("10.1.0.2/32")));
}

/// RFC 4724 §4.1: after our own restart nobody is told anything before all have been heard.
#[test]
fn a_restarting_reflector_listens_before_it_speaks() {
    let deferring = || {
        let config = SpeakerConfig {
            rib: RibConfig::new(ASN, router_id(2), 2),
            seed: 2,
            selection_deferral: Some(Duration::from_secs(100)),
        };
        let mut s = Speaker::new(config, Instant::ZERO);
        s.rib_mut().originate(p("10.3.0.0/16"), Attributes::local(NextHop::from(addr(2))));
        s
    };
    let mut net = Net::new(3);
    net.speakers[2] = deferring();
    for n in 0..2 {
        net.peer(2, NeighborConfig { kind: PeerKind::Client, ..open_to(2, n) });
    }
    net.originate(0, p("10.1.0.1/32"));
    net.peer(0, open_to(0, 2));
    net.run_s(30);
    assert!(net.has(2, p("10.1.0.1/32")));
    assert!(net.is_up(0, 2) && !net.has(0, p("10.3.0.0/16")), "1 has not spoken yet");
    net.peer(1, open_to(1, 2));
    net.run_s(40);
    assert!(net.has(0, p("10.3.0.0/16")));
    assert!(net.has(1, p("10.1.0.1/32")), "reflected");

    // A neighbour that never comes delays it only so long.
    let mut net = Net::new(3);
    net.speakers[2] = deferring();
    for n in 0..2 {
        net.peer(2, open_to(2, n));
    }
    net.peer(0, open_to(0, 2));
    net.run_s(99);
    assert!(!net.has(0, p("10.3.0.0/16")));
    net.run_s(2);
    assert!(net.has(0, p("10.3.0.0/16")));
}

/// Back-pressure: a congested neighbour is given nothing, and then the newest state only.
#[test]
fn congestion_holds_back_and_coalesces() {
    let mut net = Net::pair();
    let peer = net.id(0, 1);
    let conn = net.speakers[0].neighbors[&peer].up.as_ref().unwrap().conn;
    net.call(0, |s, now, _| s.handle_congested(conn, true, now));
    assert!(net.view(0, 1).session.unwrap().congested);
    let before = net.view(0, 1).counters.messages_out.update;
    for n in 0..100 {
        net.originate(0, p("10.1.0.1/32"));
        net.call(0, |s, _, _| s.rib_mut().withdraw_local(p("10.1.0.1/32")));
        net.originate(0, Prefix::v4(0x0a02_0000 + n, 32).unwrap());
    }
    net.run_s(1);
    assert_eq!(net.view(0, 1).counters.messages_out.update, before);
    net.call(0, |s, now, _| s.handle_congested(conn, false, now));
    net.run_s(1);
    let sent = net.view(0, 1).counters.messages_out.update - before;
    assert!((1..=3).contains(&sent), "{sent}");
    assert!(!net.has(1, p("10.1.0.1/32")) && net.has(1, p("10.2.0.99/32")));
}

/// RFC 9003: what the operator says arrives at the other one.
#[test]
fn shutdown_and_reset() {
    let mut net = Net::pair();
    let peer = net.id(0, 1);
    net.call(0, |s, now, out| s.shutdown(peer, "moving house", now, out)).unwrap();
    net.run_s(1);
    let view = net.view(1, 0);
    assert!(view.last_down.unwrap().contains("moving house"));
    assert_eq!(view.counters.flaps, 1);
    assert!(net.view(0, 1).stopped);
    net.call(0, |s, now, out| s.start(peer, now, out)).unwrap();
    net.run_s(60);
    assert!(net.is_up(0, 1));
    net.call(0, |s, now, out| s.reset(peer, "", now, out)).unwrap();
    assert!(!net.is_up(0, 1));
    net.run_s(60);
    assert!(net.is_up(0, 1));
    net.call(0, |s, now, out| s.remove_neighbor(peer, now, out)).unwrap();
    assert!(net.speakers[0].find_neighbor(addr(1)).is_none());
    net.run_s(60);
    assert!(!net.is_up(1, 0));
    assert!(net.speakers[0].counters().unknown_connections > 0, "it comes back in vain");
    let gone = net.call(0, |s, now, out| s.reset(peer, "", now, out));
    assert_eq!(gone, Err(NeighborError::Unknown));
}

/// Leaving for a restart says nothing; leaving for good says so.
#[test]
fn the_end_of_the_process() {
    for graceful in [false, true] {
        let mut net = Net::pair();
        net.originate(0, p("10.1.0.1/32"));
        net.run_s(1);
        net.call(0, |s, now, out| s.shutdown_all(graceful, now, out));
        net.run(Duration::from_millis(10));
        assert!(!net.is_up(1, 0));
        assert_eq!(net.has(1, p("10.1.0.1/32")), graceful);
    }
}

/// One speaker, established with a neighbour that is us, by hand.
fn by_hand(config: NeighborConfig) -> (Speaker, ConnId, Vec<Output>) {
    let mut s = speaker(0);
    let mut out = Vec::new();
    let remote = SocketAddr::new(config.transport.remote.ip(), 40000);
    s.add_neighbor(config, Instant::ZERO, &mut out).unwrap();
    let local = SocketAddr::new(addr(0), 179);
    let (conn, _) = s.handle_accepted(local, remote, Instant::ZERO, &mut out).unwrap();
    let mut bytes = Vec::new();
    let peer = session_config(1);
    let capabilities = vec![
        Capability::unicast(Family::Ipv4),
        Capability::unicast(Family::Ipv6),
        Capability::RouteRefresh,
    ];
    crate::wire::bgp::Open::new(peer.local_as, 90, peer.router_id, capabilities).encode(&mut bytes);
    encode_keepalive(&mut bytes);
    s.handle_bytes(conn, &bytes, Instant::ZERO, &mut out);
    assert_eq!(s.neighbor_views(Instant::ZERO)[0].state, SessionState::Established);
    out.clear();
    (s, conn, out)
}

fn message(kind: MessageType, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = begin(kind, &mut bytes);
    bytes.extend_from_slice(body);
    finish(start, &mut bytes);
    bytes
}

/// ORIGIN, AS_PATH (empty), NEXT_HOP, LOCAL_PREF and one prefix, by RFC 4271 §4.3.
fn good_update(last: u8) -> Vec<u8> {
    let attributes = [
        &[0x40, 1, 1, 0][..],
        &[0x40, 2, 0],
        &[0x40, 3, 4, 10, 0, 0, 9],
        &[0x40, 5, 4, 0, 0, 0, 100],
    ]
    .concat();
    let mut body = vec![0, 0, 0, attributes.len() as u8];
    body.extend(attributes);
    body.extend([32, 10, 7, 0, last]);
    message(MessageType::Update, &body)
}

fn notification_in(out: &[Output]) -> Option<Notification> {
    out.iter().find_map(|o| match o {
        Output::Send { bytes, .. } if bytes[18] == MessageType::Notification as u8 => {
            Some(Notification::decode(&bytes[19..]).unwrap())
        }
        _ => None,
    })
}

/// RFC 7606 §2: each reaction has its counter.
#[test]
fn bad_updates_are_counted_by_what_becomes_of_them() {
    let (mut s, conn, mut out) = by_hand(open_to(0, 1));
    let now = Instant::from_micros(1);
    s.handle_bytes(conn, &good_update(1), now, &mut out);
    assert!(s.rib().find_best(p("10.7.0.1/32")).is_some());
    // ORIGIN 9, §7.1: treat as withdraw.
    let mut bad = good_update(1);
    bad[19 + 4 + 3] = 9;
    s.handle_bytes(conn, &bad, now, &mut out);
    assert!(s.rib().find_best(p("10.7.0.1/32")).is_none());
    let view = &s.neighbor_views(now)[0];
    assert_eq!(view.counters.updates_treated_as_withdraw, 1);
    assert!(view.last_error.as_deref().unwrap().contains("attribute 1"), "{:?}", view.last_error);
    assert_eq!(view.state, SessionState::Established);
    assert!(out.is_empty());
    // §3 (j): a withdrawn length beyond the message cannot be repaired.
    s.handle_bytes(conn, &message(MessageType::Update, &[0, 9, 0, 0]), now, &mut out);
    assert_eq!(notification_in(&out).unwrap().code, 3);
    let view = &s.neighbor_views(now)[0];
    assert_eq!(view.counters.updates_session_reset, 1);
    assert_eq!(view.counters.flaps, 1);
    assert_ne!(view.state, SessionState::Established);
    // What follows on the dead connection is not even looked at.
    out.clear();
    s.handle_bytes(conn, &good_update(2), now, &mut out);
    assert!(out.is_empty() && s.rib().find_best(p("10.7.0.2/32")).is_none());
}

/// RFC 4271 §6.1: octets that are not BGP, in one piece and one by one.
#[test]
fn garbage_is_answered_and_ends_the_connection() {
    let mut long = good_update(1);
    long[16..18].copy_from_slice(&5000_u16.to_be_bytes());
    let mut unknown = good_update(1);
    unknown[18] = 77;
    let mut short = good_update(1);
    short[16..18].copy_from_slice(&18_u16.to_be_bytes());
    let cases: [(&str, Vec<u8>, u8); 4] = [
        ("not a marker", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 1),
        ("longer than 4096 without RFC 8654", long, 2),
        ("shorter than a header", short, 2),
        ("unknown type", unknown, 3),
    ];
    for (name, bytes, subcode) in cases {
        for one_by_one in [false, true] {
            let (mut s, conn, mut out) = by_hand(open_to(0, 1));
            let now = Instant::from_micros(1);
            if one_by_one {
                for octet in &bytes {
                    s.handle_bytes(conn, &[*octet], now, &mut out);
                }
            } else {
                s.handle_bytes(conn, &bytes, now, &mut out);
            }
            let n = notification_in(&out).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((n.code, n.subcode), (1, subcode), "{name} one by one: {one_by_one}");
            assert!(out.iter().any(|o| matches!(o, Output::Close { conn: c } if *c == conn)));
        }
    }
}

/// Every single-octet change of a conversation, cut at every place: no panic, and either the
/// session lives or the neighbour was told why not.
#[test]
fn damaged_conversations() {
    let mut talk = good_update(1);
    talk.extend(message(MessageType::Keepalive, &[]));
    talk.extend(message(MessageType::RouteRefresh, &[0, 1, 0, 1]));
    talk.extend(good_update(2));
    for at in 0..talk.len() {
        for flip in [0x01, 0x40, 0xff] {
            let mut damaged = talk.clone();
            damaged[at] ^= flip;
            let (mut s, conn, mut out) = by_hand(open_to(0, 1));
            let now = Instant::from_micros(1);
            let (head, tail) = damaged.split_at(at);
            s.handle_bytes(conn, head, now, &mut out);
            s.handle_bytes(conn, tail, now, &mut out);
            let mut flushed = Vec::new();
            s.flush(&mut flushed);
            let view = &s.neighbor_views(now)[0];
            let alive = view.state == SessionState::Established;
            // A NOTIFICATION of the peer's (by a damaged type octet) is not answered.
            let by_peer = view.last_error.as_deref().is_some_and(|e| e.starts_with("received"));
            assert_eq!(
                alive,
                notification_in(&out).is_none() && !by_peer,
                "octet {at} ^ {flip:#x}"
            );
        }
    }
}

/// Strangers are refused and counted; so is a neighbour that is not expected now.
#[test]
fn connections_that_are_not_wanted() {
    let (mut s, _, mut out) = by_hand(open_to(0, 1));
    let local = SocketAddr::new(addr(0), 179);
    let now = Instant::ZERO;
    let stranger = "203.0.113.5:999".parse().unwrap();
    assert!(s.handle_accepted(local, stranger, now, &mut out).is_none());
    assert_eq!(s.counters().unknown_connections, 1);
    assert!(out.is_empty());
    let mut bound = open_to(0, 2);
    bound.transport.local = Some(addr(0));
    s.add_neighbor(bound, now, &mut out).unwrap();
    let elsewhere = SocketAddr::new(addr(7), 179);
    let remote = SocketAddr::new(addr(2), 40000);
    assert!(s.handle_accepted(elsewhere, remote, now, &mut out).is_none());
    assert_eq!(s.neighbor_views(now)[1].counters.refused_connections, 1);
    assert!(s.handle_accepted(local, remote, now, &mut out).is_some());
}

/// A number that a neighbour leaves is used again, its connections' names are not.
#[test]
fn a_late_report_about_a_former_neighbour_meets_nobody() {
    let mut s = speaker(0);
    let mut out = Vec::new();
    let now = Instant::ZERO;
    let first = s.add_neighbor(open_to(0, 1), now, &mut out).unwrap();
    let Some(Output::Connect { conn, .. }) = out.first() else { panic!("{out:?}") };
    let conn = *conn;
    s.remove_neighbor(first, now, &mut out).unwrap();
    out.clear();
    let second = s.add_neighbor(open_to(0, 2), now, &mut out).unwrap();
    assert_eq!(first, second);
    out.clear();
    s.handle_connected(
        conn,
        SocketAddr::new(addr(0), 1),
        SocketAddr::new(addr(1), 179),
        now,
        &mut out,
    );
    assert!(matches!(out[..], [Output::Close { conn: c }] if c == conn), "{out:?}");
    s.handle_closed(conn, now, &mut out);
    assert_eq!(s.neighbor_views(now)[0].state, SessionState::Connect);
}

/// The key of the listener follows the configuration.
#[test]
fn listener_keys() {
    let keys = |out: &[Output]| -> Vec<(IpAddr, bool)> {
        out.iter()
            .filter_map(|o| match o {
                Output::ListenerKey { remote, key } => Some((*remote, key.is_some())),
                _ => None,
            })
            .collect()
    };
    let mut s = speaker(0);
    let mut out = Vec::new();
    let now = Instant::ZERO;
    let mut config = open_to(0, 1);
    config.transport.md5 = Md5Key::new(b"secret");
    let peer = s.add_neighbor(config.clone(), now, &mut out).unwrap();
    assert_eq!(keys(&out), [(addr(1), true)]);
    out.clear();
    config.transport.md5 = Md5Key::new(b"other");
    s.update_neighbor(peer, config.clone(), now, &mut out).unwrap();
    assert_eq!(keys(&out), [(addr(1), false), (addr(1), true)]);
    out.clear();
    config.transport.remote = SocketAddr::new(addr(2), 179);
    s.update_neighbor(peer, config, now, &mut out).unwrap();
    assert_eq!(keys(&out), [(addr(1), false), (addr(2), true)]);
    out.clear();
    s.remove_neighbor(peer, now, &mut out).unwrap();
    assert_eq!(keys(&out), [(addr(2), false)]);
}

/// TCP lost at both ends: routes stay, the session returns, nothing is stale in the end.
#[test]
fn a_lost_connection_is_mended() {
    let mut net = Net::pair();
    net.originate(0, p("10.1.0.1/32"));
    net.originate(1, p("10.1.0.2/32"));
    net.run_s(1);
    net.cut();
    assert!(net.has(1, p("10.1.0.1/32")) && net.view(1, 0).prefixes[0].stale);
    net.run_s(60);
    assert!(net.is_up(0, 1) && net.is_up(1, 0));
    assert!(net.has(1, p("10.1.0.1/32")) && net.has(0, p("10.1.0.2/32")));
    for view in [net.view(1, 0), net.view(0, 1)] {
        assert!(view.prefixes.iter().all(|f| !f.stale));
        assert_eq!(view.counters.flaps, 1);
    }
    let json = serde_json::to_value(net.view(0, 1)).unwrap();
    assert_eq!(json["state"], "established");
    assert_eq!(json["prefixes"][0]["accepted"], 1);
}
