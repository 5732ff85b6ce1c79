//! Labs of other processes: enter one that is up, remove those whose runner is dead.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::process::Command;

use super::Result;
use super::guard::Guard;
use super::lab::folder_of_labs;
use super::namespace::entering;

/// Removes labs whose runner no longer exists, and nothing else.
pub fn clean() -> Result<()> {
    for entry in fs::read_dir("/run/netns").into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix("kl-").and_then(|rest| rest.rsplit_once('-')) else {
            continue;
        };
        if runner_of(id.0).is_some_and(|pid| !is_alive(pid)) {
            println!("removing {name}");
            drop(Guard::start(&name, &folder_of_labs().join(id.0))?);
        }
    }
    for entry in fs::read_dir(folder_of_labs()).into_iter().flatten() {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().into_owned();
        if runner_of(&id).is_some_and(|pid| !is_alive(pid)) {
            println!("removing {}", entry.path().display());
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// `4711` of `ibgp-flat-4711` and of `ibgp-flat-4711_2`.
fn runner_of(id: &str) -> Option<u32> {
    let (_, pid) = id.rsplit_once('-')?;
    pid.split('_').next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// The process that keeps the namespaces of a node of a running lab.
fn find_holder(lab: &str, node: &str) -> Result<u32> {
    let mut found = None;
    for entry in fs::read_dir(folder_of_labs()).into_iter().flatten() {
        let path = entry?.path();
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_lab = id.rsplit_once('-').is_some_and(|(name, _)| name == lab);
        if of_lab && runner_of(&id).is_some_and(is_alive) {
            let holder = fs::read_to_string(path.join(node).join("holder"))
                .map_err(|_| format!("{id} has no node {node}"))?;
            found = Some(holder.trim().parse()?);
        }
    }
    found.ok_or_else(|| format!("no lab {lab} is up").into())
}

/// A command that will run in a node of a lab that another process keeps up.
pub fn command_in(lab: &str, node: &str, program: &str) -> Result<Command> {
    let holder = find_holder(lab, node)?;
    let open = |kind| File::open(format!("/proc/{holder}/ns/{kind}"));
    // Left open on purpose: the command needs them until it is executed.
    let (net, mounts) = (open("net")?.into_raw_fd(), open("mnt")?.into_raw_fd());
    Ok(entering(net, mounts, program))
}
