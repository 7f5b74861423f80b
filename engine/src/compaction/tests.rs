use std::sync::Arc;

use shoal_sst::SstFile;
use shoal_types::{ColumnId, Incarnation, Offset, PartitionId, RowVersion, ShardId, TableMode};
use ulid::Ulid;

use super::{CompactionJob, PickConfig, TtlCut, expired, pick, pick_full};
use crate::PredicateDelete;
use crate::memtable::TableMemtable;
use crate::memtable::tests::{Below, block, values_of_a};
use crate::merge::tests::{producer, read, store, table};

const DAY: i64 = 86_400_000;

/// A file of `bytes` with versions `versions` and times within days `days` (both included), made
/// at `made_ms`.
fn file(versions: (u64, u64), days: (i64, i64), bytes: u64, made_ms: u64) -> SstFile {
    let shard = ShardId::generate();
    SstFile {
        path: format!(
            "table/t/p/{}-{shard}-1.parquet",
            Ulid::from_parts(made_ms, versions.0.into())
        ),
        table: shoal_types::TableId::generate(),
        partition: PartitionId::generate(),
        incarnation: Incarnation(0),
        schema_version: 1,
        column_ids: vec![ColumnId(0)],
        bytes,
        rows: bytes,
        version_min: RowVersion(versions.0),
        version_max: RowVersion(versions.1),
        key_min: vec![],
        key_max: vec![255],
        time_range: Some((days.0 * DAY, days.1 * DAY + DAY - 1)),
        level: 0,
        has_deletes: false,
        has_partial: false,
        series: 1,
        tail_bytes: 0,
        tail_crc: 0,
        bounds: None,
    }
}

/// A file with times within `times` (both included).
pub(super) fn file_with_times(times: (i64, i64)) -> SstFile {
    SstFile {
        time_range: Some(times),
        ..file((1, 1), (0, 0), 1, 0)
    }
}

fn config() -> PickConfig {
    PickConfig {
        window_s: 86_400,
        runs_min: 4,
        run_bytes_max: 1 << 30,
        quiet_s: 600,
    }
}

fn ranges(files: &[SstFile]) -> Vec<(u64, u64)> {
    files
        .iter()
        .map(|f| (f.version_min.0, f.version_max.0))
        .collect()
}

