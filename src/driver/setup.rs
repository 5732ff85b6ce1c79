//! From the checked configuration to the parts of a running daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::RunError;
use super::access::Access;
use super::core::{Clock, Core};
use super::links::{self, Links};
use super::store::{Loaded, Record, Store, StoredBinding};
use super::tls::{TlsConfig, TlsFiles};
use super::{bgp, mapping, stream, tcp};
use crate::anchor::{self, Anchor};
use crate::auth::PathSecret;
use crate::config::{self, Checked, Filter, Mode, Role};
use crate::dataplane::Forwarding;
use crate::dataplane::netlink::{AccessLink, Options};
use crate::iec::Scope;
use crate::location::Pool;
use crate::mctx::{Mctx, MctxConfig, Trust};
use crate::node::lisp::Lisp;
use crate::node::{Aggregate, Node, NodeConfig, TransientConfig};
use crate::proto::bgp::policy::{ExportPolicy, ImportPolicy, PrefixFilter, PrefixRule};
use crate::proto::bgp::rib::{PeerKind, RibConfig};
use crate::proto::bgp::session::{GracefulRestart, Md5Key, SessionConfig, Transport};
use crate::proto::bgp::speaker::{NeighborConfig, Speaker, SpeakerConfig};
use crate::proto::cxtp;
use crate::proto::nd::{AdvertisedPrefix, Advertisement, LinkConfig};
use crate::types::seam::{Attachment, IfIndex};
use crate::types::transient::PathEnd;
use crate::types::{AnchorId, Binding, Claim, Instant, Lifetime, Prefix};

/// The link-local address of every access link: hosts keep their default router when they move.
const ANYCAST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How long a restarted node waits for its neighbours' tables (Selection_Deferral_Timer).
const RECOVER_MAX: Duration = Duration::from_secs(10);

pub struct Parts {
    pub node: Node,
    pub forwarding: Option<Forwarding>,
    pub store: Option<Store>,
    pub stored: Vec<(Prefix, Record)>,
    pub links: Links,
    pub access: Access,
    pub tls: Option<TlsConfig>,
    pub neighbors: Vec<NeighborConfig>,
    pub lisp: Option<Lisp>,
}

/// The only randomness of the daemon.
pub fn random_seed() -> io::Result<u64> {
    random().map(u64::from_ne_bytes)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    let mut file = std::fs::File::open("/dev/urandom")?;
    io::Read::read_exact(&mut file, &mut octets)?;
    Ok(octets)
}

/// Where we take packets of transient paths, when we do.
pub fn path_end(config: &Checked) -> Option<PathEnd> {
    let section = config.transient.as_ref()?;
    Some(PathEnd { locator: section.locator, port: section.port })
}

impl Parts {
    pub fn new(config: &Checked, seed: u64, clock: Clock) -> Result<Self, RunError> {
        let now = clock.now();
        let own = config.node.anchor_id;
        // A state directory that was there before is one of a node that ran before.
        let restarting = config.node.state_dir.join("store").exists();
        let store = match config.mobility.is_some() || config.lisp.is_some() {
            true => Some(open_store(&config.node.state_dir)?),
            false => None,
        };
        let stored = match &store {
            Some(store) => store.load(|error| tracing::error!(%error, "skipped"))?,
            None => Loaded::default(),
        };
        let forwarding = open_forwarding(config, now)?;
        let mut neighbors = Vec::new();
        for neighbor in config.bgp.iter().flat_map(|bgp| &bgp.neighbors) {
            neighbors.push(neighbor_config(config, neighbor, restarting)?);
        }
        let speaker = config.bgp.as_ref().map(|bgp| {
            let mut rib = RibConfig::new(bgp.local_as, bgp.router_id, seed);
            rib.cluster_id = bgp.cluster_id;
            let selection_deferral = (restarting && !neighbors.is_empty()).then_some(RECOVER_MAX);
            Speaker::new(SpeakerConfig { rib, seed, selection_deferral }, now)
        });
        let mut node_config = node_config(config, seed);
        if let Some(PathEnd { locator, .. }) = path_end(config) {
            let secret = random().map_err(RunError::io("cannot read random numbers"))?;
            let secret = PathSecret::new(&secret);
            node_config.transient = Some(TransientConfig { secret, locator });
        }
        let mctx_config = MctxConfig {
            is_controller: matches!(node_config.scope, Some(Scope::Controller)),
            ..MctxConfig::new(own, trust(config))
        };
        let anchor = Anchor::new(anchor_config(config));
        let mctx = Mctx::new(mctx_config, seed);
        let tls = match &config.tls {
            Some(tls) => {
                let files = TlsFiles {
                    ca: tls.ca.clone(),
                    certificate: tls.certificate.clone(),
                    key: tls.key.clone(),
                };
                let names: Vec<String> = linked(config).map(|p| p.tls_name.clone()).collect();
                Some(TlsConfig::load(&files, &names)?)
            }
            None => None,
        };
        let mut node = Node::new(node_config, anchor, mctx, speaker);
        node.start_bgp(config.bgp.as_ref().is_some_and(|bgp| bgp.install_table.is_some()));
        Ok(Self {
            node,
            forwarding,
            store,
            stored: stored.records,
            links: make_links(config, seed),
            access: Access::new(link_configs(config)),
            tls,
            neighbors,
            lisp: mapping::roles(config, &stored.notes, seed, clock)?,
        })
    }
}

