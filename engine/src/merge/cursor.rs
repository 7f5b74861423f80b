//! Where a merge stands in one run.

use arrow_array::cast::AsArray;
use arrow_array::{Array, BinaryArray, BooleanArray, RecordBatch};
use arrow_buffer::ScalarBuffer;
use shoal_rows::Series;
use shoal_sst::{HIDDEN_OP, HIDDEN_SET, SeriesEncoder, times_of};
use shoal_types::TableSchema;

use crate::EngineError;

/// What a row says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowState {
    /// Deletes it.
    Deleted,
    /// Sets every column.
    Whole,
    /// Sets some columns.
    Partial,
}

/// A run's current batch and row.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    loaded: Option<Loaded>,
    ended: bool,
}

#[derive(Debug)]
struct Loaded {
    batch: RecordBatch,
    names: Names,
    /// The closing time of the key; without one, equal series are equal keys.
    times: Option<ScalarBuffer<i64>>,
    op: Option<BooleanArray>,
    set: Option<BinaryArray>,
    row: usize,
    /// End of the stretch that has the series of `row`.
    series_end: usize,
    series: Vec<u8>,
    /// Reused when looking for `series_end`.
    probe: Vec<u8>,
    /// Place of `batch` among those the output holds.
    held: Option<usize>,
}

/// How the series of a row is known.
#[derive(Debug)]
enum Names {
    /// Encoded from the key columns.
    Encoded(SeriesEncoder),
    /// Known beforehand: (rank, end) of each stretch, and the current one.
    Ranked(Vec<(u32, u32)>, usize),
    /// There is no key: all rows are alike.
    Alike,
}

