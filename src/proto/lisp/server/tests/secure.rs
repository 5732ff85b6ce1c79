//! RFC 9303 with both sides: an ITR that believes only what is proven, this server, and ETRs.

use std::net::SocketAddr;
use std::sync::Arc;

use super::lab::*;
use crate::auth::{Otk, OtkHmac, OtkKdf, OtkWrap};
use crate::proto::lisp::security;
use crate::proto::lisp::server::*;
use crate::proto::lisp::xtr;
use crate::types::lisp::{NegativeAction, Rloc};
use crate::wire::Reader;
use crate::wire::lisp::{
    Ecm, EcmSecurity, EidAuthentication, EidRecord, MapRegister, MapReply, MapRequest,
    ReplySecurity, SignedEids,
};

const MANY: u64 = 10_000;
/// Mobile, and bound: the server answers.
const HOST: &str = "10.1.0.7/32";
/// Registered without P: its ETR answers.
const SITE: &str = "10.2.0.0/16";

fn server_addr() -> SocketAddr {
    "198.51.100.254:4342".parse().unwrap()
}

fn itr(number: u128) -> xtr::Itr {
    let peer = Peer::itr(number);
    let all =
        xtr::MobilePrefix { iid: MOBILE, prefix: prefix("10.0.0.0/8"), policy: xtr::Policy::Query };
    let config = xtr::ItrConfig {
        prefixes: vec![all],
        resolvers: vec![server_addr().ip()],
        rlocs: vec![peer.addr],
        pitr: true,
        id: peer.id,
        renew_every: Duration::from_secs(300),
        probe: None,
        cache_max: 100_000,
        subscription_below: Default::default(),
    };
    let key = secured_itr(number).key;
    let keys = [(server_addr().ip(), key)].into();
    xtr::Itr::new(config, [u8::try_from(number).unwrap(); 32], lab_start()).with_security(keys)
}

fn lab_start() -> Instant {
    Instant::ZERO + Duration::from_secs(100)
}

/// An ETR without P, with what it shares with its Map-Server.
fn etr(anchor: AnchorId) -> xtr::Etr {
    let peer = Peer::etr(anchor, 1);
    let server = xtr::MapServer { addr: server_addr().ip(), keys: Arc::new(peer.keys.clone()) };
    let registrar = xtr::RegistrarConfig {
        servers: vec![server],
        id: peer.id,
        proxy_reply: false,
        merge: false,
        ttl_min: 10,
        nonce_below: 1000,
        notify_below: Default::default(),
    };
    let config = xtr::EtrConfig { registrar, rlocs: vec![peer.addr] };
    xtr::Etr::new(config, [7; 32]).with_security(vec![shared(&format!("site {anchor}"))])
}

fn octets_of(message: &Message) -> Vec<u8> {
    let mut octets = Vec::new();
    message.encode(&mut octets);
    octets
}

/// The one message of an xTR, as it is on the wire.
fn sent(out: &[xtr::Output]) -> Option<Vec<u8>> {
    let mut all = out.iter().filter_map(|output| match output {
        xtr::Output::Send { message, sign_with, .. } => {
            let mut octets = octets_of(message);
            if let Some(keys) = sign_with {
                keys.sign(&mut octets).unwrap();
            }
            Some(octets)
        }
        _ => None,
    });
    let first = all.next();
    assert!(all.next().is_none(), "one message at most");
    first
}

/// A packet to this address meets no mapping: the question.
fn ask(itr: &mut xtr::Itr, destination: &str, now: Instant) -> Vec<u8> {
    let mut out = Vec::new();
    itr.handle_miss(ip("203.0.113.1"), ip(destination), now, &mut out);
    sent(&out).expect("a question")
}

/// What a reply makes the ITR believe.
fn hear(itr: &mut xtr::Itr, raw: &[u8]) -> Vec<String> {
    let Ok(Message::MapReply(reply)) = Message::decode(raw) else { return Vec::new() };
    let mut out = Vec::new();
    itr.handle_map_reply(&reply, raw, lab_start(), &mut out);
    let told = out.iter().filter_map(|output| match output {
        xtr::Output::SetMapping { prefix, rlocs, action, .. } if rlocs.is_empty() => {
            Some(format!("{prefix} {action:?}"))
        }
        xtr::Output::SetMapping { prefix, rlocs, .. } => {
            let addrs: Vec<_> = rlocs.iter().map(|r| r.addr.to_string()).collect();
            Some(format!("{prefix} {}", addrs.join(" ")))
        }
        xtr::Output::RemoveMapping { prefix, .. } => Some(format!("{prefix} -")),
        _ => None,
    });
    told.collect()
}

