//! Random use, and a naive model beside it: in the end every peer must hold exactly what the model
//! says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::lab::*;
use crate::proto::bgp::policy::{PrefixFilter, PrefixRule};
use crate::proto::bgp::rib::*;
use crate::types::{Family, Prefix};
use crate::wire::bgp::attributes::{NO_ADVERTISE, NO_EXPORT};
use crate::wire::bgp::{AsSegment, Attributes, NextHop, Origin};

const LOCAL: u16 = u16::MAX;

/// Everything as maps; every question answered from the beginning.
#[derive(Default)]
struct Model {
    peers: BTreeMap<u16, PeerInfo>,
    paths: BTreeMap<Prefix, BTreeMap<u16, Attributes>>,
    metrics: BTreeMap<IpAddr, Option<u32>>,
}

impl Model {
    fn announce(&mut self, peer: u16, attributes: &Attributes, prefix: Prefix) {
        let mut a = attributes.clone();
        let info = &self.peers[&peer];
        let path_has_us = a.as_path.0.iter().any(|s| match s {
            AsSegment::Sequence(l) | AsSegment::Set(l) => l.contains(&LOCAL_AS),
            _ => false,
        });
        let internal = info.kind != PeerKind::External;
        if !internal {
            (a.local_pref, a.originator_id, a.cluster_list) = (None, None, vec![]);
        }
        if info.import.local_pref.is_some() {
            a.local_pref = info.import.local_pref;
        }
        let looped = path_has_us
            || internal && a.originator_id == Some(ROUTER_ID)
            || internal && a.cluster_list.contains(&CLUSTER_ID);
        if looped || !info.import.filter.permits(prefix) {
            self.withdraw(peer, prefix);
        } else {
            self.paths.entry(prefix).or_default().insert(peer, a);
        }
    }

    fn withdraw(&mut self, peer: u16, prefix: Prefix) {
        if let Some(paths) = self.paths.get_mut(&prefix) {
            paths.remove(&peer);
        }
    }

    fn forget(&mut self, peer: u16, keep: impl Fn(Prefix) -> bool) {
        for (prefix, paths) in &mut self.paths {
            if !keep(*prefix) {
                paths.remove(&peer);
            }
        }
    }

    /// RFC 4271 §9.1.2.2 by sorting and striking out, on the attributes themselves.
    fn best(&self, prefix: Prefix) -> Option<(u16, &Attributes)> {
        let mut c: Vec<(u16, &Attributes)> =
            self.paths.get(&prefix)?.iter().map(|(p, a)| (*p, a)).collect();
        if let Some(own) = c.iter().find(|(p, _)| *p == LOCAL) {
            return Some(*own);
        }
        let metric =
            |a: &Attributes| self.metrics.get(&a.next_hop.addr()).copied().unwrap_or(Some(0));
        c.retain(|(_, a)| metric(a).is_some());
        let list = |a: &Attributes| match a.as_path.0.first() {
            Some(AsSegment::Sequence(l)) => l.clone(),
            _ => vec![],
        };
        let mut keep = |key: &dyn Fn(u16, &Attributes) -> i64| {
            if let Some(least) = c.iter().map(|(p, a)| key(*p, a)).min() {
                c.retain(|(p, a)| key(*p, a) == least);
            }
            c.clone()
        };
        keep(&|_, a| -i64::from(a.local_pref.unwrap_or(100)));
        keep(&|_, a| list(a).len() as i64);
        let tied = keep(&|_, a| a.origin as i64);
        keep(&|_, a| {
            let better = |b: &Attributes| {
                list(a).first() == list(b).first() && b.med.unwrap_or(0) < a.med.unwrap_or(0)
            };
            i64::from(tied.iter().any(|(_, b)| better(b)))
        });
        keep(&|p, _| i64::from(self.peers[&p].kind != PeerKind::External));
        keep(&|_, a| i64::from(metric(a).unwrap()));
        keep(&|p, a| i64::from(u32::from(a.originator_id.unwrap_or(self.peers[&p].router_id))));
        keep(&|_, a| a.cluster_list.len() as i64);
        let left = keep(&|p, _| match self.peers[&p].addr {
            IpAddr::V4(a) => i64::from(u32::from(a)),
            IpAddr::V6(_) => unreachable!(),
        });
        assert!(left.len() < 2, "addresses differ");
        left.first().copied()
    }

