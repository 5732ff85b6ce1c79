//! The data plane in user space: what FE_I and FE_E do with each packet (RFC 9300), without a
//! socket and without a clock. It works wherever there is a TUN device, and is the one that holds
//! first packets also where a kernel encapsulates.
//!
//! [`Engine`] works on a packet in the caller's slot, in place, and says what to do with it. What
//! is not about that packet (held packets that are free now, ICMP errors, packets for nodes that
//! have left) comes out of [`Engine::pop_output`], in order, and before the next packet is given in.
//!
//! As [`Use::Punt`] it encapsulates nothing: packets get here only because the kernel has no
//! mapping, are held, and go back to the kernel when there is one.

mod hold;
mod outer;
mod table;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use foldhash::fast::FixedState;

pub use hold::HoldLimits;
pub use outer::HEADROOM;
pub(crate) use table::Table;

use self::hold::{Full, Hold};
use self::outer::Outer;
use super::encap::{DropReason, EncapError, Families, REWRITING, Totals};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use crate::types::{Family, Instant, Prefix};
use crate::wire::encap::{
    self as wire, Head, IcmpError, LispHeader, fragment, outer_len, put_icmp_error,
    set_ttl_and_class,
};

/// Entries, groups and allowed prefixes; more are refused with [`EncapError::Full`].
pub const ENTRIES_MAX: usize = 4_000_000;
pub const GROUPS_MAX: u32 = 1 << 16;
pub const DECAP_MAX: usize = 1_000_000;

/// Events that wait for the control plane. When full, the newest is left out; the next packet
/// says it again.
pub const EVENTS_MAX: usize = 4_096;

/// ICMP errors per second, and at once (RFC 1812 §4.3.2.8, RFC 4443 §2.4).
const ICMP_PER_SECOND: u32 = 100;
const ICMP_BURST: u32 = 100;

/// A late packet of the same sender to the same destination is told once in so long, and so is a
/// destination that is asked for and not held. So many are remembered; two that share a place are
/// told more often.
const TELL_AGAIN: Duration = Duration::from_secs(1);
const TOLD_PLACES: usize = 1_024;

/// As [`Use::Punt`]: so long after a prefix has got its mapping, packets that were on their way
/// here already go back to the kernel. After that one that still comes is dropped, because then
/// the kernel's route is missing and it would go around until its TTL is over.
const BACK_FOR: Duration = Duration::from_secs(2);
/// Such prefixes, at most; the oldest is forgotten when full.
const BACK_MAX: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// All encapsulation and decapsulation.
    Encapsulate,
    /// Only to hold packets: another data plane encapsulates.
    Punt,
}

/// What becomes of packets to a prefix while its mapping is being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstPackets {
    /// They wait for it.
    #[default]
    Hold,
    /// They take the ordinary routes, which lead to the home anchor: the triangle.
    Triangle,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub used_for: Use,
    /// The instance whose packets are taken out of the tunnel; others are dropped. `None`: all.
    pub iid: Option<InstanceId>,
    /// Our locators: the outer sources, and the sources of ICMP errors. A locator of a family that
    /// we have none of is not usable.
    pub source4: Option<Ipv4Addr>,
    pub source6: Option<Ipv6Addr>,
    /// The largest packet that the underlay carries (L of RFC 9300 §7.1).
    pub underlay_mtu: u16,
    pub hold: HoldLimits,
    /// Of each configured prefix; the others hold.
    pub first_packets: Vec<(Prefix, FirstPackets)>,
}

impl Config {
    fn source(&self, of: IpAddr) -> Option<IpAddr> {
        match of {
            IpAddr::V4(_) => self.source4.map(IpAddr::V4),
            IpAddr::V6(_) => self.source6.map(IpAddr::V6),
        }
    }

    pub fn outer(&self) -> Families {
        Families { ipv4: self.source4.is_some(), ipv6: self.source6.is_some() }
    }

    /// The MTU of the device that packets come by: what fits whatever the locator's family is.
    pub fn device_mtu(&self) -> u16 {
        let overhead = match (self.used_for, self.source6) {
            (Use::Punt, _) => 0,
            (Use::Encapsulate, Some(_)) => outer_len(Family::Ipv6),
            (Use::Encapsulate, None) => outer_len(Family::Ipv4),
        };
        self.underlay_mtu.saturating_sub(overhead as u16).max(1280)
    }
}

