//! What a read shows where versions of rows lie in several files and in memory.

use std::collections::BTreeMap;

use crate::support::Fixture;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Random upserts (some of one column), deletes and flushes; the table must equal a map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_files_and_memory_show_the_last_write_of_each_column() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k TEXT, ts TIMESTAMP(3), a BIGINT, b BIGINT, PRIMARY KEY (k, ts))")
        .await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut model: BTreeMap<(u8, u8), (Option<i64>, Option<i64>)> = BTreeMap::new();
    for step in 0..60_i64 {
        let (k, ts) = (rng.random_range(0..4_u8), rng.random_range(0..10_u8));
        let key = format!("'h{k}', {}::BIGINT::TIMESTAMP(3)", ts);
        let key = key.replace("::BIGINT::TIMESTAMP(3)", "");
        let time = format!(
            "TIMESTAMP '2024-01-01 00:00:{:02}'",
            key.rsplit(", ").next().unwrap().parse::<u8>().unwrap()
        );
        let key = format!("'h{k}', {time}");
        match rng.random_range(0..10) {
            0..4 => {
                db.ok(&format!(
                    "INSERT INTO t VALUES ({key}, {step}, {})",
                    step * 2
                ))
                .await;
                model.insert((k, ts), (Some(step), Some(step * 2)));
            }
            4..6 => {
                db.ok(&format!("INSERT INTO t (k, ts, a) VALUES ({key}, {step})"))
                    .await;
                model.entry((k, ts)).or_default().0 = Some(step);
            }
            6..8 => {
                db.ok(&format!("INSERT INTO t (k, ts, b) VALUES ({key}, NULL)"))
                    .await;
                model.entry((k, ts)).or_default().1 = None;
            }
            8 => {
                db.ok(&format!("DELETE FROM t WHERE k = 'h{k}' AND ts = {time}"))
                    .await;
                model.remove(&(k, ts));
            }
            _ => db.flush().await,
        }
        if step % 6 == 0 {
            compare(&db, &model).await;
        }
    }
    compare(&db, &model).await;
    db.flush().await;
    compare(&db, &model).await;
    db.engine.database().compact(None).await.expect("compact");
    compare(&db, &model).await;
}

async fn compare(db: &Fixture, model: &BTreeMap<(u8, u8), (Option<i64>, Option<i64>)>) {
    let cell = |v: &Option<i64>| v.map_or("NULL".to_owned(), |v| v.to_string());
    let expected: Vec<String> = model
        .iter()
        .map(|((k, ts), (a, b))| format!("h{k}|2024-01-01T00:00:{ts:02}|{}|{}", cell(a), cell(b)))
        .collect();
    assert_eq!(db.ok("SELECT * FROM t ORDER BY k, ts").await, expected);
    // A condition on a column that is not in the key must see the newest version only.
    let some: Vec<String> = model
        .iter()
        .filter(|(_, (a, _))| a.is_some_and(|a| a < 30))
        .map(|((k, ts), _)| format!("h{k}|2024-01-01T00:00:{ts:02}"))
        .collect();
    assert_eq!(
        db.ok("SELECT k, ts FROM t WHERE a < 30 ORDER BY k, ts")
            .await,
        some
    );
    let one: Vec<String> = model
        .iter()
        .filter(|((k, ts), _)| *k == 1 && (3..8).contains(ts))
        .map(|(_, (a, b))| format!("{}|{}", cell(a), cell(b)))
        .collect();
    let sql = "SELECT a, b FROM t WHERE k = 'h1' AND ts >= TIMESTAMP '2024-01-01 00:00:03' AND ts < TIMESTAMP '2024-01-01 00:00:08' ORDER BY ts";
    assert_eq!(db.ok(sql).await, one);
    assert_eq!(
        db.ok("SELECT count(*) FROM t").await,
        [model.len().to_string()]
    );
    let last: Vec<String> = (0..4_u8)
        .filter_map(|k| model.range((k, 0)..(k + 1, 0)).next_back())
        .map(|((k, ts), (a, _))| format!("h{k}|2024-01-01T00:00:{ts:02}|{}", cell(a)))
        .collect();
    assert_eq!(
        db.ok("SELECT DISTINCT ON (k) k, ts, a FROM t ORDER BY k, ts DESC")
            .await,
        last
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_sees_one_view_of_a_table_however_often_it_names_it() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, a BIGINT)")
        .await;
    db.ok("INSERT INTO t VALUES (0, 0)").await;
    let writer = db.engine.session(shoal_query::SessionOptions::default());
    let task = tokio::spawn(async move {
        for i in 1..200_i64 {
            let sql = format!("INSERT INTO t VALUES ({i}, {i})");
            crate::support::run(&writer, &sql).await.expect("insert");
        }
    });
    while !task.is_finished() {
        let rows = db
            .ok("SELECT (SELECT count(*) FROM t) = (SELECT max(a) + 1 FROM t), (SELECT count(*) FROM t x JOIN t y USING (k)) = (SELECT count(*) FROM t)")
            .await;
        assert_eq!(rows, ["true|true"]);
    }
    task.await.expect("writer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_there_after_opening_again() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, a TEXT DEFAULT 'd')")
        .await;
    db.ok("INSERT INTO t VALUES (1, 'x')").await;
    db.flush().await;
    db.ok("INSERT INTO t (k) VALUES (2)").await;
    db.engine.database().shutdown().await;
    let Fixture {
        dir,
        engine,
        session,
    } = db;
    drop((engine, session));
    let database = crate::support::open_in(dir.path()).await;
    let config = crate::support::config(dir.path());
    let engine = shoal_query::QueryEngine::new(database, config).expect("engine");
    let session = engine.session(shoal_query::SessionOptions::default());
    let rows = crate::support::run(&session, "SELECT * FROM t ORDER BY k")
        .await
        .expect("rows");
    assert_eq!(rows, ["1|x", "2|d"]);
}

