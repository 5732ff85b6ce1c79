//! The table itself: a slab of bindings, an index by prefix, an index by node.
//!
//! The slab gives listings a cursor that costs nothing to resume (a listing must not stall
//! routing), and the indexes are point lookups only, so no iteration order reaches an output.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::types::seam::BindingChange;
use crate::types::{AnchorId, Binding, Claim, Generation, Instant, MnId, Prefix, Revision, limits};

/// What became of a statement about a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was newer: the binding is now as stated.
    Newer,
    /// It says what is known already; lifetime and FE_E may have been refreshed.
    Same,
    /// It is older than what is known: ignored.
    Older { known: Claim },
    /// Same generation, other anchor, and the other one wins: ignored.
    TieLost { known: Claim },
    /// Same generation, other anchor, and this one wins: the binding is now as stated.
    TieWon { lost: Claim },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error("the location database is full ({} bindings)", limits::BINDINGS_MAX)]
    Full,
    #[error("the node has {} prefixes already", limits::PREFIXES_PER_NODE_MAX)]
    TooManyPrefixes,
    #[error("the prefix belongs to another mobile node")]
    OtherNode,
    #[error("the generation of the node is at its end")]
    GenerationEnd,
}

/// A page of a listing and the cursor of the next one.
#[derive(Debug)]
pub struct Page<'a> {
    pub bindings: Vec<&'a Binding>,
    pub next: Option<u32>,
}

#[derive(Debug, Default)]
struct NodeRecord {
    prefixes: Vec<Prefix>,
}

#[derive(Debug)]
pub struct Location {
    slab: Vec<Option<Binding>>,
    free: Vec<u32>,
    by_prefix: HashMap<Prefix, u32, FixedState>,
    by_node: HashMap<MnId, NodeRecord, FixedState>,
    /// Claims of prefixes that are no longer bound here, oldest first in `tombstone_order`; the
    /// oldest is forgotten when there are `TOMBSTONES_MAX`.
    tombstones: HashMap<Prefix, Claim, FixedState>,
    tombstone_order: VecDeque<Prefix>,
    /// Bindings that end by time, by deadline; entries whose binding has changed since are skipped.
    leases: std::collections::BTreeSet<(Instant, Prefix)>,
    /// How many bindings have each prefix length, by family.
    lengths: [BTreeMap<u8, u32>; 2],
    revision: Revision,
}

impl Location {
    /// `seed` keys the hash tables.
    pub fn new(seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        Self {
            slab: Vec::new(),
            free: Vec::new(),
            by_prefix: HashMap::with_hasher(state.clone()),
            by_node: HashMap::with_hasher(state.clone()),
            tombstones: HashMap::with_hasher(state),
            tombstone_order: VecDeque::new(),
            leases: std::collections::BTreeSet::new(),
            lengths: Default::default(),
            revision: Revision(0),
        }
    }

