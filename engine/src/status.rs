//! What the engine tells about itself: for operators, `system.*` tables and metrics.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use shoal_types::{Epoch, Offset, ShardId};
use shoal_wal::fold::Origin;

use crate::manifest::Loss;
use crate::shard::halt::Halt;

/// One shard, as one process has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub id: ShardId,
    /// Whether the process is to have a replica of it.
    #[serde(default)]
    pub placed: bool,
    /// This process's part in it: `leader`, `follower`, or `none` while it is not served.
    pub role: Cow<'static, str>,
    /// `serving`, `claiming`, `degraded` (background work fails, see `why`), `damaged` (it
    /// reads its log no further and shows what it has) or `unavailable`.
    pub state: Cow<'static, str>,
    /// What is wrong, where something is.
    pub why: Option<String>,
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The last offset applied.
    pub position: Offset,
    /// The newest manifest in force.
    pub manifest: u64,
    /// Where a restart would begin to replay.
    pub replay_offset: Offset,
    /// Tables placed here.
    pub tables: u64,
    /// Bytes of rows not yet in files.
    pub memory_bytes: u64,
    /// Bytes of rows applied since it was opened.
    #[serde(default)]
    pub applied_bytes: u64,
    /// Time that reads took since it was opened, together, in microseconds.
    #[serde(default)]
    pub read_us: u64,
    /// Bytes of writes in flight.
    pub in_flight_bytes: u64,
    /// Bytes of the log that a restart would read.
    pub log_bytes: u64,
    /// Files in force.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The split that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_from: Option<Origin>,
    /// Where it stands, if it can read its log no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halt>,
    /// What operators gave up, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableStatus {
    /// Rows in files, before merging versions of a key.
    pub file_rows: u64,
    /// Rows in memory, before merging versions of a key.
    pub memory_rows: u64,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts since the process started, and gauges. Sums over the shards being served.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineMetrics {
    /// Shards served.
    pub shards_serving: u64,
    /// Shards not served.
    pub shards_unavailable: u64,
    /// Tables.
    pub tables: u64,
    /// Rows applied from the log.
    pub rows_applied: u64,
    /// Records applied from the log.
    pub records_applied: u64,
    /// Log bytes skipped because they were no record of ours.
    pub foreign_records: u64,
    /// Claims appended.
    pub claims: u64,
    /// Bytes of rows not yet in files.
    pub memory_bytes: u64,
    /// `memtable_bytes_max`
    pub memory_bytes_max: u64,
    /// Bytes of writes in flight.
    pub in_flight_bytes: u64,
    /// Bytes of log that a restart would read.
    pub log_bytes: u64,
    /// Flushes published.
    pub flushes: u64,
    /// Bytes that flushes wrote.
    pub flushed_bytes: u64,
    /// Compactions published.
    pub compactions: u64,
    /// Bytes that compactions wrote.
    pub compacted_bytes: u64,
    /// Objects that garbage collection deleted.
    pub collected_objects: u64,
    /// Times that partitions were split or merged.
    pub recuts: u64,
    /// Splits of shards that were decided here.
    pub splits: u64,
    /// Files in force.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Shards whose background work fails now.
    pub shards_in_trouble: u64,
}
