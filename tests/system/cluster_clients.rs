//! What clients and operators of several nodes meet that is not as it should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use shoal_tests::{Client, Cluster, Stack};

/// One shard keeps a test short.
const ONE: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "1")];

async fn make_table(client: &Client) {
    let made = client.sql("CREATE TABLE t (k BIGINT, PRIMARY KEY (k))");
    made.await.expect("create");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_named_before_the_statement_runs_out_of_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "dead", 2, ONE).await;
    let client = cluster.client(1);
    make_table(&client).await;
    let brief = [("Shoal-Timeout", "2s")];
    let refused = client
        .sql_with(
            "SELECT count(*) FROM t",
            &[brief[0], ("Shoal-Read-From", "follower")],
        )
        .await;
    let refused = refused.expect_err("nobody follows");
    assert!(refused.text.contains("follows it"), "{refused:?}");
    cluster.nodes[0].kill();
    cluster
        .until(1, "the node is not heard of", "/v1/admin/nodes", |nodes| {
            nodes
                .as_array()
                .is_some_and(|all| all.iter().filter(|n| n["state"] == "up").count() == 1)
        })
        .await;
    let refused = client.sql_with("INSERT INTO t VALUES (1)", &brief).await;
    let refused = refused.expect_err("nobody leads");
    assert_eq!(refused.retry, "safe", "{refused:?}");
    assert!(
        refused.text.contains("shoal admin shard promote"),
        "{refused:?}"
    );
    for path in ["gc", "flush"] {
        let refused = client.post(&format!("/v1/admin/{path}"), &json!({})).await;
        let refused = refused.expect_err("its leader is dead");
        assert!(
            refused.text.contains("shoal admin shard promote"),
            "{path}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_data_folder_does_not_end_the_node_that_it_was_copied_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "copied", 1, ONE).await;
    let client = cluster.client(0);
    make_table(&client).await;
    let mut copy = cluster.prepare_node("copy", &[]);
    std::fs::create_dir_all(copy.data_dir()).expect("make the folder");
    let id = std::fs::read(cluster.nodes[0].data_dir().join("node.id")).expect("an id");
    std::fs::write(copy.data_dir().join("node.id"), &id).expect("copy it");
    let ended = copy.try_restart().await;
    assert!(ended.is_err_and(|status| !status.success()));
    assert!(
        copy.log().contains("must not be copied"),
        "{}",
        copy.log_tail()
    );
    // Longer than the registration lives: the node keeps it.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(cluster.nodes[0].is_running());
    client
        .sql("INSERT INTO t VALUES (1)")
        .await
        .expect("it still leads");
    // The same folder's next start takes its place at once.
    cluster.nodes[0].kill();
    cluster.nodes[0].restart().await;
    assert_eq!(cluster.client(0).count("SELECT count(*) FROM t").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_is_told_that_its_table_does_not_exist_while_shards_move() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let cluster = Cluster::start(&stack, dir.path(), "moving", 3, ONE).await;
    let shard = cluster.shard_ids(0).await.remove(0);
    let writer = cluster.client(0);
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for number in 0..6_usize {
        let client = cluster.client(number % 3);
        let level = ["eventual", "session", "strong"][number / 2];
        let stop = Arc::clone(&stop);
        readers.push(tokio::spawn(async move {
            let (mut last, mut reads) = (0, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                let newest = client
                    .count(
                        "SELECT count(*) FROM information_schema.tables WHERE table_name LIKE 't%'",
                    )
                    .await;
                if newest == 0 {
                    continue;
                }
                let query = format!("SELECT count(*) FROM t{}", newest - 1);
                let headers = [("Shoal-Consistency", level)];
                let read = client.sql_with(&query, &headers).await;
                let read = read.unwrap_or_else(|f| panic!("{level}, {query}: {f:?}"));
                if level == "strong" {
                    assert!(read.count() <= 1);
                }
                reads += 1;
                last = newest;
            }
            (last, reads)
        }));
    }
    // A replica that was opened a moment ago has not read the newest tables yet.
    for round in 0..24_usize {
        let table = format!("CREATE TABLE t{round} (k BIGINT, PRIMARY KEY (k))");
        writer.sql(&table).await.expect("create");
        writer
            .sql(&format!("INSERT INTO t{round} VALUES (1)"))
            .await
            .expect("insert");
        cluster.order(0, &shard, "move", (round + 1) % 3).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let (last, reads) = reader.await.expect("no reader failed");
        assert!(last > 1 && reads > 10, "{last} tables, {reads} reads");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_while_its_services_are_away_joins_when_they_are_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "early", 1, ONE).await;
    let client = cluster.client(0);
    make_table(&client).await;
    client
        .sql("INSERT INTO t VALUES (1)")
        .await
        .expect("insert");
    for service in ["s3", "etcd", "kafka1"] {
        cluster.nodes[0].stop().await;
        let said = cluster.nodes[0].log().len();
        stack.act(&["kill", service]);
        let back = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            tokio::task::block_in_place(|| stack.act(&["start", service]));
        };
        tokio::join!(cluster.nodes[0].restart(), back);
        assert_eq!(
            cluster.client(0).count("SELECT count(*) FROM t").await,
            1,
            "{service}"
        );
        let log = cluster.nodes[0].log().split_off(said);
        assert!(log.contains("cannot join yet"), "{service}: {log}");
    }
}
