//! The pMA's side: give the context away, and keep the node until the other has it.
//!
//! ```text
//!   CT-Req → Wanted ──reply_context: CTD──→ Sent ──CTDR S=1──→ Transferred: release the node
//!            move_to: PCTD ─────────────────↗ │ ↺ no CTDR: again in 2, 4 s; or only what failed
//!                                             └─ CTC, CTDR S=0, time over, seen elsewhere: keep it
//! ```

use std::net::IpAddr;
use std::time::Duration;

use super::view::{Mode, TransferRole, TransferView};
use super::{EXPORTS_MAX, ExportEnd, Mctx, Output, Timer, elapsed_ms, prefixes_of};
use crate::types::seam::Context;
use crate::types::transfer::{
    ATTRIBUTES_LEN_MAX, AttributesPart, Part, Refusal, Signal, Transfer, TransferStatus,
};
use crate::types::{AnchorId, Generation, Instant, MnId, Prefix};

/// How often a part that failed is sent again.
const PART_RETRIES_MAX: u8 = 3;

/// Why [`Mctx::move_to`] does not send anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefused {
    #[error("the node has no prefix")]
    NoPrefix,
    #[error("the anchor may not claim a prefix of the node")]
    NotAuthorised,
    #[error("too many transfers at a time")]
    TableFull,
    #[error("the attributes of the node are too large for a message")]
    TooLarge,
    #[error("the node is here, and its new anchor is this one")]
    Here,
}

#[derive(Debug)]
pub(super) struct Export {
    prefix: Prefix,
    started: Instant,
    sequence: u32,
    mode: Mode,
    state: State,
    /// Of the timer in [`Mctx::timers`].
    due: Instant,
}

#[derive(Debug)]
enum State {
    /// The hall is looking for it.
    Wanted { insist: bool, until: Instant },
    /// The cached CTD.
    Sent {
        context: Context,
        sent: Instant,
        retry_at: Instant,
        wait: Duration,
        until: Instant,
        part_retries: u8,
    },
    /// Superseded, but the context is out: if the nMA has installed it after all, that counts.
    Over { mn: MnId, prefixes: Vec<Prefix>, generation: Generation, until: Instant },
}

impl Export {
    fn due(&self) -> Instant {
        match &self.state {
            State::Wanted { until, .. } | State::Over { until, .. } => *until,
            State::Sent { retry_at, until, .. } => *retry_at.min(until),
        }
    }

    pub(super) fn view(&self, to: AnchorId, now: Instant) -> TransferView {
        let (mn, state) = match &self.state {
            State::Wanted { .. } => (None, "wanted"),
            State::Sent { context, .. } => (Some(context.mn.clone()), "sent"),
            State::Over { mn, .. } => (Some(mn.clone()), "superseded"),
        };
        TransferView {
            mn,
            prefix: self.prefix,
            role: TransferRole::Export,
            peer: Some(to),
            mode: self.mode,
            state,
            started_us: self.started.as_micros(),
            elapsed_us: u64::try_from((now - self.started).as_micros()).unwrap_or(u64::MAX),
            status: String::new(),
        }
    }

    /// The whole context, or only these parts of it.
    fn transfer(&self, parts: &[Part], now: Instant) -> Option<Signal> {
        let State::Sent { context, sent, .. } = &self.state else { return None };
        let bindings = || Context { attributes: Vec::new(), ..context.clone() };
        let attributes = match context.attributes.is_empty() {
            true => AttributesPart::Absent,
            false if parts.contains(&Part::Attributes) => {
                AttributesPart::Whole(context.attributes.clone())
            }
            false => AttributesPart::Absent,
        };
        Some(Signal::Transfer(Box::new(Transfer {
            addr: self.prefix.addr(),
            sequence: self.sequence,
            // RFC 4067 §2.5.3: since the first CTD, also when this is not the first.
            elapsed_ms: elapsed_ms(*sent, now),
            predictive: self.mode == Mode::Predictive,
            context: parts.contains(&Part::Bindings).then(bindings),
            attributes,
        })))
    }
}

const ALL_PARTS: [Part; 2] = [Part::Bindings, Part::Attributes];

fn attributes_len(context: &Context) -> usize {
    context.attributes.iter().map(|(_, value)| 4 + value.len()).sum()
}

