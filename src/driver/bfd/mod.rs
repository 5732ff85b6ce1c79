//! The sockets of path liveness, and the sessions that the configuration asks for.
//!
//! All packets come in by one socket for each port and family that is in use, with their TTL. Each
//! session sends from a socket of its own: RFC 5881 §4 gives it a source port that no other has.
//! Without a session there is no socket and no task.

mod socket;

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

pub use socket::{Bfd, BfdCounters};

use super::RunError;
use super::core::{Core, State};
use super::gauges::{count, raise};
use crate::auth::{BfdKey, Secret};
use crate::config::{self, BfdAlgorithm, Checked};
use crate::metrics::{BfdDiscard, Direction, Metrics};
use crate::proto::bfd::{Discard, Hops, Path, SessionConfig};
use crate::wire::bfd;

/// How often the end is told, and how far apart: one packet may be lost, and a peer that misses
/// all would take our stop for a failure of the path.
const FAREWELLS: u32 = 3;
const FAREWELL_PAUSE: Duration = Duration::from_millis(30);

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
    let sockets = Bfd::open(&needed, seed).map_err(RunError::io("BFD"))?;
    core.state.borrow_mut().bfd = Some(sockets);
    for (path, neighbor) in wanted {
        let address = path.remote;
        let session = session_config(path)?;
        core.turn(|node, now, _| node.watch_path(path_of(path), session, neighbor, now))
            .map_err(|why| RunError::Bfd { address, why: why.to_string() })?;
    }
    Ok(())
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

/// Starts the tasks that read.
pub fn run(core: &Rc<Core>) {
    let state = core.state.borrow();
    for fd in state.bfd.iter().flat_map(Bfd::descriptors) {
        let core = Rc::clone(core);
        tokio::task::spawn_local(async move {
            loop {
                let Ok(mut ready) = fd.readable().await else { return };
                // What comes from here on makes the socket ready anew.
                ready.clear_ready();
                while core.turn_bfd() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
}

/// RFC 5880 §6.8.16, before the process ends.
pub async fn farewell(core: &Rc<Core>) {
    if core.state.borrow().bfd.is_none() {
        return;
    }
    for _ in 0..FAREWELLS {
        core.turn(|node, now, out| node.shut_down_paths(now, out));
        tokio::time::sleep(FAREWELL_PAUSE).await;
    }
}

pub fn copy_gauges(state: &State, metrics: &Metrics) {
    let (Some(paths), Some(sockets)) = (&state.node.liveness, &state.bfd) else { return };
    let (m, c) = (&metrics.bfd, paths.table.counters());
    for of in bfd::State::ALL {
        m.sessions.get(of.into()).set(count(paths.table.in_state(of)));
        raise(m.transitions.get(of.into()), c.transitions(of));
    }
    raise(m.packets.get(Direction::In), c.received);
    raise(m.packets.get(Direction::Out), c.sent);
    for why in Discard::ALL {
        raise(m.discards.get(why.into()), c.discarded(why));
    }
    let c = sockets.counters();
    raise(m.discards.get(BfdDiscard::TooLong), c.too_long);
    raise(&m.send_errors, c.send_refused);
    raise(&m.receive_errors, c.receive_errors);
}
