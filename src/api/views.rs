//! What the API shows: the JSON of `-o json` and of the sockets. Stable within a [`VERSION`]: keys
//! and words may be added, never renamed or removed; readers must ignore what they do not know.
//! Keys are kebab-case, times are microseconds (`-us`) or seconds (`-s`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::types::seam::{LeaveReason, Sighting};
use crate::types::{AnchorId, Family, Generation, Locator, MacAddr, MnId, Prefix};

/// Grows when something is renamed or removed.
pub const VERSION: u32 = 1;

/// Around every answer. `kind` names the type of `data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    pub version: u32,
    pub kind: String,
    pub data: T,
}

/// Around every refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    pub version: u32,
    pub error: ErrorView,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorView {
    /// One of the words of [`super::ErrorCode`].
    pub code: String,
    /// One sentence.
    pub message: String,
}

/// Part of a listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Cursor of the next page; opaque, valid until restart. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatusView {
    pub version: String,
    pub name: String,
    pub anchor_id: Option<AnchorId>,
    /// `distributed`, `controller`, `client`, or `none`.
    pub mode: String,
    pub ready: bool,
    /// What readiness waits for, when it does.
    pub waiting_for: Vec<String>,
    pub uptime_s: u64,
    pub bgp: Option<BgpStatusView>,
    pub mobility: Option<MobilityStatusView>,
    /// The mapping service, when it is configured.
    pub lisp: Option<LispStatusView>,
    pub kernel: KernelStatusView,
    pub peers: Vec<PeerView>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BgpStatusView {
    pub local_as: u32,
    pub router_id: Option<Ipv4Addr>,
    pub neighbors: u64,
    pub established: u64,
    /// Prefixes in the Loc-RIB.
    pub routes: u64,
    /// Paths in all Adj-RIB-Ins.
    pub paths: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MobilityStatusView {
    pub bindings: u64,
    /// Bindings whose anchor is this node.
    pub attached: u64,
    /// Host routes announced by this node.
    pub announced: u64,
    pub handovers_in_progress: u64,
    pub handovers: u64,
    pub handovers_failed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LispStatusView {
    /// Of `map-server`, `etr` and `itr`.
    pub roles: Vec<String>,
    /// EIDs that the map-server has; else those that this ETR registers.
    pub registrations: u64,
    pub map_cache: u64,
    /// Those that the map-server serves; else those of this ITR.
    pub subscriptions: u64,
    pub data_plane: Option<EncapStatusView>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EncapStatusView {
    /// `gpe`, `ebpf` or `tun`.
    pub name: String,
    pub entries: u64,
    pub pending: u64,
    /// Entries that the data plane refused.
    pub failed: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KernelStatusView {
    pub routes: u64,
    /// Entries that the kernel refused.
    pub failed: u64,
    /// Entries not yet confirmed.
    pub pending: u64,
}

/// Another killick, or an external anchor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerView {
    pub name: String,
    pub anchor_id: AnchorId,
    /// `anchor`, `controller` or `external`.
    pub role: String,
    pub address: Option<String>,
    /// `up`, `connecting`, `down`; `none` for an external anchor.
    pub state: String,
    /// For how long it has been in this state.
    pub since_s: u64,
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NeighborView {
    pub address: IpAddr,
    pub description: Option<String>,
    pub remote_as: u32,
    pub router_id: Option<Ipv4Addr>,
    /// The states of RFC 4271 §8.2.2 in lower case, `open-sent` for OpenSent; `shutdown` when
    /// configured down.
    pub state: String,
    /// For how long it has been established, or down.
    pub since_s: u64,
    /// Times the session went down after it was established.
    pub flaps: u64,
    pub last_error: Option<String>,
    pub route_reflector_client: bool,
    /// Negotiated; zero: none.
    pub hold_time_s: u32,
    pub families: Vec<NeighborFamilyView>,
    pub capabilities: Vec<String>,
    pub messages_in: u64,
    pub messages_out: u64,
    /// Octets that wait to be written.
    pub queue_bytes: u64,
}

/// A BFD session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BfdSessionView {
    pub address: IpAddr,
    pub local_address: Option<IpAddr>,
    pub interface: Option<String>,
    pub multihop: bool,
    /// `admin-down`, `down`, `init` or `up`.
    pub state: String,
    pub since_s: u64,
    /// Why it is in this state, in words.
    pub diagnostic: String,
    pub remote_state: String,
    pub remote_diagnostic: String,
    pub discriminator: u32,
    /// 0 while it is not known.
    pub remote_discriminator: u32,
    /// BFD of the other end outlives its control plane (the C bit).
    pub control_plane_independent: bool,
    pub authenticated: bool,
    /// Between two packets of ours, before jitter.
    pub transmit_interval_us: u64,
    /// Silence of the other end that is a failure; 0 before it was heard.
    pub detection_time_us: u64,
    pub multiplier: u8,
    pub packets_in: u64,
    pub packets_out: u64,
    pub packets_discarded: u64,
    /// Times it came up, and times it left that state.
    pub ups: u64,
    pub downs: u64,
    /// BGP neighbours whose sessions end with this path.
    pub neighbors: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NeighborFamilyView {
    pub family: Family,
    /// Prefixes heard and kept.
    pub accepted: u64,
    /// Prefixes heard and refused by policy.
    pub refused: u64,
    /// Absent when the table is too large to be counted while peers wait.
    pub advertised: Option<u64>,
    /// Kept over the neighbour's restart.
    pub stale: u64,
    pub end_of_rib_received: bool,
}

/// A best route of the Loc-RIB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RouteView {
    pub prefix: Prefix,
    pub next_hop: Option<IpAddr>,
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    /// As routers print it, empty for a route of this AS.
    pub as_path: String,
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    pub communities: Vec<String>,
    pub large_communities: Vec<String>,
    /// The neighbour it was learnt from; absent for our own.
    pub from: Option<IpAddr>,
    pub best: bool,
    pub stale: bool,
    /// How many paths there are.
    pub paths: u32,
    /// `none`, `pending`, `installed` or `failed`.
    pub kernel: String,
}

/// One prefix with all its paths, best first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RouteDetailView {
    pub prefix: Prefix,
    pub paths: Vec<RouteView>,
    /// Neighbours it is announced to.
    pub advertised_to: Vec<IpAddr>,
}

/// Where one mobile prefix is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionView {
    pub mn: MnId,
    pub prefix: Prefix,
    pub anchor: AnchorId,
    /// Its name in the configuration.
    pub anchor_name: Option<String>,
    pub fe_e: Locator,
    pub home: Option<AnchorId>,
    pub generation: Generation,
    /// `attached` (here), `elsewhere`, `preparing`, `claiming`, `settled`, `leaving`.
    pub state: String,
    /// The host route this node announces: `none` (at home), `claim` or `settled`.
    pub announced: String,
    /// Since the last change of anchor; absent when that is longer ago than is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_s: Option<u64>,
    pub lifetime_s: Option<u64>,
    pub attachment: Option<AttachmentView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttachmentView {
    pub interface: String,
    pub mac: MacAddr,
    pub by: Option<Sighting>,
}

/// The packets of one prefix that wait here, go on to its next anchor, or are put in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PathView {
    pub prefix: Prefix,
    /// `None`: it is no longer bound here.
    pub mn: Option<MnId>,
    /// `hold`, `forward`, `gate`, `closing`.
    pub state: String,
    /// The other end, where it is known.
    pub peer: Option<SocketAddr>,
    pub since_ms: u64,
    pub waiting: usize,
    pub waiting_octets: usize,
    /// Since the state began.
    pub held: u64,
    pub forwarded: u64,
    pub dropped: u64,
    /// Flows that wait for their marker.
    pub flows: usize,
}

/// The answer to attach, detach and move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AcceptedView {
    pub mn: MnId,
    pub prefixes: Vec<Prefix>,
    pub anchor: Option<AnchorId>,
    pub generation: Generation,
}

