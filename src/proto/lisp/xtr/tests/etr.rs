use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::lab::*;
use crate::proto::lisp::xtr::{Arrival, Etr, EtrConfig, MapServer, Output, RegistrarConfig};
use crate::types::Instant;
use crate::types::lisp::{MapVersion, NegativeAction};
use crate::wire::lisp::{Eid, MapReply, MapRequest, Message, RequestRecord, RlocAddress};

pub fn etr() -> Etr {
    let server = MapServer { addr: addr("192.0.2.100"), keys: keys("of the site") };
    let registrar = RegistrarConfig {
        servers: vec![server],
        id: Some(ID),
        proxy_reply: false,
        merge: false,
        ttl_min: 10,
        nonce_below: 1,
        notify_below: BTreeMap::new(),
    };
    let config = EtrConfig { registrar, rlocs: vec![addr("192.0.2.1"), addr("2001:db8::1")] };
    let mut etr = Etr::new(config, [5; 32]);
    etr.registrar.set(
        IID,
        prefix("10.0.0.0/16"),
        rlocs(&["192.0.2.1", "2001:db8::1"]),
        MapVersion(1),
    );
    etr.registrar.set(IID, prefix("10.9.0.1/32"), rlocs(&["192.0.2.1"]), MapVersion(8));
    etr
}

fn request(p: &str, itr: &str) -> MapRequest {
    MapRequest {
        authoritative: false,
        probe: false,
        smr: false,
        pitr: false,
        smr_invoked: false,
        local_xtr: false,
        dont_reply: false,
        nonce: 77,
        source_eid: Eid::None,
        itr_rlocs: vec![RlocAddress::Ip(addr(itr))],
        records: vec![RequestRecord {
            notify: false,
            eid: Eid::Prefix { iid: IID, prefix: prefix(p) },
        }],
        map_reply: None,
        id: None,
    }
}

fn ask(
    etr: &mut Etr,
    request: &MapRequest,
    in_ecm: bool,
    now: Instant,
) -> Option<(SocketAddr, MapReply)> {
    let mut out = Vec::new();
    let from = SocketAddr::new(addr("198.51.100.1"), 50_000);
    let arrival = if in_ecm { Arrival::Ecm(None) } else { Arrival::Direct };
    etr.handle_map_request(from, addr("192.0.2.1"), arrival, request, now, &mut out);
    let mut all = sent(&out);
    assert!(all.len() <= 1);
    all.pop().map(|(to, message)| match message {
        Message::MapReply(reply) => (to, reply),
        other => panic!("{other:?}"),
    })
}

/// RFC 9301 §5.5: to an ITR-RLOC, at the port that asked, with the nonce.
#[test]
fn a_forwarded_request_is_answered_to_the_itr() {
    let mut etr = etr();
    let (to, reply) = ask(&mut etr, &request("10.9.0.1/32", "198.51.100.9"), true, at(0)).unwrap();
    assert_eq!(to.to_string(), "198.51.100.9:50000");
    assert_eq!((reply.nonce, reply.probe), (77, false));
    let [record] = &reply.records[..] else { panic!() };
    assert!(record.authoritative);
    assert_eq!((record.version, record.ttl_min), (MapVersion(8), 10));
    assert!(record.rlocs[0].local && !record.rlocs[0].probed);
    // Of an aggregate only what was asked: others of it may be elsewhere.
    let (_, reply) = ask(&mut etr, &request("10.0.3.4/32", "198.51.100.9"), true, at(0)).unwrap();
    assert_eq!(reply.records[0].eid, Eid::Prefix { iid: IID, prefix: prefix("10.0.3.4/32") });
    assert_eq!(reply.records[0].rlocs.len(), 2);
}

