//! A routing netlink socket, used synchronously: the kernel works off a request within `send`, so
//! its answers are there when `send` returns.
//!
//! Requests go out in batches without asking for acknowledgements: errors come for each message by
//! itself, told apart by sequence number, and what has none when `send` returns was done. (To make,
//! send and read an acknowledgement takes a fifth of the time of a small change.)

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// Requests per `send`. An error answer occupies about 1 KiB of the socket's buffer.
pub const BATCH_MAX: usize = 256;

/// Room for the errors of a whole batch, and for a pause of the reader of notifications.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// The kernel fills at most this much per `recv` of a dump.
const DATAGRAM_MAX: usize = 64 << 10;

const HEADER_LEN: usize = 16;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Extended acknowledgement attribute: a sentence in plain English.
const NLMSGERR_ATTR_MSG: u16 = 1;
const FLAG_ACK_TLVS: u16 = 0x200;

/// What the kernel said about one request.
#[derive(Debug)]
pub struct Refused {
    pub errno: i32,
    /// The kernel's own sentence, where it has one.
    pub message: Option<String>,
}

pub struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    incoming: Vec<u8>,
}

impl Requests {
    pub fn open() -> io::Result<Self> {
        let socket = open_socket()?;
        // The kernel leaves out of a dump what its request does not ask for.
        socket.set_netlink_get_strict_chk(true)?;
        Self::prepare(socket)
    }

    /// To nftables, which speaks another dialect of netlink.
    pub fn open_netfilter() -> io::Result<Self> {
        Self::prepare(Socket::new(NETLINK_NETFILTER)?)
    }

