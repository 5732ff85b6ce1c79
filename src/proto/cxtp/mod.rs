//! CXTP between two anchors, or an anchor and a controller (RFC 4067 over TLS).

mod peer;
mod translate;

pub use peer::{Counters, DownReason, Output, Peer, PeerConfig, Role, SendRefused};
pub use translate::{
    Hello, Incoming, hello_message, keepalive_message, signal_message, understand,
};
