//! LISP-GPE by the Linux kernel itself (RFC 9305): one VXLAN device that takes its encapsulation from
//! nexthop objects, and routes that lead to these by number.
//!
//! ```text
//! main table       entries of FE_I          prefix -> group -> locators
//! sets of the guard what FE_E takes          prefix, else dropped and counted
//! ```
//!
//! Entries are in the main table, beside the routes of others, told apart by protocol number and metric:
//! a routing rule, of whomever and for whatever, makes all that a machine forwards dearer by two
//! thirds. So the longest prefix decides, whoever made it; [`super::carve`] has what follows from that.
//!
//! A group is a nexthop object of each family (an IPv6 route needs one of its own) that holds those
//! of its locators; these are shared by all groups. So a host moves by one route, and a group, of
//! however many hosts, by one object of each family.
//!
//! What the kernel does not do: it counts no packets of single routes, it does not copy the DSCP and the
//! TTL to the outer header (ECN it does; the outer TTL is the machine's default), and it takes no
//! packets without the P bit, that is none of plain RFC 9300. A node that has left is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::carve::{Carver, Entry, METRIC, Write};
use super::reconcile::usable;
use super::{Caps, DropReason, EncapError, Encapsulator, Families, REWRITING, Totals, guard};
use crate::dataplane::OpError;
use crate::dataplane::filter::{FilterError, State};
use crate::dataplane::netlink::{
    Counts, Deletions, Dumped, ENCAP_RULE, ENCAP_TABLE, SetChange, SetOf, Sets, SetupError, Step,
    To, TunnelLink, Tunnels, Via, tunnel_protocol,
};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use crate::types::seam::IfIndex;
use crate::types::{Family, Prefix};

/// Numbers of our nexthop objects begin with a K. Other programs count from 1, or begin with bits of
/// their own.
const NEXTHOPS: u32 = 0x4b00_0000;
const GROUPS: u32 = NEXTHOPS + 0x10_0000;
const MEMBERS: u32 = NEXTHOPS + 0x20_0000;
const END: u32 = NEXTHOPS + 0x40_0000;
const GROUPS_MAX: u32 = 0x4_0000;
const _: () = assert!(GROUPS + 2 * GROUPS_MAX <= MEMBERS);
/// Distinct locators; each is two objects.
const MEMBERS_MAX: u32 = (END - MEMBERS) / 2;

/// As many as the tables of the control plane hold.
const ENTRIES_MAX: usize = crate::types::limits::BINDINGS_MAX;

/// A message of them fits into the kernel's and our buffers.
const ELEMENTS_AT_ONCE: usize = 256;

/// Outer header, UDP, LISP.
const OVERHEAD_IPV4: u32 = 20 + 8 + 8;
const OVERHEAD_IPV6: u32 = 40 + 8 + 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub device: String,
    /// Takes what no tunnel is for.
    pub sink: String,
    pub port: u16,
    /// Own locators: outer sources, and the families in which locators of others are of use.
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// Of the underlay; the tunnel's is smaller by the headers.
    pub underlay_mtu_bytes: u32,
    /// Packets of other instances are not taken out of the tunnel.
    pub iid: InstanceId,
    /// An interface that brings packets of punted entries to the control plane. Without one they
    /// are dropped and counted.
    pub punt: Option<String>,
    /// Priority of a routing rule: entries are in a table of their own, before all others. For who
    /// must see the routes of others without ours, at the price of the rule. None: in the main table.
    pub rule: Option<u32>,
    /// Not that of delivery and BGP, so that nobody takes the routes of the one for the other's.
    pub protocol: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: "killick-gpe".to_owned(),
            sink: "killick-drop".to_owned(),
            port: 4341,
            ipv4: None,
            ipv6: None,
            underlay_mtu_bytes: 1500,
            iid: InstanceId(0),
            punt: None,
            rule: None,
            protocol: tunnel_protocol(107),
        }
    }
}

impl Options {
    const fn table(&self) -> u8 {
        match self.rule {
            Some(_) => ENCAP_TABLE,
            None => libc::RT_TABLE_MAIN,
        }
    }

    pub fn mtu_bytes(&self) -> u32 {
        let overhead = if self.ipv6.is_some() { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 };
        self.underlay_mtu_bytes.saturating_sub(overhead)
    }
}

/// Routes of these lead to an object that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    Sink(DropReason),
    Punt,
}

impl Fixed {
    const ALL: [Self; guard::SINKS.len() + 1] = [
        Self::Sink(guard::SINKS[0]),
        Self::Sink(guard::SINKS[1]),
        Self::Sink(guard::SINKS[2]),
        Self::Punt,
    ];

