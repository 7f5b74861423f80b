//! A shard gives tables and partitions to a new one: nothing is lost or doubled, wherever it breaks
//! off, and the files that both name go with the second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use shoal_engine::{
    Database, EngineConfig, NewPartitions, NewTable, SplitOff, TableHandle, WriteOptions,
};
use shoal_meta::{Birth, BirthStage, Catalog, MemoryMetaStore, ShardEntry};
use shoal_types::{ColumnId, ProcedureId, ShardId, TableMode};
use shoal_wal::log::LogStore;
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

const TABLES: [&str; 3] = ["rows", "events", "parts"];

fn one_shard() -> EngineConfig {
    EngineConfig {
        shards: 1,
        retention_s: 0,
        write_timeout_ms: 2000,
        ..config()
    }
}

async fn make_all(db: &Database) {
    make(db, "rows", TableMode::Upsert).await;
    make(db, "events", TableMode::Append).await;
    let parts = NewTable {
        partitions: Some(NewPartitions::hash(vec![ColumnId(0)], 4)),
        ..new_table("parts", TableMode::Upsert)
    };
    db.create_tables(vec![parts], false).await.expect("create");
}

fn table(db: &Database, name: &str) -> TableHandle {
    db.table("public", name).expect("table")
}

/// The same rows into every table.
async fn write(db: &Database, rows: std::ops::Range<i64>, value: i64) {
    let rows: Vec<(String, i64, i64)> = rows.map(|i| (format!("h{i}"), i, value)).collect();
    let rows: Vec<(&str, i64, i64)> = rows.iter().map(|(h, t, v)| (h.as_str(), *t, *v)).collect();
    for name in TABLES {
        let table = table(db, name);
        let done = put(db, &table, &rows, WriteOptions::default()).await;
        done.expect("write");
    }
}

/// Rows of every table with their checksum, which does not depend on where rows are.
async fn sums(db: &Database) -> BTreeMap<&'static str, (u64, u128)> {
    let mut all = BTreeMap::new();
    for name in TABLES {
        let mut of_table = (0, 0_u128);
        for partition in table(db, name).partitions() {
            let sum = db.checksum_table(&partition).await.expect("checksum");
            of_table.0 += sum.rows;
            for table in &sum.tables {
                of_table.1 = of_table.1.wrapping_add(table.checksum);
            }
        }
        all.insert(name, of_table);
    }
    all
}

fn places(db: &Database) -> BTreeMap<ShardId, usize> {
    let mut places = BTreeMap::new();
    for name in TABLES {
        for partition in table(db, name).partitions() {
            *places.entry(partition.shard).or_default() += 1;
        }
    }
    places
}

/// What goes in these tests: a table, and half of the partitions of another.
fn some(db: &Database) -> SplitOff {
    let parts = table(db, "parts").partitions();
    let parts = parts.iter().take(2).map(|part| part.id);
    SplitOff::Units(parts.chain([table(db, "events").id]).collect())
}

