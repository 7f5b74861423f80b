//! Shards that are split while they are read and written, and while who leads them dies, on real
//! Kafka, MinIO and etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, Stack};
use tokio::task::JoinHandle;

const ONE: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "1")];

/// A write that fails so often does not come through any more.
const TRIES_MAX: u32 = 200;
/// Keys that are there from the beginning, in every table.
const FIRST: u64 = 1000;
const TABLES: [&str; 2] = ["parted", "whole"];

/// Clients of two nodes.
struct Load {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<u64>>,
}

async fn until_done(client: &Client, statement: &str) -> String {
    let mut tries = 0;
    loop {
        match client.sql_with(statement, &[]).await {
            Ok(answer) => return answer.header("Shoal-Commit-Token").to_owned(),
            Err(failure) => {
                tries += 1;
                assert!(tries < TRIES_MAX, "{failure:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Writes the same rows to every table, and reads them back at another node with nothing but the
/// token of the write.
async fn write(client: Client, other: Client, stop: Arc<AtomicBool>, next: Arc<AtomicU64>) -> u64 {
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        let from = next.fetch_add(10, Ordering::Relaxed);
        let rows: Vec<String> = (from..from + 10).map(|k| format!("({k}, {k})")).collect();
        for table in TABLES {
            // The same rows once more change nothing.
            let insert = format!("INSERT INTO {table} VALUES {}", rows.join(", "));
            let token = until_done(&client, &insert).await;
            let headers = [
                ("Shoal-Consistency", "session"),
                ("Shoal-Commit-Token", token.as_str()),
            ];
            let count = format!(
                "SELECT count(*) FROM {table} WHERE k >= {from} AND k < {}",
                from + 10
            );
            if let Ok(found) = other.sql_with(&count, &headers).await {
                assert_eq!(found.count(), 10, "{table}: {from} with token {token}");
                read += 1;
            }
        }
        // Of a whole cluster on one machine little is wanted.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    read
}

async fn count(client: Client, stop: Arc<AtomicBool>) -> u64 {
    let mut counted = 0;
    while !stop.load(Ordering::Relaxed) {
        for table in TABLES {
            let first =
                format!("SELECT count(*), count(DISTINCT k) FROM {table} WHERE k < {FIRST}");
            if let Ok(rows) = client.sql(&first).await {
                assert_eq!(rows, [[json!(FIRST), json!(FIRST)]], "{table}, {counted}");
                counted += 1;
            }
            let doubled = format!("SELECT count(*) - count(DISTINCT k) FROM {table}");
            if let Ok(rows) = client.sql(&doubled).await {
                assert_eq!(rows, [[json!(0)]], "{table}: a row is there twice");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    counted
}

impl Load {
    /// Of nodes 0 and 1: the third may be killed, and has another address then.
    async fn start(cluster: &Cluster) -> Self {
        let client = cluster.client(0);
        for table in TABLES {
            let parts = match table {
                "parted" => " PARTITION BY HASH (k) PARTITIONS 4",
                _ => "",
            };
            let make = format!("CREATE TABLE {table} (k BIGINT PRIMARY KEY, v BIGINT){parts}");
            client.sql(&make).await.expect("create");
            let last = FIRST - 1;
            let fill =
                format!("INSERT INTO {table} SELECT v, -1 FROM generate_series(0, {last}) AS g(v)");
            client.sql(&fill).await.expect("insert");
        }
        let mut load = Self {
            stop: Arc::default(),
            next: Arc::new(AtomicU64::new(FIRST)),
            tasks: Vec::new(),
        };
        for node in 0..2 {
            let (client, other) = (cluster.client(node), cluster.client(1 - node));
            let (stop, next) = (Arc::clone(&load.stop), Arc::clone(&load.next));
            load.tasks
                .push(tokio::spawn(write(client.clone(), other, stop, next)));
            let stop = Arc::clone(&load.stop);
            load.tasks.push(tokio::spawn(count(client, stop)));
        }
        load
    }

    /// Every row is there once, at every node.
    async fn end(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert!(task.await.expect("a client") > 0, "it has read nothing");
        }
        let rows = self.next.load(Ordering::Relaxed);
        for node in 0..3 {
            let client = cluster.client(node);
            for table in TABLES {
                let all = format!("SELECT count(*) FROM {table}");
                assert_eq!(client.count(&all).await, rows, "{table} at node {node}");
                let distinct = format!("SELECT count(DISTINCT k) FROM {table}");
                assert_eq!(
                    client.count(&distinct).await,
                    rows,
                    "{table} at node {node}"
                );
            }
        }
    }
}

/// Where a table's partitions are: shard and name (empty for one that is the whole table).
async fn places(client: &Client, table: &str) -> Vec<(String, String)> {
    let route = client.get(&format!("/v1/route/{table}")).await;
    let route: Value = serde_json::from_str(&route.expect("a route")).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let partitions = route["partitions"].as_array().expect("partitions");
    let place = |p: &Value| (text(&p["shard"]), text(&p["name"]));
    partitions.iter().map(place).collect()
}

/// Splits the shard that a partition is in, or the only table; the new shard.
async fn split(client: &Client, table: &str, number: usize) -> Result<String, String> {
    let places = places(client, table).await;
    let (shard, partition) = &places[number % places.len()];
    let body = match partition.as_str() {
        "" => json!({ "tables": [table] }),
        name => json!({ "table": table, "partitions": [name] }),
    };
    let path = format!("/v1/admin/shards/{shard}/split");
    let begun = Instant::now();
    let done = client.post(&path, &body).await;
    println!(
        "{table} {partition} of {shard}: {:?} {done:?}",
        begun.elapsed()
    );
    let done: Value = serde_json::from_str(&done.map_err(|e| e.text)?).expect("JSON");
    Ok(done["child"].as_str().expect("a child").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_split_under_load_while_leaders_die() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "split", 3, ONE).await;
    cluster.add_scheduler().await;
    cluster.placed(0, 2).await;
    let load = Load::start(&cluster).await;
    let mut parents: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..6 {
        let table = TABLES[round % 2];
        let client = cluster.client(round % 2);
        let mut tries = 0;
        let child = loop {
            match split(&client, table, round).await {
                Ok(child) => break child,
                Err(error) => {
                    tries += 1;
                    assert!(tries < 10, "{error}");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        };
        parents.insert(child.clone(), round);
        if round == 2 {
            cluster.nodes[2].kill();
            cluster.nodes[2].restart().await;
        }
        if round % 2 == 1 {
            // Nothing but who serves it changes.
            let moved = cluster.order(0, &child, "move", 2).await;
            println!("moved: {moved}");
        }
    }
    load.end(&cluster).await;
    cluster.placed(0, 2).await;
    cluster.replicas_agree(0).await;
    assert!(cluster.shard_ids(0).await.len() > parents.len());
    let client = cluster.client(0);
    for order in ["flush", "compact", "gc", "gc", "gc"] {
        let path = format!("/v1/admin/{order}");
        client.post(&path, &json!({})).await.expect(order);
    }
    let left = client.post("/v1/admin/gc", &json!({"dry_run": true})).await;
    let left: Value = serde_json::from_str(&left.expect("gc")).expect("JSON");
    assert_eq!(left["orphans"], 0, "{left}");
}
