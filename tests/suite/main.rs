//! The one integration binary.

mod netns_anchor;