async fn nothing_is_left(db: &Database) {
    db.flush(None).await.expect("flush");
    db.compact(None).await.expect("compact");
    // What one shard forgets, another deletes.
    for _ in 0..3 {
        db.gc(false).await.expect("gc");
    }
    let report = db.gc(true).await.expect("gc");
    assert_eq!(
        (report.orphans, report.deleted.len(), report.kept),
        (0, 0, 0),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_partitions_go_to_a_new_shard_with_their_files_rows_and_deletes() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), one_shard()).await;
    make_all(&db).await;
    write(&db, 0..200, 1).await;
    let events = table(&db, "events");
    db.flush(None).await.expect("flush");
    // Pending for the file, and applied to the rows in memory that follow it.
    let deleted = db
        .delete_where(&events, "v < 1", WriteOptions::default())
        .await;
    deleted.expect("delete");
    write(&db, 150..300, 2).await;
    let before = sums(&db).await;
    assert_eq!(before["rows"].0, 300);
    let (parent, bytes) = (events.shard, db.metrics().compacted_bytes);

    let child = db.split_shard(parent, some(&db)).await.expect("split");
    assert_eq!(places(&db), BTreeMap::from([(parent, 3), (child, 3)]));
    assert_eq!(sums(&db).await, before);
    assert_eq!(
        db.metrics().compacted_bytes,
        bytes,
        "no file is written anew"
    );
    write(&db, 250..400, 3).await;
    let after = sums(&db).await;
    assert_eq!((after["rows"].0, after["parts"].0), (400, 400));
    assert_eq!(after["events"].0, before["events"].0 + 150);
    drop(db);

    let db = embedded(dir.path(), one_shard()).await;
    assert_eq!(sums(&db).await, after);
    nothing_is_left(&db).await;
    assert_eq!(sums(&db).await, after);
    drop(db);

    let db = embedded(dir.path(), one_shard()).await;
    assert_eq!(sums(&db).await, after);
    write(&db, 0..400, 4).await;
    assert_eq!(sums(&db).await["parts"].0, 400);
    let child_of_child = db.split_shard(child, SplitOff::Half).await.expect("again");
    assert_eq!(places(&db).len(), 3);
    assert!(places(&db)[&child_of_child] > 0);
    nothing_is_left(&db).await;
    assert_eq!(sums(&db).await["parts"].0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_shard_with_one_table_is_half_of_the_table() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), one_shard()).await;
    let rows = make(&db, "rows", TableMode::Upsert).await;
    let all: Vec<(String, i64, i64)> = (0..1000).map(|i| (format!("h{i:04}"), i, i)).collect();
    let all: Vec<(&str, i64, i64)> = all.iter().map(|(h, t, v)| (h.as_str(), *t, *v)).collect();
    let done = put(&db, &rows, &all, WriteOptions::default()).await;
    done.expect("write");
    let child = db.split_shard(rows.shard, SplitOff::Half).await;
    let child = child.expect("split");
    let halves = table(&db, "rows").partitions();
    let [left, right] = &halves[..] else {
        panic!("two partitions: {halves:?}");
    };
    assert_eq!((left.shard, right.shard), (rows.shard, child));
    for half in [left, right] {
        let rows = db.checksum_table(half).await.expect("sum").rows;
        assert!((300..700).contains(&rows), "{rows} rows");
    }
    let unknown = db.split_shard(child, SplitOff::Units(vec![left.id])).await;
    let unknown = unknown.expect_err("it is in the other shard");
    assert!(unknown.to_string().contains("has changed"), "{unknown}");
    let nothing = db.split_shard(child, SplitOff::Units(Vec::new())).await;
    nothing.expect_err("nothing to go");
}

