//! Values in numbered slots. Grows a block at a time: a table of a million never has to be
//! copied, nor is half of it room for the next million.

/// Slots of one block. Small tables stay small: the first block grows like any `Vec`.
const BLOCK: usize = 1024;

/// The end of the list of vacant slots.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Slot<T> {
    Occupied(T),
    /// Vacant; the next vacant one.
    Vacant(u32),
}

/// A slot that was vacated last is filled first, so the numbers stay dense and depend on nothing
/// but the order of insertions and removals.
#[derive(Debug)]
pub struct Slab<T> {
    blocks: Vec<Vec<Slot<T>>>,
    vacant: u32,
    occupied: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), vacant: NONE, occupied: 0 }
    }
}

fn place(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    (slot / BLOCK, slot % BLOCK)
}

impl<T> Slab<T> {
    pub fn len(&self) -> usize {
        self.occupied as usize
    }

    pub fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// How many slots there are, occupied or not.
    pub fn slots(&self) -> u32 {
        let last = self.blocks.last().map_or(0, Vec::len);
        let slots = self.blocks.len().saturating_sub(1) * BLOCK + last;
        u32::try_from(slots).expect("insert counts in 32 bits")
    }

    pub fn insert(&mut self, value: T) -> u32 {
        self.occupied += 1;
        if self.vacant != NONE {
            let slot = self.vacant;
            let (block, at) = place(slot);
            let found = &mut self.blocks[block][at];
            if let Slot::Vacant(next) = *found {
                self.vacant = next;
            }
            *found = Slot::Occupied(value);
            return slot;
        }
        let slot = self.slots();
        assert!(slot < NONE, "every table has a limit below 2^32");
        if (slot as usize).is_multiple_of(BLOCK) {
            let room = if self.blocks.is_empty() { 0 } else { BLOCK };
            self.blocks.push(Vec::with_capacity(room));
        }
        self.blocks.last_mut().expect("one was just made").push(Slot::Occupied(value));
        slot
    }

    /// Empties the slot; `None` when it is vacant.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let (block, at) = place(slot);
        let found = self.blocks.get_mut(block)?.get_mut(at)?;
        if let Slot::Vacant(_) = found {
            return None;
        }
        let was = std::mem::replace(found, Slot::Vacant(self.vacant));
        self.vacant = slot;
        self.occupied -= 1;
        match was {
            Slot::Occupied(value) => Some(value),
            Slot::Vacant(_) => None,
        }
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        let (block, at) = place(slot);
        match self.blocks.get(block)?.get(at)? {
            Slot::Occupied(value) => Some(value),
            Slot::Vacant(_) => None,
        }
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let (block, at) = place(slot);
        match self.blocks.get_mut(block)?.get_mut(at)? {
            Slot::Occupied(value) => Some(value),
            Slot::Vacant(_) => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten().filter_map(|slot| match slot {
            Slot::Occupied(value) => Some(value),
            Slot::Vacant(_) => None,
        })
    }
}

/// Panics on a vacant slot: for indexes that name occupied slots only.
impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("an indexed slot is occupied")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("an indexed slot is occupied")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_that_was_vacated_last_is_filled_first() {
        let mut slab = Slab::default();
        let slots: Vec<u32> = (0..5).map(|i| slab.insert(i)).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4]);
        assert_eq!((slab.remove(1), slab.remove(3), slab.remove(3)), (Some(1), Some(3), None));
        assert_eq!((slab.get(1), slab.get(4), slab.get(5)), (None, Some(&4), None));
        assert_eq!(slab.iter().copied().collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!([slab.insert(10), slab.insert(11), slab.insert(12)], [3, 1, 5]);
        assert_eq!((slab.len(), slab.slots()), (6, 6));
    }

    #[test]
    fn blocks_follow_one_another() {
        let mut slab = Slab::default();
        let count = 3 * BLOCK as u32 + 1;
        for i in 0..count {
            assert_eq!(slab.insert(i), i);
        }
        assert_eq!((slab.slots(), slab.blocks.len()), (count, 4));
        assert!((0..count).all(|i| slab[i] == i));
    }
}
