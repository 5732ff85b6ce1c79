//! What survives kill -9: the bindings of this node, the claims of those that left, and notes of the
//! mapping service (nonces that must not be taken twice).
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
use crate::types::lisp::{NOTE_KEY_LEN_MAX, NOTE_LEN_MAX, Note};
use crate::types::{AnchorId, Claim, Generation, Locator, MacAddr, MnId, Prefix};

/// Longest time for which an answered change is only in the page cache.
pub const SYNC_EVERY: Duration = Duration::from_millis(50);

/// Prefixes whose record waits for a disk that refuses writes. A record of one more prefix is not
/// taken: the disk keeps what it had of it. They are counted in the error of each commit.
pub const PENDING_MAX: usize = 1_000_000;

/// How often a disk that has refused a write is asked again.
pub const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Octets after which a segment is full: the next commit begins a new one, and the full one is
/// compacted. It has about a million records, which are read back in about a second.
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

/// What a record is about; the newest record of a key counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Prefix(Prefix),
    Note(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Record(Record),
    Note(Vec<u8>),
}

/// All that was stored, in order of prefixes and keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub records: Vec<(Prefix, Record)>,
    pub notes: Vec<Note>,
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
    pending: BTreeMap<Key, Value>,
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

    /// All records, by key. A damaged one is an error for itself only: it is passed to
    /// `damaged` and skipped, and what was written before for its key counts. Damage behind
    /// which no record can be made out ends its segment, and the error says how much that is.
    pub fn load(&self, mut damaged: impl FnMut(StoreError)) -> Result<Loaded, StoreError> {
        if let Some(what) = &self.cut_off {
            damaged(StoreError::Damaged(what.clone()));
        }
        let mut loaded = Loaded::default();
        for (key, value) in log::merge(&self.dir.path, self.number, &mut damaged)? {
            match (key, value) {
                (Key::Prefix(prefix), Value::Record(record)) => {
                    loaded.records.push((prefix, record));
                }
                (Key::Note(key), Value::Note(octets)) => loaded.notes.push(Note { key, octets }),
                (Key::Prefix(_), Value::Note(_)) | (Key::Note(_), Value::Record(_)) => {
                    unreachable!("a value is decoded together with its key")
                }
            }
        }
        Ok(loaded)
    }

    /// Takes a record for the next [`Self::commit`]; a newer one replaces an older one. When
    /// [`PENDING_MAX`] wait already, one of a further prefix is refused and counted.
    pub fn put(&mut self, prefix: Prefix, record: Record) {
        self.put_value(Key::Prefix(prefix), Value::Record(record));
    }

    /// As [`Self::put`].
    pub fn put_note(&mut self, note: Note) {
        assert!(note.key.len() <= NOTE_KEY_LEN_MAX && note.octets.len() <= NOTE_LEN_MAX);
        self.put_value(Key::Note(note.key), Value::Note(note.octets));
    }

    fn put_value(&mut self, key: Key, value: Value) {
        if self.pending.len() < self.pending_max || self.pending.contains_key(&key) {
            self.pending.insert(key, value);
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
        for (key, value) in &self.pending {
            log::frame(&mut self.buffer, |out| codec::encode(key, value, out));
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
        std::mem::take(&mut self.compactable).then_some(move || log::compact(&dir.path, last))
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

    /// A directory of its own for each test, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Self {
            let name = format!("killick-store-{test}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn open(&self) -> Store {
            Store::open(&self.0).unwrap()
        }

        /// What a daemon that starts now would find, and what it is told of damage.
        fn state(&self) -> (Vec<(Prefix, Record)>, Vec<String>) {
            let mut damaged = Vec::new();
            let all = self.open().load(|error| damaged.push(error.to_string())).unwrap();
            (all.records, damaged)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != "lock");
            names.sort_unstable();
            names
        }

        fn files(&self) -> BTreeMap<String, Vec<u8>> {
            let read = |name: String| (name.clone(), fs::read(self.0.join(name)).unwrap());
            self.names().into_iter().map(read).collect()
        }

        fn set_files(&self, files: &BTreeMap<String, Vec<u8>>) {
            let _ = fs::remove_dir_all(&self.0);
            fs::create_dir_all(&self.0).unwrap();
            for (name, octets) in files {
                fs::write(self.0.join(name), octets).unwrap();
            }
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const FIRST: &str = "00000001.log";

    fn prefix(n: u32) -> Prefix {
        Prefix::v4(0x0a00_0000 + n, 32).unwrap()
    }

    fn gone(generation: u32) -> Record {
        Record::Gone(Claim { generation: Generation(generation), anchor: AnchorId(2) })
    }

    fn bound(generation: u32) -> Record {
        Record::Bound(StoredBinding {
            mn: MnId::new("mn1").unwrap(),
            anchor: AnchorId(1),
            fe_e: Locator::default(),
            home: None,
            generation: Generation(generation),
            until_unix_ms: Some(1),
            link: Some("access0".into()),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        })
    }

    /// Puts and commits one record.
    fn write(store: &mut Store, n: u32, record: Record) {
        store.put(prefix(n), record);
        store.commit().unwrap();
    }

    #[test]
    fn the_last_record_of_a_prefix_is_what_comes_back() {
        let dir = Dir::new("last");
        let p6: Prefix = "2001:db8:1::/64".parse().unwrap();
        {
            let mut store = dir.open();
            write(&mut store, 1, bound(3));
            store.put(prefix(1), gone(4));
            store.put(p6, bound(3));
            store.commit().unwrap();
            assert!(store.is_unsynced());
            store.syncer()().unwrap();
            assert!(!store.is_unsynced());
            // Not committed: not there later.
            store.put(p6, gone(9));
        }
        assert_eq!(dir.state(), (vec![(prefix(1), gone(4)), (p6, bound(3))], vec![]));
        // And what the next run writes comes after it.
        write(&mut dir.open(), 1, gone(5));
        assert_eq!(dir.state(), (vec![(prefix(1), gone(5)), (p6, bound(3))], vec![]));
        assert_eq!(dir.names(), [FIRST]);
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let dir = Dir::new("others");
        let names = ["00000000.log", "1.log", "99999999999.log", "+0000001.snap", "notes.txt", "x"];
        dir.set_files(&names.map(|name| (name.to_owned(), b"theirs".to_vec())).into());
        let mut store = dir.open();
        store.segment_len_max = 0;
        write(&mut store, 1, gone(1));
        store.compactor().unwrap()().unwrap();
        drop(store);
        assert_eq!(dir.state(), (vec![(prefix(1), gone(1))], vec![]));
        assert!(names.iter().all(|name| dir.files()[*name] == b"theirs"));
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = Dir::new("owner");
        let mut first = dir.open();
        assert!(matches!(Store::open(&dir.0), Err(StoreError::InUse { .. })));
        // A thread that still compacts for a store that is gone owns it, too.
        first.segment_len_max = 0;
        write(&mut first, 1, gone(1));
        let compact = first.compactor().unwrap();
        drop(first);
        assert!(matches!(Store::open(&dir.0), Err(StoreError::InUse { .. })));
        compact().unwrap();
        assert_eq!(dir.state().0, [(prefix(1), gone(1))]);
    }

    #[test]
    fn a_commit_torn_at_any_octet_leaves_its_whole_records() {
        let dir = Dir::new("torn");
        let mut store = dir.open();
        write(&mut store, 1, bound(1));
        let before = store.len;
        let mut ends = vec![before];
        for n in 1..4 {
            store.put(prefix(n), gone(10 + n));
            let mut octets = Vec::new();
            log::frame(&mut octets, |out| {
                codec::encode(&Key::Prefix(prefix(n)), &Value::Record(gone(10 + n)), out)
            });
            ends.push(ends.last().unwrap() + octets.len());
        }
        store.commit().unwrap();
        assert_eq!(store.len, *ends.last().unwrap());
        drop(store);
        let whole = dir.files();
        for len in before..=whole[FIRST].len() {
            for zeros in [0, 100] {
                let mut files = whole.clone();
                let segment = files.get_mut(FIRST).unwrap();
                segment.truncate(len);
                segment.resize(len + zeros, 0);
                let size = segment.len();
                dir.set_files(&files);

                let good = ends.iter().filter(|&&end| end <= len).count() - 1;
                let mut expected = BTreeMap::from([(prefix(1), bound(1))]);
                let news = (1..).take(good).map(|n| (prefix(n), gone(10 + n)));
                expected.extend(news);
                let expected: Vec<_> = expected.into_iter().collect();
                let (all, damaged) = dir.state();
                assert_eq!(all, expected, "cut at {len}, {zeros} zeros");
                // Reported once and cut off: the second start finds nothing.
                assert_eq!(damaged.len(), usize::from(size != ends[good]), "{len}: {damaged:?}");
                assert_eq!(dir.files()[FIRST].len(), ends[good]);
                assert_eq!(dir.state(), (expected.clone(), vec![]));

                // What is written next is found behind it.
                write(&mut dir.open(), 9, gone(9));
                let expected = [expected, vec![(prefix(9), gone(9))]].concat();
                assert_eq!(dir.state(), (expected, vec![]));
            }
        }
    }

    #[test]
    fn a_segment_cut_in_its_header_begins_anew() {
        let dir = Dir::new("header");
        drop(dir.open());
        let whole = dir.files();
        for len in 0..HEADER_LEN {
            for octets in [whole[FIRST][..len].to_vec(), vec![0; len], vec![0; HEADER_LEN]] {
                dir.set_files(&BTreeMap::from([(FIRST.to_owned(), octets)]));
                write(&mut dir.open(), 1, gone(1));
                assert_eq!(dir.state(), (vec![(prefix(1), gone(1))], vec![]));
            }
        }
    }

    #[test]
    fn one_damaged_octet_never_invents_a_record() {
        let dir = Dir::new("damage");
        let mut store = dir.open();
        let written = [(1, bound(1)), (2, gone(2)), (1, gone(3)), (3, bound(4)), (2, bound(5))];
        for (n, record) in &written {
            write(&mut store, *n, record.clone());
        }
        drop(store);
        let whole = dir.files();
        let (intact, _) = dir.state();
        for at in 0..whole[FIRST].len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut files = whole.clone();
                files.get_mut(FIRST).unwrap()[at] ^= flip;
                dir.set_files(&files);
                if at < HEADER_LEN {
                    assert!(matches!(Store::open(&dir.0), Err(StoreError::Foreign { .. })));
                    assert_eq!(dir.files(), files, "refused, and untouched");
                    continue;
                }
                let (all, damaged) = dir.state();
                assert!(!damaged.is_empty(), "octet {at}");
                for (found, record) in &all {
                    let real = written.iter().any(|(n, r)| prefix(*n) == *found && r == record);
                    assert!(real, "octet {at}: {found} {record:?}");
                }
                // Each start reads the same, and new records are found whatever is damaged.
                assert_eq!(dir.state().0, all);
                write(&mut dir.open(), 7, gone(7));
                assert!(dir.state().0.contains(&(prefix(7), gone(7))));
            }
        }
        // Damage in a payload costs this record alone.
        let mut files = whole.clone();
        files.get_mut(FIRST).unwrap()[HEADER_LEN + 10] ^= 1;
        dir.set_files(&files);
        assert_eq!(dir.state().0, intact);
        assert_eq!(dir.state().1.len(), 1);
    }

    #[test]
    fn full_segments_become_one_snapshot() {
        let dir = Dir::new("rotate");
        let mut store = dir.open();
        store.segment_len_max = 300;
        let mut expected = BTreeMap::new();
        for round in 0..200 {
            let record = if round % 3 == 0 { gone(round) } else { bound(round) };
            expected.insert(prefix(round % 7), record.clone());
            write(&mut store, round % 7, record);
            store.syncer()().unwrap();
            if round % 40 == 39 {
                assert!(dir.names().len() > 2, "there is something to compact");
                store.compactor().unwrap()().unwrap();
                let active = format!("{:08}.log", store.number);
                let snap = format!("{:08}.snap", store.number - 1);
                assert_eq!(dir.names(), [snap, active]);
                assert!(store.compactor().is_none(), "nothing is left to do");
                let total: usize = dir.files().values().map(Vec::len).sum();
                assert!(total < 300 + 100 + 7 * 100, "{total} octets");
            }
        }
        drop(store);
        assert_eq!(dir.state(), (expected.into_iter().collect(), vec![]));
    }

    #[test]
    fn a_crash_at_each_step_of_compaction_leaves_the_same_state() {
        let dir = Dir::new("crash");
        let mut store = dir.open();
        store.segment_len_max = 60;
        for n in 0..18 {
            write(&mut store, n % 5, gone(n));
            if n == 5 {
                store.compactor().unwrap()().unwrap();
            }
        }
        let last = store.number - 1;
        drop(store);
        let before = dir.files();
        let (expected, _) = dir.state();
        assert!(before.keys().any(|name| name.ends_with(".snap")), "{:?}", before.keys());
        assert!(before.len() > 4, "{:?}", before.keys());

        log::compact(&dir.0, last).unwrap();
        let after = dir.files();
        let snap = format!("{last:08}.snap");
        let octets = &after[&snap];
        let check = |files: &BTreeMap<String, Vec<u8>>, step: &str| {
            dir.set_files(files);
            assert_eq!(dir.state(), (expected.clone(), vec![]), "{step}");
            // The next run gets to the end, too.
            let mut store = dir.open();
            if let Some(compact) = store.compactor() {
                compact().unwrap();
            }
            drop(store);
            assert_eq!(dir.state(), (expected.clone(), vec![]), "{step}, compacted");
            assert!(dir.names().iter().all(|name| !name.ends_with(".tmp")), "{step}");
            assert!(dir.names().len() <= 2, "{step}: {:?}", dir.names());
        };
        // While the snapshot is written: any part of it.
        for len in 0..=octets.len() {
            let mut files = before.clone();
            files.insert(format!("{snap}.tmp"), octets[..len].to_vec());
            check(&files, "unfinished");
        }
        // Renamed; then the old files go one by one, in any order.
        let covered: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
        for removed in 0..1_u32 << covered.len() {
            let mut files = before.clone();
            files.insert(snap.clone(), octets.clone());
            for (bit, name) in covered.iter().enumerate() {
                if removed >> bit & 1 == 1 {
                    files.remove(*name);
                }
            }
            check(&files, "renamed");
        }
    }

    #[test]
    fn what_the_disk_refuses_waits_for_it() {
        let dir = Dir::new("refuse");
        let mut store = dir.open();
        store.pending_max = 2;
        write(&mut store, 1, gone(1));
        // A descriptor without the right to write fails as a full disk does.
        let path = dir.0.join(FIRST);
        let good = std::mem::replace(&mut store.active, Arc::new(File::open(&path).unwrap()));
        store.put(prefix(1), gone(2));
        store.put(prefix(2), bound(2));
        assert!(matches!(store.commit(), Err(StoreError::Write { waiting: 2, refused: 0, .. })));
        // Newer ones still replace theirs; there is no room for another prefix.
        store.put(prefix(2), gone(3));
        store.put(prefix(3), gone(3));
        store.commit().expect("nothing is written before the retry");
        assert!(!store.retry(), "still refused");
        assert!(store.trouble().is_some_and(|t| t.contains("1 were refused")));

        // The part that reached the disk is cut off before anything is written behind it.
        assert!(store.torn);
        (&*good).write_all(b"half a record").unwrap();
        store.active = good;
        assert!(store.retry());
        assert!(!store.torn && store.pending.is_empty() && store.trouble().is_none());
        write(&mut store, 4, gone(4));
        drop(store);
        let expected = vec![(prefix(1), gone(2)), (prefix(2), gone(3)), (prefix(4), gone(4))];
        assert_eq!(dir.state(), (expected, vec![]));
    }

    #[test]
    fn a_segment_that_cannot_be_made_keeps_the_records_waiting() {
        let dir = Dir::new("rotation");
        let mut store = dir.open();
        store.segment_len_max = 0;
        // A directory in the place of the next file.
        let obstacle = dir.0.join("00000002.log");
        fs::create_dir(&obstacle).unwrap();
        store.put(prefix(1), gone(1));
        assert!(matches!(store.commit(), Err(StoreError::Write { waiting: 1, .. })));
        fs::remove_dir(&obstacle).unwrap();
        assert!(store.retry());
        drop(store);
        assert_eq!(dir.state(), (vec![(prefix(1), gone(1))], vec![]));
    }
}
