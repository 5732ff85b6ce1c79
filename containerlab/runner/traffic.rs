//! Paced UDP in any number of flows and one TCP transfer, and what a move did to them.
//!
//! Two threads serve all flows. A socket stays in the namespace in which it was made, so one thread
//! can send from every node. The sender keeps absolute time: a packet that is late is followed by
//! the next ones at once, and the average pace holds. Arrival times are the kernel's, so that the
//! receiver may sleep and wake as it likes without being measured itself.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, size_of};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::Result;
use super::namespace::Namespace;

/// Marks our packets: anything else that arrives at the port is not counted.
const MAGIC: [u8; 8] = *b"killickT";
/// As long as a voice packet.
const PAYLOAD_BYTES: usize = 160;
/// Holds seconds of a flow, in case the receiving thread does not run.
const RECEIVE_BUFFER_BYTES: libc::c_int = 4 << 20;
/// How long the receiver sleeps between two looks at all sockets.
const RECEIVE_POLL: Duration = Duration::from_millis(5);

/// Nanoseconds of the machine's clock: the one that the kernel stamps packets with.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is live.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    nanoseconds(now)
}

fn nanoseconds(time: libc::timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// What happened to the packets of one flow that were sent in a window of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    pub sent: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Packets that arrived after one that was sent later (RFC 4737 §3).
    pub reordered: u64,
    /// The longest time between two arrivals; about the pace when nothing happens.
    pub outage_ms: f64,
}

/// When each sequence number was sent, and when which one arrived.
#[derive(Default)]
pub struct Record {
    pub sent_ns: Vec<u64>,
    pub arrivals: Vec<(u64, u64)>,
}

impl Record {
    /// On the packets sent in `window`, as far as known now.
    pub fn report(&self, window: Range<u64>) -> Report {
        let first = self.sent_ns.partition_point(|sent| *sent < window.start) as u64;
        let end = self.sent_ns.partition_point(|sent| *sent < window.end) as u64;
        let mut report = Report { sent: end - first, ..Report::default() };
        let mut seen = BTreeSet::new();
        let mut newest = 0;
        let mut last_arrival = window.start;
        let mut outage = 0;
        for &(sequence, at) in &self.arrivals {
            if sequence < first {
                // A straggler of before still shows that there was no outage up to then.
                if at > window.start && at < window.end {
                    outage = outage.max(at - last_arrival);
                    last_arrival = at;
                }
                continue;
            }
            if sequence >= end {
                continue;
            }
            if !seen.insert(sequence) {
                report.duplicated += 1;
                continue;
            }
            report.reordered += u64::from(sequence < newest);
            newest = newest.max(sequence);
            outage = outage.max(at.saturating_sub(last_arrival));
            last_arrival = last_arrival.max(at);
        }
        report.lost = report.sent - seen.len() as u64;
        // Nothing at the end of the window is an outage that has not ended yet.
        if report.sent > 0 {
            outage = outage.max(window.end.saturating_sub(last_arrival));
        }
        report.outage_ms = outage as f64 / 1e6;
        report
    }
}

struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
    receiver: UdpSocket,
    record: Mutex<Record>,
}

/// Flows between nodes of a lab. Ends on drop.
pub struct Flows {
    flows: Arc<Vec<Flow>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// One flow to be: from an address in a node to an address in another.
pub struct Plan<'a> {
    pub from: (&'a Namespace, SocketAddr),
    pub to: (&'a Namespace, SocketAddr),
}

impl Flows {
    pub fn start(plans: &[Plan<'_>], pace: Duration) -> Result<Self> {
        let mut flows = Vec::new();
        for plan in plans {
            flows.push(Flow {
                socket: plan.from.0.inside(|| Ok(UdpSocket::bind(plan.from.1)?))?,
                to: plan.to.1,
                receiver: plan.to.0.inside(|| receiving_socket(plan.to.1))?,
                record: Mutex::default(),
            });
        }
        let flows = Arc::new(flows);
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let (flows, stop) = (flows.clone(), stop.clone());
            std::thread::spawn(move || send_paced(&flows, pace, &stop))
        };
        let receiver = {
            let (flows, stop) = (flows.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(RECEIVE_POLL);
                    for flow in flows.iter() {
                        receive_all(&flow.receiver, &mut lock(&flow.record).arrivals);
                    }
                }
            })
        };
        Ok(Self { flows, stop, threads: vec![sender, receiver] })
    }

