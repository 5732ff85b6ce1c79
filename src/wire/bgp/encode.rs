//! Attributes and NLRI → UPDATE messages.
//!
//! An attribute set is encoded once ([`EncodedAttributes`]), then prefixes are appended to as many
//! messages as they fill ([`Packer`]). MP_REACH_NLRI and MP_UNREACH_NLRI come first, and a message
//! has routes in one field only (RFC 7606 §5.1).

use std::net::Ipv4Addr;

use super::as_path::{self, Width};
use super::attributes::{Attributes, NextHop, RawAttribute};
use super::frame::{HEADER_LEN, MessageType, begin, finish};
use super::nlri;
use super::update::{attribute, flag};
use super::{Negotiated, SAFI_UNICAST, afi};
use crate::types::{Family, Prefix};

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const NON_TRANSITIVE: u8 = flag::OPTIONAL;
const TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;

/// Not even one prefix fits beside these attributes, so the route cannot be sent to this peer. The
/// caller withdraws what it announced before (RFC 8654 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes of {len} octets leave no room for a prefix")]
pub struct AttributesTooLong {
    pub len: usize,
}

/// Everything but MP_REACH_NLRI, ascending by type. NEXT_HOP is written when the next hop is IPv4.
/// LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST are written to internal peers only.
pub fn encode_attributes(a: &Attributes, n: &Negotiated, out: &mut Vec<u8>) {
    let mut unknown = Unknown::new(&a.unknown);
    let width = Width::of(n.four_octet_as);
    fixed(WELL_KNOWN, attribute::ORIGIN, &[a.origin as u8], out);
    with_value(WELL_KNOWN, attribute::AS_PATH, out, |out| {
        as_path::encode(&a.as_path, width, out);
    });
    if let NextHop::V4(hop) = a.next_hop {
        fixed(WELL_KNOWN, attribute::NEXT_HOP, &hop.octets(), out);
    }
    if let Some(med) = a.med {
        fixed(NON_TRANSITIVE, attribute::MULTI_EXIT_DISC, &med.to_be_bytes(), out);
    }
    if let (Some(preference), true) = (a.local_pref, n.ibgp) {
        fixed(WELL_KNOWN, attribute::LOCAL_PREF, &preference.to_be_bytes(), out);
    }
    if a.atomic_aggregate {
        fixed(WELL_KNOWN, attribute::ATOMIC_AGGREGATE, &[], out);
    }
    if let Some((asn, id)) = a.aggregator {
        match width {
            Width::Four => fixed(TRANSITIVE, attribute::AGGREGATOR, &aggregator4(asn, id), out),
            Width::Two => {
                let [as_high, as_low] = as_path::as_trans(asn).to_be_bytes();
                let [b, c, d, e] = id.octets();
                fixed(TRANSITIVE, attribute::AGGREGATOR, &[as_high, as_low, b, c, d, e], out);
            }
        }
    }
    if !a.communities.is_empty() {
        with_value(TRANSITIVE, attribute::COMMUNITIES, out, |out| {
            a.communities.iter().for_each(|c| out.extend_from_slice(&c.to_be_bytes()));
        });
    }
    if let (Some(id), true) = (a.originator_id, n.ibgp) {
        fixed(NON_TRANSITIVE, attribute::ORIGINATOR_ID, &id.octets(), out);
    }
    if !a.cluster_list.is_empty() && n.ibgp {
        with_value(NON_TRANSITIVE, attribute::CLUSTER_LIST, out, |out| {
            a.cluster_list.iter().for_each(|id| out.extend_from_slice(&id.octets()));
        });
    }
    unknown.encode_below(attribute::EXTENDED_COMMUNITIES, out);
    if !a.extended_communities.is_empty() {
        with_value(TRANSITIVE, attribute::EXTENDED_COMMUNITIES, out, |out| {
            a.extended_communities.iter().for_each(|c| out.extend_from_slice(&c.0));
        });
    }
    if width == Width::Two {
        // RFC 6793 §4.2.2: only when they say more than the two-octet ones.
        if as_path::needs_as4(&a.as_path) {
            with_value(TRANSITIVE, attribute::AS4_PATH, out, |out| {
                as_path::encode_as4(&a.as_path, out);
            });
        }
        if let Some((asn, id)) = a.aggregator.filter(|(asn, _)| u16::try_from(*asn).is_err()) {
            fixed(TRANSITIVE, attribute::AS4_AGGREGATOR, &aggregator4(asn, id), out);
        }
    }
    unknown.encode_below(attribute::LARGE_COMMUNITY, out);
    if !a.large_communities.is_empty() {
        with_value(TRANSITIVE, attribute::LARGE_COMMUNITY, out, |out| {
            for c in &a.large_communities {
                for part in [c.global, c.local1, c.local2] {
                    out.extend_from_slice(&part.to_be_bytes());
                }
            }
        });
    }
    unknown.encode_rest(out);
}

/// The unknown attributes of a set, which are sorted by type, in between the known ones.
struct Unknown<'a> {
    rest: &'a [RawAttribute],
}