fn open_store(dir: &Path) -> Result<Store, RunError> {
    std::fs::create_dir_all(dir)
        .map_err(RunError::io(format!("cannot make the state directory {}", dir.display())))?;
    Ok(Store::open(&dir.join("store"))?)
}

/// `None` when nothing of this node's work needs the kernel: a reflector or a controller.
fn open_forwarding(config: &Checked, now: Instant) -> Result<Option<Forwarding>, RunError> {
    let installs = config.bgp.as_ref().and_then(|bgp| bgp.install_table);
    if config.access.is_empty() && installs.is_none() {
        return Ok(None);
    }
    check_rights(!config.access.is_empty())?;
    let options = Options {
        table: installs.unwrap_or(config.kernel.table),
        protocol: config.kernel.protocol,
        bgp_metric: config.kernel.metric,
        ..Options::default()
    };
    Forwarding::open(options, now).map(Some).map_err(RunError::io("cannot open netlink"))
}

/// Without these every request to the kernel would be refused, one by one and for ever.
pub(super) fn check_rights(access: bool) -> Result<(), RunError> {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_NET_RAW: u32 = 13;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // Where that cannot be read, the kernel's answers will have to do.
    let Some(set) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Ok(());
    };
    let lacks = |capability: u32| set >> capability & 1 == 0;
    if lacks(CAP_NET_ADMIN) {
        return Err(RunError::Rights("CAP_NET_ADMIN"));
    }
    if access && lacks(CAP_NET_RAW) {
        return Err(RunError::Rights("CAP_NET_RAW"));
    }
    Ok(())
}

fn own_locator(config: &Checked) -> crate::types::Locator {
    config.mobility.as_ref().map_or(Default::default(), |m| m.fe_e)
}

/// The peers with a context transfer link, in the order of the configuration.
fn linked(config: &Checked) -> impl Iterator<Item = &config::Peer> {
    config.peers.iter().filter(|p| p.address.is_some())
}

fn trust(config: &Checked) -> Vec<Trust> {
    let trust = |p: &config::Peer| Trust { anchor: p.anchor_id, may_claim: p.may_claim.clone() };
    config.peers.iter().map(trust).collect()
}

