//! What an EID costs, and that listings are whole.

use super::lab::*;
use crate::proto::lisp::server::key::EidKey;
use crate::proto::lisp::server::registrations::{Flags, Registrations};
use crate::proto::lisp::server::*;

/// At the least favourable fill of the index: just after it has doubled.
#[test]
fn an_eid_costs_less_than_a_hundred_octets() {
    let mut table = Registrations::new(1);
    let rlocs = [rloc("192.0.2.1"), rloc("2001:db8::1")];
    // 7/8 of 2^17, and one more.
    let count = 114_689_u32;
    for i in 0..count {
        // In no order.
        let host = Prefix::v4(i.wrapping_mul(0x9e37_79b1), 32).unwrap();
        let slot = table.insert(EidKey::new(InstanceId(0), host), Flags::default());
        table.set_content(slot, 10, &rlocs);
    }
    let each = table.heap_bytes() as f64 / f64::from(count);
    assert!(each < 70.0, "{each} octets");
    assert_eq!(table.contents_len(), 1);
}

#[test]
fn pages_show_everything_once() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    for i in 0..50 {
        lab.register(
            &mut etr,
            &[record(InstanceId(0), &format!("172.16.1.{i}/32"), &["192.0.2.1"])],
        );
    }
    lab.publish("10.1.0.7/32", Some(at(B, 2)));
    let (mut seen, mut cursor) = (Vec::new(), Some(0));
    while let Some(from) = cursor {
        let (page, next) = lab.server.registrations(lab.now, from, 7);
        seen.extend(page.iter().map(|r| r.prefix));
        cursor = next;
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 51);
    let bound = lab.server.lookup(MOBILE, prefix("10.1.0.7/32"), &lab.bound);
    assert_eq!(addrs(&bound), ["192.0.2.2"]);
    let (page, _) = lab.server.registrations(lab.now, 0, 1);
    let first = &page[0];
    assert_eq!(
        (first.site, first.remaining),
        (Some("site 0.0.0.1"), Some(Duration::from_secs(180)))
    );
    assert_eq!((first.rlocs.len(), first.ttl_min, first.proxy), (1, 10, true));
}
