//! Hosts that move in a whole lab, in both modes of injection, and what may go wrong meanwhile.

use std::time::{Duration, Instant};

use super::lab::wait_until;
use super::stage::{LIMIT, Stage};
use super::{Result, may_build_labs};

const FLAT: &str = "ibgp-flat";
const CONTROLLER: &str = "ibgp-controller";

/// A→B→C→A, each time under traffic; at home again, no host route is left, and no session flapped.
fn moves_and_returns(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(lab)?;
    stage.routers_hold_exactly(&[])?;
    let starts = stage.session_starts()?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    stage.host_is_reachable("h1")?;
    stage.routers_hold_exactly(&[("h1", "b")])?;
    stage.move_host("h2", "c")?;
    stage.move_host("h1", "c")?;
    stage.routers_lead("h1", "c")?;
    stage.routers_lead("h2", "c")?;
    stage.host_is_reachable("h1")?;
    stage.routers_hold_exactly(&[("h1", "c"), ("h2", "c")])?;
    stage.move_host("h1", "a")?;
    stage.routers_lead("h1", "a")?;
    stage.routers_hold_exactly(&[("h2", "c")])?;
    stage.host_is_reachable("h1")?;
    stage.move_host("h2", "a")?;
    stage.routers_hold_exactly(&[])?;
    stage.host_is_reachable("h2")?;
    assert_eq!(stage.session_starts()?, starts);
    Ok(())
}

#[test]
fn hosts_move_and_return_flat() -> Result<()> {
    moves_and_returns(FLAT)
}

#[test]
fn hosts_move_and_return_controller() -> Result<()> {
    moves_and_returns(CONTROLLER)
}

/// Ten moves in a second for half a minute: the routers end at the last anchor.
fn ping_pong(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(lab)?;
    let starts = stage.session_starts()?;
    let begin = Instant::now();
    let mut moves = 0;
    while begin.elapsed() < Duration::from_secs(30) {
        let due = begin + Duration::from_millis(100) * moves;
        wait_until("the next move is due", LIMIT, || Ok((Instant::now() >= due).then_some(())))?;
        stage.move_host("h1", if moves % 2 == 0 { "b" } else { "c" })?;
        moves += 1;
    }
    assert!(moves >= 250, "the machine was too slow for this test: {moves} moves");
    // The last of them, in case the number was odd.
    stage.move_host("h1", "c")?;
    stage.routers_lead("h1", "c")?;
    stage.host_is_reachable("h1")?;
    stage.routers_hold_exactly(&[("h1", "c")])?;
    assert_eq!(stage.session_starts()?, starts);
    Ok(())
}

#[test]
fn a_host_plays_ping_pong_flat() -> Result<()> {
    ping_pong(FLAT)
}

#[test]
fn a_host_plays_ping_pong_controller() -> Result<()> {
    ping_pong(CONTROLLER)
}

/// The old anchor is dead when the host arrives at the new one: no context, no withdrawal by it.
fn old_anchor_dies(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(lab)?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    stage.kill("b");
    stage.move_host("h1", "c")?;
    stage.routers_lead("h1", "c")?;
    stage.host_is_reachable("h1")?;
    // It comes back with an old memory, and must not win with it.
    stage.lab.start("b")?;
    stage.all_are_connected()?;
    stage.routers_hold_exactly(&[("h1", "c")])?;
    stage.routers_lead("h1", "c")?;
    stage.host_is_reachable("h1")
}

#[test]
fn the_old_anchor_dies_flat() -> Result<()> {
    old_anchor_dies(FLAT)
}

#[test]
fn the_old_anchor_dies_controller() -> Result<()> {
    old_anchor_dies(CONTROLLER)
}

/// The old anchor hangs, so that its withdrawal is late: the newer claim wins beside the older one.
fn old_anchor_hangs(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(lab)?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    let starts = stage.session_starts()?;
    stage.signal("b", libc::SIGSTOP)?;
    stage.move_host("h1", "c")?;
    stage.routers_lead("h1", "c")?;
    stage.host_is_reachable("h1")?;
    stage.signal("b", libc::SIGCONT)?;
    stage.routers_hold_exactly(&[("h1", "c")])?;
    stage.host_is_reachable("h1")?;
    assert_eq!(stage.session_starts()?, starts);
    Ok(())
}

#[test]
fn the_old_anchor_hangs_flat() -> Result<()> {
    old_anchor_hangs(FLAT)
}

#[test]
fn the_old_anchor_hangs_controller() -> Result<()> {
    old_anchor_hangs(CONTROLLER)
}

