//! Not one packet lost: the data plane of a relocation, without sockets and without a clock.
//!
//! Packets for a node that moves are led to a device of ours by a route in a table of our own.
//! Here they wait ([`TransientChange::Hold`]), go to the new anchor by a path
//! ([`TransientChange::Forward`]), or stay in their order behind those that come by a path
//! ([`TransientChange::Gate`]). `driver::transient` is the device, the sockets, the routes and the
//! thread. The datagrams of a path are those of [`crate::wire::transient`].
//!
//! Per flow the order is kept: nothing overtakes inside a queue, a queue is emptied before what
//! comes later goes out, and a direct packet waits for the marker of its flow. Nothing is sent
//! twice. What is dropped is counted by reason ([`TransientDrop`]).
//!
//! Every state ends by itself: Hold, Forward and Gate at their bounds, a flow's wait with the
//! silence of the other side, what is left of a path (to answer late questions) after a while.

mod config;
mod entry;
pub mod fake;
mod packet;
#[cfg(test)]
mod tests;
mod uplink;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

pub use self::config::{
    Config, PathState, PathView, TransientDrop, TransientError, TransientLimits, TransientTotals,
    WhenFull,
};
use self::entry::{Entry, Inbound, Outbound, Outlet, encode, is_from, packet};
use self::packet::{Carrier, Item, flow_of, restore_hop};
pub use self::packet::{HEADROOM, Octets, Output, PACKET_MAX};
use self::uplink::Sources;
use self::window::{Arrival, Window};
use crate::dataplane::tun::Table;
use crate::types::transient::{PathEnd, PathEnding, PathKey, TransientChange, TransientEvent};
use crate::types::{Instant, Prefix};
use crate::wire::encap::Head;
use crate::wire::transient::{Body, Datagram, Flow};

/// Paths that one packet may take: a node that goes on faster than routing follows has as many
/// anchors behind it.
pub const HOPS_MAX: u8 = 8;

/// What is left of paths; the oldest is forgotten.
const PAST_MAX: usize = 65_536;

/// Events that nobody has fetched; beyond, the newest are dropped (the state is in the view).
const EVENTS_MAX: usize = 1 << 20;

/// Packets of one prefix before another gets its turn.
const FLUSH_TURN: usize = 32;

/// What an engine and its entries share.
struct Common {
    config: Config,
    totals: TransientTotals,
    events: VecDeque<TransientEvent>,
    waiting: usize,
    waiting_octets: usize,
    /// Questions that have not taken their places yet.
    asked: usize,
}

impl Common {
    fn count(&mut self, why: TransientDrop) {
        self.totals.dropped[why as usize] += 1;
    }

    fn tell(&mut self, event: TransientEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }
}

/// What is left of a path.
enum Past {
    In { from: PathEnd, window: Box<Window> },
    Out { end: PathEnd, to: SocketAddr, sequence: u32, ends: u8, acknowledged: bool },
}

struct PastPath {
    past: Past,
    /// When something is to be done.
    at: Instant,
    until: Instant,
}

/// Packets per second, spent in advance by a millisecond's worth.
struct Pace {
    /// In packets × 1,000,000.
    credit: u64,
    at: Instant,
}

impl Pace {
    const PACKET: u64 = 1_000_000;

    fn refill(&mut self, per_s: u32, now: Instant) {
        let rate = u64::from(per_s.max(1));
        let most = (rate / 1000 + 2 * FLUSH_TURN as u64) * Self::PACKET;
        let micros = (now - self.at).as_micros() as u64;
        self.credit = most.min(self.credit.saturating_add(micros.saturating_mul(rate)));
        self.at = now;
    }

    fn packets(&self) -> usize {
        usize::try_from(self.credit / Self::PACKET).unwrap_or(usize::MAX)
    }

    fn spend(&mut self, packets: usize) {
        self.credit = self.credit.saturating_sub(packets as u64 * Self::PACKET);
    }

    /// Until a turn's worth is there.
    fn wait(&self, per_s: u32) -> Duration {
        let missing = (FLUSH_TURN as u64 * Self::PACKET).saturating_sub(self.credit);
        Duration::from_micros(missing.div_ceil(u64::from(per_s.max(1))))
    }
}

/// Where a datagram of a path belongs.
enum Place {
    /// To this prefix as it is now.
    Entry(Prefix),
    /// To what is left of a path of it.
    Past(Prefix),
}

pub struct Engine {
    common: Common,
    entries: Table<Entry>,
    prefixes: BTreeSet<Prefix>,
    keys: HashMap<PathKey, Vec<Prefix>, FixedState>,
    past: BTreeMap<(PathKey, Prefix), PastPath>,
    past_due: BTreeSet<(Instant, PathKey, Prefix)>,
    due: BTreeSet<(Instant, Prefix)>,
    flushing: VecDeque<Prefix>,
    flush_at: Option<Instant>,
    pace: Pace,
    closing: VecDeque<Prefix>,
    sources: Sources,
    /// What a change had to say; goes out with the next packets.
    later: Vec<Output>,
}

