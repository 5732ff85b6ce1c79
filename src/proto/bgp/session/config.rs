//! What the operator decides about one neighbour, as far as the session machine is concerned.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::types::Family;

/// A set of address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    pub const NONE: Self = Self { ipv4: false, ipv6: false };
    pub const ALL: Self = Self { ipv4: true, ipv6: true };

    pub const fn has(self, family: Family) -> bool {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }

    pub const fn set(&mut self, family: Family, present: bool) {
        match family {
            Family::Ipv4 => self.ipv4 = present,
            Family::Ipv6 => self.ipv6 = present,
        }
    }

    pub const fn is_empty(self) -> bool {
        !self.ipv4 && !self.ipv6
    }

    pub const fn and(self, other: Self) -> Self {
        Self { ipv4: self.ipv4 && other.ipv4, ipv6: self.ipv6 && other.ipv6 }
    }

    pub const fn without(self, other: Self) -> Self {
        Self { ipv4: self.ipv4 && !other.ipv4, ipv6: self.ipv6 && !other.ipv6 }
    }

    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |f| self.has(*f))
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<I: IntoIterator<Item = Family>>(families: I) -> Self {
        let mut set = Self::NONE;
        for family in families {
            set.set(family, true);
        }
        set
    }
}

/// Graceful restart (RFC 4724, RFC 8538): what we offer as the one that restarts, and what we do
/// for a peer that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long the peer should keep our routes (12 bits on the wire).
    pub restart_time_s: u16,
    /// Upper bound on keeping the peer's stale routes (RFC 8538 §4.1, the stale timer).
    pub stale_time: Duration,
    /// Offer the N bit: resets by NOTIFICATION are graceful too (RFC 8538 §2).
    pub notification: bool,
    /// This process has taken over from one that spoke BGP before: the Restart State bit of the
    /// first session (RFC 4724 §3).
    pub restarting: bool,
    /// The forwarding entries of that earlier process are still in place.
    pub forwarding_preserved: bool,
}

impl Default for GracefulRestart {
    fn default() -> Self {
        Self {
            restart_time_s: 120,
            stale_time: Duration::from_secs(180),
            notification: true,
            restarting: false,
            forwarding_preserved: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    pub local_as: u32,
    pub remote_as: u32,
    pub router_id: Ipv4Addr,
    /// Never connect, only be connected to.
    pub passive: bool,
    pub families: Families,
    /// What we propose (RFC 4271 §4.2); zero for no keepalives, else at least 3.
    pub hold_time_s: u16,
    /// ConnectRetryTime: how long an attempt may take, and the time between attempts.
    pub connect_retry: Duration,
    /// The first IdleHoldTime; doubles with each failure in a row.
    pub idle_hold_min: Duration,
    pub idle_hold_max: Duration,
    /// A session that lasted this long was not an oscillation.
    pub stable_after: Duration,
    /// SendHoldTime (RFC 9687): how long a peer may leave our octets unread. `None`: for ever.
    pub send_hold: Option<Duration>,
    pub graceful_restart: Option<GracefulRestart>,
    pub extended_messages: bool,
    /// RFC 8950: offer IPv4 NLRI with IPv6 next hops.
    pub extended_next_hop: bool,
    /// After a teardown for too many prefixes, try again after this; `None`: when told to.
    pub max_prefix_restart: Option<Duration>,
}

impl SessionConfig {
    /// The defaults, for what must be said in any case.
    pub fn new(local_as: u32, remote_as: u32, router_id: Ipv4Addr) -> Self {
        Self {
            local_as,
            remote_as,
            router_id,
            passive: false,
            families: Families::ALL,
            hold_time_s: 90,
            // RFC 4271 §10 suggests 120 s. An anchor that cannot tell where its nodes are for two
            // minutes because a reflector rebooted is of no use, and one SYN in 5 s is no load.
            connect_retry: Duration::from_secs(5),
            idle_hold_min: Duration::from_secs(1),
            idle_hold_max: Duration::from_secs(120),
            stable_after: Duration::from_secs(60),
            send_hold: Some(Duration::from_secs(480)),
            graceful_restart: Some(GracefulRestart::default()),
            extended_messages: true,
            extended_next_hop: true,
            max_prefix_restart: None,
        }
    }

    pub const fn is_internal(&self) -> bool {
        self.local_as == self.remote_as
    }
}
