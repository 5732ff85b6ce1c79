//! The table itself: a slab of bindings, an index by prefix, an index by node.
//!
//! The slab gives listings a cursor that costs nothing to resume (a listing must not stall
//! routing), and the indexes are point lookups only, so no iteration order reaches an output. An
//! index holds slots, four octets each; what they are found by is read in the slab.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::types::seam::BindingChange;
use crate::types::{
    AnchorId, Binding, Claim, Generation, Instant, Lifetime, MnId, Prefix, Revision, Slab, limits,
};

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

/// A node with more than one prefix.
#[derive(Debug)]
struct NodeRecord {
    mn: MnId,
    /// In the order in which they came.
    prefixes: Vec<Prefix>,
}

/// Where the prefixes of a node are written, in four octets: most nodes have one, and then its
/// binding says it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings(u32);

impl Holdings {
    /// What tells a slot of the node records from one of the bindings.
    const MANY: u32 = 1 << 31;

    fn one(binding: u32) -> Self {
        Self(binding)
    }

    fn many(record: u32) -> Self {
        Self(record | Self::MANY)
    }

    /// The slot of the node's record, or of its only binding.
    fn slot(self) -> Result<u32, u32> {
        if self.0 & Self::MANY == 0 { Err(self.0) } else { Ok(self.0 & !Self::MANY) }
    }
}

const _: () = assert!(limits::BINDINGS_MAX <= Holdings::MANY as usize);
const _: () = assert!(size_of::<Binding>() == 96, "most of what a binding costs");

/// The bindings, and what they are found by.
#[derive(Debug)]
struct Table {
    slab: Slab<Binding>,
    by_prefix: HashTable<u32>,
    records: Slab<NodeRecord>,
    by_node: HashTable<Holdings>,
    hasher: FixedState,
}

impl Table {
    fn new(hasher: FixedState) -> Self {
        Self {
            slab: Slab::default(),
            by_prefix: HashTable::new(),
            records: Slab::default(),
            by_node: HashTable::new(),
            hasher,
        }
    }

    fn find(&self, prefix: Prefix) -> Option<u32> {
        let hash = self.hasher.hash_one(prefix);
        self.by_prefix.find(hash, |&slot| self.slab[slot].prefix == prefix).copied()
    }

    fn prefixes_of(&self, mn: &MnId) -> &[Prefix] {
        let (slab, records) = (&self.slab, &self.records);
        let hash = self.hasher.hash_one(mn);
        match self.by_node.find(hash, |&h| name_of(slab, records, h) == mn).map(|h| h.slot()) {
            Some(Ok(record)) => &records[record].prefixes,
            Some(Err(binding)) => std::slice::from_ref(&slab[binding].prefix),
            None => &[],
        }
    }

    /// The prefix must not be in the table.
    fn insert(&mut self, binding: Binding) -> u32 {
        let Self { slab, by_prefix, records, by_node, hasher } = self;
        let (prefix, mn) = (binding.prefix, binding.mn.clone());
        let slot = slab.insert(binding);
        let hash = hasher.hash_one(prefix);
        by_prefix.insert_unique(hash, slot, |&other| hasher.hash_one(slab[other].prefix));

        let hash = hasher.hash_one(&mn);
        let Some(held) = by_node.find_mut(hash, |&h| *name_of(slab, records, h) == mn) else {
            let hash_of = |&h: &Holdings| hasher.hash_one(name_of(slab, records, h));
            by_node.insert_unique(hash, Holdings::one(slot), hash_of);
            return slot;
        };
        match held.slot() {
            Ok(record) => records[record].prefixes.push(prefix),
            Err(first) => {
                let mut prefixes = Vec::with_capacity(2);
                prefixes.extend([slab[first].prefix, prefix]);
                *held = Holdings::many(records.insert(NodeRecord { mn, prefixes }));
            }
        }
        slot
    }

    fn remove(&mut self, prefix: Prefix) -> Option<Binding> {
        let Self { slab, by_prefix, records, by_node, hasher } = self;
        let hash = hasher.hash_one(prefix);
        let found = by_prefix.find_entry(hash, |&slot| slab[slot].prefix == prefix).ok()?;
        let slot = found.remove().0;

        let mn = &slab[slot].mn;
        let hash = hasher.hash_one(mn);
        if let Ok(mut held) = by_node.find_entry(hash, |&h| name_of(slab, records, h) == mn) {
            match held.get().slot() {
                Err(_) => drop(held.remove()),
                Ok(record) => {
                    let prefixes = &mut records[record].prefixes;
                    prefixes.retain(|&p| p != prefix);
                    if let [last] = prefixes[..] {
                        let hash = hasher.hash_one(last);
                        let last = by_prefix.find(hash, |&slot| slab[slot].prefix == last);
                        let last = *last.expect("a node's prefix is bound");
                        *held.get_mut() = Holdings::one(last);
                        records.remove(record);
                    }
                }
            }
        }
        slab.remove(slot)
    }
}

