//! What survives kill -9: the bindings of this node, and the claims of those that left.
//!
//! Records of one turn of the loop are committed together, *before* the messages of that turn
//! leave: whatever a peer has heard from us, we still know after a crash. A commit reaches the
//! page cache, which a killed process leaves behind; once per [`SYNC_EVERY`] it also reaches the
//! disk, so that a power cut loses at most that much, and generations learnt from the peers on the
//! way up close the gap.
//!
//! A disk that is full or broken does not stop routing: the error is shown by `status` and counted,
//! and the records wait in memory ([`PENDING_MAX`], newest per prefix). Every [`REPAIR_EVERY`] a
//! thread opens the store anew, since a database that has once failed to write refuses to go on,
//! and brings the waiting records in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{AnchorId, Claim, Generation, Locator, MacAddr, MnId, Prefix};

/// Longest time for which an answered change is only in the page cache.
pub const SYNC_EVERY: Duration = Duration::from_millis(50);

/// Between two tries to bring a failed store back.
pub const REPAIR_EVERY: Duration = Duration::from_secs(2);

/// Prefixes whose record waits for a disk that refuses writes. Beyond it the record of one more
/// prefix is not kept: a restart would then not know of it, or know an older state, which the
/// claims of the peers correct.
pub const PENDING_MAX: usize = 1_000_000;

/// What is kept of a binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBinding {
    pub mn: MnId,
    pub anchor: AnchorId,
    pub fe_e: Locator,
    pub home: Option<AnchorId>,
    pub generation: Generation,
    /// End of the lease, milliseconds since 1970; `None` while attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
    /// Access interface by name (an index does not survive a restart) and link-layer address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
}

/// One record: what holds for a prefix now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    Bound(StoredBinding),
    /// No longer bound here; the greatest claim that was known.
    Gone(Claim),
}

/// The database and its one table.
#[derive(Clone)]
struct Disk {
    db: fjall::Database,
    records: fjall::Keyspace,
}

/// A place for records.
pub struct Store {
    dir: PathBuf,
    /// `None` while a thread repairs it.
    disk: Option<Disk>,
    pending: BTreeMap<Prefix, Record>,
    unsynced: bool,
    error: Option<StoreError>,
}

/// What a thread needs to bring a failed store back, see [`Store::start_repair`].
pub struct Repair {
    dir: PathBuf,
    failed: Option<Disk>,
    waiting: BTreeMap<Prefix, Record>,
}

/// The outcome, for [`Store::end_repair`].
pub struct Repaired {
    result: Result<Disk, StoreError>,
    waiting: BTreeMap<Prefix, Record>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the state directory {path}: {source}")]
    Open { path: String, source: fjall::Error },
    #[error("the state directory {path} is in use: another killick runs with it")]
    Locked { path: String },
    #[error("cannot read the stored state: {0}")]
    Read(fjall::Error),
    #[error("cannot write the state: {0}")]
    Write(fjall::Error),
    #[error("the disk does not take the state: {0}")]
    Sync(fjall::Error),
    #[error("the repair of the state was interrupted")]
    Interrupted,
    #[error("a stored record is damaged: {0}")]
    Damaged(String),
}

fn key(prefix: Prefix) -> Vec<u8> {
    match prefix {
        Prefix::V4 { addr, len } => [&[4, len], &addr.to_be_bytes()[..]].concat(),
        Prefix::V6 { addr, len } => [&[6, len], &addr.to_be_bytes()[..]].concat(),
    }
}

fn prefix_of(key: &[u8]) -> Option<Prefix> {
    match key {
        [4, len, rest @ ..] => Prefix::v4(u32::from_be_bytes(rest.try_into().ok()?), *len),
        [6, len, rest @ ..] => Prefix::v6(u128::from_be_bytes(rest.try_into().ok()?), *len),
        _ => None,
    }
}

impl Disk {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let open = || {
            let db = fjall::Database::builder(dir).worker_threads(1).open()?;
            let records = db.keyspace("bindings", fjall::KeyspaceCreateOptions::default)?;
            Ok(Self { db, records })
        };
        let path = dir.display().to_string();
        open().map_err(|source| match source {
            fjall::Error::Locked => StoreError::Locked { path },
            source => StoreError::Open { path, source },
        })
    }

    fn write(&self, records: &BTreeMap<Prefix, Record>) -> Result<(), StoreError> {
        let mut batch = self.db.batch();
        for (&prefix, record) in records {
            let value = serde_json::to_vec(record).expect("a record is plain data");
            batch.insert(&self.records, key(prefix), value);
        }
        let written = batch.durability(Some(fjall::PersistMode::Buffer)).commit();
        written.map_err(StoreError::Write)
    }
}

impl Repair {
    /// Takes its time: for a thread of its own.
    pub fn run(self) -> Repaired {
        let Self { dir, failed, waiting } = self;
        drop(failed); // it holds the lock
        let result = Disk::open(&dir).and_then(|disk| {
            disk.write(&waiting)?;
            disk.db.persist(fjall::PersistMode::SyncData).map_err(StoreError::Sync)?;
            Ok(disk)
        });
        Repaired { result, waiting }
    }
}

