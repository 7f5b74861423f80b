//! Members of etcd and Kafka are lost, and nodes stand still for long, while clients write and
//! read. What is printed of pauses is for a reader: nothing is asserted about time.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, EtcdMember, Members, Stack, shoal_command};

use crate::failover::{healing, leader_of, post};
use crate::faults::Clients;

const ETCDS: Members = Members {
    brokers: 1,
    etcds: 3,
};
const BROKERS: Members = Members {
    brokers: 3,
    etcds: 1,
};

/// Long enough for a loaded machine; a hang still ends.
const PATIENCE: Duration = Duration::from_secs(60);

fn act(stack: &Stack, words: &[&str]) {
    tokio::task::block_in_place(|| stack.act(words));
}

/// Waits until something holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !holds().await {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The member that leads, and the others.
async fn led(etcds: &[EtcdMember]) -> (&str, Vec<&str>) {
    let mut others: Vec<&str> = etcds.iter().map(|m| m.name.as_str()).collect();
    for (at, member) in etcds.iter().enumerate() {
        if member.leads().await {
            return (others.remove(at), others);
        }
    }
    panic!("no member leads");
}

/// A cluster that replaces what is lost and changes nothing else.
async fn resting(stack: &Stack, folder: &std::path::Path, name: &str) -> Cluster {
    let cluster = healing(stack, folder, name).await;
    post(&cluster, 0, "/v1/admin/balance/off", json!({})).await;
    let path = "/v1/admin/procedures";
    cluster
        .until(0, "moves have ended", path, |procedures| {
            let mut all = procedures.as_array().expect("procedures").iter();
            all.all(|p| p["state"] != "running")
        })
        .await;
    cluster.placed(0, 2).await;
    cluster
}

/// Clients of all nodes but one.
fn others(cluster: &Cluster, node: usize) -> Vec<Client> {
    let nodes = (0..cluster.nodes.len()).filter(|n| *n != node);
    nodes.map(|n| cluster.client(n)).collect()
}

/// Kills the node that leads the shard of table `one`, waits until another one does and clients go
/// on, and starts it again.
async fn a_leader_is_replaced(cluster: &mut Cluster, clients: &Clients) {
    let dead = leader_of(cluster, 0).await;
    let asked_at = (dead + 1) % 3;
    cluster.nodes[dead].kill();
    clients.moved(cluster);
    clients.all_progress(10).await;
    assert_ne!(leader_of(cluster, asked_at).await, dead);
    cluster.nodes[dead].restart().await;
    clients.moved(cluster);
    cluster.placed(asked_at, 2).await;
}

/// A follower of the shard of table `one` is given the lead, as an operator would, who asks again
/// until it is: a follower may have been opened a moment ago, and a scheduler may go before it
/// answers. To lead twice is no harm.
async fn an_order_is_carried_out(cluster: &Cluster, at: usize) {
    let client = cluster.client(at);
    let route = client.get("/v1/route/one").await.expect("a route");
    let route: Value = serde_json::from_str(&route).expect("JSON");
    let shard = route["partitions"][0]["shard"].as_str().expect("a shard");
    let path = format!("/v1/admin/shards/{shard}/promote");
    until("the order is carried out", async || {
        match client.post(&path, &json!({})).await {
            Ok(done) => {
                assert!(done.contains("\"done\""), "{done}");
                true
            }
            Err(failure) => {
                assert_ne!(failure.retry, "never", "{failure:?}");
                false
            }
        }
    })
    .await;
}

/// Waits until every process is registered, hears changes of etcd, and a scheduler leads.
async fn all_are_heard_of(cluster: &Cluster) {
    cluster.leading_scheduler(0).await;
    cluster
        .until(0, "all are up", "/v1/admin/nodes", |nodes| {
            let nodes = nodes.as_array().into_iter().flatten();
            let well = nodes.filter(|n| {
                ["up", "leading", "standby"]
                    .iter()
                    .any(|s| n["state"] == *s)
            });
            well.count() == cluster.nodes.len() + cluster.schedulers.len()
        })
        .await;
    for node in 0..cluster.nodes.len() {
        let client = cluster.client(node);
        until("a node hears changes", async || {
            hears_changes(&client).await == Some(true)
        })
        .await;
    }
}

