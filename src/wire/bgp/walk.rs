//! One pass over the path attributes of an UPDATE: what each says, and what RFC 7606 makes of it.
//!
//! ```text
//! | flags: 1 | type: 1 | length: 1, or 2 with the Extended Length flag | value |
//! ```
//!
//! Where the RFC leaves a choice: "AFI/SAFI disable" is never used, session reset is; the leftmost
//! AS of an external peer's path is checked (RFC 7606 §7.2). Sections are those of RFC 7606 unless
//! another is named.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::as_path::{self, Width};
use super::attributes::{
    Attributes, ExtendedCommunity, LargeCommunity, NextHop, Origin, RawAttribute,
};
use super::notification::{Notification, code as error_code};
use super::update::{Action, AttributeError, Fault, MpReach, MpUnreach, Walk, attribute, flag};
use super::{AsPath, Negotiated, Nlri, afi, capability::SAFI_UNICAST};
use crate::types::Family;

/// Errors kept per UPDATE, for the log; a message can hold a thousand. The action counts them all.
const ERRORS_KEPT_MAX: usize = 16;

/// Goes over the attributes once. `has_v4_nlri`: the UPDATE has classic NLRI.
pub fn walk<'a>(block: &'a [u8], n: &Negotiated, has_v4_nlri: bool) -> Walk<'a> {
    let mut walker = Walker::new();
    let mut rest = block;
    while !rest.is_empty() && !walker.is_reset() {
        let Some((attribute, tail)) = RawView::next(rest) else {
            walker.overrun(rest);
            break;
        };
        rest = tail;
        walker.attribute(attribute, n);
    }
    walker.conclude(n, has_v4_nlri)
}

/// One attribute where it lies.
#[derive(Clone, Copy)]
struct RawView<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
    /// With its header: the data of a NOTIFICATION (RFC 4271 §6.3).
    whole: &'a [u8],
}

impl<'a> RawView<'a> {
    fn next(block: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[flags, code, len], mut value) = block.split_first_chunk()?;
        let mut len = usize::from(len);
        let mut head = 3;
        if flags & flag::EXTENDED_LENGTH != 0 {
            let (&low, after) = value.split_first()?;
            len = len << 8 | usize::from(low);
            value = after;
            head = 4;
        }
        let (value, rest) = value.split_at_checked(len)?;
        Some((Self { flags, code, value, whole: &block[..head + len] }, rest))
    }
}

/// The Optional and Transitive bits that each attribute that we know must have.
const fn flags_of(code: u8) -> Option<u8> {
    match code {
        attribute::ORIGIN
        | attribute::AS_PATH
        | attribute::NEXT_HOP
        | attribute::LOCAL_PREF
        | attribute::ATOMIC_AGGREGATE => Some(flag::TRANSITIVE),
        attribute::MULTI_EXIT_DISC
        | attribute::ORIGINATOR_ID
        | attribute::CLUSTER_LIST
        | attribute::MP_REACH_NLRI
        | attribute::MP_UNREACH_NLRI => Some(flag::OPTIONAL),
        attribute::AGGREGATOR
        | attribute::COMMUNITIES
        | attribute::EXTENDED_COMMUNITIES
        | attribute::AS4_PATH
        | attribute::AS4_AGGREGATOR
        | attribute::IPV6_EXTENDED_COMMUNITIES
        | attribute::LARGE_COMMUNITY => Some(flag::OPTIONAL | flag::TRANSITIVE),
        _ => None,
    }
}

struct Walker<'a> {
    walk: Walk<'a>,
    attributes: Attributes,
    seen: [u64; 4],
    /// The attributes without which nothing can be announced.
    has_origin: bool,
    has_as_path: bool,
    next_hop: Option<Ipv4Addr>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<(u32, Ipv4Addr)>,
    /// MP_REACH_NLRI of a family that is not in use: it has routes, but not for us.
    has_foreign_reach: bool,
    /// The first treat-as-withdraw, should it have to become a session reset (RFC 7606 §5.2).
    first_withdraw: Option<(u8, Fault, &'a [u8])>,
}

