//! Merging sorted runs of one table: reads where files overlap and compaction use the same.
//!
//! A run holds at most one version of a key (upsert tables); runs are ordered, every row of a
//! later run is newer than any row of an earlier one with the same key. Per key, from old to new:
//!
//! - a tombstone deletes what is older;
//! - a row with `__set` NULL replaces it;
//! - a row with a `__set` bitmap changes only the columns set. After a tombstone it becomes a
//!   whole row (unset columns NULL), so that it cannot take columns from below the tombstone.
//!
//! Below the *bottom* there is no older run: tombstones go and bitmaps lose their meaning.
//!
//! Keys are compared as (encoded series, time); a stretch of rows of one series is found by
//! galloping, so tag values are not compared row by row, and stretches that no other run meets
//! are copied as slices.

mod cursor;
mod output;

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use shoal_types::{TableMode, TableSchema};

use crate::EngineError;
use cursor::{Cursor, RowState};
use output::Output;

/// Batches of a run, in key order.
pub type RunStream = BoxStream<'static, Result<RecordBatch, EngineError>>;

/// Column of a memtable's runs that stands for all series columns: series numbers.
pub(crate) const SID: &str = "__sid";

pub(crate) use output::batch_of;

/// How runs are merged.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// No older run of these keys remains below: tombstones are dropped, partial rows become
    /// whole, and the result has no hidden columns.
    pub bottom: bool,
    /// Some run may have tombstones; not at the bottom, the result then has a `__op` column.
    pub has_deletes: bool,
    /// Some run may have partial rows; not at the bottom, the result then has a `__set` column.
    pub has_partial: bool,
    /// Rows of a result batch, at most (single slices may be longer).
    pub batch_rows: usize,
}

impl MergeOptions {
    /// For readers: everything is merged, the result is what the table shows.
    #[must_use]
    pub fn read() -> Self {
        Self {
            bottom: true,
            has_deletes: true,
            has_partial: true,
            batch_rows: 8192,
        }
    }
}

/// A run from a file of the store.
#[must_use]
pub fn file_run(stream: shoal_sst::SstStream) -> RunStream {
    stream.map_err(EngineError::from).boxed()
}

/// A run from memory.
#[must_use]
pub fn memory_run(batches: Vec<RecordBatch>) -> RunStream {
    futures::stream::iter(batches.into_iter().map(Ok)).boxed()
}

/// Merges runs, ordered old to new, into one.
///
/// All batches of all runs have the same columns in the same order: any columns of `schema` that
/// include its whole key; then `__op` and `__set` or not, each run as it likes (bit `i` of
/// `__set` is `schema.columns[i]`). The result has these columns, then the hidden ones as
/// `options` says. Append tables keep every row, ordered by key, equal keys in run order.
///
/// Nothing is read before the stream is polled; it holds one batch a run and one of output. An
/// error ends it.
#[must_use]
pub fn merge_runs(
    schema: Arc<TableSchema>,
    runs: Vec<RunStream>,
    options: MergeOptions,
) -> RunStream {
    let merger = Merger::new(schema, runs.len(), options);
    futures::stream::try_unfold((merger, runs), |(mut merger, mut runs)| async move {
        loop {
            match merger.step()? {
                Step::Need(run) => {
                    let batch = runs[run].try_next().await?;
                    merger.push(run, batch)?;
                }
                Step::Batch(batch) => return Ok(Some((batch, (merger, runs)))),
                Step::Done => return Ok(None),
            }
        }
    })
    .boxed()
}

/// As [`merge_runs`], for runs in memory.
///
/// # Errors
/// Batches that break the shape asked for.
pub fn merge_batches(
    schema: &Arc<TableSchema>,
    runs: Vec<Vec<RecordBatch>>,
    options: MergeOptions,
) -> Result<Vec<RecordBatch>, EngineError> {
    let mut merger = Merger::new(Arc::clone(schema), runs.len(), options);
    let mut runs: Vec<_> = runs.into_iter().map(Vec::into_iter).collect();
    let mut out = Vec::new();
    loop {
        match merger.step()? {
            Step::Need(run) => {
                let batch = runs[run].next();
                merger.push(run, batch)?;
            }
            Step::Batch(batch) => out.push(batch),
            Step::Done => return Ok(out),
        }
    }
}

/// What the merger wants next.
#[derive(Debug)]
pub enum Step {
    /// The next batch of this run, or word that it ended ([`Merger::push`]).
    Need(usize),
    /// A batch of the result.
    Batch(RecordBatch),
    /// All runs ended and all rows are out.
    Done,
}

/// The merge itself, without I/O: call [`Merger::step`] and feed what it needs.
#[derive(Debug)]
pub struct Merger {
    schema: Arc<TableSchema>,
    options: MergeOptions,
    cursors: Vec<Cursor>,
    output: Option<Output>,
    /// Reused: runs at the smallest series.
    meeting: Vec<usize>,
}

impl Merger {
    /// A merger of `runs` runs, ordered old to new.
    #[must_use]
    pub fn new(schema: Arc<TableSchema>, runs: usize, options: MergeOptions) -> Self {
        Self {
            schema,
            options,
            cursors: (0..runs).map(|_| Cursor::default()).collect(),
            output: None,
            meeting: Vec::new(),
        }
    }

    /// The result's schema, known once a batch was pushed.
    #[must_use]
    pub fn result_schema(&self) -> Option<&SchemaRef> {
        self.output.as_ref().map(Output::schema)
    }

