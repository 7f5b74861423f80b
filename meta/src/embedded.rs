//! A [`MetaStore`] in one local file, on `redb`.
//!
//! Order of a commit: compares are checked inside the write transaction, so that nothing can come
//! between check and change; redb's commit fsyncs once. Transactions that arrive while one is being
//! made durable are committed together by the next fsync (group commit), each judged on the state
//! that the ones before it left. A crash leaves all of a group or nothing of it; none of it was
//! acknowledged before.
//!
//! Nobody else has the file, so keys that were registered by a process that ended are removed when
//! it is opened again.
//!
//! After a failed write (no space) redb refuses all further work on the open file. The file itself
//! is at the last commit, so it is closed and opened again before the next transaction: when space
//! returns, so do commits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::feed::Feed;
use crate::store::{
    Change, Compare, Limits, Listing, MetaError, MetaStore, Op, Registration, Txn, Watch,
    check_limits,
};

/// Values are prefixed with the revision that put them, 8 bytes big-endian.
const VALUES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("values");
const INFO: TableDefinition<'static, &str, u64> = TableDefinition::new("info");
/// Keys that go when the process does.
const REGISTERED: TableDefinition<'static, &str, ()> = TableDefinition::new("registered");
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// Version of the file's layout.
pub const META_FILE_FORMAT: u64 = 1;
/// How often and at what intervals a file in use is tried again: about a second.
const HELD_TRIES: u32 = 20;
const HELD_PAUSE: Duration = Duration::from_millis(50);
const LIMITS: Limits = Limits {
    txn_ops: 8192,
    txn_bytes: 64 << 20,
};
/// Transactions of one group commit, and of the queue before it.
const GROUP_MAX: usize = 256;

/// Meta in one local file.
#[derive(Debug)]
pub struct EmbeddedMetaStore {
    path: PathBuf,
    database: Arc<Handle>,
    queue: mpsc::Sender<Pending>,
    feed: Arc<Feed>,
}

/// The open file; `None` while it must be opened again.
#[derive(Debug)]
struct Handle {
    path: PathBuf,
    open: RwLock<Option<Database>>,
}

impl Handle {
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        if let Some(database) = &*self.open.read() {
            return work(database);
        }
        let mut open = self.open.write();
        if open.is_none() {
            *open = Some(create(&self.path)?);
        }
        match &*open {
            Some(database) => work(database),
            None => Err(redb::Error::Corrupted("the meta file is not open".into())),
        }
    }

    fn close(&self) {
        *self.open.write() = None;
    }
}

#[derive(Debug)]
struct Pending {
    txn: Txn,
    /// Its keys go when the process does.
    registers: bool,
    answer: oneshot::Sender<Result<u64, MetaError>>,
}

impl EmbeddedMetaStore {
    /// Opens the file, making it if it is not there.
    ///
    /// # Errors
    /// [`MetaError::Store`] naming the file: damaged, of another version, or held by another
    /// process. The file is left as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MetaError> {
        let path = path.as_ref().to_path_buf();
        let fail = |what: String| MetaError::Store(format!("{}: {what}", path.display()));
        let database = create(&path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                fail("another process has it open".to_owned())
            }
            redb::DatabaseError::UpgradeRequired(version) => fail(format!(
                "redb file format {version} is not the one this version reads"
            )),
            other => fail(format!("cannot be opened, it may be damaged: {other}")),
        })?;
        let (format, revision) = prepare(&database).map_err(|e| fail(format!("damaged: {e}")))?;
        if format != META_FILE_FORMAT {
            return Err(fail(format!(
                "written in meta format {format}, this version reads {META_FILE_FORMAT}"
            )));
        }
        let database = Arc::new(Handle {
            path: path.clone(),
            open: RwLock::new(Some(database)),
        });
        let (queue, pending) = mpsc::channel(GROUP_MAX);
        let feed = Feed::new(revision);
        let (writer, told) = (Arc::clone(&database), Arc::clone(&feed));
        std::thread::Builder::new()
            .name("meta-commit".into())
            .spawn(move || commit_loop(&writer, pending, &told))
            .map_err(|e| fail(format!("cannot start its writer: {e}")))?;
        Ok(Self {
            path,
            database,
            queue,
            feed,
        })
    }

    fn named(&self, what: &dyn std::fmt::Display) -> String {
        format!("{}: {what}", self.path.display())
    }

    async fn send(&self, txn: Txn, registers: bool) -> Result<u64, MetaError> {
        send(&self.queue, txn, registers)
            .await
            .map_err(|e| match e {
                MetaError::Store(what) => MetaError::Store(self.named(&what)),
                MetaError::Unknown(what) => MetaError::Unknown(self.named(&what)),
                other => other,
            })
    }
}

