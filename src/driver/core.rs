//! The turn: one input into the node, everything that follows from it out to the world.
//!
//! Each task of the routing thread (a connection's reader, a timer, an API request) calls
//! [`Core::turn`]. Within a turn nothing waits, so no other task sees a half-done change:
//!
//! ```text
//! input → Node → outputs ─┬ forwarding entries → kernel → Applied → Node → more outputs …
//!                         ├ records → store.commit()          (before anything leaves)
//!                         └ then: BGP octets, context transfer messages, frames
//! ```
//!
//! What peers hear is therefore what the disk knows, and the kernel delivers before a route says
//! so. A storm of input is read in large pieces, one turn each, and so packs by itself.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle};

use super::access::Access;
use super::bfd::Bfd;
use super::bgp::Connections;
use super::links::Links;
use super::lisp::udp::Control;
use super::monitor::Monitor;
use super::paths;
use super::store::{Record as Stored, Store, StoreError, StoredBinding};
use super::transient::Transient;
use crate::api::views::Event as View;
use crate::dataplane::encap::Encapsulator;
use crate::dataplane::encap::reconcile::Reconciler;
use crate::dataplane::{Event, Forwarding};
use crate::metrics::{Metrics, Waiting};
use crate::node::{Node, Observation, Output, Record};
use crate::proto::bgp::rib::PeerId;
use crate::proto::bgp::speaker;
use crate::types::lisp::{EncapChange, EncapEvent, XtrId};
use crate::types::seam::ForwardingChange;
use crate::types::transfer::Signal;
use crate::types::transient::TransientEvent;
use crate::types::{AnchorId, Instant, Lifetime};

/// The one clock. Monotonic for the node, and the wall clock's value at its zero for people.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    zero: std::time::Instant,
    unix_at_zero: Duration,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            zero: std::time::Instant::now(),
            unix_at_zero: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    pub fn now(&self) -> Instant {
        let us = self.zero.elapsed().as_micros();
        Instant::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
    }

    /// When tokio's clock shows this instant.
    pub fn tokio(&self, at: Instant) -> tokio::time::Instant {
        (self.zero + Duration::from_micros(at.as_micros())).into()
    }

    /// Microseconds since 1970 at this instant.
    pub fn unix_us(&self, at: Instant) -> u64 {
        u64::try_from(self.unix_at_zero.as_micros()).unwrap_or(0).saturating_add(at.as_micros())
    }

    /// The instant of a time since 1970; the start when it is before.
    pub fn instant(&self, unix: Duration) -> Instant {
        Instant::ZERO + unix.saturating_sub(self.unix_at_zero)
    }
}

/// What encapsulates, chosen by configuration, and what it should have.
pub type Plane = Reconciler<Box<dyn Encapsulator>>;

/// What the routing thread owns.
pub struct State {
    pub node: Node,
    pub forwarding: Option<Forwarding>,
    pub store: Option<Store>,
    pub connections: Connections,
    pub links: Links,
    pub access: Access,
    /// Path liveness, on a thread of its own.
    pub bfd: Option<Bfd>,
    /// The control sockets of the mapping service.
    pub control: Option<Control>,
    /// What encapsulates.
    pub encap: Option<Plane>,
    /// Where packets of moving nodes wait.
    pub transient: Option<Transient>,
    /// Not yet carried to the node.
    pub path_events: Vec<TransientEvent>,
    pub monitor: Monitor,
    /// Addresses of the external world by which people know the anchors.
    pub names: BTreeMap<AnchorId, String>,
    /// Names of those who may subscribe here.
    pub subscribers: BTreeMap<XtrId, String>,
    pruned: bool,
    out: Vec<Output>,
    entries: Vec<ForwardingChange>,
    said: Vec<speaker::Output>,
    signals: Vec<(AnchorId, Signal)>,
    /// Control messages of this turn.
    messages: Vec<(std::net::SocketAddr, Option<std::net::IpAddr>, Vec<u8>)>,
    encap_changes: Vec<EncapChange>,
    sensors: BTreeSet<crate::types::seam::IfIndex>,
}

