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

/// Two anchors and what they ask for, with the messages between them carried by hand.
mod transient {
    use super::*;
    use crate::auth::PathSecret;
    use crate::mctx::Trust;
    use crate::node::{Greeting, Paths, TransientConfig};
    use crate::types::transfer::Signal;
    use crate::types::transient::{PathEnd, PathEnding, TransientChange, TransientEvent};

    fn end(last: u8) -> PathEnd {
        PathEnd { locator: locator(last), port: 47_300 }
    }

    /// Anchor 1 is home of the pool; both hold packets, and the links are up.
    fn pair() -> [Node; 2] {
        let mut nodes = [(OWN, 1), (OTHER, 2)].map(|(own, last)| {
            let mut node = node(Scope::Distributed { own });
            node.config.own = own;
            node.config.fe_e = locator(last);
            let secret = PathSecret::new(&[last; 32]);
            node.config.transient = Some(TransientConfig { secret, locator: locator(last) });
            let pool = node.config.pools[0].prefix;
            let peer = if own == OWN { OTHER } else { OWN };
            node.config.trust.insert(peer, vec![pool]);
            let trust = vec![Trust { anchor: peer, may_claim: vec![pool] }];
            node.mctx = Mctx::new(MctxConfig::new(own, trust), u64::from(last));
            node
        });
        let now = Instant::ZERO;
        let mut out = Vec::new();
        let [a, b] = &mut nodes;
        a.handle_peer_link(OTHER, Some(Greeting { path_end: Some(end(2)) }), now, &mut out);
        b.handle_peer_link(OWN, Some(Greeting { path_end: Some(end(1)) }), now, &mut out);
        nodes
    }

    fn own_of(node: &Node) -> AnchorId {
        node.own()
    }

    /// Confirms what the kernel was asked for, carries signals until there are none, and tells what
    /// was asked of the holders of packets: by whom, and what.
    fn carry(
        nodes: &mut [Node; 2],
        mut from: usize,
        out: Vec<Output>,
        now: Instant,
    ) -> Vec<(AnchorId, TransientChange)> {
        let mut asked = Vec::new();
        let mut queue: std::collections::VecDeque<(usize, Output)> =
            out.into_iter().map(|output| (from, output)).collect();
        while let Some((at, output)) = queue.pop_front() {
            from = at;
            let mut more = Vec::new();
            match output {
                Output::Transient(change) => asked.push((own_of(&nodes[from]), change)),
                Output::Signal { signal, .. } => {
                    let own = own_of(&nodes[from]);
                    from = 1 - from;
                    nodes[from].handle_signal(own, signal, now, &mut more);
                }
                Output::Forwarding(ForwardingChange::SetDelivery { prefix, revision, .. }) => {
                    let applied = crate::types::seam::Applied { prefix, revision, result: Ok(()) };
                    nodes[from].handle_applied(applied, now, &mut more);
                }
                _ => {} // of other rooms
            }
            queue.extend(more.into_iter().map(|output| (from, output)));
        }
        asked
    }

    fn attached_at_a() -> [Node; 2] {
        let mut nodes = pair();
        let out = see(&mut nodes[0], Instant::ZERO);
        let asked = carry(&mut nodes, 0, out, Instant::ZERO);
        assert_eq!(asked, [(OWN, TransientChange::Pass { prefix: prefix() })]);
        nodes
    }

