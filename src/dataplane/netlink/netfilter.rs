//! Named counters of an nftables table, read over netlink: the `nft` program takes 5 ms, and these
//! are read on the routing thread.

use std::io;

use super::attribute::{each, push_text, push_u32};
use super::socket::Requests;
use crate::types::lisp::EntryCount;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETOBJ: u16 = 19;
const NFPROTO_INET: u8 = 1;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Of one table of the family `inet`, in the namespace of the thread that opened it.
pub struct Counts {
    requests: Requests,
    table: &'static str,
}

impl Counts {
    pub fn open(table: &'static str) -> io::Result<Self> {
        Ok(Self { requests: Requests::open_netfilter()?, table })
    }

    /// Each counter with its name. There are none when the table is not loaded.
    pub fn read(&mut self, mut sink: impl FnMut(&str, EntryCount)) -> io::Result<()> {
        let mut body = vec![NFPROTO_INET, 0, 0, 0];
        push_text(&mut body, NFTA_OBJ_TABLE, self.table);
        push_u32(&mut body, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER.to_be());
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETOBJ;
        self.requests.begin_dump_raw(kind, &body)?;
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
