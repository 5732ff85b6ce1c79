//! Octets ↔ values. No state, no clock, no sockets.

pub mod bfd;
pub mod bgp;
pub mod cxtp;
pub mod encap;
mod error;
pub mod lisp;
pub mod nd;
mod reader;
pub mod transient;

pub use error::WireError;
pub use reader::Reader;
