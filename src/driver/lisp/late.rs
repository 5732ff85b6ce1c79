//! The sensor of late packets, for data planes of the kernel that cannot tell them: packets that
//! come by tunnel for a node that has left. Their sender has an old mapping, and hears of it.
//!
//! An AF_PACKET socket with a classic BPF program looks for LISP data packets whose inner
//! destination is a departed prefix, so that other traffic costs one run of the program. It is
//! open only while there are departed prefixes. With more than a program lists ([`LISTED_MAX`]) all
//! LISP data packets are let through, and those that are read are a sample: at most [`PER_SECOND`],
//! the kernel drops and counts what comes beyond.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::dataplane::attach_filter;
use crate::dataplane::tun::Table;
use crate::types::lisp::EncapEvent;
use crate::types::{Instant, Prefix};
use crate::wire::encap::LispHeader;
use crate::wire::lisp::DATA_PORT;

/// Departed prefixes that a program lists: an IPv6 one takes up to 13 instructions of the kernel's
/// 4096.
const LISTED_MAX: usize = 256;

/// Departed prefixes, at most; beyond, those that came last are not sensed. A node that left long
/// ago has no senders with an old mapping, and is forgotten by the control plane.
pub const DEPARTED_MAX: usize = 65_536;

/// Packets read, per second; each is told, so this bounds the control plane's work too.
const PER_SECOND: u32 = 1_000;
const BURST: u32 = 100;

/// Some hundred packets wait in the kernel: what is read is fresh.
const RECEIVE_BUFFER_BYTES: libc::c_int = 128 << 10;

/// Outer IPv4 with options or IPv6, UDP, LISP, and the inner header.
const SNAP_BYTES: u32 = 60 + 8 + 8 + 40;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LateCounters {
    pub seen: u64,
    /// Told as [`EncapEvent::Late`].
    pub told: u64,
    /// Dropped by the kernel before they were read: the rest of the sample.
    pub left_out: u64,
}

pub struct LateSensor {
    socket: Option<OwnedFd>,
    departed: BTreeSet<Prefix>,
    /// The same, to look up.
    table: Table<()>,
    /// `departed` has changed since the program was made.
    stale: bool,
    tokens: u32,
    filled_at: Instant,
    /// There was more to read than tokens.
    waiting: bool,
    counters: LateCounters,
}

impl Default for LateSensor {
    fn default() -> Self {
        Self {
            socket: None,
            departed: BTreeSet::new(),
            table: Table::default(),
            stale: false,
            tokens: BURST,
            filled_at: Instant::ZERO,
            waiting: false,
            counters: LateCounters::default(),
        }
    }
}

impl LateSensor {
    /// A node has left. [`Self::update`] makes it count.
    pub fn add(&mut self, prefix: Prefix) {
        if self.departed.len() < DEPARTED_MAX && self.departed.insert(prefix) {
            self.table.insert(prefix, ());
            self.stale = true;
        }
    }

    pub fn remove(&mut self, prefix: Prefix) {
        if self.departed.remove(&prefix) {
            self.table.remove(prefix);
            self.stale = true;
        }
    }

    pub fn departed(&self) -> usize {
        self.departed.len()
    }

    pub fn counters(&mut self) -> LateCounters {
        if let Some(socket) = &self.socket {
            self.counters.left_out += u64::from(kernel_drops(socket));
        }
        self.counters
    }

    /// Opens, closes or changes the socket, as what was added and removed wants it. In the network
    /// namespace of the calling thread. A new socket is returned, to be waited for.
    pub fn update(&mut self) -> io::Result<Option<RawFd>> {
        if !mem::take(&mut self.stale) {
            return Ok(None);
        }
        if self.departed.is_empty() {
            self.counters();
            self.socket = None;
            self.waiting = false;
            return Ok(None);
        }
        let program = program(&self.departed);
        if let Some(socket) = &self.socket {
            attach_filter(socket.as_raw_fd(), &program)?;
            return Ok(None);
        }
        let socket = open(&program).inspect_err(|_| self.stale = true)?;
        let fd = socket.as_raw_fd();
        self.socket = Some(socket);
        Ok(Some(fd))
    }

