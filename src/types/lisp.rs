//! What the mapping service and the gateways both speak of: EIDs in an instance, RLOC sets, and the
//! forwarding objects that entries share (RFC 9300, RFC 9301).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Family, Generation, Locator, Prefix};

/// Instance ID: 24 bits in a data packet (RFC 9300 §5.1), 0 when there is only one instance.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct InstanceId(pub u32);

impl InstanceId {
    pub const MAX: Self = Self(0x00ff_ffff);
}

/// 128-bit identifier of one xTR, unique in its site (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XtrId(pub u128);

impl fmt::Display for XtrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// 64-bit identifier of a site (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u64);

/// Number of a mapping's version, 12 bits; 0 is "none" (RFC 9302 §3, §6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MapVersion(pub u16);

impl MapVersion {
    pub const NULL: Self = Self(0);
    /// Versions that are not null: the cycle length.
    const CYCLE: u32 = 0xfff;

    /// The version that says a generation: the cycle of 4,095 numbers, without the null version.
    pub fn of_generation(generation: Generation) -> Self {
        match generation.0.checked_sub(1) {
            None => Self::NULL,
            Some(n) => Self(u16::try_from(n % Self::CYCLE).expect("below 4095") + 1),
        }
    }

    /// The generation nearest to `known` that this version says; `None` for the null version.
    /// As RFC 9302 §6 compares: up to half a cycle ahead is newer, the rest is older.
    pub fn generation_near(self, known: Generation) -> Option<Generation> {
        let version = u32::from(self.0).checked_sub(1)?;
        let Some(at) = known.0.checked_sub(1) else { return Some(Generation(version + 1)) };
        let ahead = (version + Self::CYCLE - at % Self::CYCLE) % Self::CYCLE;
        if ahead <= Self::CYCLE / 2 {
            Some(Generation(known.0.saturating_add(ahead)))
        } else {
            // Before the first generation there is nothing older to mean.
            known.0.checked_sub(Self::CYCLE - ahead).filter(|&g| g > 0).map(Generation)
        }
    }
}

/// One locator of a mapping. Lower priority is better, 255 is "do not use"; the weight shares the
/// traffic among equals (RFC 9301 §5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rloc {
    pub addr: IpAddr,
    pub priority: u8,
    pub weight: u8,
}

/// The locators of a mapping, in order and without repetition; empty for a negative one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RlocSet(Vec<Rloc>);

/// Locators of one mapping, at most; RFC 9301 §5.4 has 8 bits for the count.
pub const RLOCS_MAX: usize = 32;

impl RlocSet {
    /// Sorted; of one address that is named twice the better priority stays. At most [`RLOCS_MAX`].
    pub fn new(mut rlocs: Vec<Rloc>) -> Self {
        rlocs.sort_by_key(|r| (r.addr, r.priority));
        rlocs.dedup_by_key(|r| r.addr);
        rlocs.truncate(RLOCS_MAX);
        Self(rlocs)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Rloc> {
        self.0.iter()
    }

    pub fn find(&self, addr: IpAddr) -> Option<&Rloc> {
        self.0.binary_search_by_key(&addr, |r| r.addr).ok().map(|at| &self.0[at])
    }
}

impl From<&Locator> for RlocSet {
    /// Both addresses of an FE_E, equally good.
    fn from(locator: &Locator) -> Self {
        let v4 = locator.ipv4.map(IpAddr::V4);
        let v6 = locator.ipv6.map(IpAddr::V6);
        let rloc = |addr| Rloc { addr, priority: 1, weight: 100 };
        Self::new(v4.into_iter().chain(v6).map(rloc).collect())
    }
}

/// What to do with packets when there is no locator (RFC 9301 §5.4, ACT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NegativeAction {
    NoAction,
    NativelyForward,
    SendMapRequest,
    DropNoReason,
    DropPolicyDenied,
    DropAuthFailure,
}

/// A forwarding object that many entries share: the locators of one anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

/// Where a group leads now. One write in the data plane, however many prefixes are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupPath {
    /// The reachable locators of the best priority, with their weights; never empty.
    Encap { members: Vec<(IpAddr, u8)>, iid: InstanceId },
    /// No locator is reachable: packets are dropped and counted.
    Unreachable,
}

/// What FE_I does with packets to a prefix; the longest one decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryAction {
    /// Encapsulate to the group.
    Group(GroupId),
    /// No state yet: the first packets go to the control plane, which asks and holds them.
    Punt,
    /// Outside the mapping system: by the other routes.
    Native,
    /// Refused by policy, counted.
    Drop,
    /// The packet gets this destination and takes the ordinary routes: a host's EID becomes its
    /// locator (FE_I), and that the EID again (FE_E). Of the same family; the locator of an IPv6
    /// EID has its checksum. Only the data plane that rewrites can do it, and it can do no other.
    Rewrite(IpAddr),
}

