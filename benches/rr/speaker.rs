//! The two ends of the race: just enough BGP (RFC 4271, 4760) to open sessions, inject host routes
//! and understand what comes back. It shares no code with killick, so that a mistake in killick's
//! codec cannot hide itself here, and it does as little as it can, because it runs beside the device
//! on the same two cores.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use crate::feed::Output;

pub const AS: u16 = 65000;
pub const PORT: u16 = 179;
pub const DEVICE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
pub const INJECTOR: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
pub const NEXT_HOPS: u8 = 64;

const HEADER_LEN: usize = 19;
const MESSAGE_LEN_MAX: usize = 4096;
const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ATTR_NEXT_HOP: u8 = 3;
const ATTR_MED: u8 = 4;
const ATTR_MP_REACH: u8 = 14;
const ATTR_MP_UNREACH: u8 = 15;

const V4_BASE: u32 = u32::from_be_bytes([10, 0, 0, 0]);
const V6_BASE: [u8; 12] = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0];
const V6_NEXT_HOP: [u8; 15] = [0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub fn sink_address(sink: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, 11 + sink as u8)
}

pub fn prefix_text(index: u32) -> String {
    format!("{}/32", Ipv4Addr::from(V4_BASE + index))
}

pub fn next_hop_text(next_hop: u8) -> String {
    Ipv4Addr::from(next_hop_v4(next_hop)).to_string()
}

fn next_hop_v4(next_hop: u8) -> [u8; 4] {
    [172, 30, 0, 1 + next_hop]
}

fn next_hop_v6(next_hop: u8) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[..15].copy_from_slice(&V6_NEXT_HOP);
    octets[15] = 1 + next_hop;
    octets
}

// ---- encode ----

fn message(kind: u8, body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&((HEADER_LEN + body.len()) as u16).to_be_bytes());
    out.push(kind);
    out.extend_from_slice(body);
}

/// Longer than any device asks for, so that each has its own default.
const HOLD_TIME_S: u8 = 240;

pub fn open(router_id: Ipv4Addr) -> Vec<u8> {
    let [a, b] = AS.to_be_bytes();
    let capabilities =
        [1, 4, 0, 1, 0, 1, /* ipv4 */ 1, 4, 0, 2, 0, 1, /* ipv6 */ 65, 4, 0, 0, a, b];
    let mut body = vec![4, a, b, 0, HOLD_TIME_S];
    body.extend_from_slice(&router_id.octets());
    body.extend_from_slice(&[capabilities.len() as u8 + 2, 2, capabilities.len() as u8]);
    body.extend_from_slice(&capabilities);
    let mut out = Vec::new();
    message(OPEN, &body, &mut out);
    out
}

fn octets_of_keepalive() -> Vec<u8> {
    let mut out = Vec::new();
    message(KEEPALIVE, &[], &mut out);
    out
}

/// ORIGIN IGP, empty AS_PATH; then what differs; then LOCAL_PREF 100.
const ATTRS_HEAD: [u8; 7] = [0x40, 1, 1, 0, 0x40, 2, 0];
const ATTRS_TAIL: [u8; 7] = [0x40, 5, 4, 0, 0, 0, 100];

fn update_v4(next_hop: u8, prefixes: &[u32], out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(MESSAGE_LEN_MAX);
    body.extend_from_slice(&[0, 0, 0, 21]);
    body.extend_from_slice(&ATTRS_HEAD);
    body.extend_from_slice(&[0x40, ATTR_NEXT_HOP, 4]);
    body.extend_from_slice(&next_hop_v4(next_hop));
    body.extend_from_slice(&ATTRS_TAIL);
    for index in prefixes {
        body.push(32);
        body.extend_from_slice(&(V4_BASE + index).to_be_bytes());
    }
    message(UPDATE, &body, out);
}

fn update_v6(next_hop: u8, prefixes: &[u32], out: &mut Vec<u8>) {
    let mp_len = 21 + 17 * prefixes.len();
    let mut body = Vec::with_capacity(MESSAGE_LEN_MAX);
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&((14 + 4 + mp_len) as u16).to_be_bytes());
    body.extend_from_slice(&ATTRS_HEAD);
    body.extend_from_slice(&ATTRS_TAIL);
    body.extend_from_slice(&[0x90, ATTR_MP_REACH]);
    body.extend_from_slice(&(mp_len as u16).to_be_bytes());
    body.extend_from_slice(&[0, 2, 1, 16]);
    body.extend_from_slice(&next_hop_v6(next_hop));
    body.push(0);
    for index in prefixes {
        body.push(128);
        body.extend_from_slice(&V6_BASE);
        body.extend_from_slice(&index.to_be_bytes());
    }
    message(UPDATE, &body, out);
}

