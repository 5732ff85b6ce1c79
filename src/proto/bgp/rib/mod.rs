//! The RIB of a BGP speaker and route reflector (RFC 4271 §9, RFC 4456): what peers said, which
//! route is best, and what each peer has still to be told. Sans-IO.
//!
//! The caller feeds UPDATE bodies, then calls [`Rib::flush`] once per batch of input: a single
//! change leaves at once, a storm is packed by itself, because only the newest state of a prefix is
//! kept.

mod advertise;
mod attr_store;
mod decision;
mod index;
mod key;
mod pages;
mod peers;
mod receive;
mod slab;
mod table;
mod view;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

use self::advertise::Encoder;
use self::attr_store::AttrStore;
use self::key::Key;
use self::peers::{Peers, slot};
use self::receive::Scratch;
use self::table::{Shared, Table};

use super::policy::{ExportPolicy, ImportPolicy};
use crate::types::{Family, Prefix};
use crate::wire::bgp::{AttributeError, Attributes, Negotiated, Notification};

/// A peer, numbered by the caller. Small numbers: tables are indexed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u16);

impl PeerId {
    /// The source of what [`Rib::originate`] announces. Not a peer.
    pub const LOCAL: Self = Self(u16::MAX);
}

#[derive(Clone, Debug)]
pub struct RibConfig {
    pub local_as: u32,
    pub router_id: Ipv4Addr,
    /// RFC 4456 §7; the router id unless several reflectors form one cluster.
    pub cluster_id: Ipv4Addr,
    /// Secret of the hash tables, so that a peer cannot choose prefixes that collide. Random in the
    /// daemon, fixed in tests.
    pub seed: u64,
    /// Prefixes of both families together. A new prefix beyond is refused and counted.
    pub routes_max: usize,
    /// Paths of all prefixes together; what is beyond is refused and counted like a prefix.
    pub paths_max: usize,
    /// Different attribute sets. A route with a new one beyond is refused (treated as withdrawn)
    /// and counted.
    pub attribute_sets_max: usize,
    /// Memory of all sets together, so that a few peers cannot fill it with long ones. At the limit
    /// the same happens.
    pub attribute_octets_max: usize,
}

impl RibConfig {
    pub fn new(local_as: u32, router_id: Ipv4Addr, seed: u64) -> Self {
        Self {
            local_as,
            router_id,
            cluster_id: router_id,
            seed,
            routes_max: ROUTES_MAX,
            paths_max: PATHS_MAX,
            attribute_sets_max: ATTRIBUTE_SETS_MAX,
            attribute_octets_max: ATTRIBUTE_OCTETS_MAX,
        }
    }
}

/// Default of [`RibConfig::routes_max`]: some 60 octets each, so about 0.5 GB for IPv4.
pub const ROUTES_MAX: usize = 8_000_000;
/// Default of [`RibConfig::paths_max`]: those that are not the best take 12 octets each.
pub const PATHS_MAX: usize = 64_000_000;
/// Default of [`RibConfig::attribute_sets_max`]: as many nodes may be moving at the same time.
pub const ATTRIBUTE_SETS_MAX: usize = 2_000_000;
/// Default of [`RibConfig::attribute_octets_max`]: that many sets of usual length, some 400 octets.
pub const ATTRIBUTE_OCTETS_MAX: usize = 1 << 30;

/// A good budget for [`Rib::flush`]: some milliseconds on an old core.
pub const FLUSH_BUDGET: usize = 32_768;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// RFC 4456 §4: we reflect to and from it.
    Client,
    /// Internal, not a client.
    NonClient,
    External,
}

#[derive(Clone, Debug)]
pub struct PeerInfo {
    pub kind: PeerKind,
    pub negotiated: Negotiated,
    /// The BGP identifier in the peer's OPEN.
    pub router_id: Ipv4Addr,
    pub addr: IpAddr,
    /// Our addresses on this session, for next-hop-self. A family without one is not sent when the
    /// policy (or the peer being external) needs it.
    pub local_v4: Option<Ipv4Addr>,
    pub local_v6: Option<Ipv6Addr>,
    /// RFC 7313 was negotiated: replies to a refresh are framed by BoRR and EoRR.
    pub enhanced_refresh: bool,
    pub import: ImportPolicy,
    pub export: ExportPolicy,
}

