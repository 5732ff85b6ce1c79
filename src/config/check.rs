//! File as written → [`Checked`], with everything that is wrong in one go. Needs no rights and no
//! network, and looks at no other file.

mod access;
mod bfd;
mod bgp;
mod lisp;
mod mobility;
mod peer;
mod transient;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checked::{Api, Checked, KERNEL_PROTOCOL, Kernel, Node, SOCKET, STATE_DIR, Tls};
use super::document::{self, Document};
use super::fault::{Fault, Faults, Place, Severity};
use super::file::File;
use super::{Period, checked};
use crate::types::{AnchorId, Prefix};

/// Reads the file at `path` and checks it. `environment` overrides it when given. The warnings are
/// beside the configuration; relative paths in it are relative to the file.
pub fn load(
    path: &Path,
    environment: &[(String, String)],
    use_environment: bool,
) -> Result<(Checked, Faults), Faults> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let mut faults = Faults::new(&name);
        faults.push(Fault {
            severity: Severity::Error,
            place: Place::Whole,
            what: format!("cannot read {name}: {error}"),
            hint: Some("give the path of the configuration: killick run <file>".to_owned()),
        });
        faults
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    check_text(&name, &text, base, environment, use_environment)
}

/// As [`load`], for text that was read already.
pub fn check_text(
    name: &str,
    text: &str,
    base: &Path,
    environment: &[(String, String)],
    use_environment: bool,
) -> Result<(Checked, Faults), Faults> {
    let (file, mut document) = document::read(name, text, use_environment.then_some(environment));
    document.report_unused_variables(environment, use_environment);
    // After a syntax error the file is empty, and all that is required would be reported missing.
    let checked =
        (!document.syntax_error).then(|| Checker::new(&mut document, base).check(&file)).flatten();
    let mut faults = document.faults;
    faults.sort();
    match checked {
        Some(checked) if !faults.has_errors() => Ok((checked, faults)),
        Some(_) | None => Err(faults),
    }
}

struct Checker<'d, 't> {
    document: &'d mut Document<'t>,
    base: &'d Path,
    /// A pool was written and not understood: nothing can be said to be outside all pools.
    pools_are_incomplete: bool,
    /// Without BGP an FE_E is where tunnels end, and a tunnel carries either family in either.
    tunnels_only: bool,
}

impl<'d, 't> Checker<'d, 't> {
    fn new(document: &'d mut Document<'t>, base: &'d Path) -> Self {
        let pools_are_incomplete = document.was_anything_taken_out_of("mobility.pool");
        Self { document, base, pools_are_incomplete, tunnels_only: false }
    }

    fn in_pools(&self, pools: &[Prefix], prefix: Prefix) -> bool {
        self.pools_are_incomplete || pools.iter().any(|pool| pool.contains(prefix))
    }

    /// `None` only together with an error; each part is checked whatever the others lack.
    fn check(&mut self, file: &File) -> Option<Checked> {
        self.tunnels_only = file.bgp.is_none() && file.lisp.is_some();
        let node = self.node(file);
        let mobility = self.mobility(file);
        let pools: Vec<Prefix> = pools(file);
        let bgp = file.bgp.as_ref().map(|_| self.bgp(file, &pools));
        let access = self.access(file, &pools);
        let bfd = self.bfd(file);
        let peers = self.peers(file, &pools);
        let tls = self.tls(file);
        let lisp = self.lisp(file, &pools);
        let transient = self.transient(file);
        let api = self.api(file);
        let kernel = self.kernel(file);
        self.ports(
            file,
            tls.as_ref().and_then(Option::as_ref),
            bgp.as_ref().and_then(Option::as_ref),
        );
        Some(Checked {
            node: node?,
            bgp: match bgp {
                Some(bgp) => Some(bgp?),
                None => None,
            },
            bfd: bfd?,
            mobility: mobility?,
            access: access?,
            peers: peers?,
            tls: tls?,
            lisp: lisp?,
            transient: transient?,
            api: api?,
            metrics: file.metrics.listen,
            kernel,
        })
    }

    fn error(&mut self, path: &str, what: impl Into<String>) {
        self.document.error(path, what, None);
    }

    fn error_hint(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.document.error(path, what, Some(hint.into()));
    }

