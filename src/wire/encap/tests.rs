//! Into the tunnel and out of it, with packets made by hand.

use std::net::{IpAddr, SocketAddr};

use super::ip::{Datagram, IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN};
use super::*;
use crate::types::Family;
use crate::types::lisp::{InstanceId, MapVersion};
use crate::wire::lisp::DATA_PORT;

const V4: [&str; 2] = ["10.1.0.7", "10.2.0.9"];
const V6: [&str; 2] = ["2001:db8:1::7", "2001:db8:2::9"];

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A UDP packet of `len` octets of payload.
fn packet([source, destination]: [&str; 2], source_port: u16, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
    ip::put_datagram(
        SocketAddr::new(addr(source), source_port),
        SocketAddr::new(addr(destination), 2000),
        &payload,
        &mut out,
    );
    out
}

fn outer([source, destination]: [&str; 2]) -> Outer {
    Outer {
        source: addr(source),
        destination: addr(destination),
        source_port: None,
        header: LispHeader { iid: Some(InstanceId(0x0a_0b0c)), ..LispHeader::default() },
        checksum: false,
    }
}

/// The header checksum is right, or the packet has none.
fn header_is_good(packet: &[u8]) -> bool {
    let head = Head::of(packet).unwrap();
    head.source.is_ipv6() || checksum::Sum::default().and(&packet[..head.header_len]).finish() == 0
}

fn udp_of(packet: &[u8]) -> &[u8] {
    &packet[Head::of(packet).unwrap().header_len..]
}

/// RFC 9300 §5.1 and RFC 9305 §3, by hand.
#[test]
fn the_header_is_as_the_figures_show_it() {
    let iid = Some(InstanceId(0x01_0203));
    let versions =
        FirstWord::Versions { source: MapVersion(0xabc), destination: MapVersion(0xdef) };
    for (header, octets) in [
        (LispHeader::default(), [0; 8]),
        (LispHeader { iid, ..LispHeader::default() }, [0x08, 0, 0, 0, 1, 2, 3, 0]),
        (LispHeader { iid, status: Some(5), ..LispHeader::default() }, [0x48, 0, 0, 0, 1, 2, 3, 5]),
        (
            LispHeader { iid: None, status: Some(0x0102_0304), first: FirstWord::Nothing },
            [0x40, 0, 0, 0, 1, 2, 3, 4],
        ),
        (
            LispHeader {
                first: FirstWord::Nonce { nonce: 0x0c_0d0e, echo: true },
                ..LispHeader::default()
            },
            [0xa0, 0x0c, 0x0d, 0x0e, 0, 0, 0, 0],
        ),
        (
            LispHeader { first: versions, ..LispHeader::default() },
            [0x10, 0xab, 0xcd, 0xef, 0, 0, 0, 0],
        ),
        (
            LispHeader { first: FirstWord::NextProtocol(2), iid, status: None },
            [0x0c, 0, 0, 2, 1, 2, 3, 0],
        ),
    ] {
        assert_eq!(header.octets(), octets);
        assert_eq!(LispHeader::decode(&octets), Ok((header, &[][..])));
    }
    let first = |octets: [u8; 8]| LispHeader::decode(&octets).map(|(header, _)| header.first);
    // N beside V is a nonce; P takes the meaning from N, E and V; KK is what we cannot open.
    let nonce = FirstWord::Nonce { nonce: 0x01_0203, echo: false };
    assert_eq!(first([0x90, 1, 2, 3, 0, 0, 0, 0]), Ok(nonce));
    assert_eq!(first([0xb4, 9, 9, 1, 0, 0, 0, 0]), Ok(FirstWord::NextProtocol(1)));
    assert_eq!(first([0x01, 0, 0, 0, 0, 0, 0, 0]), Err(DropReason::Encrypted));
    assert_eq!(LispHeader::decode(&[0; 7]), Err(DropReason::Truncated));
}

