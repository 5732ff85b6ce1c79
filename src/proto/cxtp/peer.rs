//! One CXTP link to another anchor or controller, over a stream whose other end is authenticated.
//!
//! Both ends begin with a hello that says who speaks; the certificate must be of the same anchor,
//! which the driver has checked by the time it calls [`Peer::handle_connected`]. Afterwards signals
//! pass both ways, and a keepalive when the time comes. RFC 4067 leaves liveness to SCTP's
//! heartbeat; ours is a CTDR about no node (see `wire::cxtp::profile`), since TCP would notice a
//! dead peer after minutes.
//!
//! What is retransmitted, and what a duplicate means, is decided by `mctx`: within a link TLS
//! neither loses nor repeats, so both only happen across a reconnect.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::translate::{self, Hello, Incoming};
use crate::types::transfer::Signal;
use crate::types::transient::PathEnd;
use crate::types::{AnchorId, Instant};
use crate::wire::WireError;
use crate::wire::cxtp::profile::PROFILE_VERSION;
use crate::wire::cxtp::{MESSAGE_LEN_MAX, Message, frame_len};

/// What a node of the system does on its links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Anchor,
    /// Wants the reports of anchors (R_XC).
    Controller,
    AnchorAndController,
}

impl Role {
    pub fn new(is_anchor: bool, is_controller: bool) -> Option<Self> {
        match (is_anchor, is_controller) {
            (true, false) => Some(Self::Anchor),
            (false, true) => Some(Self::Controller),
            (true, true) => Some(Self::AnchorAndController),
            (false, false) => None,
        }
    }

    pub fn is_anchor(self) -> bool {
        matches!(self, Self::Anchor | Self::AnchorAndController)
    }

    pub fn is_controller(self) -> bool {
        matches!(self, Self::Controller | Self::AnchorAndController)
    }
}

#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub own: AnchorId,
    pub own_role: Role,
    /// Where we take packets of transient paths.
    pub path_end: Option<PathEnd>,
    /// Who must be at the other end.
    pub peer: AnchorId,
    /// From the stream's start to the peer's hello.
    pub hello_max: Duration,
    /// Between our keepalives.
    pub keepalive: Duration,
    /// Without an octet from the peer, or without one taken by it, the link is dead.
    pub hold: Duration,
    /// CT-Req taken from the peer, over all nodes (RFC 4067 §6.3 "to match the maximum number of
    /// handovers that the access network is expected to support").
    pub requests_per_s_max: u32,
    /// CT-Req taken from the peer for one node: CT_REQUEST_RATE (RFC 4067 §4).
    pub node_requests_per_s_max: u32,
}

impl PeerConfig {
    pub fn new(own: AnchorId, own_role: Role, peer: AnchorId) -> Self {
        Self {
            own,
            own_role,
            path_end: None,
            peer,
            hello_max: Duration::from_secs(5),
            keepalive: Duration::from_secs(3),
            hold: Duration::from_secs(10),
            requests_per_s_max: 10_000,
            node_requests_per_s_max: 10,
        }
    }
}

/// Octets waiting for the socket. When full, what is sent next is refused and counted: `mctx` sends
/// it again by its timers, and reports stay in their window.
const QUEUE_OCTETS_MAX: usize = 4 * 1024 * 1024;

/// Nodes whose request rate is watched; a node beyond is only held by the rate of the link.
const WATCHED_NODES_MAX: usize = 4096;

const RATE_WINDOW: Duration = Duration::from_secs(1);

const _: () = assert!(QUEUE_OCTETS_MAX > MESSAGE_LEN_MAX);

