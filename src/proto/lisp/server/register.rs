//! Map-Register (RFC 9301 §5.6, §8.2): what is accepted, from whom, and what follows from it.
//!
//! A message is taken record by record: what its site may not register is refused and left out of
//! the Map-Notify, the rest counts. Withdrawn is what comes with a TTL of 0, or without locators.
//!
//! When an EID comes from another xTR with other locators, the one that had it is told by an
//! unsolicited Map-Notify with the new mapping, until it acknowledges: it can then let go of the
//! EID and pass late packets on. Until then its own refreshes, which it sent in ignorance, do not
//! take the EID back.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::key::EidKey;
use super::outstanding::{Waiting, Whom};
use super::pairs::pair_key;
use super::registrations::{Flags, Merging, Seconds, Slot};
use super::sites::{Freshness, ProxyReply, SiteIndex, Xtr, XtrIndex, XtrName};
use super::{
    MapServer, Mapping, Mappings, Output, REGISTRATION_TIMEOUT, Refusal, Registration, SignWith,
};
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, Rloc, RlocSet};
use crate::types::{AnchorId, Generation, Instant};
use crate::wire::lisp::{
    CONTROL_PORT, Eid, EidRecord, MapNotify, MapRegister, Message, RlocRecord,
};

/// Whose register a record is in, and what its bits ask for.
#[derive(Clone, Copy)]
pub(super) struct Registrant {
    pub site: SiteIndex,
    pub xtr: XtrIndex,
    name: XtrName,
    merge: bool,
    pub proxy: bool,
    /// It answers by LISP-SEC (RFC 9303 §6.3), and we can wrap keys for it.
    signs: bool,
    use_ttl: bool,
}

impl MapServer {
    pub(super) fn handle_register(
        &mut self,
        now: Instant,
        from: SocketAddr,
        raw: &[u8],
        register: MapRegister,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.counters.registers += 1;
        let first = register.records.iter().find_map(|r| {
            eid_key(&r.eid).or_else(|| pair_key(&r.eid).map(|pair| pair.destination))
        });
        let (site, key_id) = self.sites.authenticate(raw, register.id, first)?;
        let xtr_id = register.id.map(|(xtr, _)| xtr);
        let fresh = self.sites.take_nonce(
            site,
            xtr_id,
            key_id,
            register.nonce,
            &register.authentication.digest,
        )?;
        let name = xtr_id.map_or(XtrName::Source(from.ip()), XtrName::Id);
        let xtr = self.sites.get_xtr(Xtr {
            site,
            name,
            id: register.id,
            addr: from.ip(),
            key_id,
            algorithm: register.authentication.algorithm,
        })?;
        let configured = self.sites.get(site);
        let registrant = Registrant {
            site,
            xtr,
            name,
            merge: register.merge && configured.allow_merge,
            proxy: register.proxy_reply || configured.proxy_reply == ProxyReply::Forced,
            signs: register.security_capable && !configured.security.is_empty(),
            use_ttl: register.use_ttl,
        };
        if fresh == Freshness::New {
            let record = self.sites.record(site, xtr_id, key_id, register.nonce);
            out.push(Output::Persist(record));
        }
        let mut records = register.records;
        records.retain_mut(|record| {
            let done = match fresh {
                Freshness::New => self.register(now, registrant, record, mappings, out),
                Freshness::Repeated => match pair_key(&record.eid) {
                    Some(pair) => self.may_register_pair(site, pair),
                    None => self.registrable(site, &record.eid).map(|_| ()),
                },
            };
            done.map_err(|reason| self.refuse(from, reason, out)).is_ok()
        });
        if register.want_notify && !records.is_empty() {
            let sign_with = self.key_of(xtr);
            let authentication = sign_with.authentication();
            let (nonce, id) = (register.nonce, register.id);
            self.counters.notifies += 1;
            out.push(Output::Send {
                // Not to the port it came from (§8.2).
                to: SocketAddr::new(from.ip(), CONTROL_PORT),
                message: Message::MapNotify(MapNotify { nonce, authentication, records, id }),
                sign_with: Some(sign_with),
            });
        }
        Ok(())
    }

    /// The key that an xTR has last used: what it is told is signed with it.
    fn key_of(&self, xtr: XtrIndex) -> SignWith {
        let xtr = self.sites.find_xtr(xtr).expect("the number of one that has registered");
        SignWith { keys: self.sites.keys(xtr.site).clone(), key: Some((xtr.key_id, xtr.algorithm)) }
    }

    fn registrable(&self, site: SiteIndex, eid: &Eid) -> Result<EidKey, Refusal> {
        let key = eid_key(eid).ok_or(Refusal::EidKind)?;
        let allowed = self.sites.may_register(site, key);
        allowed.then_some(key).ok_or(Refusal::PrefixNotAllowed)
    }

