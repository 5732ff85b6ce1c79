//! A lab ends with its runner, whichever way that ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::lab::{folder_of_labs, wait_until};
use super::{Result, may_build_labs};

/// The program `lab` is built by `cargo test` beside the tests.
fn program() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(Path::parent).ok_or("no folder above this program")?;
    let program = folder.join("examples/lab");
    if program.exists() { Ok(program) } else { Err("cargo build --example lab".into()) }
}

fn up() -> Result<Child> {
    let mut runner = Command::new(program()?)
        .args(["up", "ibgp-flat", "--no-killick"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    // It stays open: a runner that cannot print ends of that, and not of our signal.
    if let Some(stdout) = &mut runner.stdout {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    assert!(said.contains("is up"), "{said}");
    assert_eq!(namespaces(&runner)?.len(), 9);
    Ok(runner)
}

fn namespaces(runner: &Child) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/run/netns")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("kl-ibgp-flat-{}-", runner.id())) {
            found.push(name);
        }
    }
    Ok(found)
}

fn folder(runner: &Child) -> PathBuf {
    folder_of_labs().join(format!("ibgp-flat-{}", runner.id()))
}

fn signal(runner: &Child, signal: i32) {
    // SAFETY: a system call; the pid is ours until it has been waited for.
    unsafe { libc::kill(runner.id().cast_signed(), signal) };
}

#[test]
fn an_interrupted_runner_has_cleaned_up_when_it_ends() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    for number in [libc::SIGINT, libc::SIGTERM] {
        let mut runner = up()?;
        signal(&runner, number);
        runner.wait()?;
        assert_eq!(namespaces(&runner)?, [""; 0]);
        assert!(!folder(&runner).exists());
    }
    Ok(())
}

#[test]
fn a_killed_runner_is_cleaned_up_after() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut runner = up()?;
    signal(&runner, libc::SIGKILL);
    runner.wait()?;
    wait_until("the guard removes the lab", Duration::from_secs(10), || {
        Ok((namespaces(&runner)?.is_empty() && !folder(&runner).exists()).then_some(()))
    })
}
