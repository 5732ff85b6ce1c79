//! The kernel side of a node, in one value for the hall's driver.
//!
//! ```text
//! let mut forwarding = Forwarding::open(options, now)?;      // adopts what is in the kernel
//! forwarding.set_access(links, use_filter, now, &mut events);
//! loop {
//!     select {
//!         fd (AsRawFd, in an AsyncFd) readable => forwarding.handle_readable(now, &mut events),
//!         sleep until poll_timeout()           => forwarding.handle_timeout(now, &mut events),
//!         changes from the node                => forwarding.apply(&batch, now, &mut events),
//!     }
//!     // events go to the node; AccessReady opens a packet socket for the link
//! }
//! forwarding.prune();                                        // once, when the tables are complete
//! ```
//!
//! No call waits. The longest (a turn of the reconciler) takes about a millisecond, except
//! `set_access` with a filter, which runs `nft`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::filter::{self, Filter};
use super::netlink::{AccessLink, Kernel, LinkState, Monitor, Notice, Options};
use super::reconcile::Reconciler;
use crate::types::Instant;
use crate::types::seam::{Applied, ForwardingChange, IfIndex};

/// An access link that could not be set up is tried again after this time, and whenever the
/// kernel reports a change of it.
const SETUP_RETRY: Duration = Duration::from_secs(5);

/// What the kernel has to say to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Applied(Applied),
    /// The access link is there and set up: listen on it. Said again when the interface was
    /// made anew, with another index.
    AccessReady {
        name: String,
        link: IfIndex,
    },
    /// The access link went up or down.
    AccessLink {
        link: IfIndex,
        up: bool,
    },
    /// The interface no longer exists: its packet socket is dead.
    AccessGone {
        link: IfIndex,
    },
    NeighborFailed {
        link: IfIndex,
        ip: IpAddr,
    },
}

struct Access {
    config: AccessLink,
    /// What `AccessReady` has told, and the last state.
    ready: Option<(IfIndex, bool)>,
    errors: Vec<String>,
}

/// The state of one access link, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessView<'a> {
    pub name: &'a str,
    /// `None`: the interface does not exist.
    pub link: Option<IfIndex>,
    pub up: bool,
    /// What could not be set, one sentence each.
    pub errors: &'a [String],
}

pub struct Forwarding {
    reconciler: Reconciler<Kernel>,
    monitor: Monitor,
    access: BTreeMap<String, Access>,
    setup_at: Instant,
    filter: Filter,
    applied: Vec<Applied>,
}

impl Forwarding {
    /// In the network namespace of the calling thread.
    pub fn open(options: Options, now: Instant) -> io::Result<Self> {
        let kernel = Kernel::open(options)?;
        let monitor = kernel.monitor()?;
        Ok(Self {
            reconciler: Reconciler::new(kernel, now),
            monitor,
            access: BTreeMap::new(),
            setup_at: Instant::FAR_FUTURE,
            filter: Filter::default(),
            applied: Vec::new(),
        })
    }

    /// The access links, at the start and at each change of the configuration. One that is no
    /// longer named keeps its settings and loses its sensor.
    pub fn set_access(
        &mut self,
        links: Vec<AccessLink>,
        use_filter: bool,
        now: Instant,
        out: &mut Vec<Event>,
    ) {
        let mut before = std::mem::take(&mut self.access);
        for config in links {
            let name = config.name.clone();
            let known = before.remove(&name).filter(|access| access.config == config);
            let access = known.unwrap_or(Access { config, ready: None, errors: Vec::new() });
            self.access.insert(name, access);
        }
        for access in before.into_values() {
            out.extend(access.ready.map(|(link, _)| Event::AccessGone { link }));
        }
        self.set_up(now, out);
        if use_filter {
            let names: BTreeSet<String> = self.access.keys().cloned().collect();
            self.filter.load(names);
        }
    }

