//! Who may register what: the sites, their xTRs, and the nonces of these.
//!
//! A Map-Register says whose it is by its Site-ID and xTR-ID when it has them. Otherwise the first
//! EID decides: the sites that may register it, the longest allowed prefix first. Only a few are
//! tried, because each trial costs a digest that somebody unknown makes us compute.
//!
//! The nonce of a register only grows, per xTR and key (RFC 9301 §5.6). Without an xTR-ID it grows
//! per *site* and key, not per source address: the digest does not cover the address, so a
//! register that was heard on the way could be sent again from another one. Two ETRs of one site
//! that send no xTR-ID therefore need a key ID each (§8.4.1 asks for the like).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::key::{EidKey, Lengths};
use super::{NonceRecord, Refusal};
use crate::auth::KeyChain;
use crate::proto::lisp::security::Security;
use crate::types::lisp::{InstanceId, SiteId, XtrId};
use crate::types::{AnchorId, Prefix};

/// Sites whose keys are tried for one message, at most; a message of a further one is refused.
/// Sites that share prefixes (mobile pools) should use Site-IDs.
pub(super) const KEY_TRIALS_MAX: usize = 8;
/// xTRs of one site; a register of one more is refused. They are remembered for their nonces.
pub(super) const XTRS_PER_SITE_MAX: u32 = 4096;

/// A site, as configured.
#[derive(Clone, Debug)]
pub struct Site {
    pub name: String,
    /// The anchor that its registrations of mobile prefixes speak for; unique among the sites, and
    /// the same after a restart, because the stored nonces are filed under it.
    pub anchor: AnchorId,
    /// The Site-ID that its registers must have, if they must have one.
    pub site_id: Option<SiteId>,
    /// The xTRs that may register; empty: any with the key.
    pub xtr_ids: Vec<XtrId>,
    pub keys: KeyChain,
    /// The same secrets, to wrap one-time keys for its ETRs; empty: they are passed none.
    pub security: Vec<Security>,
    pub eid_prefixes: Vec<(InstanceId, Prefix)>,
    /// Whether what is inside its prefixes may be registered, or only they themselves.
    pub accept_more_specifics: bool,
    pub proxy_reply: ProxyReply,
    /// Whether the a bit is honoured; otherwise the latest register counts alone.
    pub allow_merge: bool,
}

/// Who answers Map-Requests for what a site registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyReply {
    /// The Map-Server when the ETR asks for it by the P bit, else the ETR.
    #[default]
    AsAsked,
    /// Always the Map-Server.
    Forced,
}

/// Number of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SiteIndex(u32);

/// Number of an xTR that has registered something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct XtrIndex(u32);

impl XtrIndex {
    pub const NONE: Self = Self(u32::MAX);
}

/// How an xTR is told from others of its site: by what it says, else by where it sends from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XtrName {
    Id(XtrId),
    Source(IpAddr),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Xtr {
    pub site: SiteIndex,
    pub name: XtrName,
    pub id: Option<(XtrId, SiteId)>,
    /// Where it last registered from, and with which key: where it can be told something.
    pub addr: IpAddr,
    pub key_id: u8,
    pub algorithm: u8,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    nonce: u64,
    /// Of the register with this nonce; `None` when it is known from the store only.
    digest: Option<u128>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NonceKey {
    site: SiteIndex,
    xtr: Option<XtrId>,
    key_id: u8,
}

/// What the nonce of an authentic register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    New,
    /// The very register that came last: its Map-Notify was lost. It is acknowledged again and
    /// changes nothing.
    Repeated,
}

pub(super) struct Sites {
    sites: Vec<Site>,
    keys: Vec<Arc<KeyChain>>,
    by_site_id: BTreeMap<SiteId, Vec<SiteIndex>>,
    by_xtr_id: BTreeMap<XtrId, Vec<SiteIndex>>,
    by_anchor: BTreeMap<AnchorId, SiteIndex>,
    allowed: HashMap<EidKey, Vec<SiteIndex>, FixedState>,
    lengths: Lengths,
    /// The allowed prefixes in order, for the gaps between them.
    ordered: BTreeSet<EidKey>,
    xtrs: Vec<Xtr>,
    xtrs_of: Vec<u32>,
    by_name: HashMap<(SiteIndex, XtrName), XtrIndex, FixedState>,
    nonces: HashMap<NonceKey, Seen, FixedState>,
}

