//! What it costs to tell the kernel: entries of FE_I by nexthop objects, one host that moves, and a
//! group of a million hosts that moves with one write; beside `ip -batch` doing the same, and
//! beside the same write as the kernel does it by default.
//!
//! In network namespaces of its own, which end with it. `docs/performance.md` says how to read it.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant as Clock};

use clap::Parser;
use serde_json::{Value, json};

use killick::dataplane::encap::gpe::{Gpe, Options};
use killick::dataplane::encap::{Encapsulator, Reconciler};
use killick::types::lisp::{EncapChange, EntryAction, GroupId, GroupPath, InstanceId};
use killick::types::{Instant, Prefix};

#[derive(Parser, Debug)]
#[command(about = "Installs forwarding entries in the kernel", long_about = None)]
struct Args {
    /// A tenth of the entries, once.
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// This step only (again for more): entries, moves, many-groups, ipv6, reconciled, iproute.
    #[arg(long = "step", value_name = "NAME")]
    steps: Vec<String>,
    /// Where the figures go. Default: `target/bench/dataplane_install.json`, or `…-quick.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Changes per call, as the reconciler writes them.
const BATCH: usize = 256;
/// Anchors.
const GROUPS: u32 = 1_000;
/// Groups of which each has few hosts.
const MANY_GROUPS: u32 = 50_000;

/// One figure: ours in each round, and what stands beside it.
struct Row {
    name: &'static str,
    unit: &'static str,
    values: Vec<f64>,
    peer: Option<(&'static str, Vec<f64>)>,
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Report {
    fn row(&mut self, name: &'static str, unit: &'static str) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name, unit, values: Vec::new(), peer: None });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    fn add(&mut self, name: &'static str, unit: &'static str, value: f64) {
        eprintln!("  {name} {value:.1} {unit}");
        self.row(name, unit).values.push(value);
    }

    fn add_peer(&mut self, name: &'static str, unit: &'static str, peer: &'static str, value: f64) {
        eprintln!("  {name} {value:.1} {unit} ({peer})");
        let row = self.row(name, unit);
        row.peer.get_or_insert_with(|| (peer, Vec::new())).1.push(value);
    }

    fn figures(&self) -> Value {
        let figure = |row: &Row| {
            let value = median(&row.values);
            let peer_value = row.peer.as_ref().and_then(|(_, values)| median(values));
            json!({
                "name": row.name,
                "value": value,
                "unit": row.unit,
                "peer": row.peer.as_ref().map(|(name, _)| name),
                "peer_value": peer_value,
                "ratio": value.zip(peer_value).map(|(ours, theirs)| ours / theirs),
            })
        };
        self.rows.iter().map(figure).collect()
    }

    fn write(&self, args: &Args) -> io::Result<()> {
        let name =
            if args.quick { "dataplane_install-quick.json" } else { "dataplane_install.json" };
        let to = args.output.clone().unwrap_or_else(|| {
            // <target>/tmp is what cargo promises; <target>/bench is beside it.
            let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
            tmp.parent().unwrap_or(tmp).join("bench").join(name)
        });
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        let measured = |row: &Row| {
            json!({
                "name": row.name,
                "unit": row.unit,
                "rounds": row.values,
                "peer_rounds": row.peer.as_ref().map(|(_, values)| values),
            })
        };
        let value = json!({
            "machine": machine(),
            "quick": args.quick,
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "figures": self.figures(),
            "measured": self.rows.iter().map(measured).collect::<Vec<_>>(),
        });
        fs::write(&to, format!("{value:#}\n"))?;
        println!("figures: {}", to.display());
        Ok(())
    }

    fn print(&self) {
        println!("{:40}{:>6}{:>14}{:>14}{:>8}  peer", "median", "unit", "killick", "peer", "ratio");
        for figure in self.figures().as_array().into_iter().flatten() {
            let number = |key: &str| {
                figure[key].as_f64().map_or_else(|| "-".to_owned(), |n| format!("{n:.2}"))
            };
            println!(
                "{:40}{:>6}{:>14}{:>14}{:>8}  {}",
                figure["name"].as_str().unwrap_or_default(),
                figure["unit"].as_str().unwrap_or_default(),
                number("value"),
                number("peer_value"),
                number("ratio"),
                figure["peer"].as_str().unwrap_or("-"),
            );
        }
    }
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")?.split_once(':').map(|(_, v)| v.trim().to_owned())
    });
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": model,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "load": read("/proc/loadavg").split(' ').next(),
    })
}

