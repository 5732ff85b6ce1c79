//! Subscriptions (RFC 9437): who is told of which EID-prefix, and by which nonce.
//!
//! **Nonces.** What a request has proved is kept per (xTR-ID, EID-prefix *as asked for*), for ever
//! and persistently: a request that was heard once is refused for good, also after its subscription
//! has ended. Publications have a counter per subscription, which goes on from the request's nonce;
//! all publications under a subscription of an aggregate take from it, so a receiver that counts
//! per aggregate and one that counts per published prefix both see numbers grow. The counter is
//! stored a block ahead: after a restart it goes on where the block ends.
//!
//! **Who may.** A Map-Request is not signed, so a subscription needs an xTR-ID that is configured,
//! from one of its RLOCs, for its RLOCs only (§3 leaves this check to the Map-Resolver, which we
//! are). What leaves is signed with its PubSubKey.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::NonceRecord;
use super::key::{EidKey, Lengths};
use super::outstanding::SubIndex;
use super::rate::{Pace, Rate};
use crate::auth::KeyChain;
use crate::types::lisp::{InstanceId, SiteId, XtrId};
use crate::types::{Instant, Prefix};

/// Publications whose nonces are stored ahead of their use.
const NONCE_BLOCK: u64 = 1024;
/// Request nonces that are remembered, per subscription that an ITR may have. They are never
/// forgotten, so an ITR that asks for ever other prefixes is refused when its share is used up.
const NONCES_PER_SUBSCRIPTION: usize = 4;

/// How far a nonce may be from the last one for its xTR to be believed to have kept its state.
const RENEWAL_LEAP: u64 = 1 << 16;

/// Subscriptions that are kept, ended ones included, for each that may be active.
const ENDED_PER_ACTIVE: usize = 4;

/// An ITR that may subscribe, as configured.
#[derive(Clone, Debug)]
pub struct Itr {
    pub xtr_id: XtrId,
    /// The Site-ID that it must say, if it must say one.
    pub site_id: Option<SiteId>,
    /// PubSubKeys: the signer signs publications, all are accepted in acknowledgements.
    pub keys: KeyChain,
    /// Where it may ask from and be told at; empty: anywhere.
    pub rlocs: Vec<IpAddr>,
    /// Subscriptions that exist without being asked for.
    pub configured: Vec<ConfiguredSubscription>,
    /// Whether it may change or end its configured subscriptions.
    pub may_change: bool,
}

#[derive(Clone, Debug)]
pub struct ConfiguredSubscription {
    pub iid: InstanceId,
    pub prefix: Prefix,
    /// The same at the xTR; the first publication has the next one.
    pub nonce: u64,
    pub rlocs: Vec<IpAddr>,
}

/// Number of an ITR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ItrIndex(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Active {
        /// Of a temporary one, for an EID that is not registered (§5).
        expires: Option<Instant>,
        configured: bool,
    },
    /// Left out of a less-specific subscription (§5).
    Muted,
    /// Ended; kept for its nonces.
    Ended,
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub itr: ItrIndex,
    pub key: EidKey,
    pub rlocs: Vec<IpAddr>,
    pub state: State,
    /// The last nonce in use, of a request or of a publication.
    pub nonce: u64,
    /// The last nonce that the xTR can know of: not one that a restart has skipped to.
    seen: u64,
    /// Publications may have nonces up to this one without being stored again.
    reserved: u64,
    /// How far the transfer of what is inside the prefix has come.
    pub catching_up: Option<EidKey>,
    /// It is new, or something was given up: what is inside has to be told once it answers.
    pub behind: bool,
}

/// What the store says of a subscription (RFC 9437 §5: kept so that an old request stays old).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredState {
    Active,
    Temporary,
    Muted,
    Ended,
}

/// Why a subscription is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscribeError {
    /// Answered by a Negative Map-Reply, ACT 4.
    Policy,
    /// Dropped without an answer.
    Replay,
    /// Answered as if nobody had asked to subscribe.
    Limit,
}

#[derive(Debug)]
struct ItrState {
    keys: Arc<KeyChain>,
    active: usize,
    nonces: usize,
    pace: Pace,
}

pub(super) struct Subscriptions {
    itrs: Vec<Itr>,
    states: Vec<ItrState>,
    by_xtr_id: BTreeMap<XtrId, ItrIndex>,
    slab: Vec<Subscription>,
    by_itr: HashMap<(ItrIndex, EidKey), SubIndex, FixedState>,
    /// Not the ended ones.
    by_prefix: BTreeMap<EidKey, Vec<SubIndex>>,
    lengths: Lengths,
    /// The last nonce of a request, per prefix asked for.
    requested: HashMap<(ItrIndex, EidKey), u64, FixedState>,
    expiring: BTreeSet<(Instant, SubIndex)>,
    active: usize,
    limits: SubscriptionLimits,
}

