//! One shard's topic as a log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rdkafka::Offset as At;
use rdkafka::TopicPartitionList;
use rdkafka::admin::AdminOptions;
use rdkafka::error::KafkaError;
use shoal_types::{Offset, ShardId};
use tokio::sync::oneshot;

use super::Shared;
use super::ledger::Ledger;
use super::reader::KafkaReader;
use crate::log::{AppendReceipt, Log, LogError, LogReader};

/// How long a broker is asked before the question counts as failed.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Between questions that might be answered better soon.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often a log must be found to end too early before that is believed.
const LOST_TAIL_LOOKS: u32 = 5;

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
        let asked = self
            .shared
            .blocking(move || shared.asker().fetch_watermarks(&topic, 0, ASK_TIMEOUT));
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

    pub(super) fn io(&self, what: &str, error: &KafkaError) -> LogError {
        LogError::Io(format!("topic {}: {what}: {error}", self.topic.name))
    }
}

#[async_trait]
impl Log for KafkaLog {
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
        let failed = |e: KafkaError| self.io("deleting records", &e);
        let mut list = TopicPartitionList::with_capacity(1);
        let at = At::Offset(i64::try_from(below).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic.name, 0, at)
            .map_err(failed)?;
        let options = AdminOptions::new()
            .request_timeout(Some(ASK_TIMEOUT))
            .operation_timeout(Some(ASK_TIMEOUT));
        let deleted = self.shared.admin.delete_records(&list, &options).await;
        for one in deleted.map_err(failed)?.elements() {
            one.error().map_err(failed)?;
        }
        self.topic.starts_at(below);
        Ok(())
    }

    fn retained_bytes(&self) -> u64 {
        self.topic.ledger().bytes()
    }
}