/// The context of a mobile node (RFC 4067), as external anchors exchange it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContextView {
    pub mn: MnId,
    pub generation: Generation,
    pub anchor: AnchorId,
    pub prefixes: Vec<ContextPrefixView>,
    #[serde(default)]
    pub attributes: Vec<AttributeView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContextPrefixView {
    pub prefix: Prefix,
    #[serde(default)]
    pub home: Option<AnchorId>,
    #[serde(default)]
    pub lifetime_s: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AttributeView {
    #[serde(rename = "type")]
    pub kind: u16,
    /// Octets in hexadecimal.
    pub value: String,
}

/// One context transfer, running or finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransferView {
    pub mn: MnId,
    pub peer: String,
    /// `import` (we are the nMA) or `export` (we are the pMA).
    pub role: String,
    /// `predictive` or `reactive`.
    pub mode: String,
    /// `running`, `done`, or the reason why not.
    pub state: String,
    /// Since it began.
    pub age_s: u64,
    pub duration_us: Option<u64>,
    pub retransmissions: u32,
}

/// One desired entry of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FibRouteView {
    pub prefix: Prefix,
    /// `delivery` (a host on an access link) or `route` (a best path).
    pub kind: String,
    pub via: Option<IpAddr>,
    pub interface: Option<String>,
    pub mac: Option<MacAddr>,
    pub table: u32,
    /// `pending`, `installed` or `failed`.
    pub state: String,
    pub error: Option<String>,
}

