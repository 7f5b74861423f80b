//! What the client makes of answers that a healthy broker does not give: against the client's own
//! mock of a cluster.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use shoal_types::{Retry, ShardId};

use super::*;
use crate::log::receipt_outcome;

/// A commit timeout that no test waits for, however loaded the machine is.
const PATIENT_MS: u64 = 60_000;

struct World<'a> {
    brokers: MockCluster<'a, DefaultProducerContext>,
    producer: Producer,
    counters: Arc<Counters>,
    topic: Arc<Topic>,
}

fn world(timeout_ms: u64) -> World<'static> {
    let brokers = MockCluster::new(1).expect("a mock");
    brokers.create_topic("t", 1, 1).expect("a topic");
    let mut config = KafkaLogConfig::new(brokers.bootstrap_servers(), "c");
    config.commit_timeout_ms = timeout_ms;
    let counters = Arc::new(Counters::default());
    let producer = Producer::new(&config, &counters).expect("a producer");
    World {
        brokers,
        producer,
        counters,
        topic: Arc::new(Topic::new(ShardId::generate(), "t".into())),
    }
}

impl World<'_> {
    async fn append(&self, text: &'static str) -> Result<Offset, LogError> {
        let receipt = self
            .producer
            .append(&self.topic, &Bytes::from_static(text.as_bytes()));
        let patience = Duration::from_secs(90);
        let answered = tokio::time::timeout(patience, receipt_outcome(receipt)).await;
        answered.expect("every append is answered")
    }
}

#[tokio::test]
async fn answers_of_brokers_become_ours_with_care() {
    use RDKafkaRespErr as Code;
    let cases = [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Retry::Safe),
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, Retry::Safe),
        (
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            Retry::Unknown,
        ),
    ];
    for (code, retry) in cases {
        let world = world(PATIENT_MS);
        world.append("before").await.expect("taken");
        world
            .brokers
            .request_errors(RDKafkaApiKey::Produce, &[code]);
        let error = world.append("refused").await.expect_err("refused");
        assert_eq!(error.retry(), retry, "{code:?}: {error}");
        assert_eq!(world.counters.read(&[]).append_failures, 1);
    }
}

#[tokio::test]
async fn too_few_replicas_are_asked_again_until_the_commit_timeout() {
    use RDKafkaRespErr as Code;
    for code in [
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ] {
        let world = world(3_000);
        world.append("before").await.expect("taken");
        let passing = [code; 3];
        world
            .brokers
            .request_errors(RDKafkaApiKey::Produce, &passing);
        world.append("in time").await.expect("taken in the end");
        let lasting = [code; 200];
        world
            .brokers
            .request_errors(RDKafkaApiKey::Produce, &lasting);
        let error = world.append("too late").await.expect_err("given up");
        let LogError::CommitTimeout { timeout_ms: 3_000 } = error else {
            panic!("{code:?}: {error}");
        };
        assert_eq!(world.counters.read(&[]).commit_timeouts, 1);
    }
}

#[tokio::test]
async fn a_producer_that_brokers_no_longer_know_is_replaced() {
    use RDKafkaRespErr as Code;
    for code in [
        Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
    ] {
        let world = world(PATIENT_MS);
        world.append("before").await.expect("taken");
        world
            .brokers
            .request_errors(RDKafkaApiKey::Produce, &[code]);
        let failed = world.append("fails").await.expect_err("refused");
        assert_eq!(failed.retry(), Retry::Unknown, "{code:?}: {failed}");
        world.append("after").await.expect("taken by another one");
        assert_eq!(world.counters.read(&[]).producers_replaced, 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_closed_producer_answers_what_it_had_and_takes_no_more() {
    let world = world(PATIENT_MS);
    world.append("before").await.expect("taken");
    world.producer.close();
    let late = world.append("late").await;
    assert!(matches!(late, Err(LogError::Closed)), "{late:?}");
    world.producer.join();
    let stats = world.counters.read(&[]);
    assert_eq!((stats.in_flight_bytes, stats.in_flight_records), (0, 0));
}
