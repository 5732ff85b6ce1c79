//! Hosts that move while their traffic comes through tunnels: the mapping service in whole labs, by
//! each data plane, and what may go wrong meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::lab::{Lab, wait_until};
use super::stage::{LIMIT, Stage};
use super::topology::Role;
use super::{Result, may_build_labs};

const LISP: &str = "lisp-flat";
const BOTH: &str = "lisp-ibgp";
const CONFIG: &str = "/etc/killick/killick.toml";

/// Adds lines to `[lisp]` of every killick that starts or ends tunnels.
fn add_to_lisp(lab: &Lab, lines: impl Fn(&str) -> String) -> Result<()> {
    for name in lab.with_role(Role::Killick).filter(|name| *name != "ms") {
        let path = lab.namespace(name)?.path(CONFIG);
        let text = fs::read_to_string(&path)?;
        fs::write(&path, text.replacen("[lisp]\n", &format!("[lisp]\n{}", lines(name)), 1))?;
    }
    Ok(())
}

/// A→B→C→A with both hosts talking: one through an ingress router that is subscribed, one through
/// one that asks. b ends tunnels at IPv4 only and c at IPv6 only, so that all four combinations of
/// inner and outer family carry the traffic.
fn moves_and_returns(prepare: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set_with(LISP, prepare)?;
    stage.registered_exactly(&[])?;
    for host in ["h1", "h2"] {
        stage.itrs_lead(host, "a")?;
        stage.host_is_reachable(host)?;
    }
    for anchor in ["b", "c"] {
        for host in ["h1", "h2"] {
            stage.move_host(host, anchor)?;
            stage.itrs_lead(host, anchor)?;
            stage.host_is_reachable(host)?;
        }
        stage.registered_exactly(&[("h1", anchor), ("h2", anchor)])?;
    }
    stage.move_host("h1", "a")?;
    stage.itrs_lead("h1", "a")?;
    stage.host_is_reachable("h1")?;
    stage.registered_exactly(&[("h2", "c")])?;
    stage.move_host("h2", "a")?;
    stage.itrs_lead("h2", "a")?;
    stage.host_is_reachable("h2")?;
    stage.registered_exactly(&[])
}

#[test]
fn itrs_follow_hosts_tun() -> Result<()> {
    moves_and_returns(|_| Ok(()))
}

#[test]
fn itrs_follow_hosts_gpe() -> Result<()> {
    moves_and_returns(|lab| add_to_lisp(lab, |_| "encapsulation = \"gpe\"\n".to_owned()))
}

#[test]
fn itrs_follow_hosts_ebpf() -> Result<()> {
    moves_and_returns(|lab| {
        add_to_lisp(lab, |name| {
            let inner = match name {
                "i1" | "i2" => "[\"eth2\"]",
                _ => "[\"eth11\", \"eth12\"]",
            };
            format!(
                "encapsulation = \"ebpf\"\ninner-interfaces = {inner}\nouter-interfaces = [\"eth1\"]\n"
            )
        })
    })
}

/// One host is followed by iBGP host routes, the other one by the mapping service, and each of them
/// by both.
#[test]
fn both_back_ends_lead_to_the_same_anchor() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(BOTH)?;
    for anchor in ["b", "c", "a"] {
        for host in ["h1", "h2"] {
            stage.move_host(host, anchor)?;
            stage.routers_lead(host, anchor)?;
            stage.itrs_lead(host, anchor)?;
            stage.host_is_reachable(host)?;
        }
    }
    stage.routers_hold_exactly(&[])?;
    stage.registered_exactly(&[])
}

/// The map-server is killed, a host moves while it is away, and it comes back: nothing is lost, and
/// no older mapping wins. Traffic goes on all the time.
#[test]
fn a_map_server_is_killed_and_forgets_nothing() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.move_host("h2", "b")?;
    stage.itrs_lead("h1", "b")?;
    stage.itrs_lead("h2", "b")?;
    stage.registered_exactly(&[("h1", "b"), ("h2", "b")])?;
    stage.kill("ms");
    stage.host_is_reachable("h1")?;
    stage.host_is_reachable("h2")?;
    stage.lab.start("ms")?;
    // At once, before any ETR has refreshed: from the store.
    stage.registered_bindings_are(&[("h1", "b"), ("h2", "b")])?;
    stage.kill("ms");
    stage.move_host("h1", "c")?;
    stage.lab.start("ms")?;
    stage.itrs_lead("h1", "c")?;
    stage.itrs_lead("h2", "b")?;
    stage.registered_exactly(&[("h1", "c"), ("h2", "b")])?;
    stage.host_is_reachable("h1")?;
    stage.host_is_reachable("h2")
}

