//! The reader of a shard's log. Rows, schemas and claims enter memory here only: as they are read,
//! or, what this replica appended itself, as the log confirms their place (`confirmed.rs`).
//!
//! For every batch: match each record with what this leader has in flight (epoch, writer, seq,
//! crc) and take the rows decoded already, else decode it; then, under the lock, fold and apply
//! all; then tell the waiting writers their verdicts and the new position. Decoding and telling
//! are outside the lock. A record of ours that is damaged halts the replica at that place
//! (`halt.rs`), once all before it is applied: rows behind it may depend on it. Foreign bytes are
//! skipped and counted.
//!
//! A crash at any place loses nothing: memory is rebuilt by reading the same records again.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_rows::decode_blocks;
use shoal_types::{Epoch, Offset, Seq, TimestampMs, WriterId};
use shoal_wal::fold::Verdict;
use shoal_wal::log::{LogError, LogReader};
use shoal_wal::record::{Payload, Record, RecordError, RecordKind, Remains};
use uuid::Uuid;

use super::departed::Departed;
use super::entry::LogEntry;
use super::halt::{Halt, HaltKind};
use super::state::{Released, ShardState};
use super::{Counters, Shard, Stopped};

/// Records applied under one hold of the lock: bounds how long a reader of the state waits.
const RECORDS_A_HOLD: usize = 64;
/// A batch above this is decoded on a thread of its own, so that it does not stall other tasks.
const INLINE_BYTES_MAX: usize = 64 << 10;
const IO_PAUSE: Duration = Duration::from_millis(100);
/// Failures in a row after which it is said again, and looked whether the shard has another log.
const FAILURES_A_LOOK: u32 = 20;
/// Rows of one record: their numbers are 16 bit.
const ROWS_MAX: usize = 65_536;

enum Step {
    Foreign,
    /// Applied before it was read.
    Known(u32),
    Entry(Arc<LogEntry>, u32),
}

/// A sequenced record's verdict.
pub(crate) struct Judged {
    pub epoch: Epoch,
    pub writer: WriterId,
    pub seq: Seq,
    pub offset: Offset,
    pub verdict: Verdict,
}

/// Records on their way from the log to the fold.
struct Batch {
    steps: Vec<(Offset, Option<Step>)>,
    /// Decoding of those that this leader has not in flight, where it is worth a thread.
    decoding: Option<tokio::task::JoinHandle<Decoded>>,
    /// What stands behind them ends the reading.
    halt: Option<Halt>,
}

/// Records that were decoded, up to the first that cannot be.
struct Decoded {
    steps: Vec<(usize, Step)>,
    damaged: Option<(usize, Damage)>,
}

/// A record that cannot be read.
struct Damage {
    offset: Offset,
    kind: HaltKind,
    what: String,
    remains: Remains,
}

