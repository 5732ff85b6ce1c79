//! Frames into a network of namespaces, and what arrived: shared by the benchmarks of data planes
//! in user space.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Of the link that frames go to.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FRAME_HEAD: usize = 14;
pub const BATCH: usize = 64;

pub fn command(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{program} {}: {text}", arguments.join(" "))))
}

/// Runs in a thread that lives in the namespace.
pub fn inside<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = fs::File::open(format!("/run/netns/{namespace}"))?;
            // SAFETY: a descriptor of a namespace; affects only the calling thread.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(what())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// IP packets received in a namespace, as its kernel counts them.
pub fn received(namespace: &str) -> io::Result<u64> {
    inside(namespace, || {
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            return Err(io::Error::other("no Ip lines in /proc/net/snmp"));
        };
        let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InReceives");
        found
            .and_then(|(_, value)| value.parse().ok())
            .ok_or_else(|| io::Error::other("no InReceives in /proc/net/snmp"))
    })?
}

/// Until the counter has not moved for a while.
pub fn settled(namespace: &str) -> io::Result<u64> {
    let mut last = received(namespace)?;
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(20));
        let now = received(namespace)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

pub struct Sender {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl Sender {
    /// Out of this link of a namespace.
    pub fn open(namespace: &str, link: &str, frames: Vec<Vec<u8>>) -> io::Result<Self> {
        let socket = inside(namespace, || -> io::Result<OwnedFd> {
            // SAFETY: plain integers; the result is checked.
            let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: `raw` is a new descriptor that nobody else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(raw) };
            let name = std::ffi::CString::new(link)?;
            // SAFETY: an all-zero `sockaddr_ll` is a valid value.
            let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            addr.sll_family = libc::AF_PACKET as libc::c_ushort;
            // SAFETY: `name` is a NUL-terminated string that outlives the call.
            addr.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as libc::c_int;
            let one: libc::c_int = 1;
            // SAFETY: the pointers and lengths describe `addr` and `one`, which outlive the calls.
            let rc = unsafe {
                let len = size_of_val(&addr) as libc::socklen_t;
                libc::setsockopt(
                    raw,
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const one).cast(),
                    4,
                ) | libc::bind(raw, (&raw const addr).cast(), len)
            };
            if rc == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
        })??;
        Ok(Self { socket, frames, next: 0 })
    }

    /// Sends so many in a call; how many the kernel took.
    fn send(&mut self, count: usize) -> io::Result<usize> {
        // SAFETY: all-zero values of these C structs are valid.
        let (mut iovs, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let len = self.frames.len();
        for at in 0..count {
            let frame = &self.frames[(self.next + at) % len];
            iovs[at] =
                libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            headers[at].msg_hdr.msg_iov = &raw mut iovs[at];
            headers[at].msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: the headers point to `iovs`, these to the frames, and all outlive the call; the
        // kernel only reads.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, 0)
        };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        self.next = (self.next + sent) % len;
        Ok(sent)
    }
}

impl Sender {
    /// At this rate, or as fast as it goes; how many were sent, and in what time.
    pub fn run(&mut self, per_second: Option<u32>, packets: u64) -> io::Result<(u64, Duration)> {
        let begun = Instant::now();
        let mut sent = 0_u64;
        while sent < packets {
            if let Some(rate) = per_second {
                let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
                let early = due.saturating_sub(begun.elapsed());
                if early > Duration::from_micros(100) {
                    std::thread::sleep(early);
                }
            }
            let count = usize::try_from(packets - sent).unwrap_or(BATCH).min(BATCH);
            sent += self.send(count)? as u64;
        }
        Ok((sent, begun.elapsed()))
    }
}

pub fn checksum(octets: &[u8]) -> u16 {
    let words = octets.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn packet(source: Ipv4Addr, destination: Ipv4Addr, port: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(28 + payload.len()).expect("a packet");
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&port[0].to_be_bytes());
    packet.extend_from_slice(&port[1].to_be_bytes());
    packet.extend_from_slice(&(len - 20).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

pub fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD + packet.len());
    frame.extend_from_slice(&MAC);
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend_from_slice(packet);
    frame
}

/// Processor time of each thread of this process with this name, in the order of their beginnings.
pub fn thread_times(name: &str) -> io::Result<Vec<Duration>> {
    let mut tasks = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ns = schedstat.split_whitespace().next().and_then(|ns| ns.parse().ok());
            let number = task.file_name().to_string_lossy().parse().unwrap_or(u32::MAX);
            tasks.push((number, Duration::from_nanos(ns.unwrap_or_default())));
        }
    }
    tasks.sort_unstable();
    Ok(tasks.into_iter().map(|(_, time)| time).collect())
}

pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

pub fn machine() -> Value {
    let first = |path: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?.to_string();
        Some(line.split_once(':').map_or(line.clone(), |(_, value)| value.trim().to_string()))
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": release.trim(),
    })
}
