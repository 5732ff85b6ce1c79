//! ETR: answers for what is registered here, and tells ITRs that send to what no longer is
//! (RFC 9301 §5.5, §6.1, §7.1).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::rate::{Buckets, Spacing};
use super::record::{self, is_locator, prefix_of};
use super::registration::{Registrar, RegistrarConfig};
use super::{Nonces, Output, Security, Seed};
use crate::auth::{Otk, OtkHmac};
use crate::proto::lisp::security::{self, NotOpened};
use crate::types::lisp::{InstanceId, NegativeAction, usable};
use crate::types::{Family, Instant, Prefix};
use crate::wire::lisp::{
    CONTROL_PORT, EcmSecurity, EidRecord, MapReply, MapRequest, Message, RequestRecord, RlocAddress,
};

/// "No more than one packet every 3 seconds" for one destination (§6.1): here for one destination
/// and EID. A node has several (IPv4 and IPv6), and the second would lose its packets for 3 s; how
/// many leave in all is bounded by [`SOLICITED_MAX`].
const SOLICIT_EVERY: Duration = Duration::from_secs(3);
/// ITRs and EIDs that are waited for at once. One more is not solicited, and counted; its next late packet
/// tries again.
const SOLICITED_MAX: usize = 4096;

/// Map-Replies "MUST be rate limited" (§5.4). One in three seconds, as recommended, would leave
/// probes of a faster pace without an answer, and call a locator down that is not.
const REPLY_BURST: u32 = 64;
const REPLY_PER_SECOND: u32 = 32;

/// How long an answer holds that there is nothing here.
const NEGATIVE_TTL_MIN: u32 = 1;

#[derive(Clone, Debug)]
pub struct EtrConfig {
    pub registrar: RegistrarConfig,
    /// Our locators: one of each family that has an underlay.
    pub rlocs: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EtrCounts {
    pub probes_answered: u64,
    pub requests_answered: u64,
    /// About EIDs that are not registered here.
    pub request_unknown_eid: u64,
    /// A probe that came through the mapping system (§7.1).
    pub request_probe_in_ecm: u64,
    /// No ITR-RLOC that can be sent to, or no reply wanted.
    pub request_no_rloc: u64,
    pub reply_limited: u64,
    /// With a one-time key that is not wrapped, or not by one of our Map-Servers.
    pub request_bad_key: u64,
    /// Replies with a proof (RFC 9303).
    pub replies_proven: u64,
    pub solicited: u64,
    pub solicit_limited: u64,
    /// The sender's address cannot be one of an ITR.
    pub solicit_bad_rloc: u64,
}

/// How a Map-Request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// As it is, from the ITR.
    Direct,
    /// In an ECM, with what this says about keys (RFC 9303).
    Ecm(Option<&'a [u8]>),
}

#[derive(Debug)]
pub struct Etr {
    pub registrar: Registrar,
    rlocs: Vec<IpAddr>,
    families: Vec<Family>,
    nonces: Nonces,
    security: Vec<Security>,
    replies: Buckets,
    solicited: Spacing<(IpAddr, IpAddr)>,
    counts: EtrCounts,
}

impl Etr {
    pub fn new(config: EtrConfig, seed: Seed) -> Self {
        let mut nonces = Nonces::new(seed);
        let mut families: Vec<Family> =
            config.rlocs.iter().map(|&addr| Prefix::host(addr).family()).collect();
        families.sort_unstable();
        families.dedup();
        Self {
            registrar: Registrar::new(config.registrar, nonces.split()),
            rlocs: config.rlocs,
            families,
            nonces,
            security: Vec::new(),
            replies: Buckets::new(REPLY_BURST, REPLY_PER_SECOND),
            solicited: Spacing::new(SOLICIT_EVERY, SOLICITED_MAX),
            counts: EtrCounts::default(),
        }
    }

    /// What we share with the Map-Servers: questions that come with a key are answered with a proof
    /// (RFC 9303 §6.8), and registrations say so.
    pub fn with_security(mut self, keys: Vec<Security>) -> Self {
        if !keys.is_empty() {
            self.registrar.set_security_capable();
        }
        self.security = keys;
        self
    }

