//! NLRI of unicast families (RFC 4271 §4.3, RFC 4760 §5).
//!
//! A field is validated once (RFC 7606 §5.3) and then read in place, so that iterating cannot fail
//! and needs no memory. Bits past the prefix length "are irrelevant" (§4.3) and read as zero.

use crate::types::{Family, Prefix};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NlriError {
    #[error("a prefix length is larger than the address")]
    Length,
    #[error("the last prefix is truncated")]
    Truncated,
}

/// A validated NLRI field, not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nlri<'a> {
    family: Family,
    octets: &'a [u8],
}

impl<'a> Nlri<'a> {
    pub const fn empty(family: Family) -> Self {
        Self { family, octets: &[] }
    }

    pub fn new(family: Family, octets: &'a [u8]) -> Result<Self, NlriError> {
        let bits_max = family.bits();
        let mut at = 0;
        while let Some(&bits) = octets.get(at) {
            if bits > bits_max {
                return Err(NlriError::Length);
            }
            at += 1 + octets_of(bits);
        }
        if at == octets.len() { Ok(Self { family, octets }) } else { Err(NlriError::Truncated) }
    }

    pub const fn family(&self) -> Family {
        self.family
    }

    pub const fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// Counts by walking the lengths.
    pub fn count(&self) -> usize {
        let mut rest = self.octets;
        std::iter::from_fn(|| {
            let (&bits, tail) = rest.split_first()?;
            rest = tail.get(octets_of(bits)..)?;
            Some(())
        })
        .count()
    }

    pub const fn iter(&self) -> Prefixes<'a> {
        Prefixes { family: self.family, rest: self.octets }
    }

    /// (address, length) without the enum; empty unless the family is IPv4.
    pub const fn iter_v4(&self) -> PrefixesV4<'a> {
        match self.family {
            Family::Ipv4 => PrefixesV4 { rest: self.octets },
            Family::Ipv6 => PrefixesV4 { rest: &[] },
        }
    }

    /// (address, length) without the enum; empty unless the family is IPv6.
    pub const fn iter_v6(&self) -> PrefixesV6<'a> {
        match self.family {
            Family::Ipv6 => PrefixesV6 { rest: self.octets },
            Family::Ipv4 => PrefixesV6 { rest: &[] },
        }
    }
}

impl<'a> IntoIterator for &Nlri<'a> {
    type Item = Prefix;
    type IntoIter = Prefixes<'a>;

    fn into_iter(self) -> Prefixes<'a> {
        self.iter()
    }
}

#[derive(Clone, Debug)]
pub struct Prefixes<'a> {
    family: Family,
    rest: &'a [u8],
}

impl Iterator for Prefixes<'_> {
    type Item = Prefix;

    fn next(&mut self) -> Option<Prefix> {
        match self.family {
            Family::Ipv4 => next_v4(&mut self.rest).and_then(|(addr, len)| Prefix::v4(addr, len)),
            Family::Ipv6 => next_v6(&mut self.rest).and_then(|(addr, len)| Prefix::v6(addr, len)),
        }
    }
}

#[derive(Clone, Debug)]
pub struct PrefixesV4<'a> {
    rest: &'a [u8],
}

impl Iterator for PrefixesV4<'_> {
    type Item = (u32, u8);

    fn next(&mut self) -> Option<(u32, u8)> {
        next_v4(&mut self.rest)
    }
}

#[derive(Clone, Debug)]
pub struct PrefixesV6<'a> {
    rest: &'a [u8],
}

impl Iterator for PrefixesV6<'_> {
    type Item = (u128, u8);

    fn next(&mut self) -> Option<(u128, u8)> {
        next_v6(&mut self.rest)
    }
}

/// Octets that the first `bits` bits of an address take.
const fn octets_of(bits: u8) -> usize {
    (bits as usize).div_ceil(8)
}

fn next_v4(rest: &mut &[u8]) -> Option<(u32, u8)> {
    let (&bits, tail) = rest.split_first()?;
    let len = octets_of(bits);
    // Four octets are there unless this is one of the last prefixes: one load instead of a copy.
    let word = match tail.first_chunk::<4>() {
        Some(octets) => u32::from_be_bytes(*octets),
        None => {
            let mut octets = [0; 4];
            octets.get_mut(..len)?.copy_from_slice(tail.get(..len)?);
            u32::from_be_bytes(octets)
        }
    };
    *rest = tail.get(len..)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
    Some((word & mask, bits))
}

