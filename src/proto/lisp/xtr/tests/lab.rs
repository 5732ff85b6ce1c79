//! What the tests share: names, messages of the other side, and what was sent.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Algorithm, KeyChain, LispKey, Secret};
use crate::proto::lisp::xtr::{Output, Persist, record};
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, Rloc, RlocSet, SiteId, XtrId};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{EidRecord, MapNotify, MapRegister, MapReply, MapRequest, Message};

pub const IID: InstanceId = InstanceId(7);
pub const SECOND: Duration = Duration::from_secs(1);
pub const ID: (XtrId, SiteId) = (XtrId(0xfeed), SiteId(3));

pub fn at(s: u64) -> Instant {
    Instant::from_micros(s * 1_000_000)
}

pub fn ms(ms: u64) -> Instant {
    Instant::from_micros(ms * 1000)
}

pub fn prefix(s: &str) -> Prefix {
    s.parse().unwrap()
}

pub fn addr(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// The n-th host of 10.0.0.0/8.
pub fn host(n: u32) -> Prefix {
    Prefix::v4(0x0a00_0000 + n, 32).unwrap()
}

pub fn rlocs(addrs: &[&str]) -> RlocSet {
    let rloc = |a: &&str| Rloc { addr: addr(a), priority: 1, weight: 100 };
    RlocSet::new(addrs.iter().map(rloc).collect())
}

pub fn keys(secret: &str) -> Arc<KeyChain> {
    let secret = Secret::new(secret.as_bytes().to_vec());
    Arc::new(KeyChain::new(1, LispKey::new(secret, Algorithm::Sha256_128)))
}

/// As it is on the wire, signed.
pub fn signed(mut message: Message, keys: &KeyChain) -> (Message, Vec<u8>) {
    if let Message::MapNotify(notify) | Message::MapNotifyAck(notify) = &mut message {
        notify.authentication = keys.authentication();
    }
    let mut raw = Vec::new();
    message.encode(&mut raw);
    keys.sign(&mut raw).unwrap();
    let message = Message::decode(&raw).unwrap();
    (message, raw)
}

pub fn notify(nonce: u64, records: Vec<EidRecord>, keys: &KeyChain) -> (MapNotify, Vec<u8>) {
    let authentication = keys.authentication();
    let message = Message::MapNotify(MapNotify { nonce, authentication, records, id: None });
    match signed(message, keys) {
        (Message::MapNotify(notify), raw) => (notify, raw),
        (other, _) => panic!("{other:?}"),
    }
}

pub fn record(p: &str, rlocs: &RlocSet, version: u16, ttl_min: u32) -> EidRecord {
    EidRecord {
        ttl_min,
        action: NegativeAction::NoAction,
        authoritative: false,
        version: MapVersion(version),
        eid: record::eid(IID, prefix(p)),
        rlocs: record::rloc_records(rlocs, None, |_| false),
    }
}

pub fn negative(p: &str, action: NegativeAction, ttl_min: u32) -> EidRecord {
    record::negative(IID, prefix(p), action, ttl_min)
}

pub fn reply(nonce: u64, records: Vec<EidRecord>) -> MapReply {
    MapReply { probe: false, echo_nonce: false, nonce, records, security: None }
}

/// Messages sent, in order; each is put on the wire and read again, signed where it should be.
pub fn sent(out: &[Output]) -> Vec<(SocketAddr, Message)> {
    let send = |output: &Output| {
        let Output::Send { to, message, sign_with } = output else { return None };
        let mut raw = Vec::new();
        message.encode(&mut raw);
        if let Some(keys) = sign_with {
            keys.sign(&mut raw).unwrap();
            keys.verify(&raw).unwrap();
        }
        assert!(raw.len() <= 1400, "{} octets", raw.len());
        Some((*to, Message::decode(&raw).expect("what is sent can be read")))
    };
    out.iter().filter_map(send).collect()
}

pub fn registers(out: &[Output]) -> Vec<MapRegister> {
    let register = |(_, message)| match message {
        Message::MapRegister(register) => Some(register),
        _ => None,
    };
    sent(out).into_iter().filter_map(register).collect()
}

/// Map-Requests: whom they went to, and whether in an ECM.
pub fn requests(out: &[Output]) -> Vec<(IpAddr, bool, MapRequest)> {
    let request = |(to, message): (SocketAddr, Message)| match message {
        Message::MapRequest(request) => Some((to.ip(), false, request)),
        Message::Ecm(ecm) => match Message::decode(&ecm.message) {
            Ok(Message::MapRequest(request)) => Some((to.ip(), true, request)),
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    sent(out).into_iter().filter_map(request).collect()
}

pub fn acks(out: &[Output]) -> Vec<u64> {
    let ack = |(_, message)| match message {
        Message::MapNotifyAck(ack) => Some(ack.nonce),
        _ => None,
    };
    sent(out).into_iter().filter_map(ack).collect()
}

pub fn persisted(out: &[Output]) -> Vec<Persist> {
    let persist = |output: &Output| match output {
        Output::Persist(persist) => Some(*persist),
        _ => None,
    };
    out.iter().filter_map(persist).collect()
}

/// What the gateway is told, in words: "10.0.0.1/32 192.0.2.1", "10.0.0.1/32 -".
pub fn mappings(out: &[Output]) -> Vec<String> {
    let mapping = |output: &Output| match output {
        Output::SetMapping { prefix, rlocs, action, .. } if rlocs.is_empty() => {
            Some(format!("{prefix} {action:?}"))
        }
        Output::SetMapping { prefix, rlocs, .. } => {
            let addrs: Vec<_> = rlocs.iter().map(|r| r.addr.to_string()).collect();
            Some(format!("{prefix} {}", addrs.join(" ")))
        }
        Output::RemoveMapping { prefix, .. } => Some(format!("{prefix} -")),
        Output::SetReachable { rloc, reachable } => {
            Some(format!("{rloc} {}", if *reachable { "up" } else { "down" }))
        }
        _ => None,
    };
    out.iter().filter_map(mapping).collect()
}

/// Numbers without a pattern, for what an attacker makes up.
pub struct Guess(pub u64);

impl Guess {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0 ^ (self.0 >> 29)
    }
}
