//! The nMA's side: where was this node, and what is known about it?
//!
//! ```text
//!             ┌──────────── nobody answered: again in 2, 4, 8 s ───────────┐
//!   attached ─┴→ Asking ──context──→ Received ──installed: CTDR──→ Installed (until forgotten)
//!                  │ │                                       Waiting ←┘
//!                  │ └─ "ask that anchor", unknown, silence: the next one
//!                  └─ nobody has it: Imported(error)
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::view::{Mode, TransferRole, TransferView};
use super::{IMPORTS_MAX, Mctx, Output, PREDICTED_MAX, Timer, prefixes_of};
use crate::types::seam::Context;
use crate::types::transfer::{AttributesPart, Part, Refusal, Signal, Transfer, TransferStatus};
use crate::types::{AnchorId, Generation, Instant, MnId, Prefix};

/// Anchors asked about one node in one round, referrals included; more candidates are not asked.
const ASKS_PER_ROUND_MAX: usize = 12;
/// "Ask that anchor" followed in one round.
const REFERRALS_MAX: u8 = 4;
/// Unanswered requests remembered over all rounds; an answer to a forgotten one is stale.
const OPEN_MAX: usize = 64;
/// How often attributes that arrive in pieces are asked for again; then the node does without.
const ATTRIBUTE_RETRIES_MAX: u8 = 3;
/// First wait after "busy"; doubles, within CT_MAX_TRANSFER_TIME.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// What [`Mctx::handle_attached`] does about an attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// An [`Output::Imported`] for this prefix is there already or follows.
    Started,
    /// A transfer of the node is under way already (RFC 4067 §2.5: one at a time): its outcome is
    /// that of this prefix too.
    Joined,
}

/// A context that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub context: Context,
    pub from: AnchorId,
    pub mode: Mode,
    /// It comes after [`Output::Imported`] with an error.
    pub late: bool,
    /// The attributes never came whole; the bindings count more.
    pub without_attributes: bool,
}

/// Why there is none (so far).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NoContext {
    #[error("there is nobody to ask")]
    NoCandidate,
    #[error("nobody knows the node")]
    Unknown,
    #[error("no answer in time")]
    Timeout,
    #[error("no link to an anchor that may have it")]
    Unreachable,
    #[error("not authorised")]
    NotAuthorised,
    #[error("only older contexts than what is known already")]
    GenerationOld,
    #[error("too many transfers at a time")]
    TableFull,
    #[error("another node was seen with the same address")]
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ask {
    to: AnchorId,
    sequence: u32,
}

#[derive(Debug)]
pub(super) struct Import {
    prefix: Prefix,
    candidates: Vec<AnchorId>,
    /// The highest generation heard of; an older context is no use.
    known: Generation,
    started: Instant,
    mode: Mode,
    /// Not answered yet, of all rounds: an answer that is late is still an answer.
    open: Vec<Ask>,
    /// A context without its attributes, and how often they were asked for.
    partial: Option<(Ask, Context, u8)>,
    /// [`Output::Imported`] with an error is out.
    failed: bool,
    /// When the outcome was told. It is remembered longer, which is not a part of its duration.
    told: Option<Instant>,
    wait: Duration,
    state: State,
    /// Of the timer in [`Mctx::timers`].
    due: Instant,
}

#[derive(Debug)]
enum State {
    Asking {
        ask: Ask,
        insist: bool,
        rest: VecDeque<(AnchorId, bool)>,
        asks: usize,
        referrals: u8,
        /// For this ask.
        until: Instant,
        /// After "busy": ask again then, and wait so long if it is busy again.
        busy: Option<(Instant, Duration)>,
        /// So far: why not, and whether asking again later could help.
        reason: NoContext,
        retriable: bool,
    },
    /// Somebody could not be asked: again then.
    Waiting { retry_at: Instant, reason: NoContext },
    /// With the hall, which installs it.
    Received { addr: IpAddr, ask: Ask, until: Instant },
    /// Remembered, so that a pMA that missed the CTDR gets it again.
    Installed { addr: IpAddr, ask: Ask, until: Instant },
}

