//! Packets inside packets: the data plane of LISP (RFC 9300), and its GPE form (RFC 9305), in
//! octets. For a data plane in user space, for tests and for tools; the kernel's own data planes
//! do the same without us.

pub mod checksum;
mod error;
mod fragment;
mod head;
mod header;
mod icmp;
pub mod ip;
mod packet;
#[cfg(test)]
mod tests;

pub use error::DropReason;
pub use fragment::fragment;
pub use head::{Head, set_ttl_and_class};
pub use header::{FirstWord, LispHeader, NEXT_PROTOCOL_IPV4, NEXT_PROTOCOL_IPV6};
pub use icmp::{IcmpError, put_icmp_error};
pub use packet::{Inner, Outer, checksum_is_good, decapsulate, encapsulate, outer_len};
