//! What a seed decides before the run: who is there, where the hosts go, and what goes wrong.

use std::time::Duration;

use killick::types::Instant;

use super::random::Random;

pub const ANCHORS: usize = 3;
pub const LINKS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The anchors speak iBGP.
    Distributed,
    /// The anchors report to controllers, which speak iBGP.
    Controller,
}

/// When in a turn the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The kernel has the entries, the store has nothing, nobody was told.
    BeforeCommit,
    /// The store has it, nobody was told.
    AfterCommit,
    /// BGP was told, the other anchors were not.
    AfterBgp,
    AfterTurn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub anchor: usize,
    pub link: u32,
}

#[derive(Clone, Debug)]
pub enum Action {
    /// `None`: the host is switched off.
    Move { host: usize, to: Option<Place> },
    /// The anchor of the host is told where it goes (perhaps wrongly).
    Predict { host: usize, to: usize },
    /// One last frame of the host from a place where it no longer is.
    Echo { host: usize, from: Place },
    /// All TCP connections between two are reset; what is in flight is lost.
    Cut { a: usize, b: usize },
    /// Nothing passes from `a` to `b` (and from `b` to `a`); streams go on afterwards.
    Partition { a: usize, b: usize, both: bool, lasts: Duration },
    /// The context transfer link of two is down for a while.
    LinkFlap { a: usize, b: usize, lasts: Duration },
    /// The process dies in its `turns`th turn from now, and is back later. `silent`: the whole
    /// machine, so that nobody is told.
    Crash { who: usize, turns: u32, moment: Moment, lasts: Duration, silent: bool },
}

#[derive(Clone, Copy, Debug)]
pub struct HostPlan {
    /// Anchor whose pool the addresses are from; `None`: a pool without home.
    pub home: Option<usize>,
    pub ipv6: bool,
    pub talks_every: Duration,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mode: Mode,
    pub controllers: usize,
    pub reflectors: usize,
    /// The reflectors wait to be connected to.
    pub reflectors_passive: bool,
    pub graceful: bool,
    pub hosts: Vec<HostPlan>,
    pub actions: Vec<(Instant, Action)>,
    /// One way, of everything, in µs.
    pub latency: (u64, u64),
    /// Of context transfer messages, in per cent.
    pub loss: u64,
    pub duplication: u64,
    /// Further delay of single context transfer messages, in µs: they overtake each other.
    pub jitter: u64,
    /// Of forwarding entries, in µs; 0: within the turn, as the daemon does it.
    pub forwarding: u64,
    /// No faults, and moves far from each other: then the bounds are tight.
    pub calm: bool,
    /// After the last action and fault.
    pub end: Instant,
}

impl Plan {
    pub fn nodes(&self) -> usize {
        ANCHORS + self.controllers
    }

    /// Of the first router; the first reflector is at `nodes()`.
    pub fn routers_from(&self) -> usize {
        self.nodes() + self.reflectors
    }

