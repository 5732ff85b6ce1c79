//! The machine against RFC 4271 §8.2.2 (a row per transition), §6.2 (OPEN errors), §6.8 (collisions),
//! RFC 4724 and RFC 8538 (graceful restart), and two machines against each other.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::*;
use crate::wire::bgp::{Capability, next_frame};

const PEER: PeerId = PeerId(3);
const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LOWER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HIGHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

fn config() -> SessionConfig {
    SessionConfig { graceful_restart: None, ..SessionConfig::new(65001, 65001, US) }
}

fn conn(serial: u32) -> ConnId {
    ConnId { peer: PEER, serial }
}

fn ends() -> (SocketAddr, SocketAddr) {
    ("10.0.0.2:40000".parse().unwrap(), "10.0.0.9:179".parse().unwrap())
}

fn peer_open(bgp_id: Ipv4Addr) -> Open {
    let peer = SessionConfig { router_id: bgp_id, ..config() };
    open::ours(&peer, false, false)
}

/// An OPEN of a peer that restarts gracefully; `bits` are R, N and F.
fn graceful_open(bgp_id: Ipv4Addr, restarting: bool, notification: bool, forwarding: bool) -> Open {
    let peer = SessionConfig {
        router_id: bgp_id,
        graceful_restart: Some(GracefulRestart {
            notification,
            restart_time_s: 100,
            ..GracefulRestart::default()
        }),
        ..config()
    };
    open::ours(&peer, restarting, forwarding)
}

fn encoded(open: &Open) -> Vec<u8> {
    let mut bytes = Vec::new();
    open.encode(&mut bytes);
    bytes
}

fn notification(code: u8, subcode: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    Notification::new(code, subcode).encode(&mut bytes);
    bytes
}

fn message(kind: MessageType, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = crate::wire::bgp::begin(kind, &mut bytes);
    bytes.extend_from_slice(body);
    crate::wire::bgp::finish(start, &mut bytes);
    bytes
}

fn keepalive() -> Vec<u8> {
    message(MessageType::Keepalive, &[])
}

fn update() -> Vec<u8> {
    message(MessageType::Update, &[0, 0, 0, 0])
}

/// Outputs in a short notation, one word or phrase per output.
fn describe(out: &[Output]) -> String {
    let list =
        |families: Families| families.iter().map(|f| f.as_str()).collect::<Vec<_>>().join("+");
    // The wording of NOTIFICATIONs is not what is tested here.
    let why = |reason: &Reason| match reason {
        Reason::Sent(n) => format!("sent {}/{}", n.code, n.subcode),
        Reason::Received(n) => format!("received {}/{}", n.code, n.subcode),
        other => other.to_string(),
    };
    let words: Vec<String> = out
        .iter()
        .map(|o| match o {
            Output::Connect { conn } => format!("connect#{}", conn.serial),
            Output::Close { conn } => format!("close#{}", conn.serial),
            Output::Send { conn, bytes } => {
                let frame = next_frame(bytes, 4096).unwrap().unwrap();
                assert_eq!(frame.len, bytes.len(), "one message");
                let what = match frame.kind {
                    MessageType::Notification => format!("{}/{}", frame.body[0], frame.body[1]),
                    kind => kind.as_str().to_owned(),
                };
                format!("{what}#{}", conn.serial)
            }
            Output::Up(up) => format!("up#{}", up.conn.serial),
            Output::Down { reason, retained } if retained.is_empty() => {
                format!("down({})", why(reason))
            }
            Output::Down { reason, retained } => {
                format!("down({}; {})", why(reason), list(*retained))
            }
            Output::Failed { reason } => format!("failed({})", why(reason)),
            Output::StaleExpired(family) => format!("expired({family})"),
        })
        .collect();
    words.join(" ")
}

struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(config: SessionConfig) -> Self {
        Self { session: Session::new(PEER, config, 1), now: Instant::from_micros(1_000_000) }
    }

    fn apply(&mut self, event: &Event) -> String {
        let mut out = Vec::new();
        let (local, remote) = ends();
        match event {
            Event::Start => self.session.start(self.now, &mut out),
            Event::Stop(stop) => self.session.stop(stop.clone(), self.now, &mut out),
            Event::Connected(serial) => {
                self.session.handle_connected(conn(*serial), local, remote, self.now, &mut out);
            }
            Event::Accepted => {
                if self.session.handle_accepted(local, remote, self.now, &mut out).is_none() {
                    return "refused".into();
                }
            }
            Event::Closed(serial) => {
                self.session.handle_closed(conn(*serial), self.now, &mut out);
            }
            Event::Message(serial, bytes) => {
                let frame = next_frame(bytes, 65535).unwrap().unwrap();
                let received = self.session.handle_frame(
                    conn(*serial),
                    frame.kind,
                    frame.body,
                    self.now,
                    &mut out,
                );
                match received {
                    Received::Handled => {}
                    other => return format!("{other:?}"),
                }
            }
            Event::WireError(serial) => {
                let n = Notification::new(code::MESSAGE_HEADER, 1);
                self.session.handle_wire_error(conn(*serial), n, self.now, &mut out);
            }
            Event::After(duration) => {
                self.now += *duration;
                self.session.handle_timeout(self.now, &mut out);
            }
            Event::NextTimeout => {
                let at = self.session.poll_timeout();
                assert!(at < Instant::FAR_FUTURE, "a timer runs");
                self.now = self.now.max(at);
                self.session.handle_timeout(self.now, &mut out);
            }
        }
        describe(&out)
    }

    /// Applies all, ignoring what they do.
    fn run(mut self, events: &[Event]) -> Self {
        for event in events {
            self.apply(event);
        }
        self
    }
}

