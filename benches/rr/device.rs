//! What runs in the race: each daemon in the foreground, in a network namespace of its own, as
//! route reflector with the injector and the sinks as passive clients, everything accepted and
//! everything announced, nothing written to a kernel table.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::feed::killick_anchors;
use crate::speaker::{AS, DEVICE, INJECTOR, sink_address};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Killick,
    Bird,
    Frr,
    Gobgp,
    /// Only as originator.
    Exabgp,
    /// No router at all: a process that copies octets. The limit of this machine and this bench.
    Bare,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Killick, Kind::Bird, Kind::Frr, Kind::Gobgp, Kind::Exabgp, Kind::Bare];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Killick => "killick",
            Kind::Bird => "bird",
            Kind::Frr => "frr",
            Kind::Gobgp => "gobgp",
            Kind::Exabgp => "exabgp",
            Kind::Bare => "bare",
        }
    }

    pub fn find(self) -> Option<PathBuf> {
        match self {
            Kind::Killick => Some(env!("CARGO_BIN_EXE_killick").into()),
            Kind::Bird => find_program(&["bird"]),
            Kind::Frr => find_program(&["/usr/lib/frr/bgpd", "/usr/libexec/frr/bgpd", "bgpd"]),
            Kind::Gobgp => find_program(&["gobgpd"]),
            Kind::Exabgp => find_program(&["exabgp"]),
            Kind::Bare => std::env::current_exe().ok(),
        }
    }

    pub fn version(self, program: &Path) -> String {
        if self == Kind::Bare {
            return "copies octets".into();
        }
        let ask = if self == Kind::Killick { "version" } else { "--version" };
        let Ok(output) = Command::new(program).arg(ask).stdin(Stdio::null()).output() else {
            return "unknown".into();
        };
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        text.lines().next().unwrap_or("unknown").trim().into()
    }

    fn config(self, role: Role, dir: &Path) -> String {
        let clients = match role {
            Role::Reflector { sinks } => {
                std::iter::once(INJECTOR).chain((0..sinks).map(sink_address)).collect()
            }
            Role::Originator => vec![sink_address(0)],
        };
        match (self, role) {
            (Kind::Killick, Role::Reflector { .. }) => killick_reflector(&clients, dir),
            (Kind::Killick, Role::Originator) => killick_controller(&clients, dir),
            (Kind::Bird, _) => bird_config(&clients),
            (Kind::Frr, _) => frr_config(&clients),
            (Kind::Gobgp, _) => gobgp_config(&clients),
            (Kind::Exabgp, _) => exabgp_config(&clients, dir),
            (Kind::Bare, _) => String::new(),
        }
    }

    fn command(self, program: &Path, config: &Path, dir: &Path, role: Role) -> Command {
        let mut command = Command::new(program);
        match self {
            Kind::Killick => command.arg("run").arg("--config").arg(config),
            Kind::Bird => command
                .args(["-f", "-c"])
                .arg(config)
                .arg("-s")
                .arg(dir.join("bird.ctl"))
                .arg("-P")
                .arg(dir.join("bird.pid")),
            // -S: keep our user, -n -Z: no kernel, no zebra, -P 0: no vty.
            Kind::Frr => command
                .args(["-S", "-n", "-Z", "-P", "0", "-l"])
                .arg(DEVICE.to_string())
                .arg("-f")
                .arg(config)
                .arg("-i")
                .arg(dir.join("bgpd.pid"))
                .arg("--vty_socket")
                .arg(dir),
            Kind::Gobgp => command.arg("-f").arg(config).args(["-l", "warn"]),
            Kind::Exabgp => command
                .env("exabgp_tcp_bind", DEVICE.to_string())
                .env("exabgp_tcp_port", "179")
                .env("exabgp_api_ack", "false")
                .env("exabgp_api_cli", "false")
                .env("exabgp_daemon_drop", "false")
                .env("exabgp_log_level", "ERR")
                .arg(config),
            Kind::Bare => {
                let sinks = match role {
                    Role::Reflector { sinks } => sinks,
                    Role::Originator => 0,
                };
                command.arg("--forward-to").arg(sinks.to_string())
            }
        };
        command
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Role {
    /// iBGP route reflector of the injector and so many sinks.
    Reflector { sinks: usize },
    /// One sink; routes come from the device's own interface.
    Originator,
}

pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|candidate| candidate.is_file())
}