impl Sites {
    pub fn new(sites: Vec<Site>, seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        let mut new = Self {
            keys: sites.iter().map(|s| Arc::new(s.keys.clone())).collect(),
            by_site_id: BTreeMap::new(),
            by_xtr_id: BTreeMap::new(),
            by_anchor: BTreeMap::new(),
            allowed: HashMap::with_hasher(state.clone()),
            lengths: Lengths::default(),
            ordered: BTreeSet::new(),
            xtrs: Vec::new(),
            xtrs_of: vec![0; sites.len()],
            by_name: HashMap::with_hasher(state.clone()),
            nonces: HashMap::with_hasher(state),
            sites: Vec::new(),
        };
        for (at, site) in (0..).map(SiteIndex).zip(&sites) {
            if let Some(id) = site.site_id {
                new.by_site_id.entry(id).or_default().push(at);
            }
            for &id in &site.xtr_ids {
                new.by_xtr_id.entry(id).or_default().push(at);
            }
            new.by_anchor.entry(site.anchor).or_insert(at);
            for &(iid, prefix) in &site.eid_prefixes {
                let key = EidKey::new(iid, prefix);
                new.allowed.entry(key).or_default().push(at);
                if new.ordered.insert(key) {
                    new.lengths.add(key);
                }
            }
        }
        new.sites = sites;
        new
    }

    pub fn get(&self, site: SiteIndex) -> &Site {
        &self.sites[site.0 as usize]
    }

    pub fn keys(&self, site: SiteIndex) -> &Arc<KeyChain> {
        &self.keys[site.0 as usize]
    }

    pub fn find_anchor(&self, anchor: AnchorId) -> Option<SiteIndex> {
        self.by_anchor.get(&anchor).copied()
    }

    pub fn find_xtr(&self, xtr: XtrIndex) -> Option<&Xtr> {
        self.xtrs.get(xtr.0 as usize)
    }

    pub fn xtrs_len(&self) -> usize {
        self.xtrs.len()
    }

    /// The anchor that an xTR speaks for.
    pub fn anchor_of(&self, xtr: XtrIndex) -> Option<AnchorId> {
        self.find_xtr(xtr).map(|x| self.get(x.site).anchor)
    }

    /// The site whose key the message proves to have, and the ID of that key.
    pub fn authenticate(
        &self,
        raw: &[u8],
        id: Option<(XtrId, SiteId)>,
        first: Option<EidKey>,
    ) -> Result<(SiteIndex, u8), Refusal> {
        let mut tried = 0;
        let mut by = |candidates: &[SiteIndex]| {
            for &site in candidates {
                if !self.admits(site, id) {
                    continue;
                }
                if tried == KEY_TRIALS_MAX {
                    return Some(Err(Refusal::KeyTrials));
                }
                tried += 1;
                if let Ok(key_id) = self.keys(site).verify(raw) {
                    return Some(Ok((site, key_id)));
                }
            }
            None
        };
        let named = id.and_then(|(xtr, site)| {
            self.by_site_id.get(&site).or_else(|| self.by_xtr_id.get(&xtr))
        });
        let found = match (named, first) {
            // Whoever says who it is, is that or nobody.
            (Some(named), _) => by(named),
            (None, Some(first)) => self
                .lengths
                .covering(first)
                .filter_map(|key| self.allowed.get(&key))
                .find_map(|sites| by(sites)),
            (None, None) => None,
        };
        found.unwrap_or(if tried == 0 {
            Err(Refusal::UnknownSite)
        } else {
            Err(Refusal::Authentication)
        })
    }

