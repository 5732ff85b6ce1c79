//! What the data plane reads and writes in packets, in place: the inner header, the outer one
//! (RFC 9300 §5.3), the congestion bits (RFC 6040), and the ICMP errors of §7.1.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;

use crate::types::lisp::InstanceId;

/// RFC 9300 §5.1: the UDP port of data packets.
pub const DATA_PORT: u16 = 4341;

const UDP: usize = 8;
const LISP: usize = 8;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Octets that encapsulation puts before a packet, by the family of the locators.
pub const OVERHEAD_IPV4: usize = IPV4 + UDP + LISP;
pub const OVERHEAD_IPV6: usize = IPV6 + UDP + LISP;

/// Room to leave before each packet, so that it need not be moved.
pub const HEADROOM: usize = OVERHEAD_IPV6;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMP6: u8 = 58;
const PROTOCOL_SCTP: u8 = 132;

const CONGESTION: u8 = 0b11;
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// The head of a packet as far as forwarding needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Octets of the packet as its header says; not more than there are.
    pub len: usize,
    /// A router may split it: IPv4 without DF.
    pub may_fragment: bool,
    /// The same for all packets of a flow (RFC 9300 §12).
    pub flow: u64,
}

fn array<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..)?.first_chunk().copied()
}

impl Head {
    /// `None` for what is not an IPv4 or IPv6 packet, or is shorter than it says.
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::of_ipv4(packet),
            6 => Self::of_ipv6(packet),
            _ => None,
        }
    }

    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let head: &[u8; IPV4] = packet.first_chunk()?;
        let header_len = usize::from(head[0] & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if header_len < IPV4 || len < header_len || len > packet.len() {
            return None;
        }
        let source = Ipv4Addr::from(array::<4>(head, 12)?);
        let destination = Ipv4Addr::from(array::<4>(head, 16)?);
        let fragment = u16::from_be_bytes([head[6], head[7]]);
        // Only the first fragment has ports, so no fragment is told apart by them.
        let ports =
            if fragment & 0x3fff == 0 { ports(head[9], &packet[header_len..len]) } else { 0 };
        let addrs = u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination));
        Some(Self {
            source: source.into(),
            destination: destination.into(),
            ttl: head[8],
            traffic_class: head[1],
            len,
            may_fragment: fragment & 0x4000 == 0,
            flow: FixedState::with_seed(4).hash_one((addrs, ports)),
        })
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        let head: &[u8; IPV6] = packet.first_chunk()?;
        let len = IPV6 + usize::from(u16::from_be_bytes([head[4], head[5]]));
        if len > packet.len() {
            return None;
        }
        let source = Ipv6Addr::from(array::<16>(head, 8)?);
        let destination = Ipv6Addr::from(array::<16>(head, 24)?);
        // Behind an extension header, the flow label tells flows apart (RFC 6437).
        let ports = match ports(head[6], &packet[IPV6..len]) {
            0 => u64::from(u32::from_be_bytes([0, head[1] & 0xf, head[2], head[3]])),
            ports => ports,
        };
        let addrs = (u128::from(source), u128::from(destination));
        Some(Self {
            source: source.into(),
            destination: destination.into(),
            ttl: head[7],
            traffic_class: head[0] << 4 | head[1] >> 4,
            len,
            may_fragment: false,
            flow: FixedState::with_seed(6).hash_one((addrs, ports)),
        })
    }
}

/// Protocol and both ports; 0 when there are none.
fn ports(protocol: u8, transport: &[u8]) -> u64 {
    match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP => array::<4>(transport, 0)
            .map_or(0, |ports| u64::from(protocol) << 32 | u64::from(u32::from_be_bytes(ports))),
        _ => 0,
    }
}

