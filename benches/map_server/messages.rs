//! What the client says and what it checks of the answers: octets by the figures of RFC 9301, so that
//! nothing here agrees with killick only because it is killick's. Encoded before the clock runs,
//! signed too.

use std::io;
use std::net::Ipv4Addr;

use ring::hmac;

use crate::device::{ETRS, KEY, subscriber_xtr_id};
use crate::udp::{CONTROL_PORT, Messages};

/// Where EIDs are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// A mobile pool: the location database decides.
    Mobile,
    /// Of plain sites.
    Plain,
    /// A mobile pool that has subscribers.
    Watched,
}

/// The n-th EID of a space, in no order: 24 bits are mixed and stay distinct.
pub fn eid(space: Space, n: usize) -> Ipv4Addr {
    let mut x = n as u32 & 0xff_ffff;
    for factor in [0x9e_3779, 0x85_ebcb, 0xc2_b2af_u32] {
        x = x.wrapping_mul(factor | 1) & 0xff_ffff;
        x ^= x >> 11;
    }
    Ipv4Addr::from(match space {
        Space::Mobile => 10 << 24 | x,
        Space::Plain => 20 << 24 | x,
        Space::Watched => 100 << 24 | 64 << 16 | n as u32 & 0xffff,
    })
}

pub fn key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes())
}

/// Octets before the records of a message that is signed.
const SIGNED_HEAD: usize = 32;
const DIGEST: std::ops::Range<usize> = 16..32;

/// Key 1, HMAC-SHA-256-128 (2), 16 octets; the digest is over the message with itself as 0.
fn put_authentication(out: &mut Vec<u8>) {
    out.extend([1, 2, 0, 16]);
    out.extend([0; 16]);
}

fn sign(key: &hmac::Key, message: &mut [u8]) {
    message[DIGEST].fill(0);
    let tag = hmac::sign(key, message);
    message[DIGEST].copy_from_slice(&tag.as_ref()[..16]);
}

fn put_address(addr: Ipv4Addr, out: &mut Vec<u8>) {
    out.extend([0, 1]);
    out.extend(addr.octets());
}

/// An EID at an ETR, by its so manieth binding.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub eid: Ipv4Addr,
    pub etr: usize,
    pub generation: u16,
}

fn put_record(place: &Place, out: &mut Vec<u8>) {
    out.extend(1440_u32.to_be_bytes());
    // One locator, a host, authoritative.
    out.extend([1, 32, 0x10, 0]);
    out.extend(place.generation.to_be_bytes());
    put_address(place.eid, out);
    // Priority, weight, not for groups; the sender's own (L), reachable (R).
    out.extend([1, 100, 255, 0, 0, 5]);
    put_address(ETRS[place.etr], out);
}

/// A Map-Register with authentication that asks for proxy replies, for the TTL as its timeout (T)
/// and for a Map-Notify.
pub fn put_register(key: &hmac::Key, etr: usize, nonce: u64, places: &[Place], to: &mut Messages) {
    let out = &mut to.octets;
    let count = u8::try_from(places.len()).expect("some twenty");
    out.extend([3 << 4 | 8 | 2, 0, 8 | 1, count]);
    out.extend(nonce.to_be_bytes());
    put_authentication(out);
    places.iter().for_each(|place| put_record(place, out));
    out.extend((1_u128 << 64 | etr as u128).to_be_bytes());
    out.extend(u64::from(u32::from(ETRS[etr])).to_be_bytes());
    let range = to.end();
    sign(key, &mut to.octets[range]);
}

fn put_question(from: Ipv4Addr, nonce: u64, eid: Ipv4Addr, out: &mut Vec<u8>) {
    out.extend([1 << 4, 0, 0, 1]);
    out.extend(nonce.to_be_bytes());
    out.extend([0, 0]); // no source EID
    put_address(from, out);
    out.extend([0, 32]);
    put_address(eid, out);
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |&l| l.into())).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (!(sum as u16)).to_be_bytes()
}

