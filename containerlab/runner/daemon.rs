//! The programs of a node: what is started for a role, and one started program.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::Result;
use super::lab::wait_until;
use super::namespace::{Namespace, run};
use super::topology::Role;

const START_LIMIT: Duration = Duration::from_secs(10);

pub struct Daemon {
    pub name: &'static str,
    program: String,
    args: Vec<&'static str>,
    /// Exists in the container when the daemon takes commands.
    socket: &'static str,
    log: PathBuf,
    pub child: Option<Child>,
}

/// The daemons of a role in the order in which they start.
pub fn of_role(role: Role, namespace: &Namespace) -> Result<Vec<Daemon>> {
    let daemon = |name, program: &str, args: &[&'static str], socket| Daemon {
        name,
        program: program.into(),
        args: args.to_vec(),
        socket,
        log: namespace.folder.join(format!("{name}.log")),
        child: None,
    };
    Ok(match role {
        Role::Host => Vec::new(),
        Role::Killick => {
            for folder in ["/run/killick", "/var/lib/killick"] {
                fs::create_dir_all(namespace.path(folder))?;
            }
            let args = ["run", "-c", "/etc/killick/killick.toml"];
            let program = killick_program()?;
            vec![daemon("killick", &program, &args, "/run/killick/api.sock")]
        }
        Role::Bird => {
            fs::create_dir_all(namespace.path("/run/bird"))?;
            let args = ["-f", "-c", "/etc/bird/bird.conf", "-s", "/run/bird/bird.ctl"];
            vec![daemon("bird", "bird", &args, "/run/bird/bird.ctl")]
        }
        Role::Gobgp => {
            let args = ["-f", "/etc/gobgp/gobgpd.toml", "--api-hosts", "127.0.0.1:50051"];
            vec![daemon("gobgpd", "gobgpd", &args, "")]
        }
        Role::Frr => {
            for folder in ["/run/frr", "/etc/frr"] {
                fs::create_dir_all(namespace.path(folder))?;
                run(std::process::Command::new("chown")
                    .args(["-R", "frr:frr"])
                    .arg(namespace.path(folder)))?;
            }
            // The configuration is loaded by `vtysh -b`, as FRR's own start script does. No TCP
            // vty, and the log to where the runner keeps it.
            let args = ["-P", "0", "--log", "stdout"];
            let mut daemons = vec![
                daemon("zebra", "/usr/lib/frr/zebra", &args, "/run/frr/zebra.vty"),
                daemon("staticd", "/usr/lib/frr/staticd", &args, "/run/frr/staticd.vty"),
            ];
            // As FRR's own start script: what the file of the container says.
            let wanted = fs::read_to_string(namespace.path("/etc/frr/daemons"))?;
            if wanted.lines().any(|line| line.trim() == "bfdd=yes") {
                daemons.push(daemon("bfdd", "/usr/lib/frr/bfdd", &args, "/run/frr/bfdd.vty"));
            }
            daemons.push(daemon("bgpd", "/usr/lib/frr/bgpd", &args, "/run/frr/bgpd.vty"));
            daemons
        }
    })
}

/// What remains to be done in a node when its daemons run.
pub fn after_start(role: Role, namespace: &Namespace) -> Result<()> {
    match role {
        Role::Frr => namespace.sh("vtysh -b").map(drop),
        Role::Killick | Role::Bird | Role::Gobgp | Role::Host => Ok(()),
    }
}

/// The killick that was built beside this program: `target/debug/killick` for
/// `target/debug/examples/lab` as for `target/debug/deps/suite-…`. `KILLICK_BIN` overrules it.
pub fn killick_program() -> Result<String> {
    let path = match std::env::var_os("KILLICK_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let this = std::env::current_exe()?;
            let folder =
                this.parent().and_then(Path::parent).ok_or("no folder above this program")?;
            folder.join("killick")
        }
    };
    if !path.is_file() {
        return Err(format!("{} is missing: cargo build", path.display()).into());
    }
    Ok(path.to_string_lossy().into_owned())
}

impl Daemon {
    pub fn start(&mut self, namespace: &Namespace) -> Result<()> {
        if self.is_running() {
            return Err(format!("{} of {} runs already", self.name, namespace.name).into());
        }
        let socket = (!self.socket.is_empty()).then(|| namespace.path(self.socket));
        if let Some(socket) = &socket {
            // One left by a killed predecessor would look like an answer.
            let _ = fs::remove_file(socket);
        }
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = namespace
            .command(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.program))?;
        self.child = Some(child);
        wait_until(&format!("{} of {} starts", self.name, namespace.name), START_LIMIT, || {
            if !self.is_running() {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Ok(Some(Err(format!("{} ended: {}", self.name, tail.join("\n")).into())));
            }
            Ok(socket.as_ref().is_none_or(|socket| socket.exists()).then_some(Ok(())))
        })?
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
