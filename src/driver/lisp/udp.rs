//! The control sockets of LISP: UDP 4342, IPv4 and IPv6 (RFC 9301 §5).
//!
//! They live on the routing thread and work in batches, because a Map-Server's rate is mostly the
//! price of its system calls. An answer leaves from the local address that the question came to
//! (RFC 9301 has the asker compare them), also on a machine with many addresses.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::Poll;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::mmsg::{BATCH, Outgoing, Receiver, Sender};

/// A longer control message is dropped and counted; 255 records of the usual kind fit twice over.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Datagrams that wait in the kernel, per socket: some 15,000 Map-Requests. When full, the kernel
/// drops the newest; LISP repeats what it wants answered.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Sockets, at most: one or a few addresses of each family.
pub const SOCKETS_MAX: usize = 8;

/// Batches per call of [`Control::recv_batch`], so that timers and other sockets get their turn.
const BATCHES_MAX: usize = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlCounters {
    pub received: u64,
    pub received_octets: u64,
    /// Longer than [`MESSAGE_BYTES_MAX`].
    pub too_long: u64,
    pub sent: u64,
    pub sent_octets: u64,
    /// Not taken by the kernel, or no socket of that family.
    pub send_refused: u64,
    /// Receiving failed otherwise than by an empty buffer.
    pub receive_errors: u64,
}

/// A socket and where it is bound.
struct Endpoint {
    fd: Rc<AsyncFd<Socket>>,
    local: SocketAddr,
    queue: Queue,
}

/// Messages to be sent, at most [`BATCH`]: one after the other in `octets`.
#[derive(Default)]
struct Queue {
    octets: Vec<u8>,
    messages: Vec<Queued>,
}

struct Queued {
    to: SocketAddr,
    from: Option<IpAddr>,
    range: Range<usize>,
}

/// The sockets; owned by the routing thread.
pub struct Control {
    outbox: Outbox,
    incoming: Receiver,
}

/// The sending half, handed to [`Control::serve`]'s closure so that it can answer in place.
pub struct Outbox {
    endpoints: Vec<Endpoint>,
    sender: Sender,
    counters: ControlCounters,
}

/// Waits for datagrams without borrowing the sockets.
#[derive(Clone)]
pub struct Readiness {
    fds: Vec<Rc<AsyncFd<Socket>>>,
}

