//! Tunnels in the kernel: the VXLAN device that speaks LISP-GPE, nexthop objects that carry an
//! encapsulation, and routes that lead to them by number.
//!
//! A nexthop object may be shared by any number of routes: a host moves by one route, and a whole
//! group by one object. The messages of the second kind are unknown to netlink-packet-route, and
//! those of the first are sent a million at a time, so all are written here octet by octet.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};

use super::attribute::{each, nest, push, push_text, push_u32, read_u32};
use super::link::set_sysctl;
use super::message::{address_family, lookup};
use super::socket::{Refused, Requests};
use super::{OpError, SetupError};
use crate::types::lisp::EntryCount;
use crate::types::seam::IfIndex;
use crate::types::{Family, Prefix};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_ENCAP: u16 = 8;

const LWTUNNEL_ENCAP_IP: u16 = 2;
const LWTUNNEL_ENCAP_IP6: u16 = 4;
// The same numbers for both families of addresses.
const LWTUNNEL_IP_ID: u16 = 1;
const LWTUNNEL_IP_DST: u16 = 2;
const LWTUNNEL_IP_SRC: u16 = 3;

const RTNH_F_ONLINK: u32 = 4;

const RTA_DST: u16 = 1;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const RTA_NH_ID: u16 = 30;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_UNREACHABLE: u8 = 7;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_VXLAN_GPE: u16 = 27;
/// Linux 6.14. Bits that are set here must be zero in a packet.
const IFLA_VXLAN_RESERVED_BITS: u16 = 33;

/// Where a nexthop object leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// Into a tunnel, through a device that takes the encapsulation from the nexthop.
    Encap { source: Option<IpAddr>, destination: IpAddr, iid: u32 },
    /// Out of the device, to a neighbour that nobody asked whether it is there.
    Gateway(IpAddr),
    /// Out of the device.
    Link,
    /// To other nexthops, in proportion to weights of 1 to 255.
    Group(Vec<(u32, u8)>),
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Nexthop(u32),
    /// As if it were not in this table: the next rule decides.
    Throw,
    /// Nowhere, without a word.
    Blackhole,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    SetNexthop {
        id: u32,
        family: Family,
        link: IfIndex,
        via: Via,
    },
    DeleteNexthop {
        id: u32,
    },
    SetRoute {
        table: u8,
        prefix: Prefix,
        metric: u32,
        to: To,
    },
    DeleteRoute {
        table: u8,
        prefix: Prefix,
        metric: u32,
    },
    /// One that nobody has to ask for, for ever.
    SetNeighbor {
        link: IfIndex,
        ip: IpAddr,
        mac: [u8; 6],
    },
}

/// What a list has, one object each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dumped {
    Nexthop { id: u32, via: Via },
    Route { prefix: Prefix, metric: u32, to: To },
}

/// A LISP-GPE device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelLink {
    pub name: String,
    pub port: u16,
    pub mtu_bytes: u32,
}

pub struct Tunnels {
    requests: Requests,
    protocol: u8,
    dump: Option<(Requests, What)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Nexthops,
    Routes {
        table: u8,
    },
    /// Of this table, and nothing else of it.
    Blackholes {
        table: u8,
    },
}

impl Tunnels {
    /// In the network namespace of the calling thread. All that is made carries this protocol
    /// number.
    pub fn open(protocol: u8) -> io::Result<Self> {
        Ok(Self { requests: Requests::open()?, protocol, dump: None })
    }

