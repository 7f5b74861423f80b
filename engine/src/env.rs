//! What all shards of a process share: backends, limits, the memory budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lru::LruCache;
use object_store::ObjectStore;
use parking_lot::Mutex;
use shoal_meta::Catalog;
use shoal_sst::{ObjectLayout, SstStore};
use shoal_types::{Clock, ShardId, TableId, TableSchema};
use shoal_wal::log::{Log, LogReader, LogStore};
use tokio::sync::{Notify, Semaphore};

use crate::compaction::ByteBudget;
use crate::folder_lock::FolderLock;
use crate::peers::Peers;
use crate::shard::parts::PartLimits;
use crate::{EngineConfig, RowPredicate};

/// Shared by all shards.
pub(crate) struct Env {
    pub config: EngineConfig,
    /// Where requests are cut that may be sent again.
    pub stable_limits: PartLimits,
    pub logs: Arc<dyn LogStore>,
    pub store: Arc<dyn ObjectStore>,
    pub layout: ObjectLayout,
    pub catalog: Arc<Catalog>,
    pub clock: Arc<dyn Clock>,
    pub predicate: Option<Arc<dyn RowPredicate>>,
    /// Other nodes; `None`: this process is alone.
    pub peers: Option<Arc<dyn Peers>>,
    /// Schemas of tables whose shard has no replica here.
    pub remote_schemas: Mutex<LruCache<TableId, Arc<TableSchema>>>,
    /// Logs of shards that are about to be split off here, open already.
    pub prepared_logs: Mutex<HashMap<ShardId, PreparedLog>>,
    pub memory: MemoryBudget,
    pub sst: Arc<SstStore>,
    pub compaction_budget: Arc<ByteBudget>,
    /// Bytes fetched ahead of readers.
    pub warm_budget: ByteBudget,
    /// One file at a time is fetched ahead.
    pub warming: Semaphore,
    /// Held until the last task that may touch the data folder has ended.
    pub _lock: Option<FolderLock>,
    /// Wakes the maintenance task before its next tick.
    pub wake: Notify,
}

/// A log with a reader of it that stands at its beginning: opening them takes longer than writers are
/// to wait.
pub(crate) struct PreparedLog {
    pub log: Arc<dyn Log>,
    pub reader: Box<dyn LogReader>,
}

impl Env {
    /// This process, where nodes are named.
    pub(crate) fn name(&self) -> String {
        let peers = self.peers.as_ref();
        peers.map_or_else(|| "standalone".to_owned(), |peers| peers.me().to_string())
    }
}

/// Bytes of rows not yet in files, all shards together.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget {
    used: AtomicUsize,
    /// Told whenever memory was given back.
    pub relieved: Notify,
}

impl MemoryBudget {
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn change(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
            self.relieved.notify_waiters();
        }
    }
}
