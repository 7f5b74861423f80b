//! From a payload to an answer: numbering, appending, waiting.
//!
//! Order for each record: reserve bytes of the in-flight budget (bounded: beyond it writers wait,
//! then are pushed back) → under the pipeline's lock take the next seq, encode, hand to the log,
//! remember → release the lock → wait. Numbering and appending are under one lock because the log
//! keeps the order of calls and the fold poisons an epoch whose numbers have a gap. Row blocks are
//! encoded before, outside of any lock.
//!
//! A record is acknowledged when both have happened, in either order: the log reported delivery,
//! and this shard folded it at its place in the log with a verdict (`confirmed.rs` says when it need
//! not be read back for that). Every verdict but "not in turn" is final
//! and *definite*. A record out of turn (its epoch was poisoned or is over) took no effect and is
//! sent again by `claim.rs` under the next epoch.
//!
//! A crash at any place leaves a record that is in the log (and will be applied on replay) or is
//! not; the client that got no answer cannot tell, and a write id makes its retry harmless.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_rows::RowBlock;
use shoal_types::{Epoch, Offset, Seq, ShardId, WriteId, WriterId};
use shoal_wal::fold::Verdict;
use shoal_wal::log::{AppendReceipt, LogError};
use shoal_wal::record::{Payload, Record, RecordId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::apply::Judged;
use super::entry::LogEntry;
use super::{Counters, Shard, Stopped};
use crate::WriteError;

/// The in-flight budget is counted in units of this many bytes.
const BUDGET_UNIT_BYTES: usize = 1024;
/// How often one record is sent again before its writer is told to slow down.
const SENDS_MAX: u32 = 32;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub epoch: Epoch,
    pub offset: Offset,
    /// Its write id or import chunk had been applied before.
    pub duplicate: bool,
}

pub(crate) type Answer = Result<Acknowledged, WriteError>;

/// Whether records may be sent.
#[derive(Clone, Debug)]
enum Health {
    /// Another replica leads.
    Following,
    /// A claim is on its way.
    Claiming,
    Serving,
    /// The log has no space; a claim is tried now and then.
    Full(String),
    Stopped(String),
}

struct InFlight {
    entry: Arc<LogEntry>,
    crc: u32,
    write_id: Option<WriteId>,
    delivered: bool,
    /// The final verdict, once read back.
    answer: Option<Answer>,
    /// Read back out of turn: it certainly took no effect.
    refused: bool,
    sends: u32,
    waiting: oneshot::Sender<Answer>,
    _budget: Option<OwnedSemaphorePermit>,
}

struct State {
    epoch: Epoch,
    writer: WriterId,
    next_seq: Seq,
    health: Health,
    in_flight: BTreeMap<(Epoch, Seq), InFlight>,
}

/// A record handed to the log, for the task that waits for its receipt.
pub(crate) struct Delivery {
    pub epoch: Epoch,
    pub seq: Seq,
    pub receipt: AppendReceipt,
    pub entry: Arc<LogEntry>,
    pub crc: u32,
}

/// Records between `write()` and their answers.
pub(crate) struct Pipeline {
    state: Mutex<State>,
    changed: Notify,
    budget: Arc<Semaphore>,
    budget_units: u32,
    deliveries: mpsc::UnboundedSender<Delivery>,
}

enum Sending {
    Sent(oneshot::Receiver<Answer>),
    Later,
    Refused(WriteError),
}

