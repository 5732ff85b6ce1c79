//! The configuration as written: one TOML file, every key documented here.
//!
//! Each value is optional in this type, also where the daemon needs it: what is missing is a
//! finding of [`super::check`], which can say it together with everything else that is wrong.
//! Unknown keys are refused. `config/killick.toml` shows every key.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::Period;
use crate::types::{AnchorId, Family, Locator, MacAddr, MnId, Prefix};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Who this node is.
    pub node: NodeSection,
    /// The BGP speaker. Absent: no BGP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpSection>,
    /// Path liveness (BFD). What is here is the default of all that ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<BfdSection>,
    /// Mobility. Absent: a plain BGP speaker or route reflector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mobility: Option<MobilitySection>,
    /// Access interfaces: where plain hosts attach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<AccessSection>,
    /// The other anchors and controllers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peer: Vec<PeerSection>,
    /// Certificate, key and listening address for context transfer with the peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSection>,
    /// The mapping service: map-server, egress and ingress of LISP tunnels. Absent: no LISP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lisp: Option<LispSection>,
    /// Packets of a node that moves wait and follow it. Absent: relocation is by routes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transient: Option<TransientSection>,
    /// The local control sockets.
    pub api: ApiSection,
    /// Prometheus, liveness and readiness over HTTP.
    pub metrics: MetricsSection,
    /// Routes in the kernel.
    pub kernel: KernelSection,
}

/// `[node]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeSection {
    /// Identifier of this anchor (or controller), a dotted quad, unique in the mobility domain.
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_id: Option<AnchorId>,
    /// Name in logs and listings. Default: the anchor id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where bindings and generations are kept across restarts. Default: `/var/lib/killick`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or per room, for example
    /// `info,killick::proto::bgp=debug`. Default: `info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// `auto` (text on a terminal, JSON otherwise), `text` or `json`. Default: `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    #[default]
    Auto,
    Text,
    Json,
}

/// `[bgp]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BgpSection {
    /// AS number of this speaker, 1 to 4294967295. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_as: Option<u32>,
    /// BGP identifier. Default: the anchor id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_id: Option<Ipv4Addr>,
    /// Route reflection cluster (RFC 4456 §7). Default: the router id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<Ipv4Addr>,
    /// Addresses to accept sessions at; an empty list listens nowhere.
    /// Default: `["0.0.0.0", "::"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<IpAddr>>,
    /// TCP port to accept sessions at. Default: 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Hold time of all neighbours that set none: `"0s"` (never) or at least `"3s"`.
    /// Default: `"90s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Period>,
    /// Restart time announced for graceful restart (RFC 4724), at most `"4095s"`; `"0s"` turns the
    /// capability off. Default: `"120s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graceful_restart_time: Option<Period>,
    /// Install best paths learnt from neighbours in the kernel. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install: Option<bool>,
    /// Kernel table for them. Default: `kernel.table`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install_table: Option<u32>,
    /// The neighbours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub neighbor: Vec<NeighborSection>,
    /// Prefixes to originate besides the mobility pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<NetworkSection>,
}

/// `[[bgp.neighbor]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NeighborSection {
    /// Address of the neighbour. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its AS number; equal to `bgp.local-as` for iBGP. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_as: Option<u32>,
    /// Free text for listings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Source address of the session. Default: the kernel's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<IpAddr>,
    /// TCP port to connect to. Default: 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Wait for the neighbour to connect, never connect. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// The neighbour is our route reflection client (RFC 4456). iBGP only. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_reflector_client: Option<bool>,
    /// Families to negotiate, `"ipv4"` and `"ipv6"`. Default: both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub families: Option<Vec<Family>>,
    /// Hold time with this neighbour. Default: `bgp.hold-time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Period>,
    /// Give the session up when nothing could be sent for this long (RFC 9687); `"0s"` is never.
    /// Default: the larger of 8 minutes and twice the hold time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_hold_time: Option<Period>,
    /// Pause before a failed connection is tried again. Default: `"5s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_retry: Option<Period>,
    /// File whose first line is the TCP-MD5 key (RFC 2385). The key itself is never written here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// GTSM (RFC 5082): the neighbour is at most this many hops away, 1 for a direct one; packets
    /// from farther are dropped by the kernel. Default: off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_security_hops: Option<u8>,
    /// Limit of prefixes accepted from the neighbour. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prefix: Option<MaxPrefixSection>,
    /// What is accepted from the neighbour. Default: `"none"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<Filter>,
    /// What is announced to the neighbour. Default: `"none"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Filter>,
    /// Announce ourselves as next hop of routes learnt from other neighbours. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_self: Option<bool>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950). Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_next_hop: Option<bool>,
    /// Keep the neighbour configured but down. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<bool>,
    /// Watch the path to the neighbour (BFD), and end the session as soon as it fails: `true`, or a
    /// table. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<NeighborBfd>,
}

