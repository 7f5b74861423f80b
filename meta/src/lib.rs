//! Names, placement and terms: the catalog behind a small transactional key-value trait.

mod catalog;
mod embedded;
mod memory;
mod store;

pub use catalog::{CATALOG_FORMAT, Catalog, NamedTable, SchemaEntry, ShardEntry, TableEntry};
pub use embedded::{EmbeddedMetaStore, META_FILE_FORMAT};
pub use memory::MemoryMetaStore;
pub use store::{Compare, MetaError, MetaStore, Op, TXN_OPS_MAX, Txn};
