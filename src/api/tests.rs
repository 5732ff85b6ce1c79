//! The API over a real Unix socket, with something simple in the place of the routing thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::sync::mpsc;

use super::client::{Client, ClientError, in_query};
use super::views::*;
use super::*;
use crate::config;
use crate::metrics::{Metrics, Waiting};
use crate::types::{AnchorId, Generation, Locator, MnId, Prefix};

pub(crate) struct Fixture {
    pub client: Client,
    pub events: Events,
    pub metrics: Arc<Metrics>,
    server: Option<Server>,
    directory: PathBuf,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server = None;
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A server, and a thread that answers `handle(request)`.
pub(crate) fn fixture(
    handle: impl FnMut(Request) -> Option<Result<Reply, ApiError>> + Send + 'static,
) -> Fixture {
    let (caller, calls) = channel();
    std::thread::spawn(move || answer(calls, handle));
    start_with(caller)
}

fn answer(
    mut calls: mpsc::Receiver<Call>,
    mut handle: impl FnMut(Request) -> Option<Result<Reply, ApiError>>,
) {
    let mut forgotten = Vec::new();
    while let Some(call) = calls.blocking_recv() {
        match handle(call.request.clone()) {
            Some(reply) => call.answer(reply),
            None => forgotten.push(call.into_parts()),
        }
    }
}

fn start_with(caller: Caller) -> Fixture {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory =
        std::env::temp_dir().join(format!("killick-api-{}-{number}", std::process::id()));
    let api = config::Api {
        socket: directory.join("api.sock"),
        stream_socket: directory.join("stream.sock"),
        mode: 0o600,
    };
    let events = Events::new();
    let metrics = Arc::new(Metrics::new(&[], &[]));
    metrics.health.beat();
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let server = start(&api, listen, caller, events.clone(), Arc::clone(&metrics)).unwrap();
    let client = Client::new(&api.socket);
    Fixture { client, events, metrics, server: Some(server), directory }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
    })
}

fn get(fixture: &Fixture, resource: &str) -> Value {
    let octets = block_on(fixture.client.get(resource)).unwrap_or_else(|e| panic!("{e}"));
    serde_json::from_slice(&octets).unwrap()
}

fn refused(fixture: &Fixture, resource: &str) -> (String, String) {
    match block_on(fixture.client.get(resource)) {
        Err(ClientError::Refused { code, message }) => (code, message),
        other => panic!("{resource}: {other:?}"),
    }
}

pub(crate) fn session_view(n: u32) -> SessionView {
    SessionView {
        mn: MnId::new(&format!("mn{n}")).unwrap(),
        prefix: Prefix::v4(0x0a00_0000 + n, 32).unwrap(),
        anchor: AnchorId(7),
        anchor_name: Some("a7".to_owned()),
        fe_e: Locator { ipv4: Some([192, 0, 2, 7].into()), ipv6: None },
        home: None,
        generation: Generation(3),
        state: "attached".to_owned(),
        announced: "settled".to_owned(),
        since_s: Some(5),
        lifetime_s: None,
        attachment: None,
    }
}

