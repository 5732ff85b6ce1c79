//! What two FE_MCTX say to each other (R_XX), and an anchor to a controller (R_XC), without octets.
//!
//! `mctx` speaks in these, `proto::cxtp` turns them into RFC 4067 messages and back. So the room
//! that moves contexts knows no protocol, and the protocol knows no tables.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::seam::Context;
use super::{AnchorId, Binding, Claim, Prefix};

/// Octets of attributes (with 4 for each) of one context: with 64 prefixes it must fit one message.
/// A context with more is not exported.
pub const ATTRIBUTES_LEN_MAX: usize = 16 * 1024;

/// One statement to a peer. The node is named by the address of a prefix of it, since that is all
/// that CTDR and CTC carry (RFC 4067 §2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// nMA → pMA, CT-Req. `insist`: the anchor you referred me to does not have it.
    Request { prefix: Prefix, sequence: u32, insist: bool },
    /// pMA → nMA, CTD or (predictive) PCTD.
    Transfer(Box<Transfer>),
    /// pMA → nMA: no context, and why; never silence.
    Refusal { addr: IpAddr, sequence: u32, why: Refusal },
    /// nMA → pMA, CTDR. Nothing failed: all is received and installed.
    Reply { addr: IpAddr, failed: Vec<(Part, TransferStatus)> },
    /// nMA → pMA, CTC.
    Cancel { addr: IpAddr },
    /// Anchor → controller: newest state of some bindings.
    Reports(ReportBatch),
    /// Controller → anchor: everything up to this batch is taken.
    ReportAck { epoch: u32, batch: u32 },
    /// Controller → anchor: somebody has a newer claim of a prefix that you hold, or report.
    Newer { prefix: Prefix, claim: Claim },
}

/// A context on its way, whole or the part that had failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub addr: IpAddr,
    /// Of the CT-Req, or chosen by the pMA when predictive.
    pub sequence: u32,
    /// Since the first transmission of this context (RFC 4067 §2.5.3).
    pub elapsed_ms: u32,
    pub predictive: bool,
    /// The bindings, with empty `attributes`. `None`: not in this message.
    pub context: Option<Context>,
    pub attributes: AttributesPart,
}

/// The opaque attributes as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributesPart {
    /// Not in this message: there are none, or they were not asked for again.
    Absent,
    /// Pieces are missing.
    Broken,
    Whole(Vec<(u16, Vec<u8>)>),
}

/// What a CTDR can complain about by its own feature profile type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Bindings,
    Attributes,
}

/// Why there is no context for the one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Not here, and no idea where (also after a restart that lost it).
    Unknown,
    /// That anchor has it, or is just getting it.
    Referral(AnchorId),
    /// The configured trust does not let the asking anchor claim this node.
    NotAuthorised,
    /// Ask again in a moment.
    Busy,
}

/// Status codes of CTDR and of refusals. RFC 4067 §4 has one; those from 0x80 are private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferStatus {
    Ok,
    BadChecksum,
    Unknown,
    NotAuthorised,
    GenerationOld,
    Busy,
    NoResources,
    Malformed,
    Incomplete,
    NotInstalled,
    Referral,
    Other(u8),
}

/// Numbered from 1 within an epoch (one per link-up of the anchor), so that an ack is exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportBatch {
    pub epoch: u32,
    pub batch: u32,
    pub reports: Vec<Report>,
    /// With this batch, everything has been reported once since the start of the epoch.
    pub sync_end: bool,
}

/// Newest state of one binding at its anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub binding: Binding,
    /// False: the anchor no longer has it (this was its last state).
    pub present: bool,
}