type Step = fn(&mut Report, u32) -> io::Result<()>;
const STEPS: [(&str, Step); 6] = [
    ("entries", entries),
    ("moves", moves),
    ("many-groups", many_groups),
    ("ipv6", ipv6),
    ("reconciled", reconciled),
    ("iproute", iproute),
];

fn main() -> ExitCode {
    let args = Args::parse();
    // SAFETY: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED dataplane_install: network namespaces need root");
        return ExitCode::SUCCESS;
    }
    let mut report = Report::default();
    for round in 0..if args.quick { 1 } else { args.rounds.max(1) } {
        eprintln!("round {}", round + 1);
        for (name, step) in STEPS {
            if !args.steps.is_empty() && !args.steps.iter().any(|wanted| wanted == name) {
                continue;
            }
            // A namespace belongs to a thread, and what is in it ends with it.
            let result = std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    enter_new()?;
                    let done = step(&mut report, if args.quick { 100_000 } else { 1_000_000 });
                    clear();
                    done
                });
                thread.join().unwrap_or_else(|_| Err(io::Error::other("the bench itself failed")))
            });
            if let Err(error) = result {
                eprintln!("dataplane_install: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    report.print();
    match report.write(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dataplane_install: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The routes first. A namespace that ends with a million of them and thousands of nexthop objects
/// takes the kernel half an hour, since each object's end walks all routes, and nobody on the machine
/// can make another namespace meanwhile.
fn clear() {
    for family in ["-4", "-6"] {
        for protocol in [107, 108] {
            let protocol = protocol.to_string();
            let flush = ["route", "flush", "table", "all", "proto", &protocol];
            // There are none of some kinds.
            let _ = Command::new("ip").arg(family).args(flush).output();
        }
    }
}

fn enter_new() -> io::Result<()> {
    // SAFETY: no memory involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without any address the kernel takes every gateway for a broadcast address.
    match Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other("cannot set the loopback interface up")),
    }
}

fn open() -> io::Result<Gpe> {
    let options = Options {
        ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        ipv6: Some("2001:db8::1".parse().expect("an address")),
        iid: InstanceId(7),
        ..Options::default()
    };
    Gpe::open(options).map_err(io::Error::other)
}

fn host(number: u32) -> Prefix {
    Prefix::v4(0x0a00_0000 + number, 32).expect("32 fits")
}

fn host6(number: u32) -> Prefix {
    Prefix::v6(0x2001_0db8_000a << 80 | u128::from(number), 128).expect("128 fits")
}

fn locator(number: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0000 + number).into()
}

fn set_group(group: u32, remote: u32) -> EncapChange {
    let path = GroupPath::Encap { members: vec![(locator(remote), 1)], iid: InstanceId(7) };
    EncapChange::SetGroup { group: GroupId(group), path }
}

fn set_entry(prefix: Prefix, group: u32) -> EncapChange {
    EncapChange::SetEntry { prefix, action: EntryAction::Group(GroupId(group)) }
}

/// All of them, in calls of [`BATCH`]; the time of the calls alone.
fn install(
    gpe: &mut impl Encapsulator,
    changes: impl Iterator<Item = EncapChange>,
) -> io::Result<Duration> {
    let mut changes = changes.peekable();
    let (mut batch, mut results) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    let mut spent = Duration::ZERO;
    while changes.peek().is_some() {
        batch.clear();
        batch.extend(changes.by_ref().take(BATCH));
        results.clear();
        let start = Clock::now();
        gpe.apply(&batch, &mut results);
        spent += start.elapsed();
        if let Some(error) = results.drain(..).find_map(Result::err) {
            return Err(io::Error::other(error));
        }
    }
    Ok(spent)
}

