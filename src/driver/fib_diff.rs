//! Observed forwarding held against policy (RFC 7333, REQ6): what the node wants in the kernel, and
//! what a fresh look at the kernel finds.
//!
//! The kernel is read on a thread of its own, and compared in slices between the turns of the
//! routing thread, so that no table stops a session. While that goes on both sides change; so a
//! difference counts only when a second look, a moment later, finds the same one.
//!
//! The reconciler sets right what it notices, mostly at once. What it has found is therefore told,
//! too, as *healed*. What it has not noticed it is made to look at, afterwards.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::core::{Core, State};
use super::interface;
use crate::api::request::Answer;
use crate::api::views::{FibDiffItemView, FibDiffView, FibPlaceView};
use crate::api::{ApiError, ErrorCode, Reply};
use crate::dataplane::encap::reconcile::Thing;
use crate::dataplane::netlink::{Options, TableRoute, read_table};
use crate::dataplane::reconcile::Wanted;
use crate::dataplane::repair::Fault;
use crate::dataplane::{Hop, Kind};
use crate::types::lisp::GroupId;
use crate::types::{Instant, Prefix};

/// Entries compared between two turns: about 100 µs.
const SLICE: usize = 512;
/// Differences that are listed; the others are counted.
const ITEMS_MAX: usize = 2_000;
/// Before a second look: more than a change takes from the RIB to the kernel.
const PAUSE: Duration = Duration::from_millis(200);
/// How long ago something may have been healed.
const HEALED_MAX: Duration = Duration::from_secs(600);
/// How long the tunnels may take to be read back.
const TUNNELS_MAX: Duration = Duration::from_secs(4);
const TUNNELS_POLL: Duration = Duration::from_millis(10);

/// Takes the question and answers it later.
pub fn answer(core: &Rc<Core>, answer: Answer) {
    let has_plane = {
        let state = core.state.borrow();
        state.forwarding.is_some() || state.encap.is_some()
    };
    if !has_plane {
        let what = "this node puts nothing into the kernel";
        return answer.answer(Err(ApiError::new(ErrorCode::NotConfigured, what)));
    }
    if core.comparing.replace(true) {
        let what = "a comparison is under way; try again";
        return answer.answer(Err(ApiError::new(ErrorCode::Busy, what)));
    }
    let core = Rc::clone(core);
    tokio::task::spawn_local(async move {
        let view = compare(&core).await;
        core.comparing.set(false);
        let mismatch = view.missing + view.extra + view.different + view.shadowed;
        core.metrics.rib.fib_mismatch.set(i64::try_from(mismatch).unwrap_or(i64::MAX));
        answer.answer(Ok(Reply::FibDiff(Box::new(view))));
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Missing,
    Extra,
    Different,
    Shadowed,
}

impl What {
    const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Shadowed => "shadowed",
        }
    }
}

/// Of which route something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    prefix: Prefix,
    metric: u32,
}

/// A difference, as one look sees it.
struct Found {
    key: Key,
    kind: Option<Kind>,
    what: What,
    want: Option<Hop>,
    have: Option<TableRoute>,
    why: Option<String>,
}

/// What the kernel had, in order.
struct Table {
    options: Options,
    ours: Vec<TableRoute>,
    foreign: Vec<TableRoute>,
}

fn key(route: &TableRoute) -> Key {
    Key { prefix: route.prefix, metric: route.metric }
}

impl Table {
    fn read(options: Options) -> std::io::Result<Self> {
        let mut all = read_table(&options)?;
        all.sort_unstable_by_key(|route| (route.prefix, route.metric, route.protocol));
        let (ours, foreign) = all.into_iter().partition(|r| r.protocol == options.protocol);
        Ok(Self { options, ours, foreign })
    }

    fn find(&self, of: Key) -> Option<(usize, &TableRoute)> {
        let at = self.ours.binary_search_by_key(&of, key).ok()?;
        Some((at, &self.ours[at]))
    }