/// Opens the file. A store of this process that was dropped a moment ago lets go of the file only
/// when its writer thread has ended, so that is waited for.
fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    let mut tries = 0;
    loop {
        match Database::create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if tries < HELD_TRIES => {
                tries += 1;
                std::thread::sleep(HELD_PAUSE);
            }
            other => return other,
        }
    }
}

/// Makes the tables of a new file and removes what an ended process had registered; the file's
/// format and revision.
fn prepare(database: &Database) -> Result<(u64, u64), redb::Error> {
    let txn = database.begin_write()?;
    let found = {
        let mut values = txn.open_table(VALUES)?;
        let mut registered = txn.open_table(REGISTERED)?;
        let mut info = txn.open_table(INFO)?;
        let format = info.get(FORMAT_KEY)?.map(|v| v.value());
        let mut revision = info.get(REVISION_KEY)?.map_or(0, |v| v.value());
        if format.is_none() {
            info.insert(FORMAT_KEY, META_FILE_FORMAT)?;
            info.insert(REVISION_KEY, 0)?;
        }
        let mut gone = false;
        for entry in registered.extract_if(|_, ()| true)? {
            gone |= values.remove(entry?.0.value())?.is_some();
        }
        if gone {
            revision += 1;
            info.insert(REVISION_KEY, revision)?;
        }
        (format.unwrap_or(META_FILE_FORMAT), revision)
    };
    txn.commit()?;
    Ok(found)
}

fn commit_loop(database: &Handle, mut pending: mpsc::Receiver<Pending>, feed: &Feed) {
    while let Some(first) = pending.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX {
            match pending.try_recv() {
                Ok(next) => group.push(next),
                Err(_) => break,
            }
        }
        let outcome = database.with(|d| commit_group(d, &group));
        match outcome {
            Ok(results) => {
                for (waiting, result) in group.into_iter().zip(results) {
                    let result = result.map(|(revision, changes)| {
                        feed.push(revision, changes);
                        revision
                    });
                    let _ = waiting.answer.send(result);
                }
            }
            Err(e) => {
                database.close();
                let error = MetaError::Unknown(format!("cannot be written: {e}"));
                for waiting in group {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }
}

type Values<'txn> = redb::Table<'txn, &'static str, &'static [u8]>;

/// Each transaction's revision and changes, or why it was not applied.
type Outcome = Result<(u64, Vec<Change>), MetaError>;

fn commit_group(database: &Database, group: &[Pending]) -> Result<Vec<Outcome>, redb::Error> {
    let txn = database.begin_write()?;
    let mut results = Vec::with_capacity(group.len());
    {
        let mut values = txn.open_table(VALUES)?;
        let mut registered = txn.open_table(REGISTERED)?;
        let mut info = txn.open_table(INFO)?;
        let mut revision = info.get(REVISION_KEY)?.map_or(0, |v| v.value());
        for waiting in group {
            let mut holds = true;
            for compare in &waiting.txn.compares {
                holds &= compare_holds(&values, compare)?;
            }
            if !holds {
                results.push(Err(MetaError::Conflict));
                continue;
            }
            revision += 1;
            let mut changes = Vec::with_capacity(waiting.txn.ops.len());
            for op in &waiting.txn.ops {
                apply(&mut values, op, revision, &mut changes)?;
            }
            for change in &changes {
                if change.value.is_some() && waiting.registers {
                    registered.insert(change.key.as_str(), ())?;
                } else {
                    registered.remove(change.key.as_str())?;
                }
            }
            results.push(Ok((revision, changes)));
        }
        info.insert(REVISION_KEY, revision)?;
    }
    txn.commit()?;
    Ok(results)
}

fn compare_holds(values: &Values<'_>, compare: &Compare) -> Result<bool, redb::Error> {
    let (key, wanted) = match compare {
        Compare::Absent(key) => (key, None),
        Compare::Revision(key, revision) => (key, Some(*revision)),
        Compare::NotPutSince(prefix, revision) => {
            for entry in values.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                if split_value(value.value()).is_none_or(|(r, _)| r > *revision) {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
    };
    let found = values
        .get(key.as_str())?
        .and_then(|v| split_value(v.value()).map(|(revision, _)| revision));
    Ok(found == wanted)
}

fn apply(
    values: &mut Values<'_>,
    op: &Op,
    revision: u64,
    changes: &mut Vec<Change>,
) -> Result<(), redb::Error> {
    let mut changed = |key: String, value: Option<Vec<u8>>| {
        changes.push(Change {
            key,
            value,
            revision,
        });
    };
    match op {
        Op::Put(key, value) => {
            let mut stored = Vec::with_capacity(value.len() + 8);
            stored.extend_from_slice(&revision.to_be_bytes());
            stored.extend_from_slice(value);
            values.insert(key.as_str(), stored.as_slice())?;
            changed(key.clone(), Some(value.clone()));
        }
        Op::Delete(key) => {
            if values.remove(key.as_str())?.is_some() {
                changed(key.clone(), None);
            }
        }
        Op::DeletePrefix(prefix) => {
            let mut keys = Vec::new();
            for entry in values.range(prefix.as_str()..)? {
                let (key, _) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                keys.push(key.value().to_owned());
            }
            for key in keys {
                values.remove(key.as_str())?;
                changed(key, None);
            }
        }
    }
    Ok(())
}

fn split_value(stored: &[u8]) -> Option<(u64, &[u8])> {
    let (revision, value) = stored.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*revision), value))
}

fn read_one(database: &Database, key: &str) -> Result<Option<Option<(Vec<u8>, u64)>>, redb::Error> {
    let values = database.begin_read()?.open_table(VALUES)?;
    Ok(values
        .get(key)?
        .map(|v| split_value(v.value()).map(|(r, v)| (v.to_vec(), r))))
}

fn read_all(handle: &Handle, prefix: &str) -> Result<Listing, MetaError> {
    let mut short = None;
    let listing = handle.with(|database| {
        // One read transaction: the keys and the revision belong together.
        let txn = database.begin_read()?;
        let values = txn.open_table(VALUES)?;
        let revision = txn.open_table(INFO)?.get(REVISION_KEY)?;
        let mut entries = Vec::new();
        for entry in values.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let key = key.value().to_owned();
            match split_value(value.value()) {
                Some((r, v)) => entries.push((key, v.to_vec(), r)),
                None => short = Some(key),
            }
        }
        Ok(Listing {
            entries,
            revision: revision.map_or(0, |r| r.value()),
        })
    });
    match (listing, short) {
        (Ok(_), Some(key)) => Err(short_value(&key)),
        (Ok(listing), None) => Ok(listing),
        (Err(e), _) => Err(MetaError::Store(format!("{}: {e}", handle.path.display()))),
    }
}

