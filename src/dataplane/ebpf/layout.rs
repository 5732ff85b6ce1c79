//! The structures that `killick.bpf.c` shares with us, field for field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::Prefix;
use crate::types::lisp::{EntryAction, EntryCount, GroupId, GroupPath, InstanceId};

/// Changes whenever a structure in a pinned map does, so that an older killick's maps are not taken
/// for ours.
pub const LAYOUT: &str = "v1";

pub const MEMBERS: usize = 8;
const BUCKETS: usize = 32;
pub const LINKS: u32 = 64;
pub const ANY_IID: u32 = u32::MAX;

/// Plain octets without padding: may be made from any octets and read as octets.
///
/// # Safety
/// `repr(C)`, no padding, every bit pattern valid.
pub unsafe trait Plain: Copy + Default {}

pub fn octets_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: without padding, so all octets are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

pub fn octets_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern that is written is valid.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

// SAFETY: no padding, every pattern valid.
unsafe impl Plain for u32 {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub local4: u32,
    pub local6: [u32; 4],
    pub iid: u32,
    pub mtu: u32,
    pub epoch: u32,
    pub underlay: u32,
    pub hosts4: u32,
    pub hosts6: u32,
    pub decap_hosts4: u32,
    pub decap_hosts6: u32,
}
// SAFETY: 13 words.
unsafe impl Plain for Config {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub action: u32,
    pub group: u32,
    pub used: u32,
    pub len: u32,
    pub packets: u64,
    pub octets: u64,
}
// SAFETY: four words, two double words, aligned.
unsafe impl Plain for Entry {}

const ACTION_GROUP: u32 = 1;
const ACTION_PUNT: u32 = 2;
const ACTION_NATIVE: u32 = 3;
const ACTION_DROP: u32 = 4;

impl Entry {
    /// As it is when it has just been set: not used, counts as before.
    /// `None` for what these programs cannot do.
    pub fn new(action: EntryAction, len: u8, before: EntryCount) -> Option<Self> {
        let (action, group) = match action {
            EntryAction::Group(group) => (ACTION_GROUP, group.0),
            EntryAction::Punt => (ACTION_PUNT, 0),
            EntryAction::Native => (ACTION_NATIVE, 0),
            EntryAction::Drop => (ACTION_DROP, 0),
            EntryAction::Rewrite(_) => return None,
        };
        let EntryCount { packets, octets } = before;
        Some(Self { action, group, used: 0, len: len.into(), packets, octets })
    }

    /// `None`: not written by this version.
    pub fn action(&self) -> Option<EntryAction> {
        match self.action {
            ACTION_GROUP => Some(EntryAction::Group(GroupId(self.group))),
            ACTION_PUNT => Some(EntryAction::Punt),
            ACTION_NATIVE => Some(EntryAction::Native),
            ACTION_DROP => Some(EntryAction::Drop),
            _ => None,
        }
    }

    pub fn count(&self) -> EntryCount {
        EntryCount { packets: self.packets, octets: self.octets }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub addr: [u32; 4],
    pub family: u32,
    pub weight: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    pub serial: u32,
    pub members: u32,
    pub iid: u32,
    pub bucket: [u8; BUCKETS],
    pub member: [Member; MEMBERS],
}
// SAFETY: words, and octets in a multiple of four.
unsafe impl Plain for Path {}

impl Path {
    /// Of the members that `usable` takes; the heaviest [`MEMBERS`] when there are more.
    pub fn new(path: &GroupPath, serial: u32, usable: impl Fn(IpAddr) -> bool) -> Self {
        let mut made = Self { serial, ..Self::default() };
        let GroupPath::Encap { members, iid } = path else { return made };
        made.iid = (iid.0 << 8).to_be();
        let mut chosen: Vec<(IpAddr, u8)> =
            members.iter().copied().filter(|&(addr, _)| usable(addr)).collect();
        if chosen.len() > MEMBERS {
            chosen.sort_by_key(|&(addr, weight)| (std::cmp::Reverse(weight), addr));
            chosen.truncate(MEMBERS);
            chosen.sort();
        }
        for (slot, &(addr, weight)) in made.member.iter_mut().zip(&chosen) {
            let (family, addr) = words_of(addr);
            *slot = Member { addr, family, weight: weight.into() };
        }
        made.members = chosen.len().try_into().expect("at most MEMBERS");
        let weights: Vec<u32> = chosen.iter().map(|&(_, weight)| weight.into()).collect();
        made.bucket = share(&weights);
        made
    }