impl Pipeline {
    /// A follower's: it sends nothing.
    pub(crate) fn new(bytes_max: usize, deliveries: mpsc::UnboundedSender<Delivery>) -> Self {
        let units = bytes_max.div_ceil(BUDGET_UNIT_BYTES).clamp(1, 1 << 28);
        Self {
            state: Mutex::new(State {
                epoch: Epoch::default(),
                writer: WriterId(uuid::Uuid::nil()),
                next_seq: Seq(0),
                health: Health::Following,
                in_flight: BTreeMap::new(),
            }),
            changed: Notify::new(),
            budget: Arc::new(Semaphore::new(units)),
            budget_units: units as u32,
            deliveries,
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.state.lock().epoch
    }

    pub(crate) fn writer(&self) -> WriterId {
        self.state.lock().writer
    }

    pub(crate) fn leads(&self) -> bool {
        self.state.lock().health.leads()
    }

    /// Begins a tenure: the log is to be claimed with this epoch. What an earlier tenure left in
    /// flight is settled when that claim is read back.
    pub(crate) fn begin(&self, epoch: Epoch, writer: WriterId) {
        let mut state = self.state.lock();
        if matches!(state.health, Health::Stopped(_)) {
            return;
        }
        state.epoch = epoch;
        state.writer = writer;
        state.next_seq = Seq(0);
        state.health = Health::Claiming;
    }

    /// Sends nothing more: another leader has published a manifest. Records in flight may still
    /// be read back below its claim, so they wait.
    pub(crate) fn overtaken(&self) {
        let mut state = self.state.lock();
        if !matches!(state.health, Health::Stopped(_)) {
            state.health = Health::Following;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether `claim`, which was read, ends this replica's tenure.
    pub(crate) fn is_deposed_by(&self, claim: (Epoch, WriterId)) -> bool {
        let state = self.state.lock();
        claim.1 != state.writer
            && claim.0 > state.epoch
            && !(matches!(state.health, Health::Following) && state.in_flight.is_empty())
    }

    /// The claim of another leader was read: what of ours was not applied below it never will be.
    pub(crate) fn depose(&self, shard: ShardId) {
        let mut state = self.state.lock();
        if !matches!(state.health, Health::Stopped(_)) {
            state.health = Health::Following;
        }
        for (_, waiting) in std::mem::take(&mut state.in_flight) {
            // What this replica read back is durable, whoever leads now.
            let answer = waiting.answer;
            let _ = waiting
                .waiting
                .send(answer.unwrap_or(Err(WriteError::NotLeader { shard })));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Bytes of writes in flight.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        (self.budget_units as usize).saturating_sub(self.budget.available_permits())
            * BUDGET_UNIT_BYTES
    }

    /// Why records are not taken now; `None`: they are.
    pub(crate) fn trouble(&self) -> Option<String> {
        match &self.state.lock().health {
            Health::Serving | Health::Following => None,
            Health::Claiming => Some("the log is being claimed".to_owned()),
            Health::Full(what) => Some(format!("the log has no space: {what}")),
            Health::Stopped(why) => Some(why.clone()),
        }
    }

    /// The decoded rows of a record that this leader has in flight.
    pub(crate) fn in_flight(&self, id: &RecordId) -> Option<Arc<LogEntry>> {
        let state = self.state.lock();
        let found = state.in_flight.get(&(id.epoch, id.seq))?;
        let same = found.crc == id.crc && found.entry.record.writer == id.writer;
        same.then(|| Arc::clone(&found.entry))
    }

    /// Takes the verdicts of records that the reader passed.
    pub(crate) fn resolve(&self, shard: ShardId, judged: Vec<Judged>) {
        if judged.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let full = match &state.health {
            Health::Full(what) => Some(what.clone()),
            _ => None,
        };
        for one in judged {
            let key = (one.epoch, one.seq);
            let Some(waiting) = state.in_flight.get_mut(&key) else {
                continue;
            };
            if waiting.entry.record.writer != one.writer {
                continue;
            }
            match answer_of(shard, &one, waiting.write_id) {
                None => {
                    waiting.refused = true;
                    if let Some(what) = &full {
                        state.finish(key, Err(WriteError::NoSpace(what.clone())));
                    }
                }
                Some(answer) => {
                    if waiting.delivered {
                        state.finish(key, answer);
                    } else {
                        waiting.answer = Some(answer);
                    }
                }
            }
        }
    }

    /// Takes the log's word on one record; true: the epoch is broken and must be claimed anew.
    pub(crate) fn delivered(
        &self,
        epoch: Epoch,
        seq: Seq,
        outcome: &Result<Offset, LogError>,
    ) -> bool {
        let mut state = self.state.lock();
        let key = (epoch, seq);
        let error = match outcome {
            Ok(_) => {
                let Some(waiting) = state.in_flight.get_mut(&key) else {
                    return false;
                };
                waiting.delivered = true;
                if let Some(answer) = waiting.answer.take() {
                    state.finish(key, answer);
                }
                return false;
            }
            Err(e) => e,
        };
        match error {
            LogError::Full(what) => state.finish(key, Err(WriteError::NoSpace(what.clone()))),
            LogError::TooLarge { bytes, max } => {
                let error = WriteError::RowTooLarge {
                    bytes: *bytes,
                    max: *max,
                };
                state.finish(key, Err(error));
            }
            // Its writer has waited long enough; what the log still does with it, the fold judges.
            LogError::CommitTimeout { timeout_ms } => {
                let timeout_ms = *timeout_ms;
                state.finish(key, Err(WriteError::CommitTimeout { timeout_ms }));
            }
            _ => {}
        }
        let broken = epoch == state.epoch;
        if broken && matches!(state.health, Health::Serving) {
            state.health = Health::Claiming;
        }
        broken
    }

    /// Begins the next epoch of a tenure: raises the claim number. Nothing is sent until
    /// [`Shard::serve`]. `None`: the tenure is over.
    pub(crate) fn next_epoch(&self, tenure: WriterId) -> Option<Epoch> {
        let mut state = self.state.lock();
        if !state.holds(tenure) {
            return None;
        }
        state.epoch.claim += 1;
        state.next_seq = Seq(0);
        state.health = Health::Claiming;
        Some(state.epoch)
    }

    /// Whether a tenure goes on.
    pub(crate) fn holds(&self, tenure: WriterId) -> bool {
        self.state.lock().holds(tenure)
    }

    /// The claim could not be written for lack of space. Whatever is known to have had no effect
    /// is answered so; the rest waits for a claim.
    pub(crate) fn no_space(&self, what: &str) {
        let mut state = self.state.lock();
        if !state.health.leads() {
            return;
        }
        state.health = Health::Full(what.to_owned());
        let refused: Vec<_> = state
            .in_flight
            .iter()
            .filter(|(_, w)| w.refused)
            .map(|(k, _)| *k)
            .collect();
        for key in refused {
            state.finish(key, Err(WriteError::NoSpace(what.to_owned())));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until nothing is in flight, at most `patience`.
    pub(crate) async fn drained(&self, patience: std::time::Duration) {
        let all = Arc::clone(&self.budget).acquire_many_owned(self.budget_units);
        // After the time is up, what is still in flight is answered with its outcome unknown.
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Stops taking records and answers those in flight as far as their outcome is certain.
    pub(crate) fn stop(&self, reason: &Stopped) {
        let mut state = self.state.lock();
        state.health = Health::Stopped(reason.why());
        for (_, waiting) in std::mem::take(&mut state.in_flight) {
            // What this replica read back is durable, whoever leads now.
            let unknown = || Err(WriteError::OutcomeUnknown(reason.why()));
            let answer = waiting.answer.unwrap_or_else(unknown);
            let _ = waiting.waiting.send(answer);
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Health {
    fn leads(&self) -> bool {
        !matches!(self, Self::Following | Self::Stopped(_))
    }
}

impl State {
    /// Whether a tenure goes on.
    fn holds(&self, tenure: WriterId) -> bool {
        self.health.leads() && self.writer == tenure
    }

    fn finish(&mut self, key: (Epoch, Seq), answer: Answer) {
        if let Some(waiting) = self.in_flight.remove(&key) {
            // A writer that gave up waiting was told that the outcome is unknown.
            let _ = waiting.waiting.send(answer);
        }
    }
}

/// What a verdict means for the writer; `None`: the record was out of turn and had no effect.
fn answer_of(shard: ShardId, judged: &Judged, write_id: Option<WriteId>) -> Option<Answer> {
    let acknowledged = |duplicate| {
        Ok(Acknowledged {
            epoch: judged.epoch,
            offset: judged.offset,
            duplicate,
        })
    };
    Some(match &judged.verdict {
        Verdict::Apply | Verdict::Noted => acknowledged(false),
        Verdict::DuplicateId => acknowledged(true),
        Verdict::NotCurrent | Verdict::Gap | Verdict::Duplicate => return None,
        // Sealed: it is becoming part of another shard, or will take writes again.
        Verdict::WrongGeneration | Verdict::Sealed => Err(WriteError::Moved {
            shard,
            applied: 0,
            commit: None,
        }),
        Verdict::StalePlan | Verdict::Decided => Err(WriteError::Invalid(format!(
            "a change of what shard {shard} owns does not fit it any more"
        ))),
        Verdict::StaleSchema { table } => Err(WriteError::StaleSchema { table: *table }),
        Verdict::Conflict { table } => Err(WriteError::Conflict { table: *table }),
        Verdict::Overlaps { covered } => Err(WriteError::Overlaps {
            covered: covered.clone(),
        }),
        Verdict::ExpiredId => Err(match write_id {
            Some(id) => WriteError::ExpiredId { id },
            None => WriteError::Invalid("an import chunk has too many parts".into()),
        }),
    })
}

fn payload_bytes(payload: &Payload) -> usize {
    match payload {
        Payload::Write(write) => write.body.len() + 256 * write.header.tables.len(),
        Payload::Schema(changes) => 2048 * changes.len(),
        _ => BUDGET_UNIT_BYTES,
    }
}

impl Shard {
    /// Hands a record to the log; its answer comes through the receiver.
    ///
    /// # Errors
    /// It was not handed over: after `patience` [`WriteError::Overloaded`], or `ShardUnavailable`
    /// if this replica does not lead yet; `NoSpace`.
    pub(crate) async fn send(
        &self,
        payload: Payload,
        blocks: Vec<Arc<RowBlock>>,
        patience: Duration,
    ) -> Result<oneshot::Receiver<Answer>, WriteError> {
        let memory: usize = blocks.iter().map(|b| b.memory_bytes()).sum();
        let bytes = payload_bytes(&payload).max(memory);
        let units = (bytes.div_ceil(BUDGET_UNIT_BYTES) as u32).clamp(1, self.pipeline.budget_units);
        let budget = Arc::clone(&self.pipeline.budget);
        let overloaded = |what: &str| WriteError::Overloaded(format!("shard {}: {what}", self.id));
        let permit = tokio::time::timeout(patience, budget.acquire_many_owned(units))
            .await
            .map_err(|_| overloaded("too many bytes are in flight"))?
            .map_err(|_| overloaded("it is being closed"))?;
        let mut pending = Some((payload, blocks, permit));
        let sending = async {
            loop {
                let changed = self.pipeline.changed.notified();
                tokio::pin!(changed);
                // Registered before looking, so that a change in between is not missed.
                changed.as_mut().enable();
                match self.try_send(&mut pending) {
                    Sending::Sent(receiver) => return Ok(receiver),
                    Sending::Refused(error) => return Err(error),
                    Sending::Later => changed.await,
                }
            }
        };
        tokio::time::timeout(patience, sending)
            .await
            .map_err(|_| WriteError::ShardUnavailable {
                shard: self.id,
                why: "its log is being claimed".into(),
            })?
    }

    fn try_send(
        &self,
        pending: &mut Option<(Payload, Vec<Arc<RowBlock>>, OwnedSemaphorePermit)>,
    ) -> Sending {
        let mut state = self.pipeline.state.lock();
        match &state.health {
            Health::Serving => {}
            Health::Claiming => return Sending::Later,
            Health::Following => {
                return Sending::Refused(WriteError::NotLeader { shard: self.id });
            }
            Health::Full(what) => return Sending::Refused(WriteError::NoSpace(what.clone())),
            Health::Stopped(why) => {
                return Sending::Refused(WriteError::ShardUnavailable {
                    shard: self.id,
                    why: why.clone(),
                });
            }
        }
        let Some((payload, blocks, budget)) = pending.take() else {
            return Sending::Refused(WriteError::Invalid("nothing to send".into()));
        };
        let (waiting, receiver) = oneshot::channel();
        let write_id = match &payload {
            Payload::Write(write) => write.header.write_id.map(|w| w.id),
            _ => None,
        };
        let in_flight = InFlight {
            entry: Arc::new(LogEntry {
                record: self.record(&state, payload),
                blocks,
            }),
            crc: 0,
            write_id,
            delivered: false,
            answer: None,
            refused: false,
            sends: 0,
            waiting,
            _budget: Some(budget),
        };
        self.append(&mut state, in_flight);
        Sending::Sent(receiver)
    }

    fn record(&self, state: &State, payload: Payload) -> Record {
        Record {
            epoch: state.epoch,
            writer: state.writer,
            seq: state.next_seq,
            stamp_ms: self.env.clock.now_ms(),
            payload,
        }
    }

    fn append(&self, state: &mut State, mut in_flight: InFlight) {
        let (bytes, crc) = in_flight.entry.encode();
        in_flight.crc = crc;
        in_flight.sends += 1;
        let (epoch, seq) = (state.epoch, state.next_seq);
        state.next_seq = seq.next();
        let receipt = self.log.append(bytes);
        let delivery = Delivery {
            epoch,
            seq,
            receipt,
            entry: Arc::clone(&in_flight.entry),
            crc,
        };
        state.in_flight.insert((epoch, seq), in_flight);
        // The task that takes these ends only with the shard.
        let _ = self.pipeline.deliveries.send(delivery);
    }

    /// The claim of `epoch` was read back: answers what was applied below it, sends the rest again
    /// in its old order, and opens the pipeline. All records of older epochs have their verdict by
    /// now, or will never have effect.
    pub(crate) fn serve(&self, epoch: Epoch) {
        let mut state = self.pipeline.state.lock();
        if state.epoch != epoch || !state.health.leads() {
            return;
        }
        let current = state.in_flight.split_off(&(epoch, Seq(0)));
        let older = std::mem::replace(&mut state.in_flight, current);
        let mut again = 0_u64;
        for (_, mut waiting) in older {
            if let Some(answer) = waiting.answer.take() {
                // Delivery was unclear, but the claim behind it was delivered and read.
                let _ = waiting.waiting.send(answer);
            } else if waiting.sends >= SENDS_MAX {
                let error = WriteError::Overloaded(format!(
                    "shard {}: its log failed {SENDS_MAX} times in a row",
                    self.id
                ));
                let _ = waiting.waiting.send(Err(error));
            } else {
                let old = &waiting.entry;
                let record = self.record(&state, old.record.payload.clone());
                let blocks = old.blocks.clone();
                waiting.entry = Arc::new(LogEntry { record, blocks });
                waiting.delivered = false;
                waiting.refused = false;
                self.append(&mut state, waiting);
                again += 1;
            }
        }
        state.health = Health::Serving;
        drop(state);
        self.pipeline.changed.notify_waiters();
        Counters::add(&self.counters.claims, 1);
        if again > 0 {
            tracing::info!(shard = %self.id, %epoch, again, "records sent again after a new claim");
        }
    }

    /// Waits for the answer of a record.
    ///
    /// # Errors
    /// Its own, or [`WriteError::OutcomeUnknown`] after `patience`.
    pub(crate) async fn answer(
        &self,
        receiver: oneshot::Receiver<Answer>,
        patience: Duration,
    ) -> Answer {
        match tokio::time::timeout(patience, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(WriteError::OutcomeUnknown(self.unavailable().to_string())),
            Err(_) => Err(WriteError::OutcomeUnknown(format!(
                "no verdict within {} ms; it may still be applied",
                patience.as_millis()
            ))),
        }
    }

    /// Sends one record and waits for its answer.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(crate) async fn submit(
        &self,
        payload: Payload,
        blocks: Vec<Arc<RowBlock>>,
        patience: Duration,
    ) -> Answer {
        let receiver = self.send(payload, blocks, patience).await?;
        self.answer(receiver, patience).await
    }
}
