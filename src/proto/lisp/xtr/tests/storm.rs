//! Made-up days: losses, reordering and restarts, beside a naive model of the other side.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::lab::*;
use super::push::push_config;
use crate::gateway::Ingress;
use crate::proto::lisp::xtr::{
    Itr, ItrConfig, MapServer, MobilePrefix, Nonces, Output, Policy, ProbeConfig, Registrar,
    RegistrarConfig,
};
use crate::types::lisp::{EntryAction, MapVersion, NegativeAction};
use crate::types::{Family, Instant, Prefix};
use crate::wire::lisp::{MapRegister, Message};

impl Guess {
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 20) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn registrar(nonce_below: u64) -> Registrar {
    let config = RegistrarConfig {
        servers: vec![MapServer { addr: addr("192.0.2.100"), keys: keys("of the site") }],
        id: Some(ID),
        proxy_reply: true,
        merge: false,
        ttl_min: 10,
        nonce_below,
        notify_below: BTreeMap::new(),
    };
    Registrar::new(config, Nonces::new([1; 32]))
}

/// A server by the letter of RFC 9301 §5.6: no nonce twice, none that is not greater.
#[derive(Default)]
struct Server {
    nonce: u64,
    /// Locator and version by prefix.
    registered: BTreeMap<Prefix, (String, u16)>,
}

impl Server {
    fn take(&mut self, register: &MapRegister) -> bool {
        if register.nonce <= self.nonce {
            return false;
        }
        self.nonce = register.nonce;
        for record in &register.records {
            let (_, prefix) = crate::proto::lisp::xtr::record::prefix_of(&record.eid).unwrap();
            if record.ttl_min == 0 {
                self.registered.remove(&prefix);
            } else {
                let rloc = record.rlocs[0].address.ip().unwrap().to_string();
                self.registered.insert(prefix, (rloc, record.version.0));
            }
        }
        true
    }
}

#[test]
fn the_server_ends_up_with_what_is_wanted_whatever_is_lost() {
    for seed in 0..6 {
        let mut guess = Guess(seed * 7 + 1);
        let mut one = registrar(1);
        let mut server = Server::default();
        let mut wanted: BTreeMap<Prefix, (String, u16)> = BTreeMap::new();
        let mut below = 1;
        let (mut to_server, mut to_us) = (Vec::new(), Vec::new());
        let mut now = at(1);
        for step in 0..3000u32 {
            let stormy = step < 2500;
            let pace = if stormy { 30 } else { 500 };
            now += SECOND * u32::try_from(guess.below(pace)).unwrap() / 100;
            if stormy && guess.one_in(2) {
                let prefix = host(u32::try_from(guess.below(300)).unwrap());
                if guess.one_in(3) {
                    one.withdraw(IID, prefix, now);
                    wanted.remove(&prefix);
                } else {
                    let rloc = format!("192.0.2.{}", 1 + guess.below(2));
                    let version = MapVersion(u16::try_from(1 + guess.below(4000)).unwrap());
                    one.set(IID, prefix, rlocs(&[&rloc]), version);
                    wanted.insert(prefix, (rloc, version.0));
                }
            }
            if stormy && guess.one_in(1000) {
                // Killed, and started with what was recorded; what is wanted is told anew.
                one = registrar(below);
                for prefix in server.registered.keys().filter(|p| !wanted.contains_key(p)) {
                    one.set(IID, *prefix, rlocs(&["192.0.2.1"]), MapVersion(1));
                    one.withdraw(IID, *prefix, now);
                }
                for (&prefix, (rloc, version)) in &wanted {
                    one.set(IID, prefix, rlocs(&[rloc]), MapVersion(*version));
                }
                to_us.clear();
                to_server.clear();
            }
            let mut out = Vec::new();
            if one.poll_timeout() <= now {
                one.handle_timeout(now, &mut out);
                assert!(one.poll_timeout() > now, "seed {seed}: it turns in circles");
            }
            for output in &out {
                if let Output::Persist(super::super::Persist::RegisterNonce { below: n }) = output {
                    below = *n;
                }
            }
            to_server.extend(registers(&out));
            // Any of them, in any order; some never.
            while !to_server.is_empty() && !guess.one_in(8) {
                let at = usize::try_from(guess.below(to_server.len() as u64)).unwrap();
                let register: MapRegister = to_server.swap_remove(at);
                let lost = stormy && guess.one_in(3);
                if !lost && server.take(&register) && !(stormy && guess.one_in(3)) {
                    to_us.push(register);
                }
            }
            while !to_us.is_empty() && !guess.one_in(8) {
                let at = usize::try_from(guess.below(to_us.len() as u64)).unwrap();
                let register = to_us.swap_remove(at);
                let (message, raw) = notify(register.nonce, register.records, &keys("of the site"));
                one.handle_notify(addr("192.0.2.100"), &message, &raw, now, &mut Vec::new());
            }
        }
        assert!(server.registered == wanted, "seed {seed}");
    }
}