    fn warn(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        self.document.warn(path, what, Some(hint.into()));
    }

    /// A required value.
    fn required<T: Clone>(&mut self, value: &Option<T>, table: &str, key: &str) -> Option<T> {
        let path = format!("{table}.{key}");
        if value.is_none() && !self.document.was_taken_out(&path) {
            self.error(table, format!("`{key}` is missing in {}", in_brackets(table)));
        }
        value.clone()
    }

    /// A period within bounds, in whole seconds where the wire has whole seconds.
    fn seconds(
        &mut self,
        value: Option<Period>,
        default: Duration,
        path: &str,
        allowed: impl Fn(u64) -> bool,
        what: &str,
    ) -> Duration {
        let Some(Period(period)) = value else { return default };
        if period.subsec_nanos() != 0 || !allowed(period.as_secs()) {
            self.error(path, format!("must be {what}"));
        }
        period
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// " (line 12)", to refer to another place of the file.
    fn at_line(&self, path: &str) -> String {
        self.document.line(path).map_or_else(String::new, |line| format!(" (line {line})"))
    }

    fn node(&mut self, file: &File) -> Option<Node> {
        let section = &file.node;
        let level = section.log_level.clone().unwrap_or_else(|| "info".to_owned());
        if !is_log_level(&level) {
            self.error_hint(
                "node.log-level",
                format!("\"{level}\" is not a log level"),
                "error, warn, info, debug, trace, off; or per room: \"info,killick::proto::bgp=debug\"",
            );
        }
        if section.name.as_deref().is_some_and(|name| !is_plain_name(name)) {
            self.error("node.name", NAME_RULE);
        }
        let anchor_id = self.required(&section.anchor_id, "node", "anchor-id")?;
        Some(Node {
            anchor_id,
            name: section.name.clone().unwrap_or_else(|| anchor_id.to_string()),
            state_dir: self.path(section.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR))),
            log_level: level,
            log_format: section.log_format.unwrap_or_default(),
        })
    }

    fn tls(&mut self, file: &File) -> Option<Option<Tls>> {
        let Some(section) = &file.tls else { return Some(None) };
        let ca = self.required(&section.ca, "tls", "ca");
        let certificate = self.required(&section.certificate, "tls", "certificate");
        let key = self.required(&section.key, "tls", "key");
        if file.peer.is_empty() {
            self.warn("tls", "[tls] without any [[peer]] does nothing", "add the other anchors");
        }
        let port = checked::CXTP_PORT;
        let default =
            || vec![SocketAddr::from(([0u8; 4], port)), SocketAddr::from(([0u16; 8], port))];
        let listen = section.listen.clone().unwrap_or_else(default);
        for (i, address) in listen.iter().enumerate() {
            if listen[..i].contains(address) {
                self.error(&format!("tls.listen[{i}]"), format!("{address} is listed twice"));
            }
        }
        Some(Some(Tls {
            ca: self.path(&ca?),
            certificate: self.path(&certificate?),
            key: self.path(&key?),
            listen,
        }))
    }

    fn api(&mut self, file: &File) -> Option<Api> {
        let section = &file.api;
        let socket = self.path(section.socket.as_deref().unwrap_or(Path::new(SOCKET)));
        let stream_socket = match &section.stream_socket {
            Some(path) => self.path(path),
            None => socket.with_file_name("stream.sock"),
        };
        if socket == stream_socket {
            self.error("api.stream-socket", "is the same as api.socket");
        }
        for (path, key) in [(&socket, "api.socket"), (&stream_socket, "api.stream-socket")] {
            // sun_path has 108 octets with the final zero (unix(7)).
            if path.as_os_str().len() > 107 {
                self.error(key, "is longer than the 107 octets a Unix socket's path may have");
            }
        }
        let text = section.mode.as_deref().unwrap_or("0660");
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        match mode {
            None => self.error_hint("api.mode", "not permission bits in octal", "\"0660\""),
            Some(mode) if mode & 0o002 != 0 => self.error_hint(
                "api.mode",
                "would let every user of this machine move nodes",
                "\"0660\", and a group for those who may",
            ),
            Some(_) => {}
        }
        Some(Api { socket, stream_socket, mode: mode? })
    }

    fn kernel(&mut self, file: &File) -> Kernel {
        let section = &file.kernel;
        let protocol = section.protocol.unwrap_or(KERNEL_PROTOCOL);
        // The numbers of rtnetlink(7) and of /etc/iproute2/rt_protos.
        let owner = |number| match number {
            0..=4 => Some("the kernel"),
            8 => Some("gated"),
            9 => Some("router advertisements"),
            11 => Some("FRR zebra"),
            12 => Some("BIRD"),
            15 => Some("NTK"),
            16 => Some("DHCP"),
            17 => Some("mrouted"),
            42 => Some("babel"),
            186..=189 | 192 => Some("FRR"),
            _ => None,
        };
        // The next one marks routes into tunnels.
        for number in [protocol, protocol.wrapping_add(1)] {
            if let Some(owner) = owner(number) {
                self.error_hint(
                    "kernel.protocol",
                    format!("{number} belongs to {owner}; its routes would be taken for ours"),
                    format!("leave it out ({KERNEL_PROTOCOL}) or choose two free numbers"),
                );
                break;
            }
        }
        let table = section.table.unwrap_or(254);
        if table == 0 || table == 255 {
            self.error("kernel.table", format!("{table} is not a table for routes of daemons"));
        }
        let metric = section.metric.unwrap_or(20);
        if metric == 0 {
            self.error_hint("kernel.metric", "0 means 1024 for IPv6 routes", "at least 1");
        }
        Kernel { protocol, table, metric }
    }

    /// Two listeners of ours at one port.
    fn ports(&mut self, file: &File, tls: Option<&Tls>, bgp: Option<&checked::Bgp>) {
        let Some(metrics) = file.metrics.listen else { return };
        let same = |a: &SocketAddr| {
            a.port() == metrics.port()
                && (a.ip() == metrics.ip()
                    || a.ip().is_unspecified()
                    || metrics.ip().is_unspecified())
        };
        if tls.is_some_and(|tls| tls.listen.iter().any(same)) {
            self.error("metrics.listen", "collides with tls.listen");
        }
        if bgp.is_some_and(|bgp| bgp.listen.iter().any(same)) {
            self.error("metrics.listen", "collides with bgp.listen and bgp.port");
        }
    }
}