/// One call, which must succeed; in microseconds.
fn timed(
    gpe: &mut Gpe,
    change: EncapChange,
    results: &mut Vec<Result<(), killick::dataplane::encap::EncapError>>,
) -> io::Result<f64> {
    results.clear();
    let change = [change];
    let start = Clock::now();
    gpe.apply(&change, results);
    let spent = start.elapsed();
    match results.pop() {
        Some(Ok(())) => Ok(spent.as_secs_f64() * 1e6),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Err(io::Error::other("no result")),
    }
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn per_second(count: u32, spent: Duration) -> f64 {
    f64::from(count) / spent.as_secs_f64()
}

/// Spread over the hosts without an order that caches like.
fn scattered(number: u32, of: u32) -> u32 {
    (u64::from(number) * 2_654_435_761 % u64::from(of)) as u32
}

/// So many hosts in [`GROUPS`] groups, then what FE_E takes out, then hosts that move.
fn entries(report: &mut Report, hosts: u32) -> io::Result<()> {
    let mut gpe = open()?;
    install(&mut gpe, (0..GROUPS).map(|group| set_group(group, group)))?;
    let before = slab_bytes();
    let spent = install(&mut gpe, (0..hosts).map(|n| set_entry(host(n), n % GROUPS)))?;
    report.add("install_ipv4_per_s", "1/s", per_second(hosts, spent));
    if let Some((before, after)) = before.zip(slab_bytes()) {
        let each = after.saturating_sub(before) as f64 / f64::from(hosts);
        report.add("install_ipv4_kernel_bytes", "B", each);
    }
    let mut results = Vec::new();
    let mut samples = Vec::new();
    for n in 0..hosts / 10 {
        let number = scattered(n, hosts);
        samples.push(timed(
            &mut gpe,
            set_entry(host(number), (number + 1) % GROUPS),
            &mut results,
        )?);
    }
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    samples.sort_by(f64::total_cmp);
    report.add("host_move_p50", "us", percentile(&samples, 0.5));
    report.add("host_move_p99", "us", percentile(&samples, 0.99));
    report.add("host_move_mean", "us", mean);
    let allowed = hosts / 10;
    let allow = |n| EncapChange::AllowDecap { prefix: host(n) };
    let spent = install(&mut gpe, (0..allowed).map(allow))?;
    report.add("allow_decap_per_s", "1/s", per_second(allowed, spent));
    Ok(())
}

/// All hosts in one group, which moves.
fn moves(report: &mut Report, hosts: u32) -> io::Result<()> {
    let mut gpe = open()?;
    install(&mut gpe, [set_group(0, 0)].into_iter())?;
    install(&mut gpe, (0..hosts).map(|n| set_entry(host(n), 0)))?;
    let mut results = Vec::new();
    let mut samples = Vec::new();
    for n in 1..=500 {
        samples.push(timed(&mut gpe, set_group(0, n), &mut results)?);
    }
    samples.sort_by(f64::total_cmp);
    report.add("group_move_p50", "us", percentile(&samples, 0.5));
    report.add("group_move_p99", "us", percentile(&samples, 0.99));
    // The kernel's default: it tells of every route.
    fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "1")?;
    let mut samples = Vec::new();
    for n in 1..=5 {
        samples.push(timed(&mut gpe, set_group(0, n), &mut results)?);
    }
    samples.sort_by(f64::total_cmp);
    let peer = "nexthop_compat_mode=1";
    report.add_peer("group_move_p50", "us", peer, percentile(&samples, 0.5));
    fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0")?;
    // A tenth of IPv6 beside them: the kernel walks these.
    install(&mut gpe, (0..hosts / 10).map(|n| set_entry(host6(n), 0)))?;
    let mut samples = Vec::new();
    for n in 1..=50 {
        samples.push(timed(&mut gpe, set_group(0, n), &mut results)?);
    }
    samples.sort_by(f64::total_cmp);
    report.add("group_move_with_tenth_ipv6_p50", "us", percentile(&samples, 0.5));
    Ok(())
}

/// As many anchors as never are.
fn many_groups(report: &mut Report, hosts: u32) -> io::Result<()> {
    let mut gpe = open()?;
    let spent = install(&mut gpe, (0..MANY_GROUPS).map(|group| set_group(group, group)))?;
    report.add("new_groups_per_s", "1/s", per_second(MANY_GROUPS, spent));
    let changes = (0..hosts).map(|n| set_entry(host(n), scattered(n, MANY_GROUPS)));
    let spent = install(&mut gpe, changes)?;
    report.add("install_ipv4_50k_groups_per_s", "1/s", per_second(hosts, spent));
    Ok(())
}

