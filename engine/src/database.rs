//! The catalog and all shards of this process.
//!
//! - `database/open.rs`: opening all shards, cleaning up what a crash left, closing.
//! - `database/tables.rs`: schemas and tables; `database/names.rs`: making and dropping them;
//!   `database/writes.rs`: rows in; `database/reads.rs`: views out.
//! - `database/partitions.rs`: which rows go to which partition; partitions made and dropped.
//! - `database/holds.rs`: tables whose writes wait for a statement that changes them.
//! - `database/roles.rs`: which shards are led or followed here; `database/remote.rs`: what is
//!   asked of other nodes, and answered to them.
//! - `database/maintenance.rs`: when to flush, compact, collect, open again.
//! - `database/repartition.rs`: partitions cut and joined; `database/split.rs`: a shard in two.
//! - `database/repair.rs`: what an operator does about a damaged or lost log.
//! - `database/admin.rs`: status and commands of operators.

mod admin;
mod holds;
mod maintenance;
mod names;
mod open;
mod open_shard;
mod partitions;
mod reads;
mod remote;
mod repair;
mod repartition;
mod roles;
mod slots;
mod split;
mod tables;
mod writes;

pub use holds::Hold;
pub use partitions::NewPartition;
pub use repair::Repaired;
pub use repartition::UnitChange;
pub(crate) use slots::{Slot, Slots};
pub use split::{SplitOff, SplitOrder};

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use parking_lot::Mutex;
use shoal_meta::{Layout, NamedTable, Part, Placed};
use shoal_sst::SstError;
use shoal_types::{
    Clock, Epoch, Offset, PartitionBounds, PartitionBy, PartitionId, Retry, ShardId, TableId,
    TableSchema, WriteId,
};
use shoal_wal::log::LogStore;
use shoal_wal::record::ImportChunk;
use tokio_util::sync::CancellationToken;

use crate::env::Env;
use crate::peers::Peers;
use crate::shard::Shard;
use crate::{EngineError, RowPredicate, WriteError};

/// What the engine stands on.
#[derive(Clone)]
pub struct Backends {
    /// Logs.
    pub logs: Arc<dyn LogStore>,
    /// Objects.
    pub store: Arc<dyn ObjectStore>,
    /// Names, placement, terms.
    pub meta: Arc<dyn shoal_meta::MetaStore>,
    /// Wall clock.
    pub clock: Arc<dyn Clock>,
    /// Evaluates predicate deletes.
    pub predicate: Option<Arc<dyn RowPredicate>>,
    /// Other nodes of the cluster; `None`: this process is alone.
    pub peers: Option<Arc<dyn Peers>>,
}

/// A table as the catalog knows it, or one partition of it ([`Self::partitions`]). Cheap to clone;
/// the schema is looked up when needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableHandle {
    /// Schema name, `public` by default.
    pub schema_name: String,
    /// Table name.
    pub name: String,
    /// The table.
    pub table: TableId,
    /// The rows' id in their shard: of the partition, and of a table the one that decides columns.
    pub id: TableId,
    /// That partition.
    pub partition: PartitionId,
    /// Where it lives.
    pub shard: ShardId,
    /// All partitions of the table; `None`: there is one, which owns everything.
    pub layout: Option<Arc<Layout>>,
}

impl TableHandle {
    fn of(named: &NamedTable) -> Self {
        let home = named.entry.home();
        Self {
            schema_name: named.schema_name.to_string(),
            name: named.name.to_string(),
            table: named.entry.table,
            id: home.unit,
            partition: home.partition,
            shard: home.shard,
            layout: named.entry.layout.clone(),
        }
    }

    /// A handle of each partition, in the layout's order.
    #[must_use]
    pub fn partitions(&self) -> Vec<Self> {
        match &self.layout {
            None => vec![self.clone()],
            Some(layout) => {
                let parts = layout.parts.iter();
                parts.map(|part| self.at(part.placed())).collect()
            }
        }
    }

    /// The partition that this is a handle of, if the table may have several.
    #[must_use]
    pub fn part(&self) -> Option<&Part> {
        self.layout.as_ref()?.part(self.id)
    }

