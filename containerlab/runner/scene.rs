//! Who is who in a lab, read from the lab itself: the anchors and their FE_E, the hosts and which
//! of their ports leads where, and what each router believes about a host.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::Value;

use super::Result;
use super::lab::{Lab, wait_until};
use super::topology::Role;

pub struct Scene {
    /// How traffic is steered: `distributed` or `controller` (iBGP), `lisp`, `lisp+distributed`.
    pub mode: &'static str,
    pub anchors: BTreeMap<String, Anchor>,
    pub hosts: BTreeMap<String, Host>,
    /// Routers with BGP, whose view counts, by role.
    pub routers: Vec<String>,
    /// Ingress tunnel routers, whose view counts too: name and policy.
    pub itrs: Vec<(String, String)>,
    pub correspondents: Vec<Correspondent>,
}

pub struct Correspondent {
    pub name: String,
    /// IPv4, then IPv6.
    pub addresses: [IpAddr; 2],
}

/// Where traffic for nodes at this anchor goes.
pub struct Anchor {
    /// Its `anchor-id`.
    pub id: String,
    /// The next hops of host routes, IPv4 and IPv6; where only tunnels end, both may be the same.
    pub fe_e: [IpAddr; 2],
    /// Where tunnels end.
    pub rlocs: Vec<IpAddr>,
}

pub struct Host {
    pub mac: String,
    /// IPv4, then IPv6.
    pub addresses: [IpAddr; 2],
    /// The port of the host that leads to an anchor, by anchor.
    pub ports: BTreeMap<String, String>,
}

impl Scene {
    pub fn of(lab: &Lab) -> Result<Self> {
        let (mut is_controlled, mut has_lisp) = (false, false);
        let mut anchors = BTreeMap::new();
        let mut itrs = Vec::new();
        for name in lab.with_role(Role::Killick) {
            let path = lab.namespace(name)?.path("/etc/killick/killick.toml");
            let file: toml::Table = std::fs::read_to_string(path)?.parse()?;
            let of = |section: &str, key: &str| file.get(section).and_then(|s| s.get(key));
            has_lisp |= file.contains_key("lisp");
            is_controlled |=
                of("mobility", "mode").and_then(toml::Value::as_str) == Some("controller");
            let locators = |locator: &toml::Value| -> Result<Vec<IpAddr>> {
                let texts = ["ipv4", "ipv6"].into_iter().filter_map(|family| locator.get(family));
                texts.map(|text| Ok(text.as_str().unwrap_or_default().parse()?)).collect()
            };
            if let Some(fe_e) = of("mobility", "fe-e") {
                let known = locators(fe_e)?;
                let (Some(&first), Some(&last)) = (known.first(), known.last()) else {
                    return Err(format!("{name} has no FE_E").into());
                };
                let fe_e = [first, last];
                let rlocs = of("lisp", "rloc").map_or(Ok(known), locators)?;
                let id = of("node", "anchor-id").and_then(toml::Value::as_str);
                let id = id.ok_or_else(|| format!("{name} has no anchor-id"))?.to_owned();
                anchors.insert(name.to_owned(), Anchor { id, fe_e, rlocs });
            } else if let Some(ingress) = of("lisp", "ingress").and_then(|i| i.get(0)) {
                let policy = ingress.get("policy").and_then(toml::Value::as_str);
                itrs.push((name.to_owned(), policy.unwrap_or("query").to_owned()));
            }
        }
        let roams = |name: &str| {
            lab.topology.links.iter().any(|[left, right]| {
                [(left, right), (right, left)]
                    .iter()
                    .any(|(here, there)| here.node == name && anchors.contains_key(&there.node))
            })
        };
        let mut hosts = BTreeMap::new();
        let mut correspondents = Vec::new();
        for name in lab.with_role(Role::Host) {
            if roams(name) {
                let (mac, addresses) = addresses(lab, name, "br0")?;
                hosts.insert(name.to_owned(), Host { mac, addresses, ports: BTreeMap::new() });
            } else {
                let addresses = addresses(lab, name, "eth1")?.1;
                correspondents.push(Correspondent { name: name.to_owned(), addresses });
            }
        }
        for [left, right] in &lab.topology.links {
            for (here, there) in [(left, right), (right, left)] {
                if let Some(host) = hosts.get_mut(&here.node) {
                    host.ports.insert(there.node.clone(), here.interface.clone());
                }
            }
        }
        let mut routers = Vec::new();
        for role in [Role::Frr, Role::Bird, Role::Gobgp] {
            for name in lab.with_role(role) {
                let has_bgp = role != Role::Frr
                    || std::fs::read_to_string(lab.namespace(name)?.path("/etc/frr/frr.conf"))?
                        .contains("router bgp");
                routers.extend(has_bgp.then(|| name.to_owned()));
            }
        }
        let mode = match (has_lisp, routers.is_empty(), is_controlled) {
            (true, true, _) => "lisp",
            (true, false, _) => "lisp+distributed",
            (false, _, true) => "controller",
            (false, _, false) => "distributed",
        };
        Ok(Self { mode, anchors, hosts, routers, itrs, correspondents })
    }

