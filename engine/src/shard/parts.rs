//! Cutting a request's rows for one shard into records (PROTOCOLS §1, "atomic unit").
//!
//! Pure: the same rows and limits give the same parts. A retry with the same write id must be cut
//! at the same places, so that every part meets its own number in the fold's window, whatever
//! became of the configuration and of the table's columns meanwhile. So such requests are cut at
//! limits that never change, and by bytes that depend on the request's own values alone: columns
//! that it does not name are NULL and count nothing, and no part is halved because its encoding
//! turned out too large.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, UInt32Array};
use arrow_schema::DataType;
use bytes::Bytes;
use shoal_meta::RecordLimits;
use shoal_rows::{BlockColumn, RowBlock, Series, encode_blocks, outside};
use shoal_types::{Incarnation, PartitionBounds, TableId, TableSchema};
use shoal_wal::record::{Covered, TableWrite};

use crate::{EngineConfig, WriteError};

/// Limits of one record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartLimits {
    /// Of an encoded record.
    pub bytes_max: usize,
    pub rows_max: usize,
    /// Of the values of a record, before they are encoded.
    pub value_bytes_max: usize,
}

impl PartLimits {
    /// Of requests that are sent once. Encoding makes records smaller than the values, never much
    /// larger: parts are cut at four times the limit, and again if that was too much.
    pub(crate) fn of(config: &EngineConfig) -> Self {
        Self {
            bytes_max: config.record_bytes_max,
            rows_max: config.record_rows_max.clamp(1, ROWS_MAX),
            value_bytes_max: config.record_bytes_max.saturating_mul(4),
        }
    }

    /// Of requests that may be sent again: what is cut at three quarters of the limit fits, however
    /// badly it shrinks.
    pub(crate) fn stable(limits: RecordLimits) -> Self {
        let bytes_max = usize::try_from(limits.bytes).unwrap_or(usize::MAX);
        let rows_max = usize::try_from(limits.rows).unwrap_or(usize::MAX);
        Self {
            bytes_max,
            rows_max: rows_max.clamp(1, ROWS_MAX),
            value_bytes_max: bytes_max / 4 * 3,
        }
    }
}

/// Rows of a record, at most (PROTOCOLS §1).
const ROWS_MAX: usize = 65_536;
/// What a table costs in a record's header, as a rule: counted alike however many columns it has.
const TABLE_BYTES: usize = 1024;

/// Rows of one record, encoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Part {
    /// Number of the request's part that they are of.
    pub number: u32,
    /// Whether it is the request's last part.
    pub last: bool,
    pub tables: Vec<TableWrite>,
    pub body: Bytes,
    pub blocks: Vec<Arc<RowBlock>>,
}

impl Part {
    /// Whether it deletes what a unit has: routing its rows anew would not do.
    pub(crate) fn is_bound(&self) -> bool {
        self.tables.iter().any(|table| table.delete_where.is_some())
    }

    /// Has a unit's rows be of another incarnation: it was emptied since they were built, and they
    /// come after that.
    pub(crate) fn build_for(&mut self, unit: TableId, incarnation: Incarnation) {
        let mut changed = false;
        for table in self.tables.iter_mut().filter(|t| t.table == unit) {
            changed |= table.incarnation != incarnation;
            table.incarnation = incarnation;
        }
        if !changed || self.blocks.is_empty() {
            return;
        }
        for block in self.blocks.iter_mut().filter(|b| b.table == unit) {
            Arc::make_mut(block).incarnation = incarnation;
        }
        self.body = body_of(&self.blocks);
    }

    /// Leaves out rows that were applied before. Their units are still named.
    ///
    /// # Errors
    /// [`WriteError::Invalid`]: a delete by predicate was applied to some rows of a unit and not to
    /// others.
    pub(crate) fn leave_out(
        &mut self,
        covered: &[Covered],
        schema: impl Fn(TableId) -> Option<Arc<TableSchema>>,
    ) -> Result<(), WriteError> {
        for covered in covered {
            if let Some(bounds) = &covered.bounds {
                let stale = WriteError::StaleSchema {
                    table: covered.unit,
                };
                let schema = schema(covered.unit).ok_or(stale)?;
                self.leave_out_inside(covered.unit, bounds, &schema)?;
                continue;
            }
            self.blocks.retain(|block| block.table != covered.unit);
            for table in &mut self.tables {
                if table.table == covered.unit {
                    table.rows = 0;
                    table.columns.clear();
                    table.delete_where = None;
                }
            }
        }
        self.body = body_of(&self.blocks);
        Ok(())
    }
}

