//! FE_MA_C, built in: which plain hosts are attached to this anchor, and where.
//!
//! Hosts know nothing of mobility. They are noticed by what they say (sightings), and believed as
//! long as their link is up and they answer. All prefixes of one node are reached over one
//! attachment: a node that is seen by IPv4 has moved with its IPv6 prefixes as well.
//!
//! An address belongs to whoever is attached with it first; another link-layer address that uses
//! it is refused until the owner has left, and makes the owner prove that it is still there.

mod config;
mod room;
mod view;

pub use config::{Config, Pool};
pub use room::{Anchor, Counters, Output, Refusal};
pub use view::Session;
