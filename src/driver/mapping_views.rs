//! Views of the mapping service for the API. They read, and never decide.

use std::net::IpAddr;

use super::core::State;
use super::views;
use crate::api::lisp_views::{
    BackEndView, ExplainView, LookupView, MapCacheView, ProbeView, RegistrationView, RlocView,
    SubscriptionView,
};
use crate::api::views::Page;
use crate::api::{ApiError, ErrorCode, Paging};
use crate::node::lisp::Lisp;
use crate::proto::lisp::server::{LookupView as ServedView, XtrName};
use crate::proto::lisp::xtr::{
    CachedMapping, Miss, ProbeState, RegistrationState, SubscriptionState as ClientState,
};
use crate::types::lisp::{
    EntryAction, GroupPath, InstanceId, MapVersion, NegativeAction, Rloc, RlocSet,
};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{Eid, RlocRecord};

fn roles(state: &State) -> Result<&Lisp, ApiError> {
    state.node.lisp.as_ref().ok_or_else(|| {
        ApiError::new(ErrorCode::NotConfigured, "no mapping service is configured here: [lisp]")
    })
}

fn not_configured(what: &str) -> ApiError {
    ApiError::new(ErrorCode::NotConfigured, what)
}

fn bad_cursor() -> ApiError {
    ApiError::new(ErrorCode::BadRequest, "not a cursor of this listing")
}

fn action_word(action: NegativeAction) -> &'static str {
    match action {
        NegativeAction::NoAction => "no action",
        NegativeAction::NativelyForward => "natively forward",
        NegativeAction::SendMapRequest => "send map-request",
        NegativeAction::DropNoReason => "drop",
        NegativeAction::DropPolicyDenied => "drop, denied by policy",
        NegativeAction::DropAuthFailure => "drop, not authenticated",
    }
}

fn state_word(lisp: &Lisp, rloc: IpAddr) -> &'static str {
    if lisp.ingress.is_broken(rloc) {
        return "down";
    }
    let probe = lisp.xtr.itr.as_ref().and_then(|itr| itr.probes(None).find(|p| p.rloc == rloc));
    match probe.map(|p| p.state) {
        Some(ProbeState::Up) => "up",
        Some(ProbeState::Down) => "down",
        Some(ProbeState::Unknown) | None => "unknown",
    }
}

fn rlocs(lisp: &Lisp, set: &RlocSet) -> Vec<RlocView> {
    let view = |r: &Rloc| RlocView {
        address: r.addr,
        priority: r.priority,
        weight: r.weight,
        state: state_word(lisp, r.addr).to_owned(),
    };
    set.iter().map(view).collect()
}

fn records(all: &[RlocRecord]) -> Vec<RlocView> {
    let view = |r: &RlocRecord| {
        Some(RlocView {
            address: r.address.ip()?,
            priority: r.priority,
            weight: r.weight,
            state: if r.reachable { "unknown" } else { "down" }.to_owned(),
        })
    };
    all.iter().filter_map(view).collect()
}

fn prefix_of(eid: &Eid) -> Option<Prefix> {
    match *eid {
        Eid::Prefix { prefix, .. } => Some(prefix),
        Eid::None | Eid::SourceDestination { .. } | Eid::Other { .. } => None,
    }
}

fn map_cache_line(lisp: &Lisp, eid: Prefix, m: &CachedMapping, now: Instant) -> MapCacheView {
    MapCacheView {
        instance_id: m.iid.0,
        eid,
        rlocs: rlocs(lisp, &m.rlocs),
        action: m.rlocs.is_empty().then(|| action_word(m.action).to_owned()),
        origin: if m.is_pushed() { "publication" } else { "reply" }.to_owned(),
        version: m.version.0,
        ttl_s: (m.expires_at - now).as_secs(),
        used: m.used_at.is_some_and(|at| (now - at).as_secs() < 60),
        packets: None,
        octets: None,
    }
}

