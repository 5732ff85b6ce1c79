//! The router's side of ARP and Neighbor Discovery on one access link. Sans-IO.
//!
//! All anchors have the same gateway address and the same link-layer address, so a host that moves
//! keeps its neighbour cache. Addresses of the mobile pools belong to no link: for those that are
//! not attached to *this* link the router answers itself (proxy), and so two hosts of one prefix
//! reach each other through the anchors, wherever they are.
//!
//! RFC 826 and RFC 5227 (ARP), RFC 4861 (RA §6.2, NS and NA §7.2), RFC 4862 §5.4 (DAD),
//! RFC 6275 §10.4.1 (what a proxy says when a node leaves the link).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::rate::SenderLimit;
use crate::types::seam::{Holder, IfIndex, Sighted, Sighting};
use crate::types::{Instant, MacAddr, Prefix};
use crate::wire::nd::{
    ALL_NODES, Arp, ArpOperation, BROADCAST, Frame, Icmp6, NdOption, NeighborAdvertisement,
    NeighborSolicitation, Payload, PrefixInformation, RouterAdvertisement, multicast_mac,
};

/// RFC 4861 §10.
const INITIAL_ADVERTISEMENTS: u32 = 3;
const INITIAL_INTERVAL_MAX: Duration = Duration::from_secs(16);
const BETWEEN_MULTICAST_MIN: Duration = Duration::from_secs(3);

/// Solicited advertisements that wait for their random delay. When full, the next solicitation is
/// answered to all nodes.
const PENDING_UNICAST_MAX: usize = 64;

/// Prefix options per advertisement: the message stays below the smallest IPv6 MTU (1280).
pub const ADVERTISED_PREFIXES_MAX: usize = 32;

#[derive(Clone, Debug)]
pub struct LinkConfig {
    pub link: IfIndex,
    /// The anycast link-layer address, also the sender of every frame.
    pub mac: MacAddr,
    /// The router's link-local address, the source of its advertisements and probes.
    pub link_local: Ipv6Addr,
    /// Anycast gateway addresses.
    pub gateways: Vec<IpAddr>,
    /// True when the gateway addresses are set on the interface: the kernel then answers for
    /// them, also while this process is dead, and a second answer would be noise.
    pub kernel_answers: bool,
    /// Mobile pools: only within them the router answers for others.
    pub pools: Vec<Prefix>,
    /// `None`: no router advertisements on this link.
    pub advertise: Option<Advertisement>,
}

#[derive(Clone, Debug)]
pub struct Advertisement {
    /// MaxRtrAdvInterval (§6.2.1), 4 s to 1800 s; the minimum is a third of it.
    pub interval_max: Duration,
    /// AdvDefaultLifetime.
    pub lifetime: Duration,
    /// Upper end of the random delay of a solicited advertisement. The RFC's 0.5 s keeps several
    /// routers from answering at once; with one router on the link, zero is safe and faster.
    pub solicited_delay_max: Duration,
    pub hop_limit: u8,
    pub managed: bool,
    pub other_config: bool,
    pub mtu: Option<u32>,
    /// At most [`ADVERTISED_PREFIXES_MAX`]; further ones are left out.
    pub prefixes: Vec<AdvertisedPrefix>,
}

impl Default for Advertisement {
    /// §6.2.1.
    fn default() -> Self {
        Self {
            interval_max: Duration::from_secs(600),
            lifetime: Duration::from_secs(1800),
            solicited_delay_max: Duration::from_millis(500),
            hop_limit: 64,
            managed: false,
            other_config: false,
            mtu: None,
            prefixes: Vec::new(),
        }
    }
}

/// A pool as hosts see it. On-link is false as a rule: the other hosts of a mobile prefix may be
/// anywhere, so packets to them have to go to the router.
#[derive(Clone, Debug)]
pub struct AdvertisedPrefix {
    pub prefix: Prefix,
    pub on_link: bool,
    pub autonomous: bool,
    pub valid: Duration,
    pub preferred: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An Ethernet frame for this link.
    Send {
        link: IfIndex,
        frame: Vec<u8>,
    },
    Sighted(Sighted),
}