/// A context that came before its node.
#[derive(Debug)]
pub(super) struct Predicted {
    addr: IpAddr,
    context: Context,
    ask: Ask,
    received: Instant,
    until: Instant,
    /// The attributes are there, if it has any.
    whole: bool,
    retries: u8,
}

impl Import {
    fn due(&self) -> Instant {
        match &self.state {
            State::Asking { until, busy: None, .. } => *until,
            State::Asking { until, busy: Some((at, _)), .. } => *until.min(at),
            State::Waiting { retry_at, .. } => *retry_at,
            State::Received { until, .. } | State::Installed { until, .. } => *until,
        }
    }

    pub(super) fn view(&self, mn: &MnId, now: Instant) -> TransferView {
        let (state, peer, status) = match &self.state {
            State::Asking { ask, busy: None, .. } => ("asking", Some(ask.to), String::new()),
            State::Asking { ask, busy: Some(_), .. } => ("asking", Some(ask.to), "busy".into()),
            State::Waiting { reason, .. } => ("waiting", None, reason.to_string()),
            State::Received { ask, .. } => ("received", Some(ask.to), String::new()),
            State::Installed { ask, .. } => ("installed", Some(ask.to), String::new()),
        };
        self.view_as(mn, state, peer, status, now)
    }

    fn view_as(
        &self,
        mn: &MnId,
        state: &'static str,
        peer: Option<AnchorId>,
        status: String,
        now: Instant,
    ) -> TransferView {
        TransferView {
            mn: Some(mn.clone()),
            prefix: self.prefix,
            role: TransferRole::Import,
            peer,
            mode: self.mode,
            state,
            started_us: self.started.as_micros(),
            elapsed_us: u64::try_from((self.told.unwrap_or(now) - self.started).as_micros())
                .unwrap_or(u64::MAX),
            status,
        }
    }

    /// A peer is asked, and the outcome has yet to be told.
    fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking { .. }) && !self.failed
    }
}

impl Predicted {
    pub(super) fn view(&self, mn: &MnId, now: Instant) -> TransferView {
        TransferView {
            mn: Some(mn.clone()),
            prefix: self.context.prefixes[0].prefix,
            role: TransferRole::Import,
            peer: Some(self.ask.to),
            mode: Mode::Predictive,
            state: "predicted",
            started_us: self.received.as_micros(),
            elapsed_us: u64::try_from((now - self.received).as_micros()).unwrap_or(u64::MAX),
            status: String::new(),
        }
    }
}

/// A context on its way to the hall.
struct Arrival {
    /// The address by which the pMA knows the transfer.
    addr: IpAddr,
    ask: Ask,
    context: Context,
    without_attributes: bool,
}

/// How an import leaves the table.
enum ImportEnd {
    Done,
    Failed(NoContext),
    NotInstalled,
    Left,
    Superseded,
}

impl fmt::Display for ImportEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Failed(reason) => reason.fmt(f),
            Self::NotInstalled => f.write_str("not installed"),
            Self::Left => f.write_str("the node left"),
            Self::Superseded => f.write_str("superseded"),
        }
    }
}

