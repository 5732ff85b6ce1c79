use std::collections::BTreeMap;
use std::net::IpAddr;

use super::lab::*;
use crate::proto::lisp::xtr::{Itr, ItrConfig, ItrCounts, MobilePrefix, Output, Policy};
use crate::types::Instant;
use crate::types::lisp::{InstanceId, NegativeAction};
use crate::wire::lisp::{Eid, EidRecord, MapRequest, RlocAddress};

pub const MR: &str = "192.0.2.101";
const MR2: &str = "192.0.2.102";

pub fn config(policy: Policy) -> ItrConfig {
    ItrConfig {
        prefixes: vec![MobilePrefix { iid: IID, prefix: prefix("10.0.0.0/8"), policy }],
        resolvers: vec![addr(MR)],
        rlocs: vec![addr("198.51.100.1"), addr("2001:db8:1::1")],
        pitr: true,
        id: None,
        renew_every: 60 * SECOND,
        probe: None,
        cache_max: 1000,
        subscription_below: BTreeMap::new(),
    }
}

fn itr() -> Itr {
    Itr::new(config(Policy::Query), [9; 32], at(0))
}

pub fn miss(itr: &mut Itr, destination: &str, now: Instant) -> Vec<Output> {
    let mut out = Vec::new();
    itr.handle_miss(addr("203.0.113.7"), addr(destination), now, &mut out);
    out
}

pub fn run(itr: &mut Itr, now: Instant) -> Vec<Output> {
    let mut out = Vec::new();
    if itr.poll_timeout() <= now {
        itr.handle_timeout(now, &mut out);
    }
    out
}

/// Runs up to `until`, and says when Map-Requests went to whom.
fn requests_until(itr: &mut Itr, until: Instant) -> Vec<(u64, IpAddr, MapRequest)> {
    let mut all = Vec::new();
    while itr.poll_timeout() <= until {
        let now = itr.poll_timeout();
        let sent = requests(&run(itr, now));
        all.extend(sent.into_iter().map(|(to, _, r)| (now.as_micros() / 1_000_000, to, r)));
    }
    all
}

pub fn answer(itr: &mut Itr, nonce: u64, records: Vec<EidRecord>, now: Instant) -> Vec<Output> {
    let mut out = Vec::new();
    itr.handle_map_reply(&reply(nonce, records), &[], now, &mut out);
    out
}

/// Asks for the host and has it answered.
fn learn(itr: &mut Itr, destination: &str, record: EidRecord, now: Instant) -> Vec<Output> {
    let out = miss(itr, destination, now);
    let nonce = requests(&out)[0].2.nonce;
    answer(itr, nonce, vec![record], now)
}

fn here(p: &str) -> EidRecord {
    record(p, &rlocs(&["192.0.2.1"]), 5, 10)
}

#[test]
fn a_miss_is_asked_of_the_resolver_and_the_answer_becomes_a_mapping() {
    let mut itr = itr();
    let out = miss(&mut itr, "10.0.0.1", at(1));
    let [(to, in_ecm, request)] = &requests(&out)[..] else { panic!() };
    assert_eq!((*to, *in_ecm), (addr(MR), true));
    assert!(request.pitr && !request.smr && !request.probe && !request.smr_invoked);
    let eid = |p: &str| Eid::Prefix { iid: IID, prefix: prefix(p) };
    assert_eq!(request.records[0].eid, eid("10.0.0.1/32"));
    assert!(!request.records[0].notify);
    assert_eq!(request.source_eid, eid("203.0.113.7/32"));
    let both = ["198.51.100.1", "2001:db8:1::1"].map(|a| RlocAddress::Ip(addr(a)));
    assert_eq!(request.itr_rlocs, both);
    let out = answer(&mut itr, request.nonce, vec![here("10.0.0.0/24")], ms(1010));
    assert_eq!(mappings(&out), ["10.0.0.0/24 192.0.2.1"]);
    assert_eq!(itr.lookup(prefix("10.0.0.99/32")).unwrap().0, prefix("10.0.0.0/24"));
    assert!(miss(&mut itr, "10.0.0.2", at(2)).is_empty(), "known");
    assert_eq!(itr.counts().miss_known, 1);
}

