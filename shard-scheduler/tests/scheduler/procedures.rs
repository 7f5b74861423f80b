//! Procedures by a scheduler that is killed at every one of its steps, and by two that both believe
//! they lead.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_meta::Assignment;
use shoal_scheduler::{Command, Ended, Order, Refused, Settings, State};
use shoal_types::{NodeId, ShardId};

use crate::fake::{FakeCluster, FakeScheduler, Killer, PATIENCE};

/// Steps of a scheduler that are tried at most; each run says that it was not killed any more.
const STEPS_MAX: usize = 60;

/// Nobody dies.
fn nobody() -> Arc<Killer> {
    Killer::new(usize::MAX)
}

/// As many replicas as there are, and nothing that is moved unasked.
fn settings(replication: usize) -> Settings {
    let mut settings = Settings::default();
    settings.balance.on = false;
    settings.replace_after_ms = 600_000;
    settings
        .groups
        .entry("default".into())
        .or_default()
        .replication = replication;
    settings
}

/// Whether the scheduler lived to do so.
async fn set(scheduler: &FakeScheduler, settings: Settings) -> bool {
    let done = scheduler
        .handle
        .ask(|reply| Command::SetSettings(Box::new(settings), reply))
        .await;
    done.is_some_and(|done| {
        done.expect("taken");
        true
    })
}

struct Scene {
    cluster: FakeCluster,
    nodes: Vec<NodeId>,
    shard: ShardId,
}

/// Three nodes; the first leads, the second follows.
async fn scene() -> Scene {
    let mut cluster = FakeCluster::new().await;
    let mut nodes = Vec::new();
    for n in 1..=3 {
        nodes.push(cluster.join(n).await);
    }
    let shard = cluster.shard(1, nodes[0], &nodes[1..2]).await;
    // What operators want is known before the scheduler that dies comes.
    let first = cluster.schedule(nobody()).await;
    assert!(set(&first, settings(2)).await);
    Scene {
        cluster,
        nodes,
        shard,
    }
}

fn is(assignment: &Assignment, leader: NodeId, followers: &[NodeId]) -> bool {
    let now: BTreeSet<_> = assignment.followers.iter().collect();
    assignment.leader == Some(leader) && now == followers.iter().collect()
}

/// Gives an order to a scheduler that dies at its `at`-th step, then lets another one go on. The
/// answer: whether it died.
async fn ordered_and_killed(
    at: usize,
    order: impl Fn(&Scene) -> Order,
    replication: usize,
    wanted: impl Fn(&Scene, &Assignment) -> bool,
) -> bool {
    let scene = scene().await;
    let before = scene.cluster.assignment(scene.shard).await;
    let killer = Killer::new(at);
    let mut dies = scene.cluster.schedule(Arc::clone(&killer)).await;
    // It keeps what it is told to by its settings, which are those of the end that is wanted.
    if replication != 2 {
        set(&dies, settings(replication)).await;
    }
    let (shard, wish) = (scene.shard, order(&scene));
    let begun = std::time::Instant::now();
    let answer = loop {
        let answer = dies
            .handle
            .ask(|reply| Command::Order {
                shard,
                order: wish,
                by: "test".into(),
                reply,
            })
            .await;
        match answer {
            // Its nodes are not heard yet, or the planner was quicker.
            Some(Err(Refused::Unavailable(_) | Refused::Busy { .. })) => {
                assert!(begun.elapsed() < PATIENCE);
                tokio::task::yield_now().await;
            }
            other => break other,
        }
    };
    let ended = match answer {
        Some(Ok(ordered)) => ordered.ended.await.ok(),
        Some(Err(refused)) => panic!("step {at}: {refused}"),
        None => None,
    };
    if let Some(procedure) = &ended {
        assert_eq!(procedure.state, State::Done, "{procedure:?}");
    }
    let died = killer.has_struck();
    if died {
        assert!(matches!(dies.over().await, Ended::Stopped));
    }
    drop(dies);
    let mut next = scene.cluster.schedule(nobody()).await;
    if replication != 2 {
        assert!(set(&next, settings(replication)).await);
    }
    // What was not written down was not begun; all else ends as it was wanted.
    let procedures = loop {
        let Some(look) = next.handle.ask(Command::Look).await else {
            panic!("step {at}: the next one is over: {}", next.over().await);
        };
        if look.procedures.iter().all(|(p, _)| !p.is_running()) {
            break look.procedures;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "step {at}: {:?}",
            look.procedures
        );
        tokio::task::yield_now().await;
    };
    if procedures.iter().any(|(p, _)| p.by == "test") {
        let what = format!("step {at}");
        let holds = |a: &Assignment| wanted(&scene, a);
        scene.cluster.until(&what, shard, holds).await;
    } else {
        assert!(
            ended.is_none(),
            "step {at}: it ended and is not written down"
        );
        let now = scene.cluster.assignment(shard).await;
        if replication == 2 {
            assert_eq!(now, before, "step {at}: nothing was written down");
        }
    }
    died
}

