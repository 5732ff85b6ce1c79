//! `[bfd]`, and the `bfd` of neighbours.

use std::net::IpAddr;
use std::time::Duration;

use super::super::Period;
use super::super::checked::{Bfd, BfdKey, NeighborBfd};
use super::super::file::{self, BfdSection, File, NeighborBfdSection, NeighborSection, Role};
use super::Checker;
use crate::types::Locator;

const DEFAULT: Duration = Duration::from_millis(300);
const FASTEST: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_secs(60);

impl Checker<'_, '_> {
    /// Paths besides those to neighbours; `None` together with an error.
    pub(super) fn bfd(&mut self, file: &File) -> Option<Vec<Bfd>> {
        let Some(section) = &file.bfd else { return Some(Vec::new()) };
        let defaults = NeighborBfdSection::default();
        self.bfd_timers(Some(section), &defaults, "bfd");
        let mut paths: Vec<Bfd> = Vec::new();
        let mut complete = true;
        for (i, session) in section.session.iter().enumerate() {
            let table = format!("bfd.session[{i}]");
            let Some(address) = self.required(&session.address, &table, "address") else {
                complete = false;
                continue;
            };
            let at = format!("{table}.address");
            if address.is_unspecified() || address.is_multicast() {
                self.error(&at, format!("{address} is not the address of a router"));
            }
            if session.local_address.is_some_and(|l| l.is_ipv4() != address.is_ipv4()) {
                let what = "is of another family than the address";
                self.error(&format!("{table}.local-address"), what);
            }
            let multihop = session.multihop.unwrap_or(true);
            let known = section.session[..i].iter().any(|other| {
                other.address == Some(address) && other.multihop.unwrap_or(true) == multihop
            });
            if known {
                self.error(&at, format!("the path to {address} is watched twice"));
            }
            if for_neighbor(file, address, multihop) {
                self.error_hint(
                    &at,
                    format!("the path to {address} is watched for the neighbour already"),
                    "what depends on it needs no second session; remove this",
                );
            }
            paths.push(self.bfd_path(file, &defaults, address, session.local_address, multihop));
        }
        if section.anchors == Some(true) {
            let own = file.mobility.as_ref().and_then(|m| m.fe_e).unwrap_or_default();
            for remote in anchors(file) {
                let known = paths.iter().any(|p| p.remote == remote && p.multihop);
                if !known && !for_neighbor(file, remote, true) {
                    let local = local_of(&own, remote);
                    paths.push(self.bfd_path(file, &defaults, remote, local, true));
                }
            }
            if anchors(file).next().is_none() {
                self.warn("bfd.anchors", "there is no [[peer]] that is an anchor", "remove it");
            }
        }
        complete.then_some(paths)
    }

    pub(super) fn neighbor_bfd(
        &mut self,
        file: &File,
        neighbor: &NeighborSection,
        internal: bool,
        table: &str,
    ) -> Option<Option<NeighborBfd>> {
        let written = match &neighbor.bfd {
            None | Some(file::NeighborBfd::Switch(false)) => return Some(None),
            Some(file::NeighborBfd::Switch(true)) => NeighborBfdSection::default(),
            Some(file::NeighborBfd::Table(table)) => (**table).clone(),
        };
        let at = format!("{table}.bfd");
        self.bfd_timers(None, &written, &at);
        let multihop = written.multihop.unwrap_or(internal);
        if multihop && written.interface.is_some() {
            self.error_hint(
                &format!("{at}.interface"),
                "a path over many hops has no interface",
                "multihop = false for a neighbour on the link",
            );
        }
        if written.key_file.is_none() && written.key_id.is_some() {
            self.error(&format!("{at}.key-id"), "needs a `key-file`");
        }
        let address = neighbor.address?;
        if !multihop && written.min_ttl.is_some() {
            self.error_hint(
                &format!("{at}.min-ttl"),
                "over one hop the TTL is always 255 (RFC 5881 §5)",
                "remove it",
            );
        }
        let mut path = self.bfd_path(file, &written, address, neighbor.local_address, multihop);
        path.ttl_min = written.min_ttl.unwrap_or(0);
        Some(Some(NeighborBfd { path, strict: written.strict.unwrap_or(false) }))
    }

