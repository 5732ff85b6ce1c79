//! What people and other rooms see of the RIB. Nothing here walks a whole table in one call.

use std::cmp::Ordering;
use std::net::IpAddr;

use super::decision;
use super::key::Addr;
use super::table::{MOBILITY, Path, Shared, Table, reader_bit};
use super::{
    BestView, ChangeReader, Cursor, FamilyCounts, PathView, PeerId, Reason, Rib, RouteFilter,
    RouteView,
};
use crate::types::{Family, Prefix};
use crate::wire::bgp::Attributes;

/// Entries that one page may look at when its filter matches few.
const SCAN_MAX: u32 = 20_000;

const fn number(reader: ChangeReader) -> usize {
    match reader {
        ChangeReader::Kernel => 0,
        ChangeReader::Mobility => MOBILITY,
    }
}

impl Rib {
    /// Starts (with all that is there) or stops the list of changes of this reader. The list holds
    /// each prefix once, so that it is bounded by the table however long nobody drains it.
    pub fn enable_changes(&mut self, reader: ChangeReader, on: bool) {
        let n = number(reader);
        if on {
            self.shared.readers |= reader_bit(n);
            self.v4.start_reader(n);
            self.v6.start_reader(n);
        } else {
            self.shared.readers &= !reader_bit(n);
            self.v4.stop_reader(&mut self.shared, n);
            self.v6.stop_reader(&mut self.shared, n);
        }
    }

    /// Calls `each` for at most `limit` prefixes whose best path changed, in the order of their
    /// first change (IPv4 before IPv6), with the newest state; `None` is "no route any more". True
    /// when more are waiting. Mobility also gets prefixes that we announce and somebody else
    /// announces, too ([`Self::find_others`]).
    pub fn drain_changes(
        &mut self,
        reader: ChangeReader,
        limit: usize,
        each: &mut dyn FnMut(Prefix, Option<BestView<'_>>),
    ) -> bool {
        let n = number(reader);
        let left = limit - self.v4.drain_changes(&mut self.shared, n, limit, each);
        self.v6.drain_changes(&mut self.shared, n, left, each);
        self.v4.has_changed(n) || self.v6.has_changed(n)
    }

    pub fn find_best(&self, prefix: Prefix) -> Option<BestView<'_>> {
        match prefix.family() {
            Family::Ipv4 => self.v4.find_best(&self.shared, prefix),
            Family::Ipv6 => self.v6.find_best(&self.shared, prefix),
        }
    }

    /// Calls `each` for the paths of a prefix that are not the best one. For a prefix with one path
    /// that is one lookup.
    pub fn find_others(&self, prefix: Prefix, each: &mut dyn FnMut(BestView<'_>)) {
        match prefix.family() {
            Family::Ipv4 => self.v4.find_others(&self.shared, prefix, each),
            Family::Ipv6 => self.v6.find_others(&self.shared, prefix, each),
        }
    }

    /// The longest prefix with a usable route that contains `addr`. One look-up per length: for
    /// people, not for packets.
    pub fn find_covering(&self, addr: IpAddr) -> Option<RouteView<'_>> {
        let bits = Prefix::host(addr).len();
        (0..=bits)
            .rev()
            .filter_map(|len| Prefix::new(addr, len))
            .find(|prefix| self.find_best(*prefix).is_some())
            .and_then(|prefix| self.find(prefix))
    }

    pub fn find(&self, prefix: Prefix) -> Option<RouteView<'_>> {
        match prefix.family() {
            Family::Ipv4 => self.v4.find_route(&self.shared, prefix),
            Family::Ipv6 => self.v6.find_route(&self.shared, prefix),
        }
    }

    /// At most `limit` routes from `cursor` on, and where to go on (`None`: that was all). Each
    /// call looks at a bounded number of prefixes, so a page may be short or empty although there
    /// is more.
    pub fn routes(
        &self,
        family: Family,
        cursor: Cursor,
        filter: &RouteFilter,
        limit: usize,
    ) -> (Vec<RouteView<'_>>, Option<Cursor>) {
        match family {
            Family::Ipv4 => self.v4.routes(&self.shared, cursor, filter, limit),
            Family::Ipv6 => self.v6.routes(&self.shared, cursor, filter, limit),
        }
    }
}

