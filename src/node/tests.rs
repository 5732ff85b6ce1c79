//! Rules of the hall that no single room knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Node, NodeConfig, Output};
use crate::anchor::{self, Anchor};
use crate::iec::Scope;
use crate::location::Pool;
use crate::mctx::{Mctx, MctxConfig};
use crate::proto::nd;
use crate::types::seam::{Context, ContextPrefix, ForwardingChange, IfIndex};
use crate::types::{AnchorId, Generation, Instant, Locator, MacAddr, MnId, Prefix};
use crate::wire::nd::Checksum;

const OWN: AnchorId = AnchorId(1);
const OTHER: AnchorId = AnchorId(2);
const LINK: IfIndex = IfIndex(3);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
const PREFIX: &str = "10.1.0.7/32";

fn prefix() -> Prefix {
    PREFIX.parse().unwrap()
}

fn locator(last: u8) -> Locator {
    Locator { ipv4: Some([192, 0, 2, last].into()), ipv6: None }
}

fn node(scope: Scope) -> Node {
    let pool: Prefix = "10.1.0.0/16".parse().unwrap();
    let config = NodeConfig {
        own: OWN,
        scope: Some(scope),
        local_as: 0,
        pools: vec![Pool { prefix: pool, home: Some(OWN) }],
        fe_e: locator(1),
        locators: BTreeMap::from([(OTHER, locator(2))]),
        trust: BTreeMap::new(),
        controllers: Vec::new(),
        aggregates: Vec::new(),
        no_export: true,
        api_lifetime: None,
        settle_delay: Duration::from_secs(1),
        settle_unconfirmed: Duration::from_secs(1),
        prepare_max: Duration::from_secs(1),
        recover_max: Duration::ZERO,
        transient: None,
        seed: 1,
    };
    let anchor = anchor::Config { pools: vec![anchor::Pool::of_hosts(pool)], ..Default::default() };
    let mctx = Mctx::new(MctxConfig::new(OWN, Vec::new()), 1);
    let mut node = Node::new(config, Anchor::new(anchor), mctx, None);
    let link = nd::LinkConfig {
        link: LINK,
        mac: MacAddr([2, 0, 0x5e, 0, 0x53, 1]),
        link_local: "fe80::1".parse().unwrap(),
        gateways: vec!["10.1.255.254".parse().unwrap()],
        kernel_answers: true,
        pools: vec![pool],
        advertise: None,
    };
    node.add_access_link(link, Instant::ZERO);
    node
}

/// An ARP request of the host for its gateway (RFC 826).
fn see(node: &mut Node, now: Instant) -> Vec<Output> {
    let mut frame = [&[0xff; 6][..], &MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC.0].concat();
    frame.extend([10, 1, 0, 7, 0, 0, 0, 0, 0, 0, 10, 1, 255, 254]);
    let mut out = Vec::new();
    node.handle_frame(LINK, &frame, Checksum::Verify, now, &mut out);
    out
}

#[test]
fn a_refused_node_is_attached_when_the_reason_is_gone() {
    let mut node = node(Scope::Distributed { own: OWN });
    let (mut now, mut out) = (Instant::ZERO, Vec::new());
    let other = MnId::new("other").unwrap();
    node.place(&other, prefix(), OWN, None, None, now, &mut out).unwrap();
    see(&mut node, now);
    assert_eq!(node.counters.refused_other_node, 1);
    assert_eq!(node.anchor.len(), 0, "nobody is attached whom nobody has bound");
    node.detach(&other, None, now, &mut out).unwrap();
    see(&mut node, now);
    assert!(node.location.find(prefix()).is_none(), "not before the hold time is over");
    now += Duration::from_secs(11);
    see(&mut node, now);
    assert_eq!(node.location.find(prefix()).map(|b| &b.mn), Some(&MnId::from_mac(MAC)));
}

/// RFC 6275 §10.4.1 for the link that a node has left.
#[test]
fn the_link_hears_that_a_node_is_no_longer_delivered() {
    let mut node = node(Scope::Distributed { own: OWN });
    let now = Instant::ZERO;
    let attached = see(&mut node, now);
    let delivers = |o: &Output| matches!(o, Output::Forwarding(ForwardingChange::SetDelivery { prefix: p, .. }) if *p == prefix());
    assert!(attached.iter().any(delivers), "{attached:?}");
    let mut out = Vec::new();
    node.detach(&MnId::from_mac(MAC), None, now, &mut out).unwrap();
    let gratuitous = |o: &Output| matches!(o, Output::Frame { link: LINK, octets } if octets[..6] == [0xff; 6] && octets[28..32] == [10, 1, 0, 7]);
    assert!(out.iter().any(gratuitous), "{out:?}");
}

#[test]
fn a_controller_binds_a_context_to_the_anchor_that_it_names() {
    let mut node = node(Scope::Controller);
    let (now, mut out) = (Instant::ZERO, Vec::new());
    let mn = MnId::new("car7").unwrap();
    let context = Context {
        mn: mn.clone(),
        generation: Generation(4),
        anchor: OTHER,
        prefixes: vec![ContextPrefix { prefix: prefix(), home: None, lifetime_s: None }],
        attributes: vec![(9, vec![1, 2])],
        path: None,
    };
    node.put_context(&context, now, &mut out).unwrap();
    let bound = node.location.find(prefix()).unwrap();
    assert_eq!((bound.anchor, bound.generation), (OTHER, Generation(5)));
    assert_eq!(node.get_context(&mn, now).unwrap().attributes, context.attributes);
    node.detach(&mn, None, now, &mut out).unwrap();
    node.place(&mn, prefix(), OTHER, None, None, now, &mut out).unwrap();
    assert_eq!(node.get_context(&mn, now).unwrap().attributes, [], "gone with the node");
}
