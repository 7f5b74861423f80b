//! A whole database in one folder: log, objects and meta on the local disk.
//!
//! ```text
//! {data_dir}/LOCK         held by the process that serves the folder; its pid
//! {data_dir}/meta.redb    names, placement, terms
//! {data_dir}/wal/         segments of the local log
//! {data_dir}/objects/     manifests, SSTs, residue
//! ```
//!
//! The lock is the operating system's (it ends with the process, however that ends), so the durable
//! end of the log is a barrier: nobody else appends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_meta::{EmbeddedMetaStore, MetaError};
use shoal_types::Clock;
use shoal_wal::local::{LocalLogConfig, LocalLogStore};

use crate::database::Role;
use crate::folder_lock::FolderLock;
use crate::{Backends, Database, DurableLocalStore, EngineConfig, EngineError, RowPredicate};

/// Room in the log's queue beyond what the shards' in-flight budgets allow: claims, manifests,
/// headers.
const QUEUE_SLACK_BYTES: usize = 16 << 20;
/// Record headers beyond the row blocks that `record_bytes_max` bounds.
const RECORD_SLACK_BYTES: usize = 1 << 20;

/// What a folder holds, opened.
struct Opened {
    lock: FolderLock,
    logs: LocalLogStore,
    store: DurableLocalStore,
    meta: EmbeddedMetaStore,
}

fn open_folder(data_dir: &Path, config: &EngineConfig) -> Result<Opened, EngineError> {
    std::fs::create_dir_all(data_dir)
        .map_err(|e| EngineError::Invalid(format!("{}: {e}", data_dir.display())))?;
    let lock = FolderLock::take(data_dir)?;
    let wal_dir = data_dir.join("wal");
    let meta_path = data_dir.join("meta.redb");
    if !meta_path.exists() && wal_dir.exists() {
        let empty = std::fs::read_dir(&wal_dir).is_ok_and(|mut d| d.next().is_none());
        if !empty {
            return Err(EngineError::Meta(MetaError::Refused(format!(
                "{} is missing, but {} has a log: the names of all tables are in it; restore it, nothing was changed",
                meta_path.display(),
                wal_dir.display()
            ))));
        }
    }
    let meta = EmbeddedMetaStore::open(&meta_path)?;
    let store = DurableLocalStore::open(data_dir.join("objects"))
        .map_err(|e| EngineError::Invalid(format!("{}: {e}", data_dir.display())))?;
    let shards = config.shards_or_cores();
    let mut log_config = LocalLogConfig::new(wal_dir);
    log_config.cluster = config.cluster_name.clone();
    log_config.record_bytes_max = config.record_bytes_max + RECORD_SLACK_BYTES;
    log_config.queue_bytes_max = config
        .inflight_bytes_max
        .saturating_mul(shards.max(1))
        .saturating_add(QUEUE_SLACK_BYTES);
    let logs = LocalLogStore::open(log_config)?;
    Ok(Opened {
        lock,
        logs,
        store,
        meta,
    })
}

impl Database {
    /// Opens (or makes) the database in a folder and locks it.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: another process has it, or it cannot be read;
    /// [`EngineError::Meta`]; [`EngineError::Log`]. Damage of one shard is no error here.
    pub async fn open_embedded(
        data_dir: impl AsRef<Path>,
        config: EngineConfig,
        clock: Arc<dyn Clock>,
        predicate: Option<Arc<dyn RowPredicate>>,
    ) -> Result<Arc<Self>, EngineError> {
        let data_dir: PathBuf = data_dir.as_ref().to_path_buf();
        let limits = config.clone();
        let opened = tokio::task::spawn_blocking(move || open_folder(&data_dir, &limits))
            .await
            .map_err(|e| EngineError::Invalid(format!("opening the data folder: {e}")))??;
        let backends = Backends {
            logs: Arc::new(opened.logs),
            store: Arc::new(opened.store),
            meta: Arc::new(opened.meta),
            clock,
            predicate,
            peers: None,
        };
        Self::open_locked(config, backends, Some(opened.lock), Role::Leader).await
    }
}