impl Readiness {
    /// Until [`Control::recv_batch`] may find something.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| {
            for fd in &self.fds {
                if let Poll::Ready(ready) = fd.poll_read_ready(context) {
                    // Readiness is taken back by the read that finds nothing, not here.
                    return Poll::Ready(ready.map(drop));
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Control {
    /// Binds one socket to each address, in the network namespace of the calling thread and in
    /// the context of its runtime. An unspecified address (`0.0.0.0`, `::`) takes all of its family.
    pub fn open(binds: &[SocketAddr]) -> io::Result<Self> {
        if binds.len() > SOCKETS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many bind addresses"));
        }
        let endpoints = binds.iter().map(|&bind| Endpoint::open(bind)).collect::<Result<_, _>>()?;
        let (sender, counters) = (Sender::new(), ControlCounters::default());
        let outbox = Outbox { endpoints, sender, counters };
        Ok(Self { outbox, incoming: Receiver::new(MESSAGE_BYTES_MAX) })
    }

    pub fn readiness(&self) -> Readiness {
        Readiness { fds: self.outbox.endpoints.iter().map(|e| Rc::clone(&e.fd)).collect() }
    }

    pub fn counters(&self) -> ControlCounters {
        self.outbox.counters
    }

    /// The addresses bound to, with the ports the kernel chose where 0 was asked for.
    pub fn local_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.outbox.endpoints.iter().map(|e| e.local)
    }

    /// Hands what has come to `handle`: from whom, to which local address, the message. False
    /// when nothing was left; otherwise there may be more, and the caller comes again.
    pub fn recv_batch(&mut self, mut handle: impl FnMut(SocketAddr, IpAddr, &[u8])) -> bool {
        self.serve(|_, from, local, octets| handle(from, local, octets))
    }

    /// As [`Self::recv_batch`]; `handle` may queue answers at once. They leave batch by batch.
    pub fn serve(
        &mut self,
        mut handle: impl FnMut(&mut Outbox, SocketAddr, IpAddr, &[u8]),
    ) -> bool {
        let mut more = false;
        for at in 0..self.outbox.endpoints.len() {
            more |= self.serve_endpoint(at, &mut handle);
        }
        more
    }

    fn serve_endpoint(
        &mut self,
        at: usize,
        handle: &mut impl FnMut(&mut Outbox, SocketAddr, IpAddr, &[u8]),
    ) -> bool {
        for _ in 0..BATCHES_MAX {
            let endpoint = &self.outbox.endpoints[at];
            let bound = endpoint.local.ip();
            let mut count = 0;
            // A batch that is not full emptied the socket. Saying so here saves the call that
            // would find nothing; a datagram that comes meanwhile makes the socket ready anew.
            let drained = endpoint.fd.try_io(Interest::READABLE, |socket| {
                count = self.incoming.receive(socket.as_raw_fd())?;
                if count < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            for datagram in 0..count {
                match self.incoming.get(datagram) {
                    Some(incoming) => {
                        self.outbox.counters.received += 1;
                        self.outbox.counters.received_octets += incoming.octets.len() as u64;
                        let local = incoming.local.unwrap_or(bound);
                        handle(&mut self.outbox, incoming.from, local, incoming.octets);
                    }
                    None => self.outbox.counters.too_long += 1,
                }
            }
            self.outbox.flush();
            match drained {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // An ICMP error about something sent earlier, for example: it is taken off the
                // socket by being read, and the next call finds what is behind it.
                Err(_) => self.outbox.counters.receive_errors += 1,
            }
        }
        true
    }

    /// See [`Outbox::queue`].
    pub fn queue(&mut self, to: SocketAddr, from: Option<IpAddr>, octets: &[u8]) {
        self.outbox.queue(to, from, octets);
    }

    /// Sends what was queued. What the kernel does not take is dropped and counted.
    pub fn flush(&mut self) {
        self.outbox.flush();
    }
}

impl Outbox {
    /// Queues a message to be sent from this local address, or from one that the kernel chooses.
    /// A full queue is flushed first, so nothing is ever left out here but what no socket can
    /// send: another family, or too long; that is counted.
    pub fn queue(&mut self, to: SocketAddr, from: Option<IpAddr>, octets: &[u8]) {
        let Some(at) = self.find_endpoint(to, from) else {
            self.counters.send_refused += 1;
            return;
        };
        if octets.len() > MESSAGE_BYTES_MAX {
            self.counters.send_refused += 1;
            return;
        }
        if self.endpoints[at].queue.messages.len() == BATCH {
            self.flush_endpoint(at);
        }
        let Endpoint { local, ref mut queue, .. } = self.endpoints[at];
        // A socket that is bound to one address needs not be told it with every message.
        let from = from.filter(|_| local.ip().is_unspecified());
        let start = queue.octets.len();
        queue.octets.extend_from_slice(octets);
        queue.messages.push(Queued { to, from, range: start..queue.octets.len() });
    }

    /// The socket bound to `from`; else one that is bound to all addresses, or with nothing
    /// asked for, any of the family.
    fn find_endpoint(&self, to: SocketAddr, from: Option<IpAddr>) -> Option<usize> {
        let mut found = None;
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let local = endpoint.local.ip();
            if local.is_ipv4() != to.is_ipv4() {
                continue;
            }
            if from == Some(local) {
                return Some(at);
            }
            if found.is_none() && (from.is_none() || local.is_unspecified()) {
                found = Some(at);
            }
        }
        found
    }

    fn flush(&mut self) {
        for at in 0..self.endpoints.len() {
            self.flush_endpoint(at);
        }
    }

    fn flush_endpoint(&mut self, at: usize) {
        let Endpoint { ref fd, ref mut queue, .. } = self.endpoints[at];
        if queue.messages.is_empty() {
            return;
        }
        let Queue { ref octets, ref messages } = *queue;
        let datagrams = messages.iter().map(|message| Outgoing {
            to: message.to,
            from: message.from,
            octets: &octets[message.range.clone()],
        });
        let sent = self.sender.send(fd.get_ref().as_raw_fd(), datagrams);
        self.counters.sent += sent.sent;
        self.counters.sent_octets += sent.octets;
        self.counters.send_refused += sent.refused;
        queue.octets.clear();
        queue.messages.clear();
    }
}

impl Endpoint {
    fn open(bind: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        let wildcard = bind.ip().is_unspecified();
        match bind {
            SocketAddr::V4(_) if wildcard => set_on(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                if wildcard {
                    set_on(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
                }
            }
            SocketAddr::V4(_) => {}
        }
        set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(&bind.into())?;
        let any = match bind {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let local = socket.local_addr()?.as_socket().unwrap_or(SocketAddr::new(any, bind.port()));
        // SAFETY: a `Socket` gives the same open descriptor until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { fd: Rc::new(fd), local, queue: Queue::default() })
    }
}

/// Beyond net.core.rmem_max where that is allowed; a smaller buffer only means more repetitions.
pub(in crate::driver) fn set_receive_buffer(
    socket: &impl AsRawFd,
    octets: usize,
) -> io::Result<()> {
    let size = libc::c_int::try_from(octets).expect("some MiB");
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &size))
}

pub(in crate::driver) fn set_on(socket: &impl AsRawFd, level: i32, name: i32) -> io::Result<()> {
    set_option(socket, level, name, &1)
}

pub(in crate::driver) fn set_option(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), len)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_a_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    /// Until `count` messages were echoed.
    async fn echo(control: &mut Control, count: usize) {
        let readiness = control.readiness();
        let mut seen = 0;
        while seen < count {
            let readable = readiness.readable();
            tokio::time::timeout(std::time::Duration::from_secs(5), readable)
                .await
                .expect("all arrive")
                .unwrap();
            while control.serve(|outbox, from, local, octets| {
                seen += 1;
                outbox.queue(from, Some(local), octets);
            }) {}
        }
    }

