//! The header between UDP and the inner packet (RFC 9300 §5.1; with P: RFC 9305 §3).
//!
//! ```text
//! |N|L|E|V|I|P|K|K|        Nonce/Map-Version/Next Protocol        |
//! |                 Instance ID/Locator-Status-Bits               |
//! ```

use crate::types::lisp::{InstanceId, MapVersion};
use crate::wire::encap::DropReason;

const FLAG_NONCE: u8 = 0x80;
const FLAG_STATUS: u8 = 0x40;
const FLAG_ECHO: u8 = 0x20;
const FLAG_VERSION: u8 = 0x10;
const FLAG_INSTANCE: u8 = 0x08;
const FLAG_NEXT_PROTOCOL: u8 = 0x04;
const KEY_BITS: u8 = 0x03;

pub const NEXT_PROTOCOL_IPV4: u8 = 1;
pub const NEXT_PROTOCOL_IPV6: u8 = 2;

/// What the low 24 bits of the first word hold; they cannot hold two of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstWord {
    #[default]
    Nothing,
    /// N, and E: echo it, please. The nonce has 24 bits.
    Nonce { nonce: u32, echo: bool },
    /// V (RFC 9302 §7): the versions of the source's and of the destination's mapping.
    Versions { source: MapVersion, destination: MapVersion },
    /// P (RFC 9305).
    NextProtocol(u8),
}

/// RFC 9300 §5.1, RFC 9305 §3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LispHeader {
    pub first: FirstWord,
    /// I: 24 bits.
    pub iid: Option<InstanceId>,
    /// L: locator status bits, 32 of them, or 8 beside an instance ID.
    pub status: Option<u32>,
}

impl LispHeader {
    pub const LEN: usize = 8;

    /// The header and what follows it.
    pub fn decode(payload: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let (head, rest) = payload.split_first_chunk().ok_or(DropReason::Truncated)?;
        let &[flags, a, b, c, d, e, f, g] = head;
        if flags & KEY_BITS != 0 {
            return Err(DropReason::Encrypted);
        }
        // P goes before N, E and V, which it makes meaningless (RFC 9305 §3); N before V, which
        // must not be set beside it (RFC 9300 §5.3).
        let first = if flags & FLAG_NEXT_PROTOCOL != 0 {
            FirstWord::NextProtocol(c)
        } else if flags & FLAG_NONCE != 0 {
            let nonce = u32::from_be_bytes([0, a, b, c]);
            FirstWord::Nonce { nonce, echo: flags & FLAG_ECHO != 0 }
        } else if flags & FLAG_VERSION != 0 {
            FirstWord::Versions {
                source: MapVersion(u16::from_be_bytes([a, b]) >> 4),
                destination: MapVersion(u16::from_be_bytes([b & 0xf, c])),
            }
        } else {
            FirstWord::Nothing
        };
        let with_iid = flags & FLAG_INSTANCE != 0;
        let status = if with_iid { u32::from(g) } else { u32::from_be_bytes([d, e, f, g]) };
        let header = Self {
            first,
            iid: with_iid.then(|| InstanceId(u32::from_be_bytes([0, d, e, f]))),
            status: (flags & FLAG_STATUS != 0).then_some(status),
        };
        Ok((header, rest))
    }

    /// Bits that do not fit their field are cut off.
    pub fn octets(&self) -> [u8; Self::LEN] {
        let (mut flags, [_, a, b, c]) = match self.first {
            FirstWord::Nothing => (0, [0; 4]),
            FirstWord::Nonce { nonce, echo } => {
                (FLAG_NONCE | if echo { FLAG_ECHO } else { 0 }, nonce.to_be_bytes())
            }
            FirstWord::Versions { source, destination } => {
                let versions = u32::from(source.0 & 0xfff) << 12 | u32::from(destination.0 & 0xfff);
                (FLAG_VERSION, versions.to_be_bytes())
            }
            FirstWord::NextProtocol(next) => (FLAG_NEXT_PROTOCOL, [0, 0, 0, next]),
        };
        flags |= if self.status.is_some() { FLAG_STATUS } else { 0 };
        let status = self.status.unwrap_or(0);
        let second = match self.iid {
            Some(iid) => {
                flags |= FLAG_INSTANCE;
                iid.0 << 8 | status & 0xff
            }
            None => status,
        };
        let [d, e, f, g] = second.to_be_bytes();
        [flags, a, b, c, d, e, f, g]
    }
}
