//! The configuration after all checks: plain values, defaults filled in, nothing optional that the
//! daemon needs. Made only by [`super::check`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::file::{
    BfdAlgorithm, Encapsulation, FirstPackets, IngressPolicy, LispAlgorithm, LispHook, LogFormat,
    MaxPrefixAction, Mode, Role, WhenFull,
};
use crate::types::lisp::{InstanceId, SiteId, XtrId};
use crate::types::{AnchorId, Family, Locator, MacAddr, MnId, Prefix};

pub const BGP_PORT: u16 = 179;
/// TCP port of context transfer between killicks; ours to choose (RFC 4067 §5.4 names an SCTP
/// port, which does not apply to TLS over TCP). Mnemonic: the number of the RFC.
pub const CXTP_PORT: u16 = 4067;
pub const GATEWAY_MAC: MacAddr = MacAddr([0x02, b'k', b'i', b'l', b'l', 0x01]);
pub const SOCKET: &str = "/run/killick/api.sock";
pub const STATE_DIR: &str = "/var/lib/killick";
/// Free among the numbers of `/etc/iproute2/rt_protos`; the letter k.
pub const KERNEL_PROTOCOL: u8 = b'k';

#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    pub node: Node,
    pub bgp: Option<Bgp>,
    /// Paths to watch besides those to neighbours.
    pub bfd: Vec<Bfd>,
    pub mobility: Option<Mobility>,
    pub access: Vec<Access>,
    pub peers: Vec<Peer>,
    pub tls: Option<Tls>,
    pub lisp: Option<Lisp>,
    pub transient: Option<Transient>,
    pub api: Api,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub metrics: Option<SocketAddr>,
    pub kernel: Kernel,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub anchor_id: AnchorId,
    pub name: String,
    pub state_dir: PathBuf,
    /// In the syntax of `tracing_subscriber::EnvFilter`.
    pub log_level: String,
    pub log_format: LogFormat,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bgp {
    pub local_as: u32,
    pub router_id: Ipv4Addr,
    pub cluster_id: Ipv4Addr,
    pub listen: Vec<SocketAddr>,
    /// Zero: no graceful restart.
    pub graceful_restart_time: Duration,
    /// Kernel table for best paths, when they are installed.
    pub install_table: Option<u32>,
    pub neighbors: Vec<Neighbor>,
    pub networks: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Neighbor {
    pub address: SocketAddr,
    pub remote_as: u32,
    pub description: Option<String>,
    pub local_address: Option<IpAddr>,
    pub passive: bool,
    pub route_reflector_client: bool,
    /// Without duplicates, never empty.
    pub families: Vec<Family>,
    /// Zero, or at least three seconds.
    pub hold_time: Duration,
    /// Zero: never.
    pub send_hold_time: Duration,
    pub connect_retry: Duration,
    /// Not read yet: `check` runs without the rights to.
    pub password_file: Option<PathBuf>,
    pub ttl_security_hops: Option<u8>,
    pub max_prefix: Option<MaxPrefix>,
    pub import: Filter,
    pub export: Filter,
    pub next_hop_self: bool,
    pub extended_next_hop: bool,
    pub shutdown: bool,
    pub bfd: Option<NeighborBfd>,
}

/// A path that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bfd {
    pub remote: IpAddr,
    pub local: Option<IpAddr>,
    pub multihop: bool,
    pub interface: Option<String>,
    /// Least TTL of what comes over many hops; 0 is any.
    pub ttl_min: u8,
    /// Both from 10 ms to 60 s.
    pub min_tx: Duration,
    pub min_rx: Duration,
    /// Not 0.
    pub multiplier: u8,
    pub passive: bool,
    pub key: Option<BfdKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdKey {
    pub id: u8,
    /// Not read yet: `check` runs without the rights to.
    pub file: PathBuf,
    pub algorithm: BfdAlgorithm,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborBfd {
    pub path: Bfd,
    /// No session without it.
    pub strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefix {
    /// For each family.
    pub limit: u32,
    pub action: MaxPrefixAction,
    pub restart_after: Duration,
}

/// What may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    None,
    All,
    /// One rule must permit it. `"pools"` is here already in full.
    List(Vec<Permit>),
}

/// Prefixes inside `prefix` with a length from `ge` to `le`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    pub prefix: Prefix,
    pub ge: u8,
    pub le: u8,
}

impl Filter {
    pub fn permits(&self, prefix: Prefix) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::List(rules) => rules.iter().any(|rule| rule.permits(prefix)),
        }
    }
}

impl Permit {
    /// The prefix and everything inside.
    pub fn inside(prefix: Prefix) -> Self {
        Self { prefix, ge: prefix.len(), le: prefix.family().bits() }
    }

