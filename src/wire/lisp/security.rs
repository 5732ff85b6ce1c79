//! Authentication data of LISP-SEC (RFC 9303 §6), in an ECM and in a Map-Reply.
//!
//! ```text
//! |  ECM AD Type  |   Unassigned  |        Requested HMAC ID      |
//! |              OTK Length       |     Key ID    | OTK Wrap. ID  |  OTK-AD
//! |       One-Time-Key Preamble (8 octets), One-Time Key (16)     |
//! |           EID-AD Length       |           KDF ID              |  EID-AD
//! | Record Count  |E| Unassigned  |         EID HMAC ID           |
//! |  Unassigned   | EID mask-len  |           EID-AFI             |  per record
//! ~                          EID-Prefix ...                       ~
//! ~                            EID HMAC                           ~
//!
//! |  MR AD Type   |                Unassigned                     |
//! |  EID-AD, as above
//! |         PKT-AD Length         |         PKT HMAC ID           |  PKT-AD
//! ~                            PKT HMAC                           ~
//! ```
//!
//! The EID-AD Length counts itself, because one with nothing but the KDF ID has the length 4
//! (§6.1). The figures draw the other two parts in the same way, so that their lengths are written
//! to count themselves too; as what they could otherwise mean cannot be confused with that, both
//! readings are accepted.

use super::Eid;
use crate::wire::{Reader, WireError};

/// The one type there is, in both places (§8.1, §8.2).
const AD_TYPE: u8 = 1;
/// The length field and what shares its word.
const PART_HEADER_LEN: usize = 4;
/// Preamble and key.
pub const WRAPPED_OTK_LEN: usize = 24;
const FLAG_CANT_SIGN: u8 = 0x80;

/// What an ECM says about keys (§6.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcmSecurity {
    /// 0: no preference (§8.3).
    pub requested_hmac: u16,
    /// Of the secret that wraps the one-time key.
    pub key_id: u8,
    /// How the one-time key is wrapped (§8.4).
    pub wrapping: u8,
    /// Preamble and one-time key.
    pub wrapped_otk: [u8; WRAPPED_OTK_LEN],
    pub eids: EidAuthentication,
}

impl EcmSecurity {
    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let [ad_type, _] = input.array()?;
        if ad_type != AD_TYPE {
            return Err(WireError::BadValue);
        }
        let requested_hmac = input.u16()?;
        let len = usize::from(input.u16()?);
        let [key_id, wrapping] = input.array()?;
        if len != WRAPPED_OTK_LEN && len != PART_HEADER_LEN + WRAPPED_OTK_LEN {
            return Err(WireError::BadLength);
        }
        let wrapped_otk = input.array()?;
        let eids = EidAuthentication::decode(input)?;
        Ok(Self { requested_hmac, key_id, wrapping, wrapped_otk, eids })
    }

    /// What an ECM has in [`super::Ecm::security`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[AD_TYPE, 0]);
        out.extend_from_slice(&self.requested_hmac.to_be_bytes());
        out.extend_from_slice(&[0, (PART_HEADER_LEN + WRAPPED_OTK_LEN) as u8]);
        out.extend_from_slice(&[self.key_id, self.wrapping]);
        out.extend_from_slice(&self.wrapped_otk);
        self.eids.encode(out);
    }
}

/// The EID-AD: which prefixes the Map-Server vouches for. Its octets are kept, because the HMAC is
/// over them and the ETR passes them on as they are (§6.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EidAuthentication {
    kdf: u16,
    signed: Option<SignedEids>,
    octets: Vec<u8>,
}

/// What a Map-Server puts into the EID-AD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEids {
    /// E: some ETR of these prefixes does not speak LISP-SEC.
    pub cant_sign: bool,
    pub hmac_id: u16,
    /// Octets of the HMAC, the last ones.
    pub hmac_len: usize,
    pub eids: Vec<Eid>,
}

impl SignedEids {
    /// Whether a record about `eid` is one that the Map-Server vouches for. By §6.9 a record whose
    /// prefix is wider would be narrowed, by the example of §6.9.1 it must be discarded; it is.
    pub fn covers(&self, eid: &Eid) -> bool {
        self.eids.iter().any(|signed| match (signed, eid) {
            (Eid::Prefix { iid: of, prefix: wide }, Eid::Prefix { iid, prefix }) => {
                of == iid && wide.contains(*prefix)
            }
            (Eid::None, _) => false,
            (Eid::Prefix { .. } | Eid::SourceDestination { .. } | Eid::Other { .. }, _) => {
                signed == eid
            }
        })
    }
}

