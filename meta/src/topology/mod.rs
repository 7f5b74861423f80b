//! Who is there, and who serves what: nodes and the assignments of shards.
//!
//! Keys, under `/shoal/{cluster}/topology/` (values as in the catalog):
//!
//! | key | value |
//! |---|---|
//! | `node/{node}` | [`NodeEntry`], for as long as the process is heard of |
//! | `label/{node}/{name}` | what an operator said of a node's label: its value, or that it has none |
//! | `assignment/{shard}` | [`Assignment`] |
//! | `idle-shards` | the shards with the least load, as the scheduler measured: for new tables |
//! | `scheduler/{process}` | [`SchedulerEntry`], for as long as the process is heard of |
//! | `leading-scheduler` | [`SchedulerEntry`] of the one that won the election |
//!
//! Every process follows the whole of it and has it in memory as one [`Snapshot`], which costs a
//! reader a reference count. When the store is away the last snapshot stays: what is placed goes on
//! (PROTOCOLS §6).
//!
//! An assignment is changed by compare-and-swap alone, and only to one that [`check`] allows: its
//! version rises, its term never falls, and a new leader has a higher term. Nodes obey an
//! order only if its term and version are newer than what they know, so an assignment from before
//! a restored backup moves nobody.

mod register;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_types::{NodeId, ShardId, TimestampMs};
use tokio::sync::watch;
use ulid::Ulid;

use crate::catalog::cluster_prefix;
use crate::store::{
    Change, Compare, Listing, MetaError, MetaStore, Op, Registration, Txn, Watch, WatchEvent,
    emptied,
};

pub use register::{NodeRegistration, Registered};

/// A process that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// The node; stays through restarts.
    pub id: NodeId,
    /// This start of it.
    pub process: Ulid,
    /// `node`, `compute`, `scheduler` or `standalone`.
    pub role: String,
    /// `host:port` of its HTTP interface, as others reach it.
    pub http: String,
    /// `host:port` of its PostgreSQL interface; empty: none.
    pub pg: String,
    /// `host:port` of its gRPC interface; empty: none.
    pub grpc: String,
    /// `zone`, `rack`, `host`, …: as configured; in a [`Snapshot`] with what an operator changed.
    pub labels: BTreeMap<String, String>,
    /// When it was started.
    pub started_ms: TimestampMs,
    /// The release.
    pub release: String,
    /// The newest format that it can read of each: records of the log, manifests.
    pub reads: Formats,
}

/// A scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerEntry {
    /// This start of it.
    pub process: Ulid,
    /// `host:port` of its HTTP interface, as others reach it.
    pub http: String,
    /// When it was started.
    pub started_ms: TimestampMs,
    /// The release.
    pub release: String,
}

/// Format versions; leaders write none that a registered replica cannot read (PROTOCOLS §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// Of log records.
    pub record: u16,
    /// Of manifests.
    pub manifest: u16,
}

/// Who serves a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Counts the changes of this assignment, from 1.
    pub version: u64,
    /// Of the leader's tenure; never falls.
    pub term: u64,
    /// Who writes; `None`: nobody.
    pub leader: Option<NodeId>,
    /// Who led before, if it was well when the lead was given to `leader`: it leads on until it
    /// reads the claim of `leader`, so writes go to it until it refuses them.
    #[serde(default)]
    pub predecessor: Option<NodeId>,
    /// Who else has a replica, in no order.
    pub followers: Vec<NodeId>,
    /// The log's topic; empty: not made yet.
    pub topic: String,
    /// When this version was decided.
    pub changed_ms: TimestampMs,
}

impl Assignment {
    /// Whether a node has a replica.
    #[must_use]
    pub fn involves(&self, node: NodeId) -> bool {
        self.leader == Some(node) || self.followers.contains(&node)
    }
}

/// Labels that an operator has given a node, or (`None`) taken from it, whatever it is configured
/// with.
pub type LabelChanges = BTreeMap<String, Option<String>>;

