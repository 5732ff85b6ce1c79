//! TCP connections of BGP sessions: reader and writer of each, the listener, connecting.
//!
//! A reader takes what the kernel has, up to [`READ_MAX`], and gives it to the node in one turn. A
//! writer tries at once, in the turn itself, so that a single route leaves without another wake-up;
//! only what the socket does not take waits in the connection's queue. Above [`QUEUE_HIGH`] the
//! peer counts as congested: the RIB then gives it nothing and remembers per prefix what it has
//! missed, so the queue is bounded by that mark plus one flush.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::core::Core;
use super::tcp;
use crate::proto::bgp::session::{ConnId, Direction};
use crate::proto::bgp::speaker;

/// Octets given to the node in one turn: some 50,000 host routes.
const READ_MAX: usize = 256 * 1024;
/// Octets waiting for a peer above which it is congested, and below which it is no longer.
const QUEUE_HIGH: usize = 1024 * 1024;
const QUEUE_LOW: usize = 256 * 1024;
/// Pieces per system call.
const IOV_MAX: usize = 64;

struct Connection {
    stream: Rc<TcpStream>,
    queue: VecDeque<Bytes>,
    queued: usize,
    congested: bool,
    /// Wakes the writer task when the socket did not take everything.
    wake: Rc<Notify>,
    /// No more is read; what is queued (a NOTIFICATION) is still written.
    closing: bool,
}

/// All TCP connections of the speaker.
#[derive(Default)]
pub struct Connections {
    all: BTreeMap<ConnId, Connection>,
    /// Attempts under way; removed when the node no longer wants them.
    connecting: BTreeSet<ConnId>,
    touched: BTreeSet<ConnId>,
}

impl Connections {
    pub fn handle(&mut self, output: speaker::Output, core: &Rc<Core>) {
        match output {
            speaker::Output::Connect(connect) => {
                self.connecting.insert(connect.conn);
                tokio::task::spawn_local(run_connect(Rc::clone(core), connect));
            }
            speaker::Output::Send { conn, bytes } => self.send(conn, bytes),
            speaker::Output::Close { conn } => self.close(conn),
        }
    }

