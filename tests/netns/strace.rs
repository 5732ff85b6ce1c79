//! `strace` on a running daemon: which calls carry something out of the process, and SIGKILL right
//! before one of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use super::lab::wait_until;
use super::{Result, skip};

/// By which a daemon changes the world.
const CALLS: [&str; 4] = ["sendto", "sendmsg", "write", "writev"];
const BGP_PORT: u16 = 179;

/// Requests to the kernel (linux/rtnetlink.h).
const RTNETLINK: [(u16, &str); 10] = [
    (16, "NEWLINK"),
    (18, "GETLINK"),
    (19, "SETLINK"),
    (20, "NEWADDR"),
    (24, "NEWROUTE"),
    (25, "DELROUTE"),
    (26, "GETROUTE"),
    (28, "NEWNEIGH"),
    (29, "DELNEIGH"),
    (30, "GETNEIGH"),
];

/// Whether processes can be traced here; if not, says so where `cargo test` shows it.
pub fn may_trace() -> bool {
    let tried = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            skip(&format!("processes cannot be traced here: {}", said.trim()));
            false
        }
        Err(e) => {
            skip(&format!("killing at each step needs strace (make deps): {e}"));
            false
        }
    }
}

/// What a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The kernel's routes, neighbours, addresses.
    Netlink,
    /// A frame on an access link.
    Packet,
    Store,
    Bgp,
    /// To another killick.
    Tls,
}

/// A call, and what it does in words.
pub struct Call {
    pub kind: Kind,
    pub does: String,
}

impl Call {
    /// It changes nothing, so that to be killed before it is to be killed before the next.
    pub fn only_asks(&self) -> bool {
        let asked = self.does.strip_prefix("netlink ");
        asked.is_some_and(|types| types.split('+').all(|name| name.starts_with("GET")))
    }
}

/// By the numbers that strace shows for them.
type Sockets = BTreeMap<u64, Kind>;

/// Watches until [`Strace::detach`], or until the process is dead.
pub struct Strace {
    strace: Child,
    log: PathBuf,
    sockets: Sockets,
    /// Kept open: strace would die of telling us something.
    _stderr: BufReader<ChildStderr>,
}

impl Strace {
    /// Watches the calls of `pid` on descriptors of all kinds; or on those of one kind, and it does
    /// not live to make the call of that number, from one.
    pub fn attach(pid: u32, folder: &Path, kill_before: Option<(Kind, usize)>) -> Result<Self> {
        let sockets = sockets(pid);
        let log = folder.join("strace");
        let calls = CALLS.join(",");
        let mut command = Command::new("strace");
        // Octets in hexadecimal, enough of them for the head of a message.
        command.args(["-f", "-yy", "-x", "-s", "64", "-e", "signal=none"]);
        command.args(["-e", &format!("trace={calls}"), "-p", &pid.to_string(), "-o"]).arg(&log);
        if let Some((_, number)) = kill_before {
            // It counts each name by itself, but then calls of one kind are all by one name.
            command.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={number}")]);
        }
        // With paths given it neither shows nor counts what goes elsewhere: logs, the API's
        // answers, and the eventfd by which a thread wakes another or itself.
        for target in descriptors(pid)? {
            let wanted = |kind| kill_before.is_none_or(|(wanted, _)| wanted == kind);
            if kind_of(&target, &sockets).is_some_and(wanted) {
                command.arg("-P").arg(&target);
            }
        }
        let mut strace =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut stderr = BufReader::new(strace.stderr.take().ok_or("strace without stderr")?);
        let mut said = String::new();
        while !said.contains(" attached") {
            let mut line = String::new();
            if stderr.read_line(&mut line)? == 0 {
                let _ = strace.wait();
                return Err(format!("strace ended: {said}").into());
            }
            said += &line;
        }
        Ok(Self { strace, log, sockets, _stderr: stderr })
    }

