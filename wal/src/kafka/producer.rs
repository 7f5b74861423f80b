//! The producer of the process: one connection and one thread for all shards.
//!
//! An append is counted, given to the client and answered by the client's delivery report, on the
//! thread that polls for these. Idempotence keeps the order of a topic's records through retries;
//! whether an append took effect is [`outcome`](super::outcome)'s to say.
//!
//! An idempotent producer that lost count of what it sent is of no more use; often it says so itself
//! (a fatal error). Then the next append makes another one; what the old one still had is answered
//! by its own thread, which ends when nothing is left. A record that it sent may get into the log behind later
//! ones: the contract's `Unknown`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;
use shoal_types::Offset;
use tokio::sync::oneshot;

use super::config::{KafkaConfigError, KafkaLogConfig};
use super::log::Topic;
use super::native;
use super::outcome;
use super::reports::Reports;
use super::stats::Counters;
use crate::log::{AppendReceipt, LogError};

/// How long a thread waits for the next delivery report before it looks whether to end.
const POLL: Duration = Duration::from_millis(100);

/// What a broker answers a producer whose numbers it does not know. Not all of these are fatal to
/// the client: after 32,767 lost batches its epoch begins anew at 0, and all fails until it has
/// counted up again (librdkafka #3720).
const LOST_COUNT: [RDKafkaErrorCode; 4] = [
    RDKafkaErrorCode::OutOfOrderSequenceNumber,
    RDKafkaErrorCode::DuplicateSequenceNumber,
    RDKafkaErrorCode::InvalidProducerEpoch,
    RDKafkaErrorCode::UnknownProducerId,
];

#[derive(Debug)]
pub(super) struct Producer {
    config: KafkaLogConfig,
    counters: Arc<Counters>,
    /// `None`: closed. Held for reading while something is given to the client, so that none gets
    /// more after it was retired.
    current: RwLock<Option<Arc<Client>>>,
    /// Those that still have something to answer, the current one included.
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// One client of librdkafka.
struct Client {
    number: u64,
    native: BaseProducer<Delivery>,
    /// Nothing more is given to it; its thread ends when all is answered.
    retired: AtomicBool,
    /// What it still has is not sent any more.
    failed: AtomicBool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("number", &self.number)
            .finish()
    }
}

/// A record that waits for its delivery report.
pub(super) struct Pending {
    receipt: oneshot::Sender<Result<Offset, LogError>>,
    topic: Arc<Topic>,
    bytes: usize,
    began: Instant,
}

struct Delivery {
    counters: Arc<Counters>,
    reports: Reports,
    timeout_ms: u64,
    /// Brokers do not go along with the client's numbers: it will not get over that soon.
    spent: AtomicBool,
}

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.reports.log(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        self.reports.stats(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.reports.error(error, reason);
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = Box<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Box<Pending>) {
        let outcome = match result {
            Ok(message) => match u64::try_from(message.offset()) {
                Ok(offset) => Ok(Offset(offset)),
                // A retry was answered with "had it already" by a broker that forgot where.
                Err(_) => Err(LogError::Unknown(
                    "it is in the log, but the broker does not say at which offset".into(),
                )),
            },
            Err((error, message)) => {
                let code = error
                    .rdkafka_error_code()
                    .unwrap_or(RDKafkaErrorCode::Unknown);
                if LOST_COUNT.contains(&code) {
                    self.spent.store(true, SeqCst);
                }
                let persisted = native::persisted(message);
                Err(outcome::of_failure(code, persisted, self.timeout_ms))
            }
        };
        pending.resolve(&self.counters, outcome);
    }
}

impl Pending {
    fn resolve(self, counters: &Counters, outcome: Result<Offset, LogError>) {
        counters
            .in_flight_bytes
            .fetch_sub(self.bytes as u64, SeqCst);
        counters.in_flight_records.fetch_sub(1, SeqCst);
        match &outcome {
            Ok(offset) => {
                self.topic.ledger().note(offset.0, self.bytes);
                counters.count_produce(self.began.elapsed(), self.bytes);
            }
            Err(error) => {
                let count = match error {
                    LogError::CommitTimeout { .. } => &counters.commit_timeouts,
                    LogError::Full(_) => &counters.refused_full,
                    _ => &counters.append_failures,
                };
                count.fetch_add(1, Relaxed);
            }
        }
        // The caller may have dropped the receipt; the append stands all the same.
        let _ = self.receipt.send(outcome);
    }
}

impl Producer {
    pub(super) fn new(
        config: &KafkaLogConfig,
        counters: &Arc<Counters>,
    ) -> Result<Self, KafkaConfigError> {
        let (client, thread) = Client::start(config, counters, 0)?;
        Ok(Self {
            config: config.clone(),
            counters: Arc::clone(counters),
            current: RwLock::new(Some(client)),
            threads: Mutex::new(vec![thread]),
        })
    }

    pub(super) fn append(&self, topic: &Arc<Topic>, record: &Bytes) -> AppendReceipt {
        let (sender, receipt) = oneshot::channel();
        if let Err(error) = self.admit(record.len()) {
            let _ = sender.send(Err(error));
            return receipt;
        }
        let pending = Box::new(Pending {
            receipt: sender,
            topic: Arc::clone(topic),
            bytes: record.len(),
            began: Instant::now(),
        });
        if let Err((error, pending)) = self.send(topic, record, pending) {
            pending.resolve(&self.counters, Err(error));
        }
        receipt
    }

