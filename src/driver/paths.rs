//! The transient data plane in the turns of the routing thread: what the node asks of it is in force
//! before the node's other outputs are, and what it tells is one more input.

use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::RunError;
use super::core::{BorrowedFd, Core, State};
use super::gauges::raise;
use super::setup;
use super::transient::{Settings, Transient};
use crate::config::{self, Checked};
use crate::dataplane::filter::UplinkHold;
use crate::dataplane::transient::{Config, TransientLimits, WhenFull};
use crate::metrics::{Label, Metrics, PathDrop, PathMarkers, PathPackets, PathRole};
use crate::types::transient::{PathCounts, PathEnding, TransientChange, TransientEvent};

/// As the configuration wants it, and the filter of access links with it: what it marks is held.
pub fn start(core: &Core, config: &Checked) -> Result<(), RunError> {
    let (Some(section), Some(end)) = (&config.transient, setup::path_end(config)) else {
        return Ok(());
    };
    let mut state = core.state.borrow_mut();
    let state = &mut *state;
    let Some(forwarding) = state.forwarding.as_mut().filter(|_| !config.access.is_empty()) else {
        return Ok(()); // nobody attaches here
    };
    let default = TransientLimits::default();
    let limits = TransientLimits {
        packets_per_prefix: section.packets_per_prefix,
        octets_per_prefix: section.octets_per_prefix,
        packets: section.packets,
        octets: section.octets,
        when_full: match section.when_full {
            config::WhenFull::DropNewest => WhenFull::Newest,
            config::WhenFull::DropOldest => WhenFull::Oldest,
        },
        hold: section.hold,
        forward: section.forward,
        quiet: section.quiet,
        order: section.order,
        // Longer than the pMA, should it have the same times.
        gate: section.hold + section.forward + (default.gate - default.hold - default.forward),
        ..default
    };
    let mut settings = Settings::new(Config { limits, prefer: section.prefer, ..Config::new(end) });
    settings.device.clone_from(&section.device);
    settings.diversion.table = section.table;
    // Without the filter everything passes at once.
    let is_filtered = config.access.iter().any(|access| access.uplink_filter);
    if !is_filtered {
        settings.uplink = None;
    }
    let transient = Transient::open(&settings)
        .map_err(RunError::io("cannot set up [transient] (is there /dev/net/tun?)"))?;
    if is_filtered {
        let pools = config.mobility.iter().flat_map(|m| &m.pools).map(|pool| pool.prefix);
        forwarding.hold_uplink(Some(UplinkHold {
            mark: settings.diversion.mark,
            probe_mark: settings.diversion.probe_mark,
            pools: pools.collect(),
        }));
    }
    state.transient = Some(transient);
    Ok(())
}

/// In force when this returns. What cannot be is over for the node.
pub fn apply(state: &mut State, change: &TransientChange) {
    let Some(transient) = &mut state.transient else { return };
    let Err(error) = transient.apply(change) else { return };
    tracing::warn!(?change, %error, "packets do not wait for this node");
    let (TransientChange::Hold { prefix, .. }
    | TransientChange::Forward { prefix, .. }
    | TransientChange::Gate { prefix, .. }) = *change
    else {
        return;
    };
    let (how, counts) = (PathEnding::Failed, PathCounts::default());
    state.path_events.push(TransientEvent::Ended { prefix, how, counts });
}

impl Core {
    /// What became of paths. True when there may be more.
    pub fn turn_transient(self: &Rc<Self>) -> bool {
        let mut events = Vec::new();
        let mut state = self.state.borrow_mut();
        let more = match state.transient.as_mut().map(|transient| transient.events(&mut events)) {
            Some(Ok(more)) => more,
            Some(Err(error)) => {
                tracing::error!(%error, "packets of moving nodes no longer wait");
                state.transient = None;
                if let Some(forwarding) = &mut state.forwarding {
                    forwarding.hold_uplink(None);
                }
                false
            }
            None => false,
        };
        drop(state);
        self.turn(|node, now, out| {
            events.into_iter().for_each(|event| node.handle_transient(event, now, out));
        });
        more
    }
}

/// Copied once a second.
pub fn copy(state: &State, metrics: &Metrics) {
    let Some(transient) = &state.transient else { return };
    let (t, m) = (transient.totals(), &metrics.transient);
    let to_i64 = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    for (role, value) in
        [(PathRole::Hold, t.holds), (PathRole::Forward, t.forwards), (PathRole::Gate, t.gates)]
    {
        m.paths.get(role).set(to_i64(value));
    }
    for (event, value) in [
        (PathPackets::Held, t.held),
        (PathPackets::Forwarded, t.forwarded),
        (PathPackets::Received, t.received),
        (PathPackets::Written, t.written),
        (PathPackets::Reordered, t.reordered),
        (PathPackets::Missing, t.missing),
    ] {
        raise(m.packets.get(event), value);
    }
    for (result, value) in [
        (PathMarkers::Asked, t.markers_asked),
        (PathMarkers::Answered, t.markers_answered),
        (PathMarkers::Late, t.flows_late),
        (PathMarkers::Full, t.flows_full),
        (PathMarkers::EndUnanswered, t.ends_unanswered),
    ] {
        raise(m.markers.get(result), value);
    }
    for (why, value) in PathDrop::ALL.iter().zip(t.dropped) {
        raise(m.dropped.get(*why), value);
    }
    raise(&m.device_dropped, t.device_dropped);
    m.waiting.set(to_i64(t.waiting));
    m.waiting_bytes.set(to_i64(t.waiting_octets));
    m.sources.set(to_i64(t.sources));
}

/// Runs until there is nothing to listen to.
pub async fn run(core: Rc<Core>) {
    let Some(fd) = core.state.borrow().transient.as_ref().map(Transient::event_fd) else { return };
    // SAFETY: the descriptor belongs to the data plane, which the core owns; this task holds the
    // core, and ends when that has let go of the data plane.
    let registered = unsafe { AsyncFd::register_with_interest(BorrowedFd(fd), Interest::READABLE) };
    let fd = match registered {
        Ok(fd) => fd,
        Err(error) => return tracing::error!(%error, "transient paths cannot be listened to"),
    };
    while core.state.borrow().transient.is_some() {
        let Ok(mut ready) = fd.readable().await else { return };
        ready.clear_ready();
        while core.turn_transient() {
            tokio::task::yield_now().await;
        }
    }
}
