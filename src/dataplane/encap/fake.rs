//! A back end in memory, for tests and simulations: it keeps what a kernel would keep, says what
//! becomes of a packet, and refuses what it is told to refuse.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::{Caps, DropReason, EncapError, Encapsulator, Families, Totals};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, EntryCount, GroupId, GroupPath, InstanceId,
};
use crate::types::{Family, Prefix};

#[derive(Debug)]
pub struct Fake {
    pub caps: Caps,
    pub groups: BTreeMap<GroupId, GroupPath>,
    pub entries: BTreeMap<Prefix, EntryAction>,
    pub decap: BTreeSet<Prefix>,
    /// Changes to these prefixes fail.
    pub broken: BTreeSet<Prefix>,
    /// Setting these groups fails.
    pub broken_groups: BTreeSet<GroupId>,
    /// Everything that was asked, in order.
    pub log: Vec<EncapChange>,
    pub events: VecDeque<EncapEvent>,
    counts: BTreeMap<Prefix, EntryCount>,
    used: BTreeSet<Prefix>,
    totals: Totals,
    dump: VecDeque<EncapChange>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// In the tunnel, to one of these.
    Encapsulated {
        members: Vec<(IpAddr, u8)>,
        iid: InstanceId,
    },
    /// Told to the control plane, not held.
    Punted,
    /// By routes of others, or, from the tunnel, delivered.
    Native,
    /// Sent on to this destination.
    Rewritten(IpAddr),
    Dropped(DropReason),
}

/// Per piece of a list: small, so that tests see several.
const PIECE: usize = 2;

/// Events that wait to be read; a further one is dropped.
const EVENTS_MAX: usize = 1_024;

impl Default for Fake {
    fn default() -> Self {
        Self {
            caps: Caps {
                name: "fake",
                inner: Families::BOTH,
                outer: Families::BOTH,
                counts_entries: true,
                holds_packets: false,
                tells_late: true,
                entries_max: 1_000_000,
                groups_max: 65_536,
                decap_max: 1_000_000,
            },
            groups: BTreeMap::new(),
            entries: BTreeMap::new(),
            decap: BTreeSet::new(),
            broken: BTreeSet::new(),
            broken_groups: BTreeSet::new(),
            log: Vec::new(),
            events: VecDeque::new(),
            counts: BTreeMap::new(),
            used: BTreeSet::new(),
            totals: Totals::default(),
            dump: VecDeque::new(),
        }
    }
}

impl Fake {
    /// A packet from a source behind FE_I.
    pub fn send(&mut self, source: IpAddr, destination: IpAddr) -> Fate {
        let Some((prefix, action)) = self.find_entry(destination) else { return Fate::Native };
        let count = self.counts.entry(prefix).or_default();
        count.packets += 1;
        if count.packets == 1 {
            self.tell(EncapEvent::FirstPacket { prefix });
        }
        self.used.insert(prefix);
        match action {
            EntryAction::Native => Fate::Native,
            EntryAction::Drop => self.dropped(DropReason::Policy),
            EntryAction::Punt => {
                self.tell(EncapEvent::Miss { source, destination });
                Fate::Punted
            }
            EntryAction::Group(group) => match self.groups.get(&group) {
                Some(GroupPath::Encap { members, iid }) => {
                    self.totals.encapsulated.packets += 1;
                    Fate::Encapsulated { members: members.clone(), iid: *iid }
                }
                Some(GroupPath::Unreachable) | None => self.dropped(DropReason::Unreachable),
            },
            EntryAction::Rewrite(to) => {
                self.totals.encapsulated.packets += 1;
                Fate::Rewritten(to)
            }
        }
    }

    /// A packet from the tunnel.
    pub fn receive(
        &mut self,
        rloc: IpAddr,
        iid: InstanceId,
        source: IpAddr,
        destination: IpAddr,
    ) -> Fate {
        if !self.decap.iter().any(|prefix| prefix.contains_addr(destination)) {
            return self.dropped(DropReason::NotAllowed);
        }
        self.totals.decapsulated.packets += 1;
        let fate = self.send(source, destination);
        if let Fate::Encapsulated { .. } = fate {
            self.totals.late.packets += 1;
            self.tell(EncapEvent::Late { rloc, iid, source, destination });
        }
        fate
    }

    fn find_entry(&self, ip: IpAddr) -> Option<(Prefix, EntryAction)> {
        let bits = match ip {
            IpAddr::V4(_) => Family::Ipv4.bits(),
            IpAddr::V6(_) => Family::Ipv6.bits(),
        };
        (0..=bits).rev().find_map(|len| {
            let prefix = Prefix::new(ip, len)?;
            self.entries.get(&prefix).map(|&action| (prefix, action))
        })
    }

