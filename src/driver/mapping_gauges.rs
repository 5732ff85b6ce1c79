//! Metrics of the mapping service and of the data plane that encapsulates, copied once a second.

use prometheus::IntCounter;

use super::core::State;
use super::gauges::{count, raise};
use crate::dataplane::encap::{DropReason, Encapsulator};
use crate::metrics::{
    ControlDrop, Direction, EncapPath, EncapPlane, EncapRefusal, EncapState, Label, LispMetrics,
    LocatorRefusal, LocatorState, MapCacheState, Metrics, MissResult, Per, ProbeResult, Protocol,
    Publication, Question, Received, Registration, RegistrationResult, RlocState, Sending,
    SubscriptionResult, Subscriptions, Verdict, XtrRefusal,
};
use crate::proto::lisp::server::MapServer;
use crate::proto::lisp::xtr::{
    CachedMapping, Etr, Itr, ItrCounts, ProbeState, RegistrationState, RegistrationView,
    SubscriptionState, Xtr,
};
use crate::types::Prefix;
use crate::types::lisp::{EntryCount, InstanceId};

/// Entries looked at per second, so that it takes about a millisecond. In a larger table the
/// numbers are those of the last complete walk.
const MAP_CACHE_STEP: usize = 32_768;
const REGISTRATIONS_STEP: usize = 4_096;

/// Counts a table by the states of its entries, a piece at a time.
struct Census<C, const STATES: usize> {
    cursor: Option<C>,
    counts: [usize; STATES],
}

impl<C, const STATES: usize> Default for Census<C, STATES> {
    fn default() -> Self {
        Self { cursor: None, counts: [0; STATES] }
    }
}

impl<C, const STATES: usize> Census<C, STATES> {
    /// `entries` begin behind the cursor, each with its state. The counts when that was the end.
    fn walk(
        &mut self,
        entries: impl Iterator<Item = (C, usize)>,
        step: usize,
    ) -> Option<[usize; STATES]> {
        let mut seen = 0;
        for (cursor, state) in entries.take(step) {
            self.cursor = Some(cursor);
            self.counts[state] += 1;
            seen += 1;
        }
        if seen == step {
            return None;
        }
        Some(std::mem::take(self).counts)
    }
}

/// What is counted over several seconds.
#[derive(Default)]
pub struct Tables {
    map_cache: Census<Prefix, { MapCacheState::ALL.len() }>,
    registrations: Census<(InstanceId, Prefix), { Registration::ALL.len() }>,
}

pub fn copy(state: &mut State, tables: &mut Tables, metrics: &Metrics) {
    copy_control(state, metrics);
    copy_encap(state, metrics);
    let Some(lisp) = &state.node.lisp else { return };
    let m = &metrics.lisp;
    raise(m.dropped.get(ControlDrop::Malformed), lisp.counters.malformed);
    raise(&m.stale_registrations, lisp.counters.stale_registrations);
    raise(&m.late_senders, lisp.counters.late);
    m.departed.set(count(lisp.departed()));
    if let Some(locators) = &lisp.locators {
        let (held, quarantined) = locators.len();
        m.locators.get(LocatorState::Used).set(count(held - quarantined));
        m.locators.get(LocatorState::Quarantined).set(count(quarantined));
        raise(m.locators_refused.get(LocatorRefusal::Full), locators.counts.full);
        raise(m.locators_refused.get(LocatorRefusal::NoPool), locators.counts.no_pool);
    }
    if let Some(server) = &lisp.server {
        copy_server(server, m);
    }
    if let Some(etr) = &lisp.xtr.etr {
        copy_etr(etr, tables, m);
    }
    if let Some(itr) = &lisp.xtr.itr {
        copy_itr(itr, tables, m);
    }
    copy_answers(lisp.server.as_ref(), &lisp.xtr, m);
    let limits = lisp.ingress.counts();
    raise(metrics.encap.refused.get(EncapRefusal::EntryLimit), limits.entries_full);
    raise(metrics.encap.refused.get(EncapRefusal::GroupLimit), limits.groups_full);
}

fn raise_all<K: Label, const N: usize>(series: &Per<K, IntCounter>, values: [(K, u64); N]) {
    for (key, value) in values {
        raise(series.get(key), value);
    }
}

