//! What should be in the back end, what is in it, and the work between the two.
//!
//! Changes enter the desired state and are written at once, up to a bound per turn; the rest waits in
//! a queue, in order. What fails leaves its reason in its entry and is tried again, each time later.
//! From time to time (and when something points to a loss) the back end is read back and compared.
//! After a restart what is there is adopted, and what nobody has asked for by the time of
//! [`Reconciler::prune`] is removed.
//!
//! The numbers of groups are the control plane's, and begin anew with it; in the back end a group has
//! a *slot*, a number of ours. A group that is the same before and after a restart keeps its slot,
//! and its entries lead on as they did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::{Caps, EncapError, EncapEvent, Encapsulator};
use crate::dataplane::repair::{Fault, Repairs};
use crate::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath};
use crate::types::{Instant, Prefix};

/// Changes written per turn: about 1 ms of the routing thread.
const WRITES_PER_TURN: usize = 256;
/// Entries looked at per turn when an audit ends or leftovers are removed.
const SWEEP_PER_TURN: usize = 2_048;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);

type Slot = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Group(Slot),
    Entry(Prefix),
    Decap(Prefix),
}

/// One thing that should be there, or not, and that is there, or not.
#[derive(Debug)]
struct Item<T> {
    wanted: Option<T>,
    /// What the back end has accepted, or was found to have.
    held: Option<T>,
    /// The audit that has last seen it, or during which it was written.
    audited: u32,
    queued: bool,
    failure: Option<Box<Failure>>,
}

impl<T> Default for Item<T> {
    fn default() -> Self {
        Self { wanted: None, held: None, audited: 0, queued: false, failure: None }
    }
}

#[derive(Debug)]
struct Failure {
    error: EncapError,
    attempts: u32,
    retry_at: Instant,
}

impl<T: PartialEq> Item<T> {
    fn is_settled(&self) -> bool {
        self.wanted == self.held
    }

    fn is_gone(&self) -> bool {
        self.wanted.is_none() && self.held.is_none()
    }

    fn is_orphan(&self) -> bool {
        self.wanted.is_none() && self.held.is_some()
    }

    fn error(&self) -> Option<String> {
        self.failure.as_ref().map(|failure| failure.error.to_string())
    }
}

#[derive(Debug, Default)]
struct Group {
    item: Item<GroupPath>,
    /// `None` for one that was found and that nobody has asked for yet.
    id: Option<GroupId>,
    /// Entries that should lead here, and entries that do: it is removed after the last.
    users: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub written: u64,
    pub failed: u64,
    /// Found by an audit: gone, or different.
    pub repaired: u64,
    pub adopted: u64,
    /// Changes refused because the table is full.
    pub full: u64,
    /// Entries refused because their group was never set.
    pub no_group: u64,
}

/// What an audit found otherwise than it should have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub fault: Fault,
    pub thing: Thing,
}

/// What a back end holds, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    Entry(Prefix),
    /// By the number that the back end knows.
    Group(GroupId),
    Decap(Prefix),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub groups: usize,
    /// With those that are left over or being removed.
    pub entries: usize,
    pub decap: usize,
    /// Waiting to be written.
    pub pending: usize,
    /// Refused, and waiting to be tried again.
    pub failed: usize,
}

/// One entry, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryView {
    pub prefix: Prefix,
    /// What was asked for; `None` for one that is left over or being removed.
    pub wanted: Option<EntryAction>,
    /// The back end has it.
    pub installed: bool,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// `None` for one that is left over.
    pub group: Option<GroupId>,
    pub path: Option<GroupPath>,
    pub installed: bool,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecapView {
    pub prefix: Prefix,
    pub wanted: bool,
    pub installed: bool,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audit {
    Idle,
    /// The back end is being read, a piece per turn.
    Reading,
    /// What it has not shown is gone.
    Missing(Sweep),
}

/// Where a walk over all entries and prefixes continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sweep {
    decap: bool,
    after: Option<Prefix>,
}

const FROM_START: Sweep = Sweep { decap: false, after: None };

