//! Jitter of timers (RFC 4271 §10), reproducible from a seed.

use std::time::Duration;

/// SplitMix64. Not for secrets: it only keeps a thousand neighbours from moving in step.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `base` times a factor from 0.75 to 1.0, evenly distributed (§10).
    pub fn apply(&mut self, base: Duration) -> Duration {
        let quarter = base / 4;
        // 2^16 steps are fine enough, and u32 × Duration stays far from overflow.
        let step = (self.next() >> 48) as u32;
        base - quarter + quarter.saturating_mul(step) / 0x1_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4271 §10.
    #[test]
    fn jitter_is_from_three_quarters_to_one_and_repeats_by_seed() {
        let base = Duration::from_secs(30);
        let mut a = Jitter::new(7);
        let mut b = Jitter::new(7);
        let (mut low, mut high) = (base, Duration::ZERO);
        for _ in 0..10_000 {
            let d = a.apply(base);
            assert_eq!(d, b.apply(base));
            assert!(d >= base * 3 / 4 && d <= base, "{d:?}");
            low = low.min(d);
            high = high.max(d);
        }
        assert!(low < Duration::from_millis(22_600) && high > Duration::from_millis(29_900));
        assert_eq!(a.apply(Duration::ZERO), Duration::ZERO);
    }
}
