//! Adj-RIB-In: policy, limits, errors, graceful restart and refresh.

use super::lab::*;
use crate::proto::bgp::policy::{ImportPolicy, PrefixFilter, PrefixRule};
use crate::proto::bgp::rib::PeerKind::{Client, External};
use crate::proto::bgp::rib::*;
use crate::types::{Family, Instant};
use crate::wire::bgp::Attributes;

const V4: Family = Family::Ipv4;

#[test]
fn the_import_policy_refuses_counts_and_sets_the_preference() {
    let mut lab = Lab::of(&[Client, Client]);
    let mut i = info(Client, 3);
    i.import = ImportPolicy {
        filter: PrefixFilter::Permit(vec![PrefixRule { prefix: p("10.0.0.0/24"), ge: 32, le: 32 }]),
        local_pref: Some(77),
    };
    lab.up(3, i);
    lab.run();
    let said = [p("10.0.0.1/32"), p("10.0.0.0/25"), p("10.0.1.1/32")];
    let outcome = lab.say(3, &attributes(1), &said, &[]);
    assert_eq!((outcome.announced, outcome.rejected), (1, 2));
    lab.run();
    assert_eq!(lab.table(2).len(), 1);
    assert_eq!(lab.table(2)[&said[0]].local_pref, Some(77));
    assert_eq!(lab.rib.counters().rejected, 2);
    assert_eq!(lab.rib.peer_paths(PeerId(3), V4), 1);
}

/// RFC 8212: nothing from, nothing to, unless a policy says so.
#[test]
fn without_policies_nothing_passes() {
    let mut lab = Lab::of(&[Client]);
    let none =
        PeerInfo { import: Default::default(), export: Default::default(), ..info(External, 2) };
    lab.up(2, none);
    lab.say(1, &attributes(1), &[p("10.0.0.1/32")], &[]);
    let a = Attributes { as_path: as_path(&[65102]), local_pref: None, ..attributes(1) };
    assert_eq!(lab.say(2, &a, &[p("10.0.0.2/32")], &[]).rejected, 1);
    lab.run();
    assert!(lab.table(1).is_empty() && lab.table(2).is_empty());
}

/// A full table refuses what is new and goes on with what it has.
#[test]
fn a_full_table_refuses_new_prefixes_only() {
    let mut lab = Lab::with(RibConfig { routes_max: 2, ..config() });
    lab.up(1, info(Client, 1));
    let said = [p("10.0.0.1/32"), p("2001:db8::1/128"), p("10.0.0.3/32")];
    let v6 = Attributes { next_hop: hop(Family::Ipv6, 1), ..attributes(1) };
    lab.say(1, &v6, &said[1..2], &[]);
    let outcome = lab.say(1, &attributes(1), &[said[0], said[2]], &[]);
    assert_eq!((outcome.announced, outcome.full), (1, 1));
    assert_eq!(lab.rib.counters().full_routes, 1);
    assert!(!lab.rib.originate(said[2], attributes(1)));
    assert!(lab.rib.originate(said[0], attributes(1)), "known prefixes take new paths");
    lab.say(1, &v6, &[], &said[1..2]);
    lab.run();
    assert_eq!(lab.say(1, &attributes(1), &said[2..], &[]).announced, 1);
}

#[test]
fn paths_are_bounded_too() {
    let mut lab = Lab::with(RibConfig { paths_max: 3, ..config() });
    lab.up(1, info(Client, 1));
    lab.up(2, info(Client, 2));
    let all = [p("10.0.0.1/32"), p("10.0.0.2/32")];
    lab.say(1, &attributes(1), &all, &[]);
    assert_eq!(lab.say(2, &attributes(2), &all, &[]).full, 1);
    assert_eq!(
        lab.say(2, &attributes(3), &all[..1], &[]).announced,
        1,
        "a replacement is no new path"
    );
    assert_eq!(lab.rib.counts(V4).paths, 3);
    lab.say(1, &attributes(1), &[], &all[1..]);
    assert_eq!(lab.say(2, &attributes(2), &all, &[]).announced, 2);
}

/// With the store of sets full, a route with a new set is as withdrawn: its old path is no longer
/// true.
#[test]
fn a_full_attribute_store_refuses_new_sets() {
    let mut lab = Lab::with(RibConfig { attribute_sets_max: 1, ..config() });
    lab.up(1, info(Client, 1));
    let x = p("10.0.0.1/32");
    lab.say(1, &attributes(1), &[x], &[]);
    let outcome = lab.say(1, &attributes(2), &[x], &[]);
    assert_eq!((outcome.full, outcome.withdrawn), (1, 0));
    assert_eq!(lab.rib.peer_paths(PeerId(1), V4), 0);
    assert_eq!(lab.rib.counters().full_attributes, 1);
}

