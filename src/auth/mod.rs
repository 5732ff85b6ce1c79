//! Keys and what they prove: message authentication of LISP, and what has been seen before.
//! Pure functions and small tables.

mod lisp;
mod secret;

pub use lisp::{Algorithm, AuthError, DigestLen, KeyChain, LispKey};
pub use secret::Secret;
