//! The other half of the walk, at the pMA: the context goes to the node's next anchor, and when that
//! is ready (or the node is gone otherwise) the binding ends here.

use super::flow::Node;
use super::output::{Observation, Output};
use super::timeline::{Detail, Phase};
use crate::iec::{Evidence, Scope};
use crate::mctx;
use crate::types::seam::{Context, ContextPrefix, LeaveReason, PolicyChange};
use crate::types::transfer::{Refusal, Signal};
use crate::types::{AnchorId, Claim, Generation, Instant, MnId, Prefix};

impl Node {
    pub(super) fn handle_export_wanted(
        &mut self,
        prefix: Prefix,
        to: AnchorId,
        sequence: u32,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut reply = self.export(prefix, to, now);
        let mut offered = None;
        if let Ok(context) = &mut reply {
            context.path = self.offer(context, to);
            offered = context.path.map(|key| (context.mn.clone(), key));
        }
        let mut sent = Vec::new();
        self.mctx.reply_context(prefix, to, sequence, reply, now, &mut sent);
        // It may have refused: the asker may not have the node, or another one is getting it.
        let is_context = |output: &mctx::Output| {
            matches!(output, mctx::Output::Send { signal: Signal::Transfer(_), .. })
        };
        if sent.iter().any(is_context) {
            self.record(now, None, prefix, Phase::ContextSent, Some(to), "");
            if let Some((mn, key)) = offered {
                self.hold(&mn, key, to, out);
            }
        }
        self.carry_mctx(sent, now, out);
    }

    pub(super) fn export(
        &self,
        prefix: Prefix,
        to: AnchorId,
        now: Instant,
    ) -> Result<Context, Refusal> {
        let Some(binding) = self.location.find(prefix) else {
            // We let it go to somebody: the asker may know less than we do.
            return Err(match self.location.known_claim(prefix) {
                Some(c) if c.anchor != self.config.own && c.anchor != to => {
                    Refusal::Referral(c.anchor)
                }
                Some(_) | None => Refusal::Unknown,
            });
        };
        let is_controller = matches!(self.config.scope, Some(Scope::Controller));
        if binding.anchor != self.config.own
            && binding.anchor != to
            && is_controller
            && self.config.trust.contains_key(&binding.anchor)
        {
            return Err(Refusal::Referral(binding.anchor));
        }
        Ok(self.context_of(&binding.mn.clone(), now))
    }

    /// The context of a node as it would be exported now.
    pub(super) fn context_of(&self, mn: &MnId, now: Instant) -> Context {
        let bindings =
            || self.location.prefixes_of(mn).iter().filter_map(|&p| self.location.find(p));
        Context {
            mn: mn.clone(),
            generation: bindings().map(|b| b.generation).max().unwrap_or_default(),
            anchor: self.config.own,
            prefixes: bindings()
                .map(|b| ContextPrefix {
                    prefix: b.prefix,
                    home: b.home,
                    lifetime_s: b
                        .lifetime
                        .remaining(now)
                        .map(|d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX)),
                })
                .collect(),
            attributes: self.attributes.get(mn).cloned().unwrap_or_default(),
            path: None,
        }
    }

    /// The nMA has announced the node: we let go.
    pub(super) fn handle_transferred(
        &mut self,
        mn: &MnId,
        prefixes: &[Prefix],
        to: AnchorId,
        generation: Generation,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(next) = generation.next() else { return };
        let claim = Claim { generation: next, anchor: to };
        for &prefix in prefixes {
            match self.location.find(prefix).filter(|b| b.anchor == self.config.own) {
                Some(held) if held.mn == *mn && held.claim() < claim => {
                    self.record(now, Some(mn.clone()), prefix, Phase::Transferred, Some(to), "");
                    self.let_go(prefix, claim, now, out);
                }
                // It is back, and this was said about the time before.
                Some(_) => {}
                // It had left here before the other one could say so.
                None => self.send_on(prefix, to, now, out),
            }
        }
    }

    /// The binding ends here; `claim` is the greatest that is known.
    pub(super) fn let_go(
        &mut self,
        prefix: Prefix,
        claim: Claim,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.end_handover(prefix);
        self.send_on(prefix, claim.anchor, now, out);
        let owner = self.anchor.owner_of(prefix).cloned();
        let since = owner.as_ref().and_then(|mn| self.anchor.session(mn)).map(|s| s.since);
        let mut said = Vec::new();
        self.anchor.release(prefix, &mut said);
        if let (Some(since), Some(mn)) = (since, &owner)
            && self.anchor.find_attachment(mn).is_none()
        {
            out.push(Output::Observed(Observation::Stay(now - since)));
        }
        self.carry_anchor(said, now, out);
        let mut changes = Vec::new();
        self.location.remove(prefix, claim, &mut changes);
        for change in &changes {
            let evidence = Evidence { held_elsewhere: true, confirmed: false, attachment: None };
            self.carry_change(change, evidence, now, out);
            // What the store had is delivered before the iec knows of it: it cannot release that.
            if self.egress.find(prefix).is_some() {
                let revision = change.revision;
                self.carry_policy(PolicyChange::Release { prefix, revision }, now, out);
            }
            if let Some(old) = &change.old {
                self.forget_import(&old.mn, now, out);
            }
        }
    }

    /// A context that is still asked for, and what came with an earlier one, is of no use when
    /// nothing of the node is left here.
    pub(super) fn forget_import(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        let is_here = !self.location.prefixes_of(mn).is_empty();
        if is_here || self.waiting.values().any(|w| w.mn == *mn) {
            return;
        }
        self.attributes.remove(mn);
        let mut said = Vec::new();
        self.mctx.handle_left(mn, now, &mut said);
        self.carry_mctx(said, now, out);
    }

    pub(super) fn handle_left(
        &mut self,
        mn: &MnId,
        reason: LeaveReason,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.waiting.retain(|_, w| w.mn != *mn);
        self.forget_import(mn, now, out);
        for prefix in self.location.prefixes_of(mn).to_vec() {
            let Some(held) = self.location.find(prefix).filter(|b| b.anchor == self.config.own)
            else {
                continue;
            };
            let claim = held.claim();
            self.record(now, Some(mn.clone()), prefix, Phase::Left, None, Detail::Why(reason));
            self.let_go(prefix, claim, now, out);
        }
    }

    pub(super) fn handle_moving(
        &mut self,
        mn: &MnId,
        to: AnchorId,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut context = self.context_of(mn, now);
        context.path = self.offer(&context, to);
        let offered = context.path;
        for p in &context.prefixes {
            self.record(now, Some(mn.clone()), p.prefix, Phase::MoveAnnounced, Some(to), "");
        }
        let mut sent = Vec::new();
        match (self.mctx.move_to(context, to, now, &mut sent), offered) {
            (Ok(()), Some(key)) => self.hold(mn, key, to, out),
            (Ok(()), None) => {}
            (Err(why), _) => tracing::warn!(%mn, %to, %why, "the context is not sent ahead"),
        }
        self.carry_mctx(sent, now, out);
    }
}