/// What the server sends back to an ITR for a question.
fn answered(lab: &mut Lab, number: u128, question: &[u8]) -> Vec<u8> {
    lab.receive(Peer::itr(number).from(), question);
    let [(to, reply)] = &lab.replies()[..] else { panic!("{:?}", lab.out) };
    assert_eq!(to.ip(), Peer::itr(number).addr);
    octets_of(&Message::MapReply(reply.clone()))
}

/// The ECM that the server passes on to an ETR for a question.
fn passed_on(lab: &mut Lab, question: &[u8]) -> Ecm {
    lab.receive(Peer::itr(1).from(), question);
    assert!(lab.replies().is_empty());
    let [(_, ecm)] = &lab.forwarded()[..] else { panic!("{:?}", lab.out) };
    let Message::Ecm(ecm) = Message::decode(&octets_of(&Message::Ecm(ecm.clone()))).unwrap() else {
        panic!()
    };
    ecm
}

fn from_etr(etr: &mut xtr::Etr, ecm: &Ecm) -> Option<Vec<u8>> {
    let Message::MapRequest(request) = Message::decode(&ecm.message).unwrap() else { panic!() };
    let mut out = Vec::new();
    let arrival = xtr::Arrival::Ecm(ecm.security.as_deref());
    let from = SocketAddr::from(ecm.source);
    etr.handle_map_request(from, ip("192.0.2.11"), arrival, &request, lab_start(), &mut out);
    sent(&out)
}

/// A server with a bound host, and a site that answers for itself.
fn lab_and_etr() -> (Lab, xtr::Etr) {
    let mut lab = Lab::new();
    lab.publish(HOST, Some(at(A, 3)));
    let mut etr = etr(A);
    register(&mut lab, &mut etr, SITE);
    (lab, etr)
}

fn register(lab: &mut Lab, etr: &mut xtr::Etr, text: &str) {
    let rloc = Rloc { addr: ip("192.0.2.11"), priority: 1, weight: 100 };
    etr.registrar.set(MOBILE, prefix(text), RlocSet::new(vec![rloc]), MapVersion::NULL);
    let mut out = Vec::new();
    etr.handle_timeout(lab_start(), &mut out);
    lab.receive(Peer::etr(A, 1).from(), &sent(&out).unwrap());
    assert!(lab.refusals().is_empty());
}

/// What the ETR reads in an ECM: the question's nonce, what came with it, and the MS-OTK.
fn read(ecm: &Ecm) -> (u64, EcmSecurity, Otk) {
    let Message::MapRequest(request) = Message::decode(&ecm.message).unwrap() else { panic!() };
    let key = shared("site 0.0.0.1");
    let octets = ecm.security.as_ref().unwrap();
    let (security, otk) = security::open(octets, request.nonce, [&key].into_iter()).unwrap();
    (request.nonce, security, otk)
}

fn reply(nonce: u64, records: Vec<EidRecord>) -> MapReply {
    MapReply { probe: false, echo_nonce: false, nonce, records, security: None }
}

fn claim(text: &str) -> EidRecord {
    record(MOBILE, text, &["203.0.113.66"])
}

