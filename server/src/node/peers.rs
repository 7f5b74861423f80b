//! Finding the node that can do something, by the watched topology (DESIGN §2; PROTOCOLS §1).
//!
//! A write goes to the shard's leader. Told that another leads, the way is looked up again. What is
//! certain to have had no effect is tried again until the time is up; what may have had one only if
//! it carries an id that makes its repetition harmless, and then also with a leader that was named
//! meanwhile while the old one stands still.
//!
//! A read goes to a replica that fits its place; nearer ones first, and the next one if a node
//! cannot be reached.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use shoal_engine::{
    EncodedView, EngineError, Peers, Read, ReadLevel, ReadPlace, ShardCommit, ShardStatus,
    ShardWrite, SplitOrder, UnitChange, WriteError,
};
use shoal_meta::{AssignError, Assignment, NodeEntry, Snapshot, Topology};
use shoal_types::{Clock, NodeId, Retry, ShardId, SystemClock, TableId, TableSchema, WriteId};
use shoal_wal::record::SchemaChange;
use tokio::time::Instant;

use super::links::{CallError, Links};
use super::reach::Reach;
use super::wire::{Answer, Ask, Failure, Ticket};

/// Pause before a way is looked up again, unless the topology changes first.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a node may take to tell about its replicas.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// A predecessor that does not answer for so long is taken for gone.
const PREDECESSOR_STALLS: Duration = Duration::from_millis(300);
/// A change of leaders that takes longer, by this node's clock, is taken to be over: its predecessor
/// may stand still since. (A wrong clock costs a pause, nothing else.)
const PREDECESSOR_LASTS_MS: u64 = 3_000;
/// Nodes asked for one read.
const READ_TRIES: usize = 8;

/// A node to ask.
struct Way {
    node: NodeEntry,
    /// It is the predecessor of the leader in the assignment of this version.
    predecessor_of: Option<u64>,
}

/// Other nodes, found through the topology.
#[derive(Debug)]
pub struct Router {
    me: NodeId,
    topology: Arc<Topology>,
    links: Arc<Links>,
    reach: Arc<Reach>,
    /// Of each shard the version of the assignment whose predecessor leads no more.
    handed_over: Mutex<HashMap<ShardId, u64>>,
    /// Longest wait of questions that carry none.
    patience: Duration,
}

fn unavailable(shard: ShardId, why: impl Into<String>) -> EngineError {
    EngineError::ShardUnavailable {
        shard,
        why: why.into(),
    }
}

fn gone(shard: ShardId, leader: NodeId) -> String {
    format!(
        "node {leader}, which leads it, is not heard of; start it, or `shoal admin shard promote {shard} --to NODE`"
    )
}

fn not_heard_of(shard: ShardId, leader: NodeId) -> EngineError {
    unavailable(shard, gone(shard, leader))
}

/// Nodes whose replica fits a place.
fn placed(assignment: &Assignment, place: ReadPlace) -> Vec<NodeId> {
    let leader = assignment.leader.iter();
    let followers = assignment.followers.iter();
    match place {
        ReadPlace::Leader => leader.copied().collect(),
        ReadPlace::Follower => followers.copied().collect(),
        // Followers first: the leader has the writes to do.
        ReadPlace::Nearest | ReadPlace::Any => followers.chain(leader).copied().collect(),
    }
}

/// An error of the engine where only a write's fits.
fn as_write_error(error: EngineError) -> WriteError {
    match error {
        EngineError::Write(error) => error,
        EngineError::ShardUnavailable { shard, why } => WriteError::ShardUnavailable { shard, why },
        other => WriteError::Invalid(other.to_string()),
    }
}

impl Router {
    /// A router of the node `me`.
    #[must_use]
    pub fn new(
        me: NodeId,
        topology: Arc<Topology>,
        links: Arc<Links>,
        reach: Arc<Reach>,
        patience: Duration,
    ) -> Self {
        Self {
            me,
            topology,
            links,
            reach,
            handed_over: Mutex::default(),
            patience,
        }
    }

