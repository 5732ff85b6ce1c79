//! The figures: a table for people, a file for programs. A rate stands beside the echo's of the same
//! seconds, so that a machine that is slow for a while is so for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::device::{Kind, version};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    PerSecond,
    Micros,
    Bytes,
    Ratio,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Unit::PerSecond => "1/s",
            Unit::Micros => "us",
            Unit::Bytes => "B",
            Unit::Ratio => "ratio",
        }
    }
}

struct Row {
    name: String,
    unit: Unit,
    /// Per round: killick's, and the echo's where it can do the same.
    values: BTreeMap<usize, (f64, Option<f64>)>,
}

#[derive(Default)]
pub struct Report {
    quick: bool,
    rows: Vec<Row>,
    commands: BTreeMap<Kind, BTreeSet<String>>,
    failures: Vec<String>,
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
    fn killick(&self) -> f64 {
        median(self.values.values().map(|v| v.0)).unwrap_or(f64::NAN)
    }

    fn echo(&self) -> Option<f64> {
        median(self.values.values().filter_map(|v| v.1))
    }

    fn ratio(&self) -> Option<f64> {
        median(self.values.values().filter_map(|(a, b)| b.map(|b| a / b)))
    }

    /// The least disturbed round: the greatest of rates, the least of everything else.
    fn best(&self) -> Option<f64> {
        let values = self.values.values().map(|v| v.0);
        match self.unit {
            Unit::PerSecond | Unit::Ratio => values.max_by(f64::total_cmp),
            Unit::Micros | Unit::Bytes => values.min_by(f64::total_cmp),
        }
    }
}

impl Report {
    pub fn new(quick: bool) -> Self {
        Self { quick, ..Self::default() }
    }

    pub fn command(&mut self, kind: Kind, command: &str) {
        self.commands.entry(kind).or_default().insert(command.into());
    }

    pub fn failure(&mut self, what: String) {
        eprintln!("FAILED: {what}");
        self.failures.push(what);
    }

    pub fn add(&mut self, round: usize, name: &str, unit: Unit, value: f64, echo: Option<f64>) {
        match echo {
            Some(echo) => eprintln!(
                "  {name} {} {}, echo {}: {:.2}",
                number(value),
                unit.text(),
                number(echo),
                value / echo
            ),
            None => eprintln!("  {name} {} {}", number(value), unit.text()),
        }
        let row = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => &mut self.rows[at],
            None => {
                self.rows.push(Row { name: name.into(), unit, values: BTreeMap::new() });
                self.rows.last_mut().expect("just pushed")
            }
        };
        row.values.insert(round, (value, echo));
    }

    pub fn print(&self) {
        println!(
            "\n{:34}{:>6}{:>20}{:>12}{:>8}",
            "median (best)", "unit", "killick", "echo", "ratio"
        );
        for row in &self.rows {
            let value = format!(
                "{} ({})",
                number(row.killick()),
                row.best().map_or_else(String::new, number)
            );
            let echo = row.echo().map_or_else(|| "-".into(), number);
            let ratio = row.ratio().map_or_else(|| "-".into(), |r| format!("{r:.2}"));
            println!("{:34}{:>6}{value:>20}{echo:>12}{ratio:>8}", row.name, row.unit.text());
        }
        for what in &self.failures {
            println!("FAILED {what}");
        }
    }

    fn figures(&self) -> Vec<Value> {
        let mut figures = Vec::new();
        for row in &self.rows {
            let (ratio, echo) = (row.ratio(), row.echo());
            figures.push(json!({
                "name": row.name,
                "value": row.killick(),
                "best": row.best(),
                "unit": row.unit.text(),
                "peer": echo.map(|_| Kind::Echo.name()),
                "peer_value": echo,
                "ratio": ratio,
            }));
            if let (Some(ratio), Unit::PerSecond) = (ratio, row.unit) {
                figures.push(json!({
                    "name": format!("{}_ratio", row.name),
                    "value": ratio,
                    "unit": Unit::Ratio.text(),
                    "peer": Kind::Echo.name(),
                    "ratio": ratio,
                }));
            }
        }
        figures
    }

    fn to_json(&self) -> Value {
        let measured: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "unit": row.unit.text(),
                    "killick": row.values.values().map(|v| v.0).collect::<Vec<_>>(),
                    "echo": row.values.values().filter_map(|v| v.1).collect::<Vec<_>>(),
                })
            })
            .collect();
        let commands: Value =
            self.commands.iter().map(|(k, v)| (k.name().to_string(), json!(v))).collect();
        json!({
            "machine": machine(),
            "quick": self.quick,
            "versions": { Kind::Killick.name(): version(), Kind::Echo.name(): "recvmmsg, sendmmsg" },
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "commands": commands,
            "figures": self.figures(),
            "measured": measured,
            "failures": self.failures,
        })
    }

    /// False when something failed.
    pub fn write(&self, to: Option<PathBuf>) -> io::Result<bool> {
        let name = if self.quick { "map_server-quick.json" } else { "map_server.json" };
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
        Ok(self.failures.is_empty())
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
        v if v >= 10_000.0 => format!("{:.1}k", v / 1000.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}
