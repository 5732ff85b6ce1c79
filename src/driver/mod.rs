//! (being built)

pub mod packet;