/// RFC 9301 §7.1, §5.4: P, A, and p at the locator that was probed.
#[test]
fn a_probe_is_answered_with_the_mapping() {
    let mut etr = etr();
    let probe = MapRequest { probe: true, ..request("10.0.3.4/32", "198.51.100.1") };
    let (_, reply) = ask(&mut etr, &probe, false, at(0)).unwrap();
    assert!(reply.probe && reply.records[0].authoritative);
    let probed: Vec<_> =
        reply.records[0].rlocs.iter().map(|r| (r.address.ip().unwrap(), r.probed)).collect();
    assert_eq!(probed, [(addr("192.0.2.1"), true), (addr("2001:db8::1"), false)]);
    // The locator is up, whatever has become of the EID.
    let probe = MapRequest { probe: true, ..request("10.77.0.1/32", "198.51.100.1") };
    let (_, reply) = ask(&mut etr, &probe, false, at(0)).unwrap();
    assert!(reply.probe && reply.records[0].authoritative && reply.records[0].rlocs.is_empty());
    assert_eq!(reply.records[0].action, NegativeAction::NoAction);
    assert!(ask(&mut etr, &probe, true, at(0)).is_none(), "never through the mapping system");
    assert_eq!(etr.counts().request_probe_in_ecm, 1);
}

#[test]
fn what_cannot_be_answered_is_counted() {
    let mut etr = etr();
    assert!(ask(&mut etr, &request("10.77.0.1/32", "198.51.100.1"), true, at(0)).is_none());
    assert!(ask(&mut etr, &request("10.0.0.1/32", "224.0.0.1"), true, at(0)).is_none());
    let none =
        MapRequest { itr_rlocs: vec![RlocAddress::None], ..request("10.0.0.1/32", "198.51.100.1") };
    assert!(ask(&mut etr, &none, true, at(0)).is_none());
    let quiet = MapRequest { dont_reply: true, ..request("10.0.0.1/32", "198.51.100.1") };
    assert!(ask(&mut etr, &quiet, true, at(0)).is_none());
    assert_eq!((etr.counts().request_unknown_eid, etr.counts().request_no_rloc), (1, 3));
    etr.registrar.withdraw(IID, prefix("10.9.0.1/32"), at(0));
    assert!(ask(&mut etr, &request("10.9.0.1/32", "198.51.100.1"), true, at(0)).is_none());
}

/// RFC 9301 §5.4: "Map-Replies MUST be rate limited".
#[test]
fn replies_to_one_itr_are_limited() {
    let mut etr = etr();
    let asked = request("10.0.0.1/32", "198.51.100.1");
    let answered = (0..1000).filter(|_| ask(&mut etr, &asked, true, at(9)).is_some()).count();
    assert_eq!(answered, 64);
    let other = request("10.0.0.1/32", "198.51.100.2");
    assert!(ask(&mut etr, &other, true, at(9)).is_some());
}

/// RFC 9301 §6.1: to the ITR itself, once in three seconds for each EID.
#[test]
fn late_packets_solicit_their_itr() {
    let mut etr = etr();
    let mut late = |rloc: &str, moved: &str, now| {
        let mut out: Vec<Output> = Vec::new();
        etr.solicit(addr(rloc), IID, addr("203.0.113.7"), addr(moved), now, &mut out);
        requests(&out)
    };
    let sent = late("198.51.100.1", "10.9.0.1", at(10));
    let [(to, false, request)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(*to, addr("198.51.100.1"));
    assert!(request.smr && request.dont_reply && !request.smr_invoked);
    let eid = |p: &str| Eid::Prefix { iid: IID, prefix: prefix(p) };
    assert_eq!(request.source_eid, eid("10.9.0.1/32"));
    assert_eq!(request.records[0].eid, eid("203.0.113.7/32"));
    assert!(late("198.51.100.1", "10.9.0.1", at(12)).is_empty());
    assert_eq!(late("198.51.100.1", "10.9.0.2", at(12)).len(), 1, "another EID does not wait");
    assert_eq!(late("198.51.100.2", "10.9.0.1", at(12)).len(), 1);
    assert_eq!(late("198.51.100.1", "10.9.0.1", at(13)).len(), 1);
    for bad in ["192.0.2.1", "0.0.0.0", "224.0.0.1"] {
        assert!(late(bad, "10.9.0.1", at(20)).is_empty());
    }
    // Made-up senders fill a table that does not grow.
    let mut solicited = 0;
    for n in 0..20_000u32 {
        let rloc = std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string();
        solicited += late(&rloc, "10.9.0.1", at(30)).len();
    }
    assert_eq!(solicited, 4096);
    assert_eq!(etr.counts().solicit_bad_rloc, 3);
}
