//! Views out.

use std::sync::Arc;

use shoal_sst::SstStore;

use super::{Database, TableHandle};
use crate::{EngineConfig, EngineError, ReadView};

impl Database {
    /// One consistent view of a table: everything acknowledged before this call, at one position.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`], [`EngineError::NotFound`] once the table was dropped,
    /// [`EngineError::Log`].
    pub async fn read_view(&self, table: &TableHandle) -> Result<ReadView, EngineError> {
        let shard = self.shared.shard(table.shard)?;
        match shard.view(table.id).await {
            Err(EngineError::NotFound { .. }) => {
                Err(self.table_not_found(&table.schema_name, &table.name))
            }
            other => other,
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