const NAME_RULE: &str = "a name has 1 to 64 letters, digits, '.', '-' or '_'";

fn is_plain_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// A level, or levels per room: `info,killick::proto=debug`. Stricter than the library, to which any
/// word is the name of a room.
fn is_log_level(text: &str) -> bool {
    let is_level =
        |level: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&level.trim());
    text.split(',').all(|part| match part.split_once('=') {
        Some((room, level)) => !room.trim().is_empty() && is_level(level),
        None => is_level(part),
    })
}

/// `bgp.neighbor[1]` → `[[bgp.neighbor]]`.
fn in_brackets(table: &str) -> String {
    match table.split_once('[') {
        Some((name, _)) => format!("[[{name}]]"),
        None => format!("[{table}]"),
    }
}

fn pools(file: &File) -> Vec<Prefix> {
    file.mobility.iter().flat_map(|m| &m.pool).filter_map(|p| p.prefix).collect()
}

/// What is known about an anchor that is called by name or by identifier.
enum Called {
    Known(AnchorId),
    /// By a name whose identifier is missing or wrong, which is reported there.
    NameOnly,
    Unknown,
}

fn find_anchor(file: &File, text: &str) -> Called {
    let known = || {
        let own = (file.node.name.as_deref(), file.node.anchor_id);
        let peers = file.peer.iter().map(|p| (p.name.as_deref(), p.anchor_id));
        let server = file.lisp.iter().filter_map(|lisp| lisp.server.as_ref());
        let sites = server.flat_map(|s| &s.site).map(|s| (s.name.as_deref(), s.anchor_id));
        std::iter::once(own).chain(peers).chain(sites)
    };
    if let Some((_, id)) = known().find(|(name, _)| *name == Some(text)) {
        return id.map_or(Called::NameOnly, Called::Known);
    }
    let id = text.parse::<AnchorId>().ok();
    match known().find(|(_, known)| known.is_some() && *known == id) {
        Some((_, Some(id))) => Called::Known(id),
        Some((_, None)) | None => Called::Unknown,
    }
}
