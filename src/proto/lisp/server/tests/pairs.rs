//! Source/destination keys: RFC 8060 §4.8.

use super::lab::*;
use crate::proto::lisp::server::pairs::PAIRS_MAX;
use crate::proto::lisp::server::*;
use crate::types::lisp::{MapVersion, NegativeAction};
use crate::wire::lisp::{Eid, EidRecord};

const ZERO: InstanceId = InstanceId(0);

fn pair(source: &str, destination: &str) -> Eid {
    Eid::SourceDestination { iid: ZERO, source: prefix(source), destination: prefix(destination) }
}

fn of_pair(source: &str, destination: &str, rloc: &str) -> EidRecord {
    EidRecord { eid: pair(source, destination), ..record(ZERO, "172.16.0.0/32", &[rloc]) }
}

/// What a question about a flow is told: the pair, and where to.
fn ask(lab: &mut Lab, source: &str, destination: &str) -> (String, String) {
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(pair(source, destination), false)]);
    let told = lab.reply();
    let Eid::SourceDestination { iid: ZERO, source, destination } = told.eid else {
        panic!("{told:?}")
    };
    (format!("{source} {destination}"), addrs(&told).join(","))
}

/// The longest destination decides, then the longest source; the answer leaves out what others
/// have registered inside.
#[test]
fn a_flow_is_answered_by_destination_then_source() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(
        &mut etr,
        &[
            record(ZERO, "172.16.0.0/16", &["192.0.2.1"]),
            of_pair("198.51.100.0/24", "172.16.0.0/16", "192.0.2.2"),
            of_pair("198.51.100.128/25", "172.16.0.0/16", "192.0.2.3"),
            of_pair("0.0.0.0/0", "172.16.64.0/18", "192.0.2.4"),
        ],
    );
    assert!(lab.refusals().is_empty());
    let sizes = lab.server.sizes();
    assert_eq!((sizes.eids, sizes.pairs), (1, 3));
    let one = "198.51.100.7/32";
    let told = |pair: &str, to: &str| (pair.to_owned(), to.to_owned());
    assert_eq!(
        ask(&mut lab, one, "172.16.1.1/32"),
        told("198.51.100.0/25 172.16.0.0/18", "192.0.2.2")
    );
    assert_eq!(
        ask(&mut lab, "198.51.100.200/32", "172.16.1.1/32"),
        told("198.51.100.128/25 172.16.0.0/18", "192.0.2.3")
    );
    assert_eq!(
        ask(&mut lab, one, "172.16.64.1/32"),
        told("0.0.0.0/0 172.16.64.0/18", "192.0.2.4"),
        "a longer destination is preferred to a longer source"
    );
    assert_eq!(
        ask(&mut lab, "203.0.113.1/32", "172.16.128.1/32"),
        told("200.0.0.0/5 172.16.128.0/17", "192.0.2.1"),
        "nobody has said anything about that source"
    );
    // Without a source it is as ever.
    let mut itr = Peer::itr(2);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.64.1/32"), false)]);
    assert_eq!(named(&lab.reply()), "0 172.16.0.0/16");
    // A host that is registered by itself is preferred to a pair around it.
    lab.register(&mut etr, &[record(ZERO, "172.16.64.9/32", &["192.0.2.9"])]);
    assert_eq!(ask(&mut lab, one, "172.16.64.9/32"), told("0.0.0.0/0 172.16.64.9/32", "192.0.2.9"));
    assert_eq!(ask(&mut lab, one, "172.16.64.8/32"), told("0.0.0.0/0 172.16.64.8/32", "192.0.2.4"));
    // Nothing at all.
    let mut itr = Peer::itr(3);
    lab.request(&mut itr, &[(pair(one, "172.17.1.1/32"), false)]);
    let nothing = lab.reply();
    assert_eq!(nothing.eid, pair("0.0.0.0/0", "172.17.0.0/16"));
    assert_eq!((nothing.action, nothing.ttl_min), (NegativeAction::NativelyForward, 1));
}

