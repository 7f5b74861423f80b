//! Some columns of a block or a batch, to be encoded row by row.

use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use shoal_types::ColumnId;

use crate::key::{KeyColumn, encode_null};
use crate::{RowBlock, encode_time};

/// Columns in the order in which they are encoded.
pub(super) struct Cells<'a>(Vec<Cell<'a>>);

enum Cell<'a> {
    /// One value a series.
    Series(KeyColumn<'a>),
    /// One value a row.
    Row(KeyColumn<'a>),
    /// The closing time column of the key.
    Time(&'a [i64]),
    /// NULL in every row.
    Null,
}

impl<'a> Cells<'a> {
    /// Columns of a block; `closing` is the column that its `time` holds, where it has one. What
    /// the block does not hold is NULL.
    pub(super) fn of_block(
        block: &'a RowBlock,
        columns: &[ColumnId],
        closing: Option<ColumnId>,
    ) -> Self {
        let cell = |id: &ColumnId| {
            if let Some(at) = block.series.columns.iter().position(|c| c == id) {
                return Cell::Series(KeyColumn::new(block.series.values[at].as_ref()));
            }
            if let Some(time) = &block.time
                && closing == Some(*id)
            {
                return Cell::Time(time);
            }
            match block.columns.binary_search_by_key(id, |c| c.id) {
                Ok(at) => Cell::Row(KeyColumn::new(block.columns[at].values.as_ref())),
                Err(_) => Cell::Null,
            }
        };
        Self(columns.iter().map(cell).collect())
    }

    /// Columns of a batch, with one value a row; `None` is NULL in every row.
    ///
    /// # Errors
    /// Index and type of the first array of a type that no column can have.
    pub(super) fn of_arrays(arrays: &'a [Option<ArrayRef>]) -> Result<Self, (usize, DataType)> {
        let cell = |(at, array): (usize, &'a Option<ArrayRef>)| match array {
            None => Ok(Cell::Null),
            Some(array) => KeyColumn::of(array.as_ref())
                .map(Cell::Row)
                .ok_or_else(|| (at, array.data_type().clone())),
        };
        let cells = arrays.iter().enumerate().map(cell);
        Ok(Self(cells.collect::<Result<_, _>>()?))
    }

    /// Whether all rows of a series have the same values.
    pub(super) fn is_of_series(&self) -> bool {
        let mut cells = self.0.iter();
        cells.all(|cell| matches!(cell, Cell::Series(_) | Cell::Null))
    }

    /// Appends the encoding of a row's values. `row` counts only if not [`Self::is_of_series`].
    pub(super) fn encode(&self, row: usize, series: usize, out: &mut Vec<u8>) {
        for cell in &self.0 {
            match cell {
                Cell::Series(column) => column.encode(series, out),
                Cell::Row(column) => column.encode(row, out),
                Cell::Time(time) => encode_time(time[row], out),
                Cell::Null => encode_null(out),
            }
        }
    }

    /// Whether two rows, each with its series, have the same values. Those of two series may be
    /// the same and this say no.
    #[inline]
    pub(super) fn is_same(&self, row: (usize, usize), other: (usize, usize)) -> bool {
        self.0.iter().all(|cell| match cell {
            Cell::Series(_) => row.1 == other.1,
            Cell::Row(column) => column.is_same(row.0, other.0),
            Cell::Time(time) => time[row.0] == time[other.0],
            Cell::Null => true,
        })
    }
}
