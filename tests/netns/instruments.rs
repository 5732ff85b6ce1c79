//! What the other tests measure with is measured here: a move made by hand, without killick, must be
//! told by the flows and by the routers. The host routes come from a GoBGP in each anchor.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::lab::{Lab, wait_until};
use super::scene::Scene;
use super::traffic::{Flows, Plan, Transfer, now_ns};
use super::{Result, may_build_labs};

const LIMIT: Duration = Duration::from_secs(20);
/// Preference of the host route at its first anchor; rises with each move.
const FIRST_PREFERENCE: u32 = 200;

/// An anchor by hand: gateway addresses on the access link, and a GoBGP towards the reflector.
struct ByHand {
    gobgpd: Child,
}

impl ByHand {
    fn start(lab: &Lab, anchor: &str, router_id: IpAddr) -> Result<Self> {
        // What the anchor's own configuration asks for, and so the reflector of it.
        let namespace = lab.namespace(anchor)?;
        let file: toml::Table =
            fs::read_to_string(namespace.path("/etc/killick/killick.toml"))?.parse()?;
        let neighbor = &file["bgp"]["neighbor"][0];
        let key = match neighbor.get("password-file").and_then(toml::Value::as_str) {
            Some(path) => {
                let key = fs::read_to_string(namespace.path(path))?;
                format!("auth-password = \"{}\"", key.trim_end())
            }
            None => String::new(),
        };
        let ttl_security = match neighbor.get("ttl-security-hops").and_then(toml::Value::as_integer)
        {
            Some(hops) => format!(
                "[neighbors.ttl-security.config]\n  enabled = true\n  ttl-min = {}",
                256 - hops
            ),
            None => String::new(),
        };
        let config = format!(
            r#"
[global.config]
  as = 65000
  router-id = "{router_id}"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "10.0.0.10"
    peer-as = 65000
    {key}
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [neighbors.transport.config]
    local-address = "{router_id}"
  {ttl_security}
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv4-unicast"
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "ipv6-unicast"
"#
        );
        let path = namespace.folder.join("gobgpd.toml");
        fs::write(&path, config)?;
        namespace.sh("ip link set eth11 address 02:00:5e:00:53:01
             ip addr add 10.1.255.254/32 dev eth11
             ip -6 addr add fe80::1/128 dev eth11 nodad")?;
        let gobgpd = namespace
            .command("gobgpd")
            .arg("-f")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { gobgpd })
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.gobgpd.kill();
        let _ = self.gobgpd.wait();
    }
}

fn deliver(lab: &Lab, scene: &Scene, host: &str, anchor: &str, preference: u32) -> Result<()> {
    for (address, fe_e) in scene.hosts[host].addresses.iter().zip(scene.anchors[anchor].fe_e) {
        let (ip, length, family) =
            if address.is_ipv4() { ("ip", 32, "ipv4") } else { ("ip -6", 128, "ipv6") };
        lab.sh(anchor, &format!("{ip} route replace {address}/{length} dev eth11"))?;
        lab.sh(
            anchor,
            &format!(
                "gobgp global rib add -a {family} {address}/{length} nexthop {fe_e} local-pref {preference}"
            ),
        )?;
    }
    Ok(())
}

#[test]
fn a_move_by_hand_is_told_by_flows_and_routers() -> Result<()> {
    if !may_build_labs() {
        return Ok(());
    }
    let lab = Lab::up("ibgp-flat", false)?;
    let scene = Scene::of(&lab)?;
    assert_eq!(scene.anchors.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(scene.hosts["h1"].ports["c"], "eth3");
    assert_eq!(scene.hosts["h1"].mac, "02:00:00:00:01:01");
    assert_eq!(scene.mode, "distributed");
    let mut anchors = Vec::new();
    for (name, anchor) in &scene.anchors {
        anchors.push(ByHand::start(&lab, name, anchor.fe_e[0])?);
    }
    for router in ["c1", "c2", "rr"] {
        wait_until(&format!("sessions of {router}"), LIMIT, || {
            Ok(lab.bgp_sessions(router)?.values().all(|up| *up).then_some(()))
        })?;
    }
    assert!(!scene.dissenters(&lab, "h1", "a").is_empty(), "nothing is announced yet");

    deliver(&lab, &scene, "h1", "a", FIRST_PREFERENCE)?;
    wait_until("routers follow to a", LIMIT, || {
        let dissenters = scene.dissenters(&lab, "h1", "a");
        if dissenters.is_empty() { Ok(Some(())) } else { Err(dissenters.join("; ").into()) }
    })?;

    let correspondent = scene.correspondent_of("h1")?;
    let (host, cn) = (lab.namespace("h1")?, lab.namespace(&correspondent.name)?);
    let address = scene.hosts["h1"].addresses;
    let plans: Vec<Plan<'_>> = (0..2)
        .flat_map(|family| {
            let at = |address, port| SocketAddr::new(address, port);
            let port = 20_000 + 2 * family as u16;
            [
                Plan {
                    from: (host, at(address[family], port)),
                    to: (cn, at(correspondent.addresses[family], port)),
                },
                Plan {
                    from: (cn, at(correspondent.addresses[family], port + 1)),
                    to: (host, at(address[family], port + 1)),
                },
            ]
        })
        .collect();
    let flows = Flows::start(&plans, Duration::from_millis(1))?;
    let transfer = Transfer::start(&Plan {
        from: (cn, SocketAddr::new(correspondent.addresses[0], 19_999)),
        to: (host, SocketAddr::new(address[0], 19_999)),
    })?;
    let start = now_ns();
    let second = 1_000_000_000;
    let until = |end: u64| wait_until("time passes", LIMIT, || Ok((now_ns() > end).then_some(())));

    until(start + 2 * second)?;
    for flow in 0..plans.len() {
        // The first moments have the address resolution in them.
        let calm = flows.report(flow, start + second / 2..start + 3 * second / 2);
        assert!(calm.sent > 900, "{calm:?}");
        assert_eq!((calm.lost, calm.duplicated, calm.reordered), (0, 0, 0), "flow {flow}");
    }

    let moved = now_ns();
    scene.move_host(&lab, "h1", "b")?;
    deliver(&lab, &scene, "h1", "b", FIRST_PREFERENCE + 1)?;
    wait_until("routers follow to b", LIMIT, || {
        Ok(scene.dissenters(&lab, "h1", "b").is_empty().then_some(()))
    })?;
    assert!(!scene.dissenters(&lab, "h1", "a").is_empty());
    let followed = now_ns();
    until(followed + 2 * second)?;
    for flow in 0..plans.len() {
        let report = flows.report(flow, moved..followed);
        println!("flow {flow}: {report:?}");
        // What the host sends needs no routing to change; what it is sent waits for several commands.
        if flow % 2 == 1 {
            assert!(report.lost > 0 && report.outage_ms > 5.0, "flow {flow}: {report:?}");
        }
        let after = flows.report(flow, followed + second / 2..followed + 3 * second / 2);
        assert_eq!((after.lost, after.duplicated), (0, 0), "flow {flow}: {after:?}");
    }
    let report = transfer.report(followed + second / 2..followed + 3 * second / 2)?;
    assert!(report.bytes > 1_000_000, "{report:?}");
    drop(anchors);
    Ok(())
}
