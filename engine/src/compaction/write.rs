//! Writes runs as files: one or two a time window, split at a size.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashSet;
use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray, RecordBatch, UInt32Array};
use arrow_buffer::BooleanBuffer;
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take_record_batch;
use futures::{StreamExt, TryStreamExt};
use shoal_sst::{
    ObjectLayout, ReadCounters, ScanOptions, SstFile, SstStore, SstStream, SstWriteOptions,
    SstWriter, times_of,
};
use shoal_types::{PartitionBounds, PartitionId, RowVersion, ShardId, TableSchema};

use super::fresh::Fresh;
use super::pick::{TtlCut, window_width};
use super::{ByteBudget, CompactionJob};
use crate::memtable::{MemtableScan, MemtableView};
use crate::merge::{MergeOptions, RunStream, file_run, merge_runs};
use crate::owned::{OwnedRows, common, owns_all};
use crate::{EngineError, PredicateDelete, RowPredicate};

/// Files that one flush or compaction may have open; with more windows than this, windows are
/// widened by doubling.
const WINDOWS_MAX: usize = 32;
/// Compressed bytes of an input that are loaded at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// Rows collected for a window before they are encoded.
const PENDING_ROWS: usize = 8192;

/// Makes files for one shard in one term. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SstProducer {
    /// Where files go and are read.
    pub store: Arc<SstStore>,
    /// How they are named.
    pub layout: ObjectLayout,
    /// The shard that writes.
    pub shard: ShardId,
    /// Its leader's term.
    pub term: u64,
    /// Width of a time window, in seconds.
    pub window_s: u64,
    /// zstd level of compacted files.
    pub zstd_level: i32,
    /// A file is closed at this size.
    pub file_bytes_max: usize,
    /// A file is closed at so many rows.
    pub file_rows_max: u64,
    /// Rate of compactions (flushes are not held back).
    pub budget: Arc<ByteBudget>,
    /// Evaluates predicate deletes.
    pub predicate: Option<Arc<dyn RowPredicate>>,
}

impl SstProducer {
    /// With the engine's settings.
    #[must_use]
    pub fn new(
        config: &crate::EngineConfig,
        store: Arc<SstStore>,
        layout: ObjectLayout,
        shard: ShardId,
        term: u64,
        budget: Arc<ByteBudget>,
        predicate: Option<Arc<dyn RowPredicate>>,
    ) -> Self {
        Self {
            store,
            layout,
            shard,
            term,
            window_s: config.compaction_window_s,
            zstd_level: config.compaction_zstd_level,
            file_bytes_max: 256 << 20,
            file_rows_max: 16 << 20,
            budget,
            predicate,
        }
    }

    /// Writes a frozen memtable's rows as level-0 files, one or two a time window (see
    /// `fresh.rs`), compressed quickly. All have the view's version range. `older`: all files of
    /// the table that show; what lies above none of them is written without hidden columns.
    /// `None`: some older rows are in no file yet. `owned`: what of its table the unit owns; rows
    /// outside are left out.
    ///
    /// CPU-bound between writes of a file's parts: run it on a thread that may block.
    ///
    /// # Errors
    /// [`EngineError`]; files already put are garbage then, the memtable is untouched.
    pub async fn flush_memtable(
        &self,
        view: &MemtableView,
        schema: &Arc<TableSchema>,
        partition: PartitionId,
        older: Option<&[SstFile]>,
        owned: Option<Arc<PartitionBounds>>,
    ) -> Result<Vec<SstFile>, EngineError> {
        let Some(versions) = view.versions() else {
            return Ok(Vec::new());
        };
        let scan = MemtableScan {
            bottom: older.is_some_and(<[_]>::is_empty),
            ..MemtableScan::default()
        };
        let mut run = view.scan(schema, self.predicate.as_deref(), &scan)?;
        let width = window_width(schema, self.window_s).map(|width| {
            let mut windows: AHashSet<i64> = AHashSet::new();
            view.each_time(schema, |time| {
                windows.insert(time.div_euclid(width));
            });
            widened(width, windows.into_iter().collect())
        });
        let fresh = width
            .zip(older.filter(|older| !older.is_empty()))
            .map(|(width, older)| {
                Fresh::find(schema, older, width, |with| view.each_time(schema, with))
            });
        let flags = |name| run.schema().column_with_name(name).is_some();
        let output = Output {
            has_deletes: flags(shoal_sst::HIDDEN_OP),
            has_partial: flags(shoal_sst::HIDDEN_SET),
            zstd_level: None,
            versions,
            level: 0,
        };
        let outside = (!owns_all(owned.as_deref(), view.written_under()))
            .then(|| owned.clone())
            .flatten()
            .map(|owned| OwnedRows::new(owned, schema));
        let mut writers = Writers::new(self, schema, partition, width, output);
        writers.owned = common(owned, view.written_under.as_ref());
        writers.fresh = fresh.unwrap_or_default();
        while let Some(batch) = run.next().transpose()? {
            let batch = match &outside {
                Some(outside) => outside.filter(&batch)?,
                None => batch,
            };
            writers.write(&batch).await?;
            tokio::task::yield_now().await;
        }
        writers.finish().await
    }

