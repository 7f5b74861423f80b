//! Words that every ShoalDB crate shares: identifiers, log numbers, column types and table
//! schemas, and what a caller may do after an error. Depends on nothing else of ours.

mod clock;
mod column;
mod ids;
mod numbers;
mod partition;
mod retry;
mod schema;

pub use clock::{Clock, SystemClock, TimestampMs};
pub use column::{ColumnType, ColumnTypeError, TimePrecision};
pub use ids::{LogId, NodeId, PartitionId, ProcedureId, ShardId, TableId, WriteId, WriterId};
pub use numbers::{ColumnId, Epoch, Incarnation, ManifestVersion, Offset, RowVersion, Seq};
pub use partition::{
    CutPoint, Extent, KeyRange, PartitionBounds, PartitionBy, PartitionMethod, SLOTS, SlotRange,
    Within,
};
pub use retry::Retry;
pub use schema::{
    COLUMNS_MAX, Column, ColumnDefault, NAME_BYTES_MAX, SchemaError, TableMode, TableOrigin,
    TableSchema,
};
