//! What the tests are written with.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::auth::{Algorithm, KeyChain, LispKey, Secret};
use crate::proto::lisp::server::*;
use crate::types::lisp::{MapVersion, NegativeAction, SiteId};
use crate::wire::lisp::{
    Ecm, Eid, EidRecord, MapNotify, MapRegister, MapReply, MapRequest, RequestRecord, RlocAddress,
    RlocRecord,
};

pub const MOBILE: InstanceId = InstanceId(7);
pub const A: AnchorId = AnchorId(1);
pub const B: AnchorId = AnchorId(2);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

pub fn eid(iid: InstanceId, text: &str) -> Eid {
    Eid::Prefix { iid, prefix: prefix(text) }
}

pub fn keys(secret: &str) -> KeyChain {
    KeyChain::new(1, LispKey::new(Secret::new(secret.into()), Algorithm::Sha256_128))
}

pub fn shared(secret: &str) -> Security {
    Security { key_id: 1, secret: Secret::new(secret.into()) }
}

/// What ITR `number` of [`Peer::itr`] shares with its Map-Resolver.
pub fn secured_itr(number: u128) -> SecuredItr {
    SecuredItr {
        xtr_id: XtrId(1000 + number),
        key: shared(&format!("questions of itr {number}")),
        rlocs: Vec::new(),
    }
}

pub fn rloc(addr: &str) -> RlocRecord {
    RlocRecord {
        priority: 1,
        weight: 100,
        multicast_priority: 255,
        multicast_weight: 0,
        local: true,
        probed: false,
        reachable: true,
        address: RlocAddress::Ip(ip(addr)),
    }
}

pub fn record(iid: InstanceId, eid_prefix: &str, rlocs: &[&str]) -> EidRecord {
    EidRecord {
        ttl_min: 10,
        action: NegativeAction::NoAction,
        authoritative: true,
        version: MapVersion::NULL,
        eid: eid(iid, eid_prefix),
        rlocs: rlocs.iter().map(|r| rloc(r)).collect(),
    }
}

/// What the location database says.
#[derive(Default)]
pub struct Bound(pub BTreeMap<Prefix, Mapping>);

impl Mappings for Bound {
    fn find(&self, iid: InstanceId, addr: IpAddr) -> Option<(Prefix, Mapping)> {
        let all = self.0.iter().filter(|(p, _)| iid == MOBILE && p.contains_addr(addr));
        all.max_by_key(|(p, _)| p.len()).map(|(p, m)| (*p, *m))
    }
}

pub fn at(anchor: AnchorId, version: u16) -> Mapping {
    let fe_e =
        Locator { ipv4: Some([192, 0, 2, u8::try_from(anchor.0).unwrap()].into()), ipv6: None };
    Mapping { anchor, fe_e, version: MapVersion(version) }
}

/// An xTR with a key: the ETR of a site, or an ITR that subscribes.
#[derive(Clone)]
pub struct Peer {
    pub keys: KeyChain,
    pub id: Option<(XtrId, SiteId)>,
    pub addr: IpAddr,
    pub nonce: u64,
}

impl Peer {
    pub fn etr(anchor: AnchorId, xtr: u128) -> Self {
        let addr = IpAddr::from([192, 0, 2, u8::try_from(anchor.0 * 10 + xtr as u32).unwrap()]);
        Self {
            keys: keys(&format!("site {anchor}")),
            id: Some((XtrId(xtr), SiteId(u64::from(anchor.0)))),
            addr,
            nonce: 100,
        }
    }

    pub fn itr(number: u128) -> Self {
        Self {
            keys: keys(&format!("itr {number}")),
            id: Some((XtrId(1000 + number), SiteId(9))),
            addr: IpAddr::from([198, 51, 100, u8::try_from(number).unwrap()]),
            nonce: 5000,
        }
    }

    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(self.addr, 40_000)
    }

    pub fn register(&mut self, records: &[EidRecord]) -> MapRegister {
        self.nonce += 1;
        MapRegister {
            proxy_reply: true,
            security_capable: false,
            eid_notify: false,
            use_ttl: false,
            merge: false,
            want_notify: true,
            nonce: self.nonce,
            authentication: self.keys.authentication(),
            records: records.to_vec(),
            id: self.id,
        }
    }

    pub fn signed(&self, message: Message) -> Vec<u8> {
        let mut octets = Vec::new();
        message.encode(&mut octets);
        self.keys.sign(&mut octets).unwrap();
        octets
    }

    pub fn request(&mut self, eids: &[(Eid, bool)]) -> MapRequest {
        self.nonce += 1;
        let notify = eids.iter().any(|(_, notify)| *notify);
        MapRequest {
            authoritative: false,
            probe: false,
            smr: false,
            pitr: false,
            smr_invoked: false,
            local_xtr: false,
            dont_reply: false,
            nonce: self.nonce,
            source_eid: Eid::None,
            itr_rlocs: vec![RlocAddress::Ip(self.addr)],
            records: eids
                .iter()
                .map(|(eid, notify)| RequestRecord { notify: *notify, eid: eid.clone() })
                .collect(),
            map_reply: None,
            id: self.id.filter(|_| notify),
        }
    }
}

