//! The mapping service and the data plane that encapsulates: names, labels and help.

use prometheus::{Gauge, IntCounter, IntGauge};

use super::catalogue::{Direction, Maker};
use super::label::{Label, Per, label};
use crate::dataplane::encap;
use crate::proto::lisp::server;
use crate::proto::lisp::xtr::ProbeState;

label!(Verdict = "result" { Accepted = "accepted", Refused = "refused" });
label!(
    /// Why the map-server did not do something; the words of its log.
    ServerRefusal = "reason" {
        NotForUs = "not_for_us",
        Malformed = "malformed",
        UnknownSite = "unknown_site",
        Authentication = "authentication",
        KeyTrials = "key_trials",
        Replay = "replay",
        PrefixNotAllowed = "prefix_not_allowed",
        EidKind = "eid_kind",
        PairInPool = "pair_in_pool",
        StaleVersion = "stale_version",
        MovedAway = "moved_away",
        XtrLimit = "xtr_limit",
        EidLimit = "eid_limit",
        MergeLimit = "merge_limit",
        Combination = "combination",
        Probe = "probe",
        Solicit = "solicit",
        ItrRloc = "itr_rloc",
        Records = "records",
        SourceRate = "source_rate",
        EidRate = "eid_rate",
        ForwardRate = "forward_rate",
        NoEtr = "no_etr",
        SubscriberNotAllowed = "subscriber_not_allowed",
        SubscriptionLimit = "subscription_limit",
        WarmingUp = "warming_up",
        NotSecured = "not_secured",
        OneTimeKeyBare = "one_time_key_bare",
        OneTimeKeyUnknown = "one_time_key_unknown",
        OneTimeKeyWrong = "one_time_key_wrong",
        UnknownAck = "unknown_ack",
        AckAuthentication = "ack_authentication",
    }
);
label!(
    /// Why an ETR or ITR did not do something.
    XtrRefusal = "reason" {
        /// Asked for an EID that is not registered here.
        UnknownEid = "unknown_eid",
        ProbeInEcm = "probe_in_ecm",
        NoItrRloc = "no_itr_rloc",
        OneTimeKey = "one_time_key",
        ReplyRate = "reply_rate",
        SolicitRate = "solicit_rate",
        SolicitAddress = "solicit_address",
        RegistrationLimit = "registration_limit",
        NotifyAuthentication = "notify_authentication",
        NotifyUnknownServer = "notify_unknown_server",
        NotifyReplay = "notify_replay",
        ReplyNonce = "reply_nonce",
        ReplyNotCovering = "reply_not_covering",
        ReplyOutside = "reply_outside",
        ReplyNotProven = "reply_not_proven",
        RecordOutside = "record_outside",
        RecordOlder = "record_older",
        RecordOvertaken = "record_overtaken",
        MapCacheLimit = "map_cache_limit",
        SmrNotCached = "smr_not_cached",
        SmrRate = "smr_rate",
        RequestIgnored = "request_ignored",
        PublicationReplay = "publication_replay",
        PublicationAuthentication = "publication_authentication",
        NotSubscribed = "not_subscribed",
        ProbeAnswer = "probe_answer",
        ProbeLimit = "probe_limit",
        /// A message for a role that is not configured here.
        NoRole = "no_role",
        NotForAnXtr = "not_for_an_xtr",
        Ecm = "ecm",
    }
);
label!(Registration = "state" {
    /// At this map-server, from whichever ETR.
    Held = "held",
    /// Of this ETR, at one map-server each.
    Waiting = "waiting",
    Confirmed = "confirmed",
    Refused = "refused",
});
label!(RegistrationResult = "result" {
    Confirmed = "confirmed",
    Refused = "refused",
    /// A withdrawal that was never confirmed.
    GivenUp = "given_up",
});
label!(Sending = "kind" { First = "first", Repeated = "repeated" });
label!(Question = "kind" { Lookup = "lookup", Subscription = "subscription" });
label!(MapCacheState = "state" {
    /// Kept up to date by a subscription.
    Pushed = "pushed",
    Asked = "asked",
    /// Without a locator.
    Negative = "negative",
});
label!(MissResult = "result" {
    Asked = "asked",
    AlreadyAsked = "already_asked",
    /// Known meanwhile.
    Known = "known",
    /// Nobody has answered for long: asked again later.
    Held = "held",
    Full = "full",
    NoResolver = "no_resolver",
    NotMobile = "not_mobile",
    DefaultRoute = "default_route",
});
label!(Publication = "result" {
    Sent = "sent",
    Retransmitted = "retransmitted",
    Acknowledged = "acknowledged",
    GivenUp = "given_up",
    /// Not watched, because too many wait.
    Unwatched = "unwatched",
    /// Changes with more subscriptions inside than are told at once.
    Skipped = "skipped",
});
label!(Received = "result" { New = "new", Repeated = "repeated" });
label!(Subscriptions = "state" {
    /// By others, at this map-server.
    Served = "served",
    /// Of this ITR.
    Subscribed = "subscribed",
    Asking = "asking",
    Refused = "refused",
});
label!(SubscriptionResult = "result" {
    /// At this map-server.
    Begun = "begun",
    Ended = "ended",
    /// Of this ITR.
    Confirmed = "confirmed",
    Refused = "refused",
    Dropped = "dropped",
});
label!(RlocState = "state" { Up = "up", Down = "down", Unknown = "unknown" });
label!(ProbeResult = "result" { Sent = "sent", Answered = "answered", Lost = "lost" });
label!(ControlDrop = "reason" {
    Malformed = "malformed",
    TooLong = "too_long",
    ReceiveError = "receive_error",
    SendRefused = "send_refused",
});
label!(EncapPlane = "plane" { Gpe = "gpe", Ebpf = "ebpf", Tun = "tun", Rewrite = "rewrite" });
label!(LocatorState = "state" { Used = "used", Quarantined = "quarantined" });
label!(LocatorRefusal = "reason" { Full = "full", NoPool = "no_pool" });
label!(EncapState = "state" { Pending = "pending", Failed = "failed" });
label!(EncapPath = "direction" {
    Encapsulated = "encapsulated",
    Decapsulated = "decapsulated",
    /// Taken out and put into a tunnel again: the node has left.
    Late = "late",
    /// By the ordinary routes, while the mapping is asked for.
    Around = "around",
});
label!(
    /// [`encap::DropReason`].
    EncapDrop = "reason" {
        NotAllowed = "not_allowed",
        Malformed = "malformed",
        Instance = "instance",
        Policy = "policy",
        Unreachable = "unreachable",
        NotHeld = "not_held",
        TooBig = "too_big",
        TimeToLive = "time_to_live",
        Underlay = "underlay",
        FirstPacket = "first_packet",
    }
);
label!(EncapRefusal = "reason" {
    /// By the back end's table.
    TableFull = "table_full",
    NoGroup = "no_group",
    /// By FE_I's own limits.
    EntryLimit = "entry_limit",
    GroupLimit = "group_limit",
});

