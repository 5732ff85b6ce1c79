//! Hash index: key → slot number in a slab, by open addressing.
//!
//! Not `hashbrown::HashTable<u32>`, for one reason: growing that table must hash every key again,
//! which reads the whole slab in random order. Here a slot keeps the 32 hash bits beside the number
//! and the position is their *upper* bits, so that growing is one sequential pass over both tables,
//! and a probe reads the slab only where the whole hash agrees.

use super::pages;

/// Slots in use per slots, at most 3/4: unsuccessful probes stay below ten slots.
const LOAD_NUM: usize = 3;
const LOAD_DEN: usize = 4;
const BITS_MIN: u32 = 6;

#[derive(Debug)]
pub(super) struct Index {
    /// `hash << 32 | (number + 1)`; zero is empty.
    slots: Box<[u64]>,
    shift: u32,
    used: usize,
}

const fn pack(hash: u32, number: u32) -> u64 {
    ((hash as u64) << 32) | (number as u64 + 1)
}

impl Index {
    pub(super) fn new() -> Self {
        Self { slots: vec![0; 1 << BITS_MIN].into(), shift: 32 - BITS_MIN, used: 0 }
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    /// Whom the first slot of a probe for `hash` names, if the hash agrees. Asking this for several
    /// keys before the first is looked up lets the processor wait for all of those cache lines at
    /// once.
    #[inline]
    pub(super) fn guess(&self, hash: u32) -> Option<u32> {
        let slot = self.slots[(hash >> self.shift) as usize];
        (slot != 0 && (slot >> 32) as u32 == hash).then(|| slot as u32 - 1)
    }

    pub(super) fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.mask();
        let mut at = (hash >> self.shift) as usize;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == hash {
                let number = (slot as u32) - 1;
                if is(number) {
                    return Some(number);
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// The key must not be there yet.
    pub(super) fn insert(&mut self, hash: u32, number: u32) {
        if (self.used + 1) * LOAD_DEN > self.slots.len() * LOAD_NUM {
            self.grow();
        }
        self.used += 1;
        put(&mut self.slots, self.shift, pack(hash, number));
    }

    /// Removes the slot of this key, which must be there, and closes the gap.
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let mask = self.mask();
        let wanted = pack(hash, number);
        let mut gap = (hash >> self.shift) as usize;
        while self.slots[gap] != wanted {
            assert!(self.slots[gap] != 0, "removed keys are in the index");
            gap = (gap + 1) & mask;
        }
        self.used -= 1;
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            // The slot may move into the gap unless its probe begins after the gap.
            let home = ((slot >> 32) as u32 >> self.shift) as usize;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = 0;
    }

    fn grow(&mut self) {
        // Unreachable with u32 numbers: 2^31 slots at 3/4 hold more than any routes_max we accept.
        assert!(self.shift > 1, "the index has at most 2^31 slots");
        let mut slots: Box<[u64]> = vec![0; self.slots.len() * 2].into();
        pages::prefer_large(&mut slots);
        self.shift -= 1;
        for &slot in &self.slots {
            if slot != 0 {
                put(&mut slots, self.shift, slot);
            }
        }
        self.slots = slots;
    }
}

fn put(slots: &mut [u64], shift: u32, slot: u64) {
    let mask = slots.len() - 1;
    let mut at = ((slot >> 32) as u32 >> shift) as usize;
    while slots[at] != 0 {
        at = (at + 1) & mask;
    }
    slots[at] = slot;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Hashes are squeezed into few values, so that probes wrap around and collide.
    #[test]
    fn agrees_with_a_map_under_random_use() {
        let mut index = Index::new();
        let mut model = BTreeMap::new();
        let mut x = 1u64;
        for step in 0..60_000u32 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = (x >> 40) as u32 % 700;
            let hash = (key / 3).wrapping_mul(0xf400_0001);
            let found = index.find(hash, |n| n == key);
            assert_eq!(found.is_some(), model.contains_key(&key), "step {step}");
            if x >> 63 == 0 {
                if found.is_none() {
                    index.insert(hash, key);
                    model.insert(key, ());
                }
            } else if found.is_some() {
                index.remove(hash, key);
                model.remove(&key);
            }
        }
        for key in 0..700u32 {
            let hash = (key / 3).wrapping_mul(0xf400_0001);
            assert_eq!(index.find(hash, |n| n == key).is_some(), model.contains_key(&key));
        }
    }
}
