//! Outer headers, written in place before a packet: what differs from packet to packet is filled
//! into a template that each locator has.

use std::net::IpAddr;

use crate::types::Family;
use crate::types::lisp::InstanceId;
use crate::wire::encap::ip::{self, IPV4_HEADER_LEN, Ipv4Fields, Ipv6Fields, UDP_HEADER_LEN};
use crate::wire::encap::{FirstWord, Head, LispHeader, outer_len};
use crate::wire::lisp::DATA_PORT;

/// Room to leave before each packet, so that it need not be moved.
pub const HEADROOM: usize = outer_len(Family::Ipv6);

/// The outer headers to one locator.
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
                // RFC 9300 §7.1: DF is set.
                let fields = Ipv4Fields {
                    tos: 0,
                    dont_fragment: true,
                    ttl: 0,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                ip::put_ipv4(fields, 0, &mut octets);
                // Identification and checksum are the kernel's (raw(7)).
                octets[10..12].fill(0);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let fields = Ipv6Fields {
                    traffic_class: 0,
                    flow_label: 0,
                    hop_limit: 0,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                ip::put_ipv6(fields, 0, &mut octets);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        // The checksum stays 0 (§5.3): the inner packet has its own.
        ip::put_udp(0, DATA_PORT, 0, &mut octets);
        // Without the I bit the instance is 0 (§8), and so it is for any LISP router.
        let iid = (iid != InstanceId(0)).then_some(iid);
        let header = LispHeader { first: FirstWord::Nothing, iid, status: None };
        octets.extend_from_slice(&header.octets());
        Some(Self { destination, octets })
    }

    /// Octets before the packet.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// Writes the headers into the room before the packet, which begins at [`HEADROOM`]. Where
    /// the datagram begins. TTL, DSCP and ECN are those of the packet (§5.3, RFC 6040 §4.1).
    pub fn put(&self, slot: &mut [u8], head: &Head) -> usize {
        let start = HEADROOM - self.octets.len();
        let outer = &mut slot[start..HEADROOM];
        outer.copy_from_slice(&self.octets);
        // What is longer than a datagram can be was too big for any path, and refused before.
        let length = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        let udp_len = length(UDP_HEADER_LEN + LispHeader::LEN + head.len);
        let at_udp = outer.len() - UDP_HEADER_LEN - LispHeader::LEN;
        if at_udp == IPV4_HEADER_LEN {
            outer[1] = head.traffic_class;
            outer[2..4].copy_from_slice(&length(self.octets.len() + head.len));
            outer[8] = head.ttl;
        } else {
            outer[0] = 0x60 | head.traffic_class >> 4;
            let [_, a, b, c] = head.flow_label().to_be_bytes();
            outer[1..4].copy_from_slice(&[head.traffic_class << 4 | a, b, c]);
            outer[4..6].copy_from_slice(&udp_len);
            outer[7] = head.ttl;
        }
        outer[at_udp..at_udp + 2].copy_from_slice(&head.source_port().to_be_bytes());
        outer[at_udp + 4..at_udp + 6].copy_from_slice(&udp_len);
        start
    }
}
