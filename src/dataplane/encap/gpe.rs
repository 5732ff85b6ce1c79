//! LISP-GPE by the Linux kernel itself (RFC 9305): one VXLAN device that takes its encapsulation from
//! nexthop objects, and routes that lead to these by number.
//!
//! ```text
//! rule from anywhere  ->  table 107: entries of FE_I    prefix -> group -> locators
//! rule from the tunnel -> table 108: what FE_E takes    prefix -> throw (go on with table 107, main)
//!                                                       else   -> sink, counted
//! ```
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

use super::reconcile::usable;
use super::{Caps, DropReason, EncapError, Encapsulator, Families, REWRITING, Totals, guard};
use crate::dataplane::OpError;
use crate::dataplane::filter::State;
use crate::dataplane::netlink::{
    Counts, Dumped, ENCAP_TABLES, SetupError, Step, To, TunnelLink, Tunnels, Via,
};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use crate::types::seam::IfIndex;
use crate::types::{Family, Prefix};

const ENCAP_TABLE: u8 = ENCAP_TABLES[0];
const DECAP_TABLE: u8 = ENCAP_TABLES[1];

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

/// Outer header, UDP, LISP.
const OVERHEAD_IPV4: u32 = 20 + 8 + 8;
const OVERHEAD_IPV6: u32 = 40 + 8 + 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub device: String,
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
    pub protocol: u8,
    pub metric: u32,
    /// Priorities of the two rules; between the local table (0) and the main one (32766).
    pub decap_rule: u32,
    pub encap_rule: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: "killick-gpe".to_owned(),
            port: 4341,
            ipv4: None,
            ipv6: None,
            underlay_mtu_bytes: 1500,
            iid: InstanceId(0),
            punt: None,
            protocol: 107,
            metric: 150,
            decap_rule: 4340,
            encap_rule: 4341,
        }
    }
}

impl Options {
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
        Self::Sink(guard::SINKS[3]),
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
    Routes {
        table: u8,
        family: Family,
    },
}

pub struct Gpe {
    options: Options,
    tunnels: Tunnels,
    link: IfIndex,
    counts: Option<Counts>,
    guard: State,
    slots: BTreeMap<u32, Held>,
    members: Members,
    /// Changes of groups, ever.
    changes: u64,
    dump: Option<Dump>,
    /// Work of a batch, kept for its memory.
    steps: Vec<Step>,
    answers: Vec<Result<(), OpError>>,
}

impl Gpe {
    /// In the network namespace of the calling thread. Makes what is missing, and leaves what is
    /// there from before a restart as it is.
    pub fn open(options: Options) -> Result<Self, SetupError> {
        let tunnels = Tunnels::open(options.protocol, options.metric)?;
        let mut this = Self {
            options,
            tunnels,
            link: IfIndex(0),
            counts: None,
            guard: State::Off,
            slots: BTreeMap::new(),
            members: Members::default(),
            changes: 0,
            dump: None,
            steps: Vec::new(),
            answers: Vec::new(),
        };
        this.set_up()?;
        let Options { device, port, iid, .. } = &this.options;
        this.guard = match guard::load(device, *port, *iid) {
            Ok(()) => State::Loaded,
            Err(error) => State::Failed(error.to_string()),
        };
        this.counts = Some(Counts::open(guard::TABLE)?);
        Ok(this)
    }

    /// Without the guard there are no counters by reason, and addresses of this machine can be
    /// reached through the tunnel.
    pub fn guard(&self) -> &State {
        &self.guard
    }

    pub fn link(&self) -> IfIndex {
        self.link
    }

