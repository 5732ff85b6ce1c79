//! What is forged, replayed or not allowed: ten thousand of each, none accepted, before and after
//! a restart.

use std::net::{IpAddr, SocketAddr};

use super::lab::*;
use crate::proto::lisp::server::*;
use crate::types::lisp::SiteId;
use crate::wire::lisp::{MapNotify, RlocAddress};

const MANY: u32 = 10_000;
const ZERO: InstanceId = InstanceId(0);
const NET: &str = "172.16.1.0/24";

/// A fixed sequence of numbers.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self, below: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % below as u64).unwrap()
    }
}

/// Nothing of the tables has changed, and nothing but refusals has come out.
fn untouched(lab: &Lab) {
    let harmless = |o: &Output| matches!(o, Output::Refused { .. });
    assert!(lab.out.iter().all(harmless), "{:?}", lab.out);
}

/// RFC 9301 §5.6, §9.
#[test]
fn registers_that_are_forged_are_refused() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    let mut sequence = Sequence(1);
    for restarted in [false, true] {
        if restarted {
            lab.restart(config());
        }
        let before = lab.server.sizes();
        for i in 0..MANY {
            let mut octets = match i % 3 {
                // Another key: nobody's, or that of another site.
                0 => {
                    let keys = if i % 2 == 0 { keys("guessed") } else { Peer::etr(B, 1).keys };
                    let mut forger = Peer { keys, nonce: 1 << 60, ..etr.clone() };
                    let register = forger.register(&[record(ZERO, NET, &["203.0.113.66"])]);
                    forger.signed(Message::MapRegister(register))
                }
                // A good one, changed: any octet, also of the IDs behind the records.
                _ => {
                    let register = etr.register(&[record(ZERO, NET, &["192.0.2.1"])]);
                    etr.signed(Message::MapRegister(register))
                }
            };
            if i % 3 != 0 {
                let at = sequence.next(octets.len());
                octets[at] ^= 1 << sequence.next(8);
            }
            // What cannot be read does not come this far.
            if !matches!(Message::decode(&octets), Ok(Message::MapRegister(_))) {
                continue;
            }
            lab.receive(etr.from(), &octets);
            assert_eq!(lab.refusals().len(), 1);
            untouched(&lab);
        }
        assert_eq!(lab.server.sizes(), before);
    }
    let counters = lab.server.counters();
    assert!(counters.refused[&Refusal::Authentication] > u64::from(MANY) / 2);
    let refused: u64 = counters.refused.values().sum();
    assert_eq!((counters.registers_refused, counters.requests_refused), (refused, 0));
}

/// RFC 9301 §5.6: the last nonce is kept per xTR and key, over restarts.
#[test]
fn registers_that_are_replayed_are_refused() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut heard = Vec::new();
    for i in 0..MANY {
        let addr = format!("192.0.2.{}", 1 + i % 9);
        let register = etr.register(&[record(ZERO, NET, &[&addr])]);
        let octets = etr.signed(Message::MapRegister(register));
        lab.receive(etr.from(), &octets);
        heard.push(octets);
    }
    // The very last one may be a retransmission.
    heard.pop();
    for restarted in [false, true] {
        if restarted {
            lab.restart(config());
        }
        for (i, octets) in heard.iter().enumerate() {
            let from = IpAddr::from([203, 0, 113, u8::try_from(i % 250).unwrap()]);
            lab.receive(SocketAddr::new(from, 4342), octets);
            assert_eq!(lab.refusals(), [Refusal::Replay]);
            untouched(&lab);
        }
    }
    assert_eq!(lab.server.sizes().eids, 0, "after the restart there was nothing else");
}

/// RFC 9301 §8.2, §9: an ETR with a good key claims what is not its own.
#[test]
fn registers_of_what_is_not_allowed_are_refused() {
    let mut lab = Lab::new();
    let mut etr = Peer::etr(A, 1);
    let mut sequence = Sequence(2);
    for restarted in [false, true] {
        if restarted {
            lab.restart(config());
        }
        for _ in 0..MANY {
            let addr = IpAddr::from([172, 17, sequence.next(256) as u8, sequence.next(256) as u8]);
            let len = u8::try_from(sequence.next(33)).unwrap();
            let overclaimed = Prefix::new(addr, len).unwrap().to_string();
            lab.register(&mut etr, &[record(ZERO, &overclaimed, &["192.0.2.1"])]);
            assert_eq!(lab.refusals(), [Refusal::PrefixNotAllowed], "{overclaimed}");
            assert!(lab.notifies(&etr).is_empty());
        }
        assert_eq!(lab.server.sizes().eids, 0);
    }
}