/// Whatever is the last change that a process made: the split is done or not, and what is there
/// says the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_that_breaks_off_anywhere_is_done_or_not() {
    let (mut done, mut undone) = (0, 0);
    for does_last in [false, true] {
        for changes in 0.. {
            let store = FaultyStore::new(Arc::new(InMemory::new()));
            let logs = Arc::new(SimulatedLogStore::new(7));
            let mut world = World::new(Arc::clone(&logs) as _, Arc::clone(&store) as _);
            let meta = SlowMeta::new(Arc::new(MemoryMetaStore::new()));
            world.meta = meta.clone();
            let config = EngineConfig {
                write_timeout_ms: 300,
                ..one_shard()
            };
            let db = world.open(config).await;
            make_all(&db).await;
            write(&db, 0..60, 1).await;
            db.flush(None).await.expect("flush");
            write(&db, 40..80, 2).await;
            let before = sums(&db).await;
            let parent = table(&db, "rows").shard;
            let fuse = Fuse::new(changes, does_last);
            *store.fuse.lock() = Some(Arc::clone(&fuse));
            *meta.fuse.lock() = Some(Arc::clone(&fuse));
            let outcome = db.split_shard(parent, some(&db)).await;
            let is_burnt = fuse.is_burnt();
            drop(db);
            *store.fuse.lock() = None;
            *meta.fuse.lock() = None;

            let db = world.open(one_shard()).await;
            let catalog = Catalog::open(Arc::clone(&world.meta), "simulated").await;
            let catalog = catalog.expect("catalog");
            for _ in 0..500 {
                let mut settled = true;
                for (shard, _) in catalog.shards() {
                    let entry = catalog.reload_shard(shard).await.expect("entry");
                    settled &= entry.is_none_or(|entry| entry.is_settled());
                }
                let known = Catalog::open(Arc::clone(&world.meta), "simulated").await;
                // What the first process had begun may go on for a moment.
                let is_served = db.served().1.is_empty();
                if settled
                    && is_served
                    && known.expect("catalog").shards_count() == db.shard_ids().len()
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let case = format!("after {changes} changes (the next one done: {does_last})");
            let known = Catalog::open(Arc::clone(&world.meta), "simulated").await;
            let mut shards: Vec<ShardId> = known
                .expect("catalog")
                .shards()
                .into_iter()
                .map(|(id, _)| id)
                .collect();
            shards.sort_unstable();
            assert_eq!(shards, db.shard_ids(), "{case}");
            let mut listed: Vec<ShardId> = logs
                .list()
                .await
                .expect("logs")
                .into_iter()
                .map(|(id, _)| id)
                .collect();
            listed.sort_unstable();
            assert_eq!(listed, shards, "no log is left over {case}");
            let split = shards.len() == 2;
            assert_eq!(places(&db).len(), shards.len(), "{case}");
            assert!(split || outcome.is_err(), "{case}");
            assert_eq!(sums(&db).await, before, "{case}");
            write(&db, 60..100, 3).await;
            assert_eq!(sums(&db).await["parts"].0, 100, "{case}");
            nothing_is_left(&db).await;
            assert_eq!(sums(&db).await["parts"].0, 100, "{case}");
            done += u32::from(split);
            undone += u32::from(!split);
            if !is_burnt {
                outcome.expect("nothing was in the way");
                break;
            }
        }
    }
    assert!(done > 4 && undone > 2, "{done} done, {undone} not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_was_only_prepared_goes_and_its_late_split_is_refused() {
    let logs = Arc::new(SimulatedLogStore::new(3));
    let world = World::new(Arc::clone(&logs) as _, Arc::new(InMemory::new()));
    let db = world.open(one_shard()).await;
    make_all(&db).await;
    write(&db, 0..10, 1).await;
    let parent = table(&db, "rows").shard;
    drop(db);
    let catalog = Catalog::open(Arc::clone(&world.meta), "simulated").await;
    let catalog = catalog.expect("catalog");
    let child = ShardId::generate();
    let prepared = ShardEntry {
        term: 0,
        created_ms: 0,
        log: None,
        birth: Some(Birth {
            parent,
            procedure: ProcedureId::generate(),
            stage: BirthStage::Prepared,
        }),
    };
    catalog.put_shard(child, None, prepared).await.expect("put");
    logs.create(child)
        .await
        .expect("a log that meta does not know");
    let db = world.open(one_shard()).await;
    assert_eq!(db.shard_ids(), [parent], "it is not opened");
    for _ in 0..500 {
        if catalog.reload_shard(child).await.expect("read").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(catalog.reload_shard(child).await.expect("read"), None);
    let left = logs.list().await.expect("logs");
    assert!(left.iter().all(|(shard, _)| *shard == parent), "{left:?}");
    assert_eq!(sums(&db).await["rows"].0, 10);
}

/// Again and again: files are handed from shard to shard, and nothing is left of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_generations_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), one_shard()).await;
    make_all(&db).await;
    write(&db, 0..100, 0).await;
    let mut shard = table(&db, "rows").shard;
    for generation in 1..=10 {
        let part = table(&db, "rows");
        assert_eq!(part.shard, shard);
        let units = SplitOff::Units(vec![part.id]);
        shard = db.split_shard(shard, units).await.expect("split");
        write(&db, 0..100, generation).await;
        if generation % 3 == 0 {
            db.gc(false).await.expect("gc");
        }
        assert_eq!(sums(&db).await["rows"].0, 100, "in generation {generation}");
    }
    assert_eq!(db.shard_ids().len(), 11);
    nothing_is_left(&db).await;
    assert_eq!(sums(&db).await["rows"].0, 100);
}
