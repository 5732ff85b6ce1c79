//! The mapping service's roles, made from the configuration, and its turn: control messages in,
//! control messages and entries of the encapsulating data plane out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::RunError;
use super::core::{BorrowedFd, Clock, Core, Plane};
use super::lisp::Beside;
use super::lisp::tun::{DEVICE, Settings, Tun};
use super::lisp::udp::Control;
use crate::auth::{Algorithm, KeyChain, LispKey, Secret};
use crate::config::{self, Checked, Encapsulation, IngressPolicy, LispAlgorithm, LispHook};
use crate::dataplane::ebpf::{self, Ebpf, Hook, Role};
use crate::dataplane::encap::Encapsulator;
use crate::dataplane::encap::gpe::{self, Gpe};
use crate::dataplane::netlink::{ENCAP_RULE, Tunnels, tunnel_protocol};
use crate::dataplane::rewrite::{self, Rewrite};
use crate::dataplane::tun;
use crate::gateway::{Ingress, Locators};
use crate::node::lisp::{Lisp, LispConfig, Stored, read_note};
use crate::proto::lisp::server::{
    Itr as Subscriber, MapServer, ProxyReply, Rate, SecuredItr, Security, SecurityConfig,
    ServerConfig, ServerLimits, Site,
};
use crate::proto::lisp::xtr::{
    self, Etr, EtrConfig, Itr, ItrConfig, MobilePrefix, Persist, Policy, ProbeConfig,
    RegistrarConfig, Xtr,
};
use crate::types::lisp::{EntryAction, Note, RlocSet};
use crate::types::{Family, Instant, Locator, Prefix};
use crate::wire::lisp::CONTROL_PORT;

/// TTL of what an anchor registers, in minutes. Moves are told; it bounds how long an ITR that
/// nobody can tell believes in an anchor that has died.
const REGISTERED_TTL_MIN: u32 = 60;

/// Subscriptions are kept on disk by the server; this finds one that has lost them. A server tells
/// all that is inside an aggregate again, so not often.
const RENEW_EVERY: Duration = Duration::from_secs(300);

/// Mappings that an ingress router keeps; the least recently used goes first.
const MAP_CACHE_MAX: usize = 1_000_000;

/// An ETR registers again within a minute (RFC 9301 §8.2), and a little more.
const WARM_UP: Duration = Duration::from_secs(65);

/// How long a subscription of an EID that is not registered lives (RFC 9437 §5).
const TEMPORARY_SUBSCRIPTION: Duration = Duration::from_secs(15 * 60);

/// The first line of a key file.
fn read_secret(path: &Path) -> Result<Secret, RunError> {
    let what = || format!("cannot read the key {}", path.display());
    let text = std::fs::read_to_string(path).map_err(RunError::io(what()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        let empty = io::Error::new(io::ErrorKind::InvalidData, "its first line is empty");
        return Err(RunError::io(what())(empty));
    }
    Ok(Secret::new(line.as_bytes().to_vec()))
}

fn lisp_key(key: &config::LispKey) -> Result<LispKey, RunError> {
    let algorithm = match key.algorithm {
        LispAlgorithm::Sha256 => Algorithm::Sha256_128,
        LispAlgorithm::Hkdf => Algorithm::Hkdf,
        LispAlgorithm::Sha1 => Algorithm::Sha1_96,
    };
    Ok(LispKey::new(read_secret(&key.file)?, algorithm))
}

fn key_chain(key: &config::LispKey, others: &[config::LispKey]) -> Result<KeyChain, RunError> {
    let mut chain = KeyChain::new(key.id, lisp_key(key)?);
    for other in others {
        chain = chain.accept(other.id, lisp_key(other)?);
    }
    Ok(chain)
}

/// The secrets of a party, the one in use first.
fn one_time_secrets(
    key: &config::LispKey,
    others: &[config::LispKey],
) -> Result<Vec<Security>, RunError> {
    std::iter::once(key).chain(others).map(|key| one_time_secret(key.id, &key.file)).collect()
}

/// The secret of a key, to wrap one-time keys with (RFC 9303).
fn one_time_secret(key_id: u8, file: &Path) -> Result<Security, RunError> {
    Ok(Security { key_id, secret: read_secret(file)? })
}

/// The secret of an ITR is in no other file as that of a site (RFC 9303 §6.5: "MUST be
/// independent"): whoever has both could claim anything.
fn independent<'a>(
    itr: &Security,
    mut of_sites: impl Iterator<Item = &'a Security>,
    file: &Path,
) -> Result<(), RunError> {
    if of_sites.any(|site| site.secret.octets() == itr.secret.octets()) {
        let what = format!("the key {} for questions", file.display());
        let same = io::Error::new(io::ErrorKind::InvalidData, "is also one to register with");
        return Err(RunError::io(what)(same));
    }
    Ok(())
}