    /// Finds the device, makes it if it is not there, and makes it anew if it is not what is
    /// wanted. A new one is down until [`Self::raise_link`]; true for such.
    pub fn find_or_make_link(
        &mut self,
        wanted: &TunnelLink,
    ) -> Result<(IfIndex, bool), SetupError> {
        let refused = |what: &str| {
            let (name, what) = (wanted.name.clone(), what.to_owned());
            move |refused: Refused| SetupError::Refused { name, what, error: refused.into() }
        };
        if let Some(found) = self.find_tunnel(&wanted.name)? {
            if found.kind != Some(InfoKind::Vxlan) {
                let error = OpError::Other("there is an interface of another kind".to_owned());
                let (name, what) = (wanted.name.clone(), "the tunnel device".to_owned());
                return Err(SetupError::Refused { name, what, error });
            }
            if found.fits(wanted) {
                return Ok((found.link, false));
            }
            let delete = |_: usize, out: &mut Vec<u8>| {
                link_header(out, found.link, false);
                (libc::RTM_DELLINK, 0)
            };
            self.one(delete)?.map_err(refused("the tunnel device"))?;
        }
        // A kernel that refuses the last attribute gets the device without it, and drops LISP
        // packets that carry a nonce or locator status bits.
        let made = match self.make_link(wanted, true)? {
            Ok(()) => Ok(()),
            Err(_) => self.make_link(wanted, false)?,
        };
        made.map_err(refused("the tunnel device"))?;
        let Some(found) = self.find_tunnel(&wanted.name)? else {
            return Err(SetupError::NoInterface(wanted.name.clone()));
        };
        Ok((found.link, true))
    }

    pub fn raise_link(&mut self, link: IfIndex, wanted: &TunnelLink) -> Result<(), SetupError> {
        self.raise(link, &wanted.name, Some(wanted.mtu_bytes))
    }

    fn raise(&mut self, link: IfIndex, name: &str, mtu: Option<u32>) -> Result<(), SetupError> {
        let mut errors = Vec::new();
        link_sysctls(name, &mut errors);
        if let Some(error) = errors.into_iter().next() {
            return Err(error);
        }
        let up = |_: usize, out: &mut Vec<u8>| {
            link_header(out, link, true);
            if let Some(mtu) = mtu {
                push_u32(out, IFLA_MTU, mtu);
            }
            (libc::RTM_NEWLINK, 0)
        };
        self.one(up)?.map_err(|refused| SetupError::Refused {
            name: name.to_owned(),
            what: "up".to_owned(),
            error: refused.into(),
        })
    }