    fn dropped(&mut self, reason: DropReason) -> Fate {
        let at = DropReason::ALL.iter().position(|&r| r == reason);
        self.totals.dropped[at.expect("ALL has all")] += 1;
        Fate::Dropped(reason)
    }

    fn tell(&mut self, event: EncapEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    fn step(&mut self, change: &EncapChange) -> Result<(), EncapError> {
        match *change {
            EncapChange::SetGroup { group, ref path } => {
                if self.broken_groups.contains(&group) {
                    return Err(EncapError::LinkDown);
                }
                if group.0 >= self.caps.groups_max {
                    return Err(EncapError::Full);
                }
                self.groups.insert(group, path.clone());
            }
            EncapChange::RemoveGroup { group } => {
                self.groups.remove(&group);
                // As the kernel does with a nexthop object.
                self.entries.retain(|_, action| *action != EntryAction::Group(group));
            }
            EncapChange::SetEntry { prefix, action } => {
                if self.broken.contains(&prefix) {
                    return Err(EncapError::LinkDown);
                }
                if let EntryAction::Group(group) = action
                    && !self.groups.contains_key(&group)
                {
                    return Err(EncapError::NoGroup);
                }
                self.entries.insert(prefix, action);
                self.counts.remove(&prefix);
            }
            EncapChange::RemoveEntry { prefix } => {
                self.entries.remove(&prefix);
                self.counts.remove(&prefix);
                self.used.remove(&prefix);
            }
            EncapChange::AllowDecap { prefix } => {
                if self.broken.contains(&prefix) {
                    return Err(EncapError::LinkDown);
                }
                self.decap.insert(prefix);
            }
            EncapChange::ForbidDecap { prefix } => {
                self.decap.remove(&prefix);
            }
        }
        Ok(())
    }
}

/// The piece of a table behind `after`, and where it ends if there is more.
fn piece(
    keys: impl Iterator<Item = Prefix>,
    after: Option<Prefix>,
    limit: usize,
) -> (Vec<Prefix>, Option<Prefix>) {
    let behind = keys.filter(|&prefix| after.is_none_or(|after| prefix > after));
    let mut found: Vec<_> = behind.take(limit.saturating_add(1)).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().copied().filter(|_| more);
    (found, last)
}

impl Encapsulator for Fake {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn apply(&mut self, changes: &[EncapChange], results: &mut Vec<Result<(), EncapError>>) {
        for change in changes {
            self.log.push(change.clone());
            results.push(self.step(change));
        }
    }

    fn begin_dump(&mut self) -> Result<(), EncapError> {
        let groups = self.groups.iter().map(|(&group, path)| {
            let path = path.clone();
            EncapChange::SetGroup { group, path }
        });
        let entry = |(&prefix, &action)| EncapChange::SetEntry { prefix, action };
        let entries = self.entries.iter().map(entry);
        let decap = self.decap.iter().map(|&prefix| EncapChange::AllowDecap { prefix });
        self.dump = groups.chain(entries).chain(decap).collect();
        Ok(())
    }

    fn continue_dump(&mut self, out: &mut Vec<EncapChange>) -> Result<bool, EncapError> {
        out.extend(self.dump.drain(..self.dump.len().min(PIECE)));
        Ok(!self.dump.is_empty())
    }

    fn counters(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<(Prefix, EntryCount)>,
    ) -> Result<Option<Prefix>, EncapError> {
        let (found, last) = piece(self.entries.keys().copied(), after, limit);
        let count = |prefix| (prefix, self.counts.get(&prefix).copied().unwrap_or_default());
        out.extend(found.into_iter().map(count));
        Ok(last)
    }

    fn count(&mut self, prefix: Prefix) -> Option<EntryCount> {
        self.entries.get(&prefix)?;
        Some(self.counts.get(&prefix).copied().unwrap_or_default())
    }

    fn used(
        &mut self,
        after: Option<Prefix>,
        limit: usize,
        out: &mut Vec<Prefix>,
    ) -> Result<Option<Prefix>, EncapError> {
        let (found, last) = piece(self.entries.keys().copied(), after, limit);
        out.extend(found.into_iter().filter(|prefix| self.used.remove(prefix)));
        Ok(last)
    }

    fn totals(&mut self) -> Result<Totals, EncapError> {
        Ok(self.totals)
    }

    fn event_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    fn handle_readable(&mut self, events: &mut Vec<EncapEvent>) -> Result<bool, EncapError> {
        events.extend(self.events.drain(..));
        Ok(false)
    }
}
