//! The handover machine of every prefix, and its timers.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::entries::{Entries, Entry, Place};
use crate::types::seam::{Attachment, BindingChange, PolicyChange, Preference};
use crate::types::{AnchorId, Binding, Family, Instant, Prefix, Revision};

/// Whose bindings are announced, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// An anchor that speaks iBGP announces its own nodes while they are away from home.
    Distributed { own: AnchorId },
    /// An anchor without BGP reports all of its own nodes to its controllers (R_XC).
    Client { own: AnchorId },
    /// A controller announces for all anchors, with third-party next hops.
    Controller,
}

#[derive(Clone, Copy, Debug)]
pub struct IecConfig {
    pub scope: Scope,
    /// From "the old anchor let go" to the settled route: longer than the routers need to process
    /// the withdrawal.
    pub settle_delay: Duration,
    /// The same when nobody confirmed that the old anchor let go: longer than its BGP session or
    /// a graceful restart can outlive it.
    pub settle_unconfirmed: Duration,
    /// How long FE_E may take before the announcement goes out without its word.
    pub prepare_max: Duration,
}

/// What is known about older claims when a binding changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Somebody else held the prefix, or may have.
    pub held_elsewhere: bool,
    /// Whoever held it is known to have let go.
    pub confirmed: bool,
    /// Where the node is attached, when this node delivers to it.
    pub attachment: Option<Attachment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Policy(PolicyChange),
    /// The claim is out: the old anchor may be told to let go.
    Announced {
        prefix: Prefix,
        revision: Revision,
    },
    /// FE_E did not confirm within `prepare_max`; the claim goes out all the same.
    Unconfirmed {
        prefix: Prefix,
        revision: Revision,
    },
    /// The older claims are gone.
    Settled {
        prefix: Prefix,
        home: bool,
    },
}

/// Where the handover of a prefix stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// FE_E has been asked; what was announced before still is.
    Preparing { deadline: Instant },
    /// Announced with a preference that grows with the generation.
    Claimed { settle_at: Instant },
    /// Announced with the attributes that all nodes of the anchor share.
    Settled,
    /// Not announced: the home aggregate leads here.
    Home,
}

/// [`Stage`] as a word, for people and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageView {
    Preparing,
    Claimed,
    Settled,
    Home,
}

/// The deadlines of the entries in `Preparing` and in `Claimed`, once each: an entry that leaves
/// its stage takes its deadline along, so neither can outgrow the location database.
#[derive(Debug, Default)]
struct Deadlines {
    preparing: BTreeSet<(Instant, Place)>,
    settling: BTreeSet<(Instant, Place)>,
}

impl Deadlines {
    fn note(&mut self, place: Place, stage: Stage) {
        match stage {
            Stage::Preparing { deadline } => self.preparing.insert((deadline, place)),
            Stage::Claimed { settle_at } => self.settling.insert((settle_at, place)),
            Stage::Settled | Stage::Home => false,
        };
    }

    fn forget(&mut self, place: Place, stage: Stage) {
        match stage {
            Stage::Preparing { deadline } => self.preparing.remove(&(deadline, place)),
            Stage::Claimed { settle_at } => self.settling.remove(&(settle_at, place)),
            Stage::Settled | Stage::Home => false,
        };
    }
}

#[derive(Debug)]
pub struct Iec {
    config: IecConfig,
    entries: Entries,
    deadlines: Deadlines,
    /// By family, as [`Family::ALL`].
    announced: [usize; 2],
}

impl Iec {
    pub fn new(config: IecConfig, seed: u64) -> Self {
        Self {
            config,
            entries: Entries::new(seed),
            deadlines: Deadlines::default(),
            announced: [0; 2],
        }
    }

    pub fn set_config(&mut self, config: IecConfig) {
        self.config = config;
    }

    pub fn stage(&self, prefix: Prefix) -> Option<StageView> {
        Some(match self.entries.find(prefix)?.stage {
            Stage::Preparing { .. } => StageView::Preparing,
            Stage::Claimed { .. } => StageView::Claimed,
            Stage::Settled => StageView::Settled,
            Stage::Home => StageView::Home,
        })
    }

