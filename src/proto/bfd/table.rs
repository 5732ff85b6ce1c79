//! All sessions: which one a packet is for, and which one is due next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::session::{Change, Discard, Random, Said, Session, SessionConfig, SessionCounters};
use crate::types::Instant;
use crate::wire::bfd::{Control, Diagnostic, State};

/// Sessions: each neighbour and each other anchor may have one. One more is refused.
pub const SESSIONS_MAX: usize = 4_096;

/// How far away the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hops {
    /// RFC 5881, UDP 3784. A packet with another TTL than 255 is not from the link.
    Single,
    /// RFC 5883, UDP 4784.
    Multi,
}

impl Hops {
    pub const ALL: [Self; 2] = [Self::Single, Self::Multi];
}

/// What a session watches: there is one for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    pub hops: Hops,
    pub remote: IpAddr,
    /// `None`: whatever address the kernel chooses.
    pub local: Option<IpAddr>,
    /// `None`: any. A session over one hop belongs to the link that the address is on.
    pub interface: Option<String>,
    /// Least TTL of a packet over many hops; 0 is any.
    pub ttl_min: u8,
}

impl Path {
    pub fn new(hops: Hops, remote: IpAddr) -> Self {
        Self { hops, remote, local: None, interface: None, ttl_min: 0 }
    }

    /// RFC 5881 §5 leaves no choice.
    const fn ttl_min(&self) -> u8 {
        match self.hops {
            Hops::Single => 255,
            Hops::Multi => self.ttl_min,
        }
    }
}

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// By the port it came to.
    pub hops: Hops,
    pub from: IpAddr,
    pub to: Option<IpAddr>,
    /// `None`: the kernel did not tell; then nothing is known, and the packet is not believed.
    pub ttl: Option<u8>,
    /// Where it is known.
    pub interface: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A packet of the session with this discriminator.
    Send {
        session: u32,
        octets: Vec<u8>,
    },
    Changed {
        session: u32,
        change: Change,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error("too many BFD sessions (at most {SESSIONS_MAX})")]
    TooMany,
    #[error("two BFD sessions to one address differ in what they require")]
    Different,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: u64,
    pub received: u64,
    discarded: [u64; Discard::ALL.len()],
    transitions: [u64; 4],
}

impl Counters {
    pub fn discarded(&self, why: Discard) -> u64 {
        self.discarded[why.index()]
    }

    /// Into a state.
    pub const fn transitions(&self, to: State) -> u64 {
        self.transitions[to as usize]
    }
}

/// One session, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    pub path: Path,
    pub discriminator: u32,
    pub remote_discriminator: u32,
    pub state: State,
    pub remote_state: State,
    pub diagnostic: Diagnostic,
    pub remote_diagnostic: Diagnostic,
    pub control_plane_independent: bool,
    pub authenticated: bool,
    pub transmit_interval: Duration,
    pub detection_time: Duration,
    pub multiplier: u8,
    pub since: Instant,
    pub counters: SessionCounters,
}

#[derive(Debug)]
struct Entry {
    path: Path,
    session: Session,
    /// Its place in `timers`.
    due: Instant,
}

#[derive(Debug)]
pub struct Table {
    /// By our discriminator.
    sessions: BTreeMap<u32, Entry>,
    by_path: BTreeMap<Path, u32>,
    timers: BTreeSet<(Instant, u32)>,
    random: Random,
    counters: Counters,
    sessions_max: usize,
    said: Vec<Said>,
}

impl Table {
    /// Discriminators and jitter come from the seed. It is to be another one after each start: a
    /// peer tells by our discriminator that we are new.
    pub fn new(seed: u64) -> Self {
        Self::with_sessions_max(seed, SESSIONS_MAX)
    }

    pub(super) fn with_sessions_max(seed: u64, sessions_max: usize) -> Self {
        Self {
            sessions: BTreeMap::new(),
            by_path: BTreeMap::new(),
            timers: BTreeSet::new(),
            random: Random(seed),
            counters: Counters::default(),
            sessions_max,
            said: Vec::new(),
        }
    }

