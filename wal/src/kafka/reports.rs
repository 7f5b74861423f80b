//! What the clients say of themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;

use super::stats::Counters;

/// A client that finds no broker says so many times a second; this often it is passed on.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Feeds the counters and the program's log from one client.
pub(super) struct Reports {
    role: &'static str,
    counters: Arc<Counters>,
    /// Connections made to each broker so far.
    connects: Mutex<HashMap<String, i64>>,
    said: Mutex<Option<Instant>>,
}

impl Reports {
    pub(super) fn new(role: &'static str, counters: &Arc<Counters>) -> Self {
        Self {
            role,
            counters: Arc::clone(counters),
            connects: Mutex::new(HashMap::new()),
            said: Mutex::new(None),
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let role = self.role;
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(role, facility, "Kafka client: {message}");
            }
            // What matters of the rest comes as an error as well.
            _ => tracing::debug!(role, facility, "Kafka client: {message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let mut connects = self.connects.lock();
        for (name, broker) in statistics.brokers {
            let now = broker.connects.unwrap_or(0);
            let before = connects.insert(name, now).unwrap_or(0);
            // The first connection is none made again.
            let again = u64::try_from(now.max(1) - before.max(1)).unwrap_or(0);
            self.counters.reconnects.fetch_add(again, Relaxed);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.counters.client_errors.fetch_add(1, Relaxed);
        let mut said = self.said.lock();
        if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            *said = Some(Instant::now());
            tracing::warn!(role = self.role, %error, reason, "Kafka client");
        } else {
            tracing::debug!(role = self.role, %error, reason, "Kafka client");
        }
    }
}

impl ConsumerContext for Reports {}
