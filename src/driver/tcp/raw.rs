//! `setsockopt` for the options that no crate here knows: TCP_MD5SIG, IP_MINTTL,
//! IPV6_MINHOPCOUNT. The only unsafe code about TCP.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// linux/tcp.h; libc has no name for it.
const TCP_MD5SIG: libc::c_int = 14;

/// `struct tcp_md5sig`: sockaddr_storage, flags, prefix length, key length (2), ifindex (4), key.
const MD5SIG_LEN: usize = 128 + 1 + 1 + 2 + 4 + 80;

fn set(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).expect("options are some octets long");
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; the kernel copies `len`
    // octets from `value`, which has that many, and keeps no pointer. It copies octet by octet, so
    // alignment does not matter.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast::<libc::c_void>(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets with a smaller TTL are dropped by the kernel (RFC 5082 §3).
pub fn set_min_ttl_v4(socket: &impl AsFd, ttl: u8) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &i32::from(ttl).to_ne_bytes())
}

pub fn set_min_hop_count_v6(socket: &impl AsFd, hops: u8) -> io::Result<()> {
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &i32::from(hops).to_ne_bytes())
}

/// Signs what goes to `peer` and accepts only what it signed with `key` (RFC 2385); an empty key
/// ends that. At most 80 octets, which [`crate::proto::bgp::session::Md5Key`] ensures.
pub fn set_md5(socket: &impl AsFd, peer: std::net::IpAddr, key: &[u8]) -> io::Result<()> {
    let mut value = [0_u8; MD5SIG_LEN];
    // sockaddr_in and sockaddr_in6; the kernel looks at family and address only.
    match peer {
        std::net::IpAddr::V4(a) => {
            value[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            value[4..8].copy_from_slice(&a.octets());
        }
        std::net::IpAddr::V6(a) => {
            value[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            value[8..24].copy_from_slice(&a.octets());
        }
    }
    let Some(room) = value[136..].get_mut(..key.len()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    room.copy_from_slice(key);
    let len = u16::try_from(key.len()).expect("fits 80 octets");
    value[130..132].copy_from_slice(&len.to_ne_bytes());
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG, &value)
}
