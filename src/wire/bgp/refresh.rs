//! ROUTE-REFRESH (RFC 2918, RFC 7313).

use super::Notification;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    Request,
    Borr,
    Eorr,
    /// RFC 7313 §5: to be ignored.
    Unknown(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRefresh {
    pub afi: u16,
    pub safi: u8,
    pub kind: RefreshKind,
}

impl RouteRefresh {
    pub fn decode(_body: &[u8]) -> Result<Self, Notification> {
        unimplemented!()
    }
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }
}