/// `bfd = true`, or `bfd = { min-tx = "100ms", strict = true }`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum NeighborBfd {
    Switch(bool),
    Table(Box<NeighborBfdSection>),
}

impl<'de> Deserialize<'de> for NeighborBfd {
    /// By hand, for the same reason as [`Filter`].
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = NeighborBfd;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a table such as { min-tx = \"300ms\" }")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<NeighborBfd, E> {
                Ok(NeighborBfd::Switch(on))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<NeighborBfd, A::Error> {
                NeighborBfdSection::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|table| NeighborBfd::Table(Box::new(table)))
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// The table of a neighbour's `bfd`; what it does not say is as `[bfd]` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NeighborBfdSection {
    /// As fast as we send, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tx: Option<Period>,
    /// As fast as the neighbour may send, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rx: Option<Period>,
    /// Packets in a row whose absence the neighbour takes for a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<u8>,
    /// Let the neighbour speak first (RFC 5880 §6.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// Routers may be in between: UDP 4784 (RFC 5883) instead of 3784 (RFC 5881). Both ends must
    /// agree. Default: true for iBGP, false for eBGP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multihop: Option<bool>,
    /// Keep the BGP session down until the path is known to be up. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// Single hop: the interface that the neighbour is on; packets from others are not believed.
    /// Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Multihop: packets with a smaller TTL are from farther away, and are not believed. Not all
    /// routers send with 255: BIRD does with 64. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_ttl: Option<u8>,
    /// File whose first line is the key of the session, 1 to 20 octets. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// `sha1` or `meticulous-sha1` (RFC 5880 §6.7.4). Default: `meticulous-sha1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<BfdAlgorithm>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BfdAlgorithm {
    Sha1,
    #[default]
    MeticulousSha1,
}

/// `[bfd]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BfdSection {
    /// As fast as we send, at most: `"10ms"` to `"60s"`. Default: `"300ms"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tx: Option<Period>,
    /// As fast as others may send to us, at most: `"10ms"` to `"60s"`. Default: `"300ms"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rx: Option<Period>,
    /// Packets in a row whose absence the other end takes for a failure, at least 1. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<u8>,
    /// Let the other end speak first (RFC 5880 §6.1). Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<bool>,
    /// Watch the paths to the FE_E of all `[[peer]]` that are anchors, over many hops.
    /// Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchors: Option<bool>,
    /// Paths to be watched besides: to locators, to routers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub session: Vec<BfdSessionSection>,
}

/// `[[bfd.session]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BfdSessionSection {
    /// The other end. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Our address. Default: the kernel's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<IpAddr>,
    /// Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multihop: Option<bool>,
}

/// `max-prefix = { limit = 1000, action = "restart", restart-after = "10m" }`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MaxPrefixSection {
    /// Accepted prefixes, for each family. Required, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `warn` (a log line and a metric), `shutdown` (stays down until an operator acts) or
    /// `restart` (comes back after `restart-after`). Default: `shutdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<MaxPrefixAction>,
    /// Pause before a `restart`. Default: `"5m"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_after: Option<Period>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaxPrefixAction {
    Warn,
    #[default]
    Shutdown,
    Restart,
}

