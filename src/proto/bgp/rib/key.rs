//! Prefixes as table keys: an address of 4 or 16 octets and a length, without the enum.

use crate::types::{Family, Prefix};

pub(super) trait Addr: Copy + Eq + std::fmt::Debug {
    const FAMILY: Family;
    fn hash(self, len: u8, seed: u64) -> u32;
    fn prefix(self, len: u8) -> Prefix;
    fn of(prefix: Prefix) -> Option<Key<Self>>;
    /// Appends the prefixes of an NLRI field, host bits cleared. False (and nothing certain about
    /// `out`) when the field is malformed.
    fn parse(octets: &[u8], out: &mut Vec<Key<Self>>) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<A> {
    pub addr: A,
    pub len: u8,
}

impl<A: Addr> Key<A> {
    pub(super) fn hash(self, seed: u64) -> u32 {
        self.addr.hash(self.len, seed)
    }

    pub(super) fn prefix(self) -> Prefix {
        self.addr.prefix(self.len)
    }
}

/// Multiply and fold: both halves of the product depend on all bits of both sides.
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// An odd constant with a random look (digits of π).
const PI: u64 = 0x243f_6a88_85a3_08d3;

impl Addr for u32 {
    const FAMILY: Family = Family::Ipv4;

    #[inline]
    fn hash(self, len: u8, seed: u64) -> u32 {
        let x = (u64::from(self) << 8) | u64::from(len);
        (fold(x ^ seed, PI ^ seed.rotate_left(32)) >> 16) as u32
    }

    fn prefix(self, len: u8) -> Prefix {
        Prefix::v4(self, len).expect("keys have valid lengths")
    }

    fn of(prefix: Prefix) -> Option<Key<Self>> {
        match prefix {
            Prefix::V4 { addr, len } => Some(Key { addr, len }),
            Prefix::V6 { .. } => None,
        }
    }

    #[inline]
    fn parse(mut octets: &[u8], out: &mut Vec<Key<Self>>) -> bool {
        while let [len, rest @ ..] = octets {
            let len = *len;
            // Host routes first: they are what this table is full of.
            if len == 32 {
                let Some((head, tail)) = rest.split_first_chunk::<4>() else { return false };
                out.push(Key { addr: u32::from_be_bytes(*head), len });
                octets = tail;
                continue;
            }
            if len > 32 {
                return false;
            }
            let Some((head, tail)) = rest.split_at_checked(usize::from(len).div_ceil(8)) else {
                return false;
            };
            let mut full = [0; 4];
            full[..head.len()].copy_from_slice(head);
            let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
            out.push(Key { addr: u32::from_be_bytes(full) & mask, len });
            octets = tail;
        }
        true
    }
}

impl Addr for [u8; 16] {
    const FAMILY: Family = Family::Ipv6;

    #[inline]
    fn hash(self, len: u8, seed: u64) -> u32 {
        let x = u128::from_be_bytes(self);
        let first = fold((x >> 64) as u64 ^ seed, PI ^ u64::from(len));
        (fold(x as u64 ^ first, PI ^ seed.rotate_left(32)) >> 16) as u32
    }

    fn prefix(self, len: u8) -> Prefix {
        Prefix::v6(u128::from_be_bytes(self), len).expect("keys have valid lengths")
    }

    fn of(prefix: Prefix) -> Option<Key<Self>> {
        match prefix {
            Prefix::V6 { addr, len } => Some(Key { addr: addr.to_be_bytes(), len }),
            Prefix::V4 { .. } => None,
        }
    }

    fn parse(mut octets: &[u8], out: &mut Vec<Key<Self>>) -> bool {
        while let [len, rest @ ..] = octets {
            let len = *len;
            if len > 128 {
                return false;
            }
            let Some((head, tail)) = rest.split_at_checked(usize::from(len).div_ceil(8)) else {
                return false;
            };
            let mut addr = [0; 16];
            addr[..head.len()].copy_from_slice(head);
            if len % 8 != 0 {
                addr[usize::from(len / 8)] &= 0xff << (8 - len % 8);
            }
            out.push(Key { addr, len });
            octets = tail;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nlri_is_parsed_and_masked() {
        let octets = [32, 10, 0, 0, 1, 0, 20, 10, 1, 0xff, 8, 10];
        let mut keys = Vec::new();
        assert!(u32::parse(&octets, &mut keys));
        let text: Vec<String> = keys.iter().map(|k| k.prefix().to_string()).collect();
        assert_eq!(text, ["10.0.0.1/32", "0.0.0.0/0", "10.1.240.0/20", "10.0.0.0/8"]);

        let mut keys = Vec::new();
        assert!(<[u8; 16]>::parse(&[61, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0xff, 0], &mut keys));
        assert_eq!(keys[0].prefix().to_string(), "2001:db8:0:f8::/61");
        assert_eq!(keys[1].prefix().to_string(), "::/0");
    }

    #[test]
    fn malformed_nlri_is_refused() {
        for octets in [&[33, 1, 2, 3, 4, 5][..], &[32, 1, 2, 3], &[9, 1]] {
            assert!(!u32::parse(octets, &mut Vec::new()), "{octets:?}");
        }
        assert!(!<[u8; 16]>::parse(&[129; 18], &mut Vec::new()));
        assert!(!<[u8; 16]>::parse(&[128; 16], &mut Vec::new()));
    }
}
