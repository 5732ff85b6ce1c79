//! What survives kill -9: the bindings of this node, and the claims of those that left.
//!
//! Records of one turn of the loop are committed together, *before* the messages of that turn
//! leave: whatever a peer has heard from us, we still know after a crash. A commit reaches the
//! page cache, which a killed process leaves behind; once per [`SYNC_EVERY`] it also reaches the
//! disk, so that a power cut loses at most that much, and generations learnt from the peers on the
//! way up close the gap. A record is there as a whole or not at all; of a commit that was cut off
//! its first records may be there, of which no peer has heard.
//!
//! A disk that is full or broken does not stop routing: the error is returned, shown by `status`
//! and counted, and the records wait in memory ([`PENDING_MAX`], newest per prefix) for the disk.
//!
//! The store is a log of its own ([`log`]), because the routing thread commits in each turn and
//! must never wait for the disk. An LSM database was here before: measured with `benches/rr`
//! (originate), it took 31 % of a move, and the lock of its journal held the routing thread for 4
//! to 14 ms whenever the other thread was in fdatasync. Nothing is ever looked up here while the
//! daemon runs, so all it takes is one `write(2)` per commit; syncing and compacting happen in
//! other threads, which share no lock with it.
//!
//! The space on disk is bounded by the number of prefixes that were ever bound here, *n* octets in
//! their newest records: a snapshot (*n*), the next one while it is written (*n*), the growing
//! segment ([`SEGMENT_LEN_MAX`] and one commit), and the full ones that are not compacted yet:
//! usually one, more only if the disk is slower at compacting than we are at filling it.

mod codec;
mod log;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::log::{End, Files, HEADER_LEN};
use crate::types::{AnchorId, Claim, Generation, Locator, MacAddr, MnId, Prefix};

/// Longest time for which an answered change is only in the page cache.
pub const SYNC_EVERY: Duration = Duration::from_millis(50);

/// Prefixes whose record waits for a disk that refuses writes. A record of one more prefix is not
/// taken: the disk keeps what it had of it. They are counted in the error of each commit.
pub const PENDING_MAX: usize = 1_000_000;

/// How often a disk that has refused a write is asked again.
pub const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Octets after which a segment is full: the next commit begins a new one, and the full one is
/// compacted. Some 800 000 records; reading them back takes a fraction of a second.
pub const SEGMENT_LEN_MAX: usize = 64 << 20;

/// Most octets that the buffer of a commit keeps for the next one.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// What is kept of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBinding {
    pub mn: MnId,
    pub anchor: AnchorId,
    pub fe_e: Locator,
    pub home: Option<AnchorId>,
    pub generation: Generation,
    /// End of the lease, milliseconds since 1970; `None` while attached.
    pub until_unix_ms: Option<u64>,
    /// Access interface by name (an index does not survive a restart) and link-layer address.
    pub link: Option<String>,
    pub mac: Option<MacAddr>,
}

/// One record: what holds for a prefix now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Bound(StoredBinding),
    /// No longer bound here; the greatest claim that was known.
    Gone(Claim),
}

/// A place for records.
pub struct Store {
    dir: Arc<Directory>,
    /// The segment that grows.
    active: Arc<File>,
    number: u64,
    /// Octets of it that are known to be whole records.
    len: usize,
    /// A write failed: there may be more than `len` octets, to be cut off before the next one.
    torn: bool,
    /// Full segments that may not have reached the disk.
    unsynced_full: Vec<Arc<File>>,
    /// There are full segments to compact.
    compactable: bool,
    /// What was cut off when the store was opened.
    cut_off: Option<String>,
    pending: BTreeMap<Prefix, Record>,
    /// Records that found `pending` full.
    refused: u64,
    buffer: Vec<u8>,
    unsynced: bool,
    /// The disk refused the last write; nothing is written before [`Self::retry`], since each
    /// turn would encode all that waits only to be refused again.
    refusal: Option<String>,
    /// The last trouble of a sync or a compaction.
    background: Option<String>,
    segment_len_max: usize,
    pending_max: usize,
}

/// The directory, ours as long as one of the store's closures lives.
struct Directory {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the state directory {path}: {source}")]
    Open { path: String, source: io::Error },
    #[error("the state directory {path} is in use by another process")]
    InUse { path: String },
    #[error("{path} is not a file of this version of the store; move it away to start without it")]
    Foreign { path: String },
    #[error("cannot read the stored state: {0}")]
    Read(io::Error),
    #[error("cannot write the state, {waiting} records wait, {refused} were refused: {source}")]
    Write { waiting: usize, refused: u64, source: io::Error },
    #[error("cannot bring the state to the disk: {0}")]
    Sync(io::Error),
    #[error("cannot compact the state, the next full segment tries again: {0}")]
    Compact(io::Error),
    #[error("a stored record is damaged: {0}")]
    Damaged(String),
}

