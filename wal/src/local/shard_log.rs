//! One shard's part of the local log: which offset stands where, the newest records in memory for
//! readers that are close behind, and the damage that ends it, if any.
//!
//! Offsets are consecutive. Eight bytes a record are kept; a log of 100,000 records costs 800 kB.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_types::{Offset, ShardId};
use tokio::sync::Notify;

use super::format::FRAME_HEADER_BYTES;
use super::segment::{LogStart, Segment};
use crate::log::LogError;

/// Bytes kept in memory for readers that lag. One that lags more reads the files.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// A batch handed to a reader ends behind the record that reaches this.
const READ_BYTES_MAX: usize = 8 << 20;
const READ_RECORDS_MAX: usize = 4096;

/// Where a log stops being readable, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogDamage {
    /// File and byte.
    pub(super) place: String,
    pub(super) what: String,
}

impl fmt::Display for LogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log is damaged at {}: {}", self.place, self.what)
    }
}

impl LogDamage {
    pub(super) fn error(&self, shard: ShardId) -> LogError {
        LogError::Damaged {
            shard,
            place: self.place.clone(),
            what: self.what.clone(),
            // What lies behind damage is not indexed at the next start.
            range: None,
        }
    }
}

/// A frame: where it begins in its segment and how long its record is. Segments end below 4 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameAt {
    pub(super) byte: u32,
    pub(super) bytes: u32,
}

/// Consecutive offsets in one segment.
#[derive(Debug)]
struct Run {
    segment: Arc<Segment>,
    first: u64,
    frames: VecDeque<FrameAt>,
}

/// A frame to read from its file.
#[derive(Clone, Debug)]
pub(super) struct ToRead {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) at: FrameAt,
}

/// What a reader does next.
pub(super) enum Step {
    /// Take these records.
    Records(Vec<(Offset, Bytes)>),
    /// Read these from the files.
    Files(Vec<ToRead>),
    /// Wait.
    Wait,
}

#[derive(Debug)]
pub(super) struct ShardLog {
    shard: ShardId,
    inner: Mutex<Inner>,
    /// Something changed that a waiting reader must see.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Inner {
    start: LogStart,
    next: u64,
    runs: VecDeque<Run>,
    bytes: u64,
    /// The records from `next - tail.len()` on.
    tail: VecDeque<Bytes>,
    tail_bytes: usize,
    readers: BTreeMap<u64, u64>,
    readers_made: u64,
    damage: Option<LogDamage>,
    closed: bool,
}

impl ShardLog {
    /// A log without records whose next offset is `next`.
    pub(super) fn new(shard: ShardId, next: Offset) -> Self {
        Self {
            shard,
            inner: Mutex::new(Inner {
                start: LogStart::at(next),
                next: next.0,
                runs: VecDeque::new(),
                bytes: 0,
                tail: VecDeque::new(),
                tail_bytes: 0,
                readers: BTreeMap::new(),
                readers_made: 0,
                damage: None,
                closed: false,
            }),
            changed: Notify::new(),
        }
    }

    pub(super) fn shard(&self) -> ShardId {
        self.shard
    }

    pub(super) fn bounds(&self) -> (Offset, Offset) {
        let inner = self.inner.lock();
        (inner.start.get(), Offset(inner.next))
    }

    /// Notes in a segment that it has records of this log, below `end`.
    pub(super) fn note_in(&self, segment: &Segment, end: Offset) {
        segment.note(self.shard, &self.inner.lock().start, end);
    }

    pub(super) fn retained_bytes(&self) -> u64 {
        self.inner.lock().bytes
    }

    pub(super) fn oldest_segment(&self) -> Option<u64> {
        self.inner.lock().runs.front().map(|r| r.segment.number)
    }

    pub(super) fn damage(&self) -> Option<LogDamage> {
        self.inner.lock().damage.clone()
    }

