//! The peers, and the groups of those that are told the same in the same octets.

use super::attr_store::{AttrKey, NEXT_HOP_V6, NOT_AT_ALL, NOT_EXTERNAL};
use super::{PeerId, PeerInfo, PeerKind};
use crate::proto::bgp::policy::ExportPolicy;
use crate::types::{Family, Prefix};
use crate::wire::bgp::{Attributes, Negotiated, NextHop};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where a path came from, as far as RFC 4456 §6 and the export rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Source {
    Local = 0,
    Client = 1,
    NonClient = 2,
    External = 3,
}

impl Source {
    /// From the two low bits, where an entry keeps it.
    pub(super) const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Local,
            1 => Self::Client,
            2 => Self::NonClient,
            _ => Self::External,
        }
    }
}

/// A path as it was told (or is to be told) to the groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub attrs: u32,
    pub peer: u16,
    pub source: Source,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub info: PeerInfo,
    pub up: bool,
    pub congested: bool,
    /// How its attribute blocks are read: part of the key of the block cache.
    pub class: u32,
    pub group: usize,
    /// Per family.
    pub paths: [usize; 2],
    /// Of them, those that a former session left, or that a refresh has not repeated yet.
    pub stale: [usize; 2],
    /// Stale paths of a restart are waiting for End-of-RIB: a BoRR before it is ignored (RFC 7313
    /// §4).
    pub restarting: [bool; 2],
    pub accept_all: [bool; 2],
}

