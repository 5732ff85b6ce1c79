//! The datagrams of a transient path, from one anchor to another (docs/transient.md).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+-------+---------------+-------------------------------+
//! |Version|  Type |     Hops      |        Reserved (zero)        |
//! +-------+-------+---------------+-------------------------------+
//! |                            Sequence                           |
//! +---------------------------------------------------------------+
//! |                       Path key (128 bits)                     |
//! +---------------------------------------------------------------+
//! | Data: an IP packet. Request, Noted, Answer: source and destination of a flow (8 or 32 octets).
//! | End, End-Ack: a prefix, its length (1 octet) and address (4 or 16 octets).
//! ```
//!
//! The sequence of Data counts the packets of a prefix on this path from 0; of Noted, Answer and
//! End it is how many there were before; else zero. Hops is the number of paths that the packet has
//! behind it.

use std::net::IpAddr;

use super::{Reader, WireError};
use crate::types::Prefix;
use crate::types::transient::PathKey;

pub const VERSION: u8 = 1;

/// Octets before the body.
pub const HEADER_LEN: usize = 24;

const DATA: u8 = 0;
const REQUEST: u8 = 1;
const NOTED: u8 = 2;
const ANSWER: u8 = 3;
const END: u8 = 4;
const END_ACK: u8 = 5;

/// Packets between two addresses. Fragments have no ports, so ports do not tell flows apart: the
/// order is kept for more than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// pMA → nMA: a packet for the node.
    Data(&'a [u8]),
    /// nMA → pMA: say when all of this flow that has come to you is on its way to me.
    Request(Flow),
    /// pMA → nMA: heard; it takes its turn.
    Noted(Flow),
    /// pMA → nMA: it is.
    Answer(Flow),
    /// pMA → nMA: nothing more comes for this prefix.
    End(Prefix),
    /// nMA → pMA
    EndAck(Prefix),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub key: PathKey,
    pub sequence: u32,
    pub hops: u8,
    pub body: Body<'a>,
}

impl<'a> Datagram<'a> {
    pub fn decode(octets: &'a [u8]) -> Result<Self, WireError> {
        let mut input = Reader::new(octets);
        let [first, hops, _, _] = input.array()?;
        if first >> 4 != VERSION {
            return Err(WireError::UnknownVersion(first >> 4));
        }
        let sequence = input.u32()?;
        let key = PathKey(input.u128()?);
        let body = match first & 0xf {
            DATA => Body::Data(input.rest()),
            REQUEST => Body::Request(decode_flow(input)?),
            NOTED => Body::Noted(decode_flow(input)?),
            ANSWER => Body::Answer(decode_flow(input)?),
            END => Body::End(decode_prefix(input)?),
            END_ACK => Body::EndAck(decode_prefix(input)?),
            kind => return Err(WireError::UnknownType(kind)),
        };
        Ok(Self { key, sequence, hops, body })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.body {
            Body::Data(_) => DATA,
            Body::Request(_) => REQUEST,
            Body::Noted(_) => NOTED,
            Body::Answer(_) => ANSWER,
            Body::End(_) => END,
            Body::EndAck(_) => END_ACK,
        };
        out.extend_from_slice(&header(kind, self.hops, self.sequence, self.key));
        match self.body {
            Body::Data(packet) => out.extend_from_slice(packet),
            Body::Request(flow) | Body::Noted(flow) | Body::Answer(flow) => {
                put_ip(flow.source, out);
                put_ip(flow.destination, out);
            }
            Body::End(prefix) | Body::EndAck(prefix) => {
                out.push(prefix.len());
                put_ip(prefix.addr(), out);
            }
        }
    }
}

/// The header of Data, for a packet that has room before it.
pub fn data_header(hops: u8, sequence: u32, key: PathKey) -> [u8; HEADER_LEN] {
    header(DATA, hops, sequence, key)
}

fn header(kind: u8, hops: u8, sequence: u32, key: PathKey) -> [u8; HEADER_LEN] {
    let mut octets = [0; HEADER_LEN];
    octets[0] = VERSION << 4 | kind;
    octets[1] = hops;
    octets[4..8].copy_from_slice(&sequence.to_be_bytes());
    octets[8..].copy_from_slice(&key.0.to_be_bytes());
    octets
}

