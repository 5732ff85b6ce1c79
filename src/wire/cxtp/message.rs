//! The seven messages (RFC 4067 §2.5).
//!
//! ```text
//! |Vers.|   Type  |V|A| Reserved  |            Length             |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Block, RequestBlocks, Token};
use crate::wire::{Reader, WireError};

pub const HEADER_LEN: usize = 4;

/// What the Length field can say; also the most that a peer can make us buffer for one message.
pub const MESSAGE_LEN_MAX: usize = u16::MAX as usize;

/// §2.5.3, the only algorithm.
pub const ALGORITHM_HMAC_SHA1: u16 = 1;

const VERSION: u8 = 1;
const CTAR: u8 = 1;
const CTAA: u8 = 2;
const CTD: u8 = 3;
const PCTD: u8 = 4;
const CTDR: u8 = 5;
const CTC: u8 = 6;
const CT_REQ: u8 = 7;

const FLAG_V4: u8 = 0x80;
/// A in CTAR, CTD and PCTD; S in CTDR; reserved in the others.
const FLAG_A_OR_S: u8 = 0x40;

/// The two addresses of a CTAR, of one family because one V flag covers both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    V4 { mn: Ipv4Addr, router: Ipv4Addr },
    V6 { mn: Ipv6Addr, router: Ipv6Addr },
}

impl Addresses {
    /// `None` when the families differ.
    pub fn new(mn: IpAddr, router: IpAddr) -> Option<Self> {
        match (mn, router) {
            (IpAddr::V4(mn), IpAddr::V4(router)) => Some(Self::V4 { mn, router }),
            (IpAddr::V6(mn), IpAddr::V6(router)) => Some(Self::V6 { mn, router }),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    pub fn mn(self) -> IpAddr {
        match self {
            Self::V4 { mn, .. } => mn.into(),
            Self::V6 { mn, .. } => mn.into(),
        }
    }

    pub fn router(self) -> IpAddr {
        match self {
            Self::V4 { router, .. } => router.into(),
            Self::V6 { router, .. } => router.into(),
        }
    }
}

/// One entry of CTAA and CTDR.
///
/// ```text
/// |       FPT (if present)        |  Status code  |   Reserved    |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureStatus {
    pub fpt: u16,
    pub status: u8,
}

/// `mn` is always the previous address of the mobile node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Mobile node → nAR (`router` is the pAR) or → pAR (`router` is the nAR).
    Ctar {
        acknowledge: bool,
        addresses: Addresses,
        sequence: u32,
        token: Token,
        requests: RequestBlocks,
    },
    /// Access router → mobile node: what was not transferred.
    Ctaa { mn: IpAddr, statuses: Vec<FeatureStatus> },
    /// pAR → nAR.
    Ctd { acknowledge: bool, elapsed_ms: u32, mn: IpAddr, blocks: Vec<Block> },
    /// pAR → nAR, before it asks or with the key it asked for.
    Pctd {
        acknowledge: bool,
        elapsed_ms: u32,
        mn: IpAddr,
        algorithm: u16,
        key: Vec<u8>,
        blocks: Vec<Block>,
    },
    /// nAR → pAR. `success` is the S flag.
    Ctdr { success: bool, mn: IpAddr, statuses: Vec<FeatureStatus> },
    /// nAR → pAR.
    Ctc { mn: IpAddr },
    /// nAR → pAR.
    CtReq { mn: IpAddr, sequence: u32, token: Token, requests: RequestBlocks },
}

