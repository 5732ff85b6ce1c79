//! Subscriptions as they are asked for, and publications (RFC 9437 §5, §6).
//!
//! A change of a prefix is told to the subscribers of it and of everything that covers it, and to
//! those of what is inside it and has nothing closer: for them it is where their EID now is.
//!
//! Who subscribes to an aggregate is told at first where it leads; then, a batch for each
//! acknowledgement, what is registered inside: hosts that were away before it came. RFC 9437 does
//! not say this, but without it the aggregate would hide them until they move again.

use std::net::{IpAddr, SocketAddr};

use super::key::EidKey;
use super::outstanding::{About, AckError, SubIndex, Waiting, Whom};
use super::pairs::PairKey;
use super::pubsub::{ItrIndex, State, SubscribeError};
use super::register::{eid, eid_key, find_bound};
use super::registrations::{Flags, Slot};
use super::reply::{Match, negative};
use super::sites::XtrIndex;
use super::{MapServer, Mapping, Mappings, Output, Refusal, SignWith};
use crate::types::lisp::{InstanceId, NegativeAction};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{
    CONTROL_PORT, EidRecord, MapNotify, MapRequest, Message, RequestRecord, RlocAddress,
};

/// Records of one Map-Notify that tells what is inside an aggregate; with two IPv6 locators each
/// they fit an Ethernet frame.
const BATCH_MAX: usize = 12;
/// EIDs that are looked at for one batch.
const BATCH_SCAN_MAX: usize = 4096;
/// Subscriptions inside a changed prefix that are told of it; more are counted, and learn it by
/// their TTL.
const INSIDE_MAX: usize = 16_384;

impl MapServer {
    /// Takes the subscriptions out of a request. What is left has to be answered by a Map-Reply:
    /// `replies` are refusals, the returned records are ordinary questions.
    #[expect(clippy::too_many_arguments, reason = "a request, where it came from, two answers")]
    pub(super) fn subscribe(
        &mut self,
        now: Instant,
        from: SocketAddr,
        request: &MapRequest,
        records: &[RequestRecord],
        mappings: &impl Mappings,
        replies: &mut Vec<EidRecord>,
        out: &mut Vec<Output>,
    ) -> Result<Vec<RequestRecord>, Refusal> {
        let Some(id) = request.id else {
            // N without I: nobody to subscribe (RFC 9437 §4). An ordinary question.
            self.refuse(from, Refusal::Combination, out);
            return Ok(records.to_vec());
        };
        let (wanted, mut others): (Vec<_>, Vec<_>) =
            records.iter().cloned().partition(|r| r.notify && eid_key(&r.eid).is_some());
        let unsubscribes = matches!(request.itr_rlocs[..], [RlocAddress::None]);
        let mut rlocs: Vec<IpAddr> = request.itr_rlocs.iter().filter_map(RlocAddress::ip).collect();
        // Tried in this order: first those of the family that the request came by.
        rlocs.sort_by_key(|r| r.is_ipv4() != from.is_ipv4());
        if rlocs.is_empty() && !unsubscribes {
            return Err(Refusal::ItrRloc);
        }
        let denied = |record: &RequestRecord| {
            eid_key(&record.eid).map(|key| negative(key, NegativeAction::DropPolicyDenied, 1))
        };
        let Ok(itr) = self.subscriptions.admit(id, from.ip(), &rlocs) else {
            self.refuse(from, Refusal::SubscriberNotAllowed, out);
            replies.extend(wanted.iter().filter_map(denied));
            return Ok(others);
        };
        // All or nothing: one old record says that the whole message is old.
        let fresh = |r: &RequestRecord| {
            let key = eid_key(&r.eid)?;
            Some(self.subscriptions.check_nonce(itr, key, request.nonce))
        };
        let checked: Vec<_> = wanted.iter().filter_map(fresh).collect();
        if checked.contains(&Err(SubscribeError::Replay)) {
            return Err(Refusal::Replay);
        }
        let mut told: Vec<(SubIndex, EidRecord)> = Vec::new();
        let mut ended: Vec<EidRecord> = Vec::new();
        for (record, checked) in wanted.into_iter().zip(checked) {
            let Some(key) = eid_key(&record.eid) else { continue };
            let done = checked.and_then(|()| {
                let stored = self.subscriptions.take_nonce(itr, key, request.nonce);
                out.push(Output::Persist(stored));
                if self.find_denied(key).is_some() {
                    return Err(SubscribeError::Policy);
                }
                if unsubscribes {
                    let found = self.find_match(key, mappings);
                    self.unsubscribe(itr, key, out)?;
                    ended.push(self.subscribed_record(key, found));
                } else {
                    told.push(self.subscribe_one(now, itr, key, &rlocs, request, mappings, out)?);
                }
                Ok(())
            });
            match done {
                Ok(()) => {}
                Err(SubscribeError::Policy) => {
                    self.refuse(from, Refusal::SubscriberNotAllowed, out);
                    replies.extend(denied(&record));
                }
                Err(SubscribeError::Limit) => {
                    self.refuse(from, Refusal::SubscriptionLimit, out);
                    others.push(record);
                }
                Err(SubscribeError::Replay) => return Err(Refusal::Replay),
            }
        }
        let sign_with = SignWith { keys: self.subscriptions.keys(itr).clone(), key: None };
        let notify = |records| MapNotify {
            nonce: request.nonce,
            authentication: sign_with.authentication(),
            records,
            id: None,
        };
        if !ended.is_empty() {
            // To where the request came from; nothing is left that could wait for an answer.
            out.push(Output::Send {
                to: SocketAddr::new(from.ip(), CONTROL_PORT),
                message: Message::MapNotify(notify(ended)),
                sign_with: Some(sign_with.clone()),
            });
        }
        if let Some(&(first, _)) = told.first() {
            let waiting = Waiting {
                whom: Whom::Subscribing(first),
                about: self.subscriptions.get(first).key.into(),
                notify: notify(told.into_iter().map(|(_, record)| record).collect()),
                sign_with: sign_with.clone(),
                addrs: rlocs,
            };
            self.outstanding.send(waiting, now, now, out);
        }
        Ok(others)
    }