#[test]
fn a_packet_comes_out_as_it_went_in() {
    for inner in [packet(V4, 1000, 99), packet(V6, 1000, 100)] {
        for locators in [V4, V6] {
            for checksum in [false, true] {
                let outer = Outer { checksum, ..outer(locators) };
                let mut out = Vec::new();
                // What follows the packet in its buffer does not go along.
                let mut padded = inner.clone();
                padded.extend([0xee; 9]);
                encapsulate(&padded, &outer, &mut out).unwrap();
                let family = if locators == V4 { Family::Ipv4 } else { Family::Ipv6 };
                assert_eq!(out.len(), inner.len() + outer_len(family));
                let head = Head::of(&out).unwrap();
                assert_eq!((head.source, head.destination), (outer.source, outer.destination));
                assert!(header_is_good(&out) && head.dont_fragment);
                let udp = udp_of(&out);
                assert_eq!(udp[2..4], DATA_PORT.to_be_bytes());
                assert_eq!(udp[6..8] != [0, 0], checksum);
                let at = |addr| SocketAddr::new(addr, 0);
                assert!(checksum_is_good(at(outer.source), at(outer.destination), udp));
                if checksum {
                    assert!(Datagram::decode(&out).is_ok());
                    let mut changed = udp.to_vec();
                    changed[30] ^= 1;
                    assert!(!checksum_is_good(at(outer.source), at(outer.destination), &changed));
                }
                let payload = &udp[UDP_HEADER_LEN..];
                let taken = decapsulate(payload, head.ttl, head.traffic_class).unwrap();
                assert_eq!(taken.header, outer.header);
                let mut back = Vec::new();
                taken.put(&mut back);
                assert_eq!(back, inner);
                for len in 0..payload.len() {
                    assert!(decapsulate(&payload[..len], 64, 0).is_err(), "cut at {len}");
                }
            }
        }
    }
    let mut out = Vec::new();
    let mixed = outer([V4[0], V6[1]]);
    assert_eq!(encapsulate(&packet(V4, 1, 1), &mixed, &mut out), Err(DropReason::Family));
    assert_eq!(encapsulate(&[0x20; 40], &outer(V4), &mut out), Err(DropReason::NotIp));
    let long = packet(V4, 1, 65_535 - 28);
    assert_eq!(encapsulate(&long, &outer(V4), &mut out), Err(DropReason::TooLong));
    assert!(out.is_empty());
}

/// RFC 9300 §12: one flow, one port; another flow most often another one, and all dynamic.
#[test]
fn the_source_port_is_of_the_flow() {
    for addresses in [V4, V6] {
        let port = |flow, len| Head::of(&packet(addresses, flow, len)).unwrap().source_port();
        assert_eq!(port(1, 10), port(1, 500));
        let ports: std::collections::BTreeSet<u16> = (1..=100).map(|flow| port(flow, 9)).collect();
        assert!(ports.len() > 90 && ports.first() >= Some(&0xc000));
    }
    // A fragment has no ports to be told apart by.
    let mut ports = Vec::new();
    let mut whole = packet(V4, 1, 1000);
    whole[6] = 0;
    fragment(&whole, 600, |piece| ports.push(Head::of(piece).unwrap().flow)).unwrap();
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0], ports[1]);
}

