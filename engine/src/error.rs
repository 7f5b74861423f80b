//! What can go wrong, and what the caller may do about it.

use shoal_types::{Retry, SchemaError, ShardId, TableId};

/// Failures of opening, reading, schema changes and maintenance.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such schema, table or column; `nearest` is the closest existing name.
    #[error("{what} {name:?} does not exist{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    NotFound {
        /// `schema`, `table` or `column`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The closest name there is.
        nearest: Option<String>,
    },
    /// The name is taken.
    #[error("{what} {name:?} already exists")]
    AlreadyExists {
        /// `schema`, `table` or `column`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The schema cannot be.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The request makes no sense; the text names the remedy.
    #[error("{0}")]
    Invalid(String),
    /// A shard is not being served: damaged, or not open. Others are.
    #[error("shard {shard} is not available: {why}")]
    ShardUnavailable {
        /// The shard.
        shard: ShardId,
        /// What keeps it from being served, naming the file.
        why: String,
    },
    /// The replica is not as fresh as the read asked for, and did not become so in time.
    #[error("shard {shard}: {what}")]
    NotFresh {
        /// The shard.
        shard: ShardId,
        /// How far behind it is, and what was asked.
        what: String,
    },
    /// What the read must show was given up by an operator: no replica will ever show it.
    #[error("shard {shard}: {what}")]
    Lost {
        /// The shard.
        shard: ShardId,
        /// What was given up, and why.
        what: String,
    },
    /// A write on behalf of this operation failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The log.
    #[error(transparent)]
    Log(#[from] shoal_wal::log::LogError),
    /// A shard's log is gone, or another one stands in its place.
    #[error("{what}")]
    LostLog {
        /// The shard.
        shard: ShardId,
        /// What was found, and the remedy.
        what: String,
    },
    /// Files.
    #[error(transparent)]
    Sst(#[from] shoal_sst::SstError),
    /// Meta.
    #[error("meta: {0}")]
    Meta(#[from] shoal_meta::MetaError),
    /// A manifest that cannot be read or breaks an invariant.
    #[error("manifest {path}: {what}")]
    Manifest {
        /// Object path.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The database is shutting down.
    #[error("the database is shutting down")]
    ShuttingDown,
}

/// Why a write was not acknowledged.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, thiserror::Error)]
pub enum WriteError {
    /// UPDATE/DELETE: the table changed after the position the statement read at.
    #[error("table {table} changed while the statement ran")]
    Conflict {
        /// The table.
        table: TableId,
    },
    /// The table was dropped, truncated or altered after the rows were built: rebuild them.
    #[error("the schema of table {table} changed while the rows were on their way")]
    StaleSchema {
        /// The table.
        table: TableId,
    },
    /// The write id is older than the dedupe window reaches.
    #[error(
        "write id {id} is older than the window in which retries are recognised; look whether it was applied, then write with a new id"
    )]
    ExpiredId {
        /// The id.
        id: shoal_types::WriteId,
    },
    /// Of a write id or import chunk some rows were applied before and some not: the rest was not
    /// written. Only between the parts of this crate; a leader sends the rest itself.
    #[error("some of the rows were written before")]
    Overlaps {
        /// What was applied.
        covered: Vec<shoal_wal::record::Covered>,
    },
    /// A unit that the rows were routed to owns something else now, or is in another shard: of the
    /// records the first `applied` are written, the others are to be routed anew. Only between the
    /// parts of this crate.
    #[error("what shard {shard} owns has changed while the rows were on their way")]
    Moved {
        /// The shard.
        shard: ShardId,
        /// How many of the request's records for the shard are written.
        applied: u32,
        /// Of the last of them.
        commit: Option<crate::ShardCommit>,
    },
    /// A row belongs to no partition of its table: nothing was written. The text names its values
    /// and the remedy.
    #[error("{0}")]
    NoPartition(String),
    /// `atomic` was asked for but the rows need several records or shards.
    #[error("an atomic write must fit one record: {what}")]
    TooLargeForAtomic {
        /// Which limit was passed.
        what: String,
    },
    /// One row is larger than a record may be.
    #[error("a row of {bytes} bytes exceeds the record limit of {max}")]
    RowTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too much is in flight, or flushes lag behind: slow down and send again.
    #[error("{0}")]
    Overloaded(String),
    /// The log has no space: not applied; send again when there is.
    #[error("no space for the log: {0}")]
    NoSpace(String),
    /// The shard is not served here.
    #[error("shard {shard} is not available: {why}")]
    ShardUnavailable {
        /// The shard.
        shard: ShardId,
        /// Why.
        why: String,
    },
    /// The replica that is to lead the shard cannot read its log any further: not applied, and not
    /// before an operator has done what the text says.
    #[error("shard {shard} is not available: {why}")]
    ShardHalted {
        /// The shard.
        shard: ShardId,
        /// The place, and the remedy.
        why: String,
    },
    /// Another replica leads the shard: not applied; send it there.
    #[error("another replica leads shard {shard}")]
    NotLeader {
        /// The shard.
        shard: ShardId,
    },
    /// Too few replicas of the log confirmed it in time. Otherwise as [`Self::OutcomeUnknown`].
    #[error(
        "commit timeout: too few replicas confirmed the record within {timeout_ms} ms; it may still be applied"
    )]
    CommitTimeout {
        /// The time limit.
        timeout_ms: u64,
    },
    /// It may or may not have been applied.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// The rows are malformed: a defect of the caller.
    #[error("{0}")]
    Invalid(String),
}

impl WriteError {
    /// What the caller may do.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Conflict { .. }
            | Self::StaleSchema { .. }
            | Self::Overloaded(_)
            | Self::NoSpace(_)
            | Self::Overlaps { .. }
            | Self::Moved { .. }
            | Self::NotLeader { .. }
            | Self::ShardUnavailable { .. }
            | Self::ShardHalted { .. } => Retry::Safe,
            Self::OutcomeUnknown(_) | Self::CommitTimeout { .. } => Retry::Unknown,
            Self::ExpiredId { .. }
            | Self::NoPartition(_)
            | Self::TooLargeForAtomic { .. }
            | Self::RowTooLarge { .. }
            | Self::Invalid(_) => Retry::Never,
        }
    }
}

impl EngineError {
    /// What the caller may do.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Write(e) => e.retry(),
            Self::Log(e) => e.retry(),
            Self::Sst(e) => e.retry(),
            Self::Meta(e) => e.retry(),
            Self::ShardUnavailable { .. } | Self::NotFresh { .. } | Self::ShuttingDown => {
                Retry::Safe
            }
            _ => Retry::Never,
        }
    }
}