    /// On the packets of a flow (by its place in the plan) that were sent in `window`.
    pub fn report(&self, flow: usize, window: Range<u64>) -> Report {
        lock(&self.flows[flow].record).report(window)
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// What a flow consists of.
pub struct Packet([u8; PAYLOAD_BYTES]);

impl Packet {
    pub fn new() -> Self {
        let mut octets = [0; PAYLOAD_BYTES];
        octets[..8].copy_from_slice(&MAGIC);
        Self(octets)
    }

    pub fn numbered(&mut self, sequence: u64) -> &[u8] {
        self.0[8..16].copy_from_slice(&sequence.to_be_bytes());
        &self.0
    }
}

fn send_paced(flows: &[Flow], pace: Duration, stop: &AtomicBool) {
    // SAFETY: integers only. The default slack of 50 µs would be added to each pause.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
    let mut packet = Packet::new();
    let start = monotonic_ns();
    let mut sequence: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        sleep_until(start + sequence * pace.as_nanos() as u64);
        let octets = packet.numbered(sequence);
        for flow in flows {
            lock(&flow.record).sent_ns.push(now_ns());
            // A packet that the host itself cannot send is a lost packet.
            let _ = flow.socket.send_to(octets, flow.to);
        }
        sequence += 1;
    }
}

pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is live.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    nanoseconds(now)
}

pub fn sleep_until(at_ns: u64) {
    let at = libc::timespec {
        tv_sec: (at_ns / 1_000_000_000).cast_signed(),
        tv_nsec: (at_ns % 1_000_000_000).cast_signed(),
    };
    // SAFETY: `at` is live; no remainder is asked for. Interrupted early is only early.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &at, std::ptr::null_mut())
    };
}