/// RFC 6040 §4.2, figure 4, row by row; RFC 9300 §5.3 for the DSCP and the hop limit.
#[test]
fn the_outer_header_tells_the_inner_one_what_happened() {
    const DROP: u8 = 9;
    #[rustfmt::skip]
    // Columns: outer Not-ECT, ECT(0), ECT(1), CE.
    let table = [
        (0b00, [0b00, 0b00, 0b00, DROP]),
        (0b10, [0b10, 0b10, 0b01, 0b11]),
        (0b01, [0b01, 0b01, 0b01, 0b11]),
        (0b11, [0b11, 0b11, 0b11, 0b11]),
    ];
    for addresses in [V4, V6] {
        for gpe in [false, true] {
            for (inner_ecn, row) in table {
                for (outer_ecn, want) in [0b00, 0b10, 0b01, 0b11].into_iter().zip(row) {
                    let mut inner = packet(addresses, 1, 20);
                    set_ttl_and_class(&mut inner, 50, 0x28 | inner_ecn);
                    assert!(header_is_good(&inner));
                    let next =
                        if addresses == V4 { NEXT_PROTOCOL_IPV4 } else { NEXT_PROTOCOL_IPV6 };
                    let first =
                        if gpe { FirstWord::NextProtocol(next) } else { FirstWord::Nothing };
                    let header = LispHeader { first, ..LispHeader::default() };
                    let payload = [&header.octets()[..], &inner].concat();
                    let taken = decapsulate(&payload, 40, 0x50 | outer_ecn);
                    if want == DROP {
                        assert_eq!(taken, Err(DropReason::Congestion));
                        continue;
                    }
                    let mut out = Vec::new();
                    taken.unwrap().put(&mut out);
                    let head = Head::of(&out).unwrap();
                    let (dscp, ttl) = if gpe { (0x28, 50) } else { (0x50, 40) };
                    assert_eq!((head.traffic_class, head.ttl), (dscp | want, ttl));
                    assert!(header_is_good(&out));
                    assert_eq!(udp_of(&out), udp_of(&inner));
                    // The outer hop limit is not above the inner one: it stays.
                    let taken = decapsulate(&payload, 51, 0x50 | outer_ecn).unwrap();
                    assert_eq!(taken.head.ttl, 50);
                }
            }
        }
    }
    let inner = packet(V4, 1, 20);
    let payload = [&LispHeader::default().octets()[..], &inner].concat();
    assert_eq!(decapsulate(&payload, 0, 0), Err(DropReason::HopLimit));
    let gpe = |next| LispHeader { first: FirstWord::NextProtocol(next), ..LispHeader::default() };
    for next in [NEXT_PROTOCOL_IPV6, 0, 3, 4, 0x80] {
        let payload = [&gpe(next).octets()[..], &inner].concat();
        assert_eq!(decapsulate(&payload, 64, 0), Err(DropReason::NextProtocol));
    }
    let mut spent = inner;
    set_ttl_and_class(&mut spent, 0, 0);
    assert_eq!(encapsulate(&spent, &outer(V4), &mut Vec::new()), Err(DropReason::HopLimit));
}

/// RFC 9300 §7.1: the value is S; the quote is as long as allowed; the checksums are right.
#[test]
fn the_source_of_a_large_packet_is_told() {
    for (addresses, router, quote_max, ip_len) in
        [(V4, "10.9.0.1", 576, IPV4_HEADER_LEN), (V6, "2001:db8:9::1", 1280, IPV6_HEADER_LEN)]
    {
        for len in [10, 1441] {
            let inner = packet(addresses, 1, len);
            let mut out = Vec::new();
            let error = IcmpError::TooBig { mtu_bytes: 1464 };
            assert_eq!(put_icmp_error(&inner, addr(router), error, &mut out), Ok(true));
            let head = Head::of(&out).unwrap();
            assert_eq!((head.source, head.destination), (addr(router), addr(addresses[0])));
            assert!(header_is_good(&out));
            let quote = inner.len().min(quote_max - ip_len - 8);
            assert_eq!(out.len(), ip_len + 8 + quote);
            let icmp = &out[ip_len..];
            let v6 = addresses == V6;
            assert_eq!(icmp[..2], if v6 { [2, 0] } else { [3, 4] });
            assert_eq!(icmp[4..8], [0, 0, 5, 0xb8]);
            assert_eq!(&icmp[8..], &inner[..quote]);
            let pseudo = checksum::Sum::default();
            let pseudo = match v6 {
                true => pseudo.pseudo(head.source, head.destination, 58, icmp.len()),
                false => pseudo,
            };
            assert_eq!(pseudo.and(icmp).finish(), 0);
            // No error about an error.
            let mut second = Vec::new();
            assert_eq!(put_icmp_error(&out, addr(router), error, &mut second), Ok(false));
            assert!(second.is_empty());
        }
    }
    for (source, destination, told) in [
        ("0.0.0.0", "10.0.0.1", false),
        ("224.0.0.5", "10.0.0.1", false),
        ("10.0.0.1", "224.0.0.5", false),
        ("10.0.0.1", "255.255.255.255", false),
        ("10.0.0.1", "10.0.0.2", true),
    ] {
        let packet = packet([source, destination], 1, 1);
        let error = IcmpError::Prohibited;
        let sent = put_icmp_error(&packet, addr("10.0.0.9"), error, &mut Vec::new());
        assert_eq!(sent, Ok(told), "{source} to {destination}");
    }
    let multicast = packet(["2001:db8::1", "ff0e::1"], 1, 1);
    let from = addr("2001:db8::9");
    for (error, told) in
        [(IcmpError::TooBig { mtu_bytes: 1400 }, true), (IcmpError::Unreachable, false)]
    {
        assert_eq!(put_icmp_error(&multicast, from, error, &mut Vec::new()), Ok(told));
    }
}

