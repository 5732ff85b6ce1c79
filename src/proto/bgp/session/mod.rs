//! The BGP session machine of one neighbour (RFC 4271 §8), sans-IO.
//!
//! RFC 4271 §8.2.1 wants a machine per connection until a collision is resolved. Here that is one
//! machine with at most one established connection and, beside it or before it, one pending
//! connection per direction ([`Pending`]); each pending connection has a state of its own, and
//! [`Session::state`] tells that of the most advanced.
//!
//! Deviations, each with its reason:
//! - Connect, event 18 (TCP fails): to Active, not Idle. RFC 4271 does so only with DelayOpen, but a
//!   neighbour that we cannot reach may well be able to reach us, and Idle would refuse it.
//! - The first failure after a stable session goes to Active with a short ConnectRetryTimer; only
//!   failures in a row lead to Idle with an exponential IdleHoldTime (DampPeerOscillations, §8.1.1).
//! - RFC 4724 §5 drops an established session when the peer's new TCP connection comes; here, when
//!   its OPEN does. A SYN that merely lost the race of a simultaneous open must not kill the winner.

mod collision;
mod config;
mod jitter;
mod open;
mod output;
mod pending;
mod retained;
#[cfg(test)]
mod tests;
mod transport;

use std::net::SocketAddr;
use std::time::Duration;

use super::rib::PeerId;
use crate::types::{Family, Instant};
use crate::wire::bgp::notification::{cease, code, fsm};
use crate::wire::bgp::{
    MessageType, Negotiated, Notification, Open, RouteRefresh, SAFI_UNICAST, afi, encode_keepalive,
};

pub use collision::Direction;
pub use config::{Families, GracefulRestart, SessionConfig};
pub use open::PeerGraceful;
pub use output::{ConnId, Output, Reason, Received, SessionState, Stop, Up};
pub use transport::{Md5Key, Transport};

use jitter::Jitter;
use pending::{Confirm, Conn, Ends, Pending, Phase, Timers};
use retained::Retained;

/// RFC 4271 §8.2.2: "a HoldTimer value of 4 minutes is suggested" until the OPEN has come.
const OPEN_HOLD: Duration = Duration::from_secs(240);

/// A second connection this soon after establishment is the loser of a simultaneous open rather
/// than a peer that restarted, unless its OPEN says so.
const SIMULTANEOUS_OPEN: Duration = Duration::from_secs(5);

/// RFC 9687 §4, "Send Hold Timer Expired".
const SEND_HOLD_TIMER_EXPIRED: u8 = 8;

#[derive(Debug)]
enum State {
    Idle(Idle),
    /// Connect, Active, OpenSent, OpenConfirm, by the most advanced of `pending`.
    Opening {
        pending: Pending,
        /// ConnectRetryTimer.
        retry_at: Instant,
    },
    Established(Box<Established>),
}

#[derive(Debug)]
enum Idle {
    /// Until somebody calls `start`.
    Stopped,
    /// IdleHoldTimer.
    Held { until: Instant },
}

#[derive(Debug)]
struct Established {
    conn: ConnId,
    direction: Direction,
    since: Instant,
    /// When this connection entered OpenConfirm.
    confirmed_at: Instant,
    peer_id: std::net::Ipv4Addr,
    negotiated: Negotiated,
    graceful: Option<PeerGraceful>,
    timers: Timers,
    /// SendHoldTimer (RFC 9687).
    send_hold_at: Instant,
    /// RFC 4271 §8.2.2: a second connection is tracked until its OPEN comes.
    pending: Pending,
}

/// What follows the end of the last pending connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// TCP trouble: Active, and again after ConnectRetryTime.
    Retry,
    /// The peer or we disliked something: with damping.
    Damp,
}

/// The machine of one neighbour.
#[derive(Debug)]
pub struct Session {
    peer: PeerId,
    config: SessionConfig,
    jitter: Jitter,
    serial: u32,
    state: State,
    /// Failures in a row, for IdleHoldTime.
    failures: u32,
    retained: Retained,
    /// A session of this process has been established: from then on our restart is over, and our
    /// forwarding state has survived every reset since.
    was_up: bool,
}

