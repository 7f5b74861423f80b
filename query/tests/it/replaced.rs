//! UPDATE of append tables: rows without a key are replaced by predicate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Fixture, config, open_in, run};
use shoal_query::{QueryEngine, SessionOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_replaces_the_rows_that_match_and_no_others() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE a (ts TIMESTAMP(3) NOT NULL, k TEXT, n BIGINT) WITH (time_column = 'ts', mode = 'append')
        CREATE TABLE
        > INSERT INTO a VALUES ('2026-01-01', 'x', 1), ('2026-01-01', 'x', 1), ('2026-01-02', 'y', NULL)
        INSERT 0 3
        > UPDATE a SET n = n + 1 WHERE k = 'x'
        UPDATE 2
        > SELECT k, n FROM a ORDER BY k, n
        x|2
        x|2
        y|NULL
        FLUSH
        -- The rows that come match the predicate of those that go.
        > UPDATE a SET n = 7, ts = ts + INTERVAL '1 day' WHERE n > 1 AND ts < '2026-01-02'
        UPDATE 2
        > SELECT ts, k, n FROM a ORDER BY k, n
        2026-01-02T00:00:00|x|7
        2026-01-02T00:00:00|x|7
        2026-01-02T00:00:00|y|NULL
        > UPDATE a SET k = 'z'
        UPDATE 3
        > UPDATE a SET n = 0 WHERE k = 'nobody'
        UPDATE 0
        > SELECT k, n FROM a ORDER BY n
        z|7
        z|7
        z|NULL
        > UPDATE a SET ts = NULL
        ! not_null_violation
        > UPDATE a SET n = 1 WHERE random() > 0.5
        ! not_supported
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_too_large_for_one_record_is_refused_with_the_limit() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE a (n BIGINT) WITH (mode = 'append')")
        .await;
    db.ok("INSERT INTO a SELECT x FROM generate_series(1, 70000) AS g(x)")
        .await;
    let error = db.err("UPDATE a SET n = n + 1").await;
    assert_eq!(error.code, "invalid_value");
    assert!(error.message.contains("65536 rows"), "{error}");
    assert_eq!(db.ok("SELECT sum(n) FROM a").await, ["2450035000"]);
    assert_eq!(
        db.ok("UPDATE a SET n = 0 WHERE n <= 60000").await,
        ["UPDATE 60000"]
    );
    assert_eq!(db.ok("SELECT count(*) FROM a WHERE n = 0").await, ["60000"]);
}

/// Each row of `k = 'c'` counts the updates; other rows come in all the time, and readers must
/// always see exactly one such row for each value of `i`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_among_inserts_are_seen_whole_and_survive_flush_compaction_and_restart() {
    const ROWS: usize = 5;
    const UPDATES: usize = 12;
    let db = Fixture::new().await;
    db.ok("CREATE TABLE a (k TEXT, i BIGINT, n BIGINT) WITH (mode = 'append')")
        .await;
    for i in 0..ROWS {
        db.ok(&format!("INSERT INTO a VALUES ('c', {i}, 0)")).await;
    }
    let engine = Arc::clone(&db.engine);
    let updaters = (0..2).map(|_| {
        let session = engine.session(SessionOptions::default());
        tokio::spawn(async move {
            for _ in 0..UPDATES {
                let done = run(&session, "UPDATE a SET n = n + 1 WHERE k = 'c'").await;
                assert_eq!(done.expect("update"), [format!("UPDATE {ROWS}")]);
            }
        })
    });
    let inserting = engine.session(SessionOptions::default());
    let inserter = tokio::spawn(async move {
        for i in 0..60 {
            let sql = format!("INSERT INTO a VALUES ('o', {i}, 1)");
            run(&inserting, &sql).await.expect("insert");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let reading = engine.session(SessionOptions::default());
    let database = Arc::clone(engine.database());
    let reader = tokio::spawn(async move {
        for turn in 0..20 {
            let sql = "SELECT count(*), count(DISTINCT i), count(DISTINCT n) FROM a WHERE k = 'c'";
            let rows = run(&reading, sql).await.expect("rows");
            assert_eq!(rows, [format!("{ROWS}|{ROWS}|1")]);
            if turn % 5 == 4 {
                database.flush(None).await.expect("flush");
            }
        }
    });
    for task in updaters.collect::<Vec<_>>() {
        task.await.expect("updater");
    }
    inserter.await.expect("inserter");
    reader.await.expect("reader");
    let expected = [
        format!("c|{ROWS}|{}", ROWS * UPDATES * 2),
        "o|60|60".to_owned(),
    ];
    let sql = "SELECT k, count(*), sum(n) FROM a GROUP BY k ORDER BY k";
    assert_eq!(db.ok(sql).await, expected);

    let Fixture {
        engine: old,
        session,
        dir,
    } = db;
    drop(session);
    old.database().shutdown().await;
    drop((old, engine));
    let opened = QueryEngine::new(open_in(dir.path()).await, config(dir.path())).expect("engine");
    let session = opened.session(SessionOptions::default());
    assert_eq!(run(&session, sql).await.expect("replayed"), expected);
    opened.database().flush(None).await.expect("flush");
    assert_eq!(run(&session, sql).await.expect("flushed"), expected);
    opened.database().compact(None).await.expect("compact");
    assert_eq!(run(&session, sql).await.expect("compacted"), expected);
}

/// Others write faster than the statement reads: it holds the table and comes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_comes_through_among_writers_that_never_pause() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE a (k TEXT, n BIGINT) WITH (mode = 'append')")
        .await;
    db.ok("INSERT INTO a SELECT 'c', x FROM generate_series(1, 1000) AS g(x)")
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let session = db.engine.session(SessionOptions::default());
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut written = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let sql = format!("INSERT INTO a VALUES ('o', {writer})");
                    run(&session, &sql).await.expect("insert");
                    written += 1;
                }
                written
            })
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(
            db.ok("UPDATE a SET n = n + 1 WHERE k = 'c'").await,
            ["UPDATE 1000"]
        );
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.expect("writer");
    }
    let rows = db
        .ok("SELECT k, count(*) FROM a GROUP BY k ORDER BY k")
        .await;
    assert_eq!(rows, ["c|1000".to_owned(), format!("o|{written}")]);
    assert_eq!(
        db.ok("SELECT sum(n) FROM a WHERE k = 'c'").await,
        ["505500"]
    );
}
