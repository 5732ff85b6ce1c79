//! Token buckets: how often one sender is served, and how many publications leave at once.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::types::Instant;

/// So many at once, and then so many per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

impl Rate {
    /// So many in any second, all of them at once if they come so.
    pub fn each_second(count: u32) -> Self {
        Self { burst: count, per_second: count }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: u32,
    filled_at: Instant,
}

impl Bucket {
    pub fn full(rate: Rate) -> Self {
        Self { tokens: rate.burst, filled_at: Instant::ZERO }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let per_second = u128::from(rate.per_second.max(1));
        let earned = (now - self.filled_at).as_micros() * per_second / 1_000_000;
        if earned >= u128::from(rate.burst) {
            *self = Self { tokens: rate.burst, filled_at: now };
        } else if let Ok(earned @ 1..) = u32::try_from(earned) {
            self.tokens = self.tokens.saturating_add(earned).min(rate.burst);
            let paid_us = u128::from(earned) * 1_000_000 / per_second;
            self.filled_at += Duration::from_micros(u64::try_from(paid_us).unwrap_or(u64::MAX));
        }
    }

    /// Takes a token; false when there is none.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        let Some(tokens) = self.tokens.checked_sub(1) else { return false };
        self.tokens = tokens;
        true
    }
}

/// When the next one may leave: what is above the rate is put off, not dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When all that was let go so far would have left at an even rate.
    even_at: Instant,
}

impl Pace {
    fn spread(rate: Rate, count: u32) -> Duration {
        Duration::from_secs(1) * count / rate.per_second.max(1)
    }

    pub fn next(&mut self, rate: Rate, now: Instant) -> Instant {
        let burst = Self::spread(rate, rate.burst);
        let ahead = self.even_at - now;
        self.even_at = self.even_at.max(now) + Self::spread(rate, 1);
        if ahead < burst { now } else { now + (ahead - burst) }
    }

    /// Whether something is being put off.
    pub fn is_behind(self, rate: Rate, now: Instant) -> bool {
        self.even_at - now >= Self::spread(rate, rate.burst.max(1))
    }
}

/// A fixed number of buckets, chosen by a keyed hash: those who fall into one share it, so nobody
/// can make the table grow, and nobody outside can choose whom to share with.
pub(super) struct Buckets {
    rate: Rate,
    buckets: Box<[Bucket]>,
    state: FixedState,
}

const BUCKETS: usize = 4096;

impl Buckets {
    pub fn new(rate: Rate, seed: u64) -> Self {
        Self {
            rate,
            buckets: vec![Bucket::full(rate); BUCKETS].into_boxed_slice(),
            state: FixedState::with_seed(seed),
        }
    }

    pub fn take(&mut self, whose: impl Hash, now: Instant) -> bool {
        let hash = self.state.hash_one(whose) % BUCKETS as u64;
        let at = usize::try_from(hash).expect("below BUCKETS");
        self.buckets[at].take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_pace_leaves_later_at_the_rate() {
        let rate = Rate { burst: 2, per_second: 10 };
        let mut pace = Pace::default();
        let now = Instant::ZERO + Duration::from_secs(5);
        let leaves: Vec<_> = (0..5).map(|_| (pace.next(rate, now) - now).as_millis()).collect();
        assert_eq!(leaves, [0, 0, 0, 100, 200]);
        assert!(pace.is_behind(rate, now));
        assert!(!pace.is_behind(rate, now + Duration::from_secs(1)));
    }

    #[test]
    fn a_burst_then_the_rate_and_others_keep_theirs() {
        let mut buckets = Buckets::new(Rate { burst: 3, per_second: 2 }, 1);
        let now = Instant::ZERO + Duration::from_secs(10);
        let takes = |b: &mut Buckets, who: u32, now| (0..9).filter(|_| b.take(who, now)).count();
        assert_eq!(takes(&mut buckets, 1, now), 3);
        assert_eq!(takes(&mut buckets, 2, now), 3);
        assert_eq!(takes(&mut buckets, 1, now + Duration::from_millis(999)), 1);
        assert_eq!(takes(&mut buckets, 1, now + Duration::from_millis(1000)), 1);
        assert_eq!(takes(&mut buckets, 1, now + Duration::from_secs(100)), 3);
    }
}
