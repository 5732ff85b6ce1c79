//! Attribute sets, each kept once and counted; what the decision needs of them is worked out when
//! they come in. Beside it a cache from raw attribute blocks to sets, so that the UPDATEs of a
//! load, which repeat few blocks, are not walked again.

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::RibConfig;
use super::index::Index;
use crate::wire::bgp::attributes::{NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED};
use crate::wire::bgp::{AsPath, AsSegment, Attributes, NextHop, RawAttribute};

pub(super) type AttrId = u32;

/// LOCAL_PREF of a route that came without (from an external peer, or our own).
pub(super) const LOCAL_PREF_DEFAULT: u32 = 100;

/// NO_EXPORT or NO_EXPORT_SUBCONFED.
pub(super) const NOT_EXTERNAL: u8 = 1;
pub(super) const NOT_AT_ALL: u8 = 2;
pub(super) const NEXT_HOP_V6: u8 = 4;
/// We have seen this before (RFC 4271 §9.1.2, RFC 4456 §8).
pub(super) const LOOP_AS: u8 = 8;
pub(super) const LOOP_ORIGINATOR: u8 = 16;
pub(super) const LOOP_CLUSTER: u8 = 32;

/// What the decision and the export rules look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttrKey {
    pub local_pref: u32,
    pub med: u32,
    pub neighbor_as: u32,
    pub originator_id: Option<u32>,
    pub next_hop: u32,
    pub as_path_len: u16,
    pub cluster_list_len: u16,
    pub origin: u8,
    pub flags: u8,
}

#[derive(Debug)]
struct AttrSlot {
    attributes: Option<Box<Attributes>>,
    key: AttrKey,
    refs: u32,
    hash: u32,
    /// Another one for each set that ever had this number: caches outside compare it.
    version: u64,
    /// Scratch of the packer: the bucket of this set in the batch of that number.
    batch: u64,
    bucket: u32,
}

#[derive(Debug)]
pub(super) struct AttrStore {
    local_as: u32,
    router_id: Ipv4Addr,
    cluster_id: Ipv4Addr,
    slots: Vec<AttrSlot>,
    free: Vec<AttrId>,
    /// Versions given out.
    versions: u64,
    index: Index,
    hasher: FixedState,
    sets_max: usize,
    octets_max: usize,
    /// Memory of all sets, nearly.
    octets: usize,
    pub next_hops: NextHops,
    cache: BlockCache,
}

