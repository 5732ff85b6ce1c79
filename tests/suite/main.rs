//! The one integration binary.

mod netns_anchor;
mod bgp_malformed;
