//! Authentication sections (RFC 5880 §4.2 to §4.4).
//!
//! ```text
//! |   Auth Type   |   Auth Len    |  Auth Key ID  |  Password...  |   1
//! |   Auth Type   |   Auth Len    |  Auth Key ID  |   Reserved    |   2 to 5
//! |                        Sequence Number                        |
//! |             Digest: 16 octets of MD5, 20 of SHA1              |
//! ```

use crate::wire::Reader;

/// The longest section: a keyed SHA1.
pub const AUTH_LEN_MAX: usize = 28;
const PASSWORD_LEN_MAX: usize = 16;
pub const MD5_LEN: usize = 16;
pub const SHA1_LEN: usize = 20;
/// Type, length, key ID, reserved, sequence number.
const KEYED_HEAD_LEN: usize = 8;

/// What is wrong with a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    #[error("unknown authentication type {0}")]
    Type(u8),
    #[error("a length that its type does not have")]
    Length,
}

/// What a key proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    Md5([u8; MD5_LEN]),
    Sha1([u8; SHA1_LEN]),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Section {
    /// Type 1. One to sixteen octets.
    Simple { key_id: u8, password: Vec<u8> },
    /// Types 2 to 5; a *meticulous* sender takes another sequence number for each packet.
    Keyed { key_id: u8, meticulous: bool, sequence: u32, digest: Digest },
}

impl Section {
    const fn kind(&self) -> u8 {
        match self {
            Self::Simple { .. } => 1,
            Self::Keyed { digest: Digest::Md5(_), meticulous, .. } => 2 + *meticulous as u8,
            Self::Keyed { digest: Digest::Sha1(_), meticulous, .. } => 4 + *meticulous as u8,
        }
    }

    /// Never 0: type and length are always there.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match self {
            Self::Simple { password, .. } => 3 + password.len().min(PASSWORD_LEN_MAX),
            Self::Keyed { digest: Digest::Md5(_), .. } => KEYED_HEAD_LEN + MD5_LEN,
            Self::Keyed { digest: Digest::Sha1(_), .. } => KEYED_HEAD_LEN + SHA1_LEN,
        }
    }

    /// `input`: what follows the mandatory part, up to the packet's length.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, SectionError> {
        let whole = input.len();
        let length = |_| SectionError::Length;
        let [kind, len, key_id] = input.array().map_err(length)?;
        // §6.7.2 to §6.7.4 compare the length with the one that the type has.
        if usize::from(len) != whole {
            return Err(SectionError::Length);
        }
        match kind {
            1 => {
                let password = input.rest();
                match password.len() {
                    1..=PASSWORD_LEN_MAX => {
                        Ok(Self::Simple { key_id, password: password.to_vec() })
                    }
                    _ => Err(SectionError::Length),
                }
            }
            2..=5 => {
                let _reserved = input.u8().map_err(length)?;
                let sequence = input.u32().map_err(length)?;
                let digest = match kind {
                    2 | 3 => Digest::Md5(input.array().map_err(length)?),
                    _ => Digest::Sha1(input.array().map_err(length)?),
                };
                if !input.is_empty() {
                    return Err(SectionError::Length);
                }
                Ok(Self::Keyed { key_id, meticulous: kind % 2 == 1, sequence, digest })
            }
            kind => Err(SectionError::Type(kind)),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let len = u8::try_from(self.len()).expect("at most 28");
        match self {
            Self::Simple { key_id, password } => {
                out.extend_from_slice(&[self.kind(), len, *key_id]);
                out.extend_from_slice(&password[..password.len().min(PASSWORD_LEN_MAX)]);
            }
            Self::Keyed { key_id, sequence, digest, .. } => {
                out.extend_from_slice(&[self.kind(), len, *key_id, 0]);
                out.extend_from_slice(&sequence.to_be_bytes());
                match digest {
                    Digest::Md5(octets) => out.extend_from_slice(octets),
                    Digest::Sha1(octets) => out.extend_from_slice(octets),
                }
            }
        }
    }
}