/// Against all entries looked through one by one: whatever flow is inside of an answer, it is the
/// answer for that flow too.
#[test]
fn an_answer_holds_for_all_that_it_covers() {
    let mut state = 7_u32;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for round in 0..30 {
        let mut lab = Lab::new();
        let mut etr = Peer::etr(A, 1);
        // Small spaces, so that much overlaps: 172.16.0.0/26 and 198.51.100.0/26.
        let net = |base: u32, random: &mut dyn FnMut(u32) -> u32| {
            Prefix::v4(base + random(64), 26 + u8::try_from(random(7)).unwrap()).unwrap()
        };
        let mut all: Vec<(Prefix, Option<Prefix>, String)> = Vec::new();
        for n in 0..random(14) {
            let to = net(0xac10_0000, &mut random);
            let from = (random(4) > 0).then(|| net(0xc633_6400, &mut random));
            if all.iter().any(|(t, f, _)| (*t, *f) == (to, from)) {
                continue;
            }
            let rloc = format!("192.0.2.{}", n + 1);
            let eid = match from {
                Some(source) => Eid::SourceDestination { iid: ZERO, source, destination: to },
                None => Eid::Prefix { iid: ZERO, prefix: to },
            };
            lab.register(&mut etr, &[EidRecord { eid, ..of_pair("::/0", "::/0", &rloc) }]);
            assert!(lab.refusals().is_empty());
            all.push((to, from, rloc));
        }
        let decide = |from: Prefix, to: Prefix| {
            let covers = |(t, f, _): &&(Prefix, Option<Prefix>, String)| {
                t.contains(to) && f.is_none_or(|f| f.contains(from))
            };
            let best = all
                .iter()
                .filter(covers)
                .max_by_key(|(t, f, _)| (t.len(), f.map_or(0, |f| u32::from(f.len()) + 1)));
            best.map(|(_, _, rloc)| rloc.clone()).unwrap_or_default()
        };
        for _ in 0..40 {
            let host = |base: u32, random: &mut dyn FnMut(u32) -> u32| {
                Prefix::v4(base + random(64), 32).unwrap()
            };
            let from = host(0xc633_6400, &mut random);
            let to = host(0xac10_0000, &mut random);
            let (told, rloc) = ask(&mut lab, &from.to_string(), &to.to_string());
            assert_eq!(rloc, decide(from, to), "round {round}: {from} {to} {all:?}");
            let (source, destination) = told.split_once(' ').unwrap();
            let (source, destination) = (prefix(source), prefix(destination));
            assert!(source.contains(from) && destination.contains(to));
            for (f, t) in (0..64_u32).flat_map(|f| (0..64_u32).map(move |t| (f, t))) {
                let f = Prefix::v4(0xc633_6400 + f, 32).unwrap();
                let t = Prefix::v4(0xac10_0000 + t, 32).unwrap();
                if source.contains(f) && destination.contains(t) {
                    assert_eq!(decide(f, t), rloc, "round {round}: {told} for {f} {t}: {all:?}");
                }
            }
        }
    }
}