    pub fn access(&self) -> impl Iterator<Item = AccessView<'_>> {
        self.access.values().map(|access| AccessView {
            name: &access.config.name,
            link: access.ready.map(|(link, _)| link),
            up: access.ready.is_some_and(|(_, up)| up),
            errors: &access.errors,
        })
    }

    pub fn filter(&self) -> &filter::State {
        self.filter.state()
    }

    /// Packets of sources that are not delivered yet are marked from now on, or no longer. Whoever
    /// holds them is there before, and goes after.
    pub fn hold_uplink(&mut self, hold: Option<filter::UplinkHold>) {
        let loaded = *self.filter.state() == filter::State::Loaded;
        self.filter.hold(hold);
        if loaded {
            let names: BTreeSet<String> = self.access.keys().cloned().collect();
            self.filter.load(names);
        }
    }

    /// Takes the filter out of the kernel, on the operator's request.
    pub fn remove_filter(&mut self) -> Result<(), filter::FilterError> {
        self.filter.remove()
    }

    /// Entries, counters and errors, for listings.
    pub fn reconciler(&self) -> &Reconciler<Kernel> {
        &self.reconciler
    }

    /// Deliveries are in the kernel, and their `Applied` in `out`, when this returns.
    pub fn apply(&mut self, batch: &[ForwardingChange], now: Instant, out: &mut Vec<Event>) {
        self.reconciler.apply(batch, now, &mut self.applied);
        out.extend(self.applied.drain(..).map(Event::Applied));
    }

    /// The tables of the node are complete: what nobody has asked for is removed.
    pub fn prune(&mut self) {
        self.reconciler.prune();
    }

    /// Somebody has seen that the kernel is not as it should be: it is read back now.
    pub fn handle_doubt(&mut self, now: Instant) {
        self.reconciler.handle_doubt(now);
    }

    pub fn poll_timeout(&self) -> Instant {
        self.reconciler.poll_timeout().min(self.setup_at)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Event>) {
        if self.setup_at <= now {
            self.set_up(now, out);
        }
        self.reconciler.handle_timeout(now, &mut self.applied);
        out.extend(self.applied.drain(..).map(Event::Applied));
    }

    /// Reads notifications of the kernel. True when there may be more.
    pub fn handle_readable(&mut self, now: Instant, out: &mut Vec<Event>) -> io::Result<bool> {
        let mut notices = Vec::new();
        let more = self.monitor.read(&mut notices)?;
        for notice in notices {
            match notice {
                Notice::Link(state) => self.handle_link(&state, now, out),
                Notice::LinkGone(link) => self.handle_link_gone(link, now, out),
                Notice::NeighborFailed { link, ip } => {
                    if self.is_access(link) {
                        out.push(Event::NeighborFailed { link, ip });
                    }
                }
                Notice::NeighborLearned { link, ip, mac } => {
                    self.reconciler.handle_neighbor(link, ip, mac);
                }
                Notice::RoutesChanged => self.reconciler.handle_routes_changed(now),
                Notice::OwnRoutesChanged => self.reconciler.handle_doubt(now),
                Notice::Lost => {
                    self.reconciler.handle_doubt(now);
                    self.setup_at = now;
                }
            }
        }
        Ok(more)
    }

    fn is_access(&self, link: IfIndex) -> bool {
        self.access.values().any(|access| access.ready.is_some_and(|(known, _)| known == link))
    }

    fn handle_link(&mut self, state: &LinkState, now: Instant, out: &mut Vec<Event>) {
        let Some(access) = self.access.get_mut(&state.name) else {
            // A core link: the routes over it, and those resolved through it.
            self.reconciler.handle_routes_changed(now);
            return;
        };
        match &mut access.ready {
            Some((link, up)) if *link == state.link => {
                if *up == state.up {
                    return;
                }
                *up = state.up;
                out.push(Event::AccessLink { link: state.link, up: state.up });
                if state.up {
                    // While it was down, the kernel has dropped the deliveries over it and its
                    // IPv6 addresses.
                    self.reconciler.handle_doubt(now);
                    self.setup_at = now;
                }
            }
            // New, or made anew under the same name.
            Some(_) | None => self.setup_at = now,
        }
    }

    fn handle_link_gone(&mut self, link: IfIndex, now: Instant, out: &mut Vec<Event>) {
        for access in self.access.values_mut() {
            if access.ready.is_some_and(|(known, _)| known == link) {
                access.ready = None;
                out.push(Event::AccessLink { link, up: false });
                out.push(Event::AccessGone { link });
            }
        }
        self.reconciler.handle_link_gone(link, now);
    }

    fn set_up(&mut self, now: Instant, out: &mut Vec<Event>) {
        self.setup_at = Instant::FAR_FUTURE;
        let before = out.len();
        for (name, access) in &mut self.access {
            let kernel = self.reconciler.plane_mut();
            let state = kernel.find_link(name).ok().flatten();
            let known = access.ready.map(|(link, _)| link);
            if let Some(gone) = known.filter(|_| state.as_ref().map(|s| s.link) != known) {
                access.ready = None;
                out.push(Event::AccessLink { link: gone, up: false });
                out.push(Event::AccessGone { link: gone });
            }
            let errors = match kernel.set_up_access(&access.config) {
                Ok(_) => Vec::new(),
                Err(errors) => errors,
            };
            access.errors = errors.iter().map(ToString::to_string).collect();
            if !errors.is_empty() {
                self.setup_at = now + SETUP_RETRY;
            }
            // A link that is not set up in every detail still has hosts.
            let Some(state) = state else { continue };
            let up = kernel.find_link(name).ok().flatten().is_some_and(|state| state.up);
            match access.ready {
                None => {
                    let link = state.link;
                    out.push(Event::AccessReady { name: name.clone(), link });
                    out.push(Event::AccessLink { link, up });
                }
                Some((link, was)) if was != up => out.push(Event::AccessLink { link, up }),
                Some(_) => {}
            }
            access.ready = Some((state.link, up));
        }
        if out.len() != before {
            self.reconciler.handle_doubt(now); // links came or went
        }
    }
}

impl AsRawFd for Forwarding {
    /// Readable when [`Self::handle_readable`] has something to read.
    fn as_raw_fd(&self) -> RawFd {
        self.monitor.as_raw_fd()
    }
}
