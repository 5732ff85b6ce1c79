//! FE_I: mappings become desired entries of the encapsulating data plane.
//!
//! A group is a forwarding object that entries share: one for each distinct locator set of an
//! instance, which is one for each anchor. A host that moves is one `SetEntry`; a locator that goes
//! down is one `SetGroup` for each set it is in, however many hosts are behind it.
//!
//! Changes come out in an order in which no entry ever leads to a group that is not there: a group
//! is set before its first entry, and removed after its last one has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use crate::types::lisp::{
    EncapChange, EntryAction, GroupId, GroupPath, InstanceId, NegativeAction, RlocSet,
    may_stand_for, usable,
};
use crate::types::{Family, Prefix};

/// Entries of this gateway. A prefix beyond is not taken, and counted: its packets meet the entry
/// of the pool, as before.
pub const ENTRIES_MAX: usize = 4_000_000;

/// Locator sets in use at once: anchors, and their states on the way. Beyond, the entry is not
/// taken, and counted.
pub const GROUPS_MAX: usize = 65_536;

#[derive(Debug)]
struct Group {
    iid: InstanceId,
    rlocs: RlocSet,
    path: GroupPath,
    /// Entries that lead here; the group goes with the last one.
    entries: u64,
}

/// Entries that were not taken, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IngressCounts {
    pub entries_full: u64,
    pub groups_full: u64,
}

/// One group, as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub group: GroupId,
    pub iid: InstanceId,
    pub rlocs: RlocSet,
    pub path: GroupPath,
    pub entries: u64,
}

/// What FE_I should do with each prefix.
#[derive(Debug)]
pub struct Ingress {
    /// Families in which the underlay routes from here; a locator of another one is of no use.
    families: Vec<Family>,
    /// What a prefix does while it has no mapping: the configured mobile prefixes.
    policies: BTreeMap<Prefix, EntryAction>,
    /// What was last told for each prefix.
    entries: BTreeMap<Prefix, EntryAction>,
    groups: BTreeMap<GroupId, Group>,
    by_set: BTreeMap<(InstanceId, RlocSet), GroupId>,
    by_rloc: BTreeMap<IpAddr, BTreeSet<GroupId>>,
    /// Locators that do not answer probes.
    down: BTreeSet<IpAddr>,
    /// Locators to which the path has failed (BFD), in use or not: there are as many as sessions.
    broken: BTreeSet<IpAddr>,
    /// Numbers that were in use; the least is used again first, so that tables stay dense.
    free: BTreeSet<GroupId>,
    next: u32,
    counts: IngressCounts,
    entries_max: usize,
    groups_max: usize,
    /// Locators become destinations; there are no tunnels, and no groups.
    rewrites: bool,
}

impl Ingress {
    /// A locator stands for one host, whose packets it is the new destination of.
    pub fn rewriting() -> Self {
        Self { rewrites: true, ..Self::new(Vec::new()) }
    }

    pub fn new(families: Vec<Family>) -> Self {
        Self::with_limits(families, ENTRIES_MAX, GROUPS_MAX)
    }

    fn with_limits(families: Vec<Family>, entries_max: usize, groups_max: usize) -> Self {
        Self {
            families,
            policies: BTreeMap::new(),
            entries: BTreeMap::new(),
            groups: BTreeMap::new(),
            by_set: BTreeMap::new(),
            by_rloc: BTreeMap::new(),
            down: BTreeSet::new(),
            broken: BTreeSet::new(),
            free: BTreeSet::new(),
            next: 1,
            counts: IngressCounts::default(),
            entries_max,
            groups_max,
            rewrites: false,
        }
    }

    /// A configured prefix: what its packets meet while there is no mapping of exactly this prefix.
    pub fn set_policy(&mut self, prefix: Prefix, action: EntryAction, out: &mut Vec<EncapChange>) {
        let mapped = matches!(self.entries.get(&prefix), Some(EntryAction::Group(_)));
        self.policies.insert(prefix, action);
        if !mapped {
            self.set_entry(prefix, action, out);
        }
    }

