//! What the API asks of the routing thread, and how: a bounded queue of [`Call`]s, each with a place
//! for its answer. The routing thread takes a few between its other work and answers each by
//! `call.answer(…)`; a listing is answered a page at a time, so none of them takes long.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::lisp_views::{
    ExplainView, LookupView, MapCacheView, ProbeView, RegistrationView, SubscriptionView,
};
pub use super::stream::Target;
use super::views::{
    AcceptedView, BfdSessionView, ContextView, FibDiffView, FibRouteView, NeighborView, Page,
    PathView, RouteDetailView, RouteView, SessionView, StatusView, TraceView, TransferView,
};
use crate::types::{AnchorId, Family, Locator, MnId, Prefix};

/// Calls that wait for the routing thread. The next is answered "busy" at once.
pub const CALLS_WAITING_MAX: usize = 256;
/// Items on a page, at most and when nothing is asked.
pub const PAGE_LEN_MAX: usize = 1_000;
pub const PAGE_LEN_DEFAULT: usize = 200;
/// How long the API waits for an answer.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// The same for what has to read the whole kernel table, twice, millions of routes perhaps.
pub const COMPARISON_TIME_MAX: Duration = Duration::from_secs(120);

/// Which part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    /// As a page's `next`; `None` is the beginning. At most 64 octets.
    pub cursor: Option<String>,
    /// 1 to [`PAGE_LEN_MAX`].
    pub limit: usize,
}

/// Which routes; absent is "any".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// This prefix and what is inside.
    pub within: Option<Prefix>,
    /// Learnt from this neighbour.
    pub neighbor: Option<IpAddr>,
}

/// One field per question; the answer is the [`Reply`] of the same name.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Status,
    BgpNeighbors,
    BfdSessions,
    BgpRoutes {
        family: Family,
        filter: RouteFilter,
        paging: Paging,
    },
    BgpRoute(Prefix),
    Sessions(Paging),
    Session(Target),
    Paths(Paging),
    Attach(Attach),
    Detach(Target),
    Move(Move),
    ContextGet(MnId),
    ContextPut(ContextView),
    Transfers,
    FibRoutes(Paging),
    /// Answered when the kernel has been read, in slices.
    FibDiff,
    /// The timelines of one node, newest first.
    Trace(MnId),
    MapCache(Paging),
    Registrations(Paging),
    Subscriptions,
    Probes,
    /// Asks the mapping system when the answer is not here yet.
    Lookup(IpAddr),
    Explain(Prefix),
}

/// Body of `POST /v1/mobility/attach`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attach {
    pub mn: MnId,
    pub prefixes: Vec<Prefix>,
    /// Absent: this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<AnchorId>,
    /// Absent: as configured or reported for the anchor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fe_e: Option<Locator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_s: Option<u32>,
}

/// Body of `POST /v1/mobility/move`: the node will be (predictive) or is at `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Move {
    pub mn: MnId,
    pub to: AnchorId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fe_e: Option<Locator>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Status(Box<StatusView>),
    BgpNeighbors(Vec<NeighborView>),
    BfdSessions(Vec<BfdSessionView>),
    BgpRoutes(Page<RouteView>),
    BgpRoute(RouteDetailView),
    Sessions(Page<SessionView>),
    /// All prefixes of one node.
    Session(Vec<SessionView>),
    Paths(Page<PathView>),
    Accepted(AcceptedView),
    Context(ContextView),
    Transfers(Vec<TransferView>),
    FibRoutes(Page<FibRouteView>),
    FibDiff(Box<FibDiffView>),
    Trace(Vec<TraceView>),
    MapCache(Page<MapCacheView>),
    Registrations(Page<RegistrationView>),
    Subscriptions(Vec<SubscriptionView>),
    Probes(Vec<ProbeView>),
    Lookup(LookupView),
    Explain(Box<ExplainView>),
}

/// Why there is no reply. The word goes into the JSON, the number into the status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The question itself is wrong.
    BadRequest,
    NotFound,
    /// It may not be done: outside the pools, not this peer's to claim, another mode.
    Refused,
    /// It contradicts newer state.
    Conflict,
    /// A table or queue is full.
    Full,
    Busy,
    Timeout,
    /// A part of the daemon that the answer needs is not configured.
    NotConfigured,
}

impl ErrorCode {
    pub const ALL: [Self; 8] = [
        Self::BadRequest,
        Self::NotFound,
        Self::Refused,
        Self::Conflict,
        Self::Full,
        Self::Busy,
        Self::Timeout,
        Self::NotConfigured,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::NotFound => "not-found",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::NotConfigured => "not-configured",
        }
    }

    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Refused => 403,
            Self::Conflict => 409,
            Self::Full => 507,
            Self::Busy => 503,
            Self::Timeout => 504,
            Self::NotConfigured => 501,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// One sentence for the operator.
    pub message: String,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A request that waits for its answer. Dropping it answers "busy".
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    reply: oneshot::Sender<Result<Reply, ApiError>>,
}

impl Call {
    /// Whoever asked may be gone; that is no concern of the routing thread.
    pub fn answer(self, reply: Result<Reply, ApiError>) {
        let _ = self.reply.send(reply);
    }

    /// The request, and where its answer goes, for an answer that has to wait for something.
    pub fn into_parts(self) -> (Request, Answer) {
        (self.request, Answer(self.reply))
    }
}

/// Where the answer of a [`Call`] goes.
#[derive(Debug)]
pub struct Answer(oneshot::Sender<Result<Reply, ApiError>>);

impl Answer {
    pub fn answer(self, reply: Result<Reply, ApiError>) {
        let _ = self.0.send(reply);
    }
}

/// The asking end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(mpsc::Sender<Call>);

/// The asking end for the API and the answering end for the routing thread.
pub fn channel() -> (Caller, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(CALLS_WAITING_MAX);
    (Caller(sender), receiver)
}

impl Caller {
    pub async fn ask(&self, request: Request) -> Result<Reply, ApiError> {
        let busy = || ApiError::new(ErrorCode::Busy, "the daemon is busy or stopping; try again");
        let (reply, answer) = oneshot::channel();
        let time_max = match request {
            Request::FibDiff => COMPARISON_TIME_MAX,
            _ => ANSWER_TIME_MAX,
        };
        self.0.try_send(Call { request, reply }).map_err(|_| busy())?;
        match tokio::time::timeout(time_max, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Err(busy()),
            Err(_) => Err(ApiError::new(
                ErrorCode::Timeout,
                format!("no answer within {} s", time_max.as_secs()),
            )),
        }
    }
}
