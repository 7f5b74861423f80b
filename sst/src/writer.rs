//! Writes one sorted run as Parquet.
//!
//! Order of bytes: row groups, series index, checksums of all before, page indexes, footer. The
//! last three are the *tail*, which a reader loads in one read.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::file::metadata::{KeyValue, SortingColumn};
use shoal_rows::Series;
use shoal_types::{PartitionId, RowVersion, TableMode, TableSchema};

use crate::encoding::{properties, times_of};
use crate::footer::{CHECKSUM_BLOCK_BYTES, FOOTER_KEY, SST_FORMAT, Section, SstFooter, to_hex};
use crate::series_index::SeriesIndexBuilder;
use crate::sink::Sink;
use crate::{HIDDEN_OP, HIDDEN_SET, SeriesEncoder, SstError, SstFile};

/// How a file is written.
#[derive(Clone, Debug)]
pub struct SstWriteOptions {
    /// `None`: LZ4 (quick, at flush); `Some(level)`: zstd (at compaction).
    pub zstd_level: Option<i32>,
    /// Rows a row group, at most.
    pub row_group_rows: usize,
    /// Encoded bytes a row group, about: a writer holds one in memory, and so does a reader.
    pub row_group_bytes: usize,
    /// Rows a data page, at most (4,096: a host-hour at 10 s is 360 rows).
    pub page_rows: usize,
}

impl Default for SstWriteOptions {
    fn default() -> Self {
        Self {
            zstd_level: None,
            row_group_rows: 1 << 20,
            row_group_bytes: 64 << 20,
            page_rows: 4096,
        }
    }
}

/// The columns of a run: the table's in display order, then `__op` and `__set` where asked for.
///
/// With hidden columns every value column is nullable whatever the table says: a tombstone has no
/// values, a partial upsert only some.
#[must_use]
pub fn run_schema(schema: &TableSchema, has_deletes: bool, has_partial: bool) -> SchemaRef {
    let hidden = has_deletes || has_partial;
    let mut fields: Vec<Field> = schema
        .columns
        .iter()
        .map(|c| {
            let nullable = c.nullable || (hidden && !schema.is_key(c.id));
            Field::new(&c.name, c.column_type.arrow(), nullable)
        })
        .collect();
    if has_deletes {
        fields.push(Field::new(HIDDEN_OP, DataType::Boolean, false));
    }
    if has_partial {
        fields.push(Field::new(HIDDEN_SET, DataType::Binary, true));
    }
    Arc::new(Schema::new(fields))
}

/// Takes sorted batches, then publishes the object: in one put, or in parts where
/// [`SstWriter::upload_ready`] is called in between.
pub struct SstWriter {
    path: Path,
    schema: Arc<TableSchema>,
    partition: PartitionId,
    has_deletes: bool,
    has_partial: bool,
    options: SstWriteOptions,
    /// Columns of the batches.
    run: SchemaRef,
    /// Made with the first rows, which tell how to encode the rest.
    writer: Option<ArrowWriter<Sink>>,
    upload: Option<Box<dyn MultipartUpload>>,
    index: SeriesIndexBuilder,
    key_min: Vec<u8>,
    last_time: i64,
    times: Times,
    rows: u64,
}

/// Bounds of the time column.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Times {
    None,
    Range(i64, i64),
    /// A NULL, or no time column: there are no bounds.
    Unbounded,
}

