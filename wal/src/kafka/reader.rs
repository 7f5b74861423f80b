//! Reads one shard's topic in order.
//!
//! The client delivers what it fetched to the topic's queue and goes on by itself after a lost
//! connection, a restarted broker or a new leader. Three things it cannot be trusted with:
//! - It may deliver records again (its position goes back where it validates it, librdkafka #4249):
//!   what lies below the reader's own position is dropped.
//! - After a damaged batch it goes on behind it: the reader does not.
//! - After an error that ends its fetching it waits for ever: the reader asks the broker what is
//!   the case, and either reports it or points the client at its position again.
//! - Now and then it stops fetching after a broker came back, and says nothing: a reader to which
//!   nothing comes asks the broker whether there is something, and begins anew if so; if that does
//!   not help, with another client.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode as Code;
use shoal_types::Offset;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::consumer::Assignment;
use super::log::KafkaLog;
use super::stats::ReaderGauge;
use crate::log::{LogError, LogReader};

/// A batch handed out ends behind the record that reaches this.
const READ_BYTES_MAX: usize = 8 << 20;
const READ_RECORDS_MAX: usize = 4096;
/// How often a waiting reader looks without being told to. It should never find anything.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// A reader to which nothing comes for so long asks the broker where the log ends.
const QUIET_MAX: Duration = Duration::from_secs(3);
/// What the client may take to bring what the broker has.
const BRING_WAIT: Duration = Duration::from_secs(2);

/// How long is waited for a record behind a damaged batch, which as a rule was fetched with it.
const NEXT_WAIT: Duration = Duration::from_millis(500);
/// How long at another position.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// A position in one topic.
pub(super) struct KafkaReader {
    log: KafkaLog,
    next: u64,
    /// `None`: it has to be pointed at its position.
    assignment: Option<Assignment>,
    wake: Arc<Notify>,
    /// Returned from every call.
    failed: Option<LogError>,
    /// Returned once all that came before it is handed out.
    trouble: Option<KafkaError>,
    /// When it is asked next whether the client has stopped fetching.
    look_at: Instant,
    /// The broker has something at this position that the client did not bring.
    withheld: Option<u64>,
    /// It was begun anew at this position.
    begun_anew: Option<u64>,
    gauge: Arc<ReaderGauge>,
}

impl KafkaReader {
    pub(super) async fn open(log: KafkaLog, from: u64) -> Result<Self, LogError> {
        let gauge = log.shared.add_reader();
        let mut reader = Self {
            log,
            next: from,
            assignment: None,
            wake: Arc::new(Notify::new()),
            failed: None,
            trouble: None,
            look_at: Instant::now() + QUIET_MAX,
            withheld: None,
            begun_anew: None,
            gauge,
        };
        reader.assign().await?;
        Ok(reader)
    }

    /// Points the client at this reader's position.
    async fn assign(&mut self) -> Result<(), LogError> {
        // The old place must be free before a new one is looked for.
        self.assignment = None;
        let (shared, wake) = (Arc::clone(&self.log.shared), Arc::clone(&self.wake));
        let (topic, next) = (self.log.topic.name.clone(), self.next);
        let assigned = self
            .log
            .shared
            .blocking(move || shared.consumers.assign(&topic, next, &wake));
        self.assignment = Some(assigned.await??);
        let wait = if self.begun_anew == Some(self.next) {
            BRING_WAIT
        } else {
            QUIET_MAX
        };
        self.look_at = Instant::now() + wait;
        self.withheld = None;
        Ok(())
    }