#[derive(Clone, Debug)]
enum Event {
    Start,
    Stop(Stop),
    Connected(u32),
    Accepted,
    Closed(u32),
    Message(u32, Vec<u8>),
    WireError(u32),
    After(Duration),
    NextTimeout,
}
use Event::{Accepted, After, Closed, Connected, NextTimeout, Start, WireError};

fn msg(serial: u32, bytes: Vec<u8>) -> Event {
    Event::Message(serial, bytes)
}

fn shutdown() -> Event {
    Event::Stop(Stop::Shutdown("maintenance".into()))
}

/// The events that lead from a fresh machine to a state.
fn way_to(state: SessionState) -> Vec<Event> {
    let mut way = match state {
        SessionState::Idle => return vec![],
        SessionState::Connect => return vec![Start],
        SessionState::Active => return vec![Start, Closed(0)],
        SessionState::OpenSent | SessionState::OpenConfirm | SessionState::Established => {
            vec![Start, Connected(0)]
        }
    };
    if state >= SessionState::OpenConfirm {
        way.push(msg(0, encoded(&peer_open(HIGHER))));
    }
    if state == SessionState::Established {
        way.push(msg(0, keepalive()));
    }
    way
}

/// RFC 4271 §8.2.2, a row per state and event; RFC 6608 for the subcodes of FSM errors.
#[test]
fn every_transition() {
    use SessionState as S;
    let open = || msg(0, encoded(&peer_open(HIGHER)));
    let bad_as = || {
        let mut o = peer_open(HIGHER);
        o.capabilities.retain(|c| !matches!(c, Capability::FourOctetAs(_)));
        o.asn16 = 7;
        msg(0, encoded(&o))
    };
    let cease = || msg(0, notification(6, 4));
    let refresh = || msg(0, message(MessageType::RouteRefresh, &[0, 1, 0, 1]));
    let rows: Vec<(S, Event, S, &str)> = vec![
        // Idle
        (S::Idle, Start, S::Connect, "connect#0"),
        (S::Idle, shutdown(), S::Idle, ""),
        (S::Idle, Accepted, S::Idle, "refused"),
        (S::Idle, Connected(9), S::Idle, "close#9"),
        (S::Idle, Closed(0), S::Idle, ""),
        (S::Idle, open(), S::Idle, ""),
        (S::Idle, WireError(0), S::Idle, ""),
        (S::Idle, After(Duration::from_secs(3600)), S::Idle, ""),
        // Connect
        (S::Connect, Start, S::Connect, ""),
        (S::Connect, shutdown(), S::Idle, "failed(administratively shut down) close#0"),
        (S::Connect, NextTimeout, S::Connect, "close#0 failed(no answer) connect#1"),
        (S::Connect, Connected(0), S::OpenSent, "open#0"),
        (S::Connect, Connected(7), S::Connect, "close#7"),
        (S::Connect, Accepted, S::OpenSent, "open#1"),
        (S::Connect, Closed(0), S::Active, "close#0 failed(cannot connect)"),
        (S::Connect, open(), S::Connect, ""),
        // Active
        (S::Active, Start, S::Active, ""),
        (S::Active, shutdown(), S::Idle, "failed(administratively shut down)"),
        (S::Active, NextTimeout, S::Connect, "connect#1"),
        (S::Active, Accepted, S::OpenSent, "open#1"),
        // OpenSent
        (S::OpenSent, Start, S::OpenSent, ""),
        (S::OpenSent, shutdown(), S::Idle, "failed(administratively shut down) 6/2#0 close#0"),
        (S::OpenSent, NextTimeout, S::Active, "4/0#0 close#0 failed(hold timer expired)"),
        (S::OpenSent, Accepted, S::OpenSent, "open#1"),
        (S::OpenSent, Closed(0), S::Active, "close#0 failed(connection lost)"),
        (S::OpenSent, open(), S::OpenConfirm, "keepalive#0"),
        (S::OpenSent, bad_as(), S::Active, "2/2#0 close#0 failed(sent 2/2)"),
        (S::OpenSent, msg(0, keepalive()), S::Active, "5/1#0 close#0 failed(sent 5/1)"),
        (S::OpenSent, msg(0, update()), S::Active, "5/1#0 close#0 failed(sent 5/1)"),
        (S::OpenSent, refresh(), S::Active, "5/1#0 close#0 failed(sent 5/1)"),
        (S::OpenSent, cease(), S::Active, "close#0 failed(received 6/4)"),
        (S::OpenSent, WireError(0), S::Active, "1/1#0 close#0 failed(sent 1/1)"),
        // OpenConfirm
        (S::OpenConfirm, Start, S::OpenConfirm, ""),
        (S::OpenConfirm, shutdown(), S::Idle, "failed(administratively shut down) 6/2#0 close#0"),
        (S::OpenConfirm, NextTimeout, S::OpenConfirm, "keepalive#0"),
        (
            S::OpenConfirm,
            After(Duration::from_secs(90)),
            S::Active,
            "4/0#0 close#0 failed(hold timer expired)",
        ),
        (S::OpenConfirm, Accepted, S::OpenConfirm, "open#1"),
        (S::OpenConfirm, Closed(0), S::Active, "close#0 failed(connection lost)"),
        (S::OpenConfirm, open(), S::Active, "5/2#0 close#0 failed(sent 5/2)"),
        (S::OpenConfirm, msg(0, keepalive()), S::Established, "up#0"),
        (S::OpenConfirm, msg(0, update()), S::Active, "5/2#0 close#0 failed(sent 5/2)"),
        (S::OpenConfirm, refresh(), S::Active, "5/2#0 close#0 failed(sent 5/2)"),
        (S::OpenConfirm, cease(), S::Active, "close#0 failed(received 6/4)"),
        (S::OpenConfirm, WireError(0), S::Active, "1/1#0 close#0 failed(sent 1/1)"),
        // Established
        (S::Established, Start, S::Established, ""),
        (S::Established, shutdown(), S::Idle, "6/2#0 close#0 down(administratively shut down)"),
        (
            S::Established,
            Event::Stop(Stop::Deconfigured),
            S::Idle,
            "6/3#0 close#0 down(no longer configured)",
        ),
        (
            S::Established,
            Event::Stop(Stop::Reset(String::new())),
            S::Connect,
            "6/4#0 close#0 down(administratively reset) connect#1",
        ),
        (
            S::Established,
            Event::Stop(Stop::ConfigurationChange),
            S::Idle,
            "6/6#0 close#0 down(configuration changed)",
        ),
        (S::Established, NextTimeout, S::Established, "keepalive#0"),
        (
            S::Established,
            After(Duration::from_secs(90)),
            S::Active,
            "4/0#0 close#0 down(hold timer expired)",
        ),
        (S::Established, Accepted, S::Established, "open#1"),
        (S::Established, Closed(0), S::Active, "close#0 down(connection lost)"),
        (S::Established, open(), S::Active, "5/3#0 close#0 down(sent 5/3)"),
        (S::Established, msg(0, keepalive()), S::Established, ""),
        (S::Established, msg(0, update()), S::Established, "Update"),
        (
            S::Established,
            refresh(),
            S::Established,
            "RouteRefresh(RouteRefresh { afi: 1, safi: 1, kind: Request })",
        ),
        (
            S::Established,
            msg(0, message(MessageType::RouteRefresh, &[0, 1])),
            S::Active,
            "7/1#0 close#0 down(sent 7/1)",
        ),
        (S::Established, cease(), S::Active, "close#0 down(received 6/4)"),
        (S::Established, WireError(0), S::Active, "1/1#0 close#0 down(sent 1/1)"),
        (S::Established, WireError(5), S::Established, ""),
    ];
    for (from, event, to, expected) in rows {
        let mut bench = Bench::new(config()).run(&way_to(from));
        assert_eq!(bench.session.state(), from, "on the way to {from:?}");
        let did = bench.apply(&event);
        assert_eq!((bench.session.state(), did.as_str()), (to, expected), "{from:?} {event:?}");
    }
}

