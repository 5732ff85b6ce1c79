//! The walk of a mobility event through the rooms.
//!
//! ```text
//!  1 sighting ──anchor──→ MobilityEvent::Attached
//!  2            who had it?  location, BGP table, home of the pool → candidates
//!  3            ──mctx──→ CT-Req to the pMA … CTD back: Context         (nobody to ask: skip)
//!  4            ──location──→ Binding with the next generation: BindingChange
//!  5            ──iec──→ FE_E first: PolicyChange::Deliver ──gateway──→ kernel
//!  6            ←─ Applied ── then PolicyChange::Announce ──bgp──→ UPDATE (or R_XC report)
//!  7            ──mctx──→ CTDR to the pMA
//!
//!  at the pMA (`departure.rs`):  CTDR, or the newer claim heard in BGP: location lets go, iec withdraws and releases
//! ```
//!
//! What is heard in BGP about a prefix that we hold is compared by generation, never by arrival:
//! newer, we let go; older, we announce ours again with a preference that beats it; equal, the
//! lower anchor id makes the next generation and the other lets go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bfd::Liveness;
use super::config::NodeConfig;
use super::lisp::Lisp;
use super::output::{Counters, HandoverPhase, Mode, Observation, Output, Record};
use super::timeline::{Detail, Event, Phase, Timeline};
use super::transient::Paths;
use crate::anchor::Anchor;
use crate::gateway::Egress;
use crate::iec::{self, Evidence, Iec, IecConfig, Scope};
use crate::location::{Applied as Verdict, Location, LocationError, Pools};
use crate::mctx::{self, Mctx, NoContext};
use crate::proto::bgp::rib::PeerId;
use crate::proto::bgp::speaker::Speaker;
use crate::proto::nd;
use crate::types::seam::{
    Applied, Attachment, BindingChange, Context, IfIndex, MobilityEvent, PolicyChange, Sighting,
};
use crate::types::transfer::Signal;
use crate::types::{
    AnchorId, Binding, Claim, Generation, Instant, Lifetime, MnId, Prefix, Revision,
};

/// Attaches that wait for a context, at most; beyond, the sighting is ignored and the node's next
/// packet tries again.
pub(super) const WAITING_MAX: usize = 100_000;

/// Bindings whose end is reported later, at most; beyond, it is reported at once.
pub(super) const FAREWELLS_MAX: usize = 100_000;

/// An attach that waits for its context.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub mn: MnId,
    pub by: Sighting,
    pub attachment: Option<Attachment>,
    pub since: Instant,
}

/// A binding whose handover is under way here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Underway {
    pub since: Instant,
    pub mode: Mode,
    pub by: Sighting,
    /// A context was imported from there: it waits for our word.
    pub pma: Option<AnchorId>,
}

/// One killick, without its sockets.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) pools: Pools,
    pub anchor: Anchor,
    pub mctx: Mctx,
    pub location: Location,
    pub iec: Iec,
    pub egress: Egress,
    pub(super) routers: BTreeMap<IfIndex, nd::Router>,
    /// Opaque attributes that came with a node's context and go on with it.
    pub(super) attributes: BTreeMap<MnId, Vec<(u16, Vec<u8>)>>,
    /// Bindings of an anchor that its full report has not named yet.
    pub(super) unreported: BTreeMap<AnchorId, BTreeSet<Prefix>>,
    pub speaker: Option<Speaker>,
    /// The mapping service; see [`super::lisp`].
    pub lisp: Option<Lisp>,
    /// Paths that are watched; see [`super::bfd`].
    pub liveness: Liveness,
    /// Neighbours that have been up since the start.
    pub(super) sessions_seen: BTreeSet<PeerId>,
    pub timeline: Timeline,
    pub counters: Counters,
    pub(super) waiting: BTreeMap<Prefix, Waiting>,
    pub(super) underway: BTreeMap<Prefix, Underway>,
    /// Claimed without the context of the previous holder: the first higher generation that is
    /// heard may be about the time before, see [`Self::hear_newer`].
    pub(super) provisional: BTreeSet<Prefix>,
    /// What the store had, until the peers' tables are here.
    pub(super) recovering: Option<(Instant, Vec<Binding>)>,
    /// Cursor of a walk that announces everything again after a session was lost.
    pub(super) reasserting: Option<u32>,
    /// Bindings that went to another anchor, and when the controllers are told; see
    /// [`Self::report_gone`].
    pub(super) farewells: VecDeque<(Instant, Prefix)>,
    /// Packets that wait or follow; see [`super::transient`].
    pub paths: Paths,
}

