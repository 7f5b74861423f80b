//! Finding the node that can do something, by the watched topology (DESIGN §2; PROTOCOLS §1).
//!
//! A write goes to the shard's leader. Told that another leads, the way is looked up again. What is
//! certain to have had no effect is tried again until the time is up; what may have had one only if
//! it carries an id that makes its repetition harmless, and then also with a leader that was named
//! meanwhile while the old one stands still.
//!
//! A read goes to a replica that fits its place; nearer ones first, and the next one if a node
//! cannot be reached.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shoal_engine::{
    EncodedView, EngineError, Peers, Read, ReadLevel, ReadPlace, ShardCommit, ShardStatus,
    ShardWrite, WriteError,
};
use shoal_meta::{AssignError, Assignment, NodeEntry, Snapshot, Topology};
use shoal_types::{Clock, NodeId, Retry, ShardId, SystemClock, TableId, TableSchema, WriteId};
use shoal_wal::record::SchemaChange;
use tokio::time::Instant;

use super::links::{CallError, Links};
use super::wire::{Answer, Ask, Failure, Ticket};

/// Pause before a way is looked up again, unless the topology changes first.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a node may take to tell about its replicas.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes asked for one read.
const READ_TRIES: usize = 8;

/// Other nodes, found through the topology.
#[derive(Debug)]
pub struct Router {
    me: NodeId,
    zone: Option<String>,
    topology: Arc<Topology>,
    links: Arc<Links>,
    /// Longest wait of questions that carry none.
    patience: Duration,
}

fn unavailable(shard: ShardId, why: impl Into<String>) -> EngineError {
    EngineError::ShardUnavailable {
        shard,
        why: why.into(),
    }
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
        zone: Option<String>,
        topology: Arc<Topology>,
        links: Arc<Links>,
        patience: Duration,
    ) -> Self {
        Self {
            me,
            zone,
            topology,
            links,
            patience,
        }
    }

    /// The leader of a shard, if it is heard of.
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
        snapshot.nodes.get(&leader).cloned().ok_or_else(|| {
            unavailable(
                shard,
                format!(
                    "node {leader}, which leads it, is not heard of; start it, or `shoal admin shard promote {shard} --to NODE`"
                ),
            )
        })
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

    /// Resolves when another node leads the shard.
    async fn led_by_other(&self, shard: ShardId, than: NodeId) {
        let mut changes = self.topology.subscribe();
        loop {
            {
                let snapshot = changes.borrow_and_update();
                let leader = snapshot.assignments.get(&shard).and_then(|a| a.leader);
                if leader.is_some_and(|leader| leader != than) {
                    return;
                }
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
            let failed = match self.leader(shard) {
                // The engine looks again whether it leads by now.
                Ok(node) if node.id == self.me => {
                    return Err(WriteError::NotLeader { shard }.into());
                }
                Ok(node) => {
                    let asked = tokio::time::timeout_at(deadline, self.links.ask(&node.grpc, ask));
                    match asked.await {
                        Ok(Ok(Ok(answer))) => return Ok(answer),
                        Ok(Ok(Err(Failure::Write(WriteError::NotLeader { .. })))) => {
                            unavailable(shard, "its leader changes")
                        }
                        // It is being opened there.
                        Ok(Ok(Err(failure @ Failure::Unavailable { .. }))) => {
                            failure.into_error(shard)
                        }
                        Ok(Ok(Err(failure))) => return Err(failure.into_error(shard)),
                        Ok(Err(error)) => unavailable(shard, error.to_string()),
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
            .filter_map(|id| snapshot.nodes.get(id).cloned())
            .collect();
        if place == ReadPlace::Nearest
            && let Some(zone) = &self.zone
        {
            nodes.sort_by_key(|node| node.labels.get("zone") != Some(zone));
        }
        nodes
    }
}

#[async_trait]
impl Peers for Router {
    fn me(&self) -> NodeId {
        self.me
    }

    fn is_led(&self, shard: ShardId) -> Result<(), EngineError> {
        self.leader(shard).map(drop)
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
            let failed = match self.leader(shard) {
                // The engine looks again whether it leads by now.
                Ok(node) if node.id == self.me => return Err(WriteError::NotLeader { shard }),
                Ok(node) => {
                    let sent = self.links.write(&node.grpc, shard, &write, left);
                    let answer = tokio::select! {
                        answer = tokio::time::timeout_at(deadline, sent) => answer,
                        () = self.led_by_other(shard, node.id), if idempotent => {
                            continue;
                        }
                    };
                    match answer {
                        Ok(Ok(Ok(commit))) => return Ok(commit),
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
                                why: error.to_string(),
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
            let failed = match self.leader(shard) {
                Ok(node) if node.id == self.me => WriteError::NotLeader { shard },
                Ok(node) => {
                    let ask = Ask::ChangeSchemas {
                        shard,
                        changes: changes.clone(),
                        patience_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
                    };
                    let sent = self.links.ask(&node.grpc, &ask);
                    match tokio::time::timeout_at(deadline, sent).await {
                        Ok(Ok(Ok(_))) => return Ok(()),
                        Ok(Ok(Err(failure))) => match as_write_error(failure.into_error(shard)) {
                            error @ (WriteError::NotLeader { .. }
                            | WriteError::ShardUnavailable { .. }) => error,
                            error => return Err(error),
                        },
                        Ok(Err(error @ CallError::NotSent { .. })) => {
                            WriteError::ShardUnavailable {
                                shard,
                                why: error.to_string(),
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

    async fn was_applied(&self, shard: ShardId, id: WriteId) -> Result<bool, EngineError> {
        match self
            .ask_leader(shard, &Ask::WasApplied { shard, id })
            .await?
        {
            Answer::WasApplied(applied) => Ok(applied),
            other => Err(unexpected(&other)),
        }
    }

    async fn read_view(
        &self,
        shard: ShardId,
        table: TableId,
        read: &Read,
    ) -> Result<EncodedView, EngineError> {
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
                let ticket = Ticket::View {
                    shard,
                    table,
                    read: Read {
                        patience: Some(left),
                        ..read.clone()
                    },
                };
                // Room for the answer of a replica that used all the time it had.
                let until = deadline + self.patience.min(Duration::from_secs(1));
                let asked = tokio::time::timeout_at(until, self.links.view(&node.grpc, &ticket));
                failed = Some(match asked.await {
                    Ok(Ok(Ok(view))) => return Ok(view),
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
