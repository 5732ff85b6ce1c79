//! The user-space data plane under load: how many packets go through the TUN device without loss,
//! what one costs, and whether first packets are held and released at that rate. Beside it, in
//! the same run, what plain kernel forwarding of the same packets takes.
//!
//! ```text
//!  [src] s0 ---- s0 [itr] u0 ==== u0 [etr] d0 ---- d0 [dst]     four namespaces, gone at the end
//! ```
//!
//! The sender writes frames into `s0` by AF_PACKET; the kernel's counter of received IP packets in
//! the last namespace says what arrived. The sender's processor also does the kernel's forwarding
//! (a veth pair delivers in the sender's context), the data thread has the other one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use killick::dataplane::encap::Encapsulator;
use killick::dataplane::tun::{Config, HoldLimits, Use};
use killick::driver::lisp::tun::{Settings, Tun};
use killick::types::Prefix;
use killick::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, InstanceId};

#[path = "frames/mod.rs"]
mod frames;

use frames::{
    Sender, command, frame, inside, machine, median, packet, received, settled, thread_times,
};

#[derive(Parser, Debug)]
#[command(about = "Packets per second through the TUN fallback", long_about = None)]
struct Args {
    /// Short runs, few entries: does it work at all?
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Host entries in the table, all of them sent to in turn.
    #[arg(long, default_value_t = 100_000)]
    entries: u32,
    /// Where the figures go. Default: `target/bench/tun.json`, or `tun-quick.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const IID: InstanceId = InstanceId(77);
const ITR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ETR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Nobody's: encapsulated packets end here uncounted by anything but the kernel.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// What the fallback has to carry without loss.
const GOAL_PER_SECOND: u32 = 100_000;
const STEPS_PER_SECOND: [u32; 7] = [100_000, 120_000, 140_000, 160_000, 180_000, 200_000, 220_000];

fn main() -> ExitCode {
    let args = Args::parse();
    // SAFETY: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        println!("tun: SKIPPED, network namespaces and TUN devices need root");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tun: {error}");
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
        let lab = Self { names: [name("src"), name("itr"), name("etr"), name("dst")] };
        for name in &lab.names {
            command("ip", &["netns", "add", name])?;
            lab.ip(name, "link set lo up")?;
        }
        let [src, itr, etr, dst] = &lab.names;
        for (one, other, link) in [(src, itr, "s0"), (itr, etr, "u0"), (etr, dst, "d0")] {
            let mac = "02:00:00:00:00";
            lab.ip(one, &format!("link add {link} address {mac}:01 type veth peer name {link} address {mac}:02 netns {other}"))?;
            lab.ip(one, &format!("link set {link} up"))?;
            lab.ip(other, &format!("link set {link} up"))?;
        }
        lab.ip(itr, &format!("addr add {ITR}/24 dev u0"))?;
        lab.ip(etr, &format!("addr add {ETR}/24 dev u0"))?;
        lab.ip(etr, "addr add 198.51.100.1/24 dev d0")?;
        for (at, to, link) in
            [(itr, ETR, "u0"), (itr, NOWHERE, "u0"), (etr, Ipv4Addr::new(198, 51, 100, 2), "d0")]
        {
            lab.ip(at, &format!("neigh add {to} lladdr 02:00:00:00:00:02 dev {link}"))?;
        }
        lab.ip(etr, "route add 10.0.0.0/8 via 198.51.100.2")?;
        for (name, forward) in [(src, "0"), (itr, "1"), (etr, "0"), (dst, "0")] {
            inside(name, || fs::write("/proc/sys/net/ipv4/ip_forward", forward))??;
        }
        Ok(lab)
    }

    fn ip(&self, namespace: &str, arguments: &str) -> io::Result<()> {
        let mut all = vec!["-n", namespace];
        all.extend(arguments.split(' '));
        command("ip", &all)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = command("ip", &["netns", "del", name]);
        }
    }
}

