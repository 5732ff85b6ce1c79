//! Named counters and sets of nftables' tables, over netlink: the `nft` program takes 5 ms, and these
//! are read and written on the routing thread.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::NLM_F_CREATE;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::OpError;
use super::attribute::{each, nest, push, push_text, push_u32};
use super::socket::{NFNL_SUBSYS_NFTABLES, Requests, split};
use crate::types::lisp::EntryCount;
use crate::types::{Family, Prefix};

const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_DELTABLE: u16 = 2;
const NFTA_TABLE_NAME: u16 = 1;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_GETOBJ: u16 = 19;

const NFPROTO_INET: u8 = 1;
const NFPROTO_NETDEV: u8 = 5;

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// Of the tables of this name of the families `inet` and `netdev`, in the namespace of the thread
/// that opened it.
pub struct Counts {
    requests: Requests,
    table: &'static str,
}

impl Counts {
    pub fn open(table: &'static str) -> io::Result<Self> {
        Ok(Self { requests: Requests::open_netfilter()?, table })
    }

    /// Each counter with its name. There are none when the tables are not loaded.
    pub fn read(&mut self, mut sink: impl FnMut(&str, EntryCount)) -> io::Result<()> {
        for family in [NFPROTO_INET, NFPROTO_NETDEV] {
            self.read_family(family, &mut sink)?;
        }
        Ok(())
    }

    fn read_family(
        &mut self,
        family: u8,
        mut sink: impl FnMut(&str, EntryCount),
    ) -> io::Result<()> {
        let mut body = vec![family, 0, 0, 0];
        push_text(&mut body, NFTA_OBJ_TABLE, self.table);
        push_u32(&mut body, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER.to_be());
        self.requests.begin_dump_raw(message(NFT_MSG_GETOBJ), &body)?;
        let table = self.table;
        loop {
            let more = self.requests.continue_dump_raw(|_, body| {
                if let Some((name, count)) = counter(body.get(4..).unwrap_or_default(), table) {
                    sink(name, count);
                }
            });
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn counter<'a>(attributes: &'a [u8], wanted: &str) -> Option<(&'a str, EntryCount)> {
    let (mut table, mut name, mut count) = (None, None, EntryCount::default());
    each(attributes, |kind, value| match kind {
        NFTA_OBJ_TABLE => table = text(value),
        NFTA_OBJ_NAME => name = text(value),
        NFTA_OBJ_DATA => each(value, |kind, value| {
            let number = value.first_chunk().map_or(0, |raw| u64::from_be_bytes(*raw));
            match kind {
                NFTA_COUNTER_PACKETS => count.packets = number,
                NFTA_COUNTER_BYTES => count.octets = number,
                _ => {} // of no interest
            }
        }),
        _ => {} // of no interest
    });
    (table == Some(wanted)).then_some((name?, count))
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|&octet| octet == 0).next()?).ok()
}

/// Sets of prefixes in a table of the family `netdev`: one of addresses and one of intervals for each
/// family of addresses.
pub struct Sets {
    requests: Requests,
    table: &'static str,
    dump: Option<Dump>,
}

struct Dump {
    requests: Requests,
    set: SetOf,
    /// Of intervals: begin (false) or end, in whatever order the kernel likes.
    bounds: Vec<(u128, bool)>,
}

/// Which set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetOf {
    pub family: Family,
    /// Of intervals, which must not overlap.
    pub wide: bool,
}

impl SetOf {
    pub const ALL: [Self; 4] = [
        Self { family: Family::Ipv4, wide: false },
        Self { family: Family::Ipv4, wide: true },
        Self { family: Family::Ipv6, wide: false },
        Self { family: Family::Ipv6, wide: true },
    ];

    pub fn of(prefix: Prefix) -> Self {
        Self { family: prefix.family(), wide: !prefix.is_host() }
    }