/// What happened on the link since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sightings: u64,
    pub arp_answered: u64,
    pub ns_answered: u64,
    pub defended: u64,
    pub advertisements: u64,
    pub probes: u64,
    /// Frames over the limit of their sender.
    pub rate_limited: u64,
    /// The sender of the frame and the sender in the message differ, or cannot be a node.
    pub forged: u64,
}

pub struct Router {
    config: LinkConfig,
    limit: SenderLimit,
    random: u64,
    initial_left: u32,
    /// When the next advertisement to all nodes is due; [`Instant::FAR_FUTURE`] without any.
    multicast_at: Instant,
    /// When the last one was sent.
    multicast_last: Option<Instant>,
    pending: Vec<Pending>,
    counters: Counters,
}

struct Pending {
    at: Instant,
    mac: MacAddr,
    ip: Ipv6Addr,
}

impl Router {
    /// `seed` spreads the advertisements of several anchors; the first one is due at once.
    pub fn new(config: LinkConfig, seed: u64, now: Instant) -> Self {
        let multicast_at = if config.advertise.is_some() { now } else { Instant::FAR_FUTURE };
        Self {
            config,
            limit: SenderLimit::new(),
            random: seed | 1,
            initial_left: INITIAL_ADVERTISEMENTS,
            multicast_at,
            multicast_last: None,
            pending: Vec::new(),
            counters: Counters::default(),
        }
    }

    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// `holder` says who has an address, given the asker's link-layer address.
    pub fn handle_frame(
        &mut self,
        frame: &Frame,
        holder: impl Fn(MacAddr, IpAddr) -> Holder,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if frame.source == self.config.mac {
            return; // our own frame, or another anchor's on a shared link
        }
        if frame.source.is_multicast() || frame.source == MacAddr::default() {
            self.counters.forged += 1;
            return;
        }
        if !self.limit.take(frame.source, now) {
            self.counters.rate_limited += 1;
            return;
        }
        match &frame.payload {
            Payload::Arp(arp) => self.handle_arp(frame.source, arp, holder, out),
            Payload::Nd { source, message, .. } => match message {
                Icmp6::NeighborSolicitation(ns) => {
                    self.handle_solicitation(frame.source, *source, ns, holder, out);
                }
                Icmp6::NeighborAdvertisement(na) => {
                    self.handle_advertisement(frame.source, *source, na, out);
                }
                Icmp6::RouterSolicitation(_) => {
                    if is_node(IpAddr::V6(*source)) {
                        let ip = IpAddr::V6(*source);
                        self.sighted(frame.source, ip, Sighting::RouterSolicitation, out);
                    }
                    self.handle_router_solicitation(frame.source, *source, now);
                }
                // Another router on an access link: an operator's matter, not ours.
                Icmp6::RouterAdvertisement(_) => {}
            },
            Payload::Packet { source } => {
                if is_node(*source) {
                    self.sighted(frame.source, *source, Sighting::Packet, out);
                }
            }
        }
    }

    fn handle_arp(
        &mut self,
        mac: MacAddr,
        arp: &Arp,
        holder: impl Fn(MacAddr, IpAddr) -> Holder,
        out: &mut Vec<Output>,
    ) {
        if arp.sender_mac != mac {
            self.counters.forged += 1;
            return;
        }
        let target = IpAddr::V4(arp.target_ip);
        if arp.is_probe() {
            // A host asks whether it may use the address. If another node has it elsewhere, the
            // proxy speaks for that node (RFC 5227 §2.1.1); otherwise this is an arrival.
            if self.defends(mac, target, &holder) {
                self.counters.defended += 1;
                self.send_arp_reply(arp, mac, out);
            } else {
                self.sighted(mac, target, Sighting::Arp, out);
            }
            return;
        }
        let sender = IpAddr::V4(arp.sender_ip);
        if !is_node(sender) || self.is_gateway(sender) {
            self.counters.forged += 1;
            return;
        }
        self.sighted(mac, sender, Sighting::Arp, out);
        if arp.operation == ArpOperation::Request
            && !arp.is_announcement()
            && self.answers(mac, target, &holder)
        {
            self.counters.arp_answered += 1;
            self.send_arp_reply(arp, mac, out);
        }
    }

