//! Schedulers over nodes on real Kafka, MinIO and etcd: what fails is replaced, by itself, while
//! clients write and read.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use shoal_tests::{Cluster, Stack};

use crate::faults::Clients;

const FEW: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "4")];

/// Three nodes, two schedulers, two replicas of every shard.
pub(super) async fn healing(stack: &Stack, folder: &std::path::Path, name: &str) -> Cluster {
    let mut cluster = Cluster::start(stack, folder, name, 3, FEW).await;
    for _ in 0..2 {
        cluster.add_scheduler().await;
    }
    cluster.leading_scheduler(0).await;
    cluster.placed(0, 2).await;
    cluster
}

/// The shard of the table that the clients write, and who leads it.
pub(super) async fn leader_of(cluster: &Cluster, asked_at: usize) -> usize {
    cluster.leader_of("one", asked_at).await
}

pub(super) async fn post(cluster: &Cluster, at: usize, path: &str, body: Value) -> Value {
    let answer = cluster.client(at).post(path, &body).await;
    let text = answer.unwrap_or_else(|failure| panic!("{path}: {failure:?}"));
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_replaced_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = healing(&stack, dir.path(), "healing").await;
    let clients = Clients::start(&cluster, 4).await;
    clients.progress(40).await;

    // A leader dies, and comes back.
    let dead = leader_of(&cluster, 0).await;
    let asked_at = (dead + 1) % 3;
    cluster.nodes[dead].kill();
    clients.moved(&cluster);
    clients.progress(40).await;
    assert_ne!(leader_of(&cluster, asked_at).await, dead);
    cluster.nodes[dead].restart().await;
    clients.moved(&cluster);
    cluster.placed(asked_at, 2).await;

    // One is frozen for longer than anybody waits, then goes on as if nothing had been.
    let frozen = leader_of(&cluster, asked_at).await;
    let asked_at = (frozen + 1) % 3;
    cluster.nodes[frozen].pause();
    clients.progress(40).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_ne!(leader_of(&cluster, asked_at).await, frozen);
    cluster.nodes[frozen].resume();
    clients.progress(40).await;
    cluster.placed(asked_at, 2).await;

    // The scheduler that leads dies, and then a leader.
    let lost = cluster.leading_scheduler(0).await;
    cluster.schedulers[lost].kill();
    let next = cluster.leading_scheduler(0).await;
    assert_ne!(next, lost);
    let dead = leader_of(&cluster, 0).await;
    let asked_at = (dead + 1) % 3;
    cluster.nodes[dead].kill();
    clients.moved(&cluster);
    clients.progress(40).await;
    cluster.schedulers[lost].restart().await;
    cluster.nodes[dead].restart().await;
    clients.moved(&cluster);
    cluster.placed(asked_at, 2).await;

    // Healthy leaders are taken for dead, again and again.
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..10 {
        let shards = cluster.shard_ids(0).await;
        let shard = &shards[rng.random_range(0..shards.len())];
        let path = format!("/v1/admin/shards/{shard}/promote");
        let done = post(&cluster, 0, &path, json!({})).await;
        assert_eq!(done["state"], "done", "{done}");
        clients.progress(5).await;
    }

    // Both schedulers are away: what is placed goes on. Then a node is emptied under load.
    for scheduler in &mut cluster.schedulers {
        scheduler.kill();
    }
    clients.progress(40).await;
    for scheduler in &mut cluster.schedulers {
        scheduler.restart().await;
    }
    cluster.leading_scheduler(0).await;
    let drained = cluster.nodes[0].node();
    let path = format!("/v1/admin/nodes/{drained}/drain");
    let done = post(&cluster, 1, &path, json!({})).await;
    assert_eq!(done["state"], "done", "{done}");
    for shard in cluster.shards(1).await {
        let others = shard["followers"].as_array().expect("followers");
        assert!(shard["leader"] != drained.as_str(), "{shard}");
        assert!(
            others.len() == 1 && others[0] != drained.as_str(),
            "{shard}"
        );
    }
    clients.progress(40).await;
    post(
        &cluster,
        1,
        &format!("/v1/admin/nodes/{drained}/undrain"),
        json!({}),
    )
    .await;
    cluster
        .until(
            1,
            "an undrained node leads again",
            "/v1/admin/nodes",
            |nodes| {
                let mut nodes = nodes.as_array().into_iter().flatten();
                nodes.any(|n| n["id"] == drained.as_str() && n["leads"].as_u64() >= Some(1))
            },
        )
        .await;

    clients.end(&cluster.client(2)).await;
    cluster.replicas_agree(1).await;
    // All of it is in the journal.
    let journal = "SELECT count(*) FROM shoal.procedures WHERE task = 'fail-over' AND state = 'done' AND pause_ms > 0";
    assert!(cluster.client(1).count(journal).await >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_any_age_never_fail_while_a_leader_is_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = healing(&stack, dir.path(), "eventual").await;
    let mut clients = Clients::start(&cluster, 2).await;
    clients.progress(20).await;
    let dead = leader_of(&cluster, 0).await;
    for other in (0..3).filter(|n| *n != dead) {
        clients.read_eventually(cluster.client(other));
    }
    for _ in 0..3 {
        clients.progress(20).await;
        cluster.nodes[dead].kill();
        clients.moved(&cluster);
        clients.progress(40).await;
        cluster.nodes[dead].restart().await;
        clients.moved(&cluster);
        cluster.placed((dead + 1) % 3, 2).await;
        // It leads the table's shard again, for the next round.
        let route = cluster.client(dead).get("/v1/route/one").await;
        let route: Value = serde_json::from_str(&route.expect("a route")).expect("JSON");
        let shard = route["partitions"][0]["shard"]
            .as_str()
            .expect("a shard")
            .to_owned();
        let done = cluster.order(dead, &shard, "move", dead).await;
        assert_eq!(done["state"], "done", "{done}");
        // It came in the place of the replica that led before; another one is made.
        cluster.placed((dead + 1) % 3, 2).await;
    }
    clients.end(&cluster.client((dead + 1) % 3)).await;
}

/// Faults at random for `SHOAL_FAULT_SECONDS` (30), by the seed `SHOAL_FAULT_SEED` (7). The broker is
/// among what fails only with `SHOAL_FAULT_BROKER=1`: clients of one that was frozen now and then
/// take longer to come back than this test waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds: u64 = number("SHOAL_FAULT_SECONDS").unwrap_or(30);
    let seed = number("SHOAL_FAULT_SEED").unwrap_or(7);
    eprintln!("SHOAL_FAULT_SEED={seed} SHOAL_FAULT_SECONDS={seconds}");
    let broker = std::env::var_os("SHOAL_FAULT_BROKER").is_some();
    let services = 2 + usize::from(broker);
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = healing(&stack, dir.path(), "faults").await;
    let clients = Clients::start(&cluster, 3).await;
    let until = std::time::Instant::now() + Duration::from_secs(seconds);
    let mut faults = 0;
    while std::time::Instant::now() < until {
        clients.progress(20).await;
        let node = rng.random_range(0..3_usize);
        let asked_at = (node + 1) % 3;
        let scheduler = rng.random_range(0..2_usize);
        let pause = Duration::from_millis(rng.random_range(100..5_000));
        let fault = rng.random_range(0..8);
        eprintln!("fault {faults}: kind {fault}, node {node}, scheduler {scheduler}, {pause:?}");
        match fault {
            0 | 1 => {
                cluster.nodes[node].kill();
                clients.moved(&cluster);
                tokio::time::sleep(pause).await;
                cluster.nodes[node].restart().await;
                clients.moved(&cluster);
            }
            2 | 3 => {
                cluster.nodes[node].pause();
                tokio::time::sleep(pause).await;
                cluster.nodes[node].resume();
            }
            4 => {
                cluster.schedulers[scheduler].kill();
                tokio::time::sleep(pause).await;
                cluster.schedulers[scheduler].restart().await;
            }
            5 => {
                cluster.schedulers[scheduler].pause();
                tokio::time::sleep(pause).await;
                cluster.schedulers[scheduler].resume();
            }
            _ => {
                let service = ["s3", "etcd", "kafka1"][rng.random_range(0..services)];
                tokio::task::block_in_place(|| stack.pause(service));
                tokio::time::sleep(pause).await;
                tokio::task::block_in_place(|| stack.resume(service));
            }
        }
        faults += 1;
        // The next fault meets a cluster that is whole, so that two at a time are never too many.
        cluster.placed(asked_at, 2).await;
    }
    clients.progress(20).await;
    clients.end(&cluster.client(0)).await;
    cluster.replicas_agree(0).await;
    eprintln!("{faults} faults");
}

