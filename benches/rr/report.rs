//! The figures: a table for people, a file for programs, and each figure as a ratio to the others'
//! figure of the same round.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::device::Kind;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    Seconds,
    Micros,
    Mebibytes,
    Bytes,
    PerSecond,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Unit::Seconds => "s",
            Unit::Micros => "us",
            Unit::Mebibytes => "MiB",
            Unit::Bytes => "B",
            Unit::PerSecond => "1/s",
        }
    }
}

struct Row {
    name: &'static str,
    unit: Unit,
    /// Per device, per round.
    values: BTreeMap<Kind, BTreeMap<usize, f64>>,
}

pub struct Report {
    quick: bool,
    rows: Vec<Row>,
    versions: BTreeMap<Kind, String>,
    commands: BTreeMap<Kind, BTreeSet<String>>,
    failures: Vec<(Kind, String)>,
    notes: BTreeSet<(Kind, &'static str)>,
    attributes: BTreeMap<String, BTreeMap<Kind, Vec<String>>>,
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Row {
    fn median(&self, kind: Kind) -> Option<f64> {
        median(self.values.get(&kind)?.values().copied())
    }

    /// The least disturbed round: the greatest of rates, the least of everything else.
    fn best(&self, kind: Kind) -> Option<f64> {
        let values = self.values.get(&kind)?.values().copied();
        match self.unit {
            Unit::PerSecond => values.max_by(f64::total_cmp),
            Unit::Seconds | Unit::Micros | Unit::Mebibytes | Unit::Bytes => {
                values.min_by(f64::total_cmp)
            }
        }
    }

    /// Median over the rounds that both ran: a machine that is slow for a while is so for both.
    fn ratio(&self, kind: Kind, peer: Kind) -> Option<f64> {
        let (ours, theirs) = (self.values.get(&kind)?, self.values.get(&peer)?);
        median(ours.iter().filter_map(|(round, a)| theirs.get(round).map(|b| a / b)))
    }
}

impl Report {
    pub fn new(quick: bool) -> Self {
        Self {
            quick,
            rows: Vec::new(),
            versions: BTreeMap::new(),
            commands: BTreeMap::new(),
            failures: Vec::new(),
            notes: BTreeSet::new(),
            attributes: BTreeMap::new(),
        }
    }

    pub fn version(&mut self, kind: Kind, version: String) {
        self.versions.insert(kind, version);
    }

    pub fn command(&mut self, kind: Kind, command: &str) {
        self.commands.entry(kind).or_default().insert(command.into());
    }

    pub fn failure(&mut self, kind: Kind, what: String) {
        eprintln!("{} FAILED: {what}", kind.name());
        self.failures.push((kind, what));
    }

    pub fn note(&mut self, kind: Kind, what: &'static str) {
        self.notes.insert((kind, what));
    }

    pub fn add(&mut self, kind: Kind, round: usize, name: &'static str, unit: Unit, value: f64) {
        eprintln!("  {name} {} {}", number(value), unit.text());
        let row = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => &mut self.rows[at],
            None => {
                self.rows.push(Row { name, unit, values: BTreeMap::new() });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.values.entry(kind).or_default().insert(round, value);
    }

    /// What the sinks saw besides prefixes and next hops, which were checked already.
    pub fn attributes(&mut self, kind: Kind, step: String, attributes: Vec<String>) {
        if kind != Kind::Bare {
            self.attributes.entry(step).or_default().insert(kind, attributes);
        }
    }

    fn differing(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (step, by_kind) in &self.attributes {
            let mut distinct: Vec<&Vec<String>> = by_kind.values().collect();
            distinct.dedup();
            if distinct.len() > 1 {
                for (kind, attributes) in by_kind {
                    found.push(format!("{step}: {}: {}", kind.name(), attributes.join(" | ")));
                }
            }
        }
        found
    }

    pub fn ok(&self) -> bool {
        self.failures.is_empty()
    }

    pub fn print(&self) {
        let kinds: Vec<Kind> = self.versions.keys().copied().collect();
        print!("\n{:30}{:>5}", "median (best)", "unit");
        for kind in &kinds {
            print!("{:>22}", kind.name());
        }
        println!("{:>16}", "killick/bird");
        for row in &self.rows {
            print!("{:30}{:>5}", row.name, row.unit.text());
            for &kind in &kinds {
                let cell = match (row.median(kind), row.best(kind)) {
                    (Some(median), Some(best)) => {
                        format!("{} ({})", number(median), number(best))
                    }
                    _ => "-".into(),
                };
                print!("{cell:>22}");
            }
            match row.ratio(Kind::Killick, Kind::Bird) {
                Some(ratio) => println!("{ratio:>16.2}"),
                None => println!("{:>16}", "-"),
            }
        }
        println!();
        for (kind, version) in &self.versions {
            println!("{}: {version}", kind.name());
        }
        let differing = self.differing();
        if differing.is_empty() {
            println!("all devices that finished delivered exactly the same table");
        }
        for line in differing {
            println!("attributes differ: {line}");
        }
        for (kind, what) in &self.notes {
            println!("note: {} {what}", kind.name());
        }
        for (kind, what) in &self.failures {
            println!("FAILED {}: {what}", kind.name());
        }
    }

    /// killick's figures with each other device beside it; where it did not run, the others'.
    fn figures(&self) -> Vec<Value> {
        let mut figures = Vec::new();
        for row in &self.rows {
            let Some(value) = row.median(Kind::Killick) else { continue };
            let peers = [Kind::Bird, Kind::Frr, Kind::Gobgp, Kind::Exabgp, Kind::Bare];
            for peer in peers {
                let Some(peer_value) = row.median(peer) else { continue };
                figures.push(json!({
                    "name": row.name,
                    "value": value,
                    "best": row.best(Kind::Killick),
                    "unit": row.unit.text(),
                    "peer": peer.name(),
                    "peer_value": peer_value,
                    "peer_best": row.best(peer),
                    "ratio": row.ratio(Kind::Killick, peer),
                }));
            }
            if peers.iter().all(|&peer| row.median(peer).is_none()) {
                figures.push(json!({
                    "name": row.name,
                    "value": value,
                    "best": row.best(Kind::Killick),
                    "unit": row.unit.text(),
                    "peer": null,
                    "ratio": null,
                }));
            }
        }
        figures
    }

    fn to_json(&self) -> Value {
        let measured: Vec<Value> = self
            .rows
            .iter()
            .flat_map(|row| {
                row.values.iter().map(|(kind, rounds)| {
                    json!({
                        "name": row.name,
                        "device": kind.name(),
                        "unit": row.unit.text(),
                        "rounds": rounds.values().collect::<Vec<_>>(),
                    })
                })
            })
            .collect();
        let by_name = |map: &BTreeMap<Kind, String>| -> Value {
            map.iter().map(|(k, v)| (k.name().to_string(), json!(v))).collect()
        };
        let commands: Value =
            self.commands.iter().map(|(k, v)| (k.name().to_string(), json!(v))).collect();
        json!({
            "machine": machine(),
            "quick": self.quick,
            "versions": by_name(&self.versions),
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "commands": commands,
            "figures": self.figures(),
            "measured": measured,
            "attributes_differ": self.differing(),
            "notes": self.notes.iter()
                .map(|(kind, what)| json!({"device": kind.name(), "what": what}))
                .collect::<Vec<_>>(),
            "failures": self.failures.iter()
                .map(|(kind, what)| json!({"device": kind.name(), "what": what}))
                .collect::<Vec<_>>(),
        })
    }

    pub fn write(&self, to: Option<PathBuf>) -> io::Result<()> {
        let name = if self.quick { "rr-quick.json" } else { "rr.json" };
        let to = to.unwrap_or_else(|| {
            // <target>/tmp is what cargo promises; <target>/bench is beside it.
            let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
            tmp.parent().unwrap_or(tmp).join("bench").join(name)
        });
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&to, format!("{:#}\n", self.to_json()))?;
        println!("figures: {}", to.display());
        Ok(())
    }
}

fn machine() -> Value {
    let first = |path: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?.to_string();
        Some(line.split_once(':').map_or(line.clone(), |(_, value)| value.trim().to_string()))
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": release.trim(),
    })
}

fn number(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.0}k", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}
