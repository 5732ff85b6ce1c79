//! The words that every room shares. Nothing here knows a protocol, a socket or a clock.

mod anchor;
mod binding;
mod instant;
pub mod limits;
pub mod lisp;
mod mac;
mod mobile_node;
mod prefix;
pub mod seam;
mod slab;
pub mod transfer;
pub mod transient;

pub use anchor::{AnchorId, Locator};
pub use binding::{Binding, Claim, Generation, Lifetime, Revision};
pub use instant::Instant;
pub use mac::MacAddr;
pub use mobile_node::{MnId, MnIdError, MnText};
pub use prefix::{Family, Prefix, PrefixError};
pub use slab::Slab;
