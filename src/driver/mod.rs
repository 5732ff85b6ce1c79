//! (being built)
pub mod store;

use std::io;

use crate::config::Checked;

/// Runs the daemon until it is told to stop.
pub fn run(config: Checked) -> io::Result<()> {
    Err(io::Error::other(format!("{} cannot run yet: the driver is being built", config.node.name)))
}
