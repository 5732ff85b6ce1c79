//! ETR: keeps what is attached here registered with each Map-Server (RFC 9301 §5.6, §5.7, §8.2).
//!
//! A change leaves in the turn it is made, packed with whatever else has changed. At most
//! [`WINDOW`] Map-Registers are outstanding with a server, so that a hundred thousand prefixes go
//! out as fast as the server confirms them, and not as one burst. The periodic repetition goes
//! packet by packet, spread over the interval.
//!
//! **Each transmission has its own nonce**, repetitions too. §5.7 wants "the original" repeated, but
//! by §5.6 a server takes no nonce that is not greater than the last: if only the Map-Notify was
//! lost, or a later Map-Register has been taken meanwhile, the original would be dropped for ever.
//! §5.6 also says it so: the nonce "is incremented each time a Map-Register message is sent".

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use super::nonce::Growing;
use super::record::{self, is_not_older, rlocs_of};
use super::{Nonces, Output, Persist};
use crate::auth::KeyChain;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, RlocSet, SiteId, XtrId};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{CONTROL_PORT, EidRecord, MapNotify, MapRegister, Message};

/// First wait for a Map-Notify; it doubles with each repetition (§5.7).
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between repetitions (§5.7).
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Interval of Map-Registers in the steady state (§8.2).
const REFRESH: Duration = Duration::from_secs(60);
/// A refresh takes those along that are due within this time: fewer packets.
const REFRESH_AHEAD: Duration = Duration::from_secs(10);
/// A server that has not been heard for this long while it was asked may have been down; when it
/// answers again, what waits for a late repetition goes at once.
const SILENT_AFTER: Duration = Duration::from_secs(4);
/// For how long a withdrawal is repeated. The server has forgotten what nobody refreshes after
/// three minutes (§8.2).
const WITHDRAW_FOR: Duration = Duration::from_secs(600);

/// Map-Registers outstanding with one server. What is more waits; a change that finds all of them
/// taken by repetitions takes the place of the one that was repeated most.
pub const WINDOW: usize = 64;
/// Of them, those that repetitions of the steady state may take.
const WINDOW_REFRESH: usize = WINDOW / 2;

/// Prefixes registered at once. More are refused, counted, and the caller is told.
pub const REGISTRATIONS_MAX: usize = 1_000_000;

/// Octets of one Map-Register, so that it crosses common paths whole.
const MESSAGE_LEN_MAX: usize = 1400;
/// Octets beside the records: head, the longest digest, xTR-ID and Site-ID.
const HEAD_LEN: usize = 16 + 32 + 24;
/// The count has 8 bits; half of that is never reached with records of 34 octets.
const RECORDS_MAX: usize = 128;

/// One Map-Server of the configuration.
#[derive(Clone, Debug)]
pub struct MapServer {
    pub addr: IpAddr,
    pub keys: Arc<KeyChain>,
}

#[derive(Clone, Debug)]
pub struct RegistrarConfig {
    pub servers: Vec<MapServer>,
    pub id: Option<(XtrId, SiteId)>,
    /// P: the server answers for us.
    pub proxy_reply: bool,
    /// a: several xTRs register the same prefixes.
    pub merge: bool,
    /// TTL of the mappings, in minutes.
    pub ttl_min: u32,
    /// [`Persist::RegisterNonce`] as recorded. Without a record, something that is above what an
    /// earlier run may have used, such as the time of day in microseconds.
    pub nonce_below: u64,
    /// [`Persist::NotifyNonce`] as recorded.
    pub notify_below: BTreeMap<IpAddr, u64>,
}

/// Refusals and repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistrarCounts {
    pub sent: u64,
    pub repeated: u64,
    pub confirmed: u64,
    /// A prefix was not registered because [`REGISTRATIONS_MAX`] are.
    pub full: u64,
    /// Prefixes of a Map-Register that its Map-Notify does not name.
    pub not_confirmed: u64,
    /// Withdrawals that no Map-Notify has ever confirmed.
    pub withdrawals_given_up: u64,
    pub notify_bad_digest: u64,
    /// From nobody that is a Map-Server of ours.
    pub notify_unknown_server: u64,
    /// An unsolicited one whose nonce is not greater than the last.
    pub notify_replayed: u64,
}

