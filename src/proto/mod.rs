//! One machine per conversation, sans-IO.

pub mod bgp;
pub mod cxtp;
pub mod nd;
