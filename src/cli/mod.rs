//! Subcommands. All but `run`, `check`, `version` and `tls` speak to the daemon's socket and show
//! what it says.

mod args;
mod date;
mod log;
mod show;
mod table;
mod tls;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hyper::Method;
use serde::de::DeserializeOwned;

use args::{
    Ask, AttachArgs, Bfd, Bgp, Cli, Command, ConfigArgs, Ctx, Explain, FeE, Fib, Lisp, Mobility,
    Output, Tls,
};
use show::Pages;
use table::Table;

use crate::api::Target;
use crate::api::client::{Client, ClientError, in_query};
use crate::api::lisp_views::LookupView;
use crate::api::request::{Attach, Move, PAGE_LEN_MAX};
use crate::api::views::{ContextView, Envelope, FibDiffView, HealthView, Page, StatusView};
use crate::config;
use crate::types::{Family, Locator};

const ERROR: u8 = 1;
const DIFFERENT: u8 = 1;
const NOT_READY: u8 = 3;
/// How often `lisp lookup` asks whether the mapping system has answered, and how long between.
const LOOKUP_TRIES: u32 = 30;
const LOOKUP_PAUSE: Duration = Duration::from_millis(100);

/// Why a command ended early.
enum Failure {
    /// One sentence.
    Say(String),
    /// Everything was said already.
    Said(u8),
    /// Whoever read our output is gone, which is no fault.
    NobodyReads,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Say(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Say(error.to_string()),
        }
    }
}

type Done = Result<(), Failure>;

pub fn main() -> ExitCode {
    // On wrong usage clap says so and exits with 2.
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Err(Failure::Said(code)) => ExitCode::from(code),
        Err(Failure::Say(sentence)) => {
            eprintln!("killick: {}", table::plain(&sentence));
            ExitCode::from(ERROR)
        }
    }
}

fn dispatch(cli: &Cli) -> Done {
    match &cli.command {
        Command::Run(args) => run(args),
        Command::Check(args) => check(args),
        Command::Version => version(),
        Command::Tls(tls) => certificates(tls),
        Command::Ask(ask) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = Client::new(&cli.socket());
            let mut asker = Asker { client, output: cli.output, out: io::stdout() };
            runtime.block_on(asker.ask(ask))
        }
    }
}

/// Arguments → configuration → node → driver.
fn run(args: &ConfigArgs) -> Done {
    let config = load(args)?;
    let _log = log::start(&config.node)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node.name,
        anchor_id = %config.node.anchor_id,
        "starting"
    );
    match crate::driver::run(&config) {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::error!(%error, "stopped");
            Err(Failure::Say(error.to_string()))
        }
    }
}

fn check(args: &ConfigArgs) -> Done {
    let config = load(args)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: ok ({} neighbors, {} pools, {} peers)",
        args.path().display(),
        config.bgp.as_ref().map_or(0, |bgp| bgp.neighbors.len()),
        config.mobility.as_ref().map_or(0, |mobility| mobility.pools.len()),
        config.peers.len(),
    )?;
    Ok(())
}

/// Says what is wrong, all of it, and warnings also when nothing is.
fn load(args: &ConfigArgs) -> Result<config::Checked, Failure> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("KILLICK"))
        .collect();
    match config::load(&args.path(), &environment, args.env) {
        Ok((config, warnings)) => {
            if !warnings.list.is_empty() {
                eprintln!("{warnings}");
            }
            Ok(config)
        }
        Err(faults) => {
            eprintln!("{faults}");
            Err(Failure::Said(ERROR))
        }
    }
}

