//! Datagrams in batches, as raw as they come: the client sends what was encoded before, and the echo
//! is two system calls around nothing.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

pub const CONTROL_PORT: u16 = 4342;
pub const BATCH: usize = 64;
const SLOT: usize = 2048;
static BUFFER_BYTES: libc::c_int = 32 << 20;

/// Messages one after the other.
#[derive(Default)]
pub struct Messages {
    pub octets: Vec<u8>,
    ends: Vec<usize>,
}

impl Messages {
    /// What was appended to `octets` since the last call is one message; returns where it is.
    pub fn end(&mut self) -> std::ops::Range<usize> {
        let start = self.ends.last().copied().unwrap_or(0);
        self.ends.push(self.octets.len());
        start..self.octets.len()
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.octets[start..self.ends[at]]
    }

    pub fn clear(&mut self) {
        self.octets.clear();
        self.ends.clear();
    }
}

fn sockaddr(addr: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: addr.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*addr.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

/// A socket with room for a batch in each direction.
pub struct Port {
    socket: UdpSocket,
    slots: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    iovs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Port {
    pub fn open(ip: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::bind((ip, CONTROL_PORT))?;
        for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            // SAFETY: an integer option with its length.
            let done = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const BUFFER_BYTES).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: all-zero values of these C structs are valid.
        let (iov, header, name) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Ok(Self {
            socket,
            slots: vec![0; SLOT * BATCH],
            names: vec![name; BATCH],
            iovs: vec![iov; BATCH],
            headers: vec![header; BATCH],
        })
    }

    /// Receives what is there; `flags` is `MSG_DONTWAIT`, or `MSG_WAITFORONE` to wait for it.
    fn receive_batch(&mut self, flags: libc::c_int) -> io::Result<usize> {
        for at in 0..BATCH {
            self.iovs[at].iov_base = self.slots[at * SLOT..].as_mut_ptr().cast();
            self.iovs[at].iov_len = SLOT;
            let header = &mut self.headers[at].msg_hdr;
            header.msg_name = (&raw mut self.names[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovs[at];
            header.msg_iovlen = 1;
        }
        // SAFETY: each header points to a slot and a name of its own, all of which outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(count) {
            Ok(count) => Ok(count),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
                e => Err(e),
            },
        }
    }

    /// Hands what has come to `handle`; how many it was.
    pub fn receive(&mut self, mut handle: impl FnMut(&mut [u8])) -> io::Result<usize> {
        let count = self.receive_batch(libc::MSG_DONTWAIT)?;
        for at in 0..count {
            let len = (self.headers[at].msg_len as usize).min(SLOT);
            handle(&mut self.slots[at * SLOT..][..len]);
        }
        Ok(count)
    }

    /// Sends messages `from..to`, at most a batch; how many the kernel took.
    pub fn send(
        &mut self,
        destination: SocketAddrV4,
        messages: &Messages,
        range: std::ops::Range<usize>,
    ) -> io::Result<usize> {
        let count = range.len().min(BATCH);
        let mut name = sockaddr(destination);
        for (at, message) in range.take(count).enumerate() {
            let octets = messages.get(message);
            self.iovs[at].iov_base = octets.as_ptr().cast_mut().cast();
            self.iovs[at].iov_len = octets.len();
            let header = &mut self.headers[at].msg_hdr;
            header.msg_name = (&raw mut name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut self.iovs[at];
            header.msg_iovlen = 1;
        }
        self.send_batch(count)
    }

    fn send_batch(&mut self, count: usize) -> io::Result<usize> {
        // SAFETY: the first `count` headers point to octets and names that outlive the call.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// For ever: each datagram is answered by one of `reply_len` octets. One of four octets sets
    /// that length instead, and is answered by itself.
    pub fn echo(&mut self) -> io::Result<()> {
        let mut reply_len = SLOT;
        loop {
            let count = self.receive_batch(libc::MSG_WAITFORONE)?;
            for at in 0..count {
                let len = self.headers[at].msg_len as usize;
                let slot = &self.slots[at * SLOT..];
                if let (4, Some(&octets)) = (len, slot.first_chunk::<4>()) {
                    reply_len = (u32::from_be_bytes(octets) as usize).min(SLOT);
                    self.iovs[at].iov_len = 4;
                } else {
                    self.iovs[at].iov_len = reply_len;
                }
            }
            let mut sent = 0;
            while sent < count {
                // SAFETY: as in `send_batch`; names and slots are those that were received.
                let more = unsafe {
                    libc::sendmmsg(
                        self.socket.as_raw_fd(),
                        self.headers[sent..].as_mut_ptr(),
                        (count - sent) as libc::c_uint,
                        0,
                    )
                };
                sent += usize::try_from(more).map_err(|_| io::Error::last_os_error())?;
            }
        }
    }
}

/// Sends a range of messages, with so many unanswered at any time, and waits for their answers.
/// `check` says of each datagram that comes whether it is an answer; `meanwhile` is called now and
/// then. Fails when nothing comes for ten seconds.
pub fn exchange(
    port: &mut Port,
    to: SocketAddrV4,
    messages: &Messages,
    range: std::ops::Range<usize>,
    window: usize,
    mut check: impl FnMut(&mut [u8]) -> io::Result<bool>,
    mut meanwhile: impl FnMut() -> io::Result<()>,
) -> io::Result<Duration> {
    let total = range.len();
    let (mut next, mut answered) = (range.start, 0);
    let start = Instant::now();
    let mut last = start;
    while answered < total {
        let waiting = next - range.start - answered;
        let room = window.saturating_sub(waiting).min(range.end - next);
        if room >= BATCH.min(range.end - next) && room > 0 {
            next += port.send(to, messages, next..next + room)?;
        }
        let mut failed = None;
        let count = port.receive(|octets| match check(octets) {
            Ok(is_answer) => answered += usize::from(is_answer),
            Err(e) => failed = Some(e),
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        meanwhile()?;
        if count > 0 {
            last = Instant::now();
        } else if last.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other(format!("{} of {total} unanswered", total - answered)));
        }
    }
    Ok(start.elapsed())
}
