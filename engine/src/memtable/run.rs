//! A view's rows as one run: segments merged, series numbers turned into key columns.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt32Type,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, PrimitiveArray, RecordBatch, RecordBatchOptions, UInt32Array,
    new_null_array,
};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::filter::filter_record_batch;
use arrow_select::take::{take, take_record_batch};
use shoal_sst::{HIDDEN_OP, HIDDEN_SET};
use shoal_types::{Column, ColumnId, TableMode, TableSchema};

use super::segment::Segment;
use super::{Delete, MemtableView, defect};
use crate::merge::{MergeOptions, Merger, SID, Step, batch_of};
use crate::{EngineError, RowPredicate};

/// What to read of a view.
#[derive(Clone, Debug)]
pub struct MemtableScan {
    /// Columns wanted, in any order; `None`: all. The batches have them in the schema's order;
    /// key columns that are not asked for are left out.
    pub columns: Option<Vec<ColumnId>>,
    /// Encoded series (`shoal_sst::SeriesEncoder`) wanted; `None`: all.
    pub series: Option<Vec<Vec<u8>>>,
    /// Bounds, both included, of the closing time of the key; rows outside are left out.
    pub time: Option<(i64, i64)>,
    /// Nothing older lies below (no file meets these rows): tombstones are dropped and there are
    /// no hidden columns.
    pub bottom: bool,
    /// Rows a batch.
    pub batch_rows: usize,
}

impl Default for MemtableScan {
    fn default() -> Self {
        Self {
            columns: None,
            series: None,
            time: None,
            bottom: false,
            batch_rows: 8192,
        }
    }
}

/// Batches of a view, made as they are asked for.
#[derive(Debug)]
pub struct MemtableRun {
    merger: Merger,
    /// One batch a segment, until the merger takes it.
    inputs: Vec<Option<(RecordBatch, Vec<(u32, u32)>)>>,
    schema: SchemaRef,
    /// For each output column before the hidden ones: a key column by series, or its place in
    /// the merger's batches.
    sources: Vec<Source>,
}

#[derive(Debug)]
enum Source {
    Series(ArrayRef),
    Merged(usize),
}

