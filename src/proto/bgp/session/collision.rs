//! Which of two connections with the same peer survives (RFC 4271 §6.8, RFC 6286 §2.3).

use std::net::Ipv4Addr;

/// Who opened a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// We did.
    Outgoing,
    /// The peer did.
    Incoming,
}

impl Direction {
    pub const fn other(self) -> Self {
        match self {
            Self::Outgoing => Self::Incoming,
            Self::Incoming => Self::Outgoing,
        }
    }
}

/// The connection opened by the side with the higher BGP identifier, or, when they are equal, by
/// the one with the higher AS number. Both equal has been refused as a bad identifier before.
pub fn survivor(local: (Ipv4Addr, u32), remote: (Ipv4Addr, u32)) -> Direction {
    if local > remote { Direction::Outgoing } else { Direction::Incoming }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4271 §6.8, RFC 6286 §2.3. Each side must come to the same answer about one connection.
    #[test]
    fn both_sides_agree_on_the_survivor() {
        let id = Ipv4Addr::from;
        let cases = [
            ((id(2), 65001), (id(1), 65001), Direction::Outgoing),
            ((id(1), 65001), (id(2), 65001), Direction::Incoming),
            // Compared as unsigned integers in host byte order.
            ((id(0x0a00_0001), 1), (id(0xc000_0201), 1), Direction::Incoming),
            ((id(0x0a00_00ff), 1), (id(0x0a00_0100), 1), Direction::Incoming),
            // The AS number decides only between equal identifiers.
            ((id(5), 65001), (id(5), 65002), Direction::Incoming),
            ((id(5), 4_200_000_000), (id(5), 65002), Direction::Outgoing),
            ((id(6), 1), (id(5), 65002), Direction::Outgoing),
        ];
        for (local, remote, expected) in cases {
            assert_eq!(survivor(local, remote), expected, "{local:?} {remote:?}");
            assert_eq!(survivor(remote, local), expected.other(), "{remote:?} {local:?}");
        }
    }
}
