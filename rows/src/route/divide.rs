//! A block's rows as one block for each partition.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::ByteViewType;
use arrow_array::{Array, ArrayRef, GenericByteViewArray, UInt32Array};
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType};
use arrow_select::take::take;

use super::RouteError;
use crate::{BlockColumn, RowBlock, Series};

/// Not a series yet.
const UNKNOWN: u32 = u32::MAX;

/// The rows of each partition as a block of their own, ascending by partition. `of_row`: the
/// partition of each row.
pub(super) fn divide(
    block: &RowBlock,
    of_row: &[u32],
) -> Result<Vec<(usize, RowBlock)>, RouteError> {
    let failed = |error: ArrowError| RouteError::Block(error.to_string());
    let mut new_series = vec![UNKNOWN; block.series.len];
    rows_by_partition(of_row)
        .into_iter()
        .map(|(partition, rows)| {
            let part = part(block, &rows, &mut new_series).map_err(failed)?;
            Ok((partition, part))
        })
        .collect()
}

/// The rows of every partition that has any, both ascending.
fn rows_by_partition(of_row: &[u32]) -> Vec<(usize, Vec<u32>)> {
    let partitions = of_row.iter().max().map_or(0, |max| *max as usize + 1);
    let mut counts = vec![0_usize; partitions];
    for partition in of_row {
        counts[*partition as usize] += 1;
    }
    let mut rows: Vec<Vec<u32>> = counts.into_iter().map(Vec::with_capacity).collect();
    for (row, partition) in (0_u32..).zip(of_row) {
        rows[*partition as usize].push(row);
    }
    let rows = rows.into_iter().enumerate();
    rows.filter(|(_, rows)| !rows.is_empty()).collect()
}

/// Some rows of a block. `new_series`: memory, [`UNKNOWN`] for each series before and after.
fn part(block: &RowBlock, rows: &[u32], new_series: &mut [u32]) -> Result<RowBlock, ArrowError> {
    let mut old_series = Vec::new();
    let series_of: Vec<u32> = rows
        .iter()
        .map(|row| {
            let old = block.series_of[*row as usize];
            let new = &mut new_series[old as usize];
            if *new == UNKNOWN {
                *new = old_series.len() as u32;
                old_series.push(old);
            }
            *new
        })
        .collect();
    for old in &old_series {
        new_series[*old as usize] = UNKNOWN;
    }
    let len = old_series.len();
    let old_series = UInt32Array::from(old_series);
    let picked = UInt32Array::from(rows.to_vec());
    let values = block.series.values.iter();
    Ok(RowBlock {
        table: block.table,
        incarnation: block.incarnation,
        schema_version: block.schema_version,
        series: Series {
            columns: block.series.columns.clone(),
            values: values
                .map(|values| pick(values, &old_series))
                .collect::<Result<_, _>>()?,
            len,
        },
        series_of: series_of.into(),
        time: block.time.as_ref().map(|time| {
            let picked = rows.iter().map(|row| time[*row as usize]);
            ScalarBuffer::from_iter(picked)
        }),
        columns: block
            .columns
            .iter()
            .map(|column| {
                Ok(BlockColumn {
                    id: column.id,
                    values: pick(&column.values, &picked)?,
                    set: column.set.as_ref().map(|set| pick_bits(set, rows)),
                })
            })
            .collect::<Result<_, ArrowError>>()?,
        deletes: block.deletes.as_ref().map(|bits| pick_bits(bits, rows)),
    })
}

fn pick_bits(bits: &BooleanBuffer, rows: &[u32]) -> BooleanBuffer {
    BooleanBuffer::collect_bool(rows.len(), |at| bits.value(rows[at] as usize))
}

fn pick(values: &ArrayRef, indices: &UInt32Array) -> Result<ArrayRef, ArrowError> {
    if values.null_count() == values.len() {
        // Thousands of unused columns may share one array of NULLs.
        return Ok(values.slice(0, indices.len()));
    }
    let picked = take(values, indices, None)?;
    Ok(match picked.data_type() {
        DataType::Utf8View => without_unused(picked.as_string_view()).unwrap_or(picked),
        DataType::BinaryView => without_unused(picked.as_binary_view()).unwrap_or(picked),
        _ => picked,
    })
}

/// Strings that were taken name all buffers of those that they were taken from: each part would
/// hold, and count as its own, the memory of all.
fn without_unused<T: ByteViewType>(picked: &GenericByteViewArray<T>) -> Option<ArrayRef> {
    let held: usize = picked.data_buffers().iter().map(|b| b.len()).sum();
    (held > 2 * picked.total_buffer_bytes_used()).then(|| Arc::new(picked.gc()) as ArrayRef)
}
