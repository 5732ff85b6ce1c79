use std::net::SocketAddr;
use std::sync::Arc;

use super::lab::*;
use super::query::{answer, config, miss, run};
use crate::auth::KeyChain;
use crate::proto::lisp::xtr::{Itr, ItrConfig, Output, Persist, Policy, SubscriptionState};
use crate::types::Instant;
use crate::types::lisp::NegativeAction;
use crate::wire::lisp::{Eid, EidRecord, MapRequest, RlocAddress};

const SERVER: &str = "192.0.2.100";
const POOL: &str = "10.0.0.0/8";

pub fn push_config(keys: &Arc<KeyChain>) -> ItrConfig {
    ItrConfig { id: Some(ID), ..config(Policy::Push(Arc::clone(keys))) }
}

pub fn hear(
    itr: &mut Itr,
    nonce: u64,
    records: Vec<EidRecord>,
    keys: &KeyChain,
    now: Instant,
) -> Vec<Output> {
    let (message, raw) = notify(nonce, records, keys);
    let mut out = Vec::new();
    itr.handle_notify(SocketAddr::new(addr(SERVER), 4342), &message, &raw, now, &mut out);
    out
}

pub fn home() -> EidRecord {
    record(POOL, &rlocs(&["192.0.2.1"]), 0, 15)
}

fn away(n: u32, anchor: &str, version: u16) -> EidRecord {
    record(&host(n).to_string(), &rlocs(&[anchor]), version, 15)
}

fn request_of(out: &[Output]) -> MapRequest {
    match &requests(out)[..] {
        [(_, true, request)] => request.clone(),
        other => panic!("{other:?}"),
    }
}

/// An ITR that is subscribed, and the nonce of its request.
pub fn subscribed(keys: &Arc<KeyChain>) -> (Itr, u64) {
    let mut itr = Itr::new(push_config(keys), [3; 32], at(0));
    let request = request_of(&run(&mut itr, at(0)));
    hear(&mut itr, request.nonce, vec![home()], keys, ms(10));
    assert_eq!(state(&itr), SubscriptionState::Subscribed);
    (itr, request.nonce)
}

fn state(itr: &Itr) -> SubscriptionState {
    itr.subscriptions(None).next().unwrap().state
}

/// RFC 9437 §5: N, I, the ids; confirmed by a Map-Notify with the nonce of the request.
#[test]
fn a_subscription_is_asked_for_and_confirmed() {
    let keys = keys("of publications");
    let mut itr = Itr::new(push_config(&keys), [3; 32], at(0));
    let out = run(&mut itr, at(0));
    let request = request_of(&out);
    assert_eq!(request.id, Some(ID));
    assert!(request.records[0].notify);
    assert_eq!(request.records[0].eid, Eid::Prefix { iid: IID, prefix: prefix(POOL) });
    assert_eq!(request.itr_rlocs.len(), 2);
    let [Persist::SubscriptionNonce { below, .. }] = persisted(&out)[..] else { panic!() };
    assert!(below > request.nonce);
    let out = hear(&mut itr, request.nonce, vec![home()], &keys, ms(10));
    assert_eq!(acks(&out), [request.nonce]);
    assert_eq!(mappings(&out), ["10.0.0.0/8 192.0.2.1"]);
    assert!(out.iter().any(|o| matches!(o, Output::Subscribed { .. })));
    assert!(miss(&mut itr, "10.0.0.1", at(1)).is_empty(), "nothing is left to ask");
}

/// RFC 9437 §6: every move arrives, and its end.
#[test]
fn publications_become_mappings_at_once() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    let out = hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 5)], &keys, at(1));
    assert_eq!(mappings(&out), ["10.0.0.1/32 192.0.2.2"]);
    assert_eq!(acks(&out), [nonce + 1]);
    let out = hear(&mut itr, nonce + 2, vec![away(1, "192.0.2.3", 6)], &keys, at(2));
    assert_eq!(mappings(&out), ["10.0.0.1/32 192.0.2.3"]);
    let gone = record("10.0.0.1/32", &rlocs(&[]), 7, 0);
    let out = hear(&mut itr, nonce + 3, vec![gone], &keys, at(3));
    assert_eq!(mappings(&out), ["10.0.0.1/32 -"]);
    assert_eq!(itr.counts().subscriptions.publications, 3);
}

