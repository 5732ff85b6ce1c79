//! The demo: hosts roam under traffic, and each move is told by those who felt it (the flows), those
//! who made it (the anchors' traces) and those who followed it (the routers).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::Result;
use super::daemon::killick_program;
use super::kernel::KernelWatch;
use super::lab::{Lab, wait_until};
use super::namespace;
use super::scene::Scene;
use super::signals;
use super::topology::Role;
use super::traffic::{Flows, Plan, Report, Transfer, now_ns};

/// Each flow has a packet at this pace.
const PACE: Duration = Duration::from_millis(1);
/// How long a move is watched.
const WATCH: Duration = Duration::from_secs(2);
const CONNECTED_LIMIT: Duration = Duration::from_secs(30);
const AGREE_LIMIT: Duration = Duration::from_secs(10);
/// Ports of the flows: one for each, from here on.
const FIRST_PORT: u16 = 20_000;
const TRANSFER_PORT: u16 = 19_999;

/// The flows of one host: from and to it, IPv4 then IPv6, in the order of the plan.
const FLOWS_PER_HOST: usize = 4;

pub fn run(name: &str) -> Result<()> {
    signals::exit_on_signal()?;
    let started = Instant::now();
    let lab = Lab::up(name, true)?;
    let scene = Scene::of(&lab)?;
    scene.wait_until_connected(&lab, CONNECTED_LIMIT)?;
    let first = scene.anchors.keys().next().ok_or("no anchor")?.clone();
    for host in scene.hosts.keys() {
        // Whoever speaks first is noticed; a host that roams in does.
        for address in scene.correspondent_of(host)?.addresses {
            wait_until(&format!("{host} reaches {address}"), AGREE_LIMIT, || {
                lab.sh(host, &format!("ping -c 1 -W 1 {address}")).map(Some)
            })?;
        }
    }
    println!("{name}: up, attached and reachable after {:.1} s", started.elapsed().as_secs_f64());

    let mut plans = Vec::new();
    for (host, known) in &scene.hosts {
        let correspondent = scene.correspondent_of(host)?;
        for (host_address, cn_address) in known.addresses.iter().zip(correspondent.addresses) {
            let at = |address: IpAddr, plans: &Vec<Plan<'_>>| {
                SocketAddr::new(address, FIRST_PORT + plans.len() as u16)
            };
            let here = (lab.namespace(host)?, at(*host_address, &plans));
            let there = (lab.namespace(&correspondent.name)?, at(cn_address, &plans));
            plans.push(Plan { from: here, to: there });
            let here = (here.0, at(*host_address, &plans));
            let there = (there.0, at(cn_address, &plans));
            plans.push(Plan { from: there, to: here });
        }
    }
    let flows = Flows::start(&plans, PACE)?;
    let (tcp_host, known) = scene.hosts.iter().next().ok_or("no host")?;
    let source = scene.correspondent_of(tcp_host)?;
    let transfer = Transfer::start(&Plan {
        from: (lab.namespace(&source.name)?, SocketAddr::new(source.addresses[0], TRANSFER_PORT)),
        to: (lab.namespace(tcp_host)?, SocketAddr::new(known.addresses[0], TRANSFER_PORT)),
    })?;
    println!(
        "{} UDP flows at {} ms, and a TCP transfer from {} to {tcp_host}\n",
        plans.len(),
        PACE.as_millis(),
        source.name
    );

    let control = watch_from(now_ns());
    let control_reports: Vec<Report> =
        (0..plans.len()).map(|flow| flows.report(flow, control.clone())).collect();
    println!("nobody moves for {} s:", WATCH.as_secs());
    print_flows(&scene, &control_reports);
    let control = sum(&control_reports);

    // GoBGP has no kernel routes of its own; the FRR routers forward.
    let watches = lab
        .with_role(Role::Frr)
        .map(|router| KernelWatch::start(&lab, router))
        .collect::<Result<Vec<_>>>()?;
    let mut moves = Vec::new();
    let mut round: Vec<String> = scene.anchors.keys().skip(1).cloned().collect();
    round.push(first.clone());
    let mut from = first;
    for to in round {
        for (at, host) in scene.hosts.keys().enumerate() {
            moves.extend(one_move(
                &lab,
                &scene,
                (&flows, &transfer, &watches),
                (at, host),
                (&from, &to),
            )?);
        }
        from = to;
    }
    drop(transfer);
    drop(flows);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/demo/{name}.json"));
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let all = json!({
        "lab": name,
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "pace_ms": PACE.as_millis() as u64,
        "watched_ms": WATCH.as_millis() as u64,
        "control": control,
        "moves": moves,
        "machine": machine(),
    });
    fs::write(&file, serde_json::to_string_pretty(&all)?)?;
    println!("written: {}", file.display());
    Ok(())
}

/// Waits for the end of a window that begins at `start`, and a little for what is on the way.
fn watch_from(start: u64) -> Range<u64> {
    let end = start + WATCH.as_nanos() as u64;
    let on_the_way = Duration::from_millis(100);
    let rest = Duration::from_nanos(end.saturating_sub(now_ns()));
    std::thread::sleep(rest + on_the_way);
    start..end
}

