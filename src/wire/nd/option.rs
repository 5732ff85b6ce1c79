//! Options of Neighbor Discovery messages (RFC 4861 §4.6): type, length in units of 8 octets, value.

use std::net::Ipv6Addr;
use std::time::Duration;

use crate::types::MacAddr;
use crate::wire::{Reader, WireError};

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NdOption {
    SourceLinkLayer(MacAddr),
    TargetLinkLayer(MacAddr),
    Prefix(PrefixInformation),
    Mtu(u32),
    /// Not interpreted. `value` is a multiple of 8 octets, less the two of type and length.
    Other {
        kind: u8,
        value: Vec<u8>,
    },
}

/// RFC 4861 §4.6.2.
/// ```text
/// |     Type      |    Length     | Prefix Length |L|A| Reserved1 |
/// |                         Valid Lifetime                        |
/// |                       Preferred Lifetime                      |
/// |                           Reserved2                           |
/// |                          Prefix (16)                          |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixInformation {
    pub prefix: Ipv6Addr,
    pub len: u8,
    pub on_link: bool,
    pub autonomous: bool,
    /// Whole seconds on the wire; [`Self::INFINITE`] and more mean "for ever".
    pub valid: Duration,
    pub preferred: Duration,
}

impl PrefixInformation {
    pub const INFINITE: Duration = Duration::from_secs(u32::MAX as u64);
}

impl NdOption {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = input.u8()?;
        // §4.6: "Nodes MUST silently discard an ND packet that contains an option with length
        // zero."
        let length = usize::from(input.u8()?) * 8;
        let mut value = input.sub(length.checked_sub(2).ok_or(WireError::BadLength)?)?;
        let option = match kind {
            SOURCE_LINK_LAYER => Self::SourceLinkLayer(decode_mac(&mut value)?),
            TARGET_LINK_LAYER => Self::TargetLinkLayer(decode_mac(&mut value)?),
            PREFIX_INFORMATION => Self::Prefix(PrefixInformation::decode(&mut value)?),
            MTU => {
                value.u16()?;
                Self::Mtu(value.u32()?)
            }
            kind => return Ok(Self::Other { kind, value: value.rest().to_vec() }),
        };
        if value.is_empty() { Ok(option) } else { Err(WireError::BadLength) }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::SourceLinkLayer(mac) => encode_mac(SOURCE_LINK_LAYER, *mac, out),
            Self::TargetLinkLayer(mac) => encode_mac(TARGET_LINK_LAYER, *mac, out),
            Self::Prefix(prefix) => prefix.encode(out),
            Self::Mtu(mtu) => {
                out.extend_from_slice(&[MTU, 1, 0, 0]);
                out.extend_from_slice(&mtu.to_be_bytes());
            }
            Self::Other { kind, value } => {
                let length = u8::try_from((value.len() + 2) / 8)
                    .expect("an unknown option is only ever one that was decoded");
                out.extend_from_slice(&[*kind, length]);
                out.extend_from_slice(value);
            }
        }
    }
}

/// An Ethernet address fills the option exactly; another length is another kind of link.
fn decode_mac(value: &mut Reader<'_>) -> Result<MacAddr, WireError> {
    value.array().map(MacAddr)
}

fn encode_mac(kind: u8, mac: MacAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&[kind, 1]);
    out.extend_from_slice(&mac.0);
}

const FLAG_ON_LINK: u8 = 0x80;
const FLAG_AUTONOMOUS: u8 = 0x40;

impl PrefixInformation {
    fn decode(value: &mut Reader<'_>) -> Result<Self, WireError> {
        let len = value.u8()?;
        if len > 128 {
            return Err(WireError::BadValue);
        }
        let flags = value.u8()?;
        let valid = Duration::from_secs(value.u32()?.into());
        let preferred = Duration::from_secs(value.u32()?.into());
        value.u32()?;
        Ok(Self {
            prefix: Ipv6Addr::from(value.array::<16>()?),
            len,
            on_link: flags & FLAG_ON_LINK != 0,
            autonomous: flags & FLAG_AUTONOMOUS != 0,
            valid,
            preferred,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let flags = if self.on_link { FLAG_ON_LINK } else { 0 }
            | if self.autonomous { FLAG_AUTONOMOUS } else { 0 };
        let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&[PREFIX_INFORMATION, 4, self.len, flags]);
        out.extend_from_slice(&seconds(self.valid));
        out.extend_from_slice(&seconds(self.preferred));
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.prefix.octets());
    }
}
