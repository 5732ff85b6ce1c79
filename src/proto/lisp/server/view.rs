//! The tables as `killick lisp registrations|subscriptions` and the metrics show them.

use std::net::IpAddr;
use std::time::Duration;

use super::key::EidKey;
use super::pubsub::State;
use super::registrations::Seconds;
use super::reply::Match;
use super::{Counters, MapServer, Mappings, XtrName};
use crate::types::lisp::{InstanceId, MapVersion, XtrId};
use crate::types::{Instant, Prefix};
use crate::wire::lisp::{EidRecord, RlocRecord};

/// Cursors from here on are of pairs: the table of EIDs has fewer places.
const PAIRS_FROM: u32 = 1 << 31;

/// One registered (or published) EID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationView<'a> {
    pub iid: InstanceId,
    pub prefix: Prefix,
    /// Of a source/destination pair: whose traffic it is about.
    pub source: Option<Prefix>,
    /// Who registers it; `None`: it is published from the location database only.
    pub site: Option<&'a str>,
    pub xtr: Option<XtrName>,
    pub rlocs: &'a [RlocRecord],
    pub ttl_min: u32,
    pub version: MapVersion,
    /// Until it ends unless it is refreshed.
    pub remaining: Option<Duration>,
    pub mobile: bool,
    pub merged: bool,
    pub proxy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionView<'a> {
    pub iid: InstanceId,
    pub prefix: Prefix,
    pub xtr: XtrId,
    pub rlocs: &'a [IpAddr],
    /// The last one in use.
    pub nonce: u64,
    /// Of a temporary one.
    pub remaining: Option<Duration>,
    pub configured: bool,
    /// Left out of a less specific one.
    pub muted: bool,
    /// Something was given up and not yet told again.
    pub behind: bool,
    /// Map-Notify messages that it has not acknowledged yet.
    pub outstanding: usize,
}

/// What is known of a prefix here, and told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupView<'a> {
    /// The answer to a Map-Request.
    pub record: EidRecord,
    /// The prefix that the answer is from; `None`: nothing is registered there.
    pub registered: Option<Prefix>,
    /// Who has registered it.
    pub site: Option<&'a str>,
    /// The location database decided.
    pub is_mobile: bool,
    /// How many are told when it changes.
    pub subscribers: usize,
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub eids: usize,
    /// Source/destination pairs.
    pub pairs: usize,
    pub rloc_sets: usize,
    pub xtrs: usize,
    pub subscriptions: usize,
    pub outstanding: usize,
    /// Octets of the heap that grow with the EIDs.
    pub eid_bytes: usize,
}

impl MapServer {
    /// A page of at most `limit` EIDs from `cursor` on (0 at first), and the next cursor.
    pub fn registrations(
        &self,
        now: Instant,
        cursor: u32,
        limit: usize,
    ) -> (Vec<RegistrationView<'_>>, Option<u32>) {
        if cursor >= PAIRS_FROM {
            return self.pairs_page(now, cursor - PAIRS_FROM, limit);
        }
        let (slots, next) = self.registrations.page(cursor, limit);
        let next = next.or((self.pairs.len() > 0).then_some(PAIRS_FROM));
        let seconds = Seconds::at(now).0;
        let view = |slot| {
            let entry = self.registrations.entry(slot);
            let key = self.registrations.key(slot);
            let xtr = self.sites.find_xtr(entry.holder);
            let content = self.registrations.content(slot);
            let left = entry.expires.0.saturating_sub(seconds);
            RegistrationView {
                iid: key.iid(),
                prefix: key.prefix(),
                source: None,
                site: xtr.map(|x| self.sites.get(x.site).name.as_str()),
                xtr: xtr.map(|x| x.name),
                rlocs: content.map_or(&[], |c| &c.rlocs),
                ttl_min: content.map_or(0, |c| c.ttl_min),
                version: entry.version,
                remaining: content.map(|_| Duration::from_secs(u64::from(left))),
                mobile: entry.flags.mobile,
                merged: entry.flags.merged,
                proxy: entry.flags.proxy,
            }
        };
        (slots.into_iter().map(view).collect(), next)
    }

