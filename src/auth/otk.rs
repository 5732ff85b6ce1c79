//! One-time keys of LISP-SEC (RFC 9303): how they travel, what is derived from them, and what they
//! sign.
//!
//! An ITR makes a key for each Map-Request (the ITR-OTK) and wraps it for its Map-Resolver. The
//! Map-Server signs with it which prefixes it vouches for, derives another one (the MS-OTK), and
//! wraps that for the ETR, which signs the Map-Reply with it. The ITR has both.

use std::fmt;

use aes_kw::{KeyInit, KwAes128};
use ring::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{AuthError, Secret};

/// Octets of a key, and of what wraps it.
const LEN: usize = 16;
const WRAPPED_LEN: usize = LEN + 8;

/// A key for one Map-Request. Overwritten when dropped; prints nothing of itself.
#[derive(Clone)]
pub struct Otk(Zeroizing<[u8; LEN]>);

impl fmt::Debug for Otk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Otk")
    }
}

/// How a key is wrapped (RFC 9303 §8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtkWrap {
    /// 1: not at all, with a preamble of 0. Only where something else encrypts (§6.5).
    Null,
    /// 2: AES key wrap (RFC 3394) with a key of 128 bits for each message.
    Aes128,
}

/// What the HMACs are (RFC 9303 §8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtkHmac {
    Sha1_96,
    Sha256_128,
}

/// How the MS-OTK is derived from the ITR-OTK (RFC 9303 §8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtkKdf {
    Sha1_128,
    Sha256,
}

impl OtkWrap {
    pub const fn id(self) -> u8 {
        match self {
            Self::Null => 1,
            Self::Aes128 => 2,
        }
    }

    pub const fn of_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Null),
            2 => Some(Self::Aes128),
            _ => None,
        }
    }
}

impl OtkHmac {
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1_96 => 1,
            Self::Sha256_128 => 2,
        }
    }

    /// `None` for 0, which is "no preference", and for what is not known.
    pub const fn of_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Sha1_96),
            2 => Some(Self::Sha256_128),
            _ => None,
        }
    }

    /// Octets of the HMAC.
    #[expect(clippy::len_without_is_empty, reason = "the length of what it makes")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha1_96 => 12,
            Self::Sha256_128 => 16,
        }
    }

    const fn hash(self) -> hmac::Algorithm {
        match self {
            Self::Sha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256_128 => hmac::HMAC_SHA256,
        }
    }
}

impl OtkKdf {
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1_128 => 1,
            Self::Sha256 => 2,
        }
    }

    /// `None` for 0, which is "no preference", and for what is not known.
    pub const fn of_id(id: u16) -> Option<Self> {
        match id {
            1 => Some(Self::Sha1_128),
            2 => Some(Self::Sha256),
            _ => None,
        }
    }
}

impl Otk {
    /// Of random octets, which the caller has.
    pub fn new(octets: [u8; LEN]) -> Self {
        Self(Zeroizing::new(octets))
    }

    /// As it travels with the Map-Request that has this nonce (§6.5).
    pub fn wrap(&self, wrap: OtkWrap, nonce: u64, secret: &Secret) -> [u8; WRAPPED_LEN] {
        let mut out = [0; WRAPPED_LEN];
        match wrap {
            OtkWrap::Null => out[WRAPPED_LEN - LEN..].copy_from_slice(&self.0[..]),
            OtkWrap::Aes128 => {
                wrapping_key(nonce, secret)
                    .wrap_key(&self.0[..], &mut out)
                    .expect("the lengths of a wrapped key of 128 bits");
            }
        }
        out
    }

    pub fn unwrap(
        wrapped: &[u8; WRAPPED_LEN],
        wrap: OtkWrap,
        nonce: u64,
        secret: &Secret,
    ) -> Result<Self, AuthError> {
        let mut octets = Zeroizing::new([0; LEN]);
        match wrap {
            OtkWrap::Null => {
                let (preamble, key) = wrapped.split_at(WRAPPED_LEN - LEN);
                if preamble.iter().any(|&octet| octet != 0) {
                    return Err(AuthError::Wrapped);
                }
                octets.copy_from_slice(key);
            }
            OtkWrap::Aes128 => {
                wrapping_key(nonce, secret)
                    .unwrap_key(wrapped, &mut octets[..])
                    .map_err(|_| AuthError::Wrapped)?;
            }
        }
        Ok(Self(octets))
    }

    /// The MS-OTK of an ITR-OTK. §6.7.1 names the function and not its inputs: no salt and no
    /// info, and as many octets as a one-time key has.
    pub fn derive(&self, kdf: OtkKdf) -> Self {
        let hash = match kdf {
            OtkKdf::Sha1_128 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            OtkKdf::Sha256 => hmac::HMAC_SHA256,
        };
        Self(hkdf(hash, &[&self.0[..]]))
    }

    /// Signs an EID-AD or a Map-Reply: the HMAC is the last octets, and over all with these as 0
    /// (§6.7.1, §6.8). Nothing is done to what has no room for it.
    pub fn sign(&self, hmac: OtkHmac, octets: &mut [u8]) {
        let Some(at) = octets.len().checked_sub(hmac.len()) else { return };
        let tag = self.tag(hmac, &octets[..at]);
        octets[at..].copy_from_slice(&tag.as_ref()[..hmac.len()]);
    }

