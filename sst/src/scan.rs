//! Rows of a file in the table's current schema, in key order, for merging and compaction.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use parquet::arrow::arrow_reader::RowSelection;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use shoal_types::{ColumnId, TableSchema};

use crate::metadata::SstMetadata;
use crate::stats::ReadCounters;
use crate::store::SstStore;
use crate::{HIDDEN_OP, HIDDEN_SET, SstError, SstFile, SstReader};

/// Rows of a run in key order.
pub type SstStream = BoxStream<'static, Result<RecordBatch, SstError>>;

/// What to read of a file.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Columns wanted, in any order; `None`: all. The batches have them in the schema's order.
    pub columns: Option<Vec<ColumnId>>,
    /// Ascending, disjoint row ranges; `None`: all rows.
    pub rows: Option<Vec<Range<u64>>>,
    /// Bounds, both included, of the time column: pages that lie outside are left out. Rows
    /// outside may still come.
    pub time: Option<(i64, i64)>,
    /// Rows a batch.
    pub batch_rows: usize,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            columns: None,
            rows: None,
            time: None,
            batch_rows: 8192,
        }
    }
}

impl SstStore {
    /// Opens a sorted stream of a file's rows.
    ///
    /// Shape: the wanted columns of `schema` in its order (found by column id: renamed columns
    /// have their new name, dropped ones are skipped, columns younger than the file are NULL),
    /// then `__op` (`BOOLEAN`) and `__set` (`BINARY`, NULL = all set) where the file has them; bit
    /// `i` of `__set` stands for `schema.columns[i]`.
    ///
    /// A column younger than the file counts as set to NULL. That is the same as not set: every
    /// row older than the file's is older than the column too, so there is nothing it could hide,
    /// and rows need not carry a bitmap for it.
    ///
    /// # Errors
    /// [`SstError`], here or as an item; the stream ends after one.
    pub async fn scan(
        self: &Arc<Self>,
        file: &SstFile,
        schema: &Arc<TableSchema>,
        options: &ScanOptions,
        counters: Arc<ReadCounters>,
    ) -> Result<SstStream, SstError> {
        let reader = self.reader(file, counters);
        self.scan_with(reader, file, schema, options).await
    }

    /// As [`SstStore::scan`], for background work: what it reads does not wash queries' blocks
    /// out of the caches.
    ///
    /// # Errors
    /// As [`SstStore::scan`].
    pub async fn scan_once(
        self: &Arc<Self>,
        file: &SstFile,
        schema: &Arc<TableSchema>,
        options: &ScanOptions,
        counters: Arc<ReadCounters>,
    ) -> Result<SstStream, SstError> {
        let reader = self.reader(file, counters).keeping_nothing();
        self.scan_with(reader, file, schema, options).await
    }

    async fn scan_with(
        &self,
        reader: SstReader,
        file: &SstFile,
        schema: &Arc<TableSchema>,
        options: &ScanOptions,
    ) -> Result<SstStream, SstError> {
        let metadata = self.metadata(file).await?;
        let shape = Shape::new(&metadata, schema, options.columns.as_deref());
        let mut builder =
            ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata.reader.clone())
                .with_batch_size(options.batch_rows.max(1))
                .with_projection(ProjectionMask::roots(
                    metadata.parquet.file_metadata().schema_descr(),
                    shape.read.iter().copied(),
                ));
        let rows_total = metadata.rows() as usize;
        let mut selection: Option<RowSelection> = options.rows.as_ref().map(|ranges| {
            RowSelection::from_consecutive_ranges(
                ranges
                    .iter()
                    .map(|r| (r.start as usize).min(rows_total)..(r.end as usize).min(rows_total)),
                rows_total,
            )
        });
        if let Some(bounds) = options.time
            && let Some(pages) = time_pages(&metadata, bounds)
        {
            let pages = RowSelection::from_consecutive_ranges(pages.into_iter(), rows_total);
            selection = Some(match selection {
                Some(rows) => rows.intersection(&pages),
                None => pages,
            });
        }
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let path = file.path.clone();
        let stream = builder.build().map_err(|e| from_parquet(&path, e))?;
        Ok(shaped(stream, shape, path))
    }
}

/// Applies the shape; turns panics of the decoder into errors.
fn shaped(
    stream: impl Stream<Item = Result<RecordBatch, ParquetError>> + Send + Unpin + 'static,
    shape: Shape,
    path: String,
) -> SstStream {
    futures::stream::unfold(Some((stream, shape, path)), |state| async move {
        let (mut stream, shape, path) = state?;
        // Checksums keep damaged bytes away from the decoder; should one pass, the query fails,
        // not the process.
        match AssertUnwindSafe(stream.next()).catch_unwind().await {
            Ok(None) => None,
            Ok(Some(Ok(batch))) => match shape.apply(&batch) {
                Ok(batch) => Some((Ok(batch), Some((stream, shape, path)))),
                Err(what) => Some((Err(SstError::Damaged { path, what }), None)),
            },
            Ok(Some(Err(error))) => Some((Err(from_parquet(&path, error)), None)),
            Err(_) => {
                let what = "the decoder panicked".to_owned();
                Some((Err(SstError::Damaged { path, what }), None))
            }
        }
    })
    .boxed()
}

/// The [`SstError`] inside a parquet error, or damage.
#[must_use]
pub fn from_parquet(path: &str, error: ParquetError) -> SstError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<SstError>() {
            Ok(ours) => *ours,
            Err(other) => SstError::Damaged {
                path: path.to_owned(),
                what: other.to_string(),
            },
        },
        other => SstError::Damaged {
            path: path.to_owned(),
            what: other.to_string(),
        },
    }
}

