//! Subscriptions and publications: RFC 9437 §4 to §7, RFC 9301 §5.7.

use super::lab::*;
use crate::proto::lisp::server::*;
use crate::types::lisp::{NegativeAction, SiteId};
use crate::wire::lisp::{EidRecord, MapNotify, RlocAddress};

const ZERO: InstanceId = InstanceId(0);
const POOL: &str = "10.1.0.0/16";
const HOST: &str = "10.1.0.7/32";

/// A pool that leads to A, and ITRs that are subscribed to it and have acknowledged.
fn subscribed(itrs: &mut [Peer]) -> Lab {
    let mut lab = Lab::new();
    lab.register(&mut Peer::etr(A, 1), &[record(MOBILE, POOL, &["192.0.2.1"])]);
    for itr in itrs {
        subscribe(&mut lab, itr, POOL);
    }
    lab
}

fn subscribe(lab: &mut Lab, itr: &mut Peer, to: &str) -> MapNotify {
    lab.request(itr, &[(eid(MOBILE, to), true)]);
    let [notify] = &lab.notifies(itr)[..] else { panic!("{:?}", lab.out) };
    let notify = notify.clone();
    lab.ack(itr, &notify);
    assert!(lab.refusals().is_empty());
    notify
}

fn unsubscribe(lab: &mut Lab, itr: &mut Peer, from: &str) {
    let mut request = itr.request(&[(eid(MOBILE, from), true)]);
    request.itr_rlocs = vec![RlocAddress::None];
    lab.send_request(itr, &request);
}

/// What one notify says, as text.
fn said(notify: &MapNotify) -> Vec<String> {
    let one = |r: &EidRecord| {
        let ttl = if r.ttl_min == 0 { " gone" } else { "" };
        format!("{} {}{ttl}", named(r), addrs(r).join(","))
    };
    notify.records.iter().map(one).collect()
}

/// RFC 9437 §5: the answer is a Map-Notify with the nonce of the request and the mapping; it is
/// sent until it is acknowledged.
#[test]
fn a_subscription_is_answered_by_a_notify() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(MOBILE, POOL), true)]);
    let [notify] = &lab.notifies(&itr)[..] else { panic!("{:?}", lab.out) };
    let notify = notify.clone();
    assert_eq!(notify.nonce, itr.nonce);
    assert_eq!(said(&notify), ["7 10.1.0.0/16 192.0.2.1"]);
    assert!(lab.replies().is_empty());
    lab.wait(3);
    assert_eq!(lab.notifies(&itr), std::slice::from_ref(&notify));
    lab.ack(&itr, &notify);
    lab.wait(100);
    assert!(lab.notifies(&itr).is_empty());
    let (views, next) = lab.server.subscriptions(lab.now, 0, 10);
    assert_eq!((views.len(), next), (1, None));
    assert_eq!((views[0].prefix, views[0].nonce), (prefix(POOL), itr.nonce));
}

/// RFC 9437 §5: several records of one request are subscribed by one notify; those without N are
/// answered as ever.
#[test]
fn one_request_can_subscribe_and_ask() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    let ask =
        [(eid(MOBILE, POOL), true), (eid(MOBILE, HOST), true), (eid(ZERO, "172.16.1.1/32"), false)];
    lab.request(&mut itr, &ask);
    assert_eq!(
        said(&lab.notifies(&itr)[0]),
        ["7 10.1.0.0/16 192.0.2.1", "7 10.1.0.7/32 192.0.2.1"]
    );
    assert_eq!(named(&lab.reply()), "0 172.16.0.0/16");
}

