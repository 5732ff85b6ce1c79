//! The timeline of handovers: who learnt what when. `killick trace <mn>` reads it.
//!
//! One ring of small events for the whole node, oldest overwritten: recording is a copy of some
//! forty octets, so that it can be always on; looking something up walks the ring, which only a
//! person asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::lisp::MapVersion;
use crate::types::seam::{LeaveReason, Sighting};
use crate::types::{AnchorId, Generation, Instant, MnId, Prefix};

/// Events kept; the oldest is forgotten.
pub const EVENTS_MAX: usize = 65_536;

/// How far back the name of a node is looked for.
const RECENT: usize = 32;

/// A step of a handover, in the order in which they usually happen at the nMA, then at the pMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The node was noticed at this anchor.
    Sighted,
    /// An operator, or the link, said that it is about to leave.
    MoveAnnounced,
    /// The previous anchor was asked for the context.
    ContextRequested,
    /// The context was sent to the new anchor.
    ContextSent,
    ContextReceived,
    /// Nobody had a context, or nobody answered.
    ContextAbsent,
    /// The binding is here, with a new generation.
    Bound,
    /// The kernel delivers to the node.
    Delivering,
    /// FE_E did not confirm in time.
    DeliveryUnconfirmed,
    /// The host route has been handed to the BGP sessions, or the report to the controllers.
    Announced,
    /// The home aggregate leads here: nothing to announce.
    AtHome,
    /// A Map-Register has been handed to the control socket.
    Registering,
    /// The Map-Server has confirmed it.
    Registered,
    /// The Map-Server has told the subscribers.
    Published,
    /// This ingress router has learnt where to send.
    MappingSet,
    MappingGone,
    /// The first packet on the new path.
    FirstPacket,
    /// Packets that come directly stay behind those that the old anchor has held.
    Gated,
    /// The old anchor has been told that we are ready.
    ConfirmSent,
    /// The node's packets wait for it to be at the new anchor.
    Holding,
    /// They follow it there.
    Forwarding,
    /// Those that had waited are on their way.
    Flushed,
    /// Packets take no detour any more.
    PathEnded,
    /// The new anchor is ready: we let go.
    Transferred,
    /// A newer claim was heard.
    NewerClaim,
    /// An older claim was heard, ours was announced again.
    Reasserted,
    /// Two anchors with one generation.
    Tie,
    Withdrawn,
    Released,
    Settled,
    /// The node left.
    Left,
    /// Taken from the store after a restart.
    Restored,
    /// Refused: not in a pool, not authorised, another node's prefix, table full.
    Refused,
}

impl Phase {
    /// The word of logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sighted => "sighted",
            Self::MoveAnnounced => "move_announced",
            Self::ContextRequested => "context_requested",
            Self::ContextSent => "context_sent",
            Self::ContextReceived => "context_received",
            Self::ContextAbsent => "context_absent",
            Self::Bound => "bound",
            Self::Delivering => "delivering",
            Self::DeliveryUnconfirmed => "delivery_unconfirmed",
            Self::Announced => "announced",
            Self::AtHome => "at_home",
            Self::Registering => "registering",
            Self::Registered => "registered",
            Self::Published => "published",
            Self::MappingSet => "mapping_set",
            Self::MappingGone => "mapping_gone",
            Self::FirstPacket => "first_packet",
            Self::Gated => "gated",
            Self::ConfirmSent => "confirm_sent",
            Self::Holding => "holding",
            Self::Forwarding => "forwarding",
            Self::Flushed => "flushed",
            Self::PathEnded => "path_ended",
            Self::Transferred => "transferred",
            Self::NewerClaim => "newer_claim",
            Self::Reasserted => "reasserted",
            Self::Tie => "tie",
            Self::Withdrawn => "withdrawn",
            Self::Released => "released",
            Self::Settled => "settled",
            Self::Left => "left",
            Self::Restored => "restored",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Instant,
    pub mn: Option<MnId>,
    pub prefix: Prefix,
    pub phase: Phase,
    pub generation: Generation,
    /// The other anchor concerned, if one is.
    pub peer: Option<AnchorId>,
    pub detail: Detail,
}

/// What belongs to a step besides who and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    None,
    /// By what the node was noticed ([`Phase::Sighted`], [`Phase::Bound`]).
    By(Sighting),
    /// Why it left ([`Phase::Left`]).
    Why(LeaveReason),
    /// What an ingress router has learnt ([`Phase::MappingSet`]).
    Mapping(Learnt),
    /// A few words for people.
    Text(&'static str),
}

/// A mapping as it was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    pub version: MapVersion,
    /// The best locator; `None` for a negative one.
    pub rloc: Option<IpAddr>,
    /// By a publication; else by a Map-Reply.
    pub is_pushed: bool,
}

impl From<&'static str> for Detail {
    fn from(text: &'static str) -> Self {
        if text.is_empty() { Self::None } else { Self::Text(text) }
    }
}

