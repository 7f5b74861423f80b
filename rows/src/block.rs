//! One table's rows as columns.
//!
//! Keys are split in two, because time series repeat the first part on every row: the *series*
//! (all key columns but a closing time column) is stored once per distinct value in the block,
//! the time once a row. A table whose key does not end with its time column has no time part:
//! its series is its whole key. An append table without a key has one empty series.

use arrow_array::ArrayRef;
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use shoal_types::{ColumnId, Incarnation, TableId};

use crate::values::stored_type;

/// The distinct series of a block.
///
/// Shape: `values[c]` has `len` entries and belongs to column `columns[c]`, in key order, each in
/// the column's Arrow type (`ColumnType::arrow`). NULL is a key value like any other.
#[derive(Clone, Debug)]
pub struct Series {
    /// Key columns without a closing time column, in key order. May be empty.
    pub columns: Vec<ColumnId>,
    /// One array per column, `len` long.
    pub values: Vec<ArrayRef>,
    /// Number of distinct series; 1 where `columns` is empty and the block has rows.
    pub len: usize,
}

/// Values of one column that is not in the key.
#[derive(Clone, Debug)]
pub struct BlockColumn {
    /// The column.
    pub id: ColumnId,
    /// One value a row, in the column's Arrow type.
    pub values: ArrayRef,
    /// Rows that write this column (`true`); others leave the stored value as it is (upsert) or
    /// NULL (append, and a key that is new). `None`: every row writes it. Where the bit is
    /// false, `values` is NULL there.
    pub set: Option<BooleanBuffer>,
}

/// Rows of one table, in the order in which they were written. A later row of a key wins.
///
/// Columns that the block does not hold are not written by any of its rows.
#[derive(Clone, Debug)]
pub struct RowBlock {
    /// The table.
    pub table: TableId,
    /// The table's incarnation for which it was built.
    pub incarnation: Incarnation,
    /// The schema version for which it was built.
    pub schema_version: u32,
    /// Distinct series.
    pub series: Series,
    /// The series of each row, an index into `series`. Its length is the number of rows.
    pub series_of: ScalarBuffer<u32>,
    /// The closing time column of the key in that column's unit, one a row; `None` where the key
    /// does not end with the time column.
    pub time: Option<ScalarBuffer<i64>>,
    /// Columns that are not in the key, ascending by id.
    pub columns: Vec<BlockColumn>,
    /// Rows that delete their key (`true`); such a row writes no columns. `None`: none do.
    pub deletes: Option<BooleanBuffer>,
}

/// A block whose parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row block of table {table}: {what}")]
pub struct BlockError {
    /// The table.
    pub table: TableId,
    /// What does not fit.
    pub what: String,
}

impl RowBlock {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.series_of.len()
    }

    /// Bytes held in memory by this block's arrays and indexes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let arrays = self
            .series
            .values
            .iter()
            .chain(self.columns.iter().map(|c| &c.values))
            .map(arrow_array::Array::get_array_memory_size)
            .sum::<usize>();
        arrays
            + self.series_of.len() * 4
            + self.time.as_ref().map_or(0, |t| t.len() * 8)
            + self.columns.iter().filter(|c| c.set.is_some()).count() * self.rows().div_ceil(8)
            + 256
    }

    /// Checks that all lengths agree, that every index is in range and that columns can have the
    /// arrays' types. Run on both sides of the log.
    ///
    /// # Errors
    /// [`BlockError`] naming the part; the block must not be used.
    pub fn check(&self) -> Result<(), BlockError> {
        let rows = self.rows();
        let fail = |what: String| {
            Err(BlockError {
                table: self.table,
                what,
            })
        };
        if self.series.columns.len() != self.series.values.len() {
            return fail("series columns and values differ in number".into());
        }
        let mut arrays = self
            .series
            .values
            .iter()
            .chain(self.columns.iter().map(|c| &c.values));
        if let Some(bad) = arrays.find(|a| stored_type(a.data_type()).is_none()) {
            return fail(format!("no column can have the type {}", bad.data_type()));
        }
        if let Some(bad) = self
            .series
            .values
            .iter()
            .find(|v| v.len() != self.series.len)
        {
            return fail(format!(
                "a series column holds {} of {} values",
                bad.len(),
                self.series.len
            ));
        }
        if self
            .series_of
            .iter()
            .any(|&s| s as usize >= self.series.len)
        {
            return fail(format!("a row names a series beyond {}", self.series.len));
        }
        if let Some(time) = &self.time
            && time.len() != rows
        {
            return fail(format!("{} times for {rows} rows", time.len()));
        }
        for column in &self.columns {
            if column.values.len() != rows {
                return fail(format!(
                    "column {} holds {} of {rows} values",
                    column.id,
                    column.values.len()
                ));
            }
            if column.set.as_ref().is_some_and(|s| s.len() != rows) {
                return fail(format!(
                    "column {}: set bitmap of another length",
                    column.id
                ));
            }
        }
        if self.columns.windows(2).any(|w| w[0].id >= w[1].id) {
            return fail("columns are not ascending by id".into());
        }
        if self.deletes.as_ref().is_some_and(|d| d.len() != rows) {
            return fail("deletes bitmap of another length".into());
        }
        Ok(())
    }
}
