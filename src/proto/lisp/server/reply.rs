//! Map-Request (RFC 9301 §5.2, §5.3, §8.3, §8.4): the longest match is answered, or passed on to
//! its ETR; what is not there is answered by the largest prefix around it that has nothing in it.
//!
//! A covering registration with others inside it (an aggregate) is narrowed in the same way, so
//! that no ITR takes it for those others.

use std::net::{IpAddr, SocketAddr};

use super::key::{EidKey, largest_free};
use super::pairs::{PairKey, pair_key};
use super::register::{eid, eid_key, rlocs_of_others};
use super::registrations::Slot;
use super::secure::Protection;
use super::{MapServer, Mapping, Mappings, Output, Refusal};
use crate::types::lisp::{MapVersion, NegativeAction};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{
    CONTROL_PORT, Ecm, Eid, EidRecord, MapReply, MapRequest, Message, RequestRecord, RlocAddress,
    RlocRecord,
};

/// Records of one request that are answered; the rest is counted and left out.
const RECORDS_MAX: usize = 16;

/// How a request came: as it was inside, and from where to where.
pub(super) struct Envelope<'a> {
    pub source: (IpAddr, u16),
    /// The inner destination, when it came in an ECM.
    pub destination: Option<(IpAddr, u16)>,
    /// LISP-SEC data of the ECM.
    pub security: Option<&'a [u8]>,
    pub message: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub fn direct(from: SocketAddr, raw: &'a [u8]) -> Self {
        let source = (from.ip(), from.port());
        Self { source, destination: None, security: None, message: raw }
    }

    pub fn encapsulated(ecm: &'a Ecm) -> Self {
        Self {
            source: ecm.source,
            destination: Some(ecm.destination),
            security: ecm.security.as_deref(),
            message: &ecm.message,
        }
    }
}

/// What a query meets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Match {
    Registered(Slot),
    Mobile(EidKey, Mapping),
    Nothing,
}