impl Node {
    /// `scope` without BGP needs controllers; the configuration checker has seen to that.
    pub fn new(config: NodeConfig, anchor: Anchor, mctx: Mctx, speaker: Option<Speaker>) -> Self {
        let scope = config.scope.unwrap_or(Scope::Distributed { own: config.own });
        // Two controllers that settle a route at one moment each prefer the claim that the other
        // is just giving up, and withdraw their own: for an instant there is none.
        let stagger = match scope {
            Scope::Controller => config.settle_delay * (config.own.0 % 16) / 16,
            Scope::Distributed { .. } | Scope::Client { .. } => std::time::Duration::ZERO,
        };
        let iec_config = IecConfig {
            scope,
            settle_delay: config.settle_delay + stagger,
            settle_unconfirmed: config.settle_unconfirmed,
            prepare_max: config.prepare_max,
        };
        Self {
            pools: Pools::new(config.pools.clone()),
            anchor,
            mctx,
            location: Location::new(config.seed),
            iec: Iec::new(iec_config, config.seed),
            egress: Egress::default(),
            routers: BTreeMap::new(),
            attributes: BTreeMap::new(),
            unreported: BTreeMap::new(),
            speaker,
            lisp: None,
            liveness: Liveness::default(),
            sessions_seen: BTreeSet::new(),
            timeline: Timeline::default(),
            counters: Counters::default(),
            waiting: BTreeMap::new(),
            underway: BTreeMap::new(),
            provisional: BTreeSet::new(),
            recovering: None,
            reasserting: None,
            farewells: VecDeque::new(),
            paths: Paths::default(),
            config,
        }
    }

    pub fn own(&self) -> AnchorId {
        self.config.own
    }

    /// Attaches that wait for a context, and bindings that are not announced yet.
    pub fn unfinished(&self) -> usize {
        self.waiting.len() + self.underway.len()
    }

    // ---- 1: something happened to a node --------------------------------------------------

    pub(super) fn handle_event(
        &mut self,
        event: MobilityEvent,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match event {
            MobilityEvent::Attached { prefix, mn, attachment, by } => {
                self.handle_attached(prefix, mn, attachment, by, now, out);
            }
            MobilityEvent::Left { mn, reason } => self.handle_left(&mn, reason, now, out),
            MobilityEvent::Moving { mn, to } => self.handle_moving(&mn, to, now, out),
            MobilityEvent::Claimed { prefix, claim } => {
                self.handle_claim(prefix, claim, now, out);
            }
        }
    }

