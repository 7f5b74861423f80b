//! Between row blocks and Arrow record batches, for SQL and for Arrow, CSV and Parquet input.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow_buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema};
use arrow_select::take::take;
use hashbrown::HashTable;
use shoal_types::{ColumnId, TableSchema};

use crate::key::KeyColumn;
use crate::values::{i64_array, i64_values};
use crate::{BlockColumn, RowBlock, Series};

/// A batch that cannot become a block, or a block that is not of the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A value that must not be NULL.
    #[error("row {row}: column {column:?} is NULL, but must not be")]
    Null {
        /// Row of the batch, from 0.
        row: usize,
        /// The column.
        column: String,
    },
    /// The key's time column is not among the batch's columns.
    #[error("column {0:?} is part of the primary key and has no value")]
    KeyColumnMissing(String),
    /// The caller casts first ([`shoal_types::ColumnType::arrow`]).
    #[error("column {column:?} is of type {expected}, not {found}")]
    WrongType {
        /// The column.
        column: String,
        /// Its Arrow type.
        expected: DataType,
        /// The batch's type.
        found: DataType,
    },
    /// The list of columns does not fit the batch or the table.
    #[error("{0}")]
    Columns(String),
}

/// Builds the block that writes (or, with `deletes`, deletes the keys of) a batch's rows.
///
/// `columns[i]` is the table column that the batch's column `i` holds, in the column's Arrow
/// type. Nullable key columns that are absent are NULL; other absent columns are not written.
/// With `deletes` only key columns count.
///
/// # Errors
/// [`BatchError`]; the row numbers are the batch's.
pub fn block_from_batch(
    schema: &TableSchema,
    batch: &RecordBatch,
    columns: &[ColumnId],
    deletes: bool,
) -> Result<RowBlock, BatchError> {
    let rows = batch.num_rows();
    check_columns(schema, batch, columns)?;
    let array_of = |id: ColumnId| {
        columns
            .iter()
            .position(|c| *c == id)
            .map(|i| Arc::clone(batch.column(i)))
    };

    let time = if schema.key_ends_with_time() {
        let column = schema
            .time_column
            .and_then(|id| schema.column_by_id(id))
            .ok_or_else(|| BatchError::Columns("the table's time column does not exist".into()))?;
        let array =
            array_of(column.id).ok_or_else(|| BatchError::KeyColumnMissing(column.name.clone()))?;
        refuse_nulls(&column.name, &array)?;
        let values = i64_values(&array)
            .cloned()
            .ok_or_else(|| BatchError::Columns("the table's time column is no timestamp".into()))?;
        Some(values)
    } else {
        None
    };

    let mut key = Vec::with_capacity(schema.series_columns().len());
    for id in schema.series_columns() {
        let column = schema
            .column_by_id(*id)
            .ok_or_else(|| BatchError::Columns(format!("key column {id} does not exist")))?;
        let array = match array_of(*id) {
            Some(array) => array,
            None if column.nullable => new_null_array(&column.column_type.arrow(), rows),
            None => return Err(BatchError::KeyColumnMissing(column.name.clone())),
        };
        if !column.nullable {
            refuse_nulls(&column.name, &array)?;
        }
        key.push(array);
    }
    let (series, series_of) = split_series(schema.series_columns(), key, rows, time.is_some())?;

    let mut values = Vec::new();
    if !deletes {
        for (index, id) in columns.iter().enumerate() {
            if schema.is_key(*id) {
                continue;
            }
            let array = batch.column(index);
            if let Some(column) = schema.column_by_id(*id)
                && !column.nullable
            {
                refuse_nulls(&column.name, array)?;
            }
            values.push(BlockColumn {
                id: *id,
                values: Arc::clone(array),
                set: None,
            });
        }
        values.sort_by_key(|c| c.id);
    }
    Ok(RowBlock {
        table: schema.table,
        incarnation: schema.incarnation,
        schema_version: schema.version,
        series,
        series_of,
        time,
        columns: values,
        deletes: deletes.then(|| BooleanBuffer::new_set(rows)),
    })
}

fn check_columns(
    schema: &TableSchema,
    batch: &RecordBatch,
    columns: &[ColumnId],
) -> Result<(), BatchError> {
    if columns.len() != batch.num_columns() {
        return Err(BatchError::Columns(format!(
            "{} columns are named for a batch of {}",
            columns.len(),
            batch.num_columns()
        )));
    }
    for (index, id) in columns.iter().enumerate() {
        let column = schema
            .column_by_id(*id)
            .ok_or_else(|| BatchError::Columns(format!("column {id} does not exist")))?;
        if columns[..index].contains(id) {
            return Err(BatchError::Columns(format!(
                "column {:?} is given twice",
                column.name
            )));
        }
        let (expected, found) = (column.column_type.arrow(), batch.column(index).data_type());
        if expected != *found {
            return Err(BatchError::WrongType {
                column: column.name.clone(),
                expected,
                found: found.clone(),
            });
        }
    }
    Ok(())
}

