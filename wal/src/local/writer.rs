//! The writer: one thread that puts what is queued on disk.
//!
//! Order for a batch: take the queue → give offsets → write → fdatasync → enter into the shards'
//! indexes (from here on readers see it) → answer the receipts. A crash before the fdatasync
//! returned leaves a whole batch, a torn one or none, and nobody was told of it; recovery keeps a
//! whole one. A crash after it keeps the batch. The next batch is written only then, so a torn
//! batch is always the last one.
//!
//! **Full disk.** The file is cut back to the last durable batch and the cut is synced; only then
//! the receipts say `Full`, which is definite. The next batch tries again, so writing goes on as
//! soon as there is space. The same for any other failed write, as `NotAppended`.
//!
//! **Failed fsync.** Linux reports a lost page once and then takes it for clean, so a second fsync
//! that succeeds proves nothing (the "fsyncgate" of 2018). The outcome of the batch is `Unknown`
//! and this file is never written again: the next batch goes to a new segment under the *same*
//! batch number, which ends the old one before that batch for good. Records synced earlier were
//! durable then and stay readable. If no new segment can be made either, appends are refused
//! (`NotAppended` or `Full`) until one can.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use shoal_types::{Offset, ShardId};
use tokio::sync::oneshot;

use super::Shared;
use super::format::{
    BATCH_SHARD_BYTES, BatchHeader, FRAME_HEADER_BYTES, FrameHeader, NEXT_UNKNOWN, SegmentHeader,
    TABLE_AT,
};
use super::segment::{Segment, segment_path, sync_dir};
use super::shard_log::{FrameAt, ShardLog};
use crate::log::{AppendReceipt, LogError};

/// A batch takes records until it has reached this.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Records from this size on are written from where they are; smaller ones are copied together,
/// because a copy is cheaper than another entry in the write's list.
const IN_PLACE_BYTES_MIN: usize = 16 << 10;
/// Entries in one write's list (IOV_MAX).
const PIECES_MAX: usize = 1024;

type Receipt = oneshot::Sender<Result<Offset, LogError>>;

/// A receipt that already says no.
pub(super) fn refused(error: LogError) -> AppendReceipt {
    let (sender, receipt) = oneshot::channel();
    // The receiver is in hand.
    let _ = sender.send(Err(error));
    receipt
}

#[derive(Debug)]
struct Append {
    shard: Arc<ShardLog>,
    record: Bytes,
    receipt: Receipt,
}

/// What waits for the disk.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<QueueState>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Append>,
    /// Of those waiting and of those being written.
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
            filled: Condvar::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().bytes as u64
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_one();
    }

    pub(super) fn push(&self, shard: &Arc<ShardLog>, record: Bytes) -> AppendReceipt {
        let mut state = self.state.lock();
        if state.closed {
            return refused(LogError::Closed);
        }
        // What is queued costs memory also where records are tiny.
        let cost = record.len() + FRAME_HEADER_BYTES;
        if state.bytes > 0 && state.bytes + cost > self.bytes_max {
            let queued = state.bytes;
            return refused(LogError::Full(format!(
                "{queued} bytes wait for the disk, wal.queue_bytes_max is {}",
                self.bytes_max
            )));
        }
        state.bytes += cost;
        let (sender, receipt) = oneshot::channel();
        state.waiting.push_back(Append {
            shard: Arc::clone(shard),
            record,
            receipt: sender,
        });
        drop(state);
        self.filled.notify_one();
        receipt
    }

    /// The next batch; waits for one. `None` once closed and empty.
    fn take(&self) -> Option<Vec<Append>> {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
        let mut bytes = 0;
        let mut count = 0;
        for append in &state.waiting {
            if bytes >= BATCH_BYTES_MAX {
                break;
            }
            bytes += append.record.len();
            count += 1;
        }
        Some(state.waiting.drain(..count).collect())
    }

    fn done(&self, cost: usize) {
        self.state.lock().bytes -= cost;
    }
}

