//! One session (RFC 5880 §6). The words of the RFC's variables are kept: `desired_min_tx`,
//! `required_min_rx`, `remote_…`.

use std::time::Duration;

use crate::auth::BfdKey;
use crate::types::Instant;
use crate::wire::bfd::{Control, ControlError, Diagnostic, PACKET_LEN_MAX, Section, State};

/// §6.8.3: how fast a session that is not Up may be at most.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// As fast as we would like to send, and are prepared to receive. Not zero: that would mean
    /// something else on the wire.
    pub min_tx: Duration,
    pub min_rx: Duration,
    /// Not zero.
    pub multiplier: u8,
    /// Says nothing before the peer does (§6.1).
    pub passive: bool,
    /// Without one, packets with an authentication section are refused; with one, those without.
    pub key: Option<BfdKey>,
}

impl SessionConfig {
    pub fn new(min_tx: Duration, min_rx: Duration, multiplier: u8) -> Self {
        Self { min_tx, min_rx, multiplier, passive: false, key: None }
    }
}

/// Why a packet was discarded: §6.8.6 in its order, §6.7.4, and the TTL of RFC 5881 §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discard {
    /// It has come from farther away than the session reaches.
    Ttl,
    Malformed(ControlError),
    UnknownSession,
    /// A section, and no key here.
    AuthUnexpected,
    AuthMissing,
    AuthType,
    AuthKeyId,
    /// Heard before, or too far ahead.
    AuthSequence,
    AuthDigest,
    /// We are administratively down.
    AdminDown,
}

impl Discard {
    pub const ALL: [Self; 17] = [
        Self::Ttl,
        Self::Malformed(ControlError::Truncated),
        Self::Malformed(ControlError::Version),
        Self::Malformed(ControlError::Length),
        Self::Malformed(ControlError::DetectMult),
        Self::Malformed(ControlError::Multipoint),
        Self::Malformed(ControlError::MyDiscriminator),
        Self::Malformed(ControlError::YourDiscriminator),
        Self::Malformed(ControlError::Section),
        Self::UnknownSession,
        Self::AuthUnexpected,
        Self::AuthMissing,
        Self::AuthType,
        Self::AuthKeyId,
        Self::AuthSequence,
        Self::AuthDigest,
        Self::AdminDown,
    ];

    pub(super) fn index(self) -> usize {
        Self::ALL.iter().position(|d| *d == self).expect("ALL has all")
    }
}

/// The state has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
    pub diagnostic: Diagnostic,
    /// What the peer said last.
    pub remote_state: State,
}

impl Change {
    /// The path has failed, in the words of RFC 5882 §4.2: not when one of the two operators has
    /// taken the session down.
    pub fn is_failure(&self) -> bool {
        self.from == State::Up && self.to == State::Down && self.remote_state != State::AdminDown
    }

    /// Nothing is known of the path, and by somebody's wish.
    pub fn is_administrative(&self) -> bool {
        self.to == State::Down && self.remote_state == State::AdminDown
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    pub sent: u64,
    pub received: u64,
    pub discarded: u64,
    pub ups: u64,
    /// Times it left Up.
    pub downs: u64,
}

/// What the peer said last. §6.8.1 gives the first values.
#[derive(Clone, Copy, Debug)]
struct Remote {
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    min_rx: Duration,
    min_tx: Duration,
    detect_mult: u8,
    demand: bool,
    control_plane_independent: bool,
}

impl Remote {
    const UNKNOWN: Self = Self {
        discriminator: 0,
        state: State::Down,
        diagnostic: Diagnostic::NONE,
        min_rx: Duration::from_micros(1),
        min_tx: Duration::ZERO,
        detect_mult: 0,
        demand: false,
        control_plane_independent: false,
    };
}

/// §6.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    No,
    /// Wanted; no packet of it has been sent, so a Final cannot be the answer to it.
    Wanted,
    Sent,
}

