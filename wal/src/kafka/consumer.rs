//! The consumers of the process: as a rule one, with a queue for each shard's topic.
//!
//! ```text
//!  brokers ──fetch──► consumer ──► queue of topic a ──► reader of a
//!                        │   └───► queue of topic b ──► reader of b
//!                        └───────► its own queue ─────► thread (errors, statistics)
//! ```
//!
//! A consumer that brings nothing although it was pointed at its topic anew is retired: another one
//! takes its place, and its readers go over to that.
//!
//! A queue belongs to one reader. A second reader of the same topic, rare, gets its place in
//! another consumer, which is made when it is needed and goes with its last reader.
//!
//! No thread polls for records: the client calls back when a queue gets its first record, and the
//! reader's own task takes what is there. It waits only after it found the queue empty, and a call
//! in between is not lost (`Notify` keeps it).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::Offset as At;
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use tokio::sync::Notify;

use super::config::{KafkaConfigError, KafkaLogConfig};
use super::native;
use super::reports::Reports;
use super::stats::Counters;
use crate::log::LogError;

/// How long a thread waits for the next report before it looks whether to end.
const POLL: Duration = Duration::from_millis(200);

/// How long a topic is looked up before it is left to the client.
const LOOK_UP: Duration = Duration::from_secs(2);

type Client = BaseConsumer<Reports>;

/// All consumers.
pub(super) struct Consumers {
    settings: ClientConfig,
    counters: Arc<Counters>,
    first: Mutex<Arc<Member>>,
    others: Mutex<Vec<Arc<Member>>>,
}

/// One consumer.
struct Member {
    client: Arc<Client>,
    topics: Mutex<HashSet<String>>,
    ended: Arc<AtomicBool>,
    /// Its readers are to go over to another one.
    retired: AtomicBool,
    /// For tests: it fetches nothing that it is given.
    stuck: AtomicBool,
}

/// A topic's queue in one consumer, from an offset on.
pub(super) struct Assignment {
    member: Arc<Member>,
    topic: String,
    /// `None` only while it is dropped.
    queue: Option<PartitionQueue<Reports>>,
}

impl std::fmt::Debug for Consumers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let others = self.others.lock().len();
        f.debug_struct("Consumers")
            .field("others", &others)
            .finish()
    }
}

impl Consumers {
    pub(super) fn new(
        config: &KafkaLogConfig,
        counters: &Arc<Counters>,
    ) -> Result<Self, KafkaConfigError> {
        let settings = config.consumer();
        let first = Member::start(&settings, counters)
            .map_err(|e| KafkaConfigError::Client(e.to_string()))?;
        Ok(Self {
            settings,
            counters: Arc::clone(counters),
            first: Mutex::new(first),
            others: Mutex::new(Vec::new()),
        })
    }

    /// Begins to fetch a topic. `wake` is told when there is something to take. Blocking, shortly.
    pub(super) fn assign(
        &self,
        topic: &str,
        from: u64,
        wake: &Arc<Notify>,
    ) -> Result<Assignment, LogError> {
        let member = self.member_without(topic)?;
        let assignment = Member::assign(&member, topic, from, wake);
        assignment.map_err(|e| LogError::Io(format!("cannot read topic {topic}: {e}")))
    }

    /// Has the first consumer fetch nothing more; `for_good`: not even what it is pointed at anew.
    pub(super) fn pause_for_test(&self, for_good: bool) -> KafkaResult<()> {
        let first = Arc::clone(&self.first.lock());
        first.stuck.store(for_good, SeqCst);
        first.client.pause(&first.client.assignment()?)
    }

    /// Has another consumer take the place of the one that an assignment is of.
    pub(super) fn retire(&self, assignment: &Assignment) {
        let old = &assignment.member;
        if old.retired.swap(true, SeqCst) {
            return;
        }
        let mut first = self.first.lock();
        if Arc::ptr_eq(&first, old) {
            match Member::start(&self.settings, &self.counters) {
                Ok(fresh) => *first = fresh,
                Err(error) => {
                    old.retired.store(false, SeqCst);
                    tracing::error!(%error, "cannot start another Kafka consumer");
                }
            }
        }
    }

