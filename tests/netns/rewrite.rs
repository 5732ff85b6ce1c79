//! Hosts that move while their traffic is rewritten instead of tunnelled: `lisp-flat` with home pools
//! that the core routes, as it does locators, and nothing between the two.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::lab::{Lab, wait_until};
use super::stage::{LIMIT, Stage};
use super::traffic::{Plan, Transfer, now_ns};
use super::trial::{DIRECTIONS, Trial, measure_with};
use super::{Result, may_build_labs};

const LISP: &str = "lisp-flat";
const CONFIG: &str = "/etc/killick/killick.toml";
const ANCHORS: [&str; 3] = ["a", "b", "c"];

/// The pools of an anchor's locators.
fn pools(anchor: usize) -> [String; 2] {
    [format!("10.77.{anchor}.0/24"), format!("2001:db8:77:{anchor}::/64")]
}

fn listed(anchor: usize) -> String {
    let [v4, v6] = pools(anchor);
    format!("locators = [\"{v4}\", \"{v6}\"]\n")
}

fn rewrites(lab: &Lab) -> Result<()> {
    for name in ["a", "b", "c", "i1", "i2"] {
        let path = lab.namespace(name)?.path(CONFIG);
        let at = ANCHORS.iter().position(|anchor| *anchor == name).map(|at| at + 1);
        let (inner, own) = match at {
            Some(at) => ("[\"eth11\", \"eth12\"]", listed(at)),
            None => ("[\"eth2\"]", String::new()),
        };
        let lines = format!(
            "[lisp]\nencapsulation = \"rewrite\"\ninner-interfaces = {inner}\n\
             outer-interfaces = [\"eth1\"]\n{own}"
        );
        let mut text = fs::read_to_string(&path)?.replacen("[lisp]\n", &lines, 1);
        text = text.replace("policy = \"query\"", "policy = \"push\"");
        for peer in 1..=3 {
            let address = format!("\naddress = \"10.0.0.{peer}\"\nfe-e");
            let with = format!("\naddress = \"10.0.0.{peer}\"\n{}fe-e", listed(peer));
            text = text.replace(&address, &with);
        }
        fs::write(&path, text)?;
    }
    // Home networks and locators have routes in the core; no host has.
    for (router, via) in [
        ("c1", ["172.16.1.0", "172.16.2.0", "172.16.4.1"]),
        ("c2", ["172.16.4.0", "172.16.4.0", "172.16.3.0"]),
    ] {
        for (at, via) in (1..).zip(via) {
            let via6 = match (router, at) {
                ("c1", 3) => "2001:db8:ff:4::2".to_owned(),
                ("c2", 1 | 2) => "2001:db8:ff:4::1".to_owned(),
                _ => format!("2001:db8:ff:{at}::1"),
            };
            let [v4, v6] = pools(at);
            lab.sh(router, &format!("ip route add 10.1.{at}.0/24 via {via}"))?;
            lab.sh(router, &format!("ip route add {v4} via {via}"))?;
            lab.sh(router, &format!("ip route add 2001:db8:1:{at}::/64 via {via6}"))?;
            lab.sh(router, &format!("ip route add {v6} via {via6}"))?;
        }
    }
    Ok(())
}

/// What an ingress router does with packets to an address.
fn leads(lab: &Lab, itr: &str, address: IpAddr) -> Result<String> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let told = lab.killick_json(itr, &format!("explain route {address}/{bits}"))?;
    let ends = told["back-ends"].as_array().ok_or("no back ends")?;
    let entry = ends.iter().find(|end| end["name"] == "ingress").ok_or("no ingress")?;
    Ok(entry["leads-to"].as_str().unwrap_or_default().to_owned())
}

/// Both ingress routers rewrite to locators of the anchor, or leave packets alone for one at home.
fn itrs_rewrite(stage: &Stage, host: &str, anchor: &str) -> Result<()> {
    let at = 1 + ANCHORS.iter().position(|a| *a == anchor).ok_or("no such anchor")?;
    let wanted = match at {
        1 => ["the ordinary routes".to_owned(), "the ordinary routes".to_owned()],
        _ => [format!("rewritten to 10.77.{at}."), format!("rewritten to 2001:db8:77:{at}:")],
    };
    wait_until(&format!("ingress routers lead {host} to {anchor}"), LIMIT, || {
        for itr in ["i1", "i2"] {
            for (address, wanted) in stage.scene.hosts[host].addresses.iter().zip(&wanted) {
                let found = leads(&stage.lab, itr, *address)?;
                if !found.starts_with(wanted) {
                    return Err(format!("{itr}: {address} is {found}").into());
                }
            }
        }
        Ok(Some(()))
    })
}

/// A number of the data plane, as `status` has it.
fn is_healthy(stage: &Stage) -> Result<()> {
    for node in ["a", "b", "c", "i1", "i2"] {
        let status = stage.lab.killick_json(node, "status")?;
        let plane = &status["lisp"]["data-plane"];
        assert_eq!(plane["name"], "rewrite", "{status}");
        assert_eq!(plane["failed"], 0, "{node}: {status}");
    }
    Ok(())
}

