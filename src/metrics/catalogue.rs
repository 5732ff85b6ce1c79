//! Names, labels and help of every metric.

use std::collections::BTreeMap;

use prometheus::core::{AtomicF64, GenericCounter};
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::label::{Label, Per, label};

/// Around the 200 ms of RFC 4067 (CT_MAX_TRANSFER_TIME) and the second of a PMIPv6 retransmission.
pub const HANDOVER_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// What happens inside the daemon.
pub const FAST_BUCKETS: &[f64] = &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 1.0,
];
/// How long nodes stay: seconds to a day.
const STAY_BUCKETS: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];

label!(Direction = "direction" { In = "in", Out = "out" });
label!(Protocol = "protocol" { Bgp = "bgp", Cxtp = "cxtp", Lisp = "lisp" });
label!(FamilyLabel = "family" { Ipv4 = "ipv4", Ipv6 = "ipv6" });
label!(
    /// The states of RFC 4271 §8.2.2, and configured down.
    BgpState = "state" {
        Idle = "idle",
        Connect = "connect",
        Active = "active",
        OpenSent = "open_sent",
        OpenConfirm = "open_confirm",
        Established = "established",
        Shutdown = "shutdown",
    }
);
label!(BgpMessage = "type" {
    Open = "open",
    Update = "update",
    Notification = "notification",
    Keepalive = "keepalive",
    RouteRefresh = "route_refresh",
});
label!(
    /// RFC 7606 §2, from the strongest.
    UpdateAction = "action" {
        SessionReset = "session_reset",
        AfiDisable = "afi_disable",
        TreatAsWithdraw = "treat_as_withdraw",
        AttributeDiscard = "attribute_discard",
    }
);
label!(
    /// Error codes of a NOTIFICATION (RFC 4271 §4.5, RFC 7313 §5, RFC 9687 §6).
    NotificationCode = "code" {
        MessageHeader = "message_header",
        Open = "open",
        Update = "update",
        HoldTimerExpired = "hold_timer_expired",
        Fsm = "fsm",
        Cease = "cease",
        RouteRefresh = "route_refresh",
        SendHoldTimerExpired = "send_hold_timer_expired",
        Other = "other",
    }
);
label!(Rib = "rib" { AdjIn = "adj_in", Accepted = "accepted", AdjOut = "adj_out" });
label!(RouteOrigin = "origin" { Bgp = "bgp", Mobility = "mobility", Static = "static" });
label!(FibKind = "kind" { Delivery = "delivery", Route = "route" });
label!(FibOp = "op" { Add = "add", Remove = "remove", Dump = "dump" });
label!(SessionState = "state" {
    /// Attached here.
    Local = "local",
    /// Known to be at another anchor.
    Remote = "remote",
    /// A handover is under way.
    Moving = "moving",
});
label!(AttachType = "type" {
    Initial = "initial",
    Handover = "handover",
    /// Back at the home anchor.
    Return = "return",
    /// Came without a context that could be fetched.
    Provisional = "provisional",
});
label!(SightingLabel = "by" {
    Arp = "arp",
    NeighborSolicitation = "neighbor_solicitation",
    NeighborAdvertisement = "neighbor_advertisement",
    RouterSolicitation = "router_solicitation",
    Packet = "packet",
    Api = "api",
    /// A report of its anchor, at a controller.
    Report = "report",
    /// At a map-server.
    MapRegister = "map_register",
    Restart = "restart",
});
label!(LeaveLabel = "reason" {
    LinkDown = "link_down",
    NeighborFailed = "neighbor_failed",
    NewerClaim = "newer_claim",
    LeaseEnd = "lease_end",
    Api = "api",
});
label!(
    /// Parts of a handover at the new anchor, in their order; each from the end of the one before,
    /// `total` from the sighting to the announcement.
    Phase = "phase" {
        /// The context is here.
        Context = "context",
        /// FE_E delivers.
        Prepare = "prepare",
        /// The claim was written to all neighbours.
        Announce = "announce",
        /// The old anchor confirmed that it let go.
        Release = "release",
        /// The route is settled.
        Settle = "settle",
        Total = "total",
    }
);
label!(Mode = "mode" {
    Predictive = "predictive",
    Reactive = "reactive",
    /// Without a context transfer.
    None = "none",
});
label!(HandoverResult = "result" {
    Ok = "ok",
    /// The context could not be had; the node is served all the same.
    WithoutContext = "without_context",
    /// Another anchor had a newer claim before it was done.
    Overtaken = "overtaken",
    Failed = "failed",
});
label!(Role = "role" { Import = "import", Export = "export" });
label!(TransferResult = "result" {
    Ok = "ok",
    Refused = "refused",
    Timeout = "timeout",
    Cancelled = "cancelled",
    Malformed = "malformed",
    PeerDown = "peer_down",
});
label!(
    /// Why input was thrown away.
    DropReason = "reason" {
        /// Not understood.
        Malformed = "malformed",
        /// A queue was full.
        QueueFull = "queue_full",
        /// A table was full.
        TableFull = "table_full",
        /// Too many of its kind in too short a time.
        RateLimited = "rate_limited",
        /// The peer may not claim this prefix.
        Unauthorised = "unauthorised",
        /// Not inside a mobility pool.
        OutsidePools = "outside_pools",
        /// A source address that belongs to another node.
        SpoofedSource = "spoofed_source",
        /// About a node or prefix that is not known.
        Unknown = "unknown",
    }
);
label!(ApiResult = "result" { Ok = "ok", Error = "error" });
label!(StreamOp = "op" { Attach = "attach", Move = "move", Detach = "detach", Ack = "ack" });

