//! Rows of several blocks sorted into one: by series, then time, one row a key (upsert).

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, new_null_array};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, ScalarBuffer};
use arrow_select::interleave::interleave;
use parking_lot::Mutex;
use shoal_rows::{BlockColumn, RowBlock};
use shoal_types::ColumnId;

use super::series::{SeriesDictionary, Sid, compact};
use crate::EngineError;

/// A block in memory and the memtable's numbers of its series.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) block: Arc<RowBlock>,
    pub(super) sids: Arc<[Sid]>,
}

impl Chunk {
    pub(super) fn memory_bytes(&self) -> usize {
        self.block.memory_bytes() + self.sids.len() * 4 + 96
    }
}

/// Sorted rows.
#[derive(Debug)]
pub(super) struct Segment {
    /// Series in the order of their encoded form, and where the rows of each end.
    pub(super) runs: Vec<(Sid, u32)>,
    pub(super) times: Option<ScalarBuffer<i64>>,
    /// Ascending by id. Where `set` is false the value is NULL.
    pub(super) columns: Vec<BlockColumn>,
    /// Tombstones.
    pub(super) deletes: Option<BooleanBuffer>,
    /// Rows that hide everything older although not every column is set: a tombstone lies
    /// between.
    pub(super) closed: Option<BooleanBuffer>,
    pub(super) rows: usize,
    /// `__set` for one schema version, made when first asked for.
    pub(super) bitmaps: Mutex<Option<(u32, ArrayRef)>>,
}

/// Where a row of the segment comes from.
#[derive(Clone, Copy)]
struct Place {
    chunk: u32,
    row: u32,
}

impl Place {
    /// The row's time; 0 for all where the key does not end with the time.
    fn time(self, chunks: &[Chunk]) -> i64 {
        let times = chunks[self.chunk as usize].block.time.as_ref();
        times.map_or(0, |t| t[self.row as usize])
    }
}

/// A row put together from several versions of its key, newest first.
struct Mixed {
    at: usize,
    versions: Vec<Place>,
}

impl Segment {
    /// Sorts the rows of `chunks`, oldest first. `unique`: upsert, one row a key.
    pub(super) fn build(
        chunks: &[Chunk],
        dictionary: &SeriesDictionary,
        unique: bool,
    ) -> Result<Self, EngineError> {
        let (runs, places) = order(chunks, dictionary);
        let has_time = chunks.iter().all(|c| c.block.time.is_some());
        let mut segment = Self {
            runs: Vec::with_capacity(runs.len()),
            times: None,
            columns: Vec::new(),
            deletes: None,
            closed: None,
            rows: 0,
            bitmaps: Mutex::default(),
        };
        let mut kept: Vec<Place> = Vec::with_capacity(places.len());
        let mut times: Vec<i64> = Vec::with_capacity(if has_time { places.len() } else { 0 });
        let mut mixed: Vec<Mixed> = Vec::new();
        let time_of = |p: Place| p.time(chunks);
        let mut start = 0;
        for (sid, end) in runs {
            let mut row = start;
            while row < end {
                let time = time_of(places[row]);
                let mut next = row + 1;
                if unique {
                    while next < end && time_of(places[next]) == time {
                        next += 1;
                    }
                }
                if next - row > 1 {
                    mixed.push(Mixed {
                        at: kept.len(),
                        versions: places[row..next].iter().rev().copied().collect(),
                    });
                }
                kept.push(places[next - 1]);
                if has_time {
                    times.push(time);
                }
                row = next;
            }
            segment.runs.push((sid, kept.len() as u32));
            start = end;
        }
        segment.rows = kept.len();
        segment.times = has_time.then(|| ScalarBuffer::from(times));
        segment.note_deletes(chunks, &kept, &mut mixed);
        segment.gather(chunks, &kept, &mixed)?;
        Ok(segment)
    }

