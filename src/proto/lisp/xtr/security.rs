//! LISP-SEC at the ITR (RFC 9303 §6.4, §6.9): each question carries a key, wrapped for the
//! Map-Resolver, with which the Map-Server signs what it vouches for and the answer is signed.

use super::{Nonces, Security};
use crate::auth::{Otk, OtkHmac, OtkKdf};
use crate::proto::lisp::security::WRAP;
use crate::wire::lisp::{EcmSecurity, EidAuthentication, MapReply, ReplySecurity, SignedEids};

/// What is asked for, and the one that is accepted.
const HMAC: OtkHmac = OtkHmac::Sha256_128;
const KDF: OtkKdf = OtkKdf::Sha256;

impl Security {
    pub(super) fn one_time_key(nonces: &mut Nonces) -> Otk {
        let mut octets = [0; 16];
        for part in octets.chunks_mut(8) {
            part.copy_from_slice(&nonces.random().to_be_bytes());
        }
        Otk::new(octets)
    }

    /// The authentication data of the ECM.
    pub(super) fn protect(&self, otk: &Otk, nonce: u64) -> Vec<u8> {
        let security = EcmSecurity {
            requested_hmac: HMAC.id(),
            key_id: self.key_id,
            wrapping: WRAP.id(),
            wrapped_otk: otk.wrap(WRAP, nonce, &self.secret),
            eids: EidAuthentication::request(KDF.id()),
        };
        let mut octets = Vec::new();
        security.encode(&mut octets);
        octets
    }
}

/// What the Map-Server vouches for, if the reply proves that it was made with the key (§6.9). `raw`
/// is the datagram.
pub(super) fn proven(otk: &Otk, reply: &MapReply, raw: &[u8]) -> Option<SignedEids> {
    let security = ReplySecurity::decode(reply.security.as_ref()?).ok()?;
    let signed = security.eids.eids()?;
    let as_asked = security.eids.kdf() == KDF.id()
        && security.hmac_id == HMAC.id()
        && signed.hmac_id == HMAC.id()
        && signed.hmac_len == HMAC.len()
        && security.hmac.len() == HMAC.len();
    if !as_asked {
        return None;
    }
    otk.verify(HMAC, security.eids.octets()).ok()?;
    otk.derive(KDF).verify(HMAC, raw).ok()?;
    Some(signed.clone())
}
