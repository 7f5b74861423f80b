//! Every kind of statement, and what is wrong with wrong ones.

use crate::support::{Fixture, run};
use shoal_query::datafusion::arrow::datatypes::Schema;
use shoal_query::datafusion::common::ScalarValue;
use shoal_query::{Output, SessionOptions};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_made_described_altered_and_dropped() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE cpu (ts TIMESTAMP(3) NOT NULL, hostname TEXT, usage DOUBLE PRECISION DEFAULT 1.5, PRIMARY KEY (hostname, ts)) WITH (ttl = '30d')
        CREATE TABLE
        > CREATE TABLE cpu (a INT)
        ! duplicate_table
        > CREATE TABLE IF NOT EXISTS cpu (a INT)
        CREATE TABLE
        > DESCRIBE cpu
        ts|TIMESTAMP(3)|NO|NULL|2
        hostname|TEXT|NO|NULL|1
        usage|DOUBLE PRECISION|YES|1.5|NULL
        > SELECT statement FROM (SELECT 1) x
        ! undefined_column
        > SHOW TABLES
        public|cpu
        > SHOW TABLES LIKE 'x%'
        > ALTER TABLE cpu ADD COLUMN note TEXT, ADD COLUMN n INTEGER
        ALTER TABLE
        > ALTER TABLE cpu RENAME COLUMN note TO remark
        ALTER TABLE
        > ALTER TABLE cpu DROP COLUMN n
        ALTER TABLE
        > ALTER TABLE cpu DROP COLUMN hostname
        ! invalid_value
        > ALTER TABLE cpu ADD COLUMN x INT NOT NULL
        ! not_supported
        > ALTER TABLE cpu SET (ttl = '7d')
        ALTER TABLE
        > ALTER TABLE cpu RENAME TO cpu2
        ALTER TABLE
        > SELECT column_name, data_type, is_nullable FROM information_schema.columns WHERE table_name = 'cpu2' ORDER BY ordinal_position
        ts|timestamp without time zone|NO
        hostname|text|NO
        usage|double precision|YES
        remark|text|YES
        > SELECT column_name FROM information_schema.key_column_usage WHERE table_name = 'cpu2' ORDER BY ordinal_position
        hostname
        ts
        > SELECT table_name, mode, primary_key, time_column, ttl_ms FROM system.tables
        cpu2|upsert|hostname, ts|ts|604800000
        > SELECT count(*), sum(tables) FROM system.shards WHERE state = 'serving'
        2|1
        > SELECT id, state, leaders, replicas, statements FROM system.nodes
        standalone|up|2|2|1
        > SELECT count(*), count(DISTINCT shard), min(node), min(role), max(state) FROM system.replicas
        2|2|standalone|leader|serving
        > CREATE SCHEMA other
        CREATE SCHEMA
        > CREATE SCHEMA other
        ! duplicate_schema
        > CREATE TABLE other.t (a INT)
        CREATE TABLE
        > DROP SCHEMA other
        ! invalid_value
        > DROP SCHEMA other CASCADE
        DROP SCHEMA
        > DROP TABLE cpu2
        DROP TABLE
        > DROP TABLE cpu2
        ! undefined_table
        > DROP TABLE IF EXISTS cpu2
        DROP TABLE
        > CREATE TABLE t (a UUID)
        ! not_supported
        > CREATE TABLE t (a TEXT) WITH (moed = 'append')
        ! invalid_value
        > CREATE TABLE t (a DOUBLE PRECISION PRIMARY KEY)
        ! invalid_table_definition
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_inserted_updated_and_deleted_in_upsert_tables() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE t (k TEXT, n BIGINT, a INTEGER DEFAULT 7, b TEXT, PRIMARY KEY (k, n))
        CREATE TABLE
        > INSERT INTO t VALUES ('x', 1, 10, 'one'), ('x', 2, 20, 'two'), ('y', 1, 30, NULL)
        INSERT 0 3
        > INSERT INTO t (n, k, b) VALUES (3, 'y', 'def')
        INSERT 0 1
        > SELECT * FROM t ORDER BY k, n
        x|1|10|one
        x|2|20|two
        y|1|30|NULL
        y|3|7|def
        > INSERT INTO t (k, n, b) VALUES ('x', 1, 'uno')
        INSERT 0 1
        > SELECT a, b FROM t WHERE k = 'x' AND n = 1
        7|uno
        > INSERT INTO t (k, n) VALUES ('x', NULL)
        ! not_null_violation
        > INSERT INTO t (k) VALUES ('x')
        ! not_null_violation
        > INSERT INTO t (k, n, a) VALUES ('x', 9, 'zwei')
        ! invalid_text
        > UPDATE t SET a = a + 1, b = 'up' WHERE k = 'x'
        UPDATE 2
        > UPDATE t SET k = 'z'
        ! not_supported
        > UPDATE t SET nope = 1
        ! undefined_column
        > SELECT k, n, a, b FROM t ORDER BY k, n
        x|1|8|up
        x|2|21|up
        y|1|30|NULL
        y|3|7|def
        FLUSH
        > UPDATE t SET A = NULL WHERE n = 3
        UPDATE 1
        > DELETE FROM t WHERE b = 'up' AND a > 10
        DELETE 1
        > SELECT k, n, a, b FROM t ORDER BY k, n
        x|1|8|up
        y|1|30|NULL
        y|3|NULL|def
        > INSERT INTO t SELECT k || '2', n + 100, a, b FROM t
        INSERT 0 3
        FLUSH
        > SELECT count(*), min(n), max(k) FROM t
        6|1|y2
        > DELETE FROM t
        DELETE 6
        > SELECT count(*) FROM t
        0
        FLUSH
        > SELECT count(*) FROM t
        0
        > INSERT INTO t VALUES ('x', 1, 1, 'again')
        INSERT 0 1
        > TRUNCATE t
        TRUNCATE TABLE
        > SELECT * FROM t
        > CREATE TABLE u AS SELECT 1::BIGINT AS a, 'b' AS b
        SELECT 1
        > SELECT * FROM u
        1|b
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_tables_keep_every_row_and_delete_by_predicate() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE log (ts TIMESTAMP(9), level TEXT, n INTEGER) WITH (time_column = 'ts')
        CREATE TABLE
        > INSERT INTO log VALUES ('2024-01-01T00:00:00Z', 'info', 1), ('2024-01-01T00:00:00Z', 'info', 1), ('2024-01-02', 'warn', 2)
        INSERT 0 3
        > SELECT count(*) FROM log
        3
        FLUSH
        > INSERT INTO log VALUES ('2024-01-03', 'info', 3), ('2024-01-04', NULL, 4)
        INSERT 0 2
        > DELETE FROM log WHERE level = 'info' AND ts < TIMESTAMP '2024-01-02' + INTERVAL '2 days'
        DELETE 3
        > SELECT n FROM log ORDER BY n
        2
        4
        FLUSH
        > SELECT n FROM log ORDER BY n
        2
        4
        > INSERT INTO log VALUES ('2024-01-01', 'info', 5)
        INSERT 0 1
        > SELECT n FROM log ORDER BY n
        2
        4
        5
        > DELETE FROM log WHERE ts < now() AND level IS NULL
        DELETE 1
        > SELECT n, level FROM log ORDER BY n
        2|warn
        5|info
        > UPDATE log SET n = 1 WHERE n IN (SELECT 2)
        ! not_supported
        > DELETE FROM log WHERE n IN (SELECT 2)
        ! not_supported
        > SELECT min(ts), max(ts), count(*) FROM log
        2024-01-01T00:00:00|2024-01-02T00:00:00|2
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_statements_under_names() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE t (k BIGINT PRIMARY KEY, d DECIMAL(38, 10), ts TIMESTAMP(3))
        CREATE TABLE
        > CREATE TABLE x (k INT PRIMARY KEY, d DECIMAL(38, 20))
        CREATE TABLE
        > INSERT INTO x VALUES (7, 0.12345678901234567890)
        INSERT 0 1
        > PREPARE put (BIGINT, DECIMAL(38, 10)) AS INSERT INTO t (k, d, ts) VALUES ($1, $2, $3)
        PREPARE
        > EXECUTE put(1, 12345678901234567890.0123456789, '2026-01-01 02:00')
        INSERT 0 1
        > EXECUTE put(1 + 1, -0.1, NULL)
        INSERT 0 1
        > PREPARE find AS SELECT k, d FROM t WHERE d < $1 ORDER BY k
        PREPARE
        > EXECUTE find(1e20)
        1|12345678901234567890.0123456789
        2|-0.1000000000
        > EXECUTE find('0')
        2|-0.1000000000
        > PREPARE wide (NUMERIC) AS SELECT k FROM t WHERE d * 1 < $1 + 0 ORDER BY k
        PREPARE
        > EXECUTE wide(1e20)
        1
        2
        > PREPARE fine (DECIMAL) AS SELECT k FROM x WHERE d = $1
        PREPARE
        > EXECUTE fine(0.12345678901234567890)
        7
        > EXECUTE find
        ! undefined_parameter
        > EXECUTE fnid(1)
        ! undefined_statement
        > PREPARE find AS SELECT 1
        ! duplicate_statement
        > PREPARE bad AS SELECT nothing FROM t
        ! undefined_column
        > PREPARE bad AS DROP TABLE t
        ! not_supported
        > DEALLOCATE find
        DEALLOCATE
        > EXECUTE find(1)
        ! undefined_statement
        > DEALLOCATE ALL
        DEALLOCATE ALL
        > EXECUTE put(1, 1, NULL)
        ! undefined_statement
        ",
    )
    .await;
    db.ok("PREPARE put AS INSERT INTO t (k) VALUES (9)").await;
    let prepared = db.session.prepare("EXECUTE put", &[]).await.expect("plan");
    assert!(prepared.schema.is_none());
    assert!(prepared.parameter_types.is_empty());
    let other = db.engine.session(SessionOptions::default());
    let error = run(&other, "EXECUTE put").await.expect_err("not its own");
    assert_eq!(error.code, "undefined_statement");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_files_are_read_with_the_columns_of_today() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE t (k BIGINT PRIMARY KEY, a TEXT, b INTEGER)
        CREATE TABLE
        > INSERT INTO t VALUES (1, 'a1', 11), (2, 'a2', 12)
        INSERT 0 2
        FLUSH
        > ALTER TABLE t ADD COLUMN c DOUBLE PRECISION
        ALTER TABLE
        > SELECT * FROM t WHERE c IS NULL ORDER BY k
        1|a1|11|NULL
        2|a2|12|NULL
        > ALTER TABLE t RENAME COLUMN a TO z
        ALTER TABLE
        > ALTER TABLE t DROP COLUMN b
        ALTER TABLE
        > ALTER TABLE t ADD COLUMN b TEXT
        ALTER TABLE
        > ALTER TABLE t ADD COLUMN a BIGINT
        ALTER TABLE
        > INSERT INTO t VALUES (3, 'z3', 3.5, 'b3', 33)
        INSERT 0 1
        > SELECT * FROM t ORDER BY k
        1|a1|NULL|NULL|NULL
        2|a2|NULL|NULL|NULL
        3|z3|3.5|b3|33
        FLUSH
        > SELECT k, b, a FROM t WHERE z > 'a1' ORDER BY k
        2|NULL|NULL
        3|b3|33
        > SELECT z FROM t WHERE a IS NULL ORDER BY z
        a1
        a2
        > SELECT count(*) FROM t WHERE b = 'b3' AND k = 3
        1
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_have_settings_of_their_own() {
    let db = Fixture::new().await;
    db.script(
        "
        > SET statement_timeout = '5s'
        SET
        > SHOW statement_timeout
        5s
        > RESET statement_timeout
        RESET
        > SHOW statement_timeout
        1min
        > SET extra_float_digits TO 3
        SET
        > SET SESSION datestyle = 'ISO, MDY'
        SET
        > SHOW TIME ZONE
        UTC
        > SET TIME ZONE '+02:00'
        SET
        > SELECT to_timestamp('2024-01-01T00:00:00Z') IS NOT NULL
        true
        > SET nonsense = 1
        ! undefined_setting
        > SET consistency = 'bounded=500ms'
        SET
        > BEGIN
        BEGIN
        > COMMIT
        COMMIT
        > ROLLBACK
        ROLLBACK
        > CREATE SCHEMA mine
        CREATE SCHEMA
        > USE mine
        USE
        > CREATE TABLE t (a INT)
        CREATE TABLE
        > SHOW search_path
        mine
        > SELECT count(*) FROM t
        0
        > SHOW SCHEMAS LIKE 'm%'
        mine
        > SET search_path = public
        SET
        > SELECT count(*) FROM t
        ! undefined_table
        > SELECT count(*) FROM mine.t
        0
        ",
    )
    .await;
    let reader = db.engine.session(SessionOptions {
        read_only: true,
        ..SessionOptions::default()
    });
    let error = run(&reader, "INSERT INTO mine.t VALUES (1)")
        .await
        .expect_err("read-only");
    assert_eq!((error.code, error.sqlstate), ("read_only", "25006"));
    let error = run(&reader, "CREATE TABLE x (a INT)")
        .await
        .expect_err("read-only");
    assert_eq!(error.code, "read_only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_point_at_the_place_and_name_the_nearest() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE cpu (hostname TEXT PRIMARY KEY, usage_user INT)")
        .await;
    let error = db.err("SELECT usage_user\nFROM cpi").await;
    assert_eq!((error.code, error.sqlstate), ("undefined_table", "42P01"));
    assert_eq!(error.position, Some((2, 6)), "{error:?}");
    assert!(
        error.hint.as_deref().unwrap_or("").contains("\"cpu\""),
        "{error:?}"
    );
    let error = db.err("SELECT hostname, usage_usr FROM cpu").await;
    assert_eq!((error.code, error.sqlstate), ("undefined_column", "42703"));
    assert_eq!(error.position, Some((1, 18)), "{error:?}");
    assert!(
        error.hint.as_deref().unwrap_or("").contains("usage_user"),
        "{error:?}"
    );
    let error = db.err("SELECT avgg(usage_user) FROM cpu").await;
    assert_eq!(
        (error.code, error.sqlstate),
        ("undefined_function", "42883")
    );
    assert!(
        error.hint.as_deref().unwrap_or("").contains("avg"),
        "{error:?}"
    );
    let error = db.err("SELEC 1").await;
    assert_eq!((error.code, error.position), ("syntax_error", Some((1, 1))));
    let error = db.err("SELECT 1/0").await;
    assert_eq!((error.code, error.sqlstate), ("division_by_zero", "22012"));
    let error = db.err("SELECT 'x'::INT").await;
    assert_eq!(error.sqlstate, "22P02", "{error:?}");
    let error = db
        .err("SELECT hostname FROM cpu WHERE usage_user > 'a'")
        .await;
    assert!(
        ["invalid_text", "type_mismatch"].contains(&error.code),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_know_their_types_and_follow_the_schema() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, a TEXT)").await;
    let insert = db
        .session
        .prepare("INSERT INTO t (k, a) VALUES ($1, $2)", &[])
        .await
        .expect("prepare");
    assert_eq!(insert.parameter_types.len(), 2);
    assert!(insert.schema.is_none());
    for k in 0..5_i64 {
        let params = [ScalarValue::from(k), ScalarValue::from(format!("v{k}"))];
        db.session
            .execute_prepared(&insert, &params)
            .await
            .expect("insert");
    }
    let select = db
        .session
        .prepare("SELECT a FROM t WHERE k = $1", &[])
        .await
        .expect("prepare");
    assert_eq!(
        select.parameter_types,
        [shoal_query::datafusion::arrow::datatypes::DataType::Int64]
    );
    assert_eq!(select.schema.as_ref().expect("rows").fields().len(), 1);
    let row = |k: i64| {
        let select = select.clone();
        let db = &db;
        async move {
            let out = db
                .session
                .execute_prepared(&select, &[ScalarValue::from(k)])
                .await
                .expect("select");
            crate::support::rows_of(out).await.expect("rows")
        }
    };
    assert_eq!(row(3).await, ["v3"]);
    db.ok("ALTER TABLE t ADD COLUMN b INT").await;
    assert_eq!(row(4).await, ["v4"]);
    let error = db
        .session
        .execute_prepared(&select, &[])
        .await
        .expect_err("no value");
    assert_eq!(error.code, "undefined_parameter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_goes_to_files_and_back() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (k BIGINT PRIMARY KEY, a TEXT)").await;
    db.ok("INSERT INTO t VALUES (1, 'x'), (2, 'y, z'), (3, NULL)")
        .await;
    db.ok("CREATE TABLE u (k BIGINT PRIMARY KEY, a TEXT)").await;
    for (file, options) in [
        ("t.parquet", ""),
        ("t.csv", " WITH (FORMAT csv, HEADER true)"),
    ] {
        let path = db.dir.path().join(file).display().to_string();
        assert_eq!(
            db.ok(&format!("COPY t TO '{path}'{options}")).await,
            ["COPY 3"]
        );
        db.ok("TRUNCATE u").await;
        assert_eq!(
            db.ok(&format!("COPY u FROM '{path}'{options}")).await,
            ["COPY 3"]
        );
        let rows = db.ok("SELECT * FROM u ORDER BY k").await;
        assert_eq!(rows[..2], ["1|x", "2|y, z"], "{file}");
    }
    let closed = Fixture::with(|config| config.copy_files = false).await;
    closed.ok("CREATE TABLE t (k BIGINT PRIMARY KEY)").await;
    let error = closed.err("COPY t TO '/tmp/never.csv'").await;
    assert_eq!((error.code, error.sqlstate), ("not_allowed", "42501"));
}

