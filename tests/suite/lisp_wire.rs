//! LISP octets that a second coder made (`tests/vectors/lisp/coder.py`), what becomes of them when
//! they are damaged, and what a dissector that knows nothing of us reads in what we write.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use killick::auth::{
    Algorithm, AuthError, DigestLen, KeyChain, LispKey, Otk, OtkHmac, OtkKdf, OtkWrap, Secret,
};
use killick::types::Prefix;
use killick::types::lisp::{InstanceId, MapVersion, NegativeAction, SiteId, XtrId};
use killick::wire::encap::{FirstWord, Head, LispHeader, Outer, decapsulate, encapsulate};
use killick::wire::lisp::{
    Authentication, CONTROL_PORT, DATA_PORT, Ecm, EcmSecurity, Eid, EidAuthentication, EidRecord,
    MapNotify, MapRegister, MapReply, MapRequest, Message, ReplySecurity, RequestRecord,
    RlocAddress, RlocRecord, SignedEids, WRAPPED_OTK_LEN,
};
use killick::wire::{Reader, WireError};

// ---- The vectors -----------------------------------------------------------------------------

fn vectors_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/lisp")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.as_chunks::<2>().0.iter().map(|[a, b]| u8::try_from(a << 4 | b).unwrap()).collect()
}

fn vectors() -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(vectors_dir().join("messages.hex")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, hex)| (name.to_owned(), unhex(hex))).collect()
}

/// The messages of the control plane.
fn messages() -> Vec<(String, Vec<u8>)> {
    let control = |name: &String| !name.starts_with("data-") && !name.starts_with("outer-");
    vectors().into_iter().filter(|(name, _)| control(name)).collect()
}

fn is_signed(message: &[u8]) -> bool {
    matches!(message[0] >> 4, 3..=5)
}

/// Key 1 to 3 of the coder, one per algorithm.
fn keys() -> KeyChain {
    let key =
        |secret: &str, algorithm| LispKey::new(Secret::new(secret.as_bytes().to_vec()), algorithm);
    KeyChain::new(3, key("a secret from which keys of messages are derived", Algorithm::Hkdf))
        .accept(1, key("old secret of site 7", Algorithm::Sha1_96))
        .accept(2, key("secret of site 7", Algorithm::Sha256_128))
}

// ---- What they mean, in our words ------------------------------------------------------------

const NONCE: u64 = 0x0123_4567_89ab_cdef;
const ID: (XtrId, SiteId) =
    (XtrId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff), SiteId(0x0102_0304_0506_0708));

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn eid_in(iid: u32, text: &str) -> Eid {
    Eid::Prefix { iid: InstanceId(iid), prefix: prefix(text) }
}

fn eid(text: &str) -> Eid {
    eid_in(0, text)
}

fn pair_in(iid: u32, source: &str, destination: &str) -> Eid {
    let (source, destination) = (prefix(source), prefix(destination));
    Eid::SourceDestination { iid: InstanceId(iid), source, destination }
}

fn ip(text: &str) -> RlocAddress {
    RlocAddress::Ip(addr(text))
}

/// 60°10' north, 24°56' east (RFC 8060 §4.3).
fn geo() -> Vec<u8> {
    unhex("400300000500000e803c0a00801838007fffffff0000")
}

fn name() -> Vec<u8> {
    b"\0\x11anchor-7\0".to_vec()
}

fn mac() -> Vec<u8> {
    unhex("00060200c0ffee01")
}

fn rloc(address: RlocAddress) -> RlocRecord {
    RlocRecord {
        priority: 1,
        weight: 100,
        multicast_priority: 255,
        multicast_weight: 0,
        local: false,
        probed: false,
        reachable: true,
        address,
    }
}

fn record(eid: Eid, rlocs: Vec<RlocRecord>) -> EidRecord {
    EidRecord {
        ttl_min: 1440,
        action: NegativeAction::NoAction,
        authoritative: false,
        version: MapVersion(0),
        eid,
        rlocs,
    }
}

fn host4() -> EidRecord {
    EidRecord {
        authoritative: true,
        version: MapVersion(0xabc),
        ..record(
            eid("10.1.0.7"),
            vec![rloc(ip("192.0.2.1")), RlocRecord { weight: 50, ..rloc(ip("2001:db8::1")) }],
        )
    }
}

fn in5() -> EidRecord {
    let local = RlocRecord { local: true, reachable: false, ..rloc(ip("192.0.2.1")) };
    EidRecord {
        ttl_min: 3,
        version: MapVersion(0xfff),
        ..record(eid_in(5, "10.1.2.0/24"), vec![local])
    }
}

fn request(nonce: u64, source_eid: Eid, itr_rlocs: Vec<RlocAddress>) -> MapRequest {
    MapRequest {
        authoritative: false,
        probe: false,
        smr: false,
        pitr: false,
        smr_invoked: false,
        local_xtr: false,
        dont_reply: false,
        nonce,
        source_eid,
        itr_rlocs,
        records: Vec::new(),
        map_reply: None,
        id: None,
    }
}

fn ask(eid: Eid) -> RequestRecord {
    RequestRecord { notify: false, eid }
}

fn subscribe(eid: Eid) -> RequestRecord {
    RequestRecord { notify: true, eid }
}

fn reply(nonce: u64, records: Vec<EidRecord>) -> MapReply {
    MapReply { probe: false, echo_nonce: false, nonce, records, security: None }
}

