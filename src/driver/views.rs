//! Views of the state for the API. They read, and never decide.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::core::{Clock, State};
use super::store::Store;
use crate::api::views::{
    AttachmentView, AttributeView, BfdSessionView, BgpStatusView, ContextPrefixView, ContextView,
    EncapStatusView, FibRouteView, KernelStatusView, LispStatusView, MappingMoveView,
    MobilityStatusView, NeighborFamilyView, NeighborView, PathView, PeerView, RouteDetailView,
    RouteView, SessionView, StatusView, StepView, TraceView, TransferView,
};
use crate::api::{ApiError, ErrorCode};
use crate::dataplane::{Kind, transient};
use crate::iec::StageView;
use crate::node::lisp::Lisp;
use crate::node::timeline::{Detail, Event, Learnt, Phase};
use crate::proto::bfd::Hops;
use crate::proto::bgp::rib::{self, PeerId};
use crate::proto::bgp::session::SessionState;
use crate::proto::lisp::server::MapServer;
use crate::proto::lisp::xtr::Itr;
use crate::types::lisp::MapVersion;
use crate::types::seam::Context;
use crate::types::{AnchorId, Binding, Family, Instant, MnId, Prefix};
use crate::wire::bgp::{AsSegment, Attributes, Origin};

pub fn status(state: &State, now: Instant) -> StatusView {
    let node = &state.node;
    let own = node.own();
    let location = &node.location;
    let trouble = state.store.as_ref().and_then(Store::trouble);
    let waiting_for: Vec<String> = node
        .is_restarting()
        .then(|| "the tables of the BGP neighbors".to_owned())
        .into_iter()
        .chain(trouble.map(|e| format!("the state directory: {e}")))
        .collect();
    StatusView {
        version: env!("CARGO_PKG_VERSION").into(),
        name: state.names.get(&own).cloned().unwrap_or_default(),
        anchor_id: Some(own),
        mode: node.mode_word().into(),
        ready: waiting_for.is_empty(),
        waiting_for,
        uptime_s: (now - Instant::ZERO).as_secs(),
        bgp: node.speaker.as_ref().map(|speaker| {
            let views = speaker.neighbor_views(now);
            let up = |v: &&crate::proto::bgp::speaker::NeighborView| {
                v.state == SessionState::Established
            };
            let counts = Family::ALL.map(|f| speaker.rib().counts(f));
            BgpStatusView {
                local_as: node.local_as(),
                router_id: Some(speaker.rib().router_id()),
                neighbors: views.len() as u64,
                established: views.iter().filter(up).count() as u64,
                routes: counts.iter().map(|c| c.best as u64).sum(),
                paths: counts.iter().map(|c| c.paths as u64).sum(),
            }
        }),
        mobility: node.has_mobility().then(|| MobilityStatusView {
            bindings: location.len() as u64,
            attached: node.anchor.len() as u64,
            announced: Family::ALL.map(|f| node.iec.announced(f) as u64).iter().sum(),
            handovers_in_progress: node.handovers_in_progress() as u64,
            handovers: node.counters.handovers_completed,
            handovers_failed: node.counters.delivery_errors,
        }),
        lisp: state.node.lisp.as_ref().map(|lisp| lisp_status(state, lisp)),
        kernel: kernel(state),
        peers: peers(state, now),
    }
}

fn lisp_status(state: &State, lisp: &Lisp) -> LispStatusView {
    let server = lisp.server.as_ref().map(MapServer::sizes);
    let (etr, itr) = (lisp.xtr.etr.as_ref(), lisp.xtr.itr.as_ref());
    let roles = [("map-server", server.is_some()), ("etr", etr.is_some()), ("itr", itr.is_some())];
    let registered = || etr.map_or(0, |etr| etr.registrar.len());
    let subscribed = || itr.map_or(0, |itr| itr.subscriptions(None).count());
    LispStatusView {
        roles: roles.into_iter().filter(|r| r.1).map(|r| r.0.to_owned()).collect(),
        registrations: server.map_or_else(registered, |s| s.eids) as u64,
        map_cache: itr.map_or(0, Itr::map_cache_len) as u64,
        subscriptions: server.map_or_else(subscribed, |s| s.subscriptions) as u64,
        data_plane: state.encap.as_ref().map(|plane| {
            let summary = plane.summary();
            EncapStatusView {
                name: plane.caps().name.to_owned(),
                entries: summary.entries as u64,
                pending: summary.pending as u64,
                failed: summary.failed as u64,
            }
        }),
    }
}