/// The addresses of a locator, IPv4 first.
fn addresses(locator: &Locator) -> Vec<IpAddr> {
    locator.ipv4.map(IpAddr::V4).into_iter().chain(locator.ipv6.map(IpAddr::V6)).collect()
}

/// A seed that is not the one of the hash tables: nonces come from it.
fn seed() -> Result<xtr::Seed, RunError> {
    let mut seed = xtr::Seed::default();
    let filled = std::fs::File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut seed));
    filled.map_err(RunError::io("cannot read random numbers"))?;
    Ok(seed)
}

/// All roles that the configuration names; `notes` is what the store had.
pub fn roles(
    config: &Checked,
    notes: &[Note],
    hash_seed: u64,
    clock: Clock,
) -> Result<Option<Lisp>, RunError> {
    let Some(lisp) = &config.lisp else { return Ok(None) };
    let now = clock.now();
    let (mut of_server, mut of_xtr, mut of_locators) = (Vec::new(), Vec::new(), Vec::new());
    for note in notes {
        match read_note(note) {
            Ok(Stored::Server(record)) => of_server.push(record),
            Ok(Stored::Xtr(record)) => of_xtr.push(record),
            Ok(Stored::Locator(record)) => of_locators.push(record),
            Err(error) => tracing::error!(%error, "a stored note is skipped"),
        }
    }
    // Without a record we may still have been here before: the time of day is above what any
    // earlier run has used, unless the clock went back.
    let first_nonce = clock.unix_us(now);
    let server = match &lisp.server {
        Some(server) => {
            let config = server_config(config, lisp, server, hash_seed, first_nonce)?;
            Some(MapServer::new(config, &of_server, now))
        }
        None => None,
    };
    let pools = config.mobility.as_ref().map(|m| m.pools.as_slice()).unwrap_or_default();
    let own = config.node.anchor_id;
    let delivers = config.mobility.as_ref().is_some_and(|m| m.fe_e != Locator::default());
    let etr = match delivers {
        true => {
            let etr = Etr::new(etr_config(lisp, &of_xtr, first_nonce)?, seed()?);
            Some(etr.with_security(etr_keys(lisp)?))
        }
        false => None,
    };
    let itr = match lisp.ingress.is_empty() {
        false => {
            let itr = Itr::new(itr_config(lisp, &of_xtr)?, seed()?, now);
            Some(match itr_keys(lisp)? {
                Some(keys) => itr.with_security(keys),
                None => itr,
            })
        }
        true => None,
    };
    let action = |policy| match policy {
        IngressPolicy::Query | IngressPolicy::Push => EntryAction::Punt,
        IngressPolicy::Default => EntryAction::Native,
    };
    let roles = LispConfig {
        iid: lisp.iid,
        rlocs: RlocSet::from(&lisp.rloc),
        home_pools: pools
            .iter()
            .filter(|p| delivers && p.home == Some(own))
            .map(|p| p.prefix)
            .collect(),
        ingress: lisp.ingress.iter().map(|i| (i.prefix, action(i.policy))).collect(),
        departed_keep: lisp.departed_keep,
        peer_locators: config
            .peers
            .iter()
            .flat_map(|p| p.locators.iter().map(|&pool| (pool, p.anchor_id)))
            .collect(),
        site_anchors: sites(config).map(|s| s.anchor_id).collect::<BTreeSet<_>>(),
    };
    let families: Vec<Family> =
        addresses(&lisp.rloc).into_iter().map(|a| Prefix::host(a).family()).collect();
    let xtr = Xtr { etr, itr, ..Xtr::default() };
    if lisp.encapsulation != Encapsulation::Rewrite {
        return Ok(Some(Lisp::new(roles, server, xtr, Ingress::new(families), now)));
    }
    let locators = Locators::new(lisp.locators.clone(), &of_locators, now);
    let made = Lisp::new(roles, server, xtr, Ingress::rewriting(), now);
    Ok(Some(made.with_locators(locators)))
}

