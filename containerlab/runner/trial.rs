//! Many moves of one host that talks all the time, and every packet that they cost. The host's own
//! link has no gap (`handover.sh`), so what is lost, doubled or out of order is the network's work.
//!
//! *Predictive*: the old anchor is told before the host goes. *Reactive*: nobody is; packets that
//! the old anchor has delivered to an empty link before the new one asks are lost by nature, and are
//! counted apart from those that came after.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::Result;
use super::daemon::killick_program;
use super::lab::{Lab, wait_until};
use super::namespace;
use super::scene::Scene;
use super::topology::Role;
use super::traffic::{Flows, Plan, Report, Transfer, now_ns};

const CONNECTED_LIMIT: Duration = Duration::from_secs(30);
const AGREE_LIMIT: Duration = Duration::from_secs(10);
/// From the old anchor's warning to the move: a radio tells it some milliseconds ahead.
const WARNING: Duration = Duration::from_millis(20);
/// What is on its way at the end of a window arrives within this.
const ON_THE_WAY: Duration = Duration::from_millis(100);
const FIRST_PORT: u16 = 22_000;
const TRANSFER_PORT: u16 = 21_999;

#[derive(Clone, Debug)]
pub struct Trial {
    pub lab: String,
    pub moves: usize,
    pub pace: Duration,
    /// How long each move is watched; longer than claims take to settle.
    pub watch: Duration,
    /// Windows without a move, to compare with.
    pub control: usize,
    pub predictive: bool,
    /// `None`: as the configuration of the lab has it. Otherwise the section is put in or left out.
    pub transient: Option<bool>,
    pub tcp: bool,
}

/// Of one direction, over all moves.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sum {
    pub sent: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Lost although they were sent after the old anchor began to hold.
    pub lost_while_held: u64,
    /// One for each move and flow.
    #[serde(skip)]
    pub outages_ms: Vec<f64>,
}

impl Sum {
    fn add(&mut self, report: &Report, while_held: u64) {
        self.sent += report.sent;
        self.lost += report.lost;
        self.duplicated += report.duplicated;
        self.reordered += report.reordered;
        self.lost_while_held += while_held;
        self.outages_ms.push(report.outage_ms);
    }

