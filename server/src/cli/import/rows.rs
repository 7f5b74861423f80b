//! Rows of CSV and Parquet on their way into chunks: each value is cast to its column's type; a
//! row with a value that does not fit is left out and reported, the others go on.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{Field, Schema};
use bytes::Bytes;

use super::chunk::{BAD_SHOWN_MAX, BadLine};
use super::table::TargetColumn;
use crate::cli::CliError;

/// Which input column goes to which table column.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// `(place in the input, table column)`
    pub pairs: Vec<(usize, TargetColumn)>,
}

impl Mapping {
    /// Matches by name: exactly, else without regard to case.
    ///
    /// # Errors
    /// An input column that the table does not have; a NOT NULL column without input.
    pub fn by_name(names: &[String], columns: &[TargetColumn]) -> Result<Self, CliError> {
        let mut pairs = Vec::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            let found = columns.iter().find(|c| c.name == *name).or_else(|| {
                let mut folded = columns.iter().filter(|c| c.name.eq_ignore_ascii_case(name));
                folded.next().filter(|_| folded.next().is_none())
            });
            let Some(column) = found else {
                let have: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
                return Err(CliError::failed(format!(
                    "the table has no column {name:?}; it has {}",
                    have.join(", ")
                )));
            };
            if pairs
                .iter()
                .any(|(_, c): &(usize, TargetColumn)| c.name == column.name)
            {
                return Err(CliError::failed(format!(
                    "two columns of the input go to {:?}",
                    column.name
                )));
            }
            pairs.push((i, column.clone()));
        }
        let missing = columns
            .iter()
            .find(|c| !c.nullable && !pairs.iter().any(|(_, p)| p.name == c.name));
        if let Some(column) = missing {
            return Err(CliError::failed(format!(
                "column {:?} must not be NULL, but the input has no such column",
                column.name
            )));
        }
        Ok(Self { pairs })
    }
}

/// Good rows as an Arrow IPC stream, and the bad ones.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Empty: no row is good.
    pub body: Bytes,
    /// The first bad rows.
    pub bad: Vec<BadLine>,
    /// Number of bad rows.
    pub bad_count: u64,
}

/// Casts the columns of a batch and encodes its good rows. `line_of(row)` numbers the rows for
/// reports; `shown(column, row)` is a bad value for people.
pub fn encode(
    columns: &[ArrayRef],
    rows: usize,
    mapping: &Mapping,
    line_of: impl Fn(usize) -> u64,
    shown: impl Fn(usize, usize) -> String,
) -> Result<Encoded, CliError> {
    let options = CastOptions {
        safe: true,
        ..Default::default()
    };
    let mut out = Encoded::default();
    let mut good = vec![true; rows];
    let mut arrays = Vec::with_capacity(mapping.pairs.len());
    for (place, (input, column)) in mapping.pairs.iter().enumerate() {
        let from = &columns[*input];
        let to = cast_with_options(from, &column.data_type, &options)
            .map_err(|e| CliError::failed(format!("column {:?}: {e}", column.name)))?;
        if to.null_count() > 0 {
            for (row, good) in good.iter_mut().enumerate() {
                if !*good || to.is_valid(row) {
                    continue;
                }
                let reason = if from.is_valid(row) {
                    format!(
                        "{:?} is no {} (column {:?})",
                        shown(*input, row),
                        column.data_type,
                        column.name
                    )
                } else if column.nullable {
                    continue;
                } else {
                    format!("column {:?} must not be NULL", column.name)
                };
                *good = false;
                out.bad_count += 1;
                if out.bad.len() < BAD_SHOWN_MAX {
                    out.bad.push(BadLine {
                        line: line_of(row),
                        column: place as u64 + 1,
                        reason,
                    });
                }
            }
        }
        arrays.push(to);
    }
    let fields: Vec<Field> = mapping
        .pairs
        .iter()
        .map(|(_, c)| Field::new(&c.name, c.data_type.clone(), true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let mut batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
    if out.bad_count > 0 {
        batch = arrow::compute::filter_record_batch(&batch, &BooleanArray::from(good))?;
    }
    if batch.num_rows() > 0 {
        let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
        writer.write(&batch)?;
        writer.finish()?;
        out.body = writer.into_inner()?.into();
    }
    out.bad.sort_by_key(|b| b.line);
    Ok(out)
}
