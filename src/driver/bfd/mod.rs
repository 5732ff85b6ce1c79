//! Path liveness: the sessions that the configuration asks for, on a thread of their own
//! ([`thread`]), and what they say, carried to the node.
//!
//! All packets come in by one socket for each port and family that is in use, with their TTL. Each
//! session sends from a socket of its own: RFC 5881 §4 gives it a source port that no other has.
//! Without a session there is no socket and no thread.

mod socket;
mod thread;

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::RunError;
use super::core::{Core, State};
use super::gauges::{count, raise};
use crate::auth::{BfdKey, Secret};
use crate::config::{self, BfdAlgorithm, Checked};
use crate::metrics::{BfdDiscard, Direction, Metrics};
use crate::proto::bfd::{Discard, Hops, Path, SessionConfig, SessionView, Table};
use crate::wire::bfd;

use socket::Sockets;
use thread::Shared;

/// How often the end is told, and how far apart: one packet may be lost, and a peer that misses
/// all would take our stop for a failure of the path.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(30);

/// The routing thread's end. Dropping it ends the other.
pub struct Bfd {
    shared: Arc<Shared>,
    wake: UnixStream,
}

impl Bfd {
    /// All sessions, by path.
    pub fn views(&self) -> Vec<SessionView> {
        self.shared.table().views().collect()
    }

    fn ask_for_farewell(&mut self) {
        self.shared.ask_for_farewell();
        // A full pipe wakes as well as one octet.
        let _ = self.wake.write(&[0]);
    }
}

/// Opens the sockets, and the sessions with them.
pub fn start(core: &Rc<Core>, config: &Checked) -> Result<(), RunError> {
    let neighbors = config.bgp.iter().flat_map(|bgp| &bgp.neighbors).filter(|n| !n.shutdown);
    let of_neighbors = neighbors.filter_map(|n| Some((&n.bfd.as_ref()?.path, n.address.ip())));
    let wanted: Vec<(&config::Bfd, Option<IpAddr>)> = of_neighbors
        .map(|(path, neighbor)| (path, Some(neighbor)))
        .chain(config.bfd.iter().map(|path| (path, None)))
        .collect();
    let mut needed: Vec<(Hops, bool)> =
        wanted.iter().map(|(path, _)| (hops(path), path.remote.is_ipv4())).collect();
    needed.sort_unstable();
    needed.dedup();
    if needed.is_empty() {
        return Ok(());
    }
    let seed = super::setup::random_seed().map_err(RunError::io("cannot read random numbers"))?;
    let sockets = Sockets::open(&needed, seed).map_err(RunError::io("BFD"))?;
    let mut table = Table::new(seed);
    for (path, neighbor) in wanted {
        let address = path.remote;
        let session = table
            .add(path_of(path), session_config(path)?, core.now())
            .map_err(|why| RunError::Bfd { address, why: why.to_string() })?;
        core.state.borrow_mut().node.watch_path(session, address, neighbor);
    }
    let (wake, woken) = pair().map_err(RunError::io("BFD"))?;
    let (shared, clock) = (Arc::new(Shared::new(table)), core.clock);
    let of_thread = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("bfd".to_owned())
        .spawn(move || thread::run(&of_thread, sockets, woken, clock))
        .map_err(RunError::io("cannot start the thread of BFD"))?;
    core.state.borrow_mut().bfd = Some(Bfd { shared, wake });
    Ok(())
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

fn hops(path: &config::Bfd) -> Hops {
    if path.multihop { Hops::Multi } else { Hops::Single }
}

fn path_of(path: &config::Bfd) -> Path {
    Path {
        hops: hops(path),
        remote: path.remote,
        local: path.local,
        interface: path.interface.clone(),
        ttl_min: path.ttl_min,
    }
}

fn session_config(path: &config::Bfd) -> Result<SessionConfig, RunError> {
    let key = match &path.key {
        Some(key) => Some(read_key(key, path.remote)?),
        None => None,
    };
    let config::Bfd { min_tx, min_rx, multiplier, passive, .. } = *path;
    Ok(SessionConfig { min_tx, min_rx, multiplier, passive, key })
}

fn read_key(key: &config::BfdKey, address: IpAddr) -> Result<BfdKey, RunError> {
    let text = std::fs::read_to_string(&key.file)
        .map_err(RunError::io(format!("cannot read {}", key.file.display())))?;
    let first = text.lines().next().unwrap_or_default();
    let meticulous = match key.algorithm {
        BfdAlgorithm::Sha1 => false,
        BfdAlgorithm::MeticulousSha1 => true,
    };
    let secret = Secret::new(first.as_bytes().to_vec());
    BfdKey::new(key.id, meticulous, secret).ok_or_else(|| RunError::Bfd {
        address,
        why: format!("the first line of {} is no key of 1 to 20 octets", key.file.display()),
    })
}

/// Carries to the node what the sessions say, for ever.
pub async fn run(core: Rc<Core>) {
    let Some(shared) = core.state.borrow().bfd.as_ref().map(|bfd| Arc::clone(&bfd.shared)) else {
        return;
    };
    loop {
        shared.told.notified().await;
        for (session, change) in shared.take_news() {
            core.turn(|node, now, out| node.handle_path_change(session, change, now, out));
        }
    }
}

/// RFC 5880 §6.8.16, before the process ends.
pub async fn farewell(core: &Rc<Core>) {
    for _ in 0..FAREWELLS {
        match &mut core.state.borrow_mut().bfd {
            Some(bfd) => bfd.ask_for_farewell(),
            None => return,
        }
        tokio::time::sleep(FAREWELL_PAUSE).await;
    }
}

pub fn copy_gauges(state: &State, metrics: &Metrics) {
    let Some(Bfd { shared, .. }) = &state.bfd else { return };
    let table = shared.table();
    let (m, c) = (&metrics.bfd, table.counters());
    for of in bfd::State::ALL {
        m.sessions.get(of.into()).set(count(table.in_state(of)));
        raise(m.transitions.get(of.into()), c.transitions(of));
    }
    raise(m.packets.get(Direction::In), c.received);
    raise(m.packets.get(Direction::Out), c.sent);
    for why in Discard::ALL {
        raise(m.discards.get(why.into()), c.discarded(why));
    }
    let c = shared.counters();
    raise(m.discards.get(BfdDiscard::TooLong), c.too_long);
    raise(&m.send_errors, c.send_refused);
    raise(&m.receive_errors, c.receive_errors);
}