    fn handle_solicitation(
        &mut self,
        mac: MacAddr,
        source: Ipv6Addr,
        ns: &NeighborSolicitation,
        holder: impl Fn(MacAddr, IpAddr) -> Holder,
        out: &mut Vec<Output>,
    ) {
        let target = IpAddr::V6(ns.target);
        if source.is_unspecified() {
            // Duplicate address detection (RFC 4862 §5.4). The first sign of a host that comes
            // with its address is the question whether somebody else has it.
            if self.defends(mac, target, &holder) {
                self.counters.defended += 1;
                self.send_neighbor_advertisement(BROADCAST_V6, ns.target, false, out);
            } else {
                self.sighted(mac, target, Sighting::NeighborSolicitation, out);
            }
            return;
        }
        if self.is_gateway(IpAddr::V6(source)) {
            self.counters.forged += 1;
            return;
        }
        self.sighted(mac, IpAddr::V6(source), Sighting::NeighborSolicitation, out);
        if self.answers(mac, target, &holder) {
            self.counters.ns_answered += 1;
            self.send_neighbor_advertisement((mac, source), ns.target, true, out);
        }
    }

    fn handle_advertisement(
        &mut self,
        mac: MacAddr,
        source: Ipv6Addr,
        na: &NeighborAdvertisement,
        out: &mut Vec<Output>,
    ) {
        let claimed = na.options.iter().find_map(|option| match option {
            NdOption::TargetLinkLayer(mac) => Some(*mac),
            NdOption::SourceLinkLayer(_)
            | NdOption::Prefix(_)
            | NdOption::Mtu(_)
            | NdOption::Other { .. } => None,
        });
        // An advertisement for somebody else's link-layer address is a proxy's or an attacker's.
        if claimed.is_some_and(|claimed| claimed != mac)
            || self.is_gateway(IpAddr::V6(na.target))
            || self.is_gateway(IpAddr::V6(source))
        {
            self.counters.forged += 1;
            return;
        }
        self.sighted(mac, IpAddr::V6(na.target), Sighting::NeighborAdvertisement, out);
    }

