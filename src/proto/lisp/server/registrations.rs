//! The registered EIDs: a slab, an index by hash, an order (`order.rs`), interned contents.
//!
//! Per EID: 40 octets of slab, some 10 of index (4 and a control octet, at the load a doubling
//! table has), some 6 of order; the locators are shared. A longest match probes the index once per
//! prefix length in use, longest first, so a registered host is found by the first probe. Ends of
//! registrations are seconds in the slab, found by a cursor that walks it once in [`SWEEP`]: a
//! refresh writes one number and touches no other structure. A registration therefore ends up to
//! [`SWEEP`] late (RFC 9301 §8.2 says three minutes, SHOULD).

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::contents::{Content, ContentId, Contents};
use super::key::{EidKey, Lengths, largest_free};
use super::order::Order;
use super::sites::XtrIndex;
use crate::types::Instant;
use crate::types::lisp::MapVersion;
use crate::wire::lisp::{RlocAddress, RlocRecord};

/// The cursor passes every EID once in this time.
pub(super) const SWEEP: Duration = Duration::from_secs(10);
/// EIDs that one step of the cursor looks at: some 30 µs of work.
const STEP: usize = 4096;
/// xTRs whose locators one merged mapping can hold; one more is refused.
pub(super) const MERGE_MAX: usize = 16;

/// Seconds since the start, as the slab keeps ends of registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seconds(pub u32);

impl Seconds {
    pub fn at(now: Instant) -> Self {
        Self(u32::try_from(now.as_micros() / 1_000_000).unwrap_or(u32::MAX))
    }

    pub fn instant(self) -> Instant {
        Instant::ZERO + Duration::from_secs(u64::from(self.0))
    }

    pub fn after(now: Instant, wait: Duration) -> Self {
        // Rounded up: never before the time.
        Self::at(now + wait + Duration::from_micros(999_999))
    }
}

/// What is known of an EID. All that is `pub` may be changed in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    key: EidKey,
    content: ContentId,
    /// Who registered it last, `NONE` when it is only published.
    pub holder: XtrIndex,
    pub expires: Seconds,
    pub version: MapVersion,
    pub flags: Flags,
}

/// What an entry is, beside its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// The ETR asked for proxy replies (or its site has them always).
    pub proxy: bool,
    /// Inside a mobile pool: the location database answers, this entry only says who registers it.
    pub mobile: bool,
    /// The hall has published it: it is bound and known outside.
    pub published: bool,
    /// Locators of several xTRs (`merged` has them).
    pub merged: bool,
    /// Some ETR of it speaks LISP-SEC.
    pub signs: bool,
    /// Some ETR of it does not.
    pub cant_sign: bool,
}

/// One xTR's part of a merged mapping.
#[derive(Debug)]
struct Part {
    xtr: XtrIndex,
    signs: bool,
    content: ContentId,
    expires: Seconds,
}

/// Whose part of a merged mapping comes, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merging {
    pub xtr: XtrIndex,
    pub signs: bool,
    pub expires: Seconds,
}

/// Number of an entry, valid until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MergeFull;

pub(super) struct Registrations {
    /// In pieces, so that growth neither moves a million entries at once nor leaves half empty.
    slab: Vec<Box<[Entry]>>,
    used: u32,
    free: Vec<u32>,
    index: HashTable<u32>,
    order: Order,
    lengths: Lengths,
    contents: Contents,
    /// By slot; few mappings are merged.
    merged: BTreeMap<u32, Vec<Part>>,
    state: FixedState,
    cursor: u32,
    sweep_at: Instant,
}

const PIECE: usize = 4096;

fn entry_at(slab: &[Box<[Entry]>], slot: u32) -> &Entry {
    &slab[slot as usize / PIECE][slot as usize % PIECE]
}

