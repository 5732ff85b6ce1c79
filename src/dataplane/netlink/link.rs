//! Access links: what an interface needs so that an unmodified host can use it at any anchor.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::message::address_family;
use super::{Kernel, OpError};
use crate::types::seam::IfIndex;
use crate::types::{MacAddr, Prefix};

/// What is set on an access interface, the same at all anchors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLink {
    pub name: String,
    /// The anycast link-layer address. `None` leaves the interface's own, and hosts have to
    /// resolve the gateway anew after a move.
    pub mac: Option<MacAddr>,
    pub link_local: Ipv6Addr,
    /// Anycast gateway addresses.
    pub gateways: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    pub link: IfIndex,
    pub name: String,
    pub mac: Option<MacAddr>,
    /// Administratively up and with carrier.
    pub up: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("there is no interface {0}")]
    NoInterface(String),
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    #[error("{name}: cannot set {what}: {error}")]
    Refused { name: String, what: String, error: OpError },
    #[error("cannot set {path} to {value}: {error}")]
    Sysctl { path: String, value: &'static str, error: io::Error },
}

/// Once per machine. `all/send_redirects` is combined with the interface's own by "or"; a redirect
/// would make two hosts of a link talk past the anchor, and stay wrong when one of them leaves.
const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
];

/// Per access interface.
const LINK_SYSCTLS: [(&str, &str, &str); 12] = [
    ("ipv4", "forwarding", "1"),
    ("ipv4", "send_redirects", "0"),
    // The filter (nft) decides about sources. A host that is just arriving has no route yet, and
    // would get no answer to its first ARP request.
    ("ipv4", "rp_filter", "0"),
    // killick answers for other nodes, with knowledge; the kernel would answer for everything.
    ("ipv4", "proxy_arp", "0"),
    ("ipv4", "arp_filter", "0"),
    // The kernel answers for the gateway address, and for no address of another interface.
    ("ipv4", "arp_ignore", "1"),
    ("ipv4", "arp_announce", "2"),
    ("ipv6", "forwarding", "1"),
    ("ipv6", "accept_ra", "0"),
    // The anycast address would find its twin at the neighbouring anchor.
    ("ipv6", "accept_dad", "0"),
    // No address made from the interface: the anycast link-local one is set below.
    ("ipv6", "addr_gen_mode", "1"),
    ("ipv6", "proxy_ndp", "0"),
];

impl Kernel {
    /// The state of a link; `None` when there is no such interface.
    pub fn find_link(&mut self, name: &str) -> io::Result<Option<LinkState>> {
        // Asked by index: IFLA_IFNAME alone is refused by old kernels.
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        // SAFETY: `c_name` is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if index == 0 {
            return Ok(None);
        }
        let mut request = LinkMessage::default();
        request.header.index = index;
        match self.requests.query(RouteNetlinkMessage::GetLink(request))? {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(LinkState::from_message(&link)),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Brings the interface into the state that `access` describes, as far as it can: every
    /// failure is reported, and the rest is set nevertheless.
    pub fn set_up_access(&mut self, access: &AccessLink) -> Result<IfIndex, Vec<SetupError>> {
        let state = match self.find_link(&access.name) {
            Ok(Some(state)) => state,
            Ok(None) => return Err(vec![SetupError::NoInterface(access.name.clone())]),
            Err(error) => return Err(vec![error.into()]),
        };
        let mut errors = Vec::new();
        set_sysctls(&access.name, &mut errors);
        if let Some(mac) = access.mac.filter(|mac| state.mac != Some(*mac)) {
            let address = LinkAttribute::Address(mac.0.to_vec());
            self.set_link(access, &state, "the MAC address", vec![address], &mut errors);
        }
        self.set_link(access, &state, "the interface up", Vec::new(), &mut errors);
        let link_local = Prefix::host(access.link_local.into());
        for prefix in access.gateways.iter().map(|&ip| Prefix::host(ip)).chain([link_local]) {
            self.set_address(access, state.link, prefix.addr(), &mut errors);
        }
        if errors.is_empty() { Ok(state.link) } else { Err(errors) }
    }

    /// Always administratively up: an access link that is down serves nobody.
    fn set_link(
        &mut self,
        access: &AccessLink,
        state: &LinkState,
        what: &str,
        attributes: Vec<LinkAttribute>,
        errors: &mut Vec<SetupError>,
    ) {
        let mut message = LinkMessage::default();
        message.header.index = state.link.0;
        if attributes.is_empty() {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes = attributes;
        self.set(access, what, (RouteNetlinkMessage::SetLink(message), 0), errors);
    }

    fn set_address(
        &mut self,
        access: &AccessLink,
        link: IfIndex,
        ip: IpAddr,
        errors: &mut Vec<SetupError>,
    ) {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let family = Prefix::host(ip).family();
        let mut message = AddressMessage::default();
        message.header.family = address_family(family);
        message.header.index = link.0;
        // Link-local destinations are on the link; for the gateway there must be no route to its
        // whole subnet, because only attached nodes are reached here.
        let mut flags = AddressFlags::Nodad | AddressFlags::Permanent;
        if link_local {
            message.header.prefix_len = 64;
            message.header.scope = AddressScope::Link;
        } else {
            message.header.prefix_len = family.bits();
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Local(ip));
        message.attributes.push(AddressAttribute::Address(ip));
        message.attributes.push(AddressAttribute::Flags(flags));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let what = format!("the address {ip}");
        self.set(access, &what, (RouteNetlinkMessage::NewAddress(message), flags), errors);
    }

    fn set(
        &mut self,
        access: &AccessLink,
        what: &str,
        message: (RouteNetlinkMessage, u16),
        errors: &mut Vec<SetupError>,
    ) {
        let mut results = Vec::new();
        if let Err(error) = self.requests.transact(vec![message], &mut results) {
            errors.push(error.into());
        }
        errors.extend(results.into_iter().filter_map(Result::err).map(|refused| {
            SetupError::Refused {
                name: access.name.clone(),
                what: what.to_owned(),
                error: refused.into(),
            }
        }));
    }
}

impl LinkState {
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        let (mut name, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Address(octets) => {
                    mac = <[u8; 6]>::try_from(octets.as_slice()).ok().map(MacAddr);
                }
                _ => {} // of no interest
            }
        }
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        Some(Self {
            link: IfIndex(message.header.index),
            name: name?,
            mac,
            up: message.header.flags.contains(up),
        })
    }
}

fn set_sysctls(name: &str, errors: &mut Vec<SetupError>) {
    for (path, value) in SYSCTLS {
        set_sysctl(path.to_owned(), value, errors);
    }
    // In a path below /proc/sys, a dot of a VLAN interface's name stays a dot.
    for (family, key, value) in LINK_SYSCTLS {
        set_sysctl(format!("net/{family}/conf/{name}/{key}"), value, errors);
    }
}

/// Written only when it differs: where /proc/sys is read-only, an operator may have set it.
pub(super) fn set_sysctl(path: String, value: &'static str, errors: &mut Vec<SetupError>) {
    let file = format!("/proc/sys/{path}");
    let result = match fs::read_to_string(&file) {
        Ok(current) if current.trim() == value => Ok(()),
        Ok(_) => fs::write(&file, value),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        errors.push(SetupError::Sysctl { path, value, error });
    }
}
