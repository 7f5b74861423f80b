//! Numeric literals where they meet DECIMAL, and where they do not.

use crate::support::{Fixture, rows_of};
use shoal_query::Output;
use shoal_query::datafusion::arrow::datatypes::DataType;
use shoal_query::datafusion::common::ScalarValue;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decimals_are_stored_and_compared_digit_by_digit() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (k INT PRIMARY KEY, d DECIMAL(38, 10), m DECIMAL(4, 2) DEFAULT 0.125, u DOUBLE PRECISION)
        CREATE TABLE
        > INSERT INTO t (k, d) VALUES (1, 9999999999999999999999999999.9999999999), (2, -0.1), (3, 12345678901234567890123), (4, '1.1'), (5, 1e-10)
        INSERT 0 5
        > SELECT k, d, m FROM t ORDER BY k
        1|9999999999999999999999999999.9999999999|0.13
        2|-0.1000000000|0.13
        3|12345678901234567890123.0000000000|0.13
        4|1.1000000000|0.13
        5|0.0000000001|0.13
        FLUSH
        > SELECT k FROM t WHERE d = 9999999999999999999999999999.9999999999 OR d = -0.1 ORDER BY k
        1
        2
        > SELECT k FROM t WHERE d IN (1.1, 12345678901234567890123) ORDER BY k
        3
        4
        > SELECT k FROM t WHERE d BETWEEN 0.00000000009 AND 1.0999999999999999999999
        5
        > SELECT k FROM t WHERE d > 9999999999999999999999999999.99999999985 OR d >= 1e300
        1
        > SELECT k FROM t WHERE d < -0.09999999999999 AND d > -1e300
        2
        > SELECT count(*) FROM t WHERE d = 1.10000000001
        0
        > SELECT count(*) FROM t WHERE d = 1 + 0.1
        1
        > UPDATE t SET d = d + 0.1, m = 1.005 WHERE k = 4
        UPDATE 1
        > SELECT d, m, d * 1.5, coalesce(NULL, d, 0.5), CASE WHEN k = 4 THEN 0.123 ELSE d END FROM t WHERE k = 4
        1.2000000000|1.01|1.80000000000|1.2000000000|0.1230000000
        > UPDATE t SET d = 0.1 WHERE k = 4
        UPDATE 1
        > DELETE FROM t WHERE d = 0.1
        DELETE 1
        > INSERT INTO t (k, d) SELECT 6, 99999999999999.123456789
        INSERT 0 1
        > SELECT d FROM t WHERE k = 6
        99999999999999.1234567890
        > CREATE TABLE c AS SELECT 1.5 AS f, d * 1.1 AS e, 0.30000000000000004 AS g FROM t WHERE k = 2
        SELECT 1
        > SELECT * FROM c
        1.5|-0.11000000000|0.30000000000000004
        > SELECT data_type, numeric_scale FROM information_schema.columns WHERE table_name = 'c' ORDER BY ordinal_position
        double precision|NULL
        numeric|11
        double precision|NULL
        ",
    )
    .await;
}

