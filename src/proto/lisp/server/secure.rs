//! LISP-SEC at the Map-Resolver and Map-Server (RFC 9303 §6.6, §6.7): the ITR's one-time key is
//! opened, what is vouched for is signed with it, and the one derived from it signs the Map-Reply:
//! our own, or that of the ETR, for which it is wrapped again.
//!
//! Vouched for is the prefix that the reply is about; to an ETR, the registered prefix without what
//! others have registered inside it. §6.7.1 names the registered one as it is, by which the ETR of
//! an aggregate could claim the hosts that have moved out of it.
//!
//! Keys of subscriptions are configured ones. None is derived from a one-time key (RFC 9437 §7.1
//! would allow it), so that a repeated one gives nobody a subscription.

use std::net::{IpAddr, SocketAddr};

use super::{MapServer, Refusal};
use crate::auth::{Otk, OtkHmac, OtkKdf};
use crate::proto::lisp::security::{self, NotOpened, WRAP};
use crate::types::lisp::XtrId;
use crate::wire::lisp::{
    EcmSecurity, Eid, EidAuthentication, EidRecord, MapReply, MapRequest, SignedEids,
};

pub use crate::proto::lisp::security::Security;

/// An ITR whose questions carry a one-time key.
#[derive(Clone, Debug)]
pub struct SecuredItr {
    pub xtr_id: XtrId,
    /// Shared with this ITR, and never with a site (§6.5: its ETR could open ITR-OTKs, and sign
    /// what it claims itself).
    pub key: Security,
    /// Where its questions come from; empty: anywhere.
    pub rlocs: Vec<IpAddr>,
}

/// LISP-SEC as configured.
#[derive(Clone, Debug, Default)]
pub struct SecurityConfig {
    pub itrs: Vec<SecuredItr>,
    /// Questions without a one-time key are refused. Not subscriptions, which have their own keys.
    pub required: bool,
    /// Whether HMAC-SHA-1-96 and HKDF-SHA1-128 are used when an ITR prefers them.
    pub allow_sha1: bool,
}

/// What a question says about how its answer is to be proved.
pub(super) struct Protection {
    itr_otk: Otk,
    hmac: OtkHmac,
    kdf: OtkKdf,
}

impl MapServer {
    /// Opens the key that came with a question. Who names an xTR-ID is that one or nobody; the
    /// others are told by the number of their key.
    pub(super) fn open(
        &self,
        from: SocketAddr,
        request: &MapRequest,
        octets: &[u8],
    ) -> Result<Protection, Refusal> {
        let config = &self.config.security;
        let may_be = |itr: &&SecuredItr| {
            request.id.is_none_or(|(xtr, _)| xtr == itr.xtr_id)
                && (itr.rlocs.is_empty() || itr.rlocs.contains(&from.ip()))
        };
        let keys = config.itrs.iter().filter(may_be).map(|itr| &itr.key);
        let (asked, itr_otk) = security::open(octets, request.nonce, keys)?;
        let hmac = OtkHmac::of_id(asked.requested_hmac);
        let kdf = OtkKdf::of_id(asked.eids.kdf());
        Ok(Protection {
            itr_otk,
            // What is not supported is replaced, and the reply says by what (§6.7, §6.7.1).
            hmac: hmac
                .filter(|&h| h != OtkHmac::Sha1_96 || config.allow_sha1)
                .unwrap_or(OtkHmac::Sha256_128),
            kdf: kdf
                .filter(|&k| k != OtkKdf::Sha1_128 || config.allow_sha1)
                .unwrap_or(OtkKdf::Sha256),
        })
    }
}

impl From<NotOpened> for Refusal {
    fn from(why: NotOpened) -> Self {
        match why {
            NotOpened::NotWrapped => Self::OneTimeKeyBare,
            NotOpened::NoKey => Self::OneTimeKeyUnknown,
            NotOpened::WrongKey => Self::OneTimeKeyWrong,
        }
    }
}

impl Protection {
    fn sign(&self, eids: Vec<Eid>, cant_sign: bool) -> EidAuthentication {
        let (hmac_id, hmac_len) = (self.hmac.id(), self.hmac.len());
        let signed = SignedEids { cant_sign, hmac_id, hmac_len, eids };
        EidAuthentication::signed(self.kdf.id(), signed, |octets| {
            self.itr_otk.sign(self.hmac, octets);
        })
    }

    /// Our own reply (§6.7.2).
    pub fn prove(&self, reply: MapReply, cant_sign: bool) -> MapReply {
        let eid = |record: &EidRecord| record.eid.clone();
        let eids = self.sign(reply.records.iter().map(eid).collect(), cant_sign);
        security::prove(reply, eids, &self.itr_otk.derive(self.kdf), self.hmac)
    }

    /// What goes to the ETR with the question (§6.7.1).
    pub fn pass_on(&self, nonce: u64, site: &Security, eids: Vec<Eid>, cant_sign: bool) -> Vec<u8> {
        let ms_otk = self.itr_otk.derive(self.kdf);
        let security = EcmSecurity {
            requested_hmac: self.hmac.id(),
            key_id: site.key_id,
            wrapping: WRAP.id(),
            wrapped_otk: ms_otk.wrap(WRAP, nonce, &site.secret),
            eids: self.sign(eids, cant_sign),
        };
        let mut octets = Vec::new();
        security.encode(&mut octets);
        octets
    }
}
