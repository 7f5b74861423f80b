//! Rows of one table that are in the log but not yet in a file: cheap to append, sorted when
//! somebody looks.
//!
//! Blocks are kept as they come (the *tail*). Once they hold [`SEAL_ROWS`] rows, their rows are
//! sorted into a *segment* that takes their place: a reader sorts only the tail, a flush need not
//! hold all rows twice, and the buffers of log records are let go. Segments and tail are runs,
//! merged like files.

mod replay;
mod run;
mod segment;
mod series;

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use parking_lot::RwLock;
use shoal_rows::RowBlock;
use shoal_sst::times_of;
use shoal_types::{ColumnId, Offset, PartitionBounds, RowVersion, TableMode, TableSchema};

use crate::EngineError;
pub(crate) use replay::Step;
pub use run::{MemtableRun, MemtableScan};
use segment::{Chunk, Segment};
use series::SeriesDictionary;

/// Rows after which the tail becomes a segment: some 10 ms of work for whoever applies the block
/// that fills it.
const SEAL_ROWS: usize = 64 << 10;
/// Blocks after which it does too: tiny blocks cost more than their rows.
const SEAL_BLOCKS: usize = 4096;

/// The rows of one table since the last freeze.
#[derive(Debug)]
pub struct TableMemtable {
    schema: Arc<TableSchema>,
    shared: Arc<Shared>,
    deletes: Arc<Vec<Delete>>,
    bounds: Bounds,
    pub(crate) written_under: Option<Arc<PartitionBounds>>,
}

/// A fixed view of a memtable's rows; cheap to clone. Sorting happens on first use and is kept
/// for all views that share the rows.
#[derive(Clone, Debug)]
pub struct MemtableView {
    shared: Arc<Shared>,
    segments: Arc<Vec<Arc<Segment>>>,
    tail: Arc<Tail>,
    tail_blocks: usize,
    series: usize,
    unique: bool,
    deletes: Arc<Vec<Delete>>,
    bounds: Bounds,
    pub(crate) written_under: Option<Arc<PartitionBounds>>,
}

/// A predicate delete: hides matching rows of the segments that were there.
#[derive(Clone, Debug)]
struct Delete {
    version: RowVersion,
    predicate: Arc<str>,
    /// Segments that it applies to.
    segments: usize,
}

/// What is known of the rows without looking at them.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    rows: usize,
    versions: Option<(RowVersion, RowVersion)>,
    times: Option<(i64, i64)>,
    /// Some row's time is NULL or not written: `times` bounds nothing.
    time_unknown: bool,
}

#[derive(Debug, Default)]
struct Shared {
    dictionary: SeriesDictionary,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    segments: Arc<Vec<Arc<Segment>>>,
    tail: Arc<Tail>,
    /// Of segments and tail.
    bytes: usize,
    tail_rows: usize,
}

/// Blocks since the last segment. Grows only: a view knows how many of them it may see.
#[derive(Debug, Default)]
struct Tail {
    blocks: RwLock<Vec<Chunk>>,
    /// The first so many blocks, sorted.
    sorted: parking_lot::Mutex<Option<(usize, Arc<Segment>)>>,
}

pub(crate) fn defect(error: impl std::fmt::Display) -> EngineError {
    EngineError::Invalid(format!("memtable: {error}"))
}

impl TableMemtable {
    /// An empty memtable.
    #[must_use]
    pub fn new(schema: Arc<TableSchema>) -> Self {
        Self {
            schema,
            shared: Arc::default(),
            deletes: Arc::default(),
            bounds: Bounds::default(),
            written_under: None,
        }
    }

    /// The same, of a unit that owns so much: no row of it lies outside.
    #[must_use]
    pub fn written_under(self, bounds: Option<Arc<PartitionBounds>>) -> Self {
        Self {
            written_under: bounds,
            ..self
        }
    }

    /// The same rows, as another unit's. Nothing more may be added to either.
    pub(crate) fn shared_as(&self, schema: Arc<TableSchema>) -> Self {
        Self {
            schema,
            shared: Arc::clone(&self.shared),
            deletes: Arc::clone(&self.deletes),
            bounds: self.bounds,
            written_under: self.written_under.clone(),
        }
    }

