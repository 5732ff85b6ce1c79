//! The data plane of relocations without packets: for simulations, and where only the states
//! matter. Time goes on as in the true one; what it would say to other anchors is lost.

use super::{Config, Engine, PathView, TransientError};
use crate::types::transient::{TransientChange, TransientEvent};
use crate::types::{Instant, Prefix};

pub struct Fake {
    engine: Engine,
}

impl Fake {
    pub fn new(config: Config) -> Self {
        Self { engine: Engine::new(config) }
    }

    pub fn apply(&mut self, change: &TransientChange, now: Instant) -> Result<(), TransientError> {
        let prefix = self.engine.apply(change, now)?;
        if let (Some(prefix), TransientChange::Hold { .. } | TransientChange::Gate { .. }) =
            (prefix, change)
        {
            self.engine.tell_holding(prefix);
        }
        Ok(())
    }

    pub fn poll_timeout(&self) -> Instant {
        self.engine.poll_timeout()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let mut out = Vec::new();
        // What one does may be another's cause; each end takes two rounds at most.
        for _ in 0..4 {
            self.engine.handle_timeout(now, &mut out);
            self.engine.flush(usize::MAX, now, &mut out);
            while let Some((prefix, _)) = self.engine.next_closing(now, &mut out) {
                self.engine.finish(prefix, now, &mut out);
            }
            out.clear();
        }
    }

    pub fn pop_event(&mut self) -> Option<TransientEvent> {
        self.engine.pop_event()
    }

    pub fn paths(&mut self, after: Option<Prefix>, limit: usize) -> Vec<PathView> {
        self.engine.paths(after, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Locator;
    use crate::types::transient::{PathEnd, PathEnding, PathKey};

    #[test]
    fn states_come_and_go_by_themselves() {
        let ipv4 = Some([192, 0, 2, 1].into());
        let end = PathEnd { locator: Locator { ipv4, ipv6: None }, port: 1 };
        let mut fake = Fake::new(Config::new(end));
        let prefix: Prefix = "10.1.0.7/32".parse().unwrap();
        let (key, mut now) = (PathKey(1), Instant::ZERO);
        fake.apply(&TransientChange::Hold { prefix, key }, now).unwrap();
        assert_eq!(fake.pop_event(), Some(TransientEvent::Holding { prefix }));
        fake.apply(&TransientChange::Forward { prefix, key, to: end }, now).unwrap();
        let mut told = Vec::new();
        while fake.poll_timeout() < Instant::FAR_FUTURE {
            now = now.max(fake.poll_timeout());
            fake.handle_timeout(now);
            told.extend(std::iter::from_fn(|| fake.pop_event()));
        }
        assert!(matches!(
            told[..],
            [
                TransientEvent::Flushed { .. },
                TransientEvent::Ended { how: PathEnding::Drained, .. }
            ]
        ));
        assert!(fake.paths(None, 1).is_empty());
    }
}
