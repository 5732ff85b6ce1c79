//! One prefix: what comes is put in order, waits if it must, and leaves by the outlet.
//!
//! ```text
//!               ┌── order (only with an inbound path) ──┐
//!  directly  ───┤ a flow that has no marker yet: waits  ├──┐
//!               └───────────────────────────────────────┘  ├── queue ── outlet: kernel, nobody yet,
//!  by a path ──────────────────────────────────────────────┘            or a path to the nMA
//! ```
//!
//! A question for a marker takes the same way as a packet of its flow, so it is answered when all
//! before it has left, also when that had to wait for another anchor's answer first.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashSet};

use super::config::{PathState, PathView, TransientDrop, TransientLimits, WhenFull};
use super::packet::{Carrier, HEADROOM, Item, Output, PACKET_MAX, Packet, restore_hop};
use super::window::Window;
use super::{Common, HOPS_MAX};
use crate::types::transient::{PathCounts, PathEnd, PathEnding, PathKey, TransientEvent};
use crate::types::{Instant, Prefix};
use crate::wire::transient::{Body, Datagram, Flow, data_header};

/// Where things go on.
pub enum Outlet {
    Kernel,
    /// They do not. The number is where the path's count stands.
    Hold {
        key: PathKey,
        sequence: u32,
    },
    Path(Outbound),
}

pub struct Outbound {
    pub key: PathKey,
    pub end: PathEnd,
    pub to: SocketAddr,
    pub sequence: u32,
    pub last_at: Instant,
    flushed: bool,
}

impl Outbound {
    pub fn new(key: PathKey, end: PathEnd, to: SocketAddr, sequence: u32, now: Instant) -> Self {
        Self { key, end, to, sequence, last_at: now, flushed: false }
    }
}

/// A path to us, and the flows that wait for what is in it.
pub struct Inbound {
    pub key: PathKey,
    pub from: PathEnd,
    pub peer: SocketAddr,
    pub until: Instant,
    pub heard: bool,
    pub window: Box<Window>,
    flows: HashMap<Flow, FlowState, FixedState>,
    /// When something is to be done about a flow.
    waiting: BTreeSet<(Instant, Flow)>,
}

enum FlowState {
    Waiting { items: VecDeque<Item<'static>>, at: Instant, until: Instant },
    Free,
}

impl Inbound {
    pub fn new(key: PathKey, from: PathEnd, peer: SocketAddr, until: Instant) -> Self {
        Self {
            key,
            from,
            peer,
            until,
            heard: false,
            window: Box::new(Window::new()),
            flows: HashMap::default(),
            waiting: BTreeSet::new(),
        }
    }

    /// Puts the question for a marker.
    fn ask(&self, flow: Flow, common: &mut Common, out: &mut Vec<Output>) {
        common.totals.markers_asked += 1;
        let body = Body::Request(flow);
        out.push(Output::own(self.peer, encode(self.key, 0, body)));
    }

    /// The other end is at it.
    pub fn postpone(&mut self, flow: Flow, limits: &TransientLimits, now: Instant) {
        self.heard = true;
        if let Some(FlowState::Waiting { until, .. }) = self.flows.get_mut(&flow) {
            *until = now + limits.order;
        }
    }

    fn free(&mut self, flow: Flow) -> VecDeque<Item<'static>> {
        match self.flows.get_mut(&flow) {
            Some(state @ FlowState::Waiting { .. }) => {
                match std::mem::replace(state, FlowState::Free) {
                    FlowState::Waiting { items, at, .. } => {
                        self.waiting.remove(&(at, flow));
                        items
                    }
                    FlowState::Free => VecDeque::new(),
                }
            }
            Some(FlowState::Free) | None => VecDeque::new(),
        }
    }
}

pub fn is_from(end: PathEnd, from: IpAddr) -> bool {
    match from {
        IpAddr::V4(from) => end.locator.ipv4 == Some(from),
        IpAddr::V6(from) => end.locator.ipv6 == Some(from),
    }
}

pub fn encode(key: PathKey, sequence: u32, body: Body<'_>) -> Vec<u8> {
    let mut octets = Vec::new();
    Datagram { key, sequence, hops: 0, body }.encode(&mut octets);
    octets
}

