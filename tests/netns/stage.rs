//! A lab with everything running, hosts that talk all the time, and the questions that every
//! scenario ends with: do all routers lead to the right anchor, do they hold exactly the host routes
//! they should, and did no session flap that the test did not break.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use super::Result;
use super::daemon::Daemon;
use super::lab::{Lab, wait_until};
use super::scene::Scene;
use super::topology::Role;
use super::traffic::{Flows, Plan, now_ns};

pub const LIMIT: Duration = Duration::from_secs(30);
const FIRST_PORT: u16 = 21_000;
/// Dense enough that a host is noticed at once, thin enough for a busy machine.
const PACE: Duration = Duration::from_millis(5);
/// `rtm_protocol` of killick's routes.
const KERNEL_PROTOCOL: u8 = 107;
/// From and to the host, IPv4, then IPv6.
const FLOWS_PER_HOST: usize = 4;

pub struct Stage {
    pub lab: Lab,
    pub scene: Scene,
    flows: Flows,
}

/// Prefix to next hop.
type HostRoutes = BTreeMap<String, IpAddr>;

impl Stage {
    pub fn set(name: &str) -> Result<Self> {
        Self::set_with(name, |_| Ok(()))
    }

    /// `prepare` has its way with the lab before the killicks start.
    pub fn set_with(name: &str, prepare: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        let mut lab = Lab::up(name, false)?;
        prepare(&lab)?;
        let killicks: Vec<String> = lab.with_role(Role::Killick).map(str::to_owned).collect();
        killicks.iter().try_for_each(|name| lab.start(name))?;
        let scene = Scene::of(&lab)?;
        scene.wait_until_connected(&lab, LIMIT)?;
        let mut plans = Vec::new();
        let mut ports = FIRST_PORT..;
        for (host, known) in &scene.hosts {
            let correspondent = scene.correspondent_of(host)?;
            for (here, there) in known.addresses.iter().zip(correspondent.addresses) {
                let here = (lab.namespace(host)?, *here);
                let there = (lab.namespace(&correspondent.name)?, there);
                for (from, to) in [(here, there), (there, here)] {
                    let port = ports.next().ok_or("no port left")?;
                    plans.push(Plan {
                        from: (from.0, SocketAddr::new(from.1, port)),
                        to: (to.0, SocketAddr::new(to.1, port)),
                    });
                }
            }
        }
        let flows = Flows::start(&plans, PACE)?;
        let stage = Self { lab, scene, flows };
        let first = stage.scene.anchors.keys().next().ok_or("no anchor")?.clone();
        for host in stage.scene.hosts.keys() {
            stage.routers_lead(host, &first)?;
        }
        Ok(stage)
    }

    /// All BGP sessions and all links between anchors are up (again).
    pub fn all_are_connected(&self) -> Result<()> {
        self.scene.wait_until_connected(&self.lab, LIMIT)
    }

    pub fn move_host(&self, host: &str, anchor: &str) -> Result<()> {
        self.scene.move_host(&self.lab, host, anchor)
    }

    /// SIGKILL to all daemons of a node.
    pub fn kill(&mut self, node: &str) {
        let node = self.lab.nodes.get_mut(node).expect("the scenario names nodes of its lab");
        node.daemons.iter_mut().for_each(Daemon::kill);
    }

    /// Of a killick.
    pub fn pid(&self, node: &str) -> Result<u32> {
        let child = self.lab.nodes[node].daemons.first().and_then(|d| d.child.as_ref());
        Ok(child.ok_or_else(|| format!("{node} does not run"))?.id())
    }

    pub fn is_running(&mut self, node: &str) -> bool {
        let node = self.lab.nodes.get_mut(node);
        node.is_some_and(|node| node.daemons.iter_mut().all(Daemon::is_running))
    }

    /// To all daemons of a node.
    pub fn signal(&self, node: &str, signal: i32) -> Result<()> {
        for daemon in &self.lab.nodes[node].daemons {
            let child = daemon.child.as_ref().ok_or_else(|| format!("{node} does not run"))?;
            // SAFETY: a system call; the pid is ours until it has been waited for.
            if unsafe { libc::kill(child.id().cast_signed(), signal) } != 0 {
                return Err(std::io::Error::last_os_error().into());
            }
        }
        Ok(())
    }

    /// Every ingress router that the host matters to sends its traffic to `anchor`.
    pub fn itrs_lead(&self, host: &str, anchor: &str) -> Result<()> {
        wait_until(&format!("ingress routers lead {host} to {anchor}"), LIMIT, || {
            let dissenters = self.scene.itr_dissenters(&self.lab, host, anchor);
            if dissenters.is_empty() { Ok(Some(())) } else { Err(dissenters.join("; ").into()) }
        })
    }

