//! `[lisp]`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::super::Period;
use super::super::checked::{
    Ingress, Lisp, LispItr, LispKey, LispServer, LispSite, LispSubscriber, MapServer,
    OneTimeKeyFile,
};
use super::super::file::{
    Encapsulation, File, IngressPolicy, KeySection, LispAlgorithm, LispSection, LispServerSection,
    Mode,
};
use super::{Checker, NAME_RULE, is_plain_name};
use crate::types::lisp::{InstanceId, LOCATOR_POOL4_LEN, LOCATOR_POOL6_LEN, SiteId, XtrId};
use crate::types::{AnchorId, Family, Locator, Prefix};

/// Outer headers of the largest combination (IPv6, UDP, LISP) on top of IPv6's smallest MTU.
const MTU_MIN: u32 = 1280 + 56;

/// Keys of one party beside the one that signs: for a change one is enough.
const KEYS_MAX: usize = 4;

/// The xTR-ID of a killick that is given none: the letters of the name, then the anchor id.
pub fn xtr_id_of(anchor: AnchorId) -> XtrId {
    XtrId(u128::from_be_bytes(*b"killick\0\0\0\0\0\0\0\0\0") | u128::from(anchor.0))
}

impl Checker<'_, '_> {
    pub(super) fn lisp(&mut self, file: &File, pools: &[Prefix]) -> Option<Option<Lisp>> {
        let Some(section) = &file.lisp else { return Some(None) };
        if section.instance_id.is_some_and(|iid| iid > InstanceId::MAX.0) {
            self.error("lisp.instance-id", "an instance id has 24 bits: at most 16777215");
        }
        for (i, address) in section.listen.iter().flatten().enumerate() {
            if address.is_multicast() {
                self.error(&format!("lisp.listen[{i}]"), format!("{address} is a group"));
            }
        }
        let mode = file.mobility.as_ref().and_then(|m| m.mode);
        let delivers = matches!(mode, Some(Mode::Distributed | Mode::Client));
        let fe_e = file.mobility.as_ref().and_then(|m| m.fe_e);
        let rloc = section.rloc.or(fe_e.filter(|_| delivers)).unwrap_or_default();
        self.rloc(section, rloc, delivers);
        let xtr_id = match &section.xtr_id {
            Some(text) => self.xtr_id(text, "lisp.xtr-id"),
            None => file.node.anchor_id.map(xtr_id_of),
        };
        let mtu = section.mtu.unwrap_or(1500);
        if !(MTU_MIN..=65_535).contains(&mtu) {
            self.error_hint(
                "lisp.mtu",
                format!("{mtu} leaves no room for packets of 1280 octets inside a tunnel"),
                format!("{MTU_MIN} to 65535"),
            );
        }
        self.interfaces(section);
        self.rewriting(file, section, rloc, pools);
        let servers = self.map_servers(section, delivers);
        let ingress = self.ingress(section, pools);
        let probe_interval = section.probe_interval.map_or(Duration::from_secs(10), |p| p.0);
        if !probe_interval.is_zero() && probe_interval < Duration::from_secs(1) {
            self.error("lisp.probe-interval", "must be \"0s\" (never) or at least \"1s\"");
        }
        let server = section.server.as_ref().map(|server| self.lisp_server(file, server, pools));
        if section.server.is_none()
            && section.map_server.is_empty()
            && section.map_resolver.is_empty()
            && !self.document.was_taken_out("lisp.server")
            && !self.document.was_taken_out("lisp.map-server")
        {
            self.error_hint(
                "lisp",
                "[lisp] has neither a [lisp.server] nor a [[lisp.map-server]]",
                "be the map-server, or name one",
            );
        }
        let anchor_id = file.node.anchor_id;
        let servers = servers?;
        let mut map_resolvers = section.map_resolver.clone();
        if map_resolvers.is_empty() {
            map_resolvers.extend(servers.iter().map(|s: &MapServer| s.address));
        }
        let security = self.security(section, &servers, &map_resolvers);
        Some(Some(Lisp {
            iid: InstanceId(section.instance_id.unwrap_or(0)),
            listen: section
                .listen
                .clone()
                .unwrap_or_else(|| vec![IpAddr::from([0u8; 4]), IpAddr::from([0u16; 8])]),
            rloc,
            xtr_id: xtr_id?,
            site_id: SiteId(section.site_id.unwrap_or(u64::from(anchor_id?.0))),
            encapsulation: section.encapsulation.unwrap_or_default(),
            mtu,
            locators: section.locators.clone(),
            hook: section.hook.unwrap_or_default(),
            inner_interfaces: section.inner_interfaces.clone(),
            outer_interfaces: section.outer_interfaces.clone(),
            map_resolvers,
            map_servers: servers,
            security: security?,
            ingress: ingress?,
            probe_interval,
            departed_keep: section.departed_keep.map_or(Duration::from_secs(180), |p| p.0),
            server: match server {
                Some(server) => Some(server?),
                None => None,
            },
        }))
    }