    /// Reads what there is, as far as the limit allows; the rest at [`Self::poll_timeout`].
    pub fn read(&mut self, now: Instant, out: &mut Vec<EncapEvent>) -> io::Result<()> {
        self.refill(now);
        self.waiting = false;
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut buffer = [0; SNAP_BYTES as usize];
        loop {
            if self.tokens == 0 {
                self.waiting = true;
                return Ok(());
            }
            // SAFETY: the pointer and the length describe `buffer`.
            let len = unsafe {
                let room = buffer.as_mut_ptr().cast();
                libc::recv(socket.as_raw_fd(), room, buffer.len(), libc::MSG_DONTWAIT)
            };
            let Ok(len) = usize::try_from(len) else {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(()),
                    io::ErrorKind::Interrupted => continue,
                    // An interface went down: it has no packets any more, the others do.
                    _ if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                    _ => Err(error),
                };
            };
            self.tokens -= 1;
            self.counters.seen += 1;
            if let Some(event) = late(&buffer[..len.min(buffer.len())])
                && let EncapEvent::Late { destination, .. } = event
                && self.table.lookup_mut(destination).is_some()
            {
                self.counters.told += 1;
                out.push(event);
            }
        }
    }

    /// When to [`Self::read`] without being woken.
    pub fn poll_timeout(&self) -> Instant {
        // Some at once, rather than one by one.
        let wait = Duration::from_millis(20);
        if self.waiting { self.filled_at + wait } else { Instant::FAR_FUTURE }
    }

    fn refill(&mut self, now: Instant) {
        const TOKEN: Duration = Duration::from_micros(1_000_000 / PER_SECOND as u64);
        let earned = now.saturating_since(self.filled_at).as_micros() / TOKEN.as_micros();
        if earned >= u128::from(BURST) {
            (self.tokens, self.filled_at) = (BURST, now);
        } else if let Ok(earned) = u32::try_from(earned) {
            self.tokens = (self.tokens + earned).min(BURST);
            self.filled_at += TOKEN * earned;
        }
    }
}

fn open(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    // Without the link-layer header, so that the program is the same for all kinds of links.
    // Protocol 0: nothing is received before the filter is in place.
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: plain integers; the result is checked.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    attach_filter(raw, program)?;
    super::udp::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES)?;
    // SAFETY: an all-zero `sockaddr_ll` is a valid value.
    let mut addr: libc::sockaddr_ll = unsafe { mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as libc::c_ushort;
    addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    let len = size_of_val(&addr) as libc::socklen_t;
    // SAFETY: the pointer and the length describe `addr`, which outlives the call.
    let rc = unsafe { libc::bind(raw, (&raw const addr).cast(), len) };
    if rc == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Packets that found the socket full since this was last asked.
fn kernel_drops(socket: &OwnedFd) -> u32 {
    // SAFETY: plain integers, all zero is valid.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut len = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the pointers describe `stats` and its length, which outlive the call.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if rc == 0 { stats.tp_drops } else { 0 }
}

/// What a LISP data packet says, of which only the beginning is there.
fn late(packet: &[u8]) -> Option<EncapEvent> {
    let (rloc, _, header_len) = addresses(packet)?;
    let payload = packet.get(header_len + 8..)?;
    let (header, inner) = LispHeader::decode(payload).ok()?;
    let (source, destination, _) = addresses(inner)?;
    Some(EncapEvent::Late { rloc, iid: header.iid.unwrap_or_default(), source, destination })
}

/// Source, destination, and the length of the header.
fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    fn at<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
        packet.get(at..)?.first_chunk().copied()
    }
    match packet.first()? >> 4 {
        4 => {
            let len = usize::from(packet[0] & 0xf) * 4;
            let source = Ipv4Addr::from(at::<4>(packet, 12)?);
            Some((source.into(), Ipv4Addr::from(at::<4>(packet, 16)?).into(), len))
        }
        6 => {
            let source = Ipv6Addr::from(at::<16>(packet, 8)?);
            Some((source.into(), Ipv6Addr::from(at::<16>(packet, 24)?).into(), 40))
        }
        _ => None,
    }
}

// ---- the filter -------------------------------------------------------------------------------

const LOAD_OCTET: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_OCTET_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_HALF_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const LOAD_WORD_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
const SET_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
/// X becomes the length of the IPv4 header that begins at `k`.
const SET_X_HEADER: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Offset of the kernel's own value (linux/filter.h), and the one we look for.
const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
const OUTGOING: u32 = 4;