    pub fn len(&self) -> usize {
        self.by_prefix.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    pub fn find(&self, prefix: Prefix) -> Option<&Binding> {
        let &slot = self.by_prefix.get(&prefix)?;
        self.slab[slot as usize].as_ref()
    }

    /// The binding of the longest prefix with this address in it. One lookup per length in use.
    pub fn find_longest(&self, addr: IpAddr) -> Option<&Binding> {
        let host = Prefix::host(addr);
        let counts = &self.lengths[host.family() as usize];
        let lengths = counts.iter().rev().map(|(&len, _)| len);
        lengths.filter_map(|len| self.find(Prefix::new(addr, len)?)).next()
    }

    /// The prefixes bound to a node, in the order in which they came.
    pub fn prefixes_of(&self, mn: &MnId) -> &[Prefix] {
        self.by_node.get(mn).map_or(&[], |n| &n.prefixes)
    }

    /// The greatest claim that was ever seen here about the prefix.
    pub fn known_claim(&self, prefix: Prefix) -> Option<Claim> {
        let bound = self.find(prefix).map(Binding::claim);
        bound.max(self.tombstones.get(&prefix).copied())
    }

    /// The greatest generation of any prefix of the node.
    pub fn generation_of(&self, mn: &MnId) -> Generation {
        let known = |&p| self.known_claim(p).map_or(Generation::NONE, |c| c.generation);
        self.prefixes_of(mn).iter().map(known).max().unwrap_or_default()
    }

    /// Takes a statement about a prefix, if it is newer than what is known.
    pub fn apply(
        &mut self,
        binding: Binding,
        out: &mut Vec<BindingChange>,
    ) -> Result<Applied, LocationError> {
        let claim = binding.claim();
        if let Some(&slot) = self.by_prefix.get(&binding.prefix) {
            return self.apply_to(slot, binding, out);
        }
        let mut outcome = Applied::Newer;
        if let Some(&dead) = self.tombstones.get(&binding.prefix) {
            // A claim equal to the tombstone's is the same anchor saying again what it had before
            // it let go: late news, unless it is the holder itself (a restart).
            if claim < dead {
                return Ok(self.refusal(claim, dead));
            }
            if claim.generation == dead.generation && claim.anchor != dead.anchor {
                outcome = Applied::TieWon { lost: dead };
            }
        }
        if self.by_prefix.len() >= limits::BINDINGS_MAX {
            return Err(LocationError::Full);
        }
        let node = self.by_node.entry(binding.mn.clone()).or_default();
        if node.prefixes.len() >= limits::PREFIXES_PER_NODE_MAX {
            return Err(LocationError::TooManyPrefixes);
        }
        node.prefixes.push(binding.prefix);
        self.tombstones.remove(&binding.prefix);
        self.note_lease(&binding);
        let prefix = binding.prefix;
        out.push(self.change(prefix, None, Some(binding.clone())));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slab[slot as usize] = Some(binding);
                slot
            }
            None => {
                self.slab.push(Some(binding));
                u32::try_from(self.slab.len() - 1).expect("BINDINGS_MAX is below 2^32")
            }
        };
        self.by_prefix.insert(prefix, slot);
        *self.lengths[prefix.family() as usize].entry(prefix.len()).or_default() += 1;
        Ok(outcome)
    }

    fn apply_to(
        &mut self,
        slot: u32,
        binding: Binding,
        out: &mut Vec<BindingChange>,
    ) -> Result<Applied, LocationError> {
        let known = self.slab[slot as usize].as_ref().expect("an indexed slot is occupied");
        if known.mn != binding.mn {
            return Err(LocationError::OtherNode);
        }
        let (old, new) = (known.claim(), binding.claim());
        if new < old {
            return Ok(self.refusal(new, old));
        }
        let outcome = if new == old {
            Applied::Same
        } else if new.generation == old.generation {
            Applied::TieWon { lost: old }
        } else {
            Applied::Newer
        };
        if *known == binding {
            return Ok(Applied::Same);
        }
        self.note_lease(&binding);
        let place = self.slab[slot as usize].as_mut().expect("checked above");
        let old = std::mem::replace(place, binding.clone());
        if outcome != Applied::Same || old.fe_e != binding.fe_e {
            out.push(self.change(binding.prefix, Some(old), Some(binding)));
        }
        Ok(outcome)
    }

    fn refusal(&self, new: Claim, known: Claim) -> Applied {
        if new.generation == known.generation {
            Applied::TieLost { known }
        } else {
            Applied::Older { known }
        }
    }

    /// The binding ends, and `claim` is remembered: the greatest one that is known, which is the
    /// newer one of somebody else when that is why it ends.
    pub fn remove(&mut self, prefix: Prefix, claim: Claim, out: &mut Vec<BindingChange>) -> bool {
        let Some(slot) = self.by_prefix.remove(&prefix) else {
            return false;
        };
        let old = self.slab[slot as usize].take().expect("an indexed slot is occupied");
        self.free.push(slot);
        let lengths = &mut self.lengths[prefix.family() as usize];
        if let Some(count) = lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.len());
            }
        }
        if let Some(node) = self.by_node.get_mut(&old.mn) {
            node.prefixes.retain(|&p| p != prefix);
            if node.prefixes.is_empty() {
                self.by_node.remove(&old.mn);
            }
        }
        self.bury(prefix, claim.max(old.claim()));
        out.push(self.change(prefix, Some(old), None));
        true
    }

    /// Says a binding again as if it had just been made, under a new revision: after a restart,
    /// when what follows from it was held back.
    pub fn touch(&mut self, prefix: Prefix, out: &mut Vec<BindingChange>) -> Option<Revision> {
        let binding = self.find(prefix)?.clone();
        out.push(self.change(prefix, None, Some(binding)));
        Some(self.revision)
    }

    /// Remembers a claim of a prefix that is not bound here.
    pub fn bury(&mut self, prefix: Prefix, claim: Claim) {
        let known = self.tombstones.entry(prefix).or_insert_with(|| {
            self.tombstone_order.push_back(prefix);
            claim
        });
        *known = claim.max(*known);
        while self.tombstone_order.len() > limits::TOMBSTONES_MAX {
            if let Some(oldest) = self.tombstone_order.pop_front() {
                self.tombstones.remove(&oldest);
            }
        }
    }

    /// Prefixes whose lifetime is over at `now`. The caller decides what that means.
    pub fn expired(&mut self, now: Instant) -> Vec<Prefix> {
        let mut over = Vec::new();
        while let Some(&(at, prefix)) = self.leases.first() {
            if at > now {
                break;
            }
            self.leases.pop_first();
            if self.find(prefix).is_some_and(|b| b.lifetime.is_over(now)) {
                over.push(prefix);
            }
        }
        over
    }

    /// When [`Self::expired`] has something to say.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leases.first().map(|&(at, _)| at)
    }

    /// A page of at most `limit` bindings, from `cursor` on (0 at first).
    pub fn page(&self, cursor: u32, limit: usize) -> Page<'_> {
        let mut bindings = Vec::new();
        // Free slots count against the scan, so that a page over an emptied table is bounded too.
        let scan_max = limit.saturating_mul(16).max(1024);
        let start = cursor as usize;
        for (i, slot) in self.slab.iter().enumerate().skip(start) {
            if bindings.len() >= limit || i - start >= scan_max {
                return Page { bindings, next: u32::try_from(i).ok() };
            }
            bindings.extend(slot.as_ref());
        }
        Page { bindings, next: None }
    }

    /// Bindings at one anchor. Walks the table: for rare events (an anchor's full report), not for
    /// the hot path.
    pub fn at_anchor(&self, anchor: AnchorId) -> impl Iterator<Item = &Binding> {
        self.slab.iter().flatten().filter(move |b| b.anchor == anchor)
    }

    fn note_lease(&mut self, binding: &Binding) {
        if let crate::types::Lifetime::Until(at) = binding.lifetime {
            self.leases.insert((at, binding.prefix));
        }
    }

    fn change(
        &mut self,
        prefix: Prefix,
        old: Option<Binding>,
        new: Option<Binding>,
    ) -> BindingChange {
        self.revision.0 += 1;
        BindingChange { prefix, old, new, revision: self.revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Lifetime, Locator};
    use std::time::Duration;

    fn binding(anchor: u32, generation: u32) -> Binding {
        Binding {
            prefix: "10.1.1.7/32".parse().unwrap(),
            mn: MnId::new("mn1@example").unwrap(),
            anchor: AnchorId(anchor),
            fe_e: Locator::default(),
            home: None,
            generation: Generation(generation),
            lifetime: Lifetime::WhileAttached,
        }
    }

    /// Every order of the same statements, with duplicates, ends the same.
    #[test]
    fn the_greatest_claim_is_left_in_any_order() {
        let all = [binding(1, 1), binding(2, 2), binding(3, 2), binding(1, 3), binding(9, 3)];
        let mut order = [0, 1, 2, 3, 4];
        for _ in 0..120 {
            let mut location = Location::new(1);
            let mut out = Vec::new();
            for &i in order.iter().chain(&order) {
                location.apply(all[i].clone(), &mut out).unwrap();
            }
            assert_eq!(location.find(all[0].prefix), Some(&all[3]), "{order:?}");
            for pair in out.windows(2) {
                assert!(pair[0].revision < pair[1].revision);
                assert!(
                    pair[0].new.as_ref().unwrap().claim() < pair[1].new.as_ref().unwrap().claim()
                );
            }
            next_permutation(&mut order);
        }
    }

    fn next_permutation(a: &mut [usize; 5]) {
        let Some(i) = (0..4).rev().find(|&i| a[i] < a[i + 1]) else { return a.sort_unstable() };
        let j = (0..5).rev().find(|&j| a[j] > a[i]).expect("a[i+1] is one");
        a.swap(i, j);
        a[i + 1..].reverse();
    }

    #[test]
    fn a_removed_binding_does_not_come_back_by_old_news() {
        let mut location = Location::new(1);
        let mut out = Vec::new();
        location.apply(binding(1, 5), &mut out).unwrap();
        let newer = binding(2, 6).claim();
        assert!(location.remove(binding(1, 5).prefix, newer, &mut out));
        assert!(!location.remove(binding(1, 5).prefix, newer, &mut out), "once is enough");
        let late = location.apply(binding(1, 5), &mut out).unwrap();
        assert_eq!(late, Applied::Older { known: newer });
        assert_eq!(location.known_claim(binding(1, 5).prefix), Some(newer));
        assert_eq!(location.apply(binding(3, 6), &mut out), Ok(Applied::TieLost { known: newer }));
        assert_eq!(location.apply(binding(1, 7), &mut out), Ok(Applied::Newer));
    }

    #[test]
    fn a_prefix_of_another_node_is_refused() {
        let mut location = Location::new(1);
        let mut out = Vec::new();
        location.apply(binding(1, 1), &mut out).unwrap();
        let other = Binding { mn: MnId::new("mn2").unwrap(), ..binding(1, 2) };
        assert_eq!(location.apply(other, &mut out), Err(LocationError::OtherNode));
    }

    #[test]
    fn leases_end_once_and_a_refresh_moves_the_end() {
        let mut location = Location::new(1);
        let mut out = Vec::new();
        let until = |s| Lifetime::Until(Instant::ZERO + Duration::from_secs(s));
        location.apply(Binding { lifetime: until(10), ..binding(1, 1) }, &mut out).unwrap();
        location.apply(Binding { lifetime: until(20), ..binding(1, 1) }, &mut out).unwrap();
        assert_eq!(out.len(), 1, "a refresh is not a change of location");
        assert!(location.expired(Instant::ZERO + Duration::from_secs(10)).is_empty());
        assert_eq!(location.expired(Instant::ZERO + Duration::from_secs(20)).len(), 1);
        assert_eq!(location.poll_timeout(), None);
    }

    #[test]
    fn pages_cover_everything_once() {
        let mut location = Location::new(1);
        let mut out = Vec::new();
        for i in 0..100 {
            let b = Binding {
                prefix: Prefix::v4(0x0a00_0000 + i, 32).unwrap(),
                mn: MnId::new(&format!("mn{i}")).unwrap(),
                ..binding(1, 1)
            };
            location.apply(b, &mut out).unwrap();
        }
        let (mut seen, mut cursor) = (0, Some(0));
        while let Some(at) = cursor {
            let page = location.page(at, 7);
            seen += page.bindings.len();
            cursor = page.next;
        }
        assert_eq!(seen, 100);
    }
}
