//! Prefix → value, longest match first: a hash table for single hosts, which are most of what a
//! mobility anchor knows, and a multibit trie for the few shorter prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use treebitmap::IpLookupTable;

use crate::types::Prefix;

/// Only ever looked up by key: no order comes out of the hash tables.
pub struct Table<T> {
    hosts4: HashMap<u32, T, FixedState>,
    hosts6: HashMap<u128, T, FixedState>,
    networks4: IpLookupTable<Ipv4Addr, T>,
    networks6: IpLookupTable<Ipv6Addr, T>,
    networks: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            hosts4: HashMap::default(),
            hosts6: HashMap::default(),
            networks4: IpLookupTable::new(),
            networks6: IpLookupTable::new(),
            networks: 0,
        }
    }
}

impl<T> Table<T> {
    pub fn len(&self) -> usize {
        self.hosts4.len() + self.hosts6.len() + self.networks
    }

    /// The value under exactly this prefix.
    pub fn find_mut(&mut self, prefix: Prefix) -> Option<&mut T> {
        match prefix {
            Prefix::V4 { addr, len: 32 } => self.hosts4.get_mut(&addr),
            Prefix::V6 { addr, len: 128 } => self.hosts6.get_mut(&addr),
            Prefix::V4 { addr, len } => {
                self.networks4.exact_match_mut(Ipv4Addr::from(addr), len.into())
            }
            Prefix::V6 { addr, len } => {
                self.networks6.exact_match_mut(Ipv6Addr::from(addr), len.into())
            }
        }
    }

    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let old = match prefix {
            Prefix::V4 { addr, len: 32 } => return self.hosts4.insert(addr, value),
            Prefix::V6 { addr, len: 128 } => return self.hosts6.insert(addr, value),
            Prefix::V4 { addr, len } => {
                self.networks4.insert(Ipv4Addr::from(addr), len.into(), value)
            }
            Prefix::V6 { addr, len } => {
                self.networks6.insert(Ipv6Addr::from(addr), len.into(), value)
            }
        };
        self.networks += usize::from(old.is_none());
        old
    }

    pub fn remove(&mut self, prefix: Prefix) -> Option<T> {
        let old = match prefix {
            Prefix::V4 { addr, len: 32 } => return self.hosts4.remove(&addr),
            Prefix::V6 { addr, len: 128 } => return self.hosts6.remove(&addr),
            Prefix::V4 { addr, len } => self.networks4.remove(Ipv4Addr::from(addr), len.into()),
            Prefix::V6 { addr, len } => self.networks6.remove(Ipv6Addr::from(addr), len.into()),
        };
        self.networks -= usize::from(old.is_some());
        old
    }

    /// The longest prefix that contains `addr`.
    pub fn lookup_mut(&mut self, addr: IpAddr) -> Option<(Prefix, &mut T)> {
        match addr {
            IpAddr::V4(ip) => {
                let bits = u32::from(ip);
                match self.hosts4.get_mut(&bits) {
                    Some(value) => Some((Prefix::V4 { addr: bits, len: 32 }, value)),
                    None => {
                        let (network, len, value) = self.networks4.longest_match_mut(ip)?;
                        let len = u8::try_from(len).expect("at most 32");
                        Some((Prefix::V4 { addr: u32::from(network), len }, value))
                    }
                }
            }
            IpAddr::V6(ip) => {
                let bits = u128::from(ip);
                match self.hosts6.get_mut(&bits) {
                    Some(value) => Some((Prefix::V6 { addr: bits, len: 128 }, value)),
                    None => {
                        let (network, len, value) = self.networks6.longest_match_mut(ip)?;
                        let len = u8::try_from(len).expect("at most 128");
                        Some((Prefix::V6 { addr: u128::from(network), len }, value))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let mut table = Table::default();
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.7/32", "2001:db8::/32"] {
            assert!(table.insert(text.parse().unwrap(), text).is_none());
        }
        let mut longest = |addr: &str| {
            let found = table.lookup_mut(addr.parse().unwrap());
            found.map(|(prefix, value)| {
                assert_eq!(prefix.to_string(), *value);
                *value
            })
        };
        assert_eq!(longest("10.1.0.7"), Some("10.1.0.7/32"));
        assert_eq!(longest("10.1.0.8"), Some("10.1.0.0/16"));
        assert_eq!(longest("11.1.0.8"), Some("0.0.0.0/0"));
        assert_eq!(longest("2001:db8::1"), Some("2001:db8::/32"));
        assert_eq!(longest("2001:db9::1"), None);
        assert_eq!(table.len(), 5);
        assert_eq!(table.remove("10.1.0.0/16".parse().unwrap()), Some("10.1.0.0/16"));
        assert_eq!(table.remove("10.1.0.0/16".parse().unwrap()), None);
        assert_eq!(table.len(), 4);
    }
}