pub fn map_cache(
    state: &State,
    paging: &Paging,
    now: Instant,
) -> Result<Page<MapCacheView>, ApiError> {
    let lisp = roles(state)?;
    let itr = lisp.xtr.itr.as_ref();
    let itr =
        itr.ok_or_else(|| not_configured("no ingress is configured here: [[lisp.ingress]]"))?;
    let after = paging.cursor.as_ref().map(|text| text.parse::<Prefix>().map_err(|_| bad_cursor()));
    let entries = itr.map_cache(after.transpose()?).take(paging.limit);
    let items: Vec<_> = entries.map(|(eid, m)| map_cache_line(lisp, eid, m, now)).collect();
    let next = (items.len() == paging.limit).then(|| items.last().map(|m| m.eid.to_string()));
    Ok(Page { items, next: next.flatten() })
}

/// How many packets each of these entries has carried, where the data plane counts them.
pub fn count(state: &mut State, items: &mut [MapCacheView]) {
    let Some(plane) = &mut state.encap else { return };
    for item in items {
        let count = plane.plane_mut().count(item.eid);
        item.packets = count.map(|c| c.packets);
        item.octets = count.map(|c| c.octets);
    }
}

pub fn registrations(
    state: &State,
    paging: &Paging,
    now: Instant,
) -> Result<Page<RegistrationView>, ApiError> {
    let lisp = roles(state)?;
    if let Some(server) = &lisp.server {
        let cursor = match &paging.cursor {
            None => 0,
            Some(text) => text.parse().map_err(|_| bad_cursor())?,
        };
        let (found, next) = server.registrations(now, cursor, paging.limit);
        let items = found.into_iter().map(|r| {
            let bound = state.node.location.find(r.prefix).filter(|_| r.mobile);
            RegistrationView {
                instance_id: r.iid.0,
                eid: r.prefix,
                source: r.source,
                rlocs: match bound {
                    Some(binding) => rlocs(lisp, &RlocSet::from(&binding.fe_e)),
                    None => records(r.rlocs),
                },
                version: bound.map_or(r.version, |b| MapVersion::of_generation(b.generation)).0,
                state: if r.site.is_some() { "registered" } else { "reported" }.to_owned(),
                with: r.site.map(str::to_owned),
                anchor: bound.map(|b| b.anchor),
                generation: bound.map(|b| b.generation),
                xtr_id: r.xtr.map(|xtr| match xtr {
                    XtrName::Id(id) => id.to_string(),
                    XtrName::Source(addr) => addr.to_string(),
                }),
                left_s: r.remaining.map(|d| d.as_secs()),
            }
        });
        return Ok(Page { items: items.collect(), next: next.map(|n| n.to_string()) });
    }
    let Some(etr) = &lisp.xtr.etr else {
        return Err(not_configured("this node neither registers nor is a map-server"));
    };
    let after = match &paging.cursor {
        None => None,
        Some(text) => {
            let (iid, prefix) = text.split_once('!').ok_or_else(bad_cursor)?;
            let iid = InstanceId(iid.parse().map_err(|_| bad_cursor())?);
            Some((iid, prefix.parse::<Prefix>().map_err(|_| bad_cursor())?))
        }
    };
    let page: Vec<_> = etr.registrar.registrations(after).take(paging.limit).collect();
    let next = (page.len() == paging.limit).then(|| page.last()).flatten();
    let next = next.map(|r| format!("{}!{}", r.iid.0, r.prefix));
    let mut items = Vec::new();
    for r in page {
        for at in &r.servers {
            let word = match at.state {
                _ if r.withdrawn => "withdrawing",
                RegistrationState::Queued | RegistrationState::Sent => "pending",
                RegistrationState::Confirmed => "confirmed",
                RegistrationState::Refused => "refused",
            };
            items.push(RegistrationView {
                instance_id: r.iid.0,
                eid: r.prefix,
                source: None,
                rlocs: rlocs(lisp, &r.rlocs),
                version: r.version.0,
                state: word.to_owned(),
                with: Some(at.server.to_string()),
                anchor: Some(state.node.own()),
                generation: state.node.location.find(r.prefix).map(|b| b.generation),
                xtr_id: None,
                left_s: at.refresh_at.map(|at| (at - now).as_secs()),
            });
        }
    }
    Ok(Page { items, next })
}

