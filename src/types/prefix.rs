//! An IPv4 or IPv6 prefix without host bits: the key of every table.
//!
//! `ipnetwork` parses and prints; this type exists because `IpNetwork` keeps host bits
//! (`10.1.2.3/8` stays so) and is 18 bytes, and a key must compare equal when it means the same.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

/// Address family of a prefix or of a BGP (AFI, unicast) pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Bits in an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }

    /// The label used in metrics, JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Network address and length; bits past the length are zero (an invariant of construction).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    V4 { addr: u32, len: u8 },
    V6 { addr: u128, len: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("not an IP prefix (expected for example 10.1.0.7/32 or 2001:db8::/64)")]
    Syntax,
    #[error("prefix length is larger than the address")]
    Length,
    #[error("bits are set past the prefix length")]
    HostBits,
}

const fn mask4(len: u8) -> u32 {
    if len == 0 { 0 } else { u32::MAX << (32 - len as u32) }
}

const fn mask6(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len as u32) }
}

impl Prefix {
    /// `addr` with the bits past `len` cleared. `None` when `len` is larger than the address.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        match addr {
            IpAddr::V4(a) => Self::v4(u32::from(a), len),
            IpAddr::V6(a) => Self::v6(u128::from(a), len),
        }
    }

    pub fn v4(addr: u32, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self::V4 { addr: addr & mask4(len), len })
    }

    pub fn v6(addr: u128, len: u8) -> Option<Self> {
        (len <= 128).then(|| Self::V6 { addr: addr & mask6(len), len })
    }

    /// The /32 or /128 of one address.
    pub fn host(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => Self::V4 { addr: u32::from(a), len: 32 },
            IpAddr::V6(a) => Self::V6 { addr: u128::from(a), len: 128 },
        }
    }

    pub const fn family(self) -> Family {
        match self {
            Self::V4 { .. } => Family::Ipv4,
            Self::V6 { .. } => Family::Ipv6,
        }
    }

    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a size")]
    pub const fn len(self) -> u8 {
        match self {
            Self::V4 { len, .. } | Self::V6 { len, .. } => len,
        }
    }

    /// The network address.
    pub fn addr(self) -> IpAddr {
        match self {
            Self::V4 { addr, .. } => IpAddr::V4(Ipv4Addr::from(addr)),
            Self::V6 { addr, .. } => IpAddr::V6(Ipv6Addr::from(addr)),
        }
    }

    /// A /32 or a /128.
    pub const fn is_host(self) -> bool {
        self.len() == self.family().bits()
    }

    /// True when `other` is this prefix or a more specific one.
    pub const fn contains(self, other: Self) -> bool {
        match (self, other) {
            (Self::V4 { addr, len }, Self::V4 { addr: a, len: l }) => {
                len <= l && a & mask4(len) == addr
            }
            (Self::V6 { addr, len }, Self::V6 { addr: a, len: l }) => {
                len <= l && a & mask6(len) == addr
            }
            (Self::V4 { .. }, Self::V6 { .. }) | (Self::V6 { .. }, Self::V4 { .. }) => false,
        }
    }

    pub fn contains_addr(self, addr: IpAddr) -> bool {
        self.contains(Self::host(addr))
    }

    pub fn network(self) -> IpNetwork {
        match self {
            Self::V4 { addr, len } => IpNetwork::V4(
                Ipv4Network::new(Ipv4Addr::from(addr), len).expect("len <= 32 by construction"),
            ),
            Self::V6 { addr, len } => IpNetwork::V6(
                Ipv6Network::new(Ipv6Addr::from(addr), len).expect("len <= 128 by construction"),
            ),
        }
    }
}

impl From<IpNetwork> for Prefix {
    /// Host bits are cleared.
    fn from(n: IpNetwork) -> Self {
        Self::new(n.ip(), n.prefix()).expect("IpNetwork holds a valid length")
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// A bare address is its host prefix. Host bits are an error, so that a typo is not rounded.
    fn from_str(s: &str) -> Result<Self, PrefixError> {
        let (addr, len) = match s.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (s, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError::Syntax)?;
        let Some(len) = len else { return Ok(Self::host(addr)) };
        let len: u8 = len.parse().map_err(|_| PrefixError::Syntax)?;
        let prefix = Self::new(addr, len).ok_or(PrefixError::Length)?;
        if prefix.addr() == addr { Ok(prefix) } else { Err(PrefixError::HostBits) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_in_text_and_cleared_in_values() {
        assert_eq!("10.1.2.3/8".parse::<Prefix>(), Err(PrefixError::HostBits));
        assert_eq!(Prefix::new("10.1.2.3".parse().unwrap(), 8).unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("2001:db8::1".parse::<Prefix>().unwrap().to_string(), "2001:db8::1/128");
        assert_eq!("10.0.0.0/33".parse::<Prefix>(), Err(PrefixError::Length));
        assert_eq!("ten".parse::<Prefix>(), Err(PrefixError::Syntax));
    }

    #[test]
    fn containment_is_by_family_and_length() {
        let p = |s: &str| s.parse::<Prefix>().unwrap();
        assert!(p("0.0.0.0/0").contains(p("10.0.0.1/32")));
        assert!(!p("10.0.0.1/32").contains(p("0.0.0.0/0")));
        assert!(p("2001:db8::/32").contains(p("2001:db8:1::/48")));
        assert!(!p("::/0").contains(p("0.0.0.0/0")));
    }
}