/// Why a link went down: a label of logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum DownReason {
    #[error("the stream ended")]
    Closed,
    #[error("no hello in time")]
    NoHello,
    #[error("the peer says that it is {0}")]
    WrongAnchor(AnchorId),
    #[error("the peer has version {0} of the feature profiles")]
    WrongProfile(u8),
    #[error("the first message is not a hello")]
    NotGreeted,
    #[error("nothing heard in time")]
    Silent,
    #[error("the peer does not read")]
    Stalled,
    #[error("the stream is no longer CXTP")]
    Framing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Up {
        role: Role,
        /// Where it takes packets of transient paths.
        path_end: Option<PathEnd>,
    },
    /// The driver closes the stream (if it is still open). Queued octets are gone.
    Down(DownReason),
    Signal(Signal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    #[error("the link is down")]
    Down,
    #[error("the queue is full")]
    QueueFull,
    #[error("the message is too long")]
    TooLong,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub messages_in: u64,
    pub messages_out: u64,
    pub octets_in: u64,
    pub octets_out: u64,
    /// Framed well, but the inside is wrong: skipped.
    pub malformed: u64,
    /// Not for this interface or of a type we do not know: skipped.
    pub foreign: u64,
    pub requests_dropped_link: u64,
    pub requests_dropped_node: u64,
    pub requests_unwatched: u64,
    pub refused_queue_full: u64,
    pub refused_too_long: u64,
    pub ups: u64,
    pub downs: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// No stream.
    Idle,
    /// Our hello is on its way; the peer's is due.
    Greeting {
        deadline: Instant,
    },
    Up {
        role: Role,
        silent_at: Instant,
        keepalive_at: Instant,
    },
}

#[derive(Debug)]
pub struct Peer {
    config: PeerConfig,
    state: State,
    /// The beginning of a message that is not complete yet; less than one message and one read.
    input: Vec<u8>,
    queue: VecDeque<Vec<u8>>,
    queue_octets: usize,
    /// When the queue was last seen to move; meaningful while it is not empty.
    queue_moved_at: Instant,
    link_rate: RateLimit,
    node_rates: BTreeMap<IpAddr, RateLimit>,
    pruned_at: Instant,
    random: u64,
    counters: Counters,
}

impl Peer {
    /// `seed` decides which requests a rate limit drops.
    pub fn new(config: PeerConfig, seed: u64) -> Self {
        Self {
            link_rate: RateLimit::new(config.requests_per_s_max),
            config,
            state: State::Idle,
            input: Vec::new(),
            queue: VecDeque::new(),
            queue_octets: 0,
            queue_moved_at: Instant::ZERO,
            node_rates: BTreeMap::new(),
            pruned_at: Instant::ZERO,
            random: seed,
            counters: Counters::default(),
        }
    }

    pub fn peer(&self) -> AnchorId {
        self.config.peer
    }

    /// The peer's role, while the link is up.
    pub fn role(&self) -> Option<Role> {
        match self.state {
            State::Up { role, .. } => Some(role),
            State::Idle | State::Greeting { .. } => None,
        }
    }

