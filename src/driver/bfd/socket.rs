//! UDP 3784 and 4784 (RFC 5881 §4, RFC 5883 §5).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::driver::interface;
use crate::driver::lisp::mmsg::{BATCH, Receiver};
use crate::driver::lisp::udp::{set_on, set_option};
use crate::proto::bfd::{Arrival, Hops, Path};
use crate::wire::bfd::{MULTIHOP_PORT, SINGLE_HOP_PORT, SOURCE_PORTS};

/// A longer datagram is dropped and counted. A packet has 52 octets at most; what follows it is
/// nobody's business, and need not be refused either (RFC 5880 §6.8.6).
const DATAGRAM_BYTES_MAX: usize = 2048;
/// RFC 5881 §5; routers send all of BFD so.
const TTL: u8 = 255;
/// CS6, network control: what is told about a path must not wait behind what fills it.
const TRAFFIC_CLASS: libc::c_int = 0xc0;
/// Source ports tried before it is given up until the next packet.
const PORTS_TRIED_MAX: usize = 64;
/// Batches per call of [`Sockets::receive`].
const BATCHES_MAX: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BfdCounters {
    /// Not taken by the kernel: no route, no address, no port.
    pub send_refused: u64,
    /// Longer than any packet with anything behind it.
    pub too_long: u64,
    /// Receiving failed otherwise than by an empty buffer.
    pub receive_errors: u64,
}

struct Endpoint {
    socket: Socket,
    hops: Hops,
}

/// All sockets; owned by the thread of path liveness.
pub struct Sockets {
    endpoints: Vec<Endpoint>,
    incoming: Receiver,
    /// By discriminator; made when the first packet is to be sent, since an address may appear
    /// later than we.
    senders: BTreeMap<u32, (Socket, u16)>,
    /// Where the search for a free source port goes on.
    next_port: u16,
    counters: BfdCounters,
}

impl Sockets {
    /// One socket for each kind and family (true: IPv4).
    pub fn open(needed: &[(Hops, bool)], seed: u64) -> io::Result<Self> {
        let endpoints = needed
            .iter()
            .map(|&(hops, v4)| Endpoint::open(hops, v4))
            .collect::<io::Result<Vec<_>>>()?;
        let count = u64::from(SOURCE_PORTS.end() - SOURCE_PORTS.start()) + 1;
        let offset = u16::try_from(seed % count).unwrap_or(0);
        Ok(Self {
            endpoints,
            incoming: Receiver::new(DATAGRAM_BYTES_MAX),
            senders: BTreeMap::new(),
            next_port: SOURCE_PORTS.start() + offset,
            counters: BfdCounters::default(),
        })
    }

    pub fn counters(&self) -> BfdCounters {
        self.counters
    }

    /// To wait for; reading is [`Self::receive`] for all of them.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.endpoints.iter().map(|endpoint| endpoint.socket.as_raw_fd())
    }

    /// Hands what has come to `handle`. True when there may be more. With `names` the interface is
    /// told, for which the kernel has to be asked.
    pub fn receive(&mut self, names: bool, mut handle: impl FnMut(Arrival<'_>, &[u8])) -> bool {
        let mut more = false;
        for Endpoint { socket, hops } in &self.endpoints {
            let mut full = true;
            for _ in 0..BATCHES_MAX {
                let count = match self.incoming.receive(socket.as_raw_fd()) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(_) => {
                        self.counters.receive_errors += 1;
                        0
                    }
                };
                for at in 0..count {
                    let Some(incoming) = self.incoming.get(at) else {
                        self.counters.too_long += 1;
                        continue;
                    };
                    let interface = incoming.link.filter(|_| names).and_then(interface::name);
                    let arrival = Arrival {
                        hops: *hops,
                        from: incoming.from.ip(),
                        to: incoming.local,
                        ttl: incoming.ttl,
                        interface: interface.as_deref(),
                    };
                    handle(arrival, incoming.octets);
                }
                full = count == BATCH;
                if !full {
                    break;
                }
            }
            more |= full;
        }
        more
    }

    /// What the kernel does not take is dropped and counted: the next packet is on its way.
    pub fn send(&mut self, session: u32, path: Option<&Path>, octets: &[u8]) {
        let sent = path.is_some_and(|path| self.try_send(session, path, octets).is_ok());
        self.counters.send_refused += u64::from(!sent);
    }

    fn try_send(&mut self, session: u32, path: &Path, octets: &[u8]) -> io::Result<()> {
        if !self.senders.contains_key(&session) {
            let sender = self.open_sender(path)?;
            self.senders.insert(session, sender);
        }
        let Some((socket, _)) = self.senders.get(&session) else { return Ok(()) };
        let to = SocketAddr::new(path.remote, port(path.hops));
        let result = socket.send_to(octets, &to.into()).map(drop);
        if let Err(error) = &result {
            // Bound to an address or an interface that is no more: a new socket finds the new one.
            let gone = [libc::EADDRNOTAVAIL, libc::ENODEV, libc::EINVAL, libc::ENXIO];
            if error.raw_os_error().is_some_and(|code| gone.contains(&code)) {
                self.senders.remove(&session);
            }
        }
        result
    }

    fn open_sender(&mut self, path: &Path) -> io::Result<(Socket, u16)> {
        let local = path.local.unwrap_or(unspecified(path.remote.is_ipv4()));
        let socket = new_socket(path.remote.is_ipv4())?;
        match path.remote {
            IpAddr::V4(_) => {
                socket.set_ttl_v4(u32::from(TTL))?;
                set_option(&socket, libc::IPPROTO_IP, libc::IP_TOS, &TRAFFIC_CLASS)?;
            }
            IpAddr::V6(_) => {
                socket.set_unicast_hops_v6(u32::from(TTL))?;
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &TRAFFIC_CLASS)?;
            }
        }
        if let Some(interface) = &path.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        // Nothing is read here: what somebody sends to this port takes no room.
        let _ = socket.set_recv_buffer_size(0);
        for _ in 0..PORTS_TRIED_MAX {
            let port = self.next_port;
            self.next_port = match port {
                p if p == *SOURCE_PORTS.end() => *SOURCE_PORTS.start(),
                p => p + 1,
            };
            // Two addresses could have the same port for the kernel, not for RFC 5881.
            if self.senders.values().any(|(_, used)| *used == port) {
                continue;
            }
            match socket.bind(&SocketAddr::new(local, port).into()) {
                Ok(()) => return Ok((socket, port)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

impl Endpoint {
    fn open(hops: Hops, v4: bool) -> io::Result<Self> {
        let socket = new_socket(v4)?;
        if v4 {
            set_on(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
            set_on(&socket, libc::IPPROTO_IP, libc::IP_RECVTTL)?;
        } else {
            set_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
            set_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)?;
        }
        let local = SocketAddr::new(unspecified(v4), port(hops));
        socket.bind(&local.into()).map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::AddrInUse => "does another BFD daemon run here?".to_owned(),
                _ => error.to_string(),
            };
            io::Error::new(error.kind(), format!("cannot listen at UDP {local}: {what}"))
        })?;
        Ok(Self { socket, hops })
    }
}

fn new_socket(v4: bool) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if !v4 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

const fn port(hops: Hops) -> u16 {
    match hops {
        Hops::Single => SINGLE_HOP_PORT,
        Hops::Multi => MULTIHOP_PORT,
    }
}

const fn unspecified(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) }
}