    /// Whom a host talks to: they take turns.
    pub fn correspondent_of(&self, host: &str) -> Result<&Correspondent> {
        let at = self.hosts.keys().position(|name| name == host).ok_or("no such host")?;
        let count = self.correspondents.len().max(1);
        self.correspondents.get(at % count).ok_or_else(|| "the lab has no correspondent".into())
    }

    /// Every router has all its BGP sessions, and every killick all its peers.
    pub fn wait_until_connected(&self, lab: &Lab, limit: Duration) -> Result<()> {
        for router in &self.routers {
            wait_until(&format!("all BGP sessions of {router}"), limit, || {
                let sessions = lab.bgp_sessions(router)?;
                let all = !sessions.is_empty() && sessions.values().all(|up| *up);
                if all { Ok(Some(())) } else { Err(format!("{sessions:?}").into()) }
            })?;
        }
        for node in lab.with_role(Role::Killick) {
            wait_until(&format!("all peers of {node}"), limit, || {
                let status = lab.killick_json(node, "status")?;
                let peers = status["peers"].as_array().ok_or("no peers in the status")?;
                let all = peers.iter().all(|peer| peer["state"] == "up");
                if all { Ok(Some(())) } else { Err(status["peers"].to_string().into()) }
            })?;
        }
        // What is asked for before the anchors have registered is answered "no", for a minute.
        for anchor in self.anchors.keys().filter(|_| self.mode.starts_with("lisp")) {
            wait_until(&format!("the registrations of {anchor}"), limit, || {
                let told = lab.killick_json(anchor, "lisp registrations")?;
                let all = told["items"].as_array().ok_or("no registrations")?;
                let done = all.iter().all(|r| r["state"] == "confirmed");
                if done { Ok(Some(())) } else { Err(told.to_string().into()) }
            })?;
        }
        // An ingress router that is subscribed knows all aggregates; one that asks knows nothing.
        for (itr, _) in self.itrs.iter().filter(|(_, policy)| policy == "push") {
            wait_until(&format!("the subscription of {itr}"), limit, || {
                let cache = lab.killick_json(itr, "lisp map-cache")?;
                let known = cache["items"].as_array().map_or(0, Vec::len);
                if known > 0 { Ok(Some(())) } else { Err("its map-cache is empty".into()) }
            })?;
        }
        Ok(())
    }

    /// The host leaves the anchor it is at and appears at `anchor`.
    pub fn move_host(&self, lab: &Lab, host: &str, anchor: &str) -> Result<()> {
        let port = self.hosts[host].ports.get(anchor);
        let port = port.ok_or_else(|| format!("{host} has no link to {anchor}"))?;
        lab.sh(host, &format!("sh /opt/lab/move.sh {port}")).map(drop)
    }