/// Tries every step, until a scheduler comes to the end alive.
async fn at_every_step(
    order: impl Fn(&Scene) -> Order,
    replication: usize,
    wanted: impl Fn(&Scene, &Assignment) -> bool,
) {
    for at in 0..STEPS_MAX {
        if !ordered_and_killed(at, &order, replication, &wanted).await {
            assert!(at > 5, "only {at} steps");
            return;
        }
    }
    panic!("more than {STEPS_MAX} steps");
}

#[tokio::test]
async fn a_promotion_survives_its_scheduler_at_every_step() {
    let order = |s: &Scene| Order::Promote(Some(s.nodes[1]));
    at_every_step(order, 2, |s, a| is(a, s.nodes[1], &s.nodes[..1])).await;
}

#[tokio::test]
async fn a_new_follower_survives_its_scheduler_at_every_step() {
    let order = |s: &Scene| Order::AddFollower(s.nodes[2]);
    at_every_step(order, 3, |s, a| is(a, s.nodes[0], &s.nodes[1..])).await;
}

#[tokio::test]
async fn a_follower_taken_off_survives_its_scheduler_at_every_step() {
    let order = |s: &Scene| Order::RemoveFollower(s.nodes[1]);
    at_every_step(order, 1, |s, a| is(a, s.nodes[0], &[])).await;
}

#[tokio::test]
async fn a_move_survives_its_scheduler_at_every_step() {
    let order = |s: &Scene| Order::Move(s.nodes[2]);
    at_every_step(order, 2, |s, a| is(a, s.nodes[2], &s.nodes[1..2])).await;
}

#[tokio::test]
async fn a_failover_survives_its_scheduler_at_every_step() {
    for at in 0..STEPS_MAX {
        let scene = scene().await;
        let killer = Killer::new(at);
        let mut dies = scene.cluster.schedule(Arc::clone(&killer)).await;
        let (led, shard) = (scene.nodes[0], scene.shard);
        scene.cluster.kill(led);
        let heir = scene.nodes[1];
        let took_over = |a: &Assignment| a.leader == Some(heir);
        let done = async {
            // The end of its procedure is its last step.
            while let Some(procedure) = dies.ended.recv().await {
                if procedure.state == State::Done {
                    return true;
                }
            }
            false
        };
        let done = tokio::select! {
            done = done => done,
            () = async { while !killer.has_struck() { tokio::task::yield_now().await } } => false,
        };
        if killer.has_struck() {
            dies.over().await;
        }
        drop(dies);
        let next = scene.cluster.schedule(nobody()).await;
        let what = format!("step {at}");
        scene.cluster.until(&what, shard, took_over).await;
        drop(next);
        if done {
            assert!(at > 5, "only {at} steps");
            return;
        }
    }
    panic!("more than {STEPS_MAX} steps");
}

#[tokio::test]
async fn a_scheduler_that_was_replaced_changes_nothing_and_ends() {
    let scene = scene().await;
    let mut old = scene.cluster.schedule(nobody()).await;
    // Its lease has run out, which it does not know; another one leads.
    scene.cluster.depose().await;
    let next = scene.cluster.schedule(nobody()).await;
    let before = scene.cluster.assignment(scene.shard).await;
    let begun = std::time::Instant::now();
    let ordered = loop {
        let (shard, to) = (scene.shard, scene.nodes[1]);
        let answer = old
            .handle
            .ask(|reply| Command::Order {
                shard,
                order: Order::Promote(Some(to)),
                by: "old".into(),
                reply,
            })
            .await;
        match answer {
            Some(Err(Refused::Unavailable(_))) => {
                assert!(begun.elapsed() < PATIENCE);
                tokio::task::yield_now().await;
            }
            other => break other,
        }
    };
    // It is answered once it is written down, which it cannot be.
    assert!(ordered.is_none(), "{ordered:?}");
    assert!(matches!(old.over().await, Ended::Fenced));
    assert_eq!(scene.cluster.assignment(scene.shard).await, before);
    let look = next.handle.ask(Command::Look).await.expect("it leads");
    assert!(look.procedures.iter().all(|(p, _)| p.by != "old"));
}

