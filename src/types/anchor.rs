//! Who anchors, and where traffic for an anchor goes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Family;

/// Identifier of an anchor, unique in the mobility domain; written like a router id. The lower
/// one wins when two anchors claim a node with the same generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnchorId(pub u32);

impl fmt::Display for AnchorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for AnchorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnchorId({self})")
    }
}

impl FromStr for AnchorId {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.parse::<Ipv4Addr>() {
            Ok(id) if !id.is_unspecified() => Ok(Self(id.into())),
            Ok(_) => Err("an anchor id must not be 0.0.0.0"),
            Err(_) => Err("not an anchor id (expected a dotted quad, for example 192.0.2.1)"),
        }
    }
}

impl Serialize for AnchorId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AnchorId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where an FE_E receives traffic: the next hop of host routes, one per family. A missing family
/// means that prefixes of it cannot be steered there (RFC 8950 lets IPv4 use an IPv6 next hop).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locator {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Addr>,
}

impl Locator {
    /// The next hop for a prefix of this family; IPv4 falls back to the IPv6 one (RFC 8950).
    pub fn next_hop(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.ipv4.map(IpAddr::V4).or(self.ipv6.map(IpAddr::V6)),
            Family::Ipv6 => self.ipv6.map(IpAddr::V6),
        }
    }

    /// Whether there is a family in which the two can talk.
    pub fn shares_family_with(&self, other: &Self) -> bool {
        let both4 = self.ipv4.is_some() && other.ipv4.is_some();
        both4 || self.ipv6.is_some() && other.ipv6.is_some()
    }
}
