//! Why a packet goes no further; each reason is one label of a counter.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum DropReason {
    #[error("truncated")]
    Truncated,
    #[error("not an IPv4 or IPv6 packet, or shorter than it says")]
    NotIp,
    #[error("encrypted (RFC 8061), and there is no key")]
    Encrypted,
    #[error("the payload is of another protocol")]
    NextProtocol,
    #[error("marked as congested on the way, but its ends would not understand the mark")]
    Congestion,
    #[error("the hop limit is used up")]
    HopLimit,
    #[error("the locators are of different families")]
    Family,
    #[error("longer than a datagram can be")]
    TooLong,
    #[error("too large for the path, and must not be fragmented")]
    TooBig,
}