pub struct Reconciler<E> {
    plane: E,
    caps: Caps,
    slots: BTreeMap<Slot, Group>,
    by_id: BTreeMap<GroupId, Slot>,
    free: BTreeSet<Slot>,
    /// Slots from here on were never used.
    next: Slot,
    entries: BTreeMap<Prefix, Item<EntryAction>>,
    decap: BTreeMap<Prefix, Item<()>>,
    queue: VecDeque<Key>,
    retries: BTreeSet<(Instant, Key)>,
    audit: Audit,
    audit_number: u32,
    audit_at: Instant,
    audit_error: Option<EncapError>,
    pruned: bool,
    pruning: Option<Sweep>,
    counters: Counters,
    repairs: Repairs<Repair>,
    changes: Vec<EncapChange>,
}

impl<E: Encapsulator> Reconciler<E> {
    /// Begins with what the back end has: forwarding went on while nobody was in control.
    pub fn new(plane: E, now: Instant) -> Self {
        let caps = plane.caps();
        let mut this = Self {
            plane,
            caps,
            slots: BTreeMap::new(),
            by_id: BTreeMap::new(),
            free: BTreeSet::new(),
            next: 0,
            entries: BTreeMap::new(),
            decap: BTreeMap::new(),
            queue: VecDeque::new(),
            retries: BTreeSet::new(),
            audit: Audit::Idle,
            audit_number: 0,
            audit_at: now,
            audit_error: None,
            pruned: false,
            pruning: None,
            counters: Counters::default(),
            repairs: Repairs::default(),
            changes: Vec::new(),
        };
        this.begin_audit(now);
        // The slots that are taken must be known before the first one is given away.
        while this.audit == Audit::Reading && this.entries.is_empty() && this.decap.is_empty() {
            this.read_piece(now);
        }
        this
    }

    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// For counters and events, which need no reconciling.
    pub fn plane_mut(&mut self) -> &mut E {
        &mut self.plane
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Why the back end could not be read back, when that failed last.
    pub fn audit_error(&self) -> Option<&EncapError> {
        self.audit_error.as_ref()
    }

    pub fn summary(&self) -> Summary {
        Summary {
            groups: self.by_id.len(),
            entries: self.entries.len(),
            decap: self.decap.len(),
            pending: self.queue.len(),
            failed: self.retries.len(),
        }
    }

    /// Entries in order, from behind `after` on.
    pub fn entries(&self, after: Option<Prefix>) -> impl Iterator<Item = EntryView> {
        let from = after.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|(&prefix, item)| EntryView {
            prefix,
            wanted: item.wanted.map(|action| self.named(action)),
            installed: item.held.is_some() && item.held == item.wanted,
            error: item.error(),
        })
    }

    pub fn groups(&self) -> impl Iterator<Item = GroupView> {
        self.slots.values().map(|group| GroupView {
            group: group.id,
            path: group.item.wanted.clone().or_else(|| group.item.held.clone()),
            installed: group.item.held.is_some() && group.item.is_settled(),
            error: group.item.error(),
        })
    }

    pub fn decap(&self, after: Option<Prefix>) -> impl Iterator<Item = DecapView> {
        let from = after.map_or(Unbounded, Excluded);
        self.decap.range((from, Unbounded)).map(|(&prefix, item)| DecapView {
            prefix,
            wanted: item.wanted.is_some(),
            installed: item.held.is_some(),
            error: item.error(),
        })
    }

    /// With the control plane's number of the group.
    fn named(&self, action: EntryAction) -> EntryAction {
        match action {
            EntryAction::Group(GroupId(slot)) => {
                let id = self.slots.get(&slot).and_then(|group| group.id);
                EntryAction::Group(id.unwrap_or(GroupId(slot)))
            }
            EntryAction::Punt
            | EntryAction::Native
            | EntryAction::Drop
            | EntryAction::Rewrite(_) => action,
        }
    }

    /// The changes are in the back end when this returns, unless they are very many or fail.
    pub fn apply(&mut self, changes: &[EncapChange], now: Instant) {
        for change in changes {
            self.note(change);
        }
        self.write(now);
    }

    /// The tables of the control plane are complete: what nobody has asked for is removed.
    pub fn prune(&mut self) {
        self.pruned = true;
        self.pruning = Some(FROM_START);
    }