/// How one server sees a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not sent yet.
    Queued,
    /// Sent, no Map-Notify yet.
    Sent,
    Confirmed,
    /// The Map-Notify does not name it: the server does not take it from us.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationView {
    pub iid: InstanceId,
    pub prefix: Prefix,
    pub rlocs: RlocSet,
    pub version: MapVersion,
    pub withdrawn: bool,
    pub servers: Vec<AtServer>,
}

/// How one server has a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtServer {
    pub server: IpAddr,
    pub state: RegistrationState,
    /// When it is registered again; `None` while that is under way.
    pub refresh_at: Option<Instant>,
}

type Key = (InstanceId, Prefix);

#[derive(Debug)]
struct Wanted {
    rlocs: RlocSet,
    version: MapVersion,
    withdrawn_at: Option<Instant>,
    /// Grows with each change; a Map-Notify is about the one that was sent.
    revision: u64,
    /// One for each server.
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: RegistrationState,
    /// The server has told that it is registered elsewhere: it takes no withdrawal from us.
    elsewhere: bool,
    /// Its place in the server's refreshes.
    refresh_at: Option<Instant>,
}

#[derive(Debug)]
struct Batch {
    /// Of the last transmission, and of the one before: a Map-Notify may be late.
    nonces: (u64, Option<u64>),
    keys: Vec<(Key, u64)>,
    retry_at: Instant,
    wait: Duration,
    /// Nothing in it is new to the server.
    refresh: bool,
}

#[derive(Debug)]
struct Server {
    addr: IpAddr,
    keys: Arc<KeyChain>,
    /// Changes, in order. What is no longer [`RegistrationState::Queued`] is skipped.
    changed: VecDeque<Key>,
    /// What had to make room for a change, behind all changes.
    backlog: BTreeSet<Key>,
    batches: Vec<Batch>,
    refresh: BTreeSet<(Instant, Key)>,
    heard_at: Instant,
    silent: bool,
    /// Nonces of unsolicited Map-Notifies.
    notify: Growing,
}

#[derive(Debug)]
pub struct Registrar {
    servers: Vec<Server>,
    id: Option<(XtrId, SiteId)>,
    proxy_reply: bool,
    security_capable: bool,
    merge: bool,
    ttl_min: u32,
    wanted: BTreeMap<Key, Wanted>,
    revision: u64,
    nonce: Growing,
    jitter: Nonces,
    counts: RegistrarCounts,
    pub(super) wanted_max: usize,
}

impl Registrar {
    pub fn new(config: RegistrarConfig, jitter: Nonces) -> Self {
        let server = |s: MapServer| Server {
            notify: Growing::new(config.notify_below.get(&s.addr).copied().unwrap_or(0)),
            addr: s.addr,
            keys: s.keys,
            changed: VecDeque::new(),
            backlog: BTreeSet::new(),
            batches: Vec::new(),
            refresh: BTreeSet::new(),
            heard_at: Instant::ZERO,
            silent: false,
        };
        Self {
            servers: config.servers.into_iter().map(server).collect(),
            id: config.id,
            proxy_reply: config.proxy_reply,
            security_capable: false,
            merge: config.merge,
            ttl_min: config.ttl_min.max(1),
            wanted: BTreeMap::new(),
            revision: 0,
            nonce: Growing::new(config.nonce_below),
            jitter,
            counts: RegistrarCounts::default(),
            wanted_max: REGISTRATIONS_MAX,
        }
    }

    /// S (RFC 9303 §6.3): questions about what is registered from now on may come with a key.
    pub fn set_security_capable(&mut self) {
        self.security_capable = true;
    }

