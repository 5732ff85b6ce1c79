//! ITR and PITR: where packets to a mobile prefix go (RFC 9301 §8.1, RFC 9437).
//!
//! This file joins the machines: a packet without a mapping becomes a question, an answer or a
//! publication becomes a mapping, and each mapping's locators are probed. What is believed:
//!
//! * a Map-Reply with the nonce of an outstanding question, whose EID-prefix covers what was asked
//!   and lies in a configured prefix of that instance;
//! * a Map-Notify with a valid digest, and a nonce that was not seen, about a subscription.
//!
//! Of two statements about one prefix the older one, by map-version, never replaces the newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::map_cache::{self, CachedMapping, Due, MapCache, Origin, Replaced};
use super::probe::{ProbeConfig, ProbeCounts, ProbeView, Prober};
use super::rate::Bucket;
use super::record::{is_not_older, prefix_of, rlocs_of};
use super::request::Asker;
use super::resolver::{Asked, NotAsked, Reason, Resolver};
use super::security::proven;
use super::subscription::{Accepted, Subscriber, SubscriptionCounts, SubscriptionView};
use super::{Nonces, Output, Security, Seed};
use crate::auth::KeyChain;
use crate::types::lisp::{InstanceId, NegativeAction, SiteId, XtrId};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{EidRecord, MapNotify, MapReply, MapRequest, SignedEids};

/// Questions because of SMRs, of all senders together: anybody can send one, with any source.
const SOLICITED_BURST: u32 = 256;
const SOLICITED_PER_SECOND: u32 = 256;

/// Pace at which mappings are asked for again that may have changed unheard.
const STALE_EVERY: Duration = Duration::from_millis(100);
const STALE_AT_ONCE: usize = 10;

/// Removals by publication that are remembered, so that a publication from before, overtaken on
/// the way, does not bring the mapping back. The oldest is forgotten when full.
const GONE_MAX: usize = 65_536;

/// What is done for packets to a mobile prefix that have no mapping.
#[derive(Clone, Debug)]
pub enum Policy {
    /// The mapping system is asked.
    Query,
    /// All moves within the prefix arrive unasked, signed with these keys. Until they do, as
    /// [`Policy::Query`].
    Push(Arc<KeyChain>),
    /// Nothing: they take the ordinary routes.
    Default,
}

/// A prefix whose hosts move. Prefixes of several instances do not overlap, since a packet that
/// has no encapsulation yet names no instance.
#[derive(Clone, Debug)]
pub struct MobilePrefix {
    pub iid: InstanceId,
    pub prefix: Prefix,
    pub policy: Policy,
}

#[derive(Clone, Debug)]
pub struct ItrConfig {
    pub prefixes: Vec<MobilePrefix>,
    /// In order of preference.
    pub resolvers: Vec<IpAddr>,
    /// Our locators: one of each family that has an underlay.
    pub rlocs: Vec<IpAddr>,
    pub pitr: bool,
    /// Told in requests; subscriptions need one.
    pub id: Option<(XtrId, SiteId)>,
    /// How often a subscription is renewed.
    pub renew_every: Duration,
    pub probe: Option<ProbeConfig>,
    /// Entries of the map-cache.
    pub cache_max: usize,
    /// [`super::Persist::SubscriptionNonce`] as recorded.
    pub subscription_below: BTreeMap<(InstanceId, Prefix), u64>,
}

