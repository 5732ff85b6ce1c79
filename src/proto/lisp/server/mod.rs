//! Map-Server and Map-Resolver in one (RFC 9301 §4.4, §5, §8; RFC 9437), without I/O.
//!
//! What is registered outside the mobile pools lives in `registrations.rs` and is answered from
//! there. What is inside a pool belongs to the location database: a Map-Register of it is told to
//! the hall, which decides by generation and tells back what changed ([`MapServer::publish`]);
//! requests for it are answered from [`Mappings`]. This table then only knows who registers it, so
//! that it can end when nobody does, and where it stands among the others.
//!
//! | file | what |
//! |---|---|
//! | `register.rs` | Map-Register → registrations, Map-Notify |
//! | `reply.rs` | Map-Request → Map-Reply, or on to the ETR |
//! | `secure.rs` | one-time keys and proofs (RFC 9303) |
//! | `publish.rs` | subscriptions asked for, publications |
//! | `sites.rs` | who may register, keys, nonces |
//! | `pubsub.rs` | who is subscribed to what, nonces |
//! | `outstanding.rs` | Map-Notify messages that wait for an acknowledgement |
//! | `pairs.rs` | source/destination keys (RFC 8060 §4.8) |
//! | `registrations.rs` `key.rs` `order.rs` `contents.rs` | the table of EIDs |

mod contents;
mod key;
mod order;
mod outstanding;
mod pairs;
mod publish;
mod pubsub;
mod rate;
mod register;
mod registrations;
mod reply;
mod secure;
mod sites;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{AuthError, KeyChain};
use crate::types::lisp::{InstanceId, MapVersion, RlocSet, XtrId};
use crate::types::{AnchorId, Instant, Locator, Prefix};
use crate::wire::lisp::{Authentication, Message};

use key::EidKey;
use outstanding::{Outstanding, Whom};
use pairs::Pairs;
use pubsub::Subscriptions;
use rate::Buckets;
use registrations::{Over, Registrations};
use sites::Sites;

pub use pubsub::{ConfiguredSubscription, Itr, StoredState, SubscriptionLimits};
pub use rate::Rate;
pub use secure::{SecuredItr, Security, SecurityConfig};
pub use sites::{ProxyReply, Site, XtrName};
pub use view::{LookupView, RegistrationView, Sizes, SubscriptionView};

/// A registration ends this long after the last Map-Register for it (RFC 9301 §8.2).
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(180);

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub sites: Vec<Site>,
    /// Who may subscribe.
    pub itrs: Vec<Itr>,
    /// Inside these, strictly, the location database decides where an EID is.
    pub mobile_iid: InstanceId,
    pub mobile_pools: Vec<Prefix>,
    /// Requests for these are answered by Drop/Policy-Denied (RFC 9301 §8.3).
    pub denied: Vec<(InstanceId, Prefix)>,
    pub security: SecurityConfig,
    /// TTL of what is answered from the location database.
    pub record_ttl_min: u32,
    /// TTL of a negative answer outside all configured prefixes (15) and inside one (1).
    pub outside_ttl_min: u32,
    pub unregistered_ttl_min: u32,
    /// How long a subscription of an EID that is not registered lives (RFC 9437 §5: 15 min).
    pub temporary_subscription: Duration,
    pub limits: ServerLimits,
    /// Keys the hash tables.
    pub seed: u64,
    /// Where the nonces of our own Map-Notify messages to old xTRs begin when the store has none.
    pub first_nonce: u64,
    /// After a restart, how long an EID of a site or pool that is not registered is not answered
    /// "no": its ETR may only not have registered again yet.
    pub warm_up: Duration,
}

#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Registered EIDs; one more is refused.
    pub eids: usize,
    pub subscriptions: SubscriptionLimits,
    /// Map-Requests from one address, and for one EID; what is above is dropped. `None`: no limit.
    pub requests_per_source: Option<Rate>,
    pub requests_per_eid: Option<Rate>,
    /// Map-Requests that are passed on to ETRs, in all: what leaves is larger than what came, and
    /// goes to somebody who did not ask.
    pub forwarded: Rate,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            eids: crate::types::limits::BINDINGS_MAX,
            subscriptions: SubscriptionLimits {
                total: 65_536,
                per_itr: 4_096,
                publications: Rate { burst: 10_000, per_second: 10_000 },
            },
            requests_per_source: None,
            requests_per_eid: None,
            forwarded: Rate { burst: 10_000, per_second: 10_000 },
        }
    }
}

/// Where a mobile EID is, as the location database has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub anchor: AnchorId,
    pub fe_e: Locator,
    pub version: MapVersion,
}