    /// What should be registered for a prefix. It leaves with the next [`Self::handle_timeout`],
    /// which is due at once, together with what else changes in this turn. False when full.
    pub fn set(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        rlocs: RlocSet,
        version: MapVersion,
    ) -> bool {
        let key = (iid, prefix);
        if let Some(wanted) = self.wanted.get(&key) {
            let same = wanted.rlocs == rlocs && wanted.version == version;
            if same && wanted.withdrawn_at.is_none() {
                return true;
            }
        } else if self.wanted.len() >= self.wanted_max {
            self.counts.full += 1;
            return false;
        }
        self.change(key, rlocs, version, None);
        true
    }

    /// The prefix is no longer here: registered with TTL 0 until each server has confirmed it. A
    /// server that has told us where it is instead needs no withdrawal, and would take none.
    pub fn withdraw(&mut self, iid: InstanceId, prefix: Prefix, now: Instant) {
        let key = (iid, prefix);
        let Some(wanted) = self.wanted.get(&key).filter(|w| w.withdrawn_at.is_none()) else {
            return;
        };
        let (rlocs, version) = (wanted.rlocs.clone(), wanted.version);
        let elsewhere: Vec<bool> = wanted.slots.iter().map(|slot| slot.elsewhere).collect();
        self.change(key, rlocs, version, Some(now));
        if self.servers.is_empty() {
            self.wanted.remove(&key);
        }
        for (n, _) in elsewhere.iter().enumerate().filter(|(_, elsewhere)| **elsewhere) {
            self.settle(n, key, RegistrationState::Confirmed);
        }
    }

