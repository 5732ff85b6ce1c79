//! The transient path of a relocation: what the hall asks of the one who holds packets, and hears
//! from it.
//!
//! ```text
//!   pMA   Hold ──────────→ Forward ─────────────────→ (quiet, or the bound) ─→ Ended
//!         packets wait     those that wait, then those that still come, in one stream to the nMA
//!
//!   nMA   Gate ─────────────────────────────────────→ (end marker, or the bound) ─→ Opened
//!         from the pMA: delivered at once; those that come directly wait until the stream is past
//!         what was sent before them
//!
//!   nMA   a source that is not delivered here yet: its packets wait ──Pass──→ on their way
//! ```
//!
//! A direct packet is later than all that were sent the old way before it: so the nMA asks the pMA
//! for a *marker* when it sees the first of a flow. What was on its way to the pMA is there before
//! the question is (the paths are no longer than by way of the nMA), so it comes back before the
//! answer, in the stream. The answer frees the flow.

use super::{Locator, Prefix};

/// Names a transient path, and proves that it was agreed on: made by the pMA, told to the nMA in
/// the context only, in each packet of the path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey(pub u128);

impl std::fmt::Debug for PathKey {
    /// Who knows a key can send packets to a node past the filters.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PathKey(…)")
    }
}

/// Where a killick takes packets of transient paths: one address of each family that it has, and
/// the UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathEnd {
    pub locator: Locator,
    pub port: u16,
}

/// Desired, for the prefix; the newest one replaces what was before. What then waits stays, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransientChange {
    /// pMA: from now on packets for the prefix wait, at most for the configured time; then they are
    /// delivered as before ([`TransientEvent::Ended`] with [`PathEnding::Silent`]).
    Hold { prefix: Prefix, key: PathKey },
    /// pMA: all that waits and all that still comes goes to the nMA.
    Forward { prefix: Prefix, key: PathKey, to: PathEnd },
    /// nMA: packets of the path are taken from there (any of its addresses) and delivered; those
    /// that come directly wait for their markers. Comes before the delivery of the prefix.
    Gate { prefix: Prefix, key: PathKey, from: PathEnd },
    /// Neither: what waits goes to where the kernel leads now.
    Release { prefix: Prefix },
    /// The source is authorised here: its packets that wait, and those that still come to us, go on.
    Pass { prefix: Prefix },
    /// The source is refused or gone: its packets that wait are dropped.
    Refuse { prefix: Prefix },
}

/// How a part of a path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathEnding {
    /// pMA: no packet came for the configured time. nMA: the pMA said so.
    Drained,
    /// The bound was reached and packets were still coming.
    Bound,
    /// The other side said nothing.
    Silent,
    /// By [`TransientChange::Release`], or another path of the prefix.
    Replaced,
    /// It could not be set up.
    Failed,
}

/// Of one prefix, since its state began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PathCounts {
    /// Packets that waited, and the octets in them.
    pub held: u64,
    pub octets: u64,
    /// pMA: sent to the nMA. nMA: taken from the pMA.
    pub forwarded: u64,
    pub dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransientEvent {
    /// Hold or Gate is in the kernel: from here on nothing is lost.
    Holding { prefix: Prefix },
    /// What had waited has been sent (pMA).
    Flushed { prefix: Prefix, counts: PathCounts },
    /// The state of the prefix is gone here, in the kernel as well.
    Ended { prefix: Prefix, how: PathEnding, counts: PathCounts },
}
