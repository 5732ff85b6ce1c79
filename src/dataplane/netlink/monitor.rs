//! What others change in the kernel: links, failed neighbours, routes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_sys::{Socket, SocketAddr};

use super::link::LinkState;
use super::socket::{open_socket, parse, split};
use super::{ENCAP_TABLE, tunnel_protocol};
use crate::types::MacAddr;
use crate::types::seam::IfIndex;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// Datagrams per call: the caller's other work is not kept waiting by a storm.
const DATAGRAMS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A link is new, went up or down, or changed otherwise.
    Link(LinkState),
    LinkGone(IfIndex),
    /// Neighbour discovery got no answer.
    NeighborFailed {
        link: IfIndex,
        ip: IpAddr,
    },
    /// The kernel has learned this link-layer address, by itself or from an operator.
    NeighborLearned {
        link: IfIndex,
        ip: IpAddr,
        mac: MacAddr,
    },
    /// Routes of others changed: next hops may resolve otherwise.
    RoutesChanged,
    /// Somebody else has added or removed a route with our protocol number.
    OwnRoutesChanged,
    /// Notifications were lost: everything has to be looked at again.
    Lost,
}

pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    protocol: u8,
}

/// What the messages of one read said about routes: of these only the fact matters.
#[derive(Default)]
struct Routes {
    others: bool,
    ours: bool,
}

impl Monitor {
    /// `own_port` is the socket whose changes are not reported back: a full table would be an
    /// echo of a million messages.
    pub(super) fn open(own_port: u32, protocol: u8) -> io::Result<Self> {
        let mut socket = open_socket()?;
        ignore_own(&socket, own_port, protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: vec![0; 64 << 10], protocol })
    }

    /// Reads what is there. True when there may be more.
    pub fn read(&mut self, out: &mut Vec<Notice>) -> io::Result<bool> {
        let mut routes = Routes::default();
        let protocol = self.protocol;
        let mut more = true;
        for _ in 0..DATAGRAMS_MAX {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(len) => split(&self.buffer[..len.min(self.buffer.len())], |header, body| {
                    if let Ok(message) = parse(header, body) {
                        notice(&message, protocol, &mut routes, out);
                    }
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => out.push(Notice::Lost),
                Err(error) => return Err(error),
            }
        }
        if routes.others {
            out.push(Notice::RoutesChanged);
        }
        if routes.ours {
            out.push(Notice::OwnRoutesChanged);
        }
        Ok(more)
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn notice(message: &RouteNetlinkMessage, protocol: u8, routes: &mut Routes, out: &mut Vec<Notice>) {
    match message {
        RouteNetlinkMessage::NewLink(link) => {
            out.extend(LinkState::from_message(link).map(Notice::Link));
        }
        RouteNetlinkMessage::DelLink(link) => {
            out.push(Notice::LinkGone(IfIndex(link.header.index)));
        }
        RouteNetlinkMessage::NewNeighbour(neighbor) => out.extend(neighbor_notice(neighbor)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            if u8::from(route.header.protocol) == protocol {
                routes.ours = true;
            } else {
                routes.others = true;
            }
        }
        _ => {} // of groups that were not asked for
    }
}

fn neighbor_notice(neighbor: &NeighbourMessage) -> Option<Notice> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &neighbor.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
            }
            _ => {} // of no interest
        }
    }
    let (link, ip) = (IfIndex(neighbor.header.ifindex), ip?);
    if neighbor.header.state == NeighbourState::Failed {
        return Some(Notice::NeighborFailed { link, ip });
    }
    mac.map(|mac| Notice::NeighborLearned { link, ip, mac })
}

/// A classic BPF program over the message: drop those that carry our port number, and routes of
/// the encapsulating data plane, by its table or its protocol number, which nothing else writes.
fn ignore_own(socket: &Socket, port: u32, protocol: u8) -> io::Result<()> {
    // Loads are big-endian, the header is in the machine's order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).expect("a BPF opcode has 16 bits"),
        jt,
        jf,
        k,
    };
    let load = |size: u32, at: u32| statement(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
    let equal = |k, jt, jf| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let pass = |len| statement(libc::BPF_RET | libc::BPF_K, len, 0, 0);
    let program = [
        load(libc::BPF_W, 12),
        equal(port, 8, 0),
        load(libc::BPF_H, 4),
        equal(kind(libc::RTM_NEWROUTE), 1, 0),
        equal(kind(libc::RTM_DELROUTE), 0, 4),
        load(libc::BPF_B, 20), // rtm_table
        equal(u32::from(ENCAP_TABLE), 3, 0),
        load(libc::BPF_B, 21), // rtm_protocol
        equal(u32::from(tunnel_protocol(protocol)), 1, 0),
        pass(u32::MAX),
        pass(0),
    ];
    crate::dataplane::attach_filter(socket.as_raw_fd(), &program)
}
