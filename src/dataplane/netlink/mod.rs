//! The Linux kernel as data plane, over its routing socket (rtnetlink).
//!
//! Our routes carry a protocol number of their own, and metrics of their own: a route that
//! somebody else has made for the same prefix stays beside ours, and is never replaced or deleted.

mod attribute;
mod diversion;
mod link;
mod message;
mod monitor;
mod netfilter;
mod socket;
mod tunnel;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;

pub use diversion::{Diversion, DiversionOptions, MARK};
pub use link::{AccessLink, LinkState, SetupError};
pub use monitor::{Monitor, Notice};
pub use netfilter::{Counts, Deletions, SetChange, SetOf, Sets};
pub use tunnel::{Dumped, Step, To, TunnelLink, Tunnels, Via};

use self::socket::{Refused, Requests};
use super::{DataPlane, Hop, KernelRoute, Kind, Op, OpError};
use crate::types::{Family, Prefix};

/// Routing table of encapsulating data planes that look before all others, by a rule of this
/// priority. Below 256, so that a notification's header names it.
pub const ENCAP_TABLE: u8 = 107;
pub const ENCAP_RULE: u32 = 4341;

/// `rtm_protocol` of a tunnel's routes in the main table, beside those of delivery and BGP.
pub const fn tunnel_protocol(protocol: u8) -> u8 {
    protocol.wrapping_add(1)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub table: u32,
    /// `rtm_protocol`. The default, 107 (the letter k), is assigned neither by the kernel nor in
    /// iproute2's rt_protos.
    pub protocol: u8,
    /// Below the metrics of routing daemons (20 and more) and above zero, where an operator puts
    /// what shall win over everything.
    pub delivery_metric: u32,
    pub bgp_metric: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { table: 254, protocol: 107, delivery_metric: 10, bgp_metric: 200 }
    }
}

impl Options {
    /// `RTA_PRIORITY` of our routes of a kind; the lower one wins.
    pub fn metric(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Delivery => self.delivery_metric,
            Kind::Bgp => self.bgp_metric,
        }
    }

    /// The kind of our routes with a metric; `None`: we make none with it.
    pub fn kind(&self, metric: u32) -> Option<Kind> {
        [Kind::Delivery, Kind::Bgp].into_iter().find(|&kind| self.metric(kind) == metric)
    }
}

/// A route of our table, whoever has made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRoute {
    pub prefix: Prefix,
    pub protocol: u8,
    pub metric: u32,
    /// `None`: several, or nowhere (a blackhole).
    pub hop: Option<Hop>,
}

/// Routes of one table that are looked at, at most: more than twice the largest table we make.
pub const TABLE_ROUTES_MAX: usize = 20_000_000;

/// Reads our table as it is, on a socket of its own. It takes about a second for a million routes:
/// not for the routing thread.
pub fn read_table(options: &Options) -> io::Result<Vec<TableRoute>> {
    let mut routes = Vec::new();
    for family in Family::ALL {
        let mut requests = Requests::open()?;
        let request = message::table_dump(options, family);
        requests.begin_dump(RouteNetlinkMessage::GetRoute(request))?;
        while requests.continue_dump(|answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                routes.extend(message::table_route(options, &route));
            }
        })? {
            if routes.len() > TABLE_ROUTES_MAX {
                let what = format!("more than {TABLE_ROUTES_MAX} routes");
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
            }
        }
    }
    Ok(routes)
}

pub struct Kernel {
    options: Options,
    requests: Requests,
    dump: Option<Dump>,
}

/// A list of our routes that is being read, on a socket of its own.
struct Dump {
    requests: Requests,
    family: Family,
}

fn failed(error: io::Error) -> OpError {
    OpError::Other(format!("netlink: {error}"))
}

