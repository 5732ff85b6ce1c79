//! FE_IEC: from "the node is now there" to "this is announced", in an order that no router can
//! misread.
//!
//! Per prefix there is one small machine:
//!
//! ```text
//!            binding changed                FE_E confirms            older claims are gone
//!   (none) ───────────────→ Preparing ──────────────────→ Claimed ─────────────────────→ Settled
//!                               │  or prepare_max is over    ↑  │                           │
//!                               │                            │  └── at home: withdraw ─→ Home
//!                               │                            └── an older claim shows up ───┘
//!                               └─ first binding, at home ─→ Home
//! ```
//!
//! *Make before break*: the new FE_E delivers before anybody is told to send there, and what was
//! announced before stays announced until the new route replaces it.
//!
//! *The newest claim wins at routers that know nothing of us*: a claim is announced with a
//! LOCAL_PREF that grows with the generation, so whatever else is still announced for the prefix
//! (a late withdrawal, a dead anchor held by a hold timer or by graceful restart) loses. Once the
//! older claims are known to be gone the route *settles* to the one attribute set that all nodes
//! of the anchor share. At home it is withdrawn instead: the aggregate leads there anyway, and
//! there is mobility state only while it is needed (DMA §3.2.2, FE §A.4).
//!
//! FE draft §3 (R_XC in, R_IC and R_EC out).

mod entries;
mod handover;

pub use handover::{Evidence, Iec, IecConfig, Output, Scope, Stage, StageView};
