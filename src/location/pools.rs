//! The mobile pools: which prefixes may be mobile at all, and whose aggregate leads home.

use std::net::IpAddr;

use treebitmap::IpLookupTable;

use crate::types::{AnchorId, Prefix};

/// One mobile pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub prefix: Prefix,
    /// The anchor whose aggregate covers the pool; `None` when nothing leads there without
    /// mobility state, so that every attached node is announced.
    pub home: Option<AnchorId>,
}

/// Longest match over the configured pools.
pub struct Pools {
    list: Vec<Pool>,
    v4: IpLookupTable<std::net::Ipv4Addr, u32>,
    v6: IpLookupTable<std::net::Ipv6Addr, u32>,
}

impl Pools {
    pub fn new(list: Vec<Pool>) -> Self {
        let (mut v4, mut v6) = (IpLookupTable::new(), IpLookupTable::new());
        for (i, pool) in list.iter().enumerate() {
            let i = u32::try_from(i).expect("a configuration file has fewer than 2^32 pools");
            let len = u32::from(pool.prefix.len());
            match pool.prefix.addr() {
                IpAddr::V4(a) => v4.insert(a, len, i),
                IpAddr::V6(a) => v6.insert(a, len, i),
            };
        }
        Self { list, v4, v6 }
    }

    /// The longest pool that holds all of `prefix`.
    pub fn find(&self, prefix: Prefix) -> Option<&Pool> {
        // The longest match of the network address may be longer than the prefix asked about; a
        // pool that only covers a part of it is not its pool, a shorter one may be.
        let i = match prefix.addr() {
            IpAddr::V4(a) => {
                self.v4.matches(a).filter(|&(_, len, _)| len <= prefix.len().into()).last()?.2
            }
            IpAddr::V6(a) => {
                self.v6.matches(a).filter(|&(_, len, _)| len <= prefix.len().into()).last()?.2
            }
        };
        self.list.get(*i as usize)
    }

    pub fn home(&self, prefix: Prefix) -> Option<AnchorId> {
        self.find(prefix)?.home
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pool_that_holds_all_of_the_prefix() {
        let pool = |p: &str, home| Pool { prefix: p.parse().unwrap(), home: Some(AnchorId(home)) };
        let pools = Pools::new(vec![pool("10.0.0.0/8", 1), pool("10.1.0.0/16", 2)]);
        let home = |p: &str| pools.home(p.parse().unwrap());
        assert_eq!(home("10.1.0.7/32"), Some(AnchorId(2)));
        assert_eq!(home("10.2.0.7/32"), Some(AnchorId(1)));
        assert_eq!(home("10.0.0.0/12"), Some(AnchorId(1)), "the /16 covers only a part");
        assert_eq!(home("11.0.0.0/32"), None);
        assert_eq!(home("2001:db8::/64"), None);
    }
}
