//! Removes a lab when its runner is gone, by whichever way it went.
//!
//! The guard is a shell in a process group of its own that reads a pipe. When the runner closes the
//! pipe, or dies and the kernel closes it, the guard kills what runs in the lab's namespaces,
//! deletes them and the lab's folder. So there is one way of cleaning up, and `kill -9`, a panic and
//! Ctrl-C take it like the normal end does.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use super::Result;

const SCRIPT: &str = r#"
cat >/dev/null
for path in /run/netns/"$1"*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    ip netns pids "$name" | xargs -r kill -9
    ip netns delete "$name"
done
[ -e "$2/keep" ] || rm -rf "$2"
"#;

/// Also for the moment before `exit`, when nothing is dropped.
pub static GUARDS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

pub struct Guard {
    id: u32,
    folder: PathBuf,
}

impl Guard {
    pub fn start(prefix: &str, folder: &Path) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "lab-guard", prefix])
            .arg(folder)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let guard = Self { id: child.id(), folder: folder.to_path_buf() };
        GUARDS.lock().unwrap_or_else(|e| e.into_inner()).push(child);
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed test wants to be understood: its logs stay until `lab clean`.
            let _ = fs::write(self.folder.join("keep"), "");
            eprintln!("the logs of this lab are in {}", self.folder.display());
        }
        let mut guards = GUARDS.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(at) = guards.iter().position(|child| child.id() == self.id) {
            finish(guards.swap_remove(at));
        }
    }
}

/// Until everything is removed.
pub fn finish(mut child: Child) {
    drop(child.stdin.take());
    let _ = child.wait();
}
