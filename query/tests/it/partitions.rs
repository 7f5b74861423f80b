//! Partitioned tables: rows find their partition on every way in, and are one table on every way
//! out.

use shoal_engine::EngineError;
use shoal_types::{Clock, SystemClock, TableSchema, WriteId};

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hash_partitions_are_one_table_to_every_statement() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE cpu (ts TIMESTAMP(3) NOT NULL, hostname TEXT, usage DOUBLE PRECISION, PRIMARY KEY (hostname, ts))
        >> PARTITION BY HASH (hostname) PARTITIONS 4 WITH (ttl = '3650d')
        CREATE TABLE
        > INSERT INTO cpu SELECT to_timestamp_millis(1767225600000 + v * 1000), 'host_' || (v % 100), v FROM generate_series(0, 9999) AS g(v)
        INSERT 0 10000
        > SELECT count(*), sum(usage), min(hostname), max(ts) FROM cpu
        10000|49995000.0|host_0|2026-01-01T02:46:39
        FLUSH
        > SELECT count(*), count(DISTINCT hostname) FROM cpu
        10000|100
        > SELECT count(*) FROM cpu WHERE hostname = 'host_7'
        100
        > SELECT count(*) FROM cpu WHERE hostname IN ('host_7', 'host_8', 'nobody') AND ts < '2026-01-01 00:10:00'
        12
        > SELECT hostname, max(usage) FROM cpu GROUP BY hostname ORDER BY hostname LIMIT 2
        host_0|9900.0
        host_1|9901.0
        > SELECT ts, usage FROM cpu ORDER BY ts DESC LIMIT 2
        2026-01-01T02:46:39|9999.0
        2026-01-01T02:46:38|9998.0
        > UPDATE cpu SET usage = -1 WHERE hostname = 'host_3' AND ts < '2026-01-01 01:00:00'
        UPDATE 36
        > UPDATE cpu SET usage = usage + 0.5
        UPDATE 10000
        > SELECT sum(usage) FROM cpu WHERE usage < 0
        -18.0
        > DELETE FROM cpu WHERE usage < 0
        DELETE 36
        > DELETE FROM cpu WHERE hostname IN ('host_1', 'host_2')
        DELETE 200
        > SELECT count(*) FROM cpu
        9764
        > INSERT INTO cpu VALUES ('2026-01-01', 'host_0', 7), (NULL, 'host_0', 1)
        ! not_null_violation
        > INSERT INTO cpu VALUES ('2026-01-01', 'host_0', 7), ('2026-01-01', 'new', 8)
        INSERT 0 2
        > SELECT count(*) FROM cpu a JOIN cpu b ON a.hostname = b.hostname AND a.ts = b.ts
        9765
        > ALTER TABLE cpu ADD COLUMN note TEXT
        ALTER TABLE
        > UPDATE cpu SET note = 'x' WHERE hostname = 'host_5'
        UPDATE 100
        > SELECT count(*), count(note) FROM cpu
        9765|100
        > ALTER TABLE cpu DROP COLUMN usage
        ALTER TABLE
        > SELECT count(note) FROM cpu
        100
        > TRUNCATE cpu
        TRUNCATE TABLE
        > SELECT count(*) FROM cpu
        0
        > INSERT INTO cpu VALUES ('2026-01-01', 'host_0', 'again'), ('2026-01-01', 'host_9', 'again')
        INSERT 0 2
        > SELECT hostname, note FROM cpu ORDER BY 1
        host_0|again
        host_9|again
        > DROP TABLE cpu
        DROP TABLE
        > SELECT count(*) FROM cpu
        ! undefined_table
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_partitions_are_added_and_dropped_with_their_rows() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE m (day DATE, k BIGINT, v INT, PRIMARY KEY (day, k)) PARTITION BY RANGE (day)
        >> (PARTITION jan VALUES LESS THAN ('2026-02-01'), PARTITION feb VALUES LESS THAN ('2026-03-01'))
        CREATE TABLE
        > INSERT INTO m SELECT DATE '2026-01-01' + CAST(v AS INT), v, v FROM generate_series(0, 58) AS g(v)
        INSERT 0 59
        > INSERT INTO m VALUES ('2026-01-31', 100, 1), ('2026-03-01', 1, 1)
        ! no_partition
        > SELECT count(*) FROM m
        59
        > ALTER TABLE m ADD PARTITION (PARTITION mar VALUES LESS THAN ('2026-04-01'), PARTITION later VALUES LESS THAN (MAXVALUE))
        ALTER TABLE
        > INSERT INTO m VALUES ('2026-03-01', 1, 1), ('2027-03-01', 1, 1)
        INSERT 0 2
        > SELECT name, owns, rows FROM system.partitions ORDER BY owns
        feb|FROM ('2026-02-01') TO ('2026-03-01')|28
        mar|FROM ('2026-03-01') TO ('2026-04-01')|1
        later|FROM ('2026-04-01') TO (MAXVALUE)|1
        jan|FROM (MINVALUE) TO ('2026-02-01')|31
        FLUSH
        > ALTER TABLE m DROP PARTITION jan
        ALTER TABLE
        > SELECT count(*), min(day) FROM m
        30|2026-02-01
        > INSERT INTO m VALUES ('2026-01-05', 1, 1)
        ! no_partition
        > ALTER TABLE m DROP PARTITION jan
        ! undefined_partition
        > ALTER TABLE m DROP PARTITION IF EXISTS jan
        ALTER TABLE
        > ALTER TABLE m ADD PARTITION jan VALUES LESS THAN ('2026-02-01')
        ALTER TABLE
        > INSERT INTO m VALUES ('2026-01-05', 1, 1)
        INSERT 0 1
        > SELECT count(*), min(day) FROM m
        31|2026-01-05
        > ALTER TABLE m ADD PARTITION x VALUES LESS THAN ('2026-02-15')
        ! invalid_value
        > ALTER TABLE m ADD PARTITION jan VALUES LESS THAN ('2020-02-15')
        ! duplicate_partition
        > ALTER TABLE m DROP PARTITION jan, feb, mar, later
        ! invalid_value
        > ALTER TABLE m ADD COLUMN w INT
        ALTER TABLE
        > UPDATE m SET w = 1 WHERE day >= '2026-02-15'
        UPDATE 16
        > SELECT sum(w) FROM m
        16
        > UPDATE m SET day = '2026-01-01'
        ! not_supported
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_partitions_hold_their_values_and_append_tables_may_be_partitioned_by_any_column() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE e (ts TIMESTAMP(3) NOT NULL, region TEXT, v INT) PARTITION BY LIST (region)
        >> (PARTITION eu VALUES IN ('eu-west-1', 'eu-central-1'), PARTITION us VALUES IN ('us-east-1', NULL)) WITH (mode = 'append')
        CREATE TABLE
        > INSERT INTO e VALUES ('2026-01-01', 'eu-west-1', 1), ('2026-01-01', 'us-east-1', 2), ('2026-01-02', NULL, 3), ('2026-01-02', 'eu-west-1', 1)
        INSERT 0 4
        > INSERT INTO e VALUES ('2026-01-01', 'ap-south-1', 1)
        ! no_partition
        > SELECT region, count(*) FROM e GROUP BY region ORDER BY 1 NULLS FIRST
        NULL|1
        eu-west-1|2
        us-east-1|1
        > DELETE FROM e WHERE v = 1 AND region = 'eu-west-1'
        DELETE 2
        > UPDATE e SET v = v * 10
        UPDATE 2
        > UPDATE e SET region = 'eu-west-1'
        ! not_supported
        > ALTER TABLE e DROP COLUMN region
        ! not_supported
        > SELECT sum(v) FROM e
        50
        > ALTER TABLE e ADD PARTITION ap VALUES IN ('ap-south-1', 'us-east-1')
        ! invalid_value
        > ALTER TABLE e ADD PARTITION ap VALUES IN ('ap-south-1')
        ALTER TABLE
        > INSERT INTO e VALUES ('2026-01-01', 'ap-south-1', 1)
        INSERT 0 1
        FLUSH
        > ALTER TABLE e DROP PARTITION us, eu
        ALTER TABLE
        > SELECT region, v FROM e
        ap-south-1|1
        > SELECT name, method, columns, owns FROM system.partitions
        ap|list|region|VALUES IN ('ap-south-1')
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_partition_clauses_are_refused_and_nothing_is_made() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE t (a INT, b INT, f DOUBLE PRECISION, PRIMARY KEY (a)) PARTITION BY HASH (b) PARTITIONS 4
        ! invalid_value
        > CREATE TABLE t (a INT, b INT, f DOUBLE PRECISION, PRIMARY KEY (a)) PARTITION BY HASH (c) PARTITIONS 4
        ! undefined_column
        > CREATE TABLE t (a INT, b INT, f DOUBLE PRECISION) PARTITION BY HASH (f) PARTITIONS 4
        ! invalid_value
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (10), PARTITION q VALUES LESS THAN (10))
        ! invalid_table_definition
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (MAXVALUE), PARTITION q VALUES LESS THAN (10))
        ! invalid_table_definition
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (NULL))
        ! invalid_table_definition
        > CREATE TABLE t (a SMALLINT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (70000))
        ! out_of_range
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN ('ten'))
        ! invalid_text
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY LIST (a) (PARTITION p VALUES IN (1, 2), PARTITION q VALUES IN (2))
        ! invalid_value
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY HASH (a) PARTITIONS 0
        ! syntax_error
        > CREATE TABLE t (a DATE, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (now()))
        ! invalid_table_definition
        > CREATE TABLE t (a INT, b INT, PRIMARY KEY (a)) PARTITION BY LIST (a) (PARTITION p VALUES IN (b))
        ! invalid_table_definition
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (2.7))
        ! invalid_table_definition
        > SELECT count(*) FROM system.tables WHERE table_schema = 'public'
        0
        > CREATE TABLE t (a INT, PRIMARY KEY (a)) PARTITION BY HASH (a) PARTITIONS 2
        CREATE TABLE
        > ALTER TABLE t ADD PARTITION p VALUES LESS THAN (1)
        ! invalid_table_definition
        > ALTER TABLE t DROP PARTITION p0
        ! invalid_table_definition
        > CREATE TABLE v (a INT, PRIMARY KEY (a)) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (-1))
        CREATE TABLE
        > ALTER TABLE v ADD PARTITION q VALUES IN (50)
        ! invalid_table_definition
        > CREATE TABLE u (a INT, PRIMARY KEY (a))
        CREATE TABLE
        > ALTER TABLE u DROP PARTITION p0
        ! invalid_table_definition
        > ALTER TABLE nobody DROP PARTITION p0
        ! undefined_table
        > ALTER TABLE IF EXISTS nobody DROP PARTITION p0
        ALTER TABLE
        ",
    )
    .await;
    let error = db
        .err("INSERT INTO t SELECT v FROM generate_series(1, 10) AS g(v) WHERE v > 'x'")
        .await;
    assert_ne!(error.code, "no_partition");
    db.ok("CREATE TABLE r (a INT, b TEXT, PRIMARY KEY (a, b)) PARTITION BY RANGE (a, b) (PARTITION p VALUES LESS THAN (10, 'm'))")
        .await;
    db.ok("INSERT INTO r VALUES (10, 'lzz')").await;
    let error = db.err("INSERT INTO r VALUES (1, 'a'), (10, 'm')").await;
    assert_eq!((error.code, error.sqlstate), ("no_partition", "23514"));
    assert!(
        error.message.contains("a = 10, b = 'm'") && error.message.contains("ADD PARTITION"),
        "{error}"
    );
    assert_eq!(db.ok("SELECT count(*) FROM r").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_show_create_says_makes_the_same_partitions() {
    let db = Fixture::new().await;
    db.ok("SET TIME ZONE 'Europe/Berlin'").await;
    for clause in [
        "PARTITION BY HASH (a, b) PARTITIONS 3",
        "PARTITION BY RANGE (a, b) (\n  PARTITION p VALUES LESS THAN (1, 'x'),\n  PARTITION \"Q\" VALUES LESS THAN (1, MAXVALUE),\n  PARTITION r VALUES LESS THAN (MAXVALUE, MAXVALUE)\n)",
        "PARTITION BY RANGE (z) (\n  PARTITION p VALUES LESS THAN ('2025-12-31 23:00:00Z')\n)",
        "PARTITION BY LIST (a) (\n  PARTITION p VALUES IN (NULL, 1, 2),\n  PARTITION q VALUES IN (3)\n)",
        "PARTITION BY LIST (a, b) (\n  PARTITION p VALUES IN ((1, 'x'), (2, NULL))\n)",
    ] {
        db.ok(&format!(
            "CREATE TABLE t (a INT, b TEXT, z TIMESTAMPTZ(0), v INT, PRIMARY KEY (a, b, z)) {clause}"
        ))
        .await;
        let owns = "SELECT name, owns FROM system.partitions ORDER BY 1";
        let owned = db.ok(owns).await;
        let shown = db.ok("SHOW CREATE TABLE t").await.remove(0);
        let statement = shown.split_once('|').expect("two columns").1;
        assert!(statement.contains(clause), "{statement}");
        db.ok("DROP TABLE t").await;
        db.ok(statement).await;
        assert_eq!(db.ok(owns).await, owned);
        db.ok("DROP TABLE t").await;
    }
}

/// Columns that only the home of a table has heard of, as after a node that died in the midst of
/// ALTER TABLE.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_has_not_heard_of_a_change_is_read_and_written_as_if_it_had() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (a INT, v INT, PRIMARY KEY (a)) PARTITION BY HASH (a) PARTITIONS 4")
        .await;
    db.ok("INSERT INTO t SELECT v, v FROM generate_series(1, 100) AS g(v)")
        .await;
    db.flush().await;
    let database = db.engine.database();
    let table = database.table("public", "t").expect("the table");
    let behind = |change: fn(&mut TableSchema)| {
        let table = table.clone();
        async move {
            let partitions = table.partitions();
            let home = partitions.iter().find(|p| p.id == table.id).expect("home");
            // As one partition, the home is changed alone.
            let alone = shoal_engine::TableHandle {
                table: home.id,
                layout: None,
                ..home.clone()
            };
            let changed = database
                .alter_table(&alone, &|schema| {
                    let mut schema = schema.clone();
                    change(&mut schema);
                    Ok::<_, EngineError>(Some(schema))
                })
                .await;
            changed.expect("altered");
        }
    };
    behind(|schema| {
        let id = schema.next_column_id;
        schema.next_column_id = shoal_types::ColumnId(id.0 + 1);
        schema.columns.push(shoal_types::Column {
            id,
            name: "w".into(),
            column_type: shoal_types::ColumnType::Int32,
            nullable: true,
            default: None,
        });
    })
    .await;
    assert_eq!(db.ok("SELECT count(*), count(w) FROM t").await, ["100|0"]);
    db.ok("INSERT INTO t SELECT v, v, v FROM generate_series(51, 150) AS g(v)")
        .await;
    assert_eq!(db.ok("SELECT count(*), sum(w) FROM t").await, ["150|10050"]);
    behind(|schema| schema.incarnation.0 += 1).await;
    assert_eq!(db.ok("SELECT count(*) FROM t").await, ["0"]);
    db.ok("INSERT INTO t SELECT v, v, 1 FROM generate_series(1, 20) AS g(v)")
        .await;
    assert_eq!(db.ok("SELECT count(*), sum(w) FROM t").await, ["20|20"]);
    db.flush().await;
    assert_eq!(db.ok("SELECT count(*), sum(w) FROM t").await, ["20|20"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_id_holds_for_the_rows_of_all_partitions() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE t (a INT, v INT, PRIMARY KEY (a)) PARTITION BY HASH (a) PARTITIONS 8")
        .await;
    let id: WriteId = ulid_now();
    let once = db.session.clone().with_write_id(id);
    let insert = "INSERT INTO t SELECT v, 1 FROM generate_series(1, 1000) AS g(v)";
    for _ in 0..3 {
        crate::support::run(&once, insert).await.expect("written");
        // What is done with the id is not done again over this.
        db.ok("UPDATE t SET v = v + 1").await;
    }
    assert_eq!(db.ok("SELECT count(*), sum(v) FROM t").await, ["1000|4000"]);
    let once = db.session.clone().with_write_id(ulid_now());
    for _ in 0..3 {
        crate::support::run(&once, "UPDATE t SET v = v + 10")
            .await
            .expect("updated");
    }
    assert_eq!(db.ok("SELECT sum(v) FROM t").await, ["14000"]);
}

const RANGES: &str = "PARTITION BY RANGE (k) (PARTITION a VALUES LESS THAN (10), PARTITION b VALUES LESS THAN (20), PARTITION c VALUES LESS THAN (MAXVALUE))";

/// The partitions are changed one after another; what a query within the statement says is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_within_a_change_see_the_table_as_it_was_before() {
    let db = Fixture::new().await;
    db.script(&format!(
        "
        > CREATE TABLE m (k INT PRIMARY KEY, v INT) {RANGES}
        CREATE TABLE
        > INSERT INTO m VALUES (2, 0), (11, 0), (12, 0), (21, 0)
        INSERT 0 4
        > UPDATE m SET v = (SELECT max(v) FROM m) + 1
        UPDATE 4
        > SELECT min(v), max(v) FROM m
        1|1
        > UPDATE m SET v = v + 1 WHERE k IN (SELECT k FROM m WHERE v = 1)
        UPDATE 4
        > DELETE FROM m WHERE k = (SELECT min(k) FROM m)
        DELETE 1
        > DELETE FROM m WHERE (SELECT count(*) FROM m) > 2
        DELETE 3
        "
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_sent_again_leaves_partitions_alone_that_it_had_no_rows_for() {
    let db = Fixture::new().await;
    db.ok(&format!(
        "CREATE TABLE m (k INT PRIMARY KEY, v INT) {RANGES}"
    ))
    .await;
    db.ok("CREATE TABLE src (k INT PRIMARY KEY)").await;
    db.ok("INSERT INTO src VALUES (1)").await;
    let total = "SELECT count(*), sum(v) FROM m";
    for (statement, before, between, after) in [
        (
            "INSERT INTO m SELECT k, 0 FROM src",
            "INSERT INTO src VALUES (2)",
            "INSERT INTO src VALUES (11)",
            "2|0",
        ),
        (
            "UPDATE m SET v = v + 1 WHERE k IN (1, 11, 21)",
            "INSERT INTO src VALUES (3)",
            "INSERT INTO m VALUES (11, 0), (21, 0)",
            "4|1",
        ),
        (
            "DELETE FROM m WHERE k IN (1, 50)",
            "INSERT INTO src VALUES (4)",
            "INSERT INTO m VALUES (1, 5), (50, 5)",
            "5|10",
        ),
    ] {
        db.ok(before).await;
        let once = db.session.clone().with_write_id(ulid_now());
        crate::support::run(&once, statement).await.expect("done");
        db.ok(between).await;
        crate::support::run(&once, statement)
            .await
            .expect("told so");
        assert_eq!(db.ok(total).await, [after], "{statement}");
    }
}

/// Partitions come and go and the table is emptied while others write and read: nobody is told
/// anything but that a row has no place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_beside_partitions_that_come_and_go_succeed_or_say_why_not() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE m (k INT, i INT, v INT, PRIMARY KEY (k, i)) PARTITION BY LIST (k) (PARTITION a VALUES IN (0), PARTITION b VALUES IN (1), PARTITION c VALUES IN (2))")
        .await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let others = (0..3).map(|writer| {
        let (session, stop) = (db.engine.session(shoal_query::SessionOptions::default()), stop.clone());
        tokio::spawn(async move {
            let mut done = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for sql in [
                    format!("INSERT INTO m (k, i, v) VALUES (0, {done}, {writer}), (1, {done}, {writer}), (2, {done}, {writer})"),
                    "UPDATE m SET v = v + 1 WHERE i > 3".to_owned(),
                    "SELECT count(*), max(i) FROM m".to_owned(),
                    format!("DELETE FROM m WHERE i = {done}"),
                ] {
                    match crate::support::run(&session, &sql).await {
                        Ok(_) => done += 1,
                        Err(error) => assert!(
                            error.code == "no_partition" || error.retry == shoal_types::Retry::Unknown,
                            "{sql}: {error:?}"
                        ),
                    }
                }
            }
            done
        })
    });
    let others: Vec<_> = others.collect();
    for _ in 0..25 {
        db.ok("ALTER TABLE m DROP PARTITION a").await;
        db.ok("ALTER TABLE m ADD PARTITION a VALUES IN (0)").await;
        db.ok("TRUNCATE m").await;
        db.ok("ALTER TABLE m ADD COLUMN w INT").await;
        db.ok("ALTER TABLE m DROP COLUMN w").await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for other in others {
        assert!(other.await.expect("no failure") > 0);
    }
}

fn ulid_now() -> WriteId {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let ms = u128::from(SystemClock.now_ms());
    WriteId((ms << 80) | u128::from(count))
}

/// How many partitions a query looks at: each has one file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_leave_partitions_out_and_never_a_row() {
    let db = Fixture::new().await;
    db.ok("CREATE TABLE h (a INT, t TIMESTAMP(3), v INT, PRIMARY KEY (a, t)) PARTITION BY HASH (a) PARTITIONS 64")
        .await;
    db.ok("CREATE TABLE r (a INT, t TIMESTAMP(3), v INT, PRIMARY KEY (a, t)) PARTITION BY RANGE (t) (PARTITION p0 VALUES LESS THAN ('2026-01-02'), PARTITION p1 VALUES LESS THAN ('2026-01-03'), PARTITION p2 VALUES LESS THAN (MAXVALUE))")
        .await;
    db.ok("CREATE TABLE l (a INT, s TEXT, PRIMARY KEY (a, s)) PARTITION BY LIST (s) (PARTITION x VALUES IN ('x'), PARTITION yz VALUES IN ('y', 'z'))")
        .await;
    // Files are cut by day: all rows of one, and those of three.
    for (table, step_ms) in [("h", 10_000), ("r", 60_000)] {
        db.ok(&format!(
            "INSERT INTO {table} SELECT v % 100, to_timestamp_millis(1767225600000 + v * {step_ms}), v FROM generate_series(0, 4319) AS g(v)"
        ))
        .await;
    }
    db.ok("INSERT INTO l SELECT v, CASE v % 3 WHEN 0 THEN 'x' WHEN 1 THEN 'y' ELSE 'z' END FROM generate_series(1, 300) AS g(v)")
        .await;
    db.flush().await;
    for (from, condition, files, rows) in [
        ("h", "a = 7", 1, 44),
        ("h", "a IN (7, 8) AND v > 10", 2, 86),
        ("h", "a = 7 OR a = 9", 2, 88),
        ("h", "a = 1 AND a = 2", 0, 0),
        ("h", "a = 7 AND a IS NULL", 0, 0),
        ("r", "t < '2026-01-02'", 1, 1440),
        ("r", "t <= '2026-01-02'", 2, 1441),
        ("r", "t >= '2026-01-02' AND t < '2026-01-03'", 1, 1440),
        ("r", "t BETWEEN '2026-01-02' AND '2026-01-03'", 2, 1441),
        ("r", "t > '2026-01-02 12:00:00' AND a = 3", 2, 22),
        ("r", "'2026-01-03' <= t", 1, 1440),
        ("l", "s = 'x'", 1, 100),
        ("l", "s IN ('y', 'z', 'nobody')", 1, 200),
        ("l", "s > 'y'", 1, 100),
        ("l", "s IS NULL", 0, 0),
    ] {
        let query = format!("SELECT count(*) FROM {from} WHERE {condition}");
        assert_eq!(db.ok(&query).await, [rows.to_string()], "{query}");
        let output = db.session.execute(&query, &[]).await.expect("runs");
        let shoal_query::Output::Rows { stats, .. } = &output else {
            panic!("rows");
        };
        let looked = stats.files_total.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(looked, files, "{query}");
    }
}

/// Some partitions have nothing to say, and which one is read first changes from time to time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_least_and_the_greatest_value_are_found_wherever_they_are() {
    let db = Fixture::with(|config| config.target_partitions = 4).await;
    for mode in ["append", "upsert"] {
        db.ok(&format!(
            "CREATE TABLE {mode} (k BIGINT, v DOUBLE PRECISION, w BIGINT, PRIMARY KEY (k)) PARTITION BY HASH (k) PARTITIONS 12 WITH (mode = '{mode}')"
        ))
        .await;
        db.ok(&format!(
            "INSERT INTO {mode} SELECT i, CASE WHEN i % 5 = 0 THEN i END, i % 7 FROM generate_series(1, 40) AS g(i)"
        ))
        .await;
        db.flush().await;
        for _ in 0..40 {
            let both = format!("SELECT min(v), max(v), max(w) FROM {mode} WHERE w < 6");
            assert_eq!(db.ok(&both).await, ["5.0|40.0|5"]);
            let few = format!("SELECT min(v), max(v) FROM {mode} WHERE w = 1");
            assert_eq!(db.ok(&few).await, ["15.0|15.0"]);
            let sum = format!("SELECT min(v), max(v), min(v + 1), count(*) FROM {mode}");
            assert_eq!(db.ok(&sum).await, ["5.0|40.0|6.0|40"]);
        }
    }
}