/// RFC 9437 §5, §7: who may not subscribe gets Drop/Policy-Denied and leaves no state.
#[test]
fn who_may_not_subscribe_is_told_so() {
    type Change = fn(&mut Peer);
    let cases: [(&str, Change); 4] = [
        ("unknown xTR-ID", |p| p.id = Some((XtrId(77), SiteId(9)))),
        ("elsewhere", |p| p.addr = ip("203.0.113.5")),
        ("the address of another", |p| p.addr = Peer::itr(2).addr),
        ("another's ID", |p| p.id = Peer::itr(2).id),
    ];
    for (name, change) in cases {
        let mut lab = subscribed(&mut []);
        let mut itr = Peer::itr(1);
        change(&mut itr);
        lab.request(&mut itr, &[(eid(MOBILE, POOL), true)]);
        let denied = lab.reply();
        assert_eq!((denied.action, denied.rlocs.len()), (NegativeAction::DropPolicyDenied, 0));
        assert_eq!(lab.refusals(), [Refusal::SubscriberNotAllowed], "{name}");
        assert_eq!(lab.server.sizes().subscriptions, 0, "{name}");
        assert!(!lab.stored.iter().any(|r| matches!(r, NonceRecord::Request { .. })), "{name}");
    }
    // From its own address, to be told at somebody else's.
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    let mut request = itr.request(&[(eid(MOBILE, POOL), true)]);
    request.itr_rlocs.push(RlocAddress::Ip(ip("203.0.113.5")));
    lab.send_request(&itr, &request);
    assert_eq!(lab.refusals(), [Refusal::SubscriberNotAllowed]);
}

/// RFC 9437 §4: N without I names nobody: an ordinary question.
#[test]
fn without_an_id_nobody_is_subscribed() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer { id: None, ..Peer::itr(1) };
    lab.request(&mut itr, &[(eid(MOBILE, POOL), true)]);
    assert_eq!(addrs(&lab.reply()), ["192.0.2.1"]);
    assert_eq!(lab.refusals(), [Refusal::Combination]);
    assert_eq!(lab.server.sizes().subscriptions, 0);
}

/// RFC 9437 §5: nonces of requests grow, per EID-prefix, over restarts and unsubscriptions.
#[test]
fn an_old_request_stays_old() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    let old = itr.request(&[(eid(MOBILE, POOL), true)]);
    lab.send_request(&itr, &old);
    let replayed = |lab: &mut Lab, itr: &Peer| {
        lab.send_request(itr, &old);
        assert_eq!(lab.refusals(), [Refusal::Replay]);
        assert!(lab.notifies(itr).is_empty() && lab.replies().is_empty(), "silently");
    };
    replayed(&mut lab, &itr);
    subscribe(&mut lab, &mut itr, POOL);
    replayed(&mut lab, &itr);
    unsubscribe(&mut lab, &mut itr, POOL);
    replayed(&mut lab, &itr);
    lab.restart(config());
    replayed(&mut lab, &itr);
    assert_eq!(lab.server.sizes().subscriptions, 0);
    // Of another prefix nothing is known.
    let mut other = old.clone();
    other.records[0].eid = eid(MOBILE, HOST);
    lab.send_request(&itr, &other);
    assert_eq!(lab.notifies(&itr).len(), 1);
}

/// RFC 9437 §6: every change goes to every subscriber of the prefix and of what covers it, with
/// the next nonce, until it is acknowledged.
#[test]
fn a_move_is_published_to_all_who_subscribed() {
    let mut itrs = [Peer::itr(1), Peer::itr(2), Peer::itr(3)];
    let mut lab = subscribed(&mut itrs);
    for generation in 1..=5 {
        let anchor = if generation % 2 == 1 { B } else { A };
        lab.publish(HOST, Some(at(anchor, generation)));
        for itr in &itrs {
            let [notify] = &lab.notifies(itr)[..] else { panic!("{:?}", lab.out) };
            assert_eq!(notify.nonce, itr.nonce + u64::from(generation));
            assert_eq!(said(notify), [format!("7 10.1.0.7/32 192.0.2.{}", anchor.0)]);
            assert_eq!(notify.records[0].version.0, generation);
        }
        let notifies: Vec<_> = itrs.iter().map(|i| lab.notifies(i)[0].clone()).collect();
        for (itr, notify) in itrs.iter().zip(notifies) {
            lab.ack(itr, &notify);
        }
    }
    lab.publish(HOST, None);
    assert_eq!(said(&lab.notifies(&itrs[0])[0]), ["7 10.1.0.7/32  gone"]);
    assert_eq!(lab.server.counters().acknowledged, 3 + 15);
}

