//! Nodes in memory that do as real ones do: take roles, watch the topology, beat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use shoal_meta::{
    Assignment, Compare, Fence, Formats, Limits, Listing, MemoryMetaStore, MetaError, MetaStore,
    NodeEntry, Op, Registration, SchedulerEntry, Topology, Txn, Watch,
};
use shoal_scheduler::{
    Backends, Beat, Conductor, ConductorLimits, DetectorLimits, Ended, Handle, Led, Nodes,
    NotHeard, Probe, Procedure, ReplicaBeat, Serving,
};
use shoal_types::{Epoch, NodeId, Offset, ShardId};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use ulid::Ulid;

pub const CLUSTER: &str = "fake";
const BEAT: Duration = Duration::from_millis(5);
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Ends whoever calls it for the n-th time, before or after the call has its effect.
#[derive(Debug)]
pub struct Killer {
    calls: AtomicUsize,
    at: usize,
    pub struck: Notify,
}

impl Killer {
    /// `at`: two for each call, before it (even) and after it (odd).
    pub fn new(at: usize) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            at,
            struck: Notify::new(),
        })
    }

    async fn strike(&self) {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.at {
            self.struck.notify_one();
        }
        if self.calls.load(Ordering::SeqCst) > self.at {
            // It is dead: nothing that it does has an effect any more.
            std::future::pending::<()>().await;
        }
    }

    /// Calls, and whether it has struck.
    pub fn has_struck(&self) -> bool {
        self.calls.load(Ordering::SeqCst) > self.at
    }
}

/// A store whose changes may end the process that makes them.
#[derive(Debug)]
struct Deadly(Arc<dyn MetaStore>, Arc<Killer>);

#[async_trait]
impl MetaStore for Deadly {
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn is_shared(&self) -> bool {
        self.0.is_shared()
    }
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        self.0.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        self.0.list(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        self.1.strike().await;
        let done = self.0.commit(txn).await;
        self.1.strike().await;
        done
    }
    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.0.watch(prefix, after)
    }
    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError> {
        self.0.register_when(condition, key, value, ttl).await
    }
}

#[derive(Clone, Debug, Default)]
struct FakeReplica {
    obeyed: u64,
    opened: bool,
}

#[derive(Debug, Default)]
struct FakeNode {
    up: bool,
    process: Ulid,
    replicas: BTreeMap<ShardId, FakeReplica>,
}

/// All nodes, and what the logs of the shards say of who leads.
#[derive(Debug, Default)]
pub struct FakeNodes {
    nodes: parking_lot::Mutex<BTreeMap<NodeId, FakeNode>>,
    claims: parking_lot::Mutex<BTreeMap<ShardId, (u64, NodeId)>>,
}

impl FakeNodes {
    fn take_role(&self, node: NodeId, shard: ShardId, assignment: &Assignment) -> Option<Led> {
        let mut nodes = self.nodes.lock();
        let of = nodes.get_mut(&node)?;
        if !of.up {
            return None;
        }
        let obeyed = of.replicas.get(&shard).map_or(0, |r| r.obeyed);
        if assignment.version < obeyed {
            return None;
        }
        if !assignment.involves(node) {
            of.replicas.remove(&shard);
            return None;
        }
        of.replicas.insert(
            shard,
            FakeReplica {
                obeyed: assignment.version,
                opened: true,
            },
        );
        if assignment.leader != Some(node) {
            return None;
        }
        let mut claims = self.claims.lock();
        let claim = claims.entry(shard).or_insert((0, node));
        if claim.0 < assignment.term {
            *claim = (assignment.term, node);
        }
        (claim.1 == node).then_some(Led {
            epoch: Epoch {
                term: claim.0,
                claim: 1,
            },
            records_replayed: 1,
            pause: None,
        })
    }

    fn beat(&self, node: NodeId) -> Result<Beat, String> {
        let nodes = self.nodes.lock();
        let of = nodes.get(&node).filter(|n| n.up).ok_or("refused")?;
        let claims = self.claims.lock();
        let replicas = of.replicas.iter().map(|(shard, replica)| {
            let (term, leader) = claims.get(shard).copied().unwrap_or((0, node));
            ReplicaBeat {
                shard: *shard,
                leads: leader == node && term > 0,
                epoch: Epoch { term, claim: 1 },
                position: Offset(1),
                state: if replica.opened {
                    Serving::Yes
                } else {
                    Serving::No
                },
                why: None,
                obeyed: replica.obeyed,
                applied_bytes: 0,
                read_us: 0,
                memory_bytes: 0,
            }
        });
        Ok(Beat {
            process: of.process,
            replicas: replicas.collect(),
            gone: Vec::new(),
            reaches_log: true,
            cores: 1.0,
            unreached: Vec::new(),
        })
    }
}

