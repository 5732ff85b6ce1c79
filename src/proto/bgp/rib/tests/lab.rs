//! A RIB with peers around it that keep what they are told, as routers would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;

use crate::proto::bgp::policy::{ExportPolicy, ImportPolicy};
use crate::proto::bgp::rib::*;
use crate::types::{Family, Instant, Prefix};
use crate::wire::bgp::{
    AsPath, AsSegment, Attributes, EncodedAttributes, MessageType, Negotiated, NextHop, Packer,
    RefreshKind, RouteRefresh, Update, next_frame,
};

pub const LOCAL_AS: u32 = 65000;
pub const ROUTER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);
pub const CLUSTER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

pub fn config() -> RibConfig {
    RibConfig { cluster_id: CLUSTER_ID, ..RibConfig::new(LOCAL_AS, ROUTER_ID, 7) }
}

pub fn p(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// 192.0.2.`number`
pub fn addr(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

pub fn info(kind: PeerKind, number: u8) -> PeerInfo {
    let ibgp = kind != PeerKind::External;
    PeerInfo {
        kind,
        negotiated: Negotiated {
            local_as: LOCAL_AS,
            peer_as: if ibgp { LOCAL_AS } else { 65100 + u32::from(number) },
            ibgp,
            four_octet_as: true,
            ipv4: true,
            ipv6: true,
            extended_next_hop_v4: false,
            max_len: 4096,
        },
        router_id: addr(number),
        addr: IpAddr::V4(addr(number)),
        local_v4: Some(addr(250)),
        local_v6: Some("2001:db8::250".parse().unwrap()),
        enhanced_refresh: false,
        import: ImportPolicy::accept_all(),
        export: ExportPolicy::send_all(),
    }
}

/// Next hop 198.51.100.`number`, or 2001:db8:ff::`number` for IPv6.
pub fn hop(family: Family, number: u8) -> NextHop {
    match family {
        Family::Ipv4 => NextHop::V4(Ipv4Addr::new(198, 51, 100, number)),
        Family::Ipv6 => {
            NextHop::from(IpAddr::V6(format!("2001:db8:ff::{number:x}").parse().unwrap()))
        }
    }
}

/// As an internal peer would announce a route with next hop `number`.
pub fn attributes(number: u8) -> Attributes {
    Attributes { local_pref: Some(100), ..Attributes::local(hop(Family::Ipv4, number)) }
}

pub fn as_path(list: &[u32]) -> AsPath {
    if list.is_empty() {
        AsPath::default()
    } else {
        AsPath(vec![AsSegment::Sequence(list.to_vec())])
    }
}

/// Bodies of the UPDATEs that say this.
pub fn bodies(
    attributes: &Attributes,
    n: &Negotiated,
    announce: &[Prefix],
    withdraw: &[Prefix],
) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for family in Family::ALL {
        let mut packer = Packer::withdraw(&mut out, family, n.max_len);
        withdraw.iter().filter(|x| x.family() == family).for_each(|x| packer.push(*x));
        packer.finish();
        let encoded = EncodedAttributes::new(attributes, n);
        let mut packer = Packer::announce(&mut out, &encoded, family, n.max_len).unwrap();
        announce.iter().filter(|x| x.family() == family).for_each(|x| packer.push(*x));
        packer.finish();
    }
    let mut rest = &out[..];
    let mut bodies = Vec::new();
    while let Some(frame) = next_frame(rest, n.max_len).unwrap() {
        bodies.push(frame.body.to_vec());
        rest = &rest[frame.len..];
    }
    bodies
}

/// What a peer heard, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Announce(Prefix, Box<Attributes>),
    Withdraw(Prefix),
    EndOfRib(Family),
    Refresh(RefreshKind, Family),
}

/// The other end of a session.
#[derive(Debug, Default)]
pub struct Router {
    pub table: BTreeMap<Prefix, Attributes>,
    /// Being refreshed: not repeated yet (RFC 7313).
    stale: BTreeSet<Prefix>,
    pub heard: Vec<Heard>,
    pub messages: usize,
    /// Withdrawals of what it never had.
    pub needless: usize,
}

impl Router {
    fn hear(&mut self, octets: &[u8], n: &Negotiated) {
        let mut rest = octets;
        while let Some(frame) = next_frame(rest, n.max_len).expect("we frame well") {
            rest = &rest[frame.len..];
            self.messages += 1;
            match frame.kind {
                MessageType::Update => self.hear_update(frame.body, n),
                MessageType::RouteRefresh => self.hear_refresh(frame.body),
                other => panic!("{other:?}"),
            }
        }
        assert!(rest.is_empty(), "whole messages only");
    }