pub struct Core {
    pub state: RefCell<State>,
    pub clock: Clock,
    pub metrics: std::sync::Arc<Metrics>,
    timer: Notify,
    armed: Cell<Instant>,
    /// The node has more to do than one turn should take.
    more: Cell<bool>,
    /// Somebody compares the kernel with what it should have: one at a time.
    pub comparing: Cell<bool>,
}

impl State {
    pub fn new(
        node: Node,
        forwarding: Option<Forwarding>,
        store: Option<Store>,
        links: Links,
        access: Access,
        monitor: Monitor,
        names: BTreeMap<AnchorId, String>,
    ) -> Self {
        Self {
            node,
            forwarding,
            store,
            connections: Connections::default(),
            links,
            access,
            bfd: None,
            control: None,
            encap: None,
            transient: None,
            path_events: Vec::new(),
            monitor,
            names,
            subscribers: BTreeMap::new(),
            pruned: false,
            out: Vec::new(),
            entries: Vec::new(),
            said: Vec::new(),
            signals: Vec::new(),
            messages: Vec::new(),
            encap_changes: Vec::new(),
            sensors: BTreeSet::new(),
        }
    }
}

impl Core {
    pub fn new(state: State, clock: Clock, metrics: std::sync::Arc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(state),
            clock,
            metrics,
            timer: Notify::new(),
            armed: Cell::new(Instant::FAR_FUTURE),
            more: Cell::new(false),
            comparing: Cell::new(false),
        })
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Gives one input to the node and lets everything follow.
    pub fn turn<R>(
        self: &Rc<Self>,
        input: impl FnOnce(&mut Node, Instant, &mut Vec<Output>) -> R,
    ) -> R {
        let mut state = self.state.borrow_mut();
        let now = self.clock.now();
        let mut out = std::mem::take(&mut state.out);
        let result = input(&mut state.node, now, &mut out);
        self.follow(&mut state, &mut out, now);
        state.out = out;
        result
    }

    fn follow(self: &Rc<Self>, state: &mut State, out: &mut Vec<Output>, now: Instant) {
        let mut more = false;
        loop {
            // What is left of a long list waits for another turn: readers come in between.
            if !more {
                more = state.node.handle_best_changes(now, out);
            }
            for event in std::mem::take(&mut state.path_events) {
                state.node.handle_transient(event, now, out);
            }
            if out.is_empty() {
                break;
            }
            for output in out.drain(..) {
                self.sort(state, output);
            }
            if state.entries.is_empty() {
                continue;
            }
            let entries = std::mem::take(&mut state.entries);
            let mut events = Vec::new();
            if let Some(forwarding) = &mut state.forwarding {
                let timer = self.metrics.rib.fib_apply.start_timer();
                forwarding.apply(&entries, now, &mut events);
                timer.observe_duration();
            }
            for event in events {
                // What has just been written is confirmed as of after the write.
                self.handle_kernel(state, event, self.clock.now(), out);
            }
        }
        self.apply_encap(state);
        self.commit(state);
        let mut said = std::mem::take(&mut state.said);
        more |= state.node.flush_bgp(&mut said);
        for output in said {
            state.connections.handle(output, self);
        }
        state.connections.write_all();
        for (conn, congested) in state.connections.take_congestion() {
            state.node.handle_bgp_congested(conn, congested, now);
            more |= !congested; // what it has missed
        }
        for (to, signal) in std::mem::take(&mut state.signals) {
            state.links.send(to, signal, now);
        }
        if let Some(control) = &mut state.control {
            for (to, from, octets) in state.messages.drain(..) {
                control.queue(to, from, &octets);
                state.node.reuse_buffer(octets);
            }
            control.flush();
        }
        for link in std::mem::take(&mut state.sensors) {
            state.access.refilter(link, &state.node);
        }
        state.monitor.publish(&mut state.node, &self.clock);
        self.more.set(more);
        self.arm(state);
    }

    /// One output to where it is collected or done.
    fn sort(&self, state: &mut State, output: Output) {
        match output {
            Output::Forwarding(change) => state.entries.push(change),
            Output::Persist { prefix, record } => self.persist(state, prefix, record),
            Output::Bgp(output) => {
                self.tell(state, &output);
                state.said.push(output);
            }
            Output::Signal { to, signal } => state.signals.push((to, signal)),
            Output::Lisp { to, from, octets } => state.messages.push((to, from, octets)),
            Output::Transient(change) => paths::apply(state, &change),
            Output::Encap(change) => state.encap_changes.push(change),
            Output::Note(note) => {
                if let Some(store) = &mut state.store {
                    store.put_note(note);
                }
            }
            Output::Frame { link, octets } => state.access.send(link, &octets),
            Output::LinkNodes { link } => {
                state.sensors.insert(link);
            }
            Output::Observed(Observation::Handover { phase, mode, took }) => {
                super::gauges::observe_handover(&self.metrics, phase, mode, took);
            }
            Output::Observed(Observation::Stay(took)) => {
                self.metrics.mobility.session_duration.observe(took.as_secs_f64());
            }
        }
    }

    /// Entries are in the data plane before anybody is told that they are.
    fn apply_encap(&self, state: &mut State) {
        if state.encap_changes.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut state.encap_changes);
        if let Some(plane) = &mut state.encap {
            plane.apply(&changes, self.clock.now());
        }
    }

    /// A batch of control messages. True when there may be more.
    pub fn turn_control(self: &Rc<Self>) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(mut control) = state.control.take() else { return false };
        let now = self.clock.now();
        let mut out = std::mem::take(&mut state.out);
        let more = control.recv_batch(|from, local, octets| {
            state.node.handle_lisp(from, local, octets, now, &mut out);
        });
        state.control = Some(control);
        self.follow(state, &mut out, now);
        state.out = out;
        more
    }

    /// What the encapsulating data plane noticed. True when there may be more.
    pub fn turn_encap(self: &Rc<Self>) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(plane) = &mut state.encap else { return false };
        let mut events = Vec::new();
        let more = plane.plane_mut().handle_readable(&mut events).unwrap_or_else(|error| {
            tracing::error!(%error, "the encapsulating data plane cannot be read");
            false
        });
        self.carry_encap(state, events);
        more
    }

    fn carry_encap(self: &Rc<Self>, state: &mut State, events: Vec<EncapEvent>) {
        let now = self.clock.now();
        let mut out = std::mem::take(&mut state.out);
        for event in events {
            state.node.handle_encap_event(event, now, &mut out);
        }
        self.follow(state, &mut out, now);
        state.out = out;
    }

    fn turn_encap_timeout(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(plane) = &mut state.encap else { return };
        let now = self.clock.now();
        if plane.poll_timeout() <= now {
            let mut events = Vec::new();
            plane.handle_timeout(now, &mut events);
            self.carry_encap(state, events);
        }
    }

    /// Which of the next entries carried packets; the cursor, `None` at the end.
    pub fn ask_used(
        self: &Rc<Self>,
        after: Option<crate::types::Prefix>,
        limit: usize,
    ) -> Option<crate::types::Prefix> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let plane = state.encap.as_mut()?;
        let mut prefixes = Vec::new();
        // A data plane that cannot tell keeps what it has until its TTL ends.
        let next = plane.plane_mut().used(after, limit, &mut prefixes).ok().flatten();
        if !prefixes.is_empty() {
            self.carry_encap(state, vec![EncapEvent::Used { prefixes }]);
        }
        next
    }

    /// Lets the kernel's side do something, and carries what it says to the node.
    pub fn turn_kernel<R>(
        self: &Rc<Self>,
        call: impl FnOnce(&mut Forwarding, Instant, &mut Vec<Event>) -> R,
    ) -> Option<R> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = self.clock.now();
        let mut events = Vec::new();
        let result = call(state.forwarding.as_mut()?, now, &mut events);
        let mut out = std::mem::take(&mut state.out);
        for event in events {
            self.handle_kernel(state, event, now, &mut out);
        }
        self.follow(state, &mut out, now);
        state.out = out;
        Some(result)
    }

    fn handle_kernel(
        self: &Rc<Self>,
        state: &mut State,
        event: Event,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match event {
            Event::Applied(applied) => state.node.handle_applied(applied, now, out),
            Event::AccessReady { name, link } => {
                tracing::info!(interface = %name, "access link is ready");
                if let Some(config) = state.access.open(&name, link, self) {
                    state.node.add_access_link(config, now);
                }
            }
            Event::AccessLink { link, up } => state.node.handle_link(link, up, now, out),
            Event::AccessGone { link } => {
                state.access.close(link);
                state.node.remove_access_link(link, now, out);
            }
            Event::NeighborFailed { link, ip } => {
                state.node.handle_neighbor_failed(link, ip, now, out);
            }
        }
    }

    /// Once the tables are complete, the kernel loses what nobody has asked for.
    fn prune(&self) {
        let mut state = self.state.borrow_mut();
        if !state.pruned && !state.node.is_restarting() {
            state.pruned = true;
            if let Some(forwarding) = &mut state.forwarding {
                forwarding.prune();
            }
            if let Some(plane) = &mut state.encap {
                plane.prune();
            }
            self.metrics.health.done(Waiting::Routes);
            self.metrics.health.done(Waiting::Kernel);
            state.monitor.send(View::Ready);
        }
    }

    /// Sessions that come and go are news; the speaker has logged them.
    fn tell(&self, state: &State, output: &speaker::Output) {
        let address = |peer: PeerId| {
            let speaker = state.node.speaker.as_ref()?;
            Some(speaker.neighbor_config(peer)?.transport.remote.ip())
        };
        match output {
            speaker::Output::SessionUp { peer } => {
                let Some(neighbor) = address(*peer) else { return };
                state.monitor.send(View::NeighborUp { neighbor });
            }
            speaker::Output::SessionDown { peer, reason } => {
                let Some(neighbor) = address(*peer) else { return };
                state.monitor.send(View::NeighborDown { neighbor, reason: reason.clone() });
            }
            speaker::Output::Connect { .. }
            | speaker::Output::Send { .. }
            | speaker::Output::Close { .. }
            | speaker::Output::ListenerKey { .. } => {}
        }
    }

    fn persist(&self, state: &mut State, prefix: crate::types::Prefix, record: Record) {
        let Some(store) = &mut state.store else { return };
        let stored = match record {
            Record::Gone(claim) => Stored::Gone(claim),
            Record::Bound { binding, attachment } => Stored::Bound(StoredBinding {
                until_unix_ms: match binding.lifetime {
                    Lifetime::WhileAttached => None,
                    Lifetime::Until(at) => Some(self.clock.unix_us(at) / 1000),
                },
                link: attachment.and_then(|a| state.access.name(a.link).map(str::to_owned)),
                mac: attachment.map(|a| a.mac),
                mn: binding.mn,
                anchor: binding.anchor,
                fe_e: binding.fe_e,
                home: binding.home,
                generation: binding.generation,
            }),
        };
        store.put(prefix, stored);
    }

    fn commit(&self, state: &mut State) {
        let Some(store) = &mut state.store else { return };
        if let Err(error) = store.commit() {
            self.metrics.store_errors.inc();
            tracing::error!(%error, "routing goes on, but a restart would not know of it");
        }
    }

    /// Lets the timer task know when it is needed sooner than it thinks.
    fn arm(&self, state: &State) {
        let next = state.node.poll_timeout().unwrap_or(Instant::FAR_FUTURE);
        let kernel =
            state.forwarding.as_ref().map_or(Instant::FAR_FUTURE, Forwarding::poll_timeout);
        let encap = super::mapping::encap_timeout(state);
        let next = next.min(state.links.poll_timeout()).min(kernel).min(encap);
        if self.more.get() || next < self.armed.get() {
            self.timer.notify_one();
        }
        self.armed.set(next);
    }

    /// Runs for ever: wakes the node when its earliest deadline has come.
    pub async fn run_timers(self: Rc<Self>) {
        loop {
            if !self.more.get() {
                let at = self.armed.get();
                // A day is far enough; FAR_FUTURE does not fit tokio's clock.
                let at = at.min(self.now() + Duration::from_secs(86_400));
                tokio::select! {
                    () = tokio::time::sleep_until(self.clock.tokio(at)) => {}
                    () = self.timer.notified() => {
                        if !self.more.get() && self.armed.get() > self.now() {
                            continue;
                        }
                    }
                }
            }
            // Readers come first: `more` is work that can wait for them.
            tokio::task::yield_now().await;
            let now = self.now();
            self.state.borrow_mut().links.handle_timeout(now);
            self.carry_links();
            self.turn_kernel(|forwarding, now, events| forwarding.handle_timeout(now, events));
            self.turn_encap_timeout();
            self.turn(|node, now, out| node.handle_timeout(now, out));
            self.prune();
        }
    }

    /// Runs for ever: what the kernel has to say by itself.
    pub async fn run_kernel(self: Rc<Self>) {
        let fd = match &self.state.borrow().forwarding {
            Some(forwarding) => BorrowedFd(forwarding.as_raw_fd()),
            None => return,
        };
        // SAFETY: the descriptor belongs to `forwarding`, which the core owns and never replaces;
        // this task holds the core.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let fd = match registered {
            Ok(fd) => fd,
            Err(error) => return tracing::error!(%error, "the kernel cannot be listened to"),
        };
        loop {
            let Ok(mut ready) = fd.readable().await else { return };
            ready.clear_ready();
            loop {
                let more = self
                    .turn_kernel(|forwarding, now, events| forwarding.handle_readable(now, events));
                match more {
                    Some(Ok(true)) => tokio::task::yield_now().await,
                    Some(Ok(false)) | None => break,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the kernel's notifications cannot be read");
                        break;
                    }
                }
            }
        }
    }

    /// Runs for ever: brings what has been committed to the disk and compacts it, from threads of
    /// their own, and tries again to write what the disk has refused. Syncing does not wait for
    /// compacting, which may take seconds.
    pub async fn run_syncs(self: Rc<Self>) {
        let mut compacting: Option<JoinHandle<_>> = None;
        let mut retry_at = self.now();
        loop {
            tokio::time::sleep(super::store::SYNC_EVERY).await;
            if let Some(done) = compacting.take_if(|running| running.is_finished()) {
                self.note_background(done.await);
            }
            let (sync, compact) = match &mut self.state.borrow_mut().store {
                Some(store) => {
                    if self.now() >= retry_at {
                        retry_at = self.now() + super::store::RETRY_EVERY;
                        if store.retry() {
                            tracing::info!("the state directory takes writes again");
                        }
                    }
                    if !store.is_unsynced() {
                        continue;
                    }
                    let compact = if compacting.is_none() { store.compactor() } else { None };
                    (store.syncer(), compact)
                }
                None => return,
            };
            self.note_background(tokio::task::spawn_blocking(sync).await);
            if let Some(compact) = compact {
                compacting = Some(tokio::task::spawn_blocking(compact));
            }
        }
    }

    fn note_background(&self, result: Result<Result<(), StoreError>, JoinError>) {
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error {
            tracing::error!(error, "routing goes on, but a power cut would lose the last changes");
            self.metrics.store_errors.inc();
        }
        if let Some(store) = &mut self.state.borrow_mut().store {
            store.handle_background(error);
        }
    }
}

/// A descriptor that is registered with the runtime and owned by a part of the core.
pub(super) struct BorrowedFd(pub RawFd);

impl AsRawFd for BorrowedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