    /// Feeds the run that [`Step::Need`] named; `None`: it ended.
    ///
    /// # Errors
    /// A batch without a key column, or whose columns differ from the other runs'.
    pub fn push(&mut self, run: usize, batch: Option<RecordBatch>) -> Result<(), EngineError> {
        let Some(batch) = batch else {
            self.cursors[run].end();
            return Ok(());
        };
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.accept(&batch)?;
        self.cursors[run].load(&self.schema, batch)
    }

    /// The first batch settles the output's columns; the others must have the same.
    fn accept(&mut self, batch: &RecordBatch) -> Result<(), EngineError> {
        let output = match &mut self.output {
            Some(output) => output,
            empty => empty.insert(Output::new(&self.schema, self.options, batch)?),
        };
        output.check(batch)
    }

    /// As [`Merger::push`], for a run whose first column is [`SID`] in place of the series
    /// columns; `stretches` holds each series' rank among those of all runs and where it ends.
    pub(crate) fn push_numbered(
        &mut self,
        run: usize,
        batch: RecordBatch,
        stretches: Vec<(u32, u32)>,
    ) -> Result<(), EngineError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.accept(&batch)?;
        self.cursors[run].load_numbered(&self.schema, batch, stretches)
    }

    /// Goes on until something is needed or ready.
    ///
    /// # Errors
    /// Arrow kernels that fail: a defect.
    pub fn step(&mut self) -> Result<Step, EngineError> {
        loop {
            if let Some(output) = &mut self.output
                && output.is_full()
            {
                for cursor in &mut self.cursors {
                    cursor.forget_held();
                }
                if let Some(batch) = output.take()? {
                    return Ok(Step::Batch(batch));
                }
            }
            if let Some(run) = self.cursors.iter().position(Cursor::is_waiting) {
                return Ok(Step::Need(run));
            }
            if !self.find_meeting() {
                let rest = match &mut self.output {
                    Some(output) => output.take()?,
                    None => None,
                };
                return Ok(rest.map_or(Step::Done, Step::Batch));
            }
            self.advance();
        }
    }

    /// Finds the runs whose current series is the smallest; false: all ended.
    fn find_meeting(&mut self) -> bool {
        self.meeting.clear();
        if self.schema.key.is_empty() {
            // Nothing to order by: one run after the other.
            let first = self.cursors.iter().position(|c| !c.is_ended());
            self.meeting.extend(first);
            return first.is_some();
        }
        for run in 0..self.cursors.len() {
            if self.cursors[run].is_ended() {
                continue;
            }
            let order = match self.meeting.first() {
                None => std::cmp::Ordering::Less,
                Some(&best) => self.cursors[run].series().cmp(self.cursors[best].series()),
            };
            match order {
                std::cmp::Ordering::Less => {
                    self.meeting.clear();
                    self.meeting.push(run);
                }
                std::cmp::Ordering::Equal => self.meeting.push(run),
                std::cmp::Ordering::Greater => {}
            }
        }
        !self.meeting.is_empty()
    }

    /// Moves one stretch of rows, or the versions of one key, to the output.
    fn advance(&mut self) {
        let Some(output) = &mut self.output else {
            return;
        };
        if let [only] = self.meeting[..] {
            let cursor = &mut self.cursors[only];
            let end = cursor.series_end();
            output.copy(cursor, end);
            return;
        }
        // Several runs hold rows of this series: the smallest time goes first.
        let mut least = i64::MAX;
        let mut next = i64::MAX;
        let mut at_least = 0;
        for &run in &self.meeting {
            let time = self.cursors[run].time();
            if time < least || at_least == 0 {
                next = least;
                least = time;
                at_least = 1;
            } else if time == least {
                at_least += 1;
            } else {
                next = next.min(time);
            }
        }
        let first = self
            .meeting
            .iter()
            .copied()
            .find(|&run| self.cursors[run].time() == least);
        let Some(first) = first else { return };
        if at_least == 1 {
            let cursor = &mut self.cursors[first];
            let end = cursor.first_not_before(next);
            output.copy(cursor, end);
        } else if self.schema.mode == TableMode::Append {
            for &run in &self.meeting {
                let cursor = &mut self.cursors[run];
                if cursor.time() == least {
                    let end = cursor.first_after(least);
                    output.copy(cursor, end);
                }
            }
        } else {
            self.meeting
                .retain(|&run| self.cursors[run].time() == least);
            combine(
                &mut self.cursors,
                &self.meeting,
                self.options.bottom,
                output,
            );
        }
    }
}

/// Merges the versions of one key, one row in each of `runs` (old to new).
fn combine(cursors: &mut [Cursor], runs: &[usize], bottom: bool, output: &mut Output) {
    let mut sources: Vec<usize> = Vec::new();
    let mut closed = false;
    for &run in runs.iter().rev() {
        match cursors[run].state() {
            RowState::Deleted if sources.is_empty() => {
                // The newest word: nothing, or a tombstone for older runs.
                if !bottom {
                    output.copy_row(&mut cursors[run]);
                }
                closed = true;
                break;
            }
            RowState::Deleted => {
                closed = true;
                break;
            }
            RowState::Whole => {
                sources.push(run);
                closed = true;
                break;
            }
            RowState::Partial => sources.push(run),
        }
    }
    match sources[..] {
        [] => {}
        // A row that is whole, or has nothing below it, stands as it is; above a tombstone it
        // becomes whole, which `mix` does.
        [only] if cursors[only].state() == RowState::Whole || !closed => {
            output.copy_row(&mut cursors[only]);
        }
        _ => output.mix(cursors, &sources, closed),
    }
    for &run in runs {
        cursors[run].skip_row();
    }
}

#[cfg(test)]
pub(crate) mod tests;
