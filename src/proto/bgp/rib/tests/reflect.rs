//! RFC 4456 and the export rules of RFC 4271 §5.1.

use super::lab::*;
use crate::proto::bgp::rib::PeerKind::{Client, External, NonClient};
use crate::proto::bgp::rib::*;
use crate::types::Family;
use crate::wire::bgp::attributes::{NO_ADVERTISE, NO_EXPORT};
use crate::wire::bgp::{Attributes, Origin, RawAttribute};

/// RFC 4456 §6: from each kind to each kind.
#[test]
fn who_is_told_what_comes_from_whom() {
    let rows = [
        (Client, [true, true, true]),
        (NonClient, [true, false, true]),
        (External, [true, true, true]),
    ];
    for (from, told) in rows {
        // Peer 1 speaks, 2 to 4 listen.
        let mut lab = Lab::of(&[from, Client, NonClient, External]);
        let mut a = attributes(9);
        if from == External {
            a.local_pref = None;
            a.as_path = as_path(&[65101]);
        }
        lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
        lab.run();
        let heard: Vec<bool> = (2..=4).map(|n| !lab.heard(n).is_empty()).collect();
        assert_eq!(heard, told, "from {from:?}");
        assert_eq!(lab.heard(1), [], "never back to the source");
    }
    let mut lab = Lab::of(&[Client, NonClient, External]);
    assert!(lab.rib.originate(p("10.0.0.1/32"), Attributes::local(hop(Family::Ipv4, 1))));
    lab.run();
    assert!((1..=3).all(|n| lab.heard(n).len() == 1), "our own go to all");
}

/// RFC 4456 §8, §10: ORIGINATOR_ID and CLUSTER_LIST are added, nothing else is changed.
#[test]
fn a_reflected_route_is_marked_and_otherwise_unchanged() {
    let mut lab = Lab::of(&[Client, Client]);
    let a = Attributes {
        med: Some(7),
        as_path: as_path(&[64600]),
        communities: vec![NO_EXPORT, 1],
        origin: Origin::Egp,
        ..attributes(9)
    };
    lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
    lab.run();
    let marked =
        Attributes { originator_id: Some(addr(1)), cluster_list: vec![CLUSTER_ID], ..a.clone() };
    assert_eq!(lab.heard(2), [Heard::Announce(p("10.0.0.1/32"), marked.into())]);

    // Reflected before: the originator stays, our cluster goes in front.
    let again = Attributes { originator_id: Some(addr(99)), cluster_list: vec![addr(98)], ..a };
    lab.say(1, &again, &[p("10.0.0.2/32")], &[]);
    lab.run();
    let marked = Attributes { cluster_list: vec![CLUSTER_ID, addr(98)], ..again };
    assert_eq!(lab.heard(2), [Heard::Announce(p("10.0.0.2/32"), marked.into())]);
}

/// RFC 4456 §8, RFC 4271 §9.1.2: what has been here is refused, and takes the place of what was
/// said before.
#[test]
fn loops_are_refused_and_counted() {
    let mut lab = Lab::of(&[Client, Client]);
    let loops = [
        Attributes { originator_id: Some(ROUTER_ID), ..attributes(9) },
        Attributes { cluster_list: vec![addr(1), CLUSTER_ID], ..attributes(9) },
        Attributes { as_path: as_path(&[64600, LOCAL_AS]), ..attributes(9) },
    ];
    for a in &loops {
        lab.say(1, &attributes(9), &[p("10.0.0.1/32")], &[]);
        lab.run();
        assert_eq!(lab.table(2).len(), 1);
        assert_eq!(lab.say(1, a, &[p("10.0.0.1/32")], &[]).looped, 1);
        lab.run();
        assert_eq!(lab.table(2).len(), 0);
        assert_eq!(lab.rib.peer_paths(PeerId(1), Family::Ipv4), 0);
    }
    let c = lab.rib.counters();
    assert_eq!((c.looped_originator, c.looped_cluster, c.looped_as_path), (1, 1, 1));
}

/// RFC 4271 §5.1.2, §5.1.3, §5.1.4, §5.1.5.
#[test]
fn an_external_peer_gets_our_as_our_next_hop_and_nothing_internal() {
    let mut lab = Lab::of(&[Client, External]);
    let a = Attributes {
        med: Some(7),
        as_path: as_path(&[64600]),
        originator_id: Some(addr(9)),
        cluster_list: vec![addr(8)],
        ..attributes(9)
    };
    lab.say(1, &a, &[p("10.0.0.1/32"), p("2001:db8::1/128")], &[]);
    let v6 = Attributes { next_hop: hop(Family::Ipv6, 9), ..a.clone() };
    lab.say(1, &v6, &[p("2001:db8::1/128")], &[]);
    lab.run();
    let out = Attributes {
        as_path: as_path(&[LOCAL_AS, 64600]),
        next_hop: addr(250).into_next_hop(),
        ..Attributes::local(a.next_hop)
    };
    let own_v6 = std::net::IpAddr::V6("2001:db8::250".parse().unwrap());
    let out_v6 = Attributes { next_hop: own_v6.into(), ..out.clone() };
    assert_eq!(lab.table(2)[&p("10.0.0.1/32")], out);
    assert_eq!(lab.table(2)[&p("2001:db8::1/128")], out_v6);
}

trait IntoNextHop {
    fn into_next_hop(self) -> crate::wire::bgp::NextHop;
}

impl IntoNextHop for std::net::Ipv4Addr {
    fn into_next_hop(self) -> crate::wire::bgp::NextHop {
        std::net::IpAddr::V4(self).into()
    }
}

