//! Which partition a row belongs to (DESIGN §1, `shoal_types::Extent`).
//!
//! | question | answered by |
//! |---|---|
//! | where do the rows of a block go | [`Router::route`] |
//! | which rows of a file are a partition's | [`mask`] |
//! | which partitions can hold what a query wants | [`Router::may_hold`] |
//!
//! All encode the partition columns as keys are and look the encoding up; they must agree, or rows
//! are lost or seen twice.

mod cells;
mod divide;
mod mask;
mod places;
#[cfg(test)]
mod tests;
mod wanted;

use std::fmt;

use shoal_types::{
    ColumnId, ColumnType, Extent, PartitionBounds, PartitionBy, PartitionMethod, TableSchema,
};

use crate::key::{KeyValue, decode_key};
use crate::{RowBlock, Slot, slot_of};
use cells::Cells;
use divide::divide;
use places::Places;

pub use mask::{MaskError, encodings, mask};
pub use wanted::Wanted;

/// In the place of a partition: there is none.
const NOWHERE: u32 = u32::MAX;

/// Finds the partitions of one table's rows.
///
/// Partitions are named by their index in the extents that it was made of.
#[derive(Clone, Debug)]
pub struct Router {
    by: PartitionBy,
    columns: Vec<RouteColumn>,
    /// The last column of the key: what a block's `time` holds, where it has one.
    closing: Option<ColumnId>,
    places: Places,
}

/// A partition column.
#[derive(Clone, Debug)]
struct RouteColumn {
    name: String,
    column_type: ColumnType,
}

/// Where the rows of a block go.
#[derive(Clone, Debug)]
pub enum Routed {
    /// All of them to this partition: the block is to be used as it is.
    Whole(usize),
    /// To several: ascending by partition, each block with the rows of its own in their order and
    /// only the series that these have. `table` is still the divided block's.
    Divided(Vec<(usize, RowBlock)>),
}

/// A block whose rows cannot be brought to partitions. None of them was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RouteError {
    /// A row that no partition owns.
    #[error(
        "row {}: no partition of the table is for {}; make one with ALTER TABLE … ADD PARTITION (PARTITION … {})",
        row + 1, Pairs(values), remedy(*method)
    )]
    NoPartition {
        /// Row of the block, from 0.
        row: usize,
        /// How the table is partitioned.
        method: PartitionMethod,
        /// The row's partition columns and what it holds there, in the order of the clause.
        values: Vec<(String, KeyValue)>,
    },
    /// The block is not one that [`RowBlock::check`] admits.
    #[error("a row block cannot be divided: {0}")]
    Block(String),
}

struct Pairs<'a>(&'a [(String, KeyValue)]);

impl fmt::Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} = {value}")?;
        }
        Ok(())
    }
}

fn remedy(method: PartitionMethod) -> &'static str {
    match method {
        // Slots are given to partitions without gaps: the catalog is damaged.
        PartitionMethod::Hash => "…",
        PartitionMethod::Range => "VALUES LESS THAN (…)",
        PartitionMethod::List => "VALUES IN (…)",
    }
}

impl Router {
    /// A router to the partitions that own `extents`, which are disjoint and of `by`'s method
    /// (one of another method owns nothing). `schema`: any version of the table's.
    #[must_use]
    pub fn new(by: &PartitionBy, extents: &[Extent], schema: &TableSchema) -> Self {
        let column = |id: &ColumnId| match schema.column_by_id(*id) {
            Some(column) => RouteColumn {
                name: column.name.clone(),
                column_type: column.column_type,
            },
            // NULL in every row, for which any type will do.
            None => RouteColumn {
                name: format!("column {id}"),
                column_type: ColumnType::Text,
            },
        };
        Self {
            by: by.clone(),
            columns: by.columns.iter().map(column).collect(),
            // Not the time column, which ALTER TABLE may change: the key stays.
            closing: schema.key.last().copied(),
            places: Places::new(by.method, extents),
        }
    }

    /// A router of a table that is one partition without bounds: everything goes to partition 0.
    #[must_use]
    pub fn whole() -> Self {
        Self {
            by: PartitionBy {
                method: PartitionMethod::Range,
                columns: Vec::new(),
            },
            columns: Vec::new(),
            closing: None,
            places: Places::Whole,
        }
    }

