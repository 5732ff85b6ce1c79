//! AS_PATH in two and four octets, and what RFC 6793 does with old speakers.
//!
//! ```text
//! | segment type: 1 | number of ASes: 1 | ASes: 2 or 4 octets each |   repeated
//! ```

use super::attributes::{AsPath, AsSegment};
use super::open::AS_TRANS;

const SET: u8 = 1;
const SEQUENCE: u8 = 2;
/// RFC 5065 §3.
const CONFED_SEQUENCE: u8 = 3;
const CONFED_SET: u8 = 4;

/// One octet counts the ASes of a segment.
const SEGMENT_LEN_MAX: usize = 255;

/// RFC 7606 §7.2 and RFC 7607 §2 (AS 0): nothing but "malformed" follows from any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
}

impl Width {
    pub(super) const fn of(four_octet_as: bool) -> Self {
        if four_octet_as { Self::Four } else { Self::Two }
    }

    const fn octets(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

pub(super) fn decode(mut rest: &[u8], width: Width) -> Result<AsPath, Malformed> {
    let mut segments = Vec::new();
    while !rest.is_empty() {
        let (&[kind, count], tail) = rest.split_first_chunk().ok_or(Malformed)?;
        let len = usize::from(count) * width.octets();
        let (ases, tail) = tail.split_at_checked(len).ok_or(Malformed)?;
        rest = tail;
        let ases: Vec<u32> = match width {
            Width::Four => ases.as_chunks().0.iter().map(|a| u32::from_be_bytes(*a)).collect(),
            Width::Two => {
                ases.as_chunks().0.iter().map(|a| u32::from(u16::from_be_bytes(*a))).collect()
            }
        };
        if ases.is_empty() || ases.contains(&0) {
            return Err(Malformed);
        }
        segments.push(match kind {
            SET => AsSegment::Set(ases),
            SEQUENCE => AsSegment::Sequence(ases),
            CONFED_SEQUENCE => AsSegment::ConfedSequence(ases),
            CONFED_SET => AsSegment::ConfedSet(ases),
            _ => return Err(Malformed),
        });
    }
    Ok(AsPath(segments))
}

/// AS4_PATH. Confederation segments in it are dropped, RFC 6793 §3; an empty one is malformed (§6).
pub(super) fn decode_as4(value: &[u8]) -> Result<AsPath, Malformed> {
    let AsPath(mut segments) = decode(value, Width::Four)?;
    if segments.is_empty() {
        return Err(Malformed);
    }
    segments.retain(|s| !is_confed(s));
    Ok(AsPath(segments))
}

pub(super) const fn is_confed(segment: &AsSegment) -> bool {
    match segment {
        AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => true,
        AsSegment::Set(_) | AsSegment::Sequence(_) => false,
    }
}

pub(super) fn has_confed(path: &AsPath) -> bool {
    path.0.iter().any(is_confed)
}

/// The neighbouring AS: the leftmost of a leading AS_SEQUENCE (RFC 4271 §6.3).
pub(super) fn first_as(path: &AsPath) -> Option<u32> {
    match path.0.first() {
        Some(AsSegment::Sequence(ases)) => ases.first().copied(),
        Some(AsSegment::Set(_) | AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_)) | None => {
            None
        }
    }
}

/// ASes as RFC 4271 §9.1.2.2 and RFC 5065 §5.3 count them: a set is one, confederations are none.
fn length(path: &AsPath) -> usize {
    let of = |segment: &AsSegment| match segment {
        AsSegment::Sequence(ases) => ases.len(),
        AsSegment::Set(_) => 1,
        AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => 0,
    };
    path.0.iter().map(of).sum()
}

/// RFC 6793 §4.2.3: the leading ASes of `path`, as many as `as4_path` lacks, then `as4_path`.
pub(super) fn reconcile(path: AsPath, as4_path: AsPath) -> AsPath {
    let Some(mut lacking) = length(&path).checked_sub(length(&as4_path)) else { return path };
    let mut segments = Vec::with_capacity(path.0.len() + as4_path.0.len());
    for segment in path.0 {
        match segment {
            // Leading, or next to a segment that is prepended: it is kept either way.
            AsSegment::ConfedSequence(_) | AsSegment::ConfedSet(_) => segments.push(segment),
            AsSegment::Set(_) | AsSegment::Sequence(_) if lacking == 0 => break,
            AsSegment::Set(_) => {
                lacking -= 1;
                segments.push(segment);
            }
            AsSegment::Sequence(mut ases) => {
                ases.truncate(lacking);
                lacking -= ases.len();
                segments.push(AsSegment::Sequence(ases));
            }
        }
    }
    for segment in as4_path.0 {
        match (segments.last_mut(), segment) {
            // One sequence that was cut in two becomes one again.
            (Some(AsSegment::Sequence(head)), AsSegment::Sequence(tail))
                if head.len() + tail.len() <= SEGMENT_LEN_MAX =>
            {
                head.extend(tail);
            }
            (_, segment) => segments.push(segment),
        }
    }
    AsPath(segments)
}

/// True when a two-octet peer needs AS4_PATH as well.
pub(super) fn needs_as4(path: &AsPath) -> bool {
    path.0.iter().filter(|s| !is_confed(s)).flat_map(ases).any(|a| u16::try_from(*a).is_err())
}

fn ases(segment: &AsSegment) -> &[u32] {
    match segment {
        AsSegment::Set(ases)
        | AsSegment::Sequence(ases)
        | AsSegment::ConfedSequence(ases)
        | AsSegment::ConfedSet(ases) => ases,
    }
}

/// Appends the value of AS_PATH. A segment of more than 255 ASes is written as several.
pub(super) fn encode(path: &AsPath, width: Width, out: &mut Vec<u8>) {
    for segment in &path.0 {
        encode_segment(segment, width, out);
    }
}

/// Appends the value of AS4_PATH, which has no confederation segments (RFC 6793 §3).
pub(super) fn encode_as4(path: &AsPath, out: &mut Vec<u8>) {
    for segment in path.0.iter().filter(|s| !is_confed(s)) {
        encode_segment(segment, Width::Four, out);
    }
}

fn encode_segment(segment: &AsSegment, width: Width, out: &mut Vec<u8>) {
    let kind = match segment {
        AsSegment::Set(_) => SET,
        AsSegment::Sequence(_) => SEQUENCE,
        AsSegment::ConfedSequence(_) => CONFED_SEQUENCE,
        AsSegment::ConfedSet(_) => CONFED_SET,
    };
    for ases in ases(segment).chunks(SEGMENT_LEN_MAX) {
        out.extend_from_slice(&[kind, u8::try_from(ases.len()).expect("chunks of 255")]);
        for &asn in ases {
            match width {
                Width::Four => out.extend_from_slice(&asn.to_be_bytes()),
                Width::Two => out.extend_from_slice(&as_trans(asn).to_be_bytes()),
            }
        }
    }
}

/// The AS number for an old speaker.
pub(super) fn as_trans(asn: u32) -> u16 {
    u16::try_from(asn).unwrap_or(AS_TRANS)
}

#[cfg(test)]
mod tests {
    use super::AsSegment::{ConfedSequence, Sequence, Set};
    use super::*;

