//! FE_E, when destinations are rewritten: which locator of this network stands for which host.
//!
//! A host that is away from home and attached here has one locator of its EID's family. The choice
//! follows from the EID as far as it can, so that a host which comes back finds the same one. What
//! was chosen is told, to be stored: after a restart it is still so.
//!
//! A locator of a host that has left is in quarantine for longer than anybody believes an old
//! mapping. Given to another host before, it would lead that host's neighbours' packets to it. It
//! stays its host's own meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::types::lisp::{LOCATOR_POOL4_LEN as LEN4, LOCATOR_POOL6_LEN as LEN6, checksum_of};
use crate::types::{Instant, Prefix};

/// Hosts with a locator here, those in quarantine included. One more gets none, and is counted.
pub const LOCATORS_MAX: usize = 1_000_000;

/// Above the hour that mappings are registered for.
pub const QUARANTINE: Duration = Duration::from_secs(65 * 60);

/// Choices that are tried before a pool of IPv4 is searched through, and before one of IPv6 (where
/// none are taken unless somebody has chosen his EIDs for it) counts as full.
const ROUNDS: u32 = 32;

#[derive(Debug)]
struct Held {
    locator: IpAddr,
    /// Number of its record in the store, dense.
    slot: u32,
    /// In quarantine until then.
    until: Option<Instant>,
}

/// What is to be found again after a restart. A later one of the same slot replaces this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatorRecord {
    pub slot: u32,
    /// EID and locator; `None`: nobody's any more.
    pub pair: Option<(IpAddr, IpAddr)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocatorCounts {
    /// Hosts that got none: the pools are full, or all of them together.
    pub full: u64,
    /// Of a family without a pool, or prefixes that are no host.
    pub no_pool: u64,
}

#[derive(Debug)]
pub struct Locators {
    pools: Vec<Prefix>,
    held: BTreeMap<IpAddr, Held>,
    by_locator: BTreeMap<IpAddr, IpAddr>,
    quarantine: BTreeSet<(Instant, IpAddr)>,
    /// Slots below `next` that are free.
    free: BTreeSet<u32>,
    next: u32,
    max: usize,
    pub counts: LocatorCounts,
}

impl Locators {
    /// With what an earlier process has chosen; as long as nobody is attached all of it is in
    /// quarantine.
    pub fn new(pools: Vec<Prefix>, stored: &[LocatorRecord], now: Instant) -> Self {
        Self::with_max(pools, stored, now, LOCATORS_MAX)
    }