/// §6.7.2: what the server says itself, whatever it is.
#[test]
fn a_proxy_reply_is_proven() {
    let (mut lab, _) = lab_and_etr();
    lab.register(&mut Peer::etr(B, 1), &[record(MOBILE, "10.3.0.0/16", &["192.0.2.21"])]);
    for (destination, told) in [
        ("10.1.0.7", "10.1.0.7/32 192.0.2.1"),
        ("10.3.0.9", "10.3.0.0/16 192.0.2.21"),
        ("10.77.0.1", "10.64.0.0/10 NativelyForward"),
    ] {
        let mut itr = itr(1);
        let question = ask(&mut itr, destination, lab.now);
        let raw = answered(&mut lab, 1, &question);
        let Message::MapReply(reply) = Message::decode(&raw).unwrap() else { panic!() };
        let proof = ReplySecurity::decode(&reply.security.unwrap()).unwrap();
        let signed = proof.eids.eids().unwrap();
        assert!(!signed.cant_sign);
        assert_eq!(signed.eids, [reply.records[0].eid.clone()]);
        assert_eq!(hear(&mut itr, &raw), [told]);
        assert!(hear(&mut itr, &raw).is_empty(), "§7.6: the key is gone with the question");
        assert_eq!((itr.counts().reply_not_proven, itr.counts().reply_unknown_nonce), (0, 1));
    }
    assert_eq!(lab.server.counters().secured, 3);
}

/// §6.7.1, §6.8: the ETR answers, with a key that is not the ITR's, about what the server names.
#[test]
fn the_reply_of_an_etr_is_proven() {
    let (mut lab, mut etr) = lab_and_etr();
    let mut itr = itr(1);
    let question = ask(&mut itr, "10.2.3.4", lab.now);
    let ecm = passed_on(&mut lab, &question);
    let (_, security, ms_otk) = read(&ecm);
    let signed = security.eids.eids().unwrap();
    assert_eq!(signed.eids, [eid(MOBILE, SITE)]);
    assert!(!signed.cant_sign);
    assert_eq!(OtkWrap::of_id(security.wrapping), Some(OtkWrap::Aes128));
    assert!(ms_otk.verify(OtkHmac::Sha256_128, security.eids.octets()).is_err(), "not the ETR's");
    let raw = from_etr(&mut etr, &ecm).expect("a reply");
    assert_eq!(hear(&mut itr, &raw), ["10.2.3.4/32 192.0.2.11"]);
    assert_eq!(etr.counts().replies_proven, 1);
    assert_eq!(itr.counts().reply_not_proven, 0);
    // The same question without a key is answered without a proof.
    let mut plain = Peer::itr(2);
    let request = plain.request(&[(eid(MOBILE, "10.2.3.4/32"), false)]);
    let ecm = passed_on(&mut lab, &encapsulated(&plain, &request));
    assert_eq!(ecm.security, None);
    let Message::MapReply(bare) = Message::decode(&from_etr(&mut etr, &ecm).unwrap()).unwrap()
    else {
        panic!()
    };
    assert_eq!(bare.security, None);
}

/// §4, §6.9.1: an ETR has the MS-OTK, and claims more than the server vouches for.
#[test]
fn an_over_claiming_etr_is_refused() {
    let (mut lab, _) = lab_and_etr();
    // Somebody else is inside: the site's own prefix is too much as well.
    lab.register(&mut Peer::etr(B, 1), &[record(MOBILE, "10.2.128.0/24", &["192.0.2.21"])]);
    let mut itr = itr(1);
    let question = ask(&mut itr, "10.2.3.4", lab.now);
    let (nonce, security, ms_otk) = read(&passed_on(&mut lab, &question));
    assert_eq!(security.eids.eids().unwrap().eids, [eid(MOBILE, "10.2.0.0/17")]);
    let hmac = OtkHmac::Sha256_128;
    let with = |records, eids: &EidAuthentication| {
        let proven = security::prove(reply(nonce, records), eids.clone(), &ms_otk, hmac);
        octets_of(&Message::MapReply(proven))
    };
    let wide = ["10.0.0.0/8", "10.2.0.0/15", SITE, "10.2.128.0/24", HOST];
    for text in wide {
        assert!(hear(&mut itr, &with(vec![claim(text)], &security.eids)).is_empty(), "{text}");
    }
    assert_eq!(itr.counts().reply_not_covering, wide.len() as u64);
    // It vouches for itself, with the key that it has.
    let signed = SignedEids { eids: vec![eid(MOBILE, "10.0.0.0/8")], ..own_signed(&security) };
    let kdf = OtkKdf::Sha256.id();
    let own = EidAuthentication::signed(kdf, signed, |octets| ms_otk.sign(hmac, octets));
    assert!(hear(&mut itr, &with(vec![claim("10.0.0.0/8")], &own)).is_empty());
    assert_eq!(itr.counts().reply_not_proven, 1);
    // Beside what is its own, others' hosts are left out.
    let both = vec![claim("10.2.3.0/24"), claim(HOST)];
    assert_eq!(hear(&mut itr, &with(both, &security.eids)), ["10.2.3.0/24 203.0.113.66"]);
    assert_eq!(itr.counts().record_outside, 1);
}