fn node_config(config: &Checked, seed: u64) -> NodeConfig {
    let own = config.node.anchor_id;
    let mobility = config.mobility.as_ref();
    let scope = mobility.map(|m| match m.mode {
        Mode::Distributed => Scope::Distributed { own },
        Mode::Client => Scope::Client { own },
        Mode::Controller => Scope::Controller,
    });
    let locators: BTreeMap<_, _> =
        config.peers.iter().filter_map(|p| Some((p.anchor_id, p.fe_e?))).collect();
    let pools = mobility.map(|m| m.pools.as_slice()).unwrap_or_default();
    let mut aggregates: Vec<Aggregate> = pools
        .iter()
        .filter(|p| p.announce_aggregate)
        .map(|p| {
            let home = p.home.filter(|home| *home != own);
            let elsewhere = home.and_then(|home| locators.get(&home)).copied();
            Aggregate { prefix: p.prefix, next_hop: elsewhere.unwrap_or(own_locator(config)) }
        })
        .collect();
    for network in config.bgp.iter().flat_map(|bgp| &bgp.networks) {
        let next_hop = match network.next_hop {
            Some(IpAddr::V4(a)) => crate::types::Locator { ipv4: Some(a), ipv6: None },
            Some(IpAddr::V6(a)) => crate::types::Locator { ipv4: None, ipv6: Some(a) },
            None => own_locator(config),
        };
        aggregates.push(Aggregate { prefix: network.prefix, next_hop });
    }
    NodeConfig {
        own,
        scope,
        local_as: config.bgp.as_ref().map_or(0, |bgp| bgp.local_as),
        pools: pools.iter().map(|p| Pool { prefix: p.prefix, home: p.home }).collect(),
        fe_e: own_locator(config),
        locators,
        trust: config
            .peers
            .iter()
            .map(|p| (p.anchor_id, p.may_claim.clone()))
            .chain(mapping::sites(config).map(|s| (s.anchor_id, s.prefixes.clone())))
            .collect(),
        controllers: config
            .peers
            .iter()
            .filter(|p| p.role == Role::Controller)
            .map(|p| p.anchor_id)
            .collect(),
        aggregates,
        no_export: mobility.is_none_or(|m| m.no_export),
        api_lifetime: mobility.and_then(|m| m.lifetime),
        settle_delay: mobility.map_or(Duration::ZERO, |m| m.settle_delay),
        settle_unconfirmed: mobility.map_or(Duration::ZERO, |m| m.settle_unconfirmed),
        prepare_max: mobility.map_or(Duration::ZERO, |m| m.prepare_max),
        recover_max: if config.bgp.is_some() { RECOVER_MAX } else { Duration::ZERO },
        transient: None,
        seed,
    }
}

fn anchor_config(config: &Checked) -> anchor::Config {
    let mut out = anchor::Config::default();
    let Some(mobility) = &config.mobility else { return out };
    out.pools = mobility.pools.iter().map(|p| anchor::Pool::of_hosts(p.prefix)).collect();
    out.nodes = mobility.nodes.iter().filter_map(|n| Some((n.mac?, n.id.clone()))).collect();
    out.detach_grace = mobility.detach_grace;
    out
}

fn filter(filter: &Filter) -> PrefixFilter {
    match filter {
        Filter::None => PrefixFilter::None,
        Filter::All => PrefixFilter::All,
        Filter::List(rules) => PrefixFilter::Permit(
            rules.iter().map(|r| PrefixRule { prefix: r.prefix, ge: r.ge, le: r.le }).collect(),
        ),
    }
}

