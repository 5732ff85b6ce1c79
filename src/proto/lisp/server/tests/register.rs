//! Map-Register: RFC 9301 §5.6, §5.7, §8.2.

use super::lab::*;
use crate::auth::{Algorithm, KeyChain, LispKey, Secret};
use crate::proto::lisp::server::*;
use crate::types::lisp::{MapVersion, NegativeAction};
use crate::wire::lisp::{Eid, EidRecord};

const NET: &str = "172.16.1.0/24";
const ZERO: InstanceId = InstanceId(0);

/// RFC 9301 §8.2: registered, told to the hall once, acknowledged to port 4342 with the same
/// nonce and IDs (§5.7).
#[test]
fn a_registration_is_acknowledged_and_a_refresh_says_nothing_new() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    assert_eq!(lab.events(), ["First 172.16.1.0/24 at 1 v0"]);
    let [notify] = &lab.notifies(&etr)[..] else { panic!("{:?}", lab.out) };
    assert_eq!((notify.nonce, notify.id), (etr.nonce, etr.id));
    assert_eq!(notify.records, [record(ZERO, NET, &["192.0.2.1"])]);

    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    assert!(lab.events().is_empty());
    assert_eq!(lab.notifies(&etr).len(), 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.2"])]);
    assert_eq!(lab.events(), ["Changed 172.16.1.0/24 at 1 v0"]);
    assert_eq!(lab.server.sizes().rloc_sets, 1, "the old one is gone");
}

/// RFC 9301 §5.6: without M there is no Map-Notify.
#[test]
fn without_the_m_bit_nothing_is_acknowledged() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut register = etr.register(&[record(ZERO, NET, &["192.0.2.1"])]);
    register.want_notify = false;
    lab.send_register(&etr, register);
    assert_eq!(lab.events().len(), 1);
    assert!(lab.notifies(&etr).is_empty());
}

/// RFC 9301 §5.7: a Map-Register that is sent again because its Map-Notify was lost gets another
/// Map-Notify and changes nothing; one with the same nonce and another content is a forgery.
#[test]
fn the_same_register_again_is_only_acknowledged_again() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let register = etr.register(&[record(ZERO, NET, &["192.0.2.1"])]);
    lab.send_register(&etr, register.clone());
    let stored = lab.stored.len();
    lab.send_register(&etr, register.clone());
    assert!(lab.events().is_empty());
    assert_eq!(lab.notifies(&etr).len(), 1);
    assert_eq!(lab.stored.len(), stored, "nothing new to write down");

    let mut other = register;
    other.records[0].rlocs = vec![rloc("192.0.2.9")];
    lab.send_register(&etr, other);
    assert_eq!(lab.refusals(), [Refusal::Replay]);
    assert!(lab.notifies(&etr).is_empty());
}

/// RFC 9301 §8.2: three minutes; with T the TTL of the record (§5.6).
#[test]
fn what_is_not_refreshed_ends() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    let mut register = etr.register(&[record(ZERO, "172.16.2.0/24", &["192.0.2.1"])]);
    register.use_ttl = true;
    lab.send_register(&etr, register);
    lab.wait(100);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    lab.wait(179);
    assert!(lab.events().is_empty());
    lab.wait(4);
    assert_eq!(lab.events(), ["Expired 172.16.1.0/24"]);
    lab.wait(600 - 283 - 1);
    assert!(lab.events().is_empty());
    lab.wait(4);
    assert_eq!(lab.events(), ["Expired 172.16.2.0/24"]);
    let sizes = lab.server.sizes();
    assert_eq!((sizes.eids, sizes.rloc_sets), (0, 0));
    assert_eq!(lab.server.poll_timeout(), None);
}

/// A TTL of 0 takes a registration back; who does not hold it cannot.
#[test]
fn only_the_holder_withdraws() {
    let mut lab = Lab::new();
    let (mut etr, mut other) = (Peer::etr(A, 1), Peer::etr(A, 2));
    let gone = EidRecord { ttl_min: 0, ..record(ZERO, NET, &["192.0.2.1"]) };
    lab.register(&mut etr, std::slice::from_ref(&gone));
    assert_eq!(lab.notifies(&etr).len(), 1, "it is not there, which is what was wanted");
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    lab.register(&mut other, std::slice::from_ref(&gone));
    assert!(lab.events().is_empty());
    assert_eq!(lab.notifies(&other).len(), 1, "it holds nothing, which is what it wants");
    assert_eq!(lab.server.sizes().eids, 1);
    lab.register(&mut etr, &[gone]);
    assert_eq!(lab.events(), ["Withdrawn 172.16.1.0/24 by 1"]);
    assert_eq!(lab.server.sizes().eids, 0);
}

