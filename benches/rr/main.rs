//! killick and the route reflectors that are installed here (BIRD, FRR, GoBGP), one after the other,
//! between the same injector and the same sinks; and what it takes to inject a route through a
//! daemon's own interface. `docs/performance.md` says what is measured and how to read it.
//!
//! Nothing outside is touched: each run has a network namespace of its own, which ends with it.

mod device;
mod feed;
mod forward;
mod netns;
mod race;
mod report;
mod speaker;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use clap::Parser;

use device::{Device, Kind, Pin, Role, find_program, pin_this_thread};
use race::{Entrance, Race};
use report::{Report, Unit};
use speaker::Family;

#[derive(Parser, Debug)]
#[command(about = "Races killick against other route reflectors", long_about = None)]
struct Args {
    /// 100,000 routes where it would be a million, and short runs: does it work at all?
    #[arg(long)]
    quick: bool,
    /// Only these devices (may be repeated). Default: all that are installed.
    #[arg(long, value_enum)]
    device: Vec<Kind>,
    /// Only these steps (may be repeated). Default: all.
    #[arg(long, value_enum)]
    step: Vec<Step>,
    /// Rounds of killick, BIRD and the bare loop; the slower ones run in the first round only.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Moves on their way at any time while moves per second are measured.
    #[arg(long, default_value_t = 10_000)]
    window: usize,
    /// Device on the last processor, injector and sinks on the first.
    #[arg(long)]
    pin: bool,
    /// Where the figures go. Default: `target/bench/rr.json`, or `rr-quick.json`.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Be the bare loop for so many sinks (the bench calls itself with this).
    #[arg(long, hide = true)]
    forward_to: Option<usize>,
    /// `cargo bench` passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// 100,000 IPv4 host routes.
    Load100k,
    /// 100,000 IPv6 host routes.
    LoadV6,
    /// A million IPv4 host routes, then moves per second and latency with these loaded.
    Full,
    /// Ten sinks.
    Fanout,
    /// Routes by the daemon's own interface: killick's streaming API, ExaBGP's pipe, GoBGP's CLI.
    Originate,
}

const STEPS: [Step; 5] = [Step::Load100k, Step::LoadV6, Step::Full, Step::Fanout, Step::Originate];

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(sinks) = args.forward_to {
        return match forward::run(sinks) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE, // the bench ended a session: the ordinary end
        };
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("rr: {e}");
            ExitCode::FAILURE
        }
    }
}

extern "C" fn interrupt(_signal: libc::c_int) {
    race::INTERRUPTED.store(true, Ordering::Relaxed);
}

/// False when a device failed a step.
fn run(args: &Args) -> io::Result<bool> {
    speaker::self_check()?;
    netns::become_root()?;
    let handler = interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }

    let mut report = Report::new(args.quick);
    let mut field = BTreeMap::new();
    for kind in Kind::ALL {
        if !args.device.is_empty() && !args.device.contains(&kind) {
            continue;
        }
        match kind.find() {
            Some(program) => {
                report.version(kind, kind.version(&program));
                field.insert(kind, program);
            }
            None => println!("{}: not installed, skipped", kind.name()),
        }
    }

    'race: for round in 0..args.rounds.max(1) {
        for step in STEPS {
            if !args.step.is_empty() && !args.step.contains(&step) {
                continue;
            }
            for (&kind, program) in &field {
                let slow = matches!(kind, Kind::Frr | Kind::Gobgp | Kind::Exabgp);
                if (slow && round > 0) || !takes_part(kind, step) {
                    continue;
                }
                eprintln!("round {} of {}: {:?}, {}", round + 1, args.rounds, step, kind.name());
                let cell = Cell { args, step, kind, program, round };
                if let Err(e) = cell.run(&mut report) {
                    if race::INTERRUPTED.load(Ordering::Relaxed) {
                        report.failure(kind, format!("{step:?}: interrupted"));
                        break 'race;
                    }
                    report.failure(kind, format!("{step:?}: {e}"));
                }
            }
        }
    }
    report.print();
    report.write(args.output.clone())?;
    Ok(report.ok())
}

const EXABGP_WINDOW: usize = 100;

fn takes_part(kind: Kind, step: Step) -> bool {
    match kind {
        Kind::Killick | Kind::Gobgp => true,
        Kind::Bird | Kind::Frr | Kind::Bare => step != Step::Originate,
        Kind::Exabgp => step == Step::Originate,
    }
}

