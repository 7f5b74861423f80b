//! Nodes and assignments.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_meta::{
    AssignError, Assignment, Formats, MemoryMetaStore, MetaStore, NodeEntry, Registered, Snapshot,
    Topology, check_assignment,
};
use shoal_testkit::Etcd;
use shoal_types::{NodeId, ShardId};
use ulid::Ulid;

use super::conformance::{PATIENCE, connect};

const TTL: Duration = Duration::from_secs(2);

fn node(id: NodeId) -> NodeEntry {
    NodeEntry {
        id,
        process: Ulid::new(),
        role: "node".into(),
        http: "127.0.0.1:7420".into(),
        pg: String::new(),
        grpc: String::new(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        started_ms: 1,
        release: "0.2.0".into(),
        reads: Formats {
            record: 1,
            manifest: 1,
        },
    }
}

fn assignment(version: u64, term: u64, leader: Option<NodeId>) -> Assignment {
    Assignment {
        version,
        term,
        leader,
        predecessor: None,
        followers: Vec::new(),
        topic: "shoal.c.1".into(),
        changed_ms: 1,
    }
}

async fn until(topology: &Topology, what: &str, holds: impl Fn(&Snapshot) -> bool) {
    let mut changes = topology.subscribe();
    let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|s| holds(s))).await;
    assert!(waited.is_ok_and(|w| w.is_ok()), "not in time: {what}");
}

async fn follows(store: Arc<dyn MetaStore>) {
    let a = Topology::open(Arc::clone(&store), "c").await.expect("open");
    let b = Topology::open(Arc::clone(&store), "c").await.expect("open");
    let (one, two) = (NodeId::generate(), NodeId::generate());
    let entry = node(one);
    let held = a.register_node(&entry, TTL).await.expect("register");
    until(&b, "the node is seen", |s| {
        s.nodes.get(&one) == Some(&entry)
    })
    .await;
    assert_eq!(*held.state().borrow(), Registered::Yes);

    let shard = ShardId::generate();
    let first = assignment(1, 1, Some(one));
    a.assign(shard, 0, &first).await.expect("first");
    until(&b, "the assignment is seen", |s| {
        s.assignments.get(&shard) == Some(&first)
    })
    .await;
    // Of two that decide on the same version one wins; the other is told what is there.
    let (left, right) = (assignment(2, 2, Some(two)), assignment(2, 3, Some(one)));
    let (first_try, second_try) =
        tokio::join!(a.assign(shard, 1, &left), b.assign(shard, 1, &right));
    let stale = match (first_try, second_try) {
        (Ok(()), Err(stale)) | (Err(stale), Ok(())) => stale,
        other => panic!("one must win: {other:?}"),
    };
    let AssignError::Stale { found: Some(found) } = stale else {
        panic!("stale: {stale}");
    };
    assert!(found == left || found == right, "{found:?}");
    let raised = a
        .raise_term(shard, found.leader.expect("leader"), 40, 9)
        .await
        .expect("raise");
    assert_eq!((raised.version, raised.term), (3, 41));
    let other = if found.leader == Some(one) { two } else { one };
    let refused = b.raise_term(shard, other, 50, 9).await;
    assert!(
        matches!(refused, Err(AssignError::Stale { .. })),
        "{refused:?}"
    );
    let falls = assignment(4, 40, raised.leader);
    let refused = b.assign(shard, 3, &falls).await;
    assert!(
        matches!(refused, Err(AssignError::Invalid(_))),
        "{refused:?}"
    );
    until(&b, "the raised term is seen", |s| {
        s.assignments.get(&shard) == Some(&raised)
    })
    .await;

    held.end().await;
    until(&b, "the node is gone", |s| s.nodes.is_empty()).await;
    // Another cluster sees none of it.
    let apart = Topology::open(store, "d").await.expect("open");
    assert!(apart.snapshot().assignments.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_decides_the_others_follow() {
    follows(Arc::new(MemoryMetaStore::new())).await;
    let etcd = Etcd::start().await;
    follows(Arc::new(connect(&etcd).await)).await;
}

#[tokio::test]
async fn a_second_process_of_a_node_takes_over_and_the_first_is_told() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let topology = Topology::open(store, "c").await.expect("open");
    let id = NodeId::generate();
    let (one, two) = (node(id), node(id));
    let first = topology.register_node(&one, TTL).await.expect("first");
    let second = topology.register_node(&two, TTL).await.expect("second");
    let mut state = first.state();
    let told = tokio::time::timeout(PATIENCE, state.wait_for(|s| *s == Registered::Overtaken));
    assert!(told.await.is_ok_and(|t| t.is_ok()), "told");
    first.end().await;
    until(&topology, "the second stays", |s| {
        s.nodes.get(&id).is_some_and(|n| n.process == two.process)
    })
    .await;
    assert_eq!(*second.state().borrow(), Registered::Yes);
}

/// A node that etcd could not hear of comes back by itself, and meanwhile everybody keeps what he
/// knew of assignments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_was_away_takes_nothing_with_it() {
    let etcd = Etcd::start().await;
    let store: Arc<dyn MetaStore> = Arc::new(connect(&etcd).await);
    let topology = Topology::open(store, "c").await.expect("open");
    let entry = node(NodeId::generate());
    let held = topology.register_node(&entry, TTL).await.expect("register");
    let shard = ShardId::generate();
    let placed = assignment(1, 1, Some(entry.id));
    topology.assign(shard, 0, &placed).await.expect("assign");
    until(&topology, "seen", |s| {
        !s.assignments.is_empty() && !s.nodes.is_empty()
    })
    .await;
    etcd.freeze(0);
    let mut state = held.state();
    let lost = tokio::time::timeout(PATIENCE, state.wait_for(|s| *s != Registered::Yes));
    let lost = lost.await.map(|told| told.map(|_| ()));
    assert!(matches!(lost, Ok(Ok(()))), "the loss is not told: {lost:?}");
    assert_eq!(topology.snapshot().assignments.get(&shard), Some(&placed));
    etcd.thaw(0);
    let back = tokio::time::timeout(PATIENCE, state.wait_for(|s| *s == Registered::Yes));
    assert!(back.await.is_ok_and(|b| b.is_ok()), "registered again");
    until(&topology, "seen again", |s| {
        s.nodes.contains_key(&entry.id) && s.interrupted.is_none()
    })
    .await;
    let next = assignment(2, 2, None);
    topology.assign(shard, 1, &next).await.expect("assign");
    until(&topology, "followed again", |s| {
        s.assignments.get(&shard) == Some(&next)
    })
    .await;
}