#[test]
fn the_reflector_is_restarted() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(FLAT)?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    stage.kill("rr");
    // A move that no router can hear of now.
    stage.move_host("h1", "c")?;
    stage.lab.start("rr")?;
    stage.all_are_connected()?;
    stage.routers_lead("h1", "c")?;
    stage.routers_hold_exactly(&[("h1", "c")])?;
    stage.host_is_reachable("h1")
}

/// Killed with -9 at moments all over a relocation, the old and the new anchor by turns, and
/// restarted: the routers end at the anchor where the host is.
fn killed_and_restarted(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(lab)?;
    let mut at = ["b", "c"];
    stage.move_host("h1", at[0])?;
    stage.routers_lead("h1", at[0])?;
    for delay_ms in [0, 1, 2, 4, 8, 16, 32, 64, 250, 1100] {
        for victim in at {
            let [old, new] = at;
            stage.move_host("h1", new)?;
            let due = Instant::now() + Duration::from_millis(delay_ms);
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            stage.kill(victim);
            stage.lab.start(victim)?;
            let context = |e| format!("{victim} killed {delay_ms} ms after {old} → {new}: {e}");
            stage.all_are_connected().map_err(context)?;
            stage.routers_lead("h1", new).map_err(context)?;
            stage.host_is_reachable("h1").map_err(context)?;
            stage.routers_hold_exactly(&[("h1", new)]).map_err(context)?;
            at = [new, old];
        }
    }
    Ok(())
}

#[test]
fn anchors_are_killed_and_restarted_flat() -> Result<()> {
    killed_and_restarted(FLAT)
}

#[test]
fn anchors_are_killed_and_restarted_controller() -> Result<()> {
    killed_and_restarted(CONTROLLER)
}

/// The new anchor dies in mid-transfer, and the host goes back to where it came from.
#[test]
fn the_new_anchor_dies_and_the_host_goes_back() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    for lab in [FLAT, CONTROLLER] {
        let mut stage = Stage::set(lab)?;
        stage.move_host("h1", "b")?;
        stage.routers_lead("h1", "b")?;
        stage.move_host("h1", "c")?;
        stage.kill("c");
        stage.move_host("h1", "b")?;
        stage.routers_lead("h1", "b")?;
        stage.host_is_reachable("h1")?;
        stage.lab.start("c")?;
        stage.all_are_connected()?;
        stage.routers_hold_exactly(&[("h1", "b")])?;
        stage.host_is_reachable("h1")?;
    }
    Ok(())
}

/// The new anchor cannot reach the old one: it does without the context. So it does when it is killed
/// right after the host came, which is before, while or after it waited.
fn the_context_cannot_be_had(lab: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(lab)?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    for killed in [false, true] {
        let (old, new) = if killed { ("c", "b") } else { ("b", "c") };
        let fe_e = stage.scene.anchors[old].fe_e[0];
        stage.lab.sh(new, &format!("ip route add blackhole {fe_e}/32"))?;
        stage.move_host("h1", new)?;
        if killed {
            stage.kill(new);
            stage.lab.start(new)?;
        }
        stage.routers_lead("h1", new)?;
        stage.host_is_reachable("h1")?;
        stage.lab.sh(new, &format!("ip route del blackhole {fe_e}/32"))?;
        stage.all_are_connected()?;
        stage.routers_lead("h1", new)?;
        stage.routers_hold_exactly(&[("h1", new)])?;
        stage.host_is_reachable("h1")?;
    }
    Ok(())
}

#[test]
fn the_context_cannot_be_had_flat() -> Result<()> {
    the_context_cannot_be_had(FLAT)
}

#[test]
fn the_context_cannot_be_had_controller() -> Result<()> {
    the_context_cannot_be_had(CONTROLLER)
}

/// The controller is killed and restarted while a host moves: its anchors tell it everything again.
#[test]
fn the_controller_is_killed_and_restarted() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(CONTROLLER)?;
    stage.move_host("h1", "b")?;
    stage.routers_lead("h1", "b")?;
    stage.move_host("h2", "c")?;
    stage.routers_lead("h2", "c")?;
    stage.kill("ctl");
    stage.move_host("h1", "c")?;
    stage.lab.start("ctl")?;
    stage.all_are_connected()?;
    stage.routers_lead("h1", "c")?;
    stage.routers_hold_exactly(&[("h1", "c"), ("h2", "c")])?;
    stage.host_is_reachable("h1")?;
    stage.host_is_reachable("h2")
}
