//! UPDATE (RFC 4271 §4.3) with the error handling of RFC 7606.
//!
//! ```text
//! | Withdrawn Routes Length: 2 | withdrawn | Total Path Attribute Length: 2 | attributes | NLRI |
//! ```
//!
//! [`Sections::split`] cuts the message, [`walk`](super::walk()) goes over the attributes,
//! [`Update::decode`] is both with the NLRI fields.

use super::notification::{Notification, code as error_code, update as subcode};
use super::{Attributes, Negotiated, NextHop, Nlri, walk::walk};
use crate::types::Family;
use crate::wire::{Reader, WireError};

/// Attribute flags, RFC 4271 §4.3.
pub mod flag {
    pub const OPTIONAL: u8 = 0x80;
    pub const TRANSITIVE: u8 = 0x40;
    pub const PARTIAL: u8 = 0x20;
    pub const EXTENDED_LENGTH: u8 = 0x10;
}

/// Attribute type codes.
pub mod attribute {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MULTI_EXIT_DISC: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITIES: u8 = 8;
    pub const ORIGINATOR_ID: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH_NLRI: u8 = 14;
    pub const MP_UNREACH_NLRI: u8 = 15;
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const AS4_AGGREGATOR: u8 = 18;
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    pub const LARGE_COMMUNITY: u8 = 32;
}

/// The three fields of an UPDATE; only their bounds are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections<'a> {
    pub withdrawn: &'a [u8],
    pub attributes: &'a [u8],
    pub nlri: &'a [u8],
}

impl<'a> Sections<'a> {
    /// `body`: what follows the header. RFC 7606 §3 (b): session reset.
    pub fn split(body: &'a [u8]) -> Result<Self, Notification> {
        let fields = |mut input: Reader<'a>| {
            let withdrawn_len = input.u16()?;
            let withdrawn = input.bytes(usize::from(withdrawn_len))?;
            let attributes_len = input.u16()?;
            let attributes = input.bytes(usize::from(attributes_len))?;
            Ok(Self { withdrawn, attributes, nlri: input.rest() })
        };
        fields(Reader::new(body)).map_err(|_: WireError| {
            Notification::new(error_code::UPDATE, subcode::MALFORMED_ATTRIBUTE_LIST)
        })
    }
}

/// In what an attribute is not as it should be. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Flags,
    Length,
    Value,
    Duplicate,
    Missing,
    /// The attribute reaches past the end of the attributes, RFC 7606 §4.
    Overrun,
    /// A well-known attribute that we do not know.
    Unrecognized,
    /// An attribute that this kind of peer has no business to send.
    NotFromThisPeer,
    /// Routes of a family that is not in use on the session; they are ignored.
    NotNegotiated,
    /// A next hop that no host can have.
    NextHop,
    /// The prefixes cannot be parsed, RFC 7606 §5.3.
    Nlri,
}

impl Fault {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::Length => "length",
            Self::Value => "value",
            Self::Duplicate => "duplicate",
            Self::Missing => "missing",
            Self::Overrun => "overrun",
            Self::Unrecognized => "unrecognized",
            Self::NotFromThisPeer => "not_from_this_peer",
            Self::NotNegotiated => "not_negotiated",
            Self::NextHop => "next_hop",
            Self::Nlri => "nlri",
        }
    }

    /// RFC 4271 §6.3.
    pub(super) const fn subcode(self, code: u8) -> u8 {
        match (self, code) {
            (Self::Flags, _) => subcode::ATTRIBUTE_FLAGS,
            (_, attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI)
                if !matches!(self, Self::Duplicate | Self::Overrun) =>
            {
                subcode::OPTIONAL_ATTRIBUTE
            }
            (Self::Length, _) => subcode::ATTRIBUTE_LENGTH,
            (Self::Value, attribute::ORIGIN) => subcode::INVALID_ORIGIN,
            (Self::Value, attribute::AS_PATH) => subcode::MALFORMED_AS_PATH,
            (Self::Missing, _) => subcode::MISSING_WELL_KNOWN,
            (Self::Unrecognized, _) => subcode::UNRECOGNIZED_WELL_KNOWN,
            (Self::NextHop, _) => subcode::INVALID_NEXT_HOP,
            (Self::Duplicate | Self::Overrun, _) => subcode::MALFORMED_ATTRIBUTE_LIST,
            (Self::Value | Self::NotFromThisPeer | Self::NotNegotiated | Self::Nlri, _) => {
                subcode::OPTIONAL_ATTRIBUTE
            }
        }
    }
}

