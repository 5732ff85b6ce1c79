//! Map-Request: RFC 9301 §5.2 to §5.5, §8.3, §8.4.

use std::net::SocketAddr;

use super::lab::*;
use crate::proto::lisp::server::*;
use crate::types::lisp::NegativeAction;
use crate::wire::lisp::{Eid, RlocAddress};

const ZERO: InstanceId = InstanceId(0);

fn lab_with(registered: &[&str]) -> Lab {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let records: Vec<_> = registered.iter().map(|p| record(ZERO, p, &["192.0.2.1"])).collect();
    lab.register(&mut etr, &records);
    lab
}

/// RFC 9301 §5.4, §8.3: what is registered with P is answered, not authoritatively, to the
/// ITR-RLOC and the port that the request came from inside.
#[test]
fn a_proxy_reply_has_what_was_registered() {
    let mut lab = lab_with(&["172.16.1.7/32"]);
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.1.7/32"), false)]);
    let [(to, reply)] = &lab.replies()[..] else { panic!("{:?}", lab.out) };
    assert_eq!(*to, SocketAddr::new(itr.addr, 50_000));
    assert_eq!(reply.nonce, itr.nonce);
    let record = lab.reply();
    assert_eq!((named(&record), record.ttl_min), ("0 172.16.1.7/32".into(), 10));
    assert!(!record.authoritative);
    assert!(!record.rlocs[0].local && record.rlocs[0].reachable);
}

/// RFC 9301 §8.3, §8.4: the longest match; an aggregate is narrowed to the largest prefix round
/// the EID with nothing else in it; what is not there, likewise, with its TTL.
#[test]
fn what_is_said_covers_nothing_else() {
    let lab =
        &mut lab_with(&["172.16.0.0/17", "172.16.8.0/24", "172.16.8.128/25", "172.16.32.5/32"]);
    let cases = [
        // Inside the aggregate: bounded by 172.16.8.0/24 and 172.16.32.5/32.
        ("172.16.0.1/32", "172.16.0.0/21", 10, 1),
        ("172.16.64.1/32", "172.16.64.0/18", 10, 1),
        ("172.16.32.4/32", "172.16.32.4/32", 10, 1),
        ("172.16.32.6/32", "172.16.32.6/31", 10, 1),
        ("172.16.8.1/32", "172.16.8.0/25", 10, 1),
        ("172.16.8.200/32", "172.16.8.128/25", 10, 1),
        // A prefix is asked for: the part of it round its first address.
        ("172.16.8.0/24", "172.16.8.0/25", 10, 1),
        ("172.16.0.0/20", "172.16.0.0/21", 10, 1),
        ("172.16.16.0/24", "172.16.16.0/20", 10, 1),
        // Configured, not registered: one minute, within what is configured.
        ("172.16.200.1/32", "172.16.128.0/17", 1, 0),
        ("172.17.3.3/32", "172.17.0.0/16", 1, 0),
        // Outside of everything: 15 minutes, without what is configured beside it.
        ("172.18.0.1/32", "172.18.0.0/15", 15, 0),
        ("9.0.0.1/32", "0.0.0.0/1", 15, 0),
        ("224.0.0.1/32", "192.0.0.0/2", 15, 0),
        ("2001:db8:200::1/128", "2001:db8:200::/39", 15, 0),
        ("4001::1/128", "4000::/2", 15, 0),
    ];
    for (asked, answered, ttl_min, rlocs) in cases {
        lab.request(&mut Peer::itr(1), &[(eid(ZERO, asked), false)]);
        let record = lab.reply();
        assert_eq!(named(&record), format!("0 {answered}"), "{asked}");
        assert_eq!((record.ttl_min, record.rlocs.len()), (ttl_min, rlocs), "{asked}");
        if rlocs == 0 {
            assert_eq!(record.action, NegativeAction::NativelyForward);
        }
    }
}

/// Another instance is another space.
#[test]
fn an_instance_that_is_not_known_is_empty() {
    let mut lab = lab_with(&["172.16.1.7/32"]);
    lab.request(&mut Peer::itr(1), &[(eid(InstanceId(99), "172.16.1.7/32"), false)]);
    assert_eq!(named(&lab.reply()), "99 0.0.0.0/0");
    assert_eq!(lab.reply().ttl_min, 15);
}