pub struct Entry {
    pub outlet: Outlet,
    queue: VecDeque<Item<'static>>,
    pub inbound: Option<Inbound>,
    /// Of the outlet.
    pub since: Instant,
    pub until: Instant,
    pub counts: PathCounts,
    pub closing: Option<PathEnding>,
    /// Packets in the queue and before it, and their octets.
    waiting: usize,
    waiting_octets: usize,
    /// Questions among them, or not even among them yet.
    markers: HashSet<Flow, FixedState>,
    /// Questions that take their place in the order at a time.
    asked: VecDeque<(Instant, Flow)>,
    /// When the engine looks at it.
    pub armed: Instant,
    /// The last packet from the device.
    pub diverted_at: Instant,
    /// In the engine's list of those that have something to send.
    pub listed: bool,
}

impl Entry {
    pub fn new(outlet: Outlet, now: Instant) -> Self {
        Self {
            outlet,
            queue: VecDeque::new(),
            inbound: None,
            since: now,
            until: Instant::FAR_FUTURE,
            counts: PathCounts::default(),
            closing: None,
            waiting: 0,
            waiting_octets: 0,
            markers: HashSet::default(),
            asked: VecDeque::new(),
            armed: Instant::FAR_FUTURE,
            diverted_at: Instant::ZERO,
            listed: false,
        }
    }

    /// A state of another path begins.
    pub fn begin(&mut self, outlet: Outlet, until: Instant, now: Instant) {
        (self.outlet, self.until, self.since) = (outlet, until, now);
        self.counts = PathCounts::default();
        self.closing = None;
    }

    pub fn keys(&self) -> [Option<PathKey>; 2] {
        [self.inbound.as_ref().map(|inbound| inbound.key), self.out_key()]
    }

    pub fn out_key(&self) -> Option<PathKey> {
        match &self.outlet {
            Outlet::Kernel => None,
            Outlet::Hold { key, .. } => Some(*key),
            Outlet::Path(path) => Some(path.key),
        }
    }

    /// A question for a marker. One more than fit is asked for again, or goes on without.
    pub fn ask(&mut self, flow: Flow, now: Instant, common: &mut Common) {
        let limits = &common.config.limits;
        if self.markers.len() < limits.flows_per_gate && self.markers.insert(flow) {
            self.asked.push_back((now + limits.slack, flow));
            common.asked += 1;
        }
    }

    /// Questions whose time has come; of all, when nobody asks any more.
    pub fn take_asked(&mut self, now: Option<Instant>, common: &mut Common) -> Vec<Flow> {
        let due = self.asked.iter().take_while(|(at, _)| now.is_none_or(|now| *at <= now)).count();
        common.asked -= due;
        let flows: Vec<Flow> = self.asked.drain(..due).map(|(_, flow)| flow).collect();
        for flow in &flows {
            self.markers.remove(flow);
        }
        flows
    }

    pub fn wants_flush(&self) -> bool {
        match &self.outlet {
            Outlet::Hold { .. } => false,
            Outlet::Kernel => !self.queue.is_empty(),
            Outlet::Path(path) => !self.queue.is_empty() || !path.flushed,
        }
    }

    /// When something happens by itself.
    pub fn deadline(&self, limits: &TransientLimits) -> Instant {
        let asked = self.asked.front().map_or(Instant::FAR_FUTURE, |(at, _)| *at);
        if self.closing.is_some() {
            return asked;
        }
        let outlet = match &self.outlet {
            Outlet::Kernel => Instant::FAR_FUTURE,
            Outlet::Hold { .. } => self.until,
            Outlet::Path(path) if self.queue.is_empty() => {
                self.until.min(path.last_at + limits.quiet)
            }
            Outlet::Path(_) => self.until,
        };
        let inbound = self.inbound.as_ref().map_or(Instant::FAR_FUTURE, |inbound| {
            inbound.waiting.first().map_or(inbound.until, |(at, _)| inbound.until.min(*at))
        });
        outlet.min(inbound).min(asked)
    }

    /// Something that came otherwise than by the inbound path. True when it has to wait.
    pub fn direct(
        &mut self,
        flow: Flow,
        item: Item<'_>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(inbound) = &mut self.inbound else { return self.pass(item, now, common, out) };
        match inbound.flows.get(&flow) {
            Some(FlowState::Free) => return self.pass(item, now, common, out),
            Some(FlowState::Waiting { .. }) => {}
            None if inbound.flows.len() >= common.config.limits.flows_per_gate => {
                common.totals.flows_full += 1;
                return self.pass(item, now, common, out);
            }
            None => {
                let (at, until) =
                    (now + common.config.limits.ask_again, now + common.config.limits.order);
                let items = VecDeque::new();
                inbound.flows.insert(flow, FlowState::Waiting { items, at, until });
                inbound.waiting.insert((at, flow));
                inbound.ask(flow, common, out);
            }
        }
        self.keep(Some(flow), item, common);
        true
    }