/// After anything the gateway has what the map-cache has, locators are probed as often as they are
/// in it, and no timer is left in the past.
#[test]
fn the_gateway_and_the_probes_follow_the_map_cache() {
    let keys = keys("of publications");
    for seed in 0..6 {
        let mut guess = Guess(seed + 100);
        let mut config = ItrConfig {
            probe: Some(ProbeConfig::default()),
            cache_max: 30,
            resolvers: vec![addr("192.0.2.101"), addr("192.0.2.102")],
            ..push_config(&keys)
        };
        let iid = IID;
        let (query, policy) = (prefix("11.0.0.0/8"), Policy::Query);
        config.prefixes.push(MobilePrefix { iid, prefix: query, policy });
        let mut itr = Itr::new(config, [seed as u8; 32], at(0));
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        let mut now = at(0);
        let mut open: Vec<(bool, u64, Prefix)> = Vec::new();
        let mut published = 0;
        for step in 0..4000 {
            now += SECOND * u32::try_from(guess.below(200)).unwrap() / 100;
            let mut out = Vec::new();
            if itr.poll_timeout() <= now {
                itr.handle_timeout(now, &mut out);
                assert!(itr.poll_timeout() > now, "seed {seed} step {step}: in circles");
            }
            act(&mut itr, &mut guess, &mut open, &mut published, &keys, now, &mut out);
            for (_, _, request) in requests(&out) {
                let (_, prefix) =
                    crate::proto::lisp::xtr::record::prefix_of(&request.records[0].eid).unwrap();
                if request.records[0].notify {
                    published = published.max(request.nonce - 1);
                } else {
                    open.push((request.probe, request.nonce, prefix));
                }
            }
            super::moves::carry(&out, &mut ingress);
            check(&itr, &ingress, seed, step);
        }
        let counts = itr.counts();
        assert!(counts.evicted > 0 && counts.replies > 100, "{counts:?}");
        assert!(counts.subscriptions.publications > 100, "{counts:?}");
    }
}

fn act(
    itr: &mut Itr,
    guess: &mut Guess,
    open: &mut Vec<(bool, u64, Prefix)>,
    published: &mut u64,
    keys: &crate::auth::KeyChain,
    now: Instant,
    out: &mut Vec<Output>,
) {
    let pool = 0x0a00_0000 + 0x0100_0000 * u32::try_from(guess.below(2)).unwrap();
    let n = pool + u32::try_from(guess.below(200)).unwrap();
    let len = [32, 32, 32, 32, 30, 28][usize::try_from(guess.below(6)).unwrap()];
    let some = Prefix::v4(n, len).unwrap();
    let anchor = format!("192.0.2.{}", 1 + guess.below(5));
    let ttl = u32::try_from(guess.below(60)).unwrap();
    let version = u16::try_from(guess.below(40)).unwrap();
    let made = |p: Prefix, guess: &mut Guess| {
        if guess.one_in(6) {
            negative(&p.to_string(), NegativeAction::NativelyForward, ttl)
        } else {
            record(&p.to_string(), &rlocs(&[&anchor]), version, ttl)
        }
    };
    match guess.below(6) {
        0 | 1 => {
            itr.handle_miss(addr("203.0.113.7"), Prefix::host(some.addr()).addr(), now, out);
        }
        2 | 3 => {
            if let Some((probe, nonce, asked)) = open.pop() {
                let mut message = reply(nonce, vec![made(asked, guess), made(some, guess)]);
                if probe {
                    message.probe = true;
                    message.records.clear();
                }
                itr.handle_map_reply(&message, &[], now, out);
            }
        }
        4 => {
            let used: Vec<Prefix> = itr.map_cache(None).map(|(p, _)| p).take(3).collect();
            itr.handle_used(&used, now, out);
        }
        _ => {
            *published += 1;
            let pushed = Prefix::host(some.addr());
            let (message, raw) = notify(*published, vec![made(pushed, guess)], keys);
            let from = SocketAddr::new(addr("192.0.2.100"), 4342);
            itr.handle_notify(from, &message, &raw, now, out);
        }
    }
}

