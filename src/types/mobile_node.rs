//! The name of a mobile node.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{MacAddr, limits};

/// Mobile node identifier, in the form of an NAI (RFC 4283 §3.1): 1 to 255 printable ASCII
/// characters without blanks. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MnId(Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MnIdError {
    #[error("a mobile node identifier has 1 to 255 characters")]
    Length,
    #[error("a mobile node identifier is printable ASCII without blanks")]
    Character,
}

impl MnId {
    pub fn new(text: &str) -> Result<Self, MnIdError> {
        if text.is_empty() || text.len() > limits::MN_ID_LEN_MAX {
            return Err(MnIdError::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(MnIdError::Character);
        }
        Ok(Self(text.into()))
    }

    /// The identifier of a plain host that has no configured one: its link-layer address, the
    /// same at every anchor it attaches to.
    pub fn from_mac(mac: MacAddr) -> Self {
        Self(mac.to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MnId({})", self.0)
    }
}

impl Serialize for MnId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MnId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}
