//! From columns by name to a block of a table with a schema.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{Field, Schema};
use arrow_select::take::take;
use shoal_rows::{BlockColumn, RowBlock, Series, block_from_batch, i64_array};
use shoal_types::{Column, ColumnId, ColumnType, TableSchema, TimePrecision};

use crate::error::LineErrors;
use crate::pending::{PendingField, PendingTable};

/// Rows for the log, and the lines among them that the table cannot take.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The good rows; may have none.
    pub block: RowBlock,
    /// The others.
    pub errors: LineErrors,
}

impl PendingTable {
    /// Maps names to a table's columns: tags to key columns, fields to the others, the timestamp
    /// to the table's time column (in its unit, rounded down).
    ///
    /// Rows that name a column the table lacks or has in another role or type are refused, with
    /// the line's number; the others are in the block. Types are not converted: an integer field
    /// is no DOUBLE PRECISION, as in InfluxDB.
    #[must_use]
    pub fn resolve(&self, schema: &TableSchema) -> Resolved {
        let mut errors = LineErrors::default();
        let refused = self.refused_rows(schema, &mut errors);
        if errors.is_empty()
            && let Some(block) = self.block(schema)
        {
            return Resolved { block, errors };
        }
        let good: Vec<u32> = (0..)
            .zip(&refused)
            .filter_map(|(row, refused)| (!refused).then_some(row))
            .collect();
        if let Some(block) = self.select(&good).block(schema) {
            return Resolved { block, errors };
        }
        // Only a schema that TableSchema::check refuses leads here.
        let mut errors = LineErrors::default();
        for line in &self.lines {
            errors.push(*line, 1, "the table's schema does not take line protocol");
        }
        let block = RowBlock {
            table: schema.table,
            incarnation: schema.incarnation,
            schema_version: schema.version,
            series: Series {
                columns: Vec::new(),
                values: Vec::new(),
                len: 0,
            },
            series_of: Vec::new().into(),
            time: None,
            columns: Vec::new(),
            deletes: None,
        };
        Resolved { block, errors }
    }

    /// Which rows the table cannot take; each is one error, with the first reason found.
    fn refused_rows(&self, schema: &TableSchema, errors: &mut LineErrors) -> Vec<bool> {
        let mut reasons: Vec<String> = Vec::new();
        let mut reason_of = vec![0_usize; self.rows()];
        let mut refuse = |reason: String, hit: &dyn Fn(usize) -> bool| {
            reasons.push(reason);
            for (row, of) in reason_of.iter_mut().enumerate() {
                if *of == 0 && hit(row) {
                    *of = reasons.len();
                }
            }
        };
        if schema.time_column.is_none() {
            refuse(
                "the table has no time column; set one WITH (time_column = '…')".to_owned(),
                &|_| true,
            );
        }
        for (name, values) in self.tags.iter().zip(&self.tag_values) {
            if let Some(reason) = tag_conflict(schema, name) {
                refuse(reason, &|row| values.is_valid(self.series_of[row] as usize));
            }
        }
        for field in &self.fields {
            if let Some(reason) = field_conflict(schema, &field.name, field.column_type) {
                refuse(reason, &|row| {
                    field.set.as_ref().is_none_or(|set| set.value(row))
                });
            }
        }
        for column in &schema.columns {
            if column.nullable || schema.time_column == Some(column.id) {
                continue;
            }
            let reason = format!(
                "column {:?} is NOT NULL and the line does not set it",
                column.name
            );
            if let Some(tag) = self.tags.iter().position(|t| *t == column.name) {
                let values = &self.tag_values[tag];
                refuse(reason, &|row| values.is_null(self.series_of[row] as usize));
            } else if let Some(field) = self.fields.iter().find(|f| f.name == column.name) {
                refuse(reason, &|row| {
                    field.set.as_ref().is_some_and(|set| !set.value(row))
                });
            } else {
                refuse(reason, &|_| true);
            }
        }
        for (row, reason) in reason_of.iter().enumerate() {
            if let Some(reason) = reason.checked_sub(1).and_then(|i| reasons.get(i)) {
                errors.push(self.lines[row], 1, reason.as_str());
            }
        }
        reason_of.iter().map(|reason| *reason > 0).collect()
    }

    /// The block of rows none of which the table refuses.
    fn block(&self, schema: &TableSchema) -> Option<RowBlock> {
        let time = schema.column_by_id(schema.time_column?)?;
        let ColumnType::Timestamp { precision, .. } = time.column_type else {
            return None;
        };
        let times = in_unit(&self.times, precision);
        let mut block = if schema.key_ends_with_time() {
            self.time_series_block(schema, times)?
        } else {
            self.other_block(schema, time, times)?
        };
        for field in &self.fields {
            if let Some(column) = schema.column(&field.name)
                && let Ok(at) = block.columns.binary_search_by_key(&column.id, |c| c.id)
            {
                block.columns[at].set = field.set.clone();
            }
        }
        Some(block)
    }