impl Mctx {
    /// A node is here, with this prefix, and we have no context of it. `candidates` are the anchors
    /// that may have had it, the likeliest first; `known` is the highest generation heard of (from
    /// BGP or a controller), [`Generation::NONE`] if none: an older context is not taken.
    pub fn handle_attached(
        &mut self,
        mn: &MnId,
        prefix: Prefix,
        candidates: &[AnchorId],
        known: Generation,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Attach {
        match self.imports.get(mn) {
            Some(import) if import.is_asking() => return Attach::Joined,
            // The context is here, and its outcome has been told: the prefix is not in it, or it
            // would be bound by now. The transfer must not be disturbed, so that is the answer.
            Some(Import { state: State::Received { .. }, .. }) => {
                let (mn, elapsed) = (mn.clone(), Duration::ZERO);
                out.push(Output::Imported { mn, prefix, result: Err(NoContext::Unknown), elapsed });
                return Attach::Started;
            }
            Some(_) | None => {}
        }
        // Not under way (or of another node that had this address), or only hoping for a late
        // answer whose outcome nobody would hear of: the new attach is what counts.
        self.end_import(mn, ImportEnd::Superseded, now, out);
        if let Some(other) = self.import_of.get(&prefix.addr()).cloned() {
            self.supersede(&other, now, out);
        }
        self.counters.imports_started += 1;
        if self.imports.len() >= IMPORTS_MAX {
            self.counters.imports_table_full += 1;
            let (mn, elapsed) = (mn.clone(), Duration::ZERO);
            out.push(Output::Imported { mn, prefix, result: Err(NoContext::TableFull), elapsed });
            return Attach::Started;
        }
        let mut asked = Vec::new();
        for &candidate in candidates.iter().take(ASKS_PER_ROUND_MAX) {
            if candidate != self.config.own && !asked.contains(&candidate) {
                asked.push(candidate);
            }
        }
        let import = Import {
            prefix,
            candidates: asked,
            known,
            started: now,
            mode: Mode::Reactive,
            open: Vec::new(),
            partial: None,
            failed: false,
            told: None,
            wait: self.config.request_retry,
            state: State::Waiting { retry_at: now, reason: NoContext::NoCandidate },
            due: now,
        };
        self.import_of.insert(prefix.addr(), mn.clone());
        if let Some(predicted) = self.take_predicted_for(mn, prefix, known, now, out) {
            self.counters.predicted_used += 1;
            let Predicted { addr, context, ask, whole, .. } = predicted;
            let arrival = Arrival { addr, ask, context, without_attributes: !whole };
            self.receive(mn, Import { mode: Mode::Predictive, ..import }, arrival, now, out);
        } else {
            self.start_round(mn, import, now, out);
        }
        Attach::Started
    }

    /// Its address is another's now; if somebody waits for an outcome, this is it.
    fn supersede(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        if let Some(import) = self.imports.get(mn)
            && matches!(import.state, State::Asking { .. })
            && !import.failed
        {
            let (mn, prefix, elapsed) = (mn.clone(), import.prefix, now - import.started);
            out.push(Output::Imported { mn, prefix, result: Err(NoContext::Superseded), elapsed });
        }
        self.end_import(mn, ImportEnd::Superseded, now, out);
    }

    /// The hall has installed the imported context, or could not.
    pub fn handle_installed(
        &mut self,
        mn: &MnId,
        result: Result<(), TransferStatus>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mut import) = self.take_import(mn) else { return };
        match import.state {
            State::Received { addr, ask, .. } => {
                let failed = match result {
                    Ok(()) => Vec::new(),
                    Err(status) => vec![(Part::Bindings, status)],
                };
                let signal = Signal::Reply { addr, failed };
                out.push(Output::Send { to: ask.to, signal });
                let until = now + self.config.handover_max;
                import.state = State::Installed { addr, ask, until };
                self.put_import(mn, import);
                if result.is_err() {
                    self.end_import(mn, ImportEnd::NotInstalled, now, out);
                }
            }
            // Claimed without a context, which may still come.
            State::Asking { .. } | State::Waiting { .. } | State::Installed { .. } => {
                self.put_import(mn, import);
            }
        }
    }

    /// The node is gone again: whoever was asked need not answer. What is installed stays
    /// remembered: a pMA that missed the CTDR may let go all the same.
    pub fn handle_left(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        match self.imports.get(mn).map(|import| &import.state) {
            Some(State::Installed { .. }) | None => {}
            Some(State::Asking { .. } | State::Waiting { .. } | State::Received { .. }) => {
                self.end_import(mn, ImportEnd::Left, now, out);
            }
        }
    }

