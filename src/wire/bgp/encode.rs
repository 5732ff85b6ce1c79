//! Attributes and NLRI → UPDATE messages.

use super::{Attributes, Negotiated, NextHop};
use crate::types::{Family, Prefix};

/// Not even one prefix fits beside these attributes (RFC 8654 §4): the route cannot be sent to this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes of {len} octets leave no room for a prefix")]
pub struct AttributesTooLong {
    pub len: usize,
}

/// Everything but MP_REACH_NLRI, ascending by type. NEXT_HOP is written when the next hop is IPv4. LOCAL_PREF,
/// ORIGINATOR_ID and CLUSTER_LIST are written to internal peers only.
pub fn encode_attributes(_attributes: &Attributes, _n: &Negotiated, _out: &mut Vec<u8>) {
    unimplemented!()
}

/// An attribute set encoded once for all peers with the same [`Negotiated`] parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedAttributes {
    octets: Vec<u8>,
    next_hop: NextHop,
}

impl EncodedAttributes {
    pub fn new(attributes: &Attributes, n: &Negotiated) -> Self {
        let mut octets = Vec::new();
        encode_attributes(attributes, n, &mut octets);
        Self { octets, next_hop: attributes.next_hop }
    }
}

/// Appends UPDATEs to one buffer, each as full as `max_len` allows.
/// `Packer::announce(..)?` or `Packer::withdraw(..)`, then `push` each prefix, then `finish`.
#[derive(Debug)]
pub struct Packer<'o, 'a> {
    out: &'o mut Vec<u8>,
    attributes: Option<&'a EncodedAttributes>,
    family: Family,
    max_len: usize,
}

impl<'o, 'a> Packer<'o, 'a> {
    pub fn announce(
        out: &'o mut Vec<u8>,
        attributes: &'a EncodedAttributes,
        family: Family,
        max_len: usize,
    ) -> Result<Self, AttributesTooLong> {
        Ok(Self { out, attributes: Some(attributes), family, max_len })
    }
    pub fn withdraw(out: &'o mut Vec<u8>, family: Family, max_len: usize) -> Self {
        Self { out, attributes: None, family, max_len }
    }
    /// `prefix` must be of the packer's family.
    pub fn push(&mut self, _prefix: Prefix) {
        let _ = (
            &self.out,
            self.attributes.map(|a| (&a.octets, a.next_hop)),
            self.family,
            self.max_len,
        );
        unimplemented!()
    }
    /// Closes the last message; the number of messages written.
    pub fn finish(self) -> usize {
        unimplemented!()
    }
}

pub fn encode_end_of_rib(_family: Family, _out: &mut Vec<u8>) {
    unimplemented!()
}
