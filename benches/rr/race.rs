//! Injector and sinks around one device, in one thread and one epoll loop without busy polling,
//! and the four things that are measured with them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::device::Device;
use crate::feed::Feed;
use crate::speaker::{
    ABSENT, AttrSets, DEVICE, Family, INJECTOR, NEXT_HOPS, PORT, Receiver, Session, establish,
    sink_address,
};

/// Set by SIGINT and SIGTERM.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A device that has not come up or has not said a word for so long is given up.
const START_MAX: Duration = Duration::from_secs(20);
const STALL_MAX: Duration = Duration::from_secs(30);

/// Between the last session's establishment and the first route: timers of a fresh session
/// (End-of-RIB, first advertisement) run out, so that no device pays for them in the figures.
const QUIET: Duration = Duration::from_millis(1500);

/// The shortest hold time among the devices is 90 s.
const KEEPALIVE_EACH: Duration = Duration::from_secs(20);

/// splitmix64: the same moves for every device.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((((z ^ (z >> 31)) >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// The table as it should be, and as each sink has it.
pub struct Tables {
    want: Vec<u8>,
    /// Per sink, per prefix: the attribute set, or `ABSENT`.
    have: Vec<Vec<u32>>,
    /// Per prefix: how many sinks do not yet have what they should.
    missing: Vec<u8>,
    /// Prefixes with any sink missing.
    outstanding: usize,
    confirmed: u64,
    /// Routes and withdrawals that came, of any kind.
    events: u64,
    /// A sink that had the right route was told a wrong one.
    regressions: u64,
    foreign: u64,
    sent_at: Option<Box<SentAt>>,
}

/// For each prefix, when its last move was written; what came back and when.
struct SentAt {
    start: Instant,
    nanos: Vec<u64>,
    latencies: Vec<u64>,
    now: u64,
}

/// Wanted of a prefix that was not injected, or is gone.
const NOTHING: u8 = u8::MAX;

impl Tables {
    fn new(prefixes: usize, sinks: usize) -> Self {
        Self {
            want: vec![NOTHING; prefixes],
            have: vec![vec![ABSENT; prefixes]; sinks],
            missing: vec![0; prefixes],
            outstanding: 0,
            confirmed: 0,
            events: 0,
            regressions: 0,
            foreign: 0,
            sent_at: None,
        }
    }

    /// Only for a prefix that no sink is missing.
    fn expect(&mut self, index: usize, next_hop: u8) {
        debug_assert_eq!(self.missing[index], 0);
        self.want[index] = next_hop;
        self.missing[index] = self.have.len() as u8;
        self.outstanding += 1;
    }
}

struct SinkView<'a> {
    tables: &'a mut Tables,
    sink: usize,
}

fn is_wanted(have: u32, want: u8, sets: &AttrSets) -> bool {
    match want {
        NOTHING => have == ABSENT,
        next_hop => sets.set(have).next_hop == Some(next_hop),
    }
}

impl SinkView<'_> {
    fn set(&mut self, index: u32, attrs: u32, sets: &AttrSets) {
        let tables = &mut *self.tables;
        tables.events += 1;
        let at = index as usize;
        let Some(have) = tables.have[self.sink].get_mut(at) else {
            tables.foreign += 1;
            return;
        };
        let want = tables.want[at];
        let was_right = is_wanted(*have, want, sets);
        let is_right = is_wanted(attrs, want, sets);
        *have = attrs;
        if is_right && !was_right {
            tables.missing[at] -= 1;
            if tables.missing[at] == 0 {
                tables.outstanding -= 1;
                tables.confirmed += 1;
                if let Some(sent) = &mut tables.sent_at {
                    sent.latencies.push(sent.now - sent.nanos[at]);
                }
            }
        } else if was_right && !is_right {
            tables.regressions += 1;
            if tables.missing[at] == 0 {
                tables.outstanding += 1;
            }
            tables.missing[at] += 1;
        }
    }
}

impl Receiver for SinkView<'_> {
    fn announced(&mut self, index: u32, attrs: u32, sets: &AttrSets) {
        self.set(index, attrs, sets);
    }

    fn withdrawn(&mut self, index: u32, sets: &AttrSets) {
        self.set(index, ABSENT, sets);
    }

    fn foreign(&mut self) {
        self.tables.foreign += 1;
    }
}

/// Events of the feed; sinks have their number, the timer the largest.
const FEED: u64 = u64::MAX - 1;

