//! LISP control messages (RFC 9301, RFC 9437; address formats of RFC 8060).
//!
//! Reserved bits are ignored on receipt and sent as 0. Octets after what a message is known to
//! have are left unread: that is how RFC 9437 extended the Map-Request.

mod ecm;
mod eid;
mod lcaf;
mod map_notify;
mod map_register;
mod map_reply;
mod map_request;
mod records;
mod security;
#[cfg(test)]
mod tests;

pub use ecm::Ecm;
pub use eid::Eid;
pub use map_notify::MapNotify;
pub use map_register::{Authentication, MapRegister};
pub use map_reply::MapReply;
pub use map_request::{ITR_RLOCS_MAX, MapRequest, RequestRecord};
pub use records::{EidRecord, RlocAddress, RlocRecord};
pub use security::{EcmSecurity, EidAuthentication, ReplySecurity, SignedEids, WRAPPED_OTK_LEN};

use crate::types::lisp::{SiteId, XtrId};
use crate::wire::{Reader, WireError};

/// UDP port of the control plane.
pub const CONTROL_PORT: u16 = 4342;
/// UDP port of the data plane (RFC 9300 §5).
pub const DATA_PORT: u16 = 4341;

/// Octets of an xTR-ID and a Site-ID.
const ID_LEN: usize = 24;

/// The type of a message: the high half of its first octet (RFC 9301 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    MapRequest = 1,
    MapReply = 2,
    MapRegister = 3,
    MapNotify = 4,
    MapNotifyAck = 5,
    Ecm = 8,
}

impl Type {
    const fn octet(self) -> u8 {
        (self as u8) << 4
    }

    fn check(self, octet: u8) -> Result<(), WireError> {
        if octet >> 4 == self as u8 { Ok(()) } else { Err(WireError::UnknownType(octet >> 4)) }
    }
}

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    MapRequest(MapRequest),
    MapReply(MapReply),
    MapRegister(MapRegister),
    MapNotify(MapNotify),
    MapNotifyAck(MapNotify),
    Ecm(Ecm),
}

impl Message {
    /// The payload of one UDP datagram.
    pub fn decode(octets: &[u8]) -> Result<Self, WireError> {
        let mut input = Reader::new(octets);
        let input = &mut input;
        match octets.first().ok_or(WireError::Truncated)? >> 4 {
            1 => MapRequest::decode(input).map(Self::MapRequest),
            2 => MapReply::decode(input).map(Self::MapReply),
            3 => MapRegister::decode(input).map(Self::MapRegister),
            4 => MapNotify::decode(input).map(Self::MapNotify),
            5 => MapNotify::decode_ack(input).map(Self::MapNotifyAck),
            8 => Ecm::decode(input).map(Self::Ecm),
            other => Err(WireError::UnknownType(other)),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::MapRequest(message) => message.encode(out),
            Self::MapReply(message) => message.encode(out),
            Self::MapRegister(message) => message.encode(out),
            Self::MapNotify(message) => message.encode(out),
            Self::MapNotifyAck(message) => message.encode_ack(out),
            Self::Ecm(message) => message.encode(out),
        }
    }
}

fn decode_id(input: &mut Reader<'_>) -> Result<(XtrId, SiteId), WireError> {
    Ok((XtrId(input.u128()?), SiteId(input.u64()?)))
}

fn encode_id(id: Option<(XtrId, SiteId)>, out: &mut Vec<u8>) {
    if let Some((xtr, site)) = id {
        out.extend_from_slice(&xtr.0.to_be_bytes());
        out.extend_from_slice(&site.0.to_be_bytes());
    }
}
