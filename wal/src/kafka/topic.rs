//! Topics: their names, the settings they are made with, and whether one may be relied on.

use std::collections::HashMap;

use shoal_types::{LogId, ShardId};

use super::config::KafkaLogConfig;

/// `shoal.{cluster}.{shard}.{log}` (DESIGN §6). The log's id is never re-issued, so neither is the
/// name: a late append to a topic that was deleted cannot land in another one.
pub(super) fn name(cluster: &str, shard: ShardId, log: LogId) -> String {
    format!("shoal.{cluster}.{shard}.{log}")
}

/// The shard and log that a topic of this cluster belongs to.
pub(super) fn parse(cluster: &str, topic: &str) -> Option<(ShardId, LogId)> {
    let rest = topic.strip_prefix("shoal.")?.strip_prefix(cluster)?;
    let (shard, log) = rest.strip_prefix('.')?.split_once('.')?;
    Some((shard.parse().ok()?, log.parse().ok()?))
}

/// What a topic's setting must be.
enum Must {
    Be(&'static str),
    BeAtLeast(u64),
}

struct Setting {
    key: &'static str,
    must: Must,
    /// Whether a broker that does not report it leaves a doubt.
    expected: bool,
}

/// Room for the headers of a batch, and for a batch that holds more than one record.
const MESSAGE_SLACK_BYTES: usize = 64 << 10;

fn settings(config: &KafkaLogConfig) -> [Setting; 7] {
    let must = |key, must| Setting {
        key,
        must,
        expected: true,
    };
    let bytes_max = (config.record_bytes_max + MESSAGE_SLACK_BYTES) as u64;
    [
        // Records go when a manifest no longer needs them, never by age, size or key.
        must("retention.ms", Must::Be("-1")),
        must("retention.bytes", Must::Be("-1")),
        must("cleanup.policy", Must::Be("delete")),
        // A replica that lags must not become the truth.
        must("unclean.leader.election.enable", Must::Be("false")),
        must(
            "min.insync.replicas",
            Must::BeAtLeast(config.min_insync_replicas.into()),
        ),
        must("max.message.bytes", Must::BeAtLeast(bytes_max)),
        // Redpanda: acknowledges from memory. Kafka does not know it.
        Setting {
            key: "write.caching",
            must: Must::Be("false"),
            expected: false,
        },
    ]
}

/// What a topic is made with.
pub(super) fn at_creation(config: &KafkaLogConfig) -> Vec<(&'static str, String)> {
    let ours = settings(config).into_iter().filter(|s| s.expected);
    let mut made: Vec<_> = ours
        .map(|s| match s.must {
            Must::Be(value) => (s.key, value.to_owned()),
            Must::BeAtLeast(value) => (s.key, value.to_string()),
        })
        .collect();
    // Trimming frees whole segments.
    made.push(("segment.bytes", (128 << 20).to_string()));
    made
}

/// What is to be said of a topic.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// Settings that would lose records, each with what it is and what it must be.
    pub(super) unsafe_settings: Vec<String>,
    /// Settings that the broker does not tell.
    pub(super) not_reported: Vec<&'static str>,
}

/// Judges a topic by what its broker reports.
pub(super) fn judge(
    config: &KafkaLogConfig,
    partitions: usize,
    replicas: usize,
    reported: &HashMap<String, String>,
) -> Judgement {
    let mut found = Judgement::default();
    if partitions != 1 {
        found.unsafe_settings.push(format!(
            "it has {partitions} partitions and must have 1: a log has one order"
        ));
    }
    if replicas < usize::from(config.replication_factor) {
        found.unsafe_settings.push(format!(
            "its replication factor is {replicas} and must be at least {} (kafka.replication_factor)",
            config.replication_factor
        ));
    }
    for setting in settings(config) {
        let key = setting.key;
        let Some(value) = reported.get(key) else {
            if setting.expected {
                found.not_reported.push(key);
            }
            continue;
        };
        let wanted = match setting.must {
            Must::Be(wanted) if value == wanted => continue,
            Must::Be(wanted) => wanted.to_owned(),
            Must::BeAtLeast(least) if value.parse::<u64>().is_ok_and(|v| v >= least) => continue,
            Must::BeAtLeast(least) => format!("at least {least}"),
        };
        let wrong = format!("{key} is {value} and must be {wanted}");
        found.unsafe_settings.push(wrong);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(config: &KafkaLogConfig) -> HashMap<String, String> {
        let made = at_creation(config).into_iter();
        made.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    #[test]
    fn a_name_tells_its_cluster_shard_and_log() {
        let (shard, log) = (ShardId::generate(), LogId::generate());
        let topic = name("a-b", shard, log);
        assert_eq!(parse("a-b", &topic), Some((shard, log)));
        assert_eq!(parse("a", &topic), None);
        assert_eq!(parse("a-b", &format!("{topic}x")), None);
        assert_eq!(parse("a-b", "shoal.a-b"), None);
        let longest = name(&"c".repeat(128), shard, log);
        assert!(longest.len() <= 249, "Kafka's limit");
    }

    #[test]
    fn a_topic_made_here_is_fit_to_be_used() {
        let config = KafkaLogConfig::new("b:9092", "c");
        let found = judge(&config, 1, 3, &good(&config));
        assert_eq!(found, Judgement::default());
    }

    #[test]
    fn each_unsafe_setting_is_named_with_what_it_is_and_must_be() {
        let config = KafkaLogConfig::new("b:9092", "c");
        let cases = [
            ("retention.ms", "604800000", "-1"),
            ("retention.bytes", "1000", "-1"),
            ("cleanup.policy", "compact", "delete"),
            ("cleanup.policy", "compact,delete", "delete"),
            ("unclean.leader.election.enable", "true", "false"),
            ("min.insync.replicas", "1", "at least 2"),
            ("max.message.bytes", "1048588", "at least 8454144"),
            ("write.caching", "true", "false"),
        ];
        for (key, value, must) in cases {
            let mut reported = good(&config);
            reported.insert(key.into(), value.into());
            let found = judge(&config, 1, 3, &reported);
            let expected = format!("{key} is {value} and must be {must}");
            assert_eq!(found.unsafe_settings, [expected]);
        }
        let found = judge(&config, 2, 1, &good(&config));
        assert_eq!(found.unsafe_settings.len(), 2, "{found:?}");
    }

    #[test]
    fn what_a_broker_does_not_report_is_a_doubt_and_no_refusal() {
        let config = KafkaLogConfig::new("b:9092", "c");
        let mut reported = good(&config);
        reported.remove("min.insync.replicas");
        let found = judge(&config, 1, 5, &reported);
        assert_eq!(found.not_reported, ["min.insync.replicas"]);
        assert!(found.unsafe_settings.is_empty(), "{found:?}");
    }
}