    /// Finds tombstones, and cuts what they hide off the versions of mixed rows.
    fn note_deletes(&mut self, chunks: &[Chunk], kept: &[Place], mixed: &mut Vec<Mixed>) {
        if chunks.iter().all(|c| c.block.deletes.is_none()) {
            return;
        }
        let deletes_key = |p: Place| {
            chunks[p.chunk as usize]
                .block
                .deletes
                .as_ref()
                .is_some_and(|d| d.value(p.row as usize))
        };
        let deletes: BooleanBuffer = kept.iter().map(|p| deletes_key(*p)).collect();
        let mut closed = BooleanBufferBuilder::new(kept.len());
        closed.append_n(kept.len(), false);
        let mut any_closed = false;
        for row in &mut *mixed {
            if let Some(tombstone) = row.versions.iter().position(|p| deletes_key(*p)) {
                row.versions.truncate(tombstone);
                if tombstone > 0 {
                    closed.set_bit(row.at, true);
                    any_closed = true;
                }
            }
        }
        mixed.retain(|row| row.versions.len() > 1);
        self.closed = any_closed.then(|| closed.finish());
        self.deletes = (deletes.count_set_bits() > 0).then_some(deletes);
    }

    fn gather(
        &mut self,
        chunks: &[Chunk],
        kept: &[Place],
        mixed: &[Mixed],
    ) -> Result<(), EngineError> {
        // A single block that was sorted already is taken over as it is.
        if let [only] = chunks
            && kept.len() == only.block.rows()
            && kept.iter().enumerate().all(|(at, p)| p.row as usize == at)
        {
            self.columns.clone_from(&only.block.columns);
            return Ok(());
        }
        let mut ids: Vec<ColumnId> = Vec::new();
        for column in chunks.iter().flat_map(|c| &c.block.columns) {
            if let Err(at) = ids.binary_search(&column.id) {
                ids.insert(at, column.id);
            }
        }
        for id in ids {
            self.columns.push(gather_column(id, chunks, kept, mixed)?);
        }
        Ok(())
    }

    /// The rows of some series (ascending numbers; `None`: all) with times in `time`, both
    /// included.
    pub(super) fn ranges(
        &self,
        only: Option<&[Sid]>,
        time: Option<(i64, i64)>,
    ) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut start = 0;
        for (sid, end) in &self.runs {
            let mut range = start..*end as usize;
            start = range.end;
            if only.is_some_and(|only| only.binary_search(sid).is_err()) {
                continue;
            }
            if let (Some(times), Some((low, high))) = (&self.times, time) {
                let rows = &times[range.clone()];
                range = range.start + rows.partition_point(|t| *t < low)
                    ..range.start + rows.partition_point(|t| *t <= high);
            }
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ if range.is_empty() => {}
                _ => ranges.push(range),
            }
        }
        ranges
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let bitmap = self.rows.div_ceil(8);
        self.runs.capacity() * 8
            + self.times.as_ref().map_or(0, |t| t.len() * 8)
            + self
                .columns
                .iter()
                .map(|c| c.values.get_array_memory_size() + c.set.as_ref().map_or(0, |_| bitmap))
                .sum::<usize>()
            + self
                .bitmaps
                .lock()
                .as_ref()
                .map_or(0, |(_, b)| b.get_array_memory_size())
            + (usize::from(self.deletes.is_some()) + usize::from(self.closed.is_some())) * bitmap
            + 256
    }
}

