//! Partitions cut and joined in place: what is left of changes that were broken off, and what
//! becomes of the files that two partitions have.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::memory::InMemory;
use shoal_engine::{
    Database, EngineConfig, NewPartitions, NewTable, Read, TableHandle, WriteOptions,
};
use shoal_types::{ColumnId, Retry, TableMode};
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

fn one_shard() -> EngineConfig {
    EngineConfig {
        shards: 1,
        retention_s: 0,
        ..config()
    }
}

async fn make_hashed(db: &Database) -> TableHandle {
    let table = NewTable {
        partitions: Some(NewPartitions::hash(vec![ColumnId(0)], 1)),
        ..new_table("t", TableMode::Upsert)
    };
    let made = db.create_tables(vec![table], false).await;
    made.expect("create").remove(0)
}

async fn write(db: &Database, hosts: std::ops::Range<i64>, value: i64) {
    let table = db.table("public", "t").expect("table");
    let rows: Vec<(String, i64, i64)> = hosts.map(|i| (format!("h{i}"), i, value)).collect();
    let rows: Vec<(&str, i64, i64)> = rows.iter().map(|(h, t, v)| (h.as_str(), *t, *v)).collect();
    put(db, &table, &rows, WriteOptions::default())
        .await
        .expect("write");
}

/// Rows of all partitions and their checksum, which does not depend on where rows are.
async fn sum(db: &Database) -> (u64, u128) {
    let table = db.table("public", "t").expect("table");
    let mut all = (0, 0_u128);
    for partition in table.partitions() {
        let sum = db.checksum_table(&partition).await.expect("checksum");
        all.0 += sum.rows;
        for table in &sum.tables {
            all.1 = all.1.wrapping_add(table.checksum);
        }
    }
    all
}

fn partitions(db: &Database) -> Vec<TableHandle> {
    db.table("public", "t").expect("table").partitions()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_meta_was_not_told_of_is_told_by_whoever_leads_next() {
    let mut world = World::new(
        Arc::new(SimulatedLogStore::new(12)),
        Arc::new(InMemory::new()),
    );
    let meta = SlowMeta::new(Arc::clone(&world.meta));
    world.meta = meta.clone();
    let db = world.open(one_shard()).await;
    let table = make_hashed(&db).await;
    write(&db, 0..200, 1).await;
    db.flush(None).await.expect("flush");
    write(&db, 150..300, 2).await;
    let before = sum(&db).await;
    assert_eq!(before.0, 300);

    meta.refuses.store(true, Ordering::SeqCst);
    let cut = db.split_partition(&table, None, Some("upper".into())).await;
    cut.expect_err("meta is not told");
    let rows: Vec<String> = (0..50).map(|i| format!("h{i}")).collect();
    let rows: Vec<(&str, i64, i64)> = rows.iter().map(|h| (h.as_str(), 0, 0)).collect();
    let options = WriteOptions {
        timeout: Some(Duration::from_millis(300)),
        ..WriteOptions::default()
    };
    let late = put(&db, &table, &rows, options).await;
    let late = late.expect_err("by the old layout nothing is written");
    assert_eq!(late.retry(), Retry::Safe, "{late}");
    db.flush(None)
        .await
        .expect_err("the log must still show the cut to who leads next");
    drop(db);

    meta.refuses.store(false, Ordering::SeqCst);
    let db = world.open(one_shard()).await;
    until(&db, "meta is told", || partitions(&db).len() == 2).await;
    assert_eq!(sum(&db).await, before);
    write(&db, 0..300, 3).await;
    let before = sum(&db).await;
    assert_eq!(before.0, 300);
    db.flush(None).await.expect("flush");
    assert_eq!(sum(&db).await, before);
    drop(db);
    let db = world.open(one_shard()).await;
    assert_eq!(sum(&db).await, before);
    let [left, right] = &partitions(&db)[..] else {
        panic!("two partitions");
    };
    db.merge_partitions(left, right).await.expect("merge");
    assert_eq!(partitions(&db).len(), 1);
    assert_eq!(sum(&db).await, before);
    drop(db);
    let db = world.open(one_shard()).await;
    assert_eq!(sum(&db).await, before);
    db.flush(None).await.expect("flush");
    assert_eq!(sum(&db).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_when_neither_half_names_it_any_more() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), one_shard()).await;
    let table = make_hashed(&db).await;
    write(&db, 0..400, 1).await;
    db.flush(None).await.expect("flush");
    let before = sum(&db).await;
    db.split_partition(&table, None, None).await.expect("split");
    db.flush(None).await.expect("the cut is written down");
    let [left, right] = &partitions(&db)[..] else {
        panic!("two partitions");
    };
    let files = async |partition: &TableHandle| {
        let view = db.read(partition, &Read::default()).await.expect("view");
        let all = (0..view.files.len()).all(|at| view.shows_all_of_file(at));
        let paths: Vec<String> = view.files.iter().map(|f| f.path.clone()).collect();
        (paths, all)
    };
    let (of_left, private) = files(left).await;
    assert_eq!((of_left.len(), private), (1, false));
    assert_eq!(files(right).await.0, of_left, "both have the one file");

    db.compact(Some(left)).await.expect("compact");
    assert!(files(left).await.1, "a file of its own");
    db.gc(false).await.expect("gc");
    assert_eq!(files(right).await.0, of_left);
    assert_eq!(sum(&db).await, before, "the right half still reads it");
    db.compact(Some(right)).await.expect("compact");
    let report = db.gc(false).await.expect("gc");
    assert!(report.deleted.contains(&of_left[0]), "{report:?}");
    assert_eq!(sum(&db).await, before);
    let report = db.gc(true).await.expect("gc");
    assert_eq!((report.orphans, report.deleted.len()), (0, 0), "{report:?}");
}

/// Splits and merges again and again leave one partition's files, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cycles_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), one_shard()).await;
    make_hashed(&db).await;
    write(&db, 0..100, 1).await;
    for cycle in 0..100 {
        let [whole] = &partitions(&db)[..] else {
            panic!("one partition");
        };
        db.split_partition(whole, None, None).await.expect("split");
        write(&db, 0..100, cycle).await;
        let [left, right] = &partitions(&db)[..] else {
            panic!("two partitions");
        };
        db.merge_partitions(left, right).await.expect("merge");
        assert_eq!(sum(&db).await.0, 100, "after {cycle} cycles");
    }
    db.flush(None).await.expect("flush");
    db.compact(None).await.expect("compact");
    db.gc(false).await.expect("gc");
    let report = db.gc(true).await.expect("gc");
    assert_eq!((report.orphans, report.deleted.len()), (0, 0), "{report:?}");
    let [whole] = &partitions(&db)[..] else {
        panic!("one partition");
    };
    let view = db.read(whole, &Read::default()).await.expect("view");
    assert!(view.files.len() <= 2, "{} files", view.files.len());
    assert!((0..view.files.len()).all(|at| view.shows_all_of_file(at)));
}