/// What one UPDATE did. Counts are of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateOutcome {
    /// The session is to be reset with this; nothing of the message was applied.
    pub error: Option<Notification>,
    /// RFC 7606 errors that did not reset the session.
    pub attribute_errors: Vec<AttributeError>,
    /// Accepted into the Adj-RIB-In, whether new or not.
    pub announced: u32,
    /// Withdrawn by the peer (also by treat-as-withdraw), whether known or not.
    pub withdrawn: u32,
    /// Refused by the import policy.
    pub rejected: u32,
    /// Refused because they have been here (RFC 4456 §8, RFC 4271 §9.1.2).
    pub looped: u32,
    /// Refused because a table is full.
    pub full: u32,
    pub end_of_rib: Option<Family>,
}

/// Who wants to hear of best path changes. Each has its own list and pays for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeReader {
    Kernel,
    Mobility,
}

/// Why a path is the best one, or the step at which it lost (RFC 4271 §9.1.2.2, RFC 4456 §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The only (eligible) one.
    OnlyPath,
    NextHopUnreachable,
    Local,
    LocalPref,
    AsPathLength,
    Origin,
    Med,
    ExternalOverInternal,
    NextHopMetric,
    RouterId,
    ClusterListLength,
    PeerAddress,
}

/// The best path of a prefix.
#[derive(Clone, Copy, Debug)]
pub struct BestView<'a> {
    pub peer: PeerId,
    pub attributes: &'a Attributes,
    pub stale: bool,
}

#[derive(Clone, Debug)]
pub struct PathView<'a> {
    pub peer: PeerId,
    pub attributes: &'a Attributes,
    pub best: bool,
    pub stale: bool,
    /// For the best path, the step that decided against the second; for others, the step at which
    /// they lost to it.
    pub reason: Reason,
}

#[derive(Clone, Debug)]
pub struct RouteView<'a> {
    pub prefix: Prefix,
    pub paths: Vec<PathView<'a>>,
}

/// Where a paged listing goes on. Stable as long as the RIB lives; a prefix that comes or goes
/// meanwhile may be missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

impl Cursor {
    /// For a cursor that travels as text.
    pub const fn number(self) -> u32 {
        self.0
    }

    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// What a listing shows. All conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct RouteFilter {
    /// Only paths from this peer.
    pub peer: Option<PeerId>,
    /// This prefix and more specific ones.
    pub within: Option<Prefix>,
    pub best_only: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyCounts {
    pub prefixes: usize,
    pub paths: usize,
    /// Prefixes with an eligible path.
    pub best: usize,
}

/// Counters since start; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RibCounters {
    pub announced: u64,
    pub withdrawn: u64,
    pub rejected: u64,
    pub looped_as_path: u64,
    pub looped_originator: u64,
    pub looped_cluster: u64,
    pub full_routes: u64,
    pub full_attributes: u64,
    pub best_changes: u64,
    /// UPDATEs whose attributes were known from an earlier one.
    pub attribute_cache_hits: u64,
    pub attribute_cache_misses: u64,
    /// UPDATEs encoded (once per group, not per peer).
    pub updates_encoded: u64,
    /// Routes that did not fit a message of some group and were not sent to it (RFC 8654 §4).
    pub too_long: u64,
}

#[derive(Debug)]
pub struct Rib {
    shared: Shared,
    v4: Table<u32>,
    v6: Table<[u8; 16]>,
    encoder: Encoder,
    scratch: Scratch,
}

/// The same call on the table of this family.
macro_rules! on_table {
    ($rib:ident, $family:expr, |$table:ident| $call:expr) => {
        match $family {
            Family::Ipv4 => {
                let $table = &mut $rib.v4;
                $call
            }
            Family::Ipv6 => {
                let $table = &mut $rib.v6;
                $call
            }
        }
    };
}