    /// Puts octets into the queue of a connection; [`Self::write_all`] ends the turn.
    pub fn send(&mut self, conn: ConnId, bytes: Bytes) {
        if let Some(connection) = self.all.get_mut(&conn) {
            connection.queued += bytes.len();
            connection.queue.push_back(bytes);
            self.touched.insert(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.connecting.remove(&conn);
        if let Some(connection) = self.all.get_mut(&conn) {
            connection.closing = true;
            self.touched.insert(conn);
            connection.wake.notify_one();
        }
    }

    /// Octets queued for a peer, for metrics and listings.
    pub fn queued(&self, conn: ConnId) -> usize {
        self.all.get(&conn).map_or(0, |c| c.queued)
    }

    /// Writes what this turn has queued, as far as the sockets take it.
    pub fn write_all(&mut self, core: &Rc<Core>) {
        while let Some(conn) = self.touched.pop_first() {
            self.write(conn, core);
        }
    }

    fn write(&mut self, conn: ConnId, core: &Rc<Core>) {
        let Some(connection) = self.all.get_mut(&conn) else { return };
        match connection.write() {
            Ok(()) if connection.queue.is_empty() => {
                if connection.closing {
                    self.all.remove(&conn);
                    return;
                }
            }
            Ok(()) => connection.wake.notify_one(),
            // The reader sees the same error, or the end, and tells the node.
            Err(_) => {
                connection.queue.clear();
                connection.queued = 0;
                if connection.closing {
                    self.all.remove(&conn);
                    return;
                }
            }
        }
        let over = connection.queued > QUEUE_HIGH;
        let under = connection.queued < QUEUE_LOW;
        if over && !connection.congested || under && connection.congested {
            connection.congested = over;
            let core = Rc::clone(core);
            // In a turn of its own: this one is at its end.
            tokio::task::spawn_local(async move {
                core.turn(|node, now, out| node.handle_bgp_congested(conn, over, now, out));
            });
        }
    }

    fn insert(&mut self, conn: ConnId, stream: Rc<TcpStream>) -> Rc<Notify> {
        let wake = Rc::new(Notify::new());
        let connection = Connection {
            stream,
            queue: VecDeque::new(),
            queued: 0,
            congested: false,
            wake: Rc::clone(&wake),
            closing: false,
        };
        self.all.insert(conn, connection);
        wake
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
async fn run_connect(core: Rc<Core>, connect: speaker::Connect) {
    let conn = connect.conn;
    let result = tcp::connect(&connect.transport, connect.remote, connect.local).await;
    let wanted = core.state.borrow_mut().connections.connecting.remove(&conn);
    match result {
        Ok(stream) if wanted => run_connection(core, conn, stream, Direction::Active).await,
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(remote = %connect.remote, %error, "cannot connect");
            if wanted {
                core.turn(|node, now, out| node.handle_bgp_connect_failed(conn, now, out));
            }
        }
    }
}

/// Accepts connections for ever. The node says which neighbour one is from, or refuses it.
pub async fn run_listener(core: Rc<Core>, listener: TcpListener) {
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: waiting is all that helps.
                tracing::warn!(%error, "cannot accept a BGP connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let local = stream.local_addr().unwrap_or(remote);
        let conn = core.turn(|node, now, out| node.handle_bgp_incoming(remote, local, now, out));
        if let Some((conn, transport)) = conn {
            if let Err(error) = tcp::prepare_accepted(&stream, &transport) {
                tracing::warn!(%remote, %error, "cannot prepare an accepted BGP connection");
            }
            tokio::task::spawn_local(run_connection(
                Rc::clone(&core),
                conn,
                stream,
                Direction::Passive,
            ));
        }
    }
}

async fn run_connection(core: Rc<Core>, conn: ConnId, stream: TcpStream, direction: Direction) {
    let addresses = stream.local_addr().and_then(|l| stream.peer_addr().map(|r| (l, r)));
    let Ok((local, remote)) = addresses else {
        return core.turn(|node, now, out| node.handle_bgp_connect_failed(conn, now, out));
    };
    let stream = Rc::new(stream);
    let wake = core.state.borrow_mut().connections.insert(conn, Rc::clone(&stream));
    let writer = tokio::task::spawn_local(run_writer(
        Rc::clone(&core),
        conn,
        Rc::clone(&stream),
        Rc::clone(&wake),
    ));
    core.turn(|node, now, out| {
        node.handle_bgp_connected(conn, direction, local, remote, now, out);
    });
    read(&core, conn, &stream).await;
    core.state.borrow_mut().connections.forget(conn);
    writer.abort();
    core.turn(|node, now, out| node.handle_bgp_closed(conn, now, out));
}

impl Connections {
    /// The peer has gone; what was queued for it has no reader.
    fn forget(&mut self, conn: ConnId) {
        self.all.remove(&conn);
        self.touched.remove(&conn);
    }

    fn is_closing(&self, conn: ConnId) -> bool {
        self.all.get(&conn).is_none_or(|c| c.closing)
    }
}

/// Until the end of the connection, or until the node has closed it.
async fn read(core: &Rc<Core>, conn: ConnId, stream: &TcpStream) {
    // One connection is read at a time, so all could share a buffer, but a buffer per connection
    // that is only as large as what arrives costs less than the copying.
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        if core.state.borrow().connections.is_closing(conn) {
            return;
        }
        buffer.clear();
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                core.turn(|node, now, out| node.handle_bgp_octets(conn, &buffer, now, out));
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
        let mut state = core.state.borrow_mut();
        state.connections.write(conn, &core);
        if !state.connections.all.contains_key(&conn) {
            return;
        }
    }
}

/// Where a neighbour is, for log lines.
pub fn describe(remote: SocketAddr) -> String {
    if remote.port() == 179 { remote.ip().to_string() } else { remote.to_string() }
}
