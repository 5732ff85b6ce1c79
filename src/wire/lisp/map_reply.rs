//! Map-Reply (RFC 9301 §5.4).
//!
//! ```text
//! |Type=2 |P|E|S|          Reserved               | Record Count  |
//! |                         Nonce (8 octets)                      |
//! |  records, then with S the authentication data of RFC 9303 §6.2
//! ```

use super::records::countable;
use super::{EidRecord, Type};
use crate::wire::{Reader, WireError};

const FLAG_PROBE: u8 = 0x08;
const FLAG_ECHO_NONCE: u8 = 0x04;
const FLAG_SECURITY: u8 = 0x02;

/// Map-Reply (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReply {
    pub probe: bool,
    pub echo_nonce: bool,
    pub nonce: u64,
    pub records: Vec<EidRecord>,
    /// Authentication data as octets, which a [`super::ReplySecurity`] encodes and decodes (S).
    pub security: Option<Vec<u8>>,
}

impl MapReply {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [kind, _, _, count] = input.array()?;
        Type::MapReply.check(kind)?;
        let nonce = input.u64()?;
        let records = EidRecord::decode_all(count, input)?;
        let security = match kind & FLAG_SECURITY {
            0 => None,
            _ if input.is_empty() => return Err(WireError::Truncated),
            _ => Some(input.bytes(input.len())?.to_vec()),
        };
        Ok(Self {
            probe: kind & FLAG_PROBE != 0,
            echo_nonce: kind & FLAG_ECHO_NONCE != 0,
            nonce,
            records,
            security,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let bit = |set: bool, flag: u8| if set { flag } else { 0 };
        let (records, count) = countable(&self.records);
        out.extend_from_slice(&[
            Type::MapReply.octet()
                | bit(self.probe, FLAG_PROBE)
                | bit(self.echo_nonce, FLAG_ECHO_NONCE)
                | bit(self.security.is_some(), FLAG_SECURITY),
            0,
            0,
            count,
        ]);
        out.extend_from_slice(&self.nonce.to_be_bytes());
        for record in records {
            record.encode(out);
        }
        if let Some(security) = &self.security {
            out.extend_from_slice(security);
        }
    }
}