/// RFC 4271 §8.1.1: a passive neighbour is never connected to, whatever fails.
#[test]
fn passive_waits() {
    let mut b = Bench::new(SessionConfig { passive: true, ..config() });
    assert_eq!(b.apply(&Start), "");
    assert_eq!(b.session.state(), SessionState::Active);
    assert_eq!(b.session.poll_timeout(), Instant::FAR_FUTURE);
    assert_eq!(b.apply(&Accepted), "open#0");
    assert_eq!(b.apply(&Closed(0)), "close#0 failed(connection lost)");
    assert_eq!(b.session.state(), SessionState::Active);
    assert_eq!(b.session.poll_timeout(), Instant::FAR_FUTURE);
}

/// RFC 4271 §6.2, RFC 5492 §5, RFC 6286 §2.2, RFC 6793 §4.2.3, RFC 7607 §2.
#[test]
fn unacceptable_opens_are_answered_with_their_subcode() {
    type Spoil = fn(&mut Open);
    let cases: [(&str, Spoil, u8); 8] = [
        ("other AS", |o| *o = Open::new(65002, 90, HIGHER, vec![]), 2),
        ("AS 0", |o| *o = Open::new(0, 90, HIGHER, vec![]), 2),
        (
            "AS_TRANS without the capability",
            |o| {
                o.capabilities.clear();
                o.asn16 = 23456;
            },
            2,
        ),
        ("no identifier", |o| o.bgp_id = Ipv4Addr::UNSPECIFIED, 3),
        ("our identifier inside one AS", |o| o.bgp_id = US, 3),
        ("hold time 1", |o| o.hold_time_s = 1, 6),
        ("hold time 2", |o| o.hold_time_s = 2, 6),
        (
            "no common family",
            |o| {
                o.capabilities.retain(|c| !matches!(c, Capability::Multiprotocol { .. }));
                o.capabilities.push(Capability::Multiprotocol { afi: 25, safi: 70 });
            },
            7,
        ),
    ];
    for (name, spoil, subcode) in cases {
        let mut open = peer_open(HIGHER);
        spoil(&mut open);
        let mut b = Bench::new(config()).run(&way_to(SessionState::OpenSent));
        let did = b.apply(&msg(0, encoded(&open)));
        assert!(did.starts_with(&format!("2/{subcode}#0 close#0")), "{name}: {did}");
    }
    // RFC 6286 §2.2: between two ASes equal identifiers are fine.
    let mut b = Bench::new(SessionConfig { remote_as: 65002, ..config() })
        .run(&way_to(SessionState::OpenSent)[..2]);
    let open = Open::new(65002, 90, US, vec![Capability::Multiprotocol { afi: 1, safi: 1 }]);
    assert_eq!(b.apply(&msg(0, encoded(&open))), "keepalive#0");
}

