//! The command line. Exit codes: 0 done, 1 error, 2 wrong usage, 3 not ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::api::Target;
use crate::config::SOCKET;
use crate::types::{AnchorId, Family, MnId, Prefix};

/// Distributed mobility anchoring in the routing plane.
#[derive(Debug, Parser)]
#[command(name = "killick", disable_version_flag = true, arg_required_else_help = true)]
pub struct Cli {
    /// Control socket of the daemon [default: $KILLICK_SOCKET, or /run/killick/api.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A table for people, or the JSON of the API, unchanged: one line for each answer, and for each
    /// page of a listing
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    pub fn socket(&self) -> PathBuf {
        let environment = || std::env::var_os("KILLICK_SOCKET").map(PathBuf::from);
        self.socket.clone().or_else(environment).unwrap_or_else(|| PathBuf::from(SOCKET))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Run(ConfigArgs),
    /// Check a configuration; needs no rights and starts nothing
    Check(ConfigArgs),
    /// Version of this program
    Version,
    /// Certificates for context transfer
    #[command(subcommand)]
    Tls(Tls),
    #[command(flatten)]
    Ask(Ask),
}

/// What the daemon is asked.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// What the daemon does, in a few lines
    Status(StatusArgs),
    /// The BGP speaker
    #[command(subcommand)]
    Bgp(Bgp),
    /// Path liveness
    #[command(subcommand)]
    Bfd(Bfd),
    /// Where mobile nodes are
    #[command(subcommand)]
    Mobility(Mobility),
    /// Tell that a node is attached here or at an external anchor
    Attach(AttachArgs),
    /// Tell that a node is gone
    Detach {
        /// Node identifier, or one of its prefixes
        #[arg(value_parser = target)]
        node: Target,
    },
    /// Context transfer between anchors
    #[command(subcommand)]
    Ctx(Ctx),
    /// The mapping service
    #[command(subcommand)]
    Lisp(Lisp),
    /// Why something is as it is
    #[command(subcommand)]
    Explain(Explain),
    /// Entries in the kernel
    #[command(subcommand)]
    Fib(Fib),
    /// The timeline of a node's handovers, newest first
    Trace {
        #[arg(value_parser = MnId::new)]
        mn: MnId,
        /// All that are remembered, not only the newest
        #[arg(long)]
        all: bool,
    },
    /// Follow events as JSON lines
    Monitor,
    /// Exit with 0 when the daemon is alive and ready, 3 when it is not
    Healthcheck,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration [default: $KILLICK_CONFIG, or /etc/killick/killick.toml]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Let KILLICK__SECTION__KEY variables override the file
    #[arg(long)]
    pub env: bool,
}

impl ConfigArgs {
    pub fn path(&self) -> PathBuf {
        let environment = || std::env::var_os("KILLICK_CONFIG").map(PathBuf::from);
        let given = self.file.clone().or_else(|| self.config.clone());
        given.or_else(environment).unwrap_or_else(|| PathBuf::from("/etc/killick/killick.toml"))
    }
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Wait until the daemon is ready
    #[arg(long)]
    pub wait: bool,
    /// For at most so many seconds
    #[arg(long, default_value_t = 30, requires = "wait")]
    pub timeout: u64,
}

#[derive(Debug, Subcommand)]
pub enum Bgp {
    /// Neighbours and their sessions
    Neighbors,
    /// Best routes, or all paths of one prefix
    Routes(RoutesArgs),
}

#[derive(Debug, Subcommand)]
pub enum Bfd {
    /// Paths that are watched, and what is known of them
    Sessions,
}

#[derive(Debug, Args)]
pub struct RoutesArgs {
    /// Show all paths of this prefix
    #[arg(conflicts_with_all = ["family", "within", "neighbor"])]
    pub prefix: Option<Prefix>,
    /// One address family only [default: both]
    #[arg(long, value_parser = family)]
    pub family: Option<Family>,
    /// Only routes inside this prefix
    #[arg(long)]
    pub within: Option<Prefix>,
    /// Only routes learnt from this neighbour
    #[arg(long)]
    pub neighbor: Option<IpAddr>,
    #[command(flatten)]
    pub listing: Listing,
}

