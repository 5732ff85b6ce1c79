//! Source/destination keys (RFC 8060 §4.8): other locators for the traffic of some sources.
//!
//! The location database says where a node is, whoever sends to it, so pairs have a table of their
//! own, beside the other one and bounded. They are registered, expire, are answered and published as
//! ordinary registrations are. Of a flow the longest destination decides, then the longest source;
//! what is registered without a source counts as of any. Nothing of it is stored: after a restart
//! the ETRs register again, and until then what a pair could change is not answered.
//!
//! An answer is cut down, destination and source, to what nobody else has registered inside of it,
//! so that whoever remembers it does not apply it to others.

use std::collections::{BTreeMap, BTreeSet};

use super::key::{EidKey, Lengths, largest_free};
use super::register::{find_bound, is_older, registered_again, rlocs_of_others};
use super::registrations::Seconds;
use super::reply::{Answer, Match, choose_rloc_of, negative};
use super::sites::XtrIndex;
use super::{MapServer, Mappings, Output, Refusal, register};
use crate::types::Instant;
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction};
use crate::wire::lisp::{Eid, EidRecord, RlocRecord};

/// Pairs; one more is refused and counted. A policy, not one entry for each host.
pub(super) const PAIRS_MAX: usize = 65_536;

/// Pairs inside a prefix that a new subscriber of it is told of; the others it learns when they
/// change.
const TOLD_MAX: usize = 1_024;

/// Destination first: pairs are found by it. Both of one instance and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PairKey {
    pub destination: EidKey,
    pub source: EidKey,
}

impl PairKey {
    fn eid(self) -> Eid {
        Eid::SourceDestination {
            iid: self.destination.iid(),
            source: self.source.prefix(),
            destination: self.destination.prefix(),
        }
    }
}

