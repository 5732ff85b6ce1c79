//! Context transfer links: one TLS stream to each other killick, kept up for ever.
//!
//! Of a pair, the lower anchor id dials and the other listens, so there are never two streams to
//! choose from. The stream's octets go through [`cxtp::Peer`], which greets, watches the hold time
//! and bounds what is queued; what it understands goes to the node as a [`Signal`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsStream;

use super::core::Core;
use super::tls::{self, TlsConfig};

type Stream = TlsStream<TcpStream>;
use crate::node::Greeting;
use crate::proto::cxtp::{self, Peer, PeerConfig, SendRefused};
use crate::types::transfer::Signal;
use crate::types::{AnchorId, Instant};

/// Between two attempts to reach a peer; doubles up to the maximum while it fails.
const DIAL_PAUSE: Duration = Duration::from_millis(200);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A link and what people call its peer.
struct Link {
    machine: Peer,
    name: String,
    /// Number of the stream in use: what an older stream still says is not listened to.
    stream: u64,
    /// The writer of the stream in use.
    wake: Rc<Notify>,
    connected: bool,
    /// The last time that it came up or went down; the start before that.
    since: Instant,
    last_error: Option<String>,
}

/// All links, and what their machines said but nobody has carried to the node yet.
#[derive(Default)]
pub struct Links {
    all: BTreeMap<AnchorId, Link>,
    pending: Vec<(AnchorId, cxtp::Output)>,
    pub dropped: u64,
}

/// The state of a link, for listings.
#[derive(Clone, Debug)]
pub struct LinkView {
    pub anchor: AnchorId,
    pub name: String,
    pub up: bool,
    pub since: Instant,
    pub last_error: Option<String>,
    pub counters: cxtp::Counters,
}

impl Links {
    pub fn add(&mut self, config: PeerConfig, name: &str, seed: u64) {
        let peer = config.peer;
        let link = Link {
            machine: Peer::new(config, seed ^ u64::from(peer.0)),
            name: name.to_owned(),
            stream: 0,
            wake: Rc::new(Notify::new()),
            connected: false,
            since: Instant::ZERO,
            last_error: None,
        };
        self.all.insert(peer, link);
    }

    /// Queues a signal. When the link is down or full it is dropped: the timers of the one who
    /// sends it count on that.
    pub fn send(&mut self, to: AnchorId, signal: Signal, now: Instant) {
        let Some(link) = self.all.get_mut(&to) else {
            self.dropped += 1;
            return;
        };
        match link.machine.send(&signal, now) {
            Ok(()) => link.wake.notify_one(),
            Err(error) => {
                self.dropped += 1;
                if error == SendRefused::QueueFull {
                    // Not everything is said twice: a new link begins with a full report, a gap in
                    // an old one would stay.
                    link.connected = false;
                    link.wake.notify_one();
                }
                tracing::debug!(peer = %link.name, %error, "a signal is not sent");
            }
        }
    }

    pub fn is_up(&self, peer: AnchorId) -> bool {
        self.all.get(&peer).is_some_and(|l| l.machine.role().is_some())
    }

    pub fn views(&self) -> Vec<LinkView> {
        let view = |(&anchor, link): (&AnchorId, &Link)| LinkView {
            anchor,
            name: link.name.clone(),
            up: link.machine.role().is_some(),
            since: link.since,
            last_error: link.last_error.clone(),
            counters: link.machine.counters(),
        };
        self.all.iter().map(view).collect()
    }

    pub fn poll_timeout(&self) -> Instant {
        self.all.values().map(|l| l.machine.poll_timeout()).min().unwrap_or(Instant::FAR_FUTURE)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        for (&peer, link) in &mut self.all {
            let mut said = Vec::new();
            link.machine.handle_timeout(now, &mut said);
            link.wake.notify_one();
            self.pending.extend(said.into_iter().map(|o| (peer, o)));
        }
    }

    /// A new stream of the peer. Returns its number and how its writer is woken.
    fn connected(&mut self, peer: AnchorId, now: Instant) -> Option<(u64, Rc<Notify>)> {
        let link = self.all.get_mut(&peer)?;
        link.wake.notify_one(); // the writer of an older stream sees that it is no longer in use
        link.stream += 1;
        link.wake = Rc::new(Notify::new());
        link.connected = true;
        link.last_error = None;
        let mut said = Vec::new();
        link.machine.handle_connected(now, &mut said);
        self.pending.extend(said.into_iter().map(|o| (peer, o)));
        Some((link.stream, Rc::clone(&link.wake)))
    }

    fn octets(&mut self, peer: AnchorId, stream: u64, octets: &[u8], now: Instant) {
        let Some(link) = self.all.get_mut(&peer).filter(|l| l.stream == stream) else { return };
        let mut said = Vec::new();
        link.machine.handle_octets(octets, now, &mut said);
        self.pending.extend(said.into_iter().map(|o| (peer, o)));
    }

    fn closed(&mut self, peer: AnchorId, stream: u64) {
        let Some(link) = self.all.get_mut(&peer).filter(|l| l.stream == stream) else { return };
        link.connected = false;
        let mut said = Vec::new();
        link.machine.handle_closed(&mut said);
        self.pending.extend(said.into_iter().map(|o| (peer, o)));
    }

