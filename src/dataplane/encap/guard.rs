//! What nftables adds to the kernel's tunnel: which packets FE_E takes, counters by reason, the check
//! of the instance, and that nothing comes out of the tunnel for an address of this machine.
//!
//! All of it is on the way of packets that it concerns, and of no others: a chain that forwarded
//! packets go through costs each of them a seventh of what it costs without, however short it is.
//!
//! * **netdev**, at the tunnel device: what comes out of it must be for a prefix in one of four sets
//!   (addresses, and intervals, of each family), or is dropped and counted. Elements are written one
//!   by one over netlink. Nothing else stands between a tunnel and the routes of this machine, so
//!   the device is not up before this is loaded.
//! * **netdev**, at the device that drops: a packet that no tunnel is for is routed to a neighbour
//!   that stands for the reason, and is counted by that neighbour's link-layer address.
//! * **inet**, input: the LISP header, and local addresses.
//!
//! Tables `killick-encap`, loaded by `nft -f -` in one transaction that keeps the sets. They stay when
//! killick exits, like the routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::DropReason;
use crate::dataplane::filter::{FilterError, check_name, run};
use crate::dataplane::netlink::SetOf;
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
pub const SINKS: [DropReason; 3] =
    [DropReason::Policy, DropReason::Unreachable, DropReason::NotHeld];

/// Their neighbours' link-layer address, on the device that drops.
pub fn sink_mac(reason: DropReason) -> [u8; 6] {
    let number = DropReason::ALL.iter().position(|&r| r == reason).expect("ALL has all");
    [2, b'k', 0, 0, 0, u8::try_from(number + 1).expect("a handful")]
}

/// Runs a process: some 10 ms.
pub fn load(device: &str, port: u16, iid: InstanceId) -> Result<(), FilterError> {
    run(&["-f", "-"], &script(device, port, iid)?).map(drop)
}

/// Counters of what the device drops, which it does without them, too. Needs Linux 5.16.
pub fn load_sinks(device: &str) -> Result<(), FilterError> {
    run(&["-f", "-"], &sink_script(device)?).map(drop)
}

/// Chains are deleted and made anew, because their device may have been; an empty declaration
/// first, because deleting what is not there is an error. The LISP header is read behind the eight
/// octets of the UDP header: the flags (I and P must be set, and E and V clear, for a kernel), the
/// next protocol, the instance.
fn script(device: &str, port: u16, iid: InstanceId) -> Result<String, FilterError> {
    check_name(device)?;
    let named = |reason: DropReason| format!("{DROPPED}{}", reason.as_str());
    let not_allowed = named(DropReason::NotAllowed);
    let (malformed, instance) = (named(DropReason::Malformed), named(DropReason::Instance));
    let InstanceId(iid) = iid;
    let mut sets = String::new();
    let mut allowed = String::new();
    for set in SetOf::ALL {
        let (ip, kind) = match set.family {
            Family::Ipv4 => ("ip", "ipv4_addr"),
            Family::Ipv6 => ("ip6", "ipv6_addr"),
        };
        let flags = if set.wide { "flags interval; " } else { "" };
        let name = set.name();
        sets.push_str(&format!("  set {name} {{ type {kind}; {flags}}}\n"));
        allowed.push_str(&format!("    {ip} daddr @{name} goto allowed\n"));
    }
    Ok(format!(
        "table netdev {TABLE} {{
  counter {LATE} {{ }}
  counter {not_allowed} {{ }}
{sets}  chain ingress {{ }}
  chain allowed {{ }}
}}
flush chain netdev {TABLE} ingress
delete chain netdev {TABLE} ingress
flush chain netdev {TABLE} allowed
table netdev {TABLE} {{
  chain allowed {{
    fib daddr oifname \"{device}\" counter name {LATE}
    accept
  }}
  chain ingress {{
    type filter hook ingress device \"{device}\" priority 0; policy drop;
{allowed}    counter name {not_allowed} drop
  }}
}}
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  counter {not_allowed} {{ }}
  counter {malformed} {{ }}
  counter {instance} {{ }}
  chain lisp {{
    @th,64,8 & 0x3c != 0x0c counter name {malformed} drop
    @th,88,8 != {{ 1, 2 }} counter name {malformed} drop
    @th,96,24 != {iid} counter name {instance} drop
  }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    udp dport {port} goto lisp
    iifname \"{device}\" counter name {not_allowed} drop
  }}
}}
"
    ))
}

fn sink_script(device: &str) -> Result<String, FilterError> {
    check_name(device)?;
    let (mut counters, mut drops) = (String::new(), String::new());
    for reason in SINKS {
        let (name, mac) = (reason.as_str(), sink_mac(reason).map(|octet| format!("{octet:02x}")));
        counters.push_str(&format!("  counter {DROPPED}{name} {{ }}\n"));
        let mac = mac.join(":");
        drops.push_str(&format!("    ether daddr {mac} counter name {DROPPED}{name} drop\n"));
    }
    Ok(format!(
        "table netdev {TABLE} {{
{counters}  chain egress {{ }}
}}
flush chain netdev {TABLE} egress
delete chain netdev {TABLE} egress
table netdev {TABLE} {{
  chain egress {{
    type filter hook egress device \"{device}\" priority 0; policy accept;
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
        assert!(sink_script("a\"; }").is_err());
        let script = script("killick-gpe", 4341, InstanceId(77)).unwrap();
        for line in [
            "hook ingress device \"killick-gpe\" priority 0; policy drop;",
            "ip daddr @wide4 goto allowed",
            "iifname \"killick-gpe\" counter name dropped_not_allowed drop",
            "@th,96,24 != 77 counter name dropped_instance drop",
        ] {
            assert!(script.contains(line), "{script}");
        }
        let line = "ether daddr 02:6b:00:00:00:05 counter name dropped_unreachable drop";
        assert!(sink_script("killick-drop").unwrap().contains(line));
    }
}
