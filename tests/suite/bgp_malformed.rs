//! BGP octets that others made, and what becomes of them when they are damaged.
//!
//! One table has a row per rule of RFC 7606 (and of the RFCs that it leans on); the captures in
//! `tests/vectors/bgp` are read, cut at every octet, changed at every octet and mutated by a seeded
//! loop; zettabgp is the second opinion on what is well-formed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use killick::types::{Family, Prefix};
use killick::wire::bgp::{
    Action, AsPath, AsSegment, Attributes, EncodedAttributes, Fault, HEADER_LEN, LargeCommunity,
    MAX_LEN, MAX_LEN_EXTENDED, MessageType, Negotiated, NextHop, Notification, Open, Packer,
    RawAttribute, RefreshKind, RouteRefresh, Update, encode_end_of_rib, next_frame,
};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    digits.chunks(2).map(|d| u8::try_from(d[0] << 4 | d[1]).unwrap()).collect()
}

// ---- The table -------------------------------------------------------------------------------

const IBGP: Negotiated = Negotiated {
    local_as: 65001,
    peer_as: 65001,
    ibgp: true,
    four_octet_as: true,
    ipv4: true,
    ipv6: true,
    extended_next_hop_v4: false,
    max_len: MAX_LEN,
};
const EBGP: Negotiated = Negotiated { peer_as: 65002, ibgp: false, ..IBGP };
/// An external peer with AS numbers of two octets.
const OLD: Negotiated = Negotiated { four_octet_as: false, ..EBGP };
/// RFC 8950.
const V4_OVER_V6: Negotiated = Negotiated { extended_next_hop_v4: true, ..IBGP };
const V4_ONLY: Negotiated = Negotiated { ipv6: false, ..IBGP };

#[derive(Debug, PartialEq)]
enum Want {
    Accept,
    /// Accepted although something is recorded.
    Note(u8, Fault),
    Discard(u8, Fault),
    Withdraw(u8, Fault),
    /// The subcode of UPDATE Message Error.
    Reset(u8),
}
use Fault::{Duplicate, Flags, Length, Missing, NotFromThisPeer, NotNegotiated, Overrun, Value};
use Want::{Accept, Discard, Note, Reset, Withdraw};

const O: &str = "40 01 01 00";
const P: &str = "40 02 00";
const H: &str = "40 03 04 0a000001";
const L: &str = "40 05 04 00000064";
/// AS_PATH of the external peer: 65002.
const PE: &str = "40 02 06 02 01 0000fdea";
const PO: &str = "40 02 04 02 01 fdea";
/// 2001:db8::7/128 by way of 2001:db8::1.
const MP: &str = "80 0e 26 0002 01 10 20010db8000000000000000000000001 00 \
                  80 20010db8000000000000000000000007";
/// 10.4.0.1/32.
const N: &str = "20 0a040001";

