//! The contract of a log: what a backend must do, and all that its users may rely on. The suite in
//! [`crate::conformance`] asks every backend the questions that can be asked from outside.
//!
//! A log is one shard's sequence of records. To the log a record is opaque bytes.
//!
//! ```text
//!            trimmed        |        durable, readable         |  in flight
//!   ------------------------+----------------------------------+---------------------
//!    gone, or will be       | 17   18   19   21   22   23   24 |  handed to append(),
//!    (BelowStart)           |              ^                   |  no offset yet
//!                           |              a gap: offset 20    |
//!                           |              was never given     |
//!                       start = 17                         end = 25
//!                           `------------ bounds() ------------'
//!                      a reader that stands at `end` waits;
//!                      one that asks for more than `end` gets LostTail
//! ```
//!
//! **Offsets** rise with every record, begin at 0 in a new log, and are given once: a record at an
//! offset never changes, and an offset whose record was lost is not given to another one while
//! anybody may have seen the first. Gaps are allowed anywhere (Kafka's control records), so the
//! offset after `n` is *above* `n`, no more. Users keep positions as "one past the last I read".
//!
//! **Order.** Records handed in by one caller, each `append` called after the one before it
//! returned, stand in the log in that order, as far as they are appended at all. Records of several
//! callers or of two processes interleave freely. A failed append between two good ones is simply
//! missing: the log does not stop. (The fold sees the gap in `seq` and poisons the epoch; that is
//! where "all up to the first failure" is decided, not here.)
//!
//! **Durability.** A record is readable only once it is durable: what a reader returned, every
//! later reader of any process returns at the same offset, after any crash, until it is trimmed.
//! So "my reader passed it" is a proof. "My receipt said so" is one only to who knows everything below
//! the offset that it tells: a verdict depends on that too.
//!
//! **Receipts.** Each append resolves exactly once:
//! - `Ok(offset)`: durable at that offset. It may nonetheless stand there *twice*, at a later
//!   offset too (a producer's retry); users must bear it.
//! - `NotAppended`, `Full`, `TooLarge`, `Closed`: definite. It is not in the log and never will be.
//! - `Unknown`, `CommitTimeout`: it may be in the log already, get in at any later time, even after
//!   records appended later, once or twice, or never. Only reading can tell, and reading can only
//!   tell "yes": "no" is settled by what follows it in the log (a higher claim), never by waiting.
//! - The receipt's sender was dropped: as `Unknown`.
//!
//! Neither success nor failure of one append says anything about another one.
//!
//! **Readers** return every record from the position asked for, in order, none skipped, none
//! twice. At the end they wait. Where something is wrong they return everything before it first,
//! then the same error at every call. A reader holds no lock: a slow one costs nobody anything.
//!
//! **Cancel safety.** A dropped future of `next` has lost nothing: the next call returns the same
//! records. A dropped future of `trim` or `read` may or may not have had its effect. A dropped
//! receipt changes nothing about the append.
//!
//! **Bounds** may be stale in a backend over a network: then they are bounds as of some earlier
//! moment (`start` and `end` of one moment), never of the future. `end` is no barrier unless the
//! backend says so ([`crate::local`] does: the data folder has one owner).
//!
//! **Trim** is a permission: records below may vanish at any time from then on, or not at all. A
//! backend may show a trimmed record again after a restart.
//!
//! **What a log is not.** It does not fence: whoever holds a handle may append, however old its
//! claim. It does not dedupe, does not know epochs and does not look into records.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{LogId, Offset, Retry, ShardId};

use crate::kafka::KafkaLogStats;
use crate::local::LocalLogStats;

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
        /// The first damaged offset and one past the last: reading from there goes on. `None`: this
        /// log cannot be read beyond the damage, or nobody knows where it ends.
        range: Option<(Offset, Offset)>,
    },
    /// There is no log of this shard, and none was asked to be made.
    #[error("there is no log of shard {shard}")]
    NotFound {
        /// The shard.
        shard: ShardId,
    },
    /// Too few replicas confirmed the record in time. Otherwise as [`Self::Unknown`].
    #[error("commit timeout: too few replicas confirmed the record within {timeout_ms} ms")]
    CommitTimeout {
        /// The time limit.
        timeout_ms: u64,
    },
    /// The log exists but must not be used as it is: its settings would lose records. The text
    /// names what they are and what they must be.
    #[error("log {log} is refused: {why}")]
    Refused {
        /// Its name.
        log: String,
        /// What must be mended.
        why: String,
    },
    /// In the log's place stands another one, or an empty one: it was deleted and made again by
    /// somebody else.
    #[error("log {log} is not the one that was made for this shard: {why}")]
    Another {
        /// Its name.
        log: String,
        /// What was found.
        why: String,
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
            Self::Unknown(_) | Self::CommitTimeout { .. } => Retry::Unknown,
            _ => Retry::Never,
        }
    }
}

