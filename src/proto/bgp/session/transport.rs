//! How the TCP connections of a neighbour are made: not the machine's business, but the
//! neighbour's; it goes to the driver with each attempt.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A key of RFC 2385.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Key(Vec<u8>);

impl Md5Key {
    /// What the kernel takes (`TCP_MD5SIG_MAXKEYLEN`).
    pub const LEN_MAX: usize = 80;

    /// `None` when empty or too long.
    pub fn new(key: &[u8]) -> Option<Self> {
        (1..=Self::LEN_MAX).contains(&key.len()).then(|| Self(key.to_vec()))
    }

    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

/// Never shows the key, so that it cannot reach a log.
impl fmt::Debug for Md5Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Key(..)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Where the neighbour listens. Incoming connections are matched by the address alone.
    pub remote: SocketAddr,
    /// Our address; the kernel chooses when absent.
    pub local: Option<IpAddr>,
    pub md5: Option<Md5Key>,
    /// GTSM (RFC 5082): how many hops away the neighbour may be; 1 is the next one.
    pub ttl_security_hops: Option<u8>,
}

impl Transport {
    pub const fn new(remote: SocketAddr) -> Self {
        Self { remote, local: None, md5: None, ttl_security_hops: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_length_and_no_face() {
        assert_eq!(Md5Key::new(b""), None);
        assert_eq!(Md5Key::new(&[b'x'; 81]), None);
        let key = Md5Key::new(&[b'x'; 80]).unwrap();
        assert!(!format!("{key:?}").contains('x'));
    }
}