impl Rib {
    /// What a peer has been told, as it was told (the Adj-RIB-Out); paged like [`Self::routes`].
    /// Prefixes that are waiting to be told are left out.
    pub fn advertised(
        &self,
        peer: PeerId,
        family: Family,
        cursor: Cursor,
        limit: usize,
    ) -> (Vec<(Prefix, Attributes)>, Option<Cursor>) {
        match family {
            Family::Ipv4 => self.v4.advertised(&self.shared, peer, cursor, limit),
            Family::Ipv6 => self.v6.advertised(&self.shared, peer, cursor, limit),
        }
    }
}

impl Rib {
    /// Peers that have been told of a route to the prefix.
    pub fn told_peers(&self, prefix: Prefix) -> Vec<PeerId> {
        let sh = &self.shared;
        let told = |peer: &PeerId| match prefix.family() {
            Family::Ipv4 => self.v4.is_told(sh, *peer, prefix),
            Family::Ipv6 => self.v6.is_told(sh, *peer, prefix),
        };
        sh.peers.ids().filter(told).collect()
    }

    /// How many routes of a family a peer has been told. A walk of the table: `None` for one that
    /// is too large to be walked while peers wait.
    pub fn told_count(&self, peer: PeerId, family: Family) -> Option<usize> {
        match family {
            Family::Ipv4 => self.v4.told_count(&self.shared, peer),
            Family::Ipv6 => self.v6.told_count(&self.shared, peer),
        }
    }

    pub fn router_id(&self) -> std::net::Ipv4Addr {
        self.shared.config.router_id
    }
}

/// Entries that [`Rib::told_count`] looks at: about a millisecond.
const COUNTED_MAX: u32 = 50_000;

impl Shared {
    fn best_view(&self, path: Path) -> BestView<'_> {
        BestView {
            peer: PeerId(path.peer),
            attributes: self.attrs.get(path.attrs),
            stale: path.stale,
        }
    }
}

impl<A: Addr> Table<A> {
    pub(super) fn counts(&self) -> FamilyCounts {
        FamilyCounts { prefixes: self.prefixes(), paths: self.paths, best: self.best }
    }

