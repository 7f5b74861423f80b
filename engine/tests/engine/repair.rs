//! Damaged and lost logs: replicas that halt, and an operator's way on.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use shoal_engine::{
    CommitToken, Database, EngineError, GiveUp, HaltKind, ReadLevel, Role, TableHandle, WriteError,
    WriteOptions,
};
use shoal_meta::MemoryMetaStore;
use shoal_types::{Offset, TableMode};
use shoal_wal::record::{Payload, Record};
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn by() -> GiveUp {
    GiveUp {
        reason: "a test".into(),
        term_min: 0,
    }
}

fn world(logs: &SimulatedLogStore) -> World {
    World::new(Arc::new(logs.clone()), Arc::new(InMemory::new()))
}

async fn write(db: &Database, table: &TableHandle, at: i64) -> CommitToken {
    let put = put(db, table, &[("a", at, at)], WriteOptions::default()).await;
    put.expect("write").tokens[0]
}

async fn values(db: &Database, table: &TableHandle, level: &ReadLevel) -> Vec<i64> {
    let view = db.read_view_at(table, level, PATIENCE).await.expect("view");
    let rows = list_of(db, &view).await;
    rows.into_iter().map(|((_, at), _)| at).collect()
}

/// The offset of the last record of this kind.
fn last(logs: &SimulatedLogStore, table: &TableHandle, of: fn(&Payload) -> bool) -> Offset {
    let records = logs.records(table.shard).into_iter().rev();
    let mut found = records.filter_map(|(offset, bytes)| {
        let record = Record::decode(&bytes).ok()?;
        of(&record.payload).then_some(offset)
    });
    found.next().expect("there is one")
}

fn halted(db: &Database) -> Option<(HaltKind, Offset)> {
    let halt = db.status()[0].halted.clone()?;
    Some((halt.kind, halt.at))
}

/// Rows acknowledged behind a damaged record of the same epoch are all there after the skip, on a
/// replica that follows, too; until then reads say what they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_behind_a_record_that_was_given_up_are_all_there() {
    let logs = SimulatedLogStore::new(31);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    for at in 0..5 {
        write(&db, &table, at).await;
    }
    let lost = write(&db, &table, 5).await;
    for at in 6..10 {
        write(&db, &table, at).await;
    }
    db.shutdown().await;
    logs.damage(table.shard, lost.offset);

    // As a node leads, and as another follows.
    let db = world.open(config()).await;
    let other = world.open_node(config()).await;
    other
        .set_role(table.shard, Role::Follower, 0)
        .await
        .expect("follows");
    until(&other, "it halts", || halted(&other).is_some()).await;
    for replica in [&db, &other] {
        assert_eq!(halted(replica), Some((HaltKind::Damaged, lost.offset)));
        let status = &replica.status()[0];
        let why = status.why.clone().expect("why");
        assert_eq!(status.state, "damaged");
        assert!(why.contains("skip-record"), "{why}");
        assert_eq!(replica.served().1.len(), 1);
        let read = values(replica, &table, &ReadLevel::Eventual).await;
        assert_eq!(read, [0, 1, 2, 3, 4], "what it has");
        let begun = std::time::Instant::now();
        let strong = replica.read_view(&table).await.expect_err("not as of now");
        assert!(strong.to_string().contains("skip-record"), "{strong}");
        let refused = put(replica, &table, &[("a", 99, 99)], WriteOptions::default()).await;
        let refused = refused.expect_err("it leads nothing");
        assert!(
            matches!(refused, WriteError::ShardUnavailable { .. }),
            "{refused:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(3), "at once");
    }
    let status = db.status()[0].halted.clone().expect("halted");
    assert_eq!(
        status.remains.and_then(|r| r.kind).as_deref(),
        Some("Write")
    );

    let wrong = db
        .skip_record(table.shard, lost.offset.next(), true, by())
        .await;
    let wrong = wrong.expect_err("it does not stand there").to_string();
    assert!(
        wrong.contains(&format!("position {}", lost.offset)),
        "{wrong}"
    );
    let done = db.skip_record(table.shard, lost.offset, true, by()).await;
    let done = done.expect("skipped");
    assert_eq!(done.replay_offset, lost.offset.next());
    assert!(done.epoch.is_some(), "it leads: {done:?}");
    let trace = done.loss.expect("a trace");
    assert_eq!((trace.from, trace.to), (lost.offset, lost.offset.next()));
    assert_eq!(trace.reason, "a test");
    let kept = [0, 1, 2, 3, 4, 6, 7, 8, 9];
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, kept);
    until(&other, "it goes on by itself", || {
        other.status()[0].state == "serving"
    })
    .await;
    assert_eq!(values(&other, &table, &ReadLevel::Strong).await, kept);
    write(&db, &table, 10).await;
    assert_eq!(values(&other, &table, &ReadLevel::Strong).await.len(), 10);
    // What was given up is not taken for met by anybody.
    for replica in [&db, &other] {
        let level = ReadLevel::Session(vec![lost]);
        let met = replica.read_view_at(&table, &level, PATIENCE).await;
        assert!(matches!(met, Err(EngineError::Lost { .. })), "{met:?}");
        assert_eq!(replica.status()[0].losses.len(), 1);
    }
    let again = db.skip_record(table.shard, lost.offset, true, by()).await;
    assert!(again.is_err_and(|e| e.to_string().contains("not damaged")));
    db.shutdown().await;
    let db = world.open(config()).await;
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_behind_a_claim_that_was_given_up_are_all_there() {
    let logs = SimulatedLogStore::new(32);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    write(&db, &table, 0).await;
    db.shutdown().await;
    let db = world.open(config()).await;
    for at in 1..4 {
        write(&db, &table, at).await;
    }
    db.shutdown().await;
    let claim = last(&logs, &table, |payload| {
        matches!(payload, Payload::Claim(_))
    });
    logs.damage(table.shard, claim);
    let db = world.open(config()).await;
    assert_eq!(halted(&db), Some((HaltKind::Damaged, claim)));
    db.skip_record(table.shard, claim, true, by())
        .await
        .expect("skipped");
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, [0, 1, 2, 3]);
}

