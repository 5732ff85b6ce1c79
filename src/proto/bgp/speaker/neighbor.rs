//! One configured neighbour: what was decided about it, and what is known of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::framing::Inbox;
use crate::proto::bgp::policy::{ExportPolicy, ImportPolicy};
use crate::proto::bgp::rib::{PeerInfo, PeerKind, UpdateOutcome};
use crate::proto::bgp::session::{
    ConnId, Direction, Families, PeerGraceful, Session, SessionConfig, Transport,
};
use crate::types::{Family, Instant};
use crate::wire::bgp::{Action, Capability, MessageType, Negotiated, Open};

#[derive(Clone, Debug)]
pub struct NeighborConfig {
    pub description: String,
    pub session: SessionConfig,
    pub transport: Transport,
    pub kind: PeerKind,
    /// Nothing is accepted unless this says so (RFC 8212).
    pub import: ImportPolicy,
    pub export: ExportPolicy,
    /// Prefixes accepted from the neighbour; beyond, the session ends.
    pub max_prefixes_v4: Option<u32>,
    pub max_prefixes_v6: Option<u32>,
    /// Next-hop-self of the family that the session does not run over (of the other, the session's
    /// own address is the default).
    pub local_v4: Option<Ipv4Addr>,
    pub local_v6: Option<Ipv6Addr>,
    /// Configured, but not to be started.
    pub shutdown: bool,
    /// Only up while the path is known to be ([`super::Speaker::handle_path`]).
    pub strict_path: bool,
}

impl NeighborConfig {
    /// With nothing allowed in or out.
    pub fn new(session: SessionConfig, transport: Transport) -> Self {
        let kind = if session.is_internal() { PeerKind::NonClient } else { PeerKind::External };
        Self {
            description: String::new(),
            session,
            transport,
            kind,
            import: ImportPolicy::default(),
            export: ExportPolicy::default(),
            max_prefixes_v4: None,
            max_prefixes_v6: None,
            local_v4: None,
            local_v6: None,
            shutdown: false,
            strict_path: false,
        }
    }

    pub const fn max_prefixes(&self, family: Family) -> Option<u32> {
        match family {
            Family::Ipv4 => self.max_prefixes_v4,
            Family::Ipv6 => self.max_prefixes_v6,
        }
    }

    /// True when the difference needs a new OPEN or a new connection.
    pub fn needs_new_session(&self, other: &Self) -> bool {
        self.session != other.session
            || self.transport != other.transport
            || self.kind != other.kind
    }

    /// True when the RIB treats the neighbour differently.
    pub fn needs_new_tables(&self, other: &Self) -> bool {
        (&self.import, &self.export, self.local_v4, self.local_v6)
            != (&other.import, &other.export, other.local_v4, other.local_v6)
    }
}

/// Messages by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MessageCounts {
    pub open: u64,
    pub update: u64,
    pub notification: u64,
    pub keepalive: u64,
    pub route_refresh: u64,
    /// NOTIFICATIONs by error code; those of codes that we do not know are at 0.
    pub notification_codes: [u64; 9],
}

impl MessageCounts {
    pub fn count(&mut self, kind: MessageType, body: &[u8]) {
        match kind {
            MessageType::Open => self.open += 1,
            MessageType::Update => self.update += 1,
            MessageType::Notification => self.count_notification(body.first()),
            MessageType::Keepalive => self.keepalive += 1,
            MessageType::RouteRefresh => self.route_refresh += 1,
        }
    }

    /// Counts whole messages of ours, by their headers.
    pub fn count_octets(&mut self, mut messages: &[u8]) {
        while let Some(&[high, low, kind]) = messages.get(16..19) {
            match kind {
                1 => self.open += 1,
                2 => self.update += 1,
                3 => self.count_notification(messages.get(19)),
                4 => self.keepalive += 1,
                5 => self.route_refresh += 1,
                _ => {} // there is no sixth that we send
            }
            // At least the header, so that the loop ends whatever is in there.
            let len = usize::from(u16::from_be_bytes([high, low])).max(19);
            messages = messages.get(len..).unwrap_or_default();
        }
    }

    fn count_notification(&mut self, code: Option<&u8>) {
        self.notification += 1;
        let code = usize::from(code.copied().unwrap_or(0));
        let known = if code < self.notification_codes.len() { code } else { 0 };
        self.notification_codes[known] += 1;
    }

    pub const fn total(&self) -> u64 {
        self.open + self.update + self.notification + self.keepalive + self.route_refresh
    }
}

/// Since the neighbour was configured; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NeighborCounters {
    pub messages_in: MessageCounts,
    pub messages_out: MessageCounts,
    /// Sessions that came up, and that went down again.
    pub established: u64,
    pub flaps: u64,
    /// Attempts that ended before a session was established.
    pub failed_attempts: u64,
    /// Connections of the neighbour that came at a bad time.
    pub refused_connections: u64,
    pub prefixes_announced: u64,
    pub prefixes_withdrawn: u64,
    /// By import policy.
    pub prefixes_rejected: u64,
    pub prefixes_looped: u64,
    /// Refused because a table is full.
    pub prefixes_over_limit: u64,
    /// UPDATE errors by what became of them (RFC 7606 §2).
    pub updates_attribute_discard: u64,
    pub updates_treated_as_withdraw: u64,
    pub updates_session_reset: u64,
    pub max_prefix_teardowns: u64,
    /// Sessions that ended because BFD said that the path had failed.
    pub path_downs: u64,
}