impl MemtableRun {
    /// Schema of the batches (a batch with a NULL in a NOT NULL column widens it).
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

impl Iterator for MemtableRun {
    type Item = Result<RecordBatch, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.merger.step() {
                Err(error) => return Some(Err(error)),
                Ok(Step::Done) => return None,
                Ok(Step::Batch(batch)) => return Some(self.expand(&batch)),
                Ok(Step::Need(run)) => {
                    let pushed = match self.inputs[run].take() {
                        Some((batch, runs)) => self.merger.push_numbered(run, batch, runs),
                        None => self.merger.push(run, None),
                    };
                    if let Err(error) = pushed {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

impl MemtableRun {
    fn expand(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        expand(&self.schema, &self.sources, batch)
    }
}

fn expand(
    schema: &SchemaRef,
    sources: &[Source],
    batch: &RecordBatch,
) -> Result<RecordBatch, EngineError> {
    let sids = batch.column(0).as_primitive::<UInt32Type>();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for source in sources {
        columns.push(match source {
            Source::Merged(at) => Arc::clone(batch.column(*at)),
            Source::Series(values) => take(values, sids, None).map_err(defect)?,
        });
    }
    for name in [HIDDEN_OP, HIDDEN_SET] {
        if schema.column_with_name(name).is_some() {
            columns.push(Arc::clone(
                batch
                    .column_by_name(name)
                    .ok_or_else(|| defect(format!("{name} is missing")))?,
            ));
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    batch_of(schema, columns, &options)
}

impl MemtableView {
    /// As [`MemtableView::sorted`], batch by batch, and only what is wanted.
    ///
    /// # Errors
    /// Text of a failing predicate delete.
    pub fn scan(
        &self,
        schema: &Arc<TableSchema>,
        predicate: Option<&dyn RowPredicate>,
        scan: &MemtableScan,
    ) -> Result<MemtableRun, EngineError> {
        let segments = self.all_segments()?;
        let is_wanted = |c: &&Column| scan.columns.as_ref().is_none_or(|ids| ids.contains(&c.id));
        let wanted: Vec<&Column> = schema.columns.iter().filter(is_wanted).collect();
        let has_deletes = segments.iter().any(|s| s.deletes.is_some());
        let has_partial = segments.iter().any(|s| s.is_partial(schema));
        let layout = Layout::new(schema, &wanted);
        let ranks = self.shared.dictionary.ranks(self.series);
        let only: Option<Vec<u32>> = scan.series.as_ref().map(|keys| {
            let mut sids: Vec<u32> = keys
                .iter()
                .filter_map(|key| self.shared.dictionary.find(key))
                .collect();
            sids.sort_unstable();
            sids
        });
        let mut inputs = Vec::with_capacity(segments.len());
        for (at, segment) in segments.iter().enumerate() {
            let deletes: Vec<&Delete> = self.deletes.iter().filter(|d| at < d.segments).collect();
            let ranges = segment.ranges(only.as_deref(), scan.time);
            if ranges.is_empty() {
                continue;
            }
            let mut input = layout.input(schema, segment)?;
            if deletes.is_empty() {
                input = only_rows(input, ranges)?;
            } else {
                let mut keep = self.not_deleted(schema, segment, &deletes, predicate)?;
                keep = &keep & &only_bits(segment.rows, ranges);
                let keep = BooleanArray::new(keep, None);
                input = filter_record_batch(&input, &keep).map_err(defect)?;
            }
            if input.num_rows() > 0 {
                let runs = runs_of(&input, &ranks);
                inputs.push(Some((input, runs)));
            }
        }
        let sources = self.sources(&layout, &wanted)?;
        let options = MergeOptions {
            bottom: scan.bottom,
            has_deletes,
            has_partial,
            batch_rows: scan.batch_rows.max(1),
        };
        let merger = Merger::new(Arc::clone(schema), inputs.len(), options);
        let keeps_hidden = !scan.bottom && (has_deletes || has_partial);
        let mut fields: Vec<Field> = wanted
            .iter()
            .map(|c| {
                let nullable = c.nullable || (keeps_hidden && !schema.is_key(c.id));
                Field::new(&c.name, c.column_type.arrow(), nullable)
            })
            .collect();
        if !scan.bottom && has_deletes {
            fields.push(Field::new(HIDDEN_OP, DataType::Boolean, false));
        }
        if !scan.bottom && has_partial {
            fields.push(Field::new(HIDDEN_SET, DataType::Binary, true));
        }
        Ok(MemtableRun {
            merger,
            inputs,
            schema: Arc::new(Schema::new(fields)),
            sources,
        })
    }

    /// Where each column comes from: the merged rows, or its row's series.
    fn sources(&self, layout: &Layout, columns: &[&Column]) -> Result<Vec<Source>, EngineError> {
        columns
            .iter()
            .map(|c| match layout.place(c.id) {
                Some(at) => Ok(Source::Merged(at)),
                None => self
                    .shared
                    .dictionary
                    .column(c.id, &c.column_type.arrow(), self.series)
                    .map(Source::Series),
            })
            .collect()
    }

    /// A segment's rows that no predicate delete matches.
    fn not_deleted(
        &self,
        schema: &Arc<TableSchema>,
        segment: &Segment,
        deletes: &[&Delete],
        predicate: Option<&dyn RowPredicate>,
    ) -> Result<BooleanBuffer, EngineError> {
        let Some(predicate) = predicate else {
            return Err(EngineError::Invalid(
                "rows were deleted by a predicate, but nothing that evaluates it was given".into(),
            ));
        };
        let all: Vec<&Column> = schema.columns.iter().collect();
        let layout = Layout::new(schema, &all);
        let merged = layout.input(schema, segment)?;
        let sources = self.sources(&layout, &all)?;
        let rows = expand(&schema.arrow(), &sources, &merged)?;
        let mut keep = BooleanBuffer::new_set(rows.num_rows());
        for delete in deletes {
            let hit = predicate
                .matches(schema, &delete.predicate, &rows)
                .map_err(|what| {
                    EngineError::Invalid(format!(
                        "predicate delete of version {}: {what}",
                        delete.version
                    ))
                })?;
            let hit = match hit.nulls() {
                Some(nulls) => hit.values() & nulls.inner(),
                None => hit.values().clone(),
            };
            keep = &keep & &!&hit;
        }
        Ok(keep)
    }
}

impl Segment {
    /// Whether some row leaves a value column of `schema` as it is.
    fn is_partial(&self, schema: &TableSchema) -> bool {
        // Append tables merge nothing: a column left out is NULL.
        schema.mode == TableMode::Upsert
            && schema.value_columns().any(|column| {
                self.columns
                    .binary_search_by_key(&column.id, |c| c.id)
                    .map_or(true, |at| self.columns[at].set.is_some())
            })
    }

    /// The `__set` bitmaps of the rows.
    fn set_bitmaps(&self, schema: &TableSchema) -> ArrayRef {
        let mut kept = self.bitmaps.lock();
        if let Some((version, bitmaps)) = &*kept
            && *version == schema.version
        {
            return Arc::clone(bitmaps);
        }
        let bitmaps = self.make_bitmaps(schema);
        *kept = Some((schema.version, Arc::clone(&bitmaps)));
        bitmaps
    }

    fn make_bitmaps(&self, schema: &TableSchema) -> ArrayRef {
        let bytes = schema.columns.len().div_ceil(8);
        let mut template = vec![0_u8; bytes];
        let mut varying: Vec<(usize, &BooleanBuffer)> = Vec::new();
        let mut any_missing = false;
        for (bit, column) in schema.columns.iter().enumerate() {
            let found = self.columns.binary_search_by_key(&column.id, |c| c.id);
            let mut always = schema.is_key(column.id);
            match found {
                Ok(at) => match &self.columns[at].set {
                    Some(set) => varying.push((bit, set)),
                    None => always = true,
                },
                Err(_) => any_missing |= !always,
            }
            template[bit / 8] |= u8::from(always) << (bit % 8);
        }
        let mut out = BinaryBuilder::with_capacity(self.rows, 0);
        let mut bitmap = template.clone();
        for row in 0..self.rows {
            let whole = self.closed.as_ref().is_some_and(|c| c.value(row))
                || self.deletes.as_ref().is_some_and(|d| d.value(row))
                || (!any_missing && varying.iter().all(|(_, set)| set.value(row)));
            if whole {
                out.append_null();
                continue;
            }
            bitmap.copy_from_slice(&template);
            for (bit, set) in &varying {
                bitmap[bit / 8] |= u8::from(set.value(row)) << (bit % 8);
            }
            out.append_value(&bitmap);
        }
        Arc::new(out.finish())
    }
}

/// Columns of the merger's batches: series number, closing time, wanted value columns, hidden.
struct Layout<'a> {
    time: Option<&'a Column>,
    values: Vec<&'a Column>,
}

impl<'a> Layout<'a> {
    fn new(schema: &'a TableSchema, wanted: &[&'a Column]) -> Self {
        let time = schema
            .key_ends_with_time()
            .then(|| schema.time_column.and_then(|id| schema.column_by_id(id)))
            .flatten();
        let values = wanted.iter().copied().filter(|c| !schema.is_key(c.id));
        Self {
            time,
            values: values.collect(),
        }
    }

    /// Where a column is; `None`: it is a series column.
    fn place(&self, id: ColumnId) -> Option<usize> {
        if self.time.is_some_and(|c| c.id == id) {
            return Some(1);
        }
        let at = self.values.iter().position(|c| c.id == id)?;
        Some(1 + usize::from(self.time.is_some()) + at)
    }

    fn input(&self, schema: &TableSchema, segment: &Segment) -> Result<RecordBatch, EngineError> {
        let mut sids = Vec::with_capacity(segment.rows);
        for (sid, end) in &segment.runs {
            sids.resize(*end as usize, *sid);
        }
        let mut fields = vec![Field::new(SID, DataType::UInt32, false)];
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(sids))];
        if let (Some(column), Some(times)) = (self.time, &segment.times) {
            let data_type = column.column_type.arrow();
            columns.push(time_array(times.clone(), &data_type)?);
            fields.push(Field::new(&column.name, data_type, false));
        }
        for column in &self.values {
            let data_type = column.column_type.arrow();
            let found = segment.columns.binary_search_by_key(&column.id, |c| c.id);
            columns.push(match found {
                Ok(at) => Arc::clone(&segment.columns[at].values),
                Err(_) => new_null_array(&data_type, segment.rows),
            });
            fields.push(Field::new(&column.name, data_type, true));
        }
        if let Some(deletes) = &segment.deletes {
            fields.push(Field::new(HIDDEN_OP, DataType::Boolean, false));
            columns.push(Arc::new(BooleanArray::new(deletes.clone(), None)));
        }
        if segment.is_partial(schema) {
            fields.push(Field::new(HIDDEN_SET, DataType::Binary, true));
            columns.push(segment.set_bitmaps(schema));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(defect)
    }
}

fn time_array(times: ScalarBuffer<i64>, data_type: &DataType) -> Result<ArrayRef, EngineError> {
    let DataType::Timestamp(unit, zone) = data_type else {
        return Err(defect(format!("time column of type {data_type}")));
    };
    let zone = zone.clone();
    Ok(match unit {
        TimeUnit::Second => Arc::new(
            PrimitiveArray::<TimestampSecondType>::new(times, None).with_timezone_opt(zone),
        ),
        TimeUnit::Millisecond => Arc::new(
            PrimitiveArray::<TimestampMillisecondType>::new(times, None).with_timezone_opt(zone),
        ),
        TimeUnit::Microsecond => Arc::new(
            PrimitiveArray::<TimestampMicrosecondType>::new(times, None).with_timezone_opt(zone),
        ),
        TimeUnit::Nanosecond => Arc::new(
            PrimitiveArray::<TimestampNanosecondType>::new(times, None).with_timezone_opt(zone),
        ),
    })
}

/// The stretches of one series each: (rank, end).
fn runs_of(input: &RecordBatch, ranks: &[u32]) -> Vec<(u32, u32)> {
    let sids = input.column(0).as_primitive::<UInt32Type>().values();
    let mut runs = Vec::new();
    let mut at = 0;
    while at < sids.len() {
        let sid = sids[at];
        // Rows of a series lie together: the end is found by galloping.
        let mut step = 1;
        let mut low = at;
        while low + step < sids.len() && sids[low + step] == sid {
            low += step;
            step *= 2;
        }
        let high = (low + step).min(sids.len());
        let end = low + sids[low..high].partition_point(|s| *s == sid);
        runs.push((ranks[sid as usize], end as u32));
        at = end;
    }
    runs
}

fn only_bits(rows: usize, ranges: Vec<Range<usize>>) -> BooleanBuffer {
    let mut bits = BooleanBufferBuilder::new(rows);
    for range in ranges {
        bits.append_n(range.start - bits.len(), false);
        bits.append_n(range.len(), true);
    }
    bits.append_n(rows - bits.len(), false);
    bits.finish()
}

/// The rows of ascending ranges.
fn only_rows(input: RecordBatch, ranges: Vec<Range<usize>>) -> Result<RecordBatch, EngineError> {
    if let [only] = &ranges[..] {
        return Ok(input.slice(only.start, only.len()));
    }
    let rows: UInt32Array = ranges
        .into_iter()
        .flat_map(|r| r.start as u32..r.end as u32)
        .collect();
    take_record_batch(&input, &rows).map_err(defect)
}