/// What this node wants in the kernel, held against what is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FibDiffView {
    /// Nothing is missing, too much, different or shadowed; what was healed does not count.
    pub same: bool,
    /// Routes that should be there, and routes of the table with our protocol number.
    pub wanted: u64,
    pub found: u64,
    /// Routes of the table that others have made.
    pub foreign: u64,
    pub missing: u64,
    pub extra: u64,
    pub different: u64,
    pub shadowed: u64,
    /// In the last minutes, and set right since.
    pub healed: u64,
    pub items: Vec<FibDiffItemView>,
    /// Differences that were counted and are not among the items.
    pub omitted: u64,
    /// Why a part could not be read; then nothing is known of it.
    pub errors: Vec<String>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FibDiffItemView {
    /// `missing`, `extra`, `different`, `shadowed` (ours is there, and a route of somebody else for
    /// the same prefix is preferred); `healed` when it is no more.
    pub what: String,
    /// `delivery` or `route`; of tunnels `entry`, `group` or `decap`; `unknown` for a route with our
    /// protocol number and a metric that we do not use.
    pub kind: String,
    /// Absent for a group.
    pub prefix: Option<Prefix>,
    pub group: Option<u32>,
    pub want: Option<FibPlaceView>,
    pub have: Option<FibPlaceView>,
    /// What is known of the reason; what it was, of a healed one.
    pub why: Option<String>,
    /// For a healed one: how long ago it was found.
    pub ago_ms: Option<u64>,
}

/// Where a route leads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FibPlaceView {
    pub via: Option<IpAddr>,
    pub interface: Option<String>,
    pub protocol: Option<u8>,
    pub metric: Option<u32>,
}

/// The timeline of one handover as this node saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TraceView {
    pub mn: MnId,
    /// Wall clock at the first step, in microseconds since 1970.
    pub started_unix_us: u64,
    pub from: Option<AnchorId>,
    pub to: Option<AnchorId>,
    pub generation: Generation,
    /// `initial`, `handover`, `return` or `leave`; `mapping` at an ingress router.
    pub kind: String,
    /// `predictive`, `reactive` or `none`; of a mapping `publication` or `reply`.
    pub mode: String,
    /// `running`, `done` or `failed`.
    pub result: String,
    /// Of a mapping: where it led before and where it leads now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<MappingMoveView>,
    /// In the order of time.
    pub steps: Vec<StepView>,
}

/// What an ingress router learnt of a prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MappingMoveView {
    /// Locators; absent: none, the packets took another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<IpAddr>,
    /// 0: it has none.
    pub version: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StepView {
    /// Since the first step.
    pub at_us: u64,
    /// A word of `node::timeline::Phase`.
    pub phase: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// The other anchor concerned, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<AnchorId>,
    /// The details, for people.
    pub what: String,
}

/// A line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventView {
    pub version: u32,
    pub unix_us: u64,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    Attached {
        mn: MnId,
        prefix: Prefix,
        anchor: AnchorId,
        generation: Generation,
        by: Sighting,
    },
    Left {
        mn: MnId,
        reason: LeaveReason,
    },
    Moved {
        mn: MnId,
        prefix: Prefix,
        from: AnchorId,
        to: AnchorId,
        generation: Generation,
    },
    Settled {
        mn: MnId,
        prefix: Prefix,
        anchor: AnchorId,
        generation: Generation,
    },
    /// Two anchors claimed the node with one generation; `anchor` holds it.
    Duplicate {
        mn: MnId,
        prefix: Prefix,
        anchor: AnchorId,
        lost: AnchorId,
    },
    Announced {
        prefix: Prefix,
        local_pref: u32,
    },
    Withdrawn {
        prefix: Prefix,
    },
    NeighborUp {
        neighbor: IpAddr,
    },
    NeighborDown {
        neighbor: IpAddr,
        reason: String,
    },
    PeerUp {
        peer: String,
    },
    PeerDown {
        peer: String,
        reason: String,
    },
    TransferDone {
        mn: MnId,
        peer: String,
        mode: String,
        duration_us: u64,
    },
    TransferFailed {
        mn: MnId,
        peer: String,
        mode: String,
        reason: String,
    },
    FibFailed {
        prefix: Prefix,
        error: String,
    },
    Ready,
    /// The last line of a client that did not read fast enough.
    TooSlow {
        missed: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HealthView {
    pub alive: bool,
    pub ready: bool,
    pub waiting_for: Vec<String>,
}
