//! What nftables adds to the kernel's tunnel: counters by reason, the check of the instance, and
//! that nothing comes out of the tunnel for an address of this machine.
//!
//! FE_E's prefixes are routes, not elements of a set: one write of a microsecond each. A packet that
//! none of them takes is routed to a neighbour that stands for the reason, on the tunnel device
//! itself, where it has no encapsulation: the kernel drops it even when this table is missing.
//!
//! One table, `inet killick-encap`, loaded by `nft -f -` in one transaction. It stays when
//! killick exits, like the routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::DropReason;
use crate::dataplane::filter::{FilterError, check_name, run};
use crate::types::Family;
use crate::types::lisp::InstanceId;

pub const TABLE: &str = "killick-encap";
pub const LATE: &str = "late";
/// Before the label of a reason: some labels are words of nft's own.
pub const DROPPED: &str = "dropped_";

/// The neighbour that stands for a reason. 240.0.0.0/4 is reserved and fe80::/10 is never forwarded,
/// so no packet has it as destination.
pub fn sink(reason: DropReason, family: Family) -> IpAddr {
    let number = DropReason::ALL.iter().position(|&r| r == reason).expect("ALL has all");
    let number = u8::try_from(number + 1).expect("a handful");
    match family {
        Family::Ipv4 => Ipv4Addr::new(240, 0, 0, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Reasons for which packets are routed to a sink.
pub const SINKS: [DropReason; 4] =
    [DropReason::NotAllowed, DropReason::Policy, DropReason::Unreachable, DropReason::NotHeld];

/// Runs a process: some 10 ms.
pub fn load(device: &str, port: u16, iid: InstanceId) -> Result<(), FilterError> {
    run(&["-f", "-"], &script(device, port, iid)?).map(drop)
}

/// An empty declaration first, because deleting a table that is not there is an error. The LISP
/// header is read behind the eight octets of the UDP header: the flags (I and P must be set, and E
/// and V clear, for a kernel), the next protocol, the instance.
fn script(device: &str, port: u16, iid: InstanceId) -> Result<String, FilterError> {
    check_name(device)?;
    let mut counters = format!("  counter {LATE} {{ }}\n");
    let mut drops = String::new();
    for reason in DropReason::ALL {
        counters.push_str(&format!("  counter {DROPPED}{} {{ }}\n", reason.as_str()));
    }
    for reason in SINKS {
        let name = reason.as_str();
        let (v4, v6) = (sink(reason, Family::Ipv4), sink(reason, Family::Ipv6));
        drops.push_str(&format!(
            "    rt ip nexthop {v4} counter name {DROPPED}{name} drop
    rt ip6 nexthop {v6} counter name {DROPPED}{name} drop\n"
        ));
    }
    let InstanceId(iid) = iid;
    Ok(format!(
        "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
{counters}  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname \"{device}\" counter name {DROPPED}not_allowed drop
    udp dport {port} @th,64,8 & 0x3c != 0x0c counter name {DROPPED}malformed drop
    udp dport {port} @th,88,8 != {{ 1, 2 }} counter name {DROPPED}malformed drop
    udp dport {port} @th,96,24 != {iid} counter name {DROPPED}instance drop
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    oifname != \"{device}\" accept
    meta nfproto ipv4 rt ip nexthop 240.0.0.0/4 goto sinks
    meta nfproto ipv6 rt ip6 nexthop fe80::/10 goto sinks
    iifname \"{device}\" counter name {LATE}
  }}
  chain sinks {{
{drops}  }}
}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_a_rule() {
        assert!(script("a\"; }", 4341, InstanceId(1)).is_err());
        let script = script("killick-gpe", 4341, InstanceId(77)).unwrap();
        for line in [
            "iifname \"killick-gpe\" counter name dropped_not_allowed drop",
            "udp dport 4341 @th,96,24 != 77 counter name dropped_instance drop",
            "rt ip nexthop 240.0.0.1 counter name dropped_not_allowed drop",
            "rt ip6 nexthop fe80::5 counter name dropped_unreachable drop",
        ] {
            assert!(script.contains(line), "{script}");
        }
    }
}
