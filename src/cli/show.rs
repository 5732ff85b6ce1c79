//! Answers of the API as tables.

use super::table::{Table, age, milliseconds};
use crate::api::lisp_views::{
    ExplainView, LookupView, MapCacheView, ProbeView, RegistrationView, RlocView, SubscriptionView,
};
use crate::api::views::{
    AcceptedView, BfdSessionView, EncapStatusView, FibDiffView, FibPlaceView, FibRouteView,
    MappingMoveView, NeighborView, PathView, RouteDetailView, RouteView, SessionView, StatusView,
    StepView, TraceView, TransferView,
};
use crate::types::Family;

/// A listing that arrives in pages: the head once, and no column narrower than before.
#[derive(Default)]
pub struct Pages {
    widths: Vec<usize>,
    begun: bool,
}

impl Pages {
    pub fn show(&mut self, table: &Table) -> String {
        let with_head = !std::mem::replace(&mut self.begun, true);
        table.render(&mut self.widths, with_head)
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

pub fn status(view: &StatusView) -> String {
    let mut table = Table::new(&["", ""]);
    let mut line = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    line("node", format!("{} ({})", view.name, text(view.anchor_id)));
    line("version", view.version.clone());
    line("mode", view.mode.clone());
    line(
        "ready",
        match view.ready {
            true => "yes".to_owned(),
            false => format!("no, waiting for {}", view.waiting_for.join(", ")),
        },
    );
    line("uptime", age(view.uptime_s));
    if let Some(bgp) = &view.bgp {
        line("bgp", format!("AS {}, router id {}", bgp.local_as, text(bgp.router_id)));
        line("neighbors", format!("{} of {} established", bgp.established, bgp.neighbors));
        line("routes", format!("{} ({} paths)", bgp.routes, bgp.paths));
    }
    if let Some(mobility) = &view.mobility {
        line("bindings", format!("{}, {} here", mobility.bindings, mobility.attached));
        line("host routes", format!("{} announced", mobility.announced));
        line(
            "handovers",
            format!(
                "{}, {} in progress, {} failed",
                mobility.handovers, mobility.handovers_in_progress, mobility.handovers_failed
            ),
        );
    }
    if let Some(lisp) = &view.lisp {
        line(
            "lisp",
            format!(
                "{}: {} registrations, {} subscriptions, {} in the map-cache",
                lisp.roles.join(", "),
                lisp.registrations,
                lisp.subscriptions,
                lisp.map_cache
            ),
        );
        if let Some(plane) = &lisp.data_plane {
            let EncapStatusView { name, entries, pending, failed } = plane;
            line(
                "tunnels",
                format!("{name}: {entries} entries, {pending} pending, {failed} failed"),
            );
        }
    }
    let kernel = &view.kernel;
    line(
        "kernel",
        format!("{} entries, {} pending, {} failed", kernel.routes, kernel.pending, kernel.failed),
    );
    for peer in &view.peers {
        let error = peer.last_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
        line(
            "peer",
            format!(
                "{} {} {}: {} for {}{error}",
                peer.role,
                peer.name,
                peer.anchor_id,
                peer.state,
                age(peer.since_s)
            ),
        );
    }
    // The head has no names.
    let all = table.render(&mut Vec::new(), false);
    all.to_owned()
}

pub fn neighbors(view: &[NeighborView]) -> Table {
    let mut table = Table::new(&[
        "neighbor",
        ">as",
        "state",
        "since",
        ">in",
        ">accepted",
        ">advertised",
        ">flaps",
        "description",
    ]);
    for n in view {
        let sum = |count: fn(&crate::api::views::NeighborFamilyView) -> u64| {
            n.families.iter().map(count).sum::<u64>()
        };
        let description = match (&n.description, &n.last_error) {
            (description, Some(error)) if n.state != "established" => {
                format!("{} [{error}]", text(description.as_ref())).trim_start().to_owned()
            }
            (description, _) => text(description.as_ref()),
        };
        let advertised: Option<u64> = n.families.iter().map(|f| f.advertised).sum();
        table.row(vec![
            n.address.to_string(),
            n.remote_as.to_string(),
            n.state.clone(),
            age(n.since_s),
            (sum(|f| f.accepted) + sum(|f| f.refused)).to_string(),
            sum(|f| f.accepted).to_string(),
            advertised.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            n.flaps.to_string(),
            description,
        ]);
    }
    table
}

pub fn bfd_sessions(view: &[BfdSessionView]) -> Table {
    let heads = ["address", "hops", "state", "since", "remote", ">tx ms", ">detect ms"];
    let mut table = Table::new(&[&heads[..], &[">downs", "neighbors", "diagnostic"]].concat());
    for s in view {
        let neighbors: Vec<String> = s.neighbors.iter().map(ToString::to_string).collect();
        // Whoever ended the session says why.
        let diagnostic = match s.remote_state.as_str() {
            "admin-down" => format!("the other end: {}", s.remote_diagnostic),
            _ if s.state == "up" => String::new(),
            _ => s.diagnostic.clone(),
        };
        table.row(vec![
            s.address.to_string(),
            if s.multihop { "multi" } else { "single" }.to_owned(),
            s.state.clone(),
            age(s.since_s),
            s.remote_state.clone(),
            milliseconds(s.transmit_interval_us),
            milliseconds(s.detection_time_us),
            s.downs.to_string(),
            neighbors.join(", "),
            diagnostic,
        ]);
    }
    table
}

pub fn routes(view: &[RouteView]) -> Table {
    let mut table = Table::new(&[
        "",
        "prefix",
        "next hop",
        ">pref",
        ">med",
        "from",
        "as path",
        ">paths",
        "kernel",
        "communities",
    ]);
    for r in view {
        let mark = match (r.best, r.stale) {
            (true, false) => ">",
            (true, true) => ">s",
            (false, true) => "s",
            (false, false) => "",
        };
        let from = r.from.map_or_else(|| "local".to_owned(), |from| from.to_string());
        let communities =
            r.communities.iter().chain(&r.large_communities).cloned().collect::<Vec<_>>();
        let as_path = format!("{} {}", r.as_path, r.origin);
        table.row(vec![
            mark.to_owned(),
            r.prefix.to_string(),
            text(r.next_hop),
            text(r.local_pref),
            text(r.med),
            from,
            as_path.trim_start().to_owned(),
            r.paths.to_string(),
            r.kernel.clone(),
            communities.join(" "),
        ]);
    }
    table
}

pub fn route(view: &RouteDetailView) -> String {
    let mut out = routes(&view.paths).render(&mut Vec::new(), true);
    let to: Vec<String> = view.advertised_to.iter().map(ToString::to_string).collect();
    let to = if to.is_empty() { "nobody".to_owned() } else { to.join(", ") };
    out.push_str(&format!("announced to {to}\n"));
    out
}

pub fn sessions(view: &[SessionView]) -> Table {
    let mut table = Table::new(&[
        "node",
        "prefix",
        "anchor",
        ">gen",
        "state",
        "announced",
        "since",
        "lifetime",
        "fe_e",
        "attached by",
    ]);
    for s in view {
        let anchor = s.anchor_name.clone().unwrap_or_else(|| s.anchor.to_string());
        let anchor = if s.home == Some(s.anchor) { format!("{anchor} (home)") } else { anchor };
        // The one that the prefix is steered to.
        let fe_e = match s.prefix.family() {
            Family::Ipv4 => s.fe_e.next_hop(Family::Ipv4),
            Family::Ipv6 => s.fe_e.next_hop(Family::Ipv6),
        };
        let attachment = s.attachment.as_ref().map(|a| format!("{} {}", a.interface, a.mac));
        table.row(vec![
            s.mn.to_string(),
            s.prefix.to_string(),
            anchor,
            s.generation.to_string(),
            s.state.clone(),
            s.announced.clone(),
            text(s.since_s.map(age)),
            text(s.lifetime_s.map(age)),
            text(fe_e),
            text(attachment),
        ]);
    }
    table
}

pub fn paths(view: &[PathView]) -> Table {
    let mut table = Table::new(&[
        "prefix",
        "node",
        "state",
        "peer",
        ">ms",
        ">waiting",
        ">octets",
        ">held",
        ">forwarded",
        ">dropped",
        ">flows",
    ]);
    for p in view {
        table.row(vec![
            p.prefix.to_string(),
            text(p.mn.as_ref()),
            p.state.clone(),
            text(p.peer),
            p.since_ms.to_string(),
            p.waiting.to_string(),
            p.waiting_octets.to_string(),
            p.held.to_string(),
            p.forwarded.to_string(),
            p.dropped.to_string(),
            p.flows.to_string(),
        ]);
    }
    table
}

pub fn accepted(view: &AcceptedView) -> String {
    let prefixes: Vec<String> = view.prefixes.iter().map(ToString::to_string).collect();
    let at = view.anchor.map(|anchor| format!(" at {anchor}")).unwrap_or_default();
    format!("{}{at}, generation {}: {}\n", view.mn, view.generation, prefixes.join(", "))
}

pub fn transfers(view: &[TransferView]) -> Table {
    let mut table =
        Table::new(&["node", "peer", "role", "mode", "state", "age", ">ms", ">retransmitted"]);
    for t in view {
        table.row(vec![
            t.mn.to_string(),
            t.peer.clone(),
            t.role.clone(),
            t.mode.clone(),
            t.state.clone(),
            age(t.age_s),
            text(t.duration_us.map(milliseconds)),
            t.retransmissions.to_string(),
        ]);
    }
    table
}

pub fn fib_routes(view: &[FibRouteView]) -> Table {
    let mut table =
        Table::new(&["prefix", "kind", "via", "interface", "mac", ">table", "state", "error"]);
    for r in view {
        table.row(vec![
            r.prefix.to_string(),
            r.kind.clone(),
            text(r.via),
            text(r.interface.as_ref()),
            text(r.mac),
            r.table.to_string(),
            r.state.clone(),
            text(r.error.as_ref()),
        ]);
    }
    table
}

pub fn fib_diff(view: &FibDiffView) -> String {
    let place = |place: &Option<FibPlaceView>| {
        let Some(FibPlaceView { via, interface, protocol, metric }) = place else {
            return String::new();
        };
        let words = [
            via.map(|via| format!("via {via}")),
            interface.as_ref().map(|interface| format!("dev {interface}")),
            protocol.map(|protocol| format!("proto {protocol}")),
            metric.map(|metric| format!("metric {metric}")),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    let mut out = String::new();
    if !view.items.is_empty() {
        let mut table = Table::new(&["what", "prefix", "kind", "want", "have", "why"]);
        for i in &view.items {
            let ago = i.ago_ms.map(|ms| format!(", found {} ago", age(ms / 1000)));
            let why = format!("{}{}", text(i.why.as_ref()), ago.unwrap_or_default());
            table.row(vec![
                i.what.clone(),
                i.prefix.map_or_else(|| text(i.group), |prefix| prefix.to_string()),
                i.kind.clone(),
                place(&i.want),
                place(&i.have),
                why,
            ]);
        }
        out.push_str(&Pages::default().show(&table));
    }
    if view.omitted > 0 {
        out.push_str(&format!("... and {} more\n", view.omitted));
    }
    for error in &view.errors {
        out.push_str(&format!("not known: {error}\n"));
    }
    let FibDiffView { wanted, found, missing, extra, different, shadowed, healed, .. } = view;
    let same = if view.same { "the same" } else { "not the same" };
    out.push_str(&format!(
        "{same}: {wanted} wanted, {found} found; {missing} missing, {extra} extra, \
         {different} different, {shadowed} shadowed; {healed} healed\n"
    ));
    out
}

/// One locator; what is usual is not said.
fn rloc(rloc: &RlocView) -> String {
    let RlocView { address, priority, weight, state } = rloc;
    let down = if state == "down" { " down" } else { "" };
    format!("{address} {priority}/{weight}{down}")
}

fn rlocs(all: &[RlocView], action: Option<&String>) -> String {
    match (all, action) {
        ([], Some(action)) => format!("({action})"),
        (all, _) => all.iter().map(rloc).collect::<Vec<_>>().join(", "),
    }
}

fn version(version: u16) -> String {
    if version == 0 { String::new() } else { version.to_string() }
}

pub fn map_cache(view: &[MapCacheView]) -> Table {
    let heads = [">iid", "eid", "rlocs (priority/weight)", "origin", ">version", ">ttl", "used"];
    let mut table = Table::new(&[&heads[..], &[">packets", ">octets"]].concat());
    for m in view {
        table.row(vec![
            m.instance_id.to_string(),
            m.eid.to_string(),
            rlocs(&m.rlocs, m.action.as_ref()),
            m.origin.clone(),
            version(m.version),
            age(m.ttl_s),
            if m.used { "yes" } else { "no" }.to_owned(),
            text(m.packets),
            text(m.octets),
        ]);
    }
    table
}

pub fn registrations(view: &[RegistrationView]) -> Table {
    let heads = [">iid", "eid", "rlocs (priority/weight)", "state", "with", "anchor"];
    let mut table = Table::new(&[&heads[..], &[">generation", ">version", ">left"]].concat());
    for r in view {
        table.row(vec![
            r.instance_id.to_string(),
            match r.source {
                Some(source) => format!("{source} → {}", r.eid),
                None => r.eid.to_string(),
            },
            rlocs(&r.rlocs, None),
            r.state.clone(),
            text(r.with.as_ref()),
            text(r.anchor),
            text(r.generation),
            version(r.version),
            text(r.left_s.map(age)),
        ]);
    }
    table
}

pub fn subscriptions(view: &[SubscriptionView]) -> Table {
    let heads = ["role", ">iid", "eid", "with", "rlocs", "state", ">outstanding"];
    let mut table = Table::new(&heads);
    for s in view {
        table.row(vec![
            s.role.clone(),
            s.instance_id.to_string(),
            s.eid.to_string(),
            s.with.clone(),
            s.rlocs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            s.state.clone(),
            text(s.outstanding),
        ]);
    }
    table
}

pub fn probes(view: &[ProbeView]) -> Table {
    let mut table = Table::new(&["rloc", "state", ">rtt ms", ">unanswered", ">mappings"]);
    for p in view {
        table.row(vec![
            p.rloc.to_string(),
            p.state.clone(),
            p.rtt_us.map(milliseconds).unwrap_or_default(),
            p.unanswered.to_string(),
            p.mappings.to_string(),
        ]);
    }
    table
}

pub fn lookup(view: &LookupView) -> String {
    let answer = match (&view.prefix, view.source.as_str()) {
        (_, "asked") => "no answer from the mapping system".to_owned(),
        (_, "not-asked") => format!("not asked: {}", view.why.as_deref().unwrap_or("?")),
        (Some(prefix), "here") if view.registered.is_none() => {
            format!("nothing is registered in {prefix} {}", rlocs(&[], view.action.as_ref()))
        }
        (None, _) => "nothing is known".to_owned(),
        (Some(prefix), _) => {
            let version = match view.version {
                0 => String::new(),
                version => format!(", version {version}"),
            };
            let rlocs = rlocs(&view.rlocs, view.action.as_ref());
            let part = match view.registered {
                Some(whole) if whole != *prefix => format!(", a part of {whole}"),
                Some(_) | None => String::new(),
            };
            let site = view.site.as_ref().map(|site| format!(", of {site}")).unwrap_or_default();
            format!("{prefix} → {rlocs} ({}{version}{site}{part})", view.source)
        }
    };
    format!("{}: {answer}\n", view.eid)
}

pub fn explain(view: &ExplainView) -> String {
    let mut out = String::new();
    if let Some(binding) = &view.binding {
        out.push_str(&Pages::default().show(&sessions(std::slice::from_ref(binding))));
        out.push('\n');
    }
    if !view.back_ends.is_empty() {
        let mut table = Table::new(&["back end", "prefix", "leads to"]);
        for b in &view.back_ends {
            table.row(vec![b.name.clone(), b.prefix.to_string(), b.leads_to.clone()]);
        }
        out.push_str(&Pages::default().show(&table));
        out.push('\n');
    }
    for sentence in &view.why {
        out.push_str(sentence);
        out.push('\n');
    }
    out
}

pub fn traces(view: &[TraceView], all: bool) -> String {
    let mut out = String::new();
    for trace in view.iter().take(if all { usize::MAX } else { 1 }) {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&one_trace(trace));
    }
    out
}

fn one_trace(trace: &TraceView) -> String {
    let mut table = Table::new(&[">ms", ">+ms", "phase", "prefix", "peer", "what"]);
    let mut before = 0;
    for StepView { at_us, phase, prefix, peer, what } in &trace.steps {
        table.row(vec![
            milliseconds(*at_us),
            milliseconds(at_us.saturating_sub(before)),
            phase.clone(),
            text(*prefix),
            text(*peer),
            what.clone(),
        ]);
        before = *at_us;
    }
    let or_nowhere = |text: String| if text.is_empty() { "nowhere".to_owned() } else { text };
    let (from, to, number) = match &trace.mapping {
        Some(MappingMoveView { from, to, version: 0 }) => {
            (text(*from), text(*to), "no version".to_owned())
        }
        Some(MappingMoveView { from, to, version }) => {
            (text(*from), text(*to), format!("version {version}"))
        }
        None => (text(trace.from), text(trace.to), format!("generation {}", trace.generation)),
    };
    let (from, to) = (or_nowhere(from), or_nowhere(to));
    format!(
        "{}: {} from {from} to {to}, {number}, {}, {}\nstarted {}\n{}",
        trace.mn,
        trace.kind,
        trace.mode,
        trace.result,
        utc(trace.started_unix_us),
        table.render(&mut Vec::new(), true),
    )
}

/// `2026-11-21T12:34:56.789012Z`.
fn utc(unix_us: u64) -> String {
    let (seconds, us) = (unix_us / 1_000_000, unix_us % 1_000_000);
    let (year, month, day) = super::date::of_unix_days(seconds / 86_400);
    let (h, m, s) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{us:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::views::*;
    use crate::types::seam::Sighting;
    use crate::types::{AnchorId, Generation, Locator, MnId};

    fn anchor(n: u8) -> AnchorId {
        AnchorId(u32::from_be_bytes([192, 0, 2, n]))
    }

    #[test]
    fn status_is_read_at_a_glance() {
        let view = StatusView {
            version: "0.1.0".to_owned(),
            name: "a1".to_owned(),
            anchor_id: Some(anchor(1)),
            mode: "distributed".to_owned(),
            ready: false,
            waiting_for: vec!["kernel".to_owned()],
            uptime_s: 3_700,
            bgp: Some(BgpStatusView {
                local_as: 65000,
                router_id: Some("192.0.2.1".parse().unwrap()),
                neighbors: 2,
                established: 1,
                routes: 10,
                paths: 20,
            }),
            mobility: None,
            lisp: Some(LispStatusView {
                roles: vec!["etr".to_owned(), "itr".to_owned()],
                registrations: 2,
                map_cache: 7,
                subscriptions: 1,
                data_plane: Some(EncapStatusView {
                    name: "tun".to_owned(),
                    entries: 9,
                    pending: 1,
                    failed: 3,
                }),
            }),
            kernel: KernelStatusView::default(),
            peers: vec![PeerView {
                name: "a2".to_owned(),
                anchor_id: anchor(2),
                role: "anchor".to_owned(),
                address: None,
                state: "down".to_owned(),
                since_s: 5,
                last_error: Some("refused".to_owned()),
            }],
        };
        assert_eq!(
            status(&view),
            "node       a1 (192.0.2.1)\n\
             version    0.1.0\n\
             mode       distributed\n\
             ready      no, waiting for kernel\n\
             uptime     1h01m\n\
             bgp        AS 65000, router id 192.0.2.1\n\
             neighbors  1 of 2 established\n\
             routes     10 (20 paths)\n\
             lisp       etr, itr: 2 registrations, 1 subscriptions, 7 in the map-cache\n\
             tunnels    tun: 9 entries, 1 pending, 3 failed\n\
             kernel     0 entries, 0 pending, 0 failed\n\
             peer       anchor a2 192.0.2.2: down for 5s (refused)\n"
        );
    }

    #[test]
    fn sessions_show_the_next_hop_of_their_family() {
        let view = SessionView {
            mn: MnId::new("car7").unwrap(),
            prefix: "2001:db8::7/128".parse().unwrap(),
            anchor: anchor(1),
            anchor_name: Some("a1".to_owned()),
            fe_e: Locator {
                ipv4: Some("192.0.2.1".parse().unwrap()),
                ipv6: Some("2001:db8:f::1".parse().unwrap()),
            },
            home: Some(anchor(1)),
            generation: Generation(4),
            state: "attached".to_owned(),
            announced: "none".to_owned(),
            since_s: Some(65),
            lifetime_s: None,
            attachment: Some(AttachmentView {
                interface: "eth1".to_owned(),
                mac: "02:00:00:00:00:07".parse().unwrap(),
                by: Some(Sighting::Arp),
            }),
        };
        assert_eq!(
            sessions(&[view]).render(&mut Vec::new(), true),
            "NODE  PREFIX           ANCHOR     GEN  STATE     ANNOUNCED  SINCE  LIFETIME  FE_E           ATTACHED BY\n\
             car7  2001:db8::7/128  a1 (home)    4  attached  none       1m05s  -         2001:db8:f::1  eth1 02:00:00:00:00:07\n"
        );
    }

    #[test]
    fn a_trace_is_a_timeline() {
        let step = |at_us, phase: &str, peer, what: &str| StepView {
            at_us,
            phase: phase.to_owned(),
            prefix: Some("10.1.0.7/32".parse().unwrap()),
            peer,
            what: what.to_owned(),
        };
        let trace = TraceView {
            mn: MnId::new("car7").unwrap(),
            started_unix_us: 1_795_264_496_789_012,
            from: Some(anchor(1)),
            to: Some(anchor(2)),
            generation: Generation(5),
            kind: "handover".to_owned(),
            mode: "reactive".to_owned(),
            result: "done".to_owned(),
            mapping: None,
            steps: vec![
                step(0, "sighted", None, "arp on eth1"),
                step(1_204, "context_received", Some(anchor(1)), ""),
                step(1_310, "delivering", None, ""),
            ],
        };
        let shown = traces(&[trace.clone(), trace], false);
        assert_eq!(
            shown,
            "car7: handover from 192.0.2.1 to 192.0.2.2, generation 5, reactive, done\n\
             started 2026-11-21T12:34:56.789012Z\n\
             \u{20}  MS    +MS  PHASE             PREFIX       PEER       WHAT\n\
             0.000  0.000  sighted           10.1.0.7/32  -          arp on eth1\n\
             1.204  1.204  context_received  10.1.0.7/32  192.0.2.1  -\n\
             1.310  0.106  delivering        10.1.0.7/32  -          -\n"
        );
    }

    #[test]
    fn pages_keep_their_columns() {
        let route = |prefix: &str| RouteView {
            prefix: prefix.parse().unwrap(),
            next_hop: Some("192.0.2.1".parse().unwrap()),
            local_pref: Some(200),
            med: None,
            as_path: String::new(),
            origin: "igp".to_owned(),
            communities: vec!["no-export".to_owned()],
            large_communities: vec!["65000:101:1".to_owned()],
            from: None,
            best: true,
            stale: false,
            paths: 1,
            kernel: "none".to_owned(),
        };
        let mut pages = Pages::default();
        let first = pages.show(&routes(&[route("10.1.200.200/32")]));
        let second = pages.show(&routes(&[route("10.1.0.1/32")]));
        let column = |text: &str| text.lines().last().unwrap().find("192.0.2.1");
        assert_eq!(column(&first), column(&second));
        assert_eq!((first.lines().count(), second.lines().count()), (2, 1));
        assert!(second.ends_with("no-export 65000:101:1\n"));
    }
}