    fn register(
        &mut self,
        now: Instant,
        who: Registrant,
        record: &mut EidRecord,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        if let Some(pair) = pair_key(&record.eid) {
            return self.register_pair(now, who, pair, record, out);
        }
        let key = self.registrable(who.site, &record.eid)?;
        let mobile = self.is_mobile(key.iid(), key.prefix());
        let slot = self.registrations.find(key);
        if record.ttl_min == 0 || record.rlocs.is_empty() {
            return slot.map_or(Ok(()), |slot| self.withdraw(now, who, slot, out));
        }
        let bound = if mobile { find_bound(mappings, key) } else { None };
        let what = match (mobile, slot) {
            (true, _) => self.judge_mobile(now, who, key, slot, bound, record, out)?,
            (false, Some(slot)) => self.judge(who, key, slot, record)?,
            (false, None) => Some(Registration::First),
        };
        let expires = registered_again(now, who, record);
        let Some(slot) = slot else {
            if self.registrations.len() >= self.config.limits.eids {
                return Err(Refusal::EidLimit);
            }
            let slot = self.registrations.insert(key, Flags { mobile, ..Flags::default() });
            self.accept(who, slot, record, expires);
            self.announce(now, who, slot, what.unwrap_or(Registration::First), out);
            return Ok(());
        };
        if who.merge && self.holder_site(slot).is_none_or(|site| site == who.site) {
            let part = Merging { xtr: who.xtr, signs: who.signs, expires };
            let merged = self.registrations.merge(slot, part, record.ttl_min, &record.rlocs);
            let changed = merged.map_err(|_| Refusal::MergeLimit)?;
            let entry = self.registrations.entry_mut(slot);
            entry.flags.proxy |= who.proxy;
            entry.version = record.version;
            if let Some(content) = self.registrations.content(slot) {
                // The xTR learns who else is there (RFC 8378 §3).
                record.rlocs = content.rlocs.to_vec();
            }
            if changed {
                self.announce(now, who, slot, Registration::Changed, out);
            } else {
                self.counters.refreshes += 1;
            }
            return Ok(());
        }
        let old = self.registrations.entry(slot).holder;
        let moved = old != XtrIndex::NONE
            && old != who.xtr
            && !self.registrations.says(slot, record.ttl_min, &record.rlocs);
        self.accept(who, slot, record, expires);
        match what {
            Some(what) => self.announce(now, who, slot, what, out),
            None => self.counters.refreshes += 1,
        }
        if let Some(bound) = bound.filter(|b| what.is_some() && b.anchor == self.anchor(who)) {
            // The same place by other locators: nothing that the hall would publish.
            let record = self.mobile_record(key, bound);
            self.publish_record(now, key, &record, out);
        }
        if moved {
            let current = self.registered_record(slot);
            self.tell_old(now, old, key, current, out);
        }
        Ok(())
    }

    fn anchor(&self, who: Registrant) -> AnchorId {
        self.sites.get(who.site).anchor
    }

    fn holder_site(&self, slot: Slot) -> Option<SiteIndex> {
        self.sites.find_xtr(self.registrations.entry(slot).holder).map(|x| x.site)
    }

    /// What a register says about an EID of the table; `None` when it says nothing new.
    fn judge(
        &self,
        who: Registrant,
        key: EidKey,
        slot: Slot,
        record: &EidRecord,
    ) -> Result<Option<Registration>, Refusal> {
        let entry = self.registrations.entry(slot);
        if self.registrations.content(slot).is_none() {
            return Ok(Some(Registration::First));
        }
        let same = self.registrations.says(slot, record.ttl_min, &record.rlocs);
        if same && entry.version == record.version {
            return Ok(None);
        }
        if is_older(record.version, entry.version) {
            return Err(Refusal::StaleVersion);
        }
        if !same && record.version == MapVersion::NULL && self.was_told(who.xtr, key) {
            return Err(Refusal::MovedAway);
        }
        Ok(Some(Registration::Changed))
    }