fn eid(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

/// A frame to each of the entries, `len` octets of IP each.
fn frames(entries: u32, len: usize) -> Vec<Vec<u8>> {
    let payload = vec![7; len - 28];
    let source = Ipv4Addr::new(203, 0, 113, 1);
    (0..entries).map(|n| frame(&packet(source, eid(n), [n as u16 | 1, 9], &payload))).collect()
}

/// The same as an ITR would send them.
fn tunnelled(entries: u32, len: usize) -> Vec<Vec<u8>> {
    let payload = vec![7; len - 28];
    let source = Ipv4Addr::new(203, 0, 113, 1);
    let one = |n: u32| {
        let mut lisp = vec![8, 0, 0, 0, 0, 0, IID.0 as u8, 0];
        lisp.extend_from_slice(&packet(source, eid(n), [n as u16 | 1, 9], &payload));
        frame(&packet(ITR, ETR, [0xc000 | n as u16, 4341], &lisp))
    };
    (0..entries).map(one).collect()
}

// ---- the planes -------------------------------------------------------------------------------

fn open(namespace: &str, source: Ipv4Addr) -> io::Result<Tun> {
    let hold = HoldLimits {
        destinations: 65_536,
        packets: 300_000,
        octets: 256 << 20,
        age: Duration::from_secs(20),
        ..HoldLimits::default()
    };
    let engine = Config {
        used_for: Use::Encapsulate,
        iid: Some(IID),
        source4: Some(source),
        source6: None,
        underlay_mtu: 1500,
        hold,
        first_packets: Vec::new(),
    };
    inside(namespace, || Tun::open(&Settings::new(engine)))?
}

fn apply(tun: &mut Tun, changes: &[EncapChange]) -> io::Result<()> {
    let mut results = Vec::new();
    tun.apply(changes, &mut results);
    match results.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(error) => Err(io::Error::other(error.to_string())),
    }
}

fn pool() -> Prefix {
    "10.0.0.0/8".parse().expect("a prefix")
}

fn group(to: Ipv4Addr) -> EncapChange {
    let members = vec![(IpAddr::V4(to), 1)];
    EncapChange::SetGroup { group: GroupId(0), path: GroupPath::Encap { members, iid: IID } }
}

fn entries(count: u32) -> Vec<EncapChange> {
    let entry = |n| EncapChange::SetEntry {
        prefix: Prefix::host(eid(n).into()),
        action: EntryAction::Group(GroupId(0)),
    };
    (0..count).map(entry).collect()
}

/// Processor time of all data threads of this process.
fn data_thread_time() -> io::Result<Duration> {
    Ok(thread_times("killick-tun")?.into_iter().sum())
}

// ---- the figures ------------------------------------------------------------------------------

