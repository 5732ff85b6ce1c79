//! An EID in an instance as the tables hold it: 20 octets, and one order and one arithmetic for
//! both families. An IPv4 address stands in the upper 32 bits of the 128.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

use crate::types::Prefix;
use crate::types::lisp::InstanceId;

/// Lengths of IPv4 prefixes are told from those of IPv6 by this base: 0..=128 is IPv6.
const V4_BASE: u8 = 129;

/// Instance, family, prefix. Ordered by instance, family, address, length, so that what a prefix
/// contains follows it directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EidKey {
    addr: [u8; 16],
    /// Instance in the upper 24 bits; the lower 8 say family and length.
    shape: u32,
}

impl EidKey {
    /// What a free slot holds.
    pub const NONE: Self = Self { addr: [0; 16], shape: u32::MAX };

    /// The first and the last of all.
    pub const FIRST: Self = Self { addr: [0; 16], shape: V4_BASE as u32 };
    pub const LAST: Self = Self { addr: [0xff; 16], shape: InstanceId::MAX.0 << 8 | 128 };

    /// `iid` has 24 bits, as in a data packet; the wire has room for more, see `eid_key`.
    pub fn new(iid: InstanceId, prefix: Prefix) -> Self {
        let (bits, shape) = match prefix {
            Prefix::V4 { addr, len } => (u128::from(addr) << 96, V4_BASE + len),
            Prefix::V6 { addr, len } => (addr, len),
        };
        Self { addr: bits.to_be_bytes(), shape: iid.0 << 8 | u32::from(shape) }
    }

    pub fn iid(self) -> InstanceId {
        InstanceId(self.shape >> 8)
    }

    pub fn prefix(self) -> Prefix {
        let prefix = if self.is_v4() {
            let [a, b, c, d, ..] = self.addr;
            Prefix::v4(u32::from_be_bytes([a, b, c, d]), self.len())
        } else {
            Prefix::v6(self.bits(), self.len())
        };
        prefix.expect("made from a prefix")
    }

    fn shape_octet(self) -> u8 {
        self.shape.to_be_bytes()[3]
    }

    pub fn is_v4(self) -> bool {
        self.shape_octet() >= V4_BASE
    }

    pub fn len(self) -> u8 {
        let shape = self.shape_octet();
        shape.checked_sub(V4_BASE).unwrap_or(shape)
    }

    fn bits(self) -> u128 {
        u128::from_be_bytes(self.addr)
    }

    /// The covering prefix of this length, which must not be longer than this one.
    pub fn cut(self, len: u8) -> Self {
        debug_assert!(len <= self.len(), "cutting makes shorter");
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        let shape = if self.is_v4() { V4_BASE + len } else { len };
        Self {
            addr: (self.bits() & mask).to_be_bytes(),
            shape: self.shape & !0xff | u32::from(shape),
        }
    }

    fn same_space(self, other: Self) -> bool {
        self.shape >> 8 == other.shape >> 8 && self.is_v4() == other.is_v4()
    }

    /// True when `other` is this prefix or a more specific one.
    pub fn contains(self, other: Self) -> bool {
        self.same_space(other) && self.len() <= other.len() && other.cut(self.len()) == self
    }

    /// Leading bits that both have, not more than either length; `None` in different spaces.
    pub fn common(self, other: Self) -> Option<u8> {
        let equal = (self.bits() ^ other.bits()).leading_zeros();
        let equal = u8::try_from(equal).expect("at most 128").min(self.len()).min(other.len());
        self.same_space(other).then_some(equal)
    }
}

impl Hash for EidKey {
    /// As two numbers: an array would be hashed as octets, with its length.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.bits());
        state.write_u32(self.shape);
    }
}

impl Ord for EidKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let space = |k: &Self| (k.shape >> 8, !k.is_v4());
        space(self)
            .cmp(&space(other))
            .then_with(|| self.addr.cmp(&other.addr))
            .then_with(|| self.shape.cmp(&other.shape))
    }
}

impl PartialOrd for EidKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The prefix lengths in use, per family: what a longest match has to probe.
#[derive(Clone, Debug, Default)]
pub(super) struct Lengths {
    counts: [Vec<(u8, u32)>; 2],
}

