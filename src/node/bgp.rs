//! The hall's door to BGP: host routes out, claims in, best paths to the kernel; and what a
//! restart means for both.
//!
//! *Restart.* What the store had is bound again at once and the kernel keeps delivering, but
//! nothing is announced before the peers have sent their tables (End-of-RIB, or `recover_max`):
//! somebody may hold a node that left while we were away, and our old claim, with its raised
//! preference, would take its traffic back. A binding for which a newer claim, or a settled route
//! of another anchor, is heard then is let go; a node that is here all the same is sighted with its
//! next packet and moves back properly.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::claims::{Heard, host_route};
use super::config::NodeConfig;
use super::flow::Node;
use super::output::Output;
use super::timeline::Phase;
use crate::iec::{Evidence, Scope};
use crate::proto::bgp::rib::{ChangeReader, PeerId};
use crate::proto::bgp::session::{ConnId, Transport};
use crate::proto::bgp::speaker::{self, NeighborConfig, NeighborError, Speaker};
use crate::types::seam::{Attachment, ForwardingChange, Preference};
use crate::types::{AnchorId, Binding, Claim, Instant, Locator, Prefix};
use crate::wire::bgp::{Attributes, NextHop};

/// Large community `local-as:100:generation` on a claim.
pub const LARGE_COMMUNITY_GENERATION: u32 = 100;
/// Large community `local-as:101:anchor` on every host route.
pub const LARGE_COMMUNITY_ANCHOR: u32 = 101;

/// Best path changes carried per turn; the rest follows in the next.
const CHANGES_PER_TURN: usize = 4_096;

impl Node {
    /// Announces the aggregates and asks for the changes that this node needs. Once, at start.
    pub fn start_bgp(&mut self, install: bool) {
        let NodeConfig { aggregates, scope, .. } = &self.config;
        let mobile = scope.is_some();
        let Some(speaker) = &mut self.speaker else { return };
        let rib = speaker.rib_mut();
        rib.enable_changes(ChangeReader::Kernel, install);
        rib.enable_changes(ChangeReader::Mobility, mobile);
        for aggregate in aggregates {
            let Some(next_hop) = aggregate.next_hop.next_hop(aggregate.prefix.family()) else {
                tracing::error!(prefix = %aggregate.prefix, "no next hop of its family: not announced");
                continue;
            };
            let attributes = Attributes {
                local_pref: Some(Preference::Settled.local_pref()),
                ..Attributes::local(NextHop::from(next_hop))
            };
            rib.originate(aggregate.prefix, attributes);
        }
    }

    pub(super) fn announce(
        &mut self,
        prefix: Prefix,
        anchor: AnchorId,
        fe_e: Locator,
        preference: Preference,
    ) {
        let NodeConfig { local_as, no_export, .. } = self.config;
        let Some(speaker) = &mut self.speaker else { return };
        match host_route(prefix, anchor, &fe_e, preference, local_as, no_export) {
            Some(attributes) => {
                if !speaker.rib_mut().originate(prefix, attributes) {
                    self.counters.refused_full += 1;
                }
            }
            None => {
                self.counters.no_next_hop += 1;
                tracing::warn!(%prefix, %anchor, "FE_E has no address of the prefix's family: not announced");
            }
        }
    }

    pub(super) fn withdraw(&mut self, prefix: Prefix) {
        if let Some(speaker) = &mut self.speaker {
            speaker.rib_mut().withdraw_local(prefix);
        }
    }

    /// The host route of another anchor that BGP prefers now; else what the mapping service has told
    /// of it, where an anchor is subscribed or has asked.
    pub(super) fn heard(&self, prefix: Prefix) -> Option<Heard> {
        self.heard_in_bgp(prefix).or_else(|| self.heard_in_lisp(prefix))
    }

    fn heard_in_bgp(&self, prefix: Prefix) -> Option<Heard> {
        let best = self.speaker.as_ref()?.rib().find_best(prefix)?;
        if best.peer == PeerId::LOCAL {
            return None;
        }
        let heard = Heard::from_attributes(best.attributes, self.config.local_as)?;
        (heard.anchor != self.config.own).then_some(heard)
    }