struct Row {
    name: &'static str,
    unit: &'static str,
    /// More is better.
    rate: bool,
    ours: Vec<f64>,
    plain: Vec<f64>,
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &'static str, unit: &'static str, value: f64, plain: Option<f64>) {
        let beside = plain.map_or(String::new(), |plain| format!(" (plain {plain:.0})"));
        eprintln!("  {name}: {value:.0} {unit}{beside}");
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let rate = unit == "1/s";
            self.rows.push(Row { name, unit, rate, ours: Vec::new(), plain: Vec::new() });
            self.rows.len() - 1
        });
        self.rows[at].ours.push(value);
        self.rows[at].plain.extend(plain);
    }

    fn failure(&mut self, what: String) {
        eprintln!("  FAILED: {what}");
        self.failures.push(what);
    }

    fn to_json(&self, args: &Args) -> Value {
        let best = |row: &Row, values: &[f64]| {
            let all = values.iter().copied();
            if row.rate { all.max_by(f64::total_cmp) } else { all.min_by(f64::total_cmp) }
        };
        let figure = |row: &Row| {
            // Of the same round: a machine that is slow for a while is so for both.
            let ratios: Vec<f64> = row.ours.iter().zip(&row.plain).map(|(a, b)| a / b).collect();
            let peer = (!row.plain.is_empty()).then_some("plain forwarding");
            json!({
                "name": row.name,
                "value": median(&row.ours),
                "best": best(row, &row.ours),
                "unit": row.unit,
                "peer": peer,
                "peer_value": median(&row.plain),
                "peer_best": best(row, &row.plain),
                "ratio": median(&ratios),
            })
        };
        let measured = |row: &Row| {
            let of = |device: &str, rounds: &[f64]| json!({"name": row.name, "device": device, "unit": row.unit, "rounds": rounds});
            let ours = of("killick", &row.ours);
            if row.plain.is_empty() {
                vec![ours]
            } else {
                vec![ours, of("plain forwarding", &row.plain)]
            }
        };
        json!({
            "machine": machine(),
            "quick": args.quick,
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "entries": args.entries,
            "figures": self.rows.iter().map(figure).collect::<Vec<_>>(),
            "measured": self.rows.iter().flat_map(measured).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }

    fn write(&self, args: &Args) -> io::Result<()> {
        let name = if args.quick { "tun-quick.json" } else { "tun.json" };
        let to = args.output.clone().unwrap_or_else(|| {
            // <target>/tmp is what cargo promises; <target>/bench is beside it.
            let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
            tmp.parent().unwrap_or(tmp).join("bench").join(name)
        });
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&to, format!("{:#}\n", self.to_json(args)))?;
        println!("figures: {}", to.display());
        Ok(())
    }

    fn print(&self) {
        println!("\n{:52}{:>6}{:>12}{:>12}", "median", "unit", "killick", "plain");
        for row in &self.rows {
            let text = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.0}"));
            let (ours, plain) = (text(median(&row.ours)), text(median(&row.plain)));
            println!("{:52}{:>6}{ours:>12}{plain:>12}", row.name, row.unit);
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
    }
}

// ---- the runs ---------------------------------------------------------------------------------

/// Packets sent, and how many of them did not arrive.
fn lost(
    sender: &mut Sender,
    sink: &str,
    per_second: Option<u32>,
    packets: u64,
) -> io::Result<(u64, Duration)> {
    let before = settled(sink)?;
    let (sent, took) = sender.run(per_second, packets)?;
    let arrived = settled(sink)? - before;
    Ok((sent.saturating_sub(arrived), took))
}