/// The segment being written.
struct Active {
    segment: Arc<Segment>,
    file: File,
    /// Where the last durable batch ends.
    bytes: u64,
}

/// The state of the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Option<Active>,
    next_batch: u64,
    /// Headers and small records of the batch being written.
    staging: Vec<u8>,
}

/// Where a batch's bytes are.
enum Piece {
    Staged(std::ops::Range<usize>),
    Record(usize),
}

/// A batch, laid out.
struct Layout {
    pieces: Vec<Piece>,
    bytes: u64,
    /// Where each frame begins, from the batch's start.
    frames: Vec<u64>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, next_batch: u64) -> Self {
        Self {
            shared,
            active: None,
            next_batch,
            staging: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        while let Some(batch) = self.shared.queue.take() {
            let cost = batch
                .iter()
                .map(|a| a.record.len() + FRAME_HEADER_BYTES)
                .sum();
            let wrote = self.write(&batch);
            // Before anybody is answered: who is finds room for the next record.
            self.shared.queue.done(cost);
            match wrote {
                Ok((at, layout)) => self.publish(batch, at, &layout),
                Err(error) => {
                    tracing::error!(%error, records = batch.len(), "a batch of the log failed");
                    if matches!(error, LogError::Full(_)) {
                        let refused = &self.shared.counters.refused_full;
                        refused.fetch_add(batch.len() as u64, Relaxed);
                    }
                    for append in batch {
                        // Whoever dropped the receipt does not want to know.
                        let _ = append.receipt.send(Err(error.clone()));
                    }
                }
            }
        }
        self.mark_clean_end();
    }

    /// An empty batch: the one before it was durable.
    fn mark_clean_end(&mut self) {
        #[cfg(test)]
        if super::tests::faults::no_clean_end(&self.shared.config.dir) {
            return;
        }
        let wrote = self.active.as_ref().is_some_and(|a| a.bytes > 0);
        if wrote && let Err(error) = self.write(&[]) {
            // It only helps to tell a torn tail from damage; the records are safe without.
            tracing::warn!(%error, "the log's clean end could not be marked");
        }
    }

    /// Puts a batch on disk and syncs it. Returns where it begins in the active segment.
    fn write(&mut self, batch: &[Append]) -> Result<(u64, Layout), LogError> {
        let full = |a: &Active| a.bytes >= self.shared.config.segment_bytes;
        if self.active.as_ref().is_none_or(full) {
            self.active = None;
            self.active = Some(self.new_segment()?);
        }
        let Some(active) = &mut self.active else {
            return Err(LogError::NotAppended("no segment".into()));
        };
        let number = active.segment.number;
        let layout = lay_out(&mut self.staging, number, self.next_batch, batch);
        let io = &self.shared.config.dir;
        if let Err(error) = write_pieces(io, active, &self.staging, &layout, batch) {
            let path = active.segment.path.display();
            let what = format!("writing {path}: {error}");
            let restored = active
                .file
                .set_len(active.bytes)
                .and_then(|()| self.shared.counters.timed_sync(|| active.file.sync_data()));
            if let Err(error) = restored {
                self.active = None;
                return Err(LogError::Unknown(format!(
                    "{what}; cutting it back: {error}"
                )));
            }
            return Err(refusal(&error, what));
        }
        let synced = self.shared.counters.timed_sync(|| sync(io, &active.file));
        if let Err(error) = synced {
            let path = active.segment.path.display();
            let what = format!("fsync of {path}: {error}");
            self.active = None;
            return Err(LogError::Unknown(what));
        }
        let at = active.bytes;
        active.bytes += layout.bytes;
        active.segment.set_bytes(active.bytes);
        self.next_batch += 1;
        Ok((at, layout))
    }

    /// Lets readers see a durable batch, then answers.
    fn publish(&self, batch: Vec<Append>, at: u64, layout: &Layout) {
        let Some(active) = &self.active else {
            return;
        };
        let counters = &self.shared.counters;
        counters.batches.fetch_add(1, Relaxed);
        counters.records.fetch_add(batch.len() as u64, Relaxed);
        // Each shard's records together, in their order, so that its lock is taken once.
        let mut by_shard: HashMap<ShardId, Vec<usize>> = HashMap::new();
        for (i, append) in batch.iter().enumerate() {
            let length = append.record.len() as u64;
            counters.appended_bytes.fetch_add(length, Relaxed);
            by_shard.entry(append.shard.shard()).or_default().push(i);
        }
        let mut offsets = vec![Offset(0); batch.len()];
        for indexes in by_shard.values() {
            let shard = &batch[indexes[0]].shard;
            let frames = indexes.iter().map(|i| {
                let frame = FrameAt {
                    byte: (at + layout.frames[*i]) as u32,
                    bytes: batch[*i].record.len() as u32,
                };
                (frame, Some(batch[*i].record.clone()))
            });
            let end = shard.extend(&active.segment, frames);
            shard.note_in(&active.segment, end);
            for (back, i) in indexes.iter().rev().enumerate() {
                offsets[*i] = Offset(end.0 - 1 - back as u64);
            }
        }
        for (append, offset) in batch.into_iter().zip(offsets) {
            // Whoever dropped the receipt does not want to know.
            let _ = append.receipt.send(Ok(offset));
        }
    }

    /// Begins the next segment. It gets its name only when its header is durable, so a segment
    /// with a bad header is damaged, never half made.
    fn new_segment(&self) -> Result<Active, LogError> {
        let dir = &self.shared.config.dir;
        let number = self.shared.segments.lock().next_number();
        let header = SegmentHeader {
            segment: number,
            first_batch: self.next_batch,
            shards: self.shard_table(),
        }
        .encode();
        let path = segment_path(dir, number);
        let unnamed = path.with_extension("new");
        let made = || -> io::Result<(File, File)> {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true);
            let file = file.open(&unnamed)?;
            write_header(dir, &file, &header)?;
            self.shared.counters.timed_sync(|| file.sync_all())?;
            std::fs::rename(&unnamed, &path)?;
            sync_dir(dir)?;
            Ok((file, File::open(&path)?))
        };
        let (file, for_reading) = made().map_err(|error| {
            // Leftovers are overwritten or deleted at the next open; neither holds a record.
            let _ = std::fs::remove_file(&unnamed);
            let _ = std::fs::remove_file(&path);
            refusal(&error, format!("making {}: {error}", path.display()))
        })?;
        let bytes = header.len() as u64;
        let segment = Arc::new(Segment::new(number, path, for_reading, bytes));
        self.shared.segments.lock().push(Arc::clone(&segment));
        Ok(Active {
            segment,
            file,
            bytes,
        })
    }

    fn shard_table(&self) -> Vec<(ShardId, u64, u64)> {
        let shards = self.shared.shards.lock();
        let mut table: Vec<_> = shards
            .values()
            .map(|shard| {
                let (start, next) = shard.bounds();
                let damaged = shard.damage().is_some();
                let next = if damaged { NEXT_UNKNOWN } else { next.0 };
                (shard.shard(), start.0, next)
            })
            .collect();
        table.sort_unstable();
        table
    }
}

