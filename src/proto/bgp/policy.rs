//! What a BGP peer may tell us and what it is told.
//!
//! Prefix lists only: a daemon that announces host routes needs to say which pools they may come
//! from, not a language. RFC 8212: without a policy, nothing is accepted from an external peer and
//! nothing is sent to it; whoever builds the policies decides that, [`PrefixFilter::None`] is the
//! default.

use crate::types::{Family, Prefix};

/// Permits `prefix` and more specific ones whose length is within `ge..=le`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixRule {
    pub prefix: Prefix,
    pub ge: u8,
    pub le: u8,
}

impl PrefixRule {
    /// Exactly this prefix.
    pub const fn exact(prefix: Prefix) -> Self {
        Self { prefix, ge: prefix.len(), le: prefix.len() }
    }

    /// This prefix and everything inside it.
    pub const fn or_longer(prefix: Prefix) -> Self {
        Self { prefix, ge: prefix.len(), le: prefix.family().bits() }
    }

    pub const fn permits(&self, prefix: Prefix) -> bool {
        self.ge <= prefix.len() && prefix.len() <= self.le && self.prefix.contains(prefix)
    }
}

/// Which prefixes pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum PrefixFilter {
    #[default]
    None,
    All,
    /// Those that any rule permits. Rules are walked in order: keep the list short.
    Permit(Vec<PrefixRule>),
}

impl PrefixFilter {
    pub fn permits(&self, prefix: Prefix) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Permit(rules) => rules.iter().any(|rule| rule.permits(prefix)),
        }
    }

    /// True when no prefix of `family` can be refused.
    pub fn permits_all(&self, family: Family) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Permit(rules) => rules.iter().any(|rule| {
                rule.prefix.family() == family
                    && rule.prefix.len() == 0
                    && rule.ge == 0
                    && rule.le == family.bits()
            }),
        }
    }
}

/// From a peer into the Adj-RIB-In. What is refused is counted, not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ImportPolicy {
    pub filter: PrefixFilter,
    /// Replaces LOCAL_PREF of what is accepted.
    pub local_pref: Option<u32>,
}

impl ImportPolicy {
    pub const fn accept_all() -> Self {
        Self { filter: PrefixFilter::All, local_pref: None }
    }
}

/// From the Loc-RIB to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExportPolicy {
    pub filter: PrefixFilter,
    /// To internal peers, own address as next hop of what was learnt from external ones.
    /// External peers always get it, except for routes of our own, whose next hop is kept.
    pub next_hop_self: bool,
}

impl ExportPolicy {
    pub const fn send_all() -> Self {
        Self { filter: PrefixFilter::All, next_hop_self: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_permits_by_containment_and_length() {
        let pool = PrefixRule { prefix: p("10.1.0.0/16"), ge: 32, le: 32 };
        assert!(pool.permits(p("10.1.2.3/32")));
        assert!(!pool.permits(p("10.1.2.0/24")), "shorter than ge");
        assert!(!pool.permits(p("10.2.0.1/32")), "outside");
        assert!(!PrefixRule::exact(p("10.1.0.0/16")).permits(p("10.1.0.0/17")));
        assert!(!PrefixRule::or_longer(p("0.0.0.0/0")).permits(p("2001:db8::/64")));
    }

    #[test]
    fn permits_all_is_per_family() {
        let v4 = PrefixFilter::Permit(vec![PrefixRule::or_longer(p("0.0.0.0/0"))]);
        assert!(v4.permits_all(Family::Ipv4));
        assert!(!v4.permits_all(Family::Ipv6));
        assert!(PrefixFilter::All.permits_all(Family::Ipv6));
        assert!(!PrefixFilter::default().permits(p("10.0.0.1/32")));
    }
}
