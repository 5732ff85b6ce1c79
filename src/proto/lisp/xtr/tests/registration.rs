use std::collections::{BTreeMap, BTreeSet};

use super::lab::*;
use crate::proto::lisp::xtr::registration::{WINDOW, acknowledge};
use crate::proto::lisp::xtr::{
    MapServer, Nonces, Output, Persist, Registrar, RegistrarConfig, RegistrationState,
};
use crate::types::lisp::MapVersion;
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{EidRecord, MapRegister};

const SERVER: &str = "192.0.2.100";
const ANCHOR: &str = "192.0.2.1";

fn config(servers: &[&str], nonce_below: u64) -> RegistrarConfig {
    let server = |s: &&str| MapServer { addr: addr(s), keys: keys("of the site") };
    RegistrarConfig {
        servers: servers.iter().map(server).collect(),
        id: Some(ID),
        proxy_reply: true,
        merge: false,
        ttl_min: 10,
        nonce_below,
        notify_below: BTreeMap::new(),
    }
}

fn registrar() -> Registrar {
    Registrar::new(config(&[SERVER], 1), Nonces::new([1; 32]))
}

fn run(registrar: &mut Registrar, now: Instant) -> Vec<Output> {
    let mut out = Vec::new();
    if registrar.poll_timeout() <= now {
        registrar.handle_timeout(now, &mut out);
    }
    out
}

/// The server takes the Map-Register as it is.
fn confirm(registrar: &mut Registrar, register: &MapRegister, now: Instant) -> Vec<Output> {
    let (message, raw) = notify(register.nonce, register.records.clone(), &keys("of the site"));
    let mut out = Vec::new();
    registrar.handle_notify(addr(SERVER), &message, &raw, now, &mut out);
    out
}

fn set(registrar: &mut Registrar, prefix: Prefix, version: u16) {
    assert!(registrar.set(IID, prefix, rlocs(&[ANCHOR]), MapVersion(version)));
}

fn state(registrar: &Registrar, prefix: Prefix) -> Option<RegistrationState> {
    let mut all = registrar.registrations(None);
    all.find(|view| view.prefix == prefix).map(|view| view.servers[0].state)
}

/// RFC 9301 §5.7: 1 s, doubling, at most a minute; §5.6: each with a greater nonce.
#[test]
fn silence_backs_off_to_one_minute() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    let (mut now, mut waits, mut nonces) = (at(100), Vec::new(), Vec::new());
    for _ in 0..10 {
        let out = run(&mut registrar, now);
        nonces.extend(registers(&out).iter().map(|r| r.nonce));
        waits.push((registrar.poll_timeout() - now).as_secs());
        now = registrar.poll_timeout();
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    assert_eq!(nonces, (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_registration_says_what_it_should() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    let out = run(&mut registrar, at(1));
    let [register] = &registers(&out)[..] else { panic!() };
    assert!(register.want_notify && register.proxy_reply && !register.merge);
    assert_eq!(register.id, Some(ID));
    let [record] = &register.records[..] else { panic!() };
    assert_eq!((record.ttl_min, record.version), (10, MapVersion(5)));
    assert!(!record.rlocs[0].probed && record.rlocs[0].reachable);
    assert_eq!(persisted(&out), [Persist::RegisterNonce { below: 1 + (1 << 20) }]);
    assert!(matches!(out[0], Output::Persist(_)), "recorded before it leaves");
}

/// RFC 9301 §8.2: once a minute while confirmed.
#[test]
fn confirmed_registrations_are_refreshed_within_a_minute() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    let first = registers(&run(&mut registrar, at(0)));
    let out = confirm(&mut registrar, &first[0], ms(50));
    assert!(matches!(out[..], [Output::Registered { .. }]));
    assert_eq!(state(&registrar, host(1)), Some(RegistrationState::Confirmed));
    let mut last = ms(50);
    for _ in 0..5 {
        let now = registrar.poll_timeout();
        assert!(now - last <= 60 * SECOND && now - last >= 29 * SECOND, "{last} {now}");
        let [register] = &registers(&run(&mut registrar, now))[..] else { panic!() };
        assert!(confirm(&mut registrar, register, now).is_empty(), "nothing new is told");
        last = now;
    }
}

#[test]
fn changes_of_one_turn_share_a_message_and_a_later_one_leaves_at_once() {
    let mut registrar = registrar();
    for n in 0..20 {
        set(&mut registrar, host(n), 1);
    }
    let first = registers(&run(&mut registrar, at(0)));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].records.len(), 20);
    set(&mut registrar, host(3), 2);
    let second = registers(&run(&mut registrar, ms(1)));
    assert_eq!(second[0].records.len(), 1);
    // The first is confirmed: of the host that has changed since that proves nothing.
    confirm(&mut registrar, &first[0], ms(2));
    assert_eq!(state(&registrar, host(3)), Some(RegistrationState::Sent));
    assert_eq!(state(&registrar, host(4)), Some(RegistrationState::Confirmed));
    confirm(&mut registrar, &second[0], ms(3));
    assert_eq!(state(&registrar, host(3)), Some(RegistrationState::Confirmed));
}

