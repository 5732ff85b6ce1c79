//! What should be in the kernel, what is in it, and the work between the two.
//!
//! A change enters the desired state and a queue; the queue is worked off in batches, deliveries
//! first. An operation that fails leaves its reason in its entry and is tried again, each time
//! later. From time to time (and when something points to a loss) the kernel is read back and
//! compared. After a restart its routes of ours are adopted as they are, and those that nobody
//! has asked for by the time of [`Reconciler::prune`] are removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::repair::{Fault, Repairs};
use super::{DataPlane, Hop, KernelRoute, Kind, Op, OpError};
use crate::types::seam::{Applied, Attachment, ForwardingChange, IfIndex};
use crate::types::{Family, Instant, MacAddr, Prefix, Revision};

/// Entries of both kinds. A further one is refused: a delivery with a reason in [`Applied`], a
/// BGP route with a counter.
const ENTRIES_MAX: usize = 8_000_000;

/// Distinct BGP next hops that are resolved; a route to a further one stays out of the kernel,
/// with that reason.
const NEXT_HOPS_MAX: usize = 65_536;
/// Next hops resolved per turn after a change: two kernel queries each.
const RESOLVED_PER_TURN: usize = 64;

/// Routes per turn besides deliveries: about 1 ms of the routing thread.
const ROUTES_PER_TURN: usize = 256;
/// Entries looked at per turn when next hops have changed or an audit ends.
const SWEEP_PER_TURN: usize = 2_048;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A storm of foreign route changes is one change of next hops.
const RESOLVE_DELAY: Duration = Duration::from_millis(50);
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);

type Key = (Prefix, Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Desired {
    Delivery(Attachment),
    Bgp(IpAddr),
}

#[derive(Debug, Default)]
struct Entry {
    desired: Option<Desired>,
    /// What we have put there or have found there.
    installed: Option<Hop>,
    /// The neighbour entry that belongs to a delivery.
    neighbor: Option<Attachment>,
    revision: Revision,
    report: Report,
    queued: bool,
    /// The audit that has last seen the route in the kernel, or during which it was written.
    audited: u32,
    failure: Option<Box<Failure>>,
}

/// Whether somebody waits for [`Applied`] of the entry's revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Report {
    #[default]
    Nothing,
    /// The result, whatever it is.
    Result,
    /// A failure was reported; a late success is news.
    Success,
}

#[derive(Debug)]
struct Failure {
    error: OpError,
    attempts: u32,
    retry_at: Instant,
}

/// One entry, for `fib routes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryView {
    pub prefix: Prefix,
    pub kind: Kind,
    /// The BGP next hop, for that kind.
    pub next_hop: Option<IpAddr>,
    /// Where the kernel sends packets now.
    pub installed: Option<Hop>,
    /// Nobody has asked for it (yet): left over from before a restart, or being removed.
    pub orphan: bool,
    pub error: Option<String>,
}

/// A route that an audit found otherwise than it should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    pub prefix: Prefix,
    pub kind: Kind,
    pub fault: Fault,
    pub have: Option<Hop>,
}

/// One entry, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub prefix: Prefix,
    pub kind: Kind,
    /// False: it should not be there, or nobody has asked for it yet.
    pub asked: bool,
    /// Where it should lead; `None` also when that is not known.
    pub hop: Option<Hop>,
    /// Why it may not be there: it waits, the kernel refused it, its next hop leads nowhere.
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub added: u64,
    pub replaced: u64,
    pub deleted: u64,
    pub failed: u64,
    /// Changes with an older revision than the one that is there.
    pub stale: u64,
    /// Found by an audit: ours and gone, or ours and different.
    pub repaired: u64,
    pub adopted: u64,
    /// Changes refused because the table is full.
    pub full: u64,
}

