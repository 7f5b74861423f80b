//! What every request may use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shoal_engine::{Database, NewPartitions};
use shoal_query::QueryEngine;
use shoal_types::TableSchema;

use super::body::Intake;
use super::forward::Forward;
use crate::auth::Auth;
use crate::metrics::Metrics;
use crate::node::cluster::Cluster;

/// The version that InfluxDB's clients are told: the API that `/write` and `/query` speak.
pub const INFLUXDB_VERSION: &str = "1.8.10";

/// What every request may use.
pub struct AppState {
    /// Catalog, writes, maintenance.
    pub db: Arc<Database>,
    /// Other nodes; `None`: this process is alone.
    pub cluster: Option<Arc<Cluster>>,
    /// Requests that a scheduler answers.
    pub forward: Arc<Forward>,
    /// Statements.
    pub query: Arc<QueryEngine>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// Bounds of request bodies.
    pub intake: Arc<Intake>,
    /// Counters.
    pub metrics: Metrics,
    /// Set when the process was asked to stop: `/health/ready` says no.
    pub stopping: AtomicBool,
    /// Connections at a time.
    pub connections_max: usize,
    /// Rows that one record takes at most.
    pub record_rows_max: usize,
    /// Bytes that one record takes at most.
    pub record_bytes_max: usize,
    /// Tables made by line protocol.
    pub line_protocol: LineProtocolTables,
}

/// How tables that line protocol makes are partitioned.
#[derive(Clone, Copy, Debug)]
pub struct LineProtocolTables {
    /// Hash partitions; 1: one that owns everything.
    pub partitions: u32,
    /// So many of the first tags decide a row's partition; 0: all.
    pub tags: usize,
}

impl LineProtocolTables {
    /// The partitions of a table of which these are the columns; `None`: one that owns everything,
    /// as a table without tags is.
    #[must_use]
    pub fn partitions(&self, schema: &TableSchema) -> Option<NewPartitions> {
        let tags = schema.series_columns();
        let tags = match self.tags {
            0 => tags,
            count => &tags[..count.min(tags.len())],
        };
        if self.partitions < 2 || tags.is_empty() {
            return None;
        }
        Some(NewPartitions::hash(tags.to_vec(), self.partitions))
    }
}

impl AppState {
    /// Whether the process was asked to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
