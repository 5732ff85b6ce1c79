//! What the BGP table says about who holds a mobile prefix.
//!
//! A claim is carried in two large communities (RFC 8092) of our AS: `as:100:generation` and
//! `as:101:anchor`. A settled route has only the second, so that all nodes of an anchor share one
//! attribute set.

use crate::types::seam::Preference;
use crate::types::{AnchorId, Claim, Generation, Locator, Prefix};
use crate::wire::bgp::attributes::NO_EXPORT;
use crate::wire::bgp::{Attributes, LargeCommunity, NextHop};

use super::bgp::{LARGE_COMMUNITY_ANCHOR, LARGE_COMMUNITY_GENERATION};

/// A host route of another killick, as heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub anchor: AnchorId,
    /// `None` on a settled route.
    pub generation: Option<Generation>,
    pub next_hop: std::net::IpAddr,
}

impl Heard {
    /// `None` when the route does not name an anchor: somebody else's host route.
    pub fn from_attributes(attributes: &Attributes, local_as: u32) -> Option<Self> {
        let tagged = |tag| {
            let ours = |c: &&LargeCommunity| c.global == local_as && c.local1 == tag;
            attributes.large_communities.iter().find(ours).map(|c| c.local2)
        };
        Some(Self {
            anchor: AnchorId(tagged(LARGE_COMMUNITY_ANCHOR)?),
            generation: tagged(LARGE_COMMUNITY_GENERATION).map(Generation),
            next_hop: attributes.next_hop.addr(),
        })
    }

    pub fn claim(&self) -> Option<Claim> {
        Some(Claim { generation: self.generation?, anchor: self.anchor })
    }
}

/// The attributes of a host route. `None` when the FE_E has no address that the family can use.
pub fn host_route(
    prefix: Prefix,
    anchor: AnchorId,
    fe_e: &Locator,
    preference: Preference,
    local_as: u32,
    no_export: bool,
) -> Option<Attributes> {
    let next_hop = fe_e.next_hop(prefix.family())?;
    let tag = |local1, local2| LargeCommunity { global: local_as, local1, local2 };
    let mut large_communities = Vec::with_capacity(2);
    if let Preference::Claim(generation) = preference {
        large_communities.push(tag(LARGE_COMMUNITY_GENERATION, generation.0));
    }
    large_communities.push(tag(LARGE_COMMUNITY_ANCHOR, anchor.0));
    Some(Attributes {
        local_pref: Some(preference.local_pref()),
        communities: if no_export { vec![NO_EXPORT] } else { Vec::new() },
        large_communities,
        ..Attributes::local(NextHop::from(next_hop))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FE_E: Locator = Locator { ipv4: Some(std::net::Ipv4Addr::new(192, 0, 2, 1)), ipv6: None };

    #[test]
    fn a_claim_is_heard_as_it_was_said() {
        let prefix = "10.1.1.7/32".parse().unwrap();
        let route = |p| host_route(prefix, AnchorId(7), &FE_E, p, 64512, true).unwrap();
        let claim = route(Preference::Claim(Generation(3)));
        assert_eq!(claim.local_pref, Some(1_000_003));
        assert_eq!(claim.communities, [NO_EXPORT]);
        let heard = Heard::from_attributes(&claim, 64512).unwrap();
        assert_eq!(heard.claim(), Some(Claim { generation: Generation(3), anchor: AnchorId(7) }));
        assert_eq!(Heard::from_attributes(&claim, 64513), None, "another AS's communities");
        let settled = Heard::from_attributes(&route(Preference::Settled), 64512).unwrap();
        assert_eq!((settled.anchor, settled.claim()), (AnchorId(7), None));
    }

    #[test]
    fn all_settled_nodes_of_an_anchor_share_their_attributes() {
        let route = |p: &str| {
            host_route(p.parse().unwrap(), AnchorId(7), &FE_E, Preference::Settled, 1, true)
        };
        assert_eq!(route("10.1.1.7/32"), route("10.1.2.8/32"));
        assert_eq!(route("2001:db8::1/128"), None, "no IPv6 next hop");
    }
}
