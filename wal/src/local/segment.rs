//! Segment files and when they go: a segment is deleted once every record in it is below its
//! shard's start. Only from the oldest on, so that what is left has no holes, and never the last
//! one, whose header knows every log's next offset.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use parking_lot::Mutex;
use shoal_types::{Offset, ShardId};

/// The first offset that a log keeps. Shared between the log, which moves it, and the segments that
/// wait for it.
#[derive(Clone, Debug)]
pub(super) struct LogStart(Arc<AtomicU64>);

impl LogStart {
    pub(super) fn at(offset: Offset) -> Self {
        Self(Arc::new(AtomicU64::new(offset.0)))
    }

    pub(super) fn get(&self) -> Offset {
        Offset(self.0.load(Acquire))
    }

    pub(super) fn set(&self, offset: Offset) {
        self.0.store(offset.0, Release);
    }
}

/// One file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    /// For reading. The writer has its own handle.
    pub(super) file: File,
    bytes: AtomicU64,
    /// For every log that has records here: its start, and one past its highest offset here.
    ends: Mutex<HashMap<ShardId, (LogStart, u64)>>,
}

impl Segment {
    pub(super) fn new(number: u64, path: PathBuf, file: File, bytes: u64) -> Self {
        Self {
            number,
            path,
            file,
            bytes: AtomicU64::new(bytes),
            ends: Mutex::default(),
        }
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Relaxed);
    }

    /// Notes that a log has records here, below `end`.
    pub(super) fn note(&self, shard: ShardId, start: &LogStart, end: Offset) {
        let mut ends = self.ends.lock();
        let entry = ends.entry(shard).or_insert_with(|| (start.clone(), 0));
        entry.1 = entry.1.max(end.0);
    }

    fn is_trimmed(&self) -> bool {
        let ends = self.ends.lock();
        ends.values().all(|(start, end)| start.get().0 >= *end)
    }
}

/// The files, oldest first.
#[derive(Debug, Default)]
pub(super) struct Segments {
    list: VecDeque<Arc<Segment>>,
}

impl Segments {
    pub(super) fn push(&mut self, segment: Arc<Segment>) {
        self.list.push_back(segment);
    }

    pub(super) fn next_number(&self) -> u64 {
        self.list.back().map_or(1, |s| s.number + 1)
    }

    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.list.iter().map(|s| s.bytes.load(Relaxed)).sum()
    }

    /// Bytes of the segment `number` and of all after it but the last, which stays whatever is
    /// trimmed.
    pub(super) fn freeable_bytes_from(&self, number: u64) -> u64 {
        let last = self.list.back().map_or(0, |s| s.number);
        let from = self
            .list
            .iter()
            .filter(|s| (number..last).contains(&s.number));
        from.map(|s| s.bytes.load(Relaxed)).sum()
    }

    /// Deletes what nobody needs.
    pub(super) fn free_trimmed(&mut self) -> std::io::Result<()> {
        while self.list.len() > 1 && self.list[0].is_trimmed() {
            match std::fs::remove_file(&self.list[0].path) {
                // A file that is back after a power cut is harmless, so the folder is not synced.
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            self.list.pop_front();
        }
        Ok(())
    }
}

/// The file of a segment.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.log"))
}

/// The number in a segment's name; 0, which no segment has, for any other file.
pub(super) fn number_of(path: &Path) -> u64 {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    match name.strip_suffix(".log") {
        Some(digits) if digits.len() == 20 => digits.parse().unwrap_or(0),
        _ => 0,
    }
}

/// Makes a new or deleted file name in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The segment files of a folder, by number.
pub(super) fn list_segments(dir: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = number_of(&path);
        if number > 0 {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}