    pub(super) fn handle_import_timeout(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        let Some(mut import) = self.take_import(mn) else { return };
        match &mut import.state {
            State::Asking { until, busy, reason, retriable, .. } if *until <= now => {
                if busy.is_none() {
                    self.counters.requests_timed_out += 1;
                }
                (*reason, *retriable) = (NoContext::Timeout, true);
                match import.partial.take() {
                    Some((ask, context, _)) => {
                        let addr = import.prefix.addr();
                        let arrival = Arrival { addr, ask, context, without_attributes: true };
                        self.receive(mn, import, arrival, now, out);
                    }
                    None => self.ask_next(mn, import, now, out),
                }
            }
            State::Asking { ask, insist, busy, .. } => {
                if let Some((at, wait)) = busy
                    && *at <= now
                {
                    (*at, *wait) = (now + *wait * 2, *wait * 2);
                    let (sequence, insist) = (ask.sequence, *insist);
                    let signal = Signal::Request { prefix: import.prefix, sequence, insist };
                    out.push(Output::Send { to: ask.to, signal });
                    self.counters.requests_sent += 1;
                }
                self.put_import(mn, import);
            }
            State::Waiting { retry_at, .. } if *retry_at <= now => {
                self.start_round(mn, import, now, out);
            }
            State::Received { until, .. } if *until <= now => {
                self.put_import(mn, import);
                self.end_import(mn, ImportEnd::NotInstalled, now, out);
            }
            State::Installed { until, .. } if *until <= now => {
                self.put_import(mn, import);
                self.end_import(mn, ImportEnd::Done, now, out);
            }
            State::Waiting { .. } | State::Received { .. } | State::Installed { .. } => {
                self.put_import(mn, import); // woken early
            }
        }
    }

    pub(super) fn handle_predicted_timeout(
        &mut self,
        mn: &MnId,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if self.predicted.get(mn).is_some_and(|predicted| predicted.until <= now) {
            self.counters.predicted_expired += 1;
            self.drop_predicted(mn, "expired", now, out);
        }
    }

    /// CTD or PCTD.
    pub(super) fn handle_transfer(
        &mut self,
        from: AnchorId,
        transfer: Transfer,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let ask = Ask { to: from, sequence: transfer.sequence };
        if let Some(context) = &transfer.context
            && !self.config.is_trusted_with(from, context)
        {
            self.counters.not_authorised += 1;
            self.reply_failed(
                from,
                transfer.addr,
                Part::Bindings,
                TransferStatus::NotAuthorised,
                out,
            );
            let why = Refusal::NotAuthorised;
            return self.handle_refusal(from, transfer.addr, ask.sequence, why, now, out);
        }
        // The node that waits for this: by the address it was asked for, or by its name.
        let by_addr = self.import_of.get(&transfer.addr);
        let by_name = transfer.context.as_ref().map(|context| &context.mn);
        let mn = by_addr.or(by_name.filter(|mn| self.imports.contains_key(*mn))).cloned();
        if let Some(mn) = mn
            && let Some(import) = self.imports.get(&mn)
        {
            match &import.state {
                State::Asking { .. } | State::Waiting { .. }
                    if import.open.contains(&ask)
                        || transfer.predictive
                        || import.partial.as_ref().is_some_and(|(known, ..)| *known == ask) =>
                {
                    return self.handle_context(&mn, ask, transfer, now, out);
                }
                // The same context once more: our CTDR was lost, or a PCTD and a CT-Req crossed.
                State::Installed { addr, ask: known, .. }
                    if *known == ask || (known.to == from && !transfer.predictive) =>
                {
                    let signal = Signal::Reply { addr: *addr, failed: Vec::new() };
                    return out.push(Output::Send { to: from, signal });
                }
                State::Received { ask: known, .. }
                    if *known == ask || (known.to == from && !transfer.predictive) =>
                {
                    return; // it is being installed
                }
                State::Asking { .. }
                | State::Waiting { .. }
                | State::Received { .. }
                | State::Installed { .. } => {}
            }
        }
        if transfer.predictive {
            return self.handle_prediction(ask, transfer, now, out);
        }
        // We restarted since, or the node has left: the pMA need not wait for us.
        self.counters.stale += 1;
        out.push(Output::Send { to: from, signal: Signal::Cancel { addr: transfer.addr } });
    }

