//! The mapping service's part of the hall (RFC 9301, RFC 9437).
//!
//! ```text
//! at the anchor        PolicyChange::Announce ─→ ETR: Map-Register     Withdraw ─→ with TTL 0
//!                      PolicyChange::Deliver  ─→ FE_E: AllowDecap; late packets → SMR
//! at the Map-Server    Map-Register ─→ MobilityEvent (as a report of the site's anchor) ─→ location
//!                      BindingChange ─→ publications (Map-Notify) to all who are subscribed
//! at the ingress       first packet, publication, SMR ─→ map-cache ─→ FE_I: one entry, one group
//! ```
//!
//! There is one location database: what the Map-Server answers for a mobile prefix is its binding,
//! whoever reported it. A registration's Map-Version is the binding's generation (RFC 9302), so that
//! an older one loses here as it loses in BGP.
//!
//! FE_I's entry of a prefix has three possible authors. What is delivered here is native, whatever
//! others say; a node that has left is sent on to its new FE_E until the map-cache knows better; the
//! rest is the map-cache's. [`Node::refresh_entry`] is the one place that decides.

mod notes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use notes::{Stored, read as read_note};

use super::claims::Heard;
use super::flow::Node;
use super::output::Output;
use super::timeline::{Detail, Learnt, Phase};
use crate::gateway::{Ingress, Locators};
use crate::proto::lisp::server::{self, MapServer, Mapping, Mappings};
use crate::proto::lisp::xtr::{self, Xtr};
use crate::types::lisp::{
    EncapChange, EncapEvent, EntryAction, InstanceId, MapVersion, NegativeAction, Rloc, RlocSet,
};
use crate::types::seam::Sighting;
use crate::types::transfer::Report;
use crate::types::{
    AnchorId, Binding, Claim, Generation, Instant, Lifetime, Locator, MnId, Prefix,
};
use crate::wire::lisp::Message;

/// Nodes that have left and are sent on, at most; one more is left to the map-caches of others.
const DEPARTED_MAX: usize = 100_000;

/// Buffers of messages that wait to be used again, at most, and the room that each may keep.
const BUFFERS_MAX: usize = 1024;
const BUFFER_LEN: usize = 256;

/// A binding that the store had and that nobody has registered again for this long is over: three
/// refreshes of its ETR (RFC 9301 §8.2).
const ADOPTED_KEEP: Duration = Duration::from_secs(200);

#[derive(Clone, Debug, Default)]
pub struct LispConfig {
    /// Of the mobile prefixes.
    pub iid: InstanceId,
    /// Where tunnels end here.
    pub rlocs: RlocSet,
    /// Home pools of this anchor, which it registers and takes from tunnels.
    pub home_pools: Vec<Prefix>,
    /// What FE_I does for a prefix of which nothing is known.
    pub ingress: Vec<(Prefix, EntryAction)>,
    pub departed_keep: Duration,
    /// Locators of the peers, where destinations are rewritten: whose a host is by its mapping.
    pub peer_locators: Vec<(Prefix, AnchorId)>,
    /// Names of the sites and of the subscribers, for listings.
    pub site_anchors: BTreeSet<AnchorId>,
}

