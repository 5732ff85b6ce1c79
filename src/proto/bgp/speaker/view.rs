//! What is shown of neighbours, on the command line and in JSON.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;

use super::Speaker;
use super::neighbor::{Neighbor, NeighborCounters, UpState};
use crate::proto::bgp::rib::PeerId;
use crate::proto::bgp::session::SessionState;
use crate::types::{Family, Instant};
use crate::wire::bgp::Capability;

#[derive(Clone, Debug, Serialize)]
pub struct NeighborView {
    pub peer: u16,
    pub address: IpAddr,
    pub description: String,
    pub local_as: u32,
    pub remote_as: u32,
    pub route_reflector_client: bool,
    pub state: SessionState,
    /// Stopped by the operator or for too many prefixes: it takes the operator to start it.
    pub stopped: bool,
    /// Seconds in the present state of being up or being down.
    pub since_s: u64,
    pub prefixes: Vec<FamilyView>,
    /// While established.
    pub session: Option<EstablishedView>,
    /// Why the last established session ended.
    pub last_down: Option<String>,
    pub last_down_ago_s: Option<u64>,
    /// The newest trouble of any kind, also of attempts.
    pub last_error: Option<String>,
    pub last_error_ago_s: Option<u64>,
    pub counters: NeighborCounters,
}

#[derive(Clone, Debug, Serialize)]
pub struct FamilyView {
    pub family: Family,
    /// In the Adj-RIB-In after policy.
    pub accepted: usize,
    pub max_prefixes: Option<u32>,
    /// Kept from an earlier session, waiting for End-of-RIB or its timer.
    pub stale: bool,
    pub end_of_rib_received: bool,
    /// The neighbour has been told everything.
    pub in_sync: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct EstablishedView {
    pub router_id: Ipv4Addr,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub outgoing: bool,
    pub hold_time_s: u64,
    pub congested: bool,
    pub four_octet_as: bool,
    pub families: Vec<Family>,
    pub route_refresh: bool,
    pub enhanced_route_refresh: bool,
    pub extended_messages: bool,
    pub extended_next_hop: bool,
    pub graceful_restart: Option<GracefulView>,
}

/// What the neighbour said in its OPEN (RFC 4724 §3).
#[derive(Clone, Debug, Serialize)]
pub struct GracefulView {
    pub restart_time_s: u16,
    pub restarting: bool,
    pub notification: bool,
    pub families: Vec<Family>,
    pub forwarding_preserved: Vec<Family>,
}

impl Speaker {
    /// In the order of peer numbers.
    pub fn neighbor_views(&self, now: Instant) -> Vec<NeighborView> {
        self.neighbors.iter().map(|(peer, n)| self.view(*peer, n, now)).collect()
    }

    pub fn neighbor_view(&self, peer: PeerId, now: Instant) -> Option<NeighborView> {
        self.neighbors.get(&peer).map(|n| self.view(peer, n, now))
    }

    fn view(&self, peer: PeerId, n: &Neighbor, now: Instant) -> NeighborView {
        let family = |family: Family| FamilyView {
            family,
            accepted: self.rib.peer_paths(peer, family),
            max_prefixes: n.config.max_prefixes(family),
            stale: n.session.retained().has(family),
            end_of_rib_received: n.up.as_ref().is_some_and(|up| up.end_of_rib.has(family)),
            in_sync: self.rib.in_sync(peer, family),
        };
        NeighborView {
            peer: peer.0,
            address: n.config.transport.remote.ip(),
            description: n.config.description.clone(),
            local_as: n.config.session.local_as,
            remote_as: n.config.session.remote_as,
            route_reflector_client: n.config.kind == crate::proto::bgp::rib::PeerKind::Client,
            state: n.session.state(),
            stopped: n.session.is_stopped() && !n.held,
            since_s: now.saturating_since(n.last_change).as_secs(),
            prefixes: n.config.session.families.iter().map(family).collect(),
            session: n.up.as_ref().map(|up| established(up, n.congested)),
            last_down: n.last_down.as_ref().map(|e| e.text.clone()),
            last_down_ago_s: n.last_down.as_ref().map(|e| now.saturating_since(e.at).as_secs()),
            last_error: n.last_error.as_ref().map(|e| e.text.clone()),
            last_error_ago_s: n.last_error.as_ref().map(|e| now.saturating_since(e.at).as_secs()),
            counters: n.counters,
        }
    }
}

fn established(up: &UpState, congested: bool) -> EstablishedView {
    EstablishedView {
        router_id: up.open.bgp_id,
        local: up.local,
        remote: up.remote,
        outgoing: up.direction == crate::proto::bgp::session::Direction::Outgoing,
        hold_time_s: up.hold_time.as_secs(),
        congested,
        four_octet_as: up.negotiated.four_octet_as,
        families: up.families().iter().collect(),
        route_refresh: up.has(&Capability::RouteRefresh),
        enhanced_route_refresh: up.has(&Capability::EnhancedRouteRefresh),
        extended_messages: up.negotiated.max_len > crate::wire::bgp::MAX_LEN,
        extended_next_hop: up.negotiated.extended_next_hop_v4,
        graceful_restart: up.graceful.map(|g| GracefulView {
            restart_time_s: g.restart_time_s,
            restarting: g.restarting,
            notification: g.notification,
            families: g.families.iter().collect(),
            forwarding_preserved: g.forwarding.iter().collect(),
        }),
    }
}
