//! Context Transfer Protocol octets ↔ values (RFC 4067), and killick's private feature profiles.
//!
//! Readings of what the RFC leaves open:
//! - Length counts the whole message with its 4-octet header, and frames a stream.
//! - A request block "typically" has 4 octets but counts in words of 8: Length 0 is read as "these
//!   4 octets only"; killick sends Length 1 with zeros.
//! - One V flag covers both addresses of CTAR: a mixed pair cannot be coded, and [`Addresses`]
//!   cannot hold one.
//! - A CT-Req with token 0 asks for key material, which only the PCTD layout has.
//!
//! The RFC's transport is SCTP; ours is TLS over TCP (§3.1 allows other transports to experiment).

mod block;
mod message;
pub mod profile;
mod token;

pub use block::{Block, DATA_LEN_MAX, RequestBlocks};
pub use message::{
    ALGORITHM_HMAC_SHA1, Addresses, FeatureStatus, HEADER_LEN, MESSAGE_LEN_MAX, Message, frame_len,
    next_message,
};
pub use token::{Token, token};