    fn expected(&self, to: u16) -> BTreeMap<Prefix, Attributes> {
        let info = &self.peers[&to];
        let mut table = BTreeMap::new();
        for prefix in self.paths.keys() {
            let Some((from, a)) = self.best(*prefix) else { continue };
            if from == to || !info.export.filter.permits(*prefix) {
                continue;
            }
            let from_kind = self.peers.get(&from).map(|i| i.kind);
            let mut a = a.clone();
            if a.communities.contains(&NO_ADVERTISE) {
                continue;
            }
            match info.kind {
                PeerKind::External => {
                    if a.communities.contains(&NO_EXPORT) {
                        continue;
                    }
                    (a.local_pref, a.originator_id, a.cluster_list) = (None, None, vec![]);
                    match a.as_path.0.first_mut() {
                        Some(AsSegment::Sequence(l)) => l.insert(0, LOCAL_AS),
                        _ => a.as_path = as_path(&[LOCAL_AS]),
                    }
                    if from != LOCAL {
                        a.med = None;
                        a.next_hop = match prefix.family() {
                            Family::Ipv4 => NextHop::V4(info.local_v4.unwrap()),
                            Family::Ipv6 => NextHop::from(IpAddr::V6(info.local_v6.unwrap())),
                        };
                    }
                }
                kind => {
                    match from_kind {
                        Some(PeerKind::NonClient) if kind == PeerKind::NonClient => continue,
                        Some(PeerKind::Client | PeerKind::NonClient) => {
                            a.originator_id.get_or_insert(self.peers[&from].router_id);
                            a.cluster_list.insert(0, CLUSTER_ID);
                        }
                        Some(PeerKind::External) | None => {}
                    }
                    a.local_pref.get_or_insert(100);
                }
            }
            table.insert(*prefix, a);
        }
        table
    }
}

fn random_attributes(r: &mut Random, family: Family, info: Option<&PeerInfo>) -> Attributes {
    let mut a = Attributes::local(hop(family, r.below(4) as u8));
    a.local_pref = Some(*r.pick(&[100, 100, 100, 200]));
    let mut path = vec![];
    if let Some(info) = info.filter(|i| i.kind == PeerKind::External) {
        path.push(info.negotiated.peer_as);
    }
    for _ in 0..r.below(3) {
        path.push(*r.pick(&[64601, 64602]));
    }
    if r.one_in(20) {
        path.push(LOCAL_AS);
    }
    a.as_path = as_path(&path);
    a.med = (!r.one_in(3)).then(|| r.below(3) as u32);
    if r.one_in(4) {
        a.origin = Origin::Incomplete;
    }
    if r.one_in(8) {
        a.communities.push(*r.pick(&[NO_EXPORT, NO_ADVERTISE, 42]));
    }
    if info.is_none_or(|i| i.kind == PeerKind::External) {
        a.local_pref = info.is_none().then_some(300);
        return a;
    }
    if r.one_in(3) {
        a.originator_id = Some(*r.pick(&[addr(77), addr(3), ROUTER_ID]));
        for _ in 0..r.below(3) {
            let id = *r.pick(&[Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), CLUSTER_ID]);
            a.cluster_list.push(id);
        }
    }
    a
}

fn random_info(r: &mut Random, number: u16) -> PeerInfo {
    let kind = match number {
        0..=4 => PeerKind::Client,
        5..=6 => PeerKind::NonClient,
        _ => PeerKind::External,
    };
    let mut i = info(kind, number as u8);
    i.enhanced_refresh = number.is_multiple_of(2);
    let some = PrefixFilter::Permit(vec![
        PrefixRule::or_longer(p("10.0.0.0/28")),
        PrefixRule::or_longer(p("::/0")),
    ]);
    if r.one_in(4) {
        i.export.filter = some.clone();
    }
    if r.one_in(4) {
        i.import.filter = some;
    }
    if r.one_in(4) {
        i.import.local_pref = Some(150);
    }
    i
}

fn universe() -> Vec<Prefix> {
    let mut all: Vec<Prefix> = (0..40).map(|n| p(&format!("10.0.0.{n}/32"))).collect();
    all.extend((0..20).map(|n| p(&format!("2001:db8::{n:x}/128"))));
    all.push(p("10.0.0.0/24"));
    all
}