/// Reads until the shard stops, or can be read no further.
///
/// After a restart all records come from the log and have to be decoded; then the next batch is
/// decoded while this one is applied. At most two batches are held.
pub(crate) async fn run(shard: Arc<Shard>, mut reader: Box<dyn LogReader>) {
    let mut pending: Option<Batch> = None;
    let mut failures = 0_u32;
    loop {
        let next = if pending.is_some() {
            // What is read already is applied even if nothing follows.
            tokio::time::timeout(Duration::ZERO, reader.next())
                .await
                .ok()
        } else {
            tokio::select! {
                biased;
                () = shard.stop.cancelled() => return,
                () = shard.halted.happened() => return,
                batch = reader.next() => Some(batch),
            }
        };
        let begun = match next {
            None => Ok(None),
            Some(Ok(batch)) => {
                if std::mem::take(&mut failures) > 0 {
                    *shard.trouble.lock() = None;
                }
                Ok(Some(begin(&shard, batch)))
            }
            Some(Err(LogError::Io(what))) => {
                let look = failures.is_multiple_of(FAILURES_A_LOOK);
                failures = failures.wrapping_add(1);
                if look {
                    tracing::warn!(shard = %shard.id, what, "reading the log failed, trying again");
                }
                *shard.trouble.lock() = Some(format!(
                    "reading its log: {what}; if the log is gone for good, `shoal admin shard adopt-log {}` goes on without it",
                    shard.id
                ));
                tokio::time::sleep(IO_PAUSE).await;
                // Where the store is away, too, it is looked again.
                if look
                    && shard
                        .newest_manifest()
                        .await
                        .is_ok_and(|(_, other_log)| other_log)
                {
                    shard.stop(Stopped::Reopen("the shard goes on with another log".into()));
                    return;
                }
                Ok(None)
            }
            // The reader of a leader was slower than its flush and trim; it knows what is below.
            Some(Err(error @ LogError::BelowStart { .. })) => match read_on(&shard).await {
                Some(behind) => {
                    reader = behind;
                    Ok(None)
                }
                None => Err(error),
            },
            Some(Err(error)) => Err(error),
        };
        // What came before a damaged place is applied before the replica halts there.
        let mut done = match pending.take() {
            Some(earlier) => finish(&shard, earlier).await,
            None => ControlFlow::Continue(()),
        };
        if done.is_continue() {
            match begun {
                Ok(Some(batch)) if batch.decoding.is_some() => pending = Some(batch),
                Ok(Some(batch)) => done = finish(&shard, batch).await,
                Ok(None) => {}
                Err(error) => done = ControlFlow::Break(end(&shard, error)),
            }
        }
        match done {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(None) => return,
            ControlFlow::Break(Some(halt)) => match behind(&shard, halt).await {
                Some(other) => reader = other,
                None => return,
            },
        }
        if shard.stop.is_cancelled() || shard.halted.is() {
            return;
        }
    }
}

/// A reader behind what was applied ahead of the last one; `None`: nothing was.
async fn read_on(shard: &Shard) -> Option<Box<dyn LogReader>> {
    let next = {
        let mut state = shard.state.write();
        if !state.confirmed.is_ahead() {
            return None;
        }
        state.confirmed.reader_moved();
        state.fold.next_offset()
    };
    shard.log.read(next).await.ok()
}

/// The log can be read no further. Gives the place of damage, if it is that.
fn end(shard: &Shard, error: LogError) -> Option<Halt> {
    let place = || shard.place();
    match error {
        LogError::Closed => shard.stop(Stopped::Closed),
        // A follower that was slower than its leader's flush and trim.
        LogError::BelowStart { .. } => shard.stop(Stopped::Reopen(error.to_string())),
        LogError::Damaged {
            place, what, range, ..
        } => {
            let mut halt = shard.halt_here(HaltKind::Damaged, place, what);
            if let Some((from, to)) = range {
                halt.at = from;
                halt.end = Some(to);
            }
            return Some(halt);
        }
        LogError::LostTail { end, .. } => {
            let what = format!("the log ends at {end}");
            shard.halt(shard.halt_here(HaltKind::LostTail, place(), what));
        }
        LogError::NotFound { .. } | LogError::Another { .. } => {
            shard.halt(shard.halt_here(HaltKind::Gone, place(), error.to_string()));
        }
        other => shard.stop(Stopped::Failed(other.to_string())),
    }
    None
}

/// A reader behind a damaged place, where this replica has applied what stood there: it leads, and
/// its next flush leaves the place behind for all. Else it halts.
async fn behind(shard: &Arc<Shard>, halt: Halt) -> Option<Box<dyn LogReader>> {
    if halt.at >= shard.state.read().fold.next_offset() {
        shard.halt(halt);
        return None;
    }
    let reader = read_on(shard).await;
    if reader.is_none() {
        shard.stop(Stopped::Reopen(halt.to_string()));
        return None;
    }
    tracing::warn!(
        shard = %shard.id, at = %halt.at, place = halt.place, what = halt.what,
        "the log is damaged where this leader knows what stood; it is flushed now"
    );
    let (shard, at) = (Arc::clone(shard), halt.at);
    tokio::spawn(async move {
        if let Err(error) = shard.flush_beyond(at).await {
            tracing::warn!(shard = %shard.id, %error, "not flushed yet, the next flush will do");
        }
    });
    reader
}

impl Shard {
    /// The log's name, as far as it is known.
    pub(crate) fn place(&self) -> String {
        let state = self.state.read();
        let topic = state.topic.as_deref();
        topic.map_or_else(|| "its log".to_owned(), |topic| format!("log {topic}"))
    }

