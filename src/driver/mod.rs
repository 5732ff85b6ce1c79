//! The driver: sockets, timers, files. The only `async`, the only clock, the only randomness.
//!
//! One *routing thread* owns the node and everything that must be fast: BGP connections, context
//! transfer links, the kernel's sockets, the packet sockets of access links, the streaming API. Each
//! of its tasks waits for one thing, and gives what arrives to the node in one [`core`] turn. The
//! HTTP API and the metrics live on a second thread and ask by messages, so that no listing and no
//! slow client delays a session.
//!
//! An end of the process changes nothing in the kernel: forwarding survives the control plane, and
//! the next start adopts what it finds.

pub mod access;
pub mod bfd;
pub mod bgp;
pub mod core;
mod fib_diff;
pub mod gauges;
mod interface;
pub mod links;
pub mod lisp;
pub mod mapping;
mod mapping_gauges;
mod mapping_views;
pub mod monitor;
pub mod packet;
mod paths;
pub mod requests;
pub mod setup;
pub mod store;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod transient;
mod views;

use std::rc::Rc;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use self::core::{Clock, Core, State};
use crate::api::{self, Events};
use crate::config::Checked;
use crate::metrics::{Metrics, Waiting};

/// Why the daemon could not start. One sentence for the operator each.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Store(#[from] store::StoreError),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(
        "access links and kernel routes need {0}: start it as root, or give it that capability"
    )]
    Rights(&'static str),
    #[error("BFD to {address}: {why}")]
    Bfd { address: std::net::IpAddr, why: String },
    #[error("neighbor {address}: {why}")]
    Neighbor { address: std::net::IpAddr, why: String },
}

impl RunError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config: &Checked) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::io("cannot start the routing thread"))?;
    tokio::task::LocalSet::new().block_on(&runtime, run_local(config))
}

async fn run_local(config: &Checked) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::for_config(config));
    let events = Events::new();
    let clock = Clock::start();
    let seed = setup::random_seed().map_err(RunError::io("cannot read random numbers"))?;
    let parts = setup::Parts::new(config, seed, clock)?;
    let state = State::new(
        parts.node,
        parts.forwarding,
        parts.store,
        parts.links,
        parts.access,
        monitor::Monitor::new(events.clone()),
        setup::names(config),
    );
    let core = Core::new(state, clock, Arc::clone(&metrics));
    // From here on everything runs in turns. The order: access links, since what the store had is
    // attached to them; the store; the neighbours; then the world may come in.
    paths::start(&core, config)?;
    core.turn_kernel(|forwarding, now, events| {
        let filter = config.access.iter().any(|a| a.uplink_filter);
        forwarding.set_access(setup::access_links(config), filter, now, events);
    });
    if let Some(lisp) = &config.lisp {
        let mut state = core.state.borrow_mut();
        state.control = Some(mapping::open_control(lisp)?);
        state.encap = mapping::open_encap(config, lisp, clock.now())?;
        let subscribers = lisp.server.iter().flat_map(|s| &s.subscribers);
        state.subscribers = subscribers.map(|s| (s.xtr_id, s.name.clone())).collect();
    }
    if let Some(lisp) = parts.lisp {
        core.turn(|node, now, out| node.start_lisp(lisp, now, out));
    }
    bfd::start(&core, config)?;
    setup::restore(&core, parts.stored);
    metrics.health.done(Waiting::Store);
    for neighbor in parts.neighbors {
        let address = neighbor.transport.remote.ip();
        core.turn(|node, now, out| node.add_neighbor(neighbor, now, out))
            .map_err(|why| RunError::Neighbor { address, why: why.to_string() })?;
    }
    setup::listen(&core, config, parts.tls)?;
    let (caller, calls) = api::channel();
    let server = api::start(&config.api, config.metrics, caller, events, Arc::clone(&metrics))
        .map_err(RunError::io("cannot serve the API"))?;
    metrics.health.done(Waiting::Sockets);
    tokio::task::spawn_local(requests::run(Rc::clone(&core), calls));
    tokio::task::spawn_local(Rc::clone(&core).run_syncs());
    tokio::task::spawn_local(Rc::clone(&core).run_kernel());
    tokio::task::spawn_local(gauges::run(Rc::clone(&core)));
    tokio::task::spawn_local(bfd::run(Rc::clone(&core)));
    tokio::task::spawn_local(mapping::run_control(Rc::clone(&core)));
    tokio::task::spawn_local(mapping::run_encap(Rc::clone(&core)));
    tokio::task::spawn_local(paths::run(Rc::clone(&core)));
    if core.state.borrow().encap.is_some() {
        tokio::task::spawn_local(mapping::run_used(Rc::clone(&core)));
    }
    let timers = tokio::task::spawn_local(Rc::clone(&core).run_timers());
    tracing::info!(name = %config.node.name, id = %config.node.anchor_id, "killick runs");
    wait_for_end().await?;
    timers.abort();
    bfd::farewell(&core).await;
    tracing::info!("stopping; routes and deliveries stay in the kernel");
    // Nothing is said on the sessions: neighbours keep our routes over a restart (RFC 4724).
    drop(server);
    Ok(())
}

async fn wait_for_end() -> Result<(), RunError> {
    let catch = |kind| signal(kind).map_err(RunError::io("cannot catch signals"));
    let (mut terminate, mut interrupt) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
