//! Views out.

use std::sync::Arc;
use std::time::Duration;

use shoal_sst::SstStore;

use super::{Database, TableHandle};
use crate::{EngineConfig, EngineError, ReadLevel, ReadView};

impl Database {
    /// One consistent view of a table: everything acknowledged before this call, at one position.
    ///
    /// # Errors
    /// As [`Self::read_view_at`].
    pub async fn read_view(&self, table: &TableHandle) -> Result<ReadView, EngineError> {
        let patience = self.shared.patience();
        self.read_view_at(table, &ReadLevel::Strong, patience).await
    }

    /// One consistent view of a table, at least as fresh as `level` asks, at one position.
    ///
    /// # Errors
    /// [`EngineError::NotFresh`] if the level cannot be had within `patience`;
    /// [`EngineError::ShardUnavailable`], [`EngineError::NotFound`] once the table was dropped,
    /// [`EngineError::Log`].
    pub async fn read_view_at(
        &self,
        table: &TableHandle,
        level: &ReadLevel,
        patience: Duration,
    ) -> Result<ReadView, EngineError> {
        let shard = self.shared.shard(table.shard)?;
        let views = shard.views_of(&[table.id], level, patience).await;
        match views.map(|mut views| views.pop()) {
            Ok(Some(view)) => Ok(view),
            Ok(None) | Err(EngineError::NotFound { .. }) => {
                Err(self.table_not_found(&table.schema_name, &table.name))
            }
            Err(error) => Err(error),
        }
    }

    /// After a file of `view` was found missing, as happens to a replica that stood still for
    /// longer than files are kept: brings the replica here to the newest manifest. Whether a view
    /// taken now may do better; `false`: the newest manifest names the same files.
    pub async fn renew(&self, view: &ReadView) -> bool {
        let me = self.shared.peers().map(|peers| peers.me());
        if view.served_by.node != me {
            return true;
        }
        let Ok(shard) = self.shared.shard(view.shard) else {
            return true;
        };
        let newest = tokio::time::timeout(self.shared.patience(), shard.reach_newest()).await;
        match newest {
            Ok(Ok(newest)) => view
                .files
                .iter()
                .any(|file| !newest.paths().any(|path| path == file.path)),
            Ok(Err(error)) => matches!(error, EngineError::ShardUnavailable { .. }),
            Err(_) => false,
        }
    }

    /// The cache through which files are read; shared by flush, compaction and queries.
    #[must_use]
    pub fn sst_store(&self) -> Arc<SstStore> {
        Arc::clone(&self.shared.env.sst)
    }

    /// The limits this database was opened with.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.shared.env.config
    }
}
