//! Time limits, cancelling, memory.

use std::time::Duration;

use crate::support::{Fixture, run};
use futures::StreamExt;
use shoal_query::{Output, SessionOptions};

const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 100000000) a(x), generate_series(1, 100000000) b(y) WHERE x * y % 7 = 3";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_ends_at_its_time_limit() {
    let db = Fixture::new().await;
    db.ok("SET statement_timeout = 300").await;
    let began = std::time::Instant::now();
    let error = db.err(ENDLESS).await;
    assert_eq!((error.code, error.sqlstate), ("timeout", "57014"));
    assert!(began.elapsed() < Duration::from_secs(10));
    none_listed(&db).await;
}

/// A statement is listed until its work has really ended, which is soon after its answer.
async fn none_listed(db: &Fixture) {
    for _ in 0..2_000 {
        if db.engine.running().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still listed: {:?}", db.engine.running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_listed_and_can_be_cancelled() {
    let db = Fixture::new().await;
    let other = db.engine.session(SessionOptions::default());
    let task = tokio::spawn(async move { run(&other, ENDLESS).await });
    let id = loop {
        if let Some(statement) = db.engine.running().first() {
            break statement.id;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let rows = db.ok("SELECT count(*) FROM system.queries WHERE sql LIKE 'SELECT count(*) FROM generate_series%'").await;
    assert_eq!(rows, ["1"]);
    assert!(db.engine.cancel(id));
    let error = task.await.expect("task").expect_err("cancelled");
    assert_eq!(error.code, "cancelled");
    none_listed(&db).await;
    assert!(!db.engine.cancel(id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_rows_ends_the_statement() {
    let db = Fixture::new().await;
    let out = db
        .session
        .execute("SELECT * FROM generate_series(1, 100000000)", &[])
        .await
        .expect("rows");
    let Output::Rows { mut stream, .. } = out else {
        panic!("no rows");
    };
    stream.next().await.expect("a batch").expect("rows");
    assert_eq!(db.engine.running().len(), 1);
    drop(stream);
    none_listed(&db).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sort_larger_than_memory_spills_and_what_cannot_is_refused() {
    let db = Fixture::with(|config| {
        config.memory_bytes_max = 48 << 20;
        config.target_partitions = 1;
    })
    .await;
    let rows = db
        .ok("SELECT count(*), min(x) FROM (SELECT x, row_number() OVER (ORDER BY x % 1000003) AS r FROM generate_series(1, 4000000) AS g(x)) s WHERE r > 0")
        .await;
    assert_eq!(rows, ["4000000|1"]);
    assert_eq!(db.engine.spill_bytes(), 0, "spilled files are gone");
    let error = db
        .err("SELECT array_agg(x) FROM generate_series(1, 20000000) AS g(x)")
        .await;
    assert_eq!((error.code, error.sqlstate), ("out_of_memory", "53200"));
    assert_eq!(db.ok("SELECT 1").await, ["1"]);
}

/// With several keys the merge of what a sort holds needs more than the rows do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sort_on_several_keys_spills_too_also_beside_another() {
    let db = Fixture::with(|config| {
        config.memory_bytes_max = 48 << 20;
        config.target_partitions = 2;
    })
    .await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, host TEXT, region TEXT, n BIGINT)")
        .await;
    db.ok("INSERT INTO t SELECT x, 'host-' || (x * 7919 % 4001), 'a longer name of region ' || x % 7, x * 31 % 1009 FROM generate_series(1, 600000) AS g(x)")
        .await;
    db.flush().await;
    let sql = "SELECT count(*), min(k), sum(r % 10) FROM (SELECT *, row_number() OVER (ORDER BY host, region DESC, n, k) AS r FROM t) s";
    let other = db.engine.session(SessionOptions::default());
    let (one, two) = tokio::join!(db.run(sql), run(&other, sql));
    for rows in [one, two] {
        assert_eq!(rows.expect("rows"), ["600000|1|2700000"]);
    }
    let error = db
        .err("SELECT array_agg(x) FROM generate_series(1, 20000000) AS g(x)")
        .await;
    assert_eq!(error.code, "out_of_memory");
    let hint = error.hint.expect("a remedy");
    assert!(hint.contains("query.memory_bytes_max"), "{hint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_beyond_the_limit_wait_and_then_say_so() {
    let db = Fixture::with(|config| config.concurrent_statements_max = 1).await;
    let Output::Rows { stream, .. } = db
        .session
        .execute("SELECT * FROM generate_series(1, 100000000)", &[])
        .await
        .expect("rows")
    else {
        panic!("no rows");
    };
    db.session.set("statement_timeout", "100").expect("set");
    let error = db.err("SELECT 1").await;
    assert_eq!(
        (error.code, error.sqlstate),
        ("too_many_statements", "53300")
    );
    drop(stream);
    assert_eq!(db.ok("SELECT 1").await, ["1"]);
}

#[tokio::test]
async fn schemas_of_our_own_cannot_be_made() {
    let db = Fixture::new().await;
    for name in ["system", "information_schema", "pg_catalog"] {
        let error = db.err(&format!("CREATE SCHEMA {name}")).await;
        assert_eq!(error.code, "not_allowed", "{name}");
    }
}

/// A nested-loop join never pauses. Its threads are not those that it was asked on: here there is
/// just one of these, and it goes on to see the time limit and to answer others.
#[tokio::test]
async fn a_statement_that_never_pauses_stops_neither_its_time_limit_nor_others() {
    let db = Fixture::with(|config| config.target_partitions = 2).await;
    db.session.set("statement_timeout", "300").expect("set");
    let error = db
        .err("SELECT count(*) FROM generate_series(1, 200000) a(x), generate_series(1, 200000) b(y) WHERE x * y % 7 = 1")
        .await;
    assert_eq!(error.code, "timeout");
    db.session.set("statement_timeout", "60000").expect("set");
    assert_eq!(db.ok("SELECT 1").await, ["1"]);
}

#[tokio::test]
async fn a_chain_too_long_to_plan_is_refused_with_its_place_and_a_shorter_one_runs() {
    let db = Fixture::new().await;
    for link in ["+1", "::int", " OR 1 = 2", " UNION ALL SELECT 1"] {
        let error = db.err(&format!("SELECT 1{}", link.repeat(20_000))).await;
        assert_eq!(
            (error.code, error.sqlstate),
            ("statement_too_complex", "54001"),
            "{link}"
        );
        assert!(error.position.is_some());
    }
    let longest = format!("SELECT 1{}", "+1".repeat(1_000));
    assert_eq!(db.ok(&longest).await, ["1001"]);
    db.ok("CREATE TABLE one AS SELECT 1 AS n").await;
    let longest = format!("SELECT n{} FROM one", "+1-2*n".repeat(400));
    assert_eq!(db.ok(&longest).await, ["-399"]);
    let flat = format!("SELECT 1 IN (0{})", ", 1".repeat(20_000));
    assert_eq!(db.ok(&flat).await, ["true"]);
    let branches = format!("SELECT CASE 2{} ELSE 7 END", " WHEN 1 THEN 0".repeat(1_500));
    assert_eq!(db.ok(&branches).await, ["7"]);
}