/// RFC 9301 §8.2: only what is configured for the site; the rest of the message counts.
#[test]
fn prefixes_of_others_are_left_out() {
    let cases = [
        (ZERO, "172.16.0.0/16", true),
        (ZERO, "172.16.9.9/32", true),
        (ZERO, "172.17.1.0/24", false),
        (ZERO, "172.0.0.0/8", false),
        (InstanceId(3), "172.16.1.0/24", false),
        (MOBILE, "10.2.0.1/32", true),
        (ZERO, "10.2.0.1/32", false),
        (ZERO, "2001:db8:100::1/128", true),
        (ZERO, "2001:db8::/32", false),
    ];
    for (iid, text, allowed) in cases {
        let mut lab = Lab::new();
        let mut etr = Peer::etr(A, 1);
        let always = record(ZERO, "172.16.77.0/24", &["192.0.2.1"]);
        lab.register(&mut etr, &[record(iid, text, &["192.0.2.1"]), always.clone()]);
        let [notify] = &lab.notifies(&etr)[..] else { panic!("{text}") };
        assert_eq!(notify.records.len(), if allowed { 2 } else { 1 }, "{text}");
        assert_eq!(notify.records.last(), Some(&always));
        assert_eq!(lab.refusals().len(), usize::from(!allowed), "{text}");
        assert_eq!(lab.server.sizes().eids, if allowed { 2 } else { 1 }, "{text}");
    }
}

#[test]
fn more_specifics_are_accepted_only_where_configured() {
    let mut config = config();
    config.sites[0].accept_more_specifics = false;
    let mut lab = Lab::with(config);
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    assert_eq!(lab.refusals(), [Refusal::PrefixNotAllowed]);
    lab.register(&mut etr, &[record(ZERO, "172.16.0.0/16", &["192.0.2.1"])]);
    assert_eq!(lab.events().len(), 1);
}

/// What is not an IP prefix is refused, and nothing else of the message.
#[test]
fn other_kinds_of_eid_are_refused() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    // A name.
    let key = Eid::Other { mask_len: 0, octets: vec![0, 17, b'a', 0] };
    let first = record(ZERO, NET, &["192.0.2.1"]);
    lab.register(&mut etr, &[first.clone(), EidRecord { eid: key, ..first }]);
    assert_eq!(lab.refusals(), [Refusal::EidKind]);
    assert_eq!(lab.server.sizes().eids, 1);
    // 32 bits on the wire, 24 of them mean something.
    let beyond = record(InstanceId(1 << 24), "172.16.2.0/24", &["192.0.2.1"]);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"]), beyond]);
    assert_eq!(lab.refusals(), [Refusal::EidKind]);
    assert_eq!(lab.server.sizes().eids, 1);
}

/// RFC 9301 §5.6, a; RFC 8378: the locators of the xTRs of a site, while each registers them.
#[test]
fn merged_locators_come_and_go_with_their_xtrs() {
    let mut lab = Lab::new();
    let (mut one, mut two) = (Peer::etr(A, 1), Peer::etr(A, 2));
    let register = |peer: &mut Peer, addr: &str| {
        let mut register = peer.register(&[record(ZERO, NET, &[addr])]);
        register.merge = true;
        register
    };
    let message = register(&mut one, "192.0.2.2");
    lab.send_register(&one, message);
    let message = register(&mut two, "192.0.2.1");
    lab.send_register(&two, message);
    assert_eq!(lab.events(), ["Changed 172.16.1.0/24 at 1 v0"]);
    assert_eq!(addrs(&lab.notifies(&two)[0].records[0]), ["192.0.2.1", "192.0.2.2"]);
    assert!(lab.notifies(&one).is_empty(), "it has not moved");

    lab.wait(100);
    let message = register(&mut one, "192.0.2.2");
    lab.send_register(&one, message);
    assert!(lab.events().is_empty(), "a refresh");
    lab.wait(100);
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.1.1/32"), false)]);
    assert_eq!(addrs(&lab.reply()), ["192.0.2.2"], "the other one has timed out");

    let message = register(&mut two, "192.0.2.1");
    lab.send_register(&two, message);
    let mut gone = register(&mut one, "192.0.2.2");
    gone.records[0].ttl_min = 0;
    lab.send_register(&one, gone);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.1.1/32"), false)]);
    assert_eq!(addrs(&lab.reply()), ["192.0.2.1"]);
    let mut gone = register(&mut two, "192.0.2.1");
    gone.records[0].ttl_min = 0;
    lab.send_register(&two, gone);
    assert_eq!(lab.events(), ["Withdrawn 172.16.1.0/24 by 1"]);
    assert_eq!(lab.server.sizes().rloc_sets, 0);
}