    /// A damaged record, as a reason to read no further.
    fn halt_of(&self, damage: Damage) -> Halt {
        let shift = self.state.read().manifest.log.shift;
        let place = format!(
            "{} offset {}",
            self.place(),
            damage.offset.0.saturating_sub(shift)
        );
        Halt {
            shard: self.id,
            kind: damage.kind,
            at: damage.offset,
            end: Some(damage.offset.next()),
            place,
            what: damage.what,
            remains: Some(damage.remains),
        }
    }
}

/// Whether replicas of this version know what a record changes in them. The others are judged by
/// the fold and not carried out yet, so nobody may read past one.
fn is_carried_out(kind: RecordKind) -> bool {
    use RecordKind::{Abort, Barrier, Claim, Genesis, Manifest, Recut, Schema, Split, Write};
    matches!(
        kind,
        Genesis | Claim | Barrier | Write | Schema | Manifest | Recut | Split | Abort
    )
}

/// Matches records with what is in flight and decodes the others.
fn begin(shard: &Arc<Shard>, batch: Vec<(Offset, Bytes)>) -> Batch {
    let mut steps = Vec::with_capacity(batch.len());
    let mut unknown = Vec::new();
    let mut halt = None;
    let next = shard.state.read().fold.next_offset();
    for (offset, bytes) in batch {
        match Record::peek(&bytes) {
            Err(RecordError::Foreign) => steps.push((offset, Some(Step::Foreign))),
            Err(error) => {
                halt = Some(shard.halt_of(Damage::of(offset, &error, &bytes)));
                break;
            }
            Ok(id) if !is_carried_out(id.kind) => {
                let error = RecordError::UnknownKind {
                    kind: id.kind as u8,
                };
                halt = Some(shard.halt_of(Damage::of(offset, &error, &bytes)));
                break;
            }
            Ok(id) if offset < next => steps.push((offset, Some(Step::Known(id.crc)))),
            Ok(id) => match shard.pipeline.in_flight(&id) {
                Some(entry) => steps.push((offset, Some(Step::Entry(entry, id.crc)))),
                None => {
                    unknown.push((steps.len(), offset, id.crc, bytes));
                    steps.push((offset, None));
                }
            },
        }
    }
    let size: usize = unknown.iter().map(|(.., bytes)| bytes.len()).sum();
    let mut batch = Batch {
        steps,
        decoding: None,
        halt,
    };
    if size > INLINE_BYTES_MAX {
        batch.decoding = Some(tokio::task::spawn_blocking(move || decode_all(unknown)));
    } else {
        batch.place(shard, decode_all(unknown));
    }
    batch
}

impl Batch {
    fn place(&mut self, shard: &Shard, decoded: Decoded) {
        for (at, step) in decoded.steps {
            self.steps[at].1 = Some(step);
        }
        if let Some((at, damage)) = decoded.damaged {
            self.steps.truncate(at);
            self.halt = Some(shard.halt_of(damage));
        }
    }
}

impl Damage {
    fn of(offset: Offset, error: &RecordError, bytes: &[u8]) -> Self {
        let kind = match error {
            RecordError::UnknownVersion { .. } | RecordError::UnknownKind { .. } => HaltKind::Newer,
            _ => HaltKind::Damaged,
        };
        Self {
            offset,
            kind,
            what: error.to_string(),
            remains: Remains::of(bytes),
        }
    }
}

/// Applies a batch. Break: nothing more is to be read, or there is damage behind it.
async fn finish(shard: &Arc<Shard>, mut batch: Batch) -> ControlFlow<Option<Halt>> {
    let stopped = |why| {
        shard.stop(Stopped::Failed(why));
        ControlFlow::Break(None)
    };
    if let Some(decoding) = batch.decoding.take() {
        match decoding.await {
            Ok(decoded) => batch.place(shard, decoded),
            Err(e) => return stopped(format!("decoding the log: {e}")),
        }
    }
    for part in batch.steps.chunks(RECORDS_A_HOLD) {
        if shard.halted.is() {
            return ControlFlow::Break(None);
        }
        if let Err(why) = advance(shard, |advancing| advancing.read(part)) {
            return stopped(why);
        }
        tokio::task::yield_now().await;
    }
    match batch.halt {
        None => ControlFlow::Continue(()),
        Some(halt) => ControlFlow::Break(Some(halt)),
    }
}

