//! A view's rows as what would bring an empty memtable to the same rows: blocks and predicate
//! deletes, in order. So a view travels to another node (`remote_view.rs`).

use std::sync::Arc;

use arrow_array::UInt32Array;
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use arrow_select::take::take;
use shoal_rows::{RowBlock, Series};
use shoal_types::{RowVersion, TableSchema};

use super::segment::Segment;
use super::{MemtableView, defect};
use crate::EngineError;
use crate::shard::parts::slice;

/// Memory of one block; a larger segment becomes several.
const BLOCK_BYTES: usize = 4 << 20;

/// One step.
#[derive(Debug)]
pub(crate) enum Step {
    /// Rows, newer than those of the steps before.
    Rows(Arc<RowBlock>),
    /// Hides the rows before it that match.
    Delete {
        version: RowVersion,
        predicate: Arc<str>,
    },
}

impl MemtableView {
    /// The steps that lead to this view.
    ///
    /// # Errors
    /// A defect.
    pub(crate) fn steps(&self, schema: &TableSchema) -> Result<Vec<Step>, EngineError> {
        let mut steps = Vec::new();
        let mut deletes = self.deletes.iter().peekable();
        for (at, segment) in self.segments.iter().enumerate() {
            while let Some(delete) = deletes.next_if(|d| d.segments <= at) {
                steps.push(Step::Delete {
                    version: delete.version,
                    predicate: Arc::clone(&delete.predicate),
                });
            }
            self.segment_steps(schema, segment, &mut steps)?;
        }
        steps.extend(deletes.map(|delete| Step::Delete {
            version: delete.version,
            predicate: Arc::clone(&delete.predicate),
        }));
        let tail = self.tail.blocks.read();
        let tail = tail[..self.tail_blocks].iter();
        steps.extend(tail.map(|chunk| Step::Rows(Arc::clone(&chunk.block))));
        Ok(steps)
    }

    fn segment_steps(
        &self,
        schema: &TableSchema,
        segment: &Segment,
        steps: &mut Vec<Step>,
    ) -> Result<(), EngineError> {
        let block = self.block_of(schema, segment)?;
        if let Some(closed) = &segment.closed {
            // A tombstone below each row that hides everything older although it is partial.
            let mut tombstones = block.clone();
            tombstones.columns.clear();
            tombstones.deletes = Some(BooleanBuffer::new_set(segment.rows));
            for row in closed.set_indices() {
                steps.push(Step::Rows(Arc::new(slice(&tombstones, row, 1))));
            }
        }
        let rows = (segment.rows * BLOCK_BYTES / block.memory_bytes().max(1)).max(1);
        let mut from = 0;
        while from < segment.rows {
            let count = rows.min(segment.rows - from);
            steps.push(Step::Rows(Arc::new(slice(&block, from, count))));
            from += count;
        }
        Ok(())
    }

    fn block_of(&self, schema: &TableSchema, segment: &Segment) -> Result<RowBlock, EngineError> {
        let sids = UInt32Array::from_iter_values(segment.runs.iter().map(|(sid, _)| *sid));
        let mut values = Vec::new();
        let mut columns = Vec::new();
        for id in schema.series_columns() {
            let Some(column) = schema.column_by_id(*id) else {
                return Err(defect(format!("key column {id} is not in the schema")));
            };
            let data_type = column.column_type.arrow();
            let all = self
                .shared
                .dictionary
                .column(*id, &data_type, self.series)?;
            values.push(take(&all, &sids, None).map_err(defect)?);
            columns.push(*id);
        }
        let mut series_of = Vec::with_capacity(segment.rows);
        let mut start = 0;
        for (run, (_, end)) in segment.runs.iter().enumerate() {
            series_of.extend(std::iter::repeat_n(run as u32, *end as usize - start));
            start = *end as usize;
        }
        let block = RowBlock {
            table: schema.table,
            incarnation: schema.incarnation,
            schema_version: schema.version,
            series: Series {
                columns,
                values,
                len: segment.runs.len(),
            },
            series_of: ScalarBuffer::from(series_of),
            time: segment.times.clone(),
            columns: segment.columns.clone(),
            deletes: segment.deletes.clone(),
        };
        block.check().map_err(defect)?;
        Ok(block)
    }
}