#[test]
fn listings_are_walked_by_cursor() {
    let fixture = fixture(|request| {
        let Request::Sessions(paging) = request else { panic!("{request:?}") };
        let from: u32 = paging.cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let to = (from + paging.limit as u32).min(25);
        let next = (to < 25).then(|| to.to_string());
        Some(Ok(Reply::Sessions(Page { items: (from..to).map(session_view).collect(), next })))
    });
    let mut seen = Vec::new();
    let mut resource = "/v1/mobility/sessions?limit=10".to_owned();
    loop {
        let page = get(&fixture, &resource);
        assert_eq!(page["version"], VERSION);
        assert_eq!(page["kind"], "mobility-sessions");
        let items = page["data"]["items"].as_array().unwrap().clone();
        seen.extend(items.iter().map(|i| i["prefix"].as_str().unwrap().to_owned()));
        match page["data"]["next"].as_str() {
            Some(next) => resource = format!("/v1/mobility/sessions?limit=10&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 25);
    assert_eq!(seen[24], "10.0.0.24/32");
    assert_eq!(
        get(&fixture, "/v1/mobility/sessions")["data"]["items"][0]["fe-e"]["ipv4"],
        "192.0.2.7"
    );
}

/// What is on the wire becomes this request, and nothing else reaches the routing thread.
#[test]
fn each_resource_asks_its_question() {
    let (sender, asked) = std::sync::mpsc::channel();
    let fixture = fixture(move |request| {
        sender.send(request).unwrap();
        Some(Err(ApiError::new(ErrorCode::NotFound, "nothing here")))
    });
    let paging = |limit| Paging { cursor: None, limit };
    let mn = || MnId::new("a&b=c").unwrap();
    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let rows = [
        ("/v1/status".to_owned(), Request::Status),
        ("/v1/bgp/neighbors".to_owned(), Request::BgpNeighbors),
        (
            "/v1/bgp/routes?within=2001:db8::/32&neighbor=192.0.2.1&limit=1000&cursor=x".to_owned(),
            Request::BgpRoutes {
                family: crate::types::Family::Ipv6,
                filter: RouteFilter {
                    within: Some(prefix("2001:db8::/32")),
                    neighbor: Some("192.0.2.1".parse().unwrap()),
                },
                paging: Paging { cursor: Some("x".to_owned()), limit: 1000 },
            },
        ),
        ("/v1/bgp/route?prefix=10.0.0.0/8".to_owned(), Request::BgpRoute(prefix("10.0.0.0/8"))),
        (
            format!("/v1/mobility/session?mn={}", in_query("a&b=c")),
            Request::Session(Target::Mn(mn())),
        ),
        (
            "/v1/mobility/session?prefix=10.0.0.1".to_owned(),
            Request::Session(Target::Prefix(prefix("10.0.0.1/32"))),
        ),
        ("/v1/ctx/transfers".to_owned(), Request::Transfers),
        (format!("/v1/ctx/context?mn={}", in_query("a&b=c")), Request::ContextGet(mn())),
        ("/v1/fib/routes?limit=1".to_owned(), Request::FibRoutes(paging(1))),
        (format!("/v1/trace?mn={}", in_query("a&b=c")), Request::Trace(mn())),
        ("/v1/lisp/map-cache?limit=1".to_owned(), Request::MapCache(paging(1))),
        ("/v1/lisp/registrations?limit=1".to_owned(), Request::Registrations(paging(1))),
        ("/v1/lisp/subscriptions".to_owned(), Request::Subscriptions),
        ("/v1/lisp/probes".to_owned(), Request::Probes),
        (
            "/v1/lisp/lookup?prefix=10.0.0.1".to_owned(),
            Request::Lookup("10.0.0.1".parse().unwrap()),
        ),
        ("/v1/explain/route?prefix=10.0.0.0/8".to_owned(), Request::Explain(prefix("10.0.0.0/8"))),
    ];
    for (resource, request) in rows {
        assert_eq!(refused(&fixture, &resource).0, "not-found", "{resource}");
        assert_eq!(asked.recv().unwrap(), request, "{resource}");
    }
    let post = |resource: &str, body: &str| {
        let request = fixture.client.request(Method::POST, resource, body.as_bytes().to_vec());
        block_on(request).unwrap_err().to_string()
    };
    let attach = r#"{"mn":"x","prefixes":["10.0.0.1"],"fe-e":{"ipv4":"192.0.2.9"}}"#;
    assert_eq!(post("/v1/mobility/attach", attach), "nothing here");
    let Request::Attach(attach) = asked.recv().unwrap() else { panic!() };
    assert_eq!(attach.prefixes, [prefix("10.0.0.1/32")]);
    assert_eq!(post("/v1/mobility/move", r#"{"mn":"x","to":"192.0.2.9"}"#), "nothing here");
    assert!(matches!(asked.recv().unwrap(), Request::Move(Move { fe_e: None, .. })));
    assert_eq!(post("/v1/mobility/detach?mn=x", ""), "nothing here");
    assert!(matches!(asked.recv().unwrap(), Request::Detach(Target::Mn(_))));

    for (resource, what) in [
        ("/v1/bgp/routes?family=ipx", "ipv4 or ipv6"),
        ("/v1/bgp/routes?limit=0", "`limit` is 1 to 1000"),
        ("/v1/bgp/routes?limit=1001", "`limit` is 1 to 1000"),
        ("/v1/bgp/routes?colour=red", "unknown field `colour`"),
        ("/v1/bgp/routes?within=10.0.0.1/8", "bits are set past"),
        ("/v1/bgp/route?prefix=x", "not an IP prefix"),
        ("/v1/lisp/lookup?prefix=10.0.0.0/8", "one address is looked up"),
        ("/v1/mobility/session", "either `mn` or `prefix`"),
        ("/v1/mobility/session?mn=a&prefix=10.0.0.1", "either `mn` or `prefix`"),
        ("/v1/mobility/session?mn=%20", "printable ASCII"),
        ("/v1/trace", "`mn` is needed"),
    ] {
        let (code, message) = refused(&fixture, resource);
        assert_eq!(code, "bad-request", "{resource}");
        assert!(message.contains(what), "{resource}: {message}");
    }
    assert_eq!(refused(&fixture, "/v2/status").0, "not-found");
    assert!(post("/v1/status", "").contains("not a method"));
    assert!(post("/v1/mobility/attach", r#"{"mn":"x","prefixes":[]}"#).contains("is empty"));
    assert!(post("/v1/mobility/attach", r#"{"mn":"x","speed":1}"#).contains("unknown field"));
    assert!(asked.try_recv().is_err(), "a bad question was passed on");
    let text = fixture.metrics.text();
    assert!(text.contains("killick_api_requests_total{result=\"error\"} 32"), "{text}");
}

#[test]
fn health_is_answered_when_the_routing_thread_does_not_answer() {
    let (caller, calls) = channel();
    let fixture = start_with(caller);
    block_on(async {
        // All connections but one wait for an answer.
        let waiting = (0..63).map(|_| fixture.client.get("/v1/status"));
        tokio::select! {
            _ = futures_util::future::join_all(waiting) => panic!("nobody answers"),
            health = async {
                while calls.len() < 63 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                fixture.client.get("/v1/health").await
            } => assert!(health.unwrap().starts_with(b"{\"version\":1")),
        }
    });
    drop(calls);
    assert_eq!(refused(&fixture, "/v1/status").0, "busy");
}

#[test]
fn a_full_queue_is_busy_at_once() {
    let (caller, calls) = channel();
    block_on(async {
        let mut waiting = Vec::new();
        for _ in 0..super::request::CALLS_WAITING_MAX {
            let caller = caller.clone();
            waiting.push(tokio::spawn(async move { caller.ask(Request::Status).await }));
        }
        while calls.len() < super::request::CALLS_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let error = caller.ask(Request::Status).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy);
        drop(calls);
        for answer in waiting {
            assert_eq!(answer.await.unwrap().unwrap_err().code, ErrorCode::Busy);
        }
    });
}

fn left(n: u32) -> Event {
    Event::Left {
        mn: MnId::new(&format!("mn{n}")).unwrap(),
        reason: crate::types::seam::LeaveReason::Api,
    }
}

#[test]
fn events_are_streamed_and_a_slow_reader_is_dropped() {
    let fixture = fixture(|_| None);
    fixture.events.send(left(0)); // Nobody listens.
    block_on(async {
        let mut lines = fixture.client.lines("/v1/events").await.unwrap();
        while !fixture.events.has_readers() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fixture.events.send(left(1));
        let line = lines.next().await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(event["event"], "left");
        assert_eq!(event["mn"], "mn1");
        assert_eq!(event["version"], VERSION);
        assert!(event["unix-us"].as_u64().unwrap() > 1_700_000_000_000_000, "{event}");

        // More than the ring and all buffers on the way hold, while nothing is read.
        for n in 0..events::EVENTS_KEPT as u32 * 4 {
            fixture.events.send(left(n));
            if n % 1000 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let mut last = Vec::new();
        while let Some(Ok(piece)) = lines.next().await {
            last.extend_from_slice(&piece);
        }
        let text = String::from_utf8(last).unwrap();
        let last: EventView = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(matches!(last.event, Event::TooSlow { missed } if missed > 0), "{last:?}");
    });
    let text = fixture.metrics.text();
    assert!(text.contains("killick_api_event_readers_dropped_total 1"), "{text}");
    assert!(text.contains("killick_api_event_readers 0"), "{text}");
}

#[test]
fn metrics_and_health_are_served_over_tcp() {
    use std::io::{Read, Write};
    let fixture = fixture(|_| None);
    let address = fixture.server.as_ref().unwrap().metrics.unwrap();
    let ask = |path: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let metrics = ask("/metrics");
    assert!(
        metrics.starts_with("HTTP/1.1 200") && metrics.contains("killick_ready 0"),
        "{metrics}"
    );
    assert!(ask("/healthz").starts_with("HTTP/1.1 200"));
    let answer = ask("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("waiting for sockets, store, kernel, routes"), "{answer}");
    for what in Waiting::ALL {
        fixture.metrics.health.done(what);
    }
    assert!(ask("/readyz").starts_with("HTTP/1.1 200"));
    assert!(ask("/v1/status").starts_with("HTTP/1.1 404"), "the API is not served over TCP");
}

#[test]
fn the_socket_is_gone_after_the_end() {
    let mut fixture = fixture(|_| None);
    fixture.server = None;
    let error = block_on(fixture.client.get("/v1/status")).unwrap_err();
    assert!(matches!(error, ClientError::NotRunning(_)), "{error}");
    assert!(error.to_string().contains("api.sock: is it running?"), "{error}");
}

#[test]
fn error_codes_have_their_own_words() {
    let words: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(words.len(), ErrorCode::ALL.len());
    assert!(ErrorCode::ALL.iter().all(|c| (400..600).contains(&c.status())));
}