impl Detail {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::By(Sighting::Arp) => "ARP",
            Self::By(Sighting::NeighborSolicitation) => "neighbor solicitation",
            Self::By(Sighting::NeighborAdvertisement) => "neighbor advertisement",
            Self::By(Sighting::RouterSolicitation) => "router solicitation",
            Self::By(Sighting::Packet) => "first packet",
            Self::By(Sighting::Api) => "API",
            Self::By(Sighting::Report) => "reported",
            Self::By(Sighting::MapRegister) => "Map-Register",
            Self::By(Sighting::Restart) => "restart",
            Self::Why(LeaveReason::LinkDown) => "link down",
            Self::Why(LeaveReason::NeighborFailed) => "no answer",
            Self::Why(LeaveReason::NewerClaim) => "newer claim",
            Self::Why(LeaveReason::LeaseEnd) => "lease end",
            Self::Why(LeaveReason::Api) => "API",
            Self::Mapping(Learnt { is_pushed: true, .. }) => "publication",
            Self::Mapping(Learnt { is_pushed: false, .. }) => "Map-Reply",
            Self::Text(text) => text,
        }
    }
}

#[derive(Debug, Default)]
pub struct Timeline {
    events: VecDeque<Event>,
    /// Events not yet handed to `monitor`.
    fresh: usize,
    /// There is nobody to announce routes to: those steps do not happen.
    announces_nothing: bool,
    sightings: [u64; 9],
    leaves: [u64; 5],
}

impl Timeline {
    /// Here host routes and reports are told to nobody, as at a map-server without BGP.
    pub fn set_announces_nothing(&mut self) {
        self.announces_nothing = true;
    }

    pub fn record(&mut self, mut event: Event) {
        if self.announces_nothing && matches!(event.phase, Phase::Announced | Phase::Withdrawn) {
            return;
        }
        match (event.phase, event.detail) {
            (Phase::Sighted, Detail::By(by)) => self.sightings[by as usize] += 1,
            (Phase::Restored, _) => self.sightings[Sighting::Restart as usize] += 1,
            (Phase::Left, Detail::Why(why)) => self.leaves[why as usize] += 1,
            (Phase::Transferred | Phase::NewerClaim, _) => {
                self.leaves[LeaveReason::NewerClaim as usize] += 1;
            }
            _ => {} // most steps are no arrival and no departure
        }
        if event.mn.is_none() {
            // The last steps of a node that has just left: its name is in the steps before.
            let recent = self.events.iter().rev().take(RECENT);
            let mut of_prefix = recent.filter(|e| e.prefix == event.prefix);
            event.mn = of_prefix.find_map(|e| e.mn.clone());
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.fresh = (self.fresh + 1).min(EVENTS_MAX);
    }

    /// Prefixes that have arrived since the start, by how they were noticed.
    pub fn sightings(&self, by: Sighting) -> u64 {
        self.sightings[by as usize]
    }

    /// Prefixes that have left since the start, by reason.
    pub fn leaves(&self, why: LeaveReason) -> u64 {
        self.leaves[why as usize]
    }

    /// Everything about a node, oldest first. `prefixes` are those it has now, since events of
    /// others' claims do not know the node's name.
    pub fn of(&self, mn: &MnId, prefixes: &[Prefix]) -> impl Iterator<Item = &Event> {
        let mn = mn.clone();
        let prefixes = prefixes.to_vec();
        self.events.iter().filter(move |e| match &e.mn {
            Some(name) => *name == mn,
            None => prefixes.contains(&e.prefix),
        })
    }

    /// Everything about a prefix, oldest first.
    pub fn of_prefix(&self, prefix: Prefix) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |e| e.prefix == prefix)
    }

    /// Nobody listens: what was recorded since the last call is not news any more.
    pub fn skip_fresh(&mut self) {
        self.fresh = 0;
    }

    /// Since when each of these prefixes is where it is, as far as it is remembered.
    pub fn bound_since(&self, mut prefixes: BTreeSet<Prefix>) -> BTreeMap<Prefix, Instant> {
        let mut since = BTreeMap::new();
        for event in self.events.iter().rev() {
            if prefixes.is_empty() {
                break;
            }
            if matches!(event.phase, Phase::Bound | Phase::Restored)
                && prefixes.remove(&event.prefix)
            {
                since.insert(event.prefix, event.at);
            }
        }
        since
    }

    /// What was recorded since the last call.
    pub fn take_fresh(&mut self) -> impl Iterator<Item = &Event> {
        let fresh = std::mem::take(&mut self.fresh);
        self.events.range(self.events.len() - fresh..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, prefix: &str, phase: Phase) -> Event {
        Event {
            at: Instant::from_micros(at),
            mn: None,
            prefix: prefix.parse().unwrap(),
            phase,
            generation: Generation(1),
            peer: None,
            detail: Detail::None,
        }
    }

    #[test]
    fn the_last_binding_tells_since_when() {
        let mut timeline = Timeline::default();
        for (at, phase) in [(1, Phase::Bound), (5, Phase::Bound), (7, Phase::Settled)] {
            timeline.record(event(at, "10.1.0.7/32", phase));
        }
        timeline.record(event(8, "10.1.0.8/32", Phase::Sighted));
        let asked = ["10.1.0.7/32", "10.1.0.8/32"].map(|p| p.parse().unwrap());
        let since: Vec<_> = timeline.bound_since(asked.into()).into_iter().collect();
        assert_eq!(since, [(asked[0], Instant::from_micros(5))]);
    }

    #[test]
    fn where_nobody_is_told_nothing_is_announced() {
        let mut timeline = Timeline::default();
        timeline.set_announces_nothing();
        for phase in [Phase::Bound, Phase::Announced, Phase::Withdrawn, Phase::Published] {
            timeline.record(event(1, "10.1.0.7/32", phase));
        }
        let told: Vec<_> =
            timeline.of_prefix("10.1.0.7/32".parse().unwrap()).map(|e| e.phase).collect();
        assert_eq!(told, [Phase::Bound, Phase::Published]);
    }
}
