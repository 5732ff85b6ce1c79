//! The world around the nodes: one clock, one queue of events, and everything between processes
//! that can go wrong. The nodes are the product's, unchanged; the turn is that of the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use killick::anchor::{self, Anchor};
use killick::iec::Scope;
use killick::location::Pool;
use killick::mctx::{Mctx, MctxConfig, Trust};
use killick::node::{Aggregate, Greeting, Node, NodeConfig, Output, Record};
use killick::proto::bgp::policy::{ExportPolicy, ImportPolicy};
use killick::proto::bgp::rib::{PeerKind, RibConfig};
use killick::proto::bgp::session::{ConnId, GracefulRestart, SessionConfig, Transport};
use killick::proto::bgp::speaker::{self, NeighborConfig, Speaker, SpeakerConfig};
use killick::proto::nd;
use killick::types::seam::{Applied, Attachment, ForwardingChange, IfIndex};
use killick::types::transfer::Signal;
use killick::types::{
    AnchorId, Binding, Claim, Generation, Instant, Locator, MacAddr, MnId, Prefix,
};
use killick::wire::nd::{
    Arp, ArpOperation, BROADCAST, Checksum, Frame, Icmp6, NdOption, NeighborAdvertisement,
    NeighborSolicitation, Payload, multicast_mac, solicited_node,
};

use super::plan::{ANCHORS, Action, LINKS, Mode, Moment, Place, Plan};
use super::random::Random;
use super::router::{ASN, Router};

pub const SETTLE_DELAY: Duration = Duration::from_secs(1);
/// Longer than a BGP session (hold 9 s) and a graceful restart (12 s) outlive an anchor.
pub const SETTLE_UNCONFIRMED: Duration = Duration::from_secs(30);
const HOLD_S: u16 = 9;
const RESTART_S: u16 = 12;
const RECOVER_MAX: Duration = Duration::from_secs(5);
/// A dead link is noticed by the kernel's neighbour discovery when there is traffic.
const NUD_EVERY: Duration = Duration::from_secs(4);
/// The gateway of the hosts, the same everywhere.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const KEEPALIVE_LEN: usize = 19;
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0x5e, 0, 0, 1]);
/// Turns of one actor at one instant: beyond, it spins.
const TURNS_MAX: u32 = 20_000;

/// What arrives at an actor.
#[derive(Clone, Debug)]
pub enum Input {
    Timeout,
    Accepted { tcp: u64 },
    Connected { tcp: u64, conn: ConnId },
    Octets { tcp: u64, octets: Bytes },
    Closed { tcp: u64 },
    Failed { conn: ConnId },
    Signal { from: usize, signal: Box<Signal> },
    PeerLink { peer: usize, up: bool },
    Frame { link: u32, octets: Vec<u8> },
    Applied(Applied),
    NeighborFailed { link: u32, ip: IpAddr },
    Predict { mn: MnId, to: usize },
}

enum Event {
    Act(Action),
    Restart(usize),
    Syn {
        tcp: u64,
        conn: ConnId,
    },
    /// The head of a direction of a connection may be due.
    Pump {
        tcp: u64,
        side: usize,
    },
    Signal {
        from: usize,
        to: usize,
        epoch: u64,
        signal: Box<Signal>,
    },
    Talk {
        host: usize,
        stay: u32,
    },
    Frame {
        to: usize,
        link: u32,
        octets: Vec<u8>,
    },
    Kernel {
        who: usize,
        life: u32,
        change: ForwardingChange,
    },
    Nud,
    LinkCheck {
        a: usize,
        b: usize,
    },
    PeerLink {
        who: usize,
        peer: usize,
        up: bool,
        epoch: u64,
    },
    Failed {
        who: usize,
        life: u32,
        conn: ConnId,
    },
}

enum Item {
    Connected(ConnId),
    Octets(Bytes),
    Fin,
}

/// One TCP connection. Side 0 has connected, side 1 was connected to.
struct Tcp {
    ends: [usize; 2],
    names: [Option<ConnId>; 2],
    open: [bool; 2],
    /// On its way to that side, in order.
    flight: [VecDeque<(Instant, Item)>; 2],
}

pub enum Actor {
    Node(Box<Node>),
    Reflector(Box<Speaker>),
    Router(Router),
}

pub struct Slot {
    pub actor: Option<Actor>,
    /// Which life this is: what was meant for an earlier one is lost.
    pub life: u32,
    wake: Instant,
    turns_now: (Instant, u32),
    doom: Option<(u32, Moment, Duration, bool)>,
    /// What survives the process: the store and the kernel.
    pub store: BTreeMap<Prefix, Record>,
    pub kernel: BTreeMap<Prefix, Attachment>,
    kernel_free: Instant,
    seen: BTreeMap<Prefix, Generation>,
}

struct Link {
    /// 0 until it is up for the first time; odd while it is up.
    epoch: u64,
    flapping_until: Instant,
    /// The last epoch that each end was told.
    told: BTreeMap<usize, bool>,
}

pub struct Host {
    pub mac: MacAddr,
    pub addrs: Vec<IpAddr>,
    pub home: Option<usize>,
    pub at: Option<Place>,
    talks_every: Duration,
    /// When it came to where it is, and how many places it has been at.
    pub since: Instant,
    stay: u32,
    /// It has said something since it came here.
    spoke: bool,
}

impl Host {
    pub fn mn(&self) -> MnId {
        MnId::from_mac(self.mac)
    }
}

pub struct World {
    pub plan: Plan,
    pub now: Instant,
    pub slots: Vec<Slot>,
    pub hosts: Vec<Host>,
    pub events: u64,
    pub hash: u64,
    random: Random,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    tcps: BTreeMap<u64, Tcp>,
    by_conn: BTreeMap<(usize, ConnId), u64>,
    next_tcp: u64,
    links: BTreeMap<(usize, usize), Link>,
    blocked: BTreeMap<(usize, usize), Instant>,
    /// When the last signal from the one reaches the other.
    signalled: BTreeMap<(usize, usize), Instant>,
    verbose: bool,
    pub broken: Option<String>,
    /// When something was last stored, delivered, or said in BGP that is no keepalive.
    pub last_change: Instant,
    /// Router and host: since when the router forwards to where the host is not.
    misled: BTreeMap<(usize, usize), Instant>,
    /// The longest of these after a move was over.
    pub misled_longest: Duration,
    /// The stay of a host for which a router has led right, and what came after that.
    righted: BTreeMap<(usize, usize), u32>,
    pub relapses: Vec<String>,
}

pub fn addr(who: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, who as u8 + 1)
}