    /// How many prefixes of a family are announced.
    pub fn announced(&self, family: Family) -> usize {
        self.announced[family as usize]
    }

    /// Whether something of ours is announced for the prefix.
    pub fn is_announced(&self, prefix: Prefix) -> bool {
        self.entries.find(prefix).is_some_and(|e| e.announced)
    }

    /// The location of a prefix changed.
    pub fn handle_change(
        &mut self,
        change: &BindingChange,
        evidence: Evidence,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match &change.new {
            Some(binding) if self.is_mine(binding) => {
                self.handle_binding(binding, change.revision, evidence, now, out);
            }
            // Held by an anchor for which this node does not announce.
            Some(_) | None => self.handle_gone(change.prefix, change.revision, out),
        }
    }

    fn is_mine(&self, binding: &Binding) -> bool {
        match self.config.scope {
            Scope::Distributed { own } | Scope::Client { own } => binding.anchor == own,
            Scope::Controller => true,
        }
    }

    fn handle_binding(
        &mut self,
        binding: &Binding,
        revision: Revision,
        evidence: Evidence,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let prefix = binding.prefix;
        let deadline = now + self.config.prepare_max;
        let before = self.entries.find(prefix);
        let announced = before.is_some_and(|e| e.announced);
        let mut entry = Entry {
            anchor: binding.anchor,
            fe_e: binding.fe_e,
            at_home: binding.is_at_home(),
            generation: binding.generation,
            revision,
            stage: Stage::Preparing { deadline },
            announced,
            delivered: evidence.attachment.is_some() || before.is_some_and(|e| e.delivered),
            held_elsewhere: evidence.held_elsewhere || announced,
            confirmed: evidence.confirmed,
        };
        match evidence.attachment {
            Some(attachment) => {
                out.push(Output::Policy(PolicyChange::Deliver { prefix, attachment, revision }));
            }
            // FE_E is elsewhere and was ready before it told us.
            None => self.switch_entry(prefix, &mut entry, now, out),
        }
        self.put(prefix, &entry);
    }

    /// The entry as it is now, with its deadline in the place of the one before.
    fn put(&mut self, prefix: Prefix, entry: &Entry) {
        let (place, before) = self.entries.put(prefix, entry);
        if let Some(stage) = before {
            self.deadlines.forget(place, stage);
        }
        self.deadlines.note(place, entry.stage);
    }

    fn handle_gone(&mut self, prefix: Prefix, revision: Revision, out: &mut Vec<Output>) {
        let Some((place, entry)) = self.entries.remove(prefix) else { return };
        self.deadlines.forget(place, entry.stage);
        if entry.announced {
            self.announced[prefix.family() as usize] -= 1;
            out.push(Output::Policy(PolicyChange::Withdraw { prefix }));
        }
        if entry.delivered {
            out.push(Output::Policy(PolicyChange::Release { prefix, revision }));
        }
    }

    /// FE_E delivers (or says why it cannot; the traffic is still better here than where the node
    /// is not, so that does not stop the handover).
    pub fn handle_applied(
        &mut self,
        prefix: Prefix,
        revision: Revision,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match self.entries.find(prefix) {
            Some(Entry { stage: Stage::Preparing { .. }, revision: r, .. }) if r == revision => {
                self.switch(prefix, now, out);
            }
            // About an older revision, or the deadline was first.
            Some(_) | None => {}
        }
    }

    /// FE_E is ready: FE_I everywhere may switch.
    fn switch(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(mut entry) = self.entries.find(prefix) else { return };
        self.switch_entry(prefix, &mut entry, now, out);
        self.put(prefix, &entry);
    }