pub fn config() -> ServerConfig {
    let site = |anchor: AnchorId, own: &str| Site {
        name: format!("site {anchor}"),
        anchor,
        site_id: Some(SiteId(u64::from(anchor.0))),
        xtr_ids: Vec::new(),
        keys: keys(&format!("site {anchor}")),
        security: vec![shared(&format!("site {anchor}"))],
        eid_prefixes: vec![
            (InstanceId(0), prefix(own)),
            (InstanceId(0), prefix("2001:db8:100::/40")),
            (MOBILE, prefix("10.0.0.0/8")),
        ],
        accept_more_specifics: true,
        proxy_reply: ProxyReply::AsAsked,
        allow_merge: true,
    };
    let itr = |number: u128| {
        let peer = Peer::itr(number);
        Itr {
            xtr_id: peer.id.unwrap().0,
            site_id: None,
            keys: peer.keys,
            rlocs: vec![peer.addr, ip(&format!("2001:db8:aaaa::{number}"))],
            configured: Vec::new(),
            may_change: true,
        }
    };
    ServerConfig {
        sites: vec![site(A, "172.16.0.0/16"), site(B, "172.17.0.0/16")],
        itrs: (1..=3).map(itr).collect(),
        mobile_iid: MOBILE,
        mobile_pools: vec![prefix("10.1.0.0/16")],
        denied: Vec::new(),
        security: SecurityConfig {
            itrs: (1..=3).map(secured_itr).collect(),
            required: false,
            allow_sha1: false,
        },
        record_ttl_min: 3,
        outside_ttl_min: 15,
        unregistered_ttl_min: 1,
        temporary_subscription: Duration::from_secs(900),
        limits: ServerLimits::default(),
        seed: 1,
        first_nonce: 1 << 40,
        warm_up: std::time::Duration::ZERO,
    }
}