impl Session {
    /// Idle until [`Self::start`]. `seed` is for jitter only.
    pub const fn new(peer: PeerId, config: SessionConfig, seed: u64) -> Self {
        Self {
            peer,
            config,
            jitter: Jitter::new(seed),
            serial: 0,
            state: State::Idle(Idle::Stopped),
            failures: 0,
            retained: Retained::Nothing,
            was_up: false,
        }
    }

    /// Numbers connections from here on: for a caller that gives the number of a former peer to a
    /// new one.
    pub const fn with_first_serial(mut self, serial: u32) -> Self {
        self.serial = serial;
        self
    }

    pub const fn config(&self) -> &SessionConfig {
        &self.config
    }

    pub fn state(&self) -> SessionState {
        match &self.state {
            State::Idle(_) => SessionState::Idle,
            State::Established(_) => SessionState::Established,
            State::Opening { pending, .. } => pending
                .conns()
                .map(|c| match c.phase {
                    Phase::Connecting => SessionState::Connect,
                    Phase::OpenSent { .. } => SessionState::OpenSent,
                    Phase::OpenConfirm(_) => SessionState::OpenConfirm,
                })
                .max()
                .unwrap_or(SessionState::Active),
        }
    }

    /// True when only [`Self::start`] can bring the session up.
    pub const fn is_stopped(&self) -> bool {
        matches!(self.state, State::Idle(Idle::Stopped))
    }

    /// Families with stale routes in the RIB.
    pub const fn retained(&self) -> Families {
        self.retained.families()
    }

    /// Events 1 and 4 (and 5 for a passive neighbour). Also ends an IdleHoldTime.
    pub fn start(&mut self, now: Instant, out: &mut Vec<Output>) {
        match self.state {
            State::Idle(_) => {
                self.failures = 0;
                self.open(now, out);
            }
            // §8.2.2: start events are ignored in all other states.
            State::Opening { .. } | State::Established(_) => {}
        }
    }

    /// Event 2, ManualStop.
    pub fn stop(&mut self, stop: Stop, now: Instant, out: &mut Vec<Output>) {
        let notification = match &stop {
            Stop::Shutdown(text) => Notification::shutdown(cease::ADMINISTRATIVE_SHUTDOWN, text),
            Stop::Reset(text) => Notification::shutdown(cease::ADMINISTRATIVE_RESET, text),
            Stop::Deconfigured => Notification::new(code::CEASE, cease::PEER_DECONFIGURED),
            Stop::ConfigurationChange => {
                Notification::new(code::CEASE, cease::CONFIGURATION_CHANGE)
            }
        };
        // RFC 8538 §5.1: what is meant to last is a Hard Reset; the others may keep forwarding.
        let graceful = match stop {
            Stop::Shutdown(_) | Stop::Deconfigured => false,
            Stop::Reset(_) | Stop::ConfigurationChange => true,
        };
        // A reset does not start what was shut down.
        let again = matches!(stop, Stop::Reset(_)) && !self.is_stopped();
        self.end(&notification, graceful, Reason::Stopped(stop), now, out);
        if again {
            self.failures = 0;
            self.open(now, out);
        } else {
            self.expire_all(out);
            self.state = State::Idle(Idle::Stopped);
        }
    }

    /// BFD says that the path to the peer has failed (RFC 5882 §4.2, RFC 9384). With `hold` the
    /// session stays down until [`Self::start`]; else it is tried again as after any failure, and
    /// what is not established yet is left alone: it will see for itself.
    pub fn handle_path_down(&mut self, hold: bool, now: Instant, out: &mut Vec<Output>) {
        let notification = Notification::cease(cease::BFD_DOWN);
        if hold {
            self.end(&notification, false, Reason::PathDown, now, out);
            self.expire_all(out);
            self.state = State::Idle(Idle::Stopped);
        } else if matches!(self.state, State::Established(_)) {
            self.leave_established(Some(&notification), Reason::PathDown, now, out);
        }
    }

    /// The RIB has more prefixes of `family` than allowed (event 8, RFC 4486 §4).
    pub fn exceed_max_prefixes(
        &mut self,
        family: Family,
        limit: u32,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let [high, low] = afi(family).to_be_bytes();
        let [a, b, c, d] = limit.to_be_bytes();
        let notification = Notification::with_data(
            code::CEASE,
            cease::MAX_PREFIXES,
            &[high, low, SAFI_UNICAST, a, b, c, d],
        );
        self.end(&notification, false, Reason::MaxPrefixes { family, limit }, now, out);
        self.expire_all(out);
        self.state = State::Idle(match self.config.max_prefix_restart {
            Some(after) => Idle::Held { until: now + after },
            None => Idle::Stopped,
        });
    }

