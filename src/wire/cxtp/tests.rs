//! The messages against octets of another coder (`tests/vectors/cxtp/`).

use super::super::token;
use super::*;

const VECTORS: &str = include_str!("../../../tests/vectors/cxtp/messages.txt");
const KEY: &[u8] = b"0123456789abcdef";

fn vector(name: &str) -> Vec<u8> {
    let line = VECTORS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.expect("a vector of that name");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn all_vectors() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let lines = VECTORS.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap().0).map(|name| (name, vector(name)))
}

fn expected() -> Vec<(&'static str, Message)> {
    let mn: IpAddr = "2001:db8:a::100".parse().unwrap();
    let router = "2001:db8:1::1".parse().unwrap();
    let mn4: IpAddr = "192.0.2.100".parse().unwrap();
    let router4 = "192.0.2.1".parse().unwrap();
    let sequence = 0x0102_0304;
    let requests = RequestBlocks::new(&[Block { fpt: 1, presence: None, data: vec![] }]);
    let mut mld = vec![0x20, 1, 0x0d, 0xb8, 0, 0x0a, 0, 0, 0xff, 0x3e];
    mld.extend_from_slice(&[0; 13]);
    mld.extend_from_slice(&[1, 0, 0, 0, 0]);
    let mld = Block { fpt: 1, presence: None, data: mld };
    let presence =
        Block { fpt: 0xff01, presence: Some(0xc000_0000), data: vec![1, 2, 3, 4, 5, 6, 7, 0] };
    let ctar = |acknowledge, mn, router| Message::Ctar {
        acknowledge,
        addresses: Addresses::new(mn, router).unwrap(),
        sequence,
        token: token(KEY, mn, sequence, &requests),
        requests: requests.clone(),
    };
    let status = |status| vec![FeatureStatus { fpt: 1, status }];
    vec![
        ("CTAR", ctar(true, mn, router)),
        ("CTAR4", ctar(false, mn4, router4)),
        ("CTAA", Message::Ctaa { mn, statuses: status(0x80) }),
        (
            "CTD",
            Message::Ctd { acknowledge: true, elapsed_ms: 1500, mn, blocks: vec![mld.clone()] },
        ),
        (
            "CTD4",
            Message::Ctd { acknowledge: true, elapsed_ms: 0, mn: mn4, blocks: vec![presence] },
        ),
        (
            "PCTD",
            Message::Pctd {
                acknowledge: true,
                elapsed_ms: 0,
                mn,
                algorithm: ALGORITHM_HMAC_SHA1,
                key: KEY.to_vec(),
                blocks: vec![mld],
            },
        ),
        ("CTDR", Message::Ctdr { success: false, mn, statuses: status(0) }),
        ("CTDR_S", Message::Ctdr { success: true, mn, statuses: vec![] }),
        ("CTC", Message::Ctc { mn }),
        ("CTC4", Message::Ctc { mn: mn4 }),
        (
            "CTREQ0",
            Message::CtReq {
                mn,
                sequence: 0,
                token: Token::NONE,
                requests: RequestBlocks::default(),
            },
        ),
        (
            "CTREQ",
            Message::CtReq { mn, sequence, token: token(KEY, mn, sequence, &requests), requests },
        ),
    ]
}

/// RFC 4067 §2.5: octet-exact, both ways.
#[test]
fn messages_agree_with_another_coder() {
    let expected = expected();
    assert_eq!(expected.len(), all_vectors().count());
    for (name, message) in expected {
        let mut octets = Vec::new();
        message.encode(&mut octets).unwrap();
        assert_eq!(octets, vector(name), "{name}");
        assert_eq!(Message::decode(&octets), Ok(message), "{name}");
    }
}

#[test]
fn a_stream_is_cut_into_messages_at_any_chunk_size() {
    let stream: Vec<u8> = all_vectors().flat_map(|(_, octets)| octets).collect();
    let (mut buf, mut names) = (Vec::new(), Vec::new());
    for octet in stream {
        buf.push(octet);
        while let Some((message, len)) = next_message(&buf).unwrap() {
            names.push(message.name());
            buf.drain(..len);
        }
    }
    assert!(buf.is_empty());
    assert_eq!(names.len(), all_vectors().count());
}

#[test]
fn every_truncation_is_incomplete_or_an_error() {
    for (name, octets) in all_vectors() {
        for len in 0..octets.len() {
            assert_eq!(next_message(&octets[..len]), Ok(None), "{name} cut to {len}");
            assert!(Message::decode(&octets[..len]).is_err(), "{name} cut to {len}");
            // The same octets, with a Length that agrees with the cut.
            let mut cut = octets[..len].to_vec();
            if len >= HEADER_LEN {
                cut[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                // Lists may end at an entry; anything that decodes must encode to the same octets.
                if let Ok(message) = Message::decode(&cut) {
                    let mut again = Vec::new();
                    message.encode(&mut again).unwrap();
                    assert_eq!(again, cut, "{name} cut to {len}");
                }
            }
        }
    }
}

/// Whatever a changed octet makes of a message, what it decodes to is a message.
#[test]
fn every_single_octet_change_decodes_or_is_refused() {
    let (mut decoded, mut refused) = (0, 0);
    for (name, octets) in all_vectors() {
        for at in 0..octets.len() {
            for value in 0..=u8::MAX {
                let mut changed = octets.clone();
                changed[at] = value;
                match Message::decode(&changed) {
                    Ok(message) => {
                        let mut again = Vec::new();
                        message.encode(&mut again).unwrap();
                        assert_eq!(Message::decode(&again), Ok(message), "{name} octet {at}");
                        decoded += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(decoded > 10_000 && refused > 5_000, "{decoded} decoded, {refused} refused");
}

#[test]
fn headers_that_end_a_stream() {
    assert_eq!(next_message(&[0x46, 0, 0, 20]), Err(WireError::UnknownVersion(2)));
    assert_eq!(next_message(&[0x26, 0, 0, 3]), Err(WireError::BadLength));
    assert_eq!(next_message(&[0x28, 0, 0, 4]), Err(WireError::UnknownType(8)));
    assert_eq!(frame_len(&[0x28, 0, 0, 4]), Ok(Some(4)), "an unknown type can be skipped");
    assert_eq!(frame_len(&[0x26, 0, 0]), Ok(None));
}

#[test]
fn a_message_longer_than_its_length_field_is_not_sent() {
    let block = Block { fpt: 1, presence: None, data: vec![0; 2036] };
    let mn = "192.0.2.1".parse().unwrap();
    let ctd =
        |n| Message::Ctd { acknowledge: true, elapsed_ms: 0, mn, blocks: vec![block.clone(); n] };
    let mut out = vec![1];
    assert_eq!(ctd(33).encode(&mut out), Err(WireError::BadLength));
    assert_eq!(out, [1]);
    assert_eq!(ctd(32).encode(&mut out), Ok(()));
}