impl From<server::Refusal> for ServerRefusal {
    fn from(reason: server::Refusal) -> Self {
        use server::Refusal;
        match reason {
            Refusal::NotForUs => Self::NotForUs,
            Refusal::Malformed => Self::Malformed,
            Refusal::UnknownSite => Self::UnknownSite,
            Refusal::Authentication => Self::Authentication,
            Refusal::KeyTrials => Self::KeyTrials,
            Refusal::Replay => Self::Replay,
            Refusal::PrefixNotAllowed => Self::PrefixNotAllowed,
            Refusal::EidKind => Self::EidKind,
            Refusal::PairInPool => Self::PairInPool,
            Refusal::StaleVersion => Self::StaleVersion,
            Refusal::MovedAway => Self::MovedAway,
            Refusal::XtrLimit => Self::XtrLimit,
            Refusal::EidLimit => Self::EidLimit,
            Refusal::MergeLimit => Self::MergeLimit,
            Refusal::Combination => Self::Combination,
            Refusal::Probe => Self::Probe,
            Refusal::Solicit => Self::Solicit,
            Refusal::ItrRloc => Self::ItrRloc,
            Refusal::Records => Self::Records,
            Refusal::SourceRate => Self::SourceRate,
            Refusal::EidRate => Self::EidRate,
            Refusal::ForwardRate => Self::ForwardRate,
            Refusal::NoEtr => Self::NoEtr,
            Refusal::SubscriberNotAllowed => Self::SubscriberNotAllowed,
            Refusal::SubscriptionLimit => Self::SubscriptionLimit,
            Refusal::WarmingUp => Self::WarmingUp,
            Refusal::NotSecured => Self::NotSecured,
            Refusal::OneTimeKeyBare => Self::OneTimeKeyBare,
            Refusal::OneTimeKeyUnknown => Self::OneTimeKeyUnknown,
            Refusal::OneTimeKeyWrong => Self::OneTimeKeyWrong,
            Refusal::UnknownAck => Self::UnknownAck,
            Refusal::AckAuthentication => Self::AckAuthentication,
        }
    }
}

