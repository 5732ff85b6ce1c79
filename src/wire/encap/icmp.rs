//! Errors that the tunnel's end tells the source of a packet (RFC 792, RFC 1191, RFC 4443).
//! How often is for the caller to limit (RFC 4443 §2.4 f).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::ip::{self, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Ipv4Fields, Ipv6Fields};
use super::{DropReason, Head};

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMP6: u8 = 58;
/// Octets of the ICMP header in front of the packet that is quoted.
const ICMP_LEN: usize = 8;
/// RFC 1812 §4.3.2.3: as much as possible, the whole not above 576 octets.
const IPV4_ERROR_LEN_MAX: usize = 576;
/// RFC 4443 §2.4 c: as much as possible, the whole not above the least MTU.
const IPV6_ERROR_LEN_MAX: usize = 1280;
const HOP_LIMIT: u8 = 64;
/// Internetwork control, as errors are sent (RFC 1812 §4.3.2.5).
const CLASS: u8 = 0xc0;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Too large by RFC 9300 §7.1; `mtu_bytes` is S, what the source may send.
    TooBig {
        mtu_bytes: u16,
    },
    /// No locator, or none that is reachable.
    Unreachable,
    /// The mapping system says that it must not pass.
    Prohibited,
    HopLimit,
}

impl IcmpError {
    const fn ipv4(self) -> (u8, u8) {
        match self {
            Self::TooBig { .. } => (3, 4),
            Self::Unreachable => (3, 1),
            Self::Prohibited => (3, 13),
            Self::HopLimit => (11, 0),
        }
    }

    const fn ipv6(self) -> (u8, u8) {
        match self {
            Self::TooBig { .. } => (2, 0),
            Self::Unreachable => (1, 3),
            Self::Prohibited => (1, 1),
            Self::HopLimit => (3, 0),
        }
    }

    fn mtu(self) -> u32 {
        match self {
            Self::TooBig { mtu_bytes } => u32::from(mtu_bytes),
            Self::Unreachable | Self::Prohibited | Self::HopLimit => 0,
        }
    }
}

/// Appends the error about `packet`, from an address of ours of the same family. Nothing is
/// appended, and false is told, where no error may be sent: about an error, about what is not the
/// first fragment, to or about an address that is not of one host (RFC 1122 §3.2.2, RFC 4443 §2.4 e).
pub fn put_icmp_error(
    packet: &[u8],
    from: IpAddr,
    error: IcmpError,
    out: &mut Vec<u8>,
) -> Result<bool, DropReason> {
    let head = Head::of(packet)?;
    let start = out.len();
    let quoted = &packet[..head.len];
    match (from, head.source, head.destination) {
        (IpAddr::V4(from), IpAddr::V4(source), IpAddr::V4(destination)) => {
            if head.later_fragment
                || !one_host_v4(source)
                || destination.is_multicast()
                || destination.is_broadcast()
                || is_ipv4_error(&head, packet)
            {
                return Ok(false);
            }
            let quoted =
                &quoted[..quoted.len().min(IPV4_ERROR_LEN_MAX - IPV4_HEADER_LEN - ICMP_LEN)];
            let fields = Ipv4Fields {
                tos: CLASS,
                dont_fragment: false,
                ttl: HOP_LIMIT,
                source: from.octets(),
                destination: source.octets(),
            };
            ip::put_ipv4_of(PROTOCOL_ICMP, fields, ICMP_LEN + quoted.len(), out);
            put_message(error.ipv4(), error.mtu(), quoted, Sum::default(), out);
        }
        (IpAddr::V6(from), IpAddr::V6(source), IpAddr::V6(destination)) => {
            // Only of Packet Too Big a multicast packet has an error.
            let too_big = matches!(error, IcmpError::TooBig { .. });
            if !one_host_v6(source)
                || destination.is_multicast() && !too_big
                || is_ipv6_error(&head, packet)
            {
                return Ok(false);
            }
            let quoted =
                &quoted[..quoted.len().min(IPV6_ERROR_LEN_MAX - IPV6_HEADER_LEN - ICMP_LEN)];
            let len = ICMP_LEN + quoted.len();
            let fields = Ipv6Fields {
                traffic_class: CLASS,
                flow_label: 0,
                hop_limit: HOP_LIMIT,
                source: from.octets(),
                destination: source.octets(),
            };
            ip::put_ipv6_of(PROTOCOL_ICMP6, fields, len, out);
            let pseudo = Sum::default().pseudo(from.into(), source.into(), PROTOCOL_ICMP6, len);
            put_message(error.ipv6(), error.mtu(), quoted, pseudo, out);
        }
        _ => return Err(DropReason::Family),
    }
    debug_assert!(out.len() > start);
    Ok(true)
}

fn put_message((kind, code): (u8, u8), mtu: u32, quoted: &[u8], pseudo: Sum, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[kind, code, 0, 0]);
    // The low half is the next-hop MTU of RFC 1191 §4, all of it that of RFC 4443 §3.2.
    out.extend_from_slice(&mtu.to_be_bytes());
    out.extend_from_slice(quoted);
    let checksum = pseudo.and(&out[start..]).finish();
    out[start + 2..start + 4].copy_from_slice(&checksum.to_be_bytes());
}

fn one_host_v4(addr: Ipv4Addr) -> bool {
    !(addr.is_unspecified()
        || addr.is_loopback()
        || addr.is_multicast()
        || addr.is_broadcast()
        || addr.octets()[0] == 0
        || addr.octets()[0] >= 240)
}

fn one_host_v6(addr: Ipv6Addr) -> bool {
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast())
}

/// All but queries and replies is an error, the types to come included.
fn is_ipv4_error(head: &Head, packet: &[u8]) -> bool {
    const NO_ERROR: [u8; 10] = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18];
    head.protocol == PROTOCOL_ICMP
        && packet.get(head.header_len).is_none_or(|kind| !NO_ERROR.contains(kind))
}

/// Types below 128 are errors (RFC 4443 §2.1).
fn is_ipv6_error(head: &Head, packet: &[u8]) -> bool {
    head.protocol == PROTOCOL_ICMP6 && packet.get(head.header_len).is_none_or(|&kind| kind < 128)
}
