//! Netlink attributes by hand, for messages that are sent a million times, and for those that
//! netlink-packet-route does not know (nexthop objects, tunnel encapsulation, nftables).

/// Without the flags "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;
const HEADER_LEN: usize = 4;

pub fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest_as(out, kind, |out| out.extend_from_slice(value));
}

pub fn push_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    push(out, kind, &value.to_ne_bytes());
}

/// As C strings are sent.
pub fn push_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    nest_as(out, kind, |out| {
        out.extend_from_slice(text.as_bytes());
        out.push(0);
    });
}

pub fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    nest_as(out, kind | NESTED, fill);
}

fn nest_as(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&kind.to_ne_bytes());
    fill(out);
    let len = u16::try_from(out.len() - start).expect("our attributes are short");
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Each attribute with its kind. A length that does not fit ends them.
pub fn each<'a>(mut body: &'a [u8], mut sink: impl FnMut(u16, &'a [u8])) {
    while let Some(&[l0, l1, k0, k1]) = body.first_chunk::<HEADER_LEN>() {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = body.get(HEADER_LEN..len) else { return };
        sink(u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value);
        body = body.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

pub fn read_u32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|raw| u32::from_ne_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        push(&mut out, 7, &[1, 2, 3]);
        nest(&mut out, 8, |out| push_u32(out, 9, 77));
        push_text(&mut out, 10, "abc");
        let mut seen = Vec::new();
        each(&out, |kind, value| seen.push((kind, value.to_vec())));
        assert_eq!(seen[0], (7, vec![1, 2, 3]));
        assert_eq!(seen[2], (10, b"abc\0".to_vec()));
        assert_eq!(seen[1].0, 8);
        each(&seen[1].1, |kind, value| assert_eq!((kind, read_u32(value)), (9, Some(77))));
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_truncated_attribute_is_the_end() {
        let mut out = Vec::new();
        push_u32(&mut out, 1, 1);
        push_u32(&mut out, 2, 2);
        for len in 0..out.len() {
            let mut count = 0;
            each(&out[..len], |_, _| count += 1);
            assert_eq!(count, len / 8, "{len}");
        }
        each(&[0, 0, 1, 0, 0, 0, 0, 0], |_, _| panic!("no length"));
    }
}