    /// Merges a job's inputs into files compressed with zstd, one or two a time window (see
    /// `fresh.rs`). Rows before `cut` are dropped, `deletes` applied to files older than they are.
    /// `older`: all files of the table that show and are neither inputs nor newer. `owned`: as in
    /// [`Self::flush_memtable`]. Memory: some 4 MiB compressed an input, and
    /// one row group an open window.
    ///
    /// CPU-bound between reads: run it on a thread that may block.
    ///
    /// # Errors
    /// [`EngineError`]; files already put are garbage then, the inputs are untouched.
    pub async fn compact(
        &self,
        job: &CompactionJob,
        schema: &Arc<TableSchema>,
        older: &[SstFile],
        deletes: &[PredicateDelete],
        cut: Option<TtlCut>,
        owned: Option<Arc<PartitionBounds>>,
    ) -> Result<Vec<SstFile>, EngineError> {
        let Some(first) = job.inputs.first() else {
            return Ok(Vec::new());
        };
        let versions = job
            .inputs
            .iter()
            .fold((first.version_min, first.version_max), |(low, high), f| {
                (low.min(f.version_min), high.max(f.version_max))
            });
        let options = MergeOptions {
            bottom: job.bottom,
            has_deletes: job.inputs.iter().any(|f| f.has_deletes),
            has_partial: job.inputs.iter().any(|f| f.has_partial),
            batch_rows: PENDING_ROWS,
        };
        let output = Output {
            has_deletes: options.has_deletes && !job.bottom,
            has_partial: options.has_partial && !job.bottom,
            zstd_level: Some(self.zstd_level),
            versions,
            level: job.level,
        };
        let mut runs = Vec::with_capacity(job.inputs.len());
        for file in &job.inputs {
            let run = self.input(file, schema, deletes)?;
            runs.push(match &owned {
                Some(bounds) if !owns_all(Some(&**bounds), file.bounds.as_deref()) => {
                    OwnedRows::new(Arc::clone(bounds), schema).of_run(run)
                }
                _ => run,
            });
        }
        let width = window_width(schema, self.window_s).map(|width| {
            let ranges = job.inputs.iter().filter_map(|f| f.time_range);
            let bounds = ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            let (low, high) = bounds.unwrap_or((0, 0));
            let mut width = width;
            while high.div_euclid(width).saturating_sub(low.div_euclid(width)) >= WINDOWS_MAX as i64
            {
                width = width.saturating_mul(2);
            }
            width
        });
        let mut writers = Writers::new(self, schema, first.partition, width, output);
        writers.owned = owned;
        if let Some(width) = width.filter(|_| !job.bottom) {
            writers.fresh = Fresh::of_files(schema, older, &job.inputs, width);
        }
        let mut merged = merge_runs(Arc::clone(schema), runs, options);
        while let Some(batch) = merged.try_next().await? {
            let batch = match cut {
                Some(cut) => without_expired(schema, batch, cut)?,
                None => batch,
            };
            let before = writers.bytes();
            writers.write(&batch).await?;
            self.budget
                .take(writers.bytes().saturating_sub(before) as u64 * 2)
                .await;
        }
        writers.finish().await
    }

