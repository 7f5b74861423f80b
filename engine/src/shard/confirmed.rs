//! Records that this replica appended and the log confirmed, applied before they are read back.
//!
//! A receipt says at which offset a record stands, durable and for ever. A replica that has applied
//! everything below that offset then knows the log up to the record and including it: folding it
//! from memory gives the state that reading it would give (decision 0014). So it does not wait for
//! the bytes to come back. Where anything stands in between that it has not applied (another
//! replica's record, a gap), the record waits here until the reader has passed that.
//!
//! The reader passes everything all the same, and stops the shard where it finds another record than
//! was confirmed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shoal_types::Offset;

use super::entry::LogEntry;

/// Records applied ahead of the reader, at most: beyond that the reader has to catch up first, so
/// that what it checks is never long ago.
const AHEAD_MAX: usize = 16_384;

/// What is confirmed and was not read yet.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    /// Not applied: something below is missing.
    waiting: BTreeMap<Offset, (Arc<LogEntry>, u32)>,
    /// Applied, in order of their offsets, with their checksums.
    ahead: VecDeque<(Offset, u32)>,
}

impl Confirmed {
    /// Takes the log's word that a record stands at `offset`. `next` is one past what is applied.
    pub(crate) fn offer(&mut self, offset: Offset, entry: Arc<LogEntry>, crc: u32, next: Offset) {
        if offset >= next {
            self.waiting.insert(offset, (entry, crc));
        }
    }

    /// The record at `next`, if it is confirmed; the caller applies it.
    pub(crate) fn take(&mut self, next: Offset) -> Option<Arc<LogEntry>> {
        if self.waiting.is_empty() || self.ahead.len() >= AHEAD_MAX {
            return None;
        }
        let (entry, crc) = self.waiting.remove(&next)?;
        self.ahead.push_back((next, crc));
        Some(entry)
    }

    /// The reader passes a record (`None`: foreign bytes).
    ///
    /// # Errors
    /// The log shows something else than it confirmed.
    pub(crate) fn passed(&mut self, offset: Offset, crc: Option<u32>) -> Result<(), String> {
        if !self.waiting.is_empty() {
            self.waiting.remove(&offset);
        }
        let Some((first, confirmed)) = self.ahead.front().copied() else {
            return Ok(());
        };
        if first < offset || (first == offset && crc != Some(confirmed)) {
            return Err(format!(
                "log offset {first}: the log confirmed a record of this replica there and shows another one"
            ));
        }
        if first == offset {
            self.ahead.pop_front();
        }
        Ok(())
    }

    /// Whether the reader is behind what is applied.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The reader begins anew behind what is applied.
    pub(crate) fn reader_moved(&mut self) {
        self.ahead.clear();
    }
}
