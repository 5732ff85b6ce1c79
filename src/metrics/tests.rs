//! The exposition as Prometheus sees it, and the page that documents it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

fn metrics() -> Metrics {
    Metrics::new(&["192.0.2.100".to_owned(), "2001:db8::1".to_owned()], &["a2".to_owned()])
}

#[test]
fn every_series_is_there_from_the_start() {
    let text = metrics().text();
    for line in [
        "killick_ready 0",
        "killick_bgp_session_state{peer=\"2001:db8::1\",state=\"idle\"} 1",
        "killick_bgp_session_state{peer=\"2001:db8::1\",state=\"established\"} 0",
        "killick_bgp_messages_total{direction=\"in\",peer=\"192.0.2.100\",type=\"update\"} 0",
        "killick_drops_total{reason=\"spoofed_source\"} 0",
        "killick_handover_duration_seconds_bucket{mode=\"reactive\",phase=\"total\",le=\"0.2\"} 0",
        "killick_ctx_transfers_total{mode=\"predictive\",result=\"ok\",role=\"import\"} 0",
        "killick_ctx_peer_up{peer=\"a2\"} 0",
        "killick_lisp_server_refused_total{reason=\"authentication\"} 0",
        "killick_lisp_map_cache_entries{state=\"pushed\"} 0",
        "killick_encap_packets_total{direction=\"encapsulated\"} 0",
        "killick_signalling_bytes_total{direction=\"in\",protocol=\"lisp\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
}

#[test]
fn handles_count_their_own_series() {
    let metrics = metrics();
    metrics.drops.get(DropReason::TableFull).inc();
    metrics.bgp.neighbors[1].set_state(BgpState::Established);
    metrics.mobility.handover_duration.get(Phase::Total).get(Mode::Reactive).observe(0.003);
    for what in Waiting::ALL {
        assert!(!metrics.health.is_ready());
        metrics.health.done(what);
    }
    assert!(metrics.health.is_ready() && metrics.health.waiting_for().is_empty());
    let text = metrics.text();
    for line in [
        "killick_ready 1",
        "killick_drops_total{reason=\"table_full\"} 1",
        "killick_drops_total{reason=\"queue_full\"} 0",
        "killick_bgp_session_up{peer=\"2001:db8::1\"} 1",
        "killick_bgp_session_state{peer=\"2001:db8::1\",state=\"established\"} 1",
        "killick_bgp_session_state{peer=\"2001:db8::1\",state=\"idle\"} 0",
        "killick_handover_duration_seconds_bucket{mode=\"reactive\",phase=\"total\",le=\"0.0025\"} 0",
        "killick_handover_duration_seconds_bucket{mode=\"reactive\",phase=\"total\",le=\"0.005\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

/// Listings and metrics say the same.
#[test]
fn the_words_of_the_data_plane_are_its_own() {
    for reason in crate::dataplane::encap::DropReason::ALL {
        assert_eq!(EncapDrop::from(reason).as_str(), reason.as_str());
    }
    assert_eq!(EncapDrop::ALL.len(), crate::dataplane::encap::DropReason::ALL.len());
}

/// The rules of naming that a tool cannot be asked for when it is not installed.
#[test]
fn names_follow_the_rules() {
    for family in metrics().registry.gather() {
        let name = family.name();
        assert!(name.starts_with("killick_") || name.starts_with("process_"), "{name}");
        let is_counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(is_counter, name.ends_with("_total"), "{name}");
        assert!(!family.help().is_empty() && !family.help().ends_with('.'), "{name}");
        for metric in family.get_metric() {
            for label in metric.get_label() {
                assert!(!["mn", "prefix", "eid", "mac"].contains(&label.name()), "{name}");
            }
        }
    }
}

#[test]
fn promtool_agrees() {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            // Past the test harness, which would swallow it.
            let said = format!("SKIPPED: promtool cannot be run ({error}); install prometheus\n");
            std::io::stderr().write_all(said.as_bytes()).expect("stderr");
            return;
        }
    };
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(metrics().text().as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// `KILLICK_BLESS=1` rewrites the page; look at the difference before it is committed.
#[test]
fn the_page_is_in_step() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = page();
    if std::env::var_os("KILLICK_BLESS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).expect("docs");
        std::fs::write(path, &page).expect("docs/metrics.md");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page, "docs/metrics.md is not in step; run with KILLICK_BLESS=1");
}

fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Generated from `src/metrics/` by its test (`KILLICK_BLESS=1 cargo test metrics::`).\n\n\
         Served as `/metrics` at `metrics.listen`. Every series exists from the start, at 0. No label\n\
         names a mobile node or a prefix; ask the API for those. `peer` is a neighbour's address\n\
         (`killick_bgp_…`) or a peer's name (`killick_ctx_…`) as configured.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for family in metrics().registry.gather() {
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for metric in family.get_metric() {
            for label in metric.get_label() {
                let values = labels.entry(label.name().to_owned()).or_default();
                values.insert(label.value().to_owned());
            }
        }
        let labels: Vec<String> = labels
            .into_iter()
            .map(|(name, values)| match name.as_str() {
                "peer" | "version" | "commit" => format!("`{name}`"),
                _ => {
                    let values: Vec<String> = values.into_iter().collect();
                    format!("`{name}`: {}", values.join(", "))
                }
            })
            .collect();
        page.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            family.name(),
            format!("{:?}", family.get_field_type()).to_lowercase(),
            labels.join("; "),
            family.help(),
        ));
    }
    page
}
