//! Octets by hand from the figures of RFC 9301, and values there and back.

use super::*;
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn there_and_back(message: &Message) {
    let octets = encoded(message);
    assert_eq!(Message::decode(&octets).as_ref(), Ok(message), "{octets:02x?}");
}

fn rloc(address: RlocAddress) -> RlocRecord {
    RlocRecord {
        priority: 1,
        weight: 100,
        multicast_priority: 255,
        multicast_weight: 0,
        local: true,
        probed: false,
        reachable: true,
        address,
    }
}

fn record(eid: Eid, rlocs: Vec<RlocRecord>) -> EidRecord {
    EidRecord {
        ttl_min: 1440,
        action: NegativeAction::NoAction,
        authoritative: true,
        version: MapVersion(0xabc),
        eid,
        rlocs,
    }
}

fn eids() -> Vec<Eid> {
    let iid = InstanceId(0x0001_0203);
    let (source, destination) = (prefix("10.1.0.0/16"), prefix("2001:db8::/32"));
    vec![
        Eid::None,
        Eid::Prefix { iid: InstanceId(0), prefix: prefix("10.1.2.3/32") },
        Eid::Prefix { iid, prefix: prefix("2001:db8:1::/48") },
        Eid::SourceDestination { iid: InstanceId(0), source, destination },
        Eid::SourceDestination { iid, source, destination },
        // A MAC address, a name, an LCAF of type 5.
        Eid::Other { mask_len: 48, octets: vec![0, 6, 2, 0, 0, 0, 0, 1] },
        Eid::Other { mask_len: 0, octets: b"\0\x11anchor\0".to_vec() },
        Eid::Other { mask_len: 7, octets: vec![0x40, 3, 0, 0, 5, 0, 0, 3, 9, 9, 9] },
    ]
}

fn rlocs() -> Vec<RlocAddress> {
    let v4 = RlocAddress::Ip("192.0.2.1".parse().unwrap());
    let v6 = RlocAddress::Ip("2001:db8::1".parse().unwrap());
    let geo = RlocAddress::Other(vec![0x40, 3, 0, 0, 5, 0, 0, 3, 9, 9, 9]);
    vec![
        v4.clone(),
        v6.clone(),
        RlocAddress::None,
        geo.clone(),
        RlocAddress::List(vec![geo, v6, v4]),
    ]
}

/// RFC 9301 §5.6 and RFC 8060 §4.1, written by hand.
#[test]
fn a_map_register_is_as_the_figure_shows_it() {
    let message = Message::MapRegister(MapRegister {
        proxy_reply: true,
        security_capable: false,
        eid_notify: false,
        use_ttl: true,
        merge: false,
        want_notify: true,
        nonce: 0x0102_0304_0506_0708,
        authentication: Authentication { key_id: 7, algorithm: 2, digest: vec![0xdd; 16] },
        records: vec![record(
            Eid::Prefix { iid: InstanceId(5), prefix: prefix("10.1.2.0/24") },
            vec![rloc(RlocAddress::Ip("192.0.2.1".parse().unwrap()))],
        )],
        id: Some((XtrId(1), SiteId(2))),
    });
    let mut octets = vec![0x3a, 0, 0x09, 1, 1, 2, 3, 4, 5, 6, 7, 8, 7, 2, 0, 16];
    octets.extend([0xdd; 16]);
    octets.extend([0, 0, 5, 0xa0, 1, 24, 0x10, 0, 0x0a, 0xbc]);
    octets.extend([0x40, 3, 0, 0, 2, 0, 0, 10, 0, 0, 0, 5, 0, 1, 10, 1, 2, 0]);
    octets.extend([1, 100, 255, 0, 0, 5, 0, 1, 192, 0, 2, 1]);
    octets.extend(1u128.to_be_bytes());
    octets.extend(2u64.to_be_bytes());
    assert_eq!(encoded(&message), octets);
    assert_eq!(Message::decode(&octets), Ok(message));
    // The I bit promises the IDs.
    assert_eq!(Message::decode(&octets[..octets.len() - 1]), Err(WireError::Truncated));
}

#[test]
fn every_message_is_read_as_it_was_written() {
    let records: Vec<EidRecord> = eids()
        .into_iter()
        .map(|eid| record(eid, rlocs().into_iter().map(rloc).collect()))
        .collect();
    let id = Some((XtrId(u128::MAX - 7), SiteId(9)));
    let authentication = Authentication { key_id: 1, algorithm: 1, digest: vec![3; 20] };
    for id in [None, id] {
        for source_eid in eids().into_iter().take(3) {
            // A Source-EID has no mask length.
            let source_eid = match source_eid {
                Eid::Prefix { iid, .. } => Eid::Prefix { iid, prefix: prefix("2001:db8::7") },
                other => other,
            };
            there_and_back(&Message::MapRequest(MapRequest {
                authoritative: true,
                probe: false,
                smr: true,
                pitr: false,
                smr_invoked: true,
                local_xtr: false,
                dont_reply: true,
                nonce: 77,
                source_eid,
                itr_rlocs: rlocs(),
                records: eids()
                    .into_iter()
                    .map(|eid| RequestRecord { notify: id.is_some(), eid })
                    .collect(),
                map_reply: id.map(|_| records[1].clone()),
                id,
            }));
        }
        let notify = MapNotify {
            nonce: u64::MAX,
            authentication: authentication.clone(),
            records: records.clone(),
            id,
        };
        there_and_back(&Message::MapNotify(notify.clone()));
        there_and_back(&Message::MapNotifyAck(notify));
        there_and_back(&Message::MapRegister(MapRegister {
            proxy_reply: false,
            security_capable: true,
            eid_notify: true,
            use_ttl: false,
            merge: true,
            want_notify: false,
            nonce: 1,
            authentication: authentication.clone(),
            records: records.clone(),
            id,
        }));
        there_and_back(&Message::MapReply(MapReply {
            probe: true,
            echo_nonce: id.is_none(),
            nonce: 5,
            records: records.clone(),
            security: id.map(|_| vec![1, 0, 0, 0]),
        }));
    }
}

