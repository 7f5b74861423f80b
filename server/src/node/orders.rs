//! What operators order: who leads and follows which shard.
//!
//! Every order is a compare-and-swap of the shard's assignment, then a word to the nodes concerned,
//! then a wait until they have done it; an answer means that it is done. A crash in between leaves
//! an assignment that its nodes take up by themselves: they watch it.
//!
//! - **promote**: the target, a follower, gets the lead and a higher term; the old leader becomes a
//!   follower. It need not live: it learns of it when it reads the new leader's claim.
//! - **add-follower**: the node opens the shard from manifest and log, and is waited for until it
//!   has applied what the leader had when it began.
//! - **move**: add-follower, promote, remove-follower of the old leader, one after the other; after a
//!   failure what was reached stays, and says so.
//!
//! No data is copied by any of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use shoal_engine::{Database, EngineError, Promoted, Role, ShardChecksum};
use shoal_meta::{AssignError, Assignment, MetaError, Topology};
use shoal_types::{Clock, NodeId, Offset, ShardId, SystemClock};
use ulid::Ulid;

use super::links::{CallError, Links};
use super::roles::Roles;
use super::wire::{Answer, Ask, Failure};

/// How long a node may take to tell about its replicas.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node may take to obey.
const OBEY_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at a replica that catches up.
const PAUSE: Duration = Duration::from_millis(10);
/// Tries while others change the same assignment.
const TRIES: usize = 16;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// It makes no sense; the text names the remedy.
    #[error("{0}")]
    Invalid(String),
    /// No such shard or node.
    #[error("{0}")]
    NotFound(String),
    /// The node that was to do it did not.
    #[error("{0}")]
    Unavailable(String),
    /// The assignment is changed, the node has not answered; it obeys when it can.
    #[error(
        "the shard is assigned so, but {0}; the node takes its role when it can, another order changes that (`shoal admin shards` shows who is assigned)"
    )]
    Unfinished(String),
    /// etcd.
    #[error("etcd: {0}")]
    Meta(#[from] MetaError),
}

/// What an order did.
#[derive(Clone, Debug, Serialize)]
pub struct Carried {
    /// Its id.
    pub procedure: String,
    /// `done`.
    pub state: &'static str,
    /// What was ordered.
    pub order: &'static str,
    /// The shard.
    pub shard: ShardId,
    /// The node that it concerns.
    pub node: NodeId,
    /// Bytes of data copied: none.
    pub bytes_copied: u64,
    /// Log records that the node read since it was told.
    pub records_replayed: u64,
    /// How long no node took writes: from the new leader's claim, or from the change of the
    /// assignment if there was no leader before, until it served.
    pub pause_ms: f64,
    /// Of a new follower: the log that it read, in MiB, over the time until it had caught up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_mib_per_s: Option<f64>,
    /// The leader's epoch, after a promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
}

/// A node's replicas, as it tells.
type Replicas = BTreeMap<ShardId, Value>;

/// Carries out orders.
pub struct Orders {
    pub(super) me: NodeId,
    pub(super) db: Arc<Database>,
    pub(super) topology: Arc<Topology>,
    pub(super) roles: Arc<Roles>,
    links: Arc<Links>,
}

/// A node answered something else than it was asked.
pub(super) fn another_kind<T>() -> Result<T, OrderError> {
    Err(OrderError::Invalid("an answer of another kind".into()))
}