    /// All rows of a file, some at a time: the decoder loads what it is asked for in one go, and a
    /// compaction may have many inputs.
    fn chunks(&self, file: &SstFile, schema: &Arc<TableSchema>) -> SstStream {
        let row_bytes = (file.bytes / file.rows.max(1)).max(1);
        let chunk_rows = (CHUNK_BYTES / row_bytes).clamp(16 << 10, 1 << 20);
        let (store, file, schema) = (Arc::clone(&self.store), file.clone(), Arc::clone(schema));
        let starts = (0..file.rows).step_by(chunk_rows as usize);
        futures::stream::iter(starts.map(Ok))
            .and_then(move |start| {
                let (store, file) = (Arc::clone(&store), file.clone());
                let schema = Arc::clone(&schema);
                async move {
                    let options = ScanOptions {
                        rows: Some(vec![start..(start + chunk_rows).min(file.rows)]),
                        ..ScanOptions::default()
                    };
                    let counters = Arc::new(ReadCounters::default());
                    store.scan_once(&file, &schema, &options, counters).await
                }
            })
            .try_flatten()
            .boxed()
    }

    /// An input's rows without those that a predicate delete hides.
    pub(crate) fn input(
        &self,
        file: &SstFile,
        schema: &Arc<TableSchema>,
        deletes: &[PredicateDelete],
    ) -> Result<RunStream, EngineError> {
        let stream = self.chunks(file, schema);
        let applying: Vec<PredicateDelete> = deletes
            .iter()
            .filter(|d| file.version_max < d.version)
            .cloned()
            .collect();
        if applying.is_empty() {
            return Ok(file_run(stream));
        }
        let Some(predicate) = self.predicate.clone() else {
            return Err(EngineError::Invalid(
                "rows were deleted by a predicate, but nothing that evaluates it was given".into(),
            ));
        };
        let schema = Arc::clone(schema);
        Ok(file_run(stream)
            .map(move |batch| {
                let batch = batch?;
                let mut keep = BooleanBuffer::new_set(batch.num_rows());
                for delete in &applying {
                    let hit = predicate
                        .matches(&schema, &delete.predicate, &batch)
                        .map_err(EngineError::Invalid)?;
                    let hit = match hit.nulls() {
                        Some(nulls) => hit.values() & nulls.inner(),
                        None => hit.values().clone(),
                    };
                    keep = &keep & &!&hit;
                }
                filter(&batch, keep)
            })
            .boxed())
    }
}

fn defect(error: impl std::fmt::Display) -> EngineError {
    EngineError::Invalid(format!("compaction: {error}"))
}

fn filter(batch: &RecordBatch, keep: BooleanBuffer) -> Result<RecordBatch, EngineError> {
    if keep.count_set_bits() == keep.len() {
        return Ok(batch.clone());
    }
    filter_record_batch(batch, &BooleanArray::new(keep, None)).map_err(defect)
}

fn without_expired(
    schema: &TableSchema,
    batch: RecordBatch,
    cut: TtlCut,
) -> Result<RecordBatch, EngineError> {
    let Some(column) = time_column(schema, &batch) else {
        return Ok(batch);
    };
    let Some(times) = times_of(column) else {
        return Ok(batch);
    };
    let keep = BooleanBuffer::collect_bool(batch.num_rows(), |row| {
        column.is_null(row) || times[row] >= cut.0
    });
    filter(&batch, keep)
}

fn time_column<'a>(schema: &TableSchema, batch: &'a RecordBatch) -> Option<&'a dyn Array> {
    let name = &schema.column_by_id(schema.time_column?)?.name;
    batch.column_by_name(name).map(AsRef::as_ref)
}