    /// One end of a pair dials, the other only listens, so that there are no two streams to choose
    /// from: the lower anchor id dials.
    pub fn is_dialer(&self) -> bool {
        self.config.own < self.config.peer
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn queue_octets(&self) -> usize {
        self.queue_octets
    }

    /// A new, authenticated stream. One that is still there is replaced: the peer would not have
    /// made a new one if the old one were alive.
    pub fn handle_connected(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.go_down(DownReason::Closed, out);
        self.state = State::Greeting { deadline: now + self.config.hello_max };
        let hello =
            translate::hello_message(self.config.own, self.config.own_role, self.config.path_end);
        self.enqueue(&hello, now).expect("a hello is short and the queue is empty");
    }

    /// The stream ended or failed.
    pub fn handle_closed(&mut self, out: &mut Vec<Output>) {
        self.go_down(DownReason::Closed, out);
    }

    pub fn handle_octets(&mut self, octets: &[u8], now: Instant, out: &mut Vec<Output>) {
        match &mut self.state {
            State::Idle => return, // read before the stream was closed
            State::Greeting { .. } => {}
            State::Up { silent_at, .. } => *silent_at = now + self.config.hold,
        }
        self.counters.octets_in += octets.len() as u64;
        self.input.extend_from_slice(octets);
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        loop {
            let len = match frame_len(&input[at..]) {
                Ok(Some(len)) if len <= input.len() - at => len,
                Ok(_) => break,
                Err(_) => return self.go_down(DownReason::Framing, out),
            };
            self.counters.messages_in += 1;
            let message = Message::decode(&input[at..at + len]);
            at += len;
            match message.and_then(|message| translate::understand(message, now)) {
                Ok(incoming) => self.handle_incoming(incoming, now, out),
                Err(WireError::UnknownType(_)) => self.counters.foreign += 1,
                Err(_) => self.counters.malformed += 1,
            }
            if matches!(self.state, State::Idle) {
                return; // that message ended the link
            }
        }
        self.input = input[at..].to_vec();
    }

    fn handle_incoming(&mut self, incoming: Incoming, now: Instant, out: &mut Vec<Output>) {
        match (self.state, incoming) {
            (State::Idle, _) => {}
            (State::Greeting { .. }, Incoming::Hello(hello)) => self.greet(hello, now, out),
            (State::Greeting { .. }, Incoming::Keepalive | Incoming::Signal(_)) => {
                self.go_down(DownReason::NotGreeted, out);
            }
            (State::Up { .. }, Incoming::Hello(_)) => self.counters.malformed += 1,
            (State::Up { .. }, Incoming::Keepalive) => {}
            (State::Up { .. }, Incoming::Signal(signal)) => {
                if self.admits(&signal, now) {
                    out.push(Output::Signal(signal));
                }
            }
            (State::Greeting { .. } | State::Up { .. }, Incoming::Foreign) => {
                self.counters.foreign += 1;
            }
        }
    }

    fn greet(&mut self, hello: Hello, now: Instant, out: &mut Vec<Output>) {
        if hello.anchor != self.config.peer {
            return self.go_down(DownReason::WrongAnchor(hello.anchor), out);
        }
        if hello.profile != PROFILE_VERSION {
            return self.go_down(DownReason::WrongProfile(hello.profile), out);
        }
        self.state = State::Up {
            role: hello.role,
            silent_at: now + self.config.hold,
            keepalive_at: now + self.config.keepalive,
        };
        self.counters.ups += 1;
        out.push(Output::Up { role: hello.role, path_end: hello.path_end });
    }

    /// RFC 4067 §6.3: above the rate, requests are dropped at random; the asker asks again.
    fn admits(&mut self, signal: &Signal, now: Instant) -> bool {
        let Signal::Request { prefix, .. } = signal else { return true };
        if !self.link_rate.admits(now, &mut self.random) {
            self.counters.requests_dropped_link += 1;
            return false;
        }
        let addr = prefix.addr();
        if self.node_rates.len() >= WATCHED_NODES_MAX && !self.node_rates.contains_key(&addr) {
            // Not at each request of a flood.
            if now - self.pruned_at >= RATE_WINDOW {
                self.pruned_at = now;
                self.node_rates.retain(|_, rate| rate.is_fresh(now));
            }
            if self.node_rates.len() >= WATCHED_NODES_MAX {
                self.counters.requests_unwatched += 1;
                return true;
            }
        }
        let max = self.config.node_requests_per_s_max;
        let rate = self.node_rates.entry(addr).or_insert_with(|| RateLimit::new(max));
        let admits = rate.admits(now, &mut self.random);
        if !admits {
            self.counters.requests_dropped_node += 1;
        }
        admits
    }

    /// Queues a signal. Refused ones are counted; nothing of them is kept.
    pub fn send(&mut self, signal: &Signal, now: Instant) -> Result<(), SendRefused> {
        match self.state {
            State::Up { .. } => self.enqueue(&translate::signal_message(signal, now), now),
            State::Idle | State::Greeting { .. } => Err(SendRefused::Down),
        }
    }

    fn enqueue(&mut self, message: &Message, now: Instant) -> Result<(), SendRefused> {
        let mut octets = Vec::new();
        if message.encode(&mut octets).is_err() {
            self.counters.refused_too_long += 1;
            return Err(SendRefused::TooLong);
        }
        if self.queue_octets + octets.len() > QUEUE_OCTETS_MAX {
            self.counters.refused_queue_full += 1;
            return Err(SendRefused::QueueFull);
        }
        if self.queue.is_empty() {
            self.queue_moved_at = now;
        }
        self.queue_octets += octets.len();
        self.queue.push_back(octets);
        self.counters.messages_out += 1;
        Ok(())
    }

    /// The next message for the socket. The driver calls this when the previous one is written.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let octets = self.queue.pop_front()?;
        self.queue_octets -= octets.len();
        self.queue_moved_at = now;
        self.counters.octets_out += octets.len() as u64;
        Some(octets)
    }