    /// Something whose turn it is, as far as paths are concerned. True when it has to wait.
    pub fn pass(
        &mut self,
        item: Item<'_>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Output>,
    ) -> bool {
        let waits = !self.queue.is_empty() || matches!(self.outlet, Outlet::Hold { .. });
        if waits {
            self.keep(None, item, common);
        } else {
            self.emit(item, now, common, out);
        }
        waits
    }

    /// At the end of a flow's queue, or of the common one.
    fn keep(&mut self, flow: Option<Flow>, item: Item<'_>, common: &mut Common) {
        let queue = match (flow, &mut self.inbound) {
            (Some(flow), Some(inbound)) => match inbound.flows.get_mut(&flow) {
                Some(FlowState::Waiting { items, .. }) => items,
                Some(FlowState::Free) | None => &mut self.queue,
            },
            (_, _) => &mut self.queue,
        };
        match &item {
            Item::Marker(flow) => {
                // One more is asked for again, or goes on without.
                let fits = self.markers.len() < common.config.limits.flows_per_gate;
                if fits && self.markers.insert(*flow) {
                    queue.push_back(item.into_own());
                }
            }
            Item::Packet(packet) => {
                let len = packet.carrier.packet_len();
                let waiting = [&mut self.waiting, &mut self.waiting_octets];
                if make_room(queue, len, waiting, &mut self.counts, common) {
                    queue.push_back(item.into_own());
                    self.waiting += 1;
                    self.waiting_octets += len;
                    common.waiting += 1;
                    common.waiting_octets += len;
                    self.counts.held += 1;
                    self.counts.octets += len as u64;
                    common.totals.held += 1;
                    common.totals.held_octets += len as u64;
                }
            }
        }
    }

    fn emit(&mut self, item: Item<'_>, now: Instant, common: &mut Common, out: &mut Vec<Output>) {
        match (item, &mut self.outlet) {
            (Item::Packet(mut packet), Outlet::Kernel | Outlet::Hold { .. }) => {
                if packet.diverted {
                    restore_hop(&mut packet.carrier.octets_mut()[HEADROOM..]);
                }
                common.totals.written += 1;
                out.push(Output::Write(packet.carrier.into_octets(HEADROOM)));
            }
            // Who asked is told of the end of the path.
            (Item::Marker(_), Outlet::Kernel | Outlet::Hold { .. }) => {}
            (Item::Packet(Packet { mut carrier, hops, .. }), Outlet::Path(path)) => {
                path.last_at = now;
                let len = carrier.packet_len();
                let why = match (hops >= HOPS_MAX, len > PACKET_MAX) {
                    (true, _) => Some(TransientDrop::HopLimit),
                    (_, true) => Some(TransientDrop::TooLong),
                    (false, false) => None,
                };
                if let Some(why) = why {
                    self.counts.dropped += 1;
                    return common.count(why);
                }
                let header = data_header(hops, path.sequence, path.key);
                carrier.octets_mut()[..HEADROOM].copy_from_slice(&header);
                path.sequence = path.sequence.wrapping_add(1);
                self.counts.forwarded += 1;
                common.totals.forwarded += 1;
                common.totals.forwarded_octets += len as u64;
                out.push(Output::Send { to: path.to, octets: carrier.into_octets(0) });
            }
            (Item::Marker(flow), Outlet::Path(path)) => {
                common.totals.markers_answered += 1;
                let octets = encode(path.key, path.sequence, Body::Answer(flow));
                out.push(Output::own(path.to, octets));
            }
        }
    }

    /// Sends what waits, at most so much; how many packets that were.
    pub fn flush(
        &mut self,
        prefix: Prefix,
        max: usize,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Output>,
    ) -> usize {
        let mut count = 0;
        while count < max
            && !matches!(self.outlet, Outlet::Hold { .. })
            && let Some(item) = self.queue.pop_front()
        {
            match (&item, item.packet_len()) {
                (_, Some(len)) => {
                    count += 1;
                    self.waiting -= 1;
                    self.waiting_octets -= len;
                    common.waiting -= 1;
                    common.waiting_octets -= len;
                }
                (Item::Marker(flow), None) => {
                    self.markers.remove(flow);
                }
                (Item::Packet(_), None) => {}
            }
            self.emit(item, now, common, out);
        }
        if let Outlet::Path(path) = &mut self.outlet
            && !path.flushed
            && self.queue.is_empty()
        {
            path.flushed = true;
            common.tell(TransientEvent::Flushed { prefix, counts: self.counts });
        }
        count
    }