/// The sites that register here.
pub fn sites(config: &Checked) -> impl Iterator<Item = &config::LispSite> {
    let server = config.lisp.iter().filter_map(|lisp| lisp.server.as_ref());
    server.flat_map(|server| &server.sites)
}

fn server_config(
    config: &Checked,
    lisp: &config::Lisp,
    server: &config::LispServer,
    seed: u64,
    first_nonce: u64,
) -> Result<ServerConfig, RunError> {
    let mut sites = Vec::new();
    for site in &server.sites {
        sites.push(Site {
            name: site.name.clone(),
            anchor: site.anchor_id,
            site_id: Some(site.site_id),
            xtr_ids: Vec::new(),
            keys: key_chain(&site.key, &site.also_accept)?,
            security: one_time_secrets(&site.key, &site.also_accept)?,
            eid_prefixes: site.prefixes.iter().map(|&p| (lisp.iid, p)).collect(),
            accept_more_specifics: true,
            proxy_reply: ProxyReply::AsAsked,
            allow_merge: site.merge,
        });
    }
    let mut secured = Vec::new();
    for itr in &server.itrs {
        let key = one_time_secret(itr.key.id, &itr.key.file)?;
        independent(&key, sites.iter().flat_map(|s| &s.security), &itr.key.file)?;
        secured.push(SecuredItr { xtr_id: itr.xtr_id, key, rlocs: itr.rlocs.clone() });
    }
    let security = SecurityConfig {
        itrs: secured,
        required: server.require_security,
        allow_sha1: server.allow_sha1,
    };
    let mut itrs = Vec::new();
    for subscriber in &server.subscribers {
        itrs.push(Subscriber {
            xtr_id: subscriber.xtr_id,
            site_id: None,
            keys: key_chain(&subscriber.key, &subscriber.also_accept)?,
            rlocs: subscriber.rlocs.clone(),
            configured: Vec::new(),
            may_change: true,
        });
    }
    let pools = config.mobility.as_ref().map(|m| m.pools.as_slice()).unwrap_or_default();
    Ok(ServerConfig {
        sites,
        itrs,
        mobile_iid: lisp.iid,
        mobile_pools: pools.iter().map(|p| p.prefix).collect(),
        denied: Vec::new(),
        security,
        record_ttl_min: u32::try_from(server.record_ttl.as_secs() / 60).unwrap_or(u32::MAX),
        outside_ttl_min: 15,
        unregistered_ttl_min: 1,
        temporary_subscription: TEMPORARY_SUBSCRIPTION,
        limits: ServerLimits {
            requests_per_source: server.requests_per_source.map(Rate::each_second),
            requests_per_eid: server.requests_per_eid.map(Rate::each_second),
            ..ServerLimits::default()
        },
        seed,
        first_nonce,
        warm_up: WARM_UP,
    })
}