    /// The route of somebody else that the kernel prefers to ours.
    fn find_before(&self, of: Key) -> Option<&TableRoute> {
        let first = self.foreign.partition_point(|r| r.prefix < of.prefix);
        self.foreign[first..]
            .iter()
            .find(|r| r.prefix != of.prefix || r.metric < of.metric)
            .filter(|r| r.prefix == of.prefix)
    }

    /// How it stands with one entry; `None`: as it should.
    fn judge(&self, wanted: &Wanted) -> Option<Found> {
        let of = Key { prefix: wanted.prefix, metric: self.options.metric(wanted.kind) };
        let have = self.find(of).map(|(_, route)| *route);
        let (what, have) = match (wanted.asked, wanted.hop, have) {
            (false, _, Some(_)) => (What::Extra, have),
            (false, _, None) => return None,
            (true, _, None) => (What::Missing, None),
            (true, hop, Some(route)) if hop != route.hop => (What::Different, have),
            (true, _, Some(_)) => (What::Shadowed, Some(*self.find_before(of)?)),
        };
        let why = wanted.why.clone();
        Some(Found { key: of, kind: Some(wanted.kind), what, want: wanted.hop, have, why })
    }
}

/// As a slice of work: gives way to whatever waits.
async fn give_way() {
    tokio::task::yield_now().await;
}

async fn read(options: Options) -> Result<Table, String> {
    let table = tokio::task::spawn_blocking(move || Table::read(options)).await;
    match table {
        Ok(Ok(table)) => Ok(table),
        Ok(Err(error)) => Err(format!("the kernel's routes: {error}")),
        Err(error) => Err(format!("the kernel's routes: {error}")),
    }
}

async fn compare(core: &Rc<Core>) -> FibDiffView {
    let mut view = FibDiffView::default();
    let mut listed = BTreeSet::new();
    let options = {
        let state = core.state.borrow();
        state.forwarding.as_ref().map(|f| *f.reconciler().plane().options())
    };
    if let Some(options) = options {
        match routes(core, options, &mut view).await {
            Ok(found) => {
                // A route that was replaced by somebody else's goes without a word to us.
                if found.iter().any(|found| found.what != What::Shadowed) {
                    core.turn_kernel(|forwarding, now, _| forwarding.handle_doubt(now));
                }
                for found in found {
                    listed.insert(found.key);
                    count(&mut view, found.what);
                    push(&mut view, item(core, found, options.protocol));
                }
            }
            Err(error) => view.errors.push(error),
        }
        heal(core, &listed, &mut view);
    }
    if core.state.borrow().encap.is_some() {
        tunnels(core, &mut view).await;
    }
    view.same =
        view.missing + view.extra + view.different + view.shadowed == 0 && view.errors.is_empty();
    view
}

const fn count(view: &mut FibDiffView, what: What) {
    match what {
        What::Missing => view.missing += 1,
        What::Extra => view.extra += 1,
        What::Different => view.different += 1,
        What::Shadowed => view.shadowed += 1,
    }
}

fn push(view: &mut FibDiffView, item: FibDiffItemView) {
    if view.items.len() < ITEMS_MAX {
        view.items.push(item);
    } else {
        view.omitted += 1;
    }
}