/// One's complement sum of 16-bit words, not yet inverted.
fn sum(octets: &[u8]) -> u32 {
    let (words, tail) = octets.as_chunks::<2>();
    let words: u32 = words.iter().map(|&w| u32::from(u16::from_be_bytes(w))).sum();
    words + tail.first().map_or(0, |&octet| u32::from(octet) << 8)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Writes TTL and traffic class of a packet, with the checksum where there is one. Only for a
/// packet that has a [`Head`].
fn set_ttl_and_class(packet: &mut [u8], ttl: u8, traffic_class: u8) {
    if packet[0] >> 4 == 6 {
        packet[0] = 6 << 4 | traffic_class >> 4;
        packet[1] = traffic_class << 4 | packet[1] & 0xf;
        packet[7] = ttl;
        return;
    }
    let before = [packet[0], packet[1], packet[8], packet[9]];
    (packet[1], packet[8]) = (traffic_class, ttl);
    let after = [packet[0], packet[1], packet[8], packet[9]];
    // RFC 1624 §3: HC' = ~(~HC + ~m + m').
    let checksum = u16::from_be_bytes([packet[10], packet[11]]);
    let changed = before.map(|octet| !octet);
    let checksum = fold(u32::from(!checksum) + sum(&changed) + sum(&after));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// What comes out of the tunnel gets from the outer header what happened on the way: the smaller
/// TTL, the DSCP, and congestion (RFC 9300 §5.3, RFC 6040 §4.2). False: the packet has to be
/// dropped, because it was marked on the way and its ends would not understand the mark.
pub fn take_from_outer(packet: &mut [u8], head: &mut Head, ttl: u8, traffic_class: u8) -> bool {
    let congestion = match (head.traffic_class & CONGESTION, traffic_class & CONGESTION) {
        (0b00, CONGESTION_EXPERIENCED) => return false,
        (0b00, _) => 0b00,
        (_, CONGESTION_EXPERIENCED) => CONGESTION_EXPERIENCED,
        (0b10, 0b01) => 0b01,
        (inner, _) => inner,
    };
    let traffic_class = traffic_class & !CONGESTION | congestion;
    let ttl = head.ttl.min(ttl);
    if (ttl, traffic_class) != (head.ttl, head.traffic_class) {
        set_ttl_and_class(packet, ttl, traffic_class);
        (head.ttl, head.traffic_class) = (ttl, traffic_class);
    }
    true
}

/// One hop more, for a packet that no kernel forwards. False when it was the last.
pub fn count_hop(packet: &mut [u8], head: &mut Head) -> bool {
    if head.ttl <= 1 {
        return false;
    }
    head.ttl -= 1;
    set_ttl_and_class(packet, head.ttl, head.traffic_class);
    true
}

/// The outer headers to one locator, all but what differs from packet to packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    pub destination: IpAddr,
    octets: Vec<u8>,
}

impl Outer {
    /// `None` when the addresses are of different families.
    pub fn new(source: IpAddr, destination: IpAddr, iid: InstanceId) -> Option<Self> {
        let mut octets = Vec::with_capacity(HEADROOM);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                // §7.1: DF is set. Identification and checksum are the kernel's (raw(7)).
                octets.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 0, PROTOCOL_UDP, 0, 0]);
                octets.extend_from_slice(&source.octets());
                octets.extend_from_slice(&destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                octets.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, PROTOCOL_UDP, 0]);
                octets.extend_from_slice(&source.octets());
                octets.extend_from_slice(&destination.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        octets.extend_from_slice(&[0, 0]);
        octets.extend_from_slice(&DATA_PORT.to_be_bytes());
        // The checksum stays 0 (§5.3): the inner packet has its own.
        octets.extend_from_slice(&[0; 4]);
        let [_, iid @ ..] = iid.0.to_be_bytes();
        // Without the I bit the instance is 0 (§8), and so it is for any LISP router.
        let flags = if iid == [0; 3] { 0 } else { FLAG_INSTANCE };
        octets.extend_from_slice(&[flags, 0, 0, 0]);
        octets.extend_from_slice(&iid);
        octets.push(0);
        Some(Self { destination, octets })
    }

    pub fn overhead(&self) -> usize {
        self.octets.len()
    }

    /// Writes the headers into the room before the packet, which begins at [`HEADROOM`]. Where
    /// the datagram begins.
    pub fn put(&self, slot: &mut [u8], head: &Head) -> usize {
        let start = HEADROOM - self.octets.len();
        let outer = &mut slot[start..HEADROOM];
        outer.copy_from_slice(&self.octets);
        // A packet has at most 65535 octets; one that is longer with its headers was too big for
        // any path, and is refused before.
        let length = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        let udp_len = length(UDP + LISP + head.len);
        let port = source_port(head.flow).to_be_bytes();
        let ip_len = self.octets.len() - UDP - LISP;
        // §5.3: TTL, DSCP and ECN are those of the packet (RFC 6040 §4.1).
        if ip_len == IPV4 {
            outer[1] = head.traffic_class;
            outer[2..4].copy_from_slice(&length(self.octets.len() + head.len));
            outer[8] = head.ttl;
        } else {
            outer[0] = 0x60 | head.traffic_class >> 4;
            // RFC 6438: the flow label says the flow too.
            let [_, a, b, c] = (head.flow as u32 & 0x000f_ffff).to_be_bytes();
            outer[1..4].copy_from_slice(&[head.traffic_class << 4 | a, b, c]);
            outer[4..6].copy_from_slice(&udp_len);
            outer[7] = head.ttl;
        }
        outer[ip_len..ip_len + 2].copy_from_slice(&port);
        outer[ip_len + 4..ip_len + 6].copy_from_slice(&udp_len);
        start
    }
}

/// One of the dynamic ports, the same for all packets of a flow (RFC 9300 §12, RFC 6335 §6).
fn source_port(flow: u64) -> u16 {
    0xc000 | (flow >> 48) as u16 & 0x3fff
}

const FLAG_INSTANCE: u8 = 0x08;
const FLAGS_ENCRYPTED: u8 = 0x03;

/// The instance and the inner packet of a data packet's UDP payload. `None` when it is too short,
/// or encrypted (RFC 8061). Nonce, version and locator status bits are not used.
pub fn lisp_payload(payload: &mut [u8]) -> Option<(InstanceId, &mut [u8])> {
    let (header, packet) = payload.split_first_chunk_mut::<LISP>()?;
    if header[0] & FLAGS_ENCRYPTED != 0 {
        return None;
    }
    let iid = match header[0] & FLAG_INSTANCE {
        0 => InstanceId(0),
        _ => InstanceId(u32::from_be_bytes([0, header[4], header[5], header[6]])),
    };
    Some((iid, packet))
}

