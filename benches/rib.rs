//! The RIB alone, in process: from UPDATE bodies to octets for peers, without sockets.
//!
//! `cargo bench --bench rib [-- <prefixes> [moves]]` prints per scenario the time per prefix and
//! the peak memory. It is the tool for working on the hot path; comparisons with other daemons are
//! made elsewhere, over TCP.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant as Clock};

use killick::proto::bgp::policy::{ExportPolicy, ImportPolicy};
use killick::proto::bgp::rib::{FLUSH_BUDGET, PeerId, PeerInfo, PeerKind, Rib, RibConfig};
use killick::types::{Instant, Prefix};
use killick::wire::bgp::{Attributes, EncodedAttributes, Negotiated, NextHop, Packer, next_frame};

const NEXT_HOPS: u32 = 64;
/// Messages in one read of a full socket buffer.
const BATCH: usize = 16;

fn info(number: u8) -> PeerInfo {
    let addr = Ipv4Addr::new(192, 0, 2, number);
    PeerInfo {
        kind: PeerKind::Client,
        negotiated: Negotiated {
            local_as: 65000,
            peer_as: 65000,
            ibgp: true,
            four_octet_as: true,
            ipv4: true,
            ipv6: true,
            extended_next_hop_v4: false,
            max_len: 4096,
        },
        router_id: addr,
        addr: addr.into(),
        local_v4: None,
        local_v6: None,
        enhanced_refresh: false,
        import: ImportPolicy::accept_all(),
        export: ExportPolicy::send_all(),
    }
}

fn attributes(number: u32, local_pref: u32) -> Attributes {
    let next_hop = NextHop::V4(Ipv4Addr::from(0xc633_6400 + number));
    Attributes { local_pref: Some(local_pref), ..Attributes::local(next_hop) }
}

fn prefix(n: u32, v6: bool) -> Prefix {
    if v6 {
        Prefix::v6((0x2001_0db8 << 96) + (u128::from(n) << 64), 128).expect("a host prefix")
    } else {
        Prefix::v4(0x0a00_0000 + n, 32).expect("a host prefix")
    }
}

/// Bodies of packed UPDATEs: prefix `n` has next hop `n` modulo 64.
fn bodies(count: u32, v6: bool, scatter: bool) -> Vec<Vec<u8>> {
    let n = info(1).negotiated;
    let mut out = Vec::new();
    for hop in 0..NEXT_HOPS {
        let mut a = attributes(hop, 100);
        if v6 {
            a.next_hop = NextHop::from(std::net::IpAddr::V6(
                (0x2001_0db8_u128 << 96 | u128::from(hop)).into(),
            ));
        }
        let encoded = EncodedAttributes::new(&a, &n);
        let family = prefix(0, v6).family();
        let mut packer = Packer::announce(&mut out, &encoded, family, n.max_len).expect("fits");
        for k in (hop..count).step_by(NEXT_HOPS as usize) {
            // An odd multiplier is a permutation of 32 bits: prefixes all over the address space.
            let k = if scatter { k.wrapping_mul(0x9e37_79b1) } else { k };
            packer.push(prefix(k, v6));
        }
        packer.finish();
    }
    split(&out)
}

fn split(octets: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = octets;
    let mut list = Vec::new();
    while let Ok(Some(frame)) = next_frame(rest, 4096) {
        list.push(frame.body.to_vec());
        rest = &rest[frame.len..];
    }
    list
}

/// VmHWM since the last call of `reset`, in MiB, and VmRSS.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim_start_matches(':').split_whitespace().next())
            .and_then(|kib| kib.parse::<f64>().ok())
            .map_or(0.0, |kib| kib / 1024.0)
    };
    (field("VmHWM"), field("VmRSS"))
}

fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn report(name: &str, took: Duration, count: usize, before: f64) {
    let (peak, _) = memory();
    println!(
        "{name:<44} {:>7.1} ms {:>7.1} ns each, peak {:>6.1} MiB over the start ({:.1} B each)",
        took.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e9 / count as f64,
        peak - before,
        (peak - before) * 1048576.0 / count as f64,
    );
}

struct Counted {
    messages: usize,
    octets: usize,
}

