//! The files of the store: framing, reading back, and the snapshot that replaces old segments.
//!
//! ```text
//! file  = magic 7 | version 1 | frame …
//! frame = length 4 | CRC-32 of length and payload 4 | payload (see `codec`)
//! ```
//! `NNNNNNNN.log` are segments in the order of writing, of which only the last one grows.
//! `NNNNNNNN.snap` has the newest record per key of all segments up to its own number. It is
//! written under another name, synced and renamed, and only then are the segments deleted: at
//! each step what is there reads as the same state.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::codec::{self, PAYLOAD_LEN_MAX};
use super::{Key, StoreError, Value};

const HEADER: &[u8; 8] = b"killick\x01";
pub const HEADER_LEN: usize = HEADER.len();
const FRAME_HEAD_LEN: usize = 8;

/// The files of a directory, in order of their numbers.
#[derive(Default)]
pub struct Files {
    pub logs: Vec<u64>,
    pub snaps: Vec<u64>,
    /// Snapshots that were not finished.
    pub unfinished: Vec<PathBuf>,
}

impl Files {
    pub fn list(dir: &Path) -> io::Result<Self> {
        let mut files = Self::default();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let Some((number, kind)) = name.split_once('.') else { continue };
            // Only names as they are written here; in 32 bits, so that counting on cannot overflow.
            let Ok(number) = number.parse::<u32>().map(u64::from) else { continue };
            if number == 0 || name != file_name(number, kind) {
                continue;
            }
            match kind {
                "log" => files.logs.push(number),
                "snap" => files.snaps.push(number),
                "snap.tmp" => files.unfinished.push(dir.join(name)),
                _ => {}
            }
        }
        files.logs.sort_unstable();
        files.snaps.sort_unstable();
        Ok(files)
    }

    /// The newest snapshot up to `last` and the segments after it, oldest first.
    fn in_order(&self, dir: &Path, last: u64) -> Vec<PathBuf> {
        let snap = self.snaps.iter().rev().find(|&&number| number <= last);
        let logs = self.logs.iter().filter(|&number| Some(number) > snap && *number <= last);
        let snap = snap.map(|&number| snap_path(dir, number));
        snap.into_iter().chain(logs.map(|&number| log_path(dir, number))).collect()
    }
}

fn file_name(number: u64, kind: &str) -> String {
    format!("{number:08}.{kind}")
}

pub fn log_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number, "log"))
}

fn snap_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number, "snap"))
}

fn unfinished_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number, "snap.tmp"))
}

/// Makes a segment with nothing in it. The caller knows that the number is unused: what may be
/// there is left of an attempt that failed.
pub fn create(dir: &Path, number: u64) -> io::Result<File> {
    let file = File::options().append(true).create(true).open(log_path(dir, number))?;
    file.set_len(0)?;
    (&file).write_all(HEADER)?;
    Ok(file)
}

/// Appends a frame with what `payload` writes.
pub fn frame(out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; FRAME_HEAD_LEN]);
    payload(out);
    let len = out.len() - start - FRAME_HEAD_LEN;
    let len = u32::try_from(len).expect("a payload is shorter than PAYLOAD_LEN_MAX").to_be_bytes();
    let crc = checksum(len, &out[start + FRAME_HEAD_LEN..]).to_be_bytes();
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..start + FRAME_HEAD_LEN].copy_from_slice(&crc);
}

fn checksum(len: [u8; 4], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&len);
    crc.update(payload);
    crc.finalize()
}

/// What stands at the beginning of some octets.
enum Frame<'a> {
    Whole {
        payload: &'a [u8],
        rest: &'a [u8],
    },
    /// The length may be right, the checksum is not.
    Damaged {
        rest: &'a [u8],
    },
    /// Longer than what is left.
    Cut,
    /// No frame has this length.
    Implausible,
}

fn read_frame(octets: &[u8]) -> Frame<'_> {
    let Some((&len, rest)) = octets.split_first_chunk::<4>() else { return Frame::Cut };
    let Some((&crc, rest)) = rest.split_first_chunk::<4>() else { return Frame::Cut };
    let payload_len = u32::from_be_bytes(len) as usize;
    if payload_len == 0 || payload_len > PAYLOAD_LEN_MAX {
        return Frame::Implausible;
    }
    let Some((payload, rest)) = rest.split_at_checked(payload_len) else { return Frame::Cut };
    if checksum(len, payload) == u32::from_be_bytes(crc) {
        Frame::Whole { payload, rest }
    } else {
        Frame::Damaged { rest }
    }
}

/// How far a file can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Clean,
    /// What follows `good` octets is a write that did not finish: it can be cut off.
    Torn {
        good: usize,
    },
    /// What follows `good` octets cannot be told apart into records.
    Lost {
        good: usize,
    },
}

