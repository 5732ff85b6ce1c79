//! What both ends of a session agreed on: the argument of every codec that depends on it.

use super::frame::{MAX_LEN, MAX_LEN_EXTENDED};
use super::{Capability, Open, SAFI_UNICAST, afi};
use crate::types::Family;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub local_as: u32,
    pub peer_as: u32,
    pub ibgp: bool,
    /// RFC 6793: AS_PATH and AGGREGATOR have AS numbers of four octets.
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
    pub fn between(local: &Open, remote: &Open) -> Self {
        let both = |wanted: &dyn Fn(&Capability) -> bool| {
            local.capabilities.iter().any(wanted) && remote.capabilities.iter().any(wanted)
        };
        let next_hop_v6 = (afi(Family::Ipv4), u16::from(SAFI_UNICAST), afi(Family::Ipv6));
        let family = |f| local.has_family(f) && remote.has_family(f);
        let (local_as, peer_as) = (local.asn(), remote.asn());
        Self {
            local_as,
            peer_as,
            ibgp: local_as == peer_as,
            four_octet_as: both(&|c| matches!(c, Capability::FourOctetAs(_))),
            ipv4: family(Family::Ipv4),
            ipv6: family(Family::Ipv6),
            extended_next_hop_v4: both(
                &|c| matches!(c, Capability::ExtendedNextHop(v) if v.contains(&next_hop_v6)),
            ),
            max_len: if both(&|c| *c == Capability::ExtendedMessage) {
                MAX_LEN_EXTENDED
            } else {
                MAX_LEN
            },
        }
    }

    pub const fn has(&self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }
}
