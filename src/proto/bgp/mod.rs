//! BGP: sessions with neighbours, the RIB and its policies.

pub mod policy;
pub mod rib;
pub mod session;
pub mod speaker;