#[test]
fn a_repetition_leaves_out_what_has_changed_since() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 1);
    set(&mut registrar, host(2), 1);
    run(&mut registrar, at(0));
    set(&mut registrar, host(1), 2);
    run(&mut registrar, ms(1));
    let again = registers(&run(&mut registrar, at(1)));
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].records.len(), 1);
    let notify_of_the_first = MapRegister { nonce: 1, ..again[0].clone() };
    confirm(&mut registrar, &notify_of_the_first, ms(1001));
    assert_eq!(
        state(&registrar, host(2)),
        Some(RegistrationState::Confirmed),
        "late, but of what is still so"
    );
}

#[test]
fn a_withdrawal_is_repeated_until_confirmed_and_then_forgotten() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    let first = registers(&run(&mut registrar, at(0)));
    confirm(&mut registrar, &first[0], ms(1));
    registrar.withdraw(IID, host(1), at(2));
    let mut all = Vec::new();
    let mut now = at(2);
    for _ in 0..4 {
        all.extend(registers(&run(&mut registrar, now)));
        now = registrar.poll_timeout();
    }
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|r| r.records[0].ttl_min == 0 && r.records[0].version.0 == 5));
    assert!(registrar.find(IID, host(1)).is_none(), "no longer answered for");
    confirm(&mut registrar, &all[3], now);
    assert!(registrar.is_empty());
    assert_eq!(registrar.poll_timeout(), Instant::FAR_FUTURE);
}

#[test]
fn a_withdrawal_that_nobody_confirms_ends() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    registrar.withdraw(IID, host(1), at(0));
    let mut now = at(0);
    while now < at(1000) {
        run(&mut registrar, now);
        now = registrar.poll_timeout();
    }
    assert!(registrar.is_empty());
    assert_eq!(registrar.counts().withdrawals_given_up, 1);
}

/// A node that comes back while its withdrawal is under way.
#[test]
fn a_registration_replaces_its_withdrawal() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    run(&mut registrar, at(0));
    registrar.withdraw(IID, host(1), at(1));
    let gone = registers(&run(&mut registrar, at(1)));
    set(&mut registrar, host(1), 7);
    let back = registers(&run(&mut registrar, at(1)));
    assert_eq!(back[0].records[0].ttl_min, 10);
    confirm(&mut registrar, gone.last().unwrap(), at(1));
    assert_eq!(state(&registrar, host(1)), Some(RegistrationState::Sent));
    confirm(&mut registrar, &back[0], at(1));
    assert_eq!(state(&registrar, host(1)), Some(RegistrationState::Confirmed));
}

#[test]
fn each_server_confirms_for_itself() {
    let mut registrar = Registrar::new(config(&[SERVER, "2001:db8::100"], 1), Nonces::new([1; 32]));
    set(&mut registrar, host(1), 5);
    let out = run(&mut registrar, at(0));
    let to: BTreeSet<_> = sent(&out).iter().map(|(to, _)| to.to_string()).collect();
    assert_eq!(to.into_iter().collect::<Vec<_>>(), ["192.0.2.100:4342", "[2001:db8::100]:4342"]);
    let all = registers(&out);
    assert_ne!(all[0].nonce, all[1].nonce);
    confirm(&mut registrar, &all[0], at(0));
    let states: Vec<_> = registrar.registrations(None).next().unwrap().servers;
    assert_eq!(states[0].state, RegistrationState::Confirmed);
    assert_eq!(states[1].state, RegistrationState::Sent);
}

/// A hundred thousand prefixes: bounded bursts, everything confirmed, and a refresh that is spread.
#[test]
fn a_hundred_thousand_prefixes_go_out_in_windows_and_are_refreshed_evenly() {
    const N: u32 = 100_000;
    let mut registrar = registrar();
    for n in 0..N {
        set(&mut registrar, host(n), 1);
    }
    let (mut now, mut messages) = (at(0), 0);
    let mut out = run(&mut registrar, now);
    loop {
        let burst = registers(&out);
        if burst.is_empty() {
            break;
        }
        assert!(burst.len() <= WINDOW);
        messages += burst.len();
        now += SECOND / 1000;
        for register in &burst {
            confirm(&mut registrar, register, now);
        }
        out = run(&mut registrar, now);
    }
    assert_eq!(registrar.counts().confirmed, u64::from(N));
    assert!(messages < 3500, "{messages} messages");
    let begin = now;
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    let mut refreshed = 0;
    while registrar.poll_timeout() - begin < 60 * SECOND {
        now = registrar.poll_timeout().max(now);
        for register in registers(&run(&mut registrar, now)) {
            *seconds.entry((now - begin).as_secs()).or_default() += 1;
            refreshed += register.records.len();
            confirm(&mut registrar, &register, now);
        }
    }
    assert!(refreshed >= N as usize, "{refreshed} within a minute");
    let most = *seconds.values().max().unwrap();
    assert!(most < messages / 10, "{most} of {messages} in one second");
}