    /// The outage below which `percent` of the moves stay.
    pub fn outage(&self, percent: usize) -> f64 {
        let mut sorted = self.outages_ms.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or(0.0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The same time without moves.
    pub control: [Sum; 2],
    /// From the host, and to it.
    pub moved: [Sum; 2],
    pub tcp_retransmissions: u32,
    pub tcp_stall_ms: Vec<f64>,
    /// Moves at which something was lost, doubled or out of order.
    pub noticed: Vec<String>,
}

pub const DIRECTIONS: [&str; 2] = ["from the host", "to the host"];

/// Puts `[transient]` into a configuration, or takes it out.
fn set_transient(lab: &Lab, wanted: bool) -> Result<()> {
    for node in lab.with_role(Role::Killick) {
        let path = lab.namespace(node)?.path("/etc/killick/killick.toml");
        let config = fs::read_to_string(&path)?;
        let has = config.lines().any(|line| line.trim() == "[transient]");
        if wanted && !has && config.contains("[[access]]") {
            let id = config.lines().find_map(|line| line.strip_prefix("anchor-id = "));
            let id = id.ok_or("a killick without anchor-id")?;
            // The address of its loopback: every anchor has it, whatever tunnels end there.
            let section = format!("[transient]\nlocator = {{ ipv4 = {id} }}\n");
            fs::write(&path, format!("{config}\n{section}"))?;
        } else if !wanted && has {
            let (before, after) = config.split_once("[transient]").ok_or("no section")?;
            let rest =
                after.split_once("\n[").map_or(String::new(), |(_, rest)| format!("[{rest}"));
            fs::write(&path, format!("{before}{rest}"))?;
        }
    }
    Ok(())
}

/// Runs it. `told`: a line for each move, for people.
pub fn measure(trial: &Trial, told: impl FnMut(String)) -> Result<Outcome> {
    measure_with(trial, |_| Ok(()), told)
}

/// `prepare` has its way with the lab before the killicks start.
pub fn measure_with(
    trial: &Trial,
    prepare: impl FnOnce(&Lab) -> Result<()>,
    mut told: impl FnMut(String),
) -> Result<Outcome> {
    let mut lab = Lab::up(&trial.lab, false)?;
    prepare(&lab)?;
    if let Some(wanted) = trial.transient {
        set_transient(&lab, wanted)?;
    }
    let killicks: Vec<String> = lab.with_role(Role::Killick).map(str::to_owned).collect();
    killicks.iter().try_for_each(|name| lab.start(name))?;
    let scene = Scene::of(&lab)?;
    scene.wait_until_connected(&lab, CONNECTED_LIMIT)?;
    let (host, known) = scene.hosts.iter().next().ok_or("no host")?;
    let correspondent = scene.correspondent_of(host)?;
    let go_to = |anchor: &str| -> Result<()> {
        let port = known.ports.get(anchor).ok_or("the host has no link there")?;
        lab.sh(host, &format!("sh /opt/lab/handover.sh {port}")).map(drop)
    };
    let tour: Vec<&String> =
        scene.anchors.keys().filter(|a| known.ports.contains_key(*a)).collect();
    let first = tour.first().ok_or("no anchor")?;
    go_to(first)?;
    for address in correspondent.addresses {
        wait_until(&format!("{host} reaches {address}"), AGREE_LIMIT, || {
            lab.sh(host, &format!("ping -c 1 -W 1 {address}")).map(Some)
        })?;
    }
    let mut plans = Vec::new();
    for (here, there) in known.addresses.iter().zip(correspondent.addresses) {
        let mut plan = |from: (&str, IpAddr), to: (&str, IpAddr)| -> Result<()> {
            let port = FIRST_PORT + plans.len() as u16;
            let at = |(node, address)| -> Result<_> {
                Ok((lab.namespace(node)?, SocketAddr::new(address, port)))
            };
            plans.push(Plan { from: at(from)?, to: at(to)? });
            Ok(())
        };
        plan((host, *here), (&correspondent.name, there))?;
        plan((&correspondent.name, there), (host, *here))?;
    }
    let flows = Flows::start(&plans, trial.pace)?;
    let transfer = match trial.tcp {
        true => {
            let from = SocketAddr::new(correspondent.addresses[0], TRANSFER_PORT);
            let to = SocketAddr::new(known.addresses[0], TRANSFER_PORT);
            let from = (lab.namespace(&correspondent.name)?, from);
            Some(Transfer::start(&Plan { from, to: (lab.namespace(host)?, to) })?)
        }
        false => None,
    };
    let window_from = |start: u64| {
        let end = start + trial.watch.as_nanos() as u64;
        std::thread::sleep(Duration::from_nanos(end.saturating_sub(now_ns())) + ON_THE_WAY);
        start..end
    };
    let mut outcome = Outcome::default();
    std::thread::sleep(trial.watch);
    for _ in 0..trial.control {
        let window = window_from(now_ns());
        for flow in 0..plans.len() {
            outcome.control[flow % 2].add(&flows.report(flow, window.clone()), 0);
        }
    }
    for at in 1..=trial.moves {
        let (from, to) = (tour[(at - 1) % tour.len()], tour[at % tour.len()]);
        let start = now_ns();
        if trial.predictive {
            let id = &scene.anchors[to].id;
            let mut killick = lab.namespace(from)?.command(&killick_program()?);
            namespace::run(killick.args(["mobility", "move", &known.mac, id]))?;
            std::thread::sleep(WARNING);
        }
        go_to(to)?;
        let window = window_from(start);
        let mut line = format!("{at:>4} {from} → {to}:");
        let mut noticed = false;
        for flow in 0..plans.len() {
            let report = flows.report(flow, window.clone());
            let held = held_since(&lab, from, &known.mac, known.addresses[flow / 2], start);
            let while_held = match held {
                Some(since) if report.lost > 0 => {
                    flows.report(flow, since.max(window.start)..window.end).lost
                }
                Some(_) | None => 0,
            };
            let Report { lost, duplicated, reordered, outage_ms, .. } = report;
            line += &format!(" {lost}/{duplicated}/{reordered} {outage_ms:.1} ms");
            noticed |= lost + duplicated + reordered > 0;
            outcome.moved[flow % 2].add(&report, while_held);
        }
        if let Some(transfer) = &transfer {
            let report = transfer.report(window)?;
            outcome.tcp_retransmissions += report.retransmissions;
            outcome.tcp_stall_ms.push(report.stall_ms);
        }
        if noticed {
            outcome.noticed.push(line.clone());
        }
        told(line);
    }
    Ok(outcome)
}

/// When the old anchor began to hold the packets to an address, in nanoseconds of the wall clock.
fn held_since(lab: &Lab, anchor: &str, mn: &str, address: IpAddr, start_ns: u64) -> Option<u64> {
    let told = lab.killick_json(anchor, &format!("trace {mn}")).ok()?;
    let prefix = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let traces = told.as_array()?.iter();
    let steps = traces.flat_map(|trace| {
        let began = trace["started-unix-us"].as_u64().unwrap_or(0);
        let steps = trace["steps"].as_array().into_iter().flatten();
        steps.map(move |step| (began, step))
    });
    let holding = steps.filter(|(_, step)| step["phase"] == "holding" && step["prefix"] == *prefix);
    let since = holding.filter_map(|(began, step)| {
        let first = step["at-us"].as_u64()?;
        Some((began + first) * 1000)
    });
    since.filter(|at| *at >= start_ns).min()
}
