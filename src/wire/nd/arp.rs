//! ARP for IPv4 over Ethernet (RFC 826; probes and announcements RFC 5227).
//!
//! ```text
//! |  hardware type = 1 (Ethernet)  |  protocol type = 0x0800 (IPv4) |
//! | hw len = 6    | proto len = 4  |  operation: 1 request, 2 reply |
//! | sender MAC (6) | sender IP (4) | target MAC (6) | target IP (4) |
//! ```

use std::net::Ipv4Addr;

use super::ETHERTYPE_IPV4;
use crate::types::MacAddr;
use crate::wire::{Reader, WireError};

const HARDWARE_ETHERNET: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    Request,
    Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: ArpOperation,
    pub sender_mac: MacAddr,
    pub sender_ip: Ipv4Addr,
    pub target_mac: MacAddr,
    pub target_ip: Ipv4Addr,
}

impl Arp {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        if input.u16()? != HARDWARE_ETHERNET || input.u16()? != ETHERTYPE_IPV4 {
            return Err(WireError::BadValue);
        }
        if input.array()? != [6, 4] {
            return Err(WireError::BadLength);
        }
        let operation = match input.u16()? {
            1 => ArpOperation::Request,
            2 => ArpOperation::Reply,
            _ => return Err(WireError::BadValue),
        };
        Ok(Self {
            operation,
            sender_mac: MacAddr(input.array()?),
            sender_ip: Ipv4Addr::from(input.array::<4>()?),
            target_mac: MacAddr(input.array()?),
            target_ip: Ipv4Addr::from(input.array::<4>()?),
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        out.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        out.extend_from_slice(&[6, 4]);
        let operation: u16 = match self.operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
        };
        out.extend_from_slice(&operation.to_be_bytes());
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&self.sender_ip.octets());
        out.extend_from_slice(&self.target_mac.0);
        out.extend_from_slice(&self.target_ip.octets());
    }

    /// RFC 5227 §2.1.1: "is this address in use?", asked without using it.
    pub fn is_probe(&self) -> bool {
        self.operation == ArpOperation::Request && self.sender_ip.is_unspecified()
    }

    /// RFC 5227 §2.3: "this address is mine", said to everybody.
    pub fn is_announcement(&self) -> bool {
        self.sender_ip == self.target_ip
    }
}