impl Mctx {
    /// CT-Req.
    pub(super) fn handle_request(
        &mut self,
        from: AnchorId,
        prefix: Prefix,
        sequence: u32,
        insist: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let addr = prefix.addr();
        let refuse = |why, out: &mut Vec<Output>| {
            out.push(Output::Send { to: from, signal: Signal::Refusal { addr, sequence, why } });
        };
        if !self.config.is_trusted(from, prefix) {
            self.counters.not_authorised += 1;
            return refuse(Refusal::NotAuthorised, out);
        }
        match self.importing(addr) {
            // Both sides saw the node and neither has it.
            Some(Some(asked)) if asked == from => return refuse(Refusal::Unknown, out),
            // It may be ours in a moment.
            Some(_) => return refuse(Refusal::Busy, out),
            None => {}
        }
        if let Some(mut export) = self.take_export(addr, from) {
            match &export.state {
                // Asked again before the hall has answered.
                State::Wanted { until, .. } => {
                    let until = *until;
                    export.state = State::Wanted { insist, until };
                    export.sequence = sequence;
                    return self.put_export(addr, from, export);
                }
                // RFC 4067 §2.5.6: the CTD was lost. What was predicted is now asked for, and goes
                // as the answer, so that the nMA knows it for that.
                State::Sent { .. }
                    if export.sequence == sequence || export.mode == Mode::Predictive =>
                {
                    (export.sequence, export.mode) = (sequence, Mode::Reactive);
                    self.counters.retransmissions += 1;
                    if let Some(signal) = export.transfer(&ALL_PARTS, now) {
                        out.push(Output::Send { to: from, signal });
                    }
                    return self.put_export(addr, from, export);
                }
                // A new question deserves a new answer.
                State::Sent { .. } => {
                    self.put_export(addr, from, export);
                    self.end_export(addr, from, ExportEnd::Superseded, now, out);
                    drop(self.take_export(addr, from));
                }
                State::Over { .. } => {}
            }
        }
        if self.exports.len() >= EXPORTS_MAX {
            self.counters.exports_table_full += 1;
            return refuse(Refusal::Busy, out);
        }
        let until = now + self.config.transfer_max;
        let (started, mode, due) = (now, Mode::Reactive, until);
        let state = State::Wanted { insist, until };
        self.put_export(addr, from, Export { prefix, started, sequence, mode, state, due });
        out.push(Output::ExportWanted { prefix, to: from, sequence });
    }

    /// The hall's answer to [`Output::ExportWanted`], with the same `prefix`, `to` and `sequence`.
    pub fn reply_context(
        &mut self,
        prefix: Prefix,
        to: AnchorId,
        sequence: u32,
        result: Result<Context, Refusal>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let addr = prefix.addr();
        let Some(export) = self.take_export(addr, to) else { return };
        let insist = match export.state {
            State::Wanted { insist, .. } if export.sequence == sequence => insist,
            State::Wanted { .. } | State::Sent { .. } | State::Over { .. } => {
                return self.put_export(addr, to, export); // late: something newer is there
            }
        };
        let result = result.and_then(|context| self.check_export(context, prefix, to));
        let result = result.and_then(|context| {
            self.resolve_rivals(&context.mn, to, insist, now, out).map(|()| context)
        });
        match result {
            Ok(context) => self.send_context(to, export, context, now, out),
            Err(why) => {
                self.counters.exports_refused += 1;
                let signal = Signal::Refusal { addr, sequence, why };
                out.push(Output::Send { to, signal });
                let view = export.view(to, now);
                let status = format!("refused: {why:?}");
                self.remember(TransferView { state: "ended", status, ..view });
            }
        }
    }

    /// May `to` have all of it, and does it fit?
    fn check_export(
        &mut self,
        context: Context,
        prefix: Prefix,
        to: AnchorId,
    ) -> Result<Context, Refusal> {
        if !context.prefixes.iter().any(|p| p.prefix == prefix) {
            return Err(Refusal::Unknown);
        }
        if !self.config.is_trusted_with(to, &context) {
            self.counters.not_authorised += 1;
            return Err(Refusal::NotAuthorised);
        }
        if attributes_len(&context) > ATTRIBUTES_LEN_MAX {
            return Err(Refusal::Unknown);
        }
        Ok(context)
    }

