//! Conditions guard what stands behind them; sorts below unions.

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_guards_what_stands_behind_it() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (ts TIMESTAMP(3) NOT NULL, i BIGINT, s TEXT) WITH (time_column = 'ts', mode = 'append')
        CREATE TABLE
        > INSERT INTO t VALUES (1, 0, 'x'), (2, 1, '10'), (3, 2, '2'), (4, NULL, NULL), (5, 0, 'y'), (6, 1, '7')
        INSERT 0 6
        > SELECT ts FROM t WHERE 10 / i > 7 ORDER BY ts
        ! division_by_zero
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE i <> 0 AND 10 / i > 7 ORDER BY ts
        2
        6
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE s <> 'q' AND i <> 0 AND i < 9 AND 10 / i > 7 AND 10 % i = 0 ORDER BY ts
        2
        6
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE i = 0 OR 10 / i > 7 ORDER BY ts
        1
        2
        5
        6
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE NOT (i = 0 OR 10 / i > 7) ORDER BY ts
        3
        > SELECT i <> 0 AND 10 / i > 7, i = 0 OR 10 / i > 7 FROM t ORDER BY ts
        false|true
        true|true
        false|false
        NULL|NULL
        false|true
        true|true
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE CASE WHEN i <> 0 THEN 10 / i > 7 ELSE false END ORDER BY ts
        2
        6
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE s ~ '^[0-9]+$' AND CAST(s AS BIGINT) > 5 ORDER BY ts
        2
        6
        > SELECT arrow_cast(ts, 'Int64') FROM t WHERE i < 2 AND i * 9223372036854775807 > 5 ORDER BY ts
        2
        6
        > SELECT i, count(*) FROM t GROUP BY i HAVING i <> 0 AND 10 / i > 0 ORDER BY i
        1|2
        2|1
        > SELECT a.i, b.i FROM t a JOIN t b ON a.ts = b.ts WHERE a.i <> 0 AND 10 / a.i > 7 ORDER BY a.ts
        1|1
        1|1
        > DELETE FROM t WHERE i <> 0 AND 10 / i > 7 AND s = '7'
        DELETE 1
        FLUSH
        > UPDATE t SET s = 'z' WHERE i <> 0 AND 10 / i > 7
        UPDATE 1
        > SELECT i, s FROM t WHERE i <> 0 AND 10 / i > 4 ORDER BY ts
        1|z
        2|2
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unions_sort_by_a_column_that_stands_twice() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (ts TIMESTAMP(3) NOT NULL, i BIGINT) WITH (time_column = 'ts', mode = 'append')
        CREATE TABLE
        > INSERT INTO t VALUES (1, 3), (2, 1)
        INSERT 0 2
        FLUSH
        > INSERT INTO t VALUES (86400001, 2), (3, 4)
        INSERT 0 2
        > (SELECT i, i AS j FROM t) UNION ALL (SELECT i, i AS j FROM t WHERE i > 2) ORDER BY j
        1|1
        2|2
        3|3
        3|3
        4|4
        4|4
        > SELECT i, i AS j, arrow_cast(ts, 'Int64') AS k FROM t ORDER BY j DESC
        4|4|3
        3|3|1
        2|2|86400001
        1|1|2
        > SELECT ts AS t1, i, ts AS t2 FROM t ORDER BY t2, i LIMIT 1
        1970-01-01T00:00:00.001|3|1970-01-01T00:00:00.001
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_arrays_compare_whole_moments() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (t3 TIMESTAMP(3) NOT NULL, t9 TIMESTAMP(9)) WITH (time_column = 't3', mode = 'append')
        CREATE TABLE
        > INSERT INTO t VALUES ('2026-01-01 00:00:00.123', '2026-01-01 00:00:00.123456789')
        INSERT 0 1
        > SELECT count(*) FROM t WHERE t3 IN ('2026-01-01 00:00:00.1234', '2026-01-02')
        0
        > SELECT count(*) FROM t WHERE t3 = ANY(ARRAY['2026-01-01 00:00:00.1234', '2026-01-02'])
        0
        > SELECT count(*) FROM t WHERE t3 = ANY(ARRAY[TIMESTAMP '2026-01-01 00:00:00.1234'])
        0
        > SELECT count(*) FROM t WHERE t3 = ANY(ARRAY['2026-01-01 00:00:00.123'])
        1
        > SELECT count(*) FROM t WHERE t3 IN ('9999-01-01', '2026-01-01 00:00:00.123')
        1
        > SELECT DISTINCT (t3 > '2020-01-01') IS NOT TRUE FROM t
        false
        > SELECT count(DISTINCT (t9 IS NOT NULL) IS NOT TRUE) FROM t
        1
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_of_integers_fit_or_fail() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (ts TIMESTAMP(3) NOT NULL, g BIGINT, i BIGINT, n INTEGER) WITH (time_column = 'ts', mode = 'append')
        CREATE TABLE
        > INSERT INTO t VALUES (1, 1, 9223372036854775807, 1), (2, 1, -1, 2), (3, 2, 9223372036854775807, NULL), (4, 2, 5, 3), (5, 3, NULL, NULL)
        INSERT 0 5
        > SELECT sum(i) FROM t WHERE g = 1
        9223372036854775806
        > SELECT sum(i) FROM t WHERE g = 2
        ! out_of_range
        > SELECT g, sum(i) FROM t WHERE g <> 2 GROUP BY g ORDER BY g
        1|9223372036854775806
        3|NULL
        > SELECT g, sum(i) FROM t GROUP BY g
        ! out_of_range
        > SELECT sum(i::DECIMAL(38, 0)), sum(n), sum(DISTINCT n) FROM t
        18446744073709551618|6|6
        > SELECT sum(n) OVER (ORDER BY ts ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t ORDER BY ts
        1
        3
        2
        3
        3
        > SELECT sum(i) OVER (ORDER BY ts ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t
        ! out_of_range
        > SELECT sum(i) FROM t WHERE g = 99
        NULL
        ",
    )
    .await;
}
