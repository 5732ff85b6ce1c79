//! Map-Register (RFC 9301 §5.6), and the authentication data that it shares with Map-Notify.
//!
//! ```text
//! |Type=3 |P|S|I|        Reserved       |E|T|a|R|M| Record Count  |
//! |                         Nonce (8 octets)                      |
//! |    Key ID     | Algorithm ID  |  Authentication Data Length   |
//! ~                     Authentication Data                       ~
//! |  records, then with I: xTR-ID (16 octets), Site-ID (8 octets)
//! ```

use super::records::countable;
use super::{EidRecord, Type, decode_id, encode_id};
use crate::types::lisp::{SiteId, XtrId};
use crate::wire::{Reader, WireError};

const FLAG_PROXY_REPLY: u8 = 0x08;
const FLAG_SECURITY: u8 = 0x04;
const FLAG_ID: u8 = 0x02;
const FLAG_EID_NOTIFY: u8 = 0x10;
const FLAG_USE_TTL: u8 = 0x08;
const FLAG_MERGE: u8 = 0x04;
const FLAG_WANT_NOTIFY: u8 = 0x01;

/// Authentication data of Map-Register, Map-Notify and Map-Notify-Ack (RFC 9301 §5.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    pub key_id: u8,
    /// 0 none, 1 HMAC-SHA-1-96, 2 HMAC-SHA-256-128, 3 HKDF-SHA256 with HMAC-SHA-256-128.
    pub algorithm: u8,
    /// The digest as received; its length before signing says how long the emitted one is.
    pub digest: Vec<u8>,
}

impl Authentication {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [key_id, algorithm] = input.array()?;
        let len = input.u16()?;
        Ok(Self { key_id, algorithm, digest: input.bytes(usize::from(len))?.to_vec() })
    }

    /// Octets of the digest past the 65,535th, which the length cannot say, are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let len = u16::try_from(self.digest.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&[self.key_id, self.algorithm]);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.digest[..usize::from(len)]);
    }
}

/// Map-Register (RFC 9301 §5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRegister {
    pub proxy_reply: bool,
    /// S (RFC 9303 §6.3).
    pub security_capable: bool,
    /// E: from a first-hop router about an EID that was discovered.
    pub eid_notify: bool,
    /// T: the TTL of the records is the registration timeout.
    pub use_ttl: bool,
    /// a: merge the locators of the xTRs of a site.
    pub merge: bool,
    pub want_notify: bool,
    pub nonce: u64,
    pub authentication: Authentication,
    pub records: Vec<EidRecord>,
    /// I: xTR-ID and Site-ID.
    pub id: Option<(XtrId, SiteId)>,
}

impl MapRegister {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [kind, _, flags, count] = input.array()?;
        Type::MapRegister.check(kind)?;
        Ok(Self {
            proxy_reply: kind & FLAG_PROXY_REPLY != 0,
            security_capable: kind & FLAG_SECURITY != 0,
            eid_notify: flags & FLAG_EID_NOTIFY != 0,
            use_ttl: flags & FLAG_USE_TTL != 0,
            merge: flags & FLAG_MERGE != 0,
            want_notify: flags & FLAG_WANT_NOTIFY != 0,
            nonce: input.u64()?,
            authentication: Authentication::decode(input)?,
            records: EidRecord::decode_all(count, input)?,
            id: if kind & FLAG_ID != 0 { Some(decode_id(input)?) } else { None },
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let bit = |set: bool, flag: u8| if set { flag } else { 0 };
        let (records, count) = countable(&self.records);
        out.extend_from_slice(&[
            Type::MapRegister.octet()
                | bit(self.proxy_reply, FLAG_PROXY_REPLY)
                | bit(self.security_capable, FLAG_SECURITY)
                | bit(self.id.is_some(), FLAG_ID),
            0,
            bit(self.eid_notify, FLAG_EID_NOTIFY)
                | bit(self.use_ttl, FLAG_USE_TTL)
                | bit(self.merge, FLAG_MERGE)
                | bit(self.want_notify, FLAG_WANT_NOTIFY),
            count,
        ]);
        out.extend_from_slice(&self.nonce.to_be_bytes());
        self.authentication.encode(out);
        for record in records {
            record.encode(out);
        }
        encode_id(self.id, out);
    }
}
