//! Who is there, and who serves what: nodes and the assignments of shards.
//!
//! Keys, under `/shoal/{cluster}/topology/` (values as in the catalog):
//!
//! | key | value |
//! |---|---|
//! | `node/{node}` | [`NodeEntry`], for as long as the process is heard of |
//! | `assignment/{shard}` | [`Assignment`] |
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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

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
    /// `zone`, `rack`, `host`, …
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

/// Nodes and assignments at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Nodes that are heard of.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
    /// Assignments of all shards.
    pub assignments: BTreeMap<ShardId, Assignment>,
    /// Schedulers that are heard of.
    pub schedulers: BTreeMap<Ulid, SchedulerEntry>,
    /// The one of them that leads; `None`: orders are carried out by the node that is asked.
    pub scheduler: Option<SchedulerEntry>,
    /// Why changes are not heard at the moment; what is here may be old then.
    pub interrupted: Option<String>,
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
    revisions: BTreeMap<String, u64>,
}

enum Key {
    Node(NodeId),
    Assignment(ShardId),
    Scheduler(Ulid),
    LeadingScheduler,
    /// Of a later version: kept, not understood, not touched.
    Other,
}

fn parse(prefix: &str, key: &str) -> Key {
    let path = key.strip_prefix(prefix).unwrap_or_default();
    if path == "leading-scheduler" {
        return Key::LeadingScheduler;
    }
    match path.split_once('/') {
        Some(("node", id)) => id.parse().map_or(Key::Other, Key::Node),
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
                self.snapshot.nodes.insert(node, decode(key, value)?);
            }
            Key::Assignment(shard) => {
                self.snapshot.assignments.insert(shard, decode(key, value)?);
            }
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

    fn follow(&mut self, prefix: &str, changes: &[Change]) {
        for change in changes {
            let known = self.revisions.get(&change.key).copied().unwrap_or(0);
            if change.revision <= known {
                continue;
            }
            let Some(value) = &change.value else {
                match parse(prefix, &change.key) {
                    Key::Node(node) => drop(self.snapshot.nodes.remove(&node)),
                    Key::Assignment(shard) => drop(self.snapshot.assignments.remove(&shard)),
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
    }
}

async fn follow(
    prefix: String,
    mut known: Known,
    mut changes: Watch,
    told: watch::Sender<Arc<Snapshot>>,
) {
    while let Some(event) = changes.next().await {
        known.snapshot.interrupted = match event {
            WatchEvent::Changes(changes) => {
                known.follow(&prefix, &changes);
                None
            }
            WatchEvent::Reset { listing, restored } => {
                match known.reset(&prefix, &listing, restored) {
                    Ok(()) => None,
                    Err(error) => {
                        tracing::error!(%error, "the topology cannot be read; what was known stays");
                        Some(error.to_string())
                    }
                }
            }
            WatchEvent::Interrupted(why) => Some(why),
        };
        told.send_if_modified(|current| {
            let changed = **current != known.snapshot;
            if changed {
                *current = Arc::new(known.snapshot.clone());
            }
            changed
        });
    }
}