/// The established session.
#[derive(Debug)]
pub struct UpState {
    pub conn: ConnId,
    pub direction: Direction,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub negotiated: Negotiated,
    pub open: Open,
    pub hold_time: Duration,
    pub graceful: Option<PeerGraceful>,
    /// Families for which the neighbour's End-of-RIB has come.
    pub end_of_rib: Families,
}

impl UpState {
    pub fn has(&self, capability: &Capability) -> bool {
        self.open.capabilities.contains(capability)
    }

    pub fn families(&self) -> Families {
        Family::ALL.into_iter().filter(|f| self.negotiated.has(*f)).collect()
    }
}

/// Something that went wrong, in words.
#[derive(Clone, Debug)]
pub struct LastError {
    pub text: String,
    pub at: Instant,
}

#[derive(Debug)]
pub struct Neighbor {
    pub config: NeighborConfig,
    pub session: Session,
    pub up: Option<UpState>,
    /// By serial number of the connection: at most an established one and one per direction.
    pub inboxes: BTreeMap<u32, Inbox>,
    pub congested: bool,
    /// Waits for the path to be up, and for nothing else.
    pub held: bool,
    /// Families that the neighbour is saying again, and until when we wait for the end of that.
    pub refreshing: Families,
    pub refreshing_until: Instant,
    pub counters: NeighborCounters,
    /// Why the last established session ended.
    pub last_down: Option<LastError>,
    /// The newest trouble of any kind, also of attempts.
    pub last_error: Option<LastError>,
    pub last_change: Instant,
}

impl Neighbor {
    pub fn new(config: NeighborConfig, session: Session, now: Instant) -> Self {
        Self {
            config,
            session,
            up: None,
            inboxes: BTreeMap::new(),
            congested: false,
            held: false,
            refreshing: Families::NONE,
            refreshing_until: Instant::FAR_FUTURE,
            counters: NeighborCounters::default(),
            last_down: None,
            last_error: None,
            last_change: now,
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        self.session.poll_timeout().min(self.refreshing_until)
    }

    pub fn set_error(&mut self, text: String, now: Instant) {
        self.last_error = Some(LastError { text, at: now });
    }

    /// For the RIB.
    pub fn peer_info(&self, up: &UpState) -> PeerInfo {
        let (mut local_v4, mut local_v6) = (self.config.local_v4, self.config.local_v6);
        match up.local.ip().to_canonical() {
            IpAddr::V4(a) => local_v4 = local_v4.or(Some(a)),
            // A link-local address means nothing beyond the link.
            IpAddr::V6(a) if !a.is_unicast_link_local() => local_v6 = local_v6.or(Some(a)),
            IpAddr::V6(_) => {}
        }
        PeerInfo {
            kind: self.config.kind,
            negotiated: up.negotiated,
            router_id: up.open.bgp_id,
            addr: self.config.transport.remote.ip(),
            local_v4,
            local_v6,
            enhanced_refresh: up.has(&Capability::EnhancedRouteRefresh),
            import: self.config.import.clone(),
            export: self.config.export.clone(),
        }
    }

    /// Counts what an UPDATE did, and remembers the worst error in words.
    pub fn note_update(&mut self, outcome: &UpdateOutcome, now: Instant) {
        let c = &mut self.counters;
        c.prefixes_announced += u64::from(outcome.announced);
        c.prefixes_withdrawn += u64::from(outcome.withdrawn);
        c.prefixes_rejected += u64::from(outcome.rejected);
        c.prefixes_looped += u64::from(outcome.looped);
        c.prefixes_over_limit += u64::from(outcome.full);
        if outcome.error.is_some() {
            c.updates_session_reset += 1;
        }
        if outcome.attribute_errors.is_empty() {
            return;
        }
        // One UPDATE counts once, by the strongest of its errors.
        let withdrawn =
            outcome.attribute_errors.iter().find(|e| e.action == Action::TreatAsWithdraw);
        if outcome.error.is_none() {
            match withdrawn {
                Some(_) => c.updates_treated_as_withdraw += 1,
                None => c.updates_attribute_discard += 1,
            }
        }
        if let Some(e) = withdrawn.or(outcome.attribute_errors.first()) {
            let became = match e.action {
                Action::TreatAsWithdraw => "its prefixes were withdrawn",
                Action::AttributeDiscard | Action::None => "the attribute was discarded",
                Action::SessionReset(_) => "the session was reset",
            };
            let text = format!("UPDATE: attribute {} ({:?}); {became}", e.code, e.fault);
            self.set_error(text, now);
        }
    }
}
