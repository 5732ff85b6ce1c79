//! FE_MCTX: the context of a mobile node goes from its previous anchor (pMA) to its new one (nMA).
//!
//! Reactive: a node without context is seen here, and the anchors that may have had it are asked in
//! turn (`import`). Asked ourselves, we give the context away once the hall has found it, keep a
//! copy until the asker has confirmed, and only then say that the node is [`Output::Transferred`]
//! (`export`). Predictive: told where a node goes, the context is sent ahead and waits there.
//! `report` is R_XC: anchors keep controllers informed.
//!
//! Standards: RFC 4067 for the flows (§5), times (§4) and rules; DMM functional entities §3 for
//! FE_MCTX, R_XX and R_XC. Deviation: §3.1 wants the nAR not to process the node's traffic until the
//! transfer is complete; here that would only make the gap longer, so it is not done.
//!
//! Nothing is lost in silence: each attach ends in one [`Output::Imported`] at least (unless the node
//! leaves first), each export in [`Output::Transferred`] or [`Output::ExportEnded`].

mod export;
mod import;
mod report;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::types::seam::Context;
use crate::types::transfer::{Report, Signal, TransferStatus};
use crate::types::{AnchorId, Binding, Generation, Instant, MnId, Prefix};

use export::Export;
pub use export::MoveRefused;
pub use import::{Attach, Imported, NoContext};
use import::{Import, Predicted};
use report::{Collector, Reporter};
pub use report::{ReportCounters, ReporterView};
pub use view::{Mode, TransferRole, TransferView};

/// Transfers to this node, and for CT_MAX_HANDOVER_TIME after it: 6,500 moves a second. An attach
/// beyond ends at once with [`NoContext::TableFull`].
pub const IMPORTS_MAX: usize = 65_536;

/// Transfers from this node at a time. A request beyond is answered with "busy".
pub const EXPORTS_MAX: usize = 65_536;

/// Contexts that wait for their nodes; a peer chooses their number, and each may take 40 KiB. One
/// beyond is refused with "no resources".
pub const PREDICTED_MAX: usize = 4_096;

/// Finished transfers kept for `ctx transfers`; the oldest is dropped.
pub const FINISHED_MAX: usize = 1_024;

/// RFC 4067 §3.2: a sequence number is not used again for this long.
const SEQUENCE_REST: Duration = Duration::from_secs(7);
/// Sequence numbers remembered for that; above 585 transfers a second chance alone keeps them apart.
const SEQUENCES_MAX: usize = 4_096;

/// Who may claim what: an anchor gets contexts of, and is believed about, these prefixes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub anchor: AnchorId,
    pub may_claim: Vec<Prefix>,
}

#[derive(Clone, Debug)]
pub struct MctxConfig {
    pub own: AnchorId,
    /// Takes reports of anchors (R_XC).
    pub is_controller: bool,
    /// CT_MAX_TRANSFER_TIME: how long one anchor is waited for.
    pub transfer_max: Duration,
    /// CT_REQUEST_RETRY: until the anchors that did not answer are asked again; doubles. Also the
    /// first wait of a context that is not confirmed.
    pub request_retry: Duration,
    /// CT_RETRY_MAX: after this the attach is left with what it has.
    pub retry_max: Duration,
    /// CT_MAX_HANDOVER_TIME, which the RFC uses and does not define: how long a context is kept for
    /// the peer, and how long a predicted node is waited for.
    pub handover_max: Duration,
    pub trust: Vec<Trust>,
}