    fn hear_update(&mut self, body: &[u8], n: &Negotiated) {
        // The peer reads with its own eyes: the AS numbers are the other way round.
        let theirs = Negotiated { local_as: n.peer_as, peer_as: n.local_as, ..*n };
        let update = Update::decode(body, &theirs).expect("we encode well");
        assert_eq!(update.walk.errors, [], "{body:?}");
        if let Some(family) = update.end_of_rib {
            self.heard.push(Heard::EndOfRib(family));
        }
        let unreach = update.walk.mp_unreach.map(|u| u.nlri);
        for prefix in update.withdrawn.iter().chain(unreach.iter().flat_map(|n| n.iter())) {
            self.needless += usize::from(self.table.remove(&prefix).is_none());
            self.stale.remove(&prefix);
            self.heard.push(Heard::Withdraw(prefix));
        }
        let reach = update.walk.mp_reach.map(|r| r.nlri);
        for prefix in update.nlri.iter().chain(reach.iter().flat_map(|n| n.iter())) {
            let attributes = update.walk.attributes.clone().unwrap();
            self.table.insert(prefix, attributes.clone());
            self.stale.remove(&prefix);
            self.heard.push(Heard::Announce(prefix, attributes.into()));
        }
    }

    fn hear_refresh(&mut self, body: &[u8]) {
        let refresh = RouteRefresh::decode(body).unwrap();
        let family = if refresh.afi == 1 { Family::Ipv4 } else { Family::Ipv6 };
        self.heard.push(Heard::Refresh(refresh.kind, family));
        let of_family = |prefix: &&Prefix| prefix.family() == family;
        match refresh.kind {
            RefreshKind::Borr => self.stale.extend(self.table.keys().filter(of_family)),
            RefreshKind::Eorr => {
                let gone: Vec<Prefix> = self.stale.iter().filter(of_family).copied().collect();
                assert_eq!(gone, [], "what the refresh did not repeat had been withdrawn");
            }
            other => panic!("{other:?}"),
        }
    }
}

pub struct Lab {
    pub rib: Rib,
    pub routers: BTreeMap<PeerId, Router>,
    pub infos: BTreeMap<PeerId, PeerInfo>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: RibConfig) -> Self {
        Self { rib: Rib::new(config), routers: BTreeMap::new(), infos: BTreeMap::new() }
    }

    /// Peers 1, 2, … of these kinds, with their initial dump behind them.
    pub fn of(kinds: &[PeerKind]) -> Self {
        let mut lab = Self::new();
        for (number, kind) in (1..).zip(kinds) {
            lab.up(number, info(*kind, number as u8));
        }
        lab.run();
        lab.forget();
        lab
    }

    pub fn up(&mut self, number: u16, info: PeerInfo) {
        self.infos.insert(PeerId(number), info.clone());
        self.routers.insert(PeerId(number), Router::default());
        self.rib.add_peer(PeerId(number), info);
    }

    pub fn down(&mut self, number: u16, keep: &[Family]) {
        self.routers.remove(&PeerId(number));
        self.rib.peer_down(PeerId(number), keep);
    }

    pub fn say(
        &mut self,
        number: u16,
        attributes: &Attributes,
        announce: &[Prefix],
        withdraw: &[Prefix],
    ) -> UpdateOutcome {
        let peer = PeerId(number);
        let n = self.infos[&peer].negotiated;
        let mut sum = UpdateOutcome::default();
        for body in bodies(attributes, &n, announce, withdraw) {
            let one = self.rib.handle_update(peer, &body, Instant::ZERO);
            assert_eq!((&one.error, &one.attribute_errors[..]), (&None, &[][..]));
            sum.announced += one.announced;
            sum.withdrawn += one.withdrawn;
            sum.rejected += one.rejected;
            sum.looped += one.looped;
            sum.full += one.full;
        }
        sum
    }

    pub fn flush(&mut self, budget: usize) {
        let mut sent: Vec<(PeerId, Bytes)> = Vec::new();
        self.rib.flush(budget, &mut |peer, octets| sent.push((peer, octets)));
        for (peer, octets) in sent {
            let n = self.infos[&peer].negotiated;
            self.routers.get_mut(&peer).expect("only peers that are up").hear(&octets, &n);
        }
    }

    pub fn run(&mut self) {
        while self.rib.has_pending() {
            self.flush(FLUSH_BUDGET);
        }
    }

    pub fn forget(&mut self) {
        self.routers.values_mut().for_each(|r| {
            r.heard.clear();
            r.messages = 0;
        });
    }

    /// What a peer heard since it was asked last.
    pub fn heard(&mut self, number: u16) -> Vec<Heard> {
        std::mem::take(&mut self.routers.get_mut(&PeerId(number)).unwrap().heard)
    }

    pub fn table(&self, number: u16) -> &BTreeMap<Prefix, Attributes> {
        &self.routers[&PeerId(number)].table
    }
}

/// Small, seeded, good enough (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