/// One of each role that is configured.
pub struct Lisp {
    pub config: LispConfig,
    pub server: Option<MapServer>,
    pub xtr: Xtr,
    pub ingress: Ingress,
    /// Destinations are rewritten: which ones lead to hosts here. `None`: there are tunnels.
    pub locators: Option<Locators>,
    /// Nodes that have left, until when they are sent on, and where to.
    departed: BTreeMap<Prefix, (Instant, RlocSet)>,
    departed_until: BTreeSet<(Instant, Prefix)>,
    /// Withdrawals that wait for the Map-Register of the next anchor to be first.
    farewells: VecDeque<(Instant, Prefix)>,
    /// Bindings of sites that the store had, until somebody registers them again.
    adopted: BTreeSet<Prefix>,
    adopted_until: Instant,
    /// Who is being answered, and which of our addresses was asked.
    asked: Option<(IpAddr, IpAddr)>,
    /// What the data plane was told to take from tunnels, besides the home pools.
    allowed: BTreeSet<Prefix>,
    /// Empty; what the Map-Server says is collected here, because a list of its large outputs
    /// would be the largest allocation of a message.
    said: Vec<server::Output>,
    /// Empty buffers of messages that have left.
    buffers: Vec<Vec<u8>>,
    pub counters: LispCounters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LispCounters {
    /// Datagrams that are no control message.
    pub malformed: u64,
    pub received: u64,
    pub sent: u64,
    /// First packets without a mapping.
    pub misses: u64,
    /// Packets for nodes that have left.
    pub late: u64,
    /// Registrations older than what is known.
    pub stale_registrations: u64,
}

impl Lisp {
    pub fn new(
        config: LispConfig,
        server: Option<MapServer>,
        xtr: Xtr,
        ingress: Ingress,
        now: Instant,
    ) -> Self {
        Self {
            config,
            server,
            xtr,
            ingress,
            locators: None,
            departed: BTreeMap::new(),
            departed_until: BTreeSet::new(),
            farewells: VecDeque::new(),
            adopted: BTreeSet::new(),
            adopted_until: now + ADOPTED_KEEP,
            asked: None,
            allowed: BTreeSet::new(),
            said: Vec::new(),
            buffers: Vec::new(),
            counters: LispCounters::default(),
        }
    }

    /// With destinations that are rewritten instead of tunnels; `ingress` rewrites too.
    pub fn with_locators(self, locators: Locators) -> Self {
        Self { locators: Some(locators), ..self }
    }

    pub fn departed(&self) -> usize {
        self.departed.len()
    }

    fn poll_timeout(&self) -> Instant {
        let server = self.server.as_ref().and_then(MapServer::poll_timeout);
        let departed = self.departed_until.first().map(|(at, _)| *at);
        let farewell = self.farewells.front().map(|(at, _)| *at);
        let adopted = (!self.adopted.is_empty()).then_some(self.adopted_until);
        let xtr = self.xtr.poll_timeout();
        let locators = self.locators.as_ref().map(Locators::poll_timeout);
        [server, departed, farewell, adopted, locators]
            .into_iter()
            .flatten()
            .fold(xtr, Instant::min)
    }
}

/// The location database as the Map-Server reads it.
struct Bound<'a> {
    location: &'a crate::location::Location,
    iid: InstanceId,
}

impl Mappings for Bound<'_> {
    fn find(&self, iid: InstanceId, addr: IpAddr) -> Option<(Prefix, Mapping)> {
        if iid != self.iid {
            return None;
        }
        let binding = self.location.find_longest(addr)?;
        Some((binding.prefix, mapping_of(binding)))
    }
}

fn mapping_of(binding: &Binding) -> Mapping {
    Mapping {
        anchor: binding.anchor,
        fe_e: binding.fe_e,
        version: MapVersion::of_generation(binding.generation),
    }
}

/// The first usable address of each family: what a host route or a context can say of an RLOC set.
fn locator_of(rlocs: &RlocSet) -> Locator {
    let mut best: Vec<_> = rlocs.iter().filter(|r| r.priority < u8::MAX).collect();
    best.sort_by_key(|r| (r.priority, r.addr));
    Locator {
        ipv4: best.iter().find_map(|r| match r.addr {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        }),
        ipv6: best.iter().find_map(|r| match r.addr {
            IpAddr::V6(a) => Some(a),
            IpAddr::V4(_) => None,
        }),
    }
}

/// A mapping to this one address.
fn locator_set(addr: IpAddr) -> RlocSet {
    RlocSet::new(vec![Rloc { addr, priority: 1, weight: 100 }])
}

/// The name of a node of which only its EID is known: the same wherever it is seen.
fn eid_name(prefix: Prefix) -> MnId {
    MnId::new(&format!("eid:{prefix}")).expect("a prefix is printable and short")
}

impl Node {
    // ---- entrances ------------------------------------------------------------------------