impl Kernel {
    /// In the network namespace of the calling thread.
    pub fn open(options: Options) -> io::Result<Self> {
        Ok(Self { options, requests: Requests::open()?, dump: None })
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Notifications of changes by others; ours are left out.
    pub fn monitor(&self) -> io::Result<Monitor> {
        Monitor::open(self.requests.port()?, self.options.protocol)
    }

    fn message(&self, op: &Op) -> (RouteNetlinkMessage, u16) {
        use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewNeighbour, NewRoute};
        let options = &self.options;
        match *op {
            Op::AddRoute { prefix, kind, hop } => {
                // Exclusive: an IPv6 route of the same metric would become its multipath sibling.
                (NewRoute(message::route(options, prefix, kind, hop)), NLM_F_CREATE | NLM_F_EXCL)
            }
            Op::ReplaceRoute { prefix, kind, hop } => {
                (NewRoute(message::route(options, prefix, kind, hop)), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Op::DeleteRoute { prefix, kind } => {
                (DelRoute(message::route_removal(options, prefix, kind)), 0)
            }
            Op::SetNeighbor { link, ip, mac } => {
                (NewNeighbour(message::neighbor(link, ip, Some(mac))), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Op::DeleteNeighbor { link, ip } => (DelNeighbour(message::neighbor(link, ip, None)), 0),
        }
    }
}

impl DataPlane for Kernel {
    fn apply(&mut self, ops: &[Op], results: &mut Vec<Result<(), OpError>>) {
        let base = results.len();
        let messages = ops.iter().map(|op| self.message(op)).collect();
        let mut answers = Vec::with_capacity(ops.len());
        let sent = self.requests.transact(messages, &mut answers);
        results.extend(answers.into_iter().map(|answer| answer.map_err(OpError::from)));
        if let Err(error) = sent {
            // What has no answer has an unknown effect; every operation can be repeated.
            results.resize(base + ops.len(), Err(OpError::Other(format!("netlink: {error}"))));
        }
    }

    fn begin_dump(&mut self) -> Result<(), OpError> {
        // A list that ended in the middle leaves its rest in the socket: begin with a new one.
        let mut requests = Requests::open().map_err(failed)?;
        let request = message::route_dump(&self.options, Family::Ipv4);
        requests.begin_dump(RouteNetlinkMessage::GetRoute(request)).map_err(failed)?;
        self.dump = Some(Dump { requests, family: Family::Ipv4 });
        Ok(())
    }

    fn continue_dump(&mut self, routes: &mut Vec<KernelRoute>) -> Result<bool, OpError> {
        let Some(mut dump) = self.dump.take() else { return Ok(false) };
        let options = self.options;
        let more = dump.requests.continue_dump(|answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                routes.extend(message::own_route(&options, &route));
            }
        });
        if !more.map_err(failed)? {
            match dump.family {
                Family::Ipv4 => dump.family = Family::Ipv6,
                Family::Ipv6 => return Ok(false),
            }
            let request = message::route_dump(&self.options, dump.family);
            dump.requests.begin_dump(RouteNetlinkMessage::GetRoute(request)).map_err(failed)?;
        }
        self.dump = Some(dump);
        Ok(true)
    }

    fn resolve(&mut self, next_hop: IpAddr) -> Result<Hop, OpError> {
        // Twice: the routing table's entry says whose route it is, the plain lookup which of its
        // next hops (nexthop objects, multipath) the kernel would use.
        let entry = self.lookup(next_hop, true)?;
        let own = self.options.protocol;
        if [own, tunnel_protocol(own)].contains(&message::protocol(&entry)) {
            return Err(OpError::Other(format!(
                "next hop {next_hop} is reached only by a route of killick's own"
            )));
        }
        let route = self.lookup(next_hop, false)?;
        message::hop_of(&route, next_hop)
    }
}

impl Kernel {
    fn lookup(
        &mut self,
        ip: IpAddr,
        fib_match: bool,
    ) -> Result<netlink_packet_route::route::RouteMessage, OpError> {
        let request = RouteNetlinkMessage::GetRoute(message::lookup(ip, fib_match));
        let answer = self.requests.query(request).map_err(failed)?;
        match answer {
            Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            Ok(_) => Err(OpError::Other("netlink: not a route".to_owned())),
            Err(Refused { errno: libc::ENETUNREACH | libc::EHOSTUNREACH, .. }) => {
                Err(OpError::Other(format!("no route to next hop {ip}")))
            }
            Err(refused) => Err(refused.into()),
        }
    }
}

impl From<Refused> for OpError {
    fn from(Refused { errno, message }: Refused) -> Self {
        match errno {
            libc::EEXIST => Self::Exists,
            libc::ESRCH | libc::ENOENT => Self::Missing,
            libc::ENETDOWN | libc::ENODEV => Self::LinkDown,
            libc::EPERM | libc::EACCES => Self::NotPermitted,
            errno => {
                let system = io::Error::from_raw_os_error(errno);
                Self::Other(match message {
                    Some(message) => format!("{message} ({system})"),
                    None => system.to_string(),
                })
            }
        }
    }
}
