//! A [`MetaStore`] in one local file, on `redb`.
//!
//! Order of a commit: compares are checked inside the write transaction, so that nothing can come
//! between check and change; redb's commit fsyncs once. Transactions that arrive while one is being
//! made durable are committed together by the next fsync (group commit), each judged on the state
//! that the ones before it left. A crash leaves all of a group or nothing of it; none of it was
//! acknowledged before.
//!
//! After a failed write (no space) redb refuses all further work on the open file. The file itself
//! is at the last commit, so it is closed and opened again before the next transaction: when space
//! returns, so do commits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::store::{Compare, MetaError, MetaStore, Op, Txn};

/// Values are prefixed with the revision that put them, 8 bytes big-endian.
const VALUES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("values");
const INFO: TableDefinition<'static, &str, u64> = TableDefinition::new("info");
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// Version of the file's layout.
pub const META_FILE_FORMAT: u64 = 1;
/// How often and at what intervals a file in use is tried again: about a second.
const HELD_TRIES: u32 = 20;
const HELD_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// Transactions of one group commit, and of the queue before it.
const GROUP_MAX: usize = 256;

/// Meta in one local file.
#[derive(Debug)]
pub struct EmbeddedMetaStore {
    path: PathBuf,
    database: Arc<Handle>,
    queue: mpsc::Sender<Pending>,
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
        let format = prepare(&database).map_err(|e| fail(format!("damaged: {e}")))?;
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
        let writer = Arc::clone(&database);
        std::thread::Builder::new()
            .name("meta-commit".into())
            .spawn(move || commit_loop(&writer, pending))
            .map_err(|e| fail(format!("cannot start its writer: {e}")))?;
        Ok(Self {
            path,
            database,
            queue,
        })
    }

    fn failed(&self, what: &dyn std::fmt::Display) -> MetaError {
        MetaError::Store(format!("{}: {what}", self.path.display()))
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

/// Makes the tables of a new file; returns the file's format.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let txn = database.begin_write()?;
    let format = {
        txn.open_table(VALUES)?;
        let mut info = txn.open_table(INFO)?;
        let found = info.get(FORMAT_KEY)?.map(|v| v.value());
        if found.is_none() {
            info.insert(FORMAT_KEY, META_FILE_FORMAT)?;
            info.insert(REVISION_KEY, 0)?;
        }
        found.unwrap_or(META_FILE_FORMAT)
    };
    txn.commit()?;
    Ok(format)
}

fn commit_loop(database: &Handle, mut pending: mpsc::Receiver<Pending>) {
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
                    let _ = waiting.answer.send(result);
                }
            }
            Err(e) => {
                database.close();
                let error = MetaError::Store(format!("cannot be written: {e}"));
                for waiting in group {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }
}

fn commit_group(
    database: &Database,
    group: &[Pending],
) -> Result<Vec<Result<u64, MetaError>>, redb::Error> {
    let txn = database.begin_write()?;
    let mut results = Vec::with_capacity(group.len());
    {
        let mut values = txn.open_table(VALUES)?;
        let mut info = txn.open_table(INFO)?;
        let mut revision = info.get(REVISION_KEY)?.map_or(0, |v| v.value());
        for waiting in group {
            let mut holds = true;
            for compare in &waiting.txn.compares {
                let (key, wanted) = match compare {
                    Compare::Absent(key) => (key, None),
                    Compare::Revision(key, revision) => (key, Some(*revision)),
                };
                let found = values
                    .get(key.as_str())?
                    .and_then(|v| split_value(v.value()).map(|(revision, _)| revision));
                holds &= found == wanted;
            }
            if !holds {
                results.push(Err(MetaError::Conflict));
                continue;
            }
            revision += 1;
            for op in &waiting.txn.ops {
                match op {
                    Op::Put(key, value) => {
                        let mut stored = Vec::with_capacity(value.len() + 8);
                        stored.extend_from_slice(&revision.to_be_bytes());
                        stored.extend_from_slice(value);
                        values.insert(key.as_str(), stored.as_slice())?;
                    }
                    Op::Delete(key) => {
                        values.remove(key.as_str())?;
                    }
                }
            }
            results.push(Ok(revision));
        }
        info.insert(REVISION_KEY, revision)?;
    }
    txn.commit()?;
    Ok(results)
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

type Listed = (String, Option<(Vec<u8>, u64)>);

fn read_all(database: &Database, prefix: &str) -> Result<Vec<Listed>, redb::Error> {
    let values = database.begin_read()?.open_table(VALUES)?;
    let mut found = Vec::new();
    for entry in values.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((
            key.value().to_owned(),
            split_value(value.value()).map(|(r, v)| (v.to_vec(), r)),
        ));
    }
    Ok(found)
}

fn short_value(key: &str) -> MetaError {
    MetaError::Damaged {
        key: key.to_owned(),
        what: "the stored value is shorter than its revision".into(),
    }
}

#[async_trait]
impl MetaStore for EmbeddedMetaStore {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        match self
            .database
            .with(|d| read_one(d, key))
            .map_err(|e| self.failed(&e))?
        {
            None => Ok(None),
            Some(None) => Err(short_value(key)),
            Some(found) => Ok(found),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>, u64)>, MetaError> {
        let database = Arc::clone(&self.database);
        let wanted = prefix.to_owned();
        let listed = tokio::task::spawn_blocking(move || database.with(|d| read_all(d, &wanted)))
            .await
            .map_err(|e| self.failed(&e))?
            .map_err(|e| self.failed(&e))?;
        listed
            .into_iter()
            .map(|(key, found)| match found {
                Some((value, revision)) => Ok((key, value, revision)),
                None => Err(short_value(&key)),
            })
            .collect()
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        let (answer, outcome) = oneshot::channel();
        self.queue
            .send(Pending { txn, answer })
            .await
            .map_err(|_| self.failed(&"its writer has stopped"))?;
        match outcome.await {
            Ok(Err(MetaError::Store(what))) => Err(self.failed(&what)),
            Ok(result) => result,
            Err(_) => Err(self.failed(&"its writer has stopped")),
        }
    }
}