pub struct Race {
    pub device: Device,
    epoll: Epoll,
    feed: Feed,
    sinks: Vec<Session>,
    sets: AttrSets,
    tables: Tables,
    random: Random,
    pub echoed: u64,
    wants_out: bool,
    keepalive_at: Instant,
    baseline: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub wall: Duration,
    pub cpu: Duration,
    pub peak: u64,
    pub bytes_per_route: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct Moves {
    pub per_second: f64,
    pub cpu_each: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Race {
    /// Waits until the device takes the sessions, the feed being the last to connect. `prefixes` is
    /// the size of the table to come.
    pub fn new(
        mut device: Device,
        prefixes: usize,
        sinks: usize,
        entrance: &Entrance,
    ) -> io::Result<Self> {
        let deadline = Instant::now() + START_MAX;
        let epoll = Epoll::new()?;
        let mut sessions = Vec::new();
        for sink in 0..sinks {
            let from = sink_address(sink);
            let session = persist(&mut device, deadline, || open_session(from))?;
            epoll.add(session.stream.as_raw_fd(), sink as u64)?;
            sessions.push(session);
        }
        let feed = persist(&mut device, deadline, || entrance.open())?;
        if let Some((fd, answers)) = feed.fd() {
            epoll.add(fd, FEED)?;
            epoll.set(fd, FEED, answers, false)?;
        }
        let mut race = Self {
            device,
            epoll,
            feed,
            sinks: sessions,
            sets: AttrSets::new(),
            tables: Tables::new(prefixes, sinks),
            random: Random(20_261_121),
            echoed: 0,
            wants_out: false,
            keepalive_at: Instant::now() + KEEPALIVE_EACH,
            baseline: 0,
        };
        let quiet_until = Instant::now() + QUIET;
        while Instant::now() < quiet_until {
            race.turn(quiet_until.saturating_duration_since(Instant::now()))?;
        }
        race.baseline = race.device.memory()?.now;
        Ok(race)
    }

    /// Reads what came and writes what is due, after waiting for at most `wait`.
    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        if Instant::now() >= self.keepalive_at {
            self.keepalive_at = Instant::now() + KEEPALIVE_EACH;
            self.feed.keepalive();
            for sink in &mut self.sinks {
                sink.keepalive();
                sink.flush()?;
            }
        }
        let mut events = [EVENT; 16];
        for event in self.epoll.wait(&mut events, wait)? {
            let (token, writable_only) = (event.u64, event.events == libc::EPOLLOUT as u32);
            if token == FEED && !writable_only {
                self.echoed += self.feed.receive(&mut self.sets)?;
            } else if let Some(session) = self.sinks.get_mut(token as usize) {
                if let Some(sent) = &mut self.tables.sent_at {
                    sent.now = sent.start.elapsed().as_nanos() as u64;
                }
                let mut view = SinkView { tables: &mut self.tables, sink: token as usize };
                session.receive(&mut self.sets, &mut view)?;
            } // else the pace timer, whose owner reads it
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let blocked = !self.feed.flush()?;
        if blocked != self.wants_out {
            self.wants_out = blocked;
            if let Some((fd, answers)) = self.feed.fd() {
                self.epoll.set(fd, FEED, answers, blocked)?;
            }
        }
        Ok(())
    }

    /// Until nothing is outstanding; an error when nothing moves any more.
    fn drain(&mut self, what: &str, limit: Duration) -> io::Result<()> {
        let start = Instant::now();
        let (mut last_events, mut last_change) = (self.tables.events, start);
        while self.tables.outstanding > 0 {
            self.turn(Duration::from_millis(100))?;
            if self.tables.events != last_events {
                last_events = self.tables.events;
                last_change = Instant::now();
            } else if last_change.elapsed() > STALL_MAX || start.elapsed() > limit {
                self.device.check_alive()?;
                return Err(io::Error::other(format!(
                    "{what}: {} of {} prefixes are not at every sink, given up",
                    self.tables.outstanding,
                    self.tables.want.len(),
                )));
            }
        }
        Ok(())
    }

    /// From the first octet of the table written to the last prefix at the last sink.
    pub fn load(&mut self, family: Family, limit: Duration) -> io::Result<Load> {
        let prefixes = self.tables.want.len();
        let next_hop_of: Vec<u8> =
            (0..prefixes).map(|_| self.random.below(u32::from(NEXT_HOPS)) as u8).collect();
        let octets = self.feed.load(family, &next_hop_of);
        for (index, &next_hop) in next_hop_of.iter().enumerate() {
            self.tables.expect(index, next_hop);
        }
        let cpu = self.device.cpu()?;
        let start = Instant::now();
        self.feed.push(&octets);
        self.flush()?;
        self.drain("load", limit)?;
        let wall = start.elapsed();
        let cpu = self.device.cpu()? - cpu;
        let memory = self.device.memory()?;
        let bytes_per_route = memory.peak.saturating_sub(self.baseline) as f64 / prefixes as f64;
        Ok(Load { wall, cpu, peak: memory.peak, bytes_per_route })
    }

    /// One more move of a prefix that is at rest, into the injector's output.
    fn push_move(&mut self) -> io::Result<()> {
        loop {
            let index = self.random.below(self.tables.want.len() as u32) as usize;
            if self.tables.missing[index] > 0 {
                continue; // the window is far smaller than the table, so this ends
            }
            let step = 1 + self.random.below(u32::from(NEXT_HOPS) - 1) as u8;
            let next_hop = (self.tables.want[index] % NEXT_HOPS + step) % NEXT_HOPS;
            self.tables.expect(index, next_hop);
            if let Some(sent) = &mut self.tables.sent_at {
                sent.nanos[index] = sent.start.elapsed().as_nanos() as u64;
            }
            return self.feed.push_move(index as u32, next_hop);
        }
    }

    /// As many moves as the device takes with `window` of them on their way at any time.
    pub fn moves(&mut self, window: usize, warm_up: Duration, time: Duration) -> io::Result<Moves> {
        self.pump_moves(window, warm_up)?;
        let (start, cpu, confirmed) = (Instant::now(), self.device.cpu()?, self.tables.confirmed);
        self.pump_moves(window, time)?;
        let (wall, cpu) = (start.elapsed(), self.device.cpu()? - cpu);
        let confirmed = self.tables.confirmed - confirmed;
        self.drain("moves", STALL_MAX * 2)?;
        Ok(Moves {
            per_second: confirmed as f64 / wall.as_secs_f64(),
            cpu_each: cpu.div_f64(confirmed.max(1) as f64),
        })
    }

    fn pump_moves(&mut self, window: usize, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            while self.tables.outstanding < window {
                self.push_move()?;
            }
            self.flush()?;
            self.turn(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// One move each millisecond, from before the injector's write to after the sink's read.
    pub fn latency(&mut self, time: Duration) -> io::Result<Latency> {
        let timer = Timer::every(Duration::from_millis(1))?;
        self.epoll.add(timer.0.as_raw_fd(), u64::MAX)?;
        self.keep_times();
        let until = Instant::now() + time;
        while Instant::now() < until {
            if timer.expired()? {
                self.push_move()?;
                self.flush()?;
            }
            self.turn(Duration::from_millis(100))?;
        }
        self.epoll.remove(timer.0.as_raw_fd())?;
        self.drain("latency", STALL_MAX)?;
        self.take_latency()
    }

    /// For an interface that is waited for at each route: one after the other, on a table that
    /// was empty at the beginning, until the time is over.
    pub fn one_by_one(&mut self, time: Duration) -> io::Result<(Moves, Latency)> {
        self.keep_times();
        let (start, cpu, confirmed) = (Instant::now(), self.device.cpu()?, self.tables.confirmed);
        while start.elapsed() < time {
            self.push_move()?;
            self.drain("one by one", STALL_MAX)?;
        }
        let (wall, cpu) = (start.elapsed(), self.device.cpu()? - cpu);
        let confirmed = (self.tables.confirmed - confirmed) as f64;
        let moves =
            Moves { per_second: confirmed / wall.as_secs_f64(), cpu_each: cpu.div_f64(confirmed) };
        Ok((moves, self.take_latency()?))
    }

    /// The injector goes away; until no sink has any of its routes.
    pub fn lose_injector(&mut self, limit: Duration) -> io::Result<Duration> {
        for index in 0..self.tables.want.len() {
            self.tables.expect(index, NOTHING);
        }
        let start = Instant::now();
        self.feed = Feed::Gone; // closes the connection, which also leaves the epoll set
        self.drain("withdrawal", limit)?;
        Ok(start.elapsed())
    }

    fn keep_times(&mut self) {
        self.tables.sent_at = Some(Box::new(SentAt {
            start: Instant::now(),
            nanos: vec![0; self.tables.want.len()],
            latencies: Vec::new(),
            now: 0,
        }));
    }

    fn take_latency(&mut self) -> io::Result<Latency> {
        let sent = self.tables.sent_at.take();
        let mut latencies = sent.map(|sent| sent.latencies).unwrap_or_default();
        percentiles(&mut latencies)
    }

    /// Everything at every sink as it should be; returns what does not depend on the prefix: the
    /// attribute sets without next hops.
    pub fn check(&self) -> io::Result<Vec<String>> {
        let tables = &self.tables;
        let mut faults = Vec::new();
        let mut kinds: Vec<String> = Vec::new();
        let mut known: Vec<u32> = Vec::new();
        for (sink, have) in tables.have.iter().enumerate() {
            let wrong = (0..have.len())
                .filter(|&at| !is_wanted(have[at], tables.want[at], &self.sets))
                .count();
            if wrong > 0 {
                faults.push(format!("{wrong} routes of sink {sink} are wrong"));
            }
            let mut ids = have.clone();
            ids.retain(|&id| id != ABSENT);
            ids.sort_unstable();
            ids.dedup();
            known.extend(ids);
        }
        known.sort_unstable();
        known.dedup();
        for id in known {
            let canonical = &self.sets.set(id).canonical;
            if !kinds.contains(canonical) {
                kinds.push(canonical.clone());
            }
        }
        if let Some(complaint) = self.feed.complaint() {
            faults.push(complaint.to_string());
        }
        if tables.foreign > 0 {
            faults.push(format!("{} prefixes that nobody injected", tables.foreign));
        }
        if tables.regressions > 0 {
            faults.push(format!("{} times a right route was replaced", tables.regressions));
        }
        if !faults.is_empty() {
            return Err(io::Error::other(faults.join(", ")));
        }
        kinds.sort();
        Ok(kinds)
    }
}

pub fn percentiles(nanos: &mut [u64]) -> io::Result<Latency> {
    nanos.sort_unstable();
    let Some(&max) = nanos.last() else {
        return Err(io::Error::other("no latency was measured"));
    };
    let at = |per_cent: usize| Duration::from_nanos(nanos[(nanos.len() - 1) * per_cent / 100]);
    Ok(Latency { p50: at(50), p99: at(99), max: Duration::from_nanos(max) })
}

/// Tries until it works, the device has ended, or the deadline has passed.
fn persist<T>(
    device: &mut Device,
    deadline: Instant,
    mut open: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match open() {
            Ok(opened) => return Ok(opened),
            Err(e) if Instant::now() > deadline => {
                let text = format!("cannot connect to the device: {e}; log: {}", device.log());
                return Err(io::Error::other(text));
            }
            Err(_) => {}
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        device.check_alive()?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Which feed, and where.
pub enum Entrance {
    Injector,
    KillickStream(PathBuf),
    ExabgpPipe(PathBuf),
    GobgpCli(PathBuf),
}

impl Entrance {
    fn open(&self) -> io::Result<Feed> {
        match self {
            Entrance::Injector => open_session(INJECTOR).map(|s| Feed::Bgp(Box::new(s))),
            Entrance::KillickStream(socket) => Feed::killick(socket),
            Entrance::ExabgpPipe(fifo) => Feed::exabgp(fifo),
            Entrance::GobgpCli(program) => Ok(Feed::GobgpCli(program.clone())),
        }
    }
}

fn open_session(from: Ipv4Addr) -> io::Result<Session> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::V4(SocketAddrV4::new(from, 0)).into())?;
    socket.connect_timeout(
        &SocketAddr::V4(SocketAddrV4::new(DEVICE, PORT)).into(),
        Duration::from_secs(2),
    )?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut stream = socket.into();
    establish(&mut stream, from)?;
    Session::new(stream)
}

// ---- epoll and its timer ----

const EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the descriptor is ours from here on.
        unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    fn control(&self, operation: i32, fd: i32, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` is valid for the call.
        if unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub fn add(&self, fd: i32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, token)
    }

    pub fn remove(&self, fd: i32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    pub fn set(&self, fd: i32, token: u64, input: bool, output: bool) -> io::Result<()> {
        let input = if input { libc::EPOLLIN as u32 } else { 0 };
        let output = if output { libc::EPOLLOUT as u32 } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, input | output, token)
    }

    pub fn wait<'a>(
        &self,
        events: &'a mut [libc::epoll_event],
        wait: Duration,
    ) -> io::Result<&'a [libc::epoll_event]> {
        let millis = wait.as_millis().min(1000) as i32;
        // SAFETY: the kernel writes at most `events.len()` events.
        let n = unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, millis)
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                return Ok(&[]);
            }
            return Err(error);
        }
        Ok(&events[..n as usize])
    }
}

pub struct Timer(pub OwnedFd);

impl Timer {
    pub fn every(period: Duration) -> io::Result<Self> {
        let period = libc::timespec {
            tv_sec: period.as_secs() as i64,
            tv_nsec: i64::from(period.subsec_nanos()),
        };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: the descriptor is ours from here on; `times` is valid for the call.
        unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let timer = Self(OwnedFd::from_raw_fd(fd));
            if libc::timerfd_settime(fd, 0, &times, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(timer)
        }
    }

    /// True once when one or more periods have ended: a late wake-up is one move, not a burst.
    pub fn expired(&self) -> io::Result<bool> {
        let mut count = [0u8; 8];
        // SAFETY: eight octets are what a timerfd writes.
        let n = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if n == 8 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
    }
}
