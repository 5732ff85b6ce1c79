//! What an operator decides about plain hosts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::types::{MacAddr, MnId, Prefix};

#[derive(Clone, Debug)]
pub struct Config {
    /// Only addresses within these are mobile. Others are none of killick's business.
    pub pools: Vec<Pool>,
    /// Names of known hosts; the others are named after their link-layer address.
    pub nodes: BTreeMap<MacAddr, MnId>,
    /// How long a node is believed to be there after its link went down. A node that comes up
    /// elsewhere is moved at once by the claim of the other anchor; this is for one that does not.
    pub detach_grace: Duration,
    /// Probes of a node whose presence is in doubt: their distance and number.
    pub probe_interval: Duration,
    pub probe_tries: u32,
    /// How long sightings of an address are ignored after its attachment was refused (no right to
    /// import it). Without it, every packet of the host would be a question to another anchor.
    pub refused_hold: Duration,
    /// Attached nodes; beyond, sightings of further ones are counted and ignored.
    pub nodes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            nodes: BTreeMap::new(),
            detach_grace: Duration::from_secs(2),
            probe_interval: Duration::from_millis(500),
            probe_tries: 3,
            refused_hold: Duration::from_secs(10),
            nodes_max: 1_000_000,
        }
    }
}

/// A mobile pool, and how much of it one node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub prefix: Prefix,
    /// Length of a node's prefix: 32 or 128 where nodes have single addresses, 64 where each has
    /// a home network prefix of its own.
    pub node_len: u8,
}

impl Pool {
    /// A pool of single addresses.
    pub fn of_hosts(prefix: Prefix) -> Self {
        Self { prefix, node_len: prefix.family().bits() }
    }
}

impl Config {
    /// The prefix of the node that uses `ip`; `None` outside the pools. The most specific pool
    /// decides.
    pub fn prefix_of(&self, ip: IpAddr) -> Option<Prefix> {
        let pool = self
            .pools
            .iter()
            .filter(|pool| pool.prefix.contains_addr(ip))
            .max_by_key(|pool| pool.prefix.len())?;
        Prefix::new(ip, pool.node_len)
    }

    /// True when all of `prefix` is mobile.
    pub fn is_mobile(&self, prefix: Prefix) -> bool {
        self.pools.iter().any(|pool| pool.prefix.contains(prefix))
    }

    pub fn node_of(&self, mac: MacAddr) -> MnId {
        self.nodes.get(&mac).cloned().unwrap_or_else(|| MnId::from_mac(mac))
    }
}