struct NextHop {
    hop: Result<Hop, OpError>,
    users: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audit {
    Idle,
    /// The kernel is being read, a piece per turn.
    Reading,
}

pub struct Reconciler<D> {
    plane: D,
    entries: BTreeMap<Key, Entry>,
    /// Desired routes of BGP, by family.
    learnt: [usize; 2],
    /// Deliveries of the batch at hand.
    urgent: Vec<Key>,
    queue: VecDeque<Key>,
    retries: BTreeSet<(Instant, Key)>,
    next_hops: BTreeMap<IpAddr, NextHop>,
    resolve_at: Option<Instant>,
    resolving: Option<Resolving>,
    /// Where the sweep over all entries continues.
    sweep: Option<Sweep>,
    audit: Audit,
    audit_number: u32,
    audit_at: Instant,
    audit_error: Option<OpError>,
    pruned: bool,
    counters: Counters,
    repairs: Repairs<Repair>,
}

/// All next hops are being resolved again.
#[derive(Clone, Copy, Debug)]
struct Resolving {
    after: Option<IpAddr>,
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sweep {
    after: Option<Key>,
    /// Entries that this audit has not seen are gone from the kernel.
    missing: Option<u32>,
}

fn view((prefix, kind): Key, entry: &Entry) -> EntryView {
    EntryView {
        prefix,
        kind,
        next_hop: match entry.desired {
            Some(Desired::Bgp(next_hop)) => Some(next_hop),
            Some(Desired::Delivery(_)) | None => None,
        },
        installed: entry.installed,
        orphan: entry.desired.is_none(),
        error: entry.failure.as_ref().map(|failure| failure.error.to_string()),
    }
}

/// Entries by how it stands with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub installed: usize,
    pub pending: usize,
    pub failed: usize,
}

impl<D: DataPlane> Reconciler<D> {
    /// Begins with what the kernel has: forwarding went on while nobody was in control.
    pub fn new(plane: D, now: Instant) -> Self {
        let mut this = Self {
            plane,
            entries: BTreeMap::new(),
            learnt: [0; 2],
            urgent: Vec::new(),
            queue: VecDeque::new(),
            retries: BTreeSet::new(),
            next_hops: BTreeMap::new(),
            resolve_at: None,
            resolving: None,
            sweep: None,
            audit: Audit::Idle,
            audit_number: 0,
            audit_at: now + AUDIT_INTERVAL,
            audit_error: None,
            pruned: false,
            counters: Counters::default(),
            repairs: Repairs::default(),
        };
        this.begin_audit(now);
        while this.audit == Audit::Reading {
            this.continue_audit(now);
        }
        this
    }

    pub fn plane(&self) -> &D {
        &self.plane
    }

    pub fn plane_mut(&mut self) -> &mut D {
        &mut self.plane
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Why the last audit could not read the kernel.
    pub fn audit_error(&self) -> Option<&OpError> {
        self.audit_error.as_ref()
    }

    /// One entry.
    pub fn find(&self, prefix: Prefix, kind: Kind) -> Option<EntryView> {
        self.entries.get(&(prefix, kind)).map(|entry| view((prefix, kind), entry))
    }

    /// BGP routes of a family that are wanted.
    pub fn learnt(&self, family: Family) -> usize {
        self.learnt[family as usize]
    }

    /// How many entries there are, and how it stands with them.
    pub fn summary(&self) -> Summary {
        let (pending, failed) = (self.queue.len(), self.retries.len());
        let installed = self.entries.len().saturating_sub(pending + failed);
        Summary { installed, pending, failed }
    }

    /// Entries in order, beginning after `after`: a listing is made of pages.
    pub fn views(&self, after: Option<(Prefix, Kind)>) -> impl Iterator<Item = EntryView> {
        let from = after.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|(&key, entry)| view(key, entry))
    }

    /// Entries as they should be, in order, beginning after `after`.
    pub fn wanted(&self, after: Option<(Prefix, Kind)>) -> impl Iterator<Item = Wanted> {
        let from = after.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|(&key, entry)| self.wanted_of(key, entry))
    }

    pub fn find_wanted(&self, prefix: Prefix, kind: Kind) -> Option<Wanted> {
        self.entries.get(&(prefix, kind)).map(|entry| self.wanted_of((prefix, kind), entry))
    }

    fn wanted_of(&self, (prefix, kind): Key, entry: &Entry) -> Wanted {
        let target = self.target(entry.desired);
        let failure = entry.failure.as_ref().map(|failure| failure.error.to_string());
        let why = match &target {
            Err(error) => Some(error.to_string()),
            Ok(None) if !self.pruned => Some("left over from before the restart".to_owned()),
            Ok(_) if entry.queued => Some("is being written".to_owned()),
            Ok(_) => failure,
        };
        let asked = entry.desired.is_some();
        Wanted { prefix, kind, asked, hop: target.ok().flatten(), why }
    }

    /// What audits have set right, newest first.
    pub fn repairs(&self) -> impl Iterator<Item = (Instant, &Repair)> {
        self.repairs.iter()
    }

    /// Takes the changes over; deliveries are in the kernel when it returns.
    pub fn apply(&mut self, batch: &[ForwardingChange], now: Instant, out: &mut Vec<Applied>) {
        for change in batch {
            match *change {
                ForwardingChange::SetDelivery { prefix, attachment, revision } => {
                    let desired = Some(Desired::Delivery(attachment));
                    self.set(prefix, Kind::Delivery, desired, Some(revision), out);
                }
                ForwardingChange::RemoveDelivery { prefix, revision } => {
                    self.set(prefix, Kind::Delivery, None, Some(revision), out);
                }
                ForwardingChange::SetRoute { prefix, next_hop } => {
                    let desired = Some(Desired::Bgp(next_hop));
                    self.set(prefix, Kind::Bgp, desired, None, out);
                }
                ForwardingChange::RemoveRoute { prefix } => {
                    self.set(prefix, Kind::Bgp, None, None, out);
                }
            }
        }
        self.work(now, out);
    }

    /// All that is not asked for by now goes: the tables of this node are complete (End-of-RIB
    /// from every peer, or the wait for it is over).
    pub fn prune(&mut self) {
        if !self.pruned {
            self.pruned = true;
            self.begin_sweep(None);
        }
    }