    /// §6.2.6.
    fn handle_router_solicitation(&mut self, mac: MacAddr, source: Ipv6Addr, now: Instant) {
        let Some(advertise) = &self.config.advertise else { return };
        let delay_max = advertise.solicited_delay_max;
        let at = now + self.random_up_to(delay_max);
        if source.is_unspecified() || self.pending.len() == PENDING_UNICAST_MAX {
            let earliest =
                self.multicast_last.map_or(Instant::ZERO, |last| last + BETWEEN_MULTICAST_MIN);
            self.multicast_at = self.multicast_at.min(at.max(earliest));
        } else if !self.pending.iter().any(|p| p.ip == source && p.mac == mac) {
            self.pending.push(Pending { at, mac, ip: source });
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.pending.iter().map(|p| p.at).fold(self.multicast_at, Instant::min)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(advertise) = &self.config.advertise else { return };
        let (interval_max, lifetime) = (advertise.interval_max, advertise.lifetime);
        if self.multicast_at <= now {
            // Everybody hears this one, also those who have asked.
            self.pending.clear();
            self.send_router_advertisement(BROADCAST_V6, lifetime, out);
            self.multicast_last = Some(now);
            let min = interval_max / 3;
            let mut interval = min + self.random_up_to(interval_max.saturating_sub(min));
            self.initial_left = self.initial_left.saturating_sub(1);
            if self.initial_left > 0 {
                interval = interval.min(INITIAL_INTERVAL_MAX);
            }
            self.multicast_at = now + interval;
        }
        let due: Vec<Pending> = self.pending.extract_if(.., |p| p.at <= now).collect();
        for Pending { mac, ip, .. } in due {
            self.send_router_advertisement((mac, ip), lifetime, out);
        }
    }

    /// "I am no longer a router here" (§6.2.5). Not on an ordinary exit: forwarding survives the
    /// control plane, and hosts should keep their default route.
    pub fn handle_shutdown(&mut self, out: &mut Vec<Output>) {
        if self.config.advertise.is_some() {
            self.send_router_advertisement(BROADCAST_V6, Duration::ZERO, out);
        }
    }

    /// Asks the node itself whether it is still there. Its answer is a sighting.
    pub fn probe(&mut self, mac: MacAddr, ip: IpAddr, out: &mut Vec<Output>) {
        self.counters.probes += 1;
        match ip {
            IpAddr::V4(target_ip) => {
                // Without an IPv4 gateway address this is a probe of RFC 5227, which hosts answer
                // as well.
                let sender_ip = self.config.gateways.iter().find_map(|gateway| match gateway {
                    IpAddr::V4(ip) => Some(*ip),
                    IpAddr::V6(_) => None,
                });
                let arp = Arp {
                    operation: ArpOperation::Request,
                    sender_mac: self.config.mac,
                    sender_ip: sender_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
                    target_mac: MacAddr::default(),
                    target_ip,
                };
                self.send(mac, Payload::Arp(arp), out);
            }
            IpAddr::V6(target) => {
                let options = vec![NdOption::SourceLinkLayer(self.config.mac)];
                let message = Icmp6::NeighborSolicitation(NeighborSolicitation { target, options });
                self.send_nd((mac, target), message, out);
            }
        }
    }

    /// A node has left this link and is elsewhere: its former neighbours send to the router from
    /// now on, not into the void until their caches time out (RFC 6275 §10.4.1).
    pub fn announce_departure(&mut self, ip: IpAddr, out: &mut Vec<Output>) {
        match ip {
            IpAddr::V4(ip) => {
                let arp = Arp {
                    operation: ArpOperation::Request,
                    sender_mac: self.config.mac,
                    sender_ip: ip,
                    target_mac: MacAddr::default(),
                    target_ip: ip,
                };
                self.send(BROADCAST, Payload::Arp(arp), out);
            }
            IpAddr::V6(target) => {
                let message = Icmp6::NeighborAdvertisement(NeighborAdvertisement {
                    router: false,
                    solicited: false,
                    override_: true,
                    target,
                    options: vec![NdOption::TargetLinkLayer(self.config.mac)],
                });
                self.send_nd(BROADCAST_V6, message, out);
            }
        }
    }

    fn is_gateway(&self, ip: IpAddr) -> bool {
        self.config.gateways.contains(&ip) || ip == IpAddr::V6(self.config.link_local)
    }

    fn is_mobile(&self, ip: IpAddr) -> bool {
        self.config.pools.iter().any(|pool| pool.contains_addr(ip))
    }

    fn answers(
        &self,
        asker: MacAddr,
        target: IpAddr,
        holder: &impl Fn(MacAddr, IpAddr) -> Holder,
    ) -> bool {
        if self.is_gateway(target) {
            return !self.config.kernel_answers;
        }
        self.is_mobile(target)
            && match holder(asker, target) {
                Holder::Asker | Holder::ThisLink => false,
                // Nobody may become somebody: the packet that comes finds no route, and the host
                // is told so by ICMP.
                Holder::Elsewhere | Holder::Nobody => true,
            }
    }

    /// Whether to tell a host that tries out an address that it is taken.
    fn defends(
        &self,
        asker: MacAddr,
        target: IpAddr,
        holder: &impl Fn(MacAddr, IpAddr) -> Holder,
    ) -> bool {
        if self.is_gateway(target) {
            return !self.config.kernel_answers;
        }
        self.is_mobile(target)
            && match holder(asker, target) {
                Holder::Elsewhere => true,
                Holder::Asker | Holder::ThisLink | Holder::Nobody => false,
            }
    }

    fn sighted(&mut self, mac: MacAddr, ip: IpAddr, by: Sighting, out: &mut Vec<Output>) {
        self.counters.sightings += 1;
        out.push(Output::Sighted(Sighted { link: self.config.link, mac, ip, by }));
    }

    fn send_arp_reply(&mut self, request: &Arp, mac: MacAddr, out: &mut Vec<Output>) {
        let reply = Arp {
            operation: ArpOperation::Reply,
            sender_mac: self.config.mac,
            sender_ip: request.target_ip,
            target_mac: mac,
            target_ip: request.sender_ip,
        };
        self.send(mac, Payload::Arp(reply), out);
    }

    fn send_neighbor_advertisement(
        &mut self,
        to: (MacAddr, Ipv6Addr),
        target: Ipv6Addr,
        solicited: bool,
        out: &mut Vec<Output>,
    ) {
        let message = Icmp6::NeighborAdvertisement(NeighborAdvertisement {
            router: self.is_gateway(IpAddr::V6(target)),
            solicited,
            // §7.2.7, §7.2.8: anycast and proxy answers do not override, so that a node which is
            // there after all wins.
            override_: false,
            target,
            options: vec![NdOption::TargetLinkLayer(self.config.mac)],
        });
        self.send_nd(to, message, out);
    }

    fn send_router_advertisement(
        &mut self,
        to: (MacAddr, Ipv6Addr),
        lifetime: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(advertise) = &self.config.advertise else { return };
        let mut options = vec![NdOption::SourceLinkLayer(self.config.mac)];
        options.extend(advertise.mtu.map(NdOption::Mtu));
        let prefixes = advertise.prefixes.iter().filter_map(AdvertisedPrefix::option);
        options.extend(prefixes.take(ADVERTISED_PREFIXES_MAX));
        let message = Icmp6::RouterAdvertisement(RouterAdvertisement {
            hop_limit: advertise.hop_limit,
            managed: advertise.managed,
            other_config: advertise.other_config,
            lifetime,
            reachable: Duration::ZERO,
            retransmit: Duration::ZERO,
            options,
        });
        self.counters.advertisements += 1;
        self.send_nd(to, message, out);
    }

    fn send_nd(
        &mut self,
        (mac, destination): (MacAddr, Ipv6Addr),
        message: Icmp6,
        out: &mut Vec<Output>,
    ) {
        let source = self.config.link_local;
        let mac = if destination.is_multicast() { multicast_mac(destination) } else { mac };
        self.send(mac, Payload::Nd { source, destination, message }, out);
    }

    fn send(&mut self, destination: MacAddr, payload: Payload, out: &mut Vec<Output>) {
        let frame = Frame { destination, source: self.config.mac, payload };
        let frame = frame.encode().expect("only ARP and discovery are sent");
        out.push(Output::Send { link: self.config.link, frame });
    }

    /// xorshift64: spread is all that is asked of it.
    fn random_up_to(&mut self, max: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let us = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(us.checked_add(1).map_or(self.random, |n| self.random % n))
    }
}

/// To all nodes; the link-layer address follows from the group.
const BROADCAST_V6: (MacAddr, Ipv6Addr) = (BROADCAST, ALL_NODES);

impl AdvertisedPrefix {
    /// `None` for an IPv4 prefix, which has no place in an advertisement.
    fn option(&self) -> Option<NdOption> {
        let IpAddr::V6(prefix) = self.prefix.addr() else { return None };
        Some(NdOption::Prefix(PrefixInformation {
            prefix,
            len: self.prefix.len(),
            on_link: self.on_link,
            autonomous: self.autonomous,
            valid: self.valid,
            preferred: self.preferred,
        }))
    }
}

/// An address that one node can have as its own.
fn is_node(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nd::{Checksum, RouterSolicitation, link_local, solicited_node};

    const LINK: IfIndex = IfIndex(4);
    const MAC: MacAddr = MacAddr([2, 0, 0x5e, 0, 1, 1]);
    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn config() -> LinkConfig {
        LinkConfig {
            link: LINK,
            mac: MAC,
            link_local: link_local(MAC),
            gateways: vec![ip("10.1.0.1"), ip("2001:db8:1::1")],
            kernel_answers: true,
            pools: vec!["10.1.0.0/24".parse().unwrap(), "2001:db8:1::/64".parse().unwrap()],
            advertise: None,
        }
    }

    /// A frame from the host; what was sighted, and what was answered.
    fn hear(
        router: &mut Router,
        payload: Payload,
        holder: Holder,
    ) -> (Vec<(String, Sighting)>, Vec<Frame>) {
        hear_at(router, payload, holder, Instant::ZERO)
    }

    fn hear_at(
        router: &mut Router,
        payload: Payload,
        holder: Holder,
        now: Instant,
    ) -> (Vec<(String, Sighting)>, Vec<Frame>) {
        let frame = Frame { destination: BROADCAST, source: HOST, payload };
        let mut out = Vec::new();
        router.handle_frame(&frame, |_, _| holder, now, &mut out);
        split(out)
    }

    fn split(out: Vec<Output>) -> (Vec<(String, Sighting)>, Vec<Frame>) {
        let (mut sighted, mut sent) = (Vec::new(), Vec::new());
        for output in out {
            match output {
                Output::Sighted(s) => sighted.push((s.ip.to_string(), s.by)),
                Output::Send { frame, .. } => {
                    sent.push(Frame::decode(&frame, Checksum::Verify).expect("we send valid ones"));
                }
            }
        }
        (sighted, sent)
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Payload {
        Payload::Arp(Arp {
            operation: ArpOperation::Request,
            sender_mac: HOST,
            sender_ip: sender.into(),
            target_mac: MacAddr::default(),
            target_ip: target.into(),
        })
    }

    fn solicitation(source: &str, target: &str) -> Payload {
        Payload::Nd {
            source: v6(source),
            destination: solicited_node(v6(target)),
            message: Icmp6::NeighborSolicitation(NeighborSolicitation {
                target: v6(target),
                options: vec![],
            }),
        }
    }

    /// One row: what is asked, who has it, is it answered, what is sighted.
    #[test]
    fn who_is_answered_and_who_is_sighted() {
        use Holder::{Asker, Elsewhere, Nobody, ThisLink};
        const H: [u8; 4] = [10, 1, 0, 7];
        const OTHER: [u8; 4] = [10, 1, 0, 9];
        const NONE: [u8; 4] = [0; 4];
        let (host6, other6) = ("2001:db8:1::7", "2001:db8:1::9");
        let rows: &[(&str, Payload, Holder, bool, &str)] = &[
            ("a node elsewhere", arp(H, OTHER), Elsewhere, true, "10.1.0.7"),
            ("a free address of the pool", arp(H, OTHER), Nobody, true, "10.1.0.7"),
            ("a neighbour", arp(H, OTHER), ThisLink, false, "10.1.0.7"),
            ("the asker itself", arp(H, OTHER), Asker, false, "10.1.0.7"),
            ("outside the pools", arp(H, [10, 9, 0, 1]), Nobody, false, "10.1.0.7"),
            ("the gateway: the kernel does it", arp(H, [10, 1, 0, 1]), Nobody, false, "10.1.0.7"),
            ("announcement", arp(H, H), Asker, false, "10.1.0.7"),
            ("probe of the own address", arp(NONE, H), Asker, false, "10.1.0.7"),
            ("probe of a free address", arp(NONE, H), Nobody, false, "10.1.0.7"),
            ("probe of another's address", arp(NONE, OTHER), Elsewhere, true, ""),
            ("probe of a neighbour's", arp(NONE, OTHER), ThisLink, false, "10.1.0.9"),
            ("NS, elsewhere", solicitation(host6, other6), Elsewhere, true, host6),
            ("NS, neighbour", solicitation(host6, other6), ThisLink, false, host6),
            ("NS, own", solicitation(host6, host6), Asker, false, host6),
            ("NS, gateway", solicitation(host6, "2001:db8:1::1"), Nobody, false, host6),
            ("DAD, own", solicitation("::", host6), Asker, false, host6),
            ("DAD, free", solicitation("::", host6), Nobody, false, host6),
            ("DAD, another's", solicitation("::", other6), Elsewhere, true, ""),
        ];
        for (what, payload, holder, answered, expected) in rows {
            let mut router = Router::new(config(), 1, Instant::ZERO);
            let (sighted, sent) = hear(&mut router, payload.clone(), *holder);
            assert_eq!(sent.len(), usize::from(*answered), "{what}: {sent:?}");
            let sighted: Vec<&str> = sighted.iter().map(|(ip, _)| ip.as_str()).collect();
            let expected: Vec<&str> =
                Some(*expected).filter(|e| !e.is_empty()).into_iter().collect();
            assert_eq!(sighted, expected, "{what}");
        }
    }

    #[test]
    fn without_the_kernel_the_router_answers_for_the_gateway() {
        let config = LinkConfig { kernel_answers: false, ..config() };
        let mut router = Router::new(config, 1, Instant::ZERO);
        let (_, sent) = hear(&mut router, arp([10, 1, 0, 7], [10, 1, 0, 1]), Holder::Nobody);
        let Payload::Arp(reply) = &sent[0].payload else { panic!("{sent:?}") };
        assert_eq!((reply.operation, reply.sender_mac), (ArpOperation::Reply, MAC));
        assert_eq!((sent[0].destination, reply.target_mac), (HOST, HOST));
    }

    /// RFC 4861 §7.2.4, §7.2.8; RFC 4862 §5.4.4: to the asker, solicited; to all, when nobody may
    /// be named.
    #[test]
    fn advertisements_for_others_do_not_override() {
        let mut router = Router::new(config(), 1, Instant::ZERO);
        for (source, to, solicited) in
            [("2001:db8:1::7", v6("2001:db8:1::7"), true), ("::", ALL_NODES, false)]
        {
            let asked = solicitation(source, "2001:db8:1::9");
            let (_, sent) = hear(&mut router, asked, Holder::Elsewhere);
            let Payload::Nd { destination, message, .. } = &sent[0].payload else { panic!() };
            let Icmp6::NeighborAdvertisement(na) = message else { panic!("{message:?}") };
            assert_eq!((*destination, na.solicited), (to, solicited));
            assert!(!na.override_ && !na.router);
            assert_eq!(na.options, [NdOption::TargetLinkLayer(MAC)]);
        }
    }

    #[test]
    fn forged_senders_are_counted_and_not_believed() {
        let mut router = Router::new(config(), 1, Instant::ZERO);
        let mut other = arp([10, 1, 0, 7], [10, 1, 0, 9]);
        if let Payload::Arp(arp) = &mut other {
            arp.sender_mac = MacAddr([2, 0, 0, 0, 0, 8]);
        }
        let gateway = arp([10, 1, 0, 1], [10, 1, 0, 9]);
        let gateway6 = solicitation("2001:db8:1::1", "2001:db8:1::9");
        for payload in [other, gateway, gateway6] {
            assert_eq!(hear(&mut router, payload, Holder::Elsewhere), (vec![], vec![]));
        }
        assert_eq!(router.counters().forged, 3);
    }

    #[test]
    fn a_flood_of_one_sender_is_cut() {
        let mut router = Router::new(config(), 1, Instant::ZERO);
        for _ in 0..500 {
            hear(&mut router, arp([10, 1, 0, 7], [10, 1, 0, 9]), Holder::Elsewhere);
        }
        let counters = router.counters();
        assert_eq!(counters.arp_answered + counters.rate_limited, 500);
        assert!(counters.arp_answered < 100, "{counters:?}");
    }

    fn advertising(solicited_delay_max: Duration) -> Router {
        let advertise = Advertisement {
            interval_max: Duration::from_secs(60),
            solicited_delay_max,
            ..Advertisement::default()
        };
        let config = LinkConfig { advertise: Some(advertise), ..config() };
        Router::new(config, 7, Instant::ZERO)
    }

    /// When advertisements go out until `end`, and whether to all nodes.
    fn run(router: &mut Router, end: Instant) -> Vec<(Instant, bool)> {
        let mut times = Vec::new();
        while router.poll_timeout() <= end {
            let now = router.poll_timeout();
            let mut out = Vec::new();
            router.handle_timeout(now, &mut out);
            for frame in split(out).1 {
                times.push((now, frame.destination == multicast_mac(ALL_NODES)));
            }
        }
        times
    }

    /// RFC 4861 §6.2.4: at most 16 s apart at first, then between a third of the maximum and it.
    #[test]
    fn periodic_advertisements_keep_their_intervals() {
        let mut router = advertising(Duration::ZERO);
        let times = run(&mut router, Instant::ZERO + Duration::from_secs(600));
        assert!(times.iter().all(|(_, multicast)| *multicast));
        let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(gaps[..2].iter().all(|gap| *gap <= INITIAL_INTERVAL_MAX), "{gaps:?}");
        let range = Duration::from_secs(20)..=Duration::from_secs(60);
        assert!(gaps[2..].iter().all(|gap| range.contains(gap)), "{gaps:?}");
        assert!(gaps[2..].windows(2).any(|pair| pair[0] != pair[1]), "they are spread");
    }

    fn router_solicitation(source: &str) -> Payload {
        Payload::Nd {
            source: v6(source),
            destination: v6("ff02::2"),
            message: Icmp6::RouterSolicitation(RouterSolicitation::default()),
        }
    }

    /// RFC 4861 §6.2.6.
    #[test]
    fn solicited_advertisements_are_delayed_and_those_to_all_are_rare() {
        let mut router = advertising(Duration::from_millis(500));
        let start = Instant::ZERO + Duration::from_secs(100);
        run(&mut router, start);
        // To the asker: within the delay.
        hear_at(&mut router, router_solicitation("fe80::7"), Holder::Nobody, start);
        let times = run(&mut router, start + Duration::from_millis(500));
        assert_eq!(times.len(), 1);
        assert!(!times[0].1);
        // An asker without an address is answered to all, but not twice within 3 s.
        let mut now = start + Duration::from_secs(1);
        let mut sent = Vec::new();
        for _ in 0..40 {
            hear_at(&mut router, router_solicitation("::"), Holder::Nobody, now);
            now += Duration::from_millis(250);
            sent.extend(run(&mut router, now));
        }
        assert!((2..=5).contains(&sent.len()), "{sent:?}");
        let apart = |pair: &[(Instant, bool)]| pair[1].0 - pair[0].0 >= BETWEEN_MULTICAST_MIN;
        assert!(sent.windows(2).all(apart), "{sent:?}");
    }

    #[test]
    fn pending_answers_are_bounded() {
        let mut router = advertising(Duration::from_millis(500));
        let start = Instant::ZERO + Duration::from_secs(100);
        run(&mut router, start);
        for n in 0..500_u16 {
            let [high, low] = n.to_be_bytes();
            let source = MacAddr([2, 0, 0, 1, high, low]);
            let payload = router_solicitation(&format!("fe80::1:{n:x}"));
            let frame = Frame { destination: BROADCAST, source, payload };
            router.handle_frame(&frame, |_, _| Holder::Nobody, start, &mut Vec::new());
        }
        assert_eq!(router.pending.len(), PENDING_UNICAST_MAX);
        let times = run(&mut router, start + Duration::from_secs(4));
        assert!(times.len() <= PENDING_UNICAST_MAX + 1);
        assert!(times.iter().any(|(_, multicast)| *multicast), "the others hear the one to all");
    }

    #[test]
    fn the_last_advertisement_says_goodbye() {
        let mut router = advertising(Duration::ZERO);
        let mut out = Vec::new();
        router.handle_shutdown(&mut out);
        let (_, sent) = split(out);
        let Payload::Nd { message: Icmp6::RouterAdvertisement(ra), .. } = &sent[0].payload else {
            panic!("{sent:?}")
        };
        assert_eq!(ra.lifetime, Duration::ZERO);
    }

    #[test]
    fn probes_go_to_the_node_and_departures_to_all() {
        let mut router = Router::new(config(), 1, Instant::ZERO);
        for text in ["10.1.0.7", "2001:db8:1::7"] {
            let mut out = Vec::new();
            router.probe(HOST, ip(text), &mut out);
            router.announce_departure(ip(text), &mut out);
            let (_, sent) = split(out);
            assert_eq!(sent[0].destination, HOST);
            assert!(sent[1].destination.is_multicast());
            if let Payload::Nd { message: Icmp6::NeighborAdvertisement(na), .. } = &sent[1].payload
            {
                assert!(na.override_ && !na.solicited);
            }
        }
    }
}