/// What was done, and refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItrCounts {
    pub misses: u64,
    /// Misses that were not asked: of no mobile prefix, of one with a default route, known
    /// already, asked already, unanswered for long, or too many at once.
    pub miss_not_mobile: u64,
    pub miss_default: u64,
    pub miss_known: u64,
    pub miss_asked_already: u64,
    pub miss_held: u64,
    pub miss_full: u64,
    pub miss_no_resolver: u64,
    pub replies: u64,
    /// With a nonce of no outstanding question.
    pub reply_unknown_nonce: u64,
    /// With no record that covers what was asked.
    pub reply_not_covering: u64,
    /// About more than the configured prefix.
    pub reply_outside: u64,
    /// Without the proof that was asked for.
    pub reply_not_proven: u64,
    /// Further records outside what was asked for.
    pub record_outside: u64,
    /// Statements older than what is known.
    pub record_older: u64,
    /// Publications overtaken by a later one about the same prefix.
    pub record_overtaken: u64,
    pub cache_full: u64,
    pub evicted: u64,
    pub expired: u64,
    pub smr: u64,
    /// SMRs about EIDs that are not cached.
    pub smr_not_cached: u64,
    pub smr_limited: u64,
    /// Map-Requests that are nothing for an ITR.
    pub request_ignored: u64,
    pub requests_sent: u64,
    pub subscriptions: SubscriptionCounts,
    pub probes: ProbeCounts,
}

/// What was done about a packet without a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    Asked,
    /// In no configured prefix.
    NotMobile,
    /// Its prefix takes the ordinary routes.
    Default,
    /// There is a mapping.
    Known,
    AskedAlready,
    /// Nobody has answered for long; asked again later.
    Held,
    /// Too many questions at once.
    Full,
    NoResolver,
}

type Key = (InstanceId, Prefix);

#[derive(Debug)]
pub struct Itr {
    prefixes: BTreeMap<Prefix, MobilePrefix>,
    cache: MapCache,
    resolver: Resolver,
    subscriber: Subscriber,
    prober: Prober,
    solicited: Bucket,
    /// To be asked again, at a pace.
    stale: BTreeSet<Prefix>,
    stale_at: Instant,
    /// Removed by a publication of this nonce, of this subscription.
    gone: BTreeMap<Prefix, (Key, u64)>,
    gone_by_nonce: BTreeSet<(Key, u64, Prefix)>,
    counts: ItrCounts,
}

impl Itr {
    pub fn new(config: ItrConfig, seed: Seed, now: Instant) -> Self {
        let mut nonces = Nonces::new(seed);
        let asker = Asker { rlocs: config.rlocs, pitr: config.pitr, id: config.id };
        let mut subscriber = Subscriber::new(config.renew_every, nonces.split());
        for mobile in &config.prefixes {
            if let (Policy::Push(keys), true) = (&mobile.policy, config.id.is_some()) {
                let below = config.subscription_below.get(&(mobile.iid, mobile.prefix)).copied();
                subscriber.subscribe(mobile.iid, mobile.prefix, Arc::clone(keys), below, now);
            }
        }
        Self {
            prefixes: config.prefixes.into_iter().map(|mobile| (mobile.prefix, mobile)).collect(),
            cache: MapCache::new(config.cache_max.min(map_cache::ENTRIES_MAX)),
            resolver: Resolver::new(asker, config.resolvers, nonces.split()),
            subscriber,
            prober: Prober::new(config.probe, nonces.split()),
            solicited: Bucket::new(SOLICITED_BURST, SOLICITED_PER_SECOND),
            stale: BTreeSet::new(),
            stale_at: Instant::ZERO,
            gone: BTreeMap::new(),
            gone_by_nonce: BTreeSet::new(),
            counts: ItrCounts::default(),
        }
    }

    /// Map-Replies are believed only with the proof of RFC 9303: both Map-Resolvers and Map-Servers
    /// have to speak it. Publications have their own keys. A Map-Resolver without a key here is not
    /// asked any more.
    pub fn with_security(mut self, keys: BTreeMap<IpAddr, Security>) -> Self {
        self.resolver.set_security(keys);
        self
    }

    /// The configured prefix that this one is in.
    fn find_mobile(&self, covered: Prefix) -> Option<&MobilePrefix> {
        (0..=covered.len()).rev().find_map(|len| {
            let prefix = Prefix::new(covered.addr(), len)?;
            self.prefixes.get(&prefix)
        })
    }