/// The old anchor dies with the node's departure: its registration is replaced, and its locator
/// matters to nobody.
#[test]
fn an_old_anchor_is_killed_before_it_lets_go() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.itrs_lead("h1", "b")?;
    stage.registered_exactly(&[("h1", "b")])?;
    stage.kill("b");
    stage.move_host("h1", "c")?;
    stage.itrs_lead("h1", "c")?;
    stage.host_is_reachable("h1")?;
    stage.lab.start("b")?;
    stage.itrs_lead("h1", "c")?;
    stage.registered_exactly(&[("h1", "c")])?;
    stage.host_is_reachable("h1")
}

/// Without BGP the home anchor is the one to ask who had a node; when it is dead, the mapping names
/// the previous anchor, and its context is there as ever.
#[test]
fn the_mapping_names_the_previous_anchor_when_the_home_is_dead() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.itrs_lead("h1", "b")?;
    stage.registered_exactly(&[("h1", "b")])?;
    stage.kill("a");
    stage.move_host("h1", "c")?;
    stage.itrs_lead("h1", "c")?;
    stage.registered_exactly(&[("h1", "c")])?;
    stage.host_is_reachable("h1")?;
    let told = stage.lab.killick_json("c", &format!("trace {}", stage.scene.hosts["h1"].mac))?;
    let traces = told.as_array().ok_or("no traces")?;
    let mut steps = traces.iter().flat_map(|t| t["steps"].as_array().into_iter().flatten());
    let from_b =
        |s: &serde_json::Value| s["phase"] == "context_received" && s["peer"] == "10.0.0.2";
    assert!(steps.any(from_b), "{told}");
    Ok(())
}

/// An ingress router that is killed finds its way back, by subscription and by question.
#[test]
fn ingress_routers_are_killed_and_learn_again() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    for itr in ["i1", "i2"] {
        stage.kill(itr);
    }
    stage.move_host("h1", "b")?;
    stage.move_host("h2", "c")?;
    for itr in ["i1", "i2"] {
        stage.lab.start(itr)?;
    }
    stage.itrs_lead("h1", "b")?;
    stage.itrs_lead("h2", "c")?;
    stage.host_is_reachable("h1")?;
    stage.host_is_reachable("h2")
}