pub(super) fn rounded_ms(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

impl Orders {
    /// Orders given at the node `me`.
    #[must_use]
    pub fn new(
        me: NodeId,
        db: Arc<Database>,
        topology: Arc<Topology>,
        roles: Arc<Roles>,
        links: Arc<Links>,
    ) -> Self {
        Self {
            me,
            db,
            topology,
            roles,
            links,
        }
    }

    /// A shard by its id or a unique part of its beginning.
    ///
    /// # Errors
    /// [`OrderError::NotFound`], [`OrderError::Invalid`] if several begin so.
    pub fn shard(&self, text: &str) -> Result<ShardId, OrderError> {
        let all = self.db.shard_ids();
        let ids = all.into_iter().map(|id| (id.to_string(), id));
        one_of("shard", text, ids)
    }

    /// A node by its id or a unique part of its beginning.
    ///
    /// # Errors
    /// As [`Self::shard`].
    pub fn node(&self, text: &str) -> Result<NodeId, OrderError> {
        let snapshot = self.topology.snapshot();
        let ids = snapshot.known_nodes().into_iter();
        let ids = ids.map(|id| (id.to_string(), id));
        one_of("node", text, ids)
    }

    pub(super) async fn ask(
        &self,
        node: NodeId,
        ask: &Ask,
        within: Duration,
    ) -> Result<Answer, OrderError> {
        let snapshot = self.topology.snapshot();
        let Some(entry) = snapshot.node(node) else {
            return Err(OrderError::Unavailable(format!(
                "node {node} is not heard of; start it, or choose another"
            )));
        };
        match tokio::time::timeout(within, self.links.ask(&entry.grpc, ask)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(OrderError::Unavailable(said(node, failure))),
            Ok(Err(error @ (CallError::NotSent { .. } | CallError::NoAnswer { .. }))) => {
                Err(OrderError::Unavailable(format!("node {node}: {error}")))
            }
            Err(_) => Err(OrderError::Unavailable(format!(
                "node {node} did not answer within {} ms",
                within.as_millis()
            ))),
        }
    }

    pub(super) async fn replicas(&self, node: NodeId) -> Result<Replicas, OrderError> {
        let text = if node == self.me {
            serde_json::to_string(&self.db.status())
                .map_err(|e| OrderError::Invalid(e.to_string()))?
        } else {
            match self.ask(node, &Ask::Replicas, ASK_TIMEOUT).await? {
                Answer::Replicas(text) => text,
                _ => return another_kind(),
            }
        };
        let list: Vec<Value> =
            serde_json::from_str(&text).map_err(|e| OrderError::Invalid(e.to_string()))?;
        let of = |replica: Value| {
            let id = replica["id"].as_str()?.parse().ok()?;
            Some((id, replica))
        };
        Ok(list.into_iter().filter_map(of).collect())
    }

    /// What every node that is heard of tells of its replicas; a node that does not answer is
    /// there with why.
    pub async fn all_replicas(&self) -> BTreeMap<NodeId, Result<Replicas, String>> {
        let snapshot = self.topology.snapshot();
        let asked = snapshot.nodes.keys().map(|node| async move {
            let told = self.replicas(*node).await;
            (*node, told.map_err(|e| e.to_string()))
        });
        futures::future::join_all(asked).await.into_iter().collect()
    }

    /// A checksum of one shard's rows by every replica that is heard of:
    /// `[{"node","role","shard","position","rows","checksum","tables"}]`. The first is as of now,
    /// the others as of its position, or later if rows are written meanwhile.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn checksums(&self, shard: ShardId) -> Result<Vec<Value>, OrderError> {
        let assignment = self.assignment(shard).await?;
        let nodes = assignment.leader.iter().chain(&assignment.followers);
        let snapshot = self.topology.snapshot();
        let mut heard = nodes.filter(|node| snapshot.nodes.contains_key(node));
        let Some(first) = heard.next() else {
            return Err(OrderError::Unavailable(format!(
                "no node that has a replica of shard {shard} is heard of"
            )));
        };
        let mut sums = vec![self.checksum(*first, shard, None).await?];
        let position = sums[0]["position"].as_u64().map(Offset);
        let asked = heard.map(|node| self.checksum(*node, shard, position));
        sums.extend(futures::future::try_join_all(asked).await?);
        for sum in &mut sums {
            let leads =
                assignment.leader.map(|l| l.to_string()) == sum["node"].as_str().map(Into::into);
            sum["role"] = if leads { "leader" } else { "follower" }.into();
        }
        Ok(sums)
    }

    async fn checksum(
        &self,
        node: NodeId,
        shard: ShardId,
        position: Option<Offset>,
    ) -> Result<Value, OrderError> {
        let mut sum = if node == self.me {
            let sum = checksum_here(&self.db, shard, position).await;
            serde_json::to_value(sum.map_err(|e| OrderError::Unavailable(e.to_string()))?)
        } else {
            let ask = Ask::Checksum { shard, position };
            match self.ask(node, &ask, OBEY_TIMEOUT).await? {
                Answer::Checksum(text) => serde_json::from_str(&text),
                _ => return another_kind(),
            }
        }
        .map_err(|e| OrderError::Invalid(e.to_string()))?;
        sum["node"] = node.to_string().into();
        Ok(sum)
    }

    pub(super) async fn assignment(&self, shard: ShardId) -> Result<Assignment, OrderError> {
        let found = self.topology.read_assignment(shard).await?;
        found.ok_or_else(|| {
            OrderError::NotFound(format!("shard {shard} is assigned to no node yet"))
        })
    }

    /// Changes an assignment; `change` may be asked again.
    pub(super) async fn reassign(
        &self,
        shard: ShardId,
        change: impl Fn(&Assignment) -> Result<Option<Assignment>, OrderError>,
    ) -> Result<Assignment, OrderError> {
        for _ in 0..TRIES {
            let old = self.assignment(shard).await?;
            let Some(mut new) = change(&old)? else {
                return Ok(old);
            };
            new.version = old.version + 1;
            new.changed_ms = SystemClock.now_ms();
            match self.topology.assign(shard, old.version, &new).await {
                Ok(()) => return Ok(new),
                Err(AssignError::Stale { .. }) => {}
                Err(AssignError::Invalid(what)) => return Err(OrderError::Invalid(what)),
                Err(AssignError::Meta(error)) => return Err(error.into()),
            }
        }
        Err(OrderError::Unavailable(format!(
            "the assignment of shard {shard} changes all the time"
        )))
    }

    /// Has a node take its role at once.
    async fn told(
        &self,
        node: NodeId,
        shard: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Promoted>, OrderError> {
        if node == self.me {
            let obeyed = self.roles.obey(shard, assignment).await;
            return obeyed.map_err(|e| OrderError::Unfinished(e.to_string()));
        }
        let ask = Ask::Obey {
            shard,
            assignment: assignment.clone(),
        };
        match self.ask(node, &ask, OBEY_TIMEOUT).await {
            Ok(Answer::Obeyed(promoted)) => Ok(promoted),
            Ok(_) => another_kind(),
            Err(error) => Err(OrderError::Unfinished(error.to_string())),
        }
    }

    pub(super) fn must_be_heard_of(&self, node: NodeId) -> Result<(), OrderError> {
        let snapshot = self.topology.snapshot();
        if snapshot.nodes.contains_key(&node) {
            return Ok(());
        }
        let known: Vec<String> = snapshot.nodes.keys().map(ToString::to_string).collect();
        Err(OrderError::Unavailable(format!(
            "node {node} is not heard of; there are {}",
            known.join(", ")
        )))
    }

    /// Makes a follower the leader; without `to`, the one that is furthest.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn promote(&self, shard: ShardId, to: Option<NodeId>) -> Result<Carried, OrderError> {
        let begun = Instant::now();
        let to = match to {
            Some(to) => to,
            None => self.furthest(shard).await?,
        };
        self.must_be_heard_of(to)?;
        let snapshot = self.topology.snapshot();
        let assignment = self
            .reassign(shard, |old| {
                if old.leader == Some(to) {
                    return Ok(None);
                }
                if old.leader.is_some() && !old.followers.contains(&to) {
                    return Err(OrderError::Invalid(format!(
                        "node {to} has no replica of shard {shard}; `shoal admin shard add-follower {shard} --to {to}` first, or `shard move`"
                    )));
                }
                let mut followers = old.followers.clone();
                followers.retain(|node| *node != to);
                followers.extend(old.leader);
                Ok(Some(Assignment {
                    term: old.term + 1,
                    leader: Some(to),
                    predecessor: old.leader.filter(|old| snapshot.nodes.contains_key(old)),
                    followers,
                    ..old.clone()
                }))
            })
            .await?;
        let promoted = self.told(to, shard, &assignment).await?;
        Ok(Carried {
            records_replayed: promoted.map_or(0, |p| p.records_replayed),
            pause_ms: rounded_ms(match promoted.and_then(|p| p.pause) {
                Some(pause) if assignment.predecessor.is_some() => pause,
                _ => begun.elapsed(),
            }),
            epoch: promoted.map(|p| p.epoch.to_string()),
            ..carried("promote", shard, to)
        })
    }

    /// The follower that has applied most.
    async fn furthest(&self, shard: ShardId) -> Result<NodeId, OrderError> {
        let assignment = self.assignment(shard).await?;
        let asked = assignment.followers.iter().map(|node| async move {
            let replicas = self.replicas(*node).await.ok()?;
            let position = position_of(replicas.get(&shard)?)?;
            Some((position, *node))
        });
        let told = futures::future::join_all(asked).await;
        let furthest = told.into_iter().flatten().max();
        furthest.map(|(_, node)| node).ok_or_else(|| {
            OrderError::Unavailable(format!(
                "no follower of shard {shard} answers; `--to NODE` names one, `shard add-follower` makes one"
            ))
        })
    }

    /// Has a node follow a shard; returns when it has caught up with what the leader had.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn add_follower(&self, shard: ShardId, to: NodeId) -> Result<Carried, OrderError> {
        let begun = Instant::now();
        self.must_be_heard_of(to)?;
        let assignment = self
            .reassign(shard, |old| {
                if old.involves(to) {
                    return Ok(None);
                }
                let mut followers = old.followers.clone();
                followers.push(to);
                Ok(Some(Assignment {
                    predecessor: None,
                    followers,
                    ..old.clone()
                }))
            })
            .await?;
        let goal = match assignment.leader {
            Some(leader) if leader != to => {
                let told = self.replicas(leader).await.ok();
                told.and_then(|r| position_of(r.get(&shard)?))
            }
            _ => None,
        };
        self.told(to, shard, &assignment).await?;
        let mut first = None;
        let (last, log_bytes) = loop {
            let replicas = self.replicas(to).await?;
            let replica = replicas.get(&shard);
            let at = replica.and_then(position_of).unwrap_or(0);
            let replayed = replica
                .and_then(|r| r["replay_offset"].as_u64())
                .unwrap_or(at);
            let from = *first.get_or_insert(replayed);
            if replica.is_some_and(|r| r["state"] == "unavailable") {
                let why = replica.and_then(|r| r["why"].as_str()).unwrap_or_default();
                return Err(OrderError::Unfinished(format!("node {to} says: {why}")));
            }
            if goal.is_none_or(|goal| at >= goal) {
                let log_bytes = replica.and_then(|r| r["log_bytes"].as_u64());
                break (at.saturating_sub(from), log_bytes.unwrap_or(0));
            }
            if begun.elapsed() > OBEY_TIMEOUT {
                return Err(OrderError::Unfinished(format!(
                    "node {to} is at offset {at}, the leader was at {}",
                    goal.unwrap_or_default()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        };
        let mib = log_bytes as f64 / f64::from(1 << 20);
        let speed = mib / begun.elapsed().as_secs_f64();
        tracing::info!(%shard, node = %to, mib, mib_per_s = speed, "caught up");
        Ok(Carried {
            records_replayed: last,
            replay_mib_per_s: Some((speed * 1e3).round() / 1e3),
            ..carried("add-follower", shard, to)
        })
    }

    /// Takes a follower off a shard.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn remove_follower(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> Result<Carried, OrderError> {
        let assignment = self
            .reassign(shard, |old| {
                if old.leader == Some(node) {
                    return Err(OrderError::Invalid(format!(
                        "node {node} leads shard {shard}; `shoal admin shard promote` another first, or `shard move`"
                    )));
                }
                if !old.followers.contains(&node) {
                    return Ok(None);
                }
                let mut followers = old.followers.clone();
                followers.retain(|n| *n != node);
                Ok(Some(Assignment {
                    predecessor: None,
                    followers,
                    ..old.clone()
                }))
            })
            .await?;
        // One that is away has nothing to let go of.
        if self.topology.snapshot().nodes.contains_key(&node) {
            self.told(node, shard, &assignment).await?;
        }
        Ok(carried("remove-follower", shard, node))
    }

    /// Moves the lead, and the replica that had it, to another node.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn relocate(&self, shard: ShardId, to: NodeId) -> Result<Carried, OrderError> {
        let old = self.assignment(shard).await?.leader;
        if old == Some(to) {
            return Ok(carried("move", shard, to));
        }
        let added = self.add_follower(shard, to).await?;
        let promoted = self.promote(shard, Some(to)).await?;
        if let Some(old) = old {
            // It reads the claim of its successor before it lets go: what it had in flight is
            // answered for certain.
            self.let_go(shard, old).await;
            self.remove_follower(shard, old).await?;
        }
        Ok(Carried {
            order: "move",
            records_replayed: added.records_replayed + promoted.records_replayed,
            ..promoted
        })
    }

    /// Waits until a node does not lead a shard any more, for a bounded time.
    async fn let_go(&self, shard: ShardId, node: NodeId) {
        let begun = Instant::now();
        while begun.elapsed() < ASK_TIMEOUT {
            let leads = if node == self.me {
                self.db.role(shard) == Role::Leader
            } else {
                match self.replicas(node).await {
                    Ok(replicas) => replicas.get(&shard).is_some_and(|r| r["role"] == "leader"),
                    Err(_) => return,
                }
            };
            if !leads {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The checksum of a replica of this process.
///
/// # Errors
/// The engine's.
pub(super) async fn checksum_here(
    db: &Database,
    shard: ShardId,
    position: Option<Offset>,
) -> Result<ShardChecksum, EngineError> {
    match position {
        Some(position) => db.checksum_from(shard, position).await,
        None => {
            let mut sums = db.checksum(Some(shard)).await?;
            sums.pop()
                .ok_or_else(|| EngineError::Invalid(format!("shard {shard} has no checksum")))
        }
    }
}

fn carried(order: &'static str, shard: ShardId, node: NodeId) -> Carried {
    Carried {
        procedure: Ulid::new().to_string(),
        state: "done",
        order,
        shard,
        node,
        bytes_copied: 0,
        records_replayed: 0,
        pause_ms: 0.0,
        replay_mib_per_s: None,
        epoch: None,
    }
}

fn position_of(replica: &Value) -> Option<u64> {
    (replica["state"] != "unavailable").then(|| replica["position"].as_u64())?
}

fn said(node: NodeId, failure: Failure) -> String {
    let shard = ShardId::generate();
    let error = match failure {
        Failure::Unavailable { why, .. } => why,
        Failure::Other { what, .. } => what,
        other => other.into_error(shard).to_string(),
    };
    format!("node {node} says: {error}")
}

/// What is meant by an id or a unique part of its beginning.
///
/// # Errors
/// [`OrderError::NotFound`], [`OrderError::Invalid`] if several begin so.
pub fn one_of<T: Copy>(
    what: &str,
    text: &str,
    all: impl Iterator<Item = (String, T)>,
) -> Result<T, OrderError> {
    if text.is_empty() {
        return Err(OrderError::Invalid(format!(
            "the id of the {what} is empty; `shoal admin {what}s` lists them"
        )));
    }
    let wanted = text.to_ascii_uppercase();
    let found: Vec<(String, T)> = all
        .filter(|(id, _)| id.to_ascii_uppercase().starts_with(&wanted))
        .collect();
    match found.as_slice() {
        [(_, one)] => Ok(*one),
        [] => Err(OrderError::NotFound(format!(
            "there is no {what} {text:?}; `shoal admin {what}s` lists them"
        ))),
        several => Err(OrderError::Invalid(format!(
            "{} {what}s begin with {text:?}; write more of the id",
            several.len()
        ))),
    }
}

impl From<EngineError> for OrderError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NotFound { .. } => Self::NotFound(error.to_string()),
            EngineError::Meta(error) => Self::Meta(error),
            EngineError::Invalid(what) => Self::Invalid(what),
            other => Self::Unavailable(other.to_string()),
        }
    }
}
