//! Several replicas of one shard: followers, levels of freshness, promotions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use object_store::memory::InMemory;
use parking_lot::Mutex;
use shoal_engine::{
    CommitToken, Database, EngineConfig, EngineError, Read, ReadLevel, Role, TableHandle,
    WriteError, WriteOptions,
};
use shoal_types::{Epoch, Offset, TableMode};
use shoal_wal::simulated::{Faults, SimulatedLogStore};

use super::support::{config as immediate, *};

/// A follower may be a moment behind its leader without opening anew.
fn config() -> EngineConfig {
    EngineConfig {
        trim_delay_ms: 2_000,
        ..immediate()
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn follow(world: &World, table: &TableHandle) -> Arc<Database> {
    follow_with(world, table, config()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_shows_what_was_acknowledged_and_lets_go_of_what_is_in_files() {
    let logs = SimulatedLogStore::new(21);
    let world = World::new(Arc::new(logs), Arc::new(InMemory::new()));
    let leader = world.open(config()).await;
    let upsert = make(&leader, "cpu", TableMode::Upsert).await;
    let append = make(&leader, "log", TableMode::Append).await;
    let write = |at: i64| {
        let leader = Arc::clone(&leader);
        let tables = [upsert.clone(), append.clone()];
        async move {
            for table in &tables {
                let rows = [("a", at, at), ("b", at, -at)];
                let put = put(&leader, table, &rows, WriteOptions::default()).await;
                put.expect("write");
            }
        }
    };
    write(1).await;
    let follower = follow(&world, &upsert).await;
    let mut written = 1;
    for round in 0..4 {
        for _ in 0..3 {
            written += 1;
            write(written).await;
            for table in [&upsert, &append] {
                let seen = list(&follower, table).await;
                assert_eq!(seen.len() as i64, 2 * written, "strong, round {round}");
                assert_eq!(seen, list(&leader, table).await);
            }
        }
        leader.flush(None).await.expect("flush");
        let version = leader.status()[0].manifest;
        until(&follower, "the follower switches", || {
            follower.status()[0].manifest >= version
        })
        .await;
        assert_eq!(
            follower.status()[0].memory_bytes,
            0,
            "all rows are in files"
        );
        for table in [&upsert, &append] {
            assert_eq!(list(&follower, table).await.len() as i64, 2 * written);
        }
        if round == 2 {
            leader.compact(None).await.expect("compact");
        }
    }
    let refused = put(&follower, &upsert, &[("a", 1, 1)], WriteOptions::default()).await;
    assert!(
        matches!(refused, Err(WriteError::NotLeader { .. })),
        "{refused:?}"
    );
    // From files and log alone, without the leader.
    leader.shutdown().await;
    let late = follow(&world, &upsert).await;
    assert_eq!(list(&late, &append).await.len() as i64, 2 * written);
}

/// Rows of tables too small for a file stay in memory, on followers too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_tables_stay_whole_through_switches_and_a_promotion() {
    let logs = SimulatedLogStore::new(22);
    let world = World::new(Arc::new(logs), Arc::new(InMemory::new()));
    let leader = world.open(config()).await;
    let mut tables = Vec::new();
    for i in 0..80 {
        let mode = [TableMode::Upsert, TableMode::Append][i % 2];
        tables.push(make(&leader, &format!("t{i}"), mode).await);
    }
    let follower = follow(&world, &tables[0]).await;
    let check = async |db: &Database, rows: usize, when: &str| {
        for (i, table) in tables.iter().enumerate() {
            let seen = list(db, table).await.len();
            assert_eq!(seen, rows, "table {i}, {when}");
        }
    };
    let write = async |db: &Database, at: i64| {
        for table in &tables {
            let put = put(db, table, &[("a", at, at)], WriteOptions::default()).await;
            put.expect("write");
        }
    };
    for at in 1..=3 {
        write(&leader, at).await;
        let flushed = leader.flush(None).await.expect("flush");
        assert_eq!(flushed.files, 0, "residue only");
        // Some records behind the boundary.
        write(&leader, at + 100).await;
        let version = leader.status()[0].manifest;
        until(&follower, "the follower switches", || {
            follower.status()[0].manifest >= version
        })
        .await;
        check(&follower, at as usize * 2, "follower").await;
        check(&leader, at as usize * 2, "leader").await;
    }
    let promoted = follower.set_role(tables[0].shard, Role::Leader, 0).await;
    promoted.expect("promote");
    check(&follower, 6, "promoted").await;
    write(&follower, 7).await;
    let flushed = follower.flush(None).await.expect("flush");
    assert_eq!(flushed.files, 0, "small tables are small again");
    check(&follower, 7, "flushed by the new leader").await;
    check(&leader, 7, "at the old leader, which follows").await;
    assert_eq!(leader.status()[0].role, "follower");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_as_fresh_as_it_was_asked_to_be_or_fails() {
    let logs = SimulatedLogStore::new(23);
    let world = World::new(Arc::new(logs.clone()), Arc::new(InMemory::new()));
    let leader = world.open(config()).await;
    let table = make(&leader, "cpu", TableMode::Upsert).await;
    let follower = follow(&world, &table).await;
    let commit = put(&leader, &table, &[("a", 1, 1)], WriteOptions::default()).await;
    let session = ReadLevel::Session(commit.expect("write").tokens);
    let seen = follower.read_view_at(&table, &session, PATIENCE).await;
    assert_eq!(list_of(&follower, &seen.expect("session")).await.len(), 1);
    let second = ReadLevel::Bounded(Duration::from_secs(5));
    follower
        .read_view_at(&table, &second, PATIENCE)
        .await
        .expect("bounded");

    // The log answers nobody: what was acknowledged before can still be shown, nothing promised.
    logs.set_faults(Faults {
        lost: 1.0,
        ..Faults::default()
    });
    let short = Duration::from_millis(300);
    let strong = follower
        .read_view_at(&table, &ReadLevel::Strong, short)
        .await;
    let error = strong.expect_err("no barrier comes back");
    assert!(matches!(error, EngineError::NotFresh { .. }), "{error}");
    assert!(error.to_string().contains("behind"), "{error}");
    follower
        .read_view_at(&table, &second, short)
        .await
        .expect("still young enough");
    let tight = ReadLevel::Bounded(Duration::from_millis(1));
    let error = follower
        .read_view_at(&table, &tight, short)
        .await
        .expect_err("too old");
    assert!(error.to_string().contains("asked for 1 ms"), "{error}");
    follower
        .read_view_at(&table, &session, short)
        .await
        .expect("has it");
    follower
        .read_view_at(&table, &ReadLevel::Eventual, short)
        .await
        .expect("whatever is here");
    let future = ReadLevel::Session(vec![CommitToken {
        shard: table.shard,
        epoch: Epoch::default(),
        offset: Offset(1_000_000),
    }]);
    let error = follower
        .read_view_at(&table, &future, short)
        .await
        .expect_err("not here");
    assert!(error.to_string().contains("session"), "{error}");

    logs.set_faults(Faults::default());
    follower.read_view(&table).await.expect("goes on by itself");
}

/// Many reads, few barriers; and no read passes on a barrier that was sent before it came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_barrier_serves_all_that_wait_and_none_that_came_later() {
    let logs = SimulatedLogStore::new(24);
    let world = World::new(Arc::new(logs), Arc::new(InMemory::new()));
    let leader = world.open(config()).await;
    let table = make(&leader, "log", TableMode::Append).await;
    let follower = follow(&world, &table).await;
    let acknowledged = Arc::new(AtomicI64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (follower, table) = (Arc::clone(&follower), table.clone());
            let (acknowledged, done) = (Arc::clone(&acknowledged), Arc::clone(&done));
            tokio::spawn(async move {
                let mut reads = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    let before = acknowledged.load(Ordering::SeqCst);
                    let view = follower.read_view(&table).await.expect("strong");
                    let rows: usize = view.memory.iter().map(|m| m.rows()).sum();
                    assert!(
                        rows as i64 >= before,
                        "{rows} rows, {before} were acknowledged"
                    );
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    let begun = leader.status()[0].position;
    for at in 0..300 {
        let put = put(&leader, &table, &[("a", at, at)], WriteOptions::default()).await;
        put.expect("write");
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    done.store(true, Ordering::SeqCst);
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.expect("reader");
    }
    let barriers = leader.status()[0].position.0 - begun.0 - 300;
    assert!(
        reads > 0 && barriers <= reads,
        "{barriers} barriers, {reads} reads"
    );
}

/// Two nodes take turns in leading under load; every acknowledged row is there once, on both. Several
/// pairs at a time: what goes wrong between two threads does so where these are interrupted.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn promotions_under_load_lose_and_double_nothing() {
    let pairs = (25..31).map(|seed| tokio::spawn(take_turns(seed)));
    for pair in futures::future::join_all(pairs).await {
        pair.expect("a pair");
    }
}

async fn take_turns(seed: u64) {
    let logs = SimulatedLogStore::new(seed);
    logs.set_faults(Faults {
        lost_ack: 0.01,
        late: 0.01,
        lost: 0.01,
        duplicate: 0.01,
        gap: 0.01,
        ..Faults::default()
    });
    let world = World::new(Arc::new(logs.clone()), Arc::new(InMemory::new()));
    let first = world.open(config()).await;
    let table = make(&first, "log", TableMode::Append).await;
    let second = follow(&world, &table).await;
    let nodes = [first, second];
    let ledger: Arc<Mutex<BTreeMap<i64, bool>>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3_i64)
        .map(|writer| {
            let (nodes, table) = (nodes.clone(), table.clone());
            let (ledger, done) = (Arc::clone(&ledger), Arc::clone(&done));
            tokio::spawn(async move {
                let began = std::time::Instant::now();
                let mut at = writer * 1_000_000;
                let mut node = 0;
                while !done.load(Ordering::SeqCst) {
                    at += 1;
                    // Retried at the other node until it is certain what became of it.
                    loop {
                        let Ok(schema) = nodes[node].table_schema(&table) else {
                            // It is being opened again: its leader trimmed what it had not read.
                            node = 1 - node;
                            tokio::time::sleep(Duration::from_millis(2)).await;
                            continue;
                        };
                        let rows = vec![block(&schema, &[("a", at, at)], false)];
                        match nodes[node].write(rows, WriteOptions::default()).await {
                            Ok(_) => {
                                ledger.lock().insert(at, true);
                                break;
                            }
                            Err(WriteError::OutcomeUnknown(_)) => {
                                ledger.lock().insert(at, false);
                                break;
                            }
                            Err(error) => {
                                let status = || nodes.each_ref().map(|n| n.status());
                                assert!(
                                    began.elapsed() < Duration::from_secs(60),
                                    "nobody leads: {error}, {:?}",
                                    status()
                                );
                                node = 1 - node;
                                tokio::time::sleep(Duration::from_millis(2)).await;
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for turn in 0..12 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let next = &nodes[1 - turn % 2];
        let promoted = next.set_role(table.shard, Role::Leader, 0).await;
        promoted.expect("promote").expect("leads");
        if turn % 3 == 1 {
            // Deposed meanwhile it may be: then the other one flushes later.
            let _ = next.flush(None).await;
        }
    }
    done.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.expect("writer");
    }
    logs.set_faults(Faults::default());
    logs.deliver_late(table.shard);
    let ledger = ledger.lock().clone();
    let both = [list(&nodes[0], &table).await, list(&nodes[1], &table).await];
    assert_eq!(both[0], both[1], "both replicas show the same rows");
    let mut seen: BTreeMap<i64, u32> = BTreeMap::new();
    for ((_, at), _) in &both[0] {
        *seen.entry(*at).or_default() += 1;
    }
    for (at, certain) in &ledger {
        let times = seen.get(at).copied().unwrap_or(0);
        assert!(
            times == 1 || (times == 0 && !certain),
            "row {at} is there {times} times"
        );
    }
    assert!(
        seen.keys().all(|at| ledger.contains_key(at)),
        "a row that nobody wrote"
    );
    assert!(ledger.values().filter(|certain| **certain).count() > 100);
    let again = follow(&world, &table).await;
    assert_eq!(list(&again, &table).await, both[0], "from manifest and log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_vanishes_for_who_reads_any_age_of_a_replica_that_was_opened_again() {
    let world = World::new(
        Arc::new(SimulatedLogStore::new(29)),
        Arc::new(InMemory::new()),
    );
    let leader = world.open(config()).await;
    let table = make(&leader, "log", TableMode::Append).await;
    for at in 0..400 {
        let done = put(&leader, &table, &[("a", at, at)], WriteOptions::default()).await;
        done.expect("write");
    }
    for _ in 0..5 {
        let follower = follow(&world, &table).await;
        let read = Read {
            level: ReadLevel::Eventual,
            ..Read::default()
        };
        let view = follower.read(&table, &read).await.expect("view");
        assert_eq!(list_of(&follower, &view).await.len(), 400);
        follower.shutdown().await;
    }
}
