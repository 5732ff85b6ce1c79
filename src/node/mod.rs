//! The hall: owns one of each room, and carries things between them.
//!
//! The rooms in the middle of the house (anchor, mctx, location, iec, gateway) do not know each
//! other and know no protocol. What one says is carried to the next by [`flow`], which is the whole
//! walk of a mobility event on a few pages. A node is sans-IO: it reads no clock and no socket, so
//! the simulator runs dozens of them in one thread, byte for byte the code that the daemon runs.
//!
//! *Entrances*: octets of BGP connections, messages of context transfer links, frames and events of
//! access links, confirmations of the data plane, requests of the API, time. *Exits*: [`Output`].

mod bfd;
mod bgp;
mod claims;
mod config;
mod departure;
mod flow;
mod inputs;
pub mod lisp;
mod output;
mod requests;
pub mod timeline;
mod transient;

pub use bfd::Liveness;
pub use bgp::LARGE_COMMUNITY_ANCHOR;
pub use bgp::LARGE_COMMUNITY_GENERATION;
pub use config::{Aggregate, NodeConfig, TransientConfig};
pub use flow::Node;
pub use inputs::Greeting;
pub use output::{Counters, HandoverPhase, Mode, Observation, Output, Record};
pub use requests::{RequestError, SessionState};
pub use transient::Paths;

#[cfg(test)]
mod tests;
