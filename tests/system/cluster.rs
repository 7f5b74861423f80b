//! Several nodes over one copy of data, on real Kafka, MinIO and etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, Failed, Ledger, Outcome, Stack};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Few shards keep a test short; several show that a statement crosses nodes.
const SMALL: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "2")];

fn stack() -> (tempfile::TempDir, Stack) {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    (dir, stack)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_any_request() {
    let (dir, stack) = stack();
    let cluster = Cluster::start(&stack, dir.path(), "any", 3, SMALL).await;
    let shards = cluster.shard_ids(0).await;
    // One shard on each of two nodes; the third has no replica of anything.
    let moved = cluster.order(2, &shards[1], "move", 1).await;
    assert_eq!(moved["bytes_copied"], 0, "{moved}");
    assert_eq!(moved["state"], "done", "{moved}");
    let clients = [cluster.client(0), cluster.client(1), cluster.client(2)];
    // Tables are made everywhere and known everywhere at once.
    for (i, client) in clients.iter().enumerate() {
        for kind in ["append", "upsert"] {
            let statement = format!(
                "CREATE TABLE {kind}{i} (ts TIMESTAMP(3) NOT NULL, k TEXT, v BIGINT, PRIMARY KEY (k, ts)) WITH (time_column = 'ts', mode = '{kind}')"
            );
            client.sql(&statement).await.expect("create");
        }
    }
    for (i, client) in clients.iter().enumerate() {
        for table in 0..clients.len() {
            for kind in ["append", "upsert"] {
                let insert = format!(
                    "INSERT INTO {kind}{table} VALUES ('2024-01-01T00:00:0{i}Z', 'k{i}', {i}), ('2024-01-01T00:00:00Z', 'same', {i})"
                );
                client.sql(&insert).await.expect("insert");
            }
        }
        client
            .write(format!("lines,host=h{i} v={i} 1700000000000000000"))
            .await
            .expect("line protocol");
    }
    for client in &clients {
        for table in 0..clients.len() {
            let all = format!("SELECT count(*) FROM append{table}");
            assert_eq!(client.count(&all).await, 6);
            let all = format!("SELECT count(*) FROM upsert{table}");
            assert_eq!(client.count(&all).await, 4, "'same' is one row");
        }
        assert_eq!(client.count("SELECT count(*) FROM lines").await, 3);
        // Tables of both shards in one statement.
        let joined = "SELECT count(*) FROM append0 a JOIN append1 b ON a.k = b.k JOIN upsert2 c ON c.k = a.k";
        assert_eq!(client.count(joined).await, 3 + 9);
    }
    // Changes of rows and of columns, at a node that has no replica.
    let third = &clients[2];
    for table in 0..clients.len() {
        let update = format!("UPDATE upsert{table} SET v = 100 WHERE k = 'k1'");
        third.sql(&update).await.expect("update");
        let delete = format!("DELETE FROM append{table} WHERE k = 'same'");
        third.sql(&delete).await.expect("delete");
        let alter = format!("ALTER TABLE upsert{table} ADD COLUMN note TEXT");
        third.sql(&alter).await.expect("alter");
        // The other nodes know the column before they are told of it.
        let insert = format!(
            "INSERT INTO upsert{table} (ts, k, v, note) VALUES ('2024-01-02T00:00:00Z', 'n', 1, 'x')"
        );
        clients[table % 2].sql(&insert).await.expect("insert");
    }
    for client in &clients {
        for table in 0..clients.len() {
            let left = format!("SELECT count(*) FROM append{table}");
            assert_eq!(client.count(&left).await, 3);
            let changed = format!("SELECT v FROM upsert{table} WHERE k = 'k1'");
            assert_eq!(client.value(&changed).await, json!(100));
            let noted = format!("SELECT count(note) FROM upsert{table}");
            assert_eq!(client.count(&noted).await, 1);
        }
    }
    third.flush().await.expect("flush");
    // Upkeep is done by whoever leads, for tables of both shards.
    let keep_up = async |what: &str, scope: Value| -> Value {
        let done = third.post(&format!("/v1/admin/{what}"), &scope).await;
        serde_json::from_str(&done.unwrap_or_else(|f| panic!("{what}: {f:?}"))).expect("JSON")
    };
    for table in ["append0", "append1"] {
        for file in 0..2 {
            let insert = format!("INSERT INTO {table} VALUES ('2024-01-03', 'f{file}', {file})");
            third.sql(&insert).await.expect("insert");
            third.flush().await.expect("flush");
        }
        let one = keep_up("compact", json!({"table": table})).await;
        assert!(one["files_in"].as_u64() >= Some(2), "{table}: {one}");
    }
    let all = keep_up("compact", json!({})).await;
    assert_eq!(all["state"], "done", "{all}");
    let found = keep_up("gc", json!({"dry_run": true})).await;
    assert!(found["kept"].as_u64() >= Some(4), "{found}");
    for client in &clients {
        assert_eq!(client.count("SELECT count(*) FROM append0").await, 5);
        client
            .sql("DROP TABLE IF EXISTS append2")
            .await
            .expect("drop");
    }
    let gone = clients[0].sql("SELECT * FROM append2").await;
    assert!(gone.is_err_and(|f| f.text.contains("append2")));
    let route = third.get("/v1/route/append0").await.expect("route");
    let route: Value = serde_json::from_str(&route).expect("JSON");
    let leader = &route["partitions"][0]["leader"];
    assert!(
        leader["http"].as_str().is_some_and(|a| a.contains(':')),
        "{route}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_as_fresh_as_they_were_asked_for_wherever_they_are_made() {
    let (dir, stack) = stack();
    let cluster = Cluster::start(&stack, dir.path(), "levels", 3, SMALL).await;
    cluster.follow_all(1).await;
    let (leader, follower, without) = (cluster.client(0), cluster.client(1), cluster.client(2));
    leader
        .sql("CREATE TABLE t (k BIGINT, PRIMARY KEY (k))")
        .await
        .expect("create");
    let all = "SELECT count(*) FROM t";
    for i in 0..20_u64 {
        let insert = format!("INSERT INTO t VALUES ({i})");
        let writer = [&leader, &follower, &without][i as usize % 3];
        let written = writer.sql_with(&insert, &[]).await.expect("insert");
        let token = written.header("Shoal-Commit-Token").to_owned();
        assert!(!token.is_empty(), "{written:?}");
        for client in [&leader, &follower, &without] {
            for level in ["strong", "session"] {
                for place in ["nearest", "leader", "follower", "any"] {
                    let headers = [
                        ("Shoal-Consistency", level),
                        ("Shoal-Read-From", place),
                        ("Shoal-Commit-Token", token.as_str()),
                    ];
                    let read = client.sql_with(all, &headers).await;
                    // Its own replica leads: a follower is elsewhere.
                    let read = read.unwrap_or_else(|f| panic!("{level} {place}: {f:?}"));
                    assert_eq!(read.count(), i + 1, "{level} {place}");
                    let served = read.header("Shoal-Served-By");
                    match place {
                        "leader" => assert!(served.ends_with("/leader"), "{served}"),
                        "follower" => assert!(served.ends_with("/follower"), "{served}"),
                        _ => assert!(served.contains('/'), "{served}"),
                    }
                    assert!(!read.header("Shoal-Read-Position").is_empty());
                }
            }
            let headers = [("Shoal-Consistency", "bounded=30s")];
            let read = client.sql_with(all, &headers).await.expect("bounded");
            assert!(read.count() <= i + 1);
            let headers = [("Shoal-Consistency", "eventual")];
            let read = client.sql_with(all, &headers).await.expect("eventual");
            assert!(read.count() <= i + 1);
        }
    }
    // A session's own writes are remembered by its settings.
    let token = leader.sql_with("INSERT INTO t VALUES (100)", &[]).await;
    let token = token.expect("insert");
    let token = token.header("Shoal-Commit-Token");
    let parts: Vec<&str> = token.split('.').collect();
    let [shard, term, claim, offset] = parts[..] else {
        panic!("{token}");
    };
    let later_epoch = format!(
        "{shard}.{}.{claim}.{offset}",
        term.parse::<u64>().expect("term") + 1
    );
    let foreign = format!("01ARZ3NDEKTSV4RRFFQ69G5FAV.{term}.{claim}.{offset}");
    let last = format!("{shard}.{term}.{claim}.{}", u64::MAX);
    for (token, why) in [
        ("nonsense", "no commit token"),
        (later_epoch.as_str(), "has not had at that position"),
        (foreign.as_str(), "does not have"),
        (last.as_str(), "no commit token"),
    ] {
        let headers = [
            ("Shoal-Consistency", "session"),
            ("Shoal-Read-From", "follower"),
            ("Shoal-Commit-Token", token),
        ];
        let refused = follower.sql_with(all, &headers).await;
        let refused = refused.expect_err("it cannot be met");
        assert!(refused.text.contains(why), "{token}: {refused:?}");
    }
    // What is not there yet is told before the time is up, also by the second of two headers.
    let ahead = format!("{shard}.{term}.{claim}.{}", u64::from(u32::MAX));
    let headers = [
        ("Shoal-Consistency", "session"),
        ("Shoal-Timeout", "2s"),
        ("Shoal-Commit-Token", token),
        ("Shoal-Commit-Token", ahead.as_str()),
    ];
    let refused = follower.sql_with(all, &headers).await;
    let refused = refused.expect_err("nobody has written that");
    assert!(refused.text.contains("the session has seen"), "{refused:?}");
    let twice = [
        ("Shoal-Consistency", "eventual"),
        ("Shoal-Consistency", "strong"),
    ];
    let refused = follower.sql_with(all, &twice).await;
    assert!(refused.is_err_and(|f| f.text.contains("more than once")));
    let wrong = follower
        .sql_with(all, &[("Shoal-Consistency", "fresh")])
        .await;
    assert!(wrong.is_err_and(|f| f.text.contains("bounded=500ms")));
}

/// Clients that write numbered batches into two tables until they are told to stop, and a ledger of
/// what became of each.
struct Writers {
    ledger: Arc<Mutex<Ledger>>,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// So many at a time, over these clients in turn.
    async fn start(clients: Vec<Client>, count: usize) -> Self {
        let tables = vec!["one".to_owned(), "two".to_owned()];
        ledger_tables(&clients[0], &tables).await;
        let mut writers = Self {
            ledger: Arc::new(Mutex::new(Ledger::new(tables, 10))),
            next: Arc::default(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        let start = |_| {
            tokio::spawn(write_on(
                clients.clone(),
                Arc::clone(&writers.ledger),
                Arc::clone(&writers.next),
                Arc::clone(&writers.stop),
            ))
        };
        writers.tasks = (0..count).map(start).collect();
        writers
    }

    /// Waits until so many more batches were begun.
    async fn progress(&self, more: u64) {
        let goal = self.next.load(Ordering::Relaxed) + more;
        while self.next.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> Arc<Mutex<Ledger>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a writer");
        }
        self.ledger
    }
}

/// Writes numbered batches until told to stop; notes what became of each.
async fn write_on(
    clients: Vec<Client>,
    ledger: Arc<Mutex<Ledger>>,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let batch = format!("b{number}");
        let table = ledger.lock().await.table_of(number);
        let rows: Vec<String> = (0..10).map(|row| format!("('{batch}', {row})")).collect();
        let insert = format!(
            "INSERT INTO {table} (batch, \"row\") VALUES {}",
            rows.join(", ")
        );
        let client = &clients[number as usize % clients.len()];
        let result = client.sql(&insert).await;
        let outcome = Outcome::of(&result);
        ledger.lock().await.note(batch, outcome);
        if result.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn ledger_tables(client: &Client, tables: &[String]) {
    for table in tables {
        let create =
            format!("CREATE TABLE {table} (batch TEXT, \"row\" BIGINT) WITH (mode = 'append')");
        client.sql(&create).await.expect("create");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_that_wakes_up_acknowledges_nothing_more() {
    let (dir, stack) = stack();
    let mut cluster = Cluster::start(&stack, dir.path(), "frozen", 2, SMALL).await;
    cluster.follow_all(1).await;
    let writers = Writers::start(vec![cluster.client(0), cluster.client(1)], 4).await;
    writers.progress(40).await;
    cluster.nodes[0].pause();
    for shard in cluster.shard_ids(1).await {
        let promoted = cluster.order(1, &shard, "promote", 1).await;
        assert!(promoted["epoch"].is_string(), "{promoted}");
    }
    // The new leader takes writes while the old one stands still.
    let fresh = cluster.client(1);
    fresh
        .sql("INSERT INTO one (batch, \"row\") VALUES ('while-frozen', 0)")
        .await
        .expect("written through the new leader");
    cluster.nodes[0].resume();
    writers.progress(40).await;
    let ledger = writers.end().await;
    // Its flushes and manifests fail, or are the new leader's.
    cluster
        .client(0)
        .flush()
        .await
        .expect("flush at the leaders");
    let me = cluster.nodes[1].node();
    for shard in cluster.shards(0).await {
        assert_eq!(shard["leader"], me.as_str(), "{shard}");
        let replicas = shard["replicas"].as_array().expect("replicas");
        let leaders = replicas.iter().filter(|r| r["role"] == "leader").count();
        assert_eq!(leaders, 1, "{shard}");
    }
    cluster.replicas_agree(0).await;
    let mut ledger = ledger.lock().await;
    fresh
        .sql("DELETE FROM one WHERE batch = 'while-frozen'")
        .await
        .expect("delete");
    for node in 0..2 {
        ledger.check(&cluster.client(node)).await;
    }
    // And it goes on as a follower, through a restart.
    cluster.nodes[0].stop().await;
    cluster.nodes[0].restart().await;
    cluster.replicas_agree(0).await;
}

/// A node that heard of a change of leaders, and wrote nothing since, does not ask the old leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_that_froze_after_it_handed_over_holds_no_write_up() {
    let (dir, stack) = stack();
    let cluster = Cluster::start(&stack, dir.path(), "former", 3, SMALL).await;
    for shard in cluster.shard_ids(0).await {
        cluster.order(0, &shard, "add-follower", 1).await;
        let promoted = cluster.order(0, &shard, "promote", 1).await;
        assert_eq!(promoted["state"], "done", "{promoted}");
    }
    let third = cluster.client(2);
    // As long as a change of leaders is under way, writes go to the one who led before.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.nodes[0].pause();
    // On both shards. Nothing of it has an id: what is not answered could not be repeated.
    for table in ["a", "b"] {
        let create = format!("CREATE TABLE {table} (k BIGINT, PRIMARY KEY (k))");
        third.sql(&create).await.expect("made");
        let insert = format!("INSERT INTO {table} VALUES (1)");
        third.sql(&insert).await.expect("written");
    }
    cluster.nodes[0].resume();
    assert_eq!(third.count("SELECT count(*) FROM a").await, 1);
}

/// What a replica that stands still may yet need is garbage to nobody: files of its leader's older
/// manifests, and files that it wrote and has not published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_stand_still_lose_no_file_to_garbage_collection() {
    let (dir, stack) = stack();
    let settings = [
        ("SHOAL_ENGINE_SHARDS", "1"),
        ("SHOAL_GC_RETENTION_S", "3"),
        ("SHOAL_GC_INTERVAL_S", "1"),
        ("SHOAL_QUERY_STATEMENT_TIMEOUT_MS", "2900"),
    ];
    let mut cluster = Cluster::start(&stack, dir.path(), "garbage", 2, &settings).await;
    cluster.follow_all(1).await;
    let shard = cluster.shard_ids(0).await.remove(0);
    ledger_tables(&cluster.client(0), &["log".to_owned()]).await;
    let mut rows = 0;
    for round in 0..4_usize {
        let (leads, follows) = (round % 2, (round + 1) % 2);
        let leader = cluster.client(leads);
        let insert = async |rows: u64| {
            let insert = format!(
                "INSERT INTO log SELECT 'b{round}', x FROM generate_series(1, {rows}) AS g(x)"
            );
            leader.sql(&insert).await.expect("insert");
        };
        insert(20_000).await;
        leader.flush().await.expect("flush");
        // The follower stands still with the view that it has, while its files are replaced.
        cluster.nodes[follows].pause();
        for _ in 0..4 {
            insert(5_000).await;
            leader.flush().await.expect("flush");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        leader
            .post("/v1/admin/compact", &json!({}))
            .await
            .expect("/v1/admin/compact");
        tokio::time::sleep(Duration::from_secs(4)).await;
        leader
            .post("/v1/admin/gc", &json!({}))
            .await
            .expect("/v1/admin/gc");
        cluster.nodes[follows].resume();
        rows += 40_000;
        let follower = cluster.client(follows);
        let all = "SELECT count(*) FROM log";
        let eventual = [("Shoal-Consistency", "eventual")];
        let read = follower.sql_with(all, &eventual).await;
        assert!(read.expect("its own view, or a newer one").count() <= rows);
        assert_eq!(follower.count(all).await, rows, "round {round}");
        // The leader stands still in the middle of writing files; the follower takes over and
        // collects.
        let flushing = tokio::spawn({
            let leader = leader.clone();
            async move {
                let insert =
                    "INSERT INTO log SELECT 'late', x FROM generate_series(1, 1000) AS g(x)";
                let _ = leader.sql(insert).await;
                let _ = leader.flush().await;
            }
        });
        tokio::time::sleep(Duration::from_millis(30 * round as u64)).await;
        cluster.nodes[leads].pause();
        cluster.order(follows, &shard, "promote", follows).await;
        follower
            .post("/v1/admin/compact", &json!({}))
            .await
            .expect("/v1/admin/compact");
        tokio::time::sleep(Duration::from_secs(4)).await;
        follower
            .post("/v1/admin/gc", &json!({}))
            .await
            .expect("/v1/admin/gc");
        cluster.nodes[leads].resume();
        flushing.await.expect("the flush ends");
        // Whether the late rows were written is settled by now.
        rows = follower.count(all).await;
        assert_eq!(leader.count(all).await, rows);
    }
    cluster.replicas_agree(0).await;
    // A cold start finds every file that its manifest names.
    for node in 0..2 {
        cluster.nodes[node].stop().await;
        cluster.nodes[node].restart().await;
    }
    assert_eq!(
        cluster.client(0).count("SELECT count(*) FROM log").await,
        rows
    );
    cluster.replicas_agree(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_loses_nothing_and_doubles_nothing() {
    let (dir, stack) = stack();
    let mut cluster = Cluster::start(&stack, dir.path(), "killed", 3, SMALL).await;
    cluster.follow_all(1).await;
    // A node without a replica forwards all of it.
    let writers = Writers::start(vec![cluster.client(2)], 4).await;
    for round in 0..3 {
        let (old, new) = (round % 2, (round + 1) % 2);
        writers.progress(40).await;
        cluster.nodes[old].kill();
        for shard in cluster.shard_ids(new).await {
            cluster.order(new, &shard, "promote", new).await;
        }
        writers.progress(40).await;
        cluster.nodes[old].restart().await;
    }
    let ledger = writers.end().await;
    cluster.replicas_agree(2).await;
    let mut ledger = ledger.lock().await;
    for node in 0..3 {
        ledger.check(&cluster.client(node)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_its_write_id_is_not_doubled_by_a_promotion_in_between() {
    let (dir, stack) = stack();
    let cluster = Cluster::start(&stack, dir.path(), "retry", 2, SMALL).await;
    cluster.follow_all(1).await;
    let client = cluster.client(0);
    ledger_tables(&client, &["log".to_owned()]).await;
    // A ULID of now.
    let now_ms = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_millis();
    let id = format!(
        "{:08x}-{:04x}-7000-8000-000000000001",
        now_ms >> 16,
        now_ms & 0xffff
    );
    let headers = [("Shoal-Write-Id", id.as_str())];
    let insert = "INSERT INTO log (batch, \"row\") VALUES ('b', 1)";
    for round in 0..4_usize {
        for node in 0..2 {
            let sent = cluster.client(node).sql_with(insert, &headers).await;
            let sent = sent.unwrap_or_else(|f| panic!("round {round}, node {node}: {f:?}"));
            let again = sent.header("Shoal-Duplicate") == "true";
            assert_eq!(again, round + node > 0, "round {round}, node {node}");
            assert_eq!(
                cluster.client(node).count("SELECT count(*) FROM log").await,
                1
            );
        }
        for shard in cluster.shard_ids(0).await {
            cluster.order(0, &shard, "promote", (round + 1) % 2).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_share_a_stack_without_touching_each_other() {
    let (dir, stack) = stack();
    let one = Cluster::start(&stack, dir.path(), "red", 1, SMALL).await;
    let other = Cluster::start(&stack, dir.path(), "blue", 2, SMALL).await;
    other.follow_all(1).await;
    for (cluster, rows) in [(&one, 1), (&other, 2)] {
        let client = cluster.client(0);
        client
            .sql("CREATE TABLE t (k BIGINT, PRIMARY KEY (k))")
            .await
            .expect("create");
        for k in 0..rows {
            let insert = format!("INSERT INTO t VALUES ({k})");
            client.sql(&insert).await.expect("insert");
        }
        client.flush().await.expect("flush");
        client
            .post("/v1/admin/gc", &json!({}))
            .await
            .expect("collect garbage");
    }
    assert_eq!(one.client(0).count("SELECT count(*) FROM t").await, 1);
    assert_eq!(other.client(1).count("SELECT count(*) FROM t").await, 2);
    let nodes = one.client(0).get("/v1/admin/nodes").await.expect("nodes");
    let nodes: Value = serde_json::from_str(&nodes).expect("JSON");
    assert_eq!(nodes.as_array().map(Vec::len), Some(1));
    // A drop in one leaves the other's.
    one.client(0).sql("DROP TABLE t").await.expect("drop");
    assert_eq!(other.client(0).count("SELECT count(*) FROM t").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages_end_without_a_restart() {
    let (dir, stack) = stack();
    let settings = [
        ("SHOAL_ENGINE_SHARDS", "1"),
        ("SHOAL_KAFKA_COMMIT_TIMEOUT_MS", "1500"),
        ("SHOAL_WAL_WRITE_TIMEOUT_MS", "3000"),
        ("SHOAL_META_REQUEST_TIMEOUT_MS", "1500"),
    ];
    let cluster = Cluster::start(&stack, dir.path(), "outages", 2, &settings).await;
    cluster.follow_all(1).await;
    let (leader, follower) = (cluster.client(0), cluster.client(1));
    leader
        .sql("CREATE TABLE t (k BIGINT, PRIMARY KEY (k))")
        .await
        .expect("create");
    leader
        .sql("INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    let all = "SELECT count(*) FROM t";
    assert_eq!(follower.count(all).await, 1);
    let eventual = [("Shoal-Consistency", "eventual")];

    // etcd away: everything placed goes on.
    stack.pause("etcd");
    leader
        .sql("INSERT INTO t VALUES (2)")
        .await
        .expect("no etcd");
    follower
        .sql("INSERT INTO t VALUES (3)")
        .await
        .expect("no etcd, forwarded");
    assert_eq!(follower.count(all).await, 3);
    stack.resume("etcd");

    // S3 away: writes go on, reads from memory too.
    stack.pause("s3");
    leader.sql("INSERT INTO t VALUES (4)").await.expect("no S3");
    assert_eq!(follower.count(all).await, 4);
    stack.resume("s3");

    // The broker away: nothing is acknowledged, what is there is read.
    stack.pause("kafka");
    let outcome = leader.sql("INSERT INTO t VALUES (5)").await;
    let failure = outcome.expect_err("nobody confirms it");
    assert_eq!(failure.retry, "unknown", "{failure:?}");
    assert!(failure.text.contains("commit_timeout"), "{failure:?}");
    let read = follower.sql_with(all, &eventual).await.expect("eventual");
    assert_eq!(read.count(), 4);
    let strong = follower.sql(all).await;
    assert!(
        strong.is_err_and(|f| f.text.contains("behind")),
        "never older rows"
    );
    stack.resume("kafka");

    // Everything again, without a restart and without a hand; each client of the broker has to find
    // it again by itself.
    goes_on("writes", async || {
        follower.sql("INSERT INTO t VALUES (6)").await
    })
    .await;
    let rows = goes_on("reads", async || follower.sql_with(all, &[]).await).await;
    let rows = rows.count();
    assert!((5..=6).contains(&rows), "{rows}: 5 may have been applied");
    goes_on("flushes", async || leader.flush().await).await;
    assert_eq!(leader.count(all).await, rows);
    cluster.replicas_agree(1).await;
}

/// Tries something until it succeeds.
async fn goes_on<T>(what: &str, attempt: impl AsyncFn() -> Failed<T>) -> T {
    let mut left = 200;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(failure) => {
                assert!(left > 0, "{what} do not go on: {failure:?}");
                left -= 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_brokers_one_after_another_may_be_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::with_brokers(dir.path(), 3);
    let cluster = Cluster::start(&stack, dir.path(), "brokers", 2, SMALL).await;
    cluster.follow_all(1).await;
    let writers = Writers::start(vec![cluster.client(0), cluster.client(1)], 2).await;
    for broker in ["kafka1", "kafka2", "kafka3"] {
        writers.progress(20).await;
        stack.act(&["kill", broker]);
        // Two of three confirm; a partition that the killed one led gets another leader.
        writers.progress(40).await;
        stack.act(&["start", broker]);
        // A replica that lags is not in sync yet; writes go on with the other two.
        writers.progress(20).await;
    }
    let ledger = writers.end().await;
    cluster.replicas_agree(0).await;
    let mut ledger = ledger.lock().await;
    for node in 0..2 {
        ledger.check(&cluster.client(node)).await;
    }
    assert!(ledger.count(Outcome::Acknowledged) > 100);
}