/// Subscriptions of others shown at once; each may have many prefixes.
const SUBSCRIPTIONS_MAX: usize = 10_000;

pub fn subscriptions(state: &State, now: Instant) -> Result<Vec<SubscriptionView>, ApiError> {
    let lisp = roles(state)?;
    let mut all = Vec::new();
    if let Some(server) = &lisp.server {
        let (found, _) = server.subscriptions(now, 0, SUBSCRIPTIONS_MAX);
        all.extend(found.into_iter().map(|s| {
            SubscriptionView {
                role: "server".to_owned(),
                instance_id: s.iid.0,
                eid: s.prefix,
                with: state.subscribers.get(&s.xtr).cloned().unwrap_or_else(|| s.xtr.to_string()),
                xtr_id: Some(s.xtr.to_string()),
                rlocs: s.rlocs.to_vec(),
                state: match () {
                    () if s.muted => "muted",
                    () if s.behind => "behind",
                    () if s.remaining.is_some() => "temporary",
                    () => "active",
                }
                .to_owned(),
                nonce: s.nonce,
                outstanding: Some(s.outstanding as u64),
            }
        }));
    }
    if let Some(itr) = &lisp.xtr.itr {
        all.extend(itr.subscriptions(None).map(|s| {
            SubscriptionView {
                role: "client".to_owned(),
                instance_id: s.iid.0,
                eid: s.prefix,
                with: s.server.map(|server| server.to_string()).unwrap_or_default(),
                xtr_id: None,
                rlocs: Vec::new(),
                state: match s.state {
                    ClientState::Waiting => "waiting",
                    ClientState::Asking => "asking",
                    ClientState::Subscribed => "active",
                    ClientState::Refused(_) => "refused",
                    ClientState::Unsubscribing => "ending",
                    ClientState::Ended => "ended",
                }
                .to_owned(),
                nonce: s.nonce,
                outstanding: None,
            }
        }));
    }
    Ok(all)
}

pub fn probes(state: &State) -> Result<Vec<ProbeView>, ApiError> {
    let lisp = roles(state)?;
    let itr =
        lisp.xtr.itr.as_ref().ok_or_else(|| not_configured("no ingress is configured here"))?;
    Ok(itr
        .probes(None)
        .map(|p| ProbeView {
            rloc: p.rloc,
            state: match p.state {
                ProbeState::Unknown => "unknown",
                ProbeState::Up => "up",
                ProbeState::Down => "down",
            }
            .to_owned(),
            rtt_us: p.rtt.map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
            unanswered: p.losses,
            mappings: p.mappings,
        })
        .collect())
}

