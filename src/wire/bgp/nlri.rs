//! NLRI of unicast families (RFC 4271 §4.3, RFC 4760 §5).

use crate::types::{Family, Prefix};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NlriError {
    #[error("a prefix length is larger than the address")]
    Length,
    #[error("the last prefix is truncated")]
    Truncated,
}

/// A validated NLRI field, not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nlri<'a> {
    family: Family,
    octets: &'a [u8],
}

impl<'a> Nlri<'a> {
    pub const fn empty(family: Family) -> Self {
        Self { family, octets: &[] }
    }
    pub fn new(_family: Family, _octets: &'a [u8]) -> Result<Self, NlriError> {
        unimplemented!()
    }
    pub const fn family(&self) -> Family {
        self.family
    }
    pub const fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }
    pub fn iter(&self) -> impl Iterator<Item = Prefix> + use<'a> {
        std::iter::empty()
    }
    /// (address, length) without the enum; empty unless the family is IPv4.
    pub fn iter_v4(&self) -> impl Iterator<Item = (u32, u8)> + use<'a> {
        std::iter::empty()
    }
    /// (address, length) without the enum; empty unless the family is IPv6.
    pub fn iter_v6(&self) -> impl Iterator<Item = (u128, u8)> + use<'a> {
        std::iter::empty()
    }
}

pub fn push_v4(_addr: u32, _len: u8, _out: &mut Vec<u8>) {
    unimplemented!()
}

pub fn push_v6(_addr: u128, _len: u8, _out: &mut Vec<u8>) {
    unimplemented!()
}

pub fn push(_prefix: Prefix, _out: &mut Vec<u8>) {
    unimplemented!()
}
