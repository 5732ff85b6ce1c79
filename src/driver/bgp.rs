//! TCP connections of BGP sessions: reader and writer of each, the listener, connecting.
//!
//! A reader takes what the kernel has, up to [`READ_MAX`], and gives it to the node in one turn. A
//! writer tries at once, in the turn itself, so that a single route leaves without another wake-up;
//! only what the socket does not take waits in the connection's queue. Above [`QUEUE_HIGH`] the
//! peer counts as congested: the RIB then gives it nothing and remembers per prefix what it has
//! missed, so the queue is bounded by that mark plus one flush.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::core::Core;
use super::tcp;
use crate::proto::bgp::session::{ConnId, Md5Key, Transport};
use crate::proto::bgp::speaker;

/// Octets given to the node in one turn: some 50,000 host routes.
const READ_MAX: usize = 256 * 1024;
/// Octets waiting for a peer above which it is congested, and below which it is no longer.
const QUEUE_HIGH: usize = 1024 * 1024;
const QUEUE_LOW: usize = 256 * 1024;
/// How long a closed connection may take to deliver what was said last.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Pieces per system call.
const IOV_MAX: usize = 64;

struct Connection {
    stream: Rc<TcpStream>,
    queue: VecDeque<Bytes>,
    queued: usize,
    congested: bool,
    /// Wakes the writer task when the socket did not take everything.
    wake: Rc<Notify>,
    /// The node has closed it: what is queued (a NOTIFICATION) is still written, and what arrives
    /// is read and thrown away until the peer closes as well. A socket that is closed with unread
    /// octets sends a reset, which can overtake the NOTIFICATION.
    closing: bool,
}

/// All TCP connections of the speaker.
#[derive(Default)]
pub struct Connections {
    all: BTreeMap<ConnId, Connection>,
    /// Attempts under way; ended when the node no longer wants them.
    connecting: BTreeMap<ConnId, AbortHandle>,
    touched: BTreeSet<ConnId>,
    /// Who is congested now or no longer, for the node.
    congestion: Vec<(ConnId, bool)>,
    listeners: Vec<Rc<TcpListener>>,
    /// TCP-MD5 keys that the listeners must know.
    keys: BTreeMap<IpAddr, Md5Key>,
}

fn set_listener_key(listener: &TcpListener, remote: IpAddr, key: Option<&Md5Key>) {
    let same_family = listener.local_addr().is_ok_and(|l| l.is_ipv4() == remote.is_ipv4());
    if !same_family {
        return;
    }
    if let Err(error) = tcp::set_listener_key(listener, remote, key) {
        tracing::error!(%remote, %error, "the key of a neighbour cannot be set");
    }
}

impl Connections {
    pub fn handle(&mut self, output: speaker::Output, core: &Rc<Core>) {
        match output {
            speaker::Output::Connect { conn, transport } => {
                let task = run_connect(Rc::clone(core), conn, *transport);
                let task = tokio::task::spawn_local(task);
                self.connecting.insert(conn, task.abort_handle());
            }
            speaker::Output::Send { conn, bytes } => self.send(conn, bytes),
            speaker::Output::Close { conn } => self.close(conn, core),
            speaker::Output::ListenerKey { remote, key } => self.set_key(remote, key),
            // Of interest to people, who are told by the core.
            speaker::Output::SessionUp { .. } | speaker::Output::SessionDown { .. } => {}
        }
    }

    /// Where neighbours connect to; the keys that are known by then are set.
    pub fn listen(&mut self, listener: Rc<TcpListener>) {
        for (&remote, key) in &self.keys {
            set_listener_key(&listener, remote, Some(key));
        }
        self.listeners.push(listener);
    }

    fn set_key(&mut self, remote: IpAddr, key: Option<Md5Key>) {
        for listener in &self.listeners {
            set_listener_key(listener, remote, key.as_ref());
        }
        match key {
            Some(key) => self.keys.insert(remote, key),
            None => self.keys.remove(&remote),
        };
    }

    /// Puts octets into the queue of a connection; [`Self::write_all`] ends the turn.
    pub fn send(&mut self, conn: ConnId, bytes: Bytes) {
        if let Some(connection) = self.all.get_mut(&conn) {
            connection.queued += bytes.len();
            connection.queue.push_back(bytes);
            self.touched.insert(conn);
        }
    }

