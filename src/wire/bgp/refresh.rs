//! ROUTE-REFRESH (RFC 2918 §3) and its demarcations (RFC 7313 §3.2).
//!
//! ```text
//! |  AFI: 2  |  Message Subtype: 1  |  SAFI: 1  |
//! ```

use super::frame::{HEADER_LEN, MAX_LEN, MessageType, begin, finish};
use super::notification::{Notification, code, refresh};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    /// Normal request; with or without ORF entries (RFC 5291), which are not read.
    Request,
    /// Beginning of a refresh.
    Borr,
    /// End of a refresh.
    Eorr,
    /// To be ignored, RFC 7313 §5.
    Unknown(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    pub afi: u16,
    pub safi: u8,
    pub kind: RefreshKind,
}

impl RouteRefresh {
    /// RFC 7313 §5: a wrong length is answered with the whole message.
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        let Some((&[afi_high, afi_low, subtype, safi], rest)) = body.split_first_chunk() else {
            return Err(bad_length(body));
        };
        let kind = match subtype {
            0 => RefreshKind::Request,
            1 => RefreshKind::Borr,
            2 => RefreshKind::Eorr,
            other => RefreshKind::Unknown(other),
        };
        if matches!(kind, RefreshKind::Borr | RefreshKind::Eorr) && !rest.is_empty() {
            return Err(bad_length(body));
        }
        Ok(Self { afi: u16::from_be_bytes([afi_high, afi_low]), safi, kind })
    }

    /// Appends the whole message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let subtype = match self.kind {
            RefreshKind::Request => 0,
            RefreshKind::Borr => 1,
            RefreshKind::Eorr => 2,
            RefreshKind::Unknown(other) => other,
        };
        let start = begin(MessageType::RouteRefresh, out);
        out.extend_from_slice(&self.afi.to_be_bytes());
        out.extend_from_slice(&[subtype, self.safi]);
        finish(start, out);
    }
}

fn bad_length(body: &[u8]) -> Notification {
    let mut message = Vec::new();
    let start = begin(MessageType::RouteRefresh, &mut message);
    // A NOTIFICATION has to carry this; its own header takes two octets more.
    message.extend_from_slice(&body[..body.len().min(MAX_LEN - 2 * HEADER_LEN - 2)]);
    finish(start, &mut message);
    Notification { code: code::ROUTE_REFRESH, subcode: refresh::INVALID_LENGTH, data: message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7313 §5.
    #[test]
    fn lengths() {
        for (body, ok) in [
            (&[0, 1, 0, 1][..], true),
            (&[0, 1, 0], false),
            (&[], false),
            (&[0, 1, 0, 1, 1, 64, 0, 0], true),
            (&[0, 1, 1, 1, 0], false),
            (&[0, 2, 2, 1, 0], false),
            (&[0, 2, 9, 1, 0], true),
        ] {
            let got = RouteRefresh::decode(body);
            assert_eq!(got.is_ok(), ok, "{body:?}");
            if let Err(e) = got {
                assert_eq!((e.code, e.subcode), (code::ROUTE_REFRESH, refresh::INVALID_LENGTH));
                assert_eq!(&e.data[HEADER_LEN..], body);
            }
        }
    }

    #[test]
    fn round_trip() {
        for kind in
            [RefreshKind::Request, RefreshKind::Borr, RefreshKind::Eorr, RefreshKind::Unknown(7)]
        {
            let refresh = RouteRefresh { afi: 2, safi: 1, kind };
            let mut out = Vec::new();
            refresh.encode(&mut out);
            assert_eq!(out.len(), 23);
            assert_eq!(RouteRefresh::decode(&out[HEADER_LEN..]), Ok(refresh));
        }
    }
}