    fn pairs_page(
        &self,
        now: Instant,
        from: u32,
        limit: usize,
    ) -> (Vec<RegistrationView<'_>>, Option<u32>) {
        let mut views = Vec::new();
        for (key, pair) in self.pairs.page(from as usize, limit) {
            let xtr = self.sites.find_xtr(pair.holder);
            views.push(RegistrationView {
                iid: key.destination.iid(),
                prefix: key.destination.prefix(),
                source: Some(key.source.prefix()),
                site: xtr.map(|x| self.sites.get(x.site).name.as_str()),
                xtr: xtr.map(|x| x.name),
                rlocs: &pair.rlocs,
                ttl_min: pair.ttl_min,
                version: pair.version,
                remaining: Some(pair.expires.instant() - now),
                mobile: false,
                merged: false,
                proxy: pair.proxy,
            });
        }
        let seen = from as usize + views.len();
        let next = (seen < self.pairs.len()).then(|| u32::try_from(seen).ok()).flatten();
        (views, next.map(|next| PAIRS_FROM + next))
    }

    /// A page of at most `limit` subscriptions from `cursor` on (0 at first), and the next cursor.
    pub fn subscriptions(
        &self,
        now: Instant,
        cursor: u32,
        limit: usize,
    ) -> (Vec<SubscriptionView<'_>>, Option<u32>) {
        let (page, next) = self.subscriptions.page(cursor, limit);
        let view = |sub: &'_ super::pubsub::Subscription| {
            let (expires, configured) = match sub.state {
                State::Active { expires, configured } => (expires, configured),
                State::Muted | State::Ended => (None, false),
            };
            (expires.map(|at| at - now), configured)
        };
        let views = page.into_iter().map(|(at, sub)| {
            let (remaining, configured) = view(sub);
            SubscriptionView {
                iid: sub.key.iid(),
                prefix: sub.key.prefix(),
                xtr: self.subscriptions.itr(sub.itr).xtr_id,
                rlocs: &sub.rlocs,
                nonce: sub.nonce,
                remaining,
                configured,
                muted: sub.state == State::Muted,
                behind: sub.behind,
                outstanding: self.outstanding.of_subscription(at),
            }
        });
        (views.collect(), next)
    }

    /// What a Map-Request for a prefix would be told, also where an ETR is asked to answer it.
    pub fn lookup(
        &self,
        iid: InstanceId,
        prefix: Prefix,
        mappings: &impl Mappings,
    ) -> LookupView<'_> {
        let query = EidKey::new(iid, prefix);
        let found = self.find_match(query, mappings);
        let (about, site) = match found {
            Match::Registered(slot) => {
                let holder = self.registrations.entry(slot).holder;
                let site = self.sites.find_xtr(holder).map(|xtr| xtr.site);
                (Some(self.registrations.key(slot)), site)
            }
            Match::Mobile(key, mapping) => (Some(key), self.sites.find_anchor(mapping.anchor)),
            Match::Nothing => (None, None),
        };
        let subscribers = self.subscriptions.covering(about.unwrap_or(query)).len();
        LookupView {
            record: self.record(query, found),
            registered: about.map(EidKey::prefix),
            site: site.map(|site| self.sites.get(site).name.as_str()),
            is_mobile: matches!(found, Match::Mobile(..)),
            subscribers,
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Map-Notify messages sent again, and sent once only because too many waited.
    pub fn retransmitted(&self) -> (u64, u64) {
        (self.outstanding.retransmitted, self.outstanding.unwatched)
    }

    pub fn sizes(&self) -> Sizes {
        Sizes {
            eids: self.registrations.len(),
            pairs: self.pairs.len(),
            rloc_sets: self.registrations.contents_len(),
            xtrs: self.sites.xtrs_len(),
            subscriptions: self.subscriptions.len(),
            outstanding: self.outstanding.len(),
            eid_bytes: self.registrations.heap_bytes(),
        }
    }
}