/// One desired change of the encapsulating data plane: FE_I entries and what FE_E may take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncapChange {
    SetGroup {
        group: GroupId,
        path: GroupPath,
    },
    /// No entry leads there any more.
    RemoveGroup {
        group: GroupId,
    },
    SetEntry {
        prefix: Prefix,
        action: EntryAction,
    },
    RemoveEntry {
        prefix: Prefix,
    },
    /// FE_E may decapsulate packets to this prefix (R_EC).
    AllowDecap {
        prefix: Prefix,
    },
    ForbidDecap {
        prefix: Prefix,
    },
}

/// What the data plane tells the control plane. Bounded by the one who produces it: what does not
/// fit is dropped and counted, the next packet says it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncapEvent {
    /// A packet for an entry with [`EntryAction::Punt`]; it is held, or was dropped.
    Miss { source: IpAddr, destination: IpAddr },
    /// A packet came in by tunnel for a node that has left (or never was here): who sends it.
    Late { rloc: IpAddr, iid: InstanceId, source: IpAddr, destination: IpAddr },
    /// The entries that carried packets since this was last told.
    Used { prefixes: Vec<Prefix> },
    /// First packet of an entry since it was set.
    FirstPacket { prefix: Prefix },
}

/// What the machines of the mapping service want to find again after a restart: nonces that must
/// not be taken twice, subscriptions. Made and read by the hall; to the store both parts are octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// At most [`NOTE_KEY_LEN_MAX`]; a later note with the same key replaces this one.
    pub key: Vec<u8>,
    /// At most [`NOTE_LEN_MAX`].
    pub octets: Vec<u8>,
}

/// Two prefixes, two identifiers and some numbers.
pub const NOTE_KEY_LEN_MAX: usize = 96;

/// A subscription with all the locators it may have.
pub const NOTE_LEN_MAX: usize = 1024;

/// Packets and octets of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryCount {
    pub packets: u64,
    pub octets: u64,
}

/// Whether a locator can be an outer destination where only these families are routed.
pub fn usable(addr: IpAddr, families: &[Family]) -> bool {
    families.contains(&Prefix::host(addr).family())
}

/// Lengths of a pool of locators, shortest and longest. One of IPv4 is searched through when it is
/// nearly full.
pub const LOCATOR_POOL4_LEN: (u8, u8) = (16, 30);
/// Below the prefix there are 16 bits for the checksum, and as many at least to choose.
pub const LOCATOR_POOL6_LEN: (u8, u8) = (16, 96);

/// The sum that checksums of transports are made of (RFC 1071), of an address.
pub fn checksum_of(addr: IpAddr) -> u16 {
    let sum = |octets: &[u8]| {
        let words = octets.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        words.sum::<u32>()
    };
    let sum = match addr {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    // At most eight words: what is carried once cannot carry again. 0xffff is another 0.
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).map_or(0, |sum| if sum == 0xffff { 0 } else { sum })
}

/// Whether packets to `eid` may be rewritten to this locator. One of IPv6 must have the same
/// checksum (RFC 6296 §2.6), since there what covers the addresses can be anywhere in a packet.
pub fn may_stand_for(locator: IpAddr, eid: IpAddr) -> bool {
    match (locator, eid) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => checksum_of(locator) == checksum_of(eid),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9302 §6: serial numbers of 12 bits, the null version left out.
    #[test]
    fn a_version_says_the_nearest_generation() {
        for g in (1..10_000).chain([4_000_000]) {
            let known = Generation(g);
            for step in [0, 1, 2, 100, 2047] {
                let newer = Generation(g + step);
                let version = MapVersion::of_generation(newer);
                assert!((1..=0xfff).contains(&version.0));
                assert_eq!(version.generation_near(known), Some(newer), "{g} + {step}");
                let older = g.checked_sub(step).filter(|&o| o > 0 && step < 2047);
                if let Some(older) = older.map(Generation) {
                    let version = MapVersion::of_generation(older);
                    assert_eq!(version.generation_near(known), Some(older), "{g} - {step}");
                }
            }
        }
        assert_eq!(MapVersion::NULL.generation_near(Generation(7)), None);
        assert_eq!(MapVersion(9).generation_near(Generation::NONE), Some(Generation(9)));
    }

    #[test]
    fn an_rloc_set_is_the_same_in_any_order() {
        let rloc = |a: &str, priority| Rloc { addr: a.parse().unwrap(), priority, weight: 1 };
        let set =
            RlocSet::new(vec![rloc("192.0.2.9", 2), rloc("2001:db8::1", 1), rloc("192.0.2.9", 1)]);
        assert_eq!(set, RlocSet::new(vec![rloc("2001:db8::1", 1), rloc("192.0.2.9", 1)]));
        assert_eq!(set.iter().len(), 2);
    }
}