/// (rule, session, attributes, NLRI, what is made of it).
type Row = (&'static str, Negotiated, &'static [&'static str], &'static str, Want);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("well-formed, internal", IBGP, &[O, P, H, L], N, Accept),
    ("well-formed, external", EBGP, &[O, PE, H], N, Accept),
    ("well-formed, old speaker", OLD, &[O, PO, H], N, Accept),
    ("well-formed, IPv6", IBGP, &[MP, O, P, L], "", Accept),
    ("§5.1 any order and combination", IBGP, &[L, MP, H, P, O], N, Accept),
    ("extended length of a short attribute", IBGP, &["50 01 0001 00", P, H, L], N, Accept),
    ("unused flag bits are ignored", IBGP, &["4f 01 01 00", "5f 02 0000", H, L], N, Accept),
    ("withdrawal with attributes", IBGP, &[O], "", Accept),

    // §3 (c): Optional and Transitive.
    ("ORIGIN optional", IBGP, &["c0 01 01 00", P, H, L], N, Withdraw(1, Flags)),
    ("AS_PATH not transitive", IBGP, &[O, "00 02 00", H, L], N, Withdraw(2, Flags)),
    ("NEXT_HOP optional", IBGP, &[O, P, "80 03 04 0a000001", L], N, Withdraw(3, Flags)),
    ("MED transitive", IBGP, &[O, P, H, "c0 04 04 00000001", L], N, Withdraw(4, Flags)),
    ("LOCAL_PREF optional", IBGP, &[O, P, H, "80 05 04 00000064"], N, Withdraw(5, Flags)),
    ("ATOMIC_AGGREGATE optional", IBGP, &[O, P, H, L, "c0 06 00"], N, Withdraw(6, Flags)),
    ("AGGREGATOR well-known", IBGP, &[O, P, H, L, "40 07 08 0000fde9 0a000001"], N, Withdraw(7, Flags)),
    ("COMMUNITY not transitive", IBGP, &[O, P, H, L, "80 08 04 fde90001"], N, Withdraw(8, Flags)),
    ("ORIGINATOR_ID transitive", IBGP, &[O, P, H, L, "c0 09 04 0a000001"], N, Withdraw(9, Flags)),
    ("CLUSTER_LIST transitive", IBGP, &[O, P, H, L, "c0 0a 04 0a000001"], N, Withdraw(10, Flags)),
    ("large community not transitive", IBGP, &[O, P, H, L, "80 20 0c 0000fde9 00000064 00000001"], N, Withdraw(32, Flags)),
    ("Partial on COMMUNITY", IBGP, &[O, P, H, L, "e0 08 04 fde90001"], N, Accept),
    ("§5.3 MP_REACH_NLRI transitive", IBGP, &["c0 0e 05 0002 01 00 00", O, P, L], "", Reset(4)),
    ("§5.3 MP_UNREACH_NLRI well-known", IBGP, &["40 0f 03 0002 01"], "", Reset(4)),

    // §3 (d).
    ("no ORIGIN", IBGP, &[P, H, L], N, Withdraw(1, Missing)),
    ("no AS_PATH", IBGP, &[O, H, L], N, Withdraw(2, Missing)),
    ("no NEXT_HOP", IBGP, &[O, P, L], N, Withdraw(3, Missing)),
    ("no NEXT_HOP beside MP_REACH_NLRI", IBGP, &[MP, O, P, L], N, Withdraw(3, Missing)),
    ("no attributes", IBGP, &[], N, Withdraw(1, Missing)),
    ("no ORIGIN, IPv6", IBGP, &[MP, P, L], "", Withdraw(1, Missing)),

    // §3 (g).
    ("MP_REACH_NLRI twice", IBGP, &[MP, MP, O, P, L], "", Reset(1)),
    ("MP_UNREACH_NLRI twice", IBGP, &["80 0f 03 0002 01", "80 0f 03 0002 01"], "", Reset(1)),
    ("ORIGIN twice, the second malformed", IBGP, &[O, P, H, L, "40 01 01 07"], N, Discard(1, Duplicate)),
    ("unknown attribute twice", IBGP, &[O, P, H, L, "c0 63 01 01", "c0 63 01 02"], N, Discard(99, Duplicate)),

    // §3 (h): the strongest.
    ("discard and withdraw", IBGP, &[O, P, H, L, L, "c0 08 03 010203"], N, Withdraw(8, Length)),
    ("withdraw and reset", IBGP, &["40 01 01 07", P, H, L, "40 63 00"], N, Reset(2)),

    // RFC 4271 §6.3, which §3 leaves as it was.
    ("unrecognised well-known attribute", IBGP, &[O, P, H, L, "40 63 01 00"], N, Reset(2)),
    ("unknown optional transitive", IBGP, &[O, P, H, L, "c0 63 01 00"], N, Accept),
    ("unknown optional non-transitive", IBGP, &[O, P, H, L, "80 63 01 00"], N, Accept),

    // §4.
    ("last attribute too long", IBGP, &[O, P, H, L, "c0 08 05 fde90001"], N, Withdraw(8, Overrun)),
    ("one octet left", IBGP, &[O, P, H, L, "c0"], N, Withdraw(0, Overrun)),
    ("two octets left", IBGP, &[O, P, H, L, "c0 08"], N, Withdraw(8, Overrun)),
    ("three octets left, extended length", IBGP, &[O, P, H, L, "d0 08 00"], N, Withdraw(8, Overrun)),
    ("MP_REACH_NLRI too long: unknown routes", IBGP, &[O, P, H, L, "80 0e 30 0002 01"], N, Reset(1)),
    ("zero length", IBGP, &[O, P, H, L, "c0 08 00"], N, Withdraw(8, Length)),

    // §5.2: an error, and no routes by which to tell that the rest was read right.
    ("malformed ORIGIN without routes", IBGP, &["40 01 01 07", P, L], "", Reset(6)),
    ("flags without routes", IBGP, &["c0 01 01 00"], "", Reset(4)),
    ("overrun without routes", IBGP, &[O, P, "c0 08 05 00"], "", Reset(1)),
    ("overrun after withdrawals", IBGP, &["80 0f 14 0002 01 80 20010db8000000000000000000000007", "c0"], "", Reset(1)),
    ("malformed COMMUNITY, empty MP_REACH_NLRI", IBGP, &["80 0e 15 0002 01 10 20010db8000000000000000000000001 00", O, P, L, "c0 08 01 00"], "", Reset(5)),
    ("discard without routes", IBGP, &[O, P, "40 06 01 00"], "", Discard(6, Length)),

    // §5.3.
    ("NLRI longer than 32 bits", IBGP, &[O, P, H, L], "21 0a04000100", Reset(10)),
    ("NLRI truncated", IBGP, &[O, P, H, L], "20 0a0400", Reset(10)),
    ("MP_REACH_NLRI: 129 bits", IBGP, &["80 0e 16 0002 01 10 20010db8000000000000000000000001 00 81", O, P, L], "", Reset(9)),
    ("MP_REACH_NLRI: truncated", IBGP, &["80 0e 18 0002 01 10 20010db8000000000000000000000001 00 40 20 01", O, P, L], "", Reset(9)),
    ("MP_REACH_NLRI of 4 octets", IBGP, &["80 0e 04 0002 01 00", O, P, L], "", Reset(9)),
    ("MP_UNREACH_NLRI of 2 octets", IBGP, &["80 0f 02 0002"], "", Reset(9)),
    ("MP_UNREACH_NLRI: 129 bits", IBGP, &["80 0f 04 0002 01 81"], "", Reset(9)),
    ("MP_UNREACH_NLRI: truncated", IBGP, &["80 0f 05 0002 01 40 20"], "", Reset(9)),
    ("MP_UNREACH_NLRI: 33 bits for IPv4", IBGP, &["80 0f 09 0001 01 21 0a04000100"], "", Reset(9)),

    // §7.1.
    ("ORIGIN of 2 octets", IBGP, &["40 01 02 0000", P, H, L], N, Withdraw(1, Length)),
    ("ORIGIN of 0 octets", IBGP, &["40 01 00", P, H, L], N, Withdraw(1, Length)),
    ("ORIGIN 3", IBGP, &["40 01 01 03", P, H, L], N, Withdraw(1, Value)),

    // §7.2.
    ("AS_PATH segment type 0", IBGP, &[O, "40 02 06 00 01 0000fdea", H, L], N, Withdraw(2, Value)),
    ("AS_PATH segment type 5", IBGP, &[O, "40 02 06 05 01 0000fdea", H, L], N, Withdraw(2, Value)),
    ("AS_PATH segment overrun", IBGP, &[O, "40 02 06 02 02 0000fdea", H, L], N, Withdraw(2, Value)),
    ("AS_PATH segment underrun", IBGP, &[O, "40 02 07 02 01 0000fdea 09", H, L], N, Withdraw(2, Value)),
    ("AS_PATH segment of no ASes", IBGP, &[O, "40 02 02 02 00", H, L], N, Withdraw(2, Value)),
    ("AS_PATH of two-octet ASes from a new speaker", EBGP, &[O, PO, H], N, Withdraw(2, Value)),
    ("RFC 7607 AS 0", IBGP, &[O, "40 02 06 02 01 00000000", H, L], N, Withdraw(2, Value)),
    ("AS_PATH starts with another AS", EBGP, &[O, "40 02 06 02 01 0000fdeb", H], N, Withdraw(2, Value)),
    ("AS_PATH empty from an external peer", EBGP, &[O, P, H], N, Withdraw(2, Value)),
    ("RFC 5065 confederation from outside", EBGP, &[O, "40 02 0c 03 01 0000fdea 02 01 0000fdea", H], N, Withdraw(2, Value)),
    ("RFC 5065 confederation from inside", IBGP, &[O, "40 02 06 03 01 0000fdea", H, L], N, Accept),

    // §7.3.
    ("NEXT_HOP of 5 octets", IBGP, &[O, P, "40 03 05 0a00000100", L], N, Withdraw(3, Length)),
    ("NEXT_HOP of 16 octets", IBGP, &[O, P, "40 03 10 20010db8000000000000000000000001", L], N, Withdraw(3, Length)),
    ("NEXT_HOP 0.0.0.0", IBGP, &[O, P, "40 03 04 00000000", L], N, Withdraw(3, Fault::NextHop)),
    ("NEXT_HOP 224.0.0.1", IBGP, &[O, P, "40 03 04 e0000001", L], N, Withdraw(3, Fault::NextHop)),
    ("NEXT_HOP 127.0.0.1", IBGP, &[O, P, "40 03 04 7f000001", L], N, Withdraw(3, Fault::NextHop)),
    ("RFC 4760 §3 NEXT_HOP ignored with MP_REACH_NLRI only", IBGP, &[MP, O, P, "40 03 04 00000000", L], "", Accept),

    // §7.4, §7.5.
    ("MED of 3 octets", IBGP, &[O, P, H, "80 04 03 000001", L], N, Withdraw(4, Length)),
    ("LOCAL_PREF of 5 octets", IBGP, &[O, P, H, "40 05 05 0000006400"], N, Withdraw(5, Length)),
    ("LOCAL_PREF from an external peer", EBGP, &[O, PE, H, L], N, Discard(5, NotFromThisPeer)),
    ("malformed LOCAL_PREF from an external peer", EBGP, &[O, PE, H, "c0 05 01 00"], N, Discard(5, NotFromThisPeer)),

    // §7.6, §7.7.
    ("ATOMIC_AGGREGATE of 1 octet", IBGP, &[O, P, H, L, "40 06 01 00"], N, Discard(6, Length)),
    ("AGGREGATOR of 6 octets", IBGP, &[O, P, H, L, "c0 07 06 fde9 0a000001"], N, Discard(7, Length)),
    ("AGGREGATOR of 8 octets from an old speaker", OLD, &[O, PO, H, "c0 07 08 0000fde9 0a000001"], N, Discard(7, Length)),
    ("AGGREGATOR of 6 octets from an old speaker", OLD, &[O, PO, H, "c0 07 06 fde9 0a000001"], N, Accept),
    ("RFC 7607 AGGREGATOR of AS 0", IBGP, &[O, P, H, L, "c0 07 08 00000000 0a000001"], N, Discard(7, Value)),

    // §7.8 to §7.10.
    ("COMMUNITY of 6 octets", IBGP, &[O, P, H, L, "c0 08 06 fde900010000"], N, Withdraw(8, Length)),
    ("ORIGINATOR_ID of 3 octets", IBGP, &[O, P, H, L, "80 09 03 0a0000"], N, Withdraw(9, Length)),
    ("ORIGINATOR_ID from an external peer", EBGP, &[O, PE, H, "80 09 04 0a000001"], N, Discard(9, NotFromThisPeer)),
    ("CLUSTER_LIST of 5 octets", IBGP, &[O, P, H, L, "80 0a 05 0a00000100"], N, Withdraw(10, Length)),
    ("CLUSTER_LIST of 0 octets", IBGP, &[O, P, H, L, "80 0a 00"], N, Withdraw(10, Length)),
    ("CLUSTER_LIST from an external peer", EBGP, &[O, PE, H, "80 0a 04 0a000001"], N, Discard(10, NotFromThisPeer)),

    // §7.11.
    ("IPv6 next hop of 4 octets", IBGP, &["80 0e 0a 0002 01 04 0a000001 00 00", O, P, L], "", Reset(9)),
    ("IPv6 next hop of 24 octets", IBGP, &["80 0e 1e 0002 01 18 20010db8000000000000000000000001 fe80000000000001 00 00", O, P, L], "", Reset(9)),
    ("IPv6 next hop longer than the attribute", IBGP, &["80 0e 09 0002 01 20 20010db8 00", O, P, L], "", Reset(9)),
    ("RFC 8950 not negotiated", IBGP, &["80 0e 1a 0001 01 10 20010db8000000000000000000000001 00 20 0a040001", O, P, L], "", Reset(9)),
    ("RFC 8950 negotiated", V4_OVER_V6, &["80 0e 1a 0001 01 10 20010db8000000000000000000000001 00 20 0a040001", O, P, L], "", Accept),
    ("RFC 4760 IPv4 in MP_REACH_NLRI", IBGP, &["80 0e 0e 0001 01 04 0a000001 00 20 0a040001", O, P, L], "", Accept),
    ("next hop ::", IBGP, &["80 0e 16 0002 01 10 00000000000000000000000000000000 00 00", O, P, L], "", Withdraw(14, Fault::NextHop)),
    ("next hop ff02::1", IBGP, &["80 0e 16 0002 01 10 ff020000000000000000000000000001 00 00", O, P, L], "", Withdraw(14, Fault::NextHop)),
    ("RFC 2545 global and link-local", IBGP, &["80 0e 26 0002 01 20 20010db8000000000000000000000001 fe800000000000000000000000000001 00 00", O, P, L], "", Accept),
    ("family not negotiated", V4_ONLY, &[MP, O, P, L], "", Note(14, NotNegotiated)),
    ("AFI that nobody knows", IBGP, &["80 0e 06 4004 47 00 00 01", O, P, L], "", Note(14, NotNegotiated)),
    ("withdrawal of a family not negotiated", V4_ONLY, &["80 0f 04 0002 01 00"], "", Note(15, NotNegotiated)),

    // §7.14, §7.15, RFC 8092 §6.
    ("extended community of 9 octets", IBGP, &[O, P, H, L, "c0 10 09 000200010000000100"], N, Withdraw(16, Length)),
    ("extended community of an unknown type", IBGP, &[O, P, H, L, "c0 10 08 ff02000100000001"], N, Accept),
    ("IPv6 extended community of 21 octets", IBGP, &[O, P, H, L, "c0 19 15 000000000000000000000000000000000000000000"], N, Withdraw(25, Length)),
    ("IPv6 extended community of 20 octets", IBGP, &[O, P, H, L, "c0 19 14 0000000000000000000000000000000000000000"], N, Accept),
    ("large community of 13 octets", IBGP, &[O, P, H, L, "c0 20 0d 00000000000000000000000000"], N, Withdraw(32, Length)),
    ("large community of 0 octets", IBGP, &[O, P, H, L, "c0 20 00"], N, Withdraw(32, Length)),

    // RFC 6793 §4.1, §6.
    ("AS4_PATH from a new speaker", EBGP, &[O, PE, H, "c0 11 06 02 01 fa56ea01"], N, Discard(17, NotFromThisPeer)),
    ("AS4_AGGREGATOR from a new speaker", EBGP, &[O, PE, H, "c0 12 08 fa56ea01 0a000001"], N, Discard(18, NotFromThisPeer)),
    ("AS4_PATH overrun", OLD, &[O, PO, H, "c0 11 06 02 02 fa56ea01"], N, Discard(17, Value)),
    ("AS4_PATH too small", OLD, &[O, PO, H, "c0 11 02 02 00"], N, Discard(17, Value)),
    ("AS4_PATH empty", OLD, &[O, PO, H, "c0 11 00"], N, Discard(17, Value)),
    ("AS4_AGGREGATOR of 6 octets", OLD, &[O, PO, H, "c0 12 06 fde9 0a000001"], N, Discard(18, Length)),
];

