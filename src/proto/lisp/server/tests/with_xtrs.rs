//! Both sides of the mapping service together, over a wire that loses: two ETRs between which a
//! host moves, an ITR that is subscribed to its pool, and a hall that believes every register.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::lab::*;
use crate::proto::lisp::server::*;
use crate::proto::lisp::xtr;
use crate::types::lisp::{Rloc, RlocSet};

const POOL: &str = "10.1.0.0/16";
const HOST: &str = "10.1.0.7/32";

struct World {
    server: MapServer,
    bound: Bound,
    xtrs: Vec<(IpAddr, xtr::Xtr)>,
    wire: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    now: Instant,
    generation: u16,
    /// Of a hundred datagrams, as many are lost.
    loss: u32,
    random: u32,
    /// Addresses of ETRs that were told that the host is elsewhere.
    moved_away: Vec<IpAddr>,
}

fn server_addr() -> SocketAddr {
    "198.51.100.254:4342".parse().unwrap()
}

fn etr(peer: &Peer) -> xtr::Xtr {
    let server = xtr::MapServer { addr: server_addr().ip(), keys: Arc::new(peer.keys.clone()) };
    let registrar = xtr::RegistrarConfig {
        servers: vec![server],
        id: peer.id,
        proxy_reply: true,
        merge: false,
        ttl_min: 10,
        nonce_below: 1000,
        notify_below: Default::default(),
    };
    let config = xtr::EtrConfig { registrar, rlocs: vec![peer.addr] };
    xtr::Xtr { etr: Some(xtr::Etr::new(config, [1; 32])), ..Default::default() }
}

fn itr(peer: &Peer, now: Instant) -> xtr::Xtr {
    let pool = xtr::MobilePrefix {
        iid: MOBILE,
        prefix: prefix(POOL),
        policy: xtr::Policy::Push(Arc::new(peer.keys.clone())),
    };
    let config = xtr::ItrConfig {
        prefixes: vec![pool],
        resolvers: vec![server_addr().ip()],
        rlocs: vec![peer.addr],
        pitr: false,
        id: peer.id,
        renew_every: Duration::from_secs(300),
        probe: None,
        cache_max: 1000,
        subscription_below: Default::default(),
    };
    xtr::Xtr { itr: Some(xtr::Itr::new(config, [2; 32], now)), ..Default::default() }
}

impl World {
    fn new(loss: u32) -> Self {
        let now = Instant::ZERO + Duration::from_secs(100);
        let peers = [Peer::etr(A, 1), Peer::etr(B, 1), Peer::itr(1)];
        let mut world = Self {
            server: MapServer::new(config(), &[], now),
            bound: Bound::default(),
            xtrs: vec![
                (peers[0].addr, etr(&peers[0])),
                (peers[1].addr, etr(&peers[1])),
                (peers[2].addr, itr(&peers[2], now)),
            ],
            wire: VecDeque::new(),
            now,
            generation: 0,
            loss,
            random: 1,
            moved_away: Vec::new(),
        };
        world.register(0, POOL);
        world.wait(120);
        world
    }

    /// The ETR of this number registers an EID with its own address.
    fn register(&mut self, number: usize, text: &str) {
        let (addr, xtr) = &mut self.xtrs[number];
        let rlocs = RlocSet::new(vec![Rloc { addr: *addr, priority: 1, weight: 100 }]);
        let registrar = &mut xtr.etr.as_mut().unwrap().registrar;
        assert!(registrar.set(MOBILE, prefix(text), rlocs, MapVersion::NULL));
    }

    fn put(&mut self, from: SocketAddr, to: SocketAddr, octets: Vec<u8>) {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (self.random >> 16) % 100 >= self.loss {
            self.wire.push_back((from, to, octets));
        }
    }