/// What is to be done with a packet from the inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// The datagram is in the slot, from `start` on, and `len` octets long.
    Encapsulated {
        start: usize,
        len: usize,
        rloc: IpAddr,
    },
    Held,
    /// Back to the kernel, as it is.
    Back,
    /// To the kernel, as it is, for the routes that would be there without tunnels.
    Around,
    /// What becomes of it is in [`Engine::pop_output`] (it was split).
    Replaced,
    /// What the kernel says on any interface (MLD, router solicitations).
    Ignored,
    Dropped(DropReason),
}

/// What is to be done with a datagram from the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromTunnel {
    /// The packet is in the payload, from `start` on, and `len` octets long.
    Deliver {
        start: usize,
        len: usize,
    },
    /// The node has left: the packet is in [`Engine::pop_output`], in a new datagram.
    Forwarded,
    Dropped(DropReason),
}

/// Packets that are not the one that was given in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A whole IP packet for the underlay.
    Datagram { to: IpAddr, octets: Vec<u8> },
    /// A packet for the kernel to route.
    Back { octets: Vec<u8> },
}

struct Entry {
    prefix: Prefix,
    action: EntryAction,
    count: EntryCount,
    /// No packet yet since it leads where it leads.
    fresh: bool,
    /// Packets since [`Engine::used`] looked.
    used: bool,
}

struct Group {
    members: Vec<Member>,
}

struct Member {
    outer: Outer,
    /// The sum of the weights up to this member.
    weight_end: u32,
}

impl Group {
    fn new(path: &GroupPath, config: &Config) -> Self {
        let GroupPath::Encap { members, iid } = path else { return Self { members: Vec::new() } };
        // Weights that are all 0 share evenly.
        let even = u32::from(members.iter().all(|(_, weight)| *weight == 0));
        let mut weight_end = 0;
        let members = members.iter().filter_map(|&(addr, weight)| {
            let outer = Outer::new(config.source(addr)?, addr, *iid)?;
            weight_end += u32::from(weight) + even;
            Some(Member { outer, weight_end })
        });
        Self { members: members.collect() }
    }

    /// The locator of a flow, by weight (RFC 9300 §12).
    fn member(&self, flow: u64) -> Option<&Outer> {
        match &*self.members {
            [] => None,
            [only] => Some(&only.outer),
            [.., last] => {
                // All usable ones may have weight 0 beside one that is not usable.
                let share = flow as u32 % last.weight_end.max(1);
                let member = self.members.iter().find(|member| share < member.weight_end);
                Some(&member.unwrap_or(last).outer)
            }
        }
    }
}

/// See the head of this file.
pub struct Engine {
    config: Config,
    groups: Vec<Option<Group>>,
    /// Places in `slab`.
    entries: Table<u32>,
    slab: Vec<Option<Entry>>,
    free: Vec<u32>,
    allowed: Table<()>,
    hold: Hold,
    first_packets: Table<FirstPackets>,
    /// Destinations that were asked for without being held.
    asked: Box<[(u64, Instant)]>,
    /// As [`Use::Punt`]: what goes back to the kernel until when.
    back: Table<Instant>,
    back_order: VecDeque<(Instant, Prefix)>,
    outputs: VecDeque<Output>,
    events: VecDeque<EncapEvent>,
    late_told: Box<[(u64, Instant)]>,
    icmp: Tokens,
    counters: Counters,
}

/// Packets and what became of them; [`Totals`] and what it has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub totals: Totals,
    /// Held since the beginning, and of these: sent after all, and too old.
    pub kept: u64,
    pub released: u64,
    pub expired: u64,
    /// Given back to the kernel as they came ([`Use::Punt`]), not from the hold.
    pub back: u64,
    pub icmp_sent: u64,
    /// Events that found the queue full.
    pub events_lost: u64,
}

/// A bucket that is filled by time.
struct Tokens {
    tokens: u32,
    filled_at: Instant,
}

impl Tokens {
    fn take(&mut self, now: Instant) -> bool {
        const TOKEN: Duration = Duration::from_micros(1_000_000 / ICMP_PER_SECOND as u64);
        let earned = now.saturating_since(self.filled_at).as_micros() / TOKEN.as_micros();
        if earned >= u128::from(ICMP_BURST) {
            *self = Self { tokens: ICMP_BURST, filled_at: now };
        } else if let Ok(earned) = u32::try_from(earned) {
            self.tokens = (self.tokens + earned).min(ICMP_BURST);
            self.filled_at += TOKEN * earned;
        }
        let Some(tokens) = self.tokens.checked_sub(1) else { return false };
        self.tokens = tokens;
        true
    }
}