    /// Of the hosts, exactly these are registered by themselves at the map-server, at these anchors;
    /// the aggregates lead to the others.
    pub fn registered_exactly(&self, away: &[(&str, &str)]) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for (host, anchor) in away {
            for address in self.scene.hosts[*host].addresses {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                wanted.insert(format!("{address}/{bits}"), self.scene.anchors[*anchor].id.clone());
            }
        }
        wait_until("the registrations are right", LIMIT, || {
            let told = self.lab.killick_json("ms", "lisp registrations")?;
            let items = told["items"].as_array().ok_or("no registrations")?;
            let hosts = items.iter().filter_map(|item| {
                let eid = item["eid"].as_str()?;
                let is_host = eid.ends_with("/32") && !eid.contains(':') || eid.ends_with("/128");
                is_host.then(|| (eid.to_owned(), item["anchor"].as_str().unwrap_or("?").to_owned()))
            });
            let found: BTreeMap<String, String> = hosts.collect();
            if found == wanted { Ok(Some(())) } else { Err(format!("{found:?}").into()) }
        })
    }

    /// The map-server answers that these hosts are at these anchors.
    pub fn registered_bindings_are(&self, away: &[(&str, &str)]) -> Result<()> {
        for (host, anchor) in away {
            for address in self.scene.hosts[*host].addresses {
                let told = self.lab.killick_json("ms", &format!("lisp lookup {address}"))?;
                let rlocs = told["rlocs"].as_array().into_iter().flatten();
                let found: Vec<IpAddr> =
                    rlocs.filter_map(|r| r["address"].as_str()?.parse().ok()).collect();
                if found != self.scene.anchors[*anchor].rlocs {
                    return Err(format!("{address} is at {anchor}, and not at {told}").into());
                }
            }
        }
        Ok(())
    }

    /// Every router sends the traffic for the host to `anchor`.
    pub fn routers_lead(&self, host: &str, anchor: &str) -> Result<()> {
        wait_until(&format!("all routers lead {host} to {anchor}"), LIMIT, || {
            let dissenters = self.scene.dissenters(&self.lab, host, anchor);
            if dissenters.is_empty() { Ok(Some(())) } else { Err(dissenters.join("; ").into()) }
        })
    }

    /// Every router holds the host routes of the hosts that are away from home, and no other.
    pub fn routers_hold_exactly(&self, away: &[(&str, &str)]) -> Result<()> {
        let mut expected = HostRoutes::new();
        for (host, anchor) in away {
            let fe_e = self.scene.anchors[*anchor].fe_e;
            for (address, fe_e) in self.scene.hosts[*host].addresses.iter().zip(fe_e) {
                let length = if address.is_ipv4() { 32 } else { 128 };
                expected.insert(format!("{address}/{length}"), fe_e);
            }
        }
        for router in &self.scene.routers {
            wait_until(&format!("{router} holds exactly {expected:?}"), LIMIT, || {
                let held = host_routes(&self.lab, router)?;
                if held == expected { Ok(Some(())) } else { Err(format!("{held:?}").into()) }
            })?;
        }
        Ok(())
    }

    /// Each anchor's kernel has the delivery routes of the hosts that are there, and no other.
    pub fn anchors_deliver_exactly(&self, hosts: &[(&str, &str)]) -> Result<()> {
        for anchor in self.scene.anchors.keys() {
            let mut expected = BTreeSet::new();
            for (host, _) in hosts.iter().filter(|(_, at)| at == anchor) {
                expected.extend(self.scene.hosts[*host].addresses);
            }
            wait_until(&format!("{anchor} delivers exactly to {expected:?}"), LIMIT, || {
                let mut held = BTreeSet::new();
                for family in ["-4", "-6"] {
                    let show =
                        format!("ip {family} -j route show table all proto {KERNEL_PROTOCOL}");
                    let told: Value = serde_json::from_str(&self.lab.sh(anchor, &show)?)?;
                    for route in told.as_array().into_iter().flatten() {
                        // A lone address is one of a host; an aggregate has its length beside it.
                        if route["type"].as_str().is_none_or(|kind| kind == "unicast")
                            && let Some(Ok(address)) = route["dst"].as_str().map(str::parse)
                        {
                            held.insert(address);
                        }
                    }
                }
                if held == expected { Ok(Some(())) } else { Err(format!("{held:?}").into()) }
            })?;
        }
        Ok(())
    }

    /// Traffic flows both ways: for a while, nothing that is sent is lost.
    pub fn host_is_reachable(&self, host: &str) -> Result<()> {
        const MS: u64 = 1_000_000;
        let place = self.scene.hosts.keys().position(|name| name == host).ok_or("no such host")?;
        let begin = now_ns();
        let correspondent = &self.scene.correspondent_of(host)?.name;
        wait_until(&format!("{host} and {correspondent} reach each other"), LIMIT, || {
            // What was sent in the last 100 ms may be on the way.
            let end = now_ns() - 100 * MS;
            let window = (end - 300 * MS)..end;
            if window.start < begin {
                return Ok(None);
            }
            for flow in 0..FLOWS_PER_HOST {
                let report = self.flows.report(place * FLOWS_PER_HOST + flow, window.clone());
                if report.sent == 0 || report.lost > 0 {
                    return Err(format!("flow {flow}: {report:?}").into());
                }
            }
            Ok(Some(()))
        })
    }

    /// How often each session of the routers has come up so far.
    pub fn session_starts(&self) -> Result<BTreeMap<String, String>> {
        let mut starts = BTreeMap::new();
        for router in &self.scene.routers {
            match self.lab.nodes[router].role {
                Role::Frr => {
                    let told = self.lab.vtysh_json(router, "show bgp neighbors json")?;
                    for (peer, state) in told.as_object().into_iter().flatten() {
                        let count = state["connectionsEstablished"].to_string();
                        starts.insert(format!("{router}-{peer}"), count);
                    }
                }
                Role::Bird => {
                    for line in self.lab.birdc(router, "show protocols")?.lines() {
                        let cells: Vec<&str> = line.split_whitespace().collect();
                        if cells.get(1) == Some(&"BGP") {
                            // BIRD does not count; it tells since when.
                            starts.insert(format!("{router}-{}", cells[0]), cells[4].to_owned());
                        }
                    }
                }
                Role::Gobgp => {
                    let told = self.lab.gobgp_json(router, "neighbor")?;
                    for peer in told.as_array().into_iter().flatten() {
                        let since = peer["timers"]["state"]["uptime"].to_string();
                        let address = &peer["state"]["neighbor_address"];
                        starts.insert(format!("{router}-{address}"), since);
                    }
                }
                Role::Killick | Role::Host => {}
            }
        }
        Ok(starts)
    }
}