    /// Whether everything goes to partition 0, so that rows need not be looked at.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.places, Places::Whole)
    }

    /// Finds each row's partition. The block is copied only if its rows go to several; one without
    /// rows goes to none.
    ///
    /// # Errors
    /// [`RouteError::NoPartition`] for the first row that no partition owns;
    /// [`RouteError::Block`] for a damaged block.
    pub fn route(&self, block: &RowBlock) -> Result<Routed, RouteError> {
        if self.is_whole() {
            return Ok(Routed::Whole(0));
        }
        if block.rows() == 0 {
            return Ok(Routed::Divided(Vec::new()));
        }
        let of_row = match Search::new(self, block).of_rows(block) {
            Found::All(partition) => return Ok(Routed::Whole(partition as usize)),
            Found::Each(of_row) => of_row,
        };
        if let Some(row) = of_row.iter().position(|place| *place == NOWHERE) {
            return Err(self.no_partition(block, row));
        }
        let first = of_row[0];
        if of_row.iter().all(|place| *place == first) {
            return Ok(Routed::Whole(first as usize));
        }
        divide(block, &of_row).map(Routed::Divided)
    }

    /// As [`Self::route`], but takes the block and gives it back if all of it goes to one
    /// partition.
    ///
    /// # Errors
    /// As [`Self::route`].
    pub fn divide(&self, block: RowBlock) -> Result<Vec<(usize, RowBlock)>, RouteError> {
        Ok(match self.route(&block)? {
            Routed::Whole(partition) => vec![(partition, block)],
            Routed::Divided(parts) => parts,
        })
    }

    fn no_partition(&self, block: &RowBlock, row: usize) -> RouteError {
        let mut key = Vec::new();
        Cells::of_block(block, &self.by.columns, self.closing).encode(
            row,
            block.series_of[row] as usize,
            &mut key,
        );
        let types: Vec<_> = self.columns.iter().map(|c| c.column_type).collect();
        let names = self.columns.iter().map(|c| c.name.clone());
        RouteError::NoPartition {
            row,
            method: self.by.method,
            values: match decode_key(&key, &types) {
                Ok(values) => names.zip(values).collect(),
                // Of a type that the table's column does not have; the bytes tell.
                Err(_) => names.zip([KeyValue::Binary(key)]).collect(),
            },
        }
    }
}

/// The rows of a block that lie outside a partition's bounds; `None`: none does. `schema`: any
/// version of the table's.
///
/// # Errors
/// [`RouteError::Block`] for a damaged block.
pub fn outside(
    block: &RowBlock,
    bounds: &PartitionBounds,
    schema: &TableSchema,
) -> Result<Option<RowBlock>, RouteError> {
    if block.rows() == 0 {
        return Ok(None);
    }
    let router = Router::new(&bounds.by, std::slice::from_ref(&bounds.extent), schema);
    let places = match Search::new(&router, block).of_rows(block) {
        Found::All(_) => return Ok(None),
        Found::Each(places) => places,
    };
    let is_inside: Vec<u32> = places.iter().map(|p| u32::from(*p != NOWHERE)).collect();
    let mut parts = divide(block, &is_inside)?;
    Ok(match parts.first() {
        Some((0, _)) => Some(parts.swap_remove(0).1),
        _ => None,
    })
}

/// A search of rows' partitions, with the memory that it needs again and again.
struct Search<'a> {
    places: &'a Places,
    key: Cells<'a>,
    /// For each list of columns in `Lists::within`.
    within: Vec<Cells<'a>>,
    bytes: Vec<u8>,
    within_bytes: Vec<u8>,
}

/// The partitions of a block's rows.
enum Found {
    /// All of them have this one.
    All(u32),
    /// One a row, or [`NOWHERE`].
    Each(Vec<u32>),
}

impl<'a> Search<'a> {
    fn new(router: &'a Router, block: &'a RowBlock) -> Self {
        let within = match &router.places {
            Places::Lists(lists) => lists.within.as_slice(),
            _ => &[],
        };
        let cells = |columns: &[ColumnId]| Cells::of_block(block, columns, router.closing);
        Self {
            places: &router.places,
            key: cells(&router.by.columns),
            within: within.iter().map(|columns| cells(columns)).collect(),
            bytes: Vec::new(),
            within_bytes: Vec::new(),
        }
    }

    fn of_rows(&mut self, block: &RowBlock) -> Found {
        let is_of_series = self.key.is_of_series() && self.within.iter().all(Cells::is_of_series);
        // A block may hold more series than its rows have.
        if !is_of_series || block.series.len > 2 * block.rows() {
            return Found::Each(self.find_each(&block.series_of));
        }
        let of_series: Vec<u32> = (0..block.series.len).map(|s| self.find(0, s)).collect();
        match of_series.first() {
            Some(first) if *first != NOWHERE && of_series.iter().all(|place| place == first) => {
                Found::All(*first)
            }
            _ => {
                let series = block.series_of.iter();
                Found::Each(series.map(|s| of_series[*s as usize]).collect())
            }
        }
    }

    fn find_each(&mut self, series_of: &[u32]) -> Vec<u32> {
        let mut found = Vec::with_capacity(series_of.len());
        let mut last = (0, 0, NOWHERE);
        for (row, series) in series_of.iter().enumerate() {
            let now = (row, *series as usize);
            // Rows of one time, or of one series, come together.
            let is_same = |cells: &Cells| cells.is_same((last.0, last.1), now);
            if row == 0 || !(is_same(&self.key) && self.within.iter().all(is_same)) {
                last.2 = self.find(row, now.1);
            }
            (last.0, last.1) = now;
            found.push(last.2);
        }
        found
    }

    fn find(&mut self, row: usize, series: usize) -> u32 {
        self.bytes.clear();
        self.key.encode(row, series, &mut self.bytes);
        match self.places {
            Places::Whole => 0,
            Places::Slots(places) => places.find(slot_of(&self.bytes)),
            Places::Keys(places) => places.find(&self.bytes),
            Places::Lists(lists) => {
                let (within, buffer) = (&self.within, &mut self.within_bytes);
                lists.find(&self.bytes, |columns, range| {
                    buffer.clear();
                    within[columns].encode(row, series, buffer);
                    range.contains(buffer)
                })
            }
        }
    }
}
