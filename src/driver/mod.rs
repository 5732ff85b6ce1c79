//! (being built)

pub mod packet;
pub mod store;
pub mod tcp;
pub mod tls;
