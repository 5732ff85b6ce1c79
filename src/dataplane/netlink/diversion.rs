//! Packets led aside: a routing table of our own with a route for each prefix whose packets are to
//! come to a device of ours, and the rules by which the kernel looks into it first.
//!
//! ```text
//! rule+0  fwmark M                   -> table+1: all to the second device (uplink), else nowhere
//! rule+1  iif <device>  goto rule+3      what we write back is not led aside again
//! rule+2  not iif lo                 -> table: the prefixes
//! rule+3  nop
//! rule+4  fwmark P                   -> table+2: sources whose packets still come to the second device
//! ```
//!
//! The filter of access links asks with the mark P whether a source has a route back; a packet that
//! leaves it never has this mark. As long as a source is in table+2, the answer is no, also when the
//! kernel delivers to it already: so what it has sent before stays before what it sends now.
//!
//! `not iif lo`: packets that this machine makes are not led aside, nor are the kernel's own
//! questions for a route back (reverse path filter, `fib` in nftables), which ask as if from `lo`.
//! The rules of the prefixes are there only while there is one, because each slows every packet.
//! That of marked packets stays, also when the process ends: the filter that marks them stays as
//! well, and without the rule they would pass.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::OpError;
use super::attribute::{push, push_text, push_u32};
use super::message::address_family;
use super::socket::{Refused, Requests};
use crate::types::seam::IfIndex;
use crate::types::{Family, Prefix};

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;

const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_UNSPEC: u8 = 0;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FIB_RULE_INVERT: u32 = 2;

/// Rules of one kind that an earlier life may have left, at most.
const LEFTOVERS_MAX: usize = 16;

/// Of packets whose source is not authorised yet, unless told otherwise.
pub const MARK: u32 = 0x6b69_6c6c;
/// Of the filter's questions, unless told otherwise.
pub const PROBE_MARK: u32 = MARK + 1;

/// Of the route that drops marked packets when their device is gone.
const LAST_METRIC: u32 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiversionOptions {
    /// The next one is for marked packets.
    pub table: u32,
    pub mark: u32,
    /// Of the filter's questions for a route back to a source.
    pub probe_mark: u32,
    /// `rtm_protocol` of routes and rules; not that of killick's other routes, which are
    /// reconciled by theirs.
    pub protocol: u8,
    /// Priority of the first of four rules; before the main table (32766) and those of tunnels.
    pub rule: u32,
}

impl Default for DiversionOptions {
    fn default() -> Self {
        Self { table: 110, mark: MARK, probe_mark: PROBE_MARK, protocol: 110, rule: 4300 }
    }
}

impl DiversionOptions {
    const fn by_mark(&self) -> u32 {
        self.rule
    }

    const fn mark_table(&self) -> u32 {
        self.table.wrapping_add(1)
    }

    const fn past(&self) -> u32 {
        self.rule + 1
    }

    const fn aside(&self) -> u32 {
        self.rule + 2
    }

    const fn target(&self) -> u32 {
        self.rule + 3
    }

    const fn by_probe(&self) -> u32 {
        self.rule + 4
    }

    const fn gate_table(&self) -> u32 {
        self.table + 2
    }
}

pub struct Diversion {
    requests: Requests,
    options: DiversionOptions,
    device: (IfIndex, String),
    /// That of marked packets.
    uplink: Option<IfIndex>,
    rules: bool,
}

/// One request, as it is to be written.
#[derive(Clone, Copy)]
enum Step {
    Route {
        prefix: Prefix,
        link: IfIndex,
        table: u32,
        new: bool,
    },
    Rule {
        family: Family,
        priority: u32,
        new: bool,
    },
    /// The removal of a route that is not there.
    Nothing {
        prefix: Prefix,
        table: u32,
    },
    /// What no other route of the table takes is dropped.
    Last {
        family: Family,
        table: u32,
        new: bool,
    },
}

impl Diversion {
    /// Clears away what an earlier life has left. Adds the rules once and takes them away again:
    /// the first rule of a network namespace makes the kernel take its tables apart, which must
    /// not happen when the first packets are to be held.
    pub fn open(options: DiversionOptions, device: (IfIndex, String)) -> Result<Self, OpError> {
        let requests = Requests::open().map_err(super::failed)?;
        let mut this = Self { requests, options, device, uplink: None, rules: false };
        for family in Family::ALL {
            for priority in options.past()..=options.target() {
                for _ in 0..LEFTOVERS_MAX {
                    let step = Step::Rule { family, priority, new: false };
                    match this.write(&[step]).pop() {
                        Some(Ok(())) => {}
                        Some(Err(OpError::Missing)) | None => break,
                        Some(Err(error)) => return Err(error),
                    }
                }
            }
        }
        this.write_all(&this.rule_steps(true))?;
        this.rules = true;
        this.remove_rules()?;
        Ok(this)
    }