/// What may pass: `"none"`, `"all"`, `"pools"` (the mobility pools and everything inside them), or
/// a list of `{ prefix, ge, le }`; a route passes when one entry permits it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Filter {
    Word(FilterWord),
    List(Vec<FilterRule>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterWord {
    None,
    All,
    Pools,
}

/// Permits prefixes inside `prefix` whose length is from `ge` to `le`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterRule {
    pub prefix: Prefix,
    /// Shortest length. Default: the length of `prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ge: Option<u8>,
    /// Longest length. Default, as on routers: to the end of the address when `ge` is written,
    /// otherwise the length of `prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub le: Option<u8>,
}

impl<'de> Deserialize<'de> for Filter {
    /// By hand, because an untagged enum answers every mistake inside with "did not match any
    /// variant", at the wrong place.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Filter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", \"all\", \"pools\" or a list of { prefix, ge, le }")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Filter, E> {
                FilterWord::deserialize(de::value::StrDeserializer::new(word)).map(Filter::Word)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Filter, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Filter::List)
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// `[[bgp.network]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkSection {
    /// The prefix to originate. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Its next hop. Default: the address of the session it is announced over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<IpAddr>,
}

/// `[mobility]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MobilitySection {
    /// `distributed`: this anchor announces its own nodes by BGP. `controller`: this node
    /// announces on behalf of anchors that report to it. `client`: this anchor reports to the
    /// peers with role `controller` and speaks no BGP. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Where traffic for nodes attached here is to be sent, one address per family: the next hop
    /// of their host routes. Required unless the mode is `controller`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fe_e: Option<Locator>,
    /// After a move is complete, how long the host route keeps its raised preference so that late
    /// withdrawals of the old one can arrive. Default: `"2s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_delay: Option<Period>,
    /// The same when nobody confirmed that the old anchor let go: longer than its BGP session, or
    /// a graceful restart of it, can outlive it. Default: `"4m"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_unconfirmed: Option<Period>,
    /// How long the host route waits for the kernel's word that the node is served here, before it
    /// is announced all the same. Default: `"200ms"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepare_max: Option<Period>,
    /// How long a node may be silent or its link down before it counts as gone. Default: `"1s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detach_grace: Option<Period>,
    /// Attach NO_EXPORT (RFC 1997) to host routes, so that they stay in this AS. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_export: Option<bool>,
    /// Life of a binding made by the API without a refresh. Default: as long as attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Period>,
    /// Prefixes that mobile addresses come from; nothing outside is ever announced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pool: Vec<PoolSection>,
    /// Nodes with a fixed name or fixed prefixes; others are named by their MAC address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node: Vec<NodeEntrySection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Distributed,
    Controller,
    Client,
}

/// `[[mobility.pool]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PoolSection {
    /// The prefix. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Name or anchor id of the anchor whose aggregate this is. Default: nobody's; then every
    /// attached node of the pool has a host route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// Announce the pool itself by BGP. Default: true when this node is the home (in controller
    /// mode: when any anchor is), false otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_aggregate: Option<bool>,
}

/// `[[mobility.node]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeEntrySection {
    /// Mobile node identifier (NAI). Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<MnId>,
    /// Link-layer address by which it is recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Prefixes (home addresses, home network prefixes) that belong to it and to nobody else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<Prefix>,
}

/// `[[access]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AccessSection {
    /// Name of the interface. It may appear later than killick starts. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Gateway addresses of the hosts, the same at every anchor; one per family is usual.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<IpAddr>,
    /// Link-layer address of the gateway, the same at every anchor.
    /// Default: `02:6b:69:6c:6c:01`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_mac: Option<MacAddr>,
    /// Send router advertisements. Absent: none are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_advertisement: Option<RaSection>,
    /// Drop packets from source addresses that are not attached on this interface. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink_filter: Option<bool>,
}

/// `router-advertisement = { interval = "10s", prefixes = ["2001:db8:1::/64"] }` (RFC 4861 §6.2.1)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RaSection {
    /// Longest time between two unsolicited advertisements, 4 s to 30 min. Default: `"10s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Period>,
    /// How long hosts keep us as default router, at most `"9000s"`. Default: three intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_lifetime: Option<Period>,
    /// Managed address configuration flag (DHCPv6). Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed: Option<bool>,
    /// Other configuration flag. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_config: Option<bool>,
    /// MTU option. Default: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Prefixes that hosts may form addresses from (A flag, never L: all hosts are reached through
    /// the gateway). Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<Prefix>,
    /// Preferred lifetime of such addresses. Default: `"4h"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_lifetime: Option<Period>,
    /// Valid lifetime of such addresses. Default: `"24h"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_lifetime: Option<Period>,
}