impl From<crate::types::Family> for FamilyLabel {
    fn from(family: crate::types::Family) -> Self {
        match family {
            crate::types::Family::Ipv4 => Self::Ipv4,
            crate::types::Family::Ipv6 => Self::Ipv6,
        }
    }
}

impl From<crate::types::seam::Sighting> for SightingLabel {
    fn from(by: crate::types::seam::Sighting) -> Self {
        use crate::types::seam::Sighting;
        match by {
            Sighting::Arp => Self::Arp,
            Sighting::NeighborSolicitation => Self::NeighborSolicitation,
            Sighting::NeighborAdvertisement => Self::NeighborAdvertisement,
            Sighting::RouterSolicitation => Self::RouterSolicitation,
            Sighting::Packet => Self::Packet,
            Sighting::Api => Self::Api,
            Sighting::Report => Self::Report,
            Sighting::MapRegister => Self::MapRegister,
            Sighting::Restart => Self::Restart,
        }
    }
}

impl From<crate::types::seam::LeaveReason> for LeaveLabel {
    fn from(reason: crate::types::seam::LeaveReason) -> Self {
        use crate::types::seam::LeaveReason;
        match reason {
            LeaveReason::LinkDown => Self::LinkDown,
            LeaveReason::NeighborFailed => Self::NeighborFailed,
            LeaveReason::NewerClaim => Self::NewerClaim,
            LeaveReason::LeaseEnd => Self::LeaseEnd,
            LeaveReason::Api => Self::Api,
        }
    }
}

impl NotificationCode {
    pub fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::MessageHeader,
            2 => Self::Open,
            3 => Self::Update,
            4 => Self::HoldTimerExpired,
            5 => Self::Fsm,
            6 => Self::Cease,
            7 => Self::RouteRefresh,
            8 => Self::SendHoldTimerExpired,
            _ => Self::Other,
        }
    }
}

/// One configured neighbour.
pub struct NeighborMetrics {
    pub up: IntGauge,
    state: Per<BgpState, IntGauge>,
    /// Seconds since 1970; 0 while down.
    pub established_time: IntGauge,
    pub flaps: IntCounter,
    pub bfd_downs: IntCounter,
    pub messages: Per<Direction, Per<BgpMessage, IntCounter>>,
    pub prefixes: Per<FamilyLabel, Per<Rib, IntGauge>>,
    pub update_errors: Per<UpdateAction, IntCounter>,
    pub max_prefix_exceeded: IntCounter,
    pub queue_bytes: IntGauge,
    pub stale_routes: IntGauge,
    pub hold_time: IntGauge,
}

impl NeighborMetrics {
    /// One state is 1, the others are 0.
    pub fn set_state(&self, state: BgpState) {
        for other in BgpState::ALL {
            self.state.get(*other).set(i64::from(*other == state));
        }
        self.up.set(i64::from(state == BgpState::Established));
    }
}

pub struct BgpMetrics {
    /// In the order of the configuration.
    pub neighbors: Vec<NeighborMetrics>,
    pub notifications: Per<Direction, Per<NotificationCode, IntCounter>>,
    pub rr_loops: IntCounter,
    pub as_path_loops: IntCounter,
    pub gr_timer_expired: IntCounter,
    pub connections_refused: IntCounter,
    pub rx_to_tx: Histogram,
}

