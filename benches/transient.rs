//! The data plane of relocations under load: packets held and set free per second, what one costs on
//! its way through a path and through a gate, and how long a change takes. Beside it, in the same
//! run, plain kernel forwarding of the same packets, and the kernel's own change of a route.
//!
//! ```text
//!  [src] s0 ---- s0 [old] u0 ==== u0 [new] d0 ---- d0 [dst]     four namespaces, gone at the end
//! ```
//!
//! The sender writes frames into `s0` (or `u0`, for packets that come directly) by AF_PACKET; the
//! kernel's counter of received IP packets behind says what arrived. The sender's processor also
//! does the kernel's forwarding, as a veth pair delivers in the sender's context; the data threads
//! have the other one.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use killick::dataplane::netlink::{Kernel, Options};
use killick::dataplane::transient::{Config, TransientLimits};
use killick::dataplane::{DataPlane, Hop, Kind, Op};
use killick::driver::transient::{Settings, Transient};
use killick::types::seam::IfIndex;
use killick::types::transient::{PathEnd, PathKey, TransientChange};
use killick::types::{Locator, Prefix};

#[path = "frames/mod.rs"]
mod frames;

use frames::{
    Sender, command, frame, inside, machine, median, packet, received, settled, thread_times,
};

#[derive(Parser, Debug)]
#[command(about = "Packets per second through a relocation", long_about = None)]
struct Args {
    /// Short runs: does it work at all?
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the figures go. Default: `target/bench/transient.json`, or `transient-quick.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const OLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NEW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
/// Its packets go nowhere: to have rules in the kernel and no packets.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const KEY: PathKey = PathKey(0x6b69_6c6c_6963_6b21);
const STEADY_PER_S: u32 = 100_000;
const STEPS_PER_S: [u32; 6] = [100_000, 150_000, 200_000, 250_000, 300_000, 400_000];

fn main() -> ExitCode {
    let args = Args::parse();
    // SAFETY: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        println!("transient: SKIPPED, network namespaces and TUN devices need root");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("transient: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the namespaces ---------------------------------------------------------------------------

struct Lab {
    names: [String; 4],
}

impl Lab {
    fn new() -> io::Result<Self> {
        let name = |role: &str| format!("kl-bench-{role}-{}", std::process::id());
        let lab = Self { names: [name("src"), name("old"), name("new"), name("dst")] };
        for name in &lab.names {
            command("ip", &["netns", "add", name])?;
            lab.ip(name, "link set lo up")?;
        }
        let [src, old, new, dst] = &lab.names;
        for (one, other, link) in [(src, old, "s0"), (old, new, "u0"), (new, dst, "d0")] {
            let mac = "02:00:00:00:00";
            lab.ip(one, &format!("link add {link} address {mac}:01 type veth peer name {link} address {mac}:02 netns {other}"))?;
            lab.ip(one, &format!("link set {link} up"))?;
            lab.ip(other, &format!("link set {link} up"))?;
        }
        lab.ip(old, &format!("addr add {OLD}/24 dev u0"))?;
        lab.ip(new, &format!("addr add {NEW}/24 dev u0"))?;
        lab.ip(new, "addr add 198.51.100.1/24 dev d0")?;
        lab.ip(old, &format!("neigh add {NEW} lladdr 02:00:00:00:00:02 dev u0"))?;
        lab.ip(new, &format!("neigh add {OLD} lladdr 02:00:00:00:00:01 dev u0"))?;
        lab.ip(new, "neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev d0")?;
        lab.ip(old, &format!("route add 10.0.0.0/8 via {NEW}"))?;
        lab.ip(old, "route add 203.0.113.0/24 dev s0")?;
        lab.ip(new, &format!("route add 203.0.113.0/24 via {OLD}"))?;
        lab.ip(new, "route add 10.0.0.0/8 via 198.51.100.2")?;
        for (name, forward) in [(src, "0"), (old, "1"), (new, "1"), (dst, "0")] {
            inside(name, || {
                fs::write("/proc/sys/net/ipv4/ip_forward", forward)?;
                fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")
            })??;
        }
        Ok(lab)
    }

    fn ip(&self, namespace: &str, arguments: &str) -> io::Result<()> {
        let mut all = vec!["-n", namespace];
        all.extend(arguments.split(' '));
        command("ip", &all)
    }

    /// Frames to one host, of so many octets of IP.
    fn sender(&self, from: usize, link: &str, len: usize) -> io::Result<Sender> {
        let payload = vec![7; len - 28];
        let source = Ipv4Addr::new(203, 0, 113, 1);
        let frames = vec![frame(&packet(source, HOST, [9, 9], &payload))];
        Sender::open(&self.names[from], link, frames)
    }

    fn open(&self, anchor: usize) -> io::Result<Transient> {
        let limits = TransientLimits {
            packets_per_prefix: 1 << 20,
            octets_per_prefix: 1 << 30,
            packets: 1 << 20,
            octets: 1 << 30,
            flush_packets_per_s: u32::MAX,
            hold: Duration::from_secs(60),
            quiet: Duration::from_secs(60),
            forward: Duration::from_secs(60),
            gate: Duration::from_secs(120),
            ..TransientLimits::default()
        };
        let config = Config { limits, ..Config::new(end(anchor)) };
        let settings = Settings { uplink: None, ..Settings::new(config) };
        inside(&self.names[anchor], || Transient::open(&settings))?
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = command("ip", &["netns", "del", name]);
        }
    }
}

const SRC: usize = 0;
const AT_OLD: usize = 1;
const AT_NEW: usize = 2;
const DST: usize = 3;

fn end(anchor: usize) -> PathEnd {
    let ipv4 = Some(if anchor == AT_OLD { OLD } else { NEW });
    PathEnd { locator: Locator { ipv4, ipv6: None }, port: 47_300 }
}

fn prefix() -> Prefix {
    Prefix::host(HOST.into())
}

fn apply(plane: &mut Transient, change: &TransientChange) -> io::Result<()> {
    plane.apply(change).map_err(io::Error::other)
}

// ---- the figures ------------------------------------------------------------------------------

struct Row {
    name: String,
    unit: &'static str,
    ours: Vec<f64>,
    plain: Vec<f64>,
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &str, unit: &'static str, value: f64, plain: Option<f64>) {
        let beside = plain.map_or(String::new(), |plain| format!(" (kernel alone {plain:.1})"));
        eprintln!("  {name}: {value:.1} {unit}{beside}");
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let name = name.to_owned();
            self.rows.push(Row { name, unit, ours: Vec::new(), plain: Vec::new() });
            self.rows.len() - 1
        });
        self.rows[at].ours.push(value);
        self.rows[at].plain.extend(plain);
    }

    fn none_lost(&mut self, what: &str, lost: u64) {
        self.add(&format!("{what}, lost"), "of", lost as f64, None);
        if lost > 0 {
            self.failures.push(format!("{what}: {lost} lost"));
        }
    }

    fn write(&self, args: &Args) -> io::Result<()> {
        let name = if args.quick { "transient-quick.json" } else { "transient.json" };
        let to = args.output.clone().unwrap_or_else(|| {
            // <target>/tmp is what cargo promises; <target>/bench is beside it.
            let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
            tmp.parent().unwrap_or(tmp).join("bench").join(name)
        });
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        let figure = |row: &Row| {
            let peer = (!row.plain.is_empty()).then_some("kernel alone");
            json!({
                "name": row.name, "unit": row.unit, "value": median(&row.ours), "rounds": row.ours,
                "peer": peer, "peer_value": median(&row.plain), "peer_rounds": row.plain,
            })
        };
        let all = json!({
            "machine": machine(),
            "quick": args.quick,
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "figures": self.rows.iter().map(figure).collect::<Vec<_>>(),
            "failures": self.failures,
        });
        fs::write(&to, format!("{all:#}\n"))?;
        println!("figures: {}", to.display());
        Ok(())
    }

    fn print(&self) {
        println!("\n{:56}{:>6}{:>12}{:>14}", "median", "unit", "killick", "kernel alone");
        for row in &self.rows {
            let text = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
            let (ours, plain) = (text(median(&row.ours)), text(median(&row.plain)));
            println!("{:56}{:>6}{ours:>12}{plain:>14}", row.name, row.unit);
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
    }
}

// ---- the runs ---------------------------------------------------------------------------------

/// Processor time of the data threads, the old anchor's first.
fn times() -> io::Result<Vec<Duration>> {
    thread_times("killick-hold")
}

fn per_packet(before: Duration, after: Duration, packets: u64) -> f64 {
    (after.saturating_sub(before)).as_secs_f64() * 1e9 / packets.max(1) as f64
}

/// The rate of plain forwarding as fast as it goes; per second.
fn forwarded(lab: &Lab, packets: u64) -> io::Result<f64> {
    let sink = &lab.names[AT_NEW];
    let mut sender = lab.sender(SRC, "s0", 64)?;
    let before = settled(sink)?;
    let (_, took) = sender.run(None, packets)?;
    Ok((settled(sink)? - before) as f64 / took.as_secs_f64())
}

fn wait(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<Duration> {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other(format!("{what}: not within 10 s")));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(begun.elapsed())
}

/// A burst that waits, and goes: to the kernel, or by a path.
fn hold(lab: &Lab, report: &mut Report, len: usize, by_path: bool) -> io::Result<()> {
    // Less than the device's queue, so that the sender may be faster than the thread.
    const PACKETS: u64 = 40_000;
    let key = KEY;
    let mut old = lab.open(AT_OLD)?;
    let mut new = lab.open(AT_NEW)?;
    apply(&mut old, &TransientChange::Hold { prefix: prefix(), key })?;
    let mut sender = lab.sender(SRC, "s0", len)?;
    let begun = Instant::now();
    let before = times()?;
    sender.run(None, PACKETS)?;
    wait("all are held", || Ok(old.totals().waiting == PACKETS))?;
    let took = begun.elapsed();
    let after = times()?;
    if !by_path {
        let rate = PACKETS as f64 / took.as_secs_f64();
        report.add(&format!("held, {len} octets"), "1/s", rate, None);
        let each = per_packet(before[0], after[0], PACKETS);
        report.add(&format!("held, data thread, {len} octets"), "ns", each, None);
    }
    let sink = &lab.names[if by_path { DST } else { AT_NEW }];
    let arrived = settled(sink)?;
    let before = times()?;
    let (what, change) = if by_path {
        let from = end(AT_OLD);
        apply(&mut new, &TransientChange::Gate { prefix: prefix(), key, from })?;
        let to = end(AT_NEW);
        ("flushed by a path", TransientChange::Forward { prefix: prefix(), key, to })
    } else {
        ("given back to the kernel", TransientChange::Release { prefix: prefix() })
    };
    let begun = Instant::now();
    apply(&mut old, &change)?;
    // The threads count without a look into another namespace.
    wait("all are gone", || {
        let (old, new) = (old.totals(), new.totals());
        let out = if by_path { new.written } else { old.written };
        Ok(out + new.all_dropped() >= PACKETS)
    })?;
    let took = begun.elapsed();
    let after = times()?;
    report.add(&format!("{what}, {len} octets"), "1/s", PACKETS as f64 / took.as_secs_f64(), None);
    for (at, side) in ["the old anchor's", "the new anchor's"].iter().enumerate() {
        if by_path || at == 0 {
            let name = format!("{what}, {side} data thread, {len} octets");
            report.add(&name, "ns", per_packet(before[at], after[at], PACKETS), None);
        }
    }
    let lost = PACKETS.saturating_sub(settled(sink)? - arrived);
    report.none_lost(&format!("{what}, {len} octets"), lost);
    Ok(())
}

/// Packets that come steadily: through a path and out of it, or directly through a gate.
fn steady(args: &Args, lab: &Lab, report: &mut Report, direct: bool, plain: f64) -> io::Result<()> {
    let key = KEY;
    let mut old = lab.open(AT_OLD)?;
    let mut new = lab.open(AT_NEW)?;
    apply(&mut new, &TransientChange::Gate { prefix: prefix(), key, from: end(AT_OLD) })?;
    apply(&mut old, &TransientChange::Forward { prefix: prefix(), key, to: end(AT_NEW) })?;
    let what = if direct { "a gate" } else { "a path" };
    let sink = &lab.names[DST];
    let mut greatest = 0;
    for rate in STEPS_PER_S {
        let mut sender = if direct {
            // Past the old anchor, as the routers send them after the move.
            lab.sender(AT_OLD, "u0", 64)?
        } else {
            lab.sender(SRC, "s0", 64)?
        };
        let packets = u64::from(rate) * if args.quick { 1 } else { 3 };
        let before = (settled(sink)?, times()?);
        let (sent, took) = sender.run(Some(rate), packets)?;
        let lost = sent.saturating_sub(settled(sink)? - before.0);
        let after = times()?;
        if rate == STEADY_PER_S {
            for (at, side) in ["the old anchor's", "the new anchor's"].iter().enumerate() {
                if !direct || at == 1 {
                    let each = per_packet(before.1[at], after[at], sent);
                    report.add(&format!("{what}, {side} data thread, 100k/s"), "ns", each, None);
                }
            }
            report.none_lost(&format!("{what}, 100k/s"), lost);
        }
        // A sender that does not make the rate has not shown it.
        if lost > 0 || (sent as f64 / took.as_secs_f64()) < 0.98 * f64::from(rate) {
            break;
        }
        greatest = rate;
    }
    let name = format!("{what}, greatest rate without loss");
    report.add(&name, "1/s", f64::from(greatest), Some(plain));
    Ok(())
}

fn percentile(values: &mut [f64], of_100: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * of_100 / 100]
}

/// How long a change takes until it is in the kernel; and the kernel's own change of a route.
fn changes(args: &Args, lab: &Lab, report: &mut Report) -> io::Result<()> {
    let count = if args.quick { 200 } else { 2000 };
    let hosts = (0..count).map(|n: u32| Prefix::host(Ipv4Addr::from(0x0a01_0000 + n).into()));
    let hosts: Vec<Prefix> = hosts.collect();
    let mut old = lab.open(AT_OLD)?;
    let timed = |plane: &mut Transient, change: TransientChange| -> io::Result<f64> {
        let begun = Instant::now();
        apply(plane, &change)?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let each = |plane: &mut Transient, make: &dyn Fn(Prefix) -> TransientChange| {
        hosts.iter().map(|&prefix| timed(plane, make(prefix))).collect::<io::Result<Vec<f64>>>()
    };
    let mut holds = each(&mut old, &|prefix| TransientChange::Hold { prefix, key: KEY })?;
    let to = end(AT_NEW);
    let mut forwards = each(&mut old, &|prefix| TransientChange::Forward { prefix, key: KEY, to })?;
    let begun = Instant::now();
    each(&mut old, &|prefix| TransientChange::Release { prefix })?;
    wait("all are released", || Ok(old.paths(None, 1).is_empty()))?;
    let released = f64::from(count) / begun.elapsed().as_secs_f64();
    drop(old);
    let mut routes = inside(&lab.names[AT_OLD], || -> io::Result<Vec<f64>> {
        let mut kernel = Kernel::open(Options::default())?;
        let name = c"u0";
        // SAFETY: a NUL-terminated string.
        let link = IfIndex(unsafe { libc::if_nametoindex(name.as_ptr()) });
        let hop = Hop { link, gateway: Some(NEW.into()) };
        let mut results = Vec::new();
        let mut timed = |op: Op| {
            let begun = Instant::now();
            kernel.apply(&[op], &mut results);
            begun.elapsed().as_secs_f64() * 1e6
        };
        let kind = Kind::Bgp;
        let times = hosts.iter().map(|&prefix| timed(Op::AddRoute { prefix, kind, hop })).collect();
        hosts.iter().for_each(|&prefix| {
            timed(Op::DeleteRoute { prefix, kind });
        });
        Ok(times)
    })??;
    for (of_100, name) in [(50, "median"), (99, "99 of 100")] {
        let plain = percentile(&mut routes, of_100);
        let hold = percentile(&mut holds, of_100);
        report.add(
            &format!("a hold in the kernel (a route added), {name}"),
            "us",
            hold,
            Some(plain),
        );
        let forward = percentile(&mut forwards, of_100);
        report.add(&format!("a hold becomes a path, {name}"), "us", forward, None);
    }
    report.add("holds released", "1/s", released, None);
    Ok(())
}

fn run(args: &Args) -> io::Result<bool> {
    let lab = Lab::new()?;
    let mut report = Report::default();
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let packets = if args.quick { 200_000 } else { 1_000_000 };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        // Before there has ever been a rule in this namespace, in the first round.
        let plain = forwarded(&lab, packets)?;
        {
            let mut old = lab.open(AT_OLD)?;
            let none = forwarded(&lab, packets)?;
            report.add("forwarding, nothing held", "1/s", none, Some(plain));
            let other = Prefix::host(OTHER.into());
            apply(&mut old, &TransientChange::Hold { prefix: other, key: KEY })?;
            let some = forwarded(&lab, packets)?;
            report.add("forwarding, another node is held", "1/s", some, Some(plain));
        }
        for len in [64, 1400] {
            hold(&lab, &mut report, len, false)?;
            hold(&lab, &mut report, len, true)?;
        }
        steady(args, &lab, &mut report, false, plain)?;
        steady(args, &lab, &mut report, true, plain)?;
        changes(args, &lab, &mut report)?;
    }
    let _ = received(&lab.names[DST])?;
    report.print();
    report.write(args)?;
    Ok(report.failures.is_empty())
}