    /// Carries best path changes on: to the kernel, and to what we know about mobile prefixes.
    /// True when there are more for another turn.
    pub fn handle_best_changes(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let Some(speaker) = &mut self.speaker else { return false };
        let rib = speaker.rib_mut();
        let mut more =
            rib.drain_changes(ChangeReader::Kernel, CHANGES_PER_TURN, &mut |prefix, best| {
                let change = match best {
                    Some(best) if best.peer != PeerId::LOCAL => ForwardingChange::SetRoute {
                        prefix,
                        next_hop: best.attributes.next_hop.addr(),
                    },
                    Some(_) | None => ForwardingChange::RemoveRoute { prefix },
                };
                out.push(Output::Forwarding(change));
            });
        let (local_as, own) = (self.config.local_as, self.config.own);
        let (location, pools) = (&self.location, &self.pools);
        let (mut heard, mut ours) = (Vec::new(), Vec::new());
        more |= rib.drain_changes(ChangeReader::Mobility, CHANGES_PER_TURN, &mut |prefix, best| {
            let Some(best) = best else { return };
            if best.peer == PeerId::LOCAL {
                return ours.push(prefix);
            }
            // Only what we hold, or once held, can be news to us; one lookup for all others.
            if location.known_claim(prefix).is_none() || pools.find(prefix).is_none() {
                return;
            }
            let claim = Heard::from_attributes(best.attributes, local_as);
            heard.extend(claim.filter(|h| h.anchor != own).map(|h| (prefix, h)));
        });
        // Ours is the best here, but other routers have rules of their own: when both are settled,
        // each of two anchors would believe itself for ever.
        for prefix in ours {
            rib.find_others(prefix, &mut |other| {
                let rival = Heard::from_attributes(other.attributes, local_as);
                heard.extend(rival.filter(|h| h.anchor != own).map(|h| (prefix, h)));
            });
        }
        for (prefix, heard) in heard {
            self.handle_heard(prefix, heard, now, out);
        }
        more
    }

    fn handle_heard(&mut self, prefix: Prefix, heard: Heard, now: Instant, out: &mut Vec<Output>) {
        if self.recovering.is_some() {
            return; // judged at the end of the recovery, with the whole table at hand
        }
        if matches!(self.config.scope, Some(Scope::Controller)) {
            return self.handle_heard_by_controller(prefix, heard, now, out);
        }
        match heard.claim() {
            Some(claim) => self.handle_claim(prefix, claim, now, out),
            // A settled route of another anchor beats what we announce, or we announce nothing: we
            // say which generation we have, and the holder answers if its own is newer.
            None if self.location.find(prefix).is_some() => {
                self.reassert(prefix, heard.anchor, now, out);
            }
            None => {}
        }
    }

    /// Another controller announces the prefix. What it says is about an anchor, not about itself.
    fn handle_heard_by_controller(
        &mut self,
        prefix: Prefix,
        heard: Heard,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(held) = self.location.find(prefix) else { return };
        match heard.claim() {
            Some(claim) if claim > held.claim() => {
                if !self.may_claim(claim.anchor, prefix) {
                    self.counters.unauthorised_claims += 1;
                    return;
                }
                let fe_e = self.config.locators.get(&claim.anchor).copied();
                let binding = Binding {
                    anchor: claim.anchor,
                    generation: claim.generation,
                    fe_e: fe_e.unwrap_or(match heard.next_hop {
                        std::net::IpAddr::V4(a) => Locator { ipv4: Some(a), ipv6: None },
                        std::net::IpAddr::V6(a) => Locator { ipv4: None, ipv6: Some(a) },
                    }),
                    ..held.clone()
                };
                let evidence =
                    Evidence { held_elsewhere: true, confirmed: false, attachment: None };
                let _ = self.apply_binding(binding, evidence, now, out);
            }
            Some(claim) if claim < held.claim() => self.reassert(prefix, heard.anchor, now, out),
            Some(_) => {}
            None if heard.anchor != held.anchor => self.reassert(prefix, heard.anchor, now, out),
            None => {}
        }
    }

    // ---- restart --------------------------------------------------------------------------

