//! Partitions that are split and merged while they are read and written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use shoal_engine::SplitOff;
use tokio::task::JoinHandle;

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_there_once_after_splits_and_merges() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE cpu (ts TIMESTAMP(3) NOT NULL, host TEXT, usage BIGINT, PRIMARY KEY (host, ts)) PARTITION BY HASH (host) PARTITIONS 2
        CREATE TABLE
        > INSERT INTO cpu SELECT to_timestamp_millis(1767225600000 + v * 1000), 'host_' || (v % 100), v FROM generate_series(0, 9999) AS g(v)
        INSERT 0 10000
        FLUSH
        > UPDATE cpu SET usage = -usage WHERE host = 'host_7'
        UPDATE 100
        > DELETE FROM cpu WHERE host = 'host_8'
        DELETE 100
        > ALTER TABLE cpu SPLIT PARTITION p0
        ALTER TABLE
        > SELECT count(*), count(DISTINCT host), sum(usage), min(usage), max(usage) FROM cpu
        9900|99|48507800|-9907|9999
        > SELECT count(*) FROM cpu WHERE host = 'host_7'
        100
        > SELECT host, max(usage) FROM cpu GROUP BY host ORDER BY host LIMIT 2
        host_0|9900
        host_1|9901
        > INSERT INTO cpu SELECT to_timestamp_millis(1767225600000 + v * 1000), 'host_' || (v % 100), v FROM generate_series(0, 9999) AS g(v)
        INSERT 0 10000
        > SELECT count(*), sum(usage) FROM cpu
        10000|49995000
        > ALTER TABLE cpu SPLIT PARTITION p1 AT (40000) AS upper
        ALTER TABLE
        > ALTER TABLE cpu SPLIT PARTITION p1 AT (40000)
        ! invalid_value
        > ALTER TABLE cpu SPLIT PARTITION nobody
        ! undefined_table
        > SELECT count(*), sum(usage) FROM cpu
        10000|49995000
        FLUSH
        > SELECT count(*), sum(usage), count(DISTINCT host) FROM cpu
        10000|49995000|100
        > UPDATE cpu SET usage = usage + 1 WHERE host IN ('host_1', 'host_2', 'host_50')
        UPDATE 300
        > SELECT sum(usage) FROM cpu
        49995300
        > ALTER TABLE cpu MERGE PARTITIONS upper, p1
        ALTER TABLE
        > SELECT count(*), sum(usage), count(DISTINCT host) FROM cpu
        10000|49995300|100
        > ALTER TABLE cpu DROP COLUMN usage
        ALTER TABLE
        > SELECT count(*) FROM cpu WHERE host = 'host_99'
        100
        > TRUNCATE cpu
        TRUNCATE TABLE
        > SELECT count(*) FROM cpu
        0
        > ALTER TABLE cpu SPLIT PARTITION p1
        ALTER TABLE
        > INSERT INTO cpu SELECT to_timestamp_millis(v), 'host_' || v FROM generate_series(0, 99) AS g(v)
        INSERT 0 100
        > SELECT count(*) FROM cpu
        100
        > DROP TABLE cpu
        DROP TABLE
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_one_partition_is_split_by_its_key() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE t (k BIGINT PRIMARY KEY, v TEXT)
        CREATE TABLE
        > INSERT INTO t SELECT v, 'v' || v FROM generate_series(0, 9999) AS g(v)
        INSERT 0 10000
        FLUSH
        > ALTER TABLE t SPLIT AT (2500) AS b
        ALTER TABLE
        > SELECT count(*), min(k), max(k), sum(k) FROM t
        10000|0|9999|49995000
        > SELECT v FROM t WHERE k = 2499
        v2499
        > SELECT v FROM t WHERE k = 2500
        v2500
        > ALTER TABLE t SPLIT PARTITION b
        ALTER TABLE
        > DELETE FROM t WHERE k % 2 = 0
        DELETE 5000
        > SELECT count(*), sum(k) FROM t
        5000|25000000
        FLUSH
        > SELECT count(*), sum(k) FROM t WHERE k >= 2000 AND k < 3000
        500|1250000
        > SELECT k FROM t ORDER BY k DESC LIMIT 2
        9999
        9997
        > INSERT INTO t VALUES (-5, 'below'), (100000, 'above'), (2500, 'between')
        INSERT 0 3
        > SELECT count(*) FROM t
        5003
        > CREATE TABLE log (at TIMESTAMP(3) NOT NULL, line TEXT)
        CREATE TABLE
        > INSERT INTO log VALUES ('2026-01-01', 'a'), ('2026-01-02', 'b')
        INSERT 0 2
        > ALTER TABLE log SPLIT
        ! invalid_value
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn predicate_deletes_of_append_tables_stay_with_their_partitions() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE e (host TEXT, n BIGINT) PARTITION BY HASH (host) PARTITIONS 1
        CREATE TABLE
        > INSERT INTO e SELECT 'host_' || (v % 50), v FROM generate_series(0, 4999) AS g(v)
        INSERT 0 5000
        FLUSH
        > DELETE FROM e WHERE n < 1000
        DELETE 1000
        > ALTER TABLE e SPLIT PARTITION p0
        ALTER TABLE
        > SELECT count(*), sum(n) FROM e
        4000|11998000
        > DELETE FROM e WHERE n >= 4000 AND host = 'host_3'
        DELETE 20
        > SELECT count(*) FROM e
        3980
        FLUSH
        > SELECT count(*) FROM e
        3980
        > INSERT INTO e VALUES ('host_3', 1), ('host_4', 1)
        INSERT 0 2
        > ALTER TABLE e MERGE PARTITIONS p0, p1
        ALTER TABLE
        > SELECT count(*), min(n) FROM e
        3982|1
        > ALTER TABLE e SPLIT PARTITION p0
        ALTER TABLE
        > SELECT count(*), min(n) FROM e
        3982|1
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_and_range_partitions_are_split() {
    let db = Fixture::new().await;
    db.script(
        "
        > CREATE TABLE l (region TEXT, k BIGINT, PRIMARY KEY (region, k)) PARTITION BY LIST (region) (PARTITION eu VALUES IN ('de', 'fr'), PARTITION us VALUES IN ('us'))
        CREATE TABLE
        > INSERT INTO l SELECT CASE v % 3 WHEN 0 THEN 'de' WHEN 1 THEN 'fr' ELSE 'us' END, v FROM generate_series(0, 2999) AS g(v)
        INSERT 0 3000
        > ALTER TABLE l SPLIT PARTITION eu AT ('fr')
        ALTER TABLE
        > SELECT region, count(*) FROM l GROUP BY region ORDER BY region
        de|1000
        fr|1000
        us|1000
        FLUSH
        > ALTER TABLE l SPLIT PARTITION us AT ('us', 1500) AS us_high
        ALTER TABLE
        > SELECT count(*), sum(k) FROM l WHERE region = 'us'
        1000|1500500
        > SELECT count(*) FROM l WHERE region = 'us' AND k < 1500
        500
        > INSERT INTO l VALUES ('es', 1)
        ! no_partition
        > CREATE TABLE r (day DATE, k BIGINT, PRIMARY KEY (day, k)) PARTITION BY RANGE (day) (PARTITION a VALUES LESS THAN ('2026-03-01'), PARTITION z VALUES LESS THAN (MAXVALUE))
        CREATE TABLE
        > INSERT INTO r SELECT DATE '2026-01-01' + CAST(v AS INT), v FROM generate_series(0, 99) AS g(v)
        INSERT 0 100
        > ALTER TABLE r SPLIT PARTITION a AT ('2026-02-01') AS feb
        ALTER TABLE
        > SELECT count(*) FROM r WHERE day < '2026-02-01'
        31
        > SELECT count(*) FROM r
        100
        > ALTER TABLE r DROP PARTITION feb
        ALTER TABLE
        > SELECT count(*) FROM r
        72
        > INSERT INTO r VALUES ('2026-02-10', 1)
        ! no_partition
        ",
    )
    .await;
}