/// What the engineer asks: each command answers, and `explain` names what counts.
#[test]
fn the_engineer_sees_where_traffic_goes_and_why() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.itrs_lead("h1", "b")?;
    let lab = &stage.lab;
    let probe = wait_until("locators answer", LIMIT, || {
        let probes = lab.killick_json("i1", "lisp probe")?;
        let all = probes.as_array().ok_or("no probes")?;
        let up = all.iter().filter(|p| p["state"] == "up").count();
        Ok((up > 0 && up == all.len()).then_some(up))
    })?;
    assert!(probe >= 2, "two locators at least are in use: {probe}");
    let lookup = lab.killick_json("ms", "lisp lookup 10.1.1.10")?;
    assert_eq!(lookup["rlocs"][0]["address"], "10.0.0.2", "{lookup}");
    assert_eq!(lookup["source"], "here");
    // A pool is answered as a Map-Request is: the part of it without others.
    let lookup = lab.killick_json("ms", "lisp lookup 10.1.3.77")?;
    assert_eq!(lookup["rlocs"][0]["address"], "2001:db8::3", "{lookup}");
    assert_eq!((&lookup["registered"], &lookup["site"]), (&json!("10.1.3.0/24"), &json!("c")));
    let lookup = lab.killick_json("ms", "lisp lookup 203.0.113.1")?;
    assert_eq!(lookup["action"], "natively forward", "nothing is there: {lookup}");
    let lookup = lab.killick_json("i2", "lisp lookup 10.1.3.77")?;
    assert_eq!(lookup["rlocs"][0]["address"], "2001:db8::3", "asked for: {lookup}");
    let lookup = lab.killick_json("i2", "lisp lookup 203.0.113.1")?;
    assert_eq!(lookup["source"], "not-asked", "{lookup}");
    // What the data plane has counted, and what is under way.
    wait_until("the entry of h1 has carried packets", LIMIT, || {
        let cache = lab.killick_json("i1", "lisp map-cache")?;
        let all = cache["items"].as_array().ok_or("no map-cache")?;
        let entry = all.iter().find(|m| m["eid"] == "10.1.1.10/32").ok_or("no h1")?;
        let counts = [&entry["packets"], &entry["octets"]].map(|n| n.as_u64().unwrap_or(0));
        Ok((counts[0] > 0 && counts[1] > counts[0]).then_some(()))
    })?;
    wait_until("b will refresh what is registered", LIMIT, || {
        let told = lab.killick_json("b", "lisp registrations")?;
        let all = told["items"].as_array().ok_or("no registrations")?;
        let left = all.iter().map(|r| r["left-s"].as_u64().unwrap_or(0));
        Ok((!all.is_empty() && left.min() > Some(0)).then_some(()))
    })?;
    let told = lab.killick_json("ms", "lisp subscriptions")?;
    let all = told.as_array().ok_or("no subscriptions")?;
    assert!(all.iter().all(|s| s["outstanding"].as_u64().is_some()), "{told}");
    wait_until("b tells since when its links are up", LIMIT, || {
        let status = lab.killick_json("b", "status")?;
        let peers = status["peers"].as_array().ok_or("no peers")?;
        Ok(peers.iter().all(|p| p["since-s"].as_u64() > Some(0)).then_some(()))
    })?;
    wait_until("the map-server tells since when", LIMIT, || {
        let told = lab.killick_json("ms", "mobility sessions")?;
        let all = told["items"].as_array().ok_or("no sessions")?;
        let since = all.iter().map(|s| s["since-s"].as_u64().unwrap_or(0));
        Ok((!all.is_empty() && since.min() > Some(0)).then_some(()))
    })?;
    // The same by the other back ends, each under the prefix that it is about.
    let back_end = |node: &str, prefix: &str, name: &str| -> Result<(String, String)> {
        let told = lab.killick_json(node, &format!("explain route {prefix}"))?;
        let ends = told["back-ends"].as_array().ok_or("no back ends")?;
        let end = ends.iter().find(|e| e["name"] == name);
        let end = end.ok_or_else(|| format!("no {name} at {node}: {told}"))?;
        let text = |key: &str| end[key].as_str().unwrap_or_default().to_owned();
        Ok((text("prefix"), text("leads-to")))
    };
    let (prefix, to) = back_end("ms", "10.1.1.10/32", "map-server")?;
    assert!(prefix == "10.1.1.10/32" && to.starts_with("10.0.0.2 1/100"), "{prefix} {to}");
    assert!(to.ends_with("of b"), "{to}");
    let (prefix, to) = back_end("ms", "10.1.3.77/32", "map-server")?;
    assert_eq!(prefix, "10.1.3.0/24", "{to}");
    let (prefix, to) = back_end("c", "10.1.3.77/32", "lisp-registration")?;
    assert!(prefix == "10.1.3.0/24" && to.starts_with("2001:db8::3"), "{prefix} {to}");
    let explained = lab.killick_json("i1", "explain route 10.1.1.10/32")?;
    let ends = explained["back-ends"].as_array().ok_or("no back ends")?;
    let ingress = ends.iter().find(|e| e["name"] == "ingress").ok_or("no ingress")?;
    assert_eq!(ingress["leads-to"], "tunnel to 10.0.0.2", "{explained}");
    let steps = |node: &str, mn: &str| -> Result<Vec<String>> {
        let told = lab.killick_json(node, &format!("trace {mn}"))?;
        let traces = told.as_array().ok_or("no traces")?;
        let steps = traces.iter().flat_map(|t| t["steps"].as_array().cloned().unwrap_or_default());
        Ok(steps.filter_map(|s| s["phase"].as_str().map(str::to_owned)).collect())
    };
    // A map-server without BGP has registered and published, and announced nothing.
    let told = lab.killick_json("ms", "trace eid:10.1.1.10/32")?;
    let trace = &told[0];
    let what = |phase: &str| {
        let steps = trace["steps"].as_array().into_iter().flatten();
        steps.filter(|s| s["phase"] == phase).filter_map(|s| s["what"].as_str()).next()
    };
    assert!(what("bound").is_some_and(|what| what.ends_with("Map-Register")), "{trace}");
    assert_eq!((what("announced"), &trace["to"]), (None, &json!("10.0.0.2")), "{trace}");
    assert_eq!((&trace["kind"], &trace["result"]), (&json!("initial"), &json!("done")));
    let told = lab.killick_json("i1", "trace eid:10.1.1.10/32")?;
    let mapping = &told[0]["mapping"];
    assert_eq!((&told[0]["kind"], &told[0]["mode"]), (&json!("mapping"), &json!("publication")));
    assert_eq!(mapping["to"], "10.0.0.2", "{told}");
    assert!(mapping["version"].as_u64() > Some(0), "{told}");
    let mn = &stage.scene.hosts["h1"].mac;
    for (node, name, phases) in [
        ("b", mn.as_str(), &["registering", "registered"][..]),
        ("ms", "eid:10.1.1.10/32", &["bound", "published"]),
        ("i1", "eid:10.1.1.10/32", &["mapping_set", "first_packet"]),
    ] {
        wait_until(&format!("the trace of {node} tells {phases:?}"), LIMIT, || {
            let told = steps(node, name)?;
            let has_all = phases.iter().all(|phase| told.iter().any(|t| t == phase));
            if has_all { Ok(Some(())) } else { Err(format!("{told:?}").into()) }
        })?;
    }
    Ok(())
}

