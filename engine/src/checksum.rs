//! A checksum over the rows that a table shows at a position.
//!
//! It depends on the rows alone: not on how they are spread over memory and files, nor on their
//! order, so it is the same before and after a flush, a compaction or a restart, and on every
//! replica at the same position. (Rows past their table's TTL count until a compaction or the age
//! of their file takes them away, as in queries.)
//!
//! - A value: XXH3-128 of its bytes, seeded with its column's id. Numbers, dates and timestamps are
//!   little-endian in the width of their type, BOOLEAN is one byte, TEXT and BYTEA are as they are.
//!   A NULL counts as nothing, so that a column that was only added changes nothing.
//! - A row: XXH3-128 of the sum (mod 2^128) of its values.
//! - A table: the sum (mod 2^128) of its rows. A row that is there twice counts twice.
//! - A shard: the sum (mod 2^128) over its tables with rows of XXH3-128 of the table's id (16
//!   bytes, big-endian), number of rows (8 bytes) and checksum (16 bytes).
//!
//! Sums and numbers are little-endian where they are hashed.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use futures::{StreamExt, TryStreamExt};
use serde::{Serialize, Serializer};
use shoal_types::{Offset, ShardId, TableId, TableSchema};
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use crate::compaction::SstProducer;
use crate::memtable::MemtableScan;
use crate::merge::{MergeOptions, RunStream, merge_runs};
use crate::{EngineError, ReadView};

/// What the rows of a table come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TableChecksum {
    /// The table.
    pub table: TableId,
    /// Rows that it shows.
    pub rows: u64,
    /// See the module's head; 32 hexadecimal digits in JSON.
    #[serde(serialize_with = "hexadecimal")]
    pub checksum: u128,
}

/// What the rows of a shard, or of one of its tables, come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardChecksum {
    /// The shard.
    pub shard: ShardId,
    /// The last offset whose rows are counted; one for all tables.
    pub position: Offset,
    /// Rows of all tables.
    pub rows: u64,
    /// Of all tables together.
    #[serde(serialize_with = "hexadecimal")]
    pub checksum: u128,
    /// Each table with rows, ascending by id.
    pub tables: Vec<TableChecksum>,
}

fn hexadecimal<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:032x}"))
}

impl ShardChecksum {
    pub(crate) fn new(shard: ShardId, position: Offset) -> Self {
        Self {
            shard,
            position,
            rows: 0,
            checksum: 0,
            tables: Vec::new(),
        }
    }

    /// Adds a table; one without rows is as if it were not there.
    pub(crate) fn add(&mut self, table: TableChecksum) {
        if table.rows == 0 {
            return;
        }
        let mut bytes = [0; 40];
        bytes[..16].copy_from_slice(&table.table.to_bytes());
        bytes[16..24].copy_from_slice(&table.rows.to_le_bytes());
        bytes[24..].copy_from_slice(&table.checksum.to_le_bytes());
        self.rows += table.rows;
        self.checksum = self.checksum.wrapping_add(xxh3_128(&bytes));
        self.tables.push(table);
    }
}

/// Reads all rows of a view, one batch a file and one of output in memory at a time.
///
/// # Errors
/// A file cannot be read; a predicate delete cannot be evaluated.
pub(crate) async fn of_view(
    view: &ReadView,
    producer: &SstProducer,
) -> Result<TableChecksum, EngineError> {
    let schema = &view.schema;
    let mut runs: Vec<RunStream> = Vec::with_capacity(view.files.len() + view.memory.len());
    for file in &view.files {
        runs.push(producer.input(file, schema, &view.deletes)?);
    }
    for memory in &view.memory {
        let run = memory.scan(schema, view.predicate.as_deref(), &MemtableScan::default())?;
        runs.push(futures::stream::iter(run).boxed());
    }
    let mut merged = merge_runs(Arc::clone(schema), runs, MergeOptions::read());
    if let Some(owned) = view.owned_rows() {
        merged = owned.of_run(merged);
    }
    let mut sum = TableChecksum {
        table: schema.table,
        rows: 0,
        checksum: 0,
    };
    while let Some(batch) = merged.try_next().await? {
        sum.rows += batch.num_rows() as u64;
        sum.checksum = sum.checksum.wrapping_add(of_rows(schema, &batch)?);
        // Batches from memory come without a pause; others want the thread too.
        tokio::task::yield_now().await;
    }
    Ok(sum)
}

/// The sum of the rows of a batch.
fn of_rows(schema: &TableSchema, batch: &RecordBatch) -> Result<u128, EngineError> {
    let mut rows = vec![0_u128; batch.num_rows()];
    for (field, values) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if let Some(column) = schema.column(field.name()) {
            add_column(&mut rows, u64::from(column.id.0), values)?;
        }
    }
    let hashed = rows.iter().map(|row| xxh3_128(&row.to_le_bytes()));
    Ok(hashed.fold(0, u128::wrapping_add))
}

fn add_column(rows: &mut [u128], seed: u64, values: &ArrayRef) -> Result<(), EngineError> {
    let mut add = |row: usize, bytes: &[u8]| {
        if values.is_valid(row) {
            rows[row] = rows[row].wrapping_add(xxh3_128_with_seed(bytes, seed));
        }
    };
    match values.data_type() {
        DataType::Boolean => {
            let values = values.as_boolean().values();
            values
                .iter()
                .enumerate()
                .for_each(|(row, value)| add(row, &[u8::from(value)]));
        }
        DataType::Utf8View => {
            let values = values.as_string_view();
            (0..values.len()).for_each(|row| add(row, values.value(row).as_bytes()));
        }
        DataType::BinaryView => {
            let values = values.as_binary_view();
            (0..values.len()).for_each(|row| add(row, values.value(row)));
        }
        other => {
            let Some(width) = other.primitive_width() else {
                return Err(EngineError::Invalid(format!(
                    "checksum: a column of type {other}"
                )));
            };
            let data = values.to_data();
            let bytes = &data.buffers()[0].as_slice()[data.offset() * width..];
            let cells = bytes.chunks_exact(width).take(values.len());
            cells.enumerate().for_each(|(row, cell)| add(row, cell));
        }
    }
    Ok(())
}
