//! The table of the machines: one entry per prefix, packed.
//!
//! There may be millions, nearly all of them at rest, so an entry is taken out into a value,
//! worked on, and put back. What all nodes of an anchor share is kept once, and IPv4 prefixes,
//! which are most, do not pay for the length of IPv6 ones.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::handover::Stage;
use crate::types::{AnchorId, Generation, Instant, Locator, Prefix, Revision, Slab, limits};

/// Where the handover of one prefix stands, and what it needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub anchor: AnchorId,
    pub fe_e: Locator,
    pub at_home: bool,
    pub generation: Generation,
    pub revision: Revision,
    pub stage: Stage,
    /// An announcement of ours stands in BGP (or with the controllers), perhaps of before.
    pub announced: bool,
    /// FE_E of this node has an entry.
    pub delivered: bool,
    pub held_elsewhere: bool,
    pub confirmed: bool,
}

/// Which entry it is, for as long as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u32);

impl Place {
    const V6: u32 = 1 << 31;
}

const _: () = assert!(limits::BINDINGS_MAX <= Place::V6 as usize);

/// A prefix in as few octets as its family needs.
trait Key: Copy + PartialEq {
    fn prefix(self) -> Prefix;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key4 {
    addr: [u8; 4],
    len: u8,
}

impl Key for Key4 {
    fn prefix(self) -> Prefix {
        Prefix::V4 { addr: u32::from_be_bytes(self.addr), len: self.len }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key6 {
    addr: [u8; 16],
    len: u8,
}

impl Key for Key6 {
    fn prefix(self) -> Prefix {
        Prefix::V6 { addr: u128::from_be_bytes(self.addr), len: self.len }
    }
}

/// Eight octets that do not ask for a place divisible by eight.
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
struct Word(u64);

/// Which stage it is; the deadline that it may have is beside it.
#[derive(Clone, Copy)]
enum StageKind {
    Preparing,
    Claimed,
    Settled,
    Home,
}

const AT_HOME: u8 = 1;
const ANNOUNCED: u8 = 1 << 1;
const DELIVERED: u8 = 1 << 2;
const HELD_ELSEWHERE: u8 = 1 << 3;
const CONFIRMED: u8 = 1 << 4;

#[derive(Clone, Copy)]
struct Packed<K> {
    key: K,
    stage: StageKind,
    flags: u8,
    destination: u32,
    generation: Generation,
    revision: Word,
    /// Of [`StageKind::Preparing`] and [`StageKind::Claimed`], in microseconds.
    deadline: Word,
}

const _: () = assert!(size_of::<Packed<Key4>>() == 32 && size_of::<Packed<Key6>>() == 44);

impl<K> Packed<K> {
    fn new(key: K, entry: &Entry, destination: u32) -> Self {
        let (stage, deadline) = match entry.stage {
            Stage::Preparing { deadline } => (StageKind::Preparing, deadline),
            Stage::Claimed { settle_at } => (StageKind::Claimed, settle_at),
            Stage::Settled => (StageKind::Settled, Instant::ZERO),
            Stage::Home => (StageKind::Home, Instant::ZERO),
        };
        let flag = |is, bit| if is { bit } else { 0 };
        let flags = flag(entry.at_home, AT_HOME)
            | flag(entry.announced, ANNOUNCED)
            | flag(entry.delivered, DELIVERED)
            | flag(entry.held_elsewhere, HELD_ELSEWHERE)
            | flag(entry.confirmed, CONFIRMED);
        Self {
            key,
            stage,
            flags,
            destination,
            generation: entry.generation,
            revision: Word(entry.revision.0),
            deadline: Word(deadline.as_micros()),
        }
    }

    fn stage(&self) -> Stage {
        let deadline = Instant::from_micros(self.deadline.0);
        match self.stage {
            StageKind::Preparing => Stage::Preparing { deadline },
            StageKind::Claimed => Stage::Claimed { settle_at: deadline },
            StageKind::Settled => Stage::Settled,
            StageKind::Home => Stage::Home,
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }

    fn entry(&self, destinations: &Destinations) -> Entry {
        let (anchor, fe_e) = destinations.get(self.destination);
        Entry {
            anchor,
            fe_e,
            at_home: self.has(AT_HOME),
            generation: self.generation,
            revision: Revision(self.revision.0),
            stage: self.stage(),
            announced: self.has(ANNOUNCED),
            delivered: self.has(DELIVERED),
            held_elsewhere: self.has(HELD_ELSEWHERE),
            confirmed: self.has(CONFIRMED),
        }
    }
}

/// The entries of one family.
struct Table<K> {
    slab: Slab<Packed<K>>,
    index: HashTable<u32>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { slab: Slab::default(), index: HashTable::new() }
    }
}

impl<K: Key> Table<K> {
    fn find(&self, key: K, hasher: &FixedState) -> Option<&Packed<K>> {
        let hash = hasher.hash_one(key.prefix());
        let slot = self.index.find(hash, |&slot| self.slab[slot].key == key)?;
        self.slab.get(*slot)
    }

    /// Its slot, and what stood there before.
    fn put(&mut self, packed: Packed<K>, hasher: &FixedState) -> (u32, Option<Packed<K>>) {
        let Self { slab, index } = self;
        let hash = hasher.hash_one(packed.key.prefix());
        if let Some(&slot) = index.find(hash, |&slot| slab[slot].key == packed.key) {
            return (slot, Some(std::mem::replace(&mut slab[slot], packed)));
        }
        let slot = slab.insert(packed);
        index.insert_unique(hash, slot, |&other| hasher.hash_one(slab[other].key.prefix()));
        (slot, None)
    }

    fn remove(&mut self, key: K, hasher: &FixedState) -> Option<(u32, Packed<K>)> {
        let Self { slab, index } = self;
        let hash = hasher.hash_one(key.prefix());
        let found = index.find_entry(hash, |&slot| slab[slot].key == key).ok()?;
        let slot = found.remove().0;
        Some((slot, slab.remove(slot)?))
    }
}

/// An anchor and its FE_E, for as long as an entry leads there.
struct Destination {
    anchor: AnchorId,
    fe_e: Locator,
    entries: u32,
}

#[derive(Default)]
struct Destinations {
    slab: Slab<Destination>,
    index: HashTable<u32>,
}

impl Destinations {
    fn get(&self, slot: u32) -> (AnchorId, Locator) {
        let found = &self.slab[slot];
        (found.anchor, found.fe_e)
    }

    fn enter(&mut self, to: (AnchorId, Locator), hasher: &FixedState) -> u32 {
        let Self { slab, index } = self;
        let hash = hasher.hash_one(to);
        let is_it = |&slot: &u32| (slab[slot].anchor, slab[slot].fe_e) == to;
        if let Some(&slot) = index.find(hash, is_it) {
            slab[slot].entries += 1;
            return slot;
        }
        let slot = slab.insert(Destination { anchor: to.0, fe_e: to.1, entries: 1 });
        index.insert_unique(hash, slot, |&d| hasher.hash_one((slab[d].anchor, slab[d].fe_e)));
        slot
    }

    fn leave(&mut self, slot: u32, hasher: &FixedState) {
        let found = &mut self.slab[slot];
        found.entries -= 1;
        if found.entries == 0 {
            let hash = hasher.hash_one((found.anchor, found.fe_e));
            if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
                entry.remove();
            }
            self.slab.remove(slot);
        }
    }
}

pub(super) struct Entries {
    v4: Table<Key4>,
    v6: Table<Key6>,
    destinations: Destinations,
    hasher: FixedState,
}

impl Entries {
    pub fn new(seed: u64) -> Self {
        Self {
            v4: Table::default(),
            v6: Table::default(),
            destinations: Destinations::default(),
            hasher: FixedState::with_seed(seed),
        }
    }