fn kernel(state: &State) -> KernelStatusView {
    let Some(forwarding) = &state.forwarding else { return KernelStatusView::default() };
    let summary = forwarding.reconciler().summary();
    KernelStatusView {
        routes: summary.installed as u64,
        failed: summary.failed as u64,
        pending: summary.pending as u64,
    }
}

fn peers(state: &State, now: Instant) -> Vec<PeerView> {
    let view = |link: super::links::LinkView| PeerView {
        name: link.name,
        anchor_id: link.anchor,
        role: if state.node.is_controller(link.anchor) { "controller" } else { "anchor" }.into(),
        address: None,
        state: if link.up { "up" } else { "connecting" }.into(),
        since_s: (now - link.since).as_secs(),
        last_error: link.last_error,
    };
    state.links.views().into_iter().map(view).collect()
}

fn state_word(state: SessionState, stopped: bool) -> &'static str {
    match state {
        _ if stopped => "shutdown",
        SessionState::Idle => "idle",
        SessionState::Connect => "connect",
        SessionState::Active => "active",
        SessionState::OpenSent => "open-sent",
        SessionState::OpenConfirm => "open-confirm",
        SessionState::Established => "established",
    }
}

pub fn neighbors(state: &State, now: Instant) -> Vec<NeighborView> {
    let Some(speaker) = &state.node.speaker else { return Vec::new() };
    let total = |c: &crate::proto::bgp::speaker::MessageCounts| {
        c.open + c.update + c.notification + c.keepalive + c.route_refresh
    };
    let view = |v: crate::proto::bgp::speaker::NeighborView| NeighborView {
        address: v.address,
        description: Some(v.description.clone()).filter(|d| !d.is_empty()),
        remote_as: v.remote_as,
        router_id: v.session.as_ref().map(|s| s.router_id),
        state: state_word(v.state, v.stopped).into(),
        since_s: v.since_s,
        flaps: v.counters.flaps,
        last_error: v.last_error.clone(),
        route_reflector_client: v.route_reflector_client,
        hold_time_s: v.session.as_ref().map_or(0, |s| u32::try_from(s.hold_time_s).unwrap_or(0)),
        families: v
            .prefixes
            .iter()
            .map(|f| NeighborFamilyView {
                family: f.family,
                accepted: f.accepted as u64,
                refused: v.counters.prefixes_rejected,
                advertised: speaker.rib().told_count(PeerId(v.peer), f.family).map(|n| n as u64),
                stale: if f.stale { f.accepted as u64 } else { 0 },
                end_of_rib_received: f.end_of_rib_received,
            })
            .collect(),
        capabilities: v.session.as_ref().map(capabilities).unwrap_or_default(),
        messages_in: total(&v.counters.messages_in),
        messages_out: total(&v.counters.messages_out),
        queue_bytes: speaker
            .connection(PeerId(v.peer))
            .map_or(0, |conn| state.connections.queued(conn) as u64),
    };
    speaker.neighbor_views(now).into_iter().map(view).collect()
}

pub fn bfd_sessions(state: &State, now: Instant) -> Vec<BfdSessionView> {
    let Some(bfd) = &state.bfd else { return Vec::new() };
    let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let view = |s: crate::proto::bfd::SessionView| BfdSessionView {
        address: s.path.remote,
        local_address: s.path.local,
        interface: s.path.interface.clone(),
        multihop: s.path.hops == Hops::Multi,
        state: s.state.as_str().into(),
        since_s: now.saturating_since(s.since).as_secs(),
        diagnostic: s.diagnostic.to_string(),
        remote_state: s.remote_state.as_str().into(),
        remote_diagnostic: s.remote_diagnostic.to_string(),
        discriminator: s.discriminator,
        remote_discriminator: s.remote_discriminator,
        control_plane_independent: s.control_plane_independent,
        authenticated: s.authenticated,
        transmit_interval_us: us(s.transmit_interval),
        detection_time_us: us(s.detection_time),
        multiplier: s.multiplier,
        packets_in: s.counters.received,
        packets_out: s.counters.sent,
        packets_discarded: s.counters.discarded,
        ups: s.counters.ups,
        downs: s.counters.downs,
        neighbors: state.node.liveness.neighbors(s.discriminator).collect(),
    };
    bfd.views().into_iter().map(view).collect()
}

