//! The other nodes of a cluster, as the engine sees them.
//!
//! A statement may name tables of shards that this process does not lead or has no replica of. Then
//! four things cross to another node, and nothing else: records for a leader, schema changes for a
//! leader, a table's schema, and a replica's view of a table (its files are in the common store, so
//! only the rows not yet in files travel). With them every statement runs on every node, through
//! the same code as on one.
//!
//! Who leads what is the implementation's to know; it finds the node, asks, and asks the next one
//! when it was told wrong, within the time it is given.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_types::{Epoch, NodeId, Offset, ShardId, TableId, TableSchema, WriteId};
use shoal_wal::record::{ImportChunk, SchemaChange, TableWrite};

use crate::remote_view::EncodedView;
use crate::{EngineError, ReadLevel, ShardStatus, SplitOrder, UnitChange, WriteError};

/// Which replica answers a read (DESIGN §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadPlace {
    /// This node's, else one of the same zone, then any.
    #[default]
    Nearest,
    /// The leader's.
    Leader,
    /// A follower's.
    Follower,
    /// Whichever.
    Any,
}

/// A request's records for one shard, cut and encoded.
#[derive(Clone, Debug)]
pub struct ShardWrite {
    /// The client's id.
    pub write_id: Option<WriteId>,
    /// Part of a resumable import.
    pub import: Option<ImportChunk>,
    /// Position that an UPDATE or DELETE read at.
    pub read_at: Option<Offset>,
    /// Fingerprints of what each unit owned when the rows were routed.
    pub owns: Vec<(TableId, u64)>,
    /// The records, in order.
    pub parts: Vec<RecordPart>,
}

/// Rows of one record.
#[derive(Clone, Debug)]
pub struct RecordPart {
    /// Number of the request's part that they are of: a part has the same rows in every try,
    /// whatever shards they are on by then.
    pub number: u32,
    /// Whether it is the request's last part.
    pub last: bool,
    /// Its tables.
    pub tables: Vec<TableWrite>,
    /// `encode_blocks` of its rows.
    pub body: Bytes,
}

/// A shard's share of an acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCommit {
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// Offset of its last record.
    pub offset: Offset,
    /// Whether all of it had been applied before.
    pub duplicate: bool,
}

/// Other nodes. Every call ends within the time it is given, with an error that says what the
/// caller may do.
#[async_trait]
pub trait Peers: Send + Sync + std::fmt::Debug + 'static {
    /// This node.
    fn me(&self) -> NodeId;

    /// Whether a node that is heard of leads a shard.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`]: why not, and the remedy.
    fn is_led(&self, shard: ShardId) -> Result<(), EngineError>;

    /// The node that leads a shard, as far as meta says.
    fn leader_of(&self, shard: ShardId) -> Option<NodeId>;

    /// The shards with the least load, where it is measured; empty: nothing is known.
    fn idle_shards(&self) -> Vec<ShardId>;

    /// Whether meta gives this process a replica of the shard that fits the place, although it may
    /// not be open yet.
    fn may_answer(&self, shard: ShardId, place: ReadPlace) -> bool;

    /// Raises the term of a shard above `above`, if meta says that this node is to lead it.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`]: another node is to lead. Meta's.
    async fn raise_term(&self, shard: ShardId, above: u64) -> Result<u64, EngineError>;

    /// Writes records through the shard's leader.
    ///
    /// # Errors
    /// [`WriteError`], as if it had been written here.
    async fn write(
        &self,
        shard: ShardId,
        write: ShardWrite,
        patience: Duration,
    ) -> Result<ShardCommit, WriteError>;

    /// Changes schemas through the shard's leader: one record.
    ///
    /// # Errors
    /// As [`Self::write`].
    async fn change_schemas(
        &self,
        shard: ShardId,
        changes: Vec<SchemaChange>,
        patience: Duration,
    ) -> Result<(), WriteError>;

    /// A table's schema as of now, by the shard's leader; `None`: it has no such table.
    ///
    /// # Errors
    /// [`WriteError::NotLeader`]: this process is to lead it. [`EngineError::ShardUnavailable`].
    async fn table_schema(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Option<Arc<TableSchema>>, EngineError>;

    /// Predicates of deletes of a table that are held against rows when these are read, by the
    /// shard's leader.
    ///
    /// # Errors
    /// As [`Self::table_schema`].
    async fn pending_deletes(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Vec<String>, EngineError>;

    /// Has the shard's leader write a table's files anew without the rows that deletes by predicate
    /// hide.
    ///
    /// # Errors
    /// As [`Self::table_schema`].
    async fn apply_deletes(&self, shard: ShardId, table: TableId) -> Result<(), EngineError>;

    /// Has the shard's leader cut or join units.
    ///
    /// # Errors
    /// As [`Self::table_schema`]; [`EngineError::Invalid`].
    async fn change_unit(&self, shard: ShardId, change: UnitChange) -> Result<(), EngineError>;

    /// Has the nodes that serve `parent` serve a shard that was split off from it, the same one
    /// leading. Nothing, if nodes are to serve it already.
    ///
    /// # Errors
    /// Meta's.
    async fn place_child(&self, parent: ShardId, child: ShardId) -> Result<(), EngineError>;

    /// Has the shard's leader give units to a new shard, which is returned once that is decided.
    ///
    /// # Errors
    /// As [`Self::table_schema`]; [`EngineError::Invalid`].
    async fn split_shard(&self, shard: ShardId, order: SplitOrder) -> Result<ShardId, EngineError>;

    /// Whether a write with this id was applied to a table, by the shard's leader.
    ///
    /// # Errors
    /// As [`Self::table_schema`].
    async fn was_applied(
        &self,
        shard: ShardId,
        table: TableId,
        id: WriteId,
    ) -> Result<bool, EngineError>;

    /// A replica's views of some tables, in their order, all at one position.
    ///
    /// # Errors
    /// As `Database::read_view_at`; [`EngineError::NotFound`] names the id of one that is not there.
    async fn read_views(
        &self,
        shard: ShardId,
        tables: &[TableId],
        read: &Read,
    ) -> Result<Vec<EncodedView>, EngineError>;

    /// The other nodes that are heard of, with what each tells of its replicas; `None`: it did not
    /// answer in time.
    async fn statuses(&self) -> Vec<(NodeId, Option<Vec<ShardStatus>>)>;

    /// Progress of an import on a shard, by its leader.
    ///
    /// # Errors
    /// As [`Self::table_schema`].
    async fn import_progress(
        &self,
        shard: ShardId,
        import: u128,
    ) -> Result<Option<u64>, EngineError>;
}

/// How a read is to be answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// How fresh.
    pub level: ReadLevel,
    /// By which replica.
    pub place: ReadPlace,
    /// The longest wait for that freshness; `None`: `write_timeout_ms`.
    pub patience: Option<Duration>,
}