    /// What waited for this marker goes on.
    pub fn free_flow(&mut self, flow: Flow) {
        if let Some(inbound) = &mut self.inbound {
            self.queue.append(&mut inbound.free(flow));
        }
    }

    /// Asks for markers again, and lets those go on that have waited too long.
    pub fn expire_flows(&mut self, now: Instant, common: &mut Common, out: &mut Vec<Output>) {
        let Some(inbound) = &mut self.inbound else { return };
        while let Some(&(at, flow)) = inbound.waiting.first()
            && at <= now
        {
            inbound.waiting.pop_first();
            let Some(FlowState::Waiting { at, until, .. }) = inbound.flows.get_mut(&flow) else {
                continue;
            };
            if *until <= now {
                common.totals.flows_late += 1;
                self.queue.append(&mut inbound.free(flow));
            } else {
                *at = (now + common.config.limits.ask_again).min(*until);
                inbound.waiting.insert((*at, flow));
                inbound.ask(flow, common, out);
            }
        }
    }

    /// The inbound path is over: all that waited for it goes on.
    pub fn take_inbound(&mut self) -> Option<Inbound> {
        let mut inbound = self.inbound.take()?;
        while let Some(&(_, flow)) = inbound.waiting.first() {
            self.queue.append(&mut inbound.free(flow));
        }
        Some(inbound)
    }

    /// Another path takes the place of the inbound one: what waited for the old one's markers
    /// waits for the new one's.
    pub fn replace_inbound(
        &mut self,
        new: Inbound,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Output>,
    ) -> Option<Inbound> {
        let mut old = self.inbound.replace(new);
        let (Some(old_inbound), Some(inbound)) = (&mut old, &mut self.inbound) else { return old };
        while let Some(&(_, flow)) = old_inbound.waiting.first() {
            let items = old_inbound.free(flow);
            let limits = common.config.limits;
            let (at, until) = (now + limits.ask_again, now + limits.order);
            inbound.flows.insert(flow, FlowState::Waiting { items, at, until });
            inbound.waiting.insert((at, flow));
            inbound.ask(flow, common, out);
        }
        old
    }

    pub fn view(&self, prefix: Prefix) -> PathView {
        let inbound = self.inbound.as_ref();
        let (state, peer) = match (&self.outlet, self.closing) {
            (Outlet::Path(path), Some(_)) => (PathState::Closing, Some(path.to)),
            (_, Some(_)) => (PathState::Closing, None),
            (Outlet::Hold { .. }, None) => (PathState::Hold, None),
            (Outlet::Path(path), None) => (PathState::Forward, Some(path.to)),
            (Outlet::Kernel, None) => (PathState::Gate, inbound.map(|inbound| inbound.peer)),
        };
        PathView {
            prefix,
            state,
            since: self.since,
            peer,
            counts: self.counts,
            waiting: self.waiting,
            waiting_octets: self.waiting_octets,
            flows: inbound.map_or(0, |inbound| inbound.waiting.len()),
        }
    }
}

/// Whether a packet may wait; what is dropped, this one or older ones, is counted. `waiting` are
/// packets and octets of the prefix.
fn make_room(
    queue: &mut VecDeque<Item<'static>>,
    len: usize,
    [packets, octets]: [&mut usize; 2],
    counts: &mut PathCounts,
    common: &mut Common,
) -> bool {
    let limits = common.config.limits;
    loop {
        let prefix_full =
            *packets >= limits.packets_per_prefix || *octets + len > limits.octets_per_prefix;
        let total_full =
            common.waiting >= limits.packets || common.waiting_octets + len > limits.octets;
        let why = match (prefix_full, total_full) {
            (false, false) => return true,
            (true, _) => TransientDrop::PrefixFull,
            (false, true) => TransientDrop::TotalFull,
        };
        counts.dropped += 1;
        // Among those that wait for the same, or there would be a gap in another flow.
        let oldest = match limits.when_full {
            WhenFull::Newest => None,
            WhenFull::Oldest => queue.iter().position(|item| item.packet_len().is_some()),
        };
        let gone = oldest.and_then(|at| queue.remove(at)).and_then(|item| item.packet_len());
        let Some(gone) = gone else {
            common.count(why);
            return false;
        };
        *packets -= 1;
        *octets -= gone;
        common.waiting -= 1;
        common.waiting_octets -= gone;
        common.count(TransientDrop::Oldest);
    }
}

/// A packet in the caller's slot, or a copy.
pub fn packet<'a>(carrier: Carrier<'a>, hops: u8, diverted: bool) -> Item<'a> {
    Item::Packet(Packet { carrier, hops, diverted })
}
