//! The two that are measured: killick as map-server, and the echo.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::udp::CONTROL_PORT;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Killick,
    /// Receives a batch, sends a batch of the same sizes as killick's answers: the limit of this
    /// machine and this bench.
    Echo,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Killick => "killick",
            Kind::Echo => "echo",
        }
    }

    pub fn addr(self) -> SocketAddrV4 {
        let last = match self {
            Kind::Killick => 1,
            Kind::Echo => 2,
        };
        SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, last), CONTROL_PORT)
    }
}

/// All keys are this one; each site and each subscriber signs with it.
pub const KEY: &str = "map-server-bench";
pub const SUBSCRIBERS_MAX: usize = 100;

/// The two ETRs, each the anchor of a site.
pub const ETRS: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 0, 11), Ipv4Addr::new(172, 31, 0, 12)];

pub fn subscriber_xtr_id(n: usize) -> u128 {
    0x5b << 96 | n as u128
}

fn killick_config(dir: &std::path::Path) -> String {
    let dir = dir.display();
    let addr = Kind::Killick.addr();
    let ip = addr.ip();
    let mut text = format!(
        "[node]\nanchor-id = \"{ip}\"\nname = \"bench\"\nstate-dir = \"{dir}/state\"\n\
         log-level = \"warn\"\n\n[api]\nsocket = \"{dir}/api.sock\"\n\n\
         [mobility]\nmode = \"controller\"\n\n\
         [[mobility.pool]]\nprefix = \"10.0.0.0/8\"\n\n\
         [[mobility.pool]]\nprefix = \"100.64.0.0/16\"\n\n\
         [lisp]\nlisten = [\"{ip}\"]\n\n[lisp.server]\n"
    );
    let mut put = |part: std::fmt::Arguments<'_>| {
        text.write_fmt(part).expect("a string takes everything");
    };
    for (n, etr) in ETRS.iter().enumerate() {
        put(format_args!(
            "\n[[lisp.server.site]]\nname = \"s{n}\"\nanchor-id = \"{etr}\"\n\
             key-file = \"{dir}/key\"\n\
             prefixes = [\"10.0.0.0/8\", \"100.64.0.0/16\", \"20.0.0.0/8\"]\n"
        ));
    }
    for n in 0..SUBSCRIBERS_MAX {
        put(format_args!(
            "\n[[lisp.server.subscriber]]\nname = \"i{n}\"\nxtr-id = \"{:032x}\"\n\
             key-file = \"{dir}/key\"\n",
            subscriber_xtr_id(n)
        ));
    }
    text
}

/// A running device; dropped, it is killed, waited for, and its directory removed.
pub struct Device {
    child: Child,
    pub dir: PathBuf,
    pub command: String,
}

impl Device {
    pub fn start(kind: Kind, cpu: Option<usize>) -> io::Result<Self> {
        let dir = scratch_dir()?;
        let mut command = match kind {
            Kind::Killick => {
                fs::write(dir.join("killick.toml"), killick_config(&dir))?;
                fs::write(dir.join("key"), format!("{KEY}\n"))?;
                let mut command = Command::new(program());
                command.arg("run").arg("--config").arg(dir.join("killick.toml"));
                command
            }
            Kind::Echo => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("--echo");
                command
            }
        };
        let log = File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&dir);
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // Whatever becomes of the bench, the device does not outlive it.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                cpu.map_or(Ok(()), pin_this_thread)
            });
        }
        let text = format!("{command:?}").replace(&dir.display().to_string(), "DIR");
        match command.spawn() {
            Ok(child) => Ok(Self { child, dir, command: text }),
            Err(e) => {
                fs::remove_dir_all(&dir)?;
                Err(e)
            }
        }
    }

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

    /// User and system time of all its threads.
    pub fn cpu(&self) -> io::Result<Duration> {
        // The CPU-time clock of another process (clock_getcpuclockid(3)).
        let clock = (!(self.child.id() as libc::clockid_t) << 3) | 2;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the call.
        if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// Octets that are resident.
    pub fn memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS in status"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::env::var_os("MAP_SERVER_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn scratch_dir() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("killick-ms-bench-{}-{n}", std::process::id()));
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

/// The daemon of this build; another one by `MAP_SERVER_KILLICK`, to compare two.
fn program() -> PathBuf {
    let other = std::env::var_os("MAP_SERVER_KILLICK");
    other.map_or_else(|| env!("CARGO_BIN_EXE_killick").into(), PathBuf::from)
}

pub fn version() -> String {
    let output = Command::new(program()).arg("version").stdin(Stdio::null()).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().into()
}
