//! BGP-4 octets ↔ values (RFC 4271, 4760, 5492, 6793, 7606, 8654, 8950 and the attributes of 1997,
//! 4360, 4456, 8092).
//!
//! Framing, OPEN, the attribute walk, AS_PATH, next hops and NLRI are ours: no octet of a peer
//! reaches zettabgp, which serves as an oracle in tests.

mod as_path;
pub mod attributes;
mod capability;
mod encode;
mod frame;
mod negotiated;
pub mod nlri;
pub mod notification;
mod open;
mod refresh;
pub mod update;
mod walk;

pub use attributes::{
    AsPath, AsSegment, Attributes, ExtendedCommunity, LargeCommunity, NextHop, Origin, RawAttribute,
};
pub use capability::{Capability, GracefulRestartFamily, SAFI_UNICAST, afi};
pub use encode::{
    AttributesTooLong, EncodedAttributes, Packer, encode_attributes, encode_end_of_rib,
};
pub use frame::{
    Frame, HEADER_LEN, MAX_LEN, MAX_LEN_EXTENDED, MessageType, begin, encode_keepalive, finish,
    next_frame,
};
pub use negotiated::Negotiated;
pub use nlri::{Nlri, NlriError};
pub use notification::Notification;
pub use open::{AS_TRANS, Open};
pub use refresh::{RefreshKind, RouteRefresh};
pub use update::{Action, AttributeError, Fault, MpReach, MpUnreach, Sections, Update, Walk};
pub use walk::walk;
