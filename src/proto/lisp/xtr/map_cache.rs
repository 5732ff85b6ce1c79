//! The table of an ITR: what is known of which EIDs, until when, and who uses it.
//!
//! Bounded: when it is full, the entry that was used longest ago makes room. Those that a
//! subscription keeps up to date are not evicted: nothing would bring them back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, RlocSet};
use crate::types::{Instant, Prefix};

/// Entries at once.
pub const ENTRIES_MAX: usize = 1_000_000;

/// A mapping that is valid for longer, or for as long as we like (RFC 9301 §5.4), is asked for once
/// a day.
const TTL_MAX_MIN: u32 = 24 * 60;

/// Who told a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Reply,
    /// With its nonce: of two publications about one prefix the greater one is the later one.
    Publication {
        nonce: u64,
    },
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedMapping {
    pub iid: InstanceId,
    /// Empty for a negative one; then `action` counts.
    pub rlocs: RlocSet,
    pub action: NegativeAction,
    pub version: MapVersion,
    pub origin: Origin,
    pub ttl: Duration,
    pub set_at: Instant,
    pub expires_at: Instant,
    /// When packets last used it, as far as the data plane has told.
    pub used_at: Option<Instant>,
}

impl CachedMapping {
    /// When it is asked for again if it is used: late enough to be rare, early enough for ten
    /// requests to be lost of the shortest TTL.
    fn refresh_at(&self) -> Instant {
        self.set_at + self.ttl * 4 / 5
    }

    pub fn is_pushed(&self) -> bool {
        matches!(self.origin, Origin::Publication { .. })
    }
}

pub fn ttl(minutes: u32) -> Duration {
    Duration::from_secs(60) * minutes.min(TTL_MAX_MIN)
}

/// What is due of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// 80 % of its time is over.
    Refresh,
    Expiry,
}

#[derive(Debug)]
struct Entry {
    mapping: CachedMapping,
    /// Its place in `timers`.
    timer_at: Instant,
    /// Its place in `by_use`, unless it is pushed.
    used_at: Option<Instant>,
}

#[derive(Debug)]
pub struct MapCache {
    entries: BTreeMap<Prefix, Entry>,
    timers: BTreeSet<(Instant, Prefix)>,
    by_use: BTreeSet<(Instant, Prefix)>,
    entries_max: usize,
}

/// What had to go for an entry that was put.
#[derive(Debug)]
pub struct Replaced {
    /// Of the same prefix.
    pub old: Option<CachedMapping>,
    pub evicted: Option<(Prefix, CachedMapping)>,
}

