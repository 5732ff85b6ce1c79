//! The stateless answer to packets that are too large for the tunnel (RFC 9300 §7.1): an IPv4
//! packet that may be fragmented is, before it is encapsulated, and its destination puts it
//! together again. The others are dropped, and their source is told.

use super::checksum::Sum;
use super::ip::IPV4_HEADER_LEN;
use super::{DropReason, Head};

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// Fragment offsets count in these.
const UNIT: usize = 8;
/// An option that every fragment gets (RFC 791 §3.1).
const COPIED: u8 = 0x80;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;

/// Cuts `packet` into as few fragments of like size as `mtu_bytes` needs (two, if it is up to
/// twice as large), and hands them out in order. A packet that fits is handed out as it is.
pub fn fragment(
    packet: &[u8],
    mtu_bytes: usize,
    mut emit: impl FnMut(&[u8]),
) -> Result<(), DropReason> {
    let head = Head::of(packet)?;
    let packet = &packet[..head.len];
    if packet.len() <= mtu_bytes {
        emit(packet);
        return Ok(());
    }
    if head.dont_fragment {
        return Err(DropReason::TooBig);
    }
    let (header, payload) = packet.split_at(head.header_len);
    let room = mtu_bytes.saturating_sub(header.len()) / UNIT * UNIT;
    if room == 0 {
        return Err(DropReason::TooBig);
    }
    let count = payload.len().div_ceil(room);
    let size = payload.len().div_ceil(count).next_multiple_of(UNIT);
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let mut at = usize::from(flags & OFFSET) * UNIT;
    if at + payload.len() > usize::from(OFFSET) * UNIT + UNIT {
        return Err(DropReason::NotIp);
    }
    let later = copied_options(header);
    let mut out = Vec::with_capacity(header.len() + size);
    let mut pieces = payload.chunks(size).peekable();
    let mut header = header;
    while let Some(piece) = pieces.next() {
        let more = if pieces.peek().is_some() { MORE_FRAGMENTS } else { flags & MORE_FRAGMENTS };
        let offset = (at / UNIT) as u16;
        out.clear();
        out.extend_from_slice(header);
        put_header(&mut out, piece.len(), more | offset);
        out.extend_from_slice(piece);
        emit(&out);
        at += piece.len();
        header = &later;
    }
    Ok(())
}

/// Length, flags and checksum of a header that is otherwise there.
fn put_header(header: &mut [u8], payload_len: usize, flags: u16) {
    let len = (header.len() + payload_len) as u16;
    header[0] = 0x40 | (header.len() / 4) as u8;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[6..8].copy_from_slice(&flags.to_be_bytes());
    header[10..12].fill(0);
    let checksum = Sum::default().and(header).finish();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The header of the fragments after the first: with the options that say so.
fn copied_options(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(IPV4_HEADER_LEN);
    let mut later = fixed.to_vec();
    while let [kind, rest @ ..] = options {
        let len = match (*kind, rest) {
            (OPTION_END, _) => break,
            (OPTION_NOP, _) => 1,
            (_, [len, ..]) if (2..=options.len()).contains(&usize::from(*len)) => usize::from(*len),
            // What is broken is not passed on.
            (_, _) => break,
        };
        let (option, behind) = options.split_at(len);
        if kind & COPIED != 0 {
            later.extend_from_slice(option);
        }
        options = behind;
    }
    later.resize(later.len().next_multiple_of(4), OPTION_END);
    later
}