    #[expect(clippy::too_many_arguments, reason = "who asks for what, and the answer")]
    fn subscribe_one(
        &mut self,
        now: Instant,
        itr: ItrIndex,
        asked: EidKey,
        rlocs: &[IpAddr],
        request: &MapRequest,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) -> Result<(SubIndex, EidRecord), SubscribeError> {
        let found = self.find_match(asked, mappings);
        let is_nothing = matches!(found, Match::Nothing);
        // Around whole sites or pools: to be told of all that comes and goes there, now or later.
        let is_around = is_nothing && self.holds_configured(asked);
        let record = if is_around {
            negative(asked, NegativeAction::NativelyForward, self.config.record_ttl_min)
        } else {
            self.subscribed_record(asked, found)
        };
        // Of what is not there, the gap around it, for some time (RFC 9437 §5).
        let temporary = is_nothing && !is_around;
        let key = if temporary { eid_key(&record.eid).unwrap_or(asked) } else { asked };
        self.subscriptions.may_subscribe(itr, key, now)?;
        let known = self.subscriptions.find(itr, key);
        let renewed = known.is_some_and(|s| self.subscriptions.is_renewal(s, request.nonce));
        let state = match known.map(|s| self.subscriptions.get(s).state) {
            // It has one for good already.
            Some(lasting @ State::Active { expires: None, .. }) => lasting,
            Some(_) | None => {
                let expires = temporary.then_some(now + self.config.temporary_subscription);
                State::Active { expires, configured: false }
            }
        };
        let sub = self.subscriptions.put(itr, key, rlocs.to_vec(), state, request.nonce);
        self.subscriptions.reserve(sub);
        if !renewed {
            let subscription = self.subscriptions.get_mut(sub);
            subscription.behind = true;
            subscription.catching_up = None;
        }
        out.push(Output::Persist(self.subscriptions.record(sub)));
        self.counters.subscribed += 1;
        Ok((sub, record))
    }