/// Once per ITR, by its closest subscription; not by what it has taken out (§5).
#[test]
fn the_closest_subscription_counts() {
    let mut itrs = [Peer::itr(1), Peer::itr(2)];
    let mut lab = subscribed(&mut itrs);
    let [one, two] = &mut itrs;
    subscribe(&mut lab, one, HOST);
    unsubscribe(&mut lab, two, HOST);
    assert_eq!(said(&lab.notifies(two)[0]), ["7 10.1.0.7/32 192.0.2.1"]);
    lab.publish(HOST, Some(at(B, 2)));
    assert_eq!(lab.notifies(one).len(), 1);
    assert_eq!(lab.notifies(one)[0].nonce, one.nonce + 1);
    assert!(lab.notifies(two).is_empty(), "left out");
    lab.publish("10.1.0.8/32", Some(at(B, 2)));
    assert_eq!(lab.notifies(two).len(), 1);
    // After a restart still.
    lab.restart(config());
    lab.publish(HOST, Some(at(A, 3)));
    assert_eq!((lab.notifies(one).len(), lab.notifies(two).len()), (1, 0));
    // Until it subscribes to it.
    lab.request(two, &[(eid(MOBILE, HOST), true)]);
    lab.publish(HOST, Some(at(B, 4)));
    assert_eq!(lab.notifies(two).len(), 1);
}

/// RFC 9437 §5: unsubscribed by one ITR-RLOC of AFI 0, confirmed to where the request came from.
#[test]
fn who_unsubscribes_is_told_no_more() {
    let mut itrs = [Peer::itr(1)];
    let mut lab = subscribed(&mut itrs);
    let [itr] = &mut itrs;
    lab.publish(HOST, Some(at(B, 2)));
    itr.nonce += 10;
    unsubscribe(&mut lab, itr, POOL);
    let [confirmed] = &lab.notifies(itr)[..] else { panic!("{:?}", lab.out) };
    assert_eq!(confirmed.nonce, itr.nonce);
    assert_eq!(lab.server.sizes().subscriptions, 0);
    lab.publish(HOST, Some(at(A, 3)));
    lab.wait(100);
    assert!(lab.notifies(itr).is_empty(), "nor what was on its way");
}

/// What is registered outside the pools is published as well: new, changed, withdrawn, expired.
#[test]
fn registrations_are_published() {
    let mut lab = Lab::new();
    let (mut etr, mut itr) = (Peer::etr(A, 1), Peer::itr(1));
    lab.register(&mut etr, &[record(ZERO, "172.16.0.0/16", &["192.0.2.1"])]);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.0.0/16"), true)]);
    let notify = lab.notifies(&itr)[0].clone();
    lab.ack(&itr, &notify);
    let publication = |lab: &mut Lab, etr: &mut Peer, record: EidRecord| -> Vec<String> {
        lab.register(etr, &[record]);
        lab.notifies(&itr).iter().flat_map(said).collect()
    };
    let net = |addr| record(ZERO, "172.16.1.0/24", &[addr]);
    assert_eq!(publication(&mut lab, &mut etr, net("192.0.2.2")), ["0 172.16.1.0/24 192.0.2.2"]);
    assert!(publication(&mut lab, &mut etr, net("192.0.2.2")).is_empty(), "a refresh");
    assert_eq!(publication(&mut lab, &mut etr, net("192.0.2.3")), ["0 172.16.1.0/24 192.0.2.3"]);
    let gone = EidRecord { ttl_min: 0, ..net("192.0.2.3") };
    assert_eq!(publication(&mut lab, &mut etr, gone), ["0 172.16.1.0/24  gone"]);
    publication(&mut lab, &mut etr, net("192.0.2.3"));
    lab.wait(200);
    let expired: Vec<_> = lab.notifies(&itr).iter().flat_map(said).collect();
    assert!(expired.contains(&"0 172.16.1.0/24  gone".into()), "{expired:?}");
}

/// A subscriber of a host is told of its pool's changes while nothing closer is registered.
#[test]
fn an_aggregate_is_published_to_those_inside() {
    let mut lab = Lab::new();
    let (mut etr, mut itr) = (Peer::etr(A, 1), Peer::itr(1));
    lab.register(&mut etr, &[record(MOBILE, POOL, &["192.0.2.1"])]);
    subscribe(&mut lab, &mut itr, HOST);
    let last = |lab: &Lab| lab.notifies(&Peer::itr(1)).iter().flat_map(said).collect::<Vec<_>>();
    lab.register(&mut etr, &[record(MOBILE, POOL, &["192.0.2.9"])]);
    assert_eq!(last(&lab), ["7 10.1.0.7/32 192.0.2.9"]);
    lab.publish(HOST, Some(at(B, 2)));
    assert_eq!(last(&lab), ["7 10.1.0.7/32 192.0.2.2"]);
    lab.register(&mut etr, &[record(MOBILE, POOL, &["192.0.2.8"])]);
    assert!(last(&lab).is_empty(), "it is at B");
    // Home again: to where its pool leads, without a question.
    lab.publish(HOST, None);
    assert_eq!(last(&lab), ["7 10.1.0.7/32 192.0.2.8"]);
    let gone = EidRecord { ttl_min: 0, ..record(MOBILE, POOL, &["192.0.2.8"]) };
    lab.register(&mut etr, &[gone]);
    assert_eq!(last(&lab), ["7 10.1.0.7/32  gone"]);
}

