//! LISP-SEC (RFC 9303) as all its parties have it: who opens a one-time key, and how a Map-Reply
//! proves that it was made with one.

use crate::auth::{Otk, OtkHmac, OtkWrap, Secret};
use crate::wire::Reader;
use crate::wire::lisp::{EcmSecurity, EidAuthentication, MapReply, ReplySecurity};

/// Keys that are tried for one message: each costs a key derivation and an unwrapping, which
/// somebody unknown makes us compute.
const KEY_TRIALS_MAX: usize = 8;

/// How keys travel here. Bare ones need an encrypted transport (§6.4, §6.5), which we have not.
pub(super) const WRAP: OtkWrap = OtkWrap::Aes128;

/// A pre-shared secret, and its number on the wire.
#[derive(Clone, Debug)]
pub struct Security {
    pub key_id: u8,
    pub secret: Secret,
}

/// Why a message with a one-time key is discarded (§6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// It travels unencrypted, or in a way that is not known.
    NotWrapped,
    /// Nobody has a secret with this number.
    NoKey,
    /// None of the secrets is the one that it is wrapped with.
    WrongKey,
}

/// What came with an ECM, and the one-time key in it. `keys` are the secrets of those who may have
/// sent it; `nonce` is of the Map-Request inside.
pub(super) fn open<'a>(
    octets: &[u8],
    nonce: u64,
    keys: impl Iterator<Item = &'a Security>,
) -> Result<(EcmSecurity, Otk), NotOpened> {
    let security =
        EcmSecurity::decode(&mut Reader::new(octets)).map_err(|_| NotOpened::NotWrapped)?;
    if OtkWrap::of_id(security.wrapping) != Some(WRAP) {
        return Err(NotOpened::NotWrapped);
    }
    let mut error = NotOpened::NoKey;
    for key in keys.filter(|key| key.key_id == security.key_id).take(KEY_TRIALS_MAX) {
        match Otk::unwrap(&security.wrapped_otk, WRAP, nonce, &key.secret) {
            Ok(otk) => return Ok((security, otk)),
            Err(_) => error = NotOpened::WrongKey,
        }
    }
    Err(error)
}

/// The Map-Reply with its EID-AD and, over the whole of it, the HMAC of the PKT-AD (§6.8).
pub(super) fn prove(
    mut reply: MapReply,
    eids: EidAuthentication,
    ms_otk: &Otk,
    hmac: OtkHmac,
) -> MapReply {
    let mut data = Vec::new();
    ReplySecurity { eids, hmac_id: hmac.id(), hmac: vec![0; hmac.len()] }.encode(&mut data);
    let at = data.len() - hmac.len();
    reply.security = Some(data);
    let mut octets = Vec::new();
    reply.encode(&mut octets);
    ms_otk.sign(hmac, &mut octets);
    // The HMAC is the end of the message, and of its authentication data.
    if let Some(data) = &mut reply.security {
        data[at..].copy_from_slice(&octets[octets.len() - hmac.len()..]);
    }
    reply
}