    fn unsubscribe(
        &mut self,
        itr: ItrIndex,
        key: EidKey,
        out: &mut Vec<Output>,
    ) -> Result<(), SubscribeError> {
        let sub = match self.subscriptions.find(itr, key) {
            Some(sub) => {
                let configured = matches!(
                    self.subscriptions.get(sub).state,
                    State::Active { configured: true, .. }
                );
                if configured && !self.subscriptions.itr(itr).may_change {
                    return Err(SubscribeError::Policy);
                }
                sub
            }
            None if self.subscriptions.find_less_specific(itr, key).is_some() => {
                self.subscriptions.put(itr, key, Vec::new(), State::Ended, 0)
            }
            None => return Ok(()),
        };
        let muted = self.subscriptions.find_less_specific(itr, key).is_some();
        self.end_subscription(sub, if muted { State::Muted } else { State::Ended }, out);
        self.counters.unsubscribed += 1;
        Ok(())
    }

    fn end_subscription(&mut self, sub: SubIndex, state: State, out: &mut Vec<Output>) {
        self.subscriptions.set_state(sub, state);
        for whom in [Whom::Subscribing(sub), Whom::Subscriber(sub), Whom::CatchingUp(sub)] {
            self.outstanding.remove_all(whom);
        }
        out.push(Output::Persist(self.subscriptions.record(sub)));
    }

    /// Where a subscribed prefix leads as a whole; not narrowed, because what is inside is told
    /// apart.
    fn subscribed_record(&self, key: EidKey, found: Match) -> EidRecord {
        let mut record = match found {
            Match::Registered(slot) => self.registered_record(slot),
            Match::Mobile(bound, mapping) => self.mobile_record(bound, mapping),
            Match::Nothing => return self.record(key, found),
        };
        record.eid = eid(key);
        record
    }

    /// The hall tells that a prefix inside a mobile pool is somewhere else now, or (`None`) that
    /// its pool leads to it again. To be told of every one that is bound away, after a start too.
    pub fn publish(
        &mut self,
        now: Instant,
        iid: InstanceId,
        prefix: Prefix,
        mapping: Option<Mapping>,
        out: &mut Vec<Output>,
    ) {
        if !self.is_mobile(iid, prefix) {
            return;
        }
        let key = EidKey::new(iid, prefix);
        let slot = self.registrations.find(key);
        let Some(mapping) = mapping else {
            if let Some(slot) = slot {
                self.registrations.entry_mut(slot).flags.published = false;
                if self.registrations.content(slot).is_none() {
                    self.registrations.remove(slot);
                }
            }
            self.publish_gone(now, key, out);
            return;
        };
        let record = self.mobile_record(key, mapping);
        let flags = Flags { mobile: true, published: true, ..Flags::default() };
        match slot {
            Some(slot) => {
                self.registrations.entry_mut(slot).flags.published = true;
                let holder = self.registrations.entry(slot).holder;
                let anchor = self.sites.anchor_of(holder);
                if holder != XtrIndex::NONE && anchor != Some(mapping.anchor) {
                    // It has come to another anchor by another way than a Map-Register.
                    self.registrations.clear_content(slot);
                    self.tell_old(now, holder, key, record.clone(), out);
                }
            }
            None if self.registrations.len() < self.config.limits.eids => {
                self.registrations.insert(key, flags);
            }
            // Replies beside it may cover it; it is answered all the same.
            None => {}
        }
        self.publish_record(now, key, &record, out);
    }

    /// A mapping of the table is new or changed.
    pub(super) fn publish_registered(&mut self, now: Instant, slot: Slot, out: &mut Vec<Output>) {
        if !self.subscriptions.is_empty() {
            let record = self.registered_record(slot);
            self.publish_record(now, self.registrations.key(slot), &record, out);
        }
    }

