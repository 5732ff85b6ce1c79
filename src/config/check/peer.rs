//! `[[peer]]`.

use std::net::SocketAddr;

use super::super::checked::{CXTP_PORT, Peer};
use super::super::file::{File, MayClaim, MayClaimWord, Mode, Role};
use super::{Checker, NAME_RULE, is_plain_name};
use crate::types::Prefix;

impl Checker<'_, '_> {
    pub(super) fn peers(&mut self, file: &File, pools: &[Prefix]) -> Option<Vec<Peer>> {
        let killick = file.peer.iter().position(|p| p.role != Some(Role::External));
        if let Some(i) = killick
            && file.tls.is_none()
            && !self.document.was_taken_out("tls")
        {
            self.error_hint(
                &format!("peer[{i}]"),
                "[[peer]] needs [tls]: context is exchanged between authenticated peers only",
                "killick tls new-ca and killick tls issue make certificates",
            );
        }
        (0..file.peer.len())
            .map(|i| self.peer(file, i, pools))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }

    fn peer(&mut self, file: &File, i: usize, pools: &[Prefix]) -> Option<Peer> {
        let section = &file.peer[i];
        let table = format!("peer[{i}]");
        let key = |key: &str| format!("{table}.{key}");
        let name = self.required(&section.name, &table, "name");
        let anchor_id = self.required(&section.anchor_id, &table, "anchor-id");
        let earlier = &file.peer[..i];
        if let Some(name) = &name {
            if !is_plain_name(name) {
                self.error(&key("name"), NAME_RULE);
            }
            if file.node.name.as_ref() == Some(name) {
                self.error(&key("name"), format!("\"{name}\" is this node's own name"));
            }
            if let Some(n) = earlier.iter().position(|p| p.name.as_ref() == Some(name)) {
                let line = self.at_line(&format!("peer[{n}].name"));
                self.error(&key("name"), format!("two peers are called \"{name}\"{line}"));
            }
        }
        if let Some(id) = anchor_id {
            if file.node.anchor_id == Some(id) {
                self.error(&key("anchor-id"), format!("{id} is this node's own anchor id"));
            }
            if let Some(n) = earlier.iter().position(|p| p.anchor_id == Some(id)) {
                let line = self.at_line(&format!("peer[{n}].anchor-id"));
                self.error(&key("anchor-id"), format!("two peers have the anchor id {id}{line}"));
            }
        }
        let role = section.role.unwrap_or_default();
        let address = match (role, section.address) {
            (Role::External, None) => Some(None),
            (Role::External, Some(_)) => {
                self.error_hint(
                    &key("address"),
                    "an external anchor uses our API; killick does not connect to it",
                    "remove `address`, or the role is \"anchor\"",
                );
                Some(None)
            }
            (Role::Anchor | Role::Controller, _) => {
                self.required(&section.address, &table, "address").map(Some)
            }
        };
        if let Some(Some(address)) = address
            && (address.is_unspecified() || address.is_multicast())
        {
            self.error(&key("address"), format!("{address} is not the address of a peer"));
        }
        if section.port == Some(0) {
            self.error(&key("port"), "port 0 cannot be connected to");
        }
        let may_claim = match &section.may_claim {
            // A controller reports what anchors claim, and claims nothing of its own.
            None | Some(MayClaim::Word(MayClaimWord::Pools)) => pools.to_vec(),
            Some(MayClaim::Word(MayClaimWord::None)) => Vec::new(),
            Some(MayClaim::List(list)) => {
                for (n, prefix) in list.iter().enumerate() {
                    if !self.in_pools(pools, *prefix) {
                        self.error_hint(
                            &format!("{table}.may-claim[{n}]"),
                            format!("{prefix} is outside all mobility pools"),
                            "nothing outside the pools can be claimed",
                        );
                    }
                }
                list.clone()
            }
        };
        let is_controller =
            file.mobility.as_ref().is_some_and(|m| m.mode == Some(Mode::Controller));
        match section.fe_e {
            Some(fe_e) => {
                // It need not serve the pools it may not claim.
                self.locator(fe_e, &key("fe-e"), &may_claim);
            }
            None if role == Role::External
                && is_controller
                && !self.document.was_taken_out(&key("fe-e")) =>
            {
                self.error_hint(
                    &table,
                    "`fe-e` is missing: an external anchor does not report where its traffic goes",
                    "fe-e = { ipv4 = \"192.0.2.2\" }",
                );
            }
            None => {}
        }
        let name = name?;
        Some(Peer {
            anchor_id: anchor_id?,
            address: address?.map(|ip| SocketAddr::new(ip, section.port.unwrap_or(CXTP_PORT))),
            tls_name: section.tls_name.clone().unwrap_or_else(|| name.clone()),
            name,
            role,
            may_claim,
            fe_e: section.fe_e,
            locators: section.locators.clone(),
        })
    }
}
