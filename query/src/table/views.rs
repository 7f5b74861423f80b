//! The read views of one statement: each table is looked at once, however often it is named.

use std::sync::Arc;

use ahash::AHashMap;
use datafusion::error::DataFusionError;
use shoal_engine::{Database, Read, ReadView, TableHandle};
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
        }
    }

    /// The statement's counters.
    pub(crate) fn stats(&self) -> &Arc<QueryStats> {
        &self.stats
    }

    /// Files through the caches.
    pub(crate) fn store(&self) -> &Arc<SstStore> {
        &self.store
    }

    /// The one view of a table that this statement has.
    pub(crate) async fn view(&self, table: &TableHandle) -> Result<Arc<ReadView>> {
        let cell = Arc::clone(self.views.lock().await.entry(table.id).or_default());
        let view = cell
            .get_or_try_init(|| async {
                let view = self.db.read(table, &self.read).await?;
                let mut positions = self.stats.positions.lock();
                match positions.iter_mut().find(|(shard, _)| *shard == view.shard) {
                    Some((_, position)) => *position = (*position).max(view.position),
                    None => positions.push((view.shard, view.position)),
                }
                let mut served = self.stats.served_by.lock();
                if !served.contains(&view.served_by) {
                    served.push(view.served_by);
                }
                Ok::<_, shoal_engine::EngineError>(Arc::new(view))
            })
            .await?;
        Ok(Arc::clone(view))
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
        tables.into_iter().map(begin).collect()
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
