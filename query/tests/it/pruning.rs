//! How little is read.

use std::sync::atomic::Ordering;

use crate::support::Fixture;
use futures::TryStreamExt;
use shoal_query::Output;
use shoal_query::datafusion::arrow::array::RecordBatch;

/// 100 hosts, 24 hours, every 20 s.
pub async fn load(db: &Fixture, hosts: u32, steps: u32, step_s: u32) {
    db.ok("CREATE TABLE cpu (hostname TEXT, region TEXT, ts TIMESTAMP(3), usage_user DOUBLE PRECISION, usage_system DOUBLE PRECISION, usage_idle DOUBLE PRECISION, PRIMARY KEY (hostname, region, ts))")
        .await;
    let sql = format!(
        "INSERT INTO cpu SELECT 'host_' || (v % {hosts}), 'eu-' || (v % 3), to_timestamp_millis(1704067200000 + (v / {hosts}) * {step_s} * 1000), (v * 7919 % 100)::DOUBLE PRECISION, (v * 104729 % 1000) / 10.0, random() * 100 FROM generate_series(0, {} - 1) AS g(v)",
        u64::from(hosts) * u64::from(steps)
    );
    db.ok(&sql).await;
    db.flush().await;
    db.engine.database().compact(None).await.expect("compact");
}

async fn stats(db: &Fixture, sql: &str) -> (u64, u64, usize) {
    let Output::Rows { stream, stats, .. } = db.session.execute(sql, &[]).await.expect(sql) else {
        panic!("{sql} gives no rows");
    };
    let batches: Vec<RecordBatch> = stream.try_collect().await.expect(sql);
    (
        stats.bytes_read.load(Ordering::Relaxed),
        stats.bytes_total.load(Ordering::Relaxed),
        batches.iter().map(RecordBatch::num_rows).sum(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_and_one_hour_read_at_most_a_hundredth_of_the_bytes() {
    let db = Fixture::new().await;
    load(&db, 100, 4320, 20).await;
    let sql = "SELECT ts, usage_user FROM cpu WHERE hostname = 'host_42' AND ts >= '2024-01-01T08:00:00' AND ts < '2024-01-01T09:00:00'";
    let (read, total, rows) = stats(&db, sql).await;
    assert_eq!(rows, 180);
    assert!(
        total > 0 && read > 0 && read * 100 <= total,
        "{read} of {total} bytes"
    );
    let plan = db.ok(&format!("EXPLAIN ANALYZE {sql}")).await.join("\n");
    for word in [
        "bytes_read=",
        "cache_hits=",
        "files_total=",
        "files_pruned=",
    ] {
        assert!(plan.contains(word), "{word} in\n{plan}");
    }
    let (read, _, rows) = stats(&db, "SELECT count(*), min(ts), max(ts) FROM cpu").await;
    assert_eq!((read, rows), (0, 1), "answered from what the manifest says");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_outside_the_time_range_are_not_opened() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k TEXT, ts TIMESTAMP(3), a BIGINT, PRIMARY KEY (k, ts))")
        .await;
    for day in 1..6 {
        db.ok(&format!("INSERT INTO t SELECT 'k' || v, TIMESTAMP '2024-01-0{day} 12:00:00', v FROM generate_series(1, 50) AS g(v)")).await;
        db.flush().await;
    }
    let sql = "SELECT count(a) FROM t WHERE ts >= '2024-01-02' AND ts < '2024-01-03'";
    let Output::Rows { stream, stats, .. } = db.session.execute(sql, &[]).await.expect(sql) else {
        panic!("no rows");
    };
    let _: Vec<RecordBatch> = stream.try_collect().await.expect(sql);
    assert_eq!(stats.files_total.load(Ordering::Relaxed), 5);
    assert_eq!(stats.files_read.load(Ordering::Relaxed), 1);
    assert_eq!(db.ok(sql).await, ["50"]);
}
