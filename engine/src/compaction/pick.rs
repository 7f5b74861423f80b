//! Which files to merge next, and which to drop: pure functions over what a manifest says.
//!
//! Files whose times fall into one window form a *group*; a file that spans windows ties them
//! together. Keys of different groups cannot meet, because the time is part of the key (where it
//! is not, and in tables without a time column, all files are one group). Within a group files of
//! one version range are one *run*, and runs are ordered by version; only neighbours in that
//! order are merged, else a middle version would be hidden (PROTOCOLS §3).
//!
//! Tiers: `runs_min` neighbours of like size are merged, so every byte is rewritten about
//! log(`runs_min`) of (window bytes / flush bytes) times: with 4, two or three times for 16 to 64
//! flushes a window. A group that has been quiet for a while is
//! merged into one run if that does not rewrite a large run for the sake of a small one.

use shoal_sst::{ObjectLayout, SstFile};
use shoal_types::{ColumnType, TableMode, TableSchema, TimestampMs};

/// When files are merged.
#[derive(Clone, Debug)]
pub struct PickConfig {
    /// Width of a time window, in seconds.
    pub window_s: u64,
    /// Runs of a group that start a compaction.
    pub runs_min: usize,
    /// Runs larger than this are merged no more.
    pub run_bytes_max: u64,
    /// A group none of whose files is younger than this is merged into one run, in seconds.
    pub quiet_s: u64,
}

impl PickConfig {
    /// From the engine's settings.
    #[must_use]
    pub fn new(config: &crate::EngineConfig) -> Self {
        Self {
            window_s: config.compaction_window_s,
            runs_min: config.compaction_runs_min.max(2),
            run_bytes_max: 1 << 30,
            quiet_s: 600,
        }
    }
}

/// Files to be merged into one run.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionJob {
    /// Inputs, oldest first. They go when the outputs are published.
    pub inputs: Vec<SstFile>,
    /// No older run of these keys remains: tombstones can go.
    pub bottom: bool,
    /// Level of the outputs.
    pub level: u8,
}

impl CompactionJob {
    /// Bytes to be read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|f| f.bytes).sum()
    }
}

/// Rows before this time of the table's time column are past their TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlCut(pub i64);

impl TtlCut {
    /// The cut of a table at `now`; `None`: no TTL.
    #[must_use]
    pub fn of(schema: &TableSchema, now_ms: TimestampMs) -> Option<Self> {
        let ttl_ms = schema.ttl_ms?;
        let per_second = per_second(schema)?;
        let cut_ms = i128::from(now_ms) - i128::from(ttl_ms);
        let cut = cut_ms * i128::from(per_second) / 1000;
        Some(Self(
            cut.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
        ))
    }

    /// Whether what was dropped before `self` would also be dropped before `other`.
    #[must_use]
    pub fn spares_all_of(self, other: Option<Self>) -> bool {
        other.is_some_and(|other| self.0 <= other.0)
    }
}

fn per_second(schema: &TableSchema) -> Option<i64> {
    match schema.column_by_id(schema.time_column?)?.column_type {
        ColumnType::Timestamp { precision, .. } => Some(precision.per_second()),
        _ => None,
    }
}

/// Width of a window in the unit of the time column; `None`: this table has no windows, because
/// a key could come back with another time.
#[must_use]
pub(super) fn window_width(schema: &TableSchema, window_s: u64) -> Option<i64> {
    let id = schema.time_column?;
    if schema.mode == TableMode::Upsert && !schema.is_key(id) {
        return None;
    }
    let width = i128::from(per_second(schema)?) * i128::from(window_s.max(1));
    Some(width.min(i128::from(i64::MAX)) as i64)
}

/// Files that hold nothing visible any more: of an older incarnation, or wholly past the TTL.
#[must_use]
pub fn expired(files: &[SstFile], schema: &TableSchema, now_ms: TimestampMs) -> Vec<SstFile> {
    let cut = TtlCut::of(schema, now_ms);
    files
        .iter()
        .filter(|file| {
            file.incarnation < schema.incarnation
                || matches!((cut, file.time_range), (Some(TtlCut(cut)), Some((_, high))) if high < cut)
        })
        .cloned()
        .collect()
}

