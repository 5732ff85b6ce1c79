//! One record as octets: the payload of a frame of the log.
//!
//! ```text
//! kind 1 | family 1 | length 1 | address 4 or 16 | generation 4 | anchor 4 |   Bound and Gone
//! flags 1 | mn: length 1, text | then, for each flag in this order:             Bound only
//!   FE_E IPv4 4, FE_E IPv6 16, home 4, until 8, link: length 1, text, MAC 6
//! kind 1 | key: length 1, octets | octets: length 2, octets                       Note
//! ```
//! Numbers are big-endian. Nothing may follow, and each prefix of a payload is an error.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Key, Record, StoredBinding, Value};
use crate::types::lisp::{NOTE_KEY_LEN_MAX, NOTE_LEN_MAX};
use crate::types::{AnchorId, Claim, Generation, Locator, MacAddr, MnId, Prefix};
use crate::wire::{Reader, WireError};

const BOUND: u8 = 1;
const GONE: u8 = 2;
const NOTE: u8 = 3;

const IPV4: u8 = 1;
const IPV6: u8 = 2;
const HOME: u8 = 4;
const UNTIL: u8 = 8;
const LINK: u8 = 16;
const MAC: u8 = 32;
const FLAGS: u8 = IPV4 | IPV6 | HOME | UNTIL | LINK | MAC;

/// Longest record: a node identifier and a link name have at most 255 octets, the rest is fixed.
const RECORD_LEN_MAX: usize = 3 + 16 + 8 + 1 + 256 + 4 + 16 + 4 + 8 + 256 + 6;

/// Longest payload: a note.
pub const PAYLOAD_LEN_MAX: usize = 2 + NOTE_KEY_LEN_MAX + 2 + NOTE_LEN_MAX;

const _: () = assert!(RECORD_LEN_MAX <= PAYLOAD_LEN_MAX);

pub fn encode(key: &Key, value: &Value, out: &mut Vec<u8>) {
    match (key, value) {
        (Key::Prefix(prefix), Value::Record(Record::Gone(claim))) => {
            out.push(GONE);
            encode_prefix(*prefix, out);
            out.extend(claim.generation.0.to_be_bytes());
            out.extend(claim.anchor.0.to_be_bytes());
        }
        (Key::Prefix(prefix), Value::Record(Record::Bound(bound))) => {
            out.push(BOUND);
            encode_prefix(*prefix, out);
            encode_bound(bound, out);
        }
        (Key::Note(key), Value::Note(octets)) => {
            let len = u8::try_from(key.len()).expect("NOTE_KEY_LEN_MAX is below 256");
            out.extend([NOTE, len]);
            out.extend(key);
            let len = u16::try_from(octets.len()).expect("NOTE_LEN_MAX is below 65536");
            out.extend(len.to_be_bytes());
            out.extend(octets);
        }
        (Key::Prefix(_), Value::Note(_)) | (Key::Note(_), Value::Record(_)) => {
            unreachable!("a value is put under a key of its kind")
        }
    }
}

fn encode_prefix(prefix: Prefix, out: &mut Vec<u8>) {
    match prefix {
        Prefix::V4 { addr, len } => {
            out.extend([4, len]);
            out.extend(addr.to_be_bytes());
        }
        Prefix::V6 { addr, len } => {
            out.extend([6, len]);
            out.extend(addr.to_be_bytes());
        }
    }
}

