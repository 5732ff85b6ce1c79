//! Keys of transient paths: the same for the same export, so that a context that is sent again names
//! the same path, and nobody else can make one.

use ring::hmac;

use crate::types::transient::PathKey;
use crate::types::{AnchorId, Generation, MnId};

/// Made new at each start of the daemon; paths do not outlive it either.
#[derive(Clone, Debug)]
pub struct PathSecret(hmac::Key);

impl PathSecret {
    pub fn new(octets: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, octets))
    }

    /// Of the path on which the packets of a node that we hold under this generation follow it.
    pub fn key(&self, mn: &MnId, generation: Generation, to: AnchorId) -> PathKey {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&generation.0.to_be_bytes());
        context.update(&to.0.to_be_bytes());
        context.update(mn.as_str().as_bytes());
        let tag = context.sign();
        let (half, _) = tag.as_ref().split_at(16);
        PathKey(half.iter().fold(0, |key, octet| key << 8 | u128::from(*octet)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_one_export() {
        let (one, other) = (PathSecret::new(&[1; 32]), PathSecret::new(&[2; 32]));
        let mn = MnId::new("mn1@killick.example").unwrap();
        let key = one.key(&mn, Generation(7), AnchorId(2));
        assert_eq!(one.key(&mn, Generation(7), AnchorId(2)), key);
        let others = [
            other.key(&mn, Generation(7), AnchorId(2)),
            one.key(&mn, Generation(8), AnchorId(2)),
            one.key(&mn, Generation(7), AnchorId(3)),
            one.key(&MnId::new("mn2@killick.example").unwrap(), Generation(7), AnchorId(2)),
        ];
        assert!(!others.contains(&key));
        assert_eq!(format!("{key:?}"), "PathKey(…)");
    }
}
