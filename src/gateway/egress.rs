//! FE_E: which prefixes are delivered here, and over which attachment (R_EC).

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::types::seam::{Attachment, ForwardingChange, PolicyChange};
use crate::types::{Prefix, Revision};

/// One prefix that is delivered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub attachment: Attachment,
    pub revision: Revision,
    /// Why the kernel does not deliver; `None` once it does, or while it has not said.
    pub error: Option<String>,
}

#[derive(Debug)]
pub struct Gateway {
    delivered: HashMap<Prefix, Delivery, FixedState>,
}

impl Gateway {
    pub fn new(seed: u64) -> Self {
        Self { delivered: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    pub fn find(&self, prefix: Prefix) -> Option<&Delivery> {
        self.delivered.get(&prefix)
    }

    pub fn len(&self) -> usize {
        self.delivered.len()
    }

    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty()
    }

    /// FE_IEC's wish for this node. What is for BGP is not for here and is passed over.
    pub fn handle_policy(&mut self, policy: PolicyChange, out: &mut Vec<ForwardingChange>) {
        match policy {
            PolicyChange::Deliver { prefix, attachment, revision } => {
                self.delivered.insert(prefix, Delivery { attachment, revision, error: None });
                out.push(ForwardingChange::SetDelivery { prefix, attachment, revision });
            }
            PolicyChange::Release { prefix, revision } => {
                if self.delivered.remove(&prefix).is_some() {
                    out.push(ForwardingChange::RemoveDelivery { prefix, revision });
                }
            }
            PolicyChange::Announce { .. } | PolicyChange::Withdraw { .. } => {}
        }
    }

    /// The node is reached over another access link of this anchor.
    pub fn redeliver(
        &mut self,
        prefix: Prefix,
        attachment: Attachment,
        out: &mut Vec<ForwardingChange>,
    ) {
        let revision = self.delivered.get(&prefix).map_or(Revision(0), |d| d.revision);
        self.handle_policy(PolicyChange::Deliver { prefix, attachment, revision }, out);
    }

    /// What the kernel said about an entry.
    pub fn handle_applied(
        &mut self,
        prefix: Prefix,
        revision: Revision,
        result: Result<(), String>,
    ) {
        match self.delivered.get_mut(&prefix) {
            Some(delivery) if delivery.revision == revision => delivery.error = result.err(),
            Some(_) | None => {} // about an older state
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MacAddr;
    use crate::types::seam::IfIndex;

    #[test]
    fn an_entry_is_kept_until_released_and_tells_its_error() {
        let prefix: Prefix = "10.1.1.7/32".parse().unwrap();
        let here = Attachment { link: IfIndex(1), mac: MacAddr([2, 0, 0, 0, 0, 1]) };
        let there = Attachment { link: IfIndex(2), ..here };
        let mut gateway = Gateway::new(1);
        let mut out = Vec::new();
        let deliver = PolicyChange::Deliver { prefix, attachment: here, revision: Revision(7) };
        gateway.handle_policy(deliver, &mut out);
        gateway.handle_applied(prefix, Revision(6), Err("old news".into()));
        assert_eq!(gateway.find(prefix).unwrap().error, None);
        gateway.handle_applied(prefix, Revision(7), Err("no such device".into()));
        assert_eq!(gateway.find(prefix).unwrap().error.as_deref(), Some("no such device"));
        gateway.redeliver(prefix, there, &mut out);
        let release = PolicyChange::Release { prefix, revision: Revision(8) };
        gateway.handle_policy(release.clone(), &mut out);
        gateway.handle_policy(release, &mut out);
        assert_eq!(
            out,
            [
                ForwardingChange::SetDelivery { prefix, attachment: here, revision: Revision(7) },
                ForwardingChange::SetDelivery { prefix, attachment: there, revision: Revision(7) },
                ForwardingChange::RemoveDelivery { prefix, revision: Revision(8) },
            ]
        );
    }
}