fn refuse_nulls(column: &str, array: &ArrayRef) -> Result<(), BatchError> {
    match array
        .nulls()
        .and_then(|n| (0..n.len()).find(|row| n.is_null(*row)))
    {
        Some(row) => Err(BatchError::Null {
            row,
            column: column.to_owned(),
        }),
        None => Ok(()),
    }
}

/// Finds the distinct series among rows, in order of first appearance. Without a time part a key
/// rarely repeats within a batch: looking for repeats would cost more than it saves.
fn split_series(
    ids: &[ColumnId],
    key: Vec<ArrayRef>,
    rows: usize,
    has_time: bool,
) -> Result<(Series, ScalarBuffer<u32>), BatchError> {
    let count = u32::try_from(rows)
        .map_err(|_| BatchError::Columns(format!("{rows} rows are too many for one block")))?;
    if key.is_empty() {
        let series = Series {
            columns: Vec::new(),
            values: Vec::new(),
            len: rows.min(1),
        };
        return Ok((series, ScalarBuffer::from(vec![0_u32; rows])));
    }
    if !has_time {
        let series = Series {
            columns: ids.to_vec(),
            values: key,
            len: rows,
        };
        return Ok((series, (0..count).collect()));
    }

    let columns: Vec<_> = key.iter().map(|a| KeyColumn::new(a.as_ref())).collect();
    // Seeded at random: the keys are the client's.
    let hasher = ahash::RandomState::new();
    let mut known = HashTable::<u32>::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut ends = vec![0_usize];
    let mut first_rows = Vec::new();
    let mut series_of = Vec::with_capacity(rows);
    for row in 0..count {
        let start = bytes.len();
        for column in &columns {
            column.encode(row as usize, &mut bytes);
        }
        let found = {
            let wanted = &bytes[start..];
            known
                .find(hasher.hash_one(wanted), |&s| {
                    encoded(&bytes, &ends, s) == wanted
                })
                .copied()
        };
        let index = if let Some(index) = found {
            bytes.truncate(start);
            index
        } else {
            let index = first_rows.len() as u32;
            first_rows.push(row);
            ends.push(bytes.len());
            known.insert_unique(hasher.hash_one(&bytes[start..]), index, |&s| {
                hasher.hash_one(encoded(&bytes, &ends, s))
            });
            index
        };
        series_of.push(index);
    }
    let len = first_rows.len();
    let picked = UInt32Array::from(first_rows);
    let values = key
        .iter()
        .map(|a| take(a, &picked, None))
        .collect::<Result<_, _>>()
        .map_err(|e| BatchError::Columns(e.to_string()))?;
    let series = Series {
        columns: ids.to_vec(),
        values,
        len,
    };
    Ok((series, series_of.into()))
}

fn encoded<'a>(bytes: &'a [u8], ends: &[usize], index: u32) -> &'a [u8] {
    &bytes[ends[index as usize]..ends[index as usize + 1]]
}

/// The rows of a block in the table's Arrow schema, in the block's order. Columns that a row does
/// not write are NULL, in columns declared NOT NULL too (those fields become nullable). Rows that
/// delete are included; `block.deletes` tells them apart.
///
/// # Errors
/// [`BatchError::WrongType`] or [`BatchError::Columns`] if the block is not of this table.
pub fn block_to_batch(schema: &TableSchema, block: &RowBlock) -> Result<RecordBatch, BatchError> {
    let rows = block.rows();
    let arrow = schema.arrow();
    let series_of = UInt32Array::new(block.series_of.clone(), None);
    let mut arrays = Vec::with_capacity(schema.columns.len());
    let mut fields = Vec::with_capacity(schema.columns.len());
    for (column, field) in schema.columns.iter().zip(arrow.fields()) {
        let array: ArrayRef =
            if let Some(at) = block.series.columns.iter().position(|c| *c == column.id) {
                take(&block.series.values[at], &series_of, None)
                    .map_err(|e| BatchError::Columns(e.to_string()))?
            } else if let Some(time) = &block.time
                && schema.time_column == Some(column.id)
            {
                i64_array(column.column_type, time.clone(), None::<NullBuffer>)
            } else if let Ok(at) = block.columns.binary_search_by_key(&column.id, |c| c.id) {
                Arc::clone(&block.columns[at].values)
            } else {
                new_null_array(field.data_type(), rows)
            };
        if array.data_type() != field.data_type() {
            return Err(BatchError::WrongType {
                column: column.name.clone(),
                expected: field.data_type().clone(),
                found: array.data_type().clone(),
            });
        }
        fields.push(if array.null_count() > 0 && !field.is_nullable() {
            Arc::new(Field::clone(field).with_nullable(true))
        } else {
            Arc::clone(field)
        });
        arrays.push(array);
    }
    RecordBatch::try_new_with_options(
        Arc::new(Schema::new(fields)),
        arrays,
        &RecordBatchOptions::new().with_row_count(Some(rows)),
    )
    .map_err(|e| BatchError::Columns(e.to_string()))
}