impl From<encap::DropReason> for EncapDrop {
    fn from(reason: encap::DropReason) -> Self {
        use encap::DropReason;
        match reason {
            DropReason::NotAllowed => Self::NotAllowed,
            DropReason::Malformed => Self::Malformed,
            DropReason::Instance => Self::Instance,
            DropReason::Policy => Self::Policy,
            DropReason::Unreachable => Self::Unreachable,
            DropReason::NotHeld => Self::NotHeld,
            DropReason::TooBig => Self::TooBig,
            DropReason::TimeToLive => Self::TimeToLive,
            DropReason::Underlay => Self::Underlay,
            DropReason::FirstPacket => Self::FirstPacket,
        }
    }
}

impl From<ProbeState> for RlocState {
    fn from(state: ProbeState) -> Self {
        match state {
            ProbeState::Up => Self::Up,
            ProbeState::Down => Self::Down,
            ProbeState::Unknown => Self::Unknown,
        }
    }
}

/// Map-server, ETR and ITR.
pub struct LispMetrics {
    pub dropped: Per<ControlDrop, IntCounter>,
    pub server_refused: Per<ServerRefusal, IntCounter>,
    pub xtr_refused: Per<XtrRefusal, IntCounter>,
    pub registrations: Per<Registration, IntGauge>,
    pub map_registers: Per<Verdict, IntCounter>,
    pub map_registers_sent: Per<Sending, IntCounter>,
    pub registration_refreshes: IntCounter,
    pub registration_results: Per<RegistrationResult, IntCounter>,
    pub stale_registrations: IntCounter,
    pub server_xtrs: IntGauge,
    pub server_rloc_sets: IntGauge,
    pub server_eid_bytes: IntGauge,
    pub map_notifies: IntCounter,
    pub unacknowledged: IntGauge,
    pub publications: Per<Publication, IntCounter>,
    pub publications_received: Per<Received, IntCounter>,
    pub subscriptions: Per<Subscriptions, IntGauge>,
    pub subscription_results: Per<SubscriptionResult, IntCounter>,
    pub map_requests: Per<Verdict, IntCounter>,
    pub map_requests_sent: Per<Question, IntCounter>,
    pub map_requests_forwarded: IntCounter,
    pub map_requests_secured: IntCounter,
    pub map_replies: Per<Direction, IntCounter>,
    pub map_replies_proven: IntCounter,
    pub negative_records: IntCounter,
    pub smr: Per<Direction, IntCounter>,
    pub map_cache_entries: Per<MapCacheState, IntGauge>,
    pub map_cache_misses: Per<MissResult, IntCounter>,
    pub map_cache_evictions: IntCounter,
    pub map_cache_expired: IntCounter,
    pub rlocs: Per<RlocState, IntGauge>,
    pub rloc_probes: Per<ProbeResult, IntCounter>,
    pub rloc_probe_rtt: Gauge,
    pub rloc_probe_rtt_max: Gauge,
    pub late_senders: IntCounter,
    pub departed: IntGauge,
    pub locators: Per<LocatorState, IntGauge>,
    pub locators_refused: Per<LocatorRefusal, IntCounter>,
}