/// Differences that two looks have found.
async fn routes(
    core: &Rc<Core>,
    options: Options,
    view: &mut FibDiffView,
) -> Result<Vec<Found>, String> {
    let first = read(options).await?;
    let mut seen = vec![false; first.ours.len()];
    let mut suspects: Vec<(Key, Option<Kind>, What)> = Vec::new();
    let mut after = None;
    loop {
        let slice = wanted(core, after);
        for wanted in &slice {
            after = Some((wanted.prefix, wanted.kind));
            view.wanted += u64::from(wanted.asked);
            let of = Key { prefix: wanted.prefix, metric: options.metric(wanted.kind) };
            if let Some((at, _)) = first.find(of) {
                seen[at] = true;
            }
            suspects.extend(first.judge(wanted).map(|f| (f.key, f.kind, f.what)));
        }
        if slice.len() < SLICE {
            break;
        }
        give_way().await;
    }
    // Nobody here knows of these.
    let unknown = first.ours.iter().zip(&seen).filter(|(_, seen)| !**seen);
    suspects.extend(unknown.map(|(r, _)| (key(r), options.kind(r.metric), What::Extra)));
    (view.found, view.foreign) = (first.ours.len() as u64, first.foreign.len() as u64);
    drop(first);
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    tokio::time::sleep(PAUSE).await;
    let second = read(options).await?;
    let mut found = Vec::new();
    for slice in suspects.chunks(SLICE) {
        found.extend(slice.iter().filter_map(|suspect| confirm(core, &second, *suspect)));
        give_way().await;
    }
    found.sort_by_key(|found| found.key);
    found.dedup_by_key(|found| found.key);
    Ok(found)
}

fn wanted(core: &Rc<Core>, after: Option<(Prefix, Kind)>) -> Vec<Wanted> {
    let state = core.state.borrow();
    let reconciler = state.forwarding.as_ref().map(|f| f.reconciler());
    reconciler.map(|r| r.wanted(after).take(SLICE).collect()).unwrap_or_default()
}

/// The same difference again?
fn confirm(
    core: &Rc<Core>,
    table: &Table,
    (of, kind, what): (Key, Option<Kind>, What),
) -> Option<Found> {
    let state = core.state.borrow();
    let reconciler = state.forwarding.as_ref()?.reconciler();
    let found = match kind.and_then(|kind| reconciler.find_wanted(of.prefix, kind)) {
        Some(wanted) => table.judge(&wanted)?,
        None => {
            let have = Some(*table.find(of)?.1);
            Found { key: of, kind, what: What::Extra, want: None, have, why: None }
        }
    };
    (found.what == what).then_some(found)
}

fn place(state: &State, hop: Hop) -> FibPlaceView {
    let known = state.access.name(hop.link).map(str::to_owned);
    FibPlaceView {
        via: hop.gateway,
        interface: known.or_else(|| interface::name(hop.link.0)),
        protocol: None,
        metric: None,
    }
}

fn kind_word(kind: Option<Kind>) -> String {
    match kind {
        Some(Kind::Delivery) => "delivery",
        Some(Kind::Bgp) => "route",
        None => "unknown",
    }
    .into()
}

fn item(core: &Rc<Core>, found: Found, own: u8) -> FibDiffItemView {
    let state = core.state.borrow();
    let Found { key, kind, what, want, have, why } = found;
    let have = have.map(|route| FibPlaceView {
        protocol: Some(route.protocol).filter(|p| *p != own || what == What::Extra),
        metric: Some(route.metric),
        ..route.hop.map(|hop| place(&state, hop)).unwrap_or_default()
    });
    let want = want.map(|hop| FibPlaceView { metric: Some(key.metric), ..place(&state, hop) });
    let why = why.or(match what {
        What::Extra if kind.is_none() => Some("a metric that is not ours".to_owned()),
        What::Shadowed => Some("a route of somebody else is preferred".to_owned()),
        What::Missing | What::Extra | What::Different => None,
    });
    FibDiffItemView {
        what: what.word().into(),
        kind: kind_word(kind),
        prefix: Some(key.prefix),
        group: None,
        want,
        have,
        why,
        ago_ms: None,
    }
}

const fn was(fault: Fault) -> &'static str {
    match fault {
        Fault::Missing => "was missing",
        Fault::Different => "led elsewhere",
        Fault::Extra => "was not ours",
    }
}

fn ago_ms(now: Instant, at: Instant) -> Option<u64> {
    let ago = now.saturating_since(at);
    (ago <= HEALED_MAX).then(|| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX))
}

