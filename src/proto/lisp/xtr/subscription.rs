//! Push: this ITR is told of every move within a prefix (RFC 9437).
//!
//! The subscription is renewed periodically, because a Map-Server that has lost it, and has nothing
//! to publish, is as silent as one that keeps it. What was published while nobody heard it cannot
//! be known; so when a renewal did not pass at once, the pushed mappings are asked for once more.
//!
//! **Nonces.** Requests and publications of a subscription share one sequence: each request is
//! greater than all that was sent and seen. It is recorded in blocks, and a restart goes on
//! above the block: everything from before the restart is old by then. See [`Window`] for
//! publications that overtake each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use super::nonce::{Growing, Seen, Window};
use super::registration::acknowledge;
use super::request::Asker;
use super::{Nonces, Output, Persist, record};
use crate::auth::KeyChain;
use crate::types::lisp::{InstanceId, NegativeAction};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{EidRecord, MapNotify, RlocAddress};

/// A Map-Request is repeated so often, once a second, and then there is a pause (RFC 9301 §5.3).
const RETRY: Duration = Duration::from_secs(1);
const SENT_MAX: u32 = 11;
const PAUSE: Duration = Duration::from_secs(30);
/// After a refusal (RFC 9437 §5).
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// A server that says it has dropped the subscription is asked at once, but not more often.
const RESUBSCRIBE_SPACING: Duration = Duration::from_secs(5);

/// Requests of one attempt from which on the nonce leaps. Publications on the way to us raise the
/// server's nonce above ours, and it drops what is not greater without a word; with so many lost,
/// adding one each time might never catch up.
const LEAP_AFTER: u32 = 3;
const LEAP: u64 = Window::LEN;

/// How far the nonces of a subscription may be from ours. A server counts by one, and leaps by a
/// block of a million when it restarts; what is farther away is of another sequence, such as what
/// the same server tells our ETR about the same prefix.
const NEAR: u64 = 1 << 32;

/// Prefixes that are subscribed to, by configuration.
pub const SUBSCRIPTIONS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// Not asked for yet, or nobody has answered.
    Waiting,
    Asking,
    Subscribed,
    Refused(NegativeAction),
    Unsubscribing,
    /// Confirmed that it is gone.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionView {
    pub iid: InstanceId,
    pub prefix: Prefix,
    pub state: SubscriptionState,
    /// Who confirmed it.
    pub server: Option<IpAddr>,
    pub nonce: u64,
    pub publications: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionCounts {
    pub requests: u64,
    pub confirmed: u64,
    pub publications: u64,
    /// Acknowledged once more, and otherwise ignored.
    pub repeated: u64,
    pub replayed: u64,
    pub bad_digest: u64,
    /// About nothing that is subscribed to.
    pub not_subscribed: u64,
    pub refused: u64,
    /// The server has dropped the subscription.
    pub dropped: u64,
}

#[derive(Debug)]
enum State {
    /// Asked for at `at`.
    Waiting,
    /// Asked again at `at`; a renewal is one of these too.
    Asking {
        sent: Vec<u64>,
    },
    /// Renewed at `at`.
    Subscribed,
    /// Asked for at `at`.
    Refused(NegativeAction),
    Unsubscribing {
        sent: Vec<u64>,
    },
    Ended,
}

#[derive(Debug)]
struct Subscription {
    keys: Arc<KeyChain>,
    nonce: Growing,
    window: Window,
    state: State,
    at: Instant,
    /// The last request that began an attempt.
    began_at: Option<Instant>,
    /// Some time ago a server has confirmed it, and nothing has contradicted since: what was
    /// pushed holds.
    holds: bool,
    server: Option<IpAddr>,
    publications: u64,
}

/// What a Map-Notify turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Its records count, and this is its nonce. Whether something may have been missed before.
    Records {
        subscription: (InstanceId, Prefix),
        nonce: u64,
        gap: bool,
    },
    Nothing,
}

#[derive(Debug)]
pub struct Subscriber {
    subscriptions: BTreeMap<(InstanceId, Prefix), Subscription>,
    renew_every: Duration,
    nonces: Nonces,
    counts: SubscriptionCounts,
}