#[tokio::test]
async fn a_cluster_gets_what_its_settings_want() {
    let mut cluster = FakeCluster::new().await;
    let mut nodes = Vec::new();
    for n in 1..=3 {
        nodes.push(cluster.join(n).await);
    }
    let mut shards = Vec::new();
    // The first node made them all.
    for n in 1..=6 {
        shards.push(cluster.shard(n, nodes[0], &[]).await);
    }
    let scheduler = cluster.schedule(nobody()).await;
    for shard in &shards {
        let full = |a: &Assignment| a.leader.is_some() && a.followers.len() == 1;
        cluster.until("two replicas of each", *shard, full).await;
    }
    let begun = std::time::Instant::now();
    loop {
        let mut leads = [0; 3];
        for shard in &shards {
            let leader = cluster.assignment(*shard).await.leader;
            let at = nodes.iter().position(|n| Some(*n) == leader);
            leads[at.expect("a node of this cluster")] += 1;
        }
        let mut replicas = [0_usize; 3];
        for shard in &shards {
            let now = cluster.assignment(*shard).await;
            for (i, node) in nodes.iter().enumerate() {
                replicas[i] += usize::from(now.involves(*node));
            }
        }
        if leads == [2, 2, 2] && replicas.iter().all(|n| *n >= 3) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{replicas:?}, {leads:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // A node is drained: it ends with nothing, and every shard has two replicas elsewhere.
    let drained = nodes[0];
    let marks = shoal_scheduler::Marks {
        id: ulid::Ulid::new(),
        draining: true,
        leads_only: false,
        by: "test".into(),
        since_ms: 0,
    };
    let done = scheduler
        .handle
        .ask(|reply| Command::Drain {
            node: drained,
            marks: Some(marks),
            reply,
        })
        .await;
    done.expect("it leads").expect("taken");
    loop {
        let state = scheduler
            .handle
            .ask(|reply| Command::Drained {
                node: drained,
                reply,
            })
            .await;
        let state = state.expect("it leads").expect("being drained");
        if state.done {
            break;
        }
        assert!(begun.elapsed() < PATIENCE * 2, "{state:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for shard in &shards {
        let now = cluster.assignment(*shard).await;
        assert!(
            !now.involves(drained) && now.followers.len() == 1,
            "{now:?}"
        );
    }
}

/// What operators say of nodes and of settings is kept, and what was changed meanwhile is not
/// overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_move_replicas_apart_and_settings_are_changed_one_at_a_time() {
    let mut cluster = FakeCluster::new().await;
    let mut nodes = Vec::new();
    for n in 1..=3 {
        nodes.push(cluster.join(n).await);
    }
    let shard = cluster.shard(1, nodes[0], &nodes[1..2]).await;
    let scheduler = cluster.schedule(nobody()).await;
    let label = async |node, value: Option<&str>, reset| {
        let changes = [("zone".to_owned(), value.map(str::to_owned))];
        let changes = if reset { [].into() } else { changes.into() };
        let asked = scheduler.handle.ask(|reply| Command::Label {
            node,
            changes,
            reset,
            reply,
        });
        asked.await.expect("it leads")
    };
    // Both replicas are in one zone now, and the third node is not.
    label(nodes[0], Some("z2"), false).await.expect("labelled");
    let apart = |a: &Assignment| a.followers == [nodes[2]];
    cluster.until("moved apart", shard, apart).await;
    let shown = |node| {
        let snapshot = cluster.topology.snapshot();
        let labels = snapshot.nodes.get(&node).map(|n| n.labels.clone());
        labels.expect("a node").get("zone").cloned()
    };
    assert_eq!(shown(nodes[0]).as_deref(), Some("z2"));
    label(nodes[0], None, false).await.expect("taken away");
    cluster.seen("no zone", || shown(nodes[0]).is_none()).await;
    label(nodes[0], None, true).await.expect("as configured");
    let first = || shown(nodes[0]).as_deref() == Some("z1");
    cluster.seen("its own zone", first).await;
    let refused = label(nodes[0], Some("a/b"), false)
        .await
        .expect_err("a slash");
    assert!(refused.to_string().contains("\"a/b\""), "{refused}");

    let read = || scheduler.handle.ask(Command::Settings);
    let set = async |settings: shoal_scheduler::Settings| {
        let asked = scheduler
            .handle
            .ask(|reply| Command::SetSettings(Box::new(settings), reply));
        asked.await.expect("it leads")
    };
    let mut first = read().await.expect("it leads");
    let mut second = first.clone();
    // Any version is right if none was read.
    assert_eq!(first.version, 0);
    first.steps_max = 7;
    set(first).await.expect("set");
    let mut first = read().await.expect("it leads");
    assert_eq!((first.version, first.steps_max), (1, 7));
    first.steps_max = 8;
    second.version = first.version;
    set(first).await.expect("set again");
    let refused = set(second).await.expect_err("read before");
    assert!(refused.to_string().contains("version 2"), "{refused}");
    assert_eq!(read().await.expect("it leads").steps_max, 8);
}
