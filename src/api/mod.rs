//! Requests into the node and views of its state out of it. Adapters, never a source of truth.

pub mod stream;