impl BgpMetrics {
    pub(super) fn new(make: &Maker<'_>, peers: &[String]) -> Self {
        let peer = ["peer"];
        let up = make.gauge_vec("killick_bgp_session_up", "1 while established", &peer);
        let state = make.gauge_vec(
            "killick_bgp_session_state",
            "1 for the state the session is in",
            &["peer", "state"],
        );
        let established = make.gauge_vec(
            "killick_bgp_session_established_time_seconds",
            "When the session was established, in seconds since 1970; 0 while down",
            &peer,
        );
        let flaps = make.counter_vec(
            "killick_bgp_session_flaps_total",
            "Times an established session went down",
            &peer,
        );
        let bfd_downs = make.counter_vec(
            "killick_bgp_bfd_downs_total",
            "Times an established session was ended because BFD said that the path had failed",
            &peer,
        );
        let messages = make.counter_vec(
            "killick_bgp_messages_total",
            "BGP messages",
            &["peer", "direction", "type"],
        );
        let prefixes = make.gauge_vec(
            "killick_bgp_prefixes",
            "Prefixes heard (adj_in), kept after policy (accepted) and announced (adj_out)",
            &["peer", "family", "rib"],
        );
        let errors = make.counter_vec(
            "killick_bgp_update_errors_total",
            "Malformed UPDATEs by what was done about them (RFC 7606)",
            &["peer", "action"],
        );
        let exceeded = make.counter_vec(
            "killick_bgp_max_prefix_exceeded_total",
            "Times the neighbour sent more prefixes than its limit",
            &peer,
        );
        let queue =
            make.gauge_vec("killick_bgp_out_queue_bytes", "Octets that wait to be written", &peer);
        let stale = make.gauge_vec(
            "killick_bgp_gr_stale_routes",
            "Routes kept over the neighbour's restart (RFC 4724)",
            &peer,
        );
        let hold = make.gauge_vec(
            "killick_bgp_hold_time_seconds",
            "Hold time that was negotiated; 0 is never or down",
            &peer,
        );
        let neighbor = |name: &String| {
            let name = name.as_str();
            let n = NeighborMetrics {
                up: up.with_label_values(&[name]),
                state: Per::new(|s: BgpState| state.with_label_values(&[name, s.as_str()])),
                established_time: established.with_label_values(&[name]),
                flaps: flaps.with_label_values(&[name]),
                bfd_downs: bfd_downs.with_label_values(&[name]),
                messages: Per::new(|d: Direction| {
                    Per::new(|t: BgpMessage| {
                        messages.with_label_values(&[name, d.as_str(), t.as_str()])
                    })
                }),
                prefixes: Per::new(|f: FamilyLabel| {
                    Per::new(|r: Rib| prefixes.with_label_values(&[name, f.as_str(), r.as_str()]))
                }),
                update_errors: Per::new(|a: UpdateAction| {
                    errors.with_label_values(&[name, a.as_str()])
                }),
                max_prefix_exceeded: exceeded.with_label_values(&[name]),
                queue_bytes: queue.with_label_values(&[name]),
                stale_routes: stale.with_label_values(&[name]),
                hold_time: hold.with_label_values(&[name]),
            };
            n.set_state(BgpState::Idle);
            n
        };
        Self {
            neighbors: peers.iter().map(neighbor).collect(),
            notifications: make.counters2(
                "killick_bgp_notifications_total",
                "NOTIFICATION messages by error code",
            ),
            rr_loops: make.counter(
                "killick_bgp_rr_loops_total",
                "Routes refused because they came back through a reflector (RFC 4456 §8)",
            ),
            as_path_loops: make.counter(
                "killick_bgp_as_path_loops_total",
                "Routes refused because our AS is in their path",
            ),
            gr_timer_expired: make.counter(
                "killick_bgp_gr_timer_expired_total",
                "Times a restarting neighbour did not come back in time",
            ),
            connections_refused: make.counter(
                "killick_bgp_connections_refused_total",
                "Connections from addresses that are no neighbours",
            ),
            rx_to_tx: make.histogram(
                "killick_bgp_rx_to_tx_seconds",
                "From reading octets of a neighbour to having written what follows from them",
                FAST_BUCKETS,
            ),
        }
    }
}

/// Tables of routes, ours and the kernel's.
pub struct RibMetrics {
    pub routes: Per<FamilyLabel, Per<RouteOrigin, IntGauge>>,
    pub fib_routes: Per<FamilyLabel, Per<FibKind, IntGauge>>,
    pub fib_errors: Per<FibOp, IntCounter>,
    pub fib_pending: IntGauge,
    pub fib_failed: IntGauge,
    pub fib_resyncs: IntCounter,
    /// Entries found different from what was wanted at the last comparison.
    pub fib_mismatch: IntGauge,
    pub fib_apply: Histogram,
}

