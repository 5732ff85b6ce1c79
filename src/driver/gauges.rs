//! Metrics from the state: what rooms count is copied into the registry once a second, so that no
//! hot path pays for a metric and no room knows Prometheus.

use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, State};
use crate::metrics::{
    AttachType, BgpMessage, BgpState, Direction, DropReason, FamilyLabel, FibKind, HandoverResult,
    Metrics, Mode, Phase, Rib, RouteOrigin, SessionState, UpdateAction,
};
use crate::node::{self, HandoverPhase};
use crate::proto::bgp::session::SessionState as BgpSessionState;
use crate::proto::bgp::speaker::{MessageCounts, NeighborView};
use crate::types::{Family, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// Copies for ever. That it does is the sign of life of the routing thread.
pub async fn run(core: Rc<Core>) {
    loop {
        let due = tokio::time::Instant::now() + EVERY;
        tokio::time::sleep_until(due).await;
        core.metrics.event_loop_lag.observe(due.elapsed().as_secs_f64());
        core.metrics.health.beat();
        copy(&core.state.borrow(), &core.metrics, core.now());
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
}

/// Brings a counter to a value that only grows.
fn raise(counter: &prometheus::IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn count(value: usize) -> i64 {
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
    raise(d.get(DropReason::QueueFull), state.links.dropped);
    raise(d.get(DropReason::TableFull), c.refused_full);
    raise(d.get(DropReason::Unauthorised), c.unauthorised_claims);
    raise(d.get(DropReason::OutsidePools), c.refused_not_in_pool);
    raise(d.get(DropReason::SpoofedSource), c.refused_other_node + node.anchor.counters().spoofed);
    copy_bgp(state, metrics, now);
    copy_kernel(state, metrics);
    for (gauge, link) in metrics.ctx.peer_up.iter().zip(state.links.views()) {
        gauge.set(i64::from(link.up));
    }
    metrics.ctx.inflight.set(count(node.mctx.active()));
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
    for (view, out) in speaker.neighbor_views(now).iter().zip(&metrics.bgp.neighbors) {
        copy_neighbor(state, view, out);
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
        let peer = crate::proto::bgp::rib::PeerId(view.peer);
        let speaker = state.node.speaker.as_ref();
        let told = speaker.and_then(|s| s.rib().told_count(peer, family.family));
        if let Some(told) = told {
            prefixes.get(Rib::AdjOut).set(count(told));
        }
        if let Some(conn) = speaker.and_then(|s| s.connection(peer)) {
            out.queue_bytes.set(count(state.connections.queued(conn)));
        }
    }
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
    for family in Family::ALL {
        let routes = metrics.rib.fib_routes.get(FamilyLabel::from(family));
        routes.get(FibKind::Delivery).set(count(state.node.egress.len(family)));
        routes.get(FibKind::Route).set(count(forwarding.reconciler().learnt(family)));
    }
}
