//! What the API shows of the mapping service. The rules of [`super::views`] hold.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::views::SessionView;
use crate::types::{AnchorId, Generation, Prefix};

/// A locator of a mapping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RlocView {
    pub address: IpAddr,
    pub priority: u8,
    pub weight: u8,
    /// `up`, `down` (it answers no probes, or BFD says so), or `unknown` when it is not probed.
    pub state: String,
}

/// A line of `lisp map-cache`: what an ingress router knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapCacheView {
    pub instance_id: u32,
    pub eid: Prefix,
    /// Empty for a negative mapping.
    pub rlocs: Vec<RlocView>,
    /// What happens to packets when there is no locator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// `reply` (asked for) or `publication` (told unasked).
    pub origin: String,
    /// 0: the mapping has none.
    pub version: u16,
    pub ttl_s: u64,
    /// It carried packets lately.
    pub used: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub octets: Option<u64>,
}

/// A line of `lisp registrations`: at a map-server what is registered, at an anchor what it has
/// registered there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RegistrationView {
    pub instance_id: u32,
    pub eid: Prefix,
    /// Of a source/destination pair (RFC 8060 §4.8): whose traffic it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Prefix>,
    pub rlocs: Vec<RlocView>,
    pub version: u16,
    /// `registered` (at a map-server), `confirmed`, `pending`, `withdrawing` (at an anchor).
    pub state: String,
    /// The site at a map-server, the map-server at an anchor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<AnchorId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xtr_id: Option<String>,
    /// At a map-server until it expires, at an anchor until it is registered again; absent while
    /// that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
}

/// A line of `lisp subscriptions` (RFC 9437).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SubscriptionView {
    /// `server`: somebody is subscribed here; `client`: we are subscribed there.
    pub role: String,
    pub instance_id: u32,
    pub eid: Prefix,
    /// Who, by name where there is one.
    pub with: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xtr_id: Option<String>,
    pub rlocs: Vec<IpAddr>,
    pub state: String,
    pub nonce: u64,
    /// At the server: Map-Notify messages that are not acknowledged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outstanding: Option<u64>,
}

/// A line of `lisp probe`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProbeView {
    pub rloc: IpAddr,
    /// `up`, `down` or `unknown`.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Probes in a row without an answer.
    pub unanswered: u32,
    /// Mappings that name it.
    pub mappings: u64,
}

/// `lisp lookup`: what the mapping system answers for an EID.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LookupView {
    pub instance_id: u32,
    pub eid: IpAddr,
    /// `here` (this node is the map-server), `cache`, `asked`: there is no answer yet; or
    /// `not-asked`, and `why`.
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The prefix that the answer is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// At a map-server, the registered prefix that the answer is a part of; absent: nothing is
    /// registered there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Prefix>,
    /// Who has registered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    pub rlocs: Vec<RlocView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    pub version: u16,
}

/// `explain route`: which back end leads where, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExplainView {
    pub prefix: Prefix,
    /// The binding that counts, if this node knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<SessionView>,
    pub back_ends: Vec<BackEndView>,
    /// Sentences, in the order of what decides.
    pub why: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackEndView {
    /// `pool`, `ibgp`, `map-server`, `lisp-registration`, `lisp-map-cache`, `ingress`, `egress`.
    pub name: String,
    pub prefix: Prefix,
    pub leads_to: String,
}
