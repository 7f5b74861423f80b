//! Prometheus metrics. Counters of requests are kept here; what engine, query layer and bounds
//! say of themselves is read when `/metrics` is asked for.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde_json::Value;
use shoal_engine::Database;
use shoal_query::QueryEngine;
use shoal_wal::local::{FSYNC_BUCKETS_MS, LocalLogStats};

use crate::config::Config;
use crate::http::body::Intake;

/// Labels of a request; the route is the pattern, so their number is bounded.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RequestLabels {
    route: String,
    method: String,
    status: u16,
}

/// A route.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RouteLabels {
    route: String,
}

/// Where written rows came from.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct IngestLabels {
    format: &'static str,
}

/// The counters that requests move.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    requests_in_flight: Gauge,
    /// Open HTTP connections.
    pub http_connections: Gauge,
    ingest_rows: Family<IngestLabels, Counter>,
    ingest_bytes: Family<IngestLabels, Counter>,
    ingest_rejected: Family<IngestLabels, Counter>,
    pushed_back: Counter,
    failed_writes: Counter<u64, AtomicU64>,
}

/// Counts one request as under way until it is dropped, also when its client goes away.
pub struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("shoal");
        // 0.5 ms to 65 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 18));
        let metrics = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            requests_in_flight: Gauge::default(),
            http_connections: Gauge::default(),
            ingest_rows: Family::default(),
            ingest_bytes: Family::default(),
            ingest_rejected: Family::default(),
            pushed_back: Counter::default(),
            failed_writes: Counter::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register(
            "http_requests",
            "HTTP requests answered",
            metrics.requests.clone(),
        );
        r.register(
            "http_request_seconds",
            "Time until the answer began",
            metrics.request_seconds.clone(),
        );
        r.register(
            "http_requests_in_flight",
            "HTTP requests whose answer has not begun",
            metrics.requests_in_flight.clone(),
        );
        r.register(
            "http_connections",
            "Open HTTP connections (bound: http_connections_max)",
            metrics.http_connections.clone(),
        );
        r.register(
            "ingest_rows",
            "Rows written and acknowledged",
            metrics.ingest_rows.clone(),
        );
        r.register(
            "ingest_bytes",
            "Bytes of request bodies whose rows were acknowledged, decoded",
            metrics.ingest_bytes.clone(),
        );
        r.register(
            "ingest_rejected",
            "Lines or rows refused for their content",
            metrics.ingest_rejected.clone(),
        );
        r.register(
            "ingest_pushed_back",
            "Writes answered with 429",
            metrics.pushed_back.clone(),
        );
        r.register(
            "ingest_failed",
            "Writes that failed for another reason than their content",
            metrics.failed_writes.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }

    /// Adds metrics that are read when asked for.
    pub fn register_collector(
        &mut self,
        collector: Box<dyn prometheus_client::collector::Collector>,
    ) {
        self.registry.register_collector(collector);
    }

    /// A request has begun.
    #[must_use]
    pub fn request_begins(&self) -> UnderWay {
        self.requests_in_flight.inc();
        UnderWay(self.requests_in_flight.clone())
    }

    /// A request's answer has begun.
    pub fn request_ends(&self, route: &str, method: &Method, status: StatusCode, took: Duration) {
        // A client may make up methods; labels must stay few.
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
            _ => "other",
        };
        self.requests
            .get_or_create(&RequestLabels {
                route: route.to_owned(),
                method: method.to_owned(),
                status: status.as_u16(),
            })
            .inc();
        self.request_seconds
            .get_or_create(&RouteLabels {
                route: route.to_owned(),
            })
            .observe(took.as_secs_f64());
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.pushed_back.inc();
        }
    }

    /// Rows of one request were acknowledged.
    pub fn rows_written(&self, format: &'static str, rows: u64, bytes: u64, rejected: u64) {
        let labels = IngestLabels { format };
        self.ingest_rows.get_or_create(&labels).inc_by(rows);
        self.ingest_bytes.get_or_create(&labels).inc_by(bytes);
        if rejected > 0 {
            self.ingest_rejected.get_or_create(&labels).inc_by(rejected);
        }
    }

    /// A write failed although its content was good.
    pub fn write_failed(&self) {
        self.failed_writes.inc();
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// A collector failed.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Reads engine, query layer, bounds and process when `/metrics` is asked for.
pub struct EngineCollector {
    db: Arc<Database>,
    query: Arc<QueryEngine>,
    intake: Arc<Intake>,
    http_connections_max: u64,
    postgres_connections_max: u64,
    postgres_startup_connections_max: u64,
    statements_max: u64,
    query_memory_max: u64,
    spill_max: u64,
    wal_inflight_max: u64,
    wal_shard_bytes_max: u64,
    cache_memory_max: u64,
    cache_metadata_max: u64,
}

impl std::fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EngineCollector")
    }
}

