//! Capabilities (RFC 5492 §4): what a speaker can do, announced in OPEN.
//!
//! A capability whose value has a wrong length is kept as unknown: RFC 5492 gives no error for it,
//! and not to use it is what an ignorant speaker would do.

use crate::types::Family;
use crate::wire::{Reader, WireError};

pub const SAFI_UNICAST: u8 = 1;

/// The AFI number of a family.
pub const fn afi(family: Family) -> u16 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 2,
    }
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const EXTENDED_MESSAGE: u8 = 6;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;
const ENHANCED_ROUTE_REFRESH: u8 = 70;

const GR_RESTARTING: u16 = 0x8000;
/// The N bit, RFC 8538 §2.
const GR_NOTIFICATION: u16 = 0x4000;
const GR_TIME_MAX_S: u16 = 0x0fff;
const GR_FORWARDING: u8 = 0x80;

/// One octet counts the octets of a value.
const VALUE_LEN_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestartFamily {
    pub afi: u16,
    pub safi: u8,
    /// Forwarding state was preserved, RFC 4724 §3.
    pub forwarding: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760 §8.
    Multiprotocol {
        afi: u16,
        safi: u8,
    },
    /// RFC 2918 §2.
    RouteRefresh,
    /// RFC 7313 §3.1.
    EnhancedRouteRefresh,
    /// RFC 8654 §3.
    ExtendedMessage,
    /// RFC 8950 §4: (NLRI AFI, NLRI SAFI, next hop AFI).
    ExtendedNextHop(Vec<(u16, u16, u16)>),
    /// RFC 4724 §3; `notification` is the N bit of RFC 8538, `time_s` has 12 bits.
    GracefulRestart {
        restarting: bool,
        notification: bool,
        time_s: u16,
        families: Vec<GracefulRestartFamily>,
    },
    /// RFC 6793 §3.
    FourOctetAs(u32),
    Unknown {
        code: u8,
        value: Vec<u8>,
    },
}

impl Capability {
    /// Unicast of a family.
    pub const fn unicast(family: Family) -> Self {
        Self::Multiprotocol { afi: afi(family), safi: SAFI_UNICAST }
    }

    /// RFC 8950 for IPv4 unicast.
    pub fn ipv4_over_ipv6() -> Self {
        let v4 = afi(Family::Ipv4);
        Self::ExtendedNextHop(vec![(v4, u16::from(SAFI_UNICAST), afi(Family::Ipv6))])
    }

    /// Reads one code, length, value.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let code = input.u8()?;
        let len = input.u8()?;
        let value = input.bytes(usize::from(len))?;
        Ok(Self::from_value(code, value)
            .unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() }))
    }

    fn from_value(code: u8, value: &[u8]) -> Option<Self> {
        match (code, value) {
            (MULTIPROTOCOL, &[afi_high, afi_low, _, safi]) => {
                Some(Self::Multiprotocol { afi: u16::from_be_bytes([afi_high, afi_low]), safi })
            }
            (ROUTE_REFRESH, []) => Some(Self::RouteRefresh),
            (ENHANCED_ROUTE_REFRESH, []) => Some(Self::EnhancedRouteRefresh),
            (EXTENDED_MESSAGE, []) => Some(Self::ExtendedMessage),
            (FOUR_OCTET_AS, &[a, b, c, d]) => {
                Some(Self::FourOctetAs(u32::from_be_bytes([a, b, c, d])))
            }
            (EXTENDED_NEXT_HOP, value) => {
                let (triples, []) = value.as_chunks::<6>() else { return None };
                let triple = |&[a, b, c, d, e, f]: &[u8; 6]| {
                    (
                        u16::from_be_bytes([a, b]),
                        u16::from_be_bytes([c, d]),
                        u16::from_be_bytes([e, f]),
                    )
                };
                Some(Self::ExtendedNextHop(triples.iter().map(triple).collect()))
            }
            (GRACEFUL_RESTART, &[high, low, ref families @ ..]) => {
                let (families, []) = families.as_chunks::<4>() else { return None };
                let head = u16::from_be_bytes([high, low]);
                let family = |&[a, b, safi, flags]: &[u8; 4]| GracefulRestartFamily {
                    afi: u16::from_be_bytes([a, b]),
                    safi,
                    forwarding: flags & GR_FORWARDING != 0,
                };
                Some(Self::GracefulRestart {
                    restarting: head & GR_RESTARTING != 0,
                    notification: head & GR_NOTIFICATION != 0,
                    time_s: head & GR_TIME_MAX_S,
                    families: families.iter().map(family).collect(),
                })
            }
            _ => None,
        }
    }

    /// Appends code, length, value. List entries beyond 255 octets are left out; no capability of
    /// ours comes near.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.code(), 0]);
        match self {
            Self::Multiprotocol { afi, safi } => {
                out.extend_from_slice(&afi.to_be_bytes());
                out.extend_from_slice(&[0, *safi]);
            }
            Self::RouteRefresh | Self::EnhancedRouteRefresh | Self::ExtendedMessage => {}
            Self::ExtendedNextHop(triples) => {
                for (afi, safi, next_hop) in triples.iter().take(VALUE_LEN_MAX / 6) {
                    for number in [afi, safi, next_hop] {
                        out.extend_from_slice(&number.to_be_bytes());
                    }
                }
            }
            Self::GracefulRestart { restarting, notification, time_s, families } => {
                let mut head = (*time_s).min(GR_TIME_MAX_S);
                head |= if *restarting { GR_RESTARTING } else { 0 };
                head |= if *notification { GR_NOTIFICATION } else { 0 };
                out.extend_from_slice(&head.to_be_bytes());
                for family in families.iter().take((VALUE_LEN_MAX - 2) / 4) {
                    out.extend_from_slice(&family.afi.to_be_bytes());
                    let flags = if family.forwarding { GR_FORWARDING } else { 0 };
                    out.extend_from_slice(&[family.safi, flags]);
                }
            }
            Self::FourOctetAs(asn) => out.extend_from_slice(&asn.to_be_bytes()),
            Self::Unknown { value, .. } => {
                out.extend_from_slice(&value[..value.len().min(VALUE_LEN_MAX)]);
            }
        }
        let len = out.len() - start - 2;
        out[start + 1] = u8::try_from(len).expect("each arm keeps to 255 octets");
    }

    const fn code(&self) -> u8 {
        match self {
            Self::Multiprotocol { .. } => MULTIPROTOCOL,
            Self::RouteRefresh => ROUTE_REFRESH,
            Self::EnhancedRouteRefresh => ENHANCED_ROUTE_REFRESH,
            Self::ExtendedMessage => EXTENDED_MESSAGE,
            Self::ExtendedNextHop(_) => EXTENDED_NEXT_HOP,
            Self::GracefulRestart { .. } => GRACEFUL_RESTART,
            Self::FourOctetAs(_) => FOUR_OCTET_AS,
            Self::Unknown { code, .. } => *code,
        }
    }
}
