//! HTTP/JSON over the Unix socket, and `/metrics`, `/healthz`, `/readyz` over TCP, on a thread of
//! their own: a listing, a scrape or a slow client never makes a BGP session wait. What needs state
//! is asked of the routing thread; metrics and health are read from what both share.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use prometheus::IntGauge;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};
use tokio::time::{Instant, Sleep};

use super::events::{Events, stamped};
use super::request::{
    ApiError, Caller, ErrorCode, PAGE_LEN_DEFAULT, PAGE_LEN_MAX, Paging, Reply, Request,
    RouteFilter, Target,
};
use super::socket;
use super::views::{self, Envelope, ErrorEnvelope, ErrorView, Event, EventView, HealthView};
use crate::config;
use crate::metrics::{ApiResult, Metrics};
use crate::types::{Family, MnId, Prefix};

/// Connections at a time, for each listener; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Octets of a request's body.
const BODY_LEN_MAX: usize = 256 * 1024;
/// Events written in one piece.
const EVENTS_AT_ONCE: usize = 64;
/// A scraper that says nothing for this long is disconnected, so that a few cannot keep all
/// connections for themselves.
const SCRAPER_IDLE_MAX: Duration = Duration::from_secs(120);

/// The running API. Dropping it stops the thread and removes the socket.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    socket: PathBuf,
    /// Where metrics are served, with the port that was chosen if it was 0.
    pub metrics: Option<SocketAddr>,
}