impl<'a> Unknown<'a> {
    const fn new(rest: &'a [RawAttribute]) -> Self {
        Self { rest }
    }

    fn encode_below(&mut self, code: u8, out: &mut Vec<u8>) {
        let (below, rest) = self.rest.split_at(self.rest.partition_point(|a| a.code < code));
        self.rest = rest;
        Self { rest: below }.encode_rest(out);
    }

    /// RFC 4271 §9: transitive ones go on, marked as not understood by everybody on the way.
    fn encode_rest(&mut self, out: &mut Vec<u8>) {
        for a in self.rest.iter().filter(|a| a.flags & flag::TRANSITIVE != 0) {
            fixed(TRANSITIVE | flag::PARTIAL, a.code, &a.value, out);
        }
    }
}

fn aggregator4(asn: u32, id: Ipv4Addr) -> [u8; 8] {
    (u64::from(asn) << 32 | u64::from(id.to_bits())).to_be_bytes()
}

/// Header and value.
fn fixed(flags: u8, code: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(len) => out.extend_from_slice(&[flags, code, len]),
        Err(_) => {
            let [high, low] = attribute_len(value.len()).to_be_bytes();
            out.extend_from_slice(&[flags | flag::EXTENDED_LENGTH, code, high, low]);
        }
    }
    out.extend_from_slice(value);
}

/// Like [`fixed`], for values that are written in place; the length is widened afterwards when it
/// turns out long.
fn with_value(flags: u8, code: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[flags, code, 0]);
    let start = out.len();
    write(out);
    let len = out.len() - start;
    match u8::try_from(len) {
        Ok(len) => out[start - 1] = len,
        Err(_) => {
            let [high, low] = attribute_len(len).to_be_bytes();
            out[start - 3] |= flag::EXTENDED_LENGTH;
            out[start - 1] = high;
            out.insert(start, low);
        }
    }
}

/// An AS_PATH that filled a long message of an old speaker needs twice the octets for a new one.
/// The length is then wrong, but so long a set cannot be sent: [`Packer::announce`] refuses it.
fn attribute_len(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// An attribute set encoded once, for all peers with the same `four_octet_as` and `ibgp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedAttributes {
    octets: Vec<u8>,
    next_hop: NextHop,
}