    /// The device, the objects that are always there, and the rules. Repeated with every list, in
    /// case somebody has taken one away.
    fn set_up(&mut self) -> Result<(), SetupError> {
        let Options { device, port, .. } = &self.options;
        let mtu_bytes = self.options.mtu_bytes();
        let link = TunnelLink { name: device.clone(), port: *port, mtu_bytes };
        self.link = self.tunnels.set_up_link(&link)?;
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
                        (self.link, Via::Gateway(guard::sink(DropReason::NotHeld, family)))
                    }
                    (Fixed::Sink(reason), _) => {
                        (self.link, Via::Gateway(guard::sink(reason, family)))
                    }
                };
                let id = fixed.nexthop(family);
                steps.push(Step::SetNexthop { id, family, link, via });
            }
            let to = To::Nexthop(Fixed::Sink(DropReason::NotAllowed).nexthop(family));
            let any = match family {
                Family::Ipv4 => Prefix::V4 { addr: 0, len: 0 },
                Family::Ipv6 => Prefix::V6 { addr: 0, len: 0 },
            };
            steps.push(Step::SetRoute { table: DECAP_TABLE, prefix: any, to });
        }
        self.answers.clear();
        self.tunnels.apply(&steps, &mut self.answers);
        let refused = |what: &str, error| SetupError::Refused {
            name: device.clone(),
            what: what.to_owned(),
            error,
        };
        for answer in self.answers.drain(..) {
            answer.map_err(|error| refused("its fixed routes", error))?;
        }
        for family in Family::ALL {
            for (priority, from, table) in [
                (self.options.decap_rule, Some(device.as_str()), DECAP_TABLE),
                (self.options.encap_rule, None, ENCAP_TABLE),
            ] {
                let rule = self.tunnels.set_rule(family, priority, from, table);
                rule.map_err(|error| refused("its routing rules", error))?;
            }
        }
        Ok(())
    }

    /// Routes are collected and written together; a group is written when it comes.
    fn plan(&mut self, change: &EncapChange) -> Result<Option<Step>, EncapError> {
        let step = match *change {
            EncapChange::SetGroup { group, ref path } => {
                self.write_routes();
                self.set_group(group, path)?;
                return Ok(None);
            }
            EncapChange::RemoveGroup { group } => {
                self.write_routes();
                self.remove_group(group)?;
                return Ok(None);
            }
            EncapChange::SetEntry { prefix, action } => {
                let family = prefix.family();
                let to = match action {
                    EntryAction::Group(GroupId(slot)) => {
                        if !self.slots.contains_key(&slot) {
                            return Err(EncapError::NoGroup);
                        }
                        To::Nexthop(group_nexthop(slot, family))
                    }
                    EntryAction::Punt => To::Nexthop(Fixed::Punt.nexthop(family)),
                    EntryAction::Native => To::Throw,
                    EntryAction::Drop => {
                        To::Nexthop(Fixed::Sink(DropReason::Policy).nexthop(family))
                    }
                    EntryAction::Rewrite(_) => return Err(EncapError::Unsupported(REWRITING)),
                };
                Step::SetRoute { table: ENCAP_TABLE, prefix, to }
            }
            EncapChange::RemoveEntry { prefix } => Step::DeleteRoute { table: ENCAP_TABLE, prefix },
            EncapChange::AllowDecap { prefix } => {
                Step::SetRoute { table: DECAP_TABLE, prefix, to: To::Throw }
            }
            // The default route of this table is the sink.
            EncapChange::ForbidDecap { prefix } if prefix.len() == 0 => {
                let to = To::Nexthop(Fixed::Sink(DropReason::NotAllowed).nexthop(prefix.family()));
                Step::SetRoute { table: DECAP_TABLE, prefix, to }
            }
            EncapChange::ForbidDecap { prefix } => Step::DeleteRoute { table: DECAP_TABLE, prefix },
        };
        Ok(Some(step))
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

/// The entry that a listed route is.
fn entry(prefix: Prefix, to: To) -> Option<EncapChange> {
    let family = prefix.family();
    let action = match to {
        To::Throw => EntryAction::Native,
        To::Nexthop(id) if id == Fixed::Punt.nexthop(family) => EntryAction::Punt,
        To::Nexthop(id) if id == Fixed::Sink(DropReason::Policy).nexthop(family) => {
            EntryAction::Drop
        }
        To::Nexthop(id) if (GROUPS..MEMBERS).contains(&id) => {
            EntryAction::Group(GroupId((id - GROUPS) / 2))
        }
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
        for change in changes {
            planned.push(match self.plan(change) {
                Ok(Some(step)) => {
                    self.steps.push(step);
                    None
                }
                Ok(None) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            });
        }
        self.write_routes();
        let mut answers = self.answers.drain(..);
        for done in planned {
            let written = || answers.next().map_or(Ok(()), outcome);
            results.push(done.unwrap_or_else(written));
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
                self.begin_routes(ENCAP_TABLE, Family::Ipv4)?;
            }
            Some(Dump::Routes { table, family }) => {
                let more = self.tunnels.continue_dump(|found| {
                    let Dumped::Route { prefix, to } = found else { return };
                    if table == ENCAP_TABLE {
                        out.extend(entry(prefix, to));
                    } else if to == To::Throw {
                        out.push(EncapChange::AllowDecap { prefix });
                    }
                })?;
                match (more, table, family) {
                    (true, ..) => self.dump = Some(Dump::Routes { table, family }),
                    (false, _, Family::Ipv4) => self.begin_routes(table, Family::Ipv6)?,
                    (false, ENCAP_TABLE, Family::Ipv6) => {
                        self.begin_routes(DECAP_TABLE, Family::Ipv4)?;
                    }
                    (false, _, Family::Ipv6) => return Ok(false),
                }
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
        if let Some(counts) = &mut self.counts {
            let read = counts.read(|name, count| {
                if name == guard::LATE {
                    totals.late = count;
                }
                for (dropped, reason) in totals.dropped.iter_mut().zip(DropReason::ALL) {
                    if Some(reason.as_str()) == name.strip_prefix(guard::DROPPED) {
                        *dropped = count.packets;
                        if reason == DropReason::NotAllowed {
                            refused = count;
                        }
                    }
                }
            });
            read.map_err(other)?;
        }
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
        None
    }

    fn handle_readable(&mut self, _events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        Ok(false)
    }
}

impl Gpe {
    fn begin_routes(&mut self, table: u8, family: Family) -> Result<(), EncapError> {
        self.tunnels.begin_routes(table, family)?;
        self.dump = Some(Dump::Routes { table, family });
        Ok(())
    }
}
