//! Path liveness in the lab `bfd`: killick with BIRD, FRR's bfdd and another killick, over one hop
//! and over many. All intervals are 100 ms, so silence of 300 ms is a failure; the hold time of BGP
//! is 90 s.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::daemon::Daemon;
use super::lab::{Lab, wait_until};
use super::stage::Stage;
use super::{Result, may_build_labs};

/// A session that is not up sends once a second, and FRR makes its session anew when BGP is up.
const LIMIT: Duration = Duration::from_secs(20);
/// Of a detection time of 300 ms, with two cores for everything.
const DETECTED: Duration = Duration::from_millis(1500);
const ADDRESSES: [&str; 6] =
    ["10.9.1.2", "2001:db8:9:1::2", "10.9.0.2", "10.9.2.2", "10.9.0.3", "10.9.0.4"];

fn find(lab: &Lab, node: &str, command: &str, address: &str) -> Result<Value> {
    let told = lab.killick_json(node, command)?;
    let all = told.as_array().ok_or("no list")?;
    let found = all.iter().find(|item| item["address"] == address);
    Ok(found.ok_or_else(|| format!("{address} is not in {told}"))?.clone())
}

fn session(lab: &Lab, address: &str) -> Result<Value> {
    find(lab, "k", "bfd sessions", address)
}

fn neighbor(lab: &Lab, address: &str) -> Result<Value> {
    find(lab, "k", "bgp neighbors", address)
}

/// BFD and BGP of `k` to all of these.
fn all_up(lab: &Lab, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        wait_until(&format!("BFD and BGP to {address}"), LIMIT, || {
            let (path, bgp) = (session(lab, address)?, neighbor(lab, address)?);
            match (path["state"].as_str(), bgp["state"].as_str()) {
                (Some("up"), Some("established")) => Ok(Some(())),
                _ => Err(format!("{path} {bgp}").into()),
            }
        })?;
    }
    Ok(())
}

/// Drops both directions on a link, without a word to anybody.
fn cut(lab: &Lab, node: &str, interface: &str) -> Result<()> {
    let chain = |hook: &str| {
        format!(
            "nft 'add chain netdev cut {hook} {{ type filter hook {hook} device {interface} \
             priority 0; policy drop; }}'"
        )
    };
    lab.sh(
        node,
        &format!("nft add table netdev cut && {} && {}", chain("ingress"), chain("egress")),
    )
    .map(drop)
}

fn mend(lab: &Lab, node: &str) -> Result<()> {
    lab.sh(node, "nft delete table netdev cut").map(drop)
}

/// Until killick has ended the session because of the path, and how long that took.
fn falls(lab: &Lab, address: &str, since: Instant) -> Result<Duration> {
    wait_until(&format!("the session with {address} ends"), DETECTED, || {
        let bgp = neighbor(lab, address)?;
        Ok((bgp["state"] != "established").then_some(()))
    })?;
    let took = since.elapsed();
    let bgp = neighbor(lab, address)?;
    assert_eq!(bgp["last-error"], "the path is down (BFD)", "{bgp}");
    Ok(took)
}

fn bird_sees(lab: &Lab, address: &str, state: &str) -> Result<()> {
    wait_until(&format!("{address} is {state} at BIRD"), LIMIT, || {
        let shown = lab.birdc("bird", "show bfd sessions")?;
        let found = shown.lines().find(|line| line.starts_with(&format!("{address} ")));
        let is_so = found.is_some_and(|line| line.split_whitespace().any(|word| word == state));
        if is_so { Ok(Some(())) } else { Err(shown.into()) }
    })
}

fn frr_sees(lab: &Lab, address: &str, state: &str) -> Result<Value> {
    wait_until(&format!("{address} is {state} at FRR"), LIMIT, || {
        let peers = lab.vtysh_json("frr", "show bfd peers json")?;
        let all = peers.as_array().ok_or("no list of peers")?;
        let found = all.iter().find(|peer| peer["peer"] == address);
        match found.filter(|peer| peer["status"] == state) {
            Some(peer) => Ok(Some(peer.clone())),
            None => Err(peers.to_string().into()),
        }
    })
}

