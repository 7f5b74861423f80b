//! What late rows cost: figures, run by hand (`--ignored --nocapture`).

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray};
use futures::TryStreamExt;
use shoal_engine::merge::{MergeOptions, file_run, merge_runs};
use shoal_engine::{Database, EngineConfig, TableHandle, WriteOptions};
use shoal_rows::block_from_batch;
use shoal_sst::{ReadCounters, ScanOptions, SstFile};
use shoal_types::{ColumnId, TableMode};

use super::support::*;

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600 * SECOND;
const HOSTS: i64 = 4000;
const INTERVAL: i64 = 30 * SECOND;
const MOMENTS: i64 = 6000;
const DAY_MOMENTS: i64 = 24 * HOUR / INTERVAL;
const RECORD_ROWS: usize = 5000;

/// splitmix64
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

async fn send(db: &Database, table: &TableHandle, rows: &[(i64, i64)]) {
    let schema = db.table_schema(table).expect("schema");
    let names: Vec<String> = rows.iter().map(|(h, _)| format!("host_{h:05}")).collect();
    let times = rows.iter().map(|(_, m)| m * INTERVAL);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values(names)),
        Arc::new(TimestampNanosecondArray::from_iter_values(times)),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|(h, m)| {
            (random(&mut ((h * 7919 + m) as u64)) % 100) as i64
        }))),
    ];
    let batch = RecordBatch::try_new(schema.arrow(), columns).expect("batch");
    let ids = [ColumnId(0), ColumnId(1), ColumnId(2)];
    let block = block_from_batch(&schema, &batch, &ids, false).expect("block");
    db.write(vec![block], WriteOptions::default())
        .await
        .expect("write");
}

fn meet(a: (i64, i64), b: (i64, i64)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// Files of the largest set that must be merged, and rows in all such sets, by time alone (every
/// file has all hosts), of the files that meet `window`.
fn merged(files: &[SstFile], window: (i64, i64)) -> (usize, u64, usize) {
    let mut ranges: Vec<_> = files
        .iter()
        .map(|f| (f.time_range.expect("times"), f))
        .filter(|(range, _)| meet(*range, window))
        .collect();
    ranges.sort_by_key(|(range, _)| *range);
    let read = ranges.len();
    let mut sets: Vec<(i64, Vec<&SstFile>)> = Vec::new();
    for (range, file) in ranges {
        match sets.last_mut() {
            Some((end, set)) if range.0 <= *end => {
                *end = range.1.max(*end);
                set.push(file);
            }
            _ => sets.push((range.1, vec![file])),
        }
    }
    let needs = |set: &&Vec<&SstFile>| set.len() > 1 || set.iter().any(|f| f.has_partial);
    let largest = sets.iter().map(|(_, set)| set.len()).max().unwrap_or(0);
    let sets: Vec<_> = sets.into_iter().map(|(_, set)| set).collect();
    let rows = sets.iter().filter(needs).flatten().map(|f| f.rows).sum();
    (largest, rows, read)
}

/// Reads an hour of all hosts, as a query would that knows only the time.
async fn hour(db: &Database, table: &TableHandle, window: (i64, i64)) -> Duration {
    let view = db.read_view(table).await.expect("view");
    let began = tokio::time::Instant::now();
    let mut runs = Vec::new();
    for file in view.files.iter() {
        if !meet(file.time_range.expect("times"), window) {
            continue;
        }
        let options = ScanOptions {
            time: Some(window),
            ..ScanOptions::default()
        };
        let counters = Arc::new(ReadCounters::default());
        let stream = db
            .sst_store()
            .scan(file, &view.schema, &options, counters)
            .await;
        runs.push(file_run(stream.expect("scan")));
    }
    let batches: Vec<RecordBatch> =
        merge_runs(Arc::clone(&view.schema), runs, MergeOptions::read())
            .try_collect()
            .await
            .expect("merge");
    assert!(batches.iter().all(|b| b.num_columns() == 3));
    began.elapsed()
}

async fn ingest(late_percent: u64) {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(
        dir.path(),
        EngineConfig {
            memtable_bytes_max: 4 << 20,
            gc_interval_s: 5,
            ..config()
        },
    )
    .await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    let mut state = 7;
    let mut due: std::collections::BTreeMap<i64, Vec<(i64, i64)>> = Default::default();
    let mut rows = Vec::new();
    let mut sent = 0_u64;
    let began = tokio::time::Instant::now();
    println!("{late_percent} % late");
    for moment in 0..MOMENTS {
        rows.extend(due.remove(&moment).unwrap_or_default());
        for host in 0..HOSTS {
            if random(&mut state) % 100 < late_percent {
                let reach = DAY_MOMENTS.min(moment + 60) as u64;
                let at = moment + 1 + (random(&mut state) % reach) as i64;
                due.entry(at).or_default().push((host, moment));
            } else {
                rows.push((host, moment));
            }
        }
        while rows.len() >= RECORD_ROWS {
            let rest = rows.split_off(RECORD_ROWS);
            send(&db, &table, &rows).await;
            sent += rows.len() as u64;
            rows = rest;
        }
        if moment % 1000 == 999 {
            figures(&db, &table, moment, sent, began.elapsed()).await;
        }
    }
    let began = tokio::time::Instant::now();
    let mut last = (0, 0);
    for _ in 0..120 {
        let now = (db.metrics().compactions, db.metrics().flushes);
        if now == last && began.elapsed() > Duration::from_secs(6) {
            break;
        }
        last = now;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    println!("settled after {:?}", began.elapsed());
    figures(&db, &table, MOMENTS, sent, began.elapsed()).await;
}

async fn figures(db: &Database, table: &TableHandle, moment: i64, sent: u64, took: Duration) {
    let view = db.read_view(table).await.expect("view");
    let now = moment * INTERVAL;
    let recent = (now - HOUR, now);
    let old = (now / 3, now / 3 + HOUR);
    let all = merged(&view.files, (i64::MIN, i64::MAX));
    let metrics = db.metrics();
    println!(
        "  {sent} rows in {took:.1?}: {} files; sets: largest {}, {} rows to merge; read for a recent hour {} files in {:.1?}, for an old one {} in {:.1?}; flushed {} KiB in {} flushes, compacted {} KiB in {}",
        view.files.len(),
        all.0,
        all.1,
        merged(&view.files, recent).2,
        hour(db, table, recent).await,
        merged(&view.files, old).2,
        hour(db, table, old).await,
        metrics.flushed_bytes >> 10,
        metrics.flushes,
        metrics.compacted_bytes >> 10,
        metrics.compactions,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of some minutes"]
async fn late_rows_under_live_ingest() {
    for late_percent in [0, 7] {
        ingest(late_percent).await;
    }
}
