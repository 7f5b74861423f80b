//! Which rows of a flush or compaction have nothing older below them.
//!
//! Rows of an upsert table that are later than every older file of their time window are *fresh*.
//! They get a file of their own, which begins where the older files end: readers of either need no
//! merge, and the file needs no hidden columns (tombstones go, a column not set is NULL). Late rows
//! go into a second file, which is merged with what it meets.
//!
//! Why a fresh row has no older version anywhere:
//! - The time is part of the key, so that a version of the key has the same time, and a file that
//!   held one would reach to that time.
//! - Versions that are older still than what a compaction merges are in files only: all files that it
//!   leaves alone and that are not newer count as older ones.
//! - Older versions than a flush's are in files only. A flush freezes all rows of a table in memory at once (the
//!   residue takes a table whole or not at all), and nothing is frozen again before the flush is in
//!   force. A replica that followed before may have several parts of a table to write: only the
//!   oldest is split.
//! - The files are those of the newest published manifest, read under the publishing lock and kept
//!   until the flush itself is published or fails. A flush that failed is written on later, when a
//!   compaction may have been published in between: its outputs hold rows of the same files and so
//!   no key that those had not. Their time range may span ours; merging by key does not mind.
//!
//! Why what is left out is not missed:
//! - Tombstones hide older versions; there are none. Newer versions win over the row with or
//!   without them.
//! - A column that a partial upsert did not set shows the older version's value; there is none, so
//!   it is NULL. Columns added later are NULL in older rows anyway, ids of dropped ones are never
//!   given again, and a column added to the key is NULL in older rows, whose time it leaves alone.
//! - TTL goes by the time alone: where it dropped an older version, it drops this one too.
//! - Files of an older incarnation do not show and are not asked.
//! - Rows of append tables do not replace each other: such a table is not split. Its predicate
//!   deletes are applied while the memtable is read, and the manifest notes how far.

use std::collections::BTreeMap;

use shoal_sst::SstFile;
use shoal_types::{TableMode, TableSchema};

/// Rows of a window below which a second file is not worth having.
const SPLIT_ROWS_MIN: u64 = if cfg!(test) { 8 } else { 8192 };

/// Where the fresh rows of each window begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fresh {
    /// Rows later than this are fresh; `None`: all are. A window that is not here has none.
    after: BTreeMap<i64, Option<i64>>,
}

/// What a window holds.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Latest time in an older file that meets the window.
    latest: Option<i64>,
    rows: u64,
    fresh: u64,
}

impl Fresh {
    /// Whether a row is fresh.
    pub(super) fn holds(&self, window: i64, time: i64) -> bool {
        match self.after.get(&window) {
            Some(Some(latest)) => time > *latest,
            Some(None) => true,
            None => false,
        }
    }

    /// Finds the fresh rows of a flush. `times` calls back with the time of every row.
    pub(super) fn find(
        schema: &TableSchema,
        older: &[SstFile],
        width: i64,
        times: impl Fn(&mut dyn FnMut(i64)),
    ) -> Self {
        let Some(ranges) = ranges(older).filter(|_| can_split(schema)) else {
            return Self::default();
        };
        let mut windows: BTreeMap<i64, Window> = BTreeMap::new();
        // Rows of a series follow each other: most lie in the window of the one before.
        let mut last: Option<(i64, Window)> = None;
        times(&mut |time| {
            let number = time.div_euclid(width);
            let (_, window) = match &mut last {
                Some(same) if same.0 == number => same,
                other => {
                    if let Some((number, window)) = other.take() {
                        windows.insert(number, window);
                    }
                    let known = windows.get(&number).copied();
                    let window = known.unwrap_or_else(|| Window {
                        latest: latest_in(&ranges, number, width),
                        ..Window::default()
                    });
                    other.insert((number, window))
                }
            };
            window.rows += 1;
            window.fresh += u64::from(window.latest.is_none_or(|latest| time > latest));
        });
        windows.extend(last);
        Self::worthy(windows)
    }

    /// Finds the fresh rows of a compaction of `inputs`: how many there are is judged by the ranges
    /// of the inputs, as if the rows of each were spread evenly over its time.
    pub(super) fn of_files(
        schema: &TableSchema,
        older: &[SstFile],
        inputs: &[SstFile],
        width: i64,
    ) -> Self {
        let (true, Some(older), Some(times)) = (can_split(schema), ranges(older), ranges(inputs))
        else {
            return Self::default();
        };
        let mut windows: BTreeMap<i64, Window> = BTreeMap::new();
        for (file, (low, high)) in inputs.iter().zip(times) {
            let span = high.saturating_sub(low).saturating_add(1) as f64;
            let rows_in = |from: i64, to: i64| {
                let length = to.saturating_sub(from).saturating_add(1).max(0);
                (file.rows as f64 * (length as f64 / span)).round() as u64
            };
            for number in low.div_euclid(width)..=high.div_euclid(width) {
                let from = number.saturating_mul(width).max(low);
                let to = number.saturating_mul(width).saturating_add(width - 1);
                let to = to.min(high);
                let window = windows.entry(number).or_insert_with(|| Window {
                    latest: latest_in(&older, number, width),
                    ..Window::default()
                });
                let begins = window.latest.map_or(i64::MIN, |t| t.saturating_add(1));
                window.rows += rows_in(from, to);
                window.fresh += rows_in(from.max(begins), to);
            }
        }
        Self::worthy(windows)
    }