/// The log of one shard. Cheap to share; all methods may be called at the same time.
#[async_trait]
pub trait Log: Send + Sync + std::fmt::Debug + 'static {
    /// Hands the encoded record to the log. Records of one caller are appended in the order of
    /// these calls (the call itself does not wait; the returned receipt does). It never blocks: a
    /// log that cannot take more resolves the receipt with [`LogError::Full`].
    fn append(&self, record: Bytes) -> AppendReceipt;

    /// A reader that starts at `from` and, at the end, waits for more. `from` may be any offset
    /// from `start` to `end`, also one in a gap.
    ///
    /// # Errors
    /// [`LogError::BelowStart`]: load the newest manifest and read from its replay offset.
    /// [`LogError::LostTail`]: refuse to serve; only an operator can go on.
    /// [`LogError::Closed`].
    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError>;

    /// `(first offset kept, one past the last durable record)`. In an empty or wholly trimmed log
    /// the two are equal. The first offset may lie in a gap.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Closed`].
    async fn bounds(&self) -> Result<(Offset, Offset), LogError>;

    /// Whether the end that [`Self::bounds`] tells is never stale: everything acknowledged before
    /// the call, by anybody, is below it. Then a strong read needs no `Barrier` record.
    fn end_is_barrier(&self) -> bool {
        false
    }

    /// Whether a receipt proves what reading proves (the record is at that offset for ever) and
    /// comes notably earlier, so that it is worth going by it.
    fn receipts_come_first(&self) -> bool {
        false
    }

    /// Allows records below `below` to be deleted. Idempotent; a `below` under the start changes
    /// nothing, one above the end counts as the end. Readers that stand below may fail with
    /// [`LogError::BelowStart`] from then on.
    ///
    /// # Errors
    /// [`LogError::Io`]: nothing is lost, repeat it with the next trim.
    async fn trim(&self, below: Offset) -> Result<(), LogError>;

    /// Bytes of this shard's records between the start and the end: what a replay from the start
    /// would read.
    fn retained_bytes(&self) -> u64;

    /// Bytes of the medium that cannot be freed until this shard trims further, and could be if it
    /// did. More than [`Self::retained_bytes`] (never less) where shards share files: one cold shard
    /// can hold many shards' records back, so flush the shard for which this is over budget. What
    /// no trim of this shard would free does not count, or an idle shard would be flushed for ever.
    fn held_back_bytes(&self) -> u64 {
        self.retained_bytes()
    }
}

/// Resolves when the record is delivered (durable), with its offset. If the sender is gone without
/// a word, the outcome is unknown; see [`receipt_outcome`].
pub type AppendReceipt = tokio::sync::oneshot::Receiver<Result<Offset, LogError>>;

/// Waits for a receipt; one whose log vanished counts as [`LogError::Unknown`].
///
/// # Errors
/// What the log said.
pub async fn receipt_outcome(receipt: AppendReceipt) -> Result<Offset, LogError> {
    receipt.await.unwrap_or_else(|_| {
        Err(LogError::Unknown(
            "the log went away before it answered".into(),
        ))
    })
}

/// Reads a log in order. One user at a time.
#[async_trait]
pub trait LogReader: Send {
    /// The next records, at least one, offsets rising; waits at the end. Cancel-safe. The batch is
    /// bounded by the backend (about 8 MiB, or one record).
    ///
    /// # Errors
    /// [`LogError::BelowStart`] if the log was trimmed past this reader, [`LogError::Damaged`],
    /// [`LogError::LostTail`] if the end moved below this reader, [`LogError::Closed`],
    /// [`LogError::Io`] (the only one after which the same call may succeed).
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError>;
}

/// Opens and makes logs.
///
/// A shard's log is found by the id that [`Self::create`] gave, which the caller keeps in meta:
/// make the log, record its id, open it. A crash before the id is recorded leaves a log that
/// nobody uses; [`Self::list`] shows it. A second `create` may give another log, so of two
/// processes that make one at the same time only the one whose id meta took may go on with its own.
#[async_trait]
pub trait LogStore: Send + Sync + std::fmt::Debug + 'static {
    /// Makes a log for the shard, with its `Genesis` record at offset 0. A backend that keeps one
    /// log a shard returns the one that is there, if any.
    ///
    /// # Errors
    /// Any error of an append; [`LogError::Refused`]; [`LogError::Io`]. In all cases a log that
    /// nobody uses may have been made.
    async fn create(&self, shard: ShardId) -> Result<LogId, LogError>;

    /// Opens a log that was made. Opening is not claiming: several handles of one log may be open.
    ///
    /// # Errors
    /// [`LogError::NotFound`]: it is gone, or never was. [`LogError::Another`]: another log stands
    /// in its place. [`LogError::Refused`]: it cannot be relied on as it is. [`LogError::Io`].
    async fn open(&self, shard: ShardId, log: LogId) -> Result<Arc<dyn Log>, LogError>;

    /// All logs there are, in no order, those that nobody uses too.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Closed`].
    async fn list(&self) -> Result<Vec<(ShardId, LogId)>, LogError>;

    /// Removes every log of a shard that was never opened, whether its id was recorded or not. One
    /// that is gone already is no error. A backend whose logs share their storage frees what it can
    /// and may go on to list the shard.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Closed`]; the next call goes on.
    async fn remove(&self, shard: ShardId) -> Result<(), LogError>;

    /// What a log on the local disk counts, for metrics; `None`: this is none.
    fn local_stats(&self) -> Option<LocalLogStats> {
        None
    }

    /// What a log in Kafka counts, for metrics; `None`: this is none.
    fn kafka_stats(&self) -> Option<KafkaLogStats> {
        None
    }
}
