//! What the clients say of themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;

use super::stats::Counters;

/// Feeds the counters from one client's statistics and errors.
pub(super) struct Reports {
    role: &'static str,
    counters: Arc<Counters>,
    /// Connections made to each broker so far.
    connects: Mutex<HashMap<String, i64>>,
}

impl Reports {
    pub(super) fn new(role: &'static str, counters: &Arc<Counters>) -> Self {
        Self {
            role,
            counters: Arc::clone(counters),
            connects: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn stats(&self, statistics: &Statistics) {
        let mut connects = self.connects.lock();
        for (name, broker) in &statistics.brokers {
            let now = broker.connects.unwrap_or(0);
            let before = connects.insert(name.clone(), now).unwrap_or(0);
            // The first connection is none made again.
            let again = now.max(1) - before.max(1);
            self.counters
                .reconnects
                .fetch_add(u64::try_from(again).unwrap_or(0), Relaxed);
        }
    }

    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        self.counters.client_errors.fetch_add(1, Relaxed);
        tracing::warn!(role = self.role, %error, reason, "Kafka client");
    }
}
