//! Everything that is counted, made once with all its series, and handed out as plain handles: an
//! increment is one atomic addition. Labels are short closed lists or what the configuration names
//! (neighbours, peers), never a node or a prefix.
//!
//! `docs/metrics.md` is generated from here; a test keeps it in step.

mod bfd;
mod catalogue;
mod health;
mod label;
mod lisp;
mod process;
mod transient;

pub use bfd::*;
pub use catalogue::*;
pub use health::{Health, Waiting};
pub use label::{Label, Per};
pub use lisp::*;
pub use transient::*;

use prometheus::{Encoder, Registry, TextEncoder};

use crate::config::Checked;

/// All handles. Shared by the routing thread, which counts, and the API's, which shows.
pub struct Metrics {
    registry: Registry,
    pub health: Health,
    pub event_loop_lag: prometheus::Histogram,
    pub bfd: BfdMetrics,
    pub bgp: BgpMetrics,
    pub rib: RibMetrics,
    pub mobility: MobilityMetrics,
    pub ctx: CtxMetrics,
    pub lisp: LispMetrics,
    pub encap: EncapMetrics,
    pub transient: TransientMetrics,
    pub api: ApiMetrics,
    pub store_errors: prometheus::IntCounter,
    pub drops: Per<DropReason, prometheus::IntCounter>,
    pub signalling_bytes: Per<Protocol, Per<Direction, prometheus::IntCounter>>,
    pub signalling_messages: Per<Protocol, Per<Direction, prometheus::IntCounter>>,
    process: process::Process,
}

impl Metrics {
    /// `neighbors` are the label values of BGP sessions, `peers` of the other killicks.
    pub fn new(neighbors: &[String], peers: &[String]) -> Self {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        make.build_info();
        Self {
            health: Health::new(
                make.gauge("killick_ready", "1 when the daemon does its work, 0 while it starts"),
            ),
            event_loop_lag: make.histogram(
                "killick_event_loop_lag_seconds",
                "How much later than due the routing thread woke up",
                FAST_BUCKETS,
            ),
            bfd: BfdMetrics::new(&make),
            bgp: BgpMetrics::new(&make, neighbors),
            rib: RibMetrics::new(&make),
            mobility: MobilityMetrics::new(&make),
            ctx: CtxMetrics::new(&make, peers),
            lisp: LispMetrics::new(&make),
            encap: EncapMetrics::new(&make),
            transient: TransientMetrics::new(&make),
            api: ApiMetrics::new(&make),
            store_errors: make.counter(
                "killick_store_write_errors_total",
                "Writes to the state directory that failed; what they held waits in memory",
            ),
            drops: make.counters("killick_drops_total", "Input that was thrown away, by reason"),
            signalling_bytes: make.counters2(
                "killick_signalling_bytes_total",
                "Octets of signalling, with framing but without TCP, TLS and UDP",
            ),
            signalling_messages: make
                .counters2("killick_signalling_messages_total", "Messages of signalling"),
            process: process::Process::new(&make),
            registry,
        }
    }

    /// With the neighbours and peers of a configuration, in its order.
    pub fn for_config(config: &Checked) -> Self {
        let neighbors: Vec<String> = config
            .bgp
            .iter()
            .flat_map(|bgp| &bgp.neighbors)
            .map(|neighbor| neighbor.address.ip().to_string())
            .collect();
        let peers: Vec<String> = config
            .peers
            .iter()
            .filter(|peer| peer.address.is_some())
            .map(|peer| peer.name.clone())
            .collect();
        Self::new(&neighbors, &peers)
    }

    /// The exposition (text format 0.0.4).
    pub fn text(&self) -> String {
        self.process.read();
        let mut out = Vec::with_capacity(64 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("writing into memory does not fail, and every family has a series");
        String::from_utf8(out).expect("names and labels are text")
    }
}

#[cfg(test)]
mod tests;