/// Every truncation and every single-octet change of an OPEN ends in an answer, never in a panic,
/// and never in a session with a peer that is not the configured one.
#[test]
fn damaged_opens() {
    let good = encoded(&graceful_open(HIGHER, false, true, true));
    let body = &good[19..];
    for len in 0..body.len() {
        let mut b = Bench::new(config()).run(&way_to(SessionState::OpenSent));
        let mut out = Vec::new();
        b.session.handle_frame(conn(0), MessageType::Open, &body[..len], b.now, &mut out);
        let did = describe(&out);
        assert!(did.contains("close#0 failed(sent"), "length {len}: {did}");
    }
    for at in 0..body.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = body.to_vec();
            damaged[at] ^= flip;
            let mut b = Bench::new(config()).run(&way_to(SessionState::OpenSent));
            let mut out = Vec::new();
            b.session.handle_frame(conn(0), MessageType::Open, &damaged, b.now, &mut out);
            let did = describe(&out);
            match b.session.state() {
                SessionState::OpenConfirm => assert_eq!(did, "keepalive#0", "octet {at}"),
                _ => assert!(did.contains("close#0 failed(sent"), "octet {at}: {did}"),
            }
        }
    }
}

/// RFC 4271 §4.2: the smaller hold time counts; zero on either side turns keepalives off.
#[test]
fn hold_time_is_negotiated() {
    for (ours, theirs, expected) in [(90, 30, 30), (30, 90, 30), (0, 90, 0), (90, 0, 0), (3, 3, 3)]
    {
        let mut open = peer_open(HIGHER);
        open.hold_time_s = theirs;
        let mut b = Bench::new(SessionConfig { hold_time_s: ours, ..config() }).run(&[
            Start,
            Connected(0),
            msg(0, encoded(&open)),
            msg(0, keepalive()),
        ]);
        if expected == 0 {
            assert_eq!(b.session.poll_timeout(), Instant::FAR_FUTURE);
            continue;
        }
        let third = Duration::from_secs(expected) / 3;
        let wait = b.session.poll_timeout() - b.now;
        assert!(wait <= third && wait >= third * 3 / 4, "{ours} {theirs}: {wait:?}");
        // An UPDATE restarts the hold timer as a KEEPALIVE does (§8.2.2, event 27).
        b.apply(&After(Duration::from_secs(expected) - Duration::from_millis(1)));
        assert_eq!(b.apply(&msg(0, update())), "Update");
        b.apply(&After(Duration::from_secs(expected) - Duration::from_millis(1)));
        assert_eq!(b.session.state(), SessionState::Established);
        assert_eq!(
            b.apply(&After(Duration::from_millis(1))),
            "4/0#0 close#0 down(hold timer expired)"
        );
    }
}

/// RFC 4271 §6.8: by identifier, by who opened first, and by whose OPEN came first.
#[test]
fn collision_matrix() {
    // We have 0 (outgoing) and 1 (incoming). `first` gets its OPEN first.
    for (peer_id, survivor) in [(LOWER, 0), (HIGHER, 1)] {
        for first in [0, 1] {
            for incoming_before_connected in [false, true] {
                let name = format!("{peer_id} first {first} {incoming_before_connected}");
                let both = if incoming_before_connected {
                    [Start, Accepted, Connected(0)]
                } else {
                    [Start, Connected(0), Accepted]
                };
                let mut b = Bench::new(config()).run(&both);
                let second = 1 - first;
                let open = encoded(&peer_open(peer_id));
                assert_eq!(b.apply(&msg(first, open.clone())), format!("keepalive#{first}"));
                let did = b.apply(&msg(second, open));
                if survivor == second {
                    assert_eq!(
                        did,
                        format!(
                            "6/7#{first} close#{first} failed(connection collision) keepalive#{second}"
                        ),
                        "{name}"
                    );
                } else {
                    assert_eq!(
                        did,
                        format!("6/7#{second} close#{second} failed(connection collision)"),
                        "{name}"
                    );
                }
                assert_eq!(
                    b.apply(&msg(survivor, keepalive())),
                    format!("up#{survivor}"),
                    "{name}"
                );
                // What the loser still delivers is of no consequence.
                assert_eq!(b.apply(&msg(1 - survivor, keepalive())), "");
                assert_eq!(b.apply(&Closed(1 - survivor)), "");
                assert_eq!(b.session.state(), SessionState::Established);
            }
        }
    }
}