    fn rule_steps(&self, new: bool) -> Vec<Step> {
        let options = &self.options;
        let mut priorities = [options.target(), options.past(), options.aside()];
        if !new {
            priorities.reverse();
        }
        let each = |family| priorities.map(|priority| Step::Rule { family, priority, new });
        Family::ALL.into_iter().flat_map(each).collect()
    }

    /// From here on, packets for the prefix come to the device.
    pub fn add(&mut self, prefix: Prefix) -> Result<(), OpError> {
        let (link, table) = (self.device.0, self.options.table);
        let mut steps = vec![Step::Route { prefix, link, table, new: true }];
        if !self.rules {
            steps.extend(self.rule_steps(true));
        }
        self.write_all(&steps)?;
        self.rules = true;
        Ok(())
    }

    /// From here on, they do not.
    pub fn remove(&mut self, prefix: Prefix) -> Result<(), OpError> {
        let (link, table) = (self.device.0, self.options.table);
        self.write_all(&[Step::Route { prefix, link, table, new: false }])
    }

    /// Asks for a change that changes nothing, as [`Self::remove`] would: by then nobody has the
    /// kernel's lock for such changes, which may be taken for milliseconds.
    pub fn await_lock(&mut self, prefix: Prefix) {
        self.write(&[Step::Nothing { prefix, table: self.options.table }]);
    }

    /// When there has been no prefix for a while.
    pub fn remove_rules(&mut self) -> Result<(), OpError> {
        if self.rules {
            self.write_all(&self.rule_steps(false))?;
            self.rules = false;
        }
        Ok(())
    }

    pub fn has_rules(&self) -> bool {
        self.rules
    }

    /// Packets that carry our mark come to this device; when it is gone, they are dropped.
    pub fn divert_marked(&mut self, link: IfIndex) -> Result<(), OpError> {
        let (table, priority) = (self.options.mark_table(), self.options.by_mark());
        let mut steps = Vec::new();
        for family in Family::ALL {
            steps.push(Step::Last { family, table, new: true });
            steps.push(Step::Route { prefix: any(family), link, table, new: true });
            steps.push(Step::Rule { family, priority, new: true });
            steps.push(Step::Rule { family, priority: self.options.by_probe(), new: true });
        }
        self.uplink = Some(link);
        self.write_all(&steps)
    }

    /// Packets from the prefix stay marked, also when the kernel delivers to it.
    pub fn shut(&mut self, prefix: Prefix) -> Result<(), OpError> {
        let Some(link) = self.uplink else { return Ok(()) };
        let table = self.options.gate_table();
        self.write_all(&[Step::Route { prefix, link, table, new: true }])
    }

    /// They go their way if it does.
    pub fn unshut(&mut self, prefix: Prefix) -> Result<(), OpError> {
        let Some(link) = self.uplink else { return Ok(()) };
        let table = self.options.gate_table();
        self.write_all(&[Step::Route { prefix, link, table, new: false }])
    }

    /// Nobody marks packets any more.
    pub fn forget_marked(&mut self) -> Result<(), OpError> {
        let (table, priority) = (self.options.mark_table(), self.options.by_mark());
        let mut steps = Vec::new();
        for family in Family::ALL {
            steps.push(Step::Rule { family, priority, new: false });
            steps.push(Step::Rule { family, priority: self.options.by_probe(), new: false });
            steps.push(Step::Last { family, table, new: false });
        }
        self.write_all(&steps)
    }

    /// The first failure, if any. What is there already, or is gone already, is none.
    fn write_all(&mut self, steps: &[Step]) -> Result<(), OpError> {
        let mut results = self.write(steps).into_iter();
        let failed = results.find_map(|result| match result {
            Ok(()) | Err(OpError::Exists | OpError::Missing) => None,
            Err(error) => Some(error),
        });
        failed.map_or(Ok(()), Err)
    }

