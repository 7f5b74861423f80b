//! Damaged and lost logs on real Kafka, and an operator's way on through the command line.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use shoal_tests::{Client, Cluster, Stack, shoal_command};

const SMALL: &[(&str, &str)] = &[
    ("SHOAL_ENGINE_SHARDS", "2"),
    ("SHOAL_WAL_WRITE_TIMEOUT_MS", "5000"),
];
const EVENTUAL: [(&str, &str); 1] = [("Shoal-Consistency", "eventual")];

/// CRC-32C, bit by bit: a few kilobytes, once a test.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(low));
        }
    }
    !crc
}

/// Turns a bit of the record at `offset` in a topic's folder. `well_formed`: Kafka does not notice
/// it; the batch has the checksum of what stands in it now.
fn damage(folder: &Path, offset: u64, well_formed: bool) {
    for entry in std::fs::read_dir(folder)
        .expect("the log's folder")
        .flatten()
    {
        if entry.path().extension().is_none_or(|e| e != "log") {
            continue;
        }
        let bytes = std::fs::read(entry.path()).expect("a segment");
        let mut at = 0;
        while at + 61 <= bytes.len() {
            let number = |from: usize, len: usize| {
                let part = &bytes[at + from..at + from + len];
                part.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b))
            };
            let (base, length) = (number(0, 8), number(8, 4) as usize + 12);
            if base == offset {
                let mut batch = bytes[at..at + length].to_vec();
                // The last byte counts headers; before it stand the record's own.
                batch[length - 3] ^= 1;
                if well_formed {
                    let crc = crc32c(&batch[21..]);
                    batch[17..21].copy_from_slice(&crc.to_be_bytes());
                }
                let file = std::fs::OpenOptions::new().write(true).open(entry.path());
                let file = file.expect("the segment");
                file.write_all_at(&batch, at as u64).expect("written");
                return;
            }
            at += length;
        }
    }
    panic!("no batch begins at offset {offset}");
}

/// `shoal admin shard …`: whether it succeeded, and what it said.
fn admin(url: &str, words: &[&str]) -> (bool, String) {
    let done = shoal_command(&["admin", "shard"])
        .args(words)
        .args(["--json", "--url", url])
        .output()
        .expect("shoal admin starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        done.status.success(),
        text(&done.stdout) + &text(&done.stderr),
    )
}

/// Inserts a row; its token.
async fn insert(client: &Client, table: &str, k: u64) -> String {
    let insert = format!("INSERT INTO {table} VALUES ({k})");
    let done = client.sql_with(&insert, &[]).await.expect("insert");
    done.header("Shoal-Commit-Token").to_owned()
}

fn parts(token: &str) -> (String, u64) {
    let (shard, _) = token.split_once('.').expect("a token");
    let (_, offset) = token.rsplit_once('.').expect("a token");
    (shard.to_owned(), offset.parse().expect("an offset"))
}

async fn session(client: &Client, table: &str, token: &str) -> Result<u64, String> {
    let headers = [
        ("Shoal-Consistency", "session"),
        ("Shoal-Commit-Token", token),
    ];
    let read = client
        .sql_with(&format!("SELECT count(*) FROM {table}"), &headers)
        .await;
    read.map(|answer| answer.count()).map_err(|f| f.text)
}

/// Waits until a node says that a shard's log can be replaced.
async fn says_adopt_log(cluster: &Cluster, node: usize, shard: &str) {
    cluster
        .until(node, "it says so", "/v1/admin/shards", |shards| {
            let mut shards = shards.as_array().into_iter().flatten();
            shards.any(|s| {
                let why = s["why"].as_str();
                s["id"] == shard && why.is_some_and(|why| why.contains("adopt-log"))
            })
        })
        .await;
}