fn copy_control(state: &State, metrics: &Metrics) {
    let Some(control) = &state.control else { return };
    let c = control.counters();
    for (direction, messages, octets) in
        [(Direction::In, c.received, c.received_octets), (Direction::Out, c.sent, c.sent_octets)]
    {
        raise(metrics.signalling_messages.get(Protocol::Lisp).get(direction), messages);
        raise(metrics.signalling_bytes.get(Protocol::Lisp).get(direction), octets);
    }
    raise_all(
        &metrics.lisp.dropped,
        [
            (ControlDrop::TooLong, c.too_long),
            (ControlDrop::ReceiveError, c.receive_errors),
            (ControlDrop::SendRefused, c.send_refused),
        ],
    );
}

fn copy_server(server: &MapServer, m: &LispMetrics) {
    let c = server.counters();
    for (reason, n) in &c.refused {
        raise(m.server_refused.get((*reason).into()), *n);
    }
    raise(m.map_registers.get(Verdict::Accepted), c.registers - c.registers_refused);
    raise(m.map_registers.get(Verdict::Refused), c.registers_refused);
    raise(&m.registration_refreshes, c.refreshes);
    raise(&m.map_notifies, c.notifies);
    let (retransmitted, unwatched) = server.retransmitted();
    raise_all(
        &m.publications,
        [
            (Publication::Sent, c.publications),
            (Publication::Retransmitted, retransmitted),
            (Publication::Acknowledged, c.acknowledged),
            (Publication::GivenUp, c.given_up),
            (Publication::Unwatched, unwatched),
            (Publication::Skipped, c.inside_skipped),
        ],
    );
    raise(m.subscription_results.get(SubscriptionResult::Begun), c.subscribed);
    raise(m.subscription_results.get(SubscriptionResult::Ended), c.unsubscribed);
    raise(&m.map_requests_forwarded, c.forwarded);
    raise(&m.map_requests_secured, c.secured);
    raise(&m.negative_records, c.negative_replies);
    let sizes = server.sizes();
    m.registrations.get(Registration::Held).set(count(sizes.eids));
    m.subscriptions.get(Subscriptions::Served).set(count(sizes.subscriptions));
    m.server_xtrs.set(count(sizes.xtrs));
    m.server_rloc_sets.set(count(sizes.rloc_sets));
    m.server_eid_bytes.set(count(sizes.eid_bytes));
    m.unacknowledged.set(count(sizes.outstanding));
}

/// One that is refused or waits somewhere is not confirmed, whatever other servers say.
fn registration_state(view: &RegistrationView) -> Registration {
    let has = |state| view.servers.iter().any(|at| at.state == state);
    match () {
        () if has(RegistrationState::Refused) => Registration::Refused,
        () if has(RegistrationState::Queued) || has(RegistrationState::Sent) => {
            Registration::Waiting
        }
        () => Registration::Confirmed,
    }
}

fn copy_etr(etr: &Etr, tables: &mut Tables, m: &LispMetrics) {
    let c = etr.registrar.counts();
    raise(m.map_registers_sent.get(Sending::First), c.sent - c.repeated);
    raise(m.map_registers_sent.get(Sending::Repeated), c.repeated);
    raise_all(
        &m.registration_results,
        [
            (RegistrationResult::Confirmed, c.confirmed),
            (RegistrationResult::Refused, c.not_confirmed),
            (RegistrationResult::GivenUp, c.withdrawals_given_up),
        ],
    );
    let e = etr.counts();
    raise(m.smr.get(Direction::Out), e.solicited);
    raise(&m.map_replies_proven, e.replies_proven);
    raise_all(
        &m.xtr_refused,
        [
            (XtrRefusal::UnknownEid, e.request_unknown_eid),
            (XtrRefusal::ProbeInEcm, e.request_probe_in_ecm),
            (XtrRefusal::NoItrRloc, e.request_no_rloc),
            (XtrRefusal::OneTimeKey, e.request_bad_key),
            (XtrRefusal::ReplyRate, e.reply_limited),
            (XtrRefusal::SolicitRate, e.solicit_limited),
            (XtrRefusal::SolicitAddress, e.solicit_bad_rloc),
            (XtrRefusal::RegistrationLimit, c.full),
            (XtrRefusal::NotifyAuthentication, c.notify_bad_digest),
            (XtrRefusal::NotifyUnknownServer, c.notify_unknown_server),
            (XtrRefusal::NotifyReplay, c.notify_replayed),
        ],
    );
    let registrations = etr.registrar.registrations(tables.registrations.cursor);
    let by_state = registrations.map(|r| ((r.iid, r.prefix), registration_state(&r).index()));
    if let Some(counts) = tables.registrations.walk(by_state, REGISTRATIONS_STEP) {
        for state in [Registration::Waiting, Registration::Confirmed, Registration::Refused] {
            m.registrations.get(state).set(count(counts[state.index()]));
        }
    }
}