/// Without leave to merge, or without the bit, the latest register counts alone.
#[test]
fn without_merging_the_latest_counts() {
    let mut config = config();
    config.sites[0].allow_merge = false;
    let mut lab = Lab::with(config);
    for (xtr, merge, addr) in [(1, true, "192.0.2.1"), (2, true, "192.0.2.2")] {
        let mut peer = Peer::etr(A, xtr);
        let mut register = peer.register(&[record(ZERO, NET, &[addr])]);
        register.merge = merge;
        lab.send_register(&peer, register);
    }
    lab.request(&mut Peer::itr(1), &[(eid(ZERO, "172.16.1.1/32"), false)]);
    assert_eq!(addrs(&lab.reply()), ["192.0.2.2"]);
}

/// RFC 9302 §7: what is older than known is not taken.
#[test]
fn an_older_version_is_refused() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    for (version, addr, refused) in [
        (4000, "192.0.2.1", false),
        (3999, "192.0.2.2", true),
        (4001, "192.0.2.3", false),
        (5, "192.0.2.4", false), // round the end of the numbers
        (4001, "192.0.2.3", true),
    ] {
        let version = MapVersion(version);
        lab.register(&mut etr, &[EidRecord { version, ..record(ZERO, NET, &[addr]) }]);
        let expected: &[Refusal] = if refused { &[Refusal::StaleVersion] } else { &[] };
        assert_eq!(lab.refusals(), expected, "{version:?}");
    }
}

/// The xTR that had an EID is told that it is elsewhere, until it says that it knows. Meanwhile
/// its own refreshes do not take the EID back; afterwards they do: it has come home.
#[test]
fn the_old_xtr_is_told_where_its_eid_has_gone() {
    let mut lab = Lab::new();
    let (mut old, mut new) = (Peer::etr(A, 1), Peer::etr(A, 2));
    let host = "172.16.1.7/32";
    lab.register(&mut old, &[record(ZERO, host, &["192.0.2.1"])]);
    lab.register(&mut new, &[record(ZERO, host, &["192.0.2.2"])]);
    let [moved] = &lab.notifies(&old)[..] else { panic!("{:?}", lab.out) };
    assert_eq!(addrs(&moved.records[0]), ["192.0.2.2"]);
    assert_eq!(moved.id, old.id);
    assert!(moved.nonce > 1 << 40);
    assert!(matches!(&lab.stored[..], [.., NonceRecord::Notify { until }] if *until > moved.nonce));

    lab.register(&mut old, &[record(ZERO, host, &["192.0.2.1"])]);
    assert_eq!(lab.refusals(), [Refusal::MovedAway]);
    // RFC 9301 §5.7: thrice at 3 s, then thrice at doubled intervals.
    let moved = moved.clone();
    let mut times = Vec::new();
    for second in 1..=120 {
        lab.wait(1);
        times.extend(lab.notifies(&old).iter().map(|again| {
            assert_eq!(*again, moved);
            second
        }));
    }
    assert_eq!(times, [3, 6, 9, 15, 27, 51]);
    assert_eq!(lab.server.counters().given_up, 1);

    lab.register(&mut old, &[record(ZERO, host, &["192.0.2.1"])]);
    assert_eq!(lab.events(), ["Changed 172.16.1.7/32 at 1 v0"]);
    let [moved] = &lab.notifies(&new)[..] else { panic!("{:?}", lab.out) };
    lab.ack(&new, &moved.clone());
    assert!(lab.refusals().is_empty());
    lab.wait(60);
    assert!(lab.notifies(&new).is_empty());
}

