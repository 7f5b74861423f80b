//! What all sessions of a process share: memory and spill limits, the catalog, the functions, the
//! list of running statements.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::AHashMap;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{MemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use parking_lot::Mutex;
use shoal_engine::Database;
use shoal_types::TableId;
use tokio::sync::Semaphore;

use crate::catalog::{CATALOG, ShoalCatalog, ShoalCatalogs};
use crate::error::{Kind, Result};
use crate::memory::{self, StatementMemory};
use crate::running::{Running, StatementGuard};
use crate::table::LastRows;
use crate::threads::StatementThreads;
use crate::{QueryConfig, QueryError, QueryId, RunningStatement, Session, SessionOptions};

/// Plans and runs the statements of all sessions; one a process.
pub struct QueryEngine {
    db: Arc<Database>,
    config: QueryConfig,
    base: SessionContext,
    catalog: Arc<ShoalCatalog>,
    running: Arc<Running>,
    permits: Arc<Semaphore>,
    threads: StatementThreads,
    /// Tables with an UPDATE or DELETE under way.
    changing: Mutex<AHashMap<TableId, Weak<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryEngine")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl QueryEngine {
    /// An engine over an open database.
    ///
    /// # Errors
    /// The spill folder cannot be used.
    pub fn new(db: Arc<Database>, config: QueryConfig) -> Result<Arc<Self>> {
        let runtime = runtime(&config)?;
        let threads = StatementThreads::start(partitions(&config))?;
        let running = Arc::new(Running::default());
        let catalog = Arc::new(ShoalCatalog::new(Arc::clone(&db), Arc::clone(&running)));
        let catalogs = Arc::new(ShoalCatalogs::new(Arc::clone(&catalog)));
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(session_config(&config))
            .with_runtime_env(runtime)
            .with_catalog_list(catalogs)
            .with_physical_optimizer_rules(crate::physical_rules::rules())
            .with_optimizer_rule(Arc::new(LastRows))
            .with_analyzer_rule(Arc::new(crate::literals::TextLiterals))
            .with_analyzer_rule(Arc::new(crate::arithmetic::CheckedArithmetic))
            .with_analyzer_rule(Arc::new(crate::guards::Guards))
            .build();
        let base = SessionContext::new_with_state(state);
        base.register_udf(crate::decimals::function());
        base.register_udaf(crate::sums::function());
        Ok(Arc::new(Self {
            db,
            base,
            catalog,
            running,
            permits: Arc::new(Semaphore::new(config.concurrent_statements_max.max(1))),
            changing: Mutex::new(AHashMap::default()),
            threads,
            config,
        }))
    }

    /// A session: its settings live as long as it does.
    #[must_use]
    pub fn session(self: &Arc<Self>, options: SessionOptions) -> Session {
        Session::new(Arc::clone(self), options)
    }

    /// The context that sessions are copied from: what is registered here before (functions,
    /// the `pg_catalog` schema), every later session has.
    #[must_use]
    pub fn base_context(&self) -> &SessionContext {
        &self.base
    }

    /// The database below.
    #[must_use]
    pub fn database(&self) -> &Arc<Database> {
        &self.db
    }

    /// Where statements run.
    pub(crate) fn threads(&self) -> &StatementThreads {
        &self.threads
    }

    /// The limits.
    #[must_use]
    pub fn config(&self) -> &QueryConfig {
        &self.config
    }

    /// The catalog named `shoal`, whose `register_schema` takes further read-only schemas.
    #[must_use]
    pub fn catalog(&self) -> &Arc<ShoalCatalog> {
        &self.catalog
    }

    /// All running statements, oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<RunningStatement> {
        self.running.list()
    }

    /// Cancels a running statement; `false`: there is none with this id.
    pub fn cancel(&self, id: QueryId) -> bool {
        self.running.cancel(id)
    }

    /// Memory that statements hold right now, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.base.runtime_env().memory_pool.reserved()
    }

    /// Bytes spilled to disk right now.
    #[must_use]
    pub fn spill_bytes(&self) -> u64 {
        self.base.runtime_env().disk_manager.used_disk_space()
    }

    /// The lock that UPDATE and DELETE statements of a table take turns on.
    pub(crate) fn change_lock(&self, table: TableId) -> Arc<tokio::sync::Mutex<()>> {
        let mut changing = self.changing.lock();
        if let Some(lock) = changing.get(&table).and_then(Weak::upgrade) {
            return lock;
        }
        changing.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        changing.insert(table, Arc::downgrade(&lock));
        lock
    }

    /// Lists a statement and waits for its turn.
    pub(crate) async fn admit(
        &self,
        user: &str,
        schema: &str,
        sql: &str,
        timeout: Option<Duration>,
    ) -> Result<StatementGuard> {
        let mut guard = self.running.begin(user, schema, sql, timeout);
        let permits = Arc::clone(&self.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let waited = guard
                    .bound(async {
                        permits.acquire_owned().await.map_err(|_| {
                            QueryError::new(Kind::UNAVAILABLE, "the database is shutting down")
                        })
                    })
                    .await;
                waited.map_err(|error| {
                    if error.code == "timeout" {
                        QueryError::new(
                            Kind::BUSY,
                            format!(
                                "{} statements are running, as many as query.concurrent_statements_max allows, and none ended in time",
                                self.config.concurrent_statements_max
                            ),
                        )
                    } else {
                        error
                    }
                })?
            }
        };
        guard.hold(permit);
        Ok(guard)
    }
}

/// Consumers named when memory runs out.
const CONSUMERS_NAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).expect("not zero");

fn runtime(config: &QueryConfig) -> Result<Arc<RuntimeEnv>> {
    let pool: Arc<dyn MemoryPool> = Arc::new(TrackConsumersPool::new(
        StatementMemory::new(config.memory_bytes_max),
        CONSUMERS_NAMED,
    ));
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![config.spill_dir.clone()]))
        .with_max_temp_directory_size(config.spill_bytes_max)
        .with_max_spill_merge_fan_in(memory::merge_fan_in(config.memory_bytes_max));
    std::fs::create_dir_all(&config.spill_dir).map_err(|error| {
        QueryError::new(
            Kind::IO,
            format!("spill folder {}: {error}", config.spill_dir.display()),
        )
    })?;
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(pool)
        .with_disk_manager_builder(disk)
        .build_arc()?)
}

/// Parts that a large statement runs in at the same time.
fn partitions(config: &QueryConfig) -> usize {
    match config.target_partitions {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

fn session_config(config: &QueryConfig) -> SessionConfig {
    let mut session = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, "public")
        // Our own information_schema never asks for every table at once.
        .with_information_schema(false)
        .with_target_partitions(partitions(config))
        .with_batch_size(8192);
    let options = session.options_mut();
    options.sql_parser.collect_spans = true;
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.sql_parser.map_string_types_to_utf8view = true;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    options.execution.collect_statistics = true;
    // What every sort keeps for its merge from its first row on. The pool leaves room for merges;
    // this only has the last one begin with something.
    options.execution.sort_spill_reservation_bytes =
        (config.memory_bytes_max / 64).clamp(64 << 10, 8 << 20);
    options.execution.time_zone = None;
    options.optimizer.prefer_existing_sort = false;
    // DataFusion 55 loses a bound of `min(a), max(a)` where one of several scans has only NULLs or no
    // row, and then skips files with the true one (apache/datafusion#25147, #24816).
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    session
}