/// Whether a node hears what changes in etcd, as its metrics say.
async fn hears_changes(client: &Client) -> Option<bool> {
    let metrics = client.get("/metrics").await.ok()?;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("shoal_cluster_topology_interrupted "));
    value.map(|value| value == "0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_of_three_members_of_etcd_may_be_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::with(dir.path(), ETCDS);
    let mut cluster = resting(&stack, dir.path(), "members").await;
    let clients = Clients::start(&cluster, 4).await;
    clients.all_progress(5).await;
    let etcds = stack.etcds();
    // Each in turn, so that everybody loses the one that he is connected to, and so that the next
    // loss leaves a quorum only if this one has come back. A follower, the leader, the third.
    let (_, followers) = led(&etcds).await;
    let mut left: Vec<&str> = etcds.iter().map(|m| m.name.as_str()).collect();
    let mut next = followers[0];
    while !left.is_empty() {
        left.retain(|m| *m != next);
        clients.longest_pause();
        act(&stack, &["kill", next]);
        a_leader_is_replaced(&mut cluster, &clients).await;
        all_are_heard_of(&cluster).await;
        an_order_is_carried_out(&cluster, 0).await;
        eprintln!(
            "without {next}: the longest pause of a writer was {:?}",
            clients.longest_pause()
        );
        act(&stack, &["start", next]);
        clients.all_progress(10).await;
        let (leader, _) = led(&etcds).await;
        next = left
            .iter()
            .find(|m| **m == leader)
            .or(left.first())
            .copied()
            .unwrap_or_default();
    }

    // One stands still, as a machine that is cut off: connections to it live, and say nothing.
    for etcd in &etcds {
        clients.longest_pause();
        act(&stack, &["pause", &etcd.name]);
        let since = Instant::now();
        a_leader_is_replaced(&mut cluster, &clients).await;
        eprintln!(
            "{} frozen: the longest pause of a writer was {:?}, all was well after {:?}",
            etcd.name,
            clients.longest_pause(),
            since.elapsed()
        );
        act(&stack, &["resume", &etcd.name]);
        all_are_heard_of(&cluster).await;
    }
    clients.end(&cluster.client(0)).await;
    cluster.replicas_agree(0).await;
}

