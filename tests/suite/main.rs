//! The one integration binary.

mod bfd_wire;
mod bgp_malformed;
mod lisp_wire;
mod memory;
#[path = "../netns/mod.rs"]
mod netns;
mod netns_anchor;
mod netns_ebpf;
mod netns_encap;
mod netns_rewrite;
mod netns_transient;
mod netns_tun;
#[path = "../sim/mod.rs"]
mod sim;
