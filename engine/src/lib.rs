//! The shard engine: replicas over a log, manifests and SSTs (DESIGN §1, §2; PROTOCOLS §1 to §3).
//!
//! [`Database`] is what servers and the query layer use: catalog, writes, read views and
//! maintenance of all shards of the process. A row reaches memory only through the fold of its
//! shard's log; a file becomes visible only through a manifest named by an applied record.

mod background;
mod checksum;
pub mod compaction;
mod config;
mod database;
mod durable_store;
mod embedded;
mod env;
mod error;
mod folder_lock;
pub mod inspect;
pub mod manifest;
pub mod memtable;
pub mod merge;
mod owned;
mod peers;
mod read_view;
mod remote_store;
mod remote_view;
mod served_by;
mod shard;
mod status;
mod traffic;

pub use checksum::{ShardChecksum, TableChecksum};
pub use config::EngineConfig;
pub use database::{
    Backends, Commit, CommitToken, Database, Hold, NewPartition, NewPartitions, NewTable, ReadAt,
    Repaired, Role, SplitOff, SplitOrder, TableHandle, UnitChange, WriteOptions,
};
pub use durable_store::DurableLocalStore;
pub use error::{EngineError, WriteError};
pub use folder_lock::FolderLock;
pub use manifest::{Loss, LossKind};
pub use owned::{OwnedRows, owns_all};
pub use peers::{Peers, Read, ReadPlace, RecordPart, ShardCommit, ShardWrite};
pub use read_view::{PredicateDelete, ReadLevel, ReadView, RowPredicate};
pub use remote_store::{RemoteStore, S3Config};
pub use remote_view::{EncodedView, ViewHead};
pub use served_by::ServedBy;
pub use shard::adopt::LogFound;
pub use shard::compact::Compacted;
pub use shard::flush::Flushed;
pub use shard::gc::GcReport;
pub use shard::halt::{Halt, HaltKind};
pub use shard::promote::Promoted;
pub use shard::skip::GiveUp;
pub use status::{EngineMetrics, ShardStatus, TableStatus};
pub use traffic::{KindTraffic, ObjectTraffic, RequestKind};
