//! A network namespace for one thread and all it starts. It has no name and no file: it is gone
//! when the last of them is, also when the bench is killed.

use std::io;
use std::net::Ipv4Addr;

use socket2::{Domain, Socket, Type};

/// Root in a user namespace of our own, when we are not root; called once, before any thread.
pub fn become_root() -> io::Result<()> {
    // SAFETY: these calls take and return plain numbers.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    if uid == 0 {
        return Ok(());
    }
    // SAFETY: no threads yet, no memory involved.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Moves the calling thread into a new namespace where 172.31.0.0/24 is this machine.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: no memory involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // On the loopback interface the whole subnet of an address is local.
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    set(&socket, libc::SIOCSIFADDR, Ipv4Addr::new(127, 0, 0, 1))?;
    set_up(&socket, "lo")?;
    set_on(&socket, "lo:1", libc::SIOCSIFADDR, Ipv4Addr::new(172, 31, 0, 254))?;
    set_on(&socket, "lo:1", libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))
}

fn set(socket: &Socket, request: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    set_on(socket, "lo", request, address)
}

fn interface(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq
}

fn ioctl(socket: &Socket, request: libc::Ioctl, ifreq: &libc::ifreq) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: `ifreq` outlives the call and is what these requests take.
    if unsafe { libc::ioctl(socket.as_raw_fd(), request, ifreq) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_on(socket: &Socket, name: &str, request: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    let mut ifreq = interface(name);
    // SAFETY: a sockaddr_in fits a sockaddr, that is what the union is for.
    unsafe {
        let to = (&raw mut ifreq.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>();
        (*to).sin_family = libc::AF_INET as libc::sa_family_t;
        (*to).sin_addr.s_addr = u32::from(address).to_be();
    }
    ioctl(socket, request, &ifreq)
}

fn set_up(socket: &Socket, name: &str) -> io::Result<()> {
    let mut ifreq = interface(name);
    ifreq.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS, &ifreq)
}
