//! `[[access]]`.

use std::net::IpAddr;
use std::time::Duration;

use super::super::checked::{Access, GATEWAY_MAC, RouterAdvertisement};
use super::super::file::{File, RaSection};
use super::Checker;
use crate::types::{Family, Prefix};

const HOUR: Duration = Duration::from_secs(3600);

impl Checker<'_, '_> {
    pub(super) fn access(&mut self, file: &File, pools: &[Prefix]) -> Option<Vec<Access>> {
        (0..file.access.len())
            .map(|i| self.access_interface(file, i, pools))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }

    fn access_interface(&mut self, file: &File, i: usize, pools: &[Prefix]) -> Option<Access> {
        let section = &file.access[i];
        let table = format!("access[{i}]");
        let interface = self.required(&section.interface, &table, "interface");
        if let Some(name) = &interface {
            let path = format!("{table}.interface");
            // IFNAMSIZ is 16 with the final zero.
            if name.is_empty() || name.len() > 15 || name.contains(['/', ' ', ':']) {
                self.error(&path, "not the name of an interface (1 to 15 characters)");
            }
            let earlier = &file.access[..i];
            if let Some(n) = earlier.iter().position(|a| a.interface.as_ref() == Some(name)) {
                let line = self.at_line(&format!("access[{n}].interface"));
                self.error(&path, format!("interface {name} is configured twice{line}"));
            }
        }
        if section.gateway.is_empty() && !self.document.was_taken_out(&format!("{table}.gateway")) {
            self.error_hint(
                &table,
                "`gateway` is missing in [[access]]",
                "the address that hosts use as default gateway, the same at every anchor",
            );
        }
        for (n, gateway) in section.gateway.iter().enumerate() {
            let path = format!("{table}.gateway[{n}]");
            if gateway.is_unspecified() || gateway.is_multicast() || gateway.is_loopback() {
                self.error(&path, format!("{gateway} cannot be a gateway"));
            }
            if section.gateway[..n].contains(gateway) {
                self.error(&path, format!("gateway {gateway} is listed twice"));
            }
        }
        for family in Family::ALL {
            let has_pool = pools.iter().any(|pool| pool.family() == family);
            let has_gateway =
                section.gateway.iter().any(|gateway| gateway.is_ipv4() == (family == Family::Ipv4));
            let is_advertised = family == Family::Ipv6 && section.router_advertisement.is_some();
            if has_pool && !has_gateway && !is_advertised && !section.gateway.is_empty() {
                self.warn(
                    &format!("{table}.gateway"),
                    format!("there are {family} pools, and no {family} gateway here"),
                    "hosts of those pools cannot attach at this interface",
                );
            }
        }
        let gateway_mac = section.gateway_mac.unwrap_or(GATEWAY_MAC);
        if gateway_mac.is_multicast() || gateway_mac.0 == [0; 6] {
            self.error(&format!("{table}.gateway-mac"), format!("{gateway_mac} is not an address"));
        }
        let router_advertisement = section.router_advertisement.as_ref().map(|ra| {
            self.router_advertisement(ra, &format!("{table}.router-advertisement"), pools)
        });
        Some(Access {
            interface: interface?,
            gateways: section.gateway.clone(),
            gateway_mac,
            router_advertisement,
            uplink_filter: section.uplink_filter.unwrap_or(true),
        })
    }

    fn router_advertisement(
        &mut self,
        ra: &RaSection,
        table: &str,
        pools: &[Prefix],
    ) -> RouterAdvertisement {
        let key = |key: &str| format!("{table}.{key}");
        // RFC 4861 §6.2.1: MaxRtrAdvInterval, AdvDefaultLifetime, AdvLinkMTU.
        let interval = self.seconds(
            ra.interval,
            Duration::from_secs(10),
            &key("interval"),
            |s| (4..=1800).contains(&s),
            "whole seconds from \"4s\" to \"30m\" (RFC 4861 §6.2.1)",
        );
        let router_lifetime = self.seconds(
            ra.router_lifetime,
            interval * 3,
            &key("router-lifetime"),
            |s| s == 0 || (interval.as_secs()..=9000).contains(&s),
            "\"0s\", or whole seconds from the interval to \"9000s\" (RFC 4861 §6.2.1)",
        );
        if ra.mtu.is_some_and(|mtu| !(1280..=65_535).contains(&mtu)) {
            self.error(&key("mtu"), "must be from 1280 to 65535 (RFC 8200 §5)");
        }
        let whole = |s: u64| s <= u64::from(u32::MAX);
        let rule = "whole seconds";
        let preferred_lifetime =
            self.seconds(ra.preferred_lifetime, 4 * HOUR, &key("preferred-lifetime"), whole, rule);
        let valid_lifetime =
            self.seconds(ra.valid_lifetime, 24 * HOUR, &key("valid-lifetime"), whole, rule);
        if preferred_lifetime > valid_lifetime {
            self.error(
                &key("preferred-lifetime"),
                "is longer than the valid lifetime (RFC 4861 §4.6.2)",
            );
        }
        for (n, prefix) in ra.prefixes.iter().enumerate() {
            let path = format!("{table}.prefixes[{n}]");
            match prefix.addr() {
                IpAddr::V4(_) => self.error(&path, "router advertisements carry IPv6 prefixes"),
                IpAddr::V6(_) if prefix.len() != 64 => self.error(
                    &path,
                    "hosts form addresses from a /64 only (RFC 4862, RFC 4291 §2.5.1)",
                ),
                IpAddr::V6(_) if !self.in_pools(pools, *prefix) => self.error_hint(
                    &path,
                    format!("{prefix} is outside all mobility pools"),
                    "hosts would form addresses that cannot move",
                ),
                IpAddr::V6(_) => {}
            }
        }
        RouterAdvertisement {
            interval,
            router_lifetime,
            managed: ra.managed.unwrap_or(false),
            other_config: ra.other_config.unwrap_or(false),
            mtu: ra.mtu,
            prefixes: ra.prefixes.clone(),
            preferred_lifetime,
            valid_lifetime,
        }
    }
}
