//! The registered EIDs in order: slots of the slab, sorted by their keys, in short runs.
//!
//! Three questions need order: the neighbours of an address (a negative or an aggregate's reply is
//! narrowed to the largest prefix with no registered one in it), what lies inside a prefix (a new
//! subscriber of an aggregate is told of the hosts that are away already), and the first of those.
//! An ordered map of keys would cost some 30 octets per EID; a run holds 4 per EID, because the
//! keys are in the slab already, and is never less than about half full. Of a million EIDs an
//! insertion moves at most 2 KiB and the question reads some twenty keys; the hot path, a hit on a
//! registered host, does not come here.

use super::key::EidKey;

/// Slots in one run, at most; a full one is split in two.
const RUN_MAX: usize = 512;
/// A run that has become this short is joined to its neighbour when both fit in half a run.
const RUN_MIN: usize = RUN_MAX / 8;

struct Run {
    /// Key of the first slot, so that finding the run does not read the slab.
    first: EidKey,
    slots: Vec<u32>,
}

#[derive(Default)]
pub(super) struct Order {
    /// Never with an empty run; by `first`.
    runs: Vec<Run>,
}

impl Order {
    /// The run where a key is, or would be put.
    fn run_of(&self, key: EidKey) -> usize {
        self.runs.partition_point(|r| r.first <= key).saturating_sub(1)
    }

    pub fn insert(&mut self, key: EidKey, slot: u32, key_of: impl Fn(u32) -> EidKey) {
        let at = self.run_of(key);
        let Some(run) = self.runs.get_mut(at) else {
            self.runs.push(Run { first: key, slots: vec![slot] });
            return;
        };
        let place = run.slots.partition_point(|&s| key_of(s) < key);
        if run.slots.len() == run.slots.capacity() {
            // Small steps: what is not used here is paid for by every EID.
            run.slots.reserve_exact((RUN_MAX - run.slots.len()).min(RUN_MAX / 8));
        }
        run.slots.insert(place, slot);
        if place == 0 {
            run.first = key;
        }
        if run.slots.len() == RUN_MAX {
            // Keys often come in order; a run that was filled at its end stays nearly full.
            let half = if place == RUN_MAX - 1 { RUN_MAX * 7 / 8 } else { RUN_MAX / 2 };
            let slots = run.slots.split_off(half);
            run.slots.shrink_to_fit();
            let first = key_of(slots[0]);
            self.runs.insert(at + 1, Run { first, slots });
        }
    }

    pub fn remove(&mut self, key: EidKey, key_of: impl Fn(u32) -> EidKey) {
        let at = self.run_of(key);
        let Some(run) = self.runs.get_mut(at) else { return };
        let place = run.slots.partition_point(|&s| key_of(s) < key);
        if run.slots.get(place).is_none_or(|&s| key_of(s) != key) {
            return;
        }
        run.slots.remove(place);
        match run.slots.first() {
            None => {
                self.runs.remove(at);
            }
            Some(&first) => {
                if place == 0 {
                    run.first = key_of(first);
                }
                if run.slots.len() <= RUN_MIN {
                    self.join(at);
                }
            }
        }
    }

    fn join(&mut self, at: usize) {
        let next = at + 1;
        let Some(after) = self.runs.get(next) else { return };
        if self.runs[at].slots.len() + after.slots.len() <= RUN_MAX / 2 {
            let after = self.runs.remove(next);
            self.runs[at].slots.extend(after.slots);
        }
    }

    /// The slots from `key` on, in order.
    pub fn from(
        &self,
        key: EidKey,
        key_of: impl Fn(u32) -> EidKey,
    ) -> impl Iterator<Item = u32> + '_ {
        let at = self.run_of(key);
        let (head, rest) = match self.runs.get(at..) {
            Some([run, rest @ ..]) => {
                let skip = run.slots.partition_point(|&s| key_of(s) < key);
                (&run.slots[skip..], rest)
            }
            Some([]) | None => (&[][..], &[][..]),
        };
        head.iter().chain(rest.iter().flat_map(|run| &run.slots)).copied()
    }

    /// The slot before `key`.
    pub fn before(&self, key: EidKey, key_of: impl Fn(u32) -> EidKey) -> Option<u32> {
        let at = self.run_of(key);
        let run = self.runs.get(at)?;
        let place = run.slots.partition_point(|&s| key_of(s) < key);
        match place.checked_sub(1) {
            Some(last) => Some(run.slots[last]),
            None => self.runs[..at].last()?.slots.last().copied(),
        }
    }

    /// Octets of the heap in use.
    pub fn heap_bytes(&self) -> usize {
        let slots: usize = self.runs.iter().map(|r| r.slots.capacity() * size_of::<u32>()).sum();
        slots + self.runs.capacity() * size_of::<Run>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Prefix;
    use crate::types::lisp::InstanceId;
    use std::collections::BTreeSet;

    /// Against a plain ordered set, with keys inserted and removed by a fixed sequence.
    #[test]
    fn it_answers_as_a_plain_ordered_set_does() {
        let keys: Vec<EidKey> = (0..20_000_u32)
            .map(|i| {
                let prefix = Prefix::v4(i.wrapping_mul(0x9e37_79b1), 20 + (i % 13) as u8).unwrap();
                EidKey::new(InstanceId(i % 3), prefix)
            })
            .collect();
        let key_of = |slot: u32| keys[slot as usize];
        let mut order = Order::default();
        let mut model = BTreeSet::new();
        let mut state = 1_u32;
        for round in 0..60_000_u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let slot = state >> 8 & 0x3fff;
            let key = key_of(slot);
            // Mostly insertions first, mostly removals later.
            if state >> 28 < if round < 30_000 { 11 } else { 5 } {
                if model.insert(key) {
                    order.insert(key, slot, key_of);
                }
            } else if model.remove(&key) {
                order.remove(key, key_of);
            }
            let probe = key_of(state >> 7 & 0x3fff);
            let after = order.from(probe, key_of).next().map(key_of);
            assert_eq!(after, model.range(probe..).next().copied());
            let before = order.before(probe, key_of).map(key_of);
            assert_eq!(before, model.range(..probe).next_back().copied());
        }
        let start = EidKey::new(InstanceId(0), Prefix::v4(0, 0).unwrap());
        let all: Vec<EidKey> = order.from(start, key_of).map(key_of).collect();
        assert_eq!(all, model.iter().copied().collect::<Vec<_>>());
    }

    #[test]
    fn an_empty_one_has_no_neighbours() {
        let order = Order::default();
        let key = EidKey::new(InstanceId(0), Prefix::v4(0, 0).unwrap());
        assert_eq!(order.from(key, |_| key).next(), None);
        assert_eq!(order.before(key, |_| key), None);
    }
}
