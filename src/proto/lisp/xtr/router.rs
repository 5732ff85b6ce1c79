//! Which of the roles of one xTR a message is for: they share one UDP port.

use std::net::{IpAddr, SocketAddr};

use super::{Arrival, Etr, Itr, Output};
use crate::types::Instant;
use crate::wire::lisp::{MapNotify, MapRequest, Message};

/// Messages that are for neither role, or that this xTR has not the role for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XtrCounts {
    pub map_request: u64,
    pub map_reply: u64,
    pub map_notify: u64,
    /// Map-Registers and their like, which are for a Map-Server.
    pub not_for_an_xtr: u64,
    /// An ECM with something else than a Map-Request, or that cannot be read.
    pub bad_ecm: u64,
}

/// The roles that are configured.
#[derive(Debug, Default)]
pub struct Xtr {
    pub etr: Option<Etr>,
    pub itr: Option<Itr>,
    pub counts: XtrCounts,
}

impl Xtr {
    /// One message, as decoded and as it came (`raw`, for its digest), to our address `local`.
    pub fn handle_message(
        &mut self,
        from: SocketAddr,
        local: IpAddr,
        message: &Message,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match message {
            Message::MapRequest(request) => {
                self.handle_map_request(from, local, Arrival::Direct, request, now, out);
            }
            Message::MapReply(reply) => match &mut self.itr {
                Some(itr) => itr.handle_map_reply(reply, raw, now, out),
                None => self.counts.map_reply += 1,
            },
            Message::MapNotify(notify) => self.handle_notify(from, notify, raw, now, out),
            Message::Ecm(ecm) => match Message::decode(&ecm.message) {
                Ok(Message::MapRequest(request)) => {
                    let from = SocketAddr::from(ecm.source);
                    let arrival = Arrival::Ecm(ecm.security.as_deref());
                    self.handle_map_request(from, local, arrival, &request, now, out);
                }
                Ok(_) | Err(_) => self.counts.bad_ecm += 1,
            },
            Message::MapRegister(_) | Message::MapNotifyAck(_) => self.counts.not_for_an_xtr += 1,
        }
    }

    /// An SMR is for the ITR, everything else is asked of the ETR.
    fn handle_map_request(
        &mut self,
        from: SocketAddr,
        local: IpAddr,
        arrival: Arrival<'_>,
        request: &MapRequest,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if request.smr && arrival == Arrival::Direct {
            match &mut self.itr {
                Some(itr) => itr.handle_map_request(request, now, out),
                None => self.counts.map_request += 1,
            }
            return;
        }
        match &mut self.etr {
            Some(etr) => etr.handle_map_request(from, local, arrival, request, now, out),
            None => self.counts.map_request += 1,
        }
    }

    /// The answer to a Map-Register has its nonce; a publication one of its subscription. What is
    /// published about a prefix that is registered here concerns the ETR too.
    fn handle_notify(
        &mut self,
        from: SocketAddr,
        notify: &MapNotify,
        raw: &[u8],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match (&mut self.etr, &mut self.itr) {
            (Some(etr), _) if etr.registrar.is_waiting_for(notify.nonce) => {
                etr.registrar.handle_notify(from.ip(), notify, raw, now, out);
            }
            (etr, Some(itr)) if itr.is_about(notify) => {
                if itr.handle_notify(from, notify, raw, now, out)
                    && let Some(etr) = etr
                {
                    etr.registrar.handle_publication(notify, out);
                }
            }
            (Some(etr), _) => etr.registrar.handle_notify(from.ip(), notify, raw, now, out),
            (None, Some(itr)) => {
                itr.handle_notify(from, notify, raw, now, out);
            }
            (None, None) => self.counts.map_notify += 1,
        }
    }

    pub fn poll_timeout(&self) -> Instant {
        let etr = self.etr.as_ref().map_or(Instant::FAR_FUTURE, Etr::poll_timeout);
        let itr = self.itr.as_ref().map_or(Instant::FAR_FUTURE, Itr::poll_timeout);
        etr.min(itr)
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Some(etr) = &mut self.etr {
            etr.handle_timeout(now, out);
        }
        if let Some(itr) = &mut self.itr {
            itr.handle_timeout(now, out);
        }
    }
}
