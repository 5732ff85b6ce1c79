//! The entrances of the hall: what arrives is given to the room it is for, and what the room says
//! is carried on by [`super::flow`].

use std::net::IpAddr;

use super::flow::Node;
use super::output::Output;
use super::timeline::Detail;
use crate::anchor;
use crate::proto::nd;
use crate::types::seam::{IfIndex, LeaveReason};
use crate::types::transfer::Signal;
use crate::types::transient::PathEnd;
use crate::types::{AnchorId, Instant, MacAddr, Prefix};
use crate::wire::nd::{Checksum, Frame};

/// What a peer's hello said about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// Where it takes packets of transient paths.
    pub path_end: Option<PathEnd>,
}

impl Node {
    /// An access interface is there, and configured.
    pub fn add_access_link(&mut self, config: nd::LinkConfig, now: Instant) {
        let link = config.link;
        let seed = self.config.seed ^ u64::from(link.0);
        self.routers.insert(link, nd::Router::new(config, seed, now));
    }

    /// An access interface is gone, with all who were attached to it.
    pub fn remove_access_link(&mut self, link: IfIndex, now: Instant, out: &mut Vec<Output>) {
        self.routers.remove(&link);
        self.handle_link(link, false, now, out);
    }

    pub fn access_links(&self) -> impl Iterator<Item = (&IfIndex, &nd::Router)> {
        self.routers.iter()
    }

    /// A frame on an access link. `checksum`: whether the kernel had filled it in already.
    pub fn handle_frame(
        &mut self,
        link: IfIndex,
        octets: &[u8],
        checksum: Checksum,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(router) = self.routers.get_mut(&link) else { return };
        let Ok(frame) = Frame::decode(octets, checksum) else {
            self.counters.malformed_frames += 1;
            return;
        };
        let (anchor, location) = (&self.anchor, &self.location);
        let holder = |asker: MacAddr, ip: IpAddr| {
            let bound = location.find(Prefix::host(ip)).filter(|b| b.anchor != self.config.own);
            anchor.holder(link, asker, ip, bound.map(|b| &b.mn))
        };
        let mut said = Vec::new();
        router.handle_frame(&frame, holder, now, &mut said);
        self.carry_nd(said, now, out);
    }

    fn carry_nd(&mut self, outputs: Vec<nd::Output>, now: Instant, out: &mut Vec<Output>) {
        for output in outputs {
            match output {
                nd::Output::Send { link, frame } => out.push(Output::Frame { link, octets: frame }),
                nd::Output::Sighted(s) => {
                    let mut said = Vec::new();
                    self.anchor.handle_sighting(s, now, &mut said);
                    self.carry_anchor(said, now, out);
                }
            }
        }
    }

    pub(super) fn carry_anchor(
        &mut self,
        outputs: Vec<anchor::Output>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for output in outputs {
            match output {
                anchor::Output::Event(event) => self.handle_event(event, now, out),
                anchor::Output::Probe { link, mac, ip } => {
                    let mut said = Vec::new();
                    if let Some(router) = self.routers.get_mut(&link) {
                        router.probe(mac, ip, &mut said);
                    }
                    self.carry_nd(said, now, out);
                }
                // Its first packet or solicitation with a mobile address says the rest: without
                // one there is no prefix to ask an anchor about.
                anchor::Output::Noticed { mn, attachment, by } => {
                    tracing::debug!(%mn, link = attachment.link.0, ?by, "a host without a mobile address");
                    self.counters.noticed += 1;
                }
                anchor::Output::HostsChanged(link) => out.push(Output::LinkNodes { link }),
            }
        }
    }

    pub fn handle_link(&mut self, link: IfIndex, up: bool, now: Instant, out: &mut Vec<Output>) {
        let mut said = Vec::new();
        self.anchor.handle_link(link, up, now, &mut said);
        self.carry_anchor(said, now, out);
    }

    /// The kernel's neighbour discovery gave up on an address.
    pub fn handle_neighbor_failed(
        &mut self,
        link: IfIndex,
        ip: IpAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut said = Vec::new();
        self.anchor.handle_neighbor_failed(link, ip, now, &mut said);
        self.carry_anchor(said, now, out);
    }

    /// Another killick says something over its context transfer link.
    pub fn handle_signal(
        &mut self,
        from: AnchorId,
        signal: Signal,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if let Signal::Newer { prefix, claim } = signal {
            // Only a controller knows of others' claims.
            if self.config.controllers.contains(&from) {
                self.handle_claim(prefix, claim, now, out);
            }
            return;
        }
        let mut said = Vec::new();
        self.mctx.handle_signal(from, signal, now, &mut said);
        self.carry_mctx(said, now, out);
    }

    /// A context transfer link came up or went down.
    pub fn handle_peer_link(
        &mut self,
        peer: AnchorId,
        up: Option<Greeting>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut said = Vec::new();
        if let Some(Greeting { path_end }) = up {
            self.paths.set_end(peer, path_end);
            let is_controller = self.config.controllers.contains(&peer);
            self.mctx.handle_link_up(peer, is_controller, now, &mut said);
        } else {
            self.mctx.handle_link_down(peer, now, &mut said);
        }
        self.carry_mctx(said, now, out);
    }

    /// When to call [`Self::handle_timeout`] next; `None`: not before something else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let soon = (self.reasserting.is_some()).then_some(Instant::ZERO);
        let recovery = self.recovering.as_ref().map(|(at, _)| *at);
        let farewell = self.farewells.front().map(|(at, _)| *at);
        let routers = self.routers.values().map(nd::Router::poll_timeout).min();
        let speaker = self.speaker.as_ref().map(|s| s.poll_timeout());
        [
            soon,
            recovery,
            farewell,
            routers,
            speaker,
            Some(self.anchor.poll_timeout()),
            Some(self.mctx.poll_timeout()),
            self.iec.poll_timeout(),
            self.location.poll_timeout(),
            self.lisp_poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
        .filter(|&at| at != Instant::FAR_FUTURE)
    }

    /// Being called early, late or for nothing is harmless.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.continue_reasserting(now, out);
        self.report_farewells(now, out);
        if self.recovering.as_ref().is_some_and(|(at, _)| *at <= now) {
            self.end_recovery(now, out);
        }
        let mut said = Vec::new();
        for router in self.routers.values_mut().filter(|r| r.poll_timeout() <= now) {
            router.handle_timeout(now, &mut said);
        }
        self.carry_nd(said, now, out);
        let mut said = Vec::new();
        self.anchor.handle_timeout(now, &mut said);
        self.carry_anchor(said, now, out);
        let mut said = Vec::new();
        self.mctx.handle_timeout(now, &mut said);
        self.carry_mctx(said, now, out);
        let mut said = Vec::new();
        self.iec.handle_timeout(now, &mut said);
        self.carry_iec(said, now, out);
        for prefix in self.location.expired(now) {
            self.handle_lease_end(prefix, now, out);
        }
        self.handle_lisp_timeout(now, out);
        if self.speaker.is_some() {
            self.handle_bgp_timeout(now, out);
        }
    }

    fn handle_lease_end(
        &mut self,
        prefix: crate::types::Prefix,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(claim) = self.location.find(prefix).map(crate::types::Binding::claim) else {
            return;
        };
        let phase = super::timeline::Phase::Left;
        self.record(now, None, prefix, phase, None, Detail::Why(LeaveReason::LeaseEnd));
        self.let_go(prefix, claim, now, out);
    }
}