fn update_body(withdrawn: &[u8], attributes: &[u8], nlri: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in [withdrawn, attributes] {
        body.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        body.extend(part);
    }
    body.extend(nlri);
    body
}

#[test]
fn each_rule_of_rfc_7606() {
    for (name, session, attributes, nlri, want) in ROWS {
        let body = update_body(&[], &unhex(&attributes.concat()), &unhex(nlri));
        let decoded = Update::decode(&body, session);
        let got = match &decoded {
            Err(n) => {
                assert_eq!(n.code, 3, "{name}");
                Reset(n.subcode)
            }
            Ok(update) => {
                let walk = &update.walk;
                let strongest = walk.errors.iter().find(|e| e.action == walk.action);
                match (strongest.map(|e| (e.code, e.fault)), &walk.action) {
                    (None, Action::None) => Accept,
                    (Some((code, fault)), Action::None) => Note(code, fault),
                    (Some((code, fault)), Action::AttributeDiscard) => Discard(code, fault),
                    (Some((code, fault)), Action::TreatAsWithdraw) => Withdraw(code, fault),
                    other => panic!("{name}: {other:?}"),
                }
            }
        };
        assert_eq!(got, *want, "{name}");
        if let Ok(update) = decoded {
            let reach = update.walk.mp_reach.is_some_and(|m| !m.nlri.is_empty());
            let announced = !nlri.is_empty() || reach;
            let weak = !matches!(got, Withdraw(..));
            assert_eq!(update.walk.attributes.is_some(), announced && weak, "{name}");
            let here = !nlri.is_empty();
            assert_eq!(update.nlri.count(), usize::from(here), "{name}: withdrawn, not forgotten");
        }
    }
}