pub struct Lab {
    pub server: MapServer,
    pub bound: Bound,
    pub now: Instant,
    pub out: Vec<Output>,
    /// Everything that was to be written down.
    pub stored: Vec<NonceRecord>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: ServerConfig) -> Self {
        let now = Instant::ZERO + Duration::from_secs(100);
        Self {
            server: MapServer::new(config, &[], now),
            bound: Bound::default(),
            now,
            out: Vec::new(),
            stored: Vec::new(),
        }
    }

    /// A new server with what the old one has written down.
    pub fn restart(&mut self, config: ServerConfig) {
        self.server = MapServer::new(config, &self.stored, self.now);
    }

    /// One datagram; what comes of it is in `out` afterwards.
    pub fn receive(&mut self, from: SocketAddr, octets: &[u8]) {
        self.out.clear();
        let message = Message::decode(octets).unwrap();
        self.server.handle(self.now, from, octets, message, &self.bound, &mut self.out);
        self.take_out();
    }

    fn take_out(&mut self) {
        for output in &self.out {
            if let Output::Persist(record) = output {
                self.stored.push(record.clone());
            }
        }
    }

    pub fn register(&mut self, etr: &mut Peer, records: &[EidRecord]) {
        let register = etr.register(records);
        self.send_register(etr, register);
    }

    pub fn send_register(&mut self, etr: &Peer, register: MapRegister) {
        let octets = etr.signed(Message::MapRegister(register));
        self.receive(etr.from(), &octets);
    }

    pub fn request(&mut self, itr: &mut Peer, eids: &[(Eid, bool)]) {
        let request = itr.request(eids);
        self.send_request(itr, &request);
    }

    /// In an ECM, as ITRs do it.
    pub fn send_request(&mut self, itr: &Peer, request: &MapRequest) {
        let octets = encapsulated(itr, request);
        self.receive(itr.from(), &octets);
    }

    pub fn publish(&mut self, text: &str, mapping: Option<Mapping>) {
        self.out.clear();
        match mapping {
            Some(mapping) => self.bound.0.insert(prefix(text), mapping),
            None => self.bound.0.remove(&prefix(text)),
        };
        self.server.publish(self.now, MOBILE, prefix(text), mapping, &mut self.out);
        self.take_out();
    }

    /// Acknowledges what was sent to an xTR.
    pub fn ack(&mut self, peer: &Peer, notify: &MapNotify) {
        let octets = peer.signed(Message::MapNotifyAck(notify.clone()));
        self.receive(SocketAddr::new(peer.addr, 4342), &octets);
    }

    /// Lets time pass, with every timeout on the way.
    pub fn wait(&mut self, seconds: u64) {
        self.out.clear();
        let until = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.server.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.server.handle_timeout(self.now, &mut self.out);
        }
        self.now = until;
        self.take_out();
    }

    /// The Map-Notify messages that were sent, each verified with the key of its receiver.
    pub fn notifies(&self, peer: &Peer) -> Vec<MapNotify> {
        let to_peer = |output: &Output| match output {
            Output::Send { to, message: Message::MapNotify(_), sign_with, .. }
                if to.ip() == peer.addr =>
            {
                assert_eq!(to.port(), 4342);
                let mut octets = Vec::new();
                let Output::Send { message, .. } = output else { unreachable!() };
                encode(message, sign_with.as_ref(), &mut octets).unwrap();
                peer.keys.verify(&octets).expect("signed with the key of its receiver");
                match Message::decode(&octets).unwrap() {
                    Message::MapNotify(notify) => Some(notify),
                    _ => None,
                }
            }
            _ => None,
        };
        self.out.iter().filter_map(to_peer).collect()
    }

    pub fn replies(&self) -> Vec<(SocketAddr, MapReply)> {
        let reply = |output: &Output| match output {
            Output::Send { to, message: Message::MapReply(reply), sign_with: None } => {
                Some((*to, reply.clone()))
            }
            _ => None,
        };
        self.out.iter().filter_map(reply).collect()
    }

    /// The one record of the one reply.
    pub fn reply(&self) -> EidRecord {
        let [(_, reply)] = &self.replies()[..] else { panic!("one reply: {:?}", self.out) };
        let [record] = &reply.records[..] else { panic!("one record: {reply:?}") };
        record.clone()
    }

    pub fn forwarded(&self) -> Vec<(SocketAddr, Ecm)> {
        let ecm = |output: &Output| match output {
            Output::Send { to, message: Message::Ecm(ecm), .. } => Some((*to, ecm.clone())),
            _ => None,
        };
        self.out.iter().filter_map(ecm).collect()
    }

    pub fn refusals(&self) -> Vec<Refusal> {
        let refusal = |output: &Output| match output {
            Output::Refused { reason, .. } => Some(*reason),
            _ => None,
        };
        self.out.iter().filter_map(refusal).collect()
    }

    /// What was registered, withdrawn and expired, as text.
    pub fn events(&self) -> Vec<String> {
        let event = |output: &Output| match output {
            Output::Registered { anchor, prefix, what, version, .. } => {
                Some(format!("{what:?} {prefix} at {} v{}", anchor.0, version.0))
            }
            Output::Withdrawn { anchor, prefix, .. } => {
                Some(format!("Withdrawn {prefix} by {}", anchor.0))
            }
            Output::Expired { prefix, .. } => Some(format!("Expired {prefix}")),
            Output::Send { .. } | Output::Persist(_) | Output::Refused { .. } => None,
        };
        self.out.iter().filter_map(event).collect()
    }
}

pub fn encapsulated(itr: &Peer, request: &MapRequest) -> Vec<u8> {
    let mut message = Vec::new();
    Message::MapRequest(request.clone()).encode(&mut message);
    let destination = match request.records.first().map(|r| &r.eid) {
        Some(Eid::Prefix { prefix, .. }) => prefix.addr(),
        _ => itr.addr,
    };
    let ecm = Ecm {
        ddt: false,
        security: None,
        source: (itr.addr, 50_000),
        destination: (destination, 4342),
        message,
    };
    let mut octets = Vec::new();
    Message::Ecm(ecm).encode(&mut octets);
    octets
}

/// The addresses of a record.
pub fn addrs(record: &EidRecord) -> Vec<String> {
    record.rlocs.iter().filter_map(|r| r.address.ip()).map(|a| a.to_string()).collect()
}

pub fn named(record: &EidRecord) -> String {
    match &record.eid {
        Eid::Prefix { iid, prefix } => format!("{} {prefix}", iid.0),
        other => format!("{other:?}"),
    }
}