    /// Where to send what only the leader can do.
    fn way(&self, shard: ShardId) -> Result<Way, EngineError> {
        let snapshot = self.topology.snapshot();
        let assignment = snapshot.assignments.get(&shard);
        let predecessor = assignment.and_then(|a| {
            let node = snapshot.node(a.predecessor?)?;
            // This node would have done it itself if it led.
            let leads_on = node.id != self.me
                && SystemClock.now_ms().saturating_sub(a.changed_ms) < PREDECESSOR_LASTS_MS
                && !self.reach.is_silent(node.id)
                && !self.is_handed_over(shard, a.version);
            leads_on.then(|| Way {
                node: node.clone(),
                predecessor_of: Some(a.version),
            })
        });
        match predecessor {
            Some(way) => Ok(way),
            None => Ok(Way {
                node: self.leader(shard)?,
                predecessor_of: None,
            }),
        }
    }

    fn is_handed_over(&self, shard: ShardId, version: u64) -> bool {
        // A leader raises its term, and so the version, while its predecessor leads.
        let known = self.handed_over.lock().get(&shard).copied();
        known.is_some_and(|known| known + 1 >= version)
    }

    /// Whether a failure only says that a predecessor leads no more.
    fn hand_over(&self, shard: ShardId, way: &Way) -> bool {
        if let Some(version) = way.predecessor_of {
            self.handed_over.lock().insert(shard, version);
        }
        way.predecessor_of.is_some()
    }

    /// Resolves when an answer of this way is not worth waiting for.
    async fn stalls(&self, shard: ShardId, way: &Way) {
        match way.predecessor_of {
            Some(_) => tokio::time::sleep(PREDECESSOR_STALLS).await,
            None => self.led_by_other(shard, way.node.id).await,
        }
    }

    /// The leader of a shard, if it is heard of, or was: one that has only lost its way to meta leads
    /// on.
    fn leader(&self, shard: ShardId) -> Result<NodeEntry, EngineError> {
        let snapshot = self.topology.snapshot();
        let Some(assignment) = snapshot.assignments.get(&shard) else {
            return Err(unavailable(shard, "it is assigned to no node yet"));
        };
        let Some(leader) = assignment.leader else {
            return Err(unavailable(
                shard,
                "no node leads it; `shoal admin shard promote` gives it a leader",
            ));
        };
        let found = snapshot.node(leader).cloned();
        found.ok_or_else(|| not_heard_of(shard, leader))
    }

    /// Has a connection to a node.
    async fn connected(&self, node: &NodeEntry, deadline: Instant) -> Result<(), CallError> {
        let connecting = self.links.ready(&node.grpc);
        let connected = tokio::time::timeout_at(deadline, connecting).await;
        connected.unwrap_or_else(|_| {
            Err(CallError::NotSent {
                address: node.grpc.clone(),
                why: "it did not take a connection in time".into(),
                locked_out: false,
            })
        })
    }

    /// Why a leader cannot be reached, with the remedy if nobody hears of it.
    fn unreached(&self, shard: ShardId, leader: NodeId, error: &CallError) -> String {
        if self.topology.snapshot().nodes.contains_key(&leader) {
            return error.to_string();
        }
        format!("{error}; {}", gone(shard, leader))
    }