/// RFC 7606 §3 (b), (i), and the data of RFC 4271 §6.3.
#[test]
fn session_resets_say_why() {
    let reset = |body: &[u8]| Update::decode(body, &IBGP).unwrap_err();
    for body in ["0001", "0000", "0000 0001", "0005 0000 0000", "ffff", "", "00"] {
        assert_eq!(reset(&unhex(body)), Notification::new(3, 1), "{body}");
    }
    for withdrawn in ["21 0a04000100", "20 0a04", "20"] {
        let body = update_body(&unhex(withdrawn), &[], &[]);
        assert_eq!(reset(&body), Notification::new(3, 10), "{withdrawn}");
    }
    for (attribute, subcode) in
        [("c0 0e 05 0002010000", 4), ("40 63 01 05", 2), ("80 0f 02 0002", 9)]
    {
        let octets = unhex(attribute);
        let got = reset(&update_body(&[], &octets, &[]));
        assert_eq!(got, Notification::with_data(3, subcode, &octets), "{attribute}");
    }
}

/// RFC 7606 §3 (g): the first one counts. RFC 8092 §5: repeated values are removed.
#[test]
fn first_of_duplicates() {
    let attributes = unhex(
        &[O, P, H, L, "40 01 01 02", "c0 20 24", &"0000fde90000006400000007".repeat(3)].concat(),
    );
    let body = update_body(&[], &attributes, &unhex(N));
    let walk = Update::decode(&body, &IBGP).unwrap().walk;
    let got = walk.attributes.unwrap();
    assert_eq!(got.origin, killick::wire::bgp::Origin::Igp);
    assert_eq!(got.large_communities, [LargeCommunity { global: 65001, local1: 100, local2: 7 }]);
}

#[test]
fn errors_are_kept_up_to_a_limit() {
    let attributes = unhex(&[O, P, H, L, &"40 01 01 02".repeat(900)].concat());
    let body = update_body(&[], &attributes, &unhex(N));
    let walk = Update::decode(&body, &IBGP).unwrap().walk;
    assert_eq!((walk.errors.len(), walk.action), (16, Action::AttributeDiscard));
}

/// Classic fields of a session without IPv4: read, recorded and ignored, like those of any family
/// that is not in use.
#[test]
fn classic_routes_without_ipv4() {
    let n = Negotiated { ipv4: false, ..IBGP };
    let attributes = unhex(&[O, P, H, L].concat());
    let body = update_body(&unhex(N), &attributes, &unhex(N));
    let update = Update::decode(&body, &n).unwrap();
    assert!(update.withdrawn.is_empty() && update.nlri.is_empty());
    assert_eq!(update.walk.errors.len(), 1);
    assert_eq!(update.walk.errors[0].fault, NotNegotiated);
    assert_eq!(Update::decode(&update_body(&[], &[], &[]), &n).unwrap().end_of_rib, None);
}

/// RFC 6793 §4.2.3, through the walk.
#[test]
fn old_speakers() {
    let of = |rows: &[&str]| {
        let body = update_body(&[], &unhex(&rows.concat()), &unhex(N));
        Update::decode(&body, &OLD).unwrap().walk.attributes.unwrap()
    };
    let path = "40 02 06 02 02 fdea 5ba0"; // 65002 23456
    let as4_path = "c0 11 06 02 01 fa56ea01"; // 4200000001
    let both = AsPath(vec![AsSegment::Sequence(vec![65002, 4_200_000_001])]);
    assert_eq!(of(&[O, path, H, as4_path]).as_path, both);
    let trans = "c0 07 06 5ba0 0a000001";
    let as4_aggregator = "c0 12 08 fa56ea01 0a000009";
    let got = of(&[O, path, H, trans, as4_path, as4_aggregator]);
    assert_eq!(got.aggregator, Some((4_200_000_001, Ipv4Addr::new(10, 0, 0, 9))));
    assert_eq!(got.as_path, both);
    // Aggregated by a speaker that did not know of the AS4 attributes: both are stale.
    let got = of(&[O, path, H, "c0 07 06 fde9 0a000001", as4_path, as4_aggregator]);
    assert_eq!(got.aggregator, Some((65001, Ipv4Addr::new(10, 0, 0, 1))));
    assert_eq!(got.as_path, AsPath(vec![AsSegment::Sequence(vec![65002, 23456])]));
}

// ---- Vectors ---------------------------------------------------------------------------------

struct Capture {
    name: String,
    messages: Vec<Vec<u8>>,
}

fn captures() -> BTreeMap<String, Capture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/bgp");
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let messages = text.lines().filter(|l| !l.starts_with('#')).map(unhex).collect();
        all.insert(name.clone(), Capture { name, messages });
    }
    assert!(all.len() >= 8, "the vectors are missing");
    all
}

fn open_of(capture: &Capture) -> Open {
    let frame = next_frame(&capture.messages[0], MAX_LEN).unwrap().unwrap();
    assert_eq!(frame.kind, MessageType::Open, "{}", capture.name);
    Open::decode(frame.body).unwrap()
}