impl MapServer {
    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        from: SocketAddr,
        request: &MapRequest,
        envelope: Envelope<'_>,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.counters.requests += 1;
        if request.probe {
            return Err(Refusal::Probe);
        }
        if request.smr {
            return Err(Refusal::Solicit);
        }
        if self.per_source.as_mut().is_some_and(|b| !b.take(from.ip(), now)) {
            return Err(Refusal::SourceRate);
        }
        // §6.5 of RFC 9303: with a key that does not open, the entire message is discarded.
        let protection = match envelope.security {
            Some(octets) => Some(self.open(from, request, octets)?),
            None => None,
        };
        self.counters.secured += u64::from(protection.is_some());
        let mut records = request.records.as_slice();
        if records.len() > RECORDS_MAX {
            records = &records[..RECORDS_MAX];
            self.refuse(from, Refusal::Records, out);
        }
        let mut expected: Vec<RequestRecord> = Vec::new();
        if now < self.warm_until {
            let (missing, known): (Vec<_>, Vec<_>) =
                records.iter().cloned().partition(|r| self.is_missing(r, mappings));
            if !missing.is_empty() {
                self.refuse(from, Refusal::WarmingUp, out);
                expected = known;
                if expected.is_empty() {
                    return Ok(());
                }
            }
        }
        if !expected.is_empty() {
            records = &expected;
        }
        // A subscription is answered by a Map-Notify, and what is refused by a Map-Reply.
        let mut replies = Vec::with_capacity(records.len());
        let mut asked = std::borrow::Cow::Borrowed(records);
        if records.iter().any(|r| r.notify) {
            asked =
                self.subscribe(now, from, request, records, mappings, &mut replies, out)?.into();
        }
        if self.config.security.required && protection.is_none() && !asked.is_empty() {
            self.refuse(from, Refusal::NotSecured, out);
            asked = Vec::new().into();
        }
        let unsubscribes = matches!(request.itr_rlocs[..], [RlocAddress::None]);
        let reply_to = if unsubscribes && !replies.is_empty() {
            // Refused: there is no ITR-RLOC, so to where it came from (RFC 9437 §5).
            Some(from.ip())
        } else {
            choose_rloc(&request.itr_rlocs, from.ip())
        };
        let mut forward: Vec<(Slot, EidKey)> = Vec::new();
        let mut pair: Option<PairKey> = None;
        let mut cant_sign = false;
        for record in asked.iter() {
            if reply_to.is_none() {
                return Err(Refusal::ItrRloc);
            }
            if self.per_eid.as_mut().is_some_and(|b| !b.take(&record.eid, now)) {
                self.refuse(from, Refusal::EidRate, out);
                continue;
            }
            let secured = protection.is_some();
            match self.answer(record, request.authoritative, secured, mappings) {
                Ok(Answer::Reply(record)) => replies.push(record),
                Ok(Answer::CantSign(record)) => {
                    self.counters.cant_sign += 1;
                    cant_sign = true;
                    replies.push(record);
                }
                Ok(Answer::Forward(slot, about)) => forward.push((slot, about)),
                Ok(Answer::ForwardPair(key)) => pair = Some(key),
                Err(reason) => self.refuse(from, reason, out),
            }
        }
        if request.dont_reply {
            return Ok(());
        }
        if let [(slot, _), ..] = forward[..] {
            let holder = |slot| self.registrations.entry(slot).holder;
            let same = forward.iter().filter(|(other, _)| holder(*other) == holder(slot));
            let eids = same.map(|&(_, about)| eid(about)).collect();
            let protection = protection.as_ref().map(|p| (p, eids));
            self.forward(now, slot, request.nonce, &envelope, protection, records, out)?;
        } else if let Some(key) = pair {
            let to = self.pair_etr(key, request.nonce).ok_or(Refusal::NoEtr)?;
            self.pass_on(now, to, &envelope, None, records, out)?;
        }
        if !replies.is_empty() {
            let ip = reply_to.ok_or(Refusal::ItrRloc)?;
            let negative = replies.iter().filter(|r| r.rlocs.is_empty()).count();
            self.counters.negative_replies += negative as u64;
            self.counters.replies += 1;
            let plain = MapReply {
                probe: false,
                echo_nonce: false,
                nonce: request.nonce,
                records: replies,
                security: None,
            };
            let reply = match &protection {
                Some(protection) => protection.prove(plain, cant_sign),
                None => plain,
            };
            out.push(Output::Send {
                to: SocketAddr::new(ip, envelope.source.1),
                message: Message::MapReply(reply),
                sign_with: None,
            });
        }
        Ok(())
    }

    /// Not registered, though a site or a pool should have it.
    fn is_missing(&self, record: &RequestRecord, mappings: &impl Mappings) -> bool {
        if let Some(pair) = pair_key(&record.eid) {
            return self.is_pair_missing(pair, mappings);
        }
        eid_key(&record.eid).is_some_and(|key| {
            matches!(self.find_match(key, mappings), Match::Nothing)
                && self.find_configured(key).is_some()
        })
    }

    /// The longest match of the table and of the location database. Of the same prefix the
    /// location database knows better.
    pub(super) fn find_match(&self, query: EidKey, mappings: &impl Mappings) -> Match {
        let slot = self.registrations.find_longest(query);
        let of_slot = slot.map_or(Match::Nothing, Match::Registered);
        let prefix = query.prefix();
        if !self.is_mobile(query.iid(), prefix) {
            return of_slot;
        }
        let bound = mappings.find(query.iid(), prefix.addr());
        match bound.filter(|(p, _)| p.contains(prefix)) {
            Some((bound, mapping))
                if slot.is_none_or(|s| self.registrations.key(s).len() <= bound.len()) =>
            {
                Match::Mobile(EidKey::new(query.iid(), bound), mapping)
            }
            Some(_) | None => of_slot,
        }
    }

    fn answer(
        &self,
        record: &RequestRecord,
        authoritative: bool,
        secured: bool,
        mappings: &impl Mappings,
    ) -> Result<Answer, Refusal> {
        match (pair_key(&record.eid), eid_key(&record.eid)) {
            (Some(pair), _) => Ok(self.answer_pair(pair, authoritative, secured, mappings)),
            (None, Some(_)) => Ok(self.answer_plain(&record.eid, authoritative, secured, mappings)),
            (None, None) => Err(Refusal::EidKind),
        }
    }

    /// Of an IP prefix, from any source.
    pub(super) fn answer_plain(
        &self,
        eid: &Eid,
        authoritative: bool,
        secured: bool,
        mappings: &impl Mappings,
    ) -> Answer {
        let query = eid_key(eid).expect("the callers have looked");
        if let Some(denied) = self.find_denied(query) {
            let ttl_min = self.config.outside_ttl_min;
            return Answer::Reply(negative(denied, NegativeAction::DropPolicyDenied, ttl_min));
        }
        let found = self.find_match(query, mappings);
        if let Match::Registered(slot) = found {
            let flags = self.registrations.entry(slot).flags;
            let about = || self.narrow(query, self.registrations.key(slot));
            // RFC 9303, table 1: what somebody registers with P is answered here, by whatever A
            // says; the rest by an ETR with S, and if there is none, that is said.
            if secured && !flags.proxy && !flags.signs {
                let ttl_min = self.config.unregistered_ttl_min;
                let refusal = negative(about(), NegativeAction::DropAuthFailure, ttl_min);
                return Answer::CantSign(refusal);
            }
            if secured && flags.proxy {
                return Answer::Reply(self.record(query, found));
            }
            // A: the asker wants it from the site itself.
            if !flags.proxy || authoritative && !self.is_forced(slot) {
                return Answer::Forward(slot, about());
            }
        }
        Answer::Reply(self.record(query, found))
    }

    fn is_forced(&self, slot: Slot) -> bool {
        let holder = self.sites.find_xtr(self.registrations.entry(slot).holder);
        holder.is_some_and(|x| self.sites.get(x.site).proxy_reply == super::ProxyReply::Forced)
    }

    /// The configured refusal for an EID: the prefix of it.
    pub(super) fn find_denied(&self, query: EidKey) -> Option<EidKey> {
        let denied = self.config.denied.iter().map(|&(iid, prefix)| EidKey::new(iid, prefix));
        denied.filter(|d| d.contains(query)).max_by_key(|d| d.len())
    }

    /// What is said about a query that met this.
    pub(super) fn record(&self, query: EidKey, found: Match) -> EidRecord {
        match found {
            Match::Registered(slot) => {
                let mut record = self.registered_record(slot);
                let key = self.registrations.key(slot);
                if key != query || !key.prefix().is_host() {
                    record.eid = eid(self.narrow(query, key));
                }
                record
            }
            Match::Mobile(key, mapping) => {
                let mut record = self.mobile_record(key, mapping);
                if key != query {
                    record.eid = eid(self.narrow(query, key));
                }
                record
            }
            Match::Nothing => self.nothing(query),
        }
    }

    /// What is registered, as it is; not for what is only published.
    pub(super) fn registered_record(&self, slot: Slot) -> EidRecord {
        let content = self.registrations.content(slot);
        EidRecord {
            ttl_min: content.map_or(0, |c| c.ttl_min),
            action: NegativeAction::NoAction,
            authoritative: false,
            version: self.registrations.entry(slot).version,
            eid: eid(self.registrations.key(slot)),
            rlocs: content.map(|c| rlocs_of_others(&c.rlocs)).unwrap_or_default(),
        }
    }

    /// The largest prefix around a query, within the one that covers it, in which nothing else is
    /// registered. Around the first address, when the query is a prefix with others in it.
    fn narrow(&self, query: EidKey, within: EidKey) -> EidKey {
        let prefix = query.prefix();
        let host = EidKey::new(query.iid(), Prefix::host(prefix.addr()));
        let target =
            if self.registrations.inside(query, query).next().is_some() { host } else { query };
        self.registrations.largest_free(target, Some(within))
    }

    /// RFC 9301 §8.3: not there, and why.
    fn nothing(&self, query: EidKey) -> EidRecord {
        let host = EidKey::new(query.iid(), Prefix::host(query.prefix().addr()));
        match self.find_configured(host) {
            Some(configured) => {
                let free = self.registrations.largest_free(host, Some(configured));
                negative(free, NegativeAction::NativelyForward, self.config.unregistered_ttl_min)
            }
            None => {
                let registered = self.registrations.largest_free(host, None);
                let [before, after] = self.sites.neighbors(host);
                let configured = largest_free(host, None, before, after);
                let pools = self
                    .pools()
                    .filter_map(|pool| Some(host.cut((host.common(pool)? + 1).min(host.len()))));
                let free = pools.chain([registered, configured]).max_by_key(|k| k.len());
                let free = free.expect("two at least");
                negative(free, NegativeAction::NativelyForward, self.config.outside_ttl_min)
            }
        }
    }

    fn pools(&self) -> impl Iterator<Item = EidKey> {
        self.config.mobile_pools.iter().map(|&p| EidKey::new(self.config.mobile_iid, p))
    }

    /// The longest prefix of a site, or mobile pool, that covers a key.
    pub(super) fn find_configured(&self, key: EidKey) -> Option<EidKey> {
        let pools = self.pools().filter(|pool| pool.contains(key));
        pools.chain(self.sites.find_configured(key)).max_by_key(|k| k.len())
    }

    /// Whether a whole site's prefix, or mobile pool, lies inside a key (or is it).
    pub(super) fn holds_configured(&self, key: EidKey) -> bool {
        let [_, next] = self.sites.neighbors(key);
        next.is_some_and(|site| key.contains(site)) || self.pools().any(|pool| key.contains(pool))
    }

    /// Passes a request on to an ETR, unchanged (§8.3); with LISP-SEC, for these EIDs.
    #[expect(clippy::too_many_arguments, reason = "what, how it came, to whom, and its proof")]
    fn forward(
        &mut self,
        now: Instant,
        slot: Slot,
        nonce: u64,
        envelope: &Envelope<'_>,
        protection: Option<(&Protection, Vec<Eid>)>,
        records: &[RequestRecord],
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let to = self.choose_etr(slot, nonce, protection.is_some()).ok_or(Refusal::NoEtr)?;
        let security = match protection {
            Some((protection, eids)) => {
                let entry = self.registrations.entry(slot);
                let holder = self.sites.find_xtr(entry.holder).ok_or(Refusal::NoEtr)?;
                // The one that it has registered with: while keys are changed it may lack others.
                let keys = &self.sites.get(holder.site).security;
                let used = keys.iter().find(|key| key.key_id == holder.key_id);
                let key = used.or(keys.first()).ok_or(Refusal::NoEtr)?;
                Some(protection.pass_on(nonce, key, eids, entry.flags.cant_sign))
            }
            None => None,
        };
        self.pass_on(now, to, envelope, security, records, out)
    }

    fn pass_on(
        &mut self,
        now: Instant,
        to: IpAddr,
        envelope: &Envelope<'_>,
        security: Option<Vec<u8>>,
        records: &[RequestRecord],
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if !self.forward.take(self.config.limits.forwarded, now) {
            return Err(Refusal::ForwardRate);
        }
        let destination = match envelope.destination {
            Some(destination) => destination,
            None => {
                // The inner destination is an EID (§5.8).
                let eids = records.iter().map(|r| &r.eid);
                let key = eids.clone().find_map(eid_key);
                let key = key.or_else(|| eids.clone().find_map(pair_key).map(|p| p.destination));
                (key.ok_or(Refusal::EidKind)?.prefix().addr(), CONTROL_PORT)
            }
        };
        self.counters.forwarded += 1;
        out.push(Output::Send {
            to: SocketAddr::new(to, CONTROL_PORT),
            message: Message::Ecm(Ecm {
                ddt: false,
                security,
                source: envelope.source,
                destination,
                message: envelope.message.to_vec(),
            }),
            sign_with: None,
        });
        Ok(())
    }

    /// One of the locators of the best priority that can be reached; which one changes with the
    /// nonce, so that a repeated question can go to another. Else where it was registered from.
    fn choose_etr(&self, slot: Slot, nonce: u64, signing: bool) -> Option<IpAddr> {
        let entry = self.registrations.entry(slot);
        let holder = self.sites.find_xtr(entry.holder)?;
        let rlocs: Vec<&RlocRecord> = if signing {
            self.registrations.signing_rlocs(slot)
        } else {
            self.registrations.content(slot)?.rlocs.iter().collect()
        };
        // The one who registered last may be one that cannot sign.
        let last = (!signing || !entry.flags.cant_sign).then_some(holder.addr);
        choose_rloc_of(&rlocs, nonce).or(last)
    }
}

