//! What the engine is told at the start, and what it tells about itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::types::transient::{PathCounts, PathEnd};
use crate::types::{Family, Instant, Locator, Prefix};

/// Which packet goes when there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The one that came last: what waits arrives whole.
    #[default]
    Newest,
    /// The one that has waited longest: for traffic that is worthless when old.
    Oldest,
}

/// How much may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransientLimits {
    /// Prefixes with a state at one time.
    pub prefixes: usize,
    pub packets_per_prefix: usize,
    pub octets_per_prefix: usize,
    pub packets: usize,
    pub octets: usize,
    pub when_full: WhenFull,
    /// Hold: without a word from the other side.
    pub hold: Duration,
    /// Forward ends when no packet came for this long, ...
    pub quiet: Duration,
    /// ... and at this bound.
    pub forward: Duration,
    /// Gate: longer than what the pMA may take, or it opens while the pMA still sends.
    pub gate: Duration,
    /// A flow waits for its marker, while the pMA is silent.
    pub order: Duration,
    /// The pMA answers this much later: packets on the way to it may have been in a longer queue than
    /// the question.
    pub slack: Duration,
    /// A marker is asked for again.
    pub ask_again: Duration,
    /// Flows whose order a gate keeps. Packets of one more pass at once.
    pub flows_per_gate: usize,
    /// An end that is not acknowledged is said again, ...
    pub end_again: Duration,
    /// ... this often in all.
    pub ends: u8,
    /// Packets and questions of a path are understood after its end.
    pub past: Duration,
    /// Packets to one nMA leave at this pace at most while a queue is emptied: a burst of a
    /// whole queue finds no room in the buffers on its way.
    pub flush_packets_per_s: u32,
    /// Sources that are not authorised yet: how many, how much of each, and in total.
    pub sources: usize,
    pub packets_per_source: usize,
    pub source_packets: usize,
    pub source_octets: usize,
    /// Their packets are dropped after this.
    pub source_wait: Duration,
    /// What still comes of a source after it was passed.
    pub source_pass: Duration,
}