fn own_signed(security: &EcmSecurity) -> SignedEids {
    security.eids.eids().unwrap().clone()
}

/// §6.9: a reply on the way is changed, made up, taken from another question, or loses its S bit;
/// from the server and from an ETR. None is believed, all are counted, and the true one still is.
#[test]
fn ten_thousand_forged_replies_are_refused() {
    let (mut lab, mut etr) = lab_and_etr();
    let mut itr = itr(1);
    let question = ask(&mut itr, "10.1.0.7", lab.now);
    let of_server = answered(&mut lab, 1, &question);
    let question = ask(&mut itr, "10.2.3.4", lab.now);
    let ecm = passed_on(&mut lab, &question);
    let of_etr = from_etr(&mut etr, &ecm).unwrap();
    let mut other = self::itr(2);
    let question = ask(&mut other, "10.1.0.7", lab.now);
    let of_another = answered(&mut lab, 2, &question);
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random ^ (random >> 29)
    };
    let (mut forged, mut stripped) = (0, 0);
    while forged < MANY {
        let good = if next() % 2 == 0 { &of_server } else { &of_etr };
        let Message::MapReply(true_reply) = Message::decode(good).unwrap() else { panic!() };
        let nonce = true_reply.nonce;
        let guess = Otk::new(std::array::from_fn(|_| next().to_be_bytes()[0]));
        let asked = if std::ptr::eq(good, &of_server) { HOST } else { "10.2.3.4/32" };
        let raw = match next() % 5 {
            // S is stripped: with the true records, and with others.
            0 => {
                stripped += 1;
                let records = match next() % 2 {
                    0 => true_reply.records,
                    _ => vec![claim(asked)],
                };
                octets_of(&Message::MapReply(reply(nonce, records)))
            }
            // The true proof on other records.
            1 => {
                let records = vec![claim(asked)];
                octets_of(&Message::MapReply(MapReply { records, ..true_reply }))
            }
            // All is well signed, with a key that is guessed.
            2 => {
                let eids = vec![eid(MOBILE, asked)];
                let hmac = OtkHmac::Sha256_128;
                let (hmac_id, hmac_len) = (hmac.id(), hmac.len());
                let signed = SignedEids { cant_sign: false, hmac_id, hmac_len, eids };
                let kdf = OtkKdf::Sha256;
                let eids = EidAuthentication::signed(kdf.id(), signed, |o| guess.sign(hmac, o));
                let made = reply(nonce, vec![claim(asked)]);
                octets_of(&Message::MapReply(security::prove(made, eids, &guess.derive(kdf), hmac)))
            }
            // The proof of another's question.
            3 => {
                let mut raw = of_another.clone();
                raw[4..12].copy_from_slice(&nonce.to_be_bytes());
                raw
            }
            // One bit.
            _ => {
                let mut raw = good.clone();
                let at = usize::try_from(next() % (raw.len() as u64 * 8)).unwrap();
                raw[at / 8] ^= 1 << (at % 8);
                raw
            }
        };
        let reaches =
            |m: &Message| matches!(m, Message::MapReply(r) if r.nonce == nonce && !r.probe);
        if !Message::decode(&raw).is_ok_and(|m| reaches(&m)) {
            continue;
        }
        forged += 1;
        assert!(hear(&mut itr, &raw).is_empty(), "number {forged}");
    }
    assert!(stripped > 1000);
    assert_eq!(itr.counts().reply_not_proven, MANY);
    assert_eq!(hear(&mut itr, &of_server), ["10.1.0.7/32 192.0.2.1"]);
    assert_eq!(hear(&mut itr, &of_etr), ["10.2.3.4/32 192.0.2.11"]);
}