/// Our nonces only grow for the one who is told: what is sent again after something newer has a
/// newer nonce, or an xTR that looks for replays would never take it.
#[test]
fn what_is_told_again_is_not_a_replay() {
    let mut lab = Lab::new();
    let (mut old, mut new) = (Peer::etr(A, 1), Peer::etr(A, 2));
    let mut last = 0;
    for host in ["172.16.1.7/32", "172.16.1.8/32"] {
        lab.register(&mut old, &[record(ZERO, host, &["192.0.2.1"])]);
        lab.register(&mut new, &[record(ZERO, host, &["192.0.2.2"])]);
        let nonce = lab.notifies(&old)[0].nonce;
        assert!(nonce > last);
        last = nonce;
    }
    lab.wait(3);
    let again = lab.notifies(&old);
    assert_eq!(again.len(), 2);
    assert!(again.iter().any(|n| n.nonce > last));
    for notify in again {
        assert!(notify.nonce >= last);
        lab.ack(&old, &notify);
        assert!(lab.refusals().is_empty());
    }
}

/// Two ETRs of a site that register the same locators hold the EID together.
#[test]
fn the_same_from_another_xtr_of_the_site_is_a_refresh() {
    let mut lab = Lab::new();
    let (mut one, mut two) = (Peer::etr(A, 1), Peer::etr(A, 2));
    let both = record(ZERO, NET, &["192.0.2.1", "192.0.2.2"]);
    lab.register(&mut one, std::slice::from_ref(&both));
    lab.register(&mut two, &[both]);
    assert!(lab.events().is_empty());
    assert!(lab.notifies(&one).is_empty());
}

/// A mobile EID: the hall decides, its answer is what counts.
#[test]
fn a_mobile_eid_is_where_the_location_database_says() {
    let mut lab = Lab::new();
    let (mut a, mut b) = (Peer::etr(A, 1), Peer::etr(B, 1));
    let mut itr = Peer::itr(1);
    let host = "10.1.0.7/32";
    lab.register(&mut a, &[record(MOBILE, host, &["192.0.2.1"])]);
    assert_eq!(lab.events(), ["First 10.1.0.7/32 at 1 v0"]);
    lab.request(&mut itr, &[(eid(MOBILE, host), false)]);
    assert!(lab.reply().rlocs.is_empty(), "not before the hall has said so");
    lab.publish(host, Some(at(A, 1)));
    lab.request(&mut itr, &[(eid(MOBILE, host), false)]);
    assert_eq!(
        (addrs(&lab.reply()), lab.reply().version),
        (vec!["192.0.2.1".into()], MapVersion(1))
    );
    lab.register(&mut a, &[record(MOBILE, host, &["192.0.2.1"])]);
    assert!(lab.events().is_empty(), "a refresh");

    // It goes to B: first the register, then what the hall makes of it. A is told once.
    lab.register(&mut b, &[record(MOBILE, host, &["192.0.2.20", "192.0.2.21"])]);
    assert_eq!(lab.events(), ["Changed 10.1.0.7/32 at 2 v0"]);
    assert_eq!(lab.notifies(&a).len(), 1);
    lab.publish(host, Some(at(B, 2)));
    assert!(lab.notifies(&a).is_empty());
    lab.request(&mut itr, &[(eid(MOBILE, host), false)]);
    assert_eq!(addrs(&lab.reply()), ["192.0.2.20", "192.0.2.21"], "all that the ETR said");
    lab.register(&mut a, &[record(MOBILE, host, &["192.0.2.1"])]);
    assert_eq!(lab.refusals(), [Refusal::MovedAway]);
}

