//! From the file an engineer wrote to values that the rooms can trust: `file.rs` as written,
//! `check.rs` checked. `document.rs` remembers where each value was written, so that every finding
//! names its line.

mod check;
mod checked;
mod document;
mod fault;
#[cfg(test)]
mod faults_table;
pub mod file;
mod period;

pub use check::{check_text, load};
pub use checked::*;
pub use fault::{Fault, Faults, Place, Severity};
pub use file::{
    BfdAlgorithm, Encapsulation, File, FirstPackets, IngressPolicy, LispAlgorithm, LispHook,
    LogFormat, MaxPrefixAction, Mode, Role, WhenFull,
};
pub use period::Period;