/// RFC 6286 §2.3: equal identifiers in two ASes; the higher AS number's connection survives.
#[test]
fn collision_between_equal_identifiers_is_decided_by_as() {
    for (remote_as, survivor) in [(64999, 0), (65002, 1)] {
        let mut b = Bench::new(SessionConfig { remote_as, ..config() }).run(&[
            Start,
            Connected(0),
            Accepted,
        ]);
        let families = vec![Capability::Multiprotocol { afi: 1, safi: 1 }];
        let open = encoded(&Open::new(remote_as, 90, US, families));
        b.apply(&msg(0, open.clone()));
        b.apply(&msg(1, open));
        assert_eq!(b.apply(&msg(survivor, keepalive())), format!("up#{survivor}"));
    }
}

/// RFC 4271 §8.2.2, §6.8: a second connection is tracked until its OPEN, then closed; and the first
/// one is probed, in case the peer has forgotten it.
#[test]
fn a_connection_beside_an_established_one_is_closed() {
    let mut b = Bench::new(config()).run(&way_to(SessionState::Established));
    b.apply(&After(Duration::from_secs(20)));
    assert_eq!(b.apply(&Accepted), "open#1");
    assert_eq!(
        b.apply(&msg(1, encoded(&peer_open(HIGHER)))),
        "keepalive#0 6/7#1 close#1 failed(connection collision)"
    );
    assert_eq!(b.session.state(), SessionState::Established);
    // A mute one is replaced by the next, and in the end by its own hold timer.
    assert_eq!(b.apply(&Accepted), "open#2");
    assert_eq!(b.apply(&Accepted), "close#2 open#3");
    b.apply(&msg(0, keepalive()));
    for _ in 0..30 {
        b.apply(&msg(0, keepalive()));
        let did = b.apply(&After(Duration::from_secs(10)));
        if did.contains("4/0#3 close#3") {
            assert_eq!(b.session.state(), SessionState::Established);
            return;
        }
    }
    panic!("the second connection must time out");
}

/// The peer has the higher identifier and has seen our OPEN on its own connection before our
/// KEEPALIVE on ours: it closes ours, so we must not close its.
#[test]
fn a_collision_that_the_peer_has_decided_already_is_decided_the_same_way() {
    let mut b = Bench::new(config()).run(&[Start, Connected(0), Accepted]);
    b.apply(&msg(0, encoded(&peer_open(HIGHER))));
    assert_eq!(b.apply(&msg(0, keepalive())), "up#0");
    assert_eq!(
        b.apply(&msg(1, encoded(&peer_open(HIGHER)))),
        "6/7#0 close#0 down(connection collision) keepalive#1"
    );
    assert_eq!(b.apply(&msg(1, keepalive())), "up#1");
    // With the lower identifier it keeps ours.
    let mut b = Bench::new(config()).run(&[Start, Connected(0), Accepted]);
    b.apply(&msg(0, encoded(&peer_open(LOWER))));
    assert_eq!(b.apply(&msg(0, keepalive())), "up#0");
    assert_eq!(
        b.apply(&msg(1, encoded(&peer_open(LOWER)))),
        "keepalive#0 6/7#1 close#1 failed(connection collision)"
    );
}

/// DampPeerOscillations (RFC 4271 §8.1.1): the first failure costs a second, those in a row ever
/// more, and a session that lasted is forgiven.
#[test]
fn oscillation_is_damped() {
    let mut b = Bench::new(config()).run(&[Start]);
    let mut serial = 0;
    let mut waits = Vec::new();
    for _ in 0..10 {
        b.apply(&Connected(serial));
        b.apply(&msg(serial, notification(6, 5)));
        waits.push(b.session.poll_timeout() - b.now);
        if waits.len() > 1 {
            assert_eq!(b.session.state(), SessionState::Idle);
            assert_eq!(b.apply(&Accepted), "refused");
        }
        serial += 1;
        assert_eq!(b.apply(&NextTimeout), format!("connect#{serial}"));
    }
    for (n, wait) in waits.iter().enumerate() {
        let full = Duration::from_secs((1 << n).min(120));
        assert!(*wait <= full && *wait >= full * 3 / 4, "{n}: {wait:?}");
    }
    b.apply(&Connected(serial));
    b.apply(&msg(serial, encoded(&peer_open(HIGHER))));
    b.apply(&msg(serial, keepalive()));
    b.apply(&After(Duration::from_secs(61)));
    b.apply(&Closed(serial));
    assert_eq!(b.session.state(), SessionState::Active);
    assert!(b.session.poll_timeout() - b.now <= Duration::from_secs(1));
}

/// RFC 4486 §4: with AFI, SAFI and the limit; up again after the restart time, or when told.
#[test]
fn too_many_prefixes() {
    for restart in [None, Some(Duration::from_secs(300))] {
        let mut b = Bench::new(SessionConfig { max_prefix_restart: restart, ..config() })
            .run(&way_to(SessionState::Established));
        let mut out = Vec::new();
        b.session.exceed_max_prefixes(Family::Ipv6, 1000, b.now, &mut out);
        assert_eq!(describe(&out), "6/1#0 close#0 down(more than 1000 ipv6 prefixes)");
        let Output::Send { bytes, .. } = &out[0] else { panic!() };
        assert_eq!(bytes[21..], [0, 2, 1, 0, 0, 3, 0xe8]);
        assert_eq!(b.session.state(), SessionState::Idle);
        assert_eq!(b.session.is_stopped(), restart.is_none());
        match restart {
            None => assert_eq!(b.session.poll_timeout(), Instant::FAR_FUTURE),
            Some(after) => assert_eq!(b.session.poll_timeout(), b.now + after),
        }
        assert_eq!(b.apply(&Start), "connect#1");
    }
}