/// An ICMP error that a router answers a packet with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// The largest packet that fits.
    TooBig {
        mtu: u16,
    },
    TimeExceeded,
}

/// A packet that tells the source of `packet` what happened (RFC 792, RFC 4443), from `from`,
/// which is an address of this machine. `None` when there is nobody to tell: the packet is an
/// ICMP error itself, a fragment, or from no unicast address (RFC 1812 §4.3.2.7, RFC 4443 §2.4).
pub fn icmp_error(error: Icmp, packet: &[u8], head: &Head, from: IpAddr) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    match (from, head.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header_len = usize::from(packet[0] & 0xf) * 4;
            let first = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff == 0;
            let is_error =
                packet[9] == PROTOCOL_ICMP && !matches!(packet.get(header_len), Some(0 | 8));
            if !first || is_error || to.is_unspecified() || to.is_multicast() || to.is_broadcast() {
                return None;
            }
            // RFC 1812 §4.3.2.3: as much as fits into 576 octets.
            let quoted = &packet[..head.len.min(576 - IPV4 - 8)];
            let (kind, code, mtu) = match error {
                Icmp::TooBig { mtu } => (3, 4, mtu),
                Icmp::TimeExceeded => (11, 0, 0),
            };
            let len = (IPV4 + 8 + quoted.len()) as u16;
            octets.extend_from_slice(&[0x45, 0xc0]);
            octets.extend_from_slice(&len.to_be_bytes());
            octets.extend_from_slice(&[0, 0, 0, 0, 64, PROTOCOL_ICMP, 0, 0]);
            octets.extend_from_slice(&from.octets());
            octets.extend_from_slice(&to.octets());
            octets.extend_from_slice(&[kind, code, 0, 0, 0, 0]);
            octets.extend_from_slice(&mtu.to_be_bytes());
            octets.extend_from_slice(quoted);
            let checksum = fold(sum(&octets[IPV4..]));
            octets[IPV4 + 2..IPV4 + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let is_error =
                packet[6] == PROTOCOL_ICMP6 && packet.get(IPV6).is_some_and(|kind| *kind < 128);
            if is_error || to.is_unspecified() || to.is_multicast() {
                return None;
            }
            // RFC 4443 §3.2: as much as fits into the least MTU.
            let quoted = &packet[..head.len.min(1280 - IPV6 - 8)];
            let (kind, mtu) = match error {
                Icmp::TooBig { mtu } => (2, mtu),
                Icmp::TimeExceeded => (3, 0),
            };
            let len = (8 + quoted.len()) as u16;
            octets.extend_from_slice(&[0x6c, 0, 0, 0]);
            octets.extend_from_slice(&len.to_be_bytes());
            octets.extend_from_slice(&[PROTOCOL_ICMP6, 64]);
            octets.extend_from_slice(&from.octets());
            octets.extend_from_slice(&to.octets());
            octets.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
            octets.extend_from_slice(&mtu.to_be_bytes());
            octets.extend_from_slice(quoted);
            let pseudo = sum(&octets[8..IPV6]) + u32::from(len) + u32::from(PROTOCOL_ICMP6);
            let checksum = fold(pseudo + sum(&octets[IPV6..]));
            octets[IPV6 + 2..IPV6 + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    Some(octets)
}

/// RFC 9300 §7.1: a packet that is too long once its headers are before it is split into two equal
/// parts first, when its source allows it; the destination puts them together. `None` when the
/// header has options (which may not be copied into the second part) or the parts are too long still.
pub fn split(packet: &[u8], head: &Head, len_max: usize) -> Option<[Vec<u8>; 2]> {
    let whole = &packet[..head.len];
    if whole[0] != 0x45 || !head.may_fragment {
        return None;
    }
    let (header, payload) = whole.split_at(IPV4);
    // The offset counts in units of 8 octets.
    let first_len = (payload.len() / 2).next_multiple_of(8);
    if IPV4 + first_len > len_max || first_len >= payload.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let offset = fragment & 0x1fff;
    let second_offset = offset + u16::try_from(first_len / 8).ok()?;
    let part = |payload: &[u8], flags_and_offset: u16| {
        let mut octets = Vec::with_capacity(IPV4 + payload.len());
        octets.extend_from_slice(header);
        octets[2..4].copy_from_slice(&((IPV4 + payload.len()) as u16).to_be_bytes());
        octets[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        octets[10..12].copy_from_slice(&[0, 0]);
        let checksum = fold(sum(&octets));
        octets[10..12].copy_from_slice(&checksum.to_be_bytes());
        octets.extend_from_slice(payload);
        octets
    };
    const MORE: u16 = 0x2000;
    Some([
        part(&payload[..first_len], fragment & 0xe000 | MORE | offset),
        part(&payload[first_len..], fragment & 0xe000 | second_offset),
    ])
}
