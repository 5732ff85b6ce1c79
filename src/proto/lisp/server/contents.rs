//! What mappings say, each distinct one kept once: all hosts behind one ETR have the same locators,
//! so a registered EID needs a number only.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::wire::lisp::RlocRecord;

/// Number of a content, valid while something refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ContentId(u32);

impl ContentId {
    /// No mapping: nobody has registered this EID (it is published only).
    pub const NONE: Self = Self(u32::MAX);
}

/// The locators of a mapping as registered, and its TTL.
#[derive(Debug)]
pub(super) struct Content {
    pub ttl_min: u32,
    pub rlocs: Box<[RlocRecord]>,
    hash: u64,
    users: u32,
}

pub(super) struct Contents {
    slab: Vec<Option<Content>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    state: FixedState,
}

impl Contents {
    pub fn new(seed: u64) -> Self {
        Self {
            slab: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            state: FixedState::with_seed(seed),
        }
    }

    fn hash(&self, ttl_min: u32, rlocs: &[RlocRecord]) -> u64 {
        let mut h = self.state.build_hasher();
        ttl_min.hash(&mut h);
        for r in rlocs {
            let flags = u8::from(r.local) | u8::from(r.probed) << 1 | u8::from(r.reachable) << 2;
            let numbers =
                [r.priority, r.weight, r.multicast_priority, r.multicast_weight, flags, 0, 0, 0];
            h.write_u64(u64::from_be_bytes(numbers));
            r.address.hash(&mut h);
        }
        h.finish()
    }

    pub fn get(&self, id: ContentId) -> Option<&Content> {
        self.slab.get(id.0 as usize)?.as_ref()
    }

    /// Whether this content says just that; no allocation, for refreshes.
    pub fn is(&self, id: ContentId, ttl_min: u32, rlocs: &[RlocRecord]) -> bool {
        self.get(id).is_some_and(|c| c.ttl_min == ttl_min && *c.rlocs == *rlocs)
    }

    /// One more user of this content. There are not more than there are EIDs.
    pub fn acquire(&mut self, ttl_min: u32, rlocs: &[RlocRecord]) -> ContentId {
        let hash = self.hash(ttl_min, rlocs);
        let slab = &mut self.slab;
        let same = |&at: &u32| {
            slab[at as usize].as_ref().is_some_and(|c| c.ttl_min == ttl_min && *c.rlocs == *rlocs)
        };
        if let Some(&at) = self.index.find(hash, same) {
            if let Some(content) = &mut slab[at as usize] {
                content.users += 1;
            }
            return ContentId(at);
        }
        let content = Content { ttl_min, rlocs: rlocs.into(), hash, users: 1 };
        let at = match self.free.pop() {
            Some(at) => {
                slab[at as usize] = Some(content);
                at
            }
            None => {
                slab.push(Some(content));
                u32::try_from(slab.len() - 1).expect("fewer contents than EIDs")
            }
        };
        self.index.insert_unique(hash, at, |&at| slab[at as usize].as_ref().map_or(0, |c| c.hash));
        ContentId(at)
    }

    pub fn release(&mut self, id: ContentId) {
        let Some(place) = self.slab.get_mut(id.0 as usize) else { return };
        let Some(content) = place else { return };
        content.users -= 1;
        if content.users == 0 {
            let hash = content.hash;
            *place = None;
            self.free.push(id.0);
            if let Ok(found) = self.index.find_entry(hash, |&at| at == id.0) {
                found.remove();
            }
        }
    }

    /// Distinct contents.
    pub fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lisp::RlocAddress;

    fn rloc(last: u8) -> RlocRecord {
        RlocRecord {
            priority: 1,
            weight: 100,
            multicast_priority: 255,
            multicast_weight: 0,
            local: true,
            probed: false,
            reachable: true,
            address: RlocAddress::Ip([192, 0, 2, last].into()),
        }
    }

    #[test]
    fn equal_contents_are_one_and_leave_with_their_last_user() {
        let mut contents = Contents::new(1);
        let a = contents.acquire(5, &[rloc(1), rloc(2)]);
        let b = contents.acquire(5, &[rloc(1), rloc(2)]);
        let c = contents.acquire(6, &[rloc(1), rloc(2)]);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(contents.len(), 2);
        contents.release(a);
        assert!(contents.is(b, 5, &[rloc(1), rloc(2)]));
        contents.release(b);
        assert_eq!(contents.len(), 1);
        assert!(contents.get(b).is_none());
        assert_eq!(contents.acquire(7, &[]), b, "the place is used again");
        contents.release(ContentId::NONE);
    }
}