/// RFC 9687 §3: the timer runs while octets wait, and restarts whenever some were taken.
#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let config = SessionConfig { hold_time_s: 0, ..config() };
    let mut b = Bench::new(config).run(&way_to(SessionState::Established));
    b.session.handle_congested(conn(0), true, b.now);
    b.apply(&After(Duration::from_secs(479)));
    b.session.handle_congested(conn(0), true, b.now);
    b.apply(&After(Duration::from_secs(479)));
    assert_eq!(b.session.state(), SessionState::Established);
    b.session.handle_congested(conn(0), false, b.now);
    assert_eq!(b.session.poll_timeout(), Instant::FAR_FUTURE);
    b.session.handle_congested(conn(0), true, b.now);
    assert_eq!(
        b.apply(&NextTimeout),
        "8/0#0 close#0 down(the peer does not read (send hold timer expired))"
    );
}

fn graceful_config() -> SessionConfig {
    SessionConfig::new(65001, 65001, US)
}

fn graceful_up(n_bit: bool) -> Bench {
    let mut b = Bench::new(graceful_config()).run(&[
        Start,
        Connected(0),
        msg(0, encoded(&graceful_open(HIGHER, false, n_bit, true))),
    ]);
    assert_eq!(b.apply(&msg(0, keepalive())), "up#0");
    b
}

/// RFC 4724 §4.2, §5 and RFC 8538 §4, §5.1: what each end of a session keeps.
#[test]
fn what_is_kept_depends_on_how_the_session_ends() {
    let reset = Event::Stop(Stop::Reset(String::new()));
    let hard = msg(0, {
        let mut bytes = Vec::new();
        Notification::new(code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN)
            .hard_reset()
            .encode(&mut bytes);
        bytes
    });
    // (how, kept without the N bit, kept with it, what is sent with it)
    let rows: Vec<(Event, bool, bool, &str)> = vec![
        (Closed(0), true, true, ""),
        (After(Duration::from_secs(90)), false, true, "4/0"),
        (msg(0, notification(6, 4)), false, true, ""),
        (msg(0, notification(3, 1)), false, true, ""),
        (hard, false, false, ""),
        (WireError(0), false, true, "1/1"),
        (reset, false, true, "6/4"),
        (shutdown(), false, false, "6/9"),
        (Event::Stop(Stop::Deconfigured), false, false, "6/9"),
    ];
    for (how, plain, with_n, sent) in rows {
        for (n_bit, kept) in [(false, plain), (true, with_n)] {
            let mut b = graceful_up(n_bit);
            let did = b.apply(&how);
            assert_eq!(did.contains("; ipv4+ipv6)"), kept, "{how:?} N={n_bit}: {did}");
            assert_eq!(!b.session.retained().is_empty(), kept);
            assert!(!n_bit || did.starts_with(sent), "{how:?}: {did}");
        }
    }
}

/// RFC 4724 §4.2: the restart time is the peer's, and the end of it is the end of its routes.
#[test]
fn stale_routes_go_when_the_peer_does_not_return_in_time() {
    let mut b = graceful_up(false);
    let lost = b.now;
    assert_eq!(b.apply(&Closed(0)), "close#0 down(connection lost; ipv4+ipv6)");
    for _ in 0..1000 {
        let did = b.apply(&NextTimeout);
        if did.contains("expired") {
            assert!(did.contains("expired(ipv4) expired(ipv6)"), "{did}");
            assert_eq!(b.now - lost, Duration::from_secs(100));
            assert!(b.session.retained().is_empty());
            return;
        }
    }
    panic!("stale routes must expire");
}

/// RFC 4724 §4.2: back in time, with End-of-RIB; or with one family not preserved; or without the
/// capability; or never reaching End-of-RIB.
#[test]
fn resumption() {
    let come_back = |open: &Open| {
        let mut b = graceful_up(false);
        b.apply(&Closed(0));
        assert_eq!(b.apply(&NextTimeout), "connect#1");
        b.apply(&Connected(1));
        b.apply(&msg(1, encoded(open)));
        let did = b.apply(&msg(1, keepalive()));
        (b, did)
    };
    let (mut b, did) = come_back(&graceful_open(HIGHER, true, false, true));
    assert_eq!(did, "up#1");
    let mut out = Vec::new();
    b.session.handle_end_of_rib(Family::Ipv4, &mut out);
    b.session.handle_end_of_rib(Family::Ipv4, &mut out);
    assert_eq!(describe(&out), "expired(ipv4)");
    assert_eq!(b.session.retained(), Families { ipv4: false, ipv6: true });

    // Lost again before IPv6 was complete: its stale routes go, those of this session stay.
    assert_eq!(b.apply(&Closed(1)), "close#1 expired(ipv6) down(connection lost; ipv4+ipv6)");

    let (_, did) = come_back(&graceful_open(HIGHER, true, false, false));
    assert_eq!(did, "expired(ipv4) expired(ipv6) up#1");
    let (_, did) = come_back(&peer_open(HIGHER));
    assert_eq!(did, "expired(ipv4) expired(ipv6) up#1");

    let (mut b, _) = come_back(&graceful_open(HIGHER, true, false, true));
    for _ in 0..100 {
        b.apply(&msg(1, keepalive()));
        let did = b.apply(&NextTimeout);
        if did.contains("expired") {
            assert_eq!(b.session.state(), SessionState::Established);
            // 180 s after the loss.
            assert_eq!(b.now.as_micros(), 181_000_000);
            return;
        }
    }
    panic!("the stale timer must expire");
}