/// The question of an ITR with its authentication data changed.
fn with_security(question: &[u8], change: impl FnOnce(&mut EcmSecurity)) -> Vec<u8> {
    let Message::Ecm(mut ecm) = Message::decode(question).unwrap() else { panic!() };
    let octets = ecm.security.unwrap();
    let mut security = EcmSecurity::decode(&mut Reader::new(&octets)).unwrap();
    change(&mut security);
    let mut octets = Vec::new();
    security.encode(&mut octets);
    ecm.security = Some(octets);
    octets_of(&Message::Ecm(ecm))
}

/// §6.5: a key that does not open discards the entire message, at the server and at the ETR.
#[test]
fn questions_with_forged_keys_are_refused() {
    let (mut lab, mut etr) = lab_and_etr();
    let from = Peer::itr(1).from();
    let question = ask(&mut itr(1), "10.2.3.4", lab.now);
    let Message::Ecm(ecm) = Message::decode(&question).unwrap() else { panic!() };
    let Message::MapRequest(request) = Message::decode(&ecm.message).unwrap() else { panic!() };
    let bare = Otk::new([9; 16]);
    type Change = Box<dyn Fn(&mut EcmSecurity)>;
    let cases: [(Refusal, Change); 5] = [
        (Refusal::OneTimeKeyBare, {
            let wrapped = bare.wrap(OtkWrap::Null, request.nonce, &shared("x").secret);
            Box::new(move |s| (s.wrapping, s.wrapped_otk) = (OtkWrap::Null.id(), wrapped))
        }),
        (Refusal::OneTimeKeyBare, Box::new(|s| s.wrapping = 3)),
        (Refusal::OneTimeKeyUnknown, Box::new(|s| s.key_id = 2)),
        // A site has a key, and is no ITR.
        (Refusal::OneTimeKeyWrong, {
            let secret = shared("site 0.0.0.1").secret;
            let wrapped = bare.wrap(OtkWrap::Aes128, request.nonce, &secret);
            Box::new(move |s| s.wrapped_otk = wrapped)
        }),
        // From an earlier question.
        (Refusal::OneTimeKeyWrong, {
            let secret = secured_itr(1).key.secret;
            let wrapped = bare.wrap(OtkWrap::Aes128, request.nonce ^ 1, &secret);
            Box::new(move |s| s.wrapped_otk = wrapped)
        }),
    ];
    for (reason, change) in cases {
        lab.receive(from, &with_security(&question, change));
        assert_eq!(lab.refusals(), [reason]);
        assert_eq!(lab.out.len(), 1, "nothing else");
    }
    // Under the name of another ITR.
    let mut octets = Vec::new();
    MapRequest { id: Peer::itr(2).id, ..request }.encode(&mut octets);
    let claimed = Ecm { message: octets, ..ecm.clone() };
    lab.receive(from, &octets_of(&Message::Ecm(claimed)));
    assert_eq!(lab.refusals(), [Refusal::OneTimeKeyWrong]);

    let passed = passed_on(&mut lab, &question);
    let to_etr = octets_of(&Message::Ecm(passed.clone()));
    for i in 0..MANY {
        let change = |security: &mut EcmSecurity| {
            let at = usize::try_from(i % 24).unwrap();
            security.wrapped_otk[at] ^= u8::try_from(i % 255 + 1).unwrap();
        };
        lab.receive(from, &with_security(&question, change));
        assert_eq!(lab.refusals(), [Refusal::OneTimeKeyWrong]);
        assert_eq!(lab.out.len(), 1);
        let Message::Ecm(forged) = Message::decode(&with_security(&to_etr, change)).unwrap() else {
            panic!()
        };
        assert_eq!(from_etr(&mut etr, &forged), None);
    }
    assert_eq!(etr.counts().request_bad_key, MANY);
    assert!(from_etr(&mut etr, &passed).is_some());
}