    fn nexthop(self, family: Family) -> u32 {
        let at = Self::ALL.iter().position(|&fixed| fixed == self).expect("ALL has all");
        NEXTHOPS + 2 * u32::try_from(at).expect("a handful") + bit(family)
    }
}

fn bit(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

fn group_nexthop(slot: u32, family: Family) -> u32 {
    GROUPS + 2 * slot + bit(family)
}

fn member_nexthop(number: u32, family: Family) -> u32 {
    MEMBERS + 2 * number + bit(family)
}

type Remote = (IpAddr, u32);

/// A locator in the kernel, shared by groups.
#[derive(Clone, Copy, Debug)]
struct Member {
    number: u32,
    users: u32,
}

#[derive(Default)]
struct Members {
    by_remote: BTreeMap<Remote, Member>,
    free: BTreeSet<u32>,
    /// Numbers from here on were never used.
    next: u32,
}

impl Members {
    fn take_number(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        let number = (self.next < MEMBERS_MAX).then_some(self.next)?;
        self.next += 1;
        Some(number)
    }
}

/// Locators and weights of a group in the kernel; none when it is unreachable.
type Held = Vec<(Remote, u8)>;

enum Dump {
    /// What was there when the list began; a change meanwhile begins it again.
    Nexthops {
        changes: u64,
        seen: Vec<(u32, Via)>,
    },
    /// Those of hosts are listed as they come, the others at the end.
    Routes {
        family: Family,
        wide: BTreeMap<(Prefix, u32), To>,
    },
    Sets {
        at: usize,
        seen: BTreeSet<Prefix>,
    },
}

/// What FE_E takes. Intervals must not overlap in the kernel, so one within another is only here.
#[derive(Default)]
struct Allowed {
    hosts: BTreeSet<Prefix>,
    wide: BTreeSet<Prefix>,
    /// Written since a list began, which may be older.
    written: BTreeSet<Prefix>,
}

impl Allowed {
    fn of(&mut self, prefix: Prefix) -> &mut BTreeSet<Prefix> {
        if prefix.is_host() { &mut self.hosts } else { &mut self.wide }
    }

    fn is_covered(&self, prefix: Prefix) -> bool {
        let wider = |len| Prefix::new(prefix.addr(), len).filter(|p| self.wide.contains(p));
        (0..prefix.len()).any(|len| wider(len).is_some())
    }

    /// Those within, without what is within these.
    fn within(&self, prefix: Prefix) -> Vec<Prefix> {
        let mut found: Vec<Prefix> = Vec::new();
        let inside = self.wide.range(prefix..).take_while(|p| prefix.contains(**p));
        for &one in inside.filter(|p| **p != prefix) {
            if !found.last().is_some_and(|last| last.contains(one)) {
                found.push(one);
            }
        }
        found
    }

    /// What to write so that it is, or is no longer.
    fn change(&mut self, prefix: Prefix, add: bool, out: &mut Vec<SetChange>) {
        let changed = match add {
            true => self.of(prefix).insert(prefix),
            false => self.of(prefix).remove(&prefix),
        };
        if !changed {
            return;
        }
        self.written.insert(prefix);
        if prefix.is_host() {
            out.push(SetChange { prefix, add });
        } else if !self.is_covered(prefix) {
            let within = self.within(prefix).into_iter();
            let within = within.map(|prefix| SetChange { prefix, add: !add });
            match add {
                true => {
                    out.extend(within);
                    out.push(SetChange { prefix, add });
                }
                false => {
                    out.push(SetChange { prefix, add });
                    out.extend(within);
                }
            }
        }
    }

    /// All that the kernel should have.
    fn all(&self) -> Vec<SetChange> {
        let widest = Family::ALL.map(|family| match family {
            Family::Ipv4 => Prefix::V4 { addr: 0, len: 0 },
            Family::Ipv6 => Prefix::V6 { addr: 0, len: 0 },
        });
        let wide = widest.into_iter().flat_map(|all| match self.wide.contains(&all) {
            true => vec![all],
            false => self.within(all),
        });
        let hosts = self.hosts.iter().copied();
        wide.chain(hosts).map(|prefix| SetChange { prefix, add: true }).collect()
    }

    /// The kernel has these of a set: the rest is not there, and what is new was left by an earlier
    /// process.
    fn adopt(&mut self, set: SetOf, seen: &BTreeSet<Prefix>) {
        let old = |p: &&Prefix| p.family() == set.family && !self.written.contains(*p);
        let all = if set.wide { &self.wide } else { &self.hosts };
        let gone: Vec<_> = all
            .iter()
            .filter(|p| old(p) && !seen.contains(*p))
            .filter(|p| !seen.iter().any(|s| set.wide && s.contains(**p)))
            .copied()
            .collect();
        let new: Vec<_> = seen.iter().filter(|p| old(p)).copied().collect();
        let all = if set.wide { &mut self.wide } else { &mut self.hosts };
        for prefix in gone {
            all.remove(&prefix);
        }
        all.extend(new);
    }
}

pub struct Gpe {
    options: Options,
    tunnels: Tunnels,
    link: IfIndex,
    sink: IfIndex,
    counts: Counts,
    sets: Sets,
    deletions: Deletions,
    guard: State,
    slots: BTreeMap<u32, Held>,
    members: Members,
    carver: Carver<To>,
    allowed: Allowed,
    /// Changes of groups, ever.
    changes: u64,
    dump: Option<Dump>,
    /// Work of a batch, kept for its memory.
    steps: Vec<Step>,
    answers: Vec<Result<(), OpError>>,
    writes: Vec<Write<To>>,
}

/// How a change of a batch is done.
enum Planned {
    Done(Result<(), EncapError>),
    /// By so many steps.
    Routes(usize),
    /// By these elements of those of the batch.
    Decap {
        prefix: Prefix,
        add: bool,
        of: Range<usize>,
    },
}

impl Gpe {
    /// In the network namespace of the calling thread. Makes what is missing, and leaves what is
    /// there from before a restart as it is.
    pub fn open(options: Options) -> Result<Self, SetupError> {
        let mut tunnels = Tunnels::open(options.protocol)?;
        // What was configured before, perhaps.
        let other = match options.rule {
            None => {
                for family in Family::ALL {
                    tunnels.remove_rule(family, ENCAP_RULE, ENCAP_TABLE)?;
                }
                ENCAP_TABLE
            }
            Some(_) => libc::RT_TABLE_MAIN,
        };
        tunnels.clear(other).map_err(|error| SetupError::Refused {
            name: options.device.clone(),
            what: "routes of an earlier configuration away".to_owned(),
            error,
        })?;
        let mut this = Self {
            options,
            tunnels,
            link: IfIndex(0),
            sink: IfIndex(0),
            counts: Counts::open(guard::TABLE)?,
            sets: Sets::open(guard::TABLE)?,
            deletions: Deletions::open(guard::TABLE)?,
            guard: State::Off,
            slots: BTreeMap::new(),
            members: Members::default(),
            carver: Carver::default(),
            allowed: Allowed::default(),
            changes: 0,
            dump: None,
            steps: Vec::new(),
            answers: Vec::new(),
            writes: Vec::new(),
        };
        this.set_up()?;
        Ok(this)
    }

    /// Without counters of what is dropped at FE_I it has failed. (Without the filter of FE_E, or that
    /// of the instance, nothing is opened.)
    pub fn guard(&self) -> &State {
        &self.guard
    }

    pub fn link(&self) -> IfIndex {
        self.link
    }

    /// Entries are divided by native ones within them into so many routes.
    pub fn pieces(&self) -> usize {
        self.carver.pieces()
    }

    /// The devices, the filter, and the objects that are always there. Repeated with every list, in
    /// case somebody has taken one away.
    fn set_up(&mut self) -> Result<(), SetupError> {
        let first = self.guard == State::Off;
        let Options { device, sink, port, iid, .. } = &self.options;
        let mtu_bytes = self.options.mtu_bytes();
        let link = TunnelLink { name: device.clone(), port: *port, mtu_bytes };
        let (made, new) = self.tunnels.find_or_make_link(&link)?;
        self.link = made;
        let sink_was = self.sink;
        self.sink = self.tunnels.set_up_sink(sink)?;
        let mut loaded = false;
        self.counts.read(|name, _| loaded |= name == guard::LATE)?;
        if first || new || !loaded {
            let refused = |what: &str, error: FilterError| SetupError::Refused {
                name: device.clone(),
                what: what.to_owned(),
                error: OpError::Other(error.to_string()),
            };
            guard::load(device, *port, *iid).map_err(|error| refused("its filter", error))?;
            // What we have replaced ourselves is no news.
            self.deletions.read()?;
        }
        if first || !loaded || sink_was != self.sink {
            self.guard = match guard::load_sinks(sink) {
                Ok(()) => State::Loaded,
                Err(error) => State::Failed(error.to_string()),
            };
        }
        if !first && !loaded {
            let all = self.allowed.all();
            let refill = all.chunks(ELEMENTS_AT_ONCE).try_for_each(|some| self.sets.apply(some));
            refill.map_err(|error| SetupError::Refused {
                name: device.clone(),
                what: "the prefixes of FE_E".to_owned(),
                error,
            })?;
        }
        self.tunnels.raise_link(self.link, &link)?;
        let punt = match &self.options.punt {
            Some(name) => self.tunnels.find_link(name)?,
            None => None,
        };
        let mut steps = Vec::new();
        for family in Family::ALL {
            for fixed in Fixed::ALL {
                let (link, via) = match (fixed, punt) {
                    (Fixed::Punt, Some(punt)) => (punt, Via::Link),
                    (Fixed::Punt, None) => {
                        (self.sink, Via::Gateway(guard::sink(DropReason::NotHeld, family)))
                    }
                    (Fixed::Sink(reason), _) => {
                        let (ip, mac) = (guard::sink(reason, family), guard::sink_mac(reason));
                        steps.push(Step::SetNeighbor { link: self.sink, ip, mac });
                        (self.sink, Via::Gateway(ip))
                    }
                };
                let id = fixed.nexthop(family);
                steps.push(Step::SetNexthop { id, family, link, via });
            }
        }
        self.answers.clear();
        self.tunnels.apply(&steps, &mut self.answers);
        if let Some(priority) = self.options.rule {
            for family in Family::ALL {
                self.answers.push(self.tunnels.set_rule(family, priority, ENCAP_TABLE));
            }
        }
        for answer in self.answers.drain(..) {
            answer.map_err(|error| SetupError::Refused {
                name: device.clone(),
                what: "its fixed objects".to_owned(),
                error,
            })?;
        }
        Ok(())
    }

    /// Routes are collected and written together, and so are elements of sets; a group is written
    /// when it comes.
    fn plan(&mut self, change: &EncapChange, elements: &mut Vec<SetChange>) -> Planned {
        match *change {
            EncapChange::SetGroup { group, ref path } => {
                self.write_routes();
                Planned::Done(self.set_group(group, path))
            }
            EncapChange::RemoveGroup { group } => {
                self.write_routes();
                Planned::Done(self.remove_group(group))
            }
            EncapChange::SetEntry { prefix, action } => {
                let family = prefix.family();
                let entry = match action {
                    EntryAction::Group(GroupId(slot)) => {
                        if !self.slots.contains_key(&slot) {
                            return Planned::Done(Err(EncapError::NoGroup));
                        }
                        Entry::Route(To::Nexthop(group_nexthop(slot, family)))
                    }
                    EntryAction::Punt => Entry::Route(To::Nexthop(Fixed::Punt.nexthop(family))),
                    EntryAction::Drop => {
                        let sink = Fixed::Sink(DropReason::Policy);
                        Entry::Route(To::Nexthop(sink.nexthop(family)))
                    }
                    EntryAction::Rewrite(_) => {
                        return Planned::Done(Err(EncapError::Unsupported(REWRITING)));
                    }
                    EntryAction::Native => self.native(prefix),
                };
                self.plan_entry(prefix, entry)
            }
            EncapChange::RemoveEntry { prefix } => self.plan_entry(prefix, Entry::Gone),
            EncapChange::AllowDecap { prefix } => self.plan_decap(prefix, true, elements),
            EncapChange::ForbidDecap { prefix } => self.plan_decap(prefix, false, elements),
        }
    }

    /// What is delivered here is native, and has a route of its own: nothing need be cut out of a
    /// pool for it, which would be a hundred routes for an IPv6 host.
    fn native(&mut self, prefix: Prefix) -> Entry<To> {
        if self.options.rule.is_some() {
            return Entry::Route(To::Throw);
        }
        let spared =
            prefix.is_host() && self.tunnels.has_host_route(prefix.addr()).unwrap_or(false);
        if spared { Entry::Spared } else { Entry::Native }
    }

    fn plan_entry(&mut self, prefix: Prefix, entry: Entry<To>) -> Planned {
        self.writes.clear();
        if !self.carver.set(prefix, entry, &mut self.writes) {
            return Planned::Done(Err(EncapError::Full));
        }
        let table = self.options.table();
        self.steps.extend(self.writes.iter().map(|write| step(table, write)));
        Planned::Routes(self.writes.len())
    }

    fn plan_decap(&mut self, prefix: Prefix, add: bool, elements: &mut Vec<SetChange>) -> Planned {
        let from = elements.len();
        self.allowed.change(prefix, add, elements);
        match elements.len() {
            to if to == from => Planned::Done(Ok(())),
            to => Planned::Decap { prefix, add, of: from..to },
        }
    }

    /// In one transaction, or if that is refused in one for each change.
    fn write_elements(&mut self, elements: &[SetChange], planned: &mut [Planned]) {
        if elements.is_empty() {
            return;
        }
        let all = self.sets.apply(elements).is_ok();
        for plan in planned {
            let Planned::Decap { prefix, add, of } = plan else { continue };
            let mut result = Ok(());
            if !all {
                result = self.sets.apply(&elements[of.clone()]).map_err(EncapError::from);
            }
            if result.is_err() {
                // As it was: the next attempt writes it again.
                self.allowed.change(*prefix, !*add, &mut Vec::new());
            }
            *plan = Planned::Done(result);
        }
    }

    fn write_routes(&mut self) {
        self.tunnels.apply(&self.steps, &mut self.answers);
        self.steps.clear();
    }

    fn set_group(&mut self, group: GroupId, path: &GroupPath) -> Result<(), EncapError> {
        let GroupId(slot) = group;
        if slot >= GROUPS_MAX {
            return Err(EncapError::Full);
        }
        self.changes += 1;
        let wanted = self.usable(path);
        let mut steps = Vec::new();
        let result = self.hold(&wanted, &mut steps).and_then(|()| {
            for family in Family::ALL {
                let via = Via::Group(self.nexthops_of(&wanted, family));
                let id = group_nexthop(slot, family);
                steps.push(Step::SetNexthop { id, family, link: self.link, via });
            }
            self.write(&steps)
        });
        // What the group has let go, or what it did not take.
        let unused = match result {
            Ok(()) => self.slots.insert(slot, wanted).unwrap_or_default(),
            Err(_) => wanted,
        };
        self.let_go(&unused);
        result
    }

    fn remove_group(&mut self, group: GroupId) -> Result<(), EncapError> {
        let GroupId(slot) = group;
        let Some(held) = self.slots.get(&slot).cloned() else { return Ok(()) };
        self.changes += 1;
        let steps =
            Family::ALL.map(|family| Step::DeleteNexthop { id: group_nexthop(slot, family) });
        self.write(&steps)?;
        self.slots.remove(&slot);
        self.let_go(&held);
        Ok(())
    }

    fn write(&mut self, steps: &[Step]) -> Result<(), EncapError> {
        let mut answers = Vec::with_capacity(steps.len());
        self.tunnels.apply(steps, &mut answers);
        answers.into_iter().try_for_each(outcome)
    }

    fn usable(&self, path: &GroupPath) -> Held {
        match usable(path, &self.caps()) {
            GroupPath::Encap { members, iid: InstanceId(iid) } => {
                members.into_iter().map(|(remote, weight)| ((remote, iid), weight)).collect()
            }
            GroupPath::Unreachable => Held::new(),
        }
    }

    fn source(&self, remote: IpAddr) -> Option<IpAddr> {
        match remote {
            IpAddr::V4(_) => self.options.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.options.ipv6.map(IpAddr::V6),
        }
    }

    /// Counts one more user of each, and adds the objects that are missing to the steps.
    fn hold(&mut self, held: &Held, steps: &mut Vec<Step>) -> Result<(), EncapError> {
        for &(remote, _) in held {
            if let Some(member) = self.members.by_remote.get_mut(&remote) {
                member.users += 1;
                continue;
            }
            let number = self.members.take_number().ok_or(EncapError::Full)?;
            self.members.by_remote.insert(remote, Member { number, users: 1 });
            let (destination, iid) = remote;
            for family in Family::ALL {
                let source = self.source(destination);
                let via = Via::Encap { source, destination, iid };
                let id = member_nexthop(number, family);
                steps.push(Step::SetNexthop { id, family, link: self.link, via });
            }
        }
        Ok(())
    }

    fn let_go(&mut self, held: &Held) {
        let mut steps = Vec::new();
        for (remote, _) in held {
            let Some(member) = self.members.by_remote.get_mut(remote) else { continue };
            member.users -= 1;
            if member.users == 0 {
                let number = member.number;
                self.members.by_remote.remove(remote);
                self.members.free.insert(number);
                let id = |family| member_nexthop(number, family);
                steps.extend(Family::ALL.map(|family| Step::DeleteNexthop { id: id(family) }));
            }
        }
        // One that cannot be deleted leads nowhere from anywhere, and is replaced when its number
        // is used again.
        let _ = self.write(&steps);
    }

    fn nexthops_of(&self, held: &Held, family: Family) -> Vec<(u32, u8)> {
        let member = |(remote, weight): &(Remote, u8)| {
            let member = self.members.by_remote.get(remote)?;
            Some((member_nexthop(member.number, family), *weight))
        };
        let members: Vec<_> = held.iter().filter_map(member).collect();
        if members.is_empty() {
            return vec![(Fixed::Sink(DropReason::Unreachable).nexthop(family), 1)];
        }
        members
    }

    /// Groups and members as the kernel has them.
    fn adopt(&mut self, seen: Vec<(u32, Via)>) {
        let objects: BTreeMap<u32, Via> = seen.into_iter().collect();
        self.slots.clear();
        self.members = Members::default();
        let mut used = BTreeSet::new();
        for (&id, via) in objects.range(GROUPS..MEMBERS) {
            let slot = (id - GROUPS) / 2;
            let pair = Family::ALL.map(|family| group_nexthop(slot, family));
            let (Via::Group(members), true) = (via, id == pair[0]) else { continue };
            // A member has an object of each family, and so has the group; anything else is set
            // again, because then it is not listed.
            let twin: Vec<_> = members.iter().map(|&(id, weight)| (id + 1, weight)).collect();
            if objects.get(&pair[1]) != Some(&Via::Group(twin)) {
                continue;
            }
            if *members == self.nexthops_of(&Held::new(), Family::Ipv4) {
                self.slots.insert(slot, Held::new());
                continue;
            }
            let mut held = Held::new();
            for &(id, weight) in members {
                match (objects.get(&id), objects.get(&(id + 1))) {
                    (Some(v4), Some(v6)) if v4 == v6 => {
                        if let &Via::Encap { source, destination, iid } = v4
                            && source == self.source(destination)
                            && (MEMBERS..END).contains(&id)
                        {
                            held.push(((destination, iid), weight));
                        }
                    }
                    _ => {} // incomplete
                }
            }
            if held.len() != members.len() {
                continue;
            }
            for (&(remote, _), &(id, _)) in held.iter().zip(members) {
                let number = (id - MEMBERS) / 2;
                let member = Member { number, users: 0 };
                self.members.by_remote.entry(remote).or_insert(member).users += 1;
                used.insert(number);
            }
            held.sort_unstable();
            self.slots.insert(slot, held);
        }
        self.members.next = used.last().map_or(0, |&last| last + 1);
        self.members.free = (0..self.members.next).filter(|n| !used.contains(n)).collect();
        // Left over: groups that were not understood are replaced when they are set again, and
        // removed with their routes when the number is wanted by nobody.
        let mut steps = Vec::new();
        for &id in objects.range(MEMBERS..END).map(|(id, _)| id) {
            if !used.contains(&((id - MEMBERS) / 2)) {
                steps.push(Step::DeleteNexthop { id });
            }
        }
        let _ = self.write(&steps);
    }

    fn listed_groups(&self, out: &mut Vec<EncapChange>) {
        for (&slot, held) in &self.slots {
            let path = match held.first() {
                None => GroupPath::Unreachable,
                Some(&((_, iid), _)) => GroupPath::Encap {
                    members: held.iter().map(|&((remote, _), weight)| (remote, weight)).collect(),
                    iid: InstanceId(iid),
                },
            };
            out.push(EncapChange::SetGroup { group: GroupId(slot), path });
        }
    }
}

fn outcome(answer: Result<(), OpError>) -> Result<(), EncapError> {
    match answer {
        // Removed by somebody else, or with its nexthop: it is not there, as was wanted.
        Ok(()) | Err(OpError::Missing) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn step(table: u8, write: &Write<To>) -> Step {
    let Write { prefix, metric, to } = *write;
    match to {
        Some(to) => Step::SetRoute { table, prefix, metric, to },
        None => Step::DeleteRoute { table, prefix, metric },
    }
}

/// The entry that a listed route is.
fn entry(prefix: Prefix, to: To) -> Option<EncapChange> {
    let family = prefix.family();
    let action = match to {
        To::Nexthop(id) if id == Fixed::Punt.nexthop(family) => EntryAction::Punt,
        To::Nexthop(id) if id == Fixed::Sink(DropReason::Policy).nexthop(family) => {
            EntryAction::Drop
        }
        To::Nexthop(id) if (GROUPS..MEMBERS).contains(&id) => {
            EntryAction::Group(GroupId((id - GROUPS) / 2))
        }
        To::Throw => EntryAction::Native, // of a table of our own
        To::Nexthop(_) | To::Blackhole => return None,
    };
    Some(EncapChange::SetEntry { prefix, action })
}

impl Encapsulator for Gpe {
    fn caps(&self) -> Caps {
        let Options { ipv4, ipv6, .. } = &self.options;
        Caps {
            name: "gpe",
            inner: Families::BOTH,
            outer: Families { ipv4: ipv4.is_some(), ipv6: ipv6.is_some() },
            counts_entries: false,
            holds_packets: false,
            tells_late: false,
            entries_max: ENTRIES_MAX,
            groups_max: GROUPS_MAX,
            decap_max: ENTRIES_MAX,
        }
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        self.steps.clear();
        self.answers.clear();
        let mut planned = Vec::with_capacity(changes.len());
        let mut elements = Vec::new();
        for change in changes {
            planned.push(self.plan(change, &mut elements));
        }
        self.write_elements(&elements, &mut planned);
        self.write_routes();
        let mut answers = self.answers.drain(..);
        for plan in planned {
            results.push(match plan {
                Planned::Done(result) => result,
                Planned::Decap { .. } => Ok(()),
                Planned::Routes(count) => {
                    // All are written; the first refusal is the result.
                    answers.by_ref().take(count).map(outcome).fold(Ok(()), Result::and)
                }
            });
        }
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        self.set_up().map_err(|error| EncapError::Other(error.to_string()))?;
        self.tunnels.begin_nexthops()?;
        self.dump = Some(Dump::Nexthops { changes: self.changes, seen: Vec::new() });
        Ok(())
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        match self.dump.take() {
            None => return Ok(false),
            Some(Dump::Nexthops { changes, .. }) if changes != self.changes => {
                self.tunnels.begin_nexthops()?;
                self.dump = Some(Dump::Nexthops { changes: self.changes, seen: Vec::new() });
            }
            Some(Dump::Nexthops { changes, mut seen }) => {
                let more = self.tunnels.continue_dump(|found| {
                    if let Dumped::Nexthop { id, via } = found
                        && (NEXTHOPS..END).contains(&id)
                    {
                        seen.push((id, via));
                    }
                })?;
                if more {
                    self.dump = Some(Dump::Nexthops { changes, seen });
                    return Ok(true);
                }
                self.adopt(seen);
                self.listed_groups(out);
                self.begin_routes(Family::Ipv4)?;
            }
            Some(Dump::Routes { family, mut wide }) => {
                let more = self.tunnels.continue_dump(|found| {
                    let Dumped::Route { prefix, metric, to } = found else { return };
                    if prefix.is_host() && metric == METRIC {
                        out.extend(entry(prefix, to));
                    } else {
                        wide.insert((prefix, metric), to);
                    }
                })?;
                if more {
                    self.dump = Some(Dump::Routes { family, wide });
                    return Ok(true);
                }
                self.adopt_entries(family, &wide, out)?;
                match family {
                    Family::Ipv4 => self.begin_routes(Family::Ipv6)?,
                    Family::Ipv6 => {
                        self.allowed.written.clear();
                        self.begin_set(0)?;
                    }
                }
            }
            Some(Dump::Sets { at, mut seen }) => {
                let set = SetOf::ALL[at];
                let more = self.sets.continue_dump(|prefix| {
                    seen.insert(prefix);
                    if !set.wide {
                        out.push(EncapChange::AllowDecap { prefix });
                    }
                })?;
                if more {
                    self.dump = Some(Dump::Sets { at, seen });
                    return Ok(true);
                }
                self.allowed.adopt(set, &seen);
                if set.wide {
                    let all = self.allowed.wide.iter().filter(|p| p.family() == set.family);
                    out.extend(all.map(|&prefix| EncapChange::AllowDecap { prefix }));
                }
                if at + 1 == SetOf::ALL.len() {
                    return Ok(false);
                }
                self.begin_set(at + 1)?;
            }
        }
        Ok(true)
    }

    fn counters(
        &mut self,
        _after: Option<Prefix>,
        _limit: usize,
        _out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        Err(EncapError::Unsupported("counting packets of single entries"))
    }

    fn used(
        &mut self,
        _after: Option<Prefix>,
        _limit: usize,
        _out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        Err(EncapError::Unsupported("counting packets of single entries"))
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        let other = |error: std::io::Error| EncapError::Other(error.to_string());
        let link = self.tunnels.link_counts(self.link).map_err(other)?;
        let mut totals = Totals { encapsulated: link.sent, ..Totals::default() };
        let mut refused = EntryCount::default();
        let read = self.counts.read(|name, count| {
            if name == guard::LATE {
                totals.late = count;
            }
            for (dropped, reason) in totals.dropped.iter_mut().zip(DropReason::ALL) {
                if Some(reason.as_str()) == name.strip_prefix(guard::DROPPED) {
                    // Of not allowed ones there are two: in general, and addresses of our own.
                    *dropped += count.packets;
                    if reason == DropReason::NotAllowed {
                        refused.packets += count.packets;
                        refused.octets += count.octets;
                    }
                }
            }
        });
        read.map_err(other)?;
        totals.decapsulated = EntryCount {
            packets: link.received.packets.saturating_sub(refused.packets),
            octets: link.received.octets.saturating_sub(refused.octets),
        };
        for (dropped, reason) in totals.dropped.iter_mut().zip(DropReason::ALL) {
            match reason {
                DropReason::Malformed => *dropped += link.receive_errors,
                DropReason::Underlay => *dropped = link.send_errors,
                _ => {} // counted by the guard, or by nobody
            }
        }
        Ok(totals)
    }

    fn event_fd(&self) -> Option<std::os::fd::RawFd> {
        Some(self.deletions.as_raw_fd())
    }

    /// Without the filter everything would be taken out of tunnels.
    fn handle_readable(&mut self, _events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        let gone = self.deletions.read();
        if gone.map_err(|error| EncapError::Other(error.to_string()))? {
            self.set_up().map_err(|error| EncapError::Other(error.to_string()))?;
        }
        Ok(false)
    }
}

impl Gpe {
    fn begin_routes(&mut self, family: Family) -> Result<(), EncapError> {
        self.tunnels.begin_routes(self.options.table(), family)?;
        self.dump = Some(Dump::Routes { family, wide: BTreeMap::new() });
        Ok(())
    }

    fn begin_set(&mut self, at: usize) -> Result<(), EncapError> {
        self.sets.begin_dump(SetOf::ALL[at])?;
        self.dump = Some(Dump::Sets { at, seen: BTreeSet::new() });
        Ok(())
    }

    fn adopt_entries(
        &mut self,
        family: Family,
        wide: &BTreeMap<(Prefix, u32), To>,
        out: &mut Vec<EncapChange>,
    ) -> Result<(), EncapError> {
        let mut writes = Vec::new();
        for (prefix, found) in self.carver.adopt(family, wide, &mut writes) {
            match found {
                Entry::Route(to) => out.extend(entry(prefix, to)),
                Entry::Native => {
                    out.push(EncapChange::SetEntry { prefix, action: EntryAction::Native });
                }
                Entry::Spared | Entry::Gone => {} // no list has these
            }
        }
        let table = self.options.table();
        let steps: Vec<Step> = writes.iter().map(|write| step(table, write)).collect();
        self.write(&steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    /// The kernel's set of intervals refuses those that overlap.
    #[test]
    fn of_nested_prefixes_the_widest_is_written() {
        let mut allowed = Allowed::default();
        let mut change = |text: &str, add| {
            let mut out = Vec::new();
            allowed.change(prefix(text), add, &mut out);
            let sign = |c: &SetChange| format!("{}{}", if c.add { '+' } else { '-' }, c.prefix);
            out.iter().map(sign).collect::<Vec<_>>()
        };
        assert_eq!(change("10.1.0.0/24", true), ["+10.1.0.0/24"]);
        assert_eq!(change("10.1.0.0/25", true), [""; 0]);
        assert_eq!(change("10.1.0.7", true), ["+10.1.0.7/32"]);
        assert_eq!(change("10.1.0.7", true), [""; 0]);
        assert_eq!(change("10.0.0.0/8", true), ["-10.1.0.0/24", "+10.0.0.0/8"]);
        assert_eq!(change("10.1.0.0/25", false), [""; 0]);
        assert_eq!(change("10.1.0.128/25", true), [""; 0]);
        assert_eq!(change("10.0.0.0/8", false), ["-10.0.0.0/8", "+10.1.0.0/24"]);
        assert_eq!(change("10.1.0.0/24", false), ["-10.1.0.0/24", "+10.1.0.128/25"]);
        assert_eq!(change("10.1.0.0/24", false), [""; 0]);
        let of = SetOf::of(prefix("10.0.0.0/8"));
        allowed.written.clear();
        allowed.change(prefix("10.2.0.0/16"), true, &mut Vec::new());
        allowed.adopt(of, &BTreeSet::from([prefix("10.3.0.0/16")]));
        let left = BTreeSet::from([prefix("10.2.0.0/16"), prefix("10.3.0.0/16")]);
        assert_eq!((allowed.wide, allowed.hosts.len()), (left, 1));
    }
}