impl<'a> Walker<'a> {
    fn new() -> Self {
        Self {
            walk: Walk::default(),
            attributes: Attributes::local(NextHop::V4(Ipv4Addr::UNSPECIFIED)),
            seen: [0; 4],
            has_origin: false,
            has_as_path: false,
            next_hop: None,
            as4_path: None,
            as4_aggregator: None,
            has_foreign_reach: false,
            first_withdraw: None,
        }
    }

    const fn is_reset(&self) -> bool {
        matches!(self.walk.action, Action::SessionReset(_))
    }

    fn error(&mut self, code: u8, fault: Fault, action: Action) {
        if self.walk.errors.len() < ERRORS_KEPT_MAX {
            self.walk.errors.push(AttributeError { code, fault, action: action.clone() });
        }
        if action.strength() > self.walk.action.strength() {
            self.walk.action = action;
        }
    }

    fn discard(&mut self, code: u8, fault: Fault) {
        self.error(code, fault, Action::AttributeDiscard);
    }

    fn withdraw(&mut self, code: u8, fault: Fault, whole: &'a [u8]) {
        self.first_withdraw.get_or_insert((code, fault, whole));
        self.error(code, fault, Action::TreatAsWithdraw);
    }

    fn reset(&mut self, code: u8, fault: Fault, data: &[u8]) {
        let notification = Notification::with_data(error_code::UPDATE, fault.subcode(code), data);
        self.error(code, fault, Action::SessionReset(notification));
    }

    /// RFC 7606 §4. An MP attribute that cannot be read leaves unknown routes behind, §3 (j).
    fn overrun(&mut self, rest: &'a [u8]) {
        match rest.get(1) {
            Some(&code @ (attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI)) => {
                self.reset(code, Fault::Overrun, &[]);
            }
            code => self.withdraw(code.copied().unwrap_or(0), Fault::Overrun, &[]),
        }
    }

    fn attribute(&mut self, a: RawView<'a>, n: &Negotiated) {
        let (word, bit) = (usize::from(a.code >> 6), 1 << (a.code & 63));
        if self.seen[word] & bit != 0 {
            return match a.code {
                // §3 (g); RFC 4271 §6.3 gives no data for this subcode.
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => {
                    self.reset(a.code, Fault::Duplicate, &[]);
                }
                code => self.discard(code, Fault::Duplicate),
            };
        }
        self.seen[word] |= bit;
        let Some(flags) = flags_of(a.code) else { return self.unknown(a) };
        // Before the flags: these are discarded whatever they look like.
        match a.code {
            // §7.5, §7.9, §7.10.
            attribute::LOCAL_PREF | attribute::ORIGINATOR_ID | attribute::CLUSTER_LIST
                if !n.ibgp =>
            {
                return self.discard(a.code, Fault::NotFromThisPeer);
            }
            // RFC 6793 §4.1: from a new speaker.
            attribute::AS4_PATH | attribute::AS4_AGGREGATOR if n.four_octet_as => {
                return self.discard(a.code, Fault::NotFromThisPeer);
            }
            _ => {}
        }
        if (a.flags ^ flags) & (flag::OPTIONAL | flag::TRANSITIVE) != 0 {
            return match a.code {
                // §5.3.
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => {
                    self.reset(a.code, Fault::Flags, a.whole);
                }
                // §3 (c).
                code => self.withdraw(code, Fault::Flags, a.whole),
            };
        }
        if let Err(fault) = self.value(a, n) {
            match a.code {
                // §3 (f), §7.6, §7.7; RFC 6793 §6.
                attribute::ATOMIC_AGGREGATE
                | attribute::AGGREGATOR
                | attribute::AS4_PATH
                | attribute::AS4_AGGREGATOR => self.discard(a.code, fault),
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => match fault {
                    Fault::NotNegotiated => self.error(a.code, fault, Action::None),
                    // The prefixes were read, so they can be withdrawn.
                    Fault::NextHop => self.withdraw(a.code, fault, a.whole),
                    // §3 (j), §5.3, §7.11.
                    _ => self.reset(a.code, fault, a.whole),
                },
                code => self.withdraw(code, fault, a.whole),
            }
        }
    }