    /// The roles are there: what does not depend on any node is registered, asked for and set up.
    pub fn start_lisp(&mut self, lisp: Lisp, now: Instant, out: &mut Vec<Output>) {
        let LispConfig { iid, rlocs, home_pools, ingress, .. } = lisp.config.clone();
        self.lisp = Some(lisp);
        if self.speaker.is_none() && self.config.controllers.is_empty() {
            self.timeline.set_announces_nothing();
        }
        let mut changes = Vec::new();
        if let Some(lisp) = &mut self.lisp {
            for (prefix, action) in ingress {
                lisp.ingress.set_policy(prefix, action, &mut changes);
            }
            // By its own addresses a home pool is reached without FE_E.
            if lisp.locators.is_none() {
                changes.extend(home_pools.iter().map(|&prefix| EncapChange::AllowDecap { prefix }));
            }
            if let Some(etr) = &mut lisp.xtr.etr {
                for prefix in home_pools {
                    // An aggregate has no generation: when another home is configured, its word is
                    // the latest, and counts.
                    etr.registrar.set(iid, prefix, rlocs.clone(), MapVersion::NULL);
                }
            }
        }
        out.extend(changes.into_iter().map(Output::Encap));
        self.handle_lisp_timeout(now, out);
    }

    /// A datagram that came to the control port, at our address `local`.
    pub fn handle_lisp(
        &mut self,
        from: SocketAddr,
        local: IpAddr,
        octets: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(lisp) = &mut self.lisp else { return };
        lisp.counters.received += 1;
        lisp.asked = Some((from.ip(), local));
        let Ok(message) = Message::decode(octets) else {
            lisp.counters.malformed += 1;
            return;
        };
        let for_server = lisp.server.is_some()
            && match &message {
                Message::MapRegister(_) | Message::MapNotifyAck(_) => true,
                // A question; solicits and probes are for the other roles.
                Message::MapRequest(request) => !request.smr && !request.probe,
                Message::Ecm(_) => true,
                Message::MapReply(_) | Message::MapNotify(_) => false,
            };
        if for_server {
            let bound = Bound { location: &self.location, iid: lisp.config.iid };
            let server = lisp.server.as_mut().expect("looked at above");
            let mut said = std::mem::take(&mut lisp.said);
            server.handle(now, from, octets, message, &bound, &mut said);
            self.carry_server(said, now, out);
        } else {
            let mut said = Vec::new();
            lisp.xtr.handle_message(from, local, &message, octets, now, &mut said);
            self.carry_xtr(said, now, out);
        }
        if let Some(lisp) = &mut self.lisp {
            lisp.asked = None;
        }
    }

    /// What the encapsulating data plane noticed.
    pub fn handle_encap_event(&mut self, event: EncapEvent, now: Instant, out: &mut Vec<Output>) {
        let Some(lisp) = &mut self.lisp else { return };
        let mut said = Vec::new();
        match event {
            EncapEvent::Miss { source, destination } => {
                lisp.counters.misses += 1;
                if let Some(itr) = &mut lisp.xtr.itr {
                    itr.handle_miss(source, destination, now, &mut said);
                }
            }
            EncapEvent::Late { rloc, iid, source, destination } => {
                lisp.counters.late += 1;
                if let Some(etr) = &mut lisp.xtr.etr {
                    etr.solicit(rloc, iid, source, destination, now, &mut said);
                }
            }
            EncapEvent::Used { prefixes } => {
                if let Some(itr) = &mut lisp.xtr.itr {
                    itr.handle_used(&prefixes, now, &mut said);
                }
            }
            EncapEvent::FirstPacket { prefix } => {
                let name = self.name_of(prefix);
                self.record(now, Some(name), prefix, Phase::FirstPacket, None, "");
            }
        }
        self.carry_xtr(said, now, out);
    }

    /// Asks the mapping system for an address, as its first packet would. `None` where there is
    /// nobody to do it: a map-server looks into its own tables.
    pub fn look_up(
        &mut self,
        eid: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<xtr::Miss> {
        let lisp = self.lisp.as_mut().filter(|lisp| lisp.server.is_none())?;
        let itr = lisp.xtr.itr.as_mut()?;
        let source = lisp.config.rlocs.iter().next().map_or(eid, |r| r.addr);
        let mut said = Vec::new();
        let miss = itr.handle_miss(source, eid, now, &mut said);
        self.carry_xtr(said, now, out);
        Some(miss)
    }

    /// What the map-server here tells of a prefix, and what it is about.
    pub fn served(&self, prefix: Prefix) -> Option<server::LookupView<'_>> {
        let lisp = self.lisp.as_ref()?;
        let bound = Bound { location: &self.location, iid: lisp.config.iid };
        Some(lisp.server.as_ref()?.lookup(lisp.config.iid, prefix, &bound))
    }