#[derive(Debug, Args)]
pub struct Listing {
    /// Stop after so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub enum Mobility {
    /// All bindings
    Sessions(Listing),
    /// The bindings of one node
    Session {
        /// Node identifier, or one of its prefixes
        #[arg(value_parser = target)]
        node: Target,
    },
    /// Packets that wait for a node, or follow it
    Paths(Listing),
    /// Move a node to another anchor
    Move {
        #[arg(value_parser = MnId::new)]
        mn: MnId,
        /// Anchor id it moves to
        to: AnchorId,
        #[command(flatten)]
        fe_e: FeE,
    },
}

/// Next hops of the anchor, when they are not known to the daemon.
#[derive(Debug, Args)]
pub struct FeE {
    /// IPv4 next hop of the anchor
    #[arg(long, value_name = "ADDRESS")]
    pub fe_e4: Option<Ipv4Addr>,
    /// IPv6 next hop of the anchor
    #[arg(long, value_name = "ADDRESS")]
    pub fe_e6: Option<Ipv6Addr>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    #[arg(value_parser = MnId::new)]
    pub mn: MnId,
    #[arg(required = true)]
    pub prefixes: Vec<Prefix>,
    /// Anchor id [default: this node]
    #[arg(long)]
    pub anchor: Option<AnchorId>,
    #[command(flatten)]
    pub fe_e: FeE,
    /// Seconds after which the binding ends unless it is refreshed
    #[arg(long, value_name = "SECONDS")]
    pub lifetime: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Ctx {
    /// Running and recent transfers
    Transfers,
    /// The context of a node, as JSON
    Get {
        #[arg(value_parser = MnId::new)]
        mn: MnId,
    },
    /// Import the context of a node from a JSON file, or from standard input
    Put {
        /// As `ctx get` printed it [default: standard input]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Lisp {
    /// What this ingress router knows
    MapCache(Listing),
    /// What is registered here (map-server), or by us (anchor)
    Registrations(Listing),
    /// Who is subscribed here, and to what we are subscribed
    Subscriptions,
    /// What the mapping system answers for an address
    Lookup { eid: IpAddr },
    /// Whether locators in use answer
    Probe,
}

#[derive(Debug, Subcommand)]
pub enum Explain {
    /// Which back end leads where for a prefix, by which binding, and why
    Route { prefix: Prefix },
}

#[derive(Debug, Subcommand)]
pub enum Fib {
    /// Desired entries and what became of them
    Routes(Listing),
    /// What is wanted in the kernel, held against what is there: exits with 0 when that is the same,
    /// with 1 when it differs
    Diff,
}

#[derive(Debug, Subcommand)]
pub enum Tls {
    /// Make a certificate authority: ca.pem and ca.key
    NewCa {
        /// Where to write them
        #[arg(default_value = ".")]
        directory: PathBuf,
        /// Name of the mobility domain
        #[arg(long, default_value = "killick")]
        name: String,
        /// Days of validity
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Make a certificate for one node: <name>.pem and <name>.key
    Issue {
        /// `tls-name` of the node
        name: String,
        /// Where ca.pem and ca.key are, and where to write
        #[arg(default_value = ".")]
        directory: PathBuf,
        /// Days of validity
        #[arg(long, default_value_t = 825)]
        days: u32,
    },
}

fn target(text: &str) -> Result<Target, String> {
    match text.parse::<Prefix>() {
        Ok(prefix) => Ok(Target::Prefix(prefix)),
        Err(_) if text.contains('/') && text.contains(['.', ':']) && !text.contains('@') => {
            text.parse::<Prefix>().map(Target::Prefix).map_err(|e| e.to_string())
        }
        Err(_) => MnId::new(text).map(Target::Mn).map_err(|e| e.to_string()),
    }
}

fn family(text: &str) -> Result<Family, &'static str> {
    match text {
        "ipv4" | "4" => Ok(Family::Ipv4),
        "ipv6" | "6" => Ok(Family::Ipv6),
        _ => Err("ipv4 or ipv6"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nodes_are_named_by_identifier_or_prefix() {
        assert_eq!(target("10.1.0.7"), Ok(Target::Prefix("10.1.0.7/32".parse().unwrap())));
        assert_eq!(target("2001:db8::/64"), Ok(Target::Prefix("2001:db8::/64".parse().unwrap())));
        let mac = "02:00:00:00:00:07";
        assert_eq!(target(mac), Ok(Target::Mn(MnId::new(mac).unwrap())));
        assert_eq!(target("a/b@x.net"), Ok(Target::Mn(MnId::new("a/b@x.net").unwrap())));
        assert!(target("10.1.0.7/8").unwrap_err().contains("bits are set"));
        assert!(target("a b").is_err());
    }
}