/// A batch that its medium cannot give back is given up as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_records_that_cannot_be_told_apart_are_given_up_together() {
    let logs = SimulatedLogStore::new(33);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    write(&db, &table, 0).await;
    let first = write(&db, &table, 1).await.offset;
    write(&db, &table, 2).await;
    let behind = write(&db, &table, 3).await.offset;
    write(&db, &table, 4).await;
    db.shutdown().await;
    logs.make_unreadable(table.shard, first, behind);
    let db = world.open(config()).await;
    assert_eq!(halted(&db), Some((HaltKind::Damaged, first)));
    let done = db.skip_record(table.shard, first, true, by()).await;
    let trace = done.expect("skipped").loss.expect("a trace");
    assert_eq!((trace.from, trace.to), (first, behind));
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, [0, 3, 4]);
}

/// A replica that read the record before it was damaged leads, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_has_read_is_not_lost() {
    let logs = SimulatedLogStore::new(34);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    for at in 0..4 {
        write(&db, &table, at).await;
    }
    let bad = write(&db, &table, 4).await.offset;
    logs.damage(table.shard, bad);
    let late = world.open_node(config()).await;
    late.set_role(table.shard, Role::Follower, 0)
        .await
        .expect("follows");
    until(&late, "it halts", || halted(&late).is_some()).await;
    db.flush_beyond(table.shard, bad).await.expect("flushed");
    until(&late, "it goes on", || late.status()[0].state == "serving").await;
    assert_eq!(
        values(&late, &table, &ReadLevel::Strong).await,
        [0, 1, 2, 3, 4]
    );
    // With nothing to write the manifest must get past it, too.
    let second = last(&logs, &table, |_| true);
    db.flush_beyond(table.shard, second).await.expect("flushed");
}

