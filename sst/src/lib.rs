//! SSTs: immutable sorted Parquet files, the object layout, and the two-level cache they are read
//! through (DESIGN §2, §5; PROTOCOLS §2).

mod cache;
mod describe;
mod disk_cache;
mod encoding;
mod error;
mod file;
mod footer;
mod layout;
mod metadata;
mod reader;
mod scan;
mod series_index;
mod series_key;
mod sink;
mod stats;
mod store;
mod warm;
mod writer;

pub use describe::{ColumnDescription, SstDescription, describe};
pub use disk_cache::DiskCacheOptions;
pub use encoding::times_of;
pub use error::SstError;
pub use file::{HIDDEN_OP, HIDDEN_SET, SstFile};
pub use footer::{CHECKSUM_BLOCK_BYTES, FOOTER_KEY, SST_FORMAT, Section, SstFooter};
pub use layout::{ObjectLayout, SstName};
pub use metadata::SstMetadata;
pub use reader::SstReader;
pub use scan::{ScanOptions, SstStream, from_parquet};
pub use series_index::SeriesIndex;
pub use series_key::SeriesEncoder;
pub use stats::{Counter, LevelStats, ReadCounters, SstStats};
pub use store::{SstStore, SstStoreOptions};
pub use writer::{SstWriteOptions, SstWriter, run_schema};

#[cfg(test)]
mod tests;
