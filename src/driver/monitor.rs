//! The event stream of `killick monitor`, and the log lines of a handover: both made from the
//! timeline, so that they cannot disagree with `killick trace`.

use crate::api::Events;
use crate::api::views::Event as View;
use crate::node::Node;
use crate::node::timeline::{Detail, Event, Phase};
use crate::types::{AnchorId, MnId};

use super::core::Clock;

#[derive(Clone, Debug)]
pub struct Monitor {
    events: Events,
}

impl Monitor {
    pub fn new(events: Events) -> Self {
        Self { events }
    }

    /// Hands out what was recorded in this turn.
    pub fn publish(&self, node: &mut Node, _clock: &Clock) {
        if !self.events.has_readers() {
            node.timeline.skip_fresh();
            return;
        }
        let fresh: Vec<Event> = node.timeline.take_fresh().cloned().collect();
        for event in fresh {
            let holder = node.location.find(event.prefix).map_or(node.own(), |b| b.anchor);
            if let Some(view) = view(&event, node.own(), holder) {
                self.events.send(view);
            }
        }
    }

    pub fn send(&self, event: View) {
        self.events.send(event);
    }
}

/// What of the timeline is news to an operator.
fn view(event: &Event, own: AnchorId, holder: AnchorId) -> Option<View> {
    let Event { prefix, generation, .. } = *event;
    let mn = || event.mn.clone().unwrap_or_else(|| MnId::from_mac(Default::default()));
    let anchor = holder;
    let (by, why) = match event.detail {
        Detail::By(by) => (Some(by), None),
        Detail::Why(why) => (None, Some(why)),
        Detail::None | Detail::Mapping(_) | Detail::Text(_) => (None, None),
    };
    Some(match event.phase {
        Phase::Bound => match event.peer {
            Some(from) if from != holder => {
                View::Moved { mn: mn(), prefix, from, to: holder, generation }
            }
            Some(_) | None => View::Attached { mn: mn(), prefix, anchor, generation, by: by? },
        },
        Phase::Transferred => {
            View::Moved { mn: mn(), prefix, from: own, to: event.peer?, generation }
        }
        Phase::Left => View::Left { mn: mn(), reason: why? },
        Phase::Settled => View::Settled { mn: mn(), prefix, anchor, generation },
        Phase::Tie => View::Duplicate { mn: mn(), prefix, anchor, lost: event.peer? },
        Phase::Withdrawn => View::Withdrawn { prefix },
        // The steps in between are for `trace`.
        Phase::Sighted
        | Phase::MoveAnnounced
        | Phase::ContextRequested
        | Phase::ContextSent
        | Phase::ContextReceived
        | Phase::ContextAbsent
        | Phase::Delivering
        | Phase::DeliveryUnconfirmed
        | Phase::Announced
        | Phase::AtHome
        | Phase::Registering
        | Phase::Registered
        | Phase::Published
        | Phase::MappingSet
        | Phase::MappingGone
        | Phase::FirstPacket
        | Phase::ConfirmSent
        | Phase::Gated
        | Phase::Holding
        | Phase::Forwarding
        | Phase::Flushed
        | Phase::PathEnded
        | Phase::NewerClaim
        | Phase::Reasserted
        | Phase::Released
        | Phase::Restored
        | Phase::Refused => return None,
    })
}
