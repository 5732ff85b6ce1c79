//! Path liveness: BFD in asynchronous mode (RFC 5880), over one hop (RFC 5881) and over many
//! (RFC 5883). Sans-IO.
//!
//! ```text
//! datagram → Table ── which session? ──→ Session ── state, timers ──→ Output
//! ```
//!
//! What is not offered, and said so to the peer: the echo function (Required Min Echo RX is 0) and
//! demand mode of our own; a peer that asks for demand mode gets it.

mod session;
mod table;
#[cfg(test)]
mod tests;

pub use session::{Change, Discard, Session, SessionConfig, SessionCounters};
pub use table::{
    AddError, Arrival, Counters, Hops, Output, Path, SESSIONS_MAX, SessionView, Table,
};
