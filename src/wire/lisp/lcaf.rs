//! Address families as LISP writes them, and the LISP Canonical Address Format (RFC 8060 §3).
//!
//! ```text
//! |           AFI = 16387         |     Rsvd1     |     Flags     |
//! |    Type       |     Rsvd2     |            Length             |
//! |  Length octets ...
//! ```
//!
//! An LCAF says its own length, so one that is not understood is passed over and kept as octets.
//! Nothing here recurses by what the octets say: each nesting that is understood is written out.

use std::net::IpAddr;

use crate::wire::{Reader, WireError};

pub const AFI_NONE: u16 = 0;
pub const AFI_IPV4: u16 = 1;
pub const AFI_IPV6: u16 = 2;
/// IEEE 802 MAC address.
const AFI_802: u16 = 6;
/// Distinguished name: characters up to a NUL.
const AFI_NAME: u16 = 17;
pub const AFI_LCAF: u16 = 16387;
const AFI_MAC_48: u16 = 16389;
const AFI_MAC_64: u16 = 16390;

pub const TYPE_AFI_LIST: u8 = 1;
pub const TYPE_INSTANCE_ID: u8 = 2;
pub const TYPE_SOURCE_DESTINATION: u8 = 12;

/// Octets of an LCAF before what its length field counts, AFI included.
const HEADER_LEN: usize = 8;

/// The octets of the next address, from its AFI on. An AFI whose length nobody can know is an
/// error: the message cannot be read past it (RFC 9301 §5.1 drops it and logs).
pub fn take_address<'a>(input: &mut Reader<'a>) -> Result<&'a [u8], WireError> {
    let mut ahead = *input;
    let len = match ahead.u16()? {
        AFI_NONE => 0,
        AFI_IPV4 => 4,
        AFI_802 | AFI_MAC_48 => 6,
        AFI_MAC_64 => 8,
        AFI_IPV6 => 16,
        AFI_NAME => 1 + ahead.rest().iter().position(|&c| c == 0).ok_or(WireError::Truncated)?,
        AFI_LCAF => {
            ahead.bytes(4)?;
            HEADER_LEN - 2 + usize::from(ahead.u16()?)
        }
        afi => return Err(WireError::UnknownAfi(afi)),
    };
    input.bytes(2 + len)
}

/// An address of one of the families that are routed.
pub fn ip(address: &[u8]) -> Option<IpAddr> {
    let (afi, octets) = address.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*afi) {
        AFI_IPV4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        AFI_IPV6 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

pub fn put_ip(addr: IpAddr, out: &mut Vec<u8>) {
    match addr {
        IpAddr::V4(a) => {
            out.extend_from_slice(&AFI_IPV4.to_be_bytes());
            out.extend_from_slice(&a.octets());
        }
        IpAddr::V6(a) => {
            out.extend_from_slice(&AFI_IPV6.to_be_bytes());
            out.extend_from_slice(&a.octets());
        }
    }
}

/// One LCAF, opened.
#[derive(Clone, Copy, Debug)]
pub struct Lcaf<'a> {
    pub kind: u8,
    pub body: Reader<'a>,
}

impl<'a> Lcaf<'a> {
    /// `None` when the address is of another family.
    pub fn open(address: &'a [u8]) -> Option<Self> {
        let mut input = Reader::new(address);
        if input.u16().ok()? != AFI_LCAF {
            return None;
        }
        let [_, _, kind, _] = input.array().ok()?;
        let len = input.u16().ok()?;
        let body = input.sub(usize::from(len)).ok()?;
        Some(Self { kind, body })
    }

    /// Writes the header, then what `body` writes, then the length. A body that is longer than
    /// the length field can say leaves an AFI of 0 in its place.
    pub fn put(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
        let start = out.len();
        out.extend_from_slice(&AFI_LCAF.to_be_bytes());
        out.extend_from_slice(&[0, 0, kind, 0, 0, 0]);
        body(out);
        match u16::try_from(out.len() - start - HEADER_LEN) {
            Ok(len) => out[start + 6..start + 8].copy_from_slice(&len.to_be_bytes()),
            Err(_) => {
                out.truncate(start);
                out.extend_from_slice(&AFI_NONE.to_be_bytes());
            }
        }
    }
}