/// RFC 9300 §7.1 and RFC 791 §3.2: two fragments of like size, which make the packet again.
#[test]
fn a_large_packet_that_may_be_cut_is_cut() {
    for (len, mtu, count) in [(1000, 600, 2), (1000, 1028, 1), (1000, 28, 126), (1441, 1464, 2)] {
        let mut whole = packet(V4, 1, len);
        whole[4..6].copy_from_slice(&[0x12, 0x34]);
        whole[6] = 0;
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        fragment(&whole, mtu, |piece| pieces.push(piece.to_vec())).unwrap();
        assert_eq!(pieces.len(), count);
        let mut payload: Vec<u8> = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            assert!(piece.len() <= mtu && (count == 1 || header_is_good(piece)));
            let flags = u16::from_be_bytes([piece[6], piece[7]]);
            assert_eq!(usize::from(flags & 0x1fff) * 8, payload.len());
            assert_eq!(flags & 0x2000 != 0, n + 1 < count);
            assert_eq!(piece[4..6], [0x12, 0x34]);
            assert_eq!(Head::of(piece).unwrap().len, piece.len());
            payload.extend(&piece[20..]);
        }
        assert_eq!(payload, whole[20..]);
        if count == 2 {
            assert!(pieces[0].len() - pieces[1].len() < 16);
            // A fragment of a fragment keeps its place and says that more follow.
            let mut again: Vec<Vec<u8>> = Vec::new();
            fragment(&pieces[0], 300, |piece| again.push(piece.to_vec())).unwrap();
            assert!(again.iter().all(|piece| piece[6] & 0x20 != 0));
        }
    }
    let df = packet(V4, 1, 1000);
    assert_eq!(fragment(&df, 600, |_| panic!()), Err(DropReason::TooBig));
    assert_eq!(fragment(&packet(V6, 1, 1000), 600, |_| panic!()), Err(DropReason::TooBig));
}

/// RFC 791 §3.1: only options with the copied flag go into the later fragments.
#[test]
fn options_are_copied_as_they_say() {
    let plain = packet(V4, 1, 100);
    let mut whole = plain[..20].to_vec();
    whole[0] = 0x48;
    whole[6] = 0;
    whole[2..4].copy_from_slice(&(12 + plain.len() as u16).to_be_bytes());
    // Record route (not copied), no operation, router alert (copied), end.
    whole.extend([7, 3, 4, 1, 0x94, 4, 0, 0, 0, 0, 0, 0]);
    whole.extend(&plain[20..]);
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    fragment(&whole, 100, |piece| pieces.push(piece.to_vec())).unwrap();
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[0][..1], [0x48]);
    assert_eq!(pieces[1][0], 0x46);
    assert_eq!(pieces[1][20..24], [0x94, 4, 0, 0]);
    assert!(pieces.iter().all(|piece| header_is_good(piece)));
}

/// Octets from the wire, changed one by one: an error or a value, and never a panic.
#[test]
fn changed_octets_do_no_harm() {
    for inner in [packet(V4, 1, 40), packet(V6, 1, 40)] {
        let payload = [&LispHeader::default().octets()[..], &inner].concat();
        for at in 0..payload.len() {
            for value in 0..=u8::MAX {
                let mut changed = payload.clone();
                changed[at] = value;
                let mut out = Vec::new();
                if let Ok(taken) = decapsulate(&changed, 64, 3) {
                    taken.put(&mut out);
                    let router = if taken.head.source.is_ipv4() { V4[0] } else { V6[0] };
                    let _ =
                        put_icmp_error(&out, addr(router), IcmpError::HopLimit, &mut Vec::new());
                    let _ = fragment(&out, 40, |_| {});
                }
            }
        }
    }
}