/// Lays a batch out: what is staged, what is written from where it is.
fn lay_out(staging: &mut Vec<u8>, segment: u64, number: u64, batch: &[Append]) -> Layout {
    staging.clear();
    let mut next: Vec<(ShardId, u64)> = Vec::new();
    let mut place: HashMap<ShardId, usize> = HashMap::new();
    let offsets: Vec<u64> = batch
        .iter()
        .map(|append| {
            let shard = append.shard.shard();
            let at = *place.entry(shard).or_insert_with(|| {
                next.push((shard, append.shard.bounds().1.0));
                next.len() - 1
            });
            next[at].1 += 1;
            next[at].1 - 1
        })
        .collect();
    let frame_bytes: usize = batch
        .iter()
        .map(|a| FRAME_HEADER_BYTES + a.record.len())
        .sum();
    let header = BatchHeader {
        number,
        bytes: frame_bytes as u64,
        frames: batch.len() as u32,
        next,
    };
    header.encode(segment, staging);
    debug_assert_eq!(
        staging.len(),
        TABLE_AT + BATCH_SHARD_BYTES * header.next.len()
    );
    let mut layout = Layout {
        pieces: Vec::new(),
        bytes: (staging.len() + frame_bytes) as u64,
        frames: Vec::with_capacity(batch.len()),
    };
    let mut staged_from = 0;
    let mut at = staging.len() as u64;
    for (i, (append, offset)) in batch.iter().zip(offsets).enumerate() {
        layout.frames.push(at);
        at += (FRAME_HEADER_BYTES + append.record.len()) as u64;
        let frame = FrameHeader {
            shard: append.shard.shard(),
            offset,
            bytes: append.record.len() as u32,
            crc: crc32fast::hash(&append.record),
        };
        frame.encode(segment, staging);
        if append.record.len() < IN_PLACE_BYTES_MIN {
            staging.extend_from_slice(&append.record);
            continue;
        }
        layout
            .pieces
            .push(Piece::Staged(staged_from..staging.len()));
        layout.pieces.push(Piece::Record(i));
        staged_from = staging.len();
    }
    layout
        .pieces
        .push(Piece::Staged(staged_from..staging.len()));
    layout
}

