//! The hall's door to path liveness: whom the failure of a path concerns.
//!
//! A BGP neighbour's session ends at once. A locator is no longer used by FE_I: the others of its
//! mapping take over, as when it does not answer probes. Both only when a path *fails*; a session
//! that was never up, or that an operator took down, says nothing (RFC 5882 §3.2, §4.2).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::flow::Node;
use super::output::Output;
use crate::proto::bfd::{AddError, Arrival, Change, Output as Said, Path, SessionConfig, Table};
use crate::types::Instant;
use crate::wire::bfd::State;

/// The sessions, and the neighbours that depend on them.
#[derive(Debug)]
pub struct Liveness {
    pub table: Table,
    neighbors: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl Liveness {
    pub fn poll_timeout(&self) -> Instant {
        self.table.poll_timeout()
    }

    /// The neighbours whose sessions end with a path.
    pub fn neighbors(&self, session: u32) -> impl Iterator<Item = IpAddr> + '_ {
        self.neighbors.get(&session).into_iter().flatten().copied()
    }
}

impl Node {
    /// Watches a path from now on, for a BGP neighbour when one is named.
    pub fn watch_path(
        &mut self,
        path: Path,
        config: SessionConfig,
        neighbor: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), AddError> {
        let seed = self.config.seed ^ 0x6266_6421;
        let paths = self.liveness.get_or_insert_with(|| Liveness {
            table: Table::new(seed),
            neighbors: BTreeMap::new(),
        });
        let session = paths.table.add(path, config, now)?;
        paths.neighbors.entry(session).or_default().extend(neighbor);
        Ok(())
    }

    /// A datagram came to one of the ports.
    pub fn handle_bfd(
        &mut self,
        arrival: Arrival<'_>,
        payload: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.with_paths(now, out, |table, said| {
            table.handle_datagram(arrival, payload, now, said);
        });
    }

    pub(super) fn handle_bfd_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.liveness.as_ref().is_some_and(|paths| paths.poll_timeout() <= now) {
            self.with_paths(now, out, |table, said| table.handle_timeout(now, said));
        }
    }

    /// The process is about to end: the others are told that no path has failed.
    pub fn shut_down_paths(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.with_paths(now, out, |table, said| table.shut_down(now, said));
    }

    fn with_paths(
        &mut self,
        now: Instant,
        out: &mut Vec<Output>,
        call: impl FnOnce(&mut Table, &mut Vec<Said>),
    ) {
        let Some(paths) = &mut self.liveness else { return };
        let mut said = Vec::new();
        call(&mut paths.table, &mut said);
        for output in said {
            match output {
                Said::Send { session, octets } => out.push(Output::Bfd { session, octets }),
                Said::Changed { session, change } => {
                    self.handle_path_change(session, change, now, out);
                }
            }
        }
    }

    fn handle_path_change(
        &mut self,
        session: u32,
        change: Change,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(paths) = &self.liveness else { return };
        let Some(remote) = paths.table.path(session).map(|path| path.remote) else { return };
        let neighbors: Vec<IpAddr> = paths.neighbors(session).collect();
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