    /// What audits have set right, newest first.
    pub fn repairs(&self) -> impl Iterator<Item = (Instant, &Repair)> {
        self.repairs.iter()
    }

    /// The number of the newest audit, ended or not.
    pub fn audit_number(&self) -> u32 {
        self.audit_number
    }

    /// The number of the newest audit that has ended.
    pub fn audits_ended(&self) -> u32 {
        match self.audit {
            Audit::Idle => self.audit_number,
            Audit::Reading | Audit::Missing(_) => self.audit_number.wrapping_sub(1),
        }
    }

    /// Something outside has changed what the back end had: it is read back soon.
    pub fn handle_doubt(&mut self, now: Instant) {
        self.audit_at = self.audit_at.min(now);
    }

    pub fn poll_timeout(&self) -> Instant {
        if !self.queue.is_empty() || self.pruning.is_some() || self.audit != Audit::Idle {
            return Instant::ZERO; // at once
        }
        let retry = self.retries.first().map_or(Instant::FAR_FUTURE, |&(at, _)| at);
        retry.min(self.audit_at).min(self.plane.poll_timeout())
    }

    pub fn handle_timeout(&mut self, now: Instant, events: &mut Vec<EncapEvent>) {
        self.plane.handle_timeout(now, events);
        while let Some(&(at, key)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            self.enqueue(key);
        }
        self.write(now);
        match self.audit {
            Audit::Idle if self.audit_at <= now => self.begin_audit(now),
            Audit::Idle => {}
            Audit::Reading => self.read_piece(now),
            Audit::Missing(sweep) => self.sweep_missing(sweep, now),
        }
        if let Some(sweep) = self.pruning {
            self.pruning = self.sweep_orphans(sweep);
        }
    }

    fn note(&mut self, change: &EncapChange) {
        match *change {
            EncapChange::SetGroup { group, ref path } => self.note_group(group, path),
            EncapChange::RemoveGroup { group } => {
                if let Some(&slot) = self.by_id.get(&group)
                    && let Some(group) = self.slots.get_mut(&slot)
                {
                    group.item.wanted = None;
                    self.enqueue(Key::Group(slot));
                }
            }
            EncapChange::SetEntry { prefix, action } => self.note_entry(prefix, action),
            EncapChange::RemoveEntry { prefix } => {
                if let Some(item) = self.entries.get_mut(&prefix) {
                    let was = item.wanted.take();
                    self.unuse(was);
                    self.enqueue(Key::Entry(prefix));
                }
            }
            EncapChange::AllowDecap { prefix } => {
                if self.decap.len() >= self.caps.decap_max && !self.decap.contains_key(&prefix) {
                    self.counters.full += 1;
                    return;
                }
                self.decap.entry(prefix).or_default().wanted = Some(());
                self.enqueue(Key::Decap(prefix));
            }
            EncapChange::ForbidDecap { prefix } => {
                if let Some(item) = self.decap.get_mut(&prefix) {
                    item.wanted = None;
                    self.enqueue(Key::Decap(prefix));
                }
            }
        }
    }

    fn note_group(&mut self, id: GroupId, path: &GroupPath) {
        let path = usable(path, &self.caps);
        let slot = match self.by_id.get(&id) {
            Some(&slot) => slot,
            None => {
                let Some(slot) = self.claim_slot(&path) else {
                    self.counters.full += 1;
                    return;
                };
                self.by_id.insert(id, slot);
                slot
            }
        };
        let group = self.slots.entry(slot).or_default();
        group.id = Some(id);
        group.item.wanted = Some(path);
        self.enqueue(Key::Group(slot));
    }

    /// One that was found and leads there already, or a new one.
    fn claim_slot(&mut self, path: &GroupPath) -> Option<Slot> {
        let left_over = self.slots.iter().find(|(_, group)| {
            group.id.is_none() && !self.pruned && group.item.held.as_ref() == Some(path)
        });
        if let Some((&slot, _)) = left_over {
            return Some(slot);
        }
        if let Some(slot) = self.free.pop_first() {
            return Some(slot);
        }
        let slot = (self.next < self.caps.groups_max).then_some(self.next)?;
        self.next += 1;
        Some(slot)
    }

