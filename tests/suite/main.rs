//! The one integration binary.

mod bgp_malformed;
#[path = "../netns/mod.rs"]
mod netns;
mod netns_anchor;
mod netns_ebpf;
#[path = "../sim/mod.rs"]
mod sim;
