//! Packets on their way through the engine, with room before them for the header of a path, so
//! that none is copied that need not wait.

use std::net::SocketAddr;

use crate::wire::encap::{Head, set_ttl_and_class};
use crate::wire::transient::{Flow, HEADER_LEN};

/// Room before each packet.
pub const HEADROOM: usize = HEADER_LEN;

/// What goes into one datagram over either family (RFC 768, RFC 8200).
pub const PACKET_MAX: usize = u16::MAX as usize - 40 - 8 - HEADROOM;

/// Where octets are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Octets {
    /// In the caller's slot of this number.
    Slot {
        slot: usize,
        start: usize,
        len: usize,
    },
    Own {
        octets: Vec<u8>,
        start: usize,
    },
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To the kernel, which routes it past our table.
    Write(Octets),
    /// By UDP.
    Send { to: SocketAddr, octets: Octets },
}

impl Output {
    pub(super) fn own(to: SocketAddr, octets: Vec<u8>) -> Self {
        Self::Send { to, octets: Octets::Own { octets, start: 0 } }
    }
}

/// [`HEADROOM`] octets and a packet.
pub(super) enum Carrier<'a> {
    Slot { slot: usize, octets: &'a mut [u8] },
    Own(Vec<u8>),
}

impl Carrier<'_> {
    pub fn octets_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Slot { octets, .. } => octets,
            Self::Own(octets) => octets,
        }
    }

    pub fn packet_len(&self) -> usize {
        HEADROOM.abs_diff(match self {
            Self::Slot { octets, .. } => octets.len(),
            Self::Own(octets) => octets.len(),
        })
    }

    fn into_own(self) -> Vec<u8> {
        match self {
            Self::Slot { octets, .. } => octets.to_vec(),
            Self::Own(octets) => octets,
        }
    }

    pub fn into_octets(self, start: usize) -> Octets {
        match self {
            Self::Slot { slot, octets } => Octets::Slot { slot, start, len: octets.len() - start },
            Self::Own(octets) => Octets::Own { octets, start },
        }
    }
}

pub(super) struct Packet<'a> {
    pub carrier: Carrier<'a>,
    /// Paths behind it.
    pub hops: u8,
    /// The kernel has counted a hop when it routed it to us, and counts it again when it gets it
    /// back.
    pub diverted: bool,
}

/// What has a place in the order of a prefix.
pub(super) enum Item<'a> {
    Packet(Packet<'a>),
    /// All before this has been sent: to be told to the other end.
    Marker(Flow),
}

impl Item<'_> {
    /// As it waits.
    pub fn into_own(self) -> Item<'static> {
        match self {
            Item::Marker(flow) => Item::Marker(flow),
            Item::Packet(Packet { carrier, hops, diverted }) => {
                Item::Packet(Packet { carrier: Carrier::Own(carrier.into_own()), hops, diverted })
            }
        }
    }

    /// Octets that count against limits; `None` for what is not a packet.
    pub fn packet_len(&self) -> Option<usize> {
        match self {
            Item::Packet(packet) => Some(packet.carrier.packet_len()),
            Item::Marker(_) => None,
        }
    }
}

/// Takes back one hop.
pub(super) fn restore_hop(packet: &mut [u8]) {
    let (ttl, class) = match &*packet {
        [v, class, _, _, _, _, _, ttl, ..] if *v >> 4 == 6 => (*ttl, *v << 4 | *class >> 4),
        [v, class, _, _, _, _, _, _, ttl, ..] if *v >> 4 == 4 && packet.len() >= 20 => {
            (*ttl, *class)
        }
        _ => return,
    };
    set_ttl_and_class(packet, ttl.saturating_add(1), class);
}

pub(super) fn flow_of(head: &Head) -> Flow {
    Flow { source: head.source, destination: head.destination }
}