/// RFC 9301 §5.3: 1/s per EID-prefix; after ten retransmissions, 30 seconds.
#[test]
fn an_unanswered_question_is_repeated_each_second_and_then_held() {
    let mut itr = itr();
    let nonce = requests(&miss(&mut itr, "10.0.0.1", at(0)))[0].2.nonce;
    for s in 0..40 {
        miss(&mut itr, "10.0.0.1", ms(s * 1000 + 500));
        if s == 0 {
            assert_eq!(itr.counts().miss_asked_already, 1);
        }
        let sent = requests_until(&mut itr, at(s + 1));
        let expected = usize::from(s < 10);
        assert_eq!(sent.len(), expected, "second {s}");
        assert!(sent.iter().all(|(_, _, r)| r.nonce == nonce), "the same question");
    }
    assert_eq!(itr.counts().miss_held, 29);
    assert!(answer(&mut itr, nonce, vec![here("10.0.0.1/32")], at(40)).is_empty(), "too late");
    requests_until(&mut itr, at(41));
    assert_eq!(requests(&miss(&mut itr, "10.0.0.1", at(42))).len(), 1, "asked anew");
}

#[test]
fn the_same_prefix_is_asked_for_once_a_second_also_when_it_is_answered() {
    let mut itr = itr();
    let gone = record("10.0.0.1/32", &rlocs(&[]), 0, 0);
    let mut asked = 0;
    for tenth in 0..50 {
        run(&mut itr, ms(tenth * 100));
        for (_, _, request) in requests(&miss(&mut itr, "10.0.0.1", ms(tenth * 100))) {
            asked += 1;
            answer(&mut itr, request.nonce, vec![gone.clone()], ms(tenth * 100 + 1));
        }
    }
    assert_eq!(asked, 5);
}

#[test]
fn another_resolver_takes_over() {
    let mut itr = Itr::new(
        ItrConfig { resolvers: vec![addr(MR), addr(MR2)], ..config(Policy::Query) },
        [9; 32],
        at(0),
    );
    assert_eq!(requests(&miss(&mut itr, "10.0.0.1", at(0)))[0].0, addr(MR));
    let sent = requests_until(&mut itr, at(1));
    assert_eq!(sent[0].1, addr(MR2), "a repetition goes to the next one");
    answer(&mut itr, sent[0].2.nonce, vec![here("10.0.0.1/32")], at(1));
    // The first one stays silent; soon it is no longer asked first.
    for n in 2..5u64 {
        let now = at(n * 10);
        let destination = format!("10.0.0.{n}");
        let first = requests(&miss(&mut itr, &destination, now))[0].0;
        if n == 4 {
            assert_eq!(first, addr(MR2));
            return;
        }
        let sent = requests_until(&mut itr, now + SECOND);
        answer(&mut itr, sent[0].2.nonce, vec![here(&format!("{destination}/32"))], now);
    }
}

#[test]
fn a_reply_counts_only_for_its_question() {
    let mut itr = itr();
    let nonce = requests(&miss(&mut itr, "10.0.0.1", at(0)))[0].2.nonce;
    assert!(answer(&mut itr, nonce ^ 1, vec![here("10.0.0.1/32")], at(0)).is_empty());
    assert!(answer(&mut itr, nonce, vec![here("10.0.0.2/32")], at(0)).is_empty());
    assert!(answer(&mut itr, nonce, vec![here("0.0.0.0/0")], at(0)).is_empty());
    let mut elsewhere = here("10.0.0.1/32");
    elsewhere.eid = Eid::Prefix { iid: InstanceId(8), prefix: prefix("10.0.0.1/32") };
    assert!(answer(&mut itr, nonce, vec![elsewhere], at(0)).is_empty());
    assert!(answer(&mut itr, nonce, vec![], at(0)).is_empty());
    let more = vec![here("10.0.0.1/32"), here("10.0.0.2/32")];
    assert_eq!(mappings(&answer(&mut itr, nonce, more, at(0))), ["10.0.0.1/32 192.0.2.1"]);
    assert!(answer(&mut itr, nonce, vec![here("10.0.0.1/32")], at(0)).is_empty(), "once");
    let counts = itr.counts();
    assert_eq!(
        (counts.reply_unknown_nonce, counts.reply_not_covering, counts.reply_outside),
        (2, 3, 1)
    );
    assert_eq!(counts.record_outside, 1);
}

