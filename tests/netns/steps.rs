//! A killick that is killed with -9 at each step of a relocation. A step is a call by which something
//! leaves the process: to the kernel, to the store, to a router, to another killick. It is killed right
//! before the first such call, in the next relocation before the second, and so on until a relocation
//! needs fewer calls than that; each time it is restarted, and all must end as if nothing had been.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::stage::{LIMIT, Stage};
use super::strace::{Call, Kind, Strace, may_trace};
use super::topology::Role;
use super::{Result, may_build_labs};

const FLAT: &str = "ibgp-flat";
const CONTROLLER: &str = "ibgp-controller";

/// Away from home, from one foreign anchor to another, home again. The other host stays at home.
const TOUR: [[&str; 2]; 3] = [["a", "b"], ["b", "c"], ["c", "a"]];

/// `settle-delay` of the labs, after which the last of a relocation's messages leaves, and then some.
const SETTLED: Duration = Duration::from_millis(1300);

/// In place of four minutes.
const UNCONFIRMED: &str = "settle-unconfirmed = \"2s\"";

/// More than any relocation needs.
const MOST_STEPS: usize = 60;

#[derive(Clone, Copy)]
enum Victim {
    Old,
    New,
    /// The node of that name.
    Node(&'static str),
}

/// What one relocation was like for the victim.
enum Outcome {
    /// Before this call.
    Killed(Call),
    /// It made these.
    Survived(Vec<Call>),
}

struct Tour {
    stage: Stage,
    victim: Victim,
}

impl Tour {
    /// All is as it should be with h1 at `anchor`, also when every claim has settled: nothing older
    /// was only hidden behind it.
    fn check(&self, anchor: &'static str) -> Result<()> {
        let stage = &self.stage;
        patiently(|| stage.scene.wait_until_connected(&stage.lab, Duration::ZERO))?;
        stage.routers_lead("h1", anchor)?;
        patiently(|| self.is_quiet())?;
        stage.host_is_reachable("h1")?;
        let away = [("h1", anchor)];
        stage.routers_hold_exactly(if anchor == "a" { &[] } else { &away })?;
        stage.anchors_deliver_exactly(&[("h1", anchor), ("h2", "a")])
    }

    /// Moves h1, and kills the victim before its call of that kind and number.
    fn relocate(
        &mut self,
        [old, new]: [&'static str; 2],
        kill_before: Option<(Kind, usize)>,
    ) -> Result<Outcome> {
        let victim = match self.victim {
            Victim::Old => old,
            Victim::New => new,
            Victim::Node(name) => name,
        };
        let folder = self.stage.lab.namespace(victim)?.folder.clone();
        let strace = Strace::attach(self.stage.pid(victim)?, &folder, kill_before)?;
        self.stage.move_host("h1", new)?;
        let lives = self.lives_through(victim, new)?;
        let mut calls = strace.detach()?;
        // A keepalive may have been the last step, after all that belongs to the relocation.
        let is_struck = kill_before.is_some_and(|(_, number)| calls.len() >= number);
        match (lives, is_struck) {
            (true, false) => return Ok(Outcome::Survived(calls)),
            (false, false) => return Err(format!("{victim} died by itself").into()),
            (_, true) => {}
        }
        let last = calls.pop().ok_or("killed before it did anything")?;
        self.stage.kill(victim);
        self.stage.lab.start(victim)?;
        Ok(Outcome::Killed(last))
    }

    /// Until it is dead, or the relocation is over.
    fn lives_through(&mut self, victim: &str, new: &str) -> Result<bool> {
        let mut lives = true;
        let led = patiently(|| {
            lives = self.stage.is_running(victim);
            let dissenters = self.stage.scene.dissenters(&self.stage.lab, "h1", new);
            if !lives || dissenters.is_empty() { Ok(()) } else { Err(dissenters.join("; ").into()) }
        });
        led?;
        let since = Instant::now();
        while lives && since.elapsed() < SETTLED {
            std::thread::sleep(Duration::from_millis(10));
            lives = self.stage.is_running(victim);
        }
        Ok(lives)
    }

    /// Nothing of an earlier relocation is still to be said.
    fn is_quiet(&self) -> Result<()> {
        for node in self.stage.lab.with_role(Role::Killick) {
            let told = self.stage.lab.killick_json(node, "mobility sessions")?;
            for item in told["items"].as_array().ok_or("no list of sessions")? {
                if matches!(item["state"].as_str(), Some("preparing" | "claiming")) {
                    return Err(format!("{node} has not settled: {item}").into());
                }
            }
        }
        Ok(())
    }
}

/// Until it holds. The questions cost processor time, which the daemons of several labs need.
fn patiently(mut holds: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match holds() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(150)),
            outcome => return outcome,
        }
    }
}