impl Engine {
    pub fn new(config: Config) -> Self {
        Self {
            common: Common {
                config,
                totals: TransientTotals::default(),
                events: VecDeque::new(),
                waiting: 0,
                waiting_octets: 0,
                asked: 0,
            },
            entries: Table::default(),
            prefixes: BTreeSet::new(),
            keys: HashMap::default(),
            past: BTreeMap::new(),
            past_due: BTreeSet::new(),
            due: BTreeSet::new(),
            flushing: VecDeque::new(),
            flush_at: None,
            pace: Pace { credit: u64::MAX, at: Instant::ZERO },
            closing: VecDeque::new(),
            sources: Sources::default(),
            later: Vec::new(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.common.config
    }

    // ---- changes ------------------------------------------------------------------------------

    /// The prefix whose packets have to be led to the device from now on (again), if any. They
    /// are led there until [`Self::finish`].
    pub fn apply(
        &mut self,
        change: &TransientChange,
        now: Instant,
    ) -> Result<Option<Prefix>, TransientError> {
        match *change {
            TransientChange::Hold { prefix, key } => {
                self.hold(prefix, key, now)?;
                Ok(Some(prefix))
            }
            TransientChange::Forward { prefix, key, to } => {
                self.forward(prefix, key, to, now)?;
                Ok(Some(prefix))
            }
            TransientChange::Gate { prefix, key, from } => {
                self.gate(prefix, key, from, now)?;
                Ok(Some(prefix))
            }
            TransientChange::Release { prefix } => {
                self.release(prefix, now);
                Ok(None)
            }
            TransientChange::Pass { prefix } => {
                self.sources.pass(prefix, now, &self.common.config.limits);
                Ok(None)
            }
            TransientChange::Refuse { prefix } => {
                self.sources.refuse(prefix, &mut self.common);
                Ok(None)
            }
        }
    }

    /// The kernel did not take the route of what has just begun.
    pub fn give_up(&mut self, prefix: Prefix, now: Instant) {
        self.release(prefix, now);
    }

    fn hold(&mut self, prefix: Prefix, key: PathKey, now: Instant) -> Result<(), TransientError> {
        let mut sequence = self.take_past_out(key, prefix);
        if let Some(entry) = self.entries.find_mut(prefix) {
            match &entry.outlet {
                Outlet::Hold { key: old, .. } if *old == key && entry.closing.is_none() => {
                    return Ok(());
                }
                // The count of the path goes on, or its packets would be taken for old ones.
                Outlet::Hold { key: old, sequence: at } if *old == key => sequence = *at,
                Outlet::Path(path) if path.key == key => sequence = path.sequence,
                Outlet::Hold { .. } | Outlet::Path(_) | Outlet::Kernel => {}
            }
        }
        let until = now + self.common.config.limits.hold;
        self.begin(prefix, Outlet::Hold { key, sequence }, until, now)
    }

    fn forward(
        &mut self,
        prefix: Prefix,
        key: PathKey,
        end: PathEnd,
        now: Instant,
    ) -> Result<(), TransientError> {
        let to = self.common.config.peer(end).ok_or(TransientError::NoFamily)?;
        let until = now + self.common.config.limits.forward;
        let mut sequence = self.take_past_out(key, prefix);
        if let Some(entry) = self.entries.find_mut(prefix) {
            let since = entry.since;
            match &mut entry.outlet {
                Outlet::Path(path) if path.key == key && entry.closing.is_none() => {
                    (path.end, path.to) = (end, to);
                    return Ok(());
                }
                // One path, in its second half: what it has counted stays.
                Outlet::Hold { key: old, sequence: at }
                    if *old == key && entry.closing.is_none() =>
                {
                    let path = Outbound::new(key, end, to, *at, now);
                    (entry.outlet, entry.until, entry.since) = (Outlet::Path(path), until, since);
                    self.settle_timers(prefix);
                    return Ok(());
                }
                Outlet::Path(path) if path.key == key => sequence = path.sequence,
                Outlet::Hold { key: old, sequence: at } if *old == key => sequence = *at,
                Outlet::Hold { .. } | Outlet::Path(_) | Outlet::Kernel => {}
            }
        }
        let path = Outbound::new(key, end, to, sequence, now);
        self.begin(prefix, Outlet::Path(path), until, now)
    }

    fn gate(
        &mut self,
        prefix: Prefix,
        key: PathKey,
        from: PathEnd,
        now: Instant,
    ) -> Result<(), TransientError> {
        let peer = self.common.config.peer(from).ok_or(TransientError::NoFamily)?;
        if let Some(entry) = self.entries.find_mut(prefix)
            && let (Outlet::Kernel, None) = (&entry.outlet, entry.closing)
            && let Some(inbound) = &mut entry.inbound
            && inbound.key == key
        {
            (inbound.from, inbound.peer) = (from, peer);
            return Ok(());
        }
        self.begin(prefix, Outlet::Kernel, Instant::FAR_FUTURE, now)?;
        let until = now + self.common.config.limits.gate;
        self.with(prefix, |engine, entry| {
            if let Some(inbound) = entry.inbound.as_mut().filter(|inbound| inbound.key == key) {
                (inbound.from, inbound.peer, inbound.until) = (from, peer, until);
                return;
            }
            let mut inbound = Inbound::new(key, from, peer, until);
            if let Some(window) = engine.take_past_in(key, prefix) {
                inbound.window = window;
            }
            let Engine { common, later, .. } = &mut *engine;
            if let Some(old) = entry.replace_inbound(inbound, now, common, later) {
                engine.remember_in(prefix, old, now);
            }
        });
        Ok(())
    }

    fn release(&mut self, prefix: Prefix, now: Instant) {
        self.with(prefix, |engine, entry| {
            engine.leave_outlet(prefix, entry, None, now);
            entry.outlet = Outlet::Kernel;
            engine.begin_close(prefix, entry, PathEnding::Replaced, now);
        });
    }

    /// A state of a path begins. What waits stays, in its order.
    fn begin(
        &mut self,
        prefix: Prefix,
        outlet: Outlet,
        until: Instant,
        now: Instant,
    ) -> Result<(), TransientError> {
        if self.entries.find_mut(prefix).is_none() {
            if self.entries.len() >= self.common.config.limits.prefixes {
                return Err(TransientError::Full);
            }
            let entry = Entry::new(outlet, now);
            self.insert_keys(prefix, entry.keys());
            self.entries.insert(prefix, entry);
            self.prefixes.insert(prefix);
            self.with(prefix, |_, entry| entry.until = until);
            return Ok(());
        }
        self.with(prefix, |engine, entry| {
            let key = match &outlet {
                Outlet::Kernel => None,
                Outlet::Hold { key, .. } => Some(*key),
                Outlet::Path(path) => Some(path.key),
            };
            engine.leave_outlet(prefix, entry, key, now);
            let how = entry.closing.unwrap_or(PathEnding::Replaced);
            if key.is_none() || entry.out_key() != key {
                engine.common.tell(TransientEvent::Ended { prefix, how, counts: entry.counts });
            }
            entry.begin(outlet, until, now);
        });
        Ok(())
    }

    /// The path that the outlet led to is over, unless it goes on under the same key.
    fn leave_outlet(
        &mut self,
        prefix: Prefix,
        entry: &mut Entry,
        key: Option<PathKey>,
        now: Instant,
    ) {
        if let Outlet::Path(path) = &entry.outlet
            && key != Some(path.key)
        {
            self.remember_out(prefix, path, now);
        }
    }

    /// Does something with an entry, and brings its keys, timers and lists up to date.
    fn with<T>(
        &mut self,
        prefix: Prefix,
        what: impl FnOnce(&mut Self, &mut Entry) -> T,
    ) -> Option<T> {
        // Taken out meanwhile; this is not the way of a packet.
        let mut entry = self.entries.remove(prefix)?;
        let before = entry.keys();
        let done = what(self, &mut entry);
        let after = entry.keys();
        if before != after {
            self.remove_keys(prefix, before);
            self.insert_keys(prefix, after);
        }
        self.entries.insert(prefix, entry);
        self.settle_timers(prefix);
        Some(done)
    }

    fn insert_keys(&mut self, prefix: Prefix, keys: [Option<PathKey>; 2]) {
        for key in keys.into_iter().flatten() {
            let prefixes = self.keys.entry(key).or_default();
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
    }

    fn remove_keys(&mut self, prefix: Prefix, keys: [Option<PathKey>; 2]) {
        for key in keys.into_iter().flatten() {
            if let Some(prefixes) = self.keys.get_mut(&key) {
                prefixes.retain(|other| *other != prefix);
                if prefixes.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
    }

    fn settle_timers(&mut self, prefix: Prefix) {
        let limits = self.common.config.limits;
        if let Some(entry) = self.entries.find_mut(prefix) {
            settle(prefix, entry, &limits, &mut self.due, &mut self.flushing);
            if entry.listed && self.flush_at.is_none() {
                self.flush_at = Some(Instant::ZERO);
            }
        }
    }

    fn begin_close(&mut self, prefix: Prefix, entry: &mut Entry, how: PathEnding, now: Instant) {
        if let Some(inbound) = entry.take_inbound() {
            self.remember_in(prefix, inbound, now);
        }
        if let Outlet::Hold { .. } = entry.outlet {
            entry.outlet = Outlet::Kernel;
        }
        if entry.closing.replace(how).is_none() {
            self.closing.push_back(prefix);
        }
    }

    // ---- what is left of paths ----------------------------------------------------------------

    fn remember_in(&mut self, prefix: Prefix, inbound: Inbound, now: Instant) {
        let missing = u64::from(inbound.window.missing(None));
        self.common.totals.missing += missing;
        let past = Past::In { from: inbound.from, window: inbound.window };
        self.remember(prefix, inbound.key, past, now, now + self.common.config.limits.past);
    }

    fn remember_out(&mut self, prefix: Prefix, path: &Outbound, now: Instant) {
        let limits = &self.common.config.limits;
        let until = now + limits.past + limits.end_again * u32::from(limits.ends);
        let past = Past::Out {
            end: path.end,
            to: path.to,
            sequence: path.sequence,
            ends: limits.ends,
            acknowledged: false,
        };
        self.remember(prefix, path.key, past, now, until);
    }

    fn remember(&mut self, prefix: Prefix, key: PathKey, past: Past, now: Instant, until: Instant) {
        let at = match past {
            Past::In { .. } => until,
            Past::Out { .. } => now,
        };
        self.forget(key, prefix);
        if self.past.len() >= PAST_MAX
            && let Some(&(_, key, prefix)) = self.past_due.first()
        {
            self.forget(key, prefix);
        }
        self.past.insert((key, prefix), PastPath { past, at, until });
        self.past_due.insert((at, key, prefix));
    }

    /// A path that begins again under its key goes on counting, and its end is no longer said.
    fn take_past_out(&mut self, key: PathKey, prefix: Prefix) -> u32 {
        match self.past.get(&(key, prefix)).map(|path| &path.past) {
            Some(Past::Out { sequence, .. }) => {
                let sequence = *sequence;
                self.forget(key, prefix);
                sequence
            }
            Some(Past::In { .. }) | None => 0,
        }
    }

    /// Likewise, what has come by it does not come again.
    fn take_past_in(&mut self, key: PathKey, prefix: Prefix) -> Option<Box<Window>> {
        if !matches!(self.past.get(&(key, prefix))?.past, Past::In { .. }) {
            return None;
        }
        let path = self.past.remove(&(key, prefix))?;
        self.past_due.remove(&(path.at, key, prefix));
        match path.past {
            Past::In { window, .. } => Some(window),
            Past::Out { .. } => None,
        }
    }

    fn forget(&mut self, key: PathKey, prefix: Prefix) {
        if let Some(old) = self.past.remove(&(key, prefix)) {
            self.past_due.remove(&(old.at, key, prefix));
        }
    }

    /// Says the end of paths, again and again until it is acknowledged.
    fn say_ends(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(at, key, prefix)) = self.past_due.first()
            && at <= now
        {
            self.past_due.pop_first();
            let Some(path) = self.past.get_mut(&(key, prefix)) else { continue };
            let limits = &self.common.config.limits;
            match &mut path.past {
                Past::Out { to, sequence, ends, acknowledged: false, .. } if *ends > 0 => {
                    *ends -= 1;
                    path.at = now + limits.end_again;
                    out.push(Output::own(*to, encode(key, *sequence, Body::End(prefix))));
                }
                Past::Out { acknowledged: acknowledged @ false, .. } if now < path.until => {
                    *acknowledged = true; // as good as
                    self.common.totals.ends_unanswered += 1;
                    path.at = path.until;
                }
                Past::In { .. } | Past::Out { .. } => path.at = path.until,
            }
            if path.until <= now {
                self.past.remove(&(key, prefix));
            } else {
                self.past_due.insert((path.at, key, prefix));
            }
        }
    }

    // ---- packets ------------------------------------------------------------------------------

    /// A packet from the device, behind [`HEADROOM`] octets of a slot of the caller's.
    pub fn handle_device(
        &mut self,
        slot: usize,
        octets: &mut [u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(head) = octets.get(HEADROOM..).and_then(|packet| Head::of(packet).ok()) else {
            return self.common.count(TransientDrop::Malformed);
        };
        let octets = &mut octets[..HEADROOM + head.len];
        self.diverted(&head, Carrier::Slot { slot, octets }, now, out);
    }

    /// A packet of a source that is not delivered here (yet), likewise.
    pub fn handle_source(
        &mut self,
        slot: usize,
        octets: &mut [u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(head) = octets.get(HEADROOM..).and_then(|packet| Head::of(packet).ok()) else {
            return self.common.count(TransientDrop::Malformed);
        };
        if is_for_the_link(head.destination) {
            return;
        }
        let octets = &mut octets[..HEADROOM + head.len];
        if self.sources.keep(head.source, octets, now, &mut self.common) {
            return;
        }
        self.diverted(&head, Carrier::Slot { slot, octets }, now, out);
    }

    /// Packets of the prefix wait as those of a source that is not delivered yet.
    pub fn holds_source(&self, prefix: Prefix) -> bool {
        self.sources.has(prefix)
    }

    /// They come here although it was passed, see [`Self::next_unshut`].
    pub fn note_shut(&mut self, prefix: Prefix, now: Instant) {
        self.sources.note_shut(prefix, now);
    }

    /// A prefix whose packets may take their own way: all that came before are gone.
    pub fn next_unshut(&mut self, now: Instant) -> Option<Prefix> {
        self.sources.next_unshut(now)
    }

    fn diverted(
        &mut self,
        head: &Head,
        mut carrier: Carrier<'_>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match self.entries.lookup_mut(head.destination) {
            Some((prefix, entry)) => {
                let item = packet(carrier, 0, true);
                entry.diverted_at = now;
                entry.direct(flow_of(head), item, now, &mut self.common, out);
                let limits = &self.common.config.limits;
                if settle(prefix, entry, limits, &mut self.due, &mut self.flushing) {
                    self.flush_at.get_or_insert(Instant::ZERO);
                }
            }
            // What the kernel has to say to its neighbours on the device.
            None if is_for_the_link(head.destination) => {}
            None => {
                restore_hop(&mut carrier.octets_mut()[HEADROOM..]);
                self.common.totals.written += 1;
                out.push(Output::Write(carrier.into_octets(HEADROOM)));
            }
        }
    }

    /// A datagram from another anchor, in a slot of the caller's.
    pub fn handle_path(
        &mut self,
        slot: usize,
        from: SocketAddr,
        octets: &mut [u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Ok(datagram) = Datagram::decode(octets) else {
            return self.common.count(TransientDrop::Malformed);
        };
        let Datagram { key, sequence, hops, body } = datagram;
        let done = match body {
            Body::Data(packet) => match Head::of(packet) {
                Ok(head) => {
                    let octets = &mut octets[..HEADROOM + head.len];
                    let carrier = Carrier::Slot { slot, octets };
                    self.data(key, sequence, hops, from.ip(), &head, carrier, now, out)
                }
                Err(_) => Err(TransientDrop::Malformed),
            },
            Body::Request(flow) => self.request(key, flow, from, now, out),
            Body::Noted(flow) => self.answered(key, flow, from.ip(), now, false),
            Body::Answer(flow) => self.answered(key, flow, from.ip(), now, true),
            Body::End(prefix) => self.end(key, prefix, sequence, from, now, out),
            Body::EndAck(prefix) => self.end_ack(key, prefix, from.ip()),
        };
        if let Err(why) = done {
            self.common.count(why);
        }
    }

    /// The part of the path that an address belongs to.
    fn find(&self, key: PathKey, addr: IpAddr) -> Result<Place, TransientDrop> {
        let prefixes = self.keys.get(&key);
        let here = prefixes.into_iter().flatten().find(|prefix| prefix.contains_addr(addr));
        if let Some(prefix) = here {
            return Ok(Place::Entry(*prefix));
        }
        let mut why = match prefixes {
            Some(_) => TransientDrop::WrongPrefix,
            None => TransientDrop::UnknownKey,
        };
        let lowest = Prefix::V4 { addr: 0, len: 0 };
        for ((of, prefix), _) in self.past.range((key, lowest)..) {
            if *of != key {
                break;
            }
            why = TransientDrop::WrongPrefix;
            if prefix.contains_addr(addr) {
                return Ok(Place::Past(*prefix));
            }
        }
        Err(why)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one datagram")]
    fn data(
        &mut self,
        key: PathKey,
        sequence: u32,
        hops: u8,
        from: IpAddr,
        head: &Head,
        carrier: Carrier<'_>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), TransientDrop> {
        let place = self.find(key, head.destination)?;
        let window = match place {
            Place::Entry(prefix) => {
                let entry = self.entries.find_mut(prefix).ok_or(TransientDrop::WrongPrefix)?;
                let inbound = entry.inbound.as_mut().filter(|inbound| inbound.key == key);
                let inbound = inbound.ok_or(TransientDrop::WrongPrefix)?;
                is_from(inbound.from, from).then_some(()).ok_or(TransientDrop::WrongSource)?;
                inbound.heard = true;
                &mut inbound.window
            }
            Place::Past(prefix) => match self.past.get_mut(&(key, prefix)) {
                Some(PastPath { past: Past::In { from: end, window }, .. }) => {
                    is_from(*end, from).then_some(()).ok_or(TransientDrop::WrongSource)?;
                    window
                }
                Some(_) | None => return Err(TransientDrop::WrongPrefix),
            },
        };
        if hops >= HOPS_MAX {
            return Err(TransientDrop::HopLimit);
        }
        match window.take(sequence) {
            Arrival::InTurn => {}
            Arrival::Late => self.common.totals.reordered += 1,
            Arrival::Duplicate => return Err(TransientDrop::Duplicate),
            Arrival::Stale => return Err(TransientDrop::Stale),
        }
        self.common.totals.received += 1;
        let item = packet(carrier, hops + 1, false);
        let at = match place {
            Place::Entry(prefix) => {
                let entry = self.entries.find_mut(prefix).ok_or(TransientDrop::WrongPrefix)?;
                if matches!(entry.outlet, Outlet::Kernel) {
                    entry.counts.forwarded += 1;
                }
                entry.pass(item, now, &mut self.common, out);
                Some((prefix, entry))
            }
            // For a path that has come since, it is one that did not come by it.
            Place::Past(_) => match self.entries.lookup_mut(head.destination) {
                Some((prefix, entry)) => {
                    entry.direct(flow_of(head), item, now, &mut self.common, out);
                    Some((prefix, entry))
                }
                None => {
                    if let Item::Packet(packet) = item {
                        self.common.totals.written += 1;
                        out.push(Output::Write(packet.carrier.into_octets(HEADROOM)));
                    }
                    None
                }
            },
        };
        if let Some((prefix, entry)) = at {
            let limits = &self.common.config.limits;
            if settle(prefix, entry, limits, &mut self.due, &mut self.flushing) {
                self.flush_at.get_or_insert(Instant::ZERO);
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        key: PathKey,
        flow: Flow,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), TransientDrop> {
        let noted = |sequence| encode(key, sequence, Body::Noted(flow));
        match self.find(key, flow.destination)? {
            Place::Entry(prefix) => {
                let entry = self.entries.find_mut(prefix).ok_or(TransientDrop::WrongPrefix)?;
                // Whoever asks knows the key; where we do not know yet who it will be, that is all.
                let sequence = match &entry.outlet {
                    Outlet::Path(path) if path.key == key => {
                        if !is_from(path.end, from.ip()) {
                            return Err(TransientDrop::WrongSource);
                        }
                        path.sequence
                    }
                    Outlet::Hold { key: of, sequence } if *of == key => *sequence,
                    Outlet::Path(_) | Outlet::Hold { .. } | Outlet::Kernel => {
                        return Err(TransientDrop::WrongPrefix);
                    }
                };
                entry.ask(flow, now, &mut self.common);
                out.push(Output::own(from, noted(sequence)));
                let limits = &self.common.config.limits;
                if settle(prefix, entry, limits, &mut self.due, &mut self.flushing) {
                    self.flush_at.get_or_insert(Instant::ZERO);
                }
                Ok(())
            }
            Place::Past(prefix) => match self.past.get(&(key, prefix)).map(|path| &path.past) {
                Some(Past::Out { end, to, sequence, .. }) => {
                    if !is_from(*end, from.ip()) {
                        return Err(TransientDrop::WrongSource);
                    }
                    self.common.totals.markers_answered += 1;
                    out.push(Output::own(*to, encode(key, *sequence, Body::Answer(flow))));
                    Ok(())
                }
                Some(Past::In { .. }) | None => Err(TransientDrop::WrongPrefix),
            },
        }
    }

    fn answered(
        &mut self,
        key: PathKey,
        flow: Flow,
        from: IpAddr,
        now: Instant,
        free: bool,
    ) -> Result<(), TransientDrop> {
        let Place::Entry(prefix) = self.find(key, flow.destination)? else { return Ok(()) };
        let entry = self.entries.find_mut(prefix).ok_or(TransientDrop::WrongPrefix)?;
        let inbound = entry.inbound.as_mut().filter(|inbound| inbound.key == key);
        let inbound = inbound.ok_or(TransientDrop::WrongPrefix)?;
        is_from(inbound.from, from).then_some(()).ok_or(TransientDrop::WrongSource)?;
        let limits = &self.common.config.limits;
        inbound.postpone(flow, limits, now);
        if free {
            entry.free_flow(flow);
        }
        if settle(prefix, entry, limits, &mut self.due, &mut self.flushing) {
            self.flush_at.get_or_insert(Instant::ZERO);
        }
        Ok(())
    }

    fn end(
        &mut self,
        key: PathKey,
        prefix: Prefix,
        sequence: u32,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), TransientDrop> {
        match self.find(key, prefix.addr())? {
            Place::Entry(found) if found == prefix => {
                let entry = self.entries.find_mut(prefix).ok_or(TransientDrop::WrongPrefix)?;
                let inbound = entry.inbound.as_ref().filter(|inbound| inbound.key == key);
                let inbound = inbound.ok_or(TransientDrop::WrongPrefix)?;
                is_from(inbound.from, from.ip()).then_some(()).ok_or(TransientDrop::WrongSource)?;
                // Those at the very end would not be noticed otherwise.
                let window = &inbound.window;
                let more = window.missing(Some(sequence)).saturating_sub(window.missing(None));
                self.common.totals.missing += u64::from(more);
                self.with(prefix, |engine, entry| {
                    engine.close_inbound(prefix, entry, PathEnding::Drained, now);
                });
            }
            Place::Past(found) if found == prefix => {
                match self.past.get(&(key, prefix)).map(|path| &path.past) {
                    Some(Past::In { from: end, .. }) if is_from(*end, from.ip()) => {}
                    Some(Past::In { .. }) => return Err(TransientDrop::WrongSource),
                    Some(Past::Out { .. }) | None => return Err(TransientDrop::WrongPrefix),
                }
            }
            Place::Entry(_) | Place::Past(_) => return Err(TransientDrop::WrongPrefix),
        }
        out.push(Output::own(from, encode(key, 0, Body::EndAck(prefix))));
        Ok(())
    }

    fn end_ack(&mut self, key: PathKey, prefix: Prefix, from: IpAddr) -> Result<(), TransientDrop> {
        let Some(path) = self.past.get_mut(&(key, prefix)) else {
            return match self.keys.contains_key(&key) {
                true => Err(TransientDrop::WrongPrefix),
                false => Err(TransientDrop::UnknownKey),
            };
        };
        match &mut path.past {
            Past::Out { end, acknowledged, .. } if is_from(*end, from) => *acknowledged = true,
            Past::Out { .. } => return Err(TransientDrop::WrongSource),
            Past::In { .. } => return Err(TransientDrop::WrongPrefix),
        }
        Ok(())
    }

    fn close_inbound(&mut self, prefix: Prefix, entry: &mut Entry, how: PathEnding, now: Instant) {
        if let Outlet::Kernel = entry.outlet {
            return self.begin_close(prefix, entry, how, now);
        }
        if let Some(inbound) = entry.take_inbound() {
            self.remember_in(prefix, inbound, now);
        }
    }

    // ---- time ---------------------------------------------------------------------------------

    /// When to call [`Self::handle_timeout`] and [`Self::flush`] next.
    pub fn poll_timeout(&self) -> Instant {
        if !self.closing.is_empty() || !self.later.is_empty() {
            return Instant::ZERO;
        }
        let due = self.due.first().map(|(at, _)| *at);
        let past = self.past_due.first().map(|(at, _, _)| *at);
        let sources = self.sources.poll_timeout(&self.common.config.limits);
        let times = [due, past, self.flush_at, sources];
        times.into_iter().flatten().min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// Whether somebody asks for a marker. Then the device has to be empty before
    /// [`Self::handle_timeout`]: the answer says that all is on its way that came before.
    pub fn is_asked(&self) -> bool {
        self.common.asked > 0
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(&(at, prefix)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if let Some(entry) = self.entries.find_mut(prefix) {
                entry.armed = Instant::FAR_FUTURE;
            }
            self.with(prefix, |engine, entry| engine.entry_timeout(prefix, entry, now, out));
        }
        self.say_ends(now, out);
        self.sources.expire(now, &mut self.common);
    }

    fn entry_timeout(
        &mut self,
        prefix: Prefix,
        entry: &mut Entry,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for flow in entry.take_asked(Some(now), &mut self.common) {
            entry.direct(flow, Item::Marker(flow), now, &mut self.common, out);
        }
        if entry.closing.is_some() {
            return;
        }
        entry.expire_flows(now, &mut self.common, out);
        if let Some(inbound) = &entry.inbound
            && inbound.until <= now
        {
            let how = if inbound.heard { PathEnding::Bound } else { PathEnding::Silent };
            self.close_inbound(prefix, entry, how, now);
        }
        // Here, since what was due first may have changed the state.
        if entry.closing.is_some() || entry.deadline(&self.common.config.limits) > now {
            return;
        }
        let how = match &entry.outlet {
            Outlet::Hold { .. } => PathEnding::Silent,
            Outlet::Path(_) if entry.until <= now => PathEnding::Bound,
            Outlet::Path(_) => PathEnding::Drained,
            Outlet::Kernel => return,
        };
        self.begin_close(prefix, entry, how, now);
    }

    /// Sends of what waits and may go, about so many packets. To be called again when
    /// [`Self::poll_timeout`] says so.
    pub fn flush(&mut self, max: usize, now: Instant, out: &mut Vec<Output>) {
        out.append(&mut self.later);
        self.release_sources(max, now, out);
        let per_s = self.common.config.limits.flush_packets_per_s;
        self.pace.refill(per_s, now);
        let mut left = max;
        for _ in 0..self.flushing.len() {
            let Some(prefix) = (left > 0).then(|| self.flushing.pop_front()).flatten() else {
                break;
            };
            let Some(entry) = self.entries.find_mut(prefix) else { continue };
            let mut turn = left.min(FLUSH_TURN);
            let paced = matches!(entry.outlet, Outlet::Path(_));
            if paced {
                turn = turn.min(self.pace.packets());
            }
            let count = entry.flush(prefix, turn, now, &mut self.common, out);
            if paced {
                self.pace.spend(count);
            }
            left -= count;
            entry.listed = entry.wants_flush();
            if entry.listed {
                self.flushing.push_back(prefix);
            } else {
                let limits = &self.common.config.limits;
                settle(prefix, entry, limits, &mut self.due, &mut self.flushing);
            }
        }
        self.flush_at = match (self.flushing.is_empty(), self.pace.packets()) {
            (true, _) => None,
            (false, 0..FLUSH_TURN) => Some(now + self.pace.wait(per_s)),
            (false, _) => Some(Instant::ZERO),
        };
    }

    /// Packets of sources that may go now.
    fn release_sources(&mut self, max: usize, now: Instant, out: &mut Vec<Output>) {
        for _ in 0..max {
            let Some(octets) = self.sources.pop_free() else { return };
            if let Ok(head) = Head::of(&octets[HEADROOM..]) {
                self.diverted(&head, Carrier::Own(octets), now, out);
            }
        }
    }

    // ---- the end of a state -------------------------------------------------------------------
    //
    // The caller: next_closing, sends the outputs, reads the device until it is empty, and while
    // nobody changes routes: may_finish, takes away the route, finish; then reads the device
    // once more, as fast as it can.

    /// A prefix whose state is over, and when the last packet came from the device for it. All that
    /// waits in it is put out.
    pub fn next_closing(
        &mut self,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<(Prefix, Instant)> {
        loop {
            let prefix = self.closing.pop_front()?;
            if let Some(entry) = self.entries.find_mut(prefix)
                && entry.closing.is_some()
            {
                entry.flush(prefix, usize::MAX, now, &mut self.common, out);
                return Some((prefix, entry.diverted_at));
            }
        }
    }

    /// Nothing new has begun since.
    pub fn may_finish(&mut self, prefix: Prefix) -> bool {
        self.entries.find_mut(prefix).is_some_and(|entry| entry.closing.is_some())
    }

    pub fn finish(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(mut entry) = self.entries.remove(prefix) else { return };
        for flow in entry.take_asked(None, &mut self.common) {
            entry.pass(Item::Marker(flow), now, &mut self.common, out);
        }
        entry.flush(prefix, usize::MAX, now, &mut self.common, out);
        self.prefixes.remove(&prefix);
        self.remove_keys(prefix, entry.keys());
        self.due.remove(&(entry.armed, prefix));
        if let Outlet::Path(path) = &entry.outlet {
            self.remember_out(prefix, path, now);
        }
        let how = entry.closing.unwrap_or(PathEnding::Replaced);
        self.common.tell(TransientEvent::Ended { prefix, how, counts: entry.counts });
    }

    // ---- what it knows ------------------------------------------------------------------------

    /// The state of the prefix has begun, and its route is in the kernel.
    pub fn tell_holding(&mut self, prefix: Prefix) {
        self.common.tell(TransientEvent::Holding { prefix });
    }

    pub fn pop_event(&mut self) -> Option<TransientEvent> {
        self.common.events.pop_front()
    }

    pub fn has_events(&self) -> bool {
        !self.common.events.is_empty()
    }

    /// Whether any prefix has a state.
    pub fn is_idle(&self) -> bool {
        self.prefixes.is_empty()
    }

    pub fn count_refused(&mut self, packets: u64) {
        self.common.totals.dropped[TransientDrop::SendRefused as usize] += packets;
    }

    pub fn count_malformed(&mut self) {
        self.common.count(TransientDrop::Malformed);
    }

    pub fn totals(&mut self) -> TransientTotals {
        let mut totals = self.common.totals;
        for prefix in &self.prefixes {
            match self.entries.find_mut(*prefix).map(|entry| &entry.outlet) {
                Some(Outlet::Hold { .. }) => totals.holds += 1,
                Some(Outlet::Path(_)) => totals.forwards += 1,
                Some(Outlet::Kernel) => totals.gates += 1,
                None => {}
            }
        }
        totals.waiting = self.common.waiting as u64;
        totals.waiting_octets = self.common.waiting_octets as u64;
        totals.sources = self.sources.len() as u64;
        totals
    }

    /// In order of prefixes, those after `after`.
    pub fn paths(&mut self, after: Option<Prefix>, limit: usize) -> Vec<PathView> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let prefixes = self.prefixes.range((from, Unbounded)).take(limit);
        let entries = &mut self.entries;
        prefixes.filter_map(|&prefix| Some(entries.find_mut(prefix)?.view(prefix))).collect()
    }
}

/// After anything has happened to an entry: when it is to be looked at, and whether it has
/// something to send, which is also the result.
fn settle(
    prefix: Prefix,
    entry: &mut Entry,
    limits: &TransientLimits,
    due: &mut BTreeSet<(Instant, Prefix)>,
    flushing: &mut VecDeque<Prefix>,
) -> bool {
    let deadline = entry.deadline(limits);
    // Later than thought: it is looked at in vain, once. That is less than to move it each time.
    if deadline < entry.armed {
        due.remove(&(entry.armed, prefix));
        due.insert((deadline, prefix));
        entry.armed = deadline;
    }
    if !entry.listed && entry.wants_flush() {
        entry.listed = true;
        flushing.push_back(prefix);
    }
    entry.listed
}

/// Multicast, and link-local addresses: never routed.
fn is_for_the_link(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
    }
}