/// RFC 9301 §5.4: TTL, and removal at its end; 0 at once.
#[test]
fn a_mapping_ages_and_ends() {
    let mut itr = itr();
    learn(&mut itr, "10.0.0.1", here("10.0.0.1/32"), at(0));
    let (mut out, mut now) = (Vec::new(), at(0));
    while itr.poll_timeout() <= at(700) {
        now = itr.poll_timeout();
        out = run(&mut itr, now);
    }
    assert_eq!((mappings(&out), now), (vec!["10.0.0.1/32 -".to_owned()], at(600)));
    assert_eq!(itr.counts().requests_sent, 1, "not used: not asked for again");
    learn(&mut itr, "10.0.0.1", here("10.0.0.0/24"), at(800));
    let nonce = requests(&{
        let mut out = Vec::new();
        itr.handle_used(&[prefix("10.0.0.0/24")], at(1300), &mut out);
        out
    })[0]
        .2
        .nonce;
    let end = record("10.0.0.0/24", &rlocs(&[]), 0, 0);
    let out = answer(&mut itr, nonce, vec![end], at(1300));
    assert_eq!(mappings(&out), ["10.0.0.0/24 -"]);
}

#[test]
fn a_mapping_in_use_is_asked_for_before_it_ends() {
    let mut itr = itr();
    learn(&mut itr, "10.0.0.1", here("10.0.0.1/32"), at(0));
    itr.handle_used(&[prefix("10.0.0.1/32")], at(100), &mut Vec::new());
    let sent = requests_until(&mut itr, at(480));
    let [(480, _, request)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(request.source_eid, Eid::None, "§5.2: AFI 0 when it is to refresh");
    let out = answer(&mut itr, request.nonce, vec![here("10.0.0.1/32")], at(480));
    assert!(mappings(&out).is_empty(), "nothing has changed for the gateway");
    assert!(requests_until(&mut itr, at(900)).is_empty());
    assert!(itr.lookup(prefix("10.0.0.1/32")).is_some(), "it lives on");
    assert_eq!(itr.map_cache_len(), 1);
}

/// RFC 9301 §5.4, ACT: negative mappings are mappings, with their own TTL.
#[test]
fn a_negative_reply_is_kept_for_its_ttl() {
    let mut itr = itr();
    let hole = negative("10.128.0.0/9", NegativeAction::NativelyForward, 1);
    let out = learn(&mut itr, "10.200.0.1", hole, at(0));
    assert_eq!(mappings(&out), ["10.128.0.0/9 NativelyForward"]);
    assert!(miss(&mut itr, "10.201.0.1", at(30)).is_empty());
    requests_until(&mut itr, at(60));
    assert_eq!(itr.map_cache_len(), 0);
    assert_eq!(requests(&miss(&mut itr, "10.201.0.1", at(61))).len(), 1);
    let ask = negative("10.64.0.0/16", NegativeAction::SendMapRequest, 1);
    learn(&mut itr, "10.64.0.1", ask, at(62));
    assert_eq!(requests(&miss(&mut itr, "10.64.0.2", at(62))).len(), 1, "each one is asked");
}

#[test]
fn an_older_version_never_replaces_a_newer_one() {
    let mut itr = itr();
    learn(&mut itr, "10.0.0.1", record("10.0.0.1/32", &rlocs(&["192.0.2.2"]), 7, 10), at(0));
    itr.handle_used(&[prefix("10.0.0.1/32")], at(1), &mut Vec::new());
    let nonce = requests_until(&mut itr, at(480))[0].2.nonce;
    let old = record("10.0.0.1/32", &rlocs(&["192.0.2.1"]), 6, 10);
    assert!(mappings(&answer(&mut itr, nonce, vec![old], at(480))).is_empty());
    assert_eq!(itr.counts().record_older, 1);
    // Nor is its time renewed by that.
    requests_until(&mut itr, at(600));
    assert_eq!(itr.map_cache_len(), 0);
}

/// RFC 9301 §5.5: "replaces the entry with the less-specific EID-Prefix": the node is back home.
#[test]
fn an_answer_replaces_what_was_cached_within_it() {
    let mut itr = itr();
    learn(&mut itr, "10.0.0.1", record("10.0.0.1/32", &rlocs(&["192.0.2.2"]), 7, 10), at(0));
    learn(&mut itr, "10.0.9.1", record("10.0.9.1/32", &rlocs(&["192.0.2.3"]), 7, 10), at(0));
    let mut out = Vec::new();
    let smr = smr("10.0.0.1/32");
    itr.handle_map_request(&smr, at(10), &mut out);
    let nonce = requests(&out)[0].2.nonce;
    let out = answer(&mut itr, nonce, vec![here("10.0.0.0/21")], at(10));
    assert_eq!(mappings(&out), ["10.0.0.1/32 -", "10.0.0.0/21 192.0.2.1"]);
    assert!(itr.lookup(prefix("10.0.9.1/32")).is_some(), "outside of it");
}

#[test]
fn the_least_recently_used_makes_room() {
    let small = ItrConfig { cache_max: 2, ..config(Policy::Query) };
    let mut itr = Itr::new(small, [9; 32], at(0));
    learn(&mut itr, "10.0.0.1", here("10.0.0.1/32"), at(0));
    learn(&mut itr, "10.0.0.2", here("10.0.0.2/32"), at(1));
    itr.handle_used(&[prefix("10.0.0.1/32")], at(2), &mut Vec::new());
    let out = learn(&mut itr, "10.0.0.3", here("10.0.0.3/32"), at(3));
    assert_eq!(mappings(&out), ["10.0.0.2/32 -", "10.0.0.3/32 192.0.2.1"]);
    assert_eq!(itr.counts().evicted, 1);
}

fn smr(moved: &str) -> MapRequest {
    let mut etr = super::etr::etr();
    let mut out = Vec::new();
    let moved = prefix(moved).addr();
    etr.solicit(addr("198.51.100.1"), IID, addr("203.0.113.7"), moved, at(0), &mut out);
    requests(&out)[0].2.clone()
}

/// RFC 9301 §6.1: asked through the mapping system, only if cached, once in three seconds.
#[test]
fn an_smr_makes_us_ask_the_mapping_system() {
    let mut itr = itr();
    learn(&mut itr, "10.0.0.1", here("10.0.0.0/24"), at(0));
    let mut hear = |now: Instant, moved: &str| {
        let mut out = run(&mut itr, now);
        itr.handle_map_request(&smr(moved), now, &mut out);
        requests(&out)
    };
    let sent = hear(at(10), "10.0.0.9/32");
    let [(to, true, request)] = &sent[..] else { panic!("{sent:?}") };
    assert!(request.smr_invoked && !request.smr);
    assert_eq!(*to, addr(MR));
    assert_eq!(request.records[0].eid, Eid::Prefix { iid: IID, prefix: prefix("10.0.0.9/32") });
    assert!(hear(at(10), "10.77.0.9/32").is_empty(), "not cached");
    let nonce = request.nonce;
    let moved = record("10.0.0.9/32", &rlocs(&["192.0.2.2"]), 6, 10);
    let out = answer(&mut itr, nonce, vec![moved], ms(10_010));
    assert_eq!(mappings(&out), ["10.0.0.9/32 192.0.2.2"]);
    // Moved once more: asked as soon as three seconds are over, without another SMR.
    let mut out = Vec::new();
    itr.handle_map_request(&smr("10.0.0.9/32"), at(11), &mut out);
    assert!(requests(&out).is_empty());
    let sent = requests_until(&mut itr, at(20));
    assert_eq!(sent[0].0, 13);
    assert!(sent[0].2.smr_invoked);
    let ItrCounts { smr, smr_not_cached, smr_limited, .. } = itr.counts();
    assert_eq!((smr, smr_not_cached, smr_limited), (3, 1, 1));
}

#[test]
fn only_mobile_prefixes_with_a_query_are_asked_for() {
    let mut itr = Itr::new(config(Policy::Default), [9; 32], at(0));
    assert!(miss(&mut itr, "10.0.0.1", at(0)).is_empty());
    assert!(miss(&mut itr, "11.0.0.1", at(0)).is_empty());
    assert_eq!((itr.counts().miss_default, itr.counts().miss_not_mobile), (1, 1));
}
