//! The one integration binary.

mod bgp_malformed;
mod netns_anchor;
#[path = "../netns/mod.rs"]
mod netns;