    /// Routes that are not ours have changed: next hops may lead elsewhere.
    pub fn handle_routes_changed(&mut self, now: Instant) {
        self.resolve_at.get_or_insert(now + RESOLVE_DELAY);
    }

    /// A link has come up, notifications were lost, or one of our routes was taken away: the
    /// kernel drops routes of a link that goes down, IPv4 ones without a word.
    pub fn handle_doubt(&mut self, now: Instant) {
        self.audit_at = self.audit_at.min(now);
        self.handle_routes_changed(now);
        let waiting = std::mem::take(&mut self.retries);
        for (_, key) in waiting {
            self.enqueue(key);
        }
    }

    /// When to call [`Self::handle_timeout`] next. Now, while there is work left.
    pub fn poll_timeout(&self) -> Instant {
        let busy = !self.queue.is_empty()
            || self.sweep.is_some()
            || self.resolving.is_some()
            || self.audit == Audit::Reading;
        if busy {
            return Instant::ZERO;
        }
        let retry = self.retries.first().map_or(Instant::FAR_FUTURE, |(at, _)| *at);
        retry.min(self.audit_at).min(self.resolve_at.unwrap_or(Instant::FAR_FUTURE))
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Applied>) {
        while let Some(&(at, key)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            self.enqueue(key);
        }
        if self.resolve_at.is_some_and(|at| at <= now) {
            self.resolve_at = None;
            self.resolving = Some(Resolving { after: None, changed: false });
        }
        self.continue_resolving();
        if self.audit == Audit::Reading {
            self.continue_audit(now);
        } else if self.audit_at <= now && self.sweep.is_none() {
            self.begin_audit(now);
        }
        self.continue_sweep(now);
        self.work(now, out);
    }

    // ---- desired state ------------------------------------------------------------------------

    fn set(
        &mut self,
        prefix: Prefix,
        kind: Kind,
        desired: Option<Desired>,
        revision: Option<Revision>,
        out: &mut Vec<Applied>,
    ) {
        let key = (prefix, kind);
        if !self.entries.contains_key(&key) {
            if desired.is_none() {
                // Not there, as wished.
                out.extend(revision.map(|revision| Applied { prefix, revision, result: Ok(()) }));
                return;
            }
            if self.entries.len() >= ENTRIES_MAX {
                self.counters.full += 1;
                let result = Err("the forwarding table of this node is full".to_owned());
                out.extend(revision.map(|revision| Applied { prefix, revision, result }));
                return;
            }
        }
        let entry = self.entries.entry(key).or_default();
        if let Some(revision) = revision {
            if revision < entry.revision {
                self.counters.stale += 1;
                return;
            }
            entry.revision = revision;
            entry.report = Report::Result;
        }
        let old = std::mem::replace(&mut entry.desired, desired);
        let is_learnt = |d: &Option<Desired>| usize::from(matches!(d, Some(Desired::Bgp(_))));
        let learnt = &mut self.learnt[prefix.family() as usize];
        *learnt = *learnt + is_learnt(&desired) - is_learnt(&old);
        if let Some(Desired::Bgp(next_hop)) = desired {
            self.use_next_hop(next_hop);
        }
        if let Some(Desired::Bgp(next_hop)) = old {
            self.unuse_next_hop(next_hop);
        }
        match kind {
            // Before all that is queued already, itself perhaps: the second look finds it done.
            Kind::Delivery => self.urgent.push(key),
            Kind::Bgp => self.enqueue(key),
        }
    }

    fn enqueue(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if let Some(failure) = &entry.failure {
            self.retries.remove(&(failure.retry_at, key));
        }
        if !std::mem::replace(&mut entry.queued, true) {
            self.queue.push_back(key);
        }
    }

    // ---- next hops ----------------------------------------------------------------------------

    fn use_next_hop(&mut self, next_hop: IpAddr) {
        if let Some(known) = self.next_hops.get_mut(&next_hop) {
            known.users += 1;
        } else {
            let hop = if self.next_hops.len() < NEXT_HOPS_MAX {
                self.plane.resolve(next_hop)
            } else {
                Err(OpError::Other("too many next hops".to_owned()))
            };
            self.next_hops.insert(next_hop, NextHop { hop, users: 1 });
        }
    }

    fn unuse_next_hop(&mut self, next_hop: IpAddr) {
        if let Some(known) = self.next_hops.get_mut(&next_hop) {
            known.users = known.users.saturating_sub(1);
            if known.users == 0 {
                self.next_hops.remove(&next_hop);
            }
        }
    }

    fn continue_resolving(&mut self) {
        let Some(Resolving { after, mut changed }) = self.resolving else { return };
        let from = after.map_or(Unbounded, Excluded);
        let (mut last, mut count) = (None, 0);
        for (&ip, next_hop) in self.next_hops.range_mut((from, Unbounded)).take(RESOLVED_PER_TURN) {
            let hop = self.plane.resolve(ip);
            changed |= hop != next_hop.hop;
            next_hop.hop = hop;
            (last, count) = (Some(ip), count + 1);
        }
        if count == RESOLVED_PER_TURN {
            self.resolving = Some(Resolving { after: last, changed });
        } else {
            self.resolving = None;
            if changed {
                self.begin_sweep(None);
            }
        }
    }