/// One device in one step of one round.
struct Cell<'a> {
    args: &'a Args,
    step: Step,
    kind: Kind,
    program: &'a PathBuf,
    round: usize,
}

impl Cell<'_> {
    /// On a thread of its own, because a namespace belongs to a thread.
    fn run(&self, report: &mut Report) -> io::Result<()> {
        thread::scope(|scope| {
            let runner = scope.spawn(|| {
                netns::enter_new()?;
                self.run_here(report)
            });
            runner.join().unwrap_or_else(|_| Err(io::Error::other("the bench itself failed")))
        })
    }

    fn run_here(&self, report: &mut Report) -> io::Result<()> {
        match self.step {
            Step::Load100k => self.load(report, Family::V4, 100_000, &LOAD_100K),
            Step::LoadV6 => self.load(report, Family::V6, 100_000, &LOAD_V6),
            Step::Full => self.full(report),
            Step::Fanout => self.fan_out(report),
            Step::Originate => self.originate(report),
        }
    }

    fn start(&self, report: &mut Report, role: Role) -> io::Result<Device> {
        let mut pin = Pin::default();
        if self.args.pin {
            let cpus = thread::available_parallelism()?.get();
            pin.cpu = Some(cpus - 1);
            pin_this_thread(0)?;
        }
        let device = Device::start(self.kind, self.program, role, pin)?;
        report.command(self.kind, &device.command);
        Ok(device)
    }

    fn race(&self, report: &mut Report, prefixes: usize, sinks: usize) -> io::Result<Race> {
        let device = self.start(report, Role::Reflector { sinks })?;
        Race::new(device, prefixes, sinks, &Entrance::Injector)
    }

    /// Adds the end of the device's log to what went wrong.
    fn explained<T>(&self, race: &Race, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| io::Error::other(format!("{e}; log: {}", race.device.log())))
    }

    fn load(
        &self,
        report: &mut Report,
        family: Family,
        prefixes: usize,
        names: &LoadNames,
    ) -> io::Result<()> {
        let mut race = self.race(report, prefixes, 1)?;
        let result = self.load_into(report, &mut race, family, names);
        self.explained(&race, result)?;
        self.check(report, &race)
    }

    fn load_into(
        &self,
        report: &mut Report,
        race: &mut Race,
        family: Family,
        names: &LoadNames,
    ) -> io::Result<()> {
        let load = race.load(family, Duration::from_secs(300))?;
        let mut add = |name, unit, value| report.add(self.kind, self.round, name, unit, value);
        add(names.wall, Unit::Seconds, load.wall.as_secs_f64());
        add(names.cpu, Unit::Seconds, load.cpu.as_secs_f64());
        add(names.rss, Unit::Mebibytes, load.peak as f64 / f64::from(1 << 20));
        add(names.per_route, Unit::Bytes, load.bytes_per_route);
        Ok(())
    }

    fn full(&self, report: &mut Report) -> io::Result<()> {
        let prefixes = if self.args.quick { 100_000 } else { 1_000_000 };
        let mut race = self.race(report, prefixes, 1)?;
        let names = if self.args.quick { &LOAD_100K } else { &LOAD_1M };
        let result = self.full_into(report, &mut race, names);
        self.explained(&race, result)
    }

    fn full_into(&self, report: &mut Report, race: &mut Race, names: &LoadNames) -> io::Result<()> {
        let seconds = if self.args.quick { 1 } else { 5 };
        self.load_into(report, race, Family::V4, names)?;
        let latency = race.latency(Duration::from_secs(2 * seconds))?;
        let moves =
            race.moves(self.args.window, Duration::from_secs(1), Duration::from_secs(seconds))?;
        let mut add = |name, unit, value| report.add(self.kind, self.round, name, unit, value);
        add("rr_moves_per_s", Unit::PerSecond, moves.per_second);
        add("rr_move_cpu", Unit::Micros, micros(moves.cpu_each));
        add("rr_latency_p50", Unit::Micros, micros(latency.p50));
        add("rr_latency_p99", Unit::Micros, micros(latency.p99));
        add("rr_latency_max", Unit::Micros, micros(latency.max));
        self.check(report, race)?;
        if self.kind == Kind::Bare {
            return Ok(()); // withdraws nothing
        }
        let gone = race.lose_injector(Duration::from_secs(300))?;
        report.add(self.kind, self.round, names.withdrawal, Unit::Seconds, secs(gone));
        race.check().map(|_| ())
    }

    fn fan_out(&self, report: &mut Report) -> io::Result<()> {
        let mut race = self.race(report, 100_000, 10)?;
        let load = race.load(Family::V4, Duration::from_secs(300))?;
        report.add(self.kind, self.round, "rr_fanout10_wall", Unit::Seconds, secs(load.wall));
        report.add(self.kind, self.round, "rr_fanout10_cpu", Unit::Seconds, secs(load.cpu));
        let seconds = if self.args.quick { 1 } else { 3 };
        let moves =
            race.moves(self.args.window, Duration::from_secs(1), Duration::from_secs(seconds))?;
        let name = "rr_fanout10_moves_per_s";
        report.add(self.kind, self.round, name, Unit::PerSecond, moves.per_second);
        self.check(report, &race)
    }

    fn originate(&self, report: &mut Report) -> io::Result<()> {
        let cli = find_program(&["gobgp"]);
        let device = self.start(report, Role::Originator)?;
        let entrance = match (self.kind, cli) {
            (Kind::Killick, _) => Entrance::KillickStream(device.dir.join("stream.sock")),
            (Kind::Exabgp, _) => Entrance::ExabgpPipe(device.dir.join("pipe")),
            (Kind::Gobgp, Some(cli)) => Entrance::GobgpCli(cli),
            _ => return Ok(()),
        };
        let mut race = Race::new(device, 100_000, 1, &entrance)?;
        let result = self.originate_by(report, &mut race, &entrance);
        self.explained(&race, result)?;
        race.check().map(|_| ())
    }

    fn originate_by(
        &self,
        report: &mut Report,
        race: &mut Race,
        entrance: &Entrance,
    ) -> io::Result<()> {
        let seconds = Duration::from_secs(if self.args.quick { 2 } else { 5 });
        let mut add = |name, unit, value| report.add(self.kind, self.round, name, unit, value);
        let (moves, latency) = match entrance {
            Entrance::GobgpCli(_) => race.one_by_one(seconds)?,
            // A burst of 100,000 lines stalls it for good, so it starts empty and gets few at once.
            Entrance::ExabgpPipe(_) => {
                let moves = race.moves(EXABGP_WINDOW, Duration::from_secs(1), seconds)?;
                (moves, race.latency(seconds)?)
            }
            Entrance::KillickStream(_) | Entrance::Injector => {
                let load = race.load(Family::V4, Duration::from_secs(300))?;
                add("api_load_100k_wall", Unit::Seconds, secs(load.wall));
                let moves = race.moves(self.args.window, Duration::from_secs(1), seconds)?;
                (moves, race.latency(seconds)?)
            }
        };
        add("api_moves_per_s", Unit::PerSecond, moves.per_second);
        add("api_move_cpu", Unit::Micros, micros(moves.cpu_each));
        add("api_to_wire_p50", Unit::Micros, micros(latency.p50));
        add("api_to_wire_p99", Unit::Micros, micros(latency.p99));
        add("api_to_wire_max", Unit::Micros, micros(latency.max));
        Ok(())
    }

    /// The sinks have exactly the injected table; the attributes are compared across devices.
    fn check(&self, report: &mut Report, race: &Race) -> io::Result<()> {
        let attributes = race.check()?;
        report.attributes(self.kind, format!("{:?}", self.step), attributes);
        if race.echoed > 0 {
            report.note(self.kind, "sends routes back to the client they came from");
        }
        Ok(())
    }
}

struct LoadNames {
    wall: &'static str,
    cpu: &'static str,
    rss: &'static str,
    per_route: &'static str,
    withdrawal: &'static str,
}

const LOAD_100K: LoadNames = LoadNames {
    wall: "rr_load_100k_wall",
    cpu: "rr_load_100k_cpu",
    rss: "rr_load_100k_rss",
    per_route: "rr_load_100k_bytes_per_route",
    withdrawal: "rr_withdraw_100k_wall",
};

const LOAD_V6: LoadNames = LoadNames {
    wall: "rr_load_v6_100k_wall",
    cpu: "rr_load_v6_100k_cpu",
    rss: "rr_load_v6_100k_rss",
    per_route: "rr_load_v6_100k_bytes_per_route",
    withdrawal: "rr_withdraw_v6_100k_wall",
};

const LOAD_1M: LoadNames = LoadNames {
    wall: "rr_load_1m_wall",
    cpu: "rr_load_1m_cpu",
    rss: "rr_load_1m_rss",
    per_route: "rr_load_1m_bytes_per_route",
    withdrawal: "rr_withdraw_1m_wall",
};

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn secs(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
