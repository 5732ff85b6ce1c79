//! Map-Request (RFC 9301 §5.2), with the I and N bits of RFC 9437.
//!
//! ```text
//! |Type=1 |A|M|P|S|p|s|R|I|  Rsvd   |L|D|   IRC   | Record Count  |
//! |                         Nonce (8 octets)                      |
//! |         Source-EID-AFI        |   Source EID Address  ...     |
//! |         ITR-RLOC-AFI 1        |    ITR-RLOC Address 1  ...    |  IRC + 1 times
//! |N|   Reserved  | EID mask-len  |        EID-Prefix-AFI         |  per record
//! |                       EID-Prefix  ...                         |
//! |                   Map-Reply Record  ...                       |  with M
//! |            xTR-ID (16 octets), Site-ID (8 octets)             |  with I
//! ```

use super::records::countable;
use super::{Eid, EidRecord, RlocAddress, Type, decode_id, encode_id};
use crate::types::lisp::{SiteId, XtrId};
use crate::wire::{Reader, WireError};

const FLAG_AUTHORITATIVE: u8 = 0x08;
const FLAG_MAP_REPLY: u8 = 0x04;
const FLAG_PROBE: u8 = 0x02;
const FLAG_SMR: u8 = 0x01;
const FLAG_PITR: u8 = 0x80;
const FLAG_SMR_INVOKED: u8 = 0x40;
const FLAG_ID: u8 = 0x10;
const FLAG_LOCAL_XTR: u8 = 0x40;
const FLAG_DONT_REPLY: u8 = 0x20;
const FLAG_NOTIFY: u8 = 0x80;
/// ITR-RLOCs of one request: the count has 5 bits and is one less.
pub const ITR_RLOCS_MAX: usize = 32;

/// Octets of the shortest record.
const RECORD_LEN_MIN: usize = 4;

/// What a Map-Request asks for (RFC 9301 §5.2, N of RFC 9437 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    pub notify: bool,
    pub eid: Eid,
}

/// Map-Request (RFC 9301 §5.2, I of RFC 9437 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRequest {
    pub authoritative: bool,
    pub probe: bool,
    pub smr: bool,
    pub pitr: bool,
    pub smr_invoked: bool,
    /// L of RFC 9301 §5.2.
    pub local_xtr: bool,
    /// D of RFC 9301 §5.2.
    pub dont_reply: bool,
    pub nonce: u64,
    pub source_eid: Eid,
    /// ITR-RLOCs, 1 to 32.
    pub itr_rlocs: Vec<RlocAddress>,
    pub records: Vec<RequestRecord>,
    /// M: the mapping of the asker.
    pub map_reply: Option<EidRecord>,
    /// I of RFC 9437.
    pub id: Option<(XtrId, SiteId)>,
}

impl MapRequest {
    /// What follows the last field that is understood is left unread, as the extensions of this
    /// format expect of those who do not know them.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [kind, flags, more, count] = input.array()?;
        Type::MapRequest.check(kind)?;
        let nonce = input.u64()?;
        let source_eid = Eid::decode(None, input)?;
        let itr_rlocs: Result<_, _> =
            (0..=more & 0x1f).map(|_| RlocAddress::decode(input)).collect();
        let itr_rlocs = itr_rlocs?;
        let count = usize::from(count);
        let mut records = Vec::with_capacity(count.min(input.len() / RECORD_LEN_MIN));
        for _ in 0..count {
            let [flags, mask_len] = input.array()?;
            let eid = Eid::decode(Some(mask_len), input)?;
            records.push(RequestRecord { notify: flags & FLAG_NOTIFY != 0, eid });
        }
        let map_reply = match kind & FLAG_MAP_REPLY {
            0 => None,
            _ => Some(EidRecord::decode(input)?),
        };
        let id = if flags & FLAG_ID != 0 { Some(decode_id(input)?) } else { None };
        Ok(Self {
            authoritative: kind & FLAG_AUTHORITATIVE != 0,
            probe: kind & FLAG_PROBE != 0,
            smr: kind & FLAG_SMR != 0,
            pitr: flags & FLAG_PITR != 0,
            smr_invoked: flags & FLAG_SMR_INVOKED != 0,
            local_xtr: more & FLAG_LOCAL_XTR != 0,
            dont_reply: more & FLAG_DONT_REPLY != 0,
            nonce,
            source_eid,
            itr_rlocs,
            records,
            map_reply,
            id,
        })
    }

    /// The format has at least one ITR-RLOC: without any, one of AFI 0 is written. Those past the
    /// 32nd, and records past the 255th, are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let bit = |set: bool, flag: u8| if set { flag } else { 0 };
        let itr_rlocs = match self.itr_rlocs.as_slice() {
            [] => &[RlocAddress::None],
            some => &some[..some.len().min(ITR_RLOCS_MAX)],
        };
        let (records, count) = countable(&self.records);
        out.extend_from_slice(&[
            Type::MapRequest.octet()
                | bit(self.authoritative, FLAG_AUTHORITATIVE)
                | bit(self.map_reply.is_some(), FLAG_MAP_REPLY)
                | bit(self.probe, FLAG_PROBE)
                | bit(self.smr, FLAG_SMR),
            bit(self.pitr, FLAG_PITR)
                | bit(self.smr_invoked, FLAG_SMR_INVOKED)
                | bit(self.id.is_some(), FLAG_ID),
            bit(self.local_xtr, FLAG_LOCAL_XTR)
                | bit(self.dont_reply, FLAG_DONT_REPLY)
                | (itr_rlocs.len() - 1) as u8,
            count,
        ]);
        out.extend_from_slice(&self.nonce.to_be_bytes());
        self.source_eid.encode(out);
        for rloc in itr_rlocs {
            rloc.encode(out);
        }
        for record in records {
            out.extend_from_slice(&[bit(record.notify, FLAG_NOTIFY), record.eid.mask_len()]);
            record.eid.encode(out);
        }
        if let Some(record) = &self.map_reply {
            record.encode(out);
        }
        encode_id(self.id, out);
    }
}
