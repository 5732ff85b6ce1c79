//! OPEN (RFC 4271 §4.2, errors §6.2), with optional parameters of RFC 5492 and RFC 9072.
//!
//! ```text
//! | Version: 1 | My AS: 2 | Hold Time: 2 | BGP Identifier: 4 | Opt Parm Len: 1 | parameters |
//! RFC 9072 §2:                      | 255 | 255 | Extended Opt Parm Len: 2 | parameters |
//! ```

use std::net::Ipv4Addr;

use super::frame::{MessageType, begin, finish};
use super::notification::{Notification, code, header, open};
use super::{Capability, afi, capability::SAFI_UNICAST};
use crate::types::Family;
use crate::wire::{Reader, WireError};

/// Stands for an AS number that does not fit two octets (RFC 6793 §9).
pub const AS_TRANS: u16 = 23456;

const VERSION: u8 = 4;
/// RFC 4271 §4.2: the hold time is zero or at least three seconds.
const HOLD_TIME_MIN_S: u16 = 3;
const PARAMETER_CAPABILITIES: u8 = 2;
/// RFC 9072 §2: in place of a length, and then of a parameter type.
const EXTENDED: u8 = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The field "My Autonomous System"; see [`Self::asn`].
    pub asn16: u16,
    pub hold_time_s: u16,
    pub bgp_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// An OPEN of ours; the four-octet capability is added to `capabilities`.
    pub fn new(
        asn: u32,
        hold_time_s: u16,
        bgp_id: Ipv4Addr,
        mut capabilities: Vec<Capability>,
    ) -> Self {
        capabilities.push(Capability::FourOctetAs(asn));
        let asn16 = u16::try_from(asn).unwrap_or(AS_TRANS);
        Self { asn16, hold_time_s, bgp_id, capabilities }
    }

    /// The AS number: from the four-octet capability when there is one (RFC 6793 §4.1).
    pub fn asn(&self) -> u32 {
        let four_octets = self.capabilities.iter().find_map(|c| match c {
            Capability::FourOctetAs(asn) => Some(*asn),
            _ => None,
        });
        four_octets.unwrap_or(u32::from(self.asn16))
    }

    pub fn has(&self, capability: &Capability) -> bool {
        self.capabilities.contains(capability)
    }

    /// Unicast of `family`. A speaker without any multiprotocol capability means IPv4 unicast.
    pub fn has_family(&self, family: Family) -> bool {
        let mut multiprotocol = self.capabilities.iter().filter_map(|c| match c {
            Capability::Multiprotocol { afi, safi } => Some((*afi, *safi)),
            _ => None,
        });
        let Some(first) = multiprotocol.next() else { return family == Family::Ipv4 };
        let wanted = (afi(family), SAFI_UNICAST);
        first == wanted || multiprotocol.any(|found| found == wanted)
    }

    /// `body`: what follows the header. Whether AS number and identifier are those of the
    /// configured peer is for the session to judge.
    pub fn decode(body: &[u8]) -> Result<Self, Notification> {
        let mut input = Reader::new(body);
        let short = |_| {
            let len = u16::try_from(body.len() + super::HEADER_LEN).unwrap_or(u16::MAX);
            Notification::with_data(code::MESSAGE_HEADER, header::BAD_LENGTH, &len.to_be_bytes())
        };
        if input.u8().map_err(short)? != VERSION {
            let supported = u16::from(VERSION).to_be_bytes();
            return Err(Notification::with_data(code::OPEN, open::UNSUPPORTED_VERSION, &supported));
        }
        let asn16 = input.u16().map_err(short)?;
        let hold_time_s = input.u16().map_err(short)?;
        let bgp_id = Ipv4Addr::from(input.u32().map_err(short)?);
        let parameters_len = input.u8().map_err(short)?;
        if hold_time_s != 0 && hold_time_s < HOLD_TIME_MIN_S {
            return Err(Notification::new(code::OPEN, open::UNACCEPTABLE_HOLD_TIME));
        }
        // RFC 6286 §2.1: any value but zero.
        if bgp_id.is_unspecified() {
            return Err(Notification::new(code::OPEN, open::BAD_BGP_ID));
        }
        let capabilities = decode_parameters(parameters_len, input)?;
        let open = Self { asn16, hold_time_s, bgp_id, capabilities };
        // RFC 7607 §2, and for the four-octet number RFC 6793 §4.1.
        if asn16 == 0 || open.asn() == 0 {
            return Err(Notification::new(code::OPEN, open::BAD_PEER_AS));
        }
        Ok(open)
    }

    /// Appends the whole message. All capabilities go into one parameter (RFC 5492 §4).
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            capability.encode(&mut capabilities);
        }
        let len = capabilities.len();
        let start = begin(MessageType::Open, out);
        out.push(VERSION);
        out.extend_from_slice(&self.asn16.to_be_bytes());
        out.extend_from_slice(&self.hold_time_s.to_be_bytes());
        out.extend_from_slice(&self.bgp_id.octets());
        match (u8::try_from(len), u8::try_from(len + 2)) {
            (Ok(0), _) => out.push(0),
            (Ok(len), Ok(total)) if total < EXTENDED => {
                out.extend_from_slice(&[total, PARAMETER_CAPABILITIES, len]);
            }
            _ => {
                let len = u16::try_from(len).expect("our capabilities come from configuration");
                out.extend_from_slice(&[EXTENDED, EXTENDED]);
                out.extend_from_slice(&(len + 3).to_be_bytes());
                out.push(PARAMETER_CAPABILITIES);
                out.extend_from_slice(&len.to_be_bytes());
            }
        }
        out.extend_from_slice(&capabilities);
        finish(start, out);
    }
}