fn ipv6(report: &mut Report, hosts: u32) -> io::Result<()> {
    let hosts = hosts / 2;
    let mut gpe = open()?;
    install(&mut gpe, (0..GROUPS).map(|group| set_group(group, group)))?;
    let spent = install(&mut gpe, (0..hosts).map(|n| set_entry(host6(n), n % GROUPS)))?;
    report.add("install_ipv6_per_s", "1/s", per_second(hosts, spent));
    let mut results = Vec::new();
    let mut samples = Vec::new();
    for n in 0..hosts / 10 {
        let number = scattered(n, hosts);
        let change = set_entry(host6(number), (number + 1) % GROUPS);
        samples.push(timed(&mut gpe, change, &mut results)?);
    }
    samples.sort_by(f64::total_cmp);
    report.add("host_move_ipv6_p50", "us", percentile(&samples, 0.5));
    report.add("host_move_ipv6_p99", "us", percentile(&samples, 0.99));
    Ok(())
}

/// Through the reconciler, which keeps what should be there.
fn reconciled(report: &mut Report, hosts: u32) -> io::Result<()> {
    let now = Instant::ZERO;
    let mut reconciler = Reconciler::new(open()?, now);
    while reconciler.poll_timeout() <= now {
        reconciler.handle_timeout(now, &mut Vec::new());
    }
    for group in 0..GROUPS {
        reconciler.apply(&[set_group(group, group)], now);
    }
    let start = Clock::now();
    let mut batch = Vec::with_capacity(BATCH);
    for first in (0..hosts).step_by(BATCH) {
        batch.clear();
        batch.extend(
            (first..hosts.min(first + BATCH as u32)).map(|n| set_entry(host(n), n % GROUPS)),
        );
        reconciler.apply(&batch, now);
    }
    report.add("reconciled_install_ipv4_per_s", "1/s", per_second(hosts, start.elapsed()));
    let mut samples = Vec::new();
    for n in 0..hosts / 10 {
        let number = scattered(n, hosts);
        let change = [set_entry(host(number), (number + 1) % GROUPS)];
        let start = Clock::now();
        reconciler.apply(&change, now);
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    samples.sort_by(f64::total_cmp);
    report.add("reconciled_host_move_p50", "us", percentile(&samples, 0.5));
    report.add("reconciled_host_move_p99", "us", percentile(&samples, 0.99));
    let summary = reconciler.summary();
    if summary.failed > 0 || summary.pending > 0 || summary.entries != hosts as usize {
        return Err(io::Error::other(format!("not all is installed: {summary:?}")));
    }
    Ok(())
}

/// The same by iproute2, which has one process for all of them, too.
fn iproute(report: &mut Report, hosts: u32) -> io::Result<()> {
    let hosts = hosts / 5;
    let mut gpe = open()?;
    install(&mut gpe, (0..GROUPS).map(|group| set_group(group, group)))?;
    let objects = Command::new("ip").args(["nexthop", "show", "groups"]).output()?;
    let text = String::from_utf8_lossy(&objects.stdout).into_owned();
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id ")?.split(' ').next())
        .step_by(2) // IPv4
        .collect();
    if ids.len() != GROUPS as usize {
        return Err(io::Error::other(format!("ip lists {} groups", ids.len())));
    }
    for (verb, move_by) in [("add", 0), ("replace", 1)] {
        let mut script = String::new();
        for n in 0..hosts {
            let id = ids[((n + move_by) % GROUPS) as usize];
            let prefix = host(n);
            script.push_str(&format!("route {verb} {prefix} nhid {id} table 107 metric 150\n"));
        }
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let start = Clock::now();
        stdin.write_all(script.as_bytes())?;
        drop(stdin);
        if !child.wait()?.success() {
            return Err(io::Error::other("ip -batch failed"));
        }
        let spent = start.elapsed();
        if move_by == 0 {
            report.add_peer("install_ipv4_per_s", "1/s", "ip -batch", per_second(hosts, spent));
        } else {
            let each = spent.as_secs_f64() * 1e6 / f64::from(hosts);
            report.add_peer("host_move_mean", "us", "ip -batch", each);
        }
    }
    Ok(())
}

/// What the kernel's small objects take, all of them: others' changes are in it, too.
fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
