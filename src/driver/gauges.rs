//! Metrics from the state: what rooms count is copied into the registry once a second, so that no
//! hot path pays for a metric and no room knows Prometheus.

use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, State};
use super::{mapping_gauges, paths};
use crate::metrics::{
    AttachType, BgpMessage, BgpState, Direction, DropReason, FamilyLabel, FibKind, FibOp,
    HandoverResult, Metrics, Mode, NotificationCode, Phase, Protocol, Rib, Role, RouteOrigin,
    SessionState, TransferResult, UpdateAction,
};
use crate::node::{self, HandoverPhase};
use crate::proto::bgp::rib::PeerId;
use crate::proto::bgp::session::SessionState as BgpSessionState;
use crate::proto::bgp::speaker::{MessageCounts, NeighborView};
use crate::types::seam::{LeaveReason, Sighting};
use crate::types::{Family, Instant};

const SIGHTINGS: [Sighting; 9] = [
    Sighting::Arp,
    Sighting::NeighborSolicitation,
    Sighting::NeighborAdvertisement,
    Sighting::RouterSolicitation,
    Sighting::Packet,
    Sighting::Api,
    Sighting::Report,
    Sighting::MapRegister,
    Sighting::Restart,
];
const LEAVES: [LeaveReason; 5] = [
    LeaveReason::LinkDown,
    LeaveReason::NeighborFailed,
    LeaveReason::NewerClaim,
    LeaveReason::LeaseEnd,
    LeaveReason::Api,
];
const EVERY: Duration = Duration::from_secs(1);

/// Copies for ever. That it does is the sign of life of the routing thread.
pub async fn run(core: Rc<Core>) {
    let mut tables = mapping_gauges::Tables::default();
    loop {
        let due = tokio::time::Instant::now() + EVERY;
        tokio::time::sleep_until(due).await;
        core.metrics.event_loop_lag.observe(due.elapsed().as_secs_f64());
        core.metrics.health.beat();
        let mut state = core.state.borrow_mut();
        copy(&state, &core.metrics, core.now());
        paths::copy(&state, &core.metrics);
        mapping_gauges::copy(&mut state, &mut tables, &core.metrics);
    }
}

pub fn observe_handover(metrics: &Metrics, phase: HandoverPhase, mode: node::Mode, took: Duration) {
    let mode = match mode {
        node::Mode::Reactive => Mode::Reactive,
        node::Mode::Predictive => Mode::Predictive,
        node::Mode::Initial | node::Mode::Provisional => Mode::None,
    };
    let phase = match phase {
        HandoverPhase::Context => Phase::Context,
        HandoverPhase::Delivery => Phase::Prepare,
        HandoverPhase::Announce => Phase::Total,
    };
    metrics.mobility.handover_duration.get(phase).get(mode).observe(took.as_secs_f64());
    if phase == Phase::Context && mode != Mode::None {
        metrics.ctx.transfer_duration.get(mode).observe(took.as_secs_f64());
    }
}

