//! What operators and external anchors ask for (the API), and what anchors report to a controller.
//!
//! An external anchor is one that is not a killick: its control plane says by API who is attached
//! where, and the location follows. Such a statement has no generation of its own; it is about
//! now, so it gets the next one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::flow::{FAREWELLS_MAX, Node, Underway};
use super::output::{Mode, Output};
use super::timeline::{Detail, Phase};
use crate::iec::{Evidence, Scope, StageView};
use crate::types::seam::{Context, LeaveReason, Sighting};
use crate::types::transfer::{Report, Signal};
use crate::types::{
    AnchorId, Binding, Claim, Generation, Instant, Lifetime, Locator, MnId, Prefix,
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("this node has no mobility configured")]
    NoMobility,
    #[error("{0} is not in a mobile pool")]
    NotInPool(Prefix),
    #[error("no mobile node {0} here")]
    UnknownNode(MnId),
    #[error("no binding of {0} here")]
    UnknownPrefix(Prefix),
    #[error("anchor {0} is not known: configure it as a peer, or give its FE_E")]
    UnknownAnchor(AnchorId),
    #[error("anchor {anchor} may not claim {prefix}")]
    NotAuthorised { anchor: AnchorId, prefix: Prefix },
    #[error("{0} belongs to another mobile node")]
    OtherNode(Prefix),
    #[error("the statement is older than what is known (generation {0})")]
    Older(Generation),
    #[error("{0} has no address of the prefix's family")]
    NoNextHop(AnchorId),
    #[error("the node is attached at this anchor already")]
    AlreadyHere,
    #[error("{0}")]
    Location(#[from] crate::location::LocationError),
    #[error("the node is attached at {0}: ask that anchor to move it")]
    ElsewhereAttached(AnchorId),
}

/// A binding with what the iec makes of it: a line of `mobility sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    pub binding: Binding,
    pub stage: Option<StageView>,
    pub announced: bool,
    /// Lifetime left, in seconds.
    pub remaining_s: Option<u64>,
}

