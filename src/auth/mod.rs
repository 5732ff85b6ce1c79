//! Keys and what they prove: message authentication of LISP, and what has been seen before.
//! Pure functions and small tables.

mod bfd;
mod lisp;
mod otk;
mod path;
mod secret;

pub use bfd::{BFD_KEY_LEN_MAX, BfdKey};
pub use lisp::{Algorithm, AuthError, DigestLen, KeyChain, LispKey};
pub use otk::{Otk, OtkHmac, OtkKdf, OtkWrap};
pub use path::PathSecret;
pub use secret::Secret;
