//! One node of a lab: a network namespace, a mount namespace in which the paths of the container
//! exist, and a folder that holds what the container would hold.
//!
//! Programs enter both by `setns` between fork and exec, so a child's pid is the program's own and
//! no wrapper has to pass signals on. (`ip netns exec` would also work, but mounts a new /sys for
//! each call, and what it starts shares /run and /etc with the machine's own daemons.)

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs as unix_fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Result;
use super::topology::Bind;

pub struct Namespace {
    /// Under /run/netns.
    pub name: String,
    /// What the container would contain; `root/etc/frr` is its /etc/frr.
    pub folder: PathBuf,
    net: File,
    mounts: File,
    /// Keeps the mount namespace alive; ends with the namespace (see `guard.rs`) or on drop.
    holder: Child,
}

impl Namespace {
    /// `binds` are copied, not mounted: daemons want to own their configuration, and a lab must
    /// not be able to change the files it was made from.
    pub fn create(name: String, folder: PathBuf, binds: &[Bind]) -> Result<Self> {
        let mut shadows = ["/etc", "/var/lib", "/var/tmp"].map(PathBuf::from).to_vec();
        for bind in binds {
            let shadow = nearest_existing(&bind.target);
            if !shadows.contains(&shadow) {
                shadows.push(shadow);
            }
        }
        for shadow in &shadows {
            imitate(shadow, &folder)?;
        }
        fs::create_dir_all(inside(&folder, Path::new("/run")))?;
        for bind in binds {
            let target = inside(&folder, &bind.target);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            if target.is_symlink() {
                fs::remove_file(&target)?;
            }
            copy(&bind.source, &target)?;
        }

        run(Command::new("ip").args(["netns", "add", &name]))?;
        let net = File::open(Path::new("/run/netns").join(&name))?;
        let mut holder = Command::new("sh");
        holder
            .arg("-c")
            .arg(mount_script(&folder, &shadows))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        let net_fd = net.as_raw_fd();
        // SAFETY: only system calls between fork and exec, on a descriptor that outlives them.
        unsafe {
            holder.pre_exec(move || {
                enter(net_fd, libc::CLONE_NEWNET)?;
                match libc::unshare(libc::CLONE_NEWNS) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let mut holder = holder.spawn()?;
        let mut said = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said != "ready\n" {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err(format!("the mounts of {name} failed, see above").into());
        }
        let mounts = File::open(format!("/proc/{}/ns/mnt", holder.id()))?;
        fs::write(folder.join("holder"), holder.id().to_string())?;
        Ok(Self { name, folder, net, mounts, holder })
    }

    /// A command that will run in this node.
    pub fn command(&self, program: &str) -> Command {
        entering(self.net.as_raw_fd(), self.mounts.as_raw_fd(), program)
    }

    /// Runs `script` by `sh -c` in this node and returns what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        run(self.command("sh").args(["-c", script]))
            .map_err(|e| format!("{}: {e}", self.name).into())
    }

    /// Calls `make` with the network of this node around it, and comes back: a socket that it makes
    /// stays in there. A thread of its own, because a thread is what is in a namespace.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let net = self.net.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(net, libc::CLONE_NEWNET)?;
                make()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Where a path of the container is on this machine.
    pub fn path(&self, of_container: &str) -> PathBuf {
        inside(&self.folder, Path::new(of_container))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A command that will run in these two namespaces.
pub fn entering(net: RawFd, mounts: RawFd, program: &str) -> Command {
    let mut command = Command::new(program);
    // SAFETY: only system calls between fork and exec. A descriptor that was closed meanwhile is
    // an error of `spawn`.
    unsafe {
        command.pre_exec(move || {
            enter(net, libc::CLONE_NEWNET)?;
            enter(mounts, libc::CLONE_NEWNS)
        });
    }
    command
}

/// One veth pair; both ends up, as containerlab leaves them. `index` and the next one become the
/// interface indices: the kernel hurries a change of carrier to whoever waits for it only where
/// those of the two ends differ, which new namespaces, counting from 1 each, do not ensure.
pub fn link(a: (&Namespace, &str), b: (&Namespace, &str), index: u32) -> Result<()> {
    let (indices, mtu) = ([index.to_string(), (index + 1).to_string()], "9500");
    run(Command::new("ip")
        .args(["link", "add", a.1, "index", &indices[0], "mtu", mtu, "netns", &a.0.name])
        .args(["type", "veth", "peer", "name", b.1, "index", &indices[1], "mtu", mtu])
        .args(["netns", &b.0.name]))?;
    for (namespace, interface) in [a, b] {
        run(Command::new("ip").args(["-n", &namespace.name, "link", "set", interface, "up"]))?;
    }
    Ok(())
}

/// Runs to the end; standard output, or an error that quotes standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    Err(format!("{command:?}: {}: {}{}", output.status, stderr.trim(), stdout.trim()).into())
}

fn enter(fd: i32, kind: i32) -> std::io::Result<()> {
    // SAFETY: a system call on a plain integer.
    match unsafe { libc::setns(fd, kind) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn inside(folder: &Path, of_container: &Path) -> PathBuf {
    folder.join("root").join(of_container.strip_prefix("/").unwrap_or(of_container))
}

fn original(folder: &Path, of_machine: &Path) -> PathBuf {
    folder.join("machine").join(of_machine.strip_prefix("/").unwrap_or(of_machine))
}

fn nearest_existing(target: &Path) -> PathBuf {
    let mut folders = target.ancestors().skip(1);
    folders.find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

/// A folder of the machine as seen from the node: links to all that is there, so that files can be
/// added and replaced without touching the machine's.
fn imitate(shadow: &Path, folder: &Path) -> Result<()> {
    if shadow == Path::new("/") {
        return Err("a bind below a new folder in / is not possible here".into());
    }
    let (copy, original) = (inside(folder, shadow), original(folder, shadow));
    fs::create_dir_all(&copy)?;
    fs::create_dir_all(&original)?;
    // What the daemons of a lab read is the lab's and never the machine's.
    let private = ["frr", "bird", "gobgp", "killick"];
    for entry in fs::read_dir(shadow)? {
        let entry = entry?;
        if private.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let target = match fs::read_link(entry.path()) {
            Ok(relative) => shadow.join(relative),
            Err(_) => original.join(entry.file_name()),
        };
        unix_fs::symlink(target, copy.join(entry.file_name()))?;
    }
    Ok(())
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    let context = |e| format!("{}: {e}", source.display());
    if source.is_dir() {
        fs::create_dir_all(target)?;
        for entry in fs::read_dir(source).map_err(context)? {
            let entry = entry?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
    } else {
        fs::copy(source, target).map_err(context)?;
    }
    Ok(())
}

fn mount_script(folder: &Path, shadows: &[PathBuf]) -> String {
    let mut script = String::from("set -e\nmount --make-rprivate /\n");
    for shadow in shadows {
        script += &format!(
            "mount --bind {} {}\nmount --bind {} {}\n",
            shadow.display(),
            original(folder, shadow).display(),
            inside(folder, shadow).display(),
            shadow.display(),
        );
    }
    script += &format!("mount --bind {} /run\n", inside(folder, Path::new("/run")).display());
    // /sys/class/net shows the namespace of whoever mounted it.
    script += "mount -t sysfs sysfs /sys\nip link set lo up\necho ready\nexec sleep infinity\n";
    script
}
