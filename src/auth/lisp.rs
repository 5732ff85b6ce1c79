//! Authentication of Map-Register, Map-Notify and Map-Notify-Ack (RFC 9301 §5.6).
//!
//! The fields are at fixed places in all three, so a message is signed and verified as it is on
//! the wire: the nonce at 4, the key ID at 12, the algorithm at 13, the length of the digest at
//! 14, the digest at 16. The digest is over the whole UDP payload with its own octets 0. (The text
//! says "through the end of the last RLOC-Record"; the xTR-ID and the Site-ID behind it are
//! covered too, as in every known implementation: uncovered, they could be changed unseen.)

use ring::hmac;
use subtle::ConstantTimeEq;

use super::Secret;
use crate::wire::lisp::Authentication;

const NONCE: std::ops::Range<usize> = 4..12;
const KEY_ID: usize = 12;
const ALGORITHM: usize = 13;
const LEN: usize = 14;
const DIGEST: usize = 16;

/// The longest digest there is.
const DIGEST_LEN_MAX: usize = 32;
static ZEROES: [u8; DIGEST_LEN_MAX] = [0; DIGEST_LEN_MAX];

/// How a key is used (RFC 9301 §12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 1: HMAC-SHA-1-96 with the pre-shared secret.
    Sha1_96,
    /// 2: HMAC-SHA-256-128 with the pre-shared secret.
    Sha256_128,
    /// 3: HMAC-SHA-256-128 with a key for each message, derived by HKDF-SHA256.
    Hkdf,
}

impl Algorithm {
    /// The number on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Sha1_96 => 1,
            Self::Sha256_128 => 2,
            Self::Hkdf => 3,
        }
    }

    /// The lengths in use: as the name says, and whole. Implementations differ, so both are
    /// accepted; fewer octets than the name says would be easier to guess, and are not.
    const fn digest_lens(self) -> (usize, usize) {
        match self {
            Self::Sha1_96 => (12, 20),
            Self::Sha256_128 | Self::Hkdf => (16, 32),
        }
    }
}

/// How many octets of the digest are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestLen {
    /// As the algorithm's name says: 96 bits of SHA-1, 128 of SHA-256.
    #[default]
    Truncated,
    /// All of them, as some implementations want it.
    Whole,
}

/// Why a message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum AuthError {
    #[error("not a message that is signed")]
    NotSigned,
    #[error("no digest")]
    NoDigest,
    #[error("no key with this key ID")]
    KeyId,
    #[error("the key is for another algorithm")]
    Algorithm,
    #[error("the digest has a length that its algorithm does not have")]
    Length,
    #[error("the digest is wrong")]
    Mismatch,
    #[error("the one-time key is wrapped with another key")]
    Wrapped,
}

/// One pre-shared secret, ready for use.
#[derive(Clone, Debug)]
pub struct LispKey {
    algorithm: Algorithm,
    len: DigestLen,
    key: Prepared,
}

#[derive(Clone, Debug)]
enum Prepared {
    Mac(Box<hmac::Key>),
    Derive(Box<Derivation>),
}

/// Of each kind of message, HKDF's extraction with its salt, and what the nonce precedes.
#[derive(Clone, Debug)]
struct Derivation {
    register: hmac::Key,
    notify: hmac::Key,
    notify_ack: hmac::Key,
    secret: Secret,
}

impl LispKey {
    pub fn new(secret: Secret, algorithm: Algorithm) -> Self {
        let salt = |text: &str| hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
        let mac = |hash| Prepared::Mac(Box::new(hmac::Key::new(hash, secret.octets())));
        let key = match algorithm {
            Algorithm::Sha1_96 => mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            Algorithm::Sha256_128 => mac(hmac::HMAC_SHA256),
            Algorithm::Hkdf => Prepared::Derive(Box::new(Derivation {
                register: salt("Map-Register Authentication"),
                notify: salt("Map-Notify Authentication"),
                notify_ack: salt("Map-Notify-Ack Authentication"),
                secret,
            })),
        };
        Self { algorithm, len: DigestLen::default(), key }
    }

    /// With another length of what is sent. What is accepted stays the same.
    pub fn with_digest_len(mut self, len: DigestLen) -> Self {
        self.len = len;
        self
    }

    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What to encode in a message that [`Self::sign`] signs afterwards.
    pub fn authentication(&self, key_id: u8) -> Authentication {
        let (truncated, whole) = self.algorithm.digest_lens();
        let len = match self.len {
            DigestLen::Truncated => truncated,
            DigestLen::Whole => whole,
        };
        Authentication { key_id, algorithm: self.algorithm.id(), digest: vec![0; len] }
    }

    /// Fills in the digest of an encoded message, which has room for it.
    pub fn sign(&self, message: &mut [u8]) -> Result<(), AuthError> {
        let len = self.digest_len(message)?;
        message[DIGEST..DIGEST + len].fill(0);
        let tag = self.tag(message, len)?;
        message[DIGEST..DIGEST + len].copy_from_slice(&tag.as_ref()[..len]);
        Ok(())
    }

