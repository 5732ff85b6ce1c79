//! The event stream of `killick monitor`: one ring that the routing thread writes without ever
//! waiting, and readers that follow it. A reader that falls a whole ring behind is told so and
//! dropped; nobody else notices.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use super::views::{Event, EventView, VERSION};

/// Events kept for a slow reader. At the limit the reader is dropped and counted.
pub const EVENTS_KEPT: usize = 8_192;

/// The writing end; cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Arc<EventView>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(EVENTS_KEPT))
    }
}

impl Events {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether anybody listens: ask before an event is put together.
    pub fn has_readers(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub fn send(&self, event: Event) {
        if self.has_readers() {
            // An error says only that the last reader left meanwhile.
            let _ = self.0.send(Arc::new(stamped(event)));
        }
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Arc<EventView>> {
        self.0.subscribe()
    }
}

/// With the wall clock, for people; nothing is decided by it.
pub fn stamped(event: Event) -> EventView {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    EventView { version: VERSION, unix_us, event }
}
