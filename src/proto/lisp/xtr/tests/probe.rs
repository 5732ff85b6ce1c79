use std::time::Duration;

use super::lab::*;
use super::query::{answer, config, miss, run};
use crate::proto::lisp::xtr::{Itr, ItrConfig, Output, Policy, ProbeConfig, ProbeState};
use crate::types::Instant;
use crate::types::lisp::RlocSet;
use crate::wire::lisp::{EidRecord, MapReply, MapRequest};

fn itr() -> Itr {
    let probe = Some(ProbeConfig::default());
    Itr::new(ItrConfig { probe, ..config(Policy::Query) }, [4; 32], at(0))
}

fn learn(itr: &mut Itr, n: u32, rlocs: &RlocSet, now: Instant) {
    let host = host(n);
    let nonce = requests(&miss(itr, &host.addr().to_string(), now))[0].2.nonce;
    answer(itr, nonce, vec![record(&host.to_string(), rlocs, 1, 600)], now);
}

/// Runs up to the next probe.
fn next_probe(itr: &mut Itr, until: Instant) -> Option<(Instant, MapRequest, Vec<Output>)> {
    let mut outputs = Vec::new();
    while itr.poll_timeout() <= until {
        let now = itr.poll_timeout();
        let out = run(itr, now);
        let probe = requests(&out).into_iter().find(|(_, in_ecm, request)| {
            assert!(request.probe != *in_ecm, "§7.1: never through the mapping system");
            request.probe
        });
        outputs.extend(out);
        if let Some((_, _, request)) = probe {
            return Some((now, request, outputs));
        }
    }
    None
}

fn answered(nonce: u64, probed: &str, authoritative: bool) -> MapReply {
    let mut record: EidRecord = record("10.0.0.1/32", &rlocs(&[probed]), 1, 10);
    record.authoritative = authoritative;
    record.rlocs[0].probed = true;
    MapReply { probe: true, ..reply(nonce, vec![record]) }
}

/// RFC 9301 §7.1: jittered, one per locator whatever the number of its mappings.
#[test]
fn each_distinct_locator_is_probed() {
    let mut itr = itr();
    for n in 0..100 {
        learn(&mut itr, n, &rlocs(&["192.0.2.1"]), at(0));
    }
    let mut last = None;
    for _ in 0..20 {
        let (now, probe, _) = next_probe(&mut itr, at(1000)).unwrap();
        let mut out = Vec::new();
        let sent_at = now;
        let now = now + Duration::from_millis(3);
        itr.handle_map_reply(&answered(probe.nonce, "192.0.2.1", true), &[], now, &mut out);
        assert!(out.is_empty(), "up, as was supposed");
        if let Some(last) = last {
            let gap = sent_at - last;
            assert!(gap >= SECOND * 15 / 2 && gap <= SECOND * 11, "{gap:?}");
        }
        last = Some(sent_at);
    }
    let view = itr.probes(None).next().unwrap();
    assert_eq!((view.state, view.mappings), (ProbeState::Up, 100));
    assert_eq!(view.rtt, Some(Duration::from_millis(3)));
}

#[test]
fn three_losses_are_down_and_one_answer_is_up() {
    let mut itr = itr();
    learn(&mut itr, 1, &rlocs(&["192.0.2.1"]), at(0));
    let (first, _, _) = next_probe(&mut itr, at(100)).unwrap();
    let mut told = Vec::new();
    let mut down_at = None;
    let mut probes = 1;
    while down_at.is_none() {
        let now = itr.poll_timeout();
        let out = run(&mut itr, now);
        probes += requests(&out).len();
        if !mappings(&out).is_empty() {
            told.extend(mappings(&out));
            down_at = Some(now);
        }
    }
    assert_eq!((told, probes), (vec!["192.0.2.1 down".to_owned()], 3));
    assert_eq!(down_at.unwrap() - first, 3 * SECOND);
    let (now, probe, _) = next_probe(&mut itr, at(100)).unwrap();
    let mut out = Vec::new();
    itr.handle_map_reply(&answered(probe.nonce, "192.0.2.1", true), &[], now, &mut out);
    assert_eq!(mappings(&out), ["192.0.2.1 up"]);
}

#[test]
fn an_answer_that_is_not_one_does_not_count() {
    let mut itr = itr();
    learn(&mut itr, 1, &rlocs(&["192.0.2.1"]), at(0));
    let (now, probe, _) = next_probe(&mut itr, at(100)).unwrap();
    let mut out = Vec::new();
    for bad in [
        answered(probe.nonce ^ 1, "192.0.2.1", true),
        answered(probe.nonce, "192.0.2.1", false),
        answered(probe.nonce, "192.0.2.9", true),
    ] {
        itr.handle_map_reply(&bad, &[], now, &mut out);
    }
    assert_eq!(itr.counts().probes.refused, 3);
    assert_eq!(itr.probes(None).next().unwrap().state, ProbeState::Unknown);
}

#[test]
fn a_locator_without_mappings_is_forgotten_with_its_state() {
    let mut itr = itr();
    learn(&mut itr, 1, &rlocs(&["192.0.2.1"]), at(0));
    let mut now = at(0);
    while now < at(60) {
        run(&mut itr, now);
        now = itr.poll_timeout();
    }
    assert_eq!(itr.probes(None).next().unwrap().state, ProbeState::Down);
    itr.handle_used(&[host(1)], at(30_000), &mut Vec::new());
    let mut out = Vec::new();
    itr.handle_used(&[host(1)], at(30_000), &mut out);
    let nonce = requests(&out).first().map(|r| r.2.nonce);
    let nonce = nonce.unwrap_or_else(|| {
        let out = run(&mut itr, at(30_001));
        requests(&out).iter().find(|(_, ecm, _)| *ecm).unwrap().2.nonce
    });
    let moved = record("10.0.0.1/32", &rlocs(&["192.0.2.2"]), 2, 600);
    let out = answer(&mut itr, nonce, vec![moved], at(30_001));
    assert_eq!(mappings(&out), ["10.0.0.1/32 192.0.2.2", "192.0.2.1 up"]);
    let targets: Vec<_> = itr.probes(None).map(|view| view.rloc).collect();
    assert_eq!(targets, [addr("192.0.2.2")]);
}