    fn note_entry(&mut self, prefix: Prefix, action: EntryAction) {
        let action = match action {
            EntryAction::Group(id) => match self.by_id.get(&id) {
                Some(&slot) => EntryAction::Group(GroupId(slot)),
                None => {
                    self.counters.no_group += 1;
                    return;
                }
            },
            EntryAction::Punt
            | EntryAction::Native
            | EntryAction::Drop
            | EntryAction::Rewrite(_) => action,
        };
        let full = self.entries.len() >= self.caps.entries_max;
        let item = match self.entries.get_mut(&prefix) {
            Some(item) => item,
            None if full => {
                self.counters.full += 1;
                return;
            }
            None => self.entries.entry(prefix).or_default(),
        };
        let was = item.wanted.replace(action);
        if was != Some(action) {
            self.use_slot(action);
            self.unuse(was);
        }
        self.enqueue(Key::Entry(prefix));
    }

    fn use_slot(&mut self, action: EntryAction) {
        if let EntryAction::Group(GroupId(slot)) = action
            && let Some(group) = self.slots.get_mut(&slot)
        {
            group.users += 1;
        }
    }

    fn unuse(&mut self, action: Option<EntryAction>) {
        if let Some(EntryAction::Group(GroupId(slot))) = action
            && let Some(group) = self.slots.get_mut(&slot)
        {
            group.users = group.users.saturating_sub(1);
            // One that was found stays until somebody may have asked for it.
            let kept = group.id.is_none() && !self.pruned && group.item.held.is_some();
            if group.users == 0 && group.item.wanted.is_none() && !kept {
                self.enqueue(Key::Group(slot));
            }
        }
    }

    /// Once, however often it changes before its turn comes.
    fn enqueue(&mut self, key: Key) {
        let queued = match key {
            Key::Group(slot) => self.slots.get_mut(&slot).map(|group| &mut group.item.queued),
            Key::Entry(prefix) => self.entries.get_mut(&prefix).map(|item| &mut item.queued),
            Key::Decap(prefix) => self.decap.get_mut(&prefix).map(|item| &mut item.queued),
        };
        if let Some(queued) = queued
            && !std::mem::replace(queued, true)
        {
            self.queue.push_back(key);
        }
    }

    fn write(&mut self, now: Instant) {
        let mut keys = Vec::new();
        let mut changes = std::mem::take(&mut self.changes);
        while keys.len() < WRITES_PER_TURN
            && let Some(key) = self.queue.pop_front()
        {
            if let Some(change) = self.change_for(key) {
                keys.push(key);
                changes.push(change);
            }
        }
        let mut results = Vec::with_capacity(changes.len());
        self.plane.apply(&changes, &mut results);
        for ((key, change), result) in keys.into_iter().zip(changes.drain(..)).zip(results) {
            self.settle(key, change, result, now);
        }
        self.changes = changes;
    }

    /// What is to be written for it; `None` when it is as it should be, and then it is forgotten if
    /// it should not be.
    fn change_for(&mut self, key: Key) -> Option<EncapChange> {
        match key {
            Key::Group(slot) => {
                let group = self.slots.get_mut(&slot)?;
                group.item.queued = false;
                if group.item.is_settled() {
                    if group.item.is_gone() && group.users == 0 {
                        self.forget_slot(slot);
                    }
                    return None;
                }
                match &group.item.wanted {
                    Some(path) => {
                        let path = path.clone();
                        Some(EncapChange::SetGroup { group: GroupId(slot), path })
                    }
                    // The last entry that leaves it puts it back into the queue.
                    None if group.users > 0 => None,
                    None => Some(EncapChange::RemoveGroup { group: GroupId(slot) }),
                }
            }
            Key::Entry(prefix) => {
                let item = self.entries.get_mut(&prefix)?;
                item.queued = false;
                if item.is_settled() {
                    if item.is_gone() {
                        self.entries.remove(&prefix);
                    }
                    return None;
                }
                Some(match item.wanted {
                    Some(action) => EncapChange::SetEntry { prefix, action },
                    None => EncapChange::RemoveEntry { prefix },
                })
            }
            Key::Decap(prefix) => {
                let item = self.decap.get_mut(&prefix)?;
                item.queued = false;
                if item.is_settled() {
                    if item.is_gone() {
                        self.decap.remove(&prefix);
                    }
                    return None;
                }
                Some(match item.wanted {
                    Some(()) => EncapChange::AllowDecap { prefix },
                    None => EncapChange::ForbidDecap { prefix },
                })
            }
        }
    }

