//! What hosts say on an access link: ARP (RFC 826) and IPv6 Neighbor Discovery (RFC 4861), and the
//! source address of everything else.
//!
//! The anchor reads raw Ethernet frames, because a host that has just arrived has no route here
//! and speaks to a gateway that may not be ours: no ordinary socket would get its packets.
//! ```text
//! | destination MAC (6) | source MAC (6) | EtherType (2) | ARP, IPv4 or IPv6 ... |
//! ```

mod arp;
mod checksum;
mod icmp6;
mod option;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use arp::{Arp, ArpOperation};
pub use icmp6::{
    Icmp6, NeighborAdvertisement, NeighborSolicitation, RouterAdvertisement, RouterSolicitation,
};
pub use option::{NdOption, PrefixInformation};

use super::{Reader, WireError};
use crate::types::MacAddr;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const NEXT_HEADER_ICMP6: u8 = 58;
/// RFC 4861 §6.1, §7.1: a hop limit of 255 proves that no router has forwarded the message.
const HOP_LIMIT: u8 = 255;

/// All nodes on the link, `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// Whether the checksum of a frame is there to be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Verify,
    /// The frame never crossed a wire (veth, virtio with offload): its checksum is not yet filled
    /// in, and the kernel vouches for it.
    NotReady,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub destination: MacAddr,
    pub source: MacAddr,
    pub payload: Payload,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Arp(Arp),
    Nd {
        source: Ipv6Addr,
        destination: Ipv6Addr,
        message: Icmp6,
    },
    /// Any other IP packet. Nobody here looks further than its source address.
    Packet {
        source: IpAddr,
    },
}

impl Frame {
    pub fn decode(octets: &[u8], checksum: Checksum) -> Result<Self, WireError> {
        let input = &mut Reader::new(octets);
        let destination = MacAddr(input.array()?);
        let source = MacAddr(input.array()?);
        let payload = match input.u16()? {
            ETHERTYPE_ARP => Payload::Arp(Arp::decode(input)?),
            ETHERTYPE_IPV4 => decode_ipv4(input)?,
            ETHERTYPE_IPV6 => decode_ipv6(input, checksum)?,
            // Among them 802.1Q: a tagged frame belongs to another (VLAN) interface.
            _ => return Err(WireError::BadValue),
        };
        Ok(Self { destination, source, payload })
    }

    /// `None` for [`Payload::Packet`], of which only the source was kept.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&self.destination.0);
        out.extend_from_slice(&self.source.0);
        match &self.payload {
            Payload::Arp(arp) => {
                out.extend_from_slice(&ETHERTYPE_ARP.to_be_bytes());
                arp.encode(&mut out);
            }
            Payload::Nd { source, destination, message } => {
                out.extend_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
                encode_ipv6(*source, *destination, message, &mut out);
            }
            Payload::Packet { .. } => return None,
        }
        Some(out)
    }
}

/// The MAC address that carries an IPv6 multicast group (RFC 2464 §7).
pub fn multicast_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// The group in which a node listens for solicitations of `target` (RFC 4291 §2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The link-local address with a modified EUI-64 interface identifier (RFC 4291 App. A).
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |h, l| u16::from_be_bytes([h, l]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

/// RFC 791 §3.1.
fn decode_ipv4(input: &mut Reader<'_>) -> Result<Payload, WireError> {
    let header: [u8; 20] = input.array()?;
    if header[0] >> 4 != 4 || header[0] & 0xf < 5 {
        return Err(WireError::BadValue);
    }
    let [.., a, b, c, d, _, _, _, _] = header;
    Ok(Payload::Packet { source: Ipv4Addr::new(a, b, c, d).into() })
}

/// RFC 8200 §3.
/// ```text
/// |Version| Traffic Class |           Flow Label                  |
/// |         Payload Length        |  Next Header  |   Hop Limit   |
/// |                   Source Address (16)                         |
/// |                Destination Address (16)                       |
/// ```
fn decode_ipv6(input: &mut Reader<'_>, checksum: Checksum) -> Result<Payload, WireError> {
    if input.u32()? >> 28 != 6 {
        return Err(WireError::BadValue);
    }
    let length = usize::from(input.u16()?);
    let next_header = input.u8()?;
    let hop_limit = input.u8()?;
    let source = Ipv6Addr::from(input.array::<16>()?);
    let destination = Ipv6Addr::from(input.array::<16>()?);
    // Neighbor Discovery behind extension headers is not looked for: hosts do not send it, and
    // the kernel drops fragmented discovery too (RFC 6980).
    if next_header != NEXT_HEADER_ICMP6 || !input.rest().first().is_some_and(is_discovery) {
        return Ok(Payload::Packet { source: source.into() });
    }
    // A capture may be longer than the packet (Ethernet padding), never shorter.
    let mut body = input.sub(length)?;
    if hop_limit != HOP_LIMIT {
        return Err(WireError::BadValue);
    }
    if checksum == Checksum::Verify
        && checksum::icmp6(source, destination, body.rest()) != checksum::GOOD
    {
        return Err(WireError::BadChecksum);
    }
    let message = Icmp6::decode(&mut body)?;
    message.check_addresses(source, destination)?;
    Ok(Payload::Nd { source, destination, message })
}

/// RS, RA, NS, NA. A redirect (137) is a router's word and means nothing from a host: it counts
/// as an ordinary packet.
fn is_discovery(kind: &u8) -> bool {
    (133..=136).contains(kind)
}

fn encode_ipv6(source: Ipv6Addr, destination: Ipv6Addr, message: &Icmp6, out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(64);
    message.encode(&mut body);
    let sum = checksum::icmp6(source, destination, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    out.extend_from_slice(&0x6000_0000_u32.to_be_bytes());
    let length = u16::try_from(body.len()).expect("an advertisement is bounded by its options");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[NEXT_HEADER_ICMP6, HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    out.extend_from_slice(&body);
}