/// Nodes, schedulers and the command line say of orders that they may be given again.
async fn orders_are_refused(cluster: &Cluster, shard: &str) {
    let promote = format!("/v1/admin/shards/{shard}/promote");
    let drain = format!("/v1/admin/nodes/{}/drain", cluster.nodes[0].node());
    let create = json!({ "sql": "CREATE TABLE new (k BIGINT, PRIMARY KEY (k))" });
    let (node, scheduler) = (cluster.client(0), cluster.schedulers[0].client());
    let orders = [
        (promote.as_str(), &json!({})),
        (drain.as_str(), &json!({})),
        ("/v1/admin/balance/on", &json!({})),
        ("/v1/sql", &create),
    ];
    for (path, body) in orders {
        for (at, client) in [("a node", &node), ("a scheduler", &scheduler)] {
            let since = Instant::now();
            let failure = client.post(path, body).await.expect_err(path);
            eprintln!("{path} at {at}: refused after {:?}", since.elapsed());
            assert!(failure.status >= Some(500), "{path} at {at}: {failure:?}");
            assert_eq!(failure.retry, "safe", "{path} at {at}: {failure:?}");
        }
    }
    let words = ["admin", "shard", "promote", shard, "--url", node.base()];
    let told = shoal_command(&words).output().expect("shoal admin starts");
    let why = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{why}");
    assert!(why.contains("ask again"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_of_etcd_what_is_placed_goes_on_and_nothing_is_changed() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::with(dir.path(), ETCDS);
    let mut cluster = resting(&stack, dir.path(), "quorum").await;
    let clients = Clients::start(&cluster, 4).await;
    clients.all_progress(5).await;
    let etcds = stack.etcds();
    let (leader, followers) = led(&etcds).await;
    let before = cluster.shards(0).await;

    act(&stack, &["kill", leader, followers[0]]);
    clients.longest_pause();
    for scheduler in &cluster.schedulers {
        let client = scheduler.client();
        until("no scheduler leads", async || {
            let live = client.get("/health/live").await.expect("it lives");
            live.contains("\"leading\":false")
        })
        .await;
    }
    for node in 0..3 {
        let client = cluster.client(node);
        until("nodes say so", async || {
            hears_changes(&client).await == Some(false)
        })
        .await;
    }
    // By then the registrations of nodes have ended, too.
    tokio::time::sleep(Duration::from_secs(6)).await;
    clients.all_progress(20).await;
    eprintln!(
        "no quorum: the longest pause of a writer was {:?}, {} tries were repeated",
        clients.longest_pause(),
        clients.retries()
    );

    let shard = before[0]["id"].as_str().expect("an id");
    orders_are_refused(&cluster, shard).await;

    // A leader dies, and nobody may replace it.
    let dead = leader_of(&cluster, 0).await;
    let asked_at = (dead + 1) % 3;
    let id = cluster.nodes[dead].node();
    cluster.nodes[dead].kill();
    clients.moved(&cluster);
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (now, then) in cluster.shards(asked_at).await.iter().zip(&before) {
        assert_eq!(now["assignment"], then["assignment"], "{now}");
    }

    act(&stack, &["start", leader, followers[0]]);
    clients.all_progress(10).await;
    eprintln!(
        "a quorum again: the longest pause of a writer was {:?}",
        clients.longest_pause()
    );
    cluster.leading_scheduler(asked_at).await;
    cluster.placed(asked_at, 1).await;
    for (now, then) in cluster.shards(asked_at).await.iter().zip(&before) {
        // Nobody else was taken for dead.
        let stays = then["leader"] != id.as_str();
        assert_eq!(
            now["leader"] == then["leader"],
            stays,
            "{now}, before {then}"
        );
    }
    cluster.nodes[dead].restart().await;
    clients.moved(&cluster);
    all_are_heard_of(&cluster).await;
    an_order_is_carried_out(&cluster, asked_at).await;
    no_order_was_kept(&cluster, asked_at).await;
    clients.all_progress(10).await;
    clients.end(&cluster.client(asked_at)).await;
    cluster.replicas_agree(asked_at).await;
}

/// No order that was refused is carried out later.
async fn no_order_was_kept(cluster: &Cluster, asked_at: usize) {
    let nodes = cluster.client(asked_at).get("/v1/admin/nodes").await;
    let nodes = nodes.expect("nodes");
    assert!(!nodes.contains("drain"), "{nodes}");
    let settings = cluster.client(asked_at).get("/v1/admin/settings").await;
    let settings: Value = serde_json::from_str(&settings.expect("settings")).expect("JSON");
    assert_eq!(settings["balance"]["on"], json!(false), "{settings}");
    let made = cluster
        .client(asked_at)
        .sql("SELECT count(*) FROM new")
        .await;
    let made = made.expect_err("it was not made");
    assert!(made.text.contains("undefined_table"), "{made:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_slept_through_a_compaction_and_a_restart_of_etcd_is_told_everything() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::start(dir.path());
    let mut cluster = resting(&stack, dir.path(), "compacted").await;
    let clients = Clients::start(&cluster, 4).await;
    clients.all_progress(5).await;
    let etcd = &stack.etcds()[0];

    // A node and a scheduler sleep; etcd is killed, so that nothing waits for them in a connection.
    let sleeper = leader_of(&cluster, 0).await;
    let asked_at = (sleeper + 1) % 3;
    let standby = 1 - cluster.leading_scheduler(asked_at).await;
    cluster.nodes[sleeper].pause();
    cluster.schedulers[standby].pause();
    clients.only(others(&cluster, sleeper));
    let before = etcd.revision().await;
    act(&stack, &["kill", "etcd"]);
    act(&stack, &["start", "etcd"]);
    cluster.leading_scheduler(asked_at).await;
    clients.all_progress(10).await;
    assert_ne!(leader_of(&cluster, asked_at).await, sleeper);

    // What they have to learn: a table, and who leads now.
    let client = cluster.client(asked_at);
    let create = "CREATE TABLE three (k BIGINT, PRIMARY KEY (k))";
    client.sql(create).await.expect("create");
    client
        .sql("INSERT INTO three VALUES (1)")
        .await
        .expect("insert");
    etcd.compact(etcd.revision().await).await;
    assert!(!etcd.remembers(before).await);
    cluster.schedulers[standby].resume();
    cluster.nodes[sleeper].resume();
    let three = "SELECT count(*) FROM three";
    until("the table is known", async || {
        let rows = cluster.client(sleeper).sql(three).await;
        rows.is_ok_and(|rows| rows[0][0] == 1)
    })
    .await;
    clients.moved(&cluster);
    cluster.placed(asked_at, 2).await;
    all_are_heard_of(&cluster).await;
    let newest = cluster.shards(asked_at).await;
    cluster
        .until(
            sleeper,
            "the newest assignments",
            "/v1/admin/shards",
            |shards| {
                let shards = shards.as_array().into_iter().flatten();
                shards.zip(&newest).all(|(told, newest)| {
                    told["assignment"]["version"].as_u64()
                        >= newest["assignment"]["version"].as_u64()
                })
            },
        )
        .await;

    // The one that slept through it replaces a leader.
    a_leader_is_replaced(&mut cluster, &clients).await;
    let leading = 1 - standby;
    if cluster.leading_scheduler(0).await == leading {
        cluster.schedulers[leading].kill();
    }
    until("it leads", async || {
        cluster.leading_scheduler(0).await == standby
    })
    .await;
    a_leader_is_replaced(&mut cluster, &clients).await;
    clients.end(&cluster.client(0)).await;
    cluster.replicas_agree(0).await;
}

/// Waits until every broker has everything of every shard.
async fn brokers_agree(stack: &Stack) {
    let mut settings = rdkafka::ClientConfig::new();
    settings.set("bootstrap.servers", stack.brokers());
    let asked: BaseConsumer = settings.create().expect("a client of the brokers");
    until("all brokers in sync", async || {
        let told = tokio::task::block_in_place(|| asked.fetch_metadata(None, PATIENCE));
        let told = told.expect("the brokers answer");
        let mut logs = told
            .topics()
            .iter()
            .filter(|t| t.name().starts_with("shoal."));
        logs.all(|log| log.partitions().iter().all(|p| p.isr().len() == 3))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_are_lost_in_turn_while_a_leader_sleeps_and_then_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let stack = Stack::with(dir.path(), BROKERS);
    let cluster = resting(&stack, dir.path(), "brokers").await;
    let clients = Clients::start(&cluster, 8).await;
    clients.all_progress(5).await;

    let (sleeper, since) = falls_asleep(&cluster, &clients).await;
    for broker in ["kafka1", "kafka2", "kafka3"] {
        clients.longest_pause();
        act(&stack, &["kill", broker]);
        clients.all_progress(20).await;
        let pause = clients.longest_pause();
        eprintln!("{broker} killed: the longest pause of a writer was {pause:?}");
        act(&stack, &["start", broker]);
        brokers_agree(&stack).await;
        clients.all_progress(5).await;
    }
    clients.longest_pause();
    act(&stack, &["pause", "kafka2"]);
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(15) {
        clients.all_progress(5).await;
    }
    act(&stack, &["resume", "kafka2"]);
    brokers_agree(&stack).await;
    clients.all_progress(5).await;
    let pause = clients.longest_pause();
    eprintln!("kafka2 frozen for 15 s: the longest pause of a writer was {pause:?}");
    let left = Duration::from_secs(60).saturating_sub(since.elapsed());
    tokio::time::sleep(left).await;
    wakes_up(&cluster, &clients, sleeper).await;

    let (sleeper, _) = falls_asleep(&cluster, &clients).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    wakes_up(&cluster, &clients, sleeper).await;
    clients.end(&cluster.client(sleeper)).await;
    cluster.replicas_agree(sleeper).await;
}

/// The node that leads the shard of table `one` stands still, with writes of all clients in its
/// hands, and is replaced. It, and since when.
async fn falls_asleep(cluster: &Cluster, clients: &Clients) -> (usize, Instant) {
    let sleeper = leader_of(cluster, 0).await;
    clients.only(vec![cluster.client(sleeper)]);
    clients.all_progress(5).await;
    cluster.nodes[sleeper].pause();
    let since = Instant::now();
    clients.longest_pause();
    clients.only(others(cluster, sleeper));
    clients.all_progress(10).await;
    assert_ne!(leader_of(cluster, (sleeper + 1) % 3).await, sleeper);
    let pause = clients.longest_pause();
    eprintln!("a leader fell asleep: the longest pause of a writer was {pause:?}");
    (sleeper, since)
}

/// It goes on with what it was asked then and while it slept. From now on all clients come to it
/// alone.
async fn wakes_up(cluster: &Cluster, clients: &Clients, sleeper: usize) {
    clients.only(vec![cluster.client(sleeper)]);
    clients.longest_pause();
    let floor = clients.acknowledged();
    let reads = ["strong", "bounded=500ms"].into_iter().cycle().take(8);
    let reads: Vec<_> = reads
        .map(|level| {
            let client = cluster.client(sleeper);
            tokio::spawn(async move {
                let headers = [("Shoal-Consistency", level)];
                let read = client.sql_with("SELECT count(*) FROM one", &headers).await;
                read.map(|answer| (level, answer.count()))
            })
        })
        .collect();
    // They wait at its door when it wakes: later than `bounded` lets them see less than `floor`.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.nodes[sleeper].resume();
    for read in reads {
        match read.await.expect("a reader") {
            Ok((level, count)) => assert!(count >= floor, "{level}: {count} rows of {floor}"),
            Err(failure) => assert_eq!(failure.retry, "safe", "{failure:?}"),
        }
    }
    clients.all_progress(20).await;
    let pause = clients.longest_pause();
    eprintln!("it woke up: the longest pause of a writer was {pause:?}");
    clients.moved(cluster);
    cluster.placed(sleeper, 2).await;
}
