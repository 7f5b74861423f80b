//! The byte form of a series by which files and memtables order, look up and bound it.

use arrow_array::Array;
use shoal_rows::{Series, encode_series};

/// Encodes series of one block or batch.
///
/// The form is `shoal_rows::encode_series` without trailing NULL columns. Line protocol appends
/// key columns to a table, always after the others, and rows from before have NULL there; cutting
/// trailing NULLs gives such a row one form whichever schema it was written with. Order is kept:
/// NULL sorts first, as does a prefix.
#[derive(Clone, Debug)]
pub struct SeriesEncoder {
    /// `prefixes[k]` holds the first `k` columns; only the last one where no column has NULLs.
    prefixes: Vec<Series>,
    has_nulls: bool,
}

impl SeriesEncoder {
    /// An encoder for the entries of `series`.
    #[must_use]
    pub fn new(series: &Series) -> Self {
        let has_nulls = series.values.iter().any(|v| v.null_count() > 0);
        let prefixes = if has_nulls {
            (0..=series.columns.len())
                .map(|k| Series {
                    columns: series.columns[..k].to_vec(),
                    values: series.values[..k].to_vec(),
                    len: series.len,
                })
                .collect()
        } else {
            vec![series.clone()]
        };
        Self {
            prefixes,
            has_nulls,
        }
    }

    /// Appends the encoding of entry `index` to `out`.
    pub fn encode(&self, index: usize, out: &mut Vec<u8>) {
        let Some(full) = self.prefixes.last() else {
            return;
        };
        if !self.has_nulls {
            encode_series(full, index, out);
            return;
        }
        let columns = full
            .values
            .iter()
            .rposition(|v| v.is_valid(index))
            .map_or(0, |last| last + 1);
        encode_series(&self.prefixes[columns], index, out);
    }
}