fn capabilities(s: &crate::proto::bgp::speaker::EstablishedView) -> Vec<String> {
    let mut out: Vec<String> = s.families.iter().map(|f| format!("{f}-unicast")).collect();
    let mut add = |on: bool, name: &str| {
        if on {
            out.push(name.to_owned());
        }
    };
    add(s.four_octet_as, "4-octet-as");
    add(s.route_refresh, "route-refresh");
    add(s.enhanced_route_refresh, "enhanced-route-refresh");
    add(s.extended_messages, "extended-messages");
    add(s.extended_next_hop, "extended-next-hop");
    add(s.graceful_restart.is_some(), "graceful-restart");
    out
}

fn as_path(attributes: &Attributes) -> String {
    let join =
        |list: &[u32], by: &str| list.iter().map(u32::to_string).collect::<Vec<_>>().join(by);
    let segment = |s: &AsSegment| match s {
        AsSegment::Sequence(list) => join(list, " "),
        AsSegment::Set(list) => format!("{{{}}}", join(list, ",")),
        AsSegment::ConfedSequence(list) => format!("({})", join(list, " ")),
        AsSegment::ConfedSet(list) => format!("[{}]", join(list, ",")),
    };
    attributes.as_path.0.iter().map(segment).collect::<Vec<_>>().join(" ")
}

fn community(value: u32) -> String {
    use crate::wire::bgp::attributes::{NO_ADVERTISE, NO_EXPORT, NO_EXPORT_SUBCONFED};
    match value {
        NO_EXPORT => "no-export".into(),
        NO_ADVERTISE => "no-advertise".into(),
        NO_EXPORT_SUBCONFED => "no-export-subconfed".into(),
        other => format!("{}:{}", other >> 16, other & 0xffff),
    }
}

fn path_view(state: &State, prefix: Prefix, path: &rib::PathView<'_>, paths: usize) -> RouteView {
    let a = path.attributes;
    RouteView {
        prefix,
        next_hop: Some(a.next_hop.addr()),
        local_pref: a.local_pref,
        med: a.med,
        as_path: as_path(a),
        origin: match a.origin {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        }
        .into(),
        communities: a.communities.iter().copied().map(community).collect(),
        large_communities: a
            .large_communities
            .iter()
            .map(|c| format!("{}:{}:{}", c.global, c.local1, c.local2))
            .collect(),
        from: address_of(state, path.peer),
        best: path.best,
        stale: path.stale,
        paths: u32::try_from(paths).unwrap_or(u32::MAX),
        kernel: if path.best { kernel_word(state, prefix) } else { "none" }.into(),
    }
}

fn address_of(state: &State, peer: PeerId) -> Option<IpAddr> {
    let speaker = state.node.speaker.as_ref()?;
    Some(speaker.neighbor_config(peer)?.transport.remote.ip())
}

fn kernel_word(state: &State, prefix: Prefix) -> &'static str {
    let entry = state.forwarding.as_ref().and_then(|f| {
        let reconciler = f.reconciler();
        reconciler.find(prefix, Kind::Delivery).or_else(|| reconciler.find(prefix, Kind::Bgp))
    });
    entry.map_or("none", |e| entry_word(&e))
}

fn entry_word(entry: &crate::dataplane::reconcile::EntryView) -> &'static str {
    match (&entry.error, &entry.installed) {
        (Some(_), _) => "failed",
        (None, Some(_)) => "installed",
        (None, None) => "pending",
    }
}

/// The best path, or that of the neighbour that was asked about.
pub fn route(state: &State, route: &rib::RouteView<'_>, peer: Option<PeerId>) -> Option<RouteView> {
    let wanted = |p: &&rib::PathView<'_>| peer.map_or(p.best, |peer| p.peer == peer);
    let path = route.paths.iter().find(wanted).or(route.paths.first())?;
    Some(path_view(state, route.prefix, path, route.paths.len()))
}

pub fn route_detail(state: &State, route: &rib::RouteView<'_>) -> RouteDetailView {
    let speaker = state.node.speaker.as_ref();
    let told = speaker.map(|s| s.rib().told_peers(route.prefix)).unwrap_or_default();
    RouteDetailView {
        prefix: route.prefix,
        paths: route
            .paths
            .iter()
            .map(|p| path_view(state, route.prefix, p, route.paths.len()))
            .collect(),
        advertised_to: told.into_iter().filter_map(|p| address_of(state, p)).collect(),
    }
}