/// Brings a counter to a value that only grows.
pub fn raise(counter: &prometheus::IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

pub fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn copy(state: &State, metrics: &Metrics, now: Instant) {
    let node = &state.node;
    let c = &node.counters;
    let m = &metrics.mobility;
    let moving = node.handovers_in_progress();
    let local = node.anchor.len();
    m.sessions.get(SessionState::Local).set(count(local));
    m.sessions.get(SessionState::Remote).set(count(node.location.len().saturating_sub(local)));
    m.sessions.get(SessionState::Moving).set(count(moving));
    m.handovers_in_progress.set(count(moving));
    raise(m.attaches.get(AttachType::Initial), c.attaches_initial);
    raise(m.attaches.get(AttachType::Handover), c.attaches_handover);
    raise(m.attaches.get(AttachType::Return), c.attaches_return);
    raise(m.attaches.get(AttachType::Provisional), c.handovers_provisional);
    raise(m.handovers.get(HandoverResult::Ok), c.handovers_completed);
    raise(m.handovers.get(HandoverResult::WithoutContext), c.handovers_provisional);
    raise(m.handovers.get(HandoverResult::Overtaken), c.released_newer_claim);
    raise(m.handovers.get(HandoverResult::Failed), c.delivery_errors);
    raise(&m.stale_generations, c.stale_generations_ignored);
    raise(&m.duplicate_anchors, c.duplicate_anchors);
    let d = &metrics.drops;
    raise(d.get(DropReason::Malformed), c.malformed_frames);
    let a = node.anchor.counters();
    let x = node.mctx.counters();
    raise(d.get(DropReason::QueueFull), state.links.dropped);
    raise(d.get(DropReason::TableFull), c.refused_full + a.full + x.imports_table_full);
    raise(d.get(DropReason::Unauthorised), c.unauthorised_claims + x.not_authorised);
    raise(d.get(DropReason::OutsidePools), c.refused_not_in_pool + a.outside_pools);
    raise(d.get(DropReason::Unknown), x.stale);
    raise(d.get(DropReason::SpoofedSource), c.refused_other_node + a.spoofed);
    for by in SIGHTINGS {
        raise(m.sightings.get(by.into()), node.timeline.sightings(by));
    }
    for why in LEAVES {
        raise(m.leaves.get(why.into()), node.timeline.leaves(why));
    }
    super::bfd::copy_gauges(state, metrics);
    copy_bgp(state, metrics, now);
    copy_kernel(state, metrics);
    copy_transfers(state, metrics);
}

fn copy_transfers(state: &State, metrics: &Metrics) {
    let (ctx, c) = (&metrics.ctx, state.node.mctx.counters());
    let (mut limited, mut messages, mut octets) = (0, [0; 2], [0; 2]);
    for link in state.links.views() {
        if let Some(gauge) = ctx.peer_up.get(&link.name) {
            gauge.set(i64::from(link.up));
        }
        let l = link.counters;
        limited += l.requests_dropped_link + l.requests_dropped_node;
        messages = [messages[0] + l.messages_in, messages[1] + l.messages_out];
        octets = [octets[0] + l.octets_in, octets[1] + l.octets_out];
    }
    for (i, direction) in [Direction::In, Direction::Out].into_iter().enumerate() {
        raise(metrics.signalling_messages.get(Protocol::Cxtp).get(direction), messages[i]);
        raise(metrics.signalling_bytes.get(Protocol::Cxtp).get(direction), octets[i]);
    }
    let import = |mode, result| ctx.transfers.get(Role::Import).get(mode).get(result);
    raise(import(Mode::Predictive, TransferResult::Ok), c.imports_predictive);
    raise(import(Mode::Reactive, TransferResult::Ok), c.imports_reactive + c.imports_late);
    raise(import(Mode::Reactive, TransferResult::Refused), c.imports_failed);
    raise(import(Mode::Predictive, TransferResult::Timeout), c.predicted_expired);
    // The pMA does not know at the end of an export how it began.
    let export = |result| ctx.transfers.get(Role::Export).get(Mode::None).get(result);
    raise(export(TransferResult::Ok), c.exports_transferred);
    raise(export(TransferResult::Refused), c.exports_refused);
    raise(export(TransferResult::Timeout), c.exports_expired);
    raise(export(TransferResult::Cancelled), c.exports_cancelled);
    raise(&ctx.timeouts, c.requests_timed_out);
    raise(&ctx.retransmissions, c.retransmissions);
    raise(&ctx.rate_limited, limited);
    ctx.inflight.set(count(state.node.mctx.active()));
}

fn copy_bgp(state: &State, metrics: &Metrics, now: Instant) {
    let Some(speaker) = &state.node.speaker else { return };
    let rib = speaker.rib();
    let counters = rib.counters();
    raise(&metrics.bgp.as_path_loops, counters.looped_as_path);
    raise(&metrics.bgp.rr_loops, counters.looped_originator + counters.looped_cluster);
    raise(&metrics.bgp.connections_refused, speaker.counters().unknown_connections);
    for family in Family::ALL {
        let label = FamilyLabel::from(family);
        let routes = metrics.rib.routes.get(label);
        let best = rib.counts(family).best;
        let own = state.node.iec.announced(family);
        routes.get(RouteOrigin::Mobility).set(count(own));
        routes.get(RouteOrigin::Bgp).set(count(best.saturating_sub(own)));
        metrics.mobility.host_routes.get(label).set(count(own));
    }
    let views = speaker.neighbor_views(now);
    for (view, out) in views.iter().zip(&metrics.bgp.neighbors) {
        copy_neighbor(state, view, out);
    }
    // Counting takes up to a millisecond each: one neighbour's turn per second.
    let second = usize::try_from(now.as_micros() / 1_000_000).unwrap_or(0);
    let index = second % views.len().max(1);
    if let (Some(view), Some(out)) = (views.get(index), metrics.bgp.neighbors.get(index)) {
        for family in Family::ALL {
            if let Some(told) = rib.told_count(PeerId(view.peer), family) {
                out.prefixes.get(family.into()).get(Rib::AdjOut).set(count(told));
            }
        }
    }
    let sum = |pick: fn(&NeighborView) -> MessageCounts| {
        views.iter().map(pick).fold((0, [0; 9]), |(messages, mut codes), c| {
            codes.iter_mut().zip(c.notification_codes).for_each(|(sum, n)| *sum += n);
            (messages + c.total(), codes)
        })
    };
    for (direction, (messages, codes)) in [
        (Direction::In, sum(|v| v.counters.messages_in)),
        (Direction::Out, sum(|v| v.counters.messages_out)),
    ] {
        raise(metrics.signalling_messages.get(Protocol::Bgp).get(direction), messages);
        let notifications = metrics.bgp.notifications.get(direction);
        for (code, n) in (0..).zip(codes) {
            raise(notifications.get(NotificationCode::from_wire(code)), n);
        }
    }
}

fn copy_neighbor(state: &State, view: &NeighborView, out: &crate::metrics::NeighborMetrics) {
    out.set_state(match view.state {
        _ if view.stopped => BgpState::Shutdown,
        BgpSessionState::Idle => BgpState::Idle,
        BgpSessionState::Connect => BgpState::Connect,
        BgpSessionState::Active => BgpState::Active,
        BgpSessionState::OpenSent => BgpState::OpenSent,
        BgpSessionState::OpenConfirm => BgpState::OpenConfirm,
        BgpSessionState::Established => BgpState::Established,
    });
    let c = &view.counters;
    raise(&out.flaps, c.flaps);
    raise(&out.bfd_downs, c.path_downs);
    raise(&out.max_prefix_exceeded, c.max_prefix_teardowns);
    raise(out.update_errors.get(UpdateAction::AttributeDiscard), c.updates_attribute_discard);
    raise(out.update_errors.get(UpdateAction::TreatAsWithdraw), c.updates_treated_as_withdraw);
    raise(out.update_errors.get(UpdateAction::SessionReset), c.updates_session_reset);
    copy_messages(out, Direction::In, &c.messages_in);
    copy_messages(out, Direction::Out, &c.messages_out);
    let hold = view.session.as_ref().map_or(0, |s| s.hold_time_s);
    out.hold_time.set(i64::try_from(hold).unwrap_or(i64::MAX));
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |t| t.as_secs().saturating_sub(view.since_s));
    let established = if view.session.is_some() { since } else { 0 };
    out.established_time.set(i64::try_from(established).unwrap_or(0));
    let mut stale = 0;
    for family in &view.prefixes {
        let prefixes = out.prefixes.get(FamilyLabel::from(family.family));
        prefixes.get(Rib::Accepted).set(count(family.accepted));
        prefixes.get(Rib::AdjIn).set(count(family.accepted));
        stale += if family.stale { family.accepted } else { 0 };
    }
    let conn = state.node.speaker.as_ref().and_then(|s| s.connection(PeerId(view.peer)));
    out.queue_bytes.set(conn.map_or(0, |conn| count(state.connections.queued(conn))));
    out.stale_routes.set(count(stale));
}

