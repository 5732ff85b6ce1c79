//! Answers to the API: each call is one short turn of the routing thread, a listing a page of one.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{Clock, Core, State};
use super::{fib_diff, mapping_views, views};
use crate::api::views::{AcceptedView, ContextView, Page};
use crate::api::{
    ApiError, Attach, Call, ErrorCode, Move, Paging, Reply, Request, RouteFilter, Target,
};
use crate::node::RequestError;
use crate::proto::bgp::rib::{self, Cursor};
use crate::types::seam::{Context, ContextPrefix};
use crate::types::{Family, Instant, MnId};

/// Answers calls for ever.
pub async fn run(core: Rc<Core>, mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        let (request, answer) = call.into_parts();
        match request {
            Request::FibDiff => fib_diff::answer(&core, answer),
            request => answer.answer(core.answer(request)),
        }
        // Octets of peers come before the next page of a listing.
        tokio::task::yield_now().await;
    }
}

type Answered = Result<Reply, ApiError>;

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::NoMobility => ErrorCode::NotConfigured,
            RequestError::UnknownNode(_) | RequestError::UnknownPrefix(_) => ErrorCode::NotFound,
            RequestError::UnknownAnchor(_) | RequestError::NoNextHop(_) => ErrorCode::BadRequest,
            RequestError::NotInPool(_)
            | RequestError::NotAuthorised { .. }
            | RequestError::ElsewhereAttached(_) => ErrorCode::Refused,
            RequestError::OtherNode(_) | RequestError::Older(_) | RequestError::AlreadyHere => {
                ErrorCode::Conflict
            }
            RequestError::Location(_) => ErrorCode::Full,
        };
        Self::new(code, error.to_string())
    }
}

impl Core {
    fn answer(self: &Rc<Self>, request: Request) -> Answered {
        match request {
            Request::Attach(attach) => self.attach(&attach),
            Request::Detach(target) => self.detach(&target),
            Request::Move(request) => self.move_node(&request),
            Request::ContextPut(context) => self.put_context(&context),
            Request::Lookup(eid) => {
                let miss = self.turn(|node, now, out| node.look_up(eid, now, out));
                mapping_views::lookup(&self.state.borrow(), eid, miss).map(Reply::Lookup)
            }
            Request::MapCache(paging) => {
                let now = self.now();
                let page = mapping_views::map_cache(&self.state.borrow(), &paging, now);
                page.map(|mut page| {
                    mapping_views::count(&mut self.state.borrow_mut(), &mut page.items);
                    Reply::MapCache(page)
                })
            }
            question => {
                let now = self.now();
                ask(&self.state.borrow(), question, &self.clock, now)
            }
        }
    }

    fn attach(self: &Rc<Self>, request: &Attach) -> Answered {
        let Attach { mn, prefixes, anchor, fe_e, lifetime_s } = request;
        if prefixes.is_empty() {
            return Err(ApiError::new(ErrorCode::BadRequest, "no prefix to attach"));
        }
        let lifetime = lifetime_s.map(|s| Duration::from_secs(s.into()));
        self.turn(|node, now, out| {
            let at = anchor.unwrap_or(node.own());
            for &prefix in prefixes {
                node.place(mn, prefix, at, *fe_e, lifetime, now, out)?;
            }
            Ok::<_, RequestError>(())
        })?;
        self.accepted(mn)
    }

    fn detach(self: &Rc<Self>, target: &Target) -> Answered {
        let before = |state: &State| match target {
            Target::Mn(mn) => (mn.clone(), state.node.location.prefixes_of(mn).to_vec()),
            Target::Prefix(p) => {
                let mn = state.node.location.find(*p).map(|b| b.mn.clone());
                (mn.unwrap_or_else(|| MnId::from_mac(Default::default())), vec![*p])
            }
        };
        let (mn, prefixes) = before(&self.state.borrow());
        let generation = self.state.borrow().node.location.generation_of(&mn);
        self.turn(|node, now, out| match target {
            Target::Mn(mn) => node.detach(mn, None, now, out),
            Target::Prefix(p) => node.detach_prefix(*p, now, out),
        })?;
        Ok(Reply::Accepted(AcceptedView { mn, prefixes, anchor: None, generation }))
    }

    fn move_node(self: &Rc<Self>, request: &Move) -> Answered {
        let Move { mn, to, fe_e } = request;
        self.turn(|node, now, out| node.move_node(mn, *to, *fe_e, now, out))?;
        self.accepted(mn)
    }

    fn put_context(self: &Rc<Self>, view: &ContextView) -> Answered {
        let context = Context {
            mn: view.mn.clone(),
            generation: view.generation,
            anchor: view.anchor,
            prefixes: view
                .prefixes
                .iter()
                .map(|p| ContextPrefix { prefix: p.prefix, home: p.home, lifetime_s: p.lifetime_s })
                .collect(),
            attributes: views::attributes_from(&view.attributes)?,
            path: None,
        };
        self.turn(|node, now, out| node.put_context(&context, now, out))?;
        self.accepted(&view.mn)
    }