    pub fn find(&self, prefix: Prefix) -> Option<Entry> {
        match prefix {
            Prefix::V4 { addr, len } => {
                let key = Key4 { addr: addr.to_be_bytes(), len };
                Some(self.v4.find(key, &self.hasher)?.entry(&self.destinations))
            }
            Prefix::V6 { addr, len } => {
                let key = Key6 { addr: addr.to_be_bytes(), len };
                Some(self.v6.find(key, &self.hasher)?.entry(&self.destinations))
            }
        }
    }

    /// The prefix whose entry stands there.
    pub fn prefix_at(&self, place: Place) -> Option<Prefix> {
        if place.0 & Place::V6 == 0 {
            Some(self.v4.slab.get(place.0)?.key.prefix())
        } else {
            Some(self.v6.slab.get(place.0 & !Place::V6)?.key.prefix())
        }
    }

    /// Puts the entry in the place of what stood there, whose stage is said.
    pub fn put(&mut self, prefix: Prefix, entry: &Entry) -> (Place, Option<Stage>) {
        // The new one is counted before the old one leaves: a destination that stays is not made
        // anew.
        let to = self.destinations.enter((entry.anchor, entry.fe_e), &self.hasher);
        let (place, before) = match prefix {
            Prefix::V4 { addr, len } => {
                let key = Key4 { addr: addr.to_be_bytes(), len };
                let (slot, before) = self.v4.put(Packed::new(key, entry, to), &self.hasher);
                (Place(slot), before.map(|p| (p.stage(), p.destination)))
            }
            Prefix::V6 { addr, len } => {
                let key = Key6 { addr: addr.to_be_bytes(), len };
                let (slot, before) = self.v6.put(Packed::new(key, entry, to), &self.hasher);
                (Place(slot | Place::V6), before.map(|p| (p.stage(), p.destination)))
            }
        };
        if let Some((_, destination)) = before {
            self.destinations.leave(destination, &self.hasher);
        }
        (place, before.map(|(stage, _)| stage))
    }

