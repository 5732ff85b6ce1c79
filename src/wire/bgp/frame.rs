//! The message header (RFC 4271 §4.1), its errors (§6.1) and the longer messages of RFC 8654.
//!
//! ```text
//! |  Marker: 16 octets, all ones  |  Length: 2  |  Type: 1  |
//! ```

use super::Notification;
use super::notification::{code, header};

pub const HEADER_LEN: usize = 19;
/// The largest message without RFC 8654, and the largest OPEN or KEEPALIVE ever.
pub const MAX_LEN: usize = 4096;
/// The largest message with RFC 8654.
pub const MAX_LEN_EXTENDED: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageType {
    Open = 1,
    Update = 2,
    Notification = 3,
    Keepalive = 4,
    RouteRefresh = 5,
}

impl MessageType {
    const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Open),
            2 => Some(Self::Update),
            3 => Some(Self::Notification),
            4 => Some(Self::Keepalive),
            5 => Some(Self::RouteRefresh),
            _ => None,
        }
    }

    /// The label used in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Update => "update",
            Self::Notification => "notification",
            Self::Keepalive => "keepalive",
            Self::RouteRefresh => "route_refresh",
        }
    }

    /// Octets of the smallest message, §6.1. A short ROUTE-REFRESH passes: RFC 7313 §5 has its own
    /// error for that, which the refresh codec raises.
    const fn min_len(self) -> usize {
        match self {
            Self::Open => 29,
            Self::Update => 23,
            Self::Notification => 21,
            Self::Keepalive | Self::RouteRefresh => HEADER_LEN,
        }
    }

    /// RFC 8654 §4: OPEN and KEEPALIVE stay small.
    fn max_len(self, negotiated: usize) -> usize {
        match self {
            Self::Keepalive => HEADER_LEN,
            Self::Open => negotiated.min(MAX_LEN),
            Self::Update | Self::Notification | Self::RouteRefresh => negotiated,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: MessageType,
    /// What follows the header.
    pub body: &'a [u8],
    /// Octets of the whole message: what to consume.
    pub len: usize,
}

/// The first message in `buf`; `None` when it is not complete yet. A wrong header is an error as
/// soon as it can be seen, so a peer that speaks something else is not waited for.
pub fn next_frame(buf: &[u8], max_len: usize) -> Result<Option<Frame<'_>>, Notification> {
    let marker = &buf[..buf.len().min(MARKER.len())];
    if marker != &MARKER[..marker.len()] {
        return Err(Notification::new(code::MESSAGE_HEADER, header::NOT_SYNCHRONIZED));
    }
    let Some(&[len_high, len_low, type_octet]) = buf.get(16..HEADER_LEN) else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let bad_len =
        || Notification::with_data(code::MESSAGE_HEADER, header::BAD_LENGTH, &[len_high, len_low]);
    if len < HEADER_LEN || len > max_len {
        return Err(bad_len());
    }
    let Some(kind) = MessageType::from_octet(type_octet) else {
        return Err(Notification::with_data(code::MESSAGE_HEADER, header::BAD_TYPE, &[type_octet]));
    };
    if len < kind.min_len() || len > kind.max_len(max_len) {
        return Err(bad_len());
    }
    Ok(buf.get(HEADER_LEN..len).map(|body| Frame { kind, body, len }))
}

/// Starts a message; give the result to [`finish`].
pub fn begin(kind: MessageType, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let mut head = [0xff; HEADER_LEN];
    head[16] = 0;
    head[17] = 0;
    head[18] = kind as u8;
    out.extend_from_slice(&head);
    start
}

/// Fills in the length of the message that [`begin`] started and that ends where `out` ends.
pub fn finish(start: usize, out: &mut [u8]) {
    let len = u16::try_from(out.len() - start).expect("every encoder keeps to 65535 octets");
    out[start + 16..start + 18].copy_from_slice(&len.to_be_bytes());
}

pub fn encode_keepalive(out: &mut Vec<u8>) {
    let start = begin(MessageType::Keepalive, out);
    finish(start, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: u16, kind: u8, octets: usize) -> Vec<u8> {
        let mut m = vec![0xff; 16];
        m.extend(len.to_be_bytes());
        m.push(kind);
        m.resize(octets, 0);
        m
    }

    /// RFC 4271 §6.1, RFC 8654 §4.
    #[test]
    fn lengths_are_limited_per_type() {
        let bad = |len: u16| {
            Err(Notification::with_data(
                code::MESSAGE_HEADER,
                header::BAD_LENGTH,
                &len.to_be_bytes(),
            ))
        };
        for (len, kind, max) in [
            (18, 4, MAX_LEN),
            (0, 2, MAX_LEN),
            (4097, 2, MAX_LEN),
            (28, 1, MAX_LEN),
            (22, 2, MAX_LEN),
            (20, 3, MAX_LEN),
            (20, 4, MAX_LEN),
            (4097, 1, MAX_LEN_EXTENDED),
            (4097, 4, MAX_LEN_EXTENDED),
        ] {
            assert_eq!(next_frame(&message(len, kind, 19), max), bad(len), "{len} {kind}");
        }
        let long = message(65535, 2, 65535);
        assert_eq!(next_frame(&long, MAX_LEN_EXTENDED).unwrap().unwrap().len, 65535);
    }

    #[test]
    fn a_wrong_marker_or_type_is_not_waited_for() {
        let marker = Notification::new(code::MESSAGE_HEADER, header::NOT_SYNCHRONIZED);
        assert_eq!(next_frame(b"GET / HTTP/1.1", MAX_LEN), Err(marker));
        let kind = Notification::with_data(code::MESSAGE_HEADER, header::BAD_TYPE, &[6]);
        assert_eq!(next_frame(&message(300, 6, 19), MAX_LEN), Err(kind));
    }

    #[test]
    fn incomplete_messages_are_waited_for_and_following_ones_left() {
        let mut out = Vec::new();
        encode_keepalive(&mut out);
        for cut in 0..out.len() {
            assert_eq!(next_frame(&out[..cut], MAX_LEN), Ok(None));
        }
        encode_keepalive(&mut out);
        let frame = next_frame(&out, MAX_LEN).unwrap().unwrap();
        assert_eq!((frame.kind, frame.len, frame.body.len()), (MessageType::Keepalive, 19, 0));
    }
}