impl Rib {
    pub fn new(mut config: RibConfig) -> Self {
        // Entries are numbered by 31 bits of the index.
        config.routes_max = config.routes_max.min(1 << 30);
        config.paths_max = config.paths_max.min(1 << 31);
        let attrs = AttrStore::new(&config);
        Self {
            v4: Table::new(config.seed),
            v6: Table::new(config.seed ^ 6),
            shared: Shared {
                config,
                attrs,
                peers: Peers::default(),
                counters: RibCounters::default(),
                readers: 0,
                prefixes: 0,
                paths: 0,
            },
            encoder: Encoder::new(),
            scratch: Scratch::default(),
        }
    }

    /// A session came up, perhaps again (its stale paths are kept). The initial dump and End-of-RIB
    /// follow by [`Self::flush`]. A peer that is up already starts anew, as after a lost session
    /// with graceful restart: call [`Self::sweep_stale`] when it has repeated its routes.
    ///
    /// # Panics
    /// For [`PeerId::LOCAL`], which is not a peer.
    pub fn add_peer(&mut self, peer: PeerId, info: PeerInfo) {
        assert!(peer != PeerId::LOCAL, "the local source is not a peer");
        if self.shared.peers.get_up(peer).is_some() {
            self.peer_down(peer, &Family::ALL);
        }
        let is_other = self.shared.peers.get(peer).is_some_and(|p| {
            let old = &p.info;
            (old.kind, old.router_id, old.addr) != (info.kind, info.router_id, info.addr)
        });
        for family in Family::ALL {
            // Paths are judged by whom they came from: what is left of another peer goes first.
            if is_other || !info.negotiated.has(family) {
                on_table!(self, family, |table| {
                    table.start_sweep(peer.0);
                    table.finish_sweep(&mut self.shared, peer.0);
                });
            }
        }
        let negotiated = info.negotiated;
        let group = self.shared.peers.set_up(peer, info);
        self.encoder.forget();
        for family in Family::ALL.into_iter().filter(|f| negotiated.has(*f)) {
            on_table!(self, family, |table| table.join(peer.0, group));
        }
    }

    /// The session went down. Paths of the families in `keep_stale` are kept until
    /// [`Self::sweep_stale`] (RFC 4724 §4.2); those that were stale already go (§4.2, consecutive
    /// restarts). Other paths are removed little by little, by [`Self::flush`], unless a new
    /// session repeats them first.
    pub fn peer_down(&mut self, peer: PeerId, keep_stale: &[Family]) {
        if self.shared.peers.get(peer).is_none() {
            return;
        }
        self.shared.peers.set_down(peer);
        for family in Family::ALL {
            let keep = keep_stale.contains(&family);
            on_table!(self, family, |table| {
                table.leave(&mut self.shared, peer.0);
                if keep {
                    table.start_sweep(peer.0);
                    table.finish_sweep(&mut self.shared, peer.0);
                }
                table.mark_stale(&mut self.shared, peer.0);
                if !keep {
                    table.start_sweep(peer.0);
                }
            });
            if let Some(p) = self.shared.peers.get_mut(peer) {
                p.restarting[slot(family)] = keep && p.paths[slot(family)] > 0;
            }
        }
    }

    /// Ends graceful restart, at End-of-RIB or when the timer ran out: what is still stale goes, by
    /// [`Self::flush`]. Returns how many paths.
    pub fn sweep_stale(&mut self, peer: PeerId, family: Family) -> usize {
        let Some(p) = self.shared.peers.get_mut(peer) else { return 0 };
        if !std::mem::take(&mut p.restarting[slot(family)]) {
            return 0;
        }
        self.start_sweep(peer, family)
    }

    fn start_sweep(&mut self, peer: PeerId, family: Family) -> usize {
        let stale = self.shared.peers.stale(peer.0, family);
        if stale > 0 {
            on_table!(self, family, |table| table.start_sweep(peer.0));
        }
        stale
    }