pub fn path(state: &State, path: &transient::PathView, now: Instant) -> PathView {
    PathView {
        prefix: path.prefix,
        mn: state.node.location.find(path.prefix).map(|binding| binding.mn.clone()),
        state: match path.state {
            transient::PathState::Hold => "hold",
            transient::PathState::Forward => "forward",
            transient::PathState::Gate => "gate",
            transient::PathState::Closing => "closing",
        }
        .into(),
        peer: path.peer,
        since_ms: u64::try_from((now - path.since).as_millis()).unwrap_or(u64::MAX),
        waiting: path.waiting,
        waiting_octets: path.waiting_octets,
        held: path.counts.held,
        forwarded: path.counts.forwarded,
        dropped: path.counts.dropped,
        flows: path.flows,
    }
}

/// Bindings as sessions; of those that are not here, the timeline knows since when.
pub fn sessions<'a>(
    state: &State,
    bindings: impl Iterator<Item = &'a Binding> + Clone,
    now: Instant,
) -> Vec<SessionView> {
    let elsewhere = bindings.clone().filter(|b| state.node.anchor.session(&b.mn).is_none());
    let since = state.node.timeline.bound_since(elsewhere.map(|b| b.prefix).collect());
    bindings.map(|b| session(state, b, since.get(&b.prefix).copied(), now)).collect()
}

fn session(state: &State, binding: &Binding, since: Option<Instant>, now: Instant) -> SessionView {
    let node = &state.node;
    let prefix = binding.prefix;
    let here = node.anchor.session(&binding.mn);
    let stage = node.iec.stage(prefix);
    SessionView {
        mn: binding.mn.clone(),
        prefix,
        anchor: binding.anchor,
        anchor_name: state.names.get(&binding.anchor).cloned(),
        fe_e: binding.fe_e,
        home: binding.home,
        generation: binding.generation,
        state: match stage {
            Some(StageView::Preparing) => "preparing",
            Some(StageView::Claimed) => "claiming",
            Some(StageView::Settled) => "settled",
            Some(StageView::Home) => "attached",
            None => "elsewhere",
        }
        .into(),
        announced: match (node.iec.is_announced(prefix), stage) {
            (false, _) => "none",
            (true, Some(StageView::Settled)) => "settled",
            (true, _) => "claim",
        }
        .into(),
        since_s: here.as_ref().map(|s| s.since).or(since).map(|at| (now - at).as_secs()),
        lifetime_s: binding.lifetime.remaining(now).map(|d| d.as_secs()),
        attachment: here.and_then(|s| {
            let attachment = s.attachment?;
            Some(AttachmentView {
                interface: state.access.name(attachment.link)?.to_owned(),
                mac: attachment.mac,
                by: Some(s.by),
            })
        }),
    }
}

pub fn context(context: &Context) -> ContextView {
    let hex = |octets: &[u8]| octets.iter().map(|b| format!("{b:02x}")).collect();
    ContextView {
        mn: context.mn.clone(),
        generation: context.generation,
        anchor: context.anchor,
        prefixes: context
            .prefixes
            .iter()
            .map(|p| ContextPrefixView { prefix: p.prefix, home: p.home, lifetime_s: p.lifetime_s })
            .collect(),
        attributes: context
            .attributes
            .iter()
            .map(|(kind, value)| AttributeView { kind: *kind, value: hex(value) })
            .collect(),
    }
}

pub fn attributes_from(views: &[AttributeView]) -> Result<Vec<(u16, Vec<u8>)>, ApiError> {
    let octets = |text: &str| -> Option<Vec<u8>> {
        if !text.len().is_multiple_of(2) || !text.is_ascii() {
            return None;
        }
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
    };
    let attribute = |v: &AttributeView| {
        let value = octets(&v.value).ok_or_else(|| {
            let what = format!("attribute {}: not hexadecimal octets", v.kind);
            ApiError::new(ErrorCode::BadRequest, what)
        })?;
        Ok((v.kind, value))
    };
    views.iter().map(attribute).collect()
}

/// Transfers shown at most.
const TRANSFERS_MAX: usize = 1_000;