/// `[[peer]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PeerSection {
    /// Name of the peer. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its `node.anchor-id`. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_id: Option<AnchorId>,
    /// Where its `tls.listen` is reached. Required unless the role is `external`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// TCP port there. Default: 4067.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Name in its certificate (subject alternative name). Default: `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<String>,
    /// `anchor`: a killick anchor. `controller`: the killick we report to. `external`: an anchor
    /// that is not killick and uses our API. Default: `anchor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Prefixes it may claim; claims outside are refused and counted. `"pools"` is all mobility
    /// pools. Default: `"pools"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_claim: Option<MayClaim>,
    /// Where traffic for nodes attached there is sent. A controller needs it for external anchors
    /// and may pin it for killick anchors, which otherwise report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fe_e: Option<Locator>,
    /// `lisp.locators` of that anchor, where destinations are rewritten. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locators: Vec<Prefix>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    #[default]
    Anchor,
    Controller,
    External,
}

/// `"pools"`, `"none"` or a list of prefixes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MayClaim {
    Word(MayClaimWord),
    List(Vec<Prefix>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MayClaimWord {
    Pools,
    None,
}

impl<'de> Deserialize<'de> for MayClaim {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = MayClaim;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"pools\", \"none\" or a list of prefixes")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<MayClaim, E> {
                MayClaimWord::deserialize(de::value::StrDeserializer::new(word)).map(MayClaim::Word)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<MayClaim, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(MayClaim::List)
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// `[tls]`: TLS 1.3, both sides with certificates of the same authority.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsSection {
    /// PEM file of the certificate authority. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate (chain). Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM file of our private key. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Addresses and ports to accept peers at. Default: `["[::]:4067"]`, which takes IPv4 too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<SocketAddr>>,
}

/// `[lisp]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LispSection {
    /// Instance ID of the mobile prefixes, 0 to 16777215. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<u32>,
    /// Addresses of the control sockets (UDP 4342). Default: `["0.0.0.0", "::"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<IpAddr>>,
    /// Our locators, where tunnels end. Default: `mobility.fe-e`. Required for egress and ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rloc: Option<Locator>,
    /// 128-bit identifier of this xTR, 32 hexadecimal digits. Default: made from the anchor id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtr_id: Option<String>,
    /// 64-bit identifier of the site. Default: the anchor id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site_id: Option<u64>,
    /// What encapsulates: `tun` (user space, RFC 9300, works everywhere), `gpe` (the kernel's
    /// VXLAN-GPE device, RFC 9305: both ends must use it), `ebpf` (the kernel, RFC 9300), or nothing:
    /// with `rewrite` packets get a locator of the host as their destination (all FEs must do so).
    /// Default: `tun`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
    /// Largest packet of the underlay, outer headers included. Default: 1500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `rewrite`: where the locators of hosts attached here are from; the network routes them to us.
    /// Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locators: Vec<Prefix>,
    /// `ebpf`: where in the path of a packet, `tc` or `xdp` (faster, and tc takes what XDP leaves;
    /// the outer interfaces must be able to send frames of XDP). Default: `tc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<LispHook>,
    /// `ebpf`, `rewrite`: interfaces on which packets to encapsulate come in. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inner_interfaces: Vec<String>,
    /// `ebpf`, `rewrite`: interfaces on which encapsulated packets come in. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outer_interfaces: Vec<String>,
    /// Map-resolvers to ask, in order of preference. Default: the map-servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map_resolver: Vec<IpAddr>,
    /// Where what is attached here is registered, and who publishes to us.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map_server: Vec<MapServerSection>,
    /// Believe only Map-Replies that are proven (LISP-SEC, RFC 9303). All map-resolvers have to
    /// know a key of ours. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<bool>,
    /// What is shared with the map-resolvers for that. Default: the keys of the map-servers where
    /// nothing is registered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resolver_key: Vec<ResolverKeySection>,
    /// How packets to mobile prefixes enter a tunnel here (FE_I).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressSection>,
    /// Time between two probes of a locator in use (RFC 9301 §7.1); `"0s"` is never.
    /// Default: `"10s"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Period>,
    /// After a node has left, how long its packets are sent on to the new FE_E, and their senders
    /// told. Default: `"3m"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub departed_keep: Option<Period>,
    /// The map-server and map-resolver. Absent: this node is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<LispServerSection>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    #[default]
    Tun,
    Gpe,
    Ebpf,
    Rewrite,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LispHook {
    #[default]
    Tc,
    Xdp,
}

/// `[[lisp.map-server]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MapServerSection {
    /// Its address. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key shared with it. The key itself is never written here.
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// `sha256` (HMAC-SHA-256-128), `hkdf` (a key per message, RFC 9301 §5.6) or `sha1` (for old
    /// peers only). Default: `sha256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<LispAlgorithm>,
    /// Other keys that are believed too, while one is being changed. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_accept: Vec<KeySection>,
    /// Register what is attached here. Default: true when there is `[mobility]` with an `fe-e`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LispAlgorithm {
    #[default]
    Sha256,
    Hkdf,
    Sha1,
}