    fn change(&mut self, key: Key, rlocs: RlocSet, version: MapVersion, at: Option<Instant>) {
        self.revision += 1;
        let slot = Slot { state: RegistrationState::Queued, elsewhere: false, refresh_at: None };
        let slots = vec![slot; self.servers.len()];
        let new = Wanted { rlocs, version, withdrawn_at: at, revision: self.revision, slots };
        let old = self.wanted.insert(key, new);
        for (n, server) in self.servers.iter_mut().enumerate() {
            let old = old.as_ref().map(|old| old.slots[n]);
            if let Some(at) = old.and_then(|slot| slot.refresh_at) {
                server.refresh.remove(&(at, key));
            }
            let waits = old.is_some_and(|slot| slot.state == RegistrationState::Queued);
            if server.backlog.remove(&key) || !waits {
                server.changed.push_back(key);
            }
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        self.servers.iter().map(Server::poll_timeout).min().unwrap_or(Instant::FAR_FUTURE)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        for n in 0..self.servers.len() {
            self.repeat(n, now, out);
            self.send_changes(n, now, out);
            self.send_refreshes(n, now, out);
        }
    }

    /// Sends again what is overdue, as it is wanted now. What is due together shares messages: the
    /// fewer there are, the fewer overtake each other, and a server drops what was overtaken.
    fn repeat(&mut self, n: usize, now: Instant, out: &mut Vec<Output>) {
        let batches = std::mem::take(&mut self.servers[n].batches);
        let (due, rest): (Vec<_>, Vec<_>) = batches.into_iter().partition(|b| b.retry_at <= now);
        self.servers[n].batches = rest;
        if due.is_empty() {
            return;
        }
        let server = &mut self.servers[n];
        server.silent |= now - server.heard_at >= SILENT_AFTER;
        let mut again: Vec<Batch> = Vec::new();
        let mut left = Room::new();
        for mut batch in due {
            self.leave_out_the_stale(n, &mut batch, now);
            if batch.keys.is_empty() {
                continue;
            }
            if let Some(shared) = again.last_mut()
                && left.take_all(&batch.keys, &self.wanted)
            {
                shared.keys.append(&mut batch.keys);
                shared.wait = shared.wait.min(batch.wait);
                shared.refresh &= batch.refresh;
                // A late Map-Notify of one part would say nothing about the other.
                shared.nonces.1 = None;
                continue;
            }
            left = Room::new();
            left.take_all(&batch.keys, &self.wanted);
            batch.nonces.1 = Some(batch.nonces.0);
            again.push(batch);
        }
        for batch in again {
            self.send_again(n, batch, now, out);
        }
    }

    fn send_again(&mut self, n: usize, batch: Batch, now: Instant, out: &mut Vec<Output>) {
        self.counts.repeated += 1;
        let wait = (batch.wait * 2).min(RETRY_MAX);
        self.send(n, batch.keys, batch.refresh, (wait, batch.nonces.1), now, out);
    }

    /// What has changed since is in another message; a withdrawal is not repeated for ever.
    fn leave_out_the_stale(&mut self, n: usize, batch: &mut Batch, now: Instant) {
        let mut given_up = Vec::new();
        batch.keys.retain(|&(key, revision)| {
            let Some(wanted) = self.wanted.get(&key).filter(|w| w.revision == revision) else {
                return false;
            };
            let over = wanted.withdrawn_at.is_some_and(|at| now - at >= WITHDRAW_FOR);
            if over {
                given_up.push(key);
            }
            !over
        });
        for key in given_up {
            self.counts.withdrawals_given_up += 1;
            self.settle(n, key, RegistrationState::Confirmed);
        }
    }

    fn send_changes(&mut self, n: usize, now: Instant, out: &mut Vec<Output>) {
        loop {
            let server = &mut self.servers[n];
            if server.batches.len() >= WINDOW && !self.make_room(n) {
                return;
            }
            let mut room = Room::new();
            let mut keys = Vec::new();
            let server = &mut self.servers[n];
            while let Some(key) = server.next_queued() {
                if let Some(wanted) = self.wanted.get_mut(&key)
                    && wanted.slots[n].state == RegistrationState::Queued
                {
                    if !room.take(key, &wanted.rlocs) {
                        break;
                    }
                    wanted.slots[n].state = RegistrationState::Sent;
                    keys.push((key, wanted.revision));
                }
                server.pop_queued();
            }
            if keys.is_empty() {
                return;
            }
            self.send(n, keys, false, (RETRY_FIRST, None), now, out);
        }
    }

    /// All places are taken, and a change waits: the message that was repeated most goes back
    /// behind the changes. Without a change, or when none was repeated, everybody waits.
    fn make_room(&mut self, n: usize) -> bool {
        let server = &mut self.servers[n];
        if server.changed.is_empty() {
            return false;
        }
        let longest = server.batches.iter().enumerate().max_by_key(|(_, batch)| batch.wait);
        let Some((at, _)) = longest.filter(|(_, batch)| batch.wait > RETRY_FIRST) else {
            return false;
        };
        let batch = server.batches.swap_remove(at);
        for (key, revision) in batch.keys {
            if let Some(wanted) = self.wanted.get_mut(&key)
                && wanted.revision == revision
            {
                wanted.slots[n].state = RegistrationState::Queued;
                server.backlog.insert(key);
            }
        }
        true
    }

    fn send_refreshes(&mut self, n: usize, now: Instant, out: &mut Vec<Output>) {
        loop {
            let server = &mut self.servers[n];
            let due = server.refresh.first().is_some_and(|&(at, _)| at <= now);
            if !due || server.batches.len() >= WINDOW_REFRESH {
                return;
            }
            let mut room = Room::new();
            let mut keys = Vec::new();
            while let Some(&(at, key)) = server.refresh.first() {
                let wanted = self.wanted.get_mut(&key).expect("a change takes it out of here");
                if at > now + REFRESH_AHEAD || !room.take(key, &wanted.rlocs) {
                    break;
                }
                wanted.slots[n].state = RegistrationState::Sent;
                wanted.slots[n].refresh_at = None;
                keys.push((key, wanted.revision));
                server.refresh.pop_first();
            }
            self.send(n, keys, true, (RETRY_FIRST, None), now, out);
        }
    }

    fn send(
        &mut self,
        n: usize,
        keys: Vec<(Key, u64)>,
        refresh: bool,
        (wait, previous): (Duration, Option<u64>),
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let (nonce, below) = self.nonce.next();
        if let Some(below) = below {
            out.push(Output::Persist(Persist::RegisterNonce { below }));
        }
        let records = keys.iter().map(|(key, _)| self.record(*key)).collect();
        let server = &mut self.servers[n];
        let message = MapRegister {
            proxy_reply: self.proxy_reply,
            security_capable: self.security_capable,
            eid_notify: false,
            use_ttl: false,
            merge: self.merge,
            want_notify: true,
            nonce,
            authentication: server.keys.authentication(),
            records,
            id: self.id,
        };
        self.counts.sent += 1;
        out.push(Output::Send {
            to: SocketAddr::new(server.addr, CONTROL_PORT),
            message: Message::MapRegister(message),
            sign_with: Some(Arc::clone(&server.keys)),
        });
        let retry_at = now + wait;
        let nonces = (nonce, previous);
        server.batches.push(Batch { nonces, keys, retry_at, wait, refresh });
    }

    fn record(&self, key: Key) -> EidRecord {
        let wanted = &self.wanted[&key];
        EidRecord {
            ttl_min: if wanted.withdrawn_at.is_some() { 0 } else { self.ttl_min },
            action: NegativeAction::NoAction,
            authoritative: true,
            version: wanted.version,
            eid: record::eid(key.0, key.1),
            // Whose locators they are is told by registering them; §5.4 keeps p for replies.
            rlocs: record::rloc_records(&wanted.rlocs, None, |_| true),
        }
    }

    /// Whether the nonce is of a Map-Register that is outstanding.
    pub fn is_waiting_for(&self, nonce: u64) -> bool {
        self.find_batch(nonce).is_some()
    }

    fn find_batch(&self, nonce: u64) -> Option<(usize, usize)> {
        self.servers.iter().enumerate().find_map(|(n, server)| {
            let is = |batch: &Batch| batch.nonces.0 == nonce || batch.nonces.1 == Some(nonce);
            server.batches.iter().position(is).map(|at| (n, at))
        })
    }

    /// A Map-Notify with the nonce of one of our Map-Registers, or one that nobody asked for. `raw`
    /// is the datagram, for its digest.
    pub fn handle_notify(
        &mut self,
        from: IpAddr,
        notify: &MapNotify,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match self.find_batch(notify.nonce) {
            Some((n, _)) if self.servers[n].keys.verify(raw).is_err() => {
                self.counts.notify_bad_digest += 1;
            }
            Some((n, at)) => {
                let batch = self.servers[n].batches.swap_remove(at);
                self.handle_confirmation(n, batch, notify, now, out);
                self.tell_moved_away(Some(n), notify, out);
            }
            None => self.handle_unsolicited(from, notify, raw, out),
        }
    }

    fn handle_confirmation(
        &mut self,
        n: usize,
        batch: Batch,
        notify: &MapNotify,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let server = &mut self.servers[n];
        server.heard_at = now;
        if std::mem::take(&mut server.silent) {
            for other in &mut server.batches {
                other.retry_at = now;
                other.wait = RETRY_FIRST;
            }
        }
        let named: BTreeSet<Key> =
            notify.records.iter().filter_map(|r| record::prefix_of(&r.eid)).collect();
        let next = self.next_refresh(batch.refresh, now);
        for (key, revision) in batch.keys {
            if self.wanted.get(&key).is_none_or(|wanted| wanted.revision != revision) {
                continue;
            }
            // A server that copies no records confirms the message as a whole.
            if named.is_empty() || named.contains(&key) {
                let (addr, (iid, prefix)) = (self.servers[n].addr, key);
                if !batch.refresh {
                    out.push(Output::Registered { server: addr, iid, prefix });
                }
                self.counts.confirmed += 1;
                self.settle(n, key, RegistrationState::Confirmed);
            } else {
                self.counts.not_confirmed += 1;
                self.settle(n, key, RegistrationState::Refused);
            }
            if let Some(wanted) = self.wanted.get_mut(&key)
                && wanted.withdrawn_at.is_none()
            {
                wanted.slots[n].refresh_at = Some(next);
                self.servers[n].refresh.insert((next, key));
            }
        }
    }

    /// One time for a whole message, so that its records stay together; messages that went out
    /// together, as after a start, are spread over half the interval.
    fn next_refresh(&mut self, refresh: bool, now: Instant) -> Instant {
        let spread = if refresh { REFRESH / 12 } else { REFRESH / 2 };
        let spread_us = u64::try_from(spread.as_micros()).expect("less than a minute");
        now + (REFRESH - Duration::from_micros(self.jitter.below(spread_us)))
    }

    /// A withdrawal that every server has settled is forgotten.
    fn settle(&mut self, n: usize, key: Key, state: RegistrationState) {
        let Some(wanted) = self.wanted.get_mut(&key) else { return };
        wanted.slots[n].state = state;
        let settled = |slot: &Slot| match slot.state {
            RegistrationState::Confirmed | RegistrationState::Refused => true,
            RegistrationState::Queued | RegistrationState::Sent => false,
        };
        if wanted.withdrawn_at.is_some() && wanted.slots.iter().all(settled) {
            self.wanted.remove(&key);
        }
    }

    /// §5.7: is believed by digest, acknowledged, and told once.
    fn handle_unsolicited(
        &mut self,
        from: IpAddr,
        notify: &MapNotify,
        raw: &[u8],
        out: &mut Vec<Output>,
    ) {
        // A server with several addresses may send from another one; its key says who it is.
        let by_addr = self.servers.iter().position(|server| server.addr == from);
        let proves = |server: &Server| server.keys.verify(raw).is_ok();
        let Some(n) = by_addr.or_else(|| self.servers.iter().position(proves)) else {
            self.counts.notify_unknown_server += 1;
            return;
        };
        let server = &mut self.servers[n];
        if !proves(server) {
            self.counts.notify_bad_digest += 1;
            return;
        }
        let repeated = notify.nonce == server.notify.last();
        if !repeated {
            if notify.nonce < server.notify.last() {
                self.counts.notify_replayed += 1;
                return;
            }
            if let Some(below) = server.notify.raise(notify.nonce) {
                out.push(Output::Persist(Persist::NotifyNonce { server: server.addr, below }));
            }
        }
        // The same once more: our acknowledgement was lost.
        out.push(acknowledge(from, notify, &server.keys));
        if !repeated {
            self.tell_moved_away(Some(n), notify, out);
        }
    }

    /// A verified publication, to the subscriber that we are too.
    pub fn handle_publication(&mut self, notify: &MapNotify, out: &mut Vec<Output>) {
        self.tell_moved_away(None, notify, out);
    }

    /// A server's records of our prefixes with locators of which none is ours.
    fn tell_moved_away(&mut self, n: Option<usize>, notify: &MapNotify, out: &mut Vec<Output>) {
        for record in &notify.records {
            let Some(key) = record::prefix_of(&record.eid) else { continue };
            let Some(wanted) = self.wanted.get_mut(&key) else { continue };
            let rlocs = rlocs_of(record);
            let elsewhere = rlocs.iter().all(|r| wanted.rlocs.find(r.addr).is_none());
            let told = elsewhere
                && !rlocs.is_empty()
                && wanted.withdrawn_at.is_none()
                && is_not_older(record.version, wanted.version);
            if told {
                if let Some(n) = n {
                    wanted.slots[n].elsewhere = true;
                }
                let ((iid, prefix), version) = (key, record.version);
                out.push(Output::MovedAway { iid, prefix, rlocs, version });
            }
        }
    }

    /// The longest registered prefix that covers this one.
    pub fn find(&self, iid: InstanceId, covered: Prefix) -> Option<(Prefix, &RlocSet, MapVersion)> {
        (0..=covered.len()).rev().find_map(|len| {
            let prefix = Prefix::new(covered.addr(), len)?;
            let wanted = self.wanted.get(&(iid, prefix))?;
            wanted.withdrawn_at.is_none().then_some((prefix, &wanted.rlocs, wanted.version))
        })
    }

    pub fn ttl_min(&self) -> u32 {
        self.ttl_min
    }

    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub fn counts(&self) -> RegistrarCounts {
        self.counts
    }

    /// Registrations in order, beginning after `after`.
    pub fn registrations(
        &self,
        after: Option<(InstanceId, Prefix)>,
    ) -> impl Iterator<Item = RegistrationView> + '_ {
        let from = after.map_or(Unbounded, Excluded);
        self.wanted.range((from, Unbounded)).map(|(&(iid, prefix), wanted)| {
            let servers = self.servers.iter().zip(&wanted.slots);
            RegistrationView {
                iid,
                prefix,
                rlocs: wanted.rlocs.clone(),
                version: wanted.version,
                withdrawn: wanted.withdrawn_at.is_some(),
                servers: servers
                    .map(|(server, slot)| AtServer {
                        server: server.addr,
                        state: slot.state,
                        refresh_at: slot.refresh_at,
                    })
                    .collect(),
            }
        })
    }
}