#[test]
fn a_cut_path_ends_a_session_in_the_detection_time() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let lab = Lab::up("bfd", true)?;
    all_up(&lab, &ADDRESSES)?;
    for address in ["10.9.1.1", "2001:db8:9:1::1", "10.9.0.1"] {
        bird_sees(&lab, address, "Up")?;
    }
    for address in ["10.9.2.1", "10.9.0.1"] {
        frr_sees(&lab, address, "up")?;
    }
    for address in ADDRESSES {
        let path = session(&lab, address)?;
        assert_eq!(path["detection-time-us"], 300_000, "{path}");
        assert_eq!(path["transmit-interval-us"], 100_000, "{path}");
        assert_eq!(path["authenticated"], address == "10.9.0.2", "{path}");
        assert_eq!(path["packets-discarded"], 0, "{path}");
    }

    // One hop, BIRD: both families.
    let flaps: u64 = neighbor(&lab, "10.9.0.2")?["flaps"].as_u64().ok_or("no number")?;
    let at = Instant::now();
    cut(&lab, "bird", "eth1")?;
    let took = falls(&lab, "10.9.1.2", at)?;
    falls(&lab, "2001:db8:9:1::2", at)?;
    println!("cut of the link to BIRD: BGP down after {took:?}");
    bird_sees(&lab, "10.9.1.1", "Down")?;
    assert_eq!(session(&lab, "10.9.1.2")?["diagnostic"], "detection time expired");
    // What goes another way is not touched.
    let other = neighbor(&lab, "10.9.0.2")?;
    assert_eq!((&other["state"], &other["flaps"]), (&"established".into(), &flaps.into()));
    mend(&lab, "bird")?;
    all_up(&lab, &ADDRESSES)?;

    // Many hops, FRR: a router in between loses the packets.
    let at = Instant::now();
    cut(&lab, "m", "eth4")?;
    let took = falls(&lab, "10.9.0.3", at)?;
    println!("cut behind the router to FRR: BGP down after {took:?}");
    frr_sees(&lab, "10.9.0.1", "down")?;
    mend(&lab, "m")?;
    all_up(&lab, &ADDRESSES)?;

    // One hop, FRR: the carrier is lost.
    let at = Instant::now();
    lab.sh("frr", "ip link set eth1 down")?;
    let took = falls(&lab, "10.9.2.2", at)?;
    println!("the interface of FRR down: BGP down after {took:?}");
    lab.sh("frr", "ip link set eth1 up")?;
    all_up(&lab, &ADDRESSES)?;

    // Only the packets of BFD are lost, and BIRD is to be patient (ten of them): so it hears from
    // killick why its session ends.
    let lose = "nft add table ip lose && nft 'add chain ip lose in { type filter hook input \
                priority 0; }' && nft 'add chain ip lose out { type filter hook output priority 0; \
                }' && nft add rule ip lose in udp dport 4784 ip saddr 10.9.0.2 drop && nft add \
                rule ip lose out udp dport 4784 ip daddr 10.9.0.2 drop";
    let at = Instant::now();
    lab.sh("k", lose)?;
    falls(&lab, "10.9.0.2", at)?;
    let told = wait_until("BIRD hears the reason", LIMIT, || {
        let told = lab.birdc("bird", "show protocols all multi")?;
        Ok(told.lines().find(|line| line.contains("Last error:")).map(str::to_owned))
    })?;
    // BIRD 2.0.12 has no word for Cease/BFD Down (RFC 9384).
    assert!(told.ends_with("Received: Unknown error 6.10"), "{told}");
    lab.sh("k", "nft delete table ip lose")?;
    all_up(&lab, &ADDRESSES)?;

    for line in [
        "killick_bfd_sessions{state=\"up\"} 6",
        "killick_bfd_discards_total{reason=\"ttl\"} 0",
        "killick_bgp_bfd_downs_total{peer=\"10.9.0.3\"} 1",
    ] {
        // They are copied once a second.
        wait_until(line, LIMIT, || {
            let metrics = super::lisp::scrape(&lab, "k")?;
            let bfd = metrics.lines().filter(|l| l.contains("_bfd_")).collect::<Vec<_>>();
            if bfd.contains(&line) { Ok(Some(())) } else { Err(bfd.join("\n").into()) }
        })?;
    }
    Ok(())
}

