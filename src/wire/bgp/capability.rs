//! Capabilities (RFC 5492).

use crate::types::Family;

pub const SAFI_UNICAST: u8 = 1;

/// The AFI number of a family.
pub const fn afi(family: Family) -> u16 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 2,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestartFamily {
    pub afi: u16,
    pub safi: u8,
    /// RFC 4724 §3: forwarding state was preserved.
    pub forwarding: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    Multiprotocol {
        afi: u16,
        safi: u8,
    },
    RouteRefresh,
    EnhancedRouteRefresh,
    ExtendedMessage,
    /// RFC 8950: (NLRI AFI, NLRI SAFI, next hop AFI).
    ExtendedNextHop(Vec<(u16, u16, u16)>),
    GracefulRestart {
        restarting: bool,
        notification: bool,
        time_s: u16,
        families: Vec<GracefulRestartFamily>,
    },
    FourOctetAs(u32),
    Unknown {
        code: u8,
        value: Vec<u8>,
    },
}
