//! A bounded token bucket per sender: one noisy host cannot use up the share of the others.

use std::time::Duration;

use crate::types::{Instant, MacAddr};

/// Buckets per link. Senders whose addresses fall into one bucket share it: with so many, a host
/// that makes up addresses can slow down others, but can neither silence them nor grow memory.
const BUCKETS: usize = 1024;

/// What one sender may cause at once, and then per second: an arriving host says some ten things
/// (DAD, RS, NS for the gateway, ARP), and repeats them once a second.
const BURST: u32 = 64;
const PER_SECOND: u64 = 32;

const TOKEN: Duration = Duration::from_micros(1_000_000 / PER_SECOND);

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u32,
    filled_at: Instant,
}

pub(super) struct SenderLimit {
    buckets: Box<[Bucket]>,
}

impl SenderLimit {
    pub fn new() -> Self {
        let full = Bucket { tokens: BURST, filled_at: Instant::ZERO };
        Self { buckets: vec![full; BUCKETS].into_boxed_slice() }
    }

    /// Takes a token of this sender; false when it has none.
    pub fn take(&mut self, sender: MacAddr, now: Instant) -> bool {
        let [a, b, c, d, e, f] = sender.0.map(usize::from);
        let index = (a ^ (b << 3) ^ (c << 5) ^ d ^ (e << 2) ^ (f << 1)) % BUCKETS;
        let bucket = &mut self.buckets[index];
        let earned = (now - bucket.filled_at).as_micros() / TOKEN.as_micros();
        if earned >= u128::from(BURST) {
            *bucket = Bucket { tokens: BURST, filled_at: now };
        } else if let Ok(earned) = u32::try_from(earned) {
            bucket.tokens = (bucket.tokens + earned).min(BURST);
            bucket.filled_at += TOKEN * earned;
        }
        let Some(tokens) = bucket.tokens.checked_sub(1) else { return false };
        bucket.tokens = tokens;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_others_keep_theirs() {
        let noisy = MacAddr([2, 0, 0, 0, 0, 1]);
        let quiet = MacAddr([2, 0, 0, 0, 0, 2]);
        let mut limit = SenderLimit::new();
        let mut now = Instant::from_micros(5_000_000);
        let passed = (0..1000).filter(|_| limit.take(noisy, now)).count();
        assert_eq!(passed, BURST as usize);
        assert!(limit.take(quiet, now));
        let mut passed = 0;
        for _ in 0..100 {
            now += Duration::from_millis(10);
            passed += usize::from(limit.take(noisy, now));
        }
        assert_eq!(passed, PER_SECOND as usize);
    }
}
