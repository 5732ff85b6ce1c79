//! Connections before they are established, each with a state of its own (RFC 4271 §8.2.1).

use std::net::SocketAddr;
use std::time::Duration;

use super::collision::Direction;
use super::output::ConnId;
use crate::types::Instant;
use crate::wire::bgp::{Negotiated, Open};

/// Connections that are not established, at most one per direction.
#[derive(Debug, Default)]
pub struct Pending {
    pub outgoing: Option<Conn>,
    pub incoming: Option<Conn>,
}

#[derive(Debug)]
pub struct Conn {
    pub id: ConnId,
    pub phase: Phase,
}

#[derive(Debug)]
pub enum Phase {
    /// TCP is being set up.
    Connecting,
    /// `sent_at`: when our OPEN went out.
    OpenSent {
        ends: Ends,
        sent_at: Instant,
        hold_at: Instant,
    },
    OpenConfirm(Box<Confirm>),
}

#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

#[derive(Debug)]
pub struct Confirm {
    pub ends: Ends,
    /// When the peer's OPEN came.
    pub since: Instant,
    pub open: Open,
    pub negotiated: Negotiated,
    pub timers: Timers,
}

/// HoldTimer and KeepaliveTimer; both never expire when the hold time is zero.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    pub hold_time: Duration,
    pub hold_at: Instant,
    pub keepalive_at: Instant,
}

impl Timers {
    pub fn heard(&mut self, now: Instant) {
        if !self.hold_time.is_zero() {
            self.hold_at = now + self.hold_time;
        }
    }
}

impl Pending {
    pub const fn slot(&self, direction: Direction) -> &Option<Conn> {
        match direction {
            Direction::Outgoing => &self.outgoing,
            Direction::Incoming => &self.incoming,
        }
    }

    pub const fn slot_mut(&mut self, direction: Direction) -> &mut Option<Conn> {
        match direction {
            Direction::Outgoing => &mut self.outgoing,
            Direction::Incoming => &mut self.incoming,
        }
    }

    pub fn find(&self, id: ConnId) -> Option<Direction> {
        [Direction::Outgoing, Direction::Incoming]
            .into_iter()
            .find(|d| self.slot(*d).as_ref().is_some_and(|c| c.id == id))
    }

    pub fn conns(&self) -> impl Iterator<Item = &Conn> {
        self.outgoing.iter().chain(&self.incoming)
    }

    pub fn poll_timeout(&self) -> Instant {
        self.conns().map(Conn::poll_timeout).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

impl Conn {
    pub fn poll_timeout(&self) -> Instant {
        match &self.phase {
            Phase::Connecting => Instant::FAR_FUTURE, // guarded by the ConnectRetryTimer
            Phase::OpenSent { hold_at, .. } => *hold_at,
            Phase::OpenConfirm(c) => c.timers.hold_at.min(c.timers.keepalive_at),
        }
    }
}