/// The whole table in full UPDATEs, one next hop after the other.
pub fn load(family: Family, next_hop_of: &[u8]) -> Vec<u8> {
    let per_update = match family {
        Family::V4 => (MESSAGE_LEN_MAX - HEADER_LEN - 25) / 5,
        Family::V6 => (MESSAGE_LEN_MAX - HEADER_LEN - 43) / 17,
    };
    let mut by_next_hop = vec![Vec::new(); NEXT_HOPS as usize];
    for (index, &next_hop) in next_hop_of.iter().enumerate() {
        by_next_hop[next_hop as usize].push(index as u32);
    }
    let mut out = Vec::new();
    for (next_hop, prefixes) in by_next_hop.iter().enumerate() {
        for chunk in prefixes.chunks(per_update) {
            match family {
                Family::V4 => update_v4(next_hop as u8, chunk, &mut out),
                Family::V6 => update_v6(next_hop as u8, chunk, &mut out),
            }
        }
    }
    out
}

/// One move is one UPDATE of one prefix, as it comes from an anchor.
pub fn move_v4(index: u32, next_hop: u8, out: &mut Vec<u8>) {
    let len = HEADER_LEN + 25 + 5;
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&[0, len as u8, UPDATE, 0, 0, 0, 21]);
    out.extend_from_slice(&ATTRS_HEAD);
    out.extend_from_slice(&[0x40, ATTR_NEXT_HOP, 4]);
    out.extend_from_slice(&next_hop_v4(next_hop));
    out.extend_from_slice(&ATTRS_TAIL);
    out.push(32);
    out.extend_from_slice(&(V4_BASE + index).to_be_bytes());
}

// ---- decode ----

/// Path attributes as received, each different set once.
pub struct AttrSets {
    ids: HashMap<Box<[u8]>, u32>,
    sets: Vec<AttrSet>,
    last: (Vec<u8>, u32),
}

pub struct AttrSet {
    /// Index of the next hop, or `None` when it is none of ours.
    pub next_hop: Option<u8>,
    /// `type=value` in the order of the types, next hop and encoding details (flags, order)
    /// left out: what must be the same from every device.
    pub canonical: String,
}

/// Id of "no route".
pub const ABSENT: u32 = 0;

impl AttrSets {
    pub fn new() -> Self {
        let absent = AttrSet { next_hop: None, canonical: "absent".into() };
        Self { ids: HashMap::new(), sets: vec![absent], last: (Vec::new(), ABSENT) }
    }

    pub fn set(&self, id: u32) -> &AttrSet {
        &self.sets[id as usize]
    }

    fn intern(&mut self, raw: &[u8]) -> io::Result<u32> {
        if self.last.0 == raw {
            return Ok(self.last.1);
        }
        let id = match self.ids.get(raw) {
            Some(&id) => id,
            None => {
                let id = self.sets.len() as u32;
                self.sets.push(AttrSet::parse(raw)?);
                self.ids.insert(raw.into(), id);
                id
            }
        };
        self.last.0.clear();
        self.last.0.extend_from_slice(raw);
        self.last.1 = id;
        Ok(id)
    }
}

impl AttrSet {
    fn parse(mut raw: &[u8]) -> io::Result<Self> {
        let mut next_hop = None;
        let mut attrs = Vec::new();
        while !raw.is_empty() {
            let (kind, value, rest) = split_attr(raw)?;
            raw = rest;
            match kind {
                ATTR_NEXT_HOP => {
                    next_hop = (0..NEXT_HOPS).find(|&k| value == next_hop_v4(k));
                }
                // Only the head of it (AFI, SAFI, next hop) comes here, see `update`.
                ATTR_MP_REACH => {
                    let octets = value.get(4..20);
                    next_hop = (0..NEXT_HOPS).find(|&k| octets == Some(&next_hop_v6(k)[..]));
                }
                // FRR writes the metric that everybody else leaves out; absent means 0 in the
                // decision process (RFC 4271 §9.1.2.2).
                ATTR_MED if value == [0; 4] => {}
                _ => attrs.push((kind, value)),
            }
        }
        attrs.sort();
        let attrs: Vec<String> = attrs.iter().map(|(k, v)| format!("{k}={}", hex(v))).collect();
        Ok(Self { next_hop, canonical: attrs.join(" ") })
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|o| format!("{o:02x}")).collect()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the device sent {what}"))
}