fn copy_messages(
    out: &crate::metrics::NeighborMetrics,
    direction: Direction,
    counts: &MessageCounts,
) {
    let messages = out.messages.get(direction);
    raise(messages.get(BgpMessage::Open), counts.open);
    raise(messages.get(BgpMessage::Update), counts.update);
    raise(messages.get(BgpMessage::Notification), counts.notification);
    raise(messages.get(BgpMessage::Keepalive), counts.keepalive);
    raise(messages.get(BgpMessage::RouteRefresh), counts.route_refresh);
}

fn copy_kernel(state: &State, metrics: &Metrics) {
    let Some(forwarding) = &state.forwarding else { return };
    let summary = forwarding.reconciler().summary();
    let counters = forwarding.reconciler().counters();
    metrics.rib.fib_pending.set(count(summary.pending));
    metrics.rib.fib_failed.set(count(summary.failed));
    raise(&metrics.rib.fib_resyncs, counters.repaired);
    raise(metrics.rib.fib_errors.get(FibOp::Add), counters.failed);
    for family in Family::ALL {
        let routes = metrics.rib.fib_routes.get(FamilyLabel::from(family));
        routes.get(FibKind::Delivery).set(count(state.node.egress.len(family)));
        routes.get(FibKind::Route).set(count(forwarding.reconciler().learnt(family)));
    }
}
