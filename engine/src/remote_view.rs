//! A replica's view of a table on its way to another node.
//!
//! Files stand in the common store, so only their names travel; rows that are not yet in files
//! travel as the blocks and predicate deletes that lead to them. Files that a view names outlive it
//! there as they do here: `gc.retention_s` is longer than any statement may run, and a collection
//! counts from the moment at which a manifest stopped naming a file.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_rows::{decode_blocks, encode_blocks};
use shoal_sst::SstFile;
use shoal_types::{Epoch, Offset, PartitionBounds, RowVersion, ShardId, TableSchema};

use crate::memtable::{Step, TableMemtable};
use crate::served_by::ServedBy;
use crate::{EngineError, PredicateDelete, ReadView, RowPredicate};

/// A view, encoded.
#[derive(Clone, Debug)]
pub struct EncodedView {
    /// All but the rows.
    pub head: ViewHead,
    /// Rows, as the head's steps count them: each is `encode_blocks` of one block.
    pub bodies: Vec<Bytes>,
}

/// What a view says besides its rows not yet in files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewHead {
    /// As [`ReadView::schema`].
    pub schema: Arc<TableSchema>,
    /// As [`ReadView::shard`].
    pub shard: ShardId,
    /// As [`ReadView::epoch`].
    pub epoch: Epoch,
    /// As [`ReadView::position`].
    pub position: Offset,
    /// As [`ReadView::served_by`].
    pub served_by: ServedBy,
    /// As [`ReadView::files`].
    pub files: Vec<SstFile>,
    /// As [`ReadView::deletes`].
    pub deletes: Vec<PredicateDelete>,
    /// As [`ReadView::bounds`].
    #[serde(default)]
    pub bounds: Option<Arc<PartitionBounds>>,
    /// For each part of [`ReadView::memory`] what leads to it, in order.
    memory: Vec<Vec<EncodedStep>>,
    /// For each part of it what its rows were written under.
    #[serde(default)]
    written_under: Vec<Option<Arc<PartitionBounds>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum EncodedStep {
    /// The next body.
    Rows,
    Delete {
        version: RowVersion,
        predicate: String,
    },
}

impl ViewHead {
    /// How many bodies belong to it.
    #[must_use]
    pub fn bodies(&self) -> usize {
        let steps = self.memory.iter().flatten();
        steps.filter(|s| matches!(s, EncodedStep::Rows)).count()
    }
}

impl EncodedView {
    /// Encodes a view. Work in proportion to its rows in memory: not for a thread that others wait
    /// for.
    ///
    /// # Errors
    /// A defect.
    pub fn encode(view: &ReadView) -> Result<Self, EngineError> {
        let mut memory = Vec::with_capacity(view.memory.len());
        let mut bodies = Vec::new();
        for part in &view.memory {
            let mut steps = Vec::new();
            for step in part.steps(&view.schema)? {
                steps.push(match step {
                    Step::Rows(block) => {
                        bodies.push(encode_blocks(std::slice::from_ref(&*block)).into());
                        EncodedStep::Rows
                    }
                    Step::Delete { version, predicate } => EncodedStep::Delete {
                        version,
                        predicate: predicate.to_string(),
                    },
                });
            }
            memory.push(steps);
        }
        Ok(Self {
            head: ViewHead {
                schema: Arc::clone(&view.schema),
                shard: view.shard,
                epoch: view.epoch,
                position: view.position,
                served_by: view.served_by,
                files: view.files.clone(),
                deletes: view.deletes.clone(),
                bounds: view.bounds.clone(),
                memory,
                written_under: view
                    .memory
                    .iter()
                    .map(|m| m.written_under.clone())
                    .collect(),
            },
            bodies,
        })
    }

    /// The view.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: the bytes do not fit the head.
    pub(crate) fn decode(
        self,
        predicate: Option<Arc<dyn RowPredicate>>,
    ) -> Result<ReadView, EngineError> {
        let broken =
            |what: &str| EngineError::Invalid(format!("a view that another node sent: {what}"));
        let head = self.head;
        let mut bodies = self.bodies.into_iter();
        // Versions order rows of one memtable among themselves; its predicate deletes are placed by
        // the order of the steps. So any rising offset will do.
        let mut offset = Offset(1);
        let mut memory = Vec::with_capacity(head.memory.len());
        let mut written_under = head.written_under.into_iter();
        for steps in head.memory {
            let mut table = TableMemtable::new(Arc::clone(&head.schema))
                .written_under(written_under.next().flatten());
            for step in steps {
                match step {
                    EncodedStep::Rows => {
                        let body = bodies.next().ok_or_else(|| broken("rows are missing"))?;
                        for block in decode_blocks(&body).map_err(|e| broken(&e.to_string()))? {
                            block.check().map_err(|e| broken(&e.to_string()))?;
                            table.apply(Arc::new(block), 0, offset, 0);
                            offset = offset.next();
                        }
                    }
                    EncodedStep::Delete { version, predicate } => {
                        table.delete_where(version, predicate.into());
                    }
                }
            }
            memory.push(table.view());
        }
        Ok(ReadView {
            schema: head.schema,
            shard: head.shard,
            epoch: head.epoch,
            position: head.position,
            served_by: head.served_by,
            memory,
            files: head.files,
            deletes: head.deletes,
            bounds: head.bounds,
            predicate,
            _pin: None,
        })
    }
}
