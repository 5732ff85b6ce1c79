//! From best paths to messages: each UPDATE is encoded once per group and handed to all members.
//!
//! What a peer has been told of a prefix is not stored. It follows from the entry: all in-sync
//! peers have been told the path `adv_*`, as their group gets it, except the peer that it came
//! from. When an entry is settled, the difference of before and after gives each member its
//! announcement or withdrawal.
//!
//! A peer that cannot follow (congested) or is behind (new, refresh) is *lagging*: it leaves the
//! group and has a bit per entry "to be told", so that its backlog is bounded by the table and
//! holds the newest state only. When no bit is left, it is what an in-sync peer is, and joins its
//! group again.

use bytes::Bytes;

use super::PeerId;
use super::attr_store::AttrStore;
use super::key::{Addr, Key};
use super::peers::{Group, Told};
use super::slab::Bits;
use super::table::{Shared, Table};
use crate::types::Family;
use crate::wire::bgp::{
    Attributes, EncodedAttributes, Packer, RefreshKind, RouteRefresh, SAFI_UNICAST, afi,
    encode_end_of_rib,
};

/// Messages of one batch for the same peers are handed out together, about this many octets at a
/// time.
const HAND_OUT: usize = 64 * 1024;

pub(super) type Send<'s> = dyn FnMut(PeerId, Bytes) + 's;

/// What is done when a lagging peer has caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    No,
    /// RFC 7313 §4: BoRR goes first.
    BorrDue,
    EorrDue,
}

#[derive(Debug)]
pub(super) struct Lagging {
    pub peer: u16,
    group: usize,
    /// Entries that the peer has not been told the `adv_*` of.
    pending: Bits,
    count: usize,
    /// Of the pending ones: the peer was told something else before, which may have to be
    /// withdrawn.
    had: Bits,
    cursor: u32,
    end_of_rib_due: bool,
    refresh: Refresh,
    /// Everything is being told again.
    repeating: bool,
    /// Asked again meanwhile, or before the initial dump was over (RFC 7313 §4: no BoRR before
    /// End-of-RIB). One repetition answers all of these, so that a peer cannot make us walk the
    /// table at its own pace.
    refresh_after: bool,
}

impl Lagging {
    pub(super) fn new(peer: u16, group: usize, end_of_rib_due: bool) -> Self {
        Self {
            peer,
            group,
            pending: Bits::default(),
            count: 0,
            had: Bits::default(),
            cursor: 0,
            end_of_rib_due,
            refresh: Refresh::No,
            repeating: false,
            refresh_after: false,
        }
    }

    pub(super) fn is_pending(&self, id: u32) -> bool {
        self.pending.get(id)
    }

    fn set_pending(&mut self, id: u32, had: impl FnOnce() -> bool) {
        if !self.pending.get(id) {
            self.pending.set(id, true);
            self.count += 1;
            self.had.set(id, had());
        }
    }

    fn take_next(&mut self) -> Option<(u32, bool)> {
        if self.count == 0 {
            return None;
        }
        let id = self.pending.next(self.cursor).or_else(|| self.pending.next(0))?;
        self.pending.set(id, false);
        self.count -= 1;
        self.cursor = id + 1;
        Some((id, self.had.get(id)))
    }

    pub(super) const fn has_work(&self) -> bool {
        self.count > 0 || self.end_of_rib_due || self.repeating
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    told: Told,
    /// While filling the number of prefixes, then the end of its range of `sorted`.
    end: u32,
    /// Another bucket with the same set from another peer.
    next: u32,
}

/// Prefixes of one flush, sorted into buckets of equal attributes and source. Scratch: kept for its
/// memory.
#[derive(Debug)]
pub(super) struct Batch<A> {
    number: u64,
    buckets: Vec<Bucket>,
    announced: Vec<(Key<A>, u32)>,
    sorted: Vec<Key<A>>,
    /// Entries that had been told something before: (prefix, before, now).
    replaced: Vec<(Key<A>, Told, Option<Told>)>,
    /// (the peer, prefix); whether "only this peer" or "all but it" is the caller's matter.
    withdrawn: Vec<(u16, Key<A>)>,
    withdrawn_from: Vec<(u16, Key<A>)>,
}

const NO_BUCKET: u32 = u32::MAX;

/// Scratch buffers larger than this are given back after a storm.
const SCRATCH_KEPT: usize = 1 << 16;

impl<A: Addr> Batch<A> {
    pub(super) const fn new() -> Self {
        Self {
            number: 0,
            buckets: Vec::new(),
            announced: Vec::new(),
            sorted: Vec::new(),
            replaced: Vec::new(),
            withdrawn: Vec::new(),
            withdrawn_from: Vec::new(),
        }
    }

