//! Tables whose partitions are on several nodes, on real Kafka, MinIO and etcd.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, Stack};

const FOUR: &[(&str, &str)] = &[
    ("SHOAL_ENGINE_SHARDS", "4"),
    ("SHOAL_LINE_PROTOCOL_PARTITIONS", "4"),
];

/// A write that fails so often does not come through any more.
const TRIES_MAX: u32 = 200;

async fn route(client: &Client, table: &str) -> Value {
    let route = client.get(&format!("/v1/route/{table}")).await;
    serde_json::from_str(&route.expect("a route")).expect("JSON")
}

/// The nodes that lead a table's partitions.
async fn leaders(client: &Client, table: &str) -> BTreeSet<String> {
    let route = route(client, table).await;
    let partitions = route["partitions"].as_array().expect("partitions").iter();
    let node = |p: &Value| p["leader"]["node"].as_str().expect("a leader").to_owned();
    partitions.map(node).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_on_several_nodes_are_one_table_at_each_of_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "parted", 3, FOUR).await;
    let shards = cluster.shard_ids(0).await;
    for (shard, node) in shards.iter().zip([0, 1, 1, 2]) {
        if node > 0 {
            let moved = cluster.order(0, shard, "move", node).await;
            assert_eq!(moved["state"], "done", "{moved}");
        }
    }
    let clients = [cluster.client(0), cluster.client(1), cluster.client(2)];
    clients[2]
        .sql("CREATE TABLE t (k BIGINT, v BIGINT, PRIMARY KEY (k)) PARTITION BY HASH (k) PARTITIONS 6")
        .await
        .expect("create");
    assert_eq!(leaders(&clients[0], "t").await.len(), 3, "on all nodes");
    for (i, client) in clients.iter().enumerate() {
        let (from, to) = (i * 1000, i * 1000 + 1999);
        let insert =
            format!("INSERT INTO t SELECT v, {i} FROM generate_series({from}, {to}) AS g(v)");
        client.sql(&insert).await.expect("insert");
        let lines: Vec<String> = (0..100)
            .map(|h| {
                format!(
                    "lp,host=h{h},node={i} v={h}i {}",
                    1_700_000_000_000_000_000_u64 + h
                )
            })
            .collect();
        client.write(lines.join("\n")).await.expect("line protocol");
    }
    assert_eq!(
        route(&clients[0], "lp").await["partition_by"]["columns"],
        json!(["host"])
    );
    for client in &clients {
        assert_eq!(client.count("SELECT count(*) FROM t").await, 4000);
        assert_eq!(client.count("SELECT sum(v) FROM t").await, 1000 + 2 * 2000);
        assert_eq!(client.count("SELECT count(*) FROM lp").await, 300);
        assert_eq!(client.count("SELECT v FROM t WHERE k = 1500").await, 1);
        let bounded = "SELECT count(*) FROM lp WHERE host IN ('h1', 'h2')";
        assert_eq!(client.count(bounded).await, 6);
    }
    // Rows and columns are changed at one node and seen at the next.
    for (i, client) in clients.iter().enumerate() {
        let next = &clients[(i + 1) % 3];
        client
            .sql(&format!(
                "UPDATE t SET v = v + 10 WHERE k < {}",
                100 * (i + 1)
            ))
            .await
            .expect("update");
        client
            .sql(&format!("ALTER TABLE t ADD COLUMN c{i} BIGINT"))
            .await
            .expect("alter");
        next.sql(&format!("UPDATE t SET c{i} = 1 WHERE k < 2000"))
            .await
            .expect("update of the new column");
        let counted = format!("SELECT sum(c{i}) FROM t");
        assert_eq!(client.count(&counted).await, 2000);
    }
    assert_eq!(
        clients[0].count("SELECT sum(v) FROM t WHERE k < 300").await,
        10 * (100 + 200 + 300)
    );
    let report = clients[1]
        .post("/v1/admin/flush", &json!({"table": "t"}))
        .await;
    report.expect("flush");

    // A node that leads partitions dies: nothing acknowledged is lost.
    cluster.nodes[1].kill();
    cluster.nodes[1].restart().await;
    let client = cluster.client(1);
    assert_eq!(client.count("SELECT count(*) FROM t").await, 4000);
    client
        .sql("DELETE FROM t WHERE k >= 3000")
        .await
        .expect("delete");
    assert_eq!(clients[2].count("SELECT count(*) FROM t").await, 3000);
    client.sql("TRUNCATE t").await.expect("truncate");
    for client in [&cluster.client(0), &client, &cluster.client(2)] {
        assert_eq!(client.count("SELECT count(*) FROM t").await, 0);
    }
    clients[2].sql("DROP TABLE t").await.expect("drop");
    let gone = client.sql("SELECT count(*) FROM t").await;
    assert!(gone.expect_err("dropped").text.contains("undefined_table"));
    cluster.replicas_agree(0).await;
}

