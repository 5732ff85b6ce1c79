//! Sources that are not delivered here yet. A host that has just arrived sends before its context
//! is here; its packets wait, within small limits, until it is authorised or refused.
//!
//! Sources can be forged, so nothing here is promised: many sources share one budget, each has a
//! small one of its own, and all is gone after a second. When one is full, the newest packet is
//! dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::Common;
use super::config::{TransientDrop, TransientLimits};
use super::packet::HEADROOM;
use crate::dataplane::tun::Table;
use crate::types::{Instant, Prefix};

struct Source {
    since: Instant,
    packets: Vec<Vec<u8>>,
}

/// Prefixes that were passed a moment ago; the oldest is forgotten.
const PASSES_MAX: usize = 65_536;

#[derive(Default)]
pub struct Sources {
    waiting: BTreeMap<IpAddr, Source>,
    ages: BTreeSet<(Instant, IpAddr)>,
    /// Until when.
    passes: Table<Instant>,
    pass_ends: BTreeSet<(Instant, Prefix)>,
    /// On their way out, with the room before them.
    free: VecDeque<Vec<u8>>,
    packets: usize,
    octets: usize,
    /// Passed, but not past us yet, and since when.
    shut: VecDeque<(Instant, Prefix)>,
}

/// So long after a prefix was passed the kernel delivers to it, and what it sent before is gone.
const SHUT_FOR: Duration = Duration::from_millis(20);

impl Sources {
    /// Packets of the prefix wait.
    pub fn has(&self, prefix: Prefix) -> bool {
        let mut from = self.waiting.range(prefix.addr()..);
        from.next().is_some_and(|(source, _)| prefix.contains_addr(*source))
    }

    /// Its packets come here until [`Self::next_unshut`] says that they need not any more.
    pub fn note_shut(&mut self, prefix: Prefix, now: Instant) {
        self.shut.push_back((now, prefix));
    }

    pub fn next_unshut(&mut self, now: Instant) -> Option<Prefix> {
        let (since, prefix) = *self.shut.front()?;
        if since + SHUT_FOR > now || !self.free.is_empty() {
            return None;
        }
        self.shut.pop_front();
        Some(prefix)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps the packet, or drops it. False when its source was passed: it goes on now.
    pub fn keep(
        &mut self,
        source: IpAddr,
        octets: &[u8],
        now: Instant,
        common: &mut Common,
    ) -> bool {
        if let Some((_, until)) = self.passes.lookup_mut(source)
            && *until > now
        {
            if self.free.is_empty() {
                return false;
            }
            // Behind those of its source that are on their way.
            self.put(octets, common);
            return true;
        }
        let limits = common.config.limits;
        let full = self.packets >= limits.source_packets
            || self.octets + octets.len() > limits.source_octets;
        if !self.waiting.contains_key(&source) {
            if full || self.waiting.len() >= limits.sources {
                common.count(TransientDrop::SourceFull);
                return true;
            }
            self.ages.insert((now, source));
        }
        let waiting =
            self.waiting.entry(source).or_insert(Source { since: now, packets: Vec::new() });
        if full || waiting.packets.len() >= limits.packets_per_source {
            common.count(TransientDrop::SourceFull);
            return true;
        }
        waiting.packets.push(octets.to_vec());
        self.packets += 1;
        self.octets += octets.len();
        common.totals.held += 1;
        common.totals.held_octets += (octets.len() - HEADROOM) as u64;
        true
    }

    fn put(&mut self, octets: &[u8], common: &mut Common) {
        let limits = &common.config.limits;
        if self.packets >= limits.source_packets
            || self.octets + octets.len() > limits.source_octets
        {
            return common.count(TransientDrop::SourceFull);
        }
        self.packets += 1;
        self.octets += octets.len();
        self.free.push_back(octets.to_vec());
    }

    pub fn pass(&mut self, prefix: Prefix, now: Instant, limits: &TransientLimits) {
        let until = now + limits.source_pass;
        if let Some(old) = self.passes.insert(prefix, until) {
            self.pass_ends.remove(&(old, prefix));
        }
        self.pass_ends.insert((until, prefix));
        if self.pass_ends.len() > PASSES_MAX
            && let Some((_, prefix)) = self.pass_ends.pop_first()
        {
            self.passes.remove(prefix);
        }
        for source in self.sources_in(prefix) {
            if let Some(waiting) = self.remove(source) {
                self.free.extend(waiting.packets);
            }
        }
    }

    pub fn refuse(&mut self, prefix: Prefix, common: &mut Common) {
        if let Some(until) = self.passes.remove(prefix) {
            self.pass_ends.remove(&(until, prefix));
        }
        for source in self.sources_in(prefix) {
            self.drop_source(source, TransientDrop::SourceRefused, common);
        }
    }

    fn sources_in(&self, prefix: Prefix) -> Vec<IpAddr> {
        // Addresses are in order, and a prefix is a range of them.
        let from = self.waiting.range(prefix.addr()..).map(|(source, _)| *source);
        from.take_while(|source| prefix.contains_addr(*source)).collect()
    }

    fn remove(&mut self, source: IpAddr) -> Option<Source> {
        let waiting = self.waiting.remove(&source)?;
        self.ages.remove(&(waiting.since, source));
        Some(waiting)
    }

    fn drop_source(&mut self, source: IpAddr, why: TransientDrop, common: &mut Common) {
        for octets in self.remove(source).into_iter().flat_map(|waiting| waiting.packets) {
            self.packets -= 1;
            self.octets -= octets.len();
            common.count(why);
        }
    }

    /// The next packet of a source that was passed, in order.
    pub fn pop_free(&mut self) -> Option<Vec<u8>> {
        let octets = self.free.pop_front()?;
        self.packets -= 1;
        self.octets -= octets.len();
        Some(octets)
    }

    pub fn poll_timeout(&self, limits: &TransientLimits) -> Option<Instant> {
        if !self.free.is_empty() {
            return Some(Instant::ZERO);
        }
        let age = self.ages.first().map(|(since, _)| *since + limits.source_wait);
        let pass = self.pass_ends.first().map(|(until, _)| *until);
        let shut = self.shut.front().map(|(since, _)| *since + SHUT_FOR);
        [age, pass, shut].into_iter().flatten().min()
    }

    pub fn expire(&mut self, now: Instant, common: &mut Common) {
        while let Some(&(since, source)) = self.ages.first()
            && since + common.config.limits.source_wait <= now
        {
            self.drop_source(source, TransientDrop::SourceAge, common);
        }
        while let Some(&(until, prefix)) = self.pass_ends.first()
            && until <= now
        {
            self.pass_ends.pop_first();
            self.passes.remove(prefix);
        }
    }
}