    /// A consumer that does not read the topic yet; it counts as reading it from now on.
    fn member_without(&self, topic: &str) -> Result<Arc<Member>, LogError> {
        let first = Arc::clone(&self.first.lock());
        if first.topics.lock().insert(topic.to_owned()) {
            return Ok(first);
        }
        let mut others = self.others.lock();
        others.retain(|m| Arc::strong_count(m) > 1 && !m.retired.load(SeqCst));
        for member in &*others {
            if member.topics.lock().insert(topic.to_owned()) {
                return Ok(Arc::clone(member));
            }
        }
        let member = Member::start(&self.settings, &self.counters)
            .map_err(|e| LogError::Io(format!("cannot start a Kafka consumer: {e}")))?;
        member.topics.lock().insert(topic.to_owned());
        others.push(Arc::clone(&member));
        Ok(member)
    }
}

impl Member {
    fn start(settings: &ClientConfig, counters: &Arc<Counters>) -> KafkaResult<Arc<Self>> {
        let context = Reports::new("consumer", counters);
        let client = Arc::new(Client::from_config_and_context(settings, context)?);
        let ended = Arc::new(AtomicBool::new(false));
        let (polled, end) = (Arc::clone(&client), Arc::clone(&ended));
        let thread = std::thread::Builder::new().name("shoal-kafka-in".into());
        let started = thread.spawn(move || {
            while !end.load(SeqCst) {
                // Records come through the topics' queues; here are reports, served by the call.
                if let Some(Err(error)) = polled.poll(POLL) {
                    tracing::debug!(%error, "Kafka consumer");
                }
            }
            // The last one closes the consumer, which may take a while: here nobody waits for it.
            drop(polled);
        });
        started.map_err(|e| KafkaError::ClientCreation(e.to_string()))?;
        Ok(Arc::new(Self {
            client,
            topics: Mutex::new(HashSet::new()),
            ended,
            retired: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        }))
    }

    fn assign(
        member: &Arc<Self>,
        topic: &str,
        from: u64,
        wake: &Arc<Notify>,
    ) -> KafkaResult<Assignment> {
        let mut assignment = Assignment {
            member: Arc::clone(member),
            topic: topic.to_owned(),
            queue: None,
        };
        // A consumer that is given a topic it does not know takes about a second to look it up.
        let known = member.client.fetch_metadata(Some(topic), LOOK_UP);
        if let Err(error) = known {
            tracing::debug!(topic, %error, "the consumer has to look for it by itself");
        }
        // The queue first: what is fetched before it is split off would go to the consumer's own.
        let mut queue = member
            .client
            .split_partition_queue(topic, 0)
            .ok_or_else(|| KafkaError::Subscription(format!("no queue for {topic}")))?;
        let wake = Arc::clone(wake);
        queue.set_nonempty_callback(move || wake.notify_one());
        assignment.queue = Some(queue);
        let mut list = TopicPartitionList::with_capacity(1);
        let at = i64::try_from(from).unwrap_or(i64::MAX);
        list.add_partition_offset(topic, 0, At::Offset(at))?;
        member.client.incremental_assign(&list)?;
        // A pause outlives the assignment that it was for.
        if !member.stuck.load(SeqCst) {
            member.client.resume(&list)?;
        }
        Ok(assignment)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
    }
}

impl Assignment {
    pub(super) fn queue(&self) -> &PartitionQueue<Reports> {
        self.queue.as_ref().expect("taken by drop only")
    }

    /// Whether its consumer was retired.
    pub(super) fn is_retired(&self) -> bool {
        self.member.retired.load(SeqCst)
    }

    /// The end of the topic as the last fetch saw it.
    pub(super) fn end_seen(&self) -> Option<u64> {
        native::end_seen(self.member.client.client().native_ptr(), &self.topic)
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.topic, 0);
        if let Err(error) = self.member.client.incremental_unassign(&list) {
            tracing::debug!(topic = self.topic, %error, "was not assigned");
        }
        // The next reader's queue is the same one to the client: this one's callback must be off
        // before that one's is set.
        self.queue = None;
        self.member.topics.lock().remove(&self.topic);
    }
}