fn register(nonce: u64, records: Vec<EidRecord>) -> MapRegister {
    MapRegister {
        proxy_reply: false,
        security_capable: false,
        eid_notify: false,
        use_ttl: false,
        merge: false,
        want_notify: false,
        nonce,
        authentication: Authentication::default(),
        records,
        id: None,
    }
}

fn notify(nonce: u64, records: Vec<EidRecord>, id: Option<(XtrId, SiteId)>) -> MapNotify {
    MapNotify { nonce, authentication: Authentication::default(), records, id }
}

fn itr_otk() -> Otk {
    Otk::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
}

fn itr_secret() -> Secret {
    Secret::new(b"of an ITR and a resolver".to_vec())
}

fn etr_secret() -> Secret {
    Secret::new(b"of a server and an ETR".to_vec())
}

/// An EID-AD of a Map-Server.
fn vouched_for(kdf: OtkKdf, hmac: OtkHmac, cant_sign: bool, eids: Vec<Eid>) -> EidAuthentication {
    let signed = SignedEids { cant_sign, hmac_id: hmac.id(), hmac_len: hmac.len(), eids };
    EidAuthentication::signed(kdf.id(), signed, |octets| itr_otk().sign(hmac, octets))
}

/// With the HMAC that is asked for, the key ID and the wrapping.
fn secured(
    ecm: Ecm,
    (requested_hmac, key_id, wrapping): (u16, u8, u8),
    wrapped_otk: [u8; WRAPPED_OTK_LEN],
    eids: EidAuthentication,
) -> Message {
    let mut out = Vec::new();
    EcmSecurity { requested_hmac, key_id, wrapping, wrapped_otk, eids }.encode(&mut out);
    Message::Ecm(Ecm { security: Some(out), ..ecm })
}

/// A Map-Reply as an ETR signs it.
fn signed_reply(reply: MapReply, eids: EidAuthentication, hmac: OtkHmac, kdf: OtkKdf) -> Message {
    let mut security = Vec::new();
    ReplySecurity { eids, hmac_id: hmac.id(), hmac: vec![0; hmac.len()] }.encode(&mut security);
    let len = security.len();
    let mut reply = MapReply { security: Some(security), ..reply };
    let mut out = Vec::new();
    reply.encode(&mut out);
    itr_otk().derive(kdf).sign(hmac, &mut out);
    reply.security = Some(out.split_off(out.len() - len));
    Message::MapReply(reply)
}