/// RFC 9437: who is subscribed to the destination is told, at first and of every change, until it
/// acknowledges; the end of a registration is one.
#[test]
fn pairs_are_published_to_subscribers_of_the_destination() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut itr = Peer::itr(1);
    lab.register(&mut etr, &[of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.1")]);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.0.0/16"), true)]);
    let take = |lab: &mut Lab| {
        let told = lab.notifies(&Peer::itr(1));
        let [notify] = &told[..] else { panic!("{:?}", lab.out) };
        let notify = notify.clone();
        lab.ack(&Peer::itr(1), &notify);
        let [record] = &notify.records[..] else { panic!("{notify:?}") };
        (record.eid.clone(), addrs(record).join(","), record.ttl_min)
    };
    assert_eq!(take(&mut lab).0, eid(ZERO, "172.16.0.0/16"));
    let same = pair("198.51.100.0/24", "172.16.1.0/24");
    assert_eq!(take(&mut lab), (same.clone(), "192.0.2.1".to_owned(), 10));
    assert!(lab.notifies(&itr).is_empty());
    // A refresh is no news; other locators are.
    lab.register(&mut etr, &[of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.1")]);
    assert!(lab.notifies(&itr).is_empty());
    lab.register(&mut etr, &[of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.2")]);
    assert_eq!(take(&mut lab), (same.clone(), "192.0.2.2".to_owned(), 10));
    // One of the destination itself does not take its place while it waits.
    lab.register(&mut etr, &[of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.3")]);
    lab.register(&mut etr, &[record(ZERO, "172.16.1.0/24", &["192.0.2.9"])]);
    lab.wait(3);
    let told = lab.notifies(&itr);
    assert_eq!(told.len(), 2, "both are repeated: {told:?}");
    told.iter().for_each(|notify| lab.ack(&itr, notify));
    // By TTL 0, or by silence.
    let record = of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.3");
    lab.register(&mut etr, &[EidRecord { ttl_min: 0, ..record.clone() }]);
    assert_eq!(take(&mut lab), (same.clone(), String::new(), 0));
    lab.register(&mut etr, &[record]);
    take(&mut lab);
    lab.wait(182);
    let gone = lab.notifies(&itr);
    assert!(gone.iter().any(|n| n.records[0].eid == same && n.records[0].ttl_min == 0));
    assert_eq!(lab.server.sizes().pairs, 0);
}

#[test]
fn a_pair_is_registered_by_who_may_and_outside_of_the_mobile_pools() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let good = of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.1");
    let mobile = Eid::SourceDestination {
        iid: MOBILE,
        source: prefix("198.51.100.0/24"),
        destination: prefix("10.1.0.7/32"),
    };
    let two_families = Eid::SourceDestination {
        iid: ZERO,
        source: prefix("2001:db8::/32"),
        destination: prefix("172.16.1.0/24"),
    };
    for (eid, refusal) in [
        (pair("198.51.100.0/24", "172.17.1.0/24"), Refusal::PrefixNotAllowed),
        (mobile, Refusal::PairInPool),
        (two_families, Refusal::EidKind),
    ] {
        lab.register(&mut etr, &[EidRecord { eid, ..good.clone() }, good.clone()]);
        assert_eq!(lab.refusals(), [refusal]);
        // The Map-Notify names what was taken.
        assert_eq!(lab.notifies(&etr)[0].records.len(), 1);
    }
    let version = |version| EidRecord { version: MapVersion(version), ..good.clone() };
    lab.register(&mut etr, &[version(7)]);
    lab.register(&mut etr, &[version(6)]);
    assert_eq!(lab.refusals(), [Refusal::StaleVersion]);
    // Another one's withdrawal changes nothing.
    let mut other = Peer::etr(A, 2);
    lab.register(&mut other, &[EidRecord { ttl_min: 0, ..version(8) }]);
    assert_eq!(lab.server.sizes().pairs, 1);
    let (page, next) = lab.server.registrations(lab.now, 0, 10);
    assert_eq!((page.len(), next.is_some()), (0, true));
    let (page, next) = lab.server.registrations(lab.now, next.unwrap(), 10);
    assert_eq!(
        (page[0].source, page[0].prefix),
        (Some(prefix("198.51.100.0/24")), prefix("172.16.1.0/24"))
    );
    assert_eq!(next, None);
}

/// RFC 9301 §8.3: without P the ETR answers, and gets the question as it was.
#[test]
fn a_pair_without_proxy_reply_is_asked_of_its_etr() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let record = of_pair("198.51.100.0/24", "172.16.1.0/24", "192.0.2.1");
    let mut register = etr.register(&[record]);
    register.proxy_reply = false;
    lab.send_register(&etr, register);
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(pair("198.51.100.7/32", "172.16.1.1/32"), false)]);
    let [(to, _)] = &lab.forwarded()[..] else { panic!("{:?}", lab.out) };
    assert_eq!(to.to_string(), "192.0.2.1:4342");
    assert!(lab.replies().is_empty());
}

#[test]
fn a_full_table_refuses_one_more_pair() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut left = PAIRS_MAX + 1;
    let mut number = 0_u32;
    while left > 0 {
        let records: Vec<EidRecord> = (0..left.min(200))
            .map(|_| {
                number += 1;
                let source = Prefix::v4(0x0b00_0000 + number, 32).unwrap();
                let destination = prefix("172.16.1.0/24");
                let eid = Eid::SourceDestination { iid: ZERO, source, destination };
                EidRecord { eid, ..of_pair("::/0", "::/0", "192.0.2.1") }
            })
            .collect();
        left -= records.len();
        assert!(lab.refusals().is_empty());
        lab.register(&mut etr, &records);
    }
    assert_eq!(lab.refusals(), [Refusal::EidLimit]);
    assert_eq!(lab.server.sizes().pairs, PAIRS_MAX);
}