impl Subscriber {
    pub fn new(renew_every: Duration, nonces: Nonces) -> Self {
        Self {
            subscriptions: BTreeMap::new(),
            renew_every,
            nonces,
            counts: SubscriptionCounts::default(),
        }
    }

    /// `below` as recorded ([`Persist::SubscriptionNonce`]). Without it the sequence begins
    /// anywhere (RFC 9437 §5), with room above.
    pub fn subscribe(
        &mut self,
        iid: InstanceId,
        prefix: Prefix,
        keys: Arc<KeyChain>,
        below: Option<u64>,
        now: Instant,
    ) -> bool {
        let key = (iid, prefix);
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX && !self.subscriptions.contains_key(&key) {
            return false;
        }
        let below = below.unwrap_or_else(|| self.nonces.random() >> 1);
        let nonce = Growing::new(below);
        let subscription = Subscription {
            keys,
            nonce,
            window: Window::new(nonce.last()),
            state: State::Waiting,
            at: now,
            began_at: None,
            holds: false,
            server: None,
            publications: 0,
        };
        self.subscriptions.insert(key, subscription);
        true
    }

    /// No longer wanted: the server is told until it confirms, or a while.
    pub fn unsubscribe(&mut self, iid: InstanceId, prefix: Prefix, now: Instant) {
        if let Some(subscription) = self.subscriptions.get_mut(&(iid, prefix)) {
            subscription.state = State::Unsubscribing { sent: Vec::new() };
            subscription.at = now;
            subscription.holds = false;
        }
    }

    /// Whether what was pushed about this prefix still holds without being told again.
    pub fn holds(&self, iid: InstanceId, pushed: Prefix) -> bool {
        self.find_covering(iid, pushed).is_some_and(|(_, subscription)| subscription.holds)
    }

    fn find_covering(
        &self,
        iid: InstanceId,
        covered: Prefix,
    ) -> Option<((InstanceId, Prefix), &Subscription)> {
        (0..=covered.len()).rev().find_map(|len| {
            let key = (iid, Prefix::new(covered.addr(), len)?);
            self.subscriptions.get(&key).map(|subscription| (key, subscription))
        })
    }

    pub fn poll_timeout(&self) -> Instant {
        let at = self.subscriptions.values().map(|subscription| subscription.at);
        at.min().unwrap_or(Instant::FAR_FUTURE)
    }

