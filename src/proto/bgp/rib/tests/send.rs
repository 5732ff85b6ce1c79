//! Packing, budgets, congestion, dumps and refreshes.

use super::lab::*;
use crate::proto::bgp::rib::PeerKind::Client;
use crate::proto::bgp::rib::*;
use crate::types::{Family, Prefix};
use crate::wire::bgp::{Attributes, RefreshKind};

fn hosts(count: u32) -> Vec<Prefix> {
    (0..count).map(|n| Prefix::v4(0x0a00_0000 + n, 32).unwrap()).collect()
}

/// 4096 octets hold some 800 host routes: 100,000 with 64 next hops need not much more than 128
/// messages, in whatever order they came.
#[test]
fn a_storm_is_packed_by_attributes() {
    let mut lab = Lab::of(&[Client, Client]);
    let all = hosts(100_000);
    for chunk in all.chunks(64) {
        for (number, prefix) in (0..).zip(chunk) {
            lab.say(1, &attributes(number), &[*prefix], &[]);
        }
    }
    lab.flush(usize::MAX);
    assert_eq!(lab.table(2).len(), 100_000);
    let messages = lab.routers[&PeerId(2)].messages;
    assert_eq!(messages, 2 * 64, "as few as there can be: 1563 prefixes of each next hop");

    lab.forget();
    lab.say(1, &attributes(0), &[], &all);
    lab.flush(usize::MAX);
    assert!(lab.table(2).is_empty());
    let messages = lab.routers[&PeerId(2)].messages;
    assert!(messages <= 125, "{messages} messages with withdrawals");
}

/// A new peer's dump is packed too, although prefixes of different next hops alternate in the
/// table.
#[test]
fn a_dump_is_packed_and_ends_with_end_of_rib() {
    let mut lab = Lab::of(&[Client]);
    for (at, prefix) in hosts(20_000).iter().enumerate() {
        lab.say(1, &attributes((at % 64) as u8), &[*prefix], &[]);
    }
    lab.run();
    lab.up(2, info(Client, 2));
    lab.run();
    assert!(lab.routers[&PeerId(2)].messages <= 2 * 64 + 2);
    let heard = lab.heard(2);
    assert_eq!(heard.len(), 20_002);
    let ends = [Heard::EndOfRib(Family::Ipv4), Heard::EndOfRib(Family::Ipv6)];
    let last_v4 = heard.iter().rposition(|h| matches!(h, Heard::Announce(..))).unwrap();
    let end_v4 = heard.iter().position(|h| *h == ends[0]).unwrap();
    assert!(last_v4 < end_v4, "End-of-RIB comes after everything");
    assert!(heard.contains(&ends[1]));
}

#[test]
fn the_budget_bounds_a_flush_and_nothing_is_lost() {
    let mut lab = Lab::of(&[Client, Client]);
    lab.say(1, &attributes(1), &hosts(1_000), &[]);
    lab.flush(100);
    assert_eq!(lab.table(2).len(), 100);
    lab.up(3, info(Client, 3));
    let mut flushes = 1;
    while lab.rib.has_pending() {
        let before = lab.table(2).len() + lab.table(3).len();
        lab.flush(100);
        flushes += 1;
        assert!(lab.table(2).len() + lab.table(3).len() <= before + 150);
    }
    assert!(flushes >= 10);
    assert_eq!((lab.table(2).len(), lab.table(3).len()), (1_000, 1_000));
}

/// Everything for the same peers goes out as few octet strings, which the members share.
#[test]
fn members_of_a_group_share_the_octets() {
    let mut lab = Lab::of(&[Client; 5]);
    lab.say(1, &attributes(1), &hosts(2_000), &[]);
    let mut sent = Vec::new();
    lab.rib.flush(usize::MAX, &mut |peer, octets| sent.push((peer, octets)));
    let peers: Vec<u16> = sent.iter().map(|(peer, _)| peer.0).collect();
    assert_eq!(peers, [2, 3, 4, 5]);
    assert!(sent.iter().all(|(_, octets)| octets.as_ptr() == sent[0].1.as_ptr()));
    assert_eq!(lab.rib.counters().updates_encoded, 3);
}