    /// The peer asks for everything again (RFC 2918). Framed by BoRR and EoRR when negotiated.
    pub fn handle_refresh(&mut self, peer: PeerId, family: Family) {
        let Some(p) = self.shared.peers.get_up(peer) else { return };
        if p.info.negotiated.has(family) {
            let group = p.group;
            on_table!(self, family, |table| table.refresh(&self.shared, peer.0, group));
        }
    }

    /// The peer begins to send everything again (RFC 7313 §4). False when it is ignored, because
    /// the peer's End-of-RIB is still to come.
    pub fn handle_borr(&mut self, peer: PeerId, family: Family) -> bool {
        let Some(p) = self.shared.peers.get_up(peer) else { return false };
        if p.restarting[slot(family)] {
            return false;
        }
        on_table!(self, family, |table| {
            // What a former session left must not be mistaken for what this refresh repeats.
            table.finish_sweep(&mut self.shared, peer.0);
            table.mark_stale(&mut self.shared, peer.0);
        });
        true
    }

    /// What the peer has not repeated since BoRR goes, by [`Self::flush`]. Returns how many paths.
    pub fn handle_eorr(&mut self, peer: PeerId, family: Family) -> usize {
        let Some(p) = self.shared.peers.get_up(peer) else { return 0 };
        if p.restarting[slot(family)] {
            return 0;
        }
        self.start_sweep(peer, family)
    }

    /// Announces a route of our own, or changes its attributes; it is the best of those with its LOCAL_PREF. False when a
    /// table is full and the route was not there.
    pub fn originate(&mut self, prefix: Prefix, attributes: Attributes) -> bool {
        let sh = &mut self.shared;
        let Some(id) = sh.attrs.intern(attributes) else {
            sh.counters.full_attributes += 1;
            return false;
        };
        let local = PeerId::LOCAL.0;
        let refused = match prefix {
            Prefix::V4 { addr, len } => self.v4.announce(sh, local, id, &[Key { addr, len }]),
            Prefix::V6 { addr, len } => {
                let addr = addr.to_be_bytes();
                self.v6.announce(sh, local, id, &[Key { addr, len }])
            }
        };
        sh.attrs.release(id);
        sh.counters.full_routes += u64::from(refused);
        refused == 0
    }

    /// False when there is no such route of our own.
    pub fn withdraw_local(&mut self, prefix: Prefix) -> bool {
        let sh = &mut self.shared;
        let local = PeerId::LOCAL.0;
        match prefix {
            Prefix::V4 { addr, len } => {
                self.v4.find(Key { addr, len }).is_some_and(|id| self.v4.remove_path(sh, id, local))
            }
            Prefix::V6 { addr, len } => self
                .v6
                .find(Key { addr: addr.to_be_bytes(), len })
                .is_some_and(|id| self.v6.remove_path(sh, id, local)),
        }
    }

    /// What the IGP (or the kernel) says about next hops: `None` is unreachable. An address never
    /// named here is eligible with metric 0. One walk of the tables per call: pass changes
    /// together.
    pub fn set_next_hop_metrics(&mut self, metrics: &[(IpAddr, Option<u32>)]) {
        let sh = &mut self.shared;
        let mut changed: Vec<u32> = metrics
            .iter()
            .filter_map(|(addr, metric)| sh.attrs.next_hops.set_metric(*addr, *metric))
            .collect();
        if changed.is_empty() {
            return;
        }
        changed.sort_unstable();
        let is = |number: u32| changed.binary_search(&number).is_ok();
        self.v4.next_hops_changed(sh, is);
        self.v6.next_hops_changed(sh, is);
    }

    /// The peer's output queue is over (true) or under (false) its mark. A congested peer is given
    /// nothing; later it gets the newest state of what changed meanwhile.
    pub fn set_congested(&mut self, peer: PeerId, congested: bool) {
        let Some(p) = self.shared.peers.get_mut(peer).filter(|p| p.up) else { return };
        p.congested = congested;
        let (group, negotiated) = (p.group, p.info.negotiated);
        for family in Family::ALL.into_iter().filter(|f| negotiated.has(*f)) {
            on_table!(self, family, |table| table.set_congested(peer.0, group, congested));
        }
    }

