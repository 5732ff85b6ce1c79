//! Our clock reading: microseconds since the node started.
//!
//! Sans-IO rooms never read a clock; the driver hands an `Instant` to every handler. A plain number
//! makes the simulator's clock and the daemon's clock the same type.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Microseconds since the node (or the simulation) started. Monotonic.
///
/// One is added inside, so that zero is free and an `Option<Instant>` has the size of an
/// `Instant`: there is one in each binding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

impl Instant {
    pub const ZERO: Self = Self(NonZeroU64::MIN);
    /// Later than any instant a timer can reach: "never".
    pub const FAR_FUTURE: Self = Self(NonZeroU64::MAX);

    /// Saturates at [`Instant::FAR_FUTURE`].
    pub const fn from_micros(us: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(us))
    }

    pub const fn as_micros(self) -> u64 {
        self.0.get() - 1
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at [`Instant::FAR_FUTURE`].
    fn add(self, rhs: Duration) -> Self {
        let us = u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(us))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.saturating_since(rhs)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.as_micros();
        write!(f, "{}.{:06}s", us / 1_000_000, us % 1_000_000)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instant({})", self.as_micros())
    }
}

impl Default for Instant {
    fn default() -> Self {
        Self::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_zero_ends_at_never_and_an_absent_one_costs_nothing() {
        assert_eq!(Instant::default().as_micros(), 0);
        assert_eq!(Instant::from_micros(7).as_micros(), 7);
        assert_eq!(Instant::from_micros(u64::MAX), Instant::FAR_FUTURE);
        assert_eq!(Instant::ZERO + Duration::MAX, Instant::FAR_FUTURE);
        let second = Instant::ZERO + Duration::from_secs(1);
        assert_eq!(
            (second.to_string(), format!("{second:?}")),
            ("1.000000s".into(), "Instant(1000000)".into())
        );
        assert_eq!(second - Instant::from_micros(1), Duration::from_micros(999_999));
        assert_eq!(Instant::ZERO - second, Duration::ZERO);
        assert_eq!(size_of::<Option<Instant>>(), 8);
    }
}
