//! `[mobility]`.

use std::time::Duration;

use super::super::checked::{Mobility, NodeEntry, Pool};
use super::super::fault::did_you_mean;
use super::super::file::{File, MobilitySection, Mode, Role};
use super::{Called, Checker, find_anchor};
use crate::types::{Family, Locator, Prefix, limits};

const MINUTE: Duration = Duration::from_secs(60);
const DELAY_MAX: Duration = Duration::from_secs(600);

impl Checker<'_, '_> {
    pub(super) fn mobility(&mut self, file: &File) -> Option<Option<Mobility>> {
        let Some(section) = &file.mobility else {
            for (written, table) in [(file.access.len(), "access"), (file.peer.len(), "peer")] {
                if written > 0 && !self.document.was_taken_out("mobility") {
                    self.error_hint(
                        &format!("{table}[0]"),
                        format!("[[{table}]] needs [mobility]"),
                        "add [mobility] with `mode` and pools",
                    );
                }
            }
            return Some(None);
        };
        let mode = self.required(&section.mode, "mobility", "mode");
        if let Some(mode) = mode {
            self.mode(file, mode);
            self.fe_e(section, mode);
        }
        for (key, value) in [
            ("settle-delay", section.settle_delay),
            ("settle-unconfirmed", section.settle_unconfirmed),
            ("prepare-max", section.prepare_max),
            ("detach-grace", section.detach_grace),
        ] {
            if value.is_some_and(|p| p.0 > DELAY_MAX) {
                self.error(&format!("mobility.{key}"), "must be at most \"10m\"");
            }
        }
        let settle_delay = section.settle_delay.map_or(Duration::from_secs(2), |p| p.0);
        let settle_unconfirmed =
            section.settle_unconfirmed.map_or(settle_delay.max(4 * MINUTE), |p| p.0);
        if settle_unconfirmed < settle_delay {
            self.error("mobility.settle-unconfirmed", "must not be shorter than `settle-delay`");
        }
        if section.lifetime.is_some_and(|p| p.0 < Duration::from_secs(1)) {
            self.error("mobility.lifetime", "must be at least \"1s\"");
        }
        if section.pool.is_empty() && !self.document.was_taken_out("mobility.pool") {
            self.error_hint(
                "mobility",
                "there are no pools, so nothing may be announced",
                "add [[mobility.pool]] with the prefixes that mobile addresses come from",
            );
        }
        let pools: Option<Vec<_>> = (0..section.pool.len())
            .map(|i| self.pool(file, section, i))
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
        let nodes: Option<Vec<_>> = (0..section.node.len())
            .map(|i| self.node_entry(file, section, i))
            .collect::<Vec<_>>()
            .into_iter()
            .collect();
        Some(Some(Mobility {
            mode: mode?,
            fe_e: section.fe_e.unwrap_or_default(),
            settle_delay,
            settle_unconfirmed,
            prepare_max: section.prepare_max.map_or(Duration::from_millis(200), |p| p.0),
            detach_grace: section.detach_grace.map_or(Duration::from_secs(1), |p| p.0),
            no_export: section.no_export.unwrap_or(true),
            lifetime: section.lifetime.map(|p| p.0),
            pools: pools?,
            nodes: nodes?,
        }))
    }

    /// What a mode needs from the other sections.
    fn mode(&mut self, file: &File, mode: Mode) {
        let controllers = file.peer.iter().filter(|p| p.role == Some(Role::Controller)).count();
        let announces = file.bgp.is_some()
            || self.document.was_taken_out("bgp")
            || file.lisp.is_some()
            || self.document.was_taken_out("lisp");
        match mode {
            Mode::Distributed | Mode::Controller if !announces => {
                let name = if mode == Mode::Controller { "controller" } else { "distributed" };
                self.error_hint(
                    "mobility.mode",
                    format!("mode \"{name}\" needs [bgp] or [lisp] to steer traffic by"),
                    "add [bgp] or [lisp]; an anchor without both has mode \"client\"",
                );
            }
            Mode::Distributed | Mode::Controller => {}
            Mode::Client => {
                if controllers == 0 {
                    self.error_hint(
                        "mobility.mode",
                        "mode \"client\" reports to controllers, and no peer is one",
                        "add a [[peer]] with `role = \"controller\"`",
                    );
                }
                if file.bgp.is_some() {
                    self.warn(
                        "bgp",
                        "in mode \"client\" no mobility is announced by this [bgp]",
                        "the controllers announce it; remove [bgp], or use mode \"distributed\"",
                    );
                }
            }
        }
        if mode == Mode::Distributed
            && let Some(i) = file.peer.iter().position(|p| p.role == Some(Role::Controller))
        {
            self.error_hint(
                &format!("peer[{i}].role"),
                "in mode \"distributed\" nobody reports to a controller",
                "mode \"client\", or role \"anchor\"",
            );
        }
        if mode == Mode::Controller && !file.access.is_empty() {
            self.error_hint(
                "access[0]",
                "a controller has no access interfaces",
                "attach hosts at anchors of mode \"client\" or \"distributed\"",
            );
        }
    }

