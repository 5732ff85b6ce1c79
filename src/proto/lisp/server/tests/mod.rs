//! A Map-Server between ETRs and ITRs that are only keys and messages: every message is encoded,
//! signed and decoded on its way, as on a wire.

mod lab;
mod pairs;
mod publish;
mod refuse;
mod register;
mod reply;
mod secure;
mod size;
mod with_xtrs;
