//! The TUN devices and the sockets.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::dataplane::transient::Config;
use crate::driver::lisp::tun::{interface_request, ioctl, open_device};
use crate::driver::lisp::udp::{set_on, set_option, set_receive_buffer};
use crate::types::seam::IfIndex;

/// Packets that wait in a device while the thread does something else. When full, the kernel drops
/// the newest.
pub const DEVICE_QUEUE_PACKETS: usize = 50_000;

/// As large as a packet can be: what is led aside meets no smaller MTU than on its way.
const DEVICE_MTU: libc::c_int = 65_535;

/// Datagrams that wait in the kernel, as above.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;
const SEND_BUFFER_BYTES: libc::c_int = 8 << 20;

pub fn open(name: &str) -> io::Result<(File, IfIndex)> {
    let what = |error: io::Error| io::Error::new(error.kind(), format!("device {name}: {error}"));
    let device = open_device(name).map_err(what)?;
    let link = set_up(name).map_err(what)?;
    Ok((device, link))
}

fn set_up(name: &str) -> io::Result<IfIndex> {
    let set = |path: &str, value: &str| fs::write(format!("/proc/sys/net/{path}"), value);
    // What comes back from us has sources that no route leads to by this device. The greater of
    // `all` and the device's own counts: 2 (any interface) is weaker than 1 (strict).
    let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter")?;
    let own = if all.trim() == "0" { "0" } else { "2" };
    set(&format!("ipv4/conf/{name}/rp_filter"), own)?;
    // A packet of this machine for a node that has come here meanwhile returns by the path.
    set(&format!("ipv4/conf/{name}/accept_local"), "1")?;
    set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
    set(&format!("ipv4/conf/{name}/send_redirects"), "0")?;
    // No link-local address, and nothing to say on the device by the kernel itself.
    match set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(()) => {
            set(&format!("ipv6/conf/{name}/forwarding"), "1")?;
            set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        }
    }
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = DEVICE_MTU;
    ioctl(&socket, libc::SIOCSIFMTU, &request)?;
    request.ifr_ifru.ifru_metric = DEVICE_QUEUE_PACKETS as libc::c_int;
    ioctl(&socket, libc::SIOCSIFTXQLEN, &request)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(&socket, libc::SIOCSIFFLAGS, &request)?;
    let c_name = std::ffi::CString::new(name)?;
    // SAFETY: `c_name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(IfIndex(index)) }
}

/// What the kernel did not find room for in these devices, of the namespace of the caller.
pub fn dropped(devices: &[String]) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let lines = table.lines().filter_map(|line| line.trim().split_once(':'));
    let ours = lines.filter(|(name, _)| devices.iter().any(|device| device == name));
    // Eight columns of what was received, then octets, packets, errors and drops of what was sent.
    ours.filter_map(|(_, counts)| counts.split_whitespace().nth(11)?.parse::<u64>().ok()).sum()
}

/// IPv4 and IPv6, bound to our address, which is the source that the other end expects.
pub fn sockets(config: &Config) -> io::Result<[Option<Socket>; 2]> {
    let locator = config.local.locator;
    let open = |ip: IpAddr| {
        let bind = SocketAddr::new(ip, config.local.port);
        let what =
            |error: io::Error| io::Error::new(error.kind(), format!("UDP socket {bind}: {error}"));
        socket(bind).map_err(what)
    };
    Ok([
        locator.ipv4.map(|ip| open(ip.into())).transpose()?,
        locator.ipv6.map(|ip| open(ip.into())).transpose()?,
    ])
}

fn socket(bind: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // A packet as long as the path's MTU does not fit beside a header: it goes in fragments, and
    // nobody is told to send smaller ones. Over IPv4 routers on the way may cut it as well, so
    // errors about sizes, which can be forged, are of no use.
    if bind.is_ipv6() {
        socket.set_only_v6(true)?;
        set_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)?;
        let dont = libc::IPV6_PMTUDISC_DONT;
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &dont)?;
    } else {
        set_on(&socket, libc::IPPROTO_IP, libc::IP_FREEBIND)?;
        let omit = libc::IP_PMTUDISC_OMIT;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &omit)?;
    }
    set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES)
        .or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &SEND_BUFFER_BYTES))?;
    socket.bind(&bind.into())?;
    Ok(socket)
}