/// Files of one version range in one group.
struct Run<'a> {
    files: Vec<&'a SstFile>,
    bytes: u64,
}

/// Groups, each with its runs from old to new.
fn groups<'a>(
    files: &'a [SstFile],
    schema: &TableSchema,
    config: &PickConfig,
) -> Vec<Vec<Run<'a>>> {
    let live = files.iter().filter(|f| f.incarnation == schema.incarnation);
    let width = window_width(schema, config.window_s);
    let mut spans: Vec<((i64, i64), &SstFile)> = live
        .map(|file| {
            let span = match (width, file.time_range) {
                (Some(width), Some((low, high))) => (low.div_euclid(width), high.div_euclid(width)),
                _ => (i64::MIN, i64::MAX),
            };
            (span, file)
        })
        .collect();
    spans.sort_by_key(|(span, _)| *span);
    let mut groups: Vec<(i64, Vec<&SstFile>)> = Vec::new();
    for ((low, high), file) in spans {
        match groups.last_mut() {
            Some((end, files)) if low <= *end => {
                *end = high.max(*end);
                files.push(file);
            }
            _ => groups.push((high, vec![file])),
        }
    }
    groups.into_iter().map(|(_, files)| runs(files)).collect()
}

fn runs(mut files: Vec<&SstFile>) -> Vec<Run<'_>> {
    files.sort_by(|a, b| {
        (a.version_max, a.version_min, &a.key_min).cmp(&(b.version_max, b.version_min, &b.key_min))
    });
    let mut runs: Vec<Run<'_>> = Vec::new();
    for file in files {
        match runs.last_mut() {
            // Ranges that overlap belong together whatever made them: they cannot be ordered.
            Some(run)
                if run
                    .files
                    .iter()
                    .any(|other| file.version_min <= other.version_max) =>
            {
                run.bytes += file.bytes;
                run.files.push(file);
            }
            _ => runs.push(Run {
                bytes: file.bytes,
                files: vec![file],
            }),
        }
    }
    runs
}