pub fn anchor_id(who: usize) -> AnchorId {
    AnchorId(u32::from(addr(who)))
}

pub fn locator(who: usize) -> Locator {
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, who as u16 + 1);
    Locator { ipv4: Some(addr(who)), ipv6: Some(ipv6) }
}

/// Pools: of each anchor, and one without home.
fn pools() -> Vec<Pool> {
    let mut pools = Vec::new();
    for k in 0..=ANCHORS {
        let home = (k < ANCHORS).then(|| anchor_id(k));
        pools.push(Pool { prefix: format!("10.{k}.0.0/16").parse().unwrap(), home });
        pools.push(Pool { prefix: format!("2001:db8:{k}::/48").parse().unwrap(), home });
    }
    pools
}

fn ip_packet(mac: MacAddr, source: IpAddr) -> Vec<u8> {
    let mut octets = Vec::new();
    octets.extend_from_slice(&GATEWAY_MAC.0);
    octets.extend_from_slice(&mac.0);
    match source {
        IpAddr::V4(a) => {
            octets.extend_from_slice(&[0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
            octets.extend_from_slice(&a.octets());
            octets.extend_from_slice(&[192, 0, 2, 99]);
        }
        IpAddr::V6(a) => {
            octets.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
            octets.extend_from_slice(&a.octets());
            octets.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        }
    }
    octets.extend_from_slice(&[0; 8]);
    octets
}

fn arp(mac: MacAddr, ip: Ipv4Addr, target: Ipv4Addr, to: Option<MacAddr>) -> Vec<u8> {
    let operation = if to.is_some() { ArpOperation::Reply } else { ArpOperation::Request };
    let arp = Arp {
        operation,
        sender_mac: mac,
        sender_ip: ip,
        target_mac: to.unwrap_or_default(),
        target_ip: target,
    };
    let destination = to.unwrap_or(BROADCAST);
    Frame { destination, source: mac, payload: Payload::Arp(arp) }.encode().unwrap()
}

impl World {
    pub fn new(plan: Plan, verbose: bool) -> Self {
        let mut random = Random::new(plan.seed ^ 0x5157);
        let actors = plan.actors();
        let hosts = plan.hosts.iter().enumerate().map(|(i, h)| {
            let pool = h.home.unwrap_or(ANCHORS);
            let mut addrs: Vec<IpAddr> =
                vec![Ipv4Addr::new(10, pool as u8, 0, 10 + i as u8).into()];
            if h.ipv6 {
                let (pool, i) = (pool as u16, i as u16);
                addrs.push(Ipv6Addr::new(0x2001, 0xdb8, pool, 0, 0, 0, 0, 10 + i).into());
            }
            Host {
                mac: MacAddr([2, 0, 0, 0, 0, i as u8 + 1]),
                addrs,
                home: h.home,
                at: None,
                talks_every: h.talks_every,
                since: Instant::ZERO,
                stay: 0,
                spoke: false,
            }
        });
        let hosts = hosts.collect();
        let mut world = Self {
            now: Instant::ZERO,
            slots: Vec::new(),
            hosts,
            events: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            queue: BTreeMap::new(),
            sequence: 0,
            tcps: BTreeMap::new(),
            by_conn: BTreeMap::new(),
            next_tcp: 1,
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            signalled: BTreeMap::new(),
            verbose,
            broken: None,
            last_change: Instant::ZERO,
            misled: BTreeMap::new(),
            misled_longest: Duration::ZERO,
            righted: BTreeMap::new(),
            relapses: Vec::new(),
            random: Random::new(random.next()),
            plan,
        };
        for _ in 0..actors {
            world.slots.push(Slot {
                actor: None,
                life: 0,
                wake: Instant::FAR_FUTURE,
                turns_now: (Instant::ZERO, 0),
                doom: None,
                store: BTreeMap::new(),
                kernel: BTreeMap::new(),
                kernel_free: Instant::ZERO,
                seen: BTreeMap::new(),
            });
        }
        for (at, action) in world.plan.actions.clone() {
            world.at(at, Event::Act(action));
        }
        for who in 0..actors {
            let after = random.millis(0, 300);
            world.at(Instant::ZERO + after, Event::Restart(who));
        }
        for (a, b) in world.pairs() {
            let link = Link { epoch: 0, flapping_until: Instant::ZERO, told: BTreeMap::new() };
            world.links.insert((a, b), link);
            let after = random.millis(300, 900);
            world.at(Instant::ZERO + after, Event::LinkCheck { a, b });
        }
        world.at(Instant::ZERO + NUD_EVERY, Event::Nud);
        world
    }

    /// Who has a context transfer link with whom.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let n = self.plan.nodes();
        (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))).filter(|(a, _)| *a < ANCHORS).collect()
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn latency(&mut self) -> Duration {
        let (from, to) = self.plan.latency;
        self.random.micros(from, to)
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{} {}", self.now, text());
        }
    }

    fn mix(&mut self, octets: &[u8]) {
        for &octet in octets {
            self.hash = (self.hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn is_alive(&self, who: usize) -> bool {
        self.slots[who].actor.is_some()
    }

    fn blocked_until(&self, from: usize, to: usize) -> Option<Instant> {
        self.blocked.get(&(from, to)).copied().filter(|until| *until > self.now)
    }

    pub fn node(&self, who: usize) -> Option<&Node> {
        match &self.slots[who].actor {
            Some(Actor::Node(node)) => Some(node),
            _ => None,
        }
    }

    // ---- the clock ------------------------------------------------------------------------

    /// Everything up to `until`.
    pub fn run(&mut self, until: Instant) {
        while self.broken.is_none() {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let sleeper = (0..self.slots.len()).min_by_key(|&i| self.slots[i].wake);
            let wake = sleeper.map(|i| self.slots[i].wake).filter(|at| *at != Instant::FAR_FUTURE);
            let Some(next) = queued.into_iter().chain(wake).min().filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(next);
            self.events += 1;
            // Octets before timers, as the daemon does it.
            if queued == Some(next) {
                let (_, event) = self.queue.pop_first().expect("there is one");
                self.happen(event);
            } else if let Some(who) = sleeper {
                self.turn(who, Input::Timeout);
            }
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(action) => self.act(action),
            Event::Restart(who) => self.start(who),
            Event::Syn { tcp, conn } => self.syn(tcp, conn),
            Event::Pump { tcp, side } => self.pump(tcp, side),
            Event::Signal { from, to, epoch, signal } => {
                let up = self
                    .link(from, to)
                    .is_some_and(|l| l.epoch == epoch && l.told.get(&to).copied().unwrap_or(false));
                if up && self.blocked_until(from, to).is_none() {
                    self.turn(to, Input::Signal { from, signal });
                } else {
                    self.say(|| format!("  lost {from}→{to} {signal:?}"));
                }
            }
            Event::Talk { host, stay } => self.talk(host, stay),
            Event::Frame { to, link, octets } => {
                // The sensor's filter: data packets of attached hosts are not news.
                let known = match Frame::decode(&octets, Checksum::Verify).map(|f| f.payload) {
                    Ok(Payload::Packet { source }) => self.node(to).is_some_and(|node| {
                        node.anchor.hosts_on(IfIndex(link)).any(|ip| ip == source)
                    }),
                    _ => false,
                };
                if !known {
                    self.turn(to, Input::Frame { link, octets });
                }
            }
            Event::Kernel { who, life, change } => {
                let applied = self.write_kernel(who, &change);
                if let (Some(applied), true) = (applied, self.slots[who].life == life) {
                    self.turn(who, Input::Applied(applied));
                }
            }
            Event::Nud => {
                self.nud();
                self.after(NUD_EVERY, Event::Nud);
            }
            Event::LinkCheck { a, b } => self.check_link(a, b),
            Event::PeerLink { who, peer, up, epoch } => {
                let Some(link) = self.link_mut(who, peer) else { return };
                if link.epoch != epoch {
                    return;
                }
                let was_up = link.told.insert(who, up) == Some(true);
                if was_up {
                    self.turn(who, Input::PeerLink { peer, up: false });
                }
                if up {
                    self.turn(who, Input::PeerLink { peer, up });
                }
            }
            Event::Failed { who, life, conn } => {
                if self.slots[who].life == life {
                    self.turn(who, Input::Failed { conn });
                }
            }
        }
    }

    fn act(&mut self, action: Action) {
        self.say(|| format!("! {action:?}"));
        match action {
            Action::Move { host, to } => {
                self.hosts[host].at = to;
                self.hosts[host].since = self.now;
                self.hosts[host].stay += 1;
                self.hosts[host].spoke = false;
                for who in self.plan.routers_from()..self.slots.len() {
                    self.watch_router(who);
                }
                let stay = self.hosts[host].stay;
                let wait = self.random.micros(0, 20_000);
                self.after(wait, Event::Talk { host, stay });
            }
            Action::Predict { host, to } => {
                let mn = self.hosts[host].mn();
                if let Some(place) = self.hosts[host].at {
                    self.turn(place.anchor, Input::Predict { mn, to });
                }
            }
            Action::Echo { host, from } => {
                let (mac, ip) = (self.hosts[host].mac, self.hosts[host].addrs[0]);
                let octets = ip_packet(mac, ip);
                self.after(
                    Duration::ZERO,
                    Event::Frame { to: from.anchor, link: from.link, octets },
                );
            }
            Action::Cut { a, b } => {
                let tcps: Vec<u64> = self
                    .tcps
                    .iter()
                    .filter(|(_, t)| t.ends == [a, b] || t.ends == [b, a])
                    .map(|(&id, _)| id)
                    .collect();
                for id in tcps {
                    self.reset(id);
                }
            }
            Action::Partition { a, b, both, lasts } => {
                let until = self.now + lasts;
                self.blocked.insert((a, b), until);
                if both {
                    self.blocked.insert((b, a), until);
                }
                // The peers of a link notice a silence after some seconds.
                if lasts > Duration::from_secs(3) {
                    let wait = self.random.millis(500, 3_000);
                    self.after(wait, Event::LinkCheck { a, b });
                }
                self.at(until, Event::LinkCheck { a, b });
            }
            Action::LinkFlap { a, b, lasts } => {
                let until = self.now + lasts;
                let Some(link) = self.link_mut(a, b) else { return };
                link.flapping_until = until;
                self.check_link(a, b);
                self.at(until, Event::LinkCheck { a, b });
            }
            Action::Crash { who, turns, moment, lasts, silent } => {
                if self.slots[who].doom.is_none() && self.is_alive(who) {
                    self.slots[who].doom = Some((turns, moment, lasts, silent));
                    if turns == 0 && moment == Moment::AfterTurn {
                        self.crash(who, lasts, silent);
                    }
                }
            }
        }
    }

    // ---- processes ------------------------------------------------------------------------

    fn crash(&mut self, who: usize, lasts: Duration, silent: bool) {
        self.say(|| format!("! {who} dies"));
        let slot = &mut self.slots[who];
        slot.actor = None;
        slot.doom = None;
        slot.wake = Instant::FAR_FUTURE;
        slot.life += 1;
        self.by_conn.retain(|(owner, _), _| *owner != who);
        let mine: Vec<(u64, usize)> = self
            .tcps
            .iter()
            .filter_map(|(&id, t)| t.ends.iter().position(|&e| e == who).map(|side| (id, side)))
            .collect();
        for (id, side) in mine {
            // The kernel closes what the process had, behind what it has sent.
            let wait = self.latency();
            if !silent {
                self.fly(id, 1 - side, wait, Item::Fin);
            }
            if let Some(tcp) = self.tcps.get_mut(&id) {
                tcp.open[side] = false;
                tcp.flight[side].clear();
            }
        }
        for (a, b) in self.pairs() {
            if a == who || b == who {
                if let Some(link) = self.link_mut(a, b) {
                    link.told.remove(&who);
                }
                let wait = if silent { self.random.millis(500, 3_000) } else { Duration::ZERO };
                self.after(wait, Event::LinkCheck { a, b });
            }
        }
        self.after(lasts.max(Duration::from_millis(1)), Event::Restart(who));
    }

    fn start(&mut self, who: usize) {
        if self.is_alive(who) {
            return;
        }
        let life = self.slots[who].life;
        self.say(|| format!("! {who} starts, life {life}"));
        let now = self.now;
        let again = self.slots[who].life > 0;
        let mut said = Vec::new();
        let first_router = self.plan.routers_from();
        let actor = if who < self.plan.nodes() {
            Actor::Node(Box::new(self.new_node(who, again, &mut said)))
        } else if who < first_router {
            let deferral = again.then_some(RECOVER_MAX);
            let mut speaker = self.new_speaker(who, deferral);
            let n = self.plan.nodes();
            let speakers = match self.plan.mode {
                Mode::Distributed => 0..n,
                Mode::Controller => ANCHORS..n,
            };
            for peer in speakers.chain(first_router..first_router + 2) {
                let mut config = self.neighbor(who, peer, again);
                config.kind = PeerKind::Client;
                config.session.passive = peer < n && self.plan.reflectors_passive;
                speaker.add_neighbor(config, now, &mut said).expect("addresses differ");
            }
            Actor::Reflector(Box::new(speaker))
        } else {
            Actor::Router(Router::new(addr(who)))
        };
        self.slots[who].actor = Some(actor);
        self.bgp(who, said);
        let store = self.slots[who].store.clone();
        if again && who < self.plan.nodes() {
            self.slots[who].seen = store
                .iter()
                .map(|(prefix, record)| match record {
                    Record::Bound { binding, .. } => (*prefix, binding.generation),
                    Record::Gone(claim) => (*prefix, claim.generation),
                })
                .collect();
            self.restore(who, store);
        }
        self.turn(who, Input::Timeout);
        for (a, b) in self.pairs() {
            if a == who || b == who {
                // After a silent death the other end learns from the first answer that the old
                // link is gone.
                let Some(link) = self.link_mut(a, b) else { continue };
                if link.epoch % 2 == 1 {
                    link.epoch += 1;
                    let (epoch, other) = (link.epoch, a + b - who);
                    let wait = self.latency();
                    self.after(wait, Event::PeerLink { who: other, peer: who, up: false, epoch });
                }
                let wait = self.random.millis(5, 2_000);
                self.after(wait, Event::LinkCheck { a, b });
            }
        }
    }

    fn restore(&mut self, who: usize, store: BTreeMap<Prefix, Record>) {
        let mut bound: Vec<(Binding, Option<Attachment>)> = Vec::new();
        let mut gone: Vec<(Prefix, Claim)> = Vec::new();
        for (prefix, record) in store {
            match record {
                Record::Bound { binding, attachment } => bound.push((binding, attachment)),
                Record::Gone(claim) => gone.push((prefix, claim)),
            }
        }
        self.turn_with(who, None, |actor, now, out, _| {
            if let Actor::Node(node) = actor {
                node.restore(bound, gone, now, out);
            }
            None
        });
        // The data plane's reconciliation: what nobody wants any more is pruned.
        let slot = &mut self.slots[who];
        if let Some(Actor::Node(node)) = &slot.actor {
            slot.kernel.retain(|prefix, _| node.egress.find(*prefix).is_some());
        }
    }

    fn new_speaker(&self, who: usize, selection_deferral: Option<Duration>) -> Speaker {
        let seed = self.plan.seed ^ ((who as u64) << 40) ^ u64::from(self.slots[who].life);
        let rib = RibConfig::new(ASN, addr(who), seed);
        Speaker::new(SpeakerConfig { rib, seed, selection_deferral }, self.now)
    }

    fn neighbor(&self, who: usize, peer: usize, again: bool) -> NeighborConfig {
        let mut session = SessionConfig::new(ASN, ASN, addr(who));
        session.hold_time_s = HOLD_S;
        session.connect_retry = Duration::from_secs(1);
        session.idle_hold_min = Duration::from_millis(200);
        session.idle_hold_max = Duration::from_secs(5);
        session.stable_after = Duration::from_secs(5);
        session.graceful_restart = self.plan.graceful.then_some(GracefulRestart {
            restart_time_s: RESTART_S,
            stale_time: Duration::from_secs(RESTART_S.into()),
            restarting: again,
            forwarding_preserved: again,
            ..GracefulRestart::default()
        });
        let mut transport = Transport::new(SocketAddr::new(addr(peer).into(), 179));
        transport.local = Some(addr(who).into());
        NeighborConfig {
            import: ImportPolicy::accept_all(),
            export: ExportPolicy::send_all(),
            local_v6: locator(who).ipv6,
            ..NeighborConfig::new(session, transport)
        }
    }

    fn new_node(&self, who: usize, again: bool, said: &mut Vec<speaker::Output>) -> Node {
        let n = self.plan.nodes();
        let now = self.now;
        let is_controller = who >= ANCHORS;
        let own = anchor_id(who);
        let scope = match self.plan.mode {
            Mode::Distributed => Scope::Distributed { own },
            Mode::Controller if is_controller => Scope::Controller,
            Mode::Controller => Scope::Client { own },
        };
        let speaks = !matches!(scope, Scope::Client { .. });
        let speaker = speaks.then(|| {
            let mut speaker = self.new_speaker(who, again.then_some(RECOVER_MAX));
            let routers = self.plan.routers_from();
            // All reflectors, and directly the second router.
            for peer in (n..routers).chain([routers + 1]) {
                let config = self.neighbor(who, peer, again);
                speaker.add_neighbor(config, now, said).expect("addresses differ");
            }
            speaker
        });
        let aggregates = pools().into_iter().filter_map(|pool| {
            let home = pool.home?;
            let mine = match scope {
                Scope::Controller => true,
                Scope::Distributed { own } | Scope::Client { own } => home == own,
            };
            let next_hop = locator((home.0 - anchor_id(0).0) as usize);
            mine.then_some(Aggregate { prefix: pool.prefix, next_hop })
        });
        let others = || (0..n).filter(move |&other| other != who);
        let seed = self.plan.seed ^ ((who as u64) << 32) ^ u64::from(self.slots[who].life);
        let config = NodeConfig {
            own,
            scope: Some(scope),
            local_as: ASN,
            pools: pools(),
            fe_e: locator(who),
            locators: others().map(|o| (anchor_id(o), locator(o))).collect(),
            trust: others().map(|o| (anchor_id(o), Vec::new())).collect(),
            controllers: if is_controller {
                Vec::new()
            } else {
                (ANCHORS..n).map(anchor_id).collect()
            },
            aggregates: aggregates.collect(),
            no_export: true,
            api_lifetime: None,
            settle_delay: SETTLE_DELAY,
            settle_unconfirmed: SETTLE_UNCONFIRMED,
            prepare_max: Duration::from_millis(50),
            recover_max: RECOVER_MAX,
            transient: None,
            seed,
        };
        let all: Vec<Prefix> = pools().into_iter().map(|p| p.prefix).collect();
        let trust = others().map(|o| Trust { anchor: anchor_id(o), may_claim: all.clone() });
        let mut mctx = MctxConfig::new(own, trust.collect());
        mctx.is_controller = is_controller;
        let anchor = Anchor::new(anchor::Config {
            pools: all.iter().map(|p| anchor::Pool::of_hosts(*p)).collect(),
            ..anchor::Config::default()
        });
        let mut node = Node::new(config, anchor, Mctx::new(mctx, seed), speaker);
        if !is_controller {
            for link in 1..=LINKS {
                let config = nd::LinkConfig {
                    link: IfIndex(link),
                    mac: GATEWAY_MAC,
                    link_local: "fe80::1".parse().unwrap(),
                    gateways: vec![GATEWAY.into()],
                    kernel_answers: true,
                    pools: all.clone(),
                    advertise: None,
                };
                node.add_access_link(config, now);
            }
        }
        node.start_bgp(true);
        node
    }

    // ---- the turn -------------------------------------------------------------------------

    fn turn(&mut self, who: usize, input: Input) {
        if !self.is_alive(who) {
            return;
        }
        if self.verbose && !matches!(input, Input::Timeout | Input::Octets { .. }) {
            self.say(|| format!("{who} ← {input:?}"));
        }
        let accepting = match input {
            Input::Accepted { tcp } => Some(tcp),
            _ => None,
        };
        let at = |who: usize, port| SocketAddr::new(addr(who).into(), port);
        self.turn_with(who, accepting, |actor, now, out, tcps| match actor {
            Actor::Node(node) => {
                match input {
                    Input::Timeout => node.handle_timeout(now, out),
                    Input::Accepted { tcp } => {
                        let other = tcps.get(&tcp)?.ends[0];
                        let accepted =
                            node.handle_bgp_accepted(at(who, 179), at(other, 40_000), now, out);
                        return accepted.map(|(conn, _)| conn);
                    }
                    Input::Connected { tcp, conn } => {
                        let other = tcps.get(&tcp)?.ends[1];
                        node.handle_bgp_connected(conn, at(who, 40_000), at(other, 179), now, out);
                    }
                    Input::Octets { tcp, octets } => {
                        let conn = tcps.get(&tcp)?.name_of(who)?;
                        node.handle_bgp_octets(conn, &octets, now, out);
                    }
                    Input::Closed { tcp } => {
                        let conn = tcps.get(&tcp)?.name_of(who)?;
                        node.handle_bgp_closed(conn, now, out);
                    }
                    Input::Failed { conn } => node.handle_bgp_closed(conn, now, out),
                    Input::Signal { from, signal } => {
                        node.handle_signal(anchor_id(from), *signal, now, out);
                    }
                    Input::PeerLink { peer, up } => {
                        node.handle_peer_link(
                            anchor_id(peer),
                            up.then(Greeting::default),
                            now,
                            out,
                        );
                    }
                    Input::Frame { link, octets } => {
                        node.handle_frame(IfIndex(link), &octets, Checksum::Verify, now, out);
                    }
                    Input::Applied(applied) => node.handle_applied(applied, now, out),
                    Input::NeighborFailed { link, ip } => {
                        node.handle_neighbor_failed(IfIndex(link), ip, now, out);
                    }
                    Input::Predict { mn, to } => {
                        // Refused when the node is not there (any more).
                        let _ = node.move_node(&mn, anchor_id(to), None, now, out);
                    }
                }
                None
            }
            Actor::Reflector(speaker) => {
                let mut said = Vec::new();
                let mut accepted = None;
                match input {
                    Input::Timeout => speaker.handle_timeout(now, &mut said),
                    Input::Accepted { tcp } => {
                        let other = tcps.get(&tcp)?.ends[0];
                        accepted = speaker
                            .handle_accepted(at(who, 179), at(other, 40_000), now, &mut said)
                            .map(|(conn, _)| conn);
                    }
                    Input::Connected { tcp, conn } => {
                        let other = tcps.get(&tcp)?.ends[1];
                        speaker.handle_connected(
                            conn,
                            at(who, 40_000),
                            at(other, 179),
                            now,
                            &mut said,
                        );
                    }
                    Input::Octets { tcp, octets } => {
                        let conn = tcps.get(&tcp)?.name_of(who)?;
                        speaker.handle_bytes(conn, &octets, now, &mut said);
                    }
                    Input::Closed { tcp } => {
                        let conn = tcps.get(&tcp)?.name_of(who)?;
                        speaker.handle_closed(conn, now, &mut said);
                    }
                    Input::Failed { conn } => speaker.handle_closed(conn, now, &mut said),
                    _ => {}
                }
                out.extend(said.into_iter().map(Output::Bgp));
                accepted
            }
            Actor::Router(_) => None, // see `Self::router`
        });
    }

    fn turn_with(
        &mut self,
        who: usize,
        accepting: Option<u64>,
        input: impl FnOnce(&mut Actor, Instant, &mut Vec<Output>, &BTreeMap<u64, Tcp>) -> Option<ConnId>,
    ) {
        let now = self.now;
        let Some(mut actor) = self.slots[who].actor.take() else { return };
        let turns = &mut self.slots[who].turns_now;
        *turns = if turns.0 == now { (now, turns.1 + 1) } else { (now, 0) };
        if turns.1 > TURNS_MAX {
            self.broken = Some(format!("actor {who} spins at {now}"));
        }
        let mut doom = None;
        match &mut self.slots[who].doom {
            Some((0, moment, lasts, silent)) => doom = Some((*moment, *lasts, *silent)),
            Some((turns, ..)) => *turns -= 1,
            None => {}
        }
        let mut out = Vec::new();
        let accepted = input(&mut actor, now, &mut out, &self.tcps);
        if let Some(tcp) = accepting {
            self.accepted(tcp, who, accepted);
        }
        let (mut bgp, mut signals, mut records) = (Vec::new(), Vec::new(), Vec::new());
        let mut frames = Vec::new();
        loop {
            let mut more = false;
            if let Actor::Node(node) = &mut actor {
                more = node.handle_best_changes(now, &mut out);
            }
            if out.is_empty() && !more {
                break;
            }
            let mut applied = Vec::new();
            for output in out.drain(..) {
                match output {
                    Output::Bgp(output) => bgp.push(output),
                    Output::Signal { to, signal } => signals.push((to, signal)),
                    Output::Forwarding(change) if self.plan.forwarding == 0 => {
                        applied.extend(self.write_kernel(who, &change));
                    }
                    Output::Forwarding(change) => {
                        let wait = self.random.micros(0, self.plan.forwarding);
                        let free = self.slots[who].kernel_free.max(now + wait);
                        self.slots[who].kernel_free = free;
                        let life = self.slots[who].life;
                        self.at(free, Event::Kernel { who, life, change });
                    }
                    Output::Persist { prefix, record } => records.push((prefix, record)),
                    Output::Frame { link, octets } => frames.push((link, octets)),
                    Output::LinkNodes { .. } | Output::Observed(_) => {}
                    Output::Lisp { .. }
                    | Output::Encap(_)
                    | Output::Transient(_)
                    | Output::Note(_) => {
                        unreachable!("no node of this world has the mapping service")
                    }
                }
            }
            if let Actor::Node(node) = &mut actor {
                for applied in applied {
                    node.handle_applied(applied, now, &mut out);
                }
            }
        }
        let moment = doom.map(|(moment, ..)| moment);
        if moment != Some(Moment::BeforeCommit) {
            for (prefix, record) in records {
                if self.verbose {
                    self.say(|| format!("  {who} stores {prefix} {record:?}"));
                }
                self.last_change = now;
                self.slots[who].store.insert(prefix, record);
            }
            let told = !matches!(moment, Some(Moment::AfterCommit));
            if told {
                match &mut actor {
                    Actor::Node(node) => while node.flush_bgp(&mut bgp) {},
                    Actor::Reflector(speaker) => {
                        while speaker.has_pending() {
                            speaker.flush(&mut bgp);
                        }
                    }
                    Actor::Router(_) => {}
                }
                self.bgp(who, bgp);
            }
            if told && moment != Some(Moment::AfterBgp) {
                for (to, signal) in signals {
                    self.signal(who, to, signal);
                }
                for (link, octets) in frames {
                    self.answer_probe(who, link, &octets);
                }
            }
        }
        self.slots[who].wake = match &actor {
            Actor::Node(node) => node.poll_timeout().unwrap_or(Instant::FAR_FUTURE),
            Actor::Reflector(speaker) => speaker.poll_timeout(),
            Actor::Router(_) => Instant::FAR_FUTURE,
        };
        self.slots[who].actor = Some(actor);
        self.check_generations(who, doom.is_some());
        if let Some((_, lasts, silent)) = doom {
            self.crash(who, lasts, silent);
        }
    }

    /// What a node knows of a prefix never becomes less.
    fn check_generations(&mut self, who: usize, dying: bool) {
        let Some(Actor::Node(node)) = &self.slots[who].actor else { return };
        let mut now_known = Vec::new();
        for ip in self.hosts.iter().flat_map(|h| &h.addrs) {
            let prefix = Prefix::host(*ip);
            let claim = node.location.known_claim(prefix);
            now_known.push((prefix, claim.map_or(Generation::NONE, |c| c.generation)));
        }
        for (prefix, generation) in now_known {
            let seen = self.slots[who].seen.get(&prefix).copied().unwrap_or_default();
            if generation < seen {
                let text = format!("{prefix} at {who}: generation {generation} after {seen}");
                self.broken.get_or_insert(text);
            }
            if !dying {
                self.slots[who].seen.insert(prefix, generation);
            }
        }
    }

    fn write_kernel(&mut self, who: usize, change: &ForwardingChange) -> Option<Applied> {
        let text = format!("{who} kernel {change:?}");
        self.mix(text.as_bytes());
        self.say(|| format!("  {text}"));
        let kernel = &mut self.slots[who].kernel;
        match *change {
            ForwardingChange::SetDelivery { prefix, attachment, revision } => {
                kernel.insert(prefix, attachment);
                Some(Applied { prefix, revision, result: Ok(()) })
            }
            ForwardingChange::RemoveDelivery { prefix, revision } => {
                kernel.remove(&prefix);
                Some(Applied { prefix, revision, result: Ok(()) })
            }
            // The node hears nothing of these; the check asks its RIB.
            ForwardingChange::SetRoute { .. } | ForwardingChange::RemoveRoute { .. } => None,
        }
    }

    // ---- TCP ------------------------------------------------------------------------------

    fn bgp(&mut self, who: usize, outputs: Vec<speaker::Output>) {
        for output in outputs {
            match output {
                speaker::Output::Connect { conn, transport } => {
                    self.connect(who, conn, transport.remote.ip());
                }
                speaker::Output::Send { conn, bytes } => {
                    self.mix(&bytes);
                    if bytes.len() > KEEPALIVE_LEN {
                        self.last_change = self.now;
                    }
                    self.send(who, conn, bytes);
                }
                speaker::Output::Close { conn } => self.close(who, conn),
                speaker::Output::SessionUp { peer } => {
                    self.say(|| format!("  {who} session with {peer:?} is up"));
                }
                speaker::Output::SessionDown { peer, reason } => {
                    self.say(|| format!("  {who} session with {peer:?} is down: {reason}"));
                }
                speaker::Output::ListenerKey { .. } => {}
            }
        }
    }

    fn connect(&mut self, who: usize, conn: ConnId, remote: IpAddr) {
        let other = (0..self.slots.len()).find(|&o| IpAddr::from(addr(o)) == remote);
        let other = other.expect("all addresses are ours");
        let id = self.next_tcp;
        self.next_tcp += 1;
        self.tcps.insert(
            id,
            Tcp {
                ends: [who, other],
                names: [Some(conn), None],
                open: [true, false],
                flight: Default::default(),
            },
        );
        self.by_conn.insert((who, conn), id);
        let wait = self.latency();
        self.after(wait, Event::Syn { tcp: id, conn });
    }

    fn syn(&mut self, id: u64, conn: ConnId) {
        let Some(tcp) = self.tcps.get(&id) else { return };
        let [from, to] = tcp.ends;
        if !tcp.open[0] {
            self.tcps.remove(&id);
            return;
        }
        let unreachable =
            self.blocked_until(from, to).is_some() || self.blocked_until(to, from).is_some();
        if unreachable || !self.is_alive(to) {
            self.tcps.remove(&id);
            self.by_conn.remove(&(from, conn));
            let life = self.slots[from].life;
            let wait = if unreachable { Duration::from_secs(1) } else { self.latency() };
            return self.after(wait, Event::Failed { who: from, life, conn });
        }
        if let Some(Actor::Router(_)) = &self.slots[to].actor {
            self.tcps.get_mut(&id).expect("found above").open[1] = true;
            self.accepted_by_peer(id, conn);
            return self.router(to, id, None);
        }
        self.turn(to, Input::Accepted { tcp: id });
    }

    /// The answer of the one who was connected to, before anything that it says.
    fn accepted(&mut self, id: u64, who: usize, conn: Option<ConnId>) {
        let Some(tcp) = self.tcps.get_mut(&id) else { return };
        let (from, theirs) = (tcp.ends[0], tcp.names[0]);
        let Some(theirs) = theirs else { return };
        match conn {
            Some(conn) => {
                tcp.names[1] = Some(conn);
                tcp.open[1] = true;
                self.by_conn.insert((who, conn), id);
                self.accepted_by_peer(id, theirs);
            }
            None => {
                self.tcps.remove(&id);
                self.by_conn.remove(&(from, theirs));
                let life = self.slots[from].life;
                let wait = self.latency();
                self.after(wait, Event::Failed { who: from, life, conn: theirs });
            }
        }
    }

    fn accepted_by_peer(&mut self, id: u64, conn: ConnId) {
        let wait = self.latency();
        self.fly(id, 0, wait, Item::Connected(conn));
    }

    fn send(&mut self, who: usize, conn: ConnId, octets: Bytes) {
        let Some(&id) = self.by_conn.get(&(who, conn)) else { return };
        let Some(tcp) = self.tcps.get(&id) else { return };
        let Some(side) = tcp.side_of(who, conn) else { return };
        let wait = self.latency();
        self.fly(id, 1 - side, wait, Item::Octets(octets));
    }

    fn close(&mut self, who: usize, conn: ConnId) {
        let Some(id) = self.by_conn.remove(&(who, conn)) else { return };
        let Some(tcp) = self.tcps.get_mut(&id) else { return };
        let Some(side) = tcp.side_of(who, conn) else { return };
        tcp.open[side] = false;
        tcp.flight[side].clear();
        let wait = self.latency();
        self.fly(id, 1 - side, wait, Item::Fin);
    }

    /// Both ends hear of it, each in its time; what was under way is lost.
    fn reset(&mut self, id: u64) {
        for side in 0..2 {
            let wait =
                if self.random.chance(50) { self.latency() } else { self.random.millis(0, 2_000) };
            if let Some(tcp) = self.tcps.get_mut(&id) {
                tcp.flight[side].clear();
            }
            self.fly(id, side, wait, Item::Fin);
        }
    }

    /// Behind everything that is on its way to that side.
    fn fly(&mut self, id: u64, side: usize, wait: Duration, item: Item) {
        let now = self.now;
        let Some(tcp) = self.tcps.get_mut(&id) else { return };
        let flight = &mut tcp.flight[side];
        let at = flight.back().map_or(now, |(last, _)| *last).max(now + wait);
        flight.push_back((at, item));
        self.at(at, Event::Pump { tcp: id, side });
    }

    fn pump(&mut self, id: u64, side: usize) {
        let now = self.now;
        let Some(tcp) = self.tcps.get(&id) else { return };
        let (who, from) = (tcp.ends[side], tcp.ends[1 - side]);
        if let Some(until) = self.blocked_until(from, who) {
            return self.at(until, Event::Pump { tcp: id, side });
        }
        loop {
            let Some(tcp) = self.tcps.get_mut(&id) else { return };
            let due = tcp.flight[side].front().is_some_and(|(at, _)| *at <= now);
            if !due {
                return;
            }
            let Some((_, item)) = tcp.flight[side].pop_front() else { return };
            if !tcp.open[side] {
                // A machine that is up answers with a reset; a dead one does not.
                let unknown = matches!(item, Item::Octets(_)) && tcp.open[1 - side];
                if unknown && self.is_alive(who) {
                    let wait = self.latency();
                    self.fly(id, 1 - side, wait, Item::Fin);
                }
                continue;
            }
            let is_router = matches!(self.slots[who].actor, Some(Actor::Router(_)));
            match item {
                Item::Connected(conn) => self.turn(who, Input::Connected { tcp: id, conn }),
                Item::Octets(octets) if is_router => self.router(who, id, Some(octets)),
                Item::Octets(octets) => self.turn(who, Input::Octets { tcp: id, octets }),
                Item::Fin if is_router => self.router_closed(who, id),
                Item::Fin => {
                    tcp.open[side] = false;
                    let name = tcp.names[side];
                    self.turn(who, Input::Closed { tcp: id });
                    if let Some(name) = name {
                        self.by_conn.remove(&(who, name));
                    }
                }
            }
            if self.tcps.get(&id).is_some_and(|t| !t.open[0] && !t.open[1]) {
                self.tcps.remove(&id);
            }
        }
    }

    fn router(&mut self, who: usize, id: u64, octets: Option<Bytes>) {
        let Some(peer) = self.tcps.get(&id).map(|t| t.ends[0]) else { return };
        let Some(Actor::Router(router)) = &mut self.slots[who].actor else { return };
        let (said, ended) = match octets {
            None => (router.accept(id, addr(peer).into()), false),
            Some(octets) => router.octets(id, &octets),
        };
        if !said.is_empty() {
            let wait = self.latency();
            self.fly(id, 0, wait, Item::Octets(said.into()));
        }
        if ended {
            self.router_closed(who, id);
        }
        self.watch_router(who);
    }

    /// How long the routers of the world lead a host's traffic astray.
    fn watch_router(&mut self, who: usize) {
        let now = self.now;
        let Some(Actor::Router(router)) = &self.slots[who].actor else { return };
        for (i, host) in self.hosts.iter().enumerate() {
            let hop = router.forward(host.addrs[0]).map(|r| r.next_hop);
            let right = host.at.is_none_or(|place| hop == Some(addr(place.anchor).into()));
            if right {
                self.righted.insert((who, i), host.stay);
                if let Some(since) = self.misled.remove(&(who, i)) {
                    self.misled_longest = self.misled_longest.max(now - since);
                }
            } else {
                if self.righted.get(&(who, i)) == Some(&host.stay) {
                    self.righted.remove(&(who, i));
                    let text = format!("{now}: router {who} left host {i} for {hop:?}");
                    self.relapses.push(text);
                }
                self.misled.entry((who, i)).or_insert(now);
            }
        }
    }

    fn router_closed(&mut self, who: usize, id: u64) {
        if let Some(Actor::Router(router)) = &mut self.slots[who].actor {
            router.close(id);
        }
        if let Some(tcp) = self.tcps.get_mut(&id) {
            tcp.open[1] = false;
        }
        let wait = self.latency();
        self.fly(id, 0, wait, Item::Fin);
    }

    // ---- context transfer links -----------------------------------------------------------

    fn link(&self, a: usize, b: usize) -> Option<&Link> {
        self.links.get(&(a.min(b), a.max(b)))
    }

    fn link_mut(&mut self, a: usize, b: usize) -> Option<&mut Link> {
        self.links.get_mut(&(a.min(b), a.max(b)))
    }

    fn check_link(&mut self, a: usize, b: usize) {
        let (now, alive) = (self.now, self.is_alive(a) && self.is_alive(b));
        let silent = self.blocked_until(a, b).is_some() || self.blocked_until(b, a).is_some();
        let lives = [(a, self.is_alive(a)), (b, self.is_alive(b))];
        let Some(link) = self.link_mut(a, b) else { return };
        let up = alive && !silent && link.flapping_until <= now;
        for (who, alive) in lives {
            if !alive {
                link.told.remove(&who);
            }
        }
        if up == (link.epoch % 2 == 1) {
            return;
        }
        link.epoch += 1;
        let epoch = link.epoch;
        for (who, peer) in [(a, b), (b, a)] {
            let wait = self.latency();
            self.after(wait, Event::PeerLink { who, peer, up, epoch });
        }
    }

    fn signal(&mut self, from: usize, to: AnchorId, signal: Signal) {
        let to = (to.0 - anchor_id(0).0) as usize;
        let text = format!("{from}→{to} {signal:?}");
        self.mix(text.as_bytes());
        self.say(|| format!("  {text}"));
        let epoch = match self.link(from, to) {
            Some(link) if link.told.get(&from) == Some(&true) && link.epoch % 2 == 1 => link.epoch,
            _ => return self.say(|| "  … no link".into()),
        };
        let copies = 1 + usize::from(self.random.chance(self.plan.duplication));
        // A link is a TLS stream: nothing is lost before the link is, and after that everything is
        // reported anew. Transfers and reports do not rely on that, so they are treated worse.
        let relies = matches!(signal, Signal::Newer { .. });
        for _ in 0..copies {
            if !relies && self.random.chance(self.plan.loss) {
                self.say(|| "  … lost".into());
                continue;
            }
            let mut wait = self.latency();
            if self.random.chance(30) {
                wait += self.random.micros(0, self.plan.jitter);
            }
            let signal = Box::new(signal.clone());
            let mut at = self.now + wait;
            if self.plan.jitter == 0 {
                // In order, as a stream.
                let last = self.signalled.entry((from, to)).or_default();
                at = at.max(*last);
                *last = at;
            }
            self.at(at, Event::Signal { from, to, epoch, signal });
        }
    }

    // ---- hosts ----------------------------------------------------------------------------

    fn talk(&mut self, host: usize, stay: u32) {
        let h = &self.hosts[host];
        // One clock per stay: a move starts a new one.
        let Some(place) = h.at.filter(|_| h.stay == stay) else { return };
        let (mac, every) = (h.mac, h.talks_every);
        let addrs = h.addrs.clone();
        let arrived = !std::mem::replace(&mut self.hosts[host].spoke, true);
        // Whichever address it uses first moves all of them that are known.
        let all = arrived && self.plan.calm;
        let one = addrs[self.random.index(addrs.len())];
        for ip in addrs.into_iter().filter(|ip| all || *ip == one) {
            self.speak(place, mac, ip);
        }
        let quiet = self.now > self.plan.end + Duration::from_secs(20);
        let every = if quiet { every * 4 } else { every };
        self.after(every, Event::Talk { host, stay });
    }

    fn speak(&mut self, place: Place, mac: MacAddr, ip: IpAddr) {
        let octets = match ip {
            IpAddr::V4(ip) => match self.random.below(3) {
                0 => arp(mac, ip, GATEWAY, None),
                1 => arp(mac, ip, ip, None),
                _ => ip_packet(mac, ip.into()),
            },
            IpAddr::V6(ip) => match self.random.below(2) {
                0 => {
                    let group = solicited_node("fe80::1".parse().unwrap());
                    let message = Icmp6::NeighborSolicitation(NeighborSolicitation {
                        target: "fe80::1".parse().unwrap(),
                        options: vec![NdOption::SourceLinkLayer(mac)],
                    });
                    let payload = Payload::Nd { source: ip, destination: group, message };
                    let destination = multicast_mac(group);
                    Frame { destination, source: mac, payload }.encode().unwrap()
                }
                _ => ip_packet(mac, ip.into()),
            },
        };
        let wait = if self.random.chance(5) {
            self.random.micros(0, 5_000)
        } else {
            self.random.micros(0, 300)
        };
        self.after(wait, Event::Frame { to: place.anchor, link: place.link, octets });
    }

    /// The host answers the router's probe, if it is there.
    fn answer_probe(&mut self, who: usize, link: IfIndex, octets: &[u8]) {
        let Ok(frame) = Frame::decode(octets, Checksum::Verify) else { return };
        let asked: IpAddr = match &frame.payload {
            Payload::Arp(arp) if arp.operation == ArpOperation::Request => arp.target_ip.into(),
            Payload::Nd { message: Icmp6::NeighborSolicitation(ns), .. } => ns.target.into(),
            _ => return,
        };
        let here = |h: &&Host| {
            h.addrs.contains(&asked)
                && h.at.is_some_and(|p| p.anchor == who && IfIndex(p.link) == link)
        };
        let Some(mac) = self.hosts.iter().find(here).map(|h| h.mac) else { return };
        let octets = match asked {
            IpAddr::V4(ip) => arp(mac, ip, GATEWAY, Some(GATEWAY_MAC)),
            IpAddr::V6(ip) => {
                let message = Icmp6::NeighborAdvertisement(NeighborAdvertisement {
                    router: false,
                    solicited: true,
                    override_: true,
                    target: ip,
                    options: vec![NdOption::TargetLinkLayer(mac)],
                });
                let destination = "fe80::1".parse().unwrap();
                let payload = Payload::Nd { source: ip, destination, message };
                Frame { destination: GATEWAY_MAC, source: mac, payload }.encode().unwrap()
            }
        };
        let wait = self.random.micros(50, 1_000);
        self.after(wait, Event::Frame { to: who, link: link.0, octets });
    }

    /// Somebody always sends to hosts that are switched off; the kernel then finds them gone.
    fn nud(&mut self) {
        let mut failed = Vec::new();
        for who in 0..ANCHORS {
            for (prefix, attachment) in &self.slots[who].kernel {
                let ip = prefix.addr();
                let off = self.hosts.iter().any(|h| h.at.is_none() && h.addrs.contains(&ip));
                if off {
                    failed.push((who, attachment.link.0, ip));
                }
            }
        }
        for (who, link, ip) in failed {
            self.turn(who, Input::NeighborFailed { link, ip });
        }
    }
}

impl Tcp {
    fn side_of(&self, who: usize, conn: ConnId) -> Option<usize> {
        (0..2).find(|&side| self.ends[side] == who && self.names[side] == Some(conn))
    }

    fn name_of(&self, who: usize) -> Option<ConnId> {
        (0..2).find(|&side| self.ends[side] == who).and_then(|side| self.names[side])
    }
}
