//! Best paths as the kernel, other rooms and people see them.

use super::lab::*;
use crate::proto::bgp::rib::PeerKind::Client;
use crate::proto::bgp::rib::*;
use crate::types::{Family, Prefix};
use crate::wire::bgp::Attributes;

fn drain(lab: &mut Lab, limit: usize) -> (Vec<(Prefix, Option<u16>)>, bool) {
    let mut seen = Vec::new();
    let more = lab.rib.drain_changes(ChangeReader::Mobility, limit, &mut |prefix, best| {
        seen.push((prefix, best.map(|b| b.peer.0)));
    });
    (seen, more)
}

#[test]
fn changes_are_listed_once_in_order_with_the_newest_state() {
    let mut lab = Lab::of(&[Client, Client]);
    let [a, b, c] = [p("10.0.0.1/32"), p("10.0.0.2/32"), p("10.0.0.3/32")];
    lab.say(1, &attributes(1), &[c], &[]);
    assert_eq!(drain(&mut lab, 9), (vec![], false), "nobody listens yet");
    lab.rib.enable_changes(ChangeReader::Mobility, true);
    assert_eq!(drain(&mut lab, 9), (vec![(c, Some(1))], false), "what is there comes first");

    lab.say(1, &attributes(1), &[b, a], &[]);
    let better = Attributes { local_pref: Some(300), ..attributes(2) };
    lab.say(2, &better, &[b], &[]);
    lab.say(1, &attributes(1), &[], &[a]);
    lab.run();
    assert_eq!(drain(&mut lab, 1), (vec![(b, Some(2))], true));
    assert_eq!(drain(&mut lab, 9), (vec![(a, None)], false));
    // Losing paths are no news.
    lab.say(1, &attributes(3), &[], &[b]);
    assert_eq!(drain(&mut lab, 9), (vec![], false));
    assert_eq!(lab.rib.counts(Family::Ipv4).prefixes, 2);

    lab.say(1, &attributes(1), &[], &[c]);
    lab.run();
    lab.rib.enable_changes(ChangeReader::Mobility, false);
    assert_eq!(lab.rib.counts(Family::Ipv4).prefixes, 1, "not kept for a reader that left");
}

/// RFC 4271 §9.1.2: a route to an unreachable next hop is not used; §9.1.2.2 e).
#[test]
fn next_hops_decide() {
    let mut lab = Lab::of(&[Client, Client, Client]);
    let x = p("10.0.0.1/32");
    lab.say(1, &attributes(1), &[x], &[]);
    lab.say(2, &attributes(2), &[x], &[]);
    let best = |lab: &Lab| lab.rib.find_best(x).map(|b| b.peer.0);
    assert_eq!(best(&lab), Some(1));
    let hop = |n| hop(Family::Ipv4, n).addr();
    lab.rib.set_next_hop_metrics(&[(hop(1), Some(20)), (hop(2), Some(10))]);
    assert_eq!(best(&lab), Some(2));
    lab.rib.set_next_hop_metrics(&[(hop(2), None)]);
    assert_eq!(best(&lab), Some(1));
    lab.rib.set_next_hop_metrics(&[(hop(1), None)]);
    assert_eq!(best(&lab), None);
    assert_eq!(lab.rib.find(x).unwrap().paths.len(), 2);
    lab.run();
    assert!(lab.table(3).is_empty());
    lab.rib.set_next_hop_metrics(&[(hop(2), Some(1))]);
    lab.run();
    assert_eq!(lab.table(3).len(), 1);
}

