//! The table of attached nodes and what changes it. Sans-IO.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::Config;
use crate::types::seam::{Attachment, IfIndex, LeaveReason, MobilityEvent, Sighted, Sighting};
use crate::types::{Instant, MacAddr, MnId, Prefix, limits};

/// Addresses whose attachment was refused a moment ago. When full, a further one is not held
/// down, and its next sighting is a new question: slower, not wrong.
const REFUSED_MAX: usize = 4_096;

/// Addresses of a node that are asked at once when its presence is in doubt.
const PROBED_MAX: usize = 4;

/// Links remembered as down.
const LINKS_DOWN_MAX: usize = 4_096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Event(MobilityEvent),
    /// Ask the node whether it is there; its answer is a sighting.
    Probe {
        link: IfIndex,
        mac: MacAddr,
        ip: IpAddr,
    },
    /// A host without a mobile address (yet) has spoken, by a router solicitation from its
    /// link-local address for example. If it is bound at another anchor, it has just moved here.
    Noticed {
        mn: MnId,
        attachment: Attachment,
        by: Sighting,
    },
    /// The addresses attached to the link are others now: the sensor's filter follows. Several of
    /// these may be answered by one new filter, made when all that was heard is worked off.
    HostsChanged(IfIndex),
}

/// Why an attachment by the API or by a context is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the prefix is outside the mobile pools")]
    OutsidePools,
    #[error("the prefix is attached here by another node")]
    Taken,
    #[error("the node has too many prefixes")]
    PrefixLimit,
    #[error("the anchor has too many nodes")]
    NodeLimit,
    #[error("the node is not attached here")]
    NotHere,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub attached: u64,
    /// Moves between links of this anchor.
    pub moved: u64,
    pub left: u64,
    /// Sightings of addresses that no pool has.
    pub outside_pools: u64,
    /// Sightings of an address that another node has on a live link.
    pub spoofed: u64,
    /// Sightings ignored because the attachment was refused shortly before.
    pub held_down: u64,
    /// Sightings ignored because a table was full.
    pub full: u64,
}

/// FE_MA_C. `handle_…` never waits; [`Anchor::poll_timeout`] says when it wants to be called.
pub struct Anchor {
    pub(super) config: Config,
    pub(super) nodes: BTreeMap<MnId, Node>,
    pub(super) owners: BTreeMap<Prefix, MnId>,
    pub(super) by_link: BTreeSet<(IfIndex, MnId)>,
    timers: BTreeSet<(Instant, MnId)>,
    refused: BTreeMap<Prefix, Instant>,
    down: BTreeSet<IfIndex>,
    counters: Counters,
}

pub(super) struct Node {
    pub attachment: Option<Attachment>,
    pub prefixes: BTreeSet<Prefix>,
    /// An address that was seen in use: what probes ask for when the prefix is no host prefix.
    pub probe_ip: Option<IpAddr>,
    pub phase: Phase,
    pub since: Instant,
    pub seen: Instant,
    pub by: Sighting,
    pub lease_until: Option<Instant>,
    timer: Option<Instant>,
}

pub(super) enum Phase {
    Present,
    /// The link is down; whoever does not come back until then has left.
    LinkDown {
        leave_at: Instant,
    },
    /// In doubt. After the last probe without an answer, it has left.
    Probing {
        next_at: Instant,
        tries_left: u32,
    },
}

impl Node {
    fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Present => None,
            Phase::LinkDown { leave_at } => Some(leave_at),
            Phase::Probing { next_at, .. } => Some(next_at),
        };
        [phase, self.lease_until].into_iter().flatten().min()
    }
}

impl Anchor {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            nodes: BTreeMap::new(),
            owners: BTreeMap::new(),
            by_link: BTreeSet::new(),
            timers: BTreeSet::new(),
            refused: BTreeMap::new(),
            down: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// New pools, names or times. Nodes that are attached stay so: taking a pool away from under
    /// them is done by detaching them.
    pub fn handle_config(&mut self, config: Config) {
        self.config = config;
    }

