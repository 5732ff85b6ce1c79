//! BGP: the RIB and its policies (the session machine and the speaker stand beside them).

pub mod policy;
pub mod rib;