/// An append table may hold several rows of one series and time; where the query says which of
/// them comes last, the short way to the last row of a series must not choose another.
#[tokio::test]
async fn the_last_of_rows_with_one_time_is_the_one_that_the_query_orders_last() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE e (k TEXT, ts TIMESTAMP(3), v BIGINT, PRIMARY KEY (k, ts)) WITH (mode = 'append')")
        .await;
    for v in [5, 9, 1, 7] {
        db.ok(&format!(
            "INSERT INTO e VALUES ('a', TIMESTAMP '2024-01-01 00:00:00', {v})"
        ))
        .await;
        db.flush().await;
    }
    for (direction, wanted) in [("DESC", "a|9"), ("ASC", "a|1")] {
        let sql = format!("SELECT DISTINCT ON (k) k, v FROM e ORDER BY k, ts DESC, v {direction}");
        assert_eq!(db.ok(&sql).await, [wanted], "{sql}");
    }
    db.ok("INSERT INTO e SELECT 'b', TIMESTAMP '2024-01-01 00:00:00', x FROM generate_series(1, 9) AS g(x)")
        .await;
    db.flush().await;
    let sql = "SELECT DISTINCT ON (k) k, v FROM e ORDER BY k, ts DESC, v";
    assert_eq!(db.ok(sql).await, ["a|1", "b|1"]);
}

/// A limit that goes down to the scan is kept by it, wherever the rows are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_holds_for_rows_in_memory_and_in_files() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)
        CREATE TABLE
        > INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)
        INSERT 0 3
        > SELECT k FROM t LIMIT 1
        1
        > INSERT INTO t VALUES (2, 20), (4, 4), (5, 5)
        INSERT 0 3
        > SELECT count(*) FROM (SELECT k FROM t LIMIT 2) x
        2
        > SELECT k, v FROM t ORDER BY k LIMIT 2 OFFSET 1
        2|20
        3|3
        FLUSH
        > INSERT INTO t VALUES (3, 30), (6, 6)
        INSERT 0 2
        > SELECT k, v FROM t ORDER BY k LIMIT 2 OFFSET 1
        2|20
        3|30
        > SELECT count(*) FROM (SELECT k FROM t LIMIT 4 OFFSET 1) x
        4
        > CREATE TABLE a (k BIGINT, v BIGINT) WITH (mode = 'append')
        CREATE TABLE
        > INSERT INTO a VALUES (1, 1), (1, 1), (2, 2)
        INSERT 0 3
        > SELECT count(*) FROM (SELECT k FROM a LIMIT 2) x
        2
        FLUSH
        > INSERT INTO a VALUES (1, 1), (1, 1)
        INSERT 0 2
        > SELECT count(*) FROM (SELECT k FROM a LIMIT 4) x
        4
        ",
    )
    .await;
}

/// The same over rows in memory and in files, which are read by other ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outer_joins_lists_with_null_and_distinct_from_answer_as_postgresql_does() {
    let db = Fixture::new().await;
    for table in ["l", "r"] {
        db.ok(&format!(
            "CREATE TABLE {table} (k BIGINT PRIMARY KEY, v BIGINT)"
        ))
        .await;
    }
    db.ok("INSERT INTO l VALUES (1, 10), (2, 20), (3, NULL)")
        .await;
    db.ok("INSERT INTO r VALUES (1, 100), (2, 5), (4, 7)").await;
    for flushed in [false, true] {
        for (sql, rows) in [
            (
                "SELECT count(*) FROM l RIGHT JOIN r ON l.k = r.k WHERE l.v IS DISTINCT FROM r.v",
                "3",
            ),
            (
                "SELECT count(*) FROM l RIGHT JOIN r ON l.k = r.k WHERE coalesce(l.v, 0) <> r.v",
                "3",
            ),
            (
                "SELECT count(*) FROM l FULL JOIN r ON l.k = r.k WHERE coalesce(l.v, 0) < 15 OR r.v < 6",
                "4",
            ),
            (
                "SELECT r.k FROM l RIGHT JOIN r USING (k) WHERE l.v < 15 OR r.v < 6 ORDER BY r.v LIMIT 1",
                "2",
            ),
            (
                "SELECT count(*) FROM l LEFT JOIN r ON l.k = r.k WHERE l.v < 15 OR r.v < 6",
                "2",
            ),
            (
                "SELECT count(*) FROM l WHERE k IN (1, 2) AND k NOT IN (1, NULL)",
                "0",
            ),
            (
                "SELECT count(*) FROM l WHERE k IN (1, NULL) OR k NOT IN (1, 3)",
                "2",
            ),
            (
                "SELECT k IN (2, NULL), k NOT IN (1, NULL), k IN (NULL) FROM l WHERE k = 1",
                "NULL|false|NULL",
            ),
            ("SELECT true IS DISTINCT FROM false AND false", "false"),
            ("SELECT false IS NOT DISTINCT FROM false OR true", "true"),
            (
                "SELECT count(*) FROM l WHERE v IS DISTINCT FROM 10 AND k < 3",
                "1",
            ),
        ] {
            assert_eq!(db.ok(sql).await, [rows], "{sql}, flushed: {flushed}");
        }
        db.flush().await;
    }
}