/// Goes on with a new log, as soon as the nodes know that the old one is lost.
async fn adopt_log(cluster: &Cluster, shard: &str) {
    let url = cluster.client(1).base().to_owned();
    let mut tries = 0;
    loop {
        let (good, said) = admin(&url, &["adopt-log", shard, "--accept-loss"]);
        if good {
            break;
        }
        tries += 1;
        assert!(tries < 60, "{said}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    serving(cluster, shard).await;
}

/// Two tables on two shards.
async fn tables(client: &Client) {
    for table in ["one", "two"] {
        let create = format!("CREATE TABLE {table} (k BIGINT) WITH (mode = 'append')");
        client.sql(&create).await.expect("create");
    }
}

async fn state(cluster: &Cluster, at: usize, shard: &str) -> Value {
    let shards = cluster.shards(at).await;
    let found = shards.into_iter().find(|s| s["id"] == shard);
    found.expect("the shard")
}

async fn serving(cluster: &Cluster, shard: &str) {
    cluster
        .until(0, "all replicas serve", "/v1/admin/shards", |shards| {
            let shards = shards.as_array().into_iter().flatten();
            let mut this = shards.filter(|s| s["id"] == shard);
            this.next().is_some_and(|s| {
                let replicas = s["replicas"].as_array().cloned().unwrap_or_default();
                !replicas.is_empty() && replicas.iter().all(|r| r["state"] == "serving")
            })
        })
        .await;
}

/// Each of the two kinds of damage: the record's, and that of Kafka's batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_given_up_and_all_nodes_serve_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "hurt", 3, SMALL).await;
    cluster.follow_all(1).await;
    cluster.follow_all(2).await;
    tables(&cluster.client(0)).await;
    let mut rows = 0;
    for well_formed in [true, false] {
        let client = cluster.client(0);
        let mut tokens = Vec::new();
        for k in 0..10 {
            tokens.push(insert(&client, "one", k).await);
            insert(&client, "two", k).await;
        }
        let (shard, offset) = parts(&tokens[5]);
        for node in &mut cluster.nodes {
            node.stop().await;
        }
        damage(&stack.log_folder("hurt", &shard), offset, well_formed);
        for node in &mut cluster.nodes {
            node.restart().await;
        }
        for node in 0..3 {
            let client = cluster.client(node);
            cluster
                .until(node, "it halts", "/v1/admin/shards", |shards| {
                    let shards = shards.as_array().into_iter().flatten();
                    let mut this = shards.filter(|s| s["id"] == shard.as_str());
                    this.all(|s| s["replicas"][node]["state"] == "damaged")
                })
                .await;
            let read = client.sql_with("SELECT count(*) FROM one", &EVENTUAL).await;
            assert_eq!(read.expect("eventual").count(), rows + 5);
            let strong = client.sql("SELECT count(*) FROM one").await;
            let strong = strong.expect_err("it is not known what was acknowledged");
            assert!(strong.text.contains("skip-record"), "{strong:?}");
            let write = client.sql("INSERT INTO one VALUES (100)").await;
            let write = write.expect_err("nobody leads");
            assert_eq!(write.retry, "safe", "definite: {write:?}");
            // The other shard is not concerned.
            insert(&client, "two", 100).await;
        }
        let health = cluster.client(1).get("/health/ready").await.expect("ready");
        assert!(health.contains("skip-record"), "{health}");

        let url = cluster.client(2).base().to_owned();
        let at = offset.to_string();
        // So much that it is unique.
        let prefix = &shard[..24];
        let (good, said) = admin(&url, &["skip-record", prefix, &at]);
        assert!(!good && said.contains("nothing was changed"), "{said}");
        let (good, said) = admin(&url, &["skip-record", prefix, "1", "--accept-loss"]);
        assert!(
            !good && said.contains(&format!("the damage is at {offset}")),
            "{said}"
        );
        let words = [
            "skip-record",
            prefix,
            &at,
            "--accept-loss",
            "--reason",
            "bit rot",
        ];
        let (good, said) = admin(&url, &words);
        assert!(good && said.contains("\"done\""), "{said}");
        serving(&cluster, &shard).await;
        rows += 9;
        for node in 0..3 {
            let client = cluster.client(node);
            assert_eq!(client.count("SELECT count(*) FROM one").await, rows);
            let refused = session(&client, "one", &tokens[5]).await;
            assert!(refused.is_err_and(|why| why.contains("given up")));
            assert_eq!(session(&client, "one", &tokens[9]).await, Ok(rows));
        }
        let again = admin(&url, &["skip-record", prefix, &at, "--accept-loss"]);
        assert!(again.1.contains("not damaged"), "{}", again.1);
        cluster.replicas_agree(1).await;
    }
    let events =
        "SELECT count(*) FROM system.events WHERE event = 'record_skipped' AND reason = 'bit rot'";
    assert_eq!(cluster.client(1).count(events).await, 2);
    insert(&cluster.client(2), "one", 200).await;
    assert_eq!(
        cluster.client(0).count("SELECT count(*) FROM one").await,
        rows + 1
    );
}

/// One node read the record before it was damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_that_one_node_has_read_is_not_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "saved", 2, SMALL).await;
    cluster.follow_all(1).await;
    tables(&cluster.client(0)).await;
    let client = cluster.client(0);
    let token = insert(&client, "one", 0).await;
    insert(&client, "one", 1).await;
    let (shard, offset) = parts(&token);
    cluster.nodes[0].stop().await;
    damage(&stack.log_folder("saved", &shard), offset, true);
    cluster.nodes[0].restart().await;
    cluster
        .until(0, "the leader halts", "/v1/admin/shards", |shards| {
            let mut shards = shards.as_array().into_iter().flatten();
            shards.any(|s| s["id"] == shard.as_str() && s["state"] == "damaged")
        })
        .await;
    let url = cluster.client(0).base().to_owned();
    let at = offset.to_string();
    let (good, said) = admin(&url, &["skip-record", &shard, &at]);
    assert!(
        !good && said.contains("nothing: the replica at node"),
        "{said}"
    );
    let (good, said) = admin(&url, &["skip-record", &shard, &at, "--accept-loss"]);
    assert!(good, "{said}");
    serving(&cluster, &shard).await;
    for node in 0..2 {
        let client = cluster.client(node);
        assert_eq!(client.count("SELECT count(*) FROM one").await, 2);
        assert_eq!(session(&client, "one", &token).await, Ok(2));
    }
    insert(&cluster.client(0), "one", 2).await;
    cluster.replicas_agree(0).await;
    let shown = state(&cluster, 0, &shard).await;
    assert_eq!(shown["losses"], Value::Null, "{shown}");
}