fn killick_head(dir: &Path) -> String {
    format!(
        "[node]\nanchor-id = \"{DEVICE}\"\nname = \"bench\"\nstate-dir = \"{dir}/state\"\n\
         log-level = \"warn\"\n\n[api]\nsocket = \"{dir}/api.sock\"\n\n\
         [bgp]\nlocal-as = {AS}\nlisten = [\"{DEVICE}\"]\n",
        dir = dir.display()
    )
}

fn killick_reflector(clients: &[Ipv4Addr], dir: &Path) -> String {
    let mut text = killick_head(dir);
    for client in clients {
        write!(
            text,
            "\n[[bgp.neighbor]]\naddress = \"{client}\"\nremote-as = {AS}\npassive = true\n\
             route-reflector-client = true\nimport = \"all\"\nexport = \"all\"\n"
        )
        .expect("a string takes everything");
    }
    text
}

/// Controller of 64 anchors that speak no BGP. The pool has no home, so that every node has a host
/// route wherever it is, as with the other originators.
fn killick_controller(clients: &[Ipv4Addr], dir: &Path) -> String {
    let mut text = killick_head(dir);
    for client in clients {
        write!(
            text,
            "\n[[bgp.neighbor]]\naddress = \"{client}\"\nremote-as = {AS}\npassive = true\n\
             import = \"none\"\nexport = \"pools\"\n"
        )
        .expect("a string takes everything");
    }
    text.push_str("\n[mobility]\nmode = \"controller\"\n\n[[mobility.pool]]\n");
    text.push_str("prefix = \"10.0.0.0/8\"\n");
    for (n, address) in killick_anchors().enumerate() {
        write!(
            text,
            "\n[[peer]]\nname = \"a{n}\"\nanchor-id = \"{address}\"\nrole = \"external\"\n\
             fe-e = {{ ipv4 = \"{address}\" }}\n"
        )
        .expect("a string takes everything");
    }
    text
}

fn bird_config(clients: &[Ipv4Addr]) -> String {
    let mut text = format!(
        "log stderr {{ warning, error, fatal, bug }};\nrouter id {DEVICE};\n\
         protocol device {{ }}\n"
    );
    for (n, client) in clients.iter().enumerate() {
        // The IPv6 channel of a session over IPv4 wants an address of its own, used for nothing.
        write!(
            text,
            "protocol bgp c{n} {{\n  local {DEVICE} as {AS};\n  neighbor {client} as {AS};\n  \
             passive;\n  rr client;\n  rr cluster id {DEVICE};\n  \
             ipv4 {{ import all; export all; }};\n  \
             ipv6 {{ import all; export all; next hop address 2001:db8:ffff::ff; }};\n}}\n"
        )
        .expect("a string takes everything");
    }
    text
}

fn frr_config(clients: &[Ipv4Addr]) -> String {
    let mut text = format!(
        "router bgp {AS}\n bgp router-id {DEVICE}\n bgp cluster-id {DEVICE}\n \
         no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n coalesce-time 0\n"
    );
    for client in clients {
        write!(
            text,
            " neighbor {client} remote-as {AS}\n neighbor {client} passive\n \
             neighbor {client} advertisement-interval 0\n"
        )
        .expect("a string takes everything");
    }
    for family in ["ipv4", "ipv6"] {
        writeln!(text, " address-family {family} unicast").expect("a string takes everything");
        for client in clients {
            write!(
                text,
                "  neighbor {client} activate\n  neighbor {client} route-reflector-client\n"
            )
            .expect("a string takes everything");
        }
        text.push_str(" exit-address-family\n");
    }
    text
}

