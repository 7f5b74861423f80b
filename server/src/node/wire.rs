//! What nodes say to each other, inside Arrow Flight messages.
//!
//! | call | request | answer |
//! |---|---|---|
//! | `DoPut` | first message's `app_metadata`: [`WriteHead`]; one message a record, its rows in `data_body` | one `PutResult`: `Result<ShardCommit, WriteError>` |
//! | `DoGet` | ticket: [`Ticket`] | first message's `app_metadata`: the head of a view; one message a block of rows |
//! | `DoAction` | type: [`Ask::NAME`], body: [`Ask`] | one result: `Result<Answer, Failure>` |
//!
//! All of it is MessagePack. Every request carries the cluster's id and, where one is set, the
//! token; nodes of different clusters refuse each other. Nodes of one cluster run the same release
//! or the next: new members of these types have defaults.

use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_engine::{
    Compacted, EngineError, Flushed, GcReport, GiveUp, LogFound, Promoted, Read, RecordPart,
    Repaired, SplitOrder, UnitChange, WriteError,
};
use shoal_meta::Assignment;
use shoal_types::{Offset, Retry, ShardId, TableId, TableSchema, WriteId};
use shoal_wal::record::{ImportChunk, SchemaChange, TableWrite};
use ulid::Ulid;

/// Metadata that names the cluster.
pub const CLUSTER: &str = "shoal-cluster";

/// Type of the action that asks for beats ([`super::beats`]).
pub const BEATS: &str = "beats";

/// Largest message: a record and its frame.
pub const MESSAGE_BYTES_MAX: usize = 80 << 20;

/// What a write is besides its rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct WriteHead {
    /// The shard.
    pub shard: ShardId,
    /// The client's id.
    pub write_id: Option<WriteId>,
    /// Part of an import.
    pub import: Option<ImportChunk>,
    /// Position that an UPDATE or DELETE read at.
    pub read_at: Option<Offset>,
    /// As [`ShardWrite::owns`](shoal_engine::ShardWrite::owns).
    #[serde(default)]
    pub owns: Vec<(TableId, u64)>,
    /// The longest wait, in ms.
    pub patience_ms: u64,
    /// Its records.
    pub parts: Vec<PartHead>,
}

/// One record of a write, without its rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct PartHead {
    /// As [`RecordPart::number`].
    pub number: u32,
    /// As [`RecordPart::last`].
    pub last: bool,
    /// As [`RecordPart::tables`].
    pub tables: Vec<TableWrite>,
}

impl PartHead {
    /// Of a record.
    #[must_use]
    pub fn of(part: &RecordPart) -> Self {
        Self {
            number: part.number,
            last: part.last,
            tables: part.tables.clone(),
        }
    }
}

/// What is to be got.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ticket {
    /// A replica's views of some tables, all at one position.
    Views {
        /// The shard.
        shard: ShardId,
        /// The tables.
        tables: Vec<TableId>,
        /// How fresh, by which replica.
        read: Read,
    },
}

/// A question or an order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// To the leader: change schemas.
    ChangeSchemas {
        /// The shard.
        shard: ShardId,
        /// The changes, one record.
        changes: Vec<SchemaChange>,
        /// The longest wait, in ms.
        patience_ms: u64,
    },
    /// To the leader: a table's schema.
    Schema {
        /// The shard.
        shard: ShardId,
        /// The table.
        table: TableId,
    },
    /// To the leader: how far an import got.
    ImportProgress {
        /// The shard.
        shard: ShardId,
        /// The import.
        import: u128,
    },
    /// To the leader: predicates of deletes that rows are still held against.
    PendingDeletes {
        /// The shard.
        shard: ShardId,
        /// The table.
        table: TableId,
    },
    /// To the leader: write the table's files anew without what those hide.
    ApplyDeletes {
        /// The shard.
        shard: ShardId,
        /// The table.
        table: TableId,
    },
    /// To the leader: cut or join units.
    ChangeUnit {
        /// The shard.
        shard: ShardId,
        /// How.
        change: UnitChange,
    },
    /// To the leader: give units to a new shard.
    SplitShard {
        /// The shard.
        shard: ShardId,
        /// What goes.
        order: SplitOrder,
    },
    /// To the leader: whether a write with this id was applied.
    WasApplied {
        /// The shard.
        shard: ShardId,
        /// The table.
        table: TableId,
        /// The id.
        id: WriteId,
    },
    /// Take the role that this assignment gives you, now; what meta says later counts.
    Obey {
        /// The shard.
        shard: ShardId,
        /// Its assignment.
        assignment: Assignment,
    },
    /// Which start of a node you are.
    Process,
    /// What your replicas are like.
    Replicas,
    /// The checksum of the rows that your replica shows.
    Checksum {
        /// The shard.
        shard: ShardId,
        /// Once it has applied this; `None`: to a strong read.
        position: Option<Offset>,
    },
    /// To the leader: write rows in memory to files.
    Flush {
        /// The shard.
        shard: ShardId,
    },
    /// To the leader: merge files.
    Compact {
        /// The shard.
        shard: ShardId,
        /// Of one table; `None`: of all.
        table: Option<TableId>,
    },
    /// Delete what nobody needs of the shards that you lead.
    Collect {
        /// Only look.
        dry_run: bool,
    },
    /// To the leader: write a manifest that replays from beyond this position.
    FlushBeyond {
        /// The shard.
        shard: ShardId,
        /// The position.
        offset: Offset,
    },
    /// Lead the shard from the damage on at which your replica halted.
    SkipRecord {
        /// The shard.
        shard: ShardId,
        /// Its assignment, which names you as leader.
        assignment: Assignment,
        /// Where your replica stands.
        at: Offset,
        /// Whether the damaged records are given up; else you go on from that very place.
        skip: bool,
        /// By whom and why.
        by: GiveUp,
    },
    /// Lead the shard, whose log was lost, with a new one.
    AdoptLog {
        /// The shard.
        shard: ShardId,
        /// Its assignment, which names you as leader.
        assignment: Assignment,
        /// No replica has passed this.
        above: Offset,
        /// By whom and why.
        by: GiveUp,
    },
    /// What is the case with a shard's log.
    ExamineLog {
        /// The shard.
        shard: ShardId,
    },
}