impl EidAuthentication {
    /// Of an ITR, which only says which KDF it would like (0: any).
    pub fn request(kdf: u16) -> Self {
        let [a, b] = kdf.to_be_bytes();
        Self { kdf, signed: None, octets: vec![0, PART_HEADER_LEN as u8, a, b] }
    }

    /// Of a Map-Server. `sign` gets all octets and fills in the last `hmac_len`, which are 0. EIDs
    /// past the 255th are left out.
    pub fn signed(kdf: u16, mut signed: SignedEids, sign: impl FnOnce(&mut [u8])) -> Self {
        signed.eids.truncate(usize::from(u8::MAX));
        let mut octets = vec![0, 0];
        octets.extend_from_slice(&kdf.to_be_bytes());
        let cant_sign = if signed.cant_sign { FLAG_CANT_SIGN } else { 0 };
        octets.extend_from_slice(&[signed.eids.len() as u8, cant_sign]);
        octets.extend_from_slice(&signed.hmac_id.to_be_bytes());
        for eid in &signed.eids {
            octets.extend_from_slice(&[0, eid.mask_len()]);
            eid.encode(&mut octets);
        }
        octets.resize(octets.len() + signed.hmac_len, 0);
        let len = u16::try_from(octets.len()).unwrap_or(u16::MAX);
        octets[..2].copy_from_slice(&len.to_be_bytes());
        sign(&mut octets);
        Self { kdf, signed: Some(signed), octets }
    }

    pub fn decode(input: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut body = *input;
        let len = usize::from(body.u16()?);
        let octets = input.bytes(len)?.to_vec();
        let rest = len.checked_sub(2).ok_or(WireError::BadLength)?;
        let short = |_| WireError::BadLength;
        let mut body = body.sub(rest)?;
        let kdf = body.u16().map_err(short)?;
        if body.is_empty() {
            return Ok(Self { kdf, signed: None, octets });
        }
        let [count, flags] = body.array().map_err(short)?;
        let hmac_id = body.u16().map_err(short)?;
        let mut eids = Vec::with_capacity(usize::from(count).min(body.len() / 4));
        for _ in 0..count {
            let [_, mask_len] = body.array().map_err(short)?;
            eids.push(Eid::decode(Some(mask_len), &mut body)?);
        }
        let hmac_len = body.len();
        let signed = SignedEids { cant_sign: flags & FLAG_CANT_SIGN != 0, hmac_id, hmac_len, eids };
        Ok(Self { kdf, signed: Some(signed), octets })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.octets);
    }

    pub const fn kdf(&self) -> u16 {
        self.kdf
    }

    /// What a Map-Server has signed; the one who reads it verifies [`Self::octets`] first.
    pub const fn eids(&self) -> Option<&SignedEids> {
        self.signed.as_ref()
    }

    /// What the HMAC at their end is over.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

/// What a Map-Reply proves itself with (§6.2). The HMAC is over the whole Map-Reply, whose last
/// octets it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplySecurity {
    pub eids: EidAuthentication,
    pub hmac_id: u16,
    /// As received; 0 and as long as it will be, before the Map-Reply is signed.
    pub hmac: Vec<u8>,
}

impl ReplySecurity {
    /// Of [`super::MapReply::security`].
    pub fn decode(octets: &[u8]) -> Result<Self, WireError> {
        let mut input = Reader::new(octets);
        let [ad_type, _, _, _] = input.array()?;
        if ad_type != AD_TYPE {
            return Err(WireError::BadValue);
        }
        let eids = EidAuthentication::decode(&mut input)?;
        let len = usize::from(input.u16()?);
        let hmac_id = input.u16()?;
        let hmac = input.rest();
        if len != hmac.len() && len != PART_HEADER_LEN + hmac.len() {
            return Err(WireError::BadLength);
        }
        Ok(Self { eids, hmac_id, hmac: hmac.to_vec() })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[AD_TYPE, 0, 0, 0]);
        self.eids.encode(out);
        let len = u16::try_from(PART_HEADER_LEN + self.hmac.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.hmac_id.to_be_bytes());
        out.extend_from_slice(&self.hmac);
    }
}