    /// A node was seen on an access link. Only what is new becomes an event.
    pub fn handle_sighting(
        &mut self,
        Sighted { link, mac, ip, by }: Sighted,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mn = self.config.node_of(mac);
        let attachment = Attachment { link, mac };
        let Some(prefix) = self.config.prefix_of(ip) else {
            return self.handle_foreign_address(mn, attachment, by, now, out);
        };
        if let Some(owner) = self.find_owner(ip).filter(|owner| **owner != mn).cloned() {
            self.counters.spoofed += 1;
            return self.doubt(&owner, now, out);
        }
        if self.refused.get(&prefix).is_some_and(|&until| now < until) {
            self.counters.held_down += 1;
            return;
        }
        if !self.has_room_for(&mn, &[prefix]) {
            self.counters.full += 1;
            return;
        }
        let node = self.enter(&mn, Some(attachment), by, now, out);
        node.probe_ip = Some(ip);
        self.add_prefix(&mn, prefix, by, out);
    }

    /// An address of no pool says that the node is there, but not that it is mobile.
    fn handle_foreign_address(
        &mut self,
        mn: MnId,
        attachment: Attachment,
        by: Sighting,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.counters.outside_pools += 1;
        match self.nodes.get(&mn).map(|node| node.attachment) {
            Some(known) if known == Some(attachment) => self.refresh(&mn, by, now),
            Some(_) | None => match by {
                // What a host says when its link has come up. Anything else is no arrival: a
                // packet from a stale address would move the node back and forth.
                Sighting::RouterSolicitation | Sighting::NeighborSolicitation => {
                    out.push(Output::Noticed { mn, attachment, by });
                }
                Sighting::Arp
                | Sighting::NeighborAdvertisement
                | Sighting::Packet
                | Sighting::Api
                | Sighting::Report
                | Sighting::MapRegister
                | Sighting::Restart => {}
            },
        }
    }

    /// Attach by the API: a node here (with its attachment), or at an external anchor (without).
    #[expect(clippy::too_many_arguments, reason = "one call carries the whole request")]
    pub fn handle_attach(
        &mut self,
        mn: &MnId,
        prefixes: &[Prefix],
        attachment: Option<Attachment>,
        lease_until: Option<Instant>,
        by: Sighting,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.check(mn, prefixes)?;
        for prefix in prefixes {
            self.refused.remove(prefix);
        }
        let node = self.enter(mn, attachment, by, now, out);
        node.lease_until = lease_until;
        self.rearm(mn);
        for &prefix in prefixes {
            self.add_prefix(mn, prefix, by, out);
        }
        Ok(())
    }

    /// A node from the store after a restart: taken as attached, so that nothing is withdrawn,
    /// and asked whether that is still true.
    pub fn handle_restore(
        &mut self,
        mn: &MnId,
        prefixes: &[Prefix],
        attachment: Option<Attachment>,
        lease_until: Option<Instant>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let by = Sighting::Restart;
        self.handle_attach(mn, prefixes, attachment, lease_until, by, now, out)?;
        self.doubt(mn, now, out);
        Ok(())
    }

    /// The context of a node that is attached here came, with prefixes that were not seen yet:
    /// they are reached over the same attachment.
    pub fn handle_import(
        &mut self,
        mn: &MnId,
        prefixes: &[Prefix],
        out: &mut Vec<Output>,
    ) -> Result<Option<Attachment>, Refusal> {
        let node = self.nodes.get(mn).ok_or(Refusal::NotHere)?;
        let attachment = node.attachment;
        self.check(mn, prefixes)?;
        for &prefix in prefixes {
            self.insert_prefix(mn, prefix, out);
        }
        Ok(attachment)
    }

