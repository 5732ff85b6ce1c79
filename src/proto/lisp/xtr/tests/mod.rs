//! The rules of each conversation, one test per rule.

mod etr;
mod forged;
mod lab;
mod moves;
mod probe;
mod push;
mod query;
mod registration;
mod security;
mod storm;