/// A row is in one partition, however often these are split and merged, and whoever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_split_and_merged_under_load_while_leaders_die() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "recut", 3, FOUR).await;
    cluster.add_scheduler().await;
    cluster.placed(0, 2).await;
    let made = "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) PARTITION BY HASH (k) PARTITIONS 2";
    cluster.client(0).sql(made).await.expect("create");
    let first = "INSERT INTO t SELECT v, -1 FROM generate_series(0, 999) AS g(v)";
    cluster.client(0).sql(first).await.expect("insert");
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(1000));
    let mut writers = Vec::new();
    // The third is killed, and has another address then.
    for node in 0..2 {
        let (client, stop, next) = (cluster.client(node), Arc::clone(&stop), Arc::clone(&next));
        writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let from = next.fetch_add(20, Ordering::Relaxed);
                let rows: Vec<String> = (from..from + 20)
                    .map(|k| format!("({k}, {node})"))
                    .collect();
                let insert = format!("INSERT INTO t VALUES {}", rows.join(", "));
                // The same rows once more change nothing.
                let mut tries = 0;
                while let Err(failure) = client.sql(&insert).await {
                    tries += 1;
                    assert!(tries < TRIES_MAX, "{failure:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // Of a whole cluster on one machine little is wanted.
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }));
    }
    let mut readers = Vec::new();
    for node in 0..2 {
        let (client, stop) = (cluster.client(node), Arc::clone(&stop));
        readers.push(tokio::spawn(async move {
            let mut counted = 0;
            while !stop.load(Ordering::Relaxed) {
                let of_first = "SELECT count(*), count(DISTINCT k) FROM t WHERE k < 1000";
                if let Ok(rows) = client.sql(of_first).await {
                    assert_eq!(rows, [[json!(1000), json!(1000)]], "after {counted} counts");
                    counted += 1;
                }
                let doubled = "SELECT count(*) - count(DISTINCT k) FROM t";
                if let Ok(rows) = client.sql(doubled).await {
                    assert_eq!(rows, [[json!(0)]], "a row is there twice");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            counted
        }));
    }
    let mut changes = 0;
    for round in 0..6 {
        let client = cluster.client(round % 3);
        for partition in ["p0", "p1"] {
            let split = format!("ALTER TABLE t SPLIT PARTITION {partition} AS upper");
            let merge = format!("ALTER TABLE t MERGE PARTITIONS {partition}, upper");
            for order in [split, merge] {
                let begun = Instant::now();
                let done = client.sql(&order).await;
                println!("{order}: {:?}", begun.elapsed());
                changes += u64::from(done.is_ok());
                if let Err(failure) = done {
                    println!("{order}: {failure:?}");
                }
            }
        }
        if round % 3 == 1 {
            cluster.nodes[2].kill();
            cluster.nodes[2].restart().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer");
    }
    for reader in readers {
        assert!(reader.await.expect("a reader") > 0);
    }
    assert!(
        changes >= 16,
        "only {changes} splits and merges came through"
    );
    let rows = next.load(Ordering::Relaxed);
    for node in 0..3 {
        let client = cluster.client(node);
        assert_eq!(client.count("SELECT count(*) FROM t").await, rows);
        let found = client.count("SELECT count(DISTINCT k) FROM t").await;
        assert_eq!(found, rows);
    }
    cluster.replicas_agree(0).await;
}
