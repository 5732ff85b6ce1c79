//! FE_I and FE_E of this node: policies → desired forwarding entries.
//!
//! With routing state as the only means of deviation there is little to do here: FE_I is a BGP
//! route of the kernel, FE_E a host route to the access link. Tunnels and translation will give
//! these files more to say.

mod egress;
mod uplink;

pub use egress::{Delivery, Egress};