    /// Ends the log at its present end: what follows is not what was written. The first damage
    /// stands.
    pub(super) fn set_damage(&self, damage: LogDamage) {
        self.inner.lock().damage.get_or_insert(damage);
        self.changed.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// Adds durable records in a row, found on disk or just written; those just written come with
    /// their bytes. Returns the end.
    pub(super) fn extend(
        &self,
        segment: &Arc<Segment>,
        frames: impl Iterator<Item = (FrameAt, Option<Bytes>)>,
    ) -> Offset {
        let mut inner = self.inner.lock();
        for (at, record) in frames {
            inner.push(segment, at);
            if let Some(record) = record {
                inner.tail_bytes += record.len();
                inner.tail.push_back(record);
            }
        }
        inner.drop_read_tail();
        let end = Offset(inner.next);
        drop(inner);
        self.changed.notify_waiters();
        end
    }

    pub(super) fn trim(&self, below: Offset) {
        let mut inner = self.inner.lock();
        let mut at = inner.start.get().0;
        let start = below.0.clamp(at, inner.next);
        while at < start {
            let Some(run) = inner.runs.front_mut() else {
                break;
            };
            let Some(frame) = run.frames.pop_front() else {
                inner.runs.pop_front();
                continue;
            };
            run.first += 1;
            let emptied = run.frames.is_empty();
            if emptied {
                inner.runs.pop_front();
            }
            inner.bytes -= u64::from(frame.bytes) + FRAME_HEADER_BYTES as u64;
            at += 1;
        }
        inner.start.set(Offset(start));
        drop(inner);
        // Readers that stand below must hear of it.
        self.changed.notify_waiters();
    }

    /// Registers a reader: memory is kept for it from its position on.
    pub(super) fn add_reader(&self, from: Offset) -> Result<u64, LogError> {
        let mut inner = self.inner.lock();
        inner.check(self.shard, from.0)?;
        inner.readers_made += 1;
        let id = inner.readers_made;
        inner.readers.insert(id, from.0);
        Ok(id)
    }

    pub(super) fn move_reader(&self, id: u64, to: u64) {
        let mut inner = self.inner.lock();
        inner.readers.insert(id, to);
        inner.drop_read_tail();
    }

    pub(super) fn remove_reader(&self, id: u64) {
        let mut inner = self.inner.lock();
        inner.readers.remove(&id);
        inner.drop_read_tail();
    }

    /// What a reader at `next` does now.
    pub(super) fn step(&self, id: u64, next: u64) -> Result<Step, LogError> {
        let mut inner = self.inner.lock();
        inner.check(self.shard, next)?;
        if next == inner.next {
            return match (&inner.damage, inner.closed) {
                (Some(damage), _) => Err(damage.error(self.shard)),
                (None, true) => Err(LogError::Closed),
                (None, false) => Ok(Step::Wait),
            };
        }
        let tail_first = inner.next - inner.tail.len() as u64;
        if next < tail_first {
            return Ok(Step::Files(inner.frames_from(next, tail_first)));
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        for record in inner.tail.range((next - tail_first) as usize..) {
            records.push((Offset(next + records.len() as u64), record.clone()));
            bytes += record.len();
            if bytes >= READ_BYTES_MAX || records.len() >= READ_RECORDS_MAX {
                break;
            }
        }
        inner.readers.insert(id, next + records.len() as u64);
        inner.drop_read_tail();
        Ok(Step::Records(records))
    }
}

impl Inner {
    fn check(&self, shard: ShardId, asked: u64) -> Result<(), LogError> {
        let asked_offset = Offset(asked);
        let start = self.start.get();
        if asked_offset < start {
            return Err(LogError::BelowStart {
                asked: asked_offset,
                start,
            });
        }
        if asked > self.next {
            // Where the log is damaged, its tail is not lost: it cannot be reached.
            if let Some(damage) = &self.damage {
                return Err(damage.error(shard));
            }
            return Err(LogError::LostTail {
                shard,
                asked: asked_offset,
                end: Offset(self.next),
            });
        }
        Ok(())
    }

    fn push(&mut self, segment: &Arc<Segment>, at: FrameAt) {
        match self.runs.back_mut() {
            Some(run) if run.segment.number == segment.number => run.frames.push_back(at),
            _ => self.runs.push_back(Run {
                segment: Arc::clone(segment),
                first: self.next,
                frames: VecDeque::from([at]),
            }),
        }
        self.next += 1;
        self.bytes += u64::from(at.bytes) + FRAME_HEADER_BYTES as u64;
    }

    /// Forgets what every reader has read, and the oldest above the bound.
    fn drop_read_tail(&mut self) {
        let read_to = self.readers.values().min().copied().unwrap_or(self.next);
        while let Some(oldest) = self.tail.front() {
            let offset = self.next - self.tail.len() as u64;
            if offset >= read_to && self.tail_bytes <= TAIL_BYTES_MAX {
                break;
            }
            self.tail_bytes -= oldest.len();
            self.tail.pop_front();
        }
    }

    /// Frames from `next` up to `end`, as many as one read takes.
    fn frames_from(&self, next: u64, end: u64) -> Vec<ToRead> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let first_run = self
            .runs
            .partition_point(|r| r.first <= next)
            .saturating_sub(1);
        for run in self.runs.range(first_run..) {
            let skip = next.saturating_sub(run.first) as usize;
            for (i, at) in run.frames.iter().enumerate().skip(skip) {
                let offset = run.first + i as u64;
                if offset >= end || bytes >= READ_BYTES_MAX || found.len() >= READ_RECORDS_MAX {
                    return found;
                }
                bytes += at.bytes as usize;
                found.push(ToRead {
                    segment: Arc::clone(&run.segment),
                    offset,
                    at: *at,
                });
            }
        }
        found
    }
}