    /// Something is waiting for [`Self::flush`].
    pub fn has_pending(&self) -> bool {
        !self.v4.dirty.is_empty()
            || !self.v6.dirty.is_empty()
            || self.v4.is_sweeping()
            || self.v6.is_sweeping()
            || self.v4.lagging.iter().chain(&self.v6.lagging).any(|l| {
                l.has_work() && self.shared.peers.get(PeerId(l.peer)).is_some_and(|p| !p.congested)
            })
    }

    /// Hands out what peers are to be told: each `Bytes` is one or several whole messages, to be
    /// sent in order. At most about `budget` prefixes are processed; call again while
    /// [`Self::has_pending`]. News go before the removal of stale paths and before backlogs, which
    /// always get a share.
    pub fn flush(&mut self, budget: usize, send: &mut dyn FnMut(PeerId, Bytes)) {
        let budget = budget.max(4);
        let (sh, encoder) = (&mut self.shared, &mut self.encoder);
        let share = budget / 4;
        let mut left = budget - self.v4.flush_dirty(sh, encoder, budget, send);
        left -= self.v6.flush_dirty(sh, encoder, left.max(share), send).min(left);
        self.v4.run_sweeps(sh, budget);
        self.v6.run_sweeps(sh, budget);
        if self.v4.lagging.is_empty() && self.v6.lagging.is_empty() {
            return;
        }
        let mut left = left.max(share);
        let settled = self.v4.dirty.is_empty() && !self.v4.is_sweeping();
        let for_v4 = if self.v6.lagging.is_empty() { left } else { left.div_ceil(2) };
        left -= self.v4.flush_lagging(sh, encoder, for_v4, settled, send);
        let left = left.max(1);
        let settled = self.v6.dirty.is_empty() && !self.v6.is_sweeping();
        self.v6.flush_lagging(sh, encoder, left, settled, send);
    }

    /// True when the peer has been told everything of this family: no initial dump or backlog is
    /// left (though news may be waiting for the next [`Self::flush`]).
    pub fn in_sync(&self, peer: PeerId, family: Family) -> bool {
        self.shared.peers.get_up(peer).is_some_and(|p| match family {
            Family::Ipv4 => self.v4.is_in_sync(peer.0, p.group),
            Family::Ipv6 => self.v6.is_in_sync(peer.0, p.group),
        })
    }

    pub fn counts(&self, family: Family) -> FamilyCounts {
        match family {
            Family::Ipv4 => self.v4.counts(),
            Family::Ipv6 => self.v6.counts(),
        }
    }

    /// Paths accepted from a peer and kept, stale ones included; what is about to be removed does
    /// not count.
    pub fn peer_paths(&self, peer: PeerId, family: Family) -> usize {
        let condemned = match family {
            Family::Ipv4 => self.v4.condemned(&self.shared, peer.0),
            Family::Ipv6 => self.v6.condemned(&self.shared, peer.0),
        };
        self.shared.peers.get(peer).map_or(0, |p| p.paths[slot(family)] - condemned)
    }

    /// Of [`Self::peer_paths`], those that the peer has not repeated since its restart or since
    /// BoRR.
    pub fn peer_stale_paths(&self, peer: PeerId, family: Family) -> usize {
        let stale = self.shared.peers.stale(peer.0, family);
        match family {
            Family::Ipv4 => stale - self.v4.condemned(&self.shared, peer.0),
            Family::Ipv6 => stale - self.v6.condemned(&self.shared, peer.0),
        }
    }

    pub fn attribute_sets(&self) -> usize {
        self.shared.attrs.len()
    }

    /// Forgets which attribute blocks mean what, and with them the sets that no route uses: for a
    /// caller that wants the memory back.
    pub fn forget_blocks(&mut self) {
        self.shared.attrs.forget_blocks();
    }

    pub fn counters(&self) -> RibCounters {
        self.shared.counters
    }
}