    /// What a register says about an EID that the location database decides about.
    #[expect(clippy::too_many_arguments, reason = "who says what about which, and where it is")]
    fn judge_mobile(
        &mut self,
        now: Instant,
        who: Registrant,
        key: EidKey,
        slot: Option<Slot>,
        bound: Option<Mapping>,
        record: &EidRecord,
        out: &mut Vec<Output>,
    ) -> Result<Option<Registration>, Refusal> {
        let Some(bound) = bound else { return Ok(Some(Registration::First)) };
        if bound.anchor == self.anchor(who) {
            let same = slot.is_some_and(|s| {
                let entry = self.registrations.entry(s);
                entry.version == record.version
                    && self.registrations.says(s, record.ttl_min, &record.rlocs)
            });
            return Ok((!same).then_some(Registration::Changed));
        }
        if is_older(record.version, bound.version) {
            // It does not know yet: the same news as for the one that had it last.
            if !self.was_told(who.xtr, key) {
                let current = self.mobile_record(key, bound);
                self.tell_old(now, who.xtr, key, current, out);
            }
            return Err(Refusal::StaleVersion);
        }
        if record.version == MapVersion::NULL && self.was_told(who.xtr, key) {
            return Err(Refusal::MovedAway);
        }
        Ok(Some(Registration::Changed))
    }

    /// Whether the xTR is being told that the EID is elsewhere, and has not acknowledged.
    fn was_told(&self, xtr: XtrIndex, key: EidKey) -> bool {
        self.outstanding.find(Whom::OldXtr(xtr), key).is_some()
    }

    fn accept(&mut self, who: Registrant, slot: Slot, record: &EidRecord, expires: Seconds) {
        // Not merged any more, even if it says the same.
        if self.registrations.entry(slot).flags.merged
            || !self.registrations.says(slot, record.ttl_min, &record.rlocs)
        {
            self.registrations.set_content(slot, record.ttl_min, &record.rlocs);
        }
        let entry = self.registrations.entry_mut(slot);
        entry.holder = who.xtr;
        entry.expires = expires;
        entry.version = record.version;
        entry.flags.proxy = who.proxy;
        entry.flags.signs = who.signs;
        entry.flags.cant_sign = !who.signs;
    }

    fn announce(
        &mut self,
        now: Instant,
        who: Registrant,
        slot: Slot,
        what: Registration,
        out: &mut Vec<Output>,
    ) {
        // It is here now: what was on its way to say that it is elsewhere is no longer true.
        let key = self.registrations.key(slot);
        self.outstanding.remove(Whom::OldXtr(who.xtr), key);
        let entry = *self.registrations.entry(slot);
        let rlocs = self.registrations.content(slot).map(|c| rloc_set(&c.rlocs));
        out.push(Output::Registered {
            anchor: self.anchor(who),
            xtr: who.name,
            iid: key.iid(),
            prefix: key.prefix(),
            mobile: entry.flags.mobile,
            version: entry.version,
            rlocs: rlocs.unwrap_or_default(),
            what,
        });
        if !entry.flags.mobile {
            self.publish_registered(now, slot, out);
        }
    }

    fn withdraw(
        &mut self,
        now: Instant,
        who: Registrant,
        slot: Slot,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let entry = *self.registrations.entry(slot);
        if entry.flags.merged {
            match self.registrations.unmerge(slot, who.xtr) {
                None => return self.not_held(),
                Some(true) => {
                    self.announce(now, who, slot, Registration::Changed, out);
                    return Ok(());
                }
                Some(false) => {}
            }
        } else if entry.holder != who.xtr {
            return self.not_held();
        }
        let key = self.registrations.key(slot);
        out.push(Output::Withdrawn {
            anchor: self.anchor(who),
            xtr: who.name,
            iid: key.iid(),
            prefix: key.prefix(),
            mobile: entry.flags.mobile,
        });
        self.end(now, slot, out);
        Ok(())
    }

    /// A withdrawal by an xTR that holds nothing here (any more): it has what it wants, and is
    /// told so, or it would ask for ever. Nothing of anybody else changes.
    pub(super) fn not_held(&mut self) -> Result<(), Refusal> {
        self.counters.withdrawn_not_held += 1;
        Ok(())
    }

    /// Nobody has refreshed a registration in time.
    pub(super) fn expire(&mut self, now: Instant, slot: Slot, out: &mut Vec<Output>) {
        let entry = *self.registrations.entry(slot);
        let key = self.registrations.key(slot);
        if let Some(anchor) = self.sites.anchor_of(entry.holder) {
            out.push(Output::Expired {
                anchor,
                iid: key.iid(),
                prefix: key.prefix(),
                mobile: entry.flags.mobile,
            });
        }
        self.end(now, slot, out);
    }

    /// Nobody registers it any more. A mobile one stays while the hall has it published.
    fn end(&mut self, now: Instant, slot: Slot, out: &mut Vec<Output>) {
        let entry = *self.registrations.entry(slot);
        let key = self.registrations.key(slot);
        if entry.flags.mobile {
            self.registrations.clear_content(slot);
            if !entry.flags.published {
                self.registrations.remove(slot);
            }
        } else {
            self.registrations.remove(slot);
            self.publish_gone(now, key, out);
        }
    }