    /// The attachment of a prefix was refused (no right to import it, for example). The prefix is
    /// forgotten and not asked for again for a while.
    pub fn handle_refused(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        self.refused.retain(|_, until| now < *until);
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert(prefix, now + self.config.refused_hold);
        }
        self.release(prefix, out);
    }

    /// The prefix is bound elsewhere from now on (or nowhere): its node keeps the others, and has
    /// left with the last one. Not an event: the hall knows, it is the one who says so.
    pub fn release(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        let Some(mn) = self.owners.remove(&prefix) else { return };
        let Some(node) = self.nodes.get_mut(&mn) else { return };
        node.prefixes.remove(&prefix);
        let link = node.attachment.map(|a| a.link);
        if node.prefixes.is_empty() {
            self.remove(&mn, out);
        } else {
            out.extend(link.map(Output::HostsChanged));
        }
    }

    /// Detach by the API, by a newer claim, or because the lease ended. False: it was not here.
    pub fn handle_detach(&mut self, mn: &MnId, reason: LeaveReason, out: &mut Vec<Output>) -> bool {
        let was_here = self.remove(mn, out);
        if was_here {
            self.counters.left += 1;
            out.push(Output::Event(MobilityEvent::Left { mn: mn.clone(), reason }));
        }
        was_here
    }

    /// The link went up or down (or is gone).
    pub fn handle_link(&mut self, link: IfIndex, up: bool, now: Instant, out: &mut Vec<Output>) {
        let changed = if up { self.down.remove(&link) } else { self.down.insert(link) };
        if !changed {
            return;
        }
        if self.down.len() > LINKS_DOWN_MAX {
            self.down.pop_first(); // indices grow: the oldest one, of an interface long gone
        }
        let first = MnId::new("!").expect("one printable character");
        let nodes: Vec<MnId> = self
            .by_link
            .range((link, first)..)
            .take_while(|(on, _)| *on == link)
            .map(|(_, mn)| mn.clone())
            .collect();
        for mn in nodes {
            if up {
                // Whoever is on the other end now: perhaps somebody else.
                self.doubt(&mn, now, out);
            } else if let Some(node) = self.nodes.get_mut(&mn) {
                node.phase = Phase::LinkDown { leave_at: now + self.config.detach_grace };
                self.rearm(&mn);
            }
        }
    }

    /// The kernel's neighbour discovery got no answer (NUD_FAILED).
    pub fn handle_neighbor_failed(
        &mut self,
        link: IfIndex,
        ip: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(mn) = self.find_owner(ip).cloned() else { return };
        let here = self.nodes.get(&mn).and_then(|node| node.attachment);
        if here.is_some_and(|attachment| attachment.link == link) {
            self.doubt(&mn, now, out);
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.timers.first().map_or(Instant::FAR_FUTURE, |(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((_, mn)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            let Some(node) = self.nodes.get_mut(&mn) else {
                self.timers.pop_first(); // cannot be, but must not spin
                continue;
            };
            if node.lease_until.is_some_and(|at| at <= now) {
                self.handle_detach(&mn, LeaveReason::LeaseEnd, out);
                continue;
            }
            match &mut node.phase {
                Phase::LinkDown { leave_at } if *leave_at <= now => {
                    self.handle_detach(&mn, LeaveReason::LinkDown, out);
                }
                Phase::Probing { tries_left: 0, next_at } if *next_at <= now => {
                    self.handle_detach(&mn, LeaveReason::NeighborFailed, out);
                }
                Phase::Probing { tries_left, next_at } if *next_at <= now => {
                    *tries_left -= 1;
                    *next_at = now + self.config.probe_interval.max(Duration::from_millis(1));
                    probe(node, out);
                    self.rearm(&mn);
                }
                Phase::Present | Phase::LinkDown { .. } | Phase::Probing { .. } => self.rearm(&mn),
            }
        }
    }

    /// The node of this name at this attachment: new, moved, or refreshed. A move within the
    /// anchor takes all its prefixes along.
    fn enter(
        &mut self,
        mn: &MnId,
        attachment: Option<Attachment>,
        by: Sighting,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> &mut Node {
        self.refresh(mn, by, now);
        let old = self.nodes.get(mn).map(|node| node.attachment);
        if let Some(old) = old.filter(|old| *old != attachment) {
            self.counters.moved += 1;
            self.leave_link(mn, old, out);
            let node = self.nodes.get_mut(mn).expect("it was found above");
            node.attachment = attachment;
            node.since = now;
            out.extend(node.prefixes.iter().map(|&prefix| {
                Output::Event(MobilityEvent::Attached { prefix, mn: mn.clone(), attachment, by })
            }));
        }
        if let Some(Attachment { link, .. }) = attachment
            && self.by_link.insert((link, mn.clone()))
            && old.is_some()
        {
            out.push(Output::HostsChanged(link));
        }
        self.nodes.entry(mn.clone()).or_insert_with(|| Node {
            attachment,
            prefixes: BTreeSet::new(),
            probe_ip: None,
            phase: Phase::Present,
            since: now,
            seen: now,
            by,
            lease_until: None,
            timer: None,
        })
    }

    /// The node is there: no doubt any more.
    fn refresh(&mut self, mn: &MnId, by: Sighting, now: Instant) {
        let Some(node) = self.nodes.get_mut(mn) else { return };
        node.seen = now;
        node.by = by;
        node.phase = Phase::Present;
        self.rearm(mn);
    }

    /// Makes a node that is believed to be present prove it.
    fn doubt(&mut self, mn: &MnId, now: Instant, out: &mut Vec<Output>) {
        let Some(node) = self.nodes.get_mut(mn) else { return };
        // An external anchor watches over its nodes itself. Over a dead link nobody can answer.
        let Some(Attachment { link, .. }) = node.attachment else { return };
        if matches!(node.phase, Phase::Probing { .. }) || self.down.contains(&link) {
            return;
        }
        let next_at = now + self.config.probe_interval.max(Duration::from_millis(1));
        node.phase =
            Phase::Probing { next_at, tries_left: self.config.probe_tries.saturating_sub(1) };
        probe(node, out);
        self.rearm(mn);
    }

    fn add_prefix(&mut self, mn: &MnId, prefix: Prefix, by: Sighting, out: &mut Vec<Output>) {
        if self.insert_prefix(mn, prefix, out) {
            self.counters.attached += 1;
            let attachment = self.nodes.get(mn).and_then(|node| node.attachment);
            out.push(Output::Event(MobilityEvent::Attached {
                prefix,
                mn: mn.clone(),
                attachment,
                by,
            }));
        }
    }

    /// True when the prefix is new.
    fn insert_prefix(&mut self, mn: &MnId, prefix: Prefix, out: &mut Vec<Output>) -> bool {
        let Some(node) = self.nodes.get_mut(mn) else { return false };
        if !node.prefixes.insert(prefix) {
            return false;
        }
        if node.probe_ip.is_none() && prefix.is_host() {
            node.probe_ip = Some(prefix.addr());
        }
        out.extend(node.attachment.map(|a| Output::HostsChanged(a.link)));
        self.owners.insert(prefix, mn.clone());
        true
    }

    fn check(&self, mn: &MnId, prefixes: &[Prefix]) -> Result<(), Refusal> {
        for &prefix in prefixes {
            if !self.config.is_mobile(prefix) {
                return Err(Refusal::OutsidePools);
            }
            if self.owners.get(&prefix).is_some_and(|owner| owner != mn) {
                return Err(Refusal::Taken);
            }
        }
        if self.has_room_for(mn, prefixes) {
            Ok(())
        } else if self.nodes.contains_key(mn) {
            Err(Refusal::PrefixLimit)
        } else {
            Err(Refusal::NodeLimit)
        }
    }

    fn has_room_for(&self, mn: &MnId, prefixes: &[Prefix]) -> bool {
        match self.nodes.get(mn) {
            Some(node) => {
                let new = prefixes.iter().filter(|p| !node.prefixes.contains(p)).count();
                node.prefixes.len() + new <= limits::PREFIXES_PER_NODE_MAX
            }
            None => {
                self.nodes.len() < self.config.nodes_max
                    && prefixes.len() <= limits::PREFIXES_PER_NODE_MAX
            }
        }
    }

    fn leave_link(&mut self, mn: &MnId, from: Option<Attachment>, out: &mut Vec<Output>) {
        if let Some(Attachment { link, .. }) = from {
            self.by_link.remove(&(link, mn.clone()));
            out.push(Output::HostsChanged(link));
        }
    }

    fn remove(&mut self, mn: &MnId, out: &mut Vec<Output>) -> bool {
        let Some(node) = self.nodes.remove(mn) else { return false };
        if let Some(at) = node.timer {
            self.timers.remove(&(at, mn.clone()));
        }
        for prefix in &node.prefixes {
            self.owners.remove(prefix);
        }
        self.leave_link(mn, node.attachment, out);
        true
    }

    fn rearm(&mut self, mn: &MnId) {
        let Some(node) = self.nodes.get_mut(mn) else { return };
        let deadline = node.deadline();
        if node.timer == deadline {
            return;
        }
        if let Some(old) = node.timer.take() {
            self.timers.remove(&(old, mn.clone()));
        }
        if let Some(at) = deadline {
            self.timers.insert((at, mn.clone()));
        }
        node.timer = deadline;
    }
}

/// A node that has dropped one of its addresses is still there: it is asked by several, and any
/// answer counts.
fn probe(node: &Node, out: &mut Vec<Output>) {
    let Some(Attachment { link, mac }) = node.attachment else { return };
    let others = node.prefixes.iter().filter(|prefix| prefix.is_host()).map(|p| p.addr());
    let others = others.filter(|ip| Some(*ip) != node.probe_ip);
    for ip in node.probe_ip.into_iter().chain(others).take(PROBED_MAX) {
        out.push(Output::Probe { link, mac, ip });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::Pool;
    use crate::types::seam::Holder;

    const A: IfIndex = IfIndex(1);
    const B: IfIndex = IfIndex(2);
    const M7: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
    const M8: MacAddr = MacAddr([2, 0, 0, 0, 0, 8]);

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mn(mac: MacAddr) -> MnId {
        MnId::from_mac(mac)
    }

    /// An anchor, its clock, and what it said.
    struct Desk {
        anchor: Anchor,
        now: Instant,
        out: Vec<Output>,
    }

    impl Desk {
        fn new() -> Self {
            Self::with(Config {
                pools: vec![
                    Pool::of_hosts(prefix("10.1.0.0/24")),
                    Pool::of_hosts(prefix("2001:db8:1::/64")),
                    Pool { prefix: prefix("2001:db8:2::/48"), node_len: 64 },
                ],
                ..Config::default()
            })
        }

        fn with(config: Config) -> Self {
            Self { anchor: Anchor::new(config), now: Instant::ZERO, out: Vec::new() }
        }

        fn see(&mut self, link: IfIndex, mac: MacAddr, address: &str) {
            self.see_by(link, mac, address, Sighting::Arp);
        }

        fn see_by(&mut self, link: IfIndex, mac: MacAddr, address: &str, by: Sighting) {
            let sighted = Sighted { link, mac, ip: ip(address), by };
            self.anchor.handle_sighting(sighted, self.now, &mut self.out);
        }

        fn link(&mut self, link: IfIndex, up: bool) {
            self.anchor.handle_link(link, up, self.now, &mut self.out);
        }

        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.anchor.poll_timeout() <= end {
                self.now = self.now.max(self.anchor.poll_timeout());
                self.anchor.handle_timeout(self.now, &mut self.out);
            }
            self.now = end;
            self.anchor.handle_timeout(end, &mut self.out);
        }

        /// What was said since the last call, without the filter's news: one word per output.
        fn said(&mut self) -> Vec<String> {
            let word = |output| match output {
                Output::Event(MobilityEvent::Attached { prefix, attachment, .. }) => {
                    let link = attachment.map_or(0, |a| a.link.0);
                    Some(format!("attached {prefix} on {link}"))
                }
                Output::Event(MobilityEvent::Left { mn, reason }) => {
                    Some(format!("left {mn} {reason:?}"))
                }
                Output::Event(event) => Some(format!("{event:?}")),
                Output::Probe { ip, .. } => Some(format!("probe {ip}")),
                Output::Noticed { mn, .. } => Some(format!("noticed {mn}")),
                Output::HostsChanged(_) => None,
            };
            std::mem::take(&mut self.out).into_iter().filter_map(word).collect()
        }
    }

    #[test]
    fn only_what_is_new_is_an_event() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.see(A, M7, "10.1.0.7");
        desk.see(A, M7, "2001:db8:1::7");
        let expected = ["attached 10.1.0.7/32 on 1", "attached 2001:db8:1::7/128 on 1"];
        assert_eq!(desk.said(), expected);
        assert_eq!(desk.anchor.len(), 1);
    }

    #[test]
    fn a_home_network_prefix_is_attached_as_a_whole() {
        let mut desk = Desk::new();
        desk.see(A, M7, "2001:db8:2:5::1");
        desk.see(A, M7, "2001:db8:2:5::2");
        assert_eq!(desk.said(), ["attached 2001:db8:2:5::/64 on 1"]);
        desk.see(A, M8, "2001:db8:2:5::3");
        assert_eq!(desk.anchor.counters().spoofed, 1);
    }

    #[test]
    fn a_move_between_links_takes_all_prefixes_along() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.see(A, M7, "2001:db8:1::7");
        desk.said();
        desk.see(B, M7, "10.1.0.7");
        let expected = ["attached 10.1.0.7/32 on 2", "attached 2001:db8:1::7/128 on 2"];
        assert_eq!(desk.said(), expected);
        assert_eq!(desk.anchor.prefixes_on(A).count(), 0);
        assert_eq!(desk.anchor.hosts_on(B).count(), 2);
        // The link it came from goes down: that is not its link any more.
        desk.link(A, false);
        desk.pass(Duration::from_secs(10));
        assert_eq!(desk.said(), Vec::<String>::new());
    }

    #[test]
    fn addresses_outside_the_pools_are_ignored() {
        let mut desk = Desk::new();
        desk.see(A, M7, "192.0.2.1");
        assert_eq!(desk.said(), Vec::<String>::new());
        assert_eq!(desk.anchor.counters().outside_pools, 1);
    }

    /// First come, until it has left: another one that uses the address makes it prove itself.
    #[test]
    fn an_address_in_use_is_refused_and_its_owner_is_asked() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.said();
        desk.see(A, M8, "10.1.0.7");
        desk.see(A, M8, "10.1.0.7");
        assert_eq!(desk.said(), ["probe 10.1.0.7"]);
        desk.see(A, M7, "10.1.0.7"); // it answers
        desk.pass(Duration::from_secs(10));
        assert_eq!(desk.said(), Vec::<String>::new());
        assert_eq!(desk.anchor.counters().spoofed, 2);

        desk.see(A, M8, "10.1.0.7");
        desk.pass(Duration::from_secs(10)); // no answer this time
        let silent = ["probe 10.1.0.7", "probe 10.1.0.7", "probe 10.1.0.7"];
        let said = desk.said();
        assert_eq!(said[..3], silent);
        assert_eq!(said[3..], [format!("left {M7} NeighborFailed")]);
        desk.see(A, M8, "10.1.0.7");
        assert_eq!(desk.said(), ["attached 10.1.0.7/32 on 1"]);
    }

    #[test]
    fn a_link_down_ends_in_leaving_unless_the_node_is_seen() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.see(A, M8, "10.1.0.8");
        desk.said();
        desk.link(A, false);
        desk.link(A, false); // said twice
        desk.pass(Duration::from_millis(1900));
        desk.see(B, M8, "10.1.0.8");
        assert_eq!(desk.said(), ["attached 10.1.0.8/32 on 2"]);
        desk.pass(Duration::from_millis(200));
        assert_eq!(desk.said(), [format!("left {M7} LinkDown")]);
    }

    #[test]
    fn a_link_that_comes_back_is_looked_at() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.said();
        desk.link(A, false);
        desk.link(A, true);
        assert_eq!(desk.said(), ["probe 10.1.0.7"]);
        desk.see(A, M7, "10.1.0.7");
        desk.pass(Duration::from_secs(10));
        assert_eq!(desk.said(), Vec::<String>::new());
    }

    #[test]
    fn the_kernels_word_is_checked() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.said();
        desk.anchor.handle_neighbor_failed(B, ip("10.1.0.7"), desk.now, &mut desk.out);
        assert_eq!(desk.said(), Vec::<String>::new(), "not on that link");
        desk.anchor.handle_neighbor_failed(A, ip("10.1.0.7"), desk.now, &mut desk.out);
        desk.pass(Duration::from_secs(10));
        assert_eq!(desk.said().last(), Some(&format!("left {M7} NeighborFailed")));
    }

    #[test]
    fn a_node_that_answers_by_another_address_is_there() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.see(A, M7, "2001:db8:1::7");
        desk.said();
        desk.anchor.handle_neighbor_failed(A, ip("10.1.0.7"), desk.now, &mut desk.out);
        assert_eq!(desk.said(), ["probe 2001:db8:1::7", "probe 10.1.0.7"]);
        desk.see_by(A, M7, "2001:db8:1::7", Sighting::NeighborAdvertisement);
        desk.pass(Duration::from_secs(10));
        assert_eq!(desk.said(), Vec::<String>::new());
    }

    #[test]
    fn imported_prefixes_use_the_attachment_that_is_there() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.said();
        let (node, more) = (mn(M7), [prefix("2001:db8:1::7/128")]);
        let attachment = desk.anchor.handle_import(&node, &more, &mut desk.out);
        assert_eq!(attachment, Ok(Some(Attachment { link: A, mac: M7 })));
        desk.see(A, M7, "2001:db8:1::7");
        assert_eq!(desk.said(), Vec::<String>::new(), "known already");
        let elsewhere = desk.anchor.handle_import(&mn(M8), &more, &mut desk.out);
        assert_eq!(elsewhere, Err(Refusal::NotHere));
    }

    #[test]
    fn attach_by_the_api_with_a_lease() {
        let mut desk = Desk::new();
        let node = MnId::new("train-7").unwrap();
        let lease = Some(desk.now + Duration::from_secs(60));
        let attach = |desk: &mut Desk, text| {
            let prefixes = [prefix(text)];
            let (by, now) = (Sighting::Api, desk.now);
            desk.anchor.handle_attach(&node, &prefixes, None, lease, by, now, &mut desk.out)
        };
        assert_eq!(attach(&mut desk, "192.0.2.1"), Err(Refusal::OutsidePools));
        assert_eq!(attach(&mut desk, "10.1.0.7"), Ok(()));
        assert_eq!(desk.said(), ["attached 10.1.0.7/32 on 0"]);
        desk.pass(Duration::from_secs(61));
        assert_eq!(desk.said(), ["left train-7 LeaseEnd"]);
        assert!(!desk.anchor.handle_detach(&node, LeaveReason::Api, &mut desk.out));
    }

    #[test]
    fn after_a_restart_nodes_are_there_until_they_do_not_answer() {
        let mut desk = Desk::new();
        for (mac, text) in [(M7, "10.1.0.7"), (M8, "10.1.0.8")] {
            let (at, prefixes) = (Attachment { link: A, mac }, [prefix(text)]);
            let now = desk.now;
            desk.anchor
                .handle_restore(&mn(mac), &prefixes, Some(at), None, now, &mut desk.out)
                .unwrap();
        }
        let said = desk.said();
        assert_eq!(said[..2], ["attached 10.1.0.7/32 on 1", "probe 10.1.0.7"]);
        desk.see(A, M8, "10.1.0.8");
        desk.pass(Duration::from_secs(10));
        let said = desk.said();
        assert_eq!(
            said,
            ["probe 10.1.0.7", "probe 10.1.0.7", &format!("left {M7} NeighborFailed")]
        );
        assert_eq!(desk.anchor.len(), 1);
    }

    #[test]
    fn a_refused_attachment_is_forgotten_and_not_asked_for_again_at_once() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        desk.anchor.handle_refused(prefix("10.1.0.7"), desk.now, &mut desk.out);
        desk.said();
        assert!(desk.anchor.is_empty());
        desk.see(A, M7, "10.1.0.7");
        assert_eq!(desk.said(), Vec::<String>::new());
        assert_eq!(desk.anchor.counters().held_down, 1);
        desk.pass(Duration::from_secs(11));
        desk.see(A, M7, "10.1.0.7");
        assert_eq!(desk.said(), ["attached 10.1.0.7/32 on 1"]);
    }

    #[test]
    fn tables_have_an_end() {
        let pools = vec![Pool::of_hosts(prefix("10.0.0.0/8"))];
        let mut desk = Desk::with(Config { pools, nodes_max: 2, ..Config::default() });
        for n in 0..5 {
            desk.see(A, MacAddr([2, 0, 0, 0, 1, n]), &format!("10.0.0.{n}"));
        }
        assert_eq!((desk.anchor.len(), desk.anchor.counters().full), (2, 3));
        for n in 0..200 {
            desk.see(A, MacAddr([2, 0, 0, 0, 1, 0]), &format!("10.0.1.{n}"));
        }
        let session = desk.anchor.session(&mn(MacAddr([2, 0, 0, 0, 1, 0]))).unwrap();
        assert_eq!(session.prefixes.len(), limits::PREFIXES_PER_NODE_MAX);
    }

    #[test]
    fn a_solicitation_without_a_mobile_address_is_noticed() {
        let mut desk = Desk::new();
        desk.see_by(A, M7, "fe80::7", Sighting::RouterSolicitation);
        desk.see_by(A, M7, "fe80::7", Sighting::NeighborAdvertisement);
        assert_eq!(desk.said(), [format!("noticed {M7}")]);
    }

    #[test]
    fn holders_are_told_from_the_askers_point_of_view() {
        let mut desk = Desk::new();
        desk.see(A, M7, "10.1.0.7");
        let holder = |link, asker, text: &str, bound: Option<&MnId>| {
            desk.anchor.holder(link, asker, ip(text), bound)
        };
        let (m7, m8) = (mn(M7), mn(M8));
        assert_eq!(holder(A, M7, "10.1.0.7", None), Holder::Asker);
        assert_eq!(holder(A, M8, "10.1.0.7", None), Holder::ThisLink);
        assert_eq!(holder(B, M8, "10.1.0.7", None), Holder::Elsewhere);
        assert_eq!(holder(A, M8, "10.1.0.9", None), Holder::Nobody);
        assert_eq!(holder(A, M8, "10.1.0.9", Some(&m8)), Holder::Asker);
        assert_eq!(holder(A, M8, "10.1.0.9", Some(&m7)), Holder::Elsewhere);
    }

    #[test]
    fn listings_come_in_pages() {
        let mut desk = Desk::new();
        for n in 1..=5 {
            desk.see(A, MacAddr([2, 0, 0, 0, 0, n]), &format!("10.1.0.{n}"));
        }
        let mut names = Vec::new();
        let mut after: Option<MnId> = None;
        loop {
            let page: Vec<MnId> =
                desk.anchor.sessions(after.as_ref()).take(2).map(|s| s.mn.clone()).collect();
            let Some(last) = page.last().cloned() else { break };
            names.extend(page);
            after = Some(last);
        }
        assert_eq!(names.len(), 5);
        assert!(names.is_sorted());
    }
}