/// Few long sets are as bad as many short ones.
#[test]
fn the_memory_of_sets_is_bounded() {
    let mut lab = Lab::with(RibConfig { attribute_octets_max: 40_000, ..config() });
    lab.up(1, info(Client, 1));
    for number in 0..50 {
        let x = p(&format!("10.0.0.{number}/32"));
        let long = Attributes { communities: (0..500).collect(), ..attributes(number) };
        lab.say(1, &long, &[x], &[]);
    }
    let kept = lab.rib.peer_paths(PeerId(1), V4);
    assert!((15..=20).contains(&kept), "{kept}");
    lab.down(1, &[]);
    lab.run();
    lab.rib.forget_blocks();
    lab.up(1, info(Client, 1));
    assert_eq!(lab.say(1, &attributes(1), &[p("10.0.0.1/32")], &[]).announced, 1);
}

/// RFC 7606 §2: session reset applies nothing; treat-as-withdraw takes the routes away.
#[test]
fn errors_reach_the_outcome() {
    let mut lab = Lab::of(&[Client]);
    let n = lab.infos[&PeerId(1)].negotiated;
    let x = p("10.0.0.1/32");
    let body = bodies(&attributes(1), &n, &[x], &[]).remove(0);
    let say = |lab: &mut Lab, body: &[u8]| lab.rib.handle_update(PeerId(1), body, Instant::ZERO);
    assert_eq!(say(&mut lab, &body).announced, 1);

    let mut bad_nlri = body.clone();
    *bad_nlri.iter_mut().rev().nth(4).unwrap() = 33; // the length of the prefix
    assert!(say(&mut lab, &bad_nlri).error.is_some());
    assert_eq!(lab.rib.peer_paths(PeerId(1), V4), 1, "nothing was applied");

    let mut bad_origin = body.clone();
    bad_origin[4 + 3] = 9;
    let outcome = say(&mut lab, &bad_origin);
    assert_eq!((outcome.error, outcome.withdrawn), (None, 1));
    assert_eq!(outcome.attribute_errors.len(), 1);
    assert_eq!(lab.rib.peer_paths(PeerId(1), V4), 0);
    // A faulty block is never remembered as a good one.
    assert_eq!(say(&mut lab, &bad_origin).withdrawn, 1);
}

/// The short way for known blocks gives the same as the long one.
#[test]
fn known_blocks_are_recognised_per_kind_of_session() {
    let mut lab = Lab::of(&[Client, Client]);
    let mut other = info(Client, 3);
    other.import.local_pref = Some(5);
    lab.up(3, other);
    lab.run();
    let v6 = Attributes { next_hop: hop(Family::Ipv6, 1), ..attributes(1) };
    for n in 1..=9 {
        lab.say(1, &attributes(1), &[p(&format!("10.0.0.{n}/32"))], &[]);
        lab.say(1, &v6, &[p(&format!("2001:db8::{n}/128"))], &[]);
        lab.say(3, &attributes(1), &[p(&format!("10.0.1.{n}/32"))], &[]);
    }
    let c = lab.rib.counters();
    assert_eq!((c.attribute_cache_misses, c.attribute_cache_hits), (3, 24));
    lab.run();
    for n in 1..=9 {
        assert_eq!(lab.table(2)[&p(&format!("10.0.0.{n}/32"))].local_pref, Some(100));
        assert_eq!(lab.table(2)[&p(&format!("10.0.1.{n}/32"))].local_pref, Some(5));
        assert_eq!(lab.table(2)[&p(&format!("2001:db8::{n}/128"))].next_hop, v6.next_hop);
    }
}

/// RFC 4724 §4.2: kept while the peer restarts, swept at its End-of-RIB.
#[test]
fn restart() {
    let mut lab = Lab::of(&[Client, Client]);
    let all = [p("10.0.0.1/32"), p("10.0.0.2/32")];
    lab.say(1, &attributes(1), &all, &[]);
    lab.run();
    lab.down(1, &[V4]);
    lab.run();
    assert_eq!(lab.table(2).len(), 2, "still announced");
    assert!(lab.rib.find_best(all[0]).unwrap().stale);

    lab.up(1, info(Client, 1));
    lab.run();
    assert!(lab.table(1).is_empty(), "not its own routes");
    lab.forget();
    assert!(!lab.rib.handle_borr(PeerId(1), V4), "RFC 7313 §4: not before End-of-RIB");
    lab.say(1, &attributes(1), &all[..1], &[]);
    lab.run();
    assert!(!lab.rib.find_best(all[0]).unwrap().stale);
    assert_eq!(lab.heard(2), [], "the same route again is no news");
    assert_eq!(lab.rib.sweep_stale(PeerId(1), V4), 1);
    assert_eq!(lab.rib.sweep_stale(PeerId(1), V4), 0);
    lab.run();
    assert_eq!(lab.heard(2), [Heard::Withdraw(all[1])]);

    // A second restart before the first is over: what was stale already goes.
    lab.say(1, &attributes(1), &all, &[]);
    lab.down(1, &[V4]);
    lab.up(1, info(Client, 1));
    lab.say(1, &attributes(1), &all[1..], &[]);
    lab.down(1, &[V4]);
    assert_eq!(lab.rib.peer_paths(PeerId(1), V4), 1);

    // Another router behind the same number does not inherit.
    lab.up(1, info(Client, 99));
    lab.run();
    assert_eq!(lab.rib.counts(V4).paths, 0);
}

