//! Location database: where each mobile prefix is.
//!
//! A binding is only ever replaced by a greater [`Claim`]: a later generation, or within one
//! generation the lower anchor. Whatever order, loss or duplication the statements arrive with,
//! the same greatest claim is left in the end. What a removed binding had is remembered as a
//! *tombstone*, so that a node that comes back gets a generation above all that it ever had here.
//!
//! The database holds what this node is responsible for: an anchor the nodes attached to it, a
//! controller those of its anchors. The claims of others are read from where they are kept (the
//! BGP table); copying a million of them here would only make a second truth.

mod database;
mod pools;

pub use database::{Applied, Location, LocationError, Page};
pub use pools::{Pool, Pools};
