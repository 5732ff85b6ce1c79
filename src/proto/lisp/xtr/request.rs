//! Map-Requests of this ITR (RFC 9301 §5.2, §5.3).

use std::net::{IpAddr, SocketAddr};

use super::Output;
use super::record;
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, SiteId, XtrId};
use crate::wire::lisp::{CONTROL_PORT, Ecm, Eid, MapRequest, Message, RequestRecord, RlocAddress};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Our locators: one of each family that has an underlay.
    pub rlocs: Vec<IpAddr>,
    /// The sources are not LISP sites.
    pub pitr: bool,
    pub id: Option<(XtrId, SiteId)>,
}

impl Asker {
    /// A Map-Request for one EID, as §5.3 allows a sender.
    pub fn request(&self, nonce: u64, iid: InstanceId, prefix: Prefix) -> MapRequest {
        MapRequest {
            authoritative: false,
            probe: false,
            smr: false,
            pitr: self.pitr,
            smr_invoked: false,
            local_xtr: false,
            dont_reply: false,
            nonce,
            source_eid: Eid::None,
            itr_rlocs: self.rlocs.iter().map(|&addr| RlocAddress::Ip(addr)).collect(),
            records: vec![RequestRecord { notify: false, eid: record::eid(iid, prefix) }],
            map_reply: None,
            id: self.id,
        }
    }

    /// In an ECM to a Map-Resolver (§5.8): "the destination address in this header is an EID", and
    /// the source is ours where its family has one; else an address of that family that is at
    /// hand, since the answer goes to the ITR-RLOCs.
    pub fn encapsulated(
        &self,
        resolver: IpAddr,
        eid: Prefix,
        source: Option<IpAddr>,
        request: &MapRequest,
        security: Option<Vec<u8>>,
    ) -> Output {
        let destination = eid.addr();
        let same_family = |addr: &IpAddr| addr.is_ipv4() == destination.is_ipv4();
        let ours = self.rlocs.iter().copied().find(same_family);
        let inner = ours.or(source.filter(same_family)).unwrap_or(destination);
        let mut message = Vec::new();
        request.encode(&mut message);
        Output::Send {
            to: SocketAddr::new(resolver, CONTROL_PORT),
            message: Message::Ecm(Ecm {
                ddt: false,
                security,
                source: (inner, CONTROL_PORT),
                destination: (destination, CONTROL_PORT),
                message,
            }),
            sign_with: None,
        }
    }
}