    /// Where the entry should lead now.
    fn target(&self, desired: Option<Desired>) -> Result<Option<Hop>, OpError> {
        match desired {
            None => Ok(None),
            Some(Desired::Delivery(Attachment { link, .. })) => {
                Ok(Some(Hop { link, gateway: None }))
            }
            Some(Desired::Bgp(next_hop)) => match self.next_hops.get(&next_hop) {
                Some(NextHop { hop, .. }) => hop.clone().map(Some),
                None => Err(OpError::Other("its next hop is not known".to_owned())),
            },
        }
    }

    // ---- the sweep over all entries -----------------------------------------------------------

    fn begin_sweep(&mut self, missing: Option<u32>) {
        // One that is under way begins anew, with both tasks.
        let missing = missing.or(self.sweep.and_then(|sweep| sweep.missing));
        self.sweep = Some(Sweep { after: None, missing });
    }

    fn continue_sweep(&mut self, now: Instant) {
        let Some(Sweep { after, missing }) = self.sweep else { return };
        let from = after.map_or(Unbounded, Excluded);
        let mut wrong = Vec::new();
        let (mut last, mut count) = (None, 0);
        for (&key, entry) in self.entries.range((from, Unbounded)).take(SWEEP_PER_TURN) {
            (last, count) = (Some(key), count + 1);
            let lost = missing.is_some_and(|audit| entry.audited != audit);
            let installed = entry.installed.filter(|_| !lost);
            let wanted = match entry.desired {
                None if !self.pruned => installed, // may still be asked for
                desired => self.target(desired).unwrap_or(None),
            };
            let vanished = lost && entry.installed.is_some();
            // What has just failed has its own time; what could not be resolved has none.
            let waits = entry.failure.as_ref().is_some_and(|f| f.retry_at != Instant::FAR_FUTURE);
            if vanished || (installed != wanted && !waits) {
                wrong.push((key, lost));
            }
        }
        for (key, lost) in wrong {
            if lost && let Some(entry) = self.entries.get_mut(&key) {
                let vanished = entry.installed.take().is_some();
                entry.neighbor = None;
                // Left behind by a wish that was taken back meanwhile: nothing to be set right.
                if vanished && entry.desired.is_some() {
                    let ((prefix, kind), fault) = (key, Fault::Missing);
                    self.repairs.note(Repair { prefix, kind, fault, have: None }, now);
                }
                self.counters.repaired += u64::from(vanished);
            }
            self.enqueue(key);
        }
        self.sweep = (count == SWEEP_PER_TURN).then_some(Sweep { after: last, missing });
    }

    // ---- the audit ----------------------------------------------------------------------------

    fn begin_audit(&mut self, now: Instant) {
        self.audit_at = now + AUDIT_INTERVAL;
        self.audit_number = self.audit_number.wrapping_add(1);
        match self.plane.begin_dump() {
            Ok(()) => self.audit = Audit::Reading,
            Err(error) => self.audit_error = Some(error),
        }
    }

    fn continue_audit(&mut self, now: Instant) {
        let mut routes = Vec::new();
        let more = self.plane.continue_dump(&mut routes);
        for KernelRoute { prefix, kind, hop } in routes {
            let entry = self.entries.entry((prefix, kind)).or_default();
            if entry.audited == self.audit_number {
                continue; // written since the dump began: that is newer
            }
            entry.audited = self.audit_number;
            if entry.installed == Some(hop) {
                continue;
            }
            let fault = match (entry.desired, entry.installed) {
                (None, _) => Fault::Extra,
                (Some(_), _) => Fault::Different,
            };
            if entry.installed.is_none() && entry.desired.is_none() {
                self.counters.adopted += 1;
            } else {
                self.counters.repaired += 1;
            }
            if self.pruned {
                self.repairs.note(Repair { prefix, kind, fault, have: Some(hop) }, now);
            }
            entry.installed = Some(hop);
            if entry.desired.is_some() || self.pruned {
                self.enqueue((prefix, kind));
            }
        }
        match more {
            Ok(true) => {}
            Ok(false) => {
                self.audit = Audit::Idle;
                self.audit_error = None;
                self.begin_sweep(Some(self.audit_number));
            }
            Err(error) => {
                // Half a list says nothing about what is missing.
                self.audit = Audit::Idle;
                self.audit_error = Some(error);
            }
        }
    }

    // ---- the work -----------------------------------------------------------------------------

    fn work(&mut self, now: Instant, out: &mut Vec<Applied>) {
        let urgent = std::mem::take(&mut self.urgent);
        self.work_off(urgent, now, out);
        let some = self.queue.len().min(ROUTES_PER_TURN);
        let some: Vec<Key> = self.queue.drain(..some).collect();
        self.work_off(some, now, out);
    }