impl Store {
    /// Opens or makes the store in `dir`, finishes what a crash interrupted, and keeps everybody
    /// else out.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: dir.display().to_string(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::options().write(true).create(true).truncate(false).open(dir.join("lock"));
        let lock = lock.map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::InUse { path: dir.display().to_string() },
            TryLockError::Error(source) => failed(source),
        })?;

        for unfinished in Files::list(dir).map_err(failed)?.unfinished {
            fs::remove_file(unfinished).map_err(failed)?;
        }
        log::remove_covered(dir).map_err(failed)?;
        let files = Files::list(dir).map_err(failed)?;
        let mut cut_off = None;
        let last = match files.logs.last() {
            Some(&number) => continue_segment(dir, number, &mut cut_off)?,
            None => None,
        };
        let newest = files.logs.iter().chain(&files.snaps).max().copied().unwrap_or(0);
        let compactable = files.logs.len() > 1 || (last.is_none() && !files.logs.is_empty());
        let (active, number, len) = match last {
            Some((file, len)) => (file, newest, len),
            None => (log::create(dir, newest + 1).map_err(failed)?, newest + 1, HEADER_LEN),
        };
        Ok(Self {
            dir: Arc::new(Directory { path: dir.to_owned(), _lock: lock }),
            active: Arc::new(active),
            number,
            len,
            torn: false,
            unsynced_full: Vec::new(),
            compactable,
            cut_off,
            pending: BTreeMap::new(),
            refused: 0,
            buffer: Vec::new(),
            unsynced: false,
            refusal: None,
            background: None,
            segment_len_max: SEGMENT_LEN_MAX,
            pending_max: PENDING_MAX,
        })
    }

    /// All records, by prefix. A damaged one is an error for itself only: it is passed to
    /// `damaged` and skipped, and what was written before for its prefix counts. Damage behind
    /// which no record can be made out ends its segment, and the error says how much that is.
    pub fn load(
        &self,
        mut damaged: impl FnMut(StoreError),
    ) -> Result<Vec<(Prefix, Record)>, StoreError> {
        if let Some(what) = &self.cut_off {
            damaged(StoreError::Damaged(what.clone()));
        }
        let newest = log::merge(&self.dir.path, self.number, &mut damaged)?;
        Ok(newest.into_iter().collect())
    }

    /// Takes a record for the next [`Self::commit`]; a newer one replaces an older one. When
    /// [`PENDING_MAX`] wait already, one of a further prefix is refused and counted.
    pub fn put(&mut self, prefix: Prefix, record: Record) {
        if self.pending.len() < self.pending_max || self.pending.contains_key(&prefix) {
            self.pending.insert(prefix, record);
        } else {
            self.refused += 1;
        }
    }

    /// Writes what was put since the last commit, and lets it survive the process. On error
    /// everything is kept for the next try.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() || self.refusal.is_some() {
            return Ok(());
        }
        let written = self.write_pending();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT_MAX);
        let (waiting, refused) = (self.pending.len(), self.refused);
        if let Err(source) = written {
            let error = StoreError::Write { waiting, refused, source };
            self.refusal = Some(error.to_string());
            return Err(error);
        }
        self.pending.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Asks a disk that has refused a write again. True when it has taken all that waited.
    pub fn retry(&mut self) -> bool {
        self.refusal.take().is_some() && self.commit().is_ok()
    }

    /// What a sync or a compaction ended with.
    pub fn handle_background(&mut self, error: Option<String>) {
        self.background = error;
    }

    /// What an operator should know: a restart, or a power cut, would lose something.
    pub fn trouble(&self) -> Option<String> {
        let refusal = self.refusal.as_ref().map(|why| match self.pending.len() {
            0 => why.clone(),
            waiting => format!("{why} ({waiting} records wait now)"),
        });
        refusal.or_else(|| self.background.clone())
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.torn {
            self.active.set_len(self.len as u64)?;
            self.torn = false;
        }
        if self.len >= self.segment_len_max {
            self.begin_segment()?;
        }
        for (&prefix, record) in &self.pending {
            log::frame(&mut self.buffer, |out| codec::encode(prefix, record, out));
        }
        if let Err(error) = (&*self.active).write_all(&self.buffer) {
            // At once, so that a crash from here on finds a clean end; if this fails, too, the
            // next commit tries again before it writes.
            self.torn = self.active.set_len(self.len as u64).is_err();
            return Err(error);
        }
        self.len += self.buffer.len();
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let next = Arc::new(log::create(&self.dir.path, self.number + 1)?);
        self.unsynced_full.push(std::mem::replace(&mut self.active, next));
        self.number += 1;
        self.len = HEADER_LEN;
        self.compactable = true;
        Ok(())
    }

    /// Lets what is committed survive a power cut, too. The driver takes one every [`SYNC_EVERY`]
    /// and calls it in another thread: a disk may take its time. A system that reports an error
    /// here may have dropped the pages: the error is to be shown, calling again proves nothing.
    pub fn syncer(&mut self) -> impl FnOnce() -> Result<(), StoreError> + Send + 'static {
        self.unsynced = false;
        let full = std::mem::take(&mut self.unsynced_full);
        let active = Arc::clone(&self.active);
        let dir = Arc::clone(&self.dir);
        move || {
            for segment in &full {
                segment.sync_data().map_err(StoreError::Sync)?;
            }
            active.sync_data().map_err(StoreError::Sync)?;
            if full.is_empty() {
                return Ok(());
            }
            // The segment after a full one has a new name.
            File::open(&dir.path).and_then(|dir| dir.sync_all()).map_err(StoreError::Sync)
        }
    }

    /// Replaces the full segments by a snapshot, if there are any; to be called in another thread,
    /// and finished before the next one is taken. It holds the newest record of each prefix in memory while it runs.
    pub fn compactor(
        &mut self,
    ) -> Option<impl FnOnce() -> Result<(), StoreError> + Send + 'static + use<>> {
        let dir = Arc::clone(&self.dir);
        let last = self.number - 1;
        std::mem::take(&mut self.compactable).then(|| move || log::compact(&dir.path, last))
    }

    /// True after a commit for which no [`Self::syncer`] has been taken.
    pub const fn is_unsynced(&self) -> bool {
        self.unsynced
    }
}

