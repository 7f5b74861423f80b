//! Which rows of a unit's files and memory are its own.
//!
//! What a unit owns changes without a row being moved: after a cut both halves name the same files
//! and hold the same memory. So each source says what the unit owned when it was written (no row of
//! it lies outside), and whoever reads one that has more than the unit owns now leaves the rest out.
//! Rows of one key are all inside or all outside (an upsert table is partitioned by key columns), so
//! that it makes no difference whether that happens before rows are merged or after.

use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_select::filter::filter_record_batch;
use futures::StreamExt;
use shoal_rows::mask;
use shoal_types::{ColumnId, Extent, PartitionBounds, TableSchema};

use crate::EngineError;
use crate::merge::RunStream;

/// Whether all rows of a source that was written under `written` are inside `owned`. `None`: all of
/// the table.
#[must_use]
pub fn owns_all(owned: Option<&PartitionBounds>, written: Option<&PartitionBounds>) -> bool {
    match (owned, written) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(owned), Some(written)) => {
            owned.by == written.by && owned.extent.covers(&written.extent)
        }
    }
}

/// What rows lie in that were written under `written` and are all `owned`, as far as it can be told
/// by bounds.
pub(crate) fn common(
    owned: Option<Arc<PartitionBounds>>,
    written: Option<&Arc<PartitionBounds>>,
) -> Option<Arc<PartitionBounds>> {
    let (Some(bounds), Some(written)) = (&owned, written) else {
        return owned.or_else(|| written.cloned());
    };
    if bounds.by != written.by {
        return owned;
    }
    match bounds.extent.common(&written.extent) {
        Some(extent) if extent != bounds.extent => Some(Arc::new(PartitionBounds {
            by: bounds.by.clone(),
            extent,
        })),
        _ => owned,
    }
}

/// Tells what units own apart: a row that was routed by other bounds than its unit has when it is
/// written is refused. `None`: all of the table.
pub(crate) fn fingerprint(bounds: Option<&PartitionBounds>) -> u64 {
    // An explicit encoding: nodes of two releases must agree.
    let bytes = bounds.and_then(|bounds| rmp_serde::to_vec(bounds).ok());
    bytes.map_or(0, |bytes| xxhash_rust::xxh3::xxh3_64(&bytes).max(1))
}

/// Leaves rows out that a unit does not own.
#[derive(Clone, Debug)]
pub struct OwnedRows {
    bounds: Arc<PartitionBounds>,
    /// Names of the columns that the bounds are measured by.
    names: Vec<(ColumnId, String)>,
}

impl OwnedRows {
    /// A filter for batches with columns of `schema`.
    #[must_use]
    pub fn new(bounds: Arc<PartitionBounds>, schema: &TableSchema) -> Self {
        let names = columns_of(&bounds).filter_map(|id| {
            let column = schema.column_by_id(id)?;
            Some((id, column.name.clone()))
        });
        Self {
            names: names.collect(),
            bounds,
        }
    }

    /// The columns that batches must have.
    pub fn columns(&self) -> impl Iterator<Item = ColumnId> + '_ {
        self.names.iter().map(|(id, _)| *id)
    }

    /// The rows of a batch that are inside.
    ///
    /// # Errors
    /// A column of another type than the table's: a defect.
    pub fn filter(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let column = |id: ColumnId| {
            let (_, name) = self.names.iter().find(|(known, _)| *known == id)?;
            batch.column_by_name(name).cloned()
        };
        let defect = |e: &dyn std::fmt::Display| EngineError::Invalid(format!("owned rows: {e}"));
        let inside = mask(&self.bounds, &column, batch.num_rows()).map_err(|e| defect(&e))?;
        if inside.count_set_bits() == inside.len() {
            return Ok(batch.clone());
        }
        let inside = BooleanArray::new(inside, None);
        filter_record_batch(batch, &inside).map_err(|e| defect(&e))
    }

    /// A run without the rows outside.
    pub(crate) fn of_run(self, run: RunStream) -> RunStream {
        run.map(move |batch| self.filter(&batch?)).boxed()
    }
}

fn columns_of(bounds: &PartitionBounds) -> impl Iterator<Item = ColumnId> + '_ {
    let within = match &bounds.extent {
        Extent::Values {
            within: Some(within),
            ..
        } => within.columns.as_slice(),
        _ => &[],
    };
    bounds.by.columns.iter().chain(within).copied()
}