const fn branch(code: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k }
}

const fn plain(code: u32, k: u32) -> libc::sock_filter {
    branch(code, k, 0, 0)
}

const TAKE: libc::sock_filter = plain(RETURN, SNAP_BYTES);
const DROP: libc::sock_filter = plain(RETURN, 0);

const UDP: u32 = 17;

/// Octets from the UDP header to the inner packet.
const AT_INNER: u32 = 8 + 8;

/// `jump` over what follows; its length is 32 bits, unlike that of a comparison.
fn jump_over(what: &[libc::sock_filter]) -> libc::sock_filter {
    plain(JUMP, u32::try_from(what.len()).expect("a program is below 4096 instructions"))
}

/// LISP data packets for the departed, that came in. X becomes the length of the outer header.
fn program(departed: &BTreeSet<Prefix>) -> Vec<libc::sock_filter> {
    let outer6 = [plain(LOAD_OCTET, 6), branch(EQUAL, UDP, 1, 0), DROP, plain(SET_X, 40)];
    let outer4 = [
        branch(EQUAL, 0x40, 1, 0),
        DROP,
        plain(LOAD_OCTET, 9),
        branch(EQUAL, UDP, 1, 0),
        DROP,
        plain(LOAD_HALF, 6),
        branch(ANY_BIT, 0x1fff, 0, 1), // a later fragment has no port
        DROP,
        plain(SET_X_HEADER, 0),
        jump_over(&outer6),
    ];
    let mut program = vec![
        plain(LOAD_WORD, PACKET_TYPE),
        branch(EQUAL, OUTGOING, 0, 1),
        DROP,
        plain(LOAD_OCTET, 0),
        plain(AND, 0xf0),
        branch(EQUAL, 0x60, 0, 1),
        jump_over(&outer4),
    ];
    program.extend(outer4);
    program.extend(outer6);
    program.extend([plain(LOAD_HALF_X, 2), branch(EQUAL, DATA_PORT.into(), 1, 0), DROP]);
    if departed.len() > LISTED_MAX {
        program.push(TAKE);
        return program;
    }
    let (mut inner4, mut inner6) = (Vec::new(), Vec::new());
    for &prefix in departed {
        match prefix {
            Prefix::V4 { addr, len } => list(&[addr], len, AT_INNER + 16, &mut inner4),
            Prefix::V6 { addr, len } => {
                let words = [96, 64, 32, 0].map(|shift| (addr >> shift) as u32);
                list(&words, len, AT_INNER + 24, &mut inner6);
            }
        }
    }
    inner4.push(DROP);
    inner6.push(DROP);
    program.extend([plain(LOAD_OCTET_X, AT_INNER), plain(AND, 0xf0), branch(EQUAL, 0x60, 0, 1)]);
    program.push(jump_over(&inner4));
    program.extend(inner4);
    program.extend(inner6);
    program
}