/// One of the `also-accept` keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeySection {
    /// Number of the key. Required; not one that is in use beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Default: `sha256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<LispAlgorithm>,
}

/// `[[lisp.resolver-key]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResolverKeySection {
    /// Address of the map-resolver. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key. Required; not one that we register with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// `[[lisp.ingress]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct IngressSection {
    /// Packets to it are looked up in the mapping system. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// `query` (ask at the first packet), `push` (subscribe to the prefix, all moves arrive
    /// unasked) or `default` (by the other routes, nothing is asked). Default: `query`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<IngressPolicy>,
    /// Packets whose mapping is being asked for: `hold` (they wait, 2 s at most), `triangle` (by the
    /// routes of the main table, which lead to the home anchor) or `drop`. Default: `hold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_packets: Option<FirstPackets>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstPackets {
    #[default]
    Hold,
    Triangle,
    Drop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IngressPolicy {
    #[default]
    Query,
    Push,
    Default,
}

/// `[lisp.server]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LispServerSection {
    /// TTL of mappings in replies and publications, whole minutes. Default: `"60m"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record_ttl: Option<Period>,
    /// Accept HMAC-SHA-1-96. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_sha1: Option<bool>,
    /// Refuse questions that do not ask for a proven answer (LISP-SEC, RFC 9303). Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_security: Option<bool>,
    /// Map-Requests a second that one address may send; the others are dropped. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_source: Option<u32>,
    /// Map-Requests a second that are answered about one EID. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_eid: Option<u32>,
    /// Who may register what.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub site: Vec<SiteSection>,
    /// Who may subscribe (RFC 9437).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriber: Vec<SubscriberSection>,
    /// Whose questions may ask for a proven answer (RFC 9303).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub itr: Vec<SecuredItrSection>,
}

/// `[[lisp.server.site]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SiteSection {
    /// Name for listings. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The anchor that the site's ETRs are: its claims are weighed like those of any other anchor.
    /// Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_id: Option<AnchorId>,
    /// Site-ID of its Map-Registers. Default: the anchor id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site_id: Option<u64>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Default: `sha256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<LispAlgorithm>,
    /// Other keys that are believed too, while one is being changed. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_accept: Vec<KeySection>,
    /// What it may register, and everything inside. Default: the mobility pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<Vec<Prefix>>,
    /// Merge the locators of its ETRs when they ask for it. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<bool>,
}

/// `[[lisp.server.itr]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecuredItrSection {
    /// Name, for messages. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its xTR-ID, 32 hexadecimal digits. Default: made from `anchor-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtr_id: Option<String>,
    /// A killick's `node.anchor-id`. Required unless there is an `xtr-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_id: Option<AnchorId>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key. Required; not the one of a site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Addresses that its questions come from. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlocs: Vec<IpAddr>,
}