    /// What the store had: bound again, delivered again, announced after [`Self::end_recovery`].
    pub fn restore(
        &mut self,
        bound: Vec<(Binding, Option<Attachment>)>,
        gone: Vec<(Prefix, Claim)>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for (prefix, claim) in gone {
            self.location.bury(prefix, claim);
        }
        let mut waiting = Vec::new();
        for (binding, attachment) in bound {
            let mut changes = Vec::new();
            if let Err(error) = self.location.apply(binding.clone(), &mut changes) {
                tracing::error!(prefix = %binding.prefix, %error, "a stored binding is given up");
                continue;
            }
            let (mn, prefix) = (binding.mn.clone(), binding.prefix);
            self.record(now, Some(mn.clone()), prefix, Phase::Restored, None, "");
            if let Some(attachment) = attachment {
                let mut said = Vec::new();
                let here = Some(attachment);
                if let Err(why) =
                    self.anchor.handle_restore(&mn, &[prefix], here, None, now, &mut said)
                {
                    tracing::error!(%prefix, %why, "a stored attachment is given up");
                    continue;
                }
                self.carry_anchor(said, now, out);
                self.redeliver(prefix, attachment, out);
                self.lisp_deliver(prefix, out);
            }
            self.lisp_adopt(prefix, now, out);
            waiting.push(binding);
        }
        self.recovering = Some((now + self.config.recover_max, waiting));
    }

    /// True until the peers' tables are here, or have had their time.
    pub fn is_restarting(&self) -> bool {
        self.is_recovering() || self.speaker.as_ref().is_some_and(Speaker::is_deferring)
    }

    /// True until what the store had has been compared with what the peers say.
    pub fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// The peers' tables are here, or it has been long enough.
    pub fn end_recovery(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some((_, stored)) = self.recovering.take() else { return };
        self.judge_recent(&stored, now, out);
        for binding in stored {
            let prefix = binding.prefix;
            if self.location.find(prefix).is_none_or(|b| b.claim() != binding.claim()) {
                continue; // moved meanwhile
            }
            let is_controller = matches!(self.config.scope, Some(Scope::Controller));
            match self.heard(prefix) {
                Some(heard) if !is_controller => {
                    let ours = binding.claim();
                    // A settled route does not tell its generation; ours is from before the crash.
                    let theirs = heard.claim().unwrap_or(Claim {
                        generation: ours.generation.next().unwrap_or(ours.generation),
                        anchor: heard.anchor,
                    });
                    if theirs > ours && self.may_claim(heard.anchor, prefix) {
                        self.record(now, None, prefix, Phase::NewerClaim, Some(heard.anchor), "");
                        self.let_go(prefix, heard.claim().unwrap_or(ours), now, out);
                        continue;
                    }
                }
                Some(heard) if heard.claim().is_some_and(|c| c > binding.claim()) => {
                    self.handle_heard_by_controller(prefix, heard, now, out);
                    continue;
                }
                Some(_) | None => {}
            }
            self.announce_restored(&binding, now, out);
        }
    }