fn encode_bound(bound: &StoredBinding, out: &mut Vec<u8>) {
    out.extend(bound.generation.0.to_be_bytes());
    out.extend(bound.anchor.0.to_be_bytes());
    // A name of more than 255 octets is no interface of this kernel (IFNAMSIZ is 16): without it
    // the binding comes back as one whose link is gone, which is what it would be.
    let link = bound.link.as_deref().and_then(|name| Some((u8::try_from(name.len()).ok()?, name)));
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(
        flag(bound.fe_e.ipv4.is_some(), IPV4)
            | flag(bound.fe_e.ipv6.is_some(), IPV6)
            | flag(bound.home.is_some(), HOME)
            | flag(bound.until_unix_ms.is_some(), UNTIL)
            | flag(link.is_some(), LINK)
            | flag(bound.mac.is_some(), MAC),
    );
    let mn = bound.mn.as_str();
    out.push(u8::try_from(mn.len()).expect("a node identifier has at most 255 octets"));
    out.extend(mn.as_bytes());
    if let Some(ipv4) = bound.fe_e.ipv4 {
        out.extend(ipv4.octets());
    }
    if let Some(ipv6) = bound.fe_e.ipv6 {
        out.extend(ipv6.octets());
    }
    if let Some(home) = bound.home {
        out.extend(home.0.to_be_bytes());
    }
    if let Some(until) = bound.until_unix_ms {
        out.extend(until.to_be_bytes());
    }
    if let Some((len, name)) = link {
        out.push(len);
        out.extend(name.as_bytes());
    }
    if let Some(MacAddr(mac)) = bound.mac {
        out.extend(mac);
    }
}

pub fn decode(payload: &[u8]) -> Result<(Key, Value), WireError> {
    let mut input = Reader::new(payload);
    let kind = input.u8()?;
    if kind == NOTE {
        return decode_note(&mut input);
    }
    let prefix = decode_prefix(&mut input)?;
    let generation = Generation(input.u32()?);
    let anchor = AnchorId(input.u32()?);
    let record = match kind {
        GONE => Record::Gone(Claim { generation, anchor }),
        BOUND => Record::Bound(decode_bound(generation, anchor, &mut input)?),
        other => return Err(WireError::UnknownType(other)),
    };
    if input.is_empty() {
        Ok((Key::Prefix(prefix), Value::Record(record)))
    } else {
        Err(WireError::BadLength)
    }
}

fn decode_note(input: &mut Reader<'_>) -> Result<(Key, Value), WireError> {
    let len = usize::from(input.u8()?);
    let key = input.bytes(len)?.to_vec();
    let len = usize::from(input.u16()?);
    let octets = input.bytes(len)?.to_vec();
    if key.len() > NOTE_KEY_LEN_MAX || octets.len() > NOTE_LEN_MAX {
        return Err(WireError::BadValue);
    }
    if input.is_empty() {
        Ok((Key::Note(key), Value::Note(octets)))
    } else {
        Err(WireError::BadLength)
    }
}

fn decode_prefix(input: &mut Reader<'_>) -> Result<Prefix, WireError> {
    let [family, len] = input.array()?;
    let (prefix, canonical) = match family {
        4 => {
            let addr = input.u32()?;
            (Prefix::v4(addr, len), Prefix::V4 { addr, len })
        }
        6 => {
            let addr = input.u128()?;
            (Prefix::v6(addr, len), Prefix::V6 { addr, len })
        }
        _ => return Err(WireError::BadValue),
    };
    prefix.filter(|&prefix| prefix == canonical).ok_or(WireError::BadValue)
}

fn decode_bound(
    generation: Generation,
    anchor: AnchorId,
    input: &mut Reader<'_>,
) -> Result<StoredBinding, WireError> {
    let flags = input.u8()?;
    if flags & !FLAGS != 0 {
        return Err(WireError::BadValue);
    }
    let has = |bit: u8| flags & bit != 0;
    let mn = MnId::new(text(input)?).map_err(|_| WireError::BadValue)?;
    let ipv4 = has(IPV4).then(|| input.array::<4>().map(Ipv4Addr::from)).transpose()?;
    let ipv6 = has(IPV6).then(|| input.array::<16>().map(Ipv6Addr::from)).transpose()?;
    Ok(StoredBinding {
        mn,
        anchor,
        fe_e: Locator { ipv4, ipv6 },
        generation,
        home: has(HOME).then(|| input.u32().map(AnchorId)).transpose()?,
        until_unix_ms: has(UNTIL).then(|| input.u64()).transpose()?,
        link: has(LINK).then(|| text(input).map(str::to_owned)).transpose()?,
        mac: has(MAC).then(|| input.array().map(MacAddr)).transpose()?,
    })
}