fn cache_state(mapping: &CachedMapping) -> MapCacheState {
    match () {
        () if mapping.rlocs.iter().next().is_none() => MapCacheState::Negative,
        () if mapping.is_pushed() => MapCacheState::Pushed,
        () => MapCacheState::Asked,
    }
}

fn copy_itr(itr: &Itr, tables: &mut Tables, m: &LispMetrics) {
    let c = itr.counts();
    let s = c.subscriptions;
    raise(m.map_requests_sent.get(Question::Lookup), c.requests_sent);
    raise(m.map_requests_sent.get(Question::Subscription), s.requests);
    raise(m.map_replies.get(Direction::In), c.replies);
    raise(m.smr.get(Direction::In), c.smr);
    raise(m.publications_received.get(Received::New), s.publications);
    raise(m.publications_received.get(Received::Repeated), s.repeated);
    raise(m.subscription_results.get(SubscriptionResult::Confirmed), s.confirmed);
    raise(m.subscription_results.get(SubscriptionResult::Refused), s.refused);
    raise(m.subscription_results.get(SubscriptionResult::Dropped), s.dropped);
    raise(&m.map_cache_evictions, c.evicted);
    raise(&m.map_cache_expired, c.expired);
    copy_misses(&c, m);
    raise_all(
        &m.xtr_refused,
        [
            (XtrRefusal::ReplyNonce, c.reply_unknown_nonce),
            (XtrRefusal::ReplyNotCovering, c.reply_not_covering),
            (XtrRefusal::ReplyOutside, c.reply_outside),
            (XtrRefusal::ReplyNotProven, c.reply_not_proven),
            (XtrRefusal::RecordOutside, c.record_outside),
            (XtrRefusal::RecordOlder, c.record_older),
            (XtrRefusal::RecordOvertaken, c.record_overtaken),
            (XtrRefusal::MapCacheLimit, c.cache_full),
            (XtrRefusal::SmrNotCached, c.smr_not_cached),
            (XtrRefusal::SmrRate, c.smr_limited),
            (XtrRefusal::RequestIgnored, c.request_ignored),
            (XtrRefusal::PublicationReplay, s.replayed),
            (XtrRefusal::PublicationAuthentication, s.bad_digest),
            (XtrRefusal::NotSubscribed, s.not_subscribed),
            (XtrRefusal::ProbeAnswer, c.probes.refused),
            (XtrRefusal::ProbeLimit, c.probes.full),
        ],
    );
    let entries = itr.map_cache(tables.map_cache.cursor);
    let by_state = entries.map(|(prefix, mapping)| (prefix, cache_state(mapping).index()));
    if let Some(counts) = tables.map_cache.walk(by_state, MAP_CACHE_STEP) {
        for state in MapCacheState::ALL {
            m.map_cache_entries.get(*state).set(count(counts[state.index()]));
        }
    }
    copy_subscriptions(itr, m);
    copy_probes(itr, &c, m);
}

fn copy_misses(c: &ItrCounts, m: &LispMetrics) {
    let not_asked = [
        (MissResult::AlreadyAsked, c.miss_asked_already),
        (MissResult::Known, c.miss_known),
        (MissResult::Held, c.miss_held),
        (MissResult::Full, c.miss_full),
        (MissResult::NoResolver, c.miss_no_resolver),
        (MissResult::NotMobile, c.miss_not_mobile),
        (MissResult::DefaultRoute, c.miss_default),
    ];
    let asked = c.misses - not_asked.iter().map(|(_, n)| n).sum::<u64>();
    raise_all(&m.map_cache_misses, not_asked);
    raise(m.map_cache_misses.get(MissResult::Asked), asked);
}

/// As many as are configured.
fn copy_subscriptions(itr: &Itr, m: &LispMetrics) {
    let mut counts = [0; Subscriptions::ALL.len()];
    for subscription in itr.subscriptions(None) {
        let state = match subscription.state {
            SubscriptionState::Subscribed => Subscriptions::Subscribed,
            SubscriptionState::Waiting | SubscriptionState::Asking => Subscriptions::Asking,
            SubscriptionState::Refused(_) => Subscriptions::Refused,
            SubscriptionState::Unsubscribing | SubscriptionState::Ended => continue,
        };
        counts[state.index()] += 1;
    }
    for state in [Subscriptions::Subscribed, Subscriptions::Asking, Subscriptions::Refused] {
        m.subscriptions.get(state).set(count(counts[state.index()]));
    }
}