fn decode_all(unknown: Vec<(usize, Offset, u32, Bytes)>) -> Decoded {
    let mut decoded = Decoded {
        steps: Vec::with_capacity(unknown.len()),
        damaged: None,
    };
    for (at, offset, crc, bytes) in unknown {
        match decode(&bytes) {
            Ok(entry) => {
                let step = Step::Entry(Arc::new(entry), crc);
                decoded.steps.push((at, step));
            }
            Err(what) => {
                let damage = Damage {
                    offset,
                    kind: HaltKind::Damaged,
                    what,
                    remains: Remains::of(&bytes),
                };
                decoded.damaged = Some((at, damage));
                break;
            }
        }
    }
    decoded
}

fn decode(bytes: &Bytes) -> Result<LogEntry, String> {
    let record = Record::decode(bytes).map_err(|e| e.to_string())?;
    let mut blocks = Vec::new();
    if let Payload::Write(write) = &record.payload {
        let found = if write.body.is_empty() {
            Vec::new()
        } else {
            decode_blocks(&write.body).map_err(|e| e.to_string())?
        };
        let mut rows = 0;
        for block in found {
            block.check().map_err(|e| e.to_string())?;
            let named = write
                .header
                .tables
                .iter()
                .any(|t| t.table == block.table && t.incarnation == block.incarnation);
            if !named {
                return Err(format!(
                    "rows of table {} are not in its header",
                    block.table
                ));
            }
            rows += block.rows();
            blocks.push(Arc::new(block));
        }
        if rows > ROWS_MAX {
            return Err(format!("{rows} rows in one record"));
        }
    }
    Ok(LogEntry { record, blocks })
}

/// What one hold of the lock has done.
struct Advancing<'a> {
    shard: &'a Shard,
    state: &'a mut ShardState,
    now_ms: TimestampMs,
    judged: Vec<Judged>,
    marks: Vec<Uuid>,
    released: Released,
    records: u64,
    rows: u64,
    foreign: u64,
}

impl Advancing<'_> {
    /// Until meta says where tables have gone, their columns are asked for here.
    fn remember_departed(&self) {
        let mut known = self.shard.env.remote_schemas.lock();
        let departed = self.state.departed.last();
        for schema in departed.into_iter().flat_map(Departed::schemas) {
            known.put(schema.table, Arc::clone(schema));
        }
    }

    /// The reader passes these.
    fn read(&mut self, part: &[(Offset, Option<Step>)]) -> Result<(), String> {
        for (offset, step) in part {
            let crc = match step {
                Some(Step::Known(crc) | Step::Entry(_, crc)) => Some(*crc),
                None | Some(Step::Foreign) => None,
            };
            self.state.confirmed.passed(*offset, crc)?;
            if *offset < self.state.fold.next_offset() {
                continue;
            }
            match step {
                None | Some(Step::Foreign) => {
                    self.foreign += 1;
                    self.records += 1;
                    self.state.fold.pass(*offset);
                }
                Some(Step::Known(_)) => {}
                Some(Step::Entry(entry, _)) => self.apply(*offset, entry)?,
            }
            self.follow()?;
        }
        Ok(())
    }

    /// Applies what is confirmed to stand next.
    fn follow(&mut self) -> Result<(), String> {
        loop {
            let next = self.state.fold.next_offset();
            match self.state.confirmed.take(next) {
                Some(entry) => self.apply(next, &entry)?,
                None => return Ok(()),
            }
        }
    }

    fn apply(&mut self, offset: Offset, entry: &Arc<LogEntry>) -> Result<(), String> {
        let record = &entry.record;
        check_genesis(self.shard, &self.state.topic, record)?;
        let verdict = self
            .state
            .apply(offset, entry, self.now_ms, &mut self.released);
        self.records += 1;
        if verdict == Verdict::Apply {
            self.rows += entry.blocks.iter().map(|b| b.rows() as u64).sum::<u64>();
            if let Payload::Split(_) = &record.payload {
                self.remember_departed();
            }
        }
        match &record.payload {
            Payload::Barrier(mark) => self.marks.push(*mark),
            Payload::Genesis(_) | Payload::Claim(_) => {}
            _ => {
                self.judged.push(Judged {
                    epoch: record.epoch,
                    writer: record.writer,
                    seq: record.seq,
                    offset,
                    verdict,
                });
            }
        }
        Ok(())
    }
}

