//! The window of write ids (PROTOCOLS §3): which (id, part) were applied, in bounded memory.
//!
//! What holds at all times: *the window is exactly the set of applied ids made at or after
//! `floor_ms`*. So an id at or above the floor that is not in the window was never applied, and
//! one below the floor cannot be told and is refused. Forgetting ids raises the floor above them.
//!
//! Ids are kept in sets by the time they were made, because clients make them when they send:
//! nearly all inserts hit one set, old sets go as a whole, and a copy of the state shares all but
//! the newest.

use std::sync::Arc;

use hashbrown::HashSet;
use rpds::RedBlackTreeMapSync;
use shoal_types::{TimestampMs, WriteId};

use super::{FoldLimits, Verdict};
use crate::record::WriteIdPart;

/// One set holds the ids of 2^14 ms, about 16 s.
const BUCKET_BITS: u32 = 14;

/// 20 bytes without padding (a `u128` would align it to 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    id: [u8; 16],
    part: u32,
}

type Bucket = HashSet<Entry, std::hash::BuildHasherDefault<ahash::AHasher>>;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WriteIds {
    floor_ms: TimestampMs,
    count: usize,
    buckets: RedBlackTreeMapSync<u64, Arc<Bucket>>,
}

impl WriteIds {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn contains(&self, part: WriteIdPart) -> bool {
        let bucket = self.buckets.get(&(part.id.created_ms() >> BUCKET_BITS));
        bucket.is_some_and(|b| b.contains(&Entry::from(part)))
    }

    pub(super) fn judge(
        &self,
        limits: &FoldLimits,
        stamp_ms: TimestampMs,
        part: WriteIdPart,
    ) -> Verdict {
        let made_ms = part.id.created_ms();
        if self.contains(part) {
            return Verdict::DuplicateId;
        }
        // The age counts from this record's stamp, not from the newest stamp ever: a leader whose
        // clock ran ahead for a while must not expire everybody's ids for good.
        let too_old = made_ms < self.floor_ms
            || made_ms.saturating_add(limits.write_id_age_ms_max) < stamp_ms;
        let too_new = made_ms > stamp_ms.saturating_add(limits.write_id_ahead_ms_max);
        if too_old || too_new {
            return Verdict::ExpiredId;
        }
        Verdict::Apply
    }

    /// Adds an id that [`Self::judge`] let pass, and forgets what is too old or too many.
    pub(super) fn insert(&mut self, limits: &FoldLimits, stamp_ms: TimestampMs, part: WriteIdPart) {
        self.add(part);
        let oldest_ms = stamp_ms.saturating_sub(limits.write_id_age_ms_max);
        while let Some(end_ms) = self.first_bucket_end_ms()
            && end_ms <= oldest_ms
        {
            self.forget_below(end_ms);
        }
        if self.count > limits.write_ids_max as usize {
            self.forget_oldest(limits.write_ids_max as usize);
        }
    }

    fn add(&mut self, part: WriteIdPart) {
        let key = part.id.created_ms() >> BUCKET_BITS;
        let added = match self.buckets.get_mut(&key) {
            Some(bucket) => Arc::make_mut(bucket).insert(Entry::from(part)),
            None => {
                let mut bucket = Bucket::default();
                bucket.insert(Entry::from(part));
                self.buckets.insert_mut(key, Arc::new(bucket));
                true
            }
        };
        self.count += usize::from(added);
    }

    fn first_bucket_end_ms(&self) -> Option<TimestampMs> {
        let (key, _) = self.buckets.first()?;
        Some((key + 1) << BUCKET_BITS)
    }

    /// Makes room for at least a sixteenth of the window, so that finding the oldest within a set
    /// is paid once for many inserts.
    fn forget_oldest(&mut self, count_max: usize) {
        let keep = count_max - count_max / 16;
        while self.count > keep {
            let Some((_, bucket)) = self.buckets.first() else {
                return;
            };
            let surplus = self.count - keep;
            let floor_ms = if bucket.len() <= surplus {
                self.first_bucket_end_ms().unwrap_or(TimestampMs::MAX)
            } else {
                let mut made_ms: Vec<_> = bucket.iter().map(Entry::made_ms).collect();
                let (_, oldest_kept, _) = made_ms.select_nth_unstable(surplus - 1);
                *oldest_kept + 1
            };
            self.forget_below(floor_ms);
        }
    }

    /// Raises the floor and forgets every id below it.
    fn forget_below(&mut self, floor_ms: TimestampMs) {
        self.floor_ms = self.floor_ms.max(floor_ms);
        let floor_ms = self.floor_ms;
        while let Some((&key, bucket)) = self.buckets.first()
            && key << BUCKET_BITS < floor_ms
        {
            self.count -= bucket.len();
            let mut kept = Bucket::default();
            if (key + 1) << BUCKET_BITS > floor_ms {
                kept = (**bucket).clone();
                kept.retain(|e| e.made_ms() >= floor_ms);
            }
            if kept.is_empty() {
                self.buckets.remove_mut(&key);
                continue;
            }
            self.count += kept.len();
            self.buckets.insert_mut(key, Arc::new(kept));
            return;
        }
    }

    pub(super) fn floor_ms(&self) -> TimestampMs {
        self.floor_ms
    }

    /// Ids in this window that are not in `older`, sorted.
    pub(super) fn added_since(&self, older: &Self) -> Vec<WriteIdPart> {
        let mut added = Vec::new();
        for (key, bucket) in &self.buckets {
            let known = older.buckets.get(key);
            if known.is_some_and(|k| Arc::ptr_eq(k, bucket)) {
                continue;
            }
            let new = |e: &&Entry| known.is_none_or(|k| !k.contains(*e));
            added.extend(bucket.iter().filter(new).map(|e| WriteIdPart::from(*e)));
        }
        added.sort_unstable_by_key(|w| (w.id, w.part));
        added
    }

    pub(super) fn apply_edit(&mut self, floor_ms: TimestampMs, added: &[WriteIdPart]) {
        for part in added {
            self.add(*part);
        }
        self.forget_below(floor_ms);
    }
}

impl Entry {
    fn made_ms(&self) -> TimestampMs {
        WriteId(u128::from_be_bytes(self.id)).created_ms()
    }
}

impl From<WriteIdPart> for Entry {
    fn from(part: WriteIdPart) -> Self {
        Self {
            id: part.id.0.to_be_bytes(),
            part: part.part,
        }
    }
}

impl From<Entry> for WriteIdPart {
    fn from(entry: Entry) -> Self {
        Self {
            id: WriteId(u128::from_be_bytes(entry.id)),
            part: entry.part,
        }
    }
}
