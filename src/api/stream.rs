//! The streaming API's language: JSON lines, one operation per line, on `stream.sock`.
//!
//! ```text
//! {"op":"attach","mn":"car7","prefix":"10.1.0.7/32","anchor":"192.0.2.2","fe-e":{"ipv4":"192.0.2.2"}}
//! {"op":"move","mn":"car7","anchor":"192.0.2.3"}
//! {"op":"detach","prefix":"10.1.0.7/32"}
//! {"op":"ack","every":1000}
//! ```
//!
//! No socket here: the routing thread reads octets and drives the parser itself, because a move
//! that had to cross to another thread first would pay for two wake-ups. Without an `ack` operation
//! nothing is answered but errors; with it, `{"ack":<lines so far>}` follows every so many lines.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Deserialize;

use crate::types::{AnchorId, Locator, MnId, MnIdError, Prefix, PrefixError};

/// Octets of a line without its end. A longer one is refused and skipped, and the next is read.
/// Twice what the longest legal operation needs, each character of its identifier escaped.
pub const LINE_LEN_MAX: usize = 4_096;

/// One line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The node is at `anchor` (this node when absent) with this prefix. For a node that is
    /// somewhere else this is a move.
    Attach {
        mn: MnId,
        prefix: Prefix,
        anchor: Option<AnchorId>,
        fe_e: Option<Locator>,
        lifetime: Option<Duration>,
    },
    /// A node that is known goes to `anchor` with all its prefixes.
    Move { mn: MnId, anchor: AnchorId, fe_e: Option<Locator> },
    /// The node, or the one that holds the prefix, is gone.
    Detach(Target),
    /// Confirm every so many lines from now on; 0 turns it off again.
    AckEvery(u32),
}

/// A node by its identifier or by one of its prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Mn(MnId),
    Prefix(Prefix),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Counts from 1 over the life of the connection.
    pub line: u64,
    pub what: LineFault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineFault {
    TooLong,
    /// Not JSON, or unknown or missing keys; the sentence is serde's.
    Json(String),
    Mn(MnIdError),
    Prefix(PrefixError),
    Anchor(&'static str),
    Address,
    /// This operation needs that key.
    Missing(&'static str),
    /// This operation has no such key.
    Unexpected(&'static str),
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than {LINE_LEN_MAX} octets"),
            Self::Json(what) => f.write_str(what),
            Self::Mn(e) => e.fmt(f),
            Self::Prefix(e) => e.fmt(f),
            Self::Anchor(what) => f.write_str(what),
            Self::Address => f.write_str("not an address of the family it is given for"),
            Self::Missing(key) => write!(f, "`{key}` is missing"),
            Self::Unexpected(key) => write!(f, "`{key}` does not belong to this operation"),
        }
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl LineError {
    /// The line that answers it.
    pub fn to_json(&self) -> String {
        let what = self.what.to_string();
        format!("{}\n", serde_json::json!({ "error": what, "line": self.line }))
    }
}

/// The parser of one connection.
#[derive(Debug, Default)]
pub struct StreamParser {
    /// Beginning of a line whose end has not come; at most [`LINE_LEN_MAX`].
    partial: Vec<u8>,
    /// The line in hand was too long and is thrown away up to its end.
    skipping: bool,
    lines: u64,
}

impl StreamParser {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines seen so far, good and bad, for acknowledgements.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The operations that `data` completes. What the caller leaves in the iterator is lost.
    pub fn push<'a>(&'a mut self, data: &'a [u8]) -> Ops<'a> {
        Ops { parser: self, rest: data }
    }

    /// One line without its end. `None` for an empty one.
    fn line(&mut self, line: &[u8]) -> Option<Result<Op, LineError>> {
        self.lines += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        Some(parse(line).map_err(|what| LineError { line: self.lines, what }))
    }

    fn too_long(&mut self) -> LineError {
        self.partial.clear();
        LineError { line: self.lines + 1, what: LineFault::TooLong }
    }
}

/// Iterator of [`StreamParser::push`].
pub struct Ops<'a> {
    parser: &'a mut StreamParser,
    rest: &'a [u8],
}

impl Iterator for Ops<'_> {
    type Item = Result<Op, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let here = self.rest;
            // Never fails on a slice; the standard library's fast search for one octet.
            let len = self.rest.skip_until(b'\n').unwrap_or(here.len());
            let piece = &here[..len];
            let Some((b'\n', line)) = piece.split_last() else {
                if self.parser.skipping {
                    return None;
                }
                if self.parser.partial.len() + piece.len() > LINE_LEN_MAX {
                    self.parser.skipping = true;
                    return Some(Err(self.parser.too_long()));
                }
                self.parser.partial.extend_from_slice(piece);
                return None;
            };
            if std::mem::take(&mut self.parser.skipping) {
                self.parser.lines += 1;
                continue;
            }
            if self.parser.partial.len() + line.len() > LINE_LEN_MAX {
                let error = self.parser.too_long();
                self.parser.lines += 1;
                return Some(Err(error));
            }
            let op = if self.parser.partial.is_empty() {
                self.parser.line(line)
            } else {
                let mut whole = std::mem::take(&mut self.parser.partial);
                whole.extend_from_slice(line);
                let op = self.parser.line(&whole);
                whole.clear();
                self.parser.partial = whole;
                op
            };
            if op.is_some() {
                return op;
            }
        }
        None
    }
}