    fn take_server(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { to, message, sign_with } => {
                    let mut octets = Vec::new();
                    encode(&message, sign_with.as_ref(), &mut octets).unwrap();
                    self.put(server_addr(), to, octets);
                }
                Output::Registered { anchor, prefix, mobile: true, .. } => {
                    self.generation += 1;
                    // Their addresses are as the lab has them: the tenth of the anchor's number.
                    let mut mapping = at(AnchorId(anchor.0 * 10 + 1), self.generation);
                    mapping.anchor = anchor;
                    self.bound.0.insert(prefix, mapping);
                    let mut out = Vec::new();
                    self.server.publish(self.now, MOBILE, prefix, Some(mapping), &mut out);
                    self.take_server(out);
                }
                Output::Withdrawn { prefix, anchor, mobile: true, .. }
                | Output::Expired { prefix, anchor, mobile: true, .. } => self.end(prefix, anchor),
                _ => {}
            }
        }
    }

    fn end(&mut self, prefix: Prefix, anchor: AnchorId) {
        if self.bound.0.get(&prefix).is_some_and(|m| m.anchor == anchor) {
            self.bound.0.remove(&prefix);
            let mut out = Vec::new();
            self.server.publish(self.now, MOBILE, prefix, None, &mut out);
            self.take_server(out);
        }
    }

    fn take_xtr(&mut self, number: usize, outputs: Vec<xtr::Output>) {
        let (addr, _) = self.xtrs[number];
        for output in outputs {
            match output {
                xtr::Output::Send { to, message, sign_with } => {
                    let mut octets = Vec::new();
                    message.encode(&mut octets);
                    if let Some(keys) = sign_with {
                        keys.sign(&mut octets).unwrap();
                    }
                    self.put(SocketAddr::new(addr, 4342), to, octets);
                }
                xtr::Output::MovedAway { iid, prefix, .. } => {
                    self.moved_away.push(addr);
                    let etr = self.xtrs[number].1.etr.as_mut().unwrap();
                    etr.registrar.withdraw(iid, prefix, self.now);
                }
                _ => {}
            }
        }
    }

    fn wait(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        loop {
            for number in 0..self.xtrs.len() {
                let mut out = Vec::new();
                self.xtrs[number].1.handle_timeout(self.now, &mut out);
                self.take_xtr(number, out);
            }
            let mut out = Vec::new();
            self.server.handle_timeout(self.now, &mut out);
            self.take_server(out);
            while let Some((from, to, octets)) = self.wire.pop_front() {
                let message = Message::decode(&octets).unwrap();
                if to.ip() == server_addr().ip() {
                    let mut out = Vec::new();
                    self.server.handle(self.now, from, &octets, message, &self.bound, &mut out);
                    self.take_server(out);
                } else if let Some(n) = self.xtrs.iter().position(|(addr, _)| *addr == to.ip()) {
                    let mut out = Vec::new();
                    let xtr = &mut self.xtrs[n].1;
                    xtr.handle_message(from, to.ip(), &message, &octets, self.now, &mut out);
                    self.take_xtr(n, out);
                }
            }
            let due = self.xtrs.iter().map(|(_, x)| x.poll_timeout());
            let due = due.chain(self.server.poll_timeout()).min().unwrap_or(until);
            // A step at least, so that what is due again and again lets the time pass.
            let due = due.max(self.now + Duration::from_millis(1));
            if due > until {
                break;
            }
            self.now = due;
        }
        self.now = until;
    }

    /// Where the ITR sends packets for the host.
    fn seen(&self) -> Vec<IpAddr> {
        let itr = self.xtrs[2].1.itr.as_ref().unwrap();
        let found = itr.lookup(prefix(HOST));
        found.map(|(_, m)| m.rlocs.iter().map(|r| r.addr).collect()).unwrap_or_default()
    }
}

/// Moves over a wire that loses nothing, and one that loses a third: the ITR always learns where
/// the host is, unasked, and the ETR that it has left learns that it is gone.
#[test]
fn every_move_reaches_the_subscriber_and_the_old_etr() {
    for loss in [0, 33] {
        let mut world = World::new(loss);
        assert_eq!(world.seen(), [world.xtrs[0].0], "to its pool's anchor, loss {loss}");
        for step in 0..24 {
            let (new, old) = (step % 2, (step + 1) % 2);
            world.moved_away.clear();
            world.register(new, HOST);
            world.wait(if loss == 0 { 1 } else { 60 });
            assert_eq!(world.seen(), [world.xtrs[new].0], "step {step}, loss {loss}");
            if step > 0 {
                assert_eq!(world.moved_away, [world.xtrs[old].0], "step {step}, loss {loss}");
            }
        }
        if loss == 0 {
            assert_eq!(world.server.counters().given_up, 0);
            assert_eq!(world.server.retransmitted(), (0, 0));
        }
        // Nothing goes on happening, and refreshes keep what there is.
        let generation = world.generation;
        world.wait(900);
        assert_eq!(world.generation, generation, "loss {loss}");
        assert_eq!(world.seen(), [world.xtrs[1].0]);
        assert_eq!(world.server.sizes().eids, 2);
        let refused = &world.server.counters().refused;
        let harmless = [Refusal::MovedAway, Refusal::UnknownAck, Refusal::Replay];
        assert!(refused.keys().all(|r| harmless.contains(r)), "{refused:?}");
    }
}

/// A pair (RFC 8060 §4.8) is published to our own ITR too, which has no use for it: it says so by
/// acknowledging it, and what it knows stays as it is.
#[test]
fn a_published_pair_is_acknowledged_and_changes_nothing() {
    let mut world = World::new(0);
    let mut etr = Peer { nonce: u64::MAX / 2, ..Peer::etr(A, 9) };
    let pair = crate::wire::lisp::Eid::SourceDestination {
        iid: MOBILE,
        source: prefix("203.0.113.0/24"),
        destination: prefix(POOL),
    };
    let register = etr.register(&[crate::wire::lisp::EidRecord {
        eid: pair,
        ..record(MOBILE, POOL, &["192.0.2.99"])
    }]);
    let octets = etr.signed(Message::MapRegister(register));
    world.put(etr.from(), server_addr(), octets);
    let before = world.seen();
    world.wait(60);
    assert_eq!((world.server.sizes().pairs, world.seen()), (1, before));
    assert_eq!(world.server.sizes().outstanding, 0);
    assert_eq!((world.server.counters().given_up, world.server.retransmitted()), (0, (0, 0)));
}
