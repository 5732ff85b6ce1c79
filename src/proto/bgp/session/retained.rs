//! The stale routes of a peer that restarts (RFC 4724 §4.2, RFC 8538 §4.1): for which families the
//! RIB keeps them, and until when. The routes themselves are in the RIB.

use std::time::Duration;

use crate::types::{Family, Instant};

use super::config::Families;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retained {
    Nothing,
    /// The session is down. `until` is the end of the peer's restart time.
    AwaitingPeer {
        families: Families,
        until: Instant,
        stale_until: Instant,
    },
    /// The session is up again; End-of-RIB has yet to come for these.
    AwaitingEndOfRib {
        families: Families,
        stale_until: Instant,
    },
}

impl Retained {
    pub const fn families(self) -> Families {
        match self {
            Self::Nothing => Families::NONE,
            Self::AwaitingPeer { families, .. } | Self::AwaitingEndOfRib { families, .. } => {
                families
            }
        }
    }

    pub fn poll_timeout(self) -> Instant {
        match self {
            Self::Nothing => Instant::FAR_FUTURE,
            Self::AwaitingPeer { until, stale_until, .. } => until.min(stale_until),
            Self::AwaitingEndOfRib { stale_until, .. } => stale_until,
        }
    }

    /// The session went down and `keep` is to be retained. Returns what must not be kept any
    /// longer: without the N bit on both sides that includes what was stale already, so that a
    /// peer which never gets through a restart does not keep its routes alive by trying.
    pub fn lose(
        &mut self,
        keep: Families,
        notification: bool,
        restart_time: Duration,
        stale_time: Duration,
        now: Instant,
    ) -> Families {
        let stale = self.families();
        let expired = if notification { stale.without(keep) } else { stale };
        // The stale timer runs from the first loss: a second one must not extend it.
        let stale_until = match *self {
            Self::AwaitingPeer { stale_until, .. } | Self::AwaitingEndOfRib { stale_until, .. }
                if notification =>
            {
                stale_until
            }
            Self::Nothing | Self::AwaitingPeer { .. } | Self::AwaitingEndOfRib { .. } => {
                now + stale_time
            }
        };
        *self = if keep.is_empty() {
            Self::Nothing
        } else {
            Self::AwaitingPeer { families: keep, until: now + restart_time, stale_until }
        };
        expired
    }

    /// The session is up again, and the peer says that it kept forwarding for `forwarding`.
    /// Returns what it did not keep.
    pub fn resume(&mut self, forwarding: Families) -> Families {
        let families = self.families();
        let stay = families.and(forwarding);
        *self = match *self {
            Self::Nothing => Self::Nothing,
            _ if stay.is_empty() => Self::Nothing,
            Self::AwaitingPeer { stale_until, .. } | Self::AwaitingEndOfRib { stale_until, .. } => {
                Self::AwaitingEndOfRib { families: stay, stale_until }
            }
        };
        families.without(forwarding)
    }

    /// True when routes of this family were awaiting it.
    pub fn end_of_rib(&mut self, family: Family) -> bool {
        match self {
            Self::AwaitingEndOfRib { families, .. } if families.has(family) => {
                families.set(family, false);
                if families.is_empty() {
                    *self = Self::Nothing;
                }
                true
            }
            // An End-of-RIB cannot come while the session is down.
            Self::Nothing | Self::AwaitingPeer { .. } | Self::AwaitingEndOfRib { .. } => false,
        }
    }

    /// Gives up everything.
    pub const fn clear(&mut self) -> Families {
        let families = self.families();
        *self = Self::Nothing;
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTART: Duration = Duration::from_secs(120);
    const STALE: Duration = Duration::from_secs(180);
    const V4: Families = Families { ipv4: true, ipv6: false };

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    /// RFC 4724 §4.2.
    #[test]
    fn a_second_restart_drops_what_was_stale() {
        let mut r = Retained::Nothing;
        assert_eq!(r.lose(Families::ALL, false, RESTART, STALE, at(0)), Families::NONE);
        assert_eq!(r.poll_timeout(), at(120));
        assert_eq!(r.resume(Families::ALL), Families::NONE);
        assert!(r.end_of_rib(Family::Ipv6));
        assert!(!r.end_of_rib(Family::Ipv6));
        assert_eq!(r.lose(Families::ALL, false, RESTART, STALE, at(10)), V4);
    }

    /// RFC 8538 §4.1: with the N bit it stays, but the stale timer is not extended.
    #[test]
    fn with_the_n_bit_the_stale_timer_bounds_all_restarts() {
        let mut r = Retained::Nothing;
        assert_eq!(r.lose(Families::ALL, true, RESTART, STALE, at(0)), Families::NONE);
        assert_eq!(r.resume(Families::ALL), Families::NONE);
        assert_eq!(r.lose(Families::ALL, true, RESTART, STALE, at(100)), Families::NONE);
        assert_eq!(r.poll_timeout(), at(180));
        assert_eq!(r.resume(Families::ALL), Families::NONE);
        assert_eq!(r.poll_timeout(), at(180));
        assert_eq!(r.clear(), Families::ALL);
        assert_eq!(r.poll_timeout(), Instant::FAR_FUTURE);
    }

    /// RFC 4724 §4.2: a family without the Forwarding State bit is dropped at once.
    #[test]
    fn a_family_that_was_not_preserved_is_dropped_on_resumption() {
        let mut r = Retained::Nothing;
        r.lose(Families::ALL, true, RESTART, STALE, at(0));
        assert_eq!(r.resume(V4), Families { ipv4: false, ipv6: true });
        assert_eq!(r.families(), V4);
        assert!(r.end_of_rib(Family::Ipv4));
        assert_eq!(r, Retained::Nothing);
    }
}
