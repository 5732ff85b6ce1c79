//! Datagrams in batches: `recvmmsg` and `sendmmsg` over slots that are allocated once. With the
//! ancillary data that LISP needs: the local address a datagram came to (so that the answer leaves
//! from it), and the TTL and traffic class of an outer header. The only unsafe code about UDP.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;

/// Datagrams per system call.
pub const BATCH: usize = 64;

/// Slots are apart by this much more than their size, or all of them would begin in the same few
/// sets of the processor's cache.
const STAGGER: usize = 192;

/// Room for packet information (IPv6: 20 octets), TTL and traffic class, with their headers.
const CONTROL: usize = 96;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Ancillary([u8; CONTROL]);

#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    const EMPTY: Self = Self { family: 0 };

    fn of(addr: SocketAddr) -> (Self, usize) {
        match addr {
            SocketAddr::V4(addr) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: addr.port().to_be(),
                    sin_addr: in_addr(*addr.ip()),
                    sin_zero: [0; 8],
                };
                (Self { v4: name }, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(addr) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                (Self { v6: name }, size_of::<libc::sockaddr_in6>())
            }
        }
    }

    /// What the kernel wrote; `None` for a family that was not asked for.
    fn addr(&self) -> Option<SocketAddr> {
        // SAFETY: all variants begin with the family and are plain integers, so every octet
        // pattern is a valid value of each; the union was zeroed when it was made.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(u32::from_be(self.v4.sin_addr.s_addr));
                    Some(SocketAddr::new(ip.into(), u16::from_be(self.v4.sin_port)))
                }
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(SocketAddrV6::new(ip, port, 0, self.v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}

/// The parts of [`BATCH`] messages but their octets. Boxed slices never move, so that the headers
/// can point to the other parts for as long as this lives.
struct Parts {
    iovs: Box<[libc::iovec]>,
    names: Box<[Name]>,
    ancillary: Box<[Ancillary]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers in the headers lead to the other parts, which move along; those in `iovs`
// are set anew before each use.
unsafe impl Send for Parts {}

impl Parts {
    fn new() -> Self {
        // SAFETY: all-zero values of these C structs are valid.
        let (iov, header): (libc::iovec, libc::mmsghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let mut parts = Self {
            iovs: vec![iov; BATCH].into(),
            names: vec![Name::EMPTY; BATCH].into(),
            ancillary: vec![Ancillary([0; CONTROL]); BATCH].into(),
            headers: vec![header; BATCH].into(),
        };
        for at in 0..BATCH {
            let header = &mut parts.headers[at].msg_hdr;
            header.msg_name = (&raw mut parts.names[at]).cast();
            header.msg_iov = &raw mut parts.iovs[at];
            header.msg_iovlen = 1;
            header.msg_control = parts.ancillary[at].0.as_mut_ptr().cast();
        }
        parts
    }
}

/// A datagram that came in.
pub struct Incoming<'a> {
    pub from: SocketAddr,
    /// Where it came to, when the socket was asked for that.
    pub local: Option<IpAddr>,
    /// The interface it came over, told with `local`.
    pub link: Option<u32>,
    /// TTL or hop limit, and traffic class, of the IP header, when the socket was asked for them.
    pub ttl: Option<u8>,
    pub traffic_class: Option<u8>,
    pub octets: &'a mut [u8],
}

/// Slots for incoming datagrams.
pub struct Receiver {
    parts: Parts,
    slots: Vec<u8>,
    stride: usize,
    slot_bytes: usize,
    filled: usize,
}

impl Receiver {
    /// A datagram that is longer than `slot_bytes` is left out.
    pub fn new(slot_bytes: usize) -> Self {
        let stride = slot_bytes.next_multiple_of(64) + STAGGER;
        let slots = vec![0; stride * BATCH];
        Self { parts: Parts::new(), slots, stride, slot_bytes, filled: 0 }
    }

    /// Fetches what is there, at most [`BATCH`] datagrams; `WouldBlock` when there is none.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        self.filled = 0;
        for (at, slot) in self.slots.chunks_exact_mut(self.stride).enumerate() {
            let base = slot.as_mut_ptr().cast();
            self.parts.iovs[at] = libc::iovec { iov_base: base, iov_len: self.slot_bytes };
            let header = &mut self.parts.headers[at].msg_hdr;
            header.msg_namelen = size_of::<Name>() as libc::socklen_t;
            header.msg_controllen = CONTROL;
        }
        // SAFETY: each header points to its parts with their true lengths (set above and in
        // `Parts::new`), and all outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                self.parts.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        self.filled = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(self.filled)
    }

    /// The datagram in slot `at` of those that [`Self::receive`] counted. `None` when it was cut.
    pub fn get(&mut self, at: usize) -> Option<Incoming<'_>> {
        assert!(at < self.filled, "of the datagrams that were received");
        let header = &self.parts.headers[at];
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let from = self.parts.names[at].addr()?;
        let (mut local, mut link, mut ttl, mut traffic_class) = (None, None, None, None);
        // SAFETY: the kernel filled in the ancillary buffer and its length, and the macros stay
        // within them; every value is read no further than its own length says.
        unsafe {
            let message = &header.msg_hdr;
            let mut item = libc::CMSG_FIRSTHDR(message);
            while !item.is_null() {
                let data = libc::CMSG_DATA(item);
                let len = ((*item).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                match ((*item).cmsg_level, (*item).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO)
                        if len >= size_of::<libc::in_pktinfo>() =>
                    {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                        link = u32::try_from(info.ipi_ifindex).ok();
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
                        if len >= size_of::<libc::in6_pktinfo>() =>
                    {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                        link = Some(info.ipi6_ifindex);
                    }
                    (libc::IPPROTO_IP, libc::IP_TTL)
                    | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
                        if len >= size_of::<libc::c_int>() =>
                    {
                        ttl = u8::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                    }
                    // One octet in IPv4, an integer in IPv6.
                    (libc::IPPROTO_IP, libc::IP_TOS) if len >= 1 => traffic_class = Some(*data),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if len >= size_of::<libc::c_int>() => {
                        traffic_class =
                            u8::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                    }
                    _ => {} // not asked for
                }
                item = libc::CMSG_NXTHDR(message, item);
            }
        }
        let len = (header.msg_len as usize).min(self.slot_bytes);
        let octets = &mut self.slots[at * self.stride..][..len];
        Some(Incoming { from, local, link, ttl, traffic_class, octets })
    }

    /// The octets in slot `at` again, as they have become.
    pub fn octets(&self, at: usize) -> &[u8] {
        &self.slots[at * self.stride..][..self.slot_bytes]
    }
}

/// What became of the datagrams that were to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub sent: u64,
    pub octets: u64,
    /// What the kernel did not take: no route, no buffer space, too big.
    pub refused: u64,
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub to: SocketAddr,
    /// The local address it leaves from, where the socket is bound to none.
    pub from: Option<IpAddr>,
    pub octets: &'a [u8],
}