/// Opens the sockets and starts the thread. Errors name the socket.
pub fn start(
    api: &config::Api,
    metrics_listen: Option<SocketAddr>,
    caller: Caller,
    events: Events,
    metrics: Arc<Metrics>,
) -> io::Result<Server> {
    let unix = socket::bind(&api.socket, api.mode)?;
    let tcp = metrics_listen.map(listen_tcp).transpose()?;
    let metrics_address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let shared = Shared { caller, events, metrics };
    let serve = async move {
        let clients = shared.metrics.api.clients.clone();
        let unix = tokio::net::UnixListener::from_std(unix)?;
        let unix = Limited { clients: Some(clients), ..Limited::new(unix, None) };
        let api = axum::serve(unix, api_routes(shared.clone()));
        let scrape = async move {
            match tcp {
                Some(tcp) => {
                    let tcp = tokio::net::TcpListener::from_std(tcp)?;
                    let tcp = Limited::new(tcp, Some(SCRAPER_IDLE_MAX));
                    axum::serve(tcp, metrics_routes(shared)).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = api => result,
            result = scrape => result,
            // The sender's end is dropped to stop; readers of events are cut off with it.
            _ = stopped => Ok::<(), io::Error>(()),
        }
    };
    let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(serve) {
            tracing::error!(%error, "the API stopped");
        }
    })?;
    Ok(Server {
        stop: Some(stop),
        thread: Some(thread),
        socket: api.socket.clone(),
        metrics: metrics_address,
    })
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot serve metrics at {address}: {e}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported over there.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[derive(Clone)]
struct Shared {
    caller: Caller,
    events: Events,
    metrics: Arc<Metrics>,
}

fn metrics_routes(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

fn api_routes(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(|s: State<Shared>| ask(s, Ok(Request::Status))))
        .route("/v1/health", get(health))
        .route("/v1/bgp/neighbors", get(|s: State<Shared>| ask(s, Ok(Request::BgpNeighbors))))
        .route("/v1/bfd/sessions", get(|s: State<Shared>| ask(s, Ok(Request::BfdSessions))))
        .route("/v1/bgp/routes", get(bgp_routes))
        .route("/v1/bgp/route", get(bgp_route))
        .route("/v1/mobility/sessions", get(sessions))
        .route("/v1/mobility/session", get(session).delete(detach))
        .route("/v1/mobility/paths", get(paths))
        .route("/v1/mobility/attach", post(attach))
        .route("/v1/mobility/detach", post(detach))
        .route("/v1/mobility/move", post(mobility_move))
        .route("/v1/ctx/transfers", get(|s: State<Shared>| ask(s, Ok(Request::Transfers))))
        .route("/v1/ctx/context", get(context_get).put(context_put))
        .route("/v1/fib/routes", get(fib_routes))
        .route("/v1/fib/diff", get(|s: State<Shared>| ask(s, Ok(Request::FibDiff))))
        .route("/v1/trace", get(trace))
        .route("/v1/lisp/map-cache", get(map_cache))
        .route("/v1/lisp/registrations", get(registrations))
        .route("/v1/lisp/subscriptions", get(|s: State<Shared>| ask(s, Ok(Request::Subscriptions))))
        .route("/v1/lisp/probes", get(|s: State<Shared>| ask(s, Ok(Request::Probes))))
        .route("/v1/lisp/lookup", get(lookup))
        .route("/v1/explain/route", get(explain))
        .route("/v1/events", get(events))
        .route("/metrics", get(metrics))
        .fallback(|| async { refusal(&ApiError::new(ErrorCode::NotFound, "no such resource")) })
        .method_not_allowed_fallback(|| async {
            refusal(&ApiError::new(ErrorCode::BadRequest, "not a method of this resource"))
        })
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(shared)
}

/// The keys of all query strings; each handler takes its own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    family: Option<String>,
    within: Option<String>,
    neighbor: Option<String>,
    prefix: Option<String>,
    mn: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

type Parsed = Result<Query<Parameters>, axum::extract::rejection::QueryRejection>;

fn parameters(parsed: Parsed) -> Result<Parameters, ApiError> {
    let bad = |e: axum::extract::rejection::QueryRejection| {
        ApiError::new(ErrorCode::BadRequest, e.body_text())
    };
    parsed.map(|Query(parameters)| parameters).map_err(bad)
}

impl Parameters {
    fn paging(&self) -> Result<Paging, ApiError> {
        let bad = |what: String| ApiError::new(ErrorCode::BadRequest, what);
        if self.cursor.as_ref().is_some_and(|cursor| cursor.len() > 64) {
            return Err(bad("not a cursor".to_owned()));
        }
        let limit = match &self.limit {
            None => PAGE_LEN_DEFAULT,
            Some(text) => match text.parse() {
                Ok(limit) if (1..=PAGE_LEN_MAX).contains(&limit) => limit,
                Ok(_) | Err(_) => return Err(bad(format!("`limit` is 1 to {PAGE_LEN_MAX}"))),
            },
        };
        Ok(Paging { cursor: self.cursor.clone(), limit })
    }

    fn target(&self) -> Result<Target, ApiError> {
        match (&self.mn, &self.prefix) {
            (Some(mn), None) => mn_id(mn).map(Target::Mn),
            (None, Some(prefix)) => value("prefix", prefix).map(Target::Prefix),
            (Some(_), Some(_)) | (None, None) => {
                Err(ApiError::new(ErrorCode::BadRequest, "either `mn` or `prefix` is needed"))
            }
        }
    }

    fn mn(&self) -> Result<MnId, ApiError> {
        match &self.mn {
            Some(mn) => mn_id(mn),
            None => Err(ApiError::new(ErrorCode::BadRequest, "`mn` is needed")),
        }
    }
}

fn mn_id(text: &str) -> Result<MnId, ApiError> {
    MnId::new(text).map_err(|e| ApiError::new(ErrorCode::BadRequest, e.to_string()))
}

fn value<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|e: T::Err| ApiError::new(ErrorCode::BadRequest, format!("`{key}`: {text}: {e}")))
}

fn family(text: Option<&str>) -> Result<Family, ApiError> {
    match text {
        None | Some("ipv4") => Ok(Family::Ipv4),
        Some("ipv6") => Ok(Family::Ipv6),
        Some(_) => Err(ApiError::new(ErrorCode::BadRequest, "`family` is ipv4 or ipv6")),
    }
}

fn body<T: DeserializeOwned>(octets: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(octets)
        .map_err(|e| ApiError::new(ErrorCode::BadRequest, format!("the body: {e}")))
}

/// Asks the routing thread and shows what it says.
async fn ask(State(shared): State<Shared>, request: Result<Request, ApiError>) -> Response {
    let metrics = &shared.metrics.api;
    let timer = metrics.request_duration.start_timer();
    let reply = match request {
        Ok(request) => shared.caller.ask(request).await,
        Err(error) => Err(error),
    };
    timer.observe_duration();
    let result = if reply.is_ok() { ApiResult::Ok } else { ApiResult::Error };
    metrics.requests.get(result).inc();
    match reply {
        Ok(reply) => show(&reply),
        Err(error) => refusal(&error),
    }
}

