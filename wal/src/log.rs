//! The contract of a log.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{Offset, Retry, ShardId};

/// Why a log operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The append certainly took no effect and never will.
    #[error("not appended: {0}")]
    NotAppended(String),
    /// The append may take effect now, later or never (lost acknowledgement).
    #[error("append outcome unknown: {0}")]
    Unknown(String),
    /// No space or out of budget: not appended, may work later.
    #[error("the log cannot take more now: {0}")]
    Full(String),
    /// The record is larger than the log takes.
    #[error("record of {bytes} bytes exceeds the log's limit of {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The reader asked for offsets that were trimmed: reload the newest manifest and repeat.
    #[error("offset {asked} is below the log's start {start}")]
    BelowStart {
        /// Asked for.
        asked: Offset,
        /// First offset kept.
        start: Offset,
    },
    /// The log ends before the offset asked for: its tail was lost.
    #[error(
        "the log of shard {shard} ends at {end}, before offset {asked}: its tail was lost; `shoal admin shard adopt-log --accept-loss` is the only way on"
    )]
    LostTail {
        /// The shard.
        shard: ShardId,
        /// Asked for.
        asked: Offset,
        /// One past the last record.
        end: Offset,
    },
    /// Bytes in the middle of the log are damaged; nothing behind them is read.
    #[error("the log of shard {shard} is damaged at {place}: {what}")]
    Damaged {
        /// The shard.
        shard: ShardId,
        /// File and byte, or topic and offset.
        place: String,
        /// What was found.
        what: String,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// Reading failed for another reason.
    #[error("{0}")]
    Io(String),
}

impl LogError {
    /// What the caller may do.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotAppended(_) | Self::Full(_) | Self::Closed => Retry::Safe,
            Self::Unknown(_) => Retry::Unknown,
            _ => Retry::Never,
        }
    }
}

/// The log of one shard.
#[async_trait]
pub trait Log: Send + Sync + std::fmt::Debug + 'static {
    /// Hands the encoded record to the log. Records of one caller are appended in the order of
    /// these calls (the call itself does not wait; the returned receipt does).
    fn append(&self, record: Bytes) -> AppendReceipt;

    /// A reader that starts at `from` and, at the end, waits for more.
    ///
    /// # Errors
    /// [`LogError::BelowStart`], [`LogError::LostTail`].
    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError>;

    /// `(first offset kept, one past the last durable record)`.
    async fn bounds(&self) -> Result<(Offset, Offset), LogError>;

    /// Allows records below `below` to be deleted. Idempotent.
    async fn trim(&self, below: Offset) -> Result<(), LogError>;

    /// Bytes kept between the start and the end.
    fn retained_bytes(&self) -> u64;
}

/// Resolves when the record is delivered (durable), with its offset.
pub type AppendReceipt = tokio::sync::oneshot::Receiver<Result<Offset, LogError>>;

/// Reads a log in order.
#[async_trait]
pub trait LogReader: Send {
    /// The next records, at least one; waits at the end. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError>;
}

/// Opens and makes logs.
#[async_trait]
pub trait LogStore: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a shard's log, making it (with its `Genesis` record at offset 0) if `create`.
    async fn open(&self, shard: ShardId, create: bool) -> Result<Arc<dyn Log>, LogError>;
}
