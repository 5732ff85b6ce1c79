//! The session of anchor a and the reflector in `ibgp-flat` has a key (TCP-MD5, RFC 2385) and a
//! distance (GTSM, RFC 5082); BIRD asks for both as killick does.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::daemon::Daemon;
use super::lab::{Lab, wait_until};
use super::{Result, may_build_labs};

const LIMIT: Duration = Duration::from_secs(20);
/// Several times what the session needs to come up: `connect-retry` of killick and BIRD is 1 s.
const STAYS_DOWN: Duration = Duration::from_secs(5);

const CONFIG: &str = "/etc/killick/killick.toml";
const KEY: &str = "/etc/killick/bgp-password";

/// What killick tells about its one neighbour.
fn neighbor(lab: &Lab) -> Result<Value> {
    let told = lab.killick_json("a", "bgp neighbors")?;
    Ok(told.get(0).ok_or("no neighbour")?.clone())
}

fn is_up_at_bird(lab: &Lab) -> Result<bool> {
    Ok(lab.bgp_sessions("rr")?.get("a") == Some(&true))
}

fn is_up_on_both_sides(lab: &Lab) -> Result<bool> {
    let ours = neighbor(lab)?["state"] == "established";
    Ok(ours && is_up_at_bird(lab)?)
}

fn comes_up(lab: &Lab) -> Result<()> {
    wait_until("a and rr talk", LIMIT, || Ok(is_up_on_both_sides(lab)?.then_some(())))
}

/// Killick of a starts anew with one file changed.
fn restart_with(lab: &mut Lab, file: &str, content: &str) -> Result<()> {
    fs::write(lab.namespace("a")?.path(file), content)?;
    if let Some(node) = lab.nodes.get_mut("a") {
        node.daemons.iter_mut().for_each(Daemon::kill);
    }
    lab.start("a")
}

#[test]
fn bird_talks_with_the_right_key_from_the_right_distance_only() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut lab = Lab::up("ibgp-flat", false)?;
    lab.start("a")?;
    comes_up(&lab)?;
    // The kernels on both sides have the key on this very connection.
    for (node, peer) in [("a", "10.0.0.10"), ("rr", "10.0.0.1")] {
        let sockets = lab.sh(node, &format!("ss -Htni state established dst {peer}"))?;
        assert!(sockets.contains(&format!("md5keys:{peer}/32=")), "{node}: {sockets}");
    }
    // And that of a neighbour without one has none.
    wait_until("c1 and rr talk", LIMIT, || {
        Ok(lab.bgp_sessions("rr")?.get("c1").filter(|up| **up).copied())
    })?;
    let other = lab.sh("rr", "ss -Htni state established dst 10.0.0.11")?;
    assert!(other.contains("10.0.0.11:") && !other.contains("md5keys"), "{other}");

    let read = |lab: &Lab, file| -> Result<String> {
        Ok(fs::read_to_string(lab.namespace("a")?.path(file))?)
    };
    let (config, key) = (read(&lab, CONFIG)?, read(&lab, KEY)?);
    let without_key = config.replace(&format!("password-file = \"{KEY}\"\n"), "");
    // BIRD hears us and is not heard: it also does not hear of our end, so it waits on its old
    // connection for as long as we have agreed to, and prefers that to any new one.
    let too_near =
        config.replace("ttl-security-hops = 2", "ttl-security-hops = 1\nhold-time = \"6s\"");
    assert!(without_key != config && too_near != config, "{config}");
    for (what, file, changed, right) in [
        ("another key", KEY, "a small anchor drags\n", &key),
        ("no key", CONFIG, &without_key, &config),
        ("one hop too few", CONFIG, &too_near, &config),
    ] {
        restart_with(&mut lab, file, changed)?;
        let since = Instant::now();
        while since.elapsed() < STAYS_DOWN {
            let told = neighbor(&lab)?;
            assert!(told["state"] != "established" && told["flaps"] == 0, "{what}: {told}");
            // For a while BIRD may take itself for connected where only its packets are refused.
            let theirs = is_up_at_bird(&lab)?;
            assert!(!theirs || file == CONFIG && changed == too_near, "{what}: up there");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Whoever looks is told.
        let told = neighbor(&lab)?;
        println!("{what}: {} [{}]", told["state"], told["last-error"]);
        let error = told["last-error"].as_str().unwrap_or_default();
        assert!(error.starts_with("no answer"), "{what}: {told}");
        restart_with(&mut lab, file, right)?;
        comes_up(&lab)?;
    }
    Ok(())
}