impl MapCache {
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            timers: BTreeSet::new(),
            by_use: BTreeSet::new(),
            entries_max: entries_max.max(1),
        }
    }

    pub fn get(&self, prefix: Prefix) -> Option<&CachedMapping> {
        self.entries.get(&prefix).map(|entry| &entry.mapping)
    }

    /// The longest entry that covers this.
    pub fn find(&self, covered: Prefix) -> Option<(Prefix, &CachedMapping)> {
        (0..=covered.len()).rev().find_map(|len| {
            let prefix = Prefix::new(covered.addr(), len)?;
            self.get(prefix).map(|mapping| (prefix, mapping))
        })
    }

    /// The entries within a prefix, but not of this prefix itself.
    pub fn within(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, &CachedMapping)> {
        // Prefixes are ordered by address, then length: those inside follow this one.
        self.entries
            .range((Excluded(prefix), Unbounded))
            .map(|(&p, entry)| (p, &entry.mapping))
            .take_while(move |&(p, _)| prefix.contains(Prefix::host(p.addr())))
    }

    /// `None` when the table is full of entries that a subscription keeps.
    pub fn put(
        &mut self,
        prefix: Prefix,
        mapping: CachedMapping,
        now: Instant,
    ) -> Option<Replaced> {
        let old = self.remove(prefix);
        let mut evicted = None;
        if self.entries.len() >= self.entries_max {
            let &(_, victim) = self.by_use.first()?;
            evicted = self.remove(victim).map(|mapping| (victim, mapping));
        }
        let timer_at = mapping.refresh_at();
        let used_at = (!mapping.is_pushed()).then(|| mapping.used_at.unwrap_or(now));
        self.timers.insert((timer_at, prefix));
        self.by_use.extend(used_at.map(|at| (at, prefix)));
        self.entries.insert(prefix, Entry { mapping, timer_at, used_at });
        Some(Replaced { old, evicted })
    }

    pub fn remove(&mut self, prefix: Prefix) -> Option<CachedMapping> {
        let entry = self.entries.remove(&prefix)?;
        self.timers.remove(&(entry.timer_at, prefix));
        if let Some(at) = entry.used_at {
            self.by_use.remove(&(at, prefix));
        }
        Some(entry.mapping)
    }

    /// Packets used it. True when it is so late in its life that it should be asked for.
    pub fn touch(&mut self, prefix: Prefix, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(&prefix) else { return false };
        entry.mapping.used_at = Some(now);
        if let Some(at) = &mut entry.used_at {
            self.by_use.remove(&(*at, prefix));
            *at = now;
            self.by_use.insert((now, prefix));
        }
        now >= entry.mapping.refresh_at()
    }

    pub fn poll_timeout(&self) -> Instant {
        self.timers.first().map_or(Instant::FAR_FUTURE, |&(at, _)| at)
    }

    /// The next entry for which something is due. It is then waited for its expiry; that of an
    /// entry that has expired is told until it is removed or extended.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Prefix, Due)> {
        let &(at, prefix) = self.timers.first().filter(|(at, _)| *at <= now)?;
        let entry = self.entries.get_mut(&prefix).expect("timers name entries that are there");
        if at >= entry.mapping.expires_at {
            return Some((prefix, Due::Expiry));
        }
        self.timers.remove(&(at, prefix));
        entry.timer_at = entry.mapping.expires_at;
        self.timers.insert((entry.timer_at, prefix));
        Some((prefix, Due::Refresh))
    }

    /// Holds for its TTL once more, from now on.
    pub fn extend(&mut self, prefix: Prefix, now: Instant) {
        let Some(entry) = self.entries.get_mut(&prefix) else { return };
        self.timers.remove(&(entry.timer_at, prefix));
        entry.mapping.expires_at = now + entry.mapping.ttl;
        entry.timer_at = entry.mapping.expires_at;
        self.timers.insert((entry.timer_at, prefix));
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries in order, beginning after `after`.
    pub fn entries(&self, after: Option<Prefix>) -> impl Iterator<Item = (Prefix, &CachedMapping)> {
        let from = after.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|(&prefix, entry)| (prefix, &entry.mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    fn mapping(origin: Origin, set_at: Instant, minutes: u32) -> CachedMapping {
        let ttl = ttl(minutes);
        CachedMapping {
            iid: InstanceId(0),
            rlocs: RlocSet::default(),
            action: NegativeAction::NoAction,
            version: MapVersion::NULL,
            origin,
            ttl,
            set_at,
            expires_at: set_at + ttl,
            used_at: None,
        }
    }

    fn put(cache: &mut MapCache, p: &str, origin: Origin, now: Instant) -> Option<String> {
        match cache.put(prefix(p), mapping(origin, now, 10), now) {
            Some(replaced) => replaced.evicted.map(|(p, _)| p.to_string()),
            None => Some("full".into()),
        }
    }

    #[test]
    fn the_longest_match_is_found_and_what_is_within() {
        let mut cache = MapCache::new(100);
        for p in ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.0/32", "10.2.0.0/16"] {
            put(&mut cache, p, Origin::Reply, at(0));
        }
        let find = |p: &str| cache.find(prefix(p)).map(|(p, _)| p.to_string());
        assert_eq!(find("10.1.0.0/32").as_deref(), Some("10.1.0.0/32"));
        assert_eq!(find("10.1.0.9/32").as_deref(), Some("10.1.0.0/24"));
        assert_eq!(find("10.3.0.0/16").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(find("11.0.0.1/32"), None);
        let within: Vec<_> = cache.within(prefix("10.1.0.0/16")).map(|(p, _)| p.len()).collect();
        assert_eq!(within, [24, 32]);
    }

    #[test]
    fn the_least_recently_used_makes_room_and_a_pushed_one_does_not() {
        let mut cache = MapCache::new(3);
        let pushed = Origin::Publication { nonce: 1 };
        put(&mut cache, "10.1.0.1/32", pushed, at(0));
        put(&mut cache, "10.1.0.2/32", Origin::Reply, at(1));
        put(&mut cache, "10.1.0.3/32", Origin::Reply, at(2));
        cache.touch(prefix("10.1.0.2/32"), at(3));
        let evicted = put(&mut cache, "10.1.0.4/32", Origin::Reply, at(4));
        assert_eq!(evicted.as_deref(), Some("10.1.0.3/32"));
        put(&mut cache, "10.1.0.5/32", pushed, at(5));
        put(&mut cache, "10.1.0.6/32", pushed, at(5));
        assert_eq!(put(&mut cache, "10.1.0.7/32", pushed, at(6)).as_deref(), Some("full"));
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn refresh_is_due_at_four_fifths_and_then_the_end() {
        let mut cache = MapCache::new(10);
        let p = prefix("10.1.0.1/32");
        put(&mut cache, "10.1.0.1/32", Origin::Reply, at(100));
        assert_eq!(cache.poll_timeout(), at(100 + 480));
        assert_eq!(cache.pop_due(at(579)), None);
        assert!(!cache.touch(p, at(579)));
        assert_eq!(cache.pop_due(at(580)), Some((p, Due::Refresh)));
        assert!(cache.touch(p, at(581)));
        assert_eq!(cache.pop_due(at(699)), None);
        assert_eq!(cache.pop_due(at(700)), Some((p, Due::Expiry)));
        cache.extend(p, at(700));
        assert_eq!(cache.poll_timeout(), at(1300));
        cache.remove(p);
        assert_eq!(cache.poll_timeout(), Instant::FAR_FUTURE);
    }
}