    /// The stage that follows; the caller puts the entry back.
    fn switch_entry(
        &mut self,
        prefix: Prefix,
        entry: &mut Entry,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let revision = entry.revision;
        // Without BGP there is nothing to outbid, and home is for the controllers to judge.
        let is_client = matches!(self.config.scope, Scope::Client { .. });
        if entry.at_home && !entry.held_elsewhere && !is_client {
            entry.stage = Stage::Home;
            out.push(Output::Announced { prefix, revision });
            return;
        }
        let preference =
            if is_client { Preference::Settled } else { Preference::Claim(entry.generation) };
        self.announced[prefix.family() as usize] += usize::from(!entry.announced);
        entry.announced = true;
        let delay = if entry.held_elsewhere && !entry.confirmed {
            self.config.settle_unconfirmed
        } else {
            self.config.settle_delay
        };
        entry.stage =
            if is_client { Stage::Settled } else { Stage::Claimed { settle_at: now + delay } };
        out.push(Output::Policy(PolicyChange::Announce {
            prefix,
            anchor: entry.anchor,
            fe_e: entry.fe_e,
            preference,
        }));
        out.push(Output::Announced { prefix, revision });
    }

    /// The previous anchor said that it let go. The claim of an entry that has been confirmed
    /// before keeps its deadline if that is sooner.
    pub fn handle_confirmed(&mut self, prefix: Prefix, now: Instant) {
        let soon = now + self.config.settle_delay;
        let Some(mut entry) = self.entries.find(prefix) else { return };
        match entry.stage {
            Stage::Claimed { settle_at } if settle_at > soon => {
                entry.stage = Stage::Claimed { settle_at: soon };
                self.put(prefix, &entry);
            }
            Stage::Preparing { .. } | Stage::Claimed { .. } | Stage::Settled | Stage::Home => {}
        }
    }

    /// An older claim is around (heard from BGP), or may have survived where a session was lost:
    /// what is announced goes back to a preference that beats it.
    pub fn reassert(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(mut entry) = self.entries.find(prefix) else { return };
        entry.held_elsewhere = true;
        match entry.stage {
            Stage::Settled | Stage::Home if !matches!(self.config.scope, Scope::Client { .. }) => {
                self.switch_entry(prefix, &mut entry, now, out);
            }
            // On its way: to be claimed, then, also at home.
            Stage::Preparing { .. } => {}
            Stage::Claimed { .. } | Stage::Settled | Stage::Home => return,
        }
        self.put(prefix, &entry);
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = |set: &BTreeSet<(Instant, Place)>| set.first().map(|&(at, _)| at);
        first(&self.deadlines.preparing).into_iter().chain(first(&self.deadlines.settling)).min()
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(at, place)) = self.deadlines.preparing.first() {
            if at > now {
                break;
            }
            self.deadlines.preparing.pop_first();
            let Some(prefix) = self.entries.prefix_at(place) else { continue };
            if let Some(entry) = self.entries.find(prefix) {
                out.push(Output::Unconfirmed { prefix, revision: entry.revision });
            }
            self.switch(prefix, now, out);
        }
        // Bounded per call, so that a million settling routes do not stall the sessions.
        for _ in 0..SETTLE_PER_CALL {
            match self.deadlines.settling.first() {
                Some(&(at, place)) if at <= now => {
                    self.deadlines.settling.pop_first();
                    if let Some(prefix) = self.entries.prefix_at(place) {
                        self.settle(prefix, out);
                    }
                }
                Some(_) | None => break,
            }
        }
    }

    fn settle(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        let Some(mut entry) = self.entries.find(prefix) else { return };
        entry.held_elsewhere = false;
        let home = entry.at_home;
        if home {
            entry.stage = Stage::Home;
            entry.announced = false;
            self.announced[prefix.family() as usize] -= 1;
            out.push(Output::Policy(PolicyChange::Withdraw { prefix }));
        } else {
            entry.stage = Stage::Settled;
            out.push(Output::Policy(PolicyChange::Announce {
                prefix,
                anchor: entry.anchor,
                fe_e: entry.fe_e,
                preference: Preference::Settled,
            }));
        }
        self.put(prefix, &entry);
        out.push(Output::Settled { prefix, home });
    }
}