impl std::fmt::Debug for SstWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SstWriter")
            .field("path", &self.path)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl SstWriter {
    /// Begins a file at `path`. Batches have `schema.arrow()`'s columns in that order, then
    /// optionally the hidden columns ([`run_schema`]); rows sorted by key, one version a key
    /// (upsert).
    ///
    /// # Errors
    /// [`SstError::Encode`].
    pub fn create(
        path: Path,
        schema: Arc<TableSchema>,
        partition: PartitionId,
        has_deletes: bool,
        has_partial: bool,
        options: SstWriteOptions,
    ) -> Result<Self, SstError> {
        let run = run_schema(&schema, has_deletes, has_partial);
        Ok(Self {
            path,
            schema,
            partition,
            has_deletes,
            has_partial,
            options,
            run,
            writer: None,
            upload: None,
            index: SeriesIndexBuilder::default(),
            key_min: Vec::new(),
            last_time: i64::MIN,
            times: Times::None,
            rows: 0,
        })
    }

    /// Appends rows that sort after all before them (checked).
    ///
    /// # Errors
    /// [`SstError::Encode`], also when rows are out of order.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), SstError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if batch.num_columns() != self.run.fields().len() {
            return Err(self.fail(format!(
                "batch of {} columns, the file has {}",
                batch.num_columns(),
                self.run.fields().len()
            )));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.run), batch.columns().to_vec())
            .map_err(|e| self.fail(e))?;
        self.look_at_keys(&batch)?;
        if self.writer.is_none() {
            self.writer = Some(self.open(&batch)?);
        }
        if let Some(writer) = &mut self.writer {
            writer.write(&batch).map_err(|e| SstError::Encode {
                path: self.path.to_string(),
                what: e.to_string(),
            })?;
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Rows written.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes encoded so far, for splitting output files.
    #[must_use]
    pub fn bytes_written(&self) -> usize {
        self.writer
            .as_ref()
            .map_or(0, |w| w.bytes_written() + w.in_progress_size())
    }

    /// Uploads what is complete, so that a large file does not stay in memory.
    ///
    /// # Errors
    /// [`SstError`]; the file is lost, parts of it may be garbage.
    pub async fn upload_ready(&mut self, store: &dyn ObjectStore) -> Result<(), SstError> {
        let Some(part) = self.writer.as_mut().and_then(|w| w.inner_mut().take_part()) else {
            return Ok(());
        };
        if self.upload.is_none() {
            self.upload = Some(
                store
                    .put_multipart(&self.path)
                    .await
                    .map_err(|e| SstError::from_store(&self.path, e))?,
            );
        }
        if let Some(upload) = &mut self.upload {
            upload
                .put_part(PutPayload::from_bytes(part))
                .await
                .map_err(|e| SstError::from_store(&self.path, e))?;
        }
        Ok(())
    }

    /// Closes the file, puts the object and says what a manifest must know of it.
    ///
    /// # Errors
    /// [`SstError`]; the object may or may not exist then, and is garbage.
    pub async fn finish(
        mut self,
        store: &dyn ObjectStore,
        versions: (RowVersion, RowVersion),
        level: u8,
    ) -> Result<SstFile, SstError> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.open(&RecordBatch::new_empty(Arc::clone(&self.run)))?,
        };
        let (file, rest) = self.close(writer, versions, level)?;
        let path = self.path.clone();
        let failed = |e| SstError::from_store(&path, e);
        match &mut self.upload {
            None => {
                store
                    .put(&self.path, PutPayload::from_bytes(rest))
                    .await
                    .map_err(failed)?;
            }
            Some(upload) => {
                upload
                    .put_part(PutPayload::from_bytes(rest))
                    .await
                    .map_err(failed)?;
                upload.complete().await.map_err(failed)?;
            }
        }
        Ok(file)
    }

    /// Gives the file up: parts already uploaded are removed where the store can.
    pub async fn abort(mut self) {
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.abort().await
        {
            tracing::debug!(path = %self.path, %error, "upload not aborted; it stays as garbage");
        }
    }

    fn close(
        &mut self,
        mut writer: ArrowWriter<Sink>,
        versions: (RowVersion, RowVersion),
        level: u8,
    ) -> Result<(SstFile, bytes::Bytes), SstError> {
        let path = self.path.to_string();
        let fail = |what: &dyn std::fmt::Display| SstError::Encode {
            path: path.clone(),
            what: what.to_string(),
        };
        let index = std::mem::take(&mut self.index);
        let (series, key_max) = (index.series(), index.last().to_vec());
        let time_range = match self.times {
            Times::Range(low, high) => Some((low, high)),
            Times::None | Times::Unbounded => None,
        };
        writer.flush().map_err(|e| fail(&e))?;
        let mut series_index = None;
        if let Some(section) = index.finish(self.rows) {
            series_index = Some(Section {
                offset: writer.bytes_written() as u64,
                bytes: section.len() as u64,
            });
            writer.write_all(&section).map_err(|e| fail(&e))?;
        }
        // The sink must have seen every byte before the checksums are taken.
        writer.sync().map_err(|e| fail(&e))?;
        let offset = writer.bytes_written() as u64;
        let checksums = writer.inner_mut().begin_tail();
        debug_assert_eq!(
            checksums.len(),
            (offset as usize).div_ceil(CHECKSUM_BLOCK_BYTES)
        );
        let section: Vec<u8> = checksums.iter().flat_map(|c| c.to_le_bytes()).collect();
        writer.write_all(&section).map_err(|e| fail(&e))?;
        let footer = SstFooter {
            format: SST_FORMAT,
            table: self.schema.table,
            partition: self.partition,
            incarnation: self.schema.incarnation,
            schema_version: self.schema.version,
            column_ids: self.schema.columns.iter().map(|c| c.id).collect(),
            key: self.schema.key.clone(),
            time_column: self.schema.time_column,
            version_min: versions.0,
            version_max: versions.1,
            level,
            has_deletes: self.has_deletes,
            has_partial: self.has_partial,
            series,
            key_min: to_hex(&self.key_min),
            key_max: to_hex(&key_max),
            time_range,
            series_index,
            checksums: Section {
                offset,
                bytes: section.len() as u64,
            },
        };
        let json = serde_json::to_string(&footer).map_err(|e| fail(&e))?;
        writer.append_key_value_metadata(KeyValue::new(FOOTER_KEY.to_owned(), json));
        writer.finish().map_err(|e| fail(&e))?;
        writer.sync().map_err(|e| fail(&e))?;
        let sink = writer.inner_mut();
        let (tail_bytes, tail_crc) = sink.tail();
        let file = SstFile {
            path: path.clone(),
            table: footer.table,
            partition: footer.partition,
            incarnation: footer.incarnation,
            schema_version: footer.schema_version,
            column_ids: footer.column_ids,
            bytes: sink.written(),
            rows: self.rows,
            version_min: versions.0,
            version_max: versions.1,
            key_min: std::mem::take(&mut self.key_min),
            key_max,
            time_range,
            level,
            has_deletes: self.has_deletes,
            has_partial: self.has_partial,
            series,
            tail_bytes,
            tail_crc,
            bounds: None,
        };
        Ok((file, sink.take_rest()))
    }

    fn open(&self, sample: &RecordBatch) -> Result<ArrowWriter<Sink>, SstError> {
        let sorting = self
            .schema
            .key
            .iter()
            .filter_map(|id| self.schema.position_of(*id))
            .map(|column_idx| SortingColumn {
                column_idx: column_idx as i32,
                descending: false,
                nulls_first: true,
            })
            .collect::<Vec<_>>();
        let properties = properties(&self.schema, sample, &self.options)
            .map_err(|e| self.fail(e))?
            .set_sorting_columns((!sorting.is_empty()).then_some(sorting))
            .set_key_value_metadata(Some(vec![KeyValue::new(
                parquet::arrow::ARROW_SCHEMA_META_KEY.to_owned(),
                parquet::arrow::encode_arrow_schema(&portable(&self.run)),
            )]))
            .build();
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        ArrowWriter::try_new_with_options(Sink::new(), Arc::clone(&self.run), options)
            .map_err(|e| self.fail(e))
    }

    /// Checks the order and notes bounds and series.
    fn look_at_keys(&mut self, batch: &RecordBatch) -> Result<(), SstError> {
        let time = self
            .schema
            .time_column
            .and_then(|id| self.schema.position_of(id))
            .map(|at| Arc::clone(batch.column(at)));
        self.note_times(time.as_ref());
        if self.schema.key.is_empty() {
            return Ok(());
        }
        let ids = self.schema.series_columns();
        let values: Vec<ArrayRef> = ids
            .iter()
            .filter_map(|id| self.schema.position_of(*id))
            .map(|at| Arc::clone(batch.column(at)))
            .collect();
        let runs = if values.is_empty() {
            std::iter::once(0..batch.num_rows()).collect()
        } else {
            arrow_ord::partition::partition(&values)
                .map_err(|e| self.fail(e))?
                .ranges()
        };
        let encoder = SeriesEncoder::new(&Series {
            columns: ids.to_vec(),
            values,
            len: batch.num_rows(),
        });
        let closing_time = if self.schema.key_ends_with_time() {
            time.as_ref().and_then(|t| times_of(t))
        } else {
            None
        };
        let unique = self.schema.mode == TableMode::Upsert;
        let mut key = Vec::new();
        for run in runs {
            key.clear();
            encoder.encode(run.start, &mut key);
            if self.rows == 0 && run.start == 0 {
                self.key_min.clone_from(&key);
            } else if key.as_slice() < self.index.last() {
                return Err(self.fail(format!("series out of order at row {}", self.rows)));
            } else if key != self.index.last() {
                self.last_time = i64::MIN;
            } else if closing_time.is_none() && unique {
                return Err(self.fail(format!("a key twice at row {}", self.rows)));
            }
            // Without a closing time each key is its own series: a run of equal keys is one key
            // written twice.
            if closing_time.is_none() && unique && run.len() > 1 {
                return Err(self.fail(format!("a key twice at row {}", self.rows)));
            }
            if let Some(times) = closing_time {
                let times = &times[run.clone()];
                let first_fits = self.last_time < times[0]
                    || (self.last_time == times[0] && (!unique || self.last_time == i64::MIN));
                let sorted = if unique {
                    times.windows(2).all(|w| w[0] < w[1])
                } else {
                    times.is_sorted()
                };
                if !first_fits || !sorted {
                    return Err(self.fail(format!(
                        "times out of order in rows {} to {}",
                        self.rows + run.start as u64,
                        self.rows + run.end as u64
                    )));
                }
                self.last_time = times[times.len() - 1];
            }
            self.index.add(&key, run.len() as u64);
        }
        Ok(())
    }

    fn note_times(&mut self, time: Option<&ArrayRef>) {
        let Some(time) = time else {
            self.times = Times::Unbounded;
            return;
        };
        if time.null_count() > 0 {
            self.times = Times::Unbounded;
            return;
        }
        let Some(values) = times_of(time) else {
            return;
        };
        let (Some(&low), Some(&high)) = (values.iter().min(), values.iter().max()) else {
            return;
        };
        self.times = match self.times {
            Times::None => Times::Range(low, high),
            Times::Range(a, b) => Times::Range(a.min(low), b.max(high)),
            Times::Unbounded => Times::Unbounded,
        };
    }

    fn fail(&self, what: impl std::fmt::Display) -> SstError {
        SstError::Encode {
            path: self.path.to_string(),
            what: what.to_string(),
        }
    }
}

/// The Arrow schema as stored for other readers: many do not know view types.
fn portable(schema: &Schema) -> Schema {
    Schema::new(
        schema
            .fields()
            .iter()
            .map(|f| {
                let data_type = match f.data_type() {
                    DataType::Utf8View => DataType::Utf8,
                    DataType::BinaryView => DataType::Binary,
                    other => other.clone(),
                };
                Field::new(f.name(), data_type, f.is_nullable())
            })
            .collect::<Vec<_>>(),
    )
}
