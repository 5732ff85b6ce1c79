//! IPv4 and IPv6 headers with UDP, as far as LISP makes and reads them inside its own messages.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::checksum::Sum;
use crate::wire::{Reader, WireError};

pub const PROTOCOL_UDP: u8 = 17;
pub const IPV4_HEADER_LEN: usize = 20;
pub const IPV6_HEADER_LEN: usize = 40;
pub const UDP_HEADER_LEN: usize = 8;

/// Precedence of routing protocols (CS6), for control messages.
const DSCP_CONTROL: u8 = 0xc0;
const HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// A UDP datagram in its IP packet, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// A whole packet: fragments and extension headers are refused, checksums are checked, and
    /// the one of UDP is there. Octets past the packet are left out.
    pub fn decode(packet: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Reader::new(packet);
        let (source, destination, mut udp) = match packet.first().ok_or(WireError::Truncated)? >> 4
        {
            4 => ipv4(&mut input)?,
            6 => ipv6(&mut input)?,
            version => return Err(WireError::UnknownVersion(version)),
        };
        let whole = udp;
        let [source_port, destination_port, len, checksum] =
            [udp.u16()?, udp.u16()?, udp.u16()?, udp.u16()?];
        let len = usize::from(len);
        if len < UDP_HEADER_LEN || len > whole.len() {
            return Err(WireError::BadLength);
        }
        let datagram = &whole.rest()[..len];
        let sum = Sum::default().pseudo(source, destination, PROTOCOL_UDP, len).and(datagram);
        if checksum == 0 || sum.finish() != 0 {
            return Err(WireError::BadChecksum);
        }
        Ok(Self {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
            payload: &datagram[UDP_HEADER_LEN..],
        })
    }
}

fn ipv4<'a>(input: &mut Reader<'a>) -> Result<(IpAddr, IpAddr, Reader<'a>), WireError> {
    let packet = input.rest();
    let [version, _] = input.array()?;
    let total = usize::from(input.u16()?);
    let [_, _, fragment, fragment_low, _, protocol] = input.array()?;
    input.bytes(2)?;
    let source = IpAddr::from(input.array::<4>()?);
    let destination = IpAddr::from(input.array::<4>()?);
    let header_len = usize::from(version & 0xf) * 4;
    if header_len < IPV4_HEADER_LEN || total < header_len || total > packet.len() {
        return Err(WireError::BadLength);
    }
    if Sum::default().and(&packet[..header_len]).finish() != 0 {
        return Err(WireError::BadChecksum);
    }
    let fragmented = u16::from_be_bytes([fragment, fragment_low]) & 0x3fff != 0;
    if fragmented || protocol != PROTOCOL_UDP {
        return Err(WireError::BadValue);
    }
    Ok((source, destination, Reader::new(&packet[header_len..total])))
}

fn ipv6<'a>(input: &mut Reader<'a>) -> Result<(IpAddr, IpAddr, Reader<'a>), WireError> {
    input.bytes(4)?;
    let len = usize::from(input.u16()?);
    let [next_header, _] = input.array()?;
    let source = IpAddr::from(input.array::<16>()?);
    let destination = IpAddr::from(input.array::<16>()?);
    if next_header != PROTOCOL_UDP {
        return Err(WireError::BadValue);
    }
    let payload = input.sub(len).map_err(|_| WireError::BadLength)?;
    Ok((source, destination, payload))
}

