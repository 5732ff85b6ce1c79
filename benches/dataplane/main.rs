//! What a packet costs in each data plane, beside plain kernel forwarding of the same run:
//!
//! ```text
//!  [s] s0 -- i0 [i] i1 -- e1 [e] e0 -- m0 [m]
//! ```
//!
//! An XDP program makes the packets: the kernel runs it a million times and takes each frame as one
//! that came in on i0 (`BPF_F_TEST_XDP_LIVE_FRAMES`); for XDP, which needs a real interface, frames go
//! out of s0 instead, one veth pair more. (`plain_wire` is plain forwarding of such frames, for
//! whoever wants to compare with that; the bars of XDP are held against the cheaper one.) A counter
//! at e1 (behind one gateway) or m0 (behind both) must have seen every one of them. All work is on
//! one processor, and its time is that of the injecting thread and of the kernel's own thread for
//! deferred packets. Mechanisms take turns, so that a machine that is slow for a while is so for all.
//!
//! Figures include the injector, the way to the counter and the counter.
//!
//! Nothing outside is touched: namespaces and mounts end with the process.

mod inject;
mod report;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use report::Report;
use stage::{Kind, Stage};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser, Debug)]
#[command(about = "What a packet costs in each data plane", long_about = None)]
struct Args {
    /// Fewer packets and rounds: does it work at all?
    #[arg(long)]
    quick: bool,
    /// Packets of each mechanism in each round.
    #[arg(long)]
    packets: Option<u32>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these (may be repeated), and what they are compared with. Default: all.
    #[arg(long, value_enum)]
    mechanism: Vec<Kind>,
    /// The processor that does everything. Default: the last one.
    #[arg(long)]
    cpu: Option<usize>,
    /// Where the figures go. Default: `target/bench/dataplane.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("dataplane: {e}");
            ExitCode::FAILURE
        }
    }
}

/// False when packets were lost.
fn run(args: &Args) -> Result<bool> {
    let packets = args.packets.unwrap_or(if args.quick { 200_000 } else { 1_000_000 });
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 9 }).max(1);
    stage::become_alone()?;
    let cpu = match args.cpu {
        Some(cpu) => cpu,
        None => std::thread::available_parallelism()?.get() - 1,
    };
    inject::pin_this_thread(cpu)?;

    let chosen = |kind: &Kind| {
        args.mechanism.is_empty()
            || args.mechanism.iter().any(|of| of == kind || of.peer() == Some(*kind))
    };
    let mut stages = Vec::new();
    for (number, kind) in Kind::ALL.into_iter().filter(chosen).enumerate() {
        eprintln!("{}: {}", kind.name(), kind.what());
        let number = u8::try_from(number).expect("a handful");
        stages.push(Stage::set(kind, number, cpu)?);
    }
    for stage in &mut stages {
        stage.run(20_000)?; // neighbours, caches
    }
    let mut report = Report::new(cpu, packets);
    for round in 0..rounds {
        for stage in &mut stages {
            let measured = stage.run(packets)?;
            eprintln!(
                "round {} of {rounds}: {:16} {:7.0} ns cpu, {:7.0} ns wall, {} of {} at the sink",
                round + 1,
                stage.kind.name(),
                measured.cpu_ns,
                measured.wall_ns,
                measured.sunk,
                packets
            );
            report.add(stage.kind, measured);
        }
    }
    if args.mechanism.is_empty() {
        report.tell(stage::tell(u8::MAX, if args.quick { 100_000 } else { 200_000 })?);
    }
    report.print();
    report.write(args.output.clone())?;
    Ok(report.complete())
}
