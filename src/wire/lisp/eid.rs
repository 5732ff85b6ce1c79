//! EIDs as records and requests name them (RFC 9301 §5.2, §5.4; RFC 8060 §4.1, §4.8).

use super::lcaf::{self, AFI_NONE, Lcaf, TYPE_INSTANCE_ID, TYPE_SOURCE_DESTINATION};
use crate::types::Prefix;
use crate::types::lisp::InstanceId;
use crate::wire::{Reader, WireError};

/// An EID as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Eid {
    /// AFI 0.
    None,
    /// AFI 1 or 2 (instance 0), or inside an Instance ID LCAF (RFC 8060 §4.1).
    Prefix { iid: InstanceId, prefix: Prefix },
    /// Source/destination key (RFC 8060 §4.8).
    SourceDestination { iid: InstanceId, source: Prefix, destination: Prefix },
    /// An LCAF or AFI that is passed on as it is: the mask length and the octets from the AFI on.
    Other { mask_len: u8, octets: Vec<u8> },
}

impl Eid {
    /// `mask_len` is what the record says; `None` where the format has no mask length (a
    /// Source-EID), so that an address is a whole one. Bits past the mask are cleared.
    pub fn decode(mask_len: Option<u8>, input: &mut Reader<'_>) -> Result<Self, WireError> {
        let address = lcaf::take_address(input)?;
        if address == AFI_NONE.to_be_bytes() {
            return Ok(Self::None);
        }
        if let Some((iid, prefix)) = plain(mask_len, address)? {
            return Ok(Self::Prefix { iid, prefix });
        }
        // An instance ID around a pair of prefixes, or a pair of prefixes by itself.
        let (outer, pair) = instance(address)?.unwrap_or((InstanceId::default(), address));
        if let Some((inner, source, destination)) = source_destination(pair)?
            && (outer.0 == 0 || inner.0 == 0)
        {
            let iid = InstanceId(outer.0 | inner.0);
            return Ok(Self::SourceDestination { iid, source, destination });
        }
        Ok(Self::Other { mask_len: mask_len.unwrap_or(0), octets: address.to_vec() })
    }

    /// The mask length of a record with this EID. A source/destination key has its own two; the
    /// record repeats the one of the destination.
    pub fn mask_len(&self) -> u8 {
        match self {
            Self::None => 0,
            Self::Prefix { prefix, .. } => prefix.len(),
            Self::SourceDestination { destination, .. } => destination.len(),
            Self::Other { mask_len, .. } => *mask_len,
        }
    }

    /// From the AFI on, without the mask length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.extend_from_slice(&AFI_NONE.to_be_bytes()),
            Self::Prefix { iid, prefix } => {
                put_in_instance(*iid, out, |out| lcaf::put_ip(prefix.addr(), out));
            }
            Self::SourceDestination { iid, source, destination } => {
                put_in_instance(*iid, out, |out| {
                    Lcaf::put(TYPE_SOURCE_DESTINATION, out, |out| {
                        out.extend_from_slice(&[0, 0, source.len(), destination.len()]);
                        lcaf::put_ip(source.addr(), out);
                        lcaf::put_ip(destination.addr(), out);
                    });
                });
            }
            Self::Other { octets, .. } => out.extend_from_slice(octets),
        }
    }
}

/// Instance 0 is written without the LCAF, which every implementation reads.
fn put_in_instance(iid: InstanceId, out: &mut Vec<u8>, address: impl FnOnce(&mut Vec<u8>)) {
    if iid.0 == 0 {
        return address(out);
    }
    Lcaf::put(TYPE_INSTANCE_ID, out, |out| {
        out.extend_from_slice(&iid.0.to_be_bytes());
        address(out);
    });
}

/// What an Instance ID LCAF holds: the ID and the octets of one address.
fn instance(address: &[u8]) -> Result<Option<(InstanceId, &[u8])>, WireError> {
    match Lcaf::open(address) {
        Some(Lcaf { kind: TYPE_INSTANCE_ID, mut body, .. }) => {
            let iid = InstanceId(body.u32().map_err(|_| WireError::BadLength)?);
            if body.len() < 2 {
                return Err(WireError::BadLength);
            }
            Ok(Some((iid, body.rest())))
        }
        _ => Ok(None),
    }
}

/// An IPv4 or IPv6 prefix, by itself or in an Instance ID LCAF. `None`: something else.
fn plain(mask_len: Option<u8>, address: &[u8]) -> Result<Option<(InstanceId, Prefix)>, WireError> {
    let (iid, address) = instance(address)?.unwrap_or((InstanceId::default(), address));
    match lcaf::ip(address) {
        Some(addr) => {
            let prefix = match mask_len {
                Some(len) => Prefix::new(addr, len).ok_or(WireError::BadValue)?,
                None => Prefix::host(addr),
            };
            Ok(Some((iid, prefix)))
        }
        None => Ok(None),
    }
}

/// The two prefixes of a source/destination key, when they are IPv4 or IPv6 and of one instance.
fn source_destination(address: &[u8]) -> Result<Option<(InstanceId, Prefix, Prefix)>, WireError> {
    let Some(Lcaf { kind: TYPE_SOURCE_DESTINATION, mut body, .. }) = Lcaf::open(address) else {
        return Ok(None);
    };
    let short = |_| WireError::BadLength;
    let [_, _, source_len, destination_len] = body.array().map_err(short)?;
    let (source, destination) = match (lcaf::take_address(&mut body), body) {
        (Ok(source), mut body) => match lcaf::take_address(&mut body) {
            Ok(destination) => (source, destination),
            // Its length is that of the LCAF, so that it can be passed on.
            Err(WireError::UnknownAfi(_)) => return Ok(None),
            Err(_) => return Err(WireError::BadLength),
        },
        (Err(WireError::UnknownAfi(_)), _) => return Ok(None),
        (Err(_), _) => return Err(WireError::BadLength),
    };
    match (plain(Some(source_len), source)?, plain(Some(destination_len), destination)?) {
        (Some((iid, source)), Some((other, destination))) if iid == other => {
            Ok(Some((iid, source, destination)))
        }
        _ => Ok(None),
    }
}
