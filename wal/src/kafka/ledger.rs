//! How many bytes of records a log retains, without asking the broker: from what passes here.
//!
//! Sizes of records are learnt from readers and from receipts, in any order and more than once.
//! - Between the first and the last offset learnt, the sum is exact but for records that no
//!   reader of this process has passed and that others appended.
//! - Offsets below the first one learnt (a leader replays from its manifest on, not from the
//!   log's start) are taken to be of mean size. The first trim takes them away.
//! - Past `RECORDS_MAX` records the older half is kept as one sum, which a trim takes from in
//!   proportion to the offsets it removes.

use std::collections::VecDeque;

/// Four bytes each.
const RECORDS_MAX: usize = 1 << 20;
const UNKNOWN: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The log's first offset, as far as known here.
    start: u64,
    /// Offsets `summed_from .. first` hold `summed_bytes`.
    summed_from: u64,
    summed_bytes: u64,
    /// The offset of the first of `sizes`.
    first: u64,
    sizes: VecDeque<u32>,
    /// Of those in `sizes`.
    bytes: u64,
    known: u64,
}

impl Ledger {
    /// A record of this size stands at this offset.
    pub(super) fn note(&mut self, offset: u64, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(UNKNOWN - 1).min(UNKNOWN - 1);
        if offset < self.start {
            return;
        }
        if self.sizes.is_empty() && self.summed_from == self.first {
            self.first = offset;
            self.summed_from = offset;
        }
        if offset < self.first {
            self.note_before(offset, bytes);
        } else {
            let at = usize::try_from(offset - self.first).unwrap_or(usize::MAX);
            // A jump past all bounds is a log that begins anew for all that matters here.
            if at >= self.sizes.len().saturating_add(RECORDS_MAX) {
                self.sum_up(self.sizes.len());
                self.first = offset;
            }
            let at = (offset - self.first) as usize;
            if at >= self.sizes.len() {
                self.sizes.resize(at + 1, UNKNOWN);
            }
            self.put(at, bytes);
        }
        if self.sizes.len() > RECORDS_MAX {
            self.sum_up(RECORDS_MAX / 2);
        }
    }

    fn note_before(&mut self, offset: u64, bytes: u32) {
        let more = self.first - offset;
        // Already in the sum, or so far back that it is not worth the memory.
        if self.summed_from < self.first || more as usize + self.sizes.len() > RECORDS_MAX {
            return;
        }
        for _ in 0..more {
            self.sizes.push_front(UNKNOWN);
        }
        self.first = offset;
        self.summed_from = offset;
        self.put(0, bytes);
    }

    fn put(&mut self, at: usize, bytes: u32) {
        if self.sizes[at] == UNKNOWN {
            self.sizes[at] = bytes;
            self.bytes += u64::from(bytes);
            self.known += 1;
        }
    }

    /// Takes the oldest sizes into the sum.
    fn sum_up(&mut self, count: usize) {
        for size in self.sizes.drain(..count) {
            if size != UNKNOWN {
                self.bytes -= u64::from(size);
                self.known -= 1;
                self.summed_bytes += u64::from(size);
            }
        }
        self.first += count as u64;
    }

    /// The log starts here now.
    pub(super) fn trim(&mut self, start: u64) {
        self.start = self.start.max(start);
        if start >= self.first {
            let gone = (start - self.first).min(self.sizes.len() as u64) as usize;
            self.sum_up(gone);
            self.first = start;
            self.summed_from = start;
            self.summed_bytes = 0;
        } else if start > self.summed_from {
            let had = self.first - self.summed_from;
            let left = self.first - start;
            let share = u128::from(self.summed_bytes) * u128::from(left) / u128::from(had);
            self.summed_bytes = share as u64;
            self.summed_from = start;
        }
    }

    /// Bytes from the log's start on.
    pub(super) fn bytes(&self) -> u64 {
        let below = self.summed_from.saturating_sub(self.start);
        let guessed = match self.bytes.checked_div(self.known) {
            Some(mean) => mean.saturating_mul(below),
            None => 0,
        };
        guessed + self.summed_bytes + self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_once_in_whatever_order_they_are_learnt() {
        let mut ledger = Ledger::default();
        for offset in [5, 6, 3, 9, 5, 3, 0] {
            ledger.note(offset, 100);
        }
        assert_eq!(ledger.bytes(), 500);
        ledger.trim(4);
        assert_eq!(ledger.bytes(), 300, "5, 6 and 9 are left");
        ledger.note(3, 100);
        assert_eq!(ledger.bytes(), 300, "what is trimmed does not come back");
        ledger.trim(20);
        assert_eq!(ledger.bytes(), 0);
        ledger.note(20, 7);
        assert_eq!(ledger.bytes(), 7);
    }

    #[test]
    fn what_was_never_seen_is_taken_to_be_of_mean_size() {
        let mut ledger = Ledger::default();
        ledger.trim(10);
        ledger.note(30, 100);
        ledger.note(31, 300);
        assert_eq!(ledger.bytes(), 20 * 200 + 400);
        ledger.trim(30);
        assert_eq!(ledger.bytes(), 400);
    }

    #[test]
    fn a_long_log_keeps_its_sum_in_bounded_memory() {
        let mut ledger = Ledger::default();
        let records = RECORDS_MAX as u64 * 3;
        for offset in 0..records {
            ledger.note(offset, 10);
        }
        assert!(ledger.sizes.len() <= RECORDS_MAX);
        assert_eq!(ledger.bytes(), records * 10);
        ledger.trim(records / 6);
        assert_eq!(ledger.bytes(), (records - records / 6) * 10);
        ledger.trim(records - 3);
        assert_eq!(ledger.bytes(), 30);
        ledger.note(records + (1 << 40), 5);
        assert_eq!(ledger.bytes(), 35);
    }
}
