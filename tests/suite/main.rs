//! The one integration binary.

#[path = "../netns/mod.rs"]
mod netns;