impl LispMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            dropped: make.counters(
                "killick_lisp_messages_dropped_total",
                "Control messages that were not understood, read or sent",
            ),
            server_refused: make.counters(
                "killick_lisp_server_refused_total",
                "Messages and records that the map-server refused",
            ),
            xtr_refused: make.counters(
                "killick_lisp_xtr_refused_total",
                "Messages and records that the ETR or ITR refused or did not send",
            ),
            registrations: make.gauges(
                "killick_lisp_registrations",
                "EIDs held by this map-server; those of this ETR by what map-servers say of them",
            ),
            map_registers: make
                .counters("killick_lisp_map_registers_total", "Map-Registers to this map-server"),
            map_registers_sent: make
                .counters("killick_lisp_map_registers_sent_total", "Map-Registers of this ETR"),
            registration_refreshes: make.counter(
                "killick_lisp_registration_refreshes_total",
                "Records of accepted Map-Registers that changed nothing",
            ),
            registration_results: make.counters(
                "killick_lisp_registration_results_total",
                "Records of this ETR's Map-Registers by what map-servers said of them",
            ),
            stale_registrations: make.counter(
                "killick_lisp_stale_registrations_total",
                "Registrations ignored because a newer binding is known",
            ),
            server_xtrs: make
                .gauge("killick_lisp_server_xtrs", "xTRs that have registered something"),
            server_rloc_sets: make
                .gauge("killick_lisp_server_rloc_sets", "Distinct contents of registrations"),
            server_eid_bytes: make.gauge(
                "killick_lisp_server_eid_bytes",
                "Memory of the map-server that grows with the EIDs",
            ),
            map_notifies: make.counter(
                "killick_lisp_map_notifies_total",
                "Map-Notify messages to ETRs: answers, and that an EID is elsewhere now",
            ),
            unacknowledged: make.gauge(
                "killick_lisp_unacknowledged",
                "Map-Notify messages that wait to be acknowledged",
            ),
            publications: make.counters(
                "killick_lisp_publications_total",
                "Publications sent, and what became of them and of other acknowledged Map-Notifies",
            ),
            publications_received: make
                .counters("killick_lisp_publications_received_total", "Publications believed"),
            subscriptions: make.gauges(
                "killick_lisp_subscriptions",
                "Subscriptions served by this map-server; those of this ITR by state",
            ),
            subscription_results: make.counters(
                "killick_lisp_subscription_results_total",
                "Subscriptions begun and ended here; those of this ITR by what map-servers said",
            ),
            map_requests: make.counters(
                "killick_lisp_map_requests_total",
                "Map-Requests to this map-server or ETR, without probes that were answered",
            ),
            map_requests_sent: make.counters(
                "killick_lisp_map_requests_sent_total",
                "Map-Requests of this ITR, without probes",
            ),
            map_requests_forwarded: make.counter(
                "killick_lisp_map_requests_forwarded_total",
                "Map-Requests passed on to an ETR",
            ),
            map_requests_secured: make.counter(
                "killick_lisp_map_requests_secured_total",
                "Map-Requests to this map-server that ask for a proof (RFC 9303)",
            ),
            map_replies: make
                .counters("killick_lisp_map_replies_total", "Map-Replies, without probes"),
            map_replies_proven: make.counter(
                "killick_lisp_map_replies_proven_total",
                "Map-Replies of this ETR with a proof (RFC 9303)",
            ),
            negative_records: make.counter(
                "killick_lisp_negative_records_total",
                "Records of sent Map-Replies that have no locator",
            ),
            smr: make.counters("killick_lisp_smr_total", "Solicits to ask again"),
            map_cache_entries: make
                .gauges("killick_lisp_map_cache_entries", "Entries of the map-cache"),
            map_cache_misses: make.counters(
                "killick_lisp_map_cache_misses_total",
                "First packets without a mapping, by what was done",
            ),
            map_cache_evictions: make.counter(
                "killick_lisp_map_cache_evictions_total",
                "Entries that made room for others",
            ),
            map_cache_expired: make.counter(
                "killick_lisp_map_cache_expired_total",
                "Entries whose time to live was over",
            ),
            rlocs: make.gauges("killick_lisp_rlocs", "Locators that are probed"),
            rloc_probes: make.counters("killick_lisp_rloc_probes_total", "Probes of locators"),
            rloc_probe_rtt: make.float_gauge(
                "killick_lisp_rloc_probe_rtt_seconds",
                "Round trip of the last answered probe, mean of the locators that are up",
            ),
            rloc_probe_rtt_max: make.float_gauge(
                "killick_lisp_rloc_probe_rtt_max_seconds",
                "Round trip of the last answered probe, of the slowest locator that is up",
            ),
            late_senders: make.counter(
                "killick_lisp_late_senders_total",
                "Times the data plane told who still sends to a node that has left",
            ),
            departed: make
                .gauge("killick_lisp_departed", "Prefixes that have left and are sent on"),
            locators: make.gauges(
                "killick_lisp_locators",
                "Locators of hosts, where destinations are rewritten",
            ),
            locators_refused: make
                .counters("killick_lisp_locators_refused_total", "Hosts that got no locator"),
        }
    }
}