/// Clients that write, update, delete and count the same rows of some tables, of which each has the
/// keys below 1000 already.
struct Load {
    tables: Vec<&'static str>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<BTreeMap<i64, i64>>>,
    reader: JoinHandle<u64>,
}

impl Load {
    fn start(db: &Arc<Fixture>, tables: &[&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicI64::new(1000));
        let writers = (0..2_i64).map(|client| {
            let (db, stop, next) = (Arc::clone(db), Arc::clone(&stop), Arc::clone(&next));
            tokio::spawn(Self::write(db, tables.to_vec(), client, stop, next))
        });
        Self {
            writers: writers.collect(),
            reader: tokio::spawn(Self::count(
                Arc::clone(db),
                tables.to_vec(),
                Arc::clone(&stop),
            )),
            tables: tables.to_vec(),
            stop,
        }
    }

    async fn write(
        db: Arc<Fixture>,
        tables: Vec<&'static str>,
        client: i64,
        stop: Arc<AtomicBool>,
        next: Arc<AtomicI64>,
    ) -> BTreeMap<i64, i64> {
        let mut written: BTreeMap<i64, i64> = BTreeMap::new();
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let from = next.fetch_add(20, Ordering::Relaxed);
            let keys = from..from + 20;
            let rows: Vec<String> = keys.clone().map(|k| format!("({k}, {client})")).collect();
            written.extend(keys.map(|k| (k, client)));
            let changes = round % 5 == 0;
            for table in &tables {
                db.ok(&format!(
                    "INSERT INTO {table} (k, v) VALUES {}",
                    rows.join(", ")
                ))
                .await;
                if changes {
                    let k = from + 3;
                    db.ok(&format!("UPDATE {table} SET v = {round} WHERE k = {k}"))
                        .await;
                    db.ok(&format!("DELETE FROM {table} WHERE k = {}", from + 4))
                        .await;
                }
            }
            if changes {
                written.insert(from + 3, round);
                written.remove(&(from + 4));
            }
        }
        written
    }

    async fn count(db: Arc<Fixture>, tables: Vec<&'static str>, stop: Arc<AtomicBool>) -> u64 {
        let mut counted = 0;
        while !stop.load(Ordering::Relaxed) {
            for table in &tables {
                let found = db
                    .ok(&format!(
                        "SELECT count(*), count(DISTINCT k) FROM {table} WHERE k < 1000"
                    ))
                    .await;
                assert_eq!(found, ["1000|1000"], "{table} after {counted} counts");
                let found = db
                    .ok(&format!("SELECT count(*) - count(DISTINCT k) FROM {table}"))
                    .await;
                assert_eq!(found, ["0"], "a row of {table} is there twice");
            }
            counted += 1;
        }
        counted
    }

    /// Every table has what was written, and nothing else.
    async fn end(self, db: &Fixture) {
        self.stop.store(true, Ordering::Relaxed);
        let mut expected: BTreeMap<i64, i64> = (0..1000).map(|k| (k, 0)).collect();
        for writer in self.writers {
            expected.extend(writer.await.expect("a client"));
        }
        assert!(self.reader.await.expect("the reader") > 0);
        for table in self.tables {
            let found = db.ok(&format!("SELECT k, v FROM {table} ORDER BY k")).await;
            let found: BTreeMap<i64, i64> = found
                .iter()
                .map(|row| {
                    let (k, v) = row.split_once('|').expect("two columns");
                    (k.parse().expect("k"), v.parse().expect("v"))
                })
                .collect();
            let differ = |a: &BTreeMap<i64, i64>, b: &BTreeMap<i64, i64>| -> Vec<(i64, i64)> {
                let only = a.iter().filter(|(k, v)| b.get(k) != Some(v));
                only.map(|(k, v)| (*k, *v)).collect()
            };
            let (lost, unexpected) = (differ(&expected, &found), differ(&found, &expected));
            assert!(
                lost.is_empty() && unexpected.is_empty(),
                "{table}: lost {lost:?}, unexpected {unexpected:?}"
            );
        }
    }
}