impl RibMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            routes: make.gauges2("killick_rib_routes", "Best routes by where they come from"),
            fib_routes: make.gauges2("killick_fib_routes", "Entries in the kernel by kind"),
            fib_errors: make
                .counters("killick_fib_errors_total", "Requests that the kernel refused"),
            fib_pending: make.gauge("killick_fib_pending", "Entries not yet confirmed"),
            fib_failed: make.gauge("killick_fib_failed", "Entries that the kernel refused"),
            fib_resyncs: make
                .counter("killick_fib_resyncs_total", "Full comparisons with the kernel's tables"),
            fib_mismatch: make.gauge(
                "killick_fib_mismatch",
                "Entries that were not as wanted at the last comparison",
            ),
            fib_apply: make.histogram(
                "killick_fib_apply_seconds",
                "Handing over the entries of one turn; deliveries are in the kernel at its end",
                FAST_BUCKETS,
            ),
        }
    }
}

pub struct MobilityMetrics {
    pub sessions: Per<SessionState, IntGauge>,
    pub attaches: Per<AttachType, IntCounter>,
    pub sightings: Per<SightingLabel, IntCounter>,
    pub leaves: Per<LeaveLabel, IntCounter>,
    pub handover_duration: Per<Phase, Per<Mode, Histogram>>,
    pub handovers: Per<HandoverResult, IntCounter>,
    pub handovers_in_progress: IntGauge,
    pub stale_generations: IntCounter,
    pub duplicate_anchors: IntCounter,
    pub session_duration: Histogram,
    pub host_routes: Per<FamilyLabel, IntGauge>,
}

impl MobilityMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            sessions: make.gauges("killick_mobility_sessions", "Bindings by where the node is"),
            attaches: make.counters("killick_mobility_attaches_total", "Nodes that came"),
            sightings: make
                .counters("killick_mobility_sightings_total", "By what nodes were noticed"),
            leaves: make.counters("killick_mobility_leaves_total", "Nodes that went, by reason"),
            handover_duration: make.histograms2(
                "killick_handover_duration_seconds",
                "Duration of a handover at the new anchor, by phase and mode of context transfer",
                HANDOVER_BUCKETS,
            ),
            handovers: make.counters("killick_handovers_total", "Handovers that ended"),
            handovers_in_progress: make
                .gauge("killick_handovers_in_progress", "Handovers under way"),
            stale_generations: make.counter(
                "killick_mobility_stale_generations_total",
                "Claims ignored because a newer one is known",
            ),
            duplicate_anchors: make.counter(
                "killick_mobility_duplicate_anchors_total",
                "Claims of two anchors with one generation",
            ),
            session_duration: make.histogram(
                "killick_mobility_session_duration_seconds",
                "How long nodes stayed at this anchor",
                STAY_BUCKETS,
            ),
            host_routes: make
                .gauges("killick_mobility_host_routes", "Host routes that this node announces"),
        }
    }
}

pub struct CtxMetrics {
    pub transfers: Per<Role, Per<Mode, Per<TransferResult, IntCounter>>>,
    pub transfer_duration: Per<Mode, Histogram>,
    pub timeouts: IntCounter,
    pub retransmissions: IntCounter,
    pub rate_limited: IntCounter,
    pub auth_failures: IntCounter,
    pub inflight: IntGauge,
    /// By the peer's name.
    pub peer_up: BTreeMap<String, IntGauge>,
}

impl CtxMetrics {
    pub(super) fn new(make: &Maker<'_>, peers: &[String]) -> Self {
        let transfers = make.counter_vec(
            "killick_ctx_transfers_total",
            "Context transfers that ended",
            &["role", "mode", "result"],
        );
        let peer_up =
            make.gauge_vec("killick_ctx_peer_up", "1 while the peer is connected", &["peer"]);
        Self {
            transfers: Per::new(|role: Role| {
                Per::new(|mode: Mode| {
                    Per::new(|result: TransferResult| {
                        let labels = [role.as_str(), mode.as_str(), result.as_str()];
                        transfers.with_label_values(&labels)
                    })
                })
            }),
            transfer_duration: make.histograms(
                "killick_ctx_transfer_duration_seconds",
                "From the request to the imported context",
                HANDOVER_BUCKETS,
            ),
            timeouts: make.counter("killick_ctx_timeouts_total", "Timers of RFC 4067 that ran out"),
            retransmissions: make
                .counter("killick_ctx_retransmissions_total", "Messages sent once more"),
            rate_limited: make.counter(
                "killick_ctx_rate_limited_total",
                "Requests dropped because a peer asked too often (RFC 4067 §3.1)",
            ),
            auth_failures: make.counter(
                "killick_ctx_auth_failures_total",
                "TLS handshakes and tokens that failed, and claims that were not allowed",
            ),
            inflight: make.gauge("killick_ctx_inflight", "Context transfers under way"),
            peer_up: peers
                .iter()
                .map(|p| (p.clone(), peer_up.with_label_values(&[p.as_str()])))
                .collect(),
        }
    }
}