#[test]
fn a_change_goes_out_at_once_though_the_server_is_silent() {
    let mut registrar = registrar();
    for n in 0..10_000 {
        set(&mut registrar, host(n), 1);
    }
    let mut now = at(0);
    while now < at(300) {
        run(&mut registrar, now);
        now = registrar.poll_timeout();
    }
    now = at(300);
    run(&mut registrar, now);
    set(&mut registrar, host(77), 9);
    let fresh = registers(&run(&mut registrar, now));
    assert_eq!(fresh[0].records[0].version, MapVersion(9));
    // The server is back: it hears of everything now, not in a minute.
    let mut open = fresh;
    let limit = now + 5 * SECOND;
    while !open.is_empty() && now < limit {
        now += SECOND / 1000;
        for register in std::mem::take(&mut open) {
            confirm(&mut registrar, &register, now);
        }
        open = registers(&run(&mut registrar, now));
    }
    assert!(
        registrar.registrations(None).all(|v| v.servers[0].state == RegistrationState::Confirmed)
    );
}

#[test]
fn a_prefix_that_the_server_leaves_out_is_shown_as_refused() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 1);
    set(&mut registrar, host(2), 1);
    let mut first = registers(&run(&mut registrar, at(0)));
    first[0].records.pop();
    confirm(&mut registrar, &first[0], at(0));
    assert_eq!(state(&registrar, host(1)), Some(RegistrationState::Confirmed));
    assert_eq!(state(&registrar, host(2)), Some(RegistrationState::Refused));
    assert_eq!(registrar.counts().not_confirmed, 1);
}

fn elsewhere(version: u16) -> Vec<EidRecord> {
    vec![record("10.0.0.1/32", &rlocs(&["192.0.2.2"]), version, 10)]
}

/// The previous anchor is told where its node went.
#[test]
fn an_unsolicited_map_notify_tells_that_a_node_has_moved_away() {
    let mut registrar = registrar();
    set(&mut registrar, host(1), 5);
    let first = registers(&run(&mut registrar, at(0)));
    confirm(&mut registrar, &first[0], at(0));
    let site = keys("of the site");
    let mut hear = |nonce, records| {
        let (message, raw) = notify(nonce, records, &site);
        let mut out = Vec::new();
        registrar.handle_notify(addr(SERVER), &message, &raw, at(1), &mut out);
        let away = out.iter().filter(|o| matches!(o, Output::MovedAway { .. })).count();
        (acks(&out), away)
    };
    assert_eq!(hear(1000, elsewhere(6)), (vec![1000], 1));
    assert_eq!(hear(1000, elsewhere(6)), (vec![1000], 0), "acknowledged again, told once");
    assert_eq!(hear(999, elsewhere(6)), (vec![], 0), "a replay");
    assert_eq!(hear(1001, elsewhere(4)), (vec![1001], 0), "older than what is registered");
    let here = vec![record("10.0.0.1/32", &rlocs(&[ANCHOR]), 9, 10)];
    assert_eq!(hear(1002, here), (vec![1002], 0), "our own");
    assert_eq!(registrar.counts().notify_replayed, 1);
    // From another address of the server: its key says who it is. From anybody else: nothing.
    for (keys, away) in [(site, 1), (keys("of somebody else"), 0)] {
        let (message, raw) = notify(2000 + away, elsewhere(8), &keys);
        let mut out = Vec::new();
        registrar.handle_notify(addr("203.0.113.5"), &message, &raw, at(1), &mut out);
        let told = out.iter().filter(|o| matches!(o, Output::MovedAway { .. })).count();
        assert_eq!(told as u64, away);
    }
    assert_eq!(registrar.counts().notify_unknown_server, 1);
    // The server knows better than we: it is told nothing, and we forget.
    registrar.withdraw(IID, host(1), at(2));
    assert!(registers(&run(&mut registrar, at(2))).is_empty());
    assert!(registrar.is_empty());
}

#[test]
fn without_a_server_nothing_is_kept_that_is_withdrawn() {
    let mut registrar = Registrar::new(config(&[], 1), Nonces::new([1; 32]));
    set(&mut registrar, host(1), 5);
    registrar.withdraw(IID, host(1), at(0));
    assert!(registrar.is_empty());
}

#[test]
fn an_acknowledgement_has_the_contents_and_its_own_digest() {
    let site = keys("of the site");
    let (message, _) = notify(9, elsewhere(1), &site);
    let out = [acknowledge(addr(SERVER), &message, &site)];
    assert_eq!(acks(&out), [9], "sent() verifies the digest");
}

#[test]
fn a_full_table_refuses_and_says_so() {
    let mut registrar = registrar();
    registrar.wanted_max = 1;
    set(&mut registrar, host(1), 1);
    assert!(!registrar.set(IID, host(2), rlocs(&[ANCHOR]), MapVersion(1)));
    assert_eq!((registrar.len(), registrar.counts().full), (1, 1));
}
