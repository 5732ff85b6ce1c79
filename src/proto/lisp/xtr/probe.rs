//! Whether locators answer (RFC 9301 §7.1): each distinct locator is probed, however many mappings
//! have it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::request::Asker;
use super::{Nonces, Output};
use crate::types::lisp::{InstanceId, RlocSet};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{CONTROL_PORT, MapReply, Message};

/// Locators probed at once. Those beyond count as reachable.
pub const PROBED_MAX: usize = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Between probes of one locator that answers, and of one that does not; jittered by a fourth.
    pub interval: Duration,
    /// How long an answer may take. After a loss the next probe goes at once.
    pub timeout: Duration,
    /// Losses in a row after which the locator counts as down.
    pub losses_max: u32,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(1), losses_max: 3 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// Not answered yet; counts as reachable.
    Unknown,
    Up,
    Down,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeView {
    pub rloc: IpAddr,
    pub state: ProbeState,
    /// Of the last answer.
    pub rtt: Option<Duration>,
    pub losses: u32,
    /// Mappings that have it.
    pub mappings: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounts {
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    /// Answers with no nonce of ours, that are not authoritative, or about another locator.
    pub refused: u64,
    /// Locators that are not probed because [`PROBED_MAX`] are.
    pub full: u64,
}

#[derive(Debug)]
struct Target {
    mappings: u64,
    /// The mapping that had it last: what the probe asks for.
    eid: (InstanceId, Prefix),
    state: ProbeState,
    outstanding: Option<(u64, Instant)>,
    losses: u32,
    rtt: Option<Duration>,
    at: Instant,
}

#[derive(Debug)]
pub struct Prober {
    config: Option<ProbeConfig>,
    targets: BTreeMap<IpAddr, Target>,
    by_nonce: BTreeMap<u64, IpAddr>,
    timers: BTreeSet<(Instant, IpAddr)>,
    nonces: Nonces,
    counts: ProbeCounts,
    targets_max: usize,
}

impl Prober {
    /// Without a configuration nothing is probed.
    pub fn new(config: Option<ProbeConfig>, nonces: Nonces) -> Self {
        Self {
            config,
            targets: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            timers: BTreeSet::new(),
            nonces,
            counts: ProbeCounts::default(),
            targets_max: PROBED_MAX,
        }
    }

    /// A mapping has these locators.
    pub fn add(&mut self, eid: (InstanceId, Prefix), rlocs: &RlocSet, now: Instant) {
        let Some(config) = self.config else { return };
        for rloc in rlocs.iter() {
            if let Some(target) = self.targets.get_mut(&rloc.addr) {
                target.mappings += 1;
                target.eid = eid;
                continue;
            }
            if self.targets.len() >= self.targets_max {
                self.counts.full += 1;
                continue;
            }
            // The first one soon, but not all at once when many locators become known.
            let at = now + jitter(&mut self.nonces, config.interval / 4);
            self.timers.insert((at, rloc.addr));
            let target = Target {
                mappings: 1,
                eid,
                state: ProbeState::Unknown,
                outstanding: None,
                losses: 0,
                rtt: None,
                at,
            };
            self.targets.insert(rloc.addr, target);
        }
    }

    /// A mapping no longer has these locators; the last one ends the probing, and what it found.
    pub fn remove(&mut self, rlocs: &RlocSet, out: &mut Vec<Output>) {
        for rloc in rlocs.iter() {
            let Some(target) = self.targets.get_mut(&rloc.addr) else { continue };
            target.mappings -= 1;
            if target.mappings > 0 {
                continue;
            }
            self.timers.remove(&(target.at, rloc.addr));
            if let Some((nonce, _)) = target.outstanding {
                self.by_nonce.remove(&nonce);
            }
            if target.state == ProbeState::Down {
                out.push(Output::SetReachable { rloc: rloc.addr, reachable: true });
            }
            self.targets.remove(&rloc.addr);
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        self.timers.first().map_or(Instant::FAR_FUTURE, |&(at, _)| at)
    }

    pub fn handle_timeout(&mut self, asker: &Asker, now: Instant, out: &mut Vec<Output>) {
        let Some(config) = self.config else { return };
        while let Some(&(at, rloc)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, rloc));
            let target = self.targets.get_mut(&rloc).expect("timers name what is there");
            if let Some((nonce, _)) = target.outstanding.take() {
                self.by_nonce.remove(&nonce);
                self.counts.lost += 1;
                target.losses = target.losses.saturating_add(1);
                if target.losses >= config.losses_max && target.state != ProbeState::Down {
                    target.state = ProbeState::Down;
                    out.push(Output::SetReachable { rloc, reachable: false });
                }
                if target.state == ProbeState::Down {
                    // Known to be down: at the pace of the others.
                    target.at = now + jittered(&mut self.nonces, config.interval);
                    self.timers.insert((target.at, rloc));
                    continue;
                }
            }
            let nonce = self.nonces.random();
            target.outstanding = Some((nonce, now));
            target.at = now + config.timeout;
            self.timers.insert((target.at, rloc));
            self.by_nonce.insert(nonce, rloc);
            self.counts.sent += 1;
            let (iid, prefix) = target.eid;
            let mut request = asker.request(nonce, iid, prefix);
            request.probe = true;
            out.push(Output::Send {
                to: SocketAddr::new(rloc, CONTROL_PORT),
                message: Message::MapRequest(request),
                sign_with: None,
            });
        }
    }

    /// A Map-Reply with the probe bit. Only the locator's state is taken from it: the records come
    /// from who answers at that address, not from the mapping system.
    pub fn handle_reply(&mut self, reply: &MapReply, now: Instant, out: &mut Vec<Output>) {
        let Some(config) = self.config else { return };
        let Some(&rloc) = self.by_nonce.get(&reply.nonce) else {
            self.counts.refused += 1;
            return;
        };
        // §5.4: "the A-bit MUST be set, otherwise silently discarded"; the first locator with the
        // p bit is the one that was probed.
        let authoritative = reply.records.iter().all(|record| record.authoritative);
        let mut rlocs = reply.records.iter().flat_map(|record| &record.rlocs);
        let probed = rlocs.find(|r| r.probed).and_then(|r| r.address.ip());
        if !authoritative || probed.is_some_and(|probed| probed != rloc) {
            self.counts.refused += 1;
            return;
        }
        self.by_nonce.remove(&reply.nonce);
        let target = self.targets.get_mut(&rloc).expect("nonces name what is there");
        let (_, sent_at) = target.outstanding.take().expect("its nonce is outstanding");
        self.counts.answered += 1;
        target.rtt = Some(now - sent_at);
        target.losses = 0;
        self.timers.remove(&(target.at, rloc));
        target.at = now + jittered(&mut self.nonces, config.interval);
        self.timers.insert((target.at, rloc));
        if std::mem::replace(&mut target.state, ProbeState::Up) == ProbeState::Down {
            out.push(Output::SetReachable { rloc, reachable: true });
        }
    }

    pub fn counts(&self) -> ProbeCounts {
        self.counts
    }

    /// Locators in order, beginning after `after`.
    pub fn targets(&self, after: Option<IpAddr>) -> impl Iterator<Item = ProbeView> + '_ {
        let from = after.map_or(Unbounded, Excluded);
        self.targets.range((from, Unbounded)).map(|(&rloc, target)| ProbeView {
            rloc,
            state: target.state,
            rtt: target.rtt,
            losses: target.losses,
            mappings: target.mappings,
        })
    }
}

/// §7.1: "sent periodically using a jittered timer interval".
fn jittered(nonces: &mut Nonces, interval: Duration) -> Duration {
    interval * 3 / 4 + jitter(nonces, interval / 4)
}

fn jitter(nonces: &mut Nonces, spread: Duration) -> Duration {
    let spread_us = u64::try_from(spread.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(nonces.below(spread_us))
}