/// Tokens, positions and row versions across a log that was lost with a tail that only files and
/// nobody's memory covers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_goes_on_with_a_new_log_where_the_tail_of_its_log_was_lost() {
    let logs = SimulatedLogStore::with_many_logs(35);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    let older = write(&db, &table, 0).await;
    put(&db, &table, &[("k", 0, 1)], WriteOptions::default())
        .await
        .expect("write");
    db.flush(None).await.expect("flush");
    let lost = write(&db, &table, 1).await;
    let in_order = db.adopt_log(table.shard, Offset(0), by()).await;
    assert!(in_order.is_err_and(|e| e.to_string().contains("in order")));
    db.shutdown().await;
    logs.truncate(table.shard, Offset(2));

    let db = world.open(config()).await;
    let status = &db.status()[0];
    assert_eq!(status.state, "unavailable");
    assert!(
        status.why.as_ref().is_some_and(|w| w.contains("adopt-log")),
        "{status:?}"
    );
    let found = db.examine_log(table.shard).await.expect("examined");
    assert!(found.lost.is_some(), "{found:?}");
    let done = db.adopt_log(table.shard, lost.offset.next(), by()).await;
    let done = done.expect("adopted");
    assert!(done.epoch.is_some(), "{done:?}");
    let trace = done.loss.expect("a trace");
    assert_eq!(trace.from, found.replay_offset);
    assert!(trace.covers(lost.offset) && !trace.covers(older.offset));
    assert_eq!(
        values(&db, &table, &ReadLevel::Strong).await,
        [0, 0],
        "what was in files"
    );
    let met = ReadLevel::Session(vec![older]);
    assert_eq!(values(&db, &table, &met).await.len(), 2, "below the loss");
    let level = ReadLevel::Session(vec![lost]);
    let refused = db.read_view_at(&table, &level, PATIENCE).await;
    assert!(
        matches!(refused, Err(EngineError::Lost { .. })),
        "{refused:?}"
    );
    // New rows are newer than all old ones.
    let new = write(&db, &table, 2).await;
    assert!(new.offset >= trace.to);
    put(&db, &table, &[("k", 0, 2)], WriteOptions::default())
        .await
        .expect("write");
    let of_k = || async { read(&db, &table).await[&("k".to_owned(), 0)] };
    assert_eq!(of_k().await, 2);
    db.flush(None).await.expect("flush");
    db.compact(None).await.expect("compact");
    assert_eq!(of_k().await, 2);
    let session = ReadLevel::Session(vec![new]);
    assert_eq!(values(&db, &table, &session).await.len(), 3);
    // The old log ends with a claim that closes it.
    db.shutdown().await;
    let db = world.open(config()).await;
    assert_eq!(of_rows(&db, &table).await, 3);
}

async fn of_rows(db: &Database, table: &TableHandle) -> usize {
    read(db, table).await.len()
}

/// A follower that still reads the old log answers no strong read once the new one is served: not one
/// that knows that the tail was lost, and not one that came later and finds the rest in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_from_the_old_log_once_the_new_one_is_served() {
    let logs = SimulatedLogStore::with_many_logs(36);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    write(&db, &table, 0).await;
    db.flush(None).await.expect("flush");
    let cut = write(&db, &table, 1).await.offset;
    let follow = async || {
        let node = world.open_node(config()).await;
        let followed = node.set_role(table.shard, Role::Follower, 0).await;
        followed.expect("follows");
        node
    };
    let beyond = follow().await;
    assert_eq!(values(&beyond, &table, &ReadLevel::Strong).await, [0, 1]);
    // What is given out again stands where the second row stood.
    logs.all_read(table.shard).await;
    logs.truncate(table.shard, cut);
    until(&db, "the leader halts", || halted(&db).is_some()).await;
    assert_eq!(halted(&db).expect("halted").0, HaltKind::LostTail);
    let within = follow().await;
    let eventual = values(&within, &table, &ReadLevel::Eventual).await;
    assert_eq!(eventual, [0], "it cannot know");
    let done = db.adopt_log(table.shard, Offset(0), by()).await;
    let loss = done.expect("adopted").loss.expect("a trace");
    assert!(loss.from > cut, "rows in memory were saved");
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, [0, 1]);
    write(&db, &table, 2).await;
    for follower in [&beyond, &within] {
        let strong = follower.read_view_at(&table, &ReadLevel::Strong, PATIENCE);
        match strong.await {
            Ok(view) => assert_eq!(list_of(follower, &view).await.len(), 3),
            Err(error) => {
                let halted = matches!(error, EngineError::ShardUnavailable { .. });
                assert!(halted, "{error}");
            }
        }
    }
    for follower in [&beyond, &within] {
        until(follower, "it goes on with the new log", || {
            let status = &follower.status()[0];
            status.state == "serving" && status.position >= loss.to
        })
        .await;
        assert_eq!(
            values(follower, &table, &ReadLevel::Strong).await,
            [0, 1, 2]
        );
    }
}