/// The strict one waits for the path; nobody takes a stop for a failure.
#[test]
fn an_orderly_stop_is_announced_and_a_strict_neighbour_waits() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut lab = Lab::up("bfd", true)?;
    all_up(&lab, &ADDRESSES)?;
    let sniffer = lab
        .namespace("bird")?
        .command("timeout")
        .args(["4", "tcpdump", "-nlvi", "eth1", "udp", "port", "3784"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // tcpdump says on standard error when it listens; its first packets are proof enough.
    std::thread::sleep(Duration::from_millis(500));
    let downs = |lab: &Lab| -> Result<u64> {
        let path = find(lab, "k2", "bfd sessions", "10.9.0.1")?;
        Ok(path["downs"].as_u64().ok_or("no number")?)
    };
    let before = downs(&lab)?;
    let killick = &mut lab.nodes.get_mut("k").ok_or("no k")?.daemons[0];
    let child = killick.child.as_mut().ok_or("killick does not run")?;
    let pid = i32::try_from(child.id())?;
    // SAFETY: a system call on plain integers; the process is our child and was not waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    assert!(child.wait()?.success());
    killick.child = None;

    let path = find(&lab, "k2", "bfd sessions", "10.9.0.1")?;
    assert_eq!(path["state"], "down", "{path}");
    assert_eq!(path["remote-state"], "admin-down", "{path}");
    assert_eq!(path["remote-diagnostic"], "administratively down", "{path}");
    assert_eq!(downs(&lab)?, before + 1);
    let bgp = find(&lab, "k2", "bgp neighbors", "10.9.0.1")?;
    assert_ne!(bgp["last-error"], "the path is down (BFD)", "{bgp}");
    let frr = frr_sees(&lab, "10.9.2.1", "down")?;
    println!("FRR: {}", frr["remote-diagnostic"]);
    bird_sees(&lab, "10.9.1.1", "Down")?;
    // BIRD takes it for a failure all the same, but where it is told to be graceful it keeps the
    // routes over our restart.
    let kept = |protocol: &str| -> Result<bool> {
        let command = format!("show route 198.51.100.0/24 protocol {protocol}");
        Ok(lab.birdc("bird", &command)?.contains("198.51.100.0/24"))
    };
    assert!(!kept("direct4")? && kept("multi")?);
    let heard = String::from_utf8(sniffer.wait_with_output()?.stdout)?;
    let mut packets = heard.split("BFDv1").map(|packet| packet.replace('\n', " "));
    assert!(
        packets.any(|p| p.contains("AdminDown") && p.contains("Administratively Down (0x07)")),
        "{heard}"
    );

    // The strict neighbour of k2 is not spoken to until the path is up: with BFD lost, k2's
    // session with the new process does not begin.
    let lose = "nft add table ip lose && nft 'add chain ip lose in { type filter hook input \
                priority 0; }' && nft add rule ip lose in udp dport 4784 drop";
    lab.sh("k2", lose)?;
    lab.start("k")?;
    all_up(&lab, &ADDRESSES[..5])?;
    let bgp = neighbor(&lab, "10.9.0.4")?;
    assert_eq!(bgp["state"], "idle", "{bgp}");
    assert_eq!(bgp["last-error"], "waits for the path to be up (BFD)", "{bgp}");
    lab.sh("k2", "nft delete table ip lose")?;
    all_up(&lab, &ADDRESSES)?;
    lab.nodes.values_mut().flat_map(|node| &mut node.daemons).for_each(Daemon::kill);
    Ok(())
}

/// Adds lines to the configuration of a killick.
fn configure(lab: &Lab, node: &str, lines: &str) -> Result<()> {
    let path = lab.namespace(node)?.path("/etc/killick/killick.toml");
    let text = std::fs::read_to_string(&path)?;
    Ok(std::fs::write(&path, format!("{lines}\n{text}"))?)
}

/// An ingress router watches the path to one of two locators of an anchor. Probes go out each 10 s;
/// BFD sees in 300 ms that packets no longer arrive, and the other locator takes over.
#[test]
fn a_failed_path_takes_a_locator_out_of_use() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let watch = |own: &str, other: &str| {
        format!(
            "[bfd]\nmin-tx = \"100ms\"\nmin-rx = \"100ms\"\n[[bfd.session]]\naddress = \"{other}\"\n\
             local-address = \"{own}\"\n"
        )
    };
    let stage = Stage::set_with("lisp-flat", |lab| {
        configure(lab, "i1", &watch("10.0.0.61", "10.0.0.1"))?;
        configure(lab, "a", &watch("10.0.0.1", "10.0.0.61"))
    })?;
    let lab = &stage.lab;
    for node in ["i1", "a"] {
        wait_until(&format!("the path of {node}"), LIMIT, || {
            let all = lab.killick_json(node, "bfd sessions")?;
            Ok((all[0]["state"] == "up").then_some(()))
        })?;
    }
    stage.host_is_reachable("h1")?;
    // The states of both locators of a, as i1 sees them.
    let states = || -> Result<Vec<String>> {
        let cache = lab.killick_json("i1", "lisp map-cache")?;
        let pool =
            cache["items"].as_array().ok_or("no list")?.iter().find(|m| m["eid"] == "10.1.1.0/24");
        let rlocs = pool.and_then(|m| m["rlocs"].as_array()).ok_or("no locators")?;
        Ok(rlocs
            .iter()
            .map(|r| format!("{} {}", r["address"], r["state"]).replace('"', ""))
            .collect())
    };
    let is_down = |states: &[String]| states.iter().any(|s| s == "10.0.0.1 down");
    assert!(!is_down(&states()?), "{:?}", states()?);
    let lose = "nft add table ip lose && nft 'add chain ip lose through { type filter hook forward \
                priority 0; }' && nft add rule ip lose through ip daddr 10.0.0.1 drop && nft add \
                rule ip lose through ip saddr 10.0.0.1 drop";
    let at = Instant::now();
    lab.sh("c1", lose)?;
    wait_until("the locator is out of use", DETECTED, || Ok(is_down(&states()?).then_some(())))?;
    println!("locator out of use after {:?}", at.elapsed());
    stage.host_is_reachable("h1")?;
    lab.sh("c1", "nft delete table ip lose")?;
    wait_until("it is back", LIMIT, || Ok((!is_down(&states()?)).then_some(())))?;
    stage.host_is_reachable("h1")
}

/// The anchors of a lab watch each other by one line each.
#[test]
fn anchors_watch_each_other() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut lab = Lab::up("ibgp-flat", false)?;
    for node in ["a", "b", "c"] {
        configure(&lab, node, "[bfd]\nanchors = true\n")?;
        lab.start(node)?;
    }
    for (node, others) in [("a", ["10.0.0.2", "10.0.0.3"]), ("c", ["10.0.0.1", "10.0.0.2"])] {
        for other in others {
            wait_until(&format!("{node} sees {other}"), LIMIT, || {
                let path = find(&lab, node, "bfd sessions", other)?;
                let is_up = path["state"] == "up" && path["multihop"] == true;
                if is_up { Ok(Some(())) } else { Err(path.to_string().into()) }
            })?;
        }
    }
    Ok(())
}