impl Lengths {
    pub fn add(&mut self, key: EidKey) {
        let counts = &mut self.counts[usize::from(key.is_v4())];
        // Longest first.
        match counts.binary_search_by(|(len, _)| key.len().cmp(len)) {
            Ok(at) => counts[at].1 += 1,
            Err(at) => counts.insert(at, (key.len(), 1)),
        }
    }

    pub fn remove(&mut self, key: EidKey) {
        let counts = &mut self.counts[usize::from(key.is_v4())];
        if let Ok(at) = counts.binary_search_by(|(len, _)| key.len().cmp(len)) {
            counts[at].1 -= 1;
            if counts[at].1 == 0 {
                counts.remove(at);
            }
        }
    }

    /// The key itself and what may cover it, longest first; only lengths that are in use.
    pub fn covering(&self, key: EidKey) -> impl Iterator<Item = EidKey> {
        let counts = &self.counts[usize::from(key.is_v4())];
        let fits = move |&&(len, _): &&(u8, u32)| len <= key.len();
        counts.iter().filter(fits).map(move |&(len, _)| key.cut(len))
    }
}

/// The largest prefix around `target` that lies in `within` (when given) and holds none of its
/// neighbours: `before` and `after` are the entries next to it in order, none of which covers it
/// except `within` itself.
pub(super) fn largest_free(
    target: EidKey,
    within: Option<EidKey>,
    before: Option<EidKey>,
    after: Option<EidKey>,
) -> EidKey {
    let mut len = within.map_or(0, EidKey::len);
    for neighbor in [before, after].into_iter().flatten() {
        if neighbor.contains(target) {
            continue;
        }
        if let Some(common) = target.common(neighbor) {
            len = len.max((common + 1).min(target.len()));
        }
    }
    target.cut(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> EidKey {
        EidKey::new(InstanceId(7), text.parse().unwrap())
    }

    #[test]
    fn a_key_is_its_prefix_again() {
        for text in ["0.0.0.0/0", "10.1.2.3/32", "10.0.0.0/8", "::/0", "2001:db8::/64", "::1/128"] {
            assert_eq!(key(text).prefix().to_string(), text);
            assert_eq!(key(text).iid(), InstanceId(7));
        }
        assert_eq!(size_of::<EidKey>(), 20);
    }

    /// A prefix is followed by what it contains, and nothing else is between.
    #[test]
    fn order_is_by_space_then_address_then_length() {
        let mut keys =
            ["10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32", "::/0", "11.0.0.0/8", "2001::/16"]
                .map(key);
        keys.sort();
        let text = keys.map(|k| k.prefix().to_string());
        let expected =
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "11.0.0.0/8", "::/0", "2001::/16"];
        assert_eq!(text, expected);
        assert!(EidKey::new(InstanceId(6), "::/0".parse().unwrap()) < keys[0]);
    }

    #[test]
    fn containment_needs_the_same_instance_and_family() {
        assert!(key("10.0.0.0/8").contains(key("10.9.0.0/16")));
        assert!(!key("10.9.0.0/16").contains(key("10.0.0.0/8")));
        assert!(!key("0.0.0.0/0").contains(key("::/0")));
        let elsewhere = EidKey::new(InstanceId(8), "10.9.0.0/16".parse().unwrap());
        assert!(!key("10.0.0.0/8").contains(elsewhere));
    }

    #[test]
    fn lengths_are_probed_longest_first_and_only_while_in_use() {
        let mut lengths = Lengths::default();
        for text in ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.1.1.1/32", "2001:db8::/32"] {
            lengths.add(key(text));
        }
        let probes =
            |l: &Lengths, text| -> Vec<u8> { l.covering(key(text)).map(EidKey::len).collect() };
        assert_eq!(probes(&lengths, "10.1.1.1/32"), [32, 16, 8]);
        assert_eq!(probes(&lengths, "10.1.1.0/24"), [16, 8]);
        lengths.remove(key("10.1.0.0/16"));
        assert_eq!(probes(&lengths, "10.1.1.1/32"), [32, 16, 8]);
        lengths.remove(key("10.2.0.0/16"));
        assert_eq!(probes(&lengths, "10.1.1.1/32"), [32, 8]);
        assert_eq!(probes(&lengths, "2001:db8::1/128"), [32]);
    }
}