/// How many, and how fast. When one is reached, a subscription is refused by an ordinary Map-Reply,
/// and a publication waits for its turn.
#[derive(Clone, Copy, Debug)]
pub struct SubscriptionLimits {
    pub total: usize,
    pub per_itr: usize,
    /// Publications to one ITR.
    pub publications: Rate,
}

impl Subscriptions {
    pub fn new(itrs: Vec<Itr>, limits: SubscriptionLimits, seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        let states = itrs.iter().map(|itr| ItrState {
            keys: Arc::new(itr.keys.clone()),
            active: 0,
            nonces: 0,
            pace: Pace::default(),
        });
        let mut new = Self {
            states: states.collect(),
            by_xtr_id: (0..).map(ItrIndex).zip(&itrs).map(|(at, i)| (i.xtr_id, at)).collect(),
            slab: Vec::new(),
            by_itr: HashMap::with_hasher(state.clone()),
            by_prefix: BTreeMap::new(),
            lengths: Lengths::default(),
            requested: HashMap::with_hasher(state),
            expiring: BTreeSet::new(),
            active: 0,
            limits,
            itrs,
        };
        for at in 0..new.itrs.len() {
            for c in new.itrs[at].configured.clone() {
                let itr = ItrIndex(u32::try_from(at).expect("fewer ITRs than 2^32"));
                let active = State::Active { expires: None, configured: true };
                new.put(itr, EidKey::new(c.iid, c.prefix), c.rlocs, active, c.nonce);
            }
        }
        new
    }

    pub fn len(&self) -> usize {
        self.active
    }

    pub fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    pub fn get(&self, sub: SubIndex) -> &Subscription {
        &self.slab[sub.0 as usize]
    }

    pub fn get_mut(&mut self, sub: SubIndex) -> &mut Subscription {
        &mut self.slab[sub.0 as usize]
    }

    pub fn itr(&self, itr: ItrIndex) -> &Itr {
        &self.itrs[itr.0 as usize]
    }

    pub fn keys(&self, itr: ItrIndex) -> &Arc<KeyChain> {
        &self.states[itr.0 as usize].keys
    }

    /// The ITR that may ask for subscriptions by this name, from there, for these RLOCs.
    pub fn admit(
        &self,
        (xtr_id, site_id): (XtrId, SiteId),
        from: IpAddr,
        rlocs: &[IpAddr],
    ) -> Result<ItrIndex, SubscribeError> {
        let &at = self.by_xtr_id.get(&xtr_id).ok_or(SubscribeError::Policy)?;
        let itr = self.itr(at);
        let site_known = itr.site_id.is_none_or(|wanted| wanted == site_id);
        let rlocs_known = itr.rlocs.is_empty()
            || itr.rlocs.contains(&from) && rlocs.iter().all(|r| itr.rlocs.contains(r));
        if site_known && rlocs_known { Ok(at) } else { Err(SubscribeError::Policy) }
    }

    /// Whether a request with this nonce is newer than everything before it. To be asked of every
    /// record of a request before any is acted on.
    pub fn check_nonce(
        &self,
        itr: ItrIndex,
        asked: EidKey,
        nonce: u64,
    ) -> Result<(), SubscribeError> {
        let requested = self.requested.get(&(itr, asked)).copied();
        let published = self.find(itr, asked).map(|s| self.get(s).seen);
        match requested.max(published) {
            Some(last) if nonce <= last => Err(SubscribeError::Replay),
            Some(_) => Ok(()),
            None if self.states[itr.0 as usize].nonces >= self.nonces_max() => {
                Err(SubscribeError::Limit)
            }
            None => Ok(()),
        }
    }

    fn nonces_max(&self) -> usize {
        self.limits.per_itr.saturating_mul(NONCES_PER_SUBSCRIPTION)
    }

    /// Remembers the nonce of a request that was found to be new.
    pub fn take_nonce(&mut self, itr: ItrIndex, asked: EidKey, nonce: u64) -> NonceRecord {
        if self.requested.insert((itr, asked), nonce).is_none() {
            self.states[itr.0 as usize].nonces += 1;
        }
        NonceRecord::Request {
            xtr: self.itr(itr).xtr_id,
            iid: asked.iid(),
            prefix: asked.prefix(),
            nonce,
        }
    }

    pub fn find(&self, itr: ItrIndex, key: EidKey) -> Option<SubIndex> {
        self.by_itr.get(&(itr, key)).copied()
    }