fn check(itr: &Itr, ingress: &Ingress, seed: u64, step: i32) {
    let mut mappings: BTreeMap<_, u64> = BTreeMap::new();
    let mut cached = 0;
    for (prefix, mapping) in itr.map_cache(None) {
        cached += 1;
        for rloc in mapping.rlocs.iter() {
            *mappings.entry(rloc.addr).or_default() += 1;
        }
        let entry = ingress.find(prefix);
        let expected = !mapping.rlocs.is_empty();
        let is_group = matches!(entry, Some(EntryAction::Group(_)));
        assert!(entry.is_some() && is_group == expected, "seed {seed} step {step}: {prefix}");
    }
    assert_eq!(cached, ingress.entries_len(), "seed {seed} step {step}");
    let probed: BTreeMap<_, u64> = itr.probes(None).map(|v| (v.rloc, v.mappings)).collect();
    assert_eq!(probed, mappings, "seed {seed} step {step}");
    assert!(itr.map_cache_len() <= 30);
}

/// Every message of ours, cut off anywhere and with any octet changed: no panic.
#[test]
fn damaged_messages_are_survived() {
    let keys = keys("of publications");
    let (itr, nonce) = super::push::subscribed(&keys);
    let mut etr = super::etr::etr();
    let mut out = Vec::new();
    etr.handle_timeout(at(0), &mut out);
    etr.solicit(addr("198.51.100.1"), IID, addr("203.0.113.7"), addr("10.0.0.1"), at(0), &mut out);
    let mut xtr =
        super::super::Xtr { etr: Some(etr), itr: Some(itr), ..super::super::Xtr::default() };
    xtr.itr.as_mut().unwrap().handle_miss(addr("203.0.113.7"), addr("11.0.0.1"), at(0), &mut out);
    let mut all: Vec<Vec<u8>> = Vec::new();
    for (_, message) in sent(&out) {
        let mut raw = Vec::new();
        message.encode(&mut raw);
        all.push(raw);
    }
    let records = vec![record("10.0.0.1/32", &rlocs(&["192.0.2.2", "2001:db8::2"]), 6, 10)];
    all.push(notify(nonce + 1, records.clone(), &keys).1);
    let mut raw = Vec::new();
    Message::MapReply(reply(1, records)).encode(&mut raw);
    all.push(raw);
    let from = SocketAddr::new(addr("192.0.2.100"), 4342);
    let mut read = 0;
    let mut guess = Guess(5);
    for raw in all {
        for at_octet in 0..raw.len() {
            let mut changed = raw.clone();
            changed[at_octet] = u8::try_from(guess.below(256)).unwrap();
            for octets in [&raw[..at_octet], &changed[..]] {
                if let Ok(message) = Message::decode(octets) {
                    read += 1;
                    let (local, mut out) = (addr("192.0.2.1"), Vec::new());
                    xtr.handle_message(from, local, &message, octets, at(1), &mut out);
                }
            }
        }
    }
    assert!(read > 100, "{read}");
}