fn etr_config(
    lisp: &config::Lisp,
    stored: &[Persist],
    first_nonce: u64,
) -> Result<EtrConfig, RunError> {
    let mut servers = Vec::new();
    for server in lisp.map_servers.iter().filter(|s| s.register) {
        let keys = Arc::new(key_chain(&server.key, &server.also_accept)?);
        servers.push(xtr::MapServer { addr: server.address, keys });
    }
    let mut nonce_below = first_nonce;
    let mut notify_below = BTreeMap::new();
    for record in stored {
        match *record {
            Persist::RegisterNonce { below } => nonce_below = below,
            Persist::NotifyNonce { server, below } => {
                notify_below.insert(server, below);
            }
            Persist::SubscriptionNonce { .. } => {} // the ITR's
        }
    }
    Ok(EtrConfig {
        registrar: RegistrarConfig {
            servers,
            id: Some((lisp.xtr_id, lisp.site_id)),
            proxy_reply: true,
            merge: false,
            ttl_min: REGISTERED_TTL_MIN,
            nonce_below,
            notify_below,
        },
        rlocs: addresses(&lisp.rloc),
    })
}

/// What one-time keys are wrapped with for us as an ETR: the keys that we register with.
fn etr_keys(lisp: &config::Lisp) -> Result<Vec<Security>, RunError> {
    let mut secrets = Vec::new();
    for server in lisp.map_servers.iter().filter(|server| server.register) {
        secrets.extend(one_time_secrets(&server.key, &server.also_accept)?);
    }
    Ok(secrets)
}

fn itr_keys(lisp: &config::Lisp) -> Result<Option<BTreeMap<IpAddr, Security>>, RunError> {
    let Some(files) = &lisp.security else { return Ok(None) };
    let of_sites = etr_keys(lisp)?;
    let mut keys = BTreeMap::new();
    for (&resolver, key) in files {
        let secret = one_time_secret(key.id, &key.file)?;
        independent(&secret, of_sites.iter(), &key.file)?;
        keys.insert(resolver, secret);
    }
    Ok(Some(keys))
}

fn itr_config(lisp: &config::Lisp, stored: &[Persist]) -> Result<ItrConfig, RunError> {
    let keys = match lisp.map_servers.first() {
        Some(server) => Some(Arc::new(key_chain(&server.key, &server.also_accept)?)),
        None => None,
    };
    let policy = |policy| match (policy, &keys) {
        (IngressPolicy::Push, Some(keys)) => Policy::Push(Arc::clone(keys)),
        (IngressPolicy::Push | IngressPolicy::Query, _) => Policy::Query,
        (IngressPolicy::Default, _) => Policy::Default,
    };
    let prefixes = lisp.ingress.iter().map(|i| MobilePrefix {
        iid: lisp.iid,
        prefix: i.prefix,
        policy: policy(i.policy),
    });
    let subscription_below = stored.iter().filter_map(|record| match *record {
        Persist::SubscriptionNonce { iid, prefix, below } => Some(((iid, prefix), below)),
        Persist::RegisterNonce { .. } | Persist::NotifyNonce { .. } => None,
    });
    // What is asked at a host's locator comes to the host, which answers no probes.
    let interval = match lisp.encapsulation {
        Encapsulation::Rewrite => Duration::ZERO,
        Encapsulation::Tun | Encapsulation::Gpe | Encapsulation::Ebpf => lisp.probe_interval,
    };
    Ok(ItrConfig {
        prefixes: prefixes.collect(),
        resolvers: lisp.map_resolvers.clone(),
        rlocs: addresses(&lisp.rloc),
        pitr: true,
        id: Some((lisp.xtr_id, lisp.site_id)),
        renew_every: RENEW_EVERY,
        probe: (!interval.is_zero()).then(|| ProbeConfig { interval, ..ProbeConfig::default() }),
        cache_max: MAP_CACHE_MAX,
        subscription_below: subscription_below.collect(),
    })
}