    /// Nothing came for a while. Where the broker has had something for a while, too, the client is
    /// pointed at this position again.
    async fn look_for_a_stall(&mut self) {
        let bounds = tokio::select! {
            biased;
            // The client brings something after all.
            () = self.wake.notified() => return,
            bounds = self.log.ask_bounds() => bounds,
        };
        let Ok((_, end)) = bounds else {
            // It is away, and will be asked again.
            self.look_at = Instant::now() + QUIET_MAX;
            return;
        };
        if end <= self.next {
            self.look_at = Instant::now() + QUIET_MAX;
            self.withheld = None;
        } else if self.withheld == Some(self.next) {
            tracing::warn!(
                topic = self.log.topic.name,
                position = self.next,
                end,
                "the Kafka client has stopped fetching and is begun anew"
            );
            match &self.assignment {
                Some(old) if self.begun_anew == Some(self.next) => {
                    self.log.shared.consumers.retire(old);
                }
                _ => self.begun_anew = Some(self.next),
            }
            self.assignment = None;
        } else {
            self.look_at = Instant::now() + BRING_WAIT;
            self.withheld = Some(self.next);
        }
    }

    /// Takes what is in the queue. Empty: there is nothing, or `trouble`.
    fn take(&mut self) -> Vec<(Offset, Bytes)> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let Some(assignment) = &self.assignment else {
            return records;
        };
        if self.trouble.is_some() {
            return records;
        }
        while bytes < READ_BYTES_MAX && records.len() < READ_RECORDS_MAX {
            match assignment.queue().poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let Ok(offset) = u64::try_from(message.offset()) else {
                        continue;
                    };
                    if offset < self.next {
                        continue;
                    }
                    // A copy, so that a record kept for long does not keep what was fetched with it.
                    let record = Bytes::copy_from_slice(message.payload().unwrap_or_default());
                    bytes += record.len();
                    self.next = offset + 1;
                    records.push((Offset(offset), record));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => {
                    self.trouble = Some(error);
                    break;
                }
            }
        }
        if !records.is_empty() {
            self.look_at = Instant::now() + QUIET_MAX;
            self.note(&records, bytes);
        }
        records
    }

    fn note(&self, records: &[(Offset, Bytes)], bytes: usize) {
        let mut ledger = self.log.topic.ledger();
        for (offset, record) in records {
            ledger.note(offset.0, record.len());
        }
        drop(ledger);
        let counters = &self.log.shared.counters;
        counters
            .read_records
            .fetch_add(records.len() as u64, Relaxed);
        counters.read_bytes.fetch_add(bytes as u64, Relaxed);
        let end = self.assignment.as_ref().and_then(Assignment::end_seen);
        let lag = end.map_or(0, |end| end.saturating_sub(self.next));
        self.gauge.lag_records.store(lag, Relaxed);
    }

    /// Decides what an error of the client is.
    async fn settle(&mut self, error: KafkaError) -> Result<(), LogError> {
        let code = error.rdkafka_error_code();
        match code {
            Some(
                Code::BadMessage
                | Code::BadCompression
                | Code::InvalidMessage
                | Code::NotImplemented,
            ) => {
                let end = self.end_of_damage().await?;
                return Err(self.damaged(&error.to_string(), end));
            }
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {}
            // The brokers told that the history which was read is no longer theirs, however far
            // it reaches again by now.
            Some(Code::LogTruncation) => {
                return Err(LogError::LostTail {
                    shard: self.log.topic.shard,
                    asked: Offset(self.next),
                    end: Offset(self.next.saturating_sub(1)),
                });
            }
            _ => {
                // Whether the client goes on by itself is not known: begin anew at the next call.
                self.assignment = None;
                return Err(self.log.io("reading it", &error));
            }
        }
        self.assignment = None;
        self.log.check_within(self.next).await
    }

    fn damaged(&self, what: &str, end: u64) -> LogError {
        let last = end.saturating_sub(1);
        let offsets = if last > self.next {
            format!("offsets {} to {last}", self.next)
        } else {
            format!("offset {}", self.next)
        };
        LogError::Damaged {
            shard: self.log.topic.shard,
            place: format!("topic {} {offsets}", self.log.topic.name),
            what: what.to_owned(),
            range: Some((Offset(self.next), Offset(end))),
        }
    }

    /// One past the damaged batch at this reader's position. Records are checked by batch, and
    /// the client does not tell how many are in one; but what it delivers next begins behind it. A
    /// batch that was fetched alone is fetched again for ever: then positions further on are tried.
    async fn end_of_damage(&mut self) -> Result<u64, LogError> {
        let behind = self.first_delivered(NEXT_WAIT).await;
        if let Some(Ok(offset)) = behind {
            return Ok(offset);
        }
        let at = self.next;
        let (_, end) = self.log.ask_bounds().await?;
        let (mut bad, mut good, mut step) = (at, end, 1);
        // Doubling steps until one is past the batch, then halving between.
        while bad + 1 < good {
            let probe = if good == end {
                (bad + step).min(end - 1)
            } else {
                bad + (good - bad) / 2
            };
            step *= 2;
            self.next = probe;
            let assigned = self.assign().await;
            let first = match assigned {
                Ok(()) => self.first_delivered(PROBE_WAIT).await,
                Err(_) => None,
            };
            self.next = at;
            assigned?;
            match first {
                Some(Ok(offset)) => good = offset.min(good),
                Some(Err(())) => bad = probe,
                None => {
                    return Err(LogError::Io(format!(
                        "topic {}: offset {at} is damaged; how far the damage reaches is not known, the brokers do not answer",
                        self.log.topic.name
                    )));
                }
            }
        }
        Ok(good)
    }

    /// The first thing that comes: a record's offset, or damage; `None`: nothing within `wait`.
    async fn first_delivered(&self, wait: Duration) -> Option<Result<u64, ()>> {
        let assignment = self.assignment.as_ref()?;
        let deadline = Instant::now() + wait;
        loop {
            match assignment.queue().poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    let offset = u64::try_from(message.offset()).ok();
                    if let Some(offset) = offset.filter(|o| *o > self.next || wait == PROBE_WAIT) {
                        return Some(Ok(offset));
                    }
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::BadMessage | Code::BadCompression | Code::InvalidMessage) => {
                        return Some(Err(()));
                    }
                    _ => tracing::debug!(%error, "looking for the end of damage"),
                },
                None if Instant::now() >= deadline => return None,
                None => {
                    let _ = tokio::time::timeout_at(deadline, self.woken()).await;
                }
            }
        }
    }

    /// What ends this reader, whatever is in the queue.
    fn ended(&self) -> Option<LogError> {
        if self.log.shared.is_closed() {
            return Some(LogError::Closed);
        }
        if let Some(failed) = &self.failed {
            return Some(failed.clone());
        }
        let start = self.log.topic.start();
        (self.next < start).then_some(LogError::BelowStart {
            asked: Offset(self.next),
            start: Offset(start),
        })
    }

    /// Waits until the queue may have something.
    async fn woken(&self) {
        let closing = self.log.shared.closing.notified();
        tokio::select! {
            () = self.wake.notified() => {}
            () = closing => {}
            () = tokio::time::sleep(LOOK_ANYWAY) => {}
        }
    }
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError> {
        loop {
            if let Some(error) = self.ended() {
                return Err(error);
            }
            if self.assignment.is_none() {
                self.log.check_within(self.next).await?;
                self.log.shared.counters.reader_resets.fetch_add(1, Relaxed);
                self.assign().await?;
            }
            let records = self.take();
            if !records.is_empty() {
                return Ok(records);
            }
            let Some(error) = self.trouble.clone() else {
                self.woken().await;
                if self.assignment.as_ref().is_some_and(Assignment::is_retired) {
                    self.assignment = None;
                } else if Instant::now() >= self.look_at {
                    self.look_for_a_stall().await;
                }
                continue;
            };
            // Kept until it is settled: this call may be dropped meanwhile.
            let settled = self.settle(error).await;
            self.trouble = None;
            if let Err(error) = settled {
                if !matches!(error, LogError::Io(_)) {
                    self.failed = Some(error.clone());
                }
                return Err(error);
            }
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // The place first: a reader that is gone no longer counts as one that lags.
        self.assignment = None;
        self.log.shared.remove_reader(&self.gauge);
    }
}