impl MctxConfig {
    /// The defaults of RFC 4067 §4, and 10 s for a handover.
    pub fn new(own: AnchorId, trust: Vec<Trust>) -> Self {
        Self {
            own,
            is_controller: false,
            transfer_max: Duration::from_millis(200),
            request_retry: Duration::from_secs(2),
            retry_max: Duration::from_secs(15),
            handover_max: Duration::from_secs(10),
            trust,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To the link of that peer. If it is refused there, our timers send it again.
    Send {
        to: AnchorId,
        signal: Signal,
    },
    /// The answer to [`Mctx::handle_attached`]. After an error a context may still come later
    /// (`late`), from an anchor that was out of reach.
    Imported {
        mn: MnId,
        prefix: Prefix,
        result: Result<Imported, NoContext>,
        elapsed: Duration,
    },
    /// A context is here before its node.
    Predicted {
        mn: MnId,
        prefixes: Vec<Prefix>,
        from: AnchorId,
    },
    /// To be answered by [`Mctx::reply_context`].
    ExportWanted {
        prefix: Prefix,
        to: AnchorId,
        sequence: u32,
    },
    /// The nMA has installed the context: release the node.
    Transferred {
        mn: MnId,
        prefixes: Vec<Prefix>,
        to: AnchorId,
        generation: Generation,
    },
    /// The context was given away, but the nMA has not confirmed: keep the node.
    ExportEnded {
        mn: MnId,
        to: AnchorId,
        how: ExportEnd,
    },
    /// An anchor reports everything again; what it does not mention before the end is gone.
    SyncStart {
        from: AnchorId,
    },
    Reported {
        from: AnchorId,
        reports: Vec<Report>,
    },
    SyncEnd {
        from: AnchorId,
    },
}

/// How an export ended without [`Output::Transferred`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportEnd {
    /// No confirmation before CT_MAX_HANDOVER_TIME.
    Expired,
    /// CTC.
    Cancelled,
    /// CTDR with S = 0.
    Refused(TransferStatus),
    /// The node was seen elsewhere meanwhile.
    Superseded,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub imports_started: u64,
    pub imports_predictive: u64,
    pub imports_reactive: u64,
    pub imports_late: u64,
    pub imports_failed: u64,
    pub imports_table_full: u64,
    pub requests_sent: u64,
    pub requests_timed_out: u64,
    pub referrals_followed: u64,
    pub exports_started: u64,
    pub exports_transferred: u64,
    pub exports_refused: u64,
    pub exports_expired: u64,
    pub exports_cancelled: u64,
    pub exports_table_full: u64,
    pub retransmissions: u64,
    pub not_authorised: u64,
    pub predicted: u64,
    pub predicted_used: u64,
    pub predicted_expired: u64,
    pub predicted_table_full: u64,
    pub generation_old: u64,
    /// Answers to what we no longer ask.
    pub stale: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Import(MnId),
    Export(IpAddr, AnchorId),
    Predicted(MnId),
}

#[derive(Debug)]
pub struct Mctx {
    config: MctxConfig,
    /// Peers whose link is up.
    links: BTreeSet<AnchorId>,
    imports: BTreeMap<MnId, Import>,
    /// The node whose import is about this address, since messages name only that.
    import_of: BTreeMap<IpAddr, MnId>,
    predicted: BTreeMap<MnId, Predicted>,
    predicted_of: BTreeMap<Prefix, MnId>,
    exports: BTreeMap<(IpAddr, AnchorId), Export>,
    /// Exports whose node is known, by node.
    exports_of: BTreeSet<(MnId, IpAddr, AnchorId)>,
    /// One entry for each import, export and predicted context.
    timers: BTreeSet<(Instant, Timer)>,
    reporter: Reporter,
    collector: Collector,
    finished: VecDeque<TransferView>,
    recent_sequences: VecDeque<(Instant, u32)>,
    random: u64,
    counters: Counters,
}

impl Mctx {
    /// `seed` makes the sequence numbers; it should differ from start to start.
    pub fn new(config: MctxConfig, seed: u64) -> Self {
        let mut this = Self {
            config,
            links: BTreeSet::new(),
            imports: BTreeMap::new(),
            import_of: BTreeMap::new(),
            predicted: BTreeMap::new(),
            predicted_of: BTreeMap::new(),
            exports: BTreeMap::new(),
            exports_of: BTreeSet::new(),
            timers: BTreeSet::new(),
            reporter: Reporter::default(),
            collector: Collector::default(),
            finished: VecDeque::new(),
            recent_sequences: VecDeque::new(),
            random: seed,
            counters: Counters::default(),
        };
        this.reporter = Reporter::new(this.random_u32());
        this
    }