/// RFC 9301 §5.7, RFC 9437 §6: six retransmissions per ITR-RLOC, the next one then, then the end.
#[test]
fn a_publication_is_sent_until_acknowledged_or_given_up() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    let mut request = itr.request(&[(eid(MOBILE, POOL), true)]);
    let second = ip("2001:db8:aaaa::1");
    request.itr_rlocs = vec![RlocAddress::Ip(second), RlocAddress::Ip(itr.addr)];
    lab.send_request(&itr, &request);
    let notify = lab.notifies(&itr)[0].clone();
    lab.ack(&itr, &notify);
    lab.publish(HOST, Some(at(B, 2)));
    let other = Peer { addr: second, ..itr.clone() };
    let mut sent = Vec::new();
    for second in 1..=170 {
        lab.wait(1);
        sent.extend(lab.notifies(&itr).iter().map(|_| (second, 4)));
        sent.extend(lab.notifies(&other).iter().map(|_| (second, 6)));
    }
    let first = [3, 6, 9, 15, 27, 51].map(|s| (s, 4));
    let then = [0, 3, 6, 9, 15, 27, 51].map(|s| (54 + s, 6));
    assert_eq!(sent, [first.as_slice(), then.as_slice()].concat());
    assert_eq!(lab.server.counters().given_up, 1);
    // It is there again: with the next answer it is told what it has missed.
    lab.publish("10.1.0.8/32", Some(at(B, 2)));
    let notify = lab.notifies(&itr)[0].clone();
    lab.ack(&itr, &notify);
    let missed: Vec<_> = lab.notifies(&itr).iter().flat_map(said).collect();
    assert_eq!(missed, ["7 10.1.0.7/32 192.0.2.2", "7 10.1.0.8/32 192.0.2.2"]);
}

/// Only the newest state of a prefix waits, and it has the greatest nonce.
#[test]
fn a_newer_state_replaces_what_was_not_acknowledged() {
    let mut itrs = [Peer::itr(1)];
    let mut lab = subscribed(&mut itrs);
    let [itr] = &itrs;
    lab.publish(HOST, Some(at(B, 2)));
    let first = lab.notifies(itr)[0].clone();
    lab.publish("10.1.0.8/32", Some(at(B, 2)));
    lab.publish(HOST, Some(at(A, 3)));
    lab.ack(itr, &first);
    assert_eq!(lab.refusals(), [Refusal::UnknownAck], "of what was replaced");
    lab.wait(3);
    let again: Vec<_> = lab.notifies(itr).iter().flat_map(said).collect();
    assert_eq!(again, ["7 10.1.0.7/32 192.0.2.1", "7 10.1.0.8/32 192.0.2.2"]);
    // A receiver that takes only growing nonces takes what is sent again, too.
    let nonces: Vec<u64> = lab.notifies(itr).iter().map(|n| n.nonce).collect();
    assert_eq!(nonces, [itr.nonce + 3, itr.nonce + 4]);
    for notify in lab.notifies(itr) {
        lab.ack(itr, &notify);
        assert!(lab.refusals().is_empty());
    }
    lab.wait(100);
    assert!(lab.notifies(itr).is_empty());
}