    fn fe_e(&mut self, section: &MobilitySection, mode: Mode) {
        let taken_out = self.document.was_taken_out("mobility.fe-e")
            || ["ipv4", "ipv6"]
                .iter()
                .any(|f| self.document.was_taken_out(&format!("mobility.fe-e.{f}")));
        match (section.fe_e, mode) {
            (_, Mode::Controller) | (None, _) if taken_out => {}
            (Some(_), Mode::Controller) => self.warn(
                "mobility.fe-e",
                "a controller forwards nothing, so its `fe-e` is not used",
                "remove it; the anchors report their own",
            ),
            (None, Mode::Controller) => {}
            (None, Mode::Distributed | Mode::Client) => self.error_hint(
                "mobility",
                "`fe-e` is missing in [mobility]",
                "where routers shall send traffic for nodes attached here: \
                 fe-e = { ipv4 = \"192.0.2.1\" }",
            ),
            (Some(_), Mode::Distributed | Mode::Client) if taken_out => {}
            (Some(fe_e), Mode::Distributed | Mode::Client) => {
                let pools: Vec<Prefix> = section.pool.iter().filter_map(|p| p.prefix).collect();
                self.locator(fe_e, "mobility.fe-e", &pools);
            }
        }
    }

    /// An FE_E that can serve all pools.
    pub(super) fn locator(&mut self, fe_e: Locator, path: &str, pools: &[Prefix]) {
        for family in Family::ALL {
            let pool = pools.iter().find(|pool| pool.family() == family);
            if let Some(pool) = pool
                && fe_e.next_hop(family).is_none()
                && !self.tunnels_only
            {
                self.error_hint(
                    path,
                    format!("has no address that {pool} could be steered to"),
                    format!("add its {family} address"),
                );
            }
        }
        if fe_e.ipv4.is_some_and(|a| a.is_unspecified() || a.is_multicast())
            || fe_e.ipv6.is_some_and(|a| a.is_unspecified() || a.is_multicast())
        {
            self.error(path, "is not the address of a router");
        }
    }

    fn pool(&mut self, file: &File, section: &MobilitySection, i: usize) -> Option<Pool> {
        let pool = &section.pool[i];
        let table = format!("mobility.pool[{i}]");
        let prefix = self.required(&pool.prefix, &table, "prefix");
        let path = format!("{table}.prefix");
        if let Some(prefix) = prefix {
            let address = prefix.addr();
            let link_local = match address {
                std::net::IpAddr::V4(a) => a.is_link_local(),
                std::net::IpAddr::V6(a) => a.is_unicast_link_local(),
            };
            if prefix.len() == 0 {
                self.error(&path, "a pool cannot be the whole address space");
            } else if address.is_multicast() || address.is_loopback() || link_local {
                self.error(&path, format!("{prefix} cannot be routed"));
            }
        }
        let home = match &pool.home {
            None => None,
            Some(text) => match find_anchor(file, text) {
                Called::Known(id) => Some(id),
                Called::NameOnly => None,
                Called::Unknown => {
                    self.unknown_home(file, text, &format!("{table}.home"));
                    None
                }
            },
        };
        if let Some(prefix) = prefix {
            self.pool_overlap(section, i, prefix);
        }
        let is_own = home.is_some() && home == file.node.anchor_id;
        let mode = section.mode?;
        let announce = pool.announce_aggregate.unwrap_or(match mode {
            Mode::Distributed => is_own,
            Mode::Controller => home.is_some(),
            Mode::Client => false,
        });
        if pool.announce_aggregate == Some(true) {
            match mode {
                Mode::Client => self.error_hint(
                    &format!("{table}.announce-aggregate"),
                    "mode \"client\" announces nothing",
                    "set it at the controllers",
                ),
                Mode::Distributed if !is_own => self.warn(
                    &format!("{table}.announce-aggregate"),
                    "draws traffic of nodes at home to an anchor that is not their home",
                    "announce a pool at its home only",
                ),
                Mode::Distributed | Mode::Controller => {}
            }
        }
        Some(Pool { prefix: prefix?, home, announce_aggregate: announce })
    }

