//! The table of one family: prefixes, their paths, which is best, and what has been told.
//!
//! An entry holds the best path itself; most prefixes have one path only, or two while a node
//! moves, so that further paths are in a list outside. `adv_*` is the path that all in-sync peers
//! have been told: the Adj-RIB-Out of a peer is not stored, it follows from it (see
//! `advertise.rs`).

use std::collections::VecDeque;

use super::advertise::{Batch, Lagging};
use super::attr_store::{AttrId, AttrStore};
use super::decision::{self, Rank};
use super::index::Index;
use super::key::{Addr, Key};
use super::peers::{Peers, Source, Told};
use super::slab::Slab;
use super::{PeerId, RibConfig, RibCounters};

pub(super) const NIL: u32 = u32::MAX;

/// The inline path is the best and may be used.
const USABLE: u8 = 1;
const STALE: u8 = 2;
const DIRTY: u8 = 4;
/// In the list of change reader 0; reader 1 has the next bit.
const CHANGED: u8 = 8;
/// Two bits: [`Source`] of what was told.
const ADV_SOURCE_SHIFT: u8 = 5;
const FREE: u8 = 128;

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<A> {
    addr: A,
    /// The best path, or `NIL` when there is none.
    attrs: AttrId,
    /// Further paths.
    more: u32,
    adv_attrs: AttrId,
    peer: u16,
    adv_peer: u16,
    len: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Entry<u32>>() <= 24 && size_of::<Entry<[u8; 16]>>() <= 36);

impl<A: Addr> Entry<A> {
    pub(super) fn key(&self) -> Key<A> {
        Key { addr: self.addr, len: self.len }
    }

    pub(super) const fn is_free(&self) -> bool {
        self.flags & FREE != 0
    }

    /// The path to use now.
    pub(super) fn best(&self) -> Option<Path> {
        (self.flags & USABLE != 0).then(|| self.first_path())
    }

    fn first_path(&self) -> Path {
        Path { attrs: self.attrs, peer: self.peer, stale: self.flags & STALE != 0 }
    }

    pub(super) fn told(&self) -> Option<Told> {
        (self.adv_attrs != NIL).then(|| Told {
            attrs: self.adv_attrs,
            peer: self.adv_peer,
            source: Source::from_bits(self.flags >> ADV_SOURCE_SHIFT),
        })
    }

    fn set_flag(&mut self, flag: u8, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub attrs: AttrId,
    pub peer: u16,
    pub stale: bool,
}

/// A path that is not the best.
#[derive(Clone, Copy, Debug)]
struct Node {
    path: Path,
    next: u32,
}

const _: () = assert!(size_of::<Node>() <= 12);

/// What the tables share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: RibConfig,
    pub attrs: AttrStore,
    pub peers: Peers,
    pub counters: RibCounters,
    /// Change readers that listen, by their flag bits.
    pub readers: u8,
    /// Of both families.
    pub prefixes: usize,
    pub paths: usize,
}

impl Shared {
    pub(super) fn rank(&self, path: Path) -> Rank {
        let key = self.attrs.key(path.attrs);
        let metric = self.attrs.next_hops.metric(key.next_hop);
        let mut rank = Rank {
            eligible: metric.is_some(),
            local: false,
            local_pref: key.local_pref,
            as_path_len: key.as_path_len,
            origin: key.origin,
            neighbor_as: key.neighbor_as,
            med: key.med,
            external: false,
            metric: metric.unwrap_or(u32::MAX),
            router_id: key.originator_id.unwrap_or(0),
            cluster_list_len: key.cluster_list_len,
            peer_addr: self.config.router_id.into(),
        };
        if path.peer == PeerId::LOCAL.0 {
            (rank.local, rank.eligible) = (true, true);
            return rank;
        }
        let info = self.peers.info(path.peer);
        rank.external = self.peers.source(path.peer) == Source::External;
        rank.router_id = key.originator_id.unwrap_or(info.router_id.into());
        rank.peer_addr = info.addr;
        rank
    }

    /// A route of our own is used although its next hop may be unknown to the IGP: it is where we
    /// say.
    fn is_eligible(&self, path: Path) -> bool {
        path.peer == PeerId::LOCAL.0
            || self.attrs.next_hops.metric(self.attrs.key(path.attrs).next_hop).is_some()
    }
}

#[derive(Clone, Copy, Debug)]
struct Sweep {
    peer: u16,
    next: u32,
}