    pub fn verify(&self, message: &[u8]) -> Result<(), AuthError> {
        let len = self.digest_len(message)?;
        let tag = self.tag(message, len)?;
        let same = tag.as_ref()[..len].ct_eq(&message[DIGEST..DIGEST + len]);
        if same.into() { Ok(()) } else { Err(AuthError::Mismatch) }
    }

    /// The length of the digest, which is there and fits the algorithm.
    fn digest_len(&self, message: &[u8]) -> Result<usize, AuthError> {
        let head = Head::of(message)?;
        if head.algorithm != self.algorithm.id() {
            return Err(AuthError::Algorithm);
        }
        let (truncated, whole) = self.algorithm.digest_lens();
        if head.len != truncated && head.len != whole {
            return Err(AuthError::Length);
        }
        Ok(head.len)
    }

    fn tag(&self, message: &[u8], len: usize) -> Result<hmac::Tag, AuthError> {
        let derived;
        let key = match &self.key {
            Prepared::Mac(key) => key,
            Prepared::Derive(derivation) => {
                let salt = match message[0] >> 4 {
                    3 => &derivation.register,
                    4 => &derivation.notify,
                    5 => &derivation.notify_ack,
                    _ => return Err(AuthError::NotSigned),
                };
                derived = derive(salt, &message[NONCE], &derivation.secret);
                &derived
            }
        };
        let mut context = hmac::Context::with_key(key);
        context.update(&message[..DIGEST]);
        context.update(&ZEROES[..len]);
        context.update(&message[DIGEST + len..]);
        Ok(context.sign())
    }
}

/// per-msg-key = KDF(nonce + PSK, s): HKDF-SHA256 (RFC 5869) with the salt s, no info, and the 256
/// bits that HMAC-SHA-256-128 has for a key (RFC 4868 §2.1.1). Written out because the extraction
/// takes the nonce and the secret in two parts, without a copy of the secret.
fn derive(salt: &hmac::Key, nonce: &[u8], secret: &Secret) -> hmac::Key {
    let mut extract = hmac::Context::with_key(salt);
    extract.update(nonce);
    extract.update(secret.octets());
    let pseudo_random = hmac::Key::new(hmac::HMAC_SHA256, extract.sign().as_ref());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&pseudo_random, &[1]).as_ref())
}

/// The fixed fields of a message that is signed.
#[derive(Clone, Copy, Debug)]
struct Head {
    key_id: u8,
    algorithm: u8,
    len: usize,
}

impl Head {
    fn of(message: &[u8]) -> Result<Self, AuthError> {
        let head = message.first_chunk::<DIGEST>().ok_or(AuthError::NotSigned)?;
        if !matches!(head[0] >> 4, 3..=5) {
            return Err(AuthError::NotSigned);
        }
        let len = usize::from(u16::from_be_bytes([head[LEN], head[LEN + 1]]));
        if len == 0 || head[ALGORITHM] == 0 {
            return Err(AuthError::NoDigest);
        }
        if message.len() < DIGEST + len {
            return Err(AuthError::Length);
        }
        Ok(Self { key_id: head[KEY_ID], algorithm: head[ALGORITHM], len })
    }
}

/// The keys that are accepted, and the one that signs: a key is changed by adding the new one
/// everywhere, then signing with it, then removing the old one.
#[derive(Clone, Debug)]
pub struct KeyChain {
    signer: (u8, LispKey),
    accepted: Vec<(u8, LispKey)>,
}

impl KeyChain {
    /// The signer is accepted too. Two keys may have one ID, if their algorithms differ.
    pub fn new(key_id: u8, signer: LispKey) -> Self {
        Self { signer: (key_id, signer), accepted: Vec::new() }
    }

    pub fn accept(mut self, key_id: u8, key: LispKey) -> Self {
        self.accepted.push((key_id, key));
        self
    }

    /// The key of this ID and algorithm (as on the wire): an answer is signed as the question was.
    pub fn find(&self, key_id: u8, algorithm: u8) -> Option<&LispKey> {
        std::iter::once(&self.signer)
            .chain(&self.accepted)
            .find(|(id, key)| *id == key_id && key.algorithm().id() == algorithm)
            .map(|(_, key)| key)
    }

    /// What to encode in a message that [`Self::sign`] signs afterwards.
    pub fn authentication(&self) -> Authentication {
        self.signer.1.authentication(self.signer.0)
    }

    /// Signs a message that was encoded with [`Self::authentication`].
    pub fn sign(&self, message: &mut [u8]) -> Result<(), AuthError> {
        if Head::of(message)?.key_id != self.signer.0 {
            return Err(AuthError::KeyId);
        }
        self.signer.1.sign(message)
    }

