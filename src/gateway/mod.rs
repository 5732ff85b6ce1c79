//! FE_I and FE_E of this node: policies → desired forwarding entries.
//!
//! With host routes in iBGP, FE_I is every router of the domain and needs nothing from here; what is
//! left is FE_E, the delivery to nodes that are attached to this anchor, and the uplink, whose
//! filter follows from the delivery routes (a packet is accepted from an access link if and only if
//! its source is delivered over that link, see `dataplane`).

mod egress;

pub use egress::{Delivery, Gateway};