/// RFC 9437 §5, §7.
#[test]
fn subscriptions_that_are_forged_or_replayed_are_refused() {
    let mut lab = Lab::new();
    let mut itr = Peer::itr(1);
    let mut heard = Vec::new();
    for i in 0..MANY {
        let text = format!("10.1.{}.{}/32", i / 256 % 4, i % 256);
        let request = itr.request(&[(eid(MOBILE, &text), true)]);
        lab.send_request(&itr, &request);
        let notify = lab.notifies(&itr)[0].clone();
        lab.ack(&itr, &notify);
        heard.push(request);
    }
    let mut sequence = Sequence(3);
    for restarted in [false, true] {
        if restarted {
            lab.restart(config());
        }
        let before = lab.server.sizes();
        for request in &heard {
            lab.send_request(&itr, request);
            assert_eq!(lab.refusals(), [Refusal::Replay]);
            untouched(&lab);
        }
        for i in 0..MANY {
            let mut forger = Peer { nonce: 1 << 60, ..itr.clone() };
            let mut request = forger.request(&[(eid(MOBILE, "10.1.0.0/16"), true)]);
            let anywhere = IpAddr::from([203, 0, 113, u8::try_from(sequence.next(250)).unwrap()]);
            match i % 3 {
                0 => request.id = Some((XtrId(sequence.next(1000) as u128), SiteId(9))),
                1 => forger.addr = anywhere,
                _ => request.itr_rlocs = vec![RlocAddress::Ip(anywhere)],
            }
            lab.send_request(&forger, &request);
            assert_eq!(lab.refusals(), [Refusal::SubscriberNotAllowed]);
            assert!(
                lab.replies().iter().all(|(_, r)| r.records.iter().all(|r| r.rlocs.is_empty()))
            );
            assert!(!lab.out.iter().any(|o| matches!(o, Output::Persist(_))));
        }
        assert_eq!(lab.server.sizes(), before);
    }
}

/// RFC 9301 §5.7: a publication is sent until its receiver, and nobody else, has acknowledged it.
#[test]
fn acknowledgements_that_are_forged_are_refused() {
    let mut lab = Lab::new();
    let mut itr = Peer::itr(1);
    lab.request(&mut itr, &[(eid(MOBILE, "10.1.0.7/32"), true)]);
    let notify = lab.notifies(&itr)[0].clone();
    let others = [keys("guessed"), Peer::itr(2).keys, Peer::etr(A, 1).keys];
    for i in 0..MANY {
        let keys = others[i as usize % 3].clone();
        let nonce = notify.nonce + u64::from(i % 2);
        let authentication = keys.authentication();
        let forger = Peer { keys, ..itr.clone() };
        lab.ack(&forger, &MapNotify { nonce, authentication, ..notify.clone() });
        let reason = if i % 2 == 0 { Refusal::AckAuthentication } else { Refusal::UnknownAck };
        assert_eq!(lab.refusals(), [reason]);
    }
    assert_eq!(lab.server.sizes().outstanding, 1);
    lab.ack(&itr, &notify);
    assert_eq!(lab.server.sizes().outstanding, 0);
}