    fn settle(
        &mut self,
        key: Key,
        change: EncapChange,
        result: Result<(), EncapError>,
        now: Instant,
    ) {
        let audit = self.audit_number;
        if let Some(at) = self.retry_of(key) {
            self.retries.remove(&(at, key)); // came earlier, with a change
        }
        match &result {
            Ok(()) => self.counters.written += 1,
            Err(_) => self.counters.failed += 1,
        }
        let retry = match change {
            EncapChange::SetGroup { path, .. } => self
                .group_item(key)
                .and_then(|item| item.settled(Some(path), result, audit, now).err()),
            EncapChange::RemoveGroup { .. } => {
                let retry = self
                    .group_item(key)
                    .and_then(|item| item.settled(None, result, audit, now).err());
                if retry.is_none() {
                    self.enqueue(key); // to be forgotten
                }
                retry
            }
            EncapChange::SetEntry { prefix, action } => {
                self.entry_settled(prefix, Some(action), result, now)
            }
            EncapChange::RemoveEntry { prefix } => self.entry_settled(prefix, None, result, now),
            EncapChange::AllowDecap { prefix } => {
                let item = self.decap.get_mut(&prefix);
                item.and_then(|item| item.settled(Some(()), result, audit, now).err())
            }
            EncapChange::ForbidDecap { prefix } => {
                let item = self.decap.get_mut(&prefix);
                let retry = item.and_then(|item| item.settled(None, result, audit, now).err());
                if self.decap.get(&prefix).is_some_and(Item::is_gone) {
                    self.decap.remove(&prefix);
                }
                retry
            }
        };
        if let Some(at) = retry {
            self.retries.insert((at, key));
        }
    }

    fn retry_of(&self, key: Key) -> Option<Instant> {
        let failure = match key {
            Key::Group(slot) => self.slots.get(&slot)?.item.failure.as_ref(),
            Key::Entry(prefix) => self.entries.get(&prefix)?.failure.as_ref(),
            Key::Decap(prefix) => self.decap.get(&prefix)?.failure.as_ref(),
        };
        failure.map(|failure| failure.retry_at)
    }

    fn group_item(&mut self, key: Key) -> Option<&mut Item<GroupPath>> {
        match key {
            Key::Group(slot) => self.slots.get_mut(&slot).map(|group| &mut group.item),
            Key::Entry(_) | Key::Decap(_) => None,
        }
    }

    fn entry_settled(
        &mut self,
        prefix: Prefix,
        action: Option<EntryAction>,
        result: Result<(), EncapError>,
        now: Instant,
    ) -> Option<Instant> {
        let audit = self.audit_number;
        let item = self.entries.get_mut(&prefix)?;
        let was = item.held;
        let retry = item.settled(action, result, audit, now).err();
        let gone = item.is_gone();
        if retry.is_none() {
            if let Some(action) = action {
                self.use_slot(action);
            }
            self.unuse(was);
        }
        if gone {
            self.entries.remove(&prefix);
        }
        retry
    }

    fn forget_slot(&mut self, slot: Slot) {
        if let Some(group) = self.slots.remove(&slot)
            && let Some(id) = group.id
        {
            self.by_id.remove(&id);
        }
        self.free.insert(slot);
    }

    fn begin_audit(&mut self, now: Instant) {
        self.audit_at = now + AUDIT_INTERVAL;
        self.audit_number = self.audit_number.wrapping_add(1);
        match self.plane.begin_dump() {
            Ok(()) => {
                self.audit = Audit::Reading;
                self.audit_error = None;
            }
            Err(error) => self.audit_error = Some(error),
        }
    }

    fn read_piece(&mut self, now: Instant) {
        let mut found = Vec::new();
        let more = self.plane.continue_dump(&mut found);
        for change in found {
            self.see(change, now);
        }
        match more {
            Ok(true) => {}
            Ok(false) => {
                self.miss_groups(now);
                self.audit = Audit::Missing(FROM_START);
            }
            Err(error) => {
                // What was not shown is not known to be gone.
                self.audit_error = Some(error);
                self.audit = Audit::Idle;
                self.audit_at = now + AUDIT_INTERVAL;
            }
        }
    }