/// How the location database is read.
pub trait Mappings {
    /// The longest bound prefix with this address in it.
    fn find(&self, iid: InstanceId, addr: IpAddr) -> Option<(Prefix, Mapping)>;
}

/// What is to be written down before the messages that follow it in the same list leave. The later
/// record of the same thing replaces the earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NonceRecord {
    /// The last nonce of an xTR's registers with one key; without an xTR-ID, of the whole site.
    Register { site: AnchorId, xtr: Option<XtrId>, key_id: u8, nonce: u64 },
    /// The last nonce of an xTR's subscription requests for an EID-prefix.
    Request { xtr: XtrId, iid: InstanceId, prefix: Prefix, nonce: u64 },
    /// A subscription; publications may have used nonces up to the one named.
    Subscription {
        xtr: XtrId,
        iid: InstanceId,
        prefix: Prefix,
        state: StoredState,
        publications_until: u64,
        rlocs: Vec<IpAddr>,
    },
    /// Our own Map-Notify messages to old xTRs may have used nonces up to this one.
    Notify { until: u64 },
}

/// Which key signs a message.
#[derive(Clone, Debug)]
pub struct SignWith {
    pub keys: Arc<KeyChain>,
    /// Key and algorithm that the other side has used; else the one that the chain signs with.
    pub key: Option<(u8, u8)>,
}

impl SignWith {
    fn authentication(&self) -> Authentication {
        match self.key.and_then(|(id, algorithm)| Some((id, self.keys.find(id, algorithm)?))) {
            Some((id, key)) => key.authentication(id),
            None => self.keys.authentication(),
        }
    }

    /// Fills in the digest of a message that is encoded already.
    pub fn sign(&self, octets: &mut [u8]) -> Result<(), AuthError> {
        match self.key.and_then(|(id, algorithm)| self.keys.find(id, algorithm)) {
            Some(key) => key.sign(octets),
            None => self.keys.sign(octets),
        }
    }
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Registration {
    First,
    /// Other locators, another version, or another xTR.
    Changed,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "most are Send; a box would cost one of them more")]
pub enum Output {
    /// By [`encode`], after everything before it in the list is written down.
    Send {
        to: SocketAddr,
        message: Message,
        sign_with: Option<SignWith>,
    },
    /// An EID was registered. Of a mobile one the hall has to decide whether it is so.
    Registered {
        anchor: AnchorId,
        xtr: XtrName,
        iid: InstanceId,
        prefix: Prefix,
        mobile: bool,
        /// Null when the ETR says none: each change of the holder is then the next generation.
        version: MapVersion,
        rlocs: RlocSet,
        what: Registration,
    },
    /// The xTR that held it has taken it back. Of a mobile one: if the location database has it at
    /// this anchor still, it is not there any more. Likewise when it has expired.
    Withdrawn {
        anchor: AnchorId,
        xtr: XtrName,
        iid: InstanceId,
        prefix: Prefix,
        mobile: bool,
    },
    /// Nobody has refreshed it in time.
    Expired {
        anchor: AnchorId,
        iid: InstanceId,
        prefix: Prefix,
        mobile: bool,
    },
    Persist(NonceRecord),
    /// Nothing was done, or not all of it. For the log; also counted.
    Refused {
        from: SocketAddr,
        reason: Refusal,
    },
}

/// The octets of a message that is to be sent.
pub fn encode(
    message: &Message,
    sign_with: Option<&SignWith>,
    octets: &mut Vec<u8>,
) -> Result<(), AuthError> {
    let start = octets.len();
    message.encode(octets);
    sign_with.map_or(Ok(()), |key| key.sign(&mut octets[start..]))
}