#[test]
fn without_graceful_restart_the_routes_go_at_once() {
    let mut lab = Lab::of(&[Client, Client]);
    lab.say(1, &attributes(1), &[p("10.0.0.1/32")], &[]);
    lab.run();
    lab.down(1, &[]);
    lab.run();
    assert!(lab.table(2).is_empty());
}

/// RFC 7313 §4.
#[test]
fn a_refresh_sweeps_what_is_not_repeated() {
    let mut lab = Lab::of(&[Client, Client]);
    let all = [p("10.0.0.1/32"), p("10.0.0.2/32")];
    lab.say(1, &attributes(1), &all, &[]);
    assert_eq!(lab.rib.handle_eorr(PeerId(1), V4), 0, "without BoRR it means nothing");
    assert!(lab.rib.handle_borr(PeerId(1), V4));
    lab.say(1, &attributes(2), &all[1..], &[]);
    assert_eq!(lab.rib.handle_eorr(PeerId(1), V4), 1);
    lab.run();
    assert_eq!(lab.table(2).keys().copied().collect::<Vec<_>>(), all[1..]);
}

#[test]
fn end_of_rib_and_silent_peers() {
    let mut lab = Lab::of(&[Client]);
    let end = [0, 0, 0, 0];
    let outcome = lab.rib.handle_update(PeerId(1), &end, Instant::ZERO);
    assert_eq!(outcome, UpdateOutcome { end_of_rib: Some(V4), ..Default::default() });
    let end = [0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1];
    let outcome = lab.rib.handle_update(PeerId(1), &end, Instant::ZERO);
    assert_eq!(outcome.end_of_rib, Some(Family::Ipv6));
    assert_eq!(lab.rib.handle_update(PeerId(44), &end, Instant::ZERO), UpdateOutcome::default());
}

/// Whatever the octets: no panic, and a RIB that knows the block of the unharmed message reacts
/// like one that reads everything the long way.
#[test]
fn the_short_way_and_the_long_way_agree_on_damaged_messages() {
    let n = info(Client, 1).negotiated;
    let v6 = Attributes { next_hop: hop(Family::Ipv6, 1), ..attributes(1) };
    let mut messages = bodies(&attributes(1), &n, &[p("10.0.0.1/32"), p("10.0.16.0/20")], &[]);
    messages.extend(bodies(&v6, &n, &[p("2001:db8::1/128"), p("2001:db8::/61")], &[]));
    messages.extend(bodies(&v6, &n, &[], &[p("2001:db8::1/128"), p("10.0.0.1/32")]));
    messages.push(both_at_once(&messages));
    assert_eq!(messages.len(), 5);
    let mut knows = Lab::of(&[Client, Client]);
    let mut reads = Lab::of(&[Client, Client]);
    let mut damaged = 0;
    for message in &messages {
        for at in 0..message.len() {
            for change in 1..=255u8 {
                // All changes of lengths, flags and types; of other octets some.
                if change > 8 && !change.is_power_of_two() && change % 16 != 15 {
                    continue;
                }
                let mut bad = message.clone();
                bad[at] ^= change;
                for octets in [message, &bad, &message[..at].to_vec()] {
                    reads.rib.forget_blocks();
                    let short = knows.rib.handle_update(PeerId(1), octets, Instant::ZERO);
                    let long = reads.rib.handle_update(PeerId(1), octets, Instant::ZERO);
                    assert_eq!(short, long, "{octets:?}");
                }
                damaged += 1;
            }
        }
        for family in Family::ALL {
            assert_eq!(knows.rib.counts(family), reads.rib.counts(family), "{message:?}");
        }
        knows.run();
        reads.run();
        assert_eq!(knows.table(2), reads.table(2));
    }
    assert!(damaged > 5_000);
    assert!(knows.rib.counters().attribute_cache_hits > 1_000);
}

/// IPv4 withdrawals beside an MP_REACH_NLRI: allowed, though nobody packs like this.
fn both_at_once(messages: &[Vec<u8>]) -> Vec<u8> {
    let v6 = &messages[1];
    let mut body = vec![0, 5, 32, 10, 0, 0, 1];
    body.extend_from_slice(&v6[2..]);
    body
}
