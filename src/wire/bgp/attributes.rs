//! The path attributes of a route, as values: what the RIB interns, compares and re-encodes.
//!
//! NLRI is not here; the next hop is, whether it came in NEXT_HOP (RFC 4271 §5.1.3) or in
//! MP_REACH_NLRI (RFC 4760 §3, RFC 8950), because routes that differ in it cannot share an UPDATE.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Origin {
    #[default]
    Igp = 0,
    Egp = 1,
    Incomplete = 2,
}

/// One segment of AS_PATH, always with 4-octet AS numbers inside (RFC 6793).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AsSegment {
    Set(Vec<u32>),
    Sequence(Vec<u32>),
    /// RFC 5065; only ever seen from a confederation peer.
    ConfedSequence(Vec<u32>),
    ConfedSet(Vec<u32>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath(pub Vec<AsSegment>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    V4(Ipv4Addr),
    /// RFC 2545 §3: the link-local address is present when the peer shares the link.
    V6 {
        global: Ipv6Addr,
        link_local: Option<Ipv6Addr>,
    },
}

impl NextHop {
    pub fn addr(self) -> IpAddr {
        match self {
            Self::V4(a) => IpAddr::V4(a),
            Self::V6 { global, .. } => IpAddr::V6(global),
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => Self::V4(a),
            IpAddr::V6(global) => Self::V6 { global, link_local: None },
        }
    }
}

/// RFC 8092 §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    pub global: u32,
    pub local1: u32,
    pub local2: u32,
}

/// RFC 4360 §2, all eight octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub [u8; 8]);

/// An optional attribute that killick does not know: kept, and passed on when transitive (with the
/// Partial bit set, RFC 4271 §9).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawAttribute {
    pub flags: u8,
    pub code: u8,
    pub value: Vec<u8>,
}

/// Everything that is said about a route but its prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: AsPath,
    pub next_hop: NextHop,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<(u32, Ipv4Addr)>,
    /// RFC 1997, in the order received.
    pub communities: Vec<u32>,
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: Vec<Ipv4Addr>,
    pub extended_communities: Vec<ExtendedCommunity>,
    pub large_communities: Vec<LargeCommunity>,
    pub unknown: Vec<RawAttribute>,
}

impl Attributes {
    /// A route of our own: IGP origin, empty AS_PATH.
    pub fn local(next_hop: NextHop) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            extended_communities: Vec::new(),
            large_communities: Vec::new(),
            unknown: Vec::new(),
        }
    }
}

/// RFC 1997: not outside the AS (or confederation).
pub const NO_EXPORT: u32 = 0xffff_ff01;
/// RFC 1997: to no peer at all.
pub const NO_ADVERTISE: u32 = 0xffff_ff02;
/// RFC 1997: to no external peer.
pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