/// The backlog of a congested peer holds the newest state of each prefix, once.
#[test]
fn a_congested_peer_gets_the_newest_state_only() {
    let mut lab = Lab::of(&[Client, Client, Client]);
    let x = p("10.0.0.1/32");
    let gone = p("10.0.0.2/32");
    lab.say(1, &attributes(1), &[gone], &[]);
    lab.run();
    lab.forget();
    lab.rib.set_congested(PeerId(2), true);
    for number in 1..=50 {
        lab.say(1, &attributes(number), &[x], &[]);
        lab.run();
    }
    lab.say(1, &attributes(1), &[p("10.0.0.3/32")], &[gone]);
    lab.run();
    lab.say(1, &attributes(1), &[], &[p("10.0.0.3/32")]);
    lab.run();
    assert!(!lab.rib.has_pending(), "a congested peer has no claim on the flush");
    assert_eq!(lab.heard(2), []);
    assert_eq!(lab.heard(3).len(), 53);
    assert!(!lab.rib.in_sync(PeerId(2), Family::Ipv4));
    assert_eq!(lab.rib.counts(Family::Ipv4).prefixes, 3, "kept to be withdrawn");

    lab.rib.set_congested(PeerId(2), false);
    lab.run();
    let heard = lab.heard(2);
    assert!(
        matches!(&heard[..], [Heard::Announce(a, _), Heard::Withdraw(b)] if *a == x && *b == gone)
    );
    assert!(lab.rib.in_sync(PeerId(2), Family::Ipv4));
    assert_eq!(lab.rib.counts(Family::Ipv4).prefixes, 1);
    // It follows again.
    lab.say(1, &attributes(7), &[x], &[]);
    lab.run();
    assert_eq!(lab.heard(2).len(), 1);
}

/// RFC 2918; RFC 7313 §4: framed for a peer that knows it, after End-of-RIB if that is still due.
#[test]
fn a_refresh_repeats_everything() {
    let mut lab = Lab::of(&[Client]);
    lab.say(1, &attributes(1), &[p("10.0.0.1/32"), p("10.0.0.2/32")], &[]);
    lab.up(2, info(Client, 2));
    lab.up(3, PeerInfo { enhanced_refresh: true, ..info(Client, 3) });
    lab.run();
    lab.forget();
    lab.rib.handle_refresh(PeerId(2), Family::Ipv4);
    lab.rib.handle_refresh(PeerId(3), Family::Ipv4);
    lab.run();
    assert_eq!(lab.heard(2).len(), 2);
    let heard = lab.heard(3);
    assert_eq!(heard.len(), 4);
    assert_eq!(heard[0], Heard::Refresh(RefreshKind::Borr, Family::Ipv4));
    assert_eq!(heard[3], Heard::Refresh(RefreshKind::Eorr, Family::Ipv4));

    lab.up(4, PeerInfo { enhanced_refresh: true, ..info(Client, 4) });
    lab.rib.handle_refresh(PeerId(4), Family::Ipv4);
    lab.run();
    let heard: Vec<Heard> =
        lab.heard(4).into_iter().filter(|h| !matches!(h, Heard::EndOfRib(Family::Ipv6))).collect();
    let marks: Vec<usize> = [
        Heard::EndOfRib(Family::Ipv4),
        Heard::Refresh(RefreshKind::Borr, Family::Ipv4),
        Heard::Refresh(RefreshKind::Eorr, Family::Ipv4),
    ]
    .iter()
    .map(|mark| heard.iter().position(|h| h == mark).unwrap())
    .collect();
    assert_eq!(marks, [2, 3, 6]);
}

/// However often a peer asks meanwhile, it is answered once more.
#[test]
fn refresh_requests_do_not_pile_up() {
    let mut lab = Lab::of(&[Client, Client]);
    let all = hosts(100);
    lab.say(1, &attributes(1), &all, &[]);
    lab.run();
    lab.forget();
    for _ in 0..20 {
        lab.rib.handle_refresh(PeerId(2), Family::Ipv4);
        lab.flush(4);
    }
    lab.run();
    assert_eq!(lab.heard(2).len(), 2 * all.len());
}

/// RFC 8654 §4: what does not fit a peer's messages is withdrawn from it, and others still get it.
#[test]
fn a_route_that_does_not_fit_is_withdrawn() {
    let mut lab = Lab::new();
    for number in 1..=3 {
        let mut i = info(Client, number);
        i.negotiated.max_len = if number == 3 { 4096 } else { 65535 };
        lab.up(number.into(), i);
    }
    lab.run();
    let x = p("10.0.0.1/32");
    lab.say(1, &attributes(1), &[x], &[]);
    lab.run();
    assert_eq!(lab.table(3).len(), 1);
    let long = Attributes { communities: (0..1_100).collect(), ..attributes(1) };
    lab.say(1, &long, &[x], &[]);
    lab.run();
    assert_eq!(lab.table(2)[&x].communities.len(), 1_100);
    assert!(lab.table(3).is_empty());
    assert_eq!(lab.rib.counters().too_long, 1);
}

/// A peer without 4-octet AS numbers is a group of its own (RFC 6793 §4.2).
#[test]
fn groups_differ_by_encoding() {
    let mut lab = Lab::of(&[Client, Client]);
    let mut old = info(Client, 3);
    old.negotiated.four_octet_as = false;
    lab.up(3, old);
    lab.run();
    let a = Attributes { as_path: as_path(&[4_200_000_001]), ..attributes(1) };
    lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
    lab.run();
    for number in 2..=3 {
        assert_eq!(lab.table(number)[&p("10.0.0.1/32")].as_path, a.as_path);
    }
}