/// A statement's first column.
async fn type_of(db: &Fixture, sql: &str) -> DataType {
    match db.session.execute(sql, &[]).await.expect("rows") {
        Output::Rows { schema, .. } => schema.field(0).data_type().clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_decimal_numbers_stay_doubles() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k INT PRIMARY KEY, u DOUBLE PRECISION, d DECIMAL(10, 2))")
        .await;
    for sql in [
        "SELECT 1.5",
        "SELECT 0.30000000000000004",
        "SELECT 123456789012345678901234",
        "SELECT u * 1.5 FROM t",
        "SELECT u + 0.30000000000000004 FROM t",
        "SELECT d * u FROM t",
    ] {
        assert_eq!(type_of(&db, sql).await, DataType::Float64, "{sql}");
    }
    db.script(
        r"
        > SELECT 0.1 + 0.2, 0.30000000000000004, 1e400
        0.30000000000000004|0.30000000000000004|inf
        > INSERT INTO t VALUES (1, 0.30000000000000004, 1), (2, 90.5, 2.5)
        INSERT 0 2
        > SELECT k FROM t WHERE u = 0.30000000000000004
        1
        > SELECT k FROM t WHERE u > 90.499999999999999999
        ",
    )
    .await;
    // Not the column is cast, so that its statistics can be used.
    for number in ["90.25", "90.2500000000000000001"] {
        let plan = db
            .ok(&format!("EXPLAIN SELECT k FROM t WHERE u > {number}"))
            .await;
        let plan = plan.join("\n");
        assert!(plan.contains("Float64(90.25)"), "{plan}");
        assert!(!plan.contains("CAST"), "{plan}");
    }
    let plan = db
        .ok("EXPLAIN SELECT k FROM t WHERE d > 90.25")
        .await
        .join("\n");
    assert!(plan.contains("Decimal128(90.25,10,2)"), "{plan}");
    assert!(!plan.contains("CAST"), "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_does_not_fit_is_named_with_its_place() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k INT PRIMARY KEY, d DECIMAL(4, 2))")
        .await;
    for (sql, message, position) in [
        (
            "INSERT INTO t VALUES (1, 99.99), (2, 99.995)",
            "column \"d\", row 2: numeric field overflow: 99.995 does not fit DECIMAL(4, 2)",
            (1, 38),
        ),
        (
            "INSERT INTO t (d, k) VALUES (1e30, 1)",
            "column \"d\", row 1: numeric field overflow: 1000000000000000000000000000000 does not fit DECIMAL(4, 2)",
            (1, 30),
        ),
        (
            "UPDATE t SET d = -100",
            "column \"d\": numeric field overflow: -100 does not fit DECIMAL(4, 2)",
            (1, 19),
        ),
    ] {
        let error = db.err(sql).await;
        assert_eq!(
            (
                error.code,
                error.sqlstate,
                error.message.as_str(),
                error.position
            ),
            ("out_of_range", "22003", message, Some(position)),
            "{sql}"
        );
    }
    let error = db.err("SELECT '1,5'::DECIMAL(4, 2)").await;
    assert_eq!(
        error.message,
        "invalid input syntax for type numeric: \"1,5\""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_as_exact_as_literals() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k INT PRIMARY KEY, d DECIMAL(38, 10))")
        .await;
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let all = "9999999999999999999999999999.9999999999";
    for (k, value) in [
        (1, text(all)),
        (2, ScalarValue::Float64(Some(1.1))),
        (3, ScalarValue::Int64(Some(7))),
        (4, ScalarValue::Decimal128(Some(25), 3, 1)),
    ] {
        let params = [ScalarValue::Int64(Some(k)), value];
        let sql = "INSERT INTO t VALUES ($1, $2)";
        db.session.execute(sql, &params).await.expect("inserted");
    }
    let rows = db.ok("SELECT d FROM t ORDER BY k").await;
    let expected = [all, "1.1000000000", "7.0000000000", "2.5000000000"];
    assert_eq!(rows, expected);
    for (k, value) in [
        ("1", text(all)),
        ("2", ScalarValue::Float64(Some(1.1))),
        ("2", text("1.1")),
        ("4", ScalarValue::Decimal128(Some(250), 5, 2)),
    ] {
        let sql = "SELECT k FROM t WHERE d = $1";
        let found = db.session.execute(sql, &[value]).await.expect("rows");
        assert_eq!(rows_of(found).await.expect("rows"), [k]);
    }
}

/// What an append table deletes is kept as text and read again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_kept_as_a_predicate_is_exact_too() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE a (d DECIMAL(38, 10), u DOUBLE PRECISION) WITH (mode = 'append')
        CREATE TABLE
        > INSERT INTO a VALUES (9999999999999999999999999999.9999999999, 1), (9999999999999999999999999999.9999999998, 2), (1.1, 0.30000000000000004)
        INSERT 0 3
        FLUSH
        > DELETE FROM a WHERE d = 9999999999999999999999999999.9999999999
        DELETE 1
        > SELECT u FROM a ORDER BY u
        0.30000000000000004
        2.0
        > DELETE FROM a WHERE u = 0.30000000000000004
        DELETE 1
        > SELECT d FROM a
        9999999999999999999999999999.9999999998
        ",
    )
    .await;
}

/// A double keeps 15 digits on its way into a `DECIMAL`, and text may have an exponent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_doubles_and_text_become_decimals_digit_by_digit() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE f (k INT PRIMARY KEY, x DOUBLE PRECISION, s TEXT)
        CREATE TABLE
        > INSERT INTO f VALUES (1, 1234567890123.45, '1e3'), (2, -0.1, ' 2.50 ')
        INSERT 0 2
        > CREATE TABLE d (k INT PRIMARY KEY, a DECIMAL(20, 5), b DECIMAL(10, 2))
        CREATE TABLE
        > INSERT INTO d SELECT k, x, s FROM f
        INSERT 0 2
        > SELECT k, a, b FROM d ORDER BY k
        1|1234567890123.45000|1000.00
        2|-0.10000|2.50
        > INSERT INTO d SELECT k + 2, x, x + 0 FROM f
        ! out_of_range
        ",
    )
    .await;
}