pub struct ApiMetrics {
    pub requests: Per<ApiResult, IntCounter>,
    pub request_duration: Histogram,
    pub clients: IntGauge,
    pub event_readers: IntGauge,
    pub event_readers_dropped: IntCounter,
    pub stream_clients: IntGauge,
    pub stream_ops: Per<StreamOp, IntCounter>,
    pub stream_errors: IntCounter,
}

impl ApiMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            requests: make.counters("killick_api_requests_total", "Requests to the API"),
            request_duration: make.histogram(
                "killick_api_request_duration_seconds",
                "From a request to its answer",
                FAST_BUCKETS,
            ),
            clients: make.gauge("killick_api_clients", "Connections to the API"),
            event_readers: make.gauge("killick_api_event_readers", "Readers of the event stream"),
            event_readers_dropped: make.counter(
                "killick_api_event_readers_dropped_total",
                "Readers of the event stream that did not keep up",
            ),
            stream_clients: make
                .gauge("killick_api_stream_clients", "Connections to the streaming API"),
            stream_ops: make
                .counters("killick_api_stream_ops_total", "Operations of the streaming API"),
            stream_errors: make
                .counter("killick_api_stream_errors_total", "Lines that were refused"),
        }
    }
}

/// Makes and registers; a name used twice is found by the first test.
pub(super) struct Maker<'r> {
    pub registry: &'r Registry,
}

const TWICE: &str = "each name is used once, and is well-formed";

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> C {
        self.registry.register(Box::new(collector.clone())).expect(TWICE);
        collector
    }

    pub fn build_info(&self) {
        let commit = option_env!("KILLICK_COMMIT").unwrap_or("unknown");
        self.gauge_vec("killick_build_info", "1; what was built", &["version", "commit"])
            .with_label_values(&[env!("CARGO_PKG_VERSION"), commit])
            .set(1);
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help).expect(TWICE))
    }

    pub fn float_counter(&self, name: &str, help: &str) -> GenericCounter<AtomicF64> {
        self.register(GenericCounter::new(name, help).expect(TWICE))
    }

    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help).expect(TWICE))
    }

    pub fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help).expect(TWICE))
    }

    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts).expect(TWICE))
    }

    fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels).expect(TWICE))
    }

    fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels).expect(TWICE))
    }

    fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], b: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(b.to_vec());
        self.register(HistogramVec::new(opts, labels).expect(TWICE))
    }

    pub fn counters<K: Label>(&self, name: &str, help: &str) -> Per<K, IntCounter> {
        let vec = self.counter_vec(name, help, &[K::NAME]);
        Per::new(|k: K| vec.with_label_values(&[k.as_str()]))
    }

    pub fn counters2<K: Label, L: Label>(
        &self,
        name: &str,
        help: &str,
    ) -> Per<K, Per<L, IntCounter>> {
        let vec = self.counter_vec(name, help, &[K::NAME, L::NAME]);
        Per::new(|k: K| Per::new(|l: L| vec.with_label_values(&[k.as_str(), l.as_str()])))
    }

    pub fn gauges<K: Label>(&self, name: &str, help: &str) -> Per<K, IntGauge> {
        let vec = self.gauge_vec(name, help, &[K::NAME]);
        Per::new(|k: K| vec.with_label_values(&[k.as_str()]))
    }

    pub fn gauges2<K: Label, L: Label>(&self, name: &str, help: &str) -> Per<K, Per<L, IntGauge>> {
        let vec = self.gauge_vec(name, help, &[K::NAME, L::NAME]);
        Per::new(|k: K| Per::new(|l: L| vec.with_label_values(&[k.as_str(), l.as_str()])))
    }

    pub fn histograms<K: Label>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Per<K, Histogram> {
        let vec = self.histogram_vec(name, help, &[K::NAME], buckets);
        Per::new(|k: K| vec.with_label_values(&[k.as_str()]))
    }

    pub fn histograms2<K: Label, L: Label>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Per<K, Per<L, Histogram>> {
        let vec = self.histogram_vec(name, help, &[K::NAME, L::NAME], buckets);
        Per::new(|k: K| Per::new(|l: L| vec.with_label_values(&[k.as_str(), l.as_str()])))
    }
}
