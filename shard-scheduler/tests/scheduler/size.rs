//! What the scheduler of a large cluster needs: memory, and bytes in meta.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use shoal_meta::{
    Assignment, Formats, MemoryMetaStore, MetaStore, NodeEntry, SchedulerEntry, Topology,
};
use shoal_scheduler::{
    Backends, Beat, Command, Conductor, ConductorLimits, Handle, Health, Led, Nodes, NotHeard,
    Probe, ReplicaBeat, Serving,
};
use shoal_types::{Epoch, NodeId, Offset, ShardId};
use tokio::sync::mpsc;
use ulid::Ulid;

const NODES: u64 = 1_000;
const SHARDS: u64 = 100_000;
const REPLICAS: u64 = 3;
const CLUSTER: &str = "large";
/// Nothing new is heard for so long: it hangs.
const STANDSTILL_MAX: Duration = Duration::from_secs(600);

fn node(n: u64) -> NodeId {
    NodeId(Ulid::from_parts(n % NODES, 1 << 70))
}

fn shard(n: u64) -> ShardId {
    ShardId(Ulid::from_parts(n, 1 << 71))
}

/// Nodes that all have what they are assigned, and say so once a second.
struct Calm;

fn replica(n: u64, leads: bool) -> ReplicaBeat {
    ReplicaBeat {
        shard: shard(n),
        leads,
        epoch: Epoch { term: 1, claim: 1 },
        position: Offset(1_000_000),
        state: Serving::Yes,
        why: None,
        obeyed: 1,
        applied_bytes: 1_000,
        read_us: 10,
        memory_bytes: 1_000,
    }
}

#[async_trait]
impl Nodes for Calm {
    async fn beats(
        &self,
        entry: &NodeEntry,
    ) -> Result<BoxStream<'static, Result<Beat, String>>, NotHeard> {
        let (me, process) = (entry.id.0.timestamp_ms(), entry.process);
        let beats = stream::unfold(true, move |first| async move {
            let mut replicas = Vec::new();
            if first {
                let back = |r| (0..SHARDS).skip(((me + NODES - r) % NODES) as usize);
                for r in 0..REPLICAS {
                    let mine = back(r).step_by(NODES as usize);
                    replicas.extend(mine.map(|n| replica(n, r == 0)));
                }
            } else {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let beat = Beat {
                process,
                replicas,
                gone: Vec::new(),
                reaches_log: true,
                cores: 8.0,
                unreached: Vec::new(),
            };
            Some((Ok(beat), false))
        });
        Ok(beats.boxed())
    }

    async fn probe(&self, _: &NodeEntry, _: Duration) -> Probe {
        Probe::Answered
    }

    async fn obey(
        &self,
        _: &NodeEntry,
        _: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Led>, String> {
        Err(format!("nothing is to change: {assignment:?}"))
    }
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmRSS:"));
    let mut words = line.expect("VmRSS").split_ascii_whitespace().skip(1);
    let kib: f64 = words.next().expect("a number").parse().expect("KiB");
    kib / 1024.0
}

/// By itself in a process (`--exact`) the memory printed is the scheduler's alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_meta_of_a_thousand_nodes_and_a_hundred_thousand_shards() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let made = Topology::open(Arc::clone(&store), CLUSTER).await;
    let made = made.expect("a topology");
    for n in 0..SHARDS {
        let assignment = Assignment {
            version: 1,
            term: 1,
            leader: Some(node(n)),
            predecessor: None,
            followers: (1..REPLICAS).map(|r| node(n + r)).collect(),
            topic: format!("shoal.{CLUSTER}.{}.{}", shard(n), shard(n)),
            changed_ms: 1,
        };
        let done = made.assign(shard(n), 0, &assignment).await;
        done.expect("assigned");
    }
    let mut held = Vec::new();
    for n in 0..NODES {
        let entry = NodeEntry {
            id: node(n),
            process: Ulid::new(),
            role: "node".into(),
            http: format!("node-{n}.example:7420"),
            pg: format!("node-{n}.example:7432"),
            grpc: format!("node-{n}.example:7421"),
            labels: [("zone".to_owned(), format!("z{}", n % 4))].into(),
            started_ms: 1,
            release: "1".into(),
            reads: Formats {
                record: 1,
                manifest: 1,
            },
        };
        let registered = made.register_node(&entry, Duration::from_secs(600));
        held.push(registered.await.expect("registered"));
    }
    let listed = store.list("/").await.expect("all");
    let bytes: usize = listed
        .entries
        .iter()
        .map(|(k, v, _)| k.len() + v.len())
        .sum();
    drop((listed, made));
    let before = resident_mib();

    let topology = Topology::open(Arc::clone(&store), CLUSTER).await;
    let topology = Arc::new(topology.expect("a topology"));
    let entry = SchedulerEntry {
        process: Ulid::new(),
        http: String::new(),
        started_ms: 1,
        release: String::new(),
    };
    let (_lead, fence) = topology
        .lead(&entry, Duration::from_secs(600))
        .await
        .expect("elected");
    let (tell, _ended) = mpsc::channel(1_000);
    let backends = Backends {
        meta: Arc::clone(&store),
        cluster: CLUSTER.into(),
        topology: Arc::clone(&topology),
        nodes: Arc::new(Calm),
        ended: tell,
    };
    let (handle, mut commands) = Handle::new();
    let conducting = tokio::spawn(async move {
        let limits = ConductorLimits {
            // A test's machine is slow.
            detector: shoal_scheduler::DetectorLimits {
                suspect_after_ms: 30_000,
                ..Default::default()
            },
            ..Default::default()
        };
        Conductor::run(backends, fence, limits, 1_000, &mut commands).await
    });
    let settings = handle.ask(Command::Settings).await.expect("it leads");
    let mut wanted = settings.clone();
    let group = shoal_scheduler::GroupSettings {
        replication: REPLICAS as usize,
        ..Default::default()
    };
    wanted.groups.insert("default".into(), group);
    let set = handle.ask(|reply| Command::SetSettings(Box::new(wanted), reply));
    set.await.expect("it leads").expect("taken");
    // However slow the machine: it ends unless nothing more is heard.
    let mut heard = (0, Instant::now());
    loop {
        let look = handle.ask(Command::Look).await.expect("it leads");
        let up = look.nodes.values().filter(|n| n.health == Health::Up);
        let (up, shards) = (up.count() as u64, look.shards);
        if up == NODES && (shards.short, shards.unled) == (0, 0) {
            assert_eq!((shards.all as u64, shards.damaged), (SHARDS, 0));
            break;
        }
        let known = up + 2 * SHARDS - (shards.short + shards.unled) as u64;
        if known > heard.0 {
            heard = (known, Instant::now());
        }
        assert!(heard.1.elapsed() < STANDSTILL_MAX, "{up}, {shards:?}");
        // Each look goes over all shards: the conductor is to get to the beats, too.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // Some rounds with all of it known: there is nothing to do.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let look = handle.ask(Command::Look).await.expect("it leads");
    assert!(look.procedures.is_empty(), "{:?}", look.procedures.first());
    println!(
        "1,000 nodes, 100,000 shards: the scheduler takes {:.0} MiB; meta holds {:.1} MiB, {} B a shard",
        resident_mib() - before,
        bytes as f64 / 1_048_576.0,
        bytes as u64 / SHARDS,
    );
    assert!(bytes as u64 / SHARDS < 400, "{bytes} bytes in meta");
    conducting.abort();
}
