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
    assert_eq!(addrs(&bound.record), ["192.0.2.2"]);
    let (page, _) = lab.server.registrations(lab.now, 0, 1);
    let first = &page[0];
    assert_eq!(
        (first.site, first.remaining),
        (Some("site 0.0.0.1"), Some(Duration::from_secs(180)))
    );
    assert_eq!((first.rlocs.len(), first.ttl_min, first.proxy), (1, 10, true));
}

/// What an engineer is told is what a Map-Request is told, and whose word it is.
#[test]
fn a_lookup_tells_the_answer_and_where_it_is_from() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(MOBILE, "10.1.0.0/16", &["192.0.2.1"])]);
    lab.publish("10.1.0.7/32", Some(at(B, 2)));
    let look = |lab: &Lab, text: &str| {
        let found = lab.server.lookup(MOBILE, prefix(text), &lab.bound);
        let registered = found.registered.map(|p| p.to_string()).unwrap_or_default();
        let site = found.site.unwrap_or_default().to_owned();
        (named(&found.record), addrs(&found.record).join(","), registered, site, found.is_mobile)
    };
    let of = |told: &str, to: &str, whole: &str, site: &str, mobile| {
        let [told, to, whole, site] = [told, to, whole, site].map(str::to_owned);
        (told, to, whole, site, mobile)
    };
    assert_eq!(
        look(&lab, "10.1.0.7/32"),
        of("7 10.1.0.7/32", "192.0.2.2", "10.1.0.7/32", "site 0.0.0.2", true)
    );
    assert_eq!(
        look(&lab, "10.1.0.6/32"),
        of("7 10.1.0.6/32", "192.0.2.1", "10.1.0.0/16", "site 0.0.0.1", false)
    );
    assert_eq!(look(&lab, "10.2.0.1/32"), of("7 10.2.0.0/15", "", "", "", false));
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.0/16"), true)]);
    let waits = |lab: &Lab| lab.server.subscriptions(lab.now, 0, 9).0[0].outstanding;
    assert_eq!(waits(&lab), 1, "the answer to the subscription");
    let [notify] = &lab.notifies(&itr)[..] else { panic!("{:?}", lab.out) };
    let notify = notify.clone();
    lab.ack(&itr, &notify);
    assert_eq!(waits(&lab), 1, "what is inside the aggregate");
    let [notify] = &lab.notifies(&itr)[..] else { panic!("{:?}", lab.out) };
    let notify = notify.clone();
    lab.ack(&itr, &notify);
    assert_eq!(waits(&lab), 0);
    let found = lab.server.lookup(MOBILE, prefix("10.1.0.7/32"), &lab.bound);
    assert_eq!(found.subscribers, 1);
}