/// Each capture with what its receiver had negotiated: `a-to-b-kind` answers `b-to-a-kind`.
fn sessions() -> Vec<(Capture, Negotiated)> {
    let all = captures();
    let opens: BTreeMap<String, Open> =
        all.values().map(|c| (c.name.clone(), open_of(c))).collect();
    let negotiated = |name: &str| {
        let (from, rest) = name.split_once("-to-").unwrap();
        let (to, kind) = rest.split_once('-').unwrap();
        Negotiated::between(&opens[&format!("{to}-to-{from}-{kind}")], &opens[name])
    };
    let sessions: Vec<_> = all.keys().map(|n| negotiated(n)).collect();
    all.into_values().zip(sessions).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Read,
    /// UPDATEs are packed again and read back, which takes longer.
    Resend,
}

/// Any message, decoded as its type says; encoded again where that is possible.
fn decode(message: &[u8], n: &Negotiated, then: Then) -> Result<(), Notification> {
    let Some(frame) = next_frame(message, n.max_len)? else { return Ok(()) };
    assert!(frame.len <= message.len() && frame.body.len() + HEADER_LEN == frame.len);
    match frame.kind {
        MessageType::Open => {
            let open = Open::decode(frame.body)?;
            let mut out = Vec::new();
            open.encode(&mut out);
            assert_eq!(Open::decode(&out[HEADER_LEN..]).as_ref(), Ok(&open));
            Negotiated::between(&open, &open);
        }
        MessageType::Update => check_update(frame.body, n, then)?,
        MessageType::Notification => {
            let notification = Notification::decode(frame.body)?;
            let mut out = Vec::new();
            notification.encode(&mut out);
            assert_eq!(out[HEADER_LEN..], *frame.body);
            assert!(!notification.to_string().chars().any(char::is_control));
        }
        MessageType::Keepalive => {}
        MessageType::RouteRefresh => {
            RouteRefresh::decode(frame.body)?;
        }
    }
    Ok(())
}

/// What must hold of every UPDATE, whatever was sent.
fn check_update(body: &[u8], n: &Negotiated, then: Then) -> Result<(), Notification> {
    let update = Update::decode(body, n).inspect_err(|e| assert_eq!(e.code, 3))?;
    let walk = &update.walk;
    assert!(!matches!(walk.action, Action::SessionReset(_)));
    assert!(walk.errors.len() <= 17);
    assert!(!walk.errors.is_empty() || walk.action == Action::None);
    let reach = walk.mp_reach.map(|m| m.nlri);
    let unreach = walk.mp_unreach.map(|m| m.nlri);
    for field in [Some(update.withdrawn), Some(update.nlri), reach, unreach].into_iter().flatten() {
        assert!(n.has(field.family()) || field.is_empty());
        assert_eq!(field.iter().count(), field.count());
        let v4 = field.iter_v4().map(|(addr, len)| Prefix::V4 { addr, len });
        let v6 = field.iter_v6().map(|(addr, len)| Prefix::V6 { addr, len });
        assert!(v4.chain(v6).eq(field.iter()), "the fast way masks as well");
        for prefix in field.iter() {
            assert_eq!(Prefix::new(prefix.addr(), prefix.len()), Some(prefix), "host bits");
        }
    }
    if let Some(attributes) = &walk.attributes {
        // What we accept we can send, and read the same.
        let has_mp = reach.is_some_and(|r| !r.is_empty());
        let (family, next_hop, nlri) = if update.nlri.is_empty() {
            assert!(has_mp);
            let mp = walk.mp_reach.unwrap();
            (mp.family, mp.next_hop, mp.nlri)
        } else {
            (Family::Ipv4, attributes.next_hop, update.nlri)
        };
        assert_eq!(attributes.next_hop, next_hop);
        let prefixes: Vec<Prefix> = nlri.iter().collect();
        if then == Then::Resend {
            round_trip(attributes, family, &prefixes, n);
        }
    }
    Ok(())
}

/// Announces and withdraws `prefixes`, and reads back the same.
fn round_trip(attributes: &Attributes, family: Family, prefixes: &[Prefix], n: &Negotiated) {
    let encoded = EncodedAttributes::new(attributes, n);
    let mut out = Vec::new();
    let Ok(mut packer) = Packer::announce(&mut out, &encoded, family, n.max_len) else {
        assert!(encoded.octets().len() > n.max_len - 100);
        return;
    };
    prefixes.iter().for_each(|p| packer.push(*p));
    let messages = packer.finish();
    let mut packer = Packer::withdraw(&mut out, family, n.max_len);
    prefixes.iter().for_each(|p| packer.push(*p));
    let withdrawals = packer.finish();

    // The leftmost AS of AS_PATH is checked before AS4_PATH replaces it, so a path that was read may
    // start with anything. It is read back by an internal peer, who does not look at it.
    let n = &Negotiated { ibgp: true, ..*n };
    let mut expected = attributes.clone();
    for unknown in &mut expected.unknown {
        unknown.flags |= 0x20; // Partial
    }
    let (mut announced, mut withdrawn, mut rest, mut count) = (vec![], vec![], &out[..], 0);
    while !rest.is_empty() {
        let frame = next_frame(rest, n.max_len).unwrap().unwrap();
        rest = &rest[frame.len..];
        count += 1;
        let update = Update::decode(frame.body, n).unwrap();
        assert_eq!(update.walk.action, Action::None, "{:?}", update.walk.errors);
        let mp = update.walk.mp_reach;
        announced.extend(update.nlri.iter().chain(mp.iter().flat_map(|m| m.nlri.iter())));
        let mp = update.walk.mp_unreach;
        withdrawn.extend(update.withdrawn.iter().chain(mp.iter().flat_map(|m| m.nlri.iter())));
        if let Some(got) = update.walk.attributes {
            assert_eq!(got, expected);
        }
    }
    assert_eq!(count, messages + withdrawals);
    assert_eq!(announced, prefixes);
    assert_eq!(withdrawn, prefixes);
}

