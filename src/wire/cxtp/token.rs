//! The mobile node's authorization token (RFC 4067 §2.5.1).
//!
//! The first 32 bits of HMAC-SHA1(key, previous address | sequence number | request blocks). Weak by
//! present rules, so it only ever comes on top of the authenticated channel between the anchors.

use std::net::IpAddr;

use hmac::{Hmac, Mac};
use sha1::Sha1;

use super::RequestBlocks;

/// Zero in a CT-Req: "I have no token; send me the key with the context".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token(pub u32);

impl Token {
    pub const NONE: Self = Self(0);
}

pub fn token(key: &[u8], mn: IpAddr, sequence: u32, requests: &RequestBlocks) -> Token {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    match mn {
        IpAddr::V4(addr) => mac.update(&addr.octets()),
        IpAddr::V6(addr) => mac.update(&addr.octets()),
    }
    mac.update(&sequence.to_be_bytes());
    mac.update(requests.octets());
    let digest = mac.finalize().into_bytes();
    Token(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}