    fn drain_changes(
        &mut self,
        sh: &mut Shared,
        reader: usize,
        limit: usize,
        each: &mut dyn FnMut(Prefix, Option<BestView<'_>>),
    ) -> usize {
        for done in 0..limit {
            let Some(id) = self.take_changed(reader) else { return done };
            let e = &self.slab[id];
            let best = e.best();
            each(e.key().prefix(), best.map(|path| sh.best_view(path)));
            if best.is_none() {
                self.free_if_unused(sh, id);
            }
        }
        limit
    }

    fn find_best<'s>(&self, sh: &'s Shared, prefix: Prefix) -> Option<BestView<'s>> {
        let id = self.find(A::of(prefix)?)?;
        self.slab[id].best().map(|path| sh.best_view(path))
    }

    fn find_others(&self, sh: &Shared, prefix: Prefix, each: &mut dyn FnMut(BestView<'_>)) {
        let Some(id) = A::of(prefix).and_then(|key| self.find(key)) else { return };
        for path in self.paths_of(id).skip(1) {
            each(sh.best_view(path));
        }
    }

    fn find_route<'s>(&self, sh: &'s Shared, prefix: Prefix) -> Option<RouteView<'s>> {
        let id = self.find(A::of(prefix)?)?;
        self.view(sh, id, &RouteFilter::default())
    }

    fn routes<'s>(
        &self,
        sh: &'s Shared,
        cursor: Cursor,
        filter: &RouteFilter,
        limit: usize,
    ) -> (Vec<RouteView<'s>>, Option<Cursor>) {
        let end = self.slab.end();
        let mut routes = Vec::new();
        for id in cursor.0..end {
            if routes.len() == limit || id - cursor.0 == SCAN_MAX {
                return (routes, Some(Cursor(id)));
            }
            routes.extend(self.view(sh, id, filter));
        }
        (routes, None)
    }

    fn advertised(
        &self,
        sh: &Shared,
        peer: PeerId,
        cursor: Cursor,
        limit: usize,
    ) -> (Vec<(Prefix, Attributes)>, Option<Cursor>) {
        let mut routes = Vec::new();
        let Some(p) = sh.peers.get_up(peer) else { return (routes, None) };
        for id in cursor.0..self.slab.end() {
            if routes.len() == limit || id - cursor.0 == SCAN_MAX {
                return (routes, Some(Cursor(id)));
            }
            if let Some(told) = self.told_to(sh, id, peer.0, p.group) {
                routes.push((self.slab[id].key().prefix(), sh.outgoing(A::FAMILY, p.group, told)));
            }
        }
        (routes, None)
    }

    fn is_told(&self, sh: &Shared, peer: PeerId, prefix: Prefix) -> bool {
        let Some(p) = sh.peers.get_up(peer) else { return false };
        let id = A::of(prefix).and_then(|key| self.find(key));
        id.is_some_and(|id| self.told_to(sh, id, peer.0, p.group).is_some())
    }

    fn told_count(&self, sh: &Shared, peer: PeerId) -> Option<usize> {
        let Some(p) = sh.peers.get_up(peer) else { return Some(0) };
        if self.slab.end() > COUNTED_MAX {
            return None;
        }
        let told = |id: &u32| self.told_to(sh, *id, peer.0, p.group).is_some();
        Some((0..self.slab.end()).filter(told).count())
    }

    /// `None` when no path of it passes the filter.
    fn view<'s>(&self, sh: &'s Shared, id: u32, filter: &RouteFilter) -> Option<RouteView<'s>> {
        let e = &self.slab[id];
        if e.is_free() {
            return None;
        }
        let prefix = e.key().prefix();
        if filter.within.is_some_and(|within| !within.contains(prefix)) {
            return None;
        }
        let paths: Vec<Path> = self.paths_of(id).collect();
        let ranks: Vec<_> = paths.iter().map(|p| sh.rank(*p)).collect();
        // Without the winner, the second best is who it had to beat.
        let second = (ranks.len() > 1).then(|| 1 + decision::select(&ranks[1..]));
        let has_best = e.best().is_some();
        let views: Vec<PathView<'_>> = paths
            .iter()
            .enumerate()
            .map(|(at, path)| PathView {
                peer: PeerId(path.peer),
                attributes: sh.attrs.get(path.attrs),
                best: at == 0 && has_best,
                stale: path.stale,
                reason: match (at, second) {
                    (0, _) if !has_best => Reason::NextHopUnreachable,
                    (0, None) => Reason::OnlyPath,
                    (0, Some(second)) => lost_by(&ranks[0], &ranks[second]),
                    (_, _) => lost_by(&ranks[0], &ranks[at]),
                },
            })
            .filter(|view| filter.peer.is_none_or(|peer| view.peer == peer))
            .filter(|view| view.best || !filter.best_only)
            .collect();
        (!views.is_empty()).then_some(RouteView { prefix, paths: views })
    }
}

/// The rule by which `winner` beat `loser`. One by one the loser may look better, when a third path
/// struck it out by MED: then that was the reason.
fn lost_by(winner: &decision::Rank, loser: &decision::Rank) -> Reason {
    match decision::compare(winner, loser) {
        (Ordering::Less | Ordering::Equal, reason) => reason,
        (Ordering::Greater, _) => Reason::Med,
    }
}
