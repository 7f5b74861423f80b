//! Logs and stores that fail, and leaders that do not know they are not any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use shoal_engine::manifest::Chain;
use shoal_engine::manifest::format::Edit;
use shoal_engine::manifest::publish::{prepare, publish};
use shoal_engine::{WriteError, WriteOptions};
use shoal_types::{Retry, TableMode};
use shoal_wal::simulated::{Faults, SimulatedLogStore};

use super::support::*;

/// Writes with every fault a log may have, then compares with what was acknowledged: append
/// tables keep every row, so a doubled or a lost one shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_log_neither_doubles_nor_loses_a_row() {
    for seed in 0..12 {
        let logs = SimulatedLogStore::new(seed);
        let world = World::new(Arc::new(logs.clone()), Arc::new(InMemory::new()));
        let mut sure = Vec::new();
        let mut maybe = Vec::new();
        let mut next = 0_i64;
        for open in 0..3 {
            logs.set_faults(Faults::default());
            let db = world.open(config()).await;
            let table = match db.table("public", "log") {
                Some(table) => table,
                None => make(&db, "log", TableMode::Append).await,
            };
            logs.set_faults(Faults {
                full: 0.03,
                lost_ack: 0.05,
                late: 0.05,
                lost: 0.05,
                duplicate: 0.05,
                gap: 0.05,
                stale_end: 0.1,
            });
            for round in 0..8 {
                let mut sending = tokio::task::JoinSet::new();
                for _ in 0..6 {
                    let (db, table, v) = (Arc::clone(&db), table.clone(), next);
                    next += 1;
                    sending.spawn(async move {
                        (
                            v,
                            put(&db, &table, &[("a", v, v)], WriteOptions::default()).await,
                        )
                    });
                }
                for (v, outcome) in sending.join_all().await {
                    match outcome {
                        Ok(_) => sure.push(v),
                        Err(e) if e.retry() == Retry::Unknown => maybe.push(v),
                        // Definite: it must never show.
                        Err(WriteError::NoSpace(_) | WriteError::Overloaded(_)) => {}
                        Err(e) => panic!("seed {seed}: {e}"),
                    }
                }
                if round == 4 && open != 1 {
                    // May fail for lack of space; nothing may be lost by it.
                    let _ = db.flush(None).await;
                }
            }
            let shard = table.shard;
            drop(db);
            logs.set_faults(Faults::default());
            logs.deliver_late(shard);
        }
        let db = world.open(config()).await;
        let table = db.table("public", "log").expect("table");
        let found: Vec<i64> = list(&db, &table).await.into_iter().map(|r| r.1).collect();
        let mut once = found.clone();
        once.dedup();
        assert_eq!(once, found, "seed {seed}: doubled");
        for v in &sure {
            assert!(found.contains(v), "seed {seed}: {v} was lost");
        }
        for v in &found {
            assert!(
                sure.contains(v) || maybe.contains(v),
                "seed {seed}: {v} was refused and shows"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_refuses_writes_and_goes_on_by_itself() {
    let logs = SimulatedLogStore::new(3);
    let world = World::new(Arc::new(logs.clone()), Arc::new(InMemory::new()));
    let db = world.open(config()).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    let write = |v| {
        let (db, table) = (Arc::clone(&db), table.clone());
        async move { put(&db, &table, &[("a", 1, v)], WriteOptions::default()).await }
    };
    write(1).await.expect("before");
    logs.set_faults(Faults {
        full: 1.0,
        ..Faults::default()
    });
    for _ in 0..3 {
        let refused = write(2).await;
        assert!(
            matches!(refused, Err(WriteError::NoSpace(_))),
            "{refused:?}"
        );
    }
    assert_eq!(read(&db, &table).await, rows(&[("a", 1, 1)]), "reads go on");
    logs.set_faults(Faults::default());
    let mut wrote = false;
    for _ in 0..100 {
        wrote = write(3).await.is_ok();
        if wrote {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(wrote, "space is back");
    assert_eq!(read(&db, &table).await, rows(&[("a", 1, 3)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_stops_flushes_not_rows_and_goes_on_by_itself() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let world = World::new(Arc::new(SimulatedLogStore::new(4)), store.clone());
    let config = || shoal_engine::EngineConfig {
        memtable_bytes_max: 1,
        ..config()
    };
    let db = world
        .open(shoal_engine::EngineConfig::clone(&super::support::config()))
        .await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    put(&db, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    store.full.store(true, Ordering::SeqCst);
    let error = db.flush(None).await.expect_err("full").to_string();
    assert!(error.contains("no space"), "{error}");
    assert_eq!(
        read(&db, &table).await,
        rows(&[("a", 1, 1)]),
        "frozen rows show"
    );
    put(&db, &table, &[("b", 1, 1)], WriteOptions::default())
        .await
        .expect("the log still takes rows");
    store.full.store(false, Ordering::SeqCst);
    db.flush(None).await.expect("goes on");
    db.flush(None).await.expect("the rest");
    assert_eq!(db.status()[0].memory_bytes, 0);
    assert_eq!(read(&db, &table).await, rows(&[("a", 1, 1), ("b", 1, 1)]));
    drop(db);
    // In the background too, with backoff, seen in the status meanwhile.
    let db = world.open(config()).await;
    store.full.store(true, Ordering::SeqCst);
    put(&db, &table, &[("c", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    let mut degraded = false;
    for _ in 0..200 {
        degraded = db.status()[0].state == "degraded";
        if degraded {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(degraded, "{:?}", db.status());
    store.full.store(false, Ordering::SeqCst);
    let mut serving = false;
    for _ in 0..300 {
        let status = &db.status()[0];
        serving = status.state == "serving" && status.memory_bytes == 0;
        if serving {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(serving, "{:?}", db.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_answer_is_lost_is_found_and_used() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let world = World::new(Arc::new(SimulatedLogStore::new(5)), store.clone());
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    for v in 0..6_i64 {
        put(&db, &table, &[("a", v, v)], WriteOptions::default())
            .await
            .expect("write");
        // First the SST's put, then the manifest's loses its answer.
        store.lost_acks.store(1 + (v as u64 % 2), Ordering::SeqCst);
        while db.flush(None).await.is_err() {}
    }
    assert_eq!(list(&db, &table).await.len(), 6);
    drop(db);
    let db = world.open(config()).await;
    assert_eq!(list(&db, &table).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_leader_can_neither_write_nor_publish_nor_answer() {
    a_zombie_can_do_nothing(Arc::new(InMemory::new())).await;
}

pub async fn a_zombie_can_do_nothing(store: Arc<dyn ObjectStore>) {
    let logs = SimulatedLogStore::new(6);
    let world = World::new(Arc::new(logs), store);
    let zombie = world.open(config()).await;
    let table = make(&zombie, "log", TableMode::Append).await;
    put(&zombie, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    let schema = zombie.table_schema(&table).expect("schema");
    let leader = world.open(config()).await;
    put(&leader, &table, &[("a", 2, 2)], WriteOptions::default())
        .await
        .expect("new leader");
    let late = vec![block(&schema, &[("a", 3, 3)], false)];
    let refused = zombie.write(late, WriteOptions::default()).await;
    assert!(
        matches!(&refused, Err(WriteError::ShardUnavailable { .. })),
        "{refused:?}"
    );
    assert!(zombie.flush(None).await.is_err() || zombie.status()[0].role == "none");
    let view = zombie.read_view(&table).await;
    assert!(view.is_err(), "a deposed leader serves no strong read");
    leader.flush(None).await.expect("flush");
    assert_eq!(list(&leader, &table).await.len(), 2);
    drop((zombie, leader));
    let again = world.open(config()).await;
    assert_eq!(list(&again, &table).await.len(), 2);
}

/// A leader that was overtaken in the store but has not read the claim must not publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_finds_a_higher_term_in_the_store_steps_down() {
    an_overtaken_leader_steps_down(Arc::new(InMemory::new())).await;
}

pub async fn an_overtaken_leader_steps_down(store: Arc<dyn ObjectStore>) {
    let world = World::new(Arc::new(SimulatedLogStore::new(7)), Arc::clone(&store));
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    put(&db, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    // What an opening leader does first; its claim never comes.
    let chain = Chain {
        store,
        layout: shoal_sst::ObjectLayout::new("", "simulated"),
        cluster: "simulated".into(),
        shard: table.shard,
    };
    let base = chain.load_newest().await.expect("load").expect("manifest");
    let term = base.publisher.term + 1;
    let writer = shoal_types::WriterId::generate();
    let higher = prepare(&chain, &base, Edit::default(), term, writer, 1).expect("prepare");
    publish(&chain, &higher).await.expect("publish");
    let error = db.flush(None).await.expect_err("overtaken").to_string();
    assert!(error.contains("higher term"), "{error}");
    assert_eq!(db.status()[0].role, "none");
    assert!(db.read_view(&table).await.is_err());
    // And it does not overwrite: the newest is still the other's.
    let newest = chain.load_newest().await.expect("load").expect("manifest");
    assert_eq!(newest.reference, higher.state.reference);
    drop(db);
    let db = world.open(config()).await;
    assert_eq!(list(&db, &table).await.len(), 1);
    assert!(db.status()[0].epoch.term > term);
}

/// Sorted rows that a reader left in a memtable were not counted when it grew, so they must not be
/// when it goes: the budget would let in more and more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_counted_after_a_flush_is_that_of_the_rows_that_stayed() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let world = World::new(Arc::new(SimulatedLogStore::new(8)), store.clone());
    let db = world.open(config()).await;
    let one = make(&db, "one", TableMode::Upsert).await;
    let other = make(&db, "other", TableMode::Upsert).await;
    let many: Vec<(&str, i64, i64)> = (0..500).map(|i| ("a", i, i)).collect();
    put(&db, &one, &many, WriteOptions::default())
        .await
        .expect("write");
    let flushed_bytes = db.status()[0].memory_bytes;
    store.full.store(true, Ordering::SeqCst);
    db.flush(None).await.expect_err("full");
    assert_eq!(read(&db, &one).await.len(), 500);
    put(&db, &other, &many, WriteOptions::default())
        .await
        .expect("write");
    let staying = db.status()[0].memory_bytes - flushed_bytes;
    store.full.store(false, Ordering::SeqCst);
    db.flush(None).await.expect("goes on");
    assert_eq!(db.status()[0].memory_bytes, staying);
}