/// All processes are restarted, one after another, each node after it gave its leads away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = healing(&stack, dir.path(), "rolling").await;
    let clients = Clients::start(&cluster, 3).await;
    clients.progress(20).await;
    for scheduler in 0..2 {
        cluster.schedulers[scheduler].stop().await;
        clients.progress(20).await;
        cluster.schedulers[scheduler].restart().await;
    }
    for node in 0..3 {
        let asked_at = (node + 1) % 3;
        cluster.leading_scheduler(asked_at).await;
        let id = cluster.nodes[node].node();
        let path = format!("/v1/admin/nodes/{id}/drain");
        let done = post(&cluster, asked_at, &path, json!({"leads_only": true})).await;
        assert_eq!(
            (&done["state"], &done["leads"]),
            (&json!("done"), &json!(0)),
            "{done}"
        );
        // Clients are sent elsewhere first, as a load balancer does.
        let others = cluster.nodes.iter().enumerate().filter(|(i, _)| *i != node);
        clients.only(others.map(|(_, n)| n.client()).collect());
        clients.progress(20).await;
        cluster.nodes[node].stop().await;
        clients.progress(20).await;
        cluster.nodes[node].restart().await;
        clients.moved(&cluster);
        post(
            &cluster,
            asked_at,
            &format!("/v1/admin/nodes/{id}/undrain"),
            json!({}),
        )
        .await;
        cluster.placed(asked_at, 2).await;
    }
    clients.progress(20).await;
    // On a machine that is not overloaded: none.
    eprintln!("{} writes were repeated", clients.retries());
    clients.end(&cluster.client(0)).await;
    cluster.replicas_agree(0).await;
}