/// The narrowest doubling of `width` that leaves at most [`WINDOWS_MAX`] of these windows.
fn widened(mut width: i64, mut windows: Vec<i64>) -> i64 {
    windows.sort_unstable();
    while windows.len() > WINDOWS_MAX && width < i64::MAX / 2 {
        width *= 2;
        for window in &mut windows {
            *window = window.div_euclid(2);
        }
        windows.dedup();
    }
    width
}

/// What all files of one flush or compaction have in common.
#[derive(Clone, Copy)]
struct Output {
    has_deletes: bool,
    has_partial: bool,
    zstd_level: Option<i32>,
    versions: (RowVersion, RowVersion),
    level: u8,
}

/// One window's file and the rows that wait to be encoded.
#[derive(Default)]
struct Window {
    writer: Option<SstWriter>,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
}

/// Which file of a flush or compaction a row goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    window: i64,
    /// Nothing older lies below it, though it does below other rows.
    fresh: bool,
}

/// The open files, by slot.
struct Writers<'a> {
    producer: &'a SstProducer,
    schema: &'a Arc<TableSchema>,
    partition: PartitionId,
    width: Option<i64>,
    output: Output,
    /// Of the unit's table what is written: nothing else is.
    owned: Option<Arc<PartitionBounds>>,
    fresh: Fresh,
    windows: BTreeMap<Slot, Window>,
    done: Vec<SstFile>,
    done_bytes: usize,
}

impl<'a> Writers<'a> {
    fn new(
        producer: &'a SstProducer,
        schema: &'a Arc<TableSchema>,
        partition: PartitionId,
        width: Option<i64>,
        output: Output,
    ) -> Self {
        Self {
            producer,
            schema,
            partition,
            width,
            output,
            owned: None,
            fresh: Fresh::default(),
            windows: BTreeMap::new(),
            done: Vec::new(),
            done_bytes: 0,
        }
    }

    /// Bytes encoded so far.
    fn bytes(&self) -> usize {
        let open = self.windows.values().filter_map(|w| w.writer.as_ref());
        self.done_bytes + open.map(SstWriter::bytes_written).sum::<usize>()
    }