/// How the file's columns become the schema's.
struct Shape {
    /// File columns to read, ascending.
    read: Vec<usize>,
    /// For each output column its place among those read.
    take: Vec<Option<usize>>,
    schema: SchemaRef,
    /// For each column of the table its bit in the file's `__set`.
    bits: Option<Vec<Option<usize>>>,
}

impl Shape {
    fn new(metadata: &SstMetadata, schema: &TableSchema, columns: Option<&[ColumnId]>) -> Self {
        let footer = &metadata.footer;
        let wanted: Vec<_> = schema
            .columns
            .iter()
            .filter(|c| columns.is_none_or(|ids| ids.contains(&c.id)))
            .collect();
        let place = |id: ColumnId| footer.column_ids.iter().position(|i| *i == id);
        let mut read: Vec<usize> = wanted.iter().filter_map(|c| place(c.id)).collect();
        let hidden = footer.has_deletes || footer.has_partial;
        let mut fields: Vec<Field> = wanted
            .iter()
            .map(|c| {
                let nullable =
                    c.nullable || !schema.is_key(c.id) && (hidden || place(c.id).is_none());
                Field::new(&c.name, c.column_type.arrow(), nullable)
            })
            .collect();
        let mut hidden_at = footer.column_ids.len();
        let mut hidden_places = Vec::new();
        if footer.has_deletes {
            hidden_places.push(hidden_at);
            hidden_at += 1;
            fields.push(Field::new(HIDDEN_OP, DataType::Boolean, false));
        }
        if footer.has_partial {
            hidden_places.push(hidden_at);
            fields.push(Field::new(HIDDEN_SET, DataType::Binary, true));
        }
        read.extend(&hidden_places);
        read.sort_unstable();
        let rank = |at: usize| read.binary_search(&at).ok();
        let mut take: Vec<Option<usize>> =
            wanted.iter().map(|c| place(c.id).and_then(rank)).collect();
        take.extend(hidden_places.iter().map(|at| rank(*at)));
        let same_bits = schema.columns.len() == footer.column_ids.len()
            && schema
                .columns
                .iter()
                .zip(&footer.column_ids)
                .all(|(c, id)| c.id == *id);
        let bits = (footer.has_partial && !same_bits)
            .then(|| schema.columns.iter().map(|c| place(c.id)).collect());
        Self {
            read,
            take,
            schema: Arc::new(Schema::new(fields)),
            bits,
        }
    }

    fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.take.len());
        for (field, take) in self.schema.fields().iter().zip(&self.take) {
            let column = match take {
                None => new_null_array(field.data_type(), rows),
                Some(at) => Arc::clone(batch.columns().get(*at).ok_or("a column is missing")?),
            };
            if column.data_type() != field.data_type() {
                return Err(format!(
                    "column {:?} is {}, expected {}",
                    field.name(),
                    column.data_type(),
                    field.data_type()
                ));
            }
            columns.push(match &self.bits {
                Some(bits) if field.name() == HIDDEN_SET => move_bits(&column, bits),
                _ => column,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| e.to_string())
    }
}

/// Rewrites `__set` bitmaps from the file's columns to the table's. Columns that the file does
/// not have count as set (see [`SstStore::scan`]).
fn move_bits(set: &ArrayRef, bits: &[Option<usize>]) -> ArrayRef {
    let set = set.as_binary::<i32>();
    let mut out = BinaryBuilder::with_capacity(set.len(), set.len() * bits.len().div_ceil(8));
    let mut row = vec![0_u8; bits.len().div_ceil(8)];
    for old in set {
        let Some(old) = old else {
            out.append_null();
            continue;
        };
        row.fill(0);
        for (to, from) in bits.iter().enumerate() {
            let is_set = match from {
                None => true,
                Some(from) => old.get(from / 8).is_some_and(|b| b >> (from % 8) & 1 == 1),
            };
            row[to / 8] |= u8::from(is_set) << (to % 8);
        }
        out.append_value(&row);
    }
    Arc::new(out.finish())
}

/// Row ranges of the pages whose times may lie in `bounds`; `None`: cannot be told.
fn time_pages(metadata: &SstMetadata, bounds: (i64, i64)) -> Option<Vec<Range<usize>>> {
    use parquet::file::page_index::column_index::ColumnIndexMetaData;
    let id = metadata.footer.time_column?;
    let at = metadata.footer.column_ids.iter().position(|c| *c == id)?;
    let column_index = metadata.parquet.column_index()?;
    let offset_index = metadata.parquet.offset_index()?;
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut group_start = 0;
    for (group, (columns, offsets)) in metadata
        .parquet
        .row_groups()
        .iter()
        .zip(column_index.iter().zip(offset_index.iter()))
    {
        let group_rows = usize::try_from(group.num_rows()).ok()?;
        let ColumnIndexMetaData::INT64(index) = columns.get(at)? else {
            return None;
        };
        let pages = offsets.get(at)?.page_locations();
        for (page, location) in pages.iter().enumerate() {
            let start = group_start + usize::try_from(location.first_row_index).ok()?;
            let end = match pages.get(page + 1) {
                Some(next) => group_start + usize::try_from(next.first_row_index).ok()?,
                None => group_start + group_rows,
            };
            let outside = match (index.min_value(page), index.max_value(page)) {
                (Some(low), Some(high)) => *high < bounds.0 || *low > bounds.1,
                _ => false,
            };
            if outside {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => out.push(start..end),
            }
        }
        group_start += group_rows;
    }
    Some(out)
}