pub fn transfers(state: &State, now: Instant) -> Vec<TransferView> {
    let name = |anchor: Option<AnchorId>| match anchor {
        Some(anchor) => state.names.get(&anchor).cloned().unwrap_or_else(|| anchor.to_string()),
        None => "-".into(),
    };
    let view = |v: crate::mctx::TransferView| TransferView {
        mn: v.mn.unwrap_or_else(|| MnId::from_mac(Default::default())),
        peer: name(v.peer),
        role: match v.role {
            crate::mctx::TransferRole::Import => "import",
            crate::mctx::TransferRole::Export => "export",
        }
        .into(),
        mode: match v.mode {
            crate::mctx::Mode::Predictive => "predictive",
            crate::mctx::Mode::Reactive => "reactive",
        }
        .into(),
        state: if v.status.is_empty() { v.state.to_owned() } else { v.status },
        age_s: (now - Instant::from_micros(v.started_us)).as_secs(),
        duration_us: Some(v.elapsed_us),
        retransmissions: 0,
    };
    state.node.mctx.transfers(now, TRANSFERS_MAX).into_iter().map(view).collect()
}

/// `cursor` is a number of entries to skip. That walks them, some 20 ns each (a million: 20 ms per
/// page); what comes or goes between two pages shifts the rest.
pub fn fib_routes(state: &State, cursor: u32, limit: usize) -> (Vec<FibRouteView>, Option<u32>) {
    let Some(forwarding) = &state.forwarding else { return (Vec::new(), None) };
    let reconciler = forwarding.reconciler();
    let skip = cursor as usize;
    let items: Vec<FibRouteView> = reconciler
        .views(None)
        .skip(skip)
        .take(limit)
        .map(|e| {
            let hop = e.installed;
            let delivery = state.node.egress.find(e.prefix).filter(|_| e.kind == Kind::Delivery);
            FibRouteView {
                prefix: e.prefix,
                kind: match e.kind {
                    Kind::Delivery => "delivery",
                    Kind::Bgp => "route",
                }
                .into(),
                via: e.next_hop.or(hop.and_then(|h| h.gateway)),
                interface: hop.map(|h| {
                    state.access.name(h.link).map_or_else(|| h.link.0.to_string(), str::to_owned)
                }),
                mac: delivery.map(|d| d.attachment.mac),
                table: reconciler.plane().options().table,
                state: entry_word(&e).into(),
                error: e.error,
            }
        })
        .collect();
    let next = (items.len() == limit).then(|| u32::try_from(skip + limit).ok()).flatten();
    (items, next)
}

/// Steps of one timeline, at most.
const STEPS_MAX: usize = 64;
/// Timelines shown.
const TRACES_MAX: usize = 50;

/// The timelines of a node, newest first: one begins whenever the node is sighted, or is about to
/// leave, or somebody asks for its context; at an ingress router, whenever its mapping changes.
pub fn traces(state: &State, mn: &MnId, clock: &Clock) -> Vec<TraceView> {
    let node = &state.node;
    let prefixes = node.location.prefixes_of(mn);
    let mut traces: Vec<Vec<&Event>> = Vec::new();
    for event in node.timeline.of(mn, prefixes) {
        let is_mapping = |e: &Event| matches!(e.phase, Phase::MappingSet | Phase::MappingGone);
        let begins = matches!(
            event.phase,
            Phase::Sighted | Phase::MoveAnnounced | Phase::ContextSent | Phase::Restored
        );
        // v4 and v6 of one node arrive together: one handover.
        let goes_on = traces.last().is_some_and(|t| {
            let first = t[0];
            let begins = begins || is_mapping(first) && is_mapping(event);
            t.len() < STEPS_MAX
                && (!begins
                    || (event.phase == first.phase
                        && event.prefix != first.prefix
                        && event.at - first.at < std::time::Duration::from_millis(100)))
        });
        match traces.last_mut().filter(|_| goes_on) {
            Some(trace) => trace.push(event),
            None => traces.push(vec![event]),
        }
    }
    let mut views = Vec::new();
    let mut leads_to = BTreeMap::new();
    for events in &traces {
        let first = events[0];
        views.push(match (first.phase, first.detail) {
            (Phase::MappingSet, Detail::Mapping(learnt)) => {
                mapping_trace(mn, events, Some(learnt), &mut leads_to, clock)
            }
            (Phase::MappingGone, _) => mapping_trace(mn, events, None, &mut leads_to, clock),
            _ => trace(state, mn, events, clock),
        });
    }
    views.reverse();
    views.truncate(TRACES_MAX);
    views
}

