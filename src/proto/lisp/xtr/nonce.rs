//! Nonces: random ones, and ones that grow over restarts.

use ring::hmac;

/// Octets from the system's random source, handed in once: nothing in here is random.
pub type Seed = [u8; 32];

/// Nonces that nobody can tell from the ones before (RFC 9301 §5.2: "properly seeded").
///
/// Each is a keyed hash of a counter. A plain generator would do for uniqueness, but its state could
/// be computed from one nonce, which any ETR gets to see, and a Map-Reply that has the next one is
/// believed.
#[derive(Clone, Debug)]
pub struct Nonces {
    key: hmac::Key,
    count: u64,
}

impl Nonces {
    pub fn new(seed: Seed) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &seed), count: 0 }
    }

    /// An independent sequence from the same seed.
    pub fn split(&mut self) -> Self {
        let mut seed = Seed::default();
        for part in seed.chunks_mut(8) {
            part.copy_from_slice(&self.random().to_be_bytes());
        }
        Self::new(seed)
    }

    pub fn random(&mut self) -> u64 {
        self.count += 1;
        let tag = hmac::sign(&self.key, &self.count.to_be_bytes());
        let octets = tag.as_ref().first_chunk().expect("a tag has 32 octets");
        u64::from_be_bytes(*octets)
    }

    /// A number below `bound`, for jitter. Not even to the last bit, as jitter need not be.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.random() % bound }
    }
}

/// Nonces that are recorded as used at once. A record per nonce would be a write per message; one
/// per block is a write in a million, and a restart skips what is left of the block.
pub const BLOCK: u64 = 1 << 20;

/// Nonces that grow, also over a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growing {
    /// The greatest one used, or below all that are.
    last: u64,
    /// All that were ever used are below this, and it is on disk.
    reserved: u64,
}

impl Growing {
    /// Continues behind what was recorded; without a record, at a number the caller chooses.
    pub fn new(below: u64) -> Self {
        Self { last: below.saturating_sub(1), reserved: below }
    }

    pub fn last(self) -> u64 {
        self.last
    }

    /// The next one, and what has to be recorded before it is used.
    pub fn next(&mut self) -> (u64, Option<u64>) {
        let nonce = self.last.saturating_add(1);
        (nonce, self.raise(nonce))
    }

    /// The other side used `nonce`: what we use, and what is new to us, is above it from here on.
    pub fn raise(&mut self, nonce: u64) -> Option<u64> {
        self.last = self.last.max(nonce);
        (self.last >= self.reserved).then(|| {
            self.reserved = self.last.saturating_add(BLOCK);
            self.reserved
        })
    }
}

/// Which nonces of a counting sender were seen: each is taken once, in any order within
/// [`Window::LEN`], and none from before it. (RFC 9437 wants each to be greater than the last. But
/// two publications that overtake each other on the way are about two prefixes of one
/// subscription; refusing the earlier one for good would lose that move.)
#[derive(Clone, Debug)]
pub struct Window {
    /// The greatest one seen.
    top: u64,
    /// Bit n of the ring says whether nonce n modulo its length was seen.
    ring: Box<[u64; Self::LEN as usize / 64]>,
}

/// How a nonce looks to a [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    New,
    /// Within the window, and seen before: the sender repeats itself, or somebody else repeats it.
    Before,
    /// Below the window.
    TooOld,
}

impl Window {
    pub const LEN: u64 = 4096;

    /// Everything up to `top` counts as seen.
    pub fn new(top: u64) -> Self {
        Self { top, ring: Box::new([u64::MAX; _]) }
    }

    pub fn look(&self, nonce: u64) -> Seen {
        if nonce > self.top {
            Seen::New
        } else if self.top - nonce >= Self::LEN {
            Seen::TooOld
        } else if self.ring[Self::word(nonce)] & Self::bit(nonce) != 0 {
            Seen::Before
        } else {
            Seen::New
        }
    }

    pub fn take(&mut self, nonce: u64) {
        if nonce > self.top {
            let skipped = nonce - self.top;
            if skipped >= Self::LEN {
                self.ring.fill(0);
            } else {
                for n in self.top + 1..=nonce {
                    self.ring[Self::word(n)] &= !Self::bit(n);
                }
            }
            self.top = nonce;
        }
        self.ring[Self::word(nonce)] |= Self::bit(nonce);
    }

    /// The lowest nonce that could still be new.
    pub fn bottom(&self) -> u64 {
        (self.top + 1).saturating_sub(Self::LEN)
    }

    fn word(nonce: u64) -> usize {
        usize::try_from(nonce % Self::LEN / 64).expect("below 64")
    }

    fn bit(nonce: u64) -> u64 {
        1 << (nonce % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn random_nonces_depend_on_the_seed_and_do_not_repeat() {
        let take = |seed: u8| {
            let mut nonces = Nonces::new([seed; 32]);
            (0..10_000).map(|_| nonces.random()).collect::<BTreeSet<_>>()
        };
        let (one, two) = (take(1), take(2));
        assert_eq!(one.len(), 10_000);
        assert_eq!(one, take(1));
        assert!(one.is_disjoint(&two));
    }

    /// RFC 9301 §5.6: what was sent before a restart is never sent again after it.
    #[test]
    fn a_restart_continues_above_everything_that_was_used() {
        let (mut recorded, mut greatest) = (1, 0);
        for run in 0..5 {
            let mut growing = Growing::new(recorded);
            for _ in 0..BLOCK / 2 + run * 400_000 {
                let (nonce, record) = growing.next();
                assert!(nonce > greatest);
                greatest = nonce;
                recorded = record.unwrap_or(recorded);
                assert!(nonce < recorded, "recorded before it is used");
            }
        }
    }

    #[test]
    fn a_window_takes_each_nonce_once_in_any_order() {
        let mut window = Window::new(100);
        assert_eq!(window.look(100), Seen::Before);
        assert_eq!(window.look(3), Seen::Before, "before the start everything counts as seen");
        let order: Vec<u64> = (101..5000).map(|n| if n % 2 == 0 { n - 1 } else { n + 1 }).collect();
        for &nonce in &order {
            assert_eq!(window.look(nonce), Seen::New, "{nonce}");
            window.take(nonce);
            assert_eq!(window.look(nonce), Seen::Before);
        }
        assert_eq!(window.look(window.bottom() - 1), Seen::TooOld);
        window.take(1_000_000);
        assert_eq!(window.look(999_999), Seen::New);
        assert_eq!(window.look(5000), Seen::TooOld);
    }
}