/// Rows grouped by series in encoded order, by time within, versions of a key oldest first.
/// Returns each series and where its places end.
fn order(chunks: &[Chunk], dictionary: &SeriesDictionary) -> (Vec<(Sid, usize)>, Vec<Place>) {
    let rows: usize = chunks.iter().map(|c| c.block.rows()).sum();
    let mut counts: ahash::AHashMap<Sid, usize> = ahash::AHashMap::new();
    for chunk in chunks {
        let mut of_block = vec![0_usize; chunk.sids.len()];
        for series in &chunk.block.series_of {
            of_block[*series as usize] += 1;
        }
        for (series, count) in of_block.into_iter().enumerate() {
            if count > 0 {
                *counts.entry(chunk.sids[series]).or_default() += count;
            }
        }
    }
    let mut sids: Vec<Sid> = counts.keys().copied().collect();
    dictionary.sort(&mut sids);
    let mut runs = Vec::with_capacity(sids.len());
    // Where each run's next row goes; `run_of` finds the run of a series.
    let mut next = Vec::with_capacity(sids.len());
    let mut run_of: ahash::AHashMap<Sid, u32> = ahash::AHashMap::with_capacity(sids.len());
    let mut start = 0;
    for (run, sid) in sids.into_iter().enumerate() {
        next.push(start);
        run_of.insert(sid, run as u32);
        start += counts.get(&sid).copied().unwrap_or(0);
        runs.push((sid, start));
    }
    let mut places = vec![Place { chunk: 0, row: 0 }; rows];
    for (at, chunk) in chunks.iter().enumerate() {
        // Series without rows have no run; nothing looks them up.
        let runs_of_block: Vec<u32> = chunk
            .sids
            .iter()
            .map(|sid| run_of.get(sid).copied().unwrap_or(0))
            .collect();
        for (row, series) in chunk.block.series_of.iter().enumerate() {
            let slot = &mut next[runs_of_block[*series as usize] as usize];
            places[*slot] = Place {
                chunk: at as u32,
                row: row as u32,
            };
            *slot += 1;
        }
    }
    let time_of = |p: &Place| p.time(chunks);
    let mut start = 0;
    for (_, end) in &runs {
        let places = &mut places[start..*end];
        // Rows mostly come in time order; a stable sort of sorted input is one pass.
        if !places.is_sorted_by_key(time_of) {
            places.sort_by_key(time_of);
        }
        start = *end;
    }
    (runs, places)
}

fn gather_column(
    id: ColumnId,
    chunks: &[Chunk],
    kept: &[Place],
    mixed: &[Mixed],
) -> Result<BlockColumn, EngineError> {
    let of_chunk: Vec<Option<&BlockColumn>> = chunks
        .iter()
        .map(|chunk| {
            let columns = &chunk.block.columns;
            let at = columns.binary_search_by_key(&id, |c| c.id).ok()?;
            Some(&columns[at])
        })
        .collect();
    let data_type = of_chunk
        .iter()
        .flatten()
        .next()
        .map_or(arrow_schema::DataType::Null, |c| {
            c.values.data_type().clone()
        });
    let null: ArrayRef = new_null_array(&data_type, 1);
    let mut arrays: Vec<&dyn Array> = of_chunk
        .iter()
        .map(|c| c.map_or(null.as_ref(), |c| c.values.as_ref()))
        .collect();
    arrays.push(null.as_ref());
    let null_place = (arrays.len() - 1, 0);
    let is_set = |p: Place| {
        of_chunk[p.chunk as usize]
            .is_some_and(|c| c.set.as_ref().is_none_or(|s| s.value(p.row as usize)))
    };
    let all_set = of_chunk.iter().all(|c| c.is_some_and(|c| c.set.is_none()));
    let mut indices: Vec<(usize, usize)> = Vec::with_capacity(kept.len());
    if all_set {
        // The newest version of a key sets every column: nothing of older ones shows.
        indices.extend(kept.iter().map(|p| (p.chunk as usize, p.row as usize)));
        let values = interleave(&arrays, &indices).map_err(super::defect)?;
        return Ok(BlockColumn {
            id,
            values: compact(&values),
            set: None,
        });
    }
    let mut set = BooleanBufferBuilder::new(kept.len());
    for place in kept {
        let here = is_set(*place);
        set.append(here);
        indices.push(if here {
            (place.chunk as usize, place.row as usize)
        } else {
            null_place
        });
    }
    for row in mixed {
        let newest = row.versions.iter().find(|p| is_set(**p));
        set.set_bit(row.at, newest.is_some());
        indices[row.at] = newest.map_or(null_place, |p| (p.chunk as usize, p.row as usize));
    }
    let values = interleave(&arrays, &indices).map_err(super::defect)?;
    let set = set.finish();
    Ok(BlockColumn {
        id,
        values: compact(&values),
        set: (set.count_set_bits() < kept.len()).then_some(set),
    })
}