    fn bfd_path(
        &mut self,
        file: &File,
        written: &NeighborBfdSection,
        remote: IpAddr,
        local: Option<IpAddr>,
        multihop: bool,
    ) -> Bfd {
        let none = BfdSection::default();
        let all = file.bfd.as_ref().unwrap_or(&none);
        let period =
            |own: Option<Period>, all: Option<Period>| own.or(all).map_or(DEFAULT, |p| p.0);
        Bfd {
            remote,
            local,
            multihop,
            interface: written.interface.clone(),
            ttl_min: 0,
            min_tx: period(written.min_tx, all.min_tx),
            min_rx: period(written.min_rx, all.min_rx),
            multiplier: written.multiplier.or(all.multiplier).unwrap_or(3),
            passive: written.passive.or(all.passive).unwrap_or(false),
            key: written.key_file.as_ref().map(|file| BfdKey {
                id: written.key_id.unwrap_or(1),
                file: self.path(file),
                algorithm: written.algorithm.unwrap_or_default(),
            }),
        }
    }

    /// Of `[bfd]`, or of a neighbour.
    fn bfd_timers(&mut self, all: Option<&BfdSection>, own: &NeighborBfdSection, table: &str) {
        let (min_tx, min_rx, multiplier) = match all {
            Some(all) => (all.min_tx, all.min_rx, all.multiplier),
            None => (own.min_tx, own.min_rx, own.multiplier),
        };
        for (key, period) in [("min-tx", min_tx), ("min-rx", min_rx)] {
            if period.is_some_and(|Period(p)| !(FASTEST..=SLOWEST).contains(&p)) {
                self.error(&format!("{table}.{key}"), "must be from \"10ms\" to \"60s\"");
            }
        }
        if multiplier == Some(0) {
            self.error(&format!("{table}.multiplier"), "must be at least 1 (RFC 5880 §6.8.1)");
        }
    }
}

/// Where the traffic for nodes at the other anchors goes: their FE_E where it is written, else
/// the address they are reached at.
fn anchors(file: &File) -> impl Iterator<Item = IpAddr> + '_ {
    let own = file.mobility.as_ref().and_then(|m| m.fe_e).unwrap_or_default();
    file.peer.iter().filter(|p| p.role.unwrap_or_default() != Role::Controller).flat_map(
        move |peer| {
            let fe_e = peer.fe_e.unwrap_or_default();
            let mut all: Vec<IpAddr> = [fe_e.ipv4.map(IpAddr::V4), fe_e.ipv6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
                .collect();
            if all.is_empty() {
                all.extend(peer.address);
            }
            // Without an address of the family there is nothing to send from.
            all.retain(|a| own == Locator::default() || local_of(&own, *a).is_some());
            all
        },
    )
}

/// True when the `bfd` of a neighbour watches the path.
fn for_neighbor(file: &File, address: IpAddr, multihop: bool) -> bool {
    let neighbors = file.bgp.iter().flat_map(|bgp| bgp.neighbor.iter().map(move |n| (bgp, n)));
    neighbors.filter(|(_, n)| n.address == Some(address) && n.shutdown != Some(true)).any(
        |(bgp, n)| {
            let default = n.remote_as == bgp.local_as;
            match &n.bfd {
                None | Some(file::NeighborBfd::Switch(false)) => false,
                Some(file::NeighborBfd::Switch(true)) => default == multihop,
                Some(file::NeighborBfd::Table(t)) => t.multihop.unwrap_or(default) == multihop,
            }
        },
    )
}

