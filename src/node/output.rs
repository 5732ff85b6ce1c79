//! What a node asks of the world.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::lisp::{EncapChange, Note};
use crate::types::seam::{Attachment, ForwardingChange, IfIndex};
use crate::types::transfer::Signal;
use crate::types::transient::TransientChange;
use crate::types::{AnchorId, Binding, Claim, Prefix};

/// What must survive kill -9, before the messages of the same turn leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Bound {
        binding: Binding,
        attachment: Option<Attachment>,
    },
    /// No longer bound here; the greatest claim that is known.
    Gone(Claim),
}

/// Something worth a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// From the first sign of the node to the end of the phase.
    Handover { phase: HandoverPhase, mode: Mode, took: Duration },
    /// A node has left; how long it was attached here.
    Stay(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverPhase {
    /// Until the context is here (or known to be nowhere).
    Context,
    /// Until the kernel delivers.
    Delivery,
    /// Until the host route is handed to the BGP sessions: all that killick is responsible for.
    Announce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nobody held the node before.
    Initial,
    /// The context was fetched from the previous anchor.
    Reactive,
    /// The context was here before the node.
    Predictive,
    /// The previous anchor could not be asked.
    Provisional,
}

#[derive(Clone, Debug)]
pub enum Output {
    Bgp(crate::proto::bgp::speaker::Output),
    /// To another killick; dropped (and made up for by the timers of mctx) when the link is down.
    Signal {
        to: AnchorId,
        signal: Signal,
    },
    Forwarding(ForwardingChange),
    Persist {
        prefix: Prefix,
        record: Record,
    },
    /// A control message of the mapping service, from the control port.
    Lisp {
        to: std::net::SocketAddr,
        /// `None`: the kernel's choice.
        from: Option<std::net::IpAddr>,
        octets: Vec<u8>,
    },
    /// A desired change of the encapsulating data plane.
    Encap(EncapChange),
    /// Packets that wait for a node, or follow it.
    Transient(TransientChange),
    /// To be stored like a [`Record`].
    Note(Note),
    /// An Ethernet frame on an access link.
    Frame {
        link: IfIndex,
        octets: Vec<u8>,
    },
    /// The nodes attached to a link have changed: its first-packet filter is to be made anew.
    LinkNodes {
        link: IfIndex,
    },
    Observed(Observation),
}

/// Counts of the hall since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub attaches_initial: u64,
    pub attaches_handover: u64,
    pub attaches_return: u64,
    pub attaches_same_anchor: u64,
    pub handovers_completed: u64,
    pub handovers_provisional: u64,
    pub stale_generations_ignored: u64,
    pub duplicate_anchors: u64,
    pub reasserted: u64,
    pub released_newer_claim: u64,
    pub unauthorised_claims: u64,
    pub refused_not_in_pool: u64,
    pub refused_other_node: u64,
    pub refused_full: u64,
    pub delivery_errors: u64,
    pub no_next_hop: u64,
    pub malformed_frames: u64,
    /// Hosts that spoke without a mobile address.
    pub noticed: u64,
}
