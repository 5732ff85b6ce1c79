//! R_XC: an anchor tells controllers where its nodes are, and a controller listens.
//!
//! After each link-up everything is reported once, in an epoch of numbered batches; then changes
//! follow. The newest state of a prefix is what is sent, also in a retransmission, so a storm of
//! changes of one node takes no room. Batches are taken in order only and acknowledged by number,
//! exactly; RFC 4067 has no report, and its CTDR could not say which state it acknowledges.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use serde::Serialize;

use super::Output;
use crate::types::transfer::{Report, ReportBatch, Signal};
use crate::types::{AnchorId, Binding, Instant, Prefix};

/// Reports in one batch: with the longest names 45 KB, which fits a message.
const BATCH_LEN_MAX: usize = 128;
/// Batches that are not acknowledged. When full, changes wait, and are packed by then.
const WINDOW_MAX: usize = 64;
/// Bindings that are gone while the controller does not acknowledge. Beyond, everything is
/// reported anew, which says the same and needs no memory.
const GONE_MAX: usize = 262_144;
/// First wait for an acknowledgement; doubles.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReportCounters {
    pub batches_sent: u64,
    pub batches_retransmitted: u64,
    pub reports_sent: u64,
    pub syncs: u64,
    pub syncs_forced: u64,
    pub batches_taken: u64,
    pub reports_taken: u64,
    /// Of another epoch, repeated, or after a gap.
    pub batches_ignored: u64,
    /// For a prefix the anchor may not claim, or in another's name.
    pub reports_not_authorised: u64,
    /// To a node that is no controller.
    pub batches_unwanted: u64,
}

impl ReportCounters {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            batches_sent: self.batches_sent + other.batches_sent,
            batches_retransmitted: self.batches_retransmitted + other.batches_retransmitted,
            reports_sent: self.reports_sent + other.reports_sent,
            syncs: self.syncs + other.syncs,
            syncs_forced: self.syncs_forced + other.syncs_forced,
            batches_taken: self.batches_taken + other.batches_taken,
            reports_taken: self.reports_taken + other.reports_taken,
            batches_ignored: self.batches_ignored + other.batches_ignored,
            reports_not_authorised: self.reports_not_authorised + other.reports_not_authorised,
            batches_unwanted: self.batches_unwanted + other.batches_unwanted,
        }
    }
}

/// The link to one controller, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReporterView {
    pub controller: AnchorId,
    pub synchronised: bool,
    pub unacknowledged_batches: usize,
    pub waiting_changes: usize,
    /// Bindings that are gone, remembered until that is acknowledged.
    pub unacknowledged_removals: usize,
}

/// The anchor's end, for all controllers.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    pub(super) current: BTreeMap<Prefix, Binding>,
    /// Those whose link is up; the others need no memory, they will get everything.
    controllers: BTreeMap<AnchorId, Controller>,
    last_epoch: u32,
    counters: ReportCounters,
}

#[derive(Debug)]
struct Controller {
    epoch: u32,
    next_batch: u32,
    unacked: VecDeque<Batch>,
    sync: Sync,
    /// Changed since they were sent, or not sent yet; those the sync will reach are not in here.
    dirty: BTreeSet<Prefix>,
    /// Last state of bindings that are gone, and the last batch that said so.
    gone: BTreeMap<Prefix, (Binding, Option<u32>)>,
    retry_at: Instant,
    wait: Duration,
}

#[derive(Debug)]
struct Batch {
    number: u32,
    prefixes: Vec<Prefix>,
    sync_end: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    /// Everything after this prefix is to come.
    After(Option<Prefix>),
    Done,
}

impl Reporter {
    pub(super) fn new(first_epoch: u32) -> Self {
        Self { last_epoch: first_epoch, ..Self::default() }
    }

    pub(super) fn counters(&self) -> ReportCounters {
        self.counters
    }

    pub(super) fn views(&self) -> Vec<ReporterView> {
        let view = |(&controller, state): (&AnchorId, &Controller)| ReporterView {
            controller,
            synchronised: state.sync == Sync::Done && !state.unacked.iter().any(|b| b.sync_end),
            unacknowledged_batches: state.unacked.len(),
            waiting_changes: state.dirty.len(),
            unacknowledged_removals: state.gone.len(),
        };
        self.controllers.iter().map(view).collect()
    }

