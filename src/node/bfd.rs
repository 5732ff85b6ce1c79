//! The hall's door to path liveness: whom the failure of a path concerns.
//!
//! A BGP neighbour's session ends at once. A locator is no longer used by FE_I: the others of its
//! mapping take over, as when it does not answer probes. Both only when a path *fails*; a session
//! that was never up, or that an operator took down, says nothing (RFC 5882 §3.2, §4.2).
//!
//! The sessions themselves are not in the hall. They live on a thread of the driver's, because what
//! keeps them up must not wait for a turn of this one ([`crate::proto::bfd::Table`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::flow::Node;
use super::output::Output;
use crate::proto::bfd::Change;
use crate::types::Instant;
use crate::wire::bfd::State;

/// What is watched, by our discriminator: as many as there are sessions.
#[derive(Debug, Default)]
pub struct Liveness {
    paths: BTreeMap<u32, Watched>,
}

#[derive(Debug)]
struct Watched {
    remote: IpAddr,
    /// Their sessions end with the path.
    neighbors: BTreeSet<IpAddr>,
}

impl Liveness {
    /// The neighbours whose sessions end with a path.
    pub fn neighbors(&self, session: u32) -> impl Iterator<Item = IpAddr> + '_ {
        self.paths.get(&session).into_iter().flat_map(|path| &path.neighbors).copied()
    }
}

impl Node {
    /// The path to `remote` is watched by a session, for a BGP neighbour when one is named.
    pub fn watch_path(&mut self, session: u32, remote: IpAddr, neighbor: Option<IpAddr>) {
        let path = self.liveness.paths.entry(session);
        let path = path.or_insert_with(|| Watched { remote, neighbors: BTreeSet::new() });
        path.neighbors.extend(neighbor);
    }

    /// What a session says about its path.
    pub fn handle_path_change(
        &mut self,
        session: u32,
        change: Change,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(path) = self.liveness.paths.get(&session) else { return };
        let (remote, neighbors) = (path.remote, path.neighbors.clone());
        let Change { from, to, diagnostic, remote_state } = change;
        if change.is_failure() {
            tracing::warn!(%remote, %diagnostic, "BFD: the path has failed");
        } else {
            tracing::info!(%remote, %from, %to, %remote_state, %diagnostic, "BFD");
        }
        let up = to == State::Up;
        if up || change.is_failure() {
            for neighbor in neighbors {
                self.handle_bgp_path(neighbor, up, now, out);
            }
        }
        if (up || change.is_failure() || change.is_administrative())
            && let Some(lisp) = &mut self.lisp
        {
            let mut changes = Vec::new();
            lisp.ingress.set_path(remote, !change.is_failure(), &mut changes);
            out.extend(changes.into_iter().map(Output::Encap));
        }
    }
}