    fn prepare(mut socket: Socket) -> io::Result<Self> {
        socket.bind_auto()?;
        // An answer that is not there when `send` returns was lost (buffer full), and waiting
        // for it would stop the routing thread for ever.
        socket.set_non_blocking(true)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers repeat our request otherwise.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new(), incoming: vec![0; DATAGRAM_MAX] })
    }

    /// The port number by which notifications name us as the author of a change.
    pub fn port(&self) -> io::Result<u32> {
        let mut addr = SocketAddr::new(0, 0);
        self.socket.get_address(&mut addr)?;
        Ok(addr.port_number())
    }

    /// Sends all messages and collects one result for each, in order.
    pub fn transact(
        &mut self,
        messages: Vec<(RouteNetlinkMessage, u16)>,
        results: &mut Vec<Result<(), Refused>>,
    ) -> io::Result<()> {
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            self.buffer.clear();
            let mut count = 0;
            while count < BATCH_MAX
                && let Some((message, flags)) = messages.next()
            {
                count += 1;
                self.push(message, NLM_F_REQUEST | flags);
            }
            self.socket.send(&self.buffer, 0)?;
            self.collect(first, count, results)?;
        }
        Ok(())
    }

    /// The same for messages that the caller writes octet by octet: `encode` appends the body of
    /// the message with this number and returns its type and flags.
    pub fn transact_raw(
        &mut self,
        count: usize,
        mut encode: impl FnMut(usize, &mut Vec<u8>) -> (u16, u16),
        results: &mut Vec<Result<(), Refused>>,
    ) -> io::Result<()> {
        for start in (0..count).step_by(BATCH_MAX) {
            let end = count.min(start + BATCH_MAX);
            let first = self.sequence.wrapping_add(1);
            self.buffer.clear();
            for index in start..end {
                self.push_raw(NLM_F_REQUEST, |out| encode(index, out));
            }
            self.socket.send(&self.buffer, 0)?;
            self.collect(first, end - start, results)?;
        }
        Ok(())
    }

    /// The same as one transaction of nftables: all or nothing. What the first refusal was.
    pub fn transact_nft(
        &mut self,
        count: usize,
        mut encode: impl FnMut(usize, &mut Vec<u8>) -> (u16, u16),
    ) -> io::Result<Result<(), Refused>> {
        let frame = |kind: u16| {
            move |out: &mut Vec<u8>| {
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&NFNL_SUBSYS_NFTABLES.to_be_bytes());
                (kind, 0)
            }
        };
        self.buffer.clear();
        let first = self.sequence.wrapping_add(1);
        self.push_raw(NLM_F_REQUEST, frame(NFNL_MSG_BATCH_BEGIN));
        for index in 0..count {
            self.push_raw(NLM_F_REQUEST, |out| encode(index, out));
        }
        self.push_raw(NLM_F_REQUEST, frame(NFNL_MSG_BATCH_END));
        self.socket.send(&self.buffer, 0)?;
        let mut results = Vec::with_capacity(count + 2);
        self.collect(first, count + 2, &mut results)?;
        Ok(results.into_iter().collect())
    }

    /// As [`Self::begin_dump`], with the type and the body of the request.
    pub fn begin_dump_raw(&mut self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        self.push_raw(NLM_F_REQUEST | NLM_F_DUMP, |out| {
            out.extend_from_slice(body);
            (kind, 0)
        });
        self.socket.send(&self.buffer, 0)?;
        Ok(())
    }

    fn push_raw(&mut self, flags: u16, encode: impl FnOnce(&mut Vec<u8>) -> (u16, u16)) {
        self.sequence = self.sequence.wrapping_add(1);
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; HEADER_LEN]);
        let (kind, more) = encode(&mut self.buffer);
        let len = u32::try_from(self.buffer.len() - start).expect("our messages are short");
        let header = &mut self.buffer[start..start + HEADER_LEN];
        header[..4].copy_from_slice(&len.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | more).to_ne_bytes());
        header[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// One request with one answer message (`RTM_GETROUTE` for an address, for example).
    pub fn query(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Result<RouteNetlinkMessage, Refused>> {
        self.buffer.clear();
        self.push(message, NLM_F_REQUEST);
        self.socket.send(&self.buffer, 0)?;
        let want = self.sequence;
        let mut answer = None;
        while answer.is_none() {
            self.receive(|header, body| {
                if header.sequence_number == want {
                    answer = Some(match header.message_type {
                        NLMSG_ERROR => Err(refused(header, body)),
                        _ => Ok(parse(header, body).ok()),
                    });
                }
            })?;
        }
        match answer.expect("the loop ends with an answer") {
            Ok(Some(message)) => Ok(Ok(message)),
            Ok(None) => Err(io::Error::new(io::ErrorKind::InvalidData, "unreadable answer")),
            Err(refused) => Ok(Err(refused)),
        }
    }

    /// Begins to list all objects of a kind; nothing else may be asked until the list has ended.
    pub fn begin_dump(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.buffer.clear();
        self.push(message, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&self.buffer, 0)?;
        Ok(())
    }

    /// The next datagram of the list. False when it was the last.
    pub fn continue_dump(&mut self, mut sink: impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
        // A route too strange to be read is not one of ours.
        self.continue_dump_raw(|header, body| {
            if let Ok(message) = parse(header, body) {
                sink(message);
            }
        })
    }

    pub fn continue_dump_raw(
        &mut self,
        mut sink: impl FnMut(&NetlinkHeader, &[u8]),
    ) -> io::Result<bool> {
        let want = self.sequence;
        let (mut more, mut failed) = (true, 0);
        self.receive(|header, body| match header.message_type {
            _ if header.sequence_number != want => {} // of a list that was given up
            NLMSG_DONE => more = false,
            NLMSG_ERROR => {
                more = false;
                failed = refused(header, body).errno;
            }
            _ => sink(header, body),
        })?;
        if failed == 0 { Ok(more) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    fn push(&mut self, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        header.message_type = message.message_type();
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = self.buffer.len();
        let len = message.buffer_len();
        self.buffer.resize(start + align(len), 0);
        message.serialize(&mut self.buffer[start..start + len]);
    }

    /// Reads what the kernel has said about `count` requests: until there is nothing more.
    fn collect(
        &mut self,
        first: u32,
        count: usize,
        results: &mut Vec<Result<(), Refused>>,
    ) -> io::Result<()> {
        let base = results.len();
        results.extend((0..count).map(|_| Ok(())));
        loop {
            let received = self.receive(|header, body| {
                let index = header.sequence_number.wrapping_sub(first) as usize;
                // Late answers to an earlier batch that was given up have other numbers.
                if header.message_type != NLMSG_ERROR || index >= count {
                    return;
                }
                let answer = refused(header, body);
                if answer.errno != 0 {
                    results[base + index] = Err(answer);
                }
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Also when an answer was lost (ENOBUFS): then nothing is known.
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, sink: impl FnMut(&NetlinkHeader, &[u8])) -> io::Result<()> {
        let len = self.socket.recv(&mut &mut self.incoming[..], 0)?;
        split(&self.incoming[..len.min(self.incoming.len())], sink);
        Ok(())
    }
}

pub(super) fn open_socket() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    // Beyond net.core.rmem_max where that is allowed; a smaller buffer only means more resyncs.
    let size = libc::c_int::try_from(RECEIVE_BUFFER_BYTES).expect("a few MiB");
    set_option(socket.as_raw_fd(), libc::SO_RCVBUFFORCE, size)
        .or_else(|_| set_option(socket.as_raw_fd(), libc::SO_RCVBUF, size))?;
    Ok(socket)
}

fn set_option(fd: RawFd, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value)).expect("four octets");
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let rc =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The messages of one datagram. A length that does not fit ends it.
pub(super) fn split(mut datagram: &[u8], mut sink: impl FnMut(&NetlinkHeader, &[u8])) {
    while let Some(raw) = datagram.first_chunk::<HEADER_LEN>() {
        let word = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let mut header = NetlinkHeader::default();
        header.length = word(0);
        header.message_type = u16::from_ne_bytes([raw[4], raw[5]]);
        header.flags = u16::from_ne_bytes([raw[6], raw[7]]);
        header.sequence_number = word(8);
        header.port_number = word(12);
        let len = header.length as usize;
        if len < HEADER_LEN || len > datagram.len() {
            return;
        }
        sink(&header, &datagram[HEADER_LEN..len]);
        datagram = datagram.get(align(len)..).unwrap_or_default();
    }
}

pub(super) fn parse(
    header: &NetlinkHeader,
    body: &[u8],
) -> Result<RouteNetlinkMessage, DecodeError> {
    use netlink_packet_core::NetlinkDeserializable;
    RouteNetlinkMessage::deserialize(header, body)
}

/// An `nlmsgerr`: the negative errno, the header of the request, attributes.
fn refused(header: &NetlinkHeader, body: &[u8]) -> Refused {
    let errno = body.first_chunk::<4>().map_or(libc::EPROTO, |raw| -i32::from_ne_bytes(*raw));
    let mut message = None;
    if header.flags & FLAG_ACK_TLVS != 0 {
        let mut rest = body.get(4 + HEADER_LEN..).unwrap_or_default();
        while let Some(&[l0, l1, t0, t1]) = rest.first_chunk::<4>() {
            let len = usize::from(u16::from_ne_bytes([l0, l1]));
            let Some(value) = rest.get(4..len) else { break };
            if u16::from_ne_bytes([t0, t1]) == NLMSGERR_ATTR_MSG {
                let text = value.split(|&octet| octet == 0).next().unwrap_or_default();
                message = Some(String::from_utf8_lossy(text).into_owned());
            }
            rest = rest.get(align(len)..).unwrap_or_default();
        }
    }
    Refused { errno, message }
}

const fn align(len: usize) -> usize {
    (len + 3) & !3
}
