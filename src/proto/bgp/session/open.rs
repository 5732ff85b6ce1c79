//! The OPEN that we send, and whether the one that we got is acceptable (RFC 4271 §6.2).

use crate::types::Family;
use crate::wire::bgp::notification::{code, open};
use crate::wire::bgp::{
    Capability, GracefulRestartFamily, Negotiated, Notification, Open, SAFI_UNICAST, afi,
};

use super::config::{Families, SessionConfig};

/// What a peer said about graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerGraceful {
    /// The peer has just restarted and does not wait for anybody's End-of-RIB.
    pub restarting: bool,
    /// RFC 8538 §2.
    pub notification: bool,
    pub restart_time_s: u16,
    /// The families it can restart gracefully.
    pub families: Families,
    /// Those of them whose forwarding state it says to have kept.
    pub forwarding: Families,
}

/// Our OPEN. `restarting` and `forwarding` are the R and F bits of RFC 4724 §3.
pub fn ours(config: &SessionConfig, restarting: bool, forwarding: bool) -> Open {
    let mut capabilities = Vec::new();
    for family in config.families.iter() {
        capabilities.push(Capability::Multiprotocol { afi: afi(family), safi: SAFI_UNICAST });
    }
    capabilities.push(Capability::RouteRefresh);
    capabilities.push(Capability::EnhancedRouteRefresh);
    if config.extended_messages {
        capabilities.push(Capability::ExtendedMessage);
    }
    if config.extended_next_hop && config.families.ipv4 {
        capabilities.push(Capability::ExtendedNextHop(vec![(
            afi(Family::Ipv4),
            u16::from(SAFI_UNICAST),
            afi(Family::Ipv6),
        )]));
    }
    if let Some(graceful) = config.graceful_restart {
        capabilities.push(Capability::GracefulRestart {
            restarting,
            notification: graceful.notification,
            time_s: graceful.restart_time_s.min(0x0fff),
            families: config
                .families
                .iter()
                .map(|f| GracefulRestartFamily { afi: afi(f), safi: SAFI_UNICAST, forwarding })
                .collect(),
        });
    }
    Open::new(config.local_as, config.hold_time_s, config.router_id, capabilities)
}

/// The answer to an OPEN whose form is right but whose content is not.
pub fn check(config: &SessionConfig, local: &Open, remote: &Open) -> Result<(), Notification> {
    let refuse = |subcode| Err(Notification::new(code::OPEN, subcode));
    // RFC 7607 §2: AS 0 is never acceptable; it is never configured either.
    if remote.asn() != config.remote_as {
        return refuse(open::BAD_PEER_AS);
    }
    // RFC 6286 §2.2: not zero, and within one AS not ours.
    if remote.bgp_id.is_unspecified() || (config.is_internal() && remote.bgp_id == config.router_id)
    {
        return refuse(open::BAD_BGP_ID);
    }
    // RFC 4271 §4.2: either zero or at least three seconds.
    if matches!(remote.hold_time_s, 1 | 2) {
        return refuse(open::UNACCEPTABLE_HOLD_TIME);
    }
    let negotiated = Negotiated::between(local, remote);
    if !config.families.iter().any(|f| negotiated.has(f)) {
        // RFC 5492 §5: the data lists the capabilities that we cannot do without.
        let mut data = Vec::new();
        for family in config.families.iter() {
            let [high, low] = afi(family).to_be_bytes();
            data.extend_from_slice(&[1, 4, high, low, 0, SAFI_UNICAST]);
        }
        return Err(Notification::with_data(code::OPEN, open::UNSUPPORTED_CAPABILITY, &data));
    }
    Ok(())
}

/// Zero on either side means no keepalives at all (RFC 4271 §4.2).
pub fn hold_time_s(local: &Open, remote: &Open) -> u16 {
    local.hold_time_s.min(remote.hold_time_s)
}

/// The last instance counts (RFC 4724 §3).
pub fn graceful(remote: &Open) -> Option<PeerGraceful> {
    remote.capabilities.iter().rev().find_map(|capability| match capability {
        Capability::GracefulRestart { restarting, notification, time_s, families } => {
            let known = |forwarding_only: bool| {
                Family::ALL
                    .into_iter()
                    .filter(|f| {
                        families.iter().any(|g| {
                            (g.afi, g.safi) == (afi(*f), SAFI_UNICAST)
                                && (g.forwarding || !forwarding_only)
                        })
                    })
                    .collect()
            };
            Some(PeerGraceful {
                restarting: *restarting,
                notification: *notification,
                restart_time_s: *time_s,
                families: known(false),
                forwarding: known(true),
            })
        }
        _ => None,
    })
}