/// What the coder meant by each name; of signed messages with an empty authentication.
fn meaning(name: &str) -> Message {
    let v4 = || vec![ip("192.0.2.1")];
    let v6 = || vec![ip("2001:db8::1")];
    let both = || vec![ip("192.0.2.1"), ip("2001:db8::1")];
    let plain = || MapRequest {
        records: vec![ask(eid("10.2.0.9"))],
        ..request(NONCE, eid("10.1.0.7"), v4())
    };
    let ecm = |source: (&str, u16), destination: (&str, u16)| {
        let mut message = Vec::new();
        plain().encode(&mut message);
        Ecm {
            ddt: false,
            security: None,
            source: (addr(source.0), source.1),
            destination: (addr(destination.0), destination.1),
            message,
        }
    };
    let other = |mask_len, octets| Eid::Other { mask_len, octets };
    match name {
        "map-request" => Message::MapRequest(MapRequest { itr_rlocs: both(), ..plain() }),
        "map-request-probe" => Message::MapRequest(MapRequest {
            authoritative: true,
            probe: true,
            pitr: true,
            records: vec![ask(eid("2001:db8:e::/48"))],
            map_reply: Some(host4()),
            ..request(1, Eid::None, v6())
        }),
        "map-request-smr" => Message::MapRequest(MapRequest {
            smr: true,
            dont_reply: true,
            local_xtr: true,
            records: vec![ask(eid("2001:db8:f::/64"))],
            ..request(2, eid("2001:db8:e:1::7"), v4())
        }),
        "map-request-smr-invoked" => Message::MapRequest(MapRequest {
            smr_invoked: true,
            records: vec![ask(eid_in(5, "10.2.0.9"))],
            ..request(3, eid_in(5, "10.1.0.7"), v4())
        }),
        "map-request-source-dest" => Message::MapRequest(MapRequest {
            records: vec![
                ask(pair_in(0, "10.1.0.0/16", "10.2.0.0/32")),
                ask(pair_in(77, "2001:db8:1::/48", "2001:db8:2::/64")),
            ],
            ..request(
                4,
                Eid::None,
                vec![RlocAddress::List(vec![
                    RlocAddress::Other(geo()),
                    ip("2001:db8::1"),
                    ip("192.0.2.1"),
                ])],
            )
        }),
        "map-request-passed-on" => Message::MapRequest(MapRequest {
            records: vec![ask(other(48, mac())), ask(other(0, geo()))],
            ..request(
                5,
                other(0, self::name()),
                vec![RlocAddress::Other(self::name()), RlocAddress::Other(mac())],
            )
        }),
        "subscribe" => Message::MapRequest(MapRequest {
            records: vec![
                subscribe(eid("10.1.0.7")),
                ask(eid("2001:db8:e:1::7")),
                subscribe(eid_in(9, "10.0.0.0/16")),
            ],
            id: Some(ID),
            ..request(6, Eid::None, both())
        }),
        "unsubscribe" => Message::MapRequest(MapRequest {
            records: vec![subscribe(eid("10.1.0.7"))],
            id: Some(ID),
            ..request(7, Eid::None, vec![RlocAddress::None])
        }),
        "map-reply" => Message::MapReply(reply(NONCE, vec![host4(), in5()])),
        "map-reply-probe" => Message::MapReply(MapReply {
            probe: true,
            echo_nonce: true,
            ..reply(
                8,
                vec![EidRecord {
                    ttl_min: u32::MAX,
                    authoritative: true,
                    ..record(
                        eid("2001:db8:f::/64"),
                        vec![RlocRecord {
                            priority: 255,
                            weight: 0,
                            local: true,
                            probed: true,
                            ..rloc(ip("2001:db8::1"))
                        }],
                    )
                }],
            )
        }),
        "map-reply-negative" => {
            let actions = [
                ("10.0.0.0/8", NegativeAction::NoAction),
                ("10.0.0.0/9", NegativeAction::NativelyForward),
                ("10.0.0.0/10", NegativeAction::SendMapRequest),
                ("10.0.0.0/11", NegativeAction::DropNoReason),
                ("10.0.0.0/12", NegativeAction::DropPolicyDenied),
                ("10.0.0.0/13", NegativeAction::DropAuthFailure),
            ];
            let negative = |(prefix, action)| EidRecord {
                ttl_min: 15,
                action,
                ..record(eid(prefix), Vec::new())
            };
            Message::MapReply(reply(9, actions.into_iter().map(negative).collect()))
        }
        "map-reply-lcaf" => {
            let list = RlocAddress::List(vec![
                ip("192.0.2.1"),
                RlocAddress::Other(self::name()),
                ip("2001:db8::1"),
            ]);
            let raw = [RlocAddress::Other(geo()), RlocAddress::None, RlocAddress::Other(mac())];
            Message::MapReply(reply(
                10,
                vec![
                    record(pair_in(0, "::/0", "2001:db8:2::/64"), vec![rloc(list)]),
                    record(other(0, self::name()), raw.into_iter().map(rloc).collect()),
                ],
            ))
        }
        "map-reply-empty" => Message::MapReply(reply(11, Vec::new())),
        "map-register-sha1-96" => {
            Message::MapRegister(MapRegister { want_notify: true, ..register(20, vec![host4()]) })
        }
        "map-register-sha1" => {
            Message::MapRegister(MapRegister { proxy_reply: true, ..register(21, vec![host4()]) })
        }
        "map-register-sha256-128" => Message::MapRegister(MapRegister {
            proxy_reply: true,
            want_notify: true,
            use_ttl: true,
            id: Some(ID),
            ..register(22, vec![host4(), in5()])
        }),
        "map-register-sha256" => Message::MapRegister(MapRegister {
            security_capable: true,
            eid_notify: true,
            merge: true,
            ..register(23, vec![in5()])
        }),
        "map-register-hkdf-128" => Message::MapRegister(MapRegister {
            proxy_reply: true,
            security_capable: true,
            want_notify: true,
            id: Some(ID),
            ..register(24, vec![host4()])
        }),
        "map-register-hkdf" => Message::MapRegister(MapRegister {
            want_notify: true,
            ..register(25, vec![EidRecord { ttl_min: 0, ..record(eid("10.1.0.7"), Vec::new()) }])
        }),
        "map-notify-sha1-96" => Message::MapNotify(notify(30, vec![host4()], None)),
        "map-notify-sha256-128" => Message::MapNotify(notify(31, vec![host4(), in5()], Some(ID))),
        "map-notify-hkdf-128" => {
            let refused = EidRecord {
                action: NegativeAction::DropAuthFailure,
                ..record(eid("10.1.0.7"), Vec::new())
            };
            Message::MapNotify(notify(32, vec![refused], Some(ID)))
        }
        "map-notify-hkdf" => Message::MapNotify(notify(33, vec![in5()], None)),
        "map-notify-ack-sha1" => Message::MapNotifyAck(notify(40, vec![host4()], None)),
        "map-notify-ack-sha256-128" => Message::MapNotifyAck(notify(41, vec![in5()], Some(ID))),
        "map-notify-ack-hkdf-128" => Message::MapNotifyAck(notify(42, Vec::new(), None)),
        "ecm-v4" => Message::Ecm(ecm(("192.0.2.1", 61000), ("10.2.0.9", CONTROL_PORT))),
        "ecm-v6" => Message::Ecm(Ecm {
            ddt: true,
            ..ecm(("2001:db8::1", 61001), ("2001:db8:e:1::7", CONTROL_PORT))
        }),
        "ecm-sec-itr" => {
            let eids = EidAuthentication::request(0);
            let otk = itr_otk().wrap(OtkWrap::Aes128, NONCE, &itr_secret());
            secured(ecm(("192.0.2.1", 61000), ("10.2.0.9", CONTROL_PORT)), (2, 7, 2), otk, eids)
        }
        "ecm-sec-resolver" => {
            let eids = EidAuthentication::request(1);
            let otk = itr_otk().wrap(OtkWrap::Null, NONCE, &Secret::new(Vec::new()));
            secured(ecm(("192.0.2.1", 61000), ("10.2.0.9", CONTROL_PORT)), (1, 0, 1), otk, eids)
        }
        "ecm-sec-server" => {
            let vouched = vec![eid("10.2.0.0/16"), eid_in(5, "2001:db8:e::/48")];
            let eids = vouched_for(OtkKdf::Sha256, OtkHmac::Sha256_128, true, vouched);
            let otk = itr_otk().derive(OtkKdf::Sha256);
            let otk = otk.wrap(OtkWrap::Aes128, NONCE, &etr_secret());
            let (source, destination) = (("2001:db8::1", 61000), ("2001:db8:e:1::7", CONTROL_PORT));
            secured(ecm(source, destination), (2, 8, 2), otk, eids)
        }
        "map-reply-sec" => signed_reply(
            reply(NONCE, vec![host4()]),
            vouched_for(OtkKdf::Sha256, OtkHmac::Sha256_128, false, vec![eid("10.1.0.0/16")]),
            OtkHmac::Sha256_128,
            OtkKdf::Sha256,
        ),
        "map-reply-sec-sha1" => signed_reply(
            reply(NONCE, Vec::new()),
            vouched_for(OtkKdf::Sha1_128, OtkHmac::Sha1_96, true, vec![eid("10.1.0.0/16")]),
            OtkHmac::Sha1_96,
            OtkKdf::Sha1_128,
        ),
        "lenient-map-request" => Message::MapRequest(MapRequest {
            records: vec![ask(eid("10.2.0.0/24"))],
            ..request(50, eid("10.1.0.7"), v4())
        }),
        "lenient-map-reply" => Message::MapReply(reply(
            51,
            vec![EidRecord {
                ttl_min: 5,
                // ACT 6 is not assigned.
                action: NegativeAction::DropNoReason,
                version: MapVersion(10),
                ..record(eid("10.128.0.0/9"), Vec::new())
            }],
        )),
        "lenient-map-notify" => {
            let pair = pair_in(5, "10.1.0.0/16", "10.2.3.0/24");
            Message::MapNotify(notify(52, vec![record(pair, Vec::new())], None))
        }
        "lenient-ecm" => Message::Ecm(ecm(("192.0.2.1", CONTROL_PORT), ("192.0.2.2", 61000))),
        other => panic!("nobody says what {other} means"),
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn authentication(message: &mut Message) -> Option<&mut Authentication> {
    match message {
        Message::MapRegister(register) => Some(&mut register.authentication),
        Message::MapNotify(notify) | Message::MapNotifyAck(notify) => {
            Some(&mut notify.authentication)
        }
        Message::MapRequest(_) | Message::MapReply(_) | Message::Ecm(_) => None,
    }
}

/// RFC 9301 §5, RFC 9437, RFC 8060: decoded it is what the coder meant, encoded again it is the
/// same, and signing what was meant gives the coder's digest.
#[test]
fn the_other_coders_messages_are_read_and_written_alike() {
    let mut kinds = BTreeMap::new();
    for (name, octets) in messages() {
        *kinds.entry(octets[0] >> 4).or_insert(0) += 1;
        let mut want = meaning(&name);
        if let Some(authentication) = authentication(&mut want) {
            let len = usize::from(u16::from_be_bytes([octets[14], octets[15]]));
            *authentication = Authentication {
                key_id: octets[12],
                algorithm: octets[13],
                digest: octets[16..16 + len].to_vec(),
            };
        }
        assert_eq!(Message::decode(&octets).as_ref(), Ok(&want), "{name}");
        if !name.starts_with("lenient-") {
            assert_eq!(encoded(&want), octets, "{name}");
        }
    }
    assert_eq!(kinds.keys().copied().collect::<Vec<u8>>(), [1, 2, 3, 4, 5, 8]);
}

/// RFC 9301 §5.6: all algorithms, both lengths of each.
#[test]
fn the_other_coders_digests_verify_and_are_what_we_make() {
    let chain = keys();
    let mut seen = BTreeMap::new();
    for (name, octets) in messages().into_iter().filter(|(_, octets)| is_signed(octets)) {
        let key_id = octets[12];
        assert_eq!(chain.verify(&octets), Ok(key_id), "{name}");
        let len = usize::from(u16::from_be_bytes([octets[14], octets[15]]));
        *seen.entry((octets[13], len)).or_insert(0) += 1;
        let secret = match key_id {
            1 => "old secret of site 7",
            2 => "secret of site 7",
            _ => "a secret from which keys of messages are derived",
        };
        let algorithm = match key_id {
            1 => Algorithm::Sha1_96,
            2 => Algorithm::Sha256_128,
            _ => Algorithm::Hkdf,
        };
        let len = if [12, 16].contains(&len) { DigestLen::Truncated } else { DigestLen::Whole };
        let key = LispKey::new(Secret::new(secret.into()), algorithm).with_digest_len(len);
        let mut message = meaning(&name);
        *authentication(&mut message).unwrap() = key.authentication(key_id);
        let mut ours = encoded(&message);
        if !name.starts_with("lenient-") {
            assert!(key.verify(&ours).is_err(), "not signed yet");
            key.sign(&mut ours).unwrap();
            assert_eq!(ours, octets, "{name}");
        }
    }
    let all = [(1, 12), (1, 20), (2, 16), (2, 32), (3, 16), (3, 32)];
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), all);
}