    pub fn poll_timeout(&self) -> Instant {
        let stalled_at = match self.queue.is_empty() {
            true => Instant::FAR_FUTURE,
            false => self.queue_moved_at + self.config.hold,
        };
        match self.state {
            State::Idle => Instant::FAR_FUTURE,
            State::Greeting { deadline } => deadline.min(stalled_at),
            State::Up { silent_at, keepalive_at, .. } => {
                silent_at.min(keepalive_at).min(stalled_at)
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let stalled = !self.queue.is_empty() && self.queue_moved_at + self.config.hold <= now;
        match &mut self.state {
            State::Idle => {}
            State::Greeting { deadline } if *deadline <= now => {
                self.go_down(DownReason::NoHello, out);
            }
            State::Up { silent_at, .. } if *silent_at <= now => {
                self.go_down(DownReason::Silent, out);
            }
            State::Greeting { .. } | State::Up { .. } if stalled => {
                self.go_down(DownReason::Stalled, out);
            }
            State::Up { keepalive_at, .. } if *keepalive_at <= now => {
                *keepalive_at = now + self.config.keepalive;
                // A full queue keeps the peer busy enough; whether it reads is the stall check's.
                let _ = self.enqueue(&translate::keepalive_message(), now);
            }
            State::Greeting { .. } | State::Up { .. } => {} // woken early
        }
    }

    fn go_down(&mut self, reason: DownReason, out: &mut Vec<Output>) {
        self.input = Vec::new();
        self.queue.clear();
        self.queue_octets = 0;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            State::Greeting { .. } | State::Up { .. } => {
                self.counters.downs += 1;
                out.push(Output::Down(reason));
            }
        }
    }
}

/// Accepts up to `max` a second. After a second with more, the choice is random over the whole
/// second, so that whoever asks first does not starve the others.
#[derive(Clone, Copy, Debug)]
struct RateLimit {
    max: u32,
    since: Instant,
    seen: u32,
    admitted: u32,
    seen_before: u32,
}

impl RateLimit {
    fn new(max: u32) -> Self {
        Self { max, since: Instant::ZERO, seen: 0, admitted: 0, seen_before: 0 }
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now - self.since < RATE_WINDOW * 2
    }

    fn admits(&mut self, now: Instant, random: &mut u64) -> bool {
        if now - self.since >= RATE_WINDOW {
            self.seen_before = if self.is_fresh(now) { self.seen } else { 0 };
            (self.since, self.seen, self.admitted) = (now, 0, 0);
        }
        self.seen = self.seen.saturating_add(1);
        let lucky = self.seen_before <= self.max
            || next_random(random) % u64::from(self.seen_before) < u64::from(self.max);
        let admits = lucky && self.admitted < self.max;
        self.admitted += u32::from(admits);
        admits
    }
}

/// SplitMix64: enough to be fair, and the same for the same seed.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Prefix;

    const A: AnchorId = AnchorId(1);
    const B: AnchorId = AnchorId(2);

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    fn peer(own: AnchorId, other: AnchorId) -> Peer {
        Peer::new(PeerConfig::new(own, Role::Anchor, other), 7)
    }

    /// Carries everything from one to the other.
    fn carry(from: &mut Peer, to: &mut Peer, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        while let Some(octets) = from.poll_transmit(now) {
            to.handle_octets(&octets, now, &mut out);
        }
        out
    }

    fn linked(now: Instant) -> (Peer, Peer) {
        let (mut a, mut b) = (peer(A, B), peer(B, A));
        let mut out = Vec::new();
        a.handle_connected(now, &mut out);
        b.handle_connected(now, &mut out);
        assert_eq!(out, []);
        assert_eq!(carry(&mut a, &mut b, now), [Output::Up { role: Role::Anchor, path_end: None }]);
        assert_eq!(carry(&mut b, &mut a, now), [Output::Up { role: Role::Anchor, path_end: None }]);
        (a, b)
    }

    fn request(addr: u32) -> Signal {
        let prefix = Prefix::v4(addr, 32).unwrap();
        Signal::Request { prefix, sequence: 9, insist: false }
    }

    #[test]
    fn only_the_lower_anchor_dials() {
        assert!(peer(A, B).is_dialer());
        assert!(!peer(B, A).is_dialer());
    }

    #[test]
    fn signals_pass_after_the_hello_in_any_chunks() {
        let (mut a, mut b) = linked(at(0));
        assert_eq!(a.role(), Some(Role::Anchor));
        a.send(&request(1), at(1)).unwrap();
        a.send(&request(2), at(1)).unwrap();
        let mut octets = a.poll_transmit(at(1)).unwrap();
        octets.extend(a.poll_transmit(at(1)).unwrap());
        let mut out = Vec::new();
        for octet in octets {
            b.handle_octets(&[octet], at(1), &mut out);
        }
        assert_eq!(out, [Output::Signal(request(1)), Output::Signal(request(2))]);
    }

