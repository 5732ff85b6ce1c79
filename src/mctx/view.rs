//! Transfers as `ctx transfers` shows them.

use serde::Serialize;

use crate::types::{AnchorId, MnId, Prefix};

/// Who began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The pMA, before the node had moved.
    Predictive,
    /// The nMA, when it saw the node.
    Reactive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferRole {
    /// This node is the nMA.
    Import,
    /// This node is the pMA.
    Export,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TransferView {
    /// `None`: asked for a prefix, and not found yet whose it is.
    pub mn: Option<MnId>,
    pub prefix: Prefix,
    pub role: TransferRole,
    pub peer: Option<AnchorId>,
    pub mode: Mode,
    pub state: &'static str,
    /// Of the local clock, in microseconds.
    pub started_us: u64,
    pub elapsed_us: u64,
    /// Why it is in this state, or how it ended.
    pub status: String,
}
