//! RFC 9303 at the ITR. The Map-Server's side is written out here.

use super::lab::*;
use super::query::{MR, config, miss};
use crate::auth::{Otk, OtkHmac, OtkKdf, OtkWrap, Secret};
use crate::proto::lisp::xtr::{Itr, Output, Policy, Security};
use crate::wire::Reader;
use crate::wire::lisp::{
    EcmSecurity, Eid, EidAuthentication, EidRecord, MapReply, Message, ReplySecurity, SignedEids,
};

const HMAC: OtkHmac = OtkHmac::Sha256_128;

fn secret() -> Secret {
    Secret::new(b"of the resolver".to_vec())
}

fn itr() -> Itr {
    let security = Security { key_id: 4, secret: secret() };
    Itr::new(config(Policy::Query), [9; 32], at(0)).with_security([(addr(MR), security)].into())
}

/// What the Map-Resolver reads of the question: its nonce and its key.
fn read(out: &[Output]) -> (u64, Otk) {
    let nonce = requests(out)[0].2.nonce;
    let [(_, Message::Ecm(ecm))] = &sent(out)[..] else { panic!() };
    let octets = ecm.security.as_ref().unwrap();
    let security = EcmSecurity::decode(&mut Reader::new(octets)).unwrap();
    assert_eq!((security.key_id, security.requested_hmac), (4, HMAC.id()));
    assert_eq!(OtkWrap::of_id(security.wrapping), Some(OtkWrap::Aes128), "never bare");
    assert!(security.eids.eids().is_none());
    let otk = Otk::unwrap(&security.wrapped_otk, OtkWrap::Aes128, nonce, &secret()).unwrap();
    (nonce, otk)
}

fn proof(nonce: u64, records: Vec<EidRecord>, vouched: &str, otk: &Otk) -> (MapReply, Vec<u8>) {
    let eids = vec![Eid::Prefix { iid: IID, prefix: prefix(vouched) }];
    let signed = SignedEids { cant_sign: false, hmac_id: HMAC.id(), hmac_len: HMAC.len(), eids };
    let kdf = OtkKdf::Sha256;
    let eids = EidAuthentication::signed(kdf.id(), signed, |octets| otk.sign(HMAC, octets));
    let security = ReplySecurity { eids, hmac_id: HMAC.id(), hmac: vec![0; HMAC.len()] };
    let mut octets = Vec::new();
    security.encode(&mut octets);
    let reply = MapReply { security: Some(octets), ..reply(nonce, records) };
    let mut raw = Vec::new();
    Message::MapReply(reply).encode(&mut raw);
    otk.derive(kdf).sign(HMAC, &mut raw);
    match Message::decode(&raw).unwrap() {
        Message::MapReply(reply) => (reply, raw),
        other => panic!("{other:?}"),
    }
}

fn hear(itr: &mut Itr, (reply, raw): &(MapReply, Vec<u8>)) -> Vec<String> {
    let mut out = Vec::new();
    itr.handle_map_reply(reply, raw, at(0), &mut out);
    mappings(&out)
}

fn here(p: &str) -> EidRecord {
    record(p, &rlocs(&["192.0.2.1"]), 0, 10)
}

/// §6.9: both HMACs, or nothing.
#[test]
fn only_a_proven_reply_is_believed() {
    let mut itr = itr();
    let (nonce, otk) = read(&miss(&mut itr, "10.0.0.1", at(0)));
    let records = || vec![here("10.0.0.1/32")];
    assert!(hear(&mut itr, &(reply(nonce, records()), Vec::new())).is_empty(), "no proof");
    let other = Otk::new([7; 16]);
    assert!(hear(&mut itr, &proof(nonce, records(), "10.0.0.0/24", &other)).is_empty());
    let good = proof(nonce, records(), "10.0.0.0/24", &otk);
    let mut refused = 2;
    for bit in 0..good.1.len() * 8 {
        let mut raw = good.1.clone();
        raw[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Message::MapReply(reply)) = Message::decode(&raw)
            && reply.nonce == nonce
            && !reply.probe
        {
            refused += 1;
            assert!(hear(&mut itr, &(reply, raw)).is_empty(), "bit {bit}");
        }
    }
    assert!(refused > 500);
    assert_eq!(itr.counts().reply_not_proven, refused);
    assert_eq!(hear(&mut itr, &good), ["10.0.0.1/32 192.0.2.1"]);
    assert!(hear(&mut itr, &good).is_empty(), "the key is gone with its question");
}

/// §6.9.1: an ETR that claims more than the Map-Server vouches for.
#[test]
fn a_record_that_is_not_vouched_for_is_discarded() {
    let mut itr = itr();
    let (nonce, otk) = read(&miss(&mut itr, "10.0.0.1", at(0)));
    let wide = proof(nonce, vec![here("10.0.0.0/16")], "10.0.0.0/24", &otk);
    assert!(hear(&mut itr, &wide).is_empty());
    let both = vec![here("10.0.0.0/24"), here("10.0.1.0/24")];
    let good = proof(nonce, both, "10.0.0.0/24", &otk);
    assert_eq!(hear(&mut itr, &good), ["10.0.0.0/24 192.0.2.1"]);
    assert_eq!(itr.counts().record_outside, 1);
}

#[test]
fn each_question_has_its_own_key() {
    let mut itr = itr();
    let (nonce, _) = read(&miss(&mut itr, "10.0.0.1", at(0)));
    let (_, of_another) = read(&miss(&mut itr, "10.0.0.2", at(0)));
    let wrong = proof(nonce, vec![here("10.0.0.1/32")], "10.0.0.0/24", &of_another);
    assert!(hear(&mut itr, &wrong).is_empty());
}
