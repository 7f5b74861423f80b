//! What a scheduler counts (Prometheus).

use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_scheduler::{NodeCounts, Overview, Procedure, ShardCounts};

use crate::http::{ApiError, OPENMETRICS};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    task: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Task {
    task: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    health: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct That {
    are: &'static str,
}

/// The figures.
pub struct Metrics {
    registry: Registry,
    leading: Gauge,
    nodes: Family<Of, Gauge>,
    shards: Family<That, Gauge>,
    running: Gauge,
    ended: Family<Ended, Counter>,
    pause_seconds: Family<Task, Histogram, fn() -> Histogram>,
    journal_waits: Gauge,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("shoal_scheduler");
        let pauses: fn() -> Histogram = || Histogram::new(exponential_buckets(0.005, 2.0, 12));
        let leading = Gauge::default();
        registry.register("leading", "1 on the scheduler that leads", leading.clone());
        let nodes = Family::default();
        registry.register(
            "nodes",
            "Nodes by health, on the scheduler that leads",
            nodes.clone(),
        );
        let shards = Family::default();
        registry.register(
            "shards",
            "Shards: all; unled: no leader that works; short: fewer replicas that could take over than wanted; damaged. On the scheduler that leads",
            shards.clone(),
        );
        let running = Gauge::default();
        registry.register(
            "procedures_running",
            "Procedures under way, on the scheduler that leads",
            running.clone(),
        );
        let ended = Family::default();
        registry.register(
            "procedures_ended",
            "Procedures that have ended, by what they did and how they ended",
            ended.clone(),
        );
        let pause_seconds = Family::new_with_constructor(pauses);
        registry.register(
            "pause_seconds",
            "How long nobody could write to a shard whose leader changed",
            pause_seconds.clone(),
        );
        let journal_waits = Gauge::default();
        registry.register(
            "journal_rows_waiting",
            "Rows of shoal.procedures that are not written yet",
            journal_waits.clone(),
        );
        Arc::new(Self {
            registry,
            leading,
            nodes,
            shards,
            running,
            ended,
            pause_seconds,
            journal_waits,
        })
    }

    /// Counts a procedure that has ended.
    pub fn ended(&self, procedure: &Procedure) {
        let task = procedure.task.name();
        if procedure.is_running() {
            return;
        }
        let state = procedure.state.name();
        self.ended.get_or_create(&Ended { task, state }).inc();
        if let Some(ms) = procedure.outcome.pause_ms {
            self.pause_seconds
                .get_or_create(&Task { task })
                .observe(ms / 1e3);
        }
    }

    /// Rows of the journal that wait.
    pub fn journal_waits(&self, rows: usize) {
        self.journal_waits
            .set(i64::try_from(rows).unwrap_or(i64::MAX));
    }

    /// The answer to `/metrics`; `look`: what the scheduler that leads knows, if this is it.
    pub fn show(&self, look: Option<Overview>) -> Response {
        self.leading.set(i64::from(look.is_some()));
        let (mut nodes, mut running) = (NodeCounts::default(), 0_i64);
        let mut shards = ShardCounts::default();
        if let Some(look) = look {
            shards = look.shards;
            nodes = look.health;
            let under_way = look.procedures.iter().filter(|(p, _)| p.is_running());
            running = i64::try_from(under_way.count()).unwrap_or(i64::MAX);
        }
        for (health, count) in [
            ("up", nodes.up),
            ("suspect", nodes.suspect),
            ("down", nodes.down),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.nodes.get_or_create(&Of { health }).set(count);
        }
        for (are, count) in [
            ("all", shards.all),
            ("unled", shards.unled),
            ("short", shards.short),
            ("damaged", shards.damaged),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.shards.get_or_create(&That { are }).set(count);
        }
        self.running.set(running);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
            Err(error) => {
                ApiError::internal(format!("cannot write the metrics: {error}")).into_response()
            }
        }
    }
}