/// The narrowing is exact: against a search of all prefixes round an address.
#[test]
fn narrowing_agrees_with_a_search() {
    let mut state = 7_u32;
    let mut next = |bits: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> (32 - bits)
    };
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut all: Vec<Prefix> = Vec::new();
    for _ in 0..60 {
        let (addr, len) = (0xac10_0000 | next(16), 17 + u8::try_from(next(4)).unwrap());
        all.push(Prefix::v4(addr, len).unwrap());
    }
    for chunk in all.chunks(10) {
        let records: Vec<_> =
            chunk.iter().map(|p| record(ZERO, &p.to_string(), &["192.0.2.1"])).collect();
        lab.register(&mut etr, &records);
    }
    for _ in 0..500 {
        let host = Prefix::v4(0xac10_0000 | next(16), 32).unwrap();
        lab.request(&mut Peer::itr(1), &[(eid(ZERO, &host.to_string()), false)]);
        let within = all.iter().filter(|p| p.contains(host)).max_by_key(|p| p.len());
        let site = prefix("172.16.0.0/16");
        let bound = within.copied().unwrap_or(site);
        let expected = (bound.len()..=32)
            .map(|len| Prefix::new(host.addr(), len).unwrap())
            .find(|p| all.iter().all(|o| !p.contains(*o) || Some(o) == within))
            .unwrap();
        assert_eq!(named(&lab.reply()), format!("0 {expected}"), "{host}");
        assert_eq!(lab.reply().rlocs.len(), usize::from(within.is_some()));
    }
}

/// Mobile and other EIDs narrow the pool's aggregate alike.
#[test]
fn hosts_that_are_away_are_cut_out_of_their_pool() {
    let mut lab = Lab::new();
    let mut home = Peer::etr(A, 1);
    lab.register(&mut home, &[record(MOBILE, "10.1.0.0/16", &["192.0.2.1"])]);
    lab.publish("10.1.0.7/32", Some(at(B, 2)));
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.7/32"), false)]);
    assert_eq!((addrs(&lab.reply()), lab.reply().ttl_min), (vec!["192.0.2.2".into()], 3));
    lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.6/32"), false)]);
    assert_eq!(
        (named(&lab.reply()), addrs(&lab.reply())),
        ("7 10.1.0.6/32".into(), vec!["192.0.2.1".into()])
    );
    lab.publish("10.1.0.7/32", None);
    lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.7/32"), false)]);
    assert_eq!(named(&lab.reply()), "7 10.1.0.0/16");
}

/// RFC 9301 §8.3: without proxy replies the request goes on to the ETR, unchanged.
#[test]
fn without_p_the_request_goes_to_the_etr() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut register = etr.register(&[record(ZERO, "172.16.1.0/24", &["203.0.113.1"])]);
    register.proxy_reply = false;
    lab.send_register(&etr, register);
    let mut itr = Peer::itr(1);
    let request = itr.request(&[(eid(ZERO, "172.16.1.1/32"), false)]);
    lab.send_request(&itr, &request);
    let [(to, ecm)] = &lab.forwarded()[..] else { panic!("{:?}", lab.out) };
    assert_eq!(*to, "203.0.113.1:4342".parse().unwrap());
    assert_eq!(ecm.source, (itr.addr, 50_000));
    assert_eq!(ecm.destination, (ip("172.16.1.1"), 4342));
    assert_eq!(Message::decode(&ecm.message), Ok(Message::MapRequest(request.clone())));
    assert!(lab.replies().is_empty());

    // One that came bare has a header made for it.
    let mut octets = Vec::new();
    Message::MapRequest(request).encode(&mut octets);
    lab.receive(itr.from(), &octets);
    let [(_, ecm)] = &lab.forwarded()[..] else { panic!("{:?}", lab.out) };
    assert_eq!((ecm.source.1, ecm.destination.0), (40_000, ip("172.16.1.1")));
    assert_eq!(ecm.message, octets);
}