fn version() -> Done {
    let commit = option_env!("KILLICK_COMMIT").unwrap_or("unknown commit");
    writeln!(io::stdout().lock(), "killick {} ({commit})", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

fn certificates(command: &Tls) -> Done {
    let written = match command {
        Tls::NewCa { directory, name, days } => tls::new_ca(directory, name, *days),
        Tls::Issue { name, directory, days } => tls::issue(directory, name, *days),
    };
    let [certificate, key] = written.map_err(|error| Failure::Say(error.to_string()))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}\n{}", certificate.display(), key.display())?;
    Ok(())
}

/// Asks the daemon and shows its answers.
struct Asker<W> {
    client: Client,
    output: Output,
    out: W,
}

impl<W: Write> Asker<W> {
    async fn ask(&mut self, ask: &Ask) -> Done {
        match ask {
            Ask::Status(args) => {
                if args.wait {
                    self.wait_until_ready(Duration::from_secs(args.timeout)).await?;
                }
                self.show("/v1/status", |view: StatusView| show::status(&view)).await
            }
            Ask::Bgp(Bgp::Neighbors) => {
                self.table("/v1/bgp/neighbors", |view: Vec<_>| show::neighbors(&view)).await
            }
            Ask::Bfd(Bfd::Sessions) => {
                self.table("/v1/bfd/sessions", |view: Vec<_>| show::bfd_sessions(&view)).await
            }
            Ask::Bgp(Bgp::Routes(args)) => match args.prefix {
                Some(prefix) => {
                    let resource = format!("/v1/bgp/route?prefix={prefix}");
                    self.show(&resource, |view| show::route(&view)).await
                }
                None => {
                    let mut filter = String::new();
                    if let Some(within) = args.within {
                        filter.push_str(&format!("&within={within}"));
                    }
                    if let Some(neighbor) = args.neighbor {
                        filter.push_str(&format!("&neighbor={neighbor}"));
                    }
                    let families = match (args.family, args.within) {
                        (Some(family), _) => vec![family],
                        (None, Some(within)) => vec![within.family()],
                        (None, None) => Family::ALL.to_vec(),
                    };
                    let resources: Vec<String> = families
                        .iter()
                        .map(|family| format!("/v1/bgp/routes?family={family}{filter}"))
                        .collect();
                    self.pages(&resources, args.listing.limit, |items: &[_]| show::routes(items))
                        .await
                }
            },
            Ask::Mobility(Mobility::Sessions(listing)) => {
                let resources = ["/v1/mobility/sessions".to_owned()];
                self.pages(&resources, listing.limit, |items: &[_]| show::sessions(items)).await
            }
            Ask::Mobility(Mobility::Session { node }) => {
                let resource = format!("/v1/mobility/session?{}", query(node));
                self.table(&resource, |view: Vec<_>| show::sessions(&view)).await
            }
            Ask::Mobility(Mobility::Paths(listing)) => {
                let resources = ["/v1/mobility/paths".to_owned()];
                self.pages(&resources, listing.limit, |items: &[_]| show::paths(items)).await
            }
            Ask::Mobility(Mobility::Move { mn, to, fe_e }) => {
                let body = Move { mn: mn.clone(), to: *to, fe_e: locator(fe_e) };
                self.post("/v1/mobility/move", &body).await
            }
            Ask::Attach(args) => self.post("/v1/mobility/attach", &attach(args)).await,
            Ask::Detach { node } => {
                let resource = format!("/v1/mobility/detach?{}", query(node));
                let answer = self.client.request(Method::POST, &resource, Vec::new()).await?;
                self.answer(&answer, |view| show::accepted(&view))
            }
            Ask::Ctx(Ctx::Transfers) => {
                self.table("/v1/ctx/transfers", |view: Vec<_>| show::transfers(&view)).await
            }
            Ask::Ctx(Ctx::Get { mn }) => {
                let resource = format!("/v1/ctx/context?mn={}", in_query(&mn.as_str()));
                // For people it is what `ctx put` takes; there is no better table.
                self.show(&resource, |view: ContextView| {
                    let text = serde_json::to_string_pretty(&view);
                    text.expect("views have string keys and no failing parts") + "\n"
                })
                .await
            }
            Ask::Ctx(Ctx::Put { file }) => {
                let context = context(file.as_deref())?;
                let request = self.client.request(Method::PUT, "/v1/ctx/context", context);
                self.answer(&request.await?, |view| show::accepted(&view))
            }
            Ask::Fib(Fib::Routes(listing)) => {
                let resources = ["/v1/fib/routes".to_owned()];
                self.pages(&resources, listing.limit, |items: &[_]| show::fib_routes(items)).await
            }
            Ask::Fib(Fib::Diff) => self.fib_diff().await,
            Ask::Lisp(Lisp::MapCache(listing)) => {
                let resources = ["/v1/lisp/map-cache".to_owned()];
                self.pages(&resources, listing.limit, |items: &[_]| show::map_cache(items)).await
            }
            Ask::Lisp(Lisp::Registrations(listing)) => {
                let resources = ["/v1/lisp/registrations".to_owned()];
                self.pages(&resources, listing.limit, |items: &[_]| show::registrations(items))
                    .await
            }
            Ask::Lisp(Lisp::Subscriptions) => {
                let resource = "/v1/lisp/subscriptions";
                self.table(resource, |view: Vec<_>| show::subscriptions(&view)).await
            }
            Ask::Lisp(Lisp::Probe) => {
                self.table("/v1/lisp/probes", |view: Vec<_>| show::probes(&view)).await
            }
            Ask::Lisp(Lisp::Lookup { eid }) => self.lookup(*eid).await,
            Ask::Explain(Explain::Route { prefix }) => {
                let resource = format!("/v1/explain/route?prefix={prefix}");
                self.show(&resource, |view| show::explain(&view)).await
            }
            Ask::Trace { mn, all } => {
                let resource = format!("/v1/trace?mn={}", in_query(&mn.as_str()));
                self.show(&resource, |view: Vec<_>| show::traces(&view, *all)).await
            }
            Ask::Monitor => self.monitor().await,
            Ask::Healthcheck => self.healthcheck().await,
        }
    }

    /// JSON as it came, or `show` of what is inside.
    fn answer<T: DeserializeOwned>(
        &mut self,
        octets: &[u8],
        show: impl FnOnce(T) -> String,
    ) -> Done {
        match self.output {
            Output::Json => self.out.write_all(octets)?,
            Output::Table => self.out.write_all(show(open(octets)?).as_bytes())?,
        }
        self.out.flush()?;
        Ok(())
    }

    async fn show<T: DeserializeOwned>(
        &mut self,
        resource: &str,
        show: impl FnOnce(T) -> String,
    ) -> Done {
        self.answer(&self.client.get(resource).await?, show)
    }

    async fn table<T: DeserializeOwned>(
        &mut self,
        resource: &str,
        table: impl FnOnce(T) -> Table,
    ) -> Done {
        self.show(resource, |view| Pages::default().show(&table(view))).await
    }

    async fn post(&mut self, resource: &str, body: &impl serde::Serialize) -> Done {
        let body = serde_json::to_vec(body).expect("requests have string keys");
        let answer = self.client.request(Method::POST, resource, body).await?;
        self.answer(&answer, |view| show::accepted(&view))
    }

    /// Page after page, so that neither side ever holds the whole listing.
    async fn pages<T: DeserializeOwned>(
        &mut self,
        resources: &[String],
        limit: Option<usize>,
        table: impl Fn(&[T]) -> Table,
    ) -> Done {
        let mut left = limit.unwrap_or(usize::MAX);
        let mut pages = Pages::default();
        for resource in resources {
            let mut cursor: Option<String> = None;
            while left > 0 {
                let separator = if resource.contains('?') { '&' } else { '?' };
                let mut page = format!("{resource}{separator}limit={}", left.min(PAGE_LEN_MAX));
                if let Some(cursor) = &cursor {
                    page.push_str(&format!("&cursor={}", in_query(cursor)));
                }
                let octets = self.client.get(&page).await?;
                let view: Page<serde_json::Value> = open(&octets)?;
                left = left.saturating_sub(view.items.len());
                self.answer(&octets, |view: Page<T>| match view.items.is_empty() {
                    true => String::new(),
                    false => pages.show(&table(&view.items)),
                })?;
                match view.next {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// The first answer of an ingress router is that it has asked.
    async fn lookup(&mut self, eid: std::net::IpAddr) -> Done {
        let resource = format!("/v1/lisp/lookup?prefix={eid}");
        let mut octets = self.client.get(&resource).await?;
        for _ in 0..LOOKUP_TRIES {
            let view: LookupView = open(&octets)?;
            if view.source != "asked" {
                break;
            }
            tokio::time::sleep(LOOKUP_PAUSE).await;
            octets = self.client.get(&resource).await?;
        }
        self.answer(&octets, |view| show::lookup(&view))
    }

    async fn monitor(&mut self) -> Done {
        let mut lines = self.client.lines("/v1/events").await?;
        while let Some(piece) = lines.next().await {
            self.out.write_all(&piece?)?;
            self.out.flush()?;
        }
        Err(Failure::Say("the daemon ended the stream".to_owned()))
    }

    async fn fib_diff(&mut self) -> Done {
        let octets = self.client.get("/v1/fib/diff").await?;
        let view: FibDiffView = open(&octets)?;
        self.answer(&octets, |view: FibDiffView| show::fib_diff(&view))?;
        if view.same { Ok(()) } else { Err(Failure::Said(DIFFERENT)) }
    }

    async fn healthcheck(&mut self) -> Done {
        let octets = match self.client.get("/v1/health").await {
            Ok(octets) => octets,
            Err(error) => {
                eprintln!("killick: {error}");
                return Err(Failure::Said(NOT_READY));
            }
        };
        let view: HealthView = open(&octets)?;
        self.answer(&octets, |view: HealthView| health_line(&view))?;
        if view.ready { Ok(()) } else { Err(Failure::Said(NOT_READY)) }
    }

    /// Also while the daemon has not opened its socket yet.
    async fn wait_until_ready(&mut self, timeout: Duration) -> Done {
        let deadline = Instant::now() + timeout;
        loop {
            let waiting = match self.client.get("/v1/health").await {
                Ok(octets) => {
                    let view: HealthView = open(&octets)?;
                    if view.ready {
                        return Ok(());
                    }
                    health_line(&view)
                }
                Err(ClientError::NotRunning(path)) => {
                    format!("no killick answers at {}\n", path.display())
                }
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= deadline {
                eprint!("killick: not ready within {} s: {waiting}", timeout.as_secs());
                return Err(Failure::Said(NOT_READY));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn health_line(view: &HealthView) -> String {
    match (view.alive, view.ready) {
        (true, true) => "ready\n".to_owned(),
        (true, false) => format!("waiting for {}\n", view.waiting_for.join(", ")),
        (false, _) => "the routing thread is stuck\n".to_owned(),
    }
}

fn open<T: DeserializeOwned>(octets: &[u8]) -> Result<T, Failure> {
    let envelope: Envelope<T> = serde_json::from_slice(octets).map_err(|error| {
        Failure::Say(format!(
            "the daemon's answer is not understood ({error}); is it of another version? \
             (-o json shows it as it is)"
        ))
    })?;
    Ok(envelope.data)
}

fn query(node: &Target) -> String {
    match node {
        Target::Mn(mn) => format!("mn={}", in_query(&mn.as_str())),
        Target::Prefix(prefix) => format!("prefix={prefix}"),
    }
}

fn locator(fe_e: &FeE) -> Option<Locator> {
    let locator = Locator { ipv4: fe_e.fe_e4, ipv6: fe_e.fe_e6 };
    (locator != Locator::default()).then_some(locator)
}

fn attach(args: &AttachArgs) -> Attach {
    Attach {
        mn: args.mn.clone(),
        prefixes: args.prefixes.clone(),
        anchor: args.anchor,
        fe_e: locator(&args.fe_e),
        lifetime_s: args.lifetime,
    }
}

/// What `ctx get` printed, with or without its envelope.
fn context(file: Option<&std::path::Path>) -> Result<Vec<u8>, Failure> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::Say(format!("{}: {error}", path.display())))?,
        None => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text)?;
            text
        }
    };
    let bad = |error| Failure::Say(format!("not a context: {error}"));
    let context = match serde_json::from_str::<Envelope<ContextView>>(&text) {
        Ok(envelope) => envelope.data,
        Err(_) => serde_json::from_str::<ContextView>(&text).map_err(bad)?,
    };
    Ok(serde_json::to_vec(&context).expect("views have string keys"))
}

#[cfg(test)]
mod tests;