    #[test]
    fn who_does_not_greet_rightly_is_sent_away() {
        let hello = |anchor, role| {
            let mut octets = Vec::new();
            translate::hello_message(anchor, role, None).encode(&mut octets).unwrap();
            octets
        };
        let mut other_profile = hello(B, Role::Anchor);
        other_profile[21] = 9;
        let mut keepalive = Vec::new();
        translate::keepalive_message().encode(&mut keepalive).unwrap();
        for (octets, reason) in [
            (hello(AnchorId(3), Role::Anchor), DownReason::WrongAnchor(AnchorId(3))),
            (other_profile, DownReason::WrongProfile(9)),
            (keepalive, DownReason::NotGreeted),
            (b"GET / HTTP/1.1\r\n".to_vec(), DownReason::Framing),
            (vec![0x23, 0, 0, 3], DownReason::Framing),
        ] {
            let (mut a, mut out) = (peer(A, B), Vec::new());
            a.handle_connected(at(0), &mut out);
            a.handle_octets(&octets, at(1), &mut out);
            assert_eq!(out, [Output::Down(reason)]);
            assert_eq!(a.role(), None);
            assert_eq!(a.poll_transmit(at(1)), None);
        }
    }

    #[test]
    fn a_silent_peer_is_dead_and_keepalives_keep_it_alive() {
        let (mut a, mut b) = linked(at(0));
        let mut out = Vec::new();
        let mut now = at(0);
        for _ in 0..100 {
            now = a.poll_timeout().min(b.poll_timeout());
            a.handle_timeout(now, &mut out);
            b.handle_timeout(now, &mut out);
            out.extend(carry(&mut a, &mut b, now));
            out.extend(carry(&mut b, &mut a, now));
        }
        assert_eq!(out, []);
        assert!(now > at(100_000));
        // From here B is unplugged; A's octets go nowhere.
        while out.is_empty() {
            let now = a.poll_timeout();
            a.handle_timeout(now, &mut out);
            while a.poll_transmit(now).is_some() {}
        }
        assert_eq!(out, [Output::Down(DownReason::Silent)]);
        assert_eq!(a.poll_timeout(), Instant::FAR_FUTURE);
        assert_eq!(a.send(&request(1), now), Err(SendRefused::Down));
    }

    #[test]
    fn no_hello_in_time() {
        let (mut a, mut out) = (peer(A, B), Vec::new());
        a.handle_connected(at(0), &mut out);
        a.handle_timeout(at(4_999), &mut out);
        assert_eq!(out, []);
        a.handle_timeout(a.poll_timeout(), &mut out);
        assert_eq!(out, [Output::Down(DownReason::NoHello)]);
    }

    #[test]
    fn a_peer_that_does_not_read_fills_the_queue_and_is_dropped() {
        let (mut a, _) = linked(at(0));
        let mut sent = 0_usize;
        while a.send(&request(1), at(1)).is_ok() {
            sent += 1;
        }
        assert_eq!(a.send(&request(1), at(1)), Err(SendRefused::QueueFull));
        assert_eq!(a.counters().refused_queue_full, 2);
        assert!(a.queue_octets() <= QUEUE_OCTETS_MAX && sent > 100_000);
        let (mut keepalive, mut out) = (Vec::new(), Vec::new());
        translate::keepalive_message().encode(&mut keepalive).unwrap();
        a.handle_octets(&keepalive, at(9_000), &mut out);
        a.handle_timeout(at(10_001), &mut out);
        assert_eq!(out, [Output::Down(DownReason::Stalled)]);
        assert_eq!(a.queue_octets(), 0);
    }

    /// RFC 4067 §6.3: CT_REQUEST_RATE, random drop, other nodes unharmed.
    #[test]
    fn requests_above_the_rate_are_dropped() {
        let (mut a, mut b) = linked(at(0));
        let mut per_second = Vec::new();
        for second in 1..5 {
            let mut admitted = 0;
            for i in 0..100 {
                let now = at(second * 1000 + i * 10);
                a.send(&request(1), now).unwrap();
                admitted += carry(&mut a, &mut b, now).len();
            }
            per_second.push(admitted);
        }
        assert_eq!(per_second[0], 10, "the first second: the first ten");
        assert!(per_second.iter().all(|&n| (1..=10).contains(&n)), "{per_second:?}");
        let dropped = 400 - per_second.iter().sum::<usize>();
        assert_eq!(b.counters().requests_dropped_node, dropped as u64);
        a.send(&request(2), at(4_999)).unwrap();
        assert_eq!(carry(&mut a, &mut b, at(4_999)).len(), 1);
        // Nine in a second is not above the rate, once the flood is over.
        let now = at(7_000);
        for _ in 0..9 {
            a.send(&request(1), now).unwrap();
        }
        assert_eq!(carry(&mut a, &mut b, now).len(), 9);
    }