/// Takes a packet whose address at `at` is in the prefix; else goes on behind this.
fn list(words: &[u32], len: u8, at: u32, program: &mut Vec<libc::sock_filter>) {
    let mut tests = Vec::new();
    let mut bits = u32::from(len);
    for (offset, &word) in (at..).step_by(4).zip(words) {
        if bits == 0 {
            break;
        }
        tests.push(plain(LOAD_WORD_X, offset));
        if bits < 32 {
            tests.push(plain(AND, u32::MAX << (32 - bits)));
        }
        tests.push(branch(EQUAL, word, 0, u8::MAX));
        bits = bits.saturating_sub(32);
    }
    let end = tests.len();
    for (place, test) in tests.iter_mut().enumerate() {
        if test.jf == u8::MAX {
            // Over the rest of the tests, and over what takes the packet.
            test.jf = u8::try_from(end - place).expect("four words are 12 instructions");
        }
    }
    program.extend(tests);
    program.push(TAKE);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::types::lisp::InstanceId;
    use crate::wire::encap::ip::put_datagram;
    use crate::wire::encap::{Outer, encapsulate};

    /// A LISP data packet, or with another port a packet of something else.
    fn packet(outer: [&str; 2], inner: [&str; 2]) -> Vec<u8> {
        let socket = |addr: &str| (addr.parse::<IpAddr>().unwrap(), 9).into();
        let mut packet = Vec::new();
        put_datagram(socket(inner[0]), socket(inner[1]), b"hello", &mut packet);
        let outer = Outer {
            source: outer[0].parse().unwrap(),
            destination: outer[1].parse().unwrap(),
            source_port: None,
            header: LispHeader { iid: Some(InstanceId(7)), ..LispHeader::default() },
            checksum: false,
        };
        let mut datagram = Vec::new();
        encapsulate(&packet, &outer, &mut datagram).unwrap();
        datagram
    }

    fn passes(program: &[libc::sock_filter], packet: &[u8]) -> bool {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        attach_filter(receiver.as_raw_fd(), program).unwrap();
        receiver.set_nonblocking(true).unwrap();
        sender.send(packet).unwrap();
        receiver.recv(&mut [0; 256]).is_ok()
    }

    fn departed(list: &[&str]) -> BTreeSet<Prefix> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    const OUTER: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]];

    #[test]
    fn the_program_takes_the_departed_and_nobody_else() {
        let program = program(&departed(&["10.1.0.7", "10.2.0.0/17", "fd01::7", "fd02::/62"]));
        for outer in OUTER {
            for (from, to, taken) in [
                ("10.9.0.1", "10.1.0.7", true),
                ("10.9.0.1", "10.1.0.8", false),
                ("10.1.0.7", "10.9.0.1", false),
                ("10.9.0.1", "10.2.127.255", true),
                ("10.9.0.1", "10.2.128.0", false),
                ("fd09::1", "fd01::7", true),
                ("fd09::1", "fd01::8", false),
                ("fd09::1", "fd01:0:0:1::7", false),
                ("fd09::1", "fd02:0:0:3::9", true),
                ("fd09::1", "fd02:0:0:4::9", false),
            ] {
                let mut packet = packet(outer, [from, to]);
                assert_eq!(passes(&program, &packet), taken, "{outer:?} {from} {to}");
                let event = late(&packet[..packet.len().min(SNAP_BYTES as usize)]);
                let expected = EncapEvent::Late {
                    rloc: outer[0].parse().unwrap(),
                    iid: InstanceId(7),
                    source: from.parse().unwrap(),
                    destination: to.parse().unwrap(),
                };
                assert_eq!(event, Some(expected));
                let header_len = if outer[0].contains(':') { 40 } else { 20 };
                packet[header_len + 3] ^= 1;
                assert!(!passes(&program, &packet), "another port");
            }
        }
        let mut fragment = packet(OUTER[0], ["10.9.0.1", "10.1.0.7"]);
        assert!(passes(&program, &fragment));
        fragment[7] = 1;
        assert!(!passes(&program, &fragment));
        let mut tcp = packet(OUTER[0], ["10.9.0.1", "10.1.0.7"]);
        tcp[9] = 6;
        assert!(!passes(&program, &tcp));
        assert!(!passes(&program, &[0, 1, 8, 0, 6, 4, 0, 1]), "an ARP request");
    }

    #[test]
    fn a_full_program_is_accepted_by_the_kernel_and_more_are_a_sample_of_all() {
        let host = |n: u128| Prefix::v6((0xfd01 << 112) + n, 128).unwrap();
        let mut departed: BTreeSet<Prefix> = (0..LISTED_MAX as u128).map(host).collect();
        let full = program(&departed);
        assert!(full.len() < 4_096, "{} instructions", full.len());
        let late = packet(OUTER[0], ["fd09::1", "fd01::ff"]);
        let other = packet(OUTER[0], ["fd09::1", "fd01::1:ff"]);
        assert!(passes(&full, &late) && !passes(&full, &other));
        departed.insert(host(1 << 20));
        let sample = program(&departed);
        assert!(passes(&sample, &late) && passes(&sample, &other));
    }

    #[test]
    fn any_octets_are_survived() {
        let whole = packet(OUTER[0], ["10.9.0.1", "10.1.0.7"]);
        for cut in 0..whole.len() {
            let _ = late(&whole[..cut]);
        }
        for at in 0..whole.len() {
            for value in [0, 0x0f, 0x4f, 0x60, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = late(&changed);
            }
        }
    }
}