    #[test]
    fn an_answer_leaves_from_where_the_question_came_to() {
        in_a_runtime(async {
            let binds = ["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()];
            let mut control = Control::open(&binds).unwrap();
            let ports: Vec<u16> = control.local_addrs().map(|a| a.port()).collect();
            let cases = [("127.0.0.1", "127.0.0.77", ports[0]), ("::1", "::1", ports[1])];
            for (own, to, port) in cases {
                let to = SocketAddr::new(to.parse().unwrap(), port);
                let asker = std::net::UdpSocket::bind((own, 0)).unwrap();
                asker.send_to(b"what", to).unwrap();
                echo(&mut control, 1).await;
                let mut buffer = [0; 16];
                assert_eq!(asker.recv_from(&mut buffer).unwrap(), (4, to));
            }
        });
    }

    #[test]
    fn many_come_back_and_what_cannot_be_sent_is_counted() {
        in_a_runtime(async {
            let mut control = Control::open(&["127.0.0.1:0".parse().unwrap()]).unwrap();
            let to = control.local_addrs().next().unwrap();
            let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0..150_u8 {
                asker.send_to(&[n; 100], to).unwrap();
            }
            echo(&mut control, 150).await;
            let mut buffer = [0; 200];
            for n in 0..150_u8 {
                assert_eq!(asker.recv(&mut buffer).unwrap(), 100);
                assert_eq!(buffer[..100], [n; 100]);
            }
            let counters = control.counters();
            assert_eq!((counters.received, counters.sent), (150, 150));
            assert_eq!((counters.received_octets, counters.sent_octets), (15_000, 15_000));

            control.queue("[::1]:9".parse().unwrap(), None, b"no socket of that family");
            control.queue(to, None, &vec![0; MESSAGE_BYTES_MAX + 1]);
            // A broadcast is not allowed; what is behind it is sent nevertheless.
            control.queue("255.255.255.255:9".parse().unwrap(), None, b"refused");
            control.queue(asker.local_addr().unwrap(), None, b"after");
            control.flush();
            assert_eq!(asker.recv(&mut buffer).unwrap(), 5);
            assert_eq!((control.counters().send_refused, control.counters().sent), (3, 151));
        });
    }

    #[test]
    fn a_message_that_is_too_long_is_left_out() {
        in_a_runtime(async {
            let mut control = Control::open(&["127.0.0.1:0".parse().unwrap()]).unwrap();
            let to = control.local_addrs().next().unwrap();
            let asker = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            asker.send_to(&vec![0; MESSAGE_BYTES_MAX + 1], to).unwrap();
            asker.send_to(b"fits", to).unwrap();
            echo(&mut control, 1).await;
            let counters = control.counters();
            assert_eq!((counters.received, counters.too_long), (1, 1));
        });
    }
}