/// Reads everything below a prefix without blocking the runtime.
async fn list_all(database: Arc<Handle>, prefix: String) -> Result<Listing, MetaError> {
    tokio::task::spawn_blocking(move || read_all(&database, &prefix))
        .await
        .unwrap_or_else(|e| Err(MetaError::Store(format!("listing failed: {e}"))))
}

fn short_value(key: &str) -> MetaError {
    MetaError::Damaged {
        key: key.to_owned(),
        what: "the stored value is shorter than its revision".into(),
    }
}

/// Sends a transaction to the writer and waits until it is durable.
async fn send(queue: &mpsc::Sender<Pending>, txn: Txn, registers: bool) -> Result<u64, MetaError> {
    check_limits(&txn, LIMITS)?;
    let (answer, outcome) = oneshot::channel();
    let pending = Pending {
        txn,
        registers,
        answer,
    };
    let stopped = || "its writer has stopped".to_owned();
    queue
        .send(pending)
        .await
        .map_err(|_| MetaError::Store(stopped()))?;
    outcome
        .await
        .unwrap_or_else(|_| Err(MetaError::Unknown(stopped())))
}

#[async_trait]
impl MetaStore for EmbeddedMetaStore {
    fn limits(&self) -> Limits {
        LIMITS
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        match self
            .database
            .with(|d| read_one(d, key))
            .map_err(|e| MetaError::Store(self.named(&e)))?
        {
            None => Ok(None),
            Some(None) => Err(short_value(key)),
            Some(found) => Ok(found),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        list_all(Arc::clone(&self.database), prefix.to_owned()).await
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        self.send(txn, false).await
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        let database = Arc::downgrade(&self.database);
        let wanted = prefix.to_owned();
        self.feed.watch(prefix, after, move || {
            let (database, wanted) = (database.upgrade(), wanted.clone());
            async move {
                match database {
                    Some(database) => list_all(database, wanted).await,
                    None => Err(MetaError::Store("the meta file is closed".into())),
                }
            }
        })
    }

    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        _ttl: Duration,
    ) -> Result<Registration, MetaError> {
        let key = key.to_owned();
        let txn = Txn {
            compares: condition.into_iter().collect(),
            ops: vec![Op::Put(key.clone(), value)],
        };
        let revision = self.send(txn, true).await?;
        // Weak: the writer, and with it the file, closes with the store.
        let (database, queue) = (Arc::downgrade(&self.database), self.queue.downgrade());
        let feed = Arc::clone(&self.feed);
        Ok(Registration::keep(revision, move |kept| async move {
            let current = || {
                let database = database.upgrade();
                let found = database.and_then(|d| d.with(|d| read_one(d, &key)).ok());
                std::future::ready(found.flatten().flatten().map(|(_, r)| r))
            };
            let ours = feed.keep(kept, revision, current).await;
            if let (true, Some(queue)) = (ours, queue.upgrade()) {
                let removal = Txn::default()
                    .when(Compare::Revision(key.clone(), revision))
                    .then(Op::Delete(key.clone()));
                // What fails is removed when the file is opened the next time.
                let _ = send(&queue, removal, false).await;
            }
        }))
    }
}
