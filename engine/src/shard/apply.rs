//! The reader of a shard's log: the only way in which rows, schemas and claims enter memory.
//!
//! For every batch: match each record with what this leader has in flight (epoch, writer, seq,
//! crc) and take the rows decoded already, else decode it; then, under the lock, fold and apply
//! all; then tell the waiting writers their verdicts and the new position. Decoding and telling
//! are outside the lock. A record of ours that is damaged stops the shard at that place: rows
//! behind it may depend on it. Foreign bytes are skipped and counted.
//!
//! A crash at any place loses nothing: memory is rebuilt by reading the same records again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_rows::decode_blocks;
use shoal_types::{Epoch, Offset, Seq, WriterId};
use shoal_wal::fold::Verdict;
use shoal_wal::log::{LogError, LogReader};
use shoal_wal::record::{Payload, Record, RecordError};

use super::state::{LogEntry, Released};
use super::{Counters, Shard, Stopped};

/// Records applied under one hold of the lock: bounds how long a reader of the state waits.
const RECORDS_A_HOLD: usize = 64;
/// A batch above this is decoded on a thread of its own, so that it does not stall other tasks.
const INLINE_BYTES_MAX: usize = 64 << 10;
const IO_PAUSE: Duration = Duration::from_millis(100);
/// Rows of one record: their numbers are 16 bit.
const ROWS_MAX: usize = 65_536;

enum Step {
    Foreign,
    Entry(Arc<LogEntry>),
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
    decoding: Option<tokio::task::JoinHandle<Result<Decoded, String>>>,
}

/// Reads until the shard stops.
///
/// After a restart all records come from the log and have to be decoded; then the next batch is
/// decoded while this one is applied. At most two batches are held.
pub(crate) async fn run(shard: Arc<Shard>, mut reader: Box<dyn LogReader>) {
    let mut pending: Option<Batch> = None;
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
                batch = reader.next() => Some(batch),
            }
        };
        let begun = match next {
            None => Ok(None),
            Some(Ok(batch)) => begin(&shard, batch).map(Some).map_err(Stopped::Failed),
            Some(Err(LogError::Io(what))) => {
                tracing::warn!(shard = %shard.id, what, "reading the log failed, trying again");
                tokio::time::sleep(IO_PAUSE).await;
                Ok(None)
            }
            Some(Err(LogError::Closed)) => Err(Stopped::Closed),
            // A follower that was slower than its leader's flush and trim.
            Some(Err(error @ LogError::BelowStart { .. })) => {
                Err(Stopped::Reopen(error.to_string()))
            }
            Some(Err(e)) => Err(Stopped::Failed(e.to_string())),
        };
        // What came before a damaged place is applied before the shard stops there.
        if let Some(earlier) = pending.take()
            && let Err(why) = finish(&shard, earlier).await
        {
            return shard.stop(Stopped::Failed(why));
        }
        match begun {
            Ok(Some(batch)) if batch.decoding.is_some() => pending = Some(batch),
            Ok(Some(batch)) => {
                if let Err(why) = finish(&shard, batch).await {
                    return shard.stop(Stopped::Failed(why));
                }
            }
            Ok(None) => {}
            Err(stopped) => return shard.stop(stopped),
        }
        if shard.stop.is_cancelled() {
            return;
        }
    }
}

/// Matches records with what is in flight and decodes the others.
fn begin(shard: &Arc<Shard>, batch: Vec<(Offset, Bytes)>) -> Result<Batch, String> {
    let mut steps = Vec::with_capacity(batch.len());
    let mut unknown = Vec::new();
    for (offset, bytes) in batch {
        match Record::peek(&bytes) {
            Err(RecordError::Foreign) => steps.push((offset, Some(Step::Foreign))),
            Err(e) => return Err(format!("log offset {offset}: {e}")),
            Ok(id) => match shard.pipeline.in_flight(&id) {
                Some(entry) => steps.push((offset, Some(Step::Entry(entry)))),
                None => {
                    unknown.push((steps.len(), offset, bytes));
                    steps.push((offset, None));
                }
            },
        }
    }
    let size: usize = unknown.iter().map(|(_, _, bytes)| bytes.len()).sum();
    if size > INLINE_BYTES_MAX {
        let decoding = Some(tokio::task::spawn_blocking(move || decode_all(unknown)));
        return Ok(Batch { steps, decoding });
    }
    place(&mut steps, decode_all(unknown)?);
    Ok(Batch {
        steps,
        decoding: None,
    })
}