    /// RFC 6793 §4.2.3.
    #[test]
    fn reconciliation() {
        const T: u32 = 23456;
        let big = 4_200_000_000;
        let rows = [
            // The old speaker 100 prepended itself once.
            (
                vec![Sequence(vec![100, T, 65001])],
                vec![Sequence(vec![big, 65001])],
                vec![Sequence(vec![100, big, 65001])],
            ),
            // AS4_PATH longer than AS_PATH: ignored.
            (vec![Sequence(vec![T])], vec![Sequence(vec![big, 65001])], vec![Sequence(vec![T])]),
            // A set counts once.
            (
                vec![Sequence(vec![100]), Set(vec![1, 2, 3]), Sequence(vec![T])],
                vec![Sequence(vec![big])],
                vec![Sequence(vec![100]), Set(vec![1, 2, 3]), Sequence(vec![big])],
            ),
            // A leading confederation segment is kept and not counted.
            (
                vec![ConfedSequence(vec![65100]), Sequence(vec![T, 7])],
                vec![Sequence(vec![big, 7])],
                vec![ConfedSequence(vec![65100]), Sequence(vec![big, 7])],
            ),
            // Nothing left after confederation segments were dropped.
            (vec![Sequence(vec![1, 2])], vec![], vec![Sequence(vec![1, 2])]),
        ];
        for (path, as4, want) in rows {
            assert_eq!(reconcile(AsPath(path), AsPath(as4)), AsPath(want));
        }
    }

    #[test]
    fn long_segments_are_split_and_round_trip() {
        let long: Vec<u32> = (1..=600).collect();
        let mut out = Vec::new();
        encode(&AsPath(vec![Sequence(long.clone())]), Width::Four, &mut out);
        let AsPath(segments) = decode(&out, Width::Four).unwrap();
        assert_eq!(segments.iter().map(|s| ases(s).len()).collect::<Vec<_>>(), [255, 255, 90]);
        assert_eq!(segments.iter().flat_map(ases).copied().collect::<Vec<_>>(), long);
    }
}
