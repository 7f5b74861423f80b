//! The local log for people: every segment, batch, frame and piece of damage, offline and
//! read-only (`shoal inspect wal DIR`). A log that is being written may be looked at too; its last
//! batch may then look torn.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use shoal_types::{Offset, ShardId, TimestampMs};

use super::format::FRAME_HEADER_BYTES;
use super::scan::{self, BatchScan, FrameScan};
use super::segment::list_segments;
use crate::record::{Record, RecordError, RecordId};

/// One thing found, in the order in which it stands.
#[derive(Clone, Debug)]
pub struct LogItem {
    /// The segment's number.
    pub segment: u64,
    /// Where in its file.
    pub byte: u64,
    /// What.
    pub content: LogContent,
}

/// What was found.
#[derive(Clone, Debug)]
pub enum LogContent {
    /// A segment begins.
    Segment {
        /// Its file.
        path: PathBuf,
        /// The file's size.
        bytes: u64,
        /// Its first batch number and `(shard, start, next)` of each log when it began; `next` is
        /// `None` for a log that was damaged.
        header: Option<(u64, Vec<(ShardId, Offset, Option<Offset>)>)>,
    },
    /// A batch begins.
    Batch {
        /// Its number.
        number: u64,
        /// Frames in it; none: the mark of a clean stop.
        frames: usize,
        /// Its size with all headers.
        bytes: u64,
    },
    /// A frame.
    Frame {
        /// The log it belongs to.
        shard: ShardId,
        /// The offset there.
        offset: Offset,
        /// Bytes of the record.
        bytes: u32,
        /// The record in it.
        record: FrameRecord,
    },
    /// Bytes that are not as they were written, or a batch torn by a crash.
    Damage {
        /// What is wrong.
        what: String,
    },
}

/// The record in a frame.
#[derive(Clone, Debug)]
pub enum FrameRecord {
    /// One of ours.
    Record(RecordSummary),
    /// The bytes are as they were written, but no record that this version reads.
    NotARecord(RecordError),
    /// The bytes are not as they were written.
    Damaged {
        /// What is wrong.
        what: String,
    },
}

/// A record in short.
#[derive(Clone, Debug)]
pub struct RecordSummary {
    /// Who it is.
    pub id: RecordId,
    /// The leader's clock when it was built.
    pub stamp_ms: TimestampMs,
    /// What it says, in a line.
    pub text: String,
}

/// Every item of a log folder; holds one segment's headers and one record in memory at a time.
///
/// # Errors
/// If the folder cannot be read. The iterator yields an error where a file cannot be read, and
/// goes on with the next file.
pub fn inspect(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<LogItem>> + use<>> {
    let segments = list_segments(dir)?;
    Ok(segments.into_iter().flat_map(|(number, path)| {
        inspect_segment(number, &path).unwrap_or_else(|error| {
            let error = io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            Box::new(std::iter::once(Err(error)))
        })
    }))
}

type Items = Box<dyn Iterator<Item = io::Result<LogItem>>>;

fn inspect_segment(segment: u64, path: &Path) -> io::Result<Items> {
    let file = File::open(path)?;
    let found = scan::scan_segment(&file, segment)?;
    let item = move |byte, content| LogItem {
        segment,
        byte,
        content,
    };
    let header_damage = found.header.as_ref().err().cloned();
    let header = found.header.ok().map(|h| {
        let known = |next: u64| (next != super::format::NEXT_UNKNOWN).then_some(Offset(next));
        let shards = h.shards.into_iter();
        let shards = shards.map(|(shard, start, next)| (shard, Offset(start), known(next)));
        (h.first_batch, shards.collect())
    });
    let mut first = vec![Ok(item(
        0,
        LogContent::Segment {
            path: path.to_owned(),
            bytes: found.file_bytes,
            header,
        },
    ))];
    first.extend(header_damage.map(|what| Ok(item(0, LogContent::Damage { what }))));
    let batches = found.batches.into_iter();
    let rest = batches.flat_map(move |batch| {
        let file = file.try_clone();
        batch_items(segment, batch, file)
    });
    Ok(Box::new(first.into_iter().chain(rest)))
}

fn batch_items(
    segment: u64,
    batch: BatchScan,
    file: io::Result<File>,
) -> impl Iterator<Item = io::Result<LogItem>> {
    let item = move |byte, content| LogItem {
        segment,
        byte,
        content,
    };
    let content = batch.number.map(|number| LogContent::Batch {
        number,
        frames: batch.frames.len(),
        bytes: batch.end - batch.byte,
    });
    let begin = content.map(|content| Ok(item(batch.byte, content)));
    let damage = batch.damage.into_iter();
    let damage = damage.map(move |d| Ok(item(d.byte, LogContent::Damage { what: d.what })));
    let frames = batch.frames.into_iter().map(move |frame| {
        let file = file.as_ref().map_err(|e| io::Error::from(e.kind()))?;
        let content = frame_content(file, &frame)?;
        Ok(item(frame.byte, content))
    });
    begin.into_iter().chain(damage).chain(frames)
}

fn frame_content(file: &File, frame: &FrameScan) -> io::Result<LogContent> {
    let header = frame.header;
    let mut bytes = vec![0; header.bytes as usize];
    file.read_exact_at(&mut bytes, frame.byte + FRAME_HEADER_BYTES as u64)?;
    let found = crc32fast::hash(&bytes);
    let record = if found == header.crc {
        summarize(&Bytes::from(bytes))
    } else {
        let written = header.crc;
        FrameRecord::Damaged {
            what: format!("crc is {found:08x}, written was {written:08x}"),
        }
    };
    Ok(LogContent::Frame {
        shard: header.shard,
        offset: Offset(header.offset),
        bytes: header.bytes,
        record,
    })
}

fn summarize(bytes: &Bytes) -> FrameRecord {
    let read = Record::peek(bytes).and_then(|id| Ok((id, Record::decode(bytes)?)));
    match read {
        Ok((id, record)) => FrameRecord::Record(RecordSummary {
            id,
            stamp_ms: record.stamp_ms,
            text: record.to_string(),
        }),
        Err(error) => FrameRecord::NotARecord(error),
    }
}