/// A Map-Request; in an ECM as an ITR sends it, or by itself.
pub fn put_request(
    from: Ipv4Addr,
    nonce: u64,
    eid: Ipv4Addr,
    encapsulated: bool,
    to: &mut Messages,
) {
    if encapsulated {
        let mut inner = Vec::new();
        put_question(from, nonce, eid, &mut inner);
        let udp_len = (8 + inner.len() as u16).to_be_bytes();
        let total = (28 + inner.len() as u16).to_be_bytes();
        let mut ip =
            [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[12..16].copy_from_slice(&from.octets());
        ip[16..20].copy_from_slice(&eid.octets());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum);
        let port = CONTROL_PORT.to_be_bytes();
        let udp = [port[0], port[1], port[0], port[1], udp_len[0], udp_len[1]];
        let sum = match checksum(&[&ip[12..20], &[0, 17], &udp_len, &udp, &inner]) {
            [0, 0] => [0xff, 0xff], // 0 would say that there is none
            sum => sum,
        };
        let out = &mut to.octets;
        out.extend([8 << 4, 0, 0, 0]);
        out.extend(ip);
        out.extend(udp);
        out.extend(sum);
        out.extend(inner);
    } else {
        put_question(from, nonce, eid, &mut to.octets);
    }
    to.end();
}

/// The n-th subscriber subscribes to all of the watched space (RFC 9437 §4: I, and N of the record).
pub fn put_subscription(from: Ipv4Addr, n: usize, to: &mut Messages) {
    let out = &mut to.octets;
    out.extend([1 << 4, 0x10, 0, 1]);
    // Each has its own range of nonces.
    out.extend(((n as u64 + 1) << 32).to_be_bytes());
    out.extend([0, 0]);
    put_address(from, out);
    out.extend([0x80, 16]);
    put_address(Ipv4Addr::new(100, 64, 0, 0), out);
    out.extend(subscriber_xtr_id(n).to_be_bytes());
    out.extend([0; 8]);
    to.end();
}

pub fn nonce_of(octets: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*octets.get(4..)?.first_chunk()?))
}

fn odd(what: &str, octets: &[u8]) -> io::Error {
    io::Error::other(format!("{what}: {octets:02x?}"))
}

pub const REPLY_LEN: usize = 40;

/// A Map-Reply with the one locator that the EID has.
pub fn check_reply(octets: &[u8], place: impl Fn(u64) -> Option<Place>) -> io::Result<()> {
    let place = nonce_of(octets).and_then(place).ok_or_else(|| odd("not asked for", octets))?;
    let right = octets.len() == REPLY_LEN
        && octets[0] >> 4 == 2
        && octets[3] == 1
        && octets[16] == 1
        && octets[17] == 32
        && octets[24..28] == place.eid.octets()
        && octets[36..40] == ETRS[place.etr].octets();
    if right { Ok(()) } else { Err(odd("not the mapping", octets)) }
}

/// A Map-Notify with so many records, or with fewer at the end, that answers a Map-Register.
pub fn check_notify(octets: &[u8], records: usize) -> io::Result<()> {
    let right = octets.len() > SIGNED_HEAD
        && octets[0] >> 4 == 4
        && (1..=records).contains(&usize::from(octets[3]));
    if right { Ok(()) } else { Err(odd("not its Map-Notify", octets)) }
}

/// A publication of a host at this ETR; what was copied from a register may follow its locator.
pub fn is_publication(octets: &[u8], place: Place) -> bool {
    octets.len() >= SIGNED_HEAD + 28
        && octets[0] >> 4 == 4
        && octets[SIGNED_HEAD + 12..][..4] == place.eid.octets()
        && octets[SIGNED_HEAD + 24..][..4] == ETRS[place.etr].octets()
}

/// Makes the acknowledgement of a Map-Notify out of it.
pub fn put_ack(key: &hmac::Key, notify: &[u8], to: &mut Messages) -> io::Result<()> {
    if notify.len() <= SIGNED_HEAD || notify[0] >> 4 != 4 {
        return Err(odd("not a Map-Notify", notify));
    }
    to.octets.extend_from_slice(notify);
    let range = to.end();
    let ack = &mut to.octets[range];
    ack[0] = 5 << 4 | ack[0] & 0xf;
    sign(key, ack);
    Ok(())
}
