//! Map-Notify and Map-Notify-Ack (RFC 9301 §5.7), which differ in the type only.
//!
//! ```text
//! |Type=4/5|             Reserved                 | Record Count  |
//! |                         Nonce (8 octets)                      |
//! |    Key ID     | Algorithm ID  |  Authentication Data Length   |
//! ~                     Authentication Data                       ~
//! |  records
//! ```
//!
//! RFC 9301 has no bit that says whether an xTR-ID and a Site-ID follow the records, but "the
//! fields are copied from the Map-Register", and implementations do copy these. Exactly as many
//! octets as the two have are read as them; anything else after the records is left unread.

use super::records::countable;
use super::{Authentication, EidRecord, ID_LEN, Type, decode_id, encode_id};
use crate::types::lisp::{SiteId, XtrId};
use crate::wire::{Reader, WireError};

/// Map-Notify, and Map-Notify-Ack, which has the same contents (RFC 9301 §5.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNotify {
    pub nonce: u64,
    pub authentication: Authentication,
    pub records: Vec<EidRecord>,
    /// xTR-ID and Site-ID, copied from a Map-Register that had them.
    pub id: Option<(XtrId, SiteId)>,
}

impl MapNotify {
    /// Of a Map-Notify.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        Self::decode_as(Type::MapNotify, input)
    }

    /// Of a Map-Notify-Ack.
    pub fn decode_ack(input: &mut Reader<'_>) -> Result<Self, WireError> {
        Self::decode_as(Type::MapNotifyAck, input)
    }

    fn decode_as(kind: Type, input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [octet, _, _, count] = input.array()?;
        kind.check(octet)?;
        Ok(Self {
            nonce: input.u64()?,
            authentication: Authentication::decode(input)?,
            records: EidRecord::decode_all(count, input)?,
            id: if input.len() == ID_LEN { Some(decode_id(input)?) } else { None },
        })
    }

    /// As a Map-Notify.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.encode_as(Type::MapNotify, out);
    }

    /// As a Map-Notify-Ack.
    pub fn encode_ack(&self, out: &mut Vec<u8>) {
        self.encode_as(Type::MapNotifyAck, out);
    }

    fn encode_as(&self, kind: Type, out: &mut Vec<u8>) {
        let (records, count) = countable(&self.records);
        out.extend_from_slice(&[kind.octet(), 0, 0, count]);
        out.extend_from_slice(&self.nonce.to_be_bytes());
        self.authentication.encode(out);
        for record in records {
            record.encode(out);
        }
        encode_id(self.id, out);
    }
}
