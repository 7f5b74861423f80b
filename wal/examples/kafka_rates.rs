//! How long an append to the Kafka log takes, and how much it takes, beside a bare producer of the
//! same settings in the same run. Prints one JSON line a figure.
//!
//!     cargo run --release -p shoal-wal --example kafka_rates -- 127.0.0.1:9092 [REPLICAS [BYTES]]
//!
//! With BYTES only single records of that size.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use shoal_types::{LogId, Offset, ShardId};
use shoal_wal::kafka::{KafkaLogConfig, KafkaLogStore};
use shoal_wal::log::{Log, LogReader, LogStore, receipt_outcome};
use tokio::sync::oneshot;

type Failure = Box<dyn Error + Send + Sync>;

const ROUNDS: usize = 5;
const EACH: usize = 400;
const IN_FLIGHT: usize = 8;
const LARGE: usize = 1 << 20;
const LARGE_RECORDS: usize = 300;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let brokers = words.next().ok_or("name a broker, as host:port")?;
    let replicas: u16 = words.next().map_or(Ok(1), |w| w.parse())?;
    let mut config = KafkaLogConfig::new(brokers, format!("rates{}", LogId::generate()));
    config.replication_factor = replicas;
    config.min_insync_replicas = replicas.div_ceil(2);
    let bytes: Option<usize> = words.next().map(|w| w.parse()).transpose()?;
    let store = KafkaLogStore::open(config.clone())?;
    if let Some(bytes) = bytes {
        return one_at_a_time(&store, &config, bytes).await;
    }
    for bytes in [200, 64 << 10] {
        one_at_a_time(&store, &config, bytes).await?;
    }
    large_ones(&store, &config).await?;
    Ok(())
}

async fn make(store: &KafkaLogStore) -> Result<(String, Arc<dyn Log>), Failure> {
    let shard = ShardId::generate();
    let id = store.create(shard).await?;
    let log = store.open(shard, id).await?;
    Ok((store.topic_name(shard, id), log))
}

async fn one_at_a_time(
    store: &KafkaLogStore,
    config: &KafkaLogConfig,
    bytes: usize,
) -> Result<(), Failure> {
    let record = Bytes::from(vec![0xA5; bytes]);
    let (bare_topic, _) = make(store).await?;
    let (_, log) = make(store).await?;
    let (_, unread) = make(store).await?;
    let bare = Bare::new(config)?;
    let mut reader = log.read(Offset(1)).await?;
    let (mut produced, mut quiet) = (Vec::new(), Vec::new());
    let (mut acked, mut read) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // The first round warms up.
        let keep = |times: &mut Vec<Duration>, took| {
            if round > 0 {
                times.push(took);
            }
        };
        for _ in 0..EACH {
            let began = Instant::now();
            bare.send(&bare_topic, &record)?.await?;
            keep(&mut produced, began.elapsed());
        }
        for _ in 0..EACH {
            let began = Instant::now();
            receipt_outcome(unread.append(record.clone())).await?;
            keep(&mut quiet, began.elapsed());
        }
        for _ in 0..EACH {
            let began = Instant::now();
            let receipt = async {
                let outcome = receipt_outcome(log.append(record.clone())).await;
                (outcome, began.elapsed())
            };
            let read_back = async {
                let found = reader.next().await;
                (found, began.elapsed())
            };
            let ((outcome, ack_took), (found, read_took)) = tokio::join!(receipt, read_back);
            outcome?;
            assert_eq!(found?.len(), 1);
            keep(&mut acked, ack_took);
            keep(&mut read, ack_took.max(read_took));
        }
    }
    let size = format!("{bytes} bytes");
    let bare_ms = report(&size, "bare produce", &mut produced);
    report(&size, "ack where nobody reads", &mut quiet);
    report(&size, "ack", &mut acked);
    let read_ms = report(&size, "ack and read back", &mut read);
    for (i, part) in ["p50", "p99"].iter().enumerate() {
        figure(
            &format!("{size}: read back / bare produce, {part}"),
            read_ms[i] / bare_ms[i],
            "ratio",
        );
    }
    Ok(())
}