fn put_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
}

/// The length says the family.
fn decode_flow(mut input: Reader<'_>) -> Result<Flow, WireError> {
    let [source, destination] = match input.len() {
        8 => [IpAddr::from(input.array::<4>()?), IpAddr::from(input.array::<4>()?)],
        32 => [IpAddr::from(input.array::<16>()?), IpAddr::from(input.array::<16>()?)],
        0..8 => return Err(WireError::Truncated),
        _ => return Err(WireError::BadLength),
    };
    Ok(Flow { source, destination })
}

fn decode_prefix(mut input: Reader<'_>) -> Result<Prefix, WireError> {
    let len = input.u8()?;
    let addr = match input.len() {
        4 => IpAddr::from(input.array::<4>()?),
        16 => IpAddr::from(input.array::<16>()?),
        0..4 => return Err(WireError::Truncated),
        _ => return Err(WireError::BadLength),
    };
    match Prefix::new(addr, len) {
        Some(prefix) if prefix.addr() == addr => Ok(prefix),
        Some(_) | None => Err(WireError::BadValue),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Datagram<'static>> {
        let flow =
            |a: &str, b: &str| Flow { source: a.parse().unwrap(), destination: b.parse().unwrap() };
        let (v4, v6) = (flow("192.0.2.1", "10.1.0.7"), flow("2001:db8::1", "2001:db8:1::7"));
        let prefix = |text: &str| text.parse().unwrap();
        [
            Body::Data(b"\x45packet"),
            Body::Request(v4),
            Body::Noted(v6),
            Body::Answer(v4),
            Body::Answer(v6),
            Body::End(prefix("10.1.0.7/32")),
            Body::End(prefix("2001:db8:1::/64")),
            Body::EndAck(prefix("2001:db8:1::7/128")),
        ]
        .map(|body| Datagram { key: PathKey(u128::MAX - 5), sequence: 0x0102_0304, hops: 3, body })
        .into()
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for datagram in examples() {
            let mut octets = Vec::new();
            datagram.encode(&mut octets);
            assert_eq!(Datagram::decode(&octets), Ok(datagram));
            assert_eq!(&octets[..8], &[octets[0], 3, 0, 0, 1, 2, 3, 4]);
            if let Body::Data(_) = datagram.body {
                assert_eq!(octets[..HEADER_LEN], data_header(3, 0x0102_0304, datagram.key));
            }
        }
    }

    #[test]
    fn every_truncation_and_every_surplus_is_an_error() {
        for datagram in examples() {
            let mut octets = Vec::new();
            datagram.encode(&mut octets);
            let shortest = match datagram.body {
                Body::Data(_) => HEADER_LEN,
                _ => octets.len(),
            };
            for len in 0..shortest {
                let cut = Datagram::decode(&octets[..len]);
                // The length is what tells the family: two addresses of IPv4, or one.
                let other_family = match len - len.min(HEADER_LEN) {
                    8 => octets.len() == HEADER_LEN + 32,
                    5 => octets.len() == HEADER_LEN + 17,
                    _ => false,
                };
                assert!(cut.is_err() || other_family, "{datagram:?} cut to {len}");
            }
            if !matches!(datagram.body, Body::Data(_)) {
                octets.push(0);
                assert_eq!(Datagram::decode(&octets), Err(WireError::BadLength), "{datagram:?}");
            }
        }
    }

    #[test]
    fn other_versions_and_types_and_host_bits_are_refused() {
        let mut octets = data_header(0, 0, PathKey(1)).to_vec();
        for version in (0..16).filter(|&version| version != VERSION) {
            octets[0] = version << 4;
            assert_eq!(Datagram::decode(&octets), Err(WireError::UnknownVersion(version)));
        }
        for kind in END_ACK + 1..16 {
            octets[0] = VERSION << 4 | kind;
            assert_eq!(Datagram::decode(&octets), Err(WireError::UnknownType(kind)));
        }
        octets[0] = VERSION << 4 | END;
        octets.extend_from_slice(&[24, 10, 0, 0, 1]);
        assert_eq!(Datagram::decode(&octets), Err(WireError::BadValue));
        octets[HEADER_LEN] = 33;
        assert_eq!(Datagram::decode(&octets), Err(WireError::BadValue));
    }
}