impl AttrStore {
    pub(super) fn new(config: &RibConfig) -> Self {
        let seed = config.seed;
        Self {
            local_as: config.local_as,
            router_id: config.router_id,
            cluster_id: config.cluster_id,
            slots: Vec::new(),
            free: Vec::new(),
            versions: 0,
            index: Index::new(),
            hasher: FixedState::with_seed(seed),
            sets_max: config.attribute_sets_max,
            octets_max: config.attribute_octets_max,
            octets: 0,
            next_hops: NextHops::new(seed),
            cache: BlockCache::new(seed),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    #[inline]
    pub(super) fn key(&self, id: AttrId) -> &AttrKey {
        &self.slots[id as usize].key
    }

    pub(super) fn version(&self, id: AttrId) -> u64 {
        self.slots[id as usize].version
    }

    pub(super) fn get(&self, id: AttrId) -> &Attributes {
        self.slots[id as usize].attributes.as_deref().expect("counted sets are there")
    }

    #[inline]
    pub(super) fn retain(&mut self, id: AttrId) {
        self.slots[id as usize].refs += 1;
    }

    #[inline]
    pub(super) fn release(&mut self, id: AttrId) {
        let slot = &mut self.slots[id as usize];
        slot.refs -= 1;
        if slot.refs == 0 {
            self.remove(id);
        }
    }

    #[cold]
    fn remove(&mut self, id: AttrId) {
        let slot = &mut self.slots[id as usize];
        let attributes = slot.attributes.take();
        self.octets -= attributes.as_deref().map_or(0, octets_of);
        let (hash, next_hop) = (slot.hash, slot.key.next_hop);
        self.index.remove(hash, id);
        self.free.push(id);
        self.next_hops.release(next_hop);
    }

    /// The bucket this set already has in batch `batch`, or notes that `next` is going to be it.
    #[inline]
    pub(super) fn bucket(&mut self, id: AttrId, batch: u64, next: u32) -> Option<u32> {
        let slot = &mut self.slots[id as usize];
        if slot.batch == batch {
            return Some(slot.bucket);
        }
        slot.batch = batch;
        slot.bucket = next;
        None
    }

    /// The number of this set, counted once for the caller. `None` when the store is full.
    pub(super) fn intern(&mut self, attributes: Attributes) -> Option<AttrId> {
        let hash = self.hasher.hash_one(&attributes) as u32;
        let found = self
            .index
            .find(hash, |id| self.slots[id as usize].attributes.as_deref() == Some(&attributes));
        if let Some(id) = found {
            self.retain(id);
            return Some(id);
        }
        let octets = octets_of(&attributes);
        if self.len() >= self.sets_max || self.octets + octets > self.octets_max {
            return None;
        }
        self.octets += octets;
        let key = self.make_key(&attributes);
        self.versions += 1;
        let slot = AttrSlot {
            attributes: Some(Box::new(attributes)),
            key,
            refs: 1,
            hash,
            version: self.versions,
            batch: 0,
            bucket: 0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as AttrId
            }
        };
        self.index.insert(hash, id);
        Some(id)
    }

    fn make_key(&mut self, a: &Attributes) -> AttrKey {
        let mut flags = 0;
        if a.communities.iter().any(|c| matches!(*c, NO_EXPORT | NO_EXPORT_SUBCONFED)) {
            flags |= NOT_EXTERNAL;
        }
        if a.communities.contains(&NO_ADVERTISE) {
            flags |= NOT_AT_ALL;
        }
        if matches!(a.next_hop, NextHop::V6 { .. }) {
            flags |= NEXT_HOP_V6;
        }
        if contains_as(&a.as_path, self.local_as) {
            flags |= LOOP_AS;
        }
        if a.originator_id == Some(self.router_id) {
            flags |= LOOP_ORIGINATOR;
        }
        if a.cluster_list.contains(&self.cluster_id) {
            flags |= LOOP_CLUSTER;
        }
        AttrKey {
            local_pref: a.local_pref.unwrap_or(LOCAL_PREF_DEFAULT),
            med: a.med.unwrap_or(0),
            neighbor_as: neighbor_as(&a.as_path),
            originator_id: a.originator_id.map(u32::from),
            next_hop: self.next_hops.retain(a.next_hop.addr()),
            as_path_len: as_path_len(&a.as_path),
            cluster_list_len: u16::try_from(a.cluster_list.len()).unwrap_or(u16::MAX),
            origin: a.origin as u8,
            flags,
        }
    }

    /// The set that this raw block stood for when it was last walked under the same `class`.
    #[inline]
    pub(super) fn find_block(&self, class: u32, block: &[u8]) -> Option<AttrId> {
        self.cache.find(class, block)
    }

    pub(super) fn forget_blocks(&mut self) {
        for at in 0..BLOCKS {
            if let Some(block) = self.cache.entries[at].take() {
                self.release(block.id);
            }
        }
    }

    /// `id` is what `block` means under `class`. An older block may be forgotten.
    pub(super) fn remember_block(&mut self, class: u32, block: &[u8], id: AttrId) {
        self.retain(id);
        if let Some(forgotten) = self.cache.insert(class, block, id) {
            self.release(forgotten);
        }
    }
}

/// What a set takes here, without the allocator's own.
fn octets_of(a: &Attributes) -> usize {
    let segments = a.as_path.0.iter().map(|segment| match segment {
        AsSegment::Set(list)
        | AsSegment::Sequence(list)
        | AsSegment::ConfedSequence(list)
        | AsSegment::ConfedSet(list) => size_of::<AsSegment>() + size_of_val(&list[..]),
    });
    let unknown = a.unknown.iter().map(|raw| size_of::<RawAttribute>() + raw.value.len());
    size_of::<AttrSlot>()
        + size_of::<Attributes>()
        + segments.sum::<usize>()
        + unknown.sum::<usize>()
        + size_of_val(&a.communities[..])
        + size_of_val(&a.cluster_list[..])
        + size_of_val(&a.extended_communities[..])
        + size_of_val(&a.large_communities[..])
}

fn contains_as(path: &AsPath, wanted: u32) -> bool {
    path.0.iter().any(|segment| match segment {
        AsSegment::Set(list)
        | AsSegment::Sequence(list)
        | AsSegment::ConfedSequence(list)
        | AsSegment::ConfedSet(list) => list.contains(&wanted),
    })
}

/// RFC 4271 §9.1.2.2 a): a set counts as one; RFC 5065 §5.3: confederation segments do not count.
fn as_path_len(path: &AsPath) -> u16 {
    let len: usize = path
        .0
        .iter()
        .map(|segment| match segment {
            AsSegment::Sequence(list) => list.len(),
            AsSegment::Set(_) => 1,
            AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => 0,
        })
        .sum();
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// The AS that the route came from; zero for routes of our own AS.
fn neighbor_as(path: &AsPath) -> u32 {
    path.0
        .iter()
        .find_map(|segment| match segment {
            AsSegment::Sequence(list) | AsSegment::Set(list) => Some(list.first().copied()),
            AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => None,
        })
        .flatten()
        .unwrap_or(0)
}

/// What is known about next hops; counted, and remembered for ever only when named from outside.
#[derive(Debug)]
pub(super) struct NextHops {
    by_addr: HashMap<IpAddr, u32, FixedState>,
    slots: Vec<NextHopSlot>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct NextHopSlot {
    addr: IpAddr,
    refs: u32,
    metric: Option<u32>,
    named: bool,
}

impl NextHops {
    fn new(seed: u64) -> Self {
        Self {
            by_addr: HashMap::with_hasher(FixedState::with_seed(seed)),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn metric(&self, number: u32) -> Option<u32> {
        self.slots[number as usize].metric
    }

    fn get(&mut self, addr: IpAddr) -> u32 {
        if let Some(&number) = self.by_addr.get(&addr) {
            return number;
        }
        let slot = NextHopSlot { addr, refs: 0, metric: Some(0), named: false };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_addr.insert(addr, number);
        number
    }

    fn retain(&mut self, addr: IpAddr) -> u32 {
        let number = self.get(addr);
        self.slots[number as usize].refs += 1;
        number
    }

    fn release(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        slot.refs -= 1;
        if slot.refs == 0 && !slot.named {
            let addr = slot.addr;
            self.by_addr.remove(&addr);
            self.free.push(number);
        }
    }

    /// The number of the next hop when its metric changes by this and routes use it.
    pub(super) fn set_metric(&mut self, addr: IpAddr, metric: Option<u32>) -> Option<u32> {
        let number = self.get(addr);
        let slot = &mut self.slots[number as usize];
        slot.named = true;
        let changes = slot.metric != metric && slot.refs > 0;
        slot.metric = metric;
        changes.then_some(number)
    }
}

/// Four-way associative; a block that does not fit pushes out the one that was put there longest
/// ago. It is a cache of references: up to `BLOCKS` sets outlive their last route.
#[derive(Debug)]
struct BlockCache {
    hasher: FixedState,
    entries: Vec<Option<Block>>,
    victim: Vec<u8>,
}

#[derive(Debug)]
struct Block {
    hash: u64,
    class: u32,
    id: AttrId,
    octets: Vec<u8>,
}

const WAYS: usize = 4;
const BLOCKS: usize = 1024;
/// Longer blocks are walked each time, so that the cache stays within some hundred kilobytes.
const BLOCK_LEN_MAX: usize = 512;

impl BlockCache {
    fn new(seed: u64) -> Self {
        Self {
            hasher: FixedState::with_seed(seed ^ 0x5bd1),
            entries: (0..BLOCKS).map(|_| None).collect(),
            victim: vec![0; BLOCKS / WAYS],
        }
    }

    #[inline]
    fn hash(&self, class: u32, block: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        class.hash(&mut hasher);
        hasher.write(block);
        hasher.finish()
    }

    #[inline]
    fn find(&self, class: u32, block: &[u8]) -> Option<AttrId> {
        let hash = self.hash(class, block);
        let set = hash as usize % (BLOCKS / WAYS);
        self.entries[set * WAYS..][..WAYS]
            .iter()
            .flatten()
            .find(|b| b.hash == hash && b.class == class && b.octets == block)
            .map(|b| b.id)
    }

    fn insert(&mut self, class: u32, block: &[u8], id: AttrId) -> Option<AttrId> {
        if block.len() > BLOCK_LEN_MAX {
            return Some(id);
        }
        let hash = self.hash(class, block);
        let set = hash as usize % (BLOCKS / WAYS);
        let way = usize::from(self.victim[set]);
        self.victim[set] = ((way + 1) % WAYS) as u8;
        let entry = &mut self.entries[set * WAYS + way];
        match entry {
            Some(old) => {
                let forgotten = old.id;
                (old.hash, old.class, old.id) = (hash, class, id);
                old.octets.clear();
                old.octets.extend_from_slice(block);
                Some(forgotten)
            }
            None => {
                *entry = Some(Block { hash, class, id, octets: block.to_vec() });
                None
            }
        }
    }
}
