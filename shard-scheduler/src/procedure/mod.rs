//! Procedures: every change of who serves a shard, from the wish to its end.
//!
//! A [`Procedure`] is written to meta before anything is done and again when it has ended. In
//! between nothing is noted: what is to be done next is derived from the assignment and from what
//! the nodes tell ([`next`]), so that whoever takes it up, at whatever point it was left, goes on
//! from what is the case.

mod next;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use shoal_types::{Epoch, NodeId, ShardId, TimestampMs};
use ulid::Ulid;

pub use next::{Act, NodeSight, ReplicaSight, Sight, next};

/// A change that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Task {
    /// A node leads in the place of one that does not work.
    FailOver {
        /// The shard.
        shard: ShardId,
        /// Who leads next.
        to: NodeId,
        /// The term that ends with it.
        term: u64,
    },
    /// A follower leads, the leader follows.
    Promote {
        /// The shard.
        shard: ShardId,
        /// Who leads next.
        to: NodeId,
        /// The term that ends with it.
        term: u64,
    },
    /// Meta tells less than the nodes have obeyed already, since it was restored from a backup: it
    /// is told what is the case, in a new term.
    Reconcile {
        /// The shard.
        shard: ShardId,
        /// Who leads, or is furthest.
        to: NodeId,
        /// The newest version that a node has obeyed.
        version: u64,
    },
    /// A node follows, too.
    AddFollower {
        /// The shard.
        shard: ShardId,
        /// Which.
        to: NodeId,
        /// It had a replica already.
        #[serde(default)]
        had: bool,
    },
    /// A node follows no more.
    RemoveFollower {
        /// The shard.
        shard: ShardId,
        /// Which.
        node: NodeId,
    },
    /// A replica, and the lead if it has it, goes to another node.
    Move {
        /// The shard.
        shard: ShardId,
        /// Who has it.
        from: NodeId,
        /// Who gets it.
        to: NodeId,
        /// `to` had a replica already.
        had: bool,
    },
}

impl Task {
    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        match self {
            Self::FailOver { shard, .. }
            | Self::Promote { shard, .. }
            | Self::Reconcile { shard, .. }
            | Self::AddFollower { shard, .. }
            | Self::RemoveFollower { shard, .. }
            | Self::Move { shard, .. } => *shard,
        }
    }

    /// The node that the change is about.
    #[must_use]
    pub fn node(&self) -> NodeId {
        match self {
            Self::FailOver { to, .. }
            | Self::Promote { to, .. }
            | Self::Reconcile { to, .. }
            | Self::AddFollower { to, .. }
            | Self::Move { to, .. } => *to,
            Self::RemoveFollower { node, .. } => *node,
        }
    }

    /// All nodes that have work with it.
    #[must_use]
    pub fn nodes(&self) -> [Option<NodeId>; 2] {
        match self {
            Self::Move { from, to, .. } => [Some(*from), Some(*to)],
            other => [Some(other.node()), None],
        }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::FailOver { .. } => "fail-over",
            Self::Promote { .. } => "promote",
            Self::Reconcile { .. } => "reconcile",
            Self::AddFollower { .. } => "add-follower",
            Self::RemoveFollower { .. } => "remove-follower",
            Self::Move { .. } => "move",
        }
    }
}

/// How a procedure stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is being carried out.
    Running,
    /// What was wanted is the case.
    Done,
    /// It could not be carried out; `error` says why. What was reached stays.
    Failed,
    /// The shard's leader changed meanwhile: what was wanted holds no more.
    Overtaken,
    /// An operator called it off, and it was undone.
    Cancelled,
}

impl State {
    /// What it is called, as it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Overtaken => "overtaken",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A change of who serves a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Procedure {
    /// Its id; by it the newer of two is told.
    pub id: Ulid,
    /// What is wanted.
    #[serde(flatten)]
    pub task: Task,
    /// `scheduler`, or who ordered it.
    pub by: String,
    /// Why, for people.
    pub why: String,
    /// When it began.
    pub begun_ms: TimestampMs,
    /// An operator has called it off.
    #[serde(default)]
    pub cancelled: bool,
    /// How it stands.
    pub state: State,
    /// Who led when it began.
    pub old_leader: Option<NodeId>,
    /// In which term.
    pub old_term: u64,
    /// What came of it.
    #[serde(default)]
    pub outcome: Outcome,
}

/// What came of a procedure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// When it ended.
    pub ended_ms: Option<TimestampMs>,
    /// The epoch that its node leads in.
    pub epoch: Option<Epoch>,
    /// For how long nobody could write: of a failover since the old leader was last heard of, else
    /// since the assignment was changed; until the new one led.
    pub pause_ms: Option<f64>,
    /// Log records that the node read for it.
    pub records_replayed: u64,
    /// What went wrong.
    pub error: Option<String>,
}

impl Procedure {
    /// One that begins.
    #[must_use]
    pub fn new(task: Task, by: &str, why: &str, now_ms: TimestampMs) -> Self {
        Self {
            id: Ulid::new(),
            task,
            by: by.into(),
            why: why.into(),
            begun_ms: now_ms,
            cancelled: false,
            state: State::Running,
            old_leader: None,
            old_term: 0,
            outcome: Outcome::default(),
        }
    }

    /// Whether it is being carried out.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }
}
