//! What one statement sees of one table on one shard: one position, fixed files, fixed rows.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{BooleanArray, RecordBatch};
use shoal_sst::SstFile;
use shoal_types::{Epoch, Offset, PartitionBounds, RowVersion, ShardId, TableSchema};

use crate::CommitToken;
use crate::memtable::MemtableView;
use crate::owned::{OwnedRows, owns_all};
use crate::served_by::ServedBy;

/// Evaluates the SQL predicates of append-table deletes. The engine knows no SQL; the query layer
/// hands this in when the database is opened.
pub trait RowPredicate: Send + Sync + Debug + 'static {
    /// For each row of `batch` (columns as `schema.arrow()`), whether `predicate` is true.
    ///
    /// # Errors
    /// Text for the operator; the caller keeps the rows and reports it.
    fn matches(
        &self,
        schema: &TableSchema,
        predicate: &str,
        batch: &RecordBatch,
    ) -> Result<BooleanArray, String>;
}

/// A delete on an append table: rows with a version below `version` that match are gone.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PredicateDelete {
    /// The version of the deleting record.
    pub version: RowVersion,
    /// SQL predicate over the table's columns.
    pub predicate: String,
}

/// How fresh a read must be (DESIGN §2).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ReadLevel {
    /// Everything acknowledged before the read began, on any replica.
    #[default]
    Strong,
    /// At least what these commits wrote.
    Session(Vec<CommitToken>),
    /// Everything acknowledged up to this long before the read began.
    Bounded(Duration),
    /// Whatever the replica has.
    Eventual,
}

/// A consistent view of one table on one shard. Files it names are not collected while it lives.
#[derive(Clone, Debug)]
pub struct ReadView {
    /// The schema at the view's position.
    pub schema: Arc<TableSchema>,
    /// The shard.
    pub shard: ShardId,
    /// The leader's epoch when the view was taken.
    pub epoch: Epoch,
    /// The last offset whose rows the view shows.
    pub position: Offset,
    /// The replica that it is of.
    pub served_by: ServedBy,
    /// Rows not yet in files, oldest part first; each part is one run over all older ones.
    pub memory: Vec<MemtableView>,
    /// Files, ordered by `version_max` ascending (older first).
    pub files: Vec<SstFile>,
    /// Deletes that files still need applied (append tables). Memory has its own applied.
    pub deletes: Vec<PredicateDelete>,
    /// What of the table it shows; `None`: all. Files and memory may hold more
    /// ([`Self::shows_all_of_file`]).
    pub bounds: Option<Arc<PartitionBounds>>,
    /// Evaluates `deletes`.
    pub predicate: Option<Arc<dyn RowPredicate>>,
    /// Keeps the files from being collected while the view lives.
    pub(crate) _pin: Option<Arc<dyn Debug + Send + Sync>>,
}

impl ReadView {
    /// Whether all rows of a file, by its place in [`Self::files`], are shown.
    #[must_use]
    pub fn shows_all_of_file(&self, at: usize) -> bool {
        owns_all(self.bounds.as_deref(), self.files[at].bounds.as_deref())
    }

    /// Whether all rows of a part of memory, by its place in [`Self::memory`], are shown.
    #[must_use]
    pub fn shows_all_of_memory(&self, at: usize) -> bool {
        owns_all(self.bounds.as_deref(), self.memory[at].written_under())
    }

    /// What leaves out the rows that are not shown; `None`: it shows all of its table.
    #[must_use]
    pub fn owned_rows(&self) -> Option<OwnedRows> {
        let bounds = self.bounds.clone()?;
        Some(OwnedRows::new(bounds, &self.schema))
    }
}