/// Clients write, update, delete and count while one partition after another is split and merged;
/// no count is ever wrong, no row is lost or there twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_or_doubled_while_partitions_change_under_load() {
    let db = Arc::new(Fixture::new().await);
    db.script(
        "
        > CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) PARTITION BY HASH (k) PARTITIONS 2
        CREATE TABLE
        > INSERT INTO t SELECT v, 0 FROM generate_series(0, 999) AS g(v)
        INSERT 0 1000
        ",
    )
    .await;
    let load = Load::start(&db, &["t"]);
    for round in 0..12 {
        db.ok("ALTER TABLE t SPLIT PARTITION p0").await;
        if round % 3 == 0 {
            db.flush().await;
        }
        db.ok("ALTER TABLE t SPLIT PARTITION p1 AS x").await;
        db.ok("ALTER TABLE t MERGE PARTITIONS p1, x").await;
        db.ok("ALTER TABLE t MERGE PARTITIONS p0, p2").await;
    }
    load.end(&db).await;
}

/// The same with shards: what a table has goes from shard to shard under the clients' hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_or_doubled_while_shards_are_split_under_load() {
    let db = Arc::new(Fixture::new().await);
    db.script(
        "
        > CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) PARTITION BY HASH (k) PARTITIONS 2
        CREATE TABLE
        > CREATE TABLE whole (k BIGINT PRIMARY KEY, v BIGINT)
        CREATE TABLE
        > INSERT INTO t SELECT v, 0 FROM generate_series(0, 999) AS g(v)
        INSERT 0 1000
        > INSERT INTO whole SELECT v, 0 FROM generate_series(0, 999) AS g(v)
        INSERT 0 1000
        ",
    )
    .await;
    let load = Load::start(&db, &["t", "whole"]);
    let shards = db.engine.database();
    for round in 0..10 {
        let table = ["t", "whole"][round % 2];
        let handle = shards.table("public", table).expect("table");
        let partitions = handle.partitions();
        let part = &partitions[round / 2 % partitions.len()];
        let what = SplitOff::Units(vec![part.id]);
        let altered = {
            let db = Arc::clone(&db);
            let alter = format!("ALTER TABLE {table} ADD COLUMN c{round} BIGINT");
            tokio::spawn(async move { db.ok(&alter).await })
        };
        let child = shards.split_shard(part.shard, what).await.expect("split");
        let now = shards.table("public", table).expect("table").partitions();
        let moved = now.iter().find(|p| p.id == part.id).expect("it is there");
        assert_eq!(moved.shard, child);
        altered.await.expect("altered while it moved");
        if round == 4 {
            db.ok("ALTER TABLE t SPLIT PARTITION p0").await;
        }
    }
    load.end(&db).await;
    assert_eq!(db.ok("SELECT count(c0) + count(c8) FROM t").await, ["0"]);
    assert_eq!(shards.shard_ids().len(), 12);
    let split = "SELECT count(*), count(DISTINCT id), min(split_at) > 0 FROM system.shards WHERE split_from IS NOT NULL";
    assert_eq!(db.ok(split).await, ["10|10|true"]);
}