/// RFC 9301 §5.8: both families; the lengths of a payload with its odd octet; every changed octet
/// of what the checksums cover is seen.
#[test]
fn an_ecm_is_checked_inside() {
    for (source, destination) in [("192.0.2.9", "10.1.0.1"), ("2001:db8::9", "2001:db8:1::1")] {
        for message in [b"even".to_vec(), b"odd".to_vec(), vec![]] {
            let ecm = Message::Ecm(Ecm {
                ddt: false,
                security: None,
                source: (source.parse().unwrap(), 61000),
                destination: (destination.parse().unwrap(), CONTROL_PORT),
                message,
            });
            there_and_back(&ecm);
            let octets = encoded(&ecm);
            let udp = if source.contains(':') { 4 + 40 } else { 4 + 20 };
            assert_ne!(octets[udp + 6..udp + 8], [0, 0]);
            for at in 4..octets.len() {
                let mut changed = octets.clone();
                changed[at] ^= 0x10;
                let taken = Message::decode(&changed);
                // Class, flow label and hop limit of IPv6 are covered by nothing.
                let covered = source.contains('.') || !(4..8).contains(&at) && at != 11;
                assert!(taken.is_err() || !covered, "octet {at} of {octets:02x?}");
            }
            let mut unchecked = octets;
            unchecked[udp + 6..udp + 8].fill(0);
            assert_eq!(Message::decode(&unchecked), Err(WireError::BadChecksum));
        }
    }
}

#[test]
fn an_ecm_of_the_data_port_or_of_no_lisp_port_is_refused() {
    for (source, destination) in [(4341, 4342), (4342, 4341), (1000, 1001)] {
        let ecm = Message::Ecm(Ecm {
            ddt: true,
            security: None,
            source: ("192.0.2.9".parse().unwrap(), source),
            destination: ("192.0.2.8".parse().unwrap(), destination),
            message: vec![1, 2, 3],
        });
        assert_eq!(Message::decode(&encoded(&ecm)), Err(WireError::BadValue));
    }
}

/// RFC 9301 §5.1: an AFI that is not known ends the message; within an LCAF, whose length is
/// known, it does not.
#[test]
fn an_unknown_family_is_an_error_unless_its_length_is_known() {
    let with = |address: &[u8]| {
        let mut octets = vec![0x40, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        octets.extend([0, 0, 0, 1, 0, 8, 0, 0, 0, 0]);
        octets.extend(address);
        Message::decode(&octets)
    };
    assert_eq!(with(&[0x12, 0x34, 1, 2]), Err(WireError::UnknownAfi(0x1234)));
    let in_instance = [0x40, 3, 0, 0, 2, 0, 0, 8, 0, 0, 0, 5, 0x12, 0x34, 1, 2];
    assert!(with(&in_instance).is_ok());
    // The mask is longer than the address; the address is cut by its LCAF.
    let mut long = vec![0x40, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    long.extend([0, 0, 0, 1, 0, 33, 0, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    assert_eq!(Message::decode(&long), Err(WireError::BadValue));
    assert_eq!(with(&[0x40, 3, 0, 0, 2, 0, 0, 3, 0, 0, 0]), Err(WireError::BadLength));
}

/// Nesting is not followed deeper than it is understood: 8,000 lists in each other are octets.
#[test]
fn deep_nesting_is_passed_on_unread() {
    let mut address = vec![0, 0];
    for _ in 0..8000 {
        let mut outer = vec![0x40, 3, 0, 0, 1, 0];
        outer.extend(u16::try_from(address.len()).unwrap().to_be_bytes());
        outer.extend(&address);
        address = outer;
    }
    let mut octets = vec![0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    octets.extend(&address);
    let Ok(Message::MapRequest(request)) = Message::decode(&octets) else { panic!() };
    assert_eq!(
        request.itr_rlocs,
        [RlocAddress::List(vec![RlocAddress::Other(address[8..].to_vec())])]
    );
    assert_eq!(encoded(&Message::MapRequest(request)), octets);
}

/// What the counts cannot say is left out, so that what is sent can be read.
#[test]
fn counts_and_records_agree_however_many_there_are() {
    let request = MapRequest {
        authoritative: false,
        probe: false,
        smr: false,
        pitr: false,
        smr_invoked: false,
        local_xtr: false,
        dont_reply: false,
        nonce: 0,
        source_eid: Eid::None,
        itr_rlocs: Vec::new(),
        records: vec![RequestRecord { notify: false, eid: Eid::None }; 300],
        map_reply: None,
        id: None,
    };
    let mut out = Vec::new();
    request.encode(&mut out);
    let Ok(Message::MapRequest(back)) = Message::decode(&out) else { panic!() };
    assert_eq!((back.records.len(), back.itr_rlocs), (255, vec![RlocAddress::None]));
}