    /// The prefix is no longer configured. Its mapping, if there is one, goes by itself.
    pub fn remove_policy(&mut self, prefix: Prefix, out: &mut Vec<EncapChange>) {
        if self.policies.remove(&prefix).is_some()
            && !matches!(self.entries.get(&prefix), Some(EntryAction::Group(_)))
        {
            self.remove_entry(prefix, out);
        }
    }

    /// The mapping of a prefix; `action` counts when there are no locators (RFC 9301 §5.4, ACT).
    pub fn set_mapping(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        rlocs: &RlocSet,
        action: NegativeAction,
        out: &mut Vec<EncapChange>,
    ) {
        if !rlocs.is_empty() && self.rewrites {
            self.set_entry(prefix, rewriting(prefix, rlocs), out);
            return;
        }
        if !rlocs.is_empty() {
            self.set_group_entry(iid, prefix, rlocs, out);
            return;
        }
        let action = match action {
            // "No packet encapsulation occurs": what is left is the way without it.
            NegativeAction::NoAction | NegativeAction::NativelyForward => EntryAction::Native,
            NegativeAction::SendMapRequest => EntryAction::Punt,
            NegativeAction::DropNoReason
            | NegativeAction::DropPolicyDenied
            | NegativeAction::DropAuthFailure => EntryAction::Drop,
        };
        self.set_entry(prefix, action, out);
    }

    /// The mapping is gone: the prefix falls back to its policy, or to the one that covers it.
    pub fn remove_mapping(&mut self, prefix: Prefix, out: &mut Vec<EncapChange>) {
        match self.policies.get(&prefix) {
            Some(&policy) => self.set_entry(prefix, policy, out),
            None => self.remove_entry(prefix, out),
        }
    }

    /// A locator answers, or no longer: one `SetGroup` for each set whose path changes by that.
    pub fn set_reachable(&mut self, rloc: IpAddr, reachable: bool, out: &mut Vec<EncapChange>) {
        let changed = if reachable { self.down.remove(&rloc) } else { self.down.insert(rloc) };
        if !changed {
            return;
        }
        self.refresh_groups(rloc, out);
        // What is known of a locator that no set names is of no use, and would only grow.
        if !self.by_rloc.contains_key(&rloc) {
            self.down.remove(&rloc);
        }
    }

    /// The path to a locator has failed, or is back, whatever probes say.
    pub fn set_path(&mut self, rloc: IpAddr, up: bool, out: &mut Vec<EncapChange>) {
        let changed = if up { self.broken.remove(&rloc) } else { self.broken.insert(rloc) };
        if changed {
            self.refresh_groups(rloc, out);
        }
    }

    /// The path to a locator has failed.
    pub fn is_broken(&self, rloc: IpAddr) -> bool {
        self.broken.contains(&rloc)
    }

    fn refresh_groups(&mut self, rloc: IpAddr, out: &mut Vec<EncapChange>) {
        for &id in self.by_rloc.get(&rloc).into_iter().flatten() {
            let group = self.groups.get_mut(&id).expect("by_rloc names groups that are there");
            let path = path(group.iid, &group.rlocs, &self.families, [&self.down, &self.broken]);
            if path != group.path {
                group.path = path.clone();
                out.push(EncapChange::SetGroup { group: id, path });
            }
        }
    }

    fn set_group_entry(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        rlocs: &RlocSet,
        out: &mut Vec<EncapChange>,
    ) {
        if self.is_full_for(prefix) {
            return;
        }
        let found = self.by_set.get(&(iid, rlocs.clone())).copied();
        let id = match found {
            Some(id) => id,
            None if self.groups.len() >= self.groups_max => {
                self.counts.groups_full += 1;
                return;
            }
            None => self.insert_group(iid, rlocs.clone(), out),
        };
        self.set_entry(prefix, EntryAction::Group(id), out);
    }