/// Passes all good payloads of a file to `each`, and the offset of each damaged one to `damaged`.
/// `None`: not a file of this store, or of another version.
pub fn scan<'a>(
    octets: &'a [u8],
    mut each: impl FnMut(&'a [u8]),
    mut damaged: impl FnMut(usize),
) -> Option<End> {
    let Some(mut rest) = octets.strip_prefix(HEADER) else {
        // A power cut in the first moments of a segment: its size, but not yet its content.
        let unwritten = HEADER.starts_with(octets) || is_zero(octets);
        return unwritten.then_some(End::Torn { good: 0 });
    };
    while !rest.is_empty() {
        let good = octets.len() - rest.len();
        rest = match read_frame(rest) {
            Frame::Whole { payload, rest } => {
                each(payload);
                rest
            }
            Frame::Cut => return Some(End::Torn { good }),
            // The last one, or the last one before room that was never filled.
            Frame::Damaged { rest: next } if is_zero(next) => return Some(End::Torn { good }),
            Frame::Damaged { rest: next } => {
                // Was the length right? Then another frame follows.
                if !matches!(read_frame(next), Frame::Whole { .. }) {
                    return Some(End::Lost { good });
                }
                damaged(good);
                next
            }
            Frame::Implausible if is_zero(rest) => return Some(End::Torn { good }),
            Frame::Implausible => return Some(End::Lost { good }),
        };
    }
    Some(End::Clean)
}

fn is_zero(octets: &[u8]) -> bool {
    octets.iter().all(|&octet| octet == 0)
}

/// The newest record per key of all files up to number `last`. A damaged record is an error for
/// itself only; a file of which nothing can be known is one for the whole.
pub fn merge(
    dir: &Path,
    last: u64,
    damaged: &mut dyn FnMut(StoreError),
) -> Result<BTreeMap<Key, Value>, StoreError> {
    let mut newest = BTreeMap::new();
    let files = Files::list(dir).map_err(StoreError::Read)?;
    for path in files.in_order(dir, last) {
        let octets = fs::read(&path).map_err(StoreError::Read)?;
        let name = path.display();
        let mut faults = Vec::new();
        let mut undecoded = Vec::new();
        let each = |payload| match codec::decode(payload) {
            Ok((key, value)) => drop(newest.insert(key, value)),
            Err(error) => undecoded.push(format!("a record in {name}: {error}")),
        };
        let end = scan(&octets, each, |at| faults.push(format!("{name} at octet {at}: checksum")));
        match end {
            None => return Err(StoreError::Foreign { path: name.to_string() }),
            Some(End::Clean) => {}
            Some(End::Torn { good }) => faults.push(cut_off(&path, octets.len() - good)),
            Some(End::Lost { good }) => faults.push(format!(
                "{name} is not readable after octet {good}: {} octets are lost",
                octets.len() - good
            )),
        }
        faults.into_iter().chain(undecoded).for_each(|fault| damaged(StoreError::Damaged(fault)));
    }
    Ok(newest)
}

/// The fault report for a write that did not finish.
pub fn cut_off(path: &Path, octets: usize) -> String {
    format!("{}: its last {octets} octets are an unfinished write", path.display())
}

/// Replaces the files up to number `last`, none of which is written any more, by one snapshot.
pub fn compact(dir: &Path, last: u64) -> Result<(), StoreError> {
    let skipped = |error| tracing::error!(%error, "skipped while compacting the store");
    let newest = merge(dir, last, &mut { skipped })?;
    let done = write_snapshot(dir, last, &newest)
        .and_then(|()| publish_snapshot(dir, last))
        .and_then(|()| remove_covered(dir));
    done.map_err(StoreError::Compact)
}

fn write_snapshot(dir: &Path, number: u64, newest: &BTreeMap<Key, Value>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(unfinished_path(dir, number))?);
    file.write_all(HEADER)?;
    let mut octets = Vec::new();
    for (key, value) in newest {
        octets.clear();
        frame(&mut octets, |out| codec::encode(key, value, out));
        file.write_all(&octets)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn publish_snapshot(dir: &Path, number: u64) -> io::Result<()> {
    fs::rename(unfinished_path(dir, number), snap_path(dir, number))?;
    File::open(dir)?.sync_all()
}

/// Deletes what the newest snapshot replaces.
pub fn remove_covered(dir: &Path) -> io::Result<()> {
    let files = Files::list(dir)?;
    let Some((&newest, older)) = files.snaps.split_last() else { return Ok(()) };
    for &number in older {
        fs::remove_file(snap_path(dir, number))?;
    }
    for &number in files.logs.iter().filter(|&&number| number <= newest) {
        fs::remove_file(log_path(dir, number))?;
    }
    Ok(())
}