    /// Waits for a change of the topology, or a little while.
    async fn pause(&self, deadline: Instant) {
        let mut changes = self.topology.subscribe();
        changes.mark_unchanged();
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)) => {}
        }
    }

    /// Resolves when another node leads the shard, or is to lead it and the one that does stands
    /// still.
    async fn led_by_other(&self, shard: ShardId, than: NodeId) {
        let mut changes = self.topology.subscribe();
        loop {
            let (other, leads_on) = {
                let snapshot = changes.borrow_and_update();
                let assignment = snapshot.assignments.get(&shard);
                let other = assignment.is_some_and(|a| a.leader.is_some_and(|l| l != than));
                let leads_on = assignment.is_some_and(|a| a.predecessor == Some(than));
                (other, leads_on)
            };
            if other {
                if leads_on {
                    tokio::time::sleep(PREDECESSOR_STALLS).await;
                }
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Asks the leader of a shard something that may be asked twice.
    async fn ask_leader(&self, shard: ShardId, ask: &Ask) -> Result<Answer, EngineError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let failed = match self.way(shard) {
                // The engine looks again whether it leads by now.
                Ok(way) if way.node.id == self.me => {
                    return Err(WriteError::NotLeader { shard }.into());
                }
                Ok(way) => {
                    let asked = self.links.ask(&way.node.grpc, ask);
                    let within = match way.predecessor_of {
                        Some(_) => deadline.min(Instant::now() + PREDECESSOR_STALLS),
                        None => deadline,
                    };
                    match tokio::time::timeout_at(within, asked).await {
                        Ok(Ok(Ok(answer))) => return Ok(answer),
                        _ if self.hand_over(shard, &way) => continue,
                        Ok(Ok(Err(Failure::Write(WriteError::NotLeader { .. })))) => {
                            unavailable(shard, "its leader changes")
                        }
                        // It is being opened there.
                        Ok(Ok(Err(failure @ Failure::Unavailable { .. }))) => {
                            failure.into_error(shard)
                        }
                        Ok(Ok(Err(failure))) => return Err(failure.into_error(shard)),
                        Ok(Err(error)) => {
                            unavailable(shard, self.unreached(shard, way.node.id, &error))
                        }
                        Err(_) => unavailable(shard, "its leader did not answer in time"),
                    }
                }
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(failed);
            }
            self.pause(deadline).await;
        }
    }

    /// Replicas that may answer a read, the best first.
    fn readers(
        &self,
        snapshot: &Snapshot,
        assignment: &Assignment,
        place: ReadPlace,
    ) -> Vec<NodeEntry> {
        let mut nodes: Vec<NodeEntry> = placed(assignment, place)
            .iter()
            .filter(|id| **id != self.me)
            .filter_map(|id| snapshot.node(*id).cloned())
            .collect();
        let mine = snapshot.nodes.get(&self.me);
        if place == ReadPlace::Nearest
            && let Some(zone) = mine.and_then(|n| n.labels.get("zone"))
        {
            nodes.sort_by_key(|node| node.labels.get("zone") != Some(zone));
        }
        // Those that stand still, or whose registration has ended, last.
        nodes.sort_by_key(|node| {
            let gone = !snapshot.nodes.contains_key(&node.id);
            (self.reach.is_silent(node.id), gone)
        });
        nodes
    }
}

#[async_trait]
impl Peers for Router {
    fn me(&self) -> NodeId {
        self.me
    }

    fn is_led(&self, shard: ShardId) -> Result<(), EngineError> {
        let leader = self.leader(shard)?.id;
        if self.topology.snapshot().nodes.contains_key(&leader) {
            return Ok(());
        }
        Err(not_heard_of(shard, leader))
    }

    fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        self.topology.snapshot().assignments.get(&shard)?.leader
    }

    fn idle_shards(&self) -> Vec<ShardId> {
        self.topology.snapshot().idle_shards.clone()
    }

    fn may_answer(&self, shard: ShardId, place: ReadPlace) -> bool {
        let snapshot = self.topology.snapshot();
        let assignment = snapshot.assignments.get(&shard);
        assignment.is_some_and(|a| placed(a, place).contains(&self.me))
    }

    async fn raise_term(&self, shard: ShardId, above: u64) -> Result<u64, EngineError> {
        let raised = self
            .topology
            .raise_term(shard, self.me, above, SystemClock.now_ms())
            .await;
        match raised {
            Ok(assignment) => Ok(assignment.term),
            Err(AssignError::Stale { found }) => Err(unavailable(
                shard,
                match found.and_then(|a| a.leader) {
                    Some(other) => format!("node {other} is to lead it"),
                    None => "no node is to lead it".to_owned(),
                },
            )),
            Err(AssignError::Invalid(what)) => Err(EngineError::Invalid(what)),
            Err(AssignError::Meta(error)) => Err(error.into()),
        }
    }

    async fn write(
        &self,
        shard: ShardId,
        write: ShardWrite,
        patience: Duration,
    ) -> Result<ShardCommit, WriteError> {
        let deadline = Instant::now() + patience;
        let idempotent = write.write_id.is_some() || write.import.is_some();
        let mut unknown: Option<WriteError> = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let failed = match self.way(shard) {
                // The engine looks again whether it leads by now.
                Ok(way) if way.node.id == self.me => return Err(WriteError::NotLeader { shard }),
                Ok(way) => {
                    let node = &way.node;
                    let sent = async {
                        self.connected(node, deadline).await?;
                        let sent = self.links.write(&node.grpc, shard, &write, left);
                        Ok(tokio::time::timeout_at(deadline, sent).await)
                    };
                    let answer = tokio::select! {
                        answer = sent => match answer {
                            Ok(answer) => answer,
                            Err(not_sent) => Ok(Err(not_sent)),
                        },
                        () = self.stalls(shard, &way), if idempotent => {
                            self.hand_over(shard, &way);
                            continue;
                        }
                    };
                    match answer {
                        Ok(Ok(Ok(commit))) => return Ok(commit),
                        // It had no effect there, and has its successor to go to.
                        Ok(Ok(Err(
                            WriteError::NotLeader { .. } | WriteError::ShardUnavailable { .. },
                        )))
                        | Ok(Err(CallError::NotSent { .. }))
                            if self.hand_over(shard, &way) =>
                        {
                            continue;
                        }
                        Ok(Ok(Err(error @ WriteError::NotLeader { .. }))) => error,
                        // It is being closed or opened there; a new leader may be named soon.
                        Ok(Ok(Err(error @ WriteError::ShardUnavailable { .. }))) => error,
                        Ok(Ok(Err(
                            error @ (WriteError::OutcomeUnknown(_)
                            | WriteError::CommitTimeout { .. }),
                        ))) if idempotent => error,
                        Ok(Ok(Err(error))) => return Err(error),
                        Ok(Err(error @ CallError::NotSent { .. })) => {
                            WriteError::ShardUnavailable {
                                shard,
                                why: self.unreached(shard, node.id, &error),
                            }
                        }
                        Ok(Err(error @ CallError::NoAnswer { .. })) => {
                            WriteError::OutcomeUnknown(error.to_string())
                        }
                        Err(_) => WriteError::OutcomeUnknown(format!(
                            "node {}, which leads shard {shard}, did not answer within {} ms; it may still be applied",
                            node.id,
                            patience.as_millis()
                        )),
                    }
                }
                Err(error) => as_write_error(error),
            };
            if failed.retry() == Retry::Unknown {
                if !idempotent {
                    return Err(failed);
                }
                unknown = Some(failed.clone());
            }
            if Instant::now() >= deadline {
                // What one try may have done, no later failure undoes.
                return Err(unknown.unwrap_or(failed));
            }
            self.pause(deadline).await;
        }
    }

    async fn change_schemas(
        &self,
        shard: ShardId,
        changes: Vec<SchemaChange>,
        patience: Duration,
    ) -> Result<(), WriteError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let failed = match self.way(shard) {
                Ok(way) if way.node.id == self.me => WriteError::NotLeader { shard },
                Ok(way) => {
                    let node = &way.node;
                    let ask = Ask::ChangeSchemas {
                        shard,
                        changes: changes.clone(),
                        patience_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
                    };
                    let sent = self.links.ask(&node.grpc, &ask);
                    match tokio::time::timeout_at(deadline, sent).await {
                        Ok(Ok(Ok(_))) => return Ok(()),
                        Ok(Ok(Err(failure))) => match as_write_error(failure.into_error(shard)) {
                            WriteError::NotLeader { .. } | WriteError::ShardUnavailable { .. }
                                if self.hand_over(shard, &way) =>
                            {
                                continue;
                            }
                            error @ (WriteError::NotLeader { .. }
                            | WriteError::ShardUnavailable { .. }) => error,
                            error => return Err(error),
                        },
                        Ok(Err(CallError::NotSent { .. })) if self.hand_over(shard, &way) => {
                            continue;
                        }
                        Ok(Err(error @ CallError::NotSent { .. })) => {
                            WriteError::ShardUnavailable {
                                shard,
                                why: self.unreached(shard, node.id, &error),
                            }
                        }
                        Ok(Err(error)) => {
                            return Err(WriteError::OutcomeUnknown(error.to_string()));
                        }
                        Err(_) => {
                            return Err(WriteError::OutcomeUnknown(format!(
                                "node {} did not answer within {} ms",
                                node.id,
                                patience.as_millis()
                            )));
                        }
                    }
                }
                Err(error) => as_write_error(error),
            };
            if Instant::now() >= deadline
                || matches!(failed, WriteError::NotLeader { .. })
                    && self.leader(shard).is_ok_and(|n| n.id == self.me)
            {
                return Err(failed);
            }
            self.pause(deadline).await;
        }
    }

    async fn table_schema(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Option<Arc<TableSchema>>, EngineError> {
        match self
            .ask_leader(shard, &Ask::Schema { shard, table })
            .await?
        {
            Answer::Schema(schema) => Ok(schema),
            other => Err(unexpected(&other)),
        }
    }

    async fn pending_deletes(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Vec<String>, EngineError> {
        let ask = Ask::PendingDeletes { shard, table };
        match self.ask_leader(shard, &ask).await? {
            Answer::Predicates(predicates) => Ok(predicates),
            other => Err(unexpected(&other)),
        }
    }

    async fn apply_deletes(&self, shard: ShardId, table: TableId) -> Result<(), EngineError> {
        let ask = Ask::ApplyDeletes { shard, table };
        self.ask_leader(shard, &ask).await.map(|_| ())
    }

    async fn change_unit(&self, shard: ShardId, change: UnitChange) -> Result<(), EngineError> {
        let ask = Ask::ChangeUnit { shard, change };
        self.ask_leader(shard, &ask).await.map(|_| ())
    }

    async fn place_child(&self, parent: ShardId, child: ShardId) -> Result<(), EngineError> {
        let read = async |shard| self.topology.read_assignment(shard).await;
        if read(child).await?.is_some() {
            return Ok(());
        }
        let of_parent = read(parent).await?;
        let first = Assignment {
            version: 1,
            term: 1,
            leader: of_parent.as_ref().and_then(|a| a.leader).or(Some(self.me)),
            predecessor: None,
            followers: of_parent.map(|a| a.followers).unwrap_or_default(),
            topic: String::new(),
            changed_ms: SystemClock.now_ms(),
        };
        match self.topology.assign(child, 0, &first).await {
            // Whoever leads the parent by now was quicker.
            Ok(()) | Err(AssignError::Stale { .. }) => Ok(()),
            Err(AssignError::Meta(error)) => Err(error.into()),
            Err(AssignError::Invalid(what)) => Err(EngineError::Invalid(what)),
        }
    }

    async fn split_shard(&self, shard: ShardId, order: SplitOrder) -> Result<ShardId, EngineError> {
        match self
            .ask_leader(shard, &Ask::SplitShard { shard, order })
            .await?
        {
            Answer::Child(child) => Ok(child),
            other => Err(unexpected(&other)),
        }
    }

    async fn was_applied(
        &self,
        shard: ShardId,
        table: TableId,
        id: WriteId,
    ) -> Result<bool, EngineError> {
        match self
            .ask_leader(shard, &Ask::WasApplied { shard, table, id })
            .await?
        {
            Answer::WasApplied(applied) => Ok(applied),
            other => Err(unexpected(&other)),
        }
    }

    async fn read_views(
        &self,
        shard: ShardId,
        tables: &[TableId],
        read: &Read,
    ) -> Result<Vec<EncodedView>, EngineError> {
        let patience = read.patience.unwrap_or(self.patience);
        let deadline = Instant::now() + patience;
        let mut failed = None;
        let mut tries = 0;
        loop {
            let snapshot = self.topology.snapshot();
            let assignment = snapshot.assignments.get(&shard);
            if read.place == ReadPlace::Follower
                && assignment.is_some_and(|a| a.followers.is_empty())
            {
                return Err(unavailable(
                    shard,
                    format!(
                        "no node follows it; `shoal admin shard add-follower {shard}` makes one"
                    ),
                ));
            }
            let nodes = assignment.map_or_else(Vec::new, |assignment| {
                self.readers(&snapshot, assignment, read.place)
            });
            if nodes.is_empty() && failed.is_none() {
                failed = Some(unavailable(
                    shard,
                    match read.place {
                        ReadPlace::Follower => "no other node that is heard of follows it",
                        ReadPlace::Leader => "the node that leads it is not heard of",
                        _ => "no node that is heard of has a replica of it",
                    },
                ));
            }
            for node in nodes {
                tries += 1;
                let left = deadline.saturating_duration_since(Instant::now());
                let ticket = Ticket::Views {
                    shard,
                    tables: tables.to_vec(),
                    read: Read {
                        patience: Some(left),
                        ..read.clone()
                    },
                };
                // Room for the answer of a replica that used all the time it had.
                let until = deadline + self.patience.min(Duration::from_secs(1));
                let asked = tokio::time::timeout_at(until, self.links.views(&node.grpc, &ticket));
                failed = Some(match asked.await {
                    Ok(Ok(Ok(views))) => return Ok(views),
                    Ok(Ok(Err(failure))) => match failure.into_error(shard) {
                        // One that was opened a moment ago has not read that far.
                        error @ (EngineError::ShardUnavailable { .. }
                        | EngineError::NotFound { .. }
                        | EngineError::Write(WriteError::NotLeader { .. })) => error,
                        // A replica that lags; another may not.
                        error @ EngineError::NotFresh { .. } if read.level != ReadLevel::Strong => {
                            error
                        }
                        error => return Err(error),
                    },
                    Ok(Err(error)) => unavailable(shard, error.to_string()),
                    Err(_) => {
                        unavailable(shard, format!("node {} did not answer in time", node.id))
                    }
                });
            }
            let here = self.may_answer(shard, read.place);
            if (here || Instant::now() >= deadline || tries >= READ_TRIES)
                && let Some(error) = failed.take()
            {
                return Err(error);
            }
            self.pause(deadline).await;
        }
    }

    async fn statuses(&self) -> Vec<(NodeId, Option<Vec<ShardStatus>>)> {
        let snapshot = self.topology.snapshot();
        let others = snapshot.nodes.values().filter(|node| node.id != self.me);
        let asked = others.map(|node| async move {
            let asked = self.links.ask(&node.grpc, &Ask::Replicas);
            let told = match tokio::time::timeout(STATUS_TIMEOUT, asked).await {
                Ok(Ok(Ok(Answer::Replicas(text)))) => serde_json::from_str(&text).ok(),
                _ => None,
            };
            (node.id, told)
        });
        futures::future::join_all(asked).await
    }

    async fn import_progress(
        &self,
        shard: ShardId,
        import: u128,
    ) -> Result<Option<u64>, EngineError> {
        let ask = Ask::ImportProgress { shard, import };
        match self.ask_leader(shard, &ask).await? {
            Answer::ImportProgress(progress) => Ok(progress),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> EngineError {
    EngineError::Invalid(format!("another node answered with {answer:?}"))
}