    fn clear(&mut self, number: u64) {
        self.number = number;
        self.buckets.clear();
        self.announced.clear();
        self.announced.shrink_to(SCRATCH_KEPT);
        self.sorted.shrink_to(SCRATCH_KEPT);
        self.replaced.clear();
        self.replaced.shrink_to(SCRATCH_KEPT);
        self.withdrawn.clear();
        self.withdrawn.shrink_to(SCRATCH_KEPT);
        self.withdrawn_from.clear();
    }

    fn push(&mut self, attrs: &mut AttrStore, key: Key<A>, told: Told) {
        let fresh = self.buckets.len() as u32;
        let mut at = attrs.bucket(told.attrs, self.number, fresh).unwrap_or(fresh);
        let mut before = NO_BUCKET;
        while at != NO_BUCKET && at != fresh && self.buckets[at as usize].told != told {
            before = at;
            at = self.buckets[at as usize].next;
        }
        if at == NO_BUCKET || at == fresh {
            at = fresh;
            self.buckets.push(Bucket { told, end: 0, next: NO_BUCKET });
            if before != NO_BUCKET {
                self.buckets[before as usize].next = at;
            }
        }
        self.buckets[at as usize].end += 1;
        self.announced.push((key, at));
    }

    /// Counting sort of `announced` into `sorted`.
    fn sort(&mut self) {
        let mut total = 0;
        for bucket in &mut self.buckets {
            let len = bucket.end;
            bucket.end = total; // the next free place, and in the end the end
            total += len;
        }
        let Some(&(filler, _)) = self.announced.first() else {
            self.sorted.clear();
            return;
        };
        self.sorted.clear();
        self.sorted.resize(total as usize, filler);
        for &(key, at) in &self.announced {
            let end = &mut self.buckets[at as usize].end;
            self.sorted[*end as usize] = key;
            *end += 1;
        }
    }

    /// The buckets with their prefixes, those from the same peer side by side.
    fn ranges(&self) -> Vec<(Told, std::ops::Range<usize>)> {
        let mut start = 0;
        let mut ranges: Vec<_> = self
            .buckets
            .iter()
            .map(|bucket| {
                let range = start..bucket.end as usize;
                start = range.end;
                (bucket.told, range)
            })
            .collect();
        ranges.sort_by_key(|(told, _)| told.peer);
        ranges
    }
}

/// Encoded sets, per group and source: a direct-mapped cache, because a move storm repeats few of
/// them.
#[derive(Debug)]
pub(super) struct Encoder {
    cached: Vec<Option<Cached>>,
    /// Numbers batches for [`AttrStore::bucket`]; zero is never used.
    batches: u64,
    out: Vec<u8>,
}

#[derive(Debug)]
struct Cached {
    told: Told,
    /// Of the set, of the group.
    versions: (u64, u32),
    group: usize,
    family: Family,
    encoded: EncodedAttributes,
}

const ENCODED_MAX: usize = 512;

impl Encoder {
    pub(super) fn new() -> Self {
        Self { cached: (0..ENCODED_MAX).map(|_| None).collect(), batches: 0, out: Vec::new() }
    }

    /// Peers changed: what depends on their identifiers is encoded anew.
    pub(super) fn forget(&mut self) {
        self.cached.fill_with(|| None);
    }

    fn next_batch(&mut self) -> u64 {
        self.batches += 1;
        self.batches
    }

