//! Logs and stores that fail, and leaders that do not know they are not any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use shoal_engine::manifest::Chain;
use shoal_engine::manifest::format::Edit;
use shoal_engine::manifest::publish::{prepare, publish};
use shoal_engine::{EngineConfig, ReadLevel, WriteError, WriteOptions};
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
    let seen = db
        .read_view_at(&table, &ReadLevel::Eventual, Duration::ZERO)
        .await
        .expect("reads of what is here go on");
    assert_eq!(seen.memory.iter().map(|m| m.rows()).sum::<usize>(), 1);
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
async fn a_zombie_leader_can_neither_write_nor_publish_and_follows() {
    a_zombie_follows(Arc::new(InMemory::new())).await;
}

pub async fn a_zombie_follows(store: Arc<dyn ObjectStore>) {
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
        matches!(
            &refused,
            Err(WriteError::ShardUnavailable { .. } | WriteError::NotLeader { .. })
        ),
        "{refused:?}"
    );
    let unflushed = zombie
        .flush(None)
        .await
        .expect_err("only the leader flushes");
    assert!(unflushed.to_string().contains("leads"), "{unflushed}");
    assert_eq!(zombie.status()[0].role, "follower");
    assert_eq!(list(&zombie, &table).await.len(), 2, "a strong read");
    leader.flush(None).await.expect("flush");
    assert_eq!(list(&leader, &table).await.len(), 2);
    assert_eq!(list(&zombie, &table).await.len(), 2, "after the switch");
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
    assert_eq!(db.status()[0].role, "follower");
    assert_eq!(list(&db, &table).await.len(), 1);
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

/// Records in flight whose receipts never come are waited for together, not one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_answers_nothing_about_many_records_holds_writers_up_only_once() {
    let logs = SilentLogs::new(SimulatedLogStore::new(9));
    let world = World::new(logs.clone(), Arc::new(InMemory::new()));
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    // The first is lost, and that is known only once the others are under way.
    logs.silence(20);
    let began = tokio::time::Instant::now();
    let writers = (0..20_i64).map(|v| {
        let (db, table) = (Arc::clone(&db), table.clone());
        async move { put(&db, &table, &[("a", v, v)], WriteOptions::default()).await }
    });
    for outcome in futures::future::join_all(writers).await {
        outcome.expect("sent again under the next claim");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(list(&db, &table).await.len(), 20);
}

/// A shard that is being opened again when the database closes must leave nothing behind that holds
/// on to the log or the data folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_a_shard_is_being_opened_again_ends_its_reader() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let logs = SimulatedLogStore::new(10);
    let mut world = World::new(Arc::new(logs.clone()), store.clone());
    drop(world.open(config()).await);
    let clock: Arc<dyn shoal_types::Clock> = Arc::new(shoal_types::SystemClock);
    world.clock = Arc::clone(&clock);
    store.full.store(true, Ordering::SeqCst);
    let db = world.open(config()).await;
    assert_eq!(db.status()[0].state, "unavailable");
    // It gets as far as its claim, for which the log has no space.
    logs.set_faults(Faults {
        full: 1.0,
        ..Faults::default()
    });
    store.full.store(false, Ordering::SeqCst);
    let shard = db.status()[0].id;
    let before = newest(&world, shard).await;
    for _ in 0..500 {
        if newest(&world, shard).await > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(newest(&world, shard).await > before, "it is being opened");
    tokio::time::sleep(Duration::from_millis(100)).await;
    db.shutdown().await;
    drop(db);
    for _ in 0..100 {
        // One here, one in the world.
        if Arc::strong_count(&clock) == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} still hold the clock", Arc::strong_count(&clock) - 2);
}

async fn newest(world: &World, shard: shoal_types::ShardId) -> Option<u64> {
    let newest = chain(world, shard).newest().await.expect("list");
    newest.map(|version| version.0)
}

fn chain(world: &World, shard: shoal_types::ShardId) -> Chain {
    Chain {
        store: Arc::clone(&world.store),
        layout: shoal_sst::ObjectLayout::new("", "simulated"),
        cluster: "simulated".into(),
        shard,
    }
}

