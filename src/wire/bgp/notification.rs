//! NOTIFICATION (RFC 4271 §4.5), with the subcodes of RFC 4486, 5492, 6608, 7313 and 8538 and the
//! shutdown communication of RFC 9003.
//!
//! ```text
//! |  Error code: 1  |  Error subcode: 1  |  Data: the rest  |
//! ```

use std::fmt;

use super::frame::{HEADER_LEN, MAX_LEN, MessageType, begin, finish};

/// So that every NOTIFICATION can be sent to every peer, whatever was negotiated.
pub const DATA_LEN_MAX: usize = MAX_LEN - HEADER_LEN - 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

impl Notification {
    pub const fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// Data beyond what fits in a message is cut.
    pub fn with_data(code: u8, subcode: u8, data: &[u8]) -> Self {
        Self { code, subcode, data: data[..data.len().min(DATA_LEN_MAX)].to_vec() }
    }

    pub const fn cease(subcode: u8) -> Self {
        Self::new(code::CEASE, subcode)
    }

    /// Cease with a text for the operator of the other end (RFC 9003 §2); `subcode` is
    /// administrative shutdown or reset. A text of more than 255 octets is cut between characters.
    pub fn shutdown(subcode: u8, text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(usize::from(u8::MAX))];
        let mut data = vec![u8::try_from(text.len()).expect("cut to 255 octets above")];
        data.extend_from_slice(text.as_bytes());
        Self { code: code::CEASE, subcode, data }
    }

    /// A Cease/Hard Reset that encapsulates this one (RFC 8538 §3.1).
    pub fn hard_reset(&self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend_from_slice(&self.data[..self.data.len().min(DATA_LEN_MAX - 2)]);
        Self { code: code::CEASE, subcode: cease::HARD_RESET, data }
    }

    pub const fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// The shutdown communication, fit for a log: what is not UTF-8 or would move the cursor is
    /// replaced, a length that disagrees with the data is not held against the sender (the session
    /// is over, and the text may be the only explanation).
    pub fn shutdown_text(&self) -> Option<String> {
        let mut inner = (self.code, self.subcode, self.data.as_slice());
        if let (code::CEASE, cease::HARD_RESET, &[code, subcode, ref data @ ..]) = inner {
            inner = (code, subcode, data);
        }
        let (
            code::CEASE,
            cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET,
            &[len, ref text @ ..],
        ) = inner
        else {
            return None;
        };
        let text = &text[..text.len().min(usize::from(len))];
        let clean = |c: char| match c {
            // Line and paragraph separators, and the marks that change writing direction.
            '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            c if c.is_control() => '\u{fffd}',
            c => c,
        };
        let text: String = String::from_utf8_lossy(text).chars().map(clean).collect();
        (!text.is_empty()).then_some(text)
    }

    /// `body`: what follows the header. A NOTIFICATION is never answered with one (§6.4), so an
    /// `Err` is only for the log.
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        match body {
            [code, subcode, data @ ..] => Ok(Self::with_data(*code, *subcode, data)),
            [] | [_] => Err(Self::new(code::MESSAGE_HEADER, header::BAD_LENGTH)),
        }
    }

    /// Appends the whole message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(MessageType::Notification, out);
        out.extend_from_slice(&[self.code, self.subcode]);
        out.extend_from_slice(&self.data[..self.data.len().min(DATA_LEN_MAX)]);
        finish(start, out);
    }

    /// The names of code and subcode as IANA lists them; `None` for numbers without a name.
    pub const fn names(&self) -> (Option<&'static str>, Option<&'static str>) {
        let subcode = match (self.code, self.subcode) {
            (code::MESSAGE_HEADER, header::NOT_SYNCHRONIZED) => "connection not synchronized",
            (code::MESSAGE_HEADER, header::BAD_LENGTH) => "bad message length",
            (code::MESSAGE_HEADER, header::BAD_TYPE) => "bad message type",
            (code::OPEN, open::UNSPECIFIC) => "unspecific",
            (code::OPEN, open::UNSUPPORTED_VERSION) => "unsupported version number",
            (code::OPEN, open::BAD_PEER_AS) => "bad peer AS",
            (code::OPEN, open::BAD_BGP_ID) => "bad BGP identifier",
            (code::OPEN, open::UNSUPPORTED_OPTIONAL_PARAMETER) => "unsupported optional parameter",
            (code::OPEN, open::UNACCEPTABLE_HOLD_TIME) => "unacceptable hold time",
            (code::OPEN, open::UNSUPPORTED_CAPABILITY) => "unsupported capability",
            (code::UPDATE, update::MALFORMED_ATTRIBUTE_LIST) => "malformed attribute list",
            (code::UPDATE, update::UNRECOGNIZED_WELL_KNOWN) => "unrecognized well-known attribute",
            (code::UPDATE, update::MISSING_WELL_KNOWN) => "missing well-known attribute",
            (code::UPDATE, update::ATTRIBUTE_FLAGS) => "attribute flags error",
            (code::UPDATE, update::ATTRIBUTE_LENGTH) => "attribute length error",
            (code::UPDATE, update::INVALID_ORIGIN) => "invalid ORIGIN attribute",
            (code::UPDATE, update::INVALID_NEXT_HOP) => "invalid NEXT_HOP attribute",
            (code::UPDATE, update::OPTIONAL_ATTRIBUTE) => "optional attribute error",
            (code::UPDATE, update::INVALID_NETWORK) => "invalid network field",
            (code::UPDATE, update::MALFORMED_AS_PATH) => "malformed AS_PATH",
            (code::FSM, fsm::UNEXPECTED_IN_OPEN_SENT) => "unexpected message in OpenSent",
            (code::FSM, fsm::UNEXPECTED_IN_OPEN_CONFIRM) => "unexpected message in OpenConfirm",
            (code::FSM, fsm::UNEXPECTED_IN_ESTABLISHED) => "unexpected message in Established",
            (code::CEASE, cease::MAX_PREFIXES) => "maximum number of prefixes reached",
            (code::CEASE, cease::ADMINISTRATIVE_SHUTDOWN) => "administrative shutdown",
            (code::CEASE, cease::PEER_DECONFIGURED) => "peer de-configured",
            (code::CEASE, cease::ADMINISTRATIVE_RESET) => "administrative reset",
            (code::CEASE, cease::CONNECTION_REJECTED) => "connection rejected",
            (code::CEASE, cease::CONFIGURATION_CHANGE) => "other configuration change",
            (code::CEASE, cease::COLLISION) => "connection collision resolution",
            (code::CEASE, cease::OUT_OF_RESOURCES) => "out of resources",
            (code::CEASE, cease::HARD_RESET) => "hard reset",
            (code::CEASE, cease::BFD_DOWN) => "BFD down",
            (code::ROUTE_REFRESH, refresh::INVALID_LENGTH) => "invalid message length",
            _ => "",
        };
        let code = match self.code {
            code::MESSAGE_HEADER => "message header error",
            code::OPEN => "OPEN message error",
            code::UPDATE => "UPDATE message error",
            code::HOLD_TIMER_EXPIRED => "hold timer expired",
            code::FSM => "finite state machine error",
            code::CEASE => "cease",
            code::ROUTE_REFRESH => "ROUTE-REFRESH message error",
            _ => return (None, None),
        };
        (Some(code), if subcode.is_empty() { None } else { Some(subcode) })
    }
}

