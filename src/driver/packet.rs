//! The sensor of an access link: an AF_PACKET socket that sees ARP, Neighbor Discovery, and data
//! packets whose source is not attached yet.
//!
//! A classic BPF program in the kernel leaves out the traffic of attached hosts, so a busy link
//! costs the routing thread nothing. It is made anew when hosts attach or leave. A program holds
//! so many sources ([`LISTED_MAX`]); on a link with more, one in [`SAMPLE`] data packets is let
//! through instead, whatever its source, and the anchor room (which knows all of them) ignores
//! those of attached hosts. ARP and Neighbor Discovery are never sampled.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use crate::dataplane::attach_filter;
use crate::types::Prefix;
use crate::types::seam::IfIndex;
use crate::wire::nd::Checksum;

/// Sources a program lists. The largest program stays below the kernel's 4096 instructions
/// (`BPF_MAXINSNS`): some 2.3 for an IPv4 host and 11 for an IPv6 one.
const LISTED_MAX: usize = 1_000;
const LISTED_IPV6_MAX: usize = 160;
/// Attached prefixes that are not single hosts.
const LISTED_NETWORKS_MAX: usize = 32;

/// With more hosts, one data packet of so many is looked at.
const SAMPLE: u32 = 256;

/// Enough for every message of ARP and Neighbor Discovery; of data packets only the head matters.
const SNAP_BYTES: u32 = 1_514;

/// Frames that wait in the kernel. When full, the kernel drops the newest; hosts repeat.
const RECEIVE_BUFFER_BYTES: libc::c_int = 1 << 20;

pub struct PacketSocket {
    fd: AsyncFd<OwnedFd>,
    link: IfIndex,
}

/// One frame in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub len: usize,
    pub checksum: Checksum,
}

