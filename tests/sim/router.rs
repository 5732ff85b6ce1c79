//! A router that knows nothing of killick, and shares nothing with its RIB: a map of what each
//! neighbour said, and the highest LOCAL_PREF wins, then the lowest originator.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use killick::types::{Family, Prefix};
use killick::wire::bgp::{
    Action, Attributes, Capability, MessageType, Negotiated, Open, Update, encode_keepalive,
    next_frame,
};

pub const ASN: u32 = 65_001;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub next_hop: IpAddr,
    pub local_pref: u32,
    pub originator: Ipv4Addr,
    /// From the large communities, for messages only.
    pub generation: Option<u32>,
}

struct Peer {
    addr: IpAddr,
    input: Vec<u8>,
    open: Option<(Open, Negotiated)>,
}

pub struct Router {
    id: Ipv4Addr,
    /// By TCP connection.
    peers: BTreeMap<u64, Peer>,
    /// By prefix and connection.
    table: BTreeMap<Prefix, BTreeMap<u64, Route>>,
}

impl Router {
    pub fn new(id: Ipv4Addr) -> Self {
        Self { id, peers: BTreeMap::new(), table: BTreeMap::new() }
    }

    fn open(&self) -> Open {
        let capabilities = Family::ALL.into_iter().map(Capability::unicast).collect();
        // No keepalives: a connection ends when TCP says so.
        Open::new(ASN, 0, self.id, capabilities)
    }

    /// What to say first.
    pub fn accept(&mut self, tcp: u64, addr: IpAddr) -> Vec<u8> {
        // A neighbour that connects again has forgotten the old connection.
        let old: Vec<u64> =
            self.peers.iter().filter(|(_, p)| p.addr == addr).map(|(&id, _)| id).collect();
        for id in old {
            self.close(id);
        }
        self.peers.insert(tcp, Peer { addr, input: Vec::new(), open: None });
        let mut octets = Vec::new();
        self.open().encode(&mut octets);
        octets
    }

    pub fn close(&mut self, tcp: u64) {
        self.peers.remove(&tcp);
        self.table.retain(|_, routes| {
            routes.remove(&tcp);
            !routes.is_empty()
        });
    }

    /// The answer, and whether the neighbour ended the session.
    pub fn octets(&mut self, tcp: u64, octets: &[u8]) -> (Vec<u8>, bool) {
        let own = self.open();
        let mut said = Vec::new();
        let Some(peer) = self.peers.get_mut(&tcp) else { return (said, false) };
        peer.input.extend_from_slice(octets);
        loop {
            let frame = next_frame(&peer.input, 4096).expect("killick sends good headers");
            let Some(frame) = frame else { return (said, false) };
            match frame.kind {
                MessageType::Open => {
                    let open = Open::decode(frame.body).expect("killick sends a good OPEN");
                    let negotiated = Negotiated::between(&own, &open);
                    peer.open = Some((open, negotiated));
                    encode_keepalive(&mut said);
                }
                MessageType::Update => {
                    let (open, negotiated) = peer.open.as_ref().expect("OPEN comes first");
                    let update = Update::decode(frame.body, negotiated).expect("a good UPDATE");
                    assert_eq!(update.walk.action, Action::None, "{:?}", update.walk.errors);
                    let peer_id = open.bgp_id;
                    take(&mut self.table, tcp, &update, peer_id);
                }
                MessageType::Notification => return (said, true),
                MessageType::Keepalive | MessageType::RouteRefresh => {}
            }
            let len = frame.len;
            peer.input.drain(..len);
        }
    }

    pub fn routes(&self, prefix: Prefix) -> impl Iterator<Item = (IpAddr, &Route)> {
        let routes = self.table.get(&prefix).into_iter().flatten();
        routes.filter_map(|(tcp, route)| Some((self.peers.get(tcp)?.addr, route)))
    }

    pub fn best(&self, prefix: Prefix) -> Option<&Route> {
        let ranked = self.routes(prefix);
        let best =
            ranked.min_by_key(|(peer, r)| (std::cmp::Reverse(r.local_pref), r.originator, *peer));
        best.map(|(_, route)| route)
    }

    /// Longest match.
    pub fn forward(&self, ip: IpAddr) -> Option<&Route> {
        let bits = Prefix::host(ip).len();
        (0..=bits).rev().find_map(|len| self.best(Prefix::new(ip, len)?))
    }
}

fn take(
    table: &mut BTreeMap<Prefix, BTreeMap<u64, Route>>,
    tcp: u64,
    update: &Update<'_>,
    peer_id: Ipv4Addr,
) {
    let unreach = update.walk.mp_unreach.iter().flat_map(|m| m.nlri.iter());
    for prefix in update.withdrawn.iter().chain(unreach) {
        if let Some(routes) = table.get_mut(&prefix) {
            routes.remove(&tcp);
            if routes.is_empty() {
                table.remove(&prefix);
            }
        }
    }
    let Some(attributes) = &update.walk.attributes else { return };
    let route = |next_hop| of(attributes, next_hop, peer_id);
    for prefix in update.nlri.iter() {
        let route = route(attributes.next_hop.addr());
        table.entry(prefix).or_default().insert(tcp, route);
    }
    if let Some(reach) = &update.walk.mp_reach {
        for prefix in reach.nlri.iter() {
            table.entry(prefix).or_default().insert(tcp, route(reach.next_hop.addr()));
        }
    }
}

fn of(attributes: &Attributes, next_hop: IpAddr, peer_id: Ipv4Addr) -> Route {
    let generation = attributes.large_communities.iter().find(|c| c.local1 == 100);
    Route {
        next_hop,
        local_pref: attributes.local_pref.expect("iBGP has a LOCAL_PREF"),
        originator: attributes.originator_id.unwrap_or(peer_id),
        generation: generation.map(|c| c.local2),
    }
}