/// Why something was not done; a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    #[error("not a message for a map-server")]
    NotForUs,
    #[error("the encapsulated message is malformed")]
    Malformed,
    #[error("no site with this ID or this EID-prefix")]
    UnknownSite,
    #[error("no key of the site verifies it")]
    Authentication,
    #[error("too many sites could have sent it; they need Site-IDs")]
    KeyTrials,
    #[error("the nonce is not greater than the last one")]
    Replay,
    #[error("the EID-prefix is not the site's to register")]
    PrefixNotAllowed,
    #[error("not an IP prefix, or an address that nobody can be reached at")]
    EidKind,
    #[error("a source/destination pair inside a mobile pool")]
    PairInPool,
    #[error("the map-version is older than the known one")]
    StaleVersion,
    #[error("the xTR was just told that the EID is elsewhere")]
    MovedAway,
    #[error("the site has too many xTRs")]
    XtrLimit,
    #[error("too many EIDs are registered")]
    EidLimit,
    #[error("too many xTRs register the same EID")]
    MergeLimit,
    #[error("a request with bits that do not go together")]
    Combination,
    #[error("a probe is answered by ETRs only")]
    Probe,
    #[error("a solicit is for ITRs only")]
    Solicit,
    #[error("no ITR-RLOC that can be answered to")]
    ItrRloc,
    #[error("more records than are answered")]
    Records,
    #[error("too many requests from there")]
    SourceRate,
    #[error("too many requests for the EID")]
    EidRate,
    #[error("too many requests have to be passed on")]
    ForwardRate,
    #[error("no ETR to pass the request on to")]
    NoEtr,
    #[error("the xTR may not subscribe, or not from there")]
    SubscriberNotAllowed,
    #[error("too many subscriptions or publications of the xTR")]
    SubscriptionLimit,
    #[error("it may only not be registered again yet, so soon after a restart")]
    WarmingUp,
    #[error("a question without LISP-SEC, which is required")]
    NotSecured,
    #[error("a one-time key that is not encrypted, or in no known way")]
    OneTimeKeyBare,
    #[error("a one-time key of nobody that is known there")]
    OneTimeKeyUnknown,
    #[error("a one-time key that is wrapped with another secret")]
    OneTimeKeyWrong,
    #[error("an acknowledgement of nothing that waits")]
    UnknownAck,
    #[error("an acknowledgement that no key verifies")]
    AckAuthentication,
}

/// What has happened so far, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub registers: u64,
    /// Whole messages; records are in `refused` only.
    pub registers_refused: u64,
    pub refreshes: u64,
    /// Withdrawals by xTRs that had nothing to withdraw; acknowledged, without effect.
    pub withdrawn_not_held: u64,
    pub notifies: u64,
    pub requests: u64,
    /// Whole messages, as `registers_refused`.
    pub requests_refused: u64,
    pub replies: u64,
    pub negative_replies: u64,
    pub forwarded: u64,
    /// Questions with a one-time key that could be opened.
    pub secured: u64,
    /// Of these, about what an ETR without LISP-SEC has to answer: refused in a proven reply.
    pub cant_sign: u64,
    pub subscribed: u64,
    pub unsubscribed: u64,
    pub publications: u64,
    pub acknowledged: u64,
    /// Publications and other Map-Notify messages that nobody has acknowledged.
    pub given_up: u64,
    /// Subscriptions inside a changed prefix that were too many to be told at once.
    pub inside_skipped: u64,
    pub refused: BTreeMap<Refusal, u64>,
}

pub struct MapServer {
    config: ServerConfig,
    sites: Sites,
    registrations: Registrations,
    pairs: Pairs,
    subscriptions: Subscriptions,
    outstanding: Outstanding,
    per_source: Option<Buckets>,
    per_eid: Option<Buckets>,
    forward: rate::Bucket,
    notify_nonces: NotifyNonces,
    warm_until: Instant,
    counters: Counters,
}

/// Nonces of Map-Notify messages to old xTRs that are stored ahead of their use.
const NOTIFY_BLOCK: u64 = 1 << 20;

/// Nonces for Map-Notify messages that nobody has asked for.
struct NotifyNonces {
    last: u64,
    stored_until: u64,
}

impl NotifyNonces {
    fn next(&mut self, out: &mut Vec<Output>) -> u64 {
        self.last = self.last.saturating_add(1);
        if self.last > self.stored_until {
            self.stored_until = self.last.saturating_add(NOTIFY_BLOCK);
            out.push(Output::Persist(NonceRecord::Notify { until: self.stored_until }));
        }
        self.last
    }
}

impl MapServer {
    /// `stored` is what was persisted, in any order; `now` is the time of the start.
    pub fn new(config: ServerConfig, stored: &[NonceRecord], now: Instant) -> Self {
        let limits = &config.limits;
        let mut sites = Sites::new(config.sites.clone(), config.seed);
        let mut subscriptions =
            Subscriptions::new(config.itrs.clone(), limits.subscriptions, config.seed);
        let mut nonce = config.first_nonce;
        let temporary_until = now + config.temporary_subscription;
        for record in stored {
            match record.clone() {
                NonceRecord::Register { site, xtr, key_id, nonce } => {
                    sites.restore(site, xtr, key_id, nonce);
                }
                NonceRecord::Request { xtr, iid, prefix, nonce } => {
                    subscriptions.restore_request(xtr, EidKey::new(iid, prefix), nonce);
                }
                NonceRecord::Subscription {
                    xtr,
                    iid,
                    prefix,
                    state,
                    publications_until,
                    rlocs,
                } => {
                    let key = EidKey::new(iid, prefix);
                    subscriptions.restore(
                        xtr,
                        key,
                        state,
                        publications_until,
                        rlocs,
                        temporary_until,
                    );
                }
                NonceRecord::Notify { until } => nonce = nonce.max(until),
            }
        }
        let buckets = |rate: Option<Rate>| rate.map(|rate| Buckets::new(rate, config.seed));
        Self {
            sites,
            registrations: Registrations::new(config.seed),
            pairs: Pairs::default(),
            subscriptions,
            outstanding: Outstanding::default(),
            per_source: buckets(limits.requests_per_source),
            per_eid: buckets(limits.requests_per_eid),
            forward: rate::Bucket::full(limits.forwarded),
            notify_nonces: NotifyNonces { last: nonce, stored_until: nonce },
            // At a first start nobody has anything to lose.
            warm_until: if stored.is_empty() { now } else { now + config.warm_up },
            counters: Counters::default(),
            config,
        }
    }

