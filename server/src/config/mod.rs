//! Configuration: flags > environment > TOML file > defaults, all from one table of keys.
//!
//! A key `http.addr` is the flag `--http-addr`, the variable `SHOAL_HTTP_ADDR` and `addr` in the
//! file's `[http]` section. The table below is the one source of the defaults, the ranges, the
//! help texts and what `shoal config --defaults` prints.

mod load;
mod print;
mod value;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use load::{ConfigArgs, ConfigError, Layers};
pub use print::defaults_toml;
pub use value::{ByteSize, ListenAddr, LogFormat, Secret, Setting};

/// One key of the configuration.
pub struct Key {
    /// Dotted name, as in the file.
    pub name: &'static str,
    /// Unit of the value, or what kind of text it is.
    pub unit: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Reads the text into the configuration; the error says what is allowed.
    pub(crate) set: fn(&mut Config, &str) -> Result<(), String>,
    /// The value as a TOML literal.
    pub(crate) get: fn(&Config) -> String,
    /// Whether the value must not be shown.
    pub(crate) secret: bool,
}

impl Key {
    /// `--http-addr` without the dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }

    /// `SHOAL_HTTP_ADDR`
    #[must_use]
    pub fn variable(&self) -> String {
        format!("SHOAL_{}", self.name.replace('.', "_").to_uppercase())
    }
}

macro_rules! keys {
    ($( $name:literal $field:ident : $kind:ty = $default:expr, $range:expr, $unit:literal, $meaning:literal; )*) => {
        /// All settings of a process.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $( #[doc = $meaning] #[doc = concat!("Unit: ", $unit, ".")] pub $field: $kind, )*
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        /// Every key, in the order in which it is printed.
        pub static KEYS: &[Key] = &[
            $( Key {
                name: $name,
                unit: $unit,
                meaning: $meaning,
                set: |config, text| {
                    const RANGE: Option<RangeInclusive<u64>> = $range;
                    config.$field = <$kind as Setting>::parse(text, RANGE.as_ref())?;
                    Ok(())
                },
                get: |config| Setting::toml(&config.$field),
                secret: is_secret($name),
            }, )*
        ];
    };
}

