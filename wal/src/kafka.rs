//! The log in Kafka, or in what speaks its protocol: one topic with one partition for each shard.
//!
//! ```text
//!  append() ─► producer (one a process) ─► broker ─► all replicas in sync ─► receipt
//!                                            │
//!  next()  ◄── queue of the topic ◄── consumer (one a process) ◄── long poll, past that point
//! ```
//!
//! - [`config`]: what a user may choose, and what the protocol rests on.
//! - [`topic`]: names, and the settings that a topic is made with and judged by.
//! - [`producer`] and [`outcome`]: appends, and what their failures mean.
//! - [`consumer`] and [`reader`]: one consumer, many readers; what ends a reader.
//! - [`log`]: bounds, trim. [`ledger`]: retained bytes without asking.
//!
//! **Made once.** `create` makes a topic whose name no other ever had, and writes the `Genesis`
//! to it at offset 0. A crash leaves a topic without a `Genesis` or one that meta does not name;
//! either way nobody uses it, and `list` shows it.
//!
//! **Opened with care.** `open` refuses a topic whose settings would lose records, or whose
//! `Genesis` names another log. Settings that the broker does not report are a warning.
//!
//! **Durable** is what the brokers' high watermark has passed: only that is readable. `bounds` asks
//! the partition's leader; its end is no barrier, for a leader that was deposed answers too.
//!
//! No thread is held by an append or a reader that waits. Questions to brokers block a thread of
//! the runtime's pool, at most [`BLOCKED_MAX`] at a time.

mod config;
mod consumer;
mod ledger;
mod log;
mod native;
mod outcome;
mod producer;
mod reader;
mod reports;
mod stats;
mod topic;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::Client;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaErrorCode;
use shoal_types::{LogId, Offset, ShardId};
use tokio::sync::{Notify, Semaphore};

use crate::log::{Log, LogError, LogStore, receipt_outcome};
use crate::record::{Genesis, Payload, Record};
pub use config::{Acks, KafkaConfigError, KafkaLogConfig};
use consumer::Consumers;
use log::{ASK_TIMEOUT, KafkaLog, Topic};
use producer::Producer;
use reports::Reports;
use stats::{Counters, ReaderGauge};
pub use stats::{KafkaLogStats, PRODUCE_BUCKETS_MS};

/// Questions to brokers under way at once.
const BLOCKED_MAX: usize = 8;

/// What the store and its logs share.
struct Shared {
    config: KafkaLogConfig,
    counters: Arc<Counters>,
    producer: Producer,
    consumers: Consumers,
    admin: AdminClient<Reports>,
    asking: Arc<Semaphore>,
    topics: Mutex<HashMap<String, Weak<Topic>>>,
    readers: Mutex<Vec<Arc<ReaderGauge>>>,
    closed: AtomicBool,
    closing: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka")
            .field("brokers", &self.config.brokers)
            .field("cluster", &self.config.cluster)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// The client that asks about topics. Not the consumer: a broker answers the questions of one
    /// connection one by one, and there they would wait behind a fetch that is held.
    fn asker(&self) -> &Client<Reports> {
        self.admin.inner()
    }

    /// Runs something that blocks on a broker.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LogError> {
        let closed = |_| LogError::Closed;
        let place = Arc::clone(&self.asking).acquire_owned();
        let place = place.await.map_err(closed)?;
        // The place is held as long as the thread is, also when nobody waits for the answer.
        let done = tokio::task::spawn_blocking(move || {
            let answer = work();
            drop(place);
            answer
        });
        let done = done.await;
        done.map_err(|e| LogError::Io(format!("a question to Kafka was interrupted: {e}")))
    }

    fn topic(&self, shard: ShardId, name: &str) -> Arc<Topic> {
        let mut topics = self.topics.lock();
        if let Some(known) = topics.get(name).and_then(Weak::upgrade) {
            return known;
        }
        topics.retain(|_, topic| topic.strong_count() > 0);
        let topic = Arc::new(Topic::new(shard, name.to_owned()));
        topics.insert(name.to_owned(), Arc::downgrade(&topic));
        topic
    }

    fn add_reader(&self) -> Arc<ReaderGauge> {
        let gauge = Arc::new(ReaderGauge::default());
        self.readers.lock().push(Arc::clone(&gauge));
        gauge
    }

    fn remove_reader(&self, gauge: &Arc<ReaderGauge>) {
        self.readers.lock().retain(|g| !Arc::ptr_eq(g, gauge));
    }
}

