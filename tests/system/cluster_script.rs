//! `scripts/cluster`, and the command line against it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use shoal_tests::{Client, root, shoal_bin, shoal_command};

/// Ends the cluster however the test ends.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let done = cluster(self.0, &["down", "--purge"]);
        if !done.0 {
            eprintln!("{}", done.2);
        }
    }
}

fn cluster(dir: &Path, words: &[&str]) -> (bool, String, String) {
    let done = Command::new(root().join("scripts/cluster"))
        .args(words)
        .arg("--dir")
        .arg(dir)
        .env("SHOAL_BIN", shoal_bin())
        .output()
        .expect("scripts/cluster starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        done.status.success(),
        text(&done.stdout),
        text(&done.stderr),
    )
}

fn up(dir: &Path, words: &[&str]) -> Value {
    let words = [&["up", "--json", "--timeout", "300"], words].concat();
    let (good, out, said) = cluster(dir, &words);
    assert!(good, "{said}");
    serde_json::from_str(&out).expect("JSON")
}

fn admin(url: &str, words: &[&str]) -> Value {
    let mut command = shoal_command(&["admin"]);
    let done = command
        .args(words)
        .args(["--json", "--url", url])
        .output()
        .expect("shoal admin starts");
    assert!(done.status.success(), "{words:?}: {done:?}");
    serde_json::from_slice(&done.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_starts_a_cluster_that_the_command_line_moves_shards_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cluster");
    let _down = Down(&dir);
    let first = [
        "--nodes",
        "2",
        "--shards",
        "2",
        "--replicas",
        "1",
        "--schedulers",
        "0",
    ];
    let first = up(&dir, &first);
    let nodes = first["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        assert!(node["pid"].as_u64().is_some_and(|pid| pid > 1), "{first}");
        assert!(
            node["pg"].as_str().is_some_and(|a| a.contains(':')),
            "{first}"
        );
    }
    assert_eq!(first["schedulers"], Value::Array(Vec::new()));
    assert!(first["s3"]["secret_key"].is_string() && first["etcd"][0].is_string());

    let url = |i: usize| format!("http://{}", nodes[i]["http"].as_str().expect("an address"));
    let listed = admin(&url(0), &["nodes"]);
    let ids: Vec<&str> = nodes.iter().filter_map(|n| n["id"].as_str()).collect();
    for node in listed.as_array().expect("nodes") {
        assert!(
            ids.contains(&node["id"].as_str().expect("an id")),
            "{listed}"
        );
        assert_eq!(node["leads"], 1, "spread: {listed}");
    }
    let client = Client::new(&url(0));
    for i in 0..4 {
        let lines = format!("m{i},host=a v=1 1");
        client.write(lines).await.expect("write");
    }
    let shards = admin(&url(1), &["shards"]);
    let shard = shards[0]["id"].as_str().expect("an id");
    let other = ids
        .iter()
        .find(|id| shards[0]["leader"] != **id)
        .expect("two nodes");
    let added = admin(&url(0), &["shard", "add-follower", shard, "--to", other]);
    assert_eq!(added["state"], "done", "{added}");
    let promoted = admin(&url(0), &["shard", "promote", shard]);
    assert_eq!(promoted["node"], **other, "the only follower: {promoted}");
    assert_eq!(promoted["bytes_copied"], 0);
    let sums = admin(&url(1), &["shard", "checksum", shard]);
    assert_eq!(sums.as_array().map(Vec::len), Some(2), "{sums}");
    assert_eq!(sums[0]["position"], sums[1]["position"], "{sums}");
    let old = shards[0]["leader"].as_str().expect("a leader");
    admin(&url(0), &["shard", "remove-follower", shard, "--to", old]);
    let moved = admin(&url(0), &["shard", "move", shard, "--to", old]);
    assert_eq!(moved["node"], old, "{moved}");
    assert!(
        moved["records_replayed"].is_u64() && moved["pause_ms"].is_f64(),
        "{moved}"
    );
    assert_eq!(client.count("SELECT count(*) FROM m0").await, 1);

    // A node that was killed comes back with its id and its ports.
    let (good, _, said) = cluster(&dir, &["stop-node", "2", "--kill"]);
    assert!(good, "{said}");
    let (good, out, _) = cluster(&dir, &["status"]);
    assert!(!good && out.contains("node2"), "{out}");
    let (good, _, said) = cluster(&dir, &["start-node", ids[1]]);
    assert!(good, "{said}");
    let again = up(&dir, &[]);
    assert_eq!(again["nodes"][1]["id"], ids[1]);
    let (good, out, _) = cluster(&dir, &["status"]);
    assert!(good, "{out}");
    assert_eq!(client.count("SELECT count(*) FROM m1").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedulers_place_the_shards_of_a_cluster_and_it_is_restarted_piece_by_piece() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cluster");
    let _down = Down(&dir);
    let first = up(&dir, &["--nodes", "2", "--shards", "4"]);
    let schedulers = first["schedulers"].as_array().expect("schedulers");
    assert_eq!(schedulers.len(), 2, "{first}");
    let http = |one: &Value| format!("http://{}", one["http"].as_str().expect("an address"));
    for scheduler in schedulers {
        let listed = admin(&http(scheduler), &["nodes"]);
        let listed = listed.as_array().expect("nodes");
        let state = |role: &str| {
            let all = listed.iter().filter(|n| n["role"] == role);
            let mut states: Vec<&str> = all.filter_map(|n| n["state"].as_str()).collect();
            states.sort_unstable();
            states
        };
        assert_eq!(state("node"), ["up", "up"]);
        assert_eq!(state("scheduler"), ["leading", "standby"]);
        // What is about data is answered by a node.
        let shards = admin(&http(scheduler), &["shards"]);
        for shard in shards.as_array().expect("shards") {
            assert_eq!(
                shard["followers"].as_array().map(Vec::len),
                Some(1),
                "{shard}"
            );
        }
    }
    let restarted = cluster(&dir, &["rolling-restart"]);
    assert!(restarted.0, "{}", restarted.2);
    let again = up(&dir, &[]);
    assert_eq!(again["nodes"].as_array().map(Vec::len), Some(2));
    for (old, new) in first["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(again["nodes"].as_array().into_iter().flatten())
    {
        assert_eq!(old["id"], new["id"]);
        assert_ne!(old["pid"], new["pid"]);
    }
    let procedures = admin(&http(&again["nodes"][0]), &["procedures"]);
    let done = procedures.as_array().into_iter().flatten();
    assert!(
        done.filter(|p| p["state"] == "done").count() >= 4,
        "{procedures}"
    );
}
