//! The Internet checksum (RFC 1071), in parts.

use std::net::IpAddr;

/// The sum of 16-bit words so far; every part but the last has an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    pub fn and(mut self, octets: &[u8]) -> Self {
        // Words of 32 bits: the carries fold down to the same sum (RFC 1071 §2).
        let (words, tail) = octets.as_chunks::<4>();
        self.0 += words.iter().map(|&w| u64::from(u32::from_be_bytes(w))).sum::<u64>();
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        self.0 += u64::from(u32::from_be_bytes(last));
        self
    }

    /// The pseudo-header of RFC 768 and of RFC 8200 §8.1, which sum up alike.
    pub fn pseudo(self, source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Self {
        let mut sum = self;
        for addr in [source, destination] {
            sum = match addr {
                IpAddr::V4(a) => sum.and(&a.octets()),
                IpAddr::V6(a) => sum.and(&a.octets()),
            };
        }
        sum.0 += u64::from(protocol) + len as u64;
        sum
    }

    /// What goes into the field; 0 over octets whose field is right.
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}
