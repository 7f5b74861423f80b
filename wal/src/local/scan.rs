//! Finds what stands in a segment file, without judging it: batches, frames, and bytes that are
//! neither. Only headers are read and checked; records are skipped over, except where damage makes
//! it necessary to search.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use shoal_types::ShardId;

use super::format::{
    BATCH_MAGIC, BatchHeader, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, SegmentHeader, TABLE_AT,
};

/// What was found in a segment.
#[derive(Debug)]
pub(super) struct SegmentScan {
    pub(super) header: Result<SegmentHeader, String>,
    pub(super) batches: Vec<BatchScan>,
    pub(super) file_bytes: u64,
}

/// A batch; or, with a damaged header, whatever stands between two good ones.
#[derive(Debug)]
pub(super) struct BatchScan {
    pub(super) byte: u64,
    /// Where it ends, or should end.
    pub(super) end: u64,
    /// `None`: the header is damaged.
    pub(super) number: Option<u64>,
    pub(super) next: Vec<(ShardId, u64)>,
    pub(super) frames: Vec<FrameScan>,
    pub(super) damage: Vec<DamageScan>,
}

/// A frame with a good header.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameScan {
    pub(super) byte: u64,
    pub(super) header: FrameHeader,
}

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DamageScan {
    pub(super) byte: u64,
    pub(super) what: String,
}

/// Reads a segment's header alone.
pub(super) fn read_header(path: &Path) -> io::Result<Result<SegmentHeader, String>> {
    let file = File::open(path)?;
    header(&mut Window::new(&file)?, super::segment::number_of(path))
}

/// Reads a segment. `number` is the one in its name.
pub(super) fn scan_segment(file: &File, number: u64) -> io::Result<SegmentScan> {
    let mut window = Window::new(file)?;
    let header = header(&mut window, number)?;
    let mut at = match &header {
        Ok(found) => found.encode().len() as u64,
        // Its length is unknown: the first batch is searched for.
        Err(_) => TABLE_AT as u64,
    };
    let mut batches = Vec::new();
    if header.is_err() {
        at = find_batch(&mut window, number, at)?.unwrap_or(window.file_bytes);
    }
    while at < window.file_bytes {
        let batch = match batch_header(&mut window, number, at)? {
            Some((header, header_bytes)) => {
                good_batch(&mut window, number, at, header, header_bytes)?
            }
            None => lost_batch(&mut window, number, at)?,
        };
        at = batch.end.min(window.file_bytes);
        batches.push(batch);
    }
    Ok(SegmentScan {
        header,
        batches,
        file_bytes: window.file_bytes,
    })
}

fn header(window: &mut Window<'_>, number: u64) -> io::Result<Result<SegmentHeader, String>> {
    let fixed = window.get(0, TABLE_AT)?.to_vec();
    Ok(match SegmentHeader::length(&fixed) {
        Err(what) => Err(what),
        Ok(length) if length as u64 > window.file_bytes => {
            Err("the file ends within the segment header".into())
        }
        Ok(length) => SegmentHeader::decode(window.get(0, length)?).and_then(|header| {
            if header.segment == number {
                return Ok(header);
            }
            Err(format!("it is the header of segment {}", header.segment))
        }),
    })
}

fn batch_header(
    window: &mut Window<'_>,
    segment: u64,
    at: u64,
) -> io::Result<Option<(BatchHeader, u64)>> {
    let fixed = window.get(at, TABLE_AT)?;
    let Some(length) = BatchHeader::length(fixed) else {
        return Ok(None);
    };
    if at + length as u64 > window.file_bytes {
        return Ok(None);
    }
    let header = BatchHeader::decode(segment, window.get(at, length)?);
    Ok(header.map(|h| (h, length as u64)))
}

fn good_batch(
    window: &mut Window<'_>,
    segment: u64,
    byte: u64,
    header: BatchHeader,
    header_bytes: u64,
) -> io::Result<BatchScan> {
    let begin = byte + header_bytes;
    let end = begin.saturating_add(header.bytes);
    let mut batch = BatchScan {
        byte,
        end,
        number: Some(header.number),
        next: header.next,
        frames: Vec::new(),
        damage: Vec::new(),
    };
    if end > window.file_bytes {
        batch.damage.push(DamageScan {
            byte: window.file_bytes,
            what: format!("the file ends within a batch that ends at byte {end}"),
        });
    }
    frames(window, segment, begin, end, &mut batch)?;
    if batch.damage.is_empty() && batch.frames.len() as u64 != u64::from(header.frames) {
        batch.damage.push(DamageScan {
            byte,
            what: format!(
                "{} frames in a batch of {}",
                batch.frames.len(),
                header.frames
            ),
        });
    }
    Ok(batch)
}