fn decode_parameters(len: u8, input: Reader<'_>) -> Result<Vec<Capability>, Notification> {
    // §6.2: recognised but malformed parameters are "unspecific".
    let malformed = |_: WireError| Notification::new(code::OPEN, open::UNSPECIFIC);
    let mut input = input;
    // RFC 9072 §2: any non-zero length followed by type 255 means the extended form.
    let extended = len != 0 && input.rest().first() == Some(&EXTENDED);
    let len = if extended {
        input.u8().map_err(malformed)?;
        usize::from(input.u16().map_err(malformed)?)
    } else {
        usize::from(len)
    };
    if input.len() != len {
        return Err(malformed(WireError::BadLength));
    }
    let mut capabilities = Vec::new();
    while !input.is_empty() {
        let kind = input.u8().map_err(malformed)?;
        let len = if extended { input.u16() } else { input.u8().map(u16::from) };
        let mut value = input.sub(usize::from(len.map_err(malformed)?)).map_err(malformed)?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(Notification::new(code::OPEN, open::UNSUPPORTED_OPTIONAL_PARAMETER));
        }
        while !value.is_empty() {
            capabilities.push(Capability::decode(&mut value).map_err(malformed)?);
        }
    }
    Ok(capabilities)
}

#[cfg(test)]
mod tests {
    use super::super::{GracefulRestartFamily, HEADER_LEN, Negotiated};
    use super::*;

    const PLAIN: [u8; 10] = [4, 0xfd, 0xe8, 0, 90, 10, 0, 0, 1, 0];

    fn with_parameters(parameters: &[u8]) -> Vec<u8> {
        let mut body = PLAIN.to_vec();
        body[9] = u8::try_from(parameters.len()).unwrap();
        body.extend_from_slice(parameters);
        body
    }

