//! FE_I and FE_E of this node: policies → desired forwarding entries.
//!
//! With routing state as the means of deviation there is little to do: FE_I is a BGP route of the
//! kernel, FE_E a host route to the access link. With tunnels FE_I has entries of its own
//! ([`ingress`]); where destinations are rewritten FE_E has locators for them ([`locators`]).

mod egress;
pub mod ingress;
pub mod locators;
mod uplink;

pub use egress::{Delivery, Egress};
pub use ingress::Ingress;
pub use locators::Locators;
