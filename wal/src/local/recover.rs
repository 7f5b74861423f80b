//! What is found at open: which offsets stand where, what is a torn tail, what is damage.
//!
//! - *Torn tail.* Only the last batch of the last segment can be torn, because a batch is written
//!   after the one before it is durable and a segment is named after its predecessors are. If
//!   anything is wrong with that batch, it is dropped as a whole: nobody was told of any of it.
//!   (A power cut leaves no more than that. The same bytes damaged *later*, after an unclean stop,
//!   cannot be told from it; after a clean stop an empty batch follows, and they can.)
//! - *Damage.* Everything else that is not as written was durable once. The shards that lost a
//!   record end before it with [`LogDamage`]; the others go on. Which ones lost one is told by
//!   their offsets, which have no gaps, and by the tables in batch and segment headers. Where the
//!   tables are damaged too, a shard is cleared only by a later record with the offset expected.
//! - *Superseded.* Batches from the next segment's first batch number on never happened (a failed
//!   fsync, see the writer).
//!
//! Opening changes no segment file. A batch that a killed process had written but not synced is
//! readable from now on, so the last segment is synced here. Nothing is appended to old segments:
//! the first append begins a new one, which ends the old ones for good.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_types::{Offset, ShardId};

use super::format::{FRAME_HEADER_BYTES, NEXT_UNKNOWN};
use super::scan::{self, BatchScan, SegmentScan};
use super::segment::{Segment, Segments, list_segments, number_of, segment_path};
use super::shard_log::{FrameAt, LogDamage, ShardLog};

/// What was found in a log folder.
pub(super) struct Recovered {
    pub(super) shards: HashMap<ShardId, Arc<ShardLog>>,
    pub(super) segments: Segments,
    pub(super) next_batch: u64,
    pub(super) unknown_shards: Option<LogDamage>,
}

/// Reads a log folder; makes it if it is missing.
pub(super) fn recover(dir: &Path) -> io::Result<Recovered> {
    std::fs::create_dir_all(dir)?;
    let paths = list_segments(dir)?;
    delete_unnamed(dir)?;
    let mut recovery = Recovery {
        dir: dir.to_owned(),
        shards: HashMap::new(),
        suspects: HashMap::new(),
        last_damage: None,
        damaged_segments: Vec::new(),
        table_seen: false,
        unknown_shards: None,
    };
    let mut segments = Segments::default();
    let mut next_batch = 1;
    let mut expected_segment = None;
    for (i, (number, path)) in paths.iter().enumerate() {
        if let Some(expected) = expected_segment
            && expected != *number
        {
            recovery.last_damage = Some(LogDamage {
                place: segment_path(dir, expected).display().to_string(),
                what: "the file is missing".into(),
            });
        }
        expected_segment = Some(number + 1);
        let file = File::open(path)?;
        let mut found = scan::scan_segment(&file, *number)?;
        match paths.get(i + 1) {
            Some((_, next)) => cut_superseded(&mut found, first_batch_of(next)?),
            None => {
                cut_torn_tail(&mut found, &file, path)?;
                // Before anybody is told that these records are durable.
                file.sync_all()?;
            }
        }
        if let Ok(header) = &found.header {
            next_batch = next_batch.max(header.first_batch);
        }
        let last = found.batches.iter().filter_map(|b| b.number).max();
        next_batch = next_batch.max(last.map_or(0, |n| n + 1));
        let segment = Segment::new(*number, path.clone(), file, found.file_bytes);
        let segment = Arc::new(segment);
        recovery.enter(&segment, &found);
        segments.push(segment);
    }
    recovery.judge_suspects();
    recovery.pin_damage();
    Ok(Recovered {
        shards: recovery.shards,
        segments,
        next_batch,
        unknown_shards: recovery.unknown_shards,
    })
}

/// Segments whose header was not durable when the process died; they hold nothing.
fn delete_unnamed(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "new") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn first_batch_of(path: &Path) -> io::Result<Option<u64>> {
    if let Ok(header) = scan::read_header(path)? {
        return Ok(Some(header.first_batch));
    }
    // The header is damaged, its first batch says the same.
    let (number, file) = (number_of(path), File::open(path)?);
    let found = scan::scan_segment(&file, number)?;
    Ok(found.batches.iter().find_map(|b| b.number))
}

