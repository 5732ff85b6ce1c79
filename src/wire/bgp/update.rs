//! UPDATE (RFC 4271 §4.3) with the error handling of RFC 7606.

use super::{Attributes, Negotiated, NextHop, Nlri, Notification};
use crate::types::Family;

/// The three fields of an UPDATE; only their bounds are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections<'a> {
    pub withdrawn: &'a [u8],
    pub attributes: &'a [u8],
    pub nlri: &'a [u8],
}

impl<'a> Sections<'a> {
    pub fn split(_body: &'a [u8]) -> Result<Self, Notification> {
        unimplemented!()
    }
}

/// A reason that an attribute is not as it should be. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Flags,
    Length,
    Value,
    Duplicate,
    Missing,
    Overrun,
    Unrecognized,
    /// An attribute that this kind of peer has no business to send.
    NotFromThisPeer,
    NotNegotiated,
    NextHop,
    Nlri,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeError {
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
    /// The next hop is that of NEXT_HOP when the UPDATE has classic NLRI, else that of MP_REACH_NLRI; with both,
    /// the routes of `mp_reach` have `mp_reach.next_hop`.
    pub attributes: Option<Attributes>,
    pub mp_reach: Option<MpReach<'a>>,
    pub mp_unreach: Option<MpUnreach<'a>>,
    pub errors: Vec<AttributeError>,
    /// The strongest of `errors`.
    pub action: Action,
}

pub fn walk<'a>(_block: &'a [u8], _n: &Negotiated, _has_v4_nlri: bool) -> Walk<'a> {
    unimplemented!()
}

/// A whole UPDATE: every NLRI field is valid. `walk.action` is never a session reset here (that is the `Err`).
/// With `TreatAsWithdraw`, all of `withdrawn`, `nlri`, `walk.mp_reach`, `walk.mp_unreach` are to be withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    pub withdrawn: Nlri<'a>,
    pub nlri: Nlri<'a>,
    pub walk: Walk<'a>,
}

impl<'a> Update<'a> {
    pub fn decode(_body: &'a [u8], _n: &Negotiated) -> Result<Self, Notification> {
        unimplemented!()
    }
    /// RFC 4724 §2.
    pub fn end_of_rib(&self) -> Option<Family> {
        unimplemented!()
    }
}