/// Whose holdings these are.
fn name_of<'a>(slab: &'a Slab<Binding>, records: &'a Slab<NodeRecord>, held: Holdings) -> &'a MnId {
    match held.slot() {
        Ok(record) => &records[record].mn,
        Err(binding) => &slab[binding].mn,
    }
}

#[derive(Debug)]
pub struct Location {
    table: Table,
    /// Claims of prefixes that are no longer bound here, oldest first in `tombstone_order`; the
    /// oldest is forgotten when there are `TOMBSTONES_MAX`.
    tombstones: HashMap<Prefix, Claim, FixedState>,
    tombstone_order: VecDeque<Prefix>,
    /// The bindings that end by time, by deadline and slot. Once each.
    leases: BTreeSet<(Instant, u32)>,
    /// How many bindings have each prefix length, by family.
    lengths: [BTreeMap<u8, u32>; 2],
    revision: Revision,
}

impl Location {
    /// `seed` keys the hash tables.
    pub fn new(seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        Self {
            table: Table::new(state.clone()),
            tombstones: HashMap::with_hasher(state),
            tombstone_order: VecDeque::new(),
            leases: BTreeSet::new(),
            lengths: Default::default(),
            revision: Revision(0),
        }
    }

    pub fn len(&self) -> usize {
        self.table.slab.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.slab.is_empty()
    }

    pub fn find(&self, prefix: Prefix) -> Option<&Binding> {
        self.table.slab.get(self.table.find(prefix)?)
    }

    /// The binding of the longest prefix with this address in it. One lookup per length in use.
    pub fn find_longest(&self, addr: IpAddr) -> Option<&Binding> {
        let host = Prefix::host(addr);
        let counts = &self.lengths[host.family() as usize];
        counts.keys().rev().find_map(|&len| self.find(Prefix::new(addr, len)?))
    }