#[test]
fn a_publication_that_is_repeated_is_acknowledged_and_changes_nothing() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 0)], &keys, at(1));
    hear(&mut itr, nonce + 2, vec![away(1, "192.0.2.3", 0)], &keys, at(1));
    let out = hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 0)], &keys, at(2));
    assert_eq!((acks(&out), mappings(&out).len()), (vec![nonce + 1], 0));
    assert_eq!(itr.counts().subscriptions.repeated, 1);
}

/// Two publications overtake each other: both count, each for its own prefix.
#[test]
fn publications_that_overtake_each_other_are_both_taken() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    hear(&mut itr, nonce + 2, vec![away(2, "192.0.2.2", 0)], &keys, at(1));
    let out = hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 0)], &keys, at(1));
    assert_eq!(mappings(&out), ["10.0.0.1/32 192.0.2.2"]);
    // Of one prefix the later one counts, though it came first; so with its end.
    hear(&mut itr, nonce + 4, vec![away(2, "192.0.2.4", 0)], &keys, at(2));
    let out = hear(&mut itr, nonce + 3, vec![away(2, "192.0.2.3", 0)], &keys, at(2));
    assert!(mappings(&out).is_empty());
    let gone = record("10.0.0.2/32", &rlocs(&[]), 0, 0);
    hear(&mut itr, nonce + 6, vec![gone], &keys, at(3));
    let out = hear(&mut itr, nonce + 5, vec![away(2, "192.0.2.5", 0)], &keys, at(3));
    assert!(mappings(&out).is_empty());
    assert_eq!(itr.counts().record_overtaken, 2);
}

#[test]
fn an_older_version_is_not_published_over_a_newer_one() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 9)], &keys, at(1));
    let out = hear(&mut itr, nonce + 2, vec![away(1, "192.0.2.3", 8)], &keys, at(1));
    assert!(mappings(&out).is_empty());
    let old_end = record("10.0.0.1/32", &rlocs(&[]), 8, 0);
    assert!(mappings(&hear(&mut itr, nonce + 3, vec![old_end], &keys, at(1))).is_empty());
    assert_eq!(itr.counts().record_older, 2);
}

/// RFC 9301 §5.3 for the retries; each with a greater nonce, since the server drops others.
#[test]
fn a_silent_server_is_asked_again_and_then_after_a_pause() {
    let keys = keys("of publications");
    let mut itr = Itr::new(push_config(&keys), [3; 32], at(0));
    let (mut times, mut nonces) = (Vec::new(), Vec::new());
    while itr.poll_timeout() <= at(45) {
        let now = itr.poll_timeout();
        for (_, _, request) in requests(&run(&mut itr, now)) {
            times.push(now.as_micros() / 1_000_000);
            nonces.push(request.nonce);
        }
    }
    assert_eq!(times, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 41, 42, 43, 44, 45]);
    assert!(nonces.is_sorted() && nonces.windows(2).all(|n| n[0] != n[1]));
    assert!(nonces[5] - nonces[0] > 4096, "it catches up with a server far ahead");
    // Meanwhile misses are asked for one by one.
    assert_eq!(requests(&miss(&mut itr, "10.0.0.1", at(45))).len(), 1);
}

/// The server restarts: the renewal brings the subscription back, and what may have been missed is
/// asked for.
#[test]
fn a_renewal_that_had_to_be_repeated_asks_for_what_may_be_stale() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    for n in 1..=25 {
        let pushed = vec![away(n, "192.0.2.2", 5)];
        hear(&mut itr, nonce + u64::from(n), pushed, &keys, at(1));
    }
    let first = request_of(&run(&mut itr, ms(60_010)));
    assert_eq!(first.nonce, nonce + 26, "the stored nonce increased by one");
    let second = request_of(&run(&mut itr, ms(61_010)));
    // Still in use while it is renewed.
    let out = hear(&mut itr, second.nonce, vec![home()], &keys, ms(61_020));
    assert!(mappings(&out).is_empty());
    let mut asked = Vec::new();
    let mut now = ms(61_020);
    while now < at(64) {
        let sent = requests(&run(&mut itr, now));
        assert!(sent.len() <= 10, "at a pace");
        asked.extend(sent.iter().map(|(_, _, request)| request.nonce));
        now += SECOND / 10;
        if asked.len() >= 25 {
            break;
        }
    }
    assert_eq!(asked.len(), 25);
    // One of them is back home.
    let home = record("10.0.0.0/27", &rlocs(&["192.0.2.1"]), 0, 15);
    let out = answer(&mut itr, asked[0], vec![home], now);
    let told = mappings(&out);
    assert_eq!(told, ["10.0.0.1/32 -", "10.0.0.0/27 192.0.2.1"]);
}