    /// `resolver` is whom to ask now. Returns how many requests were left unanswered.
    pub fn handle_timeout(
        &mut self,
        asker: &Asker,
        resolver: Option<IpAddr>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> u32 {
        let mut unanswered = 0;
        for (&key, subscription) in &mut self.subscriptions {
            if subscription.at > now {
                continue;
            }
            let sent = match &mut subscription.state {
                State::Waiting | State::Subscribed | State::Refused(_) => {
                    subscription.began_at = Some(now);
                    subscription.state = State::Asking { sent: Vec::new() };
                    0
                }
                State::Asking { sent } | State::Unsubscribing { sent } => sent.len(),
                State::Ended => {
                    subscription.at = Instant::FAR_FUTURE;
                    continue;
                }
            };
            unanswered += u32::from(sent > 0);
            let sent = u32::try_from(sent).expect("at most eleven");
            if sent < SENT_MAX {
                let Some(resolver) = resolver else {
                    subscription.at = now + PAUSE;
                    continue;
                };
                self.counts.requests += 1;
                subscription.send(key, asker, resolver, now, out);
                continue;
            }
            subscription.at = now + PAUSE;
            if matches!(subscription.state, State::Unsubscribing { .. }) {
                // It goes by itself when nobody acknowledges its publications.
                subscription.state = State::Ended;
                continue;
            }
            subscription.state = State::Waiting;
            if std::mem::take(&mut subscription.holds) {
                out.push(Output::Unsubscribed { iid: key.0, prefix: key.1 });
            }
        }
        unanswered
    }

    /// A negative Map-Reply, or any other, instead of a Map-Notify: no subscription (RFC 9437 §5).
    /// The prefix that was subscribed to, if the nonce is of such a request.
    pub fn handle_reply(
        &mut self,
        nonce: u64,
        action: NegativeAction,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<(InstanceId, Prefix)> {
        let asked = |s: &Subscription| match &s.state {
            State::Asking { sent } | State::Unsubscribing { sent } => sent.contains(&nonce),
            State::Waiting | State::Subscribed | State::Refused(_) | State::Ended => false,
        };
        let (&key, subscription) = self.subscriptions.iter_mut().find(|(_, s)| asked(s))?;
        self.counts.refused += 1;
        subscription.state = match subscription.state {
            State::Unsubscribing { .. } => State::Ended,
            _ => State::Refused(action),
        };
        subscription.at = now + REFUSED_FOR;
        if std::mem::take(&mut subscription.holds) {
            out.push(Output::Unsubscribed { iid: key.0, prefix: key.1 });
        }
        Some(key)
    }

    /// A Map-Notify that is none of the ETR's. `raw` is the datagram, for its digest.
    pub fn handle_notify(
        &mut self,
        from: SocketAddr,
        notify: &MapNotify,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Accepted {
        let Some(key) = self.find(notify) else {
            self.counts.not_subscribed += 1;
            return Accepted::Nothing;
        };
        let subscription = self.subscriptions.get_mut(&key).expect("found just now");
        if subscription.keys.verify(raw).is_err() {
            self.counts.bad_digest += 1;
            return Accepted::Nothing;
        }
        let ack = acknowledge(from.ip(), notify, &subscription.keys);
        let is_drop = |r: &EidRecord| {
            r.rlocs.is_empty()
                && r.action == NegativeAction::DropAuthFailure
                && record::prefix_of(&r.eid) == Some(key)
        };
        let confirms = match &subscription.state {
            State::Asking { sent } => sent.contains(&notify.nonce).then_some(sent.len() > 1),
            State::Unsubscribing { sent } => {
                if sent.contains(&notify.nonce) {
                    subscription.state = State::Ended;
                    subscription.at = Instant::FAR_FUTURE;
                    out.push(ack);
                    out.push(Output::Unsubscribed { iid: key.0, prefix: key.1 });
                    return Accepted::Nothing;
                }
                None
            }
            State::Subscribed => None,
            State::Waiting | State::Refused(_) | State::Ended => {
                self.counts.not_subscribed += 1;
                return Accepted::Nothing;
            }
        };
        match subscription.window.look(notify.nonce) {
            Seen::TooOld => {
                self.counts.replayed += 1;
                return Accepted::Nothing;
            }
            Seen::New | Seen::Before if notify.records.iter().any(is_drop) => {
                // No locators and ACT 5, with a nonce that we may or may not have seen: our
                // acknowledgements were lost, and so is the subscription. It says nothing about
                // the mapping.
                let spaced = subscription.began_at.is_none_or(|at| now >= at + RESUBSCRIBE_SPACING);
                if matches!(subscription.state, State::Subscribed) && spaced {
                    self.counts.dropped += 1;
                    subscription.state = State::Waiting;
                    subscription.holds = false;
                    subscription.at = now;
                }
                return Accepted::Nothing;
            }
            Seen::Before => {
                // The same once more: our acknowledgement was lost. It changes nothing.
                self.counts.repeated += 1;
                out.push(ack);
                return Accepted::Nothing;
            }
            Seen::New => {}
        }
        subscription.window.take(notify.nonce);
        if let Some(below) = subscription.nonce.raise(notify.nonce) {
            let (iid, prefix) = key;
            out.push(Output::Persist(Persist::SubscriptionNonce { iid, prefix, below }));
        }
        out.push(ack);
        let mut gap = false;
        if let Some(late) = confirms {
            self.counts.confirmed += 1;
            gap = late && subscription.server.is_some() || !subscription.holds;
            subscription.state = State::Subscribed;
            subscription.server = Some(from.ip());
            subscription.at = now + self.renew_every;
            if !std::mem::replace(&mut subscription.holds, true) {
                out.push(Output::Subscribed { iid: key.0, prefix: key.1 });
            }
        } else {
            self.counts.publications += 1;
            subscription.publications += 1;
        }
        Accepted::Records { subscription: key, nonce: notify.nonce, gap }
    }

    /// Whether it is about a subscription, by its records or its nonce.
    pub fn is_about(&self, notify: &MapNotify) -> bool {
        self.find(notify).is_some()
    }

    fn find(&self, notify: &MapNotify) -> Option<(InstanceId, Prefix)> {
        let mut eids = notify.records.iter().filter_map(|r| record::subject_of(&r.eid));
        // A confirmation may name less than was asked for (RFC 9437 §5, an EID that is not known),
        // but has the nonce of the request.
        eids.find_map(|(iid, prefix)| self.find_covering(iid, prefix))
            .filter(|(_, subscription)| subscription.nonce.last().abs_diff(notify.nonce) <= NEAR)
            .map(|(key, _)| key)
            .or_else(|| self.find_asked(notify.nonce))
    }

    fn find_asked(&self, nonce: u64) -> Option<(InstanceId, Prefix)> {
        let asked = |s: &Subscription| match &s.state {
            State::Asking { sent } | State::Unsubscribing { sent } => sent.contains(&nonce),
            State::Waiting | State::Subscribed | State::Refused(_) | State::Ended => false,
        };
        self.subscriptions.iter().find(|(_, s)| asked(s)).map(|(&key, _)| key)
    }

    /// The lowest nonce that a publication of the subscription could still have.
    pub fn bottom(&self, key: (InstanceId, Prefix)) -> Option<u64> {
        self.subscriptions.get(&key).map(|subscription| subscription.window.bottom())
    }

    pub fn counts(&self) -> SubscriptionCounts {
        self.counts
    }

    /// Subscriptions in order, beginning after `after`.
    pub fn subscriptions(
        &self,
        after: Option<(InstanceId, Prefix)>,
    ) -> impl Iterator<Item = SubscriptionView> + '_ {
        let from = after.map_or(Unbounded, Excluded);
        self.subscriptions.range((from, Unbounded)).map(|(&(iid, prefix), s)| SubscriptionView {
            iid,
            prefix,
            state: match &s.state {
                State::Waiting => SubscriptionState::Waiting,
                State::Asking { .. } => SubscriptionState::Asking,
                State::Subscribed => SubscriptionState::Subscribed,
                State::Refused(action) => SubscriptionState::Refused(*action),
                State::Unsubscribing { .. } => SubscriptionState::Unsubscribing,
                State::Ended => SubscriptionState::Ended,
            },
            server: s.server,
            nonce: s.nonce.last(),
            publications: s.publications,
        })
    }
}

impl Subscription {
    fn send(
        &mut self,
        (iid, prefix): (InstanceId, Prefix),
        asker: &Asker,
        resolver: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let (sent, ends) = match &mut self.state {
            State::Asking { sent } => (sent, false),
            State::Unsubscribing { sent } => (sent, true),
            State::Waiting | State::Subscribed | State::Refused(_) | State::Ended => return,
        };
        let leaps = u32::try_from(sent.len()).is_ok_and(|sent| sent >= LEAP_AFTER);
        let leapt = leaps.then(|| self.nonce.raise(self.nonce.last().saturating_add(LEAP)));
        let (nonce, below) = self.nonce.next();
        if let Some(below) = below.or(leapt.flatten()) {
            out.push(Output::Persist(Persist::SubscriptionNonce { iid, prefix, below }));
        }
        sent.push(nonce);
        self.at = now + RETRY;
        let mut request = asker.request(nonce, iid, prefix);
        request.records[0].notify = true;
        if ends {
            // RFC 9437 §5: exactly one ITR-RLOC, of AFI 0.
            request.itr_rlocs = vec![RlocAddress::None];
        }
        out.push(asker.encapsulated(resolver, prefix, None, &request, None));
    }
}