fn cut_superseded(found: &mut SegmentScan, first_of_next: Option<u64>) {
    let Some(first) = first_of_next else {
        return;
    };
    let alive = |b: &BatchScan| b.number.is_none_or(|n| n < first);
    let keep = found.batches.iter().take_while(|b| alive(b)).count();
    let cut = keep < found.batches.len();
    found.batches.truncate(keep);
    let header = found.header.as_ref().ok();
    let complete = found.batches.iter().rev().find_map(|b| b.number);
    let complete = complete.or(header.and_then(|h| h.first_batch.checked_sub(1)));
    if !cut && complete != first.checked_sub(1) {
        return;
    }
    // All that counts is there: unreadable bytes behind it are part of what never happened.
    while found.batches.last().is_some_and(|b| b.number.is_none()) {
        found.batches.pop();
    }
}

fn cut_torn_tail(found: &mut SegmentScan, file: &File, path: &Path) -> io::Result<()> {
    let Some(last) = found.batches.last() else {
        return Ok(());
    };
    let torn = last.number.is_none() || !last.damage.is_empty() || !records_are_whole(last, file)?;
    if torn {
        tracing::warn!(
            path = %path.display(), byte = last.byte,
            "the last batch of the log is torn (never acknowledged) and is left out"
        );
        found.batches.pop();
    }
    Ok(())
}