/// Settled routes per call of `handle_timeout`; the rest is due at once in the next.
const SETTLE_PER_CALL: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::seam::IfIndex;
    use crate::types::{Generation, Lifetime, Locator, MacAddr, MnId};

    const A: AnchorId = AnchorId(1);
    const B: AnchorId = AnchorId(2);
    const HERE: Attachment = Attachment { link: IfIndex(7), mac: MacAddr([2, 0, 0, 0, 0, 1]) };

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    fn prefix() -> Prefix {
        "10.1.1.7/32".parse().unwrap()
    }

    fn change(anchor: AnchorId, generation: u32, revision: u64) -> BindingChange {
        let new = Binding {
            prefix: prefix(),
            mn: MnId::new("mn1").unwrap(),
            anchor,
            fe_e: Locator { ipv4: Some([192, 0, 2, 1].into()), ipv6: None },
            home: Some(A),
            generation: Generation(generation),
            lifetime: Lifetime::WhileAttached,
        };
        BindingChange { prefix: prefix(), old: None, new: Some(new), revision: Revision(revision) }
    }

    fn iec(scope: Scope) -> Iec {
        let config = IecConfig {
            scope,
            settle_delay: Duration::from_secs(5),
            settle_unconfirmed: Duration::from_secs(180),
            prepare_max: Duration::from_millis(50),
        };
        Iec::new(config, 1)
    }

    /// One letter per output, so that an order is read at a glance.
    fn words(out: &mut Vec<Output>) -> Vec<String> {
        out.drain(..)
            .map(|o| match o {
                Output::Policy(PolicyChange::Announce { preference, .. }) => {
                    format!("announce {}", preference.local_pref())
                }
                Output::Policy(PolicyChange::Withdraw { .. }) => "withdraw".into(),
                Output::Policy(PolicyChange::Deliver { .. }) => "deliver".into(),
                Output::Policy(PolicyChange::Release { .. }) => "release".into(),
                Output::Announced { .. } => "announced".into(),
                Output::Unconfirmed { .. } => "unconfirmed".into(),
                Output::Settled { home, .. } => format!("settled home={home}"),
            })
            .collect()
    }

    const AWAY: Evidence =
        Evidence { held_elsewhere: true, confirmed: false, attachment: Some(HERE) };

    #[test]
    fn fe_e_first_then_the_claim_then_the_shared_route() {
        let mut iec = iec(Scope::Distributed { own: B });
        let mut out = Vec::new();
        iec.handle_change(&change(B, 2, 1), AWAY, at(0), &mut out);
        assert_eq!(words(&mut out), ["deliver"]);
        iec.handle_applied(prefix(), Revision(99), at(1), &mut out);
        assert!(out.is_empty(), "another revision proves nothing");
        iec.handle_applied(prefix(), Revision(1), at(1), &mut out);
        assert_eq!(words(&mut out), ["announce 1000002", "announced"]);
        iec.handle_timeout(at(6_000), &mut out);
        assert!(out.is_empty(), "nobody said yet that the old anchor let go");
        iec.handle_confirmed(prefix(), at(6_000));
        assert_eq!(iec.poll_timeout(), Some(at(11_000)));
        iec.handle_timeout(at(10_999), &mut out);
        assert!(out.is_empty());
        iec.handle_timeout(at(11_000), &mut out);
        assert_eq!(words(&mut out), ["announce 200", "settled home=false"]);
        iec.handle_timeout(at(181_001), &mut out);
        assert!(out.is_empty(), "once");
        assert_eq!(iec.poll_timeout(), None);
    }

    #[test]
    fn an_fe_e_that_says_nothing_does_not_stop_the_move() {
        let mut iec = iec(Scope::Distributed { own: B });
        let mut out = Vec::new();
        iec.handle_change(&change(B, 2, 1), AWAY, at(0), &mut out);
        words(&mut out);
        iec.handle_timeout(at(50), &mut out);
        assert_eq!(words(&mut out), ["unconfirmed", "announce 1000002", "announced"]);
        iec.handle_applied(prefix(), Revision(1), at(60), &mut out);
        assert!(out.is_empty(), "late confirmation changes nothing");
    }

    #[test]
    fn at_home_there_is_no_mobility_state() {
        let mut iec = iec(Scope::Distributed { own: A });
        let mut out = Vec::new();
        let first = Evidence { held_elsewhere: false, confirmed: false, attachment: Some(HERE) };
        iec.handle_change(&change(A, 1, 1), first, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        assert_eq!(words(&mut out), ["deliver", "announced"]);
        assert!(!iec.is_announced(prefix()));
    }

    #[test]
    fn a_return_home_claims_first_and_withdraws_later() {
        let mut iec = iec(Scope::Distributed { own: A });
        let mut out = Vec::new();
        iec.handle_change(&change(A, 3, 1), AWAY, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        assert_eq!(words(&mut out), ["deliver", "announce 1000003", "announced"]);
        iec.handle_confirmed(prefix(), at(1));
        iec.handle_timeout(at(5_001), &mut out);
        assert_eq!(words(&mut out), ["withdraw", "settled home=true"]);
    }

    #[test]
    fn without_a_confirmation_it_settles_after_the_long_delay() {
        let mut iec = iec(Scope::Distributed { own: B });
        let mut out = Vec::new();
        iec.handle_change(&change(B, 2, 1), AWAY, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        words(&mut out);
        iec.handle_timeout(at(179_999), &mut out);
        assert!(out.is_empty());
        iec.handle_timeout(at(180_000), &mut out);
        assert_eq!(words(&mut out), ["announce 200", "settled home=false"]);
    }

    #[test]
    fn an_older_claim_that_shows_up_is_outbid_again() {
        let mut iec = iec(Scope::Distributed { own: B });
        let mut out = Vec::new();
        iec.handle_change(&change(B, 7, 1), AWAY, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        iec.handle_confirmed(prefix(), at(0));
        iec.handle_timeout(at(5_000), &mut out);
        words(&mut out);
        iec.reassert(prefix(), at(9_000), &mut out);
        assert_eq!(words(&mut out), ["announce 1000007", "announced"]);
        iec.reassert(prefix(), at(9_001), &mut out);
        assert!(out.is_empty(), "once");
    }

    #[test]
    fn leaving_withdraws_and_releases() {
        let mut iec = iec(Scope::Distributed { own: B });
        let mut out = Vec::new();
        iec.handle_change(&change(B, 2, 1), AWAY, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        words(&mut out);
        let gone = BindingChange { new: None, ..change(B, 2, 2) };
        iec.handle_change(
            &gone,
            Evidence { held_elsewhere: true, confirmed: false, attachment: None },
            at(1),
            &mut out,
        );
        assert_eq!(words(&mut out), ["withdraw", "release"]);
        iec.handle_timeout(at(400_000), &mut out);
        assert!(out.is_empty());
        assert_eq!(iec.poll_timeout(), None);
    }

    #[test]
    fn a_controller_announces_for_others_at_once_and_replaces_in_place() {
        let mut iec = iec(Scope::Controller);
        let mut out = Vec::new();
        let remote = Evidence { held_elsewhere: false, confirmed: false, attachment: None };
        iec.handle_change(&change(B, 2, 1), remote, at(0), &mut out);
        assert_eq!(words(&mut out), ["announce 1000002", "announced"]);
        iec.handle_change(&change(AnchorId(3), 3, 2), remote, at(1), &mut out);
        assert_eq!(words(&mut out), ["announce 1000003", "announced"]);
        iec.handle_change(&change(A, 4, 3), remote, at(2), &mut out);
        assert_eq!(
            words(&mut out),
            ["announce 1000004", "announced"],
            "home, but announced before"
        );
    }

    #[test]
    fn a_client_reports_nodes_at_home_too_and_has_nothing_to_settle() {
        let mut iec = iec(Scope::Client { own: A });
        let mut out = Vec::new();
        let first = Evidence { held_elsewhere: false, confirmed: false, attachment: Some(HERE) };
        iec.handle_change(&change(A, 1, 1), first, at(0), &mut out);
        iec.handle_applied(prefix(), Revision(1), at(0), &mut out);
        assert_eq!(words(&mut out), ["deliver", "announce 200", "announced"]);
        iec.handle_timeout(at(400_000), &mut out);
        assert!(out.is_empty());
    }
}
