//! The Internet checksum over an ICMPv6 message and its pseudo-header (RFC 8200 §8.1, RFC 1071).

use std::net::Ipv6Addr;

use super::NEXT_HEADER_ICMP6;

/// What [`icmp6`] gives over a message whose checksum field is right.
pub const GOOD: u16 = 0;

/// The checksum of the message; with the field zero, the value to put there.
pub fn icmp6(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = add(0, &source.octets());
    sum = add(sum, &destination.octets());
    sum += message.len() as u64 + u64::from(NEXT_HEADER_ICMP6);
    sum = add(sum, message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn add(sum: u64, octets: &[u8]) -> u64 {
    let (words, tail) = octets.as_chunks::<2>();
    let words: u64 = words.iter().map(|&w| u64::from(u16::from_be_bytes(w))).sum();
    sum + words + tail.first().map_or(0, |&octet| u64::from(octet) << 8)
}