    /// The routers that do not send traffic for the host to `anchor`, and what they do.
    pub fn dissenters(&self, lab: &Lab, host: &str, anchor: &str) -> Vec<String> {
        let mut dissenters = Vec::new();
        let wanted = &self.anchors[anchor].fe_e;
        for router in &self.routers {
            for (address, wanted) in self.hosts[host].addresses.iter().zip(wanted) {
                match next_hop(lab, router, *address) {
                    Ok(Some(found)) if found == *wanted => {}
                    Ok(found) => {
                        dissenters.push(format!("{router}: {address} to {found:?}, not {wanted}"));
                    }
                    Err(e) => dissenters.push(format!("{router}: {address}: {e}")),
                }
            }
        }
        dissenters
    }

    /// Whether the host's correspondent is behind this ingress router: one router between them.
    fn talks_through(&self, lab: &Lab, host: &str, itr: &str) -> bool {
        let neighbors = |node: &str| -> Vec<String> {
            let links = lab.topology.links.iter();
            let ends = links.flat_map(|[a, b]| [(a, b), (b, a)]);
            ends.filter(|(a, _)| a.node == node).map(|(_, b)| b.node.clone()).collect()
        };
        let Ok(correspondent) = self.correspondent_of(host) else { return false };
        neighbors(&correspondent.name)
            .iter()
            .any(|router| neighbors(router).iter().any(|n| n == itr))
    }

    /// The ingress routers that do not send traffic for the host to `anchor`, and what they do. One
    /// that asks for what it needs counts when the host talks through it: what it has from before
    /// about a host that nobody talks to is not wrong, and is mended by the first packet.
    pub fn itr_dissenters(&self, lab: &Lab, host: &str, anchor: &str) -> Vec<String> {
        let mut dissenters = Vec::new();
        let wanted = &self.anchors[anchor].rlocs;
        for (itr, policy) in &self.itrs {
            if policy == "query" && !self.talks_through(lab, host, itr) {
                continue;
            }
            for address in self.hosts[host].addresses {
                match mapping(lab, itr, address) {
                    Ok(Some(found)) if found == *wanted => {}
                    Ok(found) => {
                        dissenters.push(format!("{itr}: {address} to {found:?}, not {wanted:?}"));
                    }
                    Err(e) => dissenters.push(format!("{itr}: {address}: {e}")),
                }
            }
        }
        dissenters
    }
}

/// The locators that an ingress router has for an address: its longest match.
pub fn mapping(lab: &Lab, itr: &str, address: IpAddr) -> Result<Option<Vec<IpAddr>>> {
    let cache = lab.killick_json(itr, "lisp map-cache")?;
    let entries = cache["items"].as_array().ok_or("no list of mappings")?;
    let longest = entries
        .iter()
        .filter_map(|entry| Some((covers(entry["eid"].as_str()?, address)?, entry)))
        .max_by_key(|(length, _)| *length);
    let Some((_, entry)) = longest else { return Ok(None) };
    let rlocs = entry["rlocs"].as_array().into_iter().flatten();
    let addresses = rlocs.filter_map(|rloc| rloc["address"].as_str()?.parse().ok());
    Ok(Some(addresses.collect()))
}

/// The BGP next hop that a router uses for an address: its longest match, its best path. For FRR
/// it counts only when the kernel has it.
pub fn next_hop(lab: &Lab, router: &str, address: IpAddr) -> Result<Option<IpAddr>> {
    let role = lab.nodes.get(router).map(|node| node.role);
    match role {
        Some(Role::Frr) => {
            let family = if address.is_ipv4() { "ip" } else { "ipv6" };
            let found = lab.vtysh_json(router, &format!("show {family} route {address} json"))?;
            Ok(frr_next_hop(&found))
        }
        Some(Role::Bird) => {
            // The reflector installs nothing; its choice is what it passes on.
            let found = lab.birdc(router, &format!("show route for {address} primary all"))?;
            Ok(found
                .lines()
                .find_map(|line| line.trim().strip_prefix("BGP.next_hop: "))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|text| text.parse().ok()))
        }
        Some(Role::Gobgp) => gobgp_next_hop(lab, router, address),
        other => Err(format!("{router}: {other:?} is not a router").into()),
    }
}