/// Opens the control sockets.
pub fn open_control(lisp: &config::Lisp) -> Result<Control, RunError> {
    let binds: Vec<SocketAddr> =
        lisp.listen.iter().map(|&ip| SocketAddr::new(ip, CONTROL_PORT)).collect();
    Control::open(&binds).map_err(RunError::io(format!("LISP control, UDP {CONTROL_PORT}")))
}

/// Opens what encapsulates. `None` when this node neither starts nor ends tunnels.
pub fn open_encap(
    config: &Checked,
    lisp: &config::Lisp,
    now: Instant,
) -> Result<Option<Plane>, RunError> {
    let ends = config.mobility.as_ref().is_some_and(|m| m.fe_e != Locator::default());
    if !ends && lisp.ingress.is_empty() {
        return Ok(None);
    }
    super::setup::check_rights(false)?;
    set_home_routes(config)?;
    let engine = |used_for| tun::Config {
        used_for,
        iid: Some(lisp.iid),
        source4: lisp.rloc.ipv4,
        source6: lisp.rloc.ipv6,
        underlay_mtu: u16::try_from(lisp.mtu).unwrap_or(u16::MAX),
        hold: tun::HoldLimits::default(),
        first_packets: lisp.ingress.iter().map(first_packets).collect(),
    };
    let open_tun = |used_for, makes_routes: bool| {
        let mut settings = Settings::new(engine(used_for));
        settings.routes = settings.routes.filter(|_| makes_routes);
        if let Some(routes) = &mut settings.routes {
            routes.protocol = config.kernel.protocol;
        }
        settings.around.protocol = config.kernel.protocol;
        Tun::open(&settings).map_err(RunError::io("the TUN device of the encapsulating data plane"))
    };
    let other =
        |what: &'static str| move |error: String| RunError::io(what)(io::Error::other(error));
    let plane: Box<dyn Encapsulator> = match lisp.encapsulation {
        Encapsulation::Tun => Box::new(open_tun(tun::Use::Encapsulate, true)?),
        Encapsulation::Gpe => {
            let mut first = lisp.ingress.iter().map(|i| i.first_packets);
            let triangle = first.any(|first| first == config::FirstPackets::Triangle);
            let options = gpe::Options {
                ipv4: lisp.rloc.ipv4,
                ipv6: lisp.rloc.ipv6,
                underlay_mtu_bytes: lisp.mtu,
                iid: lisp.iid,
                punt: Some(DEVICE.to_owned()),
                protocol: tunnel_protocol(config.kernel.protocol),
                // Such packets must find the routes of others without ours.
                rule: triangle.then_some(ENCAP_RULE),
                ..gpe::Options::default()
            };
            // Its own routes lead to the device.
            let holding = open_tun(tun::Use::Punt, false)?;
            let failed = other("the kernel's LISP-GPE device");
            let gpe = Gpe::open(options).map_err(|error| failed(error.to_string()))?;
            Box::new(Beside::new(gpe, holding).map_err(RunError::io("LISP-GPE"))?)
        }
        Encapsulation::Ebpf => {
            let holding = open_tun(tun::Use::Punt, true)?;
            let ebpf = open_ebpf(config, lisp)?;
            Box::new(Beside::new(ebpf, holding).map_err(RunError::io("eBPF"))?)
        }
        Encapsulation::Rewrite => {
            let holding = open_tun(tun::Use::Punt, true)?;
            let rewrite = open_rewrite(config, lisp)?;
            Box::new(Beside::new(rewrite, holding).map_err(RunError::io("rewriting"))?)
        }
    };
    Ok(Some(Plane::new(plane, now)))
}

/// What is led to the device of the control plane comes from within the kernel, behind XDP.
fn hook(configured: LispHook, role: Role) -> Hook {
    match (configured, role) {
        (LispHook::Xdp, Role::Inside | Role::Underlay) => Hook::Xdp,
        (LispHook::Xdp, Role::Punt) | (LispHook::Tc, _) => Hook::Tc,
    }
}

