//! One shard's topic as a log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rdkafka::Offset as At;
use rdkafka::TopicPartitionList;
use rdkafka::admin::AdminOptions;
use rdkafka::client::Client;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use shoal_types::{Offset, ShardId};
use tokio::sync::oneshot;

use super::Shared;
use super::config::Acks;
use super::ledger::Ledger;
use super::reader::KafkaReader;
use super::reports::Reports;
use crate::log::{AppendReceipt, Log, LogError, LogReader};

/// How long a broker is asked before the question counts as failed.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one broker is.
const ASK_ONE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between questions that might be answered better soon.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often a log must be found to end too early before that is believed.
const LOST_TAIL_LOOKS: u32 = 20;

/// What is known here of one topic, shared by all that use it.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) shard: ShardId,
    pub(super) name: String,
    /// The log's first offset, as far as it was told here. Only rises.
    start: AtomicU64,
    ledger: Mutex<Ledger>,
}

impl Topic {
    pub(super) fn new(shard: ShardId, name: String) -> Self {
        Self {
            shard,
            name,
            start: AtomicU64::new(0),
            ledger: Mutex::new(Ledger::default()),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    pub(super) fn start(&self) -> u64 {
        self.start.load(SeqCst)
    }

    fn starts_at(&self, start: u64) {
        if self.start.fetch_max(start, SeqCst) < start {
            self.ledger().trim(start);
        }
    }
}

/// A handle of one shard's log.
#[derive(Debug)]
pub(super) struct KafkaLog {
    pub(super) shared: Arc<Shared>,
    pub(super) topic: Arc<Topic>,
}

impl KafkaLog {
    /// Asks the broker for the first offset kept and the one past the last that counts.
    pub(super) async fn ask_bounds(&self) -> Result<(u64, u64), LogError> {
        let (shared, topic) = (Arc::clone(&self.shared), self.topic.name.clone());
        let asked = self.shared.blocking(move || {
            let client = shared.asker();
            let deadline = Instant::now() + ASK_TIMEOUT;
            loop {
                match client.fetch_watermarks(&topic, 0, ASK_ONE_TIMEOUT) {
                    Err(e) if may_pass(&e) && Instant::now() < deadline => {
                        std::thread::sleep(ASK_AGAIN);
                        find_leader(client, &topic);
                    }
                    answer => return answer,
                }
            }
        });
        let (low, high) = asked
            .await?
            .map_err(|e| self.io("asking for its bounds", &e))?;
        // A topic never written to may be told as -1.
        let start = u64::try_from(low).unwrap_or(0);
        let end = u64::try_from(high).unwrap_or(0).max(start);
        self.topic.starts_at(start);
        Ok((start, end))
    }

    /// What keeps a reader from standing at `at`, if anything. A log that seems to end before it
    /// is looked at again: a leader just elected may not know its end yet.
    pub(super) async fn check_within(&self, at: u64) -> Result<(), LogError> {
        let mut looks = 0;
        loop {
            let (start, end) = self.ask_bounds().await?;
            if at < start {
                return Err(LogError::BelowStart {
                    asked: Offset(at),
                    start: Offset(start),
                });
            }
            if at <= end {
                return Ok(());
            }
            looks += 1;
            if looks == LOST_TAIL_LOOKS {
                return Err(LogError::LostTail {
                    shard: self.topic.shard,
                    asked: Offset(at),
                    end: Offset(end),
                });
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn delete_below(&self, below: u64) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(1);
        let at = At::Offset(i64::try_from(below).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic.name, 0, at)?;
        let options = AdminOptions::new()
            .request_timeout(Some(ASK_TIMEOUT))
            .operation_timeout(Some(ASK_TIMEOUT));
        let deleted = self.shared.admin.delete_records(&list, &options).await?;
        for one in deleted.elements() {
            one.error()?;
        }
        Ok(())
    }

    pub(super) fn io(&self, what: &str, error: &KafkaError) -> LogError {
        LogError::Io(format!("topic {}: {what}: {error}", self.topic.name))
    }
}

/// Whether another broker, or the same one later, may answer better. Where the client only asks
/// questions it keeps to the leader that it knew, and to one whose connection it gave up.
fn may_pass(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    !matches!(
        error.rdkafka_error_code(),
        None | Some(
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::TopicAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed
        )
    )
}

/// Has the client ask who leads a topic's partition now.
fn find_leader(client: &Client<Reports>, topic: &str) {
    if let Err(error) = client.fetch_metadata(Some(topic), ASK_ONE_TIMEOUT) {
        tracing::debug!(topic, %error, "asking for its leader");
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn receipts_come_first(&self) -> bool {
        // One broker's word is no proof: another one may take its place without the record.
        self.shared.config.acks == Acks::All
    }

    fn append(&self, record: Bytes) -> AppendReceipt {
        let (bytes, max) = (record.len(), self.shared.config.record_bytes_max);
        if bytes > max {
            let (sender, receipt) = oneshot::channel();
            let _ = sender.send(Err(LogError::TooLarge { bytes, max }));
            return receipt;
        }
        self.shared.producer.append(&self.topic, &record)
    }

    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        if self.shared.is_closed() {
            return Err(LogError::Closed);
        }
        self.check_within(from.0).await?;
        let log = Self {
            shared: Arc::clone(&self.shared),
            topic: Arc::clone(&self.topic),
        };
        let reader = KafkaReader::open(log, from.0).await?;
        Ok(Box::new(reader))
    }

    async fn bounds(&self) -> Result<(Offset, Offset), LogError> {
        if self.shared.is_closed() {
            return Err(LogError::Closed);
        }
        let (start, end) = self.ask_bounds().await?;
        Ok((Offset(start), Offset(end)))
    }

    async fn trim(&self, below: Offset) -> Result<(), LogError> {
        let (start, end) = self.ask_bounds().await?;
        let below = below.0.min(end);
        if below <= start {
            return Ok(());
        }
        let mut deleted = self.delete_below(below).await;
        if deleted.as_ref().is_err_and(may_pass) {
            let (shared, topic) = (Arc::clone(&self.shared), self.topic.name.clone());
            self.shared
                .blocking(move || find_leader(shared.asker(), &topic))
                .await?;
            deleted = self.delete_below(below).await;
        }
        deleted.map_err(|e| self.io("deleting records", &e))?;
        self.topic.starts_at(below);
        Ok(())
    }

    fn retained_bytes(&self) -> u64 {
        self.topic.ledger().bytes()
    }
}
