//! The thread of path liveness. It does nothing but this, so that no table of routes, no listing and
//! no slow disk keeps a packet back: to the other end, silence of some hundred milliseconds is a
//! failure, and ends sessions that nothing was wrong with.
//!
//! What it finds it leaves in [`Shared`], where the routing thread takes it. A session that changes
//! faster than that is taken loses what lies between its last failure and its last state; so what
//! waits there is never more than two for each session.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::socket::{BfdCounters, Sockets};
use crate::driver::core::Clock;
use crate::proto::bfd::{Change, Output, Table};

/// Better than the rest of the process; where it is not allowed, as it is.
const NICE: libc::c_int = -10;
/// Sleeps no longer than this, whatever the timers say.
const NAP_MAX: Duration = Duration::from_secs(3600);

/// Between the two threads.
pub struct Shared {
    table: Mutex<Table>,
    news: Mutex<BTreeMap<u32, News>>,
    /// There is news.
    pub told: Notify,
    counters: Mutex<BfdCounters>,
    /// The process is about to end, and the others are to be told (again).
    farewell: AtomicBool,
}

/// Of one session.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    failure: Option<Change>,
    last: Option<Change>,
}

/// A thread that has panicked has told so; the table is whole, since it changes by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    pub fn new(table: Table) -> Self {
        Self {
            table: Mutex::new(table),
            news: Mutex::default(),
            told: Notify::new(),
            counters: Mutex::default(),
            farewell: AtomicBool::new(false),
        }
    }

    /// To read; for microseconds.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub fn counters(&self) -> BfdCounters {
        *lock(&self.counters)
    }

    /// What has happened since the last call, by session.
    pub fn take_news(&self) -> Vec<(u32, Change)> {
        let news = std::mem::take(&mut *lock(&self.news));
        let both = |(session, News { failure, last }): (u32, News)| {
            [failure, last].into_iter().flatten().map(move |change| (session, change))
        };
        news.into_iter().flat_map(both).collect()
    }

    fn note(&self, session: u32, change: Change) {
        let mut news = lock(&self.news);
        let news = news.entry(session).or_default();
        if change.is_failure() {
            *news = News { failure: Some(change), last: None };
        } else {
            news.last = Some(change);
        }
        self.told.notify_one();
    }

    /// With the next waking of the thread.
    pub fn ask_for_farewell(&self) {
        self.farewell.store(true, Ordering::Release);
    }
}

/// Until the other end of `wake` is closed.
pub fn run(shared: &Shared, mut sockets: Sockets, mut wake: UnixStream, clock: Clock) {
    // SAFETY: plain numbers; 0 is the calling thread. Where it is refused nothing is changed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let mut fds: Vec<RawFd> = sockets.descriptors().collect();
    fds.push(wake.as_raw_fd());
    let mut out = Vec::new();
    loop {
        let next = lock(&shared.table).poll_timeout();
        wait(&fds, next.saturating_since(clock.now()));
        if is_over(&mut wake) {
            return;
        }
        let mut table = lock(&shared.table);
        // All that has come is heard before anybody is said to be silent: this thread may have been
        // stopped, and time has passed without it.
        let names = table.needs_interfaces();
        let now = clock.now();
        while sockets.receive(names, |arrival, payload| {
            table.handle_datagram(arrival, payload, now, &mut out);
        }) {
            carry(shared, &table, &mut sockets, &mut out);
        }
        table.handle_timeout(now, &mut out);
        if shared.farewell.swap(false, Ordering::AcqRel) {
            table.shut_down(now, &mut out);
        }
        carry(shared, &table, &mut sockets, &mut out);
        *lock(&shared.counters) = sockets.counters();
    }
}

fn carry(shared: &Shared, table: &Table, sockets: &mut Sockets, out: &mut Vec<Output>) {
    for output in out.drain(..) {
        match output {
            Output::Send { session, octets } => sockets.send(session, table.path(session), &octets),
            Output::Changed { session, change } => shared.note(session, change),
        }
    }
}

/// Until one of them is readable, or the time is over; also for less.
fn wait(fds: &[RawFd], time: Duration) {
    let time = time.min(NAP_MAX);
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: the list is live and as long as said; no mask of signals is given.
    unsafe { libc::ppoll(polled.as_mut_ptr(), count, &raw const time, std::ptr::null()) };
}

/// Reads what woke us; true when nobody will any more.
fn is_over(wake: &mut UnixStream) -> bool {
    let mut octets = [0; 16];
    matches!(wake.read(&mut octets), Ok(0))
}