/// Bytes where a batch header should be: whatever frames they hold, up to the next good batch.
fn lost_batch(window: &mut Window<'_>, segment: u64, byte: u64) -> io::Result<BatchScan> {
    let end = find_batch(window, segment, byte + 1)?.unwrap_or(window.file_bytes);
    let mut batch = BatchScan {
        byte,
        end,
        number: None,
        next: Vec::new(),
        frames: Vec::new(),
        damage: vec![DamageScan {
            byte,
            what: "the batch header is not as it was written".into(),
        }],
    };
    if let Some(first) = find_frame(window, segment, byte + 1, end)? {
        frames(window, segment, first, end, &mut batch)?;
    }
    Ok(batch)
}

/// The frames from `at` to `end`; searches on behind damage.
fn frames(
    window: &mut Window<'_>,
    segment: u64,
    mut at: u64,
    end: u64,
    batch: &mut BatchScan,
) -> io::Result<()> {
    let end = end.min(window.file_bytes);
    while at < end {
        let length = FRAME_HEADER_BYTES.min((end - at) as usize);
        let header = FrameHeader::decode(segment, window.get(at, length)?);
        let frame_end = |h: &FrameHeader| at + FRAME_HEADER_BYTES as u64 + u64::from(h.bytes);
        match header {
            Some(header) if frame_end(&header) <= end => {
                batch.frames.push(FrameScan { byte: at, header });
                at = frame_end(&header);
            }
            Some(header) => {
                batch.damage.push(DamageScan {
                    byte: at,
                    what: format!(
                        "offset {} of shard {} does not end within its batch",
                        header.offset, header.shard
                    ),
                });
                at = find_frame(window, segment, at + 1, end)?.unwrap_or(end);
            }
            None => {
                batch.damage.push(DamageScan {
                    byte: at,
                    what: "the frame header is not as it was written".into(),
                });
                at = find_frame(window, segment, at + 1, end)?.unwrap_or(end);
            }
        }
    }
    Ok(())
}

fn find_batch(window: &mut Window<'_>, segment: u64, from: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    while let Some(found) = window.find(&BATCH_MAGIC, at, window.file_bytes)? {
        if batch_header(window, segment, found)?.is_some() {
            return Ok(Some(found));
        }
        at = found + 1;
    }
    Ok(None)
}

fn find_frame(
    window: &mut Window<'_>,
    segment: u64,
    from: u64,
    end: u64,
) -> io::Result<Option<u64>> {
    let mut at = from;
    while let Some(found) = window.find(&FRAME_MAGIC, at, end)? {
        let length = FRAME_HEADER_BYTES.min((end - found) as usize);
        if FrameHeader::decode(segment, window.get(found, length)?).is_some() {
            return Ok(Some(found));
        }
        at = found + 1;
    }
    Ok(None)
}

/// A piece of the file in memory that moves with what is asked for.
struct Window<'f> {
    file: &'f File,
    file_bytes: u64,
    at: u64,
    bytes: Vec<u8>,
}

/// Small records are mostly read along with their headers; large ones are mostly skipped.
const WINDOW_BYTES: usize = 128 << 10;

impl<'f> Window<'f> {
    fn new(file: &'f File) -> io::Result<Self> {
        Ok(Self {
            file,
            file_bytes: file.metadata()?.len(),
            at: 0,
            bytes: Vec::new(),
        })
    }

    /// `length` bytes from `at`, or fewer where the file ends.
    fn get(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let length = (length as u64).min(self.file_bytes.saturating_sub(at)) as usize;
        if at < self.at || at + length as u64 > self.at + self.bytes.len() as u64 {
            let left = self.file_bytes.saturating_sub(at);
            let want = (length.max(WINDOW_BYTES) as u64).min(left) as usize;
            // Nothing stale may remain under the new position if the read fails.
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.resize(want, 0);
            self.file.read_exact_at(&mut bytes, at)?;
            self.bytes = bytes;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        Ok(&self.bytes[from..from + length])
    }

    /// The first place of `needle` that begins at or after `from` and ends by `end`.
    fn find(&mut self, needle: &[u8], from: u64, end: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at + needle.len() as u64 <= end {
            let length = (WINDOW_BYTES as u64).min(end - at) as usize;
            let bytes = self.get(at, length)?;
            if let Some(found) = bytes.windows(needle.len()).position(|w| w == needle) {
                return Ok(Some(at + found as u64));
            }
            // The next piece overlaps this one, for a needle across the edge.
            at += (bytes.len() - needle.len()) as u64 + 1;
        }
        Ok(None)
    }
}