    /// The calls since then. That which it was killed before is the last.
    pub fn detach(mut self) -> Result<Vec<Call>> {
        // SAFETY: a system call; the pid is ours until it has been waited for.
        unsafe { libc::kill(self.strace.id().cast_signed(), libc::SIGTERM) };
        let gone = wait_until("strace lets go", Duration::from_secs(2), || {
            Ok(self.strace.try_wait()?.map(drop))
        });
        if gone.is_err() {
            // It waits for ever for threads of a process that it has just killed. The log has each
            // line when it is complete, and the kernel lets go of what lives at its death.
            self.strace.kill()?;
            self.strace.wait()?;
        }
        let log = fs::read_to_string(&self.log)?;
        Ok(log.lines().filter_map(|line| describe(line, &self.sockets)).collect())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // One that has ended is not waited for twice.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// Where the descriptors of a process lead.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that is closed meanwhile is none of those that matter.
        if let Ok(target) = fs::read_link(entry?.path()) {
            targets.push(target.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    targets.dedup();
    Ok(targets)
}

/// Of a descriptor: `/var/lib/…` and `socket:[4711]` in /proc, `TCP:[4711]` in strace's words.
fn kind_of(target: &str, sockets: &Sockets) -> Option<Kind> {
    if target.contains("/killick/store/") {
        return Some(Kind::Store);
    }
    let (_, number) = target.strip_suffix(']')?.split_once(":[")?;
    sockets.get(&number.parse().ok()?).copied()
}

/// Those in the network namespace of a process by which it talks to the world.
fn sockets(pid: u32) -> Sockets {
    let mut sockets = Sockets::new();
    for (table, column) in [("tcp", 9), ("tcp6", 9), ("netlink", 9), ("packet", 8), ("raw6", 9)] {
        // A table that this kernel does not have is empty.
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let is_bgp = |cell: &&&str| {
                let port = cell.rsplit(':').next().and_then(|p| u16::from_str_radix(p, 16).ok());
                port == Some(BGP_PORT)
            };
            let kind = match table {
                "netlink" => Kind::Netlink,
                "packet" | "raw6" => Kind::Packet,
                // Both ends' addresses.
                _ if cells.iter().skip(1).take(2).any(|cell| is_bgp(&cell)) => Kind::Bgp,
                _ => Kind::Tls,
            };
            if let Some(number) = cells.get(column).and_then(|cell| cell.parse().ok()) {
                sockets.insert(number, kind);
            }
        }
    }
    sockets
}

/// `4711 writev(27<TCP:[42]>, [{iov_base="\xff…` as "BGP UPDATE".
fn describe(line: &str, sockets: &Sockets) -> Option<Call> {
    let (_pid, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    if !CALLS.contains(&name) {
        return None;
    }
    let target = arguments.split_once('<')?.1.split_once('>')?.0;
    let kind = kind_of(target, sockets)?;
    let octets: Vec<u8> = arguments
        .split("\\x")
        .skip(1)
        .filter_map(|rest| u8::from_str_radix(rest.get(..2)?, 16).ok())
        .collect();
    let does = match kind {
        Kind::Store => "store".into(),
        Kind::Netlink => {
            let types = arguments.split("nlmsg_type=0x").skip(1).filter_map(|rest| {
                let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
                let number = u16::from_str_radix(digits, 16).ok()?;
                RTNETLINK.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
            });
            format!("netlink {}", types.collect::<Vec<_>>().join("+"))
        }
        Kind::Packet => match octets.get(12..14) {
            Some([0x08, 0x06]) => "ARP".into(),
            Some([0x86, 0xdd]) => "ND".into(),
            _ => "a packet".into(),
        },
        Kind::Bgp => match octets.get(18) {
            Some(2) => "BGP UPDATE".into(),
            Some(4) => "BGP KEEPALIVE".into(),
            other => format!("BGP message of type {other:?}"),
        },
        // The record's own length; what is in it is not for us.
        Kind::Tls => match octets.get(3..5) {
            Some([high, low]) => format!("TLS of {}", u16::from_be_bytes([*high, *low])),
            _ => "TLS".into(),
        },
    };
    Some(Call { kind, does })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_words() {
        let sockets =
            Sockets::from([(7, Kind::Netlink), (8, Kind::Packet), (9, Kind::Bgp), (10, Kind::Tls)]);
        let words = |line: &str| describe(line, &sockets).map(|call| call.does);
        assert_eq!(words("1 +++ killed by SIGKILL +++"), None);
        assert_eq!(
            words(
                r#"1 sendto(12<NETLINK:[7]>, [[{nlmsg_len=60, nlmsg_type=0x1c /* NLMSG_??? */, nlmsg_flags=0}, "\x0a"], [{nlmsg_len=72, nlmsg_type=0x18 /* NLMSG_??? */}, "\x0a"]], 240, 0, NULL, 0) = 240"#
            )
            .as_deref(),
            Some("netlink NEWNEIGH+NEWROUTE")
        );
        let octets = |n: usize, octet: &str| octet.repeat(n);
        let arp = format!("{}{}", octets(12, r"\x02"), r"\x08\x06");
        assert_eq!(
            words(&format!(r#"1 sendto(14<socket:[8]>, "{arp}"..., 42, 0, NULL, 0) = ?"#))
                .as_deref(),
            Some("ARP")
        );
        let update = format!("{}{}", octets(16, r"\xff"), r"\x00\x53\x02");
        assert_eq!(
            words(&format!(
                r#"1 writev(27<TCP:[9]>, [{{iov_base="{update}"..., iov_len=83}}], 1)"#
            ))
            .as_deref(),
            Some("BGP UPDATE")
        );
        assert_eq!(
            words(
                r#"1 writev(28<TCP:[10]>, [{iov_base="\x17\x03\x03\x00\x19\xa5", iov_len=30}], 1)"#
            )
            .as_deref(),
            Some("TLS of 25")
        );
        assert_eq!(
            words(r#"1 write(11</var/lib/killick/store/00000001.log>, "\x00"..., 58) = 58"#)
                .as_deref(),
            Some("store")
        );
        assert_eq!(words(r#"1 write(5<UNIX:[3]>, "\x00", 1) = 1"#), None);
    }
}
