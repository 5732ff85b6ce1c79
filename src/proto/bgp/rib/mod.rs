//! The RIB of a BGP speaker and route reflector (RFC 4271 §9, RFC 4456): what peers said, which
//! route is best, and what each peer has still to be told. Sans-IO.
//!
//! The caller feeds UPDATE bodies, then calls [`Rib::flush`] once per batch of input: a single change
//! leaves at once, a storm is packed by itself, because only the newest state of a prefix is kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

use super::policy::{ExportPolicy, ImportPolicy};
use crate::types::{Family, Instant, Prefix};
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
    /// Different attribute sets. A route with a new one beyond is refused (treated as withdrawn) and counted.
    pub attribute_sets_max: usize,
}

impl RibConfig {
    pub fn new(local_as: u32, router_id: Ipv4Addr, seed: u64) -> Self {
        Self {
            local_as,
            router_id,
            cluster_id: router_id,
            seed,
            routes_max: ROUTES_MAX,
            attribute_sets_max: ATTRIBUTE_SETS_MAX,
        }
    }
}

/// Default of [`RibConfig::routes_max`]: some 60 octets each, so about 0.5 GB for IPv4.
pub const ROUTES_MAX: usize = 8_000_000;
/// Default of [`RibConfig::attribute_sets_max`]: some 400 octets each.
pub const ATTRIBUTE_SETS_MAX: usize = 2_000_000;

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
    /// For the best path, the step that decided against the second; for others, the step at which they lost to it.
    pub reason: Reason,
}

#[derive(Clone, Debug)]
pub struct RouteView<'a> {
    pub prefix: Prefix,
    pub paths: Vec<PathView<'a>>,
}

/// Where a paged listing goes on. Stable as long as the RIB lives; a prefix that comes or goes meanwhile may be missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

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
    config: RibConfig,
}

impl Rib {
    pub fn new(config: RibConfig) -> Self {
        Self { config }
    }
    /// A session came up, perhaps again (its stale paths are kept). The initial dump and End-of-RIB follow by `flush`.
    /// Also used when policies changed: same as `peer_down(peer, true)` and up.
    pub fn add_peer(&mut self, _peer: PeerId, _info: PeerInfo) {
        let _ = &self.config;
    }
    /// The session went down. `keep_stale`: per family, RFC 4724 §4.2, or all paths are removed.
    pub fn peer_down(&mut self, _peer: PeerId, _keep_stale: &[Family]) {}
    /// Ends graceful restart: what is still stale is removed. Returns how many paths.
    pub fn sweep_stale(&mut self, _peer: PeerId, _family: Family) -> usize {
        0
    }
    /// One UPDATE without its header. A peer that is not up is ignored.
    pub fn handle_update(&mut self, _peer: PeerId, _body: &[u8], _now: Instant) -> UpdateOutcome {
        UpdateOutcome::default()
    }
    /// The peer asks for everything again (RFC 2918). Framed by BoRR and EoRR when negotiated.
    pub fn handle_refresh(&mut self, _peer: PeerId, _family: Family) {}
    /// RFC 7313: the peer begins (BoRR) to send everything again. What it has not repeated by EoRR goes.
    pub fn handle_borr(&mut self, _peer: PeerId, _family: Family) {}
    pub fn handle_eorr(&mut self, _peer: PeerId, _family: Family) -> usize {
        0
    }
    /// Announces a route of our own, best by definition. False when a table is full.
    pub fn originate(&mut self, _prefix: Prefix, _attributes: Attributes) -> bool {
        false
    }
    pub fn withdraw_local(&mut self, _prefix: Prefix) -> bool {
        false
    }
    /// What the IGP (or kernel) says about next hops: `None` is unreachable. An address never named here is
    /// eligible with metric 0. One walk of the table per call: pass changes together.
    pub fn set_next_hop_metrics(&mut self, _metrics: &[(IpAddr, Option<u32>)]) {}
    /// The peer's output queue is over (true) or under (false) its mark. A congested peer is given nothing; later
    /// it gets the newest state of what changed meanwhile.
    pub fn set_congested(&mut self, _peer: PeerId, _congested: bool) {}
    /// Something is waiting to be sent to a peer that can take it.
    pub fn has_pending(&self) -> bool {
        false
    }
    /// Hands out what peers are to be told: each `Bytes` is one or several whole messages, to be sent in
    /// order. At most about `budget` prefixes are processed; call again while [`Self::has_pending`].
    pub fn flush(&mut self, _budget: usize, _send: &mut dyn FnMut(PeerId, Bytes)) {}
    /// Starts (with all that is there) or stops the list of changes of this reader.
    pub fn enable_changes(&mut self, _reader: ChangeReader, _on: bool) {}
    /// At most `limit` prefixes whose best path changed, in the order of their first change, with the newest
    /// state; `None` is "no route any more". True when more are waiting.
    pub fn drain_changes(
        &mut self,
        _reader: ChangeReader,
        _limit: usize,
        _each: &mut dyn FnMut(Prefix, Option<BestView<'_>>),
    ) -> bool {
        false
    }
    pub fn find_best(&self, _prefix: Prefix) -> Option<BestView<'_>> {
        None
    }
    pub fn find(&self, _prefix: Prefix) -> Option<RouteView<'_>> {
        None
    }
    /// At most `limit` routes after `cursor`, and where to go on (`None`: the end). Looks at a bounded number of prefixes
    /// per call, so a page may be short or empty though there is more.
    pub fn routes(
        &self,
        _family: Family,
        _cursor: Cursor,
        _filter: &RouteFilter,
        _limit: usize,
    ) -> (Vec<RouteView<'_>>, Option<Cursor>) {
        (Vec::new(), None)
    }
    pub fn counts(&self, _family: Family) -> FamilyCounts {
        FamilyCounts::default()
    }
    /// Paths accepted from a peer and kept.
    pub fn peer_paths(&self, _peer: PeerId, _family: Family) -> usize {
        0
    }
    pub fn attribute_sets(&self) -> usize {
        0
    }
    pub fn counters(&self) -> RibCounters {
        RibCounters::default()
    }
    /// True when the peer has been told everything of this family (initial dump or backlog done).
    pub fn in_sync(&self, _peer: PeerId, _family: Family) -> bool {
        false
    }
}