/// The exposition of a killick as Prometheus would read it.
pub(super) fn scrape(lab: &Lab, node: &str) -> Result<String> {
    let mut stream = lab.namespace(node)?.inside(|| Ok(TcpStream::connect("127.0.0.1:9107")?))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Numbers that a move leaves behind: each role counts its own part of it, and nobody refuses.
#[test]
fn the_metrics_tell_of_a_move() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.move_host("h2", "b")?;
    for host in ["h1", "h2"] {
        stage.itrs_lead(host, "b")?;
        stage.host_is_reachable(host)?;
    }
    stage.registered_exactly(&[("h1", "b"), ("h2", "b")])?;
    let positive = [
        ("ms", "killick_lisp_map_registers_total{result=\"accepted\"}"),
        ("ms", "killick_lisp_map_notifies_total"),
        ("ms", "killick_lisp_map_requests_total{result=\"accepted\"}"),
        ("ms", "killick_lisp_map_replies_total{direction=\"out\"}"),
        ("ms", "killick_lisp_registrations{state=\"held\"}"),
        ("ms", "killick_lisp_subscriptions{state=\"served\"}"),
        ("ms", "killick_lisp_publications_total{result=\"sent\"}"),
        ("ms", "killick_lisp_publications_total{result=\"acknowledged\"}"),
        ("ms", "killick_signalling_bytes_total{direction=\"in\",protocol=\"lisp\"}"),
        ("ms", "killick_signalling_messages_total{direction=\"out\",protocol=\"lisp\"}"),
        ("b", "killick_lisp_map_registers_sent_total{kind=\"first\"}"),
        ("b", "killick_lisp_registrations{state=\"confirmed\"}"),
        ("b", "killick_encap_packets_total{direction=\"decapsulated\"}"),
        ("b", "killick_encap_decap_prefixes"),
        ("a", "killick_lisp_departed"),
        ("a", "killick_lisp_smr_total{direction=\"out\"}"),
        ("i1", "killick_lisp_subscriptions{state=\"subscribed\"}"),
        ("i1", "killick_lisp_publications_received_total{result=\"new\"}"),
        ("i1", "killick_lisp_map_cache_entries{state=\"pushed\"}"),
        ("i1", "killick_lisp_rlocs{state=\"up\"}"),
        ("i1", "killick_lisp_rloc_probe_rtt_seconds"),
        ("i1", "killick_encap_plane{plane=\"tun\"}"),
        ("i1", "killick_encap_entries"),
        ("i1", "killick_encap_packets_total{direction=\"encapsulated\"}"),
        ("i1", "killick_encap_bytes_total{direction=\"encapsulated\"}"),
        ("i2", "killick_lisp_map_requests_sent_total{kind=\"lookup\"}"),
        ("i2", "killick_lisp_map_cache_misses_total{result=\"asked\"}"),
        ("i2", "killick_lisp_map_cache_entries{state=\"asked\"}"),
        ("i2", "killick_lisp_smr_total{direction=\"in\"}"),
        ("i2", "killick_encap_packets_total{direction=\"encapsulated\"}"),
    ];
    wait_until("the metrics tell of it", LIMIT, || {
        let mut missing = Vec::new();
        for (node, series) in positive {
            let text = scrape(&stage.lab, node)?;
            let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
            let value: f64 = line.ok_or_else(|| format!("{node} has no {series}"))?.parse()?;
            if value <= 0.0 {
                missing.push(format!("{node}: {series} {value}"));
            }
        }
        if missing.is_empty() { Ok(Some(())) } else { Err(missing.join("; ").into()) }
    })?;
    for node in ["ms", "a", "b", "c", "i1", "i2"] {
        let text = scrape(&stage.lab, node)?;
        for bad in [
            "killick_lisp_messages_dropped_total{reason=\"malformed\"}",
            "killick_lisp_server_refused_total{reason=\"authentication\"}",
            "killick_lisp_publications_total{result=\"given_up\"}",
            "killick_encap_unsettled{state=\"failed\"}",
            "killick_encap_read_errors_total",
        ] {
            assert!(text.lines().any(|l| l == format!("{bad} 0")), "{node}: {bad} is not 0");
        }
    }
    // The same in a few lines.
    let status = stage.lab.killick_json("ms", "status")?;
    assert_eq!(status["lisp"]["roles"], serde_json::json!(["map-server"]), "{status}");
    assert!(status["lisp"]["registrations"].as_u64() > Some(0), "{status}");
    let status = stage.lab.killick_json("i1", "status")?;
    assert_eq!(status["lisp"]["data-plane"]["name"], "tun", "{status}");
    Ok(())
}

