//! What a scheduler counts (Prometheus).

use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use shoal_scheduler::{Command, Health, Procedure, State};

use super::desk::Desk;
use crate::http::ApiError;

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

/// The figures.
pub struct Metrics {
    registry: Mutex<Registry>,
    leading: Gauge,
    nodes: Family<Of, Gauge>,
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
        let metrics = Self {
            leading: Gauge::default(),
            nodes: Family::default(),
            running: Gauge::default(),
            ended: Family::default(),
            pause_seconds: Family::new_with_constructor(pauses),
            journal_waits: Gauge::default(),
            registry: Mutex::new(Registry::default()),
        };
        registry.register(
            "leading",
            "1 on the scheduler that leads",
            metrics.leading.clone(),
        );
        registry.register(
            "nodes",
            "Nodes by health, on the scheduler that leads",
            metrics.nodes.clone(),
        );
        registry.register(
            "procedures_running",
            "Procedures under way, on the scheduler that leads",
            metrics.running.clone(),
        );
        registry.register(
            "procedures_ended",
            "Procedures that have ended, by what they did and how they ended",
            metrics.ended.clone(),
        );
        registry.register(
            "pause_seconds",
            "How long nobody could write to a shard whose leader changed",
            metrics.pause_seconds.clone(),
        );
        registry.register(
            "journal_rows_waiting",
            "Rows of shoal.procedures that are not written yet",
            metrics.journal_waits.clone(),
        );
        *metrics.registry.lock() = registry;
        Arc::new(metrics)
    }

    /// Counts a procedure that has ended.
    pub fn ended(&self, procedure: &Procedure) {
        let task = procedure.task.name();
        let state = match procedure.state {
            State::Running => return,
            State::Done => "done",
            State::Failed => "failed",
            State::Overtaken => "overtaken",
            State::Cancelled => "cancelled",
        };
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

    /// The answer to `/metrics`.
    pub async fn show(&self, desk: &Desk) -> Response {
        let look = if desk.leads() {
            desk.handle.ask(Command::Look).await
        } else {
            None
        };
        self.leading.set(i64::from(look.is_some()));
        let (mut health, mut running) = ([0_i64; 3], 0_i64);
        if let Some(look) = look {
            for node in look.nodes.values() {
                health[match node.health {
                    Health::Up => 0,
                    Health::Suspect => 1,
                    Health::Down => 2,
                }] += 1;
            }
            let under_way = look.procedures.iter().filter(|(p, _)| p.is_running());
            running = i64::try_from(under_way.count()).unwrap_or(i64::MAX);
        }
        for (name, count) in ["up", "suspect", "down"].into_iter().zip(health) {
            self.nodes.get_or_create(&Of { health: name }).set(count);
        }
        self.running.set(running);
        let mut text = String::new();
        match encode(&mut text, &self.registry.lock()) {
            Ok(()) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Err(error) => {
                ApiError::internal(format!("cannot write the metrics: {error}")).into_response()
            }
        }
    }
}
