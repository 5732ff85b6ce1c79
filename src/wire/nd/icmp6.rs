//! The four Neighbor Discovery messages between hosts and routers (RFC 4861 §4.1–§4.4), and what
//! makes them valid (§6.1, §7.1).

use std::net::Ipv6Addr;
use std::time::Duration;

use super::option::NdOption;
use super::solicited_node;
use crate::types::MacAddr;
use crate::wire::{Reader, WireError};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// The body of an ICMPv6 message, after type, code and checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Icmp6 {
    RouterSolicitation(RouterSolicitation),
    RouterAdvertisement(RouterAdvertisement),
    NeighborSolicitation(NeighborSolicitation),
    NeighborAdvertisement(NeighborAdvertisement),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterSolicitation {
    pub options: Vec<NdOption>,
}

/// §4.2.
/// ```text
/// | Cur Hop Limit |M|O|  Reserved |       Router Lifetime         |
/// |                         Reachable Time                        |
/// |                          Retrans Timer                        |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// 0: unspecified by this router.
    pub hop_limit: u8,
    pub managed: bool,
    pub other_config: bool,
    /// Seconds on the wire; zero: not a default router.
    pub lifetime: Duration,
    /// Milliseconds on the wire; zero: unspecified.
    pub reachable: Duration,
    pub retransmit: Duration,
    pub options: Vec<NdOption>,
}

/// §4.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborSolicitation {
    pub target: Ipv6Addr,
    pub options: Vec<NdOption>,
}

/// §4.4.
/// ```text
/// |R|S|O|                     Reserved                            |
/// |                       Target Address (16)                     |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborAdvertisement {
    pub router: bool,
    pub solicited: bool,
    pub override_: bool,
    pub target: Ipv6Addr,
    pub options: Vec<NdOption>,
}

const FLAG_MANAGED: u8 = 0x80;
const FLAG_OTHER_CONFIG: u8 = 0x40;
const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

impl Icmp6 {
    /// The rules that need nothing but the message: code, lengths, target. The checksum and the
    /// hop limit belong to the IPv6 header and were checked there.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [kind, code, _, _] = input.array()?;
        if code != 0 {
            return Err(WireError::BadValue);
        }
        match kind {
            ROUTER_SOLICITATION => {
                input.u32()?;
                let options = decode_options(input)?;
                Ok(Self::RouterSolicitation(RouterSolicitation { options }))
            }
            ROUTER_ADVERTISEMENT => {
                RouterAdvertisement::decode(input).map(Self::RouterAdvertisement)
            }
            NEIGHBOR_SOLICITATION => {
                input.u32()?;
                let target = decode_target(input)?;
                let options = decode_options(input)?;
                Ok(Self::NeighborSolicitation(NeighborSolicitation { target, options }))
            }
            NEIGHBOR_ADVERTISEMENT => {
                let [flags, _, _, _] = input.array()?;
                Ok(Self::NeighborAdvertisement(NeighborAdvertisement {
                    router: flags & FLAG_ROUTER != 0,
                    solicited: flags & FLAG_SOLICITED != 0,
                    override_: flags & FLAG_OVERRIDE != 0,
                    target: decode_target(input)?,
                    options: decode_options(input)?,
                }))
            }
            kind => Err(WireError::UnknownType(kind)),
        }
    }

    /// The rules that connect the message with its addresses (§6.1.1, §6.1.2, §7.1.1, §7.1.2).
    pub fn check_addresses(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Result<(), WireError> {
        let valid = match self {
            Self::RouterSolicitation(rs) => {
                !source.is_unspecified() || source_link_layer(&rs.options).is_none()
            }
            Self::RouterAdvertisement(_) => source.is_unicast_link_local(),
            Self::NeighborSolicitation(ns) => {
                !source.is_unspecified()
                    || (destination == solicited_node(ns.target)
                        && source_link_layer(&ns.options).is_none())
            }
            Self::NeighborAdvertisement(na) => !(destination.is_multicast() && na.solicited),
        };
        if valid && !source.is_multicast() { Ok(()) } else { Err(WireError::BadValue) }
    }

    /// The checksum field is left zero.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let options = match self {
            Self::RouterSolicitation(rs) => {
                out.extend_from_slice(&[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                &rs.options
            }
            Self::RouterAdvertisement(ra) => {
                out.extend_from_slice(&[ROUTER_ADVERTISEMENT, 0, 0, 0]);
                ra.encode_fixed(out);
                &ra.options
            }
            Self::NeighborSolicitation(ns) => {
                out.extend_from_slice(&[NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&ns.target.octets());
                &ns.options
            }
            Self::NeighborAdvertisement(na) => {
                let flags = if na.router { FLAG_ROUTER } else { 0 }
                    | if na.solicited { FLAG_SOLICITED } else { 0 }
                    | if na.override_ { FLAG_OVERRIDE } else { 0 };
                out.extend_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
                out.extend_from_slice(&na.target.octets());
                &na.options
            }
        };
        for option in options {
            option.encode(out);
        }
    }
}

impl RouterAdvertisement {
    fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [hop_limit, flags] = input.array()?;
        Ok(Self {
            hop_limit,
            managed: flags & FLAG_MANAGED != 0,
            other_config: flags & FLAG_OTHER_CONFIG != 0,
            lifetime: Duration::from_secs(input.u16()?.into()),
            reachable: Duration::from_millis(input.u32()?.into()),
            retransmit: Duration::from_millis(input.u32()?.into()),
            options: decode_options(input)?,
        })
    }

    fn encode_fixed(&self, out: &mut Vec<u8>) {
        let flags = if self.managed { FLAG_MANAGED } else { 0 }
            | if self.other_config { FLAG_OTHER_CONFIG } else { 0 };
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
        let lifetime = u16::try_from(self.lifetime.as_secs()).unwrap_or(u16::MAX);
        out.extend_from_slice(&[self.hop_limit, flags]);
        out.extend_from_slice(&lifetime.to_be_bytes());
        out.extend_from_slice(&millis(self.reachable));
        out.extend_from_slice(&millis(self.retransmit));
    }
}

/// The link-layer address that the sender of a solicitation gives for itself.
pub(super) fn source_link_layer(options: &[NdOption]) -> Option<MacAddr> {
    options.iter().find_map(|option| match option {
        NdOption::SourceLinkLayer(mac) => Some(*mac),
        NdOption::TargetLinkLayer(_)
        | NdOption::Prefix(_)
        | NdOption::Mtu(_)
        | NdOption::Other { .. } => None,
    })
}

fn decode_target(input: &mut Reader<'_>) -> Result<Ipv6Addr, WireError> {
    let target = Ipv6Addr::from(input.array::<16>()?);
    if target.is_multicast() { Err(WireError::BadValue) } else { Ok(target) }
}

/// Each option takes at least 8 octets, so that their number is bounded by the frame.
fn decode_options(input: &mut Reader<'_>) -> Result<Vec<NdOption>, WireError> {
    let mut options = Vec::new();
    while !input.is_empty() {
        options.push(NdOption::decode(input)?);
    }
    Ok(options)
}