/// The lab, but with patience that suits victims which are restarted at once: after it, a claim of
/// which nobody could tell that the older ones are gone settles like any other.
fn set(lab: &str) -> Result<Stage> {
    Stage::set_with(lab, |lab| {
        for node in lab.with_role(Role::Killick) {
            let path = lab.namespace(node)?.path("/etc/killick/killick.toml");
            let config = std::fs::read_to_string(&path)?;
            let (before, after) =
                config.split_once("[mobility]\n").ok_or("a killick without mobility")?;
            std::fs::write(&path, format!("{before}[mobility]\n{UNCONFIRMED}\n{after}"))?;
        }
        Ok(())
    })
}

/// Where a leg of the tour stands.
struct Leg {
    /// As the victim made them when it was left alone.
    steps: Vec<Call>,
    /// What is left: one kind of steps after the other.
    kinds: BTreeSet<Kind>,
    number: usize,
}

impl Leg {
    /// The step before which the victim dies next.
    fn next(&mut self, share: Share) -> Option<(Kind, usize)> {
        let kind = *self.kinds.first()?;
        let of_kind: Vec<&Call> = self.steps.iter().filter(|call| call.kind == kind).collect();
        while of_kind.get(self.number - 1).is_some_and(|call| call.only_asks()) {
            self.number += share.of;
        }
        Some((kind, self.number))
    }
}

/// Steps are shared by that many labs: this one has number `first`, `first + of` and so on.
#[derive(Clone, Copy)]
struct Share {
    first: usize,
    of: usize,
}

fn killed_at_each_step(lab: &'static str, victim: Victim) -> Result<()> {
    killed_at_each_step_of(lab, victim, Share { first: 1, of: 1 })
}

fn killed_at_each_step_of(lab: &'static str, victim: Victim, share: Share) -> Result<()> {
    if !may_build_labs() || !may_trace() {
        return Ok(());
    }
    let who = match victim {
        Victim::Old => "the old anchor",
        Victim::New => "the new anchor",
        Victim::Node(name) => name,
    };
    let begin = Instant::now();
    let mut tour = Tour { stage: set(lab)?, victim };
    let mut legs = Vec::new();
    for ends in TOUR {
        let [old, new] = ends;
        let Outcome::Survived(steps) = tour.relocate(ends, None)? else {
            return Err(format!("{who} ended by itself").into());
        };
        let told: Vec<&str> = steps.iter().map(|call| call.does.as_str()).collect();
        println!("{lab}: {old} → {new}: {who} makes {} calls: {}", told.len(), told.join(", "));
        tour.check(new)?;
        let kinds = steps.iter().map(|call| call.kind).collect();
        legs.push(Leg { steps, kinds, number: share.first });
    }
    let mut kills = 0;
    while legs.iter().any(|leg| !leg.kinds.is_empty()) {
        for (ends, leg) in TOUR.into_iter().zip(&mut legs) {
            let [old, new] = ends;
            let Some((kind, number)) = leg.next(share) else {
                tour.stage.move_host("h1", new)?;
                tour.check(new)?;
                continue;
            };
            let since = Instant::now();
            let what = format!("{lab}: {old} → {new}: {who}: {kind:?} {number}");
            let context = |e| format!("{what}: {e}");
            let told = match tour.relocate(ends, Some((kind, number))).map_err(context)? {
                Outcome::Killed(call) => {
                    kills += 1;
                    leg.number += share.of;
                    format!("killed before {}", call.does)
                }
                Outcome::Survived(_) => {
                    leg.kinds.remove(&kind);
                    leg.number = share.first;
                    "survived".into()
                }
            };
            tour.check(new).map_err(|e| format!("{what}: {told}: {e}"))?;
            println!("{what}: {told} ({:.1} s)", since.elapsed().as_secs_f64());
            if leg.number > MOST_STEPS {
                return Err(format!("{what}: there is no end to it").into());
            }
        }
    }
    let steps: usize = legs.iter().map(|leg| leg.steps.len()).sum();
    println!(
        "{lab}: {who}: {kills} kills for {steps} steps in {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

#[test]
fn the_old_anchor_is_killed_at_each_step_flat() -> Result<()> {
    killed_at_each_step(FLAT, Victim::Old)
}

#[test]
fn the_new_anchor_is_killed_at_each_step_flat() -> Result<()> {
    killed_at_each_step(FLAT, Victim::New)
}

#[test]
fn the_old_anchor_is_killed_at_each_step_controller() -> Result<()> {
    killed_at_each_step(CONTROLLER, Victim::Old)
}

#[test]
fn the_new_anchor_is_killed_at_each_step_controller() -> Result<()> {
    killed_at_each_step(CONTROLLER, Victim::New)
}

/// In two labs side by side, since most of the time passes until GoBGP takes a session again.
#[test]
fn the_controller_is_killed_at_each_step() -> Result<()> {
    std::thread::scope(|scope| {
        let halves = [1, 2].map(|first| {
            let share = Share { first, of: 2 };
            let half = move || killed_at_each_step_of(CONTROLLER, Victim::Node("ctl"), share);
            scope.spawn(half)
        });
        for half in halves {
            half.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}