/// SplitMix64: jitter and first sequence numbers, the same again for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    poll: Poll,
    /// In use, as long as what is told to the peer differs from it (§6.8.3).
    tx_in_use: Duration,
    rx_in_use: Duration,
    /// Of the last periodic packet.
    sent_at: Option<Instant>,
    /// Between the last one and the next, without jitter.
    interval: Option<Duration>,
    tx_at: Instant,
    received_at: Option<Instant>,
    detect_at: Instant,
    sequence: u32,
    /// What the key's last sequence number authenticated, so that another content gets another.
    sealed: Option<Control>,
    remote_sequence: Option<u32>,
    /// When the peer's sequence number is forgotten (§6.8.1, bfd.AuthSeqKnown).
    forget_sequence_at: Instant,
    random: Random,
    since: Instant,
    counters: SessionCounters,
}

/// What a session says to its table.
#[derive(Debug)]
pub(super) enum Said {
    Send(Vec<u8>),
    Changed(Change),
}

impl Session {
    /// Down, and sending from now on unless passive. `discriminator` is not 0 and no other
    /// session has it.
    pub(super) fn new(
        config: SessionConfig,
        discriminator: u32,
        mut random: Random,
        now: Instant,
    ) -> Self {
        let sequence = (random.next() >> 32) as u32;
        let slow = config.min_tx.max(SLOW);
        let mut session = Self {
            tx_in_use: slow,
            rx_in_use: config.min_rx,
            config,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: Remote::UNKNOWN,
            poll: Poll::No,
            sent_at: None,
            interval: None,
            tx_at: Instant::FAR_FUTURE,
            received_at: None,
            detect_at: Instant::FAR_FUTURE,
            sequence,
            sealed: None,
            remote_sequence: None,
            forget_sequence_at: Instant::FAR_FUTURE,
            random,
            since: now,
            counters: SessionCounters::default(),
        };
        session.schedule(now);
        session
    }

    pub const fn state(&self) -> State {
        self.state
    }

    pub const fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    pub const fn remote_state(&self) -> State {
        self.remote.state
    }

    pub const fn remote_diagnostic(&self) -> Diagnostic {
        self.remote.diagnostic
    }

    /// 0 while the peer's is not known.
    pub const fn remote_discriminator(&self) -> u32 {
        self.remote.discriminator
    }

    pub const fn remote_is_control_plane_independent(&self) -> bool {
        self.remote.control_plane_independent
    }

    pub const fn config(&self) -> &SessionConfig {
        &self.config
    }

    pub const fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// Since when it has been in its state.
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// §6.8.4, asynchronous mode; zero before the peer was heard.
    pub fn detection_time(&self) -> Duration {
        self.rx_in_use.max(self.remote.min_tx) * u32::from(self.remote.detect_mult)
    }

    /// §6.8.7, before jitter.
    pub fn transmit_interval(&self) -> Duration {
        self.tx_in_use.max(self.remote.min_rx)
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.tx_at.min(self.detect_at).min(self.forget_sequence_at)
    }

    /// The table counts what it has to discard itself.
    pub(super) fn note_discard(&mut self) {
        self.counters.discarded += 1;
    }

    /// Another client wants the same path watched, faster perhaps (RFC 5882 §4.1).
    pub(super) fn tighten(&mut self, other: &SessionConfig, now: Instant) {
        self.config.min_tx = self.config.min_tx.min(other.min_tx);
        self.config.min_rx = self.config.min_rx.min(other.min_rx);
        self.config.multiplier = self.config.multiplier.min(other.multiplier);
        self.config.passive &= other.passive;
        self.renegotiate();
        self.schedule(now);
    }

