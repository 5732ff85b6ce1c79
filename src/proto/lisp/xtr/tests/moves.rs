//! Both roles, and the gateway behind them: a node moves.

use std::net::SocketAddr;

use super::lab::*;
use super::push::{hear, subscribed};
use super::query::miss;
use crate::gateway::Ingress;
use crate::proto::lisp::xtr::{Itr, Output, Xtr};
use crate::types::Family;
use crate::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, MapVersion};
use crate::wire::lisp::Message;

/// As the hall carries it.
pub fn carry(out: &[Output], ingress: &mut Ingress) -> Vec<EncapChange> {
    let mut changes = Vec::new();
    for output in out {
        match output {
            Output::SetMapping { iid, prefix, rlocs, action, .. } => {
                ingress.set_mapping(*iid, *prefix, rlocs, *action, &mut changes);
            }
            Output::RemoveMapping { prefix, .. } => ingress.remove_mapping(*prefix, &mut changes),
            Output::SetReachable { rloc, reachable } => {
                ingress.set_reachable(*rloc, *reachable, &mut changes);
            }
            Output::Persist(_)
            | Output::Send { .. }
            | Output::Registered { .. }
            | Output::MovedAway { .. }
            | Output::Subscribed { .. }
            | Output::Unsubscribed { .. } => {}
        }
    }
    changes
}

#[test]
fn a_published_move_is_one_entry_of_the_data_plane() {
    let keys = keys("of publications");
    let mut ingress = Ingress::new(Family::ALL.to_vec());
    let mut all = Vec::new();
    ingress.set_policy(prefix("10.0.0.0/8"), EntryAction::Punt, &mut all);
    let (mut itr, nonce) = subscribed(&keys);
    let moved = |n: u32, anchor: &str, version| {
        vec![record(&host(n).to_string(), &rlocs(&[anchor]), version, 10)]
    };
    for n in 1..=3 {
        let out = hear(&mut itr, nonce + u64::from(n), moved(n, "192.0.2.2", 1), &keys, at(1));
        carry(&out, &mut ingress);
    }
    let out = hear(&mut itr, nonce + 4, moved(9, "192.0.2.3", 1), &keys, at(2));
    let path = GroupPath::Encap { members: vec![(addr("192.0.2.3"), 100)], iid: IID };
    assert_eq!(
        carry(&out, &mut ingress),
        [
            EncapChange::SetGroup { group: GroupId(2), path },
            EncapChange::SetEntry { prefix: host(9), action: EntryAction::Group(GroupId(2)) },
        ]
    );
    let out = hear(&mut itr, nonce + 5, moved(1, "192.0.2.3", 2), &keys, at(3));
    assert_eq!(
        carry(&out, &mut ingress),
        [EncapChange::SetEntry { prefix: host(1), action: EntryAction::Group(GroupId(2)) }]
    );
}

/// One port, several roles: who gets what.
#[test]
fn an_xtr_with_both_roles_tells_them_apart() {
    let keys = keys("of publications");
    let site = super::lab::keys("of the site");
    let (itr, nonce) = subscribed(&keys);
    let mut etr = super::etr::etr();
    etr.registrar.set(IID, host(1), rlocs(&["192.0.2.1"]), MapVersion(5));
    let mut out = Vec::new();
    etr.handle_timeout(at(0), &mut out);
    let registered = registers(&out).remove(0);
    let mut xtr = Xtr { etr: Some(etr), itr: Some(itr), ..Xtr::default() };
    let mut take = |message: Message, raw: &[u8]| {
        let mut out = Vec::new();
        let from = SocketAddr::new(addr("192.0.2.100"), 4342);
        xtr.handle_message(from, addr("192.0.2.1"), &message, raw, at(1), &mut out);
        out
    };
    let (confirmed, raw) = notify(registered.nonce, registered.records, &site);
    let out = take(Message::MapNotify(confirmed), &raw);
    assert!(!out.is_empty() && out.iter().all(|o| matches!(o, Output::Registered { .. })));
    // Published: the ITR has a new mapping, and the ETR learns that the node has left.
    let elsewhere = || vec![record("10.0.0.1/32", &rlocs(&["192.0.2.2"]), 6, 10)];
    let (published, raw) = notify(nonce + 1, elsewhere(), &keys);
    let out = take(Message::MapNotify(published), &raw);
    assert_eq!(mappings(&out), ["10.0.0.1/32 192.0.2.2"]);
    let away =
        |out: &[Output]| out.iter().filter(|o| matches!(o, Output::MovedAway { .. })).count();
    assert_eq!(away(&out), 1);
    // Told to the ETR, with a nonce of its own sequence.
    let (told, raw) = notify(40, elsewhere(), &site);
    let out = take(Message::MapNotify(told), &raw);
    assert_eq!((acks(&out), away(&out), mappings(&out).len()), (vec![40], 1, 0));
    // A server's message is for nobody here.
    let (ack, raw) = {
        let (message, raw) = notify(41, elsewhere(), &site);
        (Message::MapNotifyAck(message), raw)
    };
    assert!(take(ack, &raw).is_empty());
    assert_eq!(xtr.counts.not_for_an_xtr, 1);
}

/// A late packet at the old anchor ends as a corrected mapping at the ITR.
#[test]
fn a_late_packet_leads_to_the_new_mapping() {
    let mut ingress = Ingress::new(Family::ALL.to_vec());
    let mut itr =
        Itr::new(super::query::config(crate::proto::lisp::xtr::Policy::Query), [1; 32], at(0));
    let answer = |itr: &mut Itr, out: &[Output], anchor: &str, version, now| {
        let nonce = requests(out)[0].2.nonce;
        let record = record("10.0.0.1/32", &rlocs(&[anchor]), version, 10);
        super::query::answer(itr, nonce, vec![record], now)
    };
    let out = miss(&mut itr, "10.0.0.1", at(1));
    let out = answer(&mut itr, &out, "192.0.2.1", 5, at(1));
    carry(&out, &mut ingress);
    let mut etr = super::etr::etr();
    let mut out = Vec::new();
    let (itr_rloc, source) = (addr("198.51.100.1"), addr("203.0.113.7"));
    etr.solicit(itr_rloc, IID, source, addr("10.0.0.1"), at(5), &mut out);
    let smr = requests(&out)[0].2.clone();
    let mut xtr = Xtr { itr: Some(itr), ..Xtr::default() };
    let mut out = Vec::new();
    let from = SocketAddr::new(addr("192.0.2.1"), 4342);
    xtr.handle_message(from, itr_rloc, &Message::MapRequest(smr), &[], at(5), &mut out);
    let out = answer(xtr.itr.as_mut().unwrap(), &out, "192.0.2.2", 6, at(5));
    let changes = carry(&out, &mut ingress);
    assert!(changes.contains(&EncapChange::SetEntry {
        prefix: host(1),
        action: EntryAction::Group(GroupId(2))
    }));
    assert_eq!(changes.last(), Some(&EncapChange::RemoveGroup { group: GroupId(1) }));
}