/// A→B→C→A with both hosts talking, both families.
#[test]
fn itrs_follow_hosts_rewrite() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let stage = Stage::set_with(LISP, rewrites)?;
    stage.registered_exactly(&[])?;
    for host in ["h1", "h2"] {
        itrs_rewrite(&stage, host, "a")?;
        stage.host_is_reachable(host)?;
    }
    for anchor in ["b", "c"] {
        for host in ["h1", "h2"] {
            stage.move_host(host, anchor)?;
            itrs_rewrite(&stage, host, anchor)?;
            stage.host_is_reachable(host)?;
        }
        stage.registered_exactly(&[("h1", anchor), ("h2", anchor)])?;
    }
    is_healthy(&stage)?;
    // A source without an FE_I on its way: its packets come home, and are rewritten there.
    for (address, from) in
        stage.scene.hosts["h1"].addresses.iter().zip(["10.0.0.50", "2001:db8::50"])
    {
        stage.lab.sh("ms", &format!("ping -c 5 -i 0.1 -W 2 -I {from} {address}"))?;
    }
    stage.move_host("h1", "a")?;
    itrs_rewrite(&stage, "h1", "a")?;
    stage.host_is_reachable("h1")?;
    stage.registered_exactly(&[("h2", "c")])?;
    stage.move_host("h2", "a")?;
    itrs_rewrite(&stage, "h2", "a")?;
    stage.host_is_reachable("h2")?;
    stage.registered_exactly(&[])
}

/// One connection from its correspondent to a host, which moves; then FE_I and FE_E are killed by
/// turns. What is rewritten is the same before, meanwhile and after, so the connection goes on.
#[test]
fn a_connection_outlives_moves_and_restarts_of_both_ends() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let mut stage = Stage::set_with(LISP, rewrites)?;
    let correspondent = stage.scene.correspondent_of("h1")?;
    stage.host_is_reachable("h1")?;
    let mut transfers = Vec::new();
    for (host, there) in stage.scene.hosts["h1"].addresses.iter().zip(correspondent.addresses) {
        let plan = Plan {
            from: (stage.lab.namespace(&correspondent.name)?, SocketAddr::new(there, 22_000)),
            to: (stage.lab.namespace("h1")?, SocketAddr::new(*host, 22_000)),
        };
        transfers.push(Transfer::start(&plan)?);
    }
    let go_on = |transfers: &[Transfer], when: &str| {
        let begin = now_ns();
        wait_until(&format!("both connections go on {when}"), LIMIT, || {
            for transfer in transfers {
                if transfer.report(begin..now_ns())?.bytes < 200_000 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    };
    go_on(&transfers, "at home")?;
    stage.move_host("h1", "b")?;
    itrs_rewrite(&stage, "h1", "b")?;
    go_on(&transfers, "after the first move")?;
    let before = [0, 1].map(|at| leads(&stage.lab, "i1", stage.scene.hosts["h1"].addresses[at]));
    let before = before.into_iter().collect::<Result<Vec<_>>>()?;
    for node in ["i1", "i2", "b"] {
        stage.kill(node);
        go_on(&transfers, &format!("while {node} is away"))?;
        stage.lab.start(node)?;
        itrs_rewrite(&stage, "h1", "b")?;
        go_on(&transfers, &format!("after {node} has come back"))?;
    }
    // Longer than what was adopted waits for somebody to ask for it.
    std::thread::sleep(Duration::from_secs(12));
    go_on(&transfers, "after all is taken over")?;
    let after = [0, 1].map(|at| leads(&stage.lab, "i1", stage.scene.hosts["h1"].addresses[at]));
    assert_eq!(before, after.into_iter().collect::<Result<Vec<_>>>()?);
    stage.move_host("h1", "c")?;
    itrs_rewrite(&stage, "h1", "c")?;
    go_on(&transfers, "after the second move")?;
    stage.move_host("h1", "a")?;
    itrs_rewrite(&stage, "h1", "a")?;
    go_on(&transfers, "at home again")?;
    is_healthy(&stage)
}

/// Six moves under dense traffic by the transient path: rewriting adds no loss and no copy to it. (Its
/// order is tested without rewriting.)
#[test]
fn predictive_moves_cost_no_packet_rewrite() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let trial = Trial {
        lab: LISP.to_owned(),
        moves: 6,
        pace: Duration::from_millis(1),
        watch: Duration::from_millis(1600),
        control: 1,
        predictive: true,
        transient: Some(true),
        tcp: true,
    };
    let outcome = measure_with(&trial, rewrites, |line| println!("{line}"))?;
    for (direction, sum) in DIRECTIONS.iter().zip(&outcome.moved) {
        println!("{direction}: {sum:?}, longest gap {:.1} ms", sum.outage(100));
        assert!(sum.sent > 0);
        assert_eq!([sum.lost, sum.duplicated], [0, 0], "{direction}: {:#?}", outcome.noticed);
    }
    Ok(())
}
