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
    /// `distributed` or `controller`.
    pub mode: &'static str,
    pub anchors: BTreeMap<String, Anchor>,
    pub hosts: BTreeMap<String, Host>,
    /// Routers whose view counts, by role.
    pub routers: Vec<String>,
    /// The correspondent's addresses.
    pub correspondent: [IpAddr; 2],
}

/// The next hop of traffic for nodes at this anchor.
pub struct Anchor {
    pub fe_e: [IpAddr; 2],
}

pub struct Host {
    pub mac: String,
    /// IPv4, then IPv6.
    pub addresses: [IpAddr; 2],
    /// The port of the host that leads to an anchor, by anchor.
    pub ports: BTreeMap<String, String>,
}

/// The name of the correspondent in every lab.
pub const CORRESPONDENT: &str = "cn";

impl Scene {
    pub fn of(lab: &Lab) -> Result<Self> {
        let mut mode = "distributed";
        let mut anchors = BTreeMap::new();
        for name in lab.with_role(Role::Killick) {
            let path = lab.namespace(name)?.path("/etc/killick/killick.toml");
            let file: toml::Table = std::fs::read_to_string(path)?.parse()?;
            let mobility = file.get("mobility").ok_or_else(|| format!("{name} has no mobility"))?;
            if mobility.get("mode").and_then(toml::Value::as_str) == Some("controller") {
                mode = "controller";
            }
            if let Some(fe_e) = mobility.get("fe-e") {
                let address = |family: &str| -> Result<IpAddr> {
                    let text = fe_e.get(family).and_then(toml::Value::as_str);
                    Ok(text.ok_or_else(|| format!("{name} has no FE_E for {family}"))?.parse()?)
                };
                let anchor = Anchor { fe_e: [address("ipv4")?, address("ipv6")?] };
                anchors.insert(name.to_owned(), anchor);
            }
        }
        let mut hosts = BTreeMap::new();
        for name in lab.with_role(Role::Host).filter(|name| *name != CORRESPONDENT) {
            let (mac, addresses) = addresses(lab, name, "br0")?;
            hosts.insert(name.to_owned(), Host { mac, addresses, ports: BTreeMap::new() });
        }
        for [left, right] in &lab.topology.links {
            for (here, there) in [(left, right), (right, left)] {
                if let Some(host) = hosts.get_mut(&here.node) {
                    host.ports.insert(there.node.clone(), here.interface.clone());
                }
            }
        }
        let routers = [Role::Frr, Role::Bird, Role::Gobgp]
            .into_iter()
            .flat_map(|role| lab.with_role(role))
            .map(str::to_owned)
            .collect();
        let correspondent = addresses(lab, CORRESPONDENT, "eth1")?.1;
        Ok(Self { mode, anchors, hosts, routers, correspondent })
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
                let all = !peers.is_empty() && peers.iter().all(|peer| peer["state"] == "up");
                if all { Ok(Some(())) } else { Err(status["peers"].to_string().into()) }
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