/// What is known here; `miss` says what became of the question, where one is asked.
pub fn lookup(state: &State, eid: IpAddr, miss: Option<Miss>) -> Result<LookupView, ApiError> {
    let lisp = roles(state)?;
    let iid = lisp.config.iid;
    let view = |source: &str| LookupView {
        instance_id: iid.0,
        eid,
        source: source.to_owned(),
        why: None,
        prefix: None,
        registered: None,
        site: None,
        rlocs: Vec::new(),
        action: None,
        version: 0,
    };
    if let Some(found) = state.node.served(Prefix::host(eid)) {
        let record = &found.record;
        return Ok(LookupView {
            prefix: prefix_of(&record.eid),
            registered: found.registered,
            site: found.site.map(str::to_owned),
            rlocs: records(&record.rlocs),
            action: record.rlocs.is_empty().then(|| action_word(record.action).to_owned()),
            version: record.version.0,
            ..view("here")
        });
    }
    let itr =
        lisp.xtr.itr.as_ref().ok_or_else(|| not_configured("no ingress is configured here"))?;
    if let Some((prefix, mapping)) = itr.lookup(Prefix::host(eid)) {
        return Ok(LookupView {
            prefix: Some(prefix),
            rlocs: rlocs(lisp, &mapping.rlocs),
            action: mapping.rlocs.is_empty().then(|| action_word(mapping.action).to_owned()),
            version: mapping.version.0,
            ..view("cache")
        });
    }
    let why = match miss {
        Some(Miss::Asked | Miss::AskedAlready | Miss::Known) | None => return Ok(view("asked")),
        Some(Miss::NotMobile) => "it is in no [[lisp.ingress]] prefix",
        Some(Miss::Default) => "the policy of its [[lisp.ingress]] prefix is \"default\"",
        Some(Miss::Held) => "nobody answers; it is asked again 30 s after the last question",
        Some(Miss::Full) => "too many questions are without an answer",
        Some(Miss::NoResolver) => "there is no map-resolver that can be asked",
    };
    Ok(LookupView { why: Some(why.to_owned()), ..view("not-asked") })
}

/// Which back end leads where for a prefix, and why.
pub fn explain(state: &State, prefix: Prefix, now: Instant) -> ExplainView {
    let node = &state.node;
    let binding = node.location.find(prefix);
    let mut back_ends = Vec::new();
    let mut why = Vec::new();
    let mut back_end = |name: &str, prefix: Prefix, leads_to: String| {
        back_ends.push(BackEndView { name: name.to_owned(), prefix, leads_to });
    };
    let anchor_name = |anchor| match state.names.get(&anchor) {
        Some(name) => format!("{name} ({anchor})"),
        None => format!("{anchor}"),
    };
    match binding {
        Some(b) => {
            why.push(format!(
                "The binding of generation {} says anchor {}; a greater generation, or the same from \
                 a lower anchor id, would replace it.",
                b.generation,
                anchor_name(b.anchor)
            ));
            if b.is_at_home() {
                why.push("It is at home: the aggregate of its pool leads there.".to_owned());
            }
        }
        None => why.push(match node.location.known_claim(prefix) {
            Some(claim) => format!(
                "It is not bound here; the newest claim known is of {}, generation {}.",
                anchor_name(claim.anchor),
                claim.generation
            ),
            None => "It is not bound here, and no claim is known.".to_owned(),
        }),
    }
    if let Some(home) = node.pool_of(prefix) {
        let home_name = home.1.map_or_else(|| "nobody".to_owned(), anchor_name);
        back_end("pool", home.0, format!("home {home_name}"));
    }
    if let Some(speaker) = &node.speaker
        && let Some(best) = speaker.rib().find_best(prefix)
    {
        let pref = best.attributes.local_pref.unwrap_or(100);
        let from = match best.peer {
            crate::proto::bgp::rib::PeerId::LOCAL => "ours",
            _ => "learnt",
        };
        let hop = best.attributes.next_hop.addr();
        back_end("ibgp", prefix, format!("next hop {hop}, LOCAL_PREF {pref}, {from}"));
        if pref > 1_000_000 {
            why.push(
                "Its LOCAL_PREF grows with the generation until older routes are known to be gone."
                    .to_owned(),
            );
        }
    }
    if let Some(lisp) = &node.lisp {
        if let Some(found) = node.served(prefix) {
            explain_served(&found, prefix, &mut back_end, &mut why);
        }
        explain_lisp(lisp, prefix, now, &mut back_end, &mut why);
    }
    if let Some(delivery) = node.egress.find(prefix) {
        let link = delivery.attachment.link;
        let name = state.access.name(link).unwrap_or("?");
        back_end("egress", prefix, format!("delivered on {name} to {}", delivery.attachment.mac));
        why.push("It is attached here: delivery is preferred to everything else.".to_owned());
    }
    let binding = views::sessions(state, binding.into_iter(), now).pop();
    ExplainView { prefix, binding, back_ends, why }
}

