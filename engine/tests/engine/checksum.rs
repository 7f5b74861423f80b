//! A checksum of rows that does not see how they are stored.

use shoal_engine::{Database, EngineConfig, TableHandle, WriteOptions};
use shoal_types::TableMode;

use super::support::*;

async fn sum(db: &Database, table: &TableHandle) -> (u64, u128) {
    let sum = db.checksum_table(table).await.expect("checksum");
    (sum.rows, sum.checksum)
}

/// Through flush, compaction and restart; the shard's own checksum at each.
async fn stays(dir: &std::path::Path, mode: TableMode) {
    let config = || EngineConfig {
        shards: 1,
        ..config()
    };
    let db = embedded(dir, config()).await;
    let table = make(&db, "t", mode).await;
    for v in 0..3 {
        let written: Vec<(&str, i64, i64)> = (0..50).map(|i| ("x", i, i * v)).collect();
        put(&db, &table, &written, WriteOptions::default())
            .await
            .expect("write");
        let before = (
            sum(&db, &table).await,
            db.checksum(None).await.expect("all"),
        );
        assert_eq!(before.1[0].tables.len(), 1);
        assert_eq!(before.1[0].rows, before.0.0);
        db.flush(None).await.expect("flush");
        let flushed = (
            sum(&db, &table).await,
            db.checksum(None).await.expect("all"),
        );
        assert_eq!(flushed.0, before.0, "after a flush");
        assert_eq!(flushed.1[0].checksum, before.1[0].checksum);
    }
    let before = sum(&db, &table).await;
    let rows = if mode == TableMode::Append { 150 } else { 50 };
    assert_eq!(before.0, rows);
    let done = db.compact(Some(&table)).await.expect("compact");
    assert!(done.jobs > 0, "nothing was merged");
    assert_eq!(sum(&db, &table).await, before, "after a compaction");
    if mode == TableMode::Upsert {
        // One cell to another value and back.
        for (v, same) in [(7, false), (4, true)] {
            put(&db, &table, &[("x", 2, v)], WriteOptions::default())
                .await
                .expect("write");
            assert_eq!(sum(&db, &table).await == before, same, "v = {v}");
        }
    }
    db.shutdown().await;
    drop(db);
    let db = embedded(dir, config()).await;
    assert_eq!(sum(&db, &table).await, before, "after a restart");
    db.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checksum_of_an_upsert_table_is_of_its_rows_alone() {
    let dir = tempfile::tempdir().expect("dir");
    stays(dir.path(), TableMode::Upsert).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checksum_of_an_append_table_counts_every_row() {
    let dir = tempfile::tempdir().expect("dir");
    stays(dir.path(), TableMode::Append).await;
}