    fn close(&mut self, conn: ConnId, core: &Rc<Core>) {
        if let Some(attempt) = self.connecting.remove(&conn) {
            attempt.abort();
        }
        let Some(connection) = self.all.get_mut(&conn) else { return };
        connection.closing = true;
        self.touched.insert(conn);
        let core = Rc::clone(core);
        tokio::task::spawn_local(async move {
            // A peer that does not read does not keep us.
            tokio::time::sleep(CLOSE_MAX).await;
            core.state.borrow_mut().connections.end(conn);
        });
    }

    /// Whatever is still queued is given up.
    fn end(&mut self, conn: ConnId) {
        if let Some(connection) = self.all.remove(&conn) {
            // The reader holds the stream as well: this is how it hears of the end.
            let _ = SockRef::from(&*connection.stream).shutdown(std::net::Shutdown::Both);
        }
    }

    /// Octets queued for a peer, for metrics and listings.
    pub fn queued(&self, conn: ConnId) -> usize {
        self.all.get(&conn).map_or(0, |c| c.queued)
    }

    /// Writes what this turn has queued, as far as the sockets take it.
    pub fn write_all(&mut self) {
        while let Some(conn) = self.touched.pop_first() {
            self.write(conn);
        }
    }

    /// What [`speaker::Speaker::handle_congested`] has to be told.
    pub fn take_congestion(&mut self) -> Vec<(ConnId, bool)> {
        std::mem::take(&mut self.congestion)
    }

    fn write(&mut self, conn: ConnId) {
        let Some(connection) = self.all.get_mut(&conn) else { return };
        let before = connection.queued;
        match connection.write() {
            Ok(()) if connection.queue.is_empty() => {
                if connection.closing {
                    let socket = SockRef::from(&*connection.stream);
                    // Fails when the peer was faster, which is as good.
                    let _ = socket.shutdown(std::net::Shutdown::Write);
                    return;
                }
            }
            Ok(()) => connection.wake.notify_one(),
            // The reader sees the same error, or the end, and tells the node.
            Err(_) => return self.end(conn),
        }
        let took = connection.queued < before;
        let congested = match connection.congested {
            true => connection.queued >= QUEUE_LOW,
            false => connection.queued > QUEUE_HIGH,
        };
        // While it is congested, each step forward counts: it keeps a slow peer from being taken
        // for one that does not read.
        if congested != connection.congested || congested && took {
            connection.congested = congested;
            self.congestion.push((conn, congested));
        }
    }

    fn insert(&mut self, conn: ConnId, stream: Rc<TcpStream>) {
        let connection = Connection {
            stream,
            queue: VecDeque::new(),
            queued: 0,
            congested: false,
            wake: Rc::new(Notify::new()),
            closing: false,
        };
        self.all.insert(conn, connection);
    }
}

impl Connection {
    fn write(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut pieces = [IoSlice::new(&[]); IOV_MAX];
            let mut count = 0;
            for (piece, bytes) in pieces.iter_mut().zip(&self.queue) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
            match self.stream.try_write_vectored(&pieces[..count]) {
                Ok(written) => self.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.queued -= written;
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.queue.pop_front();
        }
    }
}

/// Tries to reach a neighbour, then serves the connection.
async fn run_connect(core: Rc<Core>, conn: ConnId, transport: Transport) {
    let result = tcp::connect(&transport).await;
    core.state.borrow_mut().connections.connecting.remove(&conn);
    match result {
        // From here on nobody aborts this task: the connection is known by its end only.
        Ok(stream) => run_connection(core, conn, stream).await,
        Err(error) => {
            tracing::debug!(remote = %transport.remote, %error, "cannot connect");
            core.turn(|node, now, out| node.handle_bgp_closed(conn, now, out));
        }
    }
}

/// Accepts connections for ever. The node says which neighbour one is from, or refuses it.
pub async fn run_listener(core: Rc<Core>, listener: Rc<TcpListener>) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!(%error, "cannot accept a BGP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(local) = stream.local_addr() else { continue };
        // The connection has to be known before the node says anything on it.
        let accepted = core.accept(stream, local, remote);
        if let Some((conn, stream)) = accepted {
            tokio::task::spawn_local(serve(Rc::clone(&core), conn, stream));
        }
    }
}