    fn work_off(&mut self, keys: Vec<Key>, now: Instant, out: &mut Vec<Applied>) {
        let mut ops = Vec::with_capacity(keys.len() * 2);
        let mut plans = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.queued = false;
            let (desired, installed, neighbor) = (entry.desired, entry.installed, entry.neighbor);
            let target = self.target(desired);
            let first = ops.len();
            plan(
                key,
                desired,
                target.as_ref().ok().copied().flatten(),
                installed,
                neighbor,
                &mut ops,
            );
            plans.push((key, target, first..ops.len()));
        }
        let mut results = Vec::with_capacity(ops.len());
        if !ops.is_empty() {
            self.plane.apply(&ops, &mut results);
        }
        for (key, target, range) in plans {
            let unresolved = target.is_err();
            let mut failure = target.err();
            for index in range {
                // A plane that gives too few results has failed for the rest.
                let result = results.get_mut(index).map_or(
                    Err(OpError::Other("the data plane gave no answer".to_owned())),
                    |result| std::mem::replace(result, Ok(())),
                );
                if let Err(error) = self.conclude(key, ops[index], result) {
                    failure.get_or_insert(error);
                }
            }
            self.finish(key, failure, unresolved, now, out);
        }
    }

    /// What an operation has made of the entry.
    fn conclude(&mut self, key: Key, op: Op, result: Result<(), OpError>) -> Result<(), OpError> {
        let result = match (op, result) {
            // Of ours and unknown (the link flapped), or somebody else's. Deleting finds out: it
            // compares the protocol number.
            (Op::AddRoute { prefix, kind, .. }, Err(OpError::Exists)) => {
                let mut results = Vec::new();
                self.plane.apply(&[Op::DeleteRoute { prefix, kind }, op], &mut results);
                results.pop().unwrap_or(Err(OpError::Exists))
            }
            // Gone already is as good.
            (Op::DeleteRoute { .. } | Op::DeleteNeighbor { .. }, Err(OpError::Missing)) => Ok(()),
            // With the interface, its neighbours are gone, too.
            (Op::DeleteNeighbor { .. }, Err(OpError::LinkDown)) => Ok(()),
            (_, result) => result,
        };
        let audit_number = self.audit_number;
        let Some(entry) = self.entries.get_mut(&key) else { return result };
        if result.is_err() {
            self.counters.failed += 1;
            return result;
        }
        match op {
            Op::AddRoute { hop, .. } | Op::ReplaceRoute { hop, .. } => {
                if entry.installed.replace(hop).is_some() {
                    self.counters.replaced += 1;
                } else {
                    self.counters.added += 1;
                }
                entry.audited = audit_number;
            }
            Op::DeleteRoute { .. } => {
                self.counters.deleted += 1;
                entry.installed = None;
                entry.audited = audit_number;
            }
            Op::SetNeighbor { link, mac, .. } => entry.neighbor = Some(Attachment { link, mac }),
            Op::DeleteNeighbor { link, .. } => {
                entry.neighbor = entry.neighbor.filter(|neighbor| neighbor.link != link);
            }
        }
        Ok(())
    }

    /// After all operations of an entry: report it, forget it, or try again later.
    fn finish(
        &mut self,
        key: Key,
        failure: Option<OpError>,
        unresolved: bool,
        now: Instant,
        out: &mut Vec<Applied>,
    ) {
        let wanted = self.entries.get(&key).map(|entry| entry.desired);
        let Some(wanted) = wanted.map(|desired| self.target(desired).ok().flatten()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let in_place = entry.installed == wanted;
        // A delivery without its neighbour entry delivers: the kernel resolves by itself.
        let result = match &failure {
            Some(error) if !in_place => Err(error.to_string()),
            Some(_) | None => Ok(()),
        };
        let (tell, next) = match (entry.report, result.is_ok()) {
            (Report::Nothing, _) => (false, Report::Nothing),
            (Report::Result | Report::Success, true) => (true, Report::Nothing),
            (Report::Result, false) => (true, Report::Success),
            (Report::Success, false) => (false, Report::Success),
        };
        entry.report = next;
        if tell {
            out.push(Applied { prefix: key.0, revision: entry.revision, result });
        }
        match failure {
            Some(error) => {
                let attempts = entry.failure.as_ref().map_or(0, |f| f.attempts).saturating_add(1);
                let wait = (RETRY_MIN * (1 << attempts.min(16))).min(RETRY_MAX);
                if let Some(old) = &entry.failure {
                    self.retries.remove(&(old.retry_at, key));
                }
                // A next hop that becomes reachable brings its routes along.
                let retry_at = if unresolved { Instant::FAR_FUTURE } else { now + wait };
                entry.failure = Some(Box::new(Failure { error, attempts, retry_at }));
                if !unresolved {
                    self.retries.insert((retry_at, key));
                }
            }
            None => {
                if let Some(old) = entry.failure.take() {
                    self.retries.remove(&(old.retry_at, key));
                }
                if entry.desired.is_none() && entry.installed.is_none() && !entry.queued {
                    self.entries.remove(&key);
                }
            }
        }
    }

    /// The kernel believes whoever answers ARP last, also a host that has no right to the address.
    /// Who a node is was decided at its attachment.
    pub fn handle_neighbor(&mut self, link: IfIndex, ip: IpAddr, mac: MacAddr) {
        let key = (Prefix::host(ip), Kind::Delivery);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.neighbor.is_some_and(|ours| ours.link == link && ours.mac != mac) {
            self.counters.repaired += 1;
            entry.neighbor = None;
            self.enqueue(key);
        }
    }

    /// A route of a link that no longer exists cannot be there either.
    pub fn handle_link_gone(&mut self, link: IfIndex, now: Instant) {
        for entry in self.entries.values_mut() {
            if entry.neighbor.is_some_and(|neighbor| neighbor.link == link) {
                entry.neighbor = None;
            }
        }
        self.handle_doubt(now);
    }
}

