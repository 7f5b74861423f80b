//! Opening and closing the database.
//!
//! Order: read the catalog → (a new store: make the default schema and the shards) → list all
//! objects once → open the shards side by side → drop what no name leads to → begin background
//! work. A shard that cannot be opened is kept as unavailable with the reason; all others serve.
//!
//! What no name leads to: `create_tables` writes columns to the shard's log first and names to meta
//! after, `drop_table` the other way round. A crash in between leaves columns (and perhaps rows)
//! without a name: invisible to everybody. They are dropped here, before anybody could make more.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use lru::LruCache;
use object_store::{ObjectStore, path::Path};
use parking_lot::Mutex;
use shoal_meta::{Catalog, MetaError, RecordLimits, SchemaEntry, ShardEntry, settle_record_limits};
use shoal_sst::{ObjectLayout, SstError, SstStore, SstStoreOptions};
use shoal_types::{ShardId, TableId};
use shoal_wal::record::{Payload, SchemaChange};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::open_shard::open_as;
use super::{Backends, Database, Role, Served, Shared, Slot};
use crate::compaction::ByteBudget;
use crate::env::{Env, MemoryBudget};
use crate::folder_lock::FolderLock;
use crate::shard::gc::list_objects;
use crate::shard::open::Listed;
use crate::shard::parts::PartLimits;
use crate::shard::{Shard, Stopped};
use crate::{EngineConfig, EngineError};

/// The schema that every database has.
pub const DEFAULT_SCHEMA: &str = "public";
/// Tables dropped by one record when cleaning up.
const DROPS_A_RECORD: usize = 1024;

impl Database {
    /// Opens (or makes) the database. Damaged shards do not keep the others from opening.
    ///
    /// # Errors
    /// Meta unreadable, or no shard can be listed.
    pub async fn open(config: EngineConfig, backends: Backends) -> Result<Arc<Self>, EngineError> {
        Self::open_locked(config, backends, None, Role::Leader).await
    }

    /// Opens the database as one node of several, which leads and follows nothing until
    /// [`Database::set_role`] says so.
    ///
    /// # Errors
    /// Meta unreadable, or the store cannot be listed.
    pub async fn open_node(
        config: EngineConfig,
        backends: Backends,
    ) -> Result<Arc<Self>, EngineError> {
        Self::open_locked(config, backends, None, Role::None).await
    }

    pub(crate) async fn open_locked(
        config: EngineConfig,
        backends: Backends,
        lock: Option<FolderLock>,
        role: Role,
    ) -> Result<Arc<Self>, EngineError> {
        let layout = ObjectLayout::new("", &config.cluster_name);
        let mine = RecordLimits {
            bytes: config.record_bytes_max as u64,
            rows: config.record_rows_max as u64,
        };
        let settled = settle_record_limits(&*backends.meta, &config.cluster_name, mine).await?;
        let catalog = Catalog::open(backends.meta, &config.cluster_name).await?;
        let sst_options = SstStoreOptions {
            memory_bytes: config.cache_memory_bytes,
            metadata_bytes: config.cache_metadata_bytes,
            block_bytes: config.cache_block_bytes,
            disk: config.cache_disk.clone(),
        };
        let sst = SstStore::new(Arc::clone(&backends.store), &sst_options)
            .map_err(|e| EngineError::Invalid(format!("file cache: {e}")))?;
        let remote_schemas = NonZeroUsize::new(config.remote_schemas_max);
        let remote_schemas = LruCache::new(remote_schemas.unwrap_or(NonZeroUsize::MIN));
        let remote_schemas = Mutex::new(remote_schemas);
        let compaction_budget = Arc::new(ByteBudget::new(config.compaction_bytes_per_s));
        let warm_budget = ByteBudget::new(config.cache_warm_bytes_per_s);
        let env = Arc::new(Env {
            stable_limits: PartLimits::stable(settled),
            config,
            logs: backends.logs,
            store: backends.store,
            layout,
            catalog: Arc::new(catalog),
            clock: backends.clock,
            predicate: backends.predicate,
            peers: backends.peers,
            remote_schemas,
            prepared_logs: Mutex::default(),
            memory: MemoryBudget::default(),
            sst,
            compaction_budget,
            warm_budget,
            warming: Semaphore::new(1),
            wake: Notify::new(),
            _lock: lock,
        });
        prepare_catalog(&env).await?;
        let known = env.catalog.shards().into_iter();
        let born = known.filter(|(_, entry)| entry.is_born());
        let ids: Vec<ShardId> = born.map(|(id, _)| id).collect();
        let listed = list_objects(&*env.store, &env.layout, &ids).await?;
        let listed: Listed = listed
            .into_iter()
            .map(|(path, bytes)| (path.to_string(), bytes))
            .collect();
        let listed = Arc::new(listed);
        let opening = ids.into_iter().map(|id| {
            let (env, listed) = (Arc::clone(&env), Arc::clone(&listed));
            async move {
                if role == Role::None {
                    return (id, Served::NotPlaced);
                }
                // A task of its own: shards replay on all cores.
                let opened = tokio::spawn(open_as(env, id, Some(listed), role)).await;
                let opened = opened
                    .unwrap_or_else(|e| Err(EngineError::Invalid(format!("opening failed: {e}"))));
                (id, Served::of(id, opened))
            }
        });
        let opened = futures::future::join_all(opening).await.into_iter();
        let slots = opened
            .map(|(id, served)| Slot::new(id, role, served))
            .collect();
        let shared = Arc::new(Shared {
            env,
            slots,
            stop: CancellationToken::new(),
            holds: Arc::default(),
            routers: super::partitions::Routers::default(),
        });
        for shard in shared.led_shards() {
            drop_nameless(&shard).await;
        }
        let background = super::maintenance::start(&shared);
        Ok(Arc::new(Self {
            shared,
            background: Mutex::new(background),
        }))
    }