fn one_move(
    lab: &Lab,
    scene: &Scene,
    (flows, transfer, watches): (&Flows, &Transfer, &[KernelWatch]),
    (at, host): (usize, &str),
    (from, to): (&str, &str),
) -> Result<Vec<Value>> {
    let known = &scene.hosts[host];
    println!("\n=== {host} ({}) moves {from} → {to}", known.mac);
    let before = routers_say(lab, scene, known.addresses[0]);

    let start = now_ns();
    scene.move_host(lab, host, to)?;
    let link_ms = (now_ns() - start) as f64 / 1e6;
    let mut dissenters = Vec::new();
    let agreed = wait_until("the routers agree", AGREE_LIMIT, || {
        dissenters = scene.dissenters(lab, host, to);
        Ok(dissenters.is_empty().then(now_ns))
    });
    let mut itr_dissenters = Vec::new();
    let itrs_agreed = wait_until("the ingress routers agree", AGREE_LIMIT, || {
        itr_dissenters = scene.itr_dissenters(lab, host, to);
        Ok(itr_dissenters.is_empty().then_some(()))
    });
    let window = watch_from(start);

    let reports: Vec<Report> = (0..FLOWS_PER_HOST)
        .map(|flow| flows.report(at * FLOWS_PER_HOST + flow, window.clone()))
        .collect();
    print_rows(host, known.addresses, &reports);
    println!("  the change of link itself: {link_ms:.1} ms");
    let transfer = if at == 0 {
        let report = transfer.report(window)?;
        println!(
            "  TCP: {:.1} Mbit/s, longest stall {:.1} ms, {} segments retransmitted",
            report.bytes as f64 * 8.0 / WATCH.as_secs_f64() / 1e6,
            report.stall_ms,
            report.retransmissions
        );
        Some(report)
    } else {
        None
    };
    let (trace, sighted_us, steps) = trace(lab, to, &known.mac)?;
    println!("  killick trace {} at {to}:", known.mac);
    trace.lines().for_each(|line| println!("    {line}"));
    let in_kernels = |address: IpAddr| -> Map<String, Value> {
        let since = |w: &KernelWatch| w.first_change(address, sighted_us);
        watches.iter().map(|w| (w.router.clone(), json!(since(w)))).collect()
    };
    for address in known.addresses {
        let told: Vec<String> = in_kernels(address)
            .iter()
            .map(|(router, us)| match us.as_f64() {
                Some(us) => format!("{router} {:.1} ms", us / 1e3),
                None => format!("{router} not seen"),
            })
            .collect();
        println!("  {address} in the routers' kernels after the sighting: {}", told.join(", "));
    }
    if let Err(e) = &itrs_agreed {
        println!("  THE INGRESS ROUTERS DO NOT AGREE: {e}: {itr_dissenters:?}");
    }
    println!("  the routers before and after ({}):", known.addresses[0]);
    for (before, after) in before.iter().zip(routers_say(lab, scene, known.addresses[0])) {
        println!("    - {before}\n    + {after}");
    }
    match &agreed {
        Ok(_) if scene.routers.is_empty() => {}
        Ok(at) => {
            println!(
                "  all routers agree, seen {:.0} ms after the move",
                (at - start) as f64 / 1e6
            );
        }
        Err(e) => println!("  THE ROUTERS DO NOT AGREE: {e}: {dissenters:?}"),
    }

    let mut rows = Vec::new();
    for (family, address) in known.addresses.iter().enumerate() {
        let (up, down) = (&reports[2 * family], &reports[2 * family + 1]);
        let both = sum(&[up.clone(), down.clone()]);
        let prefix = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
        let (phases, announced) = phases(&steps, &prefix);
        rows.push(json!({
            "mobile_node": known.mac,
            "host": host,
            "prefix": prefix,
            "from": from,
            "to": to,
            "to_anchor_id": scene.anchors[to].id,
            "mode": scene.mode,
            "outage_ms": both.outage_ms,
            "sent": both.sent,
            "lost": both.lost,
            "duplicated": both.duplicated,
            "reordered": both.reordered,
            "from_host": up,
            "to_host": down,
            "tcp": if family == 0 { json!(transfer) } else { Value::Null },
            "link_change_ms": link_ms,
            "phases": phases,
            "sighted_to_announced_us": announced,
            "sighted_to_kernel_us": in_kernels(*address),
            "routers_agree": agreed.is_ok(),
            "itrs_agree": (!scene.itrs.is_empty()).then_some(itrs_agreed.is_ok()),
            "itrs": scene.itrs.iter().map(|(itr, policy)| format!("{itr}: {policy}")).collect::<Vec<_>>(),
        }));
    }
    Ok(rows)
}