/// What an ingress router has learnt, and when the first packet went that way.
fn mapping_trace(
    mn: &MnId,
    events: &[&Event],
    learnt: Option<Learnt>,
    leads_to: &mut BTreeMap<Prefix, Option<IpAddr>>,
    clock: &Clock,
) -> TraceView {
    let first = events[0];
    let to = learnt.and_then(|l| l.rloc);
    let mapping = MappingMoveView {
        from: leads_to.insert(first.prefix, to).flatten(),
        to,
        version: learnt.map_or(0, |l| l.version.0),
    };
    TraceView {
        mn: mn.clone(),
        started_unix_us: clock.unix_us(first.at),
        from: None,
        to: None,
        generation: first.generation,
        kind: "mapping".into(),
        mode: match learnt {
            Some(Learnt { is_pushed: true, .. }) => "publication",
            Some(Learnt { is_pushed: false, .. }) => "reply",
            None => "none",
        }
        .into(),
        result: "done".into(),
        mapping: Some(mapping),
        steps: events.iter().map(|e| step(first.at, e)).collect(),
    }
}

fn trace(state: &State, mn: &MnId, events: &[&Event], clock: &Clock) -> TraceView {
    let own = state.node.own();
    let first = events[0];
    let has = |phase| events.iter().any(|e| e.phase == phase);
    let peer = events.iter().find_map(|e| e.peer);
    let leaving = has(Phase::Transferred) || has(Phase::ContextSent) || has(Phase::MoveAnnounced);
    let of = |phase| events.iter().find(|e| e.phase == phase).and_then(|e| e.peer);
    let (from, to) = match (leaving, has(Phase::Bound)) {
        (true, false) => (Some(own), peer),
        (_, true) => {
            // At a controller the sighting names the anchor, the binding the one before it.
            let from = of(Phase::Bound).or(of(Phase::ContextRequested));
            (from.or(of(Phase::ContextReceived)), Some(of(Phase::Sighted).unwrap_or(own)))
        }
        (false, false) => (of(Phase::Left), None),
    };
    // Told to neighbours, to a map-server, or to subscribers; or there is nothing to tell.
    let done = [
        Phase::Announced,
        Phase::Registered,
        Phase::Published,
        Phase::AtHome,
        Phase::Released,
        Phase::Left,
    ];
    let home = state.node.pool_of(first.prefix).and_then(|(_, home)| home);
    TraceView {
        mn: mn.clone(),
        started_unix_us: clock.unix_us(first.at),
        from,
        to,
        generation: events.iter().map(|e| e.generation).max().unwrap_or_default(),
        kind: match () {
            () if leaving || has(Phase::Left) && !has(Phase::Bound) => "leave",
            () if has(Phase::Bound) && from.is_none() => "initial",
            () if has(Phase::AtHome) || has(Phase::Bound) && to == home => "return",
            () => "handover",
        }
        .into(),
        mode: match () {
            () if has(Phase::MoveAnnounced) => "predictive",
            () if has(Phase::ContextRequested) => "reactive",
            () if has(Phase::ContextReceived) => "predictive",
            () => "none",
        }
        .into(),
        result: match (done.into_iter().any(has), has(Phase::Refused)) {
            (_, true) => "failed",
            (true, false) => "done",
            (false, false) => "running",
        }
        .into(),
        mapping: None,
        steps: events.iter().map(|e| step(first.at, e)).collect(),
    }
}

fn step(start: Instant, event: &Event) -> StepView {
    let mut what = Vec::new();
    if event.generation.0 > 0 {
        what.push(format!("generation {}", event.generation));
    }
    if !event.detail.as_str().is_empty() {
        what.push(event.detail.as_str().to_owned());
    }
    if let Detail::Mapping(Learnt { version, rloc, .. }) = event.detail {
        if version != MapVersion::NULL {
            what.push(format!("version {}", version.0));
        }
        what.push(match rloc {
            Some(rloc) => format!("to {rloc}"),
            None => "no locators".to_owned(),
        });
    }
    StepView {
        at_us: u64::try_from((event.at - start).as_micros()).unwrap_or(u64::MAX),
        phase: event.phase.as_str().into(),
        prefix: Some(event.prefix),
        peer: event.peer,
        what: what.join(", "),
    }
}