    /// The pool of a prefix, and its home.
    pub fn pool_of(&self, prefix: Prefix) -> Option<(Prefix, Option<AnchorId>)> {
        self.pools.find(prefix).map(|pool| (pool.prefix, pool.home))
    }

    pub(super) fn lisp_poll_timeout(&self) -> Option<Instant> {
        self.lisp.as_ref().map(Lisp::poll_timeout)
    }

    pub(super) fn handle_lisp_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(lisp) = &mut self.lisp else { return };
        let mut said = Vec::new();
        if let Some(server) = &mut lisp.server
            && server.poll_timeout().is_some_and(|at| at <= now)
        {
            server.handle_timeout(now, &mut said);
        }
        self.carry_server(said, now, out);
        while let Some((_, prefix)) =
            self.lisp.as_mut().and_then(|l| l.farewells.pop_front_if(|(at, _)| *at <= now))
        {
            self.withdraw_registration(prefix, now);
        }
        self.expire_departed(now, out);
        self.expire_adopted(now, out);
        let Some(lisp) = &mut self.lisp else { return };
        if let Some(locators) = &mut lisp.locators {
            let mut records = Vec::new();
            locators.handle_timeout(now, &mut records);
            out.extend(records.iter().map(|r| Output::Note(notes::of_locator(r))));
        }
        let mut said = Vec::new();
        if lisp.xtr.poll_timeout() <= now {
            lisp.xtr.handle_timeout(now, &mut said);
        }
        self.carry_xtr(said, now, out);
    }

    // ---- at the anchor --------------------------------------------------------------------

    /// The node is away from where an aggregate leads: it is registered by itself.
    pub(super) fn lisp_announce(&mut self, prefix: Prefix, now: Instant) {
        let generation = self.location.find(prefix).map_or(Generation::NONE, |b| b.generation);
        let is_home = self.pools.home(prefix) == Some(self.config.own);
        let Some(lisp) = &mut self.lisp else { return };
        let Some(etr) = &mut lisp.xtr.etr else { return };
        lisp.farewells.retain(|(_, p)| *p != prefix);
        let version = MapVersion::of_generation(generation);
        let rlocs = match &lisp.locators {
            None => lisp.config.rlocs.clone(),
            // At home its own address leads to it.
            Some(_) if is_home => locator_set(prefix.addr()),
            Some(locators) => match locators.find(prefix.addr()) {
                Some(locator) => locator_set(locator),
                // Counted when it was delivered. Without a mapping its packets go home.
                None => return tracing::warn!(%prefix, "there is no locator for it"),
            },
        };
        if etr.registrar.set(lisp.config.iid, prefix, rlocs, version) {
            self.record(now, None, prefix, Phase::Registering, None, "Map-Register");
        }
    }

    /// The aggregate leads to it again, it is at another anchor, or it is gone. Another anchor's
    /// Map-Register replaces ours; if ours came first with a withdrawal, ITRs would fall back to the
    /// aggregate for a moment, so it waits.
    pub(super) fn lisp_withdraw(&mut self, prefix: Prefix, now: Instant) {
        let own = self.config.own;
        let elsewhere = self.location.known_claim(prefix).is_some_and(|c| c.anchor != own);
        let delay = self.config.settle_delay;
        let Some(lisp) = &mut self.lisp else { return };
        if lisp.xtr.etr.is_none() {
            return;
        }
        if elsewhere && lisp.farewells.len() < super::flow::FAREWELLS_MAX {
            lisp.farewells.push_back((now + delay, prefix));
        } else {
            self.withdraw_registration(prefix, now);
        }
    }

    fn withdraw_registration(&mut self, prefix: Prefix, now: Instant) {
        let Some(lisp) = &mut self.lisp else { return };
        if let Some(etr) = &mut lisp.xtr.etr {
            etr.registrar.withdraw(lisp.config.iid, prefix, now);
        }
    }

    /// FE_E delivers to the node here.
    pub(super) fn lisp_deliver(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        let is_home = self.pools.home(prefix) == Some(self.config.own);
        let Some(lisp) = &mut self.lisp else { return };
        lisp.forget_departed(prefix);
        if let Some(locators) = &mut lisp.locators {
            if !is_home {
                let mut records = Vec::new();
                let locator = locators.take(prefix, &mut records);
                out.extend(records.iter().map(|r| Output::Note(notes::of_locator(r))));
                out.extend(locator.map(|locator| {
                    let action = EntryAction::Rewrite(prefix.addr());
                    let prefix = Prefix::host(locator);
                    Output::Encap(EncapChange::SetEntry { prefix, action })
                }));
            }
        } else if lisp.xtr.etr.is_some() && lisp.allowed.insert(prefix) {
            out.push(Output::Encap(EncapChange::AllowDecap { prefix }));
        }
        self.refresh_entry(prefix, out);
    }

    /// FE_E no longer delivers to the node here. If it is known where it is now, what still comes
    /// is sent there for a while, and who sends it is told.
    pub(super) fn lisp_release(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let own = self.config.own;
        let there = self.location.known_claim(prefix).map(|c| c.anchor).filter(|a| *a != own);
        let is_home_there = there.is_some() && there == self.pools.home(prefix);
        let rlocs = there.and_then(|a| self.config.locators.get(&a)).map(RlocSet::from);
        let Some(lisp) = &mut self.lisp else { return };
        match rlocs.filter(|_| lisp.departed.len() < DEPARTED_MAX) {
            Some(rlocs) => {
                // Which locator it has there only the mapping says; until then its packets wait. At
                // home it needs none.
                let rlocs = match &lisp.locators {
                    None => rlocs,
                    Some(_) if is_home_there => locator_set(prefix.addr()),
                    Some(_) => RlocSet::default(),
                };
                let until = now + lisp.config.departed_keep;
                lisp.forget_departed(prefix);
                lisp.departed.insert(prefix, (until, rlocs));
                lisp.departed_until.insert((until, prefix));
            }
            None => lisp.forbid(prefix, now, out),
        }
        self.refresh_entry(prefix, out);
    }

    /// Late packets go by an entry of FE_I again.
    pub(super) fn lisp_path_ended(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        if self.lisp.is_some() {
            self.refresh_entry(prefix, out);
        }
    }

    fn expire_departed(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(lisp) = &mut self.lisp
            && let Some(&(at, prefix)) = lisp.departed_until.first()
            && at <= now
        {
            lisp.forget_departed(prefix);
            lisp.forbid(prefix, now, out);
            self.refresh_entry(prefix, out);
        }
    }

    /// FE_I's entry of one prefix: delivered here, sent on, or as the map-cache has it.
    fn refresh_entry(&mut self, prefix: Prefix, out: &mut Vec<Output>) {
        let is_delivered = self.egress.find(prefix).is_some();
        let is_sent_on = self.is_sent_on(prefix);
        let Some(lisp) = &mut self.lisp else { return };
        let mut changes = Vec::new();
        let iid = lisp.config.iid;
        let ingress = &mut lisp.ingress;
        let cached = lisp.xtr.itr.as_ref().and_then(|itr| itr.lookup(prefix));
        let exact = cached.filter(|(found, _)| *found == prefix).map(|(_, mapping)| mapping);
        let is_own = |rlocs: &RlocSet| match &lisp.locators {
            None => *rlocs == lisp.config.rlocs,
            Some(locators) => rlocs.iter().any(|r| locators.is_own(r.addr)),
        };
        // The kernel leads to the node, or to where its packets wait and go on from.
        if is_delivered || is_sent_on {
            let no_rlocs = RlocSet::default();
            let native = NegativeAction::NativelyForward;
            ingress.set_mapping(iid, prefix, &no_rlocs, native, &mut changes);
        } else if let Some(mapping) = exact.filter(|m| !is_own(&m.rlocs)) {
            ingress.set_mapping(iid, prefix, &mapping.rlocs, mapping.action, &mut changes);
        } else if let Some((_, rlocs)) = lisp.departed.get(&prefix) {
            // Nothing known where destinations are rewritten: they are held, and it is asked for.
            let action = match lisp.locators {
                Some(_) => NegativeAction::SendMapRequest,
                None => NegativeAction::NoAction,
            };
            ingress.set_mapping(iid, prefix, rlocs, action, &mut changes);
        } else if exact.is_some() {
            // It is ours, by the mapping system: what is not delivered here goes nowhere else.
            let no_rlocs = RlocSet::default();
            let native = NegativeAction::NativelyForward;
            ingress.set_mapping(iid, prefix, &no_rlocs, native, &mut changes);
        } else {
            ingress.remove_mapping(prefix, &mut changes);
        }
        out.extend(changes.into_iter().map(Output::Encap));
    }

    // ---- what the machines say ------------------------------------------------------------

    fn carry_xtr(&mut self, outputs: Vec<xtr::Output>, now: Instant, out: &mut Vec<Output>) {
        for output in outputs {
            match output {
                xtr::Output::Persist(record) => out.push(Output::Note(notes::of_xtr(&record))),
                xtr::Output::Send { to, message, sign_with } => {
                    let mut octets = Vec::with_capacity(256);
                    message.encode(&mut octets);
                    let signed = sign_with.is_none_or(|keys| keys.sign(&mut octets).is_ok());
                    assert!(signed, "a message that is signed has room for its digest");
                    self.send_lisp(to, octets, out);
                }
                xtr::Output::Registered { server, prefix, .. } => {
                    let held = self.location.find(prefix).is_some();
                    tracing::debug!(%prefix, %server, "registered");
                    if held {
                        self.record(now, None, prefix, Phase::Registered, None, "Map-Notify");
                    }
                }
                xtr::Output::MovedAway { prefix, rlocs, version, .. } => {
                    self.handle_moved_away(prefix, &rlocs, version, now, out);
                }
                xtr::Output::SetMapping { prefix, rlocs, version, .. } => {
                    let itr = self.lisp.as_ref().and_then(|lisp| lisp.xtr.itr.as_ref());
                    let cached = itr.and_then(|itr| itr.lookup(prefix));
                    let learnt = Learnt {
                        version,
                        rloc: rlocs.iter().min_by_key(|r| r.priority).map(|r| r.addr),
                        is_pushed: cached.is_some_and(|(_, mapping)| mapping.is_pushed()),
                    };
                    let name = self.name_of(prefix);
                    let detail = Detail::Mapping(learnt);
                    self.record(now, Some(name), prefix, Phase::MappingSet, None, detail);
                    self.refresh_entry(prefix, out);
                }
                xtr::Output::RemoveMapping { prefix, .. } => {
                    let name = self.name_of(prefix);
                    self.record(now, Some(name), prefix, Phase::MappingGone, None, "");
                    self.refresh_entry(prefix, out);
                }
                xtr::Output::SetReachable { rloc, reachable } => {
                    tracing::info!(%rloc, reachable, "locator");
                    let Some(lisp) = &mut self.lisp else { continue };
                    let mut changes = Vec::new();
                    lisp.ingress.set_reachable(rloc, reachable, &mut changes);
                    out.extend(changes.into_iter().map(Output::Encap));
                }
                xtr::Output::Subscribed { prefix, .. } => {
                    tracing::info!(%prefix, "subscribed");
                }
                xtr::Output::Unsubscribed { prefix, .. } => {
                    tracing::warn!(%prefix, "not subscribed; the mapping system is asked meanwhile");
                }
            }
        }
    }

    /// Takes the list for the next ones back when it is empty.
    fn carry_server(
        &mut self,
        mut outputs: Vec<server::Output>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for output in outputs.drain(..) {
            match output {
                server::Output::Send { to, message, sign_with } => {
                    let mut octets = self.buffer();
                    let signed = server::encode(&message, sign_with.as_ref(), &mut octets);
                    assert!(signed.is_ok(), "a message that is signed has room for its digest");
                    self.send_lisp(to, octets, out);
                }
                server::Output::Registered { anchor, prefix, mobile, version, rlocs, .. } => {
                    if mobile {
                        self.handle_registered(anchor, prefix, version, &rlocs, now, out);
                    }
                }
                server::Output::Withdrawn { anchor, prefix, mobile, .. } => {
                    if mobile {
                        self.handle_unregistered(anchor, prefix, "Map-Register", now, out);
                    }
                }
                server::Output::Expired { anchor, prefix, mobile, .. } => {
                    if mobile {
                        self.handle_unregistered(anchor, prefix, "not refreshed", now, out);
                    }
                }
                server::Output::Persist(record) => {
                    out.push(Output::Note(notes::of_server(&record)))
                }
                server::Output::Refused { from, reason } => {
                    tracing::debug!(%from, %reason, "refused");
                }
            }
        }
        if let Some(lisp) = &mut self.lisp
            && lisp.said.capacity() < outputs.capacity()
        {
            lisp.said = outputs;
        }
    }

    fn buffer(&mut self) -> Vec<u8> {
        let used = self.lisp.as_mut().and_then(|lisp| lisp.buffers.pop());
        used.unwrap_or_else(|| Vec::with_capacity(BUFFER_LEN))
    }

    /// A message has left: its buffer can be used for another one.
    pub fn reuse_buffer(&mut self, mut octets: Vec<u8>) {
        if let Some(lisp) = &mut self.lisp
            && lisp.buffers.len() < BUFFERS_MAX
            && octets.capacity() <= BUFFER_LEN
        {
            octets.clear();
            lisp.buffers.push(octets);
        }
    }

    fn send_lisp(&mut self, to: SocketAddr, octets: Vec<u8>, out: &mut Vec<Output>) {
        let Some(lisp) = &mut self.lisp else { return };
        lisp.counters.sent += 1;
        // An answer leaves from the address that was asked.
        let from = lisp.asked.filter(|(by, _)| *by == to.ip()).map(|(_, at)| at);
        out.push(Output::Lisp { to, from, octets });
    }

    // ---- at the Map-Server ----------------------------------------------------------------

    /// A Map-Register is a report of the anchor that the site is.
    fn handle_registered(
        &mut self,
        anchor: AnchorId,
        prefix: Prefix,
        version: MapVersion,
        rlocs: &RlocSet,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let known = self.location.known_claim(prefix);
        let bound = self.location.find(prefix);
        let before = known.map_or(Generation::NONE, |c| c.generation);
        let generation = match version.generation_near(before) {
            Some(generation) => Some(generation),
            // An ETR that counts nothing: what it says is about now.
            None if bound.is_some_and(|b| b.anchor == anchor) => Some(before),
            None => before.next(),
        };
        let Some(generation) = generation else { return };
        let mn = bound.map_or_else(|| eid_name(prefix), |b| b.mn.clone());
        let binding = Binding {
            prefix,
            mn,
            anchor,
            fe_e: locator_of(rlocs),
            home: self.pools.home(prefix),
            generation,
            lifetime: Lifetime::WhileAttached,
        };
        if let Some(lisp) = &mut self.lisp {
            lisp.adopted.remove(&prefix);
        }
        let by = Sighting::MapRegister;
        self.handle_report_by(anchor, Report { binding, present: true }, by, now, out);
        // Somebody else has it, by a newer claim: the one who registered is told.
        if self.location.find(prefix).is_some_and(|b| b.anchor != anchor) {
            if let Some(lisp) = &mut self.lisp {
                lisp.counters.stale_registrations += 1;
            }
            self.publish(prefix, now, out);
        }
    }

    fn handle_unregistered(
        &mut self,
        anchor: AnchorId,
        prefix: Prefix,
        why: &'static str,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let held = self.location.find(prefix).filter(|b| b.anchor == anchor);
        if let Some(claim) = held.map(Binding::claim) {
            self.record(now, None, prefix, Phase::Left, Some(anchor), why);
            self.let_go(prefix, claim, now, out);
        }
    }

    /// Tells subscribers where a prefix is now.
    pub(super) fn publish(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(lisp) = &mut self.lisp else { return };
        let Some(server) = &mut lisp.server else { return };
        let mapping = self.location.find(prefix).map(mapping_of);
        let mut said = std::mem::take(&mut lisp.said);
        server.publish(now, lisp.config.iid, prefix, mapping, &mut said);
        let published = said.iter().any(|o| matches!(o, server::Output::Send { .. }));
        if published {
            self.record(now, None, prefix, Phase::Published, None, "Map-Notify");
        }
        self.carry_server(said, now, out);
    }

    /// What the store had of a site is known again, but its ETR has to confirm it.
    pub(super) fn lisp_adopt(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        let Some(binding) = self.location.find(prefix) else { return };
        let anchor = binding.anchor;
        let Some(lisp) = &mut self.lisp else { return };
        if lisp.server.is_some() && lisp.config.site_anchors.contains(&anchor) {
            lisp.adopted.insert(prefix);
        }
        self.publish(prefix, now, out);
    }

    fn expire_adopted(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(lisp) = &mut self.lisp else { return };
        if lisp.adopted.is_empty() || lisp.adopted_until > now {
            return;
        }
        for prefix in std::mem::take(&mut lisp.adopted) {
            if let Some(anchor) = self.location.find(prefix).map(|b| b.anchor) {
                self.handle_unregistered(anchor, prefix, "not registered again", now, out);
            }
        }
    }

    // ---- elsewhere ------------------------------------------------------------------------

    /// The mapping system says that somebody else has registered what we hold.
    fn handle_moved_away(
        &mut self,
        prefix: Prefix,
        rlocs: &RlocSet,
        version: MapVersion,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let held = self.location.find(prefix).filter(|b| b.anchor == self.config.own);
        let Some(held) = held else { return self.refresh_entry(prefix, out) };
        let anchor = self.anchor_at(rlocs).or_else(|| self.anchor_of_locator(prefix, rlocs));
        // Whose it is need not be known; that it is newer is in the version.
        let (Some(anchor), Some(generation)) = (anchor, version.generation_near(held.generation))
        else {
            return tracing::warn!(%prefix, "registered by somebody who is no peer of ours");
        };
        self.handle_claim(prefix, Claim { generation, anchor }, now, out);
    }

    /// Where destinations are rewritten: who has the host whose locator this is.
    pub(super) fn anchor_of_locator(&self, prefix: Prefix, rlocs: &RlocSet) -> Option<AnchorId> {
        let lisp = self.lisp.as_ref().filter(|lisp| lisp.locators.is_some())?;
        let rloc = rlocs.iter().next()?;
        if rloc.addr == prefix.addr() {
            return self.pools.home(prefix);
        }
        let mut peers = lisp.config.peer_locators.iter();
        peers.find(|(pool, _)| pool.contains_addr(rloc.addr)).map(|&(_, anchor)| anchor)
    }

    /// The peer whose FE_E these locators are.
    fn anchor_at(&self, rlocs: &RlocSet) -> Option<AnchorId> {
        let locator = locator_of(rlocs);
        let is_of = |l: &Locator| {
            l.ipv4.is_some() && l.ipv4 == locator.ipv4 || l.ipv6.is_some() && l.ipv6 == locator.ipv6
        };
        self.config.locators.iter().find(|(_, l)| is_of(l)).map(|(a, _)| *a)
    }

    /// Who has exactly this prefix, as the map-cache says. A mapping with a version names a
    /// generation, so an anchor without BGP knows whom to ask, and above what to claim, also when
    /// the home anchor does not answer.
    pub(super) fn heard_in_lisp(&self, prefix: Prefix) -> Option<Heard> {
        let lisp = self.lisp.as_ref()?;
        let (found, mapping) = lisp.xtr.itr.as_ref()?.lookup(prefix)?;
        if found != prefix || mapping.iid != lisp.config.iid || mapping.rlocs == lisp.config.rlocs {
            return None;
        }
        let known = self.location.known_claim(prefix).map_or(Generation::NONE, |c| c.generation);
        Some(Heard {
            anchor: self
                .anchor_at(&mapping.rlocs)
                .or_else(|| self.anchor_of_locator(prefix, &mapping.rlocs))?,
            generation: Some(mapping.version.generation_near(known)?),
            next_hop: mapping.rlocs.iter().next()?.addr,
        })
    }

    /// How a prefix is called in the timeline.
    fn name_of(&self, prefix: Prefix) -> MnId {
        self.location.find(prefix).map_or_else(|| eid_name(prefix), |b| b.mn.clone())
    }
}

impl Lisp {
    fn forget_departed(&mut self, prefix: Prefix) {
        if let Some((until, _)) = self.departed.remove(&prefix) {
            self.departed_until.remove(&(until, prefix));
        }
    }

    fn forbid(&mut self, prefix: Prefix, now: Instant, out: &mut Vec<Output>) {
        if let Some(locators) = &mut self.locators
            && let Some(locator) = locators.find(prefix.addr())
        {
            locators.release(prefix.addr(), now);
            let prefix = Prefix::host(locator);
            out.push(Output::Encap(EncapChange::RemoveEntry { prefix }));
        }
        if self.allowed.remove(&prefix) {
            out.push(Output::Encap(EncapChange::ForbidDecap { prefix }));
        }
    }
}