    pub fn permits(self, prefix: Prefix) -> bool {
        self.prefix.contains(prefix) && (self.ge..=self.le).contains(&prefix.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub prefix: Prefix,
    /// `None`: our address of the session it is announced over.
    pub next_hop: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mobility {
    pub mode: Mode,
    /// Empty only at a controller.
    pub fe_e: Locator,
    pub settle_delay: Duration,
    /// At least `settle_delay`.
    pub settle_unconfirmed: Duration,
    pub prepare_max: Duration,
    pub detach_grace: Duration,
    pub no_export: bool,
    /// `None`: as long as attached.
    pub lifetime: Option<Duration>,
    /// No two overlap unless they have the same home.
    pub pools: Vec<Pool>,
    pub nodes: Vec<NodeEntry>,
}

impl Mobility {
    /// The pool a prefix belongs to; the longest when they are nested.
    pub fn find_pool(&self, prefix: Prefix) -> Option<&Pool> {
        self.pools.iter().filter(|p| p.prefix.contains(prefix)).max_by_key(|p| p.prefix.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub prefix: Prefix,
    pub home: Option<AnchorId>,
    pub announce_aggregate: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    pub id: MnId,
    pub mac: Option<MacAddr>,
    /// Inside the pools; no prefix belongs to two nodes.
    pub prefixes: Vec<Prefix>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    pub interface: String,
    pub gateways: Vec<IpAddr>,
    pub gateway_mac: MacAddr,
    pub router_advertisement: Option<RouterAdvertisement>,
    pub uplink_filter: bool,
}

/// In the units of RFC 4861 §6.2.1.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterAdvertisement {
    pub interval: Duration,
    pub router_lifetime: Duration,
    pub managed: bool,
    pub other_config: bool,
    pub mtu: Option<u32>,
    /// All /64.
    pub prefixes: Vec<Prefix>,
    pub preferred_lifetime: Duration,
    pub valid_lifetime: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    pub name: String,
    pub anchor_id: AnchorId,
    /// `None` for an external anchor only.
    pub address: Option<SocketAddr>,
    pub tls_name: String,
    pub role: Role,
    /// `"pools"` is here already in full.
    pub may_claim: Vec<Prefix>,
    pub fe_e: Option<Locator>,
    pub locators: Vec<Prefix>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub listen: Vec<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Lisp {
    pub iid: InstanceId,
    /// Where the control sockets listen.
    pub listen: Vec<IpAddr>,
    /// Empty only at a pure map-server.
    pub rloc: Locator,
    pub xtr_id: XtrId,
    pub site_id: SiteId,
    pub encapsulation: Encapsulation,
    pub mtu: u32,
    /// Of hosts here, where destinations are rewritten; then of both families that hosts have.
    pub locators: Vec<Prefix>,
    pub hook: LispHook,
    pub inner_interfaces: Vec<String>,
    pub outer_interfaces: Vec<String>,
    /// Not empty when something is asked.
    pub map_resolvers: Vec<IpAddr>,
    pub map_servers: Vec<MapServer>,
    /// Of each map-resolver, when only proven Map-Replies are believed (RFC 9303).
    pub security: Option<BTreeMap<IpAddr, OneTimeKeyFile>>,
    /// No two of one prefix.
    pub ingress: Vec<Ingress>,
    /// Zero: never.
    pub probe_interval: Duration,
    pub departed_keep: Duration,
    pub server: Option<LispServer>,
}

/// A key that is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LispKey {
    pub id: u8,
    /// Not read yet: `check` runs without the rights to.
    pub file: PathBuf,
    pub algorithm: LispAlgorithm,
}

/// A key that one-time keys are wrapped with (RFC 9303), in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimeKeyFile {
    pub id: u8,
    pub file: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MapServer {
    pub address: IpAddr,
    pub key: LispKey,
    pub also_accept: Vec<LispKey>,
    pub register: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    pub prefix: Prefix,
    pub policy: IngressPolicy,
    pub first_packets: FirstPackets,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LispServer {
    /// Whole minutes, at least one.
    pub record_ttl: Duration,
    pub allow_sha1: bool,
    pub sites: Vec<LispSite>,
    pub subscribers: Vec<LispSubscriber>,
    pub require_security: bool,
    /// A second; `None`: no limit.
    pub requests_per_source: Option<u32>,
    pub requests_per_eid: Option<u32>,
    pub itrs: Vec<LispItr>,
}

/// Whose questions may ask for a proven answer.
#[derive(Clone, Debug, PartialEq)]
pub struct LispItr {
    pub name: String,
    pub xtr_id: XtrId,
    pub key: OneTimeKeyFile,
    /// Empty: any.
    pub rlocs: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LispSite {
    pub name: String,
    pub anchor_id: AnchorId,
    pub site_id: SiteId,
    pub key: LispKey,
    pub also_accept: Vec<LispKey>,
    pub prefixes: Vec<Prefix>,
    pub merge: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LispSubscriber {
    pub name: String,
    pub xtr_id: XtrId,
    pub key: LispKey,
    pub also_accept: Vec<LispKey>,
    /// Empty: any.
    pub rlocs: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    pub socket: PathBuf,
    pub stream_socket: PathBuf,
    /// Permission bits of both sockets.
    pub mode: u32,
}

/// See `[transient]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transient {
    pub port: u16,
    pub locator: Locator,
    pub device: String,
    pub table: u32,
    pub prefer: Family,
    pub packets_per_prefix: usize,
    pub octets_per_prefix: usize,
    pub packets: usize,
    pub octets: usize,
    pub when_full: WhenFull,
    pub hold: Duration,
    pub forward: Duration,
    pub quiet: Duration,
    pub order: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub protocol: u8,
    pub table: u32,
    pub metric: u32,
}