    fn with_max(pools: Vec<Prefix>, stored: &[LocatorRecord], now: Instant, max: usize) -> Self {
        let mut this = Self {
            pools,
            held: BTreeMap::new(),
            by_locator: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            free: BTreeSet::new(),
            next: 0,
            max,
            counts: LocatorCounts::default(),
        };
        let until = now + QUARANTINE;
        for record in stored {
            while this.next <= record.slot && (this.next as usize) < LOCATORS_MAX {
                this.free.insert(this.next);
                this.next += 1;
            }
            // Of a pool that is no longer configured, it is nobody's.
            let Some((eid, locator)) = record.pair.filter(|&(_, l)| this.is_own(l)) else {
                continue;
            };
            if this.held.contains_key(&eid)
                || this.by_locator.contains_key(&locator)
                || !this.free.remove(&record.slot)
            {
                continue;
            }
            this.held.insert(eid, Held { locator, slot: record.slot, until: Some(until) });
            this.by_locator.insert(locator, eid);
            this.quarantine.insert((until, eid));
        }
        this
    }

    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.contains_addr(addr))
    }

    pub fn find(&self, eid: IpAddr) -> Option<IpAddr> {
        self.held.get(&eid).map(|held| held.locator)
    }

    /// Hosts that have one, and of these those in quarantine.
    pub fn len(&self) -> (usize, usize) {
        (self.held.len(), self.quarantine.len())
    }

    /// The locator of a host that is here now, and what is to be stored of it.
    pub fn take(&mut self, prefix: Prefix, out: &mut Vec<LocatorRecord>) -> Option<IpAddr> {
        let eid = prefix.addr();
        if let Some(held) = self.held.get_mut(&eid) {
            if let Some(until) = held.until.take() {
                self.quarantine.remove(&(until, eid));
            }
            return Some(held.locator);
        }
        let family = prefix.family();
        if !prefix.is_host() || !self.pools.iter().any(|pool| pool.family() == family) {
            self.counts.no_pool += 1;
            return None;
        }
        let pools = self.pools.iter().filter(|pool| pool.family() == family);
        let found = pools.filter_map(|&pool| self.choose(pool, eid)).next();
        let Some(locator) = found.filter(|_| self.held.len() < self.max) else {
            self.counts.full += 1;
            return None;
        };
        let slot = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.held.insert(eid, Held { locator, slot, until: None });
        self.by_locator.insert(locator, eid);
        out.push(LocatorRecord { slot, pair: Some((eid, locator)) });
        Some(locator)
    }

    /// The host has left, and is no longer sent on.
    pub fn release(&mut self, eid: IpAddr, now: Instant) {
        if let Some(held) = self.held.get_mut(&eid)
            && held.until.is_none()
        {
            let until = now + QUARANTINE;
            held.until = Some(until);
            self.quarantine.insert((until, eid));
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        self.quarantine.first().map_or(Instant::FAR_FUTURE, |&(until, _)| until)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<LocatorRecord>) {
        while let Some(&(until, eid)) = self.quarantine.first()
            && until <= now
        {
            self.quarantine.pop_first();
            if let Some(held) = self.held.remove(&eid) {
                self.by_locator.remove(&held.locator);
                self.free.insert(held.slot);
                out.push(LocatorRecord { slot: held.slot, pair: None });
            }
        }
    }

    fn choose(&self, pool: Prefix, eid: IpAddr) -> Option<IpAddr> {
        let is_free = |locator: &IpAddr| !self.by_locator.contains_key(locator);
        match pool.addr() {
            IpAddr::V4(base) => {
                let base = u32::from(base);
                // Neither the network nor its broadcast address.
                let places = (1_u32 << (32 - pool.len().clamp(LEN4.0, LEN4.1))) - 2;
                let at = |place: u32| IpAddr::from(Ipv4Addr::from(base + 1 + place % places));
                let chosen = |round| scatter(eid, round) as u32;
                let first = (0..ROUNDS).map(|round| at(chosen(round))).find(is_free);
                first.or_else(|| {
                    let all = pool.addr()..=at(places - 1);
                    if self.by_locator.range(all).count() >= places as usize {
                        return None;
                    }
                    let from = chosen(0) % places;
                    (0..places).map(|place| at(from + place)).find(is_free)
                })
            }
            IpAddr::V6(base) => {
                let bits = 112 - u32::from(pool.len().clamp(LEN6.0, LEN6.1));
                let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
                let at = |round| {
                    let host = u128::from(scatter(eid, round) & mask) << 16;
                    neutral(u128::from(base) | host, eid)
                };
                (0..ROUNDS).map(at).find(is_free)
            }
        }
    }
}

/// The address with the last 16 bits that give it the checksum of the EID (RFC 6296 §3.1).
fn neutral(without: u128, eid: IpAddr) -> IpAddr {
    let have = checksum_of(Ipv6Addr::from(without).into());
    let want = checksum_of(eid);
    // In ones' complement: what is missing, carried around.
    let missing = (u32::from(want) + u32::from(!have)) % 0xffff;
    Ipv6Addr::from(without | u128::from(missing)).into()
}

