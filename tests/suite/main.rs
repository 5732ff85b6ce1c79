//! The one integration binary.

mod bgp_malformed;
mod netns_anchor;