fn show(reply: &Reply) -> Response {
    match reply {
        Reply::Status(data) => json("status", data),
        Reply::BgpNeighbors(data) => json("bgp-neighbors", data),
        Reply::BfdSessions(data) => json("bfd-sessions", data),
        Reply::BgpRoutes(data) => json("bgp-routes", data),
        Reply::BgpRoute(data) => json("bgp-route", data),
        Reply::Sessions(data) => json("mobility-sessions", data),
        Reply::Session(data) => json("mobility-session", data),
        Reply::Paths(data) => json("mobility-paths", data),
        Reply::Accepted(data) => json("accepted", data),
        Reply::Context(data) => json("context", data),
        Reply::Transfers(data) => json("ctx-transfers", data),
        Reply::FibRoutes(data) => json("fib-routes", data),
        Reply::FibDiff(data) => json("fib-diff", data),
        Reply::Trace(data) => json("trace", data),
        Reply::MapCache(data) => json("lisp-map-cache", data),
        Reply::Registrations(data) => json("lisp-registrations", data),
        Reply::Subscriptions(data) => json("lisp-subscriptions", data),
        Reply::Probes(data) => json("lisp-probes", data),
        Reply::Lookup(data) => json("lisp-lookup", data),
        Reply::Explain(data) => json("explain-route", data),
    }
}

fn json<T: Serialize>(kind: &str, data: &T) -> Response {
    let envelope = Envelope { version: views::VERSION, kind: kind.to_owned(), data };
    json_with(StatusCode::OK, &envelope)
}

fn json_with<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut text =
        serde_json::to_string(value).expect("views have string keys and no failing parts");
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn refusal(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code.status()).expect("the codes are constants");
    let error = ErrorView { code: error.code.as_str().to_owned(), message: error.message.clone() };
    json_with(status, &ErrorEnvelope { version: views::VERSION, error })
}

async fn bgp_routes(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = || {
        let p = parameters(parsed)?;
        let filter = RouteFilter {
            within: p.within.as_deref().map(|text| value("within", text)).transpose()?,
            neighbor: p.neighbor.as_deref().map(|text| value("neighbor", text)).transpose()?,
        };
        // What is asked to be inside a prefix is of its family.
        let family = match (p.family.as_deref(), filter.within) {
            (None, Some(within)) => within.family(),
            (text, _) => family(text)?,
        };
        Ok(Request::BgpRoutes { family, filter, paging: p.paging()? })
    };
    ask(shared, request()).await
}

async fn bgp_route(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = || {
        let p = parameters(parsed)?;
        let prefix = p.prefix.as_deref().unwrap_or_default();
        Ok(Request::BgpRoute(value("prefix", prefix)?))
    };
    ask(shared, request()).await
}

async fn sessions(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.paging()).map(Request::Sessions);
    ask(shared, request).await
}

async fn paths(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.paging()).map(Request::Paths);
    ask(shared, request).await
}

async fn session(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.target()).map(Request::Session);
    ask(shared, request).await
}

async fn fib_routes(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.paging()).map(Request::FibRoutes);
    ask(shared, request).await
}

async fn trace(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.mn()).map(Request::Trace);
    ask(shared, request).await
}

async fn map_cache(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.paging()).map(Request::MapCache);
    ask(shared, request).await
}

async fn registrations(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.paging()).map(Request::Registrations);
    ask(shared, request).await
}

fn one_prefix(parsed: Parsed) -> Result<Prefix, ApiError> {
    value("prefix", parameters(parsed)?.prefix.as_deref().unwrap_or_default())
}

async fn lookup(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = one_prefix(parsed).and_then(|prefix| match prefix.is_host() {
        true => Ok(Request::Lookup(prefix.addr())),
        false => Err(ApiError::new(ErrorCode::BadRequest, "`prefix`: one address is looked up")),
    });
    ask(shared, request).await
}

async fn explain(shared: State<Shared>, parsed: Parsed) -> Response {
    ask(shared, one_prefix(parsed).map(Request::Explain)).await
}

async fn context_get(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.mn()).map(Request::ContextGet);
    ask(shared, request).await
}

async fn context_put(shared: State<Shared>, octets: Bytes) -> Response {
    ask(shared, body(&octets).map(Request::ContextPut)).await
}

async fn attach(shared: State<Shared>, octets: Bytes) -> Response {
    let request = body::<super::Attach>(&octets).and_then(|attach| {
        if attach.prefixes.is_empty() {
            return Err(ApiError::new(ErrorCode::BadRequest, "`prefixes` is empty"));
        }
        Ok(Request::Attach(attach))
    });
    ask(shared, request).await
}