    /// New trust and times, for what begins from now on.
    pub fn set_config(&mut self, config: MctxConfig) {
        self.config = config;
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn report_counters(&self) -> ReportCounters {
        self.reporter.counters().plus(self.collector.counters())
    }

    /// A peer's link is up (its hello is in).
    pub fn handle_link_up(
        &mut self,
        peer: AnchorId,
        is_controller: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.links.insert(peer);
        self.collector.handle_link_up(peer);
        self.resend_exports(peer, now, out);
        self.resume_imports(peer, now, out);
        if is_controller {
            self.reporter.handle_link_up(peer, now, out);
        }
    }

    pub fn handle_link_down(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        self.links.remove(&peer);
        self.reporter.handle_link_down(peer);
        self.collector.handle_link_down(peer);
        self.skip_in_imports(peer, now, out);
    }

    /// `from` is who the link's certificate says.
    pub fn handle_signal(
        &mut self,
        from: AnchorId,
        signal: Signal,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match signal {
            Signal::Request { prefix, sequence, insist } => {
                self.handle_request(from, prefix, sequence, insist, now, out);
            }
            Signal::Transfer(transfer) => self.handle_transfer(from, *transfer, now, out),
            Signal::Refusal { addr, sequence, why } => {
                self.handle_refusal(from, addr, sequence, why, now, out);
            }
            Signal::Reply { addr, failed } => self.handle_reply(from, addr, &failed, now, out),
            Signal::Cancel { addr } => self.handle_cancel(from, addr, now, out),
            Signal::Reports(batch) => {
                let may_claim = |prefix| self.config.is_trusted(from, prefix);
                let is_controller = self.config.is_controller;
                self.collector.handle_batch(from, batch, is_controller, may_claim, out);
            }
            // About a binding, not about a context: the hall's.
            Signal::Newer { .. } => {}
            Signal::ReportAck { epoch, batch } => {
                self.reporter.handle_ack(from, epoch, batch, now, out);
            }
        }
    }

    /// The newest state of a binding at this anchor, for the controllers. `None`: it is gone.
    pub fn report(
        &mut self,
        prefix: Prefix,
        binding: Option<Binding>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.reporter.handle_binding(prefix, binding, now, out);
    }

    pub fn poll_timeout(&self) -> Instant {
        let first = self.timers.first().map_or(Instant::FAR_FUTURE, |(at, _)| *at);
        first.min(self.reporter.poll_timeout())
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        // What is due now, once: a timer that is armed for `now` again waits for the next call.
        let due: Vec<Timer> = self
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, timer)| timer.clone())
            .collect();
        for timer in due {
            match timer {
                Timer::Import(mn) => self.handle_import_timeout(&mn, now, out),
                Timer::Export(addr, to) => self.handle_export_timeout(addr, to, now, out),
                Timer::Predicted(mn) => self.handle_predicted_timeout(&mn, now, out),
            }
        }
        self.reporter.handle_timeout(now, out);
    }

    /// Active transfers, then finished ones, the newest first; at most `limit`.
    pub fn transfers(&self, now: Instant, limit: usize) -> Vec<TransferView> {
        let imports = self.imports.iter().map(|(mn, import)| import.view(mn, now));
        let predicted = self.predicted.iter().map(|(mn, waiting)| waiting.view(mn, now));
        let exports = self.exports.iter().map(|((_, to), export)| export.view(*to, now));
        let finished = self.finished.iter().rev().cloned();
        imports.chain(predicted).chain(exports).chain(finished).take(limit).collect()
    }

    pub fn reporters(&self) -> Vec<ReporterView> {
        self.reporter.views()
    }

    /// Transfers that are not finished (imports, exports, predicted contexts).
    pub fn active(&self) -> usize {
        self.imports.len() + self.exports.len() + self.predicted.len()
    }

    fn remember(&mut self, view: TransferView) {
        if self.finished.len() == FINISHED_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back(view);
    }

    /// RFC 4067 §3.2: random, and not one of the last seven seconds.
    fn next_sequence(&mut self, now: Instant) -> u32 {
        while let Some(&(at, _)) = self.recent_sequences.front() {
            let rested = now - at >= SEQUENCE_REST;
            if !rested && self.recent_sequences.len() < SEQUENCES_MAX {
                break;
            }
            self.recent_sequences.pop_front();
        }
        let mut sequence = self.random_u32();
        while self.recent_sequences.iter().any(|&(_, recent)| recent == sequence) {
            sequence = sequence.wrapping_add(1);
        }
        self.recent_sequences.push_back((now, sequence));
        sequence
    }

    /// SplitMix64.
    fn random_u32(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }
}

impl MctxConfig {
    fn is_trusted(&self, anchor: AnchorId, prefix: Prefix) -> bool {
        let of_anchor = self.trust.iter().filter(|trust| trust.anchor == anchor);
        of_anchor.flat_map(|trust| &trust.may_claim).any(|pool| pool.contains(prefix))
    }

    fn is_trusted_with(&self, anchor: AnchorId, context: &Context) -> bool {
        context.prefixes.iter().all(|p| self.is_trusted(anchor, p.prefix))
    }
}

fn prefixes_of(context: &Context) -> Vec<Prefix> {
    context.prefixes.iter().map(|p| p.prefix).collect()
}

fn elapsed_ms(since: Instant, now: Instant) -> u32 {
    u32::try_from((now - since).as_millis()).unwrap_or(u32::MAX)
}
