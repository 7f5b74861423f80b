//! Flush, compaction, garbage, deletes by predicate, small tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use shoal_engine::{EngineConfig, WriteOptions};
use shoal_types::TableMode;
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_compacted_and_fresh_rows_read_as_one_table() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    for round in 0..5 {
        let written = [("a", 1, round), ("b", round, round), ("c", 7, 100 - round)];
        put(&db, &table, &written, WriteOptions::default())
            .await
            .expect("write");
        db.flush(None).await.expect("flush");
    }
    let expected = rows(&[
        ("a", 1, 4),
        ("b", 0, 0),
        ("b", 1, 1),
        ("b", 2, 2),
        ("b", 3, 3),
        ("b", 4, 4),
        ("c", 7, 96),
    ]);
    assert_eq!(read(&db, &table).await, expected);
    db.compact(Some(&table)).await.expect("compact");
    assert_eq!(db.table_status(&table).expect("status").files, 1);
    assert_eq!(read(&db, &table).await, expected);
    let status = &db.status()[0];
    assert_eq!(status.memory_bytes, 0);
    drop(db);
    let db = embedded(dir.path(), config()).await;
    assert_eq!(read(&db, &table).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_predicate_delete_hides_older_rows_in_memory_and_files_and_no_newer_ones() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    let write = |v| {
        let db = Arc::clone(&db);
        let table = table.clone();
        async move {
            put(&db, &table, &[("a", v, v)], WriteOptions::default())
                .await
                .expect("write")
        }
    };
    write(1).await;
    write(9).await;
    db.flush(None).await.expect("flush");
    write(2).await;
    db.delete_where(&table, "v < 5", WriteOptions::default())
        .await
        .expect("delete");
    write(3).await;
    let values = |all: Vec<((String, i64), i64)>| all.into_iter().map(|r| r.1).collect::<Vec<_>>();
    assert_eq!(values(list(&db, &table).await), [3, 9]);
    db.flush(None).await.expect("flush");
    assert_eq!(values(list(&db, &table).await), [3, 9]);
    drop(db);
    let db = embedded(dir.path(), config()).await;
    assert_eq!(values(list(&db, &table).await), [3, 9]);
    db.compact(Some(&table)).await.expect("compact");
    assert_eq!(values(list(&db, &table).await), [3, 9]);
    let view = db.read_view(&table).await.expect("view");
    assert!(view.deletes.is_empty(), "every file has it applied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_files_go_after_retention_and_not_while_a_view_reads_them() {
    replaced_files_go_in_time(Arc::new(InMemory::new())).await;
}

pub async fn replaced_files_go_in_time(store: Arc<dyn ObjectStore>) {
    let clock = Arc::new(ManualClock(AtomicU64::new(1_700_000_000_000)));
    let mut world = World::new(Arc::new(SimulatedLogStore::new(1)), store);
    let dynamic: Arc<dyn shoal_types::Clock> = clock.clone();
    world.clock = dynamic;
    let config = EngineConfig {
        retention_s: 60,
        ..config()
    };
    let db = world.open(config).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    for v in 0..2 {
        put(&db, &table, &[("a", 1, v)], WriteOptions::default())
            .await
            .expect("write");
        db.flush(None).await.expect("flush");
    }
    let view = db.read_view(&table).await.expect("view");
    db.compact(Some(&table)).await.expect("compact");
    let named = |paths: &[String]| paths.iter().filter(|p| p.ends_with(".parquet")).count();
    assert_eq!(
        named(&db.gc(false).await.expect("gc").deleted),
        0,
        "retention"
    );
    clock.0.fetch_add(61_000, Ordering::SeqCst);
    assert_eq!(named(&db.gc(false).await.expect("gc").deleted), 0, "a view");
    drop(view);
    assert_eq!(named(&db.gc(true).await.expect("dry run").deleted), 2);
    assert_eq!(named(&db.gc(false).await.expect("gc").deleted), 2);
    assert_eq!(named(&db.gc(false).await.expect("gc").deleted), 0);
    assert_eq!(read(&db, &table).await, rows(&[("a", 1, 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_tables_are_flushed_without_a_file_each() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let many = (0..200).map(|i| new_table(&format!("t{i:03}"), TableMode::Upsert));
    let tables = db
        .create_tables(many.collect(), false)
        .await
        .expect("create");
    let write_all = |value: i64| {
        let (db, tables) = (Arc::clone(&db), tables.clone());
        async move {
            for (i, table) in tables.iter().enumerate() {
                put(
                    &db,
                    table,
                    &[("a", i as i64, value)],
                    WriteOptions::default(),
                )
                .await
                .expect("write");
            }
        }
    };
    write_all(1).await;
    db.flush(None).await.expect("flush");
    assert_eq!(db.status()[0].files, 0);
    assert!(db.status()[0].log_bytes < 4096, "the log was trimmed");
    put(&db, &tables[5], &[("b", 1, 2)], WriteOptions::default())
        .await
        .expect("write");
    drop(db);
    let db = embedded(dir.path(), config()).await;
    for (i, table) in tables.iter().enumerate() {
        let mut expected = rows(&[("a", i as i64, 1)]);
        if i == 5 {
            expected.extend(rows(&[("b", 1, 2)]));
        }
        assert_eq!(read(&db, table).await, expected);
    }
    db.flush(None).await.expect("flush again");
    assert_eq!(read(&db, &tables[7]).await, rows(&[("a", 7, 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_over_budget_is_flushed_in_the_background_and_writers_go_on() {
    let dir = tempfile::tempdir().expect("dir");
    let config = EngineConfig {
        memtable_bytes_max: 256 << 10,
        ..config()
    };
    let db = embedded(dir.path(), config).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    for round in 0..60_i64 {
        let hosts: Vec<String> = (0..200).map(|h| format!("host-{h}")).collect();
        let batch: Vec<(&str, i64, i64)> =
            hosts.iter().map(|h| (h.as_str(), round, round)).collect();
        put(&db, &table, &batch, WriteOptions::default())
            .await
            .expect("write");
    }
    for _ in 0..200 {
        if db.metrics().flushes > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(db.metrics().flushes > 0);
    assert_eq!(read(&db, &table).await.len(), 12_000);
}

/// The manifest's schema is older than the table's until the next flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ttl_that_was_just_raised_keeps_rows_from_a_compaction() {
    let clock = Arc::new(ManualClock(AtomicU64::new(1_700_000_000_000)));
    let mut world = World::new(
        Arc::new(SimulatedLogStore::new(2)),
        Arc::new(InMemory::new()),
    );
    let dynamic: Arc<dyn shoal_types::Clock> = clock.clone();
    world.clock = dynamic;
    let db = world.open(config()).await;
    let mut new = new_table("cpu", TableMode::Upsert);
    new.schema.ttl_ms = Some(3_600_000);
    let made = db.create_tables(vec![new], false).await;
    let table = made.expect("create").remove(0);
    let now_ns = 1_700_000_000_000_000_000_i64;
    let minute_ns = 60_000_000_000;
    // Young and old rows in both files, so that no file is past its TTL as a whole.
    for v in 0..2 {
        let written = [("a", now_ns - 50 * minute_ns, v), ("a", now_ns, v)];
        put(&db, &table, &written, WriteOptions::default())
            .await
            .expect("write");
        db.flush(None).await.expect("flush");
    }
    clock.0.fetch_add(30 * 60_000, Ordering::SeqCst);
    let raise = |schema: &shoal_types::TableSchema| {
        Ok(Some(shoal_types::TableSchema {
            ttl_ms: Some(24 * 3_600_000),
            ..schema.clone()
        }))
    };
    db.alter_table(&table, &raise).await.expect("alter");
    let done = db.compact(Some(&table)).await.expect("compact");
    assert_eq!((done.jobs, done.expired), (1, 0));
    let expected = rows(&[("a", now_ns - 50 * minute_ns, 1), ("a", now_ns, 1)]);
    assert_eq!(read(&db, &table).await, expected);
    // And one that was lowered takes them, before any flush.
    let lower = |schema: &shoal_types::TableSchema| {
        Ok(Some(shoal_types::TableSchema {
            ttl_ms: Some(3_600_000),
            ..schema.clone()
        }))
    };
    db.alter_table(&table, &lower).await.expect("alter");
    put(&db, &table, &[("a", now_ns, 2)], WriteOptions::default())
        .await
        .expect("write");
    db.flush(None).await.expect("flush");
    db.compact(Some(&table)).await.expect("compact");
    assert_eq!(read(&db, &table).await, rows(&[("a", now_ns, 2)]));
}

/// Figures for many tables; run by hand: `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of about a minute"]
async fn a_hundred_thousand_tables_are_made_written_and_opened_again() {
    let dir = tempfile::tempdir().expect("dir");
    let config = || EngineConfig {
        shards: 2,
        ..config()
    };
    let db = embedded(dir.path(), config()).await;
    let began = tokio::time::Instant::now();
    let mut tables = Vec::new();
    for part in 0..100 {
        let many = (0..1000).map(|i| new_table(&format!("t{part:03}_{i:03}"), TableMode::Upsert));
        tables.extend(
            db.create_tables(many.collect(), false)
                .await
                .expect("create"),
        );
    }
    println!("100,000 tables in {:?}", began.elapsed());
    let schema = db.table_schema(&tables[0]).expect("schema");
    let began = tokio::time::Instant::now();
    for part in tables.chunks(500) {
        let blocks = part.iter().map(|t| {
            let mut one = block(&schema, &[("a", 1, 1)], false);
            one.table = t.id;
            one
        });
        db.write(blocks.collect(), WriteOptions::default())
            .await
            .expect("write");
    }
    println!("a row in each in {:?}; {:?}", began.elapsed(), db.metrics());
    let began = tokio::time::Instant::now();
    drop(db);
    let db = embedded(dir.path(), config()).await;
    println!("open by replay in {:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    db.flush(None).await.expect("flush");
    println!(
        "flush in {:?}; {} files",
        began.elapsed(),
        db.metrics().files
    );
    let began = tokio::time::Instant::now();
    drop(db);
    let db = embedded(dir.path(), config()).await;
    println!("open after flush in {:?}", began.elapsed());
    assert_eq!(read(&db, &tables[77_777]).await, rows(&[("a", 1, 1)]));
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    println!("{:?}", status.lines().find(|l| l.starts_with("VmHWM")));
    let began = tokio::time::Instant::now();
    for _ in 0..100 {
        assert_eq!(
            db.status().iter().map(|s| s.files).sum::<u64>(),
            db.metrics().files
        );
    }
    println!("status and metrics in {:?}", began.elapsed() / 100);
}

/// A file of rows without a time meets, by key, every other file of the same flush.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_time_are_flushed_beside_rows_with_one() {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
    use shoal_types::ColumnId;

    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let mut new = new_table("log", TableMode::Append);
    new.schema.columns[1].nullable = true;
    new.schema.key = vec![ColumnId(0)];
    let made = db.create_tables(vec![new], false).await;
    let table = made.expect("create").remove(0);
    let schema = db.table_schema(&table).expect("schema");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values(["a", "a", "b"])),
        Arc::new(arrow_array::TimestampNanosecondArray::from(vec![
            None,
            Some(5),
            None,
        ])),
        Arc::new(Int64Array::from_iter_values([1, 2, 3])),
    ];
    let batch = RecordBatch::try_new(schema.arrow(), columns).expect("batch");
    let ids = [ColumnId(0), ColumnId(1), ColumnId(2)];
    let block = shoal_rows::block_from_batch(&schema, &batch, &ids, false).expect("block");
    for _ in 0..2 {
        db.write(vec![block.clone()], WriteOptions::default())
            .await
            .expect("write");
        db.flush(None).await.expect("flush");
    }
    db.compact(Some(&table)).await.expect("compact");
    let view = db.read_view(&table).await.expect("view");
    assert_eq!(view.files.iter().map(|f| f.rows).sum::<u64>(), 6);
    assert!(view.memory.iter().all(|m| m.rows() == 0));
}