    /// RFC 4067 §2.5 allows one transfer of a node at a time. If it is on its way to another that
    /// asked, the new one shall ask there, so that their generations differ; a prediction was just
    /// wrong.
    fn resolve_rivals(
        &mut self,
        mn: &MnId,
        to: AnchorId,
        insist: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        for (addr, rival) in self.exports_of_node(mn) {
            let reactive =
                self.exports.get(&(addr, rival)).is_some_and(|e| e.mode == Mode::Reactive);
            if reactive && rival != to && !insist {
                return Err(Refusal::Referral(rival));
            }
            self.end_export(addr, rival, ExportEnd::Superseded, now, out);
        }
        Ok(())
    }

    /// The node is about to go to `to` (predictive): its context goes there now.
    pub fn move_to(
        &mut self,
        context: Context,
        to: AnchorId,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), MoveRefused> {
        let prefix = context.prefixes.first().ok_or(MoveRefused::NoPrefix)?.prefix;
        if to == self.config.own {
            return Err(MoveRefused::Here);
        }
        if !self.config.is_trusted_with(to, &context) {
            self.counters.not_authorised += 1;
            return Err(MoveRefused::NotAuthorised);
        }
        if attributes_len(&context) > ATTRIBUTES_LEN_MAX {
            return Err(MoveRefused::TooLarge);
        }
        for (addr, rival) in self.exports_of_node(&context.mn) {
            self.end_export(addr, rival, ExportEnd::Superseded, now, out);
        }
        // It may also be asked for, by an address that nobody has looked up yet.
        drop(self.take_export(prefix.addr(), to));
        if self.exports.len() >= EXPORTS_MAX {
            self.counters.exports_table_full += 1;
            return Err(MoveRefused::TableFull);
        }
        let sequence = self.next_sequence(now);
        let (started, mode, due) = (now, Mode::Predictive, now);
        let state = State::Wanted { insist: false, until: now };
        let export = Export { prefix, started, sequence, mode, state, due };
        self.send_context(to, export, context, now, out);
        Ok(())
    }

    fn send_context(
        &mut self,
        to: AnchorId,
        mut export: Export,
        context: Context,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.counters.exports_started += 1;
        let addr = export.prefix.addr();
        self.exports_of.insert((context.mn.clone(), addr, to));
        let wait = self.config.request_retry;
        export.state = State::Sent {
            context,
            sent: now,
            retry_at: now + wait,
            wait,
            until: now + self.config.handover_max,
            part_retries: 0,
        };
        if let Some(signal) = export.transfer(&ALL_PARTS, now) {
            out.push(Output::Send { to, signal });
        }
        self.put_export(addr, to, export);
    }

