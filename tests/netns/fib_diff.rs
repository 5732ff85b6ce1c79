//! `killick fib diff` on anchor a of `ibgp-flat`, with a kernel that somebody else has touched.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::daemon::killick_program;
use super::lab::{Lab, wait_until};
use super::{Result, may_build_labs};

const LIMIT: Duration = Duration::from_secs(20);
const HOST: &str = "10.1.1.10/32";

fn run(lab: &Lab, args: &[&str]) -> Result<Output> {
    let mut killick = lab.namespace("a")?.command(&killick_program()?);
    Ok(killick.args(args).output()?)
}

/// The exit code, and what is said.
fn diff(lab: &Lab) -> Result<(i32, Value)> {
    let output = run(lab, &["-o", "json", "fib", "diff"])?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&told["version"], &told["kind"]), (&1.into(), &"fib-diff".into()));
    Ok((output.status.code().ok_or("killed")?, told["data"].clone()))
}

/// What is said about the host in these words, as "want | have | why".
fn said(told: &Value, what: &str, prefix: &str) -> Option<Value> {
    let items = told["items"].as_array()?;
    items.iter().find(|i| i["what"] == what && i["prefix"] == prefix).cloned()
}

fn until_said(lab: &Lab, what: &str, prefix: &str) -> Result<(i32, Value, Value)> {
    wait_until(&format!("{what} {prefix}"), LIMIT, || {
        let (code, told) = diff(lab)?;
        match said(&told, what, prefix) {
            Some(item) => Ok(Some((code, told, item))),
            None => Err(told.to_string().into()),
        }
    })
}

#[test]
fn what_somebody_else_did_to_the_kernel_is_said() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut lab = Lab::up("ibgp-flat", false)?;
    lab.start("a")?;
    wait_until("a delivers to h1", LIMIT, || {
        lab.sh("h1", "ping -c 1 -W 1 10.1.255.254 || true")?;
        let routes = lab.sh("a", &format!("ip route show proto 107 {HOST}"))?;
        Ok(routes.contains("eth11").then_some(()))
    })?;
    // Settled: what is written at this moment is not called a difference.
    let (code, told) = wait_until("nothing to say", LIMIT, || {
        let (code, told) = diff(&lab)?;
        if code == 0 { Ok(Some((code, told))) } else { Err(told.to_string().into()) }
    })?;
    assert_eq!((code, &told["same"], &told["healed"]), (0, &true.into(), &0.into()), "{told}");
    assert_eq!(told["wanted"], told["found"], "{told}");
    assert!(told["wanted"].as_u64() >= Some(1) && told["foreign"].as_u64() >= Some(1), "{told}");

    // Deleted by hand: healed before anybody can ask, and told.
    lab.sh("a", &format!("ip route del {HOST} metric 10"))?;
    let (code, told, item) = until_said(&lab, "healed", HOST)?;
    assert_eq!((code, &told["same"]), (0, &true.into()), "{told}");
    assert_eq!((&item["kind"], &item["why"]), (&"delivery".into(), &"was missing".into()));
    assert_eq!(item["want"]["interface"], "eth11");
    assert!(lab.sh("a", &format!("ip route show {HOST}"))?.contains("eth11"));

    // Led elsewhere by hand, with our mark: healed as well.
    lab.sh("a", &format!("ip route replace {HOST} dev eth12 proto 107 metric 10 scope link"))?;
    let told = wait_until("it leads back", LIMIT, || {
        let (_, told) = diff(&lab)?;
        let all = told["items"].as_array().ok_or("no items")?;
        Ok(all.iter().any(|i| i["why"] == "led elsewhere").then_some(told))
    })?;
    assert_eq!(told["healed"], 2, "{told}");

    // A route of somebody else that the kernel prefers: killick leaves it alone, and says so.
    lab.sh("a", &format!("ip route add {HOST} dev eth1 proto static metric 5"))?;
    let (code, told, item) = until_said(&lab, "shadowed", HOST)?;
    assert_eq!((code, &told["same"], &told["shadowed"]), (1, &false.into(), &1.into()), "{told}");
    assert_eq!((&item["have"]["protocol"], &item["have"]["metric"]), (&4.into(), &5.into()));
    assert_eq!((&item["have"]["interface"], &item["want"]["metric"]), (&"eth1".into(), &10.into()));
    let table = String::from_utf8(run(&lab, &["fib", "diff"])?.stdout)?;
    println!("{table}");
    assert!(table.lines().any(|l| l.starts_with("shadowed") && l.contains("proto 4 metric 5")));
    lab.sh("a", &format!("ip route del {HOST} metric 5"))?;

    // With our mark, and none of ours: of a metric that we use it is removed; else it stays.
    lab.sh("a", "ip route add 10.77.0.0/16 dev eth1 proto 107 metric 20")?;
    let (_, _, item) = until_said(&lab, "healed", "10.77.0.0/16")?;
    assert_eq!(item["why"], "was not ours");
    lab.sh("a", "ip route add 10.78.0.0/16 dev eth1 proto 107 metric 77")?;
    let (code, told, item) = until_said(&lab, "extra", "10.78.0.0/16")?;
    assert_eq!((code, &told["extra"], &item["kind"]), (1, &1.into(), &"unknown".into()), "{told}");
    lab.sh("a", "ip route del 10.78.0.0/16 metric 77")?;

    // The place is taken: missing, and why, until it is free again.
    lab.sh("a", &format!("ip route replace {HOST} dev eth1 proto static metric 10"))?;
    let (code, told, _) = until_said(&lab, "missing", HOST)?;
    assert_eq!((code, &told["missing"]), (1, &1.into()), "{told}");
    // The kernel tells nobody whose route is replaced: the question itself made killick look.
    wait_until("the reason", LIMIT, || {
        let (_, told) = diff(&lab)?;
        let item = said(&told, "missing", HOST).ok_or_else(|| told.to_string())?;
        let taken = "there is already a route with this prefix and metric";
        Ok((item["why"] == taken).then_some(()))
    })?;
    lab.sh("a", &format!("ip route del {HOST} metric 10"))?;
    wait_until("all is well again", LIMIT, || {
        let (code, told) = diff(&lab)?;
        if code == 0 { Ok(Some(())) } else { Err(told.to_string().into()) }
    })
}