    /// The ID of the key that the message proves to be of.
    pub fn verify(&self, message: &[u8]) -> Result<u8, AuthError> {
        let head = Head::of(message)?;
        let mut refused = AuthError::KeyId;
        for (key_id, key) in std::iter::once(&self.signer).chain(&self.accepted) {
            if *key_id == head.key_id {
                match key.verify(message) {
                    Ok(()) => return Ok(*key_id),
                    // Of several the one that came furthest says what is wrong.
                    Err(error) => refused = refused.max(error),
                }
            }
        }
        Err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lisp::MapNotify;

    const SECRET: &[u8] = b"a secret of two";
    const ALGORITHMS: [Algorithm; 3] = [Algorithm::Sha1_96, Algorithm::Sha256_128, Algorithm::Hkdf];

    fn key(algorithm: Algorithm) -> LispKey {
        LispKey::new(Secret::new(SECRET.to_vec()), algorithm)
    }

    fn message(authentication: Authentication) -> Vec<u8> {
        let mut out = Vec::new();
        MapNotify { nonce: 0x0102_0304_0506_0708, authentication, records: Vec::new(), id: None }
            .encode(&mut out);
        out
    }

    /// RFC 9301 §5.6: both lengths of every algorithm; no changed octet is believed.
    #[test]
    fn what_is_signed_verifies_and_nothing_else() {
        for algorithm in ALGORITHMS {
            for (len, octets) in [(DigestLen::Truncated, 0), (DigestLen::Whole, 1)] {
                let key = key(algorithm).with_digest_len(len);
                let mut signed = message(key.authentication(9));
                let (truncated, whole) = algorithm.digest_lens();
                assert_eq!(signed.len(), DIGEST + [truncated, whole][octets]);
                key.sign(&mut signed).unwrap();
                assert_eq!(key.verify(&signed), Ok(()));
                for at in 0..signed.len() {
                    let mut changed = signed.clone();
                    changed[at] ^= 0x40;
                    // The key ID says which key to take, and is covered like everything.
                    assert!(key.verify(&changed).is_err(), "{algorithm:?} octet {at}");
                    assert!(key.verify(&signed[..at]).is_err(), "{algorithm:?} cut at {at}");
                }
            }
        }
    }

    /// RFC 9301 §5.6, step 4, by another implementation of HKDF.
    #[test]
    fn the_key_of_a_message_is_derived_as_rfc_5869_has_it() {
        use ring::hkdf;
        let key = key(Algorithm::Hkdf).with_digest_len(DigestLen::Whole);
        let mut signed = message(key.authentication(1));
        key.sign(&mut signed).unwrap();

        let input = [&signed[NONCE], SECRET].concat();
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"Map-Notify Authentication");
        let derived = salt.extract(&input);
        let mut octets = [0; 32];
        derived.expand(&[b""], hkdf::HKDF_SHA256).unwrap().fill(&mut octets).unwrap();
        let mut zeroed = signed.clone();
        zeroed[DIGEST..].fill(0);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &octets), &zeroed);
        assert_eq!(tag.as_ref(), &signed[DIGEST..]);
    }

    #[test]
    fn a_chain_accepts_old_and_new_keys_and_says_what_is_wrong() {
        let old = LispKey::new(Secret::new(b"old".to_vec()), Algorithm::Sha1_96);
        let chain = KeyChain::new(2, key(Algorithm::Hkdf)).accept(1, old.clone());
        let mut by_new = message(chain.authentication());
        chain.sign(&mut by_new).unwrap();
        assert_eq!(chain.verify(&by_new), Ok(2));
        let mut by_old = message(old.authentication(1));
        assert_eq!(chain.sign(&mut by_old), Err(AuthError::KeyId));
        old.sign(&mut by_old).unwrap();
        assert_eq!(chain.verify(&by_old), Ok(1));

        let mut other = message(old.authentication(3));
        old.sign(&mut other).unwrap();
        assert_eq!(chain.verify(&other), Err(AuthError::KeyId));
        let mut other = message(key(Algorithm::Sha1_96).authentication(1));
        key(Algorithm::Sha1_96).sign(&mut other).unwrap();
        assert_eq!(chain.verify(&other), Err(AuthError::Mismatch));
        let mut other = message(key(Algorithm::Sha256_128).authentication(1));
        key(Algorithm::Sha256_128).sign(&mut other).unwrap();
        assert_eq!(chain.verify(&other), Err(AuthError::Algorithm));
        assert_eq!(chain.verify(&message(Authentication::default())), Err(AuthError::NoDigest));
        let short = Authentication { key_id: 2, algorithm: 3, digest: vec![0; 15] };
        assert_eq!(chain.verify(&message(short)), Err(AuthError::Length));
        assert_eq!(chain.verify(&[0x10; 40]), Err(AuthError::NotSigned));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new(b"hidden".to_vec())), "Secret");
        assert!(!format!("{:?}", key(Algorithm::Hkdf)).contains("97"), "no octet of it");
    }
}