fn frr_next_hop(found: &Value) -> Option<IpAddr> {
    let routes = found.as_object()?.values().next()?.as_array()?;
    let best = routes.iter().find(|route| {
        route["selected"] == true && route["installed"] == true && route["protocol"] == "bgp"
    })?;
    // The recursive next hop is BGP's own; the others are what it resolves to.
    let hops = best["nexthops"].as_array()?;
    let own = hops.iter().find(|hop| hop["recursive"] == true).or(hops.first())?;
    own["ip"].as_str()?.parse().ok()
}

/// GoBGP answers for exact prefixes, so the longest one that it has is looked for.
fn gobgp_next_hop(lab: &Lab, router: &str, address: IpAddr) -> Result<Option<IpAddr>> {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let rib = lab.gobgp_json(router, &format!("global rib -a {family}"))?;
    let Some(rib) = rib.as_object() else { return Ok(None) };
    let mut best: Option<(u8, IpAddr)> = None;
    for (prefix, paths) in rib {
        let Some(length) = covers(prefix, address) else { continue };
        let best_path = paths.as_array().and_then(|all| all.iter().find(|p| p["best"] == true));
        let next_hop = best_path
            .and_then(|path| path["attrs"].as_array())
            .into_iter()
            .flatten()
            .find_map(|attribute| attribute["nexthop"].as_str())
            .and_then(|text| text.parse().ok());
        if let Some(next_hop) = next_hop
            && best.is_none_or(|(longest, _)| length > longest)
        {
            best = Some((length, next_hop));
        }
    }
    Ok(best.map(|(_, next_hop)| next_hop))
}

/// The length of `prefix` if `address` is inside.
fn covers(prefix: &str, address: IpAddr) -> Option<u8> {
    let (network, length) = prefix.split_once('/')?;
    let length: u8 = length.parse().ok()?;
    let inside = match (network.parse().ok()?, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            u32::from(network) == u32::from(address) & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            u128::from(network) == u128::from(address) & mask
        }
        _ => false,
    };
    inside.then_some(length)
}

/// Link-layer address and the global IPv4 and IPv6 address of an interface of a node.
fn addresses(lab: &Lab, node: &str, interface: &str) -> Result<(String, [IpAddr; 2])> {
    let text = lab.sh(node, &format!("ip -j addr show dev {interface} scope global"))?;
    let shown: Value = serde_json::from_str(&text)?;
    let shown = shown.as_array().and_then(|all| all.iter().find(|one| one["ifname"] == interface));
    let missing = || format!("{node} has not both addresses on {interface}");
    let shown = shown.ok_or_else(missing)?;
    let all = shown["addr_info"].as_array().ok_or_else(missing)?;
    let texts = || all.iter().filter_map(|info| info["local"].as_str());
    let ipv4 = texts().find_map(|text| text.parse::<Ipv4Addr>().ok()).ok_or_else(missing)?;
    let ipv6 = texts().find_map(|text| text.parse::<Ipv6Addr>().ok()).ok_or_else(missing)?;
    let mac = shown["address"].as_str().ok_or_else(missing)?.to_owned();
    Ok((mac, [ipv4.into(), ipv6.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_prefixes() {
        let address = "10.1.1.10".parse().unwrap();
        assert_eq!(covers("10.1.1.10/32", address), Some(32));
        assert_eq!(covers("10.1.1.0/24", address), Some(24));
        assert_eq!(covers("0.0.0.0/0", address), Some(0));
        assert_eq!(covers("10.1.2.0/24", address), None);
        assert_eq!(covers("::/0", address), None);
        assert_eq!(covers("2001:db8:1::/64", "2001:db8:1::9".parse().unwrap()), Some(64));
    }
}