    fn insert_group(
        &mut self,
        iid: InstanceId,
        rlocs: RlocSet,
        out: &mut Vec<EncapChange>,
    ) -> GroupId {
        let id = self.free.pop_first().unwrap_or_else(|| {
            let id = GroupId(self.next);
            self.next += 1;
            id
        });
        let path = path(iid, &rlocs, &self.families, [&self.down, &self.broken]);
        out.push(EncapChange::SetGroup { group: id, path: path.clone() });
        for rloc in rlocs.iter() {
            self.by_rloc.entry(rloc.addr).or_default().insert(id);
        }
        self.by_set.insert((iid, rlocs.clone()), id);
        self.groups.insert(id, Group { iid, rlocs, path, entries: 0 });
        id
    }

    fn is_full_for(&mut self, prefix: Prefix) -> bool {
        let full = self.entries.len() >= self.entries_max && !self.entries.contains_key(&prefix);
        self.counts.entries_full += u64::from(full);
        full
    }

    fn set_entry(&mut self, prefix: Prefix, action: EntryAction, out: &mut Vec<EncapChange>) {
        if self.is_full_for(prefix) {
            return;
        }
        let old = self.entries.insert(prefix, action);
        if old == Some(action) {
            return;
        }
        if let EntryAction::Group(id) = action {
            self.groups.get_mut(&id).expect("set before its entries").entries += 1;
        }
        out.push(EncapChange::SetEntry { prefix, action });
        self.release(old, out);
    }

    fn remove_entry(&mut self, prefix: Prefix, out: &mut Vec<EncapChange>) {
        let old = self.entries.remove(&prefix);
        if old.is_some() {
            out.push(EncapChange::RemoveEntry { prefix });
            self.release(old, out);
        }
    }

    /// An entry no longer does this; the last one of a group takes the group along.
    fn release(&mut self, old: Option<EntryAction>, out: &mut Vec<EncapChange>) {
        let Some(EntryAction::Group(id)) = old else { return };
        let group = self.groups.get_mut(&id).expect("a group stays while entries lead to it");
        group.entries -= 1;
        if group.entries > 0 {
            return;
        }
        let group = self.groups.remove(&id).expect("found just now");
        for rloc in group.rlocs.iter() {
            let in_sets = self.by_rloc.get_mut(&rloc.addr).expect("each locator of a set is here");
            in_sets.remove(&id);
            if in_sets.is_empty() {
                self.by_rloc.remove(&rloc.addr);
                self.down.remove(&rloc.addr);
            }
        }
        self.by_set.remove(&(group.iid, group.rlocs));
        self.free.insert(id);
        out.push(EncapChange::RemoveGroup { group: id });
    }

    pub fn find(&self, prefix: Prefix) -> Option<EntryAction> {
        self.entries.get(&prefix).copied()
    }

    /// Entries in order, beginning after `after`.
    pub fn entries(
        &self,
        after: Option<Prefix>,
    ) -> impl Iterator<Item = (Prefix, EntryAction)> + '_ {
        let from = after.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|(&prefix, &action)| (prefix, action))
    }

    /// Groups in order, beginning after `after`.
    pub fn groups(&self, after: Option<GroupId>) -> impl Iterator<Item = GroupView> + '_ {
        let from = after.map_or(Unbounded, Excluded);
        self.groups.range((from, Unbounded)).map(|(&group, g)| GroupView {
            group,
            iid: g.iid,
            rlocs: g.rlocs.clone(),
            path: g.path.clone(),
            entries: g.entries,
        })
    }

    pub fn entries_len(&self) -> usize {
        self.entries.len()
    }

    pub fn groups_len(&self) -> usize {
        self.groups.len()
    }

    pub fn counts(&self) -> IngressCounts {
        self.counts
    }
}

/// What a mapping says where destinations are rewritten. A locator is of one host; what has more
/// addresses (the pool of a home network) is reached by its own. So is a host whose locator is its
/// EID: it is at home. One without a locator that could stand for it cannot be reached at all.
fn rewriting(prefix: Prefix, rlocs: &RlocSet) -> EntryAction {
    if !prefix.is_host() {
        return EntryAction::Native;
    }
    let eid = prefix.addr();
    let usable = rlocs.iter().filter(|r| r.priority != PRIORITY_NEVER);
    let usable = usable.filter(|r| may_stand_for(r.addr, eid));
    match usable.min_by_key(|r| (r.priority, std::cmp::Reverse(r.weight), r.addr)) {
        Some(rloc) if rloc.addr == eid => EntryAction::Native,
        Some(rloc) => EntryAction::Rewrite(rloc.addr),
        None => EntryAction::Drop,
    }
}