    /// The usual case: the key is a series and the time.
    fn time_series_block(
        &self,
        schema: &TableSchema,
        times: ScalarBuffer<i64>,
    ) -> Option<RowBlock> {
        let ids = schema.series_columns();
        let values = ids
            .iter()
            .map(|id| {
                let column = schema.column_by_id(*id)?;
                Some(match self.tags.iter().position(|t| *t == column.name) {
                    Some(tag) => Arc::clone(&self.tag_values[tag]),
                    None => new_null_array(&column.column_type.arrow(), self.series),
                })
            })
            .collect::<Option<_>>()?;
        Some(RowBlock {
            table: schema.table,
            incarnation: schema.incarnation,
            schema_version: schema.version,
            series: Series {
                columns: ids.to_vec(),
                values,
                len: self.series,
            },
            series_of: self.series_of.clone(),
            time: Some(times),
            columns: self.value_columns(schema),
            deletes: None,
        })
    }

    fn value_columns(&self, schema: &TableSchema) -> Vec<BlockColumn> {
        let mut columns: Vec<_> = self
            .used_fields()
            .filter_map(|field| {
                Some(BlockColumn {
                    id: schema.column(&field.name)?.id,
                    values: Arc::clone(&field.values),
                    set: None,
                })
            })
            .collect();
        columns.sort_by_key(|c| c.id);
        columns
    }

    /// Fields that at least one row has: a field of refused rows only is not written.
    fn used_fields(&self) -> impl Iterator<Item = &PendingField> {
        self.fields
            .iter()
            .filter(|f| f.set.as_ref().is_none_or(|s| s.count_set_bits() > 0))
            .filter(|_| self.rows() > 0)
    }

    /// A key without the time at its end (a table made by SQL): as SQL would insert the rows.
    fn other_block(
        &self,
        schema: &TableSchema,
        time: &Column,
        times: ScalarBuffer<i64>,
    ) -> Option<RowBlock> {
        let mut ids: Vec<ColumnId> = vec![time.id];
        let mut arrays: Vec<ArrayRef> = vec![i64_array(time.column_type, times, None)];
        let series_of = UInt32Array::new(self.series_of.clone(), None);
        for (name, values) in self.tags.iter().zip(&self.tag_values) {
            // A tag that no remaining row has may be one that the table lacks.
            if values.null_count() < values.len() {
                ids.push(schema.column(name)?.id);
                arrays.push(take(values, &series_of, None).ok()?);
            }
        }
        for field in self.used_fields() {
            ids.push(schema.column(&field.name)?.id);
            arrays.push(Arc::clone(&field.values));
        }
        let fields: Vec<_> = arrays
            .iter()
            .zip(&ids)
            .map(|(a, id)| Field::new(id.to_string(), a.data_type().clone(), true))
            .collect();
        let batch = RecordBatch::try_new_with_options(
            Arc::new(Schema::new(fields)),
            arrays,
            &RecordBatchOptions::new().with_row_count(Some(self.rows())),
        )
        .ok()?;
        block_from_batch(schema, &batch, &ids, false).ok()
    }
}

/// Why a tag of this name cannot be stored in the table.
pub(crate) fn tag_conflict(schema: &TableSchema, name: &str) -> Option<String> {
    match schema.column(name) {
        None => Some(format!("the table has no column for tag {name:?}")),
        Some(column) if schema.time_column == Some(column.id) => {
            Some(format!("{name:?} is the table's time column, here a tag"))
        }
        Some(column) if !schema.is_key(column.id) => {
            Some(format!("{name:?} is a field of the table, here a tag"))
        }
        Some(column) if column.column_type != ColumnType::Text => Some(format!(
            "tag {name:?} is TEXT, but the table's column is {}",
            column.column_type
        )),
        Some(_) => None,
    }
}

/// Why a field of this name and type cannot be stored in the table.
pub(crate) fn field_conflict(
    schema: &TableSchema,
    name: &str,
    column_type: ColumnType,
) -> Option<String> {
    match schema.column(name) {
        None => Some(format!("the table has no column for field {name:?}")),
        Some(column) if schema.time_column == Some(column.id) => {
            Some(format!("{name:?} is the table's time column, here a field"))
        }
        Some(column) if schema.is_key(column.id) => {
            Some(format!("{name:?} is a tag of the table, here a field"))
        }
        Some(column) if column.column_type != column_type => Some(format!(
            "field {name:?} is of type {column_type} here and {} in the table",
            column.column_type
        )),
        Some(_) => None,
    }
}

/// Nanoseconds in another unit, rounded down (towards the past).
fn in_unit(times: &ScalarBuffer<i64>, precision: TimePrecision) -> ScalarBuffer<i64> {
    let divisor = TimePrecision::Nanosecond.per_second() / precision.per_second();
    if divisor == 1 {
        return times.clone();
    }
    times.iter().map(|t| t.div_euclid(divisor)).collect()
}