    pub(super) fn handle_link_up(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        self.start_epoch(peer);
        self.flush(peer, now, out);
    }

    pub(super) fn handle_link_down(&mut self, peer: AnchorId) {
        self.controllers.remove(&peer);
    }

    fn start_epoch(&mut self, peer: AnchorId) {
        self.last_epoch = self.last_epoch.wrapping_add(1);
        self.counters.syncs += 1;
        let controller = Controller {
            epoch: self.last_epoch,
            next_batch: 1,
            unacked: VecDeque::new(),
            sync: Sync::After(None),
            dirty: BTreeSet::new(),
            gone: BTreeMap::new(),
            retry_at: Instant::FAR_FUTURE,
            wait: RETRY,
        };
        self.controllers.insert(peer, controller);
    }

    /// As many bindings as the location database holds; it has the limit.
    pub(super) fn handle_binding(
        &mut self,
        prefix: Prefix,
        binding: Option<Binding>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let old = match binding {
            Some(binding) => self.current.insert(prefix, binding),
            None => self.current.remove(&prefix),
        };
        let is_gone = !self.current.contains_key(&prefix);
        if is_gone && old.is_none() {
            return;
        }
        let peers: Vec<AnchorId> = self.controllers.keys().copied().collect();
        for peer in peers {
            let Some(controller) = self.controllers.get_mut(&peer) else { continue };
            // What the sync has not reached yet, it will find as it is then.
            let to_come = match controller.sync {
                Sync::After(None) => true,
                Sync::After(Some(last)) => prefix > last,
                Sync::Done => false,
            };
            if to_come {
                continue;
            }
            match (&old, is_gone) {
                (Some(old), true) => {
                    controller.gone.insert(prefix, (old.clone(), None));
                }
                (_, _) => {
                    controller.gone.remove(&prefix);
                }
            }
            controller.dirty.insert(prefix);
            if controller.gone.len() > GONE_MAX {
                self.counters.syncs_forced += 1;
                self.start_epoch(peer);
            }
            self.flush(peer, now, out);
        }
    }

    /// Sends what the window allows: changes first, they are news.
    fn flush(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        let Some(controller) = self.controllers.get_mut(&peer) else { return };
        while controller.unacked.len() < WINDOW_MAX {
            let mut prefixes = Vec::new();
            while prefixes.len() < BATCH_LEN_MAX
                && let Some(prefix) = controller.dirty.pop_first()
            {
                prefixes.push(prefix);
            }
            let mut sync_end = false;
            if let Sync::After(last) = controller.sync {
                let from = last.map_or(Bound::Unbounded, Bound::Excluded);
                let room = BATCH_LEN_MAX - prefixes.len();
                let page = self.current.range((from, Bound::Unbounded)).map(|(p, _)| *p);
                let page: Vec<Prefix> = page.take(room).collect();
                sync_end = page.len() < room;
                controller.sync = match page.last() {
                    _ if sync_end => Sync::Done,
                    Some(&last) => Sync::After(Some(last)),
                    None => controller.sync, // no room beside the changes
                };
                prefixes.extend(page);
            }
            if prefixes.is_empty() && !sync_end {
                break;
            }
            let batch = Batch { number: controller.next_batch, prefixes, sync_end };
            controller.next_batch = controller.next_batch.wrapping_add(1);
            if controller.unacked.is_empty() {
                (controller.retry_at, controller.wait) = (now + RETRY, RETRY);
            }
            self.counters.batches_sent += 1;
            let signal = controller.encode(&batch, &self.current, &mut self.counters);
            out.push(Output::Send { to: peer, signal });
            controller.unacked.push_back(batch);
        }
    }

