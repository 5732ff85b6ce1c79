//! killick as map-server and map-resolver beside a bare UDP echo: requests answered and
//! registrations taken per second over tables of different sizes, how long one takes, how soon a
//! move is published, and what an EID costs in memory.
//!
//! Both run on one core, the last; the client on the first. Each measurement is cut into slices,
//! killick's and the echo's in turn, with messages and answers of the same sizes. Nothing outside is
//! touched: each run has a network namespace of its own, which ends with it.

mod device;
mod messages;
#[path = "../rr/netns.rs"]
mod netns;
mod report;
mod run;
mod udp;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::Parser;

use device::{Kind, pin_this_thread};
use messages::Space;
use report::Report;
use run::Run;
use udp::Port;

#[derive(Parser, Debug)]
#[command(about = "Measures killick as a LISP map-server beside a UDP echo", long_about = None)]
pub struct Args {
    /// 100,000 EIDs where it would be a million, and short runs: does it work at all?
    #[arg(long)]
    quick: bool,
    /// Only these steps (may be repeated). Default: all.
    #[arg(long, value_enum)]
    step: Vec<Step>,
    /// Only tables of so many EIDs (may be repeated). Default: 10,000, 100,000 and 1,000,000.
    #[arg(long)]
    eids: Vec<usize>,
    /// Only EIDs of this kind. Default: both.
    #[arg(long, value_enum)]
    kind: Option<EidKind>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages on their way at any time.
    #[arg(long, default_value_t = 1024)]
    window: usize,
    /// Devices may run anywhere, and the client too.
    #[arg(long)]
    unpinned: bool,
    /// Where the figures go. Default: `target/bench/map_server.json`, or `map_server-quick.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Be the echo (the bench calls itself with this).
    #[arg(long, hide = true)]
    echo: bool,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Map-Requests per second, and the time of one.
    Resolve,
    /// Map-Registers per second: refreshes, moves, and twenty records per message.
    Register,
    /// From a Map-Register to the publications of it.
    Publish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EidKind {
    /// Inside mobile pools: bindings of the location database.
    Mobile,
    /// Of plain sites.
    Plain,
}

impl Args {
    pub fn has(&self, step: Step) -> bool {
        self.step.is_empty() || self.step.contains(&step)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.echo {
        Port::open(*Kind::Echo.addr().ip()).and_then(|mut port| port.echo()).map(|()| true)
    } else {
        run(&args)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("map_server: {e}");
            ExitCode::FAILURE
        }
    }
}

/// False when something failed.
fn run(args: &Args) -> io::Result<bool> {
    netns::become_root()?;
    let cpus = thread::available_parallelism()?.get();
    let cpu = (!args.unpinned).then_some(cpus - 1);
    let mut sizes = args.eids.clone();
    if sizes.is_empty() {
        sizes = if args.quick { vec![10_000, 100_000] } else { vec![10_000, 100_000, 1_000_000] };
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let mut report = Report::new(args.quick);
    for round in 0..args.rounds.max(1) {
        for &eids in &sizes {
            for space in [Space::Mobile, Space::Plain] {
                let wanted = match args.kind {
                    None => space == Space::Mobile || eids == largest,
                    Some(EidKind::Mobile) => space == Space::Mobile,
                    Some(EidKind::Plain) => space == Space::Plain,
                };
                if !wanted {
                    continue;
                }
                eprintln!("round {} of {}: {eids} EIDs, {space:?}", round + 1, args.rounds);
                let outcome = thread::scope(|scope| {
                    // On a thread of its own, because a namespace belongs to a thread.
                    let runner = scope.spawn(|| {
                        netns::enter_new()?;
                        if !args.unpinned {
                            pin_this_thread(0)?;
                        }
                        let mut run = Run::start(args, &mut report, round, space, eids, cpu)?;
                        let done = run.run(eids == largest);
                        done.map_err(|e| run.explain(e))
                    });
                    runner.join().unwrap_or_else(|_| Err(io::Error::other("the bench failed")))
                });
                if let Err(e) = outcome {
                    report.failure(format!("{eids} EIDs, {space:?}: {e}"));
                }
            }
        }
    }
    report.print();
    report.write(args.output.clone())
}