impl PacketSocket {
    /// Listens on one link, in the network namespace of the calling thread.
    pub fn open(link: IfIndex) -> io::Result<Self> {
        // Protocol 0: nothing is received before the filter is in place and the link is bound.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: plain integers; the result is checked.
        let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        attach_filter(fd.as_raw_fd(), &program(&[]))?;
        let index = libc::c_int::try_from(link.0).map_err(|_| io::ErrorKind::InvalidInput)?;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1)?;
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES)?;
        // Solicitations go to groups of addresses that are not ours.
        let membership = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: u16::try_from(libc::PACKET_MR_ALLMULTI).expect("a small constant"),
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        bind(&fd, index)?;
        // SAFETY: an `OwnedFd` gives the same open descriptor until it is dropped.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd, link })
    }

    pub fn link(&self) -> IfIndex {
        self.link
    }

    /// From now on, data packets from these sources are not reported. Returns false when there
    /// are too many to list, and data packets are sampled.
    pub fn set_attached(&self, sources: impl IntoIterator<Item = Prefix>) -> io::Result<bool> {
        let sources: Vec<Prefix> = sources.into_iter().take(LISTED_MAX + 1).collect();
        let count = |wanted: fn(&Prefix) -> bool| sources.iter().filter(|p| wanted(p)).count();
        let fits = sources.len() <= LISTED_MAX
            && count(|p| matches!(p, Prefix::V6 { .. })) <= LISTED_IPV6_MAX
            && count(|p| !p.is_host()) <= LISTED_NETWORKS_MAX;
        if fits {
            match attach_filter(self.fd.as_raw_fd(), &program(&sources)) {
                Ok(()) => return Ok(true),
                // The kernel's memory for options (net.core.optmem_max) is smaller than that.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
                Err(error) => return Err(error),
            }
        }
        attach_filter(self.fd.as_raw_fd(), &sampling_program())?;
        Ok(false)
    }

    /// Waits for the next frame of this link. `buffer` holds [`SNAP_BYTES`] or more.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| receive(fd.get_ref(), buffer)) {
                Ok(Ok(Some(received))) => return Ok(received),
                Ok(Ok(None)) => {} // of a VLAN
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// The next frame that is already there.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        loop {
            match receive(self.fd.get_ref(), buffer) {
                Ok(Some(received)) => return Ok(Some(received)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a whole Ethernet frame. A full queue of the interface is an error; what is sent here
    /// is repeated by those who want it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `frame`.
        let sent = unsafe {
            libc::send(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("a small struct");
    // SAFETY: the pointer and the length describe `value`, a plain C struct or integer.
    let rc =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(fd: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero `sockaddr_ll` is a valid value.
    let mut addr: libc::sockaddr_ll = unsafe { mem::zeroed() };
    addr.sll_family = u16::try_from(libc::AF_PACKET).expect("a small constant");
    addr.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("a small constant").to_be();
    addr.sll_ifindex = index;
    let len = libc::socklen_t::try_from(size_of_val(&addr)).expect("a small struct");
    // SAFETY: the pointer and the length describe `addr`.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `None` for a frame that is not of this link (one of a VLAN whose tag the hardware took off).
fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero `msghdr` is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: `message` points to `part` (which describes `buffer`) and to `control`, with their
    // lengths; all outlive the call.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let status = auxiliary_status(&message);
    if status & libc::TP_STATUS_VLAN_VALID != 0 {
        return Ok(None);
    }
    let checksum = if status & libc::TP_STATUS_CSUMNOTREADY != 0 {
        Checksum::NotReady
    } else {
        Checksum::Verify
    };
    Ok(Some(Received { len: len.min(buffer.len()), checksum }))
}

fn auxiliary_status(message: &libc::msghdr) -> u32 {
    // SAFETY: the kernel filled in the control buffer, and the macros stay within its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let fits = (*header).cmsg_len as usize
                >= libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
            if (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA
                && fits
            {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                return data.read_unaligned().tp_status;
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    0
}

// ---- the filter -------------------------------------------------------------------------------

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_OCTET: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Offsets of the kernel's own values (linux/filter.h).
const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
const RANDOM: u32 = (-0x1000_i32 + 56) as u32;
const OUTGOING: u32 = 4;

const AT_ETHERTYPE: u32 = 12;
const AT_IPV4_SOURCE: u32 = 26;
const AT_NEXT_HEADER: u32 = 20;
const AT_IPV6_SOURCE: u32 = 22;
const AT_ICMP6_TYPE: u32 = 54;

/// Single hosts per leaf of the search tree.
const LEAF_MAX: usize = 6;

type Program = Vec<libc::sock_filter>;

const fn branch(code: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k }
}

const fn plain(code: u32, k: u32) -> libc::sock_filter {
    branch(code, k, 0, 0)
}

const TAKE: libc::sock_filter = plain(RETURN, SNAP_BYTES);
const DROP: libc::sock_filter = plain(RETURN, 0);

/// `jump` over what follows; its length is 32 bits, unlike that of a comparison.
fn jump_over(len: usize) -> libc::sock_filter {
    plain(JUMP, u32::try_from(len).expect("a program is below 4096 instructions"))
}

/// Data packets from `attached` are left out.
fn program(attached: &[Prefix]) -> Program {
    let mut hosts4 = Vec::new();
    let mut hosts6 = Vec::new();
    let (mut networks4, mut networks6) = (Program::new(), Program::new());
    for &prefix in attached {
        match prefix {
            Prefix::V4 { addr, len: 32 } => hosts4.push(addr),
            Prefix::V4 { addr, len } => network(AT_IPV4_SOURCE, &[addr], len, &mut networks4),
            Prefix::V6 { addr, len: 128 } => hosts6.push(addr),
            Prefix::V6 { addr, len } => {
                network(AT_IPV6_SOURCE, &words(addr), len, &mut networks6);
            }
        }
    }
    hosts4.sort_unstable();
    // The last word tells hosts apart best; a tree over it, the rest at the leaves.
    hosts6.sort_unstable_by_key(|addr| (words(*addr)[3], *addr));

    let mut ipv4 = networks4;
    ipv4.push(plain(LOAD_WORD, AT_IPV4_SOURCE));
    tree4(&hosts4, &mut ipv4);
    let mut ipv6 = networks6;
    ipv6.push(plain(LOAD_WORD, AT_IPV6_SOURCE + 12));
    tree6(&hosts6, &mut ipv6);
    assemble(&ipv4, &ipv6)
}

/// Too many hosts to list: a part of all data packets.
fn sampling_program() -> Program {
    let sample =
        [plain(LOAD_WORD, RANDOM), plain(AND, SAMPLE - 1), branch(EQUAL, 0, 0, 1), TAKE, DROP];
    assemble(&sample, &sample)
}

/// What is the same for all: `ipv4` and `ipv6` end with a verdict about a data packet.
fn assemble(ipv4: &[libc::sock_filter], ipv6: &[libc::sock_filter]) -> Program {
    let head6 = [
        plain(LOAD_OCTET, AT_NEXT_HEADER),
        branch(EQUAL, 58, 0, 3),
        plain(LOAD_OCTET, AT_ICMP6_TYPE),
        branch(AT_LEAST, 137, 1, 0),
        branch(AT_LEAST, 133, 4, 0),
        // Data from a link-local or unspecified source is about the link (MLD, mDNS, DHCPv6).
        plain(LOAD_WORD, AT_IPV6_SOURCE),
        branch(EQUAL, 0, 3, 0),
        plain(AND, 0xffc0_0000),
        branch(EQUAL, 0xfe80_0000, 1, 2),
        TAKE,
        DROP,
    ];
    let head4 = [
        plain(LOAD_WORD, AT_IPV4_SOURCE),
        branch(EQUAL, 0, 0, 1), // a DHCP client
        DROP,
    ];
    let mut program = vec![
        plain(LOAD_WORD, PACKET_TYPE),
        branch(EQUAL, OUTGOING, 0, 1),
        DROP,
        plain(LOAD_HALF, AT_ETHERTYPE),
        branch(EQUAL, 0x0806, 0, 1),
        TAKE,
        branch(EQUAL, 0x0800, 1, 0),
        jump_over(head4.len() + ipv4.len()),
    ];
    program.extend(head4);
    program.extend_from_slice(ipv4);
    program.extend([branch(EQUAL, 0x86dd, 1, 0), DROP]);
    program.extend(head6);
    program.extend_from_slice(ipv6);
    program
}

fn words(addr: u128) -> [u32; 4] {
    let [a, b, c, d] = [96, 64, 32, 0].map(|shift| (addr >> shift) as u32);
    [a, b, c, d]
}

/// Sources of a whole prefix: compared word by word, then dropped; else on to what follows.
fn network(at: u32, addr: &[u32], len: u8, out: &mut Program) {
    let mut code = Program::new();
    let (mut at, mut left) = (at, u32::from(len));
    for &word in addr {
        if left == 0 {
            break;
        }
        let bits = left.min(32);
        code.push(plain(LOAD_WORD, at));
        if bits < 32 {
            code.push(plain(AND, u32::MAX << (32 - bits)));
        }
        code.push(branch(EQUAL, word, 0, u8::MAX)); // the way out is patched below
        at += 4;
        left -= bits;
    }
    code.push(DROP);
    let end = code.len();
    for (index, step) in code.iter_mut().enumerate() {
        if step.jf == u8::MAX {
            step.jf = u8::try_from(end - index - 1).expect("at most 13 instructions");
        }
    }
    out.extend(code);
}

/// Binary search with the source in the accumulator. Ends with a verdict on every path.
fn tree4(hosts: &[u32], out: &mut Program) {
    if hosts.len() <= LEAF_MAX {
        for &host in hosts {
            out.extend([branch(EQUAL, host, 0, 1), DROP]);
        }
        out.push(TAKE);
        return;
    }
    let (left, right) = hosts.split_at(hosts.len() / 2);
    let mut below = Program::new();
    tree4(left, &mut below);
    out.extend([branch(AT_LEAST, right[0], 0, 1), jump_over(below.len())]);
    out.extend(below);
    tree4(right, out);
}

/// The same for IPv6, by the last word of the source, which is in the accumulator.
fn tree6(hosts: &[u128], out: &mut Program) {
    // Equal last words must not be torn apart.
    let middle = hosts.get(hosts.len() / 2).map_or(0, |&host| words(host)[3]);
    let split = hosts.partition_point(|&host| words(host)[3] < middle);
    if hosts.len() <= LEAF_MAX || split == 0 {
        for &host in hosts {
            network(AT_IPV6_SOURCE, &words(host), 128, out);
        }
        out.push(TAKE);
        return;
    }
    let (left, right) = hosts.split_at(split);
    let mut below = Program::new();
    tree6(left, &mut below);
    out.extend([branch(AT_LEAST, middle, 0, 1), jump_over(below.len())]);
    out.extend(below);
    tree6(right, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// Runs a program in the kernel, on a pair of Unix sockets, which needs no privileges. (The
    /// packet type is "to this host" there, as for what a host sends to its gateway.)
    struct Filtered {
        sender: UnixDatagram,
        receiver: UnixDatagram,
    }

    impl Filtered {
        fn new(program: &[libc::sock_filter]) -> Self {
            let (sender, receiver) = UnixDatagram::pair().unwrap();
            attach_filter(receiver.as_raw_fd(), program).unwrap();
            receiver.set_nonblocking(true).unwrap();
            Self { sender, receiver }
        }

        fn passes(&self, frame: &[u8]) -> bool {
            self.sender.send(frame).unwrap();
            self.receiver.recv(&mut [0; 2048]).is_ok()
        }
    }

    fn data(source: &str) -> Vec<u8> {
        let mut frame = vec![0; 74];
        match Prefix::host(source.parse().unwrap()) {
            Prefix::V4 { addr, .. } => {
                frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
                frame[26..30].copy_from_slice(&addr.to_be_bytes());
            }
            Prefix::V6 { addr, .. } => {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[20] = 17;
                frame[22..38].copy_from_slice(&addr.to_be_bytes());
            }
        }
        frame
    }

    fn icmp6(source: &str, kind: u8) -> Vec<u8> {
        let mut frame = data(source);
        (frame[20], frame[54]) = (58, kind);
        frame
    }

    fn prefixes(list: &[&str]) -> Vec<Prefix> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn discovery_always_passes_and_attached_sources_do_not() {
        let attached = prefixes(&["10.1.0.7", "10.2.0.0/24", "2001:db8:1::7", "2001:db8:2:5::/64"]);
        let filter = Filtered::new(&program(&attached));
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(filter.passes(&arp));
        for kind in 133..=136 {
            assert!(filter.passes(&icmp6("2001:db8:1::7", kind)), "{kind}");
        }
        for source in ["10.1.0.8", "10.2.1.1", "2001:db8:1::8", "2001:db8:2:6::1", "11.1.0.7"] {
            assert!(filter.passes(&data(source)), "{source}");
        }
        for source in ["10.1.0.7", "10.2.0.99", "2001:db8:1::7", "2001:db8:2:5::1"] {
            assert!(!filter.passes(&data(source)), "{source}");
        }
        for source in ["0.0.0.0", "::", "fe80::1"] {
            assert!(!filter.passes(&data(source)), "{source} is nobody's mobile address");
        }
        for kind in [128, 132, 137, 143] {
            assert!(!filter.passes(&icmp6("2001:db8:1::7", kind)), "{kind}");
            assert!(filter.passes(&icmp6("2001:db8:1::8", kind)), "{kind}");
        }
        let mut other = data("10.1.0.8");
        other[12..14].copy_from_slice(&[0x88, 0xcc]); // LLDP
        assert!(!filter.passes(&other));
    }

    #[test]
    fn full_programs_are_accepted_by_the_kernel_and_exact() {
        let hosts4: Vec<Prefix> =
            (0..1_000_u32).map(|n| Prefix::v4(0x0a01_0000 + n * 3, 32).unwrap()).collect();
        let full4 = program(&hosts4);
        assert!(full4.len() < 4_096, "{} instructions", full4.len());
        // Groups with the same last word, and single ones.
        let base = 0x2001_0db8_0001_0000_0000_0000_0000_0000_u128;
        let hosts6: Vec<Prefix> = (0..LISTED_IPV6_MAX as u128)
            .map(|n| Prefix::v6(base + ((n % 4) << 64) + (n / 4) * 7, 128).unwrap())
            .collect();
        let full6 = program(&hosts6);
        assert!(full6.len() < 4_096, "{} instructions", full6.len());
        for (program, hosts) in [(full4, hosts4), (full6, hosts6)] {
            let filter = Filtered::new(&program);
            for host in &hosts {
                assert!(!filter.passes(&data(&host.addr().to_string())), "{host}");
                let next = match *host {
                    Prefix::V4 { addr, .. } => Prefix::v4(addr + 1, 32).unwrap(),
                    Prefix::V6 { addr, .. } => Prefix::v6(addr + 1, 128).unwrap(),
                };
                assert!(filter.passes(&data(&next.addr().to_string())), "{next}");
            }
        }
    }

    #[test]
    fn the_sample_is_some_and_not_all() {
        let filter = Filtered::new(&sampling_program());
        let frame = data("10.1.0.7");
        let passed = (0..8_192).filter(|_| filter.passes(&frame)).count();
        assert!((5..=100).contains(&passed), "{passed} of 8192, expected about 32");
        assert!(filter.passes(&icmp6("2001:db8::1", 135)));
    }
}