    pub const fn name(self) -> &'static str {
        match (self.family, self.wide) {
            (Family::Ipv4, false) => "hosts4",
            (Family::Ipv4, true) => "wide4",
            (Family::Ipv6, false) => "hosts6",
            (Family::Ipv6, true) => "wide6",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetChange {
    pub prefix: Prefix,
    pub add: bool,
}

impl Sets {
    pub fn open(table: &'static str) -> io::Result<Self> {
        Ok(Self { requests: Requests::open_netfilter()?, table, dump: None })
    }

    /// All of them or none.
    pub fn apply(&mut self, changes: &[SetChange]) -> Result<(), OpError> {
        let table = self.table;
        let encode = |index: usize, out: &mut Vec<u8>| changes[index].encode(table, out);
        match self.requests.transact_nft(changes.len(), encode) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(refused.into()),
            Err(error) => Err(super::failed(error)),
        }
    }

    pub fn begin_dump(&mut self, set: SetOf) -> Result<(), OpError> {
        let mut requests = Requests::open_netfilter().map_err(super::failed)?;
        let mut body = vec![NFPROTO_NETDEV, 0, 0, 0];
        push_text(&mut body, NFTA_SET_ELEM_LIST_TABLE, self.table);
        push_text(&mut body, NFTA_SET_ELEM_LIST_SET, set.name());
        requests.begin_dump_raw(message(NFT_MSG_GETSETELEM), &body).map_err(super::failed)?;
        self.dump = Some(Dump { requests, set, bounds: Vec::new() });
        Ok(())
    }

    /// A piece of the list; true when there is more. Intervals come at its end.
    pub fn continue_dump(&mut self, mut sink: impl FnMut(Prefix)) -> Result<bool, OpError> {
        let Some(mut dump) = self.dump.take() else { return Ok(false) };
        let (set, bounds) = (dump.set, &mut dump.bounds);
        let more = dump.requests.continue_dump_raw(|_, body| {
            elements(body.get(4..).unwrap_or_default(), |key, end| {
                let Some(number) = number(set.family, key) else { return };
                if set.wide {
                    bounds.push((number, end));
                } else if let Some(prefix) = prefix(set.family, number, 128) {
                    sink(prefix);
                }
            });
        });
        match more {
            // The table is not loaded.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            Err(error) => return Err(super::failed(error)),
            Ok(true) => self.dump = Some(dump),
            Ok(false) => {
                intervals(set.family, dump.bounds, sink);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Says when the table is deleted, `nft flush ruleset` for example.
pub struct Deletions {
    socket: Socket,
    buffer: Vec<u8>,
    table: &'static str,
}

impl Deletions {
    pub fn open(table: &'static str) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, buffer: vec![0; 64 << 10], table })
    }

    /// Reads all there is; true when it may be gone.
    pub fn read(&mut self) -> io::Result<bool> {
        let mut gone = false;
        loop {
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(len) => split(&self.buffer[..len.min(self.buffer.len())], |header, body| {
                    if header.message_type == message(NFT_MSG_DELTABLE) {
                        each(body.get(4..).unwrap_or_default(), |kind, value| {
                            gone |= kind == NFTA_TABLE_NAME && text(value) == Some(self.table);
                        });
                    }
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(gone),
                // Something was missed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => gone = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Deletions {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Left-aligned, so that both families are compared alike.
fn number(family: Family, key: &[u8]) -> Option<u128> {
    match family {
        Family::Ipv4 => key.first_chunk().map(|raw| u128::from(u32::from_be_bytes(*raw)) << 96),
        Family::Ipv6 => key.first_chunk().map(|raw| u128::from_be_bytes(*raw)),
    }
}

fn prefix(family: Family, number: u128, len: u32) -> Option<Prefix> {
    let len = u8::try_from(len).ok()?;
    match family {
        Family::Ipv4 => Prefix::v4((number >> 96) as u32, len.min(32)),
        Family::Ipv6 => Prefix::v6(number, len),
    }
}

fn intervals(family: Family, mut bounds: Vec<(u128, bool)>, mut sink: impl FnMut(Prefix)) {
    // An end and the next begin may be the same address: the end first.
    bounds.sort_unstable_by_key(|&(at, end)| (at, !end));
    let mut begin = None;
    let mut close = |begin: &mut Option<u128>, end: Option<u128>| {
        let Some(from) = begin.take() else { return };
        // Without an end it goes to the last address.
        let size = end.unwrap_or(0).wrapping_sub(from);
        let len = if size == 0 { 0 } else { 128 - size.ilog2() };
        if let Some(prefix) = prefix(family, from, len) {
            sink(prefix);
        }
    };
    for (at, end) in bounds {
        close(&mut begin, Some(at));
        if !end {
            begin = Some(at);
        }
    }
    close(&mut begin, None);
}

fn elements<'a>(attributes: &'a [u8], mut sink: impl FnMut(&'a [u8], bool)) {
    each(attributes, |kind, list| {
        if kind != NFTA_SET_ELEM_LIST_ELEMENTS {
            return;
        }
        each(list, |_, element| {
            let (mut key, mut flags) = (None, 0);
            each(element, |kind, value| match kind {
                NFTA_SET_ELEM_KEY => each(value, |kind, value| {
                    if kind == NFTA_DATA_VALUE {
                        key = Some(value);
                    }
                }),
                NFTA_SET_ELEM_FLAGS => {
                    flags = value.first_chunk().map_or(0, |raw| u32::from_be_bytes(*raw));
                }
                _ => {} // of no interest
            });
            if let Some(key) = key {
                sink(key, flags & NFT_SET_ELEM_INTERVAL_END != 0);
            }
        });
    });
}

impl SetChange {
    fn encode(&self, table: &str, out: &mut Vec<u8>) -> (u16, u16) {
        let set = SetOf::of(self.prefix);
        out.extend_from_slice(&[NFPROTO_NETDEV, 0, 0, 0]);
        push_text(out, NFTA_SET_ELEM_LIST_TABLE, table);
        push_text(out, NFTA_SET_ELEM_LIST_SET, set.name());
        let element = |out: &mut Vec<u8>, key: &[u8], end: bool| {
            nest(out, NFTA_LIST_ELEM, |out| {
                nest(out, NFTA_SET_ELEM_KEY, |out| push(out, NFTA_DATA_VALUE, key));
                if end {
                    push_u32(out, NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END.to_be());
                }
            });
        };
        nest(out, NFTA_SET_ELEM_LIST_ELEMENTS, |out| match (self.prefix.addr(), set.wide) {
            (IpAddr::V4(from), wide) => {
                element(out, &from.octets(), false);
                let size = 1_u64 << (32 - self.prefix.len());
                let end = u32::try_from(u64::from(u32::from(from)) + size);
                if let Some(end) = end.ok().filter(|_| wide) {
                    element(out, &end.to_be_bytes(), true);
                }
            }
            (IpAddr::V6(from), wide) => {
                element(out, &from.octets(), false);
                let size = 1_u128.checked_shl((128 - self.prefix.len()).into());
                let end = size.and_then(|size| u128::from(from).checked_add(size));
                if let Some(end) = end.filter(|_| wide) {
                    element(out, &end.to_be_bytes(), true);
                }
            }
        });
        match self.add {
            true => (message(NFT_MSG_NEWSETELEM), NLM_F_CREATE),
            false => (message(NFT_MSG_DELSETELEM), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as elements and read back.
    #[test]
    fn prefixes_are_intervals() {
        let texts = [
            "10.0.0.0/8",
            "11.0.0.0/8",
            "255.0.0.0/8",
            "10.9.0.7",
            "2001:db8::/32",
            "::1",
            "ff00::/8",
        ];
        for texts in [&texts[..], &["0.0.0.0/0", "::/0"]] {
            let prefixes: Vec<Prefix> = texts.iter().map(|text| text.parse().unwrap()).collect();
            for set in SetOf::ALL {
                let mut found = Vec::new();
                let mut bounds = Vec::new();
                for &prefix in prefixes.iter().filter(|&&prefix| SetOf::of(prefix) == set) {
                    let mut out = Vec::new();
                    SetChange { prefix, add: true }.encode("t", &mut out);
                    elements(&out[4..], |key, end| {
                        let number = number(set.family, key).unwrap();
                        match set.wide {
                            true => bounds.push((number, end)),
                            false => found.extend(super::prefix(set.family, number, 128)),
                        }
                    });
                }
                bounds.reverse();
                intervals(set.family, bounds, |prefix| found.push(prefix));
                let wanted = prefixes.iter().copied().filter(|&prefix| SetOf::of(prefix) == set);
                assert_eq!(found, wanted.collect::<Vec<_>>());
            }
        }
    }
}
