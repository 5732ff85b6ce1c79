//! A packet goes into the tunnel, and comes out of it (RFC 9300 §5.3).

use std::net::{IpAddr, SocketAddr};

use super::checksum::Sum;
use super::head::set_ttl_and_class;
use super::header::{FirstWord, LispHeader, NEXT_PROTOCOL_IPV4, NEXT_PROTOCOL_IPV6};
use super::ip::{
    self, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Ipv4Fields, Ipv6Fields, PROTOCOL_UDP, UDP_HEADER_LEN,
};
use super::{DropReason, Head};
use crate::types::Family;
use crate::wire::lisp::DATA_PORT;

/// ECN is the low half of the low half octet (RFC 3168 §5).
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// Octets that the tunnel puts before a packet: H of RFC 9300 §7.1.
pub const fn outer_len(family: Family) -> usize {
    let ip = match family {
        Family::Ipv4 => IPV4_HEADER_LEN,
        Family::Ipv6 => IPV6_HEADER_LEN,
    };
    ip + UDP_HEADER_LEN + LispHeader::LEN
}

/// What the one who encapsulates decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `None`: by the flow of the inner packet (RFC 9300 §12).
    pub source_port: Option<u16>,
    pub header: LispHeader,
    /// Compute the UDP checksum. RFC 9300 §5.3 wants none, over IPv6 too; RFC 9305 §4.3.1 wants
    /// one over IPv6 unless the operator decides otherwise.
    pub checksum: bool,
}

/// Appends the whole outer packet. TTL, DSCP and ECN are copied from the inner packet (RFC 9300
/// §5.3, and the normal mode of RFC 6040 §4.1); the caller has counted the hop already. DF is set.
pub fn encapsulate(inner: &[u8], outer: &Outer, out: &mut Vec<u8>) -> Result<(), DropReason> {
    let head = Head::of(inner)?;
    if head.ttl == 0 {
        return Err(DropReason::HopLimit);
    }
    let udp_len = UDP_HEADER_LEN + LispHeader::LEN + head.len;
    if udp_len + IPV4_HEADER_LEN > usize::from(u16::MAX) {
        return Err(DropReason::TooLong);
    }
    match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let fields = Ipv4Fields {
                tos: head.traffic_class,
                dont_fragment: true,
                ttl: head.ttl,
                source: source.octets(),
                destination: destination.octets(),
            };
            ip::put_ipv4(fields, udp_len, out);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let fields = Ipv6Fields {
                traffic_class: head.traffic_class,
                flow_label: head.flow_label(),
                hop_limit: head.ttl,
                source: source.octets(),
                destination: destination.octets(),
            };
            ip::put_ipv6(fields, udp_len, out);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            return Err(DropReason::Family);
        }
    }
    let start = out.len();
    let source_port = outer.source_port.unwrap_or_else(|| head.source_port());
    ip::put_udp(source_port, DATA_PORT, udp_len, out);
    out.extend_from_slice(&outer.header.octets());
    out.extend_from_slice(&inner[..head.len]);
    if outer.checksum {
        ip::fill_udp_checksum(outer.source, outer.destination, start, out);
    }
    Ok(())
}

/// A packet out of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner<'a> {
    pub header: LispHeader,
    /// With the hop limit and the traffic class that it goes on with.
    pub head: Head,
    /// As it was in the tunnel, without what may have followed it.
    packet: &'a [u8],
}

impl Inner<'_> {
    /// Appends the packet as it goes on.
    pub fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(self.packet);
        set_ttl_and_class(&mut out[start..], self.head.ttl, self.head.traffic_class);
    }
}

/// Takes the payload of a UDP datagram to port 4341 apart. `ttl` and `traffic_class` are those of
/// the outer header: the lower of the two hop limits goes on, the DSCP is the outer one, and a mark
/// of congestion is kept (RFC 9300 §5.3, RFC 6040 §4.2). In the GPE form only congestion is taken
/// over, because its tunnels are pipes (RFC 9305 §4.4).
pub fn decapsulate(payload: &[u8], ttl: u8, traffic_class: u8) -> Result<Inner<'_>, DropReason> {
    let (header, packet) = LispHeader::decode(payload)?;
    let mut head = Head::of(packet)?;
    let ecn = congestion(head.traffic_class & ECN, traffic_class & ECN)?;
    let dscp = match header.first {
        FirstWord::NextProtocol(next) => {
            let wanted = match head.source {
                IpAddr::V4(_) => NEXT_PROTOCOL_IPV4,
                IpAddr::V6(_) => NEXT_PROTOCOL_IPV6,
            };
            if next != wanted {
                return Err(DropReason::NextProtocol);
            }
            head.traffic_class & !ECN
        }
        FirstWord::Nothing | FirstWord::Nonce { .. } | FirstWord::Versions { .. } => {
            head.ttl = head.ttl.min(ttl);
            traffic_class & !ECN
        }
    };
    if head.ttl == 0 {
        return Err(DropReason::HopLimit);
    }
    head.traffic_class = dscp | ecn;
    Ok(Inner { header, head, packet: &packet[..head.len] })
}

/// RFC 6040 §4.2, figure 4.
const fn congestion(inner: u8, outer: u8) -> Result<u8, DropReason> {
    match (inner, outer) {
        (NOT_ECT, CE) => Err(DropReason::Congestion),
        (NOT_ECT, _) => Ok(NOT_ECT),
        (_, CE) => Ok(CE),
        (ECT_0, ECT_1) => Ok(ECT_1),
        (inner, _) => Ok(inner),
    }
}

/// Whether the checksum of a datagram is right, or absent, which has to be accepted (RFC 9300
/// §5.3). `udp` begins with the UDP header and is as long as that says.
pub fn checksum_is_good(source: SocketAddr, destination: SocketAddr, udp: &[u8]) -> bool {
    match udp {
        [_, _, _, _, _, _, 0, 0, ..] => true,
        _ => {
            let sum = Sum::default()
                .pseudo(source.ip(), destination.ip(), PROTOCOL_UDP, udp.len())
                .and(udp);
            sum.finish() == 0
        }
    }
}
