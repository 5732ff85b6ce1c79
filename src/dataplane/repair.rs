//! What a read-back has found otherwise than it was left, and has set right since. The next question
//! of an operator is what it was, and by then there is nothing to be seen.

use std::collections::VecDeque;

use crate::types::Instant;

/// The oldest goes first. Their number is counted elsewhere, without an end.
pub const REPAIRS_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ours, and gone.
    Missing,
    /// Ours, and leading elsewhere.
    Different,
    /// With our mark, and not ours.
    Extra,
}

#[derive(Clone, Debug)]
pub struct Repairs<T> {
    newest_last: VecDeque<(Instant, T)>,
}

impl<T> Default for Repairs<T> {
    fn default() -> Self {
        Self { newest_last: VecDeque::new() }
    }
}

impl<T> Repairs<T> {
    pub fn note(&mut self, repair: T, now: Instant) {
        if self.newest_last.len() == REPAIRS_MAX {
            self.newest_last.pop_front();
        }
        self.newest_last.push_back((now, repair));
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = (Instant, &T)> {
        self.newest_last.iter().rev().map(|(at, repair)| (*at, repair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() {
        let mut repairs = Repairs::default();
        for n in 0..REPAIRS_MAX as u64 + 10 {
            repairs.note(n, Instant::from_micros(n));
        }
        let kept: Vec<u64> = repairs.iter().map(|(_, n)| *n).collect();
        assert_eq!((kept.len(), kept[0]), (REPAIRS_MAX, REPAIRS_MAX as u64 + 9));
        assert_eq!(kept.last(), Some(&10));
    }
}