    #[test]
    fn the_table_of_watched_nodes_is_bounded() {
        let (mut a, mut b) = linked(at(0));
        for addr in 0..6000 {
            a.send(&request(addr), at(1)).unwrap();
        }
        assert_eq!(carry(&mut a, &mut b, at(1)).len(), 6000);
        assert_eq!(b.node_rates.len(), WATCHED_NODES_MAX);
        assert_eq!(b.counters().requests_unwatched, 6000 - WATCHED_NODES_MAX as u64);
        // Those that have been quiet make room.
        a.send(&request(9000), at(5_000)).unwrap();
        assert_eq!(carry(&mut a, &mut b, at(5_000)).len(), 1);
        assert_eq!(b.node_rates.len(), 1);
    }

    #[test]
    fn a_malformed_or_unknown_message_is_skipped_and_counted() {
        let (mut a, mut b) = linked(at(0));
        let mut out = Vec::new();
        b.handle_octets(&[0x3f, 0, 0, 4], at(1), &mut out); // type 31
        b.handle_octets(&[0x27, 0x80, 0, 8, 1, 2, 3, 4], at(1), &mut out); // CT-Req without more
        b.handle_octets(&[0x22, 0x80, 0, 8, 1, 2, 3, 4], at(1), &mut out); // CTAA
        a.send(&request(3), at(1)).unwrap();
        out.extend(carry(&mut a, &mut b, at(1)));
        assert_eq!(out, [Output::Signal(request(3))]);
        assert_eq!((b.counters().malformed, b.counters().foreign), (1, 2));
    }

    #[test]
    fn a_new_stream_replaces_the_old_one() {
        let (mut a, _) = linked(at(0));
        let mut out = Vec::new();
        a.send(&request(1), at(1)).unwrap();
        a.handle_connected(at(2), &mut out);
        assert_eq!(out, [Output::Down(DownReason::Closed)]);
        let first = a.poll_transmit(at(2)).unwrap();
        assert_eq!(Message::decode(&first).unwrap().name(), "CTD", "the hello, not the old queue");
        assert_eq!(a.poll_transmit(at(2)), None);
    }

    /// Each octet of a stream changed to each value: the link stays up with a counter moved, or
    /// goes down with a reason; what it buffers stays within a message.
    #[test]
    fn every_single_octet_change_of_a_stream() {
        let (mut a, mut out) = (peer(A, B), Vec::new());
        a.handle_connected(at(0), &mut out);
        let mut hello = Vec::new();
        translate::hello_message(B, Role::Anchor, None).encode(&mut hello).unwrap();
        a.handle_octets(&hello, at(0), &mut out);
        let mut stream = a.poll_transmit(at(0)).unwrap();
        for signal in [
            request(7),
            Signal::Cancel { addr: "10.0.0.7".parse().unwrap() },
            Signal::Reply { addr: "2001:db8::7".parse().unwrap(), failed: vec![] },
            Signal::ReportAck { epoch: 1, batch: 2 },
        ] {
            a.send(&signal, at(0)).unwrap();
            stream.extend(a.poll_transmit(at(0)).unwrap());
        }
        let (mut downs, mut skipped, mut good) = (0, 0, 0);
        for index in 0..stream.len() {
            for value in 0..=u8::MAX {
                let mut changed = stream.clone();
                changed[index] = value;
                let (mut b, mut out) = (peer(B, A), Vec::new());
                b.handle_connected(at(0), &mut out);
                b.handle_octets(&changed, at(1), &mut out);
                assert!(b.input.len() <= stream.len() && out.len() <= 6);
                match out.last() {
                    Some(Output::Down(_)) => downs += 1,
                    _ if b.counters().malformed + b.counters().foreign > 0 => skipped += 1,
                    _ => good += 1,
                }
            }
        }
        assert!(downs > 1000 && skipped > 1000 && good > 1000, "{downs} {skipped} {good}");
    }
}