    /// Counts the record as in flight, if there is room for it.
    fn admit(&self, bytes: usize) -> Result<(), LogError> {
        let counters = &self.counters;
        let bytes_max = self.config.queue_bytes_max as u64;
        let records_max = self.config.queue_records_max as u64;
        let all_bytes = counters.in_flight_bytes.fetch_add(bytes as u64, SeqCst) + bytes as u64;
        let all_records = counters.in_flight_records.fetch_add(1, SeqCst) + 1;
        if all_bytes <= bytes_max && all_records <= records_max {
            return Ok(());
        }
        counters.in_flight_bytes.fetch_sub(bytes as u64, SeqCst);
        counters.in_flight_records.fetch_sub(1, SeqCst);
        counters.refused_full.fetch_add(1, Relaxed);
        Err(LogError::Full(format!(
            "{all_records} records of {all_bytes} bytes wait for Kafka (at most {records_max} of {bytes_max})"
        )))
    }

    fn send(
        &self,
        topic: &Topic,
        record: &Bytes,
        mut pending: Box<Pending>,
    ) -> Result<(), (LogError, Box<Pending>)> {
        // Twice: a failed client is replaced by who notices first.
        for _ in 0..2 {
            let current = self.current.read();
            let Some(client) = &*current else {
                return Err((LogError::Closed, pending));
            };
            let number = client.number;
            if client.native.context().spent.load(SeqCst) {
                drop(current);
                match self.replace(number) {
                    Ok(()) => continue,
                    Err(e) => return Err((LogError::NotAppended(e.to_string()), pending)),
                }
            }
            let message = BaseRecord::<(), [u8], _>::with_opaque_to(&topic.name, pending)
                .partition(0)
                .payload(record);
            let Err((error, message)) = client.native.send(message) else {
                return Ok(());
            };
            drop(current);
            pending = message.delivery_opaque;
            // The client took nothing: these are definite.
            let error = match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::Fatal) => match self.replace(number) {
                    Ok(()) => continue,
                    Err(e) => LogError::NotAppended(e.to_string()),
                },
                Some(RDKafkaErrorCode::QueueFull) => LogError::Full(error.to_string()),
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => LogError::TooLarge {
                    bytes: record.len(),
                    max: self.config.record_bytes_max,
                },
                _ => LogError::NotAppended(error.to_string()),
            };
            return Err((error, pending));
        }
        let error = LogError::NotAppended("the producer failed twice in a row".into());
        Err((error, pending))
    }

    /// Puts another client in the place of this one. What it still has is answered as unknown: it
    /// must not be confirmed behind what the next one sends.
    fn replace(&self, failed: u64) -> Result<(), KafkaConfigError> {
        let mut current = self.current.write();
        let Some(client) = &*current else {
            return Ok(());
        };
        if client.number != failed {
            return Ok(());
        }
        let (new, thread) = Client::start(&self.config, &self.counters, failed + 1)?;
        tracing::warn!(
            number = new.number,
            "the Kafka producer lost count and was replaced"
        );
        self.counters.producers_replaced.fetch_add(1, Relaxed);
        client.retire(true);
        *current = Some(new);
        let mut threads = self.threads.lock();
        threads.retain(|t| !t.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// Takes no more; what is in flight is answered, within the commit timeout.
    pub(super) fn close(&self) {
        if let Some(client) = self.current.write().take() {
            client.retire(false);
        }
    }

    /// Waits until all is answered. Blocking.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a Kafka producer panicked");
            }
        }
    }

    /// Makes the current client fail for good, as when it lost count.
    pub(super) fn fail_for_test(&self) {
        if let Some(client) = &*self.current.read() {
            native::fail_for_test(client.native.client().native_ptr());
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Client {
    fn start(
        config: &KafkaLogConfig,
        counters: &Arc<Counters>,
        number: u64,
    ) -> Result<(Arc<Self>, std::thread::JoinHandle<()>), KafkaConfigError> {
        let context = Delivery {
            counters: Arc::clone(counters),
            reports: Reports::new("producer", counters),
            timeout_ms: config.commit_timeout_ms,
            spent: AtomicBool::new(false),
        };
        let native = BaseProducer::from_config_and_context(&config.producer(), context)
            .map_err(|e| KafkaConfigError::Client(e.to_string()))?;
        let client = Arc::new(Self {
            number,
            native,
            retired: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let polled = Arc::clone(&client);
        let thread = std::thread::Builder::new()
            .name("shoal-kafka-out".into())
            .spawn(move || polled.answer())
            .map_err(|e| KafkaConfigError::Client(format!("cannot start a thread: {e}")))?;
        Ok((client, thread))
    }

    fn retire(&self, failed: bool) {
        self.failed.store(failed, SeqCst);
        self.retired.store(true, SeqCst);
    }

    /// Answers appends until the client is retired and nothing is left to answer.
    fn answer(&self) {
        loop {
            self.native.poll(POLL);
            if !self.retired.load(SeqCst) {
                continue;
            }
            if self.failed.load(SeqCst) {
                self.native.purge(PurgeConfig::default().queue().inflight());
            }
            if self.native.in_flight_count() == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
