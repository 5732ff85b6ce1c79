//! What is forged, replayed or for somebody else: ten thousand of each, none accepted, before and
//! after a restart.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::lab::*;
use super::push::{hear, home, push_config, subscribed};
use super::query::{answer, config, miss, run};
use crate::proto::lisp::xtr::{
    Itr, ItrConfig, MapServer, Nonces, Output, Persist, Policy, Registrar, RegistrarConfig,
};
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion};

const N: u64 = 10_000;
const SERVER: &str = "192.0.2.100";

#[test]
fn forged_replies_are_refused() {
    let mut itr = Itr::new(config(Policy::Query), [9; 32], at(0));
    let nonce = requests(&miss(&mut itr, "10.0.0.1", at(0)))[0].2.nonce;
    let mut guess = Guess(1);
    let evil = || vec![record("10.0.0.1/32", &rlocs(&["203.0.113.66"]), 0, 10)];
    for _ in 0..N {
        let guessed = guess.next();
        assert_ne!(guessed, nonce);
        assert!(answer(&mut itr, guessed, evil(), at(0)).is_empty());
    }
    for bit in 0..64 {
        assert!(answer(&mut itr, nonce ^ (1 << bit), evil(), at(0)).is_empty());
    }
    assert_eq!(itr.counts().reply_unknown_nonce, N + 64);
    // Those of another run, with another seed: nothing of it is outstanding.
    let mut restarted = Itr::new(config(Policy::Query), [8; 32], at(0));
    miss(&mut restarted, "10.0.0.1", at(0));
    assert!(answer(&mut restarted, nonce, evil(), at(0)).is_empty());
    assert_eq!((itr.map_cache_len(), restarted.map_cache_len()), (0, 0));
}

/// A resolver that answers the right question with what was not asked for.
#[test]
fn replies_beyond_the_question_are_refused() {
    let mut itr = Itr::new(config(Policy::Query), [9; 32], at(0));
    let nonce = requests(&miss(&mut itr, "10.0.0.1", at(0)))[0].2.nonce;
    for n in 0..u32::try_from(N).unwrap() {
        let other = record(&host(n + 2).to_string(), &rlocs(&["203.0.113.66"]), 0, 10);
        assert!(answer(&mut itr, nonce, vec![other], at(0)).is_empty());
    }
    for len in 0..8 {
        let wide = Prefix::new(addr("10.0.0.1"), len).unwrap().to_string();
        let wide = record(&wide, &rlocs(&["203.0.113.66"]), 0, 10);
        assert!(answer(&mut itr, nonce, vec![wide], at(0)).is_empty());
    }
    assert_eq!(itr.counts().reply_not_covering, N);
    assert_eq!(itr.counts().reply_outside, 8);
    assert_eq!(itr.map_cache_len(), 0);
}

#[test]
fn forged_publications_are_refused() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    let before = itr.map_cache_len();
    let other = super::lab::keys("of somebody else");
    let evil = || vec![record("10.0.0.1/32", &rlocs(&["203.0.113.66"]), 0, 10)];
    for n in 0..N / 2 {
        assert!(hear(&mut itr, nonce + 1 + n, evil(), &other, at(1)).is_empty());
    }
    // A true one, with one bit changed.
    let (message, raw) = notify(nonce + 1, evil(), &keys);
    for n in 0..N / 2 {
        let mut raw = raw.clone();
        let bit = usize::try_from(n).unwrap() % (raw.len() * 8);
        raw[bit / 8] ^= 1 << (bit % 8);
        let mut out = Vec::new();
        let from = SocketAddr::new(addr(SERVER), 4342);
        itr.handle_notify(from, &message, &raw, at(1), &mut out);
        assert!(out.is_empty(), "bit {bit}");
    }
    assert_eq!(itr.counts().subscriptions.bad_digest, N);
    assert_eq!(itr.map_cache_len(), before);
    let out = hear(&mut itr, nonce + 1, evil(), &keys, at(1));
    assert_eq!(mappings(&out).len(), 1, "the true one is taken");
}