/// etcd is restored from a backup that is older than the last moves: what nodes have obeyed since
/// counts, in terms that are higher still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_backup_of_etcd_takes_nothing_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = healing(&stack, dir.path(), "restored").await;
    post(&cluster, 0, "/v1/admin/balance/off", json!({})).await;
    let clients = Clients::start(&cluster, 2).await;
    clients.progress(20).await;
    let etcd = stack.data_folder("etcd");
    let backup = dir.path().join("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        let done = std::process::Command::new("cp")
            .arg("-r")
            .args([from, to])
            .status();
        assert!(done.expect("cp").success());
    };
    tokio::task::block_in_place(|| {
        stack.act(&["kill", "etcd"]);
        copy(&etcd, &backup);
        stack.act(&["start", "etcd"]);
    });
    cluster.leading_scheduler(0).await;
    let term = |shard: &Value| shard["assignment"]["term"].as_u64().expect("a term");
    let before = cluster.shards(0).await;
    for shard in &before {
        let id = shard["id"].as_str().expect("an id");
        for _ in 0..2 {
            let path = format!("/v1/admin/shards/{id}/promote");
            let done = post(&cluster, 0, &path, json!({})).await;
            assert_eq!(done["state"], "done", "{done}");
        }
    }
    clients.progress(20).await;
    let moved = cluster.shards(0).await;
    tokio::task::block_in_place(|| {
        stack.act(&["kill", "etcd"]);
        copy(&backup, &etcd);
        stack.act(&["start", "etcd"]);
    });
    clients.progress(100).await;
    cluster.leading_scheduler(0).await;
    cluster
        .until(0, "terms rise", "/v1/admin/shards", |shards| {
            let shards = shards.as_array().map(Vec::as_slice).unwrap_or_default();
            shards.len() == moved.len()
                && shards.iter().zip(&moved).all(|(now, then)| {
                    assert_eq!(now["id"], then["id"]);
                    now["state"] == "serving"
                        && now["assignment"]["term"].as_u64() > Some(term(then))
                })
        })
        .await;
    clients.progress(50).await;
    clients.end(&cluster.client(0)).await;
    cluster.replicas_agree(0).await;
    // The nodes are still told what to do.
    let dead = leader_of(&cluster, 0).await;
    cluster.nodes[dead].kill();
    cluster.placed((dead + 1) % 3, 1).await;
}