fn local_of(own: &Locator, remote: IpAddr) -> Option<IpAddr> {
    match remote {
        IpAddr::V4(_) => own.ipv4.map(IpAddr::V4),
        IpAddr::V6(_) => own.ipv6.map(IpAddr::V6),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;
    use std::time::Duration;

    use super::super::super::{Checked, check_text};

    const BASE: &str = "[node]\nanchor-id = \"192.0.2.1\"\n[bgp]\nlocal-as = 65000\n";

    fn checked(more: &str) -> Checked {
        let text = format!("{BASE}{more}");
        match check_text("killick.toml", &text, Path::new("/etc/killick"), &[], false) {
            Ok((checked, _)) => checked,
            Err(faults) => panic!("{faults}"),
        }
    }

    fn neighbor(address: &str, asn: u32, more: &str) -> String {
        format!(
            "[[bgp.neighbor]]\naddress = \"{address}\"\nremote-as = {asn}\nimport = \"all\"\n{more}\n"
        )
    }

    #[test]
    fn a_neighbour_takes_what_it_does_not_say_from_the_section() {
        let text = [
            neighbor("192.0.2.2", 65000, "bfd = true"),
            neighbor(
                "192.0.2.3",
                65001,
                "bfd = { min-tx = \"50ms\", strict = true, key-file = \"k\" }",
            ),
            neighbor("192.0.2.4", 65000, "bfd = { multihop = false, interface = \"eth1\" }"),
            neighbor("192.0.2.5", 65000, "bfd = false"),
            "[bfd]\nmin-tx = \"100ms\"\nmultiplier = 5\n".to_owned(),
        ];
        let bgp = checked(&text.concat()).bgp.unwrap();
        let of = |n: usize| bgp.neighbors[n].bfd.clone();
        let first = of(0).unwrap();
        let ms = Duration::from_millis;
        assert_eq!((first.path.min_tx, first.path.min_rx), (ms(100), ms(300)));
        assert!(first.path.multihop && !first.strict && first.path.multiplier == 5);
        let second = of(1).unwrap();
        assert!(!second.path.multihop && second.strict && second.path.min_tx == ms(50));
        assert_eq!(second.path.key.unwrap().file, Path::new("/etc/killick/k"));
        let third = of(2).unwrap();
        assert!(!third.path.multihop && third.path.interface.as_deref() == Some("eth1"));
        assert_eq!(of(3), None);
    }

    #[test]
    fn anchors_are_watched_from_the_address_of_their_family() {
        let peer = |n: u8, more: &str| {
            format!(
                "[[peer]]\nname = \"a{n}\"\nanchor-id = \"192.0.2.{n}\"\naddress = \"192.0.2.{n}\"\n{more}\n"
            )
        };
        let text = [
            "[bfd]\nanchors = true\n[[bfd.session]]\naddress = \"192.0.2.2\"\n".to_owned(),
            "[mobility]\nmode = \"distributed\"\nfe-e = { ipv4 = \"192.0.2.1\" }\n".to_owned(),
            "[[mobility.pool]]\nprefix = \"10.1.0.0/16\"\n".to_owned(),
            peer(2, ""),
            peer(3, ""),
            peer(4, ""),
            peer(5, "fe-e = { ipv4 = \"198.51.100.5\", ipv6 = \"2001:db8::5\" }"),
            // The neighbour's session is enough.
            neighbor("192.0.2.4", 65000, "bfd = true"),
            "[tls]\nca = \"c\"\ncertificate = \"d\"\nkey = \"e\"\n".to_owned(),
        ];
        let paths = checked(&text.concat()).bfd;
        let shown: Vec<(String, Option<IpAddr>, bool)> =
            paths.iter().map(|p| (p.remote.to_string(), p.local, p.multihop)).collect();
        let own: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        let path = |remote: &str, local| (remote.to_owned(), local, true);
        // The first is as it was written; of the last one the family that we have.
        let wanted = [path("192.0.2.2", None), path("192.0.2.3", own), path("198.51.100.5", own)];
        assert_eq!(shown, wanted);
    }
}