async fn run_connection(core: Rc<Core>, conn: ConnId, stream: TcpStream) {
    let addresses = stream.local_addr().and_then(|l| stream.peer_addr().map(|r| (l, r)));
    let Ok((local, remote)) = addresses else {
        return core.turn(|node, now, out| node.handle_bgp_closed(conn, now, out));
    };
    let stream = Rc::new(stream);
    core.state.borrow_mut().connections.insert(conn, Rc::clone(&stream));
    core.turn(|node, now, out| node.handle_bgp_connected(conn, local, remote, now, out));
    serve(core, conn, stream).await;
}

impl Core {
    fn accept(
        self: &Rc<Self>,
        stream: TcpStream,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<(ConnId, Rc<TcpStream>)> {
        let stream = Rc::new(stream);
        let known = self.turn(|node, now, out| {
            let before = out.len();
            let (conn, transport) = node.handle_bgp_accepted(local, remote, now, out)?;
            // What it says at once waits until the connection can be written to.
            Some((conn, transport, out.split_off(before)))
        });
        let Some((conn, transport, first)) = known else {
            tracing::debug!(%remote, "a BGP connection from an address that is not configured");
            return None;
        };
        if let Err(error) = tcp::prepare_accepted(&stream, &transport) {
            tracing::warn!(%remote, %error, "an accepted BGP connection cannot be prepared");
        }
        self.state.borrow_mut().connections.insert(conn, Rc::clone(&stream));
        self.turn(|_, _, out| out.extend(first));
        Some((conn, stream))
    }
}

/// Reads and writes until the end.
async fn serve(core: Rc<Core>, conn: ConnId, stream: Rc<TcpStream>) {
    let wake = match core.state.borrow().connections.all.get(&conn) {
        Some(connection) => Rc::clone(&connection.wake),
        // Failed with its first octets.
        None => return core.turn(|node, now, out| node.handle_bgp_closed(conn, now, out)),
    };
    let writer = run_writer(Rc::clone(&core), conn, Rc::clone(&stream), wake);
    let writer = tokio::task::spawn_local(writer);
    read(&core, conn, &stream).await;
    writer.abort();
    core.state.borrow_mut().connections.forget(conn);
    core.turn(|node, now, out| node.handle_bgp_closed(conn, now, out));
}

impl Connections {
    /// The peer has gone; what was queued for it has no reader.
    fn forget(&mut self, conn: ConnId) {
        self.all.remove(&conn);
        self.touched.remove(&conn);
    }

    /// `None`: given up.
    fn is_closing(&self, conn: ConnId) -> Option<bool> {
        self.all.get(&conn).map(|c| c.closing)
    }
}

/// Until the end of the connection.
async fn read(core: &Rc<Core>, conn: ConnId, stream: &TcpStream) {
    // One connection is read at a time, so all could share a buffer, but a buffer per connection
    // that is only as large as what arrives costs less than the copying.
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        buffer.clear();
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let closing = core.state.borrow().connections.is_closing(conn);
                match closing {
                    None => return,
                    Some(true) => {}
                    Some(false) => {
                        let timer = core.metrics.bgp.rx_to_tx.start_timer();
                        core.turn(|node, now, out| node.handle_bgp_octets(conn, &buffer, now, out));
                        timer.observe_duration();
                    }
                }
                if n == buffer.capacity() && n < READ_MAX {
                    buffer = Vec::with_capacity((buffer.capacity() * 2).min(READ_MAX));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        // A peer that sends without end must not keep the others waiting.
        tokio::task::yield_now().await;
    }
}

/// Writes on when the socket takes octets again.
async fn run_writer(core: Rc<Core>, conn: ConnId, stream: Rc<TcpStream>, wake: Rc<Notify>) {
    loop {
        wake.notified().await;
        if stream.writable().await.is_err() {
            return;
        }
        if !core.write_on(conn) {
            return;
        }
    }
}

impl Core {
    /// False when the connection is no more.
    fn write_on(self: &Rc<Self>, conn: ConnId) -> bool {
        let mut state = self.state.borrow_mut();
        state.connections.write(conn);
        let alive = state.connections.all.contains_key(&conn);
        let news = state.connections.take_congestion();
        drop(state);
        for (conn, congested) in news {
            self.turn(|node, now, _| node.handle_bgp_congested(conn, congested, now));
        }
        alive
    }
}
