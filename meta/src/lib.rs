//! Names, placement and terms: the catalog, the topology and the cluster's identity behind a small
//! transactional key-value trait.

mod catalog;
mod embedded;
mod etcd;
mod feed;
mod identity;
mod memory;
mod record_limits;
mod store;
mod topology;

pub use catalog::{
    Birth, BirthStage, CATALOG_FORMAT, Catalog, Layout, LooseUnit, NamedTable, PARTITIONS_MAX,
    Part, PartOrigin, Placed, SchemaEntry, ShardEntry, TableEntry,
};
pub use embedded::{EmbeddedMetaStore, META_FILE_FORMAT};
pub use etcd::{EtcdConfig, EtcdMetaStore, EtcdTls};
pub use identity::{ClusterIdentity, Configured, join_cluster, read_cluster};
pub use memory::{MemoryBackup, MemoryMetaStore};
pub use record_limits::{RecordLimits, settle_record_limits};
pub use store::{
    Change, Compare, Entry, Limits, Listing, Lost, MetaError, MetaStore, Op, Registration, Txn,
    Watch, WatchEvent,
};
pub use topology::{
    AssignError, Assignment, Assignments, Fence, Formats, Holding, LabelChanges, NodeEntry,
    NodeRegistration, Registered, SchedulerEntry, Snapshot, Topology, check as check_assignment,
    scheduler_prefix,
};