    /// RFC 4271 §9: kept and passed on when transitive, else ignored. RFC 7606 leaves the session
    /// reset of §6.3 for unrecognised well-known attributes as it was.
    fn unknown(&mut self, a: RawView<'a>) {
        if a.flags & flag::OPTIONAL == 0 {
            self.reset(a.code, Fault::Unrecognized, a.whole);
        } else if a.flags & flag::TRANSITIVE != 0 {
            self.keep(a);
        }
    }

    /// Sorted by type, so that equal sets compare equal in whatever order they came.
    fn keep(&mut self, a: RawView<'a>) {
        let unknown = &mut self.attributes.unknown;
        let at = unknown.partition_point(|u| u.code < a.code);
        // The length flag belongs to the encoding, and the low four bits are unused.
        let flags = a.flags & (flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL);
        unknown.insert(at, RawAttribute { flags, code: a.code, value: a.value.to_vec() });
    }

    /// RFC 7606 §7, attribute by attribute.
    fn value(&mut self, a: RawView<'a>, n: &Negotiated) -> Result<(), Fault> {
        let to = &mut self.attributes;
        match a.code {
            attribute::ORIGIN => {
                to.origin = match fixed(a.value)? {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    [_] => return Err(Fault::Value),
                };
                self.has_origin = true;
            }
            attribute::AS_PATH => {
                let path = as_path::decode(a.value, Width::of(n.four_octet_as))
                    .map_err(|as_path::Malformed| Fault::Value)?;
                // RFC 5065 §5: from outside the confederation. An internal peer may be inside.
                if !n.ibgp && as_path::has_confed(&path) {
                    return Err(Fault::Value);
                }
                to.as_path = path;
                self.has_as_path = true;
            }
            attribute::NEXT_HOP => self.next_hop = Some(Ipv4Addr::from(fixed::<4>(a.value)?)),
            attribute::MULTI_EXIT_DISC => to.med = Some(u32::from_be_bytes(fixed(a.value)?)),
            attribute::LOCAL_PREF => to.local_pref = Some(u32::from_be_bytes(fixed(a.value)?)),
            attribute::ATOMIC_AGGREGATE => {
                let [] = fixed(a.value)?;
                to.atomic_aggregate = true;
            }
            attribute::AGGREGATOR if n.four_octet_as => to.aggregator = Some(aggregator4(a.value)?),
            attribute::AGGREGATOR => {
                let [as_high, as_low, id @ ..] = fixed::<6>(a.value)?;
                to.aggregator = match u16::from_be_bytes([as_high, as_low]) {
                    0 => return Err(Fault::Value), // RFC 7607 §2
                    asn => Some((u32::from(asn), Ipv4Addr::from(id))),
                };
            }
            attribute::COMMUNITIES => {
                to.communities = list(a.value)?.iter().map(|c| u32::from_be_bytes(*c)).collect();
            }
            attribute::ORIGINATOR_ID => {
                to.originator_id = Some(Ipv4Addr::from(fixed::<4>(a.value)?));
            }
            attribute::CLUSTER_LIST => {
                to.cluster_list =
                    list::<4>(a.value)?.iter().map(|id| Ipv4Addr::from(*id)).collect();
            }
            attribute::MP_REACH_NLRI => return self.mp_reach(a.value, n),
            attribute::MP_UNREACH_NLRI => return self.mp_unreach(a.value, n),
            attribute::EXTENDED_COMMUNITIES => {
                to.extended_communities =
                    list(a.value)?.iter().map(|c| ExtendedCommunity(*c)).collect();
            }
            attribute::AS4_PATH => {
                let path = as_path::decode_as4(a.value);
                self.as4_path = Some(path.map_err(|as_path::Malformed| Fault::Value)?);
            }
            attribute::AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator4(a.value)?),
            attribute::IPV6_EXTENDED_COMMUNITIES => {
                // Known only so far as to tell when it is malformed, §7.15.
                list::<20>(a.value)?;
                self.keep(a);
            }
            attribute::LARGE_COMMUNITY => to.large_communities = large_communities(a.value)?,
            _ => {} // `flags_of` knows exactly the codes above
        }
        Ok(())
    }

    /// RFC 4760 §3.
    ///
    /// ```text
    /// | AFI: 2 | SAFI: 1 | next hop length: 1 | next hop | reserved: 1 | NLRI |
    /// ```
    fn mp_reach(&mut self, value: &'a [u8], n: &Negotiated) -> Result<(), Fault> {
        let (&[afi_high, afi_low, safi, hop_len], rest) =
            value.split_first_chunk().ok_or(Fault::Length)?;
        let (hop, rest) = rest.split_at_checked(usize::from(hop_len)).ok_or(Fault::Length)?;
        let (_reserved, nlri) = rest.split_first().ok_or(Fault::Length)?;
        let Some(family) = family_of(u16::from_be_bytes([afi_high, afi_low]), safi, n) else {
            self.has_foreign_reach = true;
            return Err(Fault::NotNegotiated);
        };
        let next_hop = next_hop_of(family, hop, n)?;
        let nlri = Nlri::new(family, nlri).map_err(|_| Fault::Nlri)?;
        self.walk.mp_reach = Some(MpReach { family, next_hop, nlri });
        if is_host(next_hop) { Ok(()) } else { Err(Fault::NextHop) }
    }

    /// RFC 4760 §4.
    fn mp_unreach(&mut self, value: &'a [u8], n: &Negotiated) -> Result<(), Fault> {
        let (&[afi_high, afi_low, safi], nlri) = value.split_first_chunk().ok_or(Fault::Length)?;
        let family = family_of(u16::from_be_bytes([afi_high, afi_low]), safi, n)
            .ok_or(Fault::NotNegotiated)?;
        let nlri = Nlri::new(family, nlri).map_err(|_| Fault::Nlri)?;
        self.walk.mp_unreach = Some(MpUnreach { family, nlri });
        Ok(())
    }

    fn conclude(mut self, n: &Negotiated, has_v4_nlri: bool) -> Walk<'a> {
        if self.is_reset() {
            return self.walk;
        }
        let mp_reach = self.walk.mp_reach.filter(|m| !m.nlri.is_empty());
        let has_routes = has_v4_nlri || mp_reach.is_some();
        if has_routes {
            self.check_mandatory(n, has_v4_nlri);
        }
        // §5.2: without routes the prefixes may be what went wrong.
        if let (false, false, Some((code, fault, whole))) =
            (has_routes, self.has_foreign_reach, self.first_withdraw)
        {
            self.reset(code, fault, whole);
        }
        if has_routes && self.walk.action.strength() < Action::TreatAsWithdraw.strength() {
            self.reconcile();
            let classic = self.next_hop.filter(|_| has_v4_nlri).map(NextHop::V4);
            if let Some(next_hop) = classic.or(mp_reach.map(|m| m.next_hop)) {
                self.attributes.next_hop = next_hop;
                self.walk.attributes = Some(self.attributes);
            }
        }
        self.walk
    }

    /// RFC 7606 §3 (d), and checks that need more than one attribute.
    fn check_mandatory(&mut self, n: &Negotiated, has_v4_nlri: bool) {
        let seen = self.seen[0];
        let missing = |code: u8| seen & 1 << code == 0;
        for code in [attribute::ORIGIN, attribute::AS_PATH] {
            if missing(code) {
                self.withdraw(code, Fault::Missing, &[]);
            }
        }
        if has_v4_nlri {
            if missing(attribute::NEXT_HOP) {
                self.withdraw(attribute::NEXT_HOP, Fault::Missing, &[]);
            } else if self.next_hop.is_some_and(|hop| !is_host(NextHop::V4(hop))) {
                self.withdraw(attribute::NEXT_HOP, Fault::NextHop, &[]);
            }
        }
        // §7.2: the leftmost AS of an external peer's path is its own.
        if !n.ibgp
            && self.has_as_path
            && as_path::first_as(&self.attributes.as_path) != Some(n.peer_as)
        {
            self.withdraw(attribute::AS_PATH, Fault::Value, &[]);
        }
    }

    /// RFC 6793 §4.2.3.
    fn reconcile(&mut self) {
        let to = &mut self.attributes;
        if let (Some(aggregator), Some(as4)) = (&mut to.aggregator, self.as4_aggregator) {
            if aggregator.0 != u32::from(super::AS_TRANS) {
                return; // an old speaker aggregated, and did not know of the AS4 attributes
            }
            *aggregator = as4;
        }
        if let Some(as4_path) = self.as4_path.take() {
            to.as_path = as_path::reconcile(std::mem::take(&mut to.as_path), as4_path);
        }
    }
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], Fault> {
    value.try_into().map_err(|_| Fault::Length)
}

