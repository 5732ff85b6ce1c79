//! The figures: a table for people, a file for programs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::stage::{Kind, Measured, Telling};

pub struct Report {
    cpu: usize,
    packets: u32,
    /// Per mechanism, in the order of the rounds.
    rounds: BTreeMap<Kind, Vec<Measured>>,
    telling: Option<Telling>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

impl Report {
    pub fn new(cpu: usize, packets: u32) -> Self {
        Self { cpu, packets, rounds: BTreeMap::new(), telling: None }
    }

    pub fn add(&mut self, kind: Kind, measured: Measured) {
        self.rounds.entry(kind).or_default().push(measured);
    }

    pub fn tell(&mut self, telling: Telling) {
        self.telling = Some(telling);
    }

    /// Name, value, unit, bar.
    fn told(&self) -> Vec<(&'static str, f64, &'static str, Option<f64>)> {
        let Some(told) = &self.telling else { return Vec::new() };
        let at = |sorted: &[Duration], hundredths: usize| {
            let index = (sorted.len() * hundredths / 100).min(sorted.len() - 1);
            sorted[index].as_secs_f64() * 1e6
        };
        vec![
            ("dp_ebpf_installs", told.installs_per_s, "entries/s", None),
            ("dp_ebpf_move_p50", at(&told.moves, 50), "us", Some(5.0)),
            ("dp_ebpf_move_p99", at(&told.moves, 99), "us", None),
            ("dp_ebpf_group_move_p50", at(&told.group_moves, 50), "us", Some(1000.0)),
            ("dp_ebpf_group_move_p99", at(&told.group_moves, 99), "us", None),
        ]
    }

    fn ns(&self, kind: Kind) -> Option<f64> {
        Some(median(self.rounds.get(&kind)?.iter().map(|m| m.cpu_ns).collect()))
    }

    /// Median over the rounds: a machine that is slow for a while is so for both.
    fn ratio(&self, kind: Kind, peer: Option<Kind>) -> Option<f64> {
        let ours = self.rounds.get(&kind)?;
        let theirs = self.rounds.get(&peer?)?;
        Some(median(ours.iter().zip(theirs).map(|(a, b)| a.cpu_ns / b.cpu_ns).collect()))
    }

    fn lost(&self, kind: Kind) -> u64 {
        self.rounds[&kind].iter().map(|m| m.sent.abs_diff(m.sunk)).sum()
    }

    /// All packets that were injected, and no others, were at the sink.
    pub fn complete(&self) -> bool {
        self.rounds.keys().all(|&kind| self.lost(kind) == 0)
    }

    pub fn print(&self) {
        println!(
            "\n{:18}{:>10}{:>13}{:>8}{:>6}{:>10}",
            "median", "ns/packet", "packets/s", "ratio", "bar", "unseen"
        );
        for &kind in self.rounds.keys() {
            let ns = self.ns(kind).unwrap_or_default();
            let text = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.2}"));
            println!(
                "{:18}{ns:>10.0}{:>13.0}{:>8}{:>6}{:>10}",
                kind.name(),
                1e9 / ns,
                text(self.ratio(kind, kind.peer())),
                text(kind.bar()),
                self.lost(kind)
            );
        }
        for (name, value, unit, _) in self.told() {
            println!("{name:24}{value:>14.1} {unit}");
        }
        println!();
    }

    fn figures(&self) -> Vec<Value> {
        let mut figures = Vec::new();
        for &kind in self.rounds.keys() {
            let Some(ns) = self.ns(kind) else { continue };
            let mut figure = |name: &str, peer: Option<Kind>, value: f64, unit: &str| {
                let peer = peer.filter(|peer| self.rounds.contains_key(peer));
                let peer_ns = peer.and_then(|peer| self.ns(peer));
                figures.push(json!({
                    "name": format!("dp_{}_{name}", kind.name()),
                    "value": value,
                    "unit": unit,
                    "peer": peer.map(Kind::what),
                    "peer_value": match unit {
                        "ns/packet" => peer_ns,
                        "packets/s" => peer_ns.map(|ns| 1e9 / ns),
                        _ => None,
                    },
                    "ratio": self.ratio(kind, peer),
                    "bar": if name == "ratio" { kind.bar() } else { None },
                    "what": kind.what(),
                }));
            };
            figure("ns", kind.peer(), ns, "ns/packet");
            figure("pps", kind.peer(), 1e9 / ns, "packets/s");
            for (name, peer) in [("ratio", kind.peer()), ("wire_ratio", kind.other_peer())] {
                if let Some(ratio) = self.ratio(kind, peer) {
                    figure(name, peer, ratio, "times");
                }
            }
        }
        for (name, value, unit, bar) in self.told() {
            figures.push(json!({
                "name": name,
                "value": value,
                "unit": unit,
                "peer": null,
                "ratio": null,
                "bar": bar,
            }));
        }
        figures
    }

    fn to_json(&self) -> Value {
        let measured: Vec<Value> = self
            .rounds
            .iter()
            .map(|(kind, rounds)| {
                json!({
                    "name": kind.name(),
                    "what": kind.what(),
                    "unit": "ns/packet",
                    "rounds": rounds.iter().map(|m| m.cpu_ns).collect::<Vec<_>>(),
                    "wall": rounds.iter().map(|m| m.wall_ns).collect::<Vec<_>>(),
                    "unseen": self.lost(*kind),
                })
            })
            .collect();
        json!({
            "machine": machine(),
            "command": std::env::args().collect::<Vec<_>>().join(" "),
            "processor": self.cpu,
            "packets_per_round": self.packets,
            "figures": self.figures(),
            "measured": measured,
            "complete": self.complete(),
        })
    }

    pub fn write(&self, to: Option<PathBuf>) -> io::Result<()> {
        let to = to.unwrap_or_else(|| {
            // <target>/tmp is what cargo promises; <target>/bench is beside it.
            let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
            tmp.parent().unwrap_or(tmp).join("bench").join("dataplane.json")
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
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": first("/proc/cpuinfo", "model name"),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": first("/proc/meminfo", "MemTotal"),
        "kernel": release.trim(),
    })
}