/// As on the line; borrowed, and turned into our types by hand, because the general way through
/// serde would copy each text first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    op: Word,
    #[serde(borrow, default)]
    mn: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    prefix: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    anchor: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "fe-e")]
    fe_e: Option<LineLocator<'a>>,
    /// Seconds.
    #[serde(default)]
    lifetime: Option<u32>,
    #[serde(default)]
    every: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Attach,
    Move,
    Detach,
    Ack,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineLocator<'a> {
    #[serde(borrow, default)]
    ipv4: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    ipv6: Option<Cow<'a, str>>,
}

fn parse(line: &[u8]) -> Result<Op, LineFault> {
    let line: Line<'_> =
        serde_json::from_slice(line).map_err(|e| LineFault::Json(in_one_line(&e)))?;
    // Keys of other operations are mistakes as much as unknown ones.
    let (is_attach, is_ack) = (line.op == Word::Attach, line.op == Word::Ack);
    for (key, is_there, belongs) in [
        ("every", line.every.is_some(), is_ack),
        ("lifetime", line.lifetime.is_some(), is_attach),
        ("anchor", line.anchor.is_some(), is_attach || line.op == Word::Move),
        ("fe-e", line.fe_e.is_some(), is_attach || line.op == Word::Move),
        ("mn", line.mn.is_some(), !is_ack),
        ("prefix", line.prefix.is_some(), is_attach || line.op == Word::Detach),
    ] {
        if is_there && !belongs {
            return Err(LineFault::Unexpected(key));
        }
    }
    let mn = line.mn.map(|text| MnId::new(&text).map_err(LineFault::Mn)).transpose()?;
    let prefix = line.prefix.map(|text| text.parse().map_err(LineFault::Prefix)).transpose()?;
    let anchor = line.anchor.map(|text| text.parse().map_err(LineFault::Anchor)).transpose()?;
    let fe_e = line.fe_e.map(|fe_e| fe_e.parse()).transpose()?;
    match line.op {
        Word::Attach => Ok(Op::Attach {
            mn: mn.ok_or(LineFault::Missing("mn"))?,
            prefix: prefix.ok_or(LineFault::Missing("prefix"))?,
            anchor,
            fe_e,
            lifetime: line.lifetime.map(|s| Duration::from_secs(s.into())),
        }),
        Word::Move => Ok(Op::Move {
            mn: mn.ok_or(LineFault::Missing("mn"))?,
            anchor: anchor.ok_or(LineFault::Missing("anchor"))?,
            fe_e,
        }),
        Word::Detach => match (mn, prefix) {
            (Some(mn), None) => Ok(Op::Detach(Target::Mn(mn))),
            (None, Some(prefix)) => Ok(Op::Detach(Target::Prefix(prefix))),
            (Some(_), Some(_)) => Err(LineFault::Unexpected("prefix")),
            (None, None) => Err(LineFault::Missing("mn")),
        },
        Word::Ack => line.every.map(Op::AckEvery).ok_or(LineFault::Missing("every")),
    }
}