    /// One thing that the back end has.
    fn see(&mut self, change: EncapChange, now: Instant) {
        let (audit, pruned) = (self.audit_number, self.pruned);
        match change {
            EncapChange::SetGroup { group: GroupId(slot), path } => {
                self.free.extend(self.next..slot);
                self.next = self.next.max(slot.saturating_add(1));
                self.free.remove(&slot);
                let group = self.slots.entry(slot).or_default();
                match group.item.see(path, audit) {
                    Seen::Known => {}
                    Seen::New => self.counters.adopted += 1,
                    Seen::Different => {
                        self.counters.repaired += 1;
                        let thing = Thing::Group(GroupId(slot));
                        self.repairs.note(Repair { fault: Fault::Different, thing }, now);
                    }
                }
                if !group.item.is_settled() && (pruned || group.id.is_some()) {
                    self.enqueue(Key::Group(slot));
                }
            }
            EncapChange::SetEntry { prefix, action } => {
                let item = self.entries.entry(prefix).or_default();
                let was = item.held;
                match item.see(action, audit) {
                    Seen::Known => return,
                    Seen::New => {
                        self.counters.adopted += 1;
                        if pruned && item.wanted.is_none() {
                            let thing = Thing::Entry(prefix);
                            self.repairs.note(Repair { fault: Fault::Extra, thing }, now);
                        }
                    }
                    Seen::Different => {
                        self.counters.repaired += 1;
                        let thing = Thing::Entry(prefix);
                        self.repairs.note(Repair { fault: Fault::Different, thing }, now);
                    }
                }
                let requeue = !item.is_settled() && (pruned || item.wanted.is_some());
                self.use_slot(action);
                self.unuse(was);
                if requeue {
                    self.enqueue(Key::Entry(prefix));
                }
            }
            EncapChange::AllowDecap { prefix } => {
                let item = self.decap.entry(prefix).or_default();
                if item.see((), audit) == Seen::New {
                    self.counters.adopted += 1;
                }
                if pruned && item.is_orphan() {
                    self.enqueue(Key::Decap(prefix));
                }
            }
            // No list has these.
            EncapChange::RemoveGroup { .. }
            | EncapChange::RemoveEntry { .. }
            | EncapChange::ForbidDecap { .. } => {}
        }
    }

    /// Before entries: these need their groups.
    fn miss_groups(&mut self, now: Instant) {
        let audit = self.audit_number;
        let mut lost = Vec::new();
        for (&slot, group) in &mut self.slots {
            if group.item.held.is_some() && group.item.audited != audit {
                group.item.held = None;
                lost.push(slot);
            }
        }
        for slot in lost {
            self.counters.repaired += 1;
            let thing = Thing::Group(GroupId(slot));
            self.repairs.note(Repair { fault: Fault::Missing, thing }, now);
            self.enqueue(Key::Group(slot));
        }
    }

    fn sweep_missing(&mut self, sweep: Sweep, now: Instant) {
        let audit = self.audit_number;
        let from = sweep.after.map_or(Unbounded, Excluded);
        let mut lost = Vec::new();
        let mut last = None;
        if sweep.decap {
            for (&prefix, item) in self.decap.range_mut((from, Unbounded)).take(SWEEP_PER_TURN) {
                last = Some(prefix);
                if item.held.is_some() && item.audited != audit {
                    item.held = None;
                    lost.push((Key::Decap(prefix), None));
                }
            }
        } else {
            for (&prefix, item) in self.entries.range_mut((from, Unbounded)).take(SWEEP_PER_TURN) {
                last = Some(prefix);
                if item.held.is_some() && item.audited != audit {
                    lost.push((Key::Entry(prefix), item.held.take()));
                }
            }
        }
        for (key, was) in lost {
            self.counters.repaired += 1;
            let thing = match key {
                Key::Entry(prefix) => Thing::Entry(prefix),
                Key::Group(slot) => Thing::Group(GroupId(slot)),
                Key::Decap(prefix) => Thing::Decap(prefix),
            };
            self.repairs.note(Repair { fault: Fault::Missing, thing }, now);
            self.unuse(was);
            self.enqueue(key);
        }
        self.audit = match last {
            Some(_) => Audit::Missing(Sweep { after: last, ..sweep }),
            None if !sweep.decap => Audit::Missing(Sweep { decap: true, after: None }),
            None => {
                self.audit_at = now + AUDIT_INTERVAL;
                Audit::Idle
            }
        };
    }

