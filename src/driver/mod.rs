//! (being built)

pub mod store;
pub mod tls;