/// Messages with good keys and any contents, in any order, with time passing: no panic, and no
/// table that does not empty itself in the end.
#[test]
fn whatever_is_said_the_server_stays_whole() {
    let mut lab = Lab::new();
    let mut etrs = [Peer::etr(A, 1), Peer::etr(A, 2), Peer::etr(B, 1)];
    let mut itrs = [Peer::itr(1), Peer::itr(2)];
    let mut sequence = Sequence(4);
    let any_prefix = |s: &mut Sequence| {
        let nets = [[172, 16], [172, 17], [10, 1], [10, 2]];
        let [a, b] = nets[s.next(4)];
        let addr = IpAddr::from([a, b, s.next(2) as u8, s.next(8) as u8]);
        let len = [0, 8, 16, 24, 30, 32][s.next(6)];
        let iid = [ZERO, MOBILE, MOBILE, InstanceId(u32::MAX)][s.next(4)];
        (iid, Prefix::new(addr, len).unwrap().to_string())
    };
    let mut unsettled: Vec<MapNotify> = Vec::new();
    for _ in 0..20_000 {
        match sequence.next(10) {
            0..4 => {
                let etr = &mut etrs[sequence.next(3)];
                let records: Vec<_> = (0..sequence.next(4))
                    .map(|_| {
                        let (iid, text) = any_prefix(&mut sequence);
                        let addr = format!("192.0.2.{}", sequence.next(3));
                        let mut record = record(iid, &text, &[&addr]);
                        record.ttl_min = [0, 1, 10, u32::MAX][sequence.next(4)];
                        record.version.0 = [0, 1, 2, 2000, 4095][sequence.next(5)];
                        record
                    })
                    .collect();
                let mut register = etr.register(&records);
                register.merge = sequence.next(3) == 0;
                register.use_ttl = sequence.next(5) == 0;
                register.proxy_reply = sequence.next(2) == 0;
                lab.send_register(&etr.clone(), register);
            }
            4..7 => {
                let itr = &mut itrs[sequence.next(2)];
                let (iid, text) = any_prefix(&mut sequence);
                let mut request = itr.request(&[(eid(iid, &text), sequence.next(2) == 0)]);
                if sequence.next(4) == 0 {
                    request.itr_rlocs = vec![RlocAddress::None];
                }
                lab.send_request(&itr.clone(), &request);
                unsettled.extend(lab.notifies(itr));
            }
            7 => {
                let (_, text) = any_prefix(&mut sequence);
                let mapping = at([A, B][sequence.next(2)], 1 + sequence.next(9) as u16);
                lab.publish(&text, [None, Some(mapping)][sequence.next(2)]);
                unsettled.extend(lab.notifies(&itrs[0]));
            }
            8 if !unsettled.is_empty() => {
                let notify = unsettled.swap_remove(sequence.next(unsettled.len()));
                lab.ack(&itrs[sequence.next(2)].clone(), &notify);
            }
            _ => lab.wait(sequence.next(20) as u64),
        }
    }
    let bound: Vec<String> = lab.bound.0.keys().map(ToString::to_string).collect();
    for text in bound {
        lab.publish(&text, None);
    }
    // The longest TTL was chosen to last for ever; those are withdrawn.
    let (left, _) = lab.server.registrations(lab.now, 0, 10_000);
    let left: Vec<_> = left.iter().map(|r| (r.iid, r.prefix.to_string())).collect();
    for etr in &mut etrs {
        let gone = |(iid, text): &(InstanceId, String)| {
            let mut record = record(*iid, text, &["192.0.2.1"]);
            record.ttl_min = 0;
            record
        };
        let records: Vec<_> = left.iter().map(gone).collect();
        for chunk in records.chunks(100) {
            lab.register(etr, chunk);
        }
    }
    lab.wait(4000);
    let sizes = lab.server.sizes();
    assert_eq!((sizes.eids, sizes.rloc_sets, sizes.outstanding), (0, 0, 0), "{sizes:?}");
}

/// Every limit that a peer can reach, reached.
#[test]
fn tables_do_not_grow_beyond_their_limits() {
    let mut config = config();
    config.limits.eids = 50;
    let mut lab = Lab::with(config);
    let mut etr = Peer::etr(A, 1);
    for i in 0..100 {
        lab.register(&mut etr, &[record(ZERO, &format!("172.16.1.{i}/32"), &["192.0.2.1"])]);
        assert_eq!(lab.refusals().is_empty(), i < 50);
    }
    assert_eq!(lab.server.sizes().eids, 50);
    // xTRs of one site.
    let mut lab = Lab::new();
    for i in 0..5000 {
        let mut etr = Peer { id: Some((XtrId(i), SiteId(1))), ..Peer::etr(A, 1) };
        lab.register(&mut etr, &[record(ZERO, NET, &["192.0.2.1"])]);
    }
    assert_eq!(lab.server.sizes().xtrs, 4096);
    assert_eq!(lab.refusals(), [Refusal::XtrLimit]);
    // Merged locators.
    let mut lab = Lab::new();
    for i in 0..40_u8 {
        let mut etr = Peer { id: Some((XtrId(u128::from(i)), SiteId(1))), ..Peer::etr(A, 1) };
        let mut register = etr.register(&[record(ZERO, NET, &[&format!("192.0.2.{i}")])]);
        register.merge = true;
        lab.send_register(&etr, register);
    }
    assert_eq!(lab.refusals(), [Refusal::MergeLimit]);
    lab.request(&mut Peer::itr(1), &[(eid(ZERO, "172.16.1.1/32"), false)]);
    assert_eq!(lab.reply().rlocs.len(), 16);
}
