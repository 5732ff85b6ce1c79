//! What survives kill -9: the bindings of this node, and the claims of those that left.
//!
//! Records of one turn of the loop are committed together, *before* the messages of that turn
//! leave: whatever a peer has heard from us, we still know after a crash. A commit reaches the
//! page cache, which a killed process leaves behind; once per [`SYNC_EVERY`] it also reaches the
//! disk, so that a power cut loses at most that much, and generations learnt from the peers on the
//! way up close the gap.
//!
//! A disk that is full or broken does not stop routing: the error is returned, shown by `status`
//! and counted, and the records wait in memory ([`PENDING_MAX`], newest per prefix) for the disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{AnchorId, Claim, Generation, Locator, MacAddr, MnId, Prefix};

/// Longest time for which an answered change is only in the page cache.
pub const SYNC_EVERY: Duration = Duration::from_millis(50);

/// Prefixes whose record waits for a disk that refuses writes; beyond it the state on disk is
/// given up as a whole and rewritten when the disk comes back.
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

/// A place for records.
pub struct Store {
    db: fjall::Database,
    records: fjall::Keyspace,
    pending: BTreeMap<Prefix, Record>,
    unsynced: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the state directory {path}: {source}")]
    Open { path: String, source: fjall::Error },
    #[error("cannot read the stored state: {0}")]
    Read(fjall::Error),
    #[error("cannot write the state, {waiting} records wait: {source}")]
    Write { waiting: usize, source: fjall::Error },
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

impl Store {
    /// Opens or makes the store in `dir`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let open = || {
            let db = fjall::Database::builder(dir).worker_threads(1).open()?;
            let records = db.keyspace("bindings", fjall::KeyspaceCreateOptions::default)?;
            Ok((db, records))
        };
        let (db, records) = open()
            .map_err(|source| StoreError::Open { path: dir.display().to_string(), source })?;
        Ok(Self { db, records, pending: BTreeMap::new(), unsynced: false })
    }

    /// All records, by prefix. A damaged one is an error for its own prefix only: it is passed to
    /// `damaged` and skipped.
    pub fn load(
        &self,
        mut damaged: impl FnMut(StoreError),
    ) -> Result<Vec<(Prefix, Record)>, StoreError> {
        let mut all = Vec::new();
        for item in self.records.iter() {
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
        if self.pending.len() < PENDING_MAX || self.pending.contains_key(&prefix) {
            self.pending.insert(prefix, record);
        }
    }

    /// Writes what was put since the last commit, all or nothing, and lets it survive the process.
    /// On error everything is kept for the next try.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut batch = self.db.batch();
        for (&prefix, record) in &self.pending {
            let value = serde_json::to_vec(record).expect("a record is plain data");
            batch.insert(&self.records, key(prefix), value);
        }
        let written = batch.durability(Some(fjall::PersistMode::Buffer)).commit();
        written.map_err(|source| StoreError::Write { waiting: self.pending.len(), source })?;
        self.pending.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Lets what is committed survive a power cut, too. The driver calls it every [`SYNC_EVERY`],
    /// from a thread of its own: a disk may take its time.
    pub fn syncer(&self) -> impl Fn() -> Result<(), StoreError> + Send + 'static {
        let db = self.db.clone();
        move || {
            db.persist(fjall::PersistMode::SyncData)
                .map_err(|source| StoreError::Write { waiting: 0, source })
        }
    }

    /// True once after a commit that has not been synced.
    pub fn take_unsynced(&mut self) -> bool {
        std::mem::take(&mut self.unsynced)
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
            assert!(store.take_unsynced());
            store.syncer()().unwrap();
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