impl LineLocator<'_> {
    fn parse(&self) -> Result<Locator, LineFault> {
        let ipv4 = self.ipv4.as_deref().map(str::parse::<Ipv4Addr>).transpose();
        let ipv6 = self.ipv6.as_deref().map(str::parse::<Ipv6Addr>).transpose();
        match (ipv4, ipv6) {
            (Ok(None), Ok(None)) => Err(LineFault::Missing("ipv4")),
            (Ok(ipv4), Ok(ipv6)) => Ok(Locator { ipv4, ipv6 }),
            (Err(_), _) | (_, Err(_)) => Err(LineFault::Address),
        }
    }
}

/// serde_json's sentence with only the column: the line is ours to count.
fn in_one_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTACH: &str = r#"{"op":"attach","mn":"car7","prefix":"10.1.0.7/32","anchor":"192.0.2.2","fe-e":{"ipv4":"192.0.2.2","ipv6":"2001:db8::2"},"lifetime":60}"#;

    fn one(line: &str) -> Result<Op, LineFault> {
        let mut parser = StreamParser::new();
        let text = format!("{line}\n");
        let mut ops = parser.push(text.as_bytes());
        let op = ops.next().expect("a line");
        assert!(ops.next().is_none());
        op.map_err(|e| {
            assert_eq!(e.line, 1);
            e.what
        })
    }

    #[test]
    fn each_operation() {
        assert_eq!(
            one(ATTACH),
            Ok(Op::Attach {
                mn: MnId::new("car7").unwrap(),
                prefix: "10.1.0.7/32".parse().unwrap(),
                anchor: Some("192.0.2.2".parse().unwrap()),
                fe_e: Some(Locator {
                    ipv4: Some("192.0.2.2".parse().unwrap()),
                    ipv6: Some("2001:db8::2".parse().unwrap()),
                }),
                lifetime: Some(Duration::from_secs(60)),
            })
        );
        assert_eq!(
            one(r#"{"op":"move","mn":"a\u0062c\"","anchor":"192.0.2.3"}"#),
            Ok(Op::Move {
                mn: MnId::new("abc\"").unwrap(),
                anchor: "192.0.2.3".parse().unwrap(),
                fe_e: None,
            })
        );
        assert_eq!(
            one(r#"{"op":"detach","prefix":"2001:db8::7"}"#),
            Ok(Op::Detach(Target::Prefix("2001:db8::7/128".parse().unwrap())))
        );
        assert_eq!(
            one(r#"{"op":"detach","mn":"x"}"#),
            Ok(Op::Detach(Target::Mn(MnId::new("x").unwrap())))
        );
        assert_eq!(one(r#"{"op":"ack","every":1000}"#), Ok(Op::AckEvery(1000)));
    }

    #[test]
    fn each_mistake() {
        for (line, what) in [
            ("x", "expected value (column 1)"),
            ("{}", "missing field `op` (column 2)"),
            (r#"{"op":"fly"}"#, "unknown variant `fly`"),
            (r#"{"op":"attach","mn":"a","prefix":"10.1.0.7","speed":1}"#, "unknown field `speed`"),
            (r#"{"op":"attach","mn":"a"}"#, "`prefix` is missing"),
            (r#"{"op":"attach","prefix":"10.1.0.7"}"#, "`mn` is missing"),
            (r#"{"op":"attach","mn":"a b","prefix":"10.1.0.7"}"#, "printable ASCII"),
            (r#"{"op":"attach","mn":"a","prefix":"10.1.0.7/8"}"#, "bits are set"),
            (r#"{"op":"move","mn":"a"}"#, "`anchor` is missing"),
            (r#"{"op":"move","mn":"a","anchor":"b"}"#, "not an anchor id"),
            (r#"{"op":"move","mn":"a","anchor":"1.1.1.1","prefix":"10.0.0.0"}"#, "does not belong"),
            (r#"{"op":"move","mn":"a","anchor":"1.1.1.1","fe-e":{}}"#, "`ipv4` is missing"),
            (
                r#"{"op":"move","mn":"a","anchor":"1.1.1.1","fe-e":{"ipv4":"::1"}}"#,
                "not an address",
            ),
            (r#"{"op":"detach"}"#, "`mn` is missing"),
            (r#"{"op":"detach","mn":"a","prefix":"10.0.0.1"}"#, "does not belong"),
            (r#"{"op":"ack"}"#, "`every` is missing"),
            (r#"{"op":"ack","every":-1}"#, "invalid value"),
            (r#"{"op":"detach","mn":"a"} trailing"#, "trailing characters"),
        ] {
            let fault = one(line).expect_err(line);
            assert!(fault.to_string().contains(what), "{line}: {fault}");
        }
    }

    #[test]
    fn any_cut_gives_the_same_operations() {
        let long = "x".repeat(LINE_LEN_MAX + 1);
        let text = format!(
            "{ATTACH}\r\n\n{{\"op\":\"ack\",\"every\":1}}\nbad\n{long}\n{ATTACH}\n{ATTACH}"
        );
        let whole: Vec<_> = StreamParser::new().push(text.as_bytes()).collect();
        assert_eq!(whole.len(), 5);
        let lines: Vec<_> =
            whole.iter().filter_map(|op| op.as_ref().err()).map(|e| e.line).collect();
        assert_eq!(lines, [4, 5]);
        for size in [1, 2, 3, 7, 64, 1000, 4095, 4096, 4097] {
            let mut parser = StreamParser::new();
            let mut ops = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                ops.extend(parser.push(piece));
                assert!(parser.partial.capacity() <= 2 * LINE_LEN_MAX);
            }
            assert_eq!(ops, whole, "pieces of {size}");
            assert_eq!(parser.lines(), 6, "the last line has no end yet");
            assert_eq!(parser.push(b"\n").count(), 1);
        }
    }

    /// Damaged input of every kind: an answer per line, nothing else.
    #[test]
    fn mutated_lines_are_answered_or_understood() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |n: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % n as u64) as usize
        };
        let base = format!("{ATTACH}\n{{\"op\":\"move\",\"mn\":\"a\",\"anchor\":\"1.1.1.1\"}}\n");
        let (mut good, mut bad) = (0, 0);
        for _ in 0..50_000 {
            let mut octets = base.clone().into_bytes();
            for _ in 0..=random(3) {
                let at = random(octets.len());
                match random(13) / 4 {
                    0 => octets[at] = random(256) as u8,
                    1 if octets.len() > 1 => {
                        octets.remove(at);
                    }
                    1 | 2 => octets.insert(at, b"\"{}[]:,\\\n\0"[random(10)]),
                    _ => octets.truncate(at + 1),
                }
            }
            octets.push(b'\n');
            let mut parser = StreamParser::new();
            let newlines = octets.iter().filter(|b| **b == b'\n').count() as u64;
            for op in parser.push(&octets) {
                match op {
                    Ok(_) => good += 1,
                    Err(e) => {
                        assert!(e.line <= newlines && e.to_json().ends_with("}\n"));
                        bad += 1;
                    }
                }
            }
            assert_eq!(parser.lines(), newlines);
            assert!(parser.partial.is_empty());
        }
        assert!(good > 10_000 && bad > 10_000, "{good} good, {bad} bad");
    }
}
