//! What tunnelling needs of an inner packet's header, and what it changes in it.

use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::FixedState;

use super::DropReason;
use super::checksum::Sum;
use super::ip::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, PROTOCOL_UDP};

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_SCTP: u8 = 132;

/// The header of an IP packet, as far as tunnels and errors need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of the payload; the first extension header of IPv6.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    pub header_len: usize,
    /// Octets of the whole packet as it says itself; there are at least as many.
    pub len: usize,
    /// DF of IPv4; always so in IPv6.
    pub dont_fragment: bool,
    /// A fragment, but not the first one (IPv4; a fragment header of IPv6 is not looked for).
    pub later_fragment: bool,
    /// The same for all packets of a flow (RFC 9300 §12).
    pub flow: u64,
}

impl Head {
    pub fn of(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first().ok_or(DropReason::Truncated)? >> 4 {
            4 => Self::of_ipv4(packet),
            6 => Self::of_ipv6(packet),
            _ => Err(DropReason::NotIp),
        }
    }

    fn of_ipv4(packet: &[u8]) -> Result<Self, DropReason> {
        let head = packet.first_chunk::<IPV4_HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let &[version, class, l0, l1, _, _, f0, f1, ttl, protocol, _, _, addresses @ ..] = head;
        let header_len = usize::from(version & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if header_len < IPV4_HEADER_LEN || len < header_len || len > packet.len() {
            return Err(DropReason::NotIp);
        }
        let [a, b, c, d, e, f, g, h]: [u8; 8] = addresses;
        let fragment = u16::from_be_bytes([f0, f1]);
        // The first fragment has ports and the others do not, so that none is told apart by them.
        let whole = fragment & 0x3fff == 0;
        let ports = if whole { ports(protocol, &packet[header_len..len]) } else { 0 };
        Ok(Self {
            source: IpAddr::from([a, b, c, d]),
            destination: IpAddr::from([e, f, g, h]),
            protocol,
            ttl,
            traffic_class: class,
            header_len,
            len,
            dont_fragment: fragment & 0x4000 != 0,
            later_fragment: fragment & 0x1fff != 0,
            flow: FixedState::with_seed(4).hash_one((u64::from_be_bytes(addresses), ports)),
        })
    }

    fn of_ipv6(packet: &[u8]) -> Result<Self, DropReason> {
        let head = packet.first_chunk::<IPV6_HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let &[v, class, l0, l1, p0, p1, protocol, ttl, addresses @ ..] = head;
        let len = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([p0, p1]));
        if len > packet.len() {
            return Err(DropReason::NotIp);
        }
        let addresses: [u8; 32] = addresses;
        let ([source, destination], _) = addresses.as_chunks::<16>() else {
            return Err(DropReason::NotIp);
        };
        // Behind an extension header, the flow label tells flows apart (RFC 6437 §2).
        let ports = match ports(protocol, &packet[IPV6_HEADER_LEN..len]) {
            0 => u64::from(u32::from_be_bytes([0, class & 0xf, l0, l1])),
            ports => ports,
        };
        Ok(Self {
            source: IpAddr::from(*source),
            destination: IpAddr::from(*destination),
            protocol,
            ttl,
            traffic_class: v << 4 | class >> 4,
            header_len: IPV6_HEADER_LEN,
            len,
            dont_fragment: true,
            later_fragment: false,
            flow: FixedState::with_seed(6).hash_one((source, destination, ports)),
        })
    }

    /// The source port of the outer header: one of the dynamic ports (RFC 6335 §6), by the flow.
    pub fn source_port(&self) -> u16 {
        0xc000 | (self.flow >> 48) as u16
    }

    /// The flow label of an outer IPv6 header, by the flow and not 0 (RFC 6438 §3).
    pub fn flow_label(&self) -> u32 {
        match self.flow as u32 & 0x000f_ffff {
            0 => 1,
            label => label,
        }
    }
}

/// Protocol and both ports; 0 when there are none.
fn ports(protocol: u8, transport: &[u8]) -> u64 {
    match (protocol, transport.first_chunk()) {
        (PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP, Some(ports)) => {
            u64::from(protocol) << 32 | u64::from(u32::from_be_bytes(*ports))
        }
        _ => 0,
    }
}

/// Writes hop limit and traffic class into a packet that has a [`Head`], with the checksum of IPv4.
pub fn set_ttl_and_class(packet: &mut [u8], ttl: u8, traffic_class: u8) {
    if packet[0] >> 4 == 6 {
        packet[0] = 6 << 4 | traffic_class >> 4;
        packet[1] = traffic_class << 4 | packet[1] & 0xf;
        packet[7] = ttl;
        return;
    }
    // RFC 1624 §3: HC' = ~(~HC + ~m + m'), so that a checksum that was wrong stays wrong.
    let [was, gone] = [[packet[0], packet[1]], [packet[8], packet[9]]];
    (packet[1], packet[8]) = (traffic_class, ttl);
    let sum = Sum::default()
        .and(&[!packet[10], !packet[11], !was[0], !was[1]])
        .and(&[!gone[0], !gone[1], packet[0], packet[1]])
        .and(&[packet[8], packet[9]]);
    packet[10..12].copy_from_slice(&sum.finish().to_be_bytes());
}