/// What FRR, BIRD and GoBGP send is well-formed, and is read as what they were told to send.
#[test]
fn captures_are_read_without_an_error() {
    let mut seen = BTreeMap::<MessageType, usize>::new();
    let mut ends = 0;
    let mut texts = Vec::new();
    let mut routes = BTreeMap::<String, Attributes>::new();
    for (capture, n) in sessions() {
        assert!(capture.name.contains("two-octet") != n.four_octet_as, "{}", capture.name);
        for message in &capture.messages {
            decode(message, &n, Then::Resend).unwrap_or_else(|e| panic!("{}: {e}", capture.name));
            let frame = next_frame(message, n.max_len).unwrap().unwrap();
            assert_eq!(frame.len, message.len());
            *seen.entry(frame.kind).or_default() += 1;
            match frame.kind {
                MessageType::Update => {
                    let update = Update::decode(frame.body, &n).unwrap();
                    assert_eq!(update.walk.errors, [], "{}", capture.name);
                    ends += usize::from(update.end_of_rib.is_some());
                    if let Some(attributes) = update.walk.attributes {
                        let mp = update.walk.mp_reach;
                        for p in update.nlri.iter().chain(mp.iter().flat_map(|m| m.nlri.iter())) {
                            routes.insert(format!("{} {p}", capture.name), attributes.clone());
                        }
                    }
                }
                MessageType::Notification => {
                    texts.extend(Notification::decode(frame.body).unwrap().shutdown_text());
                }
                MessageType::RouteRefresh => {
                    let refresh = RouteRefresh::decode(frame.body).unwrap();
                    assert!(!matches!(refresh.kind, RefreshKind::Unknown(_)));
                }
                MessageType::Open | MessageType::Keepalive => {}
            }
        }
    }
    assert_eq!(seen.len(), 5, "every message type is in the vectors: {seen:?}");
    assert!(ends >= 8, "end-of-RIB: {ends}");
    assert!(texts.contains(&"maintenance until 03:00".to_owned()), "{texts:?}");
    assert!(texts.contains(&"two octets are enough".to_owned()), "{texts:?}");

    // As configured at FRR …
    let frr = &routes["frr-to-bird-ibgp 192.0.2.0/24"];
    assert_eq!(frr.local_pref, Some(1_000_007));
    assert_eq!(frr.med, Some(50));
    assert_eq!(frr.as_path, AsPath(vec![AsSegment::Sequence(vec![65010, 4_200_000_000])]));
    assert_eq!(frr.communities, [65001 << 16 | 1, killick::wire::bgp::attributes::NO_EXPORT]);
    let large = |local1, local2| LargeCommunity { global: 65001, local1, local2 };
    assert_eq!(frr.large_communities, [large(100, 7), large(101, 1)]);
    // … reflected by FRR for BIRD …
    let reflected = &routes["frr-to-gobgp-ibgp 10.1.0.7/32"];
    assert_eq!(reflected.originator_id, Some(Ipv4Addr::new(10, 9, 0, 2)));
    assert_eq!(reflected.cluster_list, [Ipv4Addr::new(10, 9, 0, 1)]);
    assert_eq!(reflected.local_pref, Some(1_000_009));
    // … and from an old speaker: AS_TRANS is put right by AS4_PATH.
    let old = &routes["bird-to-gobgp-two-octet-as 10.2.0.0/16"];
    let path = vec![4_200_000_001, 4_200_000_002, 65030];
    assert_eq!(old.as_path, AsPath(vec![AsSegment::Sequence(path)]));
    let v6 = &routes["bird-to-frr-ibgp 2001:db8:1::7/128"];
    assert_eq!(v6.next_hop.addr(), "2001:db8:9::2".parse::<IpAddr>().unwrap());
}

/// Every truncation: of the stream, and of the message with its length put right.
#[test]
fn every_truncation_of_the_captures() {
    for (capture, n) in sessions() {
        for message in &capture.messages {
            for len in 0..message.len() {
                assert_eq!(next_frame(&message[..len], n.max_len), Ok(None), "not complete");
                let mut cut = message[..len].to_vec();
                if len >= HEADER_LEN {
                    cut[16..18].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                    let _ = decode(&cut, &n, Then::Resend);
                }
            }
        }
    }
}

/// Every octet of every message, with every value.
#[test]
fn every_single_octet_change_of_the_captures() {
    for (capture, n) in sessions() {
        for message in &capture.messages {
            let mut changed = message.clone();
            for at in 0..message.len() {
                for value in 0..=u8::MAX {
                    changed[at] = value;
                    let then = if value.is_power_of_two() { Then::Resend } else { Then::Read };
                    let _ = decode(&changed, &n, then);
                }
                changed[at] = message[at];
            }
        }
    }
}

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// A few random damages each; what both accept, zettabgp reads the same.
#[test]
fn mutated_captures() {
    const ROUNDS: usize = 120_000;
    let sessions = sessions();
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut compared) = (0, 0);
    for round in 0..ROUNDS {
        let (capture, n) = &sessions[random.below(sessions.len())];
        let mut n = *n;
        if random.below(4) == 0 {
            n = Negotiated {
                ibgp: random.below(2) == 0,
                four_octet_as: random.below(2) == 0,
                ipv6: random.below(2) == 0,
                extended_next_hop_v4: random.below(2) == 0,
                max_len: [MAX_LEN, MAX_LEN_EXTENDED][random.below(2)],
                ..n
            };
        }
        let mut message = capture.messages[random.below(capture.messages.len())].clone();
        for _ in 0..=random.below(4) {
            let at = 18 + random.below(message.len() - 18);
            match random.below(6) {
                0 => message[at] ^= 1 << random.below(8),
                1 => message[at] = u8::try_from(random.below(256)).unwrap(),
                2 => message[at] = [0, 1, 3, 4, 32, 33, 128, 129, 255][random.below(9)],
                3 => message.insert(at, u8::try_from(random.below(256)).unwrap()),
                4 if message.len() > HEADER_LEN + 1 => drop(message.remove(at)),
                _ => {
                    let end = (at + random.below(40)).min(message.len());
                    let copy = message[at..end].to_vec();
                    message.splice(at..at, copy);
                }
            }
        }
        let len = u16::try_from(message.len()).unwrap().to_be_bytes();
        message[16..18].copy_from_slice(&len);
        let result = std::panic::catch_unwind(|| decode(&message, &n, Then::Resend));
        let Ok(result) = result else { panic!("round {round}, {n:?}: {message:02x?}") };
        accepted += usize::from(result.is_ok());
        compared += usize::from(result.is_ok() && oracle::agrees(&message, &n));
    }
    // The loop is worth something only if both ways are taken often.
    assert!((ROUNDS / 20..ROUNDS * 19 / 20).contains(&accepted), "{accepted} accepted");
    assert!(compared > ROUNDS / 100, "{compared} compared");
}

#[test]
fn zettabgp_reads_the_captures_the_same() {
    let mut compared = 0;
    for (capture, n) in sessions() {
        for message in &capture.messages {
            compared += usize::from(oracle::agrees(message, &n));
        }
    }
    assert!(compared > 60, "{compared} compared");
}

/// zettabgp as a second opinion. It must see only what we have accepted without any error: it does
/// not survive malformed input.
mod oracle {
    use std::collections::BTreeSet;

    use super::*;
    use zettabgp::prelude::*;

    /// Asserts agreement; false when the message is not one for both.
    pub fn agrees(message: &[u8], n: &Negotiated) -> bool {
        let Ok(Some(frame)) = next_frame(message, n.max_len) else { return false };
        if frame.kind != MessageType::Update || !n.ipv4 || !n.ipv6 {
            return false;
        }
        let Ok(ours) = Update::decode(frame.body, n) else { return false };
        if !ours.walk.errors.is_empty() || !only_known(frame.body) {
            return false;
        }
        let id = Ipv4Addr::new(10, 0, 0, 1);
        let mut session = BgpSessionParams::new(65001, 90, BgpTransportMode::IPv4, id, Vec::new());
        session.fuzzy_pathid = false;
        session.has_as32bit = n.four_octet_as;
        let mut theirs = BgpUpdateMessage::new();
        if theirs.decode_from(&session, frame.body).is_err() {
            return false;
        }
        compare(&ours, &theirs);
        true
    }

