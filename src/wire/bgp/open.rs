//! OPEN (RFC 4271 §4.2).

use super::{Capability, Notification};
use std::net::Ipv4Addr;

/// RFC 6793 §9.
pub const AS_TRANS: u16 = 23456;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub asn16: u16,
    pub hold_time_s: u16,
    pub bgp_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// An OPEN of ours; the four-octet capability is added.
    pub fn new(
        _asn: u32,
        _hold_time_s: u16,
        _bgp_id: Ipv4Addr,
        _capabilities: Vec<Capability>,
    ) -> Self {
        unimplemented!()
    }
    /// The AS number: from the four-octet capability when there is one.
    pub fn asn(&self) -> u32 {
        unimplemented!()
    }
    /// `body`: what follows the header.
    pub fn decode(_body: &[u8]) -> Result<Self, Notification> {
        unimplemented!()
    }
    /// Appends the whole message, header included.
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }
}