fn lose_log(stack: &Stack, cluster: &str, shard: &str) {
    let folder = stack.log_folder(cluster, shard);
    stack.act(&["kill", "kafka1"]);
    std::fs::remove_dir_all(folder).expect("removed");
    stack.act(&["start", "kafka1"]);
}

/// The log is gone while no node runs: what was not in files is lost, and everybody is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_log_is_replaced_and_tokens_of_what_it_held_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "lost", 2, SMALL).await;
    cluster.follow_all(1).await;
    tables(&cluster.client(0)).await;
    let client = cluster.client(0);
    let older = insert(&client, "one", 0).await;
    client.flush().await.expect("flush");
    let lost = insert(&client, "one", 1).await;
    let (shard, _) = parts(&lost);
    let url = client.base().to_owned();
    let (good, said) = admin(&url, &["adopt-log", &shard, "--accept-loss"]);
    assert!(!good && said.contains("in order"), "{said}");
    for node in &mut cluster.nodes {
        node.stop().await;
    }
    lose_log(&stack, "lost", &shard);
    for node in &mut cluster.nodes {
        node.restart().await;
    }
    for node in 0..2 {
        insert(&cluster.client(node), "two", 0).await;
        says_adopt_log(&cluster, node, &shard).await;
    }
    let url = cluster.client(1).base().to_owned();
    let (good, said) = admin(&url, &["adopt-log", &shard]);
    assert!(!good && said.contains("is in files"), "{said}");
    let (good, said) = admin(
        &url,
        &["adopt-log", &shard, "--accept-loss", "--reason", "disk"],
    );
    assert!(good && said.contains("log_adopted"), "{said}");
    serving(&cluster, &shard).await;
    let new = insert(&cluster.client(0), "one", 2).await;
    assert_eq!(parts(&new).0, shard);
    assert!(parts(&new).1 > parts(&lost).1);
    for node in 0..2 {
        let client = cluster.client(node);
        assert_eq!(client.count("SELECT count(*) FROM one").await, 2);
        assert_eq!(session(&client, "one", &older).await, Ok(2));
        assert_eq!(session(&client, "one", &new).await, Ok(2));
        let refused = session(&client, "one", &lost).await;
        assert!(refused.is_err_and(|why| why.contains("given up")));
    }
    cluster
        .client(1)
        .sql("UPDATE one SET k = 7 WHERE k = 2")
        .await
        .expect("update");
    cluster.client(0).flush().await.expect("flush");
    cluster.replicas_agree(1).await;
    for node in &mut cluster.nodes {
        node.stop().await;
    }
    for node in &mut cluster.nodes {
        node.restart().await;
    }
    assert_eq!(
        cluster
            .client(1)
            .count("SELECT count(*) FROM one WHERE k = 7")
            .await,
        1
    );
    let events =
        "SELECT count(*) FROM system.events WHERE event = 'log_adopted' AND reason = 'disk'";
    assert_eq!(cluster.client(0).count(events).await, 1);
}