const fn is_secret(name: &str) -> bool {
    let (name, secret) = (name.as_bytes(), "auth.token".as_bytes());
    if name.len() != secret.len() {
        return false;
    }
    let mut i = 0;
    while i < name.len() {
        if name[i] != secret[i] {
            return false;
        }
        i += 1;
    }
    true
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

keys! {
    "data_dir" data_dir: PathBuf = PathBuf::from("./shoal-data"), None, "path",
        "Folder of the log, the files, the catalog and query spill. Made if absent; one process at a time.";
    "insecure" insecure: bool = false, None, "true or false",
        "Listen on an address that is not loopback although no token is set. Whoever reaches it may read and write everything.";
    "cluster.name" cluster_name: String = "default".into(), None, "text",
        "Name in every object path and in every log. Fixed once the data folder exists.";

    "http.addr" http_addr: ListenAddr = ListenAddr(Some(SocketAddr::from(([127, 0, 0, 1], 7420)))), None, "host:port or \"off\"",
        "Where HTTP is served. Port 0 picks a free one. A host name is resolved once, at start.";
    "http.connections_max" http_connections_max: u64 = 1024, Some(1..=1_000_000), "connections",
        "HTTP connections at a time. Beyond it the oldest that has sent no request yet is closed in favour of a new one; where all have, more wait in the listen queue.";
    "http.body_bytes_max" http_body_bytes_max: ByteSize = ByteSize(64 * MIB), Some(KIB..=GIB), "bytes",
        "Largest request body as sent; a larger one is refused (413).";
    "http.decompressed_bytes_max" http_decompressed_bytes_max: ByteSize = ByteSize(128 * MIB), Some(KIB..=4 * GIB), "bytes",
        "Largest request body after gzip decoding; a larger one is refused (413).";
    "http.ingest_bytes_max" http_ingest_bytes_max: ByteSize = ByteSize(256 * MIB), Some(MIB..=64 * GIB), "bytes",
        "Bodies of writes held in memory at a time, all requests together; beyond it writes are pushed back (429).";
    "http.parse_tasks_max" http_parse_tasks_max: u64 = 0, Some(0..=1024), "tasks",
        "Write bodies parsed at a time. 0: one a core.";
    "http.stop_timeout_ms" http_stop_timeout_ms: u64 = 10_000, Some(0..=600_000), "ms",
        "How long requests under way may take to finish when the process is asked to stop.";

    "postgres.addr" postgres_addr: ListenAddr = ListenAddr(Some(SocketAddr::from(([127, 0, 0, 1], 7432)))), None, "host:port or \"off\"",
        "Where the PostgreSQL protocol is served. Port 0 picks a free one.";
    "postgres.connections_max" postgres_connections_max: u64 = 256, Some(1..=100_000), "connections",
        "PostgreSQL connections at a time; more are refused with SQLSTATE 53300.";
    "postgres.startup_connections_max" postgres_startup_connections_max: u64 = 128, Some(1..=100_000), "connections",
        "PostgreSQL connections at a time that have not sent their startup message and password yet, besides the others. Beyond it the oldest that has sent nothing is closed in favour of a new one.";

    "auth.token" auth_token: Secret = Secret(String::new()), None, "text",
        "The token that every client must show. Empty: none is asked for. Prefer auth.token_file or SHOAL_AUTH_TOKEN: flags are visible to other users of the machine.";
    "auth.token_file" auth_token_file: PathBuf = PathBuf::new(), None, "path",
        "File that holds the token (leading and trailing white space is cut). Empty: auth.token counts.";

    "log.level" log_level: String = "info".into(), None, "error|warn|info|debug|trace, or directives as in `info,shoal_engine=debug`",
        "What the process says on standard error.";
    "log.format" log_format: LogFormat = LogFormat::Text, None, "text or json",
        "Form of what it says.";

    "engine.shards" engine_shards: u64 = 0, Some(0..=1024), "shards",
        "Shards made when the data folder is new; later values change nothing. 0: one a core.";
    "engine.memtable_bytes_max" engine_memtable_bytes_max: ByteSize = ByteSize(512 * MIB), Some(4 * MIB..=TIB), "bytes",
        "Memory for rows not yet flushed, all shards together. Beyond it the largest table is flushed; far beyond it writes are pushed back.";
    "engine.flush_age_max_s" engine_flush_age_max_s: u64 = 3600, Some(1..=31_536_000), "s",
        "Rows in memory for longer than this are flushed, however few.";

    "wal.shard_bytes_max" wal_shard_bytes_max: ByteSize = ByteSize(512 * MIB), Some(MIB..=TIB), "bytes",
        "Log kept per shard before it is flushed through. It bounds replay after a crash.";
    "wal.record_bytes_max" wal_record_bytes_max: ByteSize = ByteSize(8 * MIB), Some(64 * KIB..=64 * MIB), "bytes",
        "Largest record. Rows of one request for one shard beyond this become several records, each atomic, in order.";
    "wal.record_rows_max" wal_record_rows_max: u64 = 65_536, Some(1..=65_536), "rows",
        "Most rows of one record.";
    "wal.inflight_bytes_max" wal_inflight_bytes_max: ByteSize = ByteSize(64 * MIB), Some(MIB..=16 * GIB), "bytes",
        "Bytes handed to the log and not yet applied, per shard; beyond it writes are pushed back (429).";
    "wal.write_timeout_ms" wal_write_timeout_ms: u64 = 30_000, Some(10..=3_600_000), "ms",
        "How long a write waits for its verdict before its outcome is reported as unknown.";

    "compaction.window_s" compaction_window_s: u64 = 86_400, Some(60..=315_360_000), "s",
        "Width of the time windows within which files are merged.";
    "compaction.runs_min" compaction_runs_min: u64 = 4, Some(2..=64), "files",
        "Files of one window that start a compaction. More: less writing, slower reads.";
    "compaction.tasks_max" compaction_tasks_max: u64 = 1, Some(0..=64), "tasks",
        "Compactions at a time. 0: none but those asked for.";
    "compaction.bytes_per_s" compaction_bytes_per_s: ByteSize = ByteSize(0), Some(0..=TIB), "bytes a second",
        "Compaction's share of the disk. 0: no limit.";
    "compaction.zstd_level" compaction_zstd_level: u64 = 3, Some(1..=19), "level",
        "zstd level of compacted files.";

    "gc.retention_s" gc_retention_s: u64 = 600, Some(1..=31_536_000), "s",
        "How long superseded manifests and the files only they name are kept. Longer than any statement may run.";
    "gc.interval_s" gc_interval_s: u64 = 60, Some(0..=86_400), "s",
        "How often garbage is collected. 0: only on command.";

    "cache.memory_bytes" cache_memory_bytes: ByteSize = ByteSize(256 * MIB), Some(0..=TIB), "bytes",
        "Memory cache of file contents.";
    "cache.metadata_bytes" cache_metadata_bytes: ByteSize = ByteSize(64 * MIB), Some(MIB..=TIB), "bytes",
        "Memory cache of file footers and page indexes.";

    "query.memory_bytes_max" query_memory_bytes_max: ByteSize = ByteSize(512 * MIB), Some(16 * MIB..=TIB), "bytes",
        "Memory of all running statements together; sorts, joins and groupings beyond it spill to disk.";
    "query.spill_dir" query_spill_dir: PathBuf = PathBuf::new(), None, "path",
        "Folder for spilled data. Empty: `spill` in the data folder.";
    "query.spill_bytes_max" query_spill_bytes_max: ByteSize = ByteSize(16 * GIB), Some(MIB..=1024 * TIB), "bytes",
        "Disk space of all spilled data together; a statement beyond it fails.";
    "query.target_partitions" query_target_partitions: u64 = 0, Some(0..=1024), "tasks",
        "Parallel tasks of a large statement. 0: one a core.";
    "query.statement_timeout_ms" query_statement_timeout_ms: u64 = 300_000, Some(1..=86_400_000), "ms",
        "Longest run of a statement; a client may ask for less. Shorter than gc.retention_s.";
    "query.concurrent_statements_max" query_concurrent_statements_max: u64 = 64, Some(1..=100_000), "statements",
        "Statements that run at a time; more wait their turn.";
    "query.copy_files" query_copy_files: bool = false, None, "true or false",
        "Whether COPY may read and write files of the server's machine. Only where every client may be trusted with them.";
}

impl Config {
    /// Checks what no single key shows.
    ///
    /// # Errors
    /// [`ConfigError::Together`] naming the keys.
    pub fn check(&self) -> Result<(), ConfigError> {
        let together = |what: &str| Err(ConfigError::Together(what.to_owned()));
        if self.query_statement_timeout_ms >= self.gc_retention_s.saturating_mul(1000) {
            return together(
                "query.statement_timeout_ms must be shorter than gc.retention_s: a statement could outlive the files it reads",
            );
        }
        if self.wal_record_bytes_max > self.wal_inflight_bytes_max {
            return together("wal.record_bytes_max must not exceed wal.inflight_bytes_max");
        }
        // Both forms of a body are held while it is decoded: a body that can never be held would be
        // pushed back for ever.
        if self.http_body_bytes_max.0 + self.http_decompressed_bytes_max.0
            > self.http_ingest_bytes_max.0
        {
            return together(
                "http.body_bytes_max and http.decompressed_bytes_max together must not exceed http.ingest_bytes_max",
            );
        }
        if !self.auth_token.0.is_empty() && !self.auth_token_file.as_os_str().is_empty() {
            return together("auth.token and auth.token_file are both set; set one");
        }
        if self.cluster_name.is_empty()
            || self.cluster_name.len() > 64
            || !self
                .cluster_name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            return together(
                "cluster.name must be 1 to 64 letters, digits, '-' or '_': it is part of object paths",
            );
        }
        Ok(())
    }

    /// Where spilled data goes.
    #[must_use]
    pub fn spill_dir(&self) -> PathBuf {
        if self.query_spill_dir.as_os_str().is_empty() {
            self.data_dir.join("spill")
        } else {
            self.query_spill_dir.clone()
        }
    }

    /// The query layer's part.
    #[must_use]
    pub fn query(&self) -> shoal_query::QueryConfig {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        shoal_query::QueryConfig {
            memory_bytes_max: self.query_memory_bytes_max.usize(),
            spill_dir: self.spill_dir(),
            spill_bytes_max: self.query_spill_bytes_max.0,
            target_partitions: count(self.query_target_partitions),
            statement_timeout_ms: self.query_statement_timeout_ms,
            concurrent_statements_max: count(self.query_concurrent_statements_max),
            copy_files: self.query_copy_files,
        }
    }

    /// The engine's part.
    #[must_use]
    pub fn engine(&self) -> shoal_engine::EngineConfig {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        #[allow(clippy::needless_update)]
        shoal_engine::EngineConfig {
            cluster_name: self.cluster_name.clone(),
            shards: count(self.engine_shards),
            memtable_bytes_max: self.engine_memtable_bytes_max.usize(),
            log_bytes_max: self.wal_shard_bytes_max.0,
            flush_age_max_s: self.engine_flush_age_max_s,
            record_bytes_max: self.wal_record_bytes_max.usize(),
            record_rows_max: count(self.wal_record_rows_max),
            inflight_bytes_max: self.wal_inflight_bytes_max.usize(),
            write_timeout_ms: self.wal_write_timeout_ms,
            compaction_window_s: self.compaction_window_s,
            compaction_runs_min: count(self.compaction_runs_min),
            compaction_tasks_max: count(self.compaction_tasks_max),
            compaction_bytes_per_s: self.compaction_bytes_per_s.0,
            compaction_zstd_level: i32::try_from(self.compaction_zstd_level).unwrap_or(3),
            retention_s: self.gc_retention_s,
            gc_interval_s: self.gc_interval_s,
            cache_memory_bytes: self.cache_memory_bytes.usize(),
            cache_metadata_bytes: self.cache_metadata_bytes.usize(),
            ..Default::default()
        }
    }
}