/// Replaces text in the configuration of a killick that does not run.
fn rewrite(lab: &Lab, node: &str, changes: &[(&str, &str)]) -> Result<()> {
    let path = lab.namespace(node)?.path(CONFIG);
    let mut text = fs::read_to_string(&path)?;
    for (old, new) in changes {
        if !text.contains(old) {
            return Err(format!("{node} has no {old:?}").into());
        }
        text = text.replace(old, new);
    }
    Ok(fs::write(&path, text)?)
}

/// The key of b is changed while h1 is there, as a site's and as a subscriber's: nobody refuses
/// anything, and h1 is reachable all the time.
#[test]
fn a_key_is_changed_and_nothing_is_refused() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    stage.move_host("h1", "b")?;
    stage.itrs_lead("h1", "b")?;
    for (node, path) in [("ms", "/etc/killick/keys/b-new"), ("b", "/etc/killick/lisp-key-new")] {
        fs::write(stage.lab.namespace(node)?.path(path), "the second secret of b\n")?;
    }
    const OLD: &str = "key-file = \"/etc/killick/keys/b\"\n";
    const BOTH: &str = "key-file = \"/etc/killick/keys/b\"\n\
        also-accept = [{ key-id = 2, key-file = \"/etc/killick/keys/b-new\" }]\n";
    const NEW: &str = "key-file = \"/etc/killick/keys/b-new\"\nkey-id = 2\n";
    let at_b = "key-file = \"/etc/killick/lisp-key\"\n";
    let both_at_b = "key-file = \"/etc/killick/lisp-key-new\"\nkey-id = 2\n\
        also-accept = [{ key-id = 1, key-file = \"/etc/killick/lisp-key\" }]\n";
    for (node, old, new) in [("ms", OLD, BOTH), ("b", at_b, both_at_b), ("ms", BOTH, NEW)] {
        stage.kill(node);
        rewrite(&stage.lab, node, &[(old, new)])?;
        stage.lab.start(node)?;
        wait_until(&format!("b is registered and subscribed after {node}"), LIMIT, || {
            let told = stage.lab.killick_json("b", "lisp registrations")?;
            let all = told["items"].as_array().ok_or("no registrations")?;
            // Two pools, and both addresses of h1.
            let confirmed = all.iter().filter(|r| r["state"] == "confirmed").count();
            let told = stage.lab.killick_json("b", "lisp subscriptions")?;
            let subscribed = told.as_array().ok_or("no subscriptions")?;
            let active = subscribed.iter().filter(|s| s["state"] == "active").count();
            Ok((confirmed == 4 && active == 2).then_some(()))
        })?;
        nothing_was_refused(&stage.lab)?;
        stage.registered_exactly(&[("h1", "b")])?;
        stage.host_is_reachable("h1")?;
    }
    // Moves under the new key are told to b by it, and by b.
    for anchor in ["c", "b"] {
        stage.move_host("h1", anchor)?;
        stage.itrs_lead("h1", anchor)?;
        stage.registered_exactly(&[("h1", anchor)])?;
    }
    nothing_was_refused(&stage.lab)?;
    stage.host_is_reachable("h1")
}