/// One of the locators of the best priority that can be reached.
pub(super) fn choose_rloc_of(rlocs: &[&RlocRecord], nonce: u64) -> Option<IpAddr> {
    let usable = || rlocs.iter().filter(|r| r.reachable && r.priority != 255);
    let best = usable().map(|r| r.priority).min();
    let of_best: Vec<IpAddr> =
        usable().filter(|r| Some(r.priority) == best).filter_map(|r| r.address.ip()).collect();
    let count = u64::try_from(of_best.len()).unwrap_or(1).max(1);
    let at = usize::try_from(nonce % count).unwrap_or(0);
    of_best.get(at).copied()
}

pub(super) enum Answer {
    Reply(EidRecord),
    /// By RFC 9303 a refusal: nobody could prove it.
    CantSign(EidRecord),
    /// With the part of the registered prefix that the question is about.
    Forward(Slot, EidKey),
    ForwardPair(PairKey),
}

pub(super) fn negative(key: EidKey, action: NegativeAction, ttl_min: u32) -> EidRecord {
    EidRecord {
        ttl_min,
        action,
        authoritative: false,
        version: MapVersion::NULL,
        eid: eid(key),
        rlocs: Vec::new(),
    }
}

/// Where to answer: an ITR-RLOC of the family that the request came by, else the first one.
pub(super) fn choose_rloc(rlocs: &[RlocAddress], from: IpAddr) -> Option<IpAddr> {
    let addrs = || rlocs.iter().filter_map(RlocAddress::ip);
    addrs().find(|a| a.is_ipv4() == from.is_ipv4()).or_else(|| addrs().next())
}