    /// A connection attempt of ours succeeded (event 16).
    pub fn handle_connected(
        &mut self,
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let known = self.pending().and_then(|p| p.find(conn)) == Some(Direction::Outgoing);
        match &mut self.state {
            State::Opening { retry_at, .. } if known => {
                *retry_at = Instant::FAR_FUTURE;
                self.send_open(conn, Direction::Outgoing, Ends { local, remote }, now, out);
            }
            // The attempt was given up and its Close crossed this report.
            State::Idle(_) | State::Opening { .. } | State::Established(_) => {
                out.push(Output::Close { conn });
            }
        }
    }

    /// The peer connected to us (event 17). `None`: refuse, that is close it without a word.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<ConnId> {
        let pending = match &mut self.state {
            State::Idle(_) => return None, // §8.2.2: refuses all incoming connections
            State::Opening { pending, retry_at } => {
                if pending.outgoing.is_none() {
                    *retry_at = Instant::FAR_FUTURE;
                }
                pending
            }
            State::Established(e) => &mut e.pending,
        };
        match pending.incoming.take() {
            None => {}
            // The peer has progressed on that one; it will be told to make up its mind.
            Some(old @ Conn { phase: Phase::OpenConfirm(_), .. }) => {
                pending.incoming = Some(old);
                return None;
            }
            // It never said a word on the earlier one, so it has probably forgotten it.
            Some(Conn { id, phase: Phase::OpenSent { .. } | Phase::Connecting }) => {
                out.push(Output::Close { conn: id });
            }
        }
        let conn = self.next_conn();
        self.send_open(conn, Direction::Incoming, Ends { local, remote }, now, out);
        Some(conn)
    }

    /// A connection attempt failed, or a connection was closed or reset (event 18).
    pub fn handle_closed(&mut self, conn: ConnId, now: Instant, out: &mut Vec<Output>) {
        if let State::Established(e) = &self.state
            && e.conn == conn
        {
            self.leave_established(None, Reason::ConnectionLost, now, out);
            return;
        }
        let Some(direction) = self.pending().and_then(|p| p.find(conn)) else { return };
        let (then, reason) = match self.pending().and_then(|p| p.slot(direction).as_ref()) {
            Some(Conn { phase: Phase::Connecting, .. }) => (Then::Retry, Reason::ConnectFailed),
            Some(Conn { phase: Phase::OpenSent { .. }, .. }) => {
                (Then::Retry, Reason::ConnectionLost)
            }
            Some(Conn { phase: Phase::OpenConfirm(_), .. }) => (Then::Damp, Reason::ConnectionLost),
            None => return,
        };
        self.drop_pending(direction, None, reason, then, now, out);
    }

    /// The octets of `conn` cannot be a BGP message, or an UPDATE is beyond repair (events 21, 28).
    pub fn handle_wire_error(
        &mut self,
        conn: ConnId,
        notification: Notification,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match &self.state {
            State::Established(e) if e.conn == conn => {
                let reason = Reason::Sent(notification.clone());
                self.leave_established(Some(&notification), reason, now, out);
            }
            State::Idle(_) | State::Opening { .. } | State::Established(_) => {
                self.refuse(conn, notification, now, out);
            }
        }
    }

    /// The peer takes our octets slowly (`true`; call it again whenever some were taken, that is
    /// what restarts the SendHoldTimer) or has caught up (`false`). RFC 9687 §3.
    pub fn handle_congested(&mut self, conn: ConnId, congested: bool, now: Instant) {
        if let State::Established(e) = &mut self.state
            && e.conn == conn
        {
            e.send_hold_at = match self.config.send_hold {
                Some(hold) if congested => now + hold,
                Some(_) | None => Instant::FAR_FUTURE,
            };
        }
    }

    /// The peer's End-of-RIB came, and has been applied (RFC 4724 §4.2).
    pub fn handle_end_of_rib(&mut self, family: Family, out: &mut Vec<Output>) {
        if self.retained.end_of_rib(family) {
            out.push(Output::StaleExpired(family));
        }
    }

    /// One message of `conn`, without its header.
    pub fn handle_frame(
        &mut self,
        conn: ConnId,
        kind: MessageType,
        body: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Received {
        match &mut self.state {
            State::Established(e) if e.conn == conn => {
                e.timers.heard(now);
                self.handle_in_established(conn, kind, body, now, out)
            }
            State::Idle(_) | State::Opening { .. } | State::Established(_) => {
                self.handle_in_pending(conn, kind, body, now, out);
                Received::Handled
            }
        }
    }

    fn handle_in_established(
        &mut self,
        conn: ConnId,
        kind: MessageType,
        body: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Received {
        match kind {
            MessageType::Update => Received::Update,
            MessageType::Keepalive => Received::Handled,
            MessageType::RouteRefresh => match RouteRefresh::decode(body) {
                Ok(refresh) => Received::RouteRefresh(refresh),
                Err(notification) => {
                    self.handle_wire_error(conn, notification, now, out);
                    Received::Handled
                }
            },
            MessageType::Notification => {
                let reason = received(body);
                self.leave_established(None, reason, now, out);
                Received::Handled
            }
            MessageType::Open => {
                let n = Notification::with_data(
                    code::FSM,
                    fsm::UNEXPECTED_IN_ESTABLISHED,
                    &[kind as u8],
                );
                self.handle_wire_error(conn, n, now, out);
                Received::Handled
            }
        }
    }

    fn handle_in_pending(
        &mut self,
        conn: ConnId,
        kind: MessageType,
        body: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        // A connection that we have closed may still deliver what was under way.
        let Some(pending) = self.pending_mut() else { return };
        let Some(direction) = pending.find(conn) else { return };
        let Some(Conn { phase, .. }) = pending.slot_mut(direction) else { return };
        let subcode = match (phase, kind) {
            (Phase::Connecting, _) => return, // no octet can come before the connection is up
            (Phase::OpenSent { .. } | Phase::OpenConfirm(_), MessageType::Notification) => {
                let reason = received(body);
                self.drop_pending(direction, None, reason, Then::Damp, now, out);
                return;
            }
            (Phase::OpenSent { .. }, MessageType::Open) => {
                self.handle_open(conn, direction, body, now, out);
                return;
            }
            (Phase::OpenConfirm(_), MessageType::Keepalive) => {
                self.establish(direction, now, out);
                return;
            }
            (
                Phase::OpenSent { .. },
                MessageType::Keepalive | MessageType::Update | MessageType::RouteRefresh,
            ) => fsm::UNEXPECTED_IN_OPEN_SENT,
            (
                Phase::OpenConfirm(_),
                MessageType::Open | MessageType::Update | MessageType::RouteRefresh,
            ) => fsm::UNEXPECTED_IN_OPEN_CONFIRM,
        };
        let n = Notification::with_data(code::FSM, subcode, &[kind as u8]);
        self.refuse(conn, n, now, out);
    }

    /// Events 19, 20, 22 and 23: an OPEN in OpenSent.
    fn handle_open(
        &mut self,
        conn: ConnId,
        direction: Direction,
        body: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let local = self.our_open();
        let open = match Open::decode(body) {
            Ok(open) => open,
            Err(notification) => return self.refuse(conn, notification, now, out),
        };
        if let Err(notification) = open::check(&self.config, &local, &open) {
            return self.refuse(conn, notification, now, out);
        }
        if !self.resolve_collision(direction, &open, now, out) {
            let n = Notification::new(code::CEASE, cease::COLLISION);
            return self.drop_pending(direction, Some(&n), Reason::Collision, Then::Damp, now, out);
        }
        let hold_time = Duration::from_secs(u64::from(open::hold_time_s(&local, &open)));
        let keepalive_at = self.next_keepalive(hold_time, now);
        let negotiated = Negotiated::between(&local, &open);
        let Some(pending) = self.pending_mut() else { return };
        let Some(Conn { phase, .. }) = pending.slot_mut(direction) else { return };
        let Phase::OpenSent { ends, .. } = *phase else { return };
        let mut timers = Timers { hold_time, hold_at: Instant::FAR_FUTURE, keepalive_at };
        timers.heard(now);
        *phase =
            Phase::OpenConfirm(Box::new(Confirm { ends, since: now, open, negotiated, timers }));
        push_keepalive(conn, out);
    }

    /// RFC 4271 §6.8 for a connection in `direction` that has just got a good OPEN. True when it
    /// may go on; the other one has been closed then, if there was one in its way.
    fn resolve_collision(
        &mut self,
        direction: Direction,
        open: &Open,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let survivor = collision::survivor(
            (self.config.router_id, self.config.local_as),
            (open.bgp_id, open.asn()),
        );
        let cease = Notification::new(code::CEASE, cease::COLLISION);
        match &mut self.state {
            State::Idle(_) => false, // no connection can be pending in Idle
            State::Opening { pending, .. } => {
                let other = direction.other();
                let in_confirm =
                    matches!(pending.slot(other), Some(Conn { phase: Phase::OpenConfirm(_), .. }));
                if !in_confirm {
                    return true; // §6.8 looks at OpenConfirm only; in OpenSent the identifier is unknown
                }
                if survivor == other {
                    return false;
                }
                self.drop_pending(other, Some(&cease), Reason::Collision, Then::Damp, now, out);
                true
            }
            State::Established(e) => {
                let sent_at = match e.pending.slot(direction) {
                    Some(Conn { phase: Phase::OpenSent { sent_at, .. }, .. }) => *sent_at,
                    Some(Conn { phase: Phase::Connecting | Phase::OpenConfirm(_), .. }) | None => {
                        return false;
                    }
                };
                // Our OPEN on this connection went out before our KEEPALIVE on the established
                // one, so the peer has compared the two while that one was in its OpenConfirm, and
                // has decided by identifier. We must come to the same answer, or both are closed.
                let peer_chose_this = sent_at <= e.confirmed_at
                    && direction != e.direction
                    && survivor == direction
                    && e.peer_id == open.bgp_id;
                if peer_chose_this {
                    self.leave_established(Some(&cease), Reason::Collision, now, out);
                    return true;
                }
                let gracefully = e.graceful.is_some_and(|g| !g.families.is_empty());
                let says_so = open::graceful(open).is_some_and(|g| g.restarting);
                let settled = now.saturating_since(e.since) >= SIMULTANEOUS_OPEN;
                if direction == Direction::Incoming && gracefully && (says_so || settled) {
                    self.leave_established(None, Reason::PeerRestarted, now, out);
                    return true;
                }
                // §6.8: the new one is closed. If the peer has in fact forgotten the old one, then
                // its TCP resets it as soon as we say something there.
                push_keepalive(e.conn, out);
                false
            }
        }
    }

    /// Event 26 in OpenConfirm.
    fn establish(&mut self, direction: Direction, now: Instant, out: &mut Vec<Output>) {
        let Some(pending) = self.pending_mut() else { return };
        let Some(Conn { id, phase: Phase::OpenConfirm(mut confirm) }) =
            pending.slot_mut(direction).take()
        else {
            return;
        };
        let mut rest = std::mem::take(pending);
        for slot in [&mut rest.outgoing, &mut rest.incoming] {
            match slot.take() {
                // §8.2.2: tracked until it sends an OPEN, which is then a collision.
                Some(conn @ Conn { phase: Phase::OpenSent { .. }, .. }) => *slot = Some(conn),
                // Two in OpenConfirm cannot be: the second OPEN has closed one of them.
                Some(Conn { id, phase: Phase::Connecting | Phase::OpenConfirm(_) }) => {
                    out.push(Output::Close { conn: id });
                }
                None => {}
            }
        }
        confirm.timers.heard(now);
        let Confirm { ends, since, open, negotiated, timers } = *confirm;
        let graceful = open::graceful(&open);
        let forwarding = match (self.config.graceful_restart, graceful) {
            (Some(_), Some(g)) => g.forwarding,
            (None, _) | (_, None) => Families::NONE,
        };
        for family in self.retained.resume(forwarding).iter() {
            out.push(Output::StaleExpired(family));
        }
        self.was_up = true;
        self.state = State::Established(Box::new(Established {
            conn: id,
            direction,
            since: now,
            confirmed_at: since,
            peer_id: open.bgp_id,
            negotiated,
            graceful,
            timers,
            send_hold_at: Instant::FAR_FUTURE,
            pending: rest,
        }));
        out.push(Output::Up(Box::new(Up {
            conn: id,
            direction,
            local: ends.local,
            remote: ends.remote,
            negotiated,
            open,
            hold_time: timers.hold_time,
            graceful,
            resumed: self.retained.families(),
        })));
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        let machine = match &self.state {
            State::Idle(Idle::Stopped) => Instant::FAR_FUTURE,
            State::Idle(Idle::Held { until }) => *until,
            State::Opening { pending, retry_at } => pending.poll_timeout().min(*retry_at),
            State::Established(e) => e
                .timers
                .hold_at
                .min(e.timers.keepalive_at)
                .min(e.send_hold_at)
                .min(e.pending.poll_timeout()),
        };
        machine.min(self.retained.poll_timeout())
    }

    /// Harmless when woken early.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.retained.poll_timeout() <= now {
            self.expire_all(out);
        }
        for direction in [Direction::Outgoing, Direction::Incoming] {
            self.handle_pending_timeout(direction, now, out);
        }
        match &mut self.state {
            State::Idle(Idle::Held { until }) if *until <= now => self.open(now, out),
            State::Opening { pending, retry_at } if *retry_at <= now => {
                if let Some(Conn { id, phase: Phase::Connecting }) = pending.outgoing {
                    pending.outgoing = None;
                    out.push(Output::Close { conn: id });
                    out.push(Output::Failed { reason: Reason::NoAnswer });
                }
                self.try_connect(now, out);
            }
            State::Established(e) if e.timers.hold_at <= now => {
                let n = Notification::new(code::HOLD_TIMER_EXPIRED, 0);
                self.leave_established(Some(&n), Reason::HoldTimerExpired, now, out);
            }
            State::Established(e) if e.send_hold_at <= now => {
                let n = Notification::new(SEND_HOLD_TIMER_EXPIRED, 0);
                self.leave_established(Some(&n), Reason::SendHoldTimerExpired, now, out);
            }
            State::Established(e) if e.timers.keepalive_at <= now => {
                push_keepalive(e.conn, out);
                let hold_time = e.timers.hold_time;
                let next = self.next_keepalive(hold_time, now);
                if let State::Established(e) = &mut self.state {
                    e.timers.keepalive_at = next;
                }
            }
            State::Idle(_) | State::Opening { .. } | State::Established(_) => {} // woken early
        }
    }

    fn handle_pending_timeout(
        &mut self,
        direction: Direction,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(conn) = self.pending().and_then(|p| p.slot(direction).as_ref()) else { return };
        let id = conn.id;
        let (hold_at, keepalive) = match &conn.phase {
            Phase::Connecting => return, // the ConnectRetryTimer is looked at elsewhere
            Phase::OpenSent { hold_at, .. } => (*hold_at, None),
            Phase::OpenConfirm(c) => {
                (c.timers.hold_at, (c.timers.keepalive_at <= now).then_some(c.timers.hold_time))
            }
        };
        if hold_at <= now {
            let n = Notification::new(code::HOLD_TIMER_EXPIRED, 0);
            let reason = Reason::HoldTimerExpired;
            return self.drop_pending(direction, Some(&n), reason, Then::Damp, now, out);
        }
        if let Some(hold_time) = keepalive {
            push_keepalive(id, out);
            let next = self.next_keepalive(hold_time, now);
            if let Some(Conn { phase: Phase::OpenConfirm(c), .. }) =
                self.pending_mut().and_then(|p| p.slot_mut(direction).as_mut())
            {
                c.timers.keepalive_at = next;
            }
        }
    }

    const fn pending(&self) -> Option<&Pending> {
        match &self.state {
            State::Idle(_) => None,
            State::Opening { pending, .. } => Some(pending),
            State::Established(e) => Some(&e.pending),
        }
    }

    const fn pending_mut(&mut self) -> Option<&mut Pending> {
        match &mut self.state {
            State::Idle(_) => None,
            State::Opening { pending, .. } => Some(pending),
            State::Established(e) => Some(&mut e.pending),
        }
    }

    const fn next_conn(&mut self) -> ConnId {
        let serial = self.serial;
        self.serial = self.serial.wrapping_add(1);
        ConnId { peer: self.peer, serial }
    }

    fn our_open(&self) -> Open {
        let graceful = self.config.graceful_restart;
        let restarting = !self.was_up && graceful.is_some_and(|g| g.restarting);
        let forwarding = self.was_up || graceful.is_some_and(|g| g.forwarding_preserved);
        open::ours(&self.config, restarting, forwarding)
    }

    /// From Idle: connect, or wait to be connected to.
    fn open(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.state = State::Opening { pending: Pending::default(), retry_at: Instant::FAR_FUTURE };
        self.try_connect(now, out);
    }

    /// Starts an attempt and the timer that guards it, unless passive.
    fn try_connect(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.config.passive {
            if let State::Opening { retry_at, .. } = &mut self.state {
                *retry_at = Instant::FAR_FUTURE;
            }
            return;
        }
        let wait = self.jitter.apply(self.config.connect_retry);
        let conn = self.next_conn();
        let State::Opening { pending, retry_at } = &mut self.state else { return };
        pending.outgoing = Some(Conn { id: conn, phase: Phase::Connecting });
        *retry_at = now + wait;
        out.push(Output::Connect { conn });
    }

    fn send_open(
        &mut self,
        conn: ConnId,
        direction: Direction,
        ends: Ends,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut bytes = Vec::new();
        self.our_open().encode(&mut bytes);
        out.push(Output::Send { conn, bytes });
        if let Some(pending) = self.pending_mut() {
            let phase = Phase::OpenSent { ends, sent_at: now, hold_at: now + OPEN_HOLD };
            *pending.slot_mut(direction) = Some(Conn { id: conn, phase });
        }
    }

    /// A third of the hold time (RFC 4271 §4.4), with jitter (§10).
    fn next_keepalive(&mut self, hold_time: Duration, now: Instant) -> Instant {
        if hold_time.is_zero() {
            Instant::FAR_FUTURE
        } else {
            now + self.jitter.apply(hold_time / 3)
        }
    }

    /// Something about a pending connection is not acceptable.
    fn refuse(
        &mut self,
        conn: ConnId,
        notification: Notification,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(direction) = self.pending().and_then(|p| p.find(conn)) else { return };
        let reason = Reason::Sent(notification.clone());
        self.drop_pending(direction, Some(&notification), reason, Then::Damp, now, out);
    }

    /// Ends a pending connection. What is next is decided only when it was the last one.
    fn drop_pending(
        &mut self,
        direction: Direction,
        notification: Option<&Notification>,
        reason: Reason,
        then: Then,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(conn) = self.pending_mut().and_then(|p| p.slot_mut(direction).take()) else {
            return;
        };
        if let Some(notification) = notification {
            push_notification(conn.id, notification, out);
        }
        out.push(Output::Close { conn: conn.id });
        out.push(Output::Failed { reason });
        let State::Opening { pending, retry_at } = &mut self.state else { return };
        match (&pending.outgoing, &pending.incoming, then) {
            (Some(Conn { phase: Phase::Connecting, .. }), None, _) => {
                // Its guard may have been off while the other connection was there.
                *retry_at = (*retry_at).min(now + self.config.connect_retry);
            }
            (Some(_), _, _) | (_, Some(_), _) => {}
            (None, None, Then::Retry) => {
                *retry_at = if self.config.passive {
                    Instant::FAR_FUTURE
                } else {
                    now + self.jitter.apply(self.config.connect_retry)
                };
            }
            (None, None, Then::Damp) => self.back_off(now),
        }
    }

    /// DampPeerOscillations (§8.1.1).
    fn back_off(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let doublings = (self.failures - 1).min(16);
        let hold =
            self.config.idle_hold_min.saturating_mul(1 << doublings).min(self.config.idle_hold_max);
        let at = now + self.jitter.apply(hold);
        self.state = if self.failures == 1 {
            let retry_at = if self.config.passive { Instant::FAR_FUTURE } else { at };
            State::Opening { pending: Pending::default(), retry_at }
        } else {
            State::Idle(Idle::Held { until: at })
        };
    }

    /// The end of an established session that the operator did not ask for. A pending connection
    /// lives on.
    fn leave_established(
        &mut self,
        notification: Option<&Notification>,
        reason: Reason,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let graceful = match &reason {
            Reason::Received(n) => !n.is_hard_reset(),
            Reason::ConnectionLost
            | Reason::ConnectFailed
            | Reason::NoAnswer
            | Reason::HoldTimerExpired
            | Reason::SendHoldTimerExpired
            | Reason::Sent(_)
            | Reason::Collision
            | Reason::PeerRestarted => true,
            // RFC 5882 §4.3.2.2: nobody said that it would restart, and packets do not get through:
            // to keep its routes would be a black hole.
            Reason::Stopped(_) | Reason::MaxPrefixes { .. } | Reason::PathDown => false,
        };
        let Some(pending) = self.close_established(notification, graceful, reason, now, out) else {
            return;
        };
        if pending.conns().next().is_some() {
            self.state = State::Opening { pending, retry_at: Instant::FAR_FUTURE };
        } else {
            self.back_off(now);
        }
    }

    /// Says goodbye, tells the RIB, and leaves the machine in Idle. Returns what was pending.
    fn close_established(
        &mut self,
        notification: Option<&Notification>,
        graceful: bool,
        reason: Reason,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<Pending> {
        let e = match std::mem::replace(&mut self.state, State::Idle(Idle::Stopped)) {
            State::Established(e) => *e,
            state @ (State::Idle(_) | State::Opening { .. }) => {
                self.state = state;
                return None;
            }
        };
        let ours = self.config.graceful_restart;
        let n_bit =
            ours.is_some_and(|o| o.notification) && e.graceful.is_some_and(|g| g.notification);
        if let Some(notification) = notification {
            // RFC 8538 §3.1: the peer would otherwise take it for a graceful one.
            if n_bit && !graceful {
                push_notification(e.conn, &notification.hard_reset(), out);
            } else {
                push_notification(e.conn, notification, out);
            }
        }
        out.push(Output::Close { conn: e.conn });
        // RFC 4724 §5 keeps routes when TCP ends without a NOTIFICATION; RFC 8538 §4 also with one.
        let told = notification.is_some() || matches!(reason, Reason::Received(_));
        let (keep, restart_time, stale_time) = match (ours, e.graceful) {
            (Some(ours), Some(peer)) if graceful && (n_bit || !told) => {
                let negotiated: Families =
                    Family::ALL.into_iter().filter(|f| e.negotiated.has(*f)).collect();
                (
                    peer.families.and(negotiated),
                    Duration::from_secs(u64::from(peer.restart_time_s)),
                    ours.stale_time,
                )
            }
            (Some(_) | None, Some(_) | None) => (Families::NONE, Duration::ZERO, Duration::ZERO),
        };
        for family in self.retained.lose(keep, n_bit, restart_time, stale_time, now).iter() {
            out.push(Output::StaleExpired(family));
        }
        out.push(Output::Down { reason, retained: keep });
        if now.saturating_since(e.since) >= self.config.stable_after {
            self.failures = 0;
        }
        Some(e.pending)
    }

    /// Ends everything there is: the established session and all pending connections.
    fn end(
        &mut self,
        notification: &Notification,
        graceful: bool,
        reason: Reason,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let pending = match &mut self.state {
            State::Idle(_) => return,
            State::Opening { pending, .. } => {
                out.push(Output::Failed { reason });
                std::mem::take(pending)
            }
            State::Established(_) => self
                .close_established(Some(notification), graceful, reason, now, out)
                .unwrap_or_default(),
        };
        for conn in pending.conns() {
            match conn.phase {
                Phase::Connecting => {}
                Phase::OpenSent { .. } | Phase::OpenConfirm(_) => {
                    push_notification(conn.id, notification, out);
                }
            }
            out.push(Output::Close { conn: conn.id });
        }
        self.state = State::Idle(Idle::Stopped);
    }

    fn expire_all(&mut self, out: &mut Vec<Output>) {
        for family in self.retained.clear().iter() {
            out.push(Output::StaleExpired(family));
        }
    }
}

/// A NOTIFICATION that cannot be read still ends the session, and nothing is answered to it
/// (RFC 4271 §6.4).
fn received(body: &[u8]) -> Reason {
    Reason::Received(Notification::decode(body).unwrap_or(Notification::new(0, 0)))
}

fn push_keepalive(conn: ConnId, out: &mut Vec<Output>) {
    let mut bytes = Vec::new();
    encode_keepalive(&mut bytes);
    out.push(Output::Send { conn, bytes });
}

fn push_notification(conn: ConnId, notification: &Notification, out: &mut Vec<Output>) {
    let mut bytes = Vec::new();
    notification.encode(&mut bytes);
    out.push(Output::Send { conn, bytes });
}