/// No registration, subscription or acknowledgement, since the map-server was started.
fn nothing_was_refused(lab: &Lab) -> Result<()> {
    let text = scrape(lab, "ms")?;
    for reason in ["authentication", "ack_authentication", "replay", "subscriber_not_allowed"] {
        let series = format!("killick_lisp_server_refused_total{{reason=\"{reason}\"}} 0");
        assert!(text.lines().any(|l| l == series), "not {series}");
    }
    Ok(())
}

/// What is said of a series by a killick's metrics.
fn metric(lab: &Lab, node: &str, series: &str) -> Result<f64> {
    let text = scrape(lab, node)?;
    let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    Ok(line.ok_or_else(|| format!("{node} has no {series}"))?.parse()?)
}

/// The core routes a's home pools to a, as it does where aggregates are announced.
fn route_pools_to_a(lab: &Lab) -> Result<()> {
    for (family, pool, anchor) in
        [("-4", "10.1.1.0/24", "10.0.0.1"), ("-6", "2001:db8:1:1::/64", "2001:db8::1")]
    {
        for router in ["c1", "c2"] {
            let told = lab.sh(router, &format!("ip {family} -j route get {anchor}"))?;
            let route: serde_json::Value = serde_json::from_str(&told)?;
            let gateway = route[0]["gateway"].as_str().ok_or("no way to a")?;
            lab.sh(router, &format!("ip {family} route add {pool} via {gateway}"))?;
        }
    }
    Ok(())
}

const H1: [&str; 2] = ["10.1.1.10", "2001:db8:1:1::10"];

/// Pings to h1 that cn2 has an answer to, of ten for each address.
fn answered(lab: &Lab) -> Result<[usize; 2]> {
    let mut counts = [0; 2];
    for (count, address) in counts.iter_mut().zip(H1) {
        let told = lab.sh("cn2", &format!("ping -n -c 10 -i 0.02 -W 1 {address} || true"))?;
        *count = told.lines().filter(|line| line.contains("bytes from")).count();
    }
    Ok(counts)
}

/// i2 asks, and nobody answers it for a while: first packets wait (in vain), take the triangle
/// through the home anchor, or are dropped. When the answer comes, all go through a tunnel.
fn first_packets(encapsulation: &str, inner: &str) -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set_with(LISP, |lab| {
        add_to_lisp(lab, |name| {
            let plane = format!("encapsulation = \"{encapsulation}\"\n");
            let inside =
                if name.starts_with('i') { "[\"eth2\"]" } else { "[\"eth11\", \"eth12\"]" };
            plane + &inner.replace("INSIDE", inside)
        })
    })?;
    route_pools_to_a(&stage.lab)?;
    for (first, reached) in [("drop", false), ("hold", false), ("triangle", true)] {
        stage.kill("i2");
        let path = stage.lab.namespace("i2")?.path(CONFIG);
        let text = fs::read_to_string(&path)?;
        let without = text.lines().filter(|line| !line.starts_with("first-packets"));
        let without: String = without.map(|line| format!("{line}\n")).collect();
        let policy = "policy = \"query\"\n";
        let with = format!("{policy}first-packets = \"{first}\"\n");
        fs::write(&path, without.replace(policy, &with))?;
        stage.lab.sh("i2", "ip route add unreachable 10.0.0.50")?;
        stage.lab.start("i2")?;
        let lab = &stage.lab;
        wait_until("i2 has forgotten what it knew", LIMIT, || {
            let cache = lab.killick_json("i2", "lisp map-cache")?;
            let status = lab.killick_json("i2", "status")?;
            let groups = metric(lab, "i2", "killick_encap_groups")?;
            let empty = cache["items"].as_array().is_some_and(Vec::is_empty);
            Ok((empty && groups == 0.0 && status["ready"] == true).then_some(()))
        })?;
        let counter = match first {
            "drop" => "killick_encap_dropped_packets_total{reason=\"first_packet\"}",
            "hold" => "killick_encap_dropped_packets_total{reason=\"not_held\"}",
            _ => "killick_encap_packets_total{direction=\"around\"}",
        };
        let wanted = if reached { [10, 10] } else { [0, 0] };
        wait_until(&format!("{encapsulation}, {first}: {wanted:?} are answered"), LIMIT, || {
            let found = answered(lab)?;
            if found == wanted { Ok(Some(())) } else { Err(format!("{found:?}").into()) }
        })?;
        wait_until(&format!("{encapsulation}, {first}: {counter} counts"), LIMIT, || {
            let found = metric(lab, "i2", counter)?;
            if found >= 20.0 { Ok(Some(())) } else { Err(format!("{found}").into()) }
        })?;
        lab.sh("i2", "ip route del unreachable 10.0.0.50")?;
        wait_until(&format!("{encapsulation}, {first}: i2 has its answer"), 2 * LIMIT, || {
            let found = answered(lab)?;
            let cache = lab.killick_json("i2", "lisp map-cache")?;
            let all = cache["items"].as_array().ok_or("no map-cache")?;
            let knows = |pool: &str| all.iter().any(|m| m["eid"] == pool);
            let done = found == [10, 10] && knows("10.1.1.0/24") && knows("2001:db8:1:1::/64");
            if done { Ok(Some(())) } else { Err(format!("{found:?} {cache}").into()) }
        })?;
        // All of it in tunnels now. Counters are copied once a second: of two copies, the first
        // may tell of what was before.
        let encapsulated = "killick_encap_packets_total{direction=\"encapsulated\"}";
        let mut counts = Vec::new();
        for _ in 0..2 {
            let start = metric(lab, "i2", encapsulated)?;
            assert_eq!(answered(lab)?, [10, 10], "{encapsulation}, {first}");
            wait_until("the counters are copied", LIMIT, || {
                Ok((metric(lab, "i2", encapsulated)? >= start + 20.0).then_some(()))
            })?;
            counts.push(metric(lab, "i2", counter)?);
        }
        assert_eq!(counts[0], counts[1], "{encapsulation}, {first}");
    }
    Ok(())
}