/// Type, value, rest.
fn split_attr(raw: &[u8]) -> io::Result<(u8, &[u8], &[u8])> {
    let short = || bad("a truncated path attribute");
    let flags = *raw.first().ok_or_else(short)?;
    let kind = *raw.get(1).ok_or_else(short)?;
    let (len, head) = if flags & 0x10 != 0 {
        let len = raw.get(2..4).ok_or_else(short)?;
        (usize::from(u16::from_be_bytes([len[0], len[1]])), 4)
    } else {
        (usize::from(*raw.get(2).ok_or_else(short)?), 3)
    };
    let value = raw.get(head..head + len).ok_or_else(short)?;
    Ok((kind, value, &raw[head + len..]))
}

/// What a message says about prefixes.
pub trait Receiver {
    fn announced(&mut self, index: u32, attrs: u32, sets: &AttrSets);
    fn withdrawn(&mut self, index: u32, sets: &AttrSets);
    /// A prefix that nobody injected.
    fn foreign(&mut self);
}

fn prefixes_v4(mut nlri: &[u8], mut each: impl FnMut(Option<u32>)) -> io::Result<()> {
    while let Some((&len, rest)) = nlri.split_first() {
        if len == 32 && rest.len() >= 4 {
            let address = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
            each(address.checked_sub(V4_BASE));
            nlri = &rest[4..];
        } else {
            let octets = usize::from(len).div_ceil(8);
            nlri = rest.get(octets..).ok_or_else(|| bad("a truncated prefix"))?;
            each(None);
        }
    }
    Ok(())
}

fn prefixes_v6(mut nlri: &[u8], mut each: impl FnMut(Option<u32>)) -> io::Result<()> {
    while let Some((&len, rest)) = nlri.split_first() {
        if len == 128 && rest.len() >= 16 {
            let index = u32::from_be_bytes([rest[12], rest[13], rest[14], rest[15]]);
            each((rest[..12] == V6_BASE).then_some(index));
            nlri = &rest[16..];
        } else {
            let octets = usize::from(len).div_ceil(8);
            nlri = rest.get(octets..).ok_or_else(|| bad("a truncated prefix"))?;
            each(None);
        }
    }
    Ok(())
}

fn update(body: &[u8], sets: &mut AttrSets, to: &mut impl Receiver) -> io::Result<()> {
    let short = || bad("a truncated UPDATE");
    let length_at = |at: usize| -> io::Result<usize> {
        let len = body.get(at..at + 2).ok_or_else(short)?;
        Ok(usize::from(u16::from_be_bytes([len[0], len[1]])))
    };
    let withdrawn_len = length_at(0)?;
    let attrs_len = length_at(2 + withdrawn_len)?;
    let withdrawn = &body[2..2 + withdrawn_len];
    let attrs_at = 4 + withdrawn_len;
    let attrs = body.get(attrs_at..attrs_at + attrs_len).ok_or_else(short)?;
    let nlri = &body[attrs_at + attrs_len..];

    prefixes_v4(withdrawn, |index| match index {
        Some(index) => to.withdrawn(index, sets),
        None => to.foreign(),
    })?;
    if !nlri.is_empty() {
        let id = sets.intern(attrs)?;
        return prefixes_v4(nlri, |index| match index {
            Some(index) => to.announced(index, id, sets),
            None => to.foreign(),
        });
    }

    // Without NLRI of its own, an UPDATE is multiprotocol or End-of-RIB.
    let mut key = Vec::new();
    let mut reach: Option<&[u8]> = None;
    let mut raw = attrs;
    while !raw.is_empty() {
        let (kind, value, rest) = split_attr(raw)?;
        match kind {
            ATTR_MP_UNREACH => {
                let withdrawn = value.get(3..).ok_or_else(short)?;
                prefixes_v6(withdrawn, |index| match index {
                    Some(index) => to.withdrawn(index, sets),
                    None => to.foreign(),
                })?;
            }
            ATTR_MP_REACH => {
                let next_hop_len = usize::from(*value.get(3).ok_or_else(short)?);
                let head = value.get(..4 + next_hop_len).ok_or_else(short)?;
                key.extend_from_slice(&[0x80, ATTR_MP_REACH, head.len() as u8]);
                key.extend_from_slice(head);
                reach = Some(value.get(5 + next_hop_len..).ok_or_else(short)?);
            }
            _ => key.extend_from_slice(&raw[..raw.len() - rest.len()]),
        }
        raw = rest;
    }
    if let Some(nlri) = reach {
        let id = sets.intern(&key)?;
        prefixes_v6(nlri, |index| match index {
            Some(index) => to.announced(index, id, sets),
            None => to.foreign(),
        })?;
    }
    Ok(())
}

