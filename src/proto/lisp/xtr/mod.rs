//! A tunnel router (RFC 9301, RFC 9437): the ETR registers what is attached here and answers for
//! it, the ITR (or PITR) finds out where packets go.
//!
//! ```text
//! etr ── registration        Map-Register → Map-Notify, one server at a time
//! itr ── resolver            Map-Request → Map-Reply
//!     ── subscription        Map-Request with N → Map-Notify, publications (RFC 9437)
//!     ── map_cache           what they have told, and for how long
//!     ── probe               whether its locators answer
//! ```
//!
//! All of it is sans-IO. What a message makes known is believed only after its nonce (Map-Reply) or
//! its digest and nonce (Map-Notify) has been checked; what is not believed is counted by reason.

mod etr;
mod itr;
mod map_cache;
mod nonce;
mod probe;
mod rate;
mod record;
mod registration;
mod request;
mod resolver;
mod router;
mod security;
mod subscription;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use etr::{Arrival, Etr, EtrConfig, EtrCounts};
pub use itr::{Itr, ItrConfig, ItrCounts, Miss, MobilePrefix, Policy};
pub use map_cache::{CachedMapping, Origin};
pub use nonce::{Nonces, Seed};
pub use probe::{ProbeConfig, ProbeCounts, ProbeState, ProbeView};
pub use registration::{
    AtServer, MapServer, Registrar, RegistrarConfig, RegistrarCounts, RegistrationState,
    RegistrationView,
};
pub use router::{Xtr, XtrCounts};
pub use subscription::{SubscriptionCounts, SubscriptionState, SubscriptionView};

pub use super::security::Security;
use crate::auth::KeyChain;
use crate::types::Prefix;
use crate::types::lisp::{InstanceId, MapVersion, NegativeAction, RlocSet};
use crate::wire::lisp::Message;

/// What has to be on disk before the messages that come after it in the same batch leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Persist {
    /// Nonces of Map-Registers below this may have been sent.
    RegisterNonce { below: u64 },
    /// Nonces of Map-Notifies below this may have been accepted from this server about what is
    /// registered.
    NotifyNonce { server: IpAddr, below: u64 },
    /// Nonces below this may have been sent or accepted for the subscription.
    SubscriptionNonce { iid: InstanceId, prefix: Prefix, below: u64 },
}

/// What the machines of a tunnel router want done. The order counts.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "most of them are messages")]
pub enum Output {
    Persist(Persist),
    /// One UDP datagram from the control port. With a chain it is signed after it is encoded.
    Send {
        to: SocketAddr,
        message: Message,
        sign_with: Option<Arc<KeyChain>>,
    },
    /// A Map-Server has confirmed what is wanted of this prefix now (a withdrawal too).
    Registered {
        server: IpAddr,
        iid: InstanceId,
        prefix: Prefix,
    },
    /// A Map-Server tells that a prefix which is registered here is registered elsewhere.
    MovedAway {
        iid: InstanceId,
        prefix: Prefix,
        rlocs: RlocSet,
        version: MapVersion,
    },
    /// The forwarding of a prefix; `action` counts when there are no locators. `ttl_s` is how long
    /// it holds unless it is told again.
    SetMapping {
        iid: InstanceId,
        prefix: Prefix,
        rlocs: RlocSet,
        action: NegativeAction,
        version: MapVersion,
        ttl_s: u32,
    },
    RemoveMapping {
        iid: InstanceId,
        prefix: Prefix,
    },
    /// A locator answers probes, or no longer.
    SetReachable {
        rloc: IpAddr,
        reachable: bool,
    },
    /// A Map-Server has confirmed the subscription.
    Subscribed {
        iid: InstanceId,
        prefix: Prefix,
    },
    /// The subscription is refused, or nobody confirms it: misses are asked meanwhile.
    Unsubscribed {
        iid: InstanceId,
        prefix: Prefix,
    },
}
