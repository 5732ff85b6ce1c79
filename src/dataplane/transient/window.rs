//! Which packets of a stream have come: none is delivered twice, and those that are missing are
//! counted.

/// A packet that is later than this many others cannot be told from one that came before.
const SPAN: u32 = 1024;
const WORDS: usize = SPAN as usize / 64;

pub struct Window {
    /// One more than the highest sequence number that has come.
    next: u32,
    seen: [u64; WORDS],
    received: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    InTurn,
    /// After one that was sent later.
    Late,
    Duplicate,
    Stale,
}

impl Window {
    pub const fn new() -> Self {
        Self { next: 0, seen: [0; WORDS], received: 0 }
    }

    pub fn take(&mut self, sequence: u32) -> Arrival {
        let ahead = sequence.wrapping_sub(self.next);
        let (word, bit) = (sequence as usize / 64 % WORDS, 1_u64 << (sequence % 64));
        if ahead < u32::MAX / 2 {
            // What was skipped may come yet.
            for skipped in 0..ahead.saturating_add(1).min(SPAN) {
                let at = sequence.wrapping_sub(skipped);
                self.seen[at as usize / 64 % WORDS] &= !(1 << (at % 64));
            }
            self.seen[word] |= bit;
            self.next = sequence.wrapping_add(1);
            self.received = self.received.wrapping_add(1);
            return Arrival::InTurn;
        }
        if self.next.wrapping_sub(sequence) > SPAN {
            return Arrival::Stale;
        }
        if self.seen[word] & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen[word] |= bit;
        self.received = self.received.wrapping_add(1);
        Arrival::Late
    }

    /// Of those that were sent before this number, or before the highest that came.
    pub fn missing(&self, sent: Option<u32>) -> u32 {
        let sent = sent.unwrap_or(self.next);
        let missing = sent.wrapping_sub(self.received);
        // More have come than a liar says he sent.
        if missing > u32::MAX / 2 { 0 } else { missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_taken_once() {
        let mut window = Window::new();
        for n in [0, 1, 5] {
            assert_eq!(window.take(n), Arrival::InTurn);
        }
        assert_eq!(window.missing(None), 3);
        for n in [2, 4, 3] {
            assert_eq!(window.take(n), Arrival::Late);
        }
        for n in 0..6 {
            assert_eq!(window.take(n), Arrival::Duplicate, "{n}");
        }
        assert_eq!((window.missing(None), window.missing(Some(8))), (0, 2));
        assert_eq!(window.take(5000), Arrival::InTurn);
        assert_eq!(window.take(5000 - SPAN), Arrival::Stale);
        assert_eq!(window.take(5001 - SPAN), Arrival::Late);
        for n in 5002 - SPAN..5000 {
            assert_eq!(window.take(n), Arrival::Late, "{n}: the bits of the last round are gone");
        }
    }

    #[test]
    fn the_numbers_may_wrap() {
        let mut window = Window::new();
        window.next = u32::MAX;
        window.received = u32::MAX;
        assert_eq!(window.take(u32::MAX), Arrival::InTurn);
        assert_eq!(window.take(1), Arrival::InTurn);
        assert_eq!(window.take(0), Arrival::Late);
        assert_eq!(window.take(u32::MAX), Arrival::Duplicate);
        assert_eq!(window.missing(None), 0);
    }
}
