//! The anchor as a router on an access link: it answers for the anycast gateway and for nodes that
//! are elsewhere, advertises itself, and tells who was seen.

mod rate;
mod router;

pub use router::{AdvertisedPrefix, Advertisement, Counters, LinkConfig, Output, Router};