/// Every beginning of every message: an error, or (where something is passed over or the rest is
/// not promised) a value that is written and read again as itself.
#[test]
fn every_beginning_is_an_error_or_a_message() {
    let chain = keys();
    for (name, octets) in messages() {
        for len in 0..octets.len() {
            let cut = &octets[..len];
            if is_signed(&octets) {
                assert!(chain.verify(cut).is_err(), "{name} cut at {len}");
            }
            if let Ok(message) = Message::decode(cut) {
                reads_back(&message, &name);
            }
        }
        // Within what is promised, a cut is always seen.
        let head = if is_signed(&octets) { 16 } else { 12 };
        for len in 0..head {
            assert_eq!(Message::decode(&octets[..len]), Err(WireError::Truncated), "{name} {len}");
        }
    }
}

fn reads_back(message: &Message, name: &str) {
    let octets = encoded(message);
    assert_eq!(Message::decode(&octets).as_ref(), Ok(message), "{name}");
}

/// Every octet of every message with every other value: an error or a value, never a panic; a
/// value that is written and read again as itself; and no signature that still holds.
#[test]
fn every_changed_octet_is_an_error_or_a_message() {
    let chain = keys();
    let mut errors = BTreeMap::new();
    for (name, octets) in messages() {
        let mut changed = octets.clone();
        for at in 0..octets.len() {
            for value in (0..=u8::MAX).filter(|&value| value != octets[at]) {
                changed[at] = value;
                if is_signed(&octets) {
                    let refused = chain.verify(&changed).unwrap_err();
                    *errors.entry(refused).or_insert(0) += 1;
                }
                if let Ok(message) = Message::decode(&changed) {
                    reads_back(&message, &name);
                }
            }
            changed[at] = octets[at];
        }
    }
    // Each kind of refusal was met, so that the loop is known to have reached them.
    let met: Vec<AuthError> = errors.into_keys().collect();
    assert_eq!(
        met,
        [
            AuthError::NotSigned,
            AuthError::NoDigest,
            AuthError::KeyId,
            AuthError::Algorithm,
            AuthError::Length,
            AuthError::Mismatch,
        ]
    );
}

