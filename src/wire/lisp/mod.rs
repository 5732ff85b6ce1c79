//! LISP control messages (RFC 9301, RFC 9437; address formats of RFC 8060).

use std::net::IpAddr;

use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, SiteId, XtrId};

/// An EID as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Eid {
    /// AFI 0.
    None,
    /// AFI 1 or 2 (instance 0), or inside an Instance ID LCAF (RFC 8060 §4.1).
    Prefix { iid: InstanceId, prefix: Prefix },
    /// Source/destination key (RFC 8060 §4.5).
    SourceDestination { iid: InstanceId, source: Prefix, destination: Prefix },
    /// An LCAF or AFI that is passed on as it is: the mask length and the octets from the AFI on.
    Other { mask_len: u8, octets: Vec<u8> },
}

/// An RLOC as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RlocAddress {
    /// AFI 0.
    None,
    Ip(IpAddr),
    /// AFI-list LCAF (RFC 8060 §4.16.1): the first one that is understood is used.
    List(Vec<RlocAddress>),
    /// Passed on as it is: the octets from the AFI on.
    Other(Vec<u8>),
}

/// RFC 9301 §5.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RlocRecord {
    pub priority: u8,
    pub weight: u8,
    pub multicast_priority: u8,
    pub multicast_weight: u8,
    /// L: the locator is of the one who answers.
    pub local: bool,
    /// p: this locator is the one that was probed.
    pub probed: bool,
    /// R: there is a route to it, as seen by the one who answers.
    pub reachable: bool,
    pub address: RlocAddress,
}

/// EID-to-RLOC mapping record (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EidRecord {
    /// In minutes, as on the wire; 0: remove at once (a withdrawal).
    pub ttl_min: u32,
    pub action: NegativeAction,
    pub authoritative: bool,
    pub version: MapVersion,
    pub eid: Eid,
    pub rlocs: Vec<RlocRecord>,
}

/// What a Map-Request asks for (RFC 9301 §5.2, N of RFC 9437 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    pub notify: bool,
    pub eid: Eid,
}

/// Map-Request (RFC 9301 §5.2, I of RFC 9437 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRequest {
    pub authoritative: bool,
    pub probe: bool,
    pub smr: bool,
    pub pitr: bool,
    pub smr_invoked: bool,
    /// L of RFC 9301 §5.2.
    pub local_xtr: bool,
    /// D of RFC 9301 §5.2.
    pub dont_reply: bool,
    pub nonce: u64,
    pub source_eid: Eid,
    /// ITR-RLOCs, 1 to 32.
    pub itr_rlocs: Vec<RlocAddress>,
    pub records: Vec<RequestRecord>,
    /// M: the mapping of the asker.
    pub map_reply: Option<EidRecord>,
    /// I of RFC 9437.
    pub id: Option<(XtrId, SiteId)>,
}

/// Map-Reply (RFC 9301 §5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapReply {
    pub probe: bool,
    pub echo_nonce: bool,
    /// S (RFC 9303): LISP-SEC authentication data follows the records.
    pub nonce: u64,
    pub records: Vec<EidRecord>,
    /// LISP-SEC authentication data, as octets (RFC 9303 §5.4); `None` without the S bit.
    pub security: Option<Vec<u8>>,
}

/// Authentication data of Map-Register, Map-Notify and Map-Notify-Ack (RFC 9301 §5.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    pub key_id: u8,
    /// 0 none, 1 HMAC-SHA-1-96, 2 HMAC-SHA-256-128, 3 HKDF-SHA256 with HMAC-SHA-256-128.
    pub algorithm: u8,
    /// The digest as received; its length before signing says how long the emitted one is.
    pub digest: Vec<u8>,
}

/// Map-Register (RFC 9301 §5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRegister {
    pub proxy_reply: bool,
    /// S (RFC 9303 §5.8).
    pub security_capable: bool,
    /// E: from a first-hop router about an EID that was discovered.
    pub eid_notify: bool,
    /// T: the TTL of the records is the registration timeout.
    pub use_ttl: bool,
    /// a: merge the locators of the xTRs of a site.
    pub merge: bool,
    pub want_notify: bool,
    pub nonce: u64,
    pub authentication: Authentication,
    pub records: Vec<EidRecord>,
    /// I: xTR-ID and Site-ID.
    pub id: Option<(XtrId, SiteId)>,
}

/// Map-Notify, and Map-Notify-Ack, which has the same contents (RFC 9301 §5.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNotify {
    pub nonce: u64,
    pub authentication: Authentication,
    pub records: Vec<EidRecord>,
    /// xTR-ID and Site-ID, copied from a Map-Register that had them.
    pub id: Option<(XtrId, SiteId)>,
}

/// Encapsulated Control Message (RFC 9301 §5.8): a control message inside IP and UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ecm {
    /// D: the sender is a DDT client.
    pub ddt: bool,
    /// Authentication data as octets (S, RFC 9303 §5.1).
    pub security: Option<Vec<u8>>,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    /// The inner control message.
    pub message: Vec<u8>,
}

/// One control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    MapRequest(MapRequest),
    MapReply(MapReply),
    MapRegister(MapRegister),
    MapNotify(MapNotify),
    MapNotifyAck(MapNotify),
    Ecm(Ecm),
}
