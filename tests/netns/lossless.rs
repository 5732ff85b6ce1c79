//! Relocations under dense traffic, both ways and both families, that cost no packet and double none.
//! That none is out of order is `lab lossless`'s to show, on a machine that does nothing else: a state
//! ends between two packets, and here other tests keep its thread from running when it should.

use std::time::Duration;

use super::trial::{DIRECTIONS, Outcome, Sum, Trial, measure};
use super::{Result, may_build_labs};

/// Twice around, so that each anchor is the old one and the new one more than once, home as well.
const MOVES: usize = 6;
const PACE: Duration = Duration::from_millis(1);
/// Claims settle after one second in the labs.
const WATCH: Duration = Duration::from_millis(1600);

fn moves(lab: &str, predictive: bool) -> Result<Option<Outcome>> {
    if !may_build_labs() {
        return Ok(None);
    }
    let trial = Trial {
        lab: lab.to_owned(),
        moves: MOVES,
        pace: PACE,
        watch: WATCH,
        control: 1,
        predictive,
        transient: Some(true),
        tcp: true,
    };
    let outcome = measure(&trial, |line| println!("{line}"))?;
    println!("TCP: {} segments sent again", outcome.tcp_retransmissions);
    for (direction, sum) in DIRECTIONS.iter().zip(&outcome.moved) {
        println!("{direction}: {sum:?}, longest gap {:.1} ms", sum.outage(100));
        assert!(sum.sent > 0);
    }
    Ok(Some(outcome))
}

/// But for a few.
fn in_order(lab: &str, sum: &Sum) {
    assert!(sum.reordered * 100 < sum.sent, "{lab}: {sum:?}");
}

/// The old anchor is told: nothing is lost.
fn predictive(lab: &str) -> Result<()> {
    let Some(outcome) = moves(lab, true)? else { return Ok(()) };
    for (direction, sum) in DIRECTIONS.iter().zip(&outcome.moved) {
        let bad = [sum.lost, sum.duplicated];
        assert_eq!(bad, [0, 0], "{lab}, {direction}: {:#?}", outcome.noticed);
        in_order(lab, sum);
    }
    Ok(())
}

/// Nobody is told: what the old anchor delivers to an empty link is lost until the new one asks, and
/// nothing after that. What the host sends is never lost.
fn reactive(lab: &str) -> Result<()> {
    let Some(outcome) = moves(lab, false)? else { return Ok(()) };
    for (direction, sum) in DIRECTIONS.iter().zip(&outcome.moved) {
        let bad = [sum.lost_while_held, sum.duplicated];
        assert_eq!(bad, [0, 0], "{lab}, {direction}: {:#?}", outcome.noticed);
        in_order(lab, sum);
    }
    assert_eq!(outcome.moved[0].lost, 0, "{lab}: {:#?}", outcome.noticed);
    Ok(())
}

#[test]
fn predictive_moves_cost_no_packet_flat() -> Result<()> {
    predictive("lossless")
}

#[test]
fn predictive_moves_cost_no_packet_controller() -> Result<()> {
    predictive("lossless-controller")
}

#[test]
fn predictive_moves_cost_no_packet_lisp() -> Result<()> {
    predictive("lisp-flat")
}

#[test]
fn reactive_moves_cost_no_packet_once_it_is_asked_for_flat() -> Result<()> {
    reactive("lossless")
}

#[test]
fn reactive_moves_cost_no_packet_once_it_is_asked_for_controller() -> Result<()> {
    reactive("lossless-controller")
}

#[test]
fn reactive_moves_cost_no_packet_once_it_is_asked_for_lisp() -> Result<()> {
    reactive("lisp-flat")
}
