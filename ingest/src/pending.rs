//! What a request holds for one table, before the table's schema is known.

use arrow_array::{ArrayRef, UInt32Array};
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use arrow_select::take::take;
use shoal_types::ColumnType;

/// A field of the request's lines.
#[derive(Clone, Debug)]
pub struct PendingField {
    /// The name, without escapes.
    pub name: String,
    /// BIGINT, DOUBLE PRECISION, TEXT or BOOLEAN: what the lines write.
    pub column_type: ColumnType,
    /// One value a row.
    pub values: ArrayRef,
    /// The rows whose lines have the field; `None`: all. Elsewhere the value is NULL.
    pub set: Option<BooleanBuffer>,
}

/// The rows of one measurement, as columns by name.
///
/// [`Self::missing`] and [`Self::new_schema`] say what the catalog lacks, [`Self::resolve`] turns
/// it into a block of a table. It is kept until then, so that a write that meets a newer schema
/// is resolved again without parsing.
#[derive(Clone, Debug)]
pub struct PendingTable {
    /// The measurement, without escapes: the table's name.
    pub name: String,
    /// Tag names in first-seen order.
    pub tags: Vec<String>,
    /// One text array a tag, one value a series; NULL where the series lacks the tag.
    pub tag_values: Vec<ArrayRef>,
    /// Number of distinct tag sets.
    pub series: usize,
    /// The series of each row.
    pub series_of: ScalarBuffer<u32>,
    /// The time of each row in nanoseconds since the Unix epoch.
    pub times: ScalarBuffer<i64>,
    /// Fields in first-seen order.
    pub fields: Vec<PendingField>,
    /// The line number of each row, from 1.
    pub lines: Vec<u32>,
}

impl PendingTable {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.times.len()
    }

    /// The given rows (ascending, in range), with only the series that they have.
    pub(crate) fn select(&self, rows: &[u32]) -> Self {
        let mut new_series = vec![u32::MAX; self.series];
        let mut used = Vec::new();
        let series_of: Vec<u32> = rows
            .iter()
            .map(|row| {
                let old = self.series_of[*row as usize];
                let new = &mut new_series[old as usize];
                if *new == u32::MAX {
                    *new = used.len() as u32;
                    used.push(old);
                }
                *new
            })
            .collect();
        let series = used.len();
        let (rows, used) = (UInt32Array::from(rows.to_vec()), UInt32Array::from(used));
        let of = |indices: &UInt32Array, array: &ArrayRef| {
            take(array, indices, None).expect("indices of rows and series that exist")
        };
        Self {
            name: self.name.clone(),
            tags: self.tags.clone(),
            tag_values: self.tag_values.iter().map(|a| of(&used, a)).collect(),
            series,
            series_of: series_of.into(),
            times: rows
                .values()
                .iter()
                .map(|r| self.times[*r as usize])
                .collect(),
            fields: self
                .fields
                .iter()
                .map(|field| PendingField {
                    name: field.name.clone(),
                    column_type: field.column_type,
                    values: of(&rows, &field.values),
                    set: field.set.as_ref().map(|set| {
                        BooleanBuffer::collect_bool(rows.len(), |i| {
                            set.value(rows.value(i) as usize)
                        })
                    }),
                })
                .collect(),
            lines: rows
                .values()
                .iter()
                .map(|r| self.lines[*r as usize])
                .collect(),
        }
    }
}