#[test]
fn picks_what_the_table_says() {
    let small = |v| file((v, v), (0, 0), 10, 1000);
    let other_day = |v| file((v, v), (1, 1), 10, 1000);
    let from_100 = |file: SstFile| SstFile {
        time_range: Some((100, 200)),
        ..file
    };
    type Case = (&'static str, Vec<SstFile>, Option<(Vec<(u64, u64)>, bool)>);
    let cases: Vec<Case> = vec![
        (
            "three runs are too few",
            vec![small(1), small(2), small(3)],
            None,
        ),
        (
            "four are merged, down to the bottom",
            vec![small(4), small(2), small(3), small(1)],
            Some((vec![(1, 1), (2, 2), (3, 3), (4, 4)], true)),
        ),
        (
            "a large old run is left below",
            vec![
                file((1, 9), (0, 0), 1000, 1000),
                small(10),
                small(11),
                small(12),
                small(13),
            ],
            Some((vec![(10, 10), (11, 11), (12, 12), (13, 13)], false)),
        ),
        (
            "a large old run that none of them meets in time is no bottom to keep tombstones for",
            vec![
                SstFile {
                    time_range: Some((0, 99)),
                    ..file((1, 9), (0, 0), 1000, 1000)
                },
                from_100(small(10)),
                from_100(small(11)),
                from_100(small(12)),
                from_100(small(13)),
            ],
            Some((vec![(10, 10), (11, 11), (12, 12), (13, 13)], true)),
        ),
        (
            "a run between large ones is not passed over",
            vec![
                small(1),
                small(2),
                file((3, 3), (0, 0), 5000, 1000),
                small(4),
                small(5),
            ],
            None,
        ),
        (
            "windows do not count together",
            vec![small(1), small(2), other_day(3), other_day(4)],
            None,
        ),
        (
            "a file over two windows ties them",
            vec![
                small(1),
                other_day(2),
                file((3, 3), (0, 1), 10, 1000),
                small(4),
            ],
            Some((vec![(1, 1), (2, 2), (3, 3), (4, 4)], true)),
        ),
        (
            "files of one compaction are one run",
            vec![
                file((1, 4), (0, 0), 10, 1000),
                file((1, 4), (0, 0), 10, 1000),
                file((1, 4), (0, 0), 10, 1000),
                small(5),
            ],
            None,
        ),
    ];
    let schema = table(TableMode::Upsert);
    for (name, files, expected) in cases {
        let job = pick(&files, &schema, 2000, &config(), &|_| false);
        let got = job.map(|j| (ranges(&j.inputs), j.bottom));
        assert_eq!(got, expected, "{name}");
    }
    let four = [small(1), small(2), small(3), small(4)];
    assert_eq!(
        pick(&four, &schema, 2000, &config(), &|f| f.version_max.0 == 3),
        None,
        "busy"
    );
}

#[test]
fn a_quiet_group_becomes_one_run_unless_that_rewrites_much_for_little() {
    let schema = table(TableMode::Upsert);
    let (old, new) = (
        file((1, 1), (0, 0), 30, 1000),
        file((2, 2), (0, 0), 10, 1000),
    );
    let later = 1000 + 600_000;
    let files = [old, new];
    assert_eq!(
        pick(&files, &schema, later - 1, &config(), &|_| false),
        None
    );
    assert!(pick(&files, &schema, later, &config(), &|_| false).is_some_and(|j| j.bottom));
    let files = [
        file((1, 1), (0, 0), 1000, 1000),
        file((2, 2), (0, 0), 10, 1000),
    ];
    assert_eq!(pick(&files, &schema, later, &config(), &|_| false), None);
    assert_eq!(pick_full(&files, &schema, &config(), &|_| false).len(), 1);
}

#[test]
fn steady_ingest_is_written_four_times_at_most() {
    let schema = table(TableMode::Upsert);
    let mut files: Vec<SstFile> = Vec::new();
    let mut written = 0;
    for flush in 1..=64 {
        files.push(file((flush, flush), (0, 0), 100, 1000));
        written += 100;
        while let Some(job) = pick(&files, &schema, 2000, &config(), &|_| false) {
            let (from, to) = (
                job.inputs[0].version_min.0,
                job.inputs.last().expect("some").version_max.0,
            );
            files.retain(|f| !job.inputs.contains(f));
            let mut merged = file((from, to), (0, 0), job.bytes(), 1000);
            merged.level = job.level;
            written += merged.bytes;
            files.push(merged);
        }
        let overlapping = files.len();
        assert!(
            overlapping <= 12,
            "{overlapping} runs after {flush} flushes"
        );
    }
    assert!(written <= 4 * 6400, "{written} bytes written for 6400");
}

#[test]
fn files_past_their_ttl_and_of_older_incarnations_are_expired_and_never_merged() {
    let mut schema = table(TableMode::Upsert);
    schema.ttl_ms = Some(DAY as u64);
    schema.incarnation = Incarnation(1);
    let mut kept = file((3, 3), (2, 2), 10, 1000);
    kept.incarnation = Incarnation(1);
    let mut old = file((2, 2), (0, 0), 10, 1000);
    old.incarnation = Incarnation(1);
    let files = [file((1, 1), (2, 2), 10, 1000), old, kept];
    let now_ms = (3 * DAY) as u64;
    assert_eq!(ranges(&expired(&files, &schema, now_ms)), [(1, 1), (2, 2)]);
    let jobs = pick_full(&files, &schema, &config(), &|_| false);
    assert!(
        jobs.iter()
            .all(|j| j.inputs.iter().all(|f| f.incarnation == Incarnation(1)))
    );
}

#[tokio::test]
async fn a_compaction_splits_by_window_and_leaves_out_what_ttl_and_predicate_deletes_hide() {
    let mut schema = table(TableMode::Append);
    schema.ttl_ms = Some(2 * DAY as u64);
    let schema = Arc::new(schema);
    let store = store();
    let mut producer = producer(&store);
    producer.predicate = Some(Arc::new(Below));
    let partition = PartitionId::generate();
    let mut inputs = Vec::new();
    // Two flushes; each writes days 0, 1 and 2. The delete lies between them.
    for flush in 0..2 {
        let mut memtable = TableMemtable::new(Arc::clone(&schema));
        for day in 0..3 {
            let rows = block(&schema, "x", day * DAY, day * 100, 4);
            memtable.apply(rows, 0, Offset(flush * 10 + day as u64), 0);
        }
        let files = producer
            .flush_memtable(&memtable.view(), &schema, partition, Some(&[]), None)
            .await
            .expect("flushes");
        let days: Vec<_> = files
            .iter()
            .map(|f| f.time_range.expect("times").0 / DAY)
            .collect();
        assert_eq!(days, [0, 1, 2]);
        inputs.extend(files);
    }
    let deletes = [PredicateDelete {
        version: RowVersion::new(0, Offset(5), 0),
        predicate: "102".into(),
    }];
    let job = CompactionJob {
        inputs,
        bottom: true,
        level: 1,
    };
    let now_ms = 3 * DAY as u64 + 2;
    let files = producer
        .compact(
            &job,
            &schema,
            &[],
            &deletes,
            TtlCut::of(&schema, now_ms),
            None,
        )
        .await
        .expect("compacts");
    assert_eq!(files.len(), 2, "day 0 is gone");
    assert!(
        files
            .iter()
            .all(|f| (f.version_min, f.version_max) == (RowVersion(0), RowVersion(12 << 16 | 3)))
    );
    let mut rows = values_of_a(&read(&store, &schema, &files, &[], 64).await);
    rows.sort_unstable();
    // Day 1 from its third millisecond; of the older flush only what is not below 102.
    assert_eq!(
        rows,
        [102, 102, 103, 103, 200, 200, 201, 201, 202, 202, 203, 203]
    );
}

#[tokio::test]
async fn tables_without_a_key_or_without_a_time_in_it_flush_compact_and_read() {
    for keyed in [false, true] {
        let mut schema = table(if keyed {
            TableMode::Upsert
        } else {
            TableMode::Append
        });
        schema.key = if keyed { vec![ColumnId(0)] } else { vec![] };
        let schema = Arc::new(schema);
        let store = store();
        let producer = producer(&store);
        let partition = PartitionId::generate();
        let mut inputs = Vec::new();
        let mut views = Vec::new();
        for flush in 0..3 {
            let mut memtable = TableMemtable::new(Arc::clone(&schema));
            let mut rows = (*block(&schema, "x", 0, flush * 10, 2)).clone();
            let times: Vec<i64> = rows.time.take().expect("times").to_vec();
            rows.columns.insert(
                0,
                shoal_rows::BlockColumn {
                    id: ColumnId(1),
                    values: Arc::new(arrow_array::TimestampMillisecondArray::from(times)),
                    set: None,
                },
            );
            if !keyed {
                rows.series.columns.clear();
                rows.series.values.clear();
            }
            rows.check().expect("a block");
            memtable.apply(Arc::new(rows), 0, Offset(flush as u64), 0);
            assert_eq!(memtable.view().time_range(), Some((0, 1)));
            if flush < 2 {
                let view = memtable.view();
                let files = producer
                    .flush_memtable(&view, &schema, partition, Some(&inputs), None)
                    .await;
                inputs.extend(files.expect("flushes"));
            } else {
                views.push(memtable.view());
            }
        }
        let job = CompactionJob {
            inputs,
            bottom: true,
            level: 1,
        };
        let files = producer
            .compact(&job, &schema, &[], &[], None, None)
            .await
            .expect("compacts");
        let rows = values_of_a(&read(&store, &schema, &files, &views, 64).await);
        let expected: &[i64] = if keyed {
            &[21]
        } else {
            &[0, 1, 10, 11, 20, 21]
        };
        assert_eq!(rows, expected);
    }
}
