//! Reads one shard's records: from memory when close to the end, else from the segment files,
//! where every frame is checked against what it should be.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{Offset, ShardId};

use super::format::{FRAME_HEADER_BYTES, FrameHeader};
use super::shard_log::{LogDamage, ShardLog, Step, ToRead};
use crate::log::{LogError, LogReader};

/// Small frames that lie close together are read at once, this much at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A position in one log.
pub(super) struct LocalReader {
    shard: Arc<ShardLog>,
    id: u64,
    next: u64,
}

impl LocalReader {
    pub(super) fn open(shard: Arc<ShardLog>, from: Offset) -> Result<Self, LogError> {
        let id = shard.add_reader(from)?;
        Ok(Self {
            shard,
            id,
            next: from.0,
        })
    }
}

impl Drop for LocalReader {
    fn drop(&mut self) {
        self.shard.remove_reader(self.id);
    }
}

#[async_trait]
impl LogReader for LocalReader {
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError> {
        loop {
            let shard = Arc::clone(&self.shard);
            let changed = shard.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change in between is missed.
            changed.as_mut().enable();
            let records = match shard.step(self.id, self.next)? {
                Step::Records(records) => records,
                Step::Wait => {
                    changed.await;
                    continue;
                }
                Step::Files(frames) => {
                    let id = self.shard.shard();
                    let read = tokio::task::spawn_blocking(move || read_frames(id, &frames));
                    read.await
                        .map_err(|e| LogError::Io(format!("reading was interrupted: {e}")))??
                }
            };
            let Some((last, _)) = records.last() else {
                return Err(LogError::Io("the log's index names no frame".into()));
            };
            self.next = last.0 + 1;
            self.shard.move_reader(self.id, self.next);
            return Ok(records);
        }
    }
}

/// Reads frames up to the first that cannot be had; an error only if that is the first of all.
fn read_frames(shard: ShardId, frames: &[ToRead]) -> Result<Vec<(Offset, Bytes)>, LogError> {
    let mut chunk = Chunk::default();
    let mut records = Vec::with_capacity(frames.len());
    for (i, frame) in frames.iter().enumerate() {
        match chunk.record(shard, frame, &frames[i..]) {
            Ok(record) => records.push((Offset(frame.offset), record)),
            Err(error) if records.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(records)
}

/// The piece of a segment that was read last.
#[derive(Default)]
struct Chunk {
    segment: u64,
    at: u64,
    bytes: Vec<u8>,
}

/// From this size on a frame is read on its own, straight into the record that is handed out.
const OWN_READ_BYTES_MIN: usize = 32 << 10;

impl Chunk {
    fn record(
        &mut self,
        shard: ShardId,
        frame: &ToRead,
        ahead: &[ToRead],
    ) -> Result<Bytes, LogError> {
        let begin = u64::from(frame.at.byte);
        let length = FRAME_HEADER_BYTES + frame.at.bytes as usize;
        if length >= OWN_READ_BYTES_MIN {
            let mut bytes = vec![0; length];
            let read = frame.segment.file.read_exact_at(&mut bytes, begin);
            read.map_err(|e| read_error(shard, frame, &e))?;
            check(shard, frame, &bytes)?;
            return Ok(Bytes::from(bytes).slice(FRAME_HEADER_BYTES..));
        }
        let have = self.segment == frame.segment.number
            && begin >= self.at
            && begin + length as u64 <= self.at + self.bytes.len() as u64;
        if !have {
            let filled = self.fill(frame, length, ahead);
            filled.map_err(|e| read_error(shard, frame, &e))?;
        }
        let from = (begin - self.at) as usize;
        let bytes = &self.bytes[from..from + length];
        check(shard, frame, bytes)?;
        // A copy, so that a record kept for long does not keep its neighbours.
        Ok(Bytes::copy_from_slice(&bytes[FRAME_HEADER_BYTES..]))
    }

    /// Reads the frame and as many of the next ones as fit.
    fn fill(&mut self, frame: &ToRead, length: usize, ahead: &[ToRead]) -> std::io::Result<()> {
        let begin = u64::from(frame.at.byte);
        let mut end = begin + length as u64;
        for next in ahead {
            let next_end =
                u64::from(next.at.byte) + FRAME_HEADER_BYTES as u64 + u64::from(next.at.bytes);
            if next.segment.number != frame.segment.number
                || next_end.saturating_sub(begin) > CHUNK_BYTES as u64
            {
                break;
            }
            end = end.max(next_end);
        }
        // Forget the old piece first: a failed read must not leave it under a new name.
        self.bytes.clear();
        self.segment = frame.segment.number;
        self.at = begin;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize((end - begin) as usize, 0);
        match frame.segment.file.read_exact_at(&mut bytes, begin) {
            Ok(()) => {}
            // The chunk may reach past a cut; the frame itself decides.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                bytes.truncate(length);
                frame.segment.file.read_exact_at(&mut bytes, begin)?;
            }
            Err(e) => return Err(e),
        }
        self.bytes = bytes;
        Ok(())
    }
}

fn damage(shard: ShardId, frame: &ToRead, what: String) -> LogError {
    let place = format!("{} byte {}", frame.segment.path.display(), frame.at.byte);
    LogDamage { place, what }.error(shard)
}

fn read_error(shard: ShardId, frame: &ToRead, error: &std::io::Error) -> LogError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return damage(shard, frame, "the file ends within the frame".into());
    }
    let path = frame.segment.path.display();
    LogError::Io(format!("reading {path} byte {}: {error}", frame.at.byte))
}

/// Whether these are the bytes that were written for this offset.
fn check(shard: ShardId, frame: &ToRead, bytes: &[u8]) -> Result<(), LogError> {
    let Some(header) = FrameHeader::decode(frame.segment.number, bytes) else {
        let what = "the frame header is not as it was written".into();
        return Err(damage(shard, frame, what));
    };
    if (header.shard, header.offset, header.bytes) != (shard, frame.offset, frame.at.bytes) {
        let (offset, other) = (header.offset, header.shard);
        let what = format!("the frame holds offset {offset} of shard {other}");
        return Err(damage(shard, frame, what));
    }
    let found = crc32fast::hash(&bytes[FRAME_HEADER_BYTES..]);
    if found != header.crc {
        let (offset, written) = (frame.offset, header.crc);
        let what = format!(
            "crc of the record at offset {offset} is {found:08x}, written was {written:08x}"
        );
        return Err(damage(shard, frame, what));
    }
    Ok(())
}