#[test]
fn first_packets_wait_or_take_the_triangle_or_are_dropped_tun() -> Result<()> {
    first_packets("tun", "")
}

#[test]
fn first_packets_wait_or_take_the_triangle_or_are_dropped_gpe() -> Result<()> {
    first_packets("gpe", "")
}

#[test]
fn first_packets_wait_or_take_the_triangle_or_are_dropped_ebpf() -> Result<()> {
    first_packets("ebpf", "inner-interfaces = INSIDE\nouter-interfaces = [\"eth1\"]\n")
}

/// An address of a's pool that nobody has attached: its packets end at a, though the core would
/// send them back to it. Those of hosts that are there, or away, do not.
#[test]
fn packets_for_nobody_do_not_go_around() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set(LISP)?;
    route_pools_to_a(&stage.lab)?;
    let lab = &stage.lab;
    for address in ["10.1.1.99", "2001:db8:1:1::99"] {
        // Once more when i2 has asked: what is sent first waits for that.
        for _ in 0..2 {
            let told = lab.sh("cn2", &format!("ping -n -c 3 -i 0.05 -W 1 {address} || true"))?;
            assert!(!told.contains("bytes from") && !told.contains("exceeded"), "{told}");
        }
    }
    let away = |lab: &Lab| -> Result<String> {
        Ok(lab.sh("a", "ip route show type blackhole")?
            + &lab.sh("a", "ip -6 route show type blackhole")?)
    };
    let shown = away(lab)?;
    for pool in ["10.1.1.0/24", "2001:db8:1:1::/64"] {
        assert!(shown.contains(&format!("blackhole {pool}")), "{shown}");
    }
    assert!(!shown.contains("10.1.2.0"), "not the pools of others: {shown}");
    // Without the route they do.
    lab.sh("a", "ip route del blackhole 10.1.1.0/24")?;
    let told = lab.sh("cn2", "ping -n -c 3 -i 0.05 -W 1 10.1.1.99 || true")?;
    assert!(told.contains("exceeded"), "{told}");
    assert_eq!(answered(lab)?, [10, 10], "h1 at home");
    stage.move_host("h1", "b")?;
    stage.itrs_lead("h1", "b")?;
    stage.host_is_reachable("h1")?;
    assert_eq!(answered(&stage.lab)?, [10, 10], "h1 at b");
    // Of a pool that is no longer ours nothing is left over.
    stage.kill("a");
    let pool = |home: &str| format!("prefix = \"2001:db8:1:1::/64\"\nhome = \"{home}\"");
    rewrite(&stage.lab, "a", &[(&pool("a"), &pool("b"))])?;
    stage.lab.start("a")?;
    wait_until("a has given up a pool", LIMIT, || {
        let shown = away(&stage.lab)?;
        Ok((shown.contains("10.1.1.0/24") && !shown.contains("2001:db8:1:1::/64")).then_some(()))
    })
}