/// "Do not use" (RFC 9301 §5.4).
const PRIORITY_NEVER: u8 = 255;

/// Where packets go now: among the locators that can be reached, those of the best priority
/// (RFC 9301 §5.4). Locators of weight 0 carry nothing beside those that have one; if none has,
/// the choice is ours, and all are equal.
fn path(
    iid: InstanceId,
    rlocs: &RlocSet,
    families: &[Family],
    down: [&BTreeSet<IpAddr>; 2],
) -> GroupPath {
    let can = |addr: IpAddr| usable(addr, families) && !down.iter().any(|d| d.contains(&addr));
    let candidates = || rlocs.iter().filter(|r| r.priority != PRIORITY_NEVER && can(r.addr));
    let Some(best) = candidates().map(|r| r.priority).min() else {
        return GroupPath::Unreachable;
    };
    let equals = || candidates().filter(move |r| r.priority == best);
    let members: Vec<_> = if equals().all(|r| r.weight == 0) {
        equals().map(|r| (r.addr, 1)).collect()
    } else {
        equals().filter(|r| r.weight > 0).map(|r| (r.addr, r.weight)).collect()
    };
    GroupPath::Encap { members, iid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::lisp::Rloc;

    const IID: InstanceId = InstanceId(7);

    fn prefix(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    fn addr(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    fn set(rlocs: &[(&str, u8, u8)]) -> RlocSet {
        let rloc =
            |&(a, priority, weight): &(&str, u8, u8)| Rloc { addr: addr(a), priority, weight };
        RlocSet::new(rlocs.iter().map(rloc).collect())
    }

    fn encap(members: &[(&str, u8)]) -> GroupPath {
        let members = members.iter().map(|&(a, w)| (addr(a), w)).collect();
        GroupPath::Encap { members, iid: IID }
    }

    fn map(ingress: &mut Ingress, p: &str, rlocs: &RlocSet) -> Vec<EncapChange> {
        let mut out = Vec::new();
        ingress.set_mapping(IID, prefix(p), rlocs, NegativeAction::NoAction, &mut out);
        out
    }

    fn reach(ingress: &mut Ingress, a: &str, up: bool) -> Vec<EncapChange> {
        let mut out = Vec::new();
        ingress.set_reachable(addr(a), up, &mut out);
        out
    }

    #[test]
    fn hosts_of_one_anchor_share_its_group_and_a_move_is_one_entry() {
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        let a = set(&[("192.0.2.1", 1, 100)]);
        let b = set(&[("192.0.2.2", 1, 100)]);
        let first = map(&mut ingress, "10.1.0.1/32", &a);
        let group = GroupId(1);
        let set_entry = |p: &str, action| EncapChange::SetEntry { prefix: prefix(p), action };
        assert_eq!(
            first,
            [
                EncapChange::SetGroup { group, path: encap(&[("192.0.2.1", 100)]) },
                set_entry("10.1.0.1/32", EntryAction::Group(group)),
            ]
        );
        let second = map(&mut ingress, "10.1.0.2/32", &a);
        assert_eq!(second, [set_entry("10.1.0.2/32", EntryAction::Group(group))]);
        assert_eq!(map(&mut ingress, "10.1.0.2/32", &a), [], "the same again is nothing new");
        map(&mut ingress, "10.1.0.3/32", &b);
        let moved = map(&mut ingress, "10.1.0.2/32", &b);
        assert_eq!(moved, [set_entry("10.1.0.2/32", EntryAction::Group(GroupId(2)))]);
        let last = map(&mut ingress, "10.1.0.1/32", &b);
        assert_eq!(
            last,
            [
                set_entry("10.1.0.1/32", EntryAction::Group(GroupId(2))),
                EncapChange::RemoveGroup { group },
            ],
            "the group goes after its last entry has left"
        );
        assert_eq!(ingress.groups_len(), 1);
    }

    #[test]
    fn fail_over_is_one_write_whatever_the_number_of_prefixes() {
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        let rlocs = set(&[("192.0.2.1", 1, 50), ("192.0.2.2", 1, 50), ("2001:db8::1", 2, 0)]);
        for n in 0..10_000 {
            let host = Prefix::v4(0x0a01_0000 + n, 32).unwrap();
            let mut out = Vec::new();
            ingress.set_mapping(IID, host, &rlocs, NegativeAction::NoAction, &mut out);
        }
        let group = GroupId(1);
        let one = |path| vec![EncapChange::SetGroup { group, path }];
        assert_eq!(reach(&mut ingress, "192.0.2.1", false), one(encap(&[("192.0.2.2", 50)])));
        assert_eq!(reach(&mut ingress, "192.0.2.1", false), []);
        assert_eq!(reach(&mut ingress, "192.0.2.2", false), one(encap(&[("2001:db8::1", 1)])));
        assert_eq!(reach(&mut ingress, "2001:db8::1", false), one(GroupPath::Unreachable));
        assert_eq!(reach(&mut ingress, "192.0.2.1", true), one(encap(&[("192.0.2.1", 50)])));
        assert_eq!(reach(&mut ingress, "203.0.113.9", false), [], "in no set");
    }

    #[test]
    fn a_failed_path_counts_whatever_probes_say() {
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        let path = |ingress: &mut Ingress, up| {
            let mut out = Vec::new();
            ingress.set_path(addr("192.0.2.1"), up, &mut out);
            out
        };
        // Known before there is any mapping, unlike what probes find.
        assert_eq!(path(&mut ingress, false), []);
        let rlocs = set(&[("192.0.2.1", 1, 50), ("192.0.2.2", 2, 50)]);
        let out = map(&mut ingress, "10.1.0.1/32", &rlocs);
        let group = GroupId(1);
        let second = encap(&[("192.0.2.2", 50)]);
        assert_eq!(out[0], EncapChange::SetGroup { group, path: second.clone() });
        assert_eq!(reach(&mut ingress, "192.0.2.1", false), []);
        assert_eq!(path(&mut ingress, true), [], "it does not answer probes either");
        let first = vec![EncapChange::SetGroup { group, path: encap(&[("192.0.2.1", 50)]) }];
        assert_eq!(reach(&mut ingress, "192.0.2.1", true), first);
        assert_eq!(path(&mut ingress, false), [EncapChange::SetGroup { group, path: second }]);
        assert_eq!(path(&mut ingress, true), first);
    }

    #[test]
    fn locators_of_a_family_without_underlay_and_of_priority_255_are_not_used() {
        let mut ingress = Ingress::new(vec![Family::Ipv6]);
        let rlocs = set(&[("192.0.2.1", 1, 100), ("2001:db8::1", 2, 100), ("2001:db8::2", 255, 9)]);
        let out = map(&mut ingress, "10.1.0.1/32", &rlocs);
        let path = encap(&[("2001:db8::1", 100)]);
        assert_eq!(out[0], EncapChange::SetGroup { group: GroupId(1), path });
        let never = set(&[("2001:db8::2", 255, 9)]);
        let out = map(&mut ingress, "10.1.0.2/32", &never);
        assert_eq!(
            out[0],
            EncapChange::SetGroup { group: GroupId(2), path: GroupPath::Unreachable }
        );
    }

    #[test]
    fn a_removed_mapping_falls_back_to_the_policy_of_its_prefix() {
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        let pool = prefix("10.1.0.0/16");
        let mut out = Vec::new();
        ingress.set_policy(pool, EntryAction::Punt, &mut out);
        map(&mut ingress, "10.1.0.0/16", &set(&[("192.0.2.1", 1, 100)]));
        map(&mut ingress, "10.1.0.9/32", &set(&[("192.0.2.2", 1, 100)]));
        out.clear();
        ingress.remove_mapping(pool, &mut out);
        ingress.remove_mapping(prefix("10.1.0.9/32"), &mut out);
        ingress.remove_mapping(prefix("10.1.0.9/32"), &mut out);
        assert_eq!(
            out,
            [
                EncapChange::SetEntry { prefix: pool, action: EntryAction::Punt },
                EncapChange::RemoveGroup { group: GroupId(1) },
                EncapChange::RemoveEntry { prefix: prefix("10.1.0.9/32") },
                EncapChange::RemoveGroup { group: GroupId(2) },
            ]
        );
        out.clear();
        ingress.remove_policy(pool, &mut out);
        assert_eq!(out, [EncapChange::RemoveEntry { prefix: pool }]);
    }

    /// RFC 9301 §5.4: what each action of a negative mapping does with packets.
    #[test]
    fn negative_mappings_are_native_punt_or_drop() {
        let mut ingress = Ingress::new(Family::ALL.to_vec());
        for (action, expected) in [
            (NegativeAction::NoAction, EntryAction::Native),
            (NegativeAction::SendMapRequest, EntryAction::Punt),
            (NegativeAction::NativelyForward, EntryAction::Native),
            (NegativeAction::DropNoReason, EntryAction::Drop),
            (NegativeAction::DropPolicyDenied, EntryAction::Drop),
            (NegativeAction::DropAuthFailure, EntryAction::Drop),
        ] {
            let hole = prefix("10.1.128.0/17");
            ingress.set_mapping(IID, hole, &RlocSet::default(), action, &mut Vec::new());
            assert_eq!(ingress.find(hole), Some(expected));
        }
    }

    #[test]
    fn where_destinations_are_rewritten_a_locator_is_of_one_host() {
        let mut ingress = Ingress::rewriting();
        let mut entry = |p: &str, rlocs: &[(&str, u8, u8)]| {
            map(&mut ingress, p, &set(rlocs));
            ingress.find(prefix(p)).unwrap()
        };
        let to = |a: &str| EntryAction::Rewrite(addr(a));
        let host = "10.1.0.1/32";
        assert_eq!(entry(host, &[("192.0.2.1", 1, 100)]), to("192.0.2.1"));
        assert_eq!(
            entry(host, &[("192.0.2.9", 2, 1), ("192.0.2.8", 255, 1), ("192.0.2.7", 3, 1)]),
            to("192.0.2.9")
        );
        assert_eq!(entry(host, &[("10.1.0.1", 1, 100)]), EntryAction::Native, "at home");
        assert_eq!(entry(host, &[("2001:db8::1", 1, 100)]), EntryAction::Drop);
        assert_eq!(entry("10.1.0.0/24", &[("192.0.2.1", 1, 100)]), EntryAction::Native);
        let eid = "2001:db8:1::10/128";
        assert_eq!(entry(eid, &[("2001:db8:2::f", 1, 100)]), to("2001:db8:2::f"));
        assert_eq!(entry(eid, &[("2001:db8:2::10", 1, 100)]), EntryAction::Drop, "checksum");
        assert_eq!(ingress.groups_len(), 0);
    }

    #[test]
    fn full_tables_refuse_the_new_and_keep_the_old() {
        let mut ingress = Ingress::with_limits(Family::ALL.to_vec(), 2, 1);
        let a = set(&[("192.0.2.1", 1, 100)]);
        map(&mut ingress, "10.1.0.1/32", &a);
        assert_eq!(map(&mut ingress, "10.1.0.2/32", &set(&[("192.0.2.2", 1, 1)])), []);
        assert_eq!(ingress.counts(), IngressCounts { entries_full: 0, groups_full: 1 });
        assert_eq!(map(&mut ingress, "10.1.0.2/32", &a).len(), 1);
        assert_eq!(map(&mut ingress, "10.1.0.3/32", &a), []);
        assert_eq!(ingress.counts(), IngressCounts { entries_full: 1, groups_full: 1 });
        assert_eq!(ingress.entries_len(), 2);
    }
}