/// The nodes as a scheduler that may die meanwhile reaches them.
struct Reached(Arc<FakeNodes>, Arc<Killer>);

#[async_trait]
impl Nodes for Reached {
    async fn beats(
        &self,
        node: &NodeEntry,
    ) -> Result<BoxStream<'static, Result<Beat, String>>, NotHeard> {
        let (nodes, id) = (Arc::clone(&self.0), node.id);
        nodes.beat(id).map_err(NotHeard::Silent)?;
        let mut known: Vec<ShardId> = Vec::new();
        let beats = stream::unfold(false, move |ended| {
            let beat = nodes.beat(id);
            async move {
                if ended {
                    return None;
                }
                tokio::time::sleep(BEAT).await;
                let ended = beat.is_err();
                Some((beat, ended))
            }
        });
        let beats = beats.map(move |beat| {
            let mut beat = beat?;
            let now: Vec<ShardId> = beat.replicas.iter().map(|r| r.shard).collect();
            beat.gone = known.iter().copied().filter(|s| !now.contains(s)).collect();
            known = now;
            Ok(beat)
        });
        Ok(beats.boxed())
    }

    async fn probe(&self, node: &NodeEntry, _: Duration) -> Probe {
        match self.0.beat(node.id) {
            Ok(_) => Probe::Answered,
            Err(_) => Probe::Refused,
        }
    }

    async fn obey(
        &self,
        node: &NodeEntry,
        shard: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Led>, String> {
        self.1.strike().await;
        let led = self.0.take_role(node.id, shard, assignment);
        self.1.strike().await;
        self.0.beat(node.id).map(|_| led)
    }
}

/// A cluster in memory.
pub struct FakeCluster {
    pub store: Arc<MemoryMetaStore>,
    pub topology: Arc<Topology>,
    pub nodes: Arc<FakeNodes>,
    registrations: BTreeMap<NodeId, shoal_meta::NodeRegistration>,
    followers: Vec<JoinHandle<()>>,
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        self.followers.iter().for_each(JoinHandle::abort);
    }
}

/// A scheduler that runs until it is killed.
pub struct FakeScheduler {
    pub handle: Handle,
    pub ended: mpsc::Receiver<Procedure>,
    task: JoinHandle<Ended>,
}

impl Drop for FakeScheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeScheduler {
    pub async fn over(&mut self) -> Ended {
        (&mut self.task).await.expect("it did not panic")
    }
}

impl FakeCluster {
    pub async fn new() -> Self {
        let store = Arc::new(MemoryMetaStore::default());
        let meta: Arc<dyn MetaStore> = Arc::clone(&store) as _;
        let topology = Topology::open(meta, CLUSTER).await.expect("a topology");
        Self {
            store,
            topology: Arc::new(topology),
            nodes: Arc::default(),
            registrations: BTreeMap::new(),
            followers: Vec::new(),
        }
    }

