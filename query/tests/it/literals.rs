//! Text literals for columns of other types.

use crate::support::{Fixture, rows_of};
use shoal_query::datafusion::common::ScalarValue;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_times_are_written_as_in_postgresql() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE u (k BYTEA, ts TIMESTAMP(3), tz TIMESTAMPTZ(3), b BYTEA, PRIMARY KEY (k))
        CREATE TABLE
        > INSERT INTO u VALUES ('\x01', '2026-01-01 02:00', '2026-01-01 10:00:00+02', '\xdead'), ('\x02', '2026-01-02T02:00Z', '2026-01-01', 'a\\b')
        INSERT 0 2
        > SELECT * FROM u WHERE b = '\xDEAD'
        01|2026-01-01T02:00:00|2026-01-01T08:00:00Z|dead
        > SELECT b FROM u WHERE k IN ('\x02', '\x03')
        615c62
        > SELECT k FROM u WHERE ts >= '2026-01-02 01:59'
        02
        > SELECT k FROM u WHERE tz BETWEEN '2026-01-01T09:00+01:00' AND '2026-01-01 11:00 +0200'
        01
        > SELECT count(*) FROM u WHERE ts = TIMESTAMP '2026-01-01 02:00' AND '2026-01-01 10:00+02'::timestamptz = tz
        1
        > UPDATE u SET b = '\x00ff', ts = '2026-03-01 00:30' WHERE k = '\x01'
        UPDATE 1
        > SELECT ts, b FROM u WHERE k = '\x01'
        2026-03-01T00:30:00|00ff
        > SET TIME ZONE 'Europe/Berlin'
        SET
        > SELECT k FROM u WHERE tz = '2026-01-01 09:00'
        01
        > DELETE FROM u WHERE k = '\x02'
        DELETE 1
        > CREATE TABLE a (ts TIMESTAMP(3), b BYTEA) WITH (mode = 'append')
        CREATE TABLE
        > INSERT INTO a VALUES ('2026-01-01 02:00', '\x01'), ('2026-01-01 03:00', '\x02')
        INSERT 0 2
        > DELETE FROM a WHERE b = '\x01' AND ts < '2026-01-01 02:30'
        DELETE 1
        > SELECT b FROM a
        02
        ",
    )
    .await;
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let sql = "SELECT count(*) FROM u WHERE k = $1 AND ts = $2";
    let params = [text("\\x01"), text("2026-03-01 00:30")];
    let found = db.session.execute(sql, &params).await.expect("rows");
    assert_eq!(rows_of(found).await.expect("rows"), ["1"]);
    let sql = "INSERT INTO u (k, b) VALUES ($1, $2)";
    let params = [text("\\x07"), text("\\x08")];
    db.session.execute(sql, &params).await.expect("inserted");
    assert_eq!(db.ok("SELECT b FROM u WHERE k = '\\x07'").await, ["08"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_literal_is_pointed_at() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE u (k INT, ts TIMESTAMP(3), b BYTEA, PRIMARY KEY (k))")
        .await;
    for (sql, position) in [
        ("SELECT *\nFROM u WHERE ts > '2026-01-01 2'", (2, 19)),
        ("SELECT 'é', b = '\\xf' FROM u", (1, 17)),
        ("INSERT INTO u VALUES (1, 'soon', NULL)", (1, 26)),
        ("SELECT CAST('one' AS INT)", (1, 13)),
    ] {
        let error = db.err(sql).await;
        assert_eq!(
            (error.code, error.sqlstate, error.position),
            ("invalid_text", "22P02", Some(position)),
            "{sql}: {error}"
        );
    }
}

/// As with literals; stored, a parameter is cut to what the column holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_are_compared_to_the_last_digit_of_a_parameter() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE m (k INT PRIMARY KEY, ts TIMESTAMP(3))")
        .await;
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let micros = |micros| ScalarValue::TimestampMicrosecond(Some(micros), None);
    for (k, value) in [
        (1, text("1970-01-01 00:00:00.0019")),
        (2, micros(2_000)),
        (3, text("1970-01-01 00:00:00.003")),
    ] {
        let params = [ScalarValue::Int32(Some(k)), value];
        let sql = "INSERT INTO m VALUES ($1, $2), (10 * $1, $2)";
        db.session.execute(sql, &params).await.expect("inserted");
    }
    db.ok("DELETE FROM m WHERE k >= 10").await;
    // Digits are left out alike, before 1970 too.
    for (k, value) in [
        (11, text("1969-12-31 23:59:58.1239")),
        (12, micros(-1_876_100)),
    ] {
        let params = [ScalarValue::Int32(Some(k)), value];
        let sql = "INSERT INTO m VALUES ($1, $2)";
        db.session.execute(sql, &params).await.expect("inserted");
    }
    db.ok("INSERT INTO m VALUES (13, '1969-12-31 23:59:58.1239'), (14, TIMESTAMP '1969-12-31 23:59:58.1239')")
        .await;
    assert_eq!(
        db.ok("SELECT DISTINCT ts FROM m WHERE k > 10").await,
        ["1969-12-31T23:59:58.123"]
    );
    db.ok("DELETE FROM m WHERE k > 10").await;
    for (condition, value, wanted) in [
        ("ts = $1", text("1970-01-01 00:00:00.0015"), ""),
        ("ts = $1", text("1970-01-01 00:00:00.0010"), "1"),
        ("ts > $1", text("1970-01-01 00:00:00.0015"), "2 3"),
        ("ts <= $1", text("1970-01-01 00:00:00.0025"), "1 2"),
        ("ts <> $1", micros(1_500), "1 2 3"),
        ("ts = $1", micros(3_000), "3"),
        ("ts >= $1", micros(2_001), "3"),
    ] {
        let sql = format!("SELECT k FROM m WHERE {condition} ORDER BY k");
        let found = db.session.execute(&sql, std::slice::from_ref(&value)).await;
        let rows = rows_of(found.expect("rows")).await.expect("rows");
        assert_eq!(rows.join(" "), wanted, "{condition} {value}");
    }
}