/// Octets of several messages put together at random, by a seed: no panic, and a value is written
/// and read again as itself.
#[test]
fn spliced_messages_are_errors_or_messages() {
    let messages = messages();
    let mut seed = 9301_u64;
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % limit
    };
    let mut read = 0;
    for _ in 0..20_000 {
        let (name, start) = &messages[below(messages.len())];
        let mut octets = start[..=below(start.len())].to_vec();
        for _ in 0..=below(3) {
            let (_, more) = &messages[below(messages.len())];
            let from = below(more.len());
            octets.extend(&more[from..from + below(more.len() - from + 1)]);
        }
        if let Ok(message) = Message::decode(&octets) {
            reads_back(&message, name);
            read += 1;
        }
    }
    assert!(read > 1000, "{read} of them were messages");
}

/// RFC 9303 §6.4 to §6.9, each in its place: what a resolver, a server, an ETR and an ITR do with
/// the coder's messages.
#[test]
fn a_one_time_key_goes_from_the_itr_to_the_etr_and_proves_the_reply() {
    let vectors = vectors();
    let security = |name: &str| match Message::decode(&vectors[name]) {
        Ok(Message::Ecm(Ecm { security: Some(octets), .. })) => {
            EcmSecurity::decode(&mut Reader::new(&octets)).unwrap()
        }
        other => panic!("{name}: {other:?}"),
    };
    // The resolver opens what the ITR wrapped, with that secret, that nonce, and no other.
    let from_itr = security("ecm-sec-itr");
    assert_eq!(from_itr.eids, EidAuthentication::request(0));
    let wrap = OtkWrap::of_id(from_itr.wrapping).unwrap();
    let otk = Otk::unwrap(&from_itr.wrapped_otk, wrap, NONCE, &itr_secret()).unwrap();
    for (nonce, secret) in [(NONCE + 1, itr_secret()), (NONCE, etr_secret())] {
        let opened = Otk::unwrap(&from_itr.wrapped_otk, wrap, nonce, &secret);
        assert_eq!(opened.unwrap_err(), AuthError::Wrapped);
    }
    // The server has it in the clear, and it is the same.
    let from_resolver = security("ecm-sec-resolver");
    let wrap = OtkWrap::of_id(from_resolver.wrapping).unwrap();
    let secret = Secret::new(Vec::new());
    let clear = Otk::unwrap(&from_resolver.wrapped_otk, wrap, NONCE, &secret).unwrap();
    assert_eq!(clear.wrap(OtkWrap::Null, 0, &secret), otk.wrap(OtkWrap::Null, 0, &secret));
    // The ETR gets the derived key.
    let from_server = security("ecm-sec-server");
    let wrap = OtkWrap::of_id(from_server.wrapping).unwrap();
    let ms_otk = Otk::unwrap(&from_server.wrapped_otk, wrap, NONCE, &etr_secret()).unwrap();
    // The ITR proves the prefixes by its own key, and the reply by the derived one.
    assert_eq!(otk.verify(OtkHmac::Sha256_128, from_server.eids.octets()), Ok(()));
    assert!(ms_otk.verify(OtkHmac::Sha256_128, from_server.eids.octets()).is_err());
    for (name, kdf) in [("map-reply-sec", 2), ("map-reply-sec-sha1", 1)] {
        let octets = &vectors[name];
        let Ok(Message::MapReply(reply)) = Message::decode(octets) else { panic!("{name}") };
        let security = ReplySecurity::decode(reply.security.as_ref().unwrap()).unwrap();
        assert_eq!(security.eids.kdf(), kdf);
        let eids = security.eids.eids().unwrap();
        let of_eids = OtkHmac::of_id(eids.hmac_id).unwrap();
        let of_reply = OtkHmac::of_id(security.hmac_id).unwrap();
        assert_eq!((eids.hmac_len, security.hmac.len()), (of_eids.len(), of_reply.len()));
        assert_eq!(otk.verify(of_eids, security.eids.octets()), Ok(()), "{name}");
        let derived = otk.derive(OtkKdf::of_id(kdf).unwrap());
        assert_eq!(derived.verify(of_reply, octets), Ok(()), "{name}");
        for at in 0..octets.len() {
            for value in (0..=u8::MAX).filter(|&value| value != octets[at]) {
                let mut changed = octets.clone();
                changed[at] = value;
                assert_eq!(derived.verify(of_reply, &changed), Err(AuthError::Mismatch));
                if let Ok(Message::MapReply(MapReply { security: Some(octets), .. })) =
                    Message::decode(&changed)
                {
                    let _ = ReplySecurity::decode(&octets);
                }
            }
        }
    }
}