/// RFC 9437 §5: a subscription whose answer is never acknowledged is removed, and that is said
/// once, with the same nonce, no locators and Drop/Auth-Failure.
#[test]
fn a_subscriber_that_never_answers_is_removed() {
    let mut lab = subscribed(&mut []);
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(MOBILE, POOL), true)]);
    lab.wait(53);
    assert_eq!(lab.server.sizes().subscriptions, 1);
    lab.wait(2);
    let [last] = &lab.notifies(&itr)[..] else { panic!("{:?}", lab.out) };
    assert_eq!((last.nonce, last.records[0].action), (itr.nonce, NegativeAction::DropAuthFailure));
    assert!(last.records[0].rlocs.is_empty());
    assert_eq!(lab.server.sizes().subscriptions, 0);
    lab.wait(300);
    assert!(lab.notifies(&itr).is_empty());
    // What was removed is not restored either.
    lab.restart(config());
    assert_eq!(lab.server.sizes().subscriptions, 0);
}

/// RFC 9437 §5: of an EID that is not there, the gap around it, for some time.
#[test]
fn what_is_not_there_is_subscribed_for_a_while() {
    let mut lab = subscribed(&mut []);
    let (mut etr, mut itr) = (Peer::etr(B, 1), Peer::itr(1));
    lab.request(&mut itr, &[(eid(MOBILE, "10.2.0.1/32"), true)]);
    let notify = lab.notifies(&itr)[0].clone();
    assert_eq!(said(&notify), ["7 10.2.0.0/15 "]);
    assert_eq!(notify.records[0].action, NegativeAction::NativelyForward);
    lab.ack(&itr, &notify);
    lab.register(&mut etr, &[record(MOBILE, "10.2.0.0/24", &["192.0.2.20"])]);
    assert_eq!(said(&lab.notifies(&itr)[0]), ["7 10.2.0.0/24 192.0.2.20"]);
    let (views, _) = lab.server.subscriptions(lab.now, 0, 10);
    assert_eq!(views[0].remaining, Some(Duration::from_secs(900)));
    lab.restart(config());
    lab.wait(899);
    assert_eq!(lab.server.sizes().subscriptions, 1);
    lab.wait(1);
    assert_eq!(lab.server.sizes().subscriptions, 0);
}

/// RFC 9437 §5: by configuration, from the nonce that both sides were given; changed by the xTR
/// only where that is allowed.
#[test]
fn a_configured_subscription_needs_no_request() {
    for may_change in [true, false] {
        let mut config = config();
        let mut itr = Peer::itr(1);
        config.itrs[0].configured = vec![ConfiguredSubscription {
            iid: MOBILE,
            prefix: prefix(POOL),
            nonce: 600,
            rlocs: vec![itr.addr],
        }];
        config.itrs[0].may_change = may_change;
        let mut lab = Lab::with(config.clone());
        lab.publish(HOST, Some(at(B, 2)));
        assert_eq!(lab.notifies(&itr)[0].nonce, 601);
        lab.restart(config);
        lab.publish(HOST, Some(at(A, 3)));
        assert!(lab.notifies(&itr)[0].nonce > 601, "also after a restart");
        unsubscribe(&mut lab, &mut itr, POOL);
        assert_eq!(lab.server.sizes().subscriptions, usize::from(!may_change));
        if !may_change {
            assert_eq!(lab.replies()[0].0.ip(), itr.addr, "to where it came from");
            assert_eq!(lab.reply().action, NegativeAction::DropPolicyDenied);
        }
    }
}

/// Hosts that were away before somebody subscribed: told in batches, one per acknowledgement.
#[test]
fn a_new_subscriber_learns_what_is_inside() {
    let mut lab = subscribed(&mut []);
    for i in 0..30 {
        lab.publish(&format!("10.1.0.{i}/32"), Some(at(B, 2)));
    }
    let mut itr = Peer::itr(1);
    subscribe(&mut lab, &mut itr, POOL);
    let (mut batches, mut heard) = (Vec::new(), Vec::new());
    while let [notify] = &lab.notifies(&itr)[..] {
        let notify = notify.clone();
        batches.push(notify.records.len());
        heard.extend(said(&notify));
        // In the middle one of them moves: the batch that waits must not say the old place.
        if batches.len() == 2 {
            lab.publish("10.1.0.12/32", Some(at(A, 3)));
            let publication = lab.notifies(&itr)[0].clone();
            lab.ack(&itr, &publication);
            lab.wait(3);
            let again = lab.notifies(&itr)[0].clone();
            assert!(said(&again).contains(&"7 10.1.0.12/32 192.0.2.1".into()), "{again:?}");
            assert!(again.nonce > publication.nonce);
            lab.ack(&itr, &again);
        } else {
            lab.ack(&itr, &notify);
        }
    }
    assert_eq!(batches, [12, 12, 6]);
    // A renewal is not told all of it again; an xTR that has lost its state is.
    itr.nonce += 10;
    subscribe(&mut lab, &mut itr, POOL);
    assert!(lab.notifies(&itr).is_empty());
    itr.nonce += 1 << 20;
    subscribe(&mut lab, &mut itr, POOL);
    assert_eq!(lab.notifies(&itr)[0].records.len(), 12);
    let expected: Vec<_> = (0..30).map(|i| format!("7 10.1.0.{i}/32 192.0.2.2")).collect();
    assert_eq!(heard, expected);
}

