//! The BGP speaker: sessions with all neighbours around one RIB. Sans-IO.
//!
//! The driver owns the sockets. It calls in with connections and octets, then takes what is to be
//! sent; after each batch of input it calls [`Speaker::flush`], so a single change leaves at once
//! and a storm is packed.
//!
//! Octets should be read before timers are looked at: after a pause of the whole process (a
//! suspended machine) a hold timer may be due although the peer's KEEPALIVE lies in the socket.

mod framing;
mod neighbor;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::rib::{FLUSH_BUDGET, PeerId, Rib, RibConfig};
use super::session::{self, ConnId, Families, Md5Key, Reason, Received, Session, Stop, Transport};
use crate::types::{Family, Instant};
use crate::wire::bgp::{Capability, RefreshKind, RouteRefresh, SAFI_UNICAST, afi};

use framing::Inbox;
use neighbor::{Neighbor, UpState};

pub use neighbor::{MessageCounts, NeighborConfig, NeighborCounters};
pub use view::{EstablishedView, FamilyView, GracefulView, NeighborView};

/// Each has tables in the RIB.
pub const NEIGHBORS_MAX: usize = 1024;

/// How long a neighbour may take to say everything again. RFC 7313 §4 wants an upper bound; a peer
/// without that RFC does not tell when it is done, so what it has not repeated stays this long.
const REFRESH_MAX: Duration = Duration::from_secs(180);

/// Serial numbers of connections of one neighbour do not reach those of the next one that gets
/// its number: a late report about a forgotten connection must not meet a new one.
const SERIALS_PER_NEIGHBOR: u32 = 1 << 20;

#[derive(Clone, Debug)]
pub struct SpeakerConfig {
    pub rib: RibConfig,
    /// For jitter.
    pub seed: u64,
    /// RFC 4724 §4.1: after our own restart, tell nobody anything until all neighbours have sent
    /// their End-of-RIB, or this long (Selection_Deferral_Timer). A reflector needs that, lest it
    /// withdraws what it has only not heard yet; an anchor that tells its own routes does not.
    pub selection_deferral: Option<Duration>,
}

#[derive(Clone, Debug)]
pub enum Output {
    /// Open a connection; then `handle_connected` or `handle_closed`.
    Connect {
        conn: ConnId,
        transport: Box<Transport>,
    },
    /// Whole messages, in order.
    Send {
        conn: ConnId,
        bytes: Bytes,
    },
    /// Give up the attempt, or send what is queued (for some seconds at most) and close. Nothing
    /// more is expected of it.
    Close {
        conn: ConnId,
    },
    /// The listener must know (or forget) the key of this neighbour before it connects.
    ListenerKey {
        remote: IpAddr,
        key: Option<Md5Key>,
    },
    SessionUp {
        peer: PeerId,
    },
    SessionDown {
        peer: PeerId,
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NeighborError {
    #[error("there is a neighbor with this address already")]
    AddressTaken,
    #[error("too many neighbors (at most {NEIGHBORS_MAX})")]
    TooMany,
    #[error("no such neighbor")]
    Unknown,
    #[error("the neighbor does not support route refresh")]
    NoRouteRefresh,
    #[error("the session is not established")]
    NotEstablished,
}

/// Since start; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpeakerCounters {
    /// Connections from addresses that are not configured.
    pub unknown_connections: u64,
}

#[derive(Debug)]
pub struct Speaker {
    rib: Rib,
    neighbors: BTreeMap<PeerId, Neighbor>,
    by_address: BTreeMap<(IpAddr, u32), PeerId>,
    counters: SpeakerCounters,
    seed: u64,
    next_serial: u32,
    /// Until when nobody is told anything (RFC 4724 §4.1); the past when over.
    deferred_until: Option<Instant>,
    /// Outputs of one session, before they are acted upon.
    scratch: Vec<session::Output>,
}

/// An address as a key: a link-local one is only unique with its link.
fn address_key(addr: SocketAddr) -> (IpAddr, u32) {
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            (IpAddr::V6(*v6.ip()), v6.scope_id())
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => (addr.ip().to_canonical(), 0),
    }
}

/// Octets of a malformed UPDATE in the log.
const LOGGED_MAX: usize = 512;