impl fmt::Display for Notification {
    /// One line: `cease/administrative shutdown (6/2): "text of the peer"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names() {
            (Some(code), Some(subcode)) => write!(f, "{code}/{subcode}")?,
            (Some(code), None) => f.write_str(code)?,
            (None, _) => f.write_str("unknown error")?,
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        if let Some(text) = self.shutdown_text() {
            return write!(f, ": {text:?}");
        }
        if let (true, &[code, subcode, ref data @ ..]) = (self.is_hard_reset(), &self.data[..]) {
            let inner = Self::with_data(code, subcode, data);
            // Only one level: a hard reset inside a hard reset is not unfolded.
            if !inner.is_hard_reset() {
                return write!(f, ": {inner}");
            }
        }
        const DATA_SHOWN_MAX: usize = 32;
        if !self.data.is_empty() {
            f.write_str(", data ")?;
            for octet in self.data.iter().take(DATA_SHOWN_MAX) {
                write!(f, "{octet:02x}")?;
            }
            if self.data.len() > DATA_SHOWN_MAX {
                write!(f, "… ({} octets)", self.data.len())?;
            }
        }
        Ok(())
    }
}

pub mod code {
    pub const MESSAGE_HEADER: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const HOLD_TIMER_EXPIRED: u8 = 4;
    pub const FSM: u8 = 5;
    pub const CEASE: u8 = 6;
    /// RFC 7313 §5.
    pub const ROUTE_REFRESH: u8 = 7;
}

/// Subcodes of code 1 (RFC 4271 §6.1).
pub mod header {
    pub const NOT_SYNCHRONIZED: u8 = 1;
    pub const BAD_LENGTH: u8 = 2;
    pub const BAD_TYPE: u8 = 3;
}

