//! Who owns what, by the naive model (the newest physical attachment does), and whether everybody
//! agrees once all is quiet.

use std::net::IpAddr;
use std::time::Duration;

use killick::types::Prefix;

use super::plan::{ANCHORS, Mode};
use super::router::Router;
use super::world::{Actor, Host, World, anchor_id, locator};

fn next_hops(who: usize) -> [IpAddr; 2] {
    let locator = locator(who);
    [locator.ipv4.unwrap().into(), locator.ipv6.unwrap().into()]
}

fn routers(world: &World) -> impl Iterator<Item = (usize, &Router)> {
    world.slots.iter().enumerate().filter_map(|(who, slot)| match &slot.actor {
        Some(Actor::Router(router)) => Some((who, router)),
        _ => None,
    })
}

/// At a quiet time, how long a router may lead astray after a move: the host speaks within 20 ms.
const ASTRAY_MAX: Duration = Duration::from_millis(300);
/// Nothing may change any more for so long before the end.
const STILL: Duration = Duration::from_secs(20);

/// All that is wrong, in words.
pub fn quiet(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    if world.last_change + STILL > world.now {
        wrong.push(format!("not quiet: something changed at {}", world.last_change));
    }
    if world.plan.calm {
        if world.misled_longest > ASTRAY_MAX {
            wrong.push(format!("traffic went astray for {:?}", world.misled_longest));
        }
        wrong.extend(world.relapses.iter().cloned());
        for who in 0..ANCHORS {
            let Some(counters) = world.node(who).map(|n| n.counters) else { continue };
            let killick::node::Counters {
                handovers_provisional: 0,
                duplicate_anchors: 0,
                reasserted: 0,
                unauthorised_claims: 0,
                ..
            } = counters
            else {
                wrong.push(format!("{who}: trouble in a calm run: {counters:?}"));
                continue;
            };
        }
    }
    for (who, slot) in world.slots.iter().enumerate() {
        if slot.actor.is_none() {
            wrong.push(format!("{who} is still dead"));
        }
    }
    for who in 0..world.plan.nodes() {
        let Some(node) = world.node(who) else { continue };
        if node.mctx.active() != 0 {
            let transfers = node.mctx.transfers(world.now, 10);
            wrong.push(format!("{who}: transfers left over: {transfers:?}"));
        }
        if node.unfinished() != 0 {
            wrong.push(format!("{who}: {} handovers left over", node.unfinished()));
        }
        if node.is_recovering() {
            wrong.push(format!("{who}: still recovering"));
        }
    }
    for (i, host) in world.hosts.iter().enumerate() {
        let at = wrong.len();
        for ip in &host.addrs {
            prefix(world, host, Prefix::host(*ip), &mut wrong);
        }
        for text in &mut wrong[at..] {
            *text = format!("host {i} (at {:?}, home {:?}): {text}", host.at, host.home);
        }
    }
    wrong
}

fn prefix(world: &World, host: &Host, prefix: Prefix, wrong: &mut Vec<String>) {
    let owner = host.at.map(|place| place.anchor);
    let at_home = owner.is_some() && owner == host.home;
    let client = world.plan.mode == Mode::Controller;
    for who in 0..ANCHORS {
        let Some(node) = world.node(who) else { continue };
        let bound = node.location.find(prefix);
        let delivered = world.slots[who].kernel.get(&prefix);
        let announced = node.iec.is_announced(prefix);
        let stage = node.iec.stage(prefix);
        if owner == Some(who) {
            if bound.is_none_or(|b| b.anchor != anchor_id(who) || b.mn != host.mn()) {
                wrong.push(format!(
                    "{prefix}: {who} does not hold it: {:?}",
                    bound.map(|b| b.claim())
                ));
            }
            let right = delivered
                .is_some_and(|a| a.mac == host.mac && host.at.is_some_and(|p| p.link == a.link.0));
            if !right {
                wrong.push(format!("{prefix}: {who} does not deliver it: {delivered:?}"));
            }
            if announced != (client || !at_home) {
                wrong.push(format!("{prefix}: {who} announced is {announced}, {stage:?}"));
            }
        } else {
            if bound.is_some() || announced {
                wrong.push(format!(
                    "{prefix}: {who} holds it too: {:?} {stage:?}",
                    bound.map(|b| b.claim())
                ));
            }
            if delivered.is_some() {
                wrong.push(format!("{prefix}: {who} delivers it too: {delivered:?}"));
            }
        }
        if node.anchor.attachment_of(prefix).is_some() != (owner == Some(who)) {
            let here = node.anchor.attachment_of(prefix);
            wrong.push(format!("{prefix}: {who} believes it attached at {here:?}"));
        }
    }
    for who in ANCHORS..world.plan.nodes() {
        let Some(node) = world.node(who) else { continue };
        let bound = node.location.find(prefix);
        if bound.map(|b| b.anchor) != owner.map(anchor_id) {
            wrong.push(format!(
                "{prefix}: controller {who} believes {:?}",
                bound.map(|b| b.claim())
            ));
        }
        let announced = node.iec.is_announced(prefix);
        if announced != (owner.is_some() && !at_home) {
            let stage = node.iec.stage(prefix);
            wrong.push(format!("{prefix}: controller {who} announced is {announced}, {stage:?}"));
        }
    }
    let expected = owner.filter(|_| !at_home);
    for (who, router) in routers(world) {
        let all: Vec<_> = router.routes(prefix).collect();
        if all.is_empty() != expected.is_none() {
            wrong.push(format!("{prefix}: router {who} has {all:?}"));
        }
        for (peer, route) in all {
            let right = expected.is_some_and(|e| next_hops(e).contains(&route.next_hop));
            if !right {
                wrong.push(format!("{prefix}: router {who} has {route:?} from {peer}"));
            }
            if route.generation.is_some() {
                wrong.push(format!("{prefix}: at router {who} not settled: {route:?}"));
            }
        }
        let leads = router.forward(prefix.addr()).map(|r| r.next_hop);
        if let Some(owner) = owner
            && leads.is_none_or(|hop| !next_hops(owner).contains(&hop))
        {
            wrong.push(format!("{prefix}: router {who} forwards to {leads:?}"));
        }
    }
    for (who, slot) in world.slots.iter().enumerate() {
        let rib = match &slot.actor {
            Some(Actor::Reflector(speaker)) => speaker.rib(),
            Some(Actor::Node(node)) => match &node.speaker {
                Some(speaker) => speaker.rib(),
                None => continue,
            },
            _ => continue,
        };
        let route = rib.find(prefix);
        let paths = route.iter().flat_map(|r| &r.paths);
        for path in paths {
            let hop = path.attributes.next_hop.addr();
            if expected.is_none_or(|e| !next_hops(e).contains(&hop)) {
                wrong.push(format!("{prefix}: RIB of {who} has a path by {hop} ({:?})", path.peer));
            }
        }
        if expected.is_some() && rib.find_best(prefix).is_none() {
            wrong.push(format!("{prefix}: RIB of {who} has no path"));
        }
    }
}
