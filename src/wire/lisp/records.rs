//! EID-to-RLOC mapping records (RFC 9301 §5.4), the same in every message that has them.
//!
//! ```text
//! |                          Record TTL                           |
//! | Locator Count | EID mask-len  | ACT |A|      Reserved         |
//! | Rsvd  |  Map-Version Number   |       EID-Prefix-AFI          |
//! |                          EID-Prefix                           |
//! |    Priority   |    Weight     |  M Priority   |   M Weight    |  per locator
//! |        Unused Flags     |L|p|R|           Loc-AFI             |
//! |                             Locator                           |
//! ```

use std::net::IpAddr;

use super::Eid;
use super::lcaf::{self, AFI_NONE, Lcaf, TYPE_AFI_LIST};
use crate::types::lisp::{MapVersion, NegativeAction};
use crate::wire::{Reader, WireError};

const FLAG_AUTHORITATIVE: u8 = 0x10;
const FLAG_LOCAL: u16 = 0x04;
const FLAG_PROBED: u16 = 0x02;
const FLAG_REACHABLE: u16 = 0x01;

/// Octets of the shortest record, and of the shortest locator: what a count can promise at most.
const RECORD_LEN_MIN: usize = 12;
const RLOC_LEN_MIN: usize = 8;

/// Addresses of an AFI-list that are looked at. A longer one is passed on as octets.
const LIST_LEN_MAX: usize = 32;

/// An RLOC as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RlocAddress {
    /// AFI 0.
    None,
    Ip(IpAddr),
    /// AFI-list LCAF (RFC 8060 §4.10): the first one that is understood is used.
    List(Vec<RlocAddress>),
    /// Passed on as it is: the octets from the AFI on.
    Other(Vec<u8>),
}

impl RlocAddress {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let address = lcaf::take_address(input)?;
        Ok(Self::plain(address).or_else(|| Self::list(address)).unwrap_or_else(|| {
            // An LCAF of another type, or a list that holds what has no known length.
            Self::Other(address.to_vec())
        }))
    }

    fn plain(address: &[u8]) -> Option<Self> {
        if address == AFI_NONE.to_be_bytes() {
            return Some(Self::None);
        }
        lcaf::ip(address).map(Self::Ip)
    }

    /// A list within a list is not opened: it stays octets.
    fn list(address: &[u8]) -> Option<Self> {
        let lcaf = Lcaf::open(address).filter(|lcaf| lcaf.kind == TYPE_AFI_LIST)?;
        let mut body = lcaf.body;
        let mut list = Vec::new();
        while !body.is_empty() {
            if list.len() == LIST_LEN_MAX {
                return None;
            }
            let address = lcaf::take_address(&mut body).ok()?;
            list.push(Self::plain(address).unwrap_or_else(|| Self::Other(address.to_vec())));
        }
        Some(Self::List(list))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.extend_from_slice(&AFI_NONE.to_be_bytes()),
            Self::Ip(addr) => lcaf::put_ip(*addr, out),
            Self::List(list) => Lcaf::put(TYPE_AFI_LIST, out, |out| {
                for address in list {
                    address.encode(out);
                }
            }),
            Self::Other(octets) => out.extend_from_slice(octets),
        }
    }

    /// The address to send to, if one is understood.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::List(list) => list.iter().find_map(Self::ip),
            Self::None | Self::Other(_) => None,
        }
    }
}

/// RFC 9301 §5.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RlocRecord {
    pub priority: u8,
    pub weight: u8,
    pub multicast_priority: u8,
    pub multicast_weight: u8,
    /// L: the locator is of the one who answers.
    pub local: bool,
    /// p: this locator is the one that was probed.
    pub probed: bool,
    /// R: there is a route to it, as seen by the one who answers.
    pub reachable: bool,
    pub address: RlocAddress,
}

