//! (being built)

pub mod packet;
pub mod store;
pub mod tcp;
