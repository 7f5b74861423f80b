//! The cluster at one moment, as the scheduler sees it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_types::{NodeId, Offset, ShardId, TimestampMs};

/// Nodes and shards at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When.
    pub now_ms: TimestampMs,
    /// Nodes that may have replicas; no id twice.
    pub nodes: Vec<Node>,
    /// Shards; no id twice.
    pub shards: Vec<Shard>,
}

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It is heard of.
    Up,
    /// It is not heard of; being probed.
    Suspect,
    /// It is not there.
    Down,
}

/// A data node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node.
    pub id: NodeId,
    /// `region`, `zone`, `rack`, `host`, …
    pub labels: BTreeMap<String, String>,
    /// How much load it can take, relative to others: its cores.
    pub cores: f64,
    /// Whether it is there.
    pub health: Health,
    /// Since when it is what `health` says.
    pub since_ms: TimestampMs,
    /// When it came, or was allowed to have replicas again: shards that were moved before may be
    /// moved to it without having rested.
    pub joined_ms: TimestampMs,
    /// It is to end with no replica.
    pub draining: bool,
    /// It is to end with no lead: it is about to be restarted.
    pub leaves: bool,
    /// Whether it reaches the log; a leader that does not is replaced by one that does.
    pub reaches_log: bool,
    /// Whether the other nodes reach it; a leader that they do not is replaced by one that they do.
    pub reached: bool,
    /// Changes under way that it takes part in.
    pub changes: usize,
}

impl Node {
    /// Whether it may be given leads.
    #[must_use]
    pub fn takes_leads(&self) -> bool {
        self.takes_replicas() && !self.leaves && self.reached
    }

    /// Whether it may be given replicas.
    #[must_use]
    pub fn takes_replicas(&self) -> bool {
        self.health == Health::Up && !self.draining && self.reaches_log
    }
}

/// What was measured of a shard, smoothed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of rows written, a second.
    pub write_bytes_per_s: f64,
    /// Time spent reading it, in ms a second.
    pub read_ms_per_s: f64,
    /// Bytes of rows in memory.
    pub memory_bytes: f64,
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads.fold(Self::default(), |all, one| Self {
            write_bytes_per_s: all.write_bytes_per_s + one.write_bytes_per_s,
            read_ms_per_s: all.read_ms_per_s + one.read_ms_per_s,
            memory_bytes: all.memory_bytes + one.memory_bytes,
        })
    }
}

impl Load {
    /// What a replica without load costs: shards nobody uses are spread by their number.
    const BASE: f64 = 0.005;
    /// What the lead of it costs on top, so that leads nobody uses are spread, too.
    const LEAD: f64 = 0.02;
    /// Bytes a second that a leader takes with one core (`benches/RESULTS.md`: 445 MB/s on two,
    /// half of which went to others).
    const WRITE_BYTES_PER_CORE_S: f64 = 1e8;
    /// Bytes of rows in memory that are held equal to a core.
    const MEMORY_BYTES_PER_CORE: f64 = 4e9;
    /// A follower folds what the leader also parsed, encoded and wrote to files.
    const FOLLOWER_SHARE: f64 = 0.4;

    /// Cores that the leader's replica is worth.
    #[must_use]
    pub fn of_leader(&self) -> f64 {
        Self::BASE
            + Self::LEAD
            + self.write_bytes_per_s / Self::WRITE_BYTES_PER_CORE_S
            + self.read_ms_per_s / 1e3
            + self.memory_bytes / Self::MEMORY_BYTES_PER_CORE
    }

    /// Cores that a follower's replica is worth.
    #[must_use]
    pub fn of_follower(&self) -> f64 {
        Self::BASE
            + self.write_bytes_per_s / Self::WRITE_BYTES_PER_CORE_S * Self::FOLLOWER_SHARE
            + self.memory_bytes / Self::MEMORY_BYTES_PER_CORE
    }
}

/// How a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Nothing was heard of it yet.
    Unknown,
    /// It is being opened, or is far behind.
    CatchingUp,
    /// It can take over at once.
    Ready,
    /// It can read its log no further; an operator has to decide.
    Damaged,
}

/// A node's copy of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Where.
    pub node: NodeId,
    /// How it is.
    pub state: ReplicaState,
    /// What it has applied.
    pub position: Offset,
}

/// A shard and who serves it.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The shard.
    pub id: ShardId,
    /// Which settings hold for it.
    pub group: String,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// All replicas, the leader's too; no node twice.
    pub replicas: Vec<Replica>,
    /// What it costs.
    pub load: Load,
    /// A change of it is under way: it is left alone.
    pub changing: bool,
    /// Its leader is up and has not led it for so long that another one is to try.
    pub unled: bool,
    /// When it was last moved for balance.
    pub balanced_ms: Option<TimestampMs>,
}

impl Shard {
    /// The replica of a node.
    #[must_use]
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|r| r.node == node)
    }

    /// Whether its log or manifest is damaged: then no other node would do better.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let damaged = |r: &Replica| r.state == ReplicaState::Damaged;
        match self.leader.and_then(|l| self.replica(l)) {
            Some(leader) => damaged(leader),
            None => self.replicas.iter().any(damaged),
        }
    }
}