    /// Puts what nobody has asked for into the queue; where to go on, if there is more.
    fn sweep_orphans(&mut self, sweep: Sweep) -> Option<Sweep> {
        let from = sweep.after.map_or(Unbounded, Excluded);
        let mut orphans = Vec::new();
        let mut last = None;
        if sweep.decap {
            for (&prefix, item) in self.decap.range((from, Unbounded)).take(SWEEP_PER_TURN) {
                last = Some(prefix);
                if item.is_orphan() {
                    orphans.push(Key::Decap(prefix));
                }
            }
        } else {
            for (&prefix, item) in self.entries.range((from, Unbounded)).take(SWEEP_PER_TURN) {
                last = Some(prefix);
                if item.is_orphan() {
                    orphans.push(Key::Entry(prefix));
                }
            }
        }
        for key in orphans {
            self.enqueue(key);
        }
        match last {
            Some(_) => Some(Sweep { after: last, ..sweep }),
            None if !sweep.decap => Some(Sweep { decap: true, after: None }),
            None => {
                // Those with entries are removed after the last of these.
                let idle =
                    |(_, group): &(&Slot, &Group)| group.item.is_orphan() && group.users == 0;
                let slots: Vec<Slot> = self.slots.iter().filter(idle).map(|(&s, _)| s).collect();
                for slot in slots {
                    self.enqueue(Key::Group(slot));
                }
                None
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// As it was known to be, or written since the list began.
    Known,
    /// Not known to be there.
    New,
    Different,
}

impl<T: PartialEq> Item<T> {
    fn see(&mut self, found: T, audit: u32) -> Seen {
        if self.audited == audit {
            return Seen::Known; // the list may be older than what was written
        }
        self.audited = audit;
        match self.held.replace(found) {
            None => Seen::New,
            was if was == self.held => Seen::Known,
            Some(_) => Seen::Different,
        }
    }

    /// When to try again, if it failed.
    fn settled(
        &mut self,
        held: Option<T>,
        result: Result<(), EncapError>,
        audit: u32,
        now: Instant,
    ) -> Result<(), Instant> {
        match result {
            Ok(()) => {
                self.held = held;
                self.audited = audit;
                self.failure = None;
                Ok(())
            }
            Err(error) => {
                let attempts = self.failure.as_ref().map_or(0, |failure| failure.attempts);
                let wait = RETRY_MIN.saturating_mul(1 << attempts.min(16)).min(RETRY_MAX);
                let retry_at = now + wait;
                self.failure = Some(Box::new(Failure { error, attempts: attempts + 1, retry_at }));
                Err(retry_at)
            }
        }
    }
}

/// The path as the back end will list it: members of families that it has, in order, with weights of
/// which none is zero. No weight at all means the same for each (RFC 9301 §5.4); beside others
/// it means nothing for this one.
pub fn usable(path: &GroupPath, caps: &Caps) -> GroupPath {
    let GroupPath::Encap { members, iid } = path else { return GroupPath::Unreachable };
    let has = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => caps.outer.ipv4,
        IpAddr::V6(_) => caps.outer.ipv6,
    };
    let mut members: Vec<_> = members.iter().copied().filter(|(ip, _)| has(ip)).collect();
    if members.iter().all(|&(_, weight)| weight == 0) {
        members.iter_mut().for_each(|(_, weight)| *weight = 1);
    }
    members.retain(|&(_, weight)| weight > 0);
    members.sort_unstable();
    members.dedup_by_key(|&mut (ip, _)| ip);
    if members.is_empty() {
        return GroupPath::Unreachable;
    }
    GroupPath::Encap { members, iid: *iid }
}

#[cfg(test)]
mod tests;