/// PostgreSQL gives each item of the list its column, whatever it is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn result_columns_may_have_one_name() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE r (k INT PRIMARY KEY, v INT)
        CREATE TABLE
        > INSERT INTO r SELECT 1, 1
        INSERT 0 1
        > SELECT 1, 1
        1|1
        > SELECT v, V, r.v AS k, k FROM r WHERE v = 1 ORDER BY v
        1|1|1|1
        > SELECT *, v FROM r
        1|1|1
        > SELECT count(*), count(*), v FROM r GROUP BY v
        1|1|1
        > SELECT *, -v AS less, v FROM r ORDER BY less
        1|1|-1|1
        > SELECT *, -v AS v, v FROM r
        1|1|-1|1
        > SELECT v, v FROM r ORDER BY nothing
        ! undefined_column
        > SELECT k, k FROM r UNION ALL SELECT 2, 2 ORDER BY 1
        1|1
        2|2
        > SELECT x FROM (SELECT 1 AS x, 2 AS x) AS s
        ! invalid_query
        > SELECT v, v, nothing FROM r
        ! undefined_column
        > CREATE TABLE s AS SELECT v, v FROM r
        ! invalid_query
        ",
    )
    .await;
    for sql in [
        "SELECT v, v, k AS v FROM r",
        "SELECT k, k AS v, v, v FROM r",
    ] {
        let prepared = db.session.prepare(sql, &[]).await.expect("prepared");
        let output = db.session.execute(sql, &[]).await.expect("rows");
        let Output::Rows { schema, .. } = output else {
            panic!("no rows");
        };
        let names = |schema: &Schema| {
            let names = schema.fields().iter().map(|f| f.name().clone());
            names.collect::<Vec<_>>().join(" ")
        };
        let wanted = if sql.contains("AS v FROM") {
            "v v v"
        } else {
            "k v v v"
        };
        assert_eq!(names(&schema), wanted);
        assert_eq!(names(&prepared.schema.expect("columns")), wanted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn integers_that_do_not_fit_are_errors() {
    let db = Fixture::new().await;
    db.script(
        r"
        > CREATE TABLE i (k INT PRIMARY KEY, b BIGINT, s SMALLINT)
        CREATE TABLE
        > INSERT INTO i VALUES (1, 9223372036854775807, 32767), (2, -9223372036854775808, 1)
        INSERT 0 2
        > SELECT b + 1 FROM i
        ! out_of_range
        > SELECT b - 1 FROM i WHERE k = 2
        ! out_of_range
        > SELECT b * 2 FROM i
        ! out_of_range
        > SELECT -b FROM i WHERE k = 2
        ! out_of_range
        > SELECT 9223372036854775807 + 1
        ! out_of_range
        > SELECT k - b + 1 FROM i WHERE k = 1
        -9223372036854775805
        > SELECT 2 * k + 10 - k * 3 FROM i ORDER BY k
        9
        8
        > INSERT INTO i VALUES (3, 9223372036854775807 + 1, 1)
        ! out_of_range
        > UPDATE i SET b = b + 1
        ! out_of_range
        > UPDATE i SET s = s + 1
        ! out_of_range
        > SELECT k + 1, -k, k * 2 - 1, b - 1, -(-5) FROM i WHERE k + 0 = 1 GROUP BY k, b
        2|-1|1|9223372036854775806|5
        > SELECT k * 2 AS d, count(*) FROM i GROUP BY k * 2 HAVING count(*) + 1 > 1 ORDER BY k * 2
        2|1
        4|1
        > SELECT b, s FROM i ORDER BY k
        9223372036854775807|32767
        -9223372036854775808|1
        ",
    )
    .await;
    let error = db.err("SELECT b + 1 FROM i WHERE k = 1").await;
    assert_eq!(error.sqlstate, "22003");
    assert_eq!(
        error.message,
        "bigint out of range: 9223372036854775807 + 1"
    );
}