fn neighbor_config(
    config: &Checked,
    neighbor: &config::Neighbor,
    restarting: bool,
) -> Result<NeighborConfig, RunError> {
    let bgp = config.bgp.as_ref().expect("a neighbor is part of [bgp]");
    let mut session = SessionConfig::new(bgp.local_as, neighbor.remote_as, bgp.router_id);
    session.passive = neighbor.passive;
    session.families = neighbor.families.iter().copied().collect();
    session.hold_time_s = u16::try_from(neighbor.hold_time.as_secs()).unwrap_or(u16::MAX);
    session.connect_retry = neighbor.connect_retry;
    session.send_hold = (!neighbor.send_hold_time.is_zero()).then_some(neighbor.send_hold_time);
    session.extended_next_hop = neighbor.extended_next_hop;
    let restart_time_s = u16::try_from(bgp.graceful_restart_time.as_secs()).unwrap_or(4095);
    session.graceful_restart = (restart_time_s > 0).then(|| GracefulRestart {
        restart_time_s,
        restarting,
        // Deliveries and routes stay in the kernel when the daemon dies.
        forwarding_preserved: restarting,
        ..GracefulRestart::default()
    });
    let limit = neighbor.max_prefix.filter(|m| m.action != config::MaxPrefixAction::Warn);
    session.max_prefix_restart =
        limit.filter(|m| m.action == config::MaxPrefixAction::Restart).map(|m| m.restart_after);
    let md5 = match &neighbor.password_file {
        Some(path) => Some(read_key(path, neighbor.address.ip())?),
        None => None,
    };
    let transport = Transport {
        local: neighbor.local_address,
        md5,
        ttl_security_hops: neighbor.ttl_security_hops,
        ..Transport::new(neighbor.address)
    };
    let mut out = NeighborConfig::new(session, transport);
    out.description = neighbor.description.clone().unwrap_or_default();
    if neighbor.route_reflector_client {
        out.kind = PeerKind::Client;
    }
    out.import = ImportPolicy { filter: filter(&neighbor.import), local_pref: None };
    out.export =
        ExportPolicy { filter: filter(&neighbor.export), next_hop_self: neighbor.next_hop_self };
    out.max_prefixes_v4 = limit.map(|m| m.limit);
    out.max_prefixes_v6 = limit.map(|m| m.limit);
    out.local_v4 = own_locator(config).ipv4;
    out.local_v6 = own_locator(config).ipv6;
    out.shutdown = neighbor.shutdown;
    out.strict_path = neighbor.bfd.as_ref().is_some_and(|bfd| bfd.strict);
    Ok(out)
}

fn read_key(path: &Path, address: IpAddr) -> Result<Md5Key, RunError> {
    let text = std::fs::read_to_string(path)
        .map_err(RunError::io(format!("cannot read {}", path.display())))?;
    let first = text.lines().next().unwrap_or_default();
    Md5Key::new(first.as_bytes()).ok_or_else(|| RunError::Neighbor {
        address,
        why: format!("the first line of {} is no key of 1 to 80 octets", path.display()),
    })
}

