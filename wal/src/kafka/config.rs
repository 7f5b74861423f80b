//! What a user may choose, and what every client is made with.
//!
//! Three layers, the later ones win: what we prefer (short waits), the user's `options`, and what
//! the protocol rests on (PROTOCOLS §1), which `options` may not name.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use serde::{Deserialize, Serialize};

use crate::record::RECORD_BYTES_MAX_DEFAULT;

/// How many replicas confirm a record before its receipt says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acks {
    /// All in sync, at least `min_insync_replicas`.
    #[default]
    All,
    /// The partition's leader alone: quicker, but a record that it confirmed goes with it. What
    /// was read back is on all replicas in sync, however few they are: `min_insync_replicas`
    /// binds only with `all`.
    Leader,
}

/// Where Kafka is and what is asked of it.
#[derive(Clone, PartialEq)]
pub struct KafkaLogConfig {
    /// `host:port` of some brokers, separated by commas; they name the others.
    pub brokers: String,
    /// `cluster.name`: part of every topic's name, so that several clusters share brokers.
    pub cluster: String,
    /// Replicas of a topic made here, and the least of one that is opened.
    pub replication_factor: u16,
    /// How many of them must have a record, at least, before it counts. Below 2 a broken broker
    /// loses acknowledged writes: for development only.
    pub min_insync_replicas: u16,
    /// Whose confirmation a receipt waits for.
    pub acks: Acks,
    /// After this many milliseconds without enough confirmations an append is given up.
    pub commit_timeout_ms: u64,
    /// Bytes of records that may wait for their confirmation. An append over it is `Full`.
    pub queue_bytes_max: usize,
    /// Records that may wait for their confirmation.
    pub queue_records_max: usize,
    /// Bytes read ahead of a reader, for each shard.
    pub read_ahead_bytes_max: usize,
    /// The largest record.
    pub record_bytes_max: usize,
    /// Further settings of the client (librdkafka's names): `security.protocol`, `sasl.*`,
    /// `ssl.*` and any other but those in [`KafkaLogConfig::OWNED`].
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for KafkaLogConfig {
    /// All but the values of the options: there are passwords among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<_> = self.options.keys().collect();
        f.debug_struct("KafkaLogConfig")
            .field("brokers", &self.brokers)
            .field("cluster", &self.cluster)
            .field("replication_factor", &self.replication_factor)
            .field("min_insync_replicas", &self.min_insync_replicas)
            .field("acks", &self.acks)
            .field("commit_timeout_ms", &self.commit_timeout_ms)
            .field("queue_bytes_max", &self.queue_bytes_max)
            .field("queue_records_max", &self.queue_records_max)
            .field("read_ahead_bytes_max", &self.read_ahead_bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("options", &options)
            .finish()
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KafkaConfigError {
    /// An option that is not the user's to set.
    #[error("kafka.options may not set {key:?}: {why}")]
    Owned {
        /// The option.
        key: String,
        /// What sets it instead.
        why: &'static str,
    },
    /// A value out of its range.
    #[error("{0}")]
    Invalid(String),
    /// The client refuses the settings.
    #[error("the Kafka client refuses its settings: {0}")]
    Client(String),
}

const RESTS_ON_IT: &str = "the log's guarantees rest on it";

impl KafkaLogConfig {
    /// Client settings that `options` may not name, and why.
    pub const OWNED: [(&'static str, &'static str); 33] = [
        ("bootstrap.servers", "it is kafka.brokers"),
        ("metadata.broker.list", "it is kafka.brokers"),
        ("acks", "it is kafka.acks"),
        ("request.required.acks", "it is kafka.acks"),
        ("message.timeout.ms", "it is kafka.commit_timeout_ms"),
        ("delivery.timeout.ms", "it is kafka.commit_timeout_ms"),
        ("request.timeout.ms", "it is kafka.commit_timeout_ms"),
        ("queue.buffering.max.kbytes", "it is kafka.queue_bytes_max"),
        (
            "queue.buffering.max.messages",
            "it is kafka.queue_records_max",
        ),
        (
            "queued.max.messages.kbytes",
            "it is kafka.read_ahead_bytes_max",
        ),
        ("message.max.bytes", "it follows wal.record_bytes_max"),
        (
            "receive.message.max.bytes",
            "it follows wal.record_bytes_max",
        ),
        ("fetch.max.bytes", "it follows wal.record_bytes_max"),
        ("fetch.message.max.bytes", "it follows wal.record_bytes_max"),
        (
            "max.partition.fetch.bytes",
            "it follows wal.record_bytes_max",
        ),
        ("enable.idempotence", RESTS_ON_IT),
        ("transactional.id", RESTS_ON_IT),
        ("max.in.flight", RESTS_ON_IT),
        ("max.in.flight.requests.per.connection", RESTS_ON_IT),
        ("retries", RESTS_ON_IT),
        ("message.send.max.retries", RESTS_ON_IT),
        ("queuing.strategy", RESTS_ON_IT),
        ("batch.num.messages", RESTS_ON_IT),
        ("compression.type", "records are compressed already"),
        ("compression.codec", "records are compressed already"),
        ("allow.auto.create.topics", RESTS_ON_IT),
        ("auto.offset.reset", RESTS_ON_IT),
        ("check.crcs", RESTS_ON_IT),
        ("isolation.level", RESTS_ON_IT),
        ("enable.auto.commit", RESTS_ON_IT),
        ("enable.auto.offset.store", RESTS_ON_IT),
        ("enable.partition.eof", RESTS_ON_IT),
        ("test.mock.num.brokers", "a mock keeps nothing"),
    ];

    /// The defaults: 3 replicas of which 2 must confirm, 10 s to do so, 64 MiB or 100,000 records
    /// in flight, 16 MiB read ahead, records up to 8 MiB.
    #[must_use]
    pub fn new(brokers: impl Into<String>, cluster: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            cluster: cluster.into(),
            replication_factor: 3,
            min_insync_replicas: 2,
            acks: Acks::All,
            commit_timeout_ms: 10_000,
            queue_bytes_max: 64 << 20,
            queue_records_max: 100_000,
            read_ahead_bytes_max: 16 << 20,
            record_bytes_max: RECORD_BYTES_MAX_DEFAULT,
            options: BTreeMap::new(),
        }
    }

    /// Whether this can be used at all; asks no broker.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<(), KafkaConfigError> {
        for key in self.options.keys() {
            if let Some((_, why)) = Self::OWNED.iter().find(|(owned, _)| owned == key) {
                let key = key.clone();
                return Err(KafkaConfigError::Owned { key, why });
            }
        }
        let invalid = |what: String| Err(KafkaConfigError::Invalid(what));
        if self.brokers.trim().is_empty() {
            return invalid("kafka.brokers names no broker".into());
        }
        // What a topic's name may hold, short enough that ids fit too (249 in all). No dot: the
        // name is cut at dots.
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.cluster.is_empty() || self.cluster.len() > 128 || !self.cluster.chars().all(fits) {
            return invalid(format!(
                "cluster.name {:?} cannot be part of a topic's name: use 1 to 128 of A-Z, a-z, 0-9, _ and -",
                self.cluster
            ));
        }
        if self.min_insync_replicas == 0 || self.min_insync_replicas > self.replication_factor {
            return invalid(format!(
                "kafka.min_insync_replicas is {}, it must be from 1 to kafka.replication_factor, which is {}",
                self.min_insync_replicas, self.replication_factor
            ));
        }
        if !(100..=900_000).contains(&self.commit_timeout_ms) {
            return invalid(format!(
                "kafka.commit_timeout_ms is {}, it must be from 100 to 900000",
                self.commit_timeout_ms
            ));
        }
        if !(1024..=64 << 20).contains(&self.record_bytes_max) {
            return invalid(format!(
                "wal.record_bytes_max is {}, Kafka takes from 1 KiB to 64 MiB",
                self.record_bytes_max
            ));
        }
        if self.queue_bytes_max < self.record_bytes_max || self.queue_records_max == 0 {
            return invalid(format!(
                "kafka.queue_bytes_max is {}, it must hold one record of wal.record_bytes_max, {}",
                self.queue_bytes_max, self.record_bytes_max
            ));
        }
        Ok(())
    }

    /// The most bytes of one record batch, headers included.
    pub(super) fn batch_bytes_max(&self) -> usize {
        self.record_bytes_max + BATCH_OVERHEAD_BYTES
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set_log_level(RDKafkaLogLevel::Info);
        let preferred: [(&str, &str); 12] = [
            ("client.id", "shoal"),
            // A connection to a frozen or cut-off broker is given up after this long, not after a
            // minute, and a new one is tried more often than TCP would do it by itself: that doubles
            // its waits.
            ("socket.timeout.ms", "5000"),
            ("socket.connection.setup.timeout.ms", "2000"),
            ("socket.nagle.disable", "true"),
            ("socket.keepalive.enable", "true"),
            ("reconnect.backoff.ms", "50"),
            ("reconnect.backoff.max.ms", "1000"),
            ("retry.backoff.ms", "20"),
            ("retry.backoff.max.ms", "500"),
            // Leaders move: look often, and quickly when one is missing.
            ("topic.metadata.refresh.interval.ms", "10000"),
            ("topic.metadata.refresh.fast.interval.ms", "20"),
            ("statistics.interval.ms", "5000"),
        ];
        for (key, value) in preferred {
            client.set(key, value);
        }
        for (key, value) in &self.options {
            client.set(key, value);
        }
        client.set("bootstrap.servers", &self.brokers);
        client.set("allow.auto.create.topics", "false");
        client
    }

    pub(super) fn admin(&self) -> ClientConfig {
        self.client()
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        if !self.options.contains_key("linger.ms") {
            client.set("linger.ms", "0");
        }
        let (acks, idempotent) = match self.acks {
            Acks::All => ("all", "true"),
            Acks::Leader => ("1", "false"),
        };
        client.set("acks", acks);
        client.set("enable.idempotence", idempotent);
        if self.acks == Acks::Leader {
            // Without idempotence a retry of the first of two requests in flight would get in
            // behind the second one.
            client.set("max.in.flight.requests.per.connection", "1");
        }
        client.set("compression.type", "none");
        client.set("message.timeout.ms", self.commit_timeout_ms.to_string());
        client.set("request.timeout.ms", self.commit_timeout_ms.to_string());
        client.set("message.max.bytes", self.batch_bytes_max().to_string());
        // Where a broker answers a retry with "had it already", the client numbers the records of
        // the batch from -1001 on; so no unknown offset can look like one.
        client.set("batch.num.messages", "1000");
        // Appends are counted and bounded before they come here; these only must not be lower.
        client.set("queue.buffering.max.kbytes", "2097151");
        let records = self.queue_records_max.saturating_add(1).min(10_000_000);
        client.set("queue.buffering.max.messages", records.to_string());
        client
    }

    pub(super) fn consumer(&self) -> ClientConfig {
        let mut client = self.client();
        let preferred = [
            // Nobody joins it: partitions are assigned by hand and no offset is committed.
            ("group.id", format!("shoal.{}", self.cluster)),
            ("fetch.min.bytes", "1".into()),
            ("fetch.wait.max.ms", FETCH_WAIT_MAX_MS.to_string()),
            ("fetch.queue.backoff.ms", "2".into()),
            ("fetch.error.backoff.ms", "20".into()),
            ("queued.min.messages", "100000".into()),
        ];
        for (key, value) in preferred {
            if !self.options.contains_key(key) {
                client.set(key, value);
            }
        }
        client.set("auto.offset.reset", "error");
        client.set("check.crcs", "true");
        client.set("isolation.level", "read_uncommitted");
        client.set("enable.auto.commit", "false");
        client.set("enable.auto.offset.store", "false");
        client.set("enable.partition.eof", "false");
        let read_ahead_kb = (self.read_ahead_bytes_max / 1024).clamp(1, 2_097_151);
        client.set("queued.max.messages.kbytes", read_ahead_kb.to_string());
        // A record larger than these still comes, alone.
        let partition = self.batch_bytes_max().max(4 << 20);
        client.set("fetch.message.max.bytes", partition.to_string());
        let fetch = partition.max(32 << 20);
        client.set("fetch.max.bytes", fetch.to_string());
        client.set(
            "receive.message.max.bytes",
            (fetch + partition + 4096).to_string(),
        );
        client
    }
}

/// Headers of a batch and a record are below 100 bytes.
const BATCH_OVERHEAD_BYTES: usize = 1024;

/// How long a broker holds a fetch that it has nothing for. A reader that comes new waits for the
/// end of two (one before the consumer learns of the topic, one before it is fetched): opened with
/// 10, 50 and 200 ms it had its first record after 27, 102 and 403 ms. Shorter costs the broker:
/// with 10 ms 9 % of a core for an idle process, with 50 ms 2 %.
const FETCH_WAIT_MAX_MS: u32 = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_log_rests_on_are_refused_by_name() {
        for (key, _) in KafkaLogConfig::OWNED {
            let mut config = KafkaLogConfig::new("127.0.0.1:9092", "c");
            config.options.insert(key.into(), "1".into());
            let error = config.check().expect_err("refused");
            assert!(error.to_string().contains(key), "{error}");
        }
        let mut config = KafkaLogConfig::new("127.0.0.1:9092", "c");
        config
            .options
            .insert("security.protocol".into(), "ssl".into());
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn options_reach_both_clients_and_never_what_is_ours() {
        let mut config = KafkaLogConfig::new("127.0.0.1:9092", "c");
        config.options.insert("linger.ms".into(), "1".into());
        config
            .options
            .insert("socket.timeout.ms".into(), "777".into());
        let (producer, consumer) = (config.producer(), config.consumer());
        assert_eq!(producer.get("linger.ms"), Some("1"));
        assert_eq!(producer.get("acks"), Some("all"));
        for client in [producer, consumer] {
            assert_eq!(client.get("socket.timeout.ms"), Some("777"));
            assert_eq!(client.get("allow.auto.create.topics"), Some("false"));
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let mut config = KafkaLogConfig::new("127.0.0.1:9092", "c");
        let secret = ("sasl.password".to_owned(), "hunter2".to_owned());
        config.options.extend([secret]);
        let shown = format!("{config:?}");
        assert!(shown.contains("sasl.password"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        type Change = fn(&mut KafkaLogConfig);
        let cases: [(Change, &str); 7] = [
            (|c| c.brokers = " ".into(), "kafka.brokers"),
            (|c| c.cluster = "a.b".into(), "cluster.name"),
            (|c| c.min_insync_replicas = 4, "kafka.min_insync_replicas"),
            (|c| c.min_insync_replicas = 0, "kafka.min_insync_replicas"),
            (|c| c.commit_timeout_ms = 5, "kafka.commit_timeout_ms"),
            (|c| c.queue_bytes_max = 10, "kafka.queue_bytes_max"),
            (|c| c.record_bytes_max = 1 << 30, "wal.record_bytes_max"),
        ];
        for (change, named) in cases {
            let mut config = KafkaLogConfig::new("127.0.0.1:9092", "c");
            change(&mut config);
            let error = config.check().expect_err(named);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