fn load(rib: &mut Rib, peer: PeerId, bodies: &[Vec<u8>], sent: &mut Counted) -> Duration {
    let start = Clock::now();
    for batch in bodies.chunks(BATCH) {
        for body in batch {
            let outcome = rib.handle_update(peer, body, Instant::ZERO);
            assert!(outcome.error.is_none());
        }
        flush(rib, sent);
    }
    start.elapsed()
}

fn flush(rib: &mut Rib, sent: &mut Counted) {
    while rib.has_pending() {
        rib.flush(FLUSH_BUDGET, &mut |_, octets| {
            sent.messages += 1;
            sent.octets += black_box(octets).len();
        });
    }
}

fn rib_with(peers: u8) -> Rib {
    let mut rib = Rib::new(RibConfig::new(65000, Ipv4Addr::new(192, 0, 2, 255), 42));
    for number in 1..=peers {
        rib.add_peer(PeerId(number.into()), info(number));
    }
    flush(&mut rib, &mut Counted { messages: 0, octets: 0 });
    rib
}

fn scenario_load(name: &str, count: u32, peers: u8, v6: bool, scatter: bool) -> Rib {
    let bodies = bodies(count, v6, scatter);
    let mut sent = Counted { messages: 0, octets: 0 };
    reset_peak();
    let (_, before) = memory();
    let mut rib = rib_with(peers);
    let took = load(&mut rib, PeerId(1), &bodies, &mut sent);
    report(&format!("{name}, {peers} peers"), took, count as usize, before);
    assert!(sent.octets > count as usize * 5 * (usize::from(peers) - 1));
    rib
}

/// One UPDATE per move, as anchors send them; `distinct`: each with attributes never seen before.
fn scenario_moves(rib: &mut Rib, name: &str, table: u32, moves: u32, distinct: bool) {
    let n = info(1).negotiated;
    let mut out = Vec::new();
    for k in 0..moves {
        let local_pref = if distinct { 1_000_000 + k } else { 200 + k / table };
        let encoded = EncodedAttributes::new(&attributes((k * 7 + 1) % NEXT_HOPS, local_pref), &n);
        let family = prefix(0, false).family();
        let mut packer = Packer::announce(&mut out, &encoded, family, 4096).expect("fits");
        packer.push(prefix(k.wrapping_mul(7919) % table, false));
        packer.finish();
    }
    let bodies = split(&out);
    let (_, before) = memory();
    reset_peak();
    let mut sent = Counted { messages: 0, octets: 0 };
    let peer = PeerId(if distinct { 2 } else { 1 });
    for (how, batch) in [("one flush each", 1), ("flush per 800", 800)] {
        let start = Clock::now();
        for chunk in bodies.chunks(batch) {
            for body in chunk {
                rib.handle_update(peer, body, Instant::ZERO);
            }
            flush(rib, &mut sent);
        }
        report(&format!("{name}, {how}"), start.elapsed(), moves as usize, before);
    }
}

fn main() {
    let count = std::env::args().skip(1).find_map(|a| a.parse::<u32>().ok()).unwrap_or(1_000_000);
    let mut rib = scenario_load("load /32, dense", count, 2, false, false);
    scenario_moves(&mut rib, "moves, 64 sets", count, 600_000, false);
    scenario_moves(&mut rib, "moves, own set each", count, 200_000, true);
    if std::env::args().any(|a| a == "moves") {
        return; // for a profiler
    }
    let start = Clock::now();
    rib.add_peer(PeerId(9), info(9));
    let mut sent = Counted { messages: 0, octets: 0 };
    flush(&mut rib, &mut sent);
    println!(
        "{:<44} {:>7.1} ms, {} octets",
        "dump to a new peer",
        start.elapsed().as_secs_f64() * 1e3,
        sent.octets
    );
    let start = Clock::now();
    rib.peer_down(PeerId(1), &[]);
    println!("{:<44} {:>7.1} ms", "peer down (no flush)", start.elapsed().as_secs_f64() * 1e3);
    flush(&mut rib, &mut sent);
    println!("{:<44} {:>7.1} ms", "peer down, all told", start.elapsed().as_secs_f64() * 1e3);
    drop(rib);
    drop(scenario_load("load /32, scattered", count, 2, false, true));
    drop(scenario_load("load /32, dense", count, 11, false, false));
    drop(scenario_load("load /128", count, 2, true, false));
}
