//! Operations ↔ rtnetlink messages.

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};

use super::{Options, TableRoute};
use crate::dataplane::{Hop, KernelRoute, Kind, OpError};
use crate::types::seam::IfIndex;
use crate::types::{Family, MacAddr, Prefix};

pub fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

fn family_of(ip: IpAddr) -> Family {
    Prefix::host(ip).family()
}

/// A table number above 255 goes into an attribute only.
fn table(options: &Options, header: &mut RouteHeader, attributes: &mut Vec<RouteAttribute>) {
    header.table = u8::try_from(options.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    attributes.push(RouteAttribute::Table(options.table));
}

fn base(options: &Options, prefix: Prefix, kind: Kind) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(prefix.family());
    route.header.destination_prefix_length = prefix.len();
    route.header.protocol = RouteProtocol::from(options.protocol);
    table(options, &mut route.header, &mut route.attributes);
    route.attributes.push(RouteAttribute::Destination(prefix.addr().into()));
    route.attributes.push(RouteAttribute::Priority(options.metric(kind)));
    route
}

pub fn route(options: &Options, prefix: Prefix, kind: Kind, hop: Hop) -> RouteMessage {
    let mut route = base(options, prefix, kind);
    route.header.kind = RouteType::Unicast;
    route.header.scope = match (prefix.family(), hop.gateway) {
        (Family::Ipv4, None) => RouteScope::Link,
        (Family::Ipv4, Some(_)) | (Family::Ipv6, _) => RouteScope::Universe,
    };
    route.attributes.push(RouteAttribute::Oif(hop.link.0));
    if let Some(gateway) = hop.gateway {
        route.attributes.push(match (prefix.family(), gateway) {
            // RFC 8950: an IPv4 destination behind an IPv6 next hop.
            (Family::Ipv4, IpAddr::V6(via)) => RouteAttribute::Via(RouteVia::Inet6(via)),
            (Family::Ipv4, IpAddr::V4(_)) | (Family::Ipv6, _) => {
                RouteAttribute::Gateway(gateway.into())
            }
        });
    }
    route
}

/// Protocol, table and metric are in the request, so that the kernel compares them.
pub fn route_removal(options: &Options, prefix: Prefix, kind: Kind) -> RouteMessage {
    let mut route = base(options, prefix, kind);
    route.header.scope = RouteScope::NoWhere; // any
    route
}

pub fn route_dump(options: &Options, family: Family) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.protocol = RouteProtocol::from(options.protocol);
    table(options, &mut route.header, &mut route.attributes);
    route
}

/// All routes of the table, whoever has made them.
pub fn table_dump(options: &Options, family: Family) -> RouteMessage {
    let mut route = route_dump(options, family);
    route.header.protocol = RouteProtocol::Unspec;
    route
}

pub fn lookup(ip: IpAddr, fib_match: bool) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family_of(ip));
    route.header.destination_prefix_length = family_of(ip).bits();
    if fib_match {
        route.header.flags = RouteFlags::FibMatch;
    }
    route.attributes.push(RouteAttribute::Destination(ip.into()));
    route
}

pub fn protocol(route: &RouteMessage) -> u8 {
    route.header.protocol.into()
}

/// Where a looked-up route leads.
pub fn hop_of(route: &RouteMessage, next_hop: IpAddr) -> Result<Hop, OpError> {
    let refuse = |what: &str| Err(OpError::Other(format!("next hop {next_hop} {what}")));
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return refuse("is an address of this machine"),
        _ => return refuse("is not a unicast destination"),
    }
    match (find_oif(route), find_gateway(route)) {
        (Some(link), gateway) => Ok(Hop { link, gateway: gateway.or(Some(next_hop)) }),
        (None, _) => refuse("has no outgoing interface"),
    }
}

/// A route of ours; `None` for the others, which a kernel without strict checking sends as well.
pub fn own_route(options: &Options, route: &RouteMessage) -> Option<KernelRoute> {
    let TableRoute { prefix, protocol, metric, hop } = table_route(options, route)?;
    if protocol != options.protocol {
        return None;
    }
    Some(KernelRoute { prefix, kind: options.kind(metric)?, hop: hop? })
}

/// A route of our table; `None` for those of others, as above.
pub fn table_route(options: &Options, route: &RouteMessage) -> Option<TableRoute> {
    let (mut metric, mut table) = (0, u32::from(route.header.table));
    let mut destination = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = ip_of(address),
            _ => {} // told apart below, or of no interest
        }
    }
    if table != options.table {
        return None;
    }
    let destination = destination.unwrap_or(match route.header.address_family {
        AddressFamily::Inet6 => IpAddr::from([0_u8; 16]),
        _ => IpAddr::from([0_u8; 4]),
    });
    let hop = find_oif(route).map(|link| Hop { link, gateway: find_gateway(route) });
    Some(TableRoute {
        prefix: Prefix::new(destination, route.header.destination_prefix_length)?,
        protocol: protocol(route),
        metric,
        hop,
    })
}

fn find_oif(route: &RouteMessage) -> Option<IfIndex> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(IfIndex(*index)),
        _ => None,
    })
}

fn find_gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        _ => None,
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// Reachable, not permanent: the kernel keeps watching over the node (NUD) and tells when it no
/// longer answers. Externally learned entries are exempt from the table's garbage collection, whose
/// threshold (1024) is smaller than an anchor.
pub fn neighbor(link: IfIndex, ip: IpAddr, mac: Option<MacAddr>) -> NeighbourMessage {
    let mut neighbor = NeighbourMessage::default();
    neighbor.header.family = address_family(family_of(ip));
    neighbor.header.ifindex = link.0;
    neighbor.attributes.push(NeighbourAttribute::Destination(match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    if let Some(mac) = mac {
        neighbor.header.state = NeighbourState::Reachable;
        neighbor.header.flags = NeighbourFlags::ExtLearned;
        neighbor.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    }
    neighbor
}
