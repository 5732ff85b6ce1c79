//! The mapping service (RFC 9301, RFC 9437, RFC 9303): one machine per conversation.

mod security;
pub mod server;
pub mod xtr;