/// Assignments of all shards. A copy of it costs nothing, whatever their number.
pub type Assignments = RedBlackTreeMapSync<ShardId, Assignment>;

/// Nodes and assignments at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Nodes that are heard of.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Nodes whose registration has ended and that an assignment still names, as they were: one that
    /// has only lost its way to meta serves on.
    pub left: BTreeMap<NodeId, NodeEntry>,
    /// What operators changed of nodes' labels; it is in `nodes` already.
    pub labels: BTreeMap<NodeId, LabelChanges>,
    /// Assignments of all shards.
    pub assignments: Assignments,
    /// The shards with the least load; empty: not measured.
    pub idle_shards: Vec<ShardId>,
    /// Schedulers that are heard of.
    pub schedulers: BTreeMap<Ulid, SchedulerEntry>,
    /// The one of them that leads; `None`: orders are carried out by the node that is asked.
    pub scheduler: Option<SchedulerEntry>,
    /// Why changes are not heard at the moment; what is here may be old then.
    pub interrupted: Option<String>,
}

/// What a node has of the shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Shards that it leads.
    pub leads: usize,
    /// Shards that it follows.
    pub follows: usize,
}

impl Snapshot {
    /// A node that is heard of, or that was and has replicas still.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.get(&id).or_else(|| self.left.get(&id))
    }

    /// What every node that an assignment names has, those that are not heard of, too.
    #[must_use]
    pub fn holdings(&self) -> BTreeMap<NodeId, Holding> {
        let mut held: BTreeMap<NodeId, Holding> = BTreeMap::new();
        for assignment in self.assignments.values() {
            if let Some(leader) = assignment.leader {
                held.entry(leader).or_default().leads += 1;
            }
            for follower in &assignment.followers {
                held.entry(*follower).or_default().follows += 1;
            }
        }
        held
    }

    /// All nodes that are heard of, and those that assignments name.
    #[must_use]
    pub fn known_nodes(&self) -> BTreeSet<NodeId> {
        let mut all: BTreeSet<NodeId> = self.nodes.keys().copied().collect();
        for assignment in self.assignments.values() {
            all.extend(assignment.leader.iter().chain(&assignment.followers));
        }
        all
    }
}

/// Why an assignment was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AssignError {
    /// It has another version than expected: decide anew.
    #[error("the assignment of the shard has changed meanwhile")]
    Stale {
        /// What it is now.
        found: Option<Assignment>,
    },
    /// It breaks a rule; the text says which.
    #[error("{0}")]
    Invalid(String),
    /// The store's. [`MetaError::Conflict`]: the fence does not hold any more.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// That one scheduler leads: what it changes demands that it does so still, so that one that was
/// replaced and does not know it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence(Compare);

impl Fence {
    /// The condition, for other changes of the same store.
    #[must_use]
    pub fn compare(&self) -> Compare {
        self.0.clone()
    }
}

/// Nodes and assignments, followed.
#[derive(Debug)]
pub struct Topology {
    store: Arc<dyn MetaStore>,
    prefix: String,
    current: watch::Receiver<Arc<Snapshot>>,
    following: tokio::task::JoinHandle<()>,
}