/// Members of the engine's figures that only rise; the others are gauges.
const RISING: &[&str] = &[
    "rows_applied",
    "records_applied",
    "foreign_records",
    "claims",
    "flushes",
    "flushed_bytes",
    "compactions",
    "compacted_bytes",
    "collected_objects",
    "recuts",
    "splits",
];

impl EngineCollector {
    /// A collector over the parts of a process.
    #[must_use]
    pub fn new(
        db: Arc<Database>,
        query: Arc<QueryEngine>,
        intake: Arc<Intake>,
        config: &Config,
    ) -> Self {
        Self {
            db,
            query,
            intake,
            http_connections_max: config.http_connections_max,
            postgres_connections_max: config.postgres_connections_max,
            postgres_startup_connections_max: config.postgres_startup_connections_max,
            statements_max: config.query_concurrent_statements_max,
            query_memory_max: config.query_memory_bytes_max.0,
            spill_max: config.query_spill_bytes_max.0,
            wal_inflight_max: config.wal_inflight_bytes_max.0,
            wal_shard_bytes_max: config.wal_shard_bytes_max.0,
            cache_memory_max: config.cache_memory_bytes.0,
            cache_metadata_max: config.cache_metadata_bytes.0,
        }
    }

    fn own(&self) -> Vec<(&'static str, &'static str, u64)> {
        let (held, held_max) = self.intake.held_bytes();
        let (parsers, parsers_max) = self.intake.parsers();
        vec![
            (
                "http_connections_max",
                "http.connections_max",
                self.http_connections_max,
            ),
            (
                "postgres_connections_max",
                "postgres.connections_max",
                self.postgres_connections_max,
            ),
            (
                "cache_memory_bytes_max",
                "cache.memory_bytes",
                self.cache_memory_max,
            ),
            (
                "cache_metadata_bytes_max",
                "cache.metadata_bytes",
                self.cache_metadata_max,
            ),
            (
                "ingest_held_bytes",
                "Bytes of request bodies in memory",
                held as u64,
            ),
            (
                "ingest_held_bytes_max",
                "http.ingest_bytes_max",
                held_max as u64,
            ),
            ("ingest_parse_tasks", "Bodies being parsed", parsers as u64),
            (
                "ingest_parse_tasks_max",
                "http.parse_tasks_max",
                parsers_max as u64,
            ),
            (
                "postgres_connections",
                "Open PostgreSQL connections",
                crate::postgres::connections_open() as u64,
            ),
            (
                "postgres_startup_connections",
                "Open PostgreSQL connections that were not let in yet",
                crate::postgres::connections_starting() as u64,
            ),
            (
                "postgres_startup_connections_max",
                "postgres.startup_connections_max",
                self.postgres_startup_connections_max,
            ),
            (
                "query_statements",
                "Statements running or waiting",
                self.query.running().len() as u64,
            ),
            (
                "query_statements_max",
                "query.concurrent_statements_max",
                self.statements_max,
            ),
            (
                "query_memory_bytes",
                "Memory of running statements",
                self.query.memory_bytes() as u64,
            ),
            (
                "query_memory_bytes_max",
                "query.memory_bytes_max",
                self.query_memory_max,
            ),
            (
                "query_spill_bytes",
                "Spilled bytes on disk",
                self.query.spill_bytes(),
            ),
            (
                "query_spill_bytes_max",
                "query.spill_bytes_max",
                self.spill_max,
            ),
            (
                "wal_inflight_bytes_max",
                "wal.inflight_bytes_max, per shard",
                self.wal_inflight_max,
            ),
            (
                "wal_shard_bytes_max",
                "wal.shard_bytes_max, per shard",
                self.wal_shard_bytes_max,
            ),
            (
                "process_resident_memory_bytes",
                "Memory of the process",
                resident_bytes().unwrap_or(0),
            ),
        ]
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, value) in self.own() {
            gauge(&mut encoder, name, help, value)?;
        }
        let engine = serde_json::to_value(self.db.metrics()).unwrap_or_default();
        for (name, value) in figures("engine", &engine) {
            let value = value.max(0.0);
            let rising = RISING.iter().any(|r| name == format!("engine_{r}"));
            let help = name.replace('_', " ");
            if rising {
                let counter = ConstCounter::new(value);
                counter.encode(encoder.encode_descriptor(
                    &name,
                    &help,
                    None,
                    MetricType::Counter,
                )?)?;
            } else {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(
                    &name,
                    &help,
                    None,
                    MetricType::Gauge,
                )?)?;
            }
        }
        if let Some(log) = self.db.log_stats() {
            encode_log(&mut encoder, &log)?;
        }
        let store = self.db.sst_store();
        let stats = store.stats();
        for (level, figures) in [
            ("memory", &stats.memory),
            ("disk", &stats.disk),
            ("metadata", &stats.metadata),
        ] {
            for (what, value) in [
                ("hits", figures.hits.get()),
                ("misses", figures.misses.get()),
                ("evictions", figures.evictions.get()),
            ] {
                counter(&mut encoder, &format!("cache_{level}_{what}"), value)?;
            }
            let name = format!("cache_{level}_bytes");
            gauge(
                &mut encoder,
                &name,
                "Bytes in this level of the cache",
                figures.bytes(),
            )?;
        }
        counter(
            &mut encoder,
            "object_store_read_bytes",
            stats.store_bytes.get(),
        )?;
        counter(
            &mut encoder,
            "object_store_warmed_bytes",
            stats.warmed_bytes.get(),
        )?;
        counter(
            &mut encoder,
            "object_store_requests",
            stats.store_requests.get(),
        )?;
        counter(&mut encoder, "object_store_damaged", stats.damaged.get())?;
        let mut family = encoder.encode_descriptor(
            "shard_serving",
            "1: the shard is served",
            None,
            MetricType::Gauge,
        )?;
        for shard in self.db.status() {
            let labels = [("shard", shard.id.to_string())];
            let serving = i64::from(shard.state != "unavailable");
            ConstGauge::new(serving).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The numbers of a document, named by their path.
fn figures(prefix: &str, document: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for (name, value) in document.as_object().into_iter().flatten() {
        let name = format!("{prefix}_{name}");
        match value {
            Value::Number(number) => found.extend(number.as_f64().map(|n| (name, n))),
            Value::Object(_) => found.extend(figures(&name, value)),
            _ => {}
        }
    }
    found
}

/// The log on the local disk: its syncs are what a write waits for.
fn encode_log(
    encoder: &mut DescriptorEncoder<'_>,
    log: &LocalLogStats,
) -> Result<(), std::fmt::Error> {
    for (name, value) in [
        ("wal_records", log.records),
        ("wal_appended_bytes", log.appended_bytes),
        ("wal_batches", log.batches),
        ("wal_fsync_failures", log.fsync_failures),
        ("wal_refused_full", log.refused_full),
    ] {
        counter(encoder, name, value)?;
    }
    for (name, help, value) in [
        (
            "wal_queue_bytes",
            "Bytes of records that wait for the disk",
            log.queue_bytes,
        ),
        ("wal_segments", "Segment files of the log", log.segments),
        (
            "wal_retained_bytes",
            "Bytes of the log's segment files",
            log.retained_bytes,
        ),
    ] {
        gauge(encoder, name, help, value)?;
    }
    let bounds = FSYNC_BUCKETS_MS.into_iter().map(|ms| ms / 1e3);
    let bounds = bounds.chain([f64::MAX]).zip(log.fsync_buckets);
    let buckets: Vec<(f64, u64)> = bounds.collect();
    let mut encoder = encoder.encode_descriptor(
        "wal_fsync_seconds",
        "Syncs of the log's segments, failed ones included",
        None,
        MetricType::Histogram,
    )?;
    let sum = log.fsync_us_sum as f64 / 1e6;
    let count = log.fsync_buckets.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let help = name.replace('_', " ");
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, &help, None, MetricType::Counter)?)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Resident memory, from `VmRSS` of `/proc/self/status` (proc(5)).
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
