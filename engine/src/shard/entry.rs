//! What the log holds, ready to be applied.

use std::sync::Arc;

use bytes::Bytes;
use shoal_rows::RowBlock;
use shoal_wal::record::Record;

/// A record with its rows decoded.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub record: Record,
    pub blocks: Vec<Arc<RowBlock>>,
}

impl LogEntry {
    /// A record without rows.
    pub(crate) fn without_rows(record: Record) -> Arc<Self> {
        let blocks = Vec::new();
        Arc::new(Self { record, blocks })
    }

    /// What goes into the log, and its checksum.
    pub(crate) fn encode(&self) -> (Bytes, u32) {
        let bytes = self.record.encode();
        let crc = Record::peek(&bytes).map_or(0, |id| id.crc);
        (bytes, crc)
    }
}