/// What comes out of a tunnel for an address of our own pools that nobody has attached would take our
/// default route, and come back from a core that routes the pool to us, until its TTL is over. So our
/// pools lead nowhere, where no other route of ours or of anybody says more.
fn set_home_routes(config: &Checked) -> Result<(), RunError> {
    /// The last of all routes of a prefix.
    const METRIC: u32 = u32::MAX;
    let failed = |error: String| {
        RunError::io("routes for addresses of our pools that nobody has")(io::Error::other(error))
    };
    let Ok(table) = u8::try_from(config.kernel.table) else {
        tracing::warn!(
            table = config.kernel.table,
            "packets for addresses of our pools that nobody has attached take the ordinary routes: kernel.table is above 255"
        );
        return Ok(());
    };
    let own = config.node.anchor_id;
    let pools = config.mobility.as_ref().map(|m| m.pools.as_slice()).unwrap_or_default();
    let delivers = config.mobility.as_ref().is_some_and(|m| m.fe_e != Locator::default());
    let ours = pools.iter().filter(|p| delivers && p.home == Some(own));
    let wanted: Vec<Prefix> = ours.map(|p| p.prefix).collect();
    let mut tunnels =
        Tunnels::open(config.kernel.protocol).map_err(|error| failed(error.to_string()))?;
    tunnels.set_blackholes(table, METRIC, &wanted).map_err(|error| failed(error.to_string()))
}

fn first_packets(ingress: &config::Ingress) -> (Prefix, tun::FirstPackets) {
    let first = match ingress.first_packets {
        config::FirstPackets::Hold => tun::FirstPackets::Hold,
        config::FirstPackets::Triangle => tun::FirstPackets::Triangle,
        config::FirstPackets::Drop => tun::FirstPackets::Drop,
    };
    (ingress.prefix, first)
}

/// Loads the programs, and attaches them to the interfaces of the configuration and to the device
/// that the pools' routes lead to.
fn open_ebpf(config: &Checked, lisp: &config::Lisp) -> Result<Ebpf, RunError> {
    let other = |what: String| move |error: String| RunError::io(what)(io::Error::other(error));
    // One directory for each node of a machine. The file system of BPF takes no dots in names.
    let name = format!("killick-{:08x}", config.node.anchor_id.0);
    let options = ebpf::Options {
        pin: Path::new("/sys/fs/bpf").join(name),
        local: lisp.rloc,
        iid: Some(lisp.iid),
        mtu_bytes: lisp.mtu,
        sizes: ebpf::Sizes::default(),
        clsact: false,
    };
    let failed = other("the eBPF data plane".to_owned());
    let mut plane = Ebpf::open(options).map_err(|error| failed(error.to_string()))?;
    let inside = lisp.inner_interfaces.iter().map(|name| (name.as_str(), Role::Inside));
    let underlay = lisp.outer_interfaces.iter().map(|name| (name.as_str(), Role::Underlay));
    let wanted: Vec<(&str, Role)> = inside.chain(underlay).chain([(DEVICE, Role::Punt)]).collect();
    let failed = other("the eBPF data plane".to_owned());
    for (link, role) in plane.attached().map_err(|error| failed(error.to_string()))? {
        if !wanted.contains(&(link.as_str(), role)) {
            plane.detach(&link, role).map_err(RunError::io(format!("eBPF at {link}")))?;
        }
    }
    for (link, role) in wanted {
        let failed = other(format!("eBPF at {link}"));
        let how = plane
            .attach(link, role, hook(lisp.hook, role))
            .map_err(|error| failed(error.to_string()))?;
        tracing::info!(interface = link, ?role, ?how, "eBPF attached");
    }
    Ok(plane)
}