pub fn receiving_socket(at: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    for (option, value) in [(libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES), (libc::SO_TIMESTAMPNS, 1)]
    {
        // SAFETY: the value is live and its length is right.
        let outcome = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(socket)
}

/// Everything that waits at the socket: sequence number and the kernel's time of arrival.
pub fn receive_all(socket: &UdpSocket, arrivals: &mut Vec<(u64, u64)>) {
    let mut payload = [0u8; PAYLOAD_BYTES];
    let mut control = [0u64; 8];
    loop {
        let mut vector =
            libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        // SAFETY: all zeros is a valid msghdr; every pointer put in is live during the call, and
        // the control messages are walked by the kernel's own macros.
        let stamp = unsafe {
            let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
            message.msg_iov = &mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            if libc::recvmsg(socket.as_raw_fd(), &mut message, 0) != PAYLOAD_BYTES as isize {
                return;
            }
            let header = libc::CMSG_FIRSTHDR(&message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_TIMESTAMPNS {
                now_ns()
            } else {
                nanoseconds(libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned())
            }
        };
        let (magic, rest) = payload.split_at(8);
        if magic == MAGIC
            && let Some(sequence) = rest.first_chunk()
        {
            arrivals.push((u64::from_be_bytes(*sequence), stamp));
        }
    }
}

/// What the TCP transfer did in a window of time.
#[derive(Clone, Debug, Serialize)]
pub struct TransferReport {
    pub bytes: u64,
    pub retransmissions: u32,
    /// The longest time between two deliveries to the application.
    pub stall_ms: f64,
}

/// One long TCP transfer at a fixed rate; every octet is checked. Ends on drop.
pub struct Transfer {
    state: Arc<Mutex<TransferState>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct TransferState {
    /// When, and how many octets had been delivered by then.
    deliveries: Vec<(u64, u64)>,
    retransmissions: Vec<(u64, u32)>,
    failure: Option<String>,
}

/// Fast enough to matter, slow enough not to be what the machine is busy with.
const TRANSFER_BITS_PER_S: u64 = 20_000_000;
const TRANSFER_POLL: Duration = Duration::from_millis(50);

impl Transfer {
    pub fn start(plan: &Plan<'_>) -> Result<Self> {
        let listener = plan.to.0.inside(|| Ok(TcpListener::bind(plan.to.1)?))?;
        let sender = plan.from.0.inside(|| {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(plan.from.1),
                socket2::Type::STREAM,
                None,
            )?;
            socket.bind(&plan.from.1.into())?;
            socket.connect_timeout(&plan.to.1.into(), Duration::from_secs(5))?;
            Ok(TcpStream::from(socket))
        })?;
        let (receiver, _) = listener.accept()?;
        receiver.set_read_timeout(Some(TRANSFER_POLL))?;
        sender.set_write_timeout(Some(TRANSFER_POLL))?;
        sender.set_nodelay(true)?;
        set_pace(&sender, TRANSFER_BITS_PER_S / 8)?;

        let state = Arc::new(Mutex::new(TransferState::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let sending = {
            let (state, stop) = (state.clone(), stop.clone());
            std::thread::spawn(move || send_pattern(sender, &state, &stop))
        };
        let receiving = {
            let (state, stop) = (state.clone(), stop.clone());
            std::thread::spawn(move || check_pattern(receiver, &state, &stop))
        };
        Ok(Self { state, stop, threads: vec![sending, receiving] })
    }

    /// An error when the connection broke or an octet was wrong.
    pub fn report(&self, window: Range<u64>) -> Result<TransferReport> {
        let state = lock(&self.state);
        if let Some(failure) = &state.failure {
            return Err(format!("the TCP transfer: {failure}").into());
        }
        let before = state.deliveries.partition_point(|(at, _)| *at < window.start);
        let after = state.deliveries.partition_point(|(at, _)| *at < window.end);
        let total = |end: usize| end.checked_sub(1).map_or(0, |last| state.deliveries[last].1);
        let mut stall = 0;
        let mut last = window.start;
        for (at, _) in &state.deliveries[before..after] {
            stall = stall.max(at - last);
            last = *at;
        }
        stall = stall.max(window.end - last);
        let retransmissions = |at: u64| {
            let end = state.retransmissions.partition_point(|(when, _)| *when < at);
            end.checked_sub(1).map_or(0, |last| state.retransmissions[last].1)
        };
        Ok(TransferReport {
            bytes: total(after) - total(before),
            retransmissions: retransmissions(window.end) - retransmissions(window.start),
            stall_ms: stall as f64 / 1e6,
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The octet at a place of the transfer; 251 is prime, so that a shift by any buffer size shows.
fn pattern(place: u64) -> u8 {
    (place % 251) as u8
}

fn send_pattern(mut socket: TcpStream, state: &Mutex<TransferState>, stop: &AtomicBool) {
    let mut place: u64 = 0;
    let mut block = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        for (i, octet) in block.iter_mut().enumerate() {
            *octet = pattern(place + i as u64);
        }
        match socket.write(&block) {
            Ok(written) => place += written as u64,
            Err(e) if is_timeout(&e) => {}
            Err(e) => {
                lock(state).failure = Some(format!("sender: {e}"));
                return;
            }
        }
        lock(state).retransmissions.push((now_ns(), retransmissions(&socket)));
    }
}

fn check_pattern(mut socket: TcpStream, state: &Mutex<TransferState>, stop: &AtomicBool) {
    let mut place: u64 = 0;
    let mut block = [0; 65536];
    while !stop.load(Ordering::Relaxed) {
        match socket.read(&mut block) {
            Ok(0) => return,
            Ok(read) => {
                for octet in &block[..read] {
                    if *octet != pattern(place) {
                        lock(state).failure = Some(format!("octet {place} is wrong"));
                        return;
                    }
                    place += 1;
                }
                lock(state).deliveries.push((now_ns(), place));
            }
            Err(e) if is_timeout(&e) => {}
            Err(e) => {
                lock(state).failure = Some(format!("receiver: {e}"));
                return;
            }
        }
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn set_pace(socket: &TcpStream, bytes_per_s: u64) -> Result<()> {
    // SAFETY: the value is live and its length is right.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const bytes_per_s).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

fn retransmissions(socket: &TcpStream) -> u32 {
    // SAFETY: all zeros is a valid tcp_info; the kernel fills in at most the length it is given.
    unsafe {
        let mut info: libc::tcp_info = MaybeUninit::zeroed().assume_init();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        );
        info.tcpi_total_retrans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A packet each millisecond from 1000 ms on; `arrivals` as (sequence, ms).
    fn record(sent: u64, arrivals: &[(u64, u64)]) -> Record {
        Record {
            sent_ns: (0..sent).map(|n| (1000 + n) * MS).collect(),
            arrivals: arrivals.iter().map(|(sequence, at)| (*sequence, at * MS)).collect(),
        }
    }

    #[test]
    fn a_calm_window_has_the_pace_as_its_longest_gap() {
        let record = record(5, &[(0, 1000), (1, 1001), (2, 1002), (3, 1003), (4, 1004)]);
        let report = record.report(1000 * MS..1005 * MS);
        assert_eq!(report, Report { sent: 5, outage_ms: 1.0, ..Report::default() });
    }

    #[test]
    fn loss_duplicates_and_reordering_are_told_apart() {
        // 3 is lost, 1 comes twice, 4 overtakes 2.
        let record = record(6, &[(0, 1000), (1, 1001), (1, 1001), (4, 1004), (2, 1005), (5, 1006)]);
        let report = record.report(1000 * MS..1006 * MS);
        let expected = Report { sent: 6, lost: 1, duplicated: 1, reordered: 1, outage_ms: 3.0 };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_flow_that_does_not_come_back_is_an_outage_to_the_end() {
        let record = record(100, &[(0, 1000), (1, 1001)]);
        let report = record.report(1000 * MS..1100 * MS);
        assert_eq!((report.lost, report.outage_ms), (98, 99.0));
    }
}
