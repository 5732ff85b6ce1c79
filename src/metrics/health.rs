//! Alive and ready: two questions with two audiences. A supervisor restarts what is not alive; a
//! load balancer or a script waits for what is not ready.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

/// The routing thread beats at least every second; longer silence than this is death.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the daemon still waits for before it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Listening sockets are open.
    Sockets,
    /// Bindings were read from the store.
    Store,
    /// The kernel's routes were compared with ours.
    Kernel,
    /// Neighbours told what they know (End-of-RIB), or had their time to.
    Routes,
}

impl Waiting {
    pub const ALL: [Self; 4] = [Self::Sockets, Self::Store, Self::Kernel, Self::Routes];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::Store => "store",
            Self::Kernel => "kernel",
            Self::Routes => "routes",
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

pub struct Health {
    started: Instant,
    /// Milliseconds after `started` of the last beat.
    beat_ms: AtomicU64,
    /// A bit for each [`Waiting`]; none left is ready.
    waiting: AtomicU32,
    ready: IntGauge,
}

impl Health {
    pub(super) fn new(ready: IntGauge) -> Self {
        let all = Waiting::ALL.iter().fold(0, |bits, w| bits | w.bit());
        Self {
            started: Instant::now(),
            beat_ms: AtomicU64::new(0),
            waiting: AtomicU32::new(all),
            ready,
        }
    }

    /// "The routing thread still turns": at least once a second.
    pub fn beat(&self) {
        self.beat_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// One condition is met, or does not apply to this configuration.
    pub fn done(&self, what: Waiting) {
        let left = self.waiting.fetch_and(!what.bit(), Ordering::Relaxed) & !what.bit();
        if left == 0 {
            self.ready.set(1);
        }
    }

    pub fn is_alive(&self) -> bool {
        let silence = self.now_ms().saturating_sub(self.beat_ms.load(Ordering::Relaxed));
        Duration::from_millis(silence) < SILENCE_MAX
    }

    pub fn is_ready(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    pub fn waiting_for(&self) -> Vec<String> {
        let bits = self.waiting.load(Ordering::Relaxed);
        let left = Waiting::ALL.into_iter().filter(|w| bits & w.bit() != 0);
        left.map(|w| w.as_str().to_owned()).collect()
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
