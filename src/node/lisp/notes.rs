//! What the machines of the mapping service want on disk, as octets and back.
//!
//! ```text
//! key:  1 | site 4 | flag 1, xTR-ID 16 | key id 1      registers of an xTR       octets: nonce 8
//!       2 | xTR-ID 16 | eid                            subscription requests             nonce 8
//!       3 | xTR-ID 16 | eid                            a subscription here               below
//!       4                                              our Map-Notify messages           nonce 8
//!       5                                              our Map-Register messages         nonce 8
//!       6 | server                                     Map-Notify messages from there    nonce 8
//!       7 | eid                                        our subscription                  nonce 8
//!       8 | slot 4                                     a locator here      eid, locator
//! eid = instance 4 | length 1 | address;    address = 4 or 6, then 4 or 16 octets
//! a locator's octets = none when it is nobody's, or two addresses
//! a subscription's octets = state 1 | nonce 8 | count 1 | addresses
//! ```
//! A note of an unknown kind or with a wrong length is skipped and said: it is of another version.

use std::net::IpAddr;

use crate::gateway::locators::LocatorRecord;
use crate::proto::lisp::server::{NonceRecord, StoredState};
use crate::proto::lisp::xtr::Persist;
use crate::types::lisp::{InstanceId, Note, RLOCS_MAX, XtrId};
use crate::types::{AnchorId, Prefix};
use crate::wire::{Reader, WireError};

/// A note, read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Server(NonceRecord),
    Xtr(Persist),
    Locator(LocatorRecord),
}

fn put_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(a) => {
            out.push(4);
            out.extend(a.octets());
        }
        IpAddr::V6(a) => {
            out.push(6);
            out.extend(a.octets());
        }
    }
}

fn ip(input: &mut Reader<'_>) -> Result<IpAddr, WireError> {
    match input.u8()? {
        4 => Ok(input.array::<4>()?.into()),
        6 => Ok(input.array::<16>()?.into()),
        _ => Err(WireError::BadValue),
    }
}

fn put_eid(iid: InstanceId, prefix: Prefix, out: &mut Vec<u8>) {
    out.extend(iid.0.to_be_bytes());
    out.push(prefix.len());
    put_ip(prefix.addr(), out);
}

fn eid(input: &mut Reader<'_>) -> Result<(InstanceId, Prefix), WireError> {
    let iid = InstanceId(input.u32()?);
    let len = input.u8()?;
    let prefix = Prefix::new(ip(input)?, len).ok_or(WireError::BadValue)?;
    Ok((iid, prefix))
}

pub fn of_server(record: &NonceRecord) -> Note {
    let mut key = Vec::with_capacity(44);
    let mut octets = Vec::with_capacity(8);
    match record {
        NonceRecord::Register { site, xtr, key_id, nonce } => {
            key.push(1);
            key.extend(site.0.to_be_bytes());
            key.push(u8::from(xtr.is_some()));
            key.extend(xtr.unwrap_or_default().0.to_be_bytes());
            key.push(*key_id);
            octets.extend(nonce.to_be_bytes());
        }
        NonceRecord::Request { xtr, iid, prefix, nonce } => {
            key.push(2);
            key.extend(xtr.0.to_be_bytes());
            put_eid(*iid, *prefix, &mut key);
            octets.extend(nonce.to_be_bytes());
        }
        NonceRecord::Subscription { xtr, iid, prefix, state, publications_until, rlocs } => {
            key.push(3);
            key.extend(xtr.0.to_be_bytes());
            put_eid(*iid, *prefix, &mut key);
            octets.push(match state {
                StoredState::Active => 0,
                StoredState::Temporary => 1,
                StoredState::Muted => 2,
                StoredState::Ended => 3,
            });
            octets.extend(publications_until.to_be_bytes());
            let rlocs = &rlocs[..rlocs.len().min(RLOCS_MAX)];
            octets.push(u8::try_from(rlocs.len()).expect("RLOCS_MAX is below 256"));
            rlocs.iter().for_each(|&rloc| put_ip(rloc, &mut octets));
        }
        NonceRecord::Notify { until } => {
            key.push(4);
            octets.extend(until.to_be_bytes());
        }
    }
    Note { key, octets }
}

pub fn of_xtr(record: &Persist) -> Note {
    let mut key = Vec::new();
    let below = match *record {
        Persist::RegisterNonce { below } => {
            key.push(5);
            below
        }
        Persist::NotifyNonce { server, below } => {
            key.push(6);
            put_ip(server, &mut key);
            below
        }
        Persist::SubscriptionNonce { iid, prefix, below } => {
            key.push(7);
            put_eid(iid, prefix, &mut key);
            below
        }
    };
    Note { key, octets: below.to_be_bytes().to_vec() }
}

pub fn of_locator(record: &LocatorRecord) -> Note {
    let mut key = vec![8];
    key.extend(record.slot.to_be_bytes());
    let mut octets = Vec::new();
    if let Some((eid, locator)) = record.pair {
        put_ip(eid, &mut octets);
        put_ip(locator, &mut octets);
    }
    Note { key, octets }
}