impl Registrations {
    pub fn new(seed: u64) -> Self {
        Self {
            slab: Vec::new(),
            used: 0,
            free: Vec::new(),
            index: HashTable::new(),
            order: Order::default(),
            lengths: Lengths::default(),
            contents: Contents::new(seed),
            merged: BTreeMap::new(),
            state: FixedState::with_seed(seed),
            cursor: 0,
            sweep_at: Instant::ZERO,
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn contents_len(&self) -> usize {
        self.contents.len()
    }

    pub fn find(&self, key: EidKey) -> Option<Slot> {
        let same = |&slot: &u32| entry_at(&self.slab, slot).key == key;
        self.index.find(self.state.hash_one(key), same).map(|&slot| Slot(slot))
    }

    pub fn entry(&self, slot: Slot) -> &Entry {
        entry_at(&self.slab, slot.0)
    }

    pub fn entry_mut(&mut self, slot: Slot) -> &mut Entry {
        &mut self.slab[slot.0 as usize / PIECE][slot.0 as usize % PIECE]
    }

    pub fn key(&self, slot: Slot) -> EidKey {
        self.entry(slot).key
    }

    /// Its locators and TTL; `None` when nobody has registered it.
    pub fn content(&self, slot: Slot) -> Option<&Content> {
        self.contents.get(self.entry(slot).content)
    }

    /// The longest entry that covers the key (or is it) and is not mobile.
    pub fn find_longest(&self, key: EidKey) -> Option<Slot> {
        self.lengths
            .covering(key)
            .filter_map(|k| self.find(k))
            .find(|&slot| !self.entry(slot).flags.mobile)
    }

    /// The longest entry of all that covers the key, or is it.
    pub fn find_any(&self, key: EidKey) -> Option<Slot> {
        self.lengths.covering(key).find_map(|k| self.find(k))
    }

    /// The largest prefix around `target` that lies in `within` and has no entry in it, where
    /// `within` is the longest that covers `target`.
    pub fn largest_free(&self, target: EidKey, within: Option<EidKey>) -> EidKey {
        let key_of = |slot| entry_at(&self.slab, slot).key;
        let before = self.order.before(target, key_of).map(key_of);
        let after = self.order.from(target, key_of).next().map(key_of);
        largest_free(target, within, before, after)
    }

    /// Entries strictly inside a prefix, from `from` on (which is inside it), in order.
    pub fn inside(&self, prefix: EidKey, from: EidKey) -> impl Iterator<Item = Slot> + '_ {
        self.order
            .from(from, |slot| entry_at(&self.slab, slot).key)
            .map(Slot)
            .take_while(move |&s| prefix.contains(self.key(s)))
            .filter(move |&s| self.key(s) != prefix)
    }

    /// A new entry without content; the key must not be there yet.
    pub fn insert(&mut self, key: EidKey, flags: Flags) -> Slot {
        let fresh = Entry {
            key,
            content: ContentId::NONE,
            holder: XtrIndex::NONE,
            expires: Seconds(u32::MAX),
            version: MapVersion::NULL,
            flags,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.used as usize == self.slab.len() * PIECE {
                let none = Entry { key: EidKey::NONE, ..fresh };
                self.slab.push(vec![none; PIECE].into_boxed_slice());
            }
            self.used += 1;
            self.used - 1
        });
        *self.entry_mut(Slot(slot)) = fresh;
        let (slab, state) = (&self.slab, &self.state);
        let hash_of = |&s: &u32| state.hash_one(entry_at(slab, s).key);
        self.index.insert_unique(state.hash_one(key), slot, hash_of);
        self.order.insert(key, slot, |s| entry_at(slab, s).key);
        self.lengths.add(key);
        Slot(slot)
    }

    pub fn remove(&mut self, slot: Slot) {
        let entry = *self.entry(slot);
        self.drop_parts(slot);
        self.contents.release(entry.content);
        let hash = self.state.hash_one(entry.key);
        if let Ok(found) = self.index.find_entry(hash, |&s| s == slot.0) {
            found.remove();
        }
        let slab = &self.slab;
        self.order.remove(entry.key, |s| entry_at(slab, s).key);
        self.lengths.remove(entry.key);
        self.entry_mut(slot).key = EidKey::NONE;
        self.free.push(slot.0);
    }

    /// Whether the entry says this already, so that a refresh changes a time only.
    pub fn says(&self, slot: Slot, ttl_min: u32, rlocs: &[RlocRecord]) -> bool {
        self.contents.is(self.entry(slot).content, ttl_min, rlocs)
    }

