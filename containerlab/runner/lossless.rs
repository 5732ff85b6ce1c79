//! `lab lossless`: a [`Trial`], told in tables and written to `target/demo`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Result;
use super::trial::{DIRECTIONS, Trial, measure};

pub fn run(trial: &Trial) -> Result<()> {
    super::signals::exit_on_signal()?;
    println!(
        "{}: {} {} moves, a packet each {} µs in 4 flows; of each: lost/doubled/reordered, longest gap",
        trial.lab,
        trial.moves,
        if trial.predictive { "predictive" } else { "reactive" },
        trial.pace.as_micros()
    );
    let outcome = measure(trial, |line| println!("{line}"))?;
    let mut rows = BTreeMap::new();
    for (what, sums) in [("nobody moves", &outcome.control), ("moves", &outcome.moved)] {
        for (direction, sum) in DIRECTIONS.iter().zip(sums) {
            println!(
                "{what:>12}, {direction:>13}: {} sent, {} lost ({} while held), {} doubled, {} reordered; \
                 longest gap p50 {:.1} p90 {:.1} p99 {:.1} max {:.1} ms",
                sum.sent,
                sum.lost,
                sum.lost_while_held,
                sum.duplicated,
                sum.reordered,
                sum.outage(50),
                sum.outage(90),
                sum.outage(99),
                sum.outage(100),
            );
            rows.insert(
                format!("{what}, {direction}"),
                json!({
                    "packets": sum,
                    "gap_ms": { "p50": sum.outage(50), "p90": sum.outage(90), "p99": sum.outage(99), "max": sum.outage(100) },
                }),
            );
        }
    }
    if trial.tcp {
        let worst = outcome.tcp_stall_ms.iter().copied().fold(0.0, f64::max);
        println!(
            "TCP: {} segments sent again, longest stall {worst:.1} ms",
            outcome.tcp_retransmissions
        );
    }
    let how = if trial.predictive { "predictive" } else { "reactive" };
    let with = if trial.transient == Some(false) { "-without" } else { "" };
    let name = format!("lossless-{}-{how}-{}us{with}.json", trial.lab, trial.pace.as_micros());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/demo").join(name);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let all: Value = json!({
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "moves": trial.moves,
        "results": rows,
        "tcp_retransmissions": outcome.tcp_retransmissions,
        "noticed": outcome.noticed,
    });
    fs::write(&file, serde_json::to_string_pretty(&all)?)?;
    println!("written: {}", file.display());
    Ok(())
}