fn place(steps: &mut [(Offset, Option<Step>)], decoded: Decoded) {
    for (at, entry) in decoded {
        steps[at].1 = Some(Step::Entry(entry));
    }
}

async fn finish(shard: &Arc<Shard>, mut batch: Batch) -> Result<(), String> {
    if let Some(decoding) = batch.decoding {
        let decoded = decoding
            .await
            .map_err(|e| format!("decoding the log: {e}"))?;
        place(&mut batch.steps, decoded?);
    }
    for part in batch.steps.chunks(RECORDS_A_HOLD) {
        apply_part(shard, part)?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

type Decoded = Vec<(usize, Arc<LogEntry>)>;

fn decode_all(unknown: Vec<(usize, Offset, Bytes)>) -> Result<Decoded, String> {
    unknown
        .into_iter()
        .map(|(at, offset, bytes)| {
            let entry = decode(&bytes).map_err(|what| format!("log offset {offset}: {what}"))?;
            Ok((at, Arc::new(entry)))
        })
        .collect()
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

fn apply_part(shard: &Arc<Shard>, part: &[(Offset, Option<Step>)]) -> Result<(), String> {
    let now_ms = shard.env.clock.now_ms();
    let mut judged = Vec::with_capacity(part.len());
    let mut released = Released::default();
    let mut rows = 0;
    let mut foreign = 0;
    let mut marks = Vec::new();
    let (before, after, next, claim, unknown) = {
        let mut state = shard.state.write();
        let before = state.memory_bytes;
        for (offset, step) in part {
            match step {
                None | Some(Step::Foreign) => {
                    foreign += 1;
                    state.fold.pass(*offset);
                }
                Some(Step::Entry(entry)) => {
                    let record = &entry.record;
                    check_genesis(shard, &state.topic, record)?;
                    let verdict = state.apply(*offset, entry, now_ms, &mut released);
                    if let Payload::Barrier(mark) = &record.payload {
                        marks.push(*mark);
                    }
                    if verdict == Verdict::Apply {
                        rows += entry.blocks.iter().map(|b| b.rows() as u64).sum::<u64>();
                    }
                    let sequenced = matches!(
                        record.payload,
                        Payload::Write(_) | Payload::Schema(_) | Payload::Manifest(_)
                    );
                    if sequenced {
                        judged.push(Judged {
                            epoch: record.epoch,
                            writer: record.writer,
                            seq: record.seq,
                            offset: *offset,
                            verdict,
                        });
                    }
                }
            }
        }
        let next = state.fold.next_offset();
        let unknown = state.unknown_manifest().is_some();
        (
            before,
            state.memory_bytes,
            next,
            state.fold.claim(),
            unknown,
        )
    };
    shard.env.memory.change(before, after);
    drop(released);
    Counters::add(&shard.counters.rows_applied, rows);
    Counters::add(&shard.counters.records_applied, part.len() as u64);
    if foreign > 0 {
        Counters::add(&shard.counters.foreign_records, foreign);
        tracing::warn!(shard = %shard.id, foreign, "bytes in the log that are no record of ours");
    }
    shard.pipeline.resolve(shard.id, judged);
    if shard.env.memory.used() > shard.env.config.memtable_bytes_max {
        shard.env.wake.notify_one();
    }
    shard.applied.send_replace(next);
    shard.barriers.passed(&marks);
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