pub fn read(note: &Note) -> Result<Stored, WireError> {
    let (mut key, mut octets) = (Reader::new(&note.key), Reader::new(&note.octets));
    let stored = match key.u8()? {
        1 => {
            let site = AnchorId(key.u32()?);
            let has_id = key.u8()? == 1;
            let xtr = Some(XtrId(key.u128()?)).filter(|_| has_id);
            let (key_id, nonce) = (key.u8()?, octets.u64()?);
            Stored::Server(NonceRecord::Register { site, xtr, key_id, nonce })
        }
        2 => {
            let xtr = XtrId(key.u128()?);
            let (iid, prefix) = eid(&mut key)?;
            let nonce = octets.u64()?;
            Stored::Server(NonceRecord::Request { xtr, iid, prefix, nonce })
        }
        3 => {
            let xtr = XtrId(key.u128()?);
            let (iid, prefix) = eid(&mut key)?;
            let state = match octets.u8()? {
                0 => StoredState::Active,
                1 => StoredState::Temporary,
                2 => StoredState::Muted,
                3 => StoredState::Ended,
                _ => return Err(WireError::BadValue),
            };
            let publications_until = octets.u64()?;
            let count = octets.u8()?;
            let rlocs = (0..count).map(|_| ip(&mut octets)).collect::<Result<_, _>>()?;
            let record =
                NonceRecord::Subscription { xtr, iid, prefix, state, publications_until, rlocs };
            Stored::Server(record)
        }
        4 => Stored::Server(NonceRecord::Notify { until: octets.u64()? }),
        5 => Stored::Xtr(Persist::RegisterNonce { below: octets.u64()? }),
        6 => {
            let server = ip(&mut key)?;
            Stored::Xtr(Persist::NotifyNonce { server, below: octets.u64()? })
        }
        7 => {
            let (iid, prefix) = eid(&mut key)?;
            Stored::Xtr(Persist::SubscriptionNonce { iid, prefix, below: octets.u64()? })
        }
        8 => {
            let slot = key.u32()?;
            let pair = match octets.is_empty() {
                true => None,
                false => Some((ip(&mut octets)?, ip(&mut octets)?)),
            };
            Stored::Locator(LocatorRecord { slot, pair })
        }
        kind => return Err(WireError::UnknownType(kind)),
    };
    if key.is_empty() && octets.is_empty() { Ok(stored) } else { Err(WireError::BadLength) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::lisp::{NOTE_KEY_LEN_MAX, NOTE_LEN_MAX};

    fn all() -> Vec<Stored> {
        let xtr = XtrId(u128::MAX - 1);
        let (iid, v4, v6) = (InstanceId(7), "10.1.0.0/16", "2001:db8::7/128");
        let v4: Prefix = v4.parse().unwrap();
        let v6: Prefix = v6.parse().unwrap();
        let site = AnchorId(9);
        let rlocs = vec!["2001:db8::9".parse().unwrap(); RLOCS_MAX];
        let states =
            [StoredState::Active, StoredState::Temporary, StoredState::Muted, StoredState::Ended];
        let mut all = vec![
            Stored::Server(NonceRecord::Register { site, xtr: Some(xtr), key_id: 3, nonce: 8 }),
            Stored::Server(NonceRecord::Register { site, xtr: None, key_id: 3, nonce: u64::MAX }),
            Stored::Server(NonceRecord::Request { xtr, iid, prefix: v6, nonce: 1 }),
            Stored::Server(NonceRecord::Notify { until: 1 << 20 }),
            Stored::Xtr(Persist::RegisterNonce { below: 5 }),
            Stored::Xtr(Persist::NotifyNonce { server: "::1".parse().unwrap(), below: 5 }),
            Stored::Xtr(Persist::SubscriptionNonce { iid, prefix: v4, below: 6 }),
            Stored::Locator(LocatorRecord { slot: 9, pair: Some((v4.addr(), v6.addr())) }),
            Stored::Locator(LocatorRecord { slot: 8, pair: None }),
        ];
        all.extend(states.map(|state| {
            let (prefix, rlocs) = (v4, rlocs.clone());
            let publications_until = 77;
            Stored::Server(NonceRecord::Subscription {
                xtr,
                iid,
                prefix,
                state,
                publications_until,
                rlocs,
            })
        }));
        all
    }

    #[test]
    fn each_note_is_read_as_it_was_written_and_no_part_of_it_is() {
        for stored in all() {
            let note = match &stored {
                Stored::Server(record) => of_server(record),
                Stored::Xtr(record) => of_xtr(record),
                Stored::Locator(record) => of_locator(record),
            };
            assert!(note.key.len() <= NOTE_KEY_LEN_MAX && note.octets.len() <= NOTE_LEN_MAX);
            assert_eq!(read(&note).as_ref(), Ok(&stored));
            for len in 0..note.key.len() {
                let cut = Note { key: note.key[..len].to_vec(), octets: note.octets.clone() };
                assert!(read(&cut).is_err());
            }
            // Nothing at all is the end of a locator.
            let shortest = usize::from(matches!(stored, Stored::Locator(_)));
            for len in shortest..note.octets.len() {
                let cut = Note { key: note.key.clone(), octets: note.octets[..len].to_vec() };
                assert!(read(&cut).is_err());
            }
        }
    }
}
