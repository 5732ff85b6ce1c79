//! What others may see of the attached nodes: listings, and answers for proxy ARP and ND.

use std::net::IpAddr;

use super::room::{Anchor, Node, Phase};
use crate::types::seam::{Attachment, Holder, IfIndex, Sighting};
use crate::types::{Instant, MacAddr, MnId, Prefix};

/// One attached node, for `mobility sessions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    pub mn: &'a MnId,
    /// `None` at an external anchor.
    pub attachment: Option<Attachment>,
    pub prefixes: Vec<Prefix>,
    pub since: Instant,
    /// The last sighting.
    pub seen: Instant,
    pub by: Sighting,
    pub lease_until: Option<Instant>,
    /// "present", "link_down" or "probing".
    pub state: &'static str,
}

impl<'a> Session<'a> {
    fn new(mn: &'a MnId, node: &'a Node) -> Self {
        Self {
            mn,
            attachment: node.attachment,
            prefixes: node.prefixes.iter().copied().collect(),
            since: node.since,
            seen: node.seen,
            by: node.by,
            lease_until: node.lease_until,
            state: match node.phase {
                Phase::Present => "present",
                Phase::LinkDown { .. } => "link_down",
                Phase::Probing { .. } => "probing",
            },
        }
    }
}

impl Anchor {
    /// Sessions in the order of their names, beginning after `after`: a listing is made of pages.
    pub fn sessions<'a>(&'a self, after: Option<&MnId>) -> impl Iterator<Item = Session<'a>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.nodes.range::<MnId, _>((from, Unbounded)).map(|(mn, node)| Session::new(mn, node))
    }

    pub fn session(&self, mn: &MnId) -> Option<Session<'_>> {
        self.nodes.get_key_value(mn).map(|(mn, node)| Session::new(mn, node))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Where the node is reached. `None`: not here. `Some(None)`: at an external anchor.
    pub fn find_attachment(&self, mn: &MnId) -> Option<Option<Attachment>> {
        self.nodes.get(mn).map(|node| node.attachment)
    }

    /// Where the node with this prefix is reached, when it is here.
    pub fn attachment_of(&self, prefix: Prefix) -> Option<Attachment> {
        self.nodes.get(self.owners.get(&prefix)?)?.attachment
    }

    /// The node here that has this prefix.
    pub fn owner_of(&self, prefix: Prefix) -> Option<&MnId> {
        self.owners.get(&prefix)
    }

    /// The node here that has this address.
    pub fn find_owner(&self, ip: IpAddr) -> Option<&MnId> {
        let host = Prefix::host(ip);
        self.owners.get(&host).or_else(|| {
            let prefix = self.config.prefix_of(ip)?;
            self.owners.get(&prefix)
        })
    }

    /// The node that speaks from this link-layer address.
    pub fn node_of(&self, mac: MacAddr) -> MnId {
        self.config.node_of(mac)
    }

    /// Who has `ip`, for an asker on `link`. `bound_to` is the node to which the address is bound
    /// at another anchor, which this room does not know.
    pub fn holder(
        &self,
        link: IfIndex,
        asker: MacAddr,
        ip: IpAddr,
        bound_to: Option<&MnId>,
    ) -> Holder {
        let asker = self.node_of(asker);
        match (self.find_owner(ip), bound_to) {
            (Some(owner), _) if *owner == asker => Holder::Asker,
            (Some(owner), _) => match self.find_attachment(owner) {
                Some(Some(attachment)) if attachment.link == link => Holder::ThisLink,
                Some(_) | None => Holder::Elsewhere,
            },
            (None, Some(owner)) if *owner == asker => Holder::Asker,
            (None, Some(_)) => Holder::Elsewhere,
            (None, None) => Holder::Nobody,
        }
    }

    /// Single addresses attached to a link: the sources that the sensor need not report.
    pub fn hosts_on(&self, link: IfIndex) -> impl Iterator<Item = IpAddr> {
        self.on_link(link)
            .flat_map(|(_, node)| node.prefixes.iter())
            .filter(|prefix| prefix.is_host())
            .map(|prefix| prefix.addr())
    }

    /// All prefixes attached to a link.
    pub fn prefixes_on(&self, link: IfIndex) -> impl Iterator<Item = Prefix> {
        self.on_link(link).flat_map(|(_, node)| node.prefixes.iter().copied())
    }

    fn on_link(&self, link: IfIndex) -> impl Iterator<Item = (&MnId, &Node)> {
        let first = MnId::new("!").expect("one printable character");
        self.by_link
            .range((link, first)..)
            .take_while(move |(on, _)| *on == link)
            .filter_map(|(_, mn)| self.nodes.get_key_value(mn))
    }
}