    pub fn set_content(&mut self, slot: Slot, ttl_min: u32, rlocs: &[RlocRecord]) {
        self.drop_parts(slot);
        let new = self.contents.acquire(ttl_min, rlocs);
        self.replace_content(slot, new);
    }

    /// Nobody registers it any more; it stays while it is published.
    pub fn clear_content(&mut self, slot: Slot) {
        self.drop_parts(slot);
        self.replace_content(slot, ContentId::NONE);
        let entry = self.entry_mut(slot);
        entry.holder = XtrIndex::NONE;
        entry.expires = Seconds(u32::MAX);
    }

    fn replace_content(&mut self, slot: Slot, new: ContentId) {
        let entry = self.entry_mut(slot);
        let old = std::mem::replace(&mut entry.content, new);
        self.contents.release(old);
    }

    fn drop_parts(&mut self, slot: Slot) {
        for part in self.merged.remove(&slot.0).unwrap_or_default() {
            self.contents.release(part.content);
        }
        self.entry_mut(slot).flags.merged = false;
    }

    /// The locators of one more xTR, or of one that is there already, beside those of the others
    /// (RFC 9301 §5.6, a). True when the mapping says something else than before.
    pub fn merge(
        &mut self,
        slot: Slot,
        part: Merging,
        ttl_min: u32,
        rlocs: &[RlocRecord],
    ) -> Result<bool, MergeFull> {
        let Merging { xtr, signs, expires } = part;
        let mut parts = self.merged.remove(&slot.0).unwrap_or_default();
        let entry = *self.entry(slot);
        if parts.is_empty() && entry.holder != XtrIndex::NONE && entry.holder != xtr {
            // The one who registered it alone until now is the first part.
            if let Some(c) = self.contents.get(entry.content) {
                let (ttl_min, rlocs) = (c.ttl_min, c.rlocs.clone());
                let content = self.contents.acquire(ttl_min, &rlocs);
                let (xtr, signs) = (entry.holder, entry.flags.signs);
                parts.push(Part { xtr, signs, content, expires: entry.expires });
            }
        }
        let full = parts.len() >= MERGE_MAX && parts.iter().all(|p| p.xtr != xtr);
        if !full {
            let content = self.contents.acquire(ttl_min, rlocs);
            match parts.binary_search_by_key(&xtr, |p| p.xtr) {
                Ok(at) => {
                    self.contents.release(parts[at].content);
                    parts[at] = Part { xtr, signs, content, expires };
                }
                Err(at) => parts.insert(at, Part { xtr, signs, content, expires }),
            }
        }
        self.merged.insert(slot.0, parts);
        if full { Err(MergeFull) } else { Ok(self.join_parts(slot)) }
    }

    /// One xTR withdraws its part; `None` when it has none, else whether others are left.
    pub fn unmerge(&mut self, slot: Slot, xtr: XtrIndex) -> Option<bool> {
        let parts = self.merged.get_mut(&slot.0)?;
        let at = parts.iter().position(|p| p.xtr == xtr)?;
        let part = parts.remove(at);
        self.contents.release(part.content);
        if self.merged.get(&slot.0).is_some_and(Vec::is_empty) {
            return Some(false);
        }
        self.join_parts(slot);
        Some(true)
    }

    fn join_parts(&mut self, slot: Slot) -> bool {
        let Some(parts) = self.merged.get(&slot.0) else { return false };
        let signs = parts.iter().any(|part| part.signs);
        let cant_sign = parts.iter().any(|part| !part.signs);
        let mut rlocs: Vec<RlocRecord> = Vec::new();
        let mut ttl_min = u32::MAX;
        let (mut expires, mut holder) = (Seconds(u32::MAX), XtrIndex::NONE);
        for part in parts {
            let Some(content) = self.contents.get(part.content) else { continue };
            ttl_min = ttl_min.min(content.ttl_min);
            expires = expires.min(part.expires);
            holder = part.xtr;
            for rloc in &content.rlocs {
                if rlocs.iter().all(|r| r.address != rloc.address) {
                    rlocs.push(rloc.clone());
                }
            }
        }
        rlocs.sort_by_key(|r| address_order(&r.address));
        let changed = !self.says(slot, ttl_min, &rlocs);
        if changed {
            let new = self.contents.acquire(ttl_min, &rlocs);
            self.replace_content(slot, new);
        }
        let entry = self.entry_mut(slot);
        entry.expires = expires;
        entry.holder = holder;
        entry.flags = Flags { merged: true, signs, cant_sign, ..entry.flags };
        changed
    }

