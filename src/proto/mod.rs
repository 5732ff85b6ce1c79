//! One machine per conversation, sans-IO.

pub mod bfd;
pub mod bgp;
pub mod cxtp;
pub mod lisp;
pub mod nd;