    /// The prefixes bound to a node, in the order in which they came.
    pub fn prefixes_of(&self, mn: &MnId) -> &[Prefix] {
        self.table.prefixes_of(mn)
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
        if let Some(slot) = self.table.find(binding.prefix) {
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
        if self.len() >= limits::BINDINGS_MAX {
            return Err(LocationError::Full);
        }
        if self.prefixes_of(&binding.mn).len() >= limits::PREFIXES_PER_NODE_MAX {
            return Err(LocationError::TooManyPrefixes);
        }
        self.tombstones.remove(&binding.prefix);
        let prefix = binding.prefix;
        let lifetime = binding.lifetime;
        out.push(self.change(prefix, None, Some(binding.clone())));
        let slot = self.table.insert(binding);
        self.move_lease(slot, Lifetime::WhileAttached, lifetime);
        *self.lengths[prefix.family() as usize].entry(prefix.len()).or_default() += 1;
        Ok(outcome)
    }

    fn apply_to(
        &mut self,
        slot: u32,
        binding: Binding,
        out: &mut Vec<BindingChange>,
    ) -> Result<Applied, LocationError> {
        let known = &self.table.slab[slot];
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
        let old = std::mem::replace(&mut self.table.slab[slot], binding.clone());
        self.move_lease(slot, old.lifetime, binding.lifetime);
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
        let Some(slot) = self.table.find(prefix) else { return false };
        let Some(old) = self.table.remove(prefix) else { return false };
        self.move_lease(slot, old.lifetime, Lifetime::WhileAttached);
        let lengths = &mut self.lengths[prefix.family() as usize];
        if let Some(count) = lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&prefix.len());
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
        while let Some(&(at, slot)) = self.leases.first() {
            if at > now {
                break;
            }
            self.leases.pop_first();
            over.extend(self.table.slab.get(slot).map(|b| b.prefix));
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
        for slot in cursor..self.table.slab.slots() {
            if bindings.len() >= limit || (slot - cursor) as usize >= scan_max {
                return Page { bindings, next: Some(slot) };
            }
            bindings.extend(self.table.slab.get(slot));
        }
        Page { bindings, next: None }
    }

    /// Bindings at one anchor. Walks the table: for rare events (an anchor's full report), not for
    /// the hot path.
    pub fn at_anchor(&self, anchor: AnchorId) -> impl Iterator<Item = &Binding> {
        self.table.slab.iter().filter(move |b| b.anchor == anchor)
    }

    /// What ends a binding by time moves along with its lifetime.
    fn move_lease(&mut self, slot: u32, old: Lifetime, new: Lifetime) {
        if let Lifetime::Until(at) = old {
            self.leases.remove(&(at, slot));
        }
        if let Lifetime::Until(at) = new {
            self.leases.insert((at, slot));
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
    use crate::types::Locator;
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

    /// A mobile node's prefixes, its bindings and the longest match, beside a table that is too
    /// simple to be wrong.
    #[test]
    fn it_answers_as_a_plain_list_would() {
        let mut location = Location::new(1);
        let mut list: Vec<Binding> = Vec::new();
        let mut out = Vec::new();
        let mut random = 1u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for step in 0..4_000u32 {
            let prefix = match draw(3) {
                0 => Prefix::v4(0x0a00_0000 | draw(64) as u32, 32),
                1 => Prefix::v4(0x0a00_0000 | draw(64) as u32, 27 + draw(4) as u8),
                _ => Prefix::v6(u128::from(draw(64)) << 60, 64 + draw(8) as u8),
            };
            let prefix = prefix.unwrap();
            let held = list.iter().position(|b| b.prefix == prefix);
            if let (0, Some(at)) = (draw(2), held) {
                let old = list.remove(at);
                assert!(location.remove(prefix, old.claim(), &mut out));
            } else {
                let mn = match draw(4) {
                    0 => MnId::new(&format!("eid:{prefix}")).unwrap(),
                    n => MnId::new(&format!("mn{}", n + draw(4))).unwrap(),
                };
                let new = Binding { prefix, mn, ..binding(1, step + 1) };
                let known = list.iter().filter(|b| b.mn == new.mn).count();
                let expected = match held {
                    Some(at) if list[at].mn != new.mn => Err(LocationError::OtherNode),
                    None if known == limits::PREFIXES_PER_NODE_MAX => {
                        Err(LocationError::TooManyPrefixes)
                    }
                    _ => Ok(Applied::Newer),
                };
                assert_eq!(location.apply(new.clone(), &mut out), expected);
                match held {
                    Some(at) if expected.is_ok() => list[at] = new,
                    None if expected.is_ok() => list.push(new),
                    _ => {}
                }
            }
            assert_eq!(location.find(prefix), list.iter().find(|b| b.prefix == prefix));
            let addr = Prefix::v4(0x0a00_0000 | draw(64) as u32, 32).unwrap().addr();
            let around = list.iter().filter(|b| b.prefix.contains_addr(addr));
            assert_eq!(location.find_longest(addr), around.max_by_key(|b| b.prefix.len()));
            for b in list.iter().skip(draw(16) as usize).step_by(16) {
                let of_node = list.iter().filter(|o| o.mn == b.mn).map(|o| o.prefix);
                assert_eq!(location.prefixes_of(&b.mn), of_node.collect::<Vec<_>>());
            }
        }
        assert_eq!(location.len(), list.len());
        assert_eq!(location.at_anchor(AnchorId(1)).count(), list.len());
        for b in std::mem::take(&mut list) {
            assert!(location.remove(b.prefix, b.claim(), &mut out));
            assert!(location.find_longest(b.prefix.addr()).is_none_or(|o| o.prefix != b.prefix));
        }
        let table = &location.table;
        assert!(location.is_empty() && table.records.is_empty() && table.by_node.is_empty());
        assert!(location.lengths.iter().all(BTreeMap::is_empty));
    }

    /// What is refreshed often has one end, and a slot that is used again does not inherit one.
    #[test]
    fn a_binding_has_one_lease_at_most() {
        let mut location = Location::new(1);
        let mut out = Vec::new();
        let until = |s| Lifetime::Until(Instant::ZERO + Duration::from_secs(s));
        for s in 1..100 {
            location.apply(Binding { lifetime: until(s), ..binding(1, 1) }, &mut out).unwrap();
        }
        assert_eq!(location.leases.len(), 1);
        location.remove(binding(1, 1).prefix, binding(1, 1).claim(), &mut out);
        assert_eq!(location.poll_timeout(), None);
        location.apply(binding(1, 2), &mut out).unwrap();
        assert!(location.expired(Instant::FAR_FUTURE).is_empty());
    }
}