impl Ask {
    /// The action's type.
    pub const NAME: &'static str = "ask";
}

/// An answer to an [`Ask`], of its kind.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// A schema.
    Schema(Option<Arc<TableSchema>>),
    /// Progress.
    ImportProgress(Option<u64>),
    /// Predicates.
    Predicates(Vec<String>),
    /// Whether it was.
    WasApplied(bool),
    /// A shard that was split off.
    Child(ShardId),
    /// What taking the role came to.
    Obeyed(Option<Promoted>),
    /// A start of a node.
    Process(Ulid),
    /// Replicas as `/v1/admin/shards?local` shows them.
    Replicas(String),
    /// A checksum, as JSON.
    Checksum(String),
    /// What a flush wrote.
    Flushed(Flushed),
    /// What compactions did.
    Compacted(Compacted),
    /// What garbage collection did.
    Collected(Box<GcReport>),
    /// What a repair came to.
    Repaired(Box<Repaired>),
    /// A shard's log.
    Log(Box<LogFound>),
}

/// [`EngineError`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub enum Failure {
    /// As [`EngineError::NotFound`], of a table.
    NoTable,
    /// As [`EngineError::Write`].
    Write(WriteError),
    /// As [`EngineError::ShardUnavailable`].
    Unavailable {
        /// The shard.
        shard: ShardId,
        /// Why.
        why: String,
    },
    /// As [`EngineError::NotFresh`].
    NotFresh {
        /// The shard.
        shard: ShardId,
        /// How far behind.
        what: String,
    },
    /// As [`EngineError::Lost`].
    Lost {
        /// The shard.
        shard: ShardId,
        /// What was given up.
        what: String,
    },
    /// Others, in words.
    Other {
        /// The words.
        what: String,
        /// What the caller may do.
        retry: Retry,
    },
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NotFound { .. } => Self::NoTable,
            EngineError::Write(error) => Self::Write(error),
            EngineError::ShardUnavailable { shard, why } => Self::Unavailable { shard, why },
            EngineError::NotFresh { shard, what } => Self::NotFresh { shard, what },
            EngineError::Lost { shard, what } => Self::Lost { shard, what },
            other => Self::Other {
                retry: other.retry(),
                what: other.to_string(),
            },
        }
    }
}

impl Failure {
    /// The error as it was there; `shard` is what was asked about.
    #[must_use]
    pub fn into_error(self, shard: ShardId) -> EngineError {
        match self {
            Self::NoTable => EngineError::NotFound {
                what: "table",
                name: String::new(),
                nearest: None,
            },
            Self::Write(error) => error.into(),
            Self::Unavailable { shard, why } => EngineError::ShardUnavailable { shard, why },
            Self::NotFresh { shard, what } => EngineError::NotFresh { shard, what },
            Self::Lost { shard, what } => EngineError::Lost { shard, what },
            Self::Other {
                what,
                retry: Retry::Safe,
            } => EngineError::ShardUnavailable { shard, why: what },
            Self::Other { what, .. } => EngineError::Invalid(what),
        }
    }
}

/// As MessagePack with names, so that either side may know more members.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> bytes::Bytes {
    rmp_serde::to_vec_named(value)
        .expect("types of the wire have no values that MessagePack lacks")
        .into()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// A status that names what was to be read.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, tonic::Status> {
    rmp_serde::from_slice(bytes)
        .map_err(|e| tonic::Status::invalid_argument(format!("{what} cannot be read: {e}")))
}