    /// The locators of the ETRs of a mapping that speak LISP-SEC.
    pub fn signing_rlocs(&self, slot: Slot) -> Vec<&RlocRecord> {
        let parts = self.merged.get(&slot.0).map(Vec::as_slice).unwrap_or_default();
        let signing = parts.iter().filter(|part| part.signs).map(|part| part.content);
        let flags = self.entry(slot).flags;
        let alone = (!flags.merged && flags.signs).then(|| self.entry(slot).content);
        let contents = signing.chain(alone).filter_map(|id| self.contents.get(id));
        contents.flat_map(|content| &content.rlocs).collect()
    }

    /// When [`Self::sweep`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.index.is_empty()).then_some(self.sweep_at)
    }

    /// One step of the cursor: the entries that are over by now. The caller ends them; merged ones
    /// have lost the parts that are over, and are in the list when that changed them.
    pub fn sweep(&mut self, now: Instant, over: &mut Vec<Over>) {
        if self.index.is_empty() || now < self.sweep_at {
            return;
        }
        let steps = (self.used as usize).div_ceil(STEP).max(1);
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        // A small table is looked at every second, a large one a piece at a time.
        self.sweep_at = now + (SWEEP / steps).min(Duration::from_secs(1));
        let seconds = Seconds::at(now);
        let end = self.used.min(self.cursor.saturating_add(STEP as u32));
        for slot in self.cursor..end {
            let entry = entry_at(&self.slab, slot);
            if entry.key == EidKey::NONE || entry.expires > seconds {
                continue;
            }
            let slot = Slot(slot);
            if !entry.flags.merged {
                over.push(Over::Registration(slot));
                continue;
            }
            let parts = self.merged.entry(slot.0).or_default();
            parts.retain(|p| {
                let stays = p.expires > seconds;
                if !stays {
                    self.contents.release(p.content);
                }
                stays
            });
            if parts.is_empty() {
                over.push(Over::Registration(slot));
            } else if self.join_parts(slot) {
                over.push(Over::Part(slot));
            }
        }
        self.cursor = if end == self.used { 0 } else { end };
    }

    /// Entries from a slot on, for listings; at most `limit`, and the next slot.
    pub fn page(&self, from: u32, limit: usize) -> (Vec<Slot>, Option<u32>) {
        let mut page = Vec::new();
        // Free places count against the scan, so that a page is bounded too.
        let scan_max = limit.saturating_mul(16).max(1024);
        for (scanned, slot) in (from..self.used).enumerate() {
            if page.len() >= limit || scanned >= scan_max {
                return (page, Some(slot));
            }
            if entry_at(&self.slab, slot).key != EidKey::NONE {
                page.push(Slot(slot));
            }
        }
        (page, None)
    }

    /// Octets of the heap that grow with the EIDs.
    pub fn heap_bytes(&self) -> usize {
        self.slab.len() * PIECE * size_of::<Entry>()
            + self.index.allocation_size()
            + self.order.heap_bytes()
            + self.free.capacity() * size_of::<u32>()
    }
}

/// What the cursor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The last (or only) registration of it has ended.
    Registration(Slot),
    /// One xTR of several is gone, and the mapping is another one.
    Part(Slot),
}

/// The order of a set of locators: IPv4, then IPv6, by number (RFC 9301 §5.4); then the others.
fn address_order(address: &RlocAddress) -> (u8, Option<std::net::IpAddr>) {
    match address {
        RlocAddress::Ip(ip) => (0, Some(*ip)),
        RlocAddress::List(_) => (1, None),
        RlocAddress::Other(_) => (2, None),
        RlocAddress::None => (3, None),
    }
}