/// The put of a leader that died arrives just before its successor's, at the same number: the
/// successor must build on it, and its files, not on what it had read before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_term_that_wins_the_number_late_is_built_upon() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let logs = SimulatedLogStore::new(11);
    let world = World::new(Arc::new(logs.clone()), store.clone());
    let old = world.open(config()).await;
    let table = make(&old, "log", TableMode::Append).await;
    for v in 0..3 {
        put(&old, &table, &[("a", v, v)], WriteOptions::default())
            .await
            .expect("write");
    }
    let base = chain(&world, table.shard)
        .load_newest()
        .await
        .expect("load");
    let base = base.expect("manifest");
    // The old leader's flush: its files are there, its manifest is on its way.
    store.withhold(chain(&world, table.shard).path(base.version().next()));
    old.flush(None).await.expect_err("nobody knows yet");
    drop(old);
    store.deliver_before_next_put();
    let new = world.open(config()).await;
    let newest = chain(&world, table.shard)
        .load_newest()
        .await
        .expect("load");
    let newest = newest.expect("manifest");
    assert_eq!(
        newest.version().0,
        base.version().0 + 2,
        "the next number, not the one that was lost"
    );
    assert!(newest.replay_offset() > base.replay_offset());
    // What the late manifest has in files may go from the log: nothing else must need it.
    let log = shoal_wal::log::LogStore::open(&logs, table.shard, shoal_types::LogId::SOLE)
        .await
        .expect("log");
    log.trim(newest.replay_offset()).await.expect("trim");
    assert_eq!(list(&new, &table).await.len(), 3, "once each");
    assert_eq!(new.table_status(&table).expect("status").files, 1);
    drop(new);
    let again = world.open(config()).await;
    assert_eq!(list(&again, &table).await.len(), 3);
    assert!(again.status()[0].epoch.term > newest.publisher.term);
}

/// A client that goes away in the middle of a statement must not leave a name that meta has and
/// this process does not know, or columns without a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_made_or_dropped_to_the_end_when_its_client_goes_away() {
    let mut world = World::new(
        Arc::new(SimulatedLogStore::new(12)),
        Arc::new(InMemory::new()),
    );
    let meta = SlowMeta::new(Arc::clone(&world.meta));
    world.meta = meta.clone();
    let db = world.open(config()).await;
    let until = async |what: &str, done: &dyn Fn() -> bool| {
        for _ in 0..200 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}");
    };
    let goes_away = Duration::from_millis(50);
    meta.delay_ms.store(200, Ordering::SeqCst);
    let made = db.create_tables(vec![new_table("cpu", TableMode::Upsert)], false);
    tokio::time::timeout(goes_away, made)
        .await
        .expect_err("it was given up");
    until("the table is made", &|| db.table("public", "cpu").is_some()).await;
    let table = db.table("public", "cpu").expect("table");
    put(&db, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("a table as any other");
    let renamed = db.rename_table(&table, "mem");
    tokio::time::timeout(goes_away, renamed)
        .await
        .expect_err("it was given up");
    until("it is renamed", &|| db.table("public", "mem").is_some()).await;
    assert!(db.table("public", "cpu").is_none());
    let dropped = db.drop_table(&table);
    tokio::time::timeout(goes_away, dropped)
        .await
        .expect_err("it was given up");
    until("it is dropped", &|| db.table_schema(&table).is_err()).await;
    assert!(db.table("public", "mem").is_none());
}

/// A shard without anything to flush publishes nothing, however long its log is taken to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_publishes_no_manifest_after_manifest() {
    let dir = tempfile::tempdir().expect("dir");
    let clock = Arc::new(ManualClock(1_700_000_000_000_u64.into()));
    let mut local = shoal_wal::local::LocalLogConfig::new(dir.path());
    local.cluster = "simulated".into();
    local.segment_bytes = 1 << 20;
    let logs = Arc::new(shoal_wal::local::LocalLogStore::open(local).expect("log"));
    let mut world = World::new(logs.clone(), Arc::new(InMemory::new()));
    let dynamic: Arc<dyn shoal_types::Clock> = clock.clone();
    world.clock = dynamic;
    let db = world
        .open(EngineConfig {
            shards: 2,
            log_bytes_max: 256 << 10,
            ..config()
        })
        .await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    // A segment and a half; the other shard's first records hold all of it back.
    let noise =
        |round: i64, i: i64| (round * 7919 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64);
    for round in 0..100 {
        let rows: Vec<_> = (0..1000)
            .map(|i| ("a", noise(round, i), noise(i, round)))
            .collect();
        put(&db, &table, &rows, WriteOptions::default())
            .await
            .expect("write");
    }
    let ten_seconds_pass = async || {
        clock.0.fetch_add(11_000, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(450)).await;
    };
    for _ in 0..3 {
        ten_seconds_pass().await;
    }
    let segments = logs.stats().segments;
    assert!(segments <= 2, "{segments} segments are left");
    db.flush(None).await.expect("flush");
    let manifests = || db.status().iter().map(|s| s.manifest).collect::<Vec<_>>();
    let settled = manifests();
    for _ in 0..3 {
        ten_seconds_pass().await;
        db.flush(None).await.expect("flush");
    }
    assert_eq!(manifests(), settled);
    put(&db, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    db.flush(None).await.expect("flush");
    assert_ne!(manifests(), settled, "rows are flushed");
}