    fn write(&mut self, steps: &[Step]) -> Vec<Result<(), OpError>> {
        let (options, name) = (self.options, self.device.1.as_str());
        let mut answers: Vec<Result<(), Refused>> = Vec::with_capacity(steps.len());
        let encode = |index: usize, out: &mut Vec<u8>| steps[index].encode(&options, name, out);
        let sent = self.requests.transact_raw(steps.len(), encode, &mut answers);
        let mut results: Vec<Result<(), OpError>> =
            answers.into_iter().map(|answer| answer.map_err(OpError::from)).collect();
        if let Err(error) = sent {
            // What has no answer has an unknown effect; every step can be repeated.
            results = vec![Err(failed(error)); steps.len()];
        }
        results
    }
}

fn failed(error: io::Error) -> OpError {
    super::failed(error)
}

impl Step {
    fn encode(&self, options: &DiversionOptions, device: &str, out: &mut Vec<u8>) -> (u16, u16) {
        match *self {
            Self::Route { prefix, link, table, new } => {
                let scope = match (new, prefix.family()) {
                    (false, _) => libc::RT_SCOPE_NOWHERE, // any
                    (true, Family::Ipv4) => libc::RT_SCOPE_LINK,
                    (true, Family::Ipv6) => libc::RT_SCOPE_UNIVERSE,
                };
                let kind = if new { libc::RTN_UNICAST } else { libc::RTN_UNSPEC };
                put_route(prefix, table, [options.protocol, scope, kind], out);
                push_u32(out, RTA_OIF, link.0);
                if new {
                    (libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
                } else {
                    (libc::RTM_DELROUTE, 0)
                }
            }
            Self::Last { family, table, new } => {
                let kind = if new { libc::RTN_BLACKHOLE } else { libc::RTN_UNSPEC };
                let scope = if new { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_NOWHERE };
                put_route(any(family), table, [options.protocol, scope, kind], out);
                push_u32(out, RTA_PRIORITY, LAST_METRIC);
                if new {
                    (libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
                } else {
                    (libc::RTM_DELROUTE, 0)
                }
            }
            Self::Nothing { prefix, table } => {
                let fields = [!options.protocol, libc::RT_SCOPE_NOWHERE, libc::RTN_UNSPEC];
                put_route(prefix, table, fields, out);
                (libc::RTM_DELROUTE, 0)
            }
            Self::Rule { family, priority, new } => {
                let action = match priority {
                    _ if !new => FR_ACT_UNSPEC, // any
                    _ if priority == options.past() => FR_ACT_GOTO,
                    _ if priority == options.target() => FR_ACT_NOP,
                    _ => FR_ACT_TO_TBL,
                };
                let invert = if new && priority == options.aside() { FIB_RULE_INVERT } else { 0 };
                let family = u8::from(address_family(family));
                out.extend_from_slice(&[family, 0, 0, 0, 0, 0, 0, action]);
                out.extend_from_slice(&invert.to_ne_bytes());
                push_u32(out, FRA_PRIORITY, priority);
                push(out, FRA_PROTOCOL, &[options.protocol]);
                if !new {
                    return (libc::RTM_DELRULE, 0);
                }
                if priority == options.past() {
                    push_text(out, FRA_IIFNAME, device);
                    push_u32(out, FRA_GOTO, options.target());
                } else if priority == options.aside() {
                    push_text(out, FRA_IIFNAME, "lo");
                    push_u32(out, FRA_TABLE, options.table);
                } else if priority == options.by_mark() {
                    push_u32(out, FRA_FWMARK, options.mark);
                    push_u32(out, FRA_FWMASK, u32::MAX);
                    push_u32(out, FRA_TABLE, options.mark_table());
                } else if priority == options.by_probe() {
                    push_u32(out, FRA_FWMARK, options.probe_mark);
                    push_u32(out, FRA_FWMASK, u32::MAX);
                    push_u32(out, FRA_TABLE, options.gate_table());
                }
                (libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
            }
        }
    }
}

const fn any(family: Family) -> Prefix {
    match family {
        Family::Ipv4 => Prefix::V4 { addr: 0, len: 0 },
        Family::Ipv6 => Prefix::V6 { addr: 0, len: 0 },
    }
}

/// The third argument: protocol, scope and type.
fn put_route(prefix: Prefix, table: u32, fields: [u8; 3], out: &mut Vec<u8>) {
    let family = u8::from(address_family(prefix.family()));
    out.extend_from_slice(&[family, prefix.len(), 0, 0, 0]);
    out.extend_from_slice(&fields);
    out.extend_from_slice(&[0; 4]);
    match prefix.addr() {
        IpAddr::V4(ip) => push(out, RTA_DST, &ip.octets()),
        IpAddr::V6(ip) => push(out, RTA_DST, &ip.octets()),
    }
    push_u32(out, RTA_TABLE, table);
}