/// By another way than a Map-Register: the hall publishes, the ETR that still registers is told.
#[test]
fn a_mobile_eid_that_moves_without_a_register() {
    let mut lab = Lab::new();
    let mut a = Peer::etr(A, 1);
    let host = "10.1.0.7/32";
    let of_version = |version| EidRecord {
        version: MapVersion(version),
        ..record(MOBILE, host, &["192.0.2.1"])
    };
    lab.register(&mut a, &[of_version(1)]);
    lab.publish(host, Some(at(A, 1)));
    lab.publish(host, Some(at(B, 2)));
    let [moved] = &lab.notifies(&a)[..] else { panic!("{:?}", lab.out) };
    assert_eq!(
        (addrs(&moved.records[0]), moved.records[0].version),
        (vec!["192.0.2.2".into()], MapVersion(2))
    );
    lab.ack(&a, &moved.clone());
    // With a version it is known to be old, also long after.
    lab.register(&mut a, &[of_version(1)]);
    assert_eq!(lab.refusals(), [Refusal::StaleVersion]);
    assert_eq!(lab.notifies(&a).len(), 1, "told again");
    lab.register(&mut a, &[of_version(3)]);
    assert_eq!(lab.events(), ["Changed 10.1.0.7/32 at 1 v3"]);

    lab.wait(190);
    assert_eq!(lab.events(), ["Expired 10.1.0.7/32"]);
    assert_eq!(lab.server.sizes().eids, 1, "it is published still");
    lab.publish(host, None);
    assert_eq!(lab.server.sizes().eids, 0);
}

/// Without an xTR-ID: the site is found by the EID; the nonce grows for the whole site.
#[test]
fn a_register_without_ids_is_told_by_its_eid() {
    let mut config = config();
    for site in &mut config.sites {
        site.site_id = None;
    }
    let mut lab = Lab::with(config);
    let mut etr = Peer { id: None, ..Peer::etr(B, 1) };
    // Both sites may register this one: the key tells them apart.
    lab.register(&mut etr, &[record(MOBILE, "10.2.0.0/16", &["192.0.2.1"])]);
    assert_eq!(lab.events(), ["First 10.2.0.0/16 at 2 v0"]);
    let old = etr.register(&[record(MOBILE, "10.2.0.0/16", &["192.0.2.1"])]);
    lab.send_register(&etr, old.clone());
    assert!(lab.refusals().is_empty());
    lab.register(&mut etr, &[record(MOBILE, "10.2.0.0/16", &["192.0.2.2"])]);
    // The old one again, from another address.
    etr.addr = ip("192.0.2.99");
    lab.send_register(&etr, old);
    assert_eq!(lab.refusals(), [Refusal::Replay]);
}

/// The answer of a Map-Notify about an EID is as registered; a registered negative action has no
/// meaning without locators, and counts as a withdrawal.
#[test]
fn without_locators_is_withdrawn() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    let drop = EidRecord {
        action: NegativeAction::DropNoReason,
        rlocs: Vec::new(),
        ..record(ZERO, NET, &[])
    };
    lab.register(&mut etr, &[drop]);
    assert_eq!(lab.events(), ["Withdrawn 172.16.1.0/24 by 1"]);
}

/// The four steps of a change of keys: old; the server takes both; the ETR signs with the new one;
/// the server has forgotten the old one. Each answer is signed with the key of its question.
#[test]
fn a_key_is_changed_without_a_refused_registration() {
    let key = |secret: &str| LispKey::new(Secret::new(secret.into()), Algorithm::Sha256_128);
    let with = |keys: KeyChain| {
        let mut config = config();
        config.sites[0].keys = keys;
        config
    };
    let old = || KeyChain::new(1, key("old"));
    let both = || old().accept(2, key("new"));
    let new = || KeyChain::new(2, key("new"));
    let mut lab = Lab::with(with(old()));
    let mut etr = Peer { keys: old(), ..Peer::etr(A, 1) };
    let records = [record(InstanceId(0), "172.16.1.0/24", &["192.0.2.1"])];
    for (server, sender) in [(old(), old()), (both(), old()), (both(), new()), (new(), new())] {
        lab.restart(with(server));
        etr.keys = sender;
        lab.register(&mut etr, &records);
        assert_eq!(lab.refusals(), []);
        // Verified there with the sender's keys, of which there is one.
        assert_eq!(lab.notifies(&etr).len(), 1);
    }
    // What was heard while the old key was in use is worth nothing, before and after it is gone.
    let mut eavesdropper = Peer { keys: old(), nonce: 100, ..Peer::etr(A, 1) };
    lab.restart(with(both()));
    lab.register(&mut eavesdropper, &records);
    assert_eq!(lab.refusals(), [Refusal::Replay]);
    lab.restart(with(new()));
    lab.register(&mut eavesdropper, &records);
    assert_eq!(lab.refusals(), [Refusal::Authentication]);
}