#[test]
fn a_renewal_that_passes_at_once_asks_for_nothing() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    hear(&mut itr, nonce + 1, vec![away(1, "192.0.2.2", 5)], &keys, at(1));
    for minute in 1..100 {
        let now = ms(minute * 60_010);
        let renewal = request_of(&run(&mut itr, now));
        hear(&mut itr, renewal.nonce, vec![home()], &keys, now);
    }
    // Far past its TTL of 15 minutes: a server that keeps us up to date would have told.
    assert!(itr.lookup(host(1)).is_some_and(|(p, _)| p == host(1)));
    assert_eq!(state(&itr), SubscriptionState::Subscribed);
}

/// RFC 9437 §5: a Map-Reply is a refusal; ACT 4 and 5 say nothing about the mapping.
#[test]
fn a_refused_subscription_leaves_the_policy_to_ask() {
    let keys = keys("of publications");
    let mut itr = Itr::new(push_config(&keys), [3; 32], at(0));
    let request = request_of(&run(&mut itr, at(0)));
    let denied = negative(POOL, NegativeAction::DropPolicyDenied, 1);
    let out = answer(&mut itr, request.nonce, vec![denied], at(0));
    assert!(mappings(&out).is_empty());
    assert_eq!(state(&itr), SubscriptionState::Refused(NegativeAction::DropPolicyDenied));
    assert_eq!(requests(&miss(&mut itr, "10.0.0.1", at(1))).len(), 1);
    let mut now = at(1);
    while state(&itr) != SubscriptionState::Asking {
        now = itr.poll_timeout();
        run(&mut itr, now);
    }
    assert_eq!(now, at(60), "tried again");
    // A server that knows no subscriptions just answers.
    let nonce = itr.subscriptions(None).next().unwrap().nonce;
    assert_eq!(mappings(&answer(&mut itr, nonce, vec![home()], now)), ["10.0.0.0/8 192.0.2.1"]);
}

/// RFC 9437 §5: no locators and ACT 5: the server has given up on our acknowledgements.
#[test]
fn a_dropped_subscription_is_asked_for_again() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    let dropped = || vec![negative(POOL, NegativeAction::DropAuthFailure, 1)];
    let out = hear(&mut itr, nonce, dropped(), &keys, at(10));
    assert!(mappings(&out).is_empty(), "it says nothing about the mapping");
    let request = request_of(&run(&mut itr, at(10)));
    assert!(request.nonce > nonce);
    hear(&mut itr, request.nonce, vec![home()], &keys, at(10));
    // Repeated by somebody: at most once in five seconds.
    hear(&mut itr, nonce, dropped(), &keys, at(11));
    assert_eq!(state(&itr), SubscriptionState::Subscribed);
    assert_eq!(itr.counts().subscriptions.dropped, 1);
}

/// RFC 9437 §5: exactly one ITR-RLOC, of AFI 0.
#[test]
fn unsubscribing_is_repeated_until_confirmed() {
    let keys = keys("of publications");
    let (mut itr, _) = subscribed(&keys);
    itr.unsubscribe(IID, prefix(POOL), at(5));
    let request = request_of(&run(&mut itr, at(5)));
    assert_eq!(request.itr_rlocs, [RlocAddress::None]);
    assert!(request.records[0].notify);
    let again = request_of(&run(&mut itr, at(6)));
    assert!(again.nonce > request.nonce);
    let out = hear(&mut itr, again.nonce, vec![home()], &keys, at(6));
    assert_eq!(acks(&out), [again.nonce]);
    assert_eq!(state(&itr), SubscriptionState::Ended);
    let out = hear(&mut itr, again.nonce + 1, vec![away(1, "192.0.2.2", 5)], &keys, at(7));
    assert!(out.is_empty());
}