struct Direction {
    /// Without loss at the goal's rate, in 64 and in 1400 octets; at any rate; cost of one packet.
    names: [&'static str; 4],
}

const ENCAP: Direction = Direction {
    names: [
        "encap, lost of 100k/s, 64 octets",
        "encap, lost of 100k/s, 1400 octets",
        "encap, greatest rate without loss, 64 octets",
        "encap, data thread per packet, 64 octets",
    ],
};
const DECAP: Direction = Direction {
    names: [
        "decap, lost of 100k/s, 64 octets",
        "decap, lost of 100k/s, 1400 octets",
        "decap, greatest rate without loss, 64 octets",
        "decap, data thread per packet, 64 octets",
    ],
};

/// The three figures of one direction; `make` gives the sender for a packet length.
fn measure(
    args: &Args,
    report: &mut Report,
    direction: &Direction,
    sink: &str,
    make: impl Fn(usize) -> io::Result<Sender>,
    plain: f64,
) -> io::Result<()> {
    let seconds = if args.quick { 2 } else { 10 };
    let goal = u64::from(GOAL_PER_SECOND) * seconds;
    for (name, len) in [(direction.names[0], 64), (direction.names[1], 1400)] {
        let mut sender = make(len)?;
        let (missing, took) = lost(&mut sender, sink, Some(GOAL_PER_SECOND), goal)?;
        report.add(name, "of", missing as f64, None);
        if missing > 0 {
            report.failure(format!("{name}: {missing} of {goal} are missing"));
        }
        let rate = goal as f64 / took.as_secs_f64();
        if rate < 0.98 * f64::from(GOAL_PER_SECOND) {
            report.failure(format!("{name}: the sender made only {rate:.0} per second"));
        }
    }
    let mut sender = make(64)?;
    let mut greatest = 0;
    for rate in STEPS_PER_SECOND {
        let packets = u64::from(rate) * if args.quick { 1 } else { 4 };
        let begun = data_thread_time()?;
        let (missing, took) = lost(&mut sender, sink, Some(rate), packets)?;
        if rate == GOAL_PER_SECOND {
            let each = (data_thread_time()? - begun).as_secs_f64() * 1e9 / packets as f64;
            report.add(direction.names[3], "ns", each, None);
        }
        // A sender that does not make the rate has not shown it.
        if missing > 0 || (packets as f64 / took.as_secs_f64()) < 0.98 * f64::from(rate) {
            break;
        }
        greatest = rate;
    }
    report.add(direction.names[2], "1/s", f64::from(greatest), Some(plain));
    Ok(())
}

/// First packets arrive at the goal's rate, are held, and leave when the mapping comes.
fn measure_hold(args: &Args, report: &mut Report, lab: &Lab) -> io::Result<()> {
    let [src, itr, etr, _] = &lab.names;
    let hosts = 50_000.min(args.entries);
    let mut tun = open(itr, ITR)?;
    let punt = EncapChange::SetEntry { prefix: pool(), action: EntryAction::Punt };
    apply(&mut tun, &[group(NOWHERE), punt])?;
    let mut sender = Sender::open(src, "s0", frames(hosts, 64))?;
    let before = settled(etr)?;
    let packets = u64::from(hosts) * 2;
    sender.run(Some(GOAL_PER_SECOND), packets)?;
    let begun = Instant::now();
    while tun.all_counters().totals.held < packets && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let held = tun.all_counters().totals.held;
    let begun = Instant::now();
    let lead = EncapChange::SetEntry { prefix: pool(), action: EntryAction::Group(GroupId(0)) };
    apply(&mut tun, &[lead])?;
    while received(etr)? - before < held && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begun.elapsed();
    let arrived = settled(etr)? - before;
    report.add("held first packets, not held of 100k/s", "of", (packets - held) as f64, None);
    report.add("held first packets, lost", "of", held.saturating_sub(arrived) as f64, None);
    report.add("held first packets, released", "1/s", held as f64 / took.as_secs_f64(), None);
    if arrived < packets {
        report.failure(format!("held first packets: {arrived} of {packets} arrived"));
    }
    Ok(())
}

fn run(args: &Args) -> io::Result<bool> {
    let lab = Lab::new()?;
    let [src, itr, etr, dst] = &lab.names;
    let mut report = Report::default();
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let hosts = if args.quick { args.entries.min(10_000) } else { args.entries };
    // 1400 octets each would be a lot of memory, and the table is touched by the short ones.
    let count = |len: usize| if len > 64 { hosts.min(1_000) } else { hosts };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let encap_frames = |len| Sender::open(src, "s0", frames(count(len), len));
        let decap_frames = |len| Sender::open(itr, "u0", tunnelled(count(len), len));

        // The same packets, forwarded by the kernel alone, as fast as they come.
        lab.ip(itr, &format!("route add 10.0.0.0/8 via {NOWHERE}"))?;
        let packets = if args.quick { 200_000 } else { 1_000_000 };
        let (missing, took) = lost(&mut encap_frames(64)?, etr, None, packets)?;
        let plain = (packets - missing) as f64 / took.as_secs_f64();
        lab.ip(itr, &format!("route del 10.0.0.0/8 via {NOWHERE}"))?;

        {
            let mut tun = open(itr, ITR)?;
            apply(&mut tun, &[group(NOWHERE)])?;
            apply(&mut tun, &entries(hosts))?;
            let punt = EncapChange::SetEntry { prefix: pool(), action: EntryAction::Punt };
            apply(&mut tun, &[punt])?;
            measure(args, &mut report, &ENCAP, etr, encap_frames, plain)?;
        }
        {
            let mut tun = open(etr, ETR)?;
            apply(&mut tun, &[EncapChange::AllowDecap { prefix: pool() }])?;
            measure(args, &mut report, &DECAP, dst, decap_frames, plain)?;
        }
        measure_hold(args, &mut report, &lab)?;
    }
    report.print();
    report.write(args)?;
    Ok(report.failures.is_empty())
}