    /// Stops accepting work, waits for what is under way, closes logs. Data is kept; no flush is
    /// needed, the log has it.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        let background = std::mem::take(&mut *self.background.lock());
        for task in background {
            // A task that panicked has said so; there is nothing left to wait for.
            let _ = task.await;
        }
        for slot in self.shared.slots.all() {
            let served = std::mem::replace(
                &mut *slot.served.write(),
                Served::Unavailable {
                    why: "the database is shutting down".into(),
                    // By another process.
                    try_again: true,
                },
            );
            if let Served::Open(shard) = served {
                shard.pipeline.drained(Duration::from_secs(5)).await;
                shard.stop(Stopped::Closed);
                shard.join().await;
            }
        }
    }
}

async fn prepare_catalog(env: &Arc<Env>) -> Result<(), EngineError> {
    let now_ms = env.clock.now_ms();
    if env.catalog.shards().is_empty() {
        refuse_foreign_objects(env).await?;
        let entry = ShardEntry {
            term: 0,
            created_ms: now_ms,
            log: None,
            birth: None,
        };
        let fresh = || (ShardId::generate(), entry);
        let shards: Vec<_> = std::iter::repeat_with(fresh)
            .take(env.config.shards_or_cores())
            .collect();
        env.catalog.create_first_shards(&shards).await?;
    }
    if !env.catalog.has_schema(DEFAULT_SCHEMA) {
        let entry = SchemaEntry { created_ms: now_ms };
        match env.catalog.create_schema(DEFAULT_SCHEMA, entry).await {
            Ok(()) | Err(MetaError::Conflict) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// With an empty meta all objects in the store would look like garbage.
async fn refuse_foreign_objects(env: &Env) -> Result<(), EngineError> {
    let tables = env.layout.tables();
    let root = Path::from(tables.as_ref().trim_end_matches("/table"));
    let mut listed = env.store.list(Some(&root));
    let first = listed
        .try_next()
        .await
        .map_err(|e| SstError::from_store(&root, e))?;
    match first {
        None => Ok(()),
        Some(object) => Err(EngineError::Meta(MetaError::Refused(format!(
            "meta knows no shards of cluster {:?}, but the store holds {}; restore meta, or choose another cluster.name; nothing was changed",
            env.config.cluster_name, object.location
        )))),
    }
}

pub(super) async fn drop_nameless(shard: &Arc<Shard>) {
    let catalog = &shard.env.catalog;
    // By table: a unit that a named table's layout does not list may have come with a split that
    // meta has not been told of yet.
    let mut unknown: HashMap<TableId, Vec<TableId>> = HashMap::new();
    for schema in shard.state.read().fold.schemas() {
        if catalog.placement(schema.owner()).is_none() {
            unknown
                .entry(schema.owner())
                .or_default()
                .push(schema.table);
        }
    }
    if unknown.is_empty() {
        return;
    }
    let tables: Vec<TableId> = unknown.keys().copied().collect();
    // Another node may be about to name them; from here on it cannot.
    let nameless = match catalog.forsake(&tables, shard.env.clock.now_ms()).await {
        Ok(nameless) => nameless,
        Err(error) => {
            tracing::warn!(shard = %shard.id, %error, "tables without a name not looked for");
            return;
        }
    };
    let drop = |table| SchemaChange::Drop { table };
    let units = nameless.iter().filter_map(|table| unknown.remove(table));
    let nameless: Vec<SchemaChange> = units.flatten().map(drop).collect();
    if nameless.is_empty() {
        return;
    }
    tracing::info!(shard = %shard.id, tables = nameless.len(), "dropping tables that have no name");
    let patience = shard.patience();
    for part in nameless.chunks(DROPS_A_RECORD) {
        let record = Payload::Schema(part.to_vec());
        if let Err(error) = shard.submit(record, Vec::new(), patience).await {
            // They stay invisible; the next open tries again.
            tracing::warn!(shard = %shard.id, %error, "tables without a name not dropped yet");
            return;
        }
    }
}

/// Tables of a request, by shard.
pub(super) type ByShard<T> = HashMap<ShardId, Vec<T>>;
