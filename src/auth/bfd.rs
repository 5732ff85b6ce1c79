//! Keyed SHA1 of BFD control packets (RFC 5880 §6.7.4).
//!
//! The hash is over the whole packet with the key in the place of the hash. That is no HMAC, and
//! nobody would design it so today; it is what routers speak.

use sha1::{Digest as _, Sha1};
use subtle::ConstantTimeEq;

use super::Secret;
use crate::wire::bfd::{Control, Digest, Section};

const SHA1_LEN: usize = 20;

/// A key of more octets does not fit where it is to be put.
pub const BFD_KEY_LEN_MAX: usize = SHA1_LEN;

#[derive(Clone, Debug)]
pub struct BfdKey {
    id: u8,
    meticulous: bool,
    secret: Secret,
}

impl BfdKey {
    /// `None` when the key has no octet, or more than [`BFD_KEY_LEN_MAX`].
    pub fn new(id: u8, meticulous: bool, secret: Secret) -> Option<Self> {
        let fits = (1..=BFD_KEY_LEN_MAX).contains(&secret.octets().len());
        fits.then_some(Self { id, meticulous, secret })
    }

    pub const fn id(&self) -> u8 {
        self.id
    }

    /// Type 5 rather than 4: each packet has a sequence number of its own.
    pub const fn is_meticulous(&self) -> bool {
        self.meticulous
    }

    /// Encodes the packet with a section of this key. A section that it has already is replaced.
    pub fn seal(&self, mut packet: Control, sequence: u32, out: &mut Vec<u8>) {
        let empty = Digest::Sha1([0; SHA1_LEN]);
        packet.section = Some(Section::Keyed {
            key_id: self.id,
            meticulous: self.meticulous,
            sequence,
            digest: empty,
        });
        let start = out.len();
        packet.encode(out);
        let hash = self.hash(&out[start..]);
        let at = out.len() - SHA1_LEN;
        out[at..].copy_from_slice(&hash);
    }

    /// Whether the last 20 octets of a packet, which are its hash, were made with this key.
    /// `packet` ends with the packet.
    pub fn verify(&self, packet: &[u8]) -> bool {
        let Some(at) = packet.len().checked_sub(SHA1_LEN) else { return false };
        self.hash(packet).ct_eq(&packet[at..]).into()
    }

    /// With the key where the hash is, filled up with zeroes.
    fn hash(&self, packet: &[u8]) -> [u8; SHA1_LEN] {
        let mut key = [0; SHA1_LEN];
        key[..self.secret.octets().len()].copy_from_slice(self.secret.octets());
        let mut sha1 = Sha1::new();
        sha1.update(&packet[..packet.len().saturating_sub(SHA1_LEN)]);
        sha1.update(key);
        zeroize::Zeroize::zeroize(&mut key);
        sha1.finalize().into()
    }
}