/// All logs of one cluster in one Kafka.
#[derive(Debug)]
pub struct KafkaLogStore {
    shared: Arc<Shared>,
}

impl KafkaLogStore {
    /// Makes the clients. Asks no broker: one that is away is noticed by what needs it.
    ///
    /// # Errors
    /// Naming the setting that cannot be.
    pub fn open(config: KafkaLogConfig) -> Result<Self, KafkaConfigError> {
        config.check()?;
        if config.min_insync_replicas == 1 {
            tracing::warn!(
                "kafka.min_insync_replicas is 1: a broken broker loses acknowledged writes"
            );
        }
        let counters = Arc::new(Counters::default());
        let reports = Reports::new("admin", &counters);
        let admin = AdminClient::from_config_and_context(&config.admin(), reports)
            .map_err(|e| KafkaConfigError::Client(e.to_string()))?;
        let shared = Shared {
            producer: Producer::new(&config, &counters)?,
            consumers: Consumers::new(&config, &counters)?,
            admin,
            asking: Arc::new(Semaphore::new(BLOCKED_MAX)),
            topics: Mutex::default(),
            readers: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            counters,
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> KafkaLogStats {
        let readers = self.shared.readers.lock();
        self.shared.counters.read(&readers)
    }

    /// The Kafka cluster's own id. Asks a broker.
    ///
    /// # Errors
    /// [`LogError::Io`]: none answers.
    pub async fn cluster_id(&self) -> Result<String, LogError> {
        let shared = Arc::clone(&self.shared);
        let asked = self
            .shared
            .blocking(move || shared.asker().fetch_cluster_id(ASK_TIMEOUT))
            .await?;
        asked.ok_or_else(|| {
            LogError::Io(format!(
                "no broker of kafka.brokers = {:?} answers within {} ms",
                self.shared.config.brokers,
                ASK_TIMEOUT.as_millis()
            ))
        })
    }

    /// Whether a broker answers within a time.
    pub async fn answers(&self, within: Duration) -> bool {
        let shared = Arc::clone(&self.shared);
        // Of one topic: metadata of all would be more with every shard.
        let topic = self.shared.topics.lock().keys().next().cloned();
        // Not one of the questions whose number is bounded: it must not wait behind those.
        let asked = tokio::task::spawn_blocking(move || {
            let asked = shared.asker().fetch_metadata(topic.as_deref(), within);
            asked.is_ok()
        });
        let answered = tokio::time::timeout(within, asked).await;
        matches!(answered, Ok(Ok(true)))
    }

    /// Takes no more appends, ends all readers, and waits until what is in flight is answered,
    /// which takes up to the commit timeout. Dropping the store does the same without waiting.
    pub async fn close(&self) {
        self.begin_close();
        let shared = Arc::clone(&self.shared);
        // Not bounded by the semaphore, which others may hold for as long.
        let joined = tokio::task::spawn_blocking(move || shared.producer.join()).await;
        if let Err(error) = joined {
            tracing::error!(%error, "closing the Kafka log was interrupted");
        }
    }

    fn begin_close(&self) {
        self.shared.closed.store(true, SeqCst);
        self.shared.asking.close();
        self.shared.closing.notify_waiters();
        self.shared.producer.close();
    }

    /// For tests: makes the producer fail for good, as when it lost count of what it sent.
    #[doc(hidden)]
    pub fn fail_producer(&self) {
        self.shared.producer.fail_for_test();
    }

    /// Has the client fetch nothing of any topic, and say nothing of it; `for_good`: also of those
    /// that it is pointed at anew.
    ///
    /// # Errors
    /// The client's.
    #[doc(hidden)]
    pub fn stop_fetching_for_test(&self, for_good: bool) -> Result<(), String> {
        self.shared
            .consumers
            .pause_for_test(for_good)
            .map_err(|e| e.to_string())
    }

    /// The name of a log's topic.
    #[must_use]
    pub fn topic_name(&self, shard: ShardId, log: LogId) -> String {
        topic::name(&self.shared.config.cluster, shard, log)
    }

    async fn make_topic(&self, name: &str) -> Result<(), LogError> {
        let config = &self.shared.config;
        let settings = topic::at_creation(config);
        let replicas = TopicReplication::Fixed(config.replication_factor.into());
        let mut new = NewTopic::new(name, 1, replicas);
        for (key, value) in &settings {
            new = new.set(key, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(ASK_TIMEOUT * 2))
            .operation_timeout(Some(ASK_TIMEOUT));
        let failed = |what: String| LogError::Io(format!("cannot make topic {name}: {what}"));
        let made = self.shared.admin.create_topics([&new], &options).await;
        for one in made.map_err(|e| failed(e.to_string()))? {
            match one {
                // The name is new: an answer to an earlier attempt of this call was lost.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code @ RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    let factor = config.replication_factor;
                    return Err(failed(format!(
                        "{code}: kafka.replication_factor is {factor}, are there as many brokers?"
                    )));
                }
                Err((_, code)) => return Err(failed(code.to_string())),
            }
        }
        Ok(())
    }

    /// Refuses a topic that would lose records.
    async fn check_topic(&self, shard: ShardId, name: &str) -> Result<(), LogError> {
        let (shared, asked) = (Arc::clone(&self.shared), name.to_owned());
        let shape = self.shared.blocking(move || {
            let metadata = shared.asker().fetch_metadata(Some(&asked), ASK_TIMEOUT)?;
            shape_of(&metadata, &asked)
        });
        let io = |e: KafkaError| LogError::Io(format!("topic {name}: asking for it: {e}"));
        let Some((partitions, replicas)) = shape.await?.map_err(io)? else {
            return Err(LogError::NotFound { shard });
        };
        let reported = self.settings_of(name).await?;
        let judged = topic::judge(&self.shared.config, partitions, replicas, &reported);
        if !judged.not_reported.is_empty() {
            tracing::warn!(
                topic = name,
                settings = judged.not_reported.join(", "),
                "the broker does not report these settings; make sure of them"
            );
        }
        if judged.unsafe_settings.is_empty() {
            return Ok(());
        }
        Err(LogError::Refused {
            log: name.to_owned(),
            why: judged.unsafe_settings.join("; "),
        })
    }

    async fn settings_of(&self, name: &str) -> Result<HashMap<String, String>, LogError> {
        let failed = |what: String| LogError::Io(format!("topic {name}: its settings: {what}"));
        let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
        let asked = [ResourceSpecifier::Topic(name)];
        let told = self.shared.admin.describe_configs(&asked, &options).await;
        let mut settings = HashMap::new();
        for resource in told.map_err(|e| failed(e.to_string()))? {
            let resource = resource.map_err(|code| failed(code.to_string()))?;
            for entry in resource.entries {
                if let Some(value) = entry.value {
                    settings.insert(entry.name, value);
                }
            }
        }
        Ok(settings)
    }

    /// Refuses a topic that is another log's. One whose first records were trimmed has nothing to
    /// tell but its name.
    async fn check_genesis(&self, log: &KafkaLog) -> Result<(), LogError> {
        let (start, end) = log.ask_bounds().await?;
        if start > 0 {
            return Ok(());
        }
        let name = &log.topic.name;
        let refused = |why: String| LogError::Another {
            log: name.clone(),
            why,
        };
        if end == 0 {
            return Err(refused("it is empty and must begin with a genesis".into()));
        }
        let mut reader = log.read(Offset(0)).await?;
        let first = tokio::time::timeout(ASK_TIMEOUT, reader.next()).await;
        let first = first.map_err(|_| {
            LogError::Io(format!(
                "topic {name}: its first record did not come in time"
            ))
        })??;
        let (offset, bytes) = &first[0];
        let genesis = match Record::decode(bytes) {
            Ok(record) if *offset == Offset(0) => match record.payload {
                Payload::Genesis(genesis) => Some(genesis),
                _ => None,
            },
            _ => None,
        };
        let Some(genesis) = genesis else {
            return Err(refused(format!(
                "its first record, at offset {offset}, is no genesis: it was not made by ShoalDB"
            )));
        };
        let cluster = &self.shared.config.cluster;
        let found = (&genesis.cluster, genesis.shard, &genesis.topic);
        if found == (cluster, log.topic.shard, name) {
            return Ok(());
        }
        Err(refused(format!(
            "its genesis names shard {} of cluster {:?} in topic {}; it must name shard {} of cluster {cluster:?} in this one",
            genesis.shard, genesis.cluster, genesis.topic, log.topic.shard
        )))
    }
}

/// How many partitions a topic has and how many replicas the worst of them; `None`: there is no
/// such topic.
fn shape_of(metadata: &Metadata, topic: &str) -> Result<Option<(usize, usize)>, KafkaError> {
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
        return Ok(None);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok(None),
        Some(code) => return Err(KafkaError::MetadataFetch(code)),
    }
    let partitions = found.partitions();
    let replicas = partitions.iter().map(|p| p.replicas().len()).min();
    Ok(Some((partitions.len(), replicas.unwrap_or(0))))
}

impl Drop for KafkaLogStore {
    fn drop(&mut self) {
        self.begin_close();
    }
}

#[async_trait]
impl LogStore for KafkaLogStore {
    async fn create(&self, shard: ShardId) -> Result<LogId, LogError> {
        let id = LogId::generate();
        let name = self.topic_name(shard, id);
        self.make_topic(&name).await?;
        let genesis = Record::genesis(Genesis {
            cluster: self.shared.config.cluster.clone(),
            shard,
            topic: name.clone(),
        });
        let topic = self.shared.topic(shard, &name);
        let receipt = self.shared.producer.append(&topic, &genesis.encode());
        match receipt_outcome(receipt).await? {
            Offset(0) => Ok(id),
            other => Err(LogError::Io(format!(
                "topic {name}: its genesis came to stand at offset {other}, not first"
            ))),
        }
    }