/// A capture of what goes to and from UDP 4342 at a node, by tshark.
struct Capture {
    tshark: Child,
    file: PathBuf,
}

impl Capture {
    fn start(lab: &Lab, node: &str) -> Result<Self> {
        let file = lab.namespace(node)?.path("/tmp/control.pcapng");
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut tshark = lab.namespace(node)?.command("tshark");
        tshark.args(["-Q", "-i", "eth1", "-f", "udp port 4342", "-w"]).arg(&file);
        let tshark = tshark.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let capture = Self { tshark, file };
        wait_until("tshark captures", LIMIT, || {
            Ok(fs::metadata(&capture.file).is_ok_and(|file| file.len() > 0).then_some(()))
        })?;
        Ok(capture)
    }

    /// The kinds of messages that came, how many of each, and what the dissector complains of.
    fn read(mut self) -> Result<(BTreeMap<String, usize>, Vec<String>)> {
        // SAFETY: a system call; the pid is ours until it has been waited for.
        if unsafe { libc::kill(self.tshark.id().cast_signed(), libc::SIGINT) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        self.tshark.wait()?;
        let fields = ["lisp.type", "_ws.malformed", "_ws.expert.message", "frame.number"];
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&self.file).args(["-T", "json"]);
        for field in fields {
            tshark.args(["-e", field]);
        }
        let read = tshark.output()?;
        if !read.status.success() {
            return Err(String::from_utf8_lossy(&read.stderr).into());
        }
        let packets: Vec<serde_json::Value> = serde_json::from_slice(&read.stdout)?;
        let (mut kinds, mut complaints) = (BTreeMap::new(), Vec::new());
        for packet in packets {
            let of = |field: &str| {
                let all = packet["_source"]["layers"][field].as_array().cloned();
                let all = all.unwrap_or_default();
                all.iter().filter_map(|v| v.as_str()).collect::<Vec<_>>().join(",")
            };
            let kind = of("lisp.type");
            let complaint = of("_ws.malformed") + &of("_ws.expert.message");
            if !complaint.is_empty() {
                complaints.push(format!("{kind}: {complaint} (frame {})", of("frame.number")));
            }
            *kinds.entry(kind).or_default() += 1;
        }
        Ok((kinds, complaints))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It has ended already, or the test has failed.
        let _ = self.tshark.kill();
        let _ = self.tshark.wait();
    }
}

/// Whatever our nodes say to each other about moves, somebody else's dissector can read.
#[test]
fn a_dissector_reads_all_control_messages_of_a_move() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    if let Err(error) = Command::new("tshark").arg("--version").output() {
        eprintln!("SKIPPED: tshark cannot be run ({error})");
        return Ok(());
    }
    let stage = Stage::set(LISP)?;
    let nodes = ["ms", "a", "b", "c", "i1", "i2"];
    let captures = nodes.map(|node| Capture::start(&stage.lab, node));
    for anchor in ["b", "c", "a"] {
        for host in ["h1", "h2"] {
            stage.move_host(host, anchor)?;
            stage.itrs_lead(host, anchor)?;
            stage.host_is_reachable(host)?;
        }
    }
    stage.registered_exactly(&[])?;
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for (node, capture) in nodes.into_iter().zip(captures) {
        let (kinds, mut complaints) = capture?.read()?;
        // It does not know Map-Notify-Acks.
        complaints.retain(|complaint| !complaint.starts_with("5:"));
        assert_eq!(complaints, [""; 0], "{node}: {kinds:?}");
        kinds.into_iter().for_each(|(kind, count)| *all.entry(kind).or_default() += count);
    }
    // Map-Request, -Reply, -Register, -Notify, -Notify-Ack, and ECMs (in those that carry a
    // one-time key it does not look for the question).
    for kind in ["1", "2", "3", "4", "5", "8"] {
        assert!(all.get(kind).is_some_and(|count| *count > 0), "none of {kind}: {all:?}");
    }
    Ok(())
}