    /// What of its table the partition owns; `None`: all.
    #[must_use]
    pub fn bounds(&self) -> Option<PartitionBounds> {
        let layout = self.layout.as_ref()?;
        self.part().map(|part| layout.bounds(part))
    }

    /// The partitions of this table, as it is now, that have what `before` had when it was looked up,
    /// each restricted to that.
    #[must_use]
    pub fn pieces_of(&self, before: &Self) -> Vec<Self> {
        let (Some(layout), Some(wanted)) = (&self.layout, before.part()) else {
            return self.partitions();
        };
        let piece = |(at, part): (usize, &Part)| {
            let extent = part.extent.common(&wanted.extent)?;
            let mut layout = Layout::clone(layout);
            layout.parts[at].extent = extent;
            Some(Self {
                layout: Some(Arc::new(layout)),
                ..self.at(part.placed())
            })
        };
        layout.parts.iter().enumerate().filter_map(piece).collect()
    }

    fn at(&self, placed: Placed) -> Self {
        Self {
            id: placed.unit,
            partition: placed.partition,
            shard: placed.shard,
            ..self.clone()
        }
    }
}

/// A table to be made. `schema.table` is replaced by a fresh id.
#[derive(Clone, Debug)]
pub struct NewTable {
    /// Schema name; must exist.
    pub schema_name: String,
    /// Table name.
    pub name: String,
    /// Columns, key, mode.
    pub schema: TableSchema,
    /// Its partitions; `None`: one, which owns everything.
    pub partitions: Option<NewPartitions>,
}

/// The partitions that a table is made with.
#[derive(Clone, Debug)]
pub struct NewPartitions {
    /// How rows find theirs. The key columns must include the columns of an upsert table's: else
    /// rows of one key could be in two partitions.
    pub by: PartitionBy,
    /// At least one.
    pub partitions: Vec<NewPartition>,
}

/// The position a statement read a table at, for conflict detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAt {
    /// The shard.
    pub shard: ShardId,
    /// The view's position.
    pub position: Offset,
}

/// How rows are written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The client's id: a retry with it is never applied twice.
    pub write_id: Option<WriteId>,
    /// Part of a resumable import.
    pub import: Option<ImportChunk>,
    /// UPDATE/DELETE: fail with [`WriteError::Conflict`] if the table changed since.
    pub read_at: Option<ReadAt>,
    /// All rows in one record or none.
    pub atomic: bool,
    /// The rows of each shard in one record or none of them: with an id, a retry may bring other
    /// rows, and what was done of several records could not be told.
    pub record_a_shard: bool,
    /// Longest wait for the verdict; default `write_timeout_ms`.
    pub timeout: Option<Duration>,
}

/// One shard's share of a commit: what a reader must have passed to see the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CommitToken {
    /// The shard.
    pub shard: ShardId,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The record's offset.
    pub offset: Offset,
}

/// As clients hold it: `shard.term.claim.offset`.
impl std::fmt::Display for CommitToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Epoch { term, claim } = self.epoch;
        write!(f, "{}.{term}.{claim}.{}", self.shard, self.offset)
    }
}

impl std::str::FromStr for CommitToken {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(());
        let shard = next()?.parse().map_err(|_| ())?;
        let mut number = || next()?.parse().map_err(|_| ());
        let (term, claim, offset) = (number()?, number()?, number()?);
        // No record stands there: nothing could come after it.
        if offset == u64::MAX {
            return Err(());
        }
        match parts.next() {
            None => Ok(Self {
                shard,
                epoch: Epoch { term, claim },
                offset: Offset(offset),
            }),
            Some(_) => Err(()),
        }
    }
}

/// An acknowledged write.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// One a shard written to.
    pub tokens: Vec<CommitToken>,
    /// Rows sent.
    pub rows: u64,
    /// Whether the write id (or import chunk) had been applied before on every shard.
    pub duplicate: bool,
}

impl CommitToken {
    /// Adds it to others; of several of one shard the last counts.
    pub fn add_to(self, tokens: &mut Vec<Self>) {
        match tokens.iter_mut().find(|known| known.shard == self.shard) {
            Some(known) if known.offset < self.offset => *known = self,
            Some(_) => {}
            None => tokens.push(self),
        }
    }
}

/// What this process is to be for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// Takes writes.
    Leader,
    /// Follows the log and answers reads.
    Follower,
    /// Has nothing to do with it.
    None,
}