#[derive(Debug)]
pub(super) struct Table<A> {
    pub slab: Slab<Entry<A>>,
    nodes: Slab<Node>,
    index: Index,
    seed: u64,
    /// Entries whose best path may differ from what was told, each once.
    pub dirty: VecDeque<u32>,
    /// Per change reader, entries whose best path changed, each once.
    changed: [VecDeque<u32>; 2],
    /// In-sync peers of each group, ascending.
    pub members: Vec<Vec<u16>>,
    /// Peers that have not been told everything, ascending.
    pub lagging: Vec<Lagging>,
    pub next_lagging: usize,
    /// Peers whose stale paths are being removed, and how far the walk is.
    sweeps: Vec<Sweep>,
    /// Paths of all prefixes together.
    pub paths: usize,
    /// Entries with a usable path.
    pub best: usize,
    pub batch: Batch<A>,
}

impl<A: Addr> Table<A> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slab: Slab::new(),
            nodes: Slab::new(),
            index: Index::new(),
            seed,
            dirty: VecDeque::new(),
            changed: [VecDeque::new(), VecDeque::new()],
            members: Vec::new(),
            lagging: Vec::new(),
            next_lagging: 0,
            sweeps: Vec::new(),
            paths: 0,
            best: 0,
            batch: Batch::new(),
        }
    }

    pub(super) fn prefixes(&self) -> usize {
        self.slab.used()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &Entry<A>)> {
        (0..self.slab.end()).map(|id| (id, &self.slab[id])).filter(|(_, e)| !e.is_free())
    }

    pub(super) fn find(&self, key: Key<A>) -> Option<u32> {
        self.find_hashed(key, key.hash(self.seed))
    }

    #[inline]
    fn find_hashed(&self, key: Key<A>, hash: u32) -> Option<u32> {
        self.index.find(hash, |id| {
            let e = &self.slab[id];
            e.addr == key.addr && e.len == key.len
        })
    }

    /// The paths of an entry, the best (or first) one first.
    pub(super) fn paths_of(&self, id: u32) -> impl Iterator<Item = Path> + '_ {
        let e = &self.slab[id];
        let first = (e.attrs != NIL).then(|| e.first_path());
        let mut next = e.more;
        first.into_iter().chain(std::iter::from_fn(move || {
            (next != NIL).then(|| {
                let node = self.nodes[next];
                next = node.next;
                node.path
            })
        }))
    }

    /// `peer` announces these prefixes with this set. Returns how many did not fit any more.
    pub(super) fn announce(
        &mut self,
        sh: &mut Shared,
        peer: u16,
        attrs: AttrId,
        keys: &[Key<A>],
    ) -> u32 {
        let mut refused = 0;
        for keys in keys.chunks(GROUP) {
            let hashes = self.touch(keys);
            for (key, hash) in keys.iter().zip(hashes) {
                refused += u32::from(!self.announce_one(sh, peer, attrs, *key, hash));
            }
        }
        refused
    }

    /// `peer` withdraws these prefixes.
    pub(super) fn withdraw(&mut self, sh: &mut Shared, peer: u16, keys: &[Key<A>]) {
        for keys in keys.chunks(GROUP) {
            let hashes = self.touch(keys);
            for (key, hash) in keys.iter().zip(hashes) {
                if let Some(id) = self.find_hashed(*key, hash) {
                    self.remove_path(sh, id, peer);
                }
            }
        }
    }

    /// Hashes of some keys. On the way their index slots, and then the entries that these name,
    /// come into the cache side by side instead of one after the other.
    #[inline]
    fn touch(&self, keys: &[Key<A>]) -> [u32; GROUP] {
        let mut hashes = [0; GROUP];
        let mut numbers = [None; GROUP];
        for ((hash, number), key) in hashes.iter_mut().zip(&mut numbers).zip(keys) {
            *hash = key.hash(self.seed);
            *number = self.index.guess(*hash);
        }
        if keys.len() > 1 {
            let seen = numbers.iter().flatten().fold(0, |seen, n| seen ^ self.slab[*n].flags);
            std::hint::black_box(seen);
        }
        hashes
    }

    #[inline]
    fn announce_one(
        &mut self,
        sh: &mut Shared,
        peer: u16,
        attrs: AttrId,
        key: Key<A>,
        hash: u32,
    ) -> bool {
        let path = Path { attrs, peer, stale: false };
        let Some(id) = self.find_hashed(key, hash) else {
            if sh.prefixes >= sh.config.routes_max || sh.paths >= sh.config.paths_max {
                return false;
            }
            sh.prefixes += 1;
            let id = self.slab.insert(Entry {
                addr: key.addr,
                attrs: NIL,
                more: NIL,
                adv_attrs: NIL,
                peer: 0,
                adv_peer: 0,
                len: key.len,
                flags: 0,
            });
            self.index.insert(hash, id);
            self.set_first(sh, id, path);
            return true;
        };
        let e = &mut self.slab[id];
        if e.attrs == NIL {
            if sh.paths >= sh.config.paths_max {
                return false;
            }
            self.set_first(sh, id, path);
        } else if e.peer == peer {
            if e.flags & STALE != 0 {
                e.flags &= !STALE;
                sh.peers.count_stale_less(peer, A::FAMILY);
            }
            if e.attrs != attrs {
                let old = std::mem::replace(&mut e.attrs, attrs);
                sh.attrs.retain(attrs);
                sh.attrs.release(old);
                self.decide(sh, id);
                self.mark(sh, id);
            }
        } else {
            return self.set_further(sh, id, path);
        }
        true
    }

    /// The only path of an entry that has none.
    fn set_first(&mut self, sh: &mut Shared, id: u32, path: Path) {
        sh.attrs.retain(path.attrs);
        sh.peers.count_path(path.peer, A::FAMILY, 1);
        sh.paths += 1;
        self.paths += 1;
        let usable = sh.is_eligible(path);
        let e = &mut self.slab[id];
        (e.attrs, e.peer) = (path.attrs, path.peer);
        e.set_flag(STALE, path.stale);
        e.set_flag(USABLE, usable);
        self.best += usize::from(usable);
        self.mark(sh, id);
    }

    /// The path of a peer whose path is not the first one. False when there is no room for it.
    fn set_further(&mut self, sh: &mut Shared, id: u32, path: Path) -> bool {
        let mut at = self.slab[id].more;
        while at != NIL && self.nodes[at].path.peer != path.peer {
            at = self.nodes[at].next;
        }
        if at == NIL {
            if sh.paths >= sh.config.paths_max {
                return false;
            }
            sh.peers.count_path(path.peer, A::FAMILY, 1);
            sh.paths += 1;
            self.paths += 1;
            sh.attrs.retain(path.attrs);
            let next = self.slab[id].more;
            self.slab[id].more = self.nodes.insert(Node { path, next });
        } else {
            let old = std::mem::replace(&mut self.nodes[at].path, path);
            if old.stale {
                sh.peers.count_stale_less(path.peer, A::FAMILY);
            }
            if old.attrs == path.attrs {
                return true;
            }
            sh.attrs.retain(path.attrs);
            sh.attrs.release(old.attrs);
        }
        if self.decide(sh, id) {
            self.mark(sh, id);
        } else if self.slab[id].peer == PeerId::LOCAL.0 {
            self.mark_rival(sh, id);
        }
        true
    }

    /// False when the peer has no path to it.
    pub(super) fn remove_path(&mut self, sh: &mut Shared, id: u32, peer: u16) -> bool {
        let e = &mut self.slab[id];
        if e.attrs == NIL {
            return false;
        }
        let was_stale;
        if e.peer == peer {
            was_stale = e.flags & STALE != 0;
            let gone = e.attrs;
            if e.more == NIL {
                e.attrs = NIL;
                self.best -= usize::from(e.flags & USABLE != 0);
                e.flags &= !(USABLE | STALE);
            } else {
                let node = self.nodes[e.more];
                self.nodes.free(e.more);
                (e.attrs, e.peer, e.more) = (node.path.attrs, node.path.peer, node.next);
                e.set_flag(STALE, node.path.stale);
                self.decide(sh, id);
            }
            sh.attrs.release(gone);
            self.mark(sh, id);
        } else {
            let (mut before, mut at) = (NIL, e.more);
            while at != NIL && self.nodes[at].path.peer != peer {
                (before, at) = (at, self.nodes[at].next);
            }
            if at == NIL {
                return false;
            }
            let node = self.nodes[at];
            was_stale = node.path.stale;
            self.nodes.free(at);
            if before == NIL {
                self.slab[id].more = node.next;
            } else {
                self.nodes[before].next = node.next;
            }
            sh.attrs.release(node.path.attrs);
            // A path that lost may have struck out others by MED.
            if self.decide(sh, id) {
                self.mark(sh, id);
            }
        }
        sh.peers.count_path(peer, A::FAMILY, -1);
        if was_stale {
            sh.peers.count_stale_less(peer, A::FAMILY);
        }
        sh.paths -= 1;
        self.paths -= 1;
        true
    }

    /// Puts the best path first. True when another one is first now, or its usability changed.
    fn decide(&mut self, sh: &Shared, id: u32) -> bool {
        let e = &self.slab[id];
        let mut first = e.first_path();
        let mut changed = false;
        if e.more != NIL {
            let second = self.nodes[e.more];
            let best = if second.next == NIL {
                // Two paths: a node that moves. No list is built for it.
                decision::select(&[sh.rank(first), sh.rank(second.path)])
            } else {
                let ranks: Vec<Rank> = self.paths_of(id).map(|p| sh.rank(p)).collect();
                decision::select(&ranks)
            };
            if best > 0 {
                let mut at = e.more;
                for _ in 1..best {
                    at = self.nodes[at].next;
                }
                first = std::mem::replace(&mut self.nodes[at].path, first);
                changed = true;
            }
        }
        let usable = sh.is_eligible(first);
        let e = &mut self.slab[id];
        let was_usable = e.flags & USABLE != 0;
        (e.attrs, e.peer) = (first.attrs, first.peer);
        e.set_flag(STALE, first.stale);
        e.set_flag(USABLE, usable);
        self.best = self.best + usize::from(usable) - usize::from(was_usable);
        changed || usable != was_usable
    }

    /// The best path of this entry changed.
    fn mark(&mut self, sh: &mut Shared, id: u32) {
        sh.counters.best_changes += 1;
        let e = &mut self.slab[id];
        if e.flags & DIRTY == 0 {
            e.flags |= DIRTY;
            self.dirty.push_back(id);
        }
        let to_list = sh.readers & !e.flags;
        if to_list != 0 {
            e.flags |= to_list;
            for (reader, list) in self.changed.iter_mut().enumerate() {
                if to_list & (CHANGED << reader) != 0 {
                    list.push_back(id);
                }
            }
        }
    }

    /// Takes a dirty entry: what was told, and what is to be told. They may be the same.
    pub(super) fn settle(&mut self, sh: &Shared, id: u32) -> (Option<Told>, Option<Told>) {
        let e = &mut self.slab[id];
        e.flags &= !DIRTY;
        let old = e.told();
        let new = e.best().map(|p| Told {
            attrs: p.attrs,
            peer: p.peer,
            source: sh.peers.source(p.peer),
        });
        match new {
            Some(told) => {
                (e.adv_attrs, e.adv_peer) = (told.attrs, told.peer);
                e.flags =
                    e.flags & !(3 << ADV_SOURCE_SHIFT) | (told.source as u8) << ADV_SOURCE_SHIFT;
            }
            None => e.adv_attrs = NIL,
        }
        (old, new)
    }

    /// Forgets an entry that nobody needs any more.
    pub(super) fn free_if_unused(&mut self, sh: &mut Shared, id: u32) {
        let e = &self.slab[id];
        if e.attrs != NIL || e.adv_attrs != NIL || e.flags & (DIRTY | CHANGED | CHANGED << 1) != 0 {
            return;
        }
        if e.is_free() || self.lagging.iter().any(|l| l.is_pending(id)) {
            return;
        }
        let hash = e.key().hash(self.seed);
        self.index.remove(hash, id);
        self.slab[id].flags = FREE;
        self.slab.free(id);
        sh.prefixes -= 1;
    }

    /// Begins to remove the stale paths of a peer; [`Self::run_sweeps`] goes on with it.
    pub(super) fn start_sweep(&mut self, peer: u16) {
        match self.sweeps.iter_mut().find(|s| s.peer == peer) {
            Some(sweep) => sweep.next = 0,
            None => self.sweeps.push(Sweep { peer, next: 0 }),
        }
    }

    /// What the running sweep of this peer has still to remove.
    pub(super) fn condemned(&self, sh: &Shared, peer: u16) -> usize {
        let sweeping = self.sweeps.iter().any(|s| s.peer == peer);
        if sweeping { sh.peers.stale(peer, A::FAMILY) } else { 0 }
    }

    pub(super) fn is_sweeping(&self) -> bool {
        !self.sweeps.is_empty()
    }

    /// Looks at no more than about `budget` entries. A peer's sweep is over when none of its paths
    /// is stale, which after a restart that lost nothing is at once.
    pub(super) fn run_sweeps(&mut self, sh: &mut Shared, budget: usize) {
        let Some(&Sweep { peer, next }) = self.sweeps.first() else { return };
        let budget = u32::try_from(budget).unwrap_or(u32::MAX);
        let end = self.slab.end().min(next.saturating_add(budget));
        self.sweep(sh, peer, next..end);
        if end == self.slab.end() || sh.peers.stale(peer, A::FAMILY) == 0 {
            self.sweeps.remove(0);
        } else {
            self.sweeps[0].next = end;
        }
    }

    /// Removes what a running sweep of this peer has left.
    pub(super) fn finish_sweep(&mut self, sh: &mut Shared, peer: u16) {
        if let Some(at) = self.sweeps.iter().position(|s| s.peer == peer) {
            let sweep = self.sweeps.remove(at);
            self.sweep(sh, peer, sweep.next..self.slab.end());
        }
    }

    fn sweep(&mut self, sh: &mut Shared, peer: u16, range: std::ops::Range<u32>) {
        for id in range {
            if sh.peers.stale(peer, A::FAMILY) == 0 {
                return;
            }
            if self.has_path(id, |p| p.peer == peer && p.stale) {
                self.remove_path(sh, id, peer);
            }
        }
    }

    #[inline]
    fn has_path(&self, id: u32, is: impl Fn(Path) -> bool) -> bool {
        let e = &self.slab[id];
        e.attrs != NIL && (is(e.first_path()) || e.more != NIL && self.paths_of(id).any(is))
    }

    /// All paths of the peer are stale now.
    pub(super) fn mark_stale(&mut self, sh: &mut Shared, peer: u16) {
        let Some(p) = sh.peers.get_mut(PeerId(peer)) else { return };
        let slot = super::peers::slot(A::FAMILY);
        p.stale[slot] = p.paths[slot];
        if p.paths[slot] == 0 {
            return; // no walk for a peer that has none
        }
        for id in 0..self.slab.end() {
            let e = &mut self.slab[id];
            if e.is_free() || e.attrs == NIL {
                continue;
            }
            if e.peer == peer {
                e.set_flag(STALE, true);
            }
            let mut at = e.more;
            while at != NIL {
                let node = &mut self.nodes[at];
                node.path.stale |= node.path.peer == peer;
                at = node.next;
            }
        }
    }

    /// Decides again wherever a path has one of these next hops.
    pub(super) fn next_hops_changed(&mut self, sh: &mut Shared, is: impl Fn(u32) -> bool) {
        for id in 0..self.slab.end() {
            if !self.slab[id].is_free()
                && self.has_path(id, |p| is(sh.attrs.key(p.attrs).next_hop))
                && self.decide(sh, id)
            {
                self.mark(sh, id);
            }
        }
    }

    /// Somebody else announces what we do, and ours is still the best. Mobility has to know: all
    /// routers but us may prefer the other one.
    fn mark_rival(&mut self, sh: &Shared, id: u32) {
        let flag = reader_bit(MOBILITY) & sh.readers;
        let e = &mut self.slab[id];
        if flag & !e.flags != 0 {
            e.flags |= flag;
            self.changed[MOBILITY].push_back(id);
        }
    }

    pub(super) fn start_reader(&mut self, reader: usize) {
        for id in 0..self.slab.end() {
            let e = &mut self.slab[id];
            if !e.is_free() && e.flags & (CHANGED << reader) == 0 {
                e.flags |= CHANGED << reader;
                self.changed[reader].push_back(id);
            }
        }
    }

    pub(super) fn stop_reader(&mut self, sh: &mut Shared, reader: usize) {
        for id in std::mem::take(&mut self.changed[reader]) {
            self.slab[id].flags &= !(CHANGED << reader);
            self.free_if_unused(sh, id);
        }
    }

    pub(super) fn take_changed(&mut self, reader: usize) -> Option<u32> {
        let id = self.changed[reader].pop_front()?;
        self.slab[id].flags &= !(CHANGED << reader);
        Some(id)
    }

    pub(super) fn has_changed(&self, reader: usize) -> bool {
        !self.changed[reader].is_empty()
    }
}

/// Number of the change reader that is also told of rivals.
pub(super) const MOBILITY: usize = 1;

/// Flag bits of change readers, for [`Shared::readers`].
pub(super) const fn reader_bit(reader: usize) -> u8 {
    CHANGED << reader
}

/// Keys whose index slots are fetched together: more than the memory system has in flight is no
/// use.
const GROUP: usize = 16;