fn gobgp_config(clients: &[Ipv4Addr]) -> String {
    let mut text = format!(
        "[global.config]\n  as = {AS}\n  router-id = \"{DEVICE}\"\n  port = 179\n  \
         local-address-list = [\"{DEVICE}\"]\n"
    );
    for client in clients {
        write!(
            text,
            "\n[[neighbors]]\n  [neighbors.config]\n    neighbor-address = \"{client}\"\n    \
             peer-as = {AS}\n  [neighbors.transport.config]\n    passive-mode = true\n  \
             [neighbors.route-reflector.config]\n    route-reflector-client = true\n    \
             route-reflector-cluster-id = \"{DEVICE}\"\n  [[neighbors.afi-safis]]\n    \
             [neighbors.afi-safis.config]\n      afi-safi-name = \"ipv4-unicast\"\n  \
             [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      \
             afi-safi-name = \"ipv6-unicast\"\n"
        )
        .expect("a string takes everything");
    }
    text
}

fn exabgp_config(clients: &[Ipv4Addr], dir: &Path) -> String {
    let mut text =
        format!("process pipe {{\n  run /bin/cat {}/pipe;\n  encoder text;\n}}\n", dir.display());
    for client in clients {
        write!(
            text,
            "neighbor {client} {{\n  router-id {DEVICE};\n  local-address {DEVICE};\n  \
             local-as {AS};\n  peer-as {AS};\n  passive;\n  listen 179;\n  \
             family {{ ipv4 unicast; }}\n  api {{ processes [ pipe ]; }}\n}}\n"
        )
        .expect("a string takes everything");
    }
    text
}

/// A running device; dropped, it is killed, waited for, and its directory removed.
pub struct Device {
    child: Child,
    pub dir: PathBuf,
    pub command: String,
}

/// How a process is held: what it may run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pin {
    pub cpu: Option<usize>,
}

impl Device {
    pub fn start(kind: Kind, program: &Path, role: Role, pin: Pin) -> io::Result<Self> {
        let dir = scratch_dir()?;
        let config = dir.join("device.conf");
        fs::write(&config, kind.config(role, &dir))?;
        if kind == Kind::Exabgp {
            make_pipe(&dir.join("pipe"))?;
        }
        Self::start_command(kind.command(program, &config, &dir, role), dir, pin)
    }

    pub fn start_command(mut command: Command, dir: PathBuf, pin: Pin) -> io::Result<Self> {
        let log = File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&dir);
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // Whatever becomes of the bench, the device does not outlive it.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if let Some(cpu) = pin.cpu {
                    pin_this_thread(cpu)?;
                }
                Ok(())
            });
        }
        let text = format!("{command:?}").replace(&dir.display().to_string(), "DIR");
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                fs::remove_dir_all(&dir)?;
                return Err(e);
            }
        };
        Ok(Self { child, dir, command: text })
    }

    /// `Err` with the end of its log when it has ended.
    pub fn check_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!("ended with {status}: {}", self.log()))),
        }
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// User and system time of all its threads, also of those that have ended.
    pub fn cpu(&self) -> io::Result<Duration> {
        // The CPU-time clock of another process (clock_getcpuclockid(3)): the same sum as utime
        // and stime in /proc/<pid>/stat, in nanoseconds instead of ticks of 10 ms.
        let clock = (!(self.child.id() as libc::clockid_t) << 3) | 2;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the call.
        if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// Bytes: resident now, and the most so far.
    pub fn memory(&self) -> io::Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> io::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next());
            let kib: Option<u64> = kib.and_then(|kib| kib.parse().ok());
            kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no such field in status"))
        };
        Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::env::var_os("RR_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn make_pipe(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a string that ends in zero.
    if unsafe { libc::mkfifo(path.as_ptr(), 0o666) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub fn scratch_dir() -> io::Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("killick-bench-{}-{n}", std::process::id()));
    fs::create_dir(&dir)?;
    Ok(dir)
}

pub fn pin_this_thread(cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t is plain bits, all zero is the empty set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