    /// Takes the rows of one applied record. Their versions are
    /// `RowVersion::new(base, offset, first_row + i)`. O(distinct series of the block), but for
    /// the block that fills the tail.
    pub fn apply(&mut self, block: Arc<RowBlock>, base: u64, offset: Offset, first_row: u16) {
        let rows = block.rows();
        if rows == 0 {
            return;
        }
        let first = RowVersion::new(base, offset, first_row);
        // A record holds at most 65,536 rows, so the last one's version is in range.
        let last = RowVersion(first.0 + rows as u64 - 1);
        self.bounds.note(&self.schema, &block, (first, last));
        let sids = self.shared.dictionary.numbers_of(&block.series).into();
        let chunk = Chunk { block, sids };
        let mut state = self.shared.state.write();
        state.bytes += chunk.memory_bytes();
        state.tail_rows += rows;
        let blocks = {
            let mut blocks = state.tail.blocks.write();
            blocks.push(chunk);
            blocks.len()
        };
        let long = state.tail_rows >= SEAL_ROWS || blocks >= SEAL_BLOCKS;
        drop(state);
        if long {
            self.seal();
        }
    }

    /// A predicate delete on an append table: hides all matching rows applied so far.
    pub fn delete_where(&mut self, version: RowVersion, predicate: Arc<str>) {
        if self.bounds.rows == 0 {
            return;
        }
        // The delete must tell rows before it from rows after it: a segment ends here.
        self.seal();
        let segments = self.shared.state.read().segments.len();
        Arc::make_mut(&mut self.deletes).push(Delete {
            version,
            predicate,
            segments,
        });
    }

    /// Bytes held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let state = self.shared.state.read();
        let cached = state.tail.sorted.lock();
        let cached = cached.as_ref().map_or(0, |(_, s)| s.memory_bytes());
        state.bytes + cached + self.shared.dictionary.memory_bytes() + size_of::<Self>() + 512
    }

    /// Rows held (before deduplication).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.bounds.rows
    }

    /// The rows as they are now.
    #[must_use]
    pub fn view(&self) -> MemtableView {
        let state = self.shared.state.read();
        MemtableView {
            shared: Arc::clone(&self.shared),
            segments: Arc::clone(&state.segments),
            tail: Arc::clone(&state.tail),
            tail_blocks: state.tail.blocks.read().len(),
            series: self.shared.dictionary.len(),
            unique: self.schema.mode == TableMode::Upsert,
            deletes: Arc::clone(&self.deletes),
            bounds: self.bounds,
            written_under: self.written_under.clone(),
        }
    }

    /// Makes a segment of the tail. A block that cannot be sorted (a defect) stays in the tail
    /// and fails the reads that meet it.
    fn seal(&self) {
        let view = self.view();
        if view.tail_blocks == 0 {
            return;
        }
        match view.sorted_tail() {
            Ok(segment) => view.publish(segment),
            Err(error) => tracing::error!(table = %self.schema.table, %error, "rows not sorted"),
        }
    }
}

impl Bounds {
    fn note(&mut self, schema: &TableSchema, block: &RowBlock, versions: (RowVersion, RowVersion)) {
        self.rows += block.rows();
        self.versions = Some(match self.versions {
            None => versions,
            Some((low, high)) => (low.min(versions.0), high.max(versions.1)),
        });
        let Some(id) = schema.time_column else { return };
        let times = match &block.time {
            Some(times) => min_max(times),
            None => value_times(block, id),
        };
        match (times, self.times) {
            (None, _) => self.time_unknown = true,
            (Some(new), None) => self.times = Some(new),
            (Some((a, b)), Some((low, high))) => self.times = Some((low.min(a), high.max(b))),
        }
    }
}

fn min_max(times: &[i64]) -> Option<(i64, i64)> {
    let low = times.iter().copied().min()?;
    Some((low, times.iter().copied().max()?))
}

/// Bounds of a time column that does not close the key.
fn value_times(block: &RowBlock, id: ColumnId) -> Option<(i64, i64)> {
    if block.deletes.is_some() {
        return None;
    }
    if let Some(at) = block.series.columns.iter().position(|c| *c == id) {
        let values = &block.series.values[at];
        return (values.null_count() == 0).then(|| times_of(values).and_then(|t| min_max(t)))?;
    }
    let column = block.columns.iter().find(|c| c.id == id)?;
    if column.set.is_some() || column.values.null_count() > 0 {
        return None;
    }
    times_of(&column.values).and_then(|t| min_max(t))
}

