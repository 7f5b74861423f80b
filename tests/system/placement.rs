//! Where shards and tables go, and who takes writes while that changes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, Stack, shoal_command};

const TWO_SHARDS: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "2")];
const ONE_SHARD: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "1")];
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is to lead a table's shard, as a node knows.
async fn leader_known_to(client: &Client, table: &str) -> Value {
    let route = client.get(&format!("/v1/route/{table}")).await;
    let route: Value = serde_json::from_str(&route.expect("a route")).expect("JSON");
    route["partitions"][0]["leader"]["node"].clone()
}

/// The next leader is named and stands still: the old one has read no claim, so writes through any
/// node go on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_to_the_old_leader_until_the_new_one_has_claimed() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let cluster = Cluster::start(&stack, dir.path(), "handover", 3, ONE_SHARD).await;
    cluster.follow_all(1).await;
    let client = cluster.client(2);
    let create = "CREATE TABLE t (n BIGINT) WITH (mode = 'append')";
    client.sql(create).await.expect("create");
    client
        .sql("INSERT INTO t VALUES (0)")
        .await
        .expect("insert");
    let shard = cluster.shard_ids(0).await.remove(0);
    let next = cluster.nodes[1].node();

    cluster.nodes[1].pause();
    let (orderer, to) = (cluster.client(2), next.clone());
    let ordered = tokio::spawn(async move {
        let path = format!("/v1/admin/shards/{shard}/promote");
        orderer.post(&path, &json!({ "to": to })).await
    });
    let begun = Instant::now();
    while leader_known_to(&client, "t").await != next.as_str() {
        assert!(begun.elapsed() < PATIENCE, "the assignment is not changed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 1..=20 {
        // Without an id a write must not be tried twice: it goes the right way at once.
        let insert = format!("INSERT INTO t VALUES ({n})");
        let written = client.sql_with(&insert, &[("Shoal-Timeout", "5s")]).await;
        written.unwrap_or_else(|failure| panic!("row {n}: {failure:?}"));
    }
    assert!(!ordered.is_finished(), "the next leader stands still");
    cluster.nodes[1].resume();
    let done = ordered.await.expect("joined").expect("promoted");
    let done: Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!(done["state"], "done", "{done}");
    for n in 21..=40 {
        let insert = format!("INSERT INTO t VALUES ({n})");
        client
            .sql(&insert)
            .await
            .expect("written by the new leader");
    }
    for node in 0..3 {
        let all = "SELECT count(DISTINCT n) * 1000 + count(*) FROM t";
        assert_eq!(cluster.client(node).count(all).await, 41_041);
    }
}

fn admin(cluster: &Cluster, words: &[&str]) -> Result<Value, String> {
    let url = cluster.client(0).base().to_owned();
    let mut all = vec!["admin", "--json", "--url", &url];
    all.extend_from_slice(words);
    let run = shoal_command(&all).output().expect("shoal runs");
    if run.status.success() {
        return Ok(serde_json::from_slice(&run.stdout).expect("JSON"));
    }
    Err(String::from_utf8_lossy(&run.stderr).into_owned())
}

