//! (being built)

pub mod tcp;
