//! How often a thing may be done per key, in a table that cannot grow.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::types::Instant;

/// At most one per `interval` and key. When the table is full of keys that were used within the
/// interval, a new one is refused: the answer is "not now", as for one that was used too often.
#[derive(Debug)]
pub struct Spacing<K> {
    interval: Duration,
    keys_max: usize,
    /// Until when each key has to wait.
    until: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K: Copy + Ord> Spacing<K> {
    pub fn new(interval: Duration, keys_max: usize) -> Self {
        Self { interval, keys_max, until: BTreeMap::new(), by_time: BTreeSet::new() }
    }

    pub fn take(&mut self, key: K, now: Instant) -> bool {
        while let Some(&(at, old)) = self.by_time.first().filter(|(at, _)| *at <= now) {
            self.by_time.remove(&(at, old));
            self.until.remove(&old);
        }
        if self.until.contains_key(&key) || self.until.len() >= self.keys_max {
            return false;
        }
        let until = now + self.interval;
        self.until.insert(key, until);
        self.by_time.insert((until, key));
        true
    }
}

/// So many at once, and then so many per second.
#[derive(Debug)]
pub struct Bucket {
    tokens: u32,
    burst: u32,
    token_every: Duration,
    filled_at: Instant,
}

impl Bucket {
    pub fn new(burst: u32, per_second: u32) -> Self {
        let token_every = Duration::from_secs(1) / per_second;
        Self { tokens: burst, burst, token_every, filled_at: Instant::ZERO }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        let earned = (now - self.filled_at).as_nanos() / self.token_every.as_nanos();
        match u32::try_from(earned) {
            Ok(earned) if earned < self.burst => {
                self.tokens = (self.tokens + earned).min(self.burst);
                self.filled_at += self.token_every * earned;
            }
            Ok(_) | Err(_) => {
                self.tokens = self.burst;
                self.filled_at = now;
            }
        }
        let Some(tokens) = self.tokens.checked_sub(1) else { return false };
        self.tokens = tokens;
        true
    }
}

/// Buckets for destinations. Those that fall into one share it: with so many, one can slow down a
/// few others, but neither silence them nor grow memory.
#[derive(Debug)]
pub struct Buckets(Vec<Bucket>);

impl Buckets {
    const LEN: usize = 1024;

    pub fn new(burst: u32, per_second: u32) -> Self {
        Self((0..Self::LEN).map(|_| Bucket::new(burst, per_second)).collect())
    }

    pub fn take(&mut self, to: IpAddr, now: Instant) -> bool {
        let hash = FixedState::default().hash_one(to);
        let at = usize::try_from(hash % Self::LEN as u64).expect("below 1024");
        self.0[at].take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_per_interval_and_key_in_a_table_that_does_not_grow() {
        let mut spacing = Spacing::new(Duration::from_secs(3), 2);
        let at = |s: u64| Instant::from_micros(s * 1_000_000);
        assert!(spacing.take('a', at(0)));
        assert!(!spacing.take('a', at(2)));
        assert!(spacing.take('b', at(2)));
        assert!(!spacing.take('c', at(2)), "full");
        assert!(spacing.take('c', at(3)), "the place of the first is free again");
        assert!(!spacing.take('a', at(4)));
        assert!(spacing.take('a', at(5)));
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(10, 100);
        let mut now = Instant::from_micros(77_000_000);
        assert_eq!((0..100).filter(|_| bucket.take(now)).count(), 10);
        let mut passed = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            passed += u32::from(bucket.take(now));
        }
        assert_eq!(passed, 100);
    }
}
