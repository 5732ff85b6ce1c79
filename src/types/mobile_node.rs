//! The name of a mobile node.

use std::cmp::Ordering;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{MacAddr, Prefix, limits};

/// Mobile node identifier, in the form of an NAI (RFC 4283 §3.1): 1 to 255 printable ASCII
/// characters without blanks. Cheap to clone.
///
/// The names that killick gives by itself, of which there may be millions, need no memory of
/// their own: they are held as what they are made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MnId(Name);

/// One name has one form here: what can be [`Made`] is never [`Name::Text`].
#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    Made(Made),
    Text(Arc<str>),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Made {
    /// `02:00:5e:00:01:01`
    Mac(MacAddr),
    /// `eid:10.1.2.3/32`, of a node of which only its EID is known.
    Eid { addr: [u8; 4], len: u8 },
}

const _: () = assert!(size_of::<MnId>() == 16, "there is one in each binding");

/// Before the prefix in [`Made::Eid`].
const EID: &str = "eid:";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MnIdError {
    #[error("a mobile node identifier has 1 to 255 characters")]
    Length,
    #[error("a mobile node identifier is printable ASCII without blanks")]
    Character,
}

impl Made {
    /// Only what is written as we would write it, to the letter.
    fn parse(text: &str) -> Option<Self> {
        let made = match text.strip_prefix(EID) {
            Some(eid) => match eid.parse().ok()? {
                Prefix::V4 { addr, len } => Self::Eid { addr: addr.to_be_bytes(), len },
                Prefix::V6 { .. } => return None,
            },
            None => Self::Mac(text.parse().ok()?),
        };
        (*made.text() == *text).then_some(made)
    }

    fn text(self) -> MnText<'static> {
        let mut text = Written::default();
        match self {
            Self::Mac(MacAddr(mac)) => {
                for (i, octet) in mac.into_iter().enumerate() {
                    const DIGITS: &[u8; 16] = b"0123456789abcdef";
                    if i > 0 {
                        text.push(b':');
                    }
                    text.push(DIGITS[usize::from(octet >> 4)]);
                    text.push(DIGITS[usize::from(octet & 15)]);
                }
            }
            Self::Eid { addr, len } => {
                let addr = Ipv4Addr::from(addr);
                fmt::Write::write_fmt(&mut text, format_args!("{EID}{addr}/{len}"))
                    .expect("there is room for the longest");
            }
        }
        MnText(Text::Written(text))
    }
}

/// The text of an identifier, to be used as a `str`.
#[derive(Clone, Copy)]
pub struct MnText<'a>(Text<'a>);

#[derive(Clone, Copy)]
enum Text<'a> {
    Kept(&'a str),
    Written(Written),
}

/// Room for the longest text of a [`Made`].
#[derive(Clone, Copy, Default)]
struct Written {
    octets: [u8; "eid:255.255.255.255/32".len()],
    len: u8,
}

impl Written {
    /// Octets that find no room are left out.
    fn push(&mut self, octet: u8) {
        if let Some(place) = self.octets.get_mut(usize::from(self.len)) {
            *place = octet;
            self.len += 1;
        }
    }
}

impl fmt::Write for Written {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if s.len() > self.octets.len() - usize::from(self.len) {
            return Err(fmt::Error);
        }
        s.bytes().for_each(|octet| self.push(octet));
        Ok(())
    }
}

impl Deref for MnText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Text::Kept(text) => text,
            Text::Written(text) => std::str::from_utf8(&text.octets[..usize::from(text.len)])
                .expect("only ASCII is written"),
        }
    }
}

impl MnId {
    pub fn new(text: &str) -> Result<Self, MnIdError> {
        if text.is_empty() || text.len() > limits::MN_ID_LEN_MAX {
            return Err(MnIdError::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(MnIdError::Character);
        }
        Ok(Self(match Made::parse(text) {
            Some(made) => Name::Made(made),
            None => Name::Text(text.into()),
        }))
    }

    /// The identifier of a plain host that has no configured one: its link-layer address, the
    /// same at every anchor it attaches to.
    pub fn from_mac(mac: MacAddr) -> Self {
        Self(Name::Made(Made::Mac(mac)))
    }

    pub fn as_str(&self) -> MnText<'_> {
        match &self.0 {
            Name::Made(made) => made.text(),
            Name::Text(text) => MnText(Text::Kept(text)),
        }
    }
}

/// By the text, whatever form it has inside.
impl Ord for MnId {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            // As many digits each, and digits sort as their values do.
            (Name::Made(Made::Mac(a)), Name::Made(Made::Mac(b))) => a.cmp(b),
            _ => self.as_str().cmp(&other.as_str()),
        }
    }
}

impl PartialOrd for MnId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for MnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str())
    }
}

impl fmt::Debug for MnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MnId({})", &*self.as_str())
    }
}

impl Serialize for MnId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.as_str())
    }
}

impl<'de> Deserialize<'de> for MnId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some look like names that are made, and are not.
    const NAMES: [&str; 17] = [
        "02:00:5e:00:01:01",
        "02:00:5e:00:01:0a",
        "02:00:5E:00:01:01",
        "+2:00:5e:00:01:01",
        "02:00:5e:00:01",
        "ff:ff:ff:ff:ff:ff",
        "eid:10.1.2.3/32",
        "eid:10.1.2.0/24",
        "eid:10.1.2.3",
        "eid:10.1.2.3/+32",
        "eid:10.1.2.3/24",
        "eid:255.255.255.255/32",
        "eid:0.0.0.0/0",
        "eid:2001:db8::1/128",
        "eid:",
        "mn1@example",
        "eid:10.01.2.3/32",
    ];

    #[test]
    fn a_name_is_its_text_again_in_whatever_form_it_is_held() {
        for text in NAMES {
            let id = MnId::new(text).unwrap();
            assert_eq!(*id.as_str(), *text);
            assert_eq!((id.to_string(), format!("{id:?}")), (text.into(), format!("MnId({text})")));
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<MnId>(&format!("\"{text}\"")).unwrap(), id);
        }
        let held = |text| matches!(MnId::new(text).unwrap().0, Name::Made(_));
        let made: Vec<&str> = NAMES.into_iter().filter(|text| held(text)).collect();
        let [mac, mac_a, last_mac, host, net, last, all] = [0, 1, 5, 6, 7, 11, 12];
        assert_eq!(made, [mac, mac_a, last_mac, host, net, last, all].map(|i: usize| NAMES[i]));
    }

    #[test]
    fn one_name_has_one_form_and_names_are_ordered_by_their_text() {
        for a in NAMES {
            for b in NAMES {
                let (x, y) = (MnId::new(a).unwrap(), MnId::new(b).unwrap());
                assert_eq!((x.cmp(&y), x == y), (a.cmp(b), a == b), "{a} {b}");
            }
        }
        let mac = "02:00:5e:00:01:0a".parse().unwrap();
        assert_eq!(MnId::from_mac(mac), MnId::new("02:00:5e:00:01:0a").unwrap());
    }
}
