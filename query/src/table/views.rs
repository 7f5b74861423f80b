//! The read views of one statement: each table is looked at once, however often it is named.

use std::sync::Arc;

use ahash::AHashMap;
use datafusion::error::DataFusionError;
use shoal_engine::{Database, EngineError, Read, ReadView, TableHandle};
use shoal_rows::Router;
use shoal_sst::SstStore;
use shoal_types::TableId;
use tokio::sync::{Mutex, OnceCell};
use tokio_util::task::AbortOnDropHandle;

use crate::error::Result;
use crate::{QueryError, QueryStats};

/// Views and counters of one statement; travels in DataFusion's session configuration.
pub(crate) struct StatementViews {
    store: Arc<SstStore>,
    db: Arc<Database>,
    stats: Arc<QueryStats>,
    read: Read,
    views: Mutex<AHashMap<TableId, Arc<OnceCell<Arc<ReadView>>>>>,
    /// The views of a statement that changes one partition after another; what it changes is read
    /// here, all else there.
    whole: Option<Arc<StatementViews>>,
}

impl std::fmt::Debug for StatementViews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatementViews")
    }
}

impl StatementViews {
    pub(crate) fn new(db: Arc<Database>, stats: Arc<QueryStats>, read: Read) -> Self {
        Self {
            read,
            store: db.sst_store(),
            db,
            stats,
            views: Mutex::new(AHashMap::default()),
            whole: None,
        }
    }

    /// Views for a further step of a statement, whose queries see what they saw before.
    pub(crate) fn step_of(self, whole: Arc<Self>) -> Self {
        Self {
            whole: Some(whole),
            ..self
        }
    }

    /// The views that queries within a change look at.
    pub(super) fn whole(&self) -> &Self {
        self.whole.as_deref().unwrap_or(self)
    }

    /// The statement's counters.
    pub(crate) fn stats(&self) -> &Arc<QueryStats> {
        &self.stats
    }

    /// Files through the caches.
    pub(crate) fn store(&self) -> &Arc<SstStore> {
        &self.store
    }

    /// The one view of a table, or a partition, that this statement has.
    pub(crate) async fn view(&self, table: &TableHandle) -> Result<Arc<ReadView>> {
        let cell = self.cell(table).await;
        let view = cell
            .get_or_try_init(|| async {
                let view = self.db.read(table, &self.read).await?;
                Ok::<_, EngineError>(self.taken(view))
            })
            .await?;
        Ok(Arc::clone(view))
    }

    /// As [`Self::view`], of several; those of one shard that are taken now, at one position.
    pub(crate) async fn views(&self, tables: &[TableHandle]) -> Result<Vec<Arc<ReadView>>> {
        if let [table] = tables {
            return Ok(vec![self.view(table).await?]);
        }
        let mut missing = Vec::new();
        for table in tables {
            if !self.cell(table).await.initialized() {
                missing.push(table.clone());
            }
        }
        let read = self.db.read_all(&missing, &self.read).await?;
        for (table, view) in missing.iter().zip(read) {
            // Another scan of this statement may have been quicker; then its view counts.
            let _ = self.cell(table).await.set(self.taken(view));
        }
        let mut views = Vec::with_capacity(tables.len());
        for table in tables {
            views.push(self.view(table).await?);
        }
        Ok(views)
    }

    async fn cell(&self, table: &TableHandle) -> Arc<OnceCell<Arc<ReadView>>> {
        Arc::clone(self.views.lock().await.entry(table.id).or_default())
    }

    /// Notes where a view is of.
    fn taken(&self, view: ReadView) -> Arc<ReadView> {
        let mut positions = self.stats.positions.lock();
        match positions.iter_mut().find(|(shard, _)| *shard == view.shard) {
            Some((_, position)) => *position = (*position).max(view.position),
            None => positions.push((view.shard, view.position)),
        }
        let mut served = self.stats.served_by.lock();
        if !served.contains(&view.served_by) {
            served.push(view.served_by);
        }
        Arc::new(view)
    }

    /// How rows of a table find their partitions.
    pub(crate) fn router(
        &self,
        table: &TableHandle,
    ) -> std::result::Result<Option<Arc<Router>>, EngineError> {
        self.db.router(table)
    }

    /// Brings what this process knows of a table's columns and partitions up to date.
    pub(crate) async fn refresh(&self, table: &TableHandle) {
        if let Err(error) = self.db.sync_names().await {
            tracing::debug!(table = table.name, %error, "partitions not brought up to date");
        }
        if let Err(error) = self.db.refresh_schema(table).await {
            tracing::debug!(table = table.name, %error, "columns not brought up to date");
        }
    }

    /// Begins to take views of these tables, so that a wait for freshness goes on beside the planning.
    /// Ends with the handles.
    pub(crate) fn begin(self: &Arc<Self>, tables: Vec<TableHandle>) -> Vec<AbortOnDropHandle<()>> {
        let begin = |table| {
            let views = Arc::clone(self);
            AbortOnDropHandle::new(tokio::spawn(async move {
                // A failure is met again by whoever plans with the view.
                let _ = views.view(&table).await;
            }))
        };
        // Of several partitions the filters may leave some, which the planner finds out.
        let whole = tables.into_iter().filter(|table| table.layout.is_none());
        whole.map(begin).collect()
    }

    /// After a file of a view was found missing: whether views taken now may do better.
    pub(crate) async fn renew(&self) -> bool {
        let views = self.views.lock().await;
        let taken: Vec<_> = views.values().filter_map(|cell| cell.get()).collect();
        let renewed = taken.into_iter().map(|view| self.db.renew(view));
        futures::future::join_all(renewed).await.contains(&true)
    }
}

/// An error of the engine on its way through DataFusion.
pub(crate) fn external(error: impl Into<shoal_engine::EngineError>) -> DataFusionError {
    DataFusionError::External(Box::new(QueryError::from(error.into())))
}
