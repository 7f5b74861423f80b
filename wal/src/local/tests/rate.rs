//! Measurements; run with `--release -- --ignored --nocapture rate`. `SHOAL_WAL_BENCH_DIR` names a
//! folder on the disk to be measured.

use std::time::{Duration, Instant};

use super::*;

#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)]
fn rate_of_concurrent_appends() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let base = std::env::var_os("SHOAL_WAL_BENCH_DIR");
    for (callers, bytes) in [(1, 1 << 10), (32, 1 << 10), (32, 64 << 10), (8, 1 << 20)] {
        let dir = match &base {
            Some(base) => TempDir::new_in(base),
            None => TempDir::new(),
        };
        let dir = dir.expect("dir");
        let config = LocalLogConfig::new(dir.path());
        let store = Arc::new(LocalLogStore::open(config).expect("opens"));
        let (count, took, slowest) = runtime.block_on(run(&store, callers, bytes));
        let stats = store.stats();
        let seconds = took.as_secs_f64();
        println!(
            "{callers:>3} callers, {bytes:>8} bytes: {:>8.0} appends/s {:>7.1} MB/s, p99 {:?}, fsync {} us mean, {:.1} records a batch",
            count as f64 / seconds,
            (count * bytes) as f64 / seconds / 1e6,
            slowest,
            stats.fsync_us_sum / stats.fsyncs.max(1),
            stats.records as f64 / stats.batches.max(1) as f64,
        );
        drop(store);
        let began = Instant::now();
        let store = open(dir.path());
        let opened = began.elapsed();
        let shard = store.shards()[0];
        let began = Instant::now();
        let read = runtime.block_on(async {
            let log = LogStore::open(&store, shard, LogId::SOLE)
                .await
                .expect("opens");
            let (_, end) = log.bounds().await.expect("bounds");
            let mut reader = log.read(Offset(0)).await.expect("reads");
            let mut read = 0;
            while let Ok(records) = reader.next().await {
                read += records.iter().map(|(_, b)| b.len()).sum::<usize>();
                if records.last().is_some_and(|(o, _)| o.next() == end) {
                    break;
                }
            }
            read
        });
        println!(
            "     reopened in {opened:?}, {} MB read in {:?}",
            read >> 20,
            began.elapsed()
        );
    }
}

#[allow(clippy::disallowed_methods)]
async fn run(
    store: &Arc<LocalLogStore>,
    callers: usize,
    bytes: usize,
) -> (usize, Duration, Duration) {
    let log = make(store, ShardId::generate()).await.expect("opens");
    let began = Instant::now();
    let until = began + Duration::from_secs(3);
    let body = Bytes::from(vec![7; bytes]);
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (log, body) = (Arc::clone(&log), body.clone());
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let sent = Instant::now();
                    append(&*log, body.clone()).await.expect("appends");
                    waits.push(sent.elapsed());
                }
                waits
            })
        })
        .collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("runs"));
    }
    waits.sort_unstable();
    (waits.len(), began.elapsed(), waits[waits.len() * 99 / 100])
}
