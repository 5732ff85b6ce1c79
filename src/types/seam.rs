//! What passes between the rooms. There are few of these, and a new one is a design decision.
//!
//! ```text
//! sensors, proto, api ─MobilityEvent→ anchor, mctx ─→ location ─BindingChange→ iec
//!    iec ─PolicyChange→ proto::bgp (host routes), gateway ─ForwardingChange→ dataplane
//!    dataplane ─Applied→ iec          (the only arrow that goes back inside a node)
//!    mctx ←─Context─→ proto::cxtp     (to and from another node)
//! ```

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::transient::PathKey;
use super::{AnchorId, Binding, Claim, Generation, Locator, MacAddr, MnId, Prefix, Revision};

/// The kernel's index of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IfIndex(pub u32);

/// Where on the access side a node is: reached over `link`, at this link-layer address.
/// `None` for a node at an external anchor, which delivers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub link: IfIndex,
    pub mac: MacAddr,
}

/// By what an attached node was noticed. A label of metrics and of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sighting {
    Arp,
    NeighborSolicitation,
    NeighborAdvertisement,
    RouterSolicitation,
    /// A data packet from an address that is not attached here.
    Packet,
    Api,
    /// A report of its anchor to a controller.
    Report,
    /// A Map-Register, at a map-server.
    MapRegister,
    /// Known from the store after a restart; to be confirmed by one of the others.
    Restart,
}

/// Who has an address, as one asker on an access link has to see it. Told by those who know the
/// attachments of this anchor and the bindings of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The asker's own mobile node.
    Asker,
    /// Another node attached to this very link, which answers for itself.
    ThisLink,
    /// Another node, on another link of this anchor or at another anchor.
    Elsewhere,
    /// Nobody, as far as is known here.
    Nobody,
}

/// A node was seen to use an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighted {
    pub link: IfIndex,
    pub mac: MacAddr,
    pub ip: IpAddr,
    pub by: Sighting,
}

/// Why a node left. A label of metrics and of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    LinkDown,
    /// The neighbour no longer answers (NUD).
    NeighborFailed,
    /// Another anchor has a newer claim.
    NewerClaim,
    LeaseEnd,
    Api,
}

/// What happened to a mobile node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MobilityEvent {
    /// A node is here, with this prefix. `mn` is known from the API or the static map; otherwise
    /// the anchor derives it from the link-layer address.
    Attached { prefix: Prefix, mn: MnId, attachment: Option<Attachment>, by: Sighting },
    /// The node is no longer here.
    Left { mn: MnId, reason: LeaveReason },
    /// The node is about to go to `to` (predictive).
    Moving { mn: MnId, to: AnchorId },
    /// Somebody else claims the prefix (heard in BGP or from a controller's client).
    Claimed { prefix: Prefix, claim: Claim },
}

/// The context of one mobile node as it moves from the pMA to the nMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub mn: MnId,
    /// The generation of the node at the exporting anchor; the importer claims the next one.
    pub generation: Generation,
    pub anchor: AnchorId,
    pub prefixes: Vec<ContextPrefix>,
    /// Opaque attributes of the node (type, value), passed on unchanged.
    pub attributes: Vec<(u16, Vec<u8>)>,
    /// The exporting anchor holds the node's packets, and sends them on under this key when it
    /// hears that the context is installed. `None`: it does not.
    pub path: Option<PathKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextPrefix {
    pub prefix: Prefix,
    pub home: Option<AnchorId>,
    /// Remaining lifetime in seconds; `None` while attached.
    pub lifetime_s: Option<u32>,
}

/// The location of a prefix changed. `old` or `new` is absent at first binding and at removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingChange {
    pub prefix: Prefix,
    pub old: Option<Binding>,
    pub new: Option<Binding>,
    pub revision: Revision,
}

/// How strongly a host route is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// An older claim may still be around: LOCAL_PREF grows with the generation.
    Claim(Generation),
    /// The older claims are gone: the same attributes for all nodes of an anchor.
    Settled,
}

impl Preference {
    pub fn local_pref(self) -> u32 {
        match self {
            Self::Claim(g) => super::limits::LOCAL_PREF_CLAIM_BASE.saturating_add(g.0),
            Self::Settled => super::limits::LOCAL_PREF_SETTLED,
        }
    }
}

/// FE_IEC's wish about one prefix, for the FE it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyChange {
    /// The iBGP back end announces (or re-announces) the host route.
    Announce { prefix: Prefix, anchor: AnchorId, fe_e: Locator, preference: Preference },
    /// The iBGP back end withdraws the host route.
    Withdraw { prefix: Prefix },
    /// FE_E: deliver to this attachment.
    Deliver { prefix: Prefix, attachment: Attachment, revision: Revision },
    /// FE_E: no longer deliver locally.
    Release { prefix: Prefix, revision: Revision },
}

/// One desired kernel entry, or its removal. The key is (table, prefix, kind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardingChange {
    /// A node on an access link: host route on the link, and its neighbour entry.
    SetDelivery {
        prefix: Prefix,
        attachment: Attachment,
        revision: Revision,
    },
    RemoveDelivery {
        prefix: Prefix,
        revision: Revision,
    },
    /// A best path of BGP; the next hop is resolved through the kernel's other routes.
    SetRoute {
        prefix: Prefix,
        next_hop: IpAddr,
    },
    RemoveRoute {
        prefix: Prefix,
    },
}

/// "This revision is now in the FE", or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub prefix: Prefix,
    pub revision: Revision,
    pub result: Result<(), String>,
}