/// The best paths for /32 and /128 that a router has from BGP.
fn host_routes(lab: &Lab, router: &str) -> Result<HostRoutes> {
    let mut routes = HostRoutes::new();
    match lab.nodes[router].role {
        Role::Frr => {
            for family in ["ipv4", "ipv6"] {
                let told = lab.vtysh_json(router, &format!("show bgp {family} unicast json"))?;
                for (prefix, paths) in told["routes"].as_object().into_iter().flatten() {
                    let best =
                        paths.as_array().into_iter().flatten().find(|p| p["bestpath"] == true);
                    if is_host(prefix)
                        && let Some(hop) = best.and_then(frr_next_hop)
                    {
                        routes.insert(prefix.clone(), hop);
                    }
                }
            }
        }
        Role::Bird => {
            let mut prefix = String::new();
            for line in lab.birdc(router, "show route primary all")?.lines() {
                let first = line.split_whitespace().next().unwrap_or_default();
                if !line.starts_with(char::is_whitespace) && first.contains('/') {
                    prefix = first.to_owned();
                }
                if let Some(rest) = line.trim().strip_prefix("BGP.next_hop: ")
                    && is_host(&prefix)
                    && let Some(hop) = rest.split_whitespace().next()
                {
                    routes.insert(prefix.clone(), hop.parse()?);
                }
            }
        }
        Role::Gobgp => {
            for family in ["ipv4", "ipv6"] {
                let told = lab.gobgp_json(router, &format!("global rib -a {family}"))?;
                let hosts = told.as_object().into_iter().flatten().filter(|(p, _)| is_host(p));
                let prefixes: BTreeSet<&String> = hosts.map(|(prefix, _)| prefix).collect();
                for prefix in prefixes {
                    let address = prefix.split('/').next().unwrap_or_default().parse()?;
                    if let Some(hop) = super::scene::next_hop(lab, router, address)? {
                        routes.insert(prefix.clone(), hop);
                    }
                }
            }
        }
        Role::Killick | Role::Host => {}
    }
    Ok(routes)
}

fn is_host(prefix: &str) -> bool {
    prefix.ends_with("/32") || prefix.ends_with("/128")
}

fn frr_next_hop(path: &Value) -> Option<IpAddr> {
    let hops = path["nexthops"].as_array()?;
    let used = hops.iter().find(|hop| hop["used"] == true)?;
    used["ip"].as_str()?.parse().ok()
}