impl Part {
    /// Leaves out a unit's rows inside of what it owned once.
    fn leave_out_inside(
        &mut self,
        unit: TableId,
        bounds: &PartitionBounds,
        schema: &TableSchema,
    ) -> Result<(), WriteError> {
        let is_deleting = |t: &TableWrite| t.table == unit && t.delete_where.is_some();
        if self.tables.iter().any(is_deleting) {
            return Err(WriteError::Invalid(format!(
                "a delete was applied to a part of unit {unit} before; run the statement with a new id"
            )));
        }
        let mut kept = Vec::with_capacity(self.blocks.len());
        for block in std::mem::take(&mut self.blocks) {
            if block.table != unit {
                kept.push(block);
                continue;
            }
            let rest = outside(&block, bounds, schema);
            let rest = rest.map_err(|e| WriteError::Invalid(e.to_string()))?;
            kept.extend(rest.map(Arc::new));
        }
        self.blocks = kept;
        let rows: usize = self
            .blocks
            .iter()
            .filter(|b| b.table == unit)
            .map(|b| b.rows())
            .sum();
        for table in self.tables.iter_mut().filter(|t| t.table == unit) {
            table.rows = u32::try_from(rows).unwrap_or(u32::MAX);
        }
        Ok(())
    }
}

/// Room in a record for its fixed header and the map around the tables.
const HEADER_BYTES: usize = 1024;

fn table_write(block: &RowBlock) -> TableWrite {
    let keys = block.series.columns.iter().copied();
    TableWrite {
        table: block.table,
        incarnation: block.incarnation,
        columns: keys.chain(block.columns.iter().map(|c| c.id)).collect(),
        rows: block.rows() as u32,
        delete_where: None,
    }
}

fn header_bytes(tables: &[TableWrite]) -> usize {
    let table = |t: &TableWrite| 128 + 5 * t.columns.len();
    HEADER_BYTES + tables.iter().map(table).sum::<usize>()
}