impl Cursor {
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.ended && self.loaded.is_none()
    }

    pub(super) fn load(
        &mut self,
        schema: &TableSchema,
        batch: RecordBatch,
    ) -> Result<(), EngineError> {
        let column = |id| {
            let name = schema.column_by_id(id).map_or("", |c| c.name.as_str());
            batch.column_by_name(name).cloned().ok_or_else(|| {
                EngineError::Invalid(format!("a run to be merged lacks key column {name:?}"))
            })
        };
        let ids = schema.series_columns();
        let values = ids.iter().map(|id| column(*id)).collect::<Result<_, _>>()?;
        let names = if schema.key.is_empty() {
            Names::Alike
        } else {
            Names::Encoded(SeriesEncoder::new(&Series {
                columns: ids.to_vec(),
                values,
                len: batch.num_rows(),
            }))
        };
        self.start(schema, batch, names)
    }

    /// Loads a batch whose series stretches are known.
    pub(super) fn load_numbered(
        &mut self,
        schema: &TableSchema,
        batch: RecordBatch,
        stretches: Vec<(u32, u32)>,
    ) -> Result<(), EngineError> {
        self.start(schema, batch, Names::Ranked(stretches, 0))
    }

    fn start(
        &mut self,
        schema: &TableSchema,
        batch: RecordBatch,
        names: Names,
    ) -> Result<(), EngineError> {
        let mut times = None;
        if let Some(id) = schema.time_column
            && schema.key_ends_with_time()
        {
            let name = schema.column_by_id(id).map_or("", |c| c.name.as_str());
            let column = batch.column_by_name(name);
            times = column.and_then(|c| times_of(c)).cloned();
            if times.is_none() {
                return Err(EngineError::Invalid(format!(
                    "a run to be merged lacks time column {name:?}"
                )));
            }
        }
        let op = batch
            .column_by_name(HIDDEN_OP)
            .and_then(|c| c.as_boolean_opt())
            .filter(|op| op.true_count() > 0)
            .cloned();
        let set = batch
            .column_by_name(HIDDEN_SET)
            .and_then(|c| c.as_binary_opt::<i32>())
            .filter(|set| set.null_count() < set.len())
            .cloned();
        let mut loaded = Loaded {
            batch,
            names,
            times,
            op,
            set,
            row: 0,
            series_end: 0,
            series: Vec::new(),
            probe: Vec::new(),
            held: None,
        };
        loaded.find_series();
        self.loaded = Some(loaded);
        Ok(())
    }

    fn loaded(&self) -> &Loaded {
        self.loaded
            .as_ref()
            .expect("the merger asks only runs that have a batch")
    }

    pub(super) fn series(&self) -> &[u8] {
        &self.loaded().series
    }

    /// Time of the current row; one constant where keys have none.
    pub(super) fn time(&self) -> i64 {
        let loaded = self.loaded();
        loaded.times.as_ref().map_or(0, |t| t[loaded.row])
    }

    pub(super) fn row(&self) -> usize {
        self.loaded().row
    }

    pub(super) fn batch(&self) -> &RecordBatch {
        &self.loaded().batch
    }

    pub(super) fn held(&mut self) -> &mut Option<usize> {
        &mut self
            .loaded
            .as_mut()
            .expect("the merger asks only runs that have a batch")
            .held
    }

    pub(super) fn forget_held(&mut self) {
        if let Some(loaded) = &mut self.loaded {
            loaded.held = None;
        }
    }

    pub(super) fn series_end(&self) -> usize {
        self.loaded().series_end
    }

    /// First row of this series in this batch whose time is `time` or later.
    pub(super) fn first_not_before(&self, time: i64) -> usize {
        self.gallop(|t| t < time)
    }

    /// First row of this series in this batch whose time is later than `time`.
    pub(super) fn first_after(&self, time: i64) -> usize {
        self.gallop(|t| t <= time)
    }

    /// End of the rows, from the current one, for whose times `before` holds.
    fn gallop(&self, before: impl Fn(i64) -> bool) -> usize {
        let loaded = self.loaded();
        let Some(times) = &loaded.times else {
            return loaded.series_end;
        };
        let (mut low, mut step) = (loaded.row, 1);
        while low + step < loaded.series_end && before(times[low + step]) {
            low += step;
            step *= 2;
        }
        let high = (low + step).min(loaded.series_end);
        low + times[low..high].partition_point(|t| before(*t))
    }

    pub(super) fn state(&self) -> RowState {
        let loaded = self.loaded();
        if loaded.op.as_ref().is_some_and(|op| op.value(loaded.row)) {
            RowState::Deleted
        } else if loaded.set.as_ref().is_some_and(|s| s.is_valid(loaded.row)) {
            RowState::Partial
        } else {
            RowState::Whole
        }
    }

    /// Tombstones of the current batch; `None`: it has none.
    pub(super) fn op(&self) -> Option<&BooleanArray> {
        self.loaded().op.as_ref()
    }

    /// The columns that the current row sets; `None`: all.
    pub(super) fn set(&self) -> Option<&[u8]> {
        let loaded = self.loaded();
        let set = loaded.set.as_ref()?;
        set.is_valid(loaded.row).then(|| set.value(loaded.row))
    }

    pub(super) fn skip_row(&mut self) {
        let next = self.row() + 1;
        self.move_to(next);
    }

    /// Goes to a later row; the batch is done with at its end.
    pub(super) fn move_to(&mut self, row: usize) {
        let Some(loaded) = &mut self.loaded else {
            return;
        };
        loaded.row = row;
        if row >= loaded.batch.num_rows() {
            self.loaded = None;
        } else if row >= loaded.series_end {
            loaded.find_series();
        }
    }
}

impl Loaded {
    /// Encodes the series of the current row and finds where its stretch ends.
    fn find_series(&mut self) {
        let rows = self.batch.num_rows();
        self.series.clear();
        let encoder = match &mut self.names {
            Names::Alike => {
                self.series_end = rows;
                return;
            }
            Names::Ranked(stretches, at) => {
                while stretches.get(*at).is_some_and(|s| s.1 as usize <= self.row) {
                    *at += 1;
                }
                let (rank, end) = stretches
                    .get(*at)
                    .copied()
                    .unwrap_or((u32::MAX, rows as u32));
                self.series.extend_from_slice(&rank.to_be_bytes());
                self.series_end = end as usize;
                return;
            }
            Names::Encoded(encoder) => encoder,
        };
        encoder.encode(self.row, &mut self.series);
        if self.times.is_none() {
            // Every row is its own key (upsert), or equal keys are few (append).
            self.series_end = self.row + 1;
            return;
        }
        let mut same = |at: usize| {
            self.probe.clear();
            encoder.encode(at, &mut self.probe);
            self.probe == self.series
        };
        let (mut low, mut step) = (self.row, 1);
        while low + step < rows && same(low + step) {
            low += step;
            step *= 2;
        }
        let mut high = (low + step).min(rows);
        // `low` has the series, `high` does not.
        while high - low > 1 {
            let middle = low.midpoint(high);
            if same(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.series_end = low + 1;
    }
}