/// RFC 4724 §4.2: a new connection of a peer that restarted ends the old session without a word,
/// and its routes stay.
#[test]
fn a_restarting_peer_replaces_its_session() {
    for (restarting, wait_s, replaced) in [(true, 1, true), (false, 20, true), (false, 1, false)] {
        let mut b = graceful_up(false);
        b.apply(&After(Duration::from_secs(wait_s)));
        assert_eq!(b.apply(&Accepted), "open#1");
        let did = b.apply(&msg(1, encoded(&graceful_open(HIGHER, restarting, false, true))));
        if replaced {
            assert_eq!(did, "close#0 down(the peer restarted; ipv4+ipv6) keepalive#1");
            assert_eq!(b.apply(&msg(1, keepalive())), "up#1");
        } else {
            assert_eq!(did, "keepalive#0 6/7#1 close#1 failed(connection collision)");
        }
        assert_eq!(b.session.state(), SessionState::Established);
    }
}

/// RFC 4724 §3, §4.1, RFC 8538 §4: the bits of our own OPENs.
#[test]
fn restart_and_forwarding_bits() {
    let bits = |out: &[Output]| {
        let Some(Output::Send { bytes, .. }) = out.first() else { panic!("{out:?}") };
        let g = open::graceful(&Open::decode(&bytes[19..]).unwrap()).unwrap();
        assert_eq!(g.restart_time_s, 120);
        assert!(g.notification);
        assert_eq!(g.families, Families::ALL);
        (g.restarting, g.forwarding)
    };
    for (restarting, preserved) in [(false, false), (true, false), (true, true)] {
        let graceful = GracefulRestart {
            restarting,
            forwarding_preserved: preserved,
            ..GracefulRestart::default()
        };
        let mut b =
            Bench::new(SessionConfig { graceful_restart: Some(graceful), ..graceful_config() })
                .run(&[Start]);
        let (local, remote) = ends();
        let mut out = Vec::new();
        b.session.handle_connected(conn(0), local, remote, b.now, &mut out);
        let kept = if preserved { Families::ALL } else { Families::NONE };
        assert_eq!(bits(&out), (restarting, kept));
        // Later sessions of this process: no restart of ours, and forwarding was never interrupted.
        b = b.run(&[
            msg(0, encoded(&peer_open(HIGHER))),
            msg(0, keepalive()),
            Closed(0),
            NextTimeout,
        ]);
        out.clear();
        b.session.handle_connected(conn(1), local, remote, b.now, &mut out);
        assert_eq!(bits(&out), (false, Families::ALL));
    }
}

/// Two machines, a wire that delivers in order after a delay, and a clock.
struct Pair {
    ends: [Session; 2],
    now: Instant,
    /// (when, to whom, what)
    wire: VecDeque<(Instant, usize, Packet)>,
    /// Established TCP connections: for each end its name of it, and the other's.
    tcp: Vec<[ConnId; 2]>,
    ups: [usize; 2],
    downs: [usize; 2],
    established: [Option<ConnId>; 2],
    cut: bool,
    delay: Duration,
}

#[derive(Clone, Debug)]
enum Packet {
    Syn(ConnId),
    Accept(ConnId),
    Refused(ConnId),
    Data(ConnId, Vec<u8>),
    Fin(ConnId),
}

impl Pair {
    fn new(delay: Duration, ids: [Ipv4Addr; 2]) -> Self {
        let end = |n: usize| {
            let config = SessionConfig { router_id: ids[n], ..graceful_config() };
            Session::new(PeerId(n as u16), config, n as u64 + 40)
        };
        Self {
            ends: [end(0), end(1)],
            now: Instant::from_micros(1),
            wire: VecDeque::new(),
            tcp: Vec::new(),
            ups: [0; 2],
            downs: [0; 2],
            established: [None; 2],
            cut: false,
            delay,
        }
    }

    fn other_name(&self, at: usize, conn: ConnId) -> Option<ConnId> {
        self.tcp.iter().find(|c| c[at] == conn).map(|c| c[1 - at])
    }

    fn put(&mut self, to: usize, packet: Packet) {
        if !self.cut {
            self.wire.push_back((self.now + self.delay, to, packet));
        }
    }