/// Whether the socket takes something within the time.
fn has_room(fd: RawFd, wait_ms: libc::c_int) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer describes `entry`, which outlives the call.
    unsafe { libc::poll(&raw mut entry, 1, wait_ms) > 0 }
}

/// Sends datagrams in batches.
pub struct Sender {
    parts: Parts,
}

impl Sender {
    pub fn new() -> Self {
        Self { parts: Parts::new() }
    }

    /// Sends all. A datagram that the kernel refuses is dropped and counted, the others are sent;
    /// when the socket's buffer is full, the rest is dropped: nothing waits here, since what is
    /// lost is sent again by those who want it.
    pub fn send<'a>(
        &mut self,
        fd: RawFd,
        datagrams: impl IntoIterator<Item = Outgoing<'a>>,
    ) -> Sent {
        self.send_within(fd, 0, datagrams)
    }

    /// The same, but for a full buffer it waits, up to so many milliseconds for each batch.
    pub fn send_within<'a>(
        &mut self,
        fd: RawFd,
        wait_ms: libc::c_int,
        datagrams: impl IntoIterator<Item = Outgoing<'a>>,
    ) -> Sent {
        let mut sent = Sent::default();
        let mut filled = 0;
        for datagram in datagrams {
            self.put(filled, datagram);
            filled += 1;
            if filled == BATCH {
                self.send_first(fd, wait_ms, filled, &mut sent);
                filled = 0;
            }
        }
        self.send_first(fd, wait_ms, filled, &mut sent);
        sent
    }

    fn put(&mut self, at: usize, datagram: Outgoing<'_>) {
        // The kernel only reads.
        let base = datagram.octets.as_ptr().cast_mut().cast();
        self.parts.iovs[at] = libc::iovec { iov_base: base, iov_len: datagram.octets.len() };
        let (name, name_len) = Name::of(datagram.to);
        self.parts.names[at] = name;
        let control_len = datagram.from.map_or(0, |from| self.set_source(at, from));
        let header = &mut self.parts.headers[at].msg_hdr;
        header.msg_namelen = name_len as libc::socklen_t;
        header.msg_controllen = control_len;
    }

    /// The first `filled` messages. The datagrams they came from are still borrowed.
    fn send_first(&mut self, fd: RawFd, wait_ms: libc::c_int, filled: usize, sent: &mut Sent) {
        let mut next = 0;
        while next < filled {
            let rest = &mut self.parts.headers[next..filled];
            // SAFETY: each header points to its parts with their true lengths, set by `put`, and
            // `send` has all datagrams borrowed until it returns.
            let count = unsafe {
                libc::sendmmsg(
                    fd,
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(count) {
                Ok(count) => {
                    sent.sent += count as u64;
                    sent.octets += rest[..count].iter().map(|m| u64::from(m.msg_len)).sum::<u64>();
                    next += count;
                }
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if wait_ms > 0 && has_room(fd, wait_ms) => {}
                    io::ErrorKind::WouldBlock => {
                        sent.refused += (filled - next) as u64;
                        next = filled;
                    }
                    _ => {
                        sent.refused += 1;
                        next += 1;
                    }
                },
            }
        }
    }

    /// Writes the packet information of message `at`; returns the length of the ancillary data.
    fn set_source(&mut self, at: usize, from: IpAddr) -> usize {
        fn write<T>(
            room: &mut Ancillary,
            level: libc::c_int,
            kind: libc::c_int,
            value: T,
        ) -> usize {
            const { assert!(size_of::<T>() + size_of::<libc::cmsghdr>() + 8 <= CONTROL) };
            let payload = size_of::<T>() as u32;
            // SAFETY: the buffer is aligned for a header, and longer than header and value.
            unsafe {
                let header = room.0.as_mut_ptr().cast::<libc::cmsghdr>();
                (*header).cmsg_level = level;
                (*header).cmsg_type = kind;
                (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
                libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
                libc::CMSG_SPACE(payload) as usize
            }
        }
        let room = &mut self.parts.ancillary[at];
        match from {
            IpAddr::V4(from) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(from),
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                write(room, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            IpAddr::V6(from) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: 0,
                };
                write(room, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        }
    }
}
