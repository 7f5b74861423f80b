//! What the log holds, ready to be applied.

use std::sync::Arc;

use shoal_rows::RowBlock;
use shoal_wal::record::Record;

/// A record with its rows decoded.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub record: Record,
    pub blocks: Vec<Arc<RowBlock>>,
}