pub(super) const fn slot(family: Family) -> usize {
    match family {
        Family::Ipv4 => 0,
        Family::Ipv6 => 1,
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub kind: PeerKind,
    /// Of one of its members; what differs between them (`peer_as`) does not reach the encoding.
    pub negotiated: Negotiated,
    local_v4: Option<Ipv4Addr>,
    local_v6: Option<Ipv6Addr>,
    export: ExportPolicy,
    send_all: [bool; 2],
    /// Peers that are up, in sync or not. A group without users is reused.
    users: u32,
    /// Changes when the number is given to another group.
    pub version: u32,
}

impl Group {
    fn new(info: &PeerInfo, version: u32) -> Self {
        Self {
            kind: info.kind,
            negotiated: info.negotiated,
            local_v4: info.local_v4,
            local_v6: info.local_v6,
            export: info.export.clone(),
            send_all: Family::ALL.map(|family| info.export.filter.permits_all(family)),
            users: 0,
            version,
        }
    }

    fn fits(&self, info: &PeerInfo) -> bool {
        let (a, b) = (&self.negotiated, &info.negotiated);
        self.kind == info.kind
            && a.local_as == b.local_as
            && a.ibgp == b.ibgp
            && a.four_octet_as == b.four_octet_as
            && a.extended_next_hop_v4 == b.extended_next_hop_v4
            && a.max_len == b.max_len
            && self.local_v4 == info.local_v4
            && self.local_v6 == info.local_v6
            && self.export == info.export
    }

    pub(super) fn sends_all(&self, family: Family) -> bool {
        self.send_all[slot(family)]
    }

    pub(super) fn permits_prefix(&self, prefix: Prefix) -> bool {
        self.export.filter.permits(prefix)
    }

    fn sets_next_hop(&self, source: Source) -> bool {
        match self.kind {
            PeerKind::External => source != Source::Local,
            PeerKind::Client | PeerKind::NonClient => {
                self.export.next_hop_self && source == Source::External
            }
        }
    }

    fn own_next_hop(&self, family: Family) -> Option<NextHop> {
        let v6 = self.local_v6.map(|global| NextHop::V6 { global, link_local: None });
        match family {
            Family::Ipv4 => self
                .local_v4
                .map(NextHop::V4)
                .or(v6.filter(|_| self.negotiated.extended_next_hop_v4)),
            Family::Ipv6 => v6,
        }
    }

    /// Whether routes with this set from this source go to the group at all: RFC 4456 §6, RFC 1997,
    /// and a next hop that the peer can be told.
    pub(super) fn permits(&self, family: Family, key: &AttrKey, source: Source) -> bool {
        if key.flags & NOT_AT_ALL != 0 {
            return false;
        }
        match self.kind {
            PeerKind::External if key.flags & NOT_EXTERNAL != 0 => return false,
            PeerKind::NonClient if source == Source::NonClient => return false,
            PeerKind::External | PeerKind::NonClient | PeerKind::Client => {}
        }
        if self.sets_next_hop(source) {
            return self.own_next_hop(family).is_some();
        }
        let v6 = key.flags & NEXT_HOP_V6 != 0;
        match family {
            Family::Ipv4 => !v6 || self.negotiated.extended_next_hop_v4,
            Family::Ipv6 => v6,
        }
    }

    /// The attributes as the group gets them. `router_id` is the peer's from which the route came.
    pub(super) fn outgoing(
        &self,
        family: Family,
        attributes: &Attributes,
        source: Source,
        router_id: Ipv4Addr,
        cluster_id: Ipv4Addr,
    ) -> Attributes {
        let mut out = attributes.clone();
        if self.sets_next_hop(source)
            && let Some(own) = self.own_next_hop(family)
        {
            out.next_hop = own;
        } else if let NextHop::V6 { link_local, .. } = &mut out.next_hop {
            // RFC 2545 §3: it means something on the link it came from only.
            *link_local = None;
        }
        match self.kind {
            PeerKind::External => {
                out.local_pref = None;
                out.originator_id = None;
                out.cluster_list.clear();
                if source != Source::Local {
                    out.med = None; // RFC 4271 §5.1.4: not to other neighbouring ASs
                }
                prepend(&mut out, self.negotiated.local_as);
            }
            PeerKind::Client | PeerKind::NonClient => {
                out.local_pref.get_or_insert(super::attr_store::LOCAL_PREF_DEFAULT);
                match source {
                    Source::Client | Source::NonClient => {
                        // RFC 4456 §8
                        out.originator_id.get_or_insert(router_id);
                        out.cluster_list.insert(0, cluster_id);
                    }
                    Source::Local | Source::External => {}
                }
            }
        }
        out
    }
}

/// RFC 4271 §5.1.2 b).
fn prepend(attributes: &mut Attributes, local_as: u32) {
    use crate::wire::bgp::AsSegment;
    match attributes.as_path.0.first_mut() {
        Some(AsSegment::Sequence(list)) if list.len() < 255 => list.insert(0, local_as),
        Some(_) | None => attributes.as_path.0.insert(0, AsSegment::Sequence(vec![local_as])),
    }
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    list: Vec<Option<Peer>>,
    pub groups: Vec<Group>,
    /// (session parameters, imposed LOCAL_PREF): few, searched at session start only.
    classes: Vec<(Negotiated, Option<u32>)>,
}

impl Peers {
    pub(super) fn get(&self, peer: PeerId) -> Option<&Peer> {
        self.list.get(usize::from(peer.0))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, peer: PeerId) -> Option<&mut Peer> {
        self.list.get_mut(usize::from(peer.0))?.as_mut()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        (0..self.list.len()).filter_map(|i| u16::try_from(i).ok()).map(PeerId)
    }

    pub(super) fn get_up(&self, peer: PeerId) -> Option<&Peer> {
        self.get(peer).filter(|p| p.up)
    }

    /// Of a peer that has paths.
    pub(super) fn info(&self, peer: u16) -> &PeerInfo {
        &self.get(PeerId(peer)).expect("peers with paths are kept").info
    }

    #[inline]
    pub(super) fn source(&self, peer: u16) -> Source {
        if peer == PeerId::LOCAL.0 {
            return Source::Local;
        }
        match self.info(peer).kind {
            PeerKind::Client => Source::Client,
            PeerKind::NonClient => Source::NonClient,
            PeerKind::External => Source::External,
        }
    }

    pub(super) fn count_path(&mut self, peer: u16, family: Family, change: isize) {
        if let Some(p) = self.get_mut(PeerId(peer)) {
            let count = &mut p.paths[slot(family)];
            *count = count.checked_add_signed(change).expect("each path is counted once");
        }
    }

    pub(super) fn stale(&self, peer: u16, family: Family) -> usize {
        self.get(PeerId(peer)).map_or(0, |p| p.stale[slot(family)])
    }

    /// A stale path of the peer was repeated or removed.
    pub(super) fn count_stale_less(&mut self, peer: u16, family: Family) {
        if let Some(p) = self.get_mut(PeerId(peer)) {
            p.stale[slot(family)] -= 1;
        }
    }

    /// Puts the peer into its group and returns the group's number.
    pub(super) fn set_up(&mut self, peer: PeerId, info: PeerInfo) -> usize {
        let class_key = (info.negotiated, info.import.local_pref);
        let class = match self.classes.iter().position(|c| *c == class_key) {
            Some(at) => at,
            None => {
                self.classes.push(class_key);
                self.classes.len() - 1
            }
        };
        let found = self.groups.iter().position(|g| g.users > 0 && g.fits(&info));
        let group = found.unwrap_or_else(|| match self.groups.iter().position(|g| g.users == 0) {
            Some(at) => {
                self.groups[at] = Group::new(&info, self.groups[at].version.wrapping_add(1));
                at
            }
            None => {
                self.groups.push(Group::new(&info, 0));
                self.groups.len() - 1
            }
        });
        self.groups[group].users += 1;
        let at = usize::from(peer.0);
        if at >= self.list.len() {
            self.list.resize_with(at + 1, || None);
        }
        let accept_all = Family::ALL.map(|f| info.import.filter.permits_all(f));
        let (paths, stale, restarting) = match &self.list[at] {
            Some(old) => (old.paths, old.stale, old.restarting),
            None => ([0; 2], [0; 2], [false; 2]),
        };
        self.list[at] = Some(Peer {
            info,
            up: true,
            congested: false,
            class: class as u32,
            group,
            paths,
            stale,
            restarting,
            accept_all,
        });
        group
    }

    pub(super) fn set_down(&mut self, peer: PeerId) {
        let Some(p) = self.get_mut(peer).filter(|p| p.up) else { return };
        p.up = false;
        let group = p.group;
        self.groups[group].users -= 1;
    }
}