/// What the map-server here answers.
fn explain_served(
    found: &ServedView<'_>,
    prefix: Prefix,
    back_end: &mut impl FnMut(&str, Prefix, String),
    why: &mut Vec<String>,
) {
    let record = &found.record;
    let told = prefix_of(&record.eid).unwrap_or(prefix);
    let locators = records(&record.rlocs);
    let mut to = match locators.is_empty() {
        true => action_word(record.action).to_owned(),
        false => {
            let text = |r: &RlocView| format!("{} {}/{}", r.address, r.priority, r.weight);
            locators.iter().map(text).collect::<Vec<_>>().join(", ")
        }
    };
    if record.version != MapVersion::NULL {
        to.push_str(&format!(", version {}", record.version.0));
    }
    if let Some(site) = found.site {
        to.push_str(&format!(", of {site}"));
    }
    back_end("map-server", found.registered.unwrap_or(told), to);
    why.push(match (found.registered, found.is_mobile) {
        (None, _) => format!("Nothing is registered there: Map-Requests are told so of {told}."),
        (Some(_), true) => format!(
            "Map-Requests are answered from the location database, and {} subscribers are told.",
            found.subscribers
        ),
        (Some(registered), false) if registered != told => format!(
            "Map-Requests are answered for {told}: in the rest of {registered} others are \
             registered, too."
        ),
        (Some(_), false) => format!("{} subscribers are told of changes.", found.subscribers),
    });
}

fn explain_lisp(
    lisp: &Lisp,
    prefix: Prefix,
    now: Instant,
    back_end: &mut impl FnMut(&str, Prefix, String),
    why: &mut Vec<String>,
) {
    let set = |rlocs: &RlocSet| {
        let text = rlocs.iter().map(|r| format!("{} {}/{}", r.addr, r.priority, r.weight));
        text.collect::<Vec<_>>().join(", ")
    };
    if let Some(etr) = &lisp.xtr.etr
        && let Some((registered, rlocs, version)) = etr.registrar.find(lisp.config.iid, prefix)
    {
        let mut to = set(rlocs);
        if version != MapVersion::NULL {
            to.push_str(&format!(", version {}", version.0));
        }
        back_end("lisp-registration", registered, to);
    }
    if let Some(itr) = &lisp.xtr.itr
        && let Some((found, mapping)) = itr.lookup(prefix)
    {
        let to = match mapping.rlocs.is_empty() {
            true => action_word(mapping.action).to_owned(),
            false => set(&mapping.rlocs),
        };
        back_end("lisp-map-cache", found, to);
        let origin = if mapping.is_pushed() { "published to us" } else { "asked for" };
        let version = match mapping.version {
            MapVersion::NULL => String::new(),
            version => format!(" (version {})", version.0),
        };
        let age = (now - mapping.set_at).as_secs();
        why.push(format!("Its mapping was {origin} {age} s ago{version}."));
    }
    let covering = (0..=prefix.len()).rev().filter_map(|len| Prefix::new(prefix.addr(), len));
    let longest = covering.filter_map(|p| Some((p, lisp.ingress.find(p)?))).next();
    if let Some((entry, action)) = longest {
        let to = match action {
            EntryAction::Group(id) => {
                match lisp.ingress.groups(None).find(|g| g.group == id).map(|g| g.path) {
                    Some(GroupPath::Encap { members, .. }) => {
                        let to: Vec<String> = members.iter().map(|(a, _)| a.to_string()).collect();
                        format!("tunnel to {}", to.join(", "))
                    }
                    Some(GroupPath::Unreachable) | None => "no locator is reachable".to_owned(),
                }
            }
            EntryAction::Punt => "held, and asked for".to_owned(),
            EntryAction::Native => "the ordinary routes".to_owned(),
            EntryAction::Drop => "dropped".to_owned(),
            EntryAction::Rewrite(to) => format!("rewritten to {to}"),
        };
        back_end("ingress", entry, to);
    }
}
