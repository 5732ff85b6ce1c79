//! The message header (RFC 4271 §4.1) and the limits of RFC 8654.

use super::Notification;

pub const HEADER_LEN: usize = 19;
pub const MAX_LEN: usize = 4096;
pub const MAX_LEN_EXTENDED: usize = 65535;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageType {
    Open = 1,
    Update = 2,
    Notification = 3,
    Keepalive = 4,
    RouteRefresh = 5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: MessageType,
    /// What follows the header.
    pub body: &'a [u8],
    /// Octets of the whole message: what to consume.
    pub len: usize,
}

/// The first message in `buf`; `None` when it is not complete yet.
pub fn next_frame(_buf: &[u8], _max_len: usize) -> Result<Option<Frame<'_>>, Notification> {
    unimplemented!()
}

/// Starts a message; give the result to [`finish`].
pub fn begin(_kind: MessageType, _out: &mut Vec<u8>) -> usize {
    unimplemented!()
}

/// Fills in the length of the message that [`begin`] started.
pub fn finish(_start: usize, _out: &mut [u8]) {
    unimplemented!()
}

pub fn encode_keepalive(out: &mut Vec<u8>) {
    let start = begin(MessageType::Keepalive, out);
    finish(start, out);
}