// ---- a session ----

pub struct Session {
    pub stream: TcpStream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    pub output: Output,
}

impl Session {
    /// `stream` is established and blocking; it becomes non-blocking.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = vec![0; 256 * 1024];
        Ok(Self { stream, input, start: 0, end: 0, output: Output::default() })
    }

    pub fn flush(&mut self) -> io::Result<bool> {
        self.output.flush(&mut self.stream)
    }

    /// Between two messages, since only whole messages are ever added.
    pub fn keepalive(&mut self) {
        message(KEEPALIVE, &[], &mut self.output.octets);
    }

    /// One read, then all whole messages in it.
    pub fn receive(&mut self, sets: &mut AttrSets, to: &mut impl Receiver) -> io::Result<()> {
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(0) => return Err(bad("the end of the session")),
            Ok(n) => self.end += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
        loop {
            let input = &self.input[self.start..self.end];
            let Some(header) = input.get(..HEADER_LEN) else { break };
            let len = usize::from(u16::from_be_bytes([header[16], header[17]]));
            if !(HEADER_LEN..=MESSAGE_LEN_MAX).contains(&len) {
                return Err(bad("a message of impossible length"));
            }
            let Some(message) = input.get(..len) else { break };
            match message[18] {
                UPDATE => update(&message[HEADER_LEN..], sets, to)?,
                NOTIFICATION => return Err(notification(&message[HEADER_LEN..])),
                _ => {}
            }
            self.start += len;
        }
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        Ok(())
    }
}

fn notification(body: &[u8]) -> io::Error {
    bad(&format!("a NOTIFICATION: {}", hex(body)))
}

/// Opens the session on a fresh connection; returns when the device's first KEEPALIVE is there.
/// Blocking; the caller has set a read timeout.
pub fn establish(stream: &mut TcpStream, router_id: Ipv4Addr) -> io::Result<()> {
    stream.write_all(&open(router_id))?;
    loop {
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header)?;
        let len = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; len.saturating_sub(HEADER_LEN).min(MESSAGE_LEN_MAX)];
        stream.read_exact(&mut body)?;
        match header[18] {
            OPEN => stream.write_all(&octets_of_keepalive())?,
            KEEPALIVE => return Ok(()),
            NOTIFICATION => return Err(notification(&body)),
            _ => return Err(bad("something else than OPEN and KEEPALIVE")),
        }
    }
}

/// Checks the hand-written octets here against each other; a benchmark has no test harness.
pub fn self_check() -> io::Result<()> {
    struct Seen(Vec<(u32, Option<u8>)>);
    impl Receiver for Seen {
        fn announced(&mut self, index: u32, attrs: u32, sets: &AttrSets) {
            self.0.push((index, sets.set(attrs).next_hop));
        }
        fn withdrawn(&mut self, _index: u32, _sets: &AttrSets) {}
        fn foreign(&mut self) {
            self.0.push((u32::MAX, None));
        }
    }
    for family in [Family::V4, Family::V6] {
        let next_hop_of: Vec<u8> = (0..5000u32).map(|i| (i % 3) as u8).collect();
        let octets = load(family, &next_hop_of);
        let (mut sets, mut seen, mut at) = (AttrSets::new(), Seen(Vec::new()), 0);
        while at < octets.len() {
            let len = usize::from(u16::from_be_bytes([octets[at + 16], octets[at + 17]]));
            update(&octets[at + HEADER_LEN..at + len], &mut sets, &mut seen)?;
            at += len;
        }
        seen.0.sort();
        let want: Vec<_> = (0..5000u32).map(|i| (i, Some((i % 3) as u8))).collect();
        if seen.0 != want {
            return Err(io::Error::other(format!("{family:?}: the bench cannot read itself")));
        }
    }
    Ok(())
}