/// A site can have proxy replies always; A asks for the ETR's own word where it is not so.
#[test]
fn who_answers_is_as_configured_and_asked() {
    for (forced, p, authoritative, forwards) in [
        (false, true, false, false),
        (false, true, true, true),
        (false, false, false, true),
        (true, false, false, false),
        (true, false, true, false),
    ] {
        let mut config = config();
        config.sites[0].proxy_reply = if forced { ProxyReply::Forced } else { ProxyReply::AsAsked };
        let mut lab = Lab::with(config);
        let mut etr = Peer::etr(A, 1);
        let mut register = etr.register(&[record(ZERO, "172.16.1.0/24", &["203.0.113.1"])]);
        register.proxy_reply = p;
        lab.send_register(&etr, register);
        let mut itr = Peer::itr(1);
        let mut request = itr.request(&[(eid(ZERO, "172.16.1.1/32"), false)]);
        request.authoritative = authoritative;
        lab.send_request(&itr, &request);
        assert_eq!(lab.forwarded().len(), usize::from(forwards));
        assert_eq!(lab.replies().len(), usize::from(!forwards));
    }
}

/// RFC 9301 §5.2: an ITR-RLOC of the family that the request came by; none: dropped.
#[test]
fn the_itr_rloc_is_chosen_by_family() {
    let rlocs = |texts: &[&str]| -> Vec<RlocAddress> {
        texts
            .iter()
            .map(|t| if *t == "-" { RlocAddress::None } else { RlocAddress::Ip(ip(t)) })
            .collect()
    };
    let cases: [(&[&str], &str, Option<&str>); 5] = [
        (&["2001:db8::9", "198.51.100.9"], "198.51.100.1", Some("198.51.100.9")),
        (&["198.51.100.9", "2001:db8::9"], "2001:db8::1", Some("2001:db8::9")),
        (&["198.51.100.9"], "2001:db8::1", Some("198.51.100.9")),
        (&["-", "198.51.100.9"], "198.51.100.1", Some("198.51.100.9")),
        (&["-"], "198.51.100.1", None),
    ];
    for (listed, from, expected) in cases {
        let mut lab = lab_with(&["172.16.1.0/24"]);
        let mut itr = Peer { addr: ip(from), ..Peer::itr(1) };
        let mut request = itr.request(&[(eid(ZERO, "172.16.1.1/32"), false)]);
        request.itr_rlocs = rlocs(listed);
        let mut octets = Vec::new();
        Message::MapRequest(request).encode(&mut octets);
        lab.receive(itr.from(), &octets);
        let to: Vec<_> = lab.replies().iter().map(|(to, _)| *to).collect();
        assert_eq!(to, expected.map(|e| SocketAddr::new(ip(e), 40_000)).as_slice(), "{listed:?}");
        if expected.is_none() {
            assert_eq!(lab.refusals(), [Refusal::ItrRloc]);
        }
    }
}

/// RFC 9301 §5.8: probes are for ETRs; SMRs are for ITRs; with D nothing is answered (§6.1).
#[test]
fn bits_that_keep_a_request_from_being_answered() {
    let mut lab = lab_with(&["172.16.1.0/24"]);
    let mut itr = Peer::itr(1);
    let mut ask = |set: fn(&mut crate::wire::lisp::MapRequest)| {
        let mut request = itr.request(&[(eid(ZERO, "172.16.1.1/32"), false)]);
        set(&mut request);
        lab.send_request(&itr, &request);
        (lab.replies().len(), lab.refusals())
    };
    assert_eq!(ask(|r| r.probe = true), (0, vec![Refusal::Probe]));
    assert_eq!(ask(|r| r.smr = true), (0, vec![Refusal::Solicit]));
    assert_eq!(ask(|r| r.dont_reply = true), (0, vec![]));
    assert_eq!(ask(|r| r.smr_invoked = true), (1, vec![]));
    assert_eq!(ask(|r| r.pitr = true), (1, vec![]));
}

/// Several records are answered in one reply, up to a limit; other kinds are left out.
#[test]
fn a_request_of_many_records_has_one_reply() {
    let mut lab = lab_with(&["172.16.1.0/24"]);
    let mut itr = Peer::itr(1);
    let ask: Vec<_> = (0..20).map(|i| (eid(ZERO, &format!("172.16.1.{i}/32")), false)).collect();
    lab.request(&mut itr, &ask);
    assert_eq!(lab.replies()[0].1.records.len(), 16);
    assert_eq!(lab.refusals(), [Refusal::Records]);
    lab.request(&mut itr, &[(Eid::None, false), ask[0].clone()]);
    assert_eq!(lab.replies()[0].1.records.len(), 1);
    assert_eq!(lab.refusals(), [Refusal::EidKind]);
}