    /// RFC 4271 §6.2, RFC 6286 §2.1, RFC 7607 §2, RFC 9072 §2: octets → NOTIFICATION.
    #[test]
    fn errors() {
        let patch = |at: usize, octets: &[u8]| {
            let mut body = PLAIN.to_vec();
            body[at..at + octets.len()].copy_from_slice(octets);
            body
        };
        type Row = (&'static str, Vec<u8>, u8, u8, &'static [u8]);
        let rows: &[Row] = &[
            ("version 3", patch(0, &[3]), 2, 1, &[0, 4]),
            ("AS 0", patch(1, &[0, 0]), 2, 2, &[]),
            ("four-octet AS 0", with_parameters(&[2, 6, 65, 4, 0, 0, 0, 0]), 2, 2, &[]),
            ("hold time 1", patch(3, &[0, 1]), 2, 6, &[]),
            ("hold time 2", patch(3, &[0, 2]), 2, 6, &[]),
            ("identifier 0.0.0.0", patch(5, &[0, 0, 0, 0]), 2, 3, &[]),
            ("parameter type 1", with_parameters(&[1, 1, 0]), 2, 4, &[]),
            ("parameter overruns", with_parameters(&[2, 9, 2, 0]), 2, 0, &[]),
            ("parameter without length", with_parameters(&[2]), 2, 0, &[]),
            ("capability overruns", with_parameters(&[2, 4, 65, 4, 0, 0]), 2, 0, &[]),
            ("parameters missing", patch(9, &[4]), 2, 0, &[]),
            ("octets after parameters", [&PLAIN[..], &[0]].concat(), 2, 0, &[]),
            ("extended, cut", with_parameters(&[255, 0]), 2, 0, &[]),
            ("extended, wrong length", with_parameters(&[255, 0, 9, 2, 0, 0]), 2, 0, &[]),
            ("short", PLAIN[..9].to_vec(), 1, 2, &[0, 28]),
        ];
        for (name, body, code, subcode, data) in rows {
            let want = Err(Notification::with_data(*code, *subcode, data));
            assert_eq!(Open::decode(body), want, "{name}");
        }
        assert!(Open::decode(&PLAIN).is_ok());
        assert!(Open::decode(&patch(3, &[0, 0])).is_ok(), "hold time 0 is acceptable");
    }

    #[test]
    fn a_malformed_capability_is_unknown_not_fatal() {
        let odd = [2, 16, 1, 3, 0, 1, 1, 2, 1, 9, 5, 1, 7, 64, 3, 0, 0, 0];
        let open = Open::decode(&with_parameters(&odd)).unwrap();
        assert_eq!(open.capabilities.len(), 4);
        assert!(open.capabilities.iter().all(|c| matches!(c, Capability::Unknown { .. })));
        let mut out = Vec::new();
        open.encode(&mut out);
        assert_eq!(out[HEADER_LEN..], with_parameters(&odd));
    }

    fn ours() -> Open {
        let capabilities = vec![
            Capability::unicast(Family::Ipv4),
            Capability::unicast(Family::Ipv6),
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::ExtendedMessage,
            Capability::ipv4_over_ipv6(),
            Capability::GracefulRestart {
                restarting: true,
                notification: true,
                time_s: 120,
                families: vec![GracefulRestartFamily { afi: 1, safi: 1, forwarding: true }],
            },
            Capability::Unknown { code: 73, value: b"name".to_vec() },
        ];
        Open::new(4_200_000_000, 90, Ipv4Addr::new(10, 0, 0, 1), capabilities)
    }

    #[test]
    fn round_trip_short_and_extended() {
        let mut open = ours();
        assert_eq!((open.asn16, open.asn()), (AS_TRANS, 4_200_000_000));
        for extra in [0, 1, 2] {
            for _ in 0..extra {
                open.capabilities.push(Capability::Unknown { code: 200, value: vec![9; 220] });
            }
            let mut out = Vec::new();
            open.encode(&mut out);
            assert_eq!(out[28] == EXTENDED, extra > 0);
            assert_eq!(Open::decode(&out[HEADER_LEN..]), Ok(open.clone()));
        }
    }

    #[test]
    fn what_both_can_is_negotiated() {
        let ours = ours();
        let all = Negotiated::between(&ours, &ours);
        assert!(all.ibgp && all.four_octet_as && all.ipv4 && all.ipv6 && all.extended_next_hop_v4);
        assert_eq!(all.max_len, 65535);
        let old = Negotiated::between(&ours, &Open::decode(&PLAIN).unwrap());
        assert_eq!(
            old,
            Negotiated {
                local_as: 4_200_000_000,
                peer_as: 65000,
                ibgp: false,
                four_octet_as: false,
                ipv4: true,
                ipv6: false,
                extended_next_hop_v4: false,
                max_len: 4096,
            }
        );
    }
}