    fn unknown_home(&mut self, file: &File, text: &str, path: &str) {
        let peers = file.peer.iter().filter_map(|p| p.name.as_deref());
        let names = || file.node.name.as_deref().into_iter().chain(peers.clone());
        let hint = match did_you_mean(text, names()) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => {
                let names: Vec<&str> = names().take(8).collect();
                format!("the name or anchor-id of this node or a [[peer]]: {}", names.join(", "))
            }
        };
        self.error_hint(path, format!("no anchor is called \"{text}\""), hint);
    }

    fn pool_overlap(&mut self, section: &MobilitySection, i: usize, prefix: Prefix) {
        for (n, other) in section.pool[..i].iter().enumerate() {
            let Some(theirs) = other.prefix else { continue };
            if !theirs.contains(prefix) && !prefix.contains(theirs) {
                continue;
            }
            let line = self.at_line(&format!("mobility.pool[{n}].prefix"));
            let path = format!("mobility.pool[{i}].prefix");
            if theirs == prefix {
                self.error(&path, format!("pool {prefix} is configured twice{line}"));
            } else if other.home != section.pool[i].home {
                self.error_hint(
                    &path,
                    format!("pool {prefix} overlaps {theirs}{line}, which has another home"),
                    "one address can only have one home",
                );
            }
        }
    }

    fn node_entry(
        &mut self,
        file: &File,
        section: &MobilitySection,
        i: usize,
    ) -> Option<NodeEntry> {
        let node = &section.node[i];
        let table = format!("mobility.node[{i}]");
        let id = self.required(&node.id, &table, "id");
        let earlier = &section.node[..i];
        if let Some(id) = &id
            && let Some(n) = earlier.iter().position(|other| other.id.as_ref() == Some(id))
        {
            let line = self.at_line(&format!("mobility.node[{n}].id"));
            self.error(&format!("{table}.id"), format!("node {id} is configured twice{line}"));
        }
        if let Some(mac) = node.mac {
            let path = format!("{table}.mac");
            if mac.is_multicast() {
                self.error(&path, format!("{mac} is a group address, not a node's"));
            }
            if let Some(n) = earlier.iter().position(|other| other.mac == Some(mac)) {
                let line = self.at_line(&format!("mobility.node[{n}].mac"));
                self.error(&path, format!("{mac} belongs to two nodes{line}"));
            }
        }
        if node.prefixes.len() > limits::PREFIXES_PER_NODE_MAX {
            let max = limits::PREFIXES_PER_NODE_MAX;
            self.error(&format!("{table}.prefixes"), format!("at most {max} prefixes"));
        }
        let pools: Vec<Prefix> = super::pools(file);
        for (n, prefix) in node.prefixes.iter().enumerate() {
            let path = format!("{table}.prefixes[{n}]");
            if !self.in_pools(&pools, *prefix) {
                self.error_hint(
                    &path,
                    format!("{prefix} is outside all mobility pools"),
                    "it would never be announced; add a pool, or correct it",
                );
            }
            let overlaps = |other: &Prefix| other.contains(*prefix) || prefix.contains(*other);
            if node.prefixes[..n].iter().any(overlaps)
                || earlier.iter().flat_map(|other| &other.prefixes).any(overlaps)
            {
                self.error(&path, format!("{prefix} is configured twice"));
            }
            let gateway = file.access.iter().flat_map(|a| &a.gateway);
            if gateway.into_iter().any(|gateway| prefix.contains_addr(*gateway)) {
                self.error(&path, format!("{prefix} holds the address of a gateway"));
            }
        }
        if node.mac.is_none() && node.prefixes.is_empty() && !self.document.was_taken_out(&table) {
            self.warn(&table, "says nothing about the node", "give its `mac` or its `prefixes`");
        }
        Some(NodeEntry { id: id?, mac: node.mac, prefixes: node.prefixes.clone() })
    }
}