    /// A packet met no mapping.
    pub fn handle_miss(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Miss {
        self.counts.misses += 1;
        let miss = self.ask_for(source, destination, now, out);
        let count = match miss {
            Miss::Asked => return miss,
            Miss::NotMobile => &mut self.counts.miss_not_mobile,
            Miss::Default => &mut self.counts.miss_default,
            Miss::Known => &mut self.counts.miss_known,
            Miss::AskedAlready => &mut self.counts.miss_asked_already,
            Miss::Held => &mut self.counts.miss_held,
            Miss::Full => &mut self.counts.miss_full,
            Miss::NoResolver => &mut self.counts.miss_no_resolver,
        };
        *count += 1;
        miss
    }

    fn ask_for(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Miss {
        let eid = Prefix::host(destination);
        let Some(mobile) = self.find_mobile(eid) else { return Miss::NotMobile };
        let iid = mobile.iid;
        if matches!(mobile.policy, Policy::Default) {
            return Miss::Default;
        }
        let asks_always =
            |m: &CachedMapping| m.rlocs.is_empty() && m.action == NegativeAction::SendMapRequest;
        if self.cache.find(eid).is_some_and(|(_, mapping)| !asks_always(mapping)) {
            // The packet was under way when the mapping came.
            return Miss::Known;
        }
        match self.resolver.ask(iid, eid, Reason::Miss(source), now, out) {
            Ok(()) => Miss::Asked,
            Err(NotAsked::Already) => Miss::AskedAlready,
            Err(NotAsked::Held) => Miss::Held,
            Err(NotAsked::Full) => Miss::Full,
            Err(NotAsked::NoResolver) => Miss::NoResolver,
        }
    }

    /// These entries carried packets.
    pub fn handle_used(&mut self, prefixes: &[Prefix], now: Instant, out: &mut Vec<Output>) {
        for &prefix in prefixes {
            if self.cache.touch(prefix, now) {
                self.refresh(prefix, now, out);
            }
        }
    }

    /// Asks for an entry once more, unless a subscription keeps it up to date.
    fn refresh(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(mapping) = self.cache.get(prefix) else { return };
        let iid = mapping.iid;
        if mapping.is_pushed() && self.subscriber.holds(iid, prefix) {
            return;
        }
        // Not asked: it is being asked already, or it ends and the next packet asks.
        let _asked = self.resolver.ask(iid, prefix, Reason::Refresh, now, out);
    }

    /// `raw` is the datagram, for its proof.
    pub fn handle_map_reply(
        &mut self,
        reply: &MapReply,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if reply.probe {
            self.prober.handle_reply(reply, now, out);
            return;
        }
        self.counts.replies += 1;
        if let Some(asked) = self.resolver.find(reply.nonce) {
            let vouched = match self.resolver.otk(reply.nonce).map(|otk| proven(otk, reply, raw)) {
                Some(None) => {
                    self.counts.reply_not_proven += 1;
                    return;
                }
                Some(Some(vouched)) => Some(vouched),
                None => None,
            };
            if self.learn(asked, &reply.records, vouched.as_ref(), now, out) {
                self.resolver.handle_answer(reply.nonce);
            }
            return;
        }
        let action = reply.records.first().map_or(NegativeAction::NoAction, |r| r.action);
        let Some((iid, prefix)) = self.subscriber.handle_reply(reply.nonce, action, now, out)
        else {
            self.counts.reply_unknown_nonce += 1;
            return;
        };
        self.resolver.note(true);
        // Denied: of the subscription, not of the mapping (RFC 9437 §5 leaves it to us).
        let denied =
            matches!(action, NegativeAction::DropPolicyDenied | NegativeAction::DropAuthFailure);
        if !denied && !self.resolver.is_secured() {
            self.learn(Asked { iid, prefix, since: now }, &reply.records, None, now, out);
        }
    }

    /// False when the reply is no answer to this; then its question stays open.
    fn learn(
        &mut self,
        asked: Asked,
        records: &[EidRecord],
        vouched: Option<&SignedEids>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let about = |record: &EidRecord| {
            let (iid, prefix) = prefix_of(&record.eid)?;
            // RFC 9303 §6.9: an ETR that claims more than its Map-Server vouches for.
            let signed = vouched.is_none_or(|vouched| vouched.covers(&record.eid));
            (iid == asked.iid && signed).then_some(prefix)
        };
        // A question about a prefix, to refresh it, may have a narrower answer: hosts have moved
        // out of it since.
        let answers = |p: &Prefix| p.contains(asked.prefix) || asked.prefix.contains(*p);
        let Some(covering) = records.iter().filter_map(about).find(answers) else {
            self.counts.reply_not_covering += 1;
            return false;
        };
        if self.find_mobile(covering).is_none_or(|mobile| mobile.iid != asked.iid) {
            self.counts.reply_outside += 1;
            return false;
        }
        let told: BTreeSet<Prefix> = records.iter().filter_map(about).collect();
        if !told.contains(&asked.prefix) && !covering.contains(asked.prefix) {
            self.remove(asked.prefix, out);
        }
        self.remove_more_specific(covering, asked, &told, out);
        for record in records {
            match about(record) {
                Some(prefix) if covering.contains(prefix) => {
                    self.set(asked.iid, prefix, record, Origin::Reply, now, out);
                }
                Some(_) | None => self.counts.record_outside += 1,
            }
        }
        true
    }

    /// §5.5: an answer replaces what was cached within it: it holds for all of its EIDs, except
    /// for those that it names itself. What was learnt after the question was asked may be newer;
    /// what a subscription keeps is touched only if it was asked for.
    fn remove_more_specific(
        &mut self,
        covering: Prefix,
        asked: Asked,
        told: &BTreeSet<Prefix>,
        out: &mut Vec<Output>,
    ) {
        let replaced = |(prefix, mapping): &(Prefix, &CachedMapping)| {
            let kept = mapping.is_pushed()
                && self.subscriber.holds(mapping.iid, *prefix)
                && !prefix.contains(asked.prefix);
            !told.contains(prefix) && mapping.set_at <= asked.since && !kept
        };
        let replaced: Vec<Prefix> =
            self.cache.within(covering).filter(replaced).map(|(prefix, _)| prefix).collect();
        for prefix in replaced {
            self.remove(prefix, out);
        }
    }

    /// A Map-Notify that is about no registration of this xTR. `raw` is the datagram. True when it
    /// is believed, and new.
    pub fn handle_notify(
        &mut self,
        from: SocketAddr,
        notify: &MapNotify,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let accepted = self.subscriber.handle_notify(from, notify, raw, now, out);
        let Accepted::Records { subscription, nonce, gap } = accepted else {
            return false;
        };
        self.resolver.note(true);
        if gap {
            let pushed = self.cache.within(subscription.1).filter(|(_, m)| m.is_pushed());
            self.stale.extend(pushed.map(|(prefix, _)| prefix));
        }
        self.forget_gone(subscription);
        for record in &notify.records {
            let inside = prefix_of(&record.eid)
                .filter(|&(iid, p)| iid == subscription.0 && subscription.1.contains(p));
            let Some((iid, prefix)) = inside else {
                self.counts.record_outside += 1;
                continue;
            };
            if self.last_publication(prefix).is_some_and(|last| last > nonce) {
                self.counts.record_overtaken += 1;
                continue;
            }
            self.stale.remove(&prefix);
            let before = self.cache.get(prefix).map(|mapping| mapping.rlocs.clone());
            self.set(iid, prefix, record, Origin::Publication { nonce }, now, out);
            let after = self.cache.get(prefix).map(|mapping| &mapping.rlocs);
            if record.ttl_min == 0 && after.is_none() {
                self.remember_gone(prefix, subscription, nonce);
            } else if after != before.as_ref() {
                // Parts of it that were asked for one by one have said the same.
                let asked = self.cache.within(prefix).filter(|(_, m)| !m.is_pushed());
                self.stale.extend(asked.map(|(prefix, _)| prefix));
            }
        }
        true
    }

    fn last_publication(&self, prefix: Prefix) -> Option<u64> {
        match self.cache.get(prefix).map(|mapping| mapping.origin) {
            Some(Origin::Publication { nonce }) => Some(nonce),
            Some(Origin::Reply) | None => self.gone.get(&prefix).map(|&(_, nonce)| nonce),
        }
    }

    fn remember_gone(&mut self, prefix: Prefix, subscription: Key, nonce: u64) {
        if let Some((key, old)) = self.gone.insert(prefix, (subscription, nonce)) {
            self.gone_by_nonce.remove(&(key, old, prefix));
        }
        self.gone_by_nonce.insert((subscription, nonce, prefix));
        if self.gone.len() > GONE_MAX
            && let Some((_, _, oldest)) = self.gone_by_nonce.pop_first()
        {
            self.gone.remove(&oldest);
        }
    }

    /// Publications from before these removals would not be taken for their nonce alone.
    fn forget_gone(&mut self, subscription: Key) {
        let Some(bottom) = self.subscriber.bottom(subscription) else { return };
        while let Some(&(key, nonce, prefix)) = self
            .gone_by_nonce
            .range((subscription, 0, Prefix::V4 { addr: 0, len: 0 })..)
            .next()
            .filter(|(key, nonce, _)| *key == subscription && *nonce < bottom)
        {
            self.gone_by_nonce.remove(&(key, nonce, prefix));
            self.gone.remove(&prefix);
        }
    }

    /// One record becomes an entry, or removes it (TTL 0).
    fn set(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        record: &EidRecord,
        origin: Origin,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let old = self.cache.get(prefix);
        if old.is_some_and(|old| !is_not_older(record.version, old.version)) {
            self.counts.record_older += 1;
            return;
        }
        if record.ttl_min == 0 {
            self.remove(prefix, out);
            return;
        }
        let rlocs = rlocs_of(record);
        let action = match record.action {
            // Locators that cannot be used are none, and no reason to go another way.
            _ if rlocs.is_empty() && !record.rlocs.is_empty() => NegativeAction::DropNoReason,
            action => action,
        };
        let origin = match (origin, old.map(|old| old.origin)) {
            // What a subscription keeps up to date it still does after it was asked for.
            (Origin::Reply, Some(pushed @ Origin::Publication { .. }))
                if self.subscriber.holds(iid, prefix) =>
            {
                pushed
            }
            (origin, _) => origin,
        };
        let ttl = map_cache::ttl(record.ttl_min);
        let mapping = CachedMapping {
            iid,
            rlocs: rlocs.clone(),
            action,
            version: record.version,
            origin,
            ttl,
            set_at: now,
            expires_at: now + ttl,
            used_at: old.and_then(|old| old.used_at),
        };
        let Some(Replaced { old, evicted }) = self.cache.put(prefix, mapping, now) else {
            self.counts.cache_full += 1;
            return;
        };
        if let Some((victim, mapping)) = evicted {
            self.counts.evicted += 1;
            self.told_removed(victim, &mapping, out);
        }
        let same = old.as_ref().is_some_and(|old| {
            old.rlocs == rlocs && old.action == action && old.version == record.version
        });
        if !same {
            let version = record.version;
            let ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
            let rlocs = rlocs.clone();
            out.push(Output::SetMapping { iid, prefix, rlocs, action, version, ttl_s });
        }
        // Added before the old ones are removed: a locator of both goes on being probed.
        self.prober.add((iid, prefix), &rlocs, now);
        if let Some(old) = old {
            self.prober.remove(&old.rlocs, out);
        }
    }

    fn remove(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        if let Some(mapping) = self.cache.remove(prefix) {
            self.told_removed(prefix, &mapping, out);
        }
    }

    fn told_removed(&mut self, prefix: Prefix, mapping: &CachedMapping, out: &mut Vec<Output>) {
        self.stale.remove(&prefix);
        out.push(Output::RemoveMapping { iid: mapping.iid, prefix });
        self.prober.remove(&mapping.rlocs, out);
    }

    /// A Map-Request that came to us as an ITR: an SMR (§6.1), or nothing.
    pub fn handle_map_request(
        &mut self,
        request: &MapRequest,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if !request.smr || request.probe {
            self.counts.request_ignored += 1;
            return;
        }
        self.counts.smr += 1;
        // The Source-EID is the one that has moved.
        let cached = prefix_of(&request.source_eid).filter(|&(iid, eid)| {
            self.cache.find(eid).is_some_and(|(_, mapping)| mapping.iid == iid)
        });
        let Some((iid, eid)) = cached else {
            self.counts.smr_not_cached += 1;
            return;
        };
        if !self.solicited.take(now)
            || self.resolver.ask(iid, eid, Reason::Solicited, now, out).is_err()
        {
            self.counts.smr_limited += 1;
        }
    }

    /// The subscription to a prefix ends; what was pushed holds for its TTL.
    pub fn unsubscribe(&mut self, iid: InstanceId, prefix: Prefix, now: Instant) {
        self.subscriber.unsubscribe(iid, prefix, now);
    }

    pub fn poll_timeout(&self) -> Instant {
        let stale = if self.stale.is_empty() { Instant::FAR_FUTURE } else { self.stale_at };
        self.resolver
            .poll_timeout()
            .min(self.subscriber.poll_timeout())
            .min(self.prober.poll_timeout())
            .min(self.cache.poll_timeout())
            .min(stale)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.resolver.handle_timeout(now, out);
        let resolver = self.resolver.current();
        let unanswered = self.subscriber.handle_timeout(self.resolver.asker(), resolver, now, out);
        for _ in 0..unanswered {
            self.resolver.note(false);
        }
        self.prober.handle_timeout(self.resolver.asker(), now, out);
        self.age(now, out);
        if !self.stale.is_empty() && self.stale_at <= now {
            self.stale_at = now + STALE_EVERY;
            for _ in 0..STALE_AT_ONCE {
                let Some(prefix) = self.stale.pop_first() else { break };
                if let Some(iid) = self.cache.get(prefix).map(|mapping| mapping.iid) {
                    let _asked = self.resolver.ask(iid, prefix, Reason::Refresh, now, out);
                }
            }
        }
    }

    fn age(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((prefix, due)) = self.cache.pop_due(now) {
            let Some(mapping) = self.cache.get(prefix) else { continue };
            match due {
                Due::Refresh => {
                    if mapping.used_at.is_some_and(|used| used > mapping.set_at) {
                        self.refresh(prefix, now, out);
                    }
                }
                // A server that keeps us up to date would have told of a change.
                Due::Expiry
                    if mapping.is_pushed() && self.subscriber.holds(mapping.iid, prefix) =>
                {
                    self.cache.extend(prefix, now);
                }
                Due::Expiry => {
                    self.counts.expired += 1;
                    self.remove(prefix, out);
                }
            }
        }
    }

    /// The entry that packets to this prefix use.
    pub fn lookup(&self, covered: Prefix) -> Option<(Prefix, &CachedMapping)> {
        self.cache.find(covered)
    }

    /// Entries in order, beginning after `after`.
    pub fn map_cache(
        &self,
        after: Option<Prefix>,
    ) -> impl Iterator<Item = (Prefix, &CachedMapping)> {
        self.cache.entries(after)
    }

    pub fn map_cache_len(&self) -> usize {
        self.cache.len()
    }

    /// Questions that are not answered yet.
    pub fn outstanding(&self) -> usize {
        self.resolver.outstanding()
    }

    /// Probed locators in order, beginning after `after`.
    pub fn probes(&self, after: Option<IpAddr>) -> impl Iterator<Item = ProbeView> + '_ {
        self.prober.targets(after)
    }

    /// Subscriptions in order, beginning after `after`.
    pub fn subscriptions(
        &self,
        after: Option<(InstanceId, Prefix)>,
    ) -> impl Iterator<Item = SubscriptionView> + '_ {
        self.subscriber.subscriptions(after)
    }

    /// Whether a Map-Notify is one of a subscription, by its records and its nonce.
    pub fn is_about(&self, notify: &MapNotify) -> bool {
        self.subscriber.is_about(notify)
    }

    pub fn counts(&self) -> ItrCounts {
        ItrCounts {
            requests_sent: self.resolver.sent(),
            subscriptions: self.subscriber.counts(),
            probes: self.prober.counts(),
            ..self.counts
        }
    }
}
