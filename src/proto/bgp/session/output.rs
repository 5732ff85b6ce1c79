//! What the machine says to its caller, and what the caller may tell it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::collision::Direction;
use super::config::Families;
use super::open::PeerGraceful;
use crate::proto::bgp::rib::PeerId;
use crate::types::Family;
use crate::wire::bgp::{Negotiated, Notification, Open, RouteRefresh};

/// A TCP connection. Never used twice (before 2^32 attempts to one neighbour).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub peer: PeerId,
    pub serial: u32,
}

/// RFC 4271 §8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// Why the operator (or the configuration) ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Until [`Session::start`]; RFC 9003 text, may be empty.
    Shutdown(String),
    /// The neighbour is no longer configured.
    Deconfigured,
    /// Down and up again; RFC 9003 text, may be empty.
    Reset(String),
    /// A new configuration needs a new OPEN. The caller replaces the machine.
    ConfigurationChange,
}

/// Why a connection or a session ended. Its `Display` is the operator's "last error".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer closed TCP, or TCP failed.
    ConnectionLost,
    ConnectFailed,
    /// Neither a connection nor a refusal in ConnectRetryTime.
    NoAnswer,
    HoldTimerExpired,
    SendHoldTimerExpired,
    Received(Notification),
    /// We found something wrong and said so.
    Sent(Notification),
    Stopped(Stop),
    MaxPrefixes {
        family: Family,
        limit: u32,
    },
    /// RFC 4271 §6.8.
    Collision,
    /// RFC 4724 §4.2: the peer opened a new session without ending the old one.
    PeerRestarted,
    /// BFD says that the path is down (RFC 5882 §4.2).
    PathDown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionLost => f.write_str("connection lost"),
            Self::ConnectFailed => f.write_str("cannot connect"),
            Self::NoAnswer => f.write_str("no answer"),
            Self::HoldTimerExpired => f.write_str("hold timer expired"),
            Self::SendHoldTimerExpired => {
                f.write_str("the peer does not read (send hold timer expired)")
            }
            Self::Received(n) => write!(f, "received {n}"),
            Self::Sent(n) => write!(f, "sent {n}"),
            Self::Stopped(Stop::Shutdown(_)) => f.write_str("administratively shut down"),
            Self::Stopped(Stop::Reset(_)) => f.write_str("administratively reset"),
            Self::Stopped(Stop::Deconfigured) => f.write_str("no longer configured"),
            Self::Stopped(Stop::ConfigurationChange) => f.write_str("configuration changed"),
            Self::MaxPrefixes { family, limit } => {
                write!(f, "more than {limit} {family} prefixes")
            }
            Self::Collision => f.write_str("connection collision"),
            Self::PeerRestarted => f.write_str("the peer restarted"),
            Self::PathDown => f.write_str("the path is down (BFD)"),
        }
    }
}

/// A session was established.
#[derive(Clone, Debug)]
pub struct Up {
    pub conn: ConnId,
    pub direction: Direction,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub negotiated: Negotiated,
    /// What the peer said of itself.
    pub open: Open,
    pub hold_time: Duration,
    pub graceful: Option<PeerGraceful>,
    /// Families whose stale routes wait for the peer's End-of-RIB.
    pub resumed: Families,
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Open a TCP connection; answer with `handle_connected` or `handle_closed`.
    Connect {
        conn: ConnId,
    },
    /// Whole messages.
    Send {
        conn: ConnId,
        bytes: Vec<u8>,
    },
    /// Give up the attempt, or send what is queued and close; a peer that does not read must not
    /// hold that up for ever. The machine has forgotten the connection.
    Close {
        conn: ConnId,
    },
    Up(Box<Up>),
    /// The established session ended. The routes of `retained` stay, marked stale; all others go.
    Down {
        reason: Reason,
        retained: Families,
    },
    /// An attempt ended before it was established.
    Failed {
        reason: Reason,
    },
    /// Stale routes that are still there go now (RFC 4724 §4.2).
    StaleExpired(Family),
}

/// What the caller has to do about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing; the machine has dealt with it.
    Handled,
    /// Give the body to the RIB.
    Update,
    RouteRefresh(RouteRefresh),
}