fn job(schema: &TableSchema, runs: &[Run<'_>], from: usize, to: usize) -> CompactionJob {
    let files = |runs: &[Run<'_>]| -> Vec<SstFile> {
        let files = runs.iter().flat_map(|run| &run.files);
        files.map(|f| (*f).clone()).collect()
    };
    let inputs = files(&runs[from..to]);
    let level = inputs.iter().map(|f| f.level).max().unwrap_or(0);
    CompactionJob {
        bottom: is_bottom(schema, &files(&runs[..from]), &inputs),
        level: level.saturating_add(1),
        inputs,
    }
}

/// Whether no file of `older` can hold a key of `inputs`: versions of a key have one time where it
/// is part of the key, so that files which no input meets in time do not count (see `fresh.rs`).
pub(crate) fn is_bottom(schema: &TableSchema, older: &[SstFile], inputs: &[SstFile]) -> bool {
    let time_is_key = schema.time_column.is_some_and(|id| schema.is_key(id));
    let apart = |older: &SstFile| match older.time_range {
        Some(a) if time_is_key => {
            let apart = |b: (i64, i64)| a.1 < b.0 || b.1 < a.0;
            inputs.iter().all(|i| i.time_range.is_some_and(apart))
        }
        _ => false,
    };
    older.iter().all(apart)
}

/// The most useful compaction of a partition's files, if any is worth it.
///
/// `is_busy` tells files that a running compaction reads; their groups are left alone.
#[must_use]
pub fn pick(
    files: &[SstFile],
    schema: &TableSchema,
    now_ms: TimestampMs,
    config: &PickConfig,
    is_busy: &dyn Fn(&SstFile) -> bool,
) -> Option<CompactionJob> {
    groups(files, schema, config)
        .iter()
        .filter(|runs| !runs.iter().any(|r| r.files.iter().any(|f| is_busy(f))))
        .filter_map(|runs| {
            let (from, to) = tier(runs, config).or_else(|| quiet(runs, now_ms, config))?;
            Some((to - from, job(schema, runs, from, to)))
        })
        // The group with most runs to merge costs readers most; the smaller job breaks ties.
        .max_by_key(|(runs, job)| (*runs, std::cmp::Reverse(job.bytes())))
        .map(|(_, job)| job)
}

/// `runs_min` or more neighbours of like size, the newest such. Where sizes differ so that there
/// never are as many, runs would pile up: then, from the newest on, each that is no larger than
/// all newer ones together.
fn tier(runs: &[Run<'_>], config: &PickConfig) -> Option<(usize, usize)> {
    let neighbours = |fits: &dyn Fn(u64, &[Run<'_>]) -> bool| {
        (config.runs_min..=runs.len()).rev().find_map(|to| {
            let mut from = to;
            while from > 0 {
                let next = runs[from - 1].bytes;
                if next > config.run_bytes_max || (from < to && !fits(next, &runs[from..to])) {
                    break;
                }
                from -= 1;
            }
            (to - from >= config.runs_min).then_some((from, to))
        })
    };
    let alike = |next: u64, newer: &[Run<'_>]| {
        let largest = newer.iter().map(|r| r.bytes).max().unwrap_or(0);
        next * 2 <= largest * 3
    };
    let outweighed = |next: u64, newer: &[Run<'_>]| next <= newer.iter().map(|r| r.bytes).sum();
    neighbours(&alike).or_else(|| {
        (runs.len() >= config.runs_min * 3)
            .then(|| neighbours(&outweighed))
            .flatten()
    })
}

/// All runs of a group that nobody has added to for a while.
fn quiet(runs: &[Run<'_>], now_ms: TimestampMs, config: &PickConfig) -> Option<(usize, usize)> {
    let files = || runs.iter().flat_map(|r| &r.files);
    let youngest_ms = files()
        .filter_map(|f| ObjectLayout::sst_name(&f.path.as_str().into()))
        .map(|name| name.ulid.timestamp_ms())
        .max()?;
    if runs.len() < 2 || now_ms < youngest_ms.saturating_add(config.quiet_s * 1000) {
        return None;
    }
    let bytes: u64 = runs.iter().map(|r| r.bytes).sum();
    let largest = runs.iter().map(|r| r.bytes).max()?;
    let pays = (bytes - largest) * 4 >= largest && largest <= config.run_bytes_max;
    pays.then_some((0, runs.len()))
}

/// Everything that a full compaction has to do: each group that is not yet one compacted run, or has
/// a file that is `stale`.
#[must_use]
pub fn pick_full(
    files: &[SstFile],
    schema: &TableSchema,
    config: &PickConfig,
    is_stale: &dyn Fn(&SstFile) -> bool,
) -> Vec<CompactionJob> {
    groups(files, schema, config)
        .iter()
        .filter(|runs| {
            let has_more =
                |f: &SstFile| f.level == 0 || f.has_deletes || f.has_partial || is_stale(f);
            runs.len() > 1 || runs.iter().any(|r| r.files.iter().any(|f| has_more(f)))
        })
        .map(|runs| job(schema, runs, 0, runs.len()))
        .collect()
}

/// One run that has a file that is `stale`, to be written anew by itself.
#[must_use]
pub fn pick_stale(
    files: &[SstFile],
    schema: &TableSchema,
    config: &PickConfig,
    is_stale: &dyn Fn(&SstFile) -> bool,
) -> Option<CompactionJob> {
    groups(files, schema, config).iter().find_map(|runs| {
        let at = runs
            .iter()
            .position(|run| run.files.iter().any(|f| is_stale(f)))?;
        Some(job(schema, runs, at, at + 1))
    })
}
