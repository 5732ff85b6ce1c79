//! The relocation that loses nothing, as the hall sees it: which packets wait where.
//!
//! ```text
//!  pMA  context given away (asked for, or sent ahead) ──→ Hold, and the key goes with the context
//!       CTDR, or the newer claim of that anchor ────────→ Forward
//!  nMA  context with a key taken over ──────────────────→ Gate, before the kernel delivers
//!       the node is ours (with or without a context) ───→ Pass: what it has sent itself goes on
//! ```
//!
//! No message is new: an anchor says in its hello where it takes packets, so that one without this
//! is relocated from as ever; CT-Req starts the waiting, the context carries the key, CTDR ends the
//! waiting. Whatever is not said in time, a bound of the data plane ends it: packets then go where
//! the kernel leads.

use std::collections::BTreeMap;

use super::flow::Node;
use super::output::Output;
use super::timeline::Phase;
use crate::types::seam::Context;
use crate::types::transient::{PathEnd, PathEnding, PathKey, TransientChange, TransientEvent};
use crate::types::{AnchorId, Instant, MnId, Prefix};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// pMA: they wait until that anchor is ready.
    Hold { to: AnchorId },
    /// pMA: they follow the node.
    Forward { to: AnchorId },
    /// nMA.
    Gate { from: AnchorId },
}

/// The paths of the prefixes that are bound here, or were until now.
#[derive(Debug, Default)]
pub struct Paths {
    /// Where the peers take packets, as their hellos said; each is one that is configured.
    ends: BTreeMap<AnchorId, PathEnd>,
    /// At most one for each binding, and those that are on their way to their end.
    roles: BTreeMap<Prefix, (Role, PathKey)>,
}

impl Paths {
    /// The hello of a peer.
    pub fn set_end(&mut self, peer: AnchorId, end: Option<PathEnd>) {
        match end {
            Some(end) => self.ends.insert(peer, end),
            None => self.ends.remove(&peer),
        };
    }

    /// Prefixes whose packets wait, are sent on, or are put in order here.
    pub fn len(&self) -> usize {
        self.roles.len()
    }

    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }
}

impl Node {
    /// The key under which the node's packets follow it to `to`, for the context: `None` when they
    /// do not wait. They begin to with [`Self::hold`], when the context is really on its way.
    pub(super) fn offer(&self, context: &Context, to: AnchorId) -> Option<PathKey> {
        let config = self.config.transient.as_ref()?;
        let end = self.paths.ends.get(&to)?;
        let mut prefixes = context.prefixes.iter();
        let waits = context.anchor == self.config.own
            && end.locator.shares_family_with(&config.locator)
            // Those of a prefix that is not delivered here could not.
            && prefixes.any(|p| self.egress.find(p.prefix).is_some());
        waits.then(|| config.secret.key(&context.mn, context.generation, to))
    }

    /// From now on the node's packets wait here for it to be at `to`.
    pub(super) fn hold(&mut self, mn: &MnId, key: PathKey, to: AnchorId, out: &mut Vec<Output>) {
        for prefix in self.location.prefixes_of(mn).to_vec() {
            let role = (Role::Hold { to }, key);
            if self.egress.find(prefix).is_some()
                && self.paths.roles.insert(prefix, role) != Some(role)
            {
                out.push(Output::Transient(TransientChange::Hold { prefix, key }));
            }
        }
    }

    /// The binding ends here because that anchor has it now. What waits, and what still comes, goes
    /// there; if it waited for somebody else, it goes where the kernel leads.
    pub(super) fn send_on(
        &mut self,
        prefix: Prefix,
        to: AnchorId,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(&(role, key)) = self.paths.roles.get(&prefix) else { return };
        match (role, self.paths.ends.get(&to)) {
            (Role::Forward { to: already }, _) if already == to => {}
            (Role::Hold { to: waited }, Some(&end)) if waited == to => {
                self.paths.roles.insert(prefix, (Role::Forward { to }, key));
                out.push(Output::Transient(TransientChange::Forward { prefix, key, to: end }));
                self.record(now, None, prefix, Phase::Forwarding, Some(to), "");
            }
            // The node has left and it is not known to where: the one it was announced to may
            // still say so.
            (Role::Hold { .. }, _) if to == self.config.own => {}
            (Role::Hold { .. } | Role::Forward { .. } | Role::Gate { .. }, _) => {
                self.paths.roles.remove(&prefix);
                out.push(Output::Transient(TransientChange::Release { prefix }));
            }
        }
    }