/// Entries of tunnels, in the kernel's own data plane: one that somebody takes away is found by the
/// question itself, put back, and told.
#[test]
fn a_tunnel_that_somebody_took_away_is_said() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut lab = Lab::up("lisp-flat", false)?;
    for node in ["ms", "a", "i1"] {
        let path = lab.namespace(node)?.path("/etc/killick/killick.toml");
        let text = std::fs::read_to_string(&path)?;
        let gpe = text.replacen("[lisp]\n", "[lisp]\nencapsulation = \"gpe\"\n", 1);
        std::fs::write(&path, gpe)?;
        lab.start(node)?;
    }
    let ask = |lab: &Lab| -> Result<(i32, Value)> {
        let mut killick = lab.namespace("i1")?.command(&killick_program()?);
        let output = killick.args(["-o", "json", "fib", "diff"]).output()?;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        Ok((output.status.code().ok_or("killed")?, told["data"].clone()))
    };
    let entry = |lab: &Lab| lab.sh("i1", "ip route show proto 108 10.1.1.0/24");
    wait_until("the pool of a has an entry", LIMIT, || {
        Ok((!entry(&lab)?.is_empty()).then_some(()))
    })?;
    let told = wait_until("nothing to say", LIMIT, || {
        let (code, told) = ask(&lab)?;
        if code == 0 { Ok(Some(told)) } else { Err(told.to_string().into()) }
    })?;
    assert!(told["wanted"].as_u64() >= Some(2) && told["healed"] == 0, "{told}");
    lab.sh("i1", "ip route del proto 108 10.1.1.0/24")?;
    let (code, told) = ask(&lab)?;
    assert_eq!((code, &told["healed"]), (0, &1.into()), "{told}");
    let item = said(&told, "healed", "10.1.1.0/24").ok_or_else(|| told.to_string())?;
    assert_eq!((&item["kind"], &item["why"]), (&"entry".into(), &"was missing".into()));
    assert!(!entry(&lab)?.is_empty());
    Ok(())
}