    fn attributes<'c>(
        cached: &'c mut [Option<Cached>],
        sh: &Shared,
        family: Family,
        group: usize,
        told: Told,
    ) -> &'c EncodedAttributes {
        let g = &sh.peers.groups[group];
        let versions = (sh.attrs.version(told.attrs), g.version);
        let at = (told.attrs as usize)
            .wrapping_mul(31)
            .wrapping_add(usize::from(told.peer))
            .wrapping_mul(7)
            .wrapping_add(group)
            % ENCODED_MAX;
        let fits = |c: &Cached| {
            c.told == told && c.group == group && c.versions == versions && c.family == family
        };
        if !cached[at].as_ref().is_some_and(fits) {
            let attributes = sh.outgoing(family, group, told);
            let encoded = EncodedAttributes::new(&attributes, &g.negotiated);
            cached[at] = Some(Cached { told, versions, group, family, encoded });
        }
        &cached[at].as_ref().expect("just filled").encoded
    }
}

impl Shared {
    /// A path as the group is told it.
    pub(super) fn outgoing(&self, family: Family, group: usize, told: Told) -> Attributes {
        let router_id = match told.peer {
            p if p == PeerId::LOCAL.0 => self.config.router_id,
            p => self.peers.get(PeerId(p)).map_or(self.config.router_id, |p| p.info.router_id),
        };
        self.peers.groups[group].outgoing(
            family,
            self.attrs.get(told.attrs),
            told.source,
            router_id,
            self.config.cluster_id,
        )
    }
}

/// Whether `group` is told `told` of this prefix (members but the one that it came from).
fn goes<A: Addr>(sh: &Shared, group: &Group, key: Key<A>, told: Told) -> bool {
    group.permits(A::FAMILY, sh.attrs.key(told.attrs), told.source)
        && (group.sends_all(A::FAMILY) || group.permits_prefix(key.prefix()))
}

fn goes_to_peer<A: Addr>(
    sh: &Shared,
    group: usize,
    peer: u16,
    key: Key<A>,
    told: Option<Told>,
) -> bool {
    told.is_some_and(|t| t.peer != peer && goes(sh, &sh.peers.groups[group], key, t))
}

/// Whom a message is for.
#[derive(Clone, Copy)]
enum To<'m> {
    AllBut(&'m [u16], u16),
    Only(u16),
}

fn hand_out(out: &mut Vec<u8>, to: To<'_>, send: &mut Send<'_>) {
    if out.is_empty() {
        return;
    }
    let octets = Bytes::copy_from_slice(out);
    out.clear();
    match to {
        To::AllBut(members, source) => {
            for &peer in members.iter().filter(|p| **p != source) {
                send(PeerId(peer), octets.clone());
            }
        }
        To::Only(peer) => send(PeerId(peer), octets),
    }
}

fn has_receiver(to: To<'_>) -> bool {
    match to {
        To::AllBut(members, source) => members.iter().any(|p| *p != source),
        To::Only(_) => true,
    }
}

impl<A: Addr> Table<A> {
    /// Settles at most `budget` dirty entries and tells the groups. Returns how many were settled.
    pub(super) fn flush_dirty(
        &mut self,
        sh: &mut Shared,
        encoder: &mut Encoder,
        budget: usize,
        send: &mut Send<'_>,
    ) -> usize {
        let count = self.dirty.len().min(budget);
        if count == 0 {
            return 0;
        }
        let mut batch = std::mem::replace(&mut self.batch, Batch::new());
        batch.clear(encoder.next_batch());
        let mut unused = Vec::new();
        for _ in 0..count {
            let id = self.dirty.pop_front().expect("counted above");
            let (old, new) = self.settle(sh, id);
            if new.is_none() {
                unused.push(id);
            }
            if old == new {
                continue;
            }
            let key = self.slab[id].key();
            for lagging in &mut self.lagging {
                let (group, peer) = (lagging.group, lagging.peer);
                lagging.set_pending(id, || goes_to_peer(sh, group, peer, key, old));
            }
            if let Some(told) = new {
                sh.attrs.retain(told.attrs);
                batch.push(&mut sh.attrs, key, told);
            }
            if let Some(told) = old {
                batch.replaced.push((key, told, new));
            }
        }
        batch.sort();
        let ranges = batch.ranges();
        for group in 0..self.members.len() {
            if !self.members[group].is_empty() {
                tell_group(sh, encoder, group, &self.members[group], &mut batch, &ranges, send);
            }
        }
        for (_, told, _) in &batch.replaced {
            sh.attrs.release(told.attrs);
        }
        self.batch = batch;
        for id in unused {
            self.free_if_unused(sh, id);
        }
        count
    }