fn text<'a>(input: &mut Reader<'a>) -> Result<&'a str, WireError> {
    let len = input.u8()?;
    str::from_utf8(input.bytes(len.into())?).map_err(|_| WireError::BadValue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(prefix: &str) -> Key {
        Key::Prefix(prefix.parse().unwrap())
    }

    fn records() -> Vec<(Key, Value)> {
        let gone = Claim { generation: Generation(7), anchor: AnchorId(u32::MAX) };
        let mut all = vec![
            (key("0.0.0.0/0"), Value::Record(Record::Gone(gone))),
            (key("2001:db8::/64"), Value::Record(Record::Gone(gone))),
            (Key::Note(vec![7; NOTE_KEY_LEN_MAX]), Value::Note(vec![8; 100])),
        ];
        for flags in 0..=FLAGS {
            let when = |bit: u8| (flags & bit != 0).then_some(());
            let bound = StoredBinding {
                mn: MnId::new(&"m".repeat(1 + 4 * usize::from(flags))).unwrap(),
                anchor: AnchorId(1),
                fe_e: Locator {
                    ipv4: when(IPV4).map(|()| "192.0.2.1".parse().unwrap()),
                    ipv6: when(IPV6).map(|()| "2001:db8::1".parse().unwrap()),
                },
                home: when(HOME).map(|()| AnchorId(2)),
                generation: Generation(u32::MAX),
                until_unix_ms: when(UNTIL).map(|()| u64::MAX),
                link: when(LINK).map(|()| "access0".into()),
                mac: when(MAC).map(|()| MacAddr([2, 0, 0, 0, 0, 1])),
            };
            let prefix = if flags % 2 == 0 { "10.1.1.7/32" } else { "2001:db8::7/128" };
            all.push((key(prefix), Value::Record(Record::Bound(bound))));
        }
        all
    }

    #[test]
    fn each_combination_comes_back_and_each_truncation_is_an_error() {
        for (key, value) in records() {
            let mut octets = Vec::new();
            encode(&key, &value, &mut octets);
            assert!(octets.len() <= PAYLOAD_LEN_MAX);
            assert_eq!(decode(&octets), Ok((key, value)));
            for len in 0..octets.len() {
                assert!(decode(&octets[..len]).is_err(), "{len} of {}", octets.len());
            }
            octets.push(0);
            assert_eq!(decode(&octets), Err(WireError::BadLength));
        }
    }

    #[test]
    fn the_longest_record_is_as_long_as_stated() {
        let Some((_, Value::Record(Record::Bound(mut bound)))) = records().pop() else {
            panic!("the last one is bound")
        };
        let value = |bound| Value::Record(Record::Bound(bound));
        bound.mn = MnId::new(&"m".repeat(255)).unwrap();
        bound.link = Some("l".repeat(255));
        let mut octets = Vec::new();
        encode(&key("2001:db8::7/128"), &value(bound.clone()), &mut octets);
        assert_eq!(octets.len(), RECORD_LEN_MAX);

        // One more octet of link name: no interface has it, the binding is kept without.
        bound.link = Some("l".repeat(256));
        octets.clear();
        encode(&key("10.0.0.1/32"), &value(bound), &mut octets);
        let Ok((_, Value::Record(Record::Bound(back)))) = decode(&octets) else {
            panic!("well-formed")
        };
        assert_eq!(back.link, None);
    }

    #[test]
    fn values_that_nothing_writes_are_refused() {
        let gone = |prefix: &[u8]| [&[GONE][..], prefix, &[0; 8]].concat();
        assert!(decode(&gone(&[4, 8, 10, 0, 0, 0])).is_ok());
        assert_eq!(decode(&gone(&[4, 8, 10, 0, 0, 1])), Err(WireError::BadValue), "host bits");
        assert_eq!(decode(&gone(&[4, 33, 10, 0, 0, 0])), Err(WireError::BadValue), "length");
        assert_eq!(decode(&gone(&[5, 8, 10, 0, 0, 0])), Err(WireError::BadValue), "family");
        let mut kind = gone(&[4, 8, 10, 0, 0, 0]);
        kind[0] = 4;
        assert_eq!(decode(&kind), Err(WireError::UnknownType(4)));
        let long = [&[NOTE, 97][..], &[0; 99]].concat();
        assert_eq!(decode(&long), Err(WireError::BadValue), "a key of 97 octets");
    }
}
