//! BGP-4 octets ↔ values (RFC 4271, 4760, 4456, 6793, 7606, 8092, 8654, 8950).
//!
//! Framing, OPEN, the attribute walk, AS_PATH and next hops are ours: no octet of a peer reaches
//! zettabgp, which serves as encoder of NLRI types and as an oracle in tests.

pub mod attributes;

pub use attributes::{
    AsPath, AsSegment, Attributes, ExtendedCommunity, LargeCommunity, NextHop, Origin, RawAttribute,
};
