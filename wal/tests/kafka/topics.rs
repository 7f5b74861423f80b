//! Which topics are made and which are refused.

use std::collections::HashMap;

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use shoal_types::{LogId, Offset, ShardId};
use shoal_wal::kafka::{KafkaConfigError, KafkaLogConfig, KafkaLogStore};
use shoal_wal::log::{LogError, LogStore};
use shoal_wal::record::{Genesis, Record};

use crate::support::{PATIENCE, Stack, append, collect, in_time, make, open, refused, texts};

async fn settings(stack: &Stack, topic: &str) -> HashMap<String, String> {
    let asked = [ResourceSpecifier::Topic(topic)];
    let told = stack
        .admin()
        .describe_configs(&asked, &AdminOptions::new())
        .await
        .expect("told");
    let entries = told.into_iter().next().expect("one").expect("known");
    let entries = entries.entries.into_iter();
    entries.filter_map(|e| Some((e.name, e.value?))).collect()
}

async fn make_by_hand(stack: &Stack, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let made = stack
        .admin()
        .create_topics([&new], &AdminOptions::new())
        .await
        .expect("asked");
    made[0].as_ref().expect("made");
}

/// Settings as they must be, so that only what a test changes is wrong.
const GOOD: [(&str, &str); 3] = [
    ("retention.ms", "-1"),
    ("unclean.leader.election.enable", "false"),
    ("max.message.bytes", "16777216"),
];

/// Appends as another program would.
fn produce_by_hand(stack: &Stack, topic: &str, payload: &[u8], compression: &str) {
    let producer: BaseProducer = stack
        .client()
        .set("compression.type", compression)
        .create()
        .expect("a producer");
    producer
        .send(BaseRecord::<(), [u8]>::to(topic).payload(payload))
        .map_err(|(e, _)| e)
        .expect("taken");
    producer.flush(PATIENCE).expect("delivered");
}