/// `[[lisp.server.subscriber]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SubscriberSection {
    /// Name for listings. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its xTR-ID, 32 hexadecimal digits. Default: made from `anchor-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtr_id: Option<String>,
    /// A killick's `node.anchor-id`. Required unless there is an `xtr-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_id: Option<AnchorId>,
    /// Number of the key. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<u8>,
    /// File whose first line is the key (PubSubKey). Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Default: `sha256`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<LispAlgorithm>,
    /// Other keys that are believed too, while one is being changed. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_accept: Vec<KeySection>,
    /// Locators that its subscriptions may name. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlocs: Vec<IpAddr>,
}

/// `[api]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ApiSection {
    /// Unix socket of the HTTP/JSON API and the CLI. Default: `/run/killick/api.sock`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Unix socket of the streaming API. Default: `stream.sock` beside `socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_socket: Option<PathBuf>,
    /// Permissions of both sockets, in octal. Default: `"0660"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsSection {
    /// Address and port of `/metrics`, `/healthz` and `/readyz`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// `[transient]`: while routers learn where a node has gone, its previous anchor holds its packets
/// and sends them on to the new one, which keeps them in order. Both need this section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TransientSection {
    /// UDP port at which packets are taken from other anchors, on our FE_E. Default: 47300.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Our addresses for them. Default: `mobility.fe-e`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locator: Option<Locator>,
    /// Name of the TUN device that held packets come by. Default: `killick-hold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Routing table of the prefixes that are held, for the time that they are. Default: 110.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Address family between two anchors that have both: `ipv4` or `ipv6`. Default: `ipv4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<OuterFamily>,
    /// Packets that wait for one prefix, at most. Default: 16384.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_prefix: Option<usize>,
    /// Octets in them, at most. Default: 16777216.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub octets_per_prefix: Option<usize>,
    /// Packets that wait in all, at most. Default: 131072.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<usize>,
    /// Octets in them, at most. Default: 268435456.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub octets: Option<usize>,
    /// When there is no room: `drop-newest` (what waits arrives whole) or `drop-oldest` (for traffic
    /// that is worthless when old). Default: `drop-newest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
    /// How long packets wait for a word of the new anchor; then they are delivered as before.
    /// Default: "2s".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Period>,
    /// How long packets are sent on to the new anchor, at most. Default: "5s".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_time: Option<Period>,
    /// Without a packet for this long nothing is sent on any more. Default: "500ms".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quiet_time: Option<Period>,
    /// How long a packet that came directly waits for those before it, when the old anchor is
    /// silent. Default: "100ms".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_time: Option<Period>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    #[default]
    DropNewest,
    DropOldest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OuterFamily {
    #[default]
    Ipv4,
    Ipv6,
}

/// `[kernel]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelSection {
    /// Routing protocol number that marks our routes (`rtm_protocol`); the next one marks those into
    /// tunnels. No other daemon on this machine may use them. Default: 107.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// Routing table for delivery routes. Default: 254 (main).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Metric (priority) of our routes. Default: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLES: [(&str, &str); 7] = [
        ("killick.toml", include_str!("../../config/killick.toml")),
        ("anchor.toml", include_str!("../../config/anchor.toml")),
        ("client.toml", include_str!("../../config/client.toml")),
        ("controller.toml", include_str!("../../config/controller.toml")),
        ("map-server.toml", include_str!("../../config/map-server.toml")),
        ("ingress.toml", include_str!("../../config/ingress.toml")),
        ("reflector.toml", include_str!("../../config/reflector.toml")),
    ];

    #[test]
    fn examples_survive_a_round_trip() {
        for (name, text) in EXAMPLES {
            let file: File = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            let again = toml::to_string(&file).unwrap();
            assert_eq!(toml::from_str::<File>(&again).unwrap(), file, "{name}\n{again}");
        }
    }

    /// The commented keys of the example are keys, not memories of keys.
    #[test]
    fn the_commented_defaults_of_the_example_are_accepted() {
        let text: String = EXAMPLES[0]
            .1
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split(" = ").next().is_some_and(is_key) => format!("{rest}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        let file: File = toml::from_str(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(file.kernel.metric, Some(20));
        assert_eq!(file.access[0].router_advertisement.as_ref().unwrap().mtu, Some(1500));
    }

    fn is_key(text: &str) -> bool {
        text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    }
}