/// The key of a pair of IP prefixes of one family.
pub(super) fn pair_key(eid: &Eid) -> Option<PairKey> {
    match *eid {
        Eid::SourceDestination { iid, source, destination }
            if iid <= InstanceId::MAX && source.family() == destination.family() =>
        {
            Some(PairKey {
                destination: EidKey::new(iid, destination),
                source: EidKey::new(iid, source),
            })
        }
        Eid::Prefix { .. } | Eid::None | Eid::SourceDestination { .. } | Eid::Other { .. } => None,
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub ttl_min: u32,
    pub rlocs: Box<[RlocRecord]>,
    pub version: MapVersion,
    pub holder: XtrIndex,
    pub expires: Seconds,
    /// The ETR asked for proxy replies, or its site has them always.
    pub proxy: bool,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Pairs {
    by_destination: BTreeMap<EidKey, BTreeMap<EidKey, Pair>>,
    lengths: Lengths,
    ends: BTreeSet<(Seconds, PairKey)>,
}

impl Pairs {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn find(&self, key: PairKey) -> Option<&Pair> {
        self.by_destination.get(&key.destination)?.get(&key.source)
    }

    fn put(&mut self, key: PairKey, pair: Pair) {
        self.remove(key);
        self.ends.insert((pair.expires, key));
        let sources = self.by_destination.entry(key.destination).or_default();
        if sources.is_empty() {
            self.lengths.add(key.destination);
        }
        sources.insert(key.source, pair);
    }

    fn remove(&mut self, key: PairKey) -> Option<Pair> {
        let sources = self.by_destination.get_mut(&key.destination)?;
        let pair = sources.remove(&key.source)?;
        if sources.is_empty() {
            self.by_destination.remove(&key.destination);
            self.lengths.remove(key.destination);
        }
        self.ends.remove(&(pair.expires, key));
        Some(pair)
    }

    /// The sources of each destination that covers this one, the longest destination first.
    fn covering(
        &self,
        destination: EidKey,
    ) -> impl Iterator<Item = (EidKey, &BTreeMap<EidKey, Pair>)> {
        let covering = self.lengths.covering(destination);
        covering.filter_map(|key| Some((key, self.by_destination.get(&key)?)))
    }

    /// The pair that decides about a flow.
    fn find_longest(&self, flow: PairKey) -> Option<PairKey> {
        self.covering(flow.destination).find_map(|(destination, sources)| {
            let source = longest_source(sources, flow.source)?;
            Some(PairKey { destination, source })
        })
    }

    /// The largest pair of prefixes around a flow for which no other pair decides; the caller has
    /// found that destinations shorter than `len_min` do not.
    fn narrow(&self, flow: PairKey, len_min: u8) -> PairKey {
        let longest = self.covering(flow.destination).next().map(|(key, _)| key);
        let before = self.by_destination.range(..flow.destination).next_back().map(|(k, _)| *k);
        let after = self.by_destination.range(flow.destination..).next().map(|(k, _)| *k);
        let destination = largest_free(flow.destination, longest, before, after);
        let source = self
            .covering(flow.destination)
            .take_while(|(key, _)| key.len() >= len_min)
            .map(|(_, sources)| {
                let before = sources.range(..flow.source).next_back().map(|(k, _)| *k);
                let after = sources.range(flow.source..).next().map(|(k, _)| *k);
                let within = longest_source(sources, flow.source);
                largest_free(flow.source, within, before, after)
            })
            .max_by_key(|source| source.len());
        PairKey { destination, source: source.unwrap_or(flow.source.cut(0)) }
    }

    /// Pairs with a destination inside a prefix.
    fn inside(&self, prefix: EidKey) -> impl Iterator<Item = (PairKey, &Pair)> {
        self.by_destination
            .range(prefix..)
            .take_while(move |(key, _)| prefix.contains(**key))
            .flat_map(|(&destination, sources)| {
                sources.iter().map(move |(&source, pair)| (PairKey { destination, source }, pair))
            })
    }

    /// A page in order, from a number on, for listings.
    pub fn page(&self, from: usize, limit: usize) -> impl Iterator<Item = (PairKey, &Pair)> {
        let all = self.by_destination.iter().flat_map(|(&destination, sources)| {
            sources.iter().map(move |(&source, pair)| (PairKey { destination, source }, pair))
        });
        all.skip(from).take(limit)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| end.instant())
    }
}

/// The longest source that covers this one.
fn longest_source(sources: &BTreeMap<EidKey, Pair>, source: EidKey) -> Option<EidKey> {
    (0..=source.len()).rev().map(|len| source.cut(len)).find(|key| sources.contains_key(key))
}

/// The first addresses of what is asked about.
fn flow_of(query: PairKey) -> PairKey {
    let host = |key: EidKey| EidKey::new(key.iid(), Prefix::host(key.prefix().addr()));
    PairKey { destination: host(query.destination), source: host(query.source) }
}

impl MapServer {
    /// What a site says about a pair. Of an EID in a mobile pool the location database decides, and
    /// it knows no sources.
    pub(super) fn may_register_pair(
        &self,
        site: super::sites::SiteIndex,
        key: PairKey,
    ) -> Result<(), Refusal> {
        if !self.sites.may_register(site, key.destination) {
            return Err(Refusal::PrefixNotAllowed);
        }
        let (iid, destination) = (key.destination.iid(), key.destination.prefix());
        if self.is_mobile(iid, destination) { Err(Refusal::PairInPool) } else { Ok(()) }
    }

    pub(super) fn register_pair(
        &mut self,
        now: Instant,
        who: register::Registrant,
        key: PairKey,
        record: &EidRecord,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.may_register_pair(who.site, key)?;
        let known = self.pairs.find(key);
        if record.ttl_min == 0 || record.rlocs.is_empty() {
            if known.is_none_or(|pair| pair.holder != who.xtr) {
                return self.not_held();
            }
            self.pairs.remove(key);
            self.publish_pair_gone(now, key, out);
            return Ok(());
        }
        let mut same = false;
        if let Some(pair) = known {
            same = pair.ttl_min == record.ttl_min
                && *pair.rlocs == *record.rlocs
                && pair.version == record.version;
            if !same && is_older(record.version, pair.version) {
                return Err(Refusal::StaleVersion);
            }
        } else if self.pairs.len() >= PAIRS_MAX {
            return Err(Refusal::EidLimit);
        }
        let pair = Pair {
            ttl_min: record.ttl_min,
            rlocs: record.rlocs.clone().into(),
            version: record.version,
            holder: who.xtr,
            expires: registered_again(now, who, record),
            proxy: who.proxy,
        };
        let told = pair_record(key, &pair);
        self.pairs.put(key, pair);
        if same {
            self.counters.refreshes += 1;
        } else {
            self.publish_pair(now, key, told, out);
        }
        Ok(())
    }

    pub(super) fn expire_pairs(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(_, key)) = self.pairs.ends.first().filter(|(end, _)| end.instant() <= now)
        {
            self.pairs.remove(key);
            self.publish_pair_gone(now, key, out);
        }
    }

    /// To those who are subscribed to a prefix that the destination is in.
    fn publish_pair(
        &mut self,
        now: Instant,
        key: PairKey,
        record: EidRecord,
        out: &mut Vec<Output>,
    ) {
        for sub in self.subscriptions.covering(key.destination) {
            self.publish_pair_to(now, sub, key, record.clone(), out);
        }
    }

    fn publish_pair_gone(&mut self, now: Instant, key: PairKey, out: &mut Vec<Output>) {
        let gone =
            EidRecord { eid: key.eid(), ..negative(key.destination, NegativeAction::NoAction, 0) };
        self.publish_pair(now, key, gone, out);
    }

    /// Who is new is told of the pairs there are.
    pub(super) fn tell_pairs(
        &mut self,
        now: Instant,
        sub: super::outstanding::SubIndex,
        prefix: EidKey,
        out: &mut Vec<Output>,
    ) {
        let inside = self.pairs.inside(prefix).take(TOLD_MAX);
        let told: Vec<_> = inside.map(|(key, pair)| (key, pair_record(key, pair))).collect();
        for (key, record) in told {
            self.publish_pair_to(now, sub, key, record, out);
        }
    }

    /// A question about a flow.
    pub(super) fn answer_pair(
        &self,
        query: PairKey,
        authoritative: bool,
        secured: bool,
        mappings: &impl Mappings,
    ) -> Answer {
        let flow = flow_of(query);
        let plain = self.find_match(flow.destination, mappings);
        let plain_len = match plain {
            Match::Registered(slot) => Some(self.registrations.key(slot).len()),
            Match::Mobile(key, _) => Some(key.len()),
            Match::Nothing => None,
        };
        let pair = self.pairs.find_longest(flow).and_then(|key| {
            let decides = plain_len.is_none_or(|len| key.destination.len() >= len);
            decides.then(|| self.pairs.find(key).map(|pair| (key, pair))).flatten()
        });
        let Some((key, pair)) = pair else {
            let about = self.pairs.narrow(flow, plain_len.unwrap_or(0));
            let cut = |record: EidRecord| self.as_pair(record, flow, about);
            let request =
                Eid::Prefix { iid: flow.destination.iid(), prefix: flow.destination.prefix() };
            return match self.answer_plain(&request, authoritative, secured, mappings) {
                Answer::Reply(record) => Answer::Reply(cut(record)),
                Answer::CantSign(record) => Answer::CantSign(cut(record)),
                other @ (Answer::Forward(..) | Answer::ForwardPair(_)) => other,
            };
        };
        let about = self.pairs.narrow(flow, key.destination.len());
        if secured && !pair.proxy {
            let ttl_min = self.config.unregistered_ttl_min;
            let refusal = negative(flow.destination, NegativeAction::DropAuthFailure, ttl_min);
            return Answer::CantSign(self.as_pair(refusal, flow, about));
        }
        let forced = self
            .sites
            .find_xtr(pair.holder)
            .is_some_and(|xtr| self.sites.get(xtr.site).proxy_reply == super::ProxyReply::Forced);
        if !secured && (!pair.proxy || authoritative && !forced) {
            return Answer::ForwardPair(key);
        }
        // Nor does it hold for what others have registered inside, for any source.
        let free = self.registrations.largest_free(flow.destination, Some(about.destination));
        Answer::Reply(self.as_pair(
            EidRecord { eid: register::eid(free), ..pair_record(key, pair) },
            flow,
            about,
        ))
    }

    /// A record about the part of a destination and of its sources that is meant.
    fn as_pair(&self, record: EidRecord, flow: PairKey, about: PairKey) -> EidRecord {
        let said = register::eid_key(&record.eid).unwrap_or(flow.destination);
        let len = said.len().max(about.destination.len());
        let eid = PairKey { destination: flow.destination.cut(len), ..about }.eid();
        EidRecord { eid, ..record }
    }

    /// Whether a question about a flow has to wait for what the ETRs may only not have registered
    /// again yet.
    pub(super) fn is_pair_missing(&self, query: PairKey, mappings: &impl Mappings) -> bool {
        let flow = flow_of(query);
        let is_bound = find_bound(mappings, flow.destination).is_some();
        self.pairs.find_longest(flow).is_none()
            && !is_bound
            && self.find_configured(flow.destination).is_some()
    }

    pub(super) fn pair_etr(&self, key: PairKey, nonce: u64) -> Option<std::net::IpAddr> {
        let pair = self.pairs.find(key)?;
        let holder = self.sites.find_xtr(pair.holder)?;
        choose_rloc_of(&pair.rlocs.iter().collect::<Vec<_>>(), nonce).or(Some(holder.addr))
    }
}

fn pair_record(key: PairKey, pair: &Pair) -> EidRecord {
    EidRecord {
        ttl_min: pair.ttl_min,
        action: NegativeAction::NoAction,
        authoritative: false,
        version: pair.version,
        eid: key.eid(),
        rlocs: rlocs_of_others(&pair.rlocs),
    }
}