    /// Whether a site takes registers of this sender: of its own IDs, if it has some.
    fn admits(&self, site: SiteIndex, id: Option<(XtrId, SiteId)>) -> bool {
        let site = self.get(site);
        let xtr_known =
            site.xtr_ids.is_empty() || id.is_some_and(|(xtr, _)| site.xtr_ids.contains(&xtr));
        let site_known = match (site.site_id, id) {
            (Some(wanted), Some((_, said))) => wanted == said,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        xtr_known && site_known
    }

    /// Checks the nonce of an authentic register and remembers it.
    pub fn take_nonce(
        &mut self,
        site: SiteIndex,
        xtr: Option<XtrId>,
        key_id: u8,
        nonce: u64,
        digest: &[u8],
    ) -> Result<Freshness, Refusal> {
        let digest = digest
            .first_chunk::<12>()
            .map(|d| d.iter().fold(0_u128, |sum, &octet| sum << 8 | u128::from(octet)));
        let new = Seen { nonce, digest };
        match self.nonces.entry(NonceKey { site, xtr, key_id }) {
            std::collections::hash_map::Entry::Vacant(place) => {
                if self.xtrs_of[site.0 as usize] >= XTRS_PER_SITE_MAX {
                    return Err(Refusal::XtrLimit);
                }
                place.insert(new);
                Ok(Freshness::New)
            }
            std::collections::hash_map::Entry::Occupied(mut seen) => {
                let last = *seen.get();
                if nonce > last.nonce {
                    seen.insert(new);
                    Ok(Freshness::New)
                } else if nonce == last.nonce && digest.is_some() && digest == last.digest {
                    Ok(Freshness::Repeated)
                } else {
                    Err(Refusal::Replay)
                }
            }
        }
    }

    /// A nonce from the store, at construction. Of a site that is no longer there: forgotten.
    pub fn restore(&mut self, anchor: AnchorId, xtr: Option<XtrId>, key_id: u8, nonce: u64) {
        if let Some(site) = self.find_anchor(anchor) {
            let seen = self
                .nonces
                .entry(NonceKey { site, xtr, key_id })
                .or_insert(Seen { nonce, digest: None });
            seen.nonce = seen.nonce.max(nonce);
        }
    }

    /// The record of the nonce that was just taken.
    pub fn record(
        &self,
        site: SiteIndex,
        xtr: Option<XtrId>,
        key_id: u8,
        nonce: u64,
    ) -> NonceRecord {
        NonceRecord::Register { site: self.get(site).anchor, xtr, key_id, nonce }
    }

    /// The number of an xTR, new or known; its address and key are as of now.
    pub fn get_xtr(&mut self, xtr: Xtr) -> Result<XtrIndex, Refusal> {
        if let Some(&at) = self.by_name.get(&(xtr.site, xtr.name)) {
            self.xtrs[at.0 as usize] = xtr;
            return Ok(at);
        }
        let count = &mut self.xtrs_of[xtr.site.0 as usize];
        if *count >= XTRS_PER_SITE_MAX {
            return Err(Refusal::XtrLimit);
        }
        *count += 1;
        let at = XtrIndex(u32::try_from(self.xtrs.len()).map_err(|_| Refusal::XtrLimit)?);
        self.xtrs.push(xtr);
        self.by_name.insert((xtr.site, xtr.name), at);
        Ok(at)
    }

    /// Whether a site may register this EID-prefix.
    pub fn may_register(&self, site: SiteIndex, key: EidKey) -> bool {
        let more_specifics = self.get(site).accept_more_specifics;
        self.lengths
            .covering(key)
            .take_while(|covering| more_specifics || *covering == key)
            .any(|covering| self.allowed.get(&covering).is_some_and(|s| s.contains(&site)))
    }

    /// The longest configured prefix that covers a key.
    pub fn find_configured(&self, key: EidKey) -> Option<EidKey> {
        self.lengths.covering(key).find(|k| self.allowed.contains_key(k))
    }

    /// The configured prefixes next to a key in order.
    pub fn neighbors(&self, key: EidKey) -> [Option<EidKey>; 2] {
        let before = self.ordered.range(..key).next_back().copied();
        [before, self.ordered.range(key..).next().copied()]
    }
}