fn genesis(cluster: &str, shard: ShardId, topic: &str) -> bytes::Bytes {
    let genesis = Genesis {
        cluster: cluster.into(),
        shard,
        topic: topic.into(),
    };
    Record::genesis(genesis).encode()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_made_with_the_settings_that_the_log_rests_on() {
    let stack = Stack::shared();
    let store = open(&stack.config());
    let (shard, id, _log) = make(&store).await;
    let found = settings(stack, &store.topic_name(shard, id)).await;
    for (key, value) in [
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("cleanup.policy", "delete"),
        ("unclean.leader.election.enable", "false"),
        ("min.insync.replicas", "1"),
    ] {
        assert_eq!(found[key], value, "{key}");
    }
    let bytes_max: usize = found["max.message.bytes"].parse().expect("a number");
    assert!(bytes_max > 8 << 20, "{bytes_max}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_log_made_has_a_name_of_its_own_and_none_is_lost_from_sight() {
    let store = open(&Stack::shared().config());
    let shard = ShardId::generate();
    // As after a crash between making a log and noting its id.
    let orphan = store.create(shard).await.expect("made");
    let used = store.create(shard).await.expect("made again");
    assert_ne!(orphan, used);
    let mut listed = store.list().await.expect("listed");
    listed.sort_unstable();
    assert_eq!(listed, [(shard, orphan), (shard, used)]);
    let log = store.open(shard, used).await.expect("opens");
    append(&*log, "here").await.expect("taken");
    let log = store.open(shard, orphan).await.expect("opens");
    assert_eq!(log.bounds().await.expect("bounds"), (Offset(0), Offset(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_an_unsafe_setting_is_refused_by_name() {
    let stack = Stack::shared();
    let store = open(&stack.config());
    let cases = [
        ("retention.ms", "604800000"),
        ("retention.bytes", "1073741824"),
        ("cleanup.policy", "compact"),
        ("unclean.leader.election.enable", "true"),
        ("max.message.bytes", "1048588"),
    ];
    for (key, value) in cases {
        let (shard, id, _log) = make(&store).await;
        let topic = store.topic_name(shard, id);
        let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set(key, value);
        let changes = GOOD.into_iter().filter(|(k, _)| *k != key);
        let change = changes.fold(change, |change, (k, v)| change.set(k, v));
        let changed = stack
            .admin()
            .alter_configs([&change], &AdminOptions::new())
            .await
            .expect("asked");
        changed[0].as_ref().expect("changed");
        let why = refused(store.open(shard, id).await.err());
        assert!(
            why.starts_with(&format!("{key} is {value} and must be")),
            "{why}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_and_too_many_partitions_are_refused() {
    let stack = Stack::shared();
    let mut config = stack.config();
    let (shard, id, _log) = make(&open(&config)).await;
    config.replication_factor = 3;
    config.min_insync_replicas = 2;
    let store = open(&config);
    let why = refused(store.open(shard, id).await.err());
    assert!(
        why.contains("replication factor is 1 and must be at least 3"),
        "{why}"
    );
    assert!(
        why.contains("min.insync.replicas is 1 and must be at least 2"),
        "{why}"
    );
    let made = store.create(shard).await;
    let why = made
        .expect_err("one broker cannot hold three replicas")
        .to_string();
    assert!(why.contains("kafka.replication_factor is 3"), "{why}");

    let config = stack.config();
    let store = open(&config);
    let (shard, id) = (ShardId::generate(), LogId::generate());
    make_by_hand(stack, &store.topic_name(shard, id), 2, &GOOD).await;
    let why = refused(store.open(shard, id).await.err());
    assert!(why.contains("2 partitions"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_another_log_is_refused() {
    let stack = Stack::shared();
    let config = stack.config();
    let store = open(&config);
    let other = ShardId::generate();
    type Make = fn(&str, ShardId, &str) -> bytes::Bytes;
    let cases: [(Option<Make>, &str); 4] = [
        (None, "is empty"),
        (Some(|_, _, _| "hello".into()), "is no genesis"),
        (
            Some(|_, shard, topic| genesis("elsewhere", shard, topic)),
            "elsewhere",
        ),
        (
            Some(|cluster, shard, _| genesis(cluster, shard, "moved")),
            "moved",
        ),
    ];
    for (first, why) in cases {
        let (shard, id) = (ShardId::generate(), LogId::generate());
        let topic = store.topic_name(shard, id);
        make_by_hand(stack, &topic, 1, &GOOD).await;
        if let Some(first) = first {
            let record = first(&config.cluster, shard, &topic);
            produce_by_hand(stack, &topic, &record, "none");
        }
        let said = refused(store.open(shard, id).await.err());
        assert!(said.contains(why), "{said}");
    }
    let (shard, id) = (ShardId::generate(), LogId::generate());
    let topic = store.topic_name(shard, id);
    make_by_hand(stack, &topic, 1, &GOOD).await;
    let record = genesis(&config.cluster, other, &topic);
    produce_by_hand(stack, &topic, &record, "none");
    let said = refused(store.open(shard, id).await.err());
    assert!(said.contains(&other.to_string()), "{said}");
}

/// The fold skips and counts them; the log hands them out as they are, whatever they are packed in.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_bytes_in_the_log_are_handed_out() {
    let stack = Stack::shared();
    let store = open(&stack.config());
    let (shard, id, log) = make(&store).await;
    let topic = store.topic_name(shard, id);
    append(&*log, "ours").await.expect("taken");
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let text = format!("{compression} ").repeat(100);
        produce_by_hand(stack, &topic, text.as_bytes(), compression);
    }
    append(&*log, "ours again").await.expect("taken");
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let (found, error) = collect(&mut *reader, 7).await;
    assert!(error.is_none(), "{error:?}");
    let words: Vec<_> = texts(&found)
        .iter()
        .map(|t| t.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        words,
        ["ours", "none", "gzip", "snappy", "lz4", "zstd", "ours"]
    );
}

/// This broker would make a topic for anyone who asks about one.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_gone_is_not_made_again_by_accident() {
    let stack = Stack::shared();
    let mut config = stack.config();
    config.commit_timeout_ms = 2_000;
    // How long a topic that brokers do not know may be one that they do not know yet.
    let patience = ("topic.metadata.propagation.max.ms".into(), "1000".into());
    config.options.extend([patience]);
    let store = open(&config);
    let (shard, id, log) = make(&store).await;
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let topic = store.topic_name(shard, id);
    let deleted = stack
        .admin()
        .delete_topics(&[&topic], &AdminOptions::new())
        .await
        .expect("asked");
    deleted[0].as_ref().expect("deleted");
    let late = append(&*log, "late").await;
    assert!(late.is_err(), "{late:?}");
    let never = store.open(shard, LogId::generate()).await;
    assert!(matches!(never, Err(LogError::NotFound { .. })), "{never:?}");
    let gone = store.open(shard, id).await;
    assert!(matches!(gone, Err(LogError::NotFound { .. })), "{gone:?}");
    let unread = in_time(reader.next()).await;
    assert!(unread.is_err(), "{unread:?}");
    assert_eq!(store.list().await.expect("listed"), []);
}

#[test]
fn options_are_passed_on_and_bad_ones_are_named() {
    let with = |key: &str, value: &str| {
        let mut config = KafkaLogConfig::new("127.0.0.1:1", "c");
        config.options.insert(key.into(), value.into());
        KafkaLogStore::open(config)
            .err()
            .map(|e| (e.to_string(), e))
    };
    let (said, error) = with("no.such.option", "1").expect("refused");
    assert!(matches!(error, KafkaConfigError::Client(_)));
    assert!(said.contains("no.such.option"), "{said}");
    let (said, error) = with("acks", "0").expect("refused");
    assert!(matches!(error, KafkaConfigError::Owned { .. }));
    assert!(said.contains("kafka.acks"), "{said}");
    assert!(with("ssl.ca.location", "/no/such/file").is_none_or(|(s, _)| s.contains("ssl.ca")));
    assert_eq!(with("sasl.mechanism", "SCRAM-SHA-512").map(|e| e.0), None);
}