    fn handle(&mut self, at: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Connect { conn } => self.put(1 - at, Packet::Syn(conn)),
                Output::Send { conn, bytes } => {
                    if let Some(name) = self.other_name(at, conn) {
                        self.put(1 - at, Packet::Data(name, bytes));
                    }
                }
                Output::Close { conn } => {
                    if let Some(name) = self.other_name(at, conn) {
                        self.put(1 - at, Packet::Fin(name));
                    }
                }
                Output::Up(up) => {
                    assert_eq!(self.established[at], None);
                    self.established[at] = Some(up.conn);
                    self.ups[at] += 1;
                }
                Output::Down { .. } => {
                    assert!(self.established[at].take().is_some());
                    self.downs[at] += 1;
                }
                Output::Failed { .. } | Output::StaleExpired(_) => {}
            }
        }
    }

    fn deliver(&mut self, at: usize, packet: Packet) {
        let mut out = Vec::new();
        let (local, remote) = ends();
        let now = self.now;
        match packet {
            Packet::Syn(theirs) => {
                match self.ends[at].handle_accepted(local, remote, now, &mut out) {
                    Some(ours) => {
                        let mut pair = [theirs; 2];
                        pair[at] = ours;
                        self.tcp.push(pair);
                        self.put(1 - at, Packet::Accept(theirs));
                    }
                    None => self.put(1 - at, Packet::Refused(theirs)),
                }
            }
            Packet::Accept(ours) => {
                self.ends[at].handle_connected(ours, local, remote, now, &mut out);
            }
            Packet::Refused(ours) | Packet::Fin(ours) => {
                self.ends[at].handle_closed(ours, now, &mut out);
            }
            Packet::Data(ours, bytes) => {
                let frame = next_frame(&bytes, 4096).unwrap().unwrap();
                self.ends[at].handle_frame(ours, frame.kind, frame.body, now, &mut out);
            }
        }
        self.handle(at, out);
    }

    /// Runs both for a while.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timer = self.ends.iter().map(Session::poll_timeout).min().unwrap();
            let packet = self.wire.front().map_or(Instant::FAR_FUTURE, |p| p.0);
            let next = timer.min(packet);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if packet <= timer {
                let (_, at, packet) = self.wire.pop_front().unwrap();
                self.deliver(at, packet);
                continue;
            }
            for at in 0..2 {
                let mut out = Vec::new();
                self.ends[at].handle_timeout(self.now, &mut out);
                self.handle(at, out);
            }
        }
    }

    fn start(&mut self, at: usize) {
        let mut out = Vec::new();
        self.ends[at].start(self.now, &mut out);
        self.handle(at, out);
    }

    /// Both established, and on the same TCP connection.
    fn agree(&self) -> bool {
        match self.established {
            [Some(a), Some(b)] => self.tcp.contains(&[a, b]),
            _ => false,
        }
    }
}

/// Simultaneous open at every delay and offset that matters: up within the second try, on the same
/// connection, and stable from then on.
#[test]
fn two_machines_come_up_and_stay_up() {
    for ids in [[LOWER, HIGHER], [HIGHER, LOWER]] {
        for delay_us in [1, 50, 1_000, 300_000] {
            for offset_us in [0, 1, 25, 50, 75, 100, 1_000, 2_000, 2_001, 300_000, 450_000] {
                let name = format!("{ids:?} delay {delay_us} offset {offset_us}");
                let mut p = Pair::new(Duration::from_micros(delay_us), ids);
                p.start(0);
                p.run(Duration::from_micros(offset_us));
                p.start(1);
                p.run(Duration::from_secs(20));
                assert!(p.agree(), "{name}: {:?}", p.ends.each_ref().map(Session::state));
                let ups = p.ups;
                p.run(Duration::from_secs(3600));
                assert!(p.agree(), "{name}: survives an hour");
                assert_eq!(p.ups, ups, "{name}: no flap");
                assert!(p.downs.iter().all(|d| *d <= 1), "{name}: {:?}", p.downs);
            }
        }
    }
}

#[test]
fn a_cut_wire_is_noticed_by_both_and_healed() {
    let mut p = Pair::new(Duration::from_millis(1), [LOWER, HIGHER]);
    p.start(0);
    p.start(1);
    p.run(Duration::from_secs(100));
    assert!(p.agree());
    let ups = p.ups;
    p.cut = true;
    p.run(Duration::from_secs(89 - 30));
    assert!(p.agree(), "within the hold time");
    p.run(Duration::from_secs(31));
    assert_eq!(p.established, [None, None]);
    p.run(Duration::from_secs(600));
    p.cut = false;
    p.run(Duration::from_secs(300));
    assert!(p.agree());
    assert_eq!(p.ups, [ups[0] + 1, ups[1] + 1]);
}

#[test]
fn reset_and_shutdown_between_two_machines() {
    let mut p = Pair::new(Duration::from_millis(1), [LOWER, HIGHER]);
    p.start(0);
    p.start(1);
    p.run(Duration::from_secs(100));
    let mut out = Vec::new();
    p.ends[0].stop(Stop::Reset("again".into()), p.now, &mut out);
    p.handle(0, out);
    p.run(Duration::from_secs(30));
    assert!(p.agree());
    let mut out = Vec::new();
    p.ends[1].stop(Stop::Shutdown("for the night".into()), p.now, &mut out);
    p.handle(1, out);
    p.run(Duration::from_secs(3600));
    assert_eq!(p.established, [None, None]);
    assert_eq!(p.ends[1].state(), SessionState::Idle);
    p.start(1);
    p.run(Duration::from_secs(10));
    assert!(p.agree());
}