impl Drop for Topology {
    fn drop(&mut self) {
        self.following.abort();
    }
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, MetaError> {
    rmp_serde::to_vec(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetaError> {
    rmp_serde::from_slice(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

/// The prefix of what schedulers of a cluster keep for themselves.
#[must_use]
pub fn scheduler_prefix(cluster: &str) -> String {
    format!("{}scheduler/", cluster_prefix(cluster))
}

/// Whether an assignment may follow another; `old` is `None` for a shard's first.
///
/// # Errors
/// The broken rule.
pub fn check(old: Option<&Assignment>, new: &Assignment) -> Result<(), String> {
    let version = old.map_or(0, |o| o.version);
    // More than one above where nodes have obeyed newer ones: a backup was restored.
    if new.version <= version {
        return Err(format!(
            "an assignment of version {} cannot follow version {version}",
            new.version
        ));
    }
    if let Some(leader) = new.leader
        && new.followers.contains(&leader)
    {
        return Err(format!("node {leader} cannot lead and follow"));
    }
    let mut followers = new.followers.clone();
    followers.sort_unstable();
    followers.dedup();
    if followers.len() != new.followers.len() {
        return Err("a node is named twice as follower".into());
    }
    let Some(old) = old else { return Ok(()) };
    if new.term < old.term {
        return Err(format!(
            "the term cannot fall from {} to {}",
            old.term, new.term
        ));
    }
    if new.leader.is_some() && new.leader != old.leader && new.term == old.term {
        return Err(format!(
            "a new leader needs a higher term than {}",
            old.term
        ));
    }
    if !old.topic.is_empty() && new.topic != old.topic {
        return Err(format!(
            "the shard's log is {}, it cannot become {}",
            old.topic, new.topic
        ));
    }
    Ok(())
}

impl Topology {
    /// Reads the topology and follows it until it is dropped.
    ///
    /// # Errors
    /// [`MetaError`]: unreadable or damaged.
    pub async fn open(store: Arc<dyn MetaStore>, cluster: &str) -> Result<Self, MetaError> {
        let prefix = format!("{}topology/", cluster_prefix(cluster));
        let listing = store.list(&prefix).await?;
        let mut known = Known::default();
        known.reset(&prefix, &listing, false)?;
        let (told, current) = watch::channel(Arc::new(known.snapshot.clone()));
        let changes = store.watch(&prefix, listing.revision);
        let following = tokio::spawn(follow(prefix.clone(), known, changes, told));
        Ok(Self {
            store,
            prefix,
            current,
            following,
        })
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    /// Every change of it, the newest alone if several come between.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.clone()
    }

    fn node_key(&self, node: NodeId) -> String {
        format!("{}node/{node}", self.prefix)
    }

    /// Registers this process as a scheduler for as long as the guard lives.
    ///
    /// # Errors
    /// The store's.
    pub async fn register_scheduler(
        &self,
        entry: &SchedulerEntry,
        ttl: Duration,
    ) -> Result<NodeRegistration, MetaError> {
        let key = format!("{}scheduler/{}", self.prefix, entry.process);
        let value = encode(&key, entry)?;
        register::start(Arc::clone(&self.store), key, value, ttl).await
    }

    /// Has this process lead, if no other scheduler does; for as long as the guard lives.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: another one leads. The store's.
    pub async fn lead(
        &self,
        entry: &SchedulerEntry,
        ttl: Duration,
    ) -> Result<(Registration, Fence), MetaError> {
        let key = format!("{}leading-scheduler", self.prefix);
        let value = encode(&key, entry)?;
        let registration = self.store.campaign(&key, value, ttl).await?;
        let fence = Fence(Compare::Revision(key, registration.revision()));
        Ok((registration, fence))
    }

    /// Changes some of a node's labels, whatever it is configured with; `reset`: the others are
    /// those of its configuration again.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: the scheduler that holds the fence does not lead any more. The
    /// store's.
    pub async fn change_labels(
        &self,
        fence: &Fence,
        node: NodeId,
        changes: &LabelChanges,
        reset: bool,
    ) -> Result<(), MetaError> {
        let key = |name: &str| format!("{}label/{node}/{name}", self.prefix);
        let mut ops = Vec::new();
        for (name, value) in changes {
            let key = key(name);
            let value = encode(&key, value)?;
            ops.push(Op::Put(key, value));
        }
        let snapshot = self.snapshot();
        let known = snapshot.labels.get(&node).into_iter().flatten();
        for (name, _) in known.filter(|(name, _)| reset && !changes.contains_key(*name)) {
            ops.push(Op::Delete(key(name)));
        }
        // Room for the fence beside them.
        let most = self.store.limits().txn_ops.saturating_sub(1).max(1);
        for some in ops.chunks(most) {
            let txn = Txn {
                compares: vec![fence.compare()],
                ops: some.to_vec(),
            };
            self.store.commit(txn).await?;
        }
        Ok(())
    }

    /// Tells which shards have the least load.
    ///
    /// # Errors
    /// As [`Self::change_labels`].
    pub async fn tell_idle(&self, fence: &Fence, shards: &[ShardId]) -> Result<(), MetaError> {
        let key = format!("{}idle-shards", self.prefix);
        let value = encode(&key, &shards)?;
        let txn = Txn::default().when(fence.compare());
        self.store.commit(txn.then(Op::Put(key, value))).await?;
        Ok(())
    }

    fn assignment_key(&self, shard: ShardId) -> String {
        format!("{}assignment/{shard}", self.prefix)
    }

    /// Registers this process as a node for as long as the guard lives; again by itself when the
    /// registration expired. Returns once it is registered.
    ///
    /// # Errors
    /// The store's.
    pub async fn register_node(
        &self,
        entry: &NodeEntry,
        ttl: Duration,
    ) -> Result<NodeRegistration, MetaError> {
        let key = self.node_key(entry.id);
        let value = encode(&key, entry)?;
        register::start(Arc::clone(&self.store), key, value, ttl).await
    }

    /// Reads an assignment from the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn read_assignment(&self, shard: ShardId) -> Result<Option<Assignment>, MetaError> {
        Ok(self.found(shard).await?.map(|(assignment, _)| assignment))
    }

    async fn found(&self, shard: ShardId) -> Result<Option<(Assignment, u64)>, MetaError> {
        let key = self.assignment_key(shard);
        match self.store.get(&key).await? {
            None => Ok(None),
            Some((value, revision)) => Ok(Some((decode(&key, &value)?, revision))),
        }
    }

    /// Makes `new` the assignment of a shard if the present one has the version `expected` (0:
    /// there is none).
    ///
    /// # Errors
    /// [`AssignError`]. After [`MetaError::Unknown`]: read it again.
    pub async fn assign(
        &self,
        shard: ShardId,
        expected: u64,
        new: &Assignment,
    ) -> Result<(), AssignError> {
        self.assign_when(None, shard, expected, new).await
    }

    /// As [`Self::assign`], if the scheduler that holds the fence leads still.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: it does not. As [`Self::assign`].
    pub async fn assign_when(
        &self,
        fence: Option<&Fence>,
        shard: ShardId,
        expected: u64,
        new: &Assignment,
    ) -> Result<(), AssignError> {
        let found = self.found(shard).await?;
        if found.as_ref().map_or(0, |(a, _)| a.version) != expected {
            let found = found.map(|(a, _)| a);
            return Err(AssignError::Stale { found });
        }
        check(found.as_ref().map(|(a, _)| a), new).map_err(AssignError::Invalid)?;
        let key = self.assignment_key(shard);
        let compare = match found {
            None => Compare::Absent(key.clone()),
            Some((_, revision)) => Compare::Revision(key.clone(), revision),
        };
        let value = encode(&key, new)?;
        let mut txn = Txn::default().when(compare).then(Op::Put(key, value));
        txn.compares.extend(fence.map(|f| f.0.clone()));
        match self.store.commit(txn).await {
            Ok(_) => Ok(()),
            Err(MetaError::Conflict) => {
                let found = self.read_assignment(shard).await?;
                if fence.is_some() && found.as_ref().map_or(0, |f| f.version) == expected {
                    return Err(MetaError::Conflict.into());
                }
                Err(AssignError::Stale { found })
            }
            Err(error @ MetaError::Unknown(_)) => match self.read_assignment(shard).await {
                // One with all the same is as good as ours.
                Ok(Some(found)) if found == *new => Ok(()),
                Ok(found) if found.as_ref().map_or(0, |f| f.version) > expected => {
                    Err(AssignError::Stale { found })
                }
                _ => Err(error.into()),
            },
            Err(e) => Err(e.into()),
        }
    }

    /// Raises the term of a shard that `node` leads above `above` (the term found in its newest
    /// manifest), and returns the assignment that has it. For opening as leader.
    ///
    /// # Errors
    /// [`AssignError::Stale`]: `node` does not lead it. As [`Self::assign`].
    pub async fn raise_term(
        &self,
        shard: ShardId,
        node: NodeId,
        above: u64,
        now_ms: TimestampMs,
    ) -> Result<Assignment, AssignError> {
        loop {
            let found = self.read_assignment(shard).await?;
            let Some(old) = found.filter(|a| a.leader == Some(node)) else {
                let found = self.read_assignment(shard).await?;
                return Err(AssignError::Stale { found });
            };
            let new = Assignment {
                version: old.version + 1,
                term: old.term.max(above) + 1,
                changed_ms: now_ms,
                ..old.clone()
            };
            match self.assign(shard, old.version, &new).await {
                Ok(()) => return Ok(new),
                // Followers may have been added meanwhile; whether we still lead is looked at.
                Err(AssignError::Stale { .. }) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// What the follower knows, with the revision of each key.
#[derive(Debug, Default)]
struct Known {
    snapshot: Snapshot,
    /// Nodes as they have registered, without what operators changed of their labels.
    registered: BTreeMap<NodeId, NodeEntry>,
    revisions: HashMap<String, u64>,
}

enum Key {
    Node(NodeId),
    Label(NodeId, String),
    Assignment(ShardId),
    IdleShards,
    Scheduler(Ulid),
    LeadingScheduler,
    /// Of a later version: kept, not understood, not touched.
    Other,
}

fn parse(prefix: &str, key: &str) -> Key {
    let path = key.strip_prefix(prefix).unwrap_or_default();
    match path {
        "leading-scheduler" => return Key::LeadingScheduler,
        "idle-shards" => return Key::IdleShards,
        _ => {}
    }
    match path.split_once('/') {
        Some(("node", id)) => id.parse().map_or(Key::Other, Key::Node),
        Some(("label", of)) => match of.split_once('/') {
            Some((id, name)) => id
                .parse()
                .map_or(Key::Other, |id| Key::Label(id, name.to_owned())),
            None => Key::Other,
        },
        Some(("assignment", id)) => id.parse().map_or(Key::Other, Key::Assignment),
        Some(("scheduler", id)) => id.parse().map_or(Key::Other, Key::Scheduler),
        _ => Key::Other,
    }
}

impl Known {
    fn reset(&mut self, prefix: &str, listing: &Listing, restored: bool) -> Result<(), MetaError> {
        let mut fresh = Self::default();
        for (key, value, revision) in &listing.entries {
            fresh.put(prefix, key, value, *revision)?;
        }
        let (old, new) = (&self.snapshot.assignments, &fresh.snapshot.assignments);
        if restored && new.is_empty() && !old.is_empty() {
            return Err(emptied());
        }
        let mut old = std::mem::take(&mut self.snapshot);
        old.left.append(&mut old.nodes);
        old.left
            .retain(|node, _| !fresh.snapshot.nodes.contains_key(node));
        fresh.snapshot.left = old.left;
        fresh.forget_left();
        *self = fresh;
        Ok(())
    }

    fn put(
        &mut self,
        prefix: &str,
        key: &str,
        value: &[u8],
        revision: u64,
    ) -> Result<(), MetaError> {
        match parse(prefix, key) {
            Key::Node(node) => {
                self.registered.insert(node, decode(key, value)?);
                self.snapshot.left.remove(&node);
                self.label(node);
            }
            Key::Label(node, name) => {
                let of = self.snapshot.labels.entry(node).or_default();
                of.insert(name, decode(key, value)?);
                self.label(node);
            }
            Key::Assignment(shard) => {
                let assignment = decode(key, value)?;
                self.snapshot.assignments.insert_mut(shard, assignment);
            }
            Key::IdleShards => self.snapshot.idle_shards = decode(key, value)?,
            Key::Scheduler(process) => {
                let entry = decode(key, value)?;
                self.snapshot.schedulers.insert(process, entry);
            }
            Key::LeadingScheduler => self.snapshot.scheduler = Some(decode(key, value)?),
            Key::Other => tracing::trace!(key, "a meta key of others"),
        }
        self.revisions.insert(key.to_owned(), revision);
        Ok(())
    }

    /// Forgets nodes that are gone and have nothing.
    fn forget_left(&mut self) {
        if self.snapshot.left.is_empty() {
            return;
        }
        let held = self.snapshot.holdings();
        self.snapshot.left.retain(|node, _| held.contains_key(node));
    }

    /// Shows a node with what was changed of its labels.
    fn label(&mut self, node: NodeId) {
        let Some(registered) = self.registered.get(&node) else {
            self.snapshot.nodes.remove(&node);
            return;
        };
        let mut shown = registered.clone();
        for (label, value) in self.snapshot.labels.get(&node).into_iter().flatten() {
            match value {
                Some(value) => drop(shown.labels.insert(label.clone(), value.clone())),
                None => drop(shown.labels.remove(label)),
            }
        }
        self.snapshot.nodes.insert(node, shown);
    }

    /// Takes changes in; whether there was one that was not known.
    fn follow(&mut self, prefix: &str, changes: &[Change]) -> bool {
        let mut changed = false;
        for change in changes {
            let known = self.revisions.get(&change.key).copied().unwrap_or(0);
            if change.revision <= known {
                continue;
            }
            changed = true;
            let Some(value) = &change.value else {
                match parse(prefix, &change.key) {
                    Key::Node(node) => {
                        self.registered.remove(&node);
                        if let Some(entry) = self.snapshot.nodes.remove(&node) {
                            self.snapshot.left.insert(node, entry);
                        }
                        self.forget_left();
                    }
                    Key::Label(node, name) => {
                        if let Some(of) = self.snapshot.labels.get_mut(&node) {
                            of.remove(&name);
                            if of.is_empty() {
                                self.snapshot.labels.remove(&node);
                            }
                        }
                        self.label(node);
                    }
                    Key::Assignment(shard) => {
                        self.snapshot.assignments.remove_mut(&shard);
                    }
                    Key::IdleShards => self.snapshot.idle_shards.clear(),
                    Key::Scheduler(process) => drop(self.snapshot.schedulers.remove(&process)),
                    Key::LeadingScheduler => self.snapshot.scheduler = None,
                    Key::Other => {}
                }
                self.revisions.remove(&change.key);
                continue;
            };
            if let Err(error) = self.put(prefix, &change.key, value, change.revision) {
                tracing::error!(%error, "a change of the topology is not understood");
            }
        }
        changed
    }
}

async fn follow(
    prefix: String,
    mut known: Known,
    mut changes: Watch,
    told: watch::Sender<Arc<Snapshot>>,
) {
    while let Some(event) = changes.next().await {
        let (changed, interrupted) = match event {
            WatchEvent::Changes(changes) => (known.follow(&prefix, &changes), None),
            WatchEvent::Reset { listing, restored } => {
                match known.reset(&prefix, &listing, restored) {
                    Ok(()) => (true, None),
                    Err(error) => {
                        tracing::error!(%error, "the topology cannot be read; what was known stays");
                        (false, Some(error.to_string()))
                    }
                }
            }
            WatchEvent::Interrupted(why) => (false, Some(why)),
        };
        let changed = changed || known.snapshot.interrupted != interrupted;
        known.snapshot.interrupted = interrupted;
        if changed {
            told.send_replace(Arc::new(known.snapshot.clone()));
        }
    }
}