/// The log is gone under running nodes: their memory has what it held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_running_nodes_have_read_outlives_their_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let cluster = Cluster::start(&stack, dir.path(), "kept", 2, SMALL).await;
    cluster.follow_all(1).await;
    tables(&cluster.client(0)).await;
    let client = cluster.client(0);
    client.flush().await.expect("flush");
    for k in 0..20 {
        insert(&client, "one", k).await;
    }
    let token = insert(&client, "one", 20).await;
    let (shard, _) = parts(&token);
    lose_log(&stack, "kept", &shard);
    says_adopt_log(&cluster, 0, &shard).await;
    adopt_log(&cluster, &shard).await;
    for node in 0..2 {
        let client = cluster.client(node);
        assert_eq!(
            client.count("SELECT count(*) FROM one").await,
            21,
            "nothing is lost"
        );
        assert_eq!(session(&client, "one", &token).await, Ok(21));
    }
    insert(&cluster.client(1), "one", 21).await;
    cluster.replicas_agree(0).await;
}

/// The topic is deleted under running nodes: the follower goes on with the new log, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_of_a_deleted_topic_follow_the_log_in_its_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let cluster = Cluster::start(&stack, dir.path(), "deleted", 2, SMALL).await;
    cluster.follow_all(1).await;
    tables(&cluster.client(0)).await;
    let token = insert(&cluster.client(0), "one", 0).await;
    let (shard, _) = parts(&token);
    let folder = stack.log_folder("deleted", &shard);
    let topic = folder.file_name().and_then(|name| name.to_str());
    let topic = topic
        .and_then(|name| name.strip_suffix("-0"))
        .expect("a topic");
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", stack.brokers());
    let kafka: AdminClient<DefaultClientContext> = settings.create().expect("client");
    let deleted = kafka.delete_topics(&[topic], &AdminOptions::new()).await;
    deleted.expect("asked").remove(0).expect("deleted");
    adopt_log(&cluster, &shard).await;
    insert(&cluster.client(1), "one", 1).await;
    // The follower looks every few seconds whether the shard has another log.
    for node in 0..2 {
        let mut tries = 0;
        while let Err(why) = cluster.client(node).sql("SELECT count(*) FROM one").await {
            tries += 1;
            assert!(tries < 6, "{why:?}");
        }
        let client = cluster.client(node);
        assert_eq!(client.count("SELECT count(*) FROM one").await, 2);
    }
    cluster.replicas_agree(0).await;
}