/// A moment between two of the column's is equal to none of them, and later than the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_are_compared_to_the_last_digit_of_the_literal() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE m (k INT PRIMARY KEY, ts TIMESTAMP(3), tz TIMESTAMPTZ(0))
        CREATE TABLE
        > INSERT INTO m VALUES (1, '2026-01-01 00:00:00.001', '2026-01-01 00:00:01Z'), (2, '2026-01-01 00:00:00.002', '2026-01-01 00:00:02Z'), (3, NULL, NULL), (4, '1960-01-01 00:00:00.001', '1960-01-01 00:00:01Z')
        INSERT 0 4
        > SELECT k FROM m WHERE ts = '2026-01-01 00:00:00.0015' OR tz = '2026-01-01 00:00:01.5Z'
        > SELECT k FROM m WHERE ts = TIMESTAMP '2026-01-01 00:00:00.0015' OR '2026-01-01 00:00:00.0019' = ts
        > SELECT k FROM m WHERE ts <> '2026-01-01 00:00:00.0015' ORDER BY k
        1
        2
        4
        > SELECT k FROM m WHERE ts < '2026-01-01 00:00:00.0015' ORDER BY k
        1
        4
        > SELECT k FROM m WHERE TIMESTAMP '2026-01-01 00:00:00.0015' > ts ORDER BY k
        1
        4
        > SELECT k FROM m WHERE ts > '2026-01-01 00:00:00.0015'
        2
        > SELECT k FROM m WHERE ts >= TIMESTAMP '2026-01-01 00:00:00.0015'
        2
        > SELECT k FROM m WHERE ts BETWEEN '1960-01-01 00:00:00.0005' AND '2026-01-01 00:00:00.0015' ORDER BY k
        1
        4
        > SELECT k FROM m WHERE ts NOT BETWEEN '1960-01-01 00:00:00.0015' AND '2026-01-01 00:00:00.0015' ORDER BY k
        2
        4
        > SELECT k FROM m WHERE ts IN ('2026-01-01 00:00:00.0015', '2026-01-01 00:00:00.002')
        2
        > SELECT k FROM m WHERE ts IN ('2026-01-01 00:00:00.0015', '2026-01-01 00:00:00.0025')
        > SELECT k FROM m WHERE tz > '2026-01-01 00:00:01.5+00' OR tz < '1960-01-01 00:00:01.5Z' ORDER BY k
        2
        4
        > SELECT k FROM m WHERE ts = '2026-01-01 00:00:00.0010' OR ts = TIMESTAMP '2026-01-01 00:00:00.002000' ORDER BY k
        1
        2
        > SELECT k FROM m WHERE ts IS NOT DISTINCT FROM '2026-01-01 00:00:00.0015' OR ts IS DISTINCT FROM TIMESTAMP '2026-01-01 00:00:00.0015' AND k = 3
        3
        > SELECT k FROM m WHERE ts < '9999-12-31' AND ts >= '1600-01-01' AND ts BETWEEN '1600-01-01' AND '2026-01-01 00:00:00.001' ORDER BY k
        1
        4
        > DELETE FROM m WHERE ts = '2026-01-01 00:00:00.0019'
        DELETE 0
        > CREATE TABLE n (ts TIMESTAMP(3), v INT) WITH (mode = 'append')
        CREATE TABLE
        > INSERT INTO n VALUES ('2026-01-01 00:00:00.001', 1), ('2026-01-01 00:00:00.002', 2)
        INSERT 0 2
        > DELETE FROM n WHERE ts = '2026-01-01 00:00:00.0019'
        DELETE 0
        > DELETE FROM n WHERE ts < '2026-01-01 00:00:00.0019'
        DELETE 1
        > SELECT v FROM n
        2
        ",
    )
    .await;
}
