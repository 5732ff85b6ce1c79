//! Mappings in records and back (RFC 9301 §5.4).

use std::net::IpAddr;

use crate::types::Generation;
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, Rloc, RlocSet};
use crate::wire::lisp::{Eid, EidRecord, RlocAddress, RlocRecord};

/// "MUST NOT be used for unicast forwarding" (§5.4).
const PRIORITY_NEVER: u8 = 255;

/// An EID of the kind that is routed here. Others (source and destination, unknown LCAFs) are not
/// for us.
pub fn prefix_of(eid: &Eid) -> Option<(InstanceId, Prefix)> {
    match *eid {
        Eid::Prefix { iid, prefix } => Some((iid, prefix)),
        Eid::None | Eid::SourceDestination { .. } | Eid::Other { .. } => None,
    }
}

/// The EID that a publication is about, of a source/destination key the destination: it is one of
/// our subscription all the same, and has to be acknowledged.
pub fn subject_of(eid: &Eid) -> Option<(InstanceId, Prefix)> {
    match *eid {
        Eid::SourceDestination { iid, destination, .. } => Some((iid, destination)),
        Eid::Prefix { .. } | Eid::None | Eid::Other { .. } => prefix_of(eid),
    }
}

/// Whether packets can be sent to the address as to a tunnel router.
pub fn is_locator(addr: IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    let link_local = matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_loopback() || broadcast || link_local)
}

/// The locators that can be used. Those whose R bit says that their own site has no route to them
/// are left out, unless that is all of them: then it is a sender that knows no R bit.
pub fn rlocs_of(record: &EidRecord) -> RlocSet {
    let usable = |only_reachable: bool| {
        let rlocs = record.rlocs.iter().filter(|r| r.priority != PRIORITY_NEVER);
        let rlocs = rlocs.filter(|r| r.reachable || !only_reachable);
        let rloc = |r: &RlocRecord| {
            let addr = r.address.ip().filter(|&addr| is_locator(addr))?;
            Some(Rloc { addr, priority: r.priority, weight: r.weight })
        };
        RlocSet::new(rlocs.filter_map(rloc).collect())
    };
    let reachable = usable(true);
    if reachable.is_empty() { usable(false) } else { reachable }
}

/// Whether the later of two statements about one prefix is `new` (RFC 9302 §6), or neither can be
/// told: a statement without a version, and the same one again.
pub fn is_not_older(new: MapVersion, known: MapVersion) -> bool {
    if known == MapVersion::NULL {
        return true;
    }
    // Any generation of that version does; a few cycles up there are older ones to tell.
    let known = Generation(u32::from(known.0) + 4 * 4095);
    new.generation_near(known).is_none_or(|new| new >= known)
}

pub fn eid(iid: InstanceId, prefix: Prefix) -> Eid {
    Eid::Prefix { iid, prefix }
}

/// The records of locators. `probed` is the one that a probe came in at. `local` tells the sender's
/// own; §5.4 wants them sorted by address, IPv4 first, as a set is.
pub fn rloc_records(
    rlocs: &RlocSet,
    probed: Option<IpAddr>,
    local: impl Fn(IpAddr) -> bool,
) -> Vec<RlocRecord> {
    let record = |r: &Rloc| RlocRecord {
        priority: r.priority,
        weight: r.weight,
        multicast_priority: PRIORITY_NEVER,
        multicast_weight: 0,
        local: local(r.addr),
        probed: probed == Some(r.addr),
        reachable: true,
        address: RlocAddress::Ip(r.addr),
    };
    rlocs.iter().map(record).collect()
}

/// A record without locators.
pub fn negative(
    iid: InstanceId,
    prefix: Prefix,
    action: NegativeAction,
    ttl_min: u32,
) -> EidRecord {
    EidRecord {
        ttl_min,
        action,
        authoritative: false,
        version: MapVersion::NULL,
        eid: eid(iid, prefix),
        rlocs: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rloc(addr: &str, priority: u8, reachable: bool) -> RlocRecord {
        RlocRecord {
            priority,
            weight: 1,
            multicast_priority: 255,
            multicast_weight: 0,
            local: false,
            probed: false,
            reachable,
            address: RlocAddress::Ip(addr.parse().unwrap()),
        }
    }

    fn used(rlocs: Vec<RlocRecord>) -> Vec<String> {
        let prefix = "10.1.0.1/32".parse().unwrap();
        let mut record = negative(InstanceId(0), prefix, NegativeAction::NoAction, 1);
        record.rlocs = rlocs;
        rlocs_of(&record).iter().map(|r| r.addr.to_string()).collect()
    }

    /// RFC 9301 §5.4, R, priority 255, and what a locator cannot be.
    #[test]
    fn locators_that_cannot_be_used_are_left_out() {
        let (a, b) = ("192.0.2.1", "192.0.2.2");
        assert_eq!(used(vec![rloc(a, 1, true), rloc(b, 1, false)]), [a]);
        assert_eq!(used(vec![rloc(a, 1, false), rloc(b, 1, false)]), [a, b]);
        assert_eq!(used(vec![rloc(a, 255, true), rloc(b, 1, false)]), [b]);
        for bad in
            ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "::", "ff02::1", "fe80::1"]
        {
            assert!(used(vec![rloc(bad, 1, true)]).is_empty(), "{bad}");
        }
    }

    /// RFC 9302 §6.
    #[test]
    fn versions_compare_as_serial_numbers() {
        let newer = |new, known| is_not_older(MapVersion(new), MapVersion(known));
        assert!(newer(5, 5) && newer(6, 5) && !newer(5, 6));
        assert!(newer(1, 4095) && !newer(4095, 1), "the cycle leaves 0 out");
        assert!(newer(2000, 1) && !newer(1, 2000));
        assert!(newer(0, 9) && newer(9, 0), "the null version says nothing");
    }
}