    /// Gives lagging peers that can take it at most about `budget` prefixes in all, in turn.
    /// `all_settled`: nothing is dirty, so that a finished dump is everything.
    pub(super) fn flush_lagging(
        &mut self,
        sh: &mut Shared,
        encoder: &mut Encoder,
        mut budget: usize,
        all_settled: bool,
        send: &mut Send<'_>,
    ) -> usize {
        let mut spent = 0;
        let mut looked_at = 0;
        let peers = self.lagging.len();
        while looked_at < peers && budget > 0 && !self.lagging.is_empty() {
            let at = self.next_lagging % self.lagging.len();
            let peer = self.lagging[at].peer;
            looked_at += 1;
            if sh.peers.get_up(PeerId(peer)).is_none_or(|p| p.congested) {
                self.next_lagging = at + 1;
                continue;
            }
            let done = self.catch_up(sh, encoder, at, budget, all_settled, send);
            spent += done;
            budget -= done.min(budget);
            if self.rejoin_if_done(at) {
                self.next_lagging = at; // the one after it moved here
            } else {
                self.next_lagging = at + 1;
            }
        }
        spent
    }

    fn catch_up(
        &mut self,
        sh: &mut Shared,
        encoder: &mut Encoder,
        at: usize,
        budget: usize,
        all_settled: bool,
        send: &mut Send<'_>,
    ) -> usize {
        let Lagging { peer, group, .. } = self.lagging[at];
        let to = To::Only(peer);
        if self.lagging[at].refresh == Refresh::BorrDue {
            encode_refresh::<A>(RefreshKind::Borr, &mut encoder.out);
            self.lagging[at].refresh = Refresh::EorrDue;
        }
        let mut batch = std::mem::replace(&mut self.batch, Batch::new());
        batch.clear(encoder.next_batch());
        let mut done = 0;
        while done < budget
            && let Some((id, had)) = self.lagging[at].take_next()
        {
            done += 1;
            let key = self.slab[id].key();
            match self.slab[id].told() {
                Some(told) if goes_to_peer(sh, group, peer, key, Some(told)) => {
                    batch.push(&mut sh.attrs, key, told);
                }
                told => {
                    if had {
                        batch.withdrawn.push((peer, key));
                    }
                    if told.is_none() {
                        self.free_if_unused(sh, id);
                    }
                }
            }
        }
        batch.sort();
        for (told, range) in batch.ranges() {
            let keys = &batch.sorted[range];
            if !announce(sh, encoder, group, told, keys, to, send) {
                // It does not fit: then the peer must not keep what it had.
                batch.withdrawn.extend(keys.iter().map(|key| (peer, *key)));
            }
        }
        withdraw(sh, encoder, group, &mut batch.withdrawn, |_| to, send);
        self.batch = batch;

        let lagging = &mut self.lagging[at];
        if lagging.count == 0 && all_settled {
            if lagging.end_of_rib_due {
                encode_end_of_rib(A::FAMILY, &mut encoder.out);
                lagging.end_of_rib_due = false;
            }
            if lagging.refresh == Refresh::EorrDue {
                encode_refresh::<A>(RefreshKind::Eorr, &mut encoder.out);
                lagging.refresh = Refresh::No;
            }
            lagging.repeating = false;
            if std::mem::take(&mut lagging.refresh_after) {
                self.repeat_all(sh, at);
            }
        }
        hand_out(&mut encoder.out, to, send);
        done
    }

