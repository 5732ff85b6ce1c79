//! killick: a mobile node keeps its address while it moves between many small anchors.
//!
//! When the anchor of a node changes, its context moves from the old anchor to the new one, and
//! the routing plane is told where its prefixes are now: by iBGP host routes through routers that
//! know nothing of killick. The functional entities (FE_MCTX, FE_IEC, FE_I, FE_E) are those of the
//! DMM functional framework; `docs/architecture.md` is the map of the house.
//!
//! The modules are declared in the order in which data walks through them.

pub mod anchor;
pub mod api;
pub mod auth;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod driver;
pub mod gateway;
pub mod iec;
pub mod location;
pub mod mctx;
pub mod metrics;
pub mod node;
pub mod proto;
pub mod types;
pub mod wire;
