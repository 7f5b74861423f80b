//! The read views of one statement: each table is looked at once, however often it is named.

use std::sync::Arc;

use ahash::AHashMap;
use shoal_engine::{Database, ReadView, TableHandle};
use shoal_types::TableId;
use tokio::sync::{Mutex, OnceCell};

use crate::QueryStats;
use crate::error::Result;

/// Views and counters of one statement; travels in DataFusion's session configuration.
pub(crate) struct StatementViews {
    db: Arc<Database>,
    stats: Arc<QueryStats>,
    views: Mutex<AHashMap<TableId, Arc<OnceCell<Arc<ReadView>>>>>,
}

impl std::fmt::Debug for StatementViews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatementViews")
    }
}

impl StatementViews {
    pub(crate) fn new(db: Arc<Database>, stats: Arc<QueryStats>) -> Self {
        Self {
            db,
            stats,
            views: Mutex::new(AHashMap::default()),
        }
    }

    /// The statement's counters.
    pub(crate) fn stats(&self) -> &Arc<QueryStats> {
        &self.stats
    }

    /// The database.
    pub(crate) fn db(&self) -> &Arc<Database> {
        &self.db
    }

    /// The one view of a table that this statement has.
    pub(crate) async fn view(&self, table: &TableHandle) -> Result<Arc<ReadView>> {
        let cell = Arc::clone(self.views.lock().await.entry(table.id).or_default());
        let view = cell
            .get_or_try_init(|| async {
                let view = self.db.read_view(table).await?;
                let mut positions = self.stats.positions.lock();
                match positions.iter_mut().find(|(shard, _)| *shard == view.shard) {
                    Some((_, position)) => *position = (*position).max(view.position),
                    None => positions.push((view.shard, view.position)),
                }
                Ok::<_, shoal_engine::EngineError>(Arc::new(view))
            })
            .await?;
        Ok(Arc::clone(view))
    }
}