    async fn write(&mut self, batch: &RecordBatch) -> Result<(), EngineError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        for (slot, part) in self.split(batch)? {
            let part = match slot.fresh {
                true => self.without_hidden(&part)?,
                false => part,
            };
            let window = self.windows.entry(slot).or_default();
            window.pending_rows += part.num_rows();
            window.pending.push(part);
            if window.pending_rows >= PENDING_ROWS {
                self.encode(slot).await?;
            }
        }
        Ok(())
    }

    /// Cuts a batch by slot; most batches lie in one.
    fn split(&self, batch: &RecordBatch) -> Result<Vec<(Slot, RecordBatch)>, EngineError> {
        let only = |window| Slot {
            window,
            fresh: false,
        };
        let (Some(width), Some(column)) = (self.width, time_column(self.schema, batch)) else {
            return Ok(vec![(only(0), batch.clone())]);
        };
        let Some(times) = times_of(column) else {
            return Ok(vec![(only(0), batch.clone())]);
        };
        // Rows without a time go with the earliest window; such a file claims no time range.
        let slot_of = |row: usize| {
            if !column.is_valid(row) {
                return only(i64::MIN);
            }
            let window = times[row].div_euclid(width);
            let fresh = self.fresh.holds(window, times[row]);
            Slot { window, fresh }
        };
        let mut rows: BTreeMap<Slot, Vec<u32>> = BTreeMap::new();
        let first = slot_of(0);
        if (1..batch.num_rows()).all(|row| slot_of(row) == first) {
            return Ok(vec![(first, batch.clone())]);
        }
        for row in 0..batch.num_rows() {
            rows.entry(slot_of(row)).or_default().push(row as u32);
        }
        rows.into_iter()
            .map(|(slot, rows)| {
                let rows = UInt32Array::from(rows);
                let part = take_record_batch(batch, &rows).map_err(defect)?;
                Ok((slot, part))
            })
            .collect()
    }

    /// The rows as they are where nothing older lies below: no tombstones, what is not set is
    /// NULL (as it stands in the columns already).
    fn without_hidden(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let batch = match batch.column_by_name(shoal_sst::HIDDEN_OP) {
            Some(op) => filter(batch, !op.as_boolean().values())?,
            None => batch.clone(),
        };
        let columns: Vec<usize> = (0..self.schema.columns.len()).collect();
        batch.project(&columns).map_err(defect)
    }

    /// Encodes a slot's waiting rows; closes the file when it is large enough.
    async fn encode(&mut self, slot: Slot) -> Result<(), EngineError> {
        // Windows are widened beforehand so that they are few; where that could not be foreseen
        // (the time leads the key) the earliest file is closed. Files of one window then differ
        // in keys, since rows come in key order.
        let writing = |(at, w): (&Slot, &Window)| w.writer.is_some().then_some(*at);
        let open = self.windows.iter().filter_map(writing).count();
        if open >= WINDOWS_MAX * 2
            && let Some(earliest) = self.windows.iter().find_map(writing)
            && earliest != slot
        {
            self.close(earliest).await?;
        }
        let Some(window) = self.windows.get_mut(&slot) else {
            return Ok(());
        };
        let pending = std::mem::take(&mut window.pending);
        window.pending_rows = 0;
        let [first, ..] = &pending[..] else {
            return Ok(());
        };
        let batch = if pending.len() == 1 {
            first.clone()
        } else {
            // A batch's schema may be wider than the next one's; the writer has the file's.
            let columns = (0..first.num_columns())
                .map(|at| {
                    let parts: Vec<&dyn Array> =
                        pending.iter().map(|b| b.column(at).as_ref()).collect();
                    arrow_select::concat::concat(&parts).map_err(defect)
                })
                .collect::<Result<Vec<_>, _>>()?;
            crate::merge::batch_of(&first.schema(), columns, &Default::default())?
        };
        if window.writer.is_none() {
            let producer = self.producer;
            let path = producer.layout.new_sst(
                self.schema.table,
                self.partition,
                producer.shard,
                producer.term,
            );
            let default = SstWriteOptions::default();
            let options = SstWriteOptions {
                zstd_level: self.output.zstd_level,
                // Every open file holds a row group in memory.
                row_group_rows: (default.row_group_rows / open.max(1)).max(64 << 10),
                row_group_bytes: (default.row_group_bytes / open.max(1)).max(4 << 20),
                ..default
            };
            window.writer = Some(SstWriter::create(
                path,
                Arc::clone(self.schema),
                self.partition,
                self.output.has_deletes && !slot.fresh,
                self.output.has_partial && !slot.fresh,
                options,
            )?);
        }
        let Some(writer) = &mut window.writer else {
            return Ok(());
        };
        writer.write(&batch)?;
        let store = self.producer.store.object_store();
        writer.upload_ready(store.as_ref()).await?;
        if writer.bytes_written() >= self.producer.file_bytes_max
            || writer.rows() >= self.producer.file_rows_max
        {
            self.close(slot).await?;
        }
        Ok(())
    }

    async fn close(&mut self, slot: Slot) -> Result<(), EngineError> {
        let Some(writer) = self.windows.get_mut(&slot).and_then(|w| w.writer.take()) else {
            return Ok(());
        };
        self.done_bytes += writer.bytes_written();
        let store = self.producer.store.object_store();
        let file = writer
            .finish(store.as_ref(), self.output.versions, self.output.level)
            .await?;
        self.done.push(SstFile {
            bounds: self.owned.clone(),
            ..file
        });
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<SstFile>, EngineError> {
        let slots: Vec<Slot> = self.windows.keys().copied().collect();
        for slot in slots {
            self.encode(slot).await?;
            self.close(slot).await?;
        }
        Ok(self.done)
    }
}