impl EncodedAttributes {
    pub fn new(attributes: &Attributes, n: &Negotiated) -> Self {
        let mut octets = Vec::with_capacity(128);
        encode_attributes(attributes, n, &mut octets);
        Self { octets, next_hop: attributes.next_hop }
    }

    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

/// Where the prefixes of a message are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout<'a> {
    /// IPv4 with an IPv4 next hop: NLRI after the attributes.
    Nlri(&'a EncodedAttributes),
    /// MP_REACH_NLRI, then the other attributes.
    MpReach(&'a EncodedAttributes),
    /// IPv4 withdrawals.
    Withdrawn,
    MpUnreach,
}

/// Appends UPDATEs to one buffer, each as full as `max_len` allows.
///
/// [`Self::announce`] or [`Self::withdraw`], then [`Self::push`] for each prefix, then
/// [`Self::finish`]; being dropped also leaves whole messages behind.
#[derive(Debug)]
pub struct Packer<'o, 'a> {
    out: &'o mut Vec<u8>,
    layout: Layout<'a>,
    family: Family,
    max_len: usize,
    /// Start of the open message and of its prefixes.
    open: Option<(usize, usize)>,
    /// Where `out` has to end so that what still must follow fits too; zero when none is open.
    prefixes_end_max: usize,
    messages: usize,
}

impl<'o, 'a> Packer<'o, 'a> {
    /// `max_len` is that of [`Negotiated`]. IPv4 prefixes with an IPv6 next hop go into
    /// MP_REACH_NLRI, which the peer understands if `extended_next_hop_v4` was negotiated.
    pub fn announce(
        out: &'o mut Vec<u8>,
        attributes: &'a EncodedAttributes,
        family: Family,
        max_len: usize,
    ) -> Result<Self, AttributesTooLong> {
        let layout = match (family, attributes.next_hop) {
            (Family::Ipv4, NextHop::V4(_)) => Layout::Nlri(attributes),
            (Family::Ipv4, NextHop::V6 { .. }) | (Family::Ipv6, _) => Layout::MpReach(attributes),
        };
        let len = attributes.octets.len();
        let prefix_max = 1 + usize::from(family.bits()) / 8;
        let mp_max = match layout {
            Layout::MpReach(_) => MP_REACH_HEAD_MAX,
            Layout::Nlri(_) | Layout::Withdrawn | Layout::MpUnreach => 0,
        };
        if HEADER_LEN + 4 + mp_max + len + prefix_max > max_len {
            return Err(AttributesTooLong { len });
        }
        Ok(Self::new(out, layout, family, max_len))
    }

    pub fn withdraw(out: &'o mut Vec<u8>, family: Family, max_len: usize) -> Self {
        let layout = match family {
            Family::Ipv4 => Layout::Withdrawn,
            Family::Ipv6 => Layout::MpUnreach,
        };
        Self::new(out, layout, family, max_len)
    }

    fn new(out: &'o mut Vec<u8>, layout: Layout<'a>, family: Family, max_len: usize) -> Self {
        Self { out, layout, family, max_len, open: None, prefixes_end_max: 0, messages: 0 }
    }

    /// `prefix` is of the packer's family.
    pub fn push(&mut self, prefix: Prefix) {
        assert_eq!(prefix.family(), self.family, "one packer, one family");
        let len = nlri::encoded_len(prefix);
        if self.out.len() + len > self.prefixes_end_max {
            self.close();
            self.open();
        }
        nlri::push(prefix, self.out);
    }

    /// Closes the last message; the number of messages written.
    pub fn finish(mut self) -> usize {
        self.close();
        self.messages
    }

    fn open(&mut self) {
        let start = begin(MessageType::Update, self.out);
        let follows = match self.layout {
            Layout::Nlri(attributes) => {
                let len = attributes.octets.len();
                self.out.extend_from_slice(&[0, 0]);
                self.out.extend_from_slice(&length(len).to_be_bytes());
                self.out.extend_from_slice(&attributes.octets);
                0
            }
            Layout::MpReach(attributes) => {
                // Both lengths are filled in by `close`.
                self.out.extend_from_slice(&[0, 0, 0, 0]);
                self.out.extend_from_slice(&MP_REACH_START);
                self.out.extend_from_slice(&afi(self.family).to_be_bytes());
                self.out.push(SAFI_UNICAST);
                push_next_hop(attributes.next_hop, self.out);
                self.out.push(0); // reserved
                attributes.octets.len()
            }
            Layout::Withdrawn => {
                self.out.extend_from_slice(&[0, 0]);
                2 // no attributes
            }
            Layout::MpUnreach => {
                self.out.extend_from_slice(&[0, 0, 0, 0]);
                self.out.extend_from_slice(&MP_UNREACH_START);
                self.out.extend_from_slice(&afi(self.family).to_be_bytes());
                self.out.push(SAFI_UNICAST);
                0
            }
        };
        self.open = Some((start, self.out.len()));
        self.prefixes_end_max = start + self.max_len - follows;
    }

    fn close(&mut self) {
        let Some((start, prefixes)) = self.open.take() else { return };
        self.prefixes_end_max = 0;
        // Of the field that counts the octets from `from` to the end of what is written so far.
        let fill = |out: &mut Vec<u8>, at: usize, from: usize| {
            let len = length(out.len() - from).to_be_bytes();
            out[at..at + 2].copy_from_slice(&len);
        };
        let body = start + HEADER_LEN;
        match self.layout {
            Layout::Nlri(_) => {}
            Layout::MpReach(_) | Layout::MpUnreach => {
                fill(self.out, body + 6, body + 8);
                if let Layout::MpReach(attributes) = self.layout {
                    self.out.extend_from_slice(&attributes.octets);
                }
                fill(self.out, body + 2, body + 4);
            }
            Layout::Withdrawn => {
                fill(self.out, body, prefixes);
                self.out.extend_from_slice(&[0, 0]);
            }
        }
        finish(start, self.out);
        self.messages += 1;
    }
}

impl Drop for Packer<'_, '_> {
    fn drop(&mut self) {
        self.close();
    }
}

const MP_REACH_START: [u8; 4] =
    [flag::OPTIONAL | flag::EXTENDED_LENGTH, attribute::MP_REACH_NLRI, 0, 0];
const MP_UNREACH_START: [u8; 4] =
    [flag::OPTIONAL | flag::EXTENDED_LENGTH, attribute::MP_UNREACH_NLRI, 0, 0];
/// Attribute header, AFI, SAFI, the longest next hop with its length, reserved.
const MP_REACH_HEAD_MAX: usize = 4 + 2 + 1 + 1 + 32 + 1;

/// With its length. An IPv4 next hop for IPv6 prefixes is written as an IPv4-mapped address.
fn push_next_hop(next_hop: NextHop, out: &mut Vec<u8>) {
    match next_hop {
        NextHop::V4(a) => {
            out.push(16);
            out.extend_from_slice(&a.to_ipv6_mapped().octets());
        }
        NextHop::V6 { global, link_local: None } => {
            out.push(16);
            out.extend_from_slice(&global.octets());
        }
        NextHop::V6 { global, link_local: Some(local) } => {
            out.push(32);
            out.extend_from_slice(&global.octets());
            out.extend_from_slice(&local.octets());
        }
    }
}

fn length(len: usize) -> u16 {
    u16::try_from(len).expect("part of a message of at most 65535 octets")
}

/// RFC 4724 §2.
pub fn encode_end_of_rib(family: Family, out: &mut Vec<u8>) {
    let start = begin(MessageType::Update, out);
    match family {
        Family::Ipv4 => out.extend_from_slice(&[0, 0, 0, 0]),
        Family::Ipv6 => {
            out.extend_from_slice(&[0, 0, 0, 6, flag::OPTIONAL, attribute::MP_UNREACH_NLRI, 3]);
            out.extend_from_slice(&afi(family).to_be_bytes());
            out.push(SAFI_UNICAST);
        }
    }
    finish(start, out);
}
