//! Values with stable numbers, in chunks: growing never copies what is there, so neither the time
//! of an insert nor the peak of memory has a step. Each chunk has room for twice as many as the one
//! before, so that those of a large table are large enough for large pages; room that is not yet
//! used takes addresses, not memory.

use super::pages;

const FIRST_BITS: u32 = 12;
const FIRST: usize = 1 << FIRST_BITS;

/// Chunk, and position in it.
#[inline(always)]
const fn place(number: u32) -> (usize, usize) {
    let n = number as usize + FIRST;
    let bits = n.ilog2();
    ((bits - FIRST_BITS) as usize, n - (1 << bits))
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
    len: u32,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }

    /// One more than the largest number ever given out.
    pub(super) const fn end(&self) -> u32 {
        self.len
    }

    /// Values that are not free.
    pub(super) fn used(&self) -> usize {
        self.len as usize - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self[number] = value;
            return number;
        }
        let number = self.len;
        let (chunk, at) = place(number);
        if at == 0 {
            let mut values = Vec::with_capacity(FIRST << chunk);
            pages::prefer_large(values.spare_capacity_mut());
            self.chunks.push(values);
        }
        self.chunks[chunk].push(value);
        self.len += 1;
        number
    }

    /// The value stays readable (walks skip it by a mark of their own) until the number is given
    /// out again.
    pub(super) fn free(&mut self, number: u32) {
        self.free.push(number);
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, number: u32) -> &T {
        let (chunk, at) = place(number);
        &self.chunks[chunk][at]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, number: u32) -> &mut T {
        let (chunk, at) = place(number);
        &mut self.chunks[chunk][at]
    }
}

/// A bit per slab number, which grows on demand; bits past its end are clear.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn get(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(super) fn set(&mut self, number: u32, on: bool) {
        let at = number as usize / 64;
        if at >= self.0.len() {
            if !on {
                return;
            }
            self.0.resize(at + 1, 0);
        }
        let bit = 1 << (number % 64);
        if on { self.0[at] |= bit } else { self.0[at] &= !bit }
    }

    /// The first set bit at or after `number`.
    pub(super) fn next(&self, number: u32) -> Option<u32> {
        let mut at = number as usize / 64;
        let mut word = *self.0.get(at)? & (u64::MAX << (number % 64));
        while word == 0 {
            at += 1;
            word = *self.0.get(at)?;
        }
        Some(at as u32 * 64 + word.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_in_order() {
        let mut bits = Bits::default();
        for n in [0, 63, 64, 200] {
            bits.set(n, true);
        }
        bits.set(64, false);
        bits.set(9_999, false);
        assert_eq!(bits.next(0), Some(0));
        assert_eq!(bits.next(1), Some(63));
        assert_eq!(bits.next(64), Some(200));
        assert_eq!(bits.next(201), None);
        assert!(!bits.get(9_999) && bits.get(200));
    }

    #[test]
    fn numbers_are_reused() {
        let mut slab = Slab::new();
        let numbers: Vec<u32> = (0..10_000).map(|v| slab.insert(v)).collect();
        assert_eq!(slab[numbers[9_999]], 9_999);
        slab.free(17);
        assert_eq!(slab.insert(5), 17);
        assert_eq!((slab.end(), slab.used()), (10_000, 10_000));
    }

    /// Also in chunks that are large enough for large pages.
    #[test]
    fn values_stay_where_they_are() {
        let mut slab = Slab::new();
        for v in 0..600_000u64 {
            assert_eq!(u64::from(slab.insert(v)), v);
        }
        let first = &raw const slab[0];
        for v in 600_000..1_200_000u64 {
            slab.insert(v);
        }
        assert_eq!(&raw const slab[0], first);
        assert!((0..1_200_000).all(|n| slab[n] == u64::from(n)));
    }

    #[test]
    fn chunks_follow_each_other_without_a_gap() {
        assert_eq!(place(0), (0, 0));
        assert_eq!(place(4_095), (0, 4_095));
        assert_eq!(place(4_096), (1, 0));
        assert_eq!(place(12_287), (1, 8_191));
        assert_eq!(place(12_288), (2, 0));
        assert_eq!(place(u32::MAX), (20, 4_095));
    }
}