/// Subcodes of code 2 (RFC 4271 §6.2, RFC 5492 §5).
pub mod open {
    pub const UNSPECIFIC: u8 = 0;
    pub const UNSUPPORTED_VERSION: u8 = 1;
    pub const BAD_PEER_AS: u8 = 2;
    pub const BAD_BGP_ID: u8 = 3;
    pub const UNSUPPORTED_OPTIONAL_PARAMETER: u8 = 4;
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
}

/// Subcodes of code 3 (RFC 4271 §6.3).
pub mod update {
    pub const MALFORMED_ATTRIBUTE_LIST: u8 = 1;
    pub const UNRECOGNIZED_WELL_KNOWN: u8 = 2;
    pub const MISSING_WELL_KNOWN: u8 = 3;
    pub const ATTRIBUTE_FLAGS: u8 = 4;
    pub const ATTRIBUTE_LENGTH: u8 = 5;
    pub const INVALID_ORIGIN: u8 = 6;
    pub const INVALID_NEXT_HOP: u8 = 8;
    pub const OPTIONAL_ATTRIBUTE: u8 = 9;
    pub const INVALID_NETWORK: u8 = 10;
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of code 5 (RFC 6608).
pub mod fsm {
    pub const UNEXPECTED_IN_OPEN_SENT: u8 = 1;
    pub const UNEXPECTED_IN_OPEN_CONFIRM: u8 = 2;
    pub const UNEXPECTED_IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of code 6 (RFC 4486, RFC 8538 §3.1).
pub mod cease {
    pub const MAX_PREFIXES: u8 = 1;
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    pub const PEER_DECONFIGURED: u8 = 3;
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const CONFIGURATION_CHANGE: u8 = 6;
    pub const COLLISION: u8 = 7;
    pub const OUT_OF_RESOURCES: u8 = 8;
    pub const HARD_RESET: u8 = 9;
    /// RFC 9384 §3.
    pub const BFD_DOWN: u8 = 10;
}

/// Subcodes of code 7 (RFC 7313 §5).
pub mod refresh {
    pub const INVALID_LENGTH: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9003 §2: up to 255 octets of UTF-8, and never trusted.
    #[test]
    fn shutdown_text_is_cut_and_sanitised() {
        let n = Notification::shutdown(cease::ADMINISTRATIVE_SHUTDOWN, "maintenance until 03:00");
        assert_eq!(n.shutdown_text().as_deref(), Some("maintenance until 03:00"));
        assert_eq!(
            n.to_string(),
            "cease/administrative shutdown (6/2): \"maintenance until 03:00\""
        );
        assert_eq!(n.hard_reset().shutdown_text(), n.shutdown_text());

        let long = Notification::shutdown(cease::ADMINISTRATIVE_RESET, &"é".repeat(200));
        assert_eq!((long.data[0], long.data.len()), (254, 255));

        let evil = Notification::with_data(6, 2, b"\xff\x1b[2Jroot\nfake\xc3line");
        assert_eq!(evil.shutdown_text().unwrap(), "\u{fffd}[2Jroot\u{fffd}fake\u{fffd}line");
        assert_eq!(Notification::with_data(6, 2, &[0]).shutdown_text(), None);
        assert_eq!(Notification::new(6, 2).shutdown_text(), None);
        assert_eq!(Notification::with_data(6, 7, b"\x02ab").shutdown_text(), None);
    }

    #[test]
    fn data_fits_every_peer() {
        let n = Notification::with_data(3, 9, &[7; 60_000]);
        for n in [n.hard_reset(), n] {
            let mut out = Vec::new();
            n.encode(&mut out);
            assert_eq!(out.len(), MAX_LEN);
            assert_eq!(Notification::decode(&out[HEADER_LEN..]), Ok(n));
        }
    }

    #[test]
    fn display_names_what_is_known() {
        assert_eq!(Notification::new(4, 0).to_string(), "hold timer expired (4/0)");
        assert_eq!(Notification::new(77, 1).to_string(), "unknown error (77/1)");
        let version = Notification::with_data(2, 1, &[0, 4]);
        assert_eq!(
            version.to_string(),
            "OPEN message error/unsupported version number (2/1), data 0004"
        );
        let hard = version.hard_reset();
        assert_eq!(hard.to_string(), format!("cease/hard reset (6/9): {version}"));
        assert!(hard.hard_reset().to_string().ends_with(", data 060902010004"));
    }
}