/// RFC 9303 §6.9.1, the example: which records the prefixes of the EID-AD allow.
#[test]
fn a_record_is_used_when_the_server_vouches_for_it() {
    let eids = vec![eid("2001:db8:103::/48"), eid("2001:db8:203::/48")];
    let signed = SignedEids { cant_sign: false, hmac_id: 2, hmac_len: 16, eids };
    for (record, used) in [
        ("2001:db8:102::/48", false),
        ("2001:db8:103::/48", true),
        ("2001:db8:103:7::/64", true),
        ("2001:db8:200::/40", false),
    ] {
        assert_eq!(signed.covers(&eid(record)), used, "{record}");
    }
    assert!(!signed.covers(&eid_in(5, "2001:db8:103::/48")));
    assert!(!signed.covers(&Eid::None));
}

/// RFC 9303 §6.1: lengths that do not count themselves are read too; others are errors.
#[test]
fn both_readings_of_a_length_are_read() {
    let octets = &vectors()["ecm-sec-itr"];
    // ECM header, AD type and requested HMAC before the length of the OTK-AD.
    assert_eq!(octets[8..10], [0, 28]);
    for len in 0..=u8::MAX {
        let mut changed = octets.clone();
        changed[9] = len;
        let read = Message::decode(&changed);
        assert_eq!(read.is_ok(), len == 24 || len == 28, "{len}");
    }
}

/// The committed octets are those that the coder makes.
#[test]
fn the_vectors_are_the_coders() {
    let coder = vectors_dir().join("coder.py");
    let made = match Command::new("python3").arg(coder).output() {
        Ok(made) if made.status.success() => String::from_utf8(made.stdout).unwrap(),
        other => return skipped("the_vectors_are_the_coders", &format!("python3: {other:?}")),
    };
    let committed = fs::read_to_string(vectors_dir().join("messages.hex")).unwrap();
    // The first line says which Python it was.
    assert!(committed.lines().skip(1).eq(made.lines().skip(1)));
}

/// RFC 9300 §5.1, RFC 9305 §3: headers there and back, and whole packets.
#[test]
fn the_other_coders_data_packets_are_read_and_written_alike() {
    let vectors = vectors();
    let iid = |iid| Some(InstanceId(iid));
    let plain = LispHeader::default();
    let nonce = FirstWord::Nonce { nonce: 0x0c_0d0e, echo: true };
    let versions =
        FirstWord::Versions { source: MapVersion(0xabc), destination: MapVersion(0xdef) };
    for (name, header) in [
        ("data-plain", plain),
        ("data-iid", LispHeader { iid: iid(0x0a_0b0c), ..plain }),
        ("data-iid-status", LispHeader { iid: iid(0x0a_0b0c), status: Some(5), ..plain }),
        ("data-status", LispHeader { status: Some(0x8000_0001), ..plain }),
        ("data-nonce-echo", LispHeader { first: nonce, ..plain }),
        ("data-versions", LispHeader { first: versions, iid: iid(1), ..plain }),
        ("data-gpe-v4", LispHeader { first: FirstWord::NextProtocol(1), iid: iid(1), ..plain }),
        ("data-gpe-v6", LispHeader { first: FirstWord::NextProtocol(2), ..plain }),
    ] {
        let octets = &vectors[name];
        let inner = decapsulate(octets, 64, 0x2a).unwrap();
        assert_eq!(inner.header, header, "{name}");
        assert_eq!(header.octets(), octets[..8], "{name}");
        let mut out = Vec::new();
        inner.put(&mut out);
        assert_eq!(out, octets[8..], "{name}: nothing happened on the way");
        assert_eq!((inner.head.ttl, inner.head.traffic_class), (33, 0x2a), "{name}");
    }
    for (name, of, checksum) in
        [("outer-v4", "data-iid", false), ("outer-v4-checksum", "data-plain", true)]
    {
        let outer = Outer {
            source: addr("192.0.2.1"),
            destination: addr("192.0.2.2"),
            source_port: Some(50000),
            header: LispHeader::decode(&vectors[of]).unwrap().0,
            checksum,
        };
        let mut out = Vec::new();
        encapsulate(&vectors[of][8..], &outer, &mut out).unwrap();
        assert_eq!(out, vectors[name], "{name}");
    }
}

// ---- A dissector of others -------------------------------------------------------------------

fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {why}");
}

/// A capture file of raw IP packets (the old pcap format, link type 101).
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 65535, 101] {
        out.extend(word.to_be_bytes());
    }
    for packet in packets {
        let len = u32::try_from(packet.len()).unwrap();
        for word in [0, 0, len, len] {
            out.extend(word.to_be_bytes());
        }
        out.extend(packet);
    }
    out
}

/// A control message between two locators: what [`Ecm`] writes behind its own header.
fn control_packet(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Ecm {
        ddt: false,
        security: None,
        source: (addr("192.0.2.1"), 50000),
        destination: (addr("192.0.2.2"), CONTROL_PORT),
        message: message.to_vec(),
    }
    .encode(&mut out);
    out.split_off(4)
}