/// RFC 7606 §2, weakest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    None,
    AttributeDiscard,
    TreatAsWithdraw,
    SessionReset(Notification),
}

impl Action {
    pub(super) const fn strength(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::AttributeDiscard => 1,
            Self::TreatAsWithdraw => 2,
            Self::SessionReset(_) => 3,
        }
    }

    /// The label used in metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AttributeDiscard => "attribute_discard",
            Self::TreatAsWithdraw => "treat_as_withdraw",
            Self::SessionReset(_) => "session_reset",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeError {
    /// The attribute's type code.
    pub code: u8,
    pub fault: Fault,
    pub action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpReach<'a> {
    pub family: Family,
    pub next_hop: NextHop,
    pub nlri: Nlri<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MpUnreach<'a> {
    pub family: Family,
    pub nlri: Nlri<'a>,
}

/// What the path attributes of one UPDATE say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk<'a> {
    /// Present when there is something to announce and `action` is weaker than treat-as-withdraw.
    /// The next hop is that of NEXT_HOP when the UPDATE has classic NLRI, else that of
    /// MP_REACH_NLRI; with both, the routes of `mp_reach` have `mp_reach.next_hop`.
    pub attributes: Option<Attributes>,
    pub mp_reach: Option<MpReach<'a>>,
    pub mp_unreach: Option<MpUnreach<'a>>,
    /// The first sixteen.
    pub errors: Vec<AttributeError>,
    /// The strongest of all errors (RFC 7606 §3 (h)).
    pub action: Action,
}

/// A whole UPDATE in which every NLRI field is valid. A session reset is the `Err` of
/// [`Self::decode`], so `walk.action` is something weaker. With `TreatAsWithdraw`, all of
/// `withdrawn`, `nlri`, `walk.mp_reach` and `walk.mp_unreach` are to be withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    pub withdrawn: Nlri<'a>,
    pub nlri: Nlri<'a>,
    pub walk: Walk<'a>,
    /// The peer has sent all it had for this family (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
}

impl<'a> Update<'a> {
    /// `body`: what follows the header.
    pub fn decode(body: &'a [u8], n: &Negotiated) -> Result<Self, Notification> {
        let sections = Sections::split(body)?;
        // RFC 4271 §6.3 and RFC 7606 §3 (i), (j): routes that cannot be read cannot be withdrawn.
        let classic = |octets: &'a [u8]| {
            Nlri::new(Family::Ipv4, octets)
                .map_err(|_| Notification::new(error_code::UPDATE, subcode::INVALID_NETWORK))
        };
        let mut withdrawn = classic(sections.withdrawn)?;
        let mut nlri = classic(sections.nlri)?;
        let mut walk = walk(sections.attributes, n, !nlri.is_empty());
        if let Action::SessionReset(notification) = walk.action {
            return Err(notification);
        }
        let has_classic = !withdrawn.is_empty() || !nlri.is_empty();
        let end_of_rib = if has_classic {
            None
        } else if sections.attributes.is_empty() {
            Some(Family::Ipv4)
        } else {
            // Nothing else in it: one attribute header and the three octets of AFI and SAFI.
            walk.mp_unreach
                .filter(|m| m.nlri.is_empty() && sections.attributes.len() <= 4 + 3)
                .map(|m| m.family)
        };
        if has_classic && !n.ipv4 {
            walk.errors.push(AttributeError {
                code: 0,
                fault: Fault::NotNegotiated,
                action: Action::None,
            });
            withdrawn = Nlri::empty(Family::Ipv4);
            nlri = Nlri::empty(Family::Ipv4);
        }
        Ok(Self { withdrawn, nlri, walk, end_of_rib: end_of_rib.filter(|f| n.has(*f)) })
    }
}
