//! `lab`: the containerlab topologies of this repository without Docker, from network namespaces,
//! veth pairs and the FRR, BIRD and GoBGP of this machine.

mod daemon;
mod demo;
mod guard;
mod kernel;
mod lab;
mod lossless;
mod namespace;
mod outside;
mod probe;
mod roam;
mod scene;
mod signals;
mod tls;
mod topology;
mod traffic;
mod trial;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use lab::Lab;
use topology::Topology;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(name = "lab", about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up and keep it until Ctrl-C.
    Up {
        lab: String,
        /// Leave the killick nodes without their daemon.
        #[arg(long)]
        no_killick: bool,
    },
    /// Let the hosts of a lab roam under traffic, and tell what it did to them.
    Demo { lab: String },
    /// Move one host many times, and tell how long killick took for a move.
    Roam {
        lab: String,
        #[arg(long, default_value_t = 100)]
        moves: usize,
    },
    /// Move one host many times under dense traffic, and count every packet that it costs.
    Lossless {
        lab: String,
        #[arg(long, default_value_t = 200)]
        moves: usize,
        #[arg(long, default_value_t = 1000)]
        pace_us: u64,
        /// Tell the old anchor before each move.
        #[arg(long)]
        predictive: bool,
        /// With killick's holding and forwarding of packets switched off.
        #[arg(long)]
        without: bool,
        #[arg(long, default_value_t = 1600)]
        watch_ms: u64,
    },
    /// Run a command in a node of a lab that another `lab` keeps up.
    Exec {
        lab: String,
        node: String,
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Send a numbered UDP packet at each step of a pace.
    Send {
        to: SocketAddr,
        #[arg(long, default_value_t = 1000)]
        pace_us: u64,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Receive what `send` sends, and tell what was lost and how long it was silent.
    Recv {
        at: SocketAddr,
        /// Silence that ends it.
        #[arg(long, default_value_t = 3000)]
        idle_ms: u64,
    },
    /// Write certificates to containerlab/<lab>/tls for a deployment by containerlab.
    Certs { lab: String },
    /// Remove what runners that no longer exist left behind.
    Clean,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Up { lab, no_killick } => up(&lab, no_killick),
        Command::Demo { lab } => demo::run(&lab),
        Command::Roam { lab, moves } => roam::run(&lab, moves.max(1)),
        Command::Lossless { lab, moves, pace_us, predictive, without, watch_ms } => {
            lossless::run(&trial::Trial {
                lab,
                moves: moves.max(1),
                pace: Duration::from_micros(pace_us.max(20)),
                watch: Duration::from_millis(watch_ms),
                control: 10,
                predictive,
                transient: Some(!without),
                tcp: true,
            })
        }
        Command::Exec { lab, node, command } => exec(&lab, &node, &command),
        Command::Send { to, pace_us, seconds } => {
            probe::send(to, Duration::from_micros(pace_us), seconds)
        }
        Command::Recv { at, idle_ms } => probe::recv(at, Duration::from_millis(idle_ms)),
        Command::Certs { lab } => certs(&lab),
        Command::Clean => outside::clean(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab: {e}");
            ExitCode::FAILURE
        }
    }
}

fn up(name: &str, no_killick: bool) -> Result<()> {
    let interrupt = signals::receiver()?;
    let started = Instant::now();
    let lab = Lab::up(name, !no_killick)?;
    println!(
        "{name} is up after {:.1} s, in {}",
        started.elapsed().as_secs_f64(),
        lab.folder.display()
    );
    println!("commands in a node: lab exec {name} <node> <command>; Ctrl-C removes everything");
    interrupt.recv()?;
    Ok(())
}

fn exec(lab: &str, node: &str, command: &[String]) -> Result<()> {
    let error = outside::command_in(lab, node, &command[0])?.args(&command[1..]).exec();
    Err(format!("{}: {error}", command[0]).into())
}

fn certs(lab: &str) -> Result<()> {
    let file = lab::file_of(lab);
    let folder = file.with_file_name("tls");
    tls::write(&Topology::read(&file)?, &folder)?;
    println!("written to {}", folder.display());
    Ok(())
}