fn data_packet(name: &str, vectors: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let octets = &vectors[name];
    let outer = Outer {
        source: addr("2001:db8::1"),
        destination: addr("2001:db8::2"),
        source_port: None,
        header: LispHeader::decode(octets).unwrap().0,
        checksum: true,
    };
    let mut out = Vec::new();
    encapsulate(&octets[8..], &outer, &mut out).unwrap();
    let port = Head::of(&out).unwrap().header_len + 2;
    assert_eq!(out[port..port + 2], DATA_PORT.to_be_bytes());
    out
}

/// A name, and the fields that the dissector has to show: `field=value,value` with spaces between.
/// Types 1 to 4 and 8, and data packets; of a Map-Notify-Ack it shows the type and no more.
const SHOWN: &[(&str, &str)] = &[
    (
        "map-request",
        "type=1 nonce=0x0123456789abcdef irc=1 mreq.srceid.ipv4=10.1.0.7 \
        mreq.itr_rloc_ipv4=192.0.2.1 mreq.itr_rloc_ipv6=2001:db8::1 \
        mreq.record.prefix.ipv4=10.2.0.9 mreq.record.prefix.length=32",
    ),
    (
        "map-request-probe",
        "type=1 mreq.flags.auth=1 mreq.flags.mrp=1 mreq.flags.probe=1 \
        mreq.flags.pitr=1 mreq.flags.smr=0 mreq.record.prefix.ipv6=2001:db8:e:: \
        mreq.record.prefix.length=48 mapping.eid.ipv4=10.1.0.7 \
        loc.locator=192.0.2.1,2001:db8::1 mapping.ver=2748 mapping.auth=1",
    ),
    (
        "map-request-smr",
        "type=1 mreq.flags.smr=1 mreq.flags.smri=0 \
        mreq.srceid_ipv6=2001:db8:e:1::7 mreq.record.prefix.ipv6=2001:db8:f::",
    ),
    (
        "map-request-smr-invoked",
        "type=1 mreq.flags.smr=0 mreq.flags.smri=1 lcaf.iid=5,5 \
        lcaf.iid.ipv4=10.1.0.7,10.2.0.9",
    ),
    (
        "subscribe",
        "type=1 mreq.record.prefix.ipv4=10.1.0.7 \
        mreq.record.prefix.ipv6=2001:db8:e:1::7 lcaf.iid=9 lcaf.iid.ipv4=10.0.0.0 \
        mreq.record.prefix.length=32,128,16",
    ),
    (
        "map-reply",
        "type=2 nonce=0x0123456789abcdef mapping.ttl=1440,3 mapping.eid.ipv4=10.1.0.7 \
        mapping.eid.masklen=32,24 lcaf.iid=5 lcaf.iid.ipv4=10.1.2.0 mapping.ver=2748,4095 \
        mapping.auth=1,0 loc.locator=192.0.2.1,2001:db8::1,192.0.2.1 loc.weight=100,50,100 \
        loc.flags.local=0,0,1 loc.flags.reach=1,1,0",
    ),
    (
        "map-reply-probe",
        "type=2 mrep.flags.probe=1 mrep.flags.enlr=1 mrep.flags.sec=0 \
        mapping.ttl=4294967295 loc.priority=255 loc.flags.probe=1 loc.flags.local=1",
    ),
    (
        "map-reply-negative",
        "type=2 mapping.act=0,1,2,3,4,5 mapping.loccnt=0,0,0,0,0,0 \
        mapping.eid.masklen=8,9,10,11,12,13",
    ),
    (
        "map-reply-lcaf",
        "type=2 lcaf.srcdst.src.ipv6=:: lcaf.srcdst.dst.ipv6=2001:db8:2:: \
        lcaf.srcdst.dst.masklen=64 lcaf.srcdst.src.masklen=0 lcaf.afi_list.ipv4=192.0.2.1 \
        lcaf.afi_list.ipv6=2001:db8::1 lcaf.afi_list.dn=anchor-7 lcaf.geo.lat.deg=60",
    ),
    ("map-reply-empty", "type=2 records=0"),
    (
        "map-register-sha1-96",
        "type=3 keyid=0x0101 authlen=12 mreg.flags.wmn=1 \
        mapping.eid.ipv4=10.1.0.7 loc.locator=192.0.2.1,2001:db8::1",
    ),
    ("map-register-sha1", "type=3 keyid=0x0101 authlen=20 mreg.flags.pmr=1 mreg.flags.wmn=0"),
    (
        "map-register-sha256-128",
        "type=3 keyid=0x0202 authlen=16 mreg.flags.xtrid=1 \
        xtrid=00112233445566778899aabbccddeeff siteid=0102030405060708",
    ),
    ("map-register-sha256", "type=3 keyid=0x0202 authlen=32 mreg.flags.sec=1 mreg.res=0x00000a"),
    (
        "map-register-hkdf-128",
        "type=3 keyid=0x0303 authlen=16 mreg.flags.sec=1 \
        xtrid=00112233445566778899aabbccddeeff siteid=0102030405060708",
    ),
    ("map-register-hkdf", "type=3 keyid=0x0303 authlen=32 mapping.ttl=0 mapping.loccnt=0"),
    ("map-notify-sha1-96", "type=4 keyid=0x0101 authlen=12 mapping.eid.ipv4=10.1.0.7"),
    ("map-notify-sha256-128", "type=4 keyid=0x0202 authlen=16 mapping.eid.masklen=32,24"),
    ("map-notify-hkdf-128", "type=4 keyid=0x0303 authlen=16 mapping.act=5"),
    ("map-notify-hkdf", "type=4 keyid=0x0303 authlen=32 lcaf.iid.ipv4=10.1.2.0"),
    ("map-notify-ack-sha1", "type=5"),
    ("map-notify-ack-sha256-128", "type=5"),
    ("map-notify-ack-hkdf-128", "type=5"),
    ("ecm-v4", "type=8,1 ecm.flags.sec=0 ecm.flags.ddt=0 mreq.record.prefix.ipv4=10.2.0.9"),
    ("ecm-v6", "type=8,1 ecm.flags.ddt=1 mreq.record.prefix.ipv4=10.2.0.9"),
    ("data-plain", "data.flags=0x00"),
    ("data-iid", "data.flags=0x08 data.iid=658188"),
    ("data-iid-status", "data.flags=0x48 data.iid=658188 data.lsb8=0x05"),
    ("data-status", "data.flags=0x40 data.lsb=0x80000001"),
    ("data-nonce-echo", "data.flags=0xa0 data.nonce=789774"),
    ("data-versions", "data.flags=0x18 data.srcmapver=2748 data.dstmapver=3567 data.iid=1"),
    ("data-gpe-v4", "data.flags=0x0c data.iid=1"),
    ("data-gpe-v6", "data.flags=0x04"),
    // Of LISP-SEC it knows the bit only.
    ("ecm-sec-itr", "type=8 ecm.flags.sec=1"),
    ("ecm-sec-resolver", "type=8 ecm.flags.sec=1"),
    ("ecm-sec-server", "type=8 ecm.flags.sec=1"),
    ("map-reply-sec", "type=2 mrep.flags.sec=1 mapping.eid.ipv4=10.1.0.7"),
    ("map-reply-sec-sha1", "type=2 mrep.flags.sec=1 records=0"),
    // What it does not know, in its words: an ITR-RLOC that is an LCAF or AFI 0, a name as EID.
    ("map-request-source-dest", "type=1 expert=Unexpected_ITR-RLOC-AFI_(16387),_cannot_decode"),
    (
        "unsubscribe",
        "type=1 nonce=0x0000000000000007 \
        expert=Unexpected_ITR-RLOC-AFI_(0),_cannot_decode",
    ),
    ("map-request-passed-on", "type=1 expert=Unexpected_Source_EID_AFI_(17),_cannot_decode"),
];

