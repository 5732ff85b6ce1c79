//! `[bgp]`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::checked::{BGP_PORT, Bgp, Filter, MaxPrefix, Neighbor, Network, Permit};
use super::super::file::{self, BgpSection, File, FilterWord, MaxPrefixAction, NeighborSection};
use super::{Checker, Period};
use crate::types::{Family, Prefix};

const HOLD_TIME: Duration = Duration::from_secs(90);
const HOLD_TIME_RULE: &str = "\"0s\" (never) or whole seconds from \"3s\" to \"65535s\"";
const SECOND: Duration = Duration::from_secs(1);

fn is_hold_time(seconds: u64) -> bool {
    // RFC 4271 §4.2.
    seconds == 0 || (3..=65_535).contains(&seconds)
}

impl Checker<'_, '_> {
    pub(super) fn bgp(&mut self, file: &File, pools: &[Prefix]) -> Option<Bgp> {
        let section = file.bgp.as_ref()?;
        let local_as = self.required(&section.local_as, "bgp", "local-as");
        if local_as == Some(0) {
            self.error("bgp.local-as", "AS 0 is reserved (RFC 7607)");
        }
        let hold_time = self.seconds(
            section.hold_time,
            HOLD_TIME,
            "bgp.hold-time",
            is_hold_time,
            HOLD_TIME_RULE,
        );
        let graceful_restart_time = self.seconds(
            section.graceful_restart_time,
            Duration::from_secs(120),
            "bgp.graceful-restart-time",
            |s| s <= 4_095,
            "whole seconds, at most \"4095s\" (RFC 4724 §3)",
        );
        for (key, id) in [("router-id", section.router_id), ("cluster-id", section.cluster_id)] {
            if id.is_some_and(|id| id.is_unspecified()) {
                self.error(&format!("bgp.{key}"), format!("`{key}` must not be 0.0.0.0"));
            }
        }
        if section.install_table.is_some() && section.install != Some(true) {
            self.warn(
                "bgp.install-table",
                "`install-table` does nothing without `install = true`",
                "add it, or remove this",
            );
        }
        let neighbors: Option<Vec<_>> = (0..section.neighbor.len())
            .map(|i| self.neighbor(file, section, i, hold_time, pools))
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
        let networks: Option<Vec<_>> = (0..section.network.len())
            .map(|i| self.network(section, i, pools))
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
        let port = section.port.unwrap_or(BGP_PORT);
        if port == 0 {
            self.error("bgp.port", "port 0 cannot be connected to");
        }
        let listen = section
            .listen
            .clone()
            .unwrap_or_else(|| vec![IpAddr::from([0u8; 4]), IpAddr::from([0u16; 8])]);
        for (i, address) in listen.iter().enumerate() {
            if listen[..i].contains(address) {
                self.error(&format!("bgp.listen[{i}]"), format!("{address} is listed twice"));
            }
        }
        let router_id = section.router_id.or(file.node.anchor_id.map(|id| id.0.into()))?;
        Some(Bgp {
            local_as: local_as?,
            router_id,
            cluster_id: section.cluster_id.unwrap_or(router_id),
            listen: listen.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
            graceful_restart_time,
            install_table: (section.install == Some(true))
                .then(|| section.install_table.or(file.kernel.table).unwrap_or(254)),
            neighbors: neighbors?,
            networks: networks?,
        })
    }