async fn large_ones(store: &KafkaLogStore, config: &KafkaLogConfig) -> Result<(), Failure> {
    let record = Bytes::from(vec![0xA5; LARGE]);
    let (bare_topic, _) = make(store).await?;
    let (_, log) = make(store).await?;
    let bare = Bare::new(config)?;
    for round in 0..2 {
        let began = Instant::now();
        let mut waiting = VecDeque::new();
        for _ in 0..LARGE_RECORDS {
            if waiting.len() == IN_FLIGHT
                && let Some(oldest) = waiting.pop_front()
            {
                let oldest: oneshot::Receiver<()> = oldest;
                oldest.await?;
            }
            waiting.push_back(bare.send(&bare_topic, &record)?);
        }
        for one in waiting {
            one.await?;
        }
        rate(round, "bare produce", began.elapsed());

        let (_, end) = log.bounds().await?;
        let reader = log.read(end).await?;
        let began = Instant::now();
        let reading = tokio::spawn(count(reader, LARGE_RECORDS));
        let mut waiting = VecDeque::new();
        for _ in 0..LARGE_RECORDS {
            if waiting.len() == IN_FLIGHT
                && let Some(oldest) = waiting.pop_front()
            {
                receipt_outcome(oldest).await?;
            }
            waiting.push_back(log.append(record.clone()));
        }
        for one in waiting {
            receipt_outcome(one).await?;
        }
        rate(round, "append, receipts", began.elapsed());
        reading.await??;
        rate(round, "append, read back too", began.elapsed());
    }
    let began = Instant::now();
    let reader = log.read(Offset(1)).await?;
    count(reader, 2 * LARGE_RECORDS).await?;
    rate(1, "replay", began.elapsed() / 2);
    Ok(())
}

async fn count(mut reader: Box<dyn LogReader>, records: usize) -> Result<(), Failure> {
    let mut seen = 0;
    while seen < records {
        seen += reader.next().await?.len();
    }
    Ok(())
}

fn rate(round: usize, what: &str, took: Duration) {
    if round > 0 {
        let megabytes = (LARGE * LARGE_RECORDS) as f64 / 1e6;
        figure(
            &format!("1 MiB, 8 in flight: {what}"),
            megabytes / took.as_secs_f64(),
            "MB/s",
        );
    }
}

fn report(size: &str, what: &str, times: &mut [Duration]) -> [f64; 2] {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let found = [at(0.5), at(0.99)];
    figure(&format!("{size}: {what}, p50"), found[0], "ms");
    figure(&format!("{size}: {what}, p99"), found[1], "ms");
    found
}

fn figure(name: &str, value: f64, unit: &str) {
    println!(
        "{}",
        serde_json::json!({ "name": name, "value": value, "unit": unit })
    );
}

/// A producer with nothing around it.
struct Bare(ThreadedProducer<Tell>);

struct Tell;

impl ClientContext for Tell {}

impl ProducerContext for Tell {
    type DeliveryOpaque = Box<oneshot::Sender<()>>;

    fn delivery(&self, result: &DeliveryResult<'_>, sender: Self::DeliveryOpaque) {
        if result.is_ok() {
            let _ = sender.send(());
        }
    }
}

impl Bare {
    fn new(config: &KafkaLogConfig) -> Result<Self, Failure> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &config.brokers);
        client.set("acks", "all");
        client.set("enable.idempotence", "true");
        client.set("linger.ms", "0");
        client.set(
            "message.max.bytes",
            (config.record_bytes_max + 1024).to_string(),
        );
        let producer = ThreadedProducer::from_config_and_context(&client, Tell)?;
        Ok(Self(producer))
    }

    fn send(&self, topic: &str, record: &Bytes) -> Result<oneshot::Receiver<()>, Failure> {
        let (sender, receiver) = oneshot::channel();
        let message = BaseRecord::<(), [u8], _>::with_opaque_to(topic, Box::new(sender))
            .partition(0)
            .payload(record);
        self.0.send(message).map_err(|(error, _)| error)?;
        Ok(receiver)
    }
}