#[test]
fn assignments_that_break_a_rule_are_named() {
    let (one, two) = (NodeId::generate(), NodeId::generate());
    let old = assignment(4, 7, Some(one));
    let fine = [
        assignment(5, 7, Some(one)),
        assignment(5, 8, Some(two)),
        assignment(5, 7, None),
        // Nodes have obeyed newer ones than a backup has.
        assignment(9, 8, Some(one)),
        Assignment {
            followers: vec![two],
            ..assignment(5, 7, Some(one))
        },
    ];
    for new in fine {
        assert_eq!(check_assignment(Some(&old), &new), Ok(()), "{new:?}");
    }
    let broken = [
        ("version", assignment(4, 7, Some(one))),
        ("fall", assignment(5, 6, Some(one))),
        ("higher term", assignment(5, 7, Some(two))),
        (
            "lead and follow",
            Assignment {
                followers: vec![one],
                ..assignment(5, 7, Some(one))
            },
        ),
        (
            "twice",
            Assignment {
                followers: vec![two, two],
                ..assignment(5, 7, Some(one))
            },
        ),
        (
            "log",
            Assignment {
                topic: "other".into(),
                ..assignment(5, 7, Some(one))
            },
        ),
    ];
    for (word, new) in broken {
        let error = check_assignment(Some(&old), &new).expect_err(word);
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(check_assignment(None, &assignment(1, 0, None)), Ok(()));
    assert!(check_assignment(None, &assignment(0, 0, None)).is_err());
}

#[tokio::test]
async fn an_emptied_store_leaves_the_placement_as_it_was() {
    let memory = MemoryMetaStore::new();
    let store: Arc<dyn MetaStore> = Arc::new(memory.clone());
    let empty = memory.backup();
    let topology = Topology::open(Arc::clone(&store), "c").await.expect("open");
    let (shard, leader) = (ShardId::generate(), NodeId::generate());
    let first = assignment(1, 1, Some(leader));
    topology.assign(shard, 0, &first).await.expect("assign");
    until(&topology, "assigned", |s| {
        s.assignments.contains_key(&shard)
    })
    .await;
    let full = memory.backup();
    memory.restore(&empty);
    until(&topology, "noticed", |s| s.interrupted.is_some()).await;
    assert_eq!(topology.snapshot().assignments.get(&shard), Some(&first));
    memory.restore(&full);
    until(&topology, "restored", |s| s.interrupted.is_none()).await;
    assert_eq!(topology.snapshot().assignments.get(&shard), Some(&first));
}