    pub fn verify(&self, hmac: OtkHmac, octets: &[u8]) -> Result<(), AuthError> {
        let at = octets.len().checked_sub(hmac.len()).ok_or(AuthError::Length)?;
        let tag = self.tag(hmac, &octets[..at]);
        let same = tag.as_ref()[..hmac.len()].ct_eq(&octets[at..]);
        if same.into() { Ok(()) } else { Err(AuthError::Mismatch) }
    }

    fn tag(&self, hmac: OtkHmac, before: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac.hash(), &self.0[..]));
        context.update(before);
        context.update(&[0; LEN][..hmac.len()]);
        context.sign()
    }
}

/// per-msg-key = KDF(nonce + "OTK-Key-Wrap" + PSK), of 128 bits (§6.5).
fn wrapping_key(nonce: u64, secret: &Secret) -> KwAes128 {
    let key = hkdf(hmac::HMAC_SHA256, &[&nonce.to_be_bytes(), b"OTK-Key-Wrap", secret.octets()]);
    KwAes128::new((&*key).into())
}

/// HKDF (RFC 5869) of the parts in a row, without salt and info, 128 bits: the first block of the
/// expansion is longer than that with both hashes.
fn hkdf(hash: hmac::Algorithm, parts: &[&[u8]]) -> Zeroizing<[u8; LEN]> {
    // A salt that is not given is zeroes (§2.2), which is what HMAC makes of an empty key.
    let mut extract = hmac::Context::with_key(&hmac::Key::new(hash, &[]));
    for part in parts {
        extract.update(part);
    }
    let pseudo_random = hmac::Key::new(hash, extract.sign().as_ref());
    let block = hmac::sign(&pseudo_random, &[1]);
    let mut out = Zeroizing::new([0; LEN]);
    out.copy_from_slice(&block.as_ref()[..LEN]);
    out
}

#[cfg(test)]
mod tests {
    use ring::hkdf;

    use super::*;

    const KEY: [u8; LEN] = *b"0123456789abcdef";

    fn secret() -> Secret {
        Secret::new(b"between an ITR and its resolver".to_vec())
    }

    /// RFC 9303 §6.5: wrapped it is opened by the same secret and nonce only, and unchanged only.
    #[test]
    fn a_key_travels_wrapped() {
        for wrap in [OtkWrap::Null, OtkWrap::Aes128] {
            assert_eq!(OtkWrap::of_id(wrap.id()), Some(wrap));
            let wrapped = Otk::new(KEY).wrap(wrap, 7, &secret());
            let open = |wrapped: &[u8; WRAPPED_LEN], nonce, secret: &Secret| {
                Otk::unwrap(wrapped, wrap, nonce, secret)
            };
            assert_eq!(*open(&wrapped, 7, &secret()).unwrap().0, KEY);
            for at in 0..WRAPPED_LEN {
                let mut changed = wrapped;
                changed[at] ^= 1;
                let opened = open(&changed, 7, &secret());
                // What is not encrypted is protected by what carries it.
                assert!(opened.is_err() || wrap == OtkWrap::Null && at >= 8, "octet {at}");
            }
            if wrap == OtkWrap::Aes128 {
                assert_eq!(open(&wrapped, 8, &secret()).unwrap_err(), AuthError::Wrapped);
                let other = Secret::new(b"another".to_vec());
                assert_eq!(open(&wrapped, 7, &other).unwrap_err(), AuthError::Wrapped);
                assert!(!wrapped.windows(4).any(|part| KEY.windows(4).any(|key| key == part)));
            }
        }
    }

    /// RFC 9303 §6.7.1, by another implementation of HKDF.
    #[test]
    fn the_derived_key_is_as_rfc_5869_has_it() {
        for (kdf, hash) in [
            (OtkKdf::Sha1_128, hkdf::HKDF_SHA1_FOR_LEGACY_USE_ONLY),
            (OtkKdf::Sha256, hkdf::HKDF_SHA256),
        ] {
            assert_eq!(OtkKdf::of_id(kdf.id()), Some(kdf));
            let key = hkdf::Salt::new(hash, &[]).extract(&KEY);
            let mut want = [0; 32];
            // This one gives whole hashes only, of which the beginning is the same.
            let len = if kdf == OtkKdf::Sha1_128 { 20 } else { 32 };
            struct Octets(usize);
            impl hkdf::KeyType for Octets {
                fn len(&self) -> usize {
                    self.0
                }
            }
            key.expand(&[], Octets(len)).unwrap().fill(&mut want[..len]).unwrap();
            assert_eq!(Otk::new(KEY).derive(kdf).0[..], want[..LEN]);
        }
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else() {
        for hmac in [OtkHmac::Sha1_96, OtkHmac::Sha256_128] {
            assert_eq!(OtkHmac::of_id(hmac.id()), Some(hmac));
            let key = Otk::new(KEY);
            let mut octets = vec![5; 50];
            key.sign(hmac, &mut octets);
            assert_eq!(key.verify(hmac, &octets), Ok(()));
            assert_eq!(key.derive(OtkKdf::Sha256).verify(hmac, &octets), Err(AuthError::Mismatch));
            for at in 0..octets.len() {
                octets[at] ^= 1;
                assert_eq!(key.verify(hmac, &octets), Err(AuthError::Mismatch));
                octets[at] ^= 1;
                assert!(key.verify(hmac, &octets[..at]).is_err());
            }
        }
        assert_eq!(format!("{:?}", Otk::new(KEY)), "Otk");
    }
}