    /// A context (or the missing part of one) that somebody waits for.
    fn handle_context(
        &mut self,
        mn: &MnId,
        ask: Ask,
        transfer: Transfer,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mut import) = self.take_import(mn) else { return };
        let addr = transfer.addr;
        let partial = import.partial.take_if(|(known, ..)| *known == ask);
        let (mut context, retries) = match (transfer.context, partial) {
            (Some(context), None) => (context, 0),
            (Some(context), Some((_, _, retries))) => (context, retries),
            (None, Some((_, context, retries))) => (context, retries),
            (None, None) => {
                // Attributes of nothing.
                self.counters.stale += 1;
                return self.put_import(mn, import);
            }
        };
        if !context.prefixes.iter().any(|p| p.prefix == import.prefix) {
            // A context, but not of this node.
            self.put_import(mn, import);
            self.reply_failed(ask.to, addr, Part::Bindings, TransferStatus::Malformed, out);
            return self.handle_refusal(ask.to, addr, ask.sequence, Refusal::Unknown, now, out);
        }
        if context.generation < import.known {
            self.counters.generation_old += 1;
            self.reply_failed(ask.to, addr, Part::Bindings, TransferStatus::GenerationOld, out);
            import.open.retain(|open| *open != ask);
            return match &mut import.state {
                State::Asking { ask: current, reason, .. } if *current == ask => {
                    *reason = NoContext::GenerationOld;
                    self.ask_next(mn, import, now, out);
                }
                State::Asking { .. }
                | State::Waiting { .. }
                | State::Received { .. }
                | State::Installed { .. } => self.put_import(mn, import),
            };
        }
        match &transfer.attributes {
            AttributesPart::Absent => {}
            AttributesPart::Whole(attributes) => context.attributes.clone_from(attributes),
            AttributesPart::Broken if retries < ATTRIBUTE_RETRIES_MAX => {
                self.reply_failed(ask.to, addr, Part::Attributes, TransferStatus::Incomplete, out);
                import.partial = Some((ask, context, retries + 1));
                return self.put_import(mn, import);
            }
            AttributesPart::Broken => {}
        }
        let without_attributes = transfer.attributes == AttributesPart::Broken;
        if transfer.predictive {
            import.mode = Mode::Predictive;
        }
        let arrival = Arrival { addr, ask, context, without_attributes };
        self.receive(mn, import, arrival, now, out);
    }

    /// The context goes to the hall.
    fn receive(
        &mut self,
        mn: &MnId,
        mut import: Import,
        arrival: Arrival,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Arrival { addr, ask, context, without_attributes } = arrival;
        for open in std::mem::take(&mut import.open) {
            if open.to != ask.to {
                let signal = Signal::Cancel { addr: import.prefix.addr() };
                out.push(Output::Send { to: open.to, signal });
            }
        }
        import.partial = None;
        match import.mode {
            Mode::Predictive => self.counters.imports_predictive += 1,
            Mode::Reactive => self.counters.imports_reactive += 1,
        }
        if import.failed {
            self.counters.imports_late += 1;
        }
        let (from, mode, late) = (ask.to, import.mode, import.failed);
        out.push(Output::Imported {
            mn: mn.clone(),
            prefix: import.prefix,
            result: Ok(Imported { context, from, mode, late, without_attributes }),
            elapsed: now - import.started,
        });
        import.told = Some(now);
        import.state = State::Received { addr, ask, until: now + self.config.handover_max };
        self.put_import(mn, import);
    }

    fn reply_failed(
        &self,
        to: AnchorId,
        addr: IpAddr,
        part: Part,
        status: TransferStatus,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Send { to, signal: Signal::Reply { addr, failed: vec![(part, status)] } });
    }

    /// "No context here", in one of its forms.
    pub(super) fn handle_refusal(
        &mut self,
        from: AnchorId,
        addr: IpAddr,
        sequence: u32,
        why: Refusal,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let answered = Ask { to: from, sequence };
        let Some(mn) = self.import_of.get(&addr).cloned() else {
            self.counters.stale += 1;
            return;
        };
        let Some(mut import) = self.take_import(&mn) else { return };
        let own = self.config.own;
        let was_open = import.open.contains(&answered);
        if was_open && why != Refusal::Busy {
            import.open.retain(|open| *open != answered);
        }
        match &mut import.state {
            State::Asking { ask, insist, rest, referrals, busy, reason, retriable, .. }
                if *ask == answered =>
            {
                match why {
                    Refusal::Busy => {
                        *retriable = true;
                        busy.get_or_insert((now + BUSY_WAIT, BUSY_WAIT));
                        return self.put_import(&mn, import);
                    }
                    Refusal::Unknown => *reason = NoContext::Unknown,
                    Refusal::NotAuthorised => *reason = NoContext::NotAuthorised,
                    Refusal::Referral(to) => {
                        *reason = NoContext::Unknown;
                        if *referrals < REFERRALS_MAX {
                            *referrals += 1;
                            self.counters.referrals_followed += 1;
                            // If the one referred to has nothing, the referrer shall give what it
                            // has: its transfer to the other has failed.
                            if !*insist {
                                rest.push_front((from, true));
                            }
                            if to != own {
                                rest.push_front((to, false));
                            }
                        }
                    }
                }
                self.ask_next(&mn, import, now, out);
            }
            State::Asking { .. }
            | State::Waiting { .. }
            | State::Received { .. }
            | State::Installed { .. } => {
                if !was_open {
                    self.counters.stale += 1;
                }
                self.put_import(&mn, import);
            }
        }
    }

    /// All candidates, from the first.
    fn start_round(&mut self, mn: &MnId, mut import: Import, now: Instant, out: &mut Vec<Output>) {
        import.state = State::Asking {
            // Replaced by the first ask; if there is none, the round is over at once.
            ask: Ask { to: self.config.own, sequence: 0 },
            insist: false,
            rest: import.candidates.iter().map(|&candidate| (candidate, false)).collect(),
            asks: 0,
            referrals: 0,
            until: now,
            busy: None,
            reason: NoContext::NoCandidate,
            retriable: false,
        };
        self.ask_next(mn, import, now, out);
    }

    /// The next candidate whose link is up, or the end of the round.
    fn ask_next(&mut self, mn: &MnId, mut import: Import, now: Instant, out: &mut Vec<Output>) {
        let State::Asking { ask, insist, rest, asks, until, busy, reason, retriable, .. } =
            &mut import.state
        else {
            return self.put_import(mn, import);
        };
        while let Some((to, insists)) = rest.pop_front() {
            if *asks == ASKS_PER_ROUND_MAX {
                break;
            }
            if !self.links.contains(&to) {
                (*reason, *retriable) = (NoContext::Unreachable, true);
                continue;
            }
            *asks += 1;
            (*ask, *insist) = (Ask { to, sequence: self.next_sequence(now) }, insists);
            (*until, *busy) = (now + self.config.transfer_max, None);
            let (prefix, sequence) = (import.prefix, ask.sequence);
            if import.open.len() == OPEN_MAX {
                import.open.remove(0);
            }
            import.open.push(*ask);
            let signal = Signal::Request { prefix, sequence, insist: insists };
            out.push(Output::Send { to, signal });
            self.counters.requests_sent += 1;
            return self.put_import(mn, import);
        }
        let (reason, retriable) = (*reason, *retriable);
        if !import.failed {
            import.failed = true;
            import.told = Some(now);
            self.counters.imports_failed += 1;
            out.push(Output::Imported {
                mn: mn.clone(),
                prefix: import.prefix,
                result: Err(reason),
                elapsed: now - import.started,
            });
        }
        let retry_at = now + import.wait;
        import.state = State::Waiting { retry_at, reason };
        import.wait *= 2;
        let in_time = retry_at <= import.started + self.config.retry_max;
        self.put_import(mn, import);
        if !(retriable && in_time) {
            self.end_import(mn, ImportEnd::Failed(reason), now, out);
        }
    }

    /// The link is back: who was asked over it may not have heard, and who waits need not.
    pub(super) fn resume_imports(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        let mns: Vec<MnId> = self.imports.keys().cloned().collect();
        for mn in mns {
            let Some(import) = self.take_import(&mn) else { continue };
            match &import.state {
                State::Waiting { .. } if import.candidates.contains(&peer) => {
                    self.start_round(&mn, import, now, out);
                }
                State::Asking { ask, insist, .. } if ask.to == peer => {
                    let (sequence, insist) = (ask.sequence, *insist);
                    let signal = Signal::Request { prefix: import.prefix, sequence, insist };
                    out.push(Output::Send { to: peer, signal });
                    self.counters.requests_sent += 1;
                    self.put_import(&mn, import);
                }
                State::Asking { .. }
                | State::Waiting { .. }
                | State::Received { .. }
                | State::Installed { .. } => self.put_import(&mn, import),
            }
        }
    }

    /// The link is gone: its peer will not answer now.
    pub(super) fn skip_in_imports(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        let mns: Vec<MnId> = self.imports.keys().cloned().collect();
        for mn in mns {
            let Some(mut import) = self.take_import(&mn) else { continue };
            match &mut import.state {
                State::Asking { ask, reason, retriable, .. } if ask.to == peer => {
                    (*reason, *retriable) = (NoContext::Unreachable, true);
                    self.ask_next(&mn, import, now, out);
                }
                State::Asking { .. }
                | State::Waiting { .. }
                | State::Received { .. }
                | State::Installed { .. } => self.put_import(&mn, import),
            }
        }
    }

    /// A PCTD whose node is not here yet.
    fn handle_prediction(
        &mut self,
        ask: Ask,
        transfer: Transfer,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Transfer { addr, elapsed_ms, context, attributes, .. } = transfer;
        let Some(mut context) = context else {
            return self.complete_prediction(ask, addr, attributes);
        };
        if context.prefixes.is_empty() {
            self.counters.stale += 1;
            return;
        }
        let mn = context.mn.clone();
        let (known, retries) = match self.predicted.get(&mn) {
            Some(known) if known.context.generation > context.generation => {
                self.counters.generation_old += 1;
                let status = TransferStatus::GenerationOld;
                return self.reply_failed(ask.to, addr, Part::Bindings, status, out);
            }
            Some(known) => (true, if known.ask == ask { known.retries } else { 0 }),
            None => (false, 0),
        };
        if !known && self.predicted.len() >= PREDICTED_MAX {
            self.counters.predicted_table_full += 1;
            let status = TransferStatus::NoResources;
            return self.reply_failed(ask.to, addr, Part::Bindings, status, out);
        }
        let mut retries = retries;
        let whole = attributes != AttributesPart::Broken;
        match attributes {
            AttributesPart::Absent => {}
            AttributesPart::Whole(all) => context.attributes = all,
            AttributesPart::Broken if retries < ATTRIBUTE_RETRIES_MAX => {
                retries += 1;
                self.reply_failed(ask.to, addr, Part::Attributes, TransferStatus::Incomplete, out);
            }
            AttributesPart::Broken => {}
        }
        if known {
            self.forget_predicted(&mn);
        } else {
            self.counters.predicted += 1;
            let (prefixes, mn) = (prefixes_of(&context), mn.clone());
            out.push(Output::Predicted { mn, prefixes, from: ask.to });
        }
        // The pMA counts from its first transmission, and so must the deadline.
        let passed = Duration::from_millis(elapsed_ms.into()).min(self.config.handover_max);
        let until = now + (self.config.handover_max - passed);
        for prefix in prefixes_of(&context) {
            self.predicted_of.insert(prefix, mn.clone());
        }
        self.timers.insert((until, Timer::Predicted(mn.clone())));
        let predicted = Predicted { addr, context, ask, received: now, until, whole, retries };
        self.predicted.insert(mn, predicted);
    }

    /// The attributes that were missing.
    fn complete_prediction(&mut self, ask: Ask, addr: IpAddr, attributes: AttributesPart) {
        let waiting = self.predicted.values_mut().find(|p| p.ask == ask && p.addr == addr);
        match (waiting, attributes) {
            (Some(predicted), AttributesPart::Whole(all)) => {
                predicted.context.attributes = all;
                predicted.whole = true;
            }
            (Some(_), AttributesPart::Absent | AttributesPart::Broken) | (None, _) => {
                self.counters.stale += 1;
            }
        }
    }

    /// The predicted context of this node, if it is not older than what is known.
    fn take_predicted_for(
        &mut self,
        mn: &MnId,
        prefix: Prefix,
        known: Generation,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<Predicted> {
        let by_prefix = self.predicted_of.get(&prefix).cloned();
        let named = by_prefix.or_else(|| self.predicted.contains_key(mn).then(|| mn.clone()))?;
        let predicted = self.predicted.get(&named)?;
        let has_prefix = predicted.context.prefixes.iter().any(|p| p.prefix == prefix);
        if !has_prefix {
            return None;
        }
        if predicted.until <= now || predicted.context.generation < known {
            self.counters.generation_old += 1;
            self.drop_predicted(&named, "older than what is known", now, out);
            return None;
        }
        self.forget_predicted(&named)
    }

    fn forget_predicted(&mut self, mn: &MnId) -> Option<Predicted> {
        let predicted = self.predicted.remove(mn)?;
        self.timers.remove(&(predicted.until, Timer::Predicted(mn.clone())));
        for prefix in prefixes_of(&predicted.context) {
            if self.predicted_of.get(&prefix) == Some(mn) {
                self.predicted_of.remove(&prefix);
            }
        }
        Some(predicted)
    }

    /// CTC: "cannot be completed in a timely fashion" (RFC 4067 §2.5.5).
    fn drop_predicted(
        &mut self,
        mn: &MnId,
        status: &'static str,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(predicted) = self.forget_predicted(mn) else { return };
        let signal = Signal::Cancel { addr: predicted.addr };
        out.push(Output::Send { to: predicted.ask.to, signal });
        let view = predicted.view(mn, now);
        self.remember(TransferView { state: "ended", status: status.into(), ..view });
    }

    fn take_import(&mut self, mn: &MnId) -> Option<Import> {
        let import = self.imports.remove(mn)?;
        self.timers.remove(&(import.due, Timer::Import(mn.clone())));
        Some(import)
    }

    fn put_import(&mut self, mn: &MnId, mut import: Import) {
        import.due = import.due();
        self.timers.insert((import.due, Timer::Import(mn.clone())));
        self.imports.insert(mn.clone(), import);
    }

    fn end_import(&mut self, mn: &MnId, end: ImportEnd, now: Instant, out: &mut Vec<Output>) {
        let Some(import) = self.take_import(mn) else { return };
        let addr = import.prefix.addr();
        if self.import_of.get(&addr) == Some(mn) {
            self.import_of.remove(&addr);
        }
        for open in &import.open {
            out.push(Output::Send { to: open.to, signal: Signal::Cancel { addr } });
        }
        let peer = match &import.state {
            State::Received { addr, ask, .. } => {
                out.push(Output::Send { to: ask.to, signal: Signal::Cancel { addr: *addr } });
                Some(ask.to)
            }
            State::Installed { ask, .. } => Some(ask.to),
            State::Asking { ask, .. } => Some(ask.to),
            State::Waiting { .. } => None,
        };
        self.remember(import.view_as(mn, "ended", peer, end.to_string(), now));
    }

    /// Is this address being imported here, and is `from` the one that is asked for it?
    pub(super) fn importing(&self, addr: IpAddr) -> Option<Option<AnchorId>> {
        let import = self.imports.get(self.import_of.get(&addr)?)?;
        match &import.state {
            State::Asking { ask, .. } => Some(Some(ask.to)),
            State::Received { .. } => Some(None),
            State::Waiting { .. } | State::Installed { .. } => None,
        }
    }
}
