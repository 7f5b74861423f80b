//! Limits and budgets of the engine. Every queue, buffer and cache is here by name (DESIGN §8).

use shoal_sst::DiskCacheOptions;

/// Engine settings; `Default` is what `shoal config --defaults` prints.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// `cluster.name`: part of every object path and of every log's genesis record.
    pub cluster_name: String,
    /// Shards made when the data folder is new; 0: one a core.
    pub shards: usize,
    /// Memory for rows not yet flushed, all shards together; the largest memtable flushes first.
    pub memtable_bytes_max: usize,
    /// A shard's log is flushed through when it retains more bytes than this.
    pub log_bytes_max: u64,
    /// A memtable older than this is flushed, in seconds.
    pub flush_age_max_s: u64,
    /// Largest record: rows of one request for one shard beyond this become several records.
    pub record_bytes_max: usize,
    /// Most rows of a record.
    pub record_rows_max: usize,
    /// Bytes of writes handed to the log and not yet applied, a shard; beyond it writes are
    /// pushed back.
    pub inflight_bytes_max: usize,
    /// How long a write waits for its verdict before its outcome is reported unknown, in ms.
    pub write_timeout_ms: u64,
    /// How long records that files have made superfluous stay in a log that other replicas read:
    /// one that is later than this opens anew from files.
    pub trim_delay_ms: u64,
    /// Width of the time windows that files are compacted in, in seconds.
    pub compaction_window_s: u64,
    /// Runs in one window that start a compaction.
    pub compaction_runs_min: usize,
    /// Compactions at a time.
    pub compaction_tasks_max: usize,
    /// Compaction reads and writes at most this many bytes a second; 0: no limit.
    pub compaction_bytes_per_s: u64,
    /// zstd level of compacted files.
    pub compaction_zstd_level: i32,
    /// A manifest version and files named only by it are kept this long after it was superseded,
    /// in seconds. Longer than any statement may run.
    pub retention_s: u64,
    /// How often garbage is looked for, in seconds; 0: only on command.
    pub gc_interval_s: u64,
    /// In-memory cache of file bytes.
    pub cache_memory_bytes: usize,
    /// In-memory cache of Parquet footers and page indexes.
    pub cache_metadata_bytes: usize,
    /// What is fetched and kept at a time; rounded up to whole checksum blocks (16 KiB).
    pub cache_block_bytes: usize,
    /// The cache on a local disk; `None`: the object store is on one itself.
    pub cache_disk: Option<DiskCacheOptions>,
    /// Replicas fetch files onto the cache disk ahead of readers at this rate; 0: they do not.
    pub cache_warm_bytes_per_s: u64,
    /// Schemas kept of tables whose shard has no replica here.
    pub remote_schemas_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            cluster_name: "default".into(),
            shards: 0,
            memtable_bytes_max: 512 << 20,
            log_bytes_max: 512 << 20,
            flush_age_max_s: 3600,
            record_bytes_max: 8 << 20,
            record_rows_max: 65_536,
            inflight_bytes_max: 64 << 20,
            write_timeout_ms: 30_000,
            trim_delay_ms: 5_000,
            compaction_window_s: 86_400,
            compaction_runs_min: 4,
            compaction_tasks_max: 1,
            compaction_bytes_per_s: 0,
            compaction_zstd_level: 3,
            retention_s: 600,
            gc_interval_s: 60,
            cache_memory_bytes: 256 << 20,
            cache_metadata_bytes: 64 << 20,
            cache_block_bytes: 16 << 10,
            cache_disk: None,
            cache_warm_bytes_per_s: 64 << 20,
            remote_schemas_max: 10_000,
        }
    }
}

impl EngineConfig {
    /// Shards to make in a new data folder.
    #[must_use]
    pub fn shards_or_cores(&self) -> usize {
        if self.shards > 0 {
            return self.shards;
        }
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}