/// Cuts blocks into groups of rows in their order, each for one record as far as its values tell.
pub(crate) fn group(blocks: Vec<RowBlock>, limits: PartLimits) -> Vec<Vec<RowBlock>> {
    let mut groups = Vec::new();
    let mut group: Vec<RowBlock> = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for block in blocks {
        let row_bytes = (value_bytes(&block) / block.rows().max(1)).max(1);
        // Also when rows shrink well: a record is decoded into memory as a whole.
        let rows_max = limits
            .rows_max
            .min(limits.value_bytes_max / row_bytes)
            .max(1);
        for piece in slices(block, rows_max) {
            let piece_rows = piece.rows();
            let piece_bytes = TABLE_BYTES + piece_rows.saturating_mul(row_bytes);
            let over =
                rows + piece_rows > limits.rows_max || bytes + piece_bytes > limits.value_bytes_max;
            if over && !group.is_empty() {
                groups.push(std::mem::take(&mut group));
                (rows, bytes) = (0, 0);
            }
            rows += piece_rows;
            bytes += piece_bytes;
            group.push(piece);
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// Cuts blocks into parts, each within the limits, rows in their order.
///
/// # Errors
/// [`WriteError::RowTooLarge`] for a single row beyond the limit.
pub(crate) fn cut(blocks: Vec<RowBlock>, limits: PartLimits) -> Result<Vec<Part>, WriteError> {
    let mut parts = Vec::new();
    for group in group(blocks, limits) {
        let group = group.into_iter().map(Arc::new).collect();
        encode_group(group, limits, &mut parts)?;
    }
    let count = parts.len();
    for (at, part) in parts.iter_mut().enumerate() {
        part.number = u32::try_from(at).unwrap_or(u32::MAX);
        part.last = at + 1 == count;
    }
    Ok(parts)
}

/// One shard's rows of a group, as one record. `named`: units that the record is to name although
/// there may be no rows of theirs.
///
/// # Errors
/// [`WriteError::RowTooLarge`]: it exceeds the limit.
pub(crate) fn encode_share(
    blocks: Vec<RowBlock>,
    named: &[(TableId, Incarnation)],
    limits: PartLimits,
) -> Result<Part, WriteError> {
    let mut tables: Vec<TableWrite> = blocks.iter().map(table_write).collect();
    for (unit, incarnation) in named {
        if tables.iter().all(|t| t.table != *unit) {
            tables.push(TableWrite {
                table: *unit,
                incarnation: *incarnation,
                columns: Vec::new(),
                rows: 0,
                delete_where: None,
            });
        }
    }
    let blocks: Vec<Arc<RowBlock>> = blocks.into_iter().map(Arc::new).collect();
    let body = body_of(&blocks);
    let size = body.len() + header_bytes(&tables);
    if size > limits.bytes_max {
        return Err(WriteError::RowTooLarge {
            bytes: size,
            max: limits.bytes_max,
        });
    }
    Ok(Part {
        tables,
        body,
        blocks,
        ..Part::default()
    })
}

/// Bytes of a block's values. Of the values, not of the buffers that hold them, which depend on how
/// the request was read; and not of NULLs, which stand for columns that were added meanwhile.
fn value_bytes(block: &RowBlock) -> usize {
    let series = block.series.values.iter().map(array_bytes).sum::<usize>();
    let values = block.columns.iter().map(|c| array_bytes(&c.values));
    let fixed = if block.time.is_some() { 12 } else { 4 };
    series + values.sum::<usize>() + block.rows() * fixed
}

fn array_bytes(values: &ArrayRef) -> usize {
    let data_type = values.data_type();
    let text: usize = match data_type {
        DataType::Utf8View => values.as_string_view().lengths().map(|n| n as usize).sum(),
        DataType::BinaryView => values.as_binary_view().lengths().map(|n| n as usize).sum(),
        _ => 0,
    };
    let there = values.len() - values.null_count();
    text + there * data_type.primitive_width().unwrap_or(16)
}

fn slices(block: RowBlock, rows_max: usize) -> Vec<RowBlock> {
    let rows = block.rows();
    if rows <= rows_max {
        return if rows == 0 { Vec::new() } else { vec![block] };
    }
    (0..rows)
        .step_by(rows_max)
        .map(|from| slice(&block, from, rows_max.min(rows - from)))
        .collect()
}

fn encode_group(
    group: Vec<Arc<RowBlock>>,
    limits: PartLimits,
    parts: &mut Vec<Part>,
) -> Result<(), WriteError> {
    let tables: Vec<TableWrite> = group.iter().map(|b| table_write(b)).collect();
    let body = body_of(&group);
    let size = body.len() + header_bytes(&tables);
    if size <= limits.bytes_max {
        parts.push(Part {
            tables,
            body,
            blocks: group,
            ..Part::default()
        });
        return Ok(());
    }
    let (first, second) = halves(&group);
    if second.is_empty() {
        return Err(WriteError::RowTooLarge {
            bytes: size,
            max: limits.bytes_max,
        });
    }
    encode_group(first, limits, parts)?;
    encode_group(second, limits, parts)
}

/// The rows of a record as its body; none: empty.
fn body_of(blocks: &[Arc<RowBlock>]) -> Bytes {
    if blocks.is_empty() {
        return Bytes::new();
    }
    let plain: Vec<RowBlock> = blocks.iter().map(|b| RowBlock::clone(b)).collect();
    Bytes::from(encode_blocks(&plain))
}

fn halves(group: &[Arc<RowBlock>]) -> (Vec<Arc<RowBlock>>, Vec<Arc<RowBlock>>) {
    if let [block] = group {
        let rows = block.rows();
        let half = rows / 2;
        if half == 0 {
            return (vec![Arc::clone(block)], Vec::new());
        }
        return (
            vec![Arc::new(slice(block, 0, half))],
            vec![Arc::new(slice(block, half, rows - half))],
        );
    }
    let (a, b) = group.split_at(group.len() / 2);
    (a.to_vec(), b.to_vec())
}

/// Some consecutive rows of a block, with only the series they name.
pub(crate) fn slice(block: &RowBlock, from: usize, rows: usize) -> RowBlock {
    let mut new_index = vec![u32::MAX; block.series.len];
    let mut kept: Vec<u32> = Vec::new();
    let series_of: Vec<u32> = block.series_of[from..from + rows]
        .iter()
        .map(|old| {
            let slot = &mut new_index[*old as usize];
            if *slot == u32::MAX {
                *slot = kept.len() as u32;
                kept.push(*old);
            }
            *slot
        })
        .collect();
    let len = kept.len();
    let kept = UInt32Array::from(kept);
    let values = block
        .series
        .values
        .iter()
        .map(|v| {
            // Indices are in range: `RowBlock::check` ran before.
            arrow_select::take::take(v, &kept, None).unwrap_or_else(|_| v.slice(0, len))
        })
        .collect();
    RowBlock {
        table: block.table,
        incarnation: block.incarnation,
        schema_version: block.schema_version,
        series: Series {
            columns: block.series.columns.clone(),
            values,
            len,
        },
        series_of: series_of.into(),
        time: block.time.as_ref().map(|t| t.slice(from, rows)),
        columns: block
            .columns
            .iter()
            .map(|c| BlockColumn {
                id: c.id,
                values: slice_values(&c.values, from, rows),
                set: c.set.as_ref().map(|s| s.slice(from, rows)),
            })
            .collect(),
        deletes: block.deletes.as_ref().map(|d| d.slice(from, rows)),
    }
}

fn slice_values(values: &ArrayRef, from: usize, rows: usize) -> ArrayRef {
    values.slice(from, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, StringViewArray};
    use shoal_types::{ColumnId, Incarnation, TableId};

    fn block(rows: usize) -> RowBlock {
        let names: Vec<String> = (0..rows).map(|i| format!("host-{}", i / 10)).collect();
        let mut distinct = names.clone();
        distinct.dedup();
        RowBlock {
            table: TableId::generate(),
            incarnation: Incarnation(0),
            schema_version: 1,
            series: Series {
                columns: vec![ColumnId(0)],
                len: distinct.len(),
                values: vec![Arc::new(StringViewArray::from_iter_values(&distinct))],
            },
            series_of: (0..rows)
                .map(|i| (i / 10) as u32)
                .collect::<Vec<_>>()
                .into(),
            time: Some((0..rows as i64).collect::<Vec<_>>().into()),
            columns: vec![BlockColumn {
                id: ColumnId(2),
                values: Arc::new(Int64Array::from_iter_values(
                    (0..rows as i64).map(|i| i * 7919 % 104_729),
                )),
                set: None,
            }],
            deletes: None,
        }
    }

    fn limits(bytes_max: usize, rows_max: usize) -> PartLimits {
        PartLimits::of(&EngineConfig {
            record_bytes_max: bytes_max,
            record_rows_max: rows_max,
            ..EngineConfig::default()
        })
    }

    #[test]
    fn a_retry_is_cut_alike_after_columns_were_added_and_however_badly_its_rows_shrink() {
        let limits = PartLimits::stable(RecordLimits {
            bytes: 64 << 10,
            rows: 5000,
        });
        let rows_of = |block: RowBlock| {
            let parts = cut(vec![block], limits).expect("cut");
            for part in &parts {
                assert!(part.body.len() + header_bytes(&part.tables) <= limits.bytes_max);
            }
            let rows = |p: &Part| p.blocks.iter().map(|b| b.rows()).sum::<usize>();
            parts.iter().map(rows).collect::<Vec<_>>()
        };
        let random = || {
            let text = |_| uuid::Uuid::new_v4().simple().to_string().repeat(8);
            Arc::new(StringViewArray::from_iter_values((0..3000).map(text)))
        };
        let mut first = block(3000);
        first.columns[0].values = random();
        let mut again = first.clone();
        for id in 3..40 {
            again.columns.push(BlockColumn {
                id: ColumnId(id),
                values: Arc::new(Int64Array::new_null(3000)),
                set: None,
            });
        }
        again.series.columns.push(ColumnId(40));
        let nulls = StringViewArray::new_null(again.series.len);
        again.series.values.push(Arc::new(nulls));
        let cuts = rows_of(first);
        assert!(cuts.len() > 4, "{cuts:?}");
        assert_eq!(rows_of(again), cuts);
    }

    #[test]
    fn a_large_request_becomes_parts_that_hold_every_row_once_in_order() {
        for (rows_max, bytes_max) in [(100, 1 << 20), (5000, 4096)] {
            let limits = limits(bytes_max, rows_max);
            let parts = cut(vec![block(1000)], limits).expect("cut");
            assert!(parts.len() > 1);
            let mut times = Vec::new();
            for part in &parts {
                assert!(part.body.len() <= bytes_max);
                for block in &part.blocks {
                    block.check().expect("check");
                    assert!(block.rows() <= rows_max);
                    assert!(block.series.len <= block.rows());
                    times.extend_from_slice(block.time.as_ref().expect("time"));
                }
            }
            assert_eq!(times, (0..1000).collect::<Vec<i64>>());
        }
    }

    #[test]
    fn rows_that_shrink_well_are_cut_by_their_size_in_memory_too() {
        let text = "x".repeat(4096);
        let limits = limits(64 << 10, 5000);
        let wide = |spare: usize| {
            let mut values = Vec::with_capacity(1000 + spare);
            values.extend((0..1000).map(|_| text.as_str()));
            let mut block = block(1000);
            block.columns[0].values = Arc::new(StringViewArray::from_iter_values(values));
            // The same rows in larger buffers: a retry must be cut alike.
            let long = block.time.as_ref().map(|t| t.to_vec());
            block.time = long.map(|mut t| {
                t.reserve(spare);
                t.into()
            });
            let parts = cut(vec![block], limits).expect("cut");
            let rows = |p: &Part| p.blocks.iter().map(|b| b.rows()).sum::<usize>();
            parts.iter().map(rows).collect::<Vec<_>>()
        };
        let parts = wide(0);
        assert_eq!(parts.iter().sum::<usize>(), 1000);
        let most = parts.iter().copied().max().unwrap_or(0);
        assert!(most * 4096 <= 4 * limits.bytes_max, "{parts:?}");
        assert_eq!(parts, wide(1 << 20));
    }

    #[test]
    fn a_row_beyond_the_limit_is_refused() {
        let error = cut(vec![block(1)], limits(64, 10)).expect_err("too large");
        assert!(matches!(error, WriteError::RowTooLarge { .. }), "{error}");
    }
}