    pub(super) fn handle_export_timeout(
        &mut self,
        addr: IpAddr,
        to: AnchorId,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mut export) = self.take_export(addr, to) else { return };
        match &mut export.state {
            State::Wanted { until, .. } if *until <= now => {
                // The hall did not answer; the asker has given up by now.
                let view = export.view(to, now);
                self.remember(TransferView { state: "ended", status: "expired".into(), ..view });
            }
            State::Sent { until, .. } if *until <= now => {
                self.counters.exports_expired += 1;
                self.put_export(addr, to, export);
                self.end_export(addr, to, ExportEnd::Expired, now, out);
            }
            State::Sent { retry_at, wait, .. } if *retry_at <= now => {
                *wait *= 2;
                *retry_at = now + *wait;
                self.counters.retransmissions += 1;
                if let Some(signal) = export.transfer(&ALL_PARTS, now) {
                    out.push(Output::Send { to, signal });
                }
                self.put_export(addr, to, export);
            }
            State::Over { until, .. } if *until <= now => {}
            State::Wanted { .. } | State::Sent { .. } | State::Over { .. } => {
                self.put_export(addr, to, export); // woken early
            }
        }
    }

    /// CTDR.
    pub(super) fn handle_reply(
        &mut self,
        from: AnchorId,
        addr: IpAddr,
        failed: &[(Part, TransferStatus)],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mut export) = self.take_export(addr, from) else {
            self.counters.stale += 1;
            return;
        };
        let (mn, prefixes, generation) = match &export.state {
            State::Sent { context, .. } => {
                (context.mn.clone(), prefixes_of(context), context.generation)
            }
            State::Over { mn, prefixes, generation, .. } => {
                (mn.clone(), prefixes.clone(), *generation)
            }
            State::Wanted { .. } => {
                self.counters.stale += 1; // of an earlier transfer
                return self.put_export(addr, from, export);
            }
        };
        let Some(&(_, status)) = failed.first() else {
            self.counters.exports_transferred += 1;
            let view = export.view(from, now);
            self.exports_of.remove(&(mn.clone(), addr, from));
            self.remember(TransferView { state: "ended", status: "done".into(), ..view });
            // The same node under another of its addresses, or to where it did not go.
            for (addr, rival) in self.exports_of_node(&mn) {
                self.end_export(addr, rival, ExportEnd::Superseded, now, out);
            }
            return out.push(Output::Transferred { mn, prefixes, to: from, generation });
        };
        let State::Sent { part_retries, .. } = &mut export.state else { return };
        let retriable = failed.iter().all(|(_, status)| match status {
            TransferStatus::BadChecksum
            | TransferStatus::Incomplete
            | TransferStatus::Malformed => true,
            TransferStatus::Ok
            | TransferStatus::Unknown
            | TransferStatus::NotAuthorised
            | TransferStatus::GenerationOld
            | TransferStatus::Busy
            | TransferStatus::NoResources
            | TransferStatus::NotInstalled
            | TransferStatus::Referral
            | TransferStatus::Other(_) => false,
        });
        if retriable && *part_retries < PART_RETRIES_MAX {
            *part_retries += 1;
            self.counters.retransmissions += 1;
            let parts: Vec<Part> = failed.iter().map(|&(part, _)| part).collect();
            if let Some(signal) = export.transfer(&parts, now) {
                out.push(Output::Send { to: from, signal });
            }
            return self.put_export(addr, from, export);
        }
        self.counters.exports_refused += 1;
        self.put_export(addr, from, export);
        self.end_export(addr, from, ExportEnd::Refused(status), now, out);
    }

    /// CTC.
    pub(super) fn handle_cancel(
        &mut self,
        from: AnchorId,
        addr: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.counters.exports_cancelled += 1;
        self.end_export(addr, from, ExportEnd::Cancelled, now, out);
        drop(self.take_export(addr, from));
    }

    /// The link is back: what was sent over it may not have arrived.
    pub(super) fn resend_exports(&mut self, peer: AnchorId, now: Instant, out: &mut Vec<Output>) {
        for ((_, to), export) in &self.exports {
            if *to == peer
                && let Some(signal) = export.transfer(&ALL_PARTS, now)
            {
                self.counters.retransmissions += 1;
                out.push(Output::Send { to: peer, signal });
            }
        }
    }

    fn exports_of_node(&self, mn: &MnId) -> Vec<(IpAddr, AnchorId)> {
        let first = (mn.clone(), IpAddr::from([0; 4]), AnchorId(0));
        let of_node = self.exports_of.range(first..).take_while(|(name, _, _)| name == mn);
        of_node.map(|&(_, addr, to)| (addr, to)).collect()
    }

    fn take_export(&mut self, addr: IpAddr, to: AnchorId) -> Option<Export> {
        let export = self.exports.remove(&(addr, to))?;
        self.timers.remove(&(export.due, Timer::Export(addr, to)));
        Some(export)
    }

    fn put_export(&mut self, addr: IpAddr, to: AnchorId, mut export: Export) {
        export.due = export.due();
        self.timers.insert((export.due, Timer::Export(addr, to)));
        self.exports.insert((addr, to), export);
    }

    fn end_export(
        &mut self,
        addr: IpAddr,
        to: AnchorId,
        how: ExportEnd,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mut export) = self.take_export(addr, to) else { return };
        let view = export.view(to, now);
        match export.state {
            State::Wanted { .. } | State::Over { .. } => {} // no copy of ours is on its way
            State::Sent { context, until, .. } => {
                self.remember(TransferView { state: "ended", status: format!("{how:?}"), ..view });
                self.exports_of.remove(&(context.mn.clone(), addr, to));
                let (mn, prefixes) = (context.mn.clone(), prefixes_of(&context));
                if how == ExportEnd::Superseded {
                    let (mn, generation) = (mn.clone(), context.generation);
                    export.state = State::Over { mn, prefixes, generation, until };
                    self.put_export(addr, to, export);
                }
                out.push(Output::ExportEnded { mn, to, how });
            }
        }
    }
}