    fn worthy(windows: BTreeMap<i64, Window>) -> Self {
        let after = windows
            .into_iter()
            .filter(|(_, w)| w.is_worth_it())
            .map(|(number, w)| (number, w.latest));
        Self {
            after: after.collect(),
        }
    }
}

/// `None`: some file may reach anywhere.
fn ranges(files: &[SstFile]) -> Option<Vec<(i64, i64)>> {
    files.iter().map(|f| f.time_range).collect()
}

/// Whether versions of a key have one time, so that it tells what is below a row.
fn can_split(schema: &TableSchema) -> bool {
    schema.mode == TableMode::Upsert && schema.key_ends_with_time()
}

impl Window {
    /// Whether fresh rows get a file of their own: where that is the only one, or large beside a
    /// rest.
    fn is_worth_it(&self) -> bool {
        self.fresh == self.rows || (self.rows >= SPLIT_ROWS_MIN && self.fresh * 4 >= self.rows)
    }
}

/// The latest time in files that meet a window.
fn latest_in(ranges: &[(i64, i64)], window: i64, width: i64) -> Option<i64> {
    let from = window.saturating_mul(width);
    let to = from.saturating_add(width - 1);
    let meets = |range: &&(i64, i64)| range.0 <= to && range.1 >= from;
    ranges.iter().filter(meets).map(|range| range.1).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compaction::tests::file_with_times;
    use crate::merge::tests::table;

    #[test]
    fn only_rows_later_than_every_file_of_their_window_are_fresh() {
        let schema = table(TableMode::Upsert);
        let older = [(0, 40), (10, 55), (205, 350)].map(file_with_times);
        // Windows of 100: two files reach into the first, one into the third and the fourth.
        let mut times: Vec<i64> = vec![99, 100, 199, 300, 351, -1];
        let fresh = |times: &[i64], older: &[SstFile], schema: &TableSchema| {
            let found = Fresh::find(schema, older, 100, |with| {
                times.iter().copied().for_each(with)
            });
            let holds = |t: &&i64| found.holds(t.div_euclid(100), **t);
            times.iter().filter(holds).copied().collect::<Vec<_>>()
        };
        assert_eq!(fresh(&times, &older, &schema), [99, 100, 199, -1]);
        times.push(55);
        assert_eq!(
            fresh(&times, &older, &schema),
            [100, 199, -1],
            "few rows are not worth two files"
        );
        let many: Vec<i64> = (0..10_000)
            .map(|i| if i % 2 == 0 { 55 } else { 56 })
            .collect();
        let kept = fresh(&many, &older, &schema);
        assert_eq!((kept.len(), kept[0]), (5000, 56));
        let mostly_late: Vec<i64> = (0..10_000)
            .map(|i| if i % 8 == 0 { 56 } else { 55 })
            .collect();
        assert!(fresh(&mostly_late, &older, &schema).is_empty());
        let mut timeless = older.to_vec();
        timeless[2].time_range = None;
        let found = fresh(&[100], &timeless, &schema);
        assert!(found.is_empty(), "a file may reach anywhere");
        let append = table(TableMode::Append);
        assert!(fresh(&[100], &older, &append).is_empty());
    }

    #[test]
    fn a_compaction_judges_by_the_ranges_of_its_inputs() {
        let schema = table(TableMode::Upsert);
        let file = |times, rows| SstFile {
            rows,
            ..file_with_times(times)
        };
        let older = [file((0, 40), 9), file((10, 59), 9)];
        let fresh = |inputs: &[SstFile]| {
            let found = Fresh::of_files(&schema, &older, inputs, 100);
            let holds = |t: &&i64| found.holds(t.div_euclid(100), **t);
            let times = [0, 59, 60, 99, 100, 199, 200];
            times.iter().filter(holds).copied().collect::<Vec<_>>()
        };
        assert_eq!(fresh(&[file((20, 99), 1000)]), [60, 99]);
        assert_eq!(fresh(&[file((60, 199), 10)]), [60, 99, 100, 199]);
        let mostly_late = [file((0, 59), 1000), file((60, 61), 2)];
        assert!(fresh(&mostly_late).is_empty());
        let timeless = SstFile {
            time_range: None,
            ..file((60, 99), 10)
        };
        assert!(fresh(&[timeless]).is_empty());
    }

    #[test]
    fn windows_at_the_ends_of_time_do_not_overflow() {
        let schema = table(TableMode::Upsert);
        let older = [file_with_times((i64::MIN, i64::MAX))];
        for time in [i64::MIN, i64::MAX] {
            let found = Fresh::find(&schema, &older, 7, |with| with(time));
            assert!(!found.holds(time.div_euclid(7), time));
            let inputs = [file_with_times((time, time))];
            let found = Fresh::of_files(&schema, &older, &inputs, 7);
            assert!(!found.holds(time.div_euclid(7), time));
        }
    }
}