    /// A session on this path; the one that is there already when there is one, with the faster
    /// timers of both (RFC 5882 §4.1). Returns its discriminator.
    pub fn add(
        &mut self,
        path: Path,
        config: SessionConfig,
        now: Instant,
    ) -> Result<u32, AddError> {
        let same = |p: &&Path| p.hops == path.hops && p.remote == path.remote;
        let known = self.by_path.keys().find(|p| same(p) && overlap(&p.local, &path.local));
        if let Some(known) = known {
            let discriminator = self.by_path[known];
            let entry = self.sessions.get_mut(&discriminator).expect("named by by_path");
            let id = |key: &Option<crate::auth::BfdKey>| {
                key.as_ref().map(|k| (k.id(), k.is_meticulous()))
            };
            let of = entry.session.config();
            if *known != path || id(&of.key) != id(&config.key) {
                return Err(AddError::Different);
            }
            entry.session.tighten(&config, now);
            self.rearm(discriminator);
            return Ok(discriminator);
        }
        if self.sessions.len() >= self.sessions_max {
            return Err(AddError::TooMany);
        }
        let discriminator = self.free_discriminator();
        let random = Random(self.random.next());
        let session = Session::new(config, discriminator, random, now);
        let due = session.poll_timeout();
        self.timers.insert((due, discriminator));
        self.by_path.insert(path.clone(), discriminator);
        self.sessions.insert(discriminator, Entry { path, session, due });
        Ok(discriminator)
    }

    /// Random, so that somebody who is not on the path cannot name it; never 0.
    fn free_discriminator(&mut self) -> u32 {
        loop {
            let candidate = (self.random.next() >> 32) as u32;
            if candidate != 0 && !self.sessions.contains_key(&candidate) {
                return candidate;
            }
        }
    }

    pub fn path(&self, session: u32) -> Option<&Path> {
        self.sessions.get(&session).map(|entry| &entry.path)
    }

    pub fn state(&self, session: u32) -> Option<State> {
        self.sessions.get(&session).map(|entry| entry.session.state())
    }

    /// Sessions in a state.
    pub fn in_state(&self, state: State) -> usize {
        self.sessions.values().filter(|entry| entry.session.state() == state).count()
    }

    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// True when which interface a packet came over matters to some session.
    pub fn needs_interfaces(&self) -> bool {
        self.by_path.keys().any(|path| path.interface.is_some())
    }

    /// A payload that came to one of the ports.
    pub fn handle_datagram(
        &mut self,
        arrival: Arrival<'_>,
        payload: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match self.receive(arrival, payload, now, out) {
            Ok(()) => self.counters.received += 1,
            Err(why) => self.counters.discarded[why.index()] += 1,
        }
    }

