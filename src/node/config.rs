//! What a node is told at its start and at a reload.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::auth::PathSecret;
use crate::iec::Scope;
use crate::location::Pool;
use crate::types::{AnchorId, Locator, Prefix};

/// A prefix that this node announces besides host routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate {
    pub prefix: Prefix,
    /// Where it leads: this node's FE_E, or in controller mode that of the pool's home.
    pub next_hop: Locator,
}

/// Packets of a node that leaves wait here.
#[derive(Clone, Debug)]
pub struct TransientConfig {
    pub secret: PathSecret,
    /// Where we take those of other anchors, and speak to them from.
    pub locator: Locator,
}

#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub own: AnchorId,
    /// `None`: a BGP speaker without mobility.
    pub scope: Option<Scope>,
    /// AS number in the large communities of claims; 0 without BGP.
    pub local_as: u32,
    pub pools: Vec<Pool>,
    /// Where traffic for nodes attached here is sent.
    pub fe_e: Locator,
    /// The same for the other anchors.
    pub locators: BTreeMap<AnchorId, Locator>,
    /// Peers with a context transfer link, and the prefixes that each may claim (empty: all pools).
    pub trust: BTreeMap<AnchorId, Vec<Prefix>>,
    pub controllers: Vec<AnchorId>,
    pub aggregates: Vec<Aggregate>,
    pub no_export: bool,
    /// Lifetime of what the API attaches; `None`: until it says otherwise.
    pub api_lifetime: Option<Duration>,
    pub settle_delay: Duration,
    pub settle_unconfirmed: Duration,
    pub prepare_max: Duration,
    /// After a restart, how long to wait for the peers' tables before announcing what the store
    /// had.
    pub recover_max: Duration,
    /// `None`: relocation is by routes alone, and packets wait nowhere.
    pub transient: Option<TransientConfig>,
    pub seed: u64,
}