/// The operations from `installed` to `target`. Make before break: the neighbour comes before its
/// route and goes after it.
fn plan(
    (prefix, kind): Key,
    desired: Option<Desired>,
    target: Option<Hop>,
    installed: Option<Hop>,
    neighbor: Option<Attachment>,
    ops: &mut Vec<Op>,
) {
    let ip = prefix.addr();
    let wanted = match desired {
        // Only a single address has a link-layer address; the hosts of a longer prefix are
        // resolved on the link.
        Some(Desired::Delivery(attachment)) if prefix.is_host() => Some(attachment),
        Some(Desired::Delivery(_) | Desired::Bgp(_)) | None => None,
    };
    if let Some(Attachment { link, mac }) = wanted.filter(|_| wanted != neighbor) {
        ops.push(Op::SetNeighbor { link, ip, mac });
    }
    match (installed, target) {
        (None, Some(hop)) => ops.push(Op::AddRoute { prefix, kind, hop }),
        (Some(old), Some(hop)) if old != hop => ops.push(Op::ReplaceRoute { prefix, kind, hop }),
        (Some(_), None) => ops.push(Op::DeleteRoute { prefix, kind }),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let left = match (neighbor, installed) {
        (Some(Attachment { link, .. }), _) => Some(link),
        // Adopted: its neighbour was set before the restart.
        (None, Some(hop)) if kind == Kind::Delivery && prefix.is_host() => Some(hop.link),
        (None, _) => None,
    };
    if let Some(link) = left.filter(|&link| wanted.is_none_or(|wanted| wanted.link != link)) {
        ops.push(Op::DeleteNeighbor { link, ip });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::Fake;

    const ACCESS: IfIndex = IfIndex(7);
    const CORE: IfIndex = IfIndex(3);

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn delivery(text: &str, mac: u8, revision: u64) -> ForwardingChange {
        ForwardingChange::SetDelivery {
            prefix: prefix(text),
            attachment: Attachment { link: ACCESS, mac: MacAddr([2, 0, 0, 0, 0, mac]) },
            revision: Revision(revision),
        }
    }

    fn removal(text: &str, revision: u64) -> ForwardingChange {
        ForwardingChange::RemoveDelivery { prefix: prefix(text), revision: Revision(revision) }
    }

    fn route(text: &str, next_hop: &str) -> ForwardingChange {
        ForwardingChange::SetRoute { prefix: prefix(text), next_hop: ip(next_hop) }
    }

    fn via(gateway: &str) -> Hop {
        Hop { link: CORE, gateway: Some(ip(gateway)) }
    }

    const ON_ACCESS: Hop = Hop { link: ACCESS, gateway: None };

    /// A reconciler and its clock, worked until nothing is left to do now.
    struct Desk {
        reconciler: Reconciler<Fake>,
        now: Instant,
        applied: Vec<Applied>,
    }

    impl Desk {
        fn new(fake: Fake) -> Self {
            let now = Instant::ZERO;
            Self { reconciler: Reconciler::new(fake, now), now, applied: Vec::new() }
        }

        fn apply(&mut self, batch: &[ForwardingChange]) -> Vec<(u64, bool)> {
            self.applied.clear();
            self.reconciler.apply(batch, self.now, &mut self.applied);
            self.settle();
            self.applied.iter().map(|a| (a.revision.0, a.result.is_ok())).collect()
        }

        fn settle(&mut self) {
            for _ in 0..1000 {
                if self.reconciler.poll_timeout() > self.now {
                    return;
                }
                self.reconciler.handle_timeout(self.now, &mut self.applied);
            }
            panic!("the reconciler does not come to rest");
        }

        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.reconciler.poll_timeout() <= end {
                self.now = self.now.max(self.reconciler.poll_timeout());
                self.settle();
            }
            self.now = end;
        }

        fn fake(&mut self) -> &mut Fake {
            self.reconciler.plane_mut()
        }

        fn hop(&self, text: &str, kind: Kind) -> Option<Hop> {
            self.reconciler.plane().routes.get(&(prefix(text), kind)).copied()
        }

        fn error(&self, text: &str) -> Option<String> {
            self.reconciler.views(None).find(|v| v.prefix == prefix(text)).and_then(|v| v.error)
        }
    }

    #[test]
    fn a_delivery_is_a_neighbour_then_a_route_and_goes_in_the_other_order() {
        let mut desk = Desk::new(Fake::default());
        let (p, neighbor) = (prefix("10.1.0.7"), ip("10.1.0.7"));
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        assert_eq!(desk.apply(&[delivery("10.1.0.7", 9, 1)]), [(1, true)]);
        assert_eq!(desk.apply(&[removal("10.1.0.7", 2)]), [(2, true)]);
        let kind = Kind::Delivery;
        let log = [
            Op::SetNeighbor { link: ACCESS, ip: neighbor, mac },
            Op::AddRoute { prefix: p, kind, hop: ON_ACCESS },
            Op::DeleteRoute { prefix: p, kind },
            Op::DeleteNeighbor { link: ACCESS, ip: neighbor },
        ];
        assert_eq!(desk.fake().log, log);
        assert!(desk.reconciler.is_empty());
    }

    #[test]
    fn a_longer_prefix_has_no_neighbour() {
        let mut desk = Desk::new(Fake::default());
        assert_eq!(desk.apply(&[delivery("2001:db8:7::/64", 9, 1)]), [(1, true)]);
        assert_eq!(desk.hop("2001:db8:7::/64", Kind::Delivery), Some(ON_ACCESS));
        assert!(desk.fake().neighbors.is_empty());
    }

    #[test]
    fn an_older_revision_changes_nothing() {
        let mut desk = Desk::new(Fake::default());
        desk.apply(&[delivery("10.1.0.7", 9, 5)]);
        assert_eq!(desk.apply(&[removal("10.1.0.7", 4)]), []);
        assert_eq!(desk.hop("10.1.0.7", Kind::Delivery), Some(ON_ACCESS));
        assert_eq!(desk.reconciler.counters().stale, 1);
    }

    #[test]
    fn delivery_and_bgp_route_stand_beside_each_other() {
        let mut desk = Desk::new(Fake::default());
        desk.fake().next_hops.insert(ip("192.0.2.2"), via("198.51.100.1"));
        desk.apply(&[delivery("10.1.0.7", 9, 1), route("10.1.0.7", "192.0.2.2")]);
        assert_eq!(desk.hop("10.1.0.7", Kind::Bgp), Some(via("198.51.100.1")));
        desk.apply(&[removal("10.1.0.7", 2)]);
        assert_eq!(desk.hop("10.1.0.7", Kind::Delivery), None);
        assert_eq!(desk.hop("10.1.0.7", Kind::Bgp), Some(via("198.51.100.1")));
    }

    #[test]
    fn a_failure_is_shown_reported_and_retried_later_and_later() {
        let mut desk = Desk::new(Fake::default());
        desk.fake().broken.insert(prefix("10.1.0.7"));
        assert_eq!(desk.apply(&[delivery("10.1.0.7", 9, 1)]), [(1, false)]);
        assert_eq!(desk.error("10.1.0.7").as_deref(), Some("the interface is down or gone"));
        desk.pass(Duration::from_secs(20));
        let tries = desk.fake().log.iter().filter(|op| matches!(op, Op::AddRoute { .. })).count();
        assert!((5..12).contains(&tries), "{tries} tries in 20 s");
        desk.fake().broken.clear();
        desk.applied.clear();
        desk.pass(RETRY_MAX);
        assert_eq!(desk.applied.last().map(|a| a.result.clone()), Some(Ok(())));
        assert_eq!(desk.error("10.1.0.7"), None);
    }

    #[test]
    fn a_foreign_route_of_the_same_metric_stays() {
        let mut desk = Desk::new(Fake::default());
        desk.fake().foreign.insert((prefix("10.1.0.7"), Kind::Delivery));
        assert_eq!(desk.apply(&[delivery("10.1.0.7", 9, 1)]), [(1, false)]);
        assert!(desk.error("10.1.0.7").unwrap().contains("already a route"));
        assert_eq!(desk.fake().foreign.len(), 1);
    }

    #[test]
    fn after_a_restart_routes_are_adopted_and_the_rest_is_pruned_when_told() {
        let mut fake = Fake::default();
        for n in 1..=5 {
            fake.routes.insert((prefix(&format!("10.1.0.{n}")), Kind::Delivery), ON_ACCESS);
        }
        let mut desk = Desk::new(fake);
        assert_eq!(desk.reconciler.counters().adopted, 5);
        assert_eq!(desk.apply(&[delivery("10.1.0.2", 9, 1)]), [(1, true)]);
        assert!(!desk.fake().log.iter().any(|op| matches!(op, Op::AddRoute { .. })));
        desk.pass(Duration::from_secs(300));
        assert_eq!(desk.fake().routes.len(), 5, "nothing goes before prune");
        desk.reconciler.prune();
        desk.settle();
        let left: Vec<_> = desk.fake().routes.keys().map(|(p, _)| p.to_string()).collect();
        assert_eq!(left, ["10.1.0.2/32"]);
        assert_eq!(desk.reconciler.len(), 1);
    }

    #[test]
    fn next_hops_follow_the_other_routes_of_the_kernel() {
        let mut desk = Desk::new(Fake::default());
        desk.apply(&[route("10.1.0.7", "192.0.2.2"), route("10.1.0.8", "192.0.2.2")]);
        assert_eq!(desk.error("10.1.0.7").as_deref(), Some("no route to next hop 192.0.2.2"));
        desk.fake().next_hops.insert(ip("192.0.2.2"), via("198.51.100.1"));
        desk.reconciler.handle_routes_changed(desk.now);
        desk.pass(Duration::from_secs(1));
        assert_eq!(desk.hop("10.1.0.7", Kind::Bgp), Some(via("198.51.100.1")));
        assert_eq!(desk.error("10.1.0.7"), None);

        desk.fake().next_hops.insert(ip("192.0.2.2"), via("198.51.100.9"));
        desk.reconciler.handle_routes_changed(desk.now);
        desk.pass(Duration::from_secs(1));
        assert_eq!(desk.hop("10.1.0.8", Kind::Bgp), Some(via("198.51.100.9")));

        desk.fake().next_hops.clear();
        desk.reconciler.handle_routes_changed(desk.now);
        desk.pass(Duration::from_secs(1));
        assert!(desk.fake().routes.is_empty(), "no route into the void");
    }

    #[test]
    fn an_audit_repairs_what_was_lost_or_changed_and_removes_strays() {
        let mut desk = Desk::new(Fake::default());
        let batch: Vec<_> = (1..=9).map(|n| delivery(&format!("10.1.0.{n}"), n, 1)).collect();
        desk.apply(&batch);
        desk.reconciler.prune();
        desk.settle();
        let wrong = via("198.51.100.1");
        desk.fake().routes.remove(&(prefix("10.1.0.3"), Kind::Delivery));
        desk.fake().routes.insert((prefix("10.1.0.4"), Kind::Delivery), wrong);
        desk.fake().routes.insert((prefix("10.1.0.99"), Kind::Delivery), wrong);
        desk.reconciler.handle_doubt(desk.now);
        desk.settle();
        desk.pass(Duration::from_secs(1));
        assert_eq!(desk.hop("10.1.0.3", Kind::Delivery), Some(ON_ACCESS));
        assert_eq!(desk.hop("10.1.0.4", Kind::Delivery), Some(ON_ACCESS));
        assert_eq!(desk.hop("10.1.0.99", Kind::Delivery), None);
        assert_eq!(desk.fake().routes.len(), 9);
        assert_eq!(desk.reconciler.counters().repaired, 2);
    }

    #[test]
    fn many_routes_go_in_turns_and_deliveries_overtake_them() {
        let mut desk = Desk::new(Fake::default());
        desk.fake().next_hops.insert(ip("192.0.2.2"), via("198.51.100.1"));
        let many: Vec<_> = (0..2_000_u32)
            .map(|n| ForwardingChange::SetRoute {
                prefix: Prefix::v4(0x0a02_0000 + n, 32).unwrap(),
                next_hop: ip("192.0.2.2"),
            })
            .collect();
        let mut applied = Vec::new();
        desk.reconciler.apply(&many, desk.now, &mut applied);
        assert_eq!(desk.fake().routes.len(), ROUTES_PER_TURN);
        desk.reconciler.apply(&[delivery("10.1.0.7", 9, 1)], desk.now, &mut applied);
        assert_eq!(applied.len(), 1);
        assert_eq!(desk.reconciler.poll_timeout(), Instant::ZERO);
        desk.settle();
        assert_eq!(desk.fake().routes.len(), 2_001);
    }

    #[test]
    fn a_stolen_neighbour_entry_is_taken_back() {
        let mut desk = Desk::new(Fake::default());
        desk.apply(&[delivery("10.1.0.7", 1, 1)]);
        let thief = MacAddr([2, 0, 0, 0, 0, 66]);
        let slot = (ACCESS, ip("10.1.0.7"));
        desk.fake().neighbors.insert(slot, thief);
        desk.reconciler.handle_neighbor(slot.0, slot.1, thief);
        desk.settle();
        assert_eq!(desk.fake().neighbors[&slot], MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(desk.hop("10.1.0.7", Kind::Delivery), Some(ON_ACCESS));
    }

    #[test]
    fn a_new_address_of_the_node_replaces_its_neighbour_entry_only() {
        let mut desk = Desk::new(Fake::default());
        desk.apply(&[delivery("10.1.0.7", 1, 1)]);
        desk.fake().log.clear();
        assert_eq!(desk.apply(&[delivery("10.1.0.7", 2, 2)]), [(2, true)]);
        let mac = MacAddr([2, 0, 0, 0, 0, 2]);
        let set = Op::SetNeighbor { link: ACCESS, ip: ip("10.1.0.7"), mac };
        assert_eq!(desk.fake().log, [set]);
    }
}