fn run(seed: u64, steps: usize) -> Lab {
    let mut r = Random::new(seed);
    let mut lab = Lab::new();
    let mut model = Model::default();
    let all = universe();
    let peers: Vec<u16> = (1..=9).collect();
    for step in 0..steps {
        let peer = *r.pick(&peers);
        let up = lab.routers.contains_key(&PeerId(peer));
        match r.below(40) {
            0..20 if up => {
                let family = *r.pick(&Family::ALL);
                let i = lab.infos[&PeerId(peer)].clone();
                let a = random_attributes(&mut r, family, Some(&i));
                let some: Vec<Prefix> = (0..1 + r.below(5))
                    .map(|_| *r.pick(&all))
                    .filter(|x| x.family() == family)
                    .collect();
                lab.say(peer, &a, &some, &[]);
                some.iter().for_each(|x| model.announce(peer, &a, *x));
            }
            20..26 if up => {
                let some: Vec<Prefix> = (0..1 + r.below(8)).map(|_| *r.pick(&all)).collect();
                lab.say(peer, &attributes(0), &[], &some);
                some.iter().for_each(|x| model.withdraw(peer, *x));
            }
            26..28 => {
                let prefix = *r.pick(&all);
                if r.one_in(2) {
                    let a = random_attributes(&mut r, prefix.family(), None);
                    assert!(lab.rib.originate(prefix, a.clone()));
                    model.paths.entry(prefix).or_default().insert(LOCAL, a);
                } else {
                    lab.rib.withdraw_local(prefix);
                    model.withdraw(LOCAL, prefix);
                }
            }
            28..33 => lab.rib.set_congested(PeerId(peer), r.one_in(2)),
            33 => {
                let family = *r.pick(&Family::ALL);
                let next_hop = hop(family, r.below(4) as u8).addr();
                let metric = (!r.one_in(3)).then(|| r.below(3) as u32);
                lab.rib.set_next_hop_metrics(&[(next_hop, metric)]);
                model.metrics.insert(next_hop, metric);
            }
            34 if up => lab.rib.handle_refresh(PeerId(peer), *r.pick(&Family::ALL)),
            35..37 if up => {
                let keep: Vec<Family> = Family::ALL.into_iter().filter(|_| r.one_in(2)).collect();
                lab.down(peer, &keep);
                model.forget(peer, |prefix| keep.contains(&prefix.family()));
                // A second restart before the sweep: see `restart` in the tests of receiving.
                if r.one_in(2) {
                    for family in Family::ALL {
                        lab.rib.sweep_stale(PeerId(peer), family);
                        model.forget(peer, |prefix| prefix.family() != family);
                    }
                } else {
                    let i = lab.infos[&PeerId(peer)].clone();
                    lab.up(peer, i);
                    for family in Family::ALL {
                        lab.rib.sweep_stale(PeerId(peer), family);
                        model.forget(peer, |prefix| prefix.family() != family);
                    }
                }
            }
            37..39 if !up => {
                let i = random_info(&mut r, peer);
                model.peers.insert(peer, i.clone());
                lab.up(peer, i);
            }
            _ => lab.flush(1 + r.below(30)),
        }
        if step % 97 == 96 {
            for peer in &peers {
                lab.rib.set_congested(PeerId(*peer), false);
            }
            lab.run();
            for (peer, router) in &lab.routers {
                let expected = model.expected(peer.0);
                assert_eq!(router.table, expected, "seed {seed} step {step} {peer:?}");
                let told = Family::ALL.into_iter().flat_map(|family| {
                    lab.rib.advertised(*peer, family, Cursor::default(), 1_000).0
                });
                assert_eq!(told.collect::<BTreeMap<_, _>>(), expected, "seed {seed} step {step}");
                assert_eq!(router.needless, 0, "seed {seed} step {step} {peer:?}");
                for family in Family::ALL {
                    assert!(lab.rib.in_sync(*peer, family), "seed {seed} step {step} {peer:?}");
                }
            }
        }
    }
    lab
}

#[test]
fn every_peer_ends_with_what_the_model_says() {
    for seed in 0..60 {
        run(seed, 1_500);
    }
}

/// Nothing is left behind when everybody has gone: no entry, and no set but those that the block
/// cache keeps.
#[test]
fn everything_is_given_back() {
    for seed in 100..110 {
        let mut lab = run(seed, 700);
        for peer in lab.routers.keys().copied().collect::<Vec<_>>() {
            lab.down(peer.0, &[]);
        }
        for prefix in universe() {
            lab.rib.withdraw_local(prefix);
        }
        lab.run();
        for family in Family::ALL {
            assert_eq!(lab.rib.counts(family), FamilyCounts::default(), "seed {seed}");
        }
        lab.rib.forget_blocks();
        assert_eq!(lab.rib.attribute_sets(), 0, "seed {seed}");
    }
}