async fn detach(shared: State<Shared>, parsed: Parsed) -> Response {
    let request = parameters(parsed).and_then(|p| p.target()).map(Request::Detach);
    ask(shared, request).await
}

async fn mobility_move(shared: State<Shared>, octets: Bytes) -> Response {
    ask(shared, body(&octets).map(Request::Move)).await
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text()).into_response()
}

fn view(shared: &Shared) -> HealthView {
    let health = &shared.metrics.health;
    let alive = health.is_alive();
    HealthView { alive, ready: alive && health.is_ready(), waiting_for: health.waiting_for() }
}

async fn health(State(shared): State<Shared>) -> Response {
    json("health", &view(&shared))
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match view(&shared).alive {
        true => (StatusCode::OK, "alive\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the routing thread is stuck\n").into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let view = view(&shared);
    match (view.alive, view.ready) {
        (true, true) => (StatusCode::OK, "ready\n".to_owned()).into_response(),
        (true, false) => {
            let text = format!("waiting for {}\n", view.waiting_for.join(", "));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        (false, _) => {
            let text = "the routing thread is stuck\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// A reader of the event stream, counted as long as it lives.
struct Reader {
    events: broadcast::Receiver<Arc<EventView>>,
    metrics: Arc<Metrics>,
    /// It was told that it is too slow.
    done: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.metrics.api.event_readers.dec();
    }
}

impl Reader {
    /// The next lines, as many as there are; `None` ends the response.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut lines = Vec::new();
        let mut event = self.events.recv().await;
        for _ in 0..EVENTS_AT_ONCE {
            match event {
                Ok(event) => line(&event, &mut lines),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    self.done = true;
                    self.metrics.api.event_readers_dropped.inc();
                    line(&stamped(Event::TooSlow { missed }), &mut lines);
                    break;
                }
                Err(broadcast::error::RecvError::Closed) => {
                    self.done = true;
                    break;
                }
            }
            event = match self.events.try_recv() {
                Ok(event) => Ok(event),
                Err(broadcast::error::TryRecvError::Empty) => break,
                Err(broadcast::error::TryRecvError::Closed) => {
                    Err(broadcast::error::RecvError::Closed)
                }
                Err(broadcast::error::TryRecvError::Lagged(n)) => {
                    Err(broadcast::error::RecvError::Lagged(n))
                }
            };
        }
        (!lines.is_empty()).then(|| Bytes::from(lines))
    }
}

fn line(event: &EventView, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, event).expect("events have string keys and no failing parts");
    out.push(b'\n');
}

async fn events(State(shared): State<Shared>) -> Response {
    let metrics = Arc::clone(&shared.metrics);
    metrics.api.event_readers.inc();
    let reader = Reader { events: shared.events.subscribe(), metrics, done: false };
    let lines = stream::unfold(reader, |mut reader| async move {
        let lines = reader.next().await?;
        Some((Ok::<_, Infallible>(lines), reader))
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response()
}

/// A listener with a limit of connections; at the limit the next waits in the kernel's queue.
struct Limited<L> {
    listener: L,
    permits: Arc<Semaphore>,
    idle_max: Option<Duration>,
    /// Counts the connections.
    clients: Option<IntGauge>,
}

impl<L> Limited<L> {
    fn new(listener: L, idle_max: Option<Duration>) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle_max,
            clients: None,
        }
    }
}

impl<L: axum::serve::Listener> axum::serve::Listener for Limited<L> {
    type Io = Guarded<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (io, address) = self.listener.accept().await;
        let idle = self.idle_max.map(|max| (max, Box::pin(tokio::time::sleep(max))));
        if let Some(clients) = &self.clients {
            clients.inc();
        }
        (Guarded { io, idle, clients: self.clients.clone(), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that gives its permit back, and ends when it is silent too long.
struct Guarded<S> {
    io: S,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    clients: Option<IntGauge>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Drop for Guarded<S> {
    fn drop(&mut self) {
        if let Some(clients) = &self.clients {
            clients.dec();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if let Some((max, sleep)) = &mut this.idle {
                    sleep.as_mut().reset(Instant::now() + *max);
                }
                Poll::Ready(result)
            }
            Poll::Pending => match &mut this.idle {
                Some((_, sleep)) => {
                    sleep.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
                }
                None => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