/// Whatever happened between the manifest and the end, whoever opens the shard does the rest; before
/// it, nothing was decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adoption_that_broke_off_is_finished_by_whoever_opens_the_shard() {
    let logs = SimulatedLogStore::with_many_logs(37);
    let meta = Arc::new(MemoryMetaStore::new());
    let mut world = world(&logs);
    world.meta = Arc::clone(&meta) as _;
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    write(&db, &table, 0).await;
    db.flush(None).await.expect("flush");
    db.shutdown().await;
    logs.truncate(table.shard, Offset(1));
    // The manifest is put and its answer is lost, as is the process.
    let faulty = FaultyStore::new(Arc::clone(&world.store));
    world.store = Arc::clone(&faulty) as _;
    let db = world.open(config()).await;
    faulty.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let failed = db.adopt_log(table.shard, Offset(0), by()).await;
    failed.expect_err("the store takes nothing");
    faulty
        .full
        .store(false, std::sync::atomic::Ordering::SeqCst);
    assert!(
        db.examine_log(table.shard)
            .await
            .expect("looks")
            .lost
            .is_some(),
        "not decided"
    );
    db.adopt_log(table.shard, Offset(0), by())
        .await
        .expect("again");
    let second = db.adopt_log(table.shard, Offset(0), by()).await;
    assert!(second.is_err_and(|e| e.to_string().contains("in order")));
    write(&db, &table, 1).await;
    db.shutdown().await;
    // Meta forgets which log it is: the manifest decides.
    let catalog = shoal_meta::Catalog::open(Arc::clone(&meta) as _, "simulated")
        .await
        .expect("catalog");
    let (_, entry) = catalog.shards()[0];
    let other = shoal_wal::log::LogStore::create(&logs, table.shard)
        .await
        .expect("made");
    let wrong = shoal_meta::ShardEntry {
        log: Some(other),
        ..entry
    };
    catalog
        .put_shard(table.shard, Some(entry), wrong)
        .await
        .expect("put");
    drop(catalog);
    let db = world.open(config()).await;
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, [0, 1]);
    let _: &Arc<dyn shoal_meta::MetaStore> = &world.meta;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_is_told_and_replaced() {
    let logs = SimulatedLogStore::with_many_logs(38);
    let world = world(&logs);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    write(&db, &table, 0).await;
    db.flush(None).await.expect("flush");
    db.shutdown().await;
    logs.remove(table.shard);
    let db = world.open(config()).await;
    let why = db.status()[0].why.clone().unwrap_or_default();
    assert!(why.contains("adopt-log"), "{why}");
    db.adopt_log(table.shard, Offset(0), by())
        .await
        .expect("adopted");
    write(&db, &table, 1).await;
    assert_eq!(values(&db, &table, &ReadLevel::Strong).await, [0, 1]);
}

/// The only user of a local log goes on at its end, or with an empty one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_process_goes_on_without_its_log_folder() {
    let dir = tempfile::tempdir().expect("dir");
    let one = || shoal_engine::EngineConfig {
        shards: 1,
        ..config()
    };
    let db = embedded(dir.path(), one()).await;
    let table = make(&db, "log", TableMode::Append).await;
    for at in 0..4 {
        write(&db, &table, at).await;
    }
    db.flush(None).await.expect("flush");
    let lost = write(&db, &table, 4).await;
    db.shutdown().await;
    drop(db);
    for entry in std::fs::read_dir(dir.path().join("wal"))
        .expect("wal")
        .flatten()
    {
        std::fs::remove_file(entry.path()).expect("removed");
    }
    let db = embedded(dir.path(), one()).await;
    let why = db.status()[0].why.clone().unwrap_or_default();
    assert!(why.contains("adopt-log"), "{why}");
    db.adopt_log(table.shard, Offset(0), by())
        .await
        .expect("adopted");
    let new = write(&db, &table, 5).await;
    assert!(new.offset > lost.offset);
    db.shutdown().await;
    drop(db);
    let db = embedded(dir.path(), one()).await;
    assert_eq!(
        values(&db, &table, &ReadLevel::Strong).await,
        [0, 1, 2, 3, 5]
    );
    db.flush(None).await.expect("flush");
    let level = ReadLevel::Session(vec![lost]);
    let refused = db.read_view_at(&table, &level, PATIENCE).await;
    assert!(
        matches!(refused, Err(EngineError::Lost { .. })),
        "{refused:?}"
    );
}