fn field_name(short: &str) -> String {
    match short.strip_prefix("data.") {
        Some(data) => format!("lisp-data.{data}"),
        None if short == "expert" => "_ws.expert.message".to_owned(),
        None => format!("lisp.{short}"),
    }
}

/// Everything that our encoder makes, read by a dissector of others: nothing malformed, every
/// checksum right, and the fields as they were meant.
#[test]
fn a_dissector_reads_what_we_write() {
    let chain = keys();
    let vectors = vectors();
    let mut left: Vec<&str> = vectors
        .keys()
        .map(String::as_str)
        .filter(|name| !name.starts_with("lenient-") && !name.starts_with("outer-"))
        .collect();
    let mut packets = Vec::new();
    for (name, _) in SHOWN {
        left.retain(|other| other != name);
        packets.push(if name.starts_with("data-") {
            data_packet(name, &vectors)
        } else {
            let mut message = meaning(name);
            if let Some(authentication) = authentication(&mut message) {
                let signed = &vectors[*name];
                let len = usize::from(u16::from_be_bytes([signed[14], signed[15]]));
                let digest = signed[16..16 + len].to_vec();
                *authentication =
                    Authentication { key_id: signed[12], algorithm: signed[13], digest };
                assert!(chain.verify(&encoded(&message)).is_ok());
            }
            control_packet(&encoded(&message))
        });
    }
    assert_eq!(left, Vec::<&str>::new(), "messages that nobody looks at");

    let mut fields: Vec<String> = SHOWN
        .iter()
        .flat_map(|(_, shown)| shown.split_whitespace())
        .map(|pair| field_name(pair.split_once('=').unwrap().0))
        .collect();
    let always = ["_ws.malformed", "_ws.expert.message", "ip.checksum.status"];
    fields.extend(always.map(str::to_owned));
    fields.push("udp.checksum.status".to_owned());
    fields.sort();
    fields.dedup();

    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lisp_wire.pcap");
    fs::write(&file, pcap(&packets)).unwrap();
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&file).args(["-T", "json"]);
    tshark.args(["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]);
    for field in &fields {
        tshark.args(["-e", field]);
    }
    let read = match tshark.output() {
        Ok(read) => read,
        Err(error) => {
            return skipped("a_dissector_reads_what_we_write", &format!("tshark: {error}"));
        }
    };
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let read: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    let read = read.as_array().unwrap();
    assert_eq!(read.len(), SHOWN.len());
    for ((name, shown), read) in SHOWN.iter().zip(read) {
        let layers = &read["_source"]["layers"];
        let values = |field: &str| -> Vec<&str> {
            let list = layers[field].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().map(|value| value.as_str().unwrap()).collect()
        };
        assert_eq!(values("_ws.malformed"), [""; 0], "{name}");
        if !shown.contains("expert=") {
            assert_eq!(values("_ws.expert.message"), [""; 0], "{name}");
        }
        for field in ["ip.checksum.status", "udp.checksum.status"] {
            // 1 is good.
            assert!(values(field).iter().all(|&status| status == "1"), "{name}: {layers}");
        }
        assert!(!values("udp.checksum.status").is_empty(), "{name}");
        for pair in shown.split_whitespace() {
            let (short, want) = pair.split_once('=').unwrap();
            let got = values(&field_name(short)).join(",").replace(' ', "_");
            assert_eq!(got, want, "{name}: {short}");
        }
    }
}
