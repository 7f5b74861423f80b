//! Arrow batches of `/v1/ingest` as row blocks of a table.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_ipc::reader::StreamReader;
use bytes::Bytes;
use shoal_rows::{RowBlock, block_from_batch};
use shoal_types::{ColumnId, TableSchema};

use super::error::ApiError;
use crate::nearest::nearest;

/// Reads an Arrow IPC stream (or file of one stream) whole; its size was bounded before.
///
/// # Errors
/// 400 if it is no such stream.
pub fn read_batches(bytes: &Bytes) -> Result<Vec<RecordBatch>, ApiError> {
    let bad = |e: arrow_schema::ArrowError| {
        ApiError::invalid(
            "bad_arrow",
            format!("the body is not a valid Arrow IPC stream: {e}"),
        )
    };
    let reader = StreamReader::try_new(&bytes[..], None).map_err(bad)?;
    reader.collect::<Result<Vec<_>, _>>().map_err(bad)
}

/// Blocks of the batches' rows, matched to the table's columns by name, cast to their types.
///
/// # Errors
/// 400 naming column and row.
pub fn blocks(schema: &TableSchema, batches: &[RecordBatch]) -> Result<Vec<RowBlock>, ApiError> {
    let mut blocks = Vec::with_capacity(batches.len());
    let mut first_row = 0;
    for batch in batches.iter().filter(|b| b.num_rows() > 0) {
        blocks.push(block(schema, batch, first_row)?);
        first_row += batch.num_rows();
    }
    Ok(blocks)
}

fn block(
    schema: &TableSchema,
    batch: &RecordBatch,
    first_row: usize,
) -> Result<RowBlock, ApiError> {
    let mut ids: Vec<ColumnId> = Vec::with_capacity(batch.num_columns());
    let mut arrays = Vec::with_capacity(batch.num_columns());
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(column) = schema.column(field.name()) else {
            return Err(unknown_column(schema, field.name()));
        };
        if ids.contains(&column.id) {
            return Err(ApiError::invalid(
                "duplicate_column",
                format!("column {:?} is in the stream twice", field.name()),
            ));
        }
        let cast = cast(array, &column.column_type.arrow()).map_err(|e| {
            ApiError::invalid(
                "type_mismatch",
                format!(
                    "column {:?} of type {} cannot hold the stream's {}: {e}",
                    column.name,
                    column.column_type,
                    array.data_type()
                ),
            )
        })?;
        if !column.nullable && cast.null_count() > 0 {
            let row = (0..cast.len()).find(|r| cast.is_null(*r)).unwrap_or(0);
            return Err(ApiError::invalid(
                "not_null_violation",
                format!(
                    "column {:?} must not be NULL, but is in row {}",
                    column.name,
                    first_row + row + 1
                ),
            ));
        }
        ids.push(column.id);
        arrays.push(cast);
    }
    let missing = schema
        .columns
        .iter()
        .find(|c| !c.nullable && c.default.is_none() && !ids.contains(&c.id));
    if let Some(column) = missing {
        return Err(ApiError::invalid(
            "not_null_violation",
            format!(
                "column {:?} must not be NULL, but the stream lacks it",
                column.name
            ),
        ));
    }
    let fields: Vec<_> = ids
        .iter()
        .zip(&arrays)
        .filter_map(|(id, a)| {
            let column = schema.column_by_id(*id)?;
            Some(arrow_schema::Field::new(
                &column.name,
                a.data_type().clone(),
                true,
            ))
        })
        .collect();
    let named = RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(fields)), arrays)
        .map_err(|e| ApiError::internal(format!("cannot rebuild a batch: {e}")))?;
    block_from_batch(schema, &named, &ids, false)
        .map_err(|e| ApiError::invalid("invalid_row", e.to_string()))
}

/// Casts without loss: a value that does not fit is an error, never NULL.
fn cast(
    array: &ArrayRef,
    to: &arrow_schema::DataType,
) -> Result<ArrayRef, arrow_schema::ArrowError> {
    let options = CastOptions {
        safe: false,
        ..Default::default()
    };
    cast_with_options(array, to, &options)
}

fn unknown_column(schema: &TableSchema, name: &str) -> ApiError {
    let near = nearest(name, schema.columns.iter().map(|c| c.name.as_str()));
    let mut error = ApiError::invalid(
        "undefined_column",
        format!("the table has no column {name:?}"),
    );
    error.hint = near.map(|near| format!("did you mean {near:?}?"));
    error
}