    /// What has been bound during the recovery, by sightings or by reports, has not been compared
    /// with the table either: nobody says a second time what was heard then.
    fn judge_recent(&mut self, stored: &[Binding], now: Instant, out: &mut Vec<Output>) {
        let stored: BTreeSet<(Prefix, Claim)> =
            stored.iter().map(|b| (b.prefix, b.claim())).collect();
        let mut recent = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let page = self.location.page(from, CHANGES_PER_TURN);
            let known = page.bindings.iter().map(|b| (b.prefix, b.claim()));
            recent.extend(known.filter(|known| !stored.contains(known)));
            cursor = page.next;
        }
        for (prefix, _) in recent {
            if let Some(heard) = self.heard(prefix) {
                self.handle_heard(prefix, heard, now, out);
            }
        }
    }

    fn announce_restored(&mut self, binding: &Binding, now: Instant, out: &mut Vec<Output>) {
        let mut changes = Vec::new();
        let revision = self.location.touch(binding.prefix, &mut changes);
        if revision.is_none() {
            return;
        }
        // Somebody may hold it whom we have not heard yet: the claim goes out with its generation.
        let attachment = self.anchor.attachment_of(binding.prefix);
        let held_elsewhere = !binding.is_at_home();
        let evidence = Evidence { held_elsewhere, confirmed: false, attachment };
        for change in &changes {
            let mut wishes = Vec::new();
            self.iec.handle_change(change, evidence, now, &mut wishes);
            self.carry_iec(wishes, now, out);
        }
    }

    /// A BGP session came up again: what we announced settled meets whatever was said on the other
    /// side meanwhile, so it goes out as a claim once more.
    pub fn handle_session_up(&mut self, returning: bool) {
        if returning && self.config.scope.is_some() {
            self.reasserting = Some(0);
        }
    }

    /// One step of the walk that [`Self::handle_session_up`] starts.
    pub(super) fn continue_reasserting(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(cursor) = self.reasserting else { return };
        let page = self.location.page(cursor, CHANGES_PER_TURN);
        let prefixes: Vec<Prefix> = page.bindings.iter().map(|b| b.prefix).collect();
        self.reasserting = page.next;
        for prefix in prefixes {
            if self.iec.is_announced(prefix) {
                let mut wishes = Vec::new();
                self.iec.reassert(prefix, now, &mut wishes);
                self.carry_iec(wishes, now, out);
            }
        }
    }

    // ---- sessions -------------------------------------------------------------------------

    /// Configures a neighbour, and starts its session.
    pub fn add_neighbor(
        &mut self,
        config: NeighborConfig,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<PeerId, NeighborError> {
        self.with_speaker(now, out, |speaker, said| speaker.add_neighbor(config, now, said))
            .unwrap_or(Err(NeighborError::Unknown))
    }

    /// Octets of a connection.
    pub fn handle_bgp_octets(
        &mut self,
        conn: ConnId,
        octets: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.with_speaker(now, out, |speaker, said| speaker.handle_bytes(conn, octets, now, said));
    }

    /// A connection that the node asked for is there.
    pub fn handle_bgp_connected(
        &mut self,
        conn: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.with_speaker(now, out, |speaker, said| {
            speaker.handle_connected(conn, local, remote, now, said);
        });
    }

    /// Somebody connected to us; `None`: nobody we know.
    pub fn handle_bgp_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<(ConnId, Transport)> {
        self.with_speaker(now, out, |speaker, said| {
            speaker.handle_accepted(local, remote, now, said)
        })?
    }

    /// A connection could not be made, or has ended.
    pub fn handle_bgp_closed(&mut self, conn: ConnId, now: Instant, out: &mut Vec<Output>) {
        self.with_speaker(now, out, |speaker, said| speaker.handle_closed(conn, now, said));
    }

    pub fn handle_bgp_congested(&mut self, conn: ConnId, congested: bool, now: Instant) {
        if let Some(speaker) = &mut self.speaker {
            speaker.handle_congested(conn, congested, now);
        }
    }

    /// The path to a neighbour has failed, or is there.
    pub(super) fn handle_bgp_path(
        &mut self,
        neighbor: IpAddr,
        up: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.with_speaker(now, out, |speaker, said| {
            if let Some(peer) = speaker.find_neighbor(neighbor) {
                speaker.handle_path(peer, up, now, said);
            }
        });
    }

    pub(super) fn handle_bgp_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.with_speaker(now, out, |speaker, said| speaker.handle_timeout(now, said));
    }

    /// Hands out what neighbours are to be told, at the end of a turn. True when there is more.
    pub fn flush_bgp(&mut self, out: &mut Vec<speaker::Output>) -> bool {
        let Some(speaker) = &mut self.speaker else { return false };
        if !speaker.has_pending() {
            return false;
        }
        speaker.flush(out);
        speaker.has_pending()
    }

    fn with_speaker<R>(
        &mut self,
        now: Instant,
        out: &mut Vec<Output>,
        call: impl FnOnce(&mut Speaker, &mut Vec<speaker::Output>) -> R,
    ) -> Option<R> {
        let speaker = self.speaker.as_mut()?;
        let mut said = Vec::new();
        let result = call(speaker, &mut said);
        for output in said {
            if let speaker::Output::SessionUp { peer } = output {
                let returning = !self.sessions_seen.insert(peer);
                self.handle_session_up(returning);
            }
            out.push(Output::Bgp(output));
        }
        // Before the next flush: what the store had is judged while nobody has been told anything.
        if self.recovering.is_some() && !self.speaker.as_ref().is_some_and(Speaker::is_deferring) {
            self.end_recovery(now, out);
        }
        Some(result)
    }
}