impl MemtableView {
    /// Rows held (before deduplication).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.bounds.rows
    }

    /// Smallest and largest time of the rows in the time column's unit; `None`: no time column,
    /// no rows, or a NULL time.
    #[must_use]
    pub fn time_range(&self) -> Option<(i64, i64)> {
        self.bounds.times.filter(|_| !self.bounds.time_unknown)
    }

    /// What the unit owned when the rows came; `None`: all of the table.
    #[must_use]
    pub fn written_under(&self) -> Option<&PartitionBounds> {
        self.written_under.as_deref()
    }

    /// Lowest and highest row version.
    #[must_use]
    pub fn versions(&self) -> Option<(RowVersion, RowVersion)> {
        self.bounds.versions
    }

    /// The rows as one run: columns of `schema.arrow()` (which may be newer than the rows'
    /// schema: added columns are NULL/not set), then `__op` and `__set` where they are needed
    /// (told by name; all batches alike); sorted by key, one row a key in upsert tables (merged
    /// per column), every row in append tables (stable). Batches of about 8,192 rows.
    ///
    /// # Errors
    /// Text of a failing predicate delete.
    pub fn sorted(
        &self,
        schema: &Arc<TableSchema>,
        predicate: Option<&dyn crate::RowPredicate>,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        self.scan(schema, predicate, &MemtableScan::default())?
            .collect()
    }

    /// Calls `with` with the time of every row, in no order, where times close the key or stand
    /// in a value column; rows without a time are left out.
    pub(crate) fn each_time(&self, schema: &TableSchema, mut with: impl FnMut(i64)) {
        let Some(id) = schema.time_column else { return };
        let mut of_block = |times: Option<&[i64]>, columns: &[shoal_rows::BlockColumn]| {
            if let Some(times) = times {
                times.iter().copied().for_each(&mut with);
            } else if let Some(column) = columns.iter().find(|c| c.id == id)
                && let Some(times) = times_of(&column.values)
            {
                let values = &column.values;
                (0..values.len())
                    .filter(|row| values.is_valid(*row))
                    .for_each(|row| with(times[row]));
            }
        };
        for segment in self.segments.iter() {
            of_block(segment.times.as_deref(), &segment.columns);
        }
        for chunk in &self.tail.blocks.read()[..self.tail_blocks] {
            of_block(chunk.block.time.as_deref(), &chunk.block.columns);
        }
    }

    /// All rows as sorted segments.
    fn all_segments(&self) -> Result<Vec<Arc<Segment>>, EngineError> {
        let mut all = self.segments.to_vec();
        if self.tail_blocks > 0 {
            all.push(self.sorted_tail()?);
        }
        Ok(all)
    }

    fn sorted_tail(&self) -> Result<Arc<Segment>, EngineError> {
        // The lock is held while sorting: a second reader waits rather than doing the same work.
        let mut sorted = self.tail.sorted.lock();
        if let Some((blocks, segment)) = &*sorted
            && *blocks == self.tail_blocks
        {
            return Ok(Arc::clone(segment));
        }
        let blocks: Vec<Chunk> = self.tail.blocks.read()[..self.tail_blocks].to_vec();
        let segment = Segment::build(&blocks, &self.shared.dictionary, self.unique)?;
        let segment = Arc::new(segment);
        let is_newest = sorted
            .as_ref()
            .is_none_or(|(blocks, _)| *blocks < self.tail_blocks);
        if is_newest {
            *sorted = Some((self.tail_blocks, Arc::clone(&segment)));
        }
        Ok(segment)
    }

    /// Lets the sorted rows take the place of this view's tail, unless another view was first.
    fn publish(&self, segment: Arc<Segment>) {
        let mut state = self.shared.state.write();
        if !Arc::ptr_eq(&state.tail, &self.tail) {
            return;
        }
        let rest: Vec<Chunk> = state.tail.blocks.read()[self.tail_blocks..].to_vec();
        let mut segments = state.segments.to_vec();
        segments.push(segment);
        state.bytes = segments.iter().map(|s| s.memory_bytes()).sum::<usize>()
            + rest.iter().map(Chunk::memory_bytes).sum::<usize>();
        state.tail_rows = rest.iter().map(|c| c.block.rows()).sum();
        state.segments = Arc::new(segments);
        state.tail = Arc::new(Tail {
            blocks: RwLock::new(rest),
            sorted: parking_lot::Mutex::default(),
        });
    }
}

#[cfg(test)]
pub(crate) mod tests;
