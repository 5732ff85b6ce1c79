//! What can be wrong with octets, before anybody asks what they mean.

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("truncated")]
    Truncated,
    #[error("a length field disagrees with the data")]
    BadLength,
    #[error("a field has a value that the RFC does not allow")]
    BadValue,
    #[error("unknown message type {0}")]
    UnknownType(u8),
    #[error("unknown version {0}")]
    UnknownVersion(u8),
    #[error("unknown address family {0}")]
    UnknownAfi(u16),
    #[error("bad checksum")]
    BadChecksum,
}