/// Writes a control message in UDP and IP, with both checksums. Of two addresses of different
/// families the IPv4 one is written as an IPv6 address (RFC 4291 §2.5.5.2). A message that no
/// length field can say is longer than a datagram can be anyway; its lengths are the largest.
pub fn put_datagram(
    source: SocketAddr,
    destination: SocketAddr,
    message: &[u8],
    out: &mut Vec<u8>,
) {
    let udp_len = UDP_HEADER_LEN + message.len();
    let (from, to) = (source.ip(), destination.ip());
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
        put_ipv4(Ipv4Fields::control(from.octets(), to.octets()), udp_len, out);
    } else {
        let fields = Ipv6Fields {
            traffic_class: DSCP_CONTROL,
            flow_label: 0,
            hop_limit: HOP_LIMIT,
            source: v6(from).octets(),
            destination: v6(to).octets(),
        };
        put_ipv6(fields, udp_len, out);
    }
    let start = out.len();
    put_udp(source.port(), destination.port(), udp_len, out);
    out.extend_from_slice(message);
    let (from, to) = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (from, to),
        _ => (IpAddr::V6(v6(from)), IpAddr::V6(v6(to))),
    };
    fill_udp_checksum(from, to, start, out);
}

/// Fills in the checksum of the datagram whose UDP header begins at `start`.
pub fn fill_udp_checksum(source: IpAddr, destination: IpAddr, start: usize, out: &mut [u8]) {
    let datagram = &mut out[start..];
    let sum =
        Sum::default().pseudo(source, destination, PROTOCOL_UDP, datagram.len()).and(datagram);
    // A checksum of 0 is written as its other form, because 0 says that there is none.
    let checksum = match sum.finish() {
        0 => u16::MAX,
        some => some,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

/// What differs between the IPv4 headers that are made here.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Fields {
    pub tos: u8,
    pub dont_fragment: bool,
    pub ttl: u8,
    pub source: [u8; 4],
    pub destination: [u8; 4],
}

impl Ipv4Fields {
    const fn control(source: [u8; 4], destination: [u8; 4]) -> Self {
        Self { tos: DSCP_CONTROL, dont_fragment: true, ttl: HOP_LIMIT, source, destination }
    }
}

/// A header for `payload_len` octets of UDP, with its checksum.
pub fn put_ipv4(fields: Ipv4Fields, payload_len: usize, out: &mut Vec<u8>) {
    put_ipv4_of(PROTOCOL_UDP, fields, payload_len, out);
}

/// The same for another protocol. The identification is 0, which a packet may have that is not
/// fragmented (RFC 6864 §4.1); what is made here is below the least MTU or has DF.
pub fn put_ipv4_of(protocol: u8, fields: Ipv4Fields, payload_len: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0x45, fields.tos]);
    out.extend_from_slice(&length(IPV4_HEADER_LEN + payload_len));
    let fragment = if fields.dont_fragment { DONT_FRAGMENT } else { 0 };
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&fragment.to_be_bytes());
    out.extend_from_slice(&[fields.ttl, protocol, 0, 0]);
    out.extend_from_slice(&fields.source);
    out.extend_from_slice(&fields.destination);
    let checksum = Sum::default().and(&out[start..]).finish();
    out[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// What differs between the IPv6 headers that are made here.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Fields {
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    pub hop_limit: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
}

/// A header for `payload_len` octets of UDP.
pub fn put_ipv6(fields: Ipv6Fields, payload_len: usize, out: &mut Vec<u8>) {
    put_ipv6_of(PROTOCOL_UDP, fields, payload_len, out);
}

/// The same for another protocol.
pub fn put_ipv6_of(protocol: u8, fields: Ipv6Fields, payload_len: usize, out: &mut Vec<u8>) {
    let first = 6 << 28 | u32::from(fields.traffic_class) << 20 | fields.flow_label & 0x000f_ffff;
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&length(payload_len));
    out.extend_from_slice(&[protocol, fields.hop_limit]);
    out.extend_from_slice(&fields.source);
    out.extend_from_slice(&fields.destination);
}

/// A header whose checksum is 0 for now; `len` counts it.
pub fn put_udp(source_port: u16, destination_port: u16, len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&source_port.to_be_bytes());
    out.extend_from_slice(&destination_port.to_be_bytes());
    out.extend_from_slice(&length(len));
    out.extend_from_slice(&[0, 0]);
}