impl Node {
    /// Binds a prefix of a node to an anchor, under the next generation. The anchor is external
    /// (or this one, for hosts that the API attaches). `fe_e`: where it is not configured.
    #[expect(clippy::too_many_arguments, reason = "the fields of one request")]
    pub fn place(
        &mut self,
        mn: &MnId,
        prefix: Prefix,
        anchor: AnchorId,
        fe_e: Option<Locator>,
        lifetime: Option<Duration>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<Generation, RequestError> {
        let Some(scope) = self.config.scope else { return Err(RequestError::NoMobility) };
        if self.pools.find(prefix).is_none() {
            return Err(RequestError::NotInPool(prefix));
        }
        // An anchor speaks for its own nodes only.
        if !matches!(scope, Scope::Controller) && anchor != self.config.own {
            return Err(RequestError::ElsewhereAttached(anchor));
        }
        let configured = if anchor == self.config.own {
            Some(self.config.fe_e)
        } else {
            self.config.locators.get(&anchor).copied()
        };
        let fe_e = fe_e.or(configured).ok_or(RequestError::UnknownAnchor(anchor))?;
        if fe_e.next_hop(prefix.family()).is_none() {
            return Err(RequestError::NoNextHop(anchor));
        }
        if self.config.trust.contains_key(&anchor) && !self.may_claim(anchor, prefix) {
            return Err(RequestError::NotAuthorised { anchor, prefix });
        }
        let held = self.location.find(prefix);
        if held.is_some_and(|b| b.mn != *mn) {
            return Err(RequestError::OtherNode(prefix));
        }
        let lifetime = match lifetime.or(self.config.api_lifetime) {
            Some(d) => Lifetime::Until(now + d),
            None => Lifetime::WhileAttached,
        };
        let moved = held.is_none_or(|b| b.anchor != anchor);
        let heard = self.heard(prefix);
        let remembered =
            self.location.known_claim(prefix).map_or(Generation::NONE, |c| c.generation);
        let heard_generation = heard.and_then(|h| h.generation).unwrap_or_default();
        let known = remembered
            .max(heard_generation)
            .next()
            .ok_or(crate::location::LocationError::GenerationEnd)?;
        let generation = match held {
            // The same statement again refreshes the lease and is no move.
            Some(held) if !moved => held.generation,
            Some(_) | None => known,
        };
        let binding = Binding {
            prefix,
            mn: mn.clone(),
            anchor,
            fe_e,
            home: self.pools.home(prefix),
            generation,
            lifetime,
        };
        let held_elsewhere = held.is_some() && moved || heard.is_some();
        if moved {
            self.record(
                now,
                Some(mn.clone()),
                prefix,
                Phase::Sighted,
                Some(anchor),
                Detail::By(Sighting::Api),
            );
            let mode = if held_elsewhere { Mode::Reactive } else { Mode::Initial };
            self.underway
                .insert(prefix, Underway { since: now, mode, by: Sighting::Api, pma: None });
            if held_elsewhere {
                self.counters.attaches_handover += 1;
            } else {
                self.counters.attaches_initial += 1;
            }
        }
        // The one who speaks for all anchors replaces its own announcement in place.
        let confirmed = matches!(scope, Scope::Controller);
        let evidence = Evidence { held_elsewhere, confirmed, attachment: None };
        if let Err(error) = self.apply_binding(binding, evidence, now, out) {
            self.underway.remove(&prefix);
            return Err(error.into());
        }
        Ok(generation)
    }

    /// The next generation of a prefix: above all that is known and heard.
    pub fn next_generation(&self, prefix: Prefix) -> Option<Generation> {
        self.known_generation(prefix).next()
    }

    /// Moves all prefixes of a node. At the anchor that has it: predictive, the node itself follows.
    /// At a controller: the binding is placed at the other anchor.
    pub fn move_node(
        &mut self,
        mn: &MnId,
        to: AnchorId,
        fe_e: Option<Locator>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), RequestError> {
        let prefixes = self.location.prefixes_of(mn).to_vec();
        if prefixes.is_empty() {
            return Err(RequestError::UnknownNode(mn.clone()));
        }
        match self.config.scope {
            None => Err(RequestError::NoMobility),
            Some(Scope::Controller) => {
                for prefix in prefixes {
                    self.place(mn, prefix, to, fe_e, None, now, out)?;
                }
                Ok(())
            }
            Some(Scope::Distributed { own } | Scope::Client { own }) => {
                if to == own {
                    return Err(RequestError::AlreadyHere);
                }
                if !self.config.trust.contains_key(&to) {
                    return Err(RequestError::UnknownAnchor(to));
                }
                if let Some(&prefix) = prefixes.iter().find(|&&p| !self.may_claim(to, p)) {
                    return Err(RequestError::NotAuthorised { anchor: to, prefix });
                }
                self.handle_moving(mn, to, now, out);
                Ok(())
            }
        }
    }

    /// Ends the binding of a node here, of one prefix or of all.
    pub fn detach(
        &mut self,
        mn: &MnId,
        prefix: Option<Prefix>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), RequestError> {
        let prefixes = self.location.prefixes_of(mn).to_vec();
        if prefixes.is_empty() {
            return Err(RequestError::UnknownNode(mn.clone()));
        }
        let chosen: Vec<Prefix> =
            prefixes.into_iter().filter(|p| prefix.is_none_or(|wanted| wanted == *p)).collect();
        if let (Some(wanted), true) = (prefix, chosen.is_empty()) {
            return Err(RequestError::UnknownPrefix(wanted));
        }
        for p in chosen {
            let claim = self.location.find(p).map(Binding::claim);
            if let Some(claim) = claim {
                self.record(
                    now,
                    Some(mn.clone()),
                    p,
                    Phase::Left,
                    None,
                    Detail::Why(LeaveReason::Api),
                );
                self.let_go(p, claim, now, out);
            }
        }
        Ok(())
    }

    /// Ends the binding of one prefix, whoever has it.
    pub fn detach_prefix(
        &mut self,
        prefix: Prefix,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), RequestError> {
        let held = self.location.find(prefix).ok_or(RequestError::UnknownPrefix(prefix))?;
        let mn = held.mn.clone();
        self.detach(&mn, Some(prefix), now, out)
    }

    /// The context of a node, for an external anchor (R_XA).
    pub fn get_context(&self, mn: &MnId, now: Instant) -> Result<Context, RequestError> {
        if self.location.prefixes_of(mn).is_empty() {
            return Err(RequestError::UnknownNode(mn.clone()));
        }
        Ok(self.context_of(mn, now))
    }

    /// A context brought from an external anchor: its prefixes are bound here, or, at a controller,
    /// to the anchor that the context names; above its generation.
    pub fn put_context(
        &mut self,
        context: &Context,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), RequestError> {
        let is_controller = matches!(self.config.scope, Some(Scope::Controller));
        let anchor = if is_controller { context.anchor } else { self.config.own };
        for p in &context.prefixes {
            let brought = Claim { generation: context.generation, anchor: context.anchor };
            if self.location.known_claim(p.prefix).is_none_or(|known| known < brought)
                && self.location.find(p.prefix).is_none()
            {
                self.location.bury(p.prefix, brought);
            }
            let lifetime = p.lifetime_s.map(|s| Duration::from_secs(s.into()));
            self.place(&context.mn, p.prefix, anchor, None, lifetime, now, out)?;
        }
        if !context.attributes.is_empty() && !context.prefixes.is_empty() {
            self.attributes.insert(context.mn.clone(), context.attributes.clone());
        }
        Ok(())
    }

    pub fn session_state(&self, binding: &Binding, now: Instant) -> SessionState {
        SessionState {
            binding: binding.clone(),
            stage: self.iec.stage(binding.prefix),
            announced: self.iec.is_announced(binding.prefix),
            remaining_s: binding.lifetime.remaining(now).map(|d| d.as_secs()),
        }
    }

    // ---- R_XC -----------------------------------------------------------------------------

    /// Tells the controllers the newest state of a prefix that is, or was, here.
    pub(super) fn report(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let binding = self.location.find(prefix).filter(|b| b.anchor == self.config.own).cloned();
        let mut sent = Vec::new();
        self.mctx.report(prefix, binding, now, &mut sent);
        self.carry_mctx(sent, now, out);
    }

    /// A binding has ended here. When another anchor has it now, its report makes the controllers
    /// move the route; if our word came first, they would withdraw it before. So ours waits, and
    /// matters only if the other one never gets to speak.
    pub(super) fn report_gone(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let known = self.location.known_claim(prefix);
        let is_elsewhere = known.is_some_and(|claim| claim.anchor != self.config.own);
        if is_elsewhere && self.farewells.len() < FAREWELLS_MAX {
            self.farewells.push_back((now + self.config.settle_delay, prefix));
        } else {
            self.report(prefix, now, out);
        }
    }

    pub(super) fn report_farewells(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((_, prefix)) = self.farewells.pop_front_if(|(at, _)| *at <= now) {
            self.report(prefix, now, out);
        }
    }

    /// An anchor reports (this node is a controller), or a controller says who has what we had.
    pub(super) fn handle_report(
        &mut self,
        from: AnchorId,
        report: Report,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.handle_report_by(from, report, Sighting::Report, now, out);
    }

    /// The same by a context transfer link, or by a Map-Register.
    pub(super) fn handle_report_by(
        &mut self,
        from: AnchorId,
        report: Report,
        by: Sighting,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Report { binding, present } = report;
        let prefix = binding.prefix;
        if let Some(waiting) = self.unreported.get_mut(&from) {
            waiting.remove(&prefix);
        }
        if self.pools.find(prefix).is_none() {
            self.counters.refused_not_in_pool += 1;
            return;
        }
        if !matches!(self.config.scope, Some(Scope::Controller)) {
            return self.handle_claim(prefix, binding.claim(), now, out);
        }
        if binding.anchor != from || !self.may_claim(from, prefix) {
            self.counters.unauthorised_claims += 1;
            return self.record(now, None, prefix, Phase::Refused, Some(from), "not authorised");
        }
        let known = self.location.find(prefix).cloned();
        if !present {
            if known.as_ref().is_some_and(|k| k.anchor == from && k.claim() <= binding.claim()) {
                let how = Detail::By(by).as_str();
                self.record(now, None, prefix, Phase::Left, Some(from), how);
                self.let_go(prefix, binding.claim(), now, out);
            }
            return;
        }
        let moved = known.as_ref().is_some_and(|k| k.anchor != from);
        let how = Detail::By(by);
        self.record(now, Some(binding.mn.clone()), prefix, Phase::Sighted, Some(from), how);
        let held_elsewhere = moved || self.heard(prefix).is_some();
        let mode = if moved { Mode::Reactive } else { Mode::Initial };
        self.underway.insert(prefix, Underway { since: now, mode, by, pma: None });
        let evidence = Evidence { held_elsewhere, confirmed: true, attachment: None };
        let verdict = self.apply_binding(binding, evidence, now, out);
        use crate::location::Applied as Verdict;
        match verdict {
            Ok(Verdict::Newer | Verdict::TieWon { .. }) => {
                // The one who had it may have been away when its successor asked around.
                if let (Some(old), Some(new)) =
                    (known.filter(|_| moved), self.location.find(prefix))
                {
                    let claim = new.claim();
                    out.push(Output::Signal {
                        to: old.anchor,
                        signal: Signal::Newer { prefix, claim },
                    });
                }
            }
            Ok(Verdict::Older { .. } | Verdict::TieLost { .. }) => {
                self.underway.remove(&prefix);
                if let Some(claim) = self.location.known_claim(prefix) {
                    out.push(Output::Signal { to: from, signal: Signal::Newer { prefix, claim } });
                }
            }
            Ok(Verdict::Same) | Err(_) => {
                self.underway.remove(&prefix);
            }
        }
    }

    /// An anchor begins to report everything it has.
    pub(super) fn handle_sync_start(&mut self, from: AnchorId) {
        let there = self.location.at_anchor(from).map(|b| b.prefix).collect();
        self.unreported.insert(from, there);
    }

    /// An anchor has reported everything it has: what we believe to be there and was not named is
    /// gone.
    pub(super) fn handle_sync_end(&mut self, from: AnchorId, now: Instant, out: &mut Vec<Output>) {
        for prefix in self.unreported.remove(&from).unwrap_or_default() {
            let Some(held) = self.location.find(prefix).filter(|b| b.anchor == from) else {
                continue;
            };
            let claim = held.claim();
            self.record(now, None, prefix, Phase::Left, Some(from), "not in the full report");
            self.let_go(prefix, claim, now, out);
        }
    }

    // ---- for listings ---------------------------------------------------------------------

    /// `distributed`, `controller`, `client` or `none`.
    pub fn mode_word(&self) -> &'static str {
        match self.config.scope {
            Some(Scope::Distributed { .. }) => "distributed",
            Some(Scope::Controller) => "controller",
            Some(Scope::Client { .. }) => "client",
            None => "none",
        }
    }

    pub fn has_mobility(&self) -> bool {
        self.config.scope.is_some()
    }

    pub fn local_as(&self) -> u32 {
        self.config.local_as
    }

    pub fn is_controller(&self, anchor: AnchorId) -> bool {
        self.config.controllers.contains(&anchor)
    }

    /// Attaches that wait for a context, and bindings that are not announced yet.
    pub fn handovers_in_progress(&self) -> usize {
        self.waiting.len() + self.underway.len()
    }
}
