//! The uplink filter: on access interfaces, only sources that have a route back through the same
//! interface pass (RFC 3704 §2.2, strict reverse path). The routes of attached nodes are such
//! routes and there are no others on an access interface, so the filter opens exactly for what
//! was attached or imported, at the moment of delivery, and closes with it. Nothing is written to
//! nftables when a node moves.
//!
//! A source of a mobile pool that has no such route yet may be a host that has just arrived and sends
//! before its context is here. When somebody holds such packets ([`UplinkHold`]), they are marked
//! instead of dropped, and a rule leads marked packets there; but not those to the anchor itself,
//! which no rule comes before.
//!
//! One table, `inet killick`, loaded by `nft -f -` in one transaction when the set of access
//! interfaces changes. It stays when killick exits, like the routes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use crate::types::{Family, Prefix};

const NFT: &str = "nft";

/// Linux: IFNAMSIZ less the final NUL.
const INTERFACE_NAME_MAX: usize = 15;

/// Shown in the status of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not wanted, or not loaded yet.
    #[default]
    Off,
    Loaded,
    /// The access links work, without protection against forged sources.
    Failed(String),
}

/// Packets of sources that are not delivered yet get this mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkHold {
    pub mark: u32,
    /// With this mark the kernel is asked whether a source has a route back.
    pub probe_mark: u32,
    pub pools: BTreeSet<Prefix>,
}

#[derive(Debug, Default)]
pub struct Filter {
    state: State,
    access: BTreeSet<String>,
    hold: Option<UplinkHold>,
}

#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("{0:?} is not an interface name")]
    Name(String),
    #[error("cannot run nft (package nftables): {0}")]
    Run(#[from] io::Error),
    #[error("nft refused: {0}")]
    Refused(String),
}

impl Filter {
    pub fn state(&self) -> &State {
        &self.state
    }

    /// From the next [`Self::load`] on. Whoever holds must be there before.
    pub fn hold(&mut self, hold: Option<UplinkHold>) {
        if self.hold != hold {
            self.hold = hold;
            if self.state == State::Loaded {
                self.state = State::Off;
            }
        }
    }

    /// Loads the table for these interfaces (by name: they need not exist yet). Does nothing when
    /// it is loaded for them already. Runs a process: some 20 ms.
    pub fn load(&mut self, access: BTreeSet<String>) -> &State {
        if self.state != State::Loaded || self.access != access {
            let script = script(&access, self.hold.as_ref());
            self.state = match script.and_then(|script| run(&["-f", "-"], &script)) {
                Ok(_) => State::Loaded,
                Err(error) => State::Failed(error.to_string()),
            };
            self.access = access;
        }
        &self.state
    }

    /// Takes the table away.
    pub fn remove(&mut self) -> Result<(), FilterError> {
        run(&["-f", "-"], EMPTY)?;
        *self = Self { hold: self.hold.take(), ..Self::default() };
        Ok(())
    }
}

/// Packets dropped since the table was loaded. Runs a process; not for the routing thread.
pub fn dropped_packets() -> Result<u64, FilterError> {
    let text = run(&["-j", "list", "counter", "inet", "killick", "dropped"], "")?;
    let unreadable = || FilterError::Refused("unreadable answer".to_owned());
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|_| unreadable())?;
    let objects = value["nftables"].as_array().ok_or_else(unreadable)?;
    objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).ok_or_else(unreadable)
}

/// An empty declaration first, because deleting a table that is not there is an error.
const EMPTY: &str = "table inet killick\ndelete table inet killick\n";