    fn accepted(&self, mn: &MnId) -> Answered {
        let state = self.state.borrow();
        let location = &state.node.location;
        let prefixes = location.prefixes_of(mn).to_vec();
        let anchor = prefixes.first().and_then(|&p| location.find(p)).map(|b| b.anchor);
        let generation = location.generation_of(mn);
        Ok(Reply::Accepted(AcceptedView { mn: mn.clone(), prefixes, anchor, generation }))
    }
}

/// Questions only read.
fn ask(state: &State, request: Request, clock: &Clock, now: Instant) -> Answered {
    let node = &state.node;
    match request {
        Request::Status => Ok(Reply::Status(Box::new(views::status(state, now)))),
        Request::BgpNeighbors => Ok(Reply::BgpNeighbors(views::neighbors(state, now))),
        Request::BfdSessions => Ok(Reply::BfdSessions(views::bfd_sessions(state, now))),
        Request::BgpRoutes { family, filter, paging } => routes(state, family, &filter, &paging),
        Request::BgpRoute(prefix) => {
            let speaker = node.speaker.as_ref().ok_or_else(no_bgp)?;
            let route = speaker.rib().find(prefix).ok_or_else(|| {
                ApiError::new(ErrorCode::NotFound, format!("no route for {prefix}"))
            })?;
            Ok(Reply::BgpRoute(views::route_detail(state, &route)))
        }
        Request::Sessions(paging) => {
            let page = node.location.page(cursor(&paging)?, paging.limit);
            Ok(Reply::Sessions(Page {
                items: views::sessions(state, page.bindings.iter().copied(), now),
                next: page.next.map(|n| n.to_string()),
            }))
        }
        Request::Paths(paging) => {
            let transient = state.transient.as_ref().ok_or_else(|| {
                let what = "packets wait nowhere here: there is no [transient]";
                ApiError::new(ErrorCode::NotConfigured, what)
            })?;
            let after = paging.cursor.as_deref().map(str::parse).transpose().map_err(|_| {
                ApiError::new(ErrorCode::BadRequest, "not a cursor of this listing")
            })?;
            let found = transient.paths(after, paging.limit);
            let next = (found.len() == paging.limit).then(|| found.last()).flatten();
            Ok(Reply::Paths(Page {
                next: next.map(|path| path.prefix.to_string()),
                items: found.iter().map(|path| views::path(state, path, transient.now())).collect(),
            }))
        }
        Request::Session(target) => {
            let prefixes = match &target {
                Target::Mn(mn) => node.location.prefixes_of(mn).to_vec(),
                Target::Prefix(p) => vec![*p],
            };
            let bound = prefixes.iter().filter_map(|&p| node.location.find(p));
            let found = views::sessions(state, bound, now);
            if found.is_empty() {
                let what = match target {
                    Target::Mn(mn) => format!("no mobile node {mn} here"),
                    Target::Prefix(p) => format!("no binding of {p} here"),
                };
                return Err(ApiError::new(ErrorCode::NotFound, what));
            }
            Ok(Reply::Session(found))
        }
        Request::ContextGet(mn) => Ok(Reply::Context(views::context(&node.get_context(&mn, now)?))),
        Request::Transfers => Ok(Reply::Transfers(views::transfers(state, now))),
        Request::FibRoutes(paging) => {
            let (items, next) = views::fib_routes(state, cursor(&paging)?, paging.limit);
            Ok(Reply::FibRoutes(Page { items, next: next.map(|n| n.to_string()) }))
        }
        Request::Trace(mn) => Ok(Reply::Trace(views::traces(state, &mn, clock))),
        Request::Registrations(paging) => {
            mapping_views::registrations(state, &paging, now).map(Reply::Registrations)
        }
        Request::Subscriptions => {
            mapping_views::subscriptions(state, now).map(Reply::Subscriptions)
        }
        Request::Probes => mapping_views::probes(state).map(Reply::Probes),
        Request::Explain(prefix) => {
            Ok(Reply::Explain(Box::new(mapping_views::explain(state, prefix, now))))
        }
        Request::Attach(_)
        | Request::Detach(_)
        | Request::Move(_)
        | Request::ContextPut(_)
        | Request::MapCache(_)
        | Request::FibDiff
        | Request::Lookup(_) => Err(ApiError::new(ErrorCode::BadRequest, "not a question")),
    }
}

fn no_bgp() -> ApiError {
    ApiError::new(ErrorCode::NotConfigured, "no BGP speaker is configured here")
}

fn cursor(paging: &Paging) -> Result<u32, ApiError> {
    match &paging.cursor {
        None => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| ApiError::new(ErrorCode::BadRequest, "not a cursor of this listing")),
    }
}

fn routes(state: &State, family: Family, filter: &RouteFilter, paging: &Paging) -> Answered {
    let speaker = state.node.speaker.as_ref().ok_or_else(no_bgp)?;
    let peer = match filter.neighbor {
        None => None,
        Some(address) => Some(speaker.find_neighbor(address).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("no neighbor {address} is configured"))
        })?),
    };
    let rib_filter = rib::RouteFilter { peer, within: filter.within, best_only: false };
    let at = Cursor::from_number(cursor(paging)?);
    let (found, next) = speaker.rib().routes(family, at, &rib_filter, paging.limit);
    let items = found.iter().filter_map(|route| views::route(state, route, peer)).collect();
    Ok(Reply::BgpRoutes(Page { items, next: next.map(|c| c.number().to_string()) }))
}