fn labels_of(cluster: &Cluster, node: &str) -> Value {
    let nodes = admin(cluster, &["nodes"]).expect("nodes");
    let mut nodes = nodes.as_array().cloned().unwrap_or_default().into_iter();
    nodes.find(|n| n["id"] == node).expect("the node")["labels"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_and_settings_are_changed_while_nodes_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "labels", 0, TWO_SHARDS).await;
    for zone in ["zone=a,rack=1", "zone=b,rack=1", "zone=b,rack=1"] {
        cluster.add_node(&[("SHOAL_CLUSTER_LABELS", zone)]).await;
    }
    cluster.add_scheduler().await;
    cluster.leading_scheduler(0).await;
    cluster.placed(0, 2).await;
    let ids: Vec<String> = cluster.nodes.iter().map(|n| n.node()).collect();
    // The first one comes to share the zone of the others; the third one gets a zone of its own, so
    // every shard has a replica there.
    let said = admin(&cluster, &["label", &ids[0], "zone=b", "rack-"]).expect("labelled");
    assert_eq!(said["labels"], json!({ "zone": "b" }), "{said}");
    admin(&cluster, &["label", &ids[2], "zone=c"]).expect("labelled");
    let third = ids[2].clone();
    cluster
        .until(0, "a replica in each zone", "/v1/admin/shards", |shards| {
            let shards = shards.as_array().map(Vec::as_slice).unwrap_or_default();
            shards.iter().all(|shard| {
                let mut replicas = shard["replicas"].as_array().into_iter().flatten();
                replicas.any(|r| r["node"] == third.as_str())
            })
        })
        .await;
    // They outlast the node's restart, and are its own again when that is said.
    cluster.nodes[0].kill();
    cluster.nodes[0].restart().await;
    let begun = Instant::now();
    while labels_of(&cluster, &ids[0]) != json!({ "zone": "b" }) {
        assert!(
            begun.elapsed() < PATIENCE,
            "{}",
            labels_of(&cluster, &ids[0])
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = admin(&cluster, &["label", &ids[0], "--reset"]).expect("reset");
    assert_eq!(
        said["labels"],
        json!({ "zone": "a", "rack": "1" }),
        "{said}"
    );
    let refused = admin(&cluster, &["label", &ids[0], "zone=a b"]).expect_err("a space");
    assert!(refused.contains("\"a b\""), "{refused}");
    let refused = admin(&cluster, &["label", &ids[0], "zone"]).expect_err("no value");
    assert!(refused.contains("NAME=VALUE"), "{refused}");

    // What was read before another's change does not undo it; the command line reads again.
    let client = cluster.client(1);
    let read = client.get("/v1/admin/settings").await.expect("settings");
    let changed = admin(&cluster, &["settings", "steps_max=17"]).expect("changed");
    assert_eq!(changed["steps_max"], 17, "{changed}");
    // The version that counts is the one that was read, once there is one.
    let read: Value = serde_json::from_str(&read).expect("JSON");
    assert_eq!(read["version"], 0, "{read}");
    let mut stale = changed.clone();
    admin(&cluster, &["settings", "changes_per_node_max=3"]).expect("changed");
    stale["steps_max"] = 18.into();
    let url = format!("{}/v1/admin/settings", client.base());
    let put = reqwest::Client::new().put(url).json(&stale).send().await;
    let put = put.expect("an answer");
    assert_eq!(put.status().as_u16(), 409);
    let now = admin(&cluster, &["settings"]).expect("settings");
    assert_eq!(
        (&now["steps_max"], &now["changes_per_node_max"]),
        (&17.into(), &3.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_tables_go_to_the_shard_with_the_least_load() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "idle", 1, TWO_SHARDS).await;
    cluster.add_scheduler().await;
    cluster.leading_scheduler(0).await;
    let client = cluster.client(0);
    let shard_of = async |table: &str| {
        let route = client.get(&format!("/v1/route/{table}")).await;
        let route: Value = serde_json::from_str(&route.expect("a route")).expect("JSON");
        route["partitions"][0]["shard"].clone()
    };
    let create = async |table: &str| {
        let create = format!("CREATE TABLE {table} (n BIGINT) WITH (mode = 'append')");
        client.sql(&create).await.expect("create");
    };
    create("busy").await;
    let fill = "INSERT INTO busy SELECT value FROM generate_series(1, 200000)";
    client.sql(fill).await.expect("rows");
    let busy = shard_of("busy").await;
    let reading = {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                // Many tables more on a shard that is read all the time would cost these.
                let read = client.sql("SELECT sum(n * n) FROM busy").await;
                read.expect("a read");
            }
        })
    };
    // By number alone every second table would go there. Load is smoothed over ten seconds, and
    // told every five.
    let mut in_a_row = 0;
    let begun = Instant::now();
    let mut made = 0;
    while in_a_row < 4 {
        let table = format!("t{made}");
        create(&table).await;
        made += 1;
        in_a_row = if shard_of(&table).await == busy {
            0
        } else {
            in_a_row + 1
        };
        assert!(begun.elapsed() < PATIENCE, "{made} tables");
        assert!(!reading.is_finished(), "the reader has failed");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    reading.abort();
}

/// What a scheduler is asked that makes no sense is refused, with the place and the remedy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = Cluster::start(&stack, dir.path(), "refusals", 1, ONE_SHARD).await;
    cluster.add_scheduler().await;
    cluster.leading_scheduler(0).await;
    let base = cluster.schedulers[0].client().base().to_owned();
    let http = reqwest::Client::new();
    let answer = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    let settings = format!("{base}/v1/admin/settings");
    for (body, named) in [
        ("[]", "one JSON object"),
        (r#"{"balance": [true, 0.1, 5]}"#, "balance"),
        (r#"{"groups": {"g": [3]}}"#, "groups.g"),
        (
            r#"{"groups": {"g": {"replication": -1}}}"#,
            "groups.g.replication",
        ),
        (r#"{"groups": {"a.b": {}}}"#, "a.b"),
        (
            r#"{"groups": {"g": {"spread": ["", "a"]}}}"#,
            "groups.g.spread",
        ),
        (
            r#"{"replace_after_ms": 18446744073709551615}"#,
            "replace_after_ms",
        ),
        (
            r#"{"balance": {"rest_ms": 18446744073709551615}}"#,
            "balance.rest_ms",
        ),
        (
            r#"{"shards": {"01ARZ3NDEKTSV4RRFFQ69G5FAV": "default"}}"#,
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ),
        (r#"{"steps": 3}"#, "steps"),
    ] {
        let (status, text) = answer(http.put(&settings).body(body)).await;
        assert!(
            status == 400 && text.contains(named),
            "{body}: {status} {text}"
        );
    }
    let (status, text) = answer(http.get(format!("{base}/v1/admin/nodes?x=1"))).await;
    assert!(
        status == 400 && text.contains("\\\"x\\\""),
        "{status} {text}"
    );
    let (status, text) = answer(http.delete(&settings)).await;
    assert!(
        status == 405 && text.contains("method_not_allowed"),
        "{status} {text}"
    );
    let shard = cluster.shard_ids(0).await.remove(0);
    let promote = format!("{base}/v1/admin/shards/{shard}/promote");
    let who = "x".repeat(1_000);
    let (status, text) = answer(http.post(&promote).header("Shoal-Operator", who)).await;
    assert!(
        status == 400 && text.contains("Shoal-Operator"),
        "{status} {text}"
    );
    for words in [
        ["node", "remove", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        ["node", "undrain", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
    ] {
        let refused = admin(&cluster, &words).expect_err("no such node");
        assert!(refused.contains("there is no node"), "{refused}");
    }
    // A drain is found by its id, and called off by it.
    let node = cluster.nodes[0].node();
    let drain = admin(&cluster, &["node", "drain", &node, "--no-wait"]).expect("marked");
    let id = drain["procedure"].as_str().expect("an id").to_owned();
    let shown = admin(&cluster, &["procedures", "show", &id]).expect("shown");
    assert_eq!(
        (&shown["order"], &shown["node"]),
        (&"drain".into(), &node.as_str().into())
    );
    let again = admin(&cluster, &["node", "drain", &node, "--no-wait"]).expect("marked");
    assert_eq!(again["procedure"], drain["procedure"], "the same order");
    admin(&cluster, &["procedures", "cancel", &id]).expect("called off");
    admin(&cluster, &["procedures", "show", &id]).expect_err("there is none any more");
}