/// What audits have set right, but for what is wrong again.
fn heal(core: &Rc<Core>, listed: &BTreeSet<Key>, view: &mut FibDiffView) {
    let (now, state) = (core.now(), core.state.borrow());
    let Some(forwarding) = &state.forwarding else { return };
    let (reconciler, options) =
        (forwarding.reconciler(), forwarding.reconciler().plane().options());
    for (at, repair) in reconciler.repairs() {
        let of = Key { prefix: repair.prefix, metric: options.metric(repair.kind) };
        let Some(ago_ms) = ago_ms(now, at) else { break };
        if listed.contains(&of) {
            continue;
        }
        let wanted = reconciler.find_wanted(repair.prefix, repair.kind).and_then(|w| w.hop);
        view.healed += 1;
        let item = FibDiffItemView {
            what: "healed".into(),
            kind: kind_word(Some(repair.kind)),
            prefix: Some(repair.prefix),
            group: None,
            want: wanted.map(|hop| place(&state, hop)),
            have: repair.have.map(|hop| place(&state, hop)),
            why: Some(was(repair.fault).into()),
            ago_ms: Some(ago_ms),
        };
        push(view, item);
    }
}

/// The tunnels: their reconciler is made to read everything back, and what it finds, it heals and
/// remembers. What it could not heal is left.
async fn tunnels(core: &Rc<Core>, view: &mut FibDiffView) {
    let number = |core: &Rc<Core>| {
        let state = core.state.borrow();
        state.encap.as_ref().map(|plane| (plane.audit_number(), plane.audits_ended()))
    };
    let Some((begun, _)) = number(core) else { return };
    let until = core.now() + TUNNELS_MAX;
    // One that is under way has perhaps passed by what is asked about.
    while number(core).is_some_and(|(_, ended)| ended.wrapping_sub(begun).cast_signed() <= 0) {
        if core.now() > until {
            view.errors.push("the tunnels: not read back in time".to_owned());
            return;
        }
        let now = core.now();
        if let Some(plane) = &mut core.state.borrow_mut().encap {
            plane.handle_doubt(now);
        }
        core.turn(|_, _, _| ()); // arms the timer
        tokio::time::sleep(TUNNELS_POLL).await;
    }
    let now = core.now();
    let mut after = None;
    loop {
        let slice: Vec<_> = {
            let state = core.state.borrow();
            let Some(plane) = &state.encap else { return };
            plane.entries(after).take(SLICE).collect()
        };
        for entry in &slice {
            after = Some(entry.prefix);
            view.wanted += u64::from(entry.wanted.is_some());
            view.found += u64::from(entry.installed);
            let what = match (entry.wanted, entry.installed) {
                (Some(_), true) => continue,
                (Some(_), false) => What::Missing,
                (None, _) => What::Extra,
            };
            count(view, what);
            push(view, tunnel(what.word(), Thing::Entry(entry.prefix), entry.error.clone(), None));
        }
        if slice.len() < SLICE {
            break;
        }
        give_way().await;
    }
    let state = core.state.borrow();
    let Some(plane) = &state.encap else { return };
    if let Some(error) = plane.audit_error() {
        view.errors.push(format!("the tunnels: {error}"));
    }
    for (at, repair) in plane.repairs() {
        let Some(ago) = ago_ms(now, at) else { break };
        view.healed += 1;
        push(view, tunnel("healed", repair.thing, Some(was(repair.fault).into()), Some(ago)));
    }
}

fn tunnel(what: &str, thing: Thing, why: Option<String>, ago_ms: Option<u64>) -> FibDiffItemView {
    let (kind, prefix, group) = match thing {
        Thing::Entry(prefix) => ("entry", Some(prefix), None),
        Thing::Decap(prefix) => ("decap", Some(prefix), None),
        Thing::Group(GroupId(number)) => ("group", None, Some(number)),
    };
    let what = what.to_owned();
    FibDiffItemView { what, kind: kind.into(), prefix, group, want: None, have: None, why, ago_ms }
}