    pub(super) fn handle_ack(
        &mut self,
        peer: AnchorId,
        epoch: u32,
        number: u32,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(controller) = self.controllers.get_mut(&peer) else { return };
        if controller.epoch != epoch {
            return;
        }
        let mut moved = false;
        while let Some(batch) = controller.unacked.pop_front_if(|batch| batch.number <= number) {
            moved = true;
            for prefix in batch.prefixes {
                let said = controller.gone.get(&prefix).and_then(|(_, batch)| *batch);
                if said.is_some_and(|said| said <= number) && !controller.dirty.contains(&prefix) {
                    controller.gone.remove(&prefix);
                }
            }
        }
        if moved {
            controller.wait = RETRY;
            controller.retry_at = match controller.unacked.is_empty() {
                true => Instant::FAR_FUTURE,
                false => now + RETRY,
            };
            self.flush(peer, now, out);
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let first = self.controllers.values().map(|controller| controller.retry_at).min();
        first.unwrap_or(Instant::FAR_FUTURE)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        for (&peer, controller) in &mut self.controllers {
            if controller.retry_at > now {
                continue;
            }
            controller.wait = (controller.wait * 2).min(RETRY_MAX);
            controller.retry_at = now + controller.wait;
            let unacked = std::mem::take(&mut controller.unacked);
            for batch in &unacked {
                self.counters.batches_retransmitted += 1;
                let signal = controller.encode(batch, &self.current, &mut self.counters);
                out.push(Output::Send { to: peer, signal });
            }
            controller.unacked = unacked;
        }
    }
}

impl Controller {
    /// The newest state of the prefixes of a batch.
    fn encode(
        &mut self,
        batch: &Batch,
        current: &BTreeMap<Prefix, Binding>,
        counters: &mut ReportCounters,
    ) -> Signal {
        let mut reports = Vec::with_capacity(batch.prefixes.len());
        for prefix in &batch.prefixes {
            if let Some(binding) = current.get(prefix) {
                reports.push(Report { binding: binding.clone(), present: true });
            } else if let Some((binding, said)) = self.gone.get_mut(prefix) {
                *said = (*said).max(Some(batch.number));
                reports.push(Report { binding: binding.clone(), present: false });
            }
        }
        counters.reports_sent += reports.len() as u64;
        let (epoch, number, sync_end) = (self.epoch, batch.number, batch.sync_end);
        Signal::Reports(ReportBatch { epoch, batch: number, reports, sync_end })
    }
}

/// The controller's end, for all anchors.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// Anchors whose link is up.
    anchors: BTreeMap<AnchorId, Heard>,
    counters: ReportCounters,
}

#[derive(Clone, Copy, Debug)]
enum Heard {
    /// The first batch of an epoch is due.
    Nothing,
    Epoch {
        epoch: u32,
        next: u32,
    },
}

impl Collector {
    pub(super) fn counters(&self) -> ReportCounters {
        self.counters
    }

    pub(super) fn handle_link_up(&mut self, peer: AnchorId) {
        self.anchors.insert(peer, Heard::Nothing);
    }

    pub(super) fn handle_link_down(&mut self, peer: AnchorId) {
        self.anchors.remove(&peer);
    }

    pub(super) fn handle_batch(
        &mut self,
        from: AnchorId,
        batch: ReportBatch,
        is_controller: bool,
        may_claim: impl Fn(Prefix) -> bool,
        out: &mut Vec<Output>,
    ) {
        if !is_controller {
            self.counters.batches_unwanted += 1;
            return;
        }
        let Some(heard) = self.anchors.get_mut(&from) else { return };
        let next = match *heard {
            Heard::Epoch { epoch, next } if epoch == batch.epoch => next,
            Heard::Nothing | Heard::Epoch { .. } if batch.batch == 1 => {
                out.push(Output::SyncStart { from });
                1
            }
            Heard::Nothing | Heard::Epoch { .. } => {
                self.counters.batches_ignored += 1;
                return;
            }
        };
        if batch.batch == next {
            self.counters.batches_taken += 1;
            let mut reports = batch.reports;
            let offered = reports.len();
            reports.retain(|r| r.binding.anchor == from && may_claim(r.binding.prefix));
            self.counters.reports_not_authorised += (offered - reports.len()) as u64;
            self.counters.reports_taken += reports.len() as u64;
            if !reports.is_empty() {
                out.push(Output::Reported { from, reports });
            }
            if batch.sync_end {
                out.push(Output::SyncEnd { from });
            }
            *heard = Heard::Epoch { epoch: batch.epoch, next: next.wrapping_add(1) };
        } else {
            // Repeated because our ack was lost, or after a gap: say again what we have.
            self.counters.batches_ignored += 1;
        }
        if let Heard::Epoch { epoch, next } = *heard {
            let signal = Signal::ReportAck { epoch, batch: next.wrapping_sub(1) };
            out.push(Output::Send { to: from, signal });
        }
    }
}