/// RFC 7606 §6: enough of it is logged to find the fault. Attributes come before the
/// prefixes unless many are withdrawn, so the beginning tells; all of it is what tcpdump is for.
fn log_malformed(n: &Neighbor, body: &[u8]) {
    let shown = &body[..body.len().min(LOGGED_MAX)];
    let address = n.config.transport.remote.ip();
    tracing::debug!(neighbor = %address, octets = body.len(), body = %Hex(shown), "malformed UPDATE");
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl Speaker {
    pub fn new(config: SpeakerConfig, now: Instant) -> Self {
        Self {
            rib: Rib::new(config.rib),
            neighbors: BTreeMap::new(),
            by_address: BTreeMap::new(),
            counters: SpeakerCounters::default(),
            seed: config.seed,
            next_serial: 0,
            deferred_until: config.selection_deferral.map(|wait| now + wait),
            scratch: Vec::new(),
        }
    }

    pub const fn rib(&self) -> &Rib {
        &self.rib
    }

    /// To originate routes, to read changes, to tell metrics. [`Self::flush`] afterwards.
    pub const fn rib_mut(&mut self) -> &mut Rib {
        &mut self.rib
    }

    /// The connection of an established session.
    pub fn connection(&self, peer: PeerId) -> Option<ConnId> {
        Some(self.neighbors.get(&peer)?.up.as_ref()?.conn)
    }

    pub const fn counters(&self) -> SpeakerCounters {
        self.counters
    }

    pub fn find_neighbor(&self, remote: IpAddr) -> Option<PeerId> {
        self.neighbors
            .iter()
            .find(|(_, n)| n.config.transport.remote.ip() == remote)
            .map(|(p, _)| *p)
    }

    pub fn neighbor_config(&self, peer: PeerId) -> Option<&NeighborConfig> {
        self.neighbors.get(&peer).map(|n| &n.config)
    }

    /// Configures a neighbour and starts it, unless it is shut down.
    pub fn add_neighbor(
        &mut self,
        config: NeighborConfig,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<PeerId, NeighborError> {
        let key = address_key(config.transport.remote);
        if self.by_address.contains_key(&key) {
            return Err(NeighborError::AddressTaken);
        }
        if self.neighbors.len() >= NEIGHBORS_MAX {
            return Err(NeighborError::TooMany);
        }
        // The smallest free number: tables are indexed by it.
        let peer = (0..)
            .map(PeerId)
            .find(|p| !self.neighbors.contains_key(p))
            .expect("there are more numbers than neighbours");
        self.by_address.insert(key, peer);
        let session = self.new_session(peer, &config);
        if config.transport.md5.is_some() {
            out.push(Output::ListenerKey {
                remote: config.transport.remote.ip(),
                key: config.transport.md5.clone(),
            });
        }
        let (start, strict) = (!config.shutdown, config.strict_path);
        let mut neighbor = Neighbor::new(config, session, now);
        if start && strict {
            neighbor.held = true;
            neighbor.set_error("waits for the path to be up (BFD)".to_owned(), now);
        }
        self.neighbors.insert(peer, neighbor);
        if start && !strict {
            self.with_session(peer, now, out, |session, out| session.start(now, out));
        }
        Ok(peer)
    }

    /// Ends the session and forgets the neighbour and its routes.
    pub fn remove_neighbor(
        &mut self,
        peer: PeerId,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        self.with_session(peer, now, out, |session, out| {
            session.stop(Stop::Deconfigured, now, out);
        });
        let n = self.neighbors.remove(&peer).ok_or(NeighborError::Unknown)?;
        self.rib.peer_down(peer, &[]);
        self.by_address.remove(&address_key(n.config.transport.remote));
        if n.config.transport.md5.is_some() {
            out.push(Output::ListenerKey { remote: n.config.transport.remote.ip(), key: None });
        }
        Ok(())
    }

    /// Applies a new configuration with as little disturbance as it allows: a new session where
    /// OPEN or TCP would differ, a route refresh where policies do, nothing otherwise.
    pub fn update_neighbor(
        &mut self,
        peer: PeerId,
        config: NeighborConfig,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        let n = self.neighbors.get_mut(&peer).ok_or(NeighborError::Unknown)?;
        let new_key = address_key(config.transport.remote);
        let old_key = address_key(n.config.transport.remote);
        if new_key != old_key && self.by_address.contains_key(&new_key) {
            return Err(NeighborError::AddressTaken);
        }
        let old = std::mem::replace(&mut n.config, config);
        let config = n.config.clone();
        if config.needs_new_session(&old) {
            self.with_session(peer, now, out, |session, out| {
                session.stop(Stop::ConfigurationChange, now, out);
            });
            self.rib.peer_down(peer, &[]);
            self.by_address.remove(&old_key);
            self.by_address.insert(new_key, peer);
            let (old, new) = (&old.transport, &config.transport);
            if old.md5.is_some() && (old.md5 != new.md5 || old.remote.ip() != new.remote.ip()) {
                out.push(Output::ListenerKey { remote: old.remote.ip(), key: None });
            }
            if new.md5.is_some() {
                out.push(Output::ListenerKey { remote: new.remote.ip(), key: new.md5.clone() });
            }
            let session = self.new_session(peer, &config);
            if let Some(n) = self.neighbors.get_mut(&peer) {
                n.session = session;
            }
            // A strict one goes on waiting when it did.
            let held = self.neighbors.get(&peer).is_some_and(|n| n.held && n.config.strict_path);
            if !config.shutdown && !held {
                self.with_session(peer, now, out, |session, out| session.start(now, out));
            }
            return Ok(());
        }
        match (old.shutdown, config.shutdown) {
            (false, true) => return self.shutdown(peer, "", now, out),
            (true, false) => self.start(peer, now, out)?,
            (false, false) | (true, true) => {}
        }
        if config.needs_new_tables(&old) {
            self.renew_tables(peer, now, out);
        }
        Ok(())
    }

    /// Starts a neighbour that was shut down, or waits in Idle for whatever reason.
    pub fn start(
        &mut self,
        peer: PeerId,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        self.known(peer)?;
        self.with_session(peer, now, out, |session, out| session.start(now, out));
        Ok(())
    }

    /// RFC 9003: `text` is told to the neighbour's operator; may be empty.
    pub fn shutdown(
        &mut self,
        peer: PeerId,
        text: &str,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        self.known(peer)?;
        self.with_session(peer, now, out, |session, out| {
            session.stop(Stop::Shutdown(text.to_owned()), now, out);
        });
        Ok(())
    }

    /// All neighbours: the process is about to end. With `graceful` nothing is said, so that
    /// neighbours with graceful restart keep our routes until we are back (RFC 4724 §4.1); the
    /// speaker is of no use afterwards.
    pub fn shutdown_all(&mut self, graceful: bool, now: Instant, out: &mut Vec<Output>) {
        let peers: Vec<PeerId> = self.neighbors.keys().copied().collect();
        for peer in peers {
            if graceful {
                let Some(n) = self.neighbors.get_mut(&peer) else { continue };
                for serial in std::mem::take(&mut n.inboxes).into_keys() {
                    out.push(Output::Close { conn: ConnId { peer, serial } });
                }
            } else {
                self.with_session(peer, now, out, |session, out| {
                    session.stop(Stop::Shutdown(String::new()), now, out);
                });
            }
        }
    }

    /// What BFD says about the path to a neighbour has changed. A failure ends the session at once
    /// (RFC 5882 §4.2.1); only a strict neighbour needs the path to be up before it starts.
    pub fn handle_path(&mut self, peer: PeerId, up: bool, now: Instant, out: &mut Vec<Output>) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        let strict = n.config.strict_path;
        if up {
            if std::mem::take(&mut n.held) {
                self.with_session(peer, now, out, |session, out| session.start(now, out));
            }
            return;
        }
        // One that was stopped for another reason is not to be started when the path is back.
        n.held = strict && (n.held || !n.session.is_stopped());
        n.counters.path_downs += u64::from(n.up.is_some());
        self.with_session(peer, now, out, |session, out| {
            if !session.is_stopped() {
                session.handle_path_down(strict, now, out);
            }
        });
    }

    pub fn reset(
        &mut self,
        peer: PeerId,
        text: &str,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        self.known(peer)?;
        self.with_session(peer, now, out, |session, out| {
            session.stop(Stop::Reset(text.to_owned()), now, out);
        });
        Ok(())
    }

    /// Asks the neighbour for everything again (RFC 2918).
    pub fn request_refresh(
        &mut self,
        peer: PeerId,
        out: &mut Vec<Output>,
    ) -> Result<(), NeighborError> {
        let n = self.neighbors.get_mut(&peer).ok_or(NeighborError::Unknown)?;
        let up = n.up.as_ref().ok_or(NeighborError::NotEstablished)?;
        if !up.has(&Capability::RouteRefresh) {
            return Err(NeighborError::NoRouteRefresh);
        }
        for family in up.families().iter() {
            let mut bytes = Vec::new();
            let kind = RefreshKind::Request;
            RouteRefresh { afi: afi(family), safi: SAFI_UNICAST, kind }.encode(&mut bytes);
            n.counters.messages_out.route_refresh += 1;
            out.push(Output::Send { conn: up.conn, bytes: bytes.into() });
        }
        Ok(())
    }

    /// Tells the neighbour everything again; [`Self::flush`] afterwards.
    pub fn send_everything(&mut self, peer: PeerId) -> Result<(), NeighborError> {
        let n = self.neighbors.get(&peer).ok_or(NeighborError::Unknown)?;
        let up = n.up.as_ref().ok_or(NeighborError::NotEstablished)?;
        for family in up.families().iter() {
            self.rib.handle_refresh(peer, family);
        }
        Ok(())
    }

    /// A connection that [`Output::Connect`] asked for is there.
    pub fn handle_connected(
        &mut self,
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if !self.neighbors.contains_key(&conn.peer) {
            out.push(Output::Close { conn });
            return;
        }
        self.with_session(conn.peer, now, out, |session, out| {
            session.handle_connected(conn, local, remote, now, out);
        });
    }

    /// Somebody has connected to us. `None`: close it. Otherwise the connection has this name
    /// from now on, and is to be prepared as the transport says.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<(ConnId, Transport)> {
        let Some(peer) = self.by_address.get(&address_key(remote)).copied() else {
            self.counters.unknown_connections += 1;
            return None;
        };
        let n = self.neighbors.get_mut(&peer)?;
        // A neighbour with a fixed local address is not talked to under another one.
        let expected = n.config.transport.local.is_none_or(|l| l == local.ip().to_canonical());
        let mut scratch = std::mem::take(&mut self.scratch);
        let conn = if expected {
            n.session.handle_accepted(local, remote, now, &mut scratch)
        } else {
            None
        };
        match conn {
            Some(conn) => {
                n.inboxes.insert(conn.serial, Inbox::new());
            }
            None => n.counters.refused_connections += 1,
        }
        let transport = n.config.transport.clone();
        self.scratch = scratch;
        self.act(peer, now, out);
        conn.map(|conn| (conn, transport))
    }

    /// A connection could not be made, or has ended. Not called for one that we asked to close
    /// (though that would do no harm).
    pub fn handle_closed(&mut self, conn: ConnId, now: Instant, out: &mut Vec<Output>) {
        if let Some(n) = self.neighbors.get_mut(&conn.peer) {
            n.inboxes.remove(&conn.serial);
        }
        self.with_session(conn.peer, now, out, |session, out| {
            session.handle_closed(conn, now, out);
        });
    }

    /// More is queued for the connection than it takes at once (`true`), or no longer (`false`).
    /// While it is so, the RIB gives the neighbour nothing and later only the newest state. To be
    /// called again with `true` whenever the peer has taken some octets: that is what keeps a slow
    /// peer from being taken for one that does not read (RFC 9687).
    pub fn handle_congested(&mut self, conn: ConnId, congested: bool, now: Instant) {
        let Some(n) = self.neighbors.get_mut(&conn.peer) else { return };
        if n.up.as_ref().is_none_or(|up| up.conn != conn) {
            return;
        }
        n.session.handle_congested(conn, congested, now);
        if n.congested != congested {
            n.congested = congested;
            self.rib.set_congested(conn.peer, congested);
        }
    }

    /// Octets of a connection, as they came. [`Self::flush`] when there is nothing more to read.
    pub fn handle_bytes(
        &mut self,
        conn: ConnId,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut input = bytes;
        while let Some(n) = self.neighbors.get_mut(&conn.peer) {
            // Closed meanwhile, perhaps by what it said: the rest is of no interest.
            let Some(inbox) = n.inboxes.get_mut(&conn.serial) else { return };
            if !inbox.is_empty() {
                let Some((message, rest)) = inbox.complete(input) else { return };
                input = rest;
                self.handle_first(conn, &message, now, out);
                if let Some(n) = self.neighbors.get_mut(&conn.peer)
                    && let Some(inbox) = n.inboxes.get_mut(&conn.serial)
                {
                    inbox.recycle(message);
                }
                continue;
            }
            if input.is_empty() {
                return;
            }
            match self.handle_first(conn, input, now, out) {
                Some(consumed) => input = input.get(consumed..).unwrap_or_default(),
                None => {
                    if let Some(n) = self.neighbors.get_mut(&conn.peer)
                        && let Some(inbox) = n.inboxes.get_mut(&conn.serial)
                    {
                        inbox.keep(input);
                    }
                    return;
                }
            }
        }
    }

    /// Deals with the first message in `input`, or with what is wrong with it. `None`: incomplete.
    fn handle_first(
        &mut self,
        conn: ConnId,
        input: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<usize> {
        let n = self.neighbors.get_mut(&conn.peer)?;
        let inbox = n.inboxes.get(&conn.serial)?;
        let frame = match inbox.next(input) {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(notification) => {
                self.with_session(conn.peer, now, out, |session, out| {
                    session.handle_wire_error(conn, notification, now, out);
                });
                return Some(input.len());
            }
        };
        n.counters.messages_in.count(frame.kind, frame.body);
        let received = n.session.handle_frame(conn, frame.kind, frame.body, now, &mut self.scratch);
        if !self.scratch.is_empty() {
            self.act(conn.peer, now, out);
        }
        match received {
            Received::Handled => {}
            Received::Update => self.handle_update(conn, frame.body, now, out),
            Received::RouteRefresh(refresh) => self.handle_refresh(conn.peer, refresh, now),
        }
        Some(frame.len)
    }

    fn handle_update(&mut self, conn: ConnId, body: &[u8], now: Instant, out: &mut Vec<Output>) {
        let peer = conn.peer;
        let outcome = self.rib.handle_update(peer, body, now);
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        if outcome.error.is_some() || !outcome.attribute_errors.is_empty() {
            log_malformed(n, body);
        }
        n.note_update(&outcome, now);
        if let Some(notification) = outcome.error {
            n.session.handle_wire_error(conn, notification, now, &mut self.scratch);
            return self.act(peer, now, out);
        }
        if let Some(family) = outcome.end_of_rib {
            let mut again = false;
            if let Some(up) = &mut n.up {
                again = up.end_of_rib.has(family) && !up.has(&Capability::EnhancedRouteRefresh);
                up.end_of_rib.set(family, true);
            }
            n.session.handle_end_of_rib(family, &mut self.scratch);
            self.act(peer, now, out);
            if again {
                // Some say that a refresh is complete this way, too.
                self.end_refresh(peer, Families::from_iter([family]));
            }
            self.review_deferral();
        }
        if outcome.announced > 0 {
            self.check_max_prefixes(peer, now, out);
        }
    }

    /// RFC 4271 §6.7: the session ends when more is accepted than allowed. What policy refuses
    /// takes no memory, so it does not count.
    fn check_max_prefixes(&mut self, peer: PeerId, now: Instant, out: &mut Vec<Output>) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        for family in Family::ALL {
            let Some(limit) = n.config.max_prefixes(family) else { continue };
            if self.rib.peer_paths(peer, family) > limit as usize {
                n.counters.max_prefix_teardowns += 1;
                n.session.exceed_max_prefixes(family, limit, now, &mut self.scratch);
                return self.act(peer, now, out);
            }
        }
    }

    fn handle_refresh(&mut self, peer: PeerId, refresh: RouteRefresh, now: Instant) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        let Some(up) = &n.up else { return };
        // RFC 2918 §4: a family that was not negotiated is ignored.
        let family =
            up.families().iter().find(|f| (afi(*f), SAFI_UNICAST) == (refresh.afi, refresh.safi));
        let Some(family) = family else { return };
        let enhanced = up.has(&Capability::EnhancedRouteRefresh);
        match refresh.kind {
            RefreshKind::Request => self.rib.handle_refresh(peer, family),
            // RFC 7313 §4: only between two that have the capability.
            RefreshKind::Borr if enhanced => {
                if self.rib.handle_borr(peer, family) {
                    n.refreshing.set(family, true);
                    n.refreshing_until = now + REFRESH_MAX;
                }
            }
            RefreshKind::Eorr if enhanced => {
                self.end_refresh(peer, Families::from_iter([family]));
            }
            RefreshKind::Borr | RefreshKind::Eorr | RefreshKind::Unknown(_) => {} // §5
        }
    }

    /// The neighbour has said everything again, or had long enough to. What it has not repeated
    /// goes, whether we have asked for it (new policies) or it has announced it (RFC 7313).
    fn end_refresh(&mut self, peer: PeerId, families: Families) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        for family in families.and(n.refreshing).iter() {
            self.rib.sweep_stale(peer, family);
            self.rib.handle_eorr(peer, family);
        }
        n.refreshing = n.refreshing.without(families);
        if n.refreshing.is_empty() {
            n.refreshing_until = Instant::FAR_FUTURE;
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.neighbors
            .values()
            .map(Neighbor::poll_timeout)
            .chain(self.deferred_until)
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
    }

    /// [`Self::flush`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.deferred_until.is_some_and(|until| until <= now) {
            self.deferred_until = None;
        }
        let due: Vec<PeerId> = self
            .neighbors
            .iter()
            .filter(|(_, n)| n.poll_timeout() <= now)
            .map(|(p, _)| *p)
            .collect();
        for peer in due {
            if self.neighbors.get(&peer).is_some_and(|n| n.refreshing_until <= now) {
                self.end_refresh(peer, Families::ALL);
            }
            self.with_session(peer, now, out, |session, out| session.handle_timeout(now, out));
        }
    }

    /// True while nobody is told anything after a restart (RFC 4724 §4.1).
    pub const fn is_deferring(&self) -> bool {
        self.deferred_until.is_some()
    }

    /// True when [`Self::flush`] has something to send.
    pub fn has_pending(&self) -> bool {
        self.deferred_until.is_none() && self.rib.has_pending()
    }

    /// Hands out what neighbours are to be told, a bounded amount; again while
    /// [`Self::has_pending`].
    pub fn flush(&mut self, out: &mut Vec<Output>) {
        if self.deferred_until.is_some() {
            return;
        }
        let neighbors = &mut self.neighbors;
        self.rib.flush(FLUSH_BUDGET, &mut |peer, bytes| {
            let Some(n) = neighbors.get_mut(&peer) else { return };
            let Some(up) = &n.up else { return };
            n.counters.messages_out.count_octets(&bytes);
            out.push(Output::Send { conn: up.conn, bytes });
        });
    }

    fn known(&self, peer: PeerId) -> Result<(), NeighborError> {
        if self.neighbors.contains_key(&peer) { Ok(()) } else { Err(NeighborError::Unknown) }
    }

    fn new_session(&mut self, peer: PeerId, config: &NeighborConfig) -> Session {
        let first_serial = self.next_serial;
        self.next_serial = self.next_serial.wrapping_add(SERIALS_PER_NEIGHBOR);
        let seed = self.seed ^ (u64::from(peer.0) << 32) ^ u64::from(first_serial);
        Session::new(peer, config.session.clone(), seed).with_first_serial(first_serial)
    }

    /// Calls into one session and acts upon what it puts out.
    fn with_session(
        &mut self,
        peer: PeerId,
        now: Instant,
        out: &mut Vec<Output>,
        call: impl FnOnce(&mut Session, &mut Vec<session::Output>),
    ) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        call(&mut n.session, &mut self.scratch);
        self.act(peer, now, out);
    }

    /// Does what the session of `peer` has put into the scratch list.
    fn act(&mut self, peer: PeerId, now: Instant, out: &mut Vec<Output>) {
        let mut outputs = std::mem::take(&mut self.scratch);
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        let mut review = false;
        for output in outputs.drain(..) {
            match output {
                session::Output::Connect { conn } => {
                    n.inboxes.insert(conn.serial, Inbox::new());
                    let transport = Box::new(n.config.transport.clone());
                    out.push(Output::Connect { conn, transport });
                }
                session::Output::Send { conn, bytes } => {
                    n.counters.messages_out.count_octets(&bytes);
                    out.push(Output::Send { conn, bytes: bytes.into() });
                }
                session::Output::Close { conn } => {
                    n.inboxes.remove(&conn.serial);
                    out.push(Output::Close { conn });
                }
                session::Output::Up(up) => {
                    let up = *up;
                    if let Some(inbox) = n.inboxes.get_mut(&up.conn.serial) {
                        inbox.max_len = up.negotiated.max_len;
                    }
                    let up = UpState {
                        conn: up.conn,
                        direction: up.direction,
                        local: up.local,
                        remote: up.remote,
                        negotiated: up.negotiated,
                        open: up.open,
                        hold_time: up.hold_time,
                        graceful: up.graceful,
                        end_of_rib: Families::NONE,
                    };
                    self.rib.add_peer(peer, n.peer_info(&up));
                    n.up = Some(up);
                    n.congested = false;
                    n.counters.established += 1;
                    n.last_change = now;
                    review = true;
                    let address = n.config.transport.remote.ip();
                    tracing::info!(neighbor = %address, "BGP session is up");
                    out.push(Output::SessionUp { peer });
                }
                session::Output::Down { reason, retained } => {
                    let keep: Vec<Family> = retained.iter().collect();
                    self.rib.peer_down(peer, &keep);
                    n.up = None;
                    n.congested = false;
                    n.refreshing = Families::NONE;
                    n.refreshing_until = Instant::FAR_FUTURE;
                    n.counters.flaps += 1;
                    n.last_change = now;
                    review = true;
                    let reason = reason.to_string();
                    let address = n.config.transport.remote.ip();
                    tracing::warn!(neighbor = %address, %reason, "BGP session is down");
                    n.set_error(reason.clone(), now);
                    n.last_down.clone_from(&n.last_error);
                    out.push(Output::SessionDown { peer, reason });
                }
                session::Output::Failed { reason } => {
                    n.counters.failed_attempts += 1;
                    let address = n.config.transport.remote.ip();
                    tracing::debug!(neighbor = %address, %reason, "BGP connection failed");
                    let transport = &n.config.transport;
                    let is_protected =
                        transport.md5.is_some() || transport.ttl_security_hops.is_some();
                    // Segments without the right signature or TTL are dropped in silence.
                    n.set_error(
                        match reason {
                            Reason::NoAnswer if is_protected => {
                                format!("{reason}, as with another TCP-MD5 key or TTL")
                            }
                            _ => reason.to_string(),
                        },
                        now,
                    );
                }
                session::Output::StaleExpired(family) => {
                    self.rib.sweep_stale(peer, family);
                }
            }
        }
        self.scratch = outputs; // keeps its room
        if review {
            self.review_deferral();
        }
    }

    /// Policies have changed: the RIB starts anew with this neighbour, which is asked to say
    /// everything again.
    fn renew_tables(&mut self, peer: PeerId, now: Instant, out: &mut Vec<Output>) {
        let Some(n) = self.neighbors.get_mut(&peer) else { return };
        let Some(up) = &n.up else { return };
        if up.has(&Capability::RouteRefresh) {
            self.rib.add_peer(peer, n.peer_info(up));
            n.refreshing = up.families();
            n.refreshing_until = now + REFRESH_MAX;
            let asked = self.request_refresh(peer, out);
            debug_assert!(asked.is_ok(), "up, and with the capability");
        } else {
            self.with_session(peer, now, out, |session, out| {
                session.stop(Stop::Reset(String::new()), now, out);
            });
        }
    }

    /// RFC 4724 §4.1: deferral ends when every neighbour that we wait for has sent End-of-RIB. Not
    /// waited for are those without graceful restart, and those that restart themselves.
    fn review_deferral(&mut self) {
        if self.deferred_until.is_none() {
            return;
        }
        let waiting =
            self.neighbors.values().filter(|n| !n.session.is_stopped()).any(|n| match &n.up {
                None => true,
                Some(up) => match up.graceful {
                    Some(g) if !g.restarting => !up.families().without(up.end_of_rib).is_empty(),
                    Some(_) | None => false,
                },
            });
        if !waiting {
            self.deferred_until = None;
        }
    }
}
