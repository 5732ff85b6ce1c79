//! The mapping service (RFC 9301, RFC 9437): one machine per conversation.

pub mod server;
pub mod xtr;