/// A non-empty list of items of `N` octets.
fn list<const N: usize>(value: &[u8]) -> Result<&[[u8; N]], Fault> {
    match value.as_chunks() {
        ([], _) => Err(Fault::Length),
        (items, []) => Ok(items),
        (_, _) => Err(Fault::Length),
    }
}

fn aggregator4(value: &[u8]) -> Result<(u32, Ipv4Addr), Fault> {
    let [a, b, c, d, id @ ..] = fixed::<8>(value)?;
    match u32::from_be_bytes([a, b, c, d]) {
        0 => Err(Fault::Value), // RFC 7607 §2
        asn => Ok((asn, Ipv4Addr::from(id))),
    }
}

/// RFC 8092 §5: repeated values are removed; the first stays where it was.
fn large_communities(value: &[u8]) -> Result<Vec<LargeCommunity>, Fault> {
    let items = list::<12>(value)?;
    let mut all = Vec::with_capacity(items.len());
    // Beyond a handful, a search tree: a peer must not make us compare 5000 by 5000.
    const SCAN_MAX: usize = 16;
    let mut tree = std::collections::BTreeSet::new();
    for &[a, b, c, d, e, f, g, h, i, j, k, l] in items {
        let community = LargeCommunity {
            global: u32::from_be_bytes([a, b, c, d]),
            local1: u32::from_be_bytes([e, f, g, h]),
            local2: u32::from_be_bytes([i, j, k, l]),
        };
        let is_new = if items.len() <= SCAN_MAX {
            !all.contains(&community)
        } else {
            tree.insert(community)
        };
        if is_new {
            all.push(community);
        }
    }
    Ok(all)
}