    /// The subscription of an ITR that covers a prefix and is not the one of that prefix itself.
    pub fn find_less_specific(&self, itr: ItrIndex, key: EidKey) -> Option<SubIndex> {
        let covering = self.lengths.covering(key).filter(|k| *k != key);
        covering
            .filter_map(|k| self.find(itr, k))
            .find(|&s| matches!(self.get(s).state, State::Active { .. }))
    }

    /// Whether the ITR may make or change this one now.
    pub fn may_subscribe(
        &mut self,
        itr: ItrIndex,
        key: EidKey,
        now: Instant,
    ) -> Result<(), SubscribeError> {
        let known = self.find(itr, key).map(|s| self.get(s).state);
        match known {
            Some(State::Active { configured: true, .. }) if !self.itr(itr).may_change => {
                return Err(SubscribeError::Policy);
            }
            Some(State::Active { .. }) => return Ok(()),
            Some(State::Muted | State::Ended) => {}
            None if self.slab.len() >= self.limits.total.saturating_mul(ENDED_PER_ACTIVE) => {
                return Err(SubscribeError::Limit);
            }
            None => {}
        }
        let state = &mut self.states[itr.0 as usize];
        let full = self.active >= self.limits.total
            || state.active >= self.limits.per_itr
            || state.pace.is_behind(self.limits.publications, now);
        if full { Err(SubscribeError::Limit) } else { Ok(()) }
    }

    /// Makes or changes a subscription.
    pub fn put(
        &mut self,
        itr: ItrIndex,
        key: EidKey,
        rlocs: Vec<IpAddr>,
        state: State,
        nonce: u64,
    ) -> SubIndex {
        let at = self.find(itr, key).unwrap_or_else(|| {
            let at = SubIndex(u32::try_from(self.slab.len()).expect("limited in total"));
            self.slab.push(Subscription {
                itr,
                key,
                rlocs: Vec::new(),
                state: State::Ended,
                nonce,
                seen: nonce,
                reserved: nonce,
                catching_up: None,
                behind: false,
            });
            self.by_itr.insert((itr, key), at);
            at
        });
        self.set_state(at, state);
        let sub = self.get_mut(at);
        sub.rlocs = rlocs;
        sub.nonce = sub.nonce.max(nonce);
        sub.seen = sub.seen.max(nonce);
        at
    }

