//! Configuration: flags > environment > TOML file > defaults, all from one table of keys.
//!
//! A key `http.addr` is the flag `--http-addr`, the variable `SHOAL_HTTP_ADDR` and `addr` in the
//! file's `[http]` section. The table below is the one source of the defaults, the ranges, the
//! help texts and what `shoal config --defaults` prints.

mod cluster;
mod load;
mod print;
mod value;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use load::{ConfigArgs, ConfigError, Layers};
pub use print::defaults_toml;
pub use value::{Acks, ByteSize, ListenAddr, LogFormat, ObjectsStore, Options, Secret, Setting};

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

/// Keys whose values are never shown.
const SECRETS: [&str; 4] = [
    "auth.token",
    "meta.password",
    "kafka.options",
    "objects.secret_key",
];

const fn is_secret(name: &str) -> bool {
    let mut i = 0;
    while i < SECRETS.len() {
        if same(name.as_bytes(), SECRETS[i].as_bytes()) {
            return true;
        }
        i += 1;
    }
    false
}

/// `==` of slices, which is not const.
const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
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
        "Name in every object path and in every log. Fixed once the data folder exists. Clusters of different names share brokers, bucket and etcd.";
    "cluster.labels" cluster_labels: String = String::new(), None, "name=value,…",
        "Where this node is, for example region=eu,zone=eu-1,rack=r7. Reads prefer replicas of the same zone. Nodes only.";
    "cluster.advertise_host" cluster_advertise_host: String = String::new(), None, "host",
        "Host name or address under which others reach this process. Empty: that of each listener. Nodes and schedulers only.";
    "cluster.registration_ttl_s" cluster_registration_ttl_s: u64 = 5, Some(2..=600), "s",
        "A node that was not heard of for so long is no longer listed. It goes on serving what it serves. Nodes only.";
    "cluster.connect_timeout_ms" cluster_connect_timeout_ms: u64 = 1000, Some(10..=60_000), "ms",
        "How long a connection to another node may take to be made. Nodes only.";
    "cluster.view_bytes_max" cluster_view_bytes_max: ByteSize = ByteSize(256 * MIB), Some(MIB..=64 * GIB), "bytes",
        "Rows not yet in files that are fetched from another node for one table of one statement; a table with more has to be read where it has a replica. Nodes only.";
    "cluster.remote_schemas_max" cluster_remote_schemas_max: u64 = 10_000, Some(16..=10_000_000), "tables",
        "Schemas kept in memory of tables without a replica on this node. Nodes only.";

    "meta.endpoints" meta_endpoints: String = String::new(), None, "URLs, separated by commas",
        "etcd, for example http://10.0.0.1:2379,http://10.0.0.2:2379. Nodes only; a standalone process keeps names in its data folder.";
    "meta.user" meta_user: String = String::new(), None, "text",
        "User that etcd asks for. Empty: none.";
    "meta.password" meta_password: Secret = Secret(String::new()), None, "text",
        "Its password.";
    "meta.ca_file" meta_ca_file: PathBuf = PathBuf::new(), None, "path",
        "Authority that etcd's certificate is checked against, PEM. Empty: the system's.";
    "meta.cert_file" meta_cert_file: PathBuf = PathBuf::new(), None, "path",
        "Certificate shown to etcd, PEM. Empty: none.";
    "meta.key_file" meta_key_file: PathBuf = PathBuf::new(), None, "path",
        "Its key, PEM.";
    "meta.server_name" meta_server_name: String = String::new(), None, "text",
        "Name in etcd's certificate, where it is not the host of the URL.";
    "meta.connect_timeout_ms" meta_connect_timeout_ms: u64 = 2000, Some(10..=60_000), "ms",
        "How long a connection to etcd may take to be made.";
    "meta.request_timeout_ms" meta_request_timeout_ms: u64 = 5000, Some(10..=600_000), "ms",
        "How long a question to etcd may take, tries at all endpoints together.";

    "kafka.brokers" kafka_brokers: String = String::new(), None, "host:port, separated by commas",
        "Some brokers of Kafka or Redpanda; they name the others. Nodes only; a standalone process writes its log in its data folder.";
    "kafka.replication_factor" kafka_replication_factor: u64 = 3, Some(1..=16), "replicas",
        "Replicas of a topic made here, and the least of one that is opened.";
    "kafka.min_insync_replicas" kafka_min_insync_replicas: u64 = 2, Some(1..=16), "replicas",
        "How many of them must have a record before it counts. 1 is for development: a broken broker then loses acknowledged writes.";
    "kafka.acks" kafka_acks: Acks = Acks::All, None, "all or leader",
        "Whose confirmation a write waits for. With all it need not be read back where nothing unknown stands before it in the log; with leader it always is.";
    "kafka.commit_timeout_ms" kafka_commit_timeout_ms: u64 = 10_000, Some(100..=600_000), "ms",
        "After this long without enough confirmations a write fails with the commit-timeout error.";
    "kafka.queue_bytes_max" kafka_queue_bytes_max: ByteSize = ByteSize(64 * MIB), Some(MIB..=2 * GIB), "bytes",
        "Records waiting for their confirmation; beyond it writes are pushed back.";
    "kafka.queue_records_max" kafka_queue_records_max: u64 = 100_000, Some(100..=10_000_000), "records",
        "Records waiting for their confirmation.";
    "kafka.read_ahead_bytes_max" kafka_read_ahead_bytes_max: ByteSize = ByteSize(16 * MIB), Some(MIB..=GIB), "bytes",
        "Read ahead of the application, for each shard.";
    "kafka.options" kafka_options: Options = Options::default(), None, "table",
        "Further settings of the client by librdkafka's names: TLS, SASL. In the file a section [kafka.options]; as flag or variable name=value,name=value.";

    "objects.store" objects_store: ObjectsStore = ObjectsStore::S3, None, "s3",
        "What keeps the files of a cluster. A standalone process keeps them in its data folder.";
    "objects.endpoint" objects_endpoint: String = String::new(), None, "URL",
        "Of the store. Empty: AWS's for the region.";
    "objects.bucket" objects_bucket: String = String::new(), None, "text",
        "Must exist. Nodes only.";
    "objects.region" objects_region: String = String::new(), None, "text",
        "Empty: AWS_REGION, else us-east-1.";
    "objects.prefix" objects_prefix: String = String::new(), None, "text",
        "Before all object names.";
    "objects.access_key" objects_access_key: String = String::new(), None, "text",
        "Empty: AWS_ACCESS_KEY_ID, web identity, or the machine's role.";
    "objects.secret_key" objects_secret_key: Secret = Secret(String::new()), None, "text",
        "Its secret.";
    "objects.allow_http" objects_allow_http: bool = false, None, "true or false",
        "Whether an http:// endpoint is meant: everything is sent unencrypted.";
    "objects.virtual_hosted_style" objects_virtual_hosted_style: bool = false, None, "true or false",
        "bucket.host/object rather than host/bucket/object.";
    "objects.ca_file" objects_ca_file: PathBuf = PathBuf::new(), None, "path",
        "Authority that the store's certificate is checked against besides the system's, PEM.";
    "objects.connect_timeout_ms" objects_connect_timeout_ms: u64 = 5000, Some(10..=60_000), "ms",
        "How long a connection to the store may take to be made.";
    "objects.request_timeout_ms" objects_request_timeout_ms: u64 = 30_000, Some(100..=600_000), "ms",
        "How long one request may take, its body included.";
    "objects.retries_max" objects_retries_max: u64 = 5, Some(0..=100), "retries",
        "How often a failed request is sent again.";
    "objects.retry_timeout_ms" objects_retry_timeout_ms: u64 = 60_000, Some(100..=600_000), "ms",
        "No request is sent again later than this after the first.";

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

    "grpc.addr" grpc_addr: ListenAddr = ListenAddr(Some(SocketAddr::from(([127, 0, 0, 1], 7421)))), None, "host:port",
        "Where other nodes reach this one (Arrow Flight). Port 0 picks a free one. Nodes only.";
    "grpc.requests_max" grpc_requests_max: u64 = 256, Some(4..=100_000), "requests",
        "Requests of other nodes served at a time; more wait. Nodes only.";

    "scheduler.addr" scheduler_addr: ListenAddr = ListenAddr(Some(SocketAddr::from(([127, 0, 0, 1], 7400)))), None, "host:port",
        "Where a scheduler serves HTTP. Port 0 picks a free one. Schedulers only.";
    "scheduler.lease_s" scheduler_lease_s: u64 = 2, Some(2..=60), "s",
        "When the scheduler that leads was not heard of for so long, another one leads. Schedulers only.";
    "scheduler.suspect_after_ms" scheduler_suspect_after_ms: u64 = 600, Some(300..=60_000), "ms",
        "A node that sent no beat for so long (it sends five a second) is suspect and is probed. Schedulers only.";
    "scheduler.probe_timeout_ms" scheduler_probe_timeout_ms: u64 = 300, Some(10..=60_000), "ms",
        "How long a suspect node may take to answer a probe. Schedulers only.";
    "scheduler.probes" scheduler_probes: u64 = 2, Some(1..=100), "probes",
        "A suspect node that answers none of so many probes is down, and its shards get other leaders. Schedulers only.";
    "scheduler.suspect_max_ms" scheduler_suspect_max_ms: u64 = 5_000, Some(500..=600_000), "ms",
        "A node that answers probes and sends no beats for so long is down, too. Schedulers only.";
    "scheduler.round_ms" scheduler_round_ms: u64 = 500, Some(50..=60_000), "ms",
        "Pause between two looks at whether replicas are missing, leaders are elsewhere than wanted, or load is uneven. A lost leader does not wait for it. Schedulers only.";
    "scheduler.procedures_max" scheduler_procedures_max: u64 = 1_000, Some(10..=100_000), "procedures",
        "Procedures that have ended and can be looked at still; the table shoal.procedures has older ones. Schedulers only.";

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
    "wal.trim_delay_ms" wal_trim_delay_ms: u64 = 5_000, Some(0..=3_600_000), "ms",
        "How long a node keeps records of a log that files have made superfluous. A follower that is later than this opens anew from files.";

    "line_protocol.partitions" line_protocol_partitions: u64 = 1, Some(1..=1024), "partitions",
        "Hash partitions of tables that line protocol makes; tables that are there stay as they are. 1: one that owns everything, which may be split.";
    "line_protocol.partition_tags" line_protocol_partition_tags: u64 = 1, Some(0..=1024), "tags",
        "How many of a table's first tags decide a row's partition. 0: all that its first rows have.";

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
    "cache.disk_bytes" cache_disk_bytes: ByteSize = ByteSize(16 * GIB), Some(0..=1024 * TIB), "bytes",
        "A node's cache of file contents on its own disk. 0: none. Not used by `shoal standalone`, whose files are there.";
    "cache.disk_dir" cache_disk_dir: PathBuf = PathBuf::new(), None, "path",
        "Folder of that cache. Empty: `cache` in the data folder.";
    "cache.warm_bytes_per_s" cache_warm_bytes_per_s: ByteSize = ByteSize(64 * MIB), Some(0..=TIB), "bytes a second",
        "A node fetches new files of its replicas onto that disk at this rate before anybody reads them. 0: never.";

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

    /// A node's cache on its own disk.
    #[must_use]
    pub fn cache_disk(&self) -> Option<shoal_sst::DiskCacheOptions> {
        let directory = if self.cache_disk_dir.as_os_str().is_empty() {
            self.data_dir.join("cache")
        } else {
            self.cache_disk_dir.clone()
        };
        (self.cache_disk_bytes.0 > 0).then(|| shoal_sst::DiskCacheOptions {
            directory,
            bytes_max: self.cache_disk_bytes.usize(),
        })
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

    /// How tables that line protocol makes are partitioned.
    #[must_use]
    pub fn line_protocol(&self) -> crate::http::LineProtocolTables {
        crate::http::LineProtocolTables {
            partitions: u32::try_from(self.line_protocol_partitions).unwrap_or(u32::MAX),
            tags: usize::try_from(self.line_protocol_partition_tags).unwrap_or(usize::MAX),
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
            trim_delay_ms: self.wal_trim_delay_ms,
            compaction_window_s: self.compaction_window_s,
            compaction_runs_min: count(self.compaction_runs_min),
            compaction_tasks_max: count(self.compaction_tasks_max),
            compaction_bytes_per_s: self.compaction_bytes_per_s.0,
            compaction_zstd_level: i32::try_from(self.compaction_zstd_level).unwrap_or(3),
            retention_s: self.gc_retention_s,
            gc_interval_s: self.gc_interval_s,
            cache_memory_bytes: self.cache_memory_bytes.usize(),
            cache_metadata_bytes: self.cache_metadata_bytes.usize(),
            cache_warm_bytes_per_s: self.cache_warm_bytes_per_s.0,
            remote_schemas_max: count(self.cluster_remote_schemas_max),
            ..Default::default()
        }
    }
}
