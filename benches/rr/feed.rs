//! Where moves go in: the injector's BGP session when the device reflects, or the interface by which
//! a user injects routes when the device originates.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::speaker::{
    self, AttrSets, Family, NEXT_HOPS, Receiver, Session, next_hop_text, prefix_text,
};

/// Octets that the kernel has not yet taken.
#[derive(Default)]
pub struct Output {
    pub octets: Vec<u8>,
    written: usize,
}

impl Output {
    /// Writes what the kernel takes; true when all of it is gone.
    pub fn flush(&mut self, to: &mut impl Write) -> io::Result<bool> {
        while self.written < self.octets.len() {
            match to.write(&self.octets[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.octets.clear();
        self.written = 0;
        Ok(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// JSON lines on the Unix socket of the streaming API.
    Killick,
    /// Commands on the standard output of a helper process, here `cat` of a named pipe.
    Exabgp,
}

pub struct Lines {
    dialect: Dialect,
    file: File,
    output: Output,
    input: Vec<u8>,
    /// What the device said about our lines: with neither, everything was taken.
    complaint: Option<String>,
}

pub enum Feed {
    Bgp(Box<Session>),
    Lines(Lines),
    /// A command per route, waited for.
    GobgpCli(PathBuf),
    Gone,
}

impl Feed {
    pub fn killick(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        Ok(Self::lines(Dialect::Killick, File::from(OwnedFd::from(stream))))
    }

    pub fn exabgp(fifo: &Path) -> io::Result<Self> {
        // Fails with ENXIO as long as nobody reads.
        let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
        Ok(Self::lines(Dialect::Exabgp, file))
    }

    fn lines(dialect: Dialect, file: File) -> Self {
        let (output, input) = (Output::default(), Vec::new());
        Self::Lines(Lines { dialect, file, output, input, complaint: None })
    }

    /// What to wait for, and whether anything comes back on it.
    pub fn fd(&self) -> Option<(RawFd, bool)> {
        match self {
            Feed::Bgp(session) => Some((session.stream.as_raw_fd(), true)),
            Feed::Lines(lines) => Some((lines.file.as_raw_fd(), lines.dialect == Dialect::Killick)),
            Feed::GobgpCli(_) | Feed::Gone => None,
        }
    }

    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Feed::Bgp(session) => session.flush(),
            Feed::Lines(lines) => lines.output.flush(&mut lines.file),
            Feed::GobgpCli(_) | Feed::Gone => Ok(true),
        }
    }

    pub fn keepalive(&mut self) {
        match self {
            Feed::Bgp(session) => session.keepalive(),
            Feed::Lines(_) | Feed::GobgpCli(_) | Feed::Gone => {}
        }
    }

    /// Returns how many routes a reflector sent back.
    pub fn receive(&mut self, sets: &mut AttrSets) -> io::Result<u64> {
        match self {
            Feed::Bgp(session) => {
                let mut echo = Echo(0);
                session.receive(sets, &mut echo)?;
                Ok(echo.0)
            }
            Feed::Lines(lines) => lines.receive().map(|()| 0),
            Feed::GobgpCli(_) | Feed::Gone => Ok(0),
        }
    }

    pub fn complaint(&self) -> Option<&str> {
        match self {
            Feed::Lines(lines) => lines.complaint.as_deref(),
            Feed::Bgp(_) | Feed::GobgpCli(_) | Feed::Gone => None,
        }
    }

    /// The octets of the whole table.
    pub fn load(&self, family: Family, next_hop_of: &[u8]) -> Vec<u8> {
        let dialect = match self {
            Feed::Bgp(_) => return speaker::load(family, next_hop_of),
            // The command line starts with nothing, see `Race::one_by_one`.
            Feed::GobgpCli(_) | Feed::Gone => return Vec::new(),
            Feed::Lines(lines) => lines.dialect,
        };
        let mut text = Vec::new();
        for (index, &next_hop) in next_hop_of.iter().enumerate() {
            match dialect {
                Dialect::Killick => attach_line(index as u32, next_hop, &mut text),
                Dialect::Exabgp => exabgp_line(index as u32, next_hop, &mut text),
            }
        }
        text
    }

    pub fn push(&mut self, octets: &[u8]) {
        match self {
            Feed::Bgp(session) => session.output.octets.extend_from_slice(octets),
            Feed::Lines(lines) => lines.output.octets.extend_from_slice(octets),
            Feed::GobgpCli(_) | Feed::Gone => {}
        }
    }

    pub fn push_move(&mut self, index: u32, next_hop: u8) -> io::Result<()> {
        match self {
            Feed::Bgp(session) => speaker::move_v4(index, next_hop, &mut session.output.octets),
            Feed::Lines(lines) => match lines.dialect {
                Dialect::Killick => move_line(index, next_hop, &mut lines.output.octets),
                Dialect::Exabgp => exabgp_line(index, next_hop, &mut lines.output.octets),
            },
            Feed::GobgpCli(program) => gobgp_add(program, index, next_hop)?,
            Feed::Gone => return Err(io::Error::other("a move after the injector has gone")),
        }
        Ok(())
    }
}

/// An anchor's id is its address for traffic.
pub fn killick_anchors() -> impl Iterator<Item = String> {
    (0..NEXT_HOPS).map(next_hop_text)
}

fn attach_line(index: u32, next_hop: u8, out: &mut Vec<u8>) {
    let (prefix, anchor) = (prefix_text(index), next_hop_text(next_hop));
    let line = format!(
        "{{\"op\":\"attach\",\"mn\":\"n{index}\",\"prefix\":\"{prefix}\",\"anchor\":\"{anchor}\"}}\n"
    );
    out.extend_from_slice(line.as_bytes());
}

fn move_line(index: u32, next_hop: u8, out: &mut Vec<u8>) {
    let anchor = next_hop_text(next_hop);
    let line = format!("{{\"op\":\"move\",\"mn\":\"n{index}\",\"anchor\":\"{anchor}\"}}\n");
    out.extend_from_slice(line.as_bytes());
}

fn exabgp_line(index: u32, next_hop: u8, out: &mut Vec<u8>) {
    let (prefix, next_hop) = (prefix_text(index), next_hop_text(next_hop));
    let line = format!("announce route {prefix} next-hop {next_hop}\n");
    out.extend_from_slice(line.as_bytes());
}

fn gobgp_add(program: &Path, index: u32, next_hop: u8) -> io::Result<()> {
    let status = Command::new(program)
        .args(["global", "rib", "add", &prefix_text(index), "nexthop", &next_hop_text(next_hop)])
        .args(["local-pref", "100"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("gobgp: {status}"))) }
}

impl Lines {
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.file.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("the device closed its API")),
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
        while let Some(end) = self.input.iter().position(|&b| b == b'\n') {
            let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
            self.input.drain(..=end);
            if line.contains("\"error\"") && self.complaint.is_none() {
                self.complaint = Some(line);
            }
        }
        Ok(())
    }
}

/// What the injector hears. FRR's update groups send a route back to where it came from and leave
/// it to the receiver to drop it by its ORIGINATOR_ID (RFC 4456 §8): odd, not wrong, noted.
struct Echo(u64);

impl Receiver for Echo {
    fn announced(&mut self, _index: u32, _attrs: u32, _sets: &AttrSets) {
        self.0 += 1;
    }
    fn withdrawn(&mut self, _index: u32, _sets: &AttrSets) {
        self.0 += 1;
    }
    fn foreign(&mut self) {
        self.0 += 1;
    }
}
