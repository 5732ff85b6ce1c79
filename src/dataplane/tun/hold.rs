//! The first packets to a destination that has no mapping yet, until there is one.
//!
//! Limits are by destination and in total, in packets and octets, and by age. What happens when
//! one is reached: the packet that came last is dropped and counted, because the first ones open
//! connections and the later ones are sent again by their senders anyway. What is too old is
//! dropped too: its sender has sent it again, and both arriving would confuse it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::types::{Instant, Prefix};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldLimits {
    pub destinations: usize,
    pub packets_per_destination: usize,
    pub packets: usize,
    pub octets: usize,
    pub age: Duration,
}

impl Default for HoldLimits {
    /// A Map-Request is answered in milliseconds, and asked again after a second: two attempts,
    /// and room for the burst that a busy sender makes meanwhile.
    fn default() -> Self {
        Self {
            destinations: 4_096,
            packets_per_destination: 256,
            packets: 65_536,
            octets: 32 << 20,
            age: Duration::from_secs(2),
        }
    }
}

struct Held {
    at: Instant,
    octets: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Held>,
    /// When the control plane was last told.
    asked_at: Instant,
}

/// Why a packet is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The queue of this destination.
    Destination,
    /// All queues together.
    Total,
}

pub struct Hold {
    limits: HoldLimits,
    queues: BTreeMap<IpAddr, Queue>,
    /// The age of each queue's first packet.
    ages: BTreeSet<(Instant, IpAddr)>,
    packets: usize,
    octets: usize,
}

/// What came of holding a packet.
pub struct Kept {
    pub result: Result<(), Full>,
    /// The control plane is to be told: the first packet, or none was answered for a while.
    pub ask: bool,
}

/// Every so often the control plane hears again of a destination that packets wait for.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Hold {
    pub fn new(limits: HoldLimits) -> Self {
        Self { limits, queues: BTreeMap::new(), ages: BTreeSet::new(), packets: 0, octets: 0 }
    }

    pub fn packets(&self) -> usize {
        self.packets
    }

    pub fn is_empty(&self) -> bool {
        self.packets == 0
    }

    pub fn keep(&mut self, destination: IpAddr, packet: &[u8], now: Instant) -> Kept {
        let limits = &self.limits;
        let fits = self.packets < limits.packets && self.octets + packet.len() <= limits.octets;
        if !self.queues.contains_key(&destination) && self.queues.len() >= limits.destinations {
            return Kept { result: Err(Full::Total), ask: false };
        }
        let queue = self.queues.entry(destination).or_default();
        let first = queue.packets.is_empty();
        let ask = first || now.saturating_since(queue.asked_at) >= ASK_AGAIN;
        if ask {
            queue.asked_at = now;
        }
        let result = if queue.packets.len() >= limits.packets_per_destination {
            Err(Full::Destination)
        } else if !fits {
            Err(Full::Total)
        } else {
            if first {
                self.ages.insert((now, destination));
            }
            queue.packets.push_back(Held { at: now, octets: packet.to_vec() });
            self.packets += 1;
            self.octets += packet.len();
            Ok(())
        };
        if queue.packets.is_empty() {
            self.queues.remove(&destination);
        }
        Kept { result, ask }
    }

    /// Destinations with held packets inside `prefix`, in order.
    pub fn destinations(&self, prefix: Prefix) -> Vec<IpAddr> {
        self.queues
            .range(prefix.addr()..)
            .map(|(&destination, _)| destination)
            .take_while(|&destination| prefix.contains_addr(destination))
            .collect()
    }

    /// Takes out the packets to a destination, in the order they came.
    pub fn take(&mut self, destination: IpAddr) -> impl Iterator<Item = Vec<u8>> + use<> {
        let queue = self.queues.remove(&destination).unwrap_or_default();
        if let Some(first) = queue.packets.front() {
            self.ages.remove(&(first.at, destination));
        }
        self.packets -= queue.packets.len();
        self.octets -= queue.packets.iter().map(|held| held.octets.len()).sum::<usize>();
        queue.packets.into_iter().map(|held| held.octets)
    }

    /// When [`Self::expire_old`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ages.first().map(|&(at, _)| at + self.limits.age)
    }

    /// Drops what is too old; how many.
    pub fn expire_old(&mut self, now: Instant) -> u64 {
        let mut expired = 0;
        while let Some(&(at, destination)) = self.ages.first()
            && at + self.limits.age <= now
        {
            self.ages.pop_first();
            let Some(queue) = self.queues.get_mut(&destination) else { continue };
            while let Some(held) = queue.packets.front()
                && held.at + self.limits.age <= now
            {
                self.packets -= 1;
                self.octets -= held.octets.len();
                queue.packets.pop_front();
                expired += 1;
            }
            match queue.packets.front() {
                Some(first) => {
                    self.ages.insert((first.at, destination));
                }
                None => {
                    self.queues.remove(&destination);
                }
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HoldLimits {
        HoldLimits {
            destinations: 3,
            packets_per_destination: 4,
            packets: 8,
            octets: 100,
            age: Duration::from_secs(2),
        }
    }

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    #[test]
    fn each_limit_drops_the_newest_and_the_rest_comes_out_in_order() {
        let mut hold = Hold::new(limits());
        for n in 0..4 {
            let kept = hold.keep(ip(1), &[n; 10], at(1));
            assert_eq!((kept.result, kept.ask), (Ok(()), n == 0));
        }
        assert_eq!(hold.keep(ip(1), &[9; 10], at(1)).result, Err(Full::Destination));
        for n in 0..4 {
            assert_eq!(hold.keep(ip(2), &[n; 10], at(2)).result, Ok(()));
        }
        assert_eq!(hold.keep(ip(3), &[0; 1], at(3)).result, Err(Full::Total), "packets");
        let out: Vec<u8> = hold.take(ip(1)).map(|p| p[0]).collect();
        assert_eq!(out, [0, 1, 2, 3]);
        assert_eq!((hold.packets(), hold.octets), (4, 40));
        assert_eq!(hold.keep(ip(3), &[0; 61], at(3)).result, Err(Full::Total), "octets");
        assert_eq!(hold.keep(ip(3), &[0; 60], at(3)).result, Ok(()));
        assert_eq!(hold.keep(ip(4), &[], at(3)).result, Ok(()));
        let refused = hold.keep(ip(5), &[], at(3));
        assert_eq!((refused.result, refused.ask), (Err(Full::Total), false), "destinations");
        assert_eq!(hold.destinations("10.0.0.0/30".parse().unwrap()), [ip(2), ip(3)]);
        assert_eq!(hold.destinations("0.0.0.0/0".parse().unwrap()), [ip(2), ip(3), ip(4)]);
    }

    #[test]
    fn what_is_too_old_is_dropped_and_nothing_else() {
        let mut hold = Hold::new(limits());
        assert_eq!(hold.poll_timeout(), None);
        for ms in [0, 1000, 2500] {
            assert!(hold.keep(ip(1), &[7], at(ms)).ask, "asked again each second");
        }
        assert_eq!(hold.keep(ip(2), &[7], at(500)).result, Ok(()));
        assert_eq!(hold.poll_timeout(), Some(at(2000)));
        assert_eq!(hold.expire_old(at(1999)), 0);
        assert_eq!(hold.expire_old(at(2600)), 2);
        assert_eq!(hold.poll_timeout(), Some(at(3000)));
        assert_eq!(hold.expire_old(at(60_000)), 2);
        assert!(hold.is_empty());
        assert_eq!((hold.octets, hold.poll_timeout()), (0, None));
        assert_eq!(hold.take(ip(1)).count(), 0);
    }
}