    fn neighbor(
        &mut self,
        file: &File,
        bgp: &BgpSection,
        i: usize,
        hold_time: Duration,
        pools: &[Prefix],
    ) -> Option<Neighbor> {
        let section = &bgp.neighbor[i];
        let table = format!("bgp.neighbor[{i}]");
        let key = |key: &str| format!("{table}.{key}");
        let address = self.required(&section.address, &table, "address");
        let remote_as = self.required(&section.remote_as, &table, "remote-as");
        if remote_as == Some(0) {
            self.error(&key("remote-as"), "AS 0 is reserved (RFC 7607)");
        }
        if let Some(address) = address {
            self.neighbor_address(bgp, i, address);
        }
        let internal = remote_as == bgp.local_as;
        if section.route_reflector_client == Some(true) && !internal {
            self.error_hint(
                &key("route-reflector-client"),
                "only an iBGP neighbour can be a route reflection client (RFC 4456)",
                "its `remote-as` must be `bgp.local-as`",
            );
        }
        if section.passive == Some(true) && bgp.listen.as_ref().is_some_and(Vec::is_empty) {
            self.error_hint(
                &key("passive"),
                "waits for the neighbour to connect, but bgp.listen is empty",
                "give bgp.listen an address, or let this side connect",
            );
        }
        let families = section.families.clone().unwrap_or_else(|| Family::ALL.to_vec());
        if families.is_empty() {
            self.error(&key("families"), "at least one family is needed");
        } else if (1..families.len()).any(|n| families[..n].contains(&families[n])) {
            self.error(&key("families"), "a family is listed twice");
        }
        let hold_time = self.seconds(
            section.hold_time,
            hold_time,
            &key("hold-time"),
            is_hold_time,
            HOLD_TIME_RULE,
        );
        let send_hold_default = Duration::from_secs(480).max(hold_time * 2);
        let send_hold_time = section.send_hold_time.map_or(send_hold_default, |p| p.0);
        if send_hold_time != Duration::ZERO && send_hold_time <= hold_time {
            self.error_hint(
                &key("send-hold-time"),
                "must be longer than the hold time (RFC 9687 §3)",
                "\"0s\" turns it off",
            );
        }
        let connect_retry = section.connect_retry.map_or(Duration::from_secs(5), |p| p.0);
        if connect_retry < SECOND / 10 {
            self.error(&key("connect-retry"), "must be at least \"100ms\"");
        }
        if section.port == Some(0) {
            self.error(&key("port"), "port 0 cannot be connected to");
        }
        match section.ttl_security_hops {
            Some(0) => self.error_hint(
                &key("ttl-security-hops"),
                "the neighbour cannot be 0 hops away",
                "1 for a neighbour on the same link; leave it out to turn GTSM off",
            ),
            Some(255) => self.error(&key("ttl-security-hops"), "at most 254"),
            Some(_) | None => {}
        }
        let bfd = self.neighbor_bfd(file, section, internal, &table);
        let max_prefix = self.max_prefix(section, &table);
        let import = self.filter(section.import.as_ref(), &key("import"), pools);
        let export = self.filter(section.export.as_ref(), &key("export"), pools);
        if section.import.is_none() && section.export.is_none() && section.shutdown != Some(true) {
            self.warn(
                &table,
                "this neighbour is told nothing and believed nothing",
                "set `import` and `export`: \"none\", \"all\", \"pools\" or a list",
            );
        }
        Some(Neighbor {
            address: SocketAddr::new(address?, section.port.unwrap_or(BGP_PORT)),
            remote_as: remote_as?,
            description: section.description.clone(),
            local_address: section.local_address,
            passive: section.passive.unwrap_or(false),
            route_reflector_client: section.route_reflector_client.unwrap_or(false),
            families,
            hold_time,
            send_hold_time,
            connect_retry,
            password_file: section.password_file.as_deref().map(|p| self.path(p)),
            ttl_security_hops: section.ttl_security_hops,
            max_prefix: max_prefix?,
            import,
            export,
            next_hop_self: section.next_hop_self.unwrap_or(false),
            extended_next_hop: section.extended_next_hop.unwrap_or(true),
            shutdown: section.shutdown.unwrap_or(false),
            bfd: bfd?,
        })
    }

