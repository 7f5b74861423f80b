//! Which rows of a batch are a partition's: of a file or memtable that was written when the
//! partition owned more than it does now.

use arrow_array::{Array, ArrayRef};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use shoal_types::{ColumnId, Extent, KeyRange, PartitionBounds, SlotRange};

use super::NOWHERE;
use super::cells::Cells;
use super::places::Keys;
use crate::slot_of;

/// Columns that cannot be measured by a partition's bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// A column in a type that no table column has.
    #[error("column {column}: no column can have the type {found}")]
    WrongType {
        /// The column.
        column: ColumnId,
        /// Its type.
        found: DataType,
    },
    /// A column of another length.
    #[error("column {column} holds {found} of {rows} values")]
    Length {
        /// The column.
        column: ColumnId,
        /// Its length.
        found: usize,
        /// The batch's length.
        rows: usize,
    },
}

/// The rows (`true`) that are inside a partition's bounds.
///
/// `columns` gives the columns of a batch of `rows` rows, each in its Arrow type
/// (`ColumnType::arrow`); `None` is NULL in every row, as a column is that was added after the
/// file was written. Only the columns that the bounds are measured by are asked for. Rows with the
/// values of the row before them cost least.
///
/// # Errors
/// [`MaskError`] for a column of another type or length.
pub fn mask(
    bounds: &PartitionBounds,
    columns: &dyn Fn(ColumnId) -> Option<ArrayRef>,
    rows: usize,
) -> Result<BooleanBuffer, MaskError> {
    let is_whole = match &bounds.extent {
        Extent::Slots(slots) => *slots == SlotRange::WHOLE,
        Extent::Keys(range) => *range == KeyRange::WHOLE,
        Extent::Values { .. } => false,
    };
    if is_whole {
        return Ok(BooleanBuffer::new_set(rows));
    }
    let key = Arrays::new(&bounds.by.columns, columns, rows)?;
    let key = key.cells()?;
    Ok(match &bounds.extent {
        Extent::Slots(slots) => collect(&key, rows, |key| slots.contains(u32::from(slot_of(key)))),
        Extent::Keys(_) => {
            let keys = Keys::new(std::slice::from_ref(&bounds.extent));
            collect(&key, rows, |key| keys.find(key) != NOWHERE)
        }
        Extent::Values { values, within } => {
            let is_value = |key: &[u8]| values.binary_search_by(|v| v.as_slice().cmp(key)).is_ok();
            let of_values = collect(&key, rows, |key| is_value(key));
            let Some(within) = within else {
                return Ok(of_values);
            };
            let inner = Arrays::new(&within.columns, columns, rows)?;
            let of_range = collect(&inner.cells()?, rows, |key| within.range.contains(key));
            &of_values & &of_range
        }
    })
}

/// The encodings of some columns in every row, by which partitions are measured. Arguments as of
/// [`mask`].
///
/// # Errors
/// [`MaskError`] for a column of another type or length.
pub fn encodings(
    ids: &[ColumnId],
    columns: &dyn Fn(ColumnId) -> Option<ArrayRef>,
    rows: usize,
) -> Result<Vec<Vec<u8>>, MaskError> {
    let arrays = Arrays::new(ids, columns, rows)?;
    let cells = arrays.cells()?;
    let encode = |row| {
        let mut key = Vec::new();
        cells.encode(row, 0, &mut key);
        key
    };
    Ok((0..rows).map(encode).collect())
}

/// Columns of a batch.
struct Arrays<'a> {
    ids: &'a [ColumnId],
    arrays: Vec<Option<ArrayRef>>,
}

impl<'a> Arrays<'a> {
    fn new(
        ids: &'a [ColumnId],
        columns: &dyn Fn(ColumnId) -> Option<ArrayRef>,
        rows: usize,
    ) -> Result<Self, MaskError> {
        let arrays: Vec<_> = ids.iter().map(|id| columns(*id)).collect();
        for (column, array) in ids.iter().zip(&arrays) {
            if let Some(array) = array
                && array.len() != rows
            {
                return Err(MaskError::Length {
                    column: *column,
                    found: array.len(),
                    rows,
                });
            }
        }
        Ok(Self { ids, arrays })
    }

    fn cells(&self) -> Result<Cells<'_>, MaskError> {
        Cells::of_arrays(&self.arrays).map_err(|(at, found)| MaskError::WrongType {
            column: self.ids[at],
            found,
        })
    }
}

/// Asks for each row that differs from the one before it.
fn collect(cells: &Cells, rows: usize, is_inside: impl Fn(&[u8]) -> bool) -> BooleanBuffer {
    let mut key = Vec::new();
    let mut verdict = false;
    BooleanBuffer::collect_bool(rows, |row| {
        if row == 0 || !cells.is_same((row, 0), (row - 1, 0)) {
            key.clear();
            cells.encode(row, 0, &mut key);
            verdict = is_inside(&key);
        }
        verdict
    })
}
