//! Packets inside packets: the data plane of LISP (RFC 9300) in octets.

pub mod checksum;
pub mod ip;