    pub fn remove(&mut self, prefix: Prefix) -> Option<(Place, Entry)> {
        let (place, entry, destination) = match prefix {
            Prefix::V4 { addr, len } => {
                let key = Key4 { addr: addr.to_be_bytes(), len };
                let (slot, packed) = self.v4.remove(key, &self.hasher)?;
                (Place(slot), packed.entry(&self.destinations), packed.destination)
            }
            Prefix::V6 { addr, len } => {
                let key = Key6 { addr: addr.to_be_bytes(), len };
                let (slot, packed) = self.v6.remove(key, &self.hasher)?;
                (Place(slot | Place::V6), packed.entry(&self.destinations), packed.destination)
            }
        };
        self.destinations.leave(destination, &self.hasher);
        Some((place, entry))
    }
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = [self.v4.slab.len(), self.v6.slab.len()];
        f.debug_struct("Entries").field("count", &count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(anchor: u32, stage: Stage) -> Entry {
        Entry {
            anchor: AnchorId(anchor),
            fe_e: Locator { ipv4: Some(anchor.into()), ipv6: None },
            at_home: true,
            generation: Generation(7),
            revision: Revision(u64::MAX),
            stage,
            announced: false,
            delivered: true,
            held_elsewhere: false,
            confirmed: true,
        }
    }

    #[test]
    fn an_entry_comes_out_as_it_went_in() {
        let mut entries = Entries::new(1);
        let at = Instant::from_micros(u64::MAX / 3);
        let stages = [
            Stage::Preparing { deadline: at },
            Stage::Claimed { settle_at: Instant::FAR_FUTURE },
            Stage::Settled,
            Stage::Home,
        ];
        for prefix in ["10.1.1.7/32", "10.1.1.6/31", "2001:db8::7/128", "::/0", "0.0.0.0/0"] {
            let prefix: Prefix = prefix.parse().unwrap();
            let mut before = None;
            for stage in stages {
                let one = entry(1, stage);
                let other = Entry {
                    at_home: false,
                    announced: true,
                    delivered: false,
                    held_elsewhere: true,
                    confirmed: false,
                    ..entry(2, stage)
                };
                for entry in [one, other] {
                    let (place, was) = entries.put(prefix, &entry);
                    assert_eq!(was, before.replace(stage));
                    assert_eq!(entries.prefix_at(place), Some(prefix));
                    assert_eq!(entries.find(prefix), Some(entry));
                }
            }
            let (place, last) = entries.remove(prefix).unwrap();
            assert_eq!((last.anchor, last.stage), (AnchorId(2), Stage::Home));
            assert_eq!((entries.find(prefix), entries.remove(prefix)), (None, None));
            assert_eq!(entries.prefix_at(place), None);
        }
        assert!(entries.destinations.slab.is_empty() && entries.destinations.index.is_empty());
    }

    #[test]
    fn entries_that_lead_to_the_same_place_share_it() {
        let mut entries = Entries::new(1);
        let host = |i| Prefix::v4(0x0a00_0000 + i, 32).unwrap();
        for i in 0..100 {
            entries.put(host(i), &entry(i % 3, Stage::Settled));
        }
        assert_eq!(entries.destinations.slab.len(), 3);
        for i in 0..100 {
            entries.put(host(i), &entry(3, Stage::Settled));
        }
        assert_eq!((entries.destinations.slab.len(), entries.v4.slab.len()), (1, 100));
        assert!((0..100).all(|i| entries.find(host(i)) == Some(entry(3, Stage::Settled))));
    }
}