fn next_v6(rest: &mut &[u8]) -> Option<(u128, u8)> {
    let (&bits, tail) = rest.split_first()?;
    let len = octets_of(bits);
    let word = match tail.first_chunk::<16>() {
        Some(octets) => u128::from_be_bytes(*octets),
        None => {
            let mut octets = [0; 16];
            octets.get_mut(..len)?.copy_from_slice(tail.get(..len)?);
            u128::from_be_bytes(octets)
        }
    };
    *rest = tail.get(len..)?;
    let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
    Some((word & mask, bits))
}

/// `len` is at most 32.
pub fn push_v4(addr: u32, len: u8, out: &mut Vec<u8>) {
    push_octets(addr.to_be_bytes(), len, out);
}

/// `len` is at most 128.
pub fn push_v6(addr: u128, len: u8, out: &mut Vec<u8>) {
    push_octets(addr.to_be_bytes(), len, out);
}

/// All octets and then back: a copy of constant size is faster than one of the right size.
fn push_octets<const N: usize>(addr: [u8; N], len: u8, out: &mut Vec<u8>) {
    out.reserve(1 + N);
    out.push(len);
    let end = out.len() + octets_of(len);
    out.extend_from_slice(&addr);
    out.truncate(end);
}

pub fn push(prefix: Prefix, out: &mut Vec<u8>) {
    match prefix {
        Prefix::V4 { addr, len } => push_v4(addr, len, out),
        Prefix::V6 { addr, len } => push_v6(addr, len, out),
    }
}

/// Octets that [`push`] appends.
pub const fn encoded_len(prefix: Prefix) -> usize {
    1 + octets_of(prefix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(family: Family, octets: &[u8]) -> Result<Vec<String>, NlriError> {
        Nlri::new(family, octets).map(|n| n.iter().map(|p| p.to_string()).collect())
    }

    /// RFC 7606 §5.3.
    #[test]
    fn syntax() {
        use Family::{Ipv4, Ipv6};
        assert_eq!(read(Ipv4, &[33, 1, 2, 3, 4, 5]), Err(NlriError::Length));
        assert_eq!(read(Ipv4, &[8, 10, 24, 10, 1]), Err(NlriError::Truncated));
        assert_eq!(read(Ipv4, &[8, 10, 24]), Err(NlriError::Truncated));
        assert_eq!(read(Ipv6, &[129; 18]), Err(NlriError::Length));
        assert_eq!(read(Ipv6, &[128, 0]), Err(NlriError::Truncated));
        assert_eq!(read(Ipv4, &[]), Ok(vec![]));
        assert_eq!(
            read(Ipv4, &[0, 7, 0xff, 32, 10, 0, 0, 7, 9, 10, 0xff]).unwrap(),
            ["0.0.0.0/0", "254.0.0.0/7", "10.0.0.7/32", "10.128.0.0/9"]
        );
        assert_eq!(
            read(Ipv6, &[0, 33, 0x20, 1, 0xd, 0xb8, 0xff]).unwrap(),
            ["::/0", "2001:db8:8000::/33"]
        );
    }

    /// RFC 4271 §4.3: trailing bits are irrelevant.
    #[test]
    fn trailing_bits_read_as_zero() {
        let v4 = Nlri::new(Family::Ipv4, &[9, 10, 0xff, 25, 10, 0, 0, 0xff]).unwrap();
        assert!(v4.iter_v4().eq([(0x0a80_0000, 9), (0x0a00_0080, 25)]));
        let v6 = Nlri::new(Family::Ipv6, &[3, 0xff]).unwrap();
        assert!(v6.iter_v6().eq([(0xe0 << 120, 3)]));
    }

    #[test]
    fn every_length_round_trips() {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for len in 0..=32 {
            push(Prefix::v4(0xdead_beef, len).unwrap(), &mut v4);
        }
        for len in 0..=128 {
            push(Prefix::v6(u128::MAX / 5 * 4, len).unwrap(), &mut v6);
        }
        let v4 = Nlri::new(Family::Ipv4, &v4).unwrap();
        let v6 = Nlri::new(Family::Ipv6, &v6).unwrap();
        assert_eq!((v4.count(), v6.count()), (33, 129));
        for (len, (prefix, raw)) in (0..).zip(v4.iter().zip(v4.iter_v4())) {
            assert_eq!(prefix, Prefix::v4(0xdead_beef, len).unwrap());
            assert_eq!(prefix, Prefix::V4 { addr: raw.0, len: raw.1 });
        }
        for (len, (prefix, raw)) in (0..).zip(v6.iter().zip(v6.iter_v6())) {
            assert_eq!(prefix, Prefix::v6(u128::MAX / 5 * 4, len).unwrap());
            assert_eq!(prefix, Prefix::V6 { addr: raw.0, len: raw.1 });
        }
        assert_eq!(v4.iter_v6().count() + v6.iter_v4().count(), 0);
    }
}
