//! The other direction. The uplink needs no entries of its own: packets of a node leave by the
//! ordinary routes of the machine, and the source filter (`dataplane::filter`) passes whatever is
//! delivered to the link it comes from. This file answers what that filter does.

use std::net::IpAddr;

use super::Egress;
use crate::types::Prefix;
use crate::types::seam::IfIndex;

impl Egress {
    /// Whether packets with this source may come in over the link: exactly when packets to it
    /// would leave there.
    pub fn opens(&self, link: IfIndex, source: IpAddr) -> bool {
        let bits = Prefix::host(source).len();
        (0..=bits)
            .rev()
            .filter_map(|len| self.find(Prefix::new(source, len)?))
            .next()
            .is_some_and(|delivery| delivery.attachment.link == link)
    }
}
