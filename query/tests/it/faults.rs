//! Values that their columns cannot take: the error names the column, the row and the place.

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_names_column_row_and_place() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, s SMALLINT, ts TIMESTAMP(3), x TEXT NOT NULL)")
        .await;
    db.ok("CREATE TABLE src (k BIGINT PRIMARY KEY, x TEXT)")
        .await;
    db.ok("INSERT INTO src VALUES (1, 'one')").await;
    for (sql, code, parts, position) in [
        (
            "INSERT INTO t VALUES (1, 1, NULL, 'a'), ('abc', 2, NULL, 'b')",
            "invalid_text",
            ["\"k\"", "row 2", "\"abc\""],
            Some((1, 42)),
        ),
        (
            "INSERT INTO t (x, s, k) VALUES ('a', 70000, 1)",
            "out_of_range",
            ["\"s\"", "row 1", "70000"],
            Some((1, 38)),
        ),
        (
            "INSERT INTO t (k, ts, x)\n  VALUES (1, 'soon', 'soon')",
            "invalid_text",
            ["\"ts\"", "row 1", "\"soon\""],
            Some((2, 14)),
        ),
        (
            "INSERT INTO t VALUES (1, 1, NULL, 'a'), (2, 2, NULL, NULL)",
            "not_null_violation",
            ["\"x\"", "row 2", "NOT NULL"],
            Some((1, 54)),
        ),
        (
            "INSERT INTO t VALUES (NULL, 1, NULL, 'a')",
            "not_null_violation",
            ["\"k\"", "row 1", "NOT NULL"],
            Some((1, 23)),
        ),
        (
            "INSERT INTO t (k, x, s) SELECT k, upper(x), x FROM src",
            "invalid_text",
            ["\"s\"", "one", "Int16"],
            None,
        ),
        (
            "INSERT INTO t (k, x) SELECT k, NULL FROM src",
            "not_null_violation",
            ["\"x\"", "null", "NOT NULL"],
            None,
        ),
        (
            "UPDATE t SET x = 'b', s = 'abc' WHERE k = 1",
            "invalid_text",
            ["\"s\"", "smallint", "\"abc\""],
            Some((1, 27)),
        ),
    ] {
        let error = db.err(sql).await;
        assert_eq!(
            (error.code, error.position),
            (code, position),
            "{sql}: {error}"
        );
        for part in parts {
            assert!(error.message.contains(part), "{sql}: no {part} in {error}");
        }
    }
    assert_eq!(db.ok("SELECT count(*) FROM t").await, ["0"]);
}