/// RFC 9301 §8.3: policy.
#[test]
fn what_is_denied_is_dropped_by_policy() {
    let mut config = config();
    config.denied = vec![(ZERO, prefix("172.16.1.0/25"))];
    let mut lab = Lab::with(config);
    lab.register(&mut Peer::etr(A, 1), &[record(ZERO, "172.16.1.0/24", &["192.0.2.1"])]);
    lab.request(&mut Peer::itr(1), &[(eid(ZERO, "172.16.1.1/32"), false)]);
    assert_eq!(lab.reply().action, NegativeAction::DropPolicyDenied);
    assert_eq!(named(&lab.reply()), "0 172.16.1.0/25");
    lab.request(&mut Peer::itr(1), &[(eid(ZERO, "172.16.1.129/32"), false)]);
    assert_eq!(lab.reply().rlocs.len(), 1);
}

/// RFC 9301 §5.3, §9: rates, per source and per EID.
#[test]
fn too_many_requests_are_dropped() {
    let rate = Some(Rate { burst: 5, per_second: 1 });
    for (source, of_eid) in [(rate, None), (None, rate)] {
        let mut config = config();
        config.limits.requests_per_source = source;
        config.limits.requests_per_eid = of_eid;
        let mut lab = Lab::with(config);
        let mut itr = Peer::itr(1);
        let mut answered = 0;
        for _ in 0..20 {
            lab.request(&mut itr, &[(eid(ZERO, "172.16.1.1/32"), false)]);
            answered += lab.replies().len();
        }
        assert_eq!(answered, 5);
        lab.wait(2);
        lab.request(&mut itr, &[(eid(ZERO, "172.16.1.1/32"), false)]);
        assert_eq!(lab.replies().len(), 1);
    }
}

/// RFC 9301 §8.3: replies and notifies are not for a Map-Server, wrapped or not.
#[test]
fn other_messages_are_refused() {
    let mut lab = Lab::new();
    let itr = Peer::itr(1);
    let reply = crate::wire::lisp::MapReply {
        probe: false,
        echo_nonce: false,
        nonce: 1,
        records: Vec::new(),
        security: None,
    };
    let mut octets = Vec::new();
    Message::MapReply(reply).encode(&mut octets);
    lab.receive(itr.from(), &octets);
    assert_eq!(lab.refusals(), [Refusal::NotForUs]);
    for (inner, reason) in [(octets, Refusal::NotForUs), (vec![0x10, 0, 0], Refusal::Malformed)] {
        let ecm = crate::wire::lisp::Ecm {
            ddt: false,
            security: None,
            source: (itr.addr, 4342),
            destination: (itr.addr, 4342),
            message: inner,
        };
        let mut octets = Vec::new();
        Message::Ecm(ecm).encode(&mut octets);
        lab.receive(itr.from(), &octets);
        assert_eq!(lab.refusals(), [reason]);
    }
}

/// What was registered before a restart is registered again within a minute. Meanwhile a "no" would
/// stop traffic for its TTL, and replace what is known from before.
#[test]
fn so_soon_after_the_start_nothing_is_denied_that_a_site_should_have() {
    let lab = &mut lab_with(&["172.16.1.7/32"]);
    lab.restart(ServerConfig { warm_up: std::time::Duration::from_secs(65), ..config() });
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.1.7/32"), false)]);
    assert!(lab.replies().is_empty(), "of a site, and not registered yet: {:?}", lab.out);
    assert_eq!(lab.refusals(), [Refusal::WarmingUp]);
    lab.request(&mut itr, &[(eid(ZERO, "9.0.0.1/32"), false)]);
    assert_eq!(lab.replies().len(), 1, "of nobody");
    lab.wait(66);
    lab.request(&mut itr, &[(eid(ZERO, "172.16.1.7/32"), false)]);
    assert_eq!(lab.replies().len(), 1);
}