    /// A device that drops what is sent to it: a dummy, or where the kernel has none a bridge
    /// without ports.
    pub fn set_up_sink(&mut self, name: &str) -> Result<IfIndex, SetupError> {
        let found = match self.find_link(name)? {
            Some(link) => Some(link),
            None => {
                let mut made = Ok(());
                for kind in ["dummy", "bridge"] {
                    made = self.one(|_, out| {
                        link_header(out, IfIndex(0), false);
                        push_text(out, IFLA_IFNAME, name);
                        nest(out, IFLA_LINKINFO, |out| push(out, IFLA_INFO_KIND, kind.as_bytes()));
                        (libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
                    })?;
                    if made.is_ok() {
                        break;
                    }
                }
                made.map_err(|refused| SetupError::Refused {
                    name: name.to_owned(),
                    what: "the device that drops".to_owned(),
                    error: refused.into(),
                })?;
                self.find_link(name)?
            }
        };
        let link = found.ok_or_else(|| SetupError::NoInterface(name.to_owned()))?;
        self.raise(link, name, None)?;
        Ok(link)
    }

    fn make_link(
        &mut self,
        wanted: &TunnelLink,
        tolerant: bool,
    ) -> io::Result<Result<(), Refused>> {
        self.one(|_, out| {
            link_header(out, IfIndex(0), false);
            push_text(out, IFLA_IFNAME, &wanted.name);
            nest(out, IFLA_LINKINFO, |out| {
                push(out, IFLA_INFO_KIND, b"vxlan");
                nest(out, IFLA_INFO_DATA, |out| {
                    push(out, IFLA_VXLAN_PORT, &wanted.port.to_be_bytes());
                    push(out, IFLA_VXLAN_COLLECT_METADATA, &[1]);
                    push(out, IFLA_VXLAN_GPE, &[]);
                    push(out, IFLA_VXLAN_LEARNING, &[0]); // there is nothing to learn
                    // RFC 9300 §5.3: the outer checksum should be zero.
                    push(out, IFLA_VXLAN_UDP_ZERO_CSUM6_TX, &[1]);
                    push(out, IFLA_VXLAN_UDP_ZERO_CSUM6_RX, &[1]);
                    if tolerant {
                        push(out, IFLA_VXLAN_RESERVED_BITS, &[0; 8]);
                    }
                });
            });
            (libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        })
    }

    /// The index of any interface.
    pub fn find_link(&mut self, name: &str) -> io::Result<Option<IfIndex>> {
        Ok(self.find_tunnel(name)?.map(|found| found.link))
    }

    /// What the device has received and sent.
    pub fn link_counts(&mut self, link: IfIndex) -> io::Result<LinkCounts> {
        let mut counts = LinkCounts::default();
        if let Some(message) = self.link_message(link)? {
            for attribute in &message.attributes {
                if let LinkAttribute::Stats64(stats) = attribute {
                    let count = |packets, octets| EntryCount { packets, octets };
                    counts = LinkCounts {
                        received: count(stats.rx_packets, stats.rx_bytes),
                        sent: count(stats.tx_packets, stats.tx_bytes),
                        receive_errors: stats.rx_errors,
                        send_errors: stats.tx_errors + stats.tx_carrier_errors,
                    };
                }
            }
        }
        Ok(counts)
    }

    fn find_tunnel(&mut self, name: &str) -> io::Result<Option<Found>> {
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        // SAFETY: `c_name` is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if index == 0 {
            return Ok(None);
        }
        Ok(self.link_message(IfIndex(index))?.map(|message| Found::from_message(&message)))
    }

    fn link_message(&mut self, link: IfIndex) -> io::Result<Option<LinkMessage>> {
        let mut request = LinkMessage::default();
        request.header.index = link.0;
        match self.requests.query(RouteNetlinkMessage::GetLink(request))? {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message)),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// All packets look into the table first. (Any rule costs every packet that the machine
    /// forwards: 0.6 to 0.7 times what it costs without.)
    pub fn set_rule(&mut self, family: Family, priority: u32, table: u8) -> Result<(), OpError> {
        self.new_rule(family, priority, table, FR_ACT_TO_TBL, |_| {})
    }

    /// Packets with this mark look into the main table, and nowhere else: two rules, of this
    /// priority and the next.
    pub fn set_mark_rules(
        &mut self,
        family: Family,
        priority: u32,
        mark: u32,
    ) -> Result<(), OpError> {
        let of_mark = |out: &mut Vec<u8>| push_u32(out, FRA_FWMARK, mark);
        // The second one first: a packet never meets the first alone.
        self.new_rule(family, priority + 1, 0, FR_ACT_UNREACHABLE, of_mark)?;
        self.new_rule(family, priority, libc::RT_TABLE_MAIN, FR_ACT_TO_TBL, of_mark)
    }

    fn new_rule(
        &mut self,
        family: Family,
        priority: u32,
        table: u8,
        action: u8,
        selectors: impl Fn(&mut Vec<u8>),
    ) -> Result<(), OpError> {
        let protocol = self.protocol;
        let result = self.one(|_, out| {
            let family = family_octet(family);
            out.extend_from_slice(&[family, 0, 0, 0, table, 0, 0, action, 0, 0, 0, 0]);
            selectors(out);
            push_u32(out, FRA_PRIORITY, priority);
            push(out, FRA_PROTOCOL, &[protocol]);
            (libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
        });
        match result.map_err(super::failed)? {
            Err(Refused { errno: libc::EEXIST, .. }) | Ok(()) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Takes away what [`Self::set_rule`] has made, under whatever protocol number.
    pub fn remove_rule(&mut self, family: Family, priority: u32, table: u8) -> io::Result<()> {
        // One that is not there is what was wanted.
        let _ = self.one(|_, out| {
            let family = family_octet(family);
            out.extend_from_slice(&[family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0]);
            push_u32(out, FRA_PRIORITY, priority);
            (libc::RTM_DELRULE, 0)
        })?;
        Ok(())
    }

    /// Whether the best route to an address is a host route: of somebody who knows it by itself.
    pub fn has_host_route(&mut self, ip: IpAddr) -> io::Result<bool> {
        let host = Prefix::host(ip).len();
        let request = RouteNetlinkMessage::GetRoute(lookup(ip, true));
        Ok(match self.requests.query(request)? {
            Ok(RouteNetlinkMessage::NewRoute(found)) => {
                found.header.destination_prefix_length == host
                    && u8::from(found.header.protocol) != self.protocol
            }
            Ok(_) | Err(_) => false,
        })
    }

    /// Writes the steps in order; each has a result. What is to be deleted and is not there is
    /// [`OpError::Missing`].
    pub fn apply(&mut self, steps: &[Step], results: &mut Vec<Result<(), OpError>>) {
        let base = results.len();
        let mut answers = Vec::with_capacity(steps.len());
        let protocol = self.protocol;
        let encode = |index: usize, out: &mut Vec<u8>| steps[index].encode(protocol, out);
        let sent = self.requests.transact_raw(steps.len(), encode, &mut answers);
        results.extend(answers.into_iter().map(|answer| answer.map_err(OpError::from)));
        if let Err(error) = sent {
            // What has no answer has an unknown effect; every step can be repeated.
            results.truncate(base);
            results.resize(base + steps.len(), Err(super::failed(error)));
        }
    }

    /// In a table, exactly these prefixes lead nowhere by routes of this protocol and metric.
    pub fn set_blackholes(
        &mut self,
        table: u8,
        metric: u32,
        wanted: &[Prefix],
    ) -> Result<(), OpError> {
        let mut steps = Vec::new();
        for family in Family::ALL {
            self.begin(What::Blackholes { table }, family)?;
            while self.continue_dump(|found| {
                if let Dumped::Route { prefix, metric: of, to: To::Blackhole } = found
                    && of == metric
                    && !wanted.contains(&prefix)
                {
                    steps.push(Step::DeleteRoute { table, prefix, metric });
                }
            })? {}
        }
        let set = |&prefix: &Prefix| Step::SetRoute { table, prefix, metric, to: To::Blackhole };
        steps.extend(wanted.iter().map(set));
        let mut results = Vec::new();
        self.apply(&steps, &mut results);
        // Somebody may have taken away what is left over.
        let failed = |result: Result<(), OpError>| result.err().filter(|e| *e != OpError::Missing);
        results.into_iter().find_map(failed).map_or(Ok(()), Err)
    }

    /// Takes all routes of this protocol out of a table.
    pub fn clear(&mut self, table: u8) -> Result<(), OpError> {
        let mut steps = Vec::new();
        for family in Family::ALL {
            self.begin_routes(table, family)?;
            while self.continue_dump(|found| {
                if let Dumped::Route { prefix, metric, .. } = found {
                    steps.push(Step::DeleteRoute { table, prefix, metric });
                }
            })? {}
        }
        self.apply(&steps, &mut Vec::new());
        Ok(())
    }

    pub fn begin_nexthops(&mut self) -> Result<(), OpError> {
        self.begin(What::Nexthops, Family::Ipv4)
    }

    /// Of one table and family.
    pub fn begin_routes(&mut self, table: u8, family: Family) -> Result<(), OpError> {
        self.begin(What::Routes { table }, family)
    }

    fn begin(&mut self, what: What, family: Family) -> Result<(), OpError> {
        // A list that ended in the middle leaves its rest in the socket: begin with a new one.
        let mut requests = Requests::open().map_err(super::failed)?;
        let mut body = Vec::new();
        let kind = match what {
            What::Nexthops => {
                body.extend_from_slice(&[0; 8]);
                RTM_GETNEXTHOP
            }
            What::Routes { table } | What::Blackholes { table } => {
                let family = family_octet(family);
                // Of any type, or of one: a table may have a million others.
                let kind = match what {
                    What::Blackholes { .. } => libc::RTN_BLACKHOLE,
                    What::Routes { .. } | What::Nexthops => libc::RTN_UNSPEC,
                };
                let protocol = self.protocol;
                body.extend_from_slice(&[family, 0, 0, 0, table, protocol, 0, kind, 0, 0, 0, 0]);
                push_u32(&mut body, RTA_TABLE, u32::from(table));
                libc::RTM_GETROUTE
            }
        };
        requests.begin_dump_raw(kind, &body).map_err(super::failed)?;
        self.dump = Some((requests, what));
        Ok(())
    }

    /// A piece of the list; true when there is more.
    pub fn continue_dump(&mut self, mut sink: impl FnMut(Dumped)) -> Result<bool, OpError> {
        let Some((mut requests, what)) = self.dump.take() else { return Ok(false) };
        let protocol = self.protocol;
        let more = requests.continue_dump_raw(|_, body| {
            let found = match what {
                What::Nexthops => nexthop(body, protocol),
                What::Routes { table } | What::Blackholes { table } => route(body, protocol, table),
            };
            if let Some(found) = found {
                sink(found);
            }
        });
        match more {
            // The table has never had a route.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(super::failed(error)),
            Ok(more) => {
                self.dump = more.then_some((requests, what));
                Ok(more)
            }
        }
    }

    fn one(
        &mut self,
        encode: impl FnMut(usize, &mut Vec<u8>) -> (u16, u16),
    ) -> io::Result<Result<(), Refused>> {
        let mut results = Vec::with_capacity(1);
        self.requests.transact_raw(1, encode, &mut results)?;
        Ok(results.pop().unwrap_or(Ok(())))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    pub received: EntryCount,
    pub sent: EntryCount,
    pub receive_errors: u64,
    pub send_errors: u64,
}

/// A link of any kind, as it is.
struct Found {
    link: IfIndex,
    kind: Option<InfoKind>,
    port: Option<u16>,
    gpe: bool,
    external: bool,
}

impl Found {
    fn from_message(message: &LinkMessage) -> Self {
        let link = IfIndex(message.header.index);
        let mut found = Self { link, kind: None, port: None, gpe: false, external: false };
        let infos = message.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        for info in infos.flatten() {
            match info {
                LinkInfo::Kind(kind) => found.kind = Some(kind.clone()),
                LinkInfo::Data(InfoData::Vxlan(data)) => {
                    for info in data {
                        match info {
                            InfoVxlan::Port(port) => found.port = Some(*port),
                            InfoVxlan::CollectMetadata(on) => found.external = *on,
                            InfoVxlan::Gpe => found.gpe = true,
                            _ => {} // as the kernel likes
                        }
                    }
                }
                _ => {} // of no interest
            }
        }
        found
    }

    fn fits(&self, wanted: &TunnelLink) -> bool {
        self.gpe && self.external && self.port == Some(wanted.port)
    }
}

fn link_header(out: &mut Vec<u8>, link: IfIndex, up: bool) {
    let flags = if up { libc::IFF_UP.cast_unsigned() } else { 0 };
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&link.0.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes()); // which flags are meant
}

/// Once for the namespace, and for the device before it is up.
fn link_sysctls(name: &str, errors: &mut Vec<SetupError>) {
    let mut set = |path: String, value| set_sysctl(path, value, errors);
    set("net/ipv4/ip_forward".to_owned(), "1");
    set("net/ipv6/conf/all/forwarding".to_owned(), "1");
    // With 1 the kernel tells of each route of a replaced nexthop: half a second for a million.
    set("net/ipv4/nexthop_compat_mode".to_owned(), "0");
    // What comes by tunnel has a route back by another way, if any. The greater of this and `all`
    // counts, and 2 is weaker than 1.
    let strict = std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter")
        .is_ok_and(|value| value.trim() != "0");
    set(format!("net/ipv4/conf/{name}/rp_filter"), if strict { "2" } else { "0" });
    // The sender of a late packet, which goes back into the tunnel, cannot reach the new FE_E by
    // itself. The two are combined by "or".
    set("net/ipv4/conf/all/send_redirects".to_owned(), "0");
    set(format!("net/ipv4/conf/{name}/send_redirects"), "0");
    // No address of its own, so no redirects and no router solicitations.
    set(format!("net/ipv6/conf/{name}/addr_gen_mode"), "1");
}

fn family_octet(family: Family) -> u8 {
    u8::from(address_family(family))
}

fn push_ip(out: &mut Vec<u8>, kind: u16, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => push(out, kind, &ip.octets()),
        IpAddr::V6(ip) => push(out, kind, &ip.octets()),
    }
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|raw| IpAddr::from(*raw)),
        16 => value.first_chunk::<16>().map(|raw| IpAddr::from(*raw)),
        _ => None,
    }
}

impl Step {
    fn encode(&self, protocol: u8, out: &mut Vec<u8>) -> (u16, u16) {
        match self {
            Self::SetNexthop { id, family, link, via } => {
                let family = match via {
                    Via::Group(_) => 0,
                    Via::Encap { .. } | Via::Gateway(_) | Via::Link => family_octet(*family),
                };
                let flags = match via {
                    Via::Gateway(_) => RTNH_F_ONLINK,
                    Via::Encap { .. } | Via::Link | Via::Group(_) => 0,
                };
                out.extend_from_slice(&[family, 0, protocol, 0]);
                out.extend_from_slice(&flags.to_ne_bytes());
                push_u32(out, NHA_ID, *id);
                via.encode(*link, out);
                (RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE)
            }
            Self::DeleteNexthop { id } => {
                out.extend_from_slice(&[0; 8]);
                push_u32(out, NHA_ID, *id);
                (RTM_DELNEXTHOP, 0)
            }
            Self::SetRoute { table, prefix, metric, to } => {
                let kind = match to {
                    To::Nexthop(_) => libc::RTN_UNICAST,
                    To::Throw => libc::RTN_THROW,
                    To::Blackhole => libc::RTN_BLACKHOLE,
                };
                let scope = libc::RT_SCOPE_UNIVERSE;
                route_header(out, *table, *prefix, protocol, scope, kind, *metric);
                if let To::Nexthop(id) = to {
                    push_u32(out, RTA_NH_ID, *id);
                }
                (libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
            }
            Self::DeleteRoute { table, prefix, metric } => {
                let scope = libc::RT_SCOPE_NOWHERE; // any
                route_header(out, *table, *prefix, protocol, scope, libc::RTN_UNSPEC, *metric);
                (libc::RTM_DELROUTE, 0)
            }
            Self::SetNeighbor { link, ip, mac } => {
                let [a, b, c, d] = link.0.to_ne_bytes();
                let [low, high] = libc::NUD_PERMANENT.to_ne_bytes();
                let family = family_octet(Prefix::host(*ip).family());
                out.extend_from_slice(&[family, 0, 0, 0, a, b, c, d, low, high, 0, 0]);
                push_ip(out, libc::NDA_DST, *ip);
                push(out, libc::NDA_LLADDR, mac);
                (libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
            }
        }
    }
}

impl Via {
    fn encode(&self, link: IfIndex, out: &mut Vec<u8>) {
        match self {
            Self::Encap { source, destination, iid } => {
                push_u32(out, NHA_OIF, link.0);
                let kind = match destination {
                    IpAddr::V4(_) => LWTUNNEL_ENCAP_IP,
                    IpAddr::V6(_) => LWTUNNEL_ENCAP_IP6,
                };
                push(out, NHA_ENCAP_TYPE, &kind.to_ne_bytes());
                nest(out, NHA_ENCAP, |out| {
                    push(out, LWTUNNEL_IP_ID, &u64::from(*iid).to_be_bytes());
                    push_ip(out, LWTUNNEL_IP_DST, *destination);
                    if let Some(source) = source {
                        push_ip(out, LWTUNNEL_IP_SRC, *source);
                    }
                });
            }
            Self::Gateway(ip) => {
                push_u32(out, NHA_OIF, link.0);
                push_ip(out, NHA_GATEWAY, *ip);
            }
            Self::Link => push_u32(out, NHA_OIF, link.0),
            Self::Group(members) => {
                let mut value = Vec::with_capacity(members.len() * 8);
                for (id, weight) in members {
                    value.extend_from_slice(&id.to_ne_bytes());
                    value.extend_from_slice(&[weight.saturating_sub(1), 0, 0, 0]);
                }
                push(out, NHA_GROUP, &value);
            }
        }
    }
}

fn route_header(
    out: &mut Vec<u8>,
    table: u8,
    prefix: Prefix,
    protocol: u8,
    scope: u8,
    kind: u8,
    metric: u32,
) {
    let family = family_octet(prefix.family());
    out.extend_from_slice(&[family, prefix.len(), 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]);
    push_ip(out, RTA_DST, prefix.addr());
    push_u32(out, RTA_PRIORITY, metric);
}

/// `None` when it is not ours, or not of a kind that we make.
fn nexthop(body: &[u8], protocol: u8) -> Option<Dumped> {
    let (header, attributes) = body.split_first_chunk::<8>()?;
    if header[2] != protocol {
        return None;
    }
    let (mut id, mut via, mut encap_type) = (None, Via::Link, 0);
    let mut encap = None;
    each(attributes, |kind, value| match kind {
        NHA_ID => id = read_u32(value),
        NHA_GATEWAY => {
            if let Some(ip) = read_ip(value) {
                via = Via::Gateway(ip);
            }
        }
        NHA_GROUP => {
            let (members, _) = value.as_chunks::<8>();
            let member = |&[a, b, c, d, weight, ..]: &[u8; 8]| {
                (u32::from_ne_bytes([a, b, c, d]), weight.saturating_add(1))
            };
            via = Via::Group(members.iter().map(member).collect());
        }
        NHA_ENCAP_TYPE => {
            encap_type = value.first_chunk().map_or(0, |raw| u16::from_ne_bytes(*raw));
        }
        NHA_ENCAP => encap = Some(value),
        _ => {} // of no interest
    });
    if let Some(encap) = encap {
        if ![LWTUNNEL_ENCAP_IP, LWTUNNEL_ENCAP_IP6].contains(&encap_type) {
            return None;
        }
        let (mut source, mut destination, mut iid) = (None, None, 0);
        each(encap, |kind, value| match kind {
            LWTUNNEL_IP_ID => {
                let number = value.first_chunk().map_or(0, |raw| u64::from_be_bytes(*raw));
                iid = u32::try_from(number).unwrap_or(u32::MAX);
            }
            LWTUNNEL_IP_DST => destination = read_ip(value),
            LWTUNNEL_IP_SRC => source = read_ip(value).filter(|ip| !ip.is_unspecified()),
            _ => {} // as the kernel likes
        });
        via = Via::Encap { source, destination: destination?, iid };
    }
    Some(Dumped::Nexthop { id: id?, via })
}

fn route(body: &[u8], protocol: u8, wanted: u8) -> Option<Dumped> {
    let (&[family, len, _, _, table, by, _, kind, ..], attributes) =
        body.split_first_chunk::<12>()?;
    if by != protocol || table != wanted {
        return None;
    }
    let any = match i32::from(family) {
        libc::AF_INET => IpAddr::from([0_u8; 4]),
        libc::AF_INET6 => IpAddr::from([0_u8; 16]),
        _ => return None,
    };
    let (mut destination, mut nexthop, mut metric) = (None, None, 0);
    each(attributes, |kind, value| match kind {
        RTA_DST => destination = read_ip(value),
        RTA_PRIORITY => metric = read_u32(value).unwrap_or(0),
        RTA_NH_ID => nexthop = read_u32(value),
        _ => {} // of no interest
    });
    let to = match kind {
        libc::RTN_THROW => To::Throw,
        libc::RTN_UNICAST => To::Nexthop(nexthop?),
        libc::RTN_BLACKHOLE => To::Blackhole,
        _ => return None,
    };
    Some(Dumped::Route { prefix: Prefix::new(destination.unwrap_or(any), len)?, metric, to })
}