fn records_are_whole(batch: &BatchScan, file: &File) -> io::Result<bool> {
    let mut record = Vec::new();
    for frame in &batch.frames {
        record.resize(frame.header.bytes as usize, 0);
        file.read_exact_at(&mut record, frame.byte + FRAME_HEADER_BYTES as u64)?;
        if crc32fast::hash(&record) != frame.header.crc {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Recovery {
    dir: PathBuf,
    shards: HashMap<ShardId, Arc<ShardLog>>,
    /// Shards that may have lost their last records so far, and where.
    suspects: HashMap<ShardId, LogDamage>,
    last_damage: Option<LogDamage>,
    /// Segments in which frames may have been lost.
    damaged_segments: Vec<Arc<Segment>>,
    /// Whether a segment header was readable yet.
    table_seen: bool,
    unknown_shards: Option<LogDamage>,
}

/// Offsets are the upper 48 bits of row versions.
const OFFSET_MAX: u64 = (1 << 48) - 1;

impl Recovery {
    fn enter(&mut self, segment: &Arc<Segment>, found: &SegmentScan) {
        match &found.header {
            Ok(header) => {
                // The first table says where logs begin of which no earlier record is kept.
                let begins = !self.table_seen && self.damaged_segments.is_empty();
                for (shard, _, next) in &header.shards {
                    if begins && *next <= OFFSET_MAX {
                        let new = || Arc::new(ShardLog::new(*shard, Offset(*next)));
                        self.shards.entry(*shard).or_insert_with(new);
                    }
                    self.expect(*shard, *next, segment, 0);
                }
                self.table_seen = true;
                // The table lists every log there was.
                self.unknown_shards = None;
            }
            Err(what) => {
                let damage = self.damage_at(segment, 0, what);
                if !self.table_seen {
                    self.unknown_shards = Some(damage.clone());
                }
                self.last_damage = Some(damage);
            }
        }
        for batch in &found.batches {
            if !batch.damage.is_empty() {
                self.damaged_segments.push(Arc::clone(segment));
            }
            self.enter_batch(segment, batch);
        }
    }

    fn enter_batch(&mut self, segment: &Arc<Segment>, batch: &BatchScan) {
        if let Some(damage) = batch.damage.first() {
            self.last_damage = Some(self.damage_at(segment, damage.byte, &damage.what));
        }
        let mut frames = batch.frames.iter().peekable();
        while let Some(frame) = frames.next() {
            // Frames of one shard in a row enter together.
            let shard = frame.header.shard;
            let log = self.log(shard, frame.header.offset);
            if log.damage().is_some() {
                // Not readable, but not to be deleted either.
                log.note_in(segment, Offset(u64::MAX));
                continue;
            }
            let next = log.bounds().1.0;
            if frame.header.offset != next {
                let place = self.place_of_gap(segment, frame.byte, batch);
                let what = format!("offset {next} should follow, {} does", frame.header.offset);
                self.damage(&log, &place, &what);
                continue;
            }
            self.suspects.remove(&shard);
            let mut run = vec![frame];
            while let Some(more) = frames
                .next_if(|f| f.header.shard == shard && f.header.offset == next + run.len() as u64)
            {
                run.push(more);
            }
            let frames = run.iter().map(|f| {
                let at = FrameAt {
                    byte: f.byte as u32,
                    bytes: f.header.bytes,
                };
                (at, None)
            });
            let end = log.extend(segment, frames);
            log.note_in(segment, end);
        }
        for (shard, next) in &batch.next {
            self.expect(*shard, *next, segment, batch.byte);
        }
        if batch.number.is_none() {
            self.suspect_all(segment, batch.byte);
        }
    }

    /// A table says that `shard` goes on at `next`.
    fn expect(&mut self, shard: ShardId, next: u64, segment: &Segment, byte: u64) {
        let new = || Arc::new(ShardLog::new(shard, Offset(0)));
        self.shards.entry(shard).or_insert_with(new);
        let log = Arc::clone(&self.shards[&shard]);
        if log.damage().is_some() {
            return;
        }
        let end = log.bounds().1.0;
        if end == next {
            self.suspects.remove(&shard);
            return;
        }
        let here = self.damage_at(segment, byte, "");
        let cause = self.suspects.remove(&shard);
        let cause = cause.or_else(|| self.last_damage.clone());
        let place = cause.as_ref().map_or(here.place, |d| d.place.clone());
        let why = cause.map_or(String::new(), |d| format!(" ({})", d.what));
        let what = if next == NEXT_UNKNOWN {
            format!("records from offset {end} on are missing{why}")
        } else {
            format!("the log should reach offset {next} and ends at {end}{why}")
        };
        self.damage(&log, &place, &what);
    }

    fn log(&mut self, shard: ShardId, offset: u64) -> Arc<ShardLog> {
        // A log that no table listed begins here, unless the table is what was lost.
        let begins = if self.table_seen || offset > OFFSET_MAX {
            0
        } else {
            offset
        };
        let new = || Arc::new(ShardLog::new(shard, Offset(begins)));
        Arc::clone(self.shards.entry(shard).or_insert_with(new))
    }

    fn damage(&self, log: &ShardLog, place: &str, what: &str) {
        let shard = log.shard();
        tracing::error!(%shard, place, what, "the log of a shard is damaged");
        log.set_damage(LogDamage {
            place: place.to_owned(),
            what: what.to_owned(),
        });
    }

    fn damage_at(&self, segment: &Segment, byte: u64, what: &str) -> LogDamage {
        LogDamage {
            place: format!("{} byte {byte}", segment.path.display()),
            what: what.to_owned(),
        }
    }

    /// The damage that explains a gap: in this batch, else the last one before it.
    fn place_of_gap(&self, segment: &Segment, byte: u64, batch: &BatchScan) -> String {
        let here = || format!("{} byte {byte}", segment.path.display());
        match (&self.last_damage, batch.damage.first()) {
            (_, Some(damage)) => format!("{} byte {}", segment.path.display(), damage.byte),
            (Some(damage), None) => damage.place.clone(),
            (None, None) => here(),
        }
    }

    fn suspect_all(&mut self, segment: &Segment, byte: u64) {
        let damage = self.damage_at(
            segment,
            byte,
            "the batch header is damaged, and records may be missing with it",
        );
        for (shard, log) in &self.shards {
            if log.damage().is_none() {
                self.suspects
                    .entry(*shard)
                    .or_insert_with(|| damage.clone());
            }
        }
        self.unknown_shards.get_or_insert(damage);
    }

    /// Keeps the files with damage, whatever is trimmed: they are all there is to repair from.
    fn pin_damage(&self) {
        let damaged = self.shards.values().filter(|s| s.damage().is_some());
        for shard in damaged {
            for segment in &self.damaged_segments {
                shard.note_in(segment, Offset(u64::MAX));
            }
        }
    }

    fn judge_suspects(&mut self) {
        for (shard, damage) in std::mem::take(&mut self.suspects) {
            let log = Arc::clone(&self.shards[&shard]);
            self.damage(&log, &damage.place, &damage.what);
        }
        if let Some(damage) = &self.unknown_shards {
            let dir = self.dir.display();
            tracing::error!(%dir, %damage, "logs may be missing; none is made until it is repaired");
        }
    }
}
