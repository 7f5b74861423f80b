//! Segments, batches and frames: the bytes of the local log, format version 1. All numbers are
//! little-endian; ids are in their own (big-endian) byte order.
//!
//! ```text
//! {segment:020}.log:   segment header │ batch │ batch │ … │ batch
//! batch:               batch header │ frame │ frame │ …
//! frame:               frame header │ record
//!
//! segment header            batch header               frame header
//!  0  8 magic SHOALSEG       0  8 magic SHOALBAT        0  4 magic FRME
//!  8  1 version (1)          8  4 crc32 of 12…          4  4 crc32 of 8…40
//!  9  3 zero                12  4 number of shards s    8 16 shard
//! 12  4 crc32 of 16…        16  8 batch number         24  8 offset in the shard
//! 16  4 number of shards s  24  8 bytes of the frames  32  4 bytes of the record
//! 20  4 zero                32  4 number of frames     36  4 crc32 of the record
//! 24  8 segment number      36  4 zero                 40  … the record
//! 32  8 first batch number  40 24·s per shard:
//! 40 32·s per shard:           16 shard, 8 next offset after this batch
//!    16 shard, 8 start, 8 next
//! ```
//!
//! - The crcs of batch and frame headers are seeded with the segment's number, so that bytes of
//!   another segment (a copied file, a reused block) do not pass.
//! - *Batch numbers* are consecutive over all segments. A batch is written only after the one
//!   before it is durable, so a valid batch header proves all lower numbers durable. A segment
//!   whose first batch is `n` ends its predecessors: batches `≥ n` in them never happened.
//! - The tables in segment headers let a log whose frames are all trimmed know its next offset;
//!   `next` = `u64::MAX` marks a log known to be damaged. Those in batch headers name the shards
//!   that a damaged frame may have belonged to.
//! - A batch without frames, written at a clean stop, proves the batch before it durable.

use shoal_types::ShardId;

use crate::little_endian::{u32_at, u64_at};

/// The format that this version writes and reads.
pub const FORMAT_VERSION: u8 = 1;
/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"SHOALSEG";
/// First bytes of a batch.
pub const BATCH_MAGIC: [u8; 8] = *b"SHOALBAT";
/// First bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"FRME";
/// Bytes of a segment or batch header without its table.
pub const TABLE_AT: usize = 40;
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 40;
/// Bytes of one shard in a segment header.
pub const SEGMENT_SHARD_BYTES: usize = 32;
/// Bytes of one shard in a batch header.
pub const BATCH_SHARD_BYTES: usize = 24;
/// In a segment header's table: the log is damaged, its next offset is not known.
pub const NEXT_UNKNOWN: u64 = u64::MAX;

/// A segment's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's number, as in its file name.
    pub segment: u64,
    /// The number of the first batch in it.
    pub first_batch: u64,
    /// `(shard, first offset kept, next offset)` of every log when the segment began.
    pub shards: Vec<(ShardId, u64, u64)>,
}

/// What precedes the frames of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Consecutive over all segments.
    pub number: u64,
    /// Bytes of the frames, their headers included.
    pub bytes: u64,
    /// Number of frames.
    pub frames: u32,
    /// `(shard, next offset after the batch)` of every log in it.
    pub next: Vec<(ShardId, u64)>,
}

/// What precedes a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The log it belongs to.
    pub shard: ShardId,
    /// Its offset there.
    pub offset: u64,
    /// Bytes of the record.
    pub bytes: u32,
    /// crc32 of the record.
    pub crc: u32,
}