/// The newest segment, to be written on, and its length. `None` when damage leaves open where its
/// records end: it stays as it is, and a new one begins.
fn continue_segment(
    dir: &Path,
    number: u64,
    cut_off: &mut Option<String>,
) -> Result<Option<(File, usize)>, StoreError> {
    let path = log::log_path(dir, number);
    let failed = |source| StoreError::Open { path: path.display().to_string(), source };
    let octets = fs::read(&path).map_err(failed)?;
    let end = log::scan(&octets, |_| {}, |_| {});
    let good = match end {
        None => return Err(StoreError::Foreign { path: path.display().to_string() }),
        Some(End::Lost { .. }) => return Ok(None),
        Some(End::Clean) => octets.len(),
        Some(End::Torn { good }) => good,
    };
    if good < octets.len() {
        *cut_off = Some(log::cut_off(&path, octets.len() - good));
    }
    if good < HEADER_LEN {
        return Ok(Some((log::create(dir, number).map_err(failed)?, HEADER_LEN)));
    }
    let file = File::options().append(true).open(&path).map_err(failed)?;
    file.set_len(good as u64).map_err(failed)?;
    Ok(Some((file, good)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_of_a_prefix_is_what_comes_back() {
        let dir = std::env::temp_dir().join(format!("killick-store-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let p4: Prefix = "10.1.1.7/32".parse().unwrap();
        let p6: Prefix = "2001:db8:1::/64".parse().unwrap();
        let bound = StoredBinding {
            mn: MnId::new("mn1").unwrap(),
            anchor: AnchorId(1),
            fe_e: Locator::default(),
            home: None,
            generation: Generation(3),
            until_unix_ms: Some(1),
            link: Some("access0".into()),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        };
        let gone = Record::Gone(Claim { generation: Generation(4), anchor: AnchorId(2) });
        {
            let mut store = Store::open(&dir).unwrap();
            store.put(p4, Record::Bound(bound.clone()));
            store.commit().unwrap();
            store.put(p4, gone.clone());
            store.put(p6, Record::Bound(bound.clone()));
            store.commit().unwrap();
            assert!(store.is_unsynced());
            store.syncer()().unwrap();
            assert!(!store.is_unsynced());
            // Not committed: not there later.
            store.put(p6, gone.clone());
        }
        let store = Store::open(&dir).unwrap();
        let all = store.load(|e| panic!("{e}")).unwrap();
        assert_eq!(all, [(p4, gone), (p6, Record::Bound(bound))]);
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