/// RFC 9437 §7: limits per xTR and in all; an ordinary Map-Reply then, and no state.
#[test]
fn too_many_subscriptions_are_answered_as_questions() {
    for (total, per_itr, others) in [(100, 3, 1), (3, 100, 0)] {
        let mut config = config();
        config.limits.subscriptions.total = total;
        config.limits.subscriptions.per_itr = per_itr;
        let mut lab = Lab::with(config);
        lab.register(&mut Peer::etr(A, 1), &[record(MOBILE, POOL, &["192.0.2.1"])]);
        let mut itr = Peer::itr(1);
        for i in 0..3 {
            subscribe(&mut lab, &mut itr, &format!("10.1.0.{i}/32"));
        }
        lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.9/32"), true)]);
        assert_eq!(lab.refusals(), [Refusal::SubscriptionLimit]);
        assert_eq!(addrs(&lab.reply()), ["192.0.2.1"]);
        // What it has it may renew.
        subscribe(&mut lab, &mut itr, "10.1.0.1/32");
        lab.request(&mut Peer::itr(2), &[(eid(MOBILE, "10.1.0.9/32"), true)]);
        assert_eq!(lab.server.sizes().subscriptions, 3 + others);
    }
}

/// RFC 9437 §5: the pace of publications; what is above it leaves later.
#[test]
fn publications_keep_their_pace() {
    let mut config = config();
    config.limits.subscriptions.publications = Rate { burst: 2, per_second: 1 };
    let mut lab = Lab::with(config);
    let mut itr = Peer::itr(1);
    lab.register(&mut Peer::etr(A, 1), &[record(MOBILE, POOL, &["192.0.2.1"])]);
    subscribe(&mut lab, &mut itr, POOL);
    let mut at_once = 0;
    for i in 0..6 {
        lab.publish(&format!("10.1.0.{i}/32"), Some(at(B, 2)));
        at_once += lab.notifies(&itr).len();
    }
    assert_eq!(at_once, 3);
    lab.request(&mut itr, &[(eid(MOBILE, HOST), true)]);
    assert_eq!(lab.refusals(), [Refusal::SubscriptionLimit], "not while it is behind");
    let mut later = Vec::new();
    for second in 1..=2 {
        lab.wait(1);
        later.extend(lab.notifies(&itr).iter().map(|_| second));
    }
    assert_eq!(later, [1, 2]);
}

/// After a restart: who was subscribed still is, with nonces that it has not seen; and it can
/// renew with the next one that it knows.
#[test]
fn subscriptions_outlive_a_restart() {
    let mut itrs = [Peer::itr(1)];
    let mut lab = subscribed(&mut itrs);
    let [itr] = &mut itrs;
    let mut last = 0;
    for i in 0..1500_u16 {
        lab.publish(HOST, Some(at(if i % 2 == 0 { B } else { A }, i % 4000 + 2)));
        last = lab.notifies(itr)[0].nonce;
    }
    assert_eq!(last, itr.nonce + 1500);
    let stored = lab.stored.iter().filter(|r| matches!(r, NonceRecord::Subscription { .. }));
    assert!(stored.count() <= 3, "stored in blocks");
    lab.restart(config());
    lab.publish(HOST, Some(at(B, 1600)));
    assert!(lab.notifies(itr)[0].nonce > last);

    lab.restart(config());
    itr.nonce = last;
    lab.request(itr, &[(eid(MOBILE, POOL), true)]);
    assert_eq!(lab.notifies(itr)[0].nonce, last + 1);
    lab.publish(HOST, Some(at(A, 1601)));
    assert!(lab.notifies(itr)[0].nonce > last + 1);
}