    fn neighbor_address(&mut self, bgp: &BgpSection, i: usize, address: IpAddr) {
        let path = format!("bgp.neighbor[{i}].address");
        if address.is_unspecified() || address.is_multicast() {
            self.error(&path, format!("{address} is not the address of a neighbour"));
        }
        if matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()) {
            self.error_hint(
                &path,
                "a link-local address says nothing without its interface",
                "sessions over link-local addresses are not supported; use a global address",
            );
        }
        if let Some(other) = bgp.neighbor[..i].iter().position(|n| n.address == Some(address)) {
            let line = self.at_line(&format!("bgp.neighbor[{other}].address"));
            self.error(&path, format!("neighbour {address} is configured twice{line}"));
        }
        let Some(local) = bgp.neighbor[i].local_address else { return };
        let path = format!("bgp.neighbor[{i}].local-address");
        if local == address {
            self.error(&path, "is the address of the neighbour itself");
        } else if local.is_ipv4() != address.is_ipv4() {
            self.error(&path, format!("{local} and {address} are of different families"));
        }
    }

    fn max_prefix(&mut self, section: &NeighborSection, table: &str) -> Option<Option<MaxPrefix>> {
        let Some(max) = &section.max_prefix else { return Some(None) };
        let table = format!("{table}.max-prefix");
        let limit = self.required(&max.limit, &table, "limit");
        if limit == Some(0) {
            self.error_hint(
                &format!("{table}.limit"),
                "a limit of 0 closes the session at the first prefix",
                "to accept nothing, write `import = \"none\"`",
            );
        }
        let action = max.action.unwrap_or_default();
        if max.restart_after.is_some() && action != MaxPrefixAction::Restart {
            self.error_hint(
                &format!("{table}.restart-after"),
                "needs `action = \"restart\"`",
                "a session that was shut down stays down until an operator acts",
            );
        }
        let restart_after = max.restart_after.unwrap_or(Period(Duration::from_secs(300))).0;
        if restart_after < SECOND {
            self.error(&format!("{table}.restart-after"), "must be at least \"1s\"");
        }
        Some(Some(MaxPrefix { limit: limit?, action, restart_after }))
    }

    fn filter(&mut self, written: Option<&file::Filter>, path: &str, pools: &[Prefix]) -> Filter {
        match written {
            None | Some(file::Filter::Word(FilterWord::None)) => Filter::None,
            Some(file::Filter::Word(FilterWord::All)) => Filter::All,
            Some(file::Filter::Word(FilterWord::Pools)) => {
                if pools.is_empty() && !self.pools_are_incomplete {
                    self.error_hint(
                        path,
                        "\"pools\" needs mobility pools, and there are none",
                        "add [[mobility.pool]], or write \"all\" or a list",
                    );
                }
                Filter::List(pools.iter().copied().map(Permit::inside).collect())
            }
            Some(file::Filter::List(rules)) => {
                let permits = rules.iter().enumerate().map(|(n, rule)| {
                    let (len, bits) = (rule.prefix.len(), rule.prefix.family().bits());
                    let ge = rule.ge.unwrap_or(len);
                    let le = rule.le.unwrap_or(if rule.ge.is_some() { bits } else { len });
                    if ge < len || le < ge || le > bits {
                        self.error(
                            &format!("{path}[{n}]"),
                            format!(
                                "nothing can match: {len} <= ge ({ge}) <= le ({le}) <= {bits} \
                                 must hold"
                            ),
                        );
                    }
                    Permit { prefix: rule.prefix, ge, le }
                });
                Filter::List(permits.collect())
            }
        }
    }

    fn network(&mut self, bgp: &BgpSection, i: usize, pools: &[Prefix]) -> Option<Network> {
        let section = &bgp.network[i];
        let table = format!("bgp.network[{i}]");
        let prefix = self.required(&section.prefix, &table, "prefix")?;
        let path = format!("{table}.prefix");
        if let Some(other) = bgp.network[..i].iter().position(|n| n.prefix == Some(prefix)) {
            let line = self.at_line(&format!("bgp.network[{other}].prefix"));
            self.error(&path, format!("{prefix} is originated twice{line}"));
        }
        if let Some(pool) = pools.iter().find(|pool| pool.contains(prefix)) {
            self.error_hint(
                &path,
                format!("{prefix} is inside the mobility pool {pool}"),
                "routes of pools come from `announce-aggregate` and from attached nodes",
            );
        }
        if prefix.family() == Family::Ipv6 && section.next_hop.is_some_and(|nh| nh.is_ipv4()) {
            self.error(&format!("{table}.next-hop"), "an IPv6 prefix needs an IPv6 next hop");
        }
        if section.next_hop.is_some_and(|nh| nh.is_unspecified() || nh.is_multicast()) {
            self.error(&format!("{table}.next-hop"), "is not the address of a router");
        }
        Some(Network { prefix, next_hop: section.next_hop })
    }
}