impl RlocRecord {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [priority, weight, multicast_priority, multicast_weight] = input.array()?;
        let flags = input.u16()?; // unused bits are ignored on receipt
        Ok(Self {
            priority,
            weight,
            multicast_priority,
            multicast_weight,
            local: flags & FLAG_LOCAL != 0,
            probed: flags & FLAG_PROBED != 0,
            reachable: flags & FLAG_REACHABLE != 0,
            address: RlocAddress::decode(input)?,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[
            self.priority,
            self.weight,
            self.multicast_priority,
            self.multicast_weight,
        ]);
        let mut flags = 0;
        for (set, flag) in
            [(self.local, FLAG_LOCAL), (self.probed, FLAG_PROBED), (self.reachable, FLAG_REACHABLE)]
        {
            flags |= if set { flag } else { 0 };
        }
        out.extend_from_slice(&flags.to_be_bytes());
        self.address.encode(out);
    }
}

/// EID-to-RLOC mapping record (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EidRecord {
    /// In minutes, as on the wire; 0: remove at once (a withdrawal).
    pub ttl_min: u32,
    pub action: NegativeAction,
    pub authoritative: bool,
    pub version: MapVersion,
    pub eid: Eid,
    pub rlocs: Vec<RlocRecord>,
}

impl EidRecord {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let ttl_min = input.u32()?;
        let [rloc_count, mask_len, action, _] = input.array()?;
        let version = MapVersion(input.u16()? & 0x0fff);
        let eid = Eid::decode(Some(mask_len), input)?;
        let rloc_count = usize::from(rloc_count);
        let mut rlocs = Vec::with_capacity(rloc_count.min(input.len() / RLOC_LEN_MIN));
        for _ in 0..rloc_count {
            rlocs.push(RlocRecord::decode(input)?);
        }
        Ok(Self {
            ttl_min,
            action: negative_action(action >> 5),
            authoritative: action & FLAG_AUTHORITATIVE != 0,
            version,
            eid,
            rlocs,
        })
    }

    /// Locators past the 255th, which the count cannot say, are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let rlocs = &self.rlocs[..self.rlocs.len().min(usize::from(u8::MAX))];
        let authoritative = if self.authoritative { FLAG_AUTHORITATIVE } else { 0 };
        out.extend_from_slice(&self.ttl_min.to_be_bytes());
        out.extend_from_slice(&[
            rlocs.len() as u8,
            self.eid.mask_len(),
            action_code(self.action) << 5 | authoritative,
            0,
        ]);
        out.extend_from_slice(&(self.version.0 & 0x0fff).to_be_bytes());
        self.eid.encode(out);
        for rloc in rlocs {
            rloc.encode(out);
        }
    }

    pub(super) fn decode_all(count: u8, input: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        let count = usize::from(count);
        let mut records = Vec::with_capacity(count.min(input.len() / RECORD_LEN_MIN));
        for _ in 0..count {
            records.push(Self::decode(input)?);
        }
        Ok(records)
    }
}

/// The records that a count of one octet can say.
pub(super) fn countable<T>(records: &[T]) -> (&[T], u8) {
    let records = &records[..records.len().min(usize::from(u8::MAX))];
    (records, records.len() as u8)
}

/// ACT has 3 bits; the two values that nobody has assigned mean that nothing is known but that
/// there is no locator: such packets are dropped.
fn negative_action(code: u8) -> NegativeAction {
    match code {
        0 => NegativeAction::NoAction,
        1 => NegativeAction::NativelyForward,
        2 => NegativeAction::SendMapRequest,
        4 => NegativeAction::DropPolicyDenied,
        5 => NegativeAction::DropAuthFailure,
        _ => NegativeAction::DropNoReason,
    }
}

fn action_code(action: NegativeAction) -> u8 {
    match action {
        NegativeAction::NoAction => 0,
        NegativeAction::NativelyForward => 1,
        NegativeAction::SendMapRequest => 2,
        NegativeAction::DropNoReason => 3,
        NegativeAction::DropPolicyDenied => 4,
        NegativeAction::DropAuthFailure => 5,
    }
}