    fn rejoin_if_done(&mut self, at: usize) -> bool {
        let Lagging { peer, group, .. } = self.lagging[at];
        if self.lagging[at].has_work() {
            return false;
        }
        self.lagging.remove(at);
        let members = &mut self.members[group];
        let place = members.partition_point(|p| *p < peer);
        members.insert(place, peer);
        true
    }

    /// A new session: everything is pending, nothing has been told.
    pub(super) fn join(&mut self, peer: u16, group: usize) {
        if self.members.len() <= group {
            self.members.resize_with(group + 1, Vec::new);
        }
        let mut lagging = Lagging::new(peer, group, true);
        for (id, _) in self.entries().filter(|(_, e)| e.told().is_some()) {
            lagging.set_pending(id, || false);
        }
        let place = self.lagging.partition_point(|l| l.peer < peer);
        self.lagging.insert(place, lagging);
    }

    pub(super) fn leave(&mut self, sh: &mut Shared, peer: u16) {
        for members in &mut self.members {
            members.retain(|p| *p != peer);
        }
        if let Some(at) = self.lagging.iter().position(|l| l.peer == peer) {
            let mut gone = self.lagging.remove(at);
            // Some entries were kept only to be withdrawn from it.
            while let Some((id, _)) = gone.take_next() {
                self.free_if_unused(sh, id);
            }
        }
    }

    fn find_lagging(&self, peer: u16) -> Option<usize> {
        self.lagging.iter().position(|l| l.peer == peer)
    }

    /// From now on the peer's changes are kept for later. Returns its place among the lagging.
    fn fall_behind(&mut self, peer: u16, group: usize) -> usize {
        if let Some(at) = self.find_lagging(peer) {
            return at;
        }
        self.members[group].retain(|p| *p != peer);
        let at = self.lagging.partition_point(|l| l.peer < peer);
        self.lagging.insert(at, Lagging::new(peer, group, false));
        at
    }

    pub(super) fn set_congested(&mut self, peer: u16, group: usize, congested: bool) {
        if congested {
            self.fall_behind(peer, group);
        } else if let Some(at) = self.find_lagging(peer) {
            self.rejoin_if_done(at);
        }
    }

    pub(super) fn refresh(&mut self, sh: &Shared, peer: u16, group: usize) {
        let at = self.fall_behind(peer, group);
        if self.lagging[at].end_of_rib_due || self.lagging[at].repeating {
            self.lagging[at].refresh_after = true;
        } else {
            self.repeat_all(sh, at);
        }
    }

    /// Everything is told again to the lagging peer at this place.
    fn repeat_all(&mut self, sh: &Shared, at: usize) {
        let lagging = &mut self.lagging[at];
        let (peer, group) = (lagging.peer, lagging.group);
        for id in 0..self.slab.end() {
            let e = &self.slab[id];
            let told = e.told();
            if !e.is_free() && told.is_some() {
                lagging.set_pending(id, || goes_to_peer(sh, group, peer, e.key(), told));
            }
        }
        lagging.cursor = 0;
        lagging.repeating = true;
        if sh.peers.get(PeerId(peer)).is_some_and(|p| p.info.enhanced_refresh) {
            lagging.refresh = Refresh::BorrDue;
        }
    }

    /// What the peer has been told of an entry, if it has been told the newest state.
    pub(super) fn told_to(&self, sh: &Shared, id: u32, peer: u16, group: usize) -> Option<Told> {
        let e = &self.slab[id];
        if e.is_free() || self.lagging.iter().any(|l| l.peer == peer && l.is_pending(id)) {
            return None;
        }
        e.told().filter(|told| goes_to_peer(sh, group, peer, e.key(), Some(*told)))
    }

    pub(super) fn is_in_sync(&self, peer: u16, group: usize) -> bool {
        self.members.get(group).is_some_and(|m| m.binary_search(&peer).is_ok())
    }
}