impl Store {
    /// Opens or makes the store in `dir`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            dir: dir.to_owned(),
            disk: Some(Disk::open(dir)?),
            pending: BTreeMap::new(),
            unsynced: false,
            error: None,
        })
    }

    /// All records, by prefix. A damaged one is an error for its own prefix only: it is passed to
    /// `damaged` and skipped.
    pub fn load(
        &self,
        mut damaged: impl FnMut(StoreError),
    ) -> Result<Vec<(Prefix, Record)>, StoreError> {
        let mut all = Vec::new();
        for item in self.disk.iter().flat_map(|disk| disk.records.iter()) {
            let (key, value) = item.into_inner().map_err(StoreError::Read)?;
            let record = serde_json::from_slice(&value).map_err(|e| e.to_string());
            match (prefix_of(&key), record) {
                (Some(prefix), Ok(record)) => all.push((prefix, record)),
                (None, _) => damaged(StoreError::Damaged(format!("key {key:?}"))),
                (Some(prefix), Err(what)) => {
                    damaged(StoreError::Damaged(format!("{prefix}: {what}")));
                }
            }
        }
        Ok(all)
    }

    /// Takes a record for the next [`Self::commit`]; a newer one replaces an older one.
    pub fn put(&mut self, prefix: Prefix, record: Record) {
        let known = self.pending.contains_key(&prefix);
        if known || self.pending.len() < PENDING_MAX {
            self.pending.insert(prefix, record);
        }
    }

    /// Writes what was put since the last commit, all or nothing, and lets it survive the process.
    /// On error everything is kept for the repair; until then there is nothing to be tried.
    pub fn commit(&mut self) -> Result<(), &StoreError> {
        let Some(disk) = self.disk.as_ref().filter(|_| self.error.is_none()) else { return Ok(()) };
        if self.pending.is_empty() {
            return Ok(());
        }
        match disk.write(&self.pending) {
            Ok(()) => {
                self.pending.clear();
                self.unsynced = true;
                Ok(())
            }
            Err(error) => Err(self.error.insert(error)),
        }
    }

    /// Why nothing is written, and how much waits.
    pub fn trouble(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        Some(format!("{error}; {} records wait", self.pending.len()))
    }

    /// What lets that which is committed survive a power cut, too; `None` when nothing is new. The
    /// driver asks every [`SYNC_EVERY`] and calls it in a thread: a disk may take its time.
    pub fn take_sync(
        &mut self,
    ) -> Option<impl FnOnce() -> Result<(), StoreError> + Send + 'static> {
        let disk = self.disk.clone().filter(|_| std::mem::take(&mut self.unsynced))?;
        Some(move || disk.db.persist(fjall::PersistMode::SyncData).map_err(StoreError::Sync))
    }

    /// The disk did not take what was committed: the store is to be repaired.
    pub fn handle_sync_error(&mut self, error: StoreError) {
        self.error.get_or_insert(error);
    }

    /// What to repair, if the store has failed. Records go on being put meanwhile.
    pub fn start_repair(&mut self) -> Option<Repair> {
        self.error.as_ref()?;
        let waiting = std::mem::take(&mut self.pending);
        Some(Repair { dir: self.dir.clone(), failed: self.disk.take(), waiting })
    }

    /// True when the store works again.
    pub fn end_repair(&mut self, Repaired { result, waiting }: Repaired) -> bool {
        match result {
            Ok(disk) => {
                self.disk = Some(disk);
                self.error = None;
            }
            Err(error) => {
                self.error = Some(error);
                for (prefix, record) in waiting {
                    self.pending.entry(prefix).or_insert(record); // what came meanwhile is newer
                }
            }
        }
        self.error.is_none()
    }
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
            store.take_sync().unwrap()().unwrap();
            assert!(store.take_sync().is_none());
            // Not committed: not there later.
            store.put(p6, gone.clone());
        }
        let store = Store::open(&dir).unwrap();
        let all = store.load(|e| panic!("{e}")).unwrap();
        assert_eq!(all, [(p4, gone), (p6, Record::Bound(bound))]);
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// A full disk cannot be had in a test, but what follows can: the error, and the repair.
    #[test]
    fn a_failed_store_keeps_what_is_put_and_comes_back() {
        let dir = std::env::temp_dir().join(format!("killick-repair-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let gone = |generation| {
            Record::Gone(Claim { generation: Generation(generation), anchor: AnchorId(2) })
        };
        let (p, q): (Prefix, Prefix) =
            ("10.1.1.7/32".parse().unwrap(), "10.1.1.8/32".parse().unwrap());
        let mut store = Store::open(&dir).unwrap();
        store.handle_sync_error(StoreError::Interrupted);
        store.put(p, gone(1));
        store.put(q, gone(1));
        assert!(store.commit().is_ok(), "told once, and tried again by the repair only");
        assert!(store.trouble().unwrap().ends_with("2 records wait"));
        // In vain: somebody else has the store.
        let mut repair = store.start_repair().unwrap();
        let other = repair.failed.take();
        store.put(p, gone(2));
        assert!(!store.end_repair(repair.run()));
        drop(other);
        assert!(store.trouble().unwrap().ends_with("2 records wait"));
        let repair = store.start_repair().unwrap();
        assert!(store.end_repair(repair.run()));
        assert_eq!(store.trouble(), None);
        store.commit().unwrap();
        let all = store.load(|e| panic!("{e}")).unwrap();
        assert_eq!(all, [(p, gone(2)), (q, gone(1))]);
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