    /// What [`Self::new`] was made from, as far as it is kept.
    pub fn group_path(&self) -> GroupPath {
        let members: Vec<(IpAddr, u8)> = self
            .member
            .iter()
            .take(self.members.try_into().unwrap_or(usize::MAX))
            .map(|m| (ip_of(m.family, m.addr), u8::try_from(m.weight).unwrap_or(u8::MAX)))
            .collect();
        if members.is_empty() {
            return GroupPath::Unreachable;
        }
        GroupPath::Encap { members, iid: InstanceId(u32::from_be(self.iid) >> 8) }
    }
}

/// The buckets of flows, shared in proportion to the weights. Each member that has a weight gets at
/// least one; when none has, all are equal (RFC 9301 §5.4).
fn share(weights: &[u32]) -> [u8; BUCKETS] {
    let all_zero = weights.iter().all(|&w| w == 0);
    let weight = |w: u32| if all_zero { 1 } else { w };
    let mut bucket = [0; BUCKETS];
    let mut given = vec![0_u32; weights.len()];
    // Each bucket goes to the member that is furthest below its share (d'Hondt's method): the first
    // ones, while a member has nothing yet, go to these.
    for slot in &mut bucket {
        let next = (0..weights.len()).filter(|&at| weight(weights[at]) > 0).max_by(|&a, &b| {
            let score = |at: usize| (weight(weights[at]), given[at] + 1);
            let ((wa, ga), (wb, gb)) = (score(a), score(b));
            let empty = (given[a] == 0).cmp(&(given[b] == 0));
            empty.then((wa * gb).cmp(&(wb * ga))).then(b.cmp(&a))
        });
        let Some(next) = next else { break };
        given[next] += 1;
        *slot = u8::try_from(next).expect("at most MEMBERS");
    }
    bucket
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}
// SAFETY: a word and eight octets.
unsafe impl Plain for Link {}

/// Indices into [`Totals::reason`].
pub mod reason {
    pub const NOT_ALLOWED: usize = 0;
    pub const BAD_HEADER: usize = 1;
    pub const BAD_INNER: usize = 2;
    pub const INSTANCE: usize = 3;
    pub const ECN: usize = 4;
    pub const TTL: usize = 5;
    pub const POLICY: usize = 6;
    pub const UNREACHABLE: usize = 7;
    pub const TOO_BIG: usize = 8;
    pub const UNDERLAY: usize = 9;
    pub const PUNTED: usize = 10;
    pub const EVENT_LOST: usize = 11;
    pub const COUNT: usize = 12;
}

/// Of one processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Encapsulated, decapsulated, late: packets and octets of each.
    pub counts: [[u64; 2]; 3],
    pub reason: [u64; reason::COUNT],
}
// SAFETY: double words.
unsafe impl Plain for Totals {}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Event {
    pub kind: u32,
    pub iid: u32,
    pub rloc_family: u32,
    pub family: u32,
    pub len: u32,
    pub rloc: [u32; 4],
    pub from: [u32; 4],
    pub to: [u32; 4],
}
// SAFETY: words.
unsafe impl Plain for Event {}

pub const EVENT_MISS: u32 = 1;
pub const EVENT_LATE: u32 = 2;
pub const EVENT_FIRST: u32 = 3;