/// RFC 9437 §6: replays, also over a restart with what was recorded.
#[test]
fn replayed_publications_are_refused_also_after_a_restart() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    let records = |n: u64| {
        let host = host(u32::try_from(n).unwrap()).to_string();
        vec![record(&host, &rlocs(&["192.0.2.2"]), 0, 10)]
    };
    let mut recorded = BTreeMap::new();
    let mut note = |out: &[Output]| {
        for persist in persisted(out) {
            if let Persist::SubscriptionNonce { iid, prefix, below } = persist {
                recorded.insert((iid, prefix), below);
            }
        }
    };
    // What the subscription itself has recorded, in another run with the same seed.
    note(&run(&mut Itr::new(push_config(&keys), [3; 32], at(0)), at(0)));
    for n in 1..=N {
        let out = hear(&mut itr, nonce + 2 * n - 1, records(n), &keys, at(1));
        assert_eq!(mappings(&out).len(), 1);
        note(&out);
        let gone = record(&host(u32::try_from(n).unwrap()).to_string(), &rlocs(&[]), 0, 0);
        note(&hear(&mut itr, nonce + 2 * n, vec![gone], &keys, at(1)));
    }
    let before = itr.map_cache_len();
    for n in 1..=N {
        let out = hear(&mut itr, nonce + 2 * n - 1, records(n), &keys, at(2));
        assert!(mappings(&out).is_empty());
    }
    assert_eq!(itr.map_cache_len(), before);
    let config = ItrConfig { subscription_below: recorded, ..push_config(&keys) };
    let mut restarted = Itr::new(config, [77; 32], at(0));
    let first = requests(&run(&mut restarted, at(0)))[0].2.nonce;
    assert!(first > nonce + 2 * N, "above everything from before");
    for n in 1..=N {
        let out = hear(&mut restarted, nonce + 2 * n - 1, records(n), &keys, at(0));
        assert!(mappings(&out).is_empty());
    }
    assert_eq!(restarted.map_cache_len(), 0);
    hear(&mut restarted, first, vec![home()], &keys, at(1));
    for n in 1..=N {
        let out = hear(&mut restarted, nonce + 2 * n - 1, records(n), &keys, at(1));
        assert!(mappings(&out).is_empty());
    }
    assert_eq!(restarted.map_cache_len(), 1);
}

#[test]
fn publications_about_what_is_not_subscribed_to_are_refused() {
    let keys = keys("of publications");
    let (mut itr, nonce) = subscribed(&keys);
    for n in 0..N {
        let mut other = record("10.0.0.1/32", &rlocs(&["203.0.113.66"]), 0, 10);
        let outside = Prefix::v4(0x0b00_0000 + u32::try_from(n).unwrap(), 32).unwrap();
        let iid = if n % 2 == 0 { IID } else { InstanceId(8) };
        other.eid = crate::wire::lisp::Eid::Prefix { iid, prefix: outside };
        // Alone, and hidden behind one that is.
        assert!(hear(&mut itr, nonce + 1 + n, vec![other.clone()], &keys, at(1)).is_empty());
        let both = vec![home(), other];
        assert!(mappings(&hear(&mut itr, nonce + 1 + n, both, &keys, at(1))).is_empty());
    }
    assert_eq!(itr.map_cache_len(), 1);
    assert_eq!(itr.counts().record_outside, N);
}

fn registrar(notify_below: BTreeMap<std::net::IpAddr, u64>) -> Registrar {
    let config = RegistrarConfig {
        servers: vec![MapServer { addr: addr(SERVER), keys: keys("of the site") }],
        id: Some(ID),
        proxy_reply: true,
        merge: false,
        ttl_min: 10,
        nonce_below: 1,
        notify_below,
    };
    let mut registrar = Registrar::new(config, Nonces::new([1; 32]));
    registrar.set(IID, host(1), rlocs(&["192.0.2.1"]), MapVersion(5));
    registrar
}

#[test]
fn forged_and_replayed_map_notifies_move_nothing_and_confirm_nothing() {
    let mut one = registrar(BTreeMap::new());
    let mut out = Vec::new();
    one.handle_timeout(at(0), &mut out);
    let nonce = registers(&out)[0].nonce;
    let elsewhere = || vec![record("10.0.0.1/32", &rlocs(&["203.0.113.66"]), 9, 10)];
    out.clear();
    for n in 0..N {
        let (message, raw) = notify(nonce + n, elsewhere(), &keys("of somebody else"));
        one.handle_notify(addr(SERVER), &message, &raw, at(0), &mut out);
    }
    assert!(out.is_empty());
    assert_eq!(one.counts().notify_bad_digest, N);
    assert!(one.is_waiting_for(nonce));
    let site = keys("of the site");
    let mut below = BTreeMap::new();
    for n in 1..=N {
        let (message, raw) = notify(1_000_000 + n, elsewhere(), &site);
        one.handle_notify(addr(SERVER), &message, &raw, at(0), &mut out);
    }
    for persist in persisted(&out) {
        if let Persist::NotifyNonce { server, below: recorded } = persist {
            below.insert(server, recorded);
        }
    }
    let mut restarted = registrar(below);
    for machine in [&mut one, &mut restarted] {
        out.clear();
        for n in 1..N {
            let (message, raw) = notify(1_000_000 + n, elsewhere(), &site);
            machine.handle_notify(addr(SERVER), &message, &raw, at(1), &mut out);
        }
        assert!(out.is_empty());
        assert_eq!(machine.counts().notify_replayed, N - 1);
    }
}