impl SegmentHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TABLE_AT + SEGMENT_SHARD_BYTES * self.shards.len());
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&[FORMAT_VERSION, 0, 0, 0]);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.shards.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.segment.to_le_bytes());
        out.extend_from_slice(&self.first_batch.to_le_bytes());
        for (shard, start, next) in &self.shards {
            out.extend_from_slice(&shard.to_bytes());
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&next.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Bytes of the whole header, from its first [`TABLE_AT`] bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn length(fixed: &[u8]) -> Result<usize, String> {
        if fixed.len() < TABLE_AT {
            return Err(format!("a segment header of {} bytes", fixed.len()));
        }
        if fixed[..8] != SEGMENT_MAGIC {
            return Err("no segment magic".into());
        }
        if fixed[8] != FORMAT_VERSION {
            return Err(format!(
                "segment format {}; this version reads {FORMAT_VERSION}",
                fixed[8]
            ));
        }
        Ok(TABLE_AT + SEGMENT_SHARD_BYTES * u32_at(fixed, 16) as usize)
    }

    /// Reads a header of exactly [`Self::length`] bytes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if Self::length(bytes)? != bytes.len() {
            return Err("a segment header of another length".into());
        }
        let crc = u32_at(bytes, 12);
        let found = crc32fast::hash(&bytes[16..]);
        if bytes[9..12] != [0; 3] || crc != found {
            return Err(format!(
                "segment header crc is {found:08x}, written was {crc:08x}"
            ));
        }
        let shards = bytes[TABLE_AT..].chunks_exact(SEGMENT_SHARD_BYTES);
        Ok(Self {
            segment: u64_at(bytes, 24),
            first_batch: u64_at(bytes, 32),
            shards: shards
                .map(|s| (shard_at(s, 0), u64_at(s, 16), u64_at(s, 24)))
                .collect(),
        })
    }
}

impl BatchHeader {
    /// Bytes of the whole header of a batch with frames of `shards` logs.
    #[must_use]
    pub fn length_for(shards: usize) -> usize {
        TABLE_AT + BATCH_SHARD_BYTES * shards
    }

    /// Appends the header's bytes to `out`.
    pub fn encode(&self, segment: u64, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&BATCH_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(self.next.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.frames.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for (shard, next) in &self.next {
            out.extend_from_slice(&shard.to_bytes());
            out.extend_from_slice(&next.to_le_bytes());
        }
        let crc = seeded_crc(segment, &out[at + 12..]);
        out[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Bytes of the whole header, from its first [`TABLE_AT`] bytes; `None` if it is no header.
    #[must_use]
    pub fn length(fixed: &[u8]) -> Option<usize> {
        let magic = fixed.len() >= TABLE_AT && fixed[..8] == BATCH_MAGIC;
        magic.then(|| Self::length_for(u32_at(fixed, 12) as usize))
    }

    /// Reads a header of exactly [`Self::length`] bytes; `None` if it is damaged.
    #[must_use]
    pub fn decode(segment: u64, bytes: &[u8]) -> Option<Self> {
        if Self::length(bytes)? != bytes.len()
            || u32_at(bytes, 8) != seeded_crc(segment, &bytes[12..])
        {
            return None;
        }
        let shards = bytes[TABLE_AT..].chunks_exact(BATCH_SHARD_BYTES);
        Some(Self {
            number: u64_at(bytes, 16),
            bytes: u64_at(bytes, 24),
            frames: u32_at(bytes, 32),
            next: shards.map(|s| (shard_at(s, 0), u64_at(s, 16))).collect(),
        })
    }
}

impl FrameHeader {
    /// Appends the header's bytes to `out`.
    pub fn encode(&self, segment: u64, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.shard.to_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        let crc = seeded_crc(segment, &out[at + 8..]);
        out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header from the front of `bytes`; `None` if there is none.
    #[must_use]
    pub fn decode(segment: u64, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        if bytes[..4] != FRAME_MAGIC || u32_at(bytes, 4) != seeded_crc(segment, &bytes[8..]) {
            return None;
        }
        Some(Self {
            shard: shard_at(bytes, 8),
            offset: u64_at(bytes, 24),
            bytes: u32_at(bytes, 32),
            crc: u32_at(bytes, 36),
        })
    }
}

fn seeded_crc(segment: u64, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&segment.to_le_bytes());
    crc.update(bytes);
    crc.finalize()
}

fn shard_at(bytes: &[u8], at: usize) -> ShardId {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    ShardId::from_bytes(id)
}
