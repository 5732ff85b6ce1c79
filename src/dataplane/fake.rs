//! A data plane in memory, for tests and simulations: it keeps what a kernel would keep, and
//! refuses what it is told to refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{DataPlane, Hop, KernelRoute, Kind, Op, OpError};
use crate::types::seam::IfIndex;
use crate::types::{MacAddr, Prefix};

#[derive(Debug, Default)]
pub struct Fake {
    /// Our routes.
    pub routes: BTreeMap<(Prefix, Kind), Hop>,
    /// Routes of others at our metrics.
    pub foreign: BTreeSet<(Prefix, Kind)>,
    pub neighbors: BTreeMap<(IfIndex, IpAddr), MacAddr>,
    /// How next hops resolve; the others are unreachable.
    pub next_hops: BTreeMap<IpAddr, Hop>,
    /// Operations on these prefixes fail.
    pub broken: BTreeSet<Prefix>,
    /// Everything that was asked, in order.
    pub log: Vec<Op>,
    dump: Vec<KernelRoute>,
}

/// Routes per piece of a dump: small, so that tests see several.
const PIECE: usize = 2;

impl Fake {
    fn step(&mut self, op: Op) -> Result<(), OpError> {
        match op {
            Op::AddRoute { prefix, .. } | Op::ReplaceRoute { prefix, .. }
                if self.broken.contains(&prefix) =>
            {
                Err(OpError::LinkDown)
            }
            Op::AddRoute { prefix, kind, hop } => {
                let key = (prefix, kind);
                if self.foreign.contains(&key) || self.routes.contains_key(&key) {
                    return Err(OpError::Exists);
                }
                self.routes.insert(key, hop);
                Ok(())
            }
            Op::ReplaceRoute { prefix, kind, hop } => {
                self.routes.insert((prefix, kind), hop);
                Ok(())
            }
            Op::DeleteRoute { prefix, kind } => {
                self.routes.remove(&(prefix, kind)).map(drop).ok_or(OpError::Missing)
            }
            Op::SetNeighbor { link, ip, mac } => {
                self.neighbors.insert((link, ip), mac);
                Ok(())
            }
            Op::DeleteNeighbor { link, ip } => {
                self.neighbors.remove(&(link, ip)).map(drop).ok_or(OpError::Missing)
            }
        }
    }
}

impl DataPlane for Fake {
    fn apply(&mut self, ops: &[Op], results: &mut Vec<Result<(), OpError>>) {
        for &op in ops {
            self.log.push(op);
            results.push(self.step(op));
        }
    }

    fn begin_dump(&mut self) -> Result<(), OpError> {
        let route = |(&(prefix, kind), &hop)| KernelRoute { prefix, kind, hop };
        self.dump = self.routes.iter().map(route).collect();
        Ok(())
    }

    fn continue_dump(&mut self, routes: &mut Vec<KernelRoute>) -> Result<bool, OpError> {
        routes.extend(self.dump.drain(..self.dump.len().min(PIECE)));
        Ok(!self.dump.is_empty())
    }

    fn resolve(&mut self, next_hop: IpAddr) -> Result<Hop, OpError> {
        let unreachable = || OpError::Other(format!("no route to next hop {next_hop}"));
        self.next_hops.get(&next_hop).copied().ok_or_else(unreachable)
    }
}
