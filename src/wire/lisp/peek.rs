//! A look into a message before it is decoded.

use super::lcaf;
use super::{Eid, Type};
use crate::wire::Reader;

const IPV4_HEADER_LEN_MIN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const UDP_HEADER_LEN: usize = 8;
/// S of an Encapsulated Control Message: more comes before the inner headers.
const FLAG_SECURITY: u8 = 0x08;

/// The first EID that a Map-Request, also an encapsulated one, or a Map-Register names, without an
/// allocation. `None` where it is not easily found; that says nothing about the message.
pub fn first_eid(octets: &[u8]) -> Option<Eid> {
    match octets.first()? >> 4 {
        kind if kind == Type::MapRequest as u8 => of_request(octets),
        kind if kind == Type::MapRegister as u8 => of_register(octets),
        kind if kind == Type::Ecm as u8 && octets[0] & FLAG_SECURITY == 0 => {
            let inner = octets.get(4..)?;
            let header_len = match inner.first()? >> 4 {
                4 => (usize::from(inner[0] & 0xf) * 4).max(IPV4_HEADER_LEN_MIN),
                6 => IPV6_HEADER_LEN,
                _ => return None,
            };
            let message = inner.get(header_len + UDP_HEADER_LEN..)?;
            let is_request = message.first()? >> 4 == Type::MapRequest as u8;
            if is_request { of_request(message) } else { None }
        }
        _ => None,
    }
}

fn of_request(octets: &[u8]) -> Option<Eid> {
    let mut input = Reader::new(octets);
    let [_, _, more, count] = input.array().ok()?;
    input.u64().ok()?;
    // The source EID, and one ITR-RLOC more than is counted.
    for _ in 0..2 + (more & 0x1f) {
        lcaf::take_address(&mut input).ok()?;
    }
    if count == 0 {
        return None;
    }
    let [_, mask_len] = input.array().ok()?;
    Eid::decode(Some(mask_len), &mut input).ok()
}

fn of_register(octets: &[u8]) -> Option<Eid> {
    let mut input = Reader::new(octets);
    let [_, _, _, count] = input.array().ok()?;
    input.u64().ok()?;
    input.u16().ok()?;
    let digest_len = input.u16().ok()?;
    input.bytes(usize::from(digest_len)).ok()?;
    if count == 0 {
        return None;
    }
    input.u32().ok()?;
    let [_, mask_len, _, _] = input.array().ok()?;
    input.u16().ok()?;
    Eid::decode(Some(mask_len), &mut input).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::lisp::{MapVersion, NegativeAction};
    use crate::wire::lisp::{
        Authentication, EidRecord, MapRegister, MapRequest, Message, RequestRecord, RlocAddress,
    };

    fn eid(text: &str) -> Eid {
        Eid::Prefix { iid: crate::types::lisp::InstanceId(7), prefix: text.parse().unwrap() }
    }

    fn request() -> MapRequest {
        MapRequest {
            authoritative: false,
            probe: false,
            smr: false,
            pitr: false,
            smr_invoked: false,
            local_xtr: false,
            dont_reply: false,
            nonce: 9,
            source_eid: eid("10.9.9.9/32"),
            itr_rlocs: vec![
                RlocAddress::Ip([192, 0, 2, 1].into()),
                RlocAddress::Ip([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()),
            ],
            records: ["2001:db8::/48", "10.1.2.3/32"]
                .map(|text| RequestRecord { notify: true, eid: eid(text) })
                .into(),
            map_reply: None,
            id: None,
        }
    }

    fn all() -> Vec<(Vec<u8>, Eid)> {
        let record = |text| EidRecord {
            ttl_min: 1,
            action: NegativeAction::NoAction,
            authoritative: true,
            version: MapVersion(3),
            eid: eid(text),
            rlocs: Vec::new(),
        };
        let register = MapRegister {
            proxy_reply: true,
            security_capable: false,
            eid_notify: false,
            use_ttl: false,
            merge: false,
            want_notify: true,
            nonce: 9,
            authentication: Authentication { key_id: 1, algorithm: 2, digest: vec![1; 16] },
            records: vec![record("10.1.0.0/16"), record("::/0")],
            id: None,
        };
        let encoded = |message: Message| {
            let mut octets = Vec::new();
            message.encode(&mut octets);
            octets
        };
        let direct = encoded(Message::MapRequest(request()));
        let ecm = |source: &str, destination: &str| {
            encoded(Message::Ecm(crate::wire::lisp::Ecm {
                ddt: false,
                security: None,
                source: (source.parse().unwrap(), 4342),
                destination: (destination.parse().unwrap(), 4342),
                message: direct.clone(),
            }))
        };
        vec![
            (ecm("192.0.2.1", "10.1.2.3"), eid("2001:db8::/48")),
            (ecm("2001:db8::1", "2001:db8::2"), eid("2001:db8::/48")),
            (direct, eid("2001:db8::/48")),
            (encoded(Message::MapRegister(register)), eid("10.1.0.0/16")),
        ]
    }

    #[test]
    fn it_is_the_one_that_decoding_finds_first() {
        for (octets, first) in all() {
            assert_eq!(first_eid(&octets), Some(first));
        }
    }

    #[test]
    fn no_part_of_a_message_and_no_changed_octet_of_it_does_harm() {
        for (octets, first) in all() {
            for len in 0..octets.len() {
                let found = first_eid(&octets[..len]);
                assert!(found.is_none_or(|found| found == first), "{len} octets");
            }
            for at in 0..octets.len() {
                for value in [0, 1, 0x0f, 0x40, 0x7f, 0x80, 0xff] {
                    let mut changed = octets.clone();
                    changed[at] = value;
                    first_eid(&changed);
                }
            }
        }
    }
}