/// Family and words as in a packet.
pub fn words_of(addr: IpAddr) -> (u32, [u32; 4]) {
    match addr {
        IpAddr::V4(v4) => (4, [u32::from(v4).to_be(), 0, 0, 0]),
        IpAddr::V6(v6) => (6, words6(v6)),
    }
}

/// An address as a value of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words6([u32; 4]);
// SAFETY: words.
unsafe impl Plain for Words6 {}

impl From<Ipv6Addr> for Words6 {
    fn from(addr: Ipv6Addr) -> Self {
        Self(words6(addr))
    }
}

pub fn words6(addr: Ipv6Addr) -> [u32; 4] {
    let octets = addr.octets();
    std::array::from_fn(|at| {
        u32::from_ne_bytes(octets[4 * at..4 * at + 4].try_into().expect("four octets"))
    })
}

pub fn ip_of(family: u32, words: [u32; 4]) -> IpAddr {
    if family == 4 {
        return Ipv4Addr::from(u32::from_be(words[0])).into();
    }
    let mut octets = [0; 16];
    for (four, word) in octets.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).into()
}

/// Key of a prefix in the table of hosts of its family, or in the one of shorter prefixes, where the
/// length goes first.
pub fn key_of(prefix: Prefix) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    if !prefix.is_host() {
        key.extend(u32::from(prefix.len()).to_ne_bytes());
    }
    match prefix.addr() {
        IpAddr::V4(v4) => key.extend(v4.octets()),
        IpAddr::V6(v6) => key.extend(v6.octets()),
    }
    key
}

/// The prefix of a key of this length; `None` for one that we do not write.
pub fn prefix_of(key: &[u8]) -> Option<Prefix> {
    let len = |word: &[u8]| u8::try_from(u32::from_ne_bytes(word.try_into().ok()?)).ok();
    let v4 = |addr: &[u8]| <[u8; 4]>::try_from(addr).ok().map(IpAddr::from);
    let v6 = |addr: &[u8]| <[u8; 16]>::try_from(addr).ok().map(IpAddr::from);
    match key.len() {
        4 => Some(Prefix::host(v4(key)?)),
        16 => Some(Prefix::host(v6(key)?)),
        8 => Prefix::new(v4(&key[4..])?, len(&key[..4])?),
        20 => Prefix::new(v6(&key[4..])?, len(&key[..4])?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_the_weights() {
        let count = |weights: &[u32]| {
            let bucket = share(weights);
            (0..weights.len())
                .map(|at| bucket.iter().filter(|&&b| usize::from(b) == at).count())
                .collect::<Vec<_>>()
        };
        assert_eq!(count(&[100]), [32]);
        assert_eq!(count(&[1, 1]), [16, 16]);
        assert_eq!(count(&[3, 1]), [24, 8]);
        assert_eq!(count(&[0, 0, 0, 0]), [8, 8, 8, 8]);
        assert_eq!(count(&[0, 5]), [0, 32]);
        let thin = count(&[255, 1]);
        assert_eq!((thin[0] + thin[1], thin[1]), (32, 1), "a member with a weight gets flows");
        assert_eq!(count(&[]), [0_usize; 0]);
    }

    #[test]
    fn a_path_is_read_back_as_it_was_written() {
        let path = GroupPath::Encap {
            members: vec![
                ("192.0.2.1".parse().unwrap(), 100),
                ("2001:db8::1".parse().unwrap(), 50),
            ],
            iid: InstanceId(0x00ab_cdef),
        };
        assert_eq!(Path::new(&path, 1, |_| true).group_path(), path);
        let only_v6 = Path::new(&path, 1, |addr| addr.is_ipv6());
        assert_eq!(only_v6.members, 1);
        assert_eq!(Path::new(&path, 1, |_| false).group_path(), GroupPath::Unreachable);
    }

    #[test]
    fn a_key_is_read_back_as_it_was_written() {
        for text in ["10.1.2.3/32", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::1/128", "2001:db8::/32"] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix_of(&key_of(prefix)), Some(prefix));
        }
        assert_eq!(prefix_of(&[0; 7]), None);
    }
}