fn tell_group<A: Addr>(
    sh: &mut Shared,
    encoder: &mut Encoder,
    group: usize,
    members: &[u16],
    batch: &mut Batch<A>,
    ranges: &[(Told, std::ops::Range<usize>)],
    send: &mut Send<'_>,
) {
    batch.withdrawn.clear();
    batch.withdrawn_from.clear();
    // Announcements first: a new way is known before the old one goes.
    let mut some = Vec::new();
    let mut source = None;
    for (told, range) in ranges {
        let to = To::AllBut(members, told.peer);
        let g = &sh.peers.groups[group];
        if !has_receiver(to) || !g.permits(A::FAMILY, sh.attrs.key(told.attrs), told.source) {
            continue;
        }
        if let Some(before) = source.replace(told.peer)
            && before != told.peer
        {
            hand_out(&mut encoder.out, To::AllBut(members, before), send);
        }
        let mut keys = &batch.sorted[range.clone()];
        if !g.sends_all(A::FAMILY) {
            some.clear();
            some.extend(keys.iter().filter(|k| g.permits_prefix(k.prefix())));
            keys = &some;
        }
        if !announce(sh, encoder, group, *told, keys, to, send) {
            batch.withdrawn.extend(keys.iter().map(|key| (told.peer, *key)));
        }
    }
    if let Some(before) = source {
        hand_out(&mut encoder.out, To::AllBut(members, before), send);
    }

    let g = &sh.peers.groups[group];
    for (key, old, new) in &batch.replaced {
        if !goes(sh, g, *key, *old) {
            continue;
        }
        match new {
            Some(new) if goes(sh, g, *key, *new) => {
                // The peer that it comes from now was told the old path, and is not told its own.
                if new.peer != old.peer && members.binary_search(&new.peer).is_ok() {
                    batch.withdrawn_from.push((new.peer, *key));
                }
            }
            Some(_) | None => batch.withdrawn.push((old.peer, *key)),
        }
    }
    let Batch { withdrawn, withdrawn_from, .. } = batch;
    withdraw(sh, encoder, group, withdrawn, |source| To::AllBut(members, source), send);
    withdraw(sh, encoder, group, withdrawn_from, To::Only, send);
}

/// Leaves the last octets in `encoder.out`, so that they go with what follows for the same peers.
/// False when the attributes leave no room for a prefix (RFC 8654 §4).
fn announce<A: Addr>(
    sh: &mut Shared,
    encoder: &mut Encoder,
    group: usize,
    told: Told,
    keys: &[Key<A>],
    to: To<'_>,
    send: &mut Send<'_>,
) -> bool {
    let max_len = sh.peers.groups[group].negotiated.max_len;
    let encoded = Encoder::attributes(&mut encoder.cached, sh, A::FAMILY, group, told);
    for keys in keys.chunks(HAND_OUT / 4) {
        let Ok(mut packer) = Packer::announce(&mut encoder.out, encoded, A::FAMILY, max_len) else {
            sh.counters.too_long += keys.len() as u64;
            return false;
        };
        for key in keys {
            packer.push(key.prefix());
        }
        sh.counters.updates_encoded += packer.finish() as u64;
        if encoder.out.len() >= HAND_OUT {
            hand_out(&mut encoder.out, to, send);
        }
    }
    true
}

/// Withdrawals, sorted by the peer beside the prefix, which says to whom they go.
fn withdraw<'m, A: Addr>(
    sh: &mut Shared,
    encoder: &mut Encoder,
    group: usize,
    list: &mut [(u16, Key<A>)],
    to: impl Fn(u16) -> To<'m>,
    send: &mut Send<'_>,
) {
    let max_len = sh.peers.groups[group].negotiated.max_len;
    list.sort_by_key(|(peer, _)| *peer);
    for run in list.chunk_by(|a, b| a.0 == b.0) {
        let to = to(run[0].0);
        if !has_receiver(to) {
            continue;
        }
        let mut packer = Packer::withdraw(&mut encoder.out, A::FAMILY, max_len);
        for (_, key) in run {
            packer.push(key.prefix());
        }
        sh.counters.updates_encoded += packer.finish() as u64;
        hand_out(&mut encoder.out, to, send);
    }
}

fn encode_refresh<A: Addr>(kind: RefreshKind, out: &mut Vec<u8>) {
    RouteRefresh { afi: afi(A::FAMILY), safi: SAFI_UNICAST, kind }.encode(out);
}
