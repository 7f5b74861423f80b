//! Parquet. Rows of a chunk are as many as the file's own figures say make about 8 MiB.

use std::fs::File;

use arrow_cast::display::array_value_to_string;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use parquet::file::metadata::ParquetMetaData;

use super::chunk::{Chunk, Chunks};
use super::rows::{Mapping, encode};
use super::source::Source;
use super::table::InputColumn;
use crate::cli::CliError;

const BYTES: u64 = 8 << 20;
const ROWS_MAX: u64 = 50_000;

/// An open Parquet input.
pub struct ParquetInput {
    builder: ParquetRecordBatchReaderBuilder<File>,
    /// Names of its columns.
    pub names: Vec<String>,
    /// Its columns.
    pub columns: Vec<InputColumn>,
    name: String,
    stored_bytes: u64,
    rows: u64,
    rows_per_chunk: u64,
}

impl ParquetInput {
    /// Opens the input and reads its footer.
    pub fn open(source: &Source) -> Result<Self, CliError> {
        let name = source.name();
        let file = source.open_seekable()?;
        let stored_bytes = source.stored_bytes()?.unwrap_or(0);
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|e| CliError::failed(format!("{name} is no readable Parquet file: {e}")))?;
        let columns: Vec<InputColumn> = builder
            .schema()
            .fields()
            .iter()
            .enumerate()
            .map(|(i, field)| InputColumn {
                name: field.name().clone(),
                data_type: field.data_type().clone(),
                has_nulls: field.is_nullable() && may_have_nulls(builder.metadata(), i),
            })
            .collect();
        let groups = builder.metadata().row_groups();
        let figure = |of: fn(&parquet::file::metadata::RowGroupMetaData) -> i64| {
            groups
                .iter()
                .map(|g| u64::try_from(of(g)).unwrap_or(0))
                .sum::<u64>()
        };
        let rows = figure(|g| g.num_rows());
        let bytes = figure(|g| g.total_byte_size());
        let rows_per_chunk = (BYTES / (bytes / rows.max(1)).max(1)).clamp(256, ROWS_MAX);
        Ok(Self {
            names: columns.iter().map(|c| c.name.clone()).collect(),
            columns,
            builder,
            name,
            stored_bytes,
            rows,
            rows_per_chunk,
        })
    }

    /// Chunks whose columns go where `mapping` says.
    pub fn chunks(self, mapping: Mapping) -> Result<ParquetChunks, CliError> {
        let reader = self
            .builder
            .with_batch_size(usize::try_from(self.rows_per_chunk).unwrap_or(256))
            .build()
            .map_err(|e| CliError::failed(format!("{}: {e}", self.name)))?;
        Ok(ParquetChunks {
            reader,
            mapping,
            name: self.name,
            stored_bytes: self.stored_bytes,
            rows: self.rows,
            rows_done: 0,
            number: 0,
        })
    }
}

/// Whether the statistics leave room for a NULL. Files with nested columns number their leaves
/// otherwise; those are refused later for the nested column.
fn may_have_nulls(metadata: &ParquetMetaData, column: usize) -> bool {
    !metadata.row_groups().iter().all(|group| {
        let statistics = group.columns().get(column).and_then(|c| c.statistics());
        statistics.and_then(|s| s.null_count_opt()) == Some(0)
    })
}

/// Chunks of Parquet rows.
pub struct ParquetChunks {
    reader: ParquetRecordBatchReader,
    mapping: Mapping,
    name: String,
    stored_bytes: u64,
    rows: u64,
    rows_done: u64,
    number: u64,
}

impl Chunks for ParquetChunks {
    fn next(&mut self) -> Result<Option<Chunk>, CliError> {
        let Some(batch) = self.reader.next() else {
            return Ok(None);
        };
        let batch = batch.map_err(|e| CliError::failed(format!("{}: {e}", self.name)))?;
        let first_line = self.rows_done + 1;
        let encoded = encode(
            batch.columns(),
            batch.num_rows(),
            &self.mapping,
            |row| first_line + row as u64,
            |column, row| {
                array_value_to_string(batch.column(column), row).unwrap_or_else(|e| e.to_string())
            },
        )?;
        self.rows_done += batch.num_rows() as u64;
        let number = self.number;
        self.number += 1;
        let part = self.rows_done as f64 / self.rows.max(1) as f64;
        Ok(Some(Chunk {
            number,
            body: encoded.body,
            first_line,
            input_bytes: batch.get_array_memory_size() as u64,
            consumed: (self.stored_bytes as f64 * part) as u64,
            bad: encoded.bad,
            bad_count: encoded.bad_count,
        }))
    }
}