/// As [`open_ebpf`], with the programs that rewrite destinations.
fn open_rewrite(config: &Checked, lisp: &config::Lisp) -> Result<Rewrite, RunError> {
    let other = |what: String| move |error: String| RunError::io(what)(io::Error::other(error));
    let name = format!("killick-{:08x}", config.node.anchor_id.0);
    let options = rewrite::Options {
        pin: Path::new("/sys/fs/bpf").join(name),
        pools: lisp.locators.clone(),
        sizes: rewrite::Sizes::default(),
        clsact: false,
    };
    let failed = other("the data plane that rewrites".to_owned());
    let mut plane = Rewrite::open(options).map_err(|error| failed(error.to_string()))?;
    let named = lisp.inner_interfaces.iter().chain(&lisp.outer_interfaces);
    let outside = named.map(|name| (name.as_str(), rewrite::Role::Outside));
    let wanted: Vec<_> = outside.chain([(DEVICE, rewrite::Role::Punt)]).collect();
    let failed = other("the data plane that rewrites".to_owned());
    for (link, role) in plane.attached().map_err(|error| failed(error.to_string()))? {
        if !wanted.contains(&(link.as_str(), role)) {
            plane.detach(&link, role).map_err(RunError::io(format!("rewriting at {link}")))?;
        }
    }
    for (link, role) in wanted {
        let failed = other(format!("rewriting at {link}"));
        plane.attach(link, role).map_err(|error| failed(error.to_string()))?;
        tracing::info!(interface = link, ?role, "rewriting attached");
    }
    Ok(plane)
}

/// Runs for ever: control messages in batches, one turn each.
pub async fn run_control(core: Rc<Core>) {
    let Some(readiness) = core.state.borrow().control.as_ref().map(Control::readiness) else {
        return;
    };
    loop {
        if let Err(error) = readiness.readable().await {
            return tracing::error!(%error, "the LISP control sockets cannot be read");
        }
        while core.turn_control() {
            tokio::task::yield_now().await;
        }
    }
}

/// Runs for ever: what the encapsulating data plane noticed.
pub async fn run_encap(core: Rc<Core>) {
    let fd = core.state.borrow_mut().encap.as_mut().and_then(|plane| plane.plane_mut().event_fd());
    let Some(fd) = fd else { return };
    // SAFETY: the descriptor belongs to the data plane, which the core owns and never replaces;
    // this task holds the core.
    let registered = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(
            BorrowedFd(fd),
            tokio::io::Interest::READABLE,
        )
    };
    let fd = match registered {
        Ok(fd) => fd,
        Err(error) => return tracing::error!(%error, "the data plane cannot be listened to"),
    };
    loop {
        let Ok(mut ready) = fd.readable().await else { return };
        ready.clear_ready();
        while core.turn_encap() {
            tokio::task::yield_now().await;
        }
    }
}

/// How often the data plane is asked which entries carried packets.
const USED_EVERY: Duration = Duration::from_secs(1);

/// Entries asked about at once.
const USED_PAGE: usize = 4096;

/// Runs for ever: what is used is kept, and refreshed.
pub async fn run_used(core: Rc<Core>) {
    let mut after: Option<Prefix> = None;
    loop {
        if after.is_none() {
            tokio::time::sleep(USED_EVERY).await;
        }
        after = core.ask_used(after, USED_PAGE);
        tokio::task::yield_now().await;
    }
}

/// When a data plane wants to be woken.
pub fn encap_timeout(core_state: &super::core::State) -> Instant {
    core_state.encap.as_ref().map_or(Instant::FAR_FUTURE, |plane| plane.poll_timeout())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdp_is_where_frames_come_from_an_interface() {
        for role in [Role::Inside, Role::Underlay, Role::Punt] {
            assert_eq!(hook(LispHook::Tc, role), Hook::Tc);
            let is_xdp = hook(LispHook::Xdp, role) == Hook::Xdp;
            assert_eq!(is_xdp, role != Role::Punt);
        }
    }
}