/// The data plane that encapsulates.
pub struct EncapMetrics {
    pub plane: Per<EncapPlane, IntGauge>,
    pub entries: IntGauge,
    pub groups: IntGauge,
    pub decap_prefixes: IntGauge,
    pub unsettled: Per<EncapState, IntGauge>,
    pub errors: IntCounter,
    pub repaired: IntCounter,
    pub refused: Per<EncapRefusal, IntCounter>,
    pub packets: Per<EncapPath, IntCounter>,
    pub bytes: Per<EncapPath, IntCounter>,
    pub dropped: Per<EncapDrop, IntCounter>,
    pub held: IntGauge,
    pub read_errors: IntCounter,
}

impl EncapMetrics {
    pub(super) fn new(make: &Maker<'_>) -> Self {
        Self {
            plane: make.gauges("killick_encap_plane", "1 for the data plane in use"),
            entries: make
                .gauge("killick_encap_entries", "Prefixes of FE_I, with those being removed"),
            groups: make.gauge("killick_encap_groups", "Distinct sets of locators of FE_I"),
            decap_prefixes: make
                .gauge("killick_encap_decap_prefixes", "Prefixes that FE_E takes from tunnels"),
            unsettled: make.gauges(
                "killick_encap_unsettled",
                "Entries that wait to be written, or that the data plane refused",
            ),
            errors: make
                .counter("killick_encap_errors_total", "Changes that the data plane refused"),
            repaired: make.counter(
                "killick_encap_repaired_total",
                "Entries that were gone or different at a comparison",
            ),
            refused: make.counters(
                "killick_encap_refused_total",
                "Changes that were not tried because a limit was reached or their group missing",
            ),
            packets: make.counters("killick_encap_packets_total", "Packets by way"),
            bytes: make.counters("killick_encap_bytes_total", "Octets of packets by way"),
            dropped: make.counters("killick_encap_dropped_packets_total", "Packets dropped"),
            held: make.gauge(
                "killick_encap_held_packets",
                "Packets that wait for a mapping in the data plane",
            ),
            read_errors: make.counter(
                "killick_encap_read_errors_total",
                "Times the data plane's counters could not be read",
            ),
        }
    }
}