/// Well mixed, and the same for ever: splitmix64 over the halves of the EID.
fn scatter(eid: IpAddr, round: u32) -> u64 {
    let bits = match eid {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let mut mixed = u64::from(round);
    for half in [(bits >> 64) as u64, bits as u64] {
        mixed = (mixed ^ half).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::lisp::may_stand_for;

    const NOW: Instant = Instant::ZERO;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn host(n: u32) -> Prefix {
        Prefix::v4(0x0a01_0000 + n, 32).unwrap()
    }

    fn host6(n: u16) -> Prefix {
        Prefix::host(format!("2001:db8:1:1::{n:x}").parse().unwrap())
    }

    fn locators(pools: &[&str]) -> Locators {
        Locators::new(pools.iter().map(|p| prefix(p)).collect(), &[], NOW)
    }

    #[test]
    fn each_host_has_one_of_its_own_and_all_of_a_pool_are_used() {
        let mut all = locators(&["192.0.2.0/24"]);
        let mut records = Vec::new();
        let mut seen = BTreeSet::new();
        for n in 0..254 {
            let locator = all.take(host(n), &mut records).unwrap();
            assert!(prefix("192.0.2.0/24").contains_addr(locator) && seen.insert(locator));
            assert!(!["192.0.2.0", "192.0.2.255"].contains(&locator.to_string().as_str()));
        }
        assert_eq!(all.take(host(999), &mut records), None);
        assert_eq!(all.take(host6(1), &mut records), None);
        assert_eq!(all.counts, LocatorCounts { full: 1, no_pool: 1 });
        assert_eq!(records.len(), 254);
        // A second pool is used when the first one is full.
        all.pools.push(prefix("198.51.100.0/30"));
        let more = all.take(host(999), &mut records).unwrap();
        assert!(prefix("198.51.100.0/30").contains_addr(more));
    }

    /// RFC 6296 §2.6.
    #[test]
    fn a_locator_of_ipv6_has_the_checksum_of_its_eid() {
        for pool in ["2001:db8:77::/64", "2001:db8:77::/48", "2001:db8:77::/96", "fd00::/16"] {
            let mut all = locators(&[pool]);
            let mut seen = BTreeSet::new();
            for n in 0..2_000 {
                let eid = host6(n);
                let locator = all.take(eid, &mut Vec::new()).unwrap();
                assert!(prefix(pool).contains_addr(locator), "{locator}");
                assert!(may_stand_for(locator, eid.addr()), "{locator} for {eid}");
                assert!(seen.insert(locator));
            }
        }
        assert!(!may_stand_for("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()));
        assert!(!may_stand_for("2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn a_host_finds_its_locator_again_until_the_quarantine_is_over() {
        let mut all = locators(&["192.0.2.0/30"]);
        let mut records = Vec::new();
        let mine = all.take(host(1), &mut records).unwrap();
        let other = all.take(host(2), &mut records).unwrap();
        all.release(host(1).addr(), NOW);
        all.release(host(1).addr(), NOW + QUARANTINE / 2); // not prolonged
        assert_eq!(all.len(), (2, 1));
        assert_eq!(all.take(host(3), &mut records), None, "nobody else's");
        assert_eq!(all.take(host(1), &mut records), Some(mine));
        assert_eq!(all.poll_timeout(), Instant::FAR_FUTURE);
        all.release(host(1).addr(), NOW);
        records.clear();
        all.handle_timeout(NOW + (QUARANTINE - Duration::from_secs(1)), &mut records);
        assert_eq!(records, []);
        all.handle_timeout(NOW + QUARANTINE, &mut records);
        assert_eq!(records, [LocatorRecord { slot: 0, pair: None }]);
        assert_eq!(all.find(host(1).addr()), None);
        assert_eq!(all.take(host(3), &mut records), Some(mine));
        assert_eq!(records[1], LocatorRecord { slot: 0, pair: Some((host(3).addr(), mine)) });
        assert_eq!(all.find(host(2).addr()), Some(other));
    }

    /// What was chosen stays so, also where the order in which hosts came has mattered.
    #[test]
    fn a_restart_changes_no_locator() {
        let pools = vec![prefix("192.0.2.0/27"), prefix("2001:db8:77::/64")];
        let mut all = Locators::new(pools.clone(), &[], NOW);
        let mut records = Vec::new();
        let eids: Vec<Prefix> = (0..25).map(host).chain((0..25).map(host6)).collect();
        let before: Vec<_> = eids.iter().map(|&e| all.take(e, &mut records)).collect();
        assert!(before.iter().all(Option::is_some));
        let mut again = Locators::new(pools, &records, NOW);
        assert_eq!(again.len(), (50, 50));
        let mut more = Vec::new();
        let after: Vec<_> = eids.iter().rev().map(|&e| again.take(e, &mut more)).collect();
        assert!(after.iter().rev().eq(&before));
        assert_eq!((again.len(), more.len()), ((50, 0), 0));
        // Another pool: the stored ones are nobody's, and their slots are used again.
        let mut other = Locators::new(vec![prefix("198.51.100.0/27")], &records, NOW);
        assert_eq!(other.len(), (0, 0));
        other.take(host(1), &mut more);
        assert_eq!(more[0].slot, 0);
    }

    #[test]
    fn a_full_table_refuses_and_counts() {
        let mut all = Locators::with_max(vec![prefix("2001:db8::/64")], &[], NOW, 3);
        let taken = (0..5).filter(|&n| all.take(host6(n), &mut Vec::new()).is_some()).count();
        assert_eq!((taken, all.counts.full), (3, 2));
    }
}
