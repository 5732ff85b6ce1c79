//! Requests into the node and views of its state out of it. Adapters, never a source of truth.

pub mod client;
pub mod events;
pub mod request;
mod server;
pub mod socket;
pub mod stream;
pub mod views;

pub use events::Events;
pub use request::{
    Answer, ApiError, Attach, Call, Caller, ErrorCode, Move, Paging, Reply, Request, RouteFilter,
    Target, channel,
};
pub use server::{Server, start};

#[cfg(test)]
pub(crate) mod tests;
