//! Encapsulated Control Message (RFC 9301 §5.8): a control message inside IP and UDP.
//!
//! ```text
//! |Type=8 |S|D|R|R|            Reserved                           |
//! |  with S: authentication data (RFC 9303 §6.1)
//! |  IPv4 or IPv6 header, UDP header, control message
//! ```

use std::net::{IpAddr, SocketAddr};

use super::{CONTROL_PORT, DATA_PORT, EcmSecurity, Type};
use crate::wire::encap::ip::{self, Datagram};
use crate::wire::{Reader, WireError};

const FLAG_SECURITY: u8 = 0x08;
const FLAG_DDT: u8 = 0x04;

/// Encapsulated Control Message (RFC 9301 §5.8): a control message inside IP and UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ecm {
    /// D: the sender is a DDT client.
    pub ddt: bool,
    /// Authentication data as octets, which an [`EcmSecurity`] encodes and decodes (S).
    pub security: Option<Vec<u8>>,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    /// The inner control message.
    pub message: Vec<u8>,
}

impl Ecm {
    /// The checksums inside are checked, and a control message without one is not taken. Of the
    /// two inner ports one is that of the control plane, and none that of the data plane.
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [kind, _, _, _] = input.array()?;
        Type::Ecm.check(kind)?;
        let security = match kind & FLAG_SECURITY {
            0 => None,
            _ => {
                let before = input.rest();
                EcmSecurity::decode(input)?;
                Some(before[..before.len() - input.len()].to_vec())
            }
        };
        let inner = Datagram::decode(input.rest())?;
        let ports = [inner.source.port(), inner.destination.port()];
        if ports.contains(&DATA_PORT) || !ports.contains(&CONTROL_PORT) {
            return Err(WireError::BadValue);
        }
        Ok(Self {
            ddt: kind & FLAG_DDT != 0,
            security,
            source: (inner.source.ip(), inner.source.port()),
            destination: (inner.destination.ip(), inner.destination.port()),
            message: inner.payload.to_vec(),
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let security = if self.security.is_some() { FLAG_SECURITY } else { 0 };
        let ddt = if self.ddt { FLAG_DDT } else { 0 };
        out.extend_from_slice(&[Type::Ecm.octet() | security | ddt, 0, 0, 0]);
        if let Some(security) = &self.security {
            out.extend_from_slice(security);
        }
        let Self { source, destination, .. } = self;
        ip::put_datagram(
            SocketAddr::from(*source),
            SocketAddr::from(*destination),
            &self.message,
            out,
        );
    }
}