    fn rloc(&mut self, section: &LispSection, rloc: Locator, delivers: bool) {
        let tunnels = delivers || !section.ingress.is_empty();
        if tunnels && rloc == Locator::default() && !self.document.was_taken_out("lisp.rloc") {
            self.error_hint(
                "lisp",
                "`rloc` is missing in [lisp]",
                "our address where tunnels end: rloc = { ipv4 = \"192.0.2.1\" }",
            );
        }
        if rloc.ipv4.is_some_and(|a| a.is_unspecified() || a.is_multicast())
            || rloc.ipv6.is_some_and(|a| a.is_unspecified() || a.is_multicast())
        {
            self.error("lisp.rloc", "is not the address of a router");
        }
    }

    fn xtr_id(&mut self, text: &str, path: &str) -> Option<XtrId> {
        let id = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok()).flatten();
        if id.is_none() {
            self.error(path, "an xTR-ID has 32 hexadecimal digits");
        }
        id.map(XtrId)
    }

    /// What is different where destinations are rewritten.
    fn rewriting(&mut self, file: &File, section: &LispSection, rloc: Locator, pools: &[Prefix]) {
        if section.encapsulation != Some(Encapsulation::Rewrite) {
            if !section.locators.is_empty() {
                let only = "only encapsulation \"rewrite\" gives hosts locators";
                self.warn("lisp.locators", only, "remove it");
            }
            return;
        }
        for (i, ingress) in section.ingress.iter().enumerate() {
            if ingress.policy.unwrap_or_default() == IngressPolicy::Query {
                self.error_hint(
                    &format!("lisp.ingress[{i}].policy"),
                    "no anchor can tell who sends by an old mapping: a packet does not say who rewrote it",
                    "policy = \"push\"",
                );
            }
        }
        if section.probe_interval.is_some_and(|p| !p.0.is_zero()) {
            let why = "locators of hosts are not probed: the hosts would be asked";
            self.warn("lisp.probe-interval", why, "remove it");
        }
        let mode = file.mobility.as_ref().and_then(|m| m.mode);
        if mode == Some(Mode::Client) {
            self.error_hint(
                "lisp.encapsulation",
                "\"rewrite\" needs the anchor to register its hosts itself",
                "mode = \"distributed\"",
            );
        }
        if mode == Some(Mode::Distributed) && section.server.is_some() {
            self.error_hint(
                "lisp.encapsulation",
                "a map-server that is an anchor too would tell its own address for its hosts",
                "a map-server of its own, or a tunnel",
            );
        }
        if mode == Some(Mode::Distributed) && !self.document.was_taken_out("lisp.locators") {
            for family in Family::ALL {
                let is_needed = pools.iter().any(|pool| pool.family() == family);
                let is_served = section.locators.iter().any(|pool| pool.family() == family);
                if is_needed && !is_served {
                    self.error_hint(
                        "lisp.encapsulation",
                        format!("hosts have {family} addresses, and there are no {family} locators for them"),
                        "locators = [\"192.0.2.0/24\", \"2001:db8:77::/64\"], routed to this node",
                    );
                }
            }
        }
        let peers = file.peer.iter().flat_map(|peer| &peer.locators);
        let others: Vec<Prefix> = pools.iter().chain(peers).copied().collect();
        let overlap = |a: Prefix, b: Prefix| a.contains(b) || b.contains(a);
        for (i, &pool) in section.locators.iter().enumerate() {
            let path = format!("lisp.locators[{i}]");
            let (shortest, longest) = match pool.family() {
                Family::Ipv4 => LOCATOR_POOL4_LEN,
                Family::Ipv6 => LOCATOR_POOL6_LEN,
            };
            if !(shortest..=longest).contains(&pool.len()) {
                self.error(&path, format!("a pool of locators is a /{shortest} to /{longest}"));
            }
            let earlier = &section.locators[..i];
            if let Some(other) = others.iter().chain(earlier).find(|&&o| overlap(o, pool)) {
                self.error(&path, format!("overlaps with {other}"));
            }
            let ours = [rloc.ipv4.map(IpAddr::V4), rloc.ipv6.map(IpAddr::V6)];
            if let Some(rloc) = ours.into_iter().flatten().find(|&a| pool.contains_addr(a)) {
                self.error(&path, format!("has our own address {rloc} in it"));
            }
        }
    }

    fn interfaces(&mut self, section: &LispSection) {
        let is_ebpf =
            matches!(section.encapsulation, Some(Encapsulation::Ebpf | Encapsulation::Rewrite));
        if section.encapsulation != Some(Encapsulation::Ebpf) && section.hook.is_some() {
            self.warn("lisp.hook", "only encapsulation \"ebpf\" has hooks", "remove it");
        }
        for (key, names) in [
            ("lisp.inner-interfaces", &section.inner_interfaces),
            ("lisp.outer-interfaces", &section.outer_interfaces),
        ] {
            if !is_ebpf && !names.is_empty() {
                let only = "only encapsulations \"ebpf\" and \"rewrite\" look at interfaces";
                self.warn(key, only, "remove it");
            }
            for (i, name) in names.iter().enumerate() {
                if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
                    self.error(&format!("{key}[{i}]"), "is not the name of an interface");
                }
            }
        }
        if is_ebpf && section.inner_interfaces.is_empty() && section.outer_interfaces.is_empty() {
            self.error_hint(
                "lisp.encapsulation",
                "it needs to know the interfaces",
                "set inner-interfaces and outer-interfaces",
            );
        }
    }

    fn lisp_key(
        &mut self,
        table: &str,
        id: Option<u8>,
        file: &Option<PathBuf>,
        algorithm: Option<LispAlgorithm>,
    ) -> Option<LispKey> {
        let file = self.required(file, table, "key-file")?;
        Some(LispKey {
            id: id.unwrap_or(1),
            file: self.path(&file),
            algorithm: algorithm.unwrap_or_default(),
        })
    }

    /// The keys beside the one that is used. Numbers tell them apart on the wire.
    fn also_accept(
        &mut self,
        table: &str,
        id: Option<u8>,
        sections: &[KeySection],
    ) -> Option<Vec<LispKey>> {
        if sections.len() > KEYS_MAX {
            let what = format!("more than {KEYS_MAX} keys beside the one in use");
            self.error(&format!("{table}.also-accept"), what);
        }
        let mut taken = vec![id.unwrap_or(1)];
        let mut keys = Vec::new();
        let mut complete = true;
        for (i, section) in sections.iter().enumerate() {
            let table = format!("{table}.also-accept[{i}]");
            let id = self.required(&section.key_id, &table, "key-id");
            let key = self.lisp_key(&table, id, &section.key_file, section.algorithm);
            if let Some(id) = id {
                if taken.contains(&id) {
                    let what = format!("there is another key with the number {id}");
                    self.error_hint(&format!("{table}.key-id"), what, "each key has its own");
                }
                taken.push(id);
            }
            match (id, key) {
                (Some(_), Some(key)) => keys.push(key),
                _ => complete = false,
            }
        }
        complete.then_some(keys)
    }

    fn map_servers(&mut self, section: &LispSection, delivers: bool) -> Option<Vec<MapServer>> {
        let mut servers = Vec::new();
        let mut complete = true;
        for (i, server) in section.map_server.iter().enumerate() {
            let table = format!("lisp.map-server[{i}]");
            let address = self.required(&server.address, &table, "address");
            if address.is_some_and(|a| a.is_unspecified() || a.is_multicast()) {
                self.error(&format!("{table}.address"), "is not the address of a map-server");
            }
            if address.is_some()
                && let Some(n) =
                    section.map_server[..i].iter().position(|other| other.address == address)
            {
                let line = self.at_line(&format!("lisp.map-server[{n}].address"));
                self.error(&format!("{table}.address"), format!("is configured twice{line}"));
            }
            let key = self.lisp_key(&table, server.key_id, &server.key_file, server.algorithm);
            let also_accept = self.also_accept(&table, server.key_id, &server.also_accept);
            match (address, key, also_accept) {
                (Some(address), Some(key), Some(also_accept)) => servers.push(MapServer {
                    address,
                    key,
                    also_accept,
                    register: server.register.unwrap_or(delivers),
                }),
                _ => complete = false,
            }
        }
        complete.then_some(servers)
    }

    /// The keys of the map-resolvers. One that we register with is a site's: its holders could open
    /// the keys of its ITRs, and sign what they claim themselves (RFC 9303 §6.5).
    fn security(
        &mut self,
        section: &LispSection,
        servers: &[MapServer],
        resolvers: &[IpAddr],
    ) -> Option<Option<BTreeMap<IpAddr, OneTimeKeyFile>>> {
        let is_on = section.security.unwrap_or(false);
        if !is_on && !section.resolver_key.is_empty() {
            self.warn("lisp.resolver-key[0]", "is not used", "security = true in [lisp]");
        }
        let mut keys = BTreeMap::new();
        let mut complete = true;
        for (i, entry) in section.resolver_key.iter().enumerate() {
            let table = format!("lisp.resolver-key[{i}]");
            let address = self.required(&entry.address, &table, "address");
            let key = self.lisp_key(&table, entry.key_id, &entry.key_file, None);
            let (Some(address), Some(key)) = (address, key) else {
                complete = false;
                continue;
            };
            if !resolvers.contains(&address) {
                self.error(&format!("{table}.address"), "is not one of the map-resolvers");
            }
            let registers_with = |server: &MapServer| {
                let mut keys = std::iter::once(&server.key).chain(&server.also_accept);
                server.register && keys.any(|other| other.file == key.file)
            };
            if servers.iter().any(registers_with) {
                self.error_hint(
                    &format!("{table}.key-file"),
                    "is a key that we register with",
                    "a key of its own",
                );
            }
            if keys.insert(address, one_time_key(key)).is_some() {
                self.error(&format!("{table}.address"), "is configured twice");
            }
        }
        if !is_on {
            return complete.then_some(None);
        }
        if section.ingress.is_empty() {
            self.warn("lisp.security", "nothing is asked without [[lisp.ingress]]", "remove it");
        }
        for resolver in resolvers {
            let server = servers.iter().find(|server| server.address == *resolver);
            match server.filter(|server| !server.register) {
                _ if keys.contains_key(resolver) => {}
                Some(server) => {
                    keys.insert(*resolver, one_time_key(server.key.clone()));
                }
                // Otherwise the finding above says what is missing.
                None if complete => self.error_hint(
                    "lisp.security",
                    format!("no key for questions is shared with {resolver}"),
                    "[[lisp.resolver-key]] with its address; not the key of a site",
                ),
                None => {}
            }
        }
        complete.then_some(Some(keys))
    }

    fn ingress(&mut self, section: &LispSection, pools: &[Prefix]) -> Option<Vec<Ingress>> {
        let mut all = Vec::new();
        let mut complete = true;
        for (i, entry) in section.ingress.iter().enumerate() {
            let table = format!("lisp.ingress[{i}]");
            let Some(prefix) = self.required(&entry.prefix, &table, "prefix") else {
                complete = false;
                continue;
            };
            if let Some(n) = section.ingress[..i].iter().position(|e| e.prefix == Some(prefix)) {
                let line = self.at_line(&format!("lisp.ingress[{n}].prefix"));
                self.error(&format!("{table}.prefix"), format!("is configured twice{line}"));
            }
            if prefix.len() == 0 {
                self.error(&format!("{table}.prefix"), "cannot be the whole address space");
            }
            let policy = entry.policy.unwrap_or_default();
            if policy == IngressPolicy::Push && section.map_server.is_empty() {
                self.error_hint(
                    &format!("{table}.policy"),
                    "\"push\" subscribes at a map-server, and there is none",
                    "add [[lisp.map-server]]",
                );
            }
            if policy == IngressPolicy::Default && entry.first_packets.is_some() {
                self.warn(
                    &format!("{table}.first-packets"),
                    "nothing is asked with the policy \"default\"",
                    "remove it",
                );
            }
            let first_packets = entry.first_packets.unwrap_or_default();
            all.push(Ingress { prefix, policy, first_packets });
        }
        let covers = |pool: &Prefix| all.iter().any(|i| i.prefix.family() == pool.family());
        if !all.is_empty() && !pools.is_empty() && !pools.iter().any(covers) {
            self.warn(
                "lisp.ingress[0]",
                "no pool has the family of an ingress prefix",
                "write the pools, or a prefix that covers them",
            );
        }
        complete.then_some(all)
    }

    fn lisp_server(
        &mut self,
        file: &File,
        server: &LispServerSection,
        pools: &[Prefix],
    ) -> Option<LispServer> {
        let Period(record_ttl) = server.record_ttl.unwrap_or(Period(Duration::from_secs(3600)));
        if record_ttl.subsec_nanos() != 0
            || record_ttl.as_secs() % 60 != 0
            || !(60..=60 * 60 * 24 * 30).contains(&record_ttl.as_secs())
        {
            self.error("lisp.server.record-ttl", "must be whole minutes, from \"1m\" to \"30d\"");
        }
        let allow_sha1 = server.allow_sha1.unwrap_or(false);
        let mut sites = Vec::new();
        let mut complete = true;
        for i in 0..server.site.len() {
            match self.site(file, server, i, pools, allow_sha1) {
                Some(site) => sites.push(site),
                None => complete = false,
            }
        }
        let mut subscribers = Vec::new();
        for i in 0..server.subscriber.len() {
            match self.subscriber(server, i, allow_sha1) {
                Some(subscriber) => subscribers.push(subscriber),
                None => complete = false,
            }
        }
        let mut itrs = Vec::new();
        for i in 0..server.itr.len() {
            match self.secured_itr(server, i, &sites) {
                Some(itr) => itrs.push(itr),
                None => complete = false,
            }
        }
        for (key, rate) in [
            ("requests-per-source", server.requests_per_source),
            ("requests-per-eid", server.requests_per_eid),
        ] {
            if rate.is_some_and(|rate| !(1..=10_000_000).contains(&rate)) {
                self.error_hint(
                    &format!("lisp.server.{key}"),
                    "is no number of questions a second",
                    "1 to 10000000; no limit without the key",
                );
            }
        }
        let require_security = server.require_security.unwrap_or(false);
        if require_security && server.itr.is_empty() {
            self.error_hint(
                "lisp.server.require-security",
                "nobody could ask",
                "give [[lisp.server.itr]]",
            );
        }
        complete.then_some(LispServer {
            record_ttl,
            allow_sha1,
            sites,
            subscribers,
            require_security,
            requests_per_source: server.requests_per_source,
            requests_per_eid: server.requests_per_eid,
            itrs,
        })
    }

    fn site(
        &mut self,
        file: &File,
        server: &LispServerSection,
        i: usize,
        pools: &[Prefix],
        allow_sha1: bool,
    ) -> Option<LispSite> {
        let site = &server.site[i];
        let table = format!("lisp.server.site[{i}]");
        let name = self.required(&site.name, &table, "name");
        if name.as_deref().is_some_and(|name| !is_plain_name(name)) {
            self.error(&format!("{table}.name"), NAME_RULE);
        }
        let anchor_id = self.required(&site.anchor_id, &table, "anchor-id");
        let earlier = &server.site[..i];
        if name.is_some() && earlier.iter().any(|s| s.name == name) {
            self.error(&format!("{table}.name"), "two sites have this name");
        }
        if anchor_id.is_some() && anchor_id == file.node.anchor_id {
            self.error(&format!("{table}.anchor-id"), "is this node's own anchor id");
        }
        if anchor_id.is_some() && earlier.iter().any(|s| s.anchor_id == anchor_id) {
            self.error(&format!("{table}.anchor-id"), "two sites have this anchor id");
        }
        let key = self.lisp_key(&table, site.key_id, &site.key_file, site.algorithm);
        self.sha1(&table, site.algorithm, allow_sha1);
        let also_accept = self.also_accept(&table, site.key_id, &site.also_accept);
        for (i, other) in site.also_accept.iter().enumerate() {
            self.sha1(&format!("{table}.also-accept[{i}]"), other.algorithm, allow_sha1);
        }
        let prefixes = match &site.prefixes {
            Some(prefixes) => prefixes.clone(),
            None => pools.to_vec(),
        };
        if prefixes.is_empty() {
            self.error_hint(&table, "the site may register nothing", "give its `prefixes`");
        }
        let anchor_id = anchor_id?;
        Some(LispSite {
            name: name?,
            anchor_id,
            site_id: SiteId(site.site_id.unwrap_or(u64::from(anchor_id.0))),
            key: key?,
            also_accept: also_accept?,
            prefixes,
            merge: site.merge.unwrap_or(false),
        })
    }

    fn sha1(&mut self, table: &str, algorithm: Option<LispAlgorithm>, allowed: bool) {
        if algorithm == Some(LispAlgorithm::Sha1) && !allowed {
            self.error_hint(
                &format!("{table}.algorithm"),
                "HMAC-SHA-1-96 is off",
                "\"sha256\", or allow-sha1 = true in [lisp.server] for old peers",
            );
        }
    }

    fn subscriber(
        &mut self,
        server: &LispServerSection,
        i: usize,
        allow_sha1: bool,
    ) -> Option<LispSubscriber> {
        let entry = &server.subscriber[i];
        let table = format!("lisp.server.subscriber[{i}]");
        let name = self.required(&entry.name, &table, "name");
        if name.as_deref().is_some_and(|name| !is_plain_name(name)) {
            self.error(&format!("{table}.name"), NAME_RULE);
        }
        let what = "who may subscribe is not said";
        let xtr_id = self.xtr_of(&table, &entry.xtr_id, entry.anchor_id, what);
        let key = self.lisp_key(&table, entry.key_id, &entry.key_file, entry.algorithm);
        self.sha1(&table, entry.algorithm, allow_sha1);
        let also_accept = self.also_accept(&table, entry.key_id, &entry.also_accept);
        for (i, other) in entry.also_accept.iter().enumerate() {
            self.sha1(&format!("{table}.also-accept[{i}]"), other.algorithm, allow_sha1);
        }
        Some(LispSubscriber {
            name: name?,
            xtr_id: xtr_id?,
            key: key?,
            also_accept: also_accept?,
            rlocs: entry.rlocs.clone(),
        })
    }

    /// Who an entry is about.
    fn xtr_of(
        &mut self,
        table: &str,
        xtr_id: &Option<String>,
        anchor: Option<AnchorId>,
        missing: &str,
    ) -> Option<XtrId> {
        match (xtr_id, anchor) {
            (Some(text), _) => self.xtr_id(text, &format!("{table}.xtr-id")),
            (None, Some(anchor)) => Some(xtr_id_of(anchor)),
            (None, None) => {
                self.error_hint(table, missing, "give its `anchor-id`, or its `xtr-id`");
                None
            }
        }
    }

    fn secured_itr(
        &mut self,
        server: &LispServerSection,
        i: usize,
        sites: &[LispSite],
    ) -> Option<LispItr> {
        let entry = &server.itr[i];
        let table = format!("lisp.server.itr[{i}]");
        let name = self.required(&entry.name, &table, "name");
        if name.as_deref().is_some_and(|name| !is_plain_name(name)) {
            self.error(&format!("{table}.name"), NAME_RULE);
        }
        let missing = "whose questions these are is not said";
        let xtr_id = self.xtr_of(&table, &entry.xtr_id, entry.anchor_id, missing);
        let key = self.lisp_key(&table, entry.key_id, &entry.key_file, None);
        if let Some(key) = &key
            && let Some(site) = sites.iter().find(|site| {
                let mut keys = std::iter::once(&site.key).chain(&site.also_accept);
                keys.any(|other| other.file == key.file)
            })
        {
            self.error_hint(
                &format!("{table}.key-file"),
                format!("is the key of site {}", site.name),
                "a key of its own: a site's could be used to claim more than the site has",
            );
        }
        let (name, xtr_id, key) = (name?, xtr_id?, one_time_key(key?));
        Some(LispItr { name, xtr_id, key, rlocs: entry.rlocs.clone() })
    }
}

fn one_time_key(key: LispKey) -> OneTimeKeyFile {
    OneTimeKeyFile { id: key.id, file: key.file }
}