/// Removing a path that was not the best may change the best: it no longer strikes out by MED.
#[test]
fn a_loser_that_leaves_may_change_the_winner() {
    let mut lab = Lab::of(&[Client, Client, Client]);
    let x = p("10.0.0.1/32");
    let path =
        |asn, med, hop| Attributes { as_path: as_path(&[asn]), med: Some(med), ..attributes(hop) };
    let hop = |n| hop(Family::Ipv4, n).addr();
    lab.rib.set_next_hop_metrics(&[(hop(1), Some(10)), (hop(2), Some(30)), (hop(3), Some(20))]);
    lab.say(1, &path(64601, 10, 1), &[x], &[]);
    lab.say(2, &path(64601, 5, 2), &[x], &[]);
    lab.say(3, &path(64602, 0, 3), &[x], &[]);
    lab.run();
    assert_eq!(lab.rib.find_best(x).unwrap().peer, PeerId(3));
    let reasons: Vec<(u16, Reason)> =
        lab.rib.find(x).unwrap().paths.iter().map(|v| (v.peer.0, v.reason)).collect();
    assert_eq!(reasons[0], (3, Reason::NextHopMetric));
    assert!(reasons.contains(&(1, Reason::Med)) && reasons.contains(&(2, Reason::NextHopMetric)));

    lab.say(2, &attributes(2), &[], &[x]);
    lab.run();
    assert_eq!(lab.rib.find_best(x).unwrap().peer, PeerId(1));
    assert_eq!(lab.table(3).len(), 1);
    assert!(lab.table(1).is_empty());
}

#[test]
fn the_longest_usable_prefix_covers_an_address() {
    let mut lab = Lab::of(&[Client]);
    lab.say(1, &attributes(1), &[p("10.0.0.0/8"), p("0.0.0.0/0")], &[]);
    lab.say(1, &attributes(2), &[p("10.1.0.0/16")], &[]);
    let covering = |lab: &Lab, addr: &str| {
        lab.rib.find_covering(addr.parse().unwrap()).map(|r| r.prefix.to_string())
    };
    assert_eq!(covering(&lab, "10.1.2.3").as_deref(), Some("10.1.0.0/16"));
    assert_eq!(covering(&lab, "11.1.2.3").as_deref(), Some("0.0.0.0/0"));
    assert_eq!(covering(&lab, "2001:db8::1"), None);
    lab.rib.set_next_hop_metrics(&[(hop(Family::Ipv4, 2).addr(), None)]);
    assert_eq!(covering(&lab, "10.1.2.3").as_deref(), Some("10.0.0.0/8"));
}

#[test]
fn listings_are_paged_and_filtered() {
    let mut lab = Lab::of(&[Client, Client]);
    let all: Vec<Prefix> = (0..50_000).map(|n| Prefix::v4(0x0a00_0000 + n, 32).unwrap()).collect();
    lab.say(1, &attributes(1), &all, &[]);
    lab.say(2, &attributes(2), &all[..3], &[]);
    let mut seen = Vec::new();
    let mut cursor = Some(Cursor::default());
    while let Some(at) = cursor {
        let page = lab.rib.routes(Family::Ipv4, at, &RouteFilter::default(), 7_000);
        assert!(page.0.len() <= 7_000);
        seen.extend(page.0.iter().map(|r| r.prefix));
        cursor = page.1;
    }
    seen.sort();
    assert_eq!(seen, all);

    let of_two = RouteFilter { peer: Some(PeerId(2)), ..Default::default() };
    let (routes, next) = lab.rib.routes(Family::Ipv4, Cursor::default(), &of_two, 10);
    assert_eq!(routes.len(), 3);
    assert!(next.is_some(), "a page looks at a bounded number of prefixes");
    assert!(routes.iter().all(|r| r.paths.len() == 1 && !r.paths[0].best));
    let best =
        RouteFilter { best_only: true, within: Some(p("10.0.0.0/31")), ..Default::default() };
    let (routes, _) = lab.rib.routes(Family::Ipv4, Cursor::default(), &best, 10);
    assert_eq!(routes.len(), 2);
    assert_eq!(routes[0].paths[0].reason, Reason::RouterId);

    let counts = lab.rib.counts(Family::Ipv4);
    assert_eq!((counts.prefixes, counts.paths, counts.best), (50_000, 50_003, 50_000));
}
