//! Real daemons and packets in namespaces, built from the topologies in `containerlab/` by the
//! runner of the demo. Without privileges each test says so and passes.

#[path = "../../containerlab/runner/daemon.rs"]
mod daemon;
#[path = "../../containerlab/runner/guard.rs"]
mod guard;
#[path = "../../containerlab/runner/lab.rs"]
mod lab;
#[path = "../../containerlab/runner/namespace.rs"]
mod namespace;
#[path = "../../containerlab/runner/scene.rs"]
mod scene;
#[path = "../../containerlab/runner/tls.rs"]
mod tls;
#[path = "../../containerlab/runner/topology.rs"]
mod topology;
#[path = "../../containerlab/runner/traffic.rs"]
mod traffic;
#[path = "../../containerlab/runner/trial.rs"]
mod trial;

mod bfd;
mod core;
mod fib_diff;
mod instruments;
mod interrupted;
mod keys;
mod lisp;
mod lossless;
mod relocation;
mod rewrite;
mod stage;
mod steps;
mod strace;
mod topologies;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Whether namespaces can be made here; if not, says so where `cargo test` shows it.
fn may_build_labs() -> bool {
    // SAFETY: a system call without arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        skip("a test in network namespaces needs root");
    }
    root
}

/// Past the capture of the test harness, so that a skipped test is seen to be skipped.
fn skip(why: &str) {
    let line = format!("SKIPPED: {why}\n");
    // SAFETY: the buffer is live and its length is right.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}