    fn receive(
        &mut self,
        arrival: Arrival<'_>,
        payload: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Discard> {
        // Before anything is read: this is what keeps the rest of the world off the link.
        if arrival.hops == Hops::Single && arrival.ttl != Some(255) {
            return Err(Discard::Ttl);
        }
        let (control, len) = Control::decode(payload).map_err(Discard::Malformed)?;
        let found = match control.your_discriminator {
            0 => self.find(arrival),
            ours => Some(ours),
        };
        let discriminator = found.ok_or(Discard::UnknownSession)?;
        let entry = self.sessions.get_mut(&discriminator).ok_or(Discard::UnknownSession)?;
        let path = &entry.path;
        // One that came over the other port, or another link, is about another path.
        if path.hops != arrival.hops || !on_interface(path, arrival) {
            return Err(Discard::UnknownSession);
        }
        if arrival.ttl.is_none_or(|ttl| ttl < path.ttl_min()) {
            entry.session.note_discard();
            return Err(Discard::Ttl);
        }
        let mut said = std::mem::take(&mut self.said);
        let result = entry.session.handle_packet(&control, &payload[..len], now, &mut said);
        if result.is_err() {
            entry.session.note_discard();
        }
        self.carry(discriminator, &mut said, out);
        self.said = said;
        result
    }

    /// By where it came from, when the peer does not know us yet.
    fn find(&self, arrival: Arrival<'_>) -> Option<u32> {
        let Arrival { hops, from, to, .. } = arrival;
        let mut path = Path::new(hops, from.to_canonical());
        // Paths are sorted by hops and address first: there are few with the same.
        path.local = None;
        self.by_path
            .range(path.clone()..)
            .take_while(|(p, _)| p.hops == path.hops && p.remote == path.remote)
            .find(|(p, _)| {
                let local = to.map(|to| to.to_canonical());
                p.local.is_none_or(|l| local == Some(l)) && on_interface(p, arrival)
            })
            .map(|(_, discriminator)| *discriminator)
    }

    pub fn poll_timeout(&self) -> Instant {
        self.timers.first().map_or(Instant::FAR_FUTURE, |(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        let mut said = std::mem::take(&mut self.said);
        // Each session once: one whose timer is due again at once waits for the next call.
        let due: Vec<u32> =
            self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, d)| *d).collect();
        for discriminator in due {
            let Some(entry) = self.sessions.get_mut(&discriminator) else { continue };
            entry.session.handle_timeout(now, &mut said);
            self.carry(discriminator, &mut said, out);
        }
        self.said = said;
    }

    /// All sessions: the process is about to end, and no path has failed. Once more: the same again,
    /// for those who have missed it.
    pub fn shut_down(&mut self, now: Instant, out: &mut Vec<Output>) {
        let mut said = std::mem::take(&mut self.said);
        let all: Vec<u32> = self.sessions.keys().copied().collect();
        for discriminator in all {
            let Some(entry) = self.sessions.get_mut(&discriminator) else { continue };
            entry.session.handle_admin_down(now, &mut said);
            self.carry(discriminator, &mut said, out);
        }
        self.said = said;
    }

    fn carry(&mut self, session: u32, said: &mut Vec<Said>, out: &mut Vec<Output>) {
        for said in said.drain(..) {
            out.push(match said {
                Said::Send(octets) => {
                    self.counters.sent += 1;
                    Output::Send { session, octets }
                }
                Said::Changed(change) => {
                    self.counters.transitions[change.to as usize] +=
                        u64::from(change.from != change.to);
                    Output::Changed { session, change }
                }
            });
        }
        self.rearm(session);
    }

    fn rearm(&mut self, discriminator: u32) {
        let Some(entry) = self.sessions.get_mut(&discriminator) else { return };
        let due = entry.session.poll_timeout();
        if due != entry.due {
            self.timers.remove(&(entry.due, discriminator));
            self.timers.insert((due, discriminator));
            entry.due = due;
        }
    }

    /// All sessions, by path.
    pub fn views(&self) -> impl Iterator<Item = SessionView> + '_ {
        self.by_path.values().filter_map(|discriminator| {
            let Entry { path, session, .. } = self.sessions.get(discriminator)?;
            Some(SessionView {
                path: path.clone(),
                discriminator: *discriminator,
                remote_discriminator: session.remote_discriminator(),
                state: session.state(),
                remote_state: session.remote_state(),
                diagnostic: session.diagnostic(),
                remote_diagnostic: session.remote_diagnostic(),
                control_plane_independent: session.remote_is_control_plane_independent(),
                authenticated: session.config().key.is_some(),
                transmit_interval: session.transmit_interval(),
                detection_time: session.detection_time(),
                multiplier: session.config().multiplier,
                since: session.since(),
                counters: session.counters(),
            })
        })
    }
}

/// An address that is not said may be either.
fn overlap(a: &Option<IpAddr>, b: &Option<IpAddr>) -> bool {
    a.is_none() || b.is_none() || a == b
}

fn on_interface(path: &Path, arrival: Arrival<'_>) -> bool {
    match (&path.interface, arrival.interface) {
        (Some(wanted), came) => came == Some(wanted.as_str()),
        (None, _) => true,
    }
}