    fn later(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_request_holds_a_context_gates_a_confirmation_forwards() {
        let mut nodes = attached_at_a();
        let now = later(100);
        let out = see(&mut nodes[1], now);
        let asked = carry(&mut nodes, 1, out, now);
        let prefix = prefix();
        let [
            (OWN, TransientChange::Hold { key: held, .. }),
            (OTHER, TransientChange::Gate { key: gated, from, .. }),
            (OTHER, TransientChange::Pass { .. }),
            (OWN, TransientChange::Forward { key: forwarded, to, .. }),
        ] = asked.as_slice()
        else {
            panic!("{asked:?}");
        };
        assert!(held == gated && held == forwarded);
        assert_eq!((*from, *to), (end(1), end(2)));
        let ended = |how| TransientEvent::Ended { prefix, how, counts: Default::default() };
        let mut out = Vec::new();
        assert_eq!(nodes[0].paths.len(), 1);
        nodes[0].handle_transient(ended(PathEnding::Replaced), now, &mut out);
        assert_eq!(nodes[0].paths.len(), 1, "that was the hold");
        nodes[0].handle_transient(ended(PathEnding::Drained), now, &mut out);
        assert!(nodes[0].paths.is_empty());
    }

    #[test]
    fn a_node_that_is_announced_is_held_at_once_also_when_its_link_goes_down() {
        let mut nodes = attached_at_a();
        let (mn, now) = (MnId::from_mac(MAC), later(100));
        let mut out = Vec::new();
        nodes[0].move_node(&mn, OTHER, None, now, &mut out).unwrap();
        let asked = carry(&mut nodes, 0, out, now);
        assert!(matches!(asked.as_slice(), [(OWN, TransientChange::Hold { .. })]), "{asked:?}");
        // The old link knows first that it is gone.
        let mut out = Vec::new();
        nodes[0].handle_left(&mn, crate::types::seam::LeaveReason::LinkDown, now, &mut out);
        let asked = carry(&mut nodes, 0, out, now);
        assert_eq!(asked, [], "it waits for the one that it was announced to");
        let out = see(&mut nodes[1], later(120));
        let asked = carry(&mut nodes, 1, out, later(120));
        let kinds: Vec<_> = asked
            .iter()
            .map(|(who, change)| match change {
                TransientChange::Gate { .. } => (*who, "gate"),
                TransientChange::Pass { .. } => (*who, "pass"),
                TransientChange::Forward { .. } => (*who, "forward"),
                _ => (*who, "?"),
            })
            .collect();
        assert_eq!(kinds, [(OTHER, "gate"), (OTHER, "pass"), (OWN, "forward")]);
    }

    #[test]
    fn it_comes_back_on_the_same_path_in_the_other_direction() {
        let mut nodes = attached_at_a();
        let out = see(&mut nodes[1], later(100));
        carry(&mut nodes, 1, out, later(100));
        let out = see(&mut nodes[0], later(400));
        let asked = carry(&mut nodes, 0, out, later(400));
        let [
            (OTHER, TransientChange::Hold { key, .. }),
            (OWN, TransientChange::Gate { key: gated, .. }),
            (OWN, TransientChange::Pass { .. }),
            (OTHER, TransientChange::Forward { .. }),
        ] = asked.as_slice()
        else {
            panic!("{asked:?}");
        };
        assert_eq!(key, gated);
    }

    #[test]
    fn who_takes_no_packets_is_moved_to_as_ever() {
        let mut nodes = attached_at_a();
        let mut out = Vec::new();
        nodes[0].handle_peer_link(OTHER, Some(Greeting { path_end: None }), later(50), &mut out);
        let out = see(&mut nodes[1], later(100));
        let asked = carry(&mut nodes, 1, out, later(100));
        assert_eq!(asked, [(OTHER, TransientChange::Pass { prefix: prefix() })]);
        assert_eq!(nodes[1].location.find(prefix()).map(|b| b.anchor), Some(OTHER));
    }

    #[test]
    fn who_gets_no_context_holds_nothing_up() {
        let mut nodes = attached_at_a();
        let too_much = vec![(1, vec![0; 2 * crate::types::transfer::ATTRIBUTES_LEN_MAX])];
        nodes[0].attributes.insert(MnId::from_mac(MAC), too_much);
        let now = later(100);
        let out = see(&mut nodes[1], now);
        let asked = carry(&mut nodes, 1, out, now);
        assert!(asked.iter().all(|(who, _)| *who != OWN), "{asked:?}");
        assert!(nodes[0].paths.is_empty());
    }

    /// A CTDR about a transfer that was superseded may arrive when the node has come back.
    #[test]
    fn an_old_confirmation_does_not_open_the_gate() {
        let mut nodes = attached_at_a();
        let out = see(&mut nodes[1], later(100));
        carry(&mut nodes, 1, out, later(100));
        let out = see(&mut nodes[0], later(400));
        carry(&mut nodes, 0, out, later(400));
        assert_eq!(nodes[0].paths.len(), 1, "its gate");
        let mut out = Vec::new();
        let (mn, first) = (MnId::from_mac(MAC), Generation(1));
        nodes[0].handle_transferred(&mn, &[prefix()], OTHER, first, later(401), &mut out);
        let asked = carry(&mut nodes, 0, out, later(401));
        assert_eq!(asked, []);
        assert_eq!(nodes[0].paths.len(), 1);
    }

    /// A context that the new anchor does not take: the node stays, and so do its packets.
    #[test]
    fn what_waits_for_nobody_is_released() {
        let mut nodes = attached_at_a();
        let (mn, now) = (MnId::from_mac(MAC), later(100));
        let mut out = Vec::new();
        nodes[0].move_node(&mn, OTHER, None, now, &mut out).unwrap();
        let addr = prefix().addr();
        let mut out = Vec::new();
        nodes[0].handle_signal(OTHER, Signal::Cancel { addr }, now, &mut out);
        let released = Output::Transient(TransientChange::Release { prefix: prefix() });
        assert!(out.iter().any(|o| format!("{o:?}") == format!("{released:?}")), "{out:?}");
        assert_eq!(nodes[0].paths.len(), Paths::default().len());
    }
}

/// Where destinations are rewritten: FE_E knows the locator of a host that is away from home; what
/// still comes when it has left waits for its next mapping, and then the locator is nobody's.
#[test]
fn a_host_away_from_home_has_a_locator_here() {
    use super::lisp::{Lisp, LispConfig};
    use crate::gateway::{Ingress, Locators};
    use crate::proto::lisp::xtr::Xtr;
    use crate::types::Claim;
    use crate::types::lisp::{EncapChange, EntryAction, Rloc, RlocSet};

    const KEEP: Duration = Duration::from_secs(180);
    let locators: Prefix = "198.51.100.0/24".parse().unwrap();
    let elsewhere: Prefix = "203.0.113.0/24".parse().unwrap();
    let eid = prefix().addr();
    let mut node = node(Scope::Distributed { own: OWN });
    // Nobody's home, so that nobody is asked for its context.
    let pool = Pool { prefix: "10.1.0.0/16".parse().unwrap(), home: None };
    node.pools = crate::location::Pools::new(vec![pool]);
    let config = LispConfig {
        departed_keep: KEEP,
        peer_locators: vec![(elsewhere, OTHER)],
        ..LispConfig::default()
    };
    let (mut now, mut out) = (Instant::ZERO, Vec::new());
    let lisp = Lisp::new(config, None, Xtr::default(), Ingress::rewriting(), now);
    let chosen = Locators::new(vec![locators], &[], now);
    node.start_lisp(lisp.with_locators(chosen), now, &mut out);
    let encap = |out: &[Output]| -> Vec<EncapChange> {
        let changes = out.iter().filter_map(|output| match output {
            Output::Encap(change) => Some(change.clone()),
            _ => None,
        });
        changes.collect()
    };
    let mn = MnId::from_mac(MAC);
    let out = see(&mut node, now);
    let changes = encap(&out);
    let &[EncapChange::SetEntry { prefix: locator, action: EntryAction::Rewrite(to) }, ..] =
        &changes[..]
    else {
        panic!("{changes:?}")
    };
    assert!(locators.contains(locator) && locator.is_host() && to == eid, "{changes:?}");
    assert!(out.iter().any(|o| matches!(o, Output::Note(note) if note.key[0] == 8)), "{out:?}");

    // Somebody who has left to nowhere known.
    let mut out = Vec::new();
    node.detach(&mn, None, now, &mut out).unwrap();
    assert!(encap(&out).contains(&EncapChange::RemoveEntry { prefix: locator }), "{out:?}");
    now += Duration::from_secs(11);
    let restored = EncapChange::SetEntry { prefix: locator, action: EntryAction::Rewrite(eid) };
    assert!(encap(&see(&mut node, now)).contains(&restored), "the same one");

    // To an anchor whose name is known, and whose locator for it is not.
    let mut out = Vec::new();
    node.config.trust.insert(OTHER, Vec::new());
    node.handle_claim(
        prefix(),
        Claim { generation: Generation(900), anchor: OTHER },
        now,
        &mut out,
    );
    let punt = EncapChange::SetEntry { prefix: prefix(), action: EntryAction::Punt };
    let remove = EncapChange::RemoveEntry { prefix: locator };
    assert!(encap(&out).contains(&punt) && !encap(&out).contains(&remove), "{out:?}");
    out.clear();
    node.handle_timeout(now + KEEP, &mut out);
    assert!(encap(&out).contains(&remove), "{out:?}");
    assert!(encap(&out).contains(&EncapChange::RemoveEntry { prefix: prefix() }), "{out:?}");

    // Whose a mapping is, by its locator; at home that is the EID.
    let pool = Pool { prefix: "10.1.0.0/16".parse().unwrap(), home: Some(OTHER) };
    node.pools = crate::location::Pools::new(vec![pool]);
    let whose = |addr: &str| {
        let rloc = Rloc { addr: addr.parse().unwrap(), priority: 1, weight: 100 };
        node.anchor_of_locator(prefix(), &RlocSet::new(vec![rloc]))
    };
    assert_eq!(whose("203.0.113.9"), Some(OTHER));
    assert_eq!(whose("10.1.0.7"), Some(OTHER));
    assert_eq!(whose("192.0.2.99"), None);
}