    /// A node joins, in a zone of its own.
    pub async fn join(&mut self, n: u64) -> NodeId {
        let id = NodeId(Ulid::from_parts(n, 0));
        let process = Ulid::new();
        {
            let mut nodes = self.nodes.nodes.lock();
            let node = nodes.entry(id).or_default();
            node.up = true;
            node.process = process;
        }
        let entry = NodeEntry {
            id,
            process,
            role: "node".into(),
            http: String::new(),
            pg: String::new(),
            grpc: format!("node-{n}"),
            labels: [("zone".to_owned(), format!("z{n}"))].into(),
            started_ms: 0,
            release: String::new(),
            reads: Formats {
                record: 1,
                manifest: 1,
            },
        };
        let registered = self.topology.register_node(&entry, Duration::from_secs(60));
        let registered = registered.await.expect("registered");
        self.registrations.insert(id, registered);
        // Nodes watch the topology by themselves.
        let (nodes, mut changes) = (Arc::clone(&self.nodes), self.topology.subscribe());
        self.followers.push(tokio::spawn(async move {
            loop {
                let snapshot = Arc::clone(&changes.borrow_and_update());
                // Later than the word that a scheduler sends.
                tokio::time::sleep(Duration::from_millis(30)).await;
                for (shard, assignment) in &snapshot.assignments {
                    nodes.take_role(id, *shard, assignment);
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }));
        id
    }

    /// `kill -9`: the registration stays for its time to live.
    pub fn kill(&self, node: NodeId) {
        let mut nodes = self.nodes.nodes.lock();
        let node = nodes.get_mut(&node).expect("a node");
        node.up = false;
        node.replicas.clear();
    }

    /// A shard that is led and followed already.
    pub async fn shard(&self, n: u64, leader: NodeId, followers: &[NodeId]) -> ShardId {
        let shard = ShardId(Ulid::from_parts(n, 1));
        let assignment = Assignment {
            version: 1,
            term: 1,
            leader: Some(leader),
            predecessor: None,
            followers: followers.to_vec(),
            topic: "t".into(),
            changed_ms: 0,
        };
        let made = self.topology.assign(shard, 0, &assignment).await;
        made.expect("assigned");
        for node in std::iter::once(&leader).chain(followers) {
            self.nodes.take_role(*node, shard, &assignment);
        }
        shard
    }

    /// Has a scheduler lead whoever led before, as if that one's lease had run out.
    pub async fn schedule(&self, killer: Arc<Killer>) -> FakeScheduler {
        let (fence, registration) = self.elect().await;
        let meta: Arc<dyn MetaStore> = Arc::clone(&self.store) as _;
        let meta: Arc<dyn MetaStore> = Arc::new(Deadly(meta, Arc::clone(&killer)));
        let topology = Topology::open(Arc::clone(&meta), CLUSTER).await;
        let (tell, ended) = mpsc::channel(1_000);
        let backends = Backends {
            meta,
            cluster: CLUSTER.into(),
            topology: Arc::new(topology.expect("a topology")),
            nodes: Arc::new(Reached(Arc::clone(&self.nodes), Arc::clone(&killer))),
            ended: tell,
        };
        let limits = ConductorLimits {
            detector: DetectorLimits {
                suspect_after_ms: 200,
                probe_timeout_ms: 50,
                probes: 2,
                suspect_max_ms: 1_000,
            },
            round: Duration::from_millis(20),
            grace: Duration::from_millis(300),
            ended_max: 100,
        };
        let (handle, mut commands) = Handle::new();
        let task = tokio::spawn(async move {
            let _held = registration;
            tokio::select! {
                over = Conductor::run(backends, fence, limits, 1_000_000, &mut commands) => over,
                () = killer.struck.notified() => Ended::Stopped,
            }
        });
        FakeScheduler {
            handle,
            ended,
            task,
        }
    }

    /// The leading scheduler's lease runs out.
    pub async fn depose(&self) {
        let prefix = format!("/shoal/{CLUSTER}/topology/leading-scheduler");
        let gone = Txn::default().then(Op::Delete(prefix));
        self.store.commit(gone).await.expect("deposed");
    }

    async fn elect(&self) -> (Fence, Registration) {
        let entry = SchedulerEntry {
            process: Ulid::new(),
            http: String::new(),
            started_ms: 0,
            release: String::new(),
        };
        let ttl = Duration::from_secs(60);
        loop {
            match self.topology.lead(&entry, ttl).await {
                Ok((registration, fence)) => return (fence, registration),
                Err(MetaError::Conflict) => tokio::time::sleep(BEAT).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn assignment(&self, shard: ShardId) -> Assignment {
        let found = self.topology.read_assignment(shard).await;
        found.expect("meta").expect("an assignment")
    }

    /// Waits until an assignment is as it must be and its nodes have taken it up.
    pub async fn until(&self, what: &str, shard: ShardId, holds: impl Fn(&Assignment) -> bool) {
        let begun = std::time::Instant::now();
        loop {
            let now = self.assignment(shard).await;
            let claim = self.nodes.claims.lock().get(&shard).copied();
            let led = now.leader.is_none_or(|l| claim == Some((now.term, l)));
            if led && holds(&now) {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {now:?}, claim {claim:?}"
            );
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Waits for something else.
    pub async fn seen(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            tokio::time::sleep(BEAT).await;
        }
    }
}