    /// Attribute types that both know in the same way.
    fn only_known(body: &[u8]) -> bool {
        let mut rest = killick::wire::bgp::Sections::split(body).unwrap().attributes;
        while let [flags, code, ..] = *rest {
            if !matches!(code, 1..=10 | 14..=16 | 32) {
                return false;
            }
            let (head, len) = if flags & 0x10 == 0 {
                (3, usize::from(rest[2]))
            } else {
                (4, usize::from(rest[2]) << 8 | usize::from(rest[3]))
            };
            let (value, tail) = rest[head..].split_at(len);
            // RFC 4760 §3: "reserved", to be ignored. zettabgp still reads it as a number of SNPAs.
            if code == 14 && value[4 + usize::from(value[3])] != 0 {
                return false;
            }
            rest = tail;
        }
        true
    }

    fn prefixes(addrs: &BgpAddrs) -> Vec<Prefix> {
        match addrs {
            BgpAddrs::None => vec![],
            BgpAddrs::IPV4U(v) => {
                v.iter().map(|p| Prefix::new(p.addr.into(), p.prefixlen).unwrap()).collect()
            }
            BgpAddrs::IPV6U(v) => {
                v.iter().map(|p| Prefix::new(p.addr.into(), p.prefixlen).unwrap()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn compare(ours: &Update<'_>, theirs: &BgpUpdateMessage) {
        assert_eq!(ours.withdrawn.iter().collect::<Vec<_>>(), prefixes(&theirs.withdraws));
        assert_eq!(ours.nlri.iter().collect::<Vec<_>>(), prefixes(&theirs.updates));
        let mut mp = (vec![], vec![]);
        for item in &theirs.attrs {
            match item {
                BgpAttrItem::MPUpdates(m) => mp.0 = prefixes(&m.addrs),
                BgpAttrItem::MPWithdraws(m) => mp.1 = prefixes(&m.addrs),
                _ => {}
            }
        }
        let reach = ours.walk.mp_reach.iter().flat_map(|m| m.nlri.iter());
        assert_eq!(reach.collect::<Vec<_>>(), mp.0);
        let unreach = ours.walk.mp_unreach.iter().flat_map(|m| m.nlri.iter());
        assert_eq!(unreach.collect::<Vec<_>>(), mp.1);
        let Some(a) = &ours.walk.attributes else { return };
        for item in &theirs.attrs {
            match item {
                BgpAttrItem::Origin(o) => {
                    let origin = match o.value {
                        BgpAttrOrigin::Igp => 0,
                        BgpAttrOrigin::Egp => 1,
                        BgpAttrOrigin::Incomplete => 2,
                    };
                    assert_eq!(a.origin as u8, origin);
                }
                BgpAttrItem::ASPath(path) => compare_path(&a.as_path, path),
                BgpAttrItem::MED(m) => assert_eq!(a.med, Some(m.value)),
                BgpAttrItem::LocalPref(l) => assert_eq!(a.local_pref, Some(l.value)),
                BgpAttrItem::AtomicAggregate(_) => assert!(a.atomic_aggregate),
                BgpAttrItem::CommunityList(c) => {
                    let set: BTreeSet<u32> = a.communities.iter().copied().collect();
                    assert!(set.into_iter().eq(c.value.iter().map(|c| c.value)));
                }
                BgpAttrItem::LargeCommunityList(c) => {
                    let ours: BTreeSet<_> = a
                        .large_communities
                        .iter()
                        .map(|c| (c.global, c.local1, c.local2))
                        .collect();
                    let theirs: BTreeSet<_> =
                        c.value.iter().map(|c| (c.ga, c.ldp1, c.ldp2)).collect();
                    assert_eq!(ours, theirs);
                }
                BgpAttrItem::NextHop(h) if !ours.nlri.is_empty() => {
                    assert_eq!(a.next_hop.addr(), h.value);
                }
                BgpAttrItem::OriginatorID(o) => {
                    assert_eq!(a.originator_id.map(IpAddr::V4), Some(o.value));
                }
                BgpAttrItem::ClusterList(c) => {
                    assert!(
                        a.cluster_list.iter().map(|id| IpAddr::V4(*id)).eq(c.value.iter().copied())
                    );
                }
                _ => {}
            }
        }
    }

    /// Sequences AS by AS, sets as sets.
    fn compare_path(ours: &AsPath, theirs: &BgpASpath) {
        let mut flat = Vec::new();
        for segment in &ours.0 {
            match segment {
                AsSegment::Sequence(v) => flat.extend(v.iter().map(|a| vec![*a])),
                AsSegment::Set(v) => {
                    let set: BTreeSet<u32> = v.iter().copied().collect();
                    flat.push(set.into_iter().collect());
                }
                // Read by zettabgp as one of the others, or not at all.
                AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => return,
            }
        }
        let mut other = Vec::new();
        for item in &theirs.value {
            match item {
                BgpASitem::Seq(s) => other.extend(s.value.iter().map(|a| vec![a.value])),
                BgpASitem::Set(s) => other.push(s.value.iter().map(|a| a.value).collect()),
            }
        }
        assert_eq!(flat, other);
    }
}

// ---- Encoding --------------------------------------------------------------------------------

fn rich(next_hop: NextHop) -> Attributes {
    use killick::wire::bgp::ExtendedCommunity;
    let long: Vec<u32> = (1..=300).map(|i| 4_200_000_000 + i).collect();
    let mut path = vec![65001];
    path.extend(&long[..254]);
    Attributes {
        as_path: AsPath(vec![AsSegment::Sequence(path), AsSegment::Set(vec![65010, 65011])]),
        med: Some(7),
        local_pref: Some(1_000_003),
        atomic_aggregate: true,
        aggregator: Some((4_200_000_009, Ipv4Addr::new(10, 0, 0, 9))),
        communities: (0..80).collect(),
        originator_id: Some(Ipv4Addr::new(10, 0, 0, 3)),
        cluster_list: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
        extended_communities: vec![ExtendedCommunity([0, 2, 0, 1, 0, 0, 0, 1])],
        large_communities: vec![LargeCommunity { global: 65001, local1: 100, local2: 1 }],
        unknown: vec![
            RawAttribute { flags: 0xc0, code: 11, value: vec![1; 300] },
            RawAttribute { flags: 0xe0, code: 19, value: vec![] },
            RawAttribute { flags: 0xe0, code: 99, value: vec![2] },
        ],
        ..Attributes::local(next_hop)
    }
}

/// Full messages of every size, both families, both AS widths, RFC 8654 and RFC 8950.
#[test]
fn packed_updates_are_full_and_read_back() {
    let v6 = NextHop::V6 {
        global: "2001:db8::1".parse().unwrap(),
        link_local: Some("fe80::1".parse().unwrap()),
    };
    let v4 = NextHop::V4(Ipv4Addr::new(10, 0, 0, 1));
    let prefixes = |family| -> Vec<Prefix> {
        (0..30_000u32)
            .map(|i| match family {
                Family::Ipv4 => Prefix::v4(0x0a00_0000 + i * 3, 20 + u8::try_from(i % 13).unwrap()),
                Family::Ipv6 => Prefix::v6(
                    0x2001 << 112 | u128::from(i) << 40,
                    128 - u8::try_from(i % 50).unwrap(),
                ),
            })
            .map(Option::unwrap)
            .collect()
    };
    let (p4, p6) = (prefixes(Family::Ipv4), prefixes(Family::Ipv6));
    for max_len in [MAX_LEN, MAX_LEN_EXTENDED] {
        for four_octet_as in [true, false] {
            let n = Negotiated { max_len, four_octet_as, ..V4_OVER_V6 };
            for attributes in [rich(v4), Attributes::local(v4)] {
                round_trip(&attributes, Family::Ipv4, &p4, &n);
            }
            for attributes in [rich(v6), Attributes::local(v6)] {
                round_trip(&attributes, Family::Ipv6, &p6, &n);
                round_trip(&attributes, Family::Ipv4, &p4, &n);
            }
        }
        // As few messages as possible: 5 octets per /32 after 19 + 4 + attributes.
        let attributes = EncodedAttributes::new(&Attributes::local(v4), &IBGP);
        let per_message = (max_len - 23 - attributes.octets().len()) / 5;
        let mut out = Vec::new();
        let mut packer = Packer::announce(&mut out, &attributes, Family::Ipv4, max_len).unwrap();
        let count = per_message * 2 + 1;
        for i in 0..u32::try_from(count).unwrap() {
            packer.push(Prefix::v4(i, 32).unwrap());
        }
        assert_eq!(packer.finish(), 3);
        assert_eq!(out.len(), 3 * (23 + attributes.octets().len()) + count * 5);
    }
}

/// RFC 7606 §5.1: MP attributes first, the others ascending, and no routes in two fields.
#[test]
fn order_of_attributes() {
    let next_hop = NextHop::from("2001:db8::1".parse::<IpAddr>().unwrap());
    let encoded =
        EncodedAttributes::new(&rich(next_hop), &Negotiated { four_octet_as: false, ..IBGP });
    let mut out = Vec::new();
    let mut packer = Packer::announce(&mut out, &encoded, Family::Ipv6, MAX_LEN).unwrap();
    packer.push("2001:db8::/64".parse().unwrap());
    assert_eq!(packer.finish(), 1);
    let sections = killick::wire::bgp::Sections::split(&out[HEADER_LEN..]).unwrap();
    assert!(sections.withdrawn.is_empty() && sections.nlri.is_empty());
    let (mut codes, mut rest) = (vec![], sections.attributes);
    while let [flags, code, ..] = *rest {
        codes.push(code);
        let (head, len) = if flags & 0x10 == 0 {
            (3, usize::from(rest[2]))
        } else {
            (4, usize::from(rest[2]) << 8 | usize::from(rest[3]))
        };
        assert!(head == 3 || len > 255 || code == 14);
        rest = &rest[head + len..];
    }
    assert_eq!(codes, [14, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 32, 99]);
}

/// To an external peer nothing goes that is internal (RFC 4271 §5.1.5, RFC 4456 §8).
#[test]
fn internal_attributes_stay_internal() {
    let attributes = rich(NextHop::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let encoded = EncodedAttributes::new(&attributes, &EBGP);
    let receiver = Negotiated { peer_as: 65001, local_as: 65002, ..EBGP };
    let body = update_body(&[], encoded.octets(), &unhex(N));
    let walk = Update::decode(&body, &receiver).unwrap().walk;
    assert_eq!(walk.errors, []);
    let got = walk.attributes.unwrap();
    assert_eq!((got.local_pref, got.originator_id, got.cluster_list.len()), (None, None, 0));
}

/// RFC 8654 §4: what does not fit is refused, and nothing is written.
#[test]
fn too_long_attributes() {
    let mut attributes = Attributes::local(NextHop::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let room = MAX_LEN - 23 - 5 - EncodedAttributes::new(&attributes, &IBGP).octets().len() - 4;
    for (len, fits) in [(room, true), (room + 1, false), (70_000, false)] {
        attributes.unknown = vec![RawAttribute { flags: 0xc0, code: 99, value: vec![0; len] }];
        let encoded = EncodedAttributes::new(&attributes, &IBGP);
        let mut out = Vec::new();
        let packed = Packer::announce(&mut out, &encoded, Family::Ipv4, MAX_LEN)
            .map(|mut packer| packer.push(Prefix::v4(1, 32).unwrap())); // closed when dropped
        assert_eq!(packed.is_ok(), fits, "{len}");
        assert_eq!(out.len(), if fits { MAX_LEN } else { 0 });
    }
    // The AS_PATH of a long message of an old speaker has no place in one for a new speaker.
    let ases = vec![65002; 32_000];
    attributes.unknown.clear();
    attributes.as_path = AsPath(vec![AsSegment::Sequence(ases)]);
    let encoded = EncodedAttributes::new(&attributes, &IBGP);
    let mut out = Vec::new();
    assert!(Packer::announce(&mut out, &encoded, Family::Ipv4, MAX_LEN_EXTENDED).is_err());
}

/// RFC 4724 §2.
#[test]
fn end_of_rib() {
    for family in Family::ALL {
        let mut out = Vec::new();
        encode_end_of_rib(family, &mut out);
        let update = Update::decode(&out[HEADER_LEN..], &IBGP).unwrap();
        assert_eq!(update.end_of_rib, Some(family));
        assert_eq!(update.walk.errors, []);
    }
    let of = |attributes: &str, n: &Negotiated| {
        let body = update_body(&[], &unhex(attributes), &[]);
        Update::decode(&body, n).unwrap().end_of_rib
    };
    assert_eq!(of("90 0f 0003 0002 01", &IBGP), Some(Family::Ipv6));
    assert_eq!(of("80 0f 03 0001 01", &IBGP), Some(Family::Ipv4));
    assert_eq!(of("80 0f 03 0002 01", &V4_ONLY), None);
    assert_eq!(of("80 0f 04 0002 01 00", &IBGP), None);
    assert_eq!(of("40 01 01 00", &IBGP), None);
    assert_eq!(of("80 0f 03 0002 01 40 01 01 00", &IBGP), None);
}