/// The access interfaces, for the kernel.
pub fn access_links(config: &Checked) -> Vec<AccessLink> {
    config
        .access
        .iter()
        .map(|a| AccessLink {
            name: a.interface.clone(),
            mac: Some(a.gateway_mac),
            link_local: ANYCAST_LINK_LOCAL,
            gateways: a.gateways.iter().copied().filter(|g| !is_link_local(*g)).collect(),
        })
        .collect()
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// The access interfaces, for the machines that answer hosts.
fn link_configs(config: &Checked) -> BTreeMap<String, LinkConfig> {
    let pools: Vec<Prefix> =
        config.mobility.iter().flat_map(|m| &m.pools).map(|p| p.prefix).collect();
    let link = |a: &config::Access| LinkConfig {
        link: IfIndex(0),
        mac: a.gateway_mac,
        link_local: ANYCAST_LINK_LOCAL,
        gateways: a.gateways.iter().copied().filter(|g| !is_link_local(*g)).collect(),
        kernel_answers: true,
        pools: pools.clone(),
        advertise: a.router_advertisement.as_ref().map(|ra| Advertisement {
            interval_max: ra.interval,
            lifetime: ra.router_lifetime,
            // One router on the link: nobody else could answer at the same moment.
            solicited_delay_max: Duration::ZERO,
            managed: ra.managed,
            other_config: ra.other_config,
            mtu: ra.mtu,
            prefixes: ra
                .prefixes
                .iter()
                .map(|&prefix| AdvertisedPrefix {
                    prefix,
                    on_link: false,
                    autonomous: true,
                    valid: ra.valid_lifetime,
                    preferred: ra.preferred_lifetime,
                })
                .collect(),
            ..Advertisement::default()
        }),
    };
    config.access.iter().map(|a| (a.interface.clone(), link(a))).collect()
}

fn make_links(config: &Checked, seed: u64) -> Links {
    let own = config.node.anchor_id;
    let is_controller =
        config.mobility.as_ref().is_some_and(|m| matches!(m.mode, Mode::Controller));
    let role = if is_controller { cxtp::Role::Controller } else { cxtp::Role::Anchor };
    let mut links = Links::default();
    for peer in linked(config) {
        let path_end = path_end(config);
        let link =
            cxtp::PeerConfig { path_end, ..cxtp::PeerConfig::new(own, role, peer.anchor_id) };
        links.add(link, &peer.name, seed);
    }
    links
}

/// How people call the anchors.
pub fn names(config: &Checked) -> BTreeMap<AnchorId, String> {
    let mut names: BTreeMap<_, _> =
        config.peers.iter().map(|p| (p.anchor_id, p.name.clone())).collect();
    names.extend(mapping::sites(config).map(|s| (s.anchor_id, s.name.clone())));
    names.insert(config.node.anchor_id, config.node.name.clone());
    names
}

/// Brings what the store had back into the node.
pub fn restore(core: &Rc<Core>, stored: Vec<(Prefix, Record)>) {
    if stored.is_empty() {
        return;
    }
    let (mut bound, mut gone) = (Vec::new(), Vec::new());
    let state = core.state.borrow();
    let own = state.node.own();
    for (prefix, record) in stored {
        match record {
            Record::Gone(claim) => gone.push((prefix, claim)),
            Record::Bound(stored) => {
                let link = stored.link.as_deref();
                let attached = link.and_then(|name| state.access.find(name)).zip(stored.mac);
                if stored.anchor == own && link.is_some() && attached.is_none() {
                    // Its interface is not there: should the node be, it will be sighted.
                    let claim = Claim { generation: stored.generation, anchor: own };
                    gone.push((prefix, claim));
                    continue;
                }
                let attachment = attached.map(|(link, mac)| Attachment { link, mac });
                bound.push((binding(prefix, stored, core), attachment));
            }
        }
    }
    drop(state);
    let nodes: BTreeSet<_> = bound.iter().map(|(b, _)| b.mn.clone()).collect();
    tracing::info!(bindings = bound.len(), nodes = nodes.len(), "restored from the store");
    core.turn(|node, now, out| node.restore(bound, gone, now, out));
}

fn binding(prefix: Prefix, stored: StoredBinding, core: &Core) -> Binding {
    Binding {
        prefix,
        mn: stored.mn,
        anchor: stored.anchor,
        fe_e: stored.fe_e,
        home: stored.home,
        generation: stored.generation,
        lifetime: match stored.until_unix_ms {
            None => Lifetime::WhileAttached,
            Some(ms) => Lifetime::Until(core.clock.instant(Duration::from_millis(ms))),
        },
    }
}

/// Opens what the world comes in by.
pub fn listen(core: &Rc<Core>, config: &Checked, tls: Option<TlsConfig>) -> Result<(), RunError> {
    for &addr in config.bgp.iter().flat_map(|bgp| &bgp.listen) {
        let listener = tcp::listen(addr).map_err(RunError::io("BGP"))?;
        let listener = Rc::new(listener);
        core.state.borrow_mut().connections.listen(Rc::clone(&listener));
        tokio::task::spawn_local(bgp::run_listener(Rc::clone(core), listener));
    }
    if let (Some(tls), Some(files)) = (tls, &config.tls) {
        let tls = Rc::new(tls);
        let peers: Rc<Vec<AnchorId>> = Rc::new(linked(config).map(|p| p.anchor_id).collect());
        for &addr in &files.listen {
            let listener = tcp::listen(addr).map_err(RunError::io("context transfer"))?;
            tokio::task::spawn_local(links::run_listener(
                Rc::clone(core),
                Rc::clone(&tls),
                listener,
                Rc::clone(&peers),
            ));
        }
        for (index, peer) in linked(config).enumerate() {
            // Of a pair the lower id dials.
            if let Some(addr) = peer.address.filter(|_| config.node.anchor_id < peer.anchor_id) {
                tokio::task::spawn_local(links::run_dialer(
                    Rc::clone(core),
                    Rc::clone(&tls),
                    peer.anchor_id,
                    addr,
                    index,
                ));
            }
        }
    }
    if config.mobility.is_some() {
        let listener = stream::bind(&config.api.stream_socket, config.api.mode)
            .map_err(RunError::io(config.api.stream_socket.display().to_string()))?;
        tokio::task::spawn_local(stream::run_listener(Rc::clone(core), listener));
    }
    Ok(())
}
