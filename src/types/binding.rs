//! Where a mobile prefix is, and which of two statements about it is newer.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AnchorId, Instant, Locator, MnId, Prefix, limits};

/// Number of the move, per mobile node; only grows. 0 is "never bound".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl Generation {
    pub const NONE: Self = Self(0);

    /// The generation of the next move. `None` at [`limits::GENERATION_MAX`]: a node that moved
    /// ten times a second for thirteen years needs an operator, not a wrap that looks old.
    pub fn next(self) -> Option<Self> {
        (self.0 < limits::GENERATION_MAX).then(|| Self(self.0 + 1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a change inside one node; grows with each change and starts anew at a restart.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// "This anchor holds the node, since this move." The order is the order of truth: the greater
/// claim wins. A later generation beats an earlier one; within one generation the lower anchor id
/// wins, the same at every node, so that a tie settles and does not flap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    pub generation: Generation,
    pub anchor: AnchorId,
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        self.generation.cmp(&other.generation).then(other.anchor.cmp(&self.anchor))
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// How long a binding lives without being refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// As long as the node is attached.
    WhileAttached,
    /// Until this instant (of the local clock; the wire carries the remaining time).
    Until(Instant),
}

impl Lifetime {
    pub fn is_over(self, now: Instant) -> bool {
        match self {
            Self::WhileAttached => false,
            Self::Until(at) => at <= now,
        }
    }

    /// Time left, `None` for [`Lifetime::WhileAttached`].
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        match self {
            Self::WhileAttached => None,
            Self::Until(at) => Some(at - now),
        }
    }
}

impl Serialize for Instant {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.as_micros())
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        u64::deserialize(d).map(Self::from_micros)
    }
}

/// The location of one mobile prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub prefix: Prefix,
    pub mn: MnId,
    /// Current anchor.
    pub anchor: AnchorId,
    /// The FE_E that serves the current anchor.
    pub fe_e: Locator,
    /// The anchor whose aggregate leads to the prefix without any mobility state.
    pub home: Option<AnchorId>,
    pub generation: Generation,
    pub lifetime: Lifetime,
}

impl Binding {
    pub fn claim(&self) -> Claim {
        Claim { generation: self.generation, anchor: self.anchor }
    }

    /// True while the aggregate of the home anchor already leads to the node.
    pub fn is_at_home(&self) -> bool {
        self.home == Some(self.anchor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_generation_wins_then_lower_anchor() {
        let claim = |g, a| Claim { generation: Generation(g), anchor: AnchorId(a) };
        assert!(claim(2, 9) > claim(1, 1));
        assert!(claim(2, 1) > claim(2, 9));
        assert_eq!(claim(2, 1).cmp(&claim(2, 1)), Ordering::Equal);
    }

    #[test]
    fn generations_end_and_do_not_wrap() {
        assert_eq!(Generation(limits::GENERATION_MAX).next(), None);
        assert_eq!(Generation(7).next(), Some(Generation(8)));
    }
}