/// The server may insist; subscriptions have their own keys.
#[test]
fn questions_without_a_key_can_be_refused() {
    let mut config = config();
    config.security.required = true;
    let mut lab = Lab::with(config);
    lab.publish(HOST, Some(at(A, 3)));
    let mut plain = Peer::itr(1);
    lab.request(&mut plain, &[(eid(MOBILE, HOST), false)]);
    assert_eq!((lab.refusals(), lab.replies().len()), (vec![Refusal::NotSecured], 0));
    let request = plain.request(&[(eid(MOBILE, HOST), false)]);
    lab.receive(plain.from(), &octets_of(&Message::MapRequest(request)));
    assert_eq!((lab.refusals(), lab.replies().len()), (vec![Refusal::NotSecured], 0));
    lab.request(&mut plain, &[(eid(MOBILE, HOST), true)]);
    assert_eq!((lab.refusals(), lab.notifies(&plain).len()), (vec![], 1));
    let mut itr = itr(1);
    let question = ask(&mut itr, "10.1.0.7", lab.now);
    let raw = answered(&mut lab, 1, &question);
    assert_eq!(hear(&mut itr, &raw), ["10.1.0.7/32 192.0.2.1"]);
    assert_eq!(lab.server.counters().refused[&Refusal::NotSecured], 2);
}

/// §6.7, table 1, rules 2 and 3: an ETR that cannot sign is not asked, and E says so.
#[test]
fn an_etr_that_cannot_sign_is_not_asked() {
    let mut lab = Lab::new();
    let site = |peer: &mut Peer, signs: bool, merge: bool| {
        let register = peer.register(&[record(MOBILE, SITE, &[&peer.addr.to_string()])]);
        MapRegister { proxy_reply: false, security_capable: signs, merge, ..register }
    };
    let mut one = Peer::etr(A, 1);
    let register = site(&mut one, false, false);
    lab.send_register(&one, register);
    let mut first = itr(1);
    let question = ask(&mut first, "10.2.3.4", lab.now);
    let raw = answered(&mut lab, 1, &question);
    let Message::MapReply(told) = Message::decode(&raw).unwrap() else { panic!() };
    assert!(ReplySecurity::decode(&told.security.unwrap()).unwrap().eids.eids().unwrap().cant_sign);
    assert_eq!(told.records[0].action, NegativeAction::DropAuthFailure);
    assert_eq!(hear(&mut first, &raw), ["10.2.0.0/16 DropAuthFailure"]);
    assert_eq!(lab.server.counters().cant_sign, 1);
    // A second one can: it is asked, every time.
    let mut two = Peer::etr(A, 2);
    for (peer, signs) in [(&mut two, true), (&mut one, false)] {
        let register = site(peer, signs, true);
        lab.send_register(peer, register);
    }
    for n in 1..=20 {
        let mut itr = itr(1);
        let question = ask(&mut itr, &format!("10.2.3.{n}"), lab.now);
        let ecm = passed_on(&mut lab, &question);
        let [(to, _)] = &lab.forwarded()[..] else { panic!() };
        assert_eq!(to.ip(), two.addr);
        assert!(read(&ecm).1.eids.eids().unwrap().cant_sign);
    }
    // When it leaves, nobody can sign again.
    let mut gone = record(MOBILE, SITE, &[]);
    gone.ttl_min = 0;
    let register = MapRegister { merge: true, ..two.register(&[gone]) };
    lab.send_register(&two, register);
    let question = ask(&mut itr(1), "10.2.3.4", lab.now);
    answered(&mut lab, 1, &question);
    assert_eq!(lab.server.counters().cant_sign, 2);
}

/// §6.7: old functions only where they are allowed.
#[test]
fn what_is_asked_for_is_used_if_it_is_allowed() {
    for (allowed, hmac, kdf) in
        [(false, OtkHmac::Sha256_128, OtkKdf::Sha256), (true, OtkHmac::Sha1_96, OtkKdf::Sha1_128)]
    {
        let mut config = config();
        config.security.allow_sha1 = allowed;
        let mut lab = Lab::with(config);
        lab.publish(HOST, Some(at(A, 3)));
        let question = ask(&mut itr(1), "10.1.0.7", lab.now);
        let question = with_security(&question, |security| {
            security.requested_hmac = OtkHmac::Sha1_96.id();
            security.eids = EidAuthentication::request(OtkKdf::Sha1_128.id());
        });
        let raw = answered(&mut lab, 1, &question);
        let Message::MapReply(told) = Message::decode(&raw).unwrap() else { panic!() };
        let proof = ReplySecurity::decode(&told.security.unwrap()).unwrap();
        assert_eq!((proof.hmac_id, proof.eids.kdf()), (hmac.id(), kdf.id()));
        assert_eq!(proof.eids.eids().unwrap().hmac_id, hmac.id());
    }
}