impl Engine {
    pub fn new(config: Config) -> Self {
        let hold = Hold::new(config.hold);
        let mut first_packets = Table::default();
        for &(prefix, first) in &config.first_packets {
            first_packets.insert(prefix, first);
        }
        Self {
            config,
            first_packets,
            asked: vec![(0, Instant::ZERO); TOLD_PLACES].into(),
            groups: Vec::new(),
            entries: Table::default(),
            slab: Vec::new(),
            free: Vec::new(),
            allowed: Table::default(),
            hold,
            back: Table::default(),
            back_order: VecDeque::new(),
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            late_told: vec![(0, Instant::ZERO); TOLD_PLACES].into(),
            icmp: Tokens { tokens: ICMP_BURST, filled_at: Instant::ZERO },
            counters: Counters::default(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.totals.held = self.hold.packets() as u64;
        counters
    }

    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The next of what is to be sent, in order. Each call of a `handle_` or of [`Self::apply`] may
    /// add some; held packets at most.
    pub fn pop_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn pop_event(&mut self) -> Option<EncapEvent> {
        self.events.pop_front()
    }

    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// A packet that the underlay did not take.
    pub fn count_refused(&mut self, packets: u64) {
        self.counters.totals.dropped[DropReason::Underlay as usize] += packets;
    }

    /// A datagram from the tunnel that was longer than the caller's slot.
    pub fn count_malformed(&mut self) {
        self.drop_packet(DropReason::Malformed);
    }

    pub fn poll_timeout(&self) -> Instant {
        let held = self.hold.poll_timeout();
        let back = self.back_order.front().map(|&(until, _)| until);
        [held, back].into_iter().flatten().min().unwrap_or(Instant::FAR_FUTURE)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let expired = self.hold.expire_old(now);
        self.counters.expired += expired;
        self.counters.totals.dropped[DropReason::NotHeld as usize] += expired;
        while let Some(&(until, _)) = self.back_order.front()
            && until <= now
        {
            self.forget_oldest_back();
        }
    }

    fn drop_packet(&mut self, reason: DropReason) -> DropReason {
        self.counters.totals.dropped[reason as usize] += 1;
        reason
    }

    /// False when the queue is full.
    fn tell(&mut self, event: EncapEvent) -> bool {
        let room = self.events.len() < EVENTS_MAX;
        if room {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
        room
    }

    // ---- packets ------------------------------------------------------------------------------

    /// A packet that the kernel routed to the device: octets [`HEADROOM`]`..HEADROOM + len` of the
    /// slot. The kernel has counted the hop.
    pub fn handle_inner(&mut self, slot: &mut [u8], len: usize, now: Instant) -> Inner {
        let head = slot.get(HEADROOM..HEADROOM + len).and_then(|packet| Head::of(packet).ok());
        let Some(head) = head else {
            return Inner::Dropped(self.drop_packet(DropReason::Malformed));
        };
        if head.destination.is_multicast() {
            return Inner::Ignored;
        }
        match self.config.used_for {
            Use::Encapsulate => self.forward(slot, &head, now),
            Use::Punt => self.punt(slot, &head, now),
        }
    }

    fn forward(&mut self, slot: &mut [u8], head: &Head, now: Instant) -> Inner {
        let Some((_, &mut at)) = self.entries.lookup_mut(head.destination) else {
            // A route leads here, and no entry: its removal is on the way.
            return Inner::Dropped(self.drop_packet(DropReason::Unreachable));
        };
        let entry = self.slab[at as usize].as_ref().expect("entries lead to filled places");
        match entry.action {
            EntryAction::Group(group) => self.encapsulate(at, group, slot, head, now),
            EntryAction::Punt => self.keep(slot, head, now),
            // Its route leads elsewhere, and is on the way.
            EntryAction::Native | EntryAction::Rewrite(_) => {
                Inner::Dropped(self.drop_packet(DropReason::Unreachable))
            }
            EntryAction::Drop => Inner::Dropped(self.drop_packet(DropReason::Policy)),
        }
    }

    fn encapsulate(
        &mut self,
        at: u32,
        group: GroupId,
        slot: &mut [u8],
        head: &Head,
        now: Instant,
    ) -> Inner {
        let group = self.groups.get(group.0 as usize).and_then(Option::as_ref);
        let Some(outer) = group.and_then(|group| group.member(head.flow)) else {
            return Inner::Dropped(self.drop_packet(DropReason::Unreachable));
        };
        let (len, rloc) = (outer.len() + head.len, outer.destination);
        let len_max = usize::from(self.config.underlay_mtu);
        if len > len_max {
            let packet_max = len_max - outer.len();
            return self.handle_too_long(at, outer.clone(), packet_max, slot, head, now);
        }
        let start = outer.put(slot, head);
        self.count(at, head.len);
        Inner::Encapsulated { start, len, rloc }
    }

    /// RFC 9300 §7.1: split, or told to its source.
    fn handle_too_long(
        &mut self,
        at: u32,
        outer: Outer,
        packet_max: usize,
        slot: &[u8],
        head: &Head,
        now: Instant,
    ) -> Inner {
        let packet = &slot[HEADROOM..HEADROOM + head.len];
        let mut parts = Vec::new();
        let put_part = |part: &[u8]| {
            let mut octets = vec![0; HEADROOM];
            octets.extend_from_slice(part);
            let start = outer.put(&mut octets, &Head { len: part.len(), ..*head });
            octets.drain(..start);
            parts.push(octets);
        };
        if fragment(packet, packet_max, put_part).is_ok() {
            for octets in parts {
                self.count(at, octets.len() - outer.len());
                self.outputs.push_back(Output::Datagram { to: outer.destination, octets });
            }
            return Inner::Replaced;
        }
        let mtu_bytes = u16::try_from(packet_max).unwrap_or(u16::MAX);
        self.answer(IcmpError::TooBig { mtu_bytes }, packet, head, now);
        Inner::Dropped(self.drop_packet(DropReason::TooBig))
    }

    fn answer(&mut self, error: IcmpError, packet: &[u8], head: &Head, now: Instant) {
        let Some(from) = self.config.source(head.source) else { return };
        let mut octets = Vec::new();
        // Nobody is told about an error, for example.
        if put_icmp_error(packet, from, error, &mut octets) == Ok(true) && self.icmp.take(now) {
            self.counters.icmp_sent += 1;
            self.outputs.push_back(Output::Datagram { to: head.source, octets });
        }
    }

    fn count(&mut self, at: u32, octets: usize) {
        let entry = self.slab[at as usize].as_mut().expect("entries lead to filled places");
        entry.count.packets += 1;
        entry.count.octets += octets as u64;
        entry.used = true;
        self.counters.totals.encapsulated.packets += 1;
        self.counters.totals.encapsulated.octets += octets as u64;
        if entry.fresh {
            let prefix = entry.prefix;
            // Said by the next packet when there is no room now.
            let fresh = !self.tell(EncapEvent::FirstPacket { prefix });
            let entry = self.slab[at as usize].as_mut().expect("as above");
            entry.fresh = fresh;
        }
    }

    /// A packet without a mapping.
    fn keep(&mut self, slot: &[u8], head: &Head, now: Instant) -> Inner {
        let first = self.first_packets.lookup_mut(head.destination).map(|(_, first)| *first);
        match first.unwrap_or_default() {
            FirstPackets::Hold => self.hold_packet(slot, head, now),
            FirstPackets::Triangle => {
                self.ask_for(head, now);
                self.counters.totals.around.packets += 1;
                self.counters.totals.around.octets += head.len as u64;
                Inner::Around
            }
            FirstPackets::Drop => {
                self.ask_for(head, now);
                Inner::Dropped(self.drop_packet(DropReason::FirstPacket))
            }
        }
    }

    fn ask_for(&mut self, head: &Head, now: Instant) {
        let key = FixedState::with_seed(1).hash_one(head.destination);
        if is_told_now(&mut self.asked, key, now) {
            let Head { source, destination, .. } = *head;
            self.tell(EncapEvent::Miss { source, destination });
        }
    }

    fn hold_packet(&mut self, slot: &[u8], head: &Head, now: Instant) -> Inner {
        let kept = self.hold.keep(head.destination, &slot[..HEADROOM + head.len], now);
        if kept.ask {
            let Head { source, destination, .. } = *head;
            self.tell(EncapEvent::Miss { source, destination });
        }
        match kept.result {
            Ok(()) => {
                self.counters.kept += 1;
                Inner::Held
            }
            Err(Full::Destination | Full::Total) => {
                Inner::Dropped(self.drop_packet(DropReason::NotHeld))
            }
        }
    }

    fn punt(&mut self, slot: &[u8], head: &Head, now: Instant) -> Inner {
        match self.back.lookup_mut(head.destination) {
            Some((_, until)) if *until > now => {
                self.counters.back += 1;
                Inner::Back
            }
            Some(_) | None => match self.entries.lookup_mut(head.destination) {
                Some(_) => self.keep(slot, head, now),
                None => Inner::Dropped(self.drop_packet(DropReason::NotHeld)),
            },
        }
    }

    /// A datagram to UDP 4341: its payload, and what its outer header said.
    pub fn handle_outer(
        &mut self,
        from: IpAddr,
        ttl: u8,
        traffic_class: u8,
        payload: &mut [u8],
        now: Instant,
    ) -> FromTunnel {
        let (iid, mut head) = match wire::decapsulate(payload, ttl, traffic_class) {
            Ok(inner) => (inner.header.iid.unwrap_or_default(), inner.head),
            Err(wire::DropReason::HopLimit) => {
                return FromTunnel::Dropped(self.drop_packet(DropReason::TimeToLive));
            }
            // Nor is there one reason more for what was marked as congested on the way, while
            // its ends do not understand the mark: that is their mistake too (RFC 6040 §4.2).
            Err(_) => return FromTunnel::Dropped(self.drop_packet(DropReason::Malformed)),
        };
        if self.config.iid.is_some_and(|ours| ours != iid) {
            return FromTunnel::Dropped(self.drop_packet(DropReason::Instance));
        }
        let Some((allowed, ())) = self.allowed.lookup_mut(head.destination) else {
            return FromTunnel::Dropped(self.drop_packet(DropReason::NotAllowed));
        };
        let inner = &mut payload[LispHeader::LEN..];
        set_ttl_and_class(inner, head.ttl, head.traffic_class);
        if let Some((at, group)) = self.find_departed(allowed, head.destination) {
            self.tell_late(from, iid, &head, now);
            return self.forward_late(at, group, inner, &mut head, now);
        }
        self.counters.totals.decapsulated.packets += 1;
        self.counters.totals.decapsulated.octets += head.len as u64;
        FromTunnel::Deliver { start: LispHeader::LEN, len: head.len }
    }

    /// The entry of a node that has left: it says where to, and is at least as long as the prefix
    /// that may be taken out of the tunnel. (A shorter one is about the neighbourhood: a node that
    /// is attached here has a longer route in the kernel.)
    fn find_departed(&mut self, allowed: Prefix, destination: IpAddr) -> Option<(u32, GroupId)> {
        let (prefix, &mut at) = self.entries.lookup_mut(destination)?;
        let entry = self.slab[at as usize].as_ref().expect("entries lead to filled places");
        match entry.action {
            EntryAction::Group(group) if prefix.len() >= allowed.len() => Some((at, group)),
            EntryAction::Group(_)
            | EntryAction::Punt
            | EntryAction::Native
            | EntryAction::Drop
            | EntryAction::Rewrite(_) => None,
        }
    }

    fn forward_late(
        &mut self,
        at: u32,
        group: GroupId,
        packet: &mut [u8],
        head: &mut Head,
        now: Instant,
    ) -> FromTunnel {
        // No kernel forwards it, so the hop is counted here.
        if head.ttl <= 1 {
            self.answer(IcmpError::HopLimit, packet, head, now);
            return FromTunnel::Dropped(self.drop_packet(DropReason::TimeToLive));
        }
        head.ttl -= 1;
        set_ttl_and_class(packet, head.ttl, head.traffic_class);
        let mut octets = vec![0; HEADROOM];
        octets.extend_from_slice(&packet[..head.len]);
        match self.encapsulate(at, group, &mut octets, head, now) {
            Inner::Encapsulated { start, rloc, .. } => {
                octets.drain(..start);
                self.outputs.push_back(Output::Datagram { to: rloc, octets });
            }
            Inner::Replaced => {}
            Inner::Dropped(reason) => return FromTunnel::Dropped(reason),
            Inner::Held | Inner::Back | Inner::Around | Inner::Ignored => {
                unreachable!("a group encapsulates or drops")
            }
        }
        self.counters.totals.late.packets += 1;
        self.counters.totals.late.octets += head.len as u64;
        FromTunnel::Forwarded
    }

    fn tell_late(&mut self, rloc: IpAddr, iid: InstanceId, head: &Head, now: Instant) {
        let key = FixedState::with_seed(1).hash_one((rloc, head.destination));
        if is_told_now(&mut self.late_told, key, now) {
            let Head { source, destination, .. } = *head;
            self.tell(EncapEvent::Late { rloc, iid, source, destination });
        }
    }

    // ---- changes ------------------------------------------------------------------------------

    /// One change. Packets that wait for it come out of [`Self::pop_output`].
    pub fn apply(&mut self, change: &EncapChange, now: Instant) -> Result<(), EncapError> {
        match *change {
            EncapChange::SetGroup { group, ref path } => self.set_group(group, path),
            EncapChange::RemoveGroup { group } => {
                if let Some(place) = self.groups.get_mut(group.0 as usize) {
                    *place = None;
                }
                Ok(())
            }
            EncapChange::SetEntry { prefix, action } => match self.config.used_for {
                Use::Encapsulate => self.set_entry(prefix, action, now),
                Use::Punt => self.set_punted(prefix, action, now),
            },
            EncapChange::RemoveEntry { prefix } => {
                self.remove_entry(prefix);
                self.back.remove(prefix);
                Ok(())
            }
            EncapChange::AllowDecap { prefix } => {
                if self.allowed.len() >= DECAP_MAX && self.allowed.find_mut(prefix).is_none() {
                    return Err(EncapError::Full);
                }
                self.allowed.insert(prefix, ());
                Ok(())
            }
            EncapChange::ForbidDecap { prefix } => {
                self.allowed.remove(prefix);
                Ok(())
            }
        }
    }

    fn set_group(&mut self, group: GroupId, path: &GroupPath) -> Result<(), EncapError> {
        if group.0 >= GROUPS_MAX {
            return Err(EncapError::Full);
        }
        let at = group.0 as usize;
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || None);
        }
        self.groups[at] = Some(Group::new(path, &self.config));
        Ok(())
    }

    fn set_entry(
        &mut self,
        prefix: Prefix,
        action: EntryAction,
        now: Instant,
    ) -> Result<(), EncapError> {
        if let EntryAction::Group(group) = action
            && !matches!(self.groups.get(group.0 as usize), Some(Some(_)))
        {
            return Err(EncapError::NoGroup);
        }
        if let EntryAction::Rewrite(_) = action {
            return Err(EncapError::Unsupported(REWRITING));
        }
        match self.entries.find_mut(prefix) {
            Some(&mut at) => {
                let entry = self.slab[at as usize].as_mut().expect("entries lead to filled places");
                if entry.action != action {
                    (entry.action, entry.fresh) = (action, true);
                }
            }
            None => self.add_entry(prefix, action)?,
        }
        self.release(prefix, now);
        Ok(())
    }

    fn add_entry(&mut self, prefix: Prefix, action: EntryAction) -> Result<(), EncapError> {
        if self.entries.len() >= ENTRIES_MAX {
            return Err(EncapError::Full);
        }
        let count = EntryCount::default();
        let entry = Some(Entry { prefix, action, count, fresh: true, used: false });
        let at = match self.free.pop() {
            Some(at) => {
                self.slab[at as usize] = entry;
                at
            }
            None => {
                self.slab.push(entry);
                u32::try_from(self.slab.len() - 1).expect("below ENTRIES_MAX")
            }
        };
        self.entries.insert(prefix, at);
        Ok(())
    }

    fn remove_entry(&mut self, prefix: Prefix) {
        if let Some(at) = self.entries.remove(prefix) {
            self.slab[at as usize] = None;
            self.free.push(at);
        }
    }

    /// What waits for a mapping inside `prefix` goes, if there is one now, in the order it came.
    fn release(&mut self, prefix: Prefix, now: Instant) {
        if self.hold.is_empty() {
            return;
        }
        for destination in self.hold.destinations(prefix) {
            let Some((_, &mut at)) = self.entries.lookup_mut(destination) else { continue };
            let entry = self.slab[at as usize].as_ref().expect("entries lead to filled places");
            if entry.action == EntryAction::Punt {
                continue;
            }
            for mut slot in self.hold.take(destination) {
                self.counters.released += 1;
                let len = slot.len() - HEADROOM;
                match self.handle_inner(&mut slot, len, now) {
                    Inner::Encapsulated { start, rloc, .. } => {
                        slot.drain(..start);
                        self.outputs.push_back(Output::Datagram { to: rloc, octets: slot });
                    }
                    Inner::Held | Inner::Back | Inner::Around | Inner::Ignored => {
                        unreachable!("the entry is not punted")
                    }
                    Inner::Replaced | Inner::Dropped(_) => {}
                }
            }
        }
    }

    /// As [`Use::Punt`], only the punted entries matter; what is set otherwise is the kernel's.
    fn set_punted(
        &mut self,
        prefix: Prefix,
        action: EntryAction,
        now: Instant,
    ) -> Result<(), EncapError> {
        if action == EntryAction::Punt {
            self.back.remove(prefix);
            return match self.entries.find_mut(prefix) {
                Some(_) => Ok(()),
                None => self.add_entry(prefix, action),
            };
        }
        let was_punted = self.entries.lookup_mut(prefix.addr()).is_some();
        self.remove_entry(prefix);
        let mut waited = false;
        for destination in self.hold.destinations(prefix) {
            let inside = self.entries.lookup_mut(destination);
            if inside.is_some_and(|(other, _)| prefix.contains(other)) {
                continue; // of a longer prefix, which is punted still
            }
            waited = true;
            for mut octets in self.hold.take(destination) {
                self.counters.released += 1;
                octets.drain(..HEADROOM);
                // Also for a drop: the kernel counts it where it counts the others.
                self.outputs.push_back(Output::Back { octets });
            }
        }
        if !was_punted && !waited {
            return Ok(());
        }
        if self.back_order.len() >= BACK_MAX {
            self.forget_oldest_back();
        }
        let until = now + BACK_FOR;
        self.back.insert(prefix, until);
        self.back_order.push_back((until, prefix));
        Ok(())
    }

    fn forget_oldest_back(&mut self) {
        let Some((until, prefix)) = self.back_order.pop_front() else { return };
        // It may have been set again meanwhile, and is in the order a second time.
        if self.back.find_mut(prefix).is_some_and(|now_until| *now_until == until) {
            self.back.remove(prefix);
        }
    }

    /// Entries inside a prefix, sorted. Looks at all there are: for the rare change of a pool.
    pub fn entries_in(&self, prefix: Prefix) -> Vec<(Prefix, EntryAction)> {
        let entries = self.slab.iter().flatten().filter(|entry| prefix.contains(entry.prefix));
        let mut found: Vec<_> = entries.map(|entry| (entry.prefix, entry.action)).collect();
        found.sort_unstable_by_key(|(prefix, _)| *prefix);
        found
    }

    // ---- counts -------------------------------------------------------------------------------

    /// Calls `visit` with up to `limit` entries from behind `after` on, in the order of their
    /// places; the last one looked at, `None` at the end.
    fn walk(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        mut visit: impl FnMut(&mut Entry),
    ) -> Option<Prefix> {
        // A cursor that is gone begins anew.
        let start = after
            .and_then(|prefix| self.entries.find_mut(prefix))
            .map_or(0, |&mut at| at as usize + 1);
        let mut last = None;
        let mut visited = 0;
        for place in &mut self.slab[start..] {
            // Empty places are looked at too, but not without end.
            visited += 1;
            if visited > limit && last.is_some() {
                return last;
            }
            let Some(entry) = place else { continue };
            visit(entry);
            last = Some(entry.prefix);
        }
        None
    }

    pub fn entry_counts(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Option<Prefix> {
        self.walk(after, limit, |entry| out.push((entry.prefix, entry.count)))
    }

    pub fn entry_count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        let at = *self.entries.find_mut(prefix)?;
        self.slab[at as usize].as_ref().map(|entry| entry.count)
    }

    /// Entries that carried packets since the last look.
    pub fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Option<Prefix> {
        self.walk(after, limit, |entry| {
            if std::mem::take(&mut entry.used) {
                out.push(entry.prefix);
            }
        })
    }
}

/// Whether something is told, or was a moment ago.
fn is_told_now(told: &mut [(u64, Instant)], key: u64, now: Instant) -> bool {
    let place = &mut told[key as usize % TOLD_PLACES];
    // An instant of 0 is a place that was never used.
    let again = place.0 != key || now.saturating_since(place.1) >= TELL_AGAIN;
    if again {
        *place = (key, now);
    }
    again
}

#[cfg(test)]
mod tests;