/// The log confirmed that a record of this replica stands at `offset`.
pub(crate) fn confirm(shard: &Shard, offset: Offset, entry: Arc<LogEntry>, crc: u32) {
    if !shard.log.receipts_come_first() {
        return;
    }
    let done = advance(shard, |advancing| {
        if shard.halted.is() {
            return Ok(());
        }
        let next = advancing.state.fold.next_offset();
        advancing.state.confirmed.offer(offset, entry, crc, next);
        advancing.follow()
    });
    if let Err(why) = done {
        shard.stop(Stopped::Failed(why));
    }
}

/// Applies under the lock, then tells who waits. The reader and whoever confirms may both be here:
/// what one applied is told before the other applies more. Else a claim could be told before the
/// records below it, and their writers be told that they were overtaken, or they be sent again.
fn advance(
    shard: &Shard,
    work: impl FnOnce(&mut Advancing<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let now_ms = shard.env.clock.now_ms();
    let _telling = shard.telling.lock();
    let mut state = shard.state.write();
    let before = state.memory_bytes;
    let mut advancing = Advancing {
        shard,
        state: &mut state,
        now_ms,
        judged: Vec::new(),
        marks: Vec::new(),
        released: Released::default(),
        records: 0,
        rows: 0,
        foreign: 0,
    };
    work(&mut advancing)?;
    let Advancing {
        judged,
        marks,
        released,
        records,
        rows,
        foreign,
        ..
    } = advancing;
    let after = state.memory_bytes;
    let next = state.fold.next_offset();
    let claim = state.fold.claim();
    let unknown = state.unknown_manifest().is_some();
    drop(state);
    shard.env.memory.change(before, after);
    drop(released);
    if records == 0 {
        return Ok(());
    }
    Counters::add(&shard.counters.rows_applied, rows);
    // A flush that takes effect among them makes it less; for a measure of load that will do.
    let grown = after.saturating_sub(before);
    Counters::add(&shard.counters.bytes_applied, grown as u64);
    Counters::add(&shard.counters.records_applied, records);
    if foreign > 0 {
        Counters::add(&shard.counters.foreign_records, foreign);
        tracing::warn!(shard = %shard.id, foreign, "bytes in the log that are no record of ours");
    }
    shard.pipeline.resolve(shard.id, judged);
    if shard.env.memory.used() > shard.env.config.memtable_bytes_max {
        shard.env.wake.notify_one();
    }
    shard.applied.send_if_modified(|applied| {
        let later = next > *applied;
        *applied = next.max(*applied);
        later
    });
    if claim.0.closes_the_log() {
        // Whoever waits for a barrier waits for what is written to the new log, too.
        let what = format!("epoch {} closed it", claim.0);
        shard.halt(shard.halt_here(HaltKind::Closed, shard.place(), what));
    } else {
        shard.barriers.passed(&marks);
    }
    if unknown {
        shard.named.notify_one();
    }
    if shard.pipeline.is_deposed_by(claim) {
        let why = format!("a leader with epoch {} has taken over", claim.0);
        tracing::warn!(shard = %shard.id, why, "following");
        shard.depose();
        shard.pipeline.depose(shard.id);
    }
    Ok(())
}

fn check_genesis(shard: &Shard, topic: &Option<String>, record: &Record) -> Result<(), String> {
    let Payload::Genesis(genesis) = &record.payload else {
        return Ok(());
    };
    if genesis.shard != shard.id || genesis.cluster != shard.env.config.cluster_name {
        return Err(format!(
            "this log is of shard {} in cluster {:?}",
            genesis.shard, genesis.cluster
        ));
    }
    match topic {
        Some(known) if *known != genesis.topic => Err(format!(
            "this log is {:?}, the manifest names {known:?}",
            genesis.topic
        )),
        _ => Ok(()),
    }
}