impl Default for TransientLimits {
    fn default() -> Self {
        let (hold, forward) = (Duration::from_secs(2), Duration::from_secs(5));
        Self {
            prefixes: 65_536,
            packets_per_prefix: 16_384,
            octets_per_prefix: 16 << 20,
            packets: 131_072,
            octets: 256 << 20,
            when_full: WhenFull::Newest,
            hold,
            quiet: Duration::from_millis(500),
            forward,
            gate: hold + forward + Duration::from_secs(1),
            order: Duration::from_millis(100),
            slack: Duration::from_millis(1),
            ask_again: Duration::from_millis(15),
            flows_per_gate: 4_096,
            end_again: Duration::from_millis(50),
            ends: 5,
            past: Duration::from_secs(2),
            flush_packets_per_s: 400_000,
            sources: 4_096,
            packets_per_source: 1_024,
            source_packets: 65_536,
            source_octets: 64 << 20,
            source_wait: Duration::from_secs(1),
            source_pass: Duration::from_millis(500),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub limits: TransientLimits,
    /// Where we take packets of paths. A family without an address is not spoken.
    pub local: PathEnd,
    /// Between two anchors that have both.
    pub prefer: Family,
}

impl Config {
    pub fn new(local: PathEnd) -> Self {
        // Routers on the way fragment IPv4.
        Self { limits: TransientLimits::default(), local, prefer: Family::Ipv4 }
    }

    /// Where packets to the other end go; `None` when there is no family that both have.
    pub fn peer(&self, end: PathEnd) -> Option<SocketAddr> {
        let of = |locator: Locator, family| match family {
            Family::Ipv4 => locator.ipv4.map(IpAddr::V4),
            Family::Ipv6 => locator.ipv6.map(IpAddr::V6),
        };
        let other = match self.prefer {
            Family::Ipv4 => Family::Ipv6,
            Family::Ipv6 => Family::Ipv4,
        };
        [self.prefer, other].into_iter().find_map(|family| {
            of(self.local.locator, family)?;
            Some(SocketAddr::new(of(end.locator, family)?, end.port))
        })
    }
}

/// Why a packet was dropped. A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransientDrop {
    /// No more of this prefix may wait.
    PrefixFull,
    /// No more may wait in all.
    TotalFull,
    /// It made room for a newer one.
    Oldest,
    /// Too long for a datagram.
    TooLong,
    /// Not an IP packet, or not a datagram of a path.
    Malformed,
    UnknownKey,
    /// Not from an address of the other end.
    WrongSource,
    /// The key is not one of this destination, or not one for such a message.
    WrongPrefix,
    /// Too many paths behind it.
    HopLimit,
    /// It came before.
    Duplicate,
    /// So late that it cannot be told whether it came before.
    Stale,
    /// The kernel did not take it.
    SendRefused,
    /// More sources than may wait, or more of one.
    SourceFull,
    /// A source was not authorised in time.
    SourceAge,
    /// A source was refused.
    SourceRefused,
}

impl TransientDrop {
    pub const ALL: [Self; 15] = [
        Self::PrefixFull,
        Self::TotalFull,
        Self::Oldest,
        Self::TooLong,
        Self::Malformed,
        Self::UnknownKey,
        Self::WrongSource,
        Self::WrongPrefix,
        Self::HopLimit,
        Self::Duplicate,
        Self::Stale,
        Self::SendRefused,
        Self::SourceFull,
        Self::SourceAge,
        Self::SourceRefused,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrefixFull => "prefix_full",
            Self::TotalFull => "total_full",
            Self::Oldest => "oldest",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::WrongSource => "wrong_source",
            Self::WrongPrefix => "wrong_prefix",
            Self::HopLimit => "hop_limit",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::SendRefused => "send_refused",
            Self::SourceFull => "source_full",
            Self::SourceAge => "source_age",
            Self::SourceRefused => "source_refused",
        }
    }
}

/// Since the start, and (the last group) at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransientTotals {
    /// Packets that waited for any reason, and the octets in them.
    pub held: u64,
    pub held_octets: u64,
    /// pMA: sent to the other end.
    pub forwarded: u64,
    pub forwarded_octets: u64,
    /// nMA: taken from the other end.
    pub received: u64,
    /// Given to the kernel, which delivers.
    pub written: u64,
    /// Received out of turn, and those that never came.
    pub reordered: u64,
    pub missing: u64,
    pub markers_asked: u64,
    pub markers_answered: u64,
    /// Flows that went on without their marker, and those that there was no room for.
    pub flows_late: u64,
    pub flows_full: u64,
    pub ends_unanswered: u64,
    /// In the devices, by the kernel: they were full.
    pub device_dropped: u64,
    /// By [`TransientDrop`].
    pub dropped: [u64; TransientDrop::ALL.len()],

    pub holds: u64,
    pub forwards: u64,
    pub gates: u64,
    pub waiting: u64,
    pub waiting_octets: u64,
    pub sources: u64,
}

impl TransientTotals {
    pub fn dropped(&self, why: TransientDrop) -> u64 {
        self.dropped[why as usize]
    }

    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    Hold,
    Forward,
    Gate,
    /// What waits goes out, then it is gone.
    Closing,
}

/// For people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathView {
    pub prefix: Prefix,
    pub state: PathState,
    pub since: Instant,
    /// The other end, where it is known.
    pub peer: Option<SocketAddr>,
    pub counts: PathCounts,
    pub waiting: usize,
    pub waiting_octets: usize,
    /// Flows that wait for their marker.
    pub flows: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransientError {
    #[error("as many prefixes as may be held are held")]
    Full,
    #[error("no address family that both ends of the path have")]
    NoFamily,
    #[error("the kernel refused: {0}")]
    Kernel(#[from] crate::dataplane::OpError),
    #[error("{0}")]
    Other(String),
}