    /// That anchor does not take the node over: what waits for it goes where the kernel leads.
    pub(super) fn stay(&mut self, mn: &MnId, to: AnchorId, out: &mut Vec<Output>) {
        for prefix in self.location.prefixes_of(mn).to_vec() {
            let held = matches!(
                self.paths.roles.get(&prefix),
                Some((Role::Hold { to: waited }, _)) if *waited == to
            );
            if held {
                self.paths.roles.remove(&prefix);
                out.push(Output::Transient(TransientChange::Release { prefix }));
            }
        }
    }

    /// The prefix is about to be delivered here: packets that come directly stay behind those that
    /// `from` has held.
    pub(super) fn gate(
        &mut self,
        prefix: Prefix,
        path: Option<PathKey>,
        from: Option<AnchorId>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if self.config.transient.is_none() {
            return;
        }
        let end = from.and_then(|from| Some((from, *self.paths.ends.get(&from)?)));
        if let (Some(key), Some((from, end))) = (path, end) {
            let role = (Role::Gate { from }, key);
            if self.paths.roles.insert(prefix, role) != Some(role) {
                out.push(Output::Transient(TransientChange::Gate { prefix, key, from: end }));
                self.record(now, None, prefix, Phase::Gated, Some(from), "");
            }
        } else if self.paths.roles.remove(&prefix).is_some() {
            // It is back, and the one it was sent to has said nothing.
            out.push(Output::Transient(TransientChange::Release { prefix }));
        }
    }

    /// What a node has sent before it was ours goes on.
    pub(super) fn pass(&self, prefix: Prefix, out: &mut Vec<Output>) {
        if self.config.transient.is_some() {
            out.push(Output::Transient(TransientChange::Pass { prefix }));
        }
    }

    /// It never will be ours.
    pub(super) fn refuse_packets(&self, prefix: Prefix, out: &mut Vec<Output>) {
        if self.config.transient.is_some() {
            out.push(Output::Transient(TransientChange::Refuse { prefix }));
        }
    }

    /// The packets of a node that has left follow it by the path, not by an entry of FE_I.
    pub(super) fn is_sent_on(&self, prefix: Prefix) -> bool {
        matches!(self.paths.roles.get(&prefix), Some((Role::Hold { .. } | Role::Forward { .. }, _)))
    }

    pub fn handle_transient(&mut self, event: TransientEvent, now: Instant, out: &mut Vec<Output>) {
        match event {
            // From here on nothing is lost; the new anchor holds as well, but tells of its gate.
            TransientEvent::Holding { prefix } => {
                if let Some((Role::Hold { to } | Role::Forward { to }, _)) =
                    self.paths.roles.get(&prefix).copied()
                {
                    self.record(now, None, prefix, Phase::Holding, Some(to), "");
                }
            }
            TransientEvent::Flushed { prefix, counts } => {
                self.record(now, None, prefix, Phase::Flushed, None, "");
                tracing::debug!(%prefix, ?counts, "what waited has been sent");
            }
            // It is about what was before the newest change.
            TransientEvent::Ended { how: PathEnding::Replaced, .. } => {}
            TransientEvent::Ended { prefix, how, counts } => {
                tracing::debug!(%prefix, ?how, ?counts, "a transient path has ended");
                self.paths.roles.remove(&prefix);
                let word = match how {
                    PathEnding::Drained => "drained",
                    PathEnding::Bound => "packets were still coming",
                    PathEnding::Silent => "the other anchor said nothing",
                    PathEnding::Failed => "could not be set up",
                    PathEnding::Replaced => "replaced",
                };
                self.record(now, None, prefix, Phase::PathEnded, None, word);
                self.lisp_path_ended(prefix, out);
            }
        }
    }
}