    async fn open(&self, shard: ShardId, log: LogId) -> Result<Arc<dyn Log>, LogError> {
        let name = self.topic_name(shard, log);
        self.check_topic(shard, &name).await?;
        let log = KafkaLog {
            shared: Arc::clone(&self.shared),
            topic: self.shared.topic(shard, &name),
        };
        self.check_genesis(&log).await?;
        Ok(Arc::new(log))
    }

    async fn list(&self) -> Result<Vec<(ShardId, LogId)>, LogError> {
        let shared = Arc::clone(&self.shared);
        let listed = self.shared.blocking(move || {
            let metadata = shared.asker().fetch_metadata(None, ASK_TIMEOUT)?;
            let names = metadata.topics().iter().map(|t| t.name());
            Ok(names
                .filter_map(|name| topic::parse(&shared.config.cluster, name))
                .collect())
        });
        let io = |e: KafkaError| LogError::Io(format!("listing topics: {e}"));
        listed.await?.map_err(io)
    }

    async fn remove(&self, shard: ShardId) -> Result<(), LogError> {
        let logs = self.list().await?.into_iter();
        let of_shard = logs.filter(|(of, _)| *of == shard);
        let names: Vec<String> = of_shard
            .map(|(_, log)| self.topic_name(shard, log))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let options = AdminOptions::new()
            .request_timeout(Some(ASK_TIMEOUT * 2))
            .operation_timeout(Some(ASK_TIMEOUT));
        let failed = |what: String| LogError::Io(format!("cannot delete a topic: {what}"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let deleted = self.shared.admin.delete_topics(&names, &options).await;
        for one in deleted.map_err(|e| failed(e.to_string()))? {
            match one {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((name, code)) => return Err(failed(format!("{name}: {code}"))),
            }
        }
        Ok(())
    }

    fn kafka_stats(&self) -> Option<KafkaLogStats> {
        Some(self.stats())
    }
}
