//! What both ends of a session agreed on: the argument of every codec that depends on it.

use super::Open;
use crate::types::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub local_as: u32,
    pub peer_as: u32,
    pub ibgp: bool,
    pub four_octet_as: bool,
    pub ipv4: bool,
    pub ipv6: bool,
    /// RFC 8950: IPv4 NLRI may come with an IPv6 next hop.
    pub extended_next_hop_v4: bool,
    /// Octets of the largest message either side may send (RFC 8654).
    pub max_len: usize,
}

impl Negotiated {
    /// From the OPEN that we sent and the one that we received.
    pub fn between(_local: &Open, _remote: &Open) -> Self {
        unimplemented!()
    }

    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }
}