    pub fn actors(&self) -> usize {
        self.routers_from() + 2
    }

    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut r = Random::new(seed);
        let calm = r.chance(10);
        let controllers = match mode {
            Mode::Distributed => 0,
            Mode::Controller => 1 + r.index(2),
        };
        let reflectors = 1 + usize::from(r.chance(30));
        let latency = match r.below(4) {
            0 => (50, 200),
            1 | 2 => (100, 5_000),
            _ => (1_000, 80_000),
        };
        let lossy = !calm && r.chance(60);
        let mut plan = Self {
            seed,
            mode,
            controllers,
            reflectors,
            reflectors_passive: r.chance(50),
            graceful: r.chance(50),
            hosts: Vec::new(),
            actions: Vec::new(),
            latency: if calm { (50, 2_000) } else { latency },
            loss: if lossy { r.below(40) } else { 0 },
            duplication: if lossy { r.below(30) } else { 0 },
            jitter: if lossy { r.below(300_000) } else { 0 },
            forwarding: if r.chance(30) { r.below(80_000) } else { 0 },
            calm,
            end: Instant::ZERO,
        };
        for _ in 0..1 + r.index(3) {
            let home = (!r.chance(20)).then(|| r.index(ANCHORS));
            let talks_every = r.millis(100, 1_000);
            plan.hosts.push(HostPlan { home, ipv6: r.chance(40), talks_every });
        }
        for host in 0..plan.hosts.len() {
            plan.moves(host, &mut r);
        }
        if !calm {
            for _ in 0..r.index(7) {
                plan.fault(&mut r);
            }
        }
        // Stable, so that actions of the same instant keep their order.
        plan.actions.sort_by_key(|(at, _)| *at);
        let over = plan.actions.iter().map(|(at, action)| match action {
            Action::Partition { lasts, .. } | Action::LinkFlap { lasts, .. } => *at + *lasts,
            // The turn in which it happens may be a while away.
            Action::Crash { lasts, .. } => *at + *lasts + Duration::from_secs(5),
            _ => *at,
        });
        plan.end = over.max().unwrap_or_default();
        plan
    }

    fn moves(&mut self, host: usize, r: &mut Random) {
        let place = |r: &mut Random| Place {
            anchor: r.index(ANCHORS),
            link: 1 + r.below(LINKS.into()) as u32,
        };
        // The first attach may come before the sessions.
        let mut at =
            Instant::ZERO + if self.calm { r.millis(8_000, 9_000) } else { r.millis(0, 9_000) };
        let mut here: Option<Place> = None;
        let rounds = 1 + r.index(6);
        for _ in 0..rounds {
            let mut to = place(r);
            if r.chance(25)
                && let Some(home) = self.hosts[host].home
            {
                to.anchor = home;
            }
            match (here, r.below(if self.calm { 3 } else { 10 })) {
                // A burst of ping-pong.
                (Some(from), 7) => {
                    let gap = r.millis(1, 300);
                    for i in 0..2 + r.index(8) {
                        let next = if i % 2 == 0 { to } else { from };
                        self.actions.push((at, Action::Move { host, to: Some(next) }));
                        here = Some(next);
                        at += gap;
                    }
                }
                // At two anchors within a millisecond; the later one is true.
                (Some(from), 8) => {
                    self.actions.push((at, Action::Move { host, to: Some(to) }));
                    here = Some(to);
                    self.actions.push((at + r.micros(0, 900), Action::Echo { host, from }));
                }
                (Some(_), 9) => {
                    self.actions.push((at, Action::Move { host, to: None }));
                    here = None;
                }
                (Some(_), 5 | 6) => {
                    let told = if r.chance(80) { to.anchor } else { r.index(ANCHORS) };
                    self.actions.push((at, Action::Predict { host, to: told }));
                    at += r.millis(0, 300);
                    self.actions.push((at, Action::Move { host, to: Some(to) }));
                    here = Some(to);
                }
                _ => {
                    self.actions.push((at, Action::Move { host, to: Some(to) }));
                    here = Some(to);
                }
            }
            at += match r.below(4) {
                _ if self.calm => r.millis(4_000, 9_000),
                0 => r.millis(0, 50),
                1 => r.millis(50, 1_000),
                2 => r.millis(1_000, 5_000),
                _ => r.millis(2_000, 45_000),
            };
        }
    }

    fn fault(&mut self, r: &mut Random) {
        // Around a move more often than not: that is where the steps are.
        let moves: Vec<Instant> = self.actions.iter().map(|(at, _)| *at).collect();
        let at = if moves.is_empty() || r.chance(30) {
            Instant::ZERO + r.millis(0, 30_000)
        } else {
            let soon = if r.chance(50) { 30 } else { 3_000 };
            moves[r.index(moves.len())] + r.millis(0, soon)
        };
        let lasts = match r.below(3) {
            0 => r.millis(1, 500),
            1 => r.millis(500, 6_000),
            _ => r.millis(5_000, 40_000),
        };
        let nodes = self.nodes();
        let speakers = self.routers_from();
        let all = self.actors();
        let (a, b) = (r.index(nodes), r.index(all));
        let peer = r.index(nodes);
        let silent = r.chance(25);
        let action = match r.below(6) {
            0 => Action::Cut { a, b },
            1 => Action::Partition { a, b, both: r.chance(60), lasts },
            2 => Action::LinkFlap { a, b: peer, lasts },
            3 => {
                let moment = Moment::AfterTurn;
                Action::Crash {
                    who: nodes + r.index(speakers - nodes),
                    turns: 0,
                    moment,
                    lasts,
                    silent,
                }
            }
            _ => {
                let moment = match r.below(4) {
                    0 => Moment::BeforeCommit,
                    1 => Moment::AfterCommit,
                    2 => Moment::AfterBgp,
                    _ => Moment::AfterTurn,
                };
                Action::Crash { who: a, turns: r.below(12) as u32, moment, lasts, silent }
            }
        };
        self.actions.push((at, action));
    }
}