    /// An xTR is told that an EID which it had registered is elsewhere now.
    pub(super) fn tell_old(
        &mut self,
        now: Instant,
        old: XtrIndex,
        key: EidKey,
        record: EidRecord,
        out: &mut Vec<Output>,
    ) {
        let Some(&xtr) = self.sites.find_xtr(old) else { return };
        let sign_with = self.key_of(old);
        let notify = MapNotify {
            nonce: self.notify_nonces.next(out),
            authentication: sign_with.authentication(),
            records: vec![record],
            id: xtr.id,
        };
        self.counters.notifies += 1;
        let waiting = Waiting {
            whom: Whom::OldXtr(old),
            about: key.into(),
            notify,
            sign_with,
            addrs: vec![xtr.addr],
        };
        self.outstanding.send(waiting, now, now, out);
    }

    /// The record of a mobile EID: as its ETR has registered it when it is at that ETR's anchor,
    /// else the FE_E of its anchor.
    pub(super) fn mobile_record(&self, key: EidKey, mapping: Mapping) -> EidRecord {
        let slot = self.registrations.find(key);
        let of_etr = slot.filter(|&s| {
            self.sites.anchor_of(self.registrations.entry(s).holder) == Some(mapping.anchor)
        });
        let (ttl_min, rlocs) = match of_etr.and_then(|s| self.registrations.content(s)) {
            Some(content) => (content.ttl_min, rlocs_of_others(&content.rlocs)),
            None => (self.config.record_ttl_min, fe_e_rlocs(mapping)),
        };
        EidRecord {
            ttl_min,
            action: NegativeAction::NoAction,
            authoritative: false,
            version: mapping.version,
            eid: eid(key),
            rlocs,
        }
    }
}

/// By when it has to be.
pub(super) fn registered_again(now: Instant, who: Registrant, record: &EidRecord) -> Seconds {
    let timeout = if who.use_ttl {
        Duration::from_secs(u64::from(record.ttl_min) * 60)
    } else {
        REGISTRATION_TIMEOUT
    };
    Seconds::after(now, timeout)
}

/// Where exactly this prefix is bound.
pub(super) fn find_bound(mappings: &impl Mappings, key: EidKey) -> Option<Mapping> {
    let prefix = key.prefix();
    mappings.find(key.iid(), prefix.addr()).filter(|(p, _)| *p == prefix).map(|(_, m)| m)
}

/// The key of an IP prefix in an instance that a data packet can name (RFC 9300 §5.1).
pub(super) fn eid_key(eid: &Eid) -> Option<EidKey> {
    match *eid {
        Eid::Prefix { iid, prefix } if iid <= InstanceId::MAX => Some(EidKey::new(iid, prefix)),
        Eid::Prefix { .. } | Eid::None | Eid::SourceDestination { .. } | Eid::Other { .. } => None,
    }
}

pub(super) fn eid(key: EidKey) -> Eid {
    Eid::Prefix { iid: key.iid(), prefix: key.prefix() }
}

/// Locators as a Map-Server says them for an ETR: not its own (L), not probed (§5.4).
pub(super) fn rlocs_of_others(rlocs: &[RlocRecord]) -> Vec<RlocRecord> {
    rlocs.iter().map(|r| RlocRecord { local: false, probed: false, ..r.clone() }).collect()
}

fn fe_e_rlocs(mapping: Mapping) -> Vec<RlocRecord> {
    let v4 = mapping.fe_e.ipv4.map(IpAddr::V4);
    let v6 = mapping.fe_e.ipv6.map(IpAddr::V6);
    let rloc = |addr| RlocRecord {
        priority: 1,
        weight: 100,
        multicast_priority: 255,
        multicast_weight: 0,
        local: false,
        probed: false,
        reachable: true,
        address: crate::wire::lisp::RlocAddress::Ip(addr),
    };
    v4.into_iter().chain(v6).map(rloc).collect()
}

fn rloc_set(rlocs: &[RlocRecord]) -> RlocSet {
    let rloc = |r: &RlocRecord| {
        Some(Rloc { addr: r.address.ip()?, priority: r.priority, weight: r.weight })
    };
    RlocSet::new(rlocs.iter().filter_map(rloc).collect())
}

/// RFC 9302 §6. A null version is not older than anything.
pub(super) fn is_older(version: MapVersion, known: MapVersion) -> bool {
    // Any generation that this version says, far enough from the first.
    let at = Generation(u32::from(known.0) + 0xfff * 2);
    known != MapVersion::NULL && version.generation_near(at).is_some_and(|g| g < at)
}