    /// A Map-Request: forwarded by a Map-Server (`from` is then the source inside the ECM), or sent
    /// to us by an ITR that has our mapping. `local` is the address that it came to.
    pub fn handle_map_request(
        &mut self,
        from: SocketAddr,
        local: IpAddr,
        arrival: Arrival<'_>,
        request: &MapRequest,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if request.probe && arrival != Arrival::Direct {
            self.counts.request_probe_in_ecm += 1;
            return;
        }
        let Some(to) = self.reply_to(from, request).filter(|_| !request.dont_reply) else {
            self.counts.request_no_rloc += 1;
            return;
        };
        let probed = request.probe.then_some(local);
        let asked = request.records.iter().filter_map(|record| prefix_of(&record.eid));
        let records: Vec<EidRecord> =
            asked.filter_map(|(iid, prefix)| self.answer(iid, prefix, probed)).collect();
        // An ITR whose EID has left is not told so by us: a moment later the Map-Server knows where
        // to, and a negative answer would stop the traffic for its whole TTL.
        if records.is_empty() {
            self.counts.request_unknown_eid += 1;
            return;
        }
        let Ok(key) = self.open(arrival, request.nonce) else {
            self.counts.request_bad_key += 1;
            return;
        };
        if !self.replies.take(to.ip(), now) {
            self.counts.reply_limited += 1;
            return;
        }
        match probed {
            Some(_) => self.counts.probes_answered += 1,
            None => self.counts.requests_answered += 1,
        }
        let reply = MapReply {
            probe: request.probe,
            echo_nonce: false,
            nonce: request.nonce,
            records,
            security: None,
        };
        let reply = match key {
            None => reply,
            Some((asked, ms_otk)) => {
                self.counts.replies_proven += 1;
                let hmac = OtkHmac::of_id(asked.requested_hmac).unwrap_or(OtkHmac::Sha256_128);
                security::prove(reply, asked.eids, &ms_otk, hmac)
            }
        };
        out.push(Output::Send { to, message: Message::MapReply(reply), sign_with: None });
    }

    /// The key that the reply is to be signed with, if there is one. Without keys of ours we are an
    /// ETR that does not know LISP-SEC, and answer as one; an ITR that asked for a proof knows.
    fn open(
        &self,
        arrival: Arrival<'_>,
        nonce: u64,
    ) -> Result<Option<(EcmSecurity, Otk)>, NotOpened> {
        match arrival {
            Arrival::Ecm(Some(octets)) if !self.security.is_empty() => {
                security::open(octets, nonce, self.security.iter()).map(Some)
            }
            Arrival::Ecm(_) | Arrival::Direct => Ok(None),
        }
    }

    /// §5.5: one of the ITR-RLOCs, of a family that we have; the port that was asked from. Where the
    /// request came from is preferred, since that is known to work.
    fn reply_to(&self, from: SocketAddr, request: &MapRequest) -> Option<SocketAddr> {
        let rlocs = || {
            let rlocs = request.itr_rlocs.iter().filter_map(RlocAddress::ip);
            rlocs.filter(|&addr| is_locator(addr) && usable(addr, &self.families))
        };
        let addr = rlocs().find(|&addr| addr == from.ip()).or_else(|| rlocs().next())?;
        Some(SocketAddr::new(addr, from.port()))
    }

    /// The mapping of what was asked. Of an aggregate only the part that was asked for: hosts
    /// within the rest may be elsewhere.
    fn answer(&self, iid: InstanceId, prefix: Prefix, probed: Option<IpAddr>) -> Option<EidRecord> {
        let Some((_, rlocs, version)) = self.registrar.find(iid, prefix) else {
            // A probe is answered whatever it asks for (§5.2): it is about the locator.
            probed?;
            let action = NegativeAction::NoAction;
            let nothing = record::negative(iid, prefix, action, NEGATIVE_TTL_MIN);
            return Some(EidRecord { authoritative: true, ..nothing });
        };
        let ours = |addr: IpAddr| self.rlocs.contains(&addr);
        Some(EidRecord {
            ttl_min: self.registrar.ttl_min(),
            action: NegativeAction::NoAction,
            authoritative: true,
            version,
            eid: record::eid(iid, prefix),
            rlocs: record::rloc_records(rlocs, probed, ours),
        })
    }

    /// A packet for `destination`, which is no longer here, came from the ITR at `rloc`: it is
    /// asked to ask (§6.1). Its source is the EID that is local to the ITR.
    pub fn solicit(
        &mut self,
        rloc: IpAddr,
        iid: InstanceId,
        source: IpAddr,
        destination: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if !is_locator(rloc) || self.rlocs.contains(&rloc) {
            self.counts.solicit_bad_rloc += 1;
            return;
        }
        if !self.solicited.take((rloc, destination), now) {
            self.counts.solicit_limited += 1;
            return;
        }
        self.counts.solicited += 1;
        let eid = |addr| record::eid(iid, Prefix::host(addr));
        let request = MapRequest {
            authoritative: false,
            probe: false,
            smr: true,
            pitr: false,
            smr_invoked: false,
            local_xtr: false,
            // §5.2, D: "when an xTR sends an SMR message, it doesn't need a Map-Reply returned".
            dont_reply: true,
            nonce: self.nonces.random(),
            source_eid: eid(destination),
            itr_rlocs: self.rlocs.iter().map(|&addr| RlocAddress::Ip(addr)).collect(),
            records: vec![RequestRecord { notify: false, eid: eid(source) }],
            map_reply: None,
            id: None,
        };
        out.push(Output::Send {
            to: SocketAddr::new(rloc, CONTROL_PORT),
            message: Message::MapRequest(request),
            sign_with: None,
        });
    }

    pub fn poll_timeout(&self) -> Instant {
        self.registrar.poll_timeout()
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.registrar.handle_timeout(now, out);
    }

    pub fn counts(&self) -> EtrCounts {
        self.counts
    }
}