    /// §6.8.16, for good: the process is about to end. Again: says so again.
    pub(super) fn handle_admin_down(&mut self, now: Instant, out: &mut Vec<Said>) {
        match self.state {
            State::AdminDown => self.send(false, now, out),
            State::Down | State::Init | State::Up => {
                self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, now, out);
            }
        }
    }

    /// `packet`: the octets that `control` was decoded from, without what follows them.
    pub(super) fn handle_packet(
        &mut self,
        control: &Control,
        packet: &[u8],
        now: Instant,
        out: &mut Vec<Said>,
    ) -> Result<(), Discard> {
        self.authenticate(control, packet)?;
        let (was, remote_was) = (self.state, self.remote.state);
        self.remote = Remote {
            discriminator: control.my_discriminator,
            state: control.state,
            diagnostic: control.diagnostic,
            min_rx: control.required_min_rx(),
            min_tx: control.desired_min_tx(),
            detect_mult: control.detect_mult,
            demand: control.demand,
            control_plane_independent: control.control_plane_independent,
        };
        if control.is_final && self.poll == Poll::Sent {
            self.poll = Poll::No;
            (self.tx_in_use, self.rx_in_use) = (self.desired_min_tx(), self.config.min_rx);
        }
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        self.counters.received += 1;
        self.received_at = Some(now);
        self.transit(control.state, now, out);
        if (was, self.state) == (State::Down, State::Down)
            && control.state == State::AdminDown
            && remote_was != State::AdminDown
        {
            // Not a change of ours, but what was a failure is an operator's wish from now on.
            out.push(Said::Changed(self.change(State::Down)));
        }
        self.schedule(now);
        if control.poll {
            self.send(true, now, out);
        }
        Ok(())
    }

    /// The table of §6.8.6.
    fn transit(&mut self, received: State, now: Instant, out: &mut Vec<Said>) {
        let signaled = Diagnostic::NEIGHBOR_SIGNALED_DOWN;
        match (self.state, received) {
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down, signaled, now, out);
            }
            (State::Down, State::Down) => self.enter(State::Init, self.diagnostic, now, out),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, Diagnostic::NONE, now, out);
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up)
            | (State::AdminDown, _) => {}
        }
    }

    /// Harmless when early. Packets that lie in the socket are to be handled first: to a process
    /// that was stopped for a while, time has passed and nobody has been silent.
    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Said>) {
        if self.detect_at <= now {
            self.expire(now, out);
        }
        if self.forget_sequence_at <= now {
            self.remote_sequence = None;
            self.forget_sequence_at = Instant::FAR_FUTURE;
        }
        if self.tx_at <= now {
            self.send(false, now, out);
            self.sent_at = Some(now);
            self.interval = None; // jittered anew for each packet
            self.schedule(now);
        }
    }

    /// Nothing was heard for the detection time (§6.8.1, bfd.RemoteDiscr; §6.8.4).
    fn expire(&mut self, now: Instant, out: &mut Vec<Said>) {
        self.received_at = None;
        // What it last said of its state is what made us silent or not: it counts for the change.
        let state = self.remote.state;
        // Its limits are those of a process that may be gone, and "never send to me" (a minimum of
        // 0) would keep its successor from ever hearing us.
        self.remote = Remote { state, ..Remote::UNKNOWN };
        self.poll = Poll::No;
        match self.state {
            State::Init | State::Up => {
                self.enter(State::Down, Diagnostic::DETECTION_TIME_EXPIRED, now, out);
            }
            State::Down | State::AdminDown => self.schedule(now),
        }
        self.remote.state = State::Down;
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic, now: Instant, out: &mut Vec<Said>) {
        let from = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        self.since = now;
        self.counters.ups += u64::from(state == State::Up);
        self.counters.downs += u64::from(from == State::Up);
        if (from == State::Up) != (state == State::Up) {
            self.renegotiate();
        }
        out.push(Said::Changed(self.change(from)));
        self.schedule(now);
        // §6.8.7: what has changed is told at once, between two periodic packets.
        self.send(false, now, out);
    }

    fn change(&self, from: State) -> Change {
        let remote_state = self.remote.state;
        Change { from, to: self.state, diagnostic: self.diagnostic, remote_state }
    }

    /// What is told to the peer: §6.8.3 slows down all that is not Up.
    fn desired_min_tx(&self) -> Duration {
        match self.state {
            State::Up => self.config.min_tx,
            State::AdminDown | State::Down | State::Init => self.config.min_tx.max(SLOW),
        }
    }

    /// What we tell has changed (§6.8.3).
    fn renegotiate(&mut self) {
        let (tx, rx) = (self.desired_min_tx(), self.config.min_rx);
        if self.state != State::Up || tx < self.tx_in_use {
            self.tx_in_use = tx;
        }
        if self.state != State::Up || rx > self.rx_in_use {
            self.rx_in_use = rx;
        }
        // Nobody could answer a poll whose sender nobody knows.
        if self.remote.discriminator != 0 {
            self.poll = Poll::Wanted;
        }
    }

    /// §6.8.7: whether packets are sent periodically.
    fn is_periodic(&self) -> bool {
        let demanded = self.remote.demand
            && self.state == State::Up
            && self.remote.state == State::Up
            && self.poll == Poll::No;
        !self.is_mute() && !self.remote.min_rx.is_zero() && !demanded
    }

    /// §6.8.7: a passive end that knows nobody.
    fn is_mute(&self) -> bool {
        self.config.passive && self.remote.discriminator == 0
    }

    /// Sets both timers from what is known now.
    fn schedule(&mut self, now: Instant) {
        self.detect_at = match self.received_at {
            Some(at) => at + self.detection_time(),
            None => Instant::FAR_FUTURE,
        };
        if let (Some(at), Some(_)) = (self.received_at, self.remote_sequence) {
            self.forget_sequence_at = at + self.detection_time() * 2;
        }
        if !self.is_periodic() {
            (self.interval, self.tx_at) = (None, Instant::FAR_FUTURE);
            return;
        }
        let interval = self.transmit_interval();
        if self.interval != Some(interval) {
            self.interval = Some(interval);
            let jittered = self.jittered(interval);
            self.tx_at = match self.sent_at {
                Some(at) => (at + jittered).max(now),
                None => now,
            };
        }
    }

    /// §6.8.7: less by up to 25 %; with a multiplier of 1, by 10 to 25 %.
    fn jittered(&mut self, interval: Duration) -> Duration {
        let most = if self.config.multiplier == 1 { 90 } else { 100 };
        let us = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let (low, high) = (us / 100 * 75, us / 100 * most);
        let spread = (high - low).max(1);
        Duration::from_micros(low + self.random.next() % spread)
    }

    fn send(&mut self, is_final: bool, now: Instant, out: &mut Vec<Said>) {
        if self.is_mute() {
            return;
        }
        if self.poll == Poll::Wanted && !is_final {
            self.poll = Poll::Sent;
            self.schedule(now);
        }
        let us = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
        let control = Control {
            diagnostic: self.diagnostic,
            state: self.state,
            // §6.5: never both.
            poll: self.poll == Poll::Sent && !is_final,
            is_final,
            // The daemon is the control plane.
            control_plane_independent: false,
            demand: false,
            detect_mult: self.config.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx_us: us(self.desired_min_tx()),
            required_min_rx_us: us(self.config.min_rx),
            required_min_echo_rx_us: 0,
            section: None,
        };
        let mut octets = Vec::with_capacity(PACKET_LEN_MAX);
        match &self.config.key {
            None => control.encode(&mut octets),
            Some(key) => {
                let changed = self.sealed.as_ref() != Some(&control);
                if key.is_meticulous() || changed {
                    self.sequence = self.sequence.wrapping_add(1);
                }
                key.seal(control.clone(), self.sequence, &mut octets);
                self.sealed = Some(control);
            }
        }
        self.counters.sent += 1;
        out.push(Said::Send(octets));
    }

    /// §6.7, §6.8.6.
    fn authenticate(&mut self, control: &Control, packet: &[u8]) -> Result<(), Discard> {
        let (key, section) = match (&self.config.key, &control.section) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(Discard::AuthUnexpected),
            (Some(_), None) => return Err(Discard::AuthMissing),
            (Some(key), Some(section)) => (key, section),
        };
        let &Section::Keyed { key_id, meticulous, sequence, digest } = section else {
            return Err(Discard::AuthType);
        };
        let is_sha1 = matches!(digest, crate::wire::bfd::Digest::Sha1(_));
        if !is_sha1 || meticulous != key.is_meticulous() {
            return Err(Discard::AuthType);
        }
        if key_id != key.id() {
            return Err(Discard::AuthKeyId);
        }
        if let Some(last) = self.remote_sequence {
            let ahead = sequence.wrapping_sub(last);
            let least = u32::from(meticulous);
            if !(least..=3 * u32::from(control.detect_mult)).contains(&ahead) {
                return Err(Discard::AuthSequence);
            }
        }
        // §6.7.4 believes the first sequence number before it looks at the hash. Then a single
        // forged packet could shut the peer out; so the hash comes first.
        if !key.verify(packet) {
            return Err(Discard::AuthDigest);
        }
        self.remote_sequence = Some(sequence);
        Ok(())
    }
}