impl Server {
    /// Changes first.
    fn next_queued(&self) -> Option<Key> {
        self.changed.front().or_else(|| self.backlog.first()).copied()
    }

    fn pop_queued(&mut self) {
        if self.changed.pop_front().is_none() {
            self.backlog.pop_first();
        }
    }

    fn poll_timeout(&self) -> Instant {
        let retry = self.batches.iter().map(|batch| batch.retry_at).min();
        let full = self.batches.len() >= WINDOW;
        let replaceable = || self.batches.iter().any(|batch| batch.wait > RETRY_FIRST);
        let change = if full {
            !self.changed.is_empty() && replaceable()
        } else {
            !self.changed.is_empty() || !self.backlog.is_empty()
        };
        if change {
            return Instant::ZERO;
        }
        let refresh = self.refresh.first().map(|&(at, _)| at);
        let refresh = refresh.filter(|_| self.batches.len() < WINDOW_REFRESH);
        retry.into_iter().chain(refresh).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// §5.7: a Map-Notify-Ack has the contents of the Map-Notify, and its own digest.
pub(super) fn acknowledge(server: IpAddr, notify: &MapNotify, keys: &Arc<KeyChain>) -> Output {
    let ack = MapNotify { authentication: keys.authentication(), ..notify.clone() };
    Output::Send {
        to: SocketAddr::new(server, CONTROL_PORT),
        message: Message::MapNotifyAck(ack),
        sign_with: Some(Arc::clone(keys)),
    }
}

/// Room for records in one message.
struct Room {
    octets: usize,
    records: usize,
}

impl Room {
    fn new() -> Self {
        Self { octets: MESSAGE_LEN_MAX - HEAD_LEN, records: RECORDS_MAX }
    }

    /// The first record always fits: even with 32 locators it is shorter than a message.
    fn take(&mut self, (iid, prefix): Key, rlocs: &RlocSet) -> bool {
        const RECORD: usize = 10;
        const INSTANCE_LCAF: usize = 12;
        const AFI: usize = 2;
        let octets = |addr: IpAddr| if addr.is_ipv4() { 4 } else { 16 };
        let instance = if iid == InstanceId::default() { 0 } else { INSTANCE_LCAF };
        let eid = AFI + octets(prefix.addr()) + instance;
        let locators: usize = rlocs.iter().map(|r| 8 + octets(r.addr)).sum();
        let len = RECORD + eid + locators;
        let fits = len <= self.octets && self.records > 0;
        if fits {
            self.octets -= len;
            self.records -= 1;
        }
        fits
    }

    /// All of them, or, as far as it matters, none.
    fn take_all(&mut self, keys: &[(Key, u64)], wanted: &BTreeMap<Key, Wanted>) -> bool {
        keys.iter().all(|(key, _)| self.take(*key, &wanted[key].rlocs))
    }
}