    pub fn set_state(&mut self, at: SubIndex, state: State) {
        let sub = &mut self.slab[at.0 as usize];
        let (old, itr, key) = (sub.state, sub.itr, sub.key);
        sub.state = state;
        if state == State::Ended {
            sub.rlocs = Vec::new();
            sub.catching_up = None;
        }
        if let State::Active { expires: Some(expires), .. } = old {
            self.expiring.remove(&(expires, at));
        }
        if let State::Active { expires: Some(expires), .. } = state {
            self.expiring.insert((expires, at));
        }
        let count = |s: State| usize::from(matches!(s, State::Active { .. }));
        for active in [&mut self.active, &mut self.states[itr.0 as usize].active] {
            *active = *active + count(state) - count(old);
        }
        match (old == State::Ended, state == State::Ended) {
            (true, false) => {
                let subs = self.by_prefix.entry(key).or_default();
                if subs.is_empty() {
                    self.lengths.add(key);
                }
                subs.push(at);
            }
            (false, true) => {
                if let Some(subs) = self.by_prefix.get_mut(&key) {
                    subs.retain(|&s| s != at);
                    if subs.is_empty() {
                        self.by_prefix.remove(&key);
                        self.lengths.remove(key);
                    }
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// The nonce of the next publication, and what is to be stored before it is sent.
    pub fn next_nonce(&mut self, at: SubIndex) -> (u64, Option<NonceRecord>) {
        let sub = self.get_mut(at);
        sub.nonce = sub.nonce.saturating_add(1);
        sub.seen = sub.nonce;
        let stored = sub.nonce > sub.reserved;
        if stored {
            sub.reserved = sub.nonce.saturating_add(NONCE_BLOCK);
        }
        let nonce = sub.nonce;
        (nonce, stored.then(|| self.record(at)))
    }

    /// Whether a request with this nonce comes from an xTR that knows what it was told before: it
    /// has gone on counting from there. One that has lost its state cannot (RFC 9437 §5), and
    /// leaps. (One that has lost a few answers leaps a little.)
    pub fn is_renewal(&self, at: SubIndex, nonce: u64) -> bool {
        let sub = self.get(at);
        matches!(sub.state, State::Active { .. }) && nonce.saturating_sub(sub.seen) <= RENEWAL_LEAP
    }

    /// Nonces for the next publications, to be stored with the subscription.
    pub fn reserve(&mut self, at: SubIndex) {
        let sub = self.get_mut(at);
        sub.reserved = sub.reserved.max(sub.nonce.saturating_add(NONCE_BLOCK));
    }

    /// What to store of a subscription.
    pub fn record(&self, at: SubIndex) -> NonceRecord {
        let sub = self.get(at);
        let state = match sub.state {
            State::Active { expires: None, .. } => StoredState::Active,
            State::Active { expires: Some(_), .. } => StoredState::Temporary,
            State::Muted => StoredState::Muted,
            State::Ended => StoredState::Ended,
        };
        NonceRecord::Subscription {
            xtr: self.itr(sub.itr).xtr_id,
            iid: sub.key.iid(),
            prefix: sub.key.prefix(),
            state,
            publications_until: sub.reserved.max(sub.nonce),
            rlocs: sub.rlocs.clone(),
        }
    }

    /// From the store, at construction. Of an ITR that is no longer configured: forgotten.
    pub fn restore_request(&mut self, xtr: XtrId, key: EidKey, nonce: u64) {
        if let Some(&itr) = self.by_xtr_id.get(&xtr) {
            let nonce = nonce.max(self.requested.get(&(itr, key)).copied().unwrap_or(0));
            self.take_nonce(itr, key, nonce);
        }
    }

    /// From the store, at construction.
    pub fn restore(
        &mut self,
        xtr: XtrId,
        key: EidKey,
        state: StoredState,
        publications_until: u64,
        rlocs: Vec<IpAddr>,
        temporary_until: Instant,
    ) {
        let Some(&itr) = self.by_xtr_id.get(&xtr) else { return };
        let allowed = &self.itr(itr).rlocs;
        let rlocs: Vec<IpAddr> =
            rlocs.into_iter().filter(|r| allowed.is_empty() || allowed.contains(r)).collect();
        let configured = self
            .find(itr, key)
            .is_some_and(|s| matches!(self.get(s).state, State::Active { configured: true, .. }));
        let state = match state {
            StoredState::Active => State::Active { expires: None, configured },
            StoredState::Temporary => {
                State::Active { expires: Some(temporary_until), configured: false }
            }
            StoredState::Muted => State::Muted,
            StoredState::Ended => State::Ended,
        };
        let state = match state {
            State::Active { .. } if rlocs.is_empty() => State::Ended,
            other => other,
        };
        let at = self.put(itr, key, rlocs, state, publications_until);
        let sub = self.get_mut(at);
        sub.reserved = publications_until;
        sub.seen = 0;
    }

    /// Whom a change of `key` concerns, each ITR once and by its closest subscription: those of it
    /// and of every prefix that covers it. The list is in order of the ITRs' numbers.
    pub fn covering(&self, key: EidKey) -> Vec<SubIndex> {
        let mut seen: BTreeMap<ItrIndex, SubIndex> = BTreeMap::new();
        for subs in self.lengths.covering(key).filter_map(|k| self.by_prefix.get(&k)) {
            for &sub in subs {
                seen.entry(self.get(sub).itr).or_insert(sub);
            }
        }
        seen.retain(|_, sub| matches!(self.get(*sub).state, State::Active { .. }));
        seen.into_values().collect()
    }

    /// Subscriptions of what is strictly inside a prefix, at most `limit` of them.
    pub fn inside(&self, key: EidKey, limit: usize) -> Vec<SubIndex> {
        self.by_prefix
            .range(key..)
            .take_while(|(k, _)| key.contains(**k))
            .filter(|(k, _)| **k != key)
            .flat_map(|(_, subs)| subs)
            .copied()
            .filter(|&s| matches!(self.get(s).state, State::Active { .. }))
            .take(limit)
            .collect()
    }

    /// When one more publication to this ITR may leave.
    pub fn pace(&mut self, itr: ItrIndex, now: Instant) -> Instant {
        self.states[itr.0 as usize].pace.next(self.limits.publications, now)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.expiring.first().map(|&(at, _)| at)
    }

    /// A temporary subscription that is over.
    pub fn expire(&mut self, now: Instant) -> Option<SubIndex> {
        let &(_, sub) = self.expiring.first().filter(|(at, _)| *at <= now)?;
        self.set_state(sub, State::Ended);
        Some(sub)
    }

    /// Subscriptions that are not ended, from a number on; at most `limit`, and the next number.
    pub fn page(&self, from: u32, limit: usize) -> (Vec<(SubIndex, &Subscription)>, Option<u32>) {
        let mut page = Vec::new();
        for (at, sub) in (0_u32..).zip(&self.slab).skip(from as usize) {
            if page.len() >= limit {
                return (page, Some(at));
            }
            if sub.state != State::Ended {
                page.push((SubIndex(at), sub));
            }
        }
        (page, None)
    }
}