    fn handle_attached(
        &mut self,
        prefix: Prefix,
        mn: MnId,
        attachment: Option<Attachment>,
        by: Sighting,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if self.pools.find(prefix).is_none() {
            self.counters.refused_not_in_pool += 1;
            return self.refuse(prefix, Some(mn), "not in a mobile pool", now, out);
        }
        if let Some(held) = self.location.find(prefix).filter(|b| b.anchor == self.config.own) {
            if held.mn == mn {
                return self.handle_same_anchor(prefix, attachment, out);
            }
            self.counters.refused_other_node += 1;
            return self.refuse(prefix, Some(mn), "the prefix belongs to another node", now, out);
        }
        if self.waiting.contains_key(&prefix) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.counters.refused_full += 1;
            let mut said = Vec::new();
            self.anchor.release(prefix, &mut said);
            return self.carry_anchor(said, now, out);
        }
        self.record(now, Some(mn.clone()), prefix, Phase::Sighted, None, Detail::By(by));
        let candidates = self.candidates(prefix);
        if candidates.is_empty() {
            let heard = self.heard(prefix).is_some();
            let mode = if heard { Mode::Provisional } else { Mode::Initial };
            let underway = Underway { since: now, mode, by, pma: None };
            return self.bind(prefix, mn, attachment, None, underway, now, out);
        }
        let known = self.known_generation(prefix);
        self.waiting.insert(prefix, Waiting { mn: mn.clone(), by, attachment, since: now });
        let mut asked = Vec::new();
        self.mctx.handle_attached(&mn, prefix, &candidates, known, now, &mut asked);
        let to = asked.iter().find_map(|output| match output {
            mctx::Output::Send { to, signal: Signal::Request { .. } } => Some(*to),
            _ => None,
        });
        // Not asked when the context came ahead of the node.
        if to.is_some() {
            self.record(now, Some(mn), prefix, Phase::ContextRequested, to, "");
        }
        self.carry_mctx(asked, now, out);
    }

    /// The node moved between two access links of this anchor, or was seen again.
    fn handle_same_anchor(
        &mut self,
        prefix: Prefix,
        attachment: Option<Attachment>,
        out: &mut Vec<Output>,
    ) {
        let Some(attachment) = attachment else { return };
        self.counters.attaches_same_anchor += 1;
        let Some(binding) = self.location.find(prefix).cloned() else { return };
        // Nobody else needs to hear of it, so the generation stays.
        out.push(Output::Persist {
            prefix,
            record: Record::Bound { binding, attachment: Some(attachment) },
        });
        self.redeliver(prefix, attachment, out);
    }

    /// The same delivery over another attachment (or again, after a restart).
    pub(super) fn redeliver(
        &mut self,
        prefix: Prefix,
        attachment: Attachment,
        out: &mut Vec<Output>,
    ) {
        let revision = self.egress.find(prefix).map_or(Revision(0), |d| d.revision);
        let policy = PolicyChange::Deliver { prefix, attachment, revision };
        let mut changes = Vec::new();
        self.egress.handle_policy(&policy, &mut changes);
        out.extend(changes.into_iter().map(Output::Forwarding));
    }

    // ---- 2: who had it? -------------------------------------------------------------------

    /// Whom to ask for the context, the likeliest first.
    fn candidates(&self, prefix: Prefix) -> Vec<AnchorId> {
        let controllers = self.config.controllers.iter().copied();
        let heard = self.heard(prefix).map(|h| h.anchor);
        let remembered = self.location.known_claim(prefix).map(|c| c.anchor);
        let home = self.pools.home(prefix);
        let mut candidates: Vec<AnchorId> = Vec::new();
        for anchor in heard.into_iter().chain(controllers).chain(remembered).chain(home) {
            let can_be_asked = anchor != self.config.own && self.config.trust.contains_key(&anchor);
            if can_be_asked && !candidates.contains(&anchor) {
                candidates.push(anchor);
            }
        }
        candidates
    }

    /// The greatest generation that is remembered here or heard in BGP.
    pub(super) fn known_generation(&self, prefix: Prefix) -> Generation {
        let remembered = self.location.known_claim(prefix).map(|c| c.generation);
        let heard = self.heard(prefix).and_then(|h| h.generation);
        remembered.unwrap_or_default().max(heard.unwrap_or_default())
    }

    // ---- 3: the context -------------------------------------------------------------------

    pub(super) fn carry_mctx(
        &mut self,
        outputs: Vec<mctx::Output>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for output in outputs {
            match output {
                mctx::Output::Send { to, signal } => out.push(Output::Signal { to, signal }),
                mctx::Output::Imported { mn, result, .. } => {
                    self.handle_imported(&mn, result, now, out);
                }
                mctx::Output::ExportWanted { prefix, to, sequence } => {
                    self.handle_export_wanted(prefix, to, sequence, now, out);
                }
                mctx::Output::Transferred { mn, prefixes, to, generation } => {
                    self.handle_transferred(&mn, &prefixes, to, generation, now, out);
                }
                mctx::Output::Predicted { mn, prefixes, from } => {
                    for prefix in prefixes {
                        let mn = Some(mn.clone());
                        self.record(now, mn, prefix, Phase::ContextReceived, Some(from), "ahead");
                    }
                }
                // The node stays ours; if it is elsewhere all the same, its claim will say so.
                mctx::Output::ExportEnded { mn, to, how } => {
                    tracing::info!(%mn, %to, ?how, "a context was not taken over");
                    self.stay(&mn, to, out);
                }
                mctx::Output::SyncStart { from } => self.handle_sync_start(from),
                mctx::Output::Reported { from, reports } => {
                    for report in reports {
                        self.handle_report(from, report, now, out);
                    }
                }
                mctx::Output::SyncEnd { from } => self.handle_sync_end(from, now, out),
            }
        }
    }

    /// The outcome for all prefixes of the node that wait here.
    fn handle_imported(
        &mut self,
        mn: &MnId,
        result: Result<mctx::Imported, NoContext>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if let Ok(mctx::Imported { context, late: true, .. }) = result {
            return self.handle_late_context(context, now, out);
        }
        let waiting: Vec<(Prefix, Waiting)> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.mn == *mn)
            .map(|(p, w)| (*p, w.clone()))
            .collect();
        for (prefix, Waiting { mn, by, attachment, since }) in waiting {
            if self.waiting.remove(&prefix).is_none() {
                continue; // came with the context of a sibling
            }
            // It may have moved to another link meanwhile.
            let attachment = self.anchor_of(prefix).or(attachment);
            let unheard = self.heard(prefix).is_none();
            let (context, mode, from) = match &result {
                Ok(imported) => {
                    let mode = match imported.mode {
                        mctx::Mode::Predictive => Mode::Predictive,
                        mctx::Mode::Reactive => Mode::Reactive,
                    };
                    (Some(imported.context.clone()), mode, Some(imported.from))
                }
                // Everybody who could have it says that the node is new.
                Err(NoContext::Unknown | NoContext::NoCandidate) if unheard => {
                    (None, Mode::Initial, None)
                }
                Err(_) => (None, Mode::Provisional, None),
            };
            let found = context.is_some();
            let phase = if found { Phase::ContextReceived } else { Phase::ContextAbsent };
            let why = match &result {
                Ok(_) => "",
                Err(why) => no_context_word(*why),
            };
            self.record(now, Some(mn.clone()), prefix, phase, from, why);
            self.observe(HandoverPhase::Context, mode, now - since, out);
            self.bind(
                prefix,
                mn,
                attachment,
                context,
                Underway { since, mode, by, pma: from },
                now,
                out,
            );
        }
    }

    /// A context that comes after the node has been claimed without one: the claim is made again
    /// above its generation, and what else belongs to the node comes along.
    fn handle_late_context(&mut self, context: Context, now: Instant, out: &mut Vec<Output>) {
        let here = self.location.prefixes_of(&context.mn).to_vec();
        let held =
            |p: &&Prefix| self.location.find(**p).is_some_and(|b| b.anchor == self.config.own);
        let Some(&first) = here.iter().find(held) else { return };
        let attachment = self.anchor_of(first);
        let above = self.location.generation_of(&context.mn) > context.generation;
        let missing = context.prefixes.iter().any(|p| !here.contains(&p.prefix));
        if above && !missing {
            for &prefix in &here {
                self.iec.handle_confirmed(prefix, now);
            }
            return self.confirm(&context.mn, now, out);
        }
        let mn = context.mn.clone();
        let pma = Some(context.anchor);
        let by = Sighting::Packet;
        let underway = Underway { since: now, mode: Mode::Reactive, by, pma };
        self.bind(first, mn, attachment, Some(context), underway, now, out);
    }

    fn confirm(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        let mut said = Vec::new();
        self.mctx.handle_installed(mn, Ok(()), now, &mut said);
        self.carry_mctx(said, now, out);
    }

    pub(super) fn anchor_of(&self, prefix: Prefix) -> Option<Attachment> {
        self.anchor.attachment_of(prefix)
    }

    // ---- 4: the binding -------------------------------------------------------------------

    /// The node is here: it and all that came with its context are bound to this anchor, under the
    /// next generation.
    #[expect(clippy::too_many_arguments, reason = "one attach, told once")]
    fn bind(
        &mut self,
        prefix: Prefix,
        mn: MnId,
        attachment: Option<Attachment>,
        context: Option<Context>,
        underway: Underway,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mode = underway.mode;
        let mut prefixes = vec![(prefix, Lifetime::WhileAttached)];
        for p in context.iter().flat_map(|c| &c.prefixes) {
            // The lease of an imported prefix goes on; a node that is here needs none of its own.
            let lifetime = Lifetime::WhileAttached;
            if p.prefix != prefix && self.pools.find(p.prefix).is_some() {
                prefixes.push((p.prefix, lifetime));
            }
        }
        let mut known = self.location.generation_of(&mn);
        known = known.max(context.as_ref().map_or(Generation::NONE, |c| c.generation));
        for &(p, _) in &prefixes {
            known = known.max(self.known_generation(p));
        }
        let Some(generation) = known.next() else {
            return self.refuse(prefix, Some(mn), "the generation is at its end", now, out);
        };
        let moved = context.is_some() || generation.0 > 1;
        let path = context.as_ref().and_then(|c| c.path);
        if let Some(context) = context.filter(|c| !c.attributes.is_empty()) {
            self.attributes.insert(mn.clone(), context.attributes);
        }
        let home = self.pools.home(prefix);
        match (moved, home == Some(self.config.own)) {
            (false, _) => self.counters.attaches_initial += 1,
            (true, true) => self.counters.attaches_return += 1,
            (true, false) => self.counters.attaches_handover += 1,
        }
        for (p, lifetime) in prefixes {
            let held_elsewhere = mode != Mode::Initial || self.heard(p).is_some();
            let binding = Binding {
                prefix: p,
                mn: mn.clone(),
                anchor: self.config.own,
                fe_e: self.config.fe_e,
                home: self.pools.home(p),
                generation,
                lifetime,
            };
            self.waiting.remove(&p);
            self.underway.insert(p, underway);
            if mode == Mode::Provisional {
                self.counters.handovers_provisional += 1;
                self.provisional.insert(p);
            }
            let mut said = Vec::new();
            // One that another node has here stays with it.
            if p == prefix || self.anchor.handle_import(&mn, &[p], &mut said).is_ok() {
                self.gate(p, path, underway.pma, now, out);
                let evidence = Evidence { held_elsewhere, confirmed: false, attachment };
                let verdict = self.apply_binding(binding, evidence, now, out);
                if verdict.is_err() {
                    self.end_handover(p);
                    let why = "no room, or another node's prefix";
                    self.refuse(p, Some(mn.clone()), why, now, out);
                }
            } else {
                self.end_handover(p);
            }
            self.carry_anchor(said, now, out);
        }
    }

    pub(super) fn end_handover(&mut self, prefix: Prefix) {
        self.provisional.remove(&prefix);
        self.underway.remove(&prefix);
    }

    /// Gives a statement to the location database and carries on what changed.
    pub(super) fn apply_binding(
        &mut self,
        binding: Binding,
        evidence: Evidence,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<Verdict, LocationError> {
        let mut changes = Vec::new();
        let verdict = self.location.apply(binding.clone(), &mut changes);
        match &verdict {
            Ok(Verdict::Older { known } | Verdict::TieLost { known }) => {
                self.counters.stale_generations_ignored += 1;
                let detail = "older than what is known";
                let p = binding.prefix;
                self.record(now, Some(binding.mn), p, Phase::Refused, Some(known.anchor), detail);
            }
            Ok(Verdict::TieWon { lost }) => {
                self.counters.duplicate_anchors += 1;
                self.record(
                    now,
                    Some(binding.mn),
                    binding.prefix,
                    Phase::Tie,
                    Some(lost.anchor),
                    "won",
                );
            }
            Ok(Verdict::Newer | Verdict::Same) => {}
            Err(LocationError::OtherNode) => self.counters.refused_other_node += 1,
            Err(_) => self.counters.refused_full += 1,
        }
        for change in &changes {
            self.carry_change(change, evidence, now, out);
        }
        verdict
    }

    pub(super) fn carry_change(
        &mut self,
        change: &BindingChange,
        evidence: Evidence,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let prefix = change.prefix;
        if let Some(binding) = &change.new {
            let peer = change.old.as_ref().map(|b| b.anchor);
            let by = self.underway.get(&prefix).map_or(Detail::None, |u| Detail::By(u.by));
            self.record(now, Some(binding.mn.clone()), prefix, Phase::Bound, peer, by);
            out.push(Output::Persist {
                prefix,
                record: Record::Bound { binding: binding.clone(), attachment: evidence.attachment },
            });
        } else if let Some(claim) = self.location.known_claim(prefix) {
            out.push(Output::Persist { prefix, record: Record::Gone(claim) });
        }
        self.publish(prefix, now, out);
        let mut wishes = Vec::new();
        self.iec.handle_change(change, evidence, now, &mut wishes);
        self.carry_iec(wishes, now, out);
    }

    // ---- 5, 6: FE_E, then everybody else --------------------------------------------------

    pub(super) fn carry_iec(
        &mut self,
        outputs: Vec<iec::Output>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for output in outputs {
            match output {
                iec::Output::Policy(policy) => self.carry_policy(policy, now, out),
                iec::Output::Announced { prefix, .. } => self.handle_announced(prefix, now, out),
                iec::Output::Unconfirmed { prefix, .. } => {
                    self.record(now, None, prefix, Phase::DeliveryUnconfirmed, None, "");
                }
                iec::Output::Settled { prefix, home } => {
                    self.provisional.remove(&prefix);
                    let detail = if home { "the aggregate leads home" } else { "" };
                    self.record(now, None, prefix, Phase::Settled, None, detail);
                }
            }
        }
    }

    pub(super) fn carry_policy(
        &mut self,
        policy: PolicyChange,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match policy {
            PolicyChange::Deliver { .. } | PolicyChange::Release { .. } => {
                let mut changes = Vec::new();
                if let PolicyChange::Release { prefix, .. } = policy {
                    self.record(now, None, prefix, Phase::Released, None, "");
                    let before = self.egress.find(prefix);
                    self.egress.handle_policy(&policy, &mut changes);
                    if let (Some(before), None) = (before, self.egress.find(prefix)) {
                        self.announce_departure(prefix, before.attachment.link, out);
                        self.lisp_release(prefix, now, out);
                    }
                    out.extend(changes.into_iter().map(Output::Forwarding));
                } else if let PolicyChange::Deliver { prefix, .. } = policy {
                    self.pass(prefix, out);
                    self.egress.handle_policy(&policy, &mut changes);
                    out.extend(changes.into_iter().map(Output::Forwarding));
                    self.lisp_deliver(prefix, out);
                }
            }
            PolicyChange::Announce { prefix, anchor, fe_e, preference } => {
                match self.config.scope {
                    Some(Scope::Client { .. }) => self.report(prefix, now, out),
                    Some(Scope::Distributed { .. } | Scope::Controller) | None => {
                        self.announce(prefix, anchor, fe_e, preference);
                        self.lisp_announce(prefix, now);
                    }
                }
            }
            PolicyChange::Withdraw { prefix } => {
                self.record(now, None, prefix, Phase::Withdrawn, None, "");
                match self.config.scope {
                    Some(Scope::Client { .. }) => self.report_gone(prefix, now, out),
                    Some(Scope::Distributed { .. } | Scope::Controller) | None => {
                        self.withdraw(prefix);
                        self.lisp_withdraw(prefix, now);
                    }
                }
            }
        }
    }

    /// Former neighbours on the link of a node that is delivered no longer send to the router.
    fn announce_departure(&mut self, prefix: Prefix, link: IfIndex, out: &mut Vec<Output>) {
        let Some(router) = self.routers.get_mut(&link) else { return };
        if prefix.is_host() {
            let mut said = Vec::new();
            router.announce_departure(prefix.addr(), &mut said);
            // Frames only: nothing is sighted by what we say ourselves.
            out.extend(said.into_iter().filter_map(|output| match output {
                nd::Output::Send { link, frame } => Some(Output::Frame { link, octets: frame }),
                nd::Output::Sighted(_) => None,
            }));
        }
    }

    /// The kernel did, or could not do, what FE_E was asked for.
    pub fn handle_applied(&mut self, applied: Applied, now: Instant, out: &mut Vec<Output>) {
        let Applied { prefix, revision, result } = applied;
        if result.is_err() {
            self.counters.delivery_errors += 1;
        }
        if self.egress.find(prefix).is_some() {
            let detail = if result.is_ok() { "" } else { "the kernel refused" };
            self.record(now, None, prefix, Phase::Delivering, None, detail);
        }
        if let Some(&Underway { since, mode, .. }) = self.underway.get(&prefix) {
            self.observe(HandoverPhase::Delivery, mode, now - since, out);
        }
        let mut wishes = Vec::new();
        self.iec.handle_applied(prefix, revision, now, &mut wishes);
        self.carry_iec(wishes, now, out);
    }

    /// 7: the claim is out, so the pMA may let go.
    fn handle_announced(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let announced = self.iec.is_announced(prefix);
        let phase = if announced { Phase::Announced } else { Phase::AtHome };
        self.record(now, None, prefix, phase, None, "");
        let Some(underway) = self.underway.remove(&prefix) else { return };
        self.observe(HandoverPhase::Announce, underway.mode, now - underway.since, out);
        self.counters.handovers_completed += 1;
        let Some(pma) = underway.pma else { return };
        let Some(mn) = self.location.find(prefix).map(|b| b.mn.clone()) else { return };
        // All prefixes of the node came with one context; the last one that is ready says so.
        let siblings = self.location.prefixes_of(&mn);
        if siblings.iter().any(|p| self.underway.contains_key(p)) {
            return;
        }
        let siblings = siblings.to_vec();
        self.record(now, Some(mn.clone()), prefix, Phase::ConfirmSent, Some(pma), "");
        self.confirm(&mn, now, out);
        for p in siblings {
            self.iec.handle_confirmed(p, now);
        }
    }

    // ---- somebody else claims what we hold ------------------------------------------------

    /// A claim with a generation, from BGP or from a controller.
    pub(super) fn handle_claim(
        &mut self,
        prefix: Prefix,
        claim: Claim,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(held) = self.location.find(prefix) else {
            return self.location.bury(prefix, claim);
        };
        let ours = held.claim();
        if claim == ours || claim.anchor == held.anchor && claim.generation < ours.generation {
            return;
        }
        if !self.may_claim(claim.anchor, prefix) {
            self.counters.unauthorised_claims += 1;
            return self.record(
                now,
                None,
                prefix,
                Phase::Refused,
                Some(claim.anchor),
                "not authorised",
            );
        }
        match claim.generation.cmp(&ours.generation) {
            std::cmp::Ordering::Greater => self.hear_newer(prefix, claim, now, out),
            std::cmp::Ordering::Less => self.reassert(prefix, claim.anchor, now, out),
            std::cmp::Ordering::Equal => {
                self.counters.duplicate_anchors += 1;
                if claim > ours {
                    self.record(now, None, prefix, Phase::Tie, Some(claim.anchor), "lost");
                    self.let_go(prefix, claim, now, out);
                } else {
                    // Routers may prefer either of two equal claims; the next generation decides,
                    // and only the winner of the tie makes it.
                    self.record(now, None, prefix, Phase::Tie, Some(claim.anchor), "won");
                    self.outbid(prefix, claim.generation, now, out);
                }
            }
        }
    }

    /// A newer claim ends ours. Only one that was made without knowing the past (`provisional`) may
    /// have met the past: the node is still attached here, so the claim is made once more, above.
    fn hear_newer(&mut self, prefix: Prefix, claim: Claim, now: Instant, out: &mut Vec<Output>) {
        if self.provisional.remove(&prefix) {
            return self.outbid(prefix, claim.generation, now, out);
        }
        self.counters.released_newer_claim += 1;
        self.record(now, None, prefix, Phase::NewerClaim, Some(claim.anchor), "");
        self.let_go(prefix, claim, now, out);
    }

    /// The same binding under a generation above `heard`.
    fn outbid(&mut self, prefix: Prefix, heard: Generation, now: Instant, out: &mut Vec<Output>) {
        let (Some(held), Some(generation)) = (self.location.find(prefix), heard.next()) else {
            return;
        };
        let binding = Binding { generation, ..held.clone() };
        let attachment = self.anchor_of(prefix);
        let evidence = Evidence { held_elsewhere: true, confirmed: false, attachment };
        let _ = self.apply_binding(binding, evidence, now, out);
    }

    pub(super) fn reassert(
        &mut self,
        prefix: Prefix,
        heard: AnchorId,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut wishes = Vec::new();
        self.iec.reassert(prefix, now, &mut wishes);
        if !wishes.is_empty() {
            self.counters.reasserted += 1;
            self.record(now, None, prefix, Phase::Reasserted, Some(heard), "");
        }
        self.carry_iec(wishes, now, out);
    }

    /// Whether the configured trust lets an anchor claim the prefix.
    pub(super) fn may_claim(&self, anchor: AnchorId, prefix: Prefix) -> bool {
        anchor == self.config.own
            || self.config.trust.get(&anchor).is_some_and(|allowed| {
                allowed.is_empty() || allowed.iter().any(|p| p.contains(prefix))
            })
    }

    // ---- words ----------------------------------------------------------------------------

    /// The anchor room forgets the prefix as well, and does not tell of it again for a while:
    /// otherwise it would believe the node attached, and never say so once more.
    fn refuse(
        &mut self,
        prefix: Prefix,
        mn: Option<MnId>,
        why: &'static str,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        tracing::warn!(%prefix, mn = mn.as_ref().map(MnId::as_str).as_deref(), why, "attach refused");
        self.record(now, mn, prefix, Phase::Refused, None, why);
        self.refuse_packets(prefix, out);
        let mut said = Vec::new();
        self.anchor.handle_refused(prefix, now, &mut said);
        self.carry_anchor(said, now, out);
    }

    pub(super) fn record(
        &mut self,
        at: Instant,
        mn: Option<MnId>,
        prefix: Prefix,
        phase: Phase,
        peer: Option<AnchorId>,
        detail: impl Into<Detail>,
    ) {
        let detail = detail.into();
        let bound = self.location.find(prefix);
        let mn = mn.or_else(|| bound.map(|b| b.mn.clone()));
        let generation = match bound {
            Some(binding) => binding.generation,
            None => self.location.known_claim(prefix).map_or(Generation::NONE, |c| c.generation),
        };
        tracing::debug!(
            %prefix, mn = mn.as_ref().map(MnId::as_str).as_deref(), generation = generation.0, ?phase,
            peer = peer.map(tracing::field::display), detail = detail.as_str(), "handover"
        );
        self.timeline.record(Event { at, mn, prefix, phase, generation, peer, detail });
    }

    fn observe(
        &self,
        phase: HandoverPhase,
        mode: Mode,
        took: std::time::Duration,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Observed(Observation::Handover { phase, mode, took }));
    }
}

fn no_context_word(why: NoContext) -> &'static str {
    match why {
        NoContext::NoCandidate => "there is nobody to ask",
        NoContext::Unknown => "nobody knows the node",
        NoContext::Timeout => "no answer in time",
        NoContext::Unreachable => "no link to the previous anchor",
        _ => "refused",
    }
}
