//! The journal of who led what: every procedure that has ended becomes a row of the table
//! `shoal.procedures`, written through any node like any other row.
//!
//! Its key is the procedure's id, so a row that is written twice, by this scheduler or by the next
//! one, is there once. Rows that cannot be written now wait, the newest [`WAITING_MAX`]; a new leader
//! of the schedulers writes those again that meta still has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use shoal_meta::Topology;
use shoal_scheduler::Procedure;
use shoal_types::{Clock, SystemClock, TimestampMs};
use tokio::sync::mpsc;

use super::metrics::Metrics;
use crate::auth::Auth;
use crate::chain::chain;
use crate::http::push_timestamp;

/// Rows that wait to be written.
const WAITING_MAX: usize = 2_000;
/// Rows of one statement.
const BATCH: usize = 100;
/// Pause before a try that failed is repeated; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a node may take.
const WITHIN: Duration = Duration::from_secs(10);

const MAKE: [&str; 2] = [
    "CREATE SCHEMA IF NOT EXISTS shoal",
    "CREATE TABLE IF NOT EXISTS shoal.procedures (
       ended TIMESTAMP(3) NOT NULL, id TEXT NOT NULL, task TEXT, shard TEXT, node TEXT,
       old_leader TEXT, old_term BIGINT, epoch TEXT, state TEXT, by TEXT, why TEXT, error TEXT,
       begun TIMESTAMP(3), pause_ms DOUBLE PRECISION, records_replayed BIGINT,
       PRIMARY KEY (id, ended)) WITH (time_column = 'ended', ttl = '90d')",
];

/// Columns in the order of [`row`].
const COLUMNS: &str = "ended, id, task, shard, node, old_leader, old_term, epoch, state, \"by\", why, error, begun, pause_ms, records_replayed";

/// Writes rows.
pub struct Journal {
    topology: Arc<Topology>,
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    http: reqwest::Client,
    made: bool,
    /// Procedures that ended before were counted by another scheduler.
    since_ms: TimestampMs,
}

impl Journal {
    /// Nothing was written yet.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(
        topology: Arc<Topology>,
        auth: Arc<Auth>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let http = reqwest::Client::builder().no_proxy().build();
        let http = http.map_err(|e| chain(&e))?;
        Ok(Self {
            topology,
            auth,
            metrics,
            http,
            made: false,
            since_ms: SystemClock.now_ms(),
        })
    }

    /// Writes what comes, until nothing comes any more.
    pub async fn write(mut self, mut ended: mpsc::Receiver<Procedure>) {
        let mut waiting: VecDeque<Procedure> = VecDeque::new();
        let mut pause = PAUSE_MIN;
        loop {
            if waiting.is_empty() {
                match ended.recv().await {
                    Some(procedure) => self.take(&mut waiting, procedure),
                    None => return,
                }
            }
            while let Ok(procedure) = ended.try_recv() {
                self.take(&mut waiting, procedure);
            }
            let batch: Vec<Procedure> = waiting.iter().take(BATCH).cloned().collect();
            match self.insert(&batch).await {
                Ok(()) => {
                    waiting.drain(..batch.len());
                    pause = PAUSE_MIN;
                }
                Err(why) => {
                    if pause == PAUSE_MAX {
                        tracing::warn!(why, rows = waiting.len(), "the journal is not written yet");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            self.metrics.journal_waits(waiting.len());
        }
    }

    fn take(&self, waiting: &mut VecDeque<Procedure>, procedure: Procedure) {
        if procedure.outcome.ended_ms >= Some(self.since_ms) {
            self.metrics.ended(&procedure);
        }
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
            tracing::warn!("a row of the journal was given up: {WAITING_MAX} wait already");
        }
        waiting.push_back(procedure);
    }

    async fn insert(&mut self, rows: &[Procedure]) -> Result<(), String> {
        if !self.made {
            for statement in MAKE {
                self.run(statement, &[]).await?;
            }
            self.made = true;
        }
        let parameters: Vec<Value> = rows.iter().flat_map(row).collect();
        let width = parameters.len() / rows.len().max(1);
        let values: Vec<String> = (0..rows.len())
            .map(|r| {
                let places: Vec<String> = (0..width)
                    .map(|c| format!("${}", r * width + c + 1))
                    .collect();
                format!("({})", places.join(", "))
            })
            .collect();
        let statement = format!(
            "INSERT INTO shoal.procedures ({COLUMNS}) VALUES {}",
            values.join(", ")
        );
        let done = self.run(&statement, &parameters).await;
        // A table that was dropped is made again.
        self.made = done.is_ok();
        done
    }

    /// Runs a statement at some node.
    async fn run(&self, sql: &str, params: &[Value]) -> Result<(), String> {
        let snapshot = self.topology.snapshot();
        let mut why = "no node is heard of".to_owned();
        for node in snapshot.nodes.values().filter(|n| !n.http.is_empty()) {
            let request = self
                .http
                .post(format!("http://{}/v1/sql", node.http))
                .timeout(WITHIN)
                .json(&json!({ "sql": sql, "params": params }));
            let request = match self.auth.token() {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => why = answer.text().await.unwrap_or_default(),
                Err(error) => why = chain(&error),
            }
        }
        Err(why)
    }
}

fn row(procedure: &Procedure) -> Vec<Value> {
    let (task, outcome) = (procedure.task, &procedure.outcome);
    let time = |ms: u64| {
        let mut text = Vec::new();
        push_timestamp(&mut text, i64::try_from(ms).unwrap_or(i64::MAX), 1000);
        String::from_utf8(text).unwrap_or_default()
    };
    vec![
        time(outcome.ended_ms.unwrap_or(procedure.begun_ms)).into(),
        procedure.id.to_string().into(),
        task.name().into(),
        task.shard().to_string().into(),
        task.node().to_string().into(),
        procedure.old_leader.map(|n| n.to_string()).into(),
        procedure.old_term.into(),
        outcome.epoch.map(|e| e.to_string()).into(),
        procedure.state.name().into(),
        procedure.by.clone().into(),
        procedure.why.clone().into(),
        outcome.error.clone().into(),
        time(procedure.begun_ms).into(),
        outcome.pause_ms.into(),
        outcome.records_replayed.into(),
    ]
}