/// Locators that are probed have a limit: all of them take less than a millisecond.
fn copy_probes(itr: &Itr, c: &ItrCounts, m: &LispMetrics) {
    raise_all(
        &m.rloc_probes,
        [
            (ProbeResult::Sent, c.probes.sent),
            (ProbeResult::Answered, c.probes.answered),
            (ProbeResult::Lost, c.probes.lost),
        ],
    );
    let mut counts = [0; RlocState::ALL.len()];
    let (mut sum, mut answered, mut slowest) = (0.0, 0.0, 0.0);
    for probe in itr.probes(None) {
        counts[RlocState::from(probe.state).index()] += 1;
        if let (ProbeState::Up, Some(rtt)) = (probe.state, probe.rtt) {
            sum += rtt.as_secs_f64();
            answered += 1.0;
            slowest = f64::max(slowest, rtt.as_secs_f64());
        }
    }
    for state in RlocState::ALL {
        m.rlocs.get(*state).set(count(counts[state.index()]));
    }
    m.rloc_probe_rtt.set(if answered > 0.0 { sum / answered } else { 0.0 });
    m.rloc_probe_rtt_max.set(slowest);
}

/// What map-server and ETR both do.
fn copy_answers(server: Option<&MapServer>, xtr: &Xtr, m: &LispMetrics) {
    let s = server.map(MapServer::counters);
    let e = xtr.etr.as_ref().map(Etr::counts).unwrap_or_default();
    let unanswered = e.request_unknown_eid
        + e.request_probe_in_ecm
        + e.request_no_rloc
        + e.request_bad_key
        + e.reply_limited;
    let (taken, refused) =
        s.map_or((0, 0), |s| (s.requests - s.requests_refused, s.requests_refused));
    raise(m.map_requests.get(Verdict::Accepted), taken + e.requests_answered);
    raise(m.map_requests.get(Verdict::Refused), refused + unanswered);
    raise(m.map_replies.get(Direction::Out), s.map_or(0, |s| s.replies) + e.requests_answered);
    let x = xtr.counts;
    raise_all(
        &m.xtr_refused,
        [
            (XtrRefusal::NoRole, x.map_request + x.map_reply + x.map_notify),
            (XtrRefusal::NotForAnXtr, x.not_for_an_xtr),
            (XtrRefusal::Ecm, x.bad_ecm),
        ],
    );
}

fn copy_encap(state: &mut State, metrics: &Metrics) {
    let Some(plane) = &mut state.encap else { return };
    let m = &metrics.encap;
    for name in EncapPlane::ALL {
        m.plane.get(*name).set(i64::from(name.as_str() == plane.caps().name));
    }
    let summary = plane.summary();
    m.entries.set(count(summary.entries));
    m.groups.set(count(summary.groups));
    m.decap_prefixes.set(count(summary.decap));
    m.unsettled.get(EncapState::Pending).set(count(summary.pending));
    m.unsettled.get(EncapState::Failed).set(count(summary.failed));
    let c = *plane.counters();
    raise(&m.errors, c.failed);
    raise(&m.repaired, c.repaired);
    raise(m.refused.get(EncapRefusal::TableFull), c.full);
    raise(m.refused.get(EncapRefusal::NoGroup), c.no_group);
    let Ok(totals) = plane.plane_mut().totals() else {
        m.read_errors.inc();
        return;
    };
    let path = |path, count: EntryCount| {
        raise(m.packets.get(path), count.packets);
        raise(m.bytes.get(path), count.octets);
    };
    path(EncapPath::Encapsulated, totals.encapsulated);
    path(EncapPath::Decapsulated, totals.decapsulated);
    path(EncapPath::Late, totals.late);
    path(EncapPath::Around, totals.around);
    for (reason, n) in DropReason::ALL.into_iter().zip(totals.dropped) {
        raise(m.dropped.get(reason.into()), n);
    }
    m.held.set(i64::try_from(totals.held).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_of_a_large_table_takes_several_steps() {
        let table: Vec<usize> = (0..10).map(|n| n % 2).collect();
        let mut census = Census::<usize, 2>::default();
        let mut told = Vec::new();
        for _ in 0..9 {
            let from = census.cursor.map_or(0, |at| at + 1);
            let entries = table.iter().enumerate().skip(from).map(|(at, state)| (at, *state));
            told.push(census.walk(entries, 5));
        }
        // A step that ends exactly with the table finds out by the next one.
        let whole = [None, None, Some([5, 5])];
        assert_eq!(told, whole.repeat(3));
    }
}