    /// What the writer of a stream is to write next; `None` when the stream is no longer in use.
    fn transmit(&mut self, peer: AnchorId, stream: u64, now: Instant) -> Option<Vec<u8>> {
        let link = self.all.get_mut(&peer).filter(|l| l.stream == stream && l.connected)?;
        let mut octets = Vec::new();
        while octets.len() < 64 * 1024 {
            match link.machine.poll_transmit(now) {
                Some(message) => octets.extend(message),
                None => break,
            }
        }
        Some(octets)
    }
}

impl Core {
    /// Carries what the links understood to the node.
    pub fn carry_links(self: &Rc<Self>) {
        let pending = std::mem::take(&mut self.state.borrow_mut().links.pending);
        for (peer, output) in pending {
            match output {
                cxtp::Output::Up { path_end, .. } => {
                    tracing::info!(%peer, "context transfer link is up");
                    let now = self.now();
                    if let Some(link) = self.state.borrow_mut().links.all.get_mut(&peer) {
                        link.since = now;
                    }
                    self.turn(|node, now, out| {
                        node.handle_peer_link(peer, Some(Greeting { path_end }), now, out);
                    });
                }
                cxtp::Output::Down(reason) => {
                    tracing::warn!(%peer, %reason, "context transfer link is down");
                    let now = self.now();
                    let mut state = self.state.borrow_mut();
                    if let Some(link) = state.links.all.get_mut(&peer) {
                        link.connected = false;
                        link.since = now;
                        link.last_error = Some(reason.to_string());
                        link.wake.notify_one();
                    }
                    drop(state);
                    self.turn(|node, now, out| node.handle_peer_link(peer, None, now, out));
                }
                cxtp::Output::Signal(signal) => {
                    self.turn(|node, now, out| node.handle_signal(peer, signal, now, out));
                }
            }
        }
    }
}

/// Keeps a link up from the dialling end, for ever.
pub async fn run_dialer(
    core: Rc<Core>,
    tls: Rc<TlsConfig>,
    peer: AnchorId,
    addr: SocketAddr,
    index: usize,
) {
    let mut pause = DIAL_PAUSE;
    loop {
        match tls::connect(&tls, addr, index).await {
            Ok(stream) => {
                pause = DIAL_PAUSE;
                serve(&core, peer, stream).await;
            }
            Err(error) => {
                tracing::debug!(%peer, %addr, %error, "cannot reach a peer");
                if let Some(link) = core.state.borrow_mut().links.all.get_mut(&peer) {
                    link.last_error = Some(error.to_string());
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(DIAL_PAUSE_MAX);
    }
}

/// Accepts the streams of peers for ever. `names[i]` is the anchor of the `i`th configured peer.
pub async fn run_listener(
    core: Rc<Core>,
    tls: Rc<TlsConfig>,
    listener: TcpListener,
    peers: Rc<Vec<AnchorId>>,
) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a context transfer link");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::task::spawn_local(accept(
            Rc::clone(&core),
            Rc::clone(&tls),
            stream,
            remote,
            Rc::clone(&peers),
        ));
    }
}

async fn accept(
    core: Rc<Core>,
    tls: Rc<TlsConfig>,
    stream: TcpStream,
    remote: SocketAddr,
    peers: Rc<Vec<AnchorId>>,
) {
    match tls::accept(&tls, stream).await {
        Ok((index, stream)) => {
            if let Some(&peer) = peers.get(index) {
                serve(&core, peer, stream).await;
            }
        }
        Err(error) => {
            core.metrics.ctx.auth_failures.inc();
            tracing::warn!(%remote, %error, "a context transfer link is refused");
        }
    }
}

/// One stream, until it ends.
async fn serve(core: &Rc<Core>, peer: AnchorId, stream: Stream) {
    let now = core.now();
    let Some((number, wake)) = core.state.borrow_mut().links.connected(peer, now) else { return };
    core.carry_links();
    let (mut reader, writer) = tokio::io::split(stream);
    let writer = tokio::task::spawn_local(run_writer(Rc::clone(core), peer, number, wake, writer));
    let mut buffer = vec![0; 64 * 1024];
    // The writer ends when the stream is no longer in use; without it there is nobody to answer.
    let mut writer = writer;
    loop {
        let n = tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            },
            _ = &mut writer => break,
        };
        let now = core.now();
        core.state.borrow_mut().links.octets(peer, number, &buffer[..n], now);
        core.carry_links();
    }
    writer.abort();
    core.state.borrow_mut().links.closed(peer, number);
    core.carry_links();
}

async fn run_writer(
    core: Rc<Core>,
    peer: AnchorId,
    number: u64,
    wake: Rc<Notify>,
    mut writer: tokio::io::WriteHalf<Stream>,
) {
    loop {
        let now = core.now();
        let Some(octets) = core.state.borrow_mut().links.transmit(peer, number, now) else {
            return;
        };
        if octets.is_empty() {
            wake.notified().await;
            continue;
        }
        if writer.write_all(&octets).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}
