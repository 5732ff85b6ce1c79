//! FE_E: the deviation ends here, packets go to the node's attachment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use crate::types::seam::{Attachment, ForwardingChange, PolicyChange};
use crate::types::{Family, Prefix, Revision};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub attachment: Attachment,
    pub revision: Revision,
}

/// What is delivered here. Bounded by the bindings of the node, of which deliveries are a part.
#[derive(Debug, Default)]
pub struct Egress {
    pub(super) deliveries: BTreeMap<Prefix, Delivery>,
}

impl Egress {
    /// A policy for this node's gateway. Those for BGP are not ours.
    pub fn handle_policy(&mut self, policy: &PolicyChange, out: &mut Vec<ForwardingChange>) {
        match *policy {
            PolicyChange::Deliver { prefix, attachment, revision } => {
                if self.is_newer(prefix, revision) {
                    self.deliveries.insert(prefix, Delivery { attachment, revision });
                    out.push(ForwardingChange::SetDelivery { prefix, attachment, revision });
                }
            }
            PolicyChange::Release { prefix, revision } => {
                if self.is_newer(prefix, revision) {
                    self.deliveries.remove(&prefix);
                    out.push(ForwardingChange::RemoveDelivery { prefix, revision });
                }
            }
            PolicyChange::Announce { .. } | PolicyChange::Withdraw { .. } => {}
        }
    }

    /// The best path of BGP for a prefix, from which FE_I's entry is made.
    pub fn handle_best_path(
        &self,
        prefix: Prefix,
        next_hop: Option<IpAddr>,
        out: &mut Vec<ForwardingChange>,
    ) {
        out.push(match next_hop {
            Some(next_hop) => ForwardingChange::SetRoute { prefix, next_hop },
            None => ForwardingChange::RemoveRoute { prefix },
        });
    }

    /// Deliveries in order, beginning after `after`.
    pub fn deliveries(&self, after: Option<Prefix>) -> impl Iterator<Item = (Prefix, Delivery)> {
        let from = after.map_or(Unbounded, Excluded);
        self.deliveries.range((from, Unbounded)).map(|(&prefix, &delivery)| (prefix, delivery))
    }

    /// Deliveries of a family. Walks them: hosts of one anchor, asked for once a second.
    pub fn len(&self, family: Family) -> usize {
        self.deliveries.keys().filter(|p| p.family() == family).count()
    }

    pub fn find(&self, prefix: Prefix) -> Option<Delivery> {
        self.deliveries.get(&prefix).copied()
    }

    /// The same revision again is a repetition, and harmless.
    fn is_newer(&self, prefix: Prefix, revision: Revision) -> bool {
        self.deliveries.get(&prefix).is_none_or(|delivery| delivery.revision <= revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MacAddr;
    use crate::types::seam::IfIndex;

    #[test]
    fn the_newest_revision_decides_and_opens_the_uplink() {
        let prefix: Prefix = "10.1.0.7".parse().unwrap();
        let attachment = Attachment { link: IfIndex(3), mac: MacAddr([2, 0, 0, 0, 0, 1]) };
        let deliver = |n| PolicyChange::Deliver { prefix, attachment, revision: Revision(n) };
        let release = |n| PolicyChange::Release { prefix, revision: Revision(n) };
        let (mut egress, mut out) = (Egress::default(), Vec::new());
        egress.handle_policy(&deliver(5), &mut out);
        egress.handle_policy(&release(4), &mut out);
        assert_eq!(out.len(), 1, "the older release is not passed on");
        let source = prefix.addr();
        assert!(egress.opens(IfIndex(3), source));
        assert!(!egress.opens(IfIndex(4), source), "another link stays closed");
        egress.handle_policy(&release(6), &mut out);
        let revision = Revision(6);
        assert_eq!(out.last(), Some(&ForwardingChange::RemoveDelivery { prefix, revision }));
        assert!(!egress.opens(IfIndex(3), source));
    }
}
