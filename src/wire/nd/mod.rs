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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const ROUTER: MacAddr = MacAddr([2, 0, 0x5e, 0, 1, 1]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// Octets by hand from the figures of RFC 826.
    const ARP: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 0x08, 0x06, // Ethernet
        0, 1, 0x08, 0, 6, 4, 0, 1, // request
        2, 0, 0, 0, 0, 7, 10, 1, 0, 7, // sender
        0, 0, 0, 0, 0, 0, 10, 1, 0, 1, // target
    ];

    /// `fe80::ff:fe00:7 > ff02::1:ff00:1, who has fe80::1`, with its source link-layer address.
    fn solicitation() -> Frame {
        Frame {
            destination: multicast_mac(solicited_node(ip("fe80::1"))),
            source: HOST,
            payload: Payload::Nd {
                source: link_local(HOST),
                destination: solicited_node(ip("fe80::1")),
                message: Icmp6::NeighborSolicitation(NeighborSolicitation {
                    target: ip("fe80::1"),
                    options: vec![NdOption::SourceLinkLayer(HOST)],
                }),
            },
        }
    }

    fn advertisement() -> Frame {
        Frame {
            destination: multicast_mac(ALL_NODES),
            source: ROUTER,
            payload: Payload::Nd {
                source: link_local(ROUTER),
                destination: ALL_NODES,
                message: Icmp6::RouterAdvertisement(RouterAdvertisement {
                    hop_limit: 64,
                    managed: false,
                    other_config: true,
                    lifetime: Duration::from_secs(1800),
                    reachable: Duration::ZERO,
                    retransmit: Duration::from_millis(1000),
                    options: vec![
                        NdOption::SourceLinkLayer(ROUTER),
                        NdOption::Mtu(1400),
                        NdOption::Prefix(PrefixInformation {
                            prefix: ip("2001:db8:1::"),
                            len: 64,
                            on_link: false,
                            autonomous: true,
                            valid: PrefixInformation::INFINITE,
                            preferred: Duration::from_secs(600),
                        }),
                    ],
                }),
            },
        }
    }

    /// The frame with its checksum made right again.
    fn resealed(mut octets: Vec<u8>) -> Vec<u8> {
        let source = Ipv6Addr::from(<[u8; 16]>::try_from(&octets[22..38]).unwrap());
        let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&octets[38..54]).unwrap());
        octets[56..58].fill(0);
        let sum = checksum::icmp6(source, destination, &octets[54..]);
        octets[56..58].copy_from_slice(&sum.to_be_bytes());
        octets
    }

    fn decode(octets: &[u8]) -> Result<Frame, WireError> {
        Frame::decode(octets, Checksum::Verify)
    }

    #[test]
    fn arp_is_read_and_written() {
        let frame = decode(&ARP).unwrap();
        let Payload::Arp(arp) = &frame.payload else { panic!("{frame:?}") };
        assert_eq!(arp.operation, ArpOperation::Request);
        assert_eq!((arp.sender_mac, arp.sender_ip), (HOST, [10, 1, 0, 7].into()));
        assert_eq!(arp.target_ip, Ipv4Addr::new(10, 1, 0, 1));
        assert!(!arp.is_probe() && !arp.is_announcement());
        assert_eq!(frame.encode().unwrap(), ARP);
    }

    #[test]
    fn discovery_comes_back_as_it_went() {
        for frame in [solicitation(), advertisement()] {
            let octets = frame.encode().unwrap();
            assert_eq!(decode(&octets), Ok(frame));
        }
    }

    /// RFC 1071 and RFC 8200 §8.1, by a computation that is not ours: Python over the pseudo-header.
    #[test]
    fn the_checksum_is_that_of_others() {
        let octets = solicitation().encode().unwrap();
        assert_eq!(octets[56..58], SOLICITATION_CHECKSUM.to_be_bytes());
    }
    const SOLICITATION_CHECKSUM: u16 = 0x7b8d;

    #[test]
    fn addresses_of_groups() {
        assert_eq!(solicited_node(ip("2001:db8::1:2345")), ip("ff02::1:ff01:2345"));
        assert_eq!(multicast_mac(ip("ff02::1:ff01:2345")).to_string(), "33:33:ff:01:23:45");
        assert_eq!(link_local(HOST), ip("fe80::ff:fe00:7"));
    }

    #[test]
    fn every_truncation_of_every_message_is_an_error() {
        let frames = [solicitation(), advertisement()].map(|frame| frame.encode().unwrap());
        for octets in frames.iter().map(Vec::as_slice).chain([ARP.as_slice()]) {
            for len in 0..octets.len() {
                // Up to the type field there is nothing to tell discovery from data by.
                match decode(&octets[..len]) {
                    Ok(Frame { payload: Payload::Packet { .. }, .. }) => assert_eq!(len, 54),
                    result => assert!(result.is_err(), "len {len}: {result:?}"),
                }
            }
        }
    }

    /// No single octet, changed, is mistaken for a valid message with another meaning, and none
    /// makes the decoder panic.
    #[test]
    fn a_changed_octet_of_discovery_is_noticed() {
        let octets = solicitation().encode().unwrap();
        for at in 54..octets.len() {
            for value in 0..=u8::MAX {
                let mut changed = octets.clone();
                changed[at] = value;
                let is_discovery = at != 54 || (133..=136).contains(&value);
                if value != octets[at] && is_discovery {
                    assert!(decode(&changed).is_err(), "octet {at} = {value}");
                }
            }
        }
    }

    /// RFC 4861 §6.1.1, §6.1.2, §7.1.1, §7.1.2: one row per rule.
    #[test]
    fn invalid_messages_are_refused() {
        type Change = fn(&mut Vec<u8>);
        let rows: [(&str, Change); 9] = [
            ("hop limit is not 255", |o| o[21] = 254),
            ("code is not 0", |o| o[55] = 1),
            ("target is a multicast address", |o| o[62] = 0xff),
            ("an option has length 0", |o| o[79] = 0),
            ("an option reaches past the end", |o| o[79] = 2),
            ("the source is multicast", |o| o[22] = 0xff),
            ("unspecified source with a link-layer option", |o| o[22..38].fill(0)),
            ("the length in the header is larger than the frame", |o| o[19] += 8),
            ("not version 6", |o| o[14] = 0x40),
        ];
        for (rule, change) in rows {
            let mut octets = solicitation().encode().unwrap();
            change(&mut octets);
            assert!(decode(&resealed(octets)).is_err(), "{rule}");
        }
    }

    #[test]
    fn an_unspecified_source_may_only_ask_the_solicited_node() {
        let frame = |destination| Frame {
            destination: multicast_mac(destination),
            source: HOST,
            payload: Payload::Nd {
                source: Ipv6Addr::UNSPECIFIED,
                destination,
                message: Icmp6::NeighborSolicitation(NeighborSolicitation {
                    target: ip("2001:db8::7"),
                    options: vec![],
                }),
            },
        };
        let good = frame(solicited_node(ip("2001:db8::7"))).encode().unwrap();
        assert!(decode(&good).is_ok());
        let bad = frame(ALL_NODES).encode().unwrap();
        assert_eq!(decode(&bad), Err(WireError::BadValue));
    }

    #[test]
    fn advertisements_have_their_rules_too() {
        let mut octets = advertisement().encode().unwrap();
        octets[22] = 0x20; // a global source
        assert_eq!(decode(&resealed(octets)), Err(WireError::BadValue));

        let na = |solicited| Frame {
            destination: multicast_mac(ALL_NODES),
            source: HOST,
            payload: Payload::Nd {
                source: link_local(HOST),
                destination: ALL_NODES,
                message: Icmp6::NeighborAdvertisement(NeighborAdvertisement {
                    router: false,
                    solicited,
                    override_: true,
                    target: ip("2001:db8::7"),
                    options: vec![NdOption::TargetLinkLayer(HOST)],
                }),
            },
        };
        assert!(decode(&na(false).encode().unwrap()).is_ok());
        assert!(decode(&na(true).encode().unwrap()).is_err());
    }

    #[test]
    fn an_unfinished_checksum_passes_only_when_the_kernel_vouches_for_it() {
        let mut octets = solicitation().encode().unwrap();
        octets[56] ^= 0x55;
        assert_eq!(decode(&octets), Err(WireError::BadChecksum));
        assert!(Frame::decode(&octets, Checksum::NotReady).is_ok());
    }

    #[test]
    fn padding_after_the_packet_is_not_part_of_it() {
        let mut octets = solicitation().encode().unwrap();
        octets.extend([0xaa; 10]);
        assert_eq!(decode(&octets), Ok(solicitation()));
    }

    #[test]
    fn of_data_only_the_source_is_read() {
        let mut octets = vec![0; 14 + 20];
        octets[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        octets[26..30].copy_from_slice(&[10, 1, 0, 7]);
        let source = IpAddr::from([10, 1, 0, 7]);
        assert_eq!(decode(&octets).unwrap().payload, Payload::Packet { source });
        octets[14] = 0x44; // header length below 5
        assert_eq!(decode(&octets), Err(WireError::BadValue));
        octets[12..14].copy_from_slice(&[0x81, 0x00]); // 802.1Q
        assert_eq!(decode(&octets), Err(WireError::BadValue));
    }
}