/// Neighbor Discovery is let through from any source: a host that is just arriving asks for its
/// gateway before it is attached. It never leaves the link (hop limit 255 is checked).
fn script(access: &BTreeSet<String>, hold: Option<&UplinkHold>) -> Result<String, FilterError> {
    let mut names = String::new();
    for name in access {
        check_name(name)?;
        let separator = if names.is_empty() { "" } else { ", " };
        write!(names, "{separator}\"{name}\"").expect("a String takes everything");
    }
    if names.is_empty() {
        return Ok(EMPTY.to_owned());
    }
    let mut waiting = String::new();
    for (family, word) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
        let Some(UplinkHold { mark, probe_mark, pools }) = hold else { continue };
        let of_family = pools.iter().filter(|pool| pool.family() == family);
        let pools: Vec<String> = of_family.map(Prefix::to_string).collect();
        if !pools.is_empty() {
            let pools = pools.join(", ");
            writeln!(
                waiting,
                "    {word} saddr {{ {pools} }} meta mark set {probe_mark:#x}\n    \
                 meta mark {probe_mark:#x} {word} saddr {{ {pools} }} fib saddr . mark . iif oif missing \
                 fib daddr type unicast counter name waiting meta mark set {mark:#x} accept"
            )
            .expect("a String takes everything");
        }
    }
    if let Some(UplinkHold { probe_mark, .. }) = hold {
        writeln!(waiting, "    meta mark {probe_mark:#x} meta mark set 0")
            .expect("a String takes everything");
    }
    Ok(format!(
        "{EMPTY}table inet killick {{
  counter dropped {{ comment \"sources without a delivery\" }}
  counter waiting {{ comment \"sources that may get one\" }}
  chain uplink {{
    type filter hook prerouting priority raw; policy accept;
    iifname != {{ {names} }} accept
    ip saddr 0.0.0.0 accept
    ip6 saddr {{ ::, fe80::/10 }} accept
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
{waiting}    fib saddr . iif oif missing counter name dropped drop
  }}
}}
"
    ))
}

/// What stands between quotes in a script cannot end them.
pub(super) fn check_name(name: &str) -> Result<(), FilterError> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX || !name.chars().all(harmless) {
        return Err(FilterError::Name(name.to_owned()));
    }
    Ok(())
}

pub(super) fn run(arguments: &[&str], input: &str) -> Result<String, FilterError> {
    let mut child = Command::new(NFT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A script is smaller than a pipe; nft that exits early says why on its own.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(FilterError::Refused(text.lines().next().unwrap_or("no reason given").to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_name_cannot_become_a_rule() {
        for name in ["", "a\"; }", "a b", "acc*", "a/b", "0123456789abcdef"] {
            let error = script(&names(&[name]), None).unwrap_err();
            assert!(matches!(error, FilterError::Name(_)), "{name:?}: {error}");
        }
        assert!(
            script(&names(&["eth0.100", "acc_1"]), None)
                .unwrap()
                .contains("{ \"acc_1\", \"eth0.100\" }")
        );
    }

    #[test]
    fn without_interfaces_there_is_no_table() {
        let hold = UplinkHold { mark: 1, probe_mark: 2, pools: BTreeSet::new() };
        assert_eq!(script(&BTreeSet::new(), Some(&hold)).unwrap(), EMPTY);
    }

    #[test]
    fn only_sources_of_pools_are_marked_and_only_on_their_way_elsewhere() {
        let pools = ["10.1.0.0/16", "10.2.0.0/16", "2001:db8:1::/48"];
        let pools = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        let hold = UplinkHold { mark: 0x6b, probe_mark: 0x6c, pools };
        let script = script(&names(&["acc0"]), Some(&hold)).unwrap();
        let lines: Vec<&str> = script.lines().filter(|line| line.contains("missing")).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("ip saddr { 10.1.0.0/16, 10.2.0.0/16 } fib saddr . mark . iif"));
        assert!(lines[1].contains("ip6 saddr { 2001:db8:1::/48 } fib saddr . mark . iif"));
        assert!(lines[..2].iter().all(|line| line.contains("fib daddr type unicast")));
        assert!(lines[..2].iter().all(|line| line.ends_with("meta mark set 0x6b accept")));
        assert!(lines[2].ends_with("drop"));
        let reset = script.find("meta mark 0x6c meta mark set 0").unwrap();
        assert!(reset < script.find(lines[2]).unwrap(), "nobody else sees our questions");
    }

    #[test]
    fn what_is_loaded_is_loaded_again_when_the_pools_change() {
        let mut filter = Filter { state: State::Loaded, ..Filter::default() };
        filter.hold(None);
        assert_eq!(*filter.state(), State::Loaded);
        filter.hold(Some(UplinkHold { mark: 1, probe_mark: 2, pools: BTreeSet::new() }));
        assert_eq!(*filter.state(), State::Off);
    }
}