/// A unicast family that is in use on the session.
fn family_of(afi_received: u16, safi: u8, n: &Negotiated) -> Option<Family> {
    let same = |f: &Family| afi(*f) == afi_received && safi == SAFI_UNICAST && n.has(*f);
    Family::ALL.into_iter().find(same)
}

/// RFC 4760 §3, RFC 2545 §3, RFC 8950 §3; RFC 7606 §7.11 for any other length.
fn next_hop_of(family: Family, octets: &[u8], n: &Negotiated) -> Result<NextHop, Fault> {
    let v6_allowed = match family {
        Family::Ipv4 => n.extended_next_hop_v4,
        Family::Ipv6 => true,
    };
    if let (Family::Ipv4, Ok(octets)) = (family, <[u8; 4]>::try_from(octets)) {
        return Ok(NextHop::V4(Ipv4Addr::from(octets)));
    }
    let (Some((global, rest)), true) = (octets.split_first_chunk::<16>(), v6_allowed) else {
        return Err(Fault::Length);
    };
    let global = Ipv6Addr::from(*global);
    let link_local = match rest.len() {
        0 => None,
        16 => Some(Ipv6Addr::from(fixed::<16>(rest)?)),
        _ => return Err(Fault::Length),
    };
    // Some speakers without a global address send `::` or leave the second half zero.
    let link_local = link_local.filter(Ipv6Addr::is_unicast_link_local);
    Ok(match link_local {
        Some(local) if global.is_unspecified() => {
            NextHop::V6 { global: local, link_local: Some(local) }
        }
        link_local => NextHop::V6 { global, link_local },
    })
}

/// An address that a host can have (RFC 4271 §6.3, "syntactically correct").
fn is_host(next_hop: NextHop) -> bool {
    match next_hop {
        NextHop::V4(a) => {
            let [first, ..] = a.octets();
            first != 0 && first != 127 && first < 224
        }
        NextHop::V6 { global, .. } => {
            !(global.is_unspecified() || global.is_loopback() || global.is_multicast())
        }
    }
}
