//! The one integration binary.

mod bgp_malformed;