/// Whether a shard is served.
pub(crate) enum Served {
    Open(Arc<Shard>),
    /// It is not to have a replica, or is about to be opened.
    NotPlaced,
    Unavailable {
        why: String,
        /// Opening it again may help by itself (the store did not answer, another leader raced).
        try_again: bool,
    },
}

impl Served {
    /// What opening came to.
    pub(crate) fn of(id: ShardId, opened: Result<Arc<Shard>, EngineError>) -> Self {
        match opened {
            Ok(shard) => Self::Open(shard),
            Err(error) => {
                let missing = matches!(&error, EngineError::Sst(SstError::NotFound { .. }));
                let try_again = error.retry() == Retry::Safe && !missing;
                let why = match &error {
                    EngineError::ShardUnavailable { why, .. } => why.clone(),
                    other => other.to_string(),
                };
                tracing::error!(shard = %id, why, "shard cannot be opened; the others are served");
                Self::Unavailable { why, try_again }
            }
        }
    }
}

/// Background work of one shard.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub flushing: bool,
    pub compacting: bool,
    pub opening: bool,
    pub telling: bool,
    /// Nothing is tried before this time.
    pub not_before_ms: u64,
    /// Failures in a row.
    pub failures: u32,
    /// When a flush was last begun only to free the log.
    pub log_flush_ms: u64,
}

/// What the database and its background tasks share.
pub(crate) struct Shared {
    pub env: Arc<Env>,
    pub slots: Slots,
    pub stop: CancellationToken,
    pub holds: Arc<holds::Holds>,
    pub routers: partitions::Routers,
}

/// All shards of this process and the catalog.
pub struct Database {
    shared: Arc<Shared>,
    background: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("cluster", &self.shared.env.config.cluster_name)
            .field("shards", &self.shared.slots.len())
            .finish_non_exhaustive()
    }
}

impl Slot {
    /// The open shard, or why there is none.
    pub(crate) fn shard(&self) -> Result<Arc<Shard>, EngineError> {
        match &*self.served.read() {
            Served::Open(shard) if shard.stopped().is_none() => Ok(Arc::clone(shard)),
            Served::Open(shard) => Err(shard.unavailable()),
            Served::NotPlaced => Err(not_placed(self.id)),
            Served::Unavailable { why, .. } => Err(EngineError::ShardUnavailable {
                shard: self.id,
                why: why.clone(),
            }),
        }
    }

    /// Why this process, which is to lead the shard, cannot open it, unless that may pass.
    pub(crate) fn cannot_lead(&self) -> Option<String> {
        let leads = *self.wanted.lock() == Role::Leader;
        match &*self.served.read() {
            Served::Unavailable {
                why,
                try_again: false,
            } if leads => Some(why.clone()),
            _ => None,
        }
    }
}

impl Shared {
    pub(crate) fn shard(&self, id: ShardId) -> Result<Arc<Shard>, EngineError> {
        match self.slots.get(id) {
            Some(slot) => slot.shard(),
            None => Err(not_placed(id)),
        }
    }

    /// All shards that this process leads.
    pub(crate) fn led_shards(&self) -> Vec<Arc<Shard>> {
        let mut shards = self.open_shards();
        shards.retain(|shard| shard.leads());
        shards
    }

    /// All shards being served.
    pub(crate) fn open_shards(&self) -> Vec<Arc<Shard>> {
        let slots = self.slots.all();
        slots.iter().filter_map(|s| s.shard().ok()).collect()
    }
}

fn not_placed(shard: ShardId) -> EngineError {
    EngineError::ShardUnavailable {
        shard,
        why: "it is not placed on this node".into(),
    }
}

/// An unavailable shard, said by a write.
pub(crate) fn as_write_error(error: EngineError) -> WriteError {
    match error {
        EngineError::Write(e) => e,
        EngineError::ShardUnavailable { shard, why } => WriteError::ShardUnavailable { shard, why },
        other => WriteError::Invalid(other.to_string()),
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Tasks that hold the shards end with this; then the logs, meta and the folder's lock go.
        self.shared.stop.cancel();
        for shard in self.shared.open_shards() {
            shard.stop(crate::shard::Stopped::Closed);
        }
    }
}