/// The timeline of the node's last move: as text, when it began, and its steps.
pub fn trace(lab: &Lab, anchor: &str, mn: &str) -> Result<(String, u64, Vec<Value>)> {
    let killick = killick_program()?;
    let text = namespace::run(lab.namespace(anchor)?.command(&killick).args(["trace", mn]))?;
    let told = lab.killick_json(anchor, &format!("trace {mn}"))?;
    // Newest first; the older ones are of older moves.
    let newest = told.as_array().and_then(|traces| traces.first());
    let newest = newest.ok_or("the trace is empty")?;
    let sighted_us = newest["started-unix-us"].as_u64().ok_or("the trace has no start")?;
    Ok((text, sighted_us, newest["steps"].as_array().cloned().unwrap_or_default()))
}

/// Of one prefix: each phase with the microseconds since the one before; and those from the
/// sighting to the announcement, which is the part that killick is responsible for.
pub fn phases(steps: &[Value], prefix: &str) -> (Map<String, Value>, Option<u64>) {
    let mut phases = Map::new();
    let (mut first, mut before, mut announced) = (None, 0, None);
    for step in steps.iter().filter(|step| step["prefix"] == prefix) {
        let (Some(phase), Some(at)) = (step["phase"].as_str(), step["at-us"].as_u64()) else {
            continue;
        };
        let first = *first.get_or_insert(at);
        let since = if phases.is_empty() { 0 } else { at.saturating_sub(before) };
        let sum = phases.get(phase).and_then(Value::as_u64).unwrap_or(0) + since;
        phases.insert(phase.to_owned(), json!(sum));
        before = at;
        if matches!(phase, "announced" | "at_home") {
            announced.get_or_insert(at - first);
        }
    }
    (phases, announced)
}

/// A line for each router: what it says about the address, in its own words as far as one line goes.
fn routers_say(lab: &Lab, scene: &Scene, address: IpAddr) -> Vec<String> {
    let say = |router: &String| -> Result<String> {
        let text = match lab.nodes.get(router).map(|node| node.role) {
            Some(Role::Frr) => {
                // The line with the route; those before it are about the lookup.
                let text = lab.vtysh(router, &format!("show ip route {address}"))?;
                let entry = text.lines().filter(|line| {
                    let line = line.trim();
                    line.starts_with("Routing entry")
                        || line.starts_with("* ")
                        || line.contains("(recursive)")
                });
                entry.map(str::trim).collect::<Vec<_>>().join("; ")
            }
            Some(Role::Bird) => {
                let text = lab.birdc(router, &format!("show route for {address} primary"))?;
                text.lines().skip(2).map(str::trim).collect::<Vec<_>>().join(" ")
            }
            _ => {
                let hop = super::scene::next_hop(lab, router, address)?;
                hop.map_or("no route".into(), |hop| format!("best path to {hop}"))
            }
        };
        Ok(if text.is_empty() { "no route".into() } else { text })
    };
    let mut said: Vec<String> = scene
        .routers
        .iter()
        .map(|router| format!("{router}: {}", say(router).unwrap_or_else(|e| e.to_string())))
        .collect();
    for (itr, policy) in &scene.itrs {
        let mapping = match super::scene::mapping(lab, itr, address) {
            Ok(Some(rlocs)) => format!("tunnel to {rlocs:?}"),
            Ok(None) => "no mapping".to_owned(),
            Err(e) => e.to_string(),
        };
        said.push(format!("{itr} ({policy}): {mapping}"));
    }
    said
}

fn sum(reports: &[Report]) -> Report {
    reports.iter().fold(Report::default(), |all, one| Report {
        sent: all.sent + one.sent,
        lost: all.lost + one.lost,
        duplicated: all.duplicated + one.duplicated,
        reordered: all.reordered + one.reordered,
        outage_ms: all.outage_ms.max(one.outage_ms),
    })
}

fn print_flows(scene: &Scene, reports: &[Report]) {
    for ((host, known), reports) in scene.hosts.iter().zip(reports.chunks(FLOWS_PER_HOST)) {
        print_rows(host, known.addresses, reports);
    }
}

fn print_rows(host: &str, addresses: [IpAddr; 2], reports: &[Report]) {
    for (flow, report) in reports.iter().enumerate() {
        let direction = if flow % 2 == 0 { "from" } else { "to  " };
        println!(
            "  {direction} {host} {:<20} outage {:>7.1} ms  sent {:>5}  lost {:>4}  duplicated {:>3}  reordered {:>3}",
            addresses[flow / 2].to_string(),
            report.outage_ms,
            report.sent,
            report.lost,
            report.duplicated,
            report.reordered
        );
    }
}

/// What the figures were taken with.
fn machine() -> Value {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
    };
    let killick = killick_program().ok().and_then(|program| first_line(&program, "version"));
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(": ")?.1.to_owned())
    });
    json!({
        "kernel": first_line("uname", "-sr"),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "killick": killick,
        "frr": first_line("/usr/lib/frr/bgpd", "--version"),
        "bird": first_line("bird", "--version"),
        "gobgp": first_line("gobgpd", "--version"),
    })
}