/// RFC 4271 §5.1.3: a third-party next hop of our own routes is ours to choose.
#[test]
fn own_routes_keep_their_next_hop_and_med_also_outside() {
    let mut lab = Lab::of(&[External]);
    let a = Attributes { med: Some(3), ..Attributes::local(hop(Family::Ipv4, 5)) };
    lab.rib.originate(p("10.0.0.1/32"), a.clone());
    lab.run();
    let out = Attributes { as_path: as_path(&[LOCAL_AS]), ..a };
    assert_eq!(lab.heard(1), [Heard::Announce(p("10.0.0.1/32"), out.into())]);
}

/// RFC 1997.
#[test]
fn well_known_communities_are_honoured() {
    for (community, told) in [(NO_EXPORT, [true, false]), (NO_ADVERTISE, [false, false])] {
        let mut lab = Lab::of(&[Client, Client, External]);
        let a = Attributes { communities: vec![community], ..attributes(9) };
        lab.say(1, &attributes(9), &[p("10.0.0.1/32")], &[]);
        lab.run();
        lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
        lab.run();
        let has: Vec<bool> = (2..=3).map(|n| !lab.table(n).is_empty()).collect();
        assert_eq!(has, told, "{community:x}");
    }
}

#[test]
fn an_external_route_gets_a_preference_and_by_policy_our_next_hop() {
    let mut lab = Lab::of(&[External, Client]);
    let mut own_hop = info(Client, 3);
    own_hop.export.next_hop_self = true;
    lab.up(3, own_hop);
    lab.run();
    let a =
        Attributes { as_path: as_path(&[65101]), med: Some(4), local_pref: None, ..attributes(9) };
    lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
    lab.run();
    let inside = Attributes { local_pref: Some(100), ..a };
    assert_eq!(lab.table(2)[&p("10.0.0.1/32")], inside);
    let own = Attributes { next_hop: addr(250).into_next_hop(), ..inside };
    assert_eq!(lab.table(3)[&p("10.0.0.1/32")], own);
}

/// RFC 4271 §9: what we do not know goes on when it is transitive, and is marked.
#[test]
fn unknown_transitive_attributes_pass() {
    let mut lab = Lab::of(&[Client, Client]);
    let unknown = |flags| RawAttribute { flags, code: 200, value: vec![1, 2] };
    let a = Attributes { unknown: vec![unknown(0xe0)], ..attributes(9) };
    lab.say(1, &a, &[p("10.0.0.1/32")], &[]);
    lab.run();
    assert_eq!(lab.table(2)[&p("10.0.0.1/32")].unknown, [unknown(0xe0)]);
}

/// A node moves between two clients and back: exactly these messages.
#[test]
fn a_moving_prefix_is_told_to_each_client_exactly() {
    let x = p("10.0.0.1/32");
    let mut lab = Lab::of(&[Client, Client, Client]);
    let claim = |anchor: u8, generation: u32| Attributes {
        local_pref: Some(1_000_000 + generation),
        ..attributes(anchor)
    };
    let as_told = |anchor: u8, generation: u32| {
        let marked = Attributes {
            originator_id: Some(addr(anchor)),
            cluster_list: vec![CLUSTER_ID],
            ..claim(anchor, generation)
        };
        Heard::Announce(x, marked.into())
    };
    lab.say(1, &claim(1, 1), &[x], &[]);
    lab.run();
    assert_eq!(lab.heard(1), []);
    assert_eq!(lab.heard(2), [as_told(1, 1)]);
    assert_eq!(lab.heard(3), [as_told(1, 1)]);

    // It moves to 2. Peer 2 is no longer told the way to 1; peer 1 learns where the node went.
    lab.say(2, &claim(2, 2), &[x], &[]);
    lab.run();
    assert_eq!(lab.heard(1), [as_told(2, 2)]);
    assert_eq!(lab.heard(2), [Heard::Withdraw(x)]);
    assert_eq!(lab.heard(3), [as_told(2, 2)]);

    // The late withdrawal of the former anchor changes nothing for anybody.
    lab.say(1, &claim(1, 1), &[], &[x]);
    lab.run();
    assert!((1..=3).all(|n| lab.heard(n).is_empty()));

    // Back to 1.
    lab.say(1, &claim(1, 3), &[x], &[]);
    lab.say(2, &claim(2, 2), &[], &[x]);
    lab.run();
    assert_eq!(lab.heard(1), [Heard::Withdraw(x)]);
    assert_eq!(lab.heard(2), [as_told(1, 3)]);
    assert_eq!(lab.heard(3), [as_told(1, 3)]);

    // To and fro within one batch is nothing at all.
    lab.say(2, &claim(2, 4), &[x], &[]);
    lab.say(2, &claim(2, 4), &[], &[x]);
    lab.run();
    assert!((1..=3).all(|n| lab.heard(n).is_empty()));

    lab.say(1, &claim(1, 3), &[], &[x]);
    lab.run();
    assert_eq!(lab.heard(1), []);
    assert_eq!(lab.heard(2), [Heard::Withdraw(x)]);
    assert_eq!(lab.rib.counts(Family::Ipv4), FamilyCounts::default());
}

/// RFC 8950: an IPv6 next hop goes to those only that can read it.
#[test]
fn ipv4_with_an_ipv6_next_hop_needs_the_capability() {
    let mut lab = Lab::new();
    for number in 1..=3 {
        let mut i = info(Client, number);
        i.negotiated.extended_next_hop_v4 = number != 3;
        lab.up(number.into(), i);
    }
    lab.run();
    let a = Attributes { next_hop: hop(Family::Ipv6, 9), ..attributes(9) };
    assert_eq!(lab.say(1, &a, &[p("10.0.0.1/32")], &[]).announced, 1);
    lab.run();
    assert_eq!(lab.table(2)[&p("10.0.0.1/32")].next_hop, hop(Family::Ipv6, 9));
    assert!(lab.table(3).is_empty());
}