fn write_pieces(
    dir: &Path,
    active: &Active,
    staging: &[u8],
    layout: &Layout,
    batch: &[Append],
) -> io::Result<()> {
    let bytes_of = |piece: &Piece| match piece {
        Piece::Staged(range) => &staging[range.clone()],
        Piece::Record(i) => &batch[*i].record[..],
    };
    let mut at = active.bytes;
    for pieces in layout.pieces.chunks(PIECES_MAX) {
        let mut list: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(bytes_of(p))).collect();
        let mut rest = &mut list[..];
        while !rest.is_empty() {
            if rest[0].is_empty() {
                rest = &mut rest[1..];
                continue;
            }
            let written = match write_some(dir, &active.file, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            at += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}

#[cfg(not(test))]
fn write_some(
    _dir: &Path,
    file: &File,
    pieces: &[IoSlice<'_>],
    at: u64,
) -> Result<usize, rustix::io::Errno> {
    rustix::io::pwritev(file, pieces, at)
}

/// A disk on which only so much fits takes the front of the first piece.
#[cfg(test)]
fn write_some(
    dir: &Path,
    file: &File,
    pieces: &[IoSlice<'_>],
    at: u64,
) -> Result<usize, rustix::io::Errno> {
    let wanted = pieces.iter().map(|p| p.len()).sum();
    match super::tests::faults::room(dir, wanted) {
        0 => Err(rustix::io::Errno::NOSPC),
        room if room < wanted => {
            let front = &pieces[0][..room.min(pieces[0].len())];
            rustix::io::pwrite(file, front, at)
        }
        _ => rustix::io::pwritev(file, pieces, at),
    }
}

fn write_header(dir: &Path, file: &File, header: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < header.len() {
        let piece = IoSlice::new(&header[at..]);
        match write_some(dir, file, &[piece], at as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => at += written,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn sync(dir: &Path, file: &File) -> io::Result<()> {
    #[cfg(test)]
    super::tests::faults::before_sync(dir)?;
    let _ = dir;
    file.sync_data()
}

/// A definite no.
fn refusal(error: &io::Error, what: String) -> LogError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => LogError::Full(what),
        _ => LogError::NotAppended(what),
    }
}