    pub(super) fn publish_record(
        &mut self,
        now: Instant,
        key: EidKey,
        record: &EidRecord,
        out: &mut Vec<Output>,
    ) {
        for sub in self.subscriptions.covering(key) {
            self.publish_to(now, sub, key, record.clone(), out);
        }
        for sub in self.subscribed_inside(key) {
            let inside = self.subscriptions.get(sub).key;
            let closest = self.registrations.find_any(inside);
            if closest.is_none_or(|c| self.registrations.key(c) == key) {
                self.publish_to(
                    now,
                    sub,
                    inside,
                    EidRecord { eid: eid(inside), ..record.clone() },
                    out,
                );
            }
        }
    }

    /// A prefix is no longer registered.
    pub(super) fn publish_gone(&mut self, now: Instant, key: EidKey, out: &mut Vec<Output>) {
        let gone = |key| negative(key, NegativeAction::NoAction, 0);
        // Its own subscribers are told what it falls back to, and need not ask.
        let covering = self.registrations.find_longest(key).map(|s| self.registered_record(s));
        let instead = |key| match &covering {
            Some(record) => EidRecord { eid: eid(key), ..record.clone() },
            None => gone(key),
        };
        for sub in self.subscriptions.covering(key) {
            let own = self.subscriptions.get(sub).key == key;
            self.publish_to(now, sub, key, if own { instead(key) } else { gone(key) }, out);
        }
        for sub in self.subscribed_inside(key) {
            let inside = self.subscriptions.get(sub).key;
            let closest = self.registrations.find_any(inside);
            if closest.is_none_or(|c| !key.contains(self.registrations.key(c))) {
                self.publish_to(now, sub, inside, instead(inside), out);
            }
        }
    }

    fn subscribed_inside(&mut self, key: EidKey) -> Vec<SubIndex> {
        let mut inside = self.subscriptions.inside(key, INSIDE_MAX + 1);
        if inside.len() > INSIDE_MAX {
            inside.truncate(INSIDE_MAX);
            self.counters.inside_skipped += 1;
        }
        inside
    }

    fn publish_to(
        &mut self,
        now: Instant,
        sub: SubIndex,
        about: EidKey,
        record: EidRecord,
        out: &mut Vec<Output>,
    ) {
        // What else waits to be said to it must not bring back what this replaces.
        let key = self.subscriptions.get(sub).key;
        self.outstanding.amend(Whom::Subscribing(sub), key, &record);
        self.outstanding.amend(Whom::CatchingUp(sub), key, &record);
        self.send_publication(now, Whom::Subscriber(sub), sub, about.into(), vec![record], out);
    }

    pub(super) fn publish_pair_to(
        &mut self,
        now: Instant,
        sub: SubIndex,
        pair: PairKey,
        record: EidRecord,
        out: &mut Vec<Output>,
    ) {
        let about = About { key: pair.destination, source: Some(pair.source) };
        self.send_publication(now, Whom::Subscriber(sub), sub, about, vec![record], out);
    }