/// Octets of the message that `buf` begins with. `None`: its header is not complete yet.
///
/// An error ends the stream: without a Length to trust, nothing after it can be found.
pub fn frame_len(buf: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(&[first, _, high, low]) = buf.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    match first >> 5 {
        VERSION => {}
        version => return Err(WireError::UnknownVersion(version)),
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len < HEADER_LEN { Err(WireError::BadLength) } else { Ok(Some(len)) }
}

/// The first message of a stream, and how many octets it took. `None`: more octets are needed.
pub fn next_message(buf: &[u8]) -> Result<Option<(Message, usize)>, WireError> {
    match frame_len(buf)? {
        Some(len) if len <= buf.len() => Ok(Some((Message::decode(&buf[..len])?, len))),
        Some(_) | None => Ok(None),
    }
}

fn decode_addr(v4: bool, input: &mut Reader<'_>) -> Result<IpAddr, WireError> {
    if v4 { Ok(input.array::<4>()?.into()) } else { Ok(input.array::<16>()?.into()) }
}

fn encode_addr(addr: IpAddr, out: &mut Vec<u8>) {
    match addr {
        IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
        IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
    }
}

fn decode_statuses(input: &mut Reader<'_>) -> Result<Vec<FeatureStatus>, WireError> {
    let mut statuses = Vec::new();
    while !input.is_empty() {
        let fpt = input.u16()?;
        let [status, _reserved] = input.array()?;
        statuses.push(FeatureStatus { fpt, status });
    }
    Ok(statuses)
}

impl Message {
    /// One whole message: Length must say exactly what is there.
    pub fn decode(octets: &[u8]) -> Result<Self, WireError> {
        match frame_len(octets)? {
            Some(len) if len == octets.len() => {}
            Some(_) => return Err(WireError::BadLength),
            None => return Err(WireError::Truncated),
        }
        let (v4, flag) = (octets[1] & FLAG_V4 != 0, octets[1] & FLAG_A_OR_S != 0);
        let mut input = Reader::new(&octets[HEADER_LEN..]);
        let input = &mut input;
        Ok(match octets[0] & 0x1f {
            CTAR => Self::Ctar {
                acknowledge: flag,
                addresses: if v4 {
                    let (mn, router) = (input.array::<4>()?.into(), input.array::<4>()?.into());
                    Addresses::V4 { mn, router }
                } else {
                    let (mn, router) = (input.array::<16>()?.into(), input.array::<16>()?.into());
                    Addresses::V6 { mn, router }
                },
                sequence: input.u32()?,
                token: Token(input.u32()?),
                requests: RequestBlocks::decode(input)?,
            },
            CTAA => Self::Ctaa { mn: decode_addr(v4, input)?, statuses: decode_statuses(input)? },
            CTD => Self::Ctd {
                acknowledge: flag,
                elapsed_ms: input.u32()?,
                mn: decode_addr(v4, input)?,
                blocks: Block::decode_all(input)?,
            },
            PCTD => Self::Pctd {
                acknowledge: flag,
                elapsed_ms: input.u32()?,
                mn: decode_addr(v4, input)?,
                algorithm: input.u16()?,
                key: {
                    let len = usize::from(input.u16()?);
                    input.bytes(len)?.to_vec()
                },
                blocks: Block::decode_all(input)?,
            },
            CTDR => Self::Ctdr {
                success: flag,
                mn: decode_addr(v4, input)?,
                statuses: decode_statuses(input)?,
            },
            CTC => {
                let mn = decode_addr(v4, input)?;
                if !input.is_empty() {
                    return Err(WireError::BadLength);
                }
                Self::Ctc { mn }
            }
            CT_REQ => Self::CtReq {
                mn: decode_addr(v4, input)?,
                sequence: input.u32()?,
                token: Token(input.u32()?),
                requests: RequestBlocks::decode(input)?,
            },
            other => return Err(WireError::UnknownType(other)),
        })
    }

    /// Appends the message. [`WireError::BadLength`], and nothing appended, when it is longer than
    /// [`MESSAGE_LEN_MAX`]: the one thing about it that its type does not rule out.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        let flag = match self {
            Self::Ctar { acknowledge: flag, .. }
            | Self::Ctd { acknowledge: flag, .. }
            | Self::Pctd { acknowledge: flag, .. }
            | Self::Ctdr { success: flag, .. } => *flag,
            Self::Ctaa { .. } | Self::Ctc { .. } | Self::CtReq { .. } => false,
        };
        let v4 = if self.mn().is_ipv4() { FLAG_V4 } else { 0 };
        out.extend_from_slice(&[
            VERSION << 5 | self.type_code(),
            v4 | if flag { FLAG_A_OR_S } else { 0 },
            0,
            0,
        ]);
        match self {
            Self::Ctar { addresses, sequence, token, requests, .. } => {
                encode_addr(addresses.mn(), out);
                encode_addr(addresses.router(), out);
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(&token.0.to_be_bytes());
                out.extend_from_slice(requests.octets());
            }
            Self::Ctaa { mn, statuses } | Self::Ctdr { mn, statuses, .. } => {
                encode_addr(*mn, out);
                for FeatureStatus { fpt, status } in statuses {
                    out.extend_from_slice(&fpt.to_be_bytes());
                    out.extend_from_slice(&[*status, 0]);
                }
            }
            Self::Ctd { elapsed_ms, mn, blocks, .. } => {
                out.extend_from_slice(&elapsed_ms.to_be_bytes());
                encode_addr(*mn, out);
                blocks.iter().for_each(|block| block.encode(out));
            }
            Self::Pctd { elapsed_ms, mn, algorithm, key, blocks, .. } => {
                out.extend_from_slice(&elapsed_ms.to_be_bytes());
                encode_addr(*mn, out);
                out.extend_from_slice(&algorithm.to_be_bytes());
                let Ok(key_len) = u16::try_from(key.len()) else {
                    out.truncate(start);
                    return Err(WireError::BadLength);
                };
                out.extend_from_slice(&key_len.to_be_bytes());
                out.extend_from_slice(key);
                blocks.iter().for_each(|block| block.encode(out));
            }
            Self::Ctc { mn } => encode_addr(*mn, out),
            Self::CtReq { mn, sequence, token, requests } => {
                encode_addr(*mn, out);
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(&token.0.to_be_bytes());
                out.extend_from_slice(requests.octets());
            }
        }
        let Ok(len) = u16::try_from(out.len() - start) else {
            out.truncate(start);
            return Err(WireError::BadLength);
        };
        out[start + 2..start + 4].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }

    pub fn mn(&self) -> IpAddr {
        match self {
            Self::Ctar { addresses, .. } => addresses.mn(),
            Self::Ctaa { mn, .. }
            | Self::Ctd { mn, .. }
            | Self::Pctd { mn, .. }
            | Self::Ctdr { mn, .. }
            | Self::Ctc { mn }
            | Self::CtReq { mn, .. } => *mn,
        }
    }

    fn type_code(&self) -> u8 {
        match self {
            Self::Ctar { .. } => CTAR,
            Self::Ctaa { .. } => CTAA,
            Self::Ctd { .. } => CTD,
            Self::Pctd { .. } => PCTD,
            Self::Ctdr { .. } => CTDR,
            Self::Ctc { .. } => CTC,
            Self::CtReq { .. } => CT_REQ,
        }
    }

    /// The RFC's name of the message: a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ctar { .. } => "CTAR",
            Self::Ctaa { .. } => "CTAA",
            Self::Ctd { .. } => "CTD",
            Self::Pctd { .. } => "PCTD",
            Self::Ctdr { .. } => "CTDR",
            Self::Ctc { .. } => "CTC",
            Self::CtReq { .. } => "CT-Req",
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