    /// A datagram that came to port 4342: as it was, and decoded.
    pub fn handle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        raw: &[u8],
        message: Message,
        mappings: &impl Mappings,
        out: &mut Vec<Output>,
    ) {
        let is_register = matches!(message, Message::MapRegister(_));
        let requests = self.counters.requests;
        let done = match message {
            Message::MapRegister(register) => {
                self.handle_register(now, from, raw, register, mappings, out)
            }
            Message::MapRequest(request) => {
                let inner = reply::Envelope::direct(from, raw);
                self.handle_request(now, from, &request, inner, mappings, out)
            }
            Message::Ecm(ecm) => match Message::decode(&ecm.message) {
                Ok(Message::MapRequest(request)) => {
                    let inner = reply::Envelope::encapsulated(&ecm);
                    self.handle_request(now, from, &request, inner, mappings, out)
                }
                Ok(_) => Err(Refusal::NotForUs),
                Err(_) => Err(Refusal::Malformed),
            },
            Message::MapNotifyAck(ack) => self.handle_ack(now, raw, ack.nonce, mappings, out),
            // Ours are sent and never answered by these (RFC 9301 §8.3).
            Message::MapReply(_) | Message::MapNotify(_) => Err(Refusal::NotForUs),
        };
        if let Err(reason) = done {
            // One inside of an ECM too.
            let is_request = self.counters.requests > requests;
            self.counters.registers_refused += u64::from(is_register);
            self.counters.requests_refused += u64::from(is_request);
            self.refuse(from, reason, out);
        }
    }

    fn refuse(&mut self, from: SocketAddr, reason: Refusal, out: &mut Vec<Output>) {
        *self.counters.refused.entry(reason).or_default() += 1;
        out.push(Output::Refused { from, reason });
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = [
            self.registrations.poll_timeout(),
            self.pairs.poll_timeout(),
            self.outstanding.poll_timeout(),
            self.subscriptions.poll_timeout(),
        ];
        due.into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let mut over = Vec::new();
        self.registrations.sweep(now, &mut over);
        for over in over {
            match over {
                Over::Registration(slot) => self.expire(now, slot, out),
                Over::Part(slot) => self.publish_registered(now, slot, out),
            }
        }
        self.expire_pairs(now, out);
        let mut given_up = Vec::new();
        let (subscriptions, to_old) = (&mut self.subscriptions, &mut self.notify_nonces);
        self.outstanding.handle_timeout(now, &mut given_up, out, |whom, nonce, out| match whom {
            Whom::Subscriber(sub) | Whom::CatchingUp(sub)
                if subscriptions.get(sub).nonce != nonce =>
            {
                let (nonce, stored) = subscriptions.next_nonce(sub);
                out.extend(stored.map(Output::Persist));
                nonce
            }
            Whom::OldXtr(_) if to_old.last != nonce => to_old.next(out),
            // An answer has the nonce of its question.
            Whom::Subscribing(_) | Whom::Subscriber(_) | Whom::CatchingUp(_) | Whom::OldXtr(_) => {
                nonce
            }
        });
        for waiting in given_up {
            self.give_up(waiting, out);
        }
        while let Some(sub) = self.subscriptions.expire(now) {
            out.push(Output::Persist(self.subscriptions.record(sub)));
        }
    }

    /// Whether the location database decides about an EID.
    fn is_mobile(&self, iid: InstanceId, prefix: Prefix) -> bool {
        // A pool inside another one is an aggregate as well.
        let pools = &self.config.mobile_pools;
        iid == self.config.mobile_iid
            && pools.iter().any(|p| p.contains(prefix))
            && !pools.contains(&prefix)
    }
}