    fn send_publication(
        &mut self,
        now: Instant,
        whom: Whom,
        sub: SubIndex,
        about: About,
        records: Vec<EidRecord>,
        out: &mut Vec<Output>,
    ) {
        let (nonce, stored) = self.subscriptions.next_nonce(sub);
        out.extend(stored.map(Output::Persist));
        let (itr, addrs) = {
            let sub = self.subscriptions.get(sub);
            (sub.itr, sub.rlocs.clone())
        };
        let sign_with = SignWith { keys: self.subscriptions.keys(itr).clone(), key: None };
        let authentication = sign_with.authentication();
        let notify = MapNotify { nonce, authentication, records, id: None };
        self.counters.publications += 1;
        let send_at = self.subscriptions.pace(itr, now);
        self.outstanding.send(Waiting { whom, about, notify, sign_with, addrs }, now, send_at, out);
    }

    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        raw: &[u8],
        nonce: u64,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let waiting = self.outstanding.acknowledge(nonce, raw).map_err(|e| match e {
            AckError::Unknown => Refusal::UnknownAck,
            AckError::Authentication => Refusal::AckAuthentication,
        })?;
        self.counters.acknowledged += 1;
        match waiting.whom {
            Whom::Subscribing(first) => {
                let itr = self.subscriptions.get(first).itr;
                for key in waiting.notify.records.iter().filter_map(|r| eid_key(&r.eid)) {
                    if let Some(sub) = self.subscriptions.find(itr, key) {
                        self.begin_to_catch_up(now, sub, mappings, out);
                    }
                }
            }
            Whom::CatchingUp(sub) => self.catch_up(now, sub, mappings, out),
            Whom::Subscriber(sub) => self.begin_to_catch_up(now, sub, mappings, out),
            Whom::OldXtr(_) => {}
        }
        Ok(())
    }

    fn begin_to_catch_up(
        &mut self,
        now: Instant,
        sub: SubIndex,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) {
        let subscription = self.subscriptions.get_mut(sub);
        if std::mem::take(&mut subscription.behind) {
            let key = subscription.key;
            subscription.catching_up = Some(key);
            self.catch_up(now, sub, mappings, out);
            self.tell_pairs(now, sub, key, out);
        }
    }

    /// The next batch of what is registered inside a subscribed prefix.
    fn catch_up(
        &mut self,
        now: Instant,
        sub: SubIndex,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) {
        let subscription = self.subscriptions.get(sub);
        let (itr, key) = (subscription.itr, subscription.key);
        let Some(from) = subscription.catching_up else { return };
        if key.prefix().is_host() || !matches!(subscription.state, State::Active { .. }) {
            self.subscriptions.get_mut(sub).catching_up = None;
            return;
        }
        let mut records = Vec::new();
        let mut last = None;
        let mut more = false;
        for slot in self.registrations.inside(key, from).take(BATCH_SCAN_MAX) {
            let inside = self.registrations.key(slot);
            if inside == from {
                continue;
            }
            if records.len() == BATCH_MAX {
                more = true;
                break;
            }
            last = Some(inside);
            // It has one of its own, or does not want to hear of this one.
            if self
                .subscriptions
                .find(itr, inside)
                .is_some_and(|s| self.subscriptions.get(s).state != State::Ended)
            {
                continue;
            }
            if self.registrations.entry(slot).flags.mobile {
                let bound = find_bound(mappings, inside);
                records.extend(bound.map(|mapping| self.mobile_record(inside, mapping)));
            } else {
                records.push(self.registered_record(slot));
            }
        }
        self.subscriptions.get_mut(sub).catching_up = if more { last } else { None };
        if !records.is_empty() {
            self.send_publication(now, Whom::CatchingUp(sub), sub, key.into(), records, out);
        }
    }

    /// Nobody has acknowledged a message at any address.
    pub(super) fn give_up(&mut self, waiting: Waiting, out: &mut Vec<Output>) {
        self.counters.given_up += 1;
        match waiting.whom {
            Whom::Subscribing(first) => {
                let itr = self.subscriptions.get(first).itr;
                let keys: Vec<EidKey> =
                    waiting.notify.records.iter().filter_map(|r| eid_key(&r.eid)).collect();
                for &key in &keys {
                    let sub = self.subscriptions.find(itr, key);
                    let lasting = |s| {
                        matches!(
                            self.subscriptions.get(s).state,
                            State::Active { configured: true, .. }
                        )
                    };
                    if let Some(sub) = sub.filter(|&s| !lasting(s)) {
                        self.end_subscription(sub, State::Ended, out);
                    }
                }
                // Perhaps only its acknowledgements are lost: it is told that it has none (§5).
                let refused = |&key| negative(key, NegativeAction::DropAuthFailure, 0);
                if let Some(&addr) = waiting.addrs.first() {
                    out.push(Output::Send {
                        to: SocketAddr::new(addr, CONTROL_PORT),
                        message: Message::MapNotify(MapNotify {
                            nonce: waiting.notify.nonce,
                            authentication: waiting.sign_with.authentication(),
                            records: keys.iter().map(refused).collect(),
                            id: None,
                        }),
                        sign_with: Some(waiting.sign_with),
                    });
                }
            }
            Whom::Subscriber(sub) | Whom::CatchingUp(sub) => {
                let sub = self.subscriptions.get_mut(sub);
                sub.behind = true;
                sub.catching_up = None;
            }
            Whom::OldXtr(_) => {}
        }
    }
}
